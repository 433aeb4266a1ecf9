//! What was asked of the server, by whom, and how it ended: a line of JSON for each stage of a request that the policy
//! wants kept (spec of the server, §1.5; `audit.k8s.io/v1`).
//!
//! - [`policy`]: how much is kept of which request.
//! - [`log`]: where the lines go, off the path of requests.
//!
//! A request that something is kept of has a [`Trail`] from its beginning to its end.

pub mod log;
pub mod policy;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

pub use log::{Keep, Log};
pub use policy::{Level, Policy, Stage};

use crate::authz::Action;
use crate::object::{User, text};
use crate::status::Status;
use policy::Verdict;

/// A policy and where what it keeps goes.
#[derive(Debug)]
pub struct Audit {
    policy: Policy,
    log: Log,
}

/// What a request says of itself besides what it is about.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `Audit-Id`.
    pub id: &'a str,
    /// With the query.
    pub uri: &'a str,
    /// Of the client, and of those it says it speaks for, the nearest last.
    pub source_ips: &'a [String],
    /// Empty: it does not say.
    pub user_agent: &'a str,
}

/// What is kept of one request.
#[derive(Debug)]
pub struct Trail {
    audit: Arc<Audit>,
    verdict: Verdict,
    received: OffsetDateTime,
    id: String,
    uri: String,
    verb: String,
    source_ips: Vec<String>,
    user_agent: String,
    user: User,
    impersonated: Option<User>,
    target: Option<Target>,
    request: Option<Value>,
    notes: BTreeMap<String, String>,
}

/// `objectRef`: what it is about.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    #[serde(skip_serializing_if = "String::is_empty")]
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    subresource: String,
}

impl Audit {
    /// Keeps what `policy` wants in `log`.
    #[must_use]
    pub fn new(policy: Policy, log: Log) -> Arc<Self> {
        Arc::new(Self { policy, log })
    }

    /// A request begins; the user is who it really is. None: nothing is kept of it.
    #[must_use]
    pub fn begin(
        self: &Arc<Self>,
        action: &Action<'_>,
        head: Head<'_>,
        now: OffsetDateTime,
    ) -> Option<Trail> {
        let trail = self.trail(action, head, now)?;
        trail.keep(Stage::RequestReceived, None, None, now);
        Some(trail)
    }

    fn trail(
        self: &Arc<Self>,
        action: &Action<'_>,
        head: Head<'_>,
        now: OffsetDateTime,
    ) -> Option<Trail> {
        let verdict = self.policy.verdict(action);
        if verdict.level == Level::None {
            return None;
        }
        let target = action.asked.map(|asked| Target {
            resource: asked.plural.to_owned(),
            namespace: asked.namespace.to_owned(),
            name: asked.name.to_owned(),
            api_group: asked.group.to_owned(),
            api_version: asked.version.to_owned(),
            subresource: asked.subresource.to_owned(),
            ..Target::default()
        });
        Some(Trail {
            audit: Arc::clone(self),
            verdict,
            received: now,
            id: head.id.to_owned(),
            uri: head.uri.to_owned(),
            verb: action.verb.to_owned(),
            source_ips: head.source_ips.to_vec(),
            user_agent: head.user_agent.to_owned(),
            user: action.user.clone(),
            impersonated: None,
            target,
            request: None,
            notes: BTreeMap::new(),
        })
    }

    /// Who asks cannot be told, so nothing is asked of the policy but what is asked for. `attempted` are the ways that
    /// were tried.
    pub fn unknown(
        self: &Arc<Self>,
        action: &Action<'_>,
        head: Head<'_>,
        attempted: &[&str],
        now: OffsetDateTime,
    ) {
        let Some(trail) = self.trail(action, head, now) else { return };
        let message = match attempted {
            [] => "Authentication failed, no credentials provided".to_owned(),
            some => format!("Authentication failed, attempted: {}", some.join(", ")),
        };
        trail.keep(Stage::ResponseStarted, Some(Outcome::Unknown(&message)), None, now);
    }

