//! What a pod asks for and uses at most, of each resource (KEP-753, KEP-2837): its containers together, or one of those
//! that run before them if that is more, and what its runtime costs.

use std::collections::BTreeMap;

use serde_json::Value;

use super::word;
use crate::object::{Object, at, items, text};
use crate::quantity::Quantity;

/// Amounts by the name of their resource.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// The amounts of a list; those that cannot be read, which validation rules out, are left out.
pub(crate) fn amounts(list: Option<&Value>) -> Amounts {
    let list = list.and_then(Value::as_object).into_iter().flatten();
    list.filter_map(|(name, value)| Some((name.clone(), Quantity::of(value).ok()?))).collect()
}

/// What it asks for, without overhead.
pub(crate) fn requests(pod: &Object) -> Amounts {
    sum(pod, "requests")
}

/// What it uses at most, without overhead.
pub(crate) fn limits(pod: &Object) -> Amounts {
    sum(pod, "limits")
}

/// What its runtime costs beside its containers.
pub(crate) fn overhead(pod: &Object) -> Amounts {
    amounts(at(pod, "/spec/overhead"))
}

/// Adds each of `more`.
pub(crate) fn add(all: &mut Amounts, more: &Amounts) {
    for (resource, amount) in more {
        let sum = all.get(resource).copied().unwrap_or_default().plus(*amount);
        all.insert(resource.clone(), sum);
    }
}

/// How it is treated when its node runs short (the field is set by the server, but also before it is).
pub(crate) fn is_best_effort(pod: &Object) -> bool {
    let class = text(pod, "/status/qosClass");
    if !class.is_empty() {
        return class == "BestEffort";
    }
    let counts = |list: Option<&Value>| {
        amounts(list)
            .iter()
            .any(|(name, amount)| matches!(name.as_str(), "cpu" | "memory") && !amount.is_zero())
    };
    let whole = at(pod, "/spec/resources");
    let containers = ["/spec/containers", "/spec/initContainers"].into_iter();
    let containers = containers.flat_map(|kind| items(pod, kind));
    let parts = containers.map(|container| container.get("resources"));
    !parts
        .chain([whole])
        .flatten()
        .any(|resources| counts(resources.get("requests")) || counts(resources.get("limits")))
}

fn sum(pod: &Object, field: &str) -> Amounts {
    let of = |container: &Value| amounts(container.get("resources").and_then(|all| all.get(field)));
    let mut all = Amounts::new();
    for container in items(pod, "/spec/containers") {
        add(&mut all, &of(container));
    }
    // Those that run on beside the containers count with them, and with every later one that runs first.
    let (mut beside, mut most) = (Amounts::new(), Amounts::new());
    for container in items(pod, "/spec/initContainers") {
        let mut at_once = of(container);
        if word(container, "restartPolicy") == "Always" {
            add(&mut all, &at_once);
            add(&mut beside, &at_once);
            at_once = beside.clone();
        } else {
            add(&mut at_once, &beside);
        }
        raise(&mut most, &at_once);
    }
    raise(&mut all, &most);
    // The pod's own, where it has any, stand for all its containers together.
    let own = at(pod, "/spec/resources").and_then(|resources| resources.get(field));
    all.extend(amounts(own));
    all
}

fn raise(all: &mut Amounts, least: &Amounts) {
    for (resource, amount) in least {
        let known = all.entry(resource.clone()).or_insert(*amount);
        *known = (*known).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(spec: Value) -> Vec<(String, String)> {
        let pod = json!({"spec": spec});
        let asked = requests(pod.as_object().expect("an object"));
        asked.into_iter().map(|(name, amount)| (name, amount.to_string())).collect()
    }

    fn container(amount: &str) -> Value {
        json!({"resources": {"requests": {"cpu": amount}}})
    }

    fn cpu(amount: &str) -> Vec<(String, String)> {
        vec![("cpu".to_owned(), amount.to_owned())]
    }

    #[test]
    fn containers_add_up_unless_one_before_them_takes_more() {
        assert_eq!(
            asked(json!({"containers": [container("1"), container("500m"), {}]})),
            cpu("1500m")
        );
        let before = json!([container("3"), container("2")]);
        assert_eq!(
            asked(json!({"containers": [container("1")], "initContainers": before})),
            cpu("3")
        );
        let mut beside = container("1");
        beside["restartPolicy"] = json!("Always");
        let before = json!([container("1"), beside, container("3")]);
        assert_eq!(
            asked(json!({"containers": [container("2")], "initContainers": before})),
            cpu("4")
        );
        let before = json!([beside]);
        assert_eq!(
            asked(json!({"containers": [container("2")], "initContainers": before})),
            cpu("3")
        );
    }

    #[test]
    fn what_the_pod_asks_for_as_a_whole_stands_for_its_containers() {
        let whole = json!({"requests": {"cpu": "5"}});
        assert_eq!(asked(json!({"containers": [container("1")], "resources": whole})), cpu("5"));
    }

    #[test]
    fn a_pod_that_asks_for_nothing_is_best_effort() {
        let is = |pod: Value| is_best_effort(pod.as_object().expect("an object"));
        assert!(is(json!({"spec": {"containers": [{"resources": {"limits": {"disk": "1"}}}]}})));
        assert!(!is(json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "1"}}}]}})));
        assert!(!is(json!({"spec": {}, "status": {"qosClass": "Burstable"}})));
    }
}
