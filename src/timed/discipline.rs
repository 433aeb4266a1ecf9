//! What is known of the local oscillator, and how the clock is steered by it.
//!
//! Everything is told of the *free* clock: the local one without any correction ever made. Its offset
//! is a straight line but for the oscillator's wander, whatever is done to the clock people see; so
//! samples from before a correction stay good. The line is estimated by a Kalman filter of two states
//! (offset and frequency). In its steady state that is RFC 5905's hybrid of a phase-locked and a
//! frequency-locked loop (§11.3); what differs is that its gains are not fixed by the poll interval but
//! by what the measurements and the oscillator are worth, which is watched.

use std::time::Duration;

/// The line, and what was done to the clock. Seconds, and seconds per second.
#[derive(Clone, Debug)]
pub struct Discipline {
    /// Of the free clock at `at`: what must be added to it.
    offset: f64,
    /// How much faster the free clock must run.
    frequency: f64,
    /// Covariance of offset and frequency.
    p: [[f64; 2]; 2],
    /// Of the estimate, in boot time. `None`: there was no measurement yet.
    at: Option<Duration>,
    /// How much the frequency wanders: the variance it gains in a second.
    wander: f64,
    /// The last surprise, in standard deviations, and the sum of what they had in common with those
    /// before them.
    surprise: f64,
    lag: f64,
    /// Added to the free clock up to `corrected_at`.
    correction: f64,
    corrected_at: Duration,
    /// What the kernel adds in each second since then.
    rate: f64,
}

/// How a measurement compares with what was expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Innovation {
    /// Measured less expected, in seconds.
    pub off: f64,
    /// The standard deviation `off` should have.
    pub expected: f64,
    /// The part of its variance that is not the measurement's own.
    pub ours: f64,
}

impl Innovation {
    /// In standard deviations.
    #[must_use]
    pub fn sigmas(&self) -> f64 {
        self.off.abs() / self.expected
    }
}

impl Discipline {
    /// A clock whose kernel adds `rate` in each second. With `known`, that is what the oscillator needs;
    /// else nothing is known of it.
    #[must_use]
    pub fn new(now: Duration, rate: f64, known: bool) -> Self {
        let sigma = if known { REMEMBERED_SIGMA } else { UNKNOWN_SIGMA };
        let frequency = if known { rate } else { 0.0 };
        Self {
            offset: 0.0,
            frequency,
            p: [[0.0, 0.0], [0.0, sigma * sigma]],
            at: None,
            wander: FIRST_WANDER,
            surprise: 0.0,
            lag: 0.0,
            correction: 0.0,
            corrected_at: now,
            rate,
        }
    }

    /// What was added to the free clock until `now`.
    #[must_use]
    pub fn correction(&self, now: Duration) -> f64 {
        // Boot time runs at the corrected rate, too.
        let free = seconds(now.saturating_sub(self.corrected_at)) / (1.0 + self.rate);
        self.correction + self.rate * free
    }

    /// What must be added to the clock people see; `None` before the first measurement.
    #[must_use]
    pub fn offset(&self, now: Duration) -> Option<f64> {
        let at = self.at?;
        let expected = self.offset + self.frequency * seconds(now.saturating_sub(at));
        Some(expected - self.correction(now))
    }

    /// What the oscillator needs, in seconds per second.
    #[must_use]
    pub fn frequency(&self) -> f64 {
        self.frequency
    }

    /// The standard deviation of that.
    #[must_use]
    pub fn frequency_sigma(&self) -> f64 {
        self.p[1][1].sqrt()
    }

    /// The standard deviation of the offset at `now`.
    #[must_use]
    pub fn offset_sigma(&self, now: Duration) -> f64 {
        self.at.map_or(f64::INFINITY, |at| self.grown(seconds(now.saturating_sub(at)))[0][0].sqrt())
    }

    /// Compares a measurement with what is known. `None` before the first.
    #[must_use]
    pub fn expect(&self, now: Duration, offset: f64, noise: f64) -> Option<Innovation> {
        let expected = self.offset(now)?;
        let ours = self.grown(seconds(now.saturating_sub(self.at?)))[0][0];
        Some(Innovation { off: offset - expected, expected: (ours + noise * noise).sqrt(), ours })
    }

    /// Takes a measurement: at `now` the clock people see needs `offset`, give or take `noise`.
    pub fn measure(&mut self, now: Duration, offset: f64, noise: f64) {
        let variance = noise * noise;
        let free = offset + self.correction(now);
        let Some(at) = self.at else {
            self.offset = free;
            self.p[0] = [variance, 0.0];
            self.p[1][0] = 0.0;
            self.at = Some(now);
            return;
        };
        let elapsed = seconds(now.saturating_sub(at));
        let p = self.grown(elapsed);
        let expected = self.offset + self.frequency * elapsed;
        let innovation = free - expected;
        let total = p[0][0] + variance;
        let gain = [p[0][0] / total, p[1][0] / total];
        self.watch(innovation / total.sqrt());
        self.offset = expected + gain[0] * innovation;
        self.frequency =
            (self.frequency + gain[1] * innovation).clamp(-MAX_FREQUENCY, MAX_FREQUENCY);
        // Joseph's form, which stays symmetric and positive.
        let keep = 1.0 - gain[0];
        let p00 = keep * keep * p[0][0] + gain[0] * gain[0] * variance;
        let p01 = keep * (p[0][1] - gain[1] * p[0][0]) + gain[0] * gain[1] * variance;
        let p11 = p[1][1] - 2.0 * gain[1] * p[0][1] + gain[1] * gain[1] * (p[0][0] + variance);
        self.p = [[p00, p01], [p01, p11.max(SMALLEST_VARIANCE)]];
        self.at = Some(now);
    }

