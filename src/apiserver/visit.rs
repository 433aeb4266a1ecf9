//! A request from its beginning to its end, as far as it is counted, kept and held up: [`crate::metrics`],
//! [`crate::audit`] and [`crate::flow`] in one hand.
//!
//! Whoever answers a request tells its [`Visit`] what becomes known, in this order: [`Visit::known`],
//! [`Visit::acts_as`], [`Visit::enter`], [`Visit::decided`], [`Visit::read`], and [`Visit::finish`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use orlop_config::Problems;
use serde_json::Value;
use time::OffsetDateTime;

use crate::audit::{Audit, Head, Keep, Log, Outcome, Policy, Trail};
use crate::authz::Action;
use crate::flow::{self, Flow, Place};
use crate::metrics::{LongRunning, Metrics, Now, Request};
use crate::object::User;
use crate::request::Info;
use crate::status::Status;

/// How much is done at a time, and what is kept.
#[derive(Args, Clone, Debug)]
#[group(id = "visits")]
pub struct Options {
    /// Requests that read at a time; 0 is any number
    #[arg(long, value_name = "NUMBER", default_value_t = flow::READING)]
    pub max_requests_inflight: usize,
    /// Requests that write at a time; 0 is any number
    #[arg(long, value_name = "NUMBER", default_value_t = flow::MUTATING)]
    pub max_mutating_requests_inflight: usize,
    /// What is kept of requests: a Policy of audit.k8s.io/v1, in YAML
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where it is kept, a line of JSON each; - is standard output
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    pub audit_log_path: Option<PathBuf>,
    /// Length of that file at which it is put aside and begun anew; 0 is any length
    #[arg(long, value_name = "MIB", default_value_t = AUDIT_MIB, requires = "audit_log_path")]
    pub audit_log_maxsize: u64,
    /// Files put aside that are kept; 0 is any number
    #[arg(long, value_name = "NUMBER", default_value_t = 0, requires = "audit_log_path")]
    pub audit_log_maxbackup: usize,
    /// How long they are kept; 0 is for ever
    #[arg(long, value_name = "DAYS", default_value_t = 0, requires = "audit_log_path")]
    pub audit_log_maxage: u32,
}

/// As the reference has it.
const AUDIT_MIB: u64 = 100;

impl Default for Options {
    fn default() -> Self {
        Self {
            max_requests_inflight: flow::READING,
            max_mutating_requests_inflight: flow::MUTATING,
            audit_policy_file: None,
            audit_log_path: None,
            audit_log_maxsize: AUDIT_MIB,
            audit_log_maxbackup: 0,
            audit_log_maxage: 0,
        }
    }
}

impl Options {
    /// How the log is kept.
    fn keep(&self) -> Keep {
        let age = u64::from(self.audit_log_maxage) * 86_400;
        Keep {
            bytes: self.audit_log_maxsize.saturating_mul(1 << 20),
            files: self.audit_log_maxbackup,
            age: (age > 0).then(|| Duration::from_secs(age)),
        }
    }
}

/// Why nothing can be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy is not there.
    #[error("read the audit policy {}", path.display())]
    Policy {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not sound.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] io::Error),
}

/// All requests.
#[derive(Debug)]
pub struct Visits {
    /// Others count in it, too.
    pub metrics: Arc<Metrics>,
    flow: Flow,
    audit: Option<Arc<Audit>>,
}

/// One of them. Dropped before [`Visit::finish`], it was broken off, and leaves its place.
#[derive(Debug)]
pub struct Visit {
    metrics: Arc<Metrics>,
    audit: Option<Arc<Audit>>,
    request: Request,
    began: Instant,
    trail: Option<Trail>,
    _running: Option<LongRunning>,
    place: Option<Place>,
}

