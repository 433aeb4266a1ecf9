//! Label and field selectors, as they stand in a query.

use std::fmt;

use serde_json::Value;

/// No object has this many; a longer selector is refused before it is read.
const LONGEST: usize = 100 * 1024;

/// A label selector: all of its requirements must hold. Empty: everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Labels(pub Vec<Requirement>);

/// What must hold of one label.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Requirement {
    /// Which label.
    pub key: String,
    /// What of it.
    pub must: Must,
}

/// See [`Requirement`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Must {
    /// It is there.
    Exist,
    /// It is not there.
    NotExist,
    /// It is there and one of these.
    In(Vec<String>),
    /// It is none of these, or not there.
    NotIn(Vec<String>),
    /// It is a number above this.
    Above(i64),
    /// It is a number below this.
    Below(i64),
}

/// A field selector: all of its terms must hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fields(pub Vec<Term>);

/// What must hold of one field.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Term {
    /// Its path: `metadata.name`.
    pub path: String,
    /// What it is compared with.
    pub value: String,
    /// Must it be equal?
    pub equal: bool,
}

/// Why a selector cannot be read (400).
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// Not a selector.
    #[error("unable to parse requirement: {what} at {at} of {text:?}")]
    Syntax {
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes.
        at: usize,
        /// The selector, if it is short.
        text: String,
    },
    /// A key or value that no label has.
    #[error("unable to parse requirement: {text:?} is no label {what}")]
    Label {
        /// Key or value.
        what: &'static str,
        /// What was given.
        text: String,
    },
    /// Too long.
    #[error("a selector of {bytes} bytes; {LONGEST} are read")]
    TooLong {
        /// What it has.
        bytes: usize,
    },
    /// A field that cannot be selected by.
    #[error("field label not supported: {path}")]
    Unsupported {
        /// Which.
        path: String,
    },
}

impl Labels {
    /// Reads `k`, `!k`, `k=v`, `k==v`, `k!=v`, `k in (a,b)`, `k notin (a,b)`, `k>1`, `k<1`, and commas between them.
    ///
    /// # Errors
    /// It is none, or names what no label can be.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut reader = Reader::new(text)?;
        let mut all = Vec::new();
        reader.space();
        while !reader.rest().is_empty() {
            all.push(reader.requirement()?);
            reader.space();
            if reader.rest().is_empty() {
                break;
            }
            reader.expect(",", "a comma is missing")?;
            reader.space();
            if reader.rest().is_empty() {
                return Err(reader.error("nothing follows the comma"));
            }
        }
        Ok(Self(all))
    }

    /// Reads a `LabelSelector` as it stands in objects (`matchLabels`, `matchExpressions`), which is known to be sound:
    /// an operator that is none selects nothing.
    #[must_use]
    pub fn of(selector: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let labels = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
        let labels = labels.map(|(key, value)| Requirement {
            key: key.clone(),
            must: Must::In(vec![text(value)]),
        });
        let list = selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten();
        let expressions = list.map(|expression| {
            let values = expression["values"].as_array().into_iter().flatten().map(text).collect();
            let must = match expression["operator"].as_str() {
                Some("In") => Must::In(values),
                Some("NotIn") => Must::NotIn(values),
                Some("Exists") => Must::Exist,
                Some("DoesNotExist") => Must::NotExist,
                _ => Must::In(Vec::new()),
            };
            Requirement { key: text(&expression["key"]), must }
        });
        Self(labels.chain(expressions).collect())
    }

    /// Does an object with these labels fit?
    pub fn fit<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = label(&requirement.key);
            let number = || value.and_then(|value| value.parse::<i64>().ok());
            match &requirement.must {
                Must::Exist => value.is_some(),
                Must::NotExist => value.is_none(),
                Must::In(values) => {
                    value.is_some_and(|value| values.iter().any(|known| known == value))
                }
                Must::NotIn(values) => {
                    !value.is_some_and(|value| values.iter().any(|known| known == value))
                }
                Must::Above(bound) => number().is_some_and(|number| number > *bound),
                Must::Below(bound) => number().is_some_and(|number| number < *bound),
            }
        })
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, must }) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match must {
                Must::Exist => f.write_str(key)?,
                Must::NotExist => write!(f, "!{key}")?,
                Must::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Must::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Must::Above(bound) => write!(f, "{key}>{bound}")?,
                Must::Below(bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

impl Fields {
    /// Reads `path=value`, `==`, `!=`, and commas between them; `\` before a comma, an equals sign or itself makes it
    /// part of the value.
    ///
    /// # Errors
    /// It is none, or names a path that `supported` does not have.
    pub fn parse(text: &str, supported: impl Fn(&str) -> bool) -> Result<Self, Error> {
        let reader = Reader::new(text)?;
        let mut all = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let Some(at) = term.find(['=', '!']) else {
                return Err(reader.error("a term has no = or !="));
            };
            let (path, rest) = term.split_at(at);
            let (equal, value) =
                match (rest.strip_prefix("=="), rest.strip_prefix("!="), rest.strip_prefix('=')) {
                    (Some(value), ..) => (true, value),
                    (_, Some(value), _) => (false, value),
                    (.., Some(value)) => (true, value),
                    _ => return Err(reader.error("a term has no = or !=")),
                };
            let path = path.trim().to_owned();
            if !supported(&path) {
                return Err(Error::Unsupported { path });
            }
            let value = unescape(value)
                .ok_or_else(|| reader.error("a backslash before what needs none"))?;
            all.push(Term { path, value, equal });
        }
        Ok(Self(all))
    }

    /// Does an object with these fields fit? A field that is not there is empty.
    pub fn fit<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0
            .iter()
            .all(|term| (field(&term.path).unwrap_or_default() == term.value) == term.equal)
    }

    /// What a path must be equal to, as an index needs it.
    #[must_use]
    pub fn exactly(&self, path: &str) -> Option<&str> {
        self.0.iter().find(|term| term.equal && term.path == path).map(|term| &term.value[..])
    }
}

