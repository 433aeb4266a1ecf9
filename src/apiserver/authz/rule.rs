//! One rule of a role: what it allows, whether it covers another, and how it is told.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Action, quoted};
use crate::object::Object;

/// `PolicyRule` of `rbac.authorization.k8s.io/v1`, ready to be asked.
///
/// Either the resource fields are filled or `urls`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    verbs: Words,
    /// Which of the usual verbs it has, and
    usual: u16,
    /// [`marks`] of what it is about: most rules that say something else are done with after two comparisons of numbers.
    /// Whoever has a thousand bindings waits for a thousand of these.
    marks: u64,
    groups: Words,
    /// `pods`, `pods/log`, `*/scale`, `*`.
    resources: Words,
    /// Empty: all.
    names: Words,
    /// `/healthz`, `/healthz/*`, `*`.
    urls: Words,
}

type Words = Box<[Box<str>]>;

/// How an action is looked for: what [`Rule::allows`] needs of it, worked out once for all rules.
#[derive(Clone, Copy, Debug)]
pub struct Sought {
    verb: u16,
    marks: u64,
}

const ANY: u16 = 1 << 15;
/// A verb that is none of the usual.
const OTHER: u16 = 1 << 14;
const USUAL: [&str; 8] =
    ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

impl Sought {
    /// What this is about.
    #[must_use]
    pub fn of(action: &Action<'_>) -> Self {
        let marks = action.asked.map_or(0, |asked| mark(asked.plural) | mark(asked.name) << NAMES);
        Self { verb: bit(action.verb), marks }
    }
}

fn bit(verb: &str) -> u16 {
    match USUAL.iter().position(|usual| *usual == verb) {
        Some(place) => 1 << place,
        None if verb == "*" => ANY,
        None => OTHER,
    }
}

/// Where the marks of names begin; those of resources are below.
const NAMES: u32 = 32;
const EVERY: u64 = (1 << NAMES) - 1;

/// One of 32 bits, by FNV-1a.
fn mark(word: &str) -> u64 {
    let hash = word.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    1 << (hash >> 59)
}

/// The marks of all that a rule may be about.
fn marks(resources: &[Box<str>], names: &[Box<str>]) -> u64 {
    let of_resources = resources.iter().fold(0, |marks, known| {
        let (plural, _) = known.rsplit_once('/').unwrap_or((known, ""));
        marks | if plural == "*" { EVERY } else { mark(known) | mark(plural) }
    });
    let of_names = names.iter().fold(0, |marks, name| marks | mark(name));
    of_resources | if names.is_empty() { EVERY } else { of_names } << NAMES
}

impl Rule {
    /// As it stands in a role. What is not there is empty.
    #[must_use]
    pub fn read(rule: &Value) -> Self {
        let words = |field: &str| -> Words {
            let list = rule.get(field).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(Box::from).collect()
        };
        let mut read = Self {
            verbs: words("verbs"),
            usual: 0,
            marks: 0,
            groups: words("apiGroups"),
            resources: words("resources"),
            names: words("resourceNames"),
            urls: words("nonResourceURLs"),
        };
        read.note();
        read
    }

    /// The rules of a role.
    #[must_use]
    pub fn read_all(role: &Object) -> Vec<Self> {
        crate::object::items(role, "/rules").map(Self::read).collect()
    }

    fn note(&mut self) {
        self.usual = self.verbs.iter().fold(0, |bits, verb| bits | bit(verb));
        self.marks = marks(&self.resources, &self.names);
    }

