//! How a pod becomes a target of a stream and stays one (spec/ambassador §4). Pure: it says what to ask of the registry,
//! is told the answer, and says what is next; the time and randomness are passed in.
//!
//! ```text
//!            ┌──── taken: another identifier ◀────┐
//!            ▼                                    │
//! List ─▶ Register DISABLED ─▶ List ──────────────┤
//!   │ all in use                │ mine alone      │
//!   ▼                           ▼                 │
//! wait, watching        Register ENABLED ─▶ OPEN ─┴─ every period: Register ENABLED, List; not ENABLED there: anew
//! ```

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Between attempts after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// The longest wait while all identifiers are in use, which begins with [`RETRY`].
const EXHAUSTED_MAX: Duration = Duration::from_secs(10);
/// The longest wait after two chose the same identifier, in milliseconds.
const COLLISION_MILLIS: u32 = 50;

/// What to ask of the registry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ask {
    /// All targets of the stream, in whatever status.
    List,
    /// Be there with an identifier.
    Register {
        /// ENABLED, or DISABLED.
        enabled: bool,
        /// From 1 up to the stream's most.
        identifier: u32,
    },
    /// Be gone.
    Unregister {
        /// Which it had.
        identifier: u32,
    },
}

/// A target in a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    /// Its addresses, in any order.
    pub ips: BTreeSet<String>,
    /// If it is a number.
    pub identifier: Option<u32>,
    /// ENABLED?
    pub enabled: bool,
}

/// What the registry said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// To [`Ask::List`].
    Listed(Vec<Seen>),
    /// To the others.
    Done,
    /// The identifier is somebody else's (ALREADY_EXISTS).
    Taken,
    /// Nothing, or that it will not.
    Failed,
}

/// What is next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Next {
    /// Ask this now.
    Ask(Ask),
    /// Ask this then.
    AskAt(Instant, Ask),
    /// Ask [`Ask::List`] then, or as soon as fewer identifiers than these are in use.
    Watch(Instant, usize),
}

/// What the application is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// It is being tried for the first time.
    Pending,
    /// Traffic may come.
    Open,
    /// It does not work now; it is tried again.
    Unavailable,
}

/// What a target is made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The pod's addresses, in the order they are registered in; at least one.
    pub ips: Vec<String>,
    /// How many targets the stream has at most; at least 1.
    pub max: u32,
    /// How often it is refreshed.
    pub period: Duration,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Who has which identifier?
    Looking,
    /// Registered as DISABLED.
    Claiming,
    /// Is it mine alone?
    Checking,
    /// It was not; another, not one of those it was given up for.
    Yielding,
    /// All are in use.
    Leaving,
    Enabling,
    Refreshing,
    /// Does the registry have it as ENABLED?
    Confirming,
}

/// A pod in a stream.
#[derive(Clone, Debug)]
pub struct Member {
    place: Place,
    phase: Phase,
    status: Status,
    /// It keeps it when it must register anew, if it is free.
    identifier: Option<u32>,
    /// Might the registry have an entry of ours?
    held: bool,
    /// Those of others, as last seen.
    used: BTreeSet<u32>,
    exhausted: Duration,
}

impl Member {
    /// Who has not asked for anything yet. `identifier`: the one to try first.
    #[must_use]
    pub fn new(place: Place, identifier: Option<u32>) -> Self {
        let identifier = identifier.filter(|identifier| (1..=place.max).contains(identifier));
        Self {
            place,
            phase: Phase::Looking,
            status: Status::Pending,
            identifier,
            held: false,
            used: BTreeSet::new(),
            exhausted: RETRY,
        }
    }

    /// What is asked first.
    #[must_use]
    pub fn begin(&self) -> Next {
        Next::Ask(Ask::List)
    }

    /// What the application is told.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// What it is made of.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The identifier, if it has one.
    #[must_use]
    pub fn identifier(&self) -> Option<u32> {
        self.identifier
    }

    /// What must be asked for nothing to be left of it, if anything might.
    #[must_use]
    pub fn leave(&self) -> Option<Ask> {
        let identifier = self.identifier.filter(|_| self.held)?;
        Some(Ask::Unregister { identifier })
    }

    /// Takes another most; `false`: its identifier is above it, so it must leave and begin anew.
    pub fn resize(&mut self, max: u32) -> bool {
        self.place.max = max;
        self.identifier.is_none_or(|identifier| identifier <= max)
    }

