//! Capped exponential back-off with jitter. Randomness is passed in, so that tests can choose it.

use std::time::Duration;

/// Waits `min`, then twice as long each time up to `max`; each wait is shortened by up to a half.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// # Panics
    /// When `min` is zero or above `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        assert!(!min.is_zero() && min <= max, "back-off needs 0 < min <= max");
        Self { min, max, next: min }
    }

    /// The next wait: between half and all of the current step, chosen by `random`.
    pub fn next(&mut self, random: u32) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step - step / 2 * (random % 1024) / 1024
    }

    /// Starts again at `min`, after a success.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn grows_to_the_cap_and_starts_again_after_a_success() {
        let mut backoff = Backoff::new(SECOND, 5 * SECOND);
        let waits: Vec<_> = (0..4).map(|_| backoff.next(0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5]);
        backoff.reset();
        assert_eq!(backoff.next(0), SECOND);
    }

    #[test]
    fn jitter_takes_at_most_half() {
        for random in [0, 1, 511, 1023, u32::MAX] {
            let wait = Backoff::new(SECOND, SECOND).next(random);
            assert!(wait > SECOND / 2 && wait <= SECOND, "{wait:?}");
        }
    }
}
