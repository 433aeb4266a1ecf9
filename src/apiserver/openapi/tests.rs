use std::collections::HashSet;

use time::macros::datetime;

use super::*;
use crate::encoding::Patch;
use crate::resources::Resource;

const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

fn ask(path: &str) -> Request<'_> {
    Request { path, hash: None, accept: &[], gzip: false, if_none_match: None, now: NOW }
}

fn read(path: &str) -> Value {
    let answer = answer(&ask(path)).expect("JSON is acceptable");
    assert_eq!(answer.code, 200, "{path}");
    serde_json::from_slice(&answer.body).expect(path)
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
}

fn name(resource: &Resource) -> String {
    let base = if resource.group.is_empty() { "api" } else { "apis" };
    format!("{base}/{}", resource.api_version())
}

/// All references in a document.
fn references<'a>(value: &'a Value, found: &mut HashSet<&'a str>) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get("$ref") {
                found.insert(reference);
            }
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// Every reference is defined, and nothing is defined that is not spoken of.
fn is_whole(document: &Value, definitions: &Value, prefix: &str) {
    let mut found = HashSet::new();
    references(document, &mut found);
    let defined = definitions.as_object().expect("definitions");
    for reference in &found {
        let name = reference.strip_prefix(prefix).unwrap_or_else(|| panic!("{reference}"));
        assert!(defined.contains_key(name), "{reference}");
    }
    for name in defined.keys() {
        assert!(found.contains(&*format!("{prefix}{name}")), "{name}");
    }
}

#[test]
fn every_document_is_sound_and_whole() {
    let index = read("/openapi/v3");
    let mut ids = HashSet::new();
    for (name, entry) in index["paths"].as_object().expect("paths") {
        let url = entry["serverRelativeURL"].as_str().expect("a place");
        let (path, hash) = url.split_once("?hash=").expect("a hash");
        assert_eq!(path, format!("/openapi/v3/{name}"));
        let answer = answer(&Request { hash: Some(hash), ..ask(path) }).expect("JSON");
        let parsed: openapiv3::OpenAPI =
            serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(parsed.openapi, "3.0.0");
        for (_, _, operation) in parsed.operations() {
            let id = operation.operation_id.clone().expect("an id");
            assert!(ids.insert(id.clone()), "{id}");
        }
        let document: Value = serde_json::from_slice(&answer.body).expect(name);
        is_whole(&document, &document["components"]["schemas"], "#/components/schemas/");
    }
    assert!(ids.len() > 500, "{}", ids.len());
}

#[test]
fn every_resource_is_found_by_its_kind_and_can_be_patched_in_every_way() {
    for resource in RESOURCES.iter() {
        let document = read(&format!("/openapi/v3/{}", name(resource)));
        let kind =
            json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        let own = schemas
            .values()
            .find(|schema| schema["x-kubernetes-group-version-kind"] == json!([kind]))
            .unwrap_or_else(|| panic!("{kind}"));
        assert!(own["description"].is_string(), "{kind}");
        let operations: Vec<_> = document["paths"]
            .as_object()
            .into_iter()
            .flatten()
            .flat_map(|(path, item)| {
                item.as_object().into_iter().flatten().map(move |one| (path, one))
            })
            .filter(|(_, (_, operation))| operation["x-kubernetes-group-version-kind"] == kind)
            .collect();
        for verb in &resource.verbs {
            let action = match *verb {
                "create" => "post",
                "update" => "put",
                "watch" => "list",
                verb => verb,
            };
            let found = operations
                .iter()
                .find(|(_, (_, operation))| operation["x-kubernetes-action"] == action);
            let (_, (_, operation)) = found.unwrap_or_else(|| panic!("{verb} {kind}"));
            let has = |name: &str| {
                let list = operation["parameters"].as_array().into_iter().flatten();
                list.into_iter()
                    .any(|parameter| parameter["name"] == name && parameter["in"] == "query")
            };
            match action {
                "patch" => {
                    assert!(has("dryRun") && has("fieldValidation") && has("force"), "{kind}");
                    let content = operation["requestBody"]["content"].as_object().expect("bodies");
                    let types: HashSet<_> = content.keys().map(String::as_str).collect();
                    assert_eq!(types, Patch::ALL.map(Patch::media_type).into_iter().collect());
                }
                "post" | "put" => assert!(has("dryRun") && has("fieldManager"), "{kind}"),
                "list" => {
                    assert!(has("watch") && has("sendInitialEvents") && has("limit"), "{kind}")
                }
                _ => {}
            }
        }
    }
}

