//! `TaintNodesByCondition`: a new node takes no pods before somebody has seen that it is ready.

use serde_json::json;

use super::{Stop, View, is, list_mut, object_mut};
use crate::object::{Change, Operation, items};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// Taints a node that is new.
pub(super) fn mutate(_: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    if !is(change, "", "nodes") || change.operation != Operation::Create {
        return Ok(());
    }
    let tainted = items(change.object, "/spec/taints")
        .any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule");
    if !tainted {
        let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
        list_mut(object_mut(change.object, "spec"), "taints").push(taint);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::Fake;

    #[test]
    fn a_new_node_is_not_ready() {
        let fake = Fake::new();
        let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let node = json!({"metadata": {"name": "n"}});
        let created = fake.create("v1", "nodes", "", node.clone()).expect("a node");
        assert_eq!(created["spec"], json!({"taints": [taint]}));
        assert_eq!(fake.create("v1", "nodes", "", created.clone()), Ok(created.clone()));
        assert_eq!(fake.update("v1", "nodes", "", created, node.clone()), Ok(node));
    }
}
