//! TokenReview and SelfSubjectReview: what others are told of a token, and everybody of themselves. Nothing is stored.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::Authenticator;
use crate::object::{Object, User, text};
use crate::status::Status;

/// Fills in a TokenReview.
///
/// # Errors
/// When it has no token.
pub fn token(
    authenticator: &Authenticator,
    mut review: Object,
    now: SystemTime,
) -> Result<Object, Status> {
    let token = text(&review, "/spec/token");
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let asked: Vec<String> = crate::object::items(&review, "/spec/audiences")
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    let asked = (!asked.is_empty()).then_some(&asked[..]);
    let status = match authenticator.by_token(token, asked, now) {
        Ok(verdict) => json!({
            "authenticated": true,
            "user": described(&verdict.user),
            "audiences": verdict.audiences,
        }),
        Err(why) => json!({"user": {}, "error": format!("invalid bearer token: {why}")}),
    };
    review.insert("status".to_owned(), status);
    Ok(review)
}

/// Fills in a SelfSubjectReview.
#[must_use]
pub fn oneself(user: &User, mut review: Object) -> Object {
    review.insert("status".to_owned(), json!({"userInfo": described(user)}));
    review
}

/// A user as objects say it (`authentication.k8s.io/v1` UserInfo).
#[must_use]
pub fn described(user: &User) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}
