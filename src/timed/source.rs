//! One source of time: what its last samples say (the clock filter, RFC 5905 §10), whether it answers.

use std::time::Duration;

use crate::exchange::{MAX_DISTANCE, Sample};
use crate::select::Candidate;

/// Samples that are kept (`NSTAGE`).
pub const STAGES: usize = 8;
/// What a clock that runs free drifts at most (`PHI`, RFC 5905 §7.2), in seconds per second.
pub const PHI: f64 = 15e-6;

/// A sample, and when it was taken.
#[derive(Clone, Copy, Debug)]
struct Stage {
    /// Boot time.
    at: Duration,
    /// Of the free clock: see [`crate::discipline`].
    free: f64,
    sample: Sample,
}

/// The last samples of a source, the newest last.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    stages: Vec<Stage>,
}

/// What the newest sample is worth, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fresh {
    /// What must be added to the clock.
    pub offset: f64,
    /// The standard deviation of that.
    pub noise: f64,
}

impl Filter {
    /// Takes a sample; `correction` is what was added to the free clock by now.
    pub fn push(&mut self, at: Duration, sample: Sample, correction: f64) {
        if self.stages.len() == STAGES {
            self.stages.remove(0);
        }
        self.stages.push(Stage { at, free: sample.offset + correction, sample });
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.stages.clear();
    }

    /// Whether there is any sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// The newest sample.
    #[must_use]
    pub fn last(&self) -> Option<&Sample> {
        self.stages.last().map(|stage| &stage.sample)
    }

    /// The newest sample's time and its offset from the free clock.
    fn newest(&self) -> Option<&Stage> {
        self.stages.last()
    }

    /// What the newest sample is worth. Half of what its delay exceeds the least by may be its error;
    /// beyond that it varies as half of the delays do.
    #[must_use]
    pub fn fresh(&self, correction: f64) -> Option<Fresh> {
        let newest = self.newest()?;
        let excess = (newest.sample.delay - self.least_delay()) / 2.0;
        let noise = (self.noise().powi(2) + excess * excess).sqrt();
        Some(Fresh { offset: newest.free - correction, noise })
    }

    /// The source for selection: the sample with the least delay speaks, brought to `now` by the
    /// `frequency` that the free clock lacks (§10, §11.2).
    #[must_use]
    pub fn candidate(&self, now: Duration, correction: f64, frequency: f64) -> Option<Candidate> {
        let age = |stage: &Stage| now.saturating_sub(stage.at).as_secs_f64();
        let worth = |stage: &&Stage| stage.sample.delay / 2.0 + PHI * age(stage);
        let best = self.stages.iter().min_by(|a, b| worth(a).total_cmp(&worth(b)))?;
        let Sample { delay, precision, root_delay, root_dispersion, stratum, .. } = best.sample;
        let jitter = self.jitter();
        let distance = (root_delay + delay) / 2.0
            + root_dispersion
            + 2.0 * precision
            + PHI * age(best)
            + jitter;
        Some(Candidate {
            offset: best.free + frequency * age(best) - correction,
            distance: distance.max(SMALLEST_DISTANCE),
            jitter: self.noise(),
            stratum,
        })
    }

    /// Whether it may be followed at all.
    #[must_use]
    pub fn fit(candidate: &Candidate) -> bool {
        candidate.distance < MAX_DISTANCE
    }

    /// How much the offsets differ, but for the line they lie on (root mean square, §10).
    #[must_use]
    pub fn jitter(&self) -> f64 {
        let pairs = self.stages.windows(2).map(|pair| (pair[1].free - pair[0].free).powi(2));
        let (count, sum) =
            pairs.fold((0.0, 0.0), |(count, sum), square| (count + 1.0, sum + square));
        let precision = self.last().map_or(0.0, |sample| sample.precision);
        if count == 0.0 { precision } else { f64::sqrt(sum / count).max(precision) }
    }

    /// How fast the free clock is by this source alone: the slope of the line through its samples, in
    /// seconds per second; `None` when they are too few to have one.
    #[must_use]
    pub fn frequency(&self) -> Option<f64> {
        let count = u32::try_from(self.stages.len()).ok().filter(|count| *count >= 3)?;
        let first = self.stages.first()?;
        let points = || {
            let since = |stage: &Stage| stage.at.saturating_sub(first.at).as_secs_f64();
            self.stages.iter().map(move |stage| (since(stage), stage.free - first.free))
        };
        let count = f64::from(count);
        let mean_x = points().map(|(x, _)| x).sum::<f64>() / count;
        let mean_y = points().map(|(_, y)| y).sum::<f64>() / count;
        let spread: f64 = points().map(|(x, _)| (x - mean_x).powi(2)).sum();
        let common: f64 = points().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        (spread > 0.0).then(|| common / spread)
    }

