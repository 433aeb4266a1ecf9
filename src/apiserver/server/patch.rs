//! What PATCH makes of an object, by each of the ways in which it can be said.

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
                json_patch::patch(&mut value, steps).map_err(|error| invalid(error.to_string()))?;
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
