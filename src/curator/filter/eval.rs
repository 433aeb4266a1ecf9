//! Evaluates a filter for one node, and counts what that takes.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use regex_lite::{Regex, RegexBuilder};
use time::{OffsetDateTime, UtcOffset};

use super::check::{Expr, Macro};
use super::functions::Function;
use super::schema::Message;
use super::value::{Fault, Value, lookup};
use super::{Steps, time as moments};

/// A compiled regular expression.
pub(super) struct Pattern {
    regex: Regex,
    /// About how many states it may be in at each byte of a text.
    states: usize,
}

/// What a compiled pattern may occupy, in bytes.
const PATTERN_SIZE: usize = 64 * 1024;
/// Compiling one while a node is looked at counts as so many steps.
const COMPILE: usize = 1_000;

impl Pattern {
    /// The syntax of RE2, but for classes of Unicode.
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        // What it really occupies, to within a half, is not told otherwise.
        let mut size = 1024;
        loop {
            match RegexBuilder::new(pattern).size_limit(size).build() {
                Ok(regex) => return Ok(Self { regex, states: size / 32 }),
                Err(_) if size < PATTERN_SIZE => size *= 2,
                Err(error) => return Err(format!("the pattern {pattern:?}: {error}")),
            }
        }
    }

    fn is_match(&self, text: &str, steps: &mut Steps) -> Result<bool, Fault> {
        steps.bytes(text.len().saturating_mul(self.states))?;
        Ok(self.regex.is_match(text))
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.regex.fmt(f)
    }
}

/// The evaluation for one node.
pub(super) struct Eval<'a> {
    node: Option<Message>,
    locals: Vec<Value>,
    steps: &'a mut Steps,
}

impl<'a> Eval<'a> {
    pub(super) fn of_node(node: Message, steps: &'a mut Steps) -> Self {
        Self { node: Some(node), locals: Vec::new(), steps }
    }

    /// Of what needs no node, inside so many macros whose variables it does not need.
    pub(super) fn of_constant(around: usize, steps: &'a mut Steps) -> Self {
        Self { node: None, locals: vec![Value::Null; around], steps }
    }

    pub(super) fn eval(&mut self, expr: &Expr) -> Result<Value, Fault> {
        self.steps.take(1)?;
        Ok(match expr {
            Expr::Literal(value) => value.clone(),
            Expr::Node => match &self.node {
                Some(node) => Value::Message(node.clone()),
                None => return Fault::of("there is no node here"),
            },
            Expr::Local(local) => match self.locals.get(*local) {
                Some(value) => value.clone(),
                None => return Fault::of("there is no such variable here"),
            },
            Expr::Select(of, field) => match self.eval(of)? {
                Value::Message(message) => {
                    self.steps.bytes(message.len())?;
                    message.select(field)?
                }
                Value::Map(map) => match lookup(&map, &Value::text(field), self.steps)? {
                    Some(value) => value.clone(),
                    None => return Fault::of(format!("the map has no key {field:?}")),
                },
                other => return Fault::of(format!("{} has no fields", other.kind())),
            },
            Expr::Has(of, field) => Value::Bool(match self.eval(of)? {
                Value::Message(message) => {
                    self.steps.bytes(message.len())?;
                    message.has(field)?
                }
                Value::Map(map) => lookup(&map, &Value::text(field), self.steps)?.is_some(),
                other => return Fault::of(format!("{} has no fields", other.kind())),
            }),
            Expr::List(exprs) => {
                let values: Result<Vec<_>, _> = exprs.iter().map(|it| self.eval(it)).collect();
                Value::List(values?.into())
            }
            Expr::Map(pairs) => self.map(pairs)?,
            Expr::And(exprs) => Value::Bool(self.unless(exprs, false)?),
            Expr::Or(exprs) => Value::Bool(self.unless(exprs, true)?),
            Expr::If(exprs) => {
                let [condition, then, otherwise] = &**exprs;
                if self.truth(condition)? { self.eval(then)? } else { self.eval(otherwise)? }
            }
            Expr::Matches(of, pattern) => match self.eval(of)? {
                Value::Text(text) => Value::Bool(pattern.is_match(&text, self.steps)?),
                other => return Fault::of(format!("{} matches no pattern", other.kind())),
            },
            Expr::Call(function, exprs) => {
                let values: Result<Vec<_>, _> = exprs.iter().map(|it| self.eval(it)).collect();
                call(*function, &values?, self.steps)?
            }
            Expr::Each { macro_, range, body, then } => {
                self.each(*macro_, range, body, then.as_deref())?
            }
        })
    }