/// What the definitions say and what the schema knows are two sources: they must agree on every field.
#[test]
fn definitions_have_the_fields_of_the_schema() {
    use crate::schema::{Kind, SCHEMA, Shape};
    let definitions = Definitions::read();
    let mut silent = BTreeSet::new();
    for resource in RESOURCES.iter() {
        let root = definitions::name_of((resource.group, resource.version, resource.kind));
        for name in definitions.closure(BTreeSet::from([root])) {
            let Some(id) = definitions::type_of(&name) else { continue };
            if SCHEMA.get(id).fields.is_empty() {
                continue;
            }
            let definition = definitions.of(&name, Form::V3);
            let properties =
                definition["properties"].as_object().unwrap_or_else(|| panic!("{name}"));
            for (property, value) in properties {
                if matches!(property.as_str(), "kind" | "apiVersion")
                    && definition.get("x-kubernetes-group-version-kind").is_some()
                {
                    continue;
                }
                let Some(field) = SCHEMA.field(id, property) else {
                    // Never sent: it has no number.
                    panic!("{name}.{property} is not in the schema");
                };
                let kind = match (field.shape, field.kind) {
                    (Shape::Map, _) => "object",
                    (Shape::List, _) | (_, Kind::Strings) => "array",
                    (_, Kind::String | Kind::Bytes) => "string",
                    (_, Kind::Int32 | Kind::Int64) => "integer",
                    (_, Kind::Bool) => "boolean",
                    _ => "",
                };
                if !kind.is_empty() {
                    assert_eq!(value["type"], kind, "{name}.{property}");
                }
                if !value["description"].is_string() {
                    silent.insert(format!("{name}.{property}"));
                }
            }
            let known = |id| {
                let mut left = vec![id];
                let mut names = Vec::new();
                while let Some(id) = left.pop() {
                    for field in &SCHEMA.get(id).fields {
                        match (field.shape, field.kind) {
                            (Shape::Inline, Kind::Message(inner)) => left.push(inner),
                            _ => names.push(field.json),
                        }
                    }
                }
                names
            };
            for field in known(id) {
                assert!(properties.contains_key(field), "{name} has no {field}");
            }
        }
    }
    // Kubernetes says nothing of these.
    let expected = [
        "io.k8s.api.certificates.v1.CertificateSigningRequest.metadata",
        "io.k8s.api.networking.v1.IngressRule.http",
    ];
    assert_eq!(silent.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn lists_say_how_they_are_merged() {
    let core = read("/openapi/v3/api/v1");
    let of = |kind: &str, field: &str| {
        core["components"]["schemas"][format!("io.k8s.api.core.v1.{kind}")]["properties"][field]
            .clone()
    };
    let containers = of("PodSpec", "containers");
    assert_eq!(containers["x-kubernetes-list-type"], "map");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(of("PodSpec", "volumes")["x-kubernetes-patch-strategy"], "merge,retainKeys");
    assert_eq!(of("PodSpec", "nodeSelector")["x-kubernetes-map-type"], "atomic");
    assert_eq!(of("ServiceSpec", "externalIPs")["x-kubernetes-list-type"], "atomic");
    assert_eq!(of("ContainerPort", "protocol")["default"], "TCP");
    let meta = &core["components"]["schemas"][format!("{META}ObjectMeta")];
    assert_eq!(meta["properties"]["finalizers"]["x-kubernetes-list-type"], "set");
    assert!(meta["properties"]["annotations"]["additionalProperties"].is_object());
    assert_eq!(
        core["components"]["schemas"]["io.k8s.api.core.v1.SecretKeySelector"]["x-kubernetes-map-type"],
        "atomic"
    );
}

#[test]
fn a_document_of_its_hash_never_changes_and_another_hash_leads_to_it() {
    let path = "/openapi/v3/apis/apps/v1";
    let plain = answer(&ask(path)).expect("JSON");
    assert_eq!(header(&plain, "cache-control"), None);
    assert_eq!(header(&plain, "content-type"), Some("application/json"));
    let tag = header(&plain, "etag").expect("a tag").to_owned();
    let hash = tag.trim_matches('"');
    let kept = answer(&Request { hash: Some(hash), gzip: true, ..ask(path) }).expect("JSON");
    assert_eq!(header(&kept, "cache-control"), Some("public, immutable"));
    assert_eq!(header(&kept, "expires"), Some("Sat, 02 Jan 2027 03:04:05 GMT"));
    assert_eq!(header(&kept, "content-encoding"), Some("gzip"));
    assert_eq!(
        encoding::unpacked(Some("gzip"), kept.body.to_vec(), usize::MAX - 1).as_deref(),
        Ok(&*plain.body)
    );
    let moved = answer(&Request { hash: Some("0"), ..ask(path) }).expect("JSON");
    assert_eq!(
        (moved.code, header(&moved, "location")),
        (301, Some(&*location("apis/apps/v1", hash)))
    );
    let known = answer(&Request { if_none_match: Some(&tag), ..ask(path) }).expect("JSON");
    assert_eq!((known.code, known.body.len()), (304, 0));
    let weak = format!("\"x\", W/{tag}");
    assert_eq!(
        answer(&Request { if_none_match: Some(&weak), ..ask(path) }).map(|one| one.code),
        Ok(304)
    );
    assert_eq!(answer(&ask("/openapi/v3/apis/nobody/v1")).map(|one| one.code), Ok(404));
    let html = answer(&Request { accept: &["text/html"], ..ask(path) });
    assert_eq!(html.map_err(|status| status.code), Err(406));
    assert!(is_document(path) && is_document("/openapi/v2") && !is_document("/openapi/v4"));
}

#[test]
fn version_2_is_whole_and_says_the_same_in_protobuf() {
    let document = read("/openapi/v2");
    assert_eq!(document["swagger"], "2.0");
    is_whole(&document, &document["definitions"], "#/definitions/");
    let text = document.to_string();
    assert!(!text.contains("\"allOf\"") && !text.contains("\"oneOf\""));

    let asked = Request { accept: &[SECOND_ASKED], ..ask("/openapi/v2") };
    let answer = answer(&asked).expect("protobuf");
    assert_eq!(header(&answer, "content-type"), Some(SECOND));
    let read = gnostic_document(&answer.body);
    assert_eq!(read["swagger"], document["swagger"]);
    assert_eq!(read["info"], document["info"]);
    let (mut paths, mut definitions) = (0, 0);
    for (path, item) in document["paths"].as_object().expect("paths") {
        assert_eq!(&read["paths"][path], item, "{path}");
        paths += 1;
    }
    for (name, definition) in document["definitions"].as_object().expect("definitions") {
        assert_eq!(&read["definitions"][name], definition, "{name}");
        definitions += 1;
    }
    assert!(paths > 200 && definitions > 400, "{paths} {definitions}");
}

/// The messages of gnostic, by the numbers of its file, back to the JSON they were made from.
fn gnostic_document(bytes: &[u8]) -> Value {
    let mut document = json!({"paths": {}, "definitions": {}, "info": {}});
    for (number, part) in fields(bytes) {
        match number {
            1 => document["swagger"] = text(part),
            2 => {
                for (number, part) in fields(part) {
                    document["info"][["", "title", "version"][number]] = text(part);
                }
            }
            8 => fields(part).for_each(|(_, part)| put(&mut document["paths"], part, path_item)),
            9 => fields(part).for_each(|(_, part)| put(&mut document["definitions"], part, schema)),
            number => panic!("{number} of a document"),
        }
    }
    document
}

/// Numbers and bytes of a message; a varint as its one byte.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let key = prost::encoding::decode_varint(&mut bytes).expect("a key");
        let number = usize::try_from(key >> 3).expect("a number");
        let length = match key & 7 {
            2 => usize::try_from(prost::encoding::decode_varint(&mut bytes).expect("a length")),
            0 => Ok(1),
            kind => panic!("wire type {kind}"),
        };
        let (part, rest) = bytes.split_at(length.expect("a length"));
        bytes = rest;
        Some((number, part))
    })
}

