//! `RuntimeClass`: what a pod's runtime costs beside its containers, and where it can run.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Stop, View, is, list_mut, object_mut, refused, served};
use crate::object::{Change, Object, Operation, at, items, text};
use crate::quantity::Quantity;

/// Writes the overhead and the places of its class into a new pod.
pub(super) fn mutate(view: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    let Some(class) = class(view, change)? else { return Ok(()) };
    if let Some(overhead) = at(&class, "/overhead/podFixed") {
        let own = at(change.object, "/spec/overhead");
        if own.is_some_and(|own| !empty(own) && amounts(own) != amounts(overhead)) {
            return Err(unlike(change));
        }
        object_mut(change.object, "spec").insert("overhead".to_owned(), overhead.clone());
    }
    let selector = at(&class, "/scheduling/nodeSelector").and_then(Value::as_object);
    for (key, value) in selector.into_iter().flatten() {
        let own = at(change.object, "/spec/nodeSelector").and_then(|own| own.get(key));
        if let Some(own) = own.filter(|own| *own != value) {
            let (value, own) = (plain(value), plain(own));
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
            );
            return Err(refused(change, &why).into());
        }
    }
    let spec = object_mut(change.object, "spec");
    if let Some(selector) = selector.filter(|selector| !selector.is_empty()) {
        object_mut(spec, "nodeSelector").extend(selector.clone());
    }
    for toleration in items(&class, "/scheduling/tolerations") {
        let own = list_mut(spec, "tolerations");
        if !own.contains(toleration) {
            own.push(toleration.clone());
        }
    }
    Ok(())
}

/// Refuses an overhead that is not its class's.
pub(super) fn validate(view: &View<'_>, change: &Change<'_>) -> Result<(), Stop> {
    if !is(change, "", "pods") || change.operation != Operation::Create {
        return Ok(());
    }
    let class = class(view, change)?;
    let overhead = class.as_ref().and_then(|class| at(class, "/overhead/podFixed"));
    let own = at(change.object, "/spec/overhead");
    match (overhead, own) {
        (Some(overhead), own) if own.map(amounts) != Some(amounts(overhead)) => Err(unlike(change)),
        (None, Some(_)) => {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            Err(refused(change, why).into())
        }
        _ => Ok(()),
    }
}

/// The class a new pod names.
fn class(view: &View<'_>, change: &Change<'_>) -> Result<Option<Object>, Stop> {
    let named = text(change.object, "/spec/runtimeClassName");
    if !is(change, "", "pods") || change.operation != Operation::Create || named.is_empty() {
        return Ok(None);
    }
    let found = view.find(served("node.k8s.io", "v1", "runtimeclasses"), "", named)?;
    found.map(Some).ok_or_else(|| {
        refused(change, &format!("pod rejected: RuntimeClass {named:?} not found")).into()
    })
}

fn unlike(change: &Change<'_>) -> Stop {
    let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
    refused(change, why).into()
}

fn empty(value: &Value) -> bool {
    value.as_object().is_none_or(Object::is_empty)
}

/// Amounts by resource, however they are written; none where one cannot be read.
fn amounts(list: &Value) -> Option<BTreeMap<&str, Quantity>> {
    list.as_object()?
        .iter()
        .map(|(name, value)| Some((name.as_str(), Quantity::of(value).ok()?)))
        .collect()
}

fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fake::{Fake, message};
    use crate::status::Status;

    fn create(spec: Value) -> Result<Value, Status> {
        let fake = Fake::ready();
        let class = |name: &str, more: Value| {
            let mut class = json!({"metadata": {"name": name}, "handler": "h"});
            class
                .as_object_mut()
                .expect("an object")
                .extend(more.as_object().expect("an object").clone());
            fake.put("node.k8s.io/v1", "runtimeclasses", class);
        };
        class("plain", json!({}));
        class(
            "guest",
            json!({
                "overhead": {"podFixed": {"memory": "64Mi", "cpu": "250m"}},
                "scheduling": {"nodeSelector": {"kvm": "yes"}, "tolerations": [{"key": "kvm", "operator": "Exists"}]},
            }),
        );
        fake.create("v1", "pods", "a", json!({"metadata": {"name": "x"}, "spec": spec}))
    }

    #[test]
    fn a_class_gives_overhead_and_places() {
        let pod = create(json!({"runtimeClassName": "guest", "nodeSelector": {"disk": "ssd"}}));
        let spec = &pod.expect("a pod")["spec"];
        assert_eq!(spec["overhead"], json!({"memory": "64Mi", "cpu": "250m"}));
        assert_eq!(spec["nodeSelector"], json!({"disk": "ssd", "kvm": "yes"}));
        let tolerations = spec["tolerations"].as_array().expect("a list");
        assert!(tolerations.contains(&json!({"key": "kvm", "operator": "Exists"})));
        let same =
            json!({"runtimeClassName": "guest", "overhead": {"memory": "65536Ki", "cpu": "0.25"}});
        create(same).expect("the same overhead, written otherwise");
        create(json!({"runtimeClassName": "plain"})).expect("a class that says nothing");
    }

    #[test]
    fn what_does_not_fit_the_class_is_refused() {
        for (spec, why) in [
            (json!({"runtimeClassName": "none"}), "pod rejected: RuntimeClass \"none\" not found"),
            (
                json!({"runtimeClassName": "guest", "overhead": {"cpu": "1"}}),
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ),
            (
                json!({"runtimeClassName": "plain", "overhead": {"cpu": "1"}}),
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ),
            (
                json!({"overhead": {"cpu": "1"}}),
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ),
            (
                json!({"runtimeClassName": "guest", "nodeSelector": {"kvm": "no"}}),
                "conflict: runtimeClass.scheduling.nodeSelector[kvm] = yes; pod.spec.nodeSelector[kvm] = no",
            ),
        ] {
            assert_eq!(message(create(spec)), format!("pods \"x\" is forbidden: {why}"));
        }
    }
}
