//! What claims and volumes get and may: `DefaultStorageClass`, `StorageObjectInUseProtection`,
//! `PersistentVolumeClaimResize`.

use serde_json::Value;

use super::{Stop, View, annotation, is, list_mut, object_mut, refused, served};
use crate::object::{Change, Object, Operation, at, items, metadata, text};
use crate::quantity::Quantity;

/// Older clients name a claim's class here.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// What marks the default class.
const DEFAULT: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// `DefaultStorageClass`: a new claim that names no class gets the default one.
pub(super) fn default_class(view: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    let fits = is(change, "", "persistentvolumeclaims") && change.operation == Operation::Create;
    // An empty name is a claim for a volume of no class.
    if !fits || storage_class(change.object).is_some() {
        return Ok(());
    }
    let classes = served("storage.k8s.io", "v1", "storageclasses");
    if let Some(class) = super::default_class(view, classes, &DEFAULT) {
        object_mut(change.object, "spec").insert("storageClassName".to_owned(), class.into());
    }
    Ok(())
}

/// `StorageObjectInUseProtection`: what is in use stays until it is not.
pub(super) fn protect(_: &View<'_>, change: &mut Change<'_>) -> Result<(), Stop> {
    let finalizer = match change.resource.plural {
        "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
        "persistentvolumes" => "kubernetes.io/pv-protection",
        _ => return Ok(()),
    };
    if change.operation != Operation::Create || !change.subresource.is_empty() {
        return Ok(());
    }
    if !items(change.object, "/metadata/finalizers").any(|known| known == finalizer) {
        list_mut(metadata(change.object), "finalizers").push(finalizer.into());
    }
    Ok(())
}

/// `PersistentVolumeClaimResize`: a claim grows only if its class lets it.
pub(super) fn resize(view: &View<'_>, change: &Change<'_>) -> Result<(), Stop> {
    let (Some(old), true) = (change.old, is(change, "", "persistentvolumeclaims")) else {
        return Ok(());
    };
    if change.operation != Operation::Update || size(change.object) <= size(old) {
        return Ok(());
    }
    if text(old, "/status/phase") != "Bound" {
        return Err(refused(change, "Only bound persistent volume claims can be expanded").into());
    }
    let class = storage_class(old).filter(|class| !class.is_empty());
    let class = class.filter(|class| storage_class(change.object) == Some(class));
    let class = match class {
        Some(class) => view.find(served("storage.k8s.io", "v1", "storageclasses"), "", class)?,
        None => None,
    };
    let grows =
        class.is_some_and(|class| at(&class, "/allowVolumeExpansion") == Some(&Value::Bool(true)));
    if grows {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(refused(change, why).into())
}

/// The class a claim names.
pub(super) fn storage_class(claim: &Object) -> Option<&str> {
    annotation(claim, CLASS).or_else(|| at(claim, "/spec/storageClassName")?.as_str())
}

fn size(claim: &Object) -> Quantity {
    let size = at(claim, "/spec/resources/requests/storage");
    size.and_then(|size| Quantity::of(size).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fake::{Fake, message};

    fn claim(spec: Value) -> Value {
        json!({"metadata": {"name": "c"}, "spec": spec})
    }

    fn class(fake: &Fake, name: &str, annotations: Value, grows: bool) {
        fake.put("storage.k8s.io/v1", "storageclasses", json!({
            "metadata": {"name": name, "annotations": annotations}, "allowVolumeExpansion": grows,
        }));
    }

    #[test]
    fn a_claim_without_a_class_gets_the_default_one() {
        let fake = Fake::with_namespace();
        class(&fake, "slow", json!({}), false);
        class(&fake, "fast", json!({"storageclass.kubernetes.io/is-default-class": "true"}), false);
        let chosen = |claim| {
            let claim = fake.create("v1", "persistentvolumeclaims", "a", claim).expect("a claim");
            claim["spec"].get("storageClassName").cloned()
        };
        assert_eq!(chosen(claim(json!({}))), Some(json!("fast")));
        assert_eq!(chosen(claim(json!({"storageClassName": ""}))), Some(json!("")));
        let old =
            json!({"metadata": {"name": "c", "annotations": {super::CLASS: "slow"}}, "spec": {}});
        assert_eq!(chosen(old), None);
    }

    #[test]
    fn claims_and_volumes_are_protected_once() {
        let fake = Fake::with_namespace();
        for (plural, namespace, finalizer) in [
            ("persistentvolumeclaims", "a", "kubernetes.io/pvc-protection"),
            ("persistentvolumes", "", "kubernetes.io/pv-protection"),
        ] {
            let created = fake.create("v1", plural, namespace, claim(json!({}))).expect("one");
            assert_eq!(created["metadata"]["finalizers"], json!([finalizer]));
            let again = fake.create("v1", plural, namespace, created).expect("one");
            assert_eq!(again["metadata"]["finalizers"], json!([finalizer]));
        }
    }

    #[test]
    fn a_claim_grows_only_if_it_is_bound_and_its_class_lets_it() {
        let fake = Fake::with_namespace();
        class(&fake, "fixed", json!({}), false);
        class(&fake, "grows", json!({}), true);
        let said = |class: &str, phase: &str, from: &str, to: &str| {
            let of = |size: &str| {
                let mut claim = claim(json!({"resources": {"requests": {"storage": size}}}));
                claim["status"] = json!({"phase": phase});
                if !class.is_empty() {
                    claim["spec"]["storageClassName"] = json!(class);
                }
                claim
            };
            message(fake.update("v1", "persistentvolumeclaims", "a", of(from), of(to)))
        };
        let not = "persistentvolumeclaims \"c\" is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
        assert_eq!(said("grows", "Bound", "1Gi", "2Gi"), "");
        assert_eq!(said("fixed", "Bound", "1Gi", "1024Mi"), "", "it stays as it is");
        assert_eq!(said("fixed", "Bound", "1Gi", "2Gi"), not);
        assert_eq!(said("", "Bound", "1Gi", "2Gi"), not);
        assert_eq!(said("none", "Bound", "1Gi", "2Gi"), not);
        assert_eq!(
            said("grows", "Pending", "1Gi", "2Gi"),
            "persistentvolumeclaims \"c\" is forbidden: Only bound persistent volume claims can be expanded"
        );
    }
}
