//! What an object uses of what quotas count, and which quotas are about it.

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::admission::pods::{self, Amounts};
use crate::admission::storage::storage_class;
use crate::admission::word;
use crate::object::{Object, Operation, at, items, text};
use crate::quantity::Quantity;
use crate::resources::Resource;

/// What pods have that is counted for itself, `requests.` and `limits.` before it.
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Counted by the class of a claim: `fast.storageclass.storage.k8s.io/requests.storage`.
const BY_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Is a write of this kind charged?
pub(super) fn charges(resource: &Resource, subresource: &str, operation: Operation) -> bool {
    let core = resource.group.is_empty();
    match (operation, subresource) {
        (Operation::Create, "") => true,
        (Operation::Update, "") => {
            core && matches!(resource.plural, "services" | "persistentvolumeclaims")
        }
        (Operation::Update, "resize") => core && resource.plural == "pods",
        _ => false,
    }
}

/// What an object uses at this time: every name that a quota may limit.
pub(super) fn usage(resource: &Resource, object: &Object, now: OffsetDateTime) -> Amounts {
    let mut all = Amounts::new();
    let mut set = |name: String, amount: Quantity| {
        all.insert(name, amount);
    };
    let one = Quantity::units(1);
    set(format!("count/{}", resource.qualified()), one);
    if !resource.group.is_empty() {
        return all;
    }
    match resource.plural {
        "pods" if counts(object, now) => pod(object, &mut set),
        "services" => service(object, &mut set),
        "persistentvolumeclaims" => claim(object, &mut set),
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => {
            set(resource.plural.to_owned(), one);
        }
        _ => {}
    }
    all
}

/// Does a quota count this name in objects of this resource?
pub(super) fn tracks(resource: &Resource, name: &str) -> bool {
    if let Some(counted) = name.strip_prefix("count/") {
        return counted == resource.qualified();
    }
    if !resource.group.is_empty() {
        return false;
    }
    let (asked, plain) = match name.strip_prefix("requests.") {
        Some(plain) => (true, plain),
        None => (false, name),
    };
    match resource.plural {
        "pods" => {
            let limit = name.strip_prefix("limits.").unwrap_or(plain);
            name == "pods"
                || COMPUTE.contains(&limit)
                || plain.starts_with("hugepages-")
                || (asked && extended(plain))
        }
        "services" => {
            matches!(name, "services" | "services.loadbalancers" | "services.nodeports")
        }
        "persistentvolumeclaims" => {
            matches!(name, "persistentvolumeclaims" | "requests.storage") || name.contains(BY_CLASS)
        }
        plural => {
            name == plural
                && matches!(
                    plural,
                    "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas"
                )
        }
    }
}

/// Is an object in all scopes of a quota?
pub(super) fn in_scopes(quota: &Object, resource: &Resource, object: &Object) -> bool {
    let mut plain = items(quota, "/spec/scopes").filter_map(Value::as_str);
    let mut selectors = items(quota, "/spec/scopeSelector/matchExpressions");
    plain.all(|scope| in_scope(scope, "Exists", &[], resource, object))
        && selectors.all(|selector| {
            let values = selector.get("values").and_then(Value::as_array);
            let values: Vec<_> = values.into_iter().flatten().filter_map(Value::as_str).collect();
            let (scope, operator) = (word(selector, "scopeName"), word(selector, "operator"));
            in_scope(scope, operator, &values, resource, object)
        })
}

/// What the containers of a pod must say where a quota counts it: `limits.cpu for: c; …`.
pub(super) fn unsaid(resource: &Resource, object: &Object, limited: &[&str]) -> Option<String> {
    if !resource.group.is_empty() || resource.plural != "pods" {
        return None;
    }
    let needed = ["cpu", "memory"];
    let mut missing = Vec::new();
    let mut limited: Vec<_> = limited.to_vec();
    limited.sort_unstable();
    for name in limited {
        let (field, of) = match name.split_once('.') {
            Some(("requests", of)) => ("requests", of),
            Some(("limits", of)) => ("limits", of),
            Some(_) => continue,
            None => ("requests", name),
        };
        let whole = at(object, "/spec/resources").and_then(|own| own.get(field)?.get(of));
        if !needed.contains(&of) || whole.is_some() {
            continue;
        }
        let containers = ["/spec/containers", "/spec/initContainers"].into_iter();
        let mut silent: Vec<_> = containers
            .flat_map(|kind| items(object, kind))
            .filter(|container| {
                let own = container.get("resources").and_then(|all| all.get(field));
                own.and_then(|own| own.get(of)).is_none()
            })
            .map(|container| word(container, "name"))
            .collect();
        if !silent.is_empty() {
            silent.sort_unstable();
            missing.push(format!("{name} for: {}", silent.join(",")));
        }
    }
    (!missing.is_empty()).then(|| format!("must specify {}", missing.join("; ")))
}

