//! How objects look in `kubectl get`: a row of cells per object under the columns of its kind, computed for each request
//! (`Table` of `meta.k8s.io`), and objects without anything but their metadata (`PartialObjectMetadata`).
//!
//! - [`columns`], [`row`]: what is told of each kind, from the one list in `kinds`; `cells` and `pod` compute it.
//! - [`table`], [`partial`]: the bodies, for lists and single objects; an event of a watch has a table of one row.

mod cells;
mod kinds;
mod pod;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::object::{Object, at, text};
use crate::resources::Resource;

/// A column of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Column {
    /// Its head.
    pub name: &'static str,
    /// Of its cells: `string`, `integer`, `boolean`, `date`.
    pub kind: &'static str,
    /// `name` of the column that has the objects' names; else empty.
    pub format: &'static str,
    /// For people.
    pub description: &'static str,
    /// Above zero it is shown only when all are (`-o wide`).
    pub priority: i32,
}

/// What a table says of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// One for each column.
    pub cells: Vec<Value>,
    /// The object is done with: `Succeeded`, `Failed`. Clients may leave it out.
    pub completed: Option<&'static str>,
}

/// What of each object stands beside its cells (the parameter `includeObject`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// The value of the parameter; nothing is the default.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            "None" => Some(Self::None),
            "" | "Metadata" => Some(Self::Metadata),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// What a table looks like, whatever is in it.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Of `meta.k8s.io`: `v1`, `v1beta1`.
    pub version: &'static str,
    /// Beside the cells.
    pub include: Include,
    /// Are the columns told? Not again in the later events of a watch.
    pub heads: bool,
}

/// The columns of a resource, those that are always shown first or not.
#[must_use]
pub fn columns(resource: &Resource) -> &'static [Column] {
    kinds::of(resource).map_or(kinds::PLAIN, |kind| kind.columns)
}

/// An object under the columns of its resource.
#[must_use]
pub fn row(resource: &Resource, object: &Object, now: OffsetDateTime) -> Row {
    let cells = cells::Cells { object, now };
    let completed = match (resource.group, resource.plural, text(object, "/status/phase")) {
        ("", "pods", "Succeeded") => Some("Succeeded"),
        ("", "pods", "Failed") => Some("Failed"),
        _ => None,
    };
    let fill = match kinds::of(resource) {
        Some(kind) => kind.cells,
        None => cells::plain,
    };
    Row { cells: fill(&cells), completed }
}

/// A table of these objects. `metadata` is the list's (`resourceVersion`, `continue`, `remainingItemCount`); for a
/// single object, an event or a bookmark [`metadata_of`] has it.
#[must_use]
pub fn table<'a>(
    resource: &Resource,
    objects: impl IntoIterator<Item = &'a Object>,
    metadata: Value,
    form: Form,
    now: OffsetDateTime,
) -> Value {
    let rows = objects.into_iter().map(|object| {
        let Row { cells, completed } = row(resource, object, now);
        let mut row = json!({"cells": cells, "object": beside(resource, object, form)});
        if let Some(reason) = completed {
            let message = format!("The pod has {}.", reason.to_lowercase());
            row["conditions"] = json!([
                {"type": "Completed", "status": "True", "reason": reason, "message": message}
            ]);
        }
        row
    });
    let rows: Vec<_> = rows.collect();
    let heads = columns(resource).iter().filter(|_| form.heads).map(|column| {
        json!({
            "name": column.name,
            "type": column.kind,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        })
    });
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{}", form.version),
        "metadata": metadata,
        "columnDefinitions": heads.collect::<Vec<_>>(),
        "rows": rows,
    })
}

/// What the metadata of a table of this one object is.
#[must_use]
pub fn metadata_of(object: &Object) -> Value {
    json!({"resourceVersion": text(object, "/metadata/resourceVersion")})
}

fn beside(resource: &Resource, object: &Object, form: Form) -> Value {
    match form.include {
        Include::None => Value::Null,
        Include::Metadata => partial(object, form.version),
        Include::Object => {
            let mut whole = object.clone();
            whole.insert("kind".to_owned(), resource.kind.into());
            whole.insert("apiVersion".to_owned(), resource.api_version().into());
            whole.into()
        }
    }
}

/// An object as `PartialObjectMetadata` of `meta.k8s.io/{version}`.
#[must_use]
pub fn partial(object: &Object, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": at(object, "/metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// Objects as `PartialObjectMetadataList`; `metadata` is the list's.
#[must_use]
pub fn partial_list<'a>(
    objects: impl IntoIterator<Item = &'a Object>,
    metadata: Value,
    version: &str,
) -> Value {
    let items: Vec<_> = objects.into_iter().map(|object| partial(object, version)).collect();
    json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata,
        "items": items,
    })
}
