//! The parameters of requests: read, and refused where they contradict each other.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::resources::Resource;
use crate::selector::{Fields, Labels};
use crate::status::{Cause, Status};
use crate::storage::cache::Selection;
use crate::versions;

/// What follows the question mark.
#[derive(Debug, Default)]
pub(crate) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        Self(url::form_urlencoded::parse(text.as_bytes()).collect())
    }

    /// All of them, as they stand.
    pub(crate) fn pairs(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value)).collect()
    }

    /// The first of this name that says anything.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, value)| known == name && !value.is_empty());
        found.map(|(_, value)| &**value)
    }

    /// A truth.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Status> {
        match self.get(name) {
            None => Ok(None),
            Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(Some(true)),
            Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(Some(false)),
            Some(other) => Err(Status::bad_request(format!(
                "the parameter {name} is true or false, not {other:?}"
            ))),
        }
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        self.get(name)
            .map(|value| {
                value.parse().map_err(|_| {
                    Status::bad_request(format!("the parameter {name} is a number, not {value:?}"))
                })
            })
            .transpose()
    }

    /// Is nothing to be stored?
    pub(crate) fn dry_run(&self, kind: &str) -> Result<bool, Status> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => {
                let cause = Cause::not_supported("dryRun", &json!([other]), &["All"]);
                Err(Status::invalid_options(kind, vec![cause]))
            }
        }
    }

    /// How long the request may take.
    pub(crate) fn timeout(&self) -> Result<Option<Duration>, Status> {
        self.get("timeout")
            .map(|text| {
                go_duration(text).ok_or_else(|| {
                    Status::bad_request(format!(
                        "the parameter timeout is a duration, not {text:?}"
                    ))
                })
            })
            .transpose()
    }
}

/// `1h2m3.5s`, as Go writes durations.
fn go_duration(mut text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut whole = Duration::ZERO;
    while !text.is_empty() {
        let digits = text.find(|letter: char| letter != '.' && !letter.is_ascii_digit())?;
        let (number, rest) = text.split_at(digits);
        let letters = rest.find(|letter: char| letter == '.' || letter.is_ascii_digit());
        let (unit, rest) = rest.split_at(letters.unwrap_or(rest.len()));
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        (whole, text) = (whole.checked_add(part)?, rest);
    }
    Some(whole)
}

/// Of which revision a reader wants to see things.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Revision {
    /// The newest.
    Newest,
    /// Whatever is at hand.
    Any,
    /// This or a later one.
    AtLeast(u64),
    /// This one.
    Exactly(u64),
}

/// What a list or a watch asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Reading {
    pub(crate) selection: Selection,
    /// 0: all.
    pub(crate) limit: usize,
    /// Behind which place a page begins, and at which revision; the newest if there is none.
    pub(crate) from: Option<(String, Option<u64>)>,
    pub(crate) revision: Revision,
    /// Bookmarks may be sent.
    pub(crate) bookmarks: bool,
    /// Whether a watch begins with what is there; none: the old way.
    pub(crate) initial: Option<bool>,
    /// How long a watch lasts.
    pub(crate) timeout: Option<Duration>,
}

/// What may be asked of one object.
pub(crate) fn get_revision(query: &Query<'_>) -> Result<Revision, Status> {
    match query.get("resourceVersion") {
        None => Ok(Revision::Newest),
        Some("0") => Ok(Revision::Any),
        Some(text) => Ok(Revision::AtLeast(revision(text)?)),
    }
}

fn revision(text: &str) -> Result<u64, Status> {
    text.parse().map_err(|_| {
        Status::bad_request(format!("Invalid value: {text:?}: resourceVersion is a number"))
    })
}

