//! Elections in virtual time: a store of a few lines; curators whose clocks run at other speeds and who are cut off,
//! stand still, die, come back and lose answers; and never two whose guarded transactions succeed.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const STEP: Duration = Duration::from_millis(20);
/// How often the store looks for leases that have ended.
const EXPIRES_EVERY: Duration = Duration::from_millis(500);

/// Locks and leases, in true time.
#[derive(Default)]
struct Keeper {
    revision: u64,
    locks: BTreeMap<Bytes, (Place, LeaseId)>,
    leases: BTreeMap<LeaseId, Duration>,
    granted: u64,
    /// Counts what came and went.
    changes: u64,
}

impl Keeper {
    fn expire(&mut self, at: Duration) {
        let ended: Vec<_> =
            self.leases.iter().filter(|(_, ends)| **ends <= at).map(|(id, _)| *id).collect();
        ended.into_iter().for_each(|lease| self.end(lease));
    }

    fn end(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let before = self.locks.len();
        self.locks.retain(|_, (_, of)| *of != lease);
        self.changes += u64::from(self.locks.len() != before);
    }

    fn places(&self) -> Answer {
        Answer::Places(self.locks.values().map(|(place, _)| place.clone()).collect())
    }

    fn ask(&mut self, at: Duration, node: &NodeId, request: Request) -> Answer {
        match request {
            Request::Look => self.places(),
            Request::Remove(stale) => {
                for (key, modified) in stale {
                    if self.locks.get(&key).is_some_and(|(place, _)| place.modified == modified) {
                        self.locks.remove(&key);
                        self.changes += 1;
                    }
                }
                Answer::Removed
            }
            Request::Grant => {
                self.granted += 1;
                self.leases.insert(LeaseId(self.granted), at + TTL);
                Answer::Granted(LeaseId(self.granted))
            }
            Request::Claim(lease) | Request::Renew(lease) if !self.leases.contains_key(&lease) => {
                Answer::NoLease
            }
            Request::Claim(lease) => {
                let key = key(lease);
                if !self.locks.contains_key(&key) {
                    self.revision += 1;
                    self.changes += 1;
                    let (created, modified) = (Revision(self.revision), Revision(self.revision));
                    let node = Some(node.clone());
                    let place = Place { key: key.clone(), created, modified, node };
                    self.locks.insert(key, (place, lease));
                }
                self.places()
            }
            Request::Renew(lease) => {
                self.leases.insert(lease, at + TTL);
                self.places()
            }
            Request::Revoke(lease) => {
                self.end(lease);
                Answer::Removed
            }
        }
    }
}

/// A request on its way there or back. It arrives though nobody waits for the answer any more.
struct Message {
    node: usize,
    /// Of which life of the node, and which of its requests.
    number: (u32, u64),
    arrives: Duration,
    content: Content,
}

enum Content {
    Request(Request),
    Answer(Answer),
}

struct Node {
    id: NodeId,
    /// None while it is off.
    election: Option<Election>,
    life: u32,
    asked: u64,
    /// Ours for each thousand of true milliseconds.
    speed: u32,
    born: Duration,
    cut_off: bool,
    still: bool,
    /// What it has heard of the locks' changes.
    heard: u64,
}

impl Node {
    fn clock(&self, at: Duration) -> Uptime {
        (at - self.born) * self.speed / 1000
    }
}

struct World {
    at: Duration,
    keeper: Keeper,
    nodes: Vec<Node>,
    messages: Vec<Message>,
    dice: u64,
    /// Whether answers are late or lost now and then, and news too.
    bad: bool,
}

impl World {
    fn new(speeds: &[u32], dice: u64) -> Self {
        let node = |(i, speed): (usize, &u32)| {
            let id = NodeId::of_key(&[u8::try_from(i).unwrap_or(0); 32]);
            Node {
                election: Some(Election::new(id.clone(), Duration::ZERO)),
                id,
                life: 0,
                asked: 0,
                speed: *speed,
                born: Duration::ZERO,
                cut_off: false,
                still: false,
                heard: 0,
            }
        };
        let nodes = speeds.iter().enumerate().map(node).collect();
        let dice = dice | 1;
        let keeper = Keeper::default();
        Self { at: Duration::ZERO, keeper, nodes, messages: Vec::new(), dice, bad: true }
    }

    fn throw(&mut self, below: u64) -> u64 {
        self.dice ^= self.dice >> 12;
        self.dice ^= self.dice << 25;
        self.dice ^= self.dice >> 27;
        self.dice.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }

    /// One in twelve is slow, up to twice what is waited for.
    fn delay(&mut self) -> Duration {
        let slow = self.bad && self.throw(12) == 0;
        Duration::from_millis(self.throw(if slow { 5000 } else { 40 }))
    }

    fn run(&mut self, time: Duration) {
        let end = self.at + time;
        while self.at < end {
            self.at += STEP;
            if self.at.as_millis().is_multiple_of(EXPIRES_EVERY.as_millis()) {
                self.keeper.expire(self.at);
            }
            self.travel();
            for i in 0..self.nodes.len() {
                self.wake(i);
            }
            self.check();
        }
    }

