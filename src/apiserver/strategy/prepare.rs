//! What a client may not set: status where it is a part of its own, everything else on that part, generations, and
//! what is told by who asks.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::defaults::fill;
use super::{pod, service};
use crate::object::{Object, User, at, items, metadata, text};
use crate::resources::Resource;

/// Kinds whose generation counts the changes of what is wanted, by group and plural.
const GENERATIONS: &[(&str, &[&str])] = &[
    ("", &["pods", "podtemplates", "replicationcontrollers"]),
    (
        "admissionregistration.k8s.io",
        &[
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
            "mutatingwebhookconfigurations",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
            "validatingwebhookconfigurations",
        ],
    ),
    ("apiextensions.k8s.io", &["customresourcedefinitions"]),
    ("apps", &["daemonsets", "deployments", "replicasets", "statefulsets"]),
    ("batch", &["cronjobs", "jobs"]),
    ("discovery.k8s.io", &["endpointslices"]),
    ("flowcontrol.apiserver.k8s.io", &["flowschemas", "prioritylevelconfigurations"]),
    ("networking.k8s.io", &["ingressclasses", "ingresses", "networkpolicies"]),
    ("policy", &["poddisruptionbudgets"]),
    ("resource.k8s.io", &["deviceclasses", "resourceslices"]),
    ("scheduling.k8s.io", &["priorityclasses"]),
];

/// Kinds of whose metadata nothing can be changed with their status.
const STATUS_ALONE: &[&str] = &[
    "apiservices",
    "customresourcedefinitions",
    "flowschemas",
    "prioritylevelconfigurations",
    "resourceclaims",
    "validatingadmissionpolicies",
    "volumeattachments",
];

/// A new object, after its defaults and after it got its name and uid.
pub fn prepare_create(resource: &Resource, object: &mut Object, user: &User) {
    let generation = has_generation(resource);
    let meta = metadata(object);
    for server_side in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"]
    {
        meta.remove(server_side);
    }
    if generation {
        meta.insert("generation".to_owned(), 1.into());
    }
    // A kubelet brings the status of its node with it.
    if has_status(resource) && resource.plural != "nodes" {
        object.insert("status".to_owned(), Value::Object(Map::new()));
        fill(resource, object, "status");
    }
    match (resource.group, resource.plural) {
        ("", "pods") => pod::prepare_create(object),
        ("", "namespaces") => {
            set(object, &["status", "phase"], "Active".into());
            if items(object, "/spec/finalizers").all(|name| name != "kubernetes") {
                let own: Vec<_> = items(object, "/spec/finalizers").cloned().collect();
                let own = own.into_iter().chain([Value::from("kubernetes")]).collect();
                set(object, &["spec", "finalizers"], own);
            }
        }
        ("", "persistentvolumes" | "persistentvolumeclaims") => {
            set(object, &["status", "phase"], "Pending".into());
        }
        ("", "services") => service::prepare(object, None),
        ("batch", "jobs") => select_by_uid(object),
        ("certificates.k8s.io", _) => {
            set(object, &["spec", "username"], user.name.as_str().into());
            if !user.uid.is_empty() {
                set(object, &["spec", "uid"], user.uid.as_str().into());
            }
            set(object, &["spec", "groups"], json!(user.groups));
            if !user.extra.is_empty() {
                set(object, &["spec", "extra"], json!(user.extra));
            }
        }
        _ => {}
    }
}

/// A changed object, after its defaults: what the endpoint does not change is as it was.
pub fn prepare_update(
    resource: &Resource,
    subresource: &str,
    new: &mut Object,
    old: &Object,
    now: OffsetDateTime,
) {
    keep_metadata(new, old);
    match subresource {
        "status" => prepare_status(resource, new, old, now),
        "approval" => {
            keep_all_but(new, old, &["metadata", "status"]);
            keep(new, old, &["status", "certificate"]);
            stamp_conditions(new, old, now);
        }
        "finalize" => {
            let finalizers = at(new, "/spec/finalizers").cloned();
            keep_all_but(new, old, &["metadata", "spec"]);
            match finalizers {
                Some(finalizers) => set(new, &["spec", "finalizers"], finalizers),
                None => remove(new, "spec", "finalizers"),
            }
        }
        "ephemeralcontainers" => pod::only_ephemeral_containers(new, old),
        "resize" => pod::only_resources(new, old),
        // What it becomes was decided where the binding was read.
        "binding" => {}
        _ => prepare_main(resource, new, old),
    }
    let counted = has_generation(resource) && !matches!(subresource, "status" | "binding");
    if counted && is_changed(resource, new, old) {
        let generation = at(old, "/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
        metadata(new).insert("generation".to_owned(), (generation + 1).into());
    }
}

/// Does it count its changes?
pub(super) fn has_generation(resource: &Resource) -> bool {
    let of_group = GENERATIONS.iter().find(|(group, _)| *group == resource.group);
    of_group.is_some_and(|(_, plurals)| plurals.contains(&resource.plural))
}

/// Is the status a part of its own?
pub(super) fn has_status(resource: &Resource) -> bool {
    resource.subresources.iter().any(|sub| sub.name == "status")
}

/// A time as objects have it.
pub(super) fn stamp(time: OffsetDateTime) -> String {
    let seconds = time.replace_nanosecond(0).unwrap_or(time).to_offset(time::UtcOffset::UTC);
    seconds.format(&Rfc3339).unwrap_or_default()
}

/// Sets a value inside, and makes the objects on the way.
pub(super) fn set(object: &mut Object, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => drop(object.insert((*last).to_owned(), value)),
        [first, rest @ ..] => {
            let inside = object.entry(*first).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inside) = inside {
                set(inside, rest, value);
            }
        }
    }
}

