//! The metadata of every object.

use serde_json::{Value, json};

use super::names::{Form, wrong, wrong_base};
use super::{labels, named};
use crate::object::{Object, at, items, text};
use crate::resources::Resource;
use crate::status::Cause;

/// All annotations together, keys and values, in bytes.
const ANNOTATIONS_MOST: usize = 256 * 1024;

/// Finalizers without a domain that are known.
const OLD_FINALIZERS: &[&str] = &["kubernetes", "orphan", "foregroundDeletion"];

pub(super) fn create(resource: &Resource, object: &Object, causes: &mut Vec<Cause>) {
    let name = text(object, "/metadata/name");
    let base = text(object, "/metadata/generateName");
    let form = form(resource);
    for why in wrong_base(form, base).into_iter().filter(|_| !base.is_empty()) {
        causes.push(Cause::invalid("metadata.generateName", &base.into(), &why));
    }
    if name.is_empty() {
        // Its name is what it says of itself, or it is never stored.
        if resource.verbs != ["create"] {
            let hint = "name or generateName is required";
            causes.push(Cause::required("metadata.name", hint));
        }
    } else {
        named(form, name, "metadata.name", causes);
        own_name(resource, object, name, causes);
    }
    all(object, causes);
}

pub(super) fn update(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    for name in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let pointer = format!("/metadata/{name}");
        let (new, old) = (at(new, &pointer), at(old, &pointer));
        if new != old {
            let value = new.cloned().unwrap_or_default();
            causes.push(Cause::invalid(format!("metadata.{name}"), &value, "field is immutable"));
        }
    }
    all(new, causes);
    let is_going = at(old, "/metadata/deletionTimestamp").is_some();
    let own = |object: &Object| -> Vec<Value> {
        items(object, "/metadata/finalizers").cloned().collect()
    };
    let before = own(old);
    let added: Vec<_> = own(new).into_iter().filter(|name| !before.contains(name)).collect();
    if is_going && !added.is_empty() {
        let added: Vec<_> = added.iter().filter_map(Value::as_str).collect();
        let why = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
        );
        causes.push(Cause::forbidden("metadata.finalizers", &why));
    }
}

/// How its objects are named.
fn form(resource: &Resource) -> Form {
    match (resource.group, resource.plural) {
        // Those of services are relaxed since 1.34: a digit may be first.
        ("", "namespaces" | "services") => Form::Label,
        ("rbac.authorization.k8s.io", _) => Form::Segment,
        _ => Form::Subdomain,
    }
}

/// What a kind asks of its names besides.
fn own_name(resource: &Resource, object: &Object, name: &str, causes: &mut Vec<Cause>) {
    let mut refuse = |why: &str| {
        causes.push(Cause::invalid("metadata.name", &name.into(), why));
    };
    match (resource.group, resource.plural) {
        ("batch", "cronjobs") if name.len() > 52 => refuse("must be no more than 52 characters"),
        ("networking.k8s.io", "ipaddresses") => {
            for why in wrong(Form::Address, name) {
                refuse(&why);
            }
        }
        ("scheduling.k8s.io", "priorityclasses") => {
            let known = [
                ("system-node-critical", 2_000_001_000),
                ("system-cluster-critical", 2_000_000_000),
            ];
            if !name.starts_with("system-") {
                return;
            }
            let own = at(object, "/value").and_then(Value::as_i64).unwrap_or(0);
            let why = match known.iter().find(|(known, _)| *known == name) {
                Some((_, value)) if *value == own => return,
                Some((_, value)) => format!("value of {name} PriorityClass must be {value}"),
                None => format!("{name} is not a known system priority class"),
            };
            let why = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
            );
            causes.push(Cause::forbidden("metadata.name", &why));
        }
        _ => {}
    }
}

fn all(object: &Object, causes: &mut Vec<Cause>) {
    if at(object, "/metadata/generation").and_then(Value::as_i64).is_some_and(|number| number < 0) {
        let value = at(object, "/metadata/generation").cloned().unwrap_or_default();
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid("metadata.generation", &value, why));
    }
    labels(at(object, "/metadata/labels"), "metadata.labels", causes);
    annotations(at(object, "/metadata/annotations"), "metadata.annotations", causes);
    owners(object, causes);
    for (index, finalizer) in items(object, "/metadata/finalizers").enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        let path = format!("metadata.finalizers[{index}]");
        let before = causes.len();
        named(Form::Qualified, name, &path, causes);
        if causes.len() == before && !name.contains('/') && !OLD_FINALIZERS.contains(&name) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            causes.push(Cause::invalid(path, finalizer, why));
        }
    }
    let both =
        |name: &str| items(object, "/metadata/finalizers").any(|finalizer| finalizer == name);
    if both("orphan") && both("foregroundDeletion") {
        let value = at(object, "/metadata/finalizers").cloned().unwrap_or_default();
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        causes.push(Cause::invalid("metadata.finalizers", &value, why));
    }
}

/// Of an object or of a template.
pub(super) fn annotations(value: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    let mut bytes = 0;
    for (key, value) in value.and_then(Value::as_object).into_iter().flatten() {
        named(Form::Qualified, &key.to_lowercase(), path, causes);
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_MOST {
        causes.push(super::too_long(path, ANNOTATIONS_MOST));
    }
}

fn owners(object: &Object, causes: &mut Vec<Cause>) {
    let mut controller = None;
    for (index, owner) in items(object, "/metadata/ownerReferences").enumerate() {
        let path = |field: &str| format!("metadata.ownerReferences[{index}].{field}");
        let own = |field: &str| owner[field].as_str().unwrap_or_default();
        let (group, version) = own("apiVersion").split_once('/').unwrap_or(("", own("apiVersion")));
        if version.is_empty()
            || version.contains('/')
            || (group.is_empty() && own("apiVersion").contains('/'))
        {
            causes.push(Cause::invalid(
                path("apiVersion"),
                &owner["apiVersion"],
                "version must not be empty",
            ));
        }
        for (field, why) in [
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if own(field).is_empty() {
                causes.push(Cause::invalid(path(field), &json!(""), why));
            }
        }
        if group.is_empty() && version == "v1" && own("kind") == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            causes.push(Cause::invalid(format!("metadata.ownerReferences[{index}]"), owner, why));
        }
        if owner["controller"] == true {
            match controller {
                None => controller = Some(own("name")),
                Some(first) => {
                    let value =
                        at(object, "/metadata/ownerReferences").cloned().unwrap_or_default();
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}",
                        own("name")
                    );
                    causes.push(Cause::invalid("metadata.ownerReferences", &value, &why));
                }
            }
        }
    }
}