/// The parts between commas that stand by themselves.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut from, mut escaped) = (0, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

fn unescape(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => characters.next().filter(|next| matches!(next, '\\' | ',' | '='))?,
            // It ends no value.
            '=' => return None,
            other => other,
        });
    }
    Some(plain)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Result<Self, Error> {
        if text.len() > LONGEST {
            return Err(Error::TooLong { bytes: text.len() });
        }
        Ok(Self { text, at: 0 })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn error(&self, what: &'static str) -> Error {
        Error::Syntax { what, at: self.at, text: self.text.chars().take(200).collect() }
    }

    fn takes(&mut self, token: &str) -> bool {
        let taken = self.rest().starts_with(token);
        if taken {
            self.at += token.len();
        }
        taken
    }

    fn expect(&mut self, token: &str, what: &'static str) -> Result<(), Error> {
        if self.takes(token) { Ok(()) } else { Err(self.error(what)) }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end =
            rest.find(|c: char| c.is_whitespace() || "=!<>(),".contains(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn requirement(&mut self) -> Result<Requirement, Error> {
        let absent = self.takes("!");
        self.space();
        let key = self.word();
        if !is_label_key(key) {
            return Err(Error::Label { what: "key", text: key.to_owned() });
        }
        self.space();
        let must = if absent {
            Must::NotExist
        } else if self.takes("!=") {
            Must::NotIn(vec![self.value()?])
        } else if self.takes("==") || self.takes("=") {
            Must::In(vec![self.value()?])
        } else if self.takes(">") {
            Must::Above(self.number()?)
        } else if self.takes("<") {
            Must::Below(self.number()?)
        } else if self.rest().is_empty() || self.rest().starts_with(',') {
            Must::Exist
        } else {
            match self.word() {
                "in" => Must::In(self.values()?),
                "notin" => Must::NotIn(self.values()?),
                _ => return Err(self.error("neither an operator nor a comma follows the key")),
            }
        };
        Ok(Requirement { key: key.to_owned(), must })
    }

    fn value(&mut self) -> Result<String, Error> {
        self.space();
        let value = self.word();
        if is_label_value(value) {
            Ok(value.to_owned())
        } else {
            Err(Error::Label { what: "value", text: value.to_owned() })
        }
    }

    fn number(&mut self) -> Result<i64, Error> {
        self.space();
        let error = self.error("no whole number follows");
        self.word().parse().map_err(|_not_a_number| error)
    }

    fn values(&mut self) -> Result<Vec<String>, Error> {
        self.space();
        self.expect("(", "no list follows")?;
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            self.space();
            if self.takes(")") {
                return Ok(values);
            }
            self.expect(",", "the list does not end")?;
        }
    }
}

/// `name` or `prefix/name`: a DNS subdomain of at most 253 characters, and a name of at most 63.
#[must_use]
pub fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_subdomain)
}

