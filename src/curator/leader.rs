//! Who leads: an election by leases of the store (spec §6.3).
//!
//! Every curator makes a lock, a key beneath [`names::LEADER`](crate::names::LEADER) under a lease of its own, and
//! keeps the lease alive. The lock that was made first leads; when it goes, the next one does. What the leader reads
//! and writes is compared with its lock ([`crate::state::State`]), so that whatever it believes, nothing is done by
//! two of them.
//!
//! And it does not believe for long: the store counts a lease's time from when it hears of it, the leader a shorter
//! time ([`HOLD`] of [`TTL`]) from *before* it asked. It has left the office before anybody else can have it, though
//! answers are late or lost, and though clocks differ by a tenth.
//!
//! ```text
//!           Places          Removed        Granted(lease)
//!   Fresh ─────────▶ Stale ─────────▶ Bare ───────────────▶ Candidate ── first of the locks, kept alive ──▶ leads
//!   what a run before left            ▲                      │ Renew, and Look whenever a lock comes or goes
//!   is removed                        └───── NoLease ────────┘
//! ```
//!
//! [`Election`] decides, with the time and the answers passed in; [`driver`] asks the store.

pub mod driver;

use std::time::Duration;

use bytes::Bytes;
use orlop_store::{LeaseId, Revision};

use crate::names::NodeId;
use crate::state::Lock;

/// How long the store keeps the lock of a curator that it does not hear of.
pub const TTL: Duration = Duration::from_secs(10);
/// How long a leader leads after it last asked for its lease, and was answered that it has it.
pub const HOLD: Duration = Duration::from_secs(8);
/// From one asking for the lease to the next.
const RENEW: Duration = Duration::from_secs(2);
/// How long an answer is waited for: two in a row may be this late, and the leader still knows in time.
const LIMIT: Duration = Duration::from_millis(2500);
/// After a request that failed, and as much again at most by chance.
const RETRY: Duration = Duration::from_millis(250);

/// Since the curator started, by a clock that nobody sets.
pub type Uptime = Duration;

/// A lock in the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Its key.
    pub key: Bytes,
    /// When it was made: the lowest leads.
    pub created: Revision,
    /// When it was last written.
    pub modified: Revision,
    /// Whose it is; none when that cannot be read.
    pub node: Option<NodeId>,
}

/// What is asked of the store, one thing at a time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// Which locks are there?
    Look,
    /// Remove these keys, as long as they are of these revisions.
    Remove(Vec<(Bytes, Revision)>),
    /// A lease of [`TTL`].
    Grant,
    /// Make the lock of this lease, if it is not there; then look.
    Claim(LeaseId),
    /// Keep this lease alive; then look.
    Renew(LeaseId),
    /// End this lease.
    Revoke(LeaseId),
}

/// What came of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// These locks are there, and what was asked before was done.
    Places(Vec<Place>),
    /// They are gone, or are others now.
    Removed,
    /// A lease.
    Granted(LeaseId),
    /// The lease has ended.
    NoLease,
    /// Nobody knows what was done.
    Failed,
}

/// What happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// Of the request that was made last.
    Answered(Answer),
    /// Some lock came or went.
    Changed,
    /// [`Election::wake_at`] is over.
    TimerFired,
    /// This curator shall leave, for good.
    Stopped,
}

/// What this curator is now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Office {
    /// It leads as long as it holds the lock; without one always, as the store is its own.
    Leads(Option<Lock>),
    /// It does not. Who does, as far as it knows.
    Follows(Option<NodeId>),
}

/// What to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Ask the store. The request before it is given up.
    Ask(Request),
    /// Be this from now on.
    Become(Office),
    /// All is done: the election is over for this curator.
    Leave,
}

/// One curator's part in the election. Owns no connection and reads no clock.
#[derive(Debug)]
pub struct Election {
    own: NodeId,
    stage: Stage,
    /// Who leads, as was last seen.
    leader: Option<NodeId>,
    office: Office,
    /// Some lock came or went since the last look was asked for.
    changed: bool,
    asked: Option<(Request, Uptime)>,
    /// Nothing is asked before.
    quiet_until: Uptime,
}

#[derive(Clone, Debug)]
enum Stage {
    /// Nobody has looked for what a run before this one left.
    Fresh,
    /// Locks of this node, which no longer holds them.
    Stale(Vec<(Bytes, Revision)>),
    /// Without a lease.
    Bare,
    /// With a lease, granted or kept alive when asked at `alive_from`.
    Candidate { lease: LeaseId, alive_from: Uptime, lock: Option<Lock>, first: bool },
    /// The lease is being ended.
    Leaving,
    /// Over.
    Gone,
}

impl Election {
    /// A part that begins now.
    #[must_use]
    pub fn new(own: NodeId, now: Uptime) -> Self {
        Self {
            own,
            stage: Stage::Fresh,
            leader: None,
            office: Office::Follows(None),
            changed: false,
            asked: None,
            quiet_until: now,
        }
    }

    /// What this curator is.
    #[must_use]
    pub fn office(&self) -> &Office {
        &self.office
    }

