//! How much one source may ask of us. Pure: the time is passed in, and what is remembered is bounded.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// What a source may do at once, in calls,
const BURST: u32 = 100;
/// and from then on one call in this time.
const PERIOD: Duration = Duration::from_millis(100);
/// What a wrong token costs, in calls: a guesser gets one try in five seconds.
const WRONG_TOKEN: u32 = 50;
/// How many sources are remembered.
const SOURCES: usize = 4096;
/// Connections at a time, of all sources together
const CONNECTIONS: usize = 512;
/// and of one.
const CONNECTIONS_EACH: usize = 32;

/// Who is counted as one: an IPv4 address, or an IPv6 network of 64 bits, which is what one machine
/// can have all addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

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

/// The connections that are open. When there are too many, the oldest of those who have most goes.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    /// Oldest first.
    open: VecDeque<(u64, Source)>,
    last: u64,
}

impl Crowd {
    /// Lets a connection in: its number, and the one that must go for it.
    pub(crate) fn enter(&mut self, source: Source) -> (u64, Option<u64>) {
        let leaves = self.must_go(source);
        if let Some(number) = leaves {
            self.leave(number);
        }
        self.last += 1;
        self.open.push_back((self.last, source));
        (self.last, leaves)
    }

    /// A connection is closed.
    pub(crate) fn leave(&mut self, number: u64) {
        self.open.retain(|(open, _)| *open != number);
    }

    fn must_go(&self, source: Source) -> Option<u64> {
        let mut counts: HashMap<Source, usize> = HashMap::new();
        for (_, source) in &self.open {
            *counts.entry(*source).or_default() += 1;
        }
        let from = if counts.get(&source).is_some_and(|count| *count >= CONNECTIONS_EACH) {
            source
        } else if self.open.len() >= CONNECTIONS {
            let most = counts.values().copied().max()?;
            self.open.iter().map(|(_, source)| *source).find(|source| counts[source] == most)?
        } else {
            return None;
        };
        self.open.iter().find(|(_, open)| *open == from).map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn source(n: u32) -> Source {
        IpAddr::from(n.to_be_bytes()).into()
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_ipv4() {
        let parse =
            |text: &str| Source::from(text.parse::<IpAddr>().unwrap_or(IpAddr::from([0; 4])));
        assert_eq!(parse("fd00:1:2:3::1"), parse("fd00:1:2:3:ffff::9"));
        assert_ne!(parse("fd00:1:2:3::1"), parse("fd00:1:2:4::1"));
        assert_eq!(parse("::ffff:10.0.0.1"), parse("10.0.0.1"));
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

    #[test]
    fn one_source_cannot_take_all_places() {
        let mut crowd = Crowd::default();
        let (good, _) = crowd.enter(source(1));
        for n in 0..10_000 {
            let (_, leaves) = crowd.enter(source(2));
            assert_eq!(leaves.is_some(), n >= CONNECTIONS_EACH);
            assert_ne!(leaves, Some(good));
        }
        assert_eq!(crowd.open.len(), 1 + CONNECTIONS_EACH);
    }

    #[test]
    fn many_sources_together_are_bounded_and_the_greedy_go_first() {
        let mut crowd = Crowd::default();
        let single: Vec<_> = (0..100).map(|n| crowd.enter(source(n)).0).collect();
        for n in 0..3_000 {
            let (_, leaves) = crowd.enter(source(1000 + n % 50));
            assert!(leaves.is_none_or(|number| !single.contains(&number)));
            assert!(crowd.open.len() <= CONNECTIONS);
        }
        for number in single {
            crowd.leave(number);
        }
        assert_eq!(crowd.enter(source(0)).1, None, "there is room again");
    }
}