/// Empty, or at most 63 letters, digits, `-`, `_` and `.` with a letter or digit at both ends.
#[must_use]
pub fn is_label_value(value: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// RFC 1123: at most 253 characters, parts of lower-case letters, digits and `-`.
#[must_use]
pub fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(|part| !part.is_empty() && is_dns_characters(part))
}

fn is_dns_characters(part: &str) -> bool {
    part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !part.starts_with('-')
        && !part.ends_with('-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_in_objects_are_the_same_as_those_in_queries() {
        let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [
            {"key": "b", "operator": "In", "values": ["x", "y"]},
            {"key": "c", "operator": "NotIn", "values": ["z"]},
            {"key": "d", "operator": "Exists"},
            {"key": "e", "operator": "DoesNotExist"},
        ]});
        let same = Labels::parse("a in (1),b in (x,y),c notin (z),d,!e").expect("it is sound");
        assert_eq!(Labels::of(&selector), same);
        assert_eq!(Labels::of(&json!({})), Labels::default());
        let odd = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
        assert!(!Labels::of(&odd).fit(|_| None) && !Labels::of(&odd).fit(|_| Some("x")));
    }

    #[test]
    fn label_selectors_choose_as_the_reference_does() {
        let labels = |key: &str| match key {
            "app" => Some("web"),
            "example.org/tier" => Some("3"),
            "empty" => Some(""),
            _ => None,
        };
        for (text, fits) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("app=web", true),
            ("app==web,example.org/tier=3", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("other notin (a)", true),
            ("example.org/tier>2,example.org/tier<4", true),
            ("app>2", false),
            ("empty=", true),
            ("empty in ()", true),
            (" app = web , ! other ", true),
            ("app,!empty", false),
        ] {
            let selector = Labels::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(selector.fit(labels), fits, "{text}");
            let again = Labels::parse(&selector.to_string());
            assert_eq!(again, Ok(selector), "{text} is written as it is read");
        }
    }

    #[test]
    fn what_is_no_label_selector_is_refused_with_where() {
        for text in [
            "=a", "a b", "a in", "a in (", "a in (b", "a in b", "a,", ",a", "a>b", "a=b=c", "-a",
            "a=-", "a/b/c", "A/b", "a=b c", "!a=b", "a\u{e4}",
        ] {
            assert!(Labels::parse(text).is_err(), "{text}");
        }
        assert!(matches!(Labels::parse(&"a,".repeat(60_000)), Err(Error::TooLong { .. })));
        let error = Labels::parse("app in (web").expect_err("it does not end");
        assert_eq!(
            error.to_string(),
            r#"unable to parse requirement: the list does not end at 11 of "app in (web""#
        );
    }

    #[test]
    fn field_selectors_compare_and_refuse_what_cannot_be_selected_by() {
        let supported = |path: &str| matches!(path, "metadata.name" | "status.phase");
        let fields = |path: &str| (path == "status.phase").then_some("Running");
        for (text, fits) in [
            ("", true),
            ("status.phase=Running", true),
            ("status.phase==Running,metadata.name!=x", true),
            ("status.phase!=Running", false),
            ("metadata.name=", true),
        ] {
            let selector =
                Fields::parse(text, supported).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(selector.fit(fields), fits, "{text}");
        }
        let escaped = Fields::parse(r"metadata.name=a\,b\=c\\", supported).expect("it is sound");
        assert_eq!(escaped.exactly("metadata.name"), Some(r"a,b=c\"));
        let error = Fields::parse("spec.foo=1", supported).expect_err("nobody indexes it");
        assert_eq!(error.to_string(), "field label not supported: spec.foo");
        for text in ["metadata.name", "metadata.name>1", r"metadata.name=\x", "metadata.name!x"] {
            assert!(Fields::parse(text, supported).is_err(), "{text}");
        }
    }
}
