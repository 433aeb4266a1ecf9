//! Nobody grants what they do not have: who writes a role must hold all of its rules already, or be allowed to
//! `escalate`; who binds one must hold all it has, or be allowed to `bind` it.

use serde_json::Value;

use super::rbac::GROUP;
use super::rule::{describe_all, list, uncovered};
use super::{Action, Authorizer as _, Authorizers, Decision, MASTERS, Rbac, Rule, quoted};
use crate::object::{Change, Object, Operation, at, text};
use crate::request::Asked;
use crate::resources::find;
use crate::status::Status;

/// May this be written, as far as it grants anything? For creations and updates of roles and bindings; everything
/// else passes.
///
/// # Errors
/// 403 with what would be granted beyond what is held; 404 for a role that is not there.
pub fn check(change: &Change<'_>, authorizers: &Authorizers, rbac: &Rbac) -> Result<(), Status> {
    if change.resource.group != GROUP
        || change.operation == Operation::Delete
        || change.user.is_in(MASTERS)
        || change.old.is_some_and(|old| only_lifecycle(old, change.object))
    {
        return Ok(());
    }
    match change.resource.plural {
        "roles" | "clusterroles" => role(change, authorizers, rbac),
        "rolebindings" | "clusterrolebindings" => binding(change, authorizers, rbac),
        _ => Ok(()),
    }
}

fn role(change: &Change<'_>, authorizers: &Authorizers, rbac: &Rbac) -> Result<(), Status> {
    // As the request names it: what is created has no name in the path.
    let name = if change.operation == Operation::Create { "" } else { change.name };
    if may(change, authorizers, "escalate", change.resource.plural, name) {
        return Ok(());
    }
    none_granted(change, rbac, &Rule::read_all(change.object))?;
    let aggregates =
        |role: &Object| at(role, "/aggregationRule").is_some_and(|rule| !rule.is_null());
    if aggregates(change.object) || change.old.is_some_and(aggregates) {
        let everything = [Rule::all_resources(), Rule::all_urls()];
        if none_granted(change, rbac, &everything).is_err() {
            let why = "must have cluster-admin privileges to use the aggregationRule";
            return Err(Status::forbidden(change.resource, change.name, why));
        }
    }
    Ok(())
}

fn binding(change: &Change<'_>, authorizers: &Authorizers, rbac: &Rbac) -> Result<(), Status> {
    let name = text(change.object, "/roleRef/name");
    let (plural, namespace) = match text(change.object, "/roleRef/kind") {
        "Role" => ("roles", change.namespace),
        "ClusterRole" => ("clusterroles", ""),
        // It is not valid, and grants nothing.
        _ => return Ok(()),
    };
    if may(change, authorizers, "bind", plural, name) {
        return Ok(());
    }
    let Some(rules) = rbac.role(namespace, name) else {
        let resource = find(GROUP, "v1", plural).expect("the table has it");
        return Err(Status::not_found(resource, name));
    };
    none_granted(change, rbac, &rules)
}

fn may(
    change: &Change<'_>,
    authorizers: &Authorizers,
    verb: &str,
    plural: &str,
    name: &str,
) -> bool {
    let asked = Asked {
        group: GROUP,
        version: "v1",
        namespace: change.namespace,
        plural,
        name,
        subresource: "",
    };
    let action = Action { user: change.user, verb, asked: Some(asked), path: "" };
    matches!(authorizers.decide(&action), Decision::Allow(_))
}

/// Does the user hold all of these?
fn none_granted(change: &Change<'_>, rbac: &Rbac, rules: &[Rule]) -> Result<(), Status> {
    let refuse = |why: &str| Err(Status::forbidden(change.resource, change.name, why));
    let user = change.user;
    let held = rbac.held(user, change.namespace);
    let missing = match uncovered(&held.rules.iter().collect::<Vec<_>>(), rules) {
        Ok(missing) => missing,
        Err(error) => return refuse(&error.to_string()),
    };
    if missing.is_empty() {
        return Ok(());
    }
    let unknown = match &held.unknown[..] {
        [] => String::new(),
        unknown => format!("; resolution errors: [{}]", unknown.join(", ")),
    };
    refuse(&format!(
        "user {} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}{unknown}",
        quoted(&user.name),
        list(user.groups.iter().map(String::as_str)),
        describe_all(&missing),
    ))
}

