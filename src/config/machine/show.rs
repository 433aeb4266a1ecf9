//! A configuration as people may see it: without its secrets.

use serde_yaml::Value;
use similar::TextDiff;

use super::MachineConfig;
use crate::document::{Path, Step, is_secret, to_yaml};

const REDACTED: &str = "[redacted]";
/// In a comparison, a secret that is not the one on the other side.
const CHANGED: &str = "[redacted, changed]";

impl MachineConfig {
    /// As [`to_yaml`](Self::to_yaml), with `[redacted]` for each secret.
    #[must_use]
    pub fn redacted_yaml(&self) -> String {
        redacted(self, None)
    }

    /// What `new` would change, as a unified diff without secrets: one that differs is
    /// `[redacted, changed]`. Empty when nothing would change.
    #[must_use]
    pub fn diff(&self, new: &Self) -> String {
        let (old, new) = (redacted(self, None), redacted(new, Some(self)));
        let diff = TextDiff::from_lines(&old, &new);
        diff.unified_diff().header("running", "new").to_string()
    }
}

fn redacted(config: &MachineConfig, other: Option<&MachineConfig>) -> String {
    let value = |config| serde_yaml::to_value(config).unwrap_or_default();
    let mut shown = value(config);
    let other = other.map(value);
    redact(&mut shown, other.as_ref(), &mut Path::new());
    to_yaml(&shown)
}

/// `other` is what stands in the same place on the other side.
fn redact(value: &mut Value, other: Option<&Value>, path: &mut Path) {
    let mark = |same| if same { REDACTED } else { CHANGED };
    match value {
        Value::Mapping(map) => {
            for (key, value) in map {
                let Some(key) = key.as_str() else { continue };
                let other = other.map(|other| other.get(key).unwrap_or(&Value::Null));
                path.push(Step::Key(key.to_owned()));
                redact(value, other, path);
                path.pop();
            }
        }
        Value::Sequence(list) => {
            for (i, value) in list.iter_mut().enumerate() {
                let other = other.map(|other| other.get(i).unwrap_or(&Value::Null));
                path.push(Step::Index(i));
                redact(value, other, path);
                path.pop();
            }
        }
        Value::Null => {}
        _ if is_secret(path) => *value = mark(other.is_none_or(|other| *other == *value)).into(),
        Value::String(text) => {
            if let Some((before, after)) = around_credentials(text) {
                let same = other.is_none_or(|other| other.as_str() == Some(text));
                *text = format!("{before}{}{after}", mark(same));
            }
        }
        _ => {}
    }
}

/// The text before and after the `user:password` of a URL in it (RFC 3986 §3.2.1), as in the
/// address of a proxy.
fn around_credentials(text: &str) -> Option<(&str, &str)> {
    let start = text.find("://")? + 3;
    let authority = text[start..].find(['/', '?', '#']).map_or(text.len(), |end| start + end);
    let at = start + text[start..authority].rfind('@')?;
    Some((&text[..start], &text[at..]))
}