    /// Lines written, and lines lost.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.log.counts()
    }
}

/// How a request ended, or began to.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// With this code.
    Code(u16),
    /// With this refusal.
    Refused(&'a Status),
    /// With 401, and why.
    Unknown(&'a str),
}

impl Trail {
    /// It is done in this user's name.
    pub fn impersonates(&mut self, user: &User) {
        self.impersonated = Some(user.clone());
    }

    /// Something to be kept with it: `authorization.k8s.io/decision`.
    pub fn note(&mut self, key: &str, value: impl Into<String>) {
        self.notes.insert(key.to_owned(), value.into());
    }

    /// Must its body be given to [`Self::request`]?
    #[must_use]
    pub fn wants_request(&self) -> bool {
        let unnamed = |target: &Target| target.name.is_empty();
        self.verdict.level >= Level::Request || self.target.as_ref().is_some_and(unnamed)
    }

    /// Its body, read. What the path does not say of the object is taken from it.
    pub fn request(&mut self, body: &Value) {
        if let (Some(target), Some(object)) = (&mut self.target, body.as_object()) {
            for (known, pointer) in [
                (&mut target.namespace, "/metadata/namespace"),
                (&mut target.name, "/metadata/name"),
                (&mut target.uid, "/metadata/uid"),
                (&mut target.resource_version, "/metadata/resourceVersion"),
            ] {
                if known.is_empty() {
                    text(object, pointer).clone_into(known);
                }
            }
        }
        if self.verdict.level >= Level::Request {
            self.request = Some(self.body(body));
        }
    }

    /// Must the answer's body be given?
    #[must_use]
    pub fn wants_response(&self) -> bool {
        self.verdict.level >= Level::RequestResponse
    }

    /// The answer's head is sent, and its body will take long.
    pub fn started(&self, code: u16, now: OffsetDateTime) {
        self.keep(Stage::ResponseStarted, Some(Outcome::Code(code)), None, now);
    }

    /// It is answered.
    pub fn completed(self, outcome: Outcome<'_>, response: Option<&Value>, now: OffsetDateTime) {
        self.keep(Stage::ResponseComplete, Some(outcome), response, now);
    }

    fn keep(
        &self,
        stage: Stage,
        outcome: Option<Outcome<'_>>,
        response: Option<&Value>,
        now: OffsetDateTime,
    ) {
        if self.verdict.omit_stages.contains(&stage) {
            return;
        }
        let refused = match outcome {
            Some(Outcome::Refused(status)) => Some(status.body()),
            _ => None,
        };
        let response = response.or(refused.as_ref()).filter(|_| self.wants_response());
        let mut status = match outcome {
            None => Value::Null,
            Some(Outcome::Code(code)) => serde_json::json!({"metadata": {}, "code": code}),
            Some(Outcome::Refused(status)) => status.body(),
            Some(Outcome::Unknown(why)) => {
                serde_json::json!({"metadata": {}, "message": why, "code": 401})
            }
        };
        if let Some(status) = status.as_object_mut() {
            status.remove("kind");
            status.remove("apiVersion");
        }
        let event = Event {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: self.verdict.level,
            audit_id: &self.id,
            stage,
            request_uri: &self.uri,
            verb: &self.verb,
            user: (&self.user).into(),
            impersonated_user: self.impersonated.as_ref().map(Into::into),
            source_ips: &self.source_ips,
            user_agent: &self.user_agent,
            object_ref: self.target.as_ref(),
            response_status: status,
            request_object: self.request.as_ref(),
            response_object: response.map(|response| self.body(response)),
            request_received_timestamp: stamp(self.received),
            stage_timestamp: stamp(now),
            annotations: &self.notes,
        };
        let line = serde_json::to_vec(&event).expect("texts and JSON can be written as JSON");
        self.audit.log.send(line);
    }

    /// A body as the policy wants it.
    fn body(&self, body: &Value) -> Value {
        let mut body = body.clone();
        if self.verdict.omit_managed_fields {
            drop_managed_fields(&mut body);
            for item in body.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
                drop_managed_fields(item);
            }
        }
        body
    }
}

