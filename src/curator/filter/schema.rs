//! The messages a filter may look into, as the interface describes them: what `node` has, and everything in it.
//!
//! A message is its bytes on the wire, which are read as far as an expression selects: proto3 writes no field that has
//! its default value, so that a field is there, in the sense of `has()`, when it is in the bytes.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use bytes::{Buf, Bytes};
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_types::field_descriptor_proto::{Label, Type as Scalar};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};
use time::OffsetDateTime;

use super::value::{Fault, Value};

/// What a filter's variable `node` is.
const NODE: &str = "metropolis.proto.api.Node";
const DURATION: &str = "google.protobuf.Duration";
const TIMESTAMP: &str = "google.protobuf.Timestamp";
const NANOS: i64 = 1_000_000_000;

/// Where a message is in [`Schema::messages`].
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Index(usize);

/// All that can be reached from a node.
#[derive(Debug)]
pub(super) struct Schema {
    messages: Vec<Described>,
    /// Values of enumerations and names of types, by every name they have.
    constants: HashMap<String, Value>,
}

#[derive(Debug)]
struct Described {
    name: Arc<str>,
    fields: Vec<Field>,
}

#[derive(Clone, Debug)]
pub(super) struct Field {
    name: String,
    number: u32,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Bool,
    Int,
    Uint,
    Text,
    Bytes,
    Duration,
    Timestamp,
    Message(Index),
}

pub(super) static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(orlop_proto::DESCRIPTORS)
        .expect("the descriptors that this program was built with");
    Schema::of(&set)
});

impl Schema {
    fn of(set: &FileDescriptorSet) -> Self {
        let (mut messages, mut enums) = (HashMap::new(), HashMap::new());
        for file in &set.file {
            for message in &file.message_type {
                describe(file.package(), message, &mut messages, &mut enums);
            }
            for each in &file.enum_type {
                enums.insert(format!("{}.{}", file.package(), each.name()), each);
            }
        }
        let mut schema = Self { messages: Vec::new(), constants: HashMap::new() };
        for name in ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "type"]
            .into_iter()
            .chain(["null_type", DURATION, TIMESTAMP])
        {
            schema.constants.insert(name.to_owned(), Value::Type(name.into()));
        }
        schema.reach(NODE, &messages, &enums);
        schema
    }

    /// Where a message is; it is added, with all it holds, if it is new.
    fn reach(
        &mut self,
        name: &str,
        messages: &HashMap<String, &DescriptorProto>,
        enums: &HashMap<String, &EnumDescriptorProto>,
    ) -> Index {
        if let Some(known) = self.messages.iter().position(|known| &*known.name == name) {
            return Index(known);
        }
        let index = self.messages.len();
        self.messages.push(Described { name: name.into(), fields: Vec::new() });
        self.constants.insert(name.to_owned(), Value::Type(name.into()));
        let mut fields = Vec::new();
        for field in messages.get(name).into_iter().flat_map(|message| &message.field) {
            let of = field.type_name().trim_start_matches('.');
            let kind = match field.r#type() {
                Scalar::Bool => Kind::Bool,
                Scalar::Int32 | Scalar::Int64 => Kind::Int,
                Scalar::Enum => {
                    self.add_constants(of, enums);
                    Kind::Int
                }
                Scalar::Uint32 | Scalar::Uint64 => Kind::Uint,
                Scalar::String => Kind::Text,
                Scalar::Bytes => Kind::Bytes,
                Scalar::Message if of == DURATION => Kind::Duration,
                Scalar::Message if of == TIMESTAMP => Kind::Timestamp,
                Scalar::Message => Kind::Message(self.reach(of, messages, enums)),
                // A test sees to it that a node has nothing of these.
                Scalar::Double
                | Scalar::Float
                | Scalar::Fixed32
                | Scalar::Fixed64
                | Scalar::Group
                | Scalar::Sfixed32
                | Scalar::Sfixed64
                | Scalar::Sint32
                | Scalar::Sint64 => continue,
            };
            fields.push(Field {
                name: field.name().to_owned(),
                number: field.number().unsigned_abs(),
                kind,
                repeated: field.label() == Label::Repeated,
            });
        }
        self.messages[index].fields = fields;
        Index(index)
    }

    /// By the bare name, as the seed system has it, and by the whole one.
    fn add_constants(&mut self, name: &str, enums: &HashMap<String, &EnumDescriptorProto>) {
        for value in enums.get(name).into_iter().flat_map(|each| &each.value) {
            let number = Value::Int(value.number().into());
            self.constants.insert(value.name().to_owned(), number.clone());
            self.constants.insert(format!("{name}.{}", value.name()), number);
        }
    }

    pub(super) fn constant(&self, name: &str) -> Option<&Value> {
        self.constants.get(name)
    }

    /// The message that `node` is.
    pub(super) fn node(&self) -> Index {
        Index(0)
    }

    pub(super) fn name(&self, message: Index) -> &str {
        &self.messages[message.0].name
    }

    pub(super) fn field(&self, message: Index, name: &str) -> Option<&Field> {
        self.messages[message.0].fields.iter().find(|field| field.name == name)
    }

    /// What there is, for who named something else.
    pub(super) fn fields(&self, message: Index) -> String {
        let all: Vec<_> =
            self.messages[message.0].fields.iter().map(|field| &*field.name).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    }
}

