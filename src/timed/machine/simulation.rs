//! The engine against a world of its own: an oscillator that wanders, servers near and far, some of
//! them lying, a net that loses and delays. Virtual hours pass in microseconds.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::*;

/// A source of numbers that are the same in each run (xorshift64*).
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to 1.
    pub(super) fn unit(&mut self) -> f64 {
        f64::from(u32::try_from(self.bits() >> 32).unwrap_or_default()) / 4_294_967_296.0
    }

    /// Of mean 0 and standard deviation 1, nearly: the sum of twelve.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// Of mean 1: how long until the next of things that come at random.
    fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }
}

/// A server and the way to it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Its error, in seconds: it lies, or has a bad clock.
    pub(super) error: f64,
    /// How fast that grows, in seconds per second.
    pub(super) error_rate: f64,
    /// The least delay there and back, in seconds.
    pub(super) to: f64,
    pub(super) back: f64,
    /// Mean of what queues add to each way, in seconds.
    pub(super) queue: f64,
    /// How many questions of 1 get no answer.
    pub(super) loss: f64,
    /// What it answers instead.
    pub(super) kiss: Option<Kiss>,
}

impl Peer {
    pub(super) fn near(queue: f64) -> Self {
        Self { error: 0.0, error_rate: 0.0, to: 0.010, back: 0.010, queue, loss: 0.0, kiss: None }
    }

    pub(super) fn lying(error: f64) -> Self {
        Self { error, ..Self::near(0.001) }
    }
}

pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) peers: Vec<Peer>,
    dice: Dice,
    /// What really passed, in seconds.
    pub(super) true_secs: f64,
    /// What the clock shows less what is right.
    pub(super) error: f64,
    /// What the engine takes for time.
    up: Duration,
    /// How much too fast the oscillator is.
    pub(super) oscillator: f64,
    /// Its change in a second: standard deviation.
    pub(super) wander: f64,
    rate: f64,
    /// Answers under way: when they are there.
    answers: Vec<(f64, Event)>,
    pub(super) steps: Vec<Step>,
    pub(super) news: Vec<News>,
    pub(super) questions: BTreeMap<usize, u32>,
    pub(super) report: Option<Report>,
    /// 1970, when it all began.
    pub(super) unix: Duration,
    pub(super) nameless: bool,
}

impl World {
    pub(super) fn new(seed: u64, peers: Vec<Peer>) -> Self {
        let servers =
            (0..peers.len()).map(|i| TimeServer::Ntp(format!("ntp{i}.example.org"))).collect();
        Self {
            engine: Engine::new(servers, Duration::ZERO, 0.0, false),
            peers,
            dice: Dice::new(seed),
            true_secs: 0.0,
            error: 0.0,
            up: Duration::ZERO,
            oscillator: 0.0,
            wander: 0.0,
            rate: 0.0,
            answers: Vec::new(),
            steps: Vec::new(),
            news: Vec::new(),
            questions: BTreeMap::new(),
            report: None,
            unix: Duration::from_secs(1_790_000_000),
            nameless: false,
        }
    }

    /// Lets so many seconds pass; the errors at each event.
    pub(super) fn run(&mut self, seconds: f64) -> Errors {
        let end = self.true_secs + seconds;
        let mut errors = Errors::default();
        while self.true_secs < end {
            let wake = self.engine.wake_at().map_or(f64::INFINITY, |at| {
                let left = at.saturating_sub(self.up).as_secs_f64();
                self.true_secs + left / (1.0 + self.oscillator + self.rate) + 1e-9
            });
            let arrival = self.answers.iter().map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
            let next = wake.min(arrival).min(end).min(self.true_secs + 30.0);
            self.pass(next - self.true_secs);
            errors.take(self.error);
            if let Some(at) = self.answers.iter().position(|(at, _)| *at <= self.true_secs) {
                let event = self.answers.remove(at).1;
                self.handle(event);
            } else if wake <= self.true_secs {
                self.handle(Event::Timer);
            }
        }
        errors
    }

    fn pass(&mut self, seconds: f64) {
        let seconds = seconds.max(0.0);
        self.true_secs += seconds;
        self.error += seconds * (self.oscillator + self.rate);
        self.up += Duration::from_secs_f64(seconds * (1.0 + self.oscillator + self.rate));
        if self.wander > 0.0 {
            self.oscillator += self.dice.normal() * self.wander * seconds.sqrt();
            self.oscillator = self.oscillator.clamp(-100e-6, 100e-6);
        }
        for peer in &mut self.peers {
            peer.error += peer.error_rate * seconds;
        }
    }

