//! Bodies in JSON, read strictly: every unknown field, every duplicate and the first value of a wrong kind are told
//! with their paths, and what is left has only what the type knows.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::schema::{Field, Kind, SCHEMA, Shape, TypeId};

/// What keeps a body from being read at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON.
    #[error("the body is not JSON")]
    Syntax(#[source] serde_json::Error),
    /// Not YAML, or more than can be taken in.
    #[error("the body is not YAML")]
    Yaml(#[source] serde_yaml::Error),
    /// Not an object.
    #[error("the body is not an object but {found}")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// A value of another kind.
    #[error("cannot unmarshal {found} into {path} of type {expected}")]
    Kind {
        /// Where.
        path: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
}

/// A body.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// What the type knows of it.
    pub object: Map<String, Value>,
    /// What a strict reader refuses, as the reference words it: `unknown field "spec.a"`, `duplicate field "spec.b"`.
    pub findings: Vec<String>,
}

/// Any JSON, and its duplicate fields.
///
/// # Errors
/// It is not JSON, or not an object.
pub fn parse(bytes: &[u8]) -> Result<Body, Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    // What is there in full cannot come to more than a body may be.
    let (value, findings) = values(&mut reader, usize::MAX).map_err(Error::Syntax)?;
    reader.end().map_err(Error::Syntax)?;
    body(value, findings)
}

/// Any value with its duplicate fields, if it comes to no more than `limit` bytes in memory.
pub(crate) fn values<'de, D: Deserializer<'de>>(
    from: D,
    limit: usize,
) -> Result<(Value, Vec<String>), D::Error> {
    let mut reading = Reading { findings: Vec::new(), left: limit };
    let value = Node { path: &Path::Root, reading: &mut reading }.deserialize(from)?;
    Ok((value, reading.findings))
}

pub(crate) fn body(value: Value, findings: Vec<String>) -> Result<Body, Error> {
    match value {
        Value::Object(object) => Ok(Body { object, findings }),
        other => Err(Error::NotAnObject { found: named(&other) }),
    }
}

/// An object of a type.
///
/// # Errors
/// As [`parse`], and [`Error::Kind`].
pub fn read(bytes: &[u8], of: TypeId) -> Result<Body, Error> {
    let mut body = parse(bytes)?;
    check(&mut body, of)?;
    Ok(body)
}

/// Removes what the type does not know, and nulls, which mean that a field is not given.
///
/// # Errors
/// [`Error::Kind`].
pub fn check(body: &mut Body, of: TypeId) -> Result<(), Error> {
    // Of every object, and not of its message, unless it has some of its own.
    let own = ["kind", "apiVersion"].into_iter().filter(|name| SCHEMA.field(of, name).is_none());
    let own: Vec<_> = own.map(|name| (name, body.object.remove(name))).collect();
    check_object(&mut body.object, of, &Path::Root, &mut body.findings)?;
    for (name, value) in own {
        match value {
            Some(value @ Value::String(_)) => drop(body.object.insert(name.to_owned(), value)),
            Some(Value::Null) | None => {}
            Some(other) => return Err(wrong(&Path::Key(&Path::Root, name), "string", &other)),
        }
    }
    Ok(())
}

fn check_object(
    object: &mut Map<String, Value>,
    of: TypeId,
    path: &Path<'_>,
    findings: &mut Vec<String>,
) -> Result<(), Error> {
    let mut trouble = Ok(());
    object.retain(|name, value| {
        let here = Path::Key(path, name);
        match SCHEMA.field(of, name) {
            // The claims of a stateful set are whole objects, which say what they are.
            None if value.is_string()
                && matches!(name.as_str(), "kind" | "apiVersion")
                && SCHEMA.get(of).name == "PersistentVolumeClaim" =>
            {
                false
            }
            None => {
                findings.push(format!("unknown field {:?}", here.to_string()));
                false
            }
            Some(_) if value.is_null() => false,
            Some(field) => {
                if trouble.is_ok() {
                    trouble = check_field(value, field, &here, findings);
                }
                true
            }
        }
    });
    trouble
}

fn check_field(
    value: &mut Value,
    field: &Field,
    path: &Path<'_>,
    findings: &mut Vec<String>,
) -> Result<(), Error> {
    match (field.shape, value) {
        (Shape::List, Value::Array(items)) => {
            items.iter_mut().enumerate().try_for_each(|(index, item)| {
                check_value(item, field.kind, &Path::Index(path, index), findings)
            })
        }
        (Shape::List, other) => Err(wrong(path, "array", other)),
        (Shape::Map, Value::Object(items)) => items.iter_mut().try_for_each(|(key, item)| {
            check_value(item, field.kind, &Path::Key(path, key), findings)
        }),
        (Shape::Map, other) => Err(wrong(path, "object", other)),
        (Shape::Value | Shape::Pointer | Shape::Inline, value) => {
            check_value(value, field.kind, path, findings)
        }
    }
}

