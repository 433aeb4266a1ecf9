//! What a cluster has from its first start: namespaces, priority classes, roles and bindings, and where extension
//! servers learn whom to trust. [`objects`] lists them in the order they are written in; [`reconcile`] says what a
//! later start does about one that is there already.
//!
//! The roles are in `bootstrap.txt`. A line begins one:
//!
//! - `clusterrole NAME gathers=A to=B > SUBJECT…`: a cluster role. `gathers=admin` collects the rules of those that say
//!   `to=admin`. After `>` stands whom a cluster role binding of the same name names.
//! - `role NAMESPACE/NAME > BINDING SUBJECT…`: a role, and its binding in the same namespace.
//! - `controller NAME`: the cluster role `system:controller:NAME`, bound to a service account of that name.
//!
//! Subjects are `user:NAME`, `group:NAME` and `sa:NAME`, which is in `kube-system`. The indented lines are its rules:
//! verbs, API groups (`core`), resources and names, with commas; or verbs, `url`, and paths; `events` is what all need
//! who write events. The verbs `read`, `write` and `all` stand for several.

use serde_json::{Value, json};

use super::Rule;
use super::rbac::GROUP;
use super::rule::uncovered;
use crate::object::{Object, at, items, metadata, text};
use crate::packed::unpacked;
use crate::resources::{RESOURCES, Resource};

/// What a role has that must be left as it is: `"false"`.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// All that is there from the start, in the order in which it is written: what others need comes before them.
/// `client_ca` are the certificates, as PEM, that clients' certificates are signed by.
///
/// # Panics
/// When the table that is built in is not as this module tells, which a test rules out.
#[must_use]
pub fn objects(client_ca: &str) -> Vec<(&'static Resource, Object)> {
    let namespaces = ["default", "kube-system", "kube-public", "kube-node-lease"]
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    let class = |name: &str, value: u32, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": description,
        })
    };
    let classes = [
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ];
    let trust = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": client_ca},
    });
    let all = namespaces.into_iter().chain(classes).chain(roles()).chain([trust]);
    all.map(|object| {
        let Value::Object(object) = object else { unreachable!("each is written as one") };
        let is_it = |resource: &&Resource| {
            resource.kind == text(&object, "/kind")
                && resource.api_version() == text(&object, "/apiVersion")
        };
        (RESOURCES.iter().find(is_it).expect("all of them are served"), object)
    })
    .collect()
}

/// What a start does about one of [`objects`].
#[derive(Clone, Debug, PartialEq)]
pub enum Repair {
    /// It is as it should be, or its owner wants it as it is.
    Nothing,
    /// It is not there.
    Create(Object),
    /// Something is missing.
    Update(Object),
    /// A binding to another role, which cannot be changed: it must be deleted and created.
    Recreate(Object),
}

/// What to do so that `wanted`, one of [`objects`], is there. Rules, subjects, labels and annotations that are missing
/// are added again; what others added stays.
#[must_use]
pub fn reconcile(live: Option<&Object>, wanted: &Object) -> Repair {
    let Some(live) = live else { return Repair::Create(wanted.clone()) };
    let autoupdate = at(live, "/metadata/annotations").and_then(|all| all.get(AUTOUPDATE));
    if autoupdate.and_then(Value::as_str) == Some("false") {
        return Repair::Nothing;
    }
    let mut repaired = live.clone();
    match text(wanted, "/kind") {
        "Role" | "ClusterRole" => {
            add_metadata(&mut repaired, wanted);
            let (held, needed) = (Rule::read_all(live), Rule::read_all(wanted));
            let missing = uncovered(&held.iter().collect::<Vec<_>>(), &needed)
                .expect("the table's rules are few");
            add(&mut repaired, "rules", missing.iter().map(Rule::body));
            if at(wanted, "/aggregationRule").is_none() {
                repaired.remove("aggregationRule");
            } else {
                add_selectors(&mut repaired, wanted);
            }
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            if at(live, "/roleRef") != at(wanted, "/roleRef") {
                return Repair::Recreate(wanted.clone());
            }
            add_metadata(&mut repaired, wanted);
            let there = |subject: &&Value| items(live, "/subjects").all(|known| known != *subject);
            let missing = items(wanted, "/subjects").filter(there).cloned().collect::<Vec<_>>();
            add(&mut repaired, "subjects", missing.into_iter());
        }
        "ConfigMap" => {
            let data = repaired.entry("data").or_insert_with(|| json!({}));
            for (key, value) in at(wanted, "/data").and_then(Value::as_object).into_iter().flatten()
            {
                data[key] = value.clone();
            }
        }
        // Namespaces and priority classes are their owner's once they are there.
        _ => {}
    }
    if repaired == *live { Repair::Nothing } else { Repair::Update(repaired) }
}