    /// The machine sleeps; its clock is set from one that knows seconds only.
    pub(super) fn suspend(&mut self, seconds: f64) {
        self.true_secs += seconds;
        self.up += Duration::from_secs_f64(seconds);
        self.error = self.dice.unit() - 0.5;
        self.handle(Event::Resumed);
    }

    /// Somebody sets the clock.
    pub(super) fn set(&mut self, by: f64) {
        self.error += by;
        self.handle(Event::Set(by));
    }

    fn moment(&mut self) -> Moment {
        let random = u32::try_from(self.dice.bits() >> 32).unwrap_or_default();
        let unix = self.unix + Duration::from_secs_f64(self.true_secs);
        Moment { up: self.up, unix, random }
    }

    pub(super) fn handle(&mut self, event: Event) {
        let now = self.moment();
        for action in self.engine.handle(now, event) {
            match action {
                Action::Resolve(id) => {
                    let host = u8::try_from(self.index(id)).unwrap_or_default();
                    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, host));
                    let found = if self.nameless { vec![] } else { vec![address] };
                    self.answers.push((self.true_secs + 0.05, Event::Resolved(id, found)));
                }
                Action::Query(id, era, place) => {
                    let Place::Server(server, _) = place else { continue };
                    let index = self.index(server);
                    *self.questions.entry(index).or_default() += 1;
                    let answer = self.answer(id, era, index);
                    self.answers.push(answer);
                }
                Action::Step(step) => {
                    self.error += step.by;
                    self.steps.push(step);
                }
                Action::Rate(ppm) => {
                    assert!(ppm.abs() <= MAX_RATE * 1e6 + 1e-9, "{ppm} ppm");
                    self.rate = ppm * 1e-6;
                }
                Action::Report(report) => self.report = Some(report),
                Action::Tell(news) => self.news.push(news),
            }
        }
    }

    /// Which of the peers a server is: their names say so.
    fn index(&self, id: ServerId) -> usize {
        let name = self.engine.server(id).map(ToString::to_string).unwrap_or_default();
        let number = name.trim_start_matches("ntp").split('.').next().unwrap_or_default();
        number.parse().expect("servers are named ntpN.example.org")
    }

    fn answer(&mut self, id: SourceId, era: Era, index: usize) -> (f64, Event) {
        let peer = self.peers[index].clone();
        if self.dice.unit() < peer.loss {
            return (self.true_secs + 5.0, Event::Missed(id, Miss::Nothing));
        }
        let to = peer.to + peer.queue * self.dice.exponential();
        let back = peer.back + peer.queue * self.dice.exponential();
        if let Some(kiss) = peer.kiss {
            return (self.true_secs + to + back, Event::Missed(id, Miss::Kiss(kiss)));
        }
        let sample = Sample {
            offset: peer.error - self.error + (to - back) / 2.0,
            delay: to + back,
            precision: 1e-6,
            root_delay: 0.0,
            root_dispersion: 0.0005,
            stratum: 1,
            leap: Leap::None,
            reference: *b"GPS\0",
        };
        (self.true_secs + to + back, Event::Sampled(id, era, sample))
    }
}

/// What was seen of the clock's error, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Errors {
    pub(super) largest: f64,
    squares: f64,
    count: f64,
}

impl Errors {
    fn take(&mut self, error: f64) {
        self.largest = self.largest.max(error.abs());
        self.squares += error * error;
        self.count += 1.0;
    }

    pub(super) fn rms(&self) -> f64 {
        (self.squares / self.count).sqrt()
    }
}

const HOUR: f64 = 3600.0;
/// A machine in a room whose temperature changes: some 0.1 ppm in an hour.
const WANDER: f64 = 2e-9;

fn honest(count: usize, queue: f64) -> Vec<Peer> {
    vec![Peer::near(queue); count]
}

#[test]
fn a_clock_that_is_far_off_is_set_at_once_and_then_kept() {
    for seed in 0..20 {
        let mut world = World::new(seed, honest(4, 0.002));
        world.error = if seed % 2 == 0 { 86_400.0 * 400.0 } else { -12.5 };
        world.oscillator = 80e-6 - 8e-6 * f64::from(u32::try_from(seed).unwrap_or_default());
        world.wander = WANDER;
        world.run(10.0);
        assert!(world.engine.synchronized() && world.steps.len() == 1, "{:?}", world.news);
        assert!(!world.steps[0].panic && world.error.abs() < 0.01, "{}", world.error);
        world.run(2.0 * HOUR);
        let errors = world.run(50.0 * HOUR);
        assert_eq!(world.steps.len(), 1);
        assert!(errors.largest < 0.005 && errors.rms() < 0.001, "seed {seed}: {errors:?}");
        let report = world.report.map(|report| (report.largest < 0.2, report.leap));
        assert_eq!(report, Some((true, Leap::None)));
        let polls = *world.questions.get(&0).unwrap_or(&0);
        assert!(polls < 4000, "{polls} questions in 52 hours");
    }
}

