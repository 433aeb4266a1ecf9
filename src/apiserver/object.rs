//! What the parts of the server hand each other: objects as their JSON, who asks, and what is about to be written.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde_json::{Map, Value};

use crate::resources::Resource;

/// An object as its JSON says it, of the shape its resource's schema tells.
pub type Object = Map<String, Value>;

/// Who asks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    /// `system:serviceaccount:default:builder`.
    pub name: String,
    /// Empty where nobody gave one.
    pub uid: String,
    /// Each once.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The one of the server's own loops; allowed everything.
    #[must_use]
    pub fn apiserver() -> Self {
        Self {
            name: "system:apiserver".to_owned(),
            groups: vec!["system:masters".to_owned(), "system:authenticated".to_owned()],
            ..Self::default()
        }
    }

    /// Is it in this group?
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
}

/// What is stored, as far as this server has seen.
pub trait Objects: Debug + Send + Sync {
    /// One object; `namespace` is empty for what is in none.
    fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Option<Object>;

    /// All of a namespace in the order of their names; of all namespaces when it is empty.
    fn list(&self, resource: &'static Resource, namespace: &str) -> Vec<Object>;
}

/// What a write does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Of an object that is not there.
    Create,
    /// Of one that is, by PUT or PATCH.
    Update,
    /// Of one that is; also when it first only gets a deletion timestamp.
    Delete,
}

/// A write on its way through admission, after defaults and before it is validated and stored.
#[derive(Debug)]
pub struct Change<'a> {
    /// Who asks.
    pub user: &'a User,
    /// What for.
    pub operation: Operation,
    /// Of what.
    pub resource: &'static Resource,
    /// `status`; empty: the object itself.
    pub subresource: &'a str,
    /// Empty for what is in none.
    pub namespace: &'a str,
    /// As far as it is known: a name may still be generated.
    pub name: &'a str,
    /// What is written; for a deletion what was there. The body of a subresource of its own kind (`eviction`) too.
    pub object: &'a mut Object,
    /// What was there.
    pub old: Option<&'a Object>,
    /// Nothing will be stored.
    pub dry_run: bool,
}

/// A value inside: `text(object, "/metadata/name")`, empty if there is none or it is no string.
#[must_use]
pub fn text<'a>(object: &'a Object, pointer: &str) -> &'a str {
    at(object, pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A value inside by its JSON pointer (RFC 6901), which names at least one field.
#[must_use]
pub fn at<'a>(object: &'a Object, pointer: &str) -> Option<&'a Value> {
    let (first, rest) = split(pointer);
    object.get(first)?.pointer(rest)
}

/// The same to be changed.
#[must_use]
pub fn at_mut<'a>(object: &'a mut Object, pointer: &str) -> Option<&'a mut Value> {
    let (first, rest) = split(pointer);
    object.get_mut(first)?.pointer_mut(rest)
}

/// Its `metadata`, made if there is none.
///
/// # Panics
/// When it is there and no object, which the schema rules out.
pub fn metadata(object: &mut Object) -> &mut Object {
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Object::new()));
    metadata.as_object_mut().expect("metadata is an object")
}

/// The items of a list inside; none if there is none.
pub fn items<'a>(object: &'a Object, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    at(object, pointer).and_then(Value::as_array).into_iter().flatten()
}

/// `/metadata/name` into its first field and the pointer behind it.
fn split(pointer: &str) -> (&str, &str) {
    let pointer = pointer.strip_prefix('/').unwrap_or(pointer);
    pointer.find('/').map_or((pointer, ""), |slash| pointer.split_at(slash))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_found_by_their_pointers() {
        let Value::Object(mut object) = json!({
            "kind": "Pod",
            "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c"}]},
        }) else {
            unreachable!("it is an object");
        };
        assert_eq!(text(&object, "/kind"), "Pod");
        assert_eq!(text(&object, "/metadata/name"), "a");
        assert_eq!(text(&object, "/spec/containers/0/name"), "c");
        assert_eq!(text(&object, "/spec/containers/1/name"), "");
        assert_eq!(items(&object, "/spec/containers").count(), 1);
        assert_eq!(items(&object, "/spec/volumes").count(), 0);
        metadata(&mut object).insert("uid".to_owned(), json!("u"));
        *at_mut(&mut object, "/metadata/name").expect("it is there") = json!("b");
        assert_eq!(object["metadata"], json!({"name": "b", "uid": "u"}));
    }
}
