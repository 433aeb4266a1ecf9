//! The types of the built-in groups: one table, from which everything that depends on the shape of an object follows.
//!
//! `schema/fields.tsv` has a row per field of generation 1.36, `schema/meta.tsv` those of `meta/v1`: group version,
//! type, JSON name, protobuf number, Go type, shape, whether an empty value is left out, list or map type, list keys,
//! patch strategy, merge key, default of a list key.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::packed::unpacked;

/// All types.
pub static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::read);

/// See [`SCHEMA`].
#[derive(Debug)]
pub struct Schema {
    types: Vec<Type>,
    names: HashMap<(&'static str, &'static str), TypeId>,
}

/// Names a type of the schema.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TypeId(usize);

/// A message: its fields in the order of their numbers.
#[derive(Debug)]
pub struct Type {
    /// As in Go, and in error messages.
    pub name: &'static str,
    /// In the order of their numbers.
    pub fields: Vec<Field>,
    /// Its fields in JSON, those of embedded types among them: the way there.
    by_json: HashMap<&'static str, Vec<usize>>,
    /// Server-side apply owns it as one.
    pub atomic: bool,
}

/// A field of a message.
#[derive(Debug)]
pub struct Field {
    /// In JSON; empty for an embedded type, whose fields are its parent's there.
    pub json: &'static str,
    /// In protobuf.
    pub number: u32,
    /// What a value, or an item, is.
    pub kind: Kind,
    /// How many there are.
    pub shape: Shape,
    /// Is an empty value left out of JSON?
    pub omits_empty: bool,
    /// How server-side apply takes a list.
    pub list: List,
    /// It is told of the field, list, map or struct, that server-side apply takes it as one.
    pub atomic: bool,
    /// How a strategic merge patch takes it.
    pub patch: Patch,
    /// What a list key is that is not given.
    pub default: Option<&'static str>,
}

/// What a value is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Text, of whichever name.
    String,
    /// A number of 32 bits.
    Int32,
    /// A number of 64 bits.
    Int64,
    /// True or false.
    Bool,
    /// Base64 in JSON.
    Bytes,
    /// RFC 3339 to the second; in protobuf seconds and nanoseconds.
    Time,
    /// RFC 3339 to the microsecond.
    MicroTime,
    /// `100m`, `2Gi`: text within a message.
    Quantity,
    /// A number or a text.
    IntOrString,
    /// Any JSON: its bytes within a message.
    Json,
    /// Texts within a message; a plain list in JSON.
    Strings,
    /// A message.
    Message(TypeId),
}

/// How many values there are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// One, which is not told from none where it is empty.
    Value,
    /// One or none.
    Pointer,
    /// Any number, in order.
    List,
    /// Any number, by text.
    Map,
    /// One, whose fields are its parent's in JSON.
    Inline,
}

/// How server-side apply takes a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum List {
    /// As one.
    Atomic,
    /// By its items, which are different.
    Set,
    /// By these fields of its items.
    Map(Vec<&'static str>),
}

/// How a strategic merge patch takes a field.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Patch {
    /// Items of a list are merged: by their value, or by the field [`Patch::key`].
    pub merges: bool,
    /// See [`Patch::merges`].
    pub key: Option<&'static str>,
    /// `$retainKeys` is obeyed.
    pub retains_keys: bool,
}

impl Schema {
    /// A type of a group version, both as Go has them: `("apps/v1", "Deployment")`.
    #[must_use]
    pub fn find(&self, group_version: &str, name: &str) -> Option<TypeId> {
        self.names.get(&(group_version, name)).copied()
    }

    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = TypeId> + use<> {
        (0..self.types.len()).map(TypeId)
    }

