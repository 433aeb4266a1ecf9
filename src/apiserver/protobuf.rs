//! Objects in protobuf, as kubectl, the kubelet and the controllers send them: transcoded from and to JSON by the
//! schema, without a type of ours for any of them.
//!
//! The bytes are those of the reference: fields in the order of their numbers, values that are not pointers written
//! even when they are empty, maps in the order of their keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::encoding::{WireType, decode_varint, encode_varint};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::schema::{Field, Kind, SCHEMA, Shape, TypeId};

/// What every body in protobuf begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// How deep messages may be in each other.
const DEPTH: usize = 100;

/// Why bytes are no object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not ours.
    #[error("the body does not begin with \"k8s\\0\"")]
    Magic,
    /// Not protobuf.
    #[error("the body is cut or damaged at byte {at} of {of}")]
    Cut {
        /// In which message.
        of: &'static str,
        /// Where in it.
        at: usize,
    },
    /// A field with something else in it.
    #[error("the field {number} of {of} has a value of another kind")]
    Kind {
        /// In which message.
        of: &'static str,
        /// Which.
        number: u32,
    },
    /// Deeper than any object.
    #[error("messages {DEPTH} deep in each other")]
    Depth,
}

/// The envelope around an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Envelope<'a> {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// The message.
    pub raw: &'a [u8],
}

