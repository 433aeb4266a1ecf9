//! How much one source may ask of us. Pure: the time is passed in, and what is remembered is bounded.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use orlop_rpc::places::Source;

/// What a source may do at once, in calls,
const BURST: u32 = 100;
/// and from then on one call in this time.
const PERIOD: Duration = Duration::from_millis(100);
/// What a wrong token costs, in calls: a guesser gets one try in five seconds.
const WRONG_TOKEN: u32 = 50;
/// How many sources are remembered.
const SOURCES: usize = 4096;

/// Token buckets, one for each source. A bucket is kept as the time when it will be full again, so
/// one that is full need not be kept at all.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    full_at: HashMap<Source, Instant>,
    /// Calls that were not admitted since the start.
    refused: u64,
}

impl Limiter {
    /// Whether `source` may make a call now; if so, it is charged.
    pub(crate) fn admit(&mut self, source: Source, now: Instant) -> bool {
        let full_at = self.charged(source, now, 1);
        let admitted = full_at <= now + PERIOD * BURST;
        if admitted {
            self.set(source, now, full_at);
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
        let full_at = self.charged(source, now, WRONG_TOKEN);
        self.set(source, now, full_at);
    }

    fn charged(&self, source: Source, now: Instant, calls: u32) -> Instant {
        self.full_at.get(&source).map_or(now, |full_at| (*full_at).max(now)) + PERIOD * calls
    }

    fn set(&mut self, source: Source, now: Instant, full_at: Instant) {
        if self.full_at.len() >= SOURCES && !self.full_at.contains_key(&source) {
            self.full_at.retain(|_, full_at| *full_at > now);
            // All have something to pay for: forget the one that owes least.
            if self.full_at.len() >= SOURCES {
                let least = self.full_at.iter().min_by_key(|(_, full_at)| **full_at);
                if let Some(least) = least.map(|(source, _)| *source) {
                    self.full_at.remove(&least);
                }
            }
        }
        self.full_at.insert(source, full_at);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn source(n: u32) -> Source {
        IpAddr::from(n.to_be_bytes()).into()
    }

    #[test]
    fn a_burst_is_served_then_the_rate_and_others_do_not_notice() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let admitted = (0..BURST * 2).filter(|_| limiter.admit(source(1), now)).count();
        assert_eq!(admitted, BURST as usize);
        assert!(limiter.admit(source(2), now));
        let later = now + SECOND;
        let admitted = (0..100).filter(|_| limiter.admit(source(1), later)).count();
        assert_eq!(admitted, 10);
        let rested = later + PERIOD * BURST;
        let admitted = (0..BURST * 2).filter(|_| limiter.admit(source(1), rested)).count();
        assert_eq!(admitted, BURST as usize);
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
    fn memory_is_bounded_and_who_owes_most_is_not_forgotten() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        while limiter.admit(source(0), now) {}
        for n in 1..6_000 {
            assert!(limiter.admit(source(n), now));
            assert!(limiter.full_at.len() <= SOURCES);
        }
        assert!(!limiter.admit(source(0), now));
        limiter.admit(source(6_000), now + PERIOD * (BURST + 2));
        assert_eq!(limiter.full_at.len(), 1, "full buckets need not be kept");
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
