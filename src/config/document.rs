//! Reads one YAML document into a type, and finds *all* that is wrong with it.
//!
//! serde stops at the first error and knows no position once the text has become a [`Value`]. So the
//! text is read into a value first ([`tree`]); the value is read into the type again and again, each
//! time without what was wrong the time before; and only when something is wrong, the text is walked
//! once more to learn where things stand ([`places`]). [`words`] says serde's errors in ours.
//!
//! The text may be hostile: its depth, the number of its values and what its aliases expand to are
//! bounded, and so is the work done for its mistakes.

mod places;
mod tree;
mod words;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use serde_yaml::Value;

use crate::problem::{Problem, Problems};
use places::Places;
pub(crate) use words::is_secret;

/// More problems than this are not worth reading at once; it also bounds the work a hostile file
/// can cause.
const PROBLEM_LIMIT: usize = 50;

/// How often a document is read without what was wrong the time before: a problem each time, or a
/// key without a value, of which there are only so many kinds.
const ROUND_LIMIT: usize = 300;

/// The parser's work grows with the square of the depth of nested brackets, so deeper texts do not
/// get there. serde_yaml itself refuses 128 levels, but only after it has parsed the whole text.
const DEPTH_LIMIT: usize = 1000;

/// Commas, brackets and line ends. The parser keeps about a hundred bytes for each value before it
/// hands out the first, and a value needs one of these; text between them does not count.
const MARK_LIMIT: usize = 500_000;

/// One step from a value to one inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    /// The second time a key stands in one mapping.
    Again(String),
    Index(usize),
}

/// Where a value is, from the top of its document.
pub(crate) type Path = Vec<Step>;

/// What is wrong, and with which value.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) path: Path,
    pub(crate) message: String,
    /// Another value that makes it wrong: nothing is wrong when that one could not be read.
    pub(crate) because: Option<Path>,
}

impl Finding {
    fn new(path: Path, message: String) -> Self {
        Self { path, message, because: None }
    }

    /// With a value that a JSON pointer names.
    pub(crate) fn at(pointer: &str, message: String) -> Self {
        let step =
            |step: &str| step.parse().map_or_else(|_| Step::Key(step.to_owned()), Step::Index);
        Self::new(pointer.split('/').skip(1).map(step).collect(), message)
    }
}

/// The documents of a text.
pub(crate) struct Text<'a> {
    file: &'a str,
    text: &'a str,
    documents: Vec<Document>,
}

/// One of them, and what is wrong with it whatever it should be.
pub(crate) struct Document {
    value: Value,
    findings: Vec<Finding>,
}

impl Document {
    /// Whether it is a mapping with this key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.value.get(key).is_some()
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.value.is_null()
    }
}

impl<'a> Text<'a> {
    /// Splits a text into its documents.
    pub(crate) fn new(file: &'a str, text: &'a str) -> Result<Self, Problems> {
        let refused = |position, message| {
            let problem = Problem { position, path: String::new(), message };
            Problems::new(file, vec![problem])
        };
        // libyaml knows the mark, but serde_yaml takes what follows for a second document.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (depth, marks) = marks(text);
        if depth > DEPTH_LIMIT {
            let message = format!("brackets are nested more than {DEPTH_LIMIT} deep");
            return Err(refused(None, message));
        }
        if marks > MARK_LIMIT {
            let message = format!("more than {MARK_LIMIT} commas, brackets and lines");
            return Err(refused(None, message));
        }
        let mut budget = tree::Budget::default();
        let mut documents = Vec::new();
        for document in serde_yaml::Deserializer::from_str(text) {
            let (value, findings) = tree::read(document, &mut budget).map_err(|error| {
                let (position, message) = words::syntax(text, &error);
                refused(position, message)
            })?;
            documents.push(Document { value, findings });
        }
        Ok(Self { file, text, documents })
    }

    pub(crate) fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// A problem of a file that is no one value's.
    pub(crate) fn problem(&self, index: Option<usize>, message: &str) -> Problems {
        let position =
            index.and_then(|index| Places::of(self.text, index)).and_then(|places| places.top());
        let problem = Problem { position, path: String::new(), message: message.to_owned() };
        Problems::new(self.file, vec![problem])
    }

    /// Reads document `index` as a `T` and asks `check` what is wrong with it beyond the types.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        index: usize,
        check: impl FnOnce(&T) -> Vec<Finding>,
    ) -> Result<T, Problems> {
        let (value, mut findings) = match self.documents.get(index) {
            Some(document) => (document.value.clone(), document.findings.clone()),
            None => (Value::Null, Vec::new()),
        };
        let (read, removed) = read_all(value, &mut findings);
        if let Some(read) = &read {
            // A value that could not be read is missing now; that is no second problem.
            let bad: Vec<Path> = findings.iter().map(|finding| finding.path.clone()).collect();
            let related =
                |path: &Path| bad.iter().any(|bad| bad.starts_with(path) || path.starts_with(bad));
            for mut finding in check(read) {
                finding.path = removed.original(&finding.path);
                let because = finding.because.take().map(|path| removed.original(&path));
                if !related(&finding.path) && !because.as_ref().is_some_and(related) {
                    findings.push(finding);
                }
            }
        }
        match read {
            Some(read) if findings.is_empty() => Ok(read),
            _ => Err(self.problems(index, findings)),
        }
    }

    fn problems(&self, index: usize, findings: Vec<Finding>) -> Problems {
        let places = Places::of(self.text, index);
        let problem = |Finding { path, message, .. }| Problem {
            position: places.as_ref().and_then(|places| places.nearest(&path)),
            path: shown(&path),
            message,
        };
        let mut problems = Problems::new(self.file, findings.into_iter().map(problem).collect());
        problems.list.truncate(PROBLEM_LIMIT);
        problems
    }
}

