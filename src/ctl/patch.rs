//! Patches of machine configurations: a part of one that is laid over it, or a list of operations
//! (JSON Patch, RFC 6902). Pure, but for patches that are files (`@FILE`).
//!
//! Laid over: mappings are merged key by key, a list goes behind the one that is there, anything else
//! replaces it. Interfaces are matched by name; a list of subnets replaces the old one, for a cluster
//! has one of each family. `null` and a mapping with `$patch: delete` take a key away.

use std::fs;
use std::path::PathBuf;

use orlop_config::machine;
use serde_yaml::{Mapping, Value};

use crate::error::Error;

/// Lists that are replaced as a whole.
const REPLACED: [&str; 2] = ["podSubnets", "serviceSubnets"];
/// Lists whose entries are merged, with the key that identifies them.
const MATCHED: [(&str, &str); 2] = [("interfaces", "interface"), ("vlans", "vlanId")];

/// Applies patches, each a text or `@FILE`, one after the other. Comments and layout are lost.
///
/// # Errors
/// When a patch cannot be read or applied, or makes a configuration that no node would take.
pub(crate) fn apply(file: &str, text: &str, patches: &[String]) -> Result<String, Error> {
    if patches.is_empty() {
        return Ok(text.to_owned());
    }
    let wrong = |what: &str, why: String| Error::Patch { what: what.to_owned(), why };
    let mut config: Value =
        serde_yaml::from_str(text).map_err(|error| wrong(file, error.to_string()))?;
    for patch in patches {
        let (what, text) = match patch.strip_prefix('@') {
            None => ("the patch", patch.clone()),
            Some(path) => {
                let failed = |source| Error::Read { path: PathBuf::from(path), source };
                (path, fs::read_to_string(path).map_err(failed)?)
            }
        };
        let patch = serde_yaml::from_str(&text).map_err(|error| wrong(what, error.to_string()))?;
        match patch {
            Value::Mapping(patch) => lay_over(&mut config, patch),
            Value::Sequence(operations) => {
                for operation in &operations {
                    operate(&mut config, operation).map_err(|why| wrong(what, why))?;
                }
            }
            _ => return Err(wrong(what, "it is neither a mapping nor a list".to_owned())),
        }
    }
    let patched = serde_yaml::to_string(&config).expect("what was YAML is YAML");
    machine::parse(file, &patched)?;
    Ok(patched)
}

fn lay_over(config: &mut Value, patch: Mapping) {
    let Some(mapping) = config.as_mapping_mut() else {
        // Null and scalars give way; what is to be deleted in them is not there.
        *config = Value::Mapping(Mapping::new());
        return lay_over(config, patch);
    };
    for (key, new) in patch {
        if deletes(&new) {
            mapping.shift_remove(&key);
            continue;
        }
        let name = key.as_str().unwrap_or_default().to_owned();
        let old = mapping.entry(key).or_insert(Value::Null);
        match new {
            Value::Mapping(new) => lay_over(old, new),
            Value::Sequence(new) if !REPLACED.contains(&&*name) => {
                let by = MATCHED.iter().find(|(list, _)| *list == name).map(|(_, by)| *by);
                append(old, new, by);
            }
            new => *old = new,
        }
    }
}

fn deletes(value: &Value) -> bool {
    value.is_null() || value.get("$patch").and_then(Value::as_str) == Some("delete")
}

/// Puts entries behind those that are there, or over the one with the same `by`.
fn append(old: &mut Value, new: Vec<Value>, by: Option<&str>) {
    if !old.is_sequence() {
        *old = Value::Sequence(Vec::new());
    }
    let Some(list) = old.as_sequence_mut() else { return };
    for entry in new {
        let name = by.and_then(|by| entry.get(by));
        let same = name.and_then(|name| {
            list.iter().position(|known| by.and_then(|by| known.get(by)) == Some(name))
        });
        match (same, entry) {
            (Some(at), Value::Mapping(entry)) => lay_over(&mut list[at], entry),
            (_, entry) => list.push(entry),
        }
    }
}