    /// Everything, which is more than any other rule of resources.
    #[must_use]
    pub fn all_resources() -> Self {
        Self::read(&json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}))
    }

    /// The same for paths.
    #[must_use]
    pub fn all_urls() -> Self {
        Self::read(&json!({"nonResourceURLs": ["*"], "verbs": ["*"]}))
    }

    /// Does it allow this, which is sought by [`Sought::of`] it?
    #[must_use]
    pub fn allows(&self, sought: Sought, action: &Action<'_>) -> bool {
        let usual = self.usual & (sought.verb | ANY);
        if usual == 0 || self.marks & sought.marks != sought.marks {
            return false;
        }
        if usual == OTHER && !has(&self.verbs, action.verb) {
            return false;
        }
        let Some(asked) = &action.asked else {
            return self.urls.iter().any(|url| matches_url(url, action.path));
        };
        has_or_any(&self.groups, asked.group)
            && self
                .resources
                .iter()
                .any(|known| matches_resource(known, asked.plural, asked.subresource))
            && (self.names.is_empty() || has(&self.names, asked.name))
    }

    /// Does it allow everything that `part` does, which is of one verb, group, resource and name, or of one
    /// verb and path?
    fn covers(&self, part: &Part<'_>) -> bool {
        if !has_or_any(&self.verbs, part.verb) {
            return false;
        }
        if let Some(url) = part.url {
            return self.urls.iter().any(|own| {
                **own == *url || own.strip_suffix('*').is_some_and(|start| url.starts_with(start))
            });
        }
        has_or_any(&self.groups, part.group)
            && self.resources.iter().any(|own| {
                let (plural, sub) = part.resource.rsplit_once('/').unwrap_or((part.resource, ""));
                matches_resource(own, plural, sub)
            })
            && (self.names.is_empty() || part.name.is_some_and(|name| has(&self.names, name)))
    }

    /// All it allows, one by one.
    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let of_resources = self.groups.iter().flat_map(move |group| {
            self.resources.iter().flat_map(move |resource| {
                self.verbs.iter().flat_map(move |verb| {
                    let part = Part { verb, group, resource, ..Part::default() };
                    let all = self.names.is_empty().then_some(part);
                    let named =
                        self.names.iter().map(move |name| Part { name: Some(name), ..part });
                    all.into_iter().chain(named)
                })
            })
        });
        let of_urls = self.urls.iter().flat_map(move |url| {
            self.verbs.iter().map(move |verb| Part { verb, url: Some(url), ..Part::default() })
        });
        of_resources.chain(of_urls)
    }

    /// How many [`Self::parts`] there are.
    fn size(&self) -> usize {
        let names = self.names.len().max(1);
        let lists = [self.groups.len(), self.resources.len(), names];
        let of_resources = lists.iter().fold(1_usize, |all, list| all.saturating_mul(*list));
        self.verbs.len().saturating_mul(of_resources.saturating_add(self.urls.len()))
    }

    /// As it is stored; what is empty is left out.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut body = Object::new();
        for (field, words) in self.fields() {
            if !words.is_empty() {
                body.insert(field.1.to_owned(), words.iter().map(|word| &**word).collect());
            }
        }
        body.into()
    }

    /// Its resource rule for a review, if it is one.
    #[must_use]
    pub fn of_resources(&self) -> Option<Value> {
        (!self.resources.is_empty()).then(|| {
            let mut body = self.body();
            body.as_object_mut().map(|body| body.remove("nonResourceURLs"));
            body
        })
    }

    /// The same of paths.
    #[must_use]
    pub fn of_urls(&self) -> Option<Value> {
        let urls = || self.urls.iter().map(|url| &**url).collect::<Value>();
        let verbs = || self.verbs.iter().map(|verb| &**verb).collect::<Value>();
        (!self.urls.is_empty()).then(|| json!({"nonResourceURLs": urls(), "verbs": verbs()}))
    }

    /// The names of its fields, in messages and in objects, with what they hold.
    fn fields(&self) -> [((&'static str, &'static str), &Words); 5] {
        [
            (("APIGroups", "apiGroups"), &self.groups),
            (("Resources", "resources"), &self.resources),
            (("NonResourceURLs", "nonResourceURLs"), &self.urls),
            (("ResourceNames", "resourceNames"), &self.names),
            (("Verbs", "verbs"), &self.verbs),
        ]
    }

    /// `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get" "list"]}`, as the reference writes it.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::from("{");
        for ((field, _), words) in self.fields() {
            if !words.is_empty() {
                let before = if text.len() > 1 { ", " } else { "" };
                let _ = write!(text, "{before}{field}:{}", list(words.iter().map(|word| &**word)));
            }
        }
        text.push('}');
        text
    }
}

/// `["a" "b"]`.
pub(super) fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.map(quoted).collect();
    format!("[{}]", words.join(" "))
}

/// One thing a rule allows.
#[derive(Clone, Copy, Default)]
struct Part<'a> {
    verb: &'a str,
    group: &'a str,
    resource: &'a str,
    name: Option<&'a str>,
    url: Option<&'a str>,
}

impl Part<'_> {
    /// As a rule that has this first.
    fn rule(&self) -> Rule {
        let one = |word: &str| -> Words { Box::new([Box::from(word)]) };
        let mut rule = Rule { verbs: one(self.verb), ..Rule::default() };
        if let Some(url) = self.url {
            rule.urls = one(url);
        } else {
            (rule.groups, rule.resources) = (one(self.group), one(self.resource));
            rule.names = self.name.map(one).unwrap_or_default();
        }
        rule.note();
        rule
    }
}

/// More parts than any role that means well has: a body of 3 MiB can hold rules of 10^15.
const MOST_PARTS: usize = 200_000;

