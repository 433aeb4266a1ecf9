//! Where the values of a document stand in its text.

use std::fmt;

use serde::Deserializer;
use serde::de::{self, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

use super::Step;
use super::words::location;

/// Line and column, both from 1.
type Position = (usize, usize);

/// The position of a value, and of those inside it in the order of the text.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Of its key; of an element of a list, where it begins.
    at: Option<Position>,
    inside: Vec<(Step, Places)>,
}

impl Places {
    /// Walks document `index` of a text that [`tree`](super::tree) could read.
    pub(super) fn of(text: &str, index: usize) -> Option<Self> {
        let document = serde_yaml::Deserializer::from_str(text).nth(index)?;
        let mut places = Self::default();
        if let Err(error) = Walk(&mut places).deserialize(document) {
            // A document of a single word ends like this.
            places.at = location(&error.to_string());
        }
        Some(places)
    }

    /// Where the document begins.
    pub(super) fn top(&self) -> Option<Position> {
        self.at.or_else(|| self.inside.first().and_then(|(_, first)| first.top()))
    }

    /// What is missing stands nowhere: then it is where the value stands that it should be in.
    pub(super) fn nearest(&self, path: &[Step]) -> Option<Position> {
        let inside = path.split_first().and_then(|(step, rest)| {
            let (_, places) = self.inside.iter().find(|(known, _)| known == step)?;
            places.nearest(rest)
        });
        inside.or_else(|| self.top())
    }
}

const FOUND: &str = "\u{1}found\u{1}";

/// Walks a value. serde_yaml tells a position only in an error: so whoever visits a key or a scalar
/// fails once it has been consumed, the error's text has the position, and the walk goes on.
struct Walk<'a>(&'a mut Places);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    /// Fails on a scalar, with its position; `Ok` when it was a collection.
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

/// A value whose position is that of its key.
struct Value<'a>(&'a mut Places);

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        expected(Walk(self.0).deserialize(from)).map(drop)
    }
}

/// An element of a list: begins where it is a scalar, or where what is in it begins.
struct Element<'a>(&'a mut Places);

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        self.0.at = expected(Walk(self.0).deserialize(from))?;
        Ok(())
    }
}

/// A key and where it stands.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = (String, Option<Position>);

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        let mut key = String::new();
        let position = expected(from.deserialize_str(Text(&mut key)))?;
        Ok((key, position))
    }
}

/// The position in an error that was made to learn it; other errors stay errors.
fn expected<E: de::Error>(walked: Result<(), E>) -> Result<Option<Position>, E> {
    let Err(error) = walked else { return Ok(None) };
    let text = error.to_string();
    if text.contains(FOUND) { Ok(location(&text)) } else { Err(error) }
}

struct Text<'a>(&'a mut String);

impl Visitor<'_> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<(), E> {
        self.0.push_str(key);
        Err(E::custom(FOUND))
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    /// What serde makes of a scalar nobody asked for is an error with this in it.
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FOUND)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut known = std::collections::BTreeSet::new();
        while let Some((key, at)) = map.next_key_seed(Key)? {
            let mut places = Places { at, inside: Vec::new() };
            map.next_value_seed(Value(&mut places))?;
            let step = match known.insert(key.clone()) {
                true => Step::Key(key),
                false => Step::Again(key),
            };
            self.0.inside.push((step, places));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut index = 0;
        loop {
            let mut places = Places::default();
            if list.next_element_seed(Element(&mut places))?.is_none() {
                return Ok(());
            }
            self.0.inside.push((Step::Index(index), places));
            index += 1;
        }
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom("tags are refused before"))
    }
}
