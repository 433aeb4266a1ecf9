//! How much one source may take of us: token buckets. Pure: the time is passed in, and what is remembered
//! is bounded.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::places::Source;

/// How many sources are remembered.
const SOURCES: usize = 4096;

/// What each source owes. A bucket is kept as the time when it will be full again, so one that is full
/// need not be kept at all.
#[derive(Debug)]
pub struct Debts {
    burst: u32,
    period: Duration,
    owed: HashMap<Source, Debt>,
}

#[derive(Clone, Copy, Debug)]
struct Debt {
    paid_at: Instant,
    /// It has been said that the source is at its end, and it has not paid all since.
    told: bool,
}

impl Debts {
    /// Each source may take `burst` at once, and from then on one in each `period`.
    #[must_use]
    pub fn new(burst: u32, period: Duration) -> Self {
        Self { burst, period, owed: HashMap::new() }
    }

    /// Whether `source` may take one more now.
    #[must_use]
    pub fn admits(&self, source: Source, now: Instant) -> bool {
        self.owed.get(&source).is_none_or(|debt| debt.paid_at + self.period <= self.limit(now))
    }

    /// Charges `source` for `count`, whether it may take them or not. True when it may take no more
    /// from here on, for the first time since it owed nothing: worth a line.
    pub fn charge(&mut self, source: Source, count: u32, now: Instant) -> bool {
        self.make_room(source, now);
        let limit = self.limit(now);
        let debt = self.owed.entry(source).or_insert(Debt { paid_at: now, told: false });
        if debt.paid_at <= now {
            *debt = Debt { paid_at: now, told: false };
        }
        // However much it takes, it waits for no longer than twice its burst.
        debt.paid_at = (debt.paid_at + self.period * count).min(limit + self.period * self.burst);
        let ended = debt.paid_at + self.period > limit && !debt.told;
        debt.told |= ended;
        ended
    }

    /// Who owes until then can take no more.
    fn limit(&self, now: Instant) -> Instant {
        now + self.period * self.burst
    }

    fn make_room(&mut self, source: Source, now: Instant) {
        if self.owed.len() < SOURCES || self.owed.contains_key(&source) {
            return;
        }
        self.owed.retain(|_, debt| debt.paid_at > now);
        // All have something to pay for: forget the one that owes least.
        if self.owed.len() >= SOURCES
            && let Some((least, _)) = self.owed.iter().min_by_key(|(_, debt)| debt.paid_at)
        {
            let least = *least;
            self.owed.remove(&least);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const BURST: u32 = 100;
    const PERIOD: Duration = Duration::from_millis(100);

    fn source(n: u32) -> Source {
        IpAddr::from(n.to_be_bytes()).into()
    }

    fn take(debts: &mut Debts, source: Source, now: Instant) -> bool {
        let admitted = debts.admits(source, now);
        if admitted {
            debts.charge(source, 1, now);
        }
        admitted
    }

    #[test]
    fn a_burst_is_served_then_the_rate_and_others_do_not_notice() {
        let (mut debts, now) = (Debts::new(BURST, PERIOD), Instant::now());
        let admitted = (0..BURST * 2).filter(|_| take(&mut debts, source(1), now)).count();
        assert_eq!(admitted, BURST as usize);
        assert!(take(&mut debts, source(2), now));
        let later = now + 10 * PERIOD;
        let admitted = (0..100).filter(|_| take(&mut debts, source(1), later)).count();
        assert_eq!(admitted, 10);
        let rested = later + PERIOD * BURST;
        let admitted = (0..BURST * 2).filter(|_| take(&mut debts, source(1), rested)).count();
        assert_eq!(admitted, BURST as usize);
    }

    #[test]
    fn a_source_is_told_of_once_until_it_owes_nothing() {
        let (mut debts, start) = (Debts::new(3, PERIOD), Instant::now());
        let mut charge = |now| debts.charge(source(1), 1, now);
        assert_eq!([(); 5].map(|()| charge(start)), [false, false, true, false, false]);
        // It pays for one, and takes it again.
        assert!(!charge(start + 3 * PERIOD));
        let paid = start + 10 * PERIOD;
        assert_eq!([(); 3].map(|()| charge(paid)), [false, false, true]);
    }

    #[test]
    fn memory_is_bounded_and_who_owes_most_is_not_forgotten() {
        let (mut debts, now) = (Debts::new(BURST, PERIOD), Instant::now());
        debts.charge(source(0), 9 * BURST, now);
        for n in 1..6_000 {
            assert!(take(&mut debts, source(n), now));
            assert!(debts.owed.len() <= SOURCES);
        }
        assert!(!debts.admits(source(0), now + PERIOD * BURST));
        assert!(debts.admits(source(0), now + PERIOD * (BURST + 1)));
        debts.charge(source(6_000), 1, now + PERIOD * (2 * BURST + 2));
        assert_eq!(debts.owed.len(), 1, "full buckets need not be kept");
    }
}
