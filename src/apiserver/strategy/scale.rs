//! The number of pods of what makes pods, as a kind of its own (autoscaling/v1 `Scale`).

use serde_json::{Value, json};

use super::prepare::set;
use crate::object::{Object, at, text};
use crate::resources::Resource;
use crate::status::{Cause, Status};

/// The scale of an object.
#[must_use]
pub fn scale(resource: &Resource, object: &Object) -> Object {
    let mut scale = Object::new();
    scale.insert("kind".to_owned(), "Scale".into());
    scale.insert("apiVersion".to_owned(), "autoscaling/v1".into());
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = at(object, &format!("/metadata/{name}")) {
            set(&mut scale, &["metadata", name], value.clone());
        }
    }
    let number = |pointer| at(object, pointer).and_then(Value::as_i64).unwrap_or(0);
    set(&mut scale, &["spec", "replicas"], number("/spec/replicas").into());
    set(&mut scale, &["status", "replicas"], number("/status/replicas").into());
    let selector = selector(resource, object);
    if !selector.is_empty() {
        set(&mut scale, &["status", "selector"], selector.into());
    }
    scale
}

/// Scales an object as a scale says. Where the scale is of one object or revision, the object says so too, so that its
/// update is refused when it is another.
///
/// # Errors
/// It is no number of pods (422).
pub fn rescale(scale: &Object, object: &mut Object) -> Result<(), Status> {
    for name in ["uid", "resourceVersion"] {
        let asked = text(scale, &format!("/metadata/{name}"));
        if !asked.is_empty() {
            set(object, &["metadata", name], asked.into());
        }
    }
    let replicas = at(scale, "/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if replicas < 0 {
        let why = "must be greater than or equal to 0";
        let cause = Cause::invalid("spec.replicas", &json!(replicas), why);
        let name = text(object, "/metadata/name");
        return Err(invalid("Scale.autoscaling", "autoscaling", name, vec![cause]));
    }
    set(object, &["spec", "replicas"], replicas.into());
    Ok(())
}

/// What cannot be as it is, of a kind that is no resource of its own.
pub(super) fn invalid(kind: &str, group: &str, name: &str, causes: Vec<Cause>) -> Status {
    let pods = crate::resources::find("", "v1", "pods").expect("pods are served");
    let mut status = Status::invalid(pods, name, causes);
    if let Some(rest) = status.message.strip_prefix("Pod ") {
        status.message = format!("{kind} {rest}");
    }
    status.details.group = group.to_owned();
    status.details.kind = kind.split('.').next().unwrap_or_default().to_owned();
    status
}

/// Which pods it counts, as a query has it.
fn selector(resource: &Resource, object: &Object) -> String {
    let Some(selector) = at(object, "/spec/selector") else { return String::new() };
    let of_map = |map: Option<&Value>| -> Vec<(String, String)> {
        let labels = map.and_then(Value::as_object).into_iter().flatten();
        labels
            .map(|(key, value)| {
                (key.clone(), format!("{key}={}", value.as_str().unwrap_or_default()))
            })
            .collect()
    };
    let mut terms = if resource.plural == "replicationcontrollers" {
        of_map(Some(selector))
    } else {
        of_map(selector.get("matchLabels"))
    };
    for requirement in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = requirement["key"].as_str().unwrap_or_default();
        let mut values: Vec<_> = requirement["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match requirement["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        terms.push((key.to_owned(), term));
    }
    orlop_rt::sort_by(&mut terms, |one, other| one.0.cmp(&other.0));
    terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { unreachable!("it is an object") };
        object
    }

    #[test]
    fn a_scale_is_read_from_an_object_and_written_into_it() {
        let deployments = find("apps", "v1", "deployments").expect("deployments");
        let mut deployment = object(json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"b": "1", "a": "2"}, "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "d", "operator": "DoesNotExist"}]}},
            "status": {"replicas": 1},
        }));
        let mut scaled = scale(deployments, &deployment);
        assert_eq!(
            Value::from(scaled.clone()),
            json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "d", "namespace": "n", "uid": "u", "resourceVersion": "7"},
                "spec": {"replicas": 2}, "status": {"replicas": 1, "selector": "a=2,b=1,c in (x,y),!d"}})
        );
        scaled["spec"]["replicas"] = 5.into();
        rescale(&scaled, &mut deployment).expect("a sound scale");
        assert_eq!(deployment["spec"]["replicas"], 5);
        scaled["spec"]["replicas"] = (-1).into();
        let status = rescale(&scaled, &mut deployment).expect_err("fewer than none");
        assert_eq!(
            (status.code, status.message.as_str()),
            (
                422,
                "Scale.autoscaling \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
            )
        );
        scaled["metadata"]["resourceVersion"] = "6".into();
        scaled["spec"]["replicas"] = 1.into();
        rescale(&scaled, &mut deployment).expect("a sound scale");
        assert_eq!(deployment["metadata"]["resourceVersion"], "6");
        let controllers = find("", "v1", "replicationcontrollers").expect("they are served");
        let controller = object(json!({"metadata": {}, "spec": {"selector": {"a": "b"}}}));
        assert_eq!(scale(controllers, &controller)["status"]["selector"], "a=b");
    }
}
