//! The reviews of `authorization.k8s.io`: may somebody do something, may I, and what may I do here. They are answered,
//! never stored.

use serde_json::{Value, json};

use super::{Action, Authorizer as _, Authorizers, Decision, Held, Rule};
use crate::object::{Object, User, at, items, metadata, text};
use crate::request::Asked;
use crate::resources::Resource;
use crate::status::{Cause, Status};

/// Answers a review that is created by `user`, in `namespace` where it is a local one: the same object with its `status`.
///
/// # Errors
/// 400 or 422 in the reference's words when it cannot be asked so.
pub fn answer(
    resource: &Resource,
    namespace: &str,
    user: &User,
    mut review: Object,
    authorizers: &Authorizers,
) -> Result<Object, Status> {
    let status = if resource.plural == "selfsubjectrulesreviews" {
        rules(user, &review, authorizers)?
    } else {
        let own = resource.plural == "selfsubjectaccessreviews";
        let local = resource.plural == "localsubjectaccessreviews";
        if local {
            check_namespace(namespace, &mut review)?;
        }
        let causes = validate(&review, own, local);
        if !causes.is_empty() {
            return Err(Status::invalid(resource, "", causes));
        }
        let asks = if own { user.clone() } else { user_of(&review) };
        access(&asks, &review, authorizers)
    };
    metadata(&mut review);
    review.insert("status".to_owned(), status);
    Ok(review)
}

/// The namespace of a local review is the path's.
fn check_namespace(namespace: &str, review: &mut Object) -> Result<(), Status> {
    let own = metadata(review).entry("namespace").or_insert_with(|| "".into());
    if own.as_str() == Some("") {
        *own = namespace.into();
    }
    if own.as_str() != Some(namespace) {
        let message =
            "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(message));
    }
    Ok(())
}

fn access(user: &User, review: &Object, authorizers: &Authorizers) -> Value {
    let attribute = |name: &str| text_of(at(review, "/spec/resourceAttributes"), name);
    let asked =
        at(review, "/spec/resourceAttributes").filter(|value| value.is_object()).map(|_| Asked {
            group: attribute("group"),
            version: attribute("version"),
            namespace: attribute("namespace"),
            plural: attribute("resource"),
            name: attribute("name"),
            subresource: attribute("subresource"),
        });
    let path = at(review, "/spec/nonResourceAttributes");
    let action = Action {
        user,
        verb: if asked.is_some() { attribute("verb") } else { text_of(path, "verb") },
        asked,
        path: text_of(path, "path"),
    };
    let (allowed, denied, reason) = match authorizers.decide(&action) {
        Decision::Allow(reason) => (true, false, reason.to_string()),
        Decision::Deny(reason) => (false, true, reason),
        Decision::NoOpinion(reason) => (false, false, reason),
    };
    let mut status = json!({"allowed": allowed});
    if denied {
        status["denied"] = true.into();
    }
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    status
}

fn rules(user: &User, review: &Object, authorizers: &Authorizers) -> Result<Value, Status> {
    let namespace = text(review, "/spec/namespace");
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let Held { rules, unknown } = authorizers.held(user, namespace);
    let mut status = json!({
        "resourceRules": rules.iter().filter_map(Rule::of_resources).collect::<Value>(),
        "nonResourceRules": rules.iter().filter_map(Rule::of_urls).collect::<Value>(),
        "incomplete": !unknown.is_empty(),
    });
    match &unknown[..] {
        [] => {}
        [one] => status["evaluationError"] = one.as_str().into(),
        several => status["evaluationError"] = format!("[{}]", several.join(", ")).into(),
    }
    Ok(status)
}