#[test]
fn a_small_offset_at_the_start_is_slewed() {
    let mut world = World::new(1, honest(1, 0.0005));
    world.error = 0.1;
    world.run(20.0);
    assert!(world.steps.is_empty() && world.error > 0.08, "{}", world.error);
    world.run(HOUR);
    assert!(world.steps.is_empty() && world.error.abs() < 0.002, "{}", world.error);
}

#[test]
fn liars_in_the_minority_are_never_followed() {
    for seed in 0..30 {
        let mut dice = Dice::new(1000 + seed);
        let liars = 1 + usize::try_from(seed % 4).unwrap_or_default();
        let mut peers = honest(liars + 1, 0.001);
        for _ in 0..liars {
            let mut liar = Peer::lying((dice.unit() - 0.5) * 20.0);
            // Some start well, and drift away.
            if dice.unit() < 0.5 {
                (liar.error, liar.error_rate) = (0.0, (dice.unit() - 0.5) * 1e-3);
            }
            peers.push(liar);
        }
        let mut world = World::new(seed, peers);
        world.error = 3.0;
        world.wander = WANDER;
        world.oscillator = -30e-6;
        world.run(HOUR);
        let errors = world.run(40.0 * HOUR);
        assert!(errors.largest < 0.03, "seed {seed}, {liars} liars: {errors:?} {:?}", world.news);
        assert!(world.steps.len() <= 1 && !world.steps[0].panic, "{:?}", world.steps);
        let told = |news: &News| matches!(news, News::Falseticker(..));
        assert!(world.news.iter().any(told), "{:?}", world.news);
    }
}

#[test]
fn two_that_contradict_each_other_are_both_ignored() {
    let mut world = World::new(7, vec![Peer::near(0.001), Peer::lying(10.0)]);
    world.error = 1.0;
    world.run(HOUR);
    assert!(!world.engine.synchronized() && world.steps.is_empty());
    assert_eq!(world.news, [News::Undecided]);
    let asked: u32 = world.questions.values().sum();
    assert!(asked < 400, "{asked} questions to nobody's use");
}

#[test]
fn delays_that_differ_and_losses_cost_no_more_than_half_the_difference() {
    for seed in 0..10 {
        let peer = Peer { to: 0.010, back: 0.050, queue: 0.005, loss: 0.4, ..Peer::near(0.0) };
        let mut world = World::new(seed, vec![peer]);
        world.error = -40.0;
        world.oscillator = 100e-6;
        world.wander = WANDER;
        world.run(4.0 * HOUR);
        let errors = world.run(100.0 * HOUR);
        assert!(errors.largest < 0.020 + 0.010, "seed {seed}: {errors:?}");
        assert_eq!(world.steps.len(), 1, "{:?}", world.news);
    }
}

#[test]
fn a_server_that_jumps_for_a_moment_is_not_followed_but_for_good_it_is() {
    let mut world = World::new(3, honest(1, 0.001));
    world.run(4.0 * HOUR);
    world.peers[0].error = 5.0;
    world.run(60.0);
    world.peers[0].error = 0.0;
    world.run(HOUR);
    assert!(world.steps.is_empty() && world.error.abs() < 0.005, "{}", world.error);
    // It is the only one, and sticks to it.
    world.peers[0].error = 5.0;
    world.run(2.0 * HOUR);
    assert!((world.error - 5.0).abs() < 0.01, "{}", world.error);
    assert_eq!(world.steps.iter().filter(|step| step.panic).count(), 1, "{:?}", world.steps);
}

#[test]
fn a_server_that_moves_a_little_is_slewed_to() {
    let mut world = World::new(4, honest(1, 0.0005));
    world.run(4.0 * HOUR);
    world.peers[0].error = 0.2;
    world.run(2.0 * HOUR);
    assert!(world.steps.is_empty() && (world.error - 0.2).abs() < 0.01, "{}", world.error);
}

#[test]
fn after_a_suspension_the_clock_is_set_anew() {
    let mut world = World::new(5, honest(3, 0.001));
    world.oscillator = 20e-6;
    world.run(6.0 * HOUR);
    for _ in 0..10 {
        world.suspend(5.0 * HOUR);
        assert!(!world.engine.synchronized());
        world.run(20.0);
        assert!(world.engine.synchronized() && world.error.abs() < 0.135, "{}", world.error);
        world.run(HOUR);
        assert!(world.error.abs() < 0.003, "{}", world.error);
    }
    assert!(world.steps.iter().all(|step| !step.panic), "{:?}", world.steps);
}