    /// When [`Event::TimerFired`] is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Uptime> {
        let asks = match &self.asked {
            Some((_, asked_at)) => Some(*asked_at + LIMIT),
            None => self.next().map(|(at, _)| at),
        };
        asks.into_iter().chain(self.leads_until()).min()
    }

    /// What follows; `chance` keeps curators from asking all at once.
    pub fn handle(&mut self, now: Uptime, chance: u64, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Answered(answer) => {
                if let Some((request, asked_at)) = self.asked.take() {
                    self.on_answer(now, chance, &request, asked_at, answer);
                }
            }
            Event::Changed => self.changed = true,
            Event::TimerFired => {
                if let Some((request, asked_at)) = self.asked.take_if(|(_, at)| *at + LIMIT <= now)
                {
                    self.on_answer(now, chance, &request, asked_at, Answer::Failed);
                }
            }
            Event::Stopped => {
                let stage = std::mem::replace(&mut self.stage, Stage::Gone);
                self.asked = None;
                if let Stage::Candidate { lease, .. } = stage {
                    self.stage = Stage::Leaving;
                    self.asked = Some((Request::Revoke(lease), now));
                }
            }
        }
        let office = self.office_at(now);
        if office != self.office {
            self.office = office.clone();
            actions.push(Action::Become(office));
        }
        match (&self.stage, &self.asked) {
            (Stage::Gone, _) => actions.push(Action::Leave),
            // The office is left before the lease.
            (Stage::Leaving, Some((request, at))) if *at == now => {
                actions.push(Action::Ask(request.clone()));
            }
            (_, None) => {
                if let Some((_, request)) = self.next().filter(|(at, _)| *at <= now) {
                    self.changed = false;
                    self.asked = Some((request.clone(), now));
                    actions.push(Action::Ask(request));
                }
            }
            _ => {}
        }
        actions
    }

    /// What is to be asked next, and when.
    fn next(&self) -> Option<(Uptime, Request)> {
        let quiet = self.quiet_until;
        match &self.stage {
            Stage::Fresh => Some((quiet, Request::Look)),
            Stage::Stale(keys) => Some((quiet, Request::Remove(keys.clone()))),
            Stage::Bare => Some((quiet, Request::Grant)),
            Stage::Candidate { lease, lock: None, .. } => Some((quiet, Request::Claim(*lease))),
            Stage::Candidate { lease, alive_from, .. } => {
                let renew_at = *alive_from + RENEW;
                if self.changed && quiet < renew_at {
                    Some((quiet, Request::Look))
                } else {
                    Some((quiet.max(renew_at), Request::Renew(*lease)))
                }
            }
            Stage::Leaving | Stage::Gone => None,
        }
    }

    fn on_answer(
        &mut self,
        now: Uptime,
        chance: u64,
        request: &Request,
        asked_at: Uptime,
        answer: Answer,
    ) {
        match (request, answer) {
            (Request::Revoke(_), _) => self.stage = Stage::Gone,
            (Request::Look, Answer::Places(places)) if matches!(self.stage, Stage::Fresh) => {
                let stale: Vec<_> = places
                    .iter()
                    .filter(|place| place.node.as_ref() == Some(&self.own))
                    .map(|place| (place.key.clone(), place.modified))
                    .collect();
                self.see(&places);
                self.stage = if stale.is_empty() { Stage::Bare } else { Stage::Stale(stale) };
            }
            (Request::Remove(_), Answer::Removed) => self.stage = Stage::Bare,
            (Request::Grant, Answer::Granted(lease)) => {
                self.stage =
                    Stage::Candidate { lease, alive_from: asked_at, lock: None, first: false };
            }
            (Request::Renew(_), Answer::Places(places)) => {
                if let Stage::Candidate { alive_from, .. } = &mut self.stage {
                    *alive_from = asked_at;
                }
                self.see(&places);
            }
            (Request::Look | Request::Claim(_), Answer::Places(places)) => self.see(&places),
            (_, Answer::NoLease) => self.stage = Stage::Bare,
            // It failed, or what came is no answer to it.
            _ => {
                self.quiet_until =
                    now + RETRY + RETRY * u32::try_from(chance % 100).unwrap_or(0) / 100;
                // A look that is lost must be made again.
                self.changed = true;
            }
        }
    }

    /// Notes whose the locks are.
    fn see(&mut self, places: &[Place]) {
        let lowest = places.iter().min_by_key(|place| place.created);
        let mut leads = false;
        if let Stage::Candidate { lease, lock, first, .. } = &mut self.stage {
            let key = key(*lease);
            let own = places.iter().find(|place| place.key == key);
            *lock = own.map(|own| Lock { key: own.key.clone(), created: own.created });
            leads = own.is_some() && lowest == own;
            *first = leads;
        }
        // A lock that a run before this one left leads to nobody.
        self.leader =
            lowest.and_then(|lowest| lowest.node.clone()).filter(|node| leads || *node != self.own);
    }

    fn leads_until(&self) -> Option<Uptime> {
        match (&self.office, &self.stage) {
            (Office::Leads(_), Stage::Candidate { alive_from, .. }) => Some(*alive_from + HOLD),
            _ => None,
        }
    }

    fn office_at(&self, now: Uptime) -> Office {
        match &self.stage {
            Stage::Candidate { alive_from, lock: Some(lock), first: true, .. }
                if now < *alive_from + HOLD =>
            {
                Office::Leads(Some(lock.clone()))
            }
            // Nobody this curator knows of: it was itself.
            _ => Office::Follows(self.leader.clone().filter(|leader| *leader != self.own)),
        }
    }
}

/// Where the lock of a lease is.
#[must_use]
pub fn key(lease: LeaseId) -> Bytes {
    crate::names::CURATOR.key(&format!("{}{:x}", crate::names::LEADER, lease.0)).into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
