//! Kinds that are served in two groups or versions and stored in one: how an object of the one looks as the other.
//!
//! - Events of `events.k8s.io/v1` are those of `v1` by other names.
//! - Autoscalers of `autoscaling/v1` are those of `v2` with their one metric in a field of its own; what `v1` cannot say
//!   is kept in annotations, as the reference does.

use serde_json::{Value, json};

use crate::object::{Object, metadata};
use crate::resources::Resource;

/// The names of an event's fields: in `events.k8s.io/v1`, in `v1`.
const EVENT: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// Annotations of an autoscaler in `v1` that hold what only `v2` has, as JSON.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

/// A stored object as a resource shows it, with its kind and version.
#[must_use]
pub fn present(resource: &'static Resource, mut object: Object) -> Object {
    match (resource.group, resource.version, resource.plural) {
        ("events.k8s.io", _, "events") => {
            for (new, old) in EVENT {
                rename(&mut object, old, new);
            }
        }
        ("autoscaling", "v1", _) => autoscaler_to_v1(&mut object),
        _ => {}
    }
    object.insert("kind".to_owned(), resource.kind.into());
    object.insert("apiVersion".to_owned(), resource.api_version().into());
    object
}

/// An object as a client gave it as its stored resource has it, without kind and version.
#[must_use]
pub fn store(resource: &'static Resource, mut object: Object) -> Object {
    object.remove("kind");
    object.remove("apiVersion");
    match (resource.group, resource.version, resource.plural) {
        ("events.k8s.io", _, "events") => {
            for (new, old) in EVENT {
                rename(&mut object, new, old);
            }
        }
        ("autoscaling", "v1", _) => autoscaler_from_v1(&mut object),
        _ => {}
    }
    object
}

/// The path of a field that can be selected by, as the stored resource names it.
#[must_use]
pub fn stored_path(resource: &Resource, path: &str) -> String {
    if resource.group == "events.k8s.io" {
        for (new, old) in EVENT {
            if let Some(rest) = path.strip_prefix(new) {
                return format!("{old}{rest}");
            }
        }
    }
    path.to_owned()
}

fn rename(object: &mut Object, from: &str, to: &str) {
    if let Some(value) = object.remove(from) {
        object.insert(to.to_owned(), value);
    }
}

fn autoscaler_to_v1(object: &mut Object) {
    let is_cpu = |metric: &Value| {
        metric["type"] == "Resource"
            && metric["resource"]["name"] == "cpu"
            && metric.pointer("/resource/target/averageUtilization").is_some()
    };
    let mut kept = Vec::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(Value::Array(mut metrics)) = spec.remove("metrics") {
            if let Some(at) = metrics.iter().position(is_cpu) {
                let cpu = metrics.remove(at);
                let target = &cpu["resource"]["target"]["averageUtilization"];
                spec.insert("targetCPUUtilizationPercentage".to_owned(), target.clone());
            }
            if !metrics.is_empty() {
                kept.push((METRICS, Value::Array(metrics)));
            }
        }
        kept.extend(spec.remove("behavior").map(|behavior| (BEHAVIOR, behavior)));
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        if let Some(Value::Array(mut metrics)) = status.remove("currentMetrics") {
            let current =
                |metric: &Value| metric.pointer("/resource/current/averageUtilization").cloned();
            let at = metrics.iter().position(|metric| {
                metric["resource"]["name"] == "cpu" && current(metric).is_some()
            });
            if let Some(at) = at
                && let Some(utilization) = current(&metrics.remove(at))
            {
                status.insert("currentCPUUtilizationPercentage".to_owned(), utilization);
            }
            if !metrics.is_empty() {
                kept.push((CURRENT, Value::Array(metrics)));
            }
        }
        kept.extend(status.remove("conditions").map(|conditions| (CONDITIONS, conditions)));
    }
    for (key, value) in kept {
        let annotations = metadata(object).entry("annotations").or_insert_with(|| json!({}));
        annotations[key] = value.to_string().into();
    }
}

fn autoscaler_from_v1(object: &mut Object) {
    let mut kept = Vec::new();
    if let Some(annotations) =
        metadata(object).get_mut("annotations").and_then(Value::as_object_mut)
    {
        for (key, place) in [
            (METRICS, ("spec", "metrics")),
            (BEHAVIOR, ("spec", "behavior")),
            (CURRENT, ("status", "currentMetrics")),
            (CONDITIONS, ("status", "conditions")),
        ] {
            // What cannot be read was never ours; it stays as it is.
            let text = annotations.get(key).and_then(Value::as_str);
            if let Some(value) = text.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
                annotations.remove(key);
                kept.push((place, value));
            }
        }
        if annotations.is_empty() {
            metadata(object).remove("annotations");
        }
    }
    for ((part, field), value) in kept {
        let part = object.entry(part).or_insert_with(|| json!({}));
        part[field] = value;
    }
    for (part, old, new, place) in [
        ("spec", "targetCPUUtilizationPercentage", "metrics", "target"),
        ("status", "currentCPUUtilizationPercentage", "currentMetrics", "current"),
    ] {
        let Some(part) = object.get_mut(part).and_then(Value::as_object_mut) else { continue };
        let Some(utilization) = part.remove(old) else { continue };
        let mut value = json!({"averageUtilization": utilization});
        if place == "target" {
            value["type"] = "Utilization".into();
        }
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", place: value}});
        match part.entry(new).or_insert_with(|| json!([])) {
            Value::Array(metrics) => metrics.insert(0, metric),
            other => *other = json!([metric]),
        }
    }
}
