//! How an answer is written: in JSON, YAML or protobuf; objects whole, as rows of a table, or their metadata alone.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::body::{Body, Items};
use crate::encoding::{Encoding, Media, View};
use crate::object::Object;
use crate::resources::Resource;
use crate::schema::SCHEMA;
use crate::storage::cache::Entry;
use crate::{protobuf, table, versions, yaml};

/// The form of an answer about objects of a resource.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) resource: &'static Resource,
    pub(crate) media: Media,
    /// What rows of tables have besides their cells.
    pub(crate) include: table::Include,
}

/// What is told of a list besides its items.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListMeta {
    pub(crate) revision: u64,
    pub(crate) token: Option<String>,
    pub(crate) remaining: Option<usize>,
}

impl ListMeta {
    fn value(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision.to_string()});
        if let Some(token) = &self.token {
            meta["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
        meta
    }
}

impl Form {
    /// Is what the cache has what is sent?
    pub(crate) fn is_plain(&self) -> bool {
        let Media { encoding, view, .. } = self.media;
        encoding == Encoding::Json
            && view == View::Whole
            && std::ptr::eq(self.resource, self.resource.stored())
    }

    /// An object in the form of the cache, with its kind and version.
    fn splice(&self, body: &[u8]) -> Vec<u8> {
        let Resource { kind, .. } = self.resource;
        let version = self.resource.api_version();
        let mut out = Vec::with_capacity(body.len() + kind.len() + version.len() + 32);
        out.extend_from_slice(b"{\"kind\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"apiVersion\":\"");
        out.extend_from_slice(version.as_bytes());
        out.extend_from_slice(b"\",");
        out.extend_from_slice(&body[1..]);
        out
    }

    /// An event of a watch about an object in the form of the cache.
    pub(crate) fn line(&self, kind: &str, body: &[u8]) -> Bytes {
        let mut out = format!("{{\"type\":\"{kind}\",\"object\":").into_bytes();
        out.extend_from_slice(&self.splice(body));
        out.extend_from_slice(b"}\n");
        out.into()
    }

    /// A stored object as it is asked for. `heads`: a table tells its columns.
    pub(crate) fn one(&self, object: Object, heads: bool) -> Value {
        let object = versions::present(self.resource, object);
        match self.media.view {
            View::Whole | View::Discovery(_) => Value::Object(object),
            View::Metadata(version) => table::partial(&object, version),
            View::Table(version) => {
                let meta = table::metadata_of(&object);
                self.table([&object], meta, version, heads)
            }
        }
    }

