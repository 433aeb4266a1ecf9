//! Whom to ask next who leads, and what an answer means. Owns no connection and reads no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use orlop_rt::Backoff;
use tokio::time::Instant;

/// The first wait after nobody could say who leads,
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// and the longest.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Who has told us something for so long was right: when his stream ends, others are asked at once.
const STEADY: Duration = Duration::from_secs(10);

/// Where a server is dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// An address, without brackets, or a name.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The curator that answers calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its node's id.
    pub node_id: String,
    /// Where it is dialled.
    pub place: Place,
}

/// What a curator says of the leader: `GetCurrentLeaderResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The leader's id.
    pub leader: String,
    /// Its address; empty when the one who speaks does not know it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The id of the one who speaks.
    pub this: String,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask this curator, and go on listening.
    Ask(Place),
    /// Everybody has been asked: wait until then, and begin again.
    Wait(Instant),
}

/// Goes through the curators that may know, one at a time.
#[derive(Debug)]
pub struct Machine {
    seeds: Vec<Place>,
    /// Nodes that are dialled elsewhere than they say.
    overrides: BTreeMap<String, Place>,
    /// Asked since the last one that knew, or the last wait.
    asked: BTreeSet<Place>,
    /// Who is asked now, and since when he has been telling.
    current: Option<(Place, Option<Instant>)>,
    backoff: Backoff,
}

impl Machine {
    /// `seeds` are asked before all others; a node in `overrides` is dialled there, whatever it says of itself.
    #[must_use]
    pub fn new(seeds: Vec<Place>, overrides: BTreeMap<String, Place>) -> Self {
        let backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        Self { seeds, overrides, asked: BTreeSet::new(), current: None, backoff }
    }

    /// The next one of the seeds, the `curators` of the cluster by their ids, and the overrides: at the
    /// beginning, and when a wait is over.
    pub fn next(&mut self, now: Instant, curators: &BTreeMap<String, Place>, random: u32) -> Step {
        let learned = curators.iter().map(|(id, place)| self.overrides.get(id).unwrap_or(place));
        let mut candidates = self.seeds.iter().chain(learned).chain(self.overrides.values());
        if let Some(place) = candidates.find(|place| !self.asked.contains(place)) {
            let place = place.clone();
            self.asked.insert(place.clone());
            self.current = Some((place.clone(), None));
            return Step::Ask(place);
        }
        self.asked.clear();
        self.current = None;
        Step::Wait(now + self.backoff.next(random))
    }

    /// The one who is asked has told something. `None`: it leads nowhere.
    pub fn told(&mut self, now: Instant, told: &Told) -> Option<Leader> {
        let (asked, since) = self.current.as_mut()?;
        since.get_or_insert(now);
        if told.leader.is_empty() {
            return None;
        }
        let place = match self.overrides.get(&told.leader) {
            Some(place) => place.clone(),
            // We have just reached it: its own address may be another network's.
            None if told.leader == told.this => asked.clone(),
            None if told.host.is_empty() || told.port == 0 => return None,
            None => Place { host: told.host.clone(), port: told.port },
        };
        Some(Leader { node_id: told.leader.clone(), place })
    }

