//! What serde and the YAML parser say, in our words.

use super::Step;

/// The position at the end of an error's text.
pub(super) fn location(error: &str) -> Option<(usize, usize)> {
    let Some((_, at)) = error.rsplit_once(" at line ") else {
        // The parser does not write the position of a text's first character.
        return Some((1, 1));
    };
    let (line, column) = at.split_once(" column ")?;
    Some((line.parse().ok()?, column.parse().ok()?))
}

/// A text that is no YAML, or more of it than we take.
pub(super) fn syntax(text: &str, error: &serde_yaml::Error) -> (Option<(usize, usize)>, String) {
    let message = error.to_string();
    let position = match message.split_once(" at position ") {
        // Bytes that cannot be text; what the parser calls a position is an offset.
        Some((_, offset)) => offset.parse().ok().and_then(|offset| position(text, offset)),
        None => error.location().map(|location| (location.line(), location.column())),
    };
    let line = position.and_then(|(line, _)| text.lines().nth(line - 1)).unwrap_or_default();
    let indent = &line[..line.len() - line.trim_start().len()];
    let message = match message.split_once(" at ").map_or(&*message, |(what, _)| what) {
        "found character that cannot start any token" if indent.contains('\t') => {
            "a tab cannot indent a line; use spaces"
        }
        "repetition limit exceeded" => "aliases of aliases come to too many values",
        "recursion limit exceeded" => "it is nested more than 128 deep",
        "control characters are not allowed" => "this byte cannot be in a text",
        what if what.ends_with(", expected a key") => "a key is text, not a list or a mapping",
        _ => {
            // The position stands in front already.
            let (line, column) = position.unwrap_or_default();
            let message = message.replacen(&format!(" at line {line} column {column}"), "", 1);
            return (position, message);
        }
    };
    (position, message.to_owned())
}

/// Line and column of an offset in bytes.
fn position(text: &str, offset: usize) -> Option<(usize, usize)> {
    let before = text.get(..offset)?;
    let line = before.rsplit('\n').next().unwrap_or_default();
    Some((before.matches('\n').count() + 1, line.chars().count() + 1))
}

/// serde's words in ours: with a suggestion for a name that is nearly right, and without the value
/// where it may be a secret.
pub(super) fn explained(path: &[Step], message: &str) -> String {
    let quoted: Vec<&str> =
        message.split('`').skip(1).step_by(2).filter(|name| !name.is_empty()).collect();
    let what =
        ["unknown field", "unknown variant"].into_iter().find(|what| message.starts_with(what));
    match (what, quoted.split_first()) {
        (Some(what), Some((name, known))) => {
            let what = match what {
                "unknown variant" => format!("`{name}` is unknown"),
                _ => what.to_owned(),
            };
            match nearest(name, known) {
                Some(near) => format!("{what}; did you mean `{near}`?"),
                None => format!("{what}; known are {}", known.join(", ")),
            }
        }
        _ => match message.strip_prefix("invalid ").and_then(|rest| rest.split_once(", expected "))
        {
            Some((found, wanted)) => {
                let found = found.split_once(": ").map_or(found, |(_, found)| found);
                let wanted = expected(wanted);
                match found.rsplit_once(' ') {
                    _ if is_secret(path) => {
                        format!("expected {wanted} (what is there is a secret and not shown)")
                    }
                    Some(("integer", number)) if wanted.starts_with("a whole number") => {
                        format!("{} is out of range; expected {wanted}", number.trim_matches('`'))
                    }
                    Some(("integer" | "floating point" | "boolean", _)) if wanted == "text" => {
                        format!("expected text, found {}; put it in quotes", self::found(found))
                    }
                    _ => format!("expected {wanted}, found {}", self::found(found)),
                }
            }
            None => message.to_owned(),
        },
    }
}

/// What serde found, as people call it.
fn found(found: &str) -> String {
    match found {
        "map" => "a mapping".to_owned(),
        "sequence" => "a list".to_owned(),
        "unit value" => "nothing".to_owned(),
        _ => match found.split_once(' ') {
            Some(("string", text)) => text.to_owned(),
            Some(("integer" | "boolean", value)) => value.trim_matches('`').to_owned(),
            Some(("floating", value)) => {
                value.trim_start_matches("point ").trim_matches('`').to_owned()
            }
            _ => found.to_owned(),
        },
    }
}

/// What serde wanted, as people call it.
fn expected(wanted: &str) -> &str {
    match wanted {
        "a string" | "a text" => "text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a mapping",
        "a Value::Tagged enum" => "a word",
        "u8" => "a whole number 0..=255",
        "u16" => "a whole number 0..=65535",
        "u32" => "a whole number 0..=4294967295",
        "i64" => "a whole number",
        _ if wanted.starts_with("struct ") => "a mapping",
        _ => wanted,
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

/// Whether the value at a path may be one nobody may see.
pub(crate) fn is_secret(path: &[Step]) -> bool {
    let mut names = path.iter().rev().filter_map(|step| match step {
        Step::Key(key) | Step::Again(key) => Some(key.as_str()),
        Step::Index(_) => None,
    });
    let secret = |key: &str| {
        matches!(
            key,
            "token"
                | "key"
                | "aescbcEncryptionSecret"
                | "password"
                | "auth"
                | "identityToken"
                | "content"
                | "secret"
                | "privateKey"
                | "presharedKey"
        )
    };
    names.next().is_some_and(secret)
        || names.next().is_some_and(|key| key == "extraManifestHeaders")
}
