//! The `Status` bodies with which requests end that do not end well, worded as the reference does: clients read them.

use serde_json::{Value, json};

use crate::resources::Resource;

/// The end of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// Of HTTP.
    pub code: u16,
    /// One word, for programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// What it is about.
    pub details: Box<Details>,
}

/// See [`Status::details`]; what is empty is left out.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Details {
    /// Of the object.
    pub name: String,
    /// Of its resource.
    pub group: String,
    /// The plural; the kind where the object is not valid.
    pub kind: String,
    /// Of the object.
    pub uid: String,
    /// Each thing that is wrong.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_seconds: u32,
    /// What a list that broke off can be gone on with: the body's `metadata.continue`.
    pub token: String,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cause {
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Where: `spec.containers[0].name`.
    pub field: String,
}

impl Cause {
    /// A field that must be given.
    #[must_use]
    pub fn required(field: impl Into<String>, hint: &str) -> Self {
        let hint = if hint.is_empty() { String::new() } else { format!(": {hint}") };
        Self {
            reason: "FieldValueRequired",
            message: format!("Required value{hint}"),
            field: field.into(),
        }
    }

    /// A value that cannot be.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {why}"),
            field: field.into(),
        }
    }

    /// A value that is none of those there are.
    #[must_use]
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let supported: Vec<_> = supported.iter().map(|value| format!("{value:?}")).collect();
        let message =
            format!("Unsupported value: {value}: supported values: {}", supported.join(", "));
        Self { reason: "FieldValueNotSupported", message, field: field.into() }
    }

    /// A value that is there already.
    #[must_use]
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {value}"),
            field: field.into(),
        }
    }

    /// A field that must not be given, or changed.
    #[must_use]
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self {
            reason: "FieldValueForbidden",
            message: format!("Forbidden: {why}"),
            field: field.into(),
        }
    }
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Box::default() }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        self.details.name = name.to_owned();
        self.details.group = resource.group.to_owned();
        self.details.kind = resource.plural.to_owned();
        self
    }

    /// The request cannot be read.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// What was shown as a credential is none.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// The user may not do this to an object. What authorization says is told by [`crate::authz::forbidden`].
    #[must_use]
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let named = if name.is_empty() { String::new() } else { format!(" {name:?}") };
        let message = format!("{}{named} is forbidden: {why}", resource.qualified());
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// There is no such object.
    #[must_use]
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} not found", resource.qualified());
        Self::new(404, "NotFound", message).about(resource, name)
    }

    /// There is no such resource in a group that is there.
    #[must_use]
    pub fn no_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// There is nothing of ours at a path; told in plain text ([`Status::is_plain`]).
    #[must_use]
    pub fn no_path() -> Self {
        Self::new(404, "", "404 page not found")
    }

    /// Is it told in plain text?
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.code == 404 && self.reason.is_empty()
    }

    /// A JSON patch of too many steps.
    #[must_use]
    pub fn too_large_patch(limit: usize) -> Self {
        let message =
            format!("The allowed maximum operations in a JSON patch is {limit}, got more");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// The resource does not have this verb.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message)
    }

    /// There is one of this name.
    #[must_use]
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message).about(resource, name)
    }

    /// No form of the answer is among those asked for.
    #[must_use]
    pub fn not_acceptable(offered: &[&str]) -> Self {
        let message =
            format!("only the following media types are accepted: {}", offered.join(", "));
        Self::new(406, "NotAcceptable", message)
    }

    /// The body is of a kind that cannot be read here.
    #[must_use]
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// Somebody else changed it.
    #[must_use]
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource.qualified());
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// What was asked for is forgotten.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// The body is too large.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// The object cannot be as it is.
    #[must_use]
    pub fn invalid(resource: &Resource, name: &str, causes: Vec<Cause>) -> Self {
        Self::invalid_kind(resource.group, resource.kind, name, causes)
    }

    /// [`Status::invalid`], of what is no object of a resource: a request's body or its options.
    #[must_use]
    pub fn invalid_kind(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let said: Vec<_> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let said = if said.len() == 1 { said.concat() } else { format!("[{}]", said.join(", ")) };
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let mut status =
            Self::new(422, "Invalid", format!("{qualified} {name:?} is invalid: {said}"));
        *status.details = Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            causes,
            ..Details::default()
        };
        status
    }

    /// The parameters of a request cannot be as they are.
    #[must_use]
    pub fn invalid_options(kind: &str, causes: Vec<Cause>) -> Self {
        let said: Vec<_> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let said = if said.len() == 1 { said.concat() } else { format!("[{}]", said.join(", ")) };
        let mut status =
            Self::new(422, "Invalid", format!("{kind}.meta.k8s.io \"\" is invalid: {said}"));
        status.details.group = "meta.k8s.io".to_owned();
        status.details.kind = kind.to_owned();
        status.details.causes = causes;
        status
    }

    /// There is more to do than there is room for.
    #[must_use]
    pub fn too_many_requests() -> Self {
        let mut status =
            Self::new(429, "TooManyRequests", "Too many requests, please try again later.");
        status.details.retry_after_seconds = 1;
        status
    }

    /// It is our fault.
    #[must_use]
    pub fn internal(why: &str) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {why}"))
    }

    /// The store has no room.
    #[must_use]
    pub fn full(what: &str) -> Self {
        let message = format!(
            "the store is full: {what}; nothing was written, remove what is not needed or give it more room"
        );
        Self::new(507, "InsufficientStorage", message)
    }

    /// It is asked of something that is not here.
    #[must_use]
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(501, "NotImplemented", message)
    }

    /// It took longer than it may.
    #[must_use]
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message)
    }

    /// The store does not answer; nothing was done.
    #[must_use]
    pub fn unavailable(why: impl Into<String>) -> Self {
        let mut status = Self::new(503, "ServiceUnavailable", why);
        status.details.retry_after_seconds = 1;
        status
    }

    /// A revision that is not there after waiting for it.
    #[must_use]
    pub fn too_large_revision(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let mut status = Self::new(504, "Timeout", message);
        let message = "Too large resource version".to_owned();
        status.details.causes =
            vec![Cause { reason: "ResourceVersionTooLarge", message, field: String::new() }];
        status.details.retry_after_seconds = 1;
        status
    }

    /// As it is sent.
    #[must_use]
    pub fn body(&self) -> Value {
        let Details { name, group, kind, uid, causes, retry_after_seconds, token } = &*self.details;
        let mut details = serde_json::Map::new();
        for (key, text) in [("name", name), ("group", group), ("kind", kind), ("uid", uid)] {
            if !text.is_empty() {
                details.insert(key.to_owned(), text.as_str().into());
            }
        }
        if !causes.is_empty() {
            let causes = causes.iter().map(|cause| {
                let mut body = json!({"reason": cause.reason, "message": cause.message});
                if !cause.field.is_empty() {
                    body["field"] = cause.field.as_str().into();
                }
                body
            });
            details.insert("causes".to_owned(), causes.collect());
        }
        if *retry_after_seconds > 0 {
            details.insert("retryAfterSeconds".to_owned(), (*retry_after_seconds).into());
        }
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if !token.is_empty() {
            body["metadata"] = json!({"continue": token});
        }
        // Clients tell a resource that is not there from a path that is not by the details.
        if !details.is_empty() || matches!(self.code, 403 | 404) {
            body["details"] = details.into();
        }
        body
    }
}

