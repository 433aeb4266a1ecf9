//! A document of version 2 in the protobuf of github.com/google/gnostic (`openapiv2/OpenAPIv2.proto`), which kubectl
//! asked for before there was version 3. Messages are written from the JSON of the same parts.

use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::Value;

/// The whole message `Document`.
pub(super) fn document<'a>(
    info: &Value,
    paths: impl Iterator<Item = (&'a str, Value)>,
    definitions: impl Iterator<Item = (&'a str, Value)>,
) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, "2.0");
    out.part(2, |out| {
        out.text_of(1, info, "title");
        out.text_of(2, info, "version");
    });
    out.part(8, |out| {
        for (path, item) in paths {
            out.named(2, path, |out| path_item(out, &item));
        }
    });
    out.part(9, |out| {
        for (name, definition) in definitions {
            out.named(1, name, |out| schema(out, &definition));
        }
    });
    out.0
}

/// A message as it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        encode_key(number, WireType::LengthDelimited, &mut self.0);
        encode_varint(bytes.len() as u64, &mut self.0);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, number: u32, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    /// A text of an object, if it has it.
    fn text_of(&mut self, number: u32, object: &Value, key: &str) {
        if let Some(text) = object.get(key).and_then(Value::as_str) {
            self.text(number, text);
        }
    }

    fn texts_of(&mut self, number: u32, object: &Value, key: &str) {
        for text in items(object, key).filter_map(Value::as_str) {
            self.text(number, text);
        }
    }

    fn flag_of(&mut self, number: u32, object: &Value, key: &str) {
        if object.get(key) == Some(&Value::Bool(true)) {
            encode_key(number, WireType::Varint, &mut self.0);
            encode_varint(1, &mut self.0);
        }
    }

    fn part(&mut self, number: u32, write: impl FnOnce(&mut Self)) {
        let mut part = Self::default();
        write(&mut part);
        self.bytes(number, &part.0);
    }

    /// A message of a name and a value, of which maps are made.
    fn named(&mut self, number: u32, name: &str, write: impl FnOnce(&mut Self)) {
        self.part(number, |out| {
            out.text(1, name);
            out.part(2, write);
        });
    }

    /// All keys that begin with `x-`. Their values are YAML, which JSON is too.
    fn extensions(&mut self, number: u32, object: &Value) {
        for (name, value) in object.as_object().into_iter().flatten() {
            if name.starts_with("x-") {
                self.named(number, name, |out| out.text(2, &value.to_string()));
            }
        }
    }
}

fn items<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn path_item(out: &mut Message, item: &Value) {
    let methods = [
        (2, "get"),
        (3, "put"),
        (4, "post"),
        (5, "delete"),
        (6, "options"),
        (7, "head"),
        (8, "patch"),
    ];
    for (number, method) in methods {
        if let Some(value) = item.get(method) {
            out.part(number, |out| operation(out, value));
        }
    }
    for parameter in items(item, "parameters") {
        out.part(9, |out| out.part(1, |out| self::parameter(out, parameter)));
    }
    out.extensions(10, item);
}

fn operation(out: &mut Message, value: &Value) {
    out.texts_of(1, value, "tags");
    out.text_of(3, value, "description");
    out.text_of(5, value, "operationId");
    out.texts_of(6, value, "produces");
    out.texts_of(7, value, "consumes");
    for parameter in items(value, "parameters") {
        out.part(8, |out| out.part(1, |out| self::parameter(out, parameter)));
    }
    out.part(9, |out| {
        for (code, response) in
            value.get("responses").and_then(Value::as_object).into_iter().flatten()
        {
            out.named(1, code, |out| out.part(1, |out| self::response(out, response)));
        }
    });
    out.texts_of(10, value, "schemes");
    out.extensions(13, value);
}

fn response(out: &mut Message, value: &Value) {
    out.text_of(1, value, "description");
    if let Some(of) = value.get("schema") {
        out.part(2, |out| out.part(1, |out| schema(out, of)));
    }
}

fn parameter(out: &mut Message, value: &Value) {
    match value.get("in").and_then(Value::as_str) {
        Some("body") => out.part(1, |out| {
            out.text_of(1, value, "description");
            out.text_of(2, value, "name");
            out.text_of(3, value, "in");
            out.flag_of(4, value, "required");
            if let Some(of) = value.get("schema") {
                out.part(5, |out| schema(out, of));
            }
        }),
        place => {
            // One in the query may be empty: what follows has another number.
            let (number, kind, unique) =
                if place == Some("query") { (3, 6, 20) } else { (4, 5, 19) };
            out.part(2, |out| {
                out.part(number, |out| {
                    out.flag_of(1, value, "required");
                    out.text_of(2, value, "in");
                    out.text_of(3, value, "description");
                    out.text_of(4, value, "name");
                    out.text_of(kind, value, "type");
                    out.flag_of(unique, value, "uniqueItems");
                });
            });
        }
    }
}

fn schema(out: &mut Message, value: &Value) {
    out.text_of(1, value, "$ref");
    out.text_of(2, value, "format");
    out.text_of(4, value, "description");
    if let Some(default) = value.get("default") {
        out.part(5, |out| out.text(2, &default.to_string()));
    }
    out.texts_of(19, value, "required");
    if let Some(of) = value.get("additionalProperties") {
        out.part(21, |out| out.part(1, |out| schema(out, of)));
    }
    if value.get("type").is_some() {
        out.part(22, |out| out.text_of(1, value, "type"));
    }
    if let Some(of) = value.get("items") {
        out.part(23, |out| out.part(1, |out| schema(out, of)));
    }
    if let Some(properties) = value.get("properties").and_then(Value::as_object) {
        out.part(25, |out| {
            for (name, property) in properties {
                out.named(1, name, |out| schema(out, property));
            }
        });
    }
    out.extensions(31, value);
}