    /// Takes the answer to what was asked last. `random` is any number, another one each time.
    pub fn answered(&mut self, answer: Answer, now: Instant, random: u32) -> Next {
        match (self.phase, answer) {
            (Phase::Looking, Answer::Listed(seen)) => {
                self.look(&seen);
                match self.is_exhausted() {
                    false => self.claim(random),
                    // What an attempt left that failed halfway would be in the way of others.
                    true if self.held => self.give_up(Phase::Leaving),
                    true => self.wait(now, random),
                }
            }
            (Phase::Claiming, Answer::Done) => {
                self.phase = Phase::Checking;
                Next::Ask(Ask::List)
            }
            (Phase::Checking, Answer::Listed(seen)) => {
                self.look(&seen);
                if self.is_exhausted() {
                    self.give_up(Phase::Leaving)
                } else if self.is_mine() {
                    self.register(Phase::Enabling)
                } else {
                    self.give_up(Phase::Yielding)
                }
            }
            (Phase::Claiming | Phase::Enabling | Phase::Refreshing, Answer::Taken) => {
                self.used.extend(self.identifier);
                self.give_up(Phase::Yielding)
            }
            (Phase::Yielding, Answer::Done) => {
                self.held = false;
                if self.is_exhausted() {
                    return self.wait(now, random);
                }
                let at = now + Duration::from_millis((random % (COLLISION_MILLIS + 1)).into());
                match self.claim(random) {
                    Next::Ask(ask) => Next::AskAt(at, ask),
                    later => later,
                }
            }
            (Phase::Leaving, Answer::Done) => {
                self.held = false;
                self.wait(now, random)
            }
            (Phase::Enabling, Answer::Done) => self.opened(now, random),
            (Phase::Refreshing, Answer::Done) => {
                self.phase = Phase::Confirming;
                Next::Ask(Ask::List)
            }
            (Phase::Confirming, Answer::Listed(seen)) => {
                let ours = self.ours();
                if seen.iter().any(|seen| seen.ips == ours && seen.enabled) {
                    return self.opened(now, random);
                }
                // It had dropped us, and took the refresh for somebody new.
                self.look(&seen);
                if self.is_exhausted() { self.give_up(Phase::Leaving) } else { self.claim(random) }
            }
            (phase, _) => {
                // What fails, and what is no answer to what was asked.
                self.status = Status::Unavailable;
                let ask = match (phase, self.identifier) {
                    (Phase::Refreshing | Phase::Confirming, Some(_)) => {
                        return self.later(now + RETRY, Phase::Refreshing);
                    }
                    (Phase::Yielding | Phase::Leaving, Some(identifier)) => {
                        Ask::Unregister { identifier }
                    }
                    _ => {
                        self.phase = Phase::Looking;
                        Ask::List
                    }
                };
                Next::AskAt(now + RETRY, ask)
            }
        }
    }

    fn ours(&self) -> BTreeSet<String> {
        self.place.ips.iter().cloned().collect()
    }

    /// Remembers which identifiers others have.
    fn look(&mut self, seen: &[Seen]) {
        let ours = self.ours();
        let others = seen.iter().filter(|seen| seen.ips != ours);
        let valid = 1..=self.place.max;
        self.used = others
            .filter_map(|seen| seen.identifier)
            .filter(|identifier| valid.contains(identifier))
            .collect();
    }

    fn is_exhausted(&self) -> bool {
        u32::try_from(self.used.len()).is_ok_and(|used| used >= self.place.max)
    }

    fn is_mine(&self) -> bool {
        self.identifier.is_some_and(|identifier| !self.used.contains(&identifier))
    }

    /// Keeps its identifier if it is free, or chooses a free one.
    fn claim(&mut self, random: u32) -> Next {
        if !self.is_mine() {
            let free = (1..=self.place.max).filter(|identifier| !self.used.contains(identifier));
            let free: Vec<_> = free.collect();
            // There is one: it is not exhausted.
            self.identifier = free.get(random as usize % free.len().max(1)).copied();
        }
        self.register(Phase::Claiming)
    }

