//! What a deletion does: at once, after a grace period, or when whoever holds a finalizer is done.

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::prepare::{set, stamp};
use crate::object::{Object, at, items, metadata, text};
use crate::resources::Resource;
use crate::status::{Cause, Status};

/// Dependents lose their owner.
const ORPHAN: &str = "orphan";
/// Dependents go first.
const FOREGROUND: &str = "foregroundDeletion";

/// How a client wants something deleted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DeleteOptions {
    /// None: what the object says.
    pub grace_period_seconds: Option<i64>,
    /// It must be this one.
    pub uid: Option<String>,
    /// It must be at this revision.
    pub resource_version: Option<String>,
    /// The older form of a policy.
    pub orphan_dependents: Option<bool>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation_policy: Option<String>,
    /// `All`: only tell what would happen.
    pub dry_run: Vec<String>,
}

/// What becomes of the object.
#[derive(Clone, Debug, PartialEq)]
pub enum Deletion {
    /// It is removed; so it looked at the end.
    Now(Object),
    /// It is stored like this until later; as it was, if a deletion is on its way already.
    Later(Object),
}

impl DeleteOptions {
    /// Of a body, which the schema has checked.
    #[must_use]
    pub fn read(body: &Object) -> Self {
        let owned =
            |pointer| Some(text(body, pointer)).filter(|text| !text.is_empty()).map(str::to_owned);
        Self {
            grace_period_seconds: at(body, "/gracePeriodSeconds").and_then(Value::as_i64),
            uid: owned("/preconditions/uid"),
            resource_version: owned("/preconditions/resourceVersion"),
            orphan_dependents: at(body, "/orphanDependents").and_then(Value::as_bool),
            propagation_policy: owned("/propagationPolicy"),
            dry_run: items(body, "/dryRun").filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }

    /// What is wrong with them.
    #[must_use]
    pub fn validate(&self) -> Vec<Cause> {
        let mut causes = Vec::new();
        if let Some(policy) = &self.propagation_policy {
            if self.orphan_dependents.is_some() {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                causes.push(Cause::invalid("propagationPolicy", &json!(policy), why));
            }
            let known = ["Foreground", "Background", "Orphan", "nil"];
            if !known[..3].contains(&policy.as_str()) {
                causes.push(Cause::not_supported("propagationPolicy", &json!(policy), &known));
            }
        }
        if self.dry_run.iter().any(|run| run != "All") {
            causes.push(Cause::not_supported("dryRun", &json!(self.dry_run), &["All"]));
        }
        causes
    }
}

/// Decides it. The options are valid.
///
/// # Errors
/// A precondition does not hold (409).
pub fn deletion(
    resource: &Resource,
    object: &Object,
    options: &DeleteOptions,
    now: OffsetDateTime,
) -> Result<Deletion, Status> {
    check_preconditions(resource, object, options)?;
    if at(object, "/metadata/deletionTimestamp").is_some() {
        return Ok(again(object, options));
    }
    let mut last = object.clone();
    let grace = grace(resource, object, options);
    let finalizers = finalizers(resource, object, options);
    let meta = metadata(&mut last);
    if finalizers.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".to_owned(), finalizers.as_slice().into());
    }
    let is_namespace = resource.group.is_empty() && resource.plural == "namespaces";
    let stays = !finalizers.is_empty()
        || grace > 0
        || (is_namespace && items(object, "/spec/finalizers").next().is_some());
    let graceful = resource.group.is_empty() && resource.plural == "pods";
    if stays || graceful {
        meta.insert(
            "deletionTimestamp".to_owned(),
            stamp(now.saturating_add(Duration::seconds(grace))).into(),
        );
        if !is_namespace {
            meta.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        }
        let generation = meta.get("generation").and_then(Value::as_i64).unwrap_or(0);
        if generation > 0 {
            meta.insert("generation".to_owned(), (generation + 1).into());
        }
    }
    if is_namespace {
        set(&mut last, &["status", "phase"], "Terminating".into());
    }
    Ok(if stays { Deletion::Later(last) } else { Deletion::Now(last) })
}

