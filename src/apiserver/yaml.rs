//! Bodies in YAML: read to the values of JSON, as strictly as [`crate::json`] reads those, and written.

use serde::de::Error as _;
use serde_json::{Map, Value};

use crate::json::{self, Body, Error};

/// The parser's work grows with the square of the depth of nested brackets.
const DEPTH_LIMIT: usize = 1000;

/// Commas, brackets and line ends. The parser keeps about a hundred bytes for each value before it hands out the
/// first, and a value needs one of these.
const MARK_LIMIT: usize = 500_000;

/// What values may come to in memory once aliases are resolved: aliases of aliases would else fill any.
const VALUE_LIMIT: usize = 64 << 20;

/// One document, whose duplicate fields are findings. What is JSON is read as that: kubectl calls it YAML.
///
/// # Errors
/// It is not YAML, not one document, not an object, or too much.
pub fn parse(bytes: &[u8]) -> Result<Body, Error> {
    let refused = |why: &str| Error::Yaml(serde_yaml::Error::custom(why));
    if bytes.trim_ascii_start().first() == Some(&b'{')
        && let Ok(body) = json::parse(bytes)
    {
        return Ok(body);
    }
    let text = str::from_utf8(bytes).map_err(|_| refused("it is not UTF-8"))?;
    let (depth, marks) = marks(text);
    if depth > DEPTH_LIMIT || marks > MARK_LIMIT {
        return Err(refused("there is too much in it"));
    }
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let document = documents.next().ok_or_else(|| refused("there is nothing in it"))?;
    let (mut value, findings) = json::values(document, VALUE_LIMIT).map_err(Error::Yaml)?;
    if documents.next().is_some() {
        return Err(refused("there is more than one document in it"));
    }
    let mut left = VALUE_LIMIT;
    merge(&mut value, &mut left).map_err(refused)?;
    json::body(value, findings)
}

/// As it is sent: in blocks, with quotes around what any reader could take for something else than text.
#[must_use]
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    put(&mut out, value, 0);
    out.push('\n');
    out
}

/// A value behind a key, or a dash, that is itself `indent` in.
fn put(out: &mut String, value: &Value, indent: usize) {
    let line = |out: &mut String| {
        if !out.is_empty() && !out.ends_with("- ") {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
        }
    };
    let spaced = |out: &mut String| {
        if out.ends_with(':') {
            out.push(' ');
        }
    };
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (name, value) in object {
                line(out);
                out.push_str(&text(name));
                out.push(':');
                // Items stand where their list's name does.
                put(out, value, if value.is_array() { indent } else { indent + 2 });
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                line(out);
                out.push_str("- ");
                put(out, item, indent + 2);
            }
        }
        Value::String(value) => {
            spaced(out);
            out.push_str(&text(value));
        }
        // Empty ones among them.
        other => {
            spaced(out);
            out.push_str(&other.to_string());
        }
    }
}

/// Plain where nobody takes it for another value: YAML 1.1 has many names for true and false, and many numbers.
fn text(text: &str) -> std::borrow::Cow<'_, str> {
    let plain = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
        && !["true", "false", "yes", "no", "on", "off", "y", "n", "null"]
            .iter()
            .any(|word| word.eq_ignore_ascii_case(text));
    if plain {
        return text.into();
    }
    // As JSON quotes it, but for what is no text to YAML (YAML 1.2 §5.1).
    let mut quoted = String::new();
    for character in Value::from(text).to_string().chars() {
        match character {
            '\u{7f}'..='\u{9f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                quoted += &format!("\\u{:04x}", u32::from(character));
            }
            character => quoted.push(character),
        }
    }
    quoted.into()
}

/// How deep brackets could be nested and how many marks there are, those in strings and comments counted too.
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

