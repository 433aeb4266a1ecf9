//! Where objects are in the store: `/registry/pods/default/a`, as the reference has it, so that its etcd can be taken
//! over.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::resources::{RESOURCES, Resource};

/// What all keys begin with.
pub(crate) const ROOT: &str = "/registry/";

/// The resources by what follows [`ROOT`].
static PLACES: LazyLock<HashMap<&'static str, &'static Resource>> = LazyLock::new(|| {
    RESOURCES
        .iter()
        .filter(|resource| resource.is_stored() && std::ptr::eq(resource.stored(), *resource))
        .map(|resource| (place(resource), resource))
        .collect()
});

/// What follows [`ROOT`]: the plural, but where history has it otherwise.
fn place(resource: &Resource) -> &'static str {
    match (resource.group, resource.plural) {
        ("", "replicationcontrollers") => "controllers",
        ("", "nodes") => "minions",
        ("", "services") => "services/specs",
        ("", "endpoints") => "services/endpoints",
        ("networking.k8s.io", "ingresses") => "ingress",
        (_, plural) => plural,
    }
}

/// All objects of a resource, or those of a namespace.
pub(crate) fn prefix(resource: &'static Resource, namespace: &str) -> String {
    let place = place(resource.stored());
    if namespace.is_empty() {
        format!("{ROOT}{place}/")
    } else {
        format!("{ROOT}{place}/{namespace}/")
    }
}

/// One object; `namespace` is empty for what is in none.
pub(crate) fn key(resource: &'static Resource, namespace: &str, name: &str) -> String {
    prefix(resource, namespace) + name
}

/// Of which resource a key is, and what follows its prefix: `default/a`, or `a`.
pub(crate) fn read(key: &[u8]) -> Option<(&'static Resource, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
    let mut slashes = rest.match_indices('/').map(|(at, _)| at);
    let one = slashes.next()?;
    let found = |at: usize| Some((*PLACES.get(&rest[..at])?, &rest[at + 1..]));
    let (resource, rest) = found(one).or_else(|| found(slashes.next()?))?;
    let parts = rest.split('/').filter(|part| !part.is_empty()).count();
    let whole = parts == if resource.namespaced { 2 } else { 1 };
    (whole && rest.matches('/').count() + 1 == parts).then_some((resource, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    #[test]
    fn keys_are_those_of_the_reference_and_are_read_back() {
        for (group, version, plural, namespace, key) in [
            ("", "v1", "pods", "a", "/registry/pods/a/x"),
            ("", "v1", "nodes", "", "/registry/minions/x"),
            ("", "v1", "services", "a", "/registry/services/specs/a/x"),
            ("", "v1", "endpoints", "a", "/registry/services/endpoints/a/x"),
            ("apps", "v1", "deployments", "a", "/registry/deployments/a/x"),
            ("networking.k8s.io", "v1", "ingresses", "a", "/registry/ingress/a/x"),
            ("events.k8s.io", "v1", "events", "a", "/registry/events/a/x"),
        ] {
            let resource = find(group, version, plural).expect(plural);
            assert_eq!(super::key(resource, namespace, "x"), key);
            let (found, rest) = read(key.as_bytes()).expect(key);
            assert!(std::ptr::eq(found, resource.stored()), "{key}");
            assert!(rest.ends_with('x'));
        }
        for key in [
            "/registry/pods/x",
            "/registry/pods/a/x/y",
            "/registry/pods//x",
            "/registry/minions/",
            "/registry/unknown/x",
            "/elsewhere/pods/a/x",
            "compact_rev_key",
        ] {
            assert!(read(key.as_bytes()).is_none(), "{key}");
        }
    }

    #[test]
    fn no_two_resources_share_a_place() {
        let stored =
            RESOURCES.iter().filter(|one| one.is_stored() && std::ptr::eq(one.stored(), *one));
        assert_eq!(PLACES.len(), stored.count());
    }
}