fn text(bytes: &[u8]) -> Value {
    str::from_utf8(bytes).expect("text").into()
}

/// A value under its name.
fn put(map: &mut Value, bytes: &[u8], read: fn(&[u8]) -> Value) {
    let parts: Vec<_> = fields(bytes).collect();
    let [(1, name), (2, value)] = parts[..] else { panic!("{} parts", parts.len()) };
    map[str::from_utf8(name).expect("text")] = read(value);
}

fn push(object: &mut Value, key: &str, value: Value) {
    match &mut object[key] {
        Value::Array(list) => list.push(value),
        none => *none = json!([value]),
    }
}

/// What was put into one message that has only one.
fn inner(bytes: &[u8], expected: usize) -> &[u8] {
    let parts: Vec<_> = fields(bytes).collect();
    let [(number, part)] = parts[..] else { panic!("{} parts", parts.len()) };
    assert_eq!(number, expected);
    part
}

/// JSON within `Any`.
fn any(bytes: &[u8]) -> Value {
    serde_json::from_slice(inner(bytes, 2)).expect("JSON")
}

fn path_item(bytes: &[u8]) -> Value {
    let mut item = json!({});
    for (number, part) in fields(bytes) {
        match number {
            9 => push(&mut item, "parameters", parameter(inner(part, 1))),
            number => {
                let methods = ["", "", "get", "put", "post", "delete", "options", "head", "patch"];
                item[methods[number]] = operation(part);
            }
        }
    }
    item
}

