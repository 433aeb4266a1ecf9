//! How often something may be said.

use std::time::{Duration, Instant};

/// Lets a crowd through at once, and then one after each interval (GCRA, ITU-T I.371 Annex A). Pure.
#[derive(Debug)]
pub(crate) struct Rate {
    interval: Duration,
    /// How much time a crowd may run ahead.
    ahead: Duration,
    /// When all that was let through would have come, one after each interval.
    due: Option<Instant>,
    held: u64,
}

impl Rate {
    /// `burst` at once, and then one after each `interval`.
    pub(crate) fn new(burst: u32, interval: Duration) -> Self {
        Self { interval, ahead: interval * burst.saturating_sub(1), due: None, held: 0 }
    }

    /// Whether one may pass now: then how many were held back since the last.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        let due = self.due.map_or(now, |due| due.max(now));
        if due.saturating_duration_since(now) > self.ahead {
            self.held += 1;
            return None;
        }
        self.due = Some(due + self.interval);
        Some(std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_an_interval_and_who_was_held_is_counted() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut rate = Rate::new(3, Duration::from_millis(100));
        let passed: Vec<_> = (0..10).map(|_| rate.pass(start)).collect();
        assert_eq!(passed[..4], [Some(0), Some(0), Some(0), None]);
        assert!(passed[4..].iter().all(Option::is_none));
        assert_eq!(rate.pass(at(99)), None);
        assert_eq!(rate.pass(at(100)), Some(8));
        assert_eq!(rate.pass(at(101)), None);
        // Quiet long enough, the whole burst again.
        let passed = (0..10).filter_map(|_| rate.pass(at(10_000))).count();
        assert_eq!(passed, 3);
    }
}
