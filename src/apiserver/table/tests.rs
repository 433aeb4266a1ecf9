use std::collections::HashSet;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::datetime;

use super::*;
use crate::object::Object;
use crate::resources::{RESOURCES, Resource, find};
use crate::yaml;

const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

fn object(text: &str) -> Object {
    const MADE: &str = "{metadata: {name: a, creationTimestamp: \"2026-01-01T03:04:05Z\"}";
    let text = text.replace("{m,", &format!("{MADE},")).replace("{m}", &format!("{MADE}}}"));
    yaml::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}")).object
}

fn pods() -> &'static Resource {
    find("", "v1", "pods").expect("pods")
}

#[test]
fn every_kind_is_printed_as_the_reference_does() {
    let mut printed = HashSet::new();
    for line in include_str!("golden.txt").lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(": ").expect("a resource");
        let (text, expected) = rest.split_once(" -> ").expect("an arrow");
        let object = object(text);
        for resource in RESOURCES.iter().filter(|resource| resource.qualified() == name) {
            let row = row(resource, &object, NOW);
            let cells: Vec<_> = row
                .cells
                .iter()
                .map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
                .collect();
            assert_eq!(cells.join(" | "), expected, "{line}");
            let columns = columns(resource);
            assert_eq!(columns.len(), row.cells.len(), "{name}");
            for (column, cell) in columns.iter().zip(&row.cells) {
                let kind = match cell {
                    Value::Number(_) => "integer",
                    Value::Bool(_) => "boolean",
                    _ if column.kind == "date" => "date",
                    _ => "string",
                };
                assert_eq!(column.kind, kind, "{name} {}", column.name);
            }
            printed.insert(name);
        }
    }
    for resource in RESOURCES.iter().filter(|resource| resource.verbs.contains(&"list")) {
        assert!(printed.contains(&*resource.qualified()), "{}", resource.qualified());
    }
}

#[test]
fn no_kind_is_told_twice_and_what_is_wide_is_last_but_for_events() {
    let mut known = HashSet::new();
    for (group, plural) in kinds::all() {
        assert!(known.insert((group, plural)), "{plural}");
    }
    for resource in RESOURCES.iter().filter(|resource| resource.kind != "Event") {
        assert!(
            columns(resource).is_sorted_by_key(|column| column.priority),
            "{}",
            resource.plural
        );
        assert_eq!(columns(resource)[0].format, "name", "{}", resource.plural);
    }
}

#[test]
fn an_empty_object_of_any_kind_has_a_row() {
    for resource in RESOURCES.iter() {
        let row = row(resource, &Object::new(), NOW);
        assert_eq!(row.cells.len(), columns(resource).len(), "{}", resource.plural);
    }
}

#[test]
fn ages_are_short_and_exact_where_they_are_young() {
    const DAY: i64 = 86_400;
    for (seconds, text) in [
        (-2, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (330, "5m30s"),
        (599, "9m59s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (12_000, "3h20m"),
        (8 * 3600 - 1, "7h59m"),
        (8 * 3600, "8h"),
        (2 * DAY - 1, "47h"),
        (2 * DAY, "2d"),
        (3 * DAY + 4 * 3600, "3d4h"),
        (8 * DAY, "8d"),
        (400 * DAY, "400d"),
        (730 * DAY, "2y"),
        ((3 * 365 + 20) * DAY, "3y20d"),
        (8 * 365 * DAY, "8y"),
        (9 * 365 * DAY + DAY, "9y"),
    ] {
        assert_eq!(cells::age(seconds), text, "{seconds}");
    }
}

#[test]
fn tables_have_their_columns_once_and_what_is_asked_for_beside_the_cells() {
    let text = "{metadata: {name: a, resourceVersion: '7'}, spec: {containers: [{name: c}]}, status: {phase: Failed}}";
    let pod = object(text);
    let form = Form { version: "v1", include: Include::Metadata, heads: true };
    let body = table(pods(), [&pod], json!({"resourceVersion": "9"}), form, NOW);
    assert_eq!((&body["kind"], &body["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(body["metadata"], json!({"resourceVersion": "9"}));
    let heads = body["columnDefinitions"].as_array().expect("columns");
    assert_eq!(heads.len(), 9);
    assert_eq!(heads[0]["format"], "name");
    assert_eq!((&heads[5]["name"], &heads[5]["priority"]), (&json!("IP"), &json!(1)));
    let row = &body["rows"][0];
    assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(row["object"]["metadata"]["resourceVersion"], "7");
    assert_eq!(row["object"].get("spec"), None);
    assert_eq!(row["conditions"][0]["reason"], "Failed");

    let form = Form { version: "v1beta1", include: Include::Object, heads: false };
    let body = table(pods(), [&pod], metadata_of(&pod), form, NOW);
    assert_eq!(body["apiVersion"], "meta.k8s.io/v1beta1");
    assert_eq!(
        (&body["columnDefinitions"], &body["metadata"]["resourceVersion"]),
        (&json!([]), &json!("7"))
    );
    assert_eq!(
        (&body["rows"][0]["object"]["kind"], &body["rows"][0]["object"]["apiVersion"]),
        (&json!("Pod"), &json!("v1"))
    );

    // A bookmark has a revision and nothing else.
    let bookmark = object(
        "{metadata: {resourceVersion: '8', annotations: {k8s.io/initial-events-end: 'true'}}}",
    );
    let form = Form { version: "v1", include: Include::Metadata, heads: false };
    let body = table(pods(), [&bookmark], metadata_of(&bookmark), form, NOW);
    assert_eq!(body["rows"][0]["object"]["metadata"], bookmark["metadata"]);
    let form = Form { include: Include::None, ..form };
    assert_eq!(table(pods(), [&pod], json!({}), form, NOW)["rows"][0]["object"], Value::Null);
    assert_eq!(table(pods(), [], json!({}), form, NOW)["rows"], json!([]));
}

#[test]
fn metadata_alone_keeps_its_list() {
    let pod = object("{kind: Pod, metadata: {name: a, labels: {x: z}}, spec: {}}");
    let list = partial_list([&pod], json!({"resourceVersion": "9"}), "v1");
    assert_eq!(
        list,
        json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "9"},
            "items": [{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": {"name": "a", "labels": {"x": "z"}}}]})
    );
    for name in ["PartialObjectMetadata", "PartialObjectMetadataList"] {
        assert!(crate::schema::SCHEMA.find("meta/v1", name).is_some(), "{name}");
    }
}

#[test]
fn what_stands_beside_the_cells_is_one_of_three() {
    assert_eq!(Include::parse(""), Some(Include::Metadata));
    assert_eq!(Include::parse("Object"), Some(Include::Object));
    assert_eq!(Include::parse("None"), Some(Include::None));
    assert_eq!(Include::parse("none"), None);
}
