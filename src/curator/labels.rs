//! Labels of nodes: what may be one, and how they change (spec §4.6).

use std::collections::{BTreeMap, BTreeSet};

use orlop_proto::metropolis::proto::common::{NodeLabels, node_labels::Pair};

/// How many a node may have.
pub const MOST: usize = 128;
const NAME_LENGTH: usize = 63;
const PREFIX_LENGTH: usize = 253;

/// Why labels stay as they are.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// No key.
    #[error(
        "{0:?} is no label's key: 1 to 63 letters, digits, '-', '_' and '.', a letter or digit at both ends, and before \
         them a DNS name and a '/' if need be"
    )]
    Key(String),
    /// No value.
    #[error(
        "{value:?} is no value for label {key:?}: at most 63 letters, digits, '-', '_' and '.', a letter or digit at \
         both ends"
    )]
    Value {
        /// Of which label.
        key: String,
        /// What was given.
        value: String,
    },
    /// More than once.
    #[error("label {0:?} is named twice; say once what is to become of it")]
    Repeated(String),
    /// Together.
    #[error("the node would have {0} labels, more than {MOST}; delete some in the same call")]
    TooMany(usize),
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Key(_) | Refusal::Value { .. } | Refusal::Repeated(_) => {
                Self::invalid_argument(text)
            }
            Refusal::TooMany(_) => Self::out_of_range(text),
        }
    }
}

/// A sound change of some node's labels.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    upsert: BTreeMap<String, String>,
    delete: BTreeSet<String>,
}

impl Change {
    /// Of these, which no node need be known for.
    ///
    /// # Errors
    /// Any [`Refusal`] but [`Refusal::TooMany`].
    pub fn new(
        upsert: impl IntoIterator<Item = (String, String)>,
        delete: impl IntoIterator<Item = String>,
    ) -> Result<Self, Refusal> {
        let mut change = Self { upsert: BTreeMap::new(), delete: BTreeSet::new() };
        for (key, value) in upsert {
            if !is_key(&key) {
                return Err(Refusal::Key(key));
            }
            if !is_value(&value) {
                return Err(Refusal::Value { key, value });
            }
            if change.upsert.insert(key.clone(), value).is_some() {
                return Err(Refusal::Repeated(key));
            }
        }
        for key in delete {
            if !is_key(&key) {
                return Err(Refusal::Key(key));
            }
            if change.upsert.contains_key(&key) || !change.delete.insert(key.clone()) {
                return Err(Refusal::Repeated(key));
            }
        }
        Ok(change)
    }

    /// The labels afterwards, by key. Those that are to go and are not there are gone.
    ///
    /// # Errors
    /// [`Refusal::TooMany`].
    pub fn apply(self, labels: Option<&NodeLabels>) -> Result<NodeLabels, Refusal> {
        let mut all: BTreeMap<_, _> =
            pairs(labels).map(|pair| (pair.key.clone(), pair.value.clone())).collect();
        all.retain(|key, _| !self.delete.contains(key));
        all.extend(self.upsert);
        if all.len() > MOST { Err(Refusal::TooMany(all.len())) } else { Ok(message(all)) }
    }
}

/// As they are told: always a message, by key.
#[must_use]
pub fn sorted(labels: Option<&NodeLabels>) -> NodeLabels {
    let mut sorted = NodeLabels { pairs: pairs(labels).cloned().collect() };
    sorted.pairs.sort_by(|one, other| one.key.cmp(&other.key));
    sorted
}

/// Which of two equal keys is taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Repeated {
    /// Of a node that registers.
    FirstWins,
    /// Of the first node.
    LastWins,
}

/// What a new machine may keep of the labels it comes with; the rest is dropped.
#[must_use]
pub fn of_new_node(labels: Option<&NodeLabels>, repeated: Repeated) -> NodeLabels {
    let mut kept = BTreeMap::new();
    for Pair { key, value } in pairs(labels).take(MOST) {
        let taken = repeated == Repeated::FirstWins && kept.contains_key(key);
        if is_key(key) && is_value(value) && !taken {
            kept.insert(key.clone(), value.clone());
        }
    }
    message(kept)
}

fn pairs(labels: Option<&NodeLabels>) -> impl Iterator<Item = &Pair> {
    labels.into_iter().flat_map(|labels| &labels.pairs)
}

fn message(all: BTreeMap<String, String>) -> NodeLabels {
    NodeLabels { pairs: all.into_iter().map(|(key, value)| Pair { key, value }).collect() }
}

/// `[prefix/]name`.
#[must_use]
pub fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_domain(prefix, PREFIX_LENGTH) && is_name(name),
        None => is_name(text),
    }
}

/// Empty, or as a name.
#[must_use]
pub fn is_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