    pub(super) fn truth(&mut self, expr: &Expr) -> Result<bool, Fault> {
        match self.eval(expr)? {
            Value::Bool(truth) => Ok(truth),
            other => Fault::of(format!("this is {}, and must be true or false", other.kind())),
        }
    }

    fn map(&mut self, pairs: &[(Expr, Expr)]) -> Result<Value, Fault> {
        let mut map: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let key = self.eval(key)?;
            if !matches!(key, Value::Int(_) | Value::Uint(_) | Value::Bool(_) | Value::Text(_)) {
                return Fault::of(format!("{} is no key of a map", key.kind()));
            }
            if lookup(&map, &key, self.steps)?.is_some() {
                return Fault::of("a map has a key twice");
            }
            map.push((key, self.eval(value)?));
        }
        Ok(Value::Map(map.into()))
    }

    /// `verdict` as soon as one is so, whatever went wrong with the others; else the first thing that did.
    fn unless(&mut self, exprs: &[Expr], verdict: bool) -> Result<bool, Fault> {
        let mut outcome = Ok(!verdict);
        for expr in exprs {
            match self.truth(expr) {
                Ok(truth) if truth == verdict => return Ok(verdict),
                Ok(_) => {}
                Err(Fault::Steps) => return Err(Fault::Steps),
                Err(fault) => outcome = outcome.and(Err(fault)),
            }
        }
        outcome
    }

    fn each(
        &mut self,
        macro_: Macro,
        range: &Expr,
        body: &Expr,
        then: Option<&Expr>,
    ) -> Result<Value, Fault> {
        let range: Arc<[Value]> = match self.eval(range)? {
            Value::List(list) => list,
            Value::Map(map) => map.iter().map(|(key, _)| key.clone()).collect(),
            other => return Fault::of(format!("{} is no list and no map", other.kind())),
        };
        let (mut kept, mut found, mut fault) = (Vec::new(), 0, None);
        for element in range.iter() {
            self.steps.take(1)?;
            self.locals.push(element.clone());
            let result = self.element(macro_, body, then);
            self.locals.pop();
            match (macro_, result) {
                (_, Err(Fault::Steps)) => return Err(Fault::Steps),
                (Macro::All, Ok(Some(Value::Bool(false)))) => return Ok(Value::Bool(false)),
                (Macro::Exists, Ok(Some(Value::Bool(true)))) => return Ok(Value::Bool(true)),
                (Macro::All | Macro::Exists, Err(error)) => {
                    fault.get_or_insert(error);
                }
                (Macro::All | Macro::Exists, Ok(_)) | (_, Ok(None)) => {}
                (Macro::ExistsOne | Macro::Filter | Macro::Map, Err(error)) => return Err(error),
                (Macro::ExistsOne, Ok(Some(value))) => {
                    found += i32::from(matches!(value, Value::Bool(true)));
                }
                (Macro::Filter, Ok(Some(value))) => {
                    if matches!(value, Value::Bool(true)) {
                        kept.push(element.clone());
                    }
                }
                (Macro::Map, Ok(Some(value))) => kept.push(value),
            }
        }
        match (macro_, fault) {
            (_, Some(fault)) => Err(fault),
            (Macro::All, None) => Ok(Value::Bool(true)),
            (Macro::Exists, None) => Ok(Value::Bool(false)),
            (Macro::ExistsOne, None) => Ok(Value::Bool(found == 1)),
            (Macro::Filter | Macro::Map, None) => Ok(Value::List(kept.into())),
        }
    }

    /// What a macro's expression is of the element that was pushed last; none: `map` leaves it out.
    fn element(
        &mut self,
        macro_: Macro,
        body: &Expr,
        then: Option<&Expr>,
    ) -> Result<Option<Value>, Fault> {
        Ok(match (macro_, then) {
            (Macro::Map, None) => Some(self.eval(body)?),
            (Macro::Map, Some(then)) => {
                if self.truth(body)? {
                    Some(self.eval(then)?)
                } else {
                    None
                }
            }
            (Macro::All | Macro::Exists | Macro::ExistsOne | Macro::Filter, _) => {
                Some(Value::Bool(self.truth(body)?))
            }
        })
    }
}