/// How deep brackets could be nested and how many marks there are, those in strings and comments
/// counted too.
fn marks(text: &str) -> (usize, usize) {
    let (mut depth, mut deepest, mut marks) = (0_usize, 0, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b'\n' | b'\r' => {}
            _ => continue,
        }
        deepest = deepest.max(depth);
        marks += 1;
    }
    (deepest, marks)
}

/// Writes a value of one of our types.
pub(crate) fn to_yaml(value: &impl Serialize) -> String {
    serde_yaml::to_string(value).expect("our types have text keys and no failing serialisers")
}

/// The path's text; keys with a dot in them are quoted.
fn shown(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(index) => text += &format!("[{index}]"),
            Step::Key(key) | Step::Again(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                if key.contains('.') || key.chars().any(char::is_control) {
                    text += &format!("{key:?}");
                } else {
                    text += key;
                }
            }
        }
    }
    text
}

/// Elements that were taken out of lists: the list, and the index at that time.
#[derive(Default)]
struct Removed(Vec<(Path, usize)>);

impl Removed {
    /// The path as it was before.
    fn original(&self, path: &[Step]) -> Path {
        if self.0.is_empty() {
            return path.to_vec();
        }
        let mut original = Path::new();
        for step in path {
            let step = match step {
                Step::Index(index) => {
                    let mut gone: Vec<_> = self
                        .0
                        .iter()
                        .filter(|(list, _)| *list == original)
                        .map(|(_, index)| *index)
                        .collect();
                    gone.sort_unstable();
                    Step::Index(
                        gone.iter().fold(*index, |index, gone| index + usize::from(*gone <= index)),
                    )
                }
                key => key.clone(),
            };
            original.push(step);
        }
        original
    }
}

/// Reads a value, takes out what is wrong, and so on. `None` when nothing can be made of it.
fn read_all<T: DeserializeOwned>(
    mut value: Value,
    findings: &mut Vec<Finding>,
) -> (Option<T>, Removed) {
    let mut removed = Removed::default();
    for _ in 0..ROUND_LIMIT {
        let error = match serde_path_to_error::deserialize(&value) {
            Ok(read) => return (Some(read), removed),
            Err(error) => error,
        };
        let at = steps(error.path());
        let message = error.into_inner().to_string();
        let is_null = matches!(at.last(), Some(Step::Key(_)))
            && find(&mut value, &at).is_some_and(|value| value.is_null());
        if is_null && !message.starts_with("unknown field") {
            // A key without a value is as good as absent, as in other readers of these files; and so
            // is that key in the neighbours.
            take_nulls(&mut value, &at);
            continue;
        }
        let original = removed.original(&at);
        findings.push(Finding::new(original.clone(), words::explained(&original, &message)));
        if findings.len() >= PROBLEM_LIMIT || !take(&mut value, &at) {
            return (None, removed);
        }
        if let Some((Step::Index(index), list)) = original.split_last() {
            removed.0.push((list.to_vec(), *index));
        }
    }
    let message = "too many keys have no value; take them out".to_owned();
    findings.push(Finding::new(Path::new(), message));
    (None, removed)
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

fn find<'a>(value: &'a mut Value, path: &[Step]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Key(key) | Step::Again(key) => value.get_mut(key.as_str()),
        Step::Index(index) => value.get_mut(*index),
    })
}

/// Takes the value at a path out of the one it is in; whether there was one.
fn take(value: &mut Value, path: &[Step]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    match (last, find(value, parents)) {
        (Step::Key(key), Some(Value::Mapping(map))) => map.shift_remove(key.as_str()).is_some(),
        (Step::Index(index), Some(Value::Sequence(list))) if *index < list.len() => {
            list.remove(*index);
            true
        }
        _ => false,
    }
}

/// Takes out what is null at a path, whatever the indices in it.
fn take_nulls(value: &mut Value, path: &[Step]) {
    match (path, value) {
        ([Step::Key(key)], Value::Mapping(map))
            if map.get(key.as_str()).is_some_and(Value::is_null) =>
        {
            map.shift_remove(key.as_str());
        }
        ([Step::Key(key), rest @ ..], Value::Mapping(map)) => {
            if let Some(value) = map.get_mut(key.as_str()) {
                take_nulls(value, rest);
            }
        }
        ([Step::Index(_), rest @ ..], Value::Sequence(list)) => {
            list.iter_mut().for_each(|value| take_nulls(value, rest));
        }
        _ => {}
    }
}
