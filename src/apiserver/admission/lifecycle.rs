//! `NamespaceLifecycle`: nothing is written where there is no namespace, nothing new in one that is ending, and the
//! namespaces the cluster stands on stay.

use super::{Stop, View, refused, served};
use crate::object::{Change, Operation, text};
use crate::status::{Cause, Status};

/// Those that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Refuses what must not happen to a namespace or in it.
pub(super) fn mutate(view: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    let resource = change.resource;
    if resource.group.is_empty() && resource.plural == "namespaces" {
        let last = change.operation == Operation::Delete && IMMORTAL.contains(&change.name);
        return if last {
            Err(refused(change, "this namespace may not be deleted").into())
        } else {
            Ok(())
        };
    }
    // What is there can always be deleted, and who may do what can always be asked.
    let asks = resource.group == "authorization.k8s.io";
    if !resource.namespaced || change.operation == Operation::Delete || asks {
        return Ok(());
    }
    let namespaces = served("", "v1", "namespaces");
    let Some(namespace) = view.find(namespaces, "", change.namespace)? else {
        return Err(Status::not_found(namespaces, change.namespace).into());
    };
    let ends = text(&namespace, "/status/phase") == "Terminating";
    if change.operation != Operation::Create || !ends {
        return Ok(());
    }
    let name = change.namespace;
    let mut status = refused(
        change,
        &format!("unable to create new content in namespace {name} because it is being terminated"),
    );
    status.details.causes.push(Cause {
        reason: "NamespaceTerminating",
        message: format!("namespace {name} is being terminated"),
        field: "metadata.namespace".to_owned(),
    });
    Err(status.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::{Fake, message};
    use crate::object::Operation;

    #[test]
    fn a_namespace_that_is_not_there_is_not_found_unless_the_store_has_it() {
        let fake = Fake::new();
        let pod = json!({"metadata": {"name": "x"}});
        let status = fake.create("v1", "pods", "a", pod.clone()).expect_err("there is none");
        assert_eq!((status.code, status.message.as_str()), (404, "namespaces \"a\" not found"));
        assert_eq!(
            (status.details.name.as_str(), status.details.kind.as_str()),
            ("a", "namespaces")
        );
        assert_eq!(fake.reads(), ["namespaces a"]);

        let fake = Fake::new();
        fake.stored(
            "v1",
            "namespaces",
            json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}}),
        );
        fake.create("v1", "configmaps", "a", pod).expect("the cache is only late");
    }

    #[test]
    fn nothing_new_comes_into_a_namespace_that_ends() {
        let fake = Fake::new();
        fake.put(
            "v1",
            "namespaces",
            json!({"metadata": {"name": "a"}, "status": {"phase": "Terminating"}}),
        );
        let map = json!({"metadata": {"generateName": "x-"}});
        let status = fake.create("v1", "configmaps", "a", map.clone()).expect_err("it ends");
        assert_eq!(
            status.body(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Forbidden",
                "message": "configmaps \"x-\" is forbidden: unable to create new content in namespace a because it is being terminated",
                "code": 403,
                "details": {"name": "x-", "kind": "configmaps", "causes": [{
                    "reason": "NamespaceTerminating",
                    "message": "namespace a is being terminated",
                    "field": "metadata.namespace",
                }]},
            })
        );
        fake.update("v1", "configmaps", "a", map.clone(), map.clone())
            .expect("it may still change");
        fake.run(Operation::Delete, ("v1", "configmaps", ""), "a", map, None).expect("and go");
    }

    #[test]
    fn the_namespaces_the_cluster_stands_on_stay() {
        let fake = Fake::new();
        let delete = |name: &str| {
            let namespace = json!({"metadata": {"name": name}});
            message(fake.run(Operation::Delete, ("v1", "namespaces", ""), "", namespace, None))
        };
        for name in super::IMMORTAL {
            let said =
                format!("namespaces {name:?} is forbidden: this namespace may not be deleted");
            assert_eq!(delete(name), said);
        }
        assert_eq!(delete("kube-node-lease"), "");
    }

    #[test]
    fn rights_in_a_namespace_that_is_not_there_can_be_asked() {
        let review = json!({"spec": {}});
        let fake = Fake::new();
        fake.create("authorization.k8s.io/v1", "localsubjectaccessreviews", "a", review)
            .expect("it is only a question");
    }
}