/// A name of DNS that no program takes for an address: its last label is no number.
#[must_use]
pub fn is_domain(text: &str, longest: usize) -> bool {
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        let sound = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        (1..=NAME_LENGTH).contains(&bytes.len())
            && bytes.iter().all(|byte| sound(byte) || *byte == b'-')
            && bytes.first().is_some_and(sound)
            && bytes.last().is_some_and(sound)
    };
    let is_number = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_digit())
            || label
                .strip_prefix("0x")
                .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    text.len() <= longest
        && text.split('.').all(is_label)
        && text.rsplit('.').next().is_some_and(|last| !is_number(last))
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=NAME_LENGTH).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    fn labels(all: &[(&str, &str)]) -> NodeLabels {
        let pair = |(key, value): &(&str, &str)| Pair {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        NodeLabels { pairs: all.iter().map(pair).collect() }
    }

    fn change(upsert: &[(&str, &str)], delete: &[&str]) -> Result<Change, Refusal> {
        Change::new(
            upsert.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
            delete.iter().map(|key| (*key).to_owned()),
        )
    }

    #[test]
    fn keys_and_values() {
        let long = "a".repeat(63);
        let domain = format!("{long}.{long}.{long}.{}", "b".repeat(61));
        assert_eq!(domain.len(), 253);
        for key in
            ["a", "A-b_c.9", &long, "a.b/c", "x/y", "0x1g/a", "1.a/b", &format!("{domain}/a")]
        {
            assert!(is_key(key), "{key}");
        }
        let wrong = [
            "", "/", "a/", "/a", "a/b/c", "-a", "a-", ".a", "_", "ä", "a b", "A/b", "a_b/c",
            "80/a", "1.1/a", "0x1f/a", "0x/a", "a.0X1/a", "a..b/c", "-a/b", "a-/b",
        ];
        for key in wrong {
            assert!(!is_key(key), "{key}");
        }
        assert!(!is_key(&format!("{long}a")));
        assert!(!is_key(&format!("{domain}b/a")));
        assert!(!is_key(&format!("{long}a/b")));
        assert!(is_value("") && is_value("a.b") && is_value(&long));
        assert!(!is_value("a/b") && !is_value("-") && !is_value(&format!("{long}a")));
    }

    #[test]
    fn a_change_is_all_or_nothing() {
        let before = labels(&[("z", "1"), ("a", "2"), ("gone", "")]);
        let after = change(&[("b", ""), ("a", "3")], &["gone", "never"])
            .and_then(|change| change.apply(Some(&before)));
        assert_eq!(after, Ok(labels(&[("a", "3"), ("b", ""), ("z", "1")])));
        assert_eq!(change(&[], &[]).and_then(|change| change.apply(None)), Ok(labels(&[])));
        let code = |refusal: Refusal| Status::from(refusal).code();
        for (upsert, delete) in [
            (&[("-", "")][..], &[][..]),
            (&[("a", "-")], &[]),
            (&[("a", ""), ("a", "")], &[]),
            (&[("a", "")], &["a"]),
            (&[], &["a", "a"]),
            (&[], &["/"]),
        ] {
            assert_eq!(change(upsert, delete).map_err(code), Err(Code::InvalidArgument));
        }
    }

    #[test]
    fn a_node_has_128_labels_and_not_one_more() {
        let names: Vec<_> = (0..MOST).map(|number| format!("n{number:03}")).collect();
        let full = labels(&names.iter().map(|name| (&**name, "")).collect::<Vec<_>>());
        let replaced = change(&[("new", "")], &["n000"]).and_then(|it| it.apply(Some(&full)));
        assert_eq!(replaced.map(|labels| labels.pairs.len()), Ok(MOST));
        let refused = change(&[("new", "")], &[]).and_then(|change| change.apply(Some(&full)));
        assert_eq!(refused, Err(Refusal::TooMany(MOST + 1)));
        assert_eq!(Status::from(Refusal::TooMany(MOST + 1)).code(), Code::OutOfRange);
    }

    #[test]
    fn a_new_node_keeps_what_is_sound() {
        let given = labels(&[("a", "1"), ("-", ""), ("b", "-"), ("a", "2"), ("c", "3")]);
        let first = of_new_node(Some(&given), Repeated::FirstWins);
        assert_eq!(first, labels(&[("a", "1"), ("c", "3")]));
        let last = of_new_node(Some(&given), Repeated::LastWins);
        assert_eq!(last, labels(&[("a", "2"), ("c", "3")]));
        let names: Vec<_> = (0..2 * MOST).map(|number| format!("n{number:03}")).collect();
        let many = labels(&names.iter().map(|name| (&**name, "")).collect::<Vec<_>>());
        let kept = of_new_node(Some(&many), Repeated::FirstWins);
        assert_eq!(kept.pairs, many.pairs[..MOST]);
        assert_eq!(of_new_node(None, Repeated::LastWins), labels(&[]));
    }

    #[test]
    fn labels_are_told_by_key() {
        assert_eq!(sorted(None), labels(&[]));
        let told = sorted(Some(&labels(&[("b", ""), ("a", "")])));
        assert_eq!(told, labels(&[("a", ""), ("b", "")]));
    }
}