/// Is it only about its end: its owners and finalizers? Whoever tidies up need not hold what it grants.
fn only_lifecycle(old: &Object, new: &Object) -> bool {
    let rest = |object: &Object| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
                metadata.remove(field);
            }
        }
        object
    };
    rest(old) == rest(new)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::object::User;

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { unreachable!("it is an object") };
        object
    }

    /// Ann may read pods in `ns`, and bind and escalate what the tests say.
    fn setting(more: &Value) -> (Authorizers, Arc<Rbac>) {
        let rbac = Arc::new(Rbac::default());
        let see = |plural: &str, namespace: &str, name: &str, value: Value| {
            let resource = find(GROUP, "v1", plural).expect("it is in the table");
            rbac.observe(resource, namespace, name, Some(&object(value)));
        };
        see(
            "roles",
            "ns",
            "reader",
            json!({"rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}, more,
            ]}),
        );
        see(
            "rolebindings",
            "ns",
            "ann",
            json!({"roleRef": {"kind": "Role", "name": "reader"}, "subjects": [{"kind": "User", "name": "ann"}]}),
        );
        see(
            "clusterroles",
            "",
            "writer",
            json!({"rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "create"]},
            ]}),
        );
        (Authorizers(vec![rbac.clone()]), rbac)
    }

    fn attempt(more: &Value, plural: &str, old: Option<Value>, new: Value) -> Result<(), String> {
        let user = User {
            name: "ann".to_owned(),
            groups: vec!["dev".to_owned(), "ops".to_owned()],
            ..User::default()
        };
        attempt_as(&user, more, plural, old, new)
    }

    fn attempt_as(
        user: &User,
        more: &Value,
        plural: &str,
        old: Option<Value>,
        new: Value,
    ) -> Result<(), String> {
        let (authorizers, rbac) = setting(more);
        let old = old.map(object);
        let change = Change {
            user,
            operation: if old.is_some() { Operation::Update } else { Operation::Create },
            resource: find(GROUP, "v1", plural).expect("it is in the table"),
            subresource: "",
            namespace: if plural.starts_with("cluster") { "" } else { "ns" },
            name: "x",
            object: &mut object(new),
            old: old.as_ref(),
            dry_run: false,
        };
        check(&change, &authorizers, &rbac).map_err(|status| status.message)
    }

    #[test]
    fn a_role_gives_only_what_is_held() {
        let pods = |verbs: &[&str]| json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]});
        let none = json!({});
        assert_eq!(attempt(&none, "roles", None, pods(&["get"])), Ok(()));
        assert_eq!(
            attempt(&none, "roles", None, pods(&["get", "create", "delete"])),
            Err("roles.rbac.authorization.k8s.io \"x\" is forbidden: user \"ann\" (groups=[\"dev\" \"ops\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"create\" \"delete\"]}".to_owned())
        );
        assert!(attempt(&none, "clusterroles", None, pods(&["get"])).is_err(), "held in ns only");
        let escalate = json!({"apiGroups": [GROUP], "resources": ["roles"], "verbs": ["escalate"]});
        assert_eq!(attempt(&escalate, "roles", None, pods(&["*"])), Ok(()));
        let root = User { groups: vec![MASTERS.to_owned()], ..User::default() };
        assert_eq!(attempt_as(&root, &none, "clusterroles", None, pods(&["*"])), Ok(()));
        // Its owner may go, whatever it grants.
        let mut owned = pods(&["*"]);
        owned["metadata"] = json!({"name": "x", "resourceVersion": "5", "finalizers": ["a"]});
        let mut free = owned.clone();
        free["metadata"] = json!({"name": "x"});
        assert_eq!(attempt(&none, "roles", Some(owned.clone()), free.clone()), Ok(()));
        free["metadata"]["labels"] = json!({"a": "b"});
        assert!(attempt(&none, "roles", Some(owned), free).is_err());
    }

    #[test]
    fn what_gathers_rules_needs_all_of_them() {
        let gathers = json!({"aggregationRule": {"clusterRoleSelectors": []}, "rules": null});
        assert_eq!(
            attempt(&json!({}), "clusterroles", None, gathers),
            Err("clusterroles.rbac.authorization.k8s.io \"x\" is forbidden: must have cluster-admin privileges to use the aggregationRule".to_owned())
        );
    }

    #[test]
    fn a_binding_gives_only_what_is_held() {
        let to = |kind: &str, name: &str| json!({"roleRef": {"kind": kind, "name": name}});
        let none = json!({});
        assert_eq!(attempt(&none, "rolebindings", None, to("Role", "reader")), Ok(()));
        assert!(
            attempt(&none, "rolebindings", None, to("ClusterRole", "writer"))
                .expect_err("create is not held")
                .ends_with("not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"create\"]}")
        );
        assert_eq!(
            attempt(&none, "rolebindings", None, to("Role", "gone")),
            Err("roles.rbac.authorization.k8s.io \"gone\" not found".to_owned())
        );
        assert_eq!(
            attempt(&none, "rolebindings", None, to("ClusterRole", "gone")),
            Err("clusterroles.rbac.authorization.k8s.io \"gone\" not found".to_owned())
        );
        let bind = json!({"apiGroups": [GROUP], "resources": ["clusterroles"], "resourceNames": ["writer"], "verbs": ["bind"]});
        assert_eq!(attempt(&bind, "rolebindings", None, to("ClusterRole", "writer")), Ok(()));
        assert!(attempt(&bind, "clusterrolebindings", None, to("ClusterRole", "writer")).is_err());
    }
}