    /// Who thinks it leads writes something, each step; and by its own clock it does not think so for too long.
    fn check(&self) {
        let succeeds = |lock: &Lock| {
            self.keeper.locks.get(&lock.key).is_some_and(|(place, _)| place.created == lock.created)
        };
        let leads = self.leaders();
        let writers: Vec<_> = leads.iter().filter(|(_, lock)| succeeds(lock)).collect();
        assert!(writers.len() <= 1, "{writers:?} write at {:?}", self.at);
        assert!(leads.len() <= 1, "{leads:?} serve at {:?}", self.at);
    }

    /// Who serves as the leader. Who stands still serves nobody.
    fn leaders(&self) -> Vec<(usize, Lock)> {
        let awake = self.nodes.iter().enumerate().filter(|(_, node)| !node.still);
        awake
            .filter_map(|(i, node)| match node.election.as_ref()?.office() {
                Office::Leads(Some(lock)) => Some((i, lock.clone())),
                _ => None,
            })
            .collect()
    }

    fn travel(&mut self) {
        let due: Vec<_> =
            self.messages.extract_if(.., |message| message.arrives <= self.at).collect();
        for Message { node, number, content, .. } in due {
            if self.nodes[node].cut_off || (self.bad && self.throw(30) == 0) {
                continue;
            }
            match content {
                Content::Request(request) => {
                    let id = self.nodes[node].id.clone();
                    let content = Content::Answer(self.keeper.ask(self.at, &id, request));
                    let arrives = self.at + self.delay();
                    self.messages.push(Message { node, number, arrives, content });
                }
                Content::Answer(answer) => {
                    let Node { life, asked, still, .. } = self.nodes[node];
                    if still {
                        let arrives = self.at + STEP;
                        let content = Content::Answer(answer);
                        self.messages.push(Message { node, number, arrives, content });
                    } else if number == (life, asked) {
                        self.tell(node, Event::Answered(answer));
                    }
                }
            }
        }
    }

    fn wake(&mut self, i: usize) {
        let node = &self.nodes[i];
        let Some(election) = node.election.as_ref().filter(|_| !node.still) else { return };
        if election.wake_at().is_some_and(|at| at <= node.clock(self.at)) {
            self.tell(i, Event::TimerFired);
        }
        let changes = self.keeper.changes;
        if !self.nodes[i].cut_off && self.nodes[i].heard != changes && self.throw(3) == 0 {
            self.nodes[i].heard = changes;
            // Now and then a watch hears nothing.
            if !(self.bad && self.throw(10) == 0) {
                self.tell(i, Event::Changed);
            }
        }
    }

    fn tell(&mut self, i: usize, event: Event) {
        let (now, chance) = (self.nodes[i].clock(self.at), self.throw(1000));
        let Some(election) = &mut self.nodes[i].election else { return };
        for action in election.handle(now, chance, event) {
            match action {
                Action::Ask(request) => {
                    self.nodes[i].asked += 1;
                    let arrives = self.at + self.delay();
                    let number = (self.nodes[i].life, self.nodes[i].asked);
                    let content = Content::Request(request);
                    self.messages.push(Message { node: i, number, arrives, content });
                }
                Action::Become(_) => {}
                Action::Leave => self.nodes[i].election = None,
            }
        }
    }

    fn power_off(&mut self, i: usize) {
        self.nodes[i].election = None;
    }

    fn power_on(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        if node.election.is_none() {
            node.life += 1;
            node.born = self.at;
            node.election = Some(Election::new(node.id.clone(), Duration::ZERO));
        }
    }