fn check_value(
    value: &mut Value,
    kind: Kind,
    path: &Path<'_>,
    findings: &mut Vec<String>,
) -> Result<(), Error> {
    match (kind, &mut *value) {
        (Kind::Message(of), Value::Object(object)) => check_object(object, of, path, findings),
        (Kind::Json, _)
        | (Kind::String | Kind::IntOrString | Kind::Quantity, Value::String(_))
        | (Kind::Bool, Value::Bool(_)) => Ok(()),
        (Kind::Strings, Value::Array(items)) => match items.iter().find(|item| !item.is_string()) {
            Some(other) => Err(wrong(path, "string", other)),
            None => Ok(()),
        },
        (Kind::Int64, Value::Number(number)) if number.is_i64() => Ok(()),
        (Kind::Int32 | Kind::IntOrString, Value::Number(number))
            if number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) =>
        {
            Ok(())
        }
        // A bare number is a quantity as it is written.
        (Kind::Quantity, Value::Number(number)) => {
            *value = Value::String(number.to_string());
            Ok(())
        }
        (Kind::Bytes, Value::String(text)) => match STANDARD.decode(text) {
            Ok(_) => Ok(()),
            Err(_) => Err(wrong(path, expected(kind), value)),
        },
        (Kind::Time | Kind::MicroTime, Value::String(text)) => match crate::protobuf::time_of(text)
        {
            Some(_) => Ok(()),
            None => Err(wrong(path, "an RFC 3339 time", value)),
        },
        // An item of a list or map that is null is empty, as in Go.
        (_, Value::Null) => {
            *value = empty(kind);
            Ok(())
        }
        (kind, other) => Err(wrong(path, expected(kind), other)),
    }
}

/// What Go makes of nothing.
pub(crate) fn empty(kind: Kind) -> Value {
    match kind {
        Kind::String | Kind::Bytes => Value::String(String::new()),
        Kind::Quantity => Value::String("0".to_owned()),
        Kind::Int32 | Kind::Int64 | Kind::IntOrString => Value::Number(Number::from(0)),
        Kind::Bool => Value::Bool(false),
        Kind::Time | Kind::MicroTime | Kind::Json => Value::Null,
        Kind::Strings => Value::Array(Vec::new()),
        Kind::Message(_) => Value::Object(Map::new()),
    }
}

fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::String | Kind::Time | Kind::MicroTime => "string",
        Kind::Bytes => "base64 string",
        Kind::Quantity => "quantity",
        Kind::IntOrString => "int32 or string",
        Kind::Int32 => "int32",
        Kind::Int64 => "int64",
        Kind::Bool => "bool",
        Kind::Strings => "array of strings",
        Kind::Json => "object",
        Kind::Message(of) => SCHEMA.get(of).name,
    }
}

fn wrong(path: &Path<'_>, expected: &str, found: &Value) -> Error {
    let found = match found {
        Value::Number(number) => format!("number {number}"),
        other => named(other).to_owned(),
    };
    Error::Kind { path: path.to_string(), expected: expected.to_owned(), found }
}

fn named(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Where in a body: `spec.containers[0].name`.
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, name) => f.write_str(name),
            Self::Key(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Reads a value and notes the duplicates in it. The last one counts, as in the reference.
struct Node<'a> {
    path: &'a Path<'a>,
    reading: &'a mut Reading,
}

struct Reading {
    findings: Vec<String>,
    /// How many more bytes the values may come to.
    left: usize,
}