/// Removes a field of a field.
pub(super) fn remove(object: &mut Object, outer: &str, inner: &str) {
    if let Some(Value::Object(outer)) = object.get_mut(outer) {
        outer.remove(inner);
    }
}

/// Makes a value inside what it was.
pub(super) fn keep(new: &mut Object, old: &Object, path: &[&str]) {
    let pointer = path.iter().fold(String::new(), |all, name| format!("{all}/{name}"));
    match at(old, &pointer).cloned() {
        Some(value) => set(new, path, value),
        None => match path {
            [name] => drop(new.remove(*name)),
            [outer, inner] => remove(new, outer, inner),
            _ => {}
        },
    }
}

/// Makes everything what it was but these, and what says what it is.
fn keep_all_but(new: &mut Object, old: &Object, names: &[&str]) {
    let ours = |name: &str| names.contains(&name) || matches!(name, "kind" | "apiVersion");
    new.retain(|name, _| ours(name));
    for (name, value) in old.iter().filter(|(name, _)| !ours(name)) {
        new.insert(name.clone(), value.clone());
    }
}

/// What nobody changes by writing; a uid that is not given is its own.
fn keep_metadata(new: &mut Object, old: &Object) {
    for name in ["creationTimestamp", "generation"] {
        keep(new, old, &["metadata", name]);
    }
    remove(new, "metadata", "selfLink");
    if text(new, "/metadata/uid").is_empty() {
        keep(new, old, &["metadata", "uid"]);
    }
    if at(old, "/metadata/deletionTimestamp").is_some() {
        keep(new, old, &["metadata", "deletionTimestamp"]);
        if at(new, "/metadata/deletionGracePeriodSeconds").is_none() {
            keep(new, old, &["metadata", "deletionGracePeriodSeconds"]);
        }
    }
}

fn prepare_main(resource: &Resource, new: &mut Object, old: &Object) {
    if has_status(resource) {
        keep(new, old, &["status"]);
    }
    match (resource.group, resource.plural) {
        ("", "namespaces") => keep(new, old, &["spec", "finalizers"]),
        ("", "services") => service::prepare(new, Some(old)),
        ("certificates.k8s.io", _) => keep(new, old, &["spec"]),
        _ => {}
    }
}

fn prepare_status(resource: &Resource, new: &mut Object, old: &Object, now: OffsetDateTime) {
    keep_all_but(new, old, &["metadata", "status"]);
    if STATUS_ALONE.contains(&resource.plural) {
        for name in ["labels", "annotations", "finalizers", "ownerReferences", "deletionTimestamp"]
        {
            keep(new, old, &["metadata", name]);
        }
    }
    match (resource.group, resource.plural) {
        ("apps", "deployments") => keep(new, old, &["metadata", "labels"]),
        ("", "pods") => {
            keep(new, old, &["metadata", "ownerReferences"]);
            if text(new, "/status/qosClass").is_empty() {
                keep(new, old, &["status", "qosClass"]);
            }
        }
        ("certificates.k8s.io", _) => {
            keep_decisions(new, old);
            stamp_conditions(new, old, now);
        }
        _ => {}
    }
}

/// Approval is not decided by who writes the status.
fn keep_decisions(new: &mut Object, old: &Object) {
    let decision =
        |condition: &&Value| matches!(condition["type"].as_str(), Some("Approved" | "Denied"));
    let decided = items(old, "/status/conditions").filter(decision).cloned();
    let others = items(new, "/status/conditions").filter(|condition| !decision(condition)).cloned();
    let conditions: Vec<Value> = decided.chain(others).collect();
    if conditions.is_empty() {
        remove(new, "status", "conditions");
    } else {
        set(new, &["status", "conditions"], conditions.into());
    }
}

