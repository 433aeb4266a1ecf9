//! `Priority`: a pod's class decides its priority, and there is one default class.

use serde_json::Value;

use super::{Stop, View, is, object_mut, refused, served};
use crate::object::{Change, Object, Operation, at, text};

/// Writes the priority of its class into a new pod; one that changes keeps it.
pub(super) fn mutate(view: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    if !is(change, "", "pods") {
        return Ok(());
    }
    match change.operation {
        Operation::Create => choose(view, change),
        Operation::Update => {
            keep(change);
            Ok(())
        }
        Operation::Delete => Ok(()),
    }
}

/// Refuses a second default class.
pub(super) fn validate(view: &View<'_>, change: &Change<'_>) -> Result<(), Stop> {
    let defaults = is(change, "scheduling.k8s.io", "priorityclasses")
        && change.operation != Operation::Delete
        && at(change.object, "/globalDefault") == Some(&Value::Bool(true));
    if !defaults {
        return Ok(());
    }
    let known = default(view).map(|class| text(&class, "/metadata/name").to_owned());
    match known {
        Some(name) if name != text(change.object, "/metadata/name") => {
            let why = format!(
                "PriorityClass {name} is already marked as default. Only one default can exist"
            );
            Err(refused(change, &why).into())
        }
        _ => Ok(()),
    }
}

fn choose(view: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    let named = text(change.object, "/spec/priorityClassName");
    let class = if named.is_empty() {
        default(view)
    } else {
        let classes = served("scheduling.k8s.io", "v1", "priorityclasses");
        let Some(class) = view.find(classes, "", named)? else {
            let why = format!("no PriorityClass with name {named} was found");
            return Err(refused(change, &why).into());
        };
        Some(class)
    };
    let name = class.as_ref().map(|class| text(class, "/metadata/name").to_owned());
    let value = class.as_ref().and_then(|class| at(class, "/value")?.as_i64()).unwrap_or(0);
    let policy = class.as_ref().and_then(|class| at(class, "/preemptionPolicy")?.as_str());
    let policy = policy.unwrap_or("PreemptLowerPriority").to_owned();
    let own = at(change.object, "/spec/priority").and_then(Value::as_i64);
    if let Some(own) = own.filter(|own| *own != value) {
        let why = format!(
            "the integer value of priority ({own}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(refused(change, &why).into());
    }
    let own = text(change.object, "/spec/preemptionPolicy");
    if !own.is_empty() && own != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(refused(change, &why).into());
    }
    let spec = object_mut(change.object, "spec");
    if let Some(name) = name {
        spec.insert("priorityClassName".to_owned(), name.into());
    }
    spec.insert("priority".to_owned(), value.into());
    spec.insert("preemptionPolicy".to_owned(), policy.into());
    Ok(())
}

/// Clients that do not know the fields leave them out.
fn keep(change: &mut Change<'_>) {
    let Some(old) = change.old else { return };
    for (field, pointer) in
        [("priority", "/spec/priority"), ("preemptionPolicy", "/spec/preemptionPolicy")]
    {
        let spec = object_mut(change.object, "spec");
        if let (None, Some(value)) = (spec.get(field), at(old, pointer)) {
            spec.insert(field.to_owned(), value.clone());
        }
    }
}

/// The class of pods that name none: of several, which should not be, the lowest.
fn default(view: &View<'_>) -> Option<Object> {
    let classes = view.objects.list(served("scheduling.k8s.io", "v1", "priorityclasses"), "");
    classes
        .into_iter()
        .filter(|class| at(class, "/globalDefault") == Some(&Value::Bool(true)))
        .min_by_key(|class| at(class, "/value").and_then(Value::as_i64))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fake::{Fake, message};
    use crate::status::Status;

    fn classes() -> Fake {
        let fake = Fake::ready();
        for (name, value, default, policy) in
            [("high", 1000, false, "Never"), ("usual", 10, true, "PreemptLowerPriority")]
        {
            fake.put("scheduling.k8s.io/v1", "priorityclasses", json!({
                "metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": policy,
            }));
        }
        fake
    }

    fn create(fake: &Fake, spec: &Value) -> Result<Value, Status> {
        let pod = json!({"metadata": {"name": "x"}, "spec": spec});
        fake.create("v1", "pods", "a", pod).map(|pod| {
            let of = |field: &str| pod["spec"].get(field).cloned().unwrap_or_default();
            json!([of("priorityClassName"), of("priority"), of("preemptionPolicy")])
        })
    }

    #[test]
    fn a_pod_has_the_priority_of_its_class() {
        let fake = Fake::ready();
        assert_eq!(create(&fake, &json!({})), Ok(json!([null, 0, "PreemptLowerPriority"])));
        let fake = classes();
        assert_eq!(create(&fake, &json!({})), Ok(json!(["usual", 10, "PreemptLowerPriority"])));
        let high = json!({"priorityClassName": "high", "priority": 1000});
        assert_eq!(create(&fake, &high), Ok(json!(["high", 1000, "Never"])));
    }

    #[test]
    fn a_pod_cannot_choose_another_priority() {
        let fake = classes();
        for (spec, why) in [
            (json!({"priorityClassName": "none"}), "no PriorityClass with name none was found"),
            (
                json!({"priority": 5}),
                "the integer value of priority (5) must not be provided in pod spec; priority admission controller computed 10 from the given PriorityClass name",
            ),
            (
                json!({"priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority"}),
                "the string value of PreemptionPolicy (PreemptLowerPriority) must not be provided in pod spec; priority admission controller computed Never from the given PriorityClass name",
            ),
        ] {
            assert_eq!(message(create(&fake, &spec)), format!("pods \"x\" is forbidden: {why}"));
        }
    }

    #[test]
    fn a_pod_that_changes_keeps_its_priority() {
        let old = json!({"metadata": {"name": "x"}, "spec": {"priority": 7, "preemptionPolicy": "Never"}});
        let new = json!({"metadata": {"name": "x"}, "spec": {}});
        let kept = classes().update("v1", "pods", "a", old.clone(), new).expect("a pod");
        assert_eq!(kept["spec"]["priority"], old["spec"]["priority"]);
        assert_eq!(kept["spec"]["preemptionPolicy"], old["spec"]["preemptionPolicy"]);
    }

    #[test]
    fn there_is_one_default_class() {
        let fake = classes();
        let class =
            |name: &str| json!({"metadata": {"name": name}, "value": 1, "globalDefault": true});
        let put = |name: &str| {
            message(fake.create("scheduling.k8s.io/v1", "priorityclasses", "", class(name)))
        };
        assert_eq!(put("usual"), "");
        assert_eq!(
            put("other"),
            "priorityclasses.scheduling.k8s.io \"other\" is forbidden: PriorityClass usual is already marked as default. Only one default can exist"
        );
    }
}