fn call(function: Function, args: &[Value], steps: &mut Steps) -> Result<Value, Fault> {
    use Function as F;
    let value = match (function, args) {
        (F::Equal, [one, other]) => Some(Value::Bool(one.equals(other, steps)?)),
        (F::NotEqual, [one, other]) => Some(Value::Bool(!one.equals(other, steps)?)),
        (F::Less | F::LessOrEqual | F::Greater | F::GreaterOrEqual, [one, other]) => {
            let order = one.order(other, steps)?;
            Some(Value::Bool(match function {
                F::Less => order == Some(Ordering::Less),
                F::LessOrEqual => order.is_some_and(Ordering::is_le),
                F::Greater => order == Some(Ordering::Greater),
                _ => order.is_some_and(Ordering::is_ge),
            }))
        }
        (F::Not, [Value::Bool(truth)]) => Some(Value::Bool(!truth)),
        (F::In, [value, Value::List(list)]) => {
            for element in list.iter() {
                if element.equals(value, steps)? {
                    return Ok(Value::Bool(true));
                }
            }
            Some(Value::Bool(false))
        }
        (F::In, [key, Value::Map(map)]) => Some(Value::Bool(lookup(map, key, steps)?.is_some())),
        (F::Index, [of, index]) => Some(element(of, index, steps)?),
        (F::Size, [of]) => size(of, steps)?,
        (F::Contains | F::StartsWith | F::EndsWith, [Value::Text(text), Value::Text(part)]) => {
            steps.bytes(text.len() + part.len())?;
            Some(Value::Bool(match function {
                F::Contains => text.contains(&**part),
                F::StartsWith => text.starts_with(&**part),
                _ => text.ends_with(&**part),
            }))
        }
        (F::Matches, [Value::Text(text), Value::Text(pattern)]) => {
            steps.take(COMPILE)?;
            let pattern = Pattern::new(pattern).map_err(Fault::Run)?;
            Some(Value::Bool(pattern.is_match(text, steps)?))
        }
        (F::ToType, [of]) => Some(Value::Type(of.kind().into())),
        (F::ToDyn, [of]) => Some(of.clone()),
        (F::Add | F::Subtract | F::Multiply | F::Divide | F::Modulo | F::Negate, args) => {
            arithmetic(function, args, steps)?
        }
        (
            F::ToInt
            | F::ToUint
            | F::ToDouble
            | F::ToText
            | F::ToBytes
            | F::ToBool
            | F::ToDuration
            | F::ToTimestamp,
            [of],
        ) => convert(function, of, steps)?,
        (_, [of, zone @ ..]) => part_of_time(function, of, zone)?,
        (_, []) => None,
    };
    value.map_or_else(|| no_overload(function, args), Ok)
}

fn no_overload(function: Function, args: &[Value]) -> Result<Value, Fault> {
    let kinds: Vec<_> = args.iter().map(Value::kind).collect();
    Fault::of(format!("{function:?} does not take ({})", kinds.join(", ")))
}

fn element(of: &Value, index: &Value, steps: &mut Steps) -> Result<Value, Fault> {
    let found = match of {
        Value::List(list) => {
            let index = match index {
                Value::Int(index) => usize::try_from(*index).ok(),
                Value::Uint(index) => usize::try_from(*index).ok(),
                // A whole number below any list's length is exact.
                Value::Double(real) => {
                    list.iter().enumerate().map(|(index, _)| index).find(|index| {
                        u32::try_from(*index).is_ok_and(|index| f64::from(index) == *real)
                    })
                }
                other => return Fault::of(format!("{} is no index of a list", other.kind())),
            };
            steps.take(1)?;
            index.and_then(|index| list.get(index))
        }
        Value::Map(map) => lookup(map, index, steps)?,
        other => return Fault::of(format!("{} has no elements", other.kind())),
    };
    match found {
        Some(value) => Ok(value.clone()),
        None => Fault::of(format!("the {} has no such element", of.kind())),
    }
}

fn size(of: &Value, steps: &mut Steps) -> Result<Option<Value>, Fault> {
    let size = match of {
        Value::Text(text) => {
            steps.bytes(text.len())?;
            text.chars().count()
        }
        Value::Bytes(bytes) => bytes.len(),
        Value::List(list) => list.len(),
        Value::Map(map) => map.len(),
        _ => return Ok(None),
    };
    Ok(i64::try_from(size).ok().map(Value::Int))
}

