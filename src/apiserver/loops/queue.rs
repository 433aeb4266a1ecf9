//! Keys to look at: each once, some only later, none while it is being worked on.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// The first wait after a failure; each further one is twice as long,
const FIRST: Duration = Duration::from_millis(20);
/// up to this.
const LONGEST: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    ready: VecDeque<String>,
    /// Those in `ready`.
    known: HashSet<String>,
    /// By when.
    later: BTreeSet<(Instant, String)>,
    /// When, of those in `later`.
    when: BTreeMap<String, Instant>,
    busy: HashSet<String>,
    /// Those to be looked at again when they are no longer busy.
    again: HashSet<String>,
    failures: HashMap<String, u32>,
}

impl Queue {
    /// Looks at a key as soon as it can be.
    pub(super) fn add(&mut self, key: String) {
        self.unschedule(&key);
        if self.busy.contains(&key) {
            self.again.insert(key);
        } else if self.known.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Looks at a key then, unless it is looked at before.
    pub(super) fn add_at(&mut self, key: String, at: Instant) {
        if self.known.contains(&key) || self.when.get(&key).is_some_and(|known| *known <= at) {
            return;
        }
        self.unschedule(&key);
        self.when.insert(key.clone(), at);
        self.later.insert((at, key));
    }

    /// The next key; it is busy until [`Queue::done`] or [`Queue::failed`].
    pub(super) fn take(&mut self, now: Instant) -> Option<String> {
        while let Some((_, key)) = self.later.first().filter(|(at, _)| *at <= now).cloned() {
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.known.remove(&key);
        self.busy.insert(key.clone());
        Some(key)
    }

    /// It went well.
    pub(super) fn done(&mut self, key: &str) {
        self.failures.remove(key);
        self.release(key);
    }

    /// It did not: it is looked at again after a while.
    pub(super) fn failed(&mut self, key: &str, now: Instant) {
        let failures = self.failures.entry(key.to_owned()).or_default();
        let wait = FIRST.saturating_mul(1 << (*failures).min(20)).min(LONGEST);
        *failures += 1;
        self.release(key);
        self.add_at(key.to_owned(), now + wait);
    }

    /// When the next key is there without anything happening.
    pub(super) fn next(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn release(&mut self, key: &str) {
        self.busy.remove(key);
        if self.again.remove(key) {
            self.add(key.to_owned());
        }
    }

    fn unschedule(&mut self, key: &str) {
        if let Some(at) = self.when.remove(key) {
            self.later.remove(&(at, key.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> String {
        name.to_owned()
    }

    #[test]
    fn a_key_waits_once_and_never_while_it_is_worked_on() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add(key("a"));
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!(queue.take(now).as_deref(), Some("a"));
        queue.add(key("a"));
        assert_eq!(queue.take(now).as_deref(), Some("b"));
        assert_eq!(queue.take(now), None, "it is being worked on");
        queue.done("a");
        assert_eq!(queue.take(now).as_deref(), Some("a"), "it changed meanwhile");
        queue.done("a");
        queue.done("b");
        assert_eq!((queue.take(now), queue.next()), (None, None));
    }

    #[test]
    fn what_fails_is_tried_again_ever_later_but_at_once_when_something_happens() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.add(key("a"));
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..13 {
            let taken = queue.take(now).expect("it is due");
            queue.failed(&taken, now);
            let next = queue.next().expect("it is tried again");
            waits.push(next - now);
            now = next;
        }
        assert_eq!(waits[..3], [FIRST, 2 * FIRST, 4 * FIRST]);
        assert_eq!(waits[12], LONGEST);
        queue.take(now).expect("due");
        queue.failed("a", now);
        queue.add(key("a"));
        assert_eq!(queue.take(now).as_deref(), Some("a"));
        assert_eq!(queue.next(), None, "not twice");
        queue.done("a");
        queue.add(key("a"));
        queue.take(now).expect("due");
        queue.failed("a", now);
        assert_eq!(queue.next(), Some(now + FIRST), "success forgets failures");
    }

    #[test]
    fn the_sooner_of_two_times_counts() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add_at(key("a"), now + LONGEST);
        queue.add_at(key("a"), now + FIRST);
        queue.add_at(key("a"), now + 2 * FIRST);
        assert_eq!(queue.next(), Some(now + FIRST));
        assert_eq!(queue.take(now), None);
        assert_eq!(queue.take(now + FIRST).as_deref(), Some("a"));
        assert_eq!(queue.next(), None);
    }
}