impl Node<'_> {
    /// A value takes its place, and the bytes of its text.
    fn spend<E: serde::de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        let left = self.reading.left.checked_sub(bytes + size_of::<Value>());
        self.reading.left = left.ok_or_else(|| E::custom("its values come to too much"))?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: serde::de::Error>(mut self) -> Result<Value, E> {
        self.spend(0)?;
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(mut self, value: bool) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_i64<E: serde::de::Error>(mut self, value: i64) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: serde::de::Error>(mut self, value: u64) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(mut self, value: f64) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_str<E: serde::de::Error>(mut self, value: &str) -> Result<Value, E> {
        self.spend(value.len())?;
        Ok(value.into())
    }

    fn visit_string<E: serde::de::Error>(mut self, value: String) -> Result<Value, E> {
        self.spend(value.len())?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut list = Vec::new();
        loop {
            let path = Path::Index(self.path, list.len());
            match items.next_element_seed(Node { path: &path, reading: self.reading })? {
                Some(item) => list.push(item),
                None => return Ok(list.into()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let path = Path::Key(self.path, &name);
            if object.contains_key(&name) {
                self.reading.findings.push(format!("duplicate field {:?}", path.to_string()));
            }
            self.spend::<A::Error>(name.len())?;
            let value = fields.next_value_seed(Node { path: &path, reading: self.reading })?;
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(text: &str) -> Result<Body, Error> {
        read(text.as_bytes(), SCHEMA.find("core/v1", "Pod").expect("pods"))
    }

    #[test]
    fn unknown_and_duplicate_fields_are_all_told_with_their_paths() {
        let body = pod(
            r#"{"kind": "Pod", "spec": {"containers": [{"name": "a", "name": "b", "image": null, "Image": "x"}], "x": {"y": 1, "y": 2}}}"#,
        )
        .expect("it can be read");
        assert_eq!(
            body.findings,
            [
                r#"duplicate field "spec.containers[0].name""#,
                r#"duplicate field "spec.x.y""#,
                r#"unknown field "spec.containers[0].Image""#,
                r#"unknown field "spec.x""#,
            ]
        );
        let left = json!({"kind": "Pod", "spec": {"containers": [{"name": "b"}]}});
        assert_eq!(Value::from(body.object), left, "the last of the duplicates, and no nulls");
    }

    #[test]
    fn claims_of_a_stateful_set_may_say_what_they_are() {
        let set = SCHEMA.find("apps/v1", "StatefulSet").expect("stateful sets");
        let text = br#"{"spec": {"volumeClaimTemplates": [{"kind": "PersistentVolumeClaim", "apiVersion": "v1", "Kind": ""}]}}"#;
        let body = read(text, set).expect("it can be read");
        assert_eq!(body.findings, [r#"unknown field "spec.volumeClaimTemplates[0].Kind""#]);
        assert_eq!(Value::from(body.object), json!({"spec": {"volumeClaimTemplates": [{}]}}));
    }

    #[test]
    fn a_value_of_another_kind_is_refused_with_its_path() {
        for (text, said) in [
            (
                r#"{"spec": {"containers": {}}}"#,
                "cannot unmarshal object into spec.containers of type array",
            ),
            (
                r#"{"spec": {"containers": [{"name": 1}]}}"#,
                "cannot unmarshal number 1 into spec.containers[0].name of type string",
            ),
            (
                r#"{"spec": {"terminationGracePeriodSeconds": 1.5}}"#,
                "cannot unmarshal number 1.5 into spec.terminationGracePeriodSeconds of type int64",
            ),
            (
                r#"{"spec": {"priority": 2147483648}}"#,
                "cannot unmarshal number 2147483648 into spec.priority of type int32",
            ),
            (
                r#"{"metadata": {"creationTimestamp": "yesterday"}}"#,
                "cannot unmarshal string into metadata.creationTimestamp of type an RFC 3339 time",
            ),
            (
                r#"{"metadata": {"labels": {"a": true}}}"#,
                "cannot unmarshal bool into metadata.labels.a of type string",
            ),
            (
                r#"{"metadata": {"managedFields": [{"time": "2026-02-30T00:00:00Z"}]}}"#,
                "cannot unmarshal string into metadata.managedFields[0].time of type an RFC 3339 time",
            ),
            (r#"{"kind": 7}"#, "cannot unmarshal number 7 into kind of type string"),
            ("[]", "the body is not an object but array"),
            ("{", "the body is not JSON"),
            ("{} {}", "the body is not JSON"),
        ] {
            assert_eq!(pod(text).expect_err(text).to_string(), said);
        }
        let deep = "[".repeat(10_000);
        assert!(matches!(pod(&deep), Err(Error::Syntax(_))));
    }

    #[test]
    fn quantities_may_be_numbers_and_ports_either() {
        let body = pod(
            r#"{"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": 0.5, "memory": "1Gi"}},
                "livenessProbe": {"httpGet": {"port": 80}}, "readinessProbe": {"httpGet": {"port": "http"}}}]}}"#,
        )
        .expect("it is sound");
        assert!(body.findings.is_empty());
        assert_eq!(
            body.object["spec"]["containers"][0]["resources"]["limits"],
            json!({"cpu": "0.5", "memory": "1Gi"})
        );
    }
}
