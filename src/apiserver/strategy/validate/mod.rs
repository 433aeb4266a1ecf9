//! What is refused, where, and in which words.
//!
//! `rules.tsv` has a row per field that must be given, is one of some values, lies between two numbers or has the form
//! of a name: type, field, rule, argument. They hold wherever the type occurs, as do the functions beside them; what a
//! kind asks of its parts in addition stands in the module of that kind.

mod cluster;
mod immutable;
mod meta;
mod names;
mod network;
mod pod;
mod storage;
mod workload;

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use self::names::Form;
use crate::object::Object;
use crate::packed::unpacked;
use crate::quantity::Quantity;
use crate::resources::Resource;
use crate::schema::{Kind, SCHEMA, Shape, TypeId};
use crate::status::Cause;

use self::names::cidr;
pub(super) use self::workload::fits;

/// What is wrong with a new object, after its defaults and preparation.
#[must_use]
pub fn validate_create(resource: &Resource, object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    meta::create(resource, object, &mut causes);
    whole(resource, object, &mut causes);
    if resource.group.is_empty() && resource.plural == "pods" {
        pod::create(object, &mut causes);
    }
    causes
}

/// What is wrong with a changed object, after its defaults and preparation.
#[must_use]
pub fn validate_update(
    resource: &Resource,
    subresource: &str,
    new: &Object,
    old: &Object,
) -> Vec<Cause> {
    let mut causes = Vec::new();
    meta::update(new, old, &mut causes);
    // What only the server writes is not judged by the rules for clients.
    if !matches!(subresource, "status" | "finalize" | "approval" | "binding") {
        whole(resource, new, &mut causes);
        immutable::update(resource, subresource, new, old, &mut causes);
    } else if subresource == "approval" {
        cluster::approval(new, old, &mut causes);
    }
    causes
}

/// All of an object but its metadata and status.
fn whole(resource: &Resource, object: &Object, causes: &mut Vec<Cause>) {
    check(object, resource.schema, "", causes);
    let kinds = [workload::kind, network::kind, storage::kind, cluster::kind];
    kinds.iter().for_each(|kind| kind(resource, object, causes));
}

/// Of a type, wherever it occurs: the object, its path, what is wrong.
type Check = fn(&Object, &str, &mut Vec<Cause>);

static CHECKS: LazyLock<HashMap<TypeId, Vec<Check>>> = LazyLock::new(|| {
    let mut checks: HashMap<TypeId, Vec<Check>> = HashMap::new();
    for part in [pod::CHECKS, workload::CHECKS, network::CHECKS, storage::CHECKS, cluster::CHECKS] {
        for (place, name, check) in part {
            let of = SCHEMA.find(place, name).expect("checks are of types of the schema");
            checks.entry(of).or_default().push(*check);
        }
    }
    checks
});

/// A row of the table.
struct Row {
    field: &'static str,
    /// Given, even when nothing is in it.
    message: bool,
    rule: Rule,
}

enum Rule {
    /// With a hint.
    Required(&'static str),
    Enum(Vec<&'static str>),
    /// `must be greater than or equal to 0`.
    Least(i64),
    /// `must be between 1 and 65535, inclusive`.
    Between(i64, i64),
    Form(Form),
}

static ROWS: LazyLock<HashMap<TypeId, Vec<Row>>> = LazyLock::new(|| {
    let mut rows: HashMap<TypeId, Vec<Row>> = HashMap::new();
    for line in unpacked!("rules.tsv").lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let &[place, name, field, rule, argument] = &columns[..] else {
            unreachable!("a row of the rules has five columns: {line:?}");
        };
        let number = |text: &str| text.parse().expect("a limit is a number");
        let rule = match rule {
            "required" => Rule::Required(if argument == "-" { "" } else { argument }),
            "enum" => Rule::Enum(argument.split('|').collect()),
            "least" => Rule::Least(number(argument)),
            "between" => {
                let (least, most) = argument.split_once('-').expect("two limits");
                Rule::Between(number(least), number(most))
            }
            "form" => Rule::Form(form(argument)),
            _ => unreachable!("no such rule: {line:?}"),
        };
        let of = SCHEMA.find(place, name).expect("the rules are of types of the schema");
        let kind = SCHEMA.field(of, field).expect("the rules are of fields").kind;
        let message = matches!(kind, Kind::Message(_));
        rows.entry(of).or_default().push(Row { field, message, rule });
    }
    rows
});

fn form(name: &str) -> Form {
    match name {
        "label" => Form::Label,
        "subdomain" => Form::Subdomain,
        "label1035" => Form::Label1035,
        "segment" => Form::Segment,
        "qualified" => Form::Qualified,
        "port" => Form::Port,
        "address" => Form::Address,
        "cidr" => Form::Cidr,
        "domain-path" => Form::DomainPath,
        _ => unreachable!("no such form: {name}"),
    }
}

/// An object of a type at a path, and all in it.
fn check(object: &Object, of: TypeId, path: &str, causes: &mut Vec<Cause>) {
    for row in ROWS.get(&of).into_iter().flatten() {
        row.check(object, path, causes);
    }
    for check in CHECKS.get(&of).into_iter().flatten() {
        check(object, path, causes);
    }
    let nothing = Map::new();
    for field in &SCHEMA.get(of).fields {
        let here = || child(path, field.json);
        match (field.shape, field.kind, object.get(field.json)) {
            // It is the server's.
            _ if path.is_empty() && field.json == "status" => {}
            (Shape::Inline, Kind::Message(inner), _) => check(object, inner, path, causes),
            (Shape::List, Kind::Message(inner), Some(Value::Array(items))) => {
                for (index, item) in items.iter().enumerate() {
                    if let Value::Object(item) = item {
                        check(item, inner, &format!("{}[{index}]", here()), causes);
                    }
                }
            }
            // The top's own metadata is elsewhere, a template's is checked where the template is.
            (_, Kind::Message(inner), _) if SCHEMA.get(inner).name == "ObjectMeta" => {}
            (Shape::Map, Kind::Message(inner), Some(Value::Object(items))) => {
                for (key, item) in items {
                    if let Value::Object(item) = item {
                        check(item, inner, &format!("{}[{key}]", here()), causes);
                    }
                }
            }
            (_, Kind::Message(inner), Some(Value::Object(inside))) => {
                check(inside, inner, &here(), causes);
            }
            (Shape::Value, Kind::Message(inner), None) => {
                check(&nothing, inner, &here(), causes);
            }
            (_, Kind::Quantity, Some(value)) => quantities(value, &here(), causes),
            _ => {}
        }
    }
}

/// A quantity, or a map of them.
fn quantities(value: &Value, path: &str, causes: &mut Vec<Cause>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                quantities(value, &format!("{path}[{name}]"), causes);
            }
        }
        value => {
            if let Err(error) = Quantity::of(value) {
                causes.push(Cause::invalid(path, value, &error.to_string()));
            }
        }
    }
}