    /// What it is.
    #[must_use]
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0]
    }

    /// The field a JSON name means, and the embedded ones on the way to it.
    #[must_use]
    pub fn field(&self, id: TypeId, json: &str) -> Option<&Field> {
        let mut id = id;
        loop {
            let of = self.get(id);
            let way = of.by_json.get(json)?;
            let field = &of.fields[*way.first()?];
            match (way.len(), field.kind) {
                (1, _) => return Some(field),
                (_, Kind::Message(inner)) => id = inner,
                _ => return None,
            }
        }
    }

    fn read() -> Self {
        let rows = || {
            [unpacked!("meta.tsv"), unpacked!("fields.tsv")]
                .into_iter()
                .flat_map(str::lines)
                .map(|line| line.split('\t').collect::<Vec<_>>())
        };
        let mut schema = Self { types: Vec::new(), names: HashMap::new() };
        for row in rows() {
            schema.names.entry((row[0], row[1])).or_insert_with(|| {
                schema.types.push(Type {
                    name: row[1],
                    fields: Vec::new(),
                    by_json: HashMap::new(),
                    atomic: false,
                });
                TypeId(schema.types.len() - 1)
            });
        }
        for row in rows() {
            let TypeId(id) = schema.names[&(row[0], row[1])];
            if row[5] == "struct" {
                schema.types[id].atomic = row[7] == "struct-atomic";
            } else {
                let field = schema.read_field(&row);
                schema.types[id].fields.push(field);
            }
        }
        for of in &mut schema.types {
            orlop_rt::sort_by_key(&mut of.fields, |field| field.number);
        }
        for id in 0..schema.types.len() {
            schema.types[id].by_json = schema.ways(id);
        }
        schema
    }

    fn read_field(&self, row: &[&'static str]) -> Field {
        let &[
            group_version,
            _,
            json,
            number,
            go,
            shape,
            omits,
            list,
            keys,
            strategy,
            merge_key,
            default,
        ] = row
        else {
            unreachable!("a row of the tables has twelve columns: {row:?}");
        };
        let given = |column: &'static str| (column != "-").then_some(column);
        let (kind, bytes) = self.kind(group_version, go);
        Field {
            json: given(json).unwrap_or_default(),
            number: number.parse().expect("the tables have numbers"),
            kind,
            shape: match shape {
                _ if go.trim_start_matches('*').ends_with("ResourceList") => Shape::Map,
                "ptr" => Shape::Pointer,
                // Of bytes there is one, or none.
                "list" if bytes => Shape::Pointer,
                "list" => Shape::List,
                "map" => Shape::Map,
                "inline" => Shape::Inline,
                _ => Shape::Value,
            },
            omits_empty: omits == "o",
            list: match list {
                "set" => List::Set,
                "map" => List::Map(keys.split(',').collect()),
                _ => List::Atomic,
            },
            atomic: list == "atomic",
            patch: Patch {
                merges: strategy.starts_with("merge"),
                key: given(merge_key),
                retains_keys: strategy.contains("retainKeys"),
            },
            default: given(default).map(|text| text.trim_matches('"')),
        }
    }

    /// What a Go type is here, and whether it is one run of bytes.
    fn kind(&self, group_version: &'static str, go: &'static str) -> (Kind, bool) {
        let item = go.trim_start_matches(['*', '[', ']']);
        let item = if go.starts_with("map[") {
            go.split_once(']').map_or(item, |(_, value)| value)
        } else {
            item
        };
        if item == "[]byte" || go == "[]byte" {
            return (Kind::Bytes, go == "[]byte");
        }
        let item = item.trim_start_matches(['*', '[', ']']);
        let (package, name) = item.rsplit_once('.').unwrap_or(("", item));
        let kind = match name {
            "int32" => Kind::Int32,
            "int64" => Kind::Int64,
            "bool" => Kind::Bool,
            "Time" => Kind::Time,
            "MicroTime" => Kind::MicroTime,
            "Quantity" | "ResourceList" => Kind::Quantity,
            "IntOrString" => Kind::IntOrString,
            "RawExtension" | "FieldsV1" => Kind::Json,
            "ExtraValue" => Kind::Strings,
            _ => {
                let places: &[&'static str] = match package {
                    "" => &[group_version],
                    "metav1" => &["meta/v1"],
                    "authenticationv1" => &["authentication/v1"],
                    // `v1` is core's in some files and meta's in others.
                    _ => &["core/v1", "meta/v1"],
                };
                match places.iter().find_map(|place| self.names.get(&(*place, name))) {
                    Some(id) => Kind::Message(*id),
                    None => Kind::String,
                }
            }
        };
        (kind, false)
    }

    /// By which fields each JSON name of a type is reached.
    fn ways(&self, id: usize) -> HashMap<&'static str, Vec<usize>> {
        let mut ways = HashMap::new();
        for (place, field) in self.types[id].fields.iter().enumerate() {
            match (field.shape, field.kind) {
                (Shape::Inline, Kind::Message(TypeId(inner))) => {
                    for (json, way) in self.ways(inner) {
                        ways.insert(json, [vec![place], way].concat());
                    }
                }
                _ => {
                    ways.insert(field.json, vec![place]);
                }
            }
        }
        ways
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_through_embedded_types() {
        let volume = SCHEMA.find("core/v1", "Volume").expect("volumes");
        assert_eq!(SCHEMA.field(volume, "name").map(|field| field.number), Some(1));
        assert_eq!(
            SCHEMA.field(volume, "hostPath").map(|field| field.number),
            Some(1),
            "within volumeSource"
        );
        assert!(SCHEMA.field(volume, "volumeSource").is_none());
        let spec = SCHEMA.find("core/v1", "PodSpec").expect("pods");
        let containers = SCHEMA.field(spec, "containers").expect("containers");
        assert_eq!((containers.shape, containers.patch.key), (Shape::List, Some("name")));
        assert_eq!(containers.list, List::Map(vec!["name"]));
    }

    #[test]
    fn every_message_of_the_table_is_there_and_numbers_are_used_once() {
        for of in &SCHEMA.types {
            let mut numbers: Vec<_> = of.fields.iter().map(|field| field.number).collect();
            numbers.dedup();
            assert_eq!(numbers.len(), of.fields.len(), "{}", of.name);
        }
        let quantity = SCHEMA
            .find("core/v1", "ResourceRequirements")
            .and_then(|id| SCHEMA.field(id, "limits"));
        assert_eq!(
            quantity.map(|field| (field.kind, field.shape)),
            Some((Kind::Quantity, Shape::Map))
        );
        let template =
            SCHEMA.find("apps/v1", "DeploymentSpec").and_then(|id| SCHEMA.field(id, "template"));
        let Some(Field { kind: Kind::Message(id), .. }) = template else { panic!("{template:?}") };
        assert_eq!(SCHEMA.get(*id).name, "PodTemplateSpec");
    }
}
