//! How much those may ask whom nobody knows (spec §2, §3.5). Pure: the time is passed in, and what is remembered is
//! bounded.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use orlop_rpc::debts::Debts;
use orlop_rpc::places::Source;

/// Nodes that may wait for approval.
pub const WAITING: usize = 256;
/// How long they do.
pub const WAITS: Duration = Duration::from_secs(24 * 3600);
/// Escrow streams at a time.
pub const ESCROWS: usize = 16;
/// How long the first message of one may take.
pub const ESCROW_SPEAKS: Duration = Duration::from_secs(10);
/// The longest message, in bytes.
pub const MESSAGE: usize = 64 << 10;

/// Registrations of the whole cluster at once,
const REGISTRATIONS: u32 = 20;
/// and how often there may be another one.
const REGISTRATION_EVERY: Duration = Duration::from_millis(200);
/// Of one source.
const REGISTRATIONS_EACH: u32 = 5;
const REGISTRATION_EACH_EVERY: Duration = Duration::from_secs(1);
/// Escrows of one source that may fail,
const FAILURES: u32 = 10;
/// and how often another one.
const FAILURE_EVERY: Duration = Duration::from_secs(6);

/// Who has asked how often.
#[derive(Debug)]
pub struct Limits {
    registrations: Debts,
    registrations_each: Debts,
    failures: Debts,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            registrations: Debts::new(REGISTRATIONS, REGISTRATION_EVERY),
            registrations_each: Debts::new(REGISTRATIONS_EACH, REGISTRATION_EACH_EVERY),
            failures: Debts::new(FAILURES, FAILURE_EVERY),
        }
    }
}

impl Limits {
    /// Whether a source that has shown the ticket may register a node now; counts if so.
    pub fn registers(&mut self, source: Source, now: Instant) -> bool {
        let all = Source::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        if !self.registrations_each.admits(source, now) || !self.registrations.admits(all, now) {
            return false;
        }
        self.registrations_each.charge(source, 1, now);
        self.registrations.charge(all, 1, now);
        true
    }

    /// Whether a source may try an Escrow.
    #[must_use]
    pub fn escrows(&self, source: Source, now: Instant) -> bool {
        self.failures.admits(source, now)
    }

    /// Its Escrow failed.
    pub fn escrow_failed(&mut self, source: Source, now: Instant) {
        self.failures.charge(source, 1, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u32) -> Source {
        IpAddr::from(n.to_be_bytes()).into()
    }

    #[test]
    fn a_cluster_takes_twenty_registrations_at_once_and_five_a_second() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let crowd = |limits: &mut Limits, from: u32, now| {
            (from..from + 1000).filter(|n| limits.registers(source(*n), now)).count()
        };
        assert_eq!(crowd(&mut limits, 0, start), 20);
        assert_eq!(crowd(&mut limits, 1000, start + Duration::from_secs(1)), 5);
        assert_eq!(crowd(&mut limits, 2000, start + Duration::from_secs(60)), 20);
    }

    #[test]
    fn one_source_cannot_take_what_all_may() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let ten_thousand = (0..10_000).filter(|_| limits.registers(source(1), start)).count();
        assert_eq!(ten_thousand, 5);
        assert!(limits.registers(source(2), start));
        let later = start + Duration::from_secs(10);
        assert_eq!((0..100).filter(|_| limits.registers(source(1), later)).count(), 5);
        assert!(limits.registers(source(1), later + Duration::from_secs(1)));
        assert!(!limits.registers(source(1), later + Duration::from_secs(1)));
    }

    #[test]
    fn ten_failed_escrows_a_minute_are_one_sources_share() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let mut tried = 0;
        for tenth in 0..1200 {
            let now = start + Duration::from_millis(100) * tenth;
            if limits.escrows(source(1), now) {
                limits.escrow_failed(source(1), now);
                tried += 1;
            }
        }
        assert!((28..=31).contains(&tried), "{tried} in two minutes");
        assert!(limits.escrows(source(2), start));
    }
}