    /// How long until somebody leads that is another one, or holds another lock.
    fn until_another(&mut self, first: &(usize, Lock)) -> Duration {
        let since = self.at;
        while self.leaders().iter().all(|leader| leader == first) {
            self.run(STEP);
            assert!(self.at < since + 10 * TTL, "nobody else leads");
        }
        self.at - since
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn never_two_lead(
        dice: u64,
        speeds in proptest::collection::vec(920..1080u32, 2..6),
        troubles in proptest::collection::vec((0..6usize, 0..7u8, 100..12_000u64), 0..25),
    ) {
        let mut world = World::new(&speeds, dice);
        for (node, trouble, ms) in troubles {
            let node = node % speeds.len();
            match trouble {
                0 => world.nodes[node].cut_off = true,
                1 => world.nodes[node].still = true,
                2 => world.power_off(node),
                3 => world.power_on(node),
                4 => world.tell(node, Event::Stopped),
                _ => (world.nodes[node].cut_off, world.nodes[node].still) = (false, false),
            }
            world.run(Duration::from_millis(ms));
        }
        // When all is well again, somebody leads.
        for node in 0..speeds.len() {
            (world.nodes[node].cut_off, world.nodes[node].still) = (false, false);
            world.power_on(node);
        }
        let since = world.at;
        while world.leaders().is_empty() {
            world.run(STEP);
            prop_assert!(world.at < since + 10 * TTL, "nobody leads");
        }
    }
}

/// Three curators, and the one that leads.
fn settled(dice: u64) -> (World, (usize, Lock)) {
    let mut world = World::new(&[1000, 1000, 1000], dice);
    world.bad = false;
    world.run(Duration::from_secs(3) + Duration::from_millis(dice % 5000));
    let leader = world.leaders().pop().unwrap();
    for (i, node) in world.nodes.iter().enumerate().filter(|(i, _)| *i != leader.0) {
        let follows = Office::Follows(Some(world.nodes[leader.0].id.clone()));
        assert_eq!(node.election.as_ref().unwrap().office(), &follows, "{i}");
    }
    (world, leader)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn after_a_loss_of_power_the_next_one_leads_within_twelve_seconds(dice: u64) {
        let (mut world, first) = settled(dice);
        world.power_off(first.0);
        let took = world.until_another(&first);
        prop_assert!(took <= Duration::from_secs(12), "{took:?}");
    }

    #[test]
    fn who_stops_cleanly_hands_over_within_a_second(dice: u64) {
        let (mut world, first) = settled(dice);
        world.tell(first.0, Event::Stopped);
        prop_assert!(world.leaders().is_empty(), "it serves no more before its lock is gone");
        let took = world.until_another(&first);
        prop_assert!(took <= Duration::from_secs(1), "{took:?}");
        world.run(TTL);
        prop_assert!(world.nodes[first.0].election.is_none(), "it has left");
    }

    #[test]
    fn who_is_back_soon_does_not_wait_for_its_own_old_lock(dice: u64) {
        let (mut world, first) = settled(dice);
        world.power_off(first.0);
        world.run(Duration::from_secs(1));
        world.power_on(first.0);
        let took = world.until_another(&first);
        prop_assert!(took <= Duration::from_secs(1), "{took:?}");
        prop_assert!(world.leaders()[0].0 != first.0, "the others came before it");
    }

    #[test]
    fn who_is_cut_off_has_left_before_another_leads(dice: u64) {
        let (mut world, first) = settled(dice);
        world.nodes[first.0].cut_off = true;
        world.run(HOLD + LIMIT);
        prop_assert!(!world.leaders().contains(&first));
        world.until_another(&first);
        world.nodes[first.0].cut_off = false;
        let second = world.leaders();
        world.run(TTL);
        prop_assert_eq!(world.leaders(), second, "it comes back as the last of them");
    }
}

#[test]
fn a_short_cut_costs_the_office_nothing() {
    let (mut world, first) = settled(7);
    world.nodes[first.0].cut_off = true;
    world.run(Duration::from_secs(3));
    world.nodes[first.0].cut_off = false;
    world.run(2 * TTL);
    assert_eq!(world.leaders(), [first]);
}

#[test]
fn a_leader_alone_that_is_cut_off_leads_again_under_the_same_lock_if_it_still_has_it() {
    let mut election = Election::new(NodeId::of_key(&[1; 32]), Duration::ZERO);
    let id = NodeId::of_key(&[1; 32]);
    let (lease, second) = (LeaseId(5), Duration::from_secs(1));
    let place =
        Place { key: key(lease), created: Revision(9), modified: Revision(9), node: Some(id) };
    let places = || Event::Answered(Answer::Places(vec![place.clone()]));
    let fired = |election: &mut Election, at| election.handle(at, 0, Event::TimerFired);
    assert_eq!(fired(&mut election, Duration::ZERO), [Action::Ask(Request::Look)]);
    let answer = Event::Answered(Answer::Places(vec![]));
    assert_eq!(election.handle(Duration::ZERO, 0, answer), [Action::Ask(Request::Grant)]);
    let answer = Event::Answered(Answer::Granted(lease));
    assert_eq!(election.handle(second, 0, answer), [Action::Ask(Request::Claim(lease))]);
    let leads = Office::Leads(Some(Lock { key: key(lease), created: Revision(9) }));
    assert_eq!(election.handle(2 * second, 0, places())[0], Action::Become(leads.clone()));
    // It asked for the lease at 0 s: no answer since, so it leads until 8 s.
    while election.office() == &leads {
        let at = election.wake_at().unwrap();
        assert!(at <= HOLD);
        fired(&mut election, at);
    }
    assert_eq!(*election.office(), Office::Follows(None));
    let mut at = HOLD;
    while election.asked.is_none() {
        at = election.wake_at().unwrap();
        fired(&mut election, at);
    }
    let asked_at = election.asked.as_ref().unwrap().1;
    election.handle(at + second, 0, places());
    assert_eq!(election.office(), &leads, "nobody led meanwhile");
    assert_eq!(election.leads_until(), Some(asked_at + HOLD));
}

#[test]
fn a_lock_that_vanishes_ends_the_office_at_once() {
    let (mut world, first) = settled(3);
    let (_, lease) = world.keeper.locks[&first.1.key].clone();
    world.keeper.end(lease);
    let took = world.until_another(&first);
    assert!(took <= Duration::from_secs(1), "{took:?}");
}