/// One that has ended uses nothing any more; nor one that should be gone long since, but whose node is lost.
fn counts(pod: &Object, now: OffsetDateTime) -> bool {
    if matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
        return false;
    }
    let goes = OffsetDateTime::parse(text(pod, "/metadata/deletionTimestamp"), &Rfc3339);
    let grace = at(pod, "/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    match (goes, grace) {
        (Ok(goes), Some(grace)) => now <= goes.saturating_add(Duration::seconds(grace)),
        _ => true,
    }
}

fn pod(pod: &Object, set: &mut impl FnMut(String, Quantity)) {
    set("pods".to_owned(), Quantity::units(1));
    let overhead = pods::overhead(pod);
    let (mut requests, mut limits) = (pods::requests(pod), pods::limits(pod));
    pods::add(&mut requests, &overhead);
    for (resource, limit) in &mut limits {
        *limit = limit.plus(overhead.get(resource).copied().unwrap_or_default());
    }
    for (resource, amount) in requests {
        if COMPUTE.contains(&resource.as_str()) || resource.starts_with("hugepages-") {
            set(format!("requests.{resource}"), amount);
            set(resource, amount);
        } else if extended(&resource) {
            set(format!("requests.{resource}"), amount);
        }
    }
    for (resource, amount) in limits {
        if COMPUTE.contains(&resource.as_str()) {
            set(format!("limits.{resource}"), amount);
        }
    }
}

fn service(service: &Object, set: &mut impl FnMut(String, Quantity)) {
    let ports = items(service, "/spec/ports");
    let count = |count: usize| Quantity::units(i64::try_from(count).unwrap_or(i64::MAX));
    let (balancers, nodes) = match text(service, "/spec/type") {
        "NodePort" => (0, ports.count()),
        "LoadBalancer" => {
            let all =
                at(service, "/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
            let open = |port: &&Value| port.get("nodePort").and_then(Value::as_i64) > Some(0);
            (1, if all { ports.count() } else { ports.filter(open).count() })
        }
        _ => (0, 0),
    };
    set("services".to_owned(), count(1));
    set("services.loadbalancers".to_owned(), count(balancers));
    set("services.nodeports".to_owned(), count(nodes));
}

fn claim(claim: &Object, set: &mut impl FnMut(String, Quantity)) {
    let class = storage_class(claim).filter(|class| !class.is_empty());
    let size = |pointer: &str| at(claim, pointer).and_then(|size| Quantity::of(size).ok());
    // One that grows has both until it has grown.
    let asked = size("/spec/resources/requests/storage");
    let size = asked.max(size("/status/allocatedResources/storage"));
    let counted =
        [("persistentvolumeclaims", Some(Quantity::units(1))), ("requests.storage", size)];
    for (name, amount) in counted {
        let Some(amount) = amount else { continue };
        set(name.to_owned(), amount);
        if let Some(class) = class {
            set(format!("{class}{BY_CLASS}{name}"), amount);
        }
    }
}

/// Is it a resource that nodes tell of, and Kubernetes itself does not know?
fn extended(resource: &str) -> bool {
    resource
        .split_once('/')
        .is_some_and(|(domain, _)| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
        && !resource.starts_with("requests.")
}

fn in_scope(
    scope: &str,
    operator: &str,
    values: &[&str],
    resource: &Resource,
    object: &Object,
) -> bool {
    let selected = |value: &str| match operator {
        "Exists" => !value.is_empty(),
        "DoesNotExist" => value.is_empty(),
        "In" => values.contains(&value),
        "NotIn" => !values.contains(&value),
        _ => false,
    };
    let ends = || at(object, "/spec/activeDeadlineSeconds").and_then(Value::as_i64) >= Some(0);
    match (resource.plural, scope) {
        ("pods", "Terminating") => ends(),
        ("pods", "NotTerminating") => !ends(),
        ("pods", "BestEffort") => pods::is_best_effort(object),
        ("pods", "NotBestEffort") => !pods::is_best_effort(object),
        ("pods", "PriorityClass") => selected(text(object, "/spec/priorityClassName")),
        ("pods", "CrossNamespacePodAffinity") => reaches_out(object),
        ("persistentvolumeclaims", "VolumeAttributesClass") => {
            selected(text(object, "/spec/volumeAttributesClassName"))
        }
        _ => false,
    }
}

/// Does a pod want to be near or far from pods of other namespaces?
fn reaches_out(pod: &Object) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let of =
            |when: &str| items(pod, &format!("/spec/affinity/{kind}/{when}")).collect::<Vec<_>>();
        let hard = of("requiredDuringSchedulingIgnoredDuringExecution");
        let soft = of("preferredDuringSchedulingIgnoredDuringExecution");
        let soft = soft.into_iter().filter_map(|term| term.get("podAffinityTerm"));
        hard.into_iter().chain(soft).any(|term| {
            let named = term.get("namespaces").and_then(Value::as_array);
            named.is_some_and(|named| !named.is_empty())
                || term.get("namespaceSelector").is_some_and(|selector| !selector.is_null())
        })
    })
}