    /// The least of the delays that are kept.
    #[must_use]
    pub fn least_delay(&self) -> f64 {
        self.stages.iter().map(|stage| stage.sample.delay).fold(f64::INFINITY, f64::min)
    }

    /// The standard deviation of an offset: half of that of the delays, when each way varies by itself.
    fn noise(&self) -> f64 {
        let floor = self.last().map_or(0.0, |sample| sample.precision / 2.0);
        #[expect(clippy::cast_precision_loss, reason = "at most eight")]
        let count = self.stages.len() as f64;
        let mean = self.stages.iter().map(|stage| stage.sample.delay).sum::<f64>() / count;
        if count < 4.0 {
            return (mean / 8.0).max(floor);
        }
        let squares =
            self.stages.iter().map(|stage| (stage.sample.delay - mean).powi(2)).sum::<f64>();
        (squares / (count - 1.0) / 4.0).sqrt().max(floor).max(mean * LEAST_NOISE)
    }
}

/// No source is nearer than this, in seconds.
const SMALLEST_DISTANCE: f64 = 1e-6;
/// Delays that never vary are measured no better than this part of themselves.
const LEAST_NOISE: f64 = 1e-3;

/// Which of the last eight questions were answered (`reach`, §13): the newest is the lowest bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach(pub u8);

impl Reach {
    /// A question goes out.
    pub fn asked(&mut self) {
        self.0 <<= 1;
    }

    /// Its answer came.
    pub fn answered(&mut self) {
        self.0 |= 1;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::wire::Leap;

    fn sample(offset: f64, delay: f64) -> Sample {
        Sample {
            offset,
            delay,
            precision: 1e-6,
            root_delay: 0.0,
            root_dispersion: 0.001,
            stratum: 1,
            leap: Leap::None,
            reference: [0; 4],
        }
    }

    #[test]
    fn the_sample_with_the_least_delay_speaks() {
        let mut filter = Filter::default();
        for (i, (offset, delay)) in
            [(0.004, 0.028), (0.0, 0.020), (0.015, 0.050), (-0.003, 0.026)].into_iter().enumerate()
        {
            filter.push(Duration::from_secs(16 * i as u64), sample(offset, delay), 0.0);
        }
        let candidate = filter.candidate(Duration::from_secs(64), 0.0, 0.0).unwrap();
        assert!(candidate.offset.abs() < 1e-9, "{candidate:?}");
        let fresh = filter.fresh(0.0).unwrap();
        assert!((fresh.offset + 0.003).abs() < 1e-9 && fresh.noise > 0.003, "{fresh:?}");
    }

    #[test]
    fn the_oldest_goes_and_distance_grows_with_age() {
        let mut filter = Filter::default();
        for i in 0..20 {
            filter.push(
                Duration::from_secs(i),
                sample(0.0, 0.01 + f64::from(u32::try_from(i).unwrap())),
                0.0,
            );
        }
        assert_eq!(filter.stages.len(), STAGES);
        assert!((filter.least_delay() - 12.01).abs() < 1e-9);
        filter.clear();
        filter.push(Duration::ZERO, sample(0.0, 0.01), 0.0);
        let distance =
            |secs| filter.candidate(Duration::from_secs(secs), 0.0, 0.0).unwrap().distance;
        assert!((distance(1000) - distance(0) - 0.015).abs() < 1e-9);
    }

    #[test]
    fn a_frequency_is_the_slope_of_the_samples() {
        let mut filter = Filter::default();
        for i in 0..5 {
            assert_eq!(filter.frequency().is_some(), i >= 3, "{i}");
            let seconds = f64::from(i) * 64.0;
            // What was corrected so far is part of the free clock's line.
            let sample = sample(seconds * 10e-6, 0.02);
            filter.push(Duration::from_secs_f64(seconds), sample, seconds * 20e-6);
        }
        assert!(filter.frequency().is_some_and(|found| (found - 30e-6).abs() < 1e-12));
    }

    #[test]
    fn reach_remembers_eight_questions() {
        let mut reach = Reach::default();
        for answered in [true, true, false] {
            reach.asked();
            if answered {
                reach.answered();
            }
        }
        assert_eq!(reach, Reach(0b110));
        (0..8).for_each(|_| reach.asked());
        assert_eq!(reach, Reach(0));
    }
}