fn drop_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}

/// RFC 3339 in UTC, to the microsecond.
fn stamp(at: OffsetDateTime) -> String {
    const FORM: &[FormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    at.to_offset(time::UtcOffset::UTC).format(&FORM).expect("a time has all of this")
}

/// As it is written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    kind: &'a str,
    api_version: &'a str,
    level: Level,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    stage: Stage,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: &'a str,
    user: Who<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<Who<'a>>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "<[_]>::is_empty")]
    source_ips: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<&'a Target>,
    #[serde(skip_serializing_if = "Value::is_null")]
    response_status: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_object: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_object: Option<Value>,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Who<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    groups: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: &'a BTreeMap<String, Vec<String>>,
}

impl<'a> From<&'a User> for Who<'a> {
    fn from(User { name, uid, groups, extra }: &'a User) -> Self {
        Self { username: name, uid, groups, extra }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;
    use crate::request::info;
    use crate::resources::find;

    /// What a policy of these rules keeps of what `run` does.
    fn kept(rules: &str, method: &str, path: &str, run: impl FnOnce(Trail)) -> Vec<Value> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("audit.log");
        let policy = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{rules}");
        let policy = Policy::parse("policy", &policy).expect("it is sound");
        let audit = Audit::new(policy, Log::open(&file, Keep::default()).expect("it can be made"));
        let user =
            User { name: "ann".to_owned(), groups: vec!["dev".to_owned()], ..User::default() };
        let info = info(method, path, &[]);
        let ips = ["10.0.0.7".to_owned()];
        let head = Head { id: "id-1", uri: path, source_ips: &ips, user_agent: "kubectl/v1.36.4" };
        let trail = audit.begin(&Action::of(&user, &info, path), head, BEGIN);
        if let Some(trail) = trail {
            run(trail);
        }
        drop(audit);
        let text = std::fs::read_to_string(&file).expect("it is there");
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }

    const BEGIN: OffsetDateTime = datetime!(2026-01-02 03:04:05.000006 UTC);
    const END: OffsetDateTime = datetime!(2026-01-02 04:04:06.5 +1);
    const PODS: &str = "/api/v1/namespaces/ns/pods";

    fn pod() -> Value {
        json!({"metadata": {"name": "x", "uid": "u", "managedFields": [{"manager": "m"}]}, "spec": {}})
    }

    #[test]
    fn what_is_kept_of_a_request_is_as_the_reference_writes_it() {
        let lines = kept("- level: Metadata\n", "POST", PODS, |mut trail| {
            trail.request(&pod());
            trail.note("authorization.k8s.io/decision", "allow");
            trail.impersonates(&User { name: "bob".to_owned(), ..User::default() });
            assert!(!trail.wants_response());
            trail.completed(Outcome::Code(201), Some(&json!({"kind": "Pod"})), END);
        });
        let common = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": "id-1",
            "requestURI": PODS, "verb": "create", "user": {"username": "ann", "groups": ["dev"]},
            "sourceIPs": ["10.0.0.7"], "userAgent": "kubectl/v1.36.4",
            "requestReceivedTimestamp": "2026-01-02T03:04:05.000006Z",
        });
        let mut received = common.clone();
        received["stage"] = json!("RequestReceived");
        received["objectRef"] = json!({"resource": "pods", "namespace": "ns", "apiVersion": "v1"});
        received["stageTimestamp"] = json!("2026-01-02T03:04:05.000006Z");
        let mut complete = common;
        complete["stage"] = json!("ResponseComplete");
        complete["objectRef"] = json!({"resource": "pods", "namespace": "ns", "name": "x", "uid": "u", "apiVersion": "v1"});
        complete["impersonatedUser"] = json!({"username": "bob"});
        complete["responseStatus"] = json!({"metadata": {}, "code": 201});
        complete["annotations"] = json!({"authorization.k8s.io/decision": "allow"});
        complete["stageTimestamp"] = json!("2026-01-02T03:04:06.500000Z");
        assert_eq!(lines, [received, complete]);
    }

    #[test]
    fn bodies_are_kept_as_far_as_the_policy_wants() {
        let full = "- level: RequestResponse\n  omitStages: [RequestReceived]\n  omitManagedFields: true\n";
        let list = json!({"items": [{"metadata": {"name": "x", "managedFields": []}}]});
        let lines = kept(full, "POST", PODS, |mut trail| {
            trail.request(&pod());
            trail.started(200, END);
            trail.completed(Outcome::Code(200), Some(&list), END);
        });
        assert_eq!(lines[0]["stage"], "ResponseStarted");
        assert_eq!(lines[0].get("responseObject"), None);
        assert_eq!(
            lines[1]["requestObject"],
            json!({"metadata": {"name": "x", "uid": "u"}, "spec": {}})
        );
        assert_eq!(lines[1]["responseObject"], json!({"items": [{"metadata": {"name": "x"}}]}));
        let some = "- level: Request\n  omitStages: [RequestReceived]\n";
        let lines = kept(some, "POST", PODS, |mut trail| {
            trail.request(&pod());
            trail.completed(Outcome::Code(200), Some(&list), END);
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(
            lines[0]["requestObject"]["metadata"]["managedFields"],
            json!([{"manager": "m"}])
        );
        assert_eq!(lines[0].get("responseObject"), None);
    }

    #[test]
    fn refusals_and_failures_are_kept_and_some_requests_are_not() {
        let rules = "- level: None\n  nonResourceURLs: [/healthz]\n- level: RequestResponse\n  omitStages: [RequestReceived]\n";
        let pods = find("", "v1", "pods").expect("pods");
        let status = Status::not_found(pods, "x");
        let lines = kept(rules, "GET", PODS, |trail| {
            trail.completed(Outcome::Refused(&status), None, END);
        });
        assert_eq!(
            lines[0]["responseStatus"],
            json!({
                "metadata": {}, "status": "Failure", "reason": "NotFound", "code": 404,
                "message": "pods \"x\" not found", "details": {"name": "x", "kind": "pods"},
            })
        );
        assert_eq!(lines[0]["responseObject"]["kind"], "Status");
        let lines = kept(rules, "GET", "/version", |trail| {
            trail.completed(Outcome::Code(500), None, END);
        });
        assert_eq!(lines[0]["responseStatus"], json!({"metadata": {}, "code": 500}));
        assert_eq!(lines[0].get("objectRef"), None);
        assert!(kept(rules, "GET", "/healthz", |_| unreachable!("nothing is kept")).is_empty());
    }

    #[test]
    fn who_cannot_be_told_is_kept_with_what_was_tried() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("audit.log");
        let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n";
        let policy = Policy::parse("policy", policy).expect("it is sound");
        let audit = Audit::new(policy, Log::open(&file, Keep::default()).expect("it can be made"));
        let (user, info) = (User::default(), info("GET", PODS, &[]));
        let head = Head { id: "id-1", uri: PODS, source_ips: &[], user_agent: "" };
        for attempted in [&["bearer", "x509"][..], &[]] {
            audit.unknown(&Action::of(&user, &info, PODS), head, attempted, END);
        }
        drop(audit);
        let text = std::fs::read_to_string(&file).expect("it is there");
        let lines = text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON"));
        let lines: Vec<Value> = lines.collect();
        let told: Vec<_> = lines.iter().map(|line| (&line["stage"], &line["user"])).collect();
        assert_eq!(told, [(&json!("ResponseStarted"), &json!({})); 2]);
        let statuses: Vec<_> = lines.iter().map(|line| &line["responseStatus"]).collect();
        let told = |message| json!({"metadata": {}, "message": message, "code": 401});
        assert_eq!(
            statuses,
            [
                &told("Authentication failed, attempted: bearer, x509"),
                &told("Authentication failed, no credentials provided"),
            ]
        );
    }
}