/// Reads the parameters of a list, a watch or a `deletecollection`.
pub(crate) fn reading(
    resource: &'static Resource,
    namespace: &str,
    name: &str,
    query: &Query<'_>,
    watch: bool,
) -> Result<Reading, Status> {
    let labels = Labels::parse(query.get("labelSelector").unwrap_or_default())
        .map_err(|error| Status::bad_request(error.to_string()))?;
    let text = query.get("fieldSelector").unwrap_or_default();
    let mut fields = Fields::parse(text, |path| resource.selects_by(path))
        .map_err(|error| Status::bad_request(error.to_string()))?;
    for term in &mut fields.0 {
        term.path = versions::stored_path(resource, &term.path);
    }
    if !name.is_empty() && fields.exactly("metadata.name").is_none() {
        let term = crate::selector::Term {
            path: "metadata.name".to_owned(),
            value: name.to_owned(),
            equal: true,
        };
        fields.0.push(term);
    }
    let limit = query.number("limit")?.unwrap_or_default();
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let asked = query.get("resourceVersion");
    let number = asked.map(revision).transpose()?;
    let matching = query.get("resourceVersionMatch");
    let initial = query.flag("sendInitialEvents")?;
    let mut causes = Vec::new();
    let mut forbid = |field: &str, why: &str| causes.push(Cause::forbidden(field, why));
    match (watch, initial, matching) {
        (false, Some(_), _) => {
            forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        (true, None, Some(_)) => forbid(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (true, Some(_), None) => forbid(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        _ => {}
    }
    match matching {
        None | Some("NotOlderThan") => {}
        Some("Exact") if !watch => {}
        Some(other) => {
            let known: &[&str] = if watch { &["NotOlderThan"] } else { &["Exact", "NotOlderThan"] };
            causes.push(Cause::not_supported("resourceVersionMatch", &json!(other), known));
        }
    }
    let mut forbid = |field: &str, why: &str| causes.push(Cause::forbidden(field, why));
    if !watch && matching.is_some() && asked.is_none() {
        forbid(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        );
    }
    if matching == Some("Exact") && asked == Some("0") {
        forbid(
            "resourceVersionMatch",
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        );
    }
    let token = query.get("continue").filter(|_| !watch);
    if token.is_some() && matching.is_some() {
        forbid(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden when continue is provided",
        );
    }
    if !causes.is_empty() {
        return Err(Status::invalid_options("ListOptions", causes));
    }
    let from = token.map(read_token).transpose()?;
    if from.is_some() && number.is_some_and(|number| number != 0) {
        return Err(Status::bad_request(
            "specifying resource version is not allowed when using continue",
        ));
    }
    let revision = match (number, matching) {
        (None, _) => Revision::Newest,
        (Some(0), _) => Revision::Any,
        (Some(number), Some("Exact")) => Revision::Exactly(number),
        (Some(number), None) if !watch && limit > 0 => Revision::Exactly(number),
        (Some(number), _) => Revision::AtLeast(number),
    };
    Ok(Reading {
        selection: Selection { namespace: namespace.to_owned(), labels, fields },
        limit,
        from,
        revision,
        bookmarks: query.flag("allowWatchBookmarks")?.unwrap_or_default(),
        initial,
        timeout: query.number("timeoutSeconds")?.filter(|s| *s > 0).map(Duration::from_secs),
    })
}

/// Where the next page begins: behind a place, at a revision; at the newest one where there is none.
pub(crate) fn token(place: &str, revision: Option<u64>) -> String {
    let revision = revision.map_or(-1, |revision| i64::try_from(revision).unwrap_or(i64::MAX));
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": format!("{place}\0")});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

/// What [`token`] made.
pub fn read_token(text: &str) -> Result<(String, Option<u64>), Status> {
    let refused =
        || Status::bad_request("continue key is not valid: it is none that this server has given");
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refused())?;
    let token: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| refused())?;
    if token["v"] != "meta.k8s.io/v1" {
        return Err(refused());
    }
    let place = token["start"].as_str().and_then(|start| start.strip_suffix('\0'));
    let place = place
        .filter(|place| {
            !place.is_empty() && !place.split('/').any(|part| part.is_empty() || part == "..")
        })
        .ok_or_else(refused)?;
    let revision = match token["rv"].as_i64() {
        Some(-1) => None,
        Some(revision) if revision > 0 => Some(revision.cast_unsigned()),
        _ => return Err(refused()),
    };
    Ok((place.to_owned(), revision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    fn read(query: &str, watch: bool) -> Result<Reading, Status> {
        let pods = find("", "v1", "pods").expect("pods");
        reading(pods, "a", "", &Query::parse(query), watch)
    }

    #[test]
    fn revisions_are_as_the_table_says() {
        for (query, watch, expected) in [
            ("", false, Revision::Newest),
            ("resourceVersion=0", false, Revision::Any),
            ("resourceVersion=7", false, Revision::AtLeast(7)),
            ("resourceVersion=7&limit=5", false, Revision::Exactly(7)),
            ("resourceVersion=0&limit=5", false, Revision::Any),
            ("resourceVersion=7&resourceVersionMatch=Exact", false, Revision::Exactly(7)),
            (
                "resourceVersion=7&resourceVersionMatch=NotOlderThan&limit=5",
                false,
                Revision::AtLeast(7),
            ),
            ("resourceVersion=7", true, Revision::AtLeast(7)),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, Revision::Newest),
        ] {
            assert_eq!(read(query, watch).expect(query).revision, expected, "{query}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let token = token("a/x", Some(7));
        for (query, watch, code) in [
            ("resourceVersion=x".to_owned(), false, 400),
            ("resourceVersionMatch=Exact".to_owned(), false, 422),
            ("resourceVersion=0&resourceVersionMatch=Exact".to_owned(), false, 422),
            ("resourceVersion=1&resourceVersionMatch=Never".to_owned(), false, 422),
            ("sendInitialEvents=false".to_owned(), false, 422),
            ("sendInitialEvents=true".to_owned(), true, 422),
            ("resourceVersionMatch=NotOlderThan&resourceVersion=1".to_owned(), true, 422),
            ("sendInitialEvents=true&resourceVersionMatch=Exact".to_owned(), true, 422),
            (format!("continue={token}&resourceVersion=3"), false, 400),
            (format!("continue={token}&resourceVersion=3&resourceVersionMatch=Exact"), false, 422),
            ("continue=x".to_owned(), false, 400),
            ("labelSelector=a%20b".to_owned(), false, 400),
            ("fieldSelector=spec.foo%3D1".to_owned(), false, 400),
            ("limit=many".to_owned(), false, 400),
        ] {
            assert_eq!(read(&query, watch).expect_err(&query).code, code, "{query}");
        }
        let page = read(&format!("continue={token}&limit=2"), false).expect("a page");
        assert_eq!(page.from, Some(("a/x".to_owned(), Some(7))));
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, expected) in [
            ("30s", Some(Duration::from_secs(30))),
            ("1m30.5s", Some(Duration::from_millis(90_500))),
            ("250ms", Some(Duration::from_millis(250))),
            ("0", Some(Duration::ZERO)),
            ("5", None),
            ("s", None),
            ("1d", None),
            ("-1s", None),
        ] {
            assert_eq!(go_duration(text), expected, "{text}");
        }
    }

    #[test]
    fn tokens_come_back() {
        for revision in [None, Some(1), Some(u64::MAX >> 1)] {
            assert_eq!(read_token(&token("n/a", revision)), Ok(("n/a".to_owned(), revision)));
        }
    }
}
