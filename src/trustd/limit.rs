//! How much one source may ask of us. Pure: the time is passed in, and what is remembered is bounded
//! ([`Debts`]).

use std::time::{Duration, Instant};

use orlop_rpc::debts::Debts;
use orlop_rpc::places::Source;

/// What a source may do at once, in calls,
const BURST: u32 = 100;
/// and from then on one call in this time.
const PERIOD: Duration = Duration::from_millis(100);
/// What a wrong token costs, in calls: a guesser gets one try in five seconds.
const WRONG_TOKEN: u32 = 50;

/// Who may call.
#[derive(Debug)]
pub(crate) struct Limiter {
    debts: Debts,
    /// Calls that were not admitted since the start.
    refused: u64,
}

impl Default for Limiter {
    fn default() -> Self {
        Self { debts: Debts::new(BURST, PERIOD), refused: 0 }
    }
}

impl Limiter {
    /// Whether `source` may make a call now; if so, it is charged.
    pub(crate) fn admit(&mut self, source: Source, now: Instant) -> bool {
        let admitted = self.debts.admits(source, now);
        if admitted {
            self.debts.charge(source, 1, now);
        } else {
            self.refused += 1;
        }
        admitted
    }

    /// How many calls were not admitted, when that is worth a line: at the first, and each doubling.
    pub(crate) fn refusals_to_tell(&self) -> Option<u64> {
        self.refused.is_power_of_two().then_some(self.refused)
    }

    /// Charges `source` for a wrong token.
    pub(crate) fn punish(&mut self, source: Source, now: Instant) {
        self.debts.charge(source, WRONG_TOKEN, now);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn source(n: u32) -> Source {
        IpAddr::from(n.to_be_bytes()).into()
    }

    #[test]
    fn a_guesser_gets_one_try_in_five_seconds() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let mut tries = 0;
        for tenth in 0..600 {
            let now = start + PERIOD * tenth;
            if limiter.admit(source(1), now) {
                limiter.punish(source(1), now);
                tries += 1;
            }
        }
        assert!((12..=15).contains(&tries), "{tries} tries in a minute");
    }

    #[test]
    fn refusals_are_told_at_each_doubling() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        while limiter.admit(source(0), now) {}
        let told = (0..99).filter(|_| {
            limiter.admit(source(0), now);
            limiter.refusals_to_tell().is_some()
        });
        assert_eq!(told.count(), 6, "2, 4, 8, 16, 32, 64");
    }
}