/// Adds labels and annotations that are missing; those that are there keep their values.
fn add_metadata(object: &mut Object, wanted: &Object) {
    for field in ["labels", "annotations"] {
        let wanted = wanted.get("metadata").and_then(|metadata| metadata[field].as_object());
        for (key, value) in wanted.into_iter().flatten() {
            let known = metadata(object).entry(field).or_insert_with(|| json!({}));
            if known.get(key).is_none() {
                known[key] = value.clone();
            }
        }
    }
}

fn add(object: &mut Object, field: &str, missing: impl Iterator<Item = Value>) {
    let mut list = items(object, &format!("/{field}")).cloned().collect::<Vec<_>>();
    let before = list.len();
    list.extend(missing);
    if list.len() > before {
        object.insert(field.to_owned(), list.into());
    }
}

fn add_selectors(object: &mut Object, wanted: &Object) {
    const PATH: &str = "/aggregationRule/clusterRoleSelectors";
    let mut list = items(object, PATH).cloned().collect::<Vec<_>>();
    let before = list.len();
    for selector in items(wanted, PATH) {
        if !list.contains(selector) {
            list.push(selector.clone());
        }
    }
    if list.len() > before {
        object.insert("aggregationRule".to_owned(), json!({"clusterRoleSelectors": list}));
    }
}

/// The roles, then the bindings.
fn roles() -> Vec<Value> {
    let (mut roles, mut bindings): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for line in
        unpacked!("bootstrap.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(line) = line.strip_prefix('\t') {
            let role = roles.last_mut().expect("a rule follows its role");
            role["rules"].as_array_mut().expect("it begins as a list").push(rule(line));
            continue;
        }
        let (role, binding) = line.split_once('>').unwrap_or((line, ""));
        let mut words = role.split_whitespace();
        let (kind, name) = (words.next().expect("its kind"), words.next().expect("its name"));
        let mut subjects: Vec<_> = binding.split_whitespace().map(subject).collect();
        match kind {
            "clusterrole" => {
                roles.push(cluster_role(name, words));
                if line.contains('>') {
                    bindings.push(binding_of("ClusterRole", "", name, name, subjects));
                }
            }
            "controller" => {
                let full = format!("system:controller:{name}");
                roles.push(cluster_role(&full, words));
                let account = subject(&format!("sa:{name}"));
                bindings.push(binding_of("ClusterRole", "", &full, &full, vec![account]));
            }
            "role" => {
                let (namespace, name) = name.split_once('/').expect("its namespace");
                roles.push(base("Role", namespace, name));
                let binding = binding.split_whitespace().next().expect("its binding's name");
                bindings.push(binding_of("Role", namespace, binding, name, subjects.split_off(1)));
            }
            kind => unreachable!("no kind of role: {kind}"),
        }
    }
    roles.append(&mut bindings);
    roles
}

