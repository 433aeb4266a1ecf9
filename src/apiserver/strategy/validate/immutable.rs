//! What does not change once it is there.

use serde_json::{Value, json};

use super::storage_amount;
use crate::object::{Object, at, items, text};
use crate::resources::Resource;
use crate::status::Cause;
use crate::strategy::default;

/// Fields that stay as they are: group, plural, path, and what is said of a change.
const FIELDS: &[(&str, &str, &str, Said)] = &[
    ("apps", "deployments", "spec.selector", Said::Immutable),
    ("apps", "replicasets", "spec.selector", Said::Immutable),
    ("apps", "daemonsets", "spec.selector", Said::Immutable),
    ("apps", "controllerrevisions", "data", Said::Immutable),
    ("batch", "jobs", "spec.selector", Said::Immutable),
    ("batch", "jobs", "spec.completionMode", Said::Immutable),
    ("batch", "jobs", "spec.podFailurePolicy", Said::Immutable),
    ("batch", "jobs", "spec.backoffLimitPerIndex", Said::Immutable),
    ("batch", "jobs", "spec.managedBy", Said::Immutable),
    ("batch", "jobs", "spec.successPolicy", Said::Immutable),
    ("", "secrets", "type", Said::Immutable),
    (
        "rbac.authorization.k8s.io",
        "rolebindings",
        "roleRef",
        Said::Invalid("cannot change roleRef"),
    ),
    (
        "rbac.authorization.k8s.io",
        "clusterrolebindings",
        "roleRef",
        Said::Invalid("cannot change roleRef"),
    ),
    (
        "storage.k8s.io",
        "storageclasses",
        "parameters",
        Said::Forbidden("updates to parameters are forbidden."),
    ),
    (
        "storage.k8s.io",
        "storageclasses",
        "provisioner",
        Said::Forbidden("updates to provisioner are forbidden."),
    ),
    (
        "storage.k8s.io",
        "storageclasses",
        "reclaimPolicy",
        Said::Forbidden("updates to reclaimPolicy are forbidden."),
    ),
    ("storage.k8s.io", "storageclasses", "volumeBindingMode", Said::Immutable),
    ("storage.k8s.io", "volumeattachments", "spec", Said::Immutable),
    ("storage.k8s.io", "csidrivers", "spec.attachRequired", Said::Immutable),
    ("storage.k8s.io", "csidrivers", "spec.fsGroupPolicy", Said::Immutable),
    ("storage.k8s.io", "csidrivers", "spec.volumeLifecycleModes", Said::Immutable),
    ("storage.k8s.io", "volumeattributesclasses", "driverName", Said::Immutable),
    ("storage.k8s.io", "volumeattributesclasses", "parameters", Said::Immutable),
    ("storage.k8s.io", "csistoragecapacities", "nodeTopology", Said::Immutable),
    ("storage.k8s.io", "csistoragecapacities", "storageClassName", Said::Immutable),
    (
        "scheduling.k8s.io",
        "priorityclasses",
        "value",
        Said::Forbidden("may not be changed in an update."),
    ),
    ("scheduling.k8s.io", "priorityclasses", "preemptionPolicy", Said::Immutable),
    ("node.k8s.io", "runtimeclasses", "handler", Said::Immutable),
    ("discovery.k8s.io", "endpointslices", "addressType", Said::Immutable),
    ("networking.k8s.io", "ingressclasses", "spec.controller", Said::Immutable),
    ("networking.k8s.io", "ipaddresses", "spec.parentRef", Said::Immutable),
    ("resource.k8s.io", "resourceclaims", "spec", Said::Immutable),
    ("resource.k8s.io", "resourceclaimtemplates", "spec", Said::Immutable),
    ("resource.k8s.io", "resourceslices", "spec.nodeName", Said::Immutable),
    ("resource.k8s.io", "resourceslices", "spec.driver", Said::Immutable),
    ("resource.k8s.io", "resourceslices", "spec.pool.name", Said::Immutable),
];

