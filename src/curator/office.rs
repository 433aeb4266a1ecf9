//! Everything a leader has while it leads; all services of a leader stand on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use orlop_store::Revision;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::warn;

use crate::certificates::Certificates;
use crate::consensus::Consensus;
use crate::enrol;
use crate::health::Heartbeats;
use crate::known::Known;
use crate::limits::{ESCROWS, Limits};
use crate::names::NodeId;
use crate::roster::Roster;
use crate::state::{Changes, Failure, State};

/// How often it is looked who has waited too long for approval.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// A leader's; shared by all its services.
#[derive(Debug)]
pub struct Office {
    /// Who leads.
    pub own: NodeId,
    /// The cluster's state.
    pub state: State,
    /// The cluster's authority.
    pub certificates: Certificates,
    /// Who keeps the cluster's state.
    pub consensus: Consensus,
    /// What is known without asking the store.
    pub known: Known,
    /// All nodes.
    pub roster: Roster,
    /// When each was heard last.
    pub heartbeats: Heartbeats,
    /// Held while something is read, changed and written.
    pub locks: Locks,
    /// Since when it leads.
    pub began: Instant,
    /// A permit for each Escrow under way.
    pub escrows: Arc<Semaphore>,
    /// Held for a moment.
    limits: Mutex<Limits>,
}

/// Changes of one kind are made one after the other (spec §6.3). They are never held while somebody who calls is waited
/// for.
#[derive(Debug, Default)]
pub struct Locks {
    /// Nodes.
    pub node: tokio::sync::Mutex<()>,
    /// What the cluster is like.
    pub configuration: tokio::sync::Mutex<()>,
    /// The ticket.
    pub ticket: tokio::sync::Mutex<()>,
    /// Which node has which key in the cluster's network.
    pub networking: tokio::sync::Mutex<()>,
}

impl Office {
    /// Takes office. Somebody must [`Office::follow`] the store then.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn open(
        own: NodeId,
        state: State,
        certificates: Certificates,
        consensus: Consensus,
    ) -> Result<Self, Failure> {
        let known = Known::open(state.store(), certificates.authority()).await?;
        let roster = Roster::open(state.store()).await?;
        let now = Instant::now();
        Ok(Self {
            own,
            state,
            certificates,
            consensus,
            known,
            roster,
            heartbeats: Heartbeats::new(now),
            locks: Locks::default(),
            began: now,
            escrows: Arc::new(Semaphore::new(ESCROWS)),
            limits: Mutex::default(),
        })
    }

    /// Keeps what is known current, and forgets nodes that nobody approves, for as long as it is polled.
    pub async fn follow(&self) {
        let expiring = async {
            loop {
                if let Err(error) = enrol::expire(self, SystemTime::now()).await {
                    warn!(error = %orlop_rt::Chain(&error), "nodes that wait for approval are not looked at");
                }
                sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            never = self.known.follow(self.state.store()) => match never {},
            never = self.roster.follow(self.state.store()) => match never {},
            () = expiring => {}
        }
    }

    /// As [`State::change`], and waits until what every call is judged by has it, too.
    ///
    /// # Errors
    /// As [`State::change`].
    pub async fn change(&self, changes: Changes) -> Result<Option<Revision>, Failure> {
        let changed = self.state.change(changes).await?;
        if let Some(revision) = changed {
            self.known.reached(revision).await;
        }
        Ok(changed)
    }

    /// Who has asked how often.
    pub fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
