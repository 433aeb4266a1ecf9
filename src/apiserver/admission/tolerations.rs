//! `DefaultTolerationSeconds`: how long a pod stays on a node that is not ready or cannot be reached.

use serde_json::{Value, json};

use super::{Stop, View, is, list_mut, object_mut};
use crate::object::{Change, Operation, items};

/// Of nodes that pods leave after a while.
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// In seconds.
const STAYS: u32 = 300;

/// Adds the tolerations a pod does not have of its own.
pub(super) fn mutate(_: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    if !is(change, "", "pods") || change.operation == Operation::Delete {
        return Ok(());
    }
    for taint in TAINTS {
        let tolerated = items(change.object, "/spec/tolerations").any(|toleration| {
            let of =
                |field: &str| toleration.get(field).and_then(Value::as_str).unwrap_or_default();
            (of("key").is_empty() || of("key") == taint)
                && (of("effect").is_empty() || of("effect") == "NoExecute")
        });
        if !tolerated {
            list_mut(object_mut(change.object, "spec"), "tolerations").push(json!({
                "key": taint,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": STAYS,
            }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::Fake;

    fn tolerations(own: serde_json::Value) -> serde_json::Value {
        let fake = Fake::ready();
        let pod =
            json!({"metadata": {"name": "x"}, "spec": {"tolerations": own, "containers": []}});
        fake.create("v1", "pods", "a", pod).expect("a pod")["spec"]["tolerations"].clone()
    }

    #[test]
    fn pods_leave_lost_nodes_after_five_minutes_unless_they_say_otherwise() {
        let added = |taint: &str| json!({"key": format!("node.kubernetes.io/{taint}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        assert_eq!(tolerations(json!([])), json!([added("not-ready"), added("unreachable")]));
        let own = json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 5});
        assert_eq!(tolerations(json!([own])), json!([own, added("unreachable")]));
        let all = json!([{"operator": "Exists"}]);
        assert_eq!(tolerations(all.clone()), all);
        let other = json!({"operator": "Exists", "effect": "NoSchedule"});
        assert_eq!(
            tolerations(json!([other])),
            json!([other, added("not-ready"), added("unreachable")])
        );
    }
}