fn arithmetic(
    function: Function,
    args: &[Value],
    steps: &mut Steps,
) -> Result<Option<Value>, Fault> {
    use Function as F;
    let result = match (function, args) {
        (F::Negate, [Value::Int(value)]) => value.checked_neg().map(Value::Int),
        (F::Negate, [Value::Double(value)]) => Some(Value::Double(-value)),
        (F::Divide | F::Modulo, [_, Value::Int(0) | Value::Uint(0)]) => {
            return Fault::of("division by zero");
        }
        (_, [Value::Int(one), Value::Int(other)]) => match function {
            F::Add => one.checked_add(*other),
            F::Subtract => one.checked_sub(*other),
            F::Multiply => one.checked_mul(*other),
            F::Divide => one.checked_div(*other),
            _ => one.checked_rem(*other),
        }
        .map(Value::Int),
        (_, [Value::Uint(one), Value::Uint(other)]) => match function {
            F::Add => one.checked_add(*other),
            F::Subtract => one.checked_sub(*other),
            F::Multiply => one.checked_mul(*other),
            F::Divide => one.checked_div(*other),
            _ => one.checked_rem(*other),
        }
        .map(Value::Uint),
        (F::Modulo, [Value::Double(_), Value::Double(_)]) => return Ok(None),
        (_, [Value::Double(one), Value::Double(other)]) => Some(Value::Double(match function {
            F::Add => one + other,
            F::Subtract => one - other,
            F::Multiply => one * other,
            _ => one / other,
        })),
        (F::Add, [Value::Text(one), Value::Text(other)]) => {
            steps.bytes(one.len() + other.len())?;
            Some(Value::Text([&**one, &**other].concat().into()))
        }
        (F::Add, [Value::Bytes(one), Value::Bytes(other)]) => {
            steps.bytes(one.len() + other.len())?;
            Some(Value::Bytes([&**one, &**other].concat().into()))
        }
        (F::Add, [Value::List(one), Value::List(other)]) => {
            steps.take(one.len() + other.len())?;
            Some(Value::List(one.iter().chain(other.iter()).cloned().collect()))
        }
        (F::Add, [Value::Duration(one), Value::Duration(other)]) => {
            one.checked_add(*other).map(Value::Duration)
        }
        (F::Subtract, [Value::Duration(one), Value::Duration(other)]) => {
            one.checked_sub(*other).map(Value::Duration)
        }
        (F::Add, [Value::Timestamp(time), Value::Duration(by)])
        | (F::Add, [Value::Duration(by), Value::Timestamp(time)]) => {
            later(*time, *by).map(Value::Timestamp)
        }
        (F::Subtract, [Value::Timestamp(time), Value::Duration(by)]) => {
            by.checked_neg().and_then(|by| later(*time, by)).map(Value::Timestamp)
        }
        (F::Subtract, [Value::Timestamp(one), Value::Timestamp(other)]) => {
            i64::try_from((*one - *other).whole_nanoseconds()).ok().map(Value::Duration)
        }
        _ => return Ok(None),
    };
    match result {
        Some(value) => Ok(Some(value)),
        None => Fault::of("the result is out of range"),
    }
}

fn later(time: OffsetDateTime, nanos: i64) -> Option<OffsetDateTime> {
    let time = time.checked_add(time::Duration::nanoseconds(nanos))?;
    moments::is_in_range(time).then_some(time)
}