/// Takes the envelope off.
///
/// # Errors
/// [`Error::Magic`], [`Error::Cut`].
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, Error> {
    let body = bytes.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let (mut meta, mut raw): (&[u8], &[u8]) = (&[], &[]);
    for part in Fields::new("Unknown", body) {
        match part? {
            (1, Part::Bytes(bytes)) => meta = bytes,
            (2, Part::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let mut envelope = Envelope { api_version: String::new(), kind: String::new(), raw };
    for part in Fields::new("TypeMeta", meta) {
        match part? {
            (1, Part::Bytes(bytes)) => envelope.api_version = text("TypeMeta", 1, bytes)?,
            (2, Part::Bytes(bytes)) => envelope.kind = text("TypeMeta", 2, bytes)?,
            _ => {}
        }
    }
    Ok(envelope)
}

/// An object in its envelope.
#[must_use]
pub fn seal(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut bytes = MAGIC.to_vec();
    put_bytes(&mut bytes, 1, &meta);
    put_bytes(&mut bytes, 2, raw);
    // How the message is encoded, and what it is: nothing, which is written.
    put_bytes(&mut bytes, 3, b"");
    put_bytes(&mut bytes, 4, b"");
    bytes
}

/// The message of an object that [`crate::json::check`] found sound. What it does not know is left out.
#[must_use]
pub fn encode(object: &Map<String, Value>, of: TypeId) -> Vec<u8> {
    let mut out = Vec::new();
    for field in &SCHEMA.get(of).fields {
        let value = object.get(field.json).filter(|value| !value.is_null());
        let number = field.number;
        match (field.shape, value) {
            (Shape::Inline, _) => {
                if let Kind::Message(inner) = field.kind {
                    put_bytes(&mut out, number, &encode(object, inner));
                }
            }
            (Shape::Value, None) => {
                put(&mut out, number, field.kind, &crate::json::empty(field.kind))
            }
            (Shape::Value | Shape::Pointer, Some(value)) => {
                put(&mut out, number, field.kind, value)
            }
            (Shape::List, Some(Value::Array(items))) => {
                for item in items {
                    put(&mut out, number, field.kind, item);
                }
            }
            (Shape::Map, Some(Value::Object(items))) => {
                for (key, item) in items {
                    let mut entry = Vec::new();
                    put_bytes(&mut entry, 1, key.as_bytes());
                    put(&mut entry, 2, field.kind, item);
                    put_bytes(&mut out, number, &entry);
                }
            }
            (Shape::Pointer | Shape::List | Shape::Map, _) => {}
        }
    }
    out
}

fn put(out: &mut Vec<u8>, number: u32, kind: Kind, value: &Value) {
    let text = || value.as_str().unwrap_or_default();
    match kind {
        Kind::String => put_bytes(out, number, text().as_bytes()),
        Kind::Int32 | Kind::Int64 => put_number(out, number, value.as_i64().unwrap_or(0)),
        Kind::Bool => put_number(out, number, i64::from(value.as_bool().unwrap_or(false))),
        Kind::Bytes => put_bytes(out, number, &STANDARD.decode(text()).unwrap_or_default()),
        Kind::Message(of) => {
            let message = value.as_object().map(|object| encode(object, of));
            put_bytes(out, number, &message.unwrap_or_default());
        }
        _ => {
            let mut inner = Vec::new();
            match kind {
                Kind::Time | Kind::MicroTime => {
                    if let Some((seconds, nanos)) = time_of(text()) {
                        put_number(&mut inner, 1, seconds);
                        // A Time has seconds only, and writes the rest as nothing.
                        let nanos = if kind == Kind::MicroTime { nanos / 1000 * 1000 } else { 0 };
                        put_number(&mut inner, 2, nanos);
                    }
                }
                Kind::IntOrString => {
                    put_number(&mut inner, 1, i64::from(value.is_string()));
                    put_number(&mut inner, 2, value.as_i64().unwrap_or(0));
                    put_bytes(&mut inner, 3, text().as_bytes());
                }
                Kind::Json if !value.is_null() => {
                    put_bytes(&mut inner, 1, value.to_string().as_bytes())
                }
                Kind::Strings => {
                    for item in value.as_array().into_iter().flatten() {
                        put_bytes(&mut inner, 1, item.as_str().unwrap_or_default().as_bytes());
                    }
                }
                Kind::Quantity => put_bytes(&mut inner, 1, text().as_bytes()),
                _ => {}
            }
            put_bytes(out, number, &inner);
        }
    }
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    encode_varint(u64::from(number << 3 | WireType::LengthDelimited as u32), out);
    encode_varint(bytes.len() as u64, out);
    out.extend(bytes);
}

fn put_number(out: &mut Vec<u8>, number: u32, value: i64) {
    encode_varint(u64::from(number << 3 | WireType::Varint as u32), out);
    encode_varint(value.cast_unsigned(), out);
}

/// The object a message is. Fields it does not know are left out, as are values that are empty and no pointers.
///
/// # Errors
/// [`Error::Cut`], [`Error::Kind`], [`Error::Depth`].
pub fn decode(bytes: &[u8], of: TypeId) -> Result<Map<String, Value>, Error> {
    let mut object = Map::new();
    decode_into(&mut object, bytes, of, DEPTH)?;
    Ok(object)
}

fn decode_into(
    object: &mut Map<String, Value>,
    bytes: &[u8],
    of: TypeId,
    depth: usize,
) -> Result<(), Error> {
    let depth = depth.checked_sub(1).ok_or(Error::Depth)?;
    let known = SCHEMA.get(of);
    for part in Fields::new(known.name, bytes) {
        let (number, part) = part?;
        let Ok(place) = known.fields.binary_search_by_key(&number, |field| field.number) else {
            continue;
        };
        let field = &known.fields[place];
        match (field.shape, field.kind, part) {
            (Shape::Inline, Kind::Message(inner), Part::Bytes(bytes)) => {
                decode_into(object, bytes, inner, depth)?;
            }
            (Shape::List, kind, part) => {
                let item = take(known.name, number, kind, part, depth)?;
                match object.entry(field.json).or_insert_with(|| Value::Array(Vec::new())) {
                    Value::Array(items) => items.push(item),
                    _ => return Err(Error::Kind { of: known.name, number }),
                }
            }
            (Shape::Map, kind, Part::Bytes(bytes)) => {
                let (key, item) = take_entry(known.name, number, kind, bytes, depth)?;
                match object.entry(field.json).or_insert_with(|| Value::Object(Map::new())) {
                    Value::Object(items) => drop(items.insert(key, item)),
                    _ => return Err(Error::Kind { of: known.name, number }),
                }
            }
            (Shape::Value | Shape::Pointer, kind, part) => {
                let value = take(known.name, number, kind, part, depth)?;
                if !is_absent(&value, field) {
                    object.insert(field.json.to_owned(), value);
                }
            }
            _ => return Err(Error::Kind { of: known.name, number }),
        }
    }
    Ok(())
}

/// Does an empty value say that there is none?
fn is_absent(value: &Value, field: &Field) -> bool {
    match value {
        Value::Null => true,
        _ if field.shape == Shape::Pointer || !field.omits_empty => false,
        Value::String(text) => text.is_empty(),
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0) && field.kind != Kind::IntOrString,
        Value::Array(_) | Value::Object(_) => false,
    }
}

fn take(
    of: &'static str,
    number: u32,
    kind: Kind,
    part: Part<'_>,
    depth: usize,
) -> Result<Value, Error> {
    let other = || Error::Kind { of, number };
    let bytes = match (kind, part) {
        (Kind::Int64, Part::Number(value)) => return Ok(value.cast_signed().into()),
        (Kind::Int32, Part::Number(value)) => {
            // Negative ones are sent with all 64 bits.
            let value = i32::try_from(value.cast_signed()).map_err(|_wide| other())?;
            return Ok(value.into());
        }
        (Kind::Bool, Part::Number(value)) => return Ok((value != 0).into()),
        (Kind::Int32 | Kind::Int64 | Kind::Bool, _) | (_, Part::Number(_)) => return Err(other()),
        (_, Part::Bytes(bytes)) => bytes,
    };
    Ok(match kind {
        Kind::Message(inner) => {
            let mut object = Map::new();
            decode_into(&mut object, bytes, inner, depth)?;
            object.into()
        }
        Kind::Bytes => STANDARD.encode(bytes).into(),
        Kind::Time | Kind::MicroTime => {
            time_to(number_in(of, bytes, 1)?, number_in(of, bytes, 2)?, kind, bytes)
                .map_err(|_unknown| other())?
        }
        Kind::IntOrString if number_in(of, bytes, 1)? == 0 => {
            i32::try_from(number_in(of, bytes, 2)?).map_err(|_wide| other())?.into()
        }
        Kind::IntOrString => text(of, number, bytes_in(of, bytes, 3)?.unwrap_or_default())?.into(),
        Kind::Quantity => text(of, number, bytes_in(of, bytes, 1)?.unwrap_or_default())?.into(),
        Kind::Json => match bytes_in(of, bytes, 1)? {
            Some(raw) => serde_json::from_slice(raw).map_err(|_syntax| other())?,
            None => Value::Null,
        },
        Kind::Strings => {
            let items = Fields::new(of, bytes).map(|part| match part? {
                (1, Part::Bytes(bytes)) => Ok(Value::from(text(of, number, bytes)?)),
                _ => Err(other()),
            });
            Value::Array(items.collect::<Result<_, Error>>()?)
        }
        _ => text(of, number, bytes)?.into(),
    })
}

fn take_entry(
    of: &'static str,
    number: u32,
    kind: Kind,
    bytes: &[u8],
    depth: usize,
) -> Result<(String, Value), Error> {
    let mut entry = (String::new(), crate::json::empty(kind));
    for part in Fields::new(of, bytes) {
        match part? {
            (1, Part::Bytes(key)) => entry.0 = text(of, number, key)?,
            (2, part) => entry.1 = take(of, number, kind, part, depth)?,
            _ => {}
        }
    }
    Ok(entry)
}

fn number_in(of: &'static str, bytes: &[u8], wanted: u32) -> Result<i64, Error> {
    let mut found = 0;
    for part in Fields::new(of, bytes) {
        if let (number, Part::Number(value)) = part?
            && number == wanted
        {
            found = value.cast_signed();
        }
    }
    Ok(found)
}

fn bytes_in<'a>(of: &'static str, bytes: &'a [u8], wanted: u32) -> Result<Option<&'a [u8]>, Error> {
    let mut found = None;
    for part in Fields::new(of, bytes) {
        if let (number, Part::Bytes(bytes)) = part?
            && number == wanted
        {
            found = Some(bytes);
        }
    }
    Ok(found)
}

fn text(of: &'static str, number: u32, bytes: &[u8]) -> Result<String, Error> {
    str::from_utf8(bytes).map(str::to_owned).map_err(|_not_utf8| Error::Kind { of, number })
}

/// Seconds since 1970 and nanoseconds.
pub(crate) fn time_of(text: &str) -> Option<(i64, i64)> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some((time.unix_timestamp(), i64::from(time.nanosecond())))
}

const SECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
const MICROSECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// As JSON has it; null for a message without anything in it.
fn time_to(seconds: i64, nanos: i64, kind: Kind, bytes: &[u8]) -> Result<Value, time::Error> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let time = OffsetDateTime::from_unix_timestamp(seconds)?
        .checked_add(time::Duration::nanoseconds(nanos.clamp(0, 999_999_999)));
    let Some(time) = time.filter(|time| (0..10_000).contains(&time.year())) else {
        return Ok(Value::Null);
    };
    let format = if kind == Kind::MicroTime { MICROSECONDS } else { SECONDS };
    Ok(time.format(format)?.into())
}

/// A value on the wire.
#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers. Those of fixed width, which no object has, are passed over.
struct Fields<'a> {
    of: &'static str,
    all: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(of: &'static str, bytes: &'a [u8]) -> Self {
        Self { of, all: bytes, rest: bytes }
    }

    fn read(&mut self) -> Option<Option<(u32, Part<'a>)>> {
        let key = decode_varint(&mut self.rest).ok()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0)?;
        match key & 7 {
            0 => Some(Some((number, Part::Number(decode_varint(&mut self.rest).ok()?)))),
            2 => {
                let length = usize::try_from(decode_varint(&mut self.rest).ok()?).ok()?;
                let (bytes, rest) = self.rest.split_at_checked(length)?;
                self.rest = rest;
                Some(Some((number, Part::Bytes(bytes))))
            }
            width @ (1 | 5) => {
                self.rest = self.rest.get(if width == 1 { 8 } else { 4 }..)?;
                Some(None)
            }
            _ => None,
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Part<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let at = self.all.len() - self.rest.len();
            match self.read() {
                Some(Some(field)) => return Some(Ok(field)),
                Some(None) => {}
                None => {
                    self.rest = &[];
                    return Some(Err(Error::Cut { of: self.of, at }));
                }
            }
        }
        None
    }
}