/// As the reference writes what may end in a browser.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    #[test]
    fn bodies_are_worded_as_the_reference_does() {
        let pods = find("", "v1", "pods").expect("pods");
        let deployments = find("apps", "v1", "deployments").expect("deployments");
        assert_eq!(
            Status::not_found(deployments, "x").body(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound",
                "message": "deployments.apps \"x\" not found", "code": 404,
                "details": {"name": "x", "group": "apps", "kind": "deployments"},
            })
        );
        assert_eq!(Status::no_resource().body()["details"], json!({}));
        assert_eq!(Status::unauthorized().body().get("details"), None);
        for (status, said) in [
            (Status::already_exists(pods, "x"), "pods \"x\" already exists"),
            (
                Status::conflict(pods, "x", "the object has been modified"),
                "Operation cannot be fulfilled on pods \"x\": the object has been modified",
            ),
            (
                Status::forbidden(
                    pods,
                    "",
                    "User \"u\" cannot list resource \"pods\" in API group \"\" in the namespace \"ns\"",
                ),
                "pods is forbidden: User \"u\" cannot list resource \"pods\" in API group \"\" in the namespace \"ns\"",
            ),
            (Status::forbidden(pods, "x", "<b>"), "pods \"x\" is forbidden: <b>"),
            (Status::too_large(3_145_728), "Request entity too large: limit is 3145728"),
            (
                Status::too_large_revision(9, 5),
                "Timeout: Too large resource version: 9, current: 5",
            ),
            (
                Status::invalid(pods, "x", vec![Cause::required("spec.containers", "")]),
                "Pod \"x\" is invalid: spec.containers: Required value",
            ),
            (
                Status::invalid(
                    deployments,
                    "x",
                    vec![
                        Cause::invalid(
                            "spec.replicas",
                            &json!(-1),
                            "must be greater than or equal to 0",
                        ),
                        Cause::not_supported(
                            "spec.strategy.type",
                            &json!("Burn"),
                            &["Recreate", "RollingUpdate"],
                        ),
                    ],
                ),
                "Deployment.apps \"x\" is invalid: [spec.replicas: Invalid value: -1: must be greater than or equal to 0, \
                 spec.strategy.type: Unsupported value: \"Burn\": supported values: \"Recreate\", \"RollingUpdate\"]",
            ),
        ] {
            assert_eq!(status.message, said);
        }
        let invalid = Status::invalid(
            pods,
            "x",
            vec![Cause::duplicate("spec.containers[1].name", &json!("a"))],
        )
        .body();
        assert_eq!(
            invalid["details"],
            json!({"name": "x", "kind": "Pod", "causes": [
                {"reason": "FieldValueDuplicate", "message": "Duplicate value: \"a\"", "field": "spec.containers[1].name"},
            ]})
        );
        assert_eq!(Status::too_many_requests().body()["details"], json!({"retryAfterSeconds": 1}));
    }
}
