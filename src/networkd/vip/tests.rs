//! Elections in virtual time: an etcd of a few lines, nodes whose clocks run at other speeds and who are cut off,
//! stand still and lose answers, and never two holders.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const STEP: Duration = Duration::from_millis(20);
/// A kernel's lifetimes are whole seconds, and it looks at them so late at worst.
const KERNEL_SLACK: Duration = Duration::from_millis(1250);

/// The key and the leases, in true time.
#[derive(Default)]
struct Etcd {
    holder: Option<(usize, Lease)>,
    leases: BTreeMap<Lease, Duration>,
    granted: Lease,
}

impl Etcd {
    fn expire(&mut self, at: Duration) {
        self.leases.retain(|_, ends| *ends > at);
        self.holder = self.holder.filter(|(_, lease)| self.leases.contains_key(lease));
    }

    fn ask(&mut self, at: Duration, node: usize, action: Action) -> Answer {
        self.expire(at);
        match action {
            Action::Campaign if self.holder.is_some() => Answer::Taken,
            Action::Campaign => {
                self.granted += 1;
                self.leases.insert(self.granted, at + TTL);
                self.holder = Some((node, self.granted));
                Answer::Won(self.granted)
            }
            Action::Renew(lease) if self.holder == Some((node, lease)) => {
                self.leases.insert(lease, at + TTL);
                Answer::Kept
            }
            Action::Renew(_) => Answer::Lost,
            Action::Release(lease) => {
                self.leases.remove(&lease);
                self.expire(at);
                Answer::Failed
            }
            other => panic!("{other:?} is no request"),
        }
    }
}

/// What is on its way.
#[derive(Clone, Copy)]
enum Way {
    /// To etcd, until then.
    There(Duration, Action),
    /// Back from etcd.
    Back(Duration, Answer),
    /// It never comes.
    Nowhere,
}

struct Node {
    election: Election,
    /// Ours for each thousand of true milliseconds.
    speed: u32,
    /// How long the kernel has the address, by our clock.
    until: Option<Uptime>,
    /// A request, and by our clock when it is given up.
    request: Option<(Way, Uptime)>,
    cut_off: bool,
    still: bool,
}

impl Node {
    fn clock(&self, at: Duration) -> Uptime {
        at * self.speed / 1000
    }

    fn has_it(&self, at: Duration) -> bool {
        self.until.is_some_and(|until| self.clock(at) < until)
    }
}

/// Chance, and what happens to nodes when.
struct World {
    at: Duration,
    etcd: Etcd,
    nodes: Vec<Node>,
    dice: u64,
    /// Whether answers are late now and then.
    slow: bool,
}

impl World {
    fn new(speeds: &[u32], dice: u64) -> Self {
        let node = |speed: &u32| {
            let mut election = Election::new(Duration::ZERO);
            election.handle(Duration::ZERO, 0, Event::Carrier(true));
            let speed = *speed;
            Node { election, speed, until: None, request: None, cut_off: false, still: false }
        };
        let nodes = speeds.iter().map(node).collect();
        Self { at: Duration::ZERO, etcd: Etcd::default(), nodes, dice: dice | 1, slow: true }
    }

    fn throw(&mut self, below: u64) -> u64 {
        self.dice ^= self.dice >> 12;
        self.dice ^= self.dice << 25;
        self.dice ^= self.dice >> 27;
        self.dice.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }

    /// One in twelve is slow, up to twice what is waited for.
    fn delay(&mut self) -> Duration {
        let slow = self.throw(12) == 0 && self.slow;
        Duration::from_millis(self.throw(if slow { 5000 } else { 40 }))
    }

    fn run(&mut self, time: Duration) {
        let end = self.at + time;
        while self.at < end {
            self.at += STEP;
            for i in 0..self.nodes.len() {
                self.travel(i);
                if !self.nodes[i].still {
                    self.wake(i);
                }
            }
            let holders = self.holders();
            assert!(holders.len() <= 1, "{holders:?} have it at {:?}", self.at);
        }
    }