impl Visits {
    /// With these limits, keeping what the policy wants.
    ///
    /// # Errors
    /// The policy cannot be read, or the log not written.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let audit = match (&options.audit_policy_file, &options.audit_log_path) {
            (Some(path), Some(log)) => {
                let read = std::fs::read_to_string(path);
                let text = read.map_err(|source| Error::Policy { path: path.clone(), source })?;
                let policy = Policy::parse(&path.display().to_string(), &text)?;
                Some(Audit::new(policy, Log::open(log, options.keep())?))
            }
            _ => None,
        };
        let flow = Flow::new(options.max_requests_inflight, options.max_mutating_requests_inflight);
        Ok(Self { metrics: Arc::default(), flow, audit })
    }

    /// A request arrives. `apply`: its body is an apply configuration.
    #[must_use]
    pub fn begin(&self, info: &Info<'_>, apply: bool, dry_run: bool) -> Visit {
        let request = Request::of(info, apply, dry_run);
        Visit {
            metrics: Arc::clone(&self.metrics),
            audit: self.audit.clone(),
            request,
            began: Instant::now(),
            trail: None,
            _running: flow::long_running(info).then(|| self.metrics.long_running(&request)),
            place: None,
        }
    }

    /// What is to be had at `/metrics`: the type of the text and the text. `now` has what the store and the build say;
    /// the rest is filled in.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn expose(&self, plain: bool, mut now: Now) -> io::Result<(&'static str, String)> {
        now.in_flight = self.flow.inside();
        now.audit = self.audit.as_ref().map(|audit| audit.counts()).unwrap_or_default();
        self.metrics.expose(plain, &now)
    }
}

impl Visit {
    /// Who asks is known; the user is who it really is. From here on it is kept.
    pub fn known(&mut self, action: &Action<'_>, head: Head<'_>, now: OffsetDateTime) {
        self.metrics.authentications.add(["success"]);
        self.metrics.known(&action.user.name);
        self.trail = self.audit.as_ref().and_then(|audit| audit.begin(action, head, now));
    }

    /// Who asks cannot be told, in these ways; the action's user is empty.
    pub fn unknown(
        &mut self,
        action: &Action<'_>,
        head: Head<'_>,
        attempted: &[&str],
        now: OffsetDateTime,
    ) {
        self.metrics.authentications.add(["failure"]);
        if let Some(audit) = &self.audit {
            audit.unknown(action, head, attempted, now);
        }
    }

    /// It is done in another's name.
    pub fn acts_as(&mut self, user: &User) {
        if let Some(trail) = &mut self.trail {
            trail.impersonates(user);
        }
    }

    /// It takes its place.
    ///
    /// # Errors
    /// 429 when there is none.
    pub fn enter(&mut self, all: &Visits, user: &User, info: &Info<'_>) -> Result<(), Status> {
        match all.flow.enter(user, info) {
            Ok(place) => self.place = place,
            Err(status) => {
                self.metrics.terminated(&self.request, status.code);
                return Err(status);
            }
        }
        Ok(())
    }

    /// Whether it may be done, and why.
    pub fn decided(&mut self, decision: &Result<Arc<str>, Status>) {
        let result = if decision.is_ok() { "allowed" } else { "no-opinion" };
        self.metrics.authorizations.add([result]);
        let Some(trail) = &mut self.trail else { return };
        let (word, reason) = match decision {
            Ok(reason) => ("allow", &**reason),
            Err(status) => ("forbid", status.message.as_str()),
        };
        trail.note("authorization.k8s.io/decision", word);
        trail.note("authorization.k8s.io/reason", reason);
    }

    /// Must its body be given to [`Self::read`]?
    #[must_use]
    pub fn wants_request(&self) -> bool {
        self.trail.as_ref().is_some_and(Trail::wants_request)
    }

    /// Its body, read.
    pub fn read(&mut self, body: &Value) {
        if let Some(trail) = &mut self.trail {
            trail.request(body);
        }
    }

    /// Must the answer's body be given to [`Self::finish`]?
    #[must_use]
    pub fn wants_response(&self) -> bool {
        self.trail.as_ref().is_some_and(Trail::wants_response)
    }

    /// The answer's head is sent, and its body will take long.
    pub fn started(&self, code: u16, now: OffsetDateTime) {
        if let Some(trail) = &self.trail {
            trail.started(code, now);
        }
    }