    fn table<'o>(
        &self,
        objects: impl IntoIterator<Item = &'o Object>,
        meta: Value,
        version: &'static str,
        heads: bool,
    ) -> Value {
        let form = table::Form { version, include: self.include, heads };
        table::table(self.resource, objects, meta, form, OffsetDateTime::now_utc())
    }

    /// An event of a watch.
    pub(crate) fn frame(&self, kind: &str, object: Value) -> Bytes {
        if self.media.encoding != Encoding::Protobuf {
            let mut line = json!({"type": kind, "object": object}).to_string();
            line.push('\n');
            return line.into();
        }
        let object = self.encode(&object);
        let mut raw = Vec::new();
        protobuf::put_bytes(&mut raw, 1, &object);
        let mut event = Vec::new();
        protobuf::put_bytes(&mut event, 1, kind.as_bytes());
        protobuf::put_bytes(&mut event, 2, &raw);
        let length = u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes();
        [&length[..], &event].concat().into()
    }

    /// Any object of a kind of its own: of this resource, a `Status`, a review.
    pub(crate) fn encode(&self, object: &Value) -> Vec<u8> {
        encode(self.media.encoding, object)
    }

    /// One object.
    pub(crate) fn object(&self, entry: &Entry, gzip: bool) -> Body {
        let bytes = if self.is_plain() {
            self.splice(&entry.body)
        } else {
            self.encode(&self.one(entry.object(), true))
        };
        packed(bytes, gzip)
    }

    /// A list of them.
    pub(crate) fn list(&self, entries: Vec<Arc<Entry>>, meta: &ListMeta, gzip: bool) -> Body {
        let (kind, version) = (self.resource.kind, self.resource.api_version());
        if self.is_plain() {
            let meta = meta.value();
            let head = format!(
                "{{\"kind\":\"{kind}List\",\"apiVersion\":\"{version}\",\"metadata\":{meta},\"items\":["
            );
            return Body::Items(Box::new(Items::new(head.into(), entries, b"]}", gzip)));
        }
        let objects = entries.iter().map(|entry| versions::present(self.resource, entry.object()));
        if let (Encoding::Protobuf, View::Whole) = (self.media.encoding, self.media.view) {
            let mut raw = Vec::new();
            let of_list = Object::from_iter([("metadata".to_owned(), meta.value())]);
            protobuf::put_bytes(&mut raw, 1, &part(&of_list, "ListMeta"));
            for object in objects {
                let item = protobuf::encode(&object, self.resource.schema);
                protobuf::put_bytes(&mut raw, 2, &item);
            }
            let bytes = protobuf::seal(&version, &format!("{kind}List"), &raw);
            return packed(bytes, gzip);
        }
        let objects: Vec<Object> = objects.collect();
        let list = match self.media.view {
            View::Table(version) => self.table(&objects, meta.value(), version, true),
            View::Metadata(version) => table::partial_list(&objects, meta.value(), version),
            View::Whole | View::Discovery(_) => {
                let items = objects.into_iter().map(|mut object: Map<String, Value>| {
                    object.remove("kind");
                    object.remove("apiVersion");
                    Value::Object(object)
                });
                let (kind, items) = (format!("{kind}List"), items.collect::<Vec<Value>>());
                json!({"kind": kind, "apiVersion": version, "metadata": meta.value(), "items": items})
            }
        };
        let bytes = self.encode(&list);
        packed(bytes, gzip)
    }
}

fn packed(bytes: Vec<u8>, gzip: bool) -> Body {
    if gzip { crate::encoding::gzip(&bytes).into() } else { bytes.into() }
}

/// An object of any kind that has a message, or that is not asked for as one.
pub(crate) fn encode(encoding: Encoding, object: &Value) -> Vec<u8> {
    match (encoding, object) {
        (Encoding::Protobuf, Value::Object(object)) => message(object),
        (Encoding::Yaml, object) => yaml::write(object).into_bytes(),
        (_, object) => object.to_string().into_bytes(),
    }
}

fn message(object: &Object) -> Vec<u8> {
    let kind = crate::object::text(object, "/kind");
    let version = crate::object::text(object, "/apiVersion");
    let raw = match (kind, schema(version, kind)) {
        ("PartialObjectMetadata", _) => partial(object),
        ("PartialObjectMetadataList", _) => {
            let mut raw = Vec::new();
            protobuf::put_bytes(&mut raw, 1, &part(object, "ListMeta"));
            for item in crate::object::items(object, "/items").filter_map(Value::as_object) {
                protobuf::put_bytes(&mut raw, 2, &partial(item));
            }
            raw
        }
        (_, Some(of)) => protobuf::encode(object, of),
        (_, None) => Vec::new(),
    };
    protobuf::seal(version, kind, &raw)
}

/// The message of a `PartialObjectMetadata`, which has but one field.
fn partial(object: &Object) -> Vec<u8> {
    let mut raw = Vec::new();
    protobuf::put_bytes(&mut raw, 1, &part(object, "ObjectMeta"));
    raw
}

/// The message of an object's metadata, of this type of `meta/v1`.
fn part(object: &Object, of: &str) -> Vec<u8> {
    let metadata = object.get("metadata").and_then(Value::as_object);
    let of = SCHEMA.find("meta/v1", of);
    metadata.zip(of).map(|(metadata, of)| protobuf::encode(metadata, of)).unwrap_or_default()
}

/// The type of a kind: of a group's own place, or of those that all groups share.
pub(crate) fn schema(api_version: &str, kind: &str) -> Option<crate::schema::TypeId> {
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let group = group.split('.').next().unwrap_or_default();
    SCHEMA
        .find(&format!("{group}/{version}"), kind)
        .or_else(|| SCHEMA.find("meta/v1", kind))
        .filter(|_| !kind.is_empty())
}
