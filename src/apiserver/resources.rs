//! What is served: every resource of the built-in groups, from one table.
//!
//! `schema/resources.tsv` has a row per resource: group version as clients write it, plural, kind, short names,
//! categories, scope, verbs if not all, subresources, and the fields that can be selected by besides name and namespace.

use std::sync::LazyLock;

use crate::packed::unpacked;
use crate::schema::{SCHEMA, TypeId};

/// All of them, groups together, in the order of the table.
pub static RESOURCES: LazyLock<Vec<Resource>> = LazyLock::new(read);

/// A collection of objects.
#[derive(Debug)]
pub struct Resource {
    /// Its row in the table.
    pub index: usize,
    /// Empty: core.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `deployments`.
    pub plural: &'static str,
    /// `Deployment`.
    pub kind: &'static str,
    /// `deploy`.
    pub short_names: Vec<&'static str>,
    /// `all`.
    pub categories: Vec<&'static str>,
    /// Is it in namespaces?
    pub namespaced: bool,
    /// In the order of discovery.
    pub verbs: Vec<&'static str>,
    /// In the order of the table.
    pub subresources: Vec<Subresource>,
    /// Besides `metadata.name` and `metadata.namespace`.
    pub selectable: Vec<&'static str>,
    /// How its objects look.
    pub schema: TypeId,
}

/// A part or an action of an object.
#[derive(Debug)]
pub struct Subresource {
    /// `status`.
    pub name: &'static str,
    /// In the order of discovery.
    pub verbs: Vec<&'static str>,
    /// What its bodies are, where that is not the object itself: group, version, kind.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
}

/// What can be done with most.
const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Resource {
    /// The resource as which its objects are stored: a kind that is served in two groups or versions is stored once.
    #[must_use]
    pub fn stored(&'static self) -> &'static Self {
        let (group, version) = match (self.group, self.plural) {
            ("events.k8s.io", "events") => ("", "v1"),
            ("autoscaling", _) => ("autoscaling", "v2"),
            _ => return self,
        };
        find(group, version, self.plural).unwrap_or(self)
    }

    /// Are there objects of it? Reviews and bindings are answered and forgotten.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.verbs.contains(&"watch")
    }

    /// Has it this subresource?
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|known| known.name == name)
    }

    /// `deployments.apps`, as in messages.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `apps/v1`, as in objects.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `deployment`.
    #[must_use]
    pub fn singular(&self) -> String {
        self.kind.to_lowercase()
    }

    /// Can objects be selected by it?
    #[must_use]
    pub fn selects_by(&self, path: &str) -> bool {
        match path {
            "metadata.name" => true,
            "metadata.namespace" => self.namespaced,
            _ => self.selectable.contains(&path),
        }
    }
}

/// The one of this path.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES
        .iter()
        .find(|known| known.group == group && known.version == version && known.plural == plural)
}

fn read() -> Vec<Resource> {
    unpacked!("resources.tsv").lines().enumerate().map(read_row).collect()
}

fn read_row((index, line): (usize, &'static str)) -> Resource {
    let columns: Vec<&str> = line.split('\t').collect();
    let &[group_version, plural, kind, short, categories, scope, verbs, subresources, selectable] =
        &columns[..]
    else {
        unreachable!("a row of the table has nine columns: {line:?}");
    };
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let list = |column: &'static str| match column {
        "-" => Vec::new(),
        names => names.split(',').collect::<Vec<_>>(),
    };
    let schema = ["core", group.split('.').next().unwrap_or_default()]
        .into_iter()
        .rev()
        .find_map(|place| SCHEMA.find(&format!("{place}/{version}"), kind))
        .expect("the schema has every kind of the table");
    Resource {
        index,
        group,
        version,
        plural,
        kind,
        short_names: list(short),
        categories: list(categories),
        namespaced: scope == "N",
        verbs: if verbs == "-" { ALL_VERBS.to_vec() } else { list(verbs) },
        subresources: list(subresources).into_iter().map(subresource).collect(),
        selectable: list(selectable),
        schema,
    }
}

fn subresource(name: &'static str) -> Subresource {
    let (verbs, kind): (&[&str], _) = match name {
        "scale" => (&["get", "patch", "update"], Some(("autoscaling", "v1", "Scale"))),
        "eviction" => (&["create"], Some(("policy", "v1", "Eviction"))),
        "token" => (&["create"], Some(("authentication.k8s.io", "v1", "TokenRequest"))),
        "binding" => (&["create"], Some(("", "v1", "Binding"))),
        "finalize" => (&["update"], None),
        "log" => (&["get"], None),
        "exec" => (&["create", "get"], Some(("", "v1", "PodExecOptions"))),
        "attach" => (&["create", "get"], Some(("", "v1", "PodAttachOptions"))),
        "portforward" => (&["create", "get"], Some(("", "v1", "PodPortForwardOptions"))),
        "proxy" => (&["create", "delete", "get", "patch", "update"], None),
        _ => (&["get", "patch", "update"], None),
    };
    Subresource { name, verbs: verbs.to_vec(), kind }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn resources_are_found_by_their_path_and_named_as_clients_do() {
        let deployments = find("apps", "v1", "deployments").expect("deployments");
        assert_eq!(deployments.qualified(), "deployments.apps");
        assert_eq!(
            (deployments.api_version(), deployments.singular()),
            ("apps/v1".into(), "deployment".into())
        );
        assert_eq!(deployments.short_names, ["deploy"]);
        assert_eq!(SCHEMA.get(deployments.schema).name, "Deployment");
        let pods = find("", "v1", "pods").expect("pods");
        assert!(pods.selects_by("spec.nodeName") && pods.selects_by("metadata.namespace"));
        assert!(!pods.selects_by("spec.volumes"));
        assert!(!find("", "v1", "nodes").expect("nodes").selects_by("metadata.namespace"));
        assert!(find("", "v2", "pods").is_none());
    }

    #[test]
    fn no_path_and_no_short_name_of_a_group_means_two_things() {
        let mut paths = HashSet::new();
        let mut kinds = HashSet::new();
        for resource in RESOURCES.iter() {
            assert!(
                paths.insert((resource.group, resource.version, resource.plural)),
                "{}",
                resource.plural
            );
            assert!(
                kinds.insert((resource.group, resource.version, resource.kind)),
                "{}",
                resource.kind
            );
            assert!(resource.verbs.is_sorted(), "{}", resource.plural);
        }
        let pods = find("", "v1", "pods").expect("pods");
        let names: Vec<_> = pods.subresources.iter().map(|sub| sub.name).collect();
        assert!(names.contains(&"status") && names.contains(&"eviction"));
    }
}
