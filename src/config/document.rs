//! Reads one YAML document into a type, and finds *all* that is wrong with it.
//!
//! serde stops at the first error and knows no position once the text has become a [`Value`]. So the
//! text is read into a value first; the value is read into the type again and again, each time
//! without what was wrong the time before; and where a value stands is found by walking the text
//! once more along its path ([`position`]). Only files with problems pay for that.

use serde::de::{
    DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde::{Deserialize as _, Deserializer, Serialize};
use serde_path_to_error::Segment;
use serde_yaml::Value;

use crate::problem::{Problem, Problems};

/// More problems than this are not worth reading at once; it also bounds the work a hostile file
/// can cause.
const PROBLEM_LIMIT: usize = 50;

/// The parser's work grows with the square of the depth of nested brackets, so deeper texts do not
/// get there. serde_yaml itself refuses 128 levels, but only after it has parsed the whole text.
const DEPTH_LIMIT: usize = 1000;

/// One step from a value to one inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

/// Where a value is, from the top of its document.
pub(crate) type Path = Vec<Step>;

/// A semantic check's finding: which value, and what is wrong with it.
pub(crate) type Finding = (Path, String);

/// The documents of a text, as far as choosing one of them needs.
pub(crate) struct Text<'a> {
    file: &'a str,
    text: &'a str,
    documents: Vec<Value>,
}

impl<'a> Text<'a> {
    /// Splits a text into its documents.
    pub(crate) fn new(file: &'a str, text: &'a str) -> Result<Self, Problems> {
        if depth(text) > DEPTH_LIMIT {
            let problem = Problem {
                position: None,
                path: String::new(),
                message: format!("brackets are nested more than {DEPTH_LIMIT} deep"),
            };
            return Err(Problems::new(file, vec![problem]));
        }
        let mut documents = Vec::new();
        for document in serde_yaml::Deserializer::from_str(text) {
            let merged = Value::deserialize(document).and_then(|mut value| {
                // `<<: *anchor`, which others' readers of these files understand.
                value.apply_merge().map(|()| value)
            });
            match merged {
                Ok(value) => documents.push(value),
                Err(error) => return Err(Problems::new(file, vec![syntax(&error)])),
            }
        }
        Ok(Self { file, text, documents })
    }

    pub(crate) fn documents(&self) -> &[Value] {
        &self.documents
    }

    /// Problems of a file that are no one value's.
    pub(crate) fn problem(&self, index: Option<usize>, message: &str) -> Problems {
        let position = index.and_then(|index| position(self.text, index, &[]));
        let problem = Problem { position, path: String::new(), message: message.to_owned() };
        Problems::new(self.file, vec![problem])
    }

    /// Reads document `index` as a `T` and asks `check` what is wrong with it beyond the types.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        index: usize,
        check: impl FnOnce(&T) -> Vec<Finding>,
    ) -> Result<T, Problems> {
        let (read, mut findings) = match self.documents.get(index) {
            Some(document) => read_all(document.clone()),
            None => read_all(Value::Null),
        };
        if let Some(read) = &read {
            // A value that could not be read is missing now; that is no second problem.
            let bad: Vec<Path> = findings.iter().map(|(path, _)| path.clone()).collect();
            let related =
                |path: &Path| bad.iter().any(|bad| bad.starts_with(path) || path.starts_with(bad));
            findings.extend(check(read).into_iter().filter(|(path, _)| !related(path)));
        }
        findings.truncate(PROBLEM_LIMIT);
        match read {
            Some(read) if findings.is_empty() => Ok(read),
            _ => Err(self.problems(index, findings)),
        }
    }

    fn problems(&self, index: usize, findings: Vec<Finding>) -> Problems {
        let problem = |(path, message): Finding| Problem {
            // What is missing stands nowhere: point at what it should be in.
            position: (0..=path.len())
                .rev()
                .find_map(|length| position(self.text, index, &path[..length])),
            path: shown(&path),
            message,
        };
        Problems::new(self.file, findings.into_iter().map(problem).collect())
    }
}

/// How deep brackets could be nested, those in strings and comments counted too.
fn depth(text: &str) -> usize {
    let depths = text.bytes().scan(0usize, |depth, byte| {
        match byte {
            b'[' | b'{' => *depth += 1,
            b']' | b'}' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    depths.max().unwrap_or_default()
}

/// Writes a value of one of our types.
pub(crate) fn to_yaml(value: &impl Serialize) -> String {
    serde_yaml::to_string(value).expect("our types have text keys and no failing serialisers")
}

/// `a.b[0]` as a path; for checks. Digits in brackets are indices.
pub(crate) fn path(text: &str) -> Path {
    text.split(['.', '[', ']'])
        .filter(|step| !step.is_empty())
        .map(|step| match step.parse() {
            Ok(index) => Step::Index(index),
            Err(_) => Step::Key(step.to_owned()),
        })
        .collect()
}

/// The path's text; keys with a dot in them are quoted.
fn shown(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(index) => text += &format!("[{index}]"),
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                if key.contains('.') { text += &format!("{key:?}") } else { text += key }
            }
        }
    }
    text
}

