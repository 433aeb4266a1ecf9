//! When a certificate is asked for, and again after a failure. Pure: both clocks are passed in.
//!
//! A certificate is renewed at two thirds of its life, by the wall clock, which everybody judges it by, and
//! by the monotonic one, in case the former stands still. A wall clock outside its validity asks for
//! another as well; when that does not help, because the clock is wrong, the tries get rarer, but never
//! end: the node comes back with its clock.

use std::time::{Duration, SystemTime};

use orlop_rt::Backoff;

/// Between tries, at first
const RETRY_MIN: Duration = Duration::from_secs(2);
/// and at last.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) wall: SystemTime,
    /// Since some moment; never set.
    pub(crate) monotonic: Duration,
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

/// Keeps account of one certificate, issued on the basis of a `B`: names, authorities, whatever must lead
/// to another one when it changes.
#[derive(Debug)]
pub(crate) struct Renewal<B> {
    held: Option<Held<B>>,
    /// What was tried with last.
    tried: Option<B>,
    backoff: Backoff,
    /// No sooner, by the monotonic clock.
    next_try: Duration,
    failures: u32,
}

#[derive(Debug)]
struct Held<B> {
    basis: B,
    validity: Validity,
    /// By the monotonic clock.
    since: Duration,
}

impl<B: Clone + PartialEq> Renewal<B> {
    /// There is none yet.
    pub(crate) fn new() -> Self {
        let backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        Self { held: None, tried: None, backoff, next_try: Duration::ZERO, failures: 0 }
    }

    /// Whether to ask for one now, on this basis. If so, [`Self::succeeded`] or [`Self::failed`] follows.
    pub(crate) fn due(&mut self, basis: &B, now: Now) -> bool {
        if self.held.as_ref().is_some_and(|held| held.is_good(basis, now)) {
            self.start_again();
            return false;
        }
        if self.tried.as_ref() != Some(basis) {
            self.start_again();
            self.tried = Some(basis.clone());
        }
        now.monotonic >= self.next_try
    }

    /// There is a new one. `random` spreads the nodes of a cluster.
    pub(crate) fn succeeded(&mut self, basis: B, validity: Validity, now: Now, random: u32) {
        self.held = Some(Held { basis, validity, since: now.monotonic });
        self.failures = 0;
        self.next_try = now.monotonic + self.backoff.next(random);
    }

    /// There is none, and the old one is kept.
    pub(crate) fn failed(&mut self, now: Now, random: u32) {
        self.failures = self.failures.saturating_add(1);
        self.next_try = now.monotonic + self.backoff.next(random);
    }

    /// How often in a row it has failed, when that is worth a line: at the first, and each doubling.
    pub(crate) fn failures_to_tell(&self) -> Option<u32> {
        self.failures.is_power_of_two().then_some(self.failures)
    }

    fn start_again(&mut self) {
        self.backoff.reset();
        self.next_try = Duration::ZERO;
    }
}

impl<B: PartialEq> Held<B> {
    fn is_good(&self, basis: &B, now: Now) -> bool {
        let Validity { not_before, not_after } = self.validity;
        let life = not_after.duration_since(not_before).unwrap_or_default();
        self.basis == *basis
            && now.wall >= not_before
            && now.wall + life / 3 < not_after
            && now.monotonic.saturating_sub(self.since) < life * 2 / 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);
    const LIFE: Duration = Duration::from_secs(24 * 3600);

    fn start() -> Now {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        Now { wall, monotonic: 10 * SECOND }
    }

    fn later(now: Now, by: Duration) -> Now {
        Now { wall: now.wall + by, monotonic: now.monotonic + by }
    }

    fn issued(wall: SystemTime) -> Validity {
        Validity { not_before: wall, not_after: wall + LIFE }
    }

