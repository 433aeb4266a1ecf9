//! Objects with every field filled.

use orlop_apiserver::protobuf;
use orlop_apiserver::schema::{Field, Kind, SCHEMA, Shape, TypeId};
use serde_json::{Map, Value, json};

/// An object of a type with every field filled, so deep.
pub(crate) fn filled(of: TypeId, depth: usize, salt: &mut usize) -> Map<String, Value> {
    let mut object = Map::new();
    if depth == 0 {
        return object;
    }
    for field in &SCHEMA.get(of).fields {
        let mut one = || value(field, depth, salt);
        let value = match field.shape {
            Shape::Inline => match field.kind {
                Kind::Message(inner) => {
                    object.extend(filled(inner, depth, salt));
                    continue;
                }
                _ => continue,
            },
            Shape::List => json!([one(), one()]),
            Shape::Map => json!({"a/b": one(), "c": one()}),
            Shape::Value | Shape::Pointer => one(),
        };
        object.insert(field.json.to_owned(), value);
    }
    complete(&mut object, of);
    object
}

/// What Go writes even when it is empty must be there to be the same.
fn complete(object: &mut Map<String, Value>, of: TypeId) {
    for field in &SCHEMA.get(of).fields {
        if let (Shape::Value, Kind::Message(inner)) = (field.shape, field.kind) {
            let value = object.entry(field.json).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(object) = value {
                empties(object, inner);
            }
        } else if let (Shape::Inline, Kind::Message(inner)) = (field.shape, field.kind) {
            complete(object, inner);
        }
    }
}

/// Fills in what is written of an empty message.
fn empties(object: &mut Map<String, Value>, of: TypeId) {
    let bytes = protobuf::encode(object, of);
    if let Ok(written) = protobuf::decode(&bytes, of) {
        *object = written;
    }
}

fn value(field: &Field, depth: usize, salt: &mut usize) -> Value {
    *salt = salt.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let number = *salt >> 33;
    match field.kind {
        Kind::String => format!("text {number}").into(),
        Kind::Int32 => (i32::try_from(number % 1_000_000).unwrap_or(1) - 500_000).into(),
        Kind::Int64 => (i64::try_from(number).unwrap_or(1) * 4_000_000_007 + 1).into(),
        Kind::Bool => true.into(),
        Kind::Bytes => ["AA==", "/+8="][number % 2].into(),
        Kind::Time => format!("20{:02}-02-03T04:05:06Z", number % 80).into(),
        Kind::MicroTime => {
            format!("20{:02}-02-03T04:05:06.{:06}Z", number % 80, number % 1_000_000).into()
        }
        Kind::Quantity => format!("{}Mi", number % 1000).into(),
        Kind::IntOrString if number.is_multiple_of(2) => "25%".into(),
        Kind::IntOrString => 8080.into(),
        Kind::Json => {
            json!({"f:spec": {"k:{\"name\":\"a\"}": {".": {}}}, "z": [1, "two", null, 3.5]})
        }
        Kind::Strings => json!(["a", "", "b"]),
        Kind::Message(of) if depth > 1 => filled(of, depth - 1, salt).into(),
        Kind::Message(of) => {
            let mut object = Map::new();
            empties(&mut object, of);
            object.into()
        }
    }
}