    /// The one who was asked says no more, or never said anything.
    pub fn ended(&mut self, now: Instant) {
        let Some((place, Some(since))) = self.current.take() else { return };
        if now.duration_since(since) >= STEADY {
            self.backoff.reset();
            self.asked = [place].into();
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn place(host: &str) -> Place {
        Place { host: host.to_owned(), port: 7835 }
    }

    fn machine(seeds: &[&str], overrides: &[(&str, &str)]) -> Machine {
        let overrides = overrides.iter().map(|(id, host)| ((*id).to_owned(), place(host)));
        Machine::new(seeds.iter().map(|host| place(host)).collect(), overrides.collect())
    }

    fn told(leader: &str, host: &str, this: &str) -> Told {
        Told { leader: leader.into(), host: host.into(), port: 7835, this: this.into() }
    }

    fn curators(all: &[(&str, &str)]) -> BTreeMap<String, Place> {
        all.iter().map(|(id, host)| ((*id).to_owned(), place(host))).collect()
    }

    fn asks(step: Step) -> String {
        match step {
            Step::Ask(place) => place.host,
            Step::Wait(_) => "wait".to_owned(),
        }
    }

    #[test]
    fn all_are_asked_once_then_it_waits_longer_each_time() {
        let mut now = Instant::now();
        let mut machine = machine(&["a", "b"], &[("o", "override")]);
        let known = curators(&[("c", "c"), ("b", "b"), ("o", "nat")]);
        let mut waits = Vec::new();
        for _ in 0..9 {
            for host in ["a", "b", "c", "override"] {
                assert_eq!(asks(machine.next(now, &known, 0)), host);
                machine.ended(now);
            }
            let Step::Wait(until) = machine.next(now, &known, 0) else { panic!("all were asked") };
            waits.push((until - now).as_millis());
            now = until;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }

    #[test]
    fn the_leader_is_dialled_where_it_was_reached_else_where_it_is_said_to_be() {
        let now = Instant::now();
        let mut machine = machine(&["door"], &[("o", "loopback")]);
        let none = BTreeMap::new();
        machine.next(now, &none, 0);
        let leader =
            |machine: &mut Machine, told: &Told| machine.told(now, told).map(|l| l.place.host);
        assert_eq!(leader(&mut machine, &told("x", "10.0.0.1", "x")).unwrap(), "door");
        assert_eq!(leader(&mut machine, &told("x", "10.0.0.1", "y")).unwrap(), "10.0.0.1");
        assert_eq!(leader(&mut machine, &told("o", "10.0.0.2", "y")).unwrap(), "loopback");
        assert_eq!(leader(&mut machine, &told("o", "10.0.0.2", "o")).unwrap(), "loopback");
        assert_eq!(leader(&mut machine, &told("x", "", "y")), None);
        assert_eq!(leader(&mut machine, &told("", "10.0.0.1", "y")), None);
        let without_port = Told { port: 0, ..told("x", "10.0.0.1", "y") };
        assert_eq!(leader(&mut machine, &without_port), None);
        machine.ended(now);
        assert_eq!(leader(&mut machine, &told("x", "10.0.0.1", "x")), None, "nobody is asked");
    }

    #[test]
    fn when_a_steady_one_ends_the_others_are_asked_at_once() {
        let mut now = Instant::now();
        let mut machine = machine(&["a", "b"], &[]);
        let none = BTreeMap::new();
        // Two rounds in vain.
        for _ in 0..6 {
            if let Step::Wait(until) = machine.next(now, &none, 0) {
                now = until;
            }
            machine.ended(now);
        }
        assert_eq!(asks(machine.next(now, &none, 0)), "a");
        machine.told(now, &told("a", "", "a")).unwrap();
        now += STEADY;
        machine.ended(now);
        assert_eq!(asks(machine.next(now, &none, 0)), "b", "a has just gone");
        machine.ended(now);
        let Step::Wait(until) = machine.next(now, &none, 0) else { panic!("all were asked") };
        assert_eq!(until - now, BACKOFF_MIN, "and the wait is the first one again");
    }

    #[test]
    fn who_answers_and_hangs_up_makes_no_hot_loop() {
        let now = Instant::now();
        let mut machine = machine(&["a"], &[]);
        let none = BTreeMap::new();
        for _ in 0..100 {
            assert_eq!(asks(machine.next(now, &none, 0)), "a");
            machine.told(now, &told("a", "", "a")).unwrap();
            machine.ended(now);
            assert_eq!(asks(machine.next(now, &none, 0)), "wait");
        }
    }

    #[test]
    fn places_are_written_as_they_are_dialled() {
        assert_eq!(place("10.0.0.1").to_string(), "10.0.0.1:7835");
        assert_eq!(place("fd00::1").to_string(), "[fd00::1]:7835");
    }
}
