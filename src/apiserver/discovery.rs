//! What clients ask first: which groups, versions and resources there are. In the form of old clients, a document per
//! group version, and in that of kubectl 1.27 and later, which asks for all at once.

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::resources::{RESOURCES, Resource, Subresource};

/// `/api`: the versions of the core group, and where the server is reached.
#[must_use]
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `/apis`: every group but core's.
#[must_use]
pub fn groups() -> Value {
    let groups: Vec<_> =
        group_names().into_iter().filter(|group| !group.is_empty()).filter_map(group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/{group}`.
#[must_use]
pub fn group(name: &str) -> Option<Value> {
    let versions: Vec<_> = versions(name)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    let preferred = versions.first()?.clone();
    Some(
        json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions, "preferredVersion": preferred}),
    )
}

/// `/api/v1` and `/apis/{group}/{version}`.
#[must_use]
pub fn resources(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in of(group, version) {
        list.push(legacy(resource, None));
        list.extend(resource.subresources.iter().map(|sub| legacy(resource, Some(sub))));
    }
    let group_version =
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let body = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list});
    (!list.is_empty()).then_some(body)
}

fn legacy(resource: &Resource, sub: Option<&Subresource>) -> Value {
    let mut body = json!({
        "name": sub.map_or(resource.plural.to_owned(), |sub| format!("{}/{}", resource.plural, sub.name)),
        "singularName": if sub.is_some() { String::new() } else { resource.singular() },
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": sub.map_or(&resource.verbs, |sub| &sub.verbs),
    });
    if let Some((group, version, kind)) = sub.and_then(|sub| sub.kind) {
        body["kind"] = kind.into();
        body["group"] = group.into();
        body["version"] = version.into();
    }
    if sub.is_none() {
        for (key, names) in
            [("shortNames", &resource.short_names), ("categories", &resource.categories)]
        {
            if !names.is_empty() {
                body[key] = names.iter().copied().collect();
            }
        }
        if resource.verbs.contains(&"list") {
            body["storageVersionHash"] = storage_version_hash(resource).into();
        }
    }
    body
}

/// All groups of `/apis`, or core for `/api`, with everything in them: `APIGroupDiscoveryList` of
/// `apidiscovery.k8s.io/v2`.
#[must_use]
pub fn aggregated(core: bool) -> Value {
    let items: Vec<_> = group_names()
        .into_iter()
        .filter(|group| group.is_empty() == core)
        .map(|group| {
            let versions: Vec<_> = versions(group)
                .into_iter()
                .map(|version| {
                    let resources: Vec<_> = of(group, version).map(aggregated_resource).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let metadata = if core { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_resource(resource: &'static Resource) -> Value {
    let own = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let mut body = json!({
        "resource": resource.plural,
        "responseKind": own,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular(),
        "verbs": resource.verbs,
    });
    for (key, names) in
        [("shortNames", &resource.short_names), ("categories", &resource.categories)]
    {
        if !names.is_empty() {
            body[key] = names.iter().copied().collect();
        }
    }
    if !resource.subresources.is_empty() {
        let subresources = resource.subresources.iter().map(|sub| {
            let kind = match sub.kind {
                Some((group, version, kind)) => {
                    json!({"group": group, "version": version, "kind": kind})
                }
                None => own.clone(),
            };
            json!({"subresource": sub.name, "responseKind": kind, "verbs": sub.verbs})
        });
        body["subresources"] = subresources.collect();
    }
    body
}

/// In the order of the table, each once.
fn group_names() -> Vec<&'static str> {
    let mut names: Vec<&str> = RESOURCES.iter().map(|resource| resource.group).collect();
    names.dedup();
    names
}

/// The newest first.
fn versions(group: &str) -> Vec<&'static str> {
    let of_group = RESOURCES.iter().filter(|resource| resource.group == group);
    let mut versions: Vec<&str> = of_group.map(|resource| resource.version).collect();
    orlop_rt::sort_by(&mut versions, |a, b| b.cmp(a));
    versions.dedup();
    versions
}

fn of(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(move |resource| resource.group == group && resource.version == version)
}

/// Tells clients when objects are stored in another version: eight bytes of a sum over group, version and kind.
fn storage_version_hash(resource: &Resource) -> String {
    use base64::Engine as _;
    let text = format!("{}/{}/{}", resource.group, resource.version, resource.kind);
    base64::engine::general_purpose::STANDARD
        .encode(&digest(&SHA256, text.as_bytes()).as_ref()[..8])
}

/// An entity tag for a document: the same bytes, the same tag.
#[must_use]
pub fn etag(document: &[u8]) -> String {
    let sum = digest(&SHA256, document);
    let hex: String = sum.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    format!("\"{hex}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_tell_the_same() {
        let mut legacy = Vec::new();
        for group in group_names() {
            for version in versions(group) {
                let list = resources(group, version).expect("every version has resources");
                let list = list["resources"].as_array().cloned().unwrap_or_default();
                legacy.extend(list.into_iter().map(|resource| {
                    (
                        group.to_owned(),
                        version.to_owned(),
                        resource["name"].clone(),
                        resource["verbs"].clone(),
                    )
                }));
            }
        }
        let mut whole = Vec::new();
        for core in [true, false] {
            for group in aggregated(core)["items"].as_array().into_iter().flatten() {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                for version in group["versions"].as_array().into_iter().flatten() {
                    for resource in version["resources"].as_array().into_iter().flatten() {
                        let row = |name: &Value, resource: &Value| {
                            let version =
                                version["version"].as_str().unwrap_or_default().to_owned();
                            (
                                group["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
                                version,
                                name.clone(),
                                resource["verbs"].clone(),
                            )
                        };
                        whole.push(row(&resource["resource"], resource));
                        for sub in resource["subresources"].as_array().into_iter().flatten() {
                            let plural = resource["resource"].as_str().unwrap_or_default();
                            let sub_name = sub["subresource"].as_str().unwrap_or_default();
                            whole.push(row(&format!("{plural}/{sub_name}").into(), sub));
                        }
                    }
                }
                assert_eq!(name.is_empty(), core);
            }
        }
        assert!(legacy.len() > 100, "{}", legacy.len());
        assert_eq!(legacy, whole);
    }

    #[test]
    fn versions_are_told_newest_first_and_subresources_with_their_kinds() {
        let hpa = group("autoscaling").expect("autoscaling");
        assert_eq!(hpa["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!(hpa["versions"][1]["version"], "v1");
        assert_eq!((group("nobody.example"), resources("apps", "v2")), (None, None));
        let apps = resources("apps", "v1").expect("apps");
        let scale = apps["resources"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|one| one["name"] == "deployments/scale");
        assert_eq!(
            scale,
            Some(&json!({
                "name": "deployments/scale", "singularName": "", "namespaced": true, "kind": "Scale",
                "group": "autoscaling", "version": "v1", "verbs": ["get", "patch", "update"],
            }))
        );
        let names: Vec<_> = group_names();
        assert_eq!(
            names.len(),
            names.iter().collect::<std::collections::HashSet<_>>().len(),
            "groups stand together"
        );
        assert_eq!(etag(b"a"), etag(b"a"));
        assert_ne!(etag(b"a"), etag(b"b"));
    }
}
