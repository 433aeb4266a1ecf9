//! Objects as they are in the store: JSON, or the protobuf of the reference where its etcd is shared. Either is read.

use bytes::Bytes;
use serde_json::Value;

use crate::object::{Object, metadata};
use crate::resources::Resource;
use crate::schema::SCHEMA;
use crate::{json, protobuf};

/// How objects are written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Media {
    /// As text: quicker for us, since that is what most clients ask for.
    #[default]
    Json,
    /// As kube-apiserver writes them.
    Protobuf,
}

/// A value of the store is no object.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Json(#[from] json::Error),
    #[error(transparent)]
    Protobuf(#[from] protobuf::Error),
    #[error("it is a {found}")]
    Other { found: String },
}

/// The value of an object of a resource in the form in which it is stored. Its revision is the store's to tell, so it is
/// taken from the object, which stays as it is else.
pub(crate) fn encode(resource: &Resource, object: &mut Object, media: Media) -> Bytes {
    let metadata = metadata(object);
    metadata.remove("resourceVersion");
    metadata.remove("selfLink");
    match media {
        Media::Json => {
            object.insert("kind".to_owned(), resource.kind.into());
            object.insert("apiVersion".to_owned(), resource.api_version().into());
            // JSON can be written as JSON.
            let value = serde_json::to_vec(object).unwrap_or_default();
            object.remove("kind");
            object.remove("apiVersion");
            value.into()
        }
        Media::Protobuf => {
            let raw = protobuf::encode(object, resource.schema);
            protobuf::seal(&resource.api_version(), resource.kind, &raw).into()
        }
    }
}

/// The object of a value, with neither kind nor version: where it was tells them.
pub(crate) fn decode(resource: &Resource, value: &[u8]) -> Result<Object, Error> {
    if !value.starts_with(protobuf::MAGIC) {
        let mut object = json::parse(value)?.object;
        let kind = object.remove("kind");
        object.remove("apiVersion");
        return match kind.as_ref().and_then(Value::as_str) {
            Some(kind) if kind == resource.kind => Ok(object),
            other => Err(Error::Other { found: other.unwrap_or("thing of no kind").to_owned() }),
        };
    }
    let sealed = protobuf::open(value)?;
    if sealed.kind == resource.kind && sealed.api_version == resource.api_version() {
        return Ok(protobuf::decode(sealed.raw, resource.schema)?);
    }
    // Of the same group in another version whose fields are the same.
    let older = sealed.api_version.split('/').next_back().unwrap_or_default();
    let group = resource.group.split('.').next().unwrap_or_default();
    let group = if group.is_empty() { "core" } else { group };
    match SCHEMA.find(&format!("{group}/{older}"), &sealed.kind) {
        Some(of) if sealed.kind == resource.kind => Ok(protobuf::decode(sealed.raw, of)?),
        _ => Err(Error::Other { found: format!("{} of {}", sealed.kind, sealed.api_version) }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::find;

    #[test]
    fn objects_come_back_as_they_were_in_either_form() {
        let resource = find("", "v1", "configmaps").expect("configmaps");
        let Value::Object(object) = json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "u"},
            "data": {"k": "v"},
        }) else {
            unreachable!("it is an object");
        };
        for media in [Media::Json, Media::Protobuf] {
            let mut given = object.clone();
            metadata(&mut given).insert("resourceVersion".to_owned(), "7".into());
            let value = encode(resource, &mut given, media);
            assert_eq!(given, object);
            assert_eq!(value.starts_with(protobuf::MAGIC), media == Media::Protobuf);
            let mut read = decode(resource, &value).expect("it is one");
            // In protobuf what is empty is there.
            metadata(&mut read).retain(|_, value| *value != json!("") && !value.is_null());
            assert_eq!(read, object);
        }
        let secret = br#"{"kind":"Secret","metadata":{}}"#;
        assert_eq!(decode(resource, secret).expect_err("a secret").to_string(), "it is a Secret");
    }
}