    fn holders(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|i| self.nodes[*i].has_it(self.at)).collect()
    }

    /// What is on its way goes on, whatever the node does.
    fn travel(&mut self, i: usize) {
        let Some((way, limit)) = self.nodes[i].request else { return };
        let cut = self.nodes[i].cut_off;
        let next = match way {
            Way::There(arrives, action) if arrives <= self.at => {
                let answer = (!cut).then(|| self.etcd.ask(self.at, i, action));
                match answer {
                    Some(answer) => Way::Back(self.at + self.delay(), answer),
                    None => Way::Nowhere,
                }
            }
            Way::Back(arrives, _) if arrives <= self.at && cut => Way::Nowhere,
            other => other,
        };
        self.nodes[i].request = Some((next, limit));
    }

    fn wake(&mut self, i: usize) {
        let now = self.nodes[i].clock(self.at);
        // As the driver does: first the timer, then the answer.
        if self.nodes[i].election.wake_at().is_some_and(|at| at <= now) {
            self.tell(i, Event::TimerFired);
        }
        let answer = match self.nodes[i].request {
            Some((Way::Back(arrives, answer), _)) if arrives <= self.at => Some(answer),
            Some((_, limit)) if limit <= now => Some(Answer::Failed),
            _ => None,
        };
        if let Some(answer) = answer {
            self.nodes[i].request = None;
            self.tell(i, Event::Answered(answer));
        }
    }

    fn tell(&mut self, i: usize, event: Event) {
        let (now, chance) = (self.nodes[i].clock(self.at), self.throw(1000));
        for action in self.nodes[i].election.handle(now, chance, event) {
            match action {
                Action::Hold(until) => {
                    // Whole seconds of what is left, and what the kernel adds.
                    let left = Duration::from_secs((until - now).as_secs());
                    self.nodes[i].until = Some(now + left + KERNEL_SLACK);
                }
                Action::Drop => self.nodes[i].until = None,
                Action::Campaign | Action::Renew(_) => {
                    let there = Way::There(self.at + self.delay(), action);
                    self.nodes[i].request = Some((there, now + LIMIT));
                }
                Action::Release(_) => {
                    if !self.nodes[i].cut_off && self.throw(4) > 0 {
                        self.etcd.ask(self.at, i, action);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn never_two_have_it(
        dice: u64,
        speeds in proptest::collection::vec(900..1100u32, 2..4),
        troubles in proptest::collection::vec((0..3usize, 0..5u8, 100..12_000u64), 0..25),
    ) {
        let mut world = World::new(&speeds, dice);
        for (node, trouble, ms) in troubles {
            let node = node % speeds.len();
            match trouble {
                0 => world.nodes[node].cut_off = true,
                1 => world.nodes[node].still = true,
                2 => world.tell(node, Event::Carrier(false)),
                3 => world.tell(node, Event::Carrier(true)),
                _ => (world.nodes[node].cut_off, world.nodes[node].still) = (false, false),
            }
            world.run(Duration::from_millis(ms));
        }
        // When all is well again, somebody has it.
        for node in 0..speeds.len() {
            (world.nodes[node].cut_off, world.nodes[node].still) = (false, false);
            world.tell(node, Event::Carrier(true));
        }
        let since = world.at;
        while world.holders().is_empty() {
            world.run(STEP);
            prop_assert!(world.at < since + 10 * TTL, "nobody has it");
        }
    }
}

/// Three nodes, and the one that has it.
fn settled() -> (World, usize) {
    let mut world = World::new(&[1000, 1000, 1000], 7);
    world.slow = false;
    world.run(3 * TTL);
    let holders = world.holders();
    assert_eq!(holders.len(), 1);
    (world, holders[0])
}

/// How long it takes until another one has it.
fn until_another(world: &mut World, first: usize) -> Duration {
    let since = world.at;
    while world.holders().iter().all(|holder| *holder == first) {
        world.run(STEP);
        assert!(world.at < since + 10 * TTL, "nobody else has it");
    }
    world.at - since
}

#[test]
fn a_node_that_is_cut_off_gives_it_up_and_another_takes_it_when_its_lease_ends() {
    let (mut world, first) = settled();
    world.nodes[first].cut_off = true;
    let took = until_another(&mut world, first);
    assert!(took > TTL - RENEW - LIMIT && took < 2 * TTL, "{took:?}");
    world.nodes[first].cut_off = false;
    let second = world.holders()[0];
    world.run(TTL);
    assert!(!world.nodes[first].has_it(world.at) && second != first);
}

#[test]
fn a_node_that_stops_or_loses_its_link_hands_it_over_at_once() {
    for event in [Event::Stopped, Event::Carrier(false)] {
        let (mut world, first) = settled();
        world.tell(first, event);
        assert!(!world.nodes[first].has_it(world.at));
        let took = until_another(&mut world, first);
        assert!(took < 2 * TTL, "{took:?}");
        assert_eq!(world.nodes[first].election.wake_at(), None, "it campaigns no more");
    }
}

#[test]
fn a_node_that_stands_still_loses_it_in_the_kernel() {
    let (mut world, first) = settled();
    world.nodes[first].still = true;
    until_another(&mut world, first);
    world.nodes[first].still = false;
    world.run(TTL);
    assert!(!world.nodes[first].has_it(world.at));
}

const SECOND: Duration = Duration::from_secs(1);

/// An election that won at 1 s with an answer at 2 s.
fn holding() -> Election {
    let mut election = Election::new(SECOND);
    assert_eq!(election.wake_at(), None, "not without a carrier");
    assert_eq!(election.handle(SECOND, 0, Event::Carrier(true)), []);
    assert_eq!(election.wake_at(), Some(SECOND));
    assert_eq!(election.handle(SECOND, 0, Event::TimerFired), [Action::Campaign]);
    let won = Event::Answered(Answer::Won(5));
    assert_eq!(election.handle(2 * SECOND, 0, won), [Action::Hold(SECOND + HOLD)]);
    election
}

#[test]
fn time_counts_from_the_asking_and_not_from_the_answer() {
    let mut election = holding();
    assert_eq!(election.wake_at(), Some(SECOND + RENEW));
    let asked = SECOND + RENEW;
    assert_eq!(election.handle(asked, 0, Event::TimerFired), [Action::Renew(5)]);
    let kept = Event::Answered(Answer::Kept);
    assert_eq!(election.handle(asked + SECOND, 0, kept), [Action::Hold(asked + HOLD)]);
}

#[test]
fn an_answer_that_fails_or_says_no_drops_it_at_once() {
    for answer in [Answer::Lost, Answer::Failed, Answer::Taken] {
        let mut election = holding();
        election.handle(4 * SECOND, 0, Event::TimerFired);
        let done = election.handle(5 * SECOND, 0, Event::Answered(answer));
        assert_eq!(done, [Action::Drop, Action::Release(5)], "{answer:?}");
        assert!(election.wake_at().unwrap() >= 6 * SECOND && !election.holds());
    }
}

#[test]
fn without_an_answer_it_is_dropped_in_time() {
    let mut election = holding();
    election.handle(4 * SECOND, 0, Event::TimerFired);
    let end = election.wake_at().unwrap();
    assert_eq!(end, SECOND + HOLD);
    assert_eq!(election.handle(end, 0, Event::TimerFired), [Action::Drop, Action::Release(5)]);
    // The answer that comes now is to nobody.
    assert_eq!(election.handle(end, 0, Event::Answered(Answer::Kept)), []);
}

#[test]
fn what_is_won_too_late_is_given_back() {
    let mut election = Election::new(SECOND);
    election.handle(SECOND, 0, Event::Carrier(true));
    election.handle(SECOND, 0, Event::TimerFired);
    let won = Event::Answered(Answer::Won(5));
    assert_eq!(election.handle(SECOND + HOLD, 0, won), [Action::Release(5)]);
    // So is what was won when nobody wanted it any more.
    let mut election = Election::new(SECOND);
    election.handle(SECOND, 0, Event::Carrier(true));
    election.handle(SECOND, 0, Event::TimerFired);
    assert_eq!(election.handle(SECOND, 0, Event::Stopped), []);
    assert_eq!(election.handle(2 * SECOND, 0, won), [Action::Release(5)]);
}