#[expect(clippy::cast_precision_loss, reason = "as CEL rounds")]
fn convert(function: Function, of: &Value, steps: &mut Steps) -> Result<Option<Value>, Fault> {
    use Function as F;
    if let Value::Text(text) = of {
        steps.bytes(text.len())?;
    }
    let result = match (function, of) {
        (F::ToInt, Value::Int(_))
        | (F::ToUint, Value::Uint(_))
        | (F::ToDouble, Value::Double(_))
        | (F::ToText, Value::Text(_))
        | (F::ToBytes, Value::Bytes(_))
        | (F::ToBool, Value::Bool(_))
        | (F::ToDuration, Value::Duration(_))
        | (F::ToTimestamp, Value::Timestamp(_)) => Some(of.clone()),
        (F::ToInt, Value::Uint(value)) => i64::try_from(*value).ok().map(Value::Int),
        (F::ToInt, Value::Double(value)) => whole(*value)
            .filter(|_| value.abs() < I64_END)
            .and_then(|value| i64::try_from(value).ok())
            .map(Value::Int),
        (F::ToInt, Value::Text(text)) => text.parse().ok().map(Value::Int),
        (F::ToInt, Value::Timestamp(time)) => Some(Value::Int(time.unix_timestamp())),
        (F::ToUint, Value::Int(value)) => u64::try_from(*value).ok().map(Value::Uint),
        (F::ToUint, Value::Double(value)) => whole(*value)
            .filter(|_| *value >= 0.0)
            .and_then(|value| u64::try_from(value).ok())
            .map(Value::Uint),
        (F::ToUint, Value::Text(text)) => text.parse().ok().map(Value::Uint),
        (F::ToDouble, Value::Int(value)) => Some(Value::Double(*value as f64)),
        (F::ToDouble, Value::Uint(value)) => Some(Value::Double(*value as f64)),
        (F::ToDouble, Value::Text(text)) => text.parse().ok().map(Value::Double),
        (F::ToText, Value::Bool(value)) => Some(Value::text(&value.to_string())),
        (F::ToText, Value::Int(value)) => Some(Value::text(&value.to_string())),
        (F::ToText, Value::Uint(value)) => Some(Value::text(&value.to_string())),
        (F::ToText, Value::Double(value)) => Some(Value::text(&format_double(*value))),
        (F::ToText, Value::Bytes(bytes)) => {
            steps.bytes(bytes.len())?;
            std::str::from_utf8(bytes).ok().map(Value::text)
        }
        (F::ToText, Value::Duration(nanos)) => Some(Value::Text(moments::format_duration(*nanos))),
        (F::ToText, Value::Timestamp(time)) => Some(Value::Text(moments::format_timestamp(*time))),
        (F::ToBytes, Value::Text(text)) => {
            Some(Value::Bytes(bytes::Bytes::copy_from_slice(text.as_bytes())))
        }
        (F::ToBool, Value::Text(text)) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(Value::Bool(false)),
            _ => None,
        },
        (F::ToDuration, Value::Text(text)) => moments::parse_duration(text).map(Value::Duration),
        (F::ToTimestamp, Value::Text(text)) => moments::parse_timestamp(text).map(Value::Timestamp),
        (F::ToTimestamp, Value::Int(seconds)) => OffsetDateTime::from_unix_timestamp(*seconds)
            .ok()
            .filter(|time| moments::is_in_range(*time))
            .map(Value::Timestamp),
        _ => return Ok(None),
    };
    if let Some(value) = result {
        return Ok(Some(value));
    }
    let what = match of {
        Value::Text(text) => format!("{text:?}"),
        other => format!("this {}", other.kind()),
    };
    Fault::of(match function {
        F::ToInt => format!("{what} is no int"),
        F::ToUint => format!("{what} is no uint"),
        F::ToDouble => format!("{what} is no double"),
        F::ToBool => format!("{what} is not true or false"),
        F::ToDuration => format!("{what} is no duration; write it as 1h30m, 6s or 100ms"),
        F::ToTimestamp => format!("{what} is no time; write it as 2026-01-31T08:00:00Z"),
        _ => format!("{what} is no string"),
    })
}

/// 2^63: what an int stays below.
const I64_END: f64 = 9_223_372_036_854_775_808.0;

/// Without its fraction; none if it is beyond every number of 64 bits.
fn whole(real: f64) -> Option<i128> {
    #[expect(clippy::cast_possible_truncation, reason = "truncated, and below 2^64")]
    (real.abs() < 2.0 * I64_END).then(|| real.trunc() as i128)
}

/// The shortest digits that are this number, with an exponent below 10^-4 and from 10^21 on.
fn format_double(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    if value.is_nan() || (-4..21).contains(&power) {
        return value.to_string();
    }
    let sign = if power < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", power.abs())
}

fn part_of_time(function: Function, of: &Value, zone: &[Value]) -> Result<Option<Value>, Fault> {
    use Function as F;
    let time = match (of, zone) {
        (Value::Duration(nanos), []) => {
            return Ok(match function {
                F::Hours => Some(nanos / 3_600_000_000_000),
                F::Minutes => Some(nanos / 60_000_000_000),
                F::Seconds => Some(nanos / 1_000_000_000),
                F::Milliseconds => Some(nanos / 1_000_000),
                _ => None,
            }
            .map(Value::Int));
        }
        (Value::Timestamp(time), []) => time.to_offset(UtcOffset::UTC),
        (Value::Timestamp(time), [Value::Text(zone)]) => {
            match moments::zone(zone).and_then(|zone| time.checked_to_offset(zone)) {
                Some(time) => time,
                None => {
                    return Fault::of(format!(
                        "{zone:?} is no zone known here; write UTC or an offset as +02:00"
                    ));
                }
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(Value::Int(match function {
        F::FullYear => time.year().into(),
        F::Month => i64::from(u8::from(time.month())) - 1,
        F::DayOfYear => i64::from(time.ordinal()) - 1,
        F::DayOfMonth => i64::from(time.day()) - 1,
        F::Date => time.day().into(),
        F::DayOfWeek => time.weekday().number_days_from_sunday().into(),
        F::Hours => time.hour().into(),
        F::Minutes => time.minute().into(),
        F::Seconds => time.second().into(),
        F::Milliseconds => time.millisecond().into(),
        _ => return Ok(None),
    })))
}