/// What a change is answered with.
enum Said {
    /// `field is immutable`.
    Immutable,
    /// Of the value.
    Invalid(&'static str),
    /// Of the field.
    Forbidden(&'static str),
}

pub(super) fn update(
    resource: &Resource,
    subresource: &str,
    new: &Object,
    old: &Object,
    causes: &mut Vec<Cause>,
) {
    // What was stored by another version lacks what that version did not know.
    let mut old = old.clone();
    default(resource, &mut old);
    let old = &old;
    let id = (resource.group, resource.plural);
    for (group, plural, path, said) in FIELDS {
        if id != (*group, *plural) {
            continue;
        }
        let pointer = format!("/{}", path.replace('.', "/"));
        if at(new, &pointer) == at(old, &pointer) {
            continue;
        }
        let value = at(new, &pointer).cloned().unwrap_or_default();
        causes.push(match said {
            Said::Immutable => Cause::invalid(*path, &value, "field is immutable"),
            Said::Invalid(why) => Cause::invalid(*path, &value, why),
            Said::Forbidden(why) => Cause::forbidden(*path, why),
        });
    }
    match id {
        ("", "pods") => pod(subresource, new, old, causes),
        ("", "configmaps" | "secrets") => data(new, old, causes),
        ("", "services") => addresses(new, old, causes),
        ("", "persistentvolumeclaims") => claim(new, old, causes),
        ("", "persistentvolumes") => volume(new, old, causes),
        ("apps", "statefulsets") => stateful_set(new, old, causes),
        ("batch", "jobs") => job(new, old, causes),
        _ => {}
    }
}

/// A value that stays as it is.
fn same(new: &Object, old: &Object, path: &str, causes: &mut Vec<Cause>) {
    let pointer = format!("/{}", path.replace('.', "/"));
    if at(new, &pointer) != at(old, &pointer) {
        let value = at(new, &pointer).cloned().unwrap_or_default();
        causes.push(Cause::invalid(path, &value, "field is immutable"));
    }
}

/// A part without these of its fields.
fn without(object: &Object, part: &str, fields: &[&str]) -> Object {
    let mut rest = object.get(part).and_then(Value::as_object).cloned().unwrap_or_default();
    rest.retain(|name, value| !fields.contains(&name.as_str()) && !value.is_null());
    rest
}

const POD_FIELDS: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn pod(subresource: &str, new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    if subresource == "ephemeralcontainers" {
        return ephemeral(new, old, causes);
    }
    if subresource == "resize" {
        // All else was kept by its preparation; what is asked for must not change the quality of service.
        let class = crate::strategy::qos_class;
        if class(new) != class(old) {
            let why = "Pod QOS Class may not change as a result of resizing";
            causes.push(Cause::invalid("spec", &json!(class(new)), why));
        }
        return;
    }
    let list =
        |object: &Object, name: &str| -> Vec<Value> { items(object, name).cloned().collect() };
    for (name, why) in [
        ("containers", "pod updates may not add or remove containers"),
        ("initContainers", "pod updates may not add or remove init containers"),
    ] {
        let pointer = format!("/spec/{name}");
        if items(new, &pointer).count() != items(old, &pointer).count() {
            let path = format!("spec.{name}");
            return causes.push(Cause::forbidden(path, why));
        }
    }
    let seconds =
        |object: &Object, name: &str| at(object, &format!("/spec/{name}")).and_then(Value::as_i64);
    match (seconds(old, "activeDeadlineSeconds"), seconds(new, "activeDeadlineSeconds")) {
        (Some(before), Some(after)) if after > before => {
            let why = "must be less than or equal to previous value";
            causes.push(Cause::invalid("spec.activeDeadlineSeconds", &json!(after), why));
        }
        (Some(before), None) => {
            let why = "must not update from a positive integer to nil value";
            causes.push(Cause::invalid("spec.activeDeadlineSeconds", &json!(before), why));
        }
        _ => {}
    }
    let (before, after) = (list(old, "/spec/tolerations"), list(new, "/spec/tolerations"));
    let plain = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Value::Object(toleration) = &mut toleration {
            toleration.remove("tolerationSeconds");
        }
        toleration
    };
    if !before.iter().all(|old| after.iter().any(|new| plain(new) == plain(old))) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        causes.push(Cause::forbidden("spec.tolerations", why));
    }
    let (gates, old_gates) =
        (list(new, "/spec/schedulingGates"), list(old, "/spec/schedulingGates"));
    let added: Vec<_> = gates.iter().filter(|gate| !old_gates.contains(gate)).collect();
    if !added.is_empty() {
        let names: Vec<_> = added.iter().filter_map(|gate| gate["name"].as_str()).collect();
        let why = format!(
            "only deletion is allowed, but found new scheduling gate '{}'",
            names.join("', '")
        );
        causes.push(Cause::forbidden("spec.schedulingGates", &why));
    }
    // While it is held back, what decides where it goes may still be narrowed.
    let gated: &[&str] = if old_gates.is_empty() { &[] } else { &["nodeSelector", "affinity"] };
    let shape = |object: &Object| {
        let fields = [
            "activeDeadlineSeconds",
            "tolerations",
            "schedulingGates",
            "containers",
            "initContainers",
        ];
        let mut spec = without(object, "spec", &[&fields, gated].concat());
        for name in ["containers", "initContainers"] {
            let mut list = list(object, &format!("/spec/{name}"));
            for container in list.iter_mut().filter_map(Value::as_object_mut) {
                container.remove("image");
            }
            spec.insert(name.to_owned(), list.into());
        }
        spec
    };
    let (mut wanted, had) = (shape(new), shape(old));
    let grace = "terminationGracePeriodSeconds";
    if seconds(old, grace).is_some_and(|grace| grace < 0) && seconds(new, grace) == Some(1) {
        wanted.insert(grace.to_owned(), had.get(grace).cloned().unwrap_or_default());
    }
    if wanted != had {
        causes.push(Cause::forbidden("spec", POD_FIELDS));
    }
}