/// Carries out one operation of RFC 6902 §4.
fn operate(config: &mut Value, operation: &Value) -> Result<(), String> {
    let text = |key: &str| {
        let found = operation.get(key).and_then(Value::as_str);
        found.ok_or_else(|| format!("an operation without {key:?}"))
    };
    let value = || {
        operation.get("value").cloned().ok_or_else(|| "an operation without \"value\"".to_owned())
    };
    let (op, path) = (text("op")?, text("path")?);
    match op {
        "add" => add(config, path, value()?),
        "remove" => remove(config, path).map(drop),
        "replace" => {
            *find(config, path)? = value()?;
            Ok(())
        }
        "test" => match *find(config, path)? == value()? {
            true => Ok(()),
            false => Err(format!("{path} is something else than the test says")),
        },
        "copy" => {
            let copied = find(config, text("from")?)?.clone();
            add(config, path, copied)
        }
        "move" => {
            let moved = remove(config, text("from")?)?;
            add(config, path, moved)
        }
        _ => Err(format!("{op:?} is no operation: add, remove, replace, move, copy or test")),
    }
}

/// The tokens of a JSON pointer (RFC 6901 §3).
fn tokens(path: &str) -> Result<Vec<String>, String> {
    let Some(rest) = path.strip_prefix('/') else {
        return Err(format!("{path:?} is no path such as /machine/network"));
    };
    Ok(rest.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).collect())
}

fn step<'a>(value: &'a mut Value, token: &str, path: &str) -> Result<&'a mut Value, String> {
    let found = match value {
        Value::Sequence(list) => token.parse::<usize>().ok().and_then(|at| list.get_mut(at)),
        Value::Mapping(mapping) => mapping.get_mut(token),
        _ => None,
    };
    found.ok_or_else(|| format!("there is no {token:?} of {path}"))
}

fn find<'a>(config: &'a mut Value, path: &str) -> Result<&'a mut Value, String> {
    tokens(path)?.iter().try_fold(config, |value, token| step(value, token, path))
}

/// What contains the place that a path means, and the place's name in it.
fn parent<'a>(config: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), String> {
    let mut tokens = tokens(path)?;
    let last = tokens.pop().unwrap_or_default();
    let parent = tokens.iter().try_fold(config, |value, token| step(value, token, path))?;
    Ok((parent, last))
}

fn add(config: &mut Value, path: &str, new: Value) -> Result<(), String> {
    let (parent, last) = parent(config, path)?;
    match parent {
        Value::Sequence(list) if last == "-" => list.push(new),
        Value::Sequence(list) => match last.parse() {
            Ok(at) if at <= list.len() => list.insert(at, new),
            _ => return Err(format!("there is no place {last:?} in the list of {path}")),
        },
        Value::Mapping(mapping) => drop(mapping.insert(last.into(), new)),
        _ => return Err(format!("{path} leads into a value that contains nothing")),
    }
    Ok(())
}

