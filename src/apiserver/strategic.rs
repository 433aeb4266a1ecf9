//! Strategic merge patches: what kubectl sends for built-in kinds.
//!
//! A patch looks like the object; the schema says which lists are merged and by which field, and directives within the
//! patch (`$patch`, `$retainKeys`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`) what cannot be said that way.

use serde_json::{Map, Value};

use crate::schema::{Field, Kind, SCHEMA, Shape, TypeId};

/// Why a patch is refused; the object is as it was.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// A directive that cannot be (400).
    #[error("{directive} of {path} is not as it must be: {why}")]
    Directive {
        /// Which.
        directive: String,
        /// Where.
        path: String,
        /// Why.
        why: &'static str,
    },
    /// An item that names no other (422).
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoKey {
        /// Which.
        item: String,
        /// The field that would name it.
        key: &'static str,
    },
    /// What the patch says and what it retains contradict each other (422).
    #[error("{path} has {name}, which its $retainKeys does not have")]
    NotRetained {
        /// Where.
        path: String,
        /// Which field.
        name: String,
    },
    /// Something that is not what it is in the object (422).
    #[error("{path} is no {expected}")]
    Kind {
        /// Where.
        path: String,
        /// What it is in the object.
        expected: &'static str,
    },
}

/// Makes the object what the patch says.
///
/// # Errors
/// The patch cannot be; the object is not to be used then.
pub fn apply(
    object: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    of: TypeId,
) -> Result<(), Error> {
    merge(object, patch, Some(of), "")
}

fn merge(
    live: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    of: Option<TypeId>,
    path: &str,
) -> Result<(), Error> {
    let wrong = |directive: &str, why| {
        Err(Error::Directive { directive: directive.to_owned(), path: path.to_owned(), why })
    };
    match patch.get("$patch").map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => {
            live.clear();
            live.extend(patch.iter().filter(|(name, _)| !name.starts_with('$')).map(owned));
            return Ok(());
        }
        Some(Some("delete")) => {
            live.clear();
            return Ok(());
        }
        Some(_) => return wrong("$patch", "it is replace, merge or delete"),
    }
    if let Some(retained) = patch.get("$retainKeys") {
        let Some(retained) = texts(retained) else {
            return wrong("$retainKeys", "it is a list of names");
        };
        let missing = patch.iter().find(|(name, value)| {
            !name.starts_with('$') && !value.is_null() && !retained.contains(&name.as_str())
        });
        if let Some((name, _)) = missing {
            return Err(Error::NotRetained { path: path.to_owned(), name: name.clone() });
        }
        live.retain(|name, _| retained.contains(&name.as_str()));
    }
    for (name, value) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
        let field = of.and_then(|of| SCHEMA.field(of, name));
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        merge_field(live, name, value, field, &path)?;
    }
    for (name, value) in patch {
        match name.split_once('/') {
            Some(("$deleteFromPrimitiveList", name)) => {
                let Value::Array(gone) = value else {
                    return wrong("$deleteFromPrimitiveList", "it is a list");
                };
                if let Some(Value::Array(items)) = live.get_mut(name) {
                    items.retain(|item| !gone.contains(item));
                }
            }
            Some(("$setElementOrder", name)) => {
                let field = of.and_then(|of| SCHEMA.field(of, name));
                let Value::Array(order) = value else {
                    return wrong("$setElementOrder", "it is a list");
                };
                if let (Some(Value::Array(items)), Some(field)) = (live.get_mut(name), field) {
                    let given = patch.get(name).and_then(Value::as_array);
                    if given.is_some_and(|given| !are_ordered(given, order, field)) {
                        return wrong(
                            "$setElementOrder",
                            "the items of the patch are in another order, or not in it",
                        );
                    }
                    reorder(items, order, field);
                }
            }
            Some((directive, _)) if directive.starts_with('$') => {
                return wrong(directive, "there is no such directive");
            }
            _ => {}
        }
    }
    Ok(())
}

