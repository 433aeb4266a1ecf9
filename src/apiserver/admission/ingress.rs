//! `DefaultIngressClass`: an ingress that names no class gets the cluster's.

use super::{Stop, View, annotation, default_class, is, object_mut, served};
use crate::object::{Change, Operation, at};

/// Gives a new ingress its class.
pub(super) fn mutate(view: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    let fits =
        is(change, "networking.k8s.io", "ingresses") && change.operation == Operation::Create;
    let named = at(change.object, "/spec/ingressClassName").is_some()
        || annotation(change.object, "kubernetes.io/ingress.class").is_some();
    if !fits || named {
        return Ok(());
    }
    let classes = served("networking.k8s.io", "v1", "ingressclasses");
    if let Some(class) =
        default_class(view, classes, &["ingressclass.kubernetes.io/is-default-class"])
    {
        object_mut(change.object, "spec").insert("ingressClassName".to_owned(), class.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::Fake;

    #[test]
    fn an_ingress_without_a_class_gets_the_newest_default() {
        let fake = Fake::with_namespace();
        let ingress = json!({"metadata": {"name": "i"}, "spec": {}});
        let class = |fake: &Fake, ingress| {
            fake.create("networking.k8s.io/v1", "ingresses", "a", ingress).expect("an ingress")["spec"]
                ["ingressClassName"]
                .clone()
        };
        assert_eq!(class(&fake, ingress.clone()), json!(null));
        for (name, second, default) in
            [("a", 1, "true"), ("c", 2, "true"), ("b", 2, "true"), ("z", 3, "false")]
        {
            fake.put(
                "networking.k8s.io/v1",
                "ingressclasses",
                json!({"metadata": {
                    "name": name,
                    "creationTimestamp": format!("2026-01-01T00:00:0{second}Z"),
                    "annotations": {"ingressclass.kubernetes.io/is-default-class": default},
                }}),
            );
        }
        assert_eq!(class(&fake, ingress), json!("b"));
        let own = json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": "own"}});
        assert_eq!(class(&fake, own), json!("own"));
        let old = json!({"metadata": {"name": "i", "annotations": {"kubernetes.io/ingress.class": "own"}}});
        assert_eq!(class(&fake, old), json!(null));
    }
}
