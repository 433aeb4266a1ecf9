//! When each node was heard of last, and what follows for its health (spec §4.2).
//!
//! In the leader's memory alone: who takes the office over has heard of nobody yet, and says of nobody that he is lost
//! before a node has had the time to be heard.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orlop_proto::metropolis::proto::api::node::Health;
use orlop_proto::metropolis::proto::common::NodeState;

use crate::names::NodeId;

/// How often our nodes are heard.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// How long a node that is up may be silent.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// The time since a heartbeat there was none of: the most nanoseconds that a signed number of 64 bits counts, so that
/// `node.time_since_heartbeat < duration('6s')` is false.
pub const NEVER: Duration = Duration::from_nanos(i64::MAX as u64);

/// The heartbeats of all nodes since this curator leads.
#[derive(Debug)]
pub struct Heartbeats {
    in_office_since: Instant,
    last: Mutex<HashMap<NodeId, Instant>>,
}

/// How a node is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Report {
    /// As operators are told.
    pub health: Health,
    /// [`NEVER`] unless it was heard.
    pub since_heartbeat: Duration,
}

impl Heartbeats {
    /// Of who leads from `now` on.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { in_office_since: now, last: Mutex::default() }
    }

    /// A node was heard.
    pub fn beat(&self, id: &NodeId, now: Instant) {
        let mut last = self.last();
        match last.get_mut(id) {
            // Two connections of one node may come here in either order.
            Some(at) => *at = now.max(*at),
            None => drop(last.insert(id.clone(), now)),
        }
    }

    /// A node is gone; one of the same name begins anew.
    pub fn forget(&self, id: &NodeId) {
        self.last().remove(id);
    }

    /// When it was heard last.
    #[must_use]
    pub fn last_of(&self, id: &NodeId) -> Option<Instant> {
        self.last().get(id).copied()
    }

    /// How a node in this state is, that was heard last at `last`.
    #[must_use]
    pub fn report(&self, state: NodeState, last: Option<Instant>, now: Instant) -> Report {
        let since = last.map(|at| now.saturating_duration_since(at));
        let in_office = now.saturating_duration_since(self.in_office_since);
        let health = match (state, since) {
            (NodeState::Up, Some(since)) if since <= TIMEOUT => Health::Healthy,
            (NodeState::Up, None) if in_office < TIMEOUT => Health::Unknown,
            (NodeState::Up, _) => Health::HeartbeatTimeout,
            (
                NodeState::Invalid
                | NodeState::New
                | NodeState::Standby
                | NodeState::Decommissioned,
                _,
            ) => Health::Unknown,
        };
        Report { health, since_heartbeat: since.unwrap_or(NEVER) }
    }

    fn last(&self) -> MutexGuard<'_, HashMap<NodeId, Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> NodeId {
        NodeId::of_key(&[7; 32])
    }

    #[test]
    fn health_follows_from_state_office_and_heartbeat() {
        let start = Instant::now();
        let secs = Duration::from_secs;
        let beats = Heartbeats::new(start);
        let health = |state, last: Option<u64>, now: u64| {
            beats.report(state, last.map(|at| start + secs(at)), start + secs(now)).health
        };
        for state in
            [NodeState::Invalid, NodeState::New, NodeState::Standby, NodeState::Decommissioned]
        {
            assert_eq!(health(state, None, 0), Health::Unknown);
            assert_eq!(health(state, Some(60), 60), Health::Unknown);
            assert_eq!(health(state, None, 60), Health::Unknown);
        }
        let up = NodeState::Up;
        assert_eq!(health(up, None, 9), Health::Unknown);
        assert_eq!(health(up, None, 10), Health::HeartbeatTimeout);
        assert_eq!(health(up, Some(20), 20), Health::Healthy);
        assert_eq!(health(up, Some(20), 30), Health::Healthy);
        assert_eq!(health(up, Some(20), 31), Health::HeartbeatTimeout);
        // Heard after the call's `now` was taken.
        assert_eq!(health(up, Some(21), 20), Health::Healthy);
    }

    #[test]
    fn the_newest_heartbeat_counts_until_the_node_is_gone() {
        let start = Instant::now();
        let beats = Heartbeats::new(start);
        assert_eq!(beats.report(NodeState::Up, None, start).since_heartbeat, NEVER);
        assert_eq!(NEVER, Duration::new(9_223_372_036, 854_775_807));
        assert_eq!(beats.last_of(&id()), None);
        beats.beat(&id(), start + INTERVAL);
        beats.beat(&id(), start);
        let last = beats.last_of(&id());
        assert_eq!(last, Some(start + INTERVAL));
        let report = beats.report(NodeState::Up, last, start + INTERVAL + INTERVAL);
        assert_eq!(report, Report { health: Health::Healthy, since_heartbeat: INTERVAL });
        beats.forget(&id());
        assert_eq!(beats.last_of(&id()), None);
    }
}
