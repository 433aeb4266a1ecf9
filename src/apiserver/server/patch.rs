//! What PATCH makes of an object, by each of the ways in which it can be said.

use json_patch::{PatchError, PatchOperation};
use serde_json::Value;

use crate::encoding::Patch;
use crate::json;
use crate::object::Object;
use crate::resources::Resource;
use crate::schema::TypeId;
use crate::status::{Cause, Status};
use crate::{strategic, yaml};

/// Of a JSON patch.
const MOST_STEPS: usize = 10_000;

/// A patch, read and ready to be applied as often as need be.
#[derive(Debug)]
pub(crate) enum Change {
    Steps(json_patch::Patch),
    Merge(Value),
    Strategic(Object),
}

/// Reads a patch.
///
/// # Errors
/// 400 when it is none, 413 when it has too many steps.
pub(crate) fn read(patch: Patch, body: &[u8]) -> Result<(Change, Vec<String>), Status> {
    let refused = |error: &dyn std::error::Error| {
        Status::bad_request(format!("the body is no {}: {error}", patch.media_type()))
    };
    match patch {
        Patch::Json => {
            let steps: json_patch::Patch =
                serde_json::from_slice(body).map_err(|error| refused(&error))?;
            if steps.0.len() > MOST_STEPS {
                return Err(Status::too_large_patch(MOST_STEPS));
            }
            Ok((Change::Steps(steps), Vec::new()))
        }
        Patch::Merge => {
            let body = json::parse(body).map_err(|error| refused(&error))?;
            Ok((Change::Merge(Value::Object(body.object)), body.findings))
        }
        Patch::Strategic => {
            let body = json::parse(body).map_err(|error| refused(&error))?;
            Ok((Change::Strategic(body.object), body.findings))
        }
        Patch::Apply => {
            let body = yaml::parse(body).map_err(|error| refused(&error))?;
            Ok((Change::Merge(Value::Object(body.object)), body.findings))
        }
    }
}

impl Change {
    /// The object it makes of another, not yet checked against the schema.
    pub(crate) fn apply(
        &self,
        resource: &Resource,
        name: &str,
        of: TypeId,
        mut object: Object,
    ) -> Result<Object, Status> {
        let invalid = |why: String| {
            let cause = Cause::invalid("patch", &Value::Null, &why);
            let mut status = Status::invalid(resource, name, vec![cause]);
            // The reference says what went wrong and nothing around it.
            status.message = why;
            status
        };
        match self {
            Self::Steps(steps) => {
                let mut value = Value::Object(object);
                take(&mut value, steps).map_err(|error| invalid(error.to_string()))?;
                match value {
                    Value::Object(object) => Ok(object),
                    _ => Err(invalid("the patch leaves no object".to_owned())),
                }
            }
            Self::Merge(merge) => {
                let mut value = Value::Object(object);
                json_patch::merge(&mut value, merge);
                match value {
                    Value::Object(object) => Ok(object),
                    _ => Err(invalid("the patch leaves no object".to_owned())),
                }
            }
            Self::Strategic(patch) => match strategic::apply(&mut object, patch, of) {
                Ok(()) => Ok(object),
                Err(error @ strategic::Error::Directive { .. }) => {
                    Err(Status::bad_request(error.to_string()))
                }
                Err(error) => Err(invalid(error.to_string())),
            },
        }
    }
}

/// Takes steps one after the other, up to the first that fails (RFC 6902). Beyond that, as in the reference, what an
/// object does not have passes for null in a test: clients so make sure that they are the first to add it.
fn take(value: &mut Value, steps: &[PatchOperation]) -> Result<(), PatchError> {
    for (operation, step) in steps.iter().enumerate() {
        if !finds_nothing_as_expected(value, step) {
            json_patch::patch_unsafe(value, std::slice::from_ref(step)).map_err(|mut error| {
                error.operation = operation;
                error
            })?;
        }
    }
    Ok(())
}

fn finds_nothing_as_expected(value: &Value, step: &PatchOperation) -> bool {
    let PatchOperation::Test(test) = step else { return false };
    let Some((parent, key)) = test.path.split_back().filter(|_| test.value.is_null()) else {
        return false;
    };
    let parent = value.pointer(parent.as_str()).and_then(Value::as_object);
    parent.is_some_and(|parent| !parent.contains_key(&*key.decoded()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(steps: Value) -> Result<Value, String> {
        let steps: json_patch::Patch = serde_json::from_value(steps).expect("it is one");
        let mut value = json!({"metadata": {"labels": {"a/b": "1"}}, "list": ["x"]});
        take(&mut value, &steps).map_err(|error| error.to_string())?;
        Ok(value)
    }

    #[test]
    fn what_is_not_there_passes_for_null() {
        // As the `kube` crate and others add the first finalizer.
        let first = json!([
            {"op": "test", "path": "/metadata/finalizers", "value": null},
            {"op": "add", "path": "/metadata/finalizers", "value": ["f"]},
        ]);
        assert_eq!(
            taken(first).map(|value| value["metadata"]["finalizers"].clone()),
            Ok(json!(["f"]))
        );
        for (path, passes) in [
            ("/metadata/labels/a~1b", false),
            ("/metadata/labels/a", true),
            ("/list", false),
            ("/list/1", false),
            ("/nowhere/a", false),
            ("", false),
        ] {
            let test = json!([{"op": "test", "path": path, "value": null}]);
            assert_eq!(taken(test).is_ok(), passes, "{path}");
        }
        let test = json!([{"op": "test", "path": "/metadata/finalizers", "value": []}]);
        assert!(taken(test).is_err(), "only for null");
        let second = json!([
            {"op": "remove", "path": "/list/0"},
            {"op": "remove", "path": "/list/0"},
        ]);
        let error = taken(second).expect_err("it has but one");
        assert!(error.contains("/1"), "the second step fails: {error}");
    }
}
