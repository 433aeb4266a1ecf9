//! Where a pod runs: `pods/binding`, and the older `bindings`. It is told once.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::prepare::{set, stamp};
use super::scale::invalid;
use crate::object::{Object, at, items, text};
use crate::status::{Cause, Status};

/// Makes a pod one of the node a binding names.
///
/// # Errors
/// The binding names no node (422); the pod has one, is held back, goes away, or is another (409).
pub fn bind(binding: &Object, pod: &mut Object, now: OffsetDateTime) -> Result<(), Status> {
    let name = text(binding, "/metadata/name").to_owned();
    let kind = text(binding, "/target/kind");
    let mut causes = Vec::new();
    if !matches!(kind, "" | "Node") {
        let known = ["Node", "<empty>"];
        causes.push(Cause::not_supported("target.kind", &json!(kind), &known));
    }
    let node = text(binding, "/target/name");
    if node.is_empty() {
        causes.push(Cause::required("target.name", ""));
    }
    if !causes.is_empty() {
        return Err(invalid("Binding", "", &name, causes));
    }
    let own = text(pod, "/metadata/name").to_owned();
    for (field, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
        let pointer = format!("/metadata/{field}");
        let (asked, is) = (text(binding, &pointer), text(pod, &pointer));
        if !asked.is_empty() && asked != is {
            let why = format!(
                "Precondition failed: {what} in precondition: {asked}, {what} in object meta: {is}"
            );
            return Err(conflict(&own, &why));
        }
    }
    if at(pod, "/metadata/deletionTimestamp").is_some() {
        return Err(conflict(
            &own,
            &format!("pod {own} is being deleted, cannot be assigned to a host"),
        ));
    }
    let before = text(pod, "/spec/nodeName");
    if !before.is_empty() {
        return Err(conflict(&own, &format!("pod {own} is already assigned to node {before:?}")));
    }
    if items(pod, "/spec/schedulingGates").next().is_some() {
        return Err(conflict(&own, &format!("pod {own} has non-empty .spec.schedulingGates")));
    }
    set(pod, &["spec", "nodeName"], node.into());
    for list in ["annotations", "labels"] {
        let given = at(binding, &format!("/metadata/{list}")).and_then(Value::as_object);
        for (key, value) in given.into_iter().flatten() {
            set(pod, &["metadata", list, key], value.clone());
        }
    }
    scheduled(pod, now);
    Ok(())
}

/// The condition that says so.
fn scheduled(pod: &mut Object, now: OffsetDateTime) {
    let condition =
        json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(now)});
    let mut conditions: Vec<Value> = items(pod, "/status/conditions").cloned().collect();
    match conditions.iter_mut().find(|condition| condition["type"] == "PodScheduled") {
        Some(known) if known["status"] == "True" => {}
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
    set(pod, &["status", "conditions"], conditions.into());
}

fn conflict(name: &str, why: &str) -> Status {
    let pods = crate::resources::find("", "v1", "pods").expect("pods are served");
    let mut status = Status::conflict(pods, name, why);
    status.message = format!("Operation cannot be fulfilled on pods/binding {name:?}: {why}");
    status.details.kind = "pods/binding".to_owned();
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { unreachable!("it is an object") };
        object
    }

    #[test]
    fn a_pod_is_bound_once() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let binding = |target: Value| {
            object(json!({"metadata": {"name": "p", "labels": {"zone": "a"}}, "target": target}))
        };
        let node = || json!({"kind": "Node", "name": "n"});
        let mut pod = object(json!({"metadata": {"name": "p", "labels": {"x": "y"}}, "spec": {},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}}));
        bind(&binding(node()), &mut pod, now).expect("it is free");
        assert_eq!(
            Value::from(pod.clone()),
            json!({"metadata": {"name": "p", "labels": {"x": "y", "zone": "a"}}, "spec": {"nodeName": "n"},
                "status": {"conditions": [
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}]}})
        );
        let refused = |binding: &Object, pod: Value| {
            let status = bind(binding, &mut object(pod), now).expect_err("it is refused");
            (status.code, status.message)
        };
        assert_eq!(
            refused(&binding(node()), pod.into()),
            (409, "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\"".to_owned())
        );
        assert_eq!(
            refused(&binding(node()), json!({"metadata": {"name": "p", "deletionTimestamp": "t"}})),
            (
                409,
                "Operation cannot be fulfilled on pods/binding \"p\": pod p is being deleted, cannot be assigned to a host"
                    .to_owned()
            )
        );
        assert_eq!(
            refused(&binding(json!({"kind": "Rack"})), json!({"metadata": {"name": "p"}})),
            (
                422,
                "Binding \"p\" is invalid: [target.kind: Unsupported value: \"Rack\": supported values: \"Node\", \
                 \"<empty>\", target.name: Required value]"
                    .to_owned()
            )
        );
    }
}