fn operation(bytes: &[u8]) -> Value {
    let mut value = json!({});
    for (number, part) in fields(bytes) {
        match number {
            1 => push(&mut value, "tags", text(part)),
            3 => value["description"] = text(part),
            5 => value["operationId"] = text(part),
            6 => push(&mut value, "produces", text(part)),
            7 => push(&mut value, "consumes", text(part)),
            8 => push(&mut value, "parameters", parameter(inner(part, 1))),
            9 => fields(part).for_each(|(_, part)| {
                if value.get("responses").is_none() {
                    value["responses"] = json!({});
                }
                put(&mut value["responses"], part, response);
            }),
            10 => push(&mut value, "schemes", text(part)),
            13 => put(&mut value, part, any),
            number => panic!("{number} of an operation"),
        }
    }
    value
}

fn response(bytes: &[u8]) -> Value {
    let mut value = json!({});
    for (number, part) in fields(inner(bytes, 1)) {
        match number {
            1 => value["description"] = text(part),
            2 => value["schema"] = schema(inner(part, 1)),
            number => panic!("{number} of a response"),
        }
    }
    value
}

fn parameter(bytes: &[u8]) -> Value {
    let parts: Vec<_> = fields(bytes).collect();
    let mut value = json!({});
    match parts[..] {
        [(1, body)] => {
            for (number, part) in fields(body) {
                match number {
                    2 => value["name"] = text(part),
                    3 => value["in"] = text(part),
                    4 => value["required"] = json!(part == [1]),
                    5 => value["schema"] = schema(part),
                    number => panic!("{number} of a body"),
                }
            }
        }
        [(2, other)] => {
            let parts: Vec<_> = fields(other).collect();
            let [(place, part)] = parts[..] else { panic!("{} parts", parts.len()) };
            for (number, part) in fields(part) {
                match (place, number) {
                    (_, 1) => value["required"] = json!(part == [1]),
                    (_, 2) => value["in"] = text(part),
                    (_, 3) => value["description"] = text(part),
                    (_, 4) => value["name"] = text(part),
                    (3, 6) | (4, 5) => value["type"] = text(part),
                    (3, 20) | (4, 19) => value["uniqueItems"] = json!(part == [1]),
                    other => panic!("{other:?} of a parameter"),
                }
            }
            assert_eq!(value["in"] == "query", place == 3);
        }
        _ => panic!("{} parts of a parameter", parts.len()),
    }
    value
}

fn schema(bytes: &[u8]) -> Value {
    let mut value = json!({});
    for (number, part) in fields(bytes) {
        match number {
            1 => value["$ref"] = text(part),
            2 => value["format"] = text(part),
            4 => value["description"] = text(part),
            5 => value["default"] = any(part),
            19 => push(&mut value, "required", text(part)),
            21 => value["additionalProperties"] = schema(inner(part, 1)),
            22 => value["type"] = text(inner(part, 1)),
            23 => value["items"] = schema(inner(part, 1)),
            25 => {
                let mut properties = json!({});
                fields(part).for_each(|(_, part)| put(&mut properties, part, schema));
                value["properties"] = properties;
            }
            31 => put(&mut value, part, any),
            number => panic!("{number} of a schema"),
        }
    }
    value
}
