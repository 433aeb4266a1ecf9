//! Values of a filter, and what compares them.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use time::OffsetDateTime;

use super::Steps;
use super::schema::Message;

/// Anything an expression may be.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Arc<str>),
    Bytes(Bytes),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(OffsetDateTime),
    List(Arc<[Value]>),
    Map(Arc<[(Value, Value)]>),
    Message(Message),
    Type(Arc<str>),
}

/// Why an expression has no value for a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// It takes too many steps: nothing absorbs this.
    Steps,
    /// What is wrong.
    Run(String),
}

impl Fault {
    pub(super) fn of<T>(why: impl Into<String>) -> Result<T, Self> {
        Err(Self::Run(why.into()))
    }
}

/// Deeper values are not compared, so that no stack ends.
const DEPTH: usize = 128;

impl Value {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.into())
    }

    /// As `type()` names it.
    pub(super) fn kind(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Message(message) => message.name(),
            Self::Type(_) => "type",
        }
    }

    /// `==`: numbers by what they count, whatever their type; else values of two types are not equal.
    pub(super) fn equals(&self, other: &Self, steps: &mut Steps) -> Result<bool, Fault> {
        self.equals_at(other, steps, 0)
    }

    fn equals_at(&self, other: &Self, steps: &mut Steps, depth: usize) -> Result<bool, Fault> {
        steps.take(1)?;
        if depth > DEPTH {
            return Fault::of("lists within lists are too deep to be compared");
        }
        Ok(match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(one), Self::Bool(other)) => one == other,
            (Self::Text(one), Self::Text(other)) => {
                steps.bytes(one.len())?;
                one == other
            }
            (Self::Bytes(one), Self::Bytes(other)) => {
                steps.bytes(one.len())?;
                one == other
            }
            (Self::Duration(one), Self::Duration(other)) => one == other,
            (Self::Timestamp(one), Self::Timestamp(other)) => one == other,
            (Self::Type(one), Self::Type(other)) => one == other,
            (Self::Message(one), Self::Message(other)) => {
                steps.bytes(one.len())?;
                one == other
            }
            (Self::List(one), Self::List(other)) => {
                if one.len() != other.len() {
                    return Ok(false);
                }
                for (one, other) in one.iter().zip(other.iter()) {
                    if !one.equals_at(other, steps, depth + 1)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Map(one), Self::Map(other)) => {
                if one.len() != other.len() {
                    return Ok(false);
                }
                for (key, value) in one.iter() {
                    match lookup(other, key, steps)? {
                        Some(found) if value.equals_at(found, steps, depth + 1)? => {}
                        Some(_) | None => return Ok(false),
                    }
                }
                true
            }
            (one, other) => numbers(one, other) == Some(Some(Ordering::Equal)),
        })
    }

    /// `<` and its like; none if one is no number.
    pub(super) fn order(&self, other: &Self, steps: &mut Steps) -> Result<Option<Ordering>, Fault> {
        Ok(match (self, other) {
            (Self::Bool(one), Self::Bool(other)) => Some(one.cmp(other)),
            (Self::Text(one), Self::Text(other)) => {
                steps.bytes(one.len().min(other.len()))?;
                Some(one.cmp(other))
            }
            (Self::Bytes(one), Self::Bytes(other)) => {
                steps.bytes(one.len().min(other.len()))?;
                Some(one.cmp(other))
            }
            (Self::Duration(one), Self::Duration(other)) => Some(one.cmp(other)),
            (Self::Timestamp(one), Self::Timestamp(other)) => Some(one.cmp(other)),
            (one, other) => match numbers(one, other) {
                Some(order) => order,
                None => {
                    return Fault::of(format!("{} and {} have no order", one.kind(), other.kind()));
                }
            },
        })
    }
}

/// What a map holds under a key.
pub(super) fn lookup<'a>(
    map: &'a [(Value, Value)],
    key: &Value,
    steps: &mut Steps,
) -> Result<Option<&'a Value>, Fault> {
    for (held, value) in map {
        if held.equals(key, steps)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// None: they are not both numbers. Some(None): one is not a number in the sense of IEEE 754.
fn numbers(one: &Value, other: &Value) -> Option<Option<Ordering>> {
    enum Number {
        Whole(i128),
        Real(f64),
    }
    let number = |value: &Value| match value {
        Value::Int(value) => Some(Number::Whole((*value).into())),
        Value::Uint(value) => Some(Number::Whole((*value).into())),
        Value::Double(value) => Some(Number::Real(*value)),
        _ => None,
    };
    Some(match (number(one)?, number(other)?) {
        (Number::Whole(one), Number::Whole(other)) => Some(one.cmp(&other)),
        (Number::Real(one), Number::Real(other)) => one.partial_cmp(&other),
        (Number::Whole(one), Number::Real(other)) => whole_with_real(one, other),
        (Number::Real(one), Number::Whole(other)) => {
            whole_with_real(other, one).map(Ordering::reverse)
        }
    })
}

/// Exactly, where a conversion would round.
fn whole_with_real(whole: i128, real: f64) -> Option<Ordering> {
    /// Beyond every whole number of 64 bits.
    const BEYOND: f64 = 1.0e20;
    if real.is_nan() {
        return None;
    }
    if real.abs() > BEYOND {
        return Some(if real > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    #[expect(clippy::cast_possible_truncation, reason = "truncated, and below 10^20")]
    let below = real.trunc() as i128;
    let fraction = real.fract().partial_cmp(&0.0)?;
    Some(whole.cmp(&below).then(fraction.reverse()))
}