/// They are only added.
fn ephemeral(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    for old in items(old, "/spec/ephemeralContainers") {
        let mut list = items(new, "/spec/ephemeralContainers");
        match list.find(|new| new["name"] == old["name"]) {
            Some(new) if new != old => {
                let name = old["name"].as_str().unwrap_or_default();
                let why = format!("existing ephemeral containers {name:?} may not be changed\n");
                causes.push(Cause::forbidden("spec.ephemeralContainers", &why));
            }
            Some(_) => {}
            None => {
                let name = old["name"].as_str().unwrap_or_default();
                let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                causes.push(Cause::forbidden("spec.ephemeralContainers", &why));
            }
        }
    }
}

/// What says of itself that it does not change.
fn data(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if new.get("immutable") != Some(&Value::Bool(true)) {
        causes.push(Cause::forbidden("immutable", why));
    }
    for name in ["data", "binaryData"] {
        if new.get(name) != old.get(name) {
            causes.push(Cause::forbidden(name, why));
        }
    }
}

/// An address stays until the type needs none.
fn addresses(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    let external = |object: &Object| text(object, "/spec/type") == "ExternalName";
    if external(old) || external(new) {
        return;
    }
    let list =
        |object: &Object| -> Vec<Value> { items(object, "/spec/clusterIPs").cloned().collect() };
    let (before, after) = (list(old), list(new));
    if let Some(first) = before.first()
        && after.first() != Some(first)
    {
        let why = "may not change once set";
        causes.push(Cause::invalid("spec.clusterIPs[0]", &json!(after), why));
    }
    let class = |object: &Object| at(object, "/spec/loadBalancerClass").cloned();
    let balanced = |object: &Object| text(object, "/spec/type") == "LoadBalancer";
    if balanced(old) && balanced(new) && class(old) != class(new) {
        let value = class(new).unwrap_or_default();
        let why = "may not change once set";
        causes.push(Cause::invalid("spec.loadBalancerClass", &value, why));
    }
}

/// A claim may ask for more, once it is bound.
fn claim(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    let bound = text(old, "/status/phase") == "Bound";
    let shape = |object: &Object| {
        let fields = ["resources", "volumeAttributesClassName"];
        let mut spec = without(object, "spec", if bound { &fields } else { &[] });
        if bound {
            let mut resources = at(object, "/spec/resources").cloned().unwrap_or_default();
            if let Some(Value::Object(requests)) = resources.get_mut("requests") {
                requests.remove("storage");
            }
            spec.insert("resources".to_owned(), resources);
        }
        // The binder writes it, once.
        if text(old, "/spec/volumeName").is_empty() {
            spec.remove("volumeName");
        }
        spec
    };
    if shape(new) != shape(old) {
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        causes.push(Cause::forbidden("spec", why));
    }
    let (before, after) = (storage_amount(old), storage_amount(new));
    if bound && after < before {
        let why = "field can not be less than previous value";
        causes.push(Cause::forbidden("spec.resources.requests.storage", why));
    }
}

fn volume(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    const PLAIN: &[&str] = &[
        "capacity",
        "accessModes",
        "claimRef",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "mountOptions",
        "volumeMode",
        "nodeAffinity",
        "volumeAttributesClassName",
    ];
    if without(new, "spec", PLAIN) != without(old, "spec", PLAIN) {
        let why = "spec.persistentvolumesource is immutable after creation";
        causes.push(Cause::forbidden("spec.persistentvolumesource", why));
    }
    same(new, old, "spec.volumeMode", causes);
    if at(old, "/spec/nodeAffinity").is_some() {
        same(new, old, "spec.nodeAffinity", causes);
    }
}

fn stateful_set(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    const OPEN: &[&str] = &[
        "replicas",
        "template",
        "updateStrategy",
        "ordinals",
        "minReadySeconds",
        "persistentVolumeClaimRetentionPolicy",
        "revisionHistoryLimit",
    ];
    if without(new, "spec", OPEN) != without(old, "spec", OPEN) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
            'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are \
            forbidden";
        causes.push(Cause::forbidden("spec", why));
    }
}

fn job(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    // Held back and never started, where its pods go may still be changed.
    let waits = at(old, "/spec/suspend") == Some(&Value::Bool(true))
        && at(old, "/status/startTime").is_none();
    let shape = |job: &Object| {
        let mut template = at(job, "/spec/template").cloned().unwrap_or_default();
        if let (true, Value::Object(template)) = (waits, &mut template) {
            if let Some(Value::Object(spec)) = template.get_mut("spec") {
                for name in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
                    spec.remove(name);
                }
            }
            if let Some(Value::Object(metadata)) = template.get_mut("metadata") {
                metadata.remove("labels");
                metadata.remove("annotations");
            }
        }
        template
    };
    if shape(new) != shape(old) {
        let value = at(new, "/spec/template").cloned().unwrap_or_default();
        causes.push(Cause::invalid("spec.template", &value, "field is immutable"));
    }
    let number =
        |job: &Object, name: &str| at(job, &format!("/spec/{name}")).and_then(Value::as_i64);
    let elastic = text(old, "/spec/completionMode") == "Indexed"
        && number(new, "completions") == number(new, "parallelism");
    if !elastic {
        same(new, old, "spec.completions", causes);
    }
}
