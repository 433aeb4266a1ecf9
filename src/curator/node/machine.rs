//! How a machine becomes a node of its cluster, and stops being one; pure (spec §3.1, §3.2, §3.4).
//!
//! ```text
//!            keys          registered      approved, committed     kept
//!  UNKNOWN ────────> UNKNOWN ────────> FOREIGN ────────> TRUSTED ────────> HOME ──> DISOWNING
//!  (founding goes from the keys to TRUSTED by itself)                       │            │
//!            a boot later: straight to HOME, and the cluster is asked <─────┘            └─ for good
//! ```
//!
//! One thing is done at a time: an [`Event`] is answered with the [`Action`] that comes next. What a step has come to is
//! on the disk before the next one begins, and each step may be done again: a machine that is cut off anywhere goes on
//! from its [`Progress`] with the same keys.

use std::time::{Duration, Instant};

use orlop_proto::metropolis::proto::common::ClusterState;
use orlop_proto::metropolis::proto::common::cluster_configuration::StorageSecurityPolicy;
use orlop_rt::Backoff;

/// Between tries that fail, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Between questions whether somebody has approved the node, up to the second: that person is waiting.
const ASK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// How far an earlier run came: what is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing.
    Nothing,
    /// The keys.
    Keys,
    /// And the certificate.
    Certified,
    /// All of it.
    Home,
    /// The cluster does not want it any more.
    Removed,
}

/// What the machine was told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Be the first node.
    Found,
    /// Ask to be taken in.
    Join,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The process begins.
    Started(Progress),
    /// What was to be kept is on the disk.
    Kept,
    /// A call, or the founding, has ended.
    Answered(Answer),
    /// [`Action::WakeAt`] has come.
    Due,
    /// The cluster says that the node is not one of it, or not for long.
    Dismissed(Dismissal),
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `RegisterNode`: noted, and this is asked of its storage.
    Registered(StorageSecurityPolicy),
    /// `RegisterNode`: it was noted before, and somebody has approved it since.
    Approved,
    /// `CommitNode`, or the founding: it is one of the cluster; the certificate is to be kept.
    Certified,
    /// `CommitNode`: nobody has approved it yet.
    NotYet,
    /// `CommitNode`: nobody knows it.
    Unknown,
    /// `JoinNode`: it still is.
    Welcome,
    /// `JoinNode`: it is not.
    Dismissed(Dismissal),
    /// It did not come to that, and why.
    Failed(String),
}

/// How a node leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dismissal {
    /// Its entry is gone.
    Deleted,
    /// It is to be switched off.
    Decommissioned,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the keys and keep them.
    KeepKeys,
    /// Found the cluster in a store of one's own.
    Found,
    /// `RegisterNode`.
    Register,
    /// `CommitNode`.
    Commit,
    /// Keep the certificate that came.
    KeepCertificate,
    /// Keep what the next boot needs, last of all that which says that it is complete.
    Seal,
    /// `JoinNode`, for a moment: whether the node is still wanted.
    Join,
    /// Heartbeats, roles, services.
    Live,
    /// Stop all that, and destroy what says that this machine is a node.
    Disown(Dismissal),
    /// Nothing until then.
    WakeAt(Instant),
    /// Nothing any more.
    Rest,
}

/// What goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    MakingKeys,
    Founding,
    Registering,
    Committing,
    KeepingCertificate,
    Sealing,
    Joining,
    Home,
    Disowning,
    Gone,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    task: Option<Task>,
    state: State,
    retry: Backoff,
    ask: Backoff,
    /// What a person must know.
    word: String,
    registered: bool,
}

impl Machine {
    /// Of a machine with this task; none: it must have been one of the cluster before.
    #[must_use]
    pub fn new(task: Option<Task>) -> Self {
        Self {
            task,
            state: State::New,
            retry: Backoff::new(RETRY.0, RETRY.1),
            ask: Backoff::new(ASK.0, ASK.1),
            word: String::new(),
            registered: false,
        }
    }

    /// Where the node stands with its cluster.
    #[must_use]
    pub fn standing(&self) -> ClusterState {
        match self.state {
            State::New | State::MakingKeys | State::Founding => ClusterState::Unknown,
            State::Registering | State::Committing if self.registered => ClusterState::Foreign,
            State::Registering | State::Committing => ClusterState::Unknown,
            State::KeepingCertificate | State::Sealing => ClusterState::Trusted,
            State::Joining | State::Home => ClusterState::Home,
            State::Disowning | State::Gone => ClusterState::Disowning,
        }
    }

    /// What it waits for, or why it does not go on; empty: nothing.
    #[must_use]
    pub fn word(&self) -> &str {
        &self.word
    }

