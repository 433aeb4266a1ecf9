//! The definitions of types: what Kubernetes says of them, completed with what the schema knows.
//!
//! `schema/definitions.json.gz` has a definition per line, under the names of the reference and with references by
//! these names alone. It is made by `make openapi` (`tests/openapi`) from the `k8s-openapi` crate, version 0.29, at
//! generation 1.36. Its descriptions are those of Kubernetes, copyright The Kubernetes Authors, under the Apache
//! License 2.0.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use flate2::read::GzDecoder;
use serde_json::{Map, Value, json};

use crate::resources::{RESOURCES, Resource};
use crate::schema::{Field, Kind, List, SCHEMA, Shape, TypeId};

/// The names of types that documents speak of.
pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// Group, version and kind.
pub(super) type Gvk<'a> = (&'a str, &'a str, &'a str);

/// Which document a definition is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    /// Swagger 2.0.
    V2,
    /// OpenAPI 3.0.
    V3,
}

impl Form {
    fn prefix(self) -> &'static str {
        match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        }
    }

    /// A reference to a definition.
    pub(super) fn reference(self, name: &str) -> Value {
        json!({"$ref": format!("{}{name}", self.prefix())})
    }
}

/// All that is known, as text: it is read anew for each document, and let go.
pub(super) struct Definitions {
    lines: BTreeMap<String, String>,
    /// For `x-kubernetes-group-version-kind`.
    kinds: BTreeMap<String, Value>,
}

/// `io.k8s.api.apps.v1.Deployment`.
pub(super) fn name_of((group, version, kind): Gvk<'_>) -> String {
    let group = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() };
    format!("io.k8s.api.{group}.{version}.{kind}")
}

impl Definitions {
    /// What comes with this program.
    pub(super) fn read() -> Self {
        let mut text = String::new();
        GzDecoder::new(&include_bytes!("../schema/definitions.json.gz")[..])
            .read_to_string(&mut text)
            .expect("what comes with this program is sound");
        let mut lines = BTreeMap::new();
        for line in text.lines() {
            // `{"name":{...}}`
            let split = line.strip_prefix("{\"").and_then(|line| line.strip_suffix('}'));
            let (name, definition) =
                split.and_then(|line| line.split_once("\":")).expect("a line has a definition");
            lines.insert(name.to_owned(), definition.to_owned());
        }
        let mut all = Self { lines, kinds: kinds() };
        for resource in RESOURCES.iter().filter(|resource| resource.verbs.contains(&"list")) {
            all.lines.insert(list_name(resource), list(resource).to_string());
        }
        all.lines.insert(format!("{META}Patch"), PATCH.to_owned());
        all.lines.insert(format!("{META}WatchEvent"), WATCH_EVENT.to_owned());
        all
    }

    /// Those with these names and all they refer to.
    pub(super) fn closure(&self, roots: BTreeSet<String>) -> BTreeSet<String> {
        let mut left: Vec<String> = roots.into_iter().collect();
        let mut known = BTreeSet::new();
        while let Some(name) = left.pop() {
            let line = self.lines.get(&name).unwrap_or_else(|| panic!("no definition of {name}"));
            if known.insert(name) {
                let references = line.split("\"$ref\":\"").skip(1);
                let references = references.filter_map(|rest| rest.split('"').next());
                left.extend(references.filter(|name| !known.contains(*name)).map(str::to_owned));
            }
        }
        known
    }

    /// A definition as a document has it.
    pub(super) fn of(&self, name: &str, form: Form) -> Value {
        let mut definition: Value =
            serde_json::from_str(&self.lines[name]).expect("what comes with this program is sound");
        if let Some(id) = type_of(name) {
            complete(&mut definition, id);
        }
        if let Some(kinds) = self.kinds.get(name) {
            definition["x-kubernetes-group-version-kind"] = kinds.clone();
        }
        // Types that JSON schemas have no word for.
        match (name, form) {
            (QUANTITY, Form::V3) => {
                definition["oneOf"] = json!([{"type": "string"}, {"type": "number"}]);
                drop(definition.as_object_mut().and_then(|own| own.remove("type")));
            }
            (INT_OR_STRING, _) => {
                drop(
                    definition
                        .as_object_mut()
                        .and_then(|own| own.remove("x-kubernetes-int-or-string")),
                );
                definition["format"] = "int-or-string".into();
                match form {
                    Form::V2 => definition["type"] = "string".into(),
                    Form::V3 => {
                        definition["oneOf"] = json!([{"type": "integer"}, {"type": "string"}])
                    }
                }
            }
            _ => {}
        }
        refer(&mut definition, form);
        definition
    }
}