fn describe<'a>(
    scope: &str,
    message: &'a DescriptorProto,
    messages: &mut HashMap<String, &'a DescriptorProto>,
    enums: &mut HashMap<String, &'a EnumDescriptorProto>,
) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        describe(&name, nested, messages, enums);
    }
    for each in &message.enum_type {
        enums.insert(format!("{name}.{}", each.name()), each);
    }
    messages.insert(name, message);
}

/// A message as its bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Message {
    of: Index,
    bytes: Bytes,
}

impl Message {
    pub(super) fn new(of: Index, bytes: Bytes) -> Self {
        Self { of, bytes }
    }

    pub(super) fn name(&self) -> &'static str {
        SCHEMA.name(self.of)
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Is the field there?
    pub(super) fn has(&self, name: &str) -> Result<bool, Fault> {
        let field = self.field(name)?;
        let mut is_there = false;
        self.each(|number, _, _| {
            is_there |= number == field.number;
            Ok(())
        })?;
        Ok(is_there)
    }

    /// The field's value, or its default.
    pub(super) fn select(&self, name: &str) -> Result<Value, Fault> {
        let field = self.field(name)?;
        let mut values = Vec::new();
        self.each(|number, varint, bytes| {
            if number == field.number {
                values.push(value(field.kind, varint, bytes)?);
            }
            Ok(())
        })?;
        if field.repeated {
            return Ok(Value::List(values.into()));
        }
        match values.pop() {
            Some(value) => Ok(value),
            None => value(field.kind, 0, Bytes::new()),
        }
    }

    fn field(&self, name: &str) -> Result<&'static Field, Fault> {
        match SCHEMA.field(self.of, name) {
            Some(field) => Ok(field),
            None => Fault::of(format!("{} has no field {name}", self.name())),
        }
    }

    /// Every field with its number, and its number or bytes.
    fn each(
        &self,
        mut visit: impl FnMut(u32, u64, Bytes) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut rest = self.bytes.clone();
        while rest.has_remaining() {
            let (number, wire) = decode_key(&mut rest).map_err(|_| cut())?;
            match wire {
                WireType::Varint => {
                    let varint = decode_varint(&mut rest).map_err(|_| cut())?;
                    visit(number, varint, Bytes::new())?;
                }
                WireType::LengthDelimited => {
                    let length = decode_varint(&mut rest).map_err(|_| cut())?;
                    let length = usize::try_from(length).map_err(|_| cut())?;
                    if length > rest.len() {
                        return Err(cut());
                    }
                    let bytes = rest.split_to(length);
                    visit(number, 0, bytes)?;
                }
                WireType::ThirtyTwoBit if rest.len() >= 4 => rest.advance(4),
                WireType::SixtyFourBit if rest.len() >= 8 => rest.advance(8),
                WireType::StartGroup
                | WireType::EndGroup
                | WireType::ThirtyTwoBit
                | WireType::SixtyFourBit => return Err(cut()),
            }
        }
        Ok(())
    }
}

fn cut() -> Fault {
    Fault::Run("the node's bytes end too soon".to_owned())
}

fn value(kind: Kind, varint: u64, bytes: Bytes) -> Result<Value, Fault> {
    Ok(match kind {
        Kind::Bool => Value::Bool(varint != 0),
        // As they are on the wire: two's complement of 64 bits, also of fields with 32.
        Kind::Int => Value::Int(varint.cast_signed()),
        Kind::Uint => Value::Uint(varint),
        Kind::Text => match std::str::from_utf8(&bytes) {
            Ok(text) => Value::text(text),
            Err(_) => return Fault::of("a text of the node is no UTF-8"),
        },
        Kind::Bytes => Value::Bytes(bytes),
        Kind::Duration => {
            let prost_types::Duration { seconds, nanos } =
                prost_types::Duration::decode(bytes).map_err(|_| cut())?;
            match seconds.checked_mul(NANOS).and_then(|it| it.checked_add(nanos.into())) {
                Some(nanos) => Value::Duration(nanos),
                None => return Fault::of("a duration of the node is too long"),
            }
        }
        Kind::Timestamp => {
            let prost_types::Timestamp { seconds, nanos } =
                prost_types::Timestamp::decode(bytes).map_err(|_| cut())?;
            let nanos = i128::from(seconds) * i128::from(NANOS) + i128::from(nanos);
            match OffsetDateTime::from_unix_timestamp_nanos(nanos) {
                Ok(time) => Value::Timestamp(time),
                Err(_) => return Fault::of("a time of the node is out of range"),
            }
        }
        Kind::Message(of) => Value::Message(Message { of, bytes }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of floating point and fixed width, and packed lists, are not read: a node has none.
    #[test]
    fn all_of_a_node_can_be_read() {
        let set = FileDescriptorSet::decode(orlop_proto::DESCRIPTORS).expect("descriptors");
        let (mut messages, mut enums) = (HashMap::new(), HashMap::new());
        for file in &set.file {
            for message in &file.message_type {
                describe(file.package(), message, &mut messages, &mut enums);
            }
        }
        for message in &SCHEMA.messages {
            let described = messages[&*message.name];
            let names: Vec<_> = described.field.iter().map(|field| field.name()).collect();
            let known: Vec<_> = message.fields.iter().map(|field| &*field.name).collect();
            assert_eq!(known, names, "{}", message.name);
            for Field { name, kind, repeated, .. } in &message.fields {
                let packed = matches!(kind, Kind::Bool | Kind::Int | Kind::Uint);
                assert!(!(packed && *repeated), "{} {name}", message.name);
            }
        }
        assert!(SCHEMA.messages.iter().any(|it| &*it.name == "version.spec.Version.Release"));
    }
}