fn cluster_role<'a>(name: &str, options: impl Iterator<Item = &'a str>) -> Value {
    let mut role = base("ClusterRole", "", name);
    for option in options {
        let (option, to) = option.split_once('=').expect("an option has a value");
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{to}");
        match option {
            "gathers" => {
                let selectors = json!([{"matchLabels": {label: "true"}}]);
                role["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
            }
            "to" => role["metadata"]["labels"][label] = "true".into(),
            option => unreachable!("no option: {option}"),
        }
    }
    role
}

fn binding_of(
    role_kind: &str,
    namespace: &str,
    name: &str,
    role: &str,
    subjects: Vec<Value>,
) -> Value {
    let mut binding = base(&format!("{role_kind}Binding"), namespace, name);
    let fields = binding.as_object_mut().expect("it is an object");
    fields.remove("rules");
    fields
        .insert("roleRef".to_owned(), json!({"apiGroup": GROUP, "kind": role_kind, "name": role}));
    if !subjects.is_empty() {
        fields.insert("subjects".to_owned(), subjects.into());
    }
    binding
}

fn base(kind: &str, namespace: &str, name: &str) -> Value {
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {AUTOUPDATE: "true"},
        },
        "rules": [],
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    object
}

fn subject(text: &str) -> Value {
    match text.split_once(':') {
        Some(("user", name)) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        Some(("group", name)) => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        Some(("sa", name)) => {
            json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"})
        }
        // The name of a role's binding, which its reader takes away.
        _ => Value::Null,
    }
}