    /// It is answered, with so many bytes.
    pub fn finish(
        self,
        outcome: Outcome<'_>,
        bytes: u64,
        response: Option<&Value>,
        now: OffsetDateTime,
    ) {
        let code = match outcome {
            Outcome::Code(code) => code,
            Outcome::Refused(status) => status.code,
            Outcome::Unknown(_) => 401,
        };
        self.metrics.answered(&self.request, code, self.began.elapsed(), WEBHOOKS, bytes);
        if let Some(trail) = self.trail {
            trail.completed(outcome, response, now);
        }
    }
}

/// No webhooks are called yet, so nothing waits for them.
const WEBHOOKS: Duration = Duration::ZERO;

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::request::info;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

    fn lines(visits: &Visits, start: &str) -> Vec<String> {
        let (_, text) = visits.expose(true, Now::default()).expect("/proc is there");
        text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
    }

    #[test]
    fn a_request_is_counted_kept_and_held_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let (policy, log) = (folder.path().join("policy.yaml"), folder.path().join("audit.log"));
        let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata, omitStages: [RequestReceived]}]\n";
        std::fs::write(&policy, text).expect("written");
        let options = Options {
            max_requests_inflight: 1,
            audit_policy_file: Some(policy),
            audit_log_path: Some(log.clone()),
            ..Options::default()
        };
        let visits = Visits::open(&options).expect("it is sound");
        let ann = User { name: "ann".to_owned(), ..User::default() };
        let path = "/api/v1/namespaces/ns/pods/x";
        let get = info("GET", path, &[]);
        let head = Head { id: "i", uri: path, source_ips: &[], user_agent: "" };
        let visit = || {
            let mut visit = visits.begin(&get, false, false);
            visit.known(&Action::of(&ann, &get, path), head, NOW);
            visit
        };
        let mut first = visit();
        first.enter(&visits, &ann, &get).expect("there is a place");
        let inside = "apiserver_current_inflight_requests{request_kind=\"readOnly\"}";
        assert_eq!(lines(&visits, inside), [format!("{inside} 1")]);
        let mut second = visit();
        let refused = second.enter(&visits, &ann, &get).expect_err("there is none");
        second.finish(Outcome::Refused(&refused), 0, None, NOW);
        first.decided(&Ok("because".into()));
        first.acts_as(&User { name: "bob".to_owned(), ..User::default() });
        assert!(!first.wants_request() && !first.wants_response());
        first.finish(Outcome::Code(200), 17, None, NOW);
        assert_eq!(lines(&visits, inside), [format!("{inside} 0")]);
        let mut third = visit();
        third.enter(&visits, &ann, &get).expect("there is a place again");
        drop(third);
        assert_eq!(lines(&visits, inside), [format!("{inside} 0")], "it was broken off");
        let ended = |code: u16| {
            let all = lines(&visits, "apiserver_request_total");
            all.iter()
                .any(|line| line.contains(&format!("code=\"{code}\"")) && line.ends_with(" 1"))
        };
        assert!(ended(200) && ended(429));
        assert_eq!(lines(&visits, "apiserver_request_terminations_total").len(), 1);
        assert_eq!(
            lines(&visits, "authorization_attempts_total"),
            ["authorization_attempts_total{result=\"allowed\"} 1"]
        );
        drop(visits);
        let kept = std::fs::read_to_string(log).expect("it is there");
        let kept: Vec<Value> =
            kept.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[0]["responseStatus"]["code"], 429);
        assert_eq!(kept[1]["annotations"]["authorization.k8s.io/reason"], "because");
        assert_eq!(kept[1]["impersonatedUser"]["username"], "bob");
    }

    #[test]
    fn what_cannot_be_kept_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let policy = folder.path().join("policy.yaml");
        let options = Options {
            audit_policy_file: Some(policy.clone()),
            audit_log_path: Some("-".into()),
            ..Options::default()
        };
        let told = |options| Visits::open(options).expect_err("it is not sound").to_string();
        assert_eq!(told(&options), format!("read the audit policy {}", policy.display()));
        std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: []\n")
            .expect("written");
        assert!(told(&options).contains("must have a rule"));
    }
}
