//! A configuration as people may see it: without its secrets.

use std::fmt::Write as _;

use serde_yaml::Value;
use similar::algorithms::{Capture, Compact, Replace, myers};
use similar::udiff::UnifiedHunkHeader;
use similar::{DiffOp, group_diff_ops};

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
        unified("running", &redacted(self, None), "new", &redacted(new, Some(self)))
    }
}

/// Lines of context around a change.
const CONTEXT: usize = 3;

/// What changes from one text to another, whose lines all end; empty when nothing does. As `similar::TextDiff` has it, but
/// with one algorithm, where that brings all of them into the binary.
fn unified(old_name: &str, old: &str, new_name: &str, new: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let mut found = Compact::new(Replace::new(Capture::new()), &old, &new);
    let Ok(()) = myers::diff(&mut found, &old, 0..old.len(), &new, 0..new.len());
    let mut text = String::new();
    for hunk in group_diff_ops(found.into_inner().into_inner().into_ops(), CONTEXT) {
        if hunk.is_empty() {
            continue;
        }
        if text.is_empty() {
            text = format!("--- {old_name}\n+++ {new_name}\n");
        }
        // Text takes what is written.
        let _ = writeln!(text, "{}", UnifiedHunkHeader::new(&hunk));
        for op in hunk {
            let mut tell = |mark, lines: &[&str]| {
                for line in lines {
                    let _ = writeln!(text, "{mark}{line}");
                }
            };
            if let DiffOp::Equal { old_index, len, .. } = op {
                tell(' ', &old[old_index..old_index + len]);
            } else {
                tell('-', &old[op.old_range()]);
                tell('+', &new[op.new_range()]);
            }
        }
    }
    text
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
