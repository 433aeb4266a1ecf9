//! The published round-trip vectors of generation 1.36: each object as JSON and as protobuf, with every field filled.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use orlop_apiserver::schema::{SCHEMA, TypeId};
use orlop_apiserver::{json, protobuf};

/// Query parameters and documents, which are no objects and have no row in the tables.
const NO_OBJECTS: &[&str] = &[
    "APIGroup",
    "APIVersions",
    "CreateOptions",
    "GetOptions",
    "ListOptions",
    "PatchOptions",
    "UpdateOptions",
    "WatchEvent",
];

#[test]
fn every_vector_is_the_same_in_json_and_protobuf() {
    let Some(folder) = folder() else {
        println!("skipped: no published vectors (ORLOP_KUBE_VECTORS names their folder)");
        return;
    };
    let mut seen = 0;
    let mut unknown = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"))
        else {
            continue;
        };
        let Some(of) = type_of(name) else {
            unknown.insert(name.rsplit('.').next().unwrap().to_owned());
            continue;
        };
        let written = fs::read(&path).unwrap();
        let body = json::read(&written, of).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(body.findings, [""; 0], "{name}");
        let bytes = fs::read(path.with_extension("pb")).unwrap();
        let envelope = protobuf::open(&bytes).unwrap();
        let encoded = protobuf::encode(&body.object, of);
        let mut decoded =
            protobuf::decode(envelope.raw, of).unwrap_or_else(|error| panic!("{name}: {error}"));
        decoded.insert("kind".to_owned(), envelope.kind.clone().into());
        decoded.insert("apiVersion".to_owned(), envelope.api_version.clone().into());
        assert_eq!(decoded, body.object, "{name}: from protobuf to JSON");
        assert_eq!(
            protobuf::decode(&encoded, of).unwrap(),
            protobuf::decode(envelope.raw, of).unwrap(),
            "{name}"
        );
        assert!(encoded == envelope.raw, "{name}: the bytes of its protobuf");
        assert_eq!(
            protobuf::seal(&envelope.api_version, &envelope.kind, envelope.raw),
            bytes,
            "{name}"
        );
        for cut in 0..envelope.raw.len().min(3000) {
            // Nothing to be right about, but it must return.
            drop(protobuf::decode(&envelope.raw[..cut], of));
        }
        seen += 1;
    }
    assert_eq!(unknown, NO_OBJECTS.iter().map(|&name| name.to_owned()).collect());
    assert!(seen > 30, "{seen}");
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

/// `rbac.authorization.k8s.io.v1.Role` is `Role` of `rbac/v1`.
fn type_of(name: &str) -> Option<TypeId> {
    let (group_version, kind) = name.rsplit_once('.')?;
    let (group, version) = group_version.rsplit_once('.')?;
    let group = group.split('.').next()?;
    SCHEMA.find(&format!("{group}/{version}"), kind).or_else(|| SCHEMA.find("meta/v1", kind))
}
