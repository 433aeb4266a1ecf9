//! Pods: what is theirs alone.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::prepare::{keep, set};
use crate::object::{Object, at, items};
use crate::quantity::Quantity;

/// A new pod waits, of the quality of service its resources say.
pub(super) fn prepare_create(pod: &mut Object) {
    set(pod, &["status", "phase"], "Pending".into());
    let class = qos_class(pod);
    set(pod, &["status", "qosClass"], class.into());
    if items(pod, "/spec/schedulingGates").next().is_some() {
        let condition = json!([{
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
        set(pod, &["status", "conditions"], condition);
    }
}

/// `Guaranteed`: all of CPU and memory is limited and asked for alike; `BestEffort`: none of it is asked for or
/// limited; `Burstable`: the rest.
#[must_use]
pub fn qos_class(pod: &Object) -> &'static str {
    let pod_level = at(pod, "/spec/resources");
    let of_pod = pod_level.filter(|resources| {
        counted(&resources["requests"]).count() + counted(&resources["limits"]).count() > 0
    });
    let all: Vec<&Value> = match of_pod {
        Some(resources) => vec![resources],
        None => items(pod, "/spec/containers")
            .chain(items(pod, "/spec/initContainers"))
            .map(|container| &container["resources"])
            .collect(),
    };
    let mut requests = BTreeMap::new();
    let mut limits = BTreeMap::new();
    let mut guaranteed = true;
    for resources in all {
        let mut limited = 0;
        for (name, amount) in counted(&resources["requests"]) {
            add(&mut requests, name, amount);
        }
        for (name, amount) in counted(&resources["limits"]) {
            limited += 1;
            add(&mut limits, name, amount);
        }
        guaranteed &= limited == 2;
    }
    match (requests.is_empty() && limits.is_empty(), guaranteed && requests == limits) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        (false, false) => "Burstable",
    }
}

/// What counts: CPU and memory, if there is any.
fn counted(resources: &Value) -> impl Iterator<Item = (&str, Quantity)> {
    ["cpu", "memory"].into_iter().filter_map(|name| {
        let amount = Quantity::of(resources.get(name)?).ok()?;
        (amount > Quantity::ZERO).then_some((name, amount))
    })
}

fn add<'a>(sums: &mut BTreeMap<&'a str, Quantity>, name: &'a str, amount: Quantity) {
    let sum = sums.entry(name).or_default();
    *sum = sum.plus(amount);
}

/// All as it was but the ephemeral containers.
pub(super) fn only_ephemeral_containers(new: &mut Object, old: &Object) {
    let containers = at(new, "/spec/ephemeralContainers").cloned();
    for name in ["spec", "status"] {
        keep(new, old, &[name]);
    }
    if let Some(containers) = containers {
        set(new, &["spec", "ephemeralContainers"], containers);
    }
}

/// All as it was but the resources of containers, and how they are changed.
pub(super) fn only_resources(new: &mut Object, old: &Object) {
    let asked = new.get("spec").cloned().unwrap_or_default();
    for name in ["spec", "status"] {
        keep(new, old, &[name]);
    }
    for list in ["containers", "initContainers"] {
        let Some(Value::Array(containers)) =
            new.get_mut("spec").and_then(|spec| spec.get_mut(list))
        else {
            continue;
        };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let wanted = asked[list].as_array().into_iter().flatten();
            let mut wanted = wanted.filter(|one| Some(&one["name"]) == container.get("name"));
            let Some(wanted) = wanted.next() else { continue };
            for field in ["resources", "resizePolicy"] {
                match wanted.get(field) {
                    Some(value) => drop(container.insert(field.to_owned(), value.clone())),
                    None => drop(container.remove(field)),
                }
            }
        }
    }
}