    /// The clock is not where it was thought to be, and nobody knows why: measurements weigh all, the
    /// frequency is known no better than to 10 ppm.
    pub fn forget(&mut self) {
        self.at = None;
        let known = self.p[1][1].max(FORGOTTEN_SIGMA * FORGOTTEN_SIGMA);
        self.p = [[0.0, 0.0], [0.0, known]];
        self.wander = self.wander.max(FIRST_WANDER);
        (self.surprise, self.lag) = (0.0, 0.0);
    }

    /// Somebody added `by` to the clock: we, or another. From here on that is how the free clock was
    /// always set, so that years do not cost the nanoseconds their digits.
    pub fn stepped(&mut self, by: f64) {
        self.offset -= by;
    }

    /// The kernel adds `rate` in each second from `now` on.
    pub fn steered(&mut self, now: Duration, rate: f64) {
        self.correction = self.correction(now);
        self.corrected_at = now;
        self.rate = rate;
    }

    /// What the kernel adds in each second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The covariance after so many seconds without a measurement.
    fn grown(&self, elapsed: f64) -> [[f64; 2]; 2] {
        let [[p00, p01], [_, p11]] = self.p;
        let t = elapsed;
        let q = self.wander;
        let cross = p01 + t * p11 + q * t * t / 2.0;
        [
            [p00 + 2.0 * t * p01 + t * t * p11 + q * t * t * t / 3.0 + PHASE_WANDER * t, cross],
            [cross, p11 + q * t],
        ]
    }

    /// Learns how much the oscillator wanders. A filter that is as quick as it should be is surprised
    /// by chance, one way or the other; one that lags behind the oscillator is surprised the same way
    /// again and again, and one that runs after noise to and fro (R. K. Mehra, 1970). This holds
    /// whatever the noise of the measurements is thought to be.
    fn watch(&mut self, sigmas: f64) {
        let sigmas = sigmas.clamp(-3.0, 3.0);
        self.lag += sigmas * std::mem::replace(&mut self.surprise, sigmas);
        if self.lag.abs() < PATIENCE {
            return;
        }
        let change = if self.lag > 0.0 { 4.0 } else { 0.5 };
        self.wander = (self.wander * change).clamp(LEAST_WANDER, MOST_WANDER);
        self.lag = 0.0;
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// What a crystal nobody has measured may be off.
const UNKNOWN_SIGMA: f64 = 50e-6;
/// What a crystal changes from one boot to the next.
const REMEMBERED_SIGMA: f64 = 2e-6;
const FORGOTTEN_SIGMA: f64 = 10e-6;
/// What the kernel can make up for.
const MAX_FREQUENCY: f64 = 450e-6;
/// Variance of the frequency gained in a second: at first, and between what limits it is learned.
const FIRST_WANDER: f64 = 1e-17;
const LEAST_WANDER: f64 = 1e-21;
const MOST_WANDER: f64 = 1e-13;
/// Variance of the offset gained in a second: reading the clock is noisy.
const PHASE_WANDER: f64 = 1e-16;
const SMALLEST_VARIANCE: f64 = 1e-22;
/// Surprises that have so much in common (1 each, on average, if all had) are no chance.
const PATIENCE: f64 = 6.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_straight_line_is_found_whatever_is_done_to_the_clock() {
        let (mut offset, frequency) = (0.250, 30e-6);
        let mut discipline = Discipline::new(at(0), 0.0, false);
        for i in 1..200 {
            let now = at(i * 16);
            // The world: boot time is corrected, too, which is of no matter at these rates.
            let truth = offset + frequency * seconds(now) - discipline.correction(now);
            discipline.measure(now, truth, 1e-5);
            match i {
                50 => {
                    discipline.stepped(0.2);
                    offset -= 0.2;
                }
                80 => discipline.steered(now, 100e-6),
                120 => discipline.steered(now, 30e-6),
                _ => {}
            }
        }
        assert!((discipline.frequency() - frequency).abs() < 1e-8, "{discipline:?}");
        let now = at(200 * 16);
        let truth = offset + frequency * seconds(now) - discipline.correction(now);
        assert!(discipline.offset(now).is_some_and(|found| (found - truth).abs() < 1e-5));
        assert!(discipline.frequency_sigma() < 1e-7);
    }

    #[test]
    fn what_is_unlikely_is_told_in_sigmas() {
        let mut discipline = Discipline::new(at(0), 0.0, true);
        assert_eq!(discipline.expect(at(1), 5.0, 1e-3), None);
        for i in 1..20 {
            discipline.measure(at(i * 32), 0.0, 1e-3);
        }
        let sigmas = |offset| {
            discipline.expect(at(650), offset, 1e-3).map_or(0.0, |innovation| innovation.sigmas())
        };
        assert!(sigmas(0.001) < 2.0 && sigmas(0.1) > 50.0, "{} {}", sigmas(0.001), sigmas(0.1));
    }
}