/// `<<: *anchor`: what an object has itself counts. `left` bounds what is copied.
fn merge(value: &mut Value, left: &mut usize) -> Result<(), &'static str> {
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(|item| merge(item, left)),
        Value::Object(object) => {
            object.values_mut().try_for_each(|value| merge(value, left))?;
            let from = match object.remove("<<") {
                None => return Ok(()),
                Some(Value::Array(list)) => list,
                Some(one) => vec![one],
            };
            from.into_iter().try_for_each(|from| match from {
                Value::Object(from) => take(object, from, left),
                _ => Err("only a mapping or a list of mappings can be merged"),
            })
        }
        _ => Ok(()),
    }
}

fn take(
    object: &mut Map<String, Value>,
    from: Map<String, Value>,
    left: &mut usize,
) -> Result<(), &'static str> {
    *left = left.checked_sub(from.len()).ok_or("its values come to too much")?;
    for (name, value) in from {
        object.entry(name).or_insert(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(text: &str) -> Value {
        parse(text.as_bytes()).expect(text).object.into()
    }

    #[test]
    fn bodies_come_to_the_values_of_json() {
        let text = "kind: Pod\nspec:\n  containers:\n  - {name: a, ports: [80, '80'], x: 1.5, y: null, 1: true}\n";
        assert_eq!(
            object(text),
            json!({"kind": "Pod", "spec": {"containers": [
                {"name": "a", "ports": [80, "80"], "x": 1.5, "y": null, "1": true},
            ]}})
        );
        assert_eq!(object("{\"a\": \"\\u00e9\"}"), json!({"a": "é"}));
        assert_eq!(object("{a: b}"), json!({"a": "b"}));
        assert_eq!(
            object("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  c: 3\ne: {<<: [*x, {f: 4}]}"),
            json!({"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}, "e": {"b": 1, "c": 2, "f": 4}})
        );
    }

    #[test]
    fn duplicates_are_found_in_either_spelling() {
        for text in ["a: {b: 1, b: 2}", "{\"a\": {\"b\": 1, \"b\": 2}}"] {
            let body = parse(text.as_bytes()).expect(text);
            assert_eq!(body.findings, ["duplicate field \"a.b\""]);
            assert_eq!(Value::from(body.object), json!({"a": {"b": 2}}));
        }
    }

    #[test]
    fn what_is_no_object_or_too_much_is_refused() {
        let deep = format!("a: {}", "[".repeat(10_000));
        let wide = format!("a:\n{}", "- 1\n".repeat(600_000));
        // Nine lists of nine of the one before: three thousand million values.
        let mut bomb = "a0: &a0 [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n".to_owned();
        for level in 1..10 {
            let of = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![of; 9].join(","));
        }
        let long = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), vec!["*a"; 100].join(","));
        for text in
            ["", "- a", "a", "a: b\n---\nc: d", "a: [", "a: !tag b", &deep, &wide, &bomb, &long]
        {
            assert!(parse(text.as_bytes()).is_err(), "{}", &text[..text.len().min(40)]);
        }
        assert!(parse(b"a: \xff").is_err());
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "yes",
            "no",
            "on",
            "y",
            "1",
            "0x1",
            "true",
            "null",
            "~",
            "",
            " a ",
            "a: b",
            "-",
            "# c",
            "2026-01-02",
            "a\nb\u{7f}\u{85}\u{2028}\u{feff}\u{ffff}\"\\😀",
            "-a",
            "a:",
            "ü",
        ] {
            let value = json!({"a": text, "b": [text], "c": 1, "d": true, "e": {}, "f": []});
            let written = write(&value);
            assert_eq!(object(&written), value, "{written}");
        }
        // Readers of YAML 1.1 take some bare words for booleans.
        for word in ["yes", "no", "on", "off", "y", "n"] {
            assert!(write(&json!({"a": word})).contains('"'), "{word}");
        }
        let nested = json!({"a": {"b": [{"c": [[1, {"d": "x"}], []], "e": null}, "/f"]}});
        let written = write(&nested);
        assert_eq!(object(&written), nested, "{written}");
        assert_eq!(
            written,
            "a:\n  b:\n  - c:\n    - - 1\n      - d: x\n    - []\n    e: null\n  - /f\n"
        );
    }
}