fn merge_field(
    live: &mut Map<String, Value>,
    name: &str,
    value: &Value,
    field: Option<&Field>,
    path: &str,
) -> Result<(), Error> {
    match value {
        Value::Null => drop(live.remove(name)),
        Value::Object(patch) => {
            let of = match field {
                Some(Field {
                    kind: Kind::Message(of),
                    shape: Shape::Value | Shape::Pointer,
                    ..
                }) => Some(*of),
                _ => None,
            };
            if patch.get("$patch").and_then(Value::as_str) == Some("delete") {
                live.remove(name);
                return Ok(());
            }
            match live.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                Value::Object(inner) => merge(inner, patch, of, path)?,
                _ => return Err(Error::Kind { path: path.to_owned(), expected: "object" }),
            }
        }
        Value::Array(patch) => match (field, live.get_mut(name)) {
            (Some(field), known) if field.patch.merges => {
                let mut items = match known {
                    Some(Value::Array(items)) => std::mem::take(items),
                    Some(_) => return Err(Error::Kind { path: path.to_owned(), expected: "list" }),
                    None => Vec::new(),
                };
                merge_list(&mut items, patch, field, path)?;
                live.insert(name.to_owned(), items.into());
            }
            _ if patch.iter().any(is_directive) => {
                let items = patch.iter().filter(|item| !is_directive(item)).cloned().collect();
                live.insert(name.to_owned(), Value::Array(items));
            }
            _ => drop(live.insert(name.to_owned(), value.clone())),
        },
        scalar => drop(live.insert(name.to_owned(), scalar.clone())),
    }
    Ok(())
}

fn merge_list(
    live: &mut Vec<Value>,
    patch: &[Value],
    field: &Field,
    path: &str,
) -> Result<(), Error> {
    if patch.iter().any(|item| directive(item) == Some("replace")) {
        *live = patch.iter().filter(|item| directive(item).is_none()).cloned().collect();
        return Ok(());
    }
    let Some(key) = field.patch.key else {
        for item in patch {
            if !live.contains(item) {
                live.push(item.clone());
            }
        }
        return Ok(());
    };
    let of = match field.kind {
        Kind::Message(of) => Some(of),
        _ => None,
    };
    for item in patch {
        let Value::Object(patch) = item else {
            return Err(Error::Kind { path: path.to_owned(), expected: "list of objects" });
        };
        let Some(named) = patch.get(key) else {
            return Err(Error::NoKey { item: item.to_string(), key });
        };
        let same = |item: &Value| item.get(key) == Some(named);
        if directive(item) == Some("delete") {
            live.retain(|item| !same(item));
            continue;
        }
        match live.iter_mut().find(|item| same(item)) {
            Some(Value::Object(known)) => merge(known, patch, of, path)?,
            _ => {
                let mut fresh = Map::new();
                merge(&mut fresh, patch, of, path)?;
                live.push(fresh.into());
            }
        }
    }
    Ok(())
}

/// Are the items of a patch in the order that the patch itself sets?
fn are_ordered(given: &[Value], order: &[Value], field: &Field) -> bool {
    let places = given
        .iter()
        .filter(|item| directive(item).is_none())
        .map(|item| order.iter().position(|place| is_named(item, place, field)))
        .collect::<Option<Vec<_>>>();
    places.is_some_and(|places| places.is_sorted())
}

/// The items that `order` names in that order; the others stay behind what they were behind.
fn reorder(items: &mut Vec<Value>, order: &[Value], field: &Field) {
    let place = |item: &Value| order.iter().position(|place| is_named(item, place, field));
    let (mut named, others): (Vec<_>, Vec<_>) =
        items.drain(..).enumerate().partition(|(_, item)| place(item).is_some());
    orlop_rt::sort_by_key(&mut named, |(_, item)| place(item));
    // An item that is not named goes before the first named one that was behind it.
    let mut others = others.into_iter().peekable();
    for (was, item) in named {
        while let Some((_, other)) = others.next_if(|(other, _)| *other < was) {
            items.push(other);
        }
        items.push(item);
    }
    items.extend(others.map(|(_, item)| item));
}

fn is_named(item: &Value, place: &Value, field: &Field) -> bool {
    match field.patch.key {
        Some(key) => item.get(key).is_some() && item.get(key) == place.get(key),
        None => item == place,
    }
}

fn directive(item: &Value) -> Option<&str> {
    item.get("$patch")?.as_str()
}