    fn register(&mut self, phase: Phase) -> Next {
        self.phase = phase;
        match self.identifier {
            Some(identifier) => {
                self.held = true;
                let enabled = phase != Phase::Claiming;
                Next::Ask(Ask::Register { enabled, identifier })
            }
            None => {
                self.phase = Phase::Looking;
                Next::Ask(Ask::List)
            }
        }
    }

    fn later(&mut self, at: Instant, phase: Phase) -> Next {
        match self.register(phase) {
            Next::Ask(ask) => Next::AskAt(at, ask),
            next => next,
        }
    }

    fn give_up(&mut self, phase: Phase) -> Next {
        match self.identifier {
            Some(identifier) => {
                self.phase = phase;
                Next::Ask(Ask::Unregister { identifier })
            }
            None => {
                self.phase = Phase::Looking;
                Next::Ask(Ask::List)
            }
        }
    }

    /// Up to half shorter, so that those who wait for the same do not come together each time.
    fn wait(&mut self, now: Instant, random: u32) -> Next {
        self.status = Status::Unavailable;
        self.phase = Phase::Looking;
        let at = now + self.exhausted - self.exhausted / 2 * (random % 1024) / 1024;
        self.exhausted = (self.exhausted * 2).min(EXHAUSTED_MAX);
        Next::Watch(at, self.used.len())
    }

