//! Which server is asked first, and how long one is waited for: what each did before decides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::machine::Uptime;

/// A server that looks names up for us.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The name that its certificate must have; `None`: it is asked in clear text.
    pub tls: Option<Arc<str>>,
}

impl Server {
    /// One that is asked in clear text.
    #[must_use]
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }
}

/// The servers, best first, with what is known of each.
#[derive(Debug, Default)]
pub struct Upstreams(Vec<(Server, Health)>);

#[derive(Clone, Debug, Default)]
struct Health {
    /// Without an answer in between.
    failures: u32,
    /// Until then others are asked first.
    rests_until: Uptime,
    /// Smoothed time to an answer, as RFC 6298 §2 has it.
    round_trip: Option<Duration>,
}

/// More are not remembered, whoever names how many.
const MOST: usize = 8;
/// How long an unknown server is waited for before the next one is asked as well.
const PATIENCE: Duration = Duration::from_millis(800);
const LEAST_PATIENCE: Duration = Duration::from_millis(200);
const MOST_PATIENCE: Duration = Duration::from_secs(2);
/// A connection, TLS and a question each take a round trip.
const TLS_PATIENCE: Duration = Duration::from_secs(3);
/// How long one rests that failed twice; doubled each time.
const FIRST_REST: Duration = Duration::from_secs(4);
const LONGEST_REST: Duration = Duration::from_secs(120);

impl Upstreams {
    /// Takes these in place of those before; one that stays keeps what is known of it. Says whether
    /// anything changed.
    pub fn set(&mut self, servers: &[Server]) -> bool {
        let wanted = || servers.iter().take(MOST);
        if wanted().eq(self.0.iter().map(|(server, _)| server)) {
            return false;
        }
        let known = std::mem::take(&mut self.0);
        let health = |server| known.iter().find(|(there, _)| there == server).cloned();
        self.0 = wanted()
            .map(|server| health(server).unwrap_or_else(|| (server.clone(), Health::default())))
            .collect();
        true
    }

    /// In the order to ask them in. One that rested is tried once, and rests on until it answers.
    pub fn order(&mut self, now: Uptime) -> Vec<Server> {
        let mut order: Vec<_> = (0..self.0.len()).collect();
        orlop_rt::sort_by_key(&mut order, |at| {
            Some(self.0[*at].1.rests_until).filter(|until| *until > now)
        });
        if let Some((_, health)) = order.first().map(|at| &mut self.0[*at])
            && health.failures > 1
        {
            health.rests_until = now + rest(health.failures);
        }
        order.into_iter().map(|at| self.0[at].0.clone()).collect()
    }

    /// How long to wait for this one before the next is asked as well.
    #[must_use]
    pub fn patience(&self, server: &Server) -> Duration {
        if server.tls.is_some() {
            return TLS_PATIENCE;
        }
        let health = self.0.iter().find(|(there, _)| there == server).map(|(_, health)| health);
        let usual = health.and_then(|health| health.round_trip);
        usual.map_or(PATIENCE, |usual| (usual * 4).clamp(LEAST_PATIENCE, MOST_PATIENCE))
    }

    /// It answered after so long.
    pub fn answered(&mut self, server: &Server, after: Duration) {
        let Some(health) = self.health(server) else { return };
        let smoothed = health.round_trip.map_or(after, |before| (before * 7 + after) / 8);
        *health = Health { round_trip: Some(smoothed), ..Health::default() };
    }

    /// It did not, or said that it cannot.
    pub fn failed(&mut self, now: Uptime, server: &Server) {
        let Some(health) = self.health(server) else { return };
        health.failures = health.failures.saturating_add(1);
        // Once may be a lost packet.
        if health.failures > 1 {
            health.rests_until = now + rest(health.failures);
        }
    }

    fn health(&mut self, server: &Server) -> Option<&mut Health> {
        self.0.iter_mut().find(|(there, _)| there == server).map(|(_, health)| health)
    }
}

fn rest(failures: u32) -> Duration {
    let doubled = 1 << failures.saturating_sub(2).min(16);
    (FIRST_REST * doubled).min(LONGEST_REST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(last: u8) -> Server {
        Server::plain(([192, 0, 2, last], 53).into())
    }

    fn three() -> Upstreams {
        let mut upstreams = Upstreams::default();
        assert!(upstreams.set(&[server(1), server(2), server(3)]));
        upstreams
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn who_failed_twice_is_asked_last_until_it_has_rested_and_then_once() {
        let mut upstreams = three();
        upstreams.failed(secs(10), &server(1));
        assert_eq!(upstreams.order(secs(10))[0], server(1), "once is nothing");
        upstreams.failed(secs(10), &server(1));
        assert_eq!(upstreams.order(secs(10)), [server(2), server(3), server(1)]);
        assert_eq!(upstreams.order(secs(13))[0], server(2));
        assert_eq!(upstreams.order(secs(14))[0], server(1), "one question finds out");
        assert_eq!(upstreams.order(secs(14))[0], server(2), "others need not wait for it");
        upstreams.failed(secs(14), &server(1));
        assert_eq!(upstreams.order(secs(21))[0], server(2), "it rests for longer");
        upstreams.answered(&server(1), Duration::from_millis(5));
        assert_eq!(upstreams.order(secs(21)), [server(1), server(2), server(3)]);
    }

    #[test]
    fn when_all_rest_the_one_that_is_due_first_is_asked() {
        let mut upstreams = three();
        for (at, last) in [(10, 1), (10, 1), (11, 2), (11, 2), (9, 3), (9, 3)] {
            upstreams.failed(secs(at), &server(last));
        }
        assert_eq!(upstreams.order(secs(12))[0], server(3));
    }

    #[test]
    fn patience_follows_the_servers_habit() {
        let mut upstreams = three();
        assert_eq!(upstreams.patience(&server(1)), PATIENCE);
        upstreams.answered(&server(1), Duration::from_millis(1));
        assert_eq!(upstreams.patience(&server(1)), LEAST_PATIENCE);
        for _ in 0..100 {
            upstreams.answered(&server(1), secs(3));
        }
        assert_eq!(upstreams.patience(&server(1)), MOST_PATIENCE);
    }

    #[test]
    fn a_server_that_stays_keeps_its_name_and_more_than_eight_are_not_taken() {
        let mut upstreams = three();
        assert!(!upstreams.set(&[server(1), server(2), server(3)]));
        upstreams.failed(secs(1), &server(2));
        upstreams.failed(secs(1), &server(2));
        assert!(upstreams.set(&[server(2), server(4)]));
        assert_eq!(upstreams.order(secs(2)), [server(4), server(2)]);
        let many: Vec<_> = (0..200).map(server).collect();
        upstreams.set(&many);
        assert_eq!(upstreams.order(secs(2)).len(), MOST);
        assert_eq!(rest(u32::MAX), LONGEST_REST);
    }
}