/// Conditions of a request get the times they do not have.
fn stamp_conditions(new: &mut Object, old: &Object, now: OffsetDateTime) {
    let old: Vec<Value> = items(old, "/status/conditions").cloned().collect();
    let Some(Value::Array(conditions)) =
        new.get_mut("status").and_then(|status| status.get_mut("conditions"))
    else {
        return;
    };
    for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
        let given = |condition: &Object, name| {
            condition.get(name).is_some_and(|time: &Value| !time.is_null())
        };
        if !given(condition, "lastUpdateTime") {
            condition.insert("lastUpdateTime".to_owned(), stamp(now).into());
        }
        if !given(condition, "lastTransitionTime") {
            let before = old.iter().find(|old| {
                Some(&old["type"]) == condition.get("type")
                    && Some(&old["status"]) == condition.get("status")
            });
            let time = before.map(|before| before["lastTransitionTime"].clone());
            let time = time.filter(Value::is_string).unwrap_or_else(|| stamp(now).into());
            condition.insert("lastTransitionTime".to_owned(), time);
        }
    }
}

/// Did anything change that is wanted?
fn is_changed(resource: &Resource, new: &Object, old: &Object) -> bool {
    let wanted = |name: &str| !matches!(name, "metadata" | "status" | "kind" | "apiVersion");
    let differs = |a: &Object, b: &Object| {
        a.iter().any(|(name, value)| wanted(name) && b.get(name) != Some(value))
    };
    let annotated = resource.plural == "deployments"
        && at(new, "/metadata/annotations") != at(old, "/metadata/annotations");
    annotated || differs(new, old) || differs(old, new)
}