/// Whom a review asks about.
fn user_of(review: &Object) -> User {
    let words = |list: &Value| {
        let words = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let extra = at(review, "/spec/extra").and_then(Value::as_object).into_iter().flatten();
    User {
        name: text(review, "/spec/user").to_owned(),
        uid: text(review, "/spec/uid").to_owned(),
        groups: at(review, "/spec/groups").map(words).unwrap_or_default(),
        extra: extra.map(|(key, values)| (key.to_lowercase(), words(values))).collect(),
    }
}

fn validate(review: &Object, own: bool, local: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    let given = |field: &str| {
        at(review, &format!("/spec/{field}")).filter(|attributes| !attributes.is_null())
    };
    let (resource, path) = (given("resourceAttributes"), given("nonResourceAttributes"));
    match (resource, path) {
        (Some(_), Some(path)) => causes.push(Cause::invalid(
            "spec.nonResourceAttributes",
            &inner(path),
            "cannot be specified in combination with resourceAttributes",
        )),
        // The reference shows the text "null" here.
        (None, None) => causes.push(Cause::invalid(
            "spec.resourceAttributes",
            &"null".into(),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    if !own && text(review, "/spec/user").is_empty() && items(review, "/spec/groups").count() == 0 {
        let why = "at least one of user or group must be specified";
        causes.push(Cause::invalid("spec.user", &"".into(), why));
    }
    for selector in ["fieldSelector", "labelSelector"] {
        let Some(value) = resource.and_then(|attributes| attributes.get(selector)) else {
            continue;
        };
        let field = format!("spec.resourceAttributes.{selector}");
        let raw = text_of(Some(value), "rawSelector");
        let requirements = value["requirements"].as_array().is_some_and(|list| !list.is_empty());
        match (raw.is_empty(), requirements) {
            (false, true) => causes.push(Cause::invalid(
                format!("{field}.rawSelector"),
                &raw.into(),
                "may not specified at the same time as requirements",
            )),
            (true, false) if value.is_object() => causes.push(Cause::required(
                format!("{field}.requirements"),
                &format!("when {field} is specified, requirements or rawSelector is required"),
            )),
            _ => {}
        }
    }
    let mut rest = review.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    rest.remove("managedFields");
    rest.retain(|_, value| !value.is_null());
    let why = if local {
        rest.remove("namespace");
        "must be empty except for namespace"
    } else {
        "must be empty"
    };
    if !rest.is_empty() {
        let all = review.get("metadata").unwrap_or(&Value::Null);
        causes.push(Cause::invalid("metadata", all, why));
    }
    if local {
        let namespace = text_of(resource, "namespace");
        if resource.is_some() && namespace != text(review, "/metadata/namespace") {
            causes.push(Cause::invalid(
                "spec.resourceAttributes.namespace",
                &namespace.into(),
                "must match metadata.namespace",
            ));
        }
        if let Some(path) = path {
            let why = "disallowed on this kind of request";
            causes.push(Cause::invalid("spec.nonResourceAttributes", &inner(path), why));
        }
    }
    causes
}

/// The attributes under the names that the reference's messages show, which are its own inside.
fn inner(path: &Value) -> Value {
    json!({"Path": text_of(Some(path), "path"), "Verb": text_of(Some(path), "verb")})
}

fn text_of<'a>(object: Option<&'a Value>, field: &str) -> &'a str {
    object.and_then(|object| object.get(field)).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::authz::{MASTERS, Rbac};
    use crate::resources::find;

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { unreachable!("it is an object") };
        object
    }

    fn setting() -> Authorizers {
        let rbac = Rbac::default();
        let see = |plural, namespace, name, value| {
            let resource = find("rbac.authorization.k8s.io", "v1", plural).expect("it is there");
            rbac.observe(resource, namespace, name, Some(&object(value)));
        };
        see(
            "clusterroles",
            "",
            "r",
            json!({"rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
                {"nonResourceURLs": ["/x"], "verbs": ["get"]},
            ]}),
        );
        let subjects = json!([{"kind": "User", "name": "ann"}, {"kind": "Group", "name": "dev"}]);
        let role = |name: &str| json!({"roleRef": {"kind": "ClusterRole", "name": name}, "subjects": subjects});
        see("rolebindings", "ns", "b", role("r"));
        see("rolebindings", "torn", "b", role("gone"));
        Authorizers(vec![Arc::new(rbac)])
    }

    fn ask(plural: &str, namespace: &str, user: &User, review: Value) -> Result<Value, Status> {
        let resource = find("authorization.k8s.io", "v1", plural).expect("it is in the table");
        let mut whole = json!({"apiVersion": "authorization.k8s.io/v1", "kind": resource.kind});
        for (key, value) in object(review) {
            whole[key] = value;
        }
        let answer = answer(resource, namespace, user, object(whole), &setting());
        answer.map(|answer| answer["status"].clone())
    }

    fn said(plural: &str, namespace: &str, review: Value) -> String {
        ask(plural, namespace, &ann(), review).expect_err("it is not sound").message
    }

    fn ann() -> User {
        User { name: "ann".to_owned(), ..User::default() }
    }

    #[test]
    fn reviews_say_who_may_and_why() {
        let pods = json!({"namespace": "ns", "verb": "get", "resource": "pods"});
        let yes = "RBAC: allowed by RoleBinding \"b/ns\" of ClusterRole \"r\" to";
        let own = json!({"spec": {"resourceAttributes": pods}});
        assert_eq!(
            ask("selfsubjectaccessreviews", "", &ann(), own.clone()),
            Ok(json!({"allowed": true, "reason": format!("{yes} User \"ann\"")}))
        );
        let root = User { groups: vec![MASTERS.to_owned()], ..User::default() };
        assert_eq!(ask("selfsubjectaccessreviews", "", &root, own), Ok(json!({"allowed": true})));
        let dev = json!({"spec": {"resourceAttributes": pods, "groups": ["dev"]}});
        assert_eq!(
            ask("subjectaccessreviews", "", &root, dev.clone()),
            Ok(json!({"allowed": true, "reason": format!("{yes} Group \"dev\"")}))
        );
        assert_eq!(
            ask("localsubjectaccessreviews", "ns", &root, dev),
            Ok(json!({"allowed": true, "reason": format!("{yes} Group \"dev\"")}))
        );
        let path = json!({"spec": {"nonResourceAttributes": {"path": "/x", "verb": "get"}, "user": "bob"}});
        assert_eq!(ask("subjectaccessreviews", "", &ann(), path), Ok(json!({"allowed": false})));
        let torn = json!({"spec": {"resourceAttributes": {"namespace": "torn", "verb": "get", "resource": "pods"}}});
        assert_eq!(
            ask("selfsubjectaccessreviews", "", &ann(), torn),
            Ok(json!({
                "allowed": false,
                "reason": "RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found",
            }))
        );
    }

    #[test]
    fn what_one_may_do_is_listed() {
        let here = |namespace: &str| json!({"spec": {"namespace": namespace}});
        assert_eq!(
            ask("selfsubjectrulesreviews", "", &ann(), here("ns")),
            Ok(json!({
                "resourceRules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
                "nonResourceRules": [{"nonResourceURLs": ["/x"], "verbs": ["get"]}],
                "incomplete": false,
            }))
        );
        assert_eq!(
            ask("selfsubjectrulesreviews", "", &ann(), here("torn")),
            Ok(json!({
                "resourceRules": [], "nonResourceRules": [], "incomplete": true,
                "evaluationError": "clusterrole.rbac.authorization.k8s.io \"gone\" not found",
            }))
        );
        let none = ask("selfsubjectrulesreviews", "", &ann(), here("")).expect_err("no namespace");
        assert_eq!((none.code, none.message.as_str()), (400, "no namespace on request"));
    }

    #[test]
    fn reviews_that_cannot_be_asked_are_refused_in_the_references_words() {
        let own = "SelfSubjectAccessReview.authorization.k8s.io \"\" is invalid:";
        assert_eq!(
            said("selfsubjectaccessreviews", "", json!({"spec": {}})),
            format!(
                "{own} spec.resourceAttributes: Invalid value: \"null\": exactly one of nonResourceAttributes or resourceAttributes must be specified"
            )
        );
        let path = json!({"path": "/x", "verb": "get"});
        assert_eq!(
            said(
                "selfsubjectaccessreviews",
                "",
                json!({"spec": {"resourceAttributes": {}, "nonResourceAttributes": path}})
            ),
            format!(
                "{own} spec.nonResourceAttributes: Invalid value: {{\"Path\":\"/x\",\"Verb\":\"get\"}}: cannot be specified in combination with resourceAttributes"
            )
        );
        assert_eq!(
            said(
                "selfsubjectaccessreviews",
                "",
                json!({"metadata": {"name": "x"}, "spec": {"nonResourceAttributes": path}})
            ),
            format!("{own} metadata: Invalid value: {{\"name\":\"x\"}}: must be empty")
        );
        assert_eq!(
            said("subjectaccessreviews", "", json!({"spec": {"nonResourceAttributes": path}})),
            "SubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.user: Invalid value: \"\": at least one of user or group must be specified"
        );
        let local = "LocalSubjectAccessReview.authorization.k8s.io \"\" is invalid:";
        assert_eq!(
            said(
                "localsubjectaccessreviews",
                "ns",
                json!({"spec": {"user": "u", "nonResourceAttributes": path}})
            ),
            format!(
                "{local} spec.nonResourceAttributes: Invalid value: {{\"Path\":\"/x\",\"Verb\":\"get\"}}: disallowed on this kind of request"
            )
        );
        assert_eq!(
            said(
                "localsubjectaccessreviews",
                "ns",
                json!({"metadata": {"namespace": "ns"}, "spec": {"user": "u", "resourceAttributes": {"namespace": "b"}}})
            ),
            format!(
                "{local} spec.resourceAttributes.namespace: Invalid value: \"b\": must match metadata.namespace"
            )
        );
        assert_eq!(
            said(
                "localsubjectaccessreviews",
                "ns",
                json!({"metadata": {"namespace": "b"}, "spec": {}})
            ),
            "the namespace of the provided object does not match the namespace sent on the request"
        );
        let selectors = json!({"fieldSelector": {"rawSelector": "a=b", "requirements": [{}]}, "labelSelector": {}});
        assert_eq!(
            said(
                "selfsubjectaccessreviews",
                "",
                json!({"spec": {"resourceAttributes": selectors}})
            ),
            format!(
                "{own} [spec.resourceAttributes.fieldSelector.rawSelector: Invalid value: \"a=b\": may not specified at the same time as requirements, spec.resourceAttributes.labelSelector.requirements: Required value: when spec.resourceAttributes.labelSelector is specified, requirements or rawSelector is required]"
            )
        );
    }
}