    /// One that was issued at `start` for "a".
    fn held() -> Renewal<&'static str> {
        let mut renewal = Renewal::new();
        assert!(renewal.due(&"a", start()));
        renewal.succeeded("a", issued(start().wall), start(), 0);
        renewal
    }

    #[test]
    fn it_is_renewed_at_two_thirds_of_its_life_or_when_its_basis_changes() {
        let mut renewal = held();
        assert!(!renewal.due(&"a", start()));
        assert!(!renewal.due(&"a", later(start(), LIFE * 2 / 3 - SECOND)));
        assert!(renewal.due(&"a", later(start(), LIFE * 2 / 3)));
        assert!(held().due(&"b", start()), "at once");
    }

    #[test]
    fn a_clock_that_stands_still_does_not_keep_it_from_being_renewed() {
        let frozen = Now { monotonic: start().monotonic + LIFE * 2 / 3, ..start() };
        assert!(held().due(&"a", frozen));
    }

    #[test]
    fn a_clock_that_jumps_and_comes_back_costs_nothing() {
        let mut renewal = held();
        for wall in [SystemTime::UNIX_EPOCH, start().wall + 1000 * LIFE] {
            let jumped = Now { wall, monotonic: start().monotonic + 5 * SECOND };
            assert!(renewal.due(&"a", jumped));
            // Nobody believes a clock like that.
            renewal.failed(jumped, 0);
            assert!(!renewal.due(&"a", jumped), "not at once");
            let back = later(start(), 10 * SECOND);
            assert!(!renewal.due(&"a", back), "the old one is good again");
        }
    }

    #[test]
    fn a_wrong_clock_leads_to_rare_tries_that_never_end() {
        let mut renewal = Renewal::new();
        let wrong = |tick: u64| Now {
            wall: SystemTime::UNIX_EPOCH,
            monotonic: Duration::from_secs(5 * tick),
        };
        let mut tries = Vec::new();
        for tick in 0..720 {
            if renewal.due(&"a", wrong(tick)) {
                tries.push(tick);
                // trustd's clock is right, so what it issues is not valid yet for us.
                renewal.succeeded("a", issued(start().wall), wrong(tick), 0);
            }
        }
        assert!((50..70).contains(&tries.len()), "{} tries in an hour", tries.len());
        assert!(tries.last().is_some_and(|last| *last > 700));
        assert!(!renewal.due(&"a", start()), "once the clock is set, all is well");
    }

    #[test]
    fn failures_are_told_at_each_doubling_and_a_new_basis_is_tried_at_once() {
        let mut renewal = Renewal::new();
        let mut now = start();
        let mut told = Vec::new();
        for _ in 0..20 {
            assert!(renewal.due(&"no address yet", now));
            renewal.failed(now, 0);
            told.extend(renewal.failures_to_tell());
            assert!(!renewal.due(&"no address yet", now));
            now = later(now, RETRY_MAX);
        }
        assert_eq!(told, [1, 2, 4, 8, 16]);
        assert!(renewal.due(&"no address yet", now));
        renewal.failed(now, 0);
        assert!(renewal.due(&"an address", now));
    }

    #[test]
    fn an_old_one_is_kept_while_renewing_fails_and_trying_goes_on() {
        let mut renewal = held();
        let mut tries = 0;
        let mut now = later(start(), LIFE * 2 / 3);
        while now.wall < start().wall + LIFE + HOUR {
            if renewal.due(&"a", now) {
                renewal.failed(now, 0);
                tries += 1;
            }
            now = later(now, 5 * SECOND);
        }
        assert!(tries > 500, "{tries}");
        assert!(renewal.held.is_some());
    }

    /// A node with its clock and who issues its certificates, for a day of jumps.
    struct World {
        renewal: Renewal<&'static str>,
        /// Set by whoever sets clocks.
        wall: SystemTime,
        /// By the monotonic clock.
        now: Duration,
        issuer: Issuer,
    }

    #[derive(Clone, Copy)]
    enum Issuer {
        /// The node itself, by its own clock.
        Own,
        /// trustd, whose clock is right, and whom the node believes as long as its own is not wrong by more
        /// than a year: it judges trustd's certificate, too.
        Trustd,
    }

    impl World {
        fn new(issuer: Issuer) -> Self {
            let Now { wall, monotonic } = start();
            Self { renewal: Renewal::new(), wall, now: monotonic, issuer }
        }

        fn is_right(&self) -> SystemTime {
            start().wall + (self.now - start().monotonic)
        }

        fn jump(&mut self, seconds: i64) {
            let by = Duration::from_secs(seconds.unsigned_abs());
            let right = self.is_right();
            self.wall = if seconds < 0 { right - by } else { right + by };
        }

        /// Looks at the certificate every five seconds for so long; how often it asked for another.
        fn run(&mut self, period: Duration) -> usize {
            let (mut tries, end) = (0, self.now + period);
            while self.now < end {
                let (now, right) = (Now { wall: self.wall, monotonic: self.now }, self.is_right());
                if self.renewal.due(&"a", now) {
                    tries += 1;
                    let off = now.wall.duration_since(right).unwrap_or_else(|e| e.duration());
                    let validity = match self.issuer {
                        Issuer::Own => Some(issued(now.wall)),
                        Issuer::Trustd => (off < 365 * LIFE).then(|| issued(right)),
                    };
                    match validity {
                        Some(validity) => self.renewal.succeeded("a", validity, now, 0),
                        None => self.renewal.failed(now, 0),
                    }
                }
                self.now += 5 * SECOND;
                self.wall += 5 * SECOND;
            }
            tries
        }

        fn is_shown_a_valid_one(&self) -> bool {
            let held = self.renewal.held.as_ref();
            held.is_some_and(|Held { validity, .. }| {
                (validity.not_before..validity.not_after).contains(&self.is_right())
            })
        }
    }

    #[test]
    fn years_of_wrong_time_end_a_minute_after_the_clock_is_right() {
        const DAY: i64 = 24 * 3600;
        let jumps = [1, -1, DAY, -DAY, 400 * DAY, -400 * DAY, 20_000 * DAY, -20_000 * DAY];
        for issuer in [Issuer::Own, Issuer::Trustd] {
            let mut world = World::new(issuer);
            world.run(HOUR);
            // Each of them from the right time, then straight from one wrong time to the next.
            for jump in jumps.iter().chain(&jumps) {
                world.jump(*jump);
                let tries = world.run(3 * HOUR);
                assert!(tries <= 3 * 70, "{tries} tries in three hours");
            }
            for jump in jumps {
                world.jump(jump);
                world.run(3 * HOUR);
                world.jump(0);
                world.run(RETRY_MAX + 5 * SECOND);
                assert!(world.is_shown_a_valid_one(), "after {jump} s");
                assert!(world.run(HOUR) <= 1, "no more than one that was due anyway");
            }
        }
    }
}