impl Row {
    fn check(&self, object: &Object, path: &str, causes: &mut Vec<Cause>) {
        let given = |value: &&Value| !is_empty(value) || (self.message && value.is_object());
        let value = object.get(self.field).filter(given);
        let path = || child(path, self.field);
        let Some(value) = value else {
            if let Rule::Required(hint) = &self.rule {
                causes.push(Cause::required(path(), hint));
            }
            return;
        };
        match (&self.rule, value) {
            (Rule::Enum(known), Value::String(text)) if !known.contains(&text.as_str()) => {
                causes.push(Cause::not_supported(path(), value, known));
            }
            (Rule::Enum(known), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    if item.as_str().is_none_or(|text| !known.contains(&text)) {
                        let path = format!("{}[{index}]", path());
                        causes.push(Cause::not_supported(path, item, known));
                    }
                }
            }
            (Rule::Least(least), value) if value.as_i64().is_some_and(|number| number < *least) => {
                let why = if *least == 1 {
                    "must be greater than 0".to_owned()
                } else {
                    format!("must be greater than or equal to {least}")
                };
                causes.push(Cause::invalid(path(), value, &why));
            }
            (Rule::Between(least, most), value)
                if value.as_i64().is_some_and(|number| !(*least..=*most).contains(&number)) =>
            {
                let why = format!("must be between {least} and {most}, inclusive");
                causes.push(Cause::invalid(path(), value, &why));
            }
            (Rule::Form(form), Value::String(text)) => named(*form, text, &path(), causes),
            (Rule::Form(form), Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    let text = item.as_str().unwrap_or_default();
                    named(*form, text, &format!("{}[{index}]", path()), causes);
                }
            }
            _ => {}
        }
    }
}

/// What Go does not tell from nothing, of values that are none of theirs. Zero is a number that may be too small.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// A path and a field in it.
fn child(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// A text that must have a form.
fn named(form: Form, text: &str, path: &str, causes: &mut Vec<Cause>) {
    for why in names::wrong(form, text) {
        causes.push(Cause::invalid(path, &text.into(), &why));
    }
}

/// Labels that must be such.
fn labels(labels: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        named(Form::Qualified, key, path, causes);
        if let Some(value) = value.as_str() {
            named(Form::LabelValue, value, path, causes);
        }
    }
}

/// More than there may be.
fn too_long(path: impl Into<String>, most: usize) -> Cause {
    Cause {
        reason: "FieldValueTooLong",
        message: format!("Too long: may not be more than {most} bytes"),
        field: path.into(),
    }
}

/// Something that is named and is not there.
fn not_found(path: impl Into<String>, value: &Value) -> Cause {
    Cause {
        reason: "FieldValueNotFound",
        message: format!("Not found: {value}"),
        field: path.into(),
    }
}

/// More items than there may be.
fn too_many(path: impl Into<String>, found: usize, most: usize) -> Cause {
    Cause {
        reason: "FieldValueTooMany",
        message: format!("Too many: {found}: must have at most {most} items"),
        field: path.into(),
    }
}

/// What a claim asks for; zero where it does not say.
fn storage_amount(claim: &Object) -> Quantity {
    let asked = crate::object::at(claim, "/spec/resources/requests/storage");
    asked.and_then(|asked| Quantity::of(asked).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
