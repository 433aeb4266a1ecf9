//! Defaults, preparation and validation on objects nobody thought of: every field filled, each left out, and the
//! published vectors. Whatever it is, it is taken or refused, and defaults change nothing a second time.

#![expect(clippy::unwrap_used, reason = "tests")]

mod filled;

use std::fs;
use std::path::PathBuf;

use orlop_apiserver::object::{Object, User};
use orlop_apiserver::resources::{RESOURCES, Resource};
use orlop_apiserver::strategy::{
    DeleteOptions, default, deletion, field, prepare_create, prepare_update, validate_create,
    validate_update,
};
use serde_json::Value;
use time::OffsetDateTime;

use filled::filled;

#[test]
fn every_resource_takes_or_refuses_what_is_filled_in_anyhow() {
    for (count, resource) in RESOURCES.iter().enumerate() {
        for depth in 1..5 {
            let mut salt = count * 31 + depth;
            let whole = filled(resource.schema, depth, &mut salt);
            run(resource, &whole, &whole);
            // Without one field, which nothing may count on.
            let mut fields = paths(&Value::from(whole.clone()), "");
            fields.retain(|path| path.len() < 60);
            for path in fields.iter().step_by(fields.len() / 20 + 1) {
                let mut part = Value::from(whole.clone());
                let (outer, name) = path.rsplit_once('/').unwrap();
                if let Some(Value::Object(outer)) = part.pointer_mut(outer) {
                    outer.remove(name);
                }
                let Value::Object(part) = part else { unreachable!("it is an object") };
                run(resource, &part, &whole);
            }
        }
        run(resource, &Object::new(), &Object::new());
    }
}

#[test]
fn every_published_vector_is_taken_or_refused() {
    let Some(folder) = folder() else {
        println!("skipped: no published vectors (ORLOP_KUBE_VECTORS names their folder)");
        return;
    };
    let mut seen = 0;
    for resource in RESOURCES.iter() {
        let group = if resource.group.is_empty() { "core" } else { resource.group };
        let name = format!("{group}.{}.{}.json", resource.version, resource.kind);
        let Ok(text) = fs::read(folder.join(name)) else { continue };
        let Ok(Value::Object(object)) = serde_json::from_slice(&text) else { continue };
        run(resource, &object, &object);
        seen += 1;
    }
    assert!(seen > 15, "{seen}");
}

fn run(resource: &'static Resource, object: &Object, old: &Object) {
    let now = OffsetDateTime::UNIX_EPOCH;
    let (mut new, mut old) = (object.clone(), old.clone());
    default(resource, &mut new);
    let once = new.clone();
    default(resource, &mut new);
    assert!(new == once, "{}: defaults change something a second time", resource.plural);
    default(resource, &mut old);
    for path in &resource.selectable {
        drop(field(resource, &new, path));
    }
    let mut created = new.clone();
    prepare_create(resource, &mut created, &User::apiserver());
    drop(validate_create(resource, &created));
    for sub in ["", "status", "approval", "finalize", "ephemeralcontainers", "resize"] {
        let mut updated = new.clone();
        prepare_update(resource, sub, &mut updated, &old, now);
        drop(validate_update(resource, sub, &updated, &old));
    }
    drop(deletion(resource, &new, &DeleteOptions::default(), now));
}

/// Pointers to all fields of objects.
fn paths(value: &Value, here: &str) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let inside = map.iter().flat_map(|(name, value)| {
                let here = format!("{here}/{}", name.replace('~', "~0").replace('/', "~1"));
                let mut all = paths(value, &here);
                all.push(here);
                all
            });
            inside.collect()
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .flat_map(|(index, item)| paths(item, &format!("{here}/{index}")))
            .collect(),
        _ => Vec::new(),
    }
}

/// Of the environment, or beside the repository.
fn folder() -> Option<PathBuf> {
    let beside =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/kube-roundtrip");
    [std::env::var_os("ORLOP_KUBE_VECTORS").map(PathBuf::from), Some(beside)]
        .into_iter()
        .flatten()
        .find(|folder| folder.is_dir())
}