fn remove(config: &mut Value, path: &str) -> Result<Value, String> {
    let (parent, last) = parent(config, path)?;
    let removed = match parent {
        Value::Sequence(list) => {
            last.parse().ok().filter(|at| *at < list.len()).map(|at: usize| list.remove(at))
        }
        Value::Mapping(mapping) => mapping.shift_remove(last.as_str()),
        _ => None,
    };
    removed.ok_or_else(|| format!("there is no {path} to remove"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    fn laid(config: &str, patch: &str) -> Value {
        let mut config = yaml(config);
        let Value::Mapping(patch) = yaml(patch) else { panic!("{patch} is no mapping") };
        lay_over(&mut config, patch);
        config
    }

    #[test]
    fn a_part_is_laid_over() {
        for (config, patch, expected) in [
            ("a: {b: 1, c: 2}", "a: {b: 3}", "a: {b: 3, c: 2}"),
            ("a: [1]", "a: [2]", "a: [1, 2]"),
            ("podSubnets: [1]", "podSubnets: [2]", "podSubnets: [2]"),
            ("a: {b: 1, c: 2}", "a: {b: null}", "a: {c: 2}"),
            ("a: {b: {x: 1}, c: 2}", "a: {b: {$patch: delete}}", "a: {c: 2}"),
            ("a: 1", "a: {b: 2}", "a: {b: 2}"),
            ("a:", "a: {b: {c: [1]}}", "a: {b: {c: [1]}}"),
            (
                "interfaces: [{interface: eth0, mtu: 1}, {interface: eth1}]",
                "interfaces: [{interface: eth0, dhcp: true}, {interface: eth2}]",
                "interfaces: [{interface: eth0, mtu: 1, dhcp: true}, {interface: eth1}, {interface: eth2}]",
            ),
        ] {
            assert_eq!(laid(config, patch), yaml(expected), "{patch}");
        }
    }

    #[test]
    fn operations_are_those_of_rfc_6902() {
        let done = |config: &str, operation: &str| {
            let mut config = yaml(config);
            operate(&mut config, &yaml(operation)).map(|()| config)
        };
        for (config, operation, expected) in [
            ("a: 1", "{op: add, path: /b, value: 2}", "{a: 1, b: 2}"),
            ("a: [1, 3]", "{op: add, path: /a/1, value: 2}", "a: [1, 2, 3]"),
            ("a: [1]", "{op: add, path: /a/-, value: 2}", "a: [1, 2]"),
            ("a: 1", "{op: replace, path: /a, value: 2}", "a: 2"),
            ("{a: 1, b: 2}", "{op: remove, path: /a}", "b: 2"),
            ("a: [1, 2]", "{op: remove, path: /a/0}", "a: [2]"),
            ("{a: 1}", "{op: move, from: /a, path: /b}", "b: 1"),
            ("{a: 1}", "{op: copy, from: /a, path: /b}", "{a: 1, b: 1}"),
            ("x/y: {m~n: 1}", "{op: test, path: /x~1y/m~0n, value: 1}", "x/y: {m~n: 1}"),
        ] {
            assert_eq!(done(config, operation), Ok(yaml(expected)), "{operation}");
        }
        for operation in [
            "{op: add, path: /a/9, value: 1}",
            "{op: add, path: a, value: 1}",
            "{op: add, path: /b/c, value: 1}",
            "{op: add, path: /b}",
            "{op: remove, path: /b}",
            "{op: replace, path: /b, value: 1}",
            "{op: test, path: /a, value: 1}",
            "{op: mend, path: /a}",
            "{path: /a}",
            "7",
        ] {
            assert!(done("a: [1]", operation).is_err(), "{operation}");
        }
    }

    #[test]
    fn what_no_node_would_take_is_refused() {
        let config = "machine:\n  type: worker\n  token: 0123ab.0123456789abcdef\ncluster:\n  \
            controlPlane:\n    endpoint: https://10.0.0.2:6443\n  token: 0123ab.0123456789abcdef\n";
        let patched = |patch: &str| apply("c.yaml", config, &[patch.to_owned()]);
        let text = patched("machine: {network: {hostname: node-1}}").unwrap();
        assert!(text.contains("hostname: node-1") && text.contains("type: worker"), "{text}");
        assert!(matches!(patched("machine: {colour: blue}"), Err(Error::Unacceptable(_))));
        assert!(matches!(patched("7"), Err(Error::Patch { .. })));
        assert!(matches!(patched("a: ["), Err(Error::Patch { .. })));
        assert!(matches!(patched("@/no/such/file"), Err(Error::Read { .. })));
        assert_eq!(apply("c.yaml", "as: it is", &[]).unwrap(), "as: it is");
    }

    proptest! {
        #[test]
        fn no_patch_panics(patch in "(op|path|add|remove|value|/|0|-|[ \n:{}\\[\\],a])*") {
            let _ = apply("c", "a: [1, {b: 2}]", &[patch]);
        }
    }
}
