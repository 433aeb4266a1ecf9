//! When leases end: decided here with the time passed in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::LeaseId;

/// The leases of an embedded store.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    known: BTreeMap<LeaseId, Lease>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

impl Leases {
    pub(crate) fn grant(&mut self, id: LeaseId, ttl: Duration, remaining: Duration, now: Instant) {
        self.known.insert(id, Lease { ttl, ends: now + remaining });
    }

    /// The whole time it has again, if it has not ended.
    pub(crate) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Option<Duration> {
        let lease = self.known.get_mut(&id).filter(|lease| lease.ends > now)?;
        lease.ends = now + lease.ttl;
        Some(lease.ttl)
    }

    pub(crate) fn knows(&self, id: LeaseId, now: Instant) -> bool {
        self.known.get(&id).is_some_and(|lease| lease.ends > now)
    }

    pub(crate) fn remove(&mut self, id: LeaseId) {
        self.known.remove(&id);
    }

    pub(crate) fn ended(&self, now: Instant) -> Vec<LeaseId> {
        self.known.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect()
    }

    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.known.values().map(|lease| lease.ends).min()
    }
}

/// Shares leases among keys that end at about the same time, so that a store with a hundred thousand events has some
/// hundred leases: a lease takes 1,000 keys, and keys that end up to a minute before it.
#[derive(Debug, Default)]
pub struct Buckets {
    open: BTreeMap<Duration, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    lease: LeaseId,
    granted: Instant,
    keys: u32,
}

/// How much longer than asked a key may live.
const SLACK: Duration = Duration::from_secs(60);

/// How many keys a lease takes.
const KEYS: u32 = 1000;

impl Buckets {
    /// The lease for one more key of this `ttl`, if one has room; else grant one of [`Buckets::ttl`] and
    /// [`Buckets::open`] it.
    pub fn take(&mut self, ttl: Duration, now: Instant) -> Option<LeaseId> {
        let bucket = self.open.get_mut(&ttl)?;
        if bucket.keys >= KEYS || now.saturating_duration_since(bucket.granted) >= SLACK {
            self.open.remove(&ttl);
            return None;
        }
        bucket.keys += 1;
        Some(bucket.lease)
    }

    /// How long a bucket's lease must be for a key that joins it last to live for `ttl`.
    #[must_use]
    pub fn ttl(ttl: Duration) -> Duration {
        ttl + SLACK
    }

    /// A lease granted at `now`, which its first key has.
    pub fn open(&mut self, ttl: Duration, lease: LeaseId, now: Instant) {
        self.open.insert(ttl, Bucket { lease, granted: now, keys: 1 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_lease_ends_when_it_is_not_kept_alive() {
        let start = Instant::now();
        let mut leases = Leases::default();
        leases.grant(LeaseId(1), 10 * S, 10 * S, start);
        leases.grant(LeaseId(2), 10 * S, 4 * S, start);
        assert_eq!(leases.next_end(), Some(start + 4 * S));
        assert_eq!(leases.ended(start + 4 * S), [LeaseId(2)]);
        assert_eq!(leases.keep_alive(LeaseId(2), start + 4 * S), None, "too late");
        leases.remove(LeaseId(2));
        assert_eq!(leases.keep_alive(LeaseId(1), start + 9 * S), Some(10 * S));
        assert!(leases.knows(LeaseId(1), start + 18 * S));
        assert_eq!(leases.ended(start + 19 * S), [LeaseId(1)]);
    }

    #[test]
    fn a_bucket_is_shared_for_a_minute_and_a_thousand_keys() {
        let start = Instant::now();
        let mut buckets = Buckets::default();
        let hour = 3600 * S;
        assert_eq!(buckets.take(hour, start), None);
        buckets.open(hour, LeaseId(7), start);
        for _ in 1..1000 {
            assert_eq!(buckets.take(hour, start + 59 * S), Some(LeaseId(7)));
        }
        assert_eq!(buckets.take(hour, start + 59 * S), None, "full");
        buckets.open(hour, LeaseId(8), start);
        assert_eq!(buckets.take(hour, start + 60 * S), None, "old");
        assert_eq!(buckets.take(2 * hour, start), None, "another time");
    }
}