fn rule(line: &str) -> Value {
    if line == "events" {
        return rule("create,patch,update core,events.k8s.io events");
    }
    let mut words = line.split(' ');
    let mut list = || words.next().map(|word| word.split(',').collect::<Vec<_>>());
    let verbs = list().expect("the verbs").into_iter().flat_map(|verb| match verb {
        "read" => vec!["get", "list", "watch"],
        "write" => vec!["create", "delete", "deletecollection", "patch", "update"],
        "all" => {
            vec!["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        }
        verb => vec![verb],
    });
    let verbs: Vec<_> = verbs.collect();
    let groups = list().expect("the groups");
    let targets = list().expect("the resources");
    if groups == ["url"] {
        return json!({"verbs": verbs, "nonResourceURLs": targets});
    }
    let groups: Vec<_> =
        groups.into_iter().map(|group| if group == "core" { "" } else { group }).collect();
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": targets});
    if let Some(names) = list() {
        rule["resourceNames"] = names.into();
    }
    rule
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::authz::{Action, Authorizer as _, Decision, Rbac};
    use crate::object::User;
    use crate::request::Asked;

    fn find(kind: &str, name: &str) -> Object {
        let all = objects("PEM");
        let is_it = |object: &&Object| {
            text(object, "/kind") == kind && text(object, "/metadata/name") == name
        };
        all.iter().map(|(_, object)| object).find(is_it).expect(name).clone()
    }

    #[test]
    fn all_is_there_in_an_order_that_works_and_each_once() {
        let all = objects("PEM");
        let mut seen = BTreeSet::new();
        for (resource, object) in &all {
            let (namespace, name) =
                (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
            assert_eq!(resource.namespaced, !namespace.is_empty(), "{name}");
            assert!(
                namespace.is_empty() || seen.contains(&("namespaces", "", namespace)),
                "{namespace}"
            );
            if let Some(role) = at(object, "/roleRef/name").and_then(Value::as_str) {
                let (plural, place) = match text(object, "/roleRef/kind") {
                    "Role" => ("roles", namespace),
                    _ => ("clusterroles", ""),
                };
                assert!(seen.contains(&(plural, place, role)), "{name} names {role}");
            }
            for rule in items(object, "/rules") {
                let verbs = rule["verbs"].as_array().expect("verbs");
                let sorted = |field: &str| {
                    rule[field]
                        .as_array()
                        .is_none_or(|list| list.is_sorted_by_key(|one| one.as_str()))
                };
                assert!(
                    !verbs.is_empty() && sorted("verbs") && sorted("resources"),
                    "{name}: {rule}"
                );
            }
            assert!(seen.insert((resource.plural, namespace, name)), "{name} is there twice");
        }
        let count = |plural: &str| seen.iter().filter(|(known, ..)| *known == plural).count();
        assert_eq!((count("namespaces"), count("priorityclasses"), count("configmaps")), (4, 2, 1));
        assert_eq!((count("roles"), count("rolebindings")), (7, 7));
        assert_eq!((count("clusterroles"), count("clusterrolebindings")), (68, 49));
    }

    #[test]
    fn objects_are_as_clients_know_them() {
        assert_eq!(
            Value::from(find("ClusterRole", "cluster-admin")),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {
                    "name": "cluster-admin",
                    "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
                    "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
                },
                "rules": [
                    {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
                    {"verbs": ["*"], "nonResourceURLs": ["*"]},
                ],
            })
        );
        let edit = find("ClusterRole", "edit");
        assert_eq!(
            edit["aggregationRule"],
            json!({"clusterRoleSelectors": [{"matchLabels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}}]})
        );
        assert_eq!(
            edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"],
            "true"
        );
        let node = find("ClusterRoleBinding", "system:node");
        assert_eq!(node.get("subjects"), None);
        let lock = find("RoleBinding", "system::leader-locking-kube-scheduler");
        assert_eq!(
            lock["subjects"],
            json!([
                {"apiGroup": GROUP, "kind": "User", "name": "system:kube-scheduler"},
                {"kind": "ServiceAccount", "name": "kube-scheduler", "namespace": "kube-system"},
            ])
        );
        let job = find("ClusterRoleBinding", "system:controller:job-controller");
        assert_eq!(job["roleRef"]["name"], "system:controller:job-controller");
        let trust = find("ConfigMap", "extension-apiserver-authentication");
        assert_eq!(trust["data"], json!({"client-ca-file": "PEM"}));
    }

    #[test]
    fn everybody_may_do_their_work_and_no_more() {
        let rbac = Rbac::default();
        for (resource, object) in objects("") {
            let (namespace, name) =
                (text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
            rbac.observe(resource, namespace, name, Some(&object));
        }
        let may = |user: &str, groups: &[&str], verb: &str, path: &str| {
            let user = User {
                name: user.to_owned(),
                groups: groups.iter().map(|group| (*group).to_owned()).collect(),
                ..User::default()
            };
            let parts: Vec<_> = path.split('|').collect();
            let asked = (parts.len() > 1).then(|| Asked {
                group: parts[0],
                version: "v1",
                namespace: parts[1],
                plural: parts[2],
                name: parts.get(3).copied().unwrap_or_default(),
                subresource: parts.get(4).copied().unwrap_or_default(),
            });
            let action = Action { user: &user, verb, asked, path };
            matches!(rbac.decide(&action), Decision::Allow(_))
        };
        let anybody = ["system:unauthenticated"];
        let known = ["system:authenticated"];
        assert!(may("system:anonymous", &anybody, "get", "/version"));
        assert!(!may("system:anonymous", &anybody, "get", "/api"));
        assert!(may("ann", &known, "get", "/apis/apps/v1"));
        assert!(may("ann", &known, "create", "authorization.k8s.io||selfsubjectaccessreviews"));
        assert!(!may("ann", &known, "list", "|ns|pods"));
        assert!(may("system:kube-scheduler", &known, "create", "|ns|pods|x|binding"));
        assert!(may(
            "system:kube-scheduler",
            &known,
            "update",
            "coordination.k8s.io|kube-system|leases|kube-scheduler"
        ));
        assert!(!may("system:kube-scheduler", &known, "get", "|ns|secrets|x"));
        assert!(may("system:kube-controller-manager", &known, "watch", "x.io||anything"));
        let job = "system:serviceaccount:kube-system:job-controller";
        assert!(may(job, &known, "update", "batch|ns|jobs|x|status"));
        assert!(!may(job, &known, "get", "|ns|secrets|x"));
        assert!(may("p", &["system:monitoring"], "get", "/metrics"));
        assert!(!may("p", &known, "get", "/metrics"));
        assert!(
            !may("system:node:n", &["system:nodes"], "get", "|ns|secrets|x"),
            "the node authorizer's"
        );
    }

    #[test]
    fn what_is_missing_is_added_again_and_nothing_is_taken() {
        let wanted = find("ClusterRole", "system:node-bootstrapper");
        assert_eq!(reconcile(None, &wanted), Repair::Create(wanted.clone()));
        let mut live = wanted.clone();
        metadata(&mut live).insert("resourceVersion".to_owned(), json!("5"));
        live["metadata"]["labels"]["own"] = json!("x");
        live["metadata"]["labels"]["kubernetes.io/bootstrapping"] = json!("mine");
        assert_eq!(reconcile(Some(&live), &wanted), Repair::Nothing);
        let own = json!({"apiGroups": ["x.io"], "resources": ["y"], "verbs": ["get"]});
        let csr = |verbs: &[&str]| json!({"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": verbs});
        live["rules"] = json!([own, csr(&["get", "delete"])]);
        metadata(&mut live).remove("labels");
        let Repair::Update(repaired) = reconcile(Some(&live), &wanted) else {
            panic!("rules are missing")
        };
        assert_eq!(
            repaired["rules"],
            json!([own, csr(&["get", "delete"]), csr(&["create", "list", "watch"])])
        );
        assert_eq!(repaired["metadata"]["labels"], wanted["metadata"]["labels"]);
        assert_eq!(repaired["metadata"]["resourceVersion"], "5");
        assert_eq!(reconcile(Some(&repaired), &wanted), Repair::Nothing);
        live["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        assert_eq!(reconcile(Some(&live), &wanted), Repair::Nothing);
    }

    #[test]
    fn gathering_roles_and_bindings_are_repaired() {
        let wanted = find("ClusterRole", "view");
        let mut live = wanted.clone();
        live["rules"] = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
        assert_eq!(reconcile(Some(&live), &wanted), Repair::Nothing, "what it gathered stays");
        live["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"own": "x"}}]});
        let Repair::Update(repaired) = reconcile(Some(&live), &wanted) else {
            panic!("a selector is missing")
        };
        assert_eq!(items(&repaired, "/aggregationRule/clusterRoleSelectors").count(), 2);

        let wanted = find("ClusterRoleBinding", "system:public-info-viewer");
        let mut live = wanted.clone();
        live["subjects"] =
            json!([{"apiGroup": GROUP, "kind": "User", "name": "ann"}, wanted["subjects"][0]]);
        let Repair::Update(repaired) = reconcile(Some(&live), &wanted) else {
            panic!("a subject is missing")
        };
        assert_eq!(repaired["subjects"].as_array().map(Vec::len), Some(3));
        live["roleRef"]["name"] = json!("other");
        assert_eq!(reconcile(Some(&live), &wanted), Repair::Recreate(wanted));

        let wanted = find("ConfigMap", "extension-apiserver-authentication");
        let mut live = wanted.clone();
        live["data"] = json!({"client-ca-file": "old", "requestheader-client-ca-file": "own"});
        let Repair::Update(repaired) = reconcile(Some(&live), &wanted) else {
            panic!("the certificate is an old one")
        };
        assert_eq!(
            repaired["data"],
            json!({"client-ca-file": "PEM", "requestheader-client-ca-file": "own"})
        );
        let wanted = find("Namespace", "default");
        let mut live = wanted.clone();
        metadata(&mut live).insert("labels".to_owned(), json!({"a": "b"}));
        assert_eq!(reconcile(Some(&live), &wanted), Repair::Nothing);
    }
}