/// A job selects the pods it made by its own uid, unless it is told otherwise.
fn select_by_uid(job: &mut Object) {
    if at(job, "/spec/manualSelector") == Some(&Value::Bool(true)) {
        return;
    }
    let uid = text(job, "/metadata/uid").to_owned();
    let name = text(job, "/metadata/name").to_owned();
    for (label, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        // One that is given and wrong is refused later.
        let path = ["spec", "template", "metadata", "labels"];
        let given = at(job, "/spec/template/metadata/labels").and_then(|labels| labels.get(label));
        if given.is_none() {
            set(job, &[path.as_slice(), &[label]].concat(), value.as_str().into());
        }
    }
    let own = "batch.kubernetes.io/controller-uid";
    set(job, &["spec", "selector", "matchLabels", own], uid.into());
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::resources::find;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05.6 UTC);

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { unreachable!("it is an object") };
        object
    }

    fn created(group: &str, plural: &str, value: Value) -> Value {
        let resource = find(group, "v1", plural).expect("a resource");
        let mut object = object(value);
        let user = User { name: "u".to_owned(), groups: vec!["g".to_owned()], ..User::default() };
        prepare_create(resource, &mut object, &user);
        object.into()
    }

    fn updated(group: &str, plural: &str, sub: &str, new: Value, old: Value) -> Value {
        let resource = find(group, "v1", plural).expect("a resource");
        let mut new = object(new);
        prepare_update(resource, sub, &mut new, &object(old), NOW);
        new.into()
    }

    #[test]
    fn new_objects_have_no_status_of_their_clients() {
        assert_eq!(
            created(
                "apps",
                "deployments",
                json!({"metadata": {"generation": 7}, "status": {"replicas": 3}})
            ),
            json!({"metadata": {"generation": 1}, "status": {}})
        );
        assert_eq!(
            created("", "nodes", json!({"status": {"capacity": {}}})),
            json!({"metadata": {}, "status": {"capacity": {}}})
        );
        assert_eq!(
            created(
                "",
                "configmaps",
                json!({"metadata": {"generation": 7, "deletionTimestamp": "x"}, "data": {}})
            ),
            json!({"metadata": {}, "data": {}})
        );
        assert_eq!(
            created("", "namespaces", json!({})),
            json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
        let pod = created(
            "",
            "pods",
            json!({"spec": {"schedulingGates": [{"name": "g"}]}, "status": {"phase": "Running"}}),
        );
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(pod["status"]["qosClass"], "BestEffort");
        assert_eq!(pod["status"]["conditions"][0]["reason"], "SchedulingGated");
        let request = created(
            "certificates.k8s.io",
            "certificatesigningrequests",
            json!({"spec": {"username": "root"}}),
        );
        assert_eq!(request["spec"], json!({"username": "u", "groups": ["g"]}));
    }

    #[test]
    fn a_job_selects_by_its_uid() {
        let job = created("batch", "jobs", json!({"metadata": {"name": "j", "uid": "1-2"}}));
        let uid = "batch.kubernetes.io/controller-uid";
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {uid: "1-2"}}));
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"],
            json!({uid: "1-2", "batch.kubernetes.io/job-name": "j", "controller-uid": "1-2", "job-name": "j"})
        );
        let own = json!({"manualSelector": true, "selector": {"matchLabels": {"a": "b"}}});
        assert_eq!(created("batch", "jobs", json!({"spec": own}))["spec"], own);
    }

    #[test]
    fn each_endpoint_changes_its_part() {
        let old = || {
            json!({"metadata": {"name": "a", "uid": "u", "generation": 3, "creationTimestamp": "t", "labels": {"a": "b"}},
                "spec": {"replicas": 1}, "status": {"replicas": 1}})
        };
        let new = || {
            json!({"metadata": {"name": "a", "labels": {"a": "c"}, "generation": 9}, "spec": {"replicas": 2},
                "status": {"replicas": 2}})
        };
        let main = updated("apps", "replicasets", "", new(), old());
        assert_eq!(
            main,
            json!({"metadata": {"name": "a", "uid": "u", "generation": 4, "creationTimestamp": "t", "labels": {"a": "c"}},
                "spec": {"replicas": 2}, "status": {"replicas": 1}})
        );
        let status = updated("apps", "replicasets", "status", new(), old());
        assert_eq!(
            status,
            json!({"metadata": {"name": "a", "uid": "u", "generation": 3, "creationTimestamp": "t", "labels": {"a": "c"}},
                "spec": {"replicas": 1}, "status": {"replicas": 2}})
        );
        let deployment = updated("apps", "deployments", "status", new(), old());
        assert_eq!(deployment["metadata"]["labels"], json!({"a": "b"}));
        let attachment = updated("storage.k8s.io", "volumeattachments", "status", new(), old());
        assert_eq!(attachment["metadata"]["labels"], json!({"a": "b"}));
        let annotated = |annotation: &str| json!({"metadata": {"generation": 1, "annotations": {"a": annotation}}});
        let deployment = updated("apps", "deployments", "", annotated("x"), annotated("y"));
        assert_eq!(deployment["metadata"]["generation"], 2);
        let set = updated("apps", "replicasets", "", annotated("x"), annotated("y"));
        assert_eq!(set["metadata"]["generation"], 1);
    }

    #[test]
    fn namespaces_lose_finalizers_at_their_own_endpoint_only() {
        let old = || json!({"metadata": {"name": "a", "deletionTimestamp": "t"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}});
        let new = || json!({"metadata": {"name": "a"}, "spec": {}, "status": {"phase": "Active"}});
        assert_eq!(updated("", "namespaces", "", new(), old()), old());
        let finalized = updated("", "namespaces", "finalize", new(), old());
        assert_eq!(finalized["spec"], json!({}));
        assert_eq!(finalized["status"], json!({"phase": "Terminating"}));
        assert_eq!(finalized["metadata"]["deletionTimestamp"], "t");
    }

    #[test]
    fn requests_are_approved_at_their_own_endpoint_only() {
        let approved = json!({"type": "Approved", "status": "True"});
        let old =
            || json!({"metadata": {}, "spec": {"request": "a"}, "status": {"certificate": "c"}});
        let new = || json!({"metadata": {}, "spec": {"request": "b"}, "status": {"conditions": [approved], "certificate": "d"}});
        let decided =
            updated("certificates.k8s.io", "certificatesigningrequests", "approval", new(), old());
        let stamp = "2026-01-02T03:04:05Z";
        assert_eq!(
            decided,
            json!({"metadata": {}, "spec": {"request": "a"}, "status": {"certificate": "c", "conditions": [
                {"type": "Approved", "status": "True", "lastUpdateTime": stamp, "lastTransitionTime": stamp}]}})
        );
        let signed =
            updated("certificates.k8s.io", "certificatesigningrequests", "status", new(), old());
        assert_eq!(signed["status"], json!({"certificate": "d"}));
    }

    #[test]
    fn an_update_of_a_service_need_not_say_again_what_was_allocated() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"],
            "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}});
        let port = json!({"port": 80, "protocol": "TCP"});
        let same = updated(
            "",
            "services",
            "",
            json!({"spec": {"type": "NodePort", "ports": [port]}}),
            old.clone(),
        );
        assert_eq!(same["spec"]["clusterIPs"], json!(["10.0.0.9"]));
        assert_eq!(same["spec"]["ports"][0]["nodePort"], 30001);
        let mut inner = old["spec"].clone();
        inner["type"] = "ClusterIP".into();
        let inner = updated("", "services", "", json!({"spec": inner}), old.clone());
        assert_eq!(
            inner["spec"],
            json!({"type": "ClusterIP", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"], "ports": [port]})
        );
        let mut outer = old["spec"].clone();
        outer["type"] = "ExternalName".into();
        outer["externalName"] = "a.b".into();
        let outer = updated("", "services", "", json!({"spec": outer}), old);
        assert_eq!(
            outer["spec"],
            json!({"type": "ExternalName", "externalName": "a.b", "ports": [port]})
        );
    }
}