#[test]
fn who_sets_the_clock_behind_our_back_is_contradicted() {
    let mut world = World::new(6, honest(3, 0.001));
    world.run(2.0 * HOUR);
    world.set(-3600.0);
    world.run(HOUR);
    assert!(world.error.abs() < 0.005, "{}", world.error);
    assert_eq!(world.steps.len(), 1);
    assert!(world.steps[0].panic);
}

#[test]
fn a_hundred_ppm_that_wanders_is_followed_for_a_thousand_hours() {
    for seed in 0..4 {
        let mut world = World::new(seed, honest(4, 0.001));
        world.oscillator = if seed % 2 == 0 { 100e-6 } else { -100e-6 };
        world.wander = 3.0 * WANDER;
        world.run(3.0 * HOUR);
        let errors = world.run(1000.0 * HOUR);
        assert!(errors.largest < 0.006 && errors.rms() < 0.001, "seed {seed}: {errors:?}");
        assert!(world.steps.is_empty());
    }
}

#[test]
fn a_server_that_refuses_is_not_asked_again_and_one_that_slows_is_asked_less() {
    let mut peers = honest(4, 0.001);
    peers[1].kiss = Some(Kiss(*b"DENY"));
    peers[2].kiss = Some(Kiss(*b"RATE"));
    peers[3].kiss = Some(Kiss(*b"RSTR"));
    let mut world = World::new(8, peers);
    world.run(5.0 * HOUR);
    assert_eq!((world.questions.get(&1), world.questions.get(&3)), (Some(&1), Some(&1)));
    let slowed = *world.questions.get(&2).unwrap_or(&0);
    assert!(slowed < 20, "{slowed} questions to one that is asked too often");
    assert!(world.engine.synchronized());
    assert!(world.news.contains(&News::Refused("192.0.2.1".to_owned(), Kiss(*b"DENY"))));
}

#[test]
fn without_names_or_answers_it_asks_less_and_less_and_recovers() {
    let mut world = World::new(9, honest(2, 0.001));
    world.nameless = true;
    world.run(HOUR);
    assert!(world.questions.is_empty());
    world.nameless = false;
    world.peers.iter_mut().for_each(|peer| peer.loss = 1.0);
    world.run(2.0 * HOUR);
    let asked: u32 = world.questions.values().sum();
    assert!((20..400).contains(&asked), "{asked}");
    world.peers.iter_mut().for_each(|peer| peer.loss = 0.0);
    world.run(180.0);
    assert!(world.engine.synchronized());
    world.run(HOUR);
    world.peers.iter_mut().for_each(|peer| peer.loss = 1.0);
    world.run(24.0 * HOUR);
    assert_eq!(world.news.last(), Some(&News::Alone));
    // A day by what was learned of the oscillator.
    assert!(world.error.abs() < 0.1, "{}", world.error);
}

#[test]
fn servers_that_are_late_for_a_leap_second_are_not_followed_through_it() {
    for leap in [1.0, -1.0] {
        let mut world = World::new(11, honest(5, 0.001));
        world.wander = WANDER;
        world.run(6.0 * HOUR);
        // The kernel and three servers take it on time; two go on as before, one for long.
        world.peers[3].error = leap;
        world.peers[4].error = leap;
        let errors = world.run(30.0);
        world.peers[3].error = 0.0;
        let smeared = world.run(20.0 * HOUR);
        assert!(errors.largest < 0.01 && smeared.largest < 0.01, "{errors:?} {smeared:?}");
        assert!(world.steps.is_empty(), "{:?}", world.steps);
    }
}

#[test]
fn everything_at_once_for_a_month_leaves_the_clock_right() {
    let mut peers = honest(3, 0.003);
    peers.push(Peer { to: 0.004, back: 0.012, loss: 0.3, ..Peer::near(0.002) });
    peers.push(Peer::lying(0.7));
    peers.push(Peer { error_rate: 2e-6, ..Peer::lying(0.0) });
    let mut world = World::new(12, peers);
    (world.oscillator, world.wander, world.error) = (-90e-6, 3.0 * WANDER, 1e6);
    world.run(3.0 * HOUR);
    let mut largest = 0f64;
    for day in 0..30u32 {
        // Servers fall silent in turns, the machine sleeps, somebody sets the clock.
        let silent = usize::try_from(day % 3).unwrap_or_default();
        world.peers[silent].loss = 0.95;
        match day % 5 {
            1 => world.suspend(7.0 * HOUR),
            3 => world.set(-2.0),
            _ => {}
        }
        world.run(2.0 * HOUR);
        largest = largest.max(world.run(22.0 * HOUR).largest);
        world.peers[silent].loss = 0.0;
    }
    assert!(largest < 0.02, "{largest} {:?}", world.steps);
    assert!(world.engine.synchronized());
}
