//! What field selectors compare.

use std::borrow::Cow;

use serde_json::Value;

use crate::object::{Object, at, items, text};
use crate::resources::Resource;

/// The value a field selector compares with; empty where there is none. `path` is one of
/// [`Resource::selectable`], `metadata.name` or `metadata.namespace`.
#[must_use]
pub fn field<'a>(resource: &Resource, object: &'a Object, path: &str) -> Cow<'a, str> {
    match (resource.plural, path) {
        ("pods", "status.podIPs") => {
            let addresses: Vec<_> = items(object, "/status/podIPs")
                .filter_map(|address| address.get("ip")?.as_str())
                .collect();
            addresses.join(",").into()
        }
        ("pods", "spec.hostNetwork") | ("nodes", "spec.unschedulable") => {
            plain(object, path).filter(|value| !value.is_empty()).unwrap_or("false".into())
        }
        ("events", "source") => first(
            object,
            &[
                "/source/component",
                "/deprecatedSource/component",
                "/reportingComponent",
                "/reportingController",
            ],
        ),
        ("events", "reportingComponent" | "reportingController") => {
            first(object, &["/reportingComponent", "/reportingController"])
        }
        // Both groups show the same objects.
        ("events", _) => match path.split_once('.') {
            Some(("involvedObject" | "regarding", part)) => {
                first(object, &[&format!("/involvedObject/{part}"), &format!("/regarding/{part}")])
            }
            _ => plain(object, path).unwrap_or_default(),
        },
        ("replicasets" | "replicationcontrollers", "status.replicas")
        | ("jobs", "status.successful") => {
            let path = if resource.plural == "jobs" { "status.succeeded" } else { path };
            plain(object, path).unwrap_or("0".into())
        }
        _ => plain(object, path).unwrap_or_default(),
    }
}

/// The first of these texts that is not empty.
fn first<'a>(object: &'a Object, pointers: &[&str]) -> Cow<'a, str> {
    let mut texts = pointers.iter().map(|pointer| text(object, pointer));
    texts.find(|text| !text.is_empty()).unwrap_or_default().into()
}

/// The value at a path.
fn plain<'a>(object: &'a Object, path: &str) -> Option<Cow<'a, str>> {
    match at(object, &format!("/{}", path.replace('.', "/")))? {
        Value::String(text) => Some(text.into()),
        Value::Bool(value) => Some(if *value { "true" } else { "false" }.into()),
        Value::Number(number) => Some(number.to_string().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::find;

    #[test]
    fn fields_are_what_selectors_of_the_reference_compare() {
        let pod = json!({
            "metadata": {"name": "a", "namespace": "n"},
            "spec": {"nodeName": "w1", "hostNetwork": true},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        });
        let event = json!({
            "involvedObject": {"kind": "Pod", "name": "a"}, "source": {"component": "kubelet"},
            "reportingComponent": "", "reason": "Started",
        });
        let newer = json!({"regarding": {"kind": "Pod"}, "reportingController": "kubelet"});
        for (group, plural, object, path, expected) in [
            ("", "pods", &pod, "metadata.name", "a"),
            ("", "pods", &pod, "metadata.namespace", "n"),
            ("", "pods", &pod, "spec.nodeName", "w1"),
            ("", "pods", &pod, "spec.hostNetwork", "true"),
            ("", "pods", &json!({}), "spec.hostNetwork", "false"),
            ("", "pods", &json!({}), "status.nominatedNodeName", ""),
            ("", "pods", &pod, "status.podIPs", "10.0.0.1,fd00::1"),
            ("", "nodes", &json!({}), "spec.unschedulable", "false"),
            ("", "events", &event, "involvedObject.kind", "Pod"),
            ("", "events", &event, "involvedObject.uid", ""),
            ("", "events", &event, "source", "kubelet"),
            ("", "events", &newer, "source", "kubelet"),
            ("events.k8s.io", "events", &newer, "regarding.kind", "Pod"),
            ("events.k8s.io", "events", &event, "regarding.kind", "Pod"),
            ("events.k8s.io", "events", &newer, "reportingController", "kubelet"),
            ("apps", "replicasets", &json!({}), "status.replicas", "0"),
            ("apps", "replicasets", &json!({"status": {"replicas": 3}}), "status.replicas", "3"),
            ("batch", "jobs", &json!({"status": {"succeeded": 2}}), "status.successful", "2"),
            ("", "secrets", &json!({"type": "Opaque"}), "type", "Opaque"),
        ] {
            let resource = find(group, "v1", plural).expect("a resource");
            let object = object.as_object().expect("an object");
            assert_eq!(field(resource, object, path), expected, "{plural} {path}");
        }
    }
}
