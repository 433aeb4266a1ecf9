//! Text to [`Value`], within bounds: keys are text, merges are done, a key that stands twice counts
//! once and is a finding.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserializer, de};
use serde_yaml::{Mapping, Value};

use super::{Finding, Path, Step};

/// What the documents of one text may come to once their aliases are resolved: a few lines of
/// aliases of aliases would else fill any memory.
pub(super) struct Budget {
    values: usize,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { values: VALUE_LIMIT, bytes: BYTE_LIMIT }
    }
}

const VALUE_LIMIT: usize = 100_000;
const BYTE_LIMIT: usize = 16 << 20;

/// Reads a document.
pub(super) fn read(
    document: serde_yaml::Deserializer<'_>,
    budget: &mut Budget,
) -> Result<(Value, Vec<Finding>), serde_yaml::Error> {
    let mut reader = Reader { budget, path: Path::new(), findings: Vec::new() };
    let value = Node(&mut reader).deserialize(document)?;
    Ok((value, reader.findings))
}

struct Reader<'a> {
    budget: &'a mut Budget,
    path: Path,
    findings: Vec<Finding>,
}

impl Reader<'_> {
    fn spend<E: de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        let Budget { values, bytes: left } = self.budget;
        match (values.checked_sub(1), left.checked_sub(bytes)) {
            (Some(values), Some(left)) => {
                *self.budget = Budget { values, bytes: left };
                Ok(())
            }
            _ => Err(E::custom(format!(
                "more than {VALUE_LIMIT} values or {} MiB of text, aliases resolved",
                BYTE_LIMIT >> 20
            ))),
        }
    }

    fn inside<T>(&mut self, step: Step, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step);
        let read = read(self);
        self.path.pop();
        read
    }

    fn find(&mut self, step: Step, what: &str) {
        let mut path = self.path.clone();
        path.push(step);
        if !self.findings.iter().any(|known| known.path == path) {
            self.findings.push(Finding::new(path, what.to_owned()));
        }
    }

    /// `<<: *anchor`, which others' readers of these files understand: what the mapping has itself
    /// counts.
    fn merge(&mut self, map: &mut Mapping, from: Value) {
        match from {
            Value::Mapping(from) => {
                for (key, value) in from {
                    map.entry(key).or_insert(value);
                }
            }
            Value::Sequence(list) => {
                for from in list {
                    match from {
                        Value::Mapping(_) => self.merge(map, from),
                        _ => self.find(Step::Key("<<".to_owned()), NO_MERGE),
                    }
                }
            }
            _ => self.find(Step::Key("<<".to_owned()), NO_MERGE),
        }
    }
}

const NO_MERGE: &str = "only a mapping or a list of mappings can be merged, as in `<<: *anchor`";

struct Node<'r, 'a>(&'r mut Reader<'a>);

impl<'de> DeserializeSeed<'de> for Node<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a tag of its own")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.0.spend(0).map(|()| value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.0.spend(0).map(|()| value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.0.spend(0).map(|()| value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.0.spend(0).map(|()| value.into())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.0.spend(0).map(|()| Value::Null)
    }

    /// A document with nothing in it.
    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        self.0.spend(text.len()).map(|()| text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        self.0.spend(0)?;
        let mut list = Vec::new();
        while let Some(value) =
            self.0.inside(Step::Index(list.len()), |reader| from.next_element_seed(Node(reader)))?
        {
            list.push(value);
        }
        Ok(Value::Sequence(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        self.0.spend(0)?;
        let mut map = Mapping::new();
        let mut merged = None;
        while let Some(key) = from.next_key_seed(Key)? {
            let step = Step::Key(key.clone());
            let value = self.0.inside(step, |reader| from.next_value_seed(Node(reader)))?;
            if key == "<<" {
                merged.get_or_insert(value);
            } else if map.contains_key(key.as_str()) {
                self.0.find(Step::Again(key), "it stands here a second time; take one out");
            } else {
                self.0.spend(key.len())?;
                map.insert(key.into(), value);
            }
        }
        if let Some(merged) = merged {
            self.0.merge(&mut map, merged);
        }
        Ok(Value::Mapping(map))
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::custom("tags such as `!name` mean nothing here; take it out"))
    }
}

/// A key, as it is written: `1` and `true` are text too.
pub(super) struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<String, E> {
        Ok(key.to_owned())
    }
}