fn is_directive(item: &Value) -> bool {
    directive(item).is_some()
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

fn texts(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(kind: &str, live: &Value, patch: &Value) -> Result<Value, Error> {
        let of = SCHEMA.find("apps/v1", kind).or_else(|| SCHEMA.find("core/v1", kind));
        let mut object = live.as_object().cloned().unwrap_or_default();
        let patch = patch.as_object().cloned().unwrap_or_default();
        apply(&mut object, &patch, of.expect("a kind"))?;
        Ok(object.into())
    }

    fn pod(containers: &Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn maps_are_merged_nulls_remove_and_scalars_replace() {
        let live = json!({"metadata": {"labels": {"a": "1", "b": "2"}, "name": "x"}, "spec": {"replicas": 1}});
        let patch = json!({"metadata": {"labels": {"a": null, "c": "3"}}, "spec": {"replicas": 3}});
        assert_eq!(
            patched("Deployment", &live, &patch),
            Ok(
                json!({"metadata": {"labels": {"b": "2", "c": "3"}, "name": "x"}, "spec": {"replicas": 3}})
            )
        );
    }

    #[test]
    fn lists_are_merged_by_their_key_or_replaced() {
        let live =
            pod(&json!([{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]));
        let patch =
            pod(&json!([{"name": "b", "image": "2"}, {"name": "c"}, {"name": "a", "args": ["y"]}]));
        assert_eq!(
            patched("Pod", &live, &patch),
            Ok(pod(
                &json!([{"name": "a", "image": "1", "args": ["y"]}, {"name": "b", "image": "2"}, {"name": "c"}])
            ))
        );
        let live = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {"finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"]}});
        assert_eq!(
            patched("Pod", &live, &patch),
            Ok(json!({"metadata": {"finalizers": ["b", "c"]}}))
        );
    }

    #[test]
    fn directives_delete_replace_retain_and_order() {
        let live = pod(&json!([{"name": "a"}, {"name": "b"}, {"name": "c"}]));
        let delete = pod(&json!([{"name": "b", "$patch": "delete"}]));
        assert_eq!(patched("Pod", &live, &delete), Ok(pod(&json!([{"name": "a"}, {"name": "c"}]))));
        let replace = pod(&json!([{"name": "x"}, {"$patch": "replace"}]));
        assert_eq!(patched("Pod", &live, &replace), Ok(pod(&json!([{"name": "x"}]))));
        let order = json!({"spec": {
            "$setElementOrder/containers": [{"name": "d"}, {"name": "a"}],
            "containers": [{"name": "d"}],
        }});
        let names = |object: Value| -> Vec<String> {
            let items = object["spec"]["containers"].as_array().cloned().unwrap_or_default();
            items.iter().map(|item| item["name"].as_str().unwrap_or_default().to_owned()).collect()
        };
        assert_eq!(
            patched("Pod", &live, &order).map(names),
            Ok(["b", "c", "d", "a"].map(str::to_owned).to_vec())
        );
        let live = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let retain = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            patched("Deployment", &live, &retain),
            Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
        );
        let whole = json!({"spec": {"strategy": {"$patch": "replace", "type": "Recreate"}}});
        assert_eq!(
            patched("Deployment", &live, &whole),
            Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
        );
        let gone = json!({"spec": {"strategy": {"$patch": "delete"}}});
        assert_eq!(patched("Deployment", &live, &gone), Ok(json!({"spec": {}})));
    }

    #[test]
    fn what_cannot_be_is_refused_with_where_and_why() {
        let live = pod(&json!([{"name": "a"}]));
        let error =
            patched("Pod", &live, &pod(&json!([{"image": "1"}]))).expect_err("it cannot be");
        assert!(
            error.to_string().ends_with("does not contain declared merge key: name"),
            "{error}"
        );
        let error =
            patched("Pod", &live, &json!({"spec": {"$patch": "burn"}})).expect_err("it cannot be");
        assert_eq!(
            error.to_string(),
            "$patch of spec is not as it must be: it is replace, merge or delete"
        );
        let error = patched(
            "Deployment",
            &json!({}),
            &json!({"spec": {"strategy": {"$retainKeys": ["x"], "type": "y"}}}),
        );
        assert!(matches!(error, Err(Error::NotRetained { .. })));
        let error = patched(
            "Pod",
            &live,
            &json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}}),
        );
        assert!(matches!(error, Err(Error::Directive { .. })));
        let error = patched("Pod", &live, &json!({"spec": {"$invent/x": []}}));
        assert!(matches!(error, Err(Error::Directive { .. })));
        let error = patched("Pod", &json!({"spec": "text"}), &pod(&json!([])));
        assert!(matches!(error, Err(Error::Kind { .. })));
    }
}