/// After an update: is it done with, and to be removed with it?
#[must_use]
pub fn is_done(resource: &Resource, object: &Object) -> bool {
    let grace = at(object, "/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    at(object, "/metadata/deletionTimestamp").is_some()
        && grace.unwrap_or(0) == 0
        && items(object, "/metadata/finalizers").next().is_none()
        && (resource.plural != "namespaces" || items(object, "/spec/finalizers").next().is_none())
}

fn check_preconditions(
    resource: &Resource,
    object: &Object,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let uid = text(object, "/metadata/uid");
    let version = text(object, "/metadata/resourceVersion");
    for (what, asked, own) in
        [("UID", &options.uid, uid), ("ResourceVersion", &options.resource_version, version)]
    {
        if let Some(asked) = asked
            && asked != own
        {
            let why = format!(
                "Precondition failed: {what} in precondition: {asked}, {what} in object meta: {own}"
            );
            return Err(Status::conflict(resource, text(object, "/metadata/name"), &why));
        }
    }
    Ok(())
}

/// Only pods are given time.
fn grace(resource: &Resource, object: &Object, options: &DeleteOptions) -> i64 {
    let is_pod = resource.group.is_empty() && resource.plural == "pods";
    let over = matches!(text(object, "/status/phase"), "Succeeded" | "Failed");
    if !is_pod || over || text(object, "/spec/nodeName").is_empty() {
        return 0;
    }
    let own = || at(object, "/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let grace = options.grace_period_seconds.or_else(own).unwrap_or(30);
    if grace < 0 { 1 } else { grace }
}

/// What it waits for when it goes.
fn finalizers(resource: &Resource, object: &Object, options: &DeleteOptions) -> Vec<String> {
    let own = || items(object, "/metadata/finalizers").filter_map(Value::as_str);
    let by_default = || match (resource.group, resource.plural) {
        ("", "replicationcontrollers") | ("batch", "jobs") => Some(ORPHAN),
        _ => None,
    };
    let wanted = match (options.propagation_policy.as_deref(), options.orphan_dependents) {
        (Some("Orphan"), _) | (None, Some(true)) => Some(ORPHAN),
        (Some("Foreground"), _) => Some(FOREGROUND),
        (Some(_), _) | (None, Some(false)) => None,
        (None, None) => match own().find(|name| [ORPHAN, FOREGROUND].contains(name)) {
            Some(ORPHAN) => Some(ORPHAN),
            Some(_) => Some(FOREGROUND),
            None => by_default(),
        },
    };
    let others = own().filter(|name| ![ORPHAN, FOREGROUND].contains(name));
    others.chain(wanted).map(str::to_owned).collect()
}

/// A deletion that is on its way can only be hastened.
fn again(object: &Object, options: &DeleteOptions) -> Deletion {
    let mut last = object.clone();
    let before = at(object, "/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    let held = items(object, "/metadata/finalizers").next().is_some()
        || items(object, "/spec/finalizers").next().is_some();
    let before = before.unwrap_or(0);
    let asked = options.grace_period_seconds.map(|grace| if grace < 0 { 1 } else { grace });
    let grace = asked.filter(|asked| *asked < before).unwrap_or(before);
    if grace < before {
        let due = OffsetDateTime::parse(text(object, "/metadata/deletionTimestamp"), &Rfc3339);
        if let Ok(due) = due {
            let due = due.saturating_sub(Duration::seconds(before - grace));
            set(&mut last, &["metadata", "deletionTimestamp"], stamp(due).into());
        }
        set(&mut last, &["metadata", "deletionGracePeriodSeconds"], grace.into());
    }
    if grace > 0 || held { Deletion::Later(last) } else { Deletion::Now(last) }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::resources::find;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05.6 UTC);

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { unreachable!("it is an object") };
        object
    }

    fn deleted(plural: &str, value: Value, options: Value) -> (&'static str, Value) {
        let group = if plural == "jobs" { "batch" } else { "" };
        let resource = find(group, "v1", plural).expect("a resource");
        let options = DeleteOptions::read(&object(options));
        assert_eq!(options.validate(), []);
        match deletion(resource, &object(value), &options, NOW).expect("the preconditions hold") {
            Deletion::Now(object) => ("now", object["metadata"].clone()),
            Deletion::Later(object) => ("later", object["metadata"].clone()),
        }
    }

    #[test]
    fn pods_get_the_time_they_need_and_a_later_deletion_only_hastens_it() {
        let pod = |meta: Value, phase: &str| {
            json!({"metadata": meta, "status": {"phase": phase},
                "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 20}})
        };
        let plain = || pod(json!({"name": "a", "generation": 1}), "Running");
        let at = |second: u8, grace: i64| {
            json!({"name": "a", "generation": 2, "deletionTimestamp": format!("2026-01-02T03:04:{second:02}Z"),
                "deletionGracePeriodSeconds": grace})
        };
        assert_eq!(deleted("pods", plain(), json!({})), ("later", at(25, 20)));
        let asked = |seconds: i64| json!({"gracePeriodSeconds": seconds});
        assert_eq!(deleted("pods", plain(), asked(5)), ("later", at(10, 5)));
        assert_eq!(deleted("pods", plain(), asked(-7)), ("later", at(6, 1)));
        assert_eq!(deleted("pods", plain(), asked(0)), ("now", at(5, 0)));
        let over = pod(json!({"name": "a", "generation": 1}), "Succeeded");
        assert_eq!(deleted("pods", over, asked(9)), ("now", at(5, 0)));
        let unscheduled = json!({"metadata": {"name": "a", "generation": 1}, "spec": {}});
        assert_eq!(deleted("pods", unscheduled, json!({})), ("now", at(5, 0)));
        let on_its_way = || pod(at(25, 20), "Running");
        assert_eq!(deleted("pods", on_its_way(), json!({})), ("later", at(25, 20)));
        assert_eq!(deleted("pods", on_its_way(), asked(20)), ("later", at(25, 20)));
        assert_eq!(deleted("pods", on_its_way(), asked(2)), ("later", at(7, 2)));
        assert_eq!(deleted("pods", on_its_way(), asked(0)), ("now", at(5, 0)));
    }

    #[test]
    fn policies_are_finalizers() {
        let with = |finalizers: Value| json!({"metadata": {"name": "a", "finalizers": finalizers}});
        let policy = |policy: &str| json!({"propagationPolicy": policy});
        for (plural, before, options, after) in [
            ("configmaps", json!([]), json!({}), json!(null)),
            ("configmaps", json!(["x/y"]), json!({}), json!(["x/y"])),
            ("configmaps", json!([]), policy("Foreground"), json!(["foregroundDeletion"])),
            ("configmaps", json!(["orphan"]), json!({}), json!(["orphan"])),
            ("configmaps", json!(["orphan"]), policy("Background"), json!(null)),
            ("configmaps", json!(["orphan"]), policy("Foreground"), json!(["foregroundDeletion"])),
            ("configmaps", json!([]), json!({"orphanDependents": true}), json!(["orphan"])),
            ("jobs", json!([]), json!({}), json!(["orphan"])),
            ("jobs", json!([]), policy("Background"), json!(null)),
            ("jobs", json!([]), json!({"orphanDependents": false}), json!(null)),
            ("replicationcontrollers", json!([]), json!({}), json!(["orphan"])),
        ] {
            let (when, meta) = deleted(plural, with(before.clone()), options.clone());
            assert_eq!(meta["finalizers"], after, "{plural} {before} {options}");
            assert_eq!(when, if after.is_null() { "now" } else { "later" });
            assert_eq!(meta["deletionGracePeriodSeconds"].is_null(), after.is_null());
        }
    }

    #[test]
    fn a_namespace_stays_until_its_content_is_gone() {
        let namespaces = find("", "v1", "namespaces").expect("namespaces");
        let namespace =
            object(json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}}));
        let deletion = |object: &Object| {
            deletion(namespaces, object, &DeleteOptions::default(), NOW).expect("no preconditions")
        };
        let Deletion::Later(mut going) = deletion(&namespace) else { panic!("it goes at once") };
        assert_eq!(text(&going, "/status/phase"), "Terminating");
        assert_eq!(deletion(&going), Deletion::Later(going.clone()));
        assert!(!is_done(namespaces, &going));
        going.insert("spec".to_owned(), json!({}));
        assert!(is_done(namespaces, &going));
        assert_eq!(deletion(&going), Deletion::Now(going.clone()));
    }

    #[test]
    fn what_is_asked_must_make_sense_and_what_is_there_must_be_what_is_meant() {
        let said = |options: Value| {
            let causes = DeleteOptions::read(&object(options)).validate();
            causes.into_iter().map(|cause| cause.message).collect::<Vec<_>>()
        };
        assert_eq!(
            said(json!({"propagationPolicy": "Orphan", "orphanDependents": true})),
            [
                "Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set"
            ]
        );
        assert_eq!(
            said(json!({"propagationPolicy": "Later"})),
            [
                "Unsupported value: \"Later\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
            ]
        );
        assert_eq!(said(json!({"dryRun": ["Some"]})).len(), 1);
        let pods = find("", "v1", "pods").expect("pods");
        let pod = object(json!({"metadata": {"name": "a", "uid": "u", "resourceVersion": "7"}}));
        for (options, message) in [
            (
                json!({"preconditions": {"uid": "v"}}),
                "Operation cannot be fulfilled on pods \"a\": Precondition failed: UID in precondition: v, UID in object meta: u",
            ),
            (
                json!({"preconditions": {"uid": "u", "resourceVersion": "6"}}),
                "Operation cannot be fulfilled on pods \"a\": Precondition failed: ResourceVersion in precondition: 6, \
                 ResourceVersion in object meta: 7",
            ),
        ] {
            let options = DeleteOptions::read(&object(options));
            let status = deletion(pods, &pod, &options, NOW).expect_err("it is another");
            assert_eq!((status.code, status.message.as_str()), (409, message));
        }
    }
}