    /// Refreshed a tenth of the period earlier or later.
    fn opened(&mut self, now: Instant, random: u32) -> Next {
        self.status = Status::Open;
        self.exhausted = RETRY;
        let period = self.place.period;
        let at = now + period - period / 10 + period / 5 * (random % 1024) / 1024;
        self.later(at, Phase::Refreshing)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    fn place(ip: usize, max: u32) -> Place {
        Place { ips: vec![format!("10.0.0.{ip}/24")], max, period: PERIOD }
    }

    fn seen(ip: usize, identifier: u32, enabled: bool) -> Seen {
        Seen { ips: place(ip, 1).ips.into_iter().collect(), identifier: Some(identifier), enabled }
    }

    fn register(enabled: bool, identifier: u32) -> Next {
        Next::Ask(Ask::Register { enabled, identifier })
    }

    #[test]
    fn it_claims_checks_and_is_enabled() {
        let now = Instant::now();
        let mut member = Member::new(place(1, 3), None);
        assert_eq!(member.begin(), Next::Ask(Ask::List));
        let next = member.answered(Answer::Listed(vec![seen(2, 1, true)]), now, 1);
        assert_eq!(next, register(false, 3));
        assert_eq!(member.answered(Answer::Done, now, 0), Next::Ask(Ask::List));
        let list = vec![seen(2, 1, true), seen(1, 3, false)];
        assert_eq!(member.answered(Answer::Listed(list), now, 0), register(true, 3));
        let next = member.answered(Answer::Done, now, 512);
        assert_eq!(next, Next::AskAt(now + PERIOD, Ask::Register { enabled: true, identifier: 3 }));
        assert_eq!(member.status(), Status::Open);
        assert_eq!(member.leave(), Some(Ask::Unregister { identifier: 3 }));
    }

    #[test]
    fn two_that_chose_the_same_choose_again() {
        let now = Instant::now();
        let mut member = Member::new(place(1, 2), Some(1));
        let _ = member.answered(Answer::Listed(Vec::new()), now, 0);
        let _ = member.answered(Answer::Done, now, 0);
        let next =
            member.answered(Answer::Listed(vec![seen(2, 1, false), seen(1, 1, false)]), now, 0);
        assert_eq!(next, Next::Ask(Ask::Unregister { identifier: 1 }));
        let next = member.answered(Answer::Done, now, 7);
        let at = now + Duration::from_millis(7);
        assert_eq!(next, Next::AskAt(at, Ask::Register { enabled: false, identifier: 2 }));
    }

    #[test]
    fn when_all_are_in_use_it_leaves_and_watches_with_growing_waits() {
        let now = Instant::now();
        let mut member = Member::new(place(1, 1), None);
        for seconds in [1, 2, 4, 8, 10, 10] {
            let next = member.answered(Answer::Listed(vec![seen(2, 1, true)]), now, 0);
            assert_eq!(next, Next::Watch(now + Duration::from_secs(seconds), 1));
            assert_eq!((member.status(), member.leave()), (Status::Unavailable, None));
        }
    }

    #[test]
    fn who_was_forgotten_begins_anew_with_its_identifier() {
        let now = Instant::now();
        let mut member = opened(now);
        assert_eq!(member.answered(Answer::Done, now, 0), Next::Ask(Ask::List));
        let next = member.answered(Answer::Listed(vec![seen(1, 2, false)]), now, 0);
        assert_eq!(next, register(false, 2));
        assert_eq!(member.status(), Status::Open, "until it is known to be otherwise");
    }

    #[test]
    fn what_fails_is_tried_again_after_a_second() {
        let now = Instant::now();
        let mut member = opened(now);
        let next = member.answered(Answer::Failed, now, 0);
        assert_eq!(next, Next::AskAt(now + RETRY, Ask::Register { enabled: true, identifier: 2 }));
        assert_eq!(member.status(), Status::Unavailable);
        let _ = member.answered(Answer::Done, now, 0);
        let _ = member.answered(Answer::Listed(vec![seen(1, 2, true)]), now, 0);
        assert_eq!(member.status(), Status::Open);
    }

    fn opened(now: Instant) -> Member {
        let mut member = Member::new(place(1, 2), Some(2));
        for answer in
            [Answer::Listed(Vec::new()), Answer::Done, Answer::Listed(Vec::new()), Answer::Done]
        {
            let _ = member.answered(answer, now, 0);
        }
        assert_eq!(member.status(), Status::Open);
        member
    }

    #[test]
    fn a_smaller_stream_keeps_who_fits() {
        let mut member = opened(Instant::now());
        assert!(member.resize(2) && !member.resize(1));
    }

    /// A registry, as upstream's: what is new is disabled.
    #[derive(Default)]
    struct Registry(BTreeMap<usize, (u32, bool)>);

    impl Registry {
        fn ask(&mut self, who: usize, ask: Ask) -> Answer {
            match ask {
                Ask::List => Answer::Listed(
                    self.0.iter().map(|(ip, (id, enabled))| seen(*ip, *id, *enabled)).collect(),
                ),
                Ask::Register { enabled, identifier } => {
                    let enabled = enabled && self.0.contains_key(&who);
                    self.0.insert(who, (identifier, enabled));
                    Answer::Done
                }
                Ask::Unregister { .. } => {
                    self.0.remove(&who);
                    Answer::Done
                }
            }
        }
    }

    proptest! {
        /// However the steps of several mix, and whatever fails in between: no two that are enabled ever have the same
        /// identifier, and once nothing fails any more, as many are open as there is room for.
        #[test]
        fn nobody_shares_an_identifier(max in 1..5_u32, count in 1..6_usize, turns in prop::collection::vec((0..6_usize, any::<u32>(), 0..10_u8), 0..400)) {
            let mut now = Instant::now();
            let mut registry = Registry::default();
            let mut members: Vec<_> = (0..count).map(|ip| Member::new(place(ip, max), None)).collect();
            let mut nexts: Vec<_> = members.iter().map(Member::begin).collect();
            let mut random: u32 = 1;
            let settle = std::iter::repeat_n((0, 0, 9), 8000);
            for (who, salt, luck) in turns.into_iter().chain(settle) {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223 ^ salt);
                let who = (who + (random >> 16) as usize) % count;
                now += Duration::from_millis(u64::from(random >> 12) % 400);
                let ask = match nexts[who] {
                    Next::Ask(ask) => ask,
                    Next::AskAt(at, ask) if at <= now => ask,
                    Next::Watch(at, _) if at <= now => Ask::List,
                    _ => continue,
                };
                // Lost before it was done, or after.
                let answer = match luck {
                    0 => Answer::Failed,
                    1 => { registry.ask(who, ask); Answer::Failed }
                    _ => registry.ask(who, ask),
                };
                nexts[who] = members[who].answered(answer, now, random >> 8);
                let enabled: Vec<_> = registry.0.values().filter(|(_, enabled)| *enabled).map(|(id, _)| *id).collect();
                let distinct: BTreeSet<_> = enabled.iter().collect();
                prop_assert_eq!(distinct.len(), enabled.len(), "shared: {:?}", registry.0);
            }
            let open = members.iter().filter(|member| member.status() == Status::Open).count();
            prop_assert_eq!(open, count.min(max as usize), "{:?}", registry.0);
        }
    }
}
