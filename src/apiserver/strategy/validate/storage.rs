//! What holds data: configuration, secrets, volumes and their classes.

use serde_json::{Value, json};

use super::names::Form;
use super::{Check, child, named, too_long};
use crate::object::{Object, at, items, text};
use crate::quantity::Quantity;
use crate::resources::Resource;
use crate::status::Cause;

pub(super) const CHECKS: &[(&str, &str, Check)] =
    &[("core/v1", "PersistentVolumeClaimSpec", claim), ("core/v1", "PersistentVolumeSpec", volume)];

/// All values of a ConfigMap or Secret together, in bytes.
const DATA_MOST: usize = 1024 * 1024;

/// What a kind asks of its parts.
pub(super) fn kind(resource: &Resource, object: &Object, causes: &mut Vec<Cause>) {
    match (resource.group, resource.plural) {
        ("", "configmaps") => {
            let data = at(object, "/data").and_then(Value::as_object);
            let binary = at(object, "/binaryData").and_then(Value::as_object);
            let mut bytes = 0;
            for (key, value) in data.into_iter().flatten() {
                named(Form::Key, key, &format!("data[{key}]"), causes);
                if binary.is_some_and(|binary| binary.contains_key(key)) {
                    let why = "duplicate of key present in binaryData";
                    causes.push(Cause::invalid(format!("data[{key}]"), &json!(key), why));
                }
                bytes += value.as_str().map_or(0, str::len);
            }
            for (key, value) in binary.into_iter().flatten() {
                named(Form::Key, key, &format!("binaryData[{key}]"), causes);
                bytes += decoded_len(value);
            }
            if bytes > DATA_MOST {
                causes.push(too_long("[]", DATA_MOST));
            }
        }
        ("", "secrets") => secret(object, causes),
        _ => {}
    }
}

/// Of base64, in bytes.
fn decoded_len(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    text.trim_end_matches('=').len() * 3 / 4
}

fn secret(secret: &Object, causes: &mut Vec<Cause>) {
    let data = at(secret, "/data").and_then(Value::as_object);
    let mut bytes = 0;
    for (key, value) in data.into_iter().flatten() {
        named(Form::Key, key, &format!("data[{key}]"), causes);
        bytes += decoded_len(value);
    }
    if bytes > DATA_MOST {
        causes.push(too_long("data", DATA_MOST));
    }
    let has = |key: &str| data.is_some_and(|data| data.contains_key(key));
    let mut need = |path: String| causes.push(Cause::required(path, ""));
    let note = "kubernetes.io/service-account.name";
    match text(secret, "/type") {
        "kubernetes.io/service-account-token" => {
            let named =
                at(secret, "/metadata/annotations").and_then(|notes| notes.get(note)?.as_str());
            if named.unwrap_or_default().is_empty() {
                need(format!("metadata.annotations[{note}]"));
            }
        }
        "kubernetes.io/dockercfg" if !has(".dockercfg") => need("data[.dockercfg]".to_owned()),
        "kubernetes.io/dockerconfigjson" if !has(".dockerconfigjson") => {
            need("data[.dockerconfigjson]".to_owned());
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            need("data[username]".to_owned());
            need("data[password]".to_owned());
        }
        "kubernetes.io/ssh-auth" if !has("ssh-privatekey") => {
            need("data[ssh-privatekey]".to_owned());
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if !has(key) {
                    need(format!("data[{key}]"));
                }
            }
        }
        _ => {}
    }
}

const ACCESS_MODES: &[&str] =
    &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(spec: &Object, path: &str, why: &str, causes: &mut Vec<Cause>) {
    let here = child(path, "accessModes");
    let modes: Vec<&Value> = items(spec, "/accessModes").collect();
    if modes.is_empty() {
        causes.push(Cause::required(&here, why));
    }
    for mode in &modes {
        if mode.as_str().is_none_or(|mode| !ACCESS_MODES.contains(&mode)) {
            causes.push(Cause::not_supported(&here, mode, ACCESS_MODES));
        }
    }
    if modes.len() > 1 && modes.iter().any(|mode| *mode == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        causes.push(Cause::forbidden(&here, why));
    }
}

fn claim(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    access_modes(spec, path, "at least 1 access mode is required", causes);
    let here = format!("{path}.resources[storage]");
    match at(spec, "/resources/requests/storage") {
        None => causes.push(Cause::required(here, "")),
        Some(value) => {
            if let Ok(amount) = Quantity::of(value)
                && amount <= Quantity::ZERO
            {
                let why = "must be greater than zero";
                causes.push(Cause::invalid(here, value, why));
            }
        }
    }
}

fn volume(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    const OTHERS: &[&str] = &["claimRef", "nodeAffinity", "capacity"];
    access_modes(spec, path, "", causes);
    let capacity = at(spec, "/capacity").and_then(Value::as_object).filter(|map| !map.is_empty());
    match capacity {
        None => causes.push(Cause::required(child(path, "capacity"), "")),
        Some(capacity) if capacity.len() > 1 || !capacity.contains_key("storage") => {
            let value = Value::from(capacity.clone());
            causes.push(Cause::not_supported(child(path, "capacity"), &value, &["storage"]));
        }
        Some(capacity) => {
            let value = &capacity["storage"];
            if Quantity::of(value).is_ok_and(|amount| amount <= Quantity::ZERO) {
                let here = format!("{path}.capacity[storage]");
                causes.push(Cause::invalid(here, value, "must be greater than zero"));
            }
        }
    }
    let mut sources =
        spec.iter().filter(|(name, value)| value.is_object() && !OTHERS.contains(&name.as_str()));
    if sources.next().is_none() {
        causes.push(Cause::required(path, "must specify a volume type"));
    }
    for (name, _) in sources {
        let why = "may not specify more than 1 volume type";
        causes.push(Cause::forbidden(child(path, name), why));
    }
}