    /// What to do now that this has happened.
    pub fn handle(&mut self, now: Instant, random: u32, event: Event) -> Action {
        match (self.state, event) {
            (State::New, Event::Started(progress)) => self.begin(progress),
            (State::MakingKeys, Event::Kept) => self.set_out(),
            (State::KeepingCertificate, Event::Kept) => self.go(State::Sealing, Action::Seal),
            (State::Sealing, Event::Kept) => self.go(State::Home, Action::Live),
            (State::Disowning, Event::Kept) => {
                self.state = State::Gone;
                Action::Rest
            }
            (_, Event::Answered(answer)) => self.answered(now, random, answer),
            (State::Joining | State::Home, Event::Dismissed(how)) => self.dismissed(how),
            (_, Event::Due) => self.try_again(),
            // Late news of a state that is over.
            (_, Event::Started(_) | Event::Kept | Event::Dismissed(_)) => Action::Rest,
        }
    }

    fn begin(&mut self, progress: Progress) -> Action {
        match (progress, self.task) {
            (Progress::Removed, _) => {
                self.state = State::Gone;
                "the cluster has removed this node; wipe its STATE volume to let it register anew"
                    .clone_into(&mut self.word);
                Action::Rest
            }
            // Whoever founded it would ask itself, before it answers.
            (Progress::Home, Some(Task::Found)) => self.go(State::Home, Action::Live),
            (Progress::Home, _) => self.go(State::Joining, Action::Join),
            (Progress::Certified, _) => self.go(State::Sealing, Action::Seal),
            (Progress::Keys, Some(_)) => self.set_out(),
            (Progress::Nothing, Some(_)) => self.go(State::MakingKeys, Action::KeepKeys),
            (Progress::Nothing | Progress::Keys, None) => {
                self.state = State::Gone;
                "there are no node parameters, and this machine is no node yet; see docs/cluster.md"
                    .clone_into(&mut self.word);
                Action::Rest
            }
        }
    }

    fn set_out(&mut self) -> Action {
        match self.task {
            Some(Task::Found) => self.go(State::Founding, Action::Found),
            _ => self.go(State::Registering, Action::Register),
        }
    }

    fn answered(&mut self, now: Instant, random: u32, answer: Answer) -> Action {
        match (self.state, answer) {
            (State::Registering, Answer::Registered(policy)) => {
                self.registered = true;
                if let Err(why) = check_policy(policy) {
                    return self.failed(now, random, why);
                }
                self.go(State::Committing, Action::Commit)
            }
            (State::Registering, Answer::Approved) => {
                self.registered = true;
                self.go(State::Committing, Action::Commit)
            }
            (State::Committing, Answer::NotYet) => {
                "waits until somebody approves it: orlopctl cluster node approve"
                    .clone_into(&mut self.word);
                self.retry.reset();
                Action::WakeAt(now + self.ask.next(random))
            }
            (State::Committing, Answer::Unknown) => {
                self.registered = false;
                self.state = State::Registering;
                let why = "the cluster does not know this node any more; it registers again";
                self.failed(now, random, why.to_owned())
            }
            (State::Committing | State::Founding, Answer::Certified) => {
                self.go(State::KeepingCertificate, Action::KeepCertificate)
            }
            (State::Joining, Answer::Dismissed(how)) => self.dismissed(how),
            // It was asked for the best; who does not answer says nothing.
            (State::Joining, _) => self.go(State::Home, Action::Live),
            (State::Registering | State::Committing | State::Founding, Answer::Failed(why)) => {
                self.failed(now, random, why)
            }
            (state, answer) => {
                let why = format!("an answer that fits nothing ({answer:?} in {state:?})");
                self.failed(now, random, why)
            }
        }
    }

    fn failed(&mut self, now: Instant, random: u32, why: String) -> Action {
        self.word = why;
        Action::WakeAt(now + self.retry.next(random))
    }

    fn try_again(&mut self) -> Action {
        match self.state {
            State::Founding => Action::Found,
            State::Registering => Action::Register,
            State::Committing => Action::Commit,
            _ => Action::Rest,
        }
    }

    fn dismissed(&mut self, how: Dismissal) -> Action {
        match how {
            Dismissal::Deleted => "the cluster has deleted this node",
            Dismissal::Decommissioned => "the cluster has decommissioned this node",
        }
        .clone_into(&mut self.word);
        self.state = State::Disowning;
        Action::Disown(how)
    }

    fn go(&mut self, state: State, action: Action) -> Action {
        self.state = state;
        self.word.clear();
        self.retry.reset();
        self.ask.reset();
        action
    }
}

/// Whether a cluster with this policy takes a node whose volumes are not encrypted, which this release's are not.
///
/// # Errors
/// What to do about it, in words.
pub fn check_policy(policy: StorageSecurityPolicy) -> Result<(), String> {
    use StorageSecurityPolicy::{
        Invalid, NeedsEncryption, NeedsEncryptionAndAuthentication, NeedsInsecure, Permissive,
    };
    match policy {
        Permissive | NeedsInsecure => Ok(()),
        Invalid | NeedsEncryption | NeedsEncryptionAndAuthentication => Err(
            "the cluster asks for encrypted storage, which this release does not make; found it with \
             --bootstrap-storage-security permissive (or needs-insecure)"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