/// What of `wanted` no single rule of `held` covers; verbs of the same resource together, as the reference
/// tells it.
///
/// # Errors
/// When `wanted` allows more single things than can be looked at.
pub fn uncovered(held: &[&Rule], wanted: &[Rule]) -> Result<Vec<Rule>, TooMany> {
    let size = wanted.iter().fold(0_usize, |all, rule| all.saturating_add(rule.size()));
    if size > MOST_PARTS {
        return Err(TooMany(size));
    }
    let mut missing: Vec<(Part<'_>, Rule)> = Vec::new();
    for part in wanted.iter().flat_map(Rule::parts) {
        if held.iter().any(|rule| rule.covers(&part)) {
            continue;
        }
        let same = missing.iter_mut().rev().take(FOLD).find(|(known, _)| {
            part.url.is_none()
                && (known.group, known.resource, known.name, known.url)
                    == (part.group, part.resource, part.name, None)
        });
        match same {
            Some((_, rule)) => {
                let mut verbs: Vec<_> = rule.verbs.to_vec();
                if !has(&verbs, part.verb) {
                    verbs.push(part.verb.into());
                    rule.verbs = verbs.into();
                    rule.note();
                }
            }
            None => missing.push((part, part.rule())),
        }
    }
    Ok(missing.into_iter().map(|(_, rule)| rule).collect())
}

/// How far back verbs of the same resource are looked for: rules of a role rarely return to one.
const FOLD: usize = 256;

/// See [`uncovered`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the rules allow {0} single things, more than the {MOST_PARTS} that can be looked at: split the role"
)]
pub struct TooMany(pub usize);

/// Each once, in the order of their words.
#[must_use]
pub fn describe_all(rules: &[Rule]) -> String {
    let lines: BTreeSet<_> = rules.iter().map(Rule::describe).collect();
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

fn has(words: &[Box<str>], word: &str) -> bool {
    words.iter().any(|known| **known == *word)
}

fn has_or_any(words: &[Box<str>], word: &str) -> bool {
    words.iter().any(|known| **known == *word || **known == *"*")
}

/// `pods`, `pods/log`, `*/log` and `*`.
fn matches_resource(known: &str, plural: &str, sub: &str) -> bool {
    if sub.is_empty() {
        return known == plural || known == "*";
    }
    match known.rsplit_once('/') {
        Some((known, known_sub)) => known_sub == sub && (known == plural || known == "*"),
        None => known == "*",
    }
}

/// `/healthz/*` is every path below `/healthz/`.
fn matches_url(known: &str, path: &str) -> bool {
    known == path || known.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: Value) -> Vec<Rule> {
        text.as_array().expect("a list").iter().map(Rule::read).collect()
    }

    #[test]
    fn what_is_not_covered_is_told_by_resource() {
        let held = rules(json!([
            {"apiGroups": [""], "resources": ["pods", "*/scale"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["a"], "verbs": ["*"]},
            {"nonResourceURLs": ["/healthz/*"], "verbs": ["get"]},
        ]));
        let held: Vec<_> = held.iter().collect();
        let told = |wanted| describe_all(&uncovered(&held, &rules(wanted)).expect("few"));
        assert_eq!(
            told(json!([{"apiGroups": [""], "resources": ["pods", "x/scale"], "verbs": ["get"]}])),
            ""
        );
        assert_eq!(
            told(
                json!([{"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["a"], "verbs": ["*"]}])
            ),
            ""
        );
        assert_eq!(
            told(json!([{"nonResourceURLs": ["/healthz/x", "/healthz/*"], "verbs": ["get"]}])),
            ""
        );
        assert_eq!(
            told(json!([
                {"apiGroups": ["", "apps"], "resources": ["pods"], "verbs": ["get", "create", "delete"]},
                {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["b"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
                {"nonResourceURLs": ["/metrics"], "verbs": ["get"]},
            ])),
            "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"create\" \"delete\"]}\n\
             {APIGroups:[\"\"], Resources:[\"pods/log\"], Verbs:[\"get\"]}\n\
             {APIGroups:[\"apps\"], Resources:[\"deployments\"], ResourceNames:[\"b\"], Verbs:[\"get\"]}\n\
             {APIGroups:[\"apps\"], Resources:[\"pods\"], Verbs:[\"get\" \"create\" \"delete\"]}\n\
             {NonResourceURLs:[\"/metrics\"], Verbs:[\"get\"]}"
        );
    }

    #[test]
    fn a_role_of_too_many_single_things_is_refused() {
        let many: Vec<_> = (0..100).map(|i| format!("r{i}")).collect();
        let wanted = rules(json!([{"apiGroups": many, "resources": many, "verbs": many}]));
        assert_eq!(uncovered(&[], &wanted), Err(TooMany(1_000_000)));
    }
}