/// For `x-kubernetes-group-version-kind`.
pub(super) fn extension((group, version, kind): Gvk<'_>) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// `io.k8s.api.core.v1.PodList`.
pub(super) fn list_name(resource: &Resource) -> String {
    name_of((resource.group, resource.version, resource.kind)) + "List"
}

/// Which kinds the definitions are of.
fn kinds() -> BTreeMap<String, Value> {
    let mut kinds = BTreeMap::new();
    let mut versions = BTreeSet::new();
    for resource in RESOURCES.iter() {
        let (group, version) = (resource.group, resource.version);
        versions.insert((group, version));
        let own = (group, version, resource.kind);
        for kind in resource.subresources.iter().filter_map(|sub| sub.kind).chain([own]) {
            kinds.insert(name_of(kind), json!([extension(kind)]));
        }
        let list = format!("{}List", resource.kind);
        kinds.insert(list_name(resource), json!([extension((group, version, &list))]));
    }
    for kind in ["DeleteOptions", "WatchEvent"] {
        let all = versions.iter().map(|(group, version)| extension((group, version, kind)));
        kinds.insert(format!("{META}{kind}"), all.collect());
    }
    for kind in ["APIGroup", "APIGroupList", "APIResourceList", "APIVersions", "Status"] {
        kinds.insert(format!("{META}{kind}"), json!([extension(("", "v1", kind))]));
    }
    kinds
}

pub(super) fn type_of(name: &str) -> Option<TypeId> {
    if let Some(name) = name.strip_prefix(META) {
        return SCHEMA.find("meta/v1", name);
    }
    let (group_version, name) = name.strip_prefix("io.k8s.api.")?.rsplit_once('.')?;
    SCHEMA.find(&group_version.replace('.', "/"), name)
}

/// How lists and maps are merged.
fn complete(definition: &mut Value, id: TypeId) {
    if SCHEMA.get(id).atomic {
        definition["x-kubernetes-map-type"] = "atomic".into();
    }
    let properties = definition.get_mut("properties").and_then(Value::as_object_mut);
    for (name, property) in properties.into_iter().flatten() {
        let (Some(field), Value::Object(property)) = (SCHEMA.field(id, name), property) else {
            continue;
        };
        complete_field(property, field);
    }
}

fn complete_field(property: &mut Map<String, Value>, field: &Field) {
    let mut set = |key: &str, value: Value| drop(property.insert(key.to_owned(), value));
    match (field.shape, &field.list) {
        (Shape::List, List::Set) => set("x-kubernetes-list-type", "set".into()),
        (Shape::List, List::Map(keys)) => {
            set("x-kubernetes-list-type", "map".into());
            set("x-kubernetes-list-map-keys", keys.iter().copied().collect());
        }
        (Shape::List, List::Atomic) if field.atomic => {
            set("x-kubernetes-list-type", "atomic".into())
        }
        (Shape::Map | Shape::Value | Shape::Pointer, _) if field.atomic => {
            set("x-kubernetes-map-type", "atomic".into());
        }
        _ => {}
    }
    let strategy = match (field.patch.merges, field.patch.retains_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => "",
    };
    if !strategy.is_empty() {
        set("x-kubernetes-patch-strategy", strategy.into());
    }
    if let Some(key) = field.patch.key {
        set("x-kubernetes-patch-merge-key", key.into());
    }
    if let (Some(default), Kind::String) = (field.default, field.kind) {
        set("default", default.into());
    }
}

/// References are where the document has its definitions. Version 3 has nothing beside a reference, so that one with a
/// description is a list of one; version 2 has no such lists.
fn refer(value: &mut Value, form: Form) {
    match value {
        Value::Object(object) => {
            if form == Form::V2
                && let Some(Value::Array(one)) = object.remove("allOf")
                && let Some(Value::Object(reference)) = one.into_iter().next()
            {
                object.extend(reference);
            }
            if let Some(Value::String(name)) = object.get_mut("$ref")
                && !name.starts_with('#')
            {
                *name = format!("{}{name}", form.prefix());
            }
            object.values_mut().for_each(|value| refer(value, form));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| refer(item, form)),
        _ => {}
    }
}

fn list(resource: &Resource) -> Value {
    let name = name_of((resource.group, resource.version, resource.kind));
    json!({
        "description": format!("A list of objects of the kind {}.", resource.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"description": "Group and version of this list.", "type": "string"},
            "kind": {"description": "What it is a list of.", "type": "string"},
            "items": {"description": "In the order of their names.", "type": "array", "items": {"$ref": name}},
            "metadata": {
                "description": "How new it is, and how it goes on.",
                "allOf": [{"$ref": format!("{META}ListMeta")}],
            },
        },
    })
}

const PATCH: &str =
    r#"{"description":"What is to be changed, in one of the forms of patches.","type":"object"}"#;
const WATCH_EVENT: &str = r#"{"description":"One thing that happened to an object.","type":"object",
"required":["type","object"],"properties":{
"type":{"description":"ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.","type":"string"},
"object":{"description":"As it is now, or was last; of an error the Status.",
"allOf":[{"$ref":"io.k8s.apimachinery.pkg.runtime.RawExtension"}]}}}"#;