/// Reads a value, takes out what is wrong, and so on. `None` when nothing can be made of it.
fn read_all<T: DeserializeOwned>(mut value: Value) -> (Option<T>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut removed: Vec<(Path, usize)> = Vec::new();
    while findings.len() < PROBLEM_LIMIT {
        let error = match serde_path_to_error::deserialize(&value) {
            Ok(read) => return (Some(read), findings),
            Err(error) => error,
        };
        let at = steps(error.path());
        let original = original(&at, &removed);
        let message = error.into_inner().to_string();
        let taken = take(&mut value, &at);
        // A key without a value is as good as absent, as in other readers of these files.
        if taken != Some(Value::Null) || message.starts_with("unknown field") {
            findings.push((original.clone(), explained(&original, &message)));
        }
        match (taken, original.split_last()) {
            (Some(_), Some((Step::Index(index), list))) => removed.push((list.to_vec(), *index)),
            (Some(_), _) => {}
            (None, _) => break,
        }
    }
    (None, findings)
}

fn steps(path: &serde_path_to_error::Path) -> Path {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// The path as it was before elements of lists were taken out.
fn original(path: &[Step], removed: &[(Path, usize)]) -> Path {
    let mut original = Path::new();
    for step in path {
        let step = match step {
            Step::Key(key) => Step::Key(key.clone()),
            Step::Index(index) => {
                let mut gone: Vec<_> = removed
                    .iter()
                    .filter(|(list, _)| *list == original)
                    .map(|(_, index)| *index)
                    .collect();
                gone.sort_unstable();
                Step::Index(
                    gone.iter().fold(*index, |index, gone| index + usize::from(*gone <= index)),
                )
            }
        };
        original.push(step);
    }
    original
}

/// Takes the value at a path out of the one it is in; `None` when there is none.
fn take(value: &mut Value, path: &[Step]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    let parent = parents.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(key.as_str()),
        Step::Index(index) => value.get_mut(*index),
    })?;
    match (last, parent) {
        (Step::Key(key), Value::Mapping(map)) => map.shift_remove(key.as_str()),
        (Step::Index(index), Value::Sequence(list)) => {
            (*index < list.len()).then(|| list.remove(*index))
        }
        _ => None,
    }
}

/// serde's words in ours: with a suggestion for a name that is nearly right, and without the value
/// where it may be a secret.
fn explained(path: &[Step], message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let what =
        ["unknown field", "unknown variant"].into_iter().find(|what| message.starts_with(what));
    match (what, quoted.split_first()) {
        (Some(what), Some((name, known))) => {
            let what = if what == "unknown variant" {
                format!("`{name}` is unknown")
            } else {
                what.to_owned()
            };
            match nearest(name, known) {
                Some(near) => format!("{what}; did you mean `{near}`?"),
                None => format!("{what}; known are {}", known.join(", ")),
            }
        }
        _ if is_secret(path) && message.starts_with("invalid ") => {
            let expected =
                message.rsplit_once("expected ").map_or("something else", |(_, what)| what);
            format!("expected {expected} (what is there is a secret and not shown)")
        }
        _ => match message.split_once("expected struct ") {
            Some((found, _)) => format!("{found}expected a mapping"),
            None => message.replace("a Value::Tagged enum", "a word"),
        },
    }
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance =
        |known: &str| strsim::damerau_levenshtein(&known.to_lowercase(), &name.to_lowercase());
    if name.len() > 64 {
        // No slip of the finger, and the distance would cost its length times theirs.
        return None;
    }
    let near = known.iter().map(|known| (distance(known), *known)).min()?;
    (near.0 <= name.len().div_ceil(3)).then_some(near.1)
}

fn is_secret(path: &[Step]) -> bool {
    matches!(path.last(), Some(Step::Key(key)) if matches!(
        key.as_str(),
        "token" | "key" | "aescbcEncryptionSecret" | "password" | "auth" | "identityToken" | "content"
    ))
}

fn syntax(error: &serde_yaml::Error) -> Problem {
    let position = error.location().map(|location| (location.line(), location.column()));
    let mut message = error.to_string();
    if let Some((line, column)) = position {
        // It stands in front already.
        message = message.replacen(&format!(" at line {line} column {column}"), "", 1);
    }
    Problem { position, path: String::new(), message }
}

/// Line and column, from 1, of a value in document `index`: of its key, or of a list's element.
fn position(text: &str, index: usize, path: &[Step]) -> Option<(usize, usize)> {
    let document = serde_yaml::Deserializer::from_str(text).nth(index)?;
    let error = Walk(path).deserialize(document).err()?;
    // Only the stop at the end of the path carries this message; other errors stand elsewhere.
    error.to_string().contains(FOUND).then_some(())?;
    error.location().map(|location| (location.line(), location.column()))
}

const FOUND: &str = "\u{1}found\u{1}";

/// Follows a path through a document and fails where it ends: the error carries the position.
struct Walk<'a>(&'a [Step]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0 {
            [] => deserializer.deserialize_any(Stop),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a mapping or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(found) = map.next_key_seed(Key(self.0))? {
            if found {
                return map.next_value_seed(Walk(&self.0[1..]));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let [Step::Index(index), rest @ ..] = self.0 else { return Ok(()) };
        for _ in 0..*index {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        list.next_element_seed(Walk(rest)).map(drop)
    }
}

/// Whether a key is the path's next step; fails if it is its last.
struct Key<'a>(&'a [Step]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        match self.0 {
            [Step::Key(wanted)] if wanted == key => Err(E::custom(FOUND)),
            [Step::Key(wanted), ..] => Ok(wanted == key),
            _ => Ok(false),
        }
    }
}

/// Fails on whatever comes.
struct Stop;

impl<'de> Visitor<'de> for Stop {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(FOUND)
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom(FOUND))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(A::Error::custom(FOUND))
    }
}
