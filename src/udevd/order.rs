//! Which events may be handled at the same time. Pure.
//!
//! Events of one device come one after the other, and so do those of a device and of anything above
//! or below it in `/sys/devices`: a partition is not looked at before its disk, and a disk not
//! forgotten before its partitions. The same holds for events with the same device number or interface
//! index, under whatever path. All others are independent.
//!
//! Each event waits for at most the latest one before it on each related path: those wait for the
//! ones before them in turn. So an event is entered in the time its path is long, plus one step for
//! each path below it with events under way.

use std::collections::{BTreeMap, BTreeSet};

use crate::uevent::Uevent;

/// What relates events to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The device's path, and the one it had before a `move`.
    pub paths: Vec<String>,
    /// The device under any path: its id.
    pub id: Option<String>,
}

impl Keys {
    /// Those of an event.
    #[must_use]
    pub fn of(event: &Uevent) -> Self {
        let old = event.get("DEVPATH_OLD").map(str::to_owned);
        let paths = std::iter::once(event.devpath.clone()).chain(old).collect();
        let numbered = event.devnum().is_some() || event.ifindex().is_some();
        Self { paths, id: numbered.then(|| event.id()) }
    }
}

/// Names an event from [`Queue::push`] to [`Queue::done`]. Later events have higher ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Events that wait for their turn or are being handled.
#[derive(Debug)]
pub struct Queue<T> {
    /// At most so many at the same time.
    limit: usize,
    next: u64,
    entries: BTreeMap<Ticket, Entry<T>>,
    /// Those that wait for nothing but a free place.
    ready: BTreeSet<Ticket>,
    running: usize,
    /// The latest event of each path, and of each id.
    by_path: BTreeMap<String, Ticket>,
    by_id: BTreeMap<String, Ticket>,
}

#[derive(Debug)]
struct Entry<T> {
    keys: Keys,
    /// `None` while it is being handled.
    event: Option<T>,
    /// How many before it are not done.
    waits_for: usize,
    waited_for_by: Vec<Ticket>,
}

impl<T> Queue<T> {
    /// An empty queue that lets at most `limit` events be handled at the same time.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            next: 0,
            entries: BTreeMap::new(),
            ready: BTreeSet::new(),
            running: 0,
            by_path: BTreeMap::new(),
            by_id: BTreeMap::new(),
        }
    }

    /// How many are waiting or being handled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether all are done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The oldest that is not done.
    #[must_use]
    pub fn oldest(&self) -> Option<Ticket> {
        self.entries.first_key_value().map(|(ticket, _)| *ticket)
    }

    /// Enters an event behind all that are there.
    pub fn push(&mut self, keys: Keys, event: T) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        let before: BTreeSet<Ticket> = self.related(&keys).collect();
        for earlier in &before {
            if let Some(entry) = self.entries.get_mut(earlier) {
                entry.waited_for_by.push(ticket);
            }
        }
        for path in &keys.paths {
            self.by_path.insert(path.clone(), ticket);
        }
        if let Some(id) = &keys.id {
            self.by_id.insert(id.clone(), ticket);
        }
        if before.is_empty() {
            self.ready.insert(ticket);
        }
        let waits_for = before.len();
        let entry = Entry { keys, event: Some(event), waits_for, waited_for_by: Vec::new() };
        self.entries.insert(ticket, entry);
        ticket
    }

    /// The next event to handle now, if there is one. [`Queue::done`] must follow.
    pub fn start(&mut self) -> Option<(Ticket, T)> {
        if self.running >= self.limit {
            return None;
        }
        let ticket = self.ready.pop_first()?;
        let event = self.entries.get_mut(&ticket)?.event.take()?;
        self.running += 1;
        Some((ticket, event))
    }

    /// An event that was started has been handled.
    pub fn done(&mut self, ticket: Ticket) {
        let Some(entry) = self.entries.remove(&ticket) else { return };
        self.running -= 1;
        for path in &entry.keys.paths {
            if self.by_path.get(path) == Some(&ticket) {
                self.by_path.remove(path);
            }
        }
        if let Some(id) = &entry.keys.id
            && self.by_id.get(id) == Some(&ticket)
        {
            self.by_id.remove(id);
        }
        for later in entry.waited_for_by {
            if let Some(entry) = self.entries.get_mut(&later) {
                entry.waits_for -= 1;
                if entry.waits_for == 0 {
                    self.ready.insert(later);
                }
            }
        }
    }

    /// The latest event of each path at, above and below those of `keys`, and of the same id.
    fn related(&self, keys: &Keys) -> impl Iterator<Item = Ticket> {
        let same = keys.id.as_ref().and_then(|id| self.by_id.get(id));
        let paths = keys.paths.iter().flat_map(|path| {
            let above = path.match_indices('/').map(|(at, _)| &path[..at]);
            let at_or_above =
                above.chain([path.as_str()]).filter_map(|path| self.by_path.get(path));
            // All that start with `PATH/`: the byte after the slash is zero.
            let below = self.by_path.range(format!("{path}/")..format!("{path}0"));
            at_or_above.chain(below.map(|(_, ticket)| ticket))
        });
        same.into_iter().chain(paths).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(path: &str, id: Option<u8>) -> Keys {
        Keys { paths: vec![path.to_owned()], id: id.map(|id| format!("b8:{id}")) }
    }

    fn related(a: &Keys, b: &Keys) -> bool {
        let inside = |a: &str, b: &str| a == b || a.starts_with(&format!("{b}/"));
        let paths = a.paths.iter().any(|a| b.paths.iter().any(|b| inside(a, b) || inside(b, a)));
        paths || (a.id.is_some() && a.id == b.id)
    }

    #[test]
    fn a_partition_waits_for_its_disk_and_others_do_not() {
        let mut queue = Queue::new(8);
        let disk = queue.push(keys("/d/vda", None), "disk");
        queue.push(keys("/d/vda/vda1", None), "partition");
        queue.push(keys("/d/vdb", None), "other");
        // `vda` is a prefix of this name, but not above it.
        queue.push(keys("/d/vdaa", None), "namesake");
        let mut start = || queue.start().map(|(_, name)| name);
        assert_eq!(
            [start(), start(), start(), start()],
            [Some("disk"), Some("other"), Some("namesake"), None]
        );
        queue.done(disk);
        assert_eq!(queue.start().map(|(_, name)| name), Some("partition"));
    }

    #[test]
    fn a_removed_disk_waits_for_its_partitions() {
        let mut queue = Queue::new(8);
        let partitions: Vec<_> =
            (1..4).map(|n| queue.push(keys(&format!("/d/vda/vda{n}"), None), n)).collect();
        queue.push(keys("/d/vda", None), 0);
        for _ in &partitions {
            assert!(queue.start().is_some_and(|(_, n)| n > 0));
        }
        for ticket in partitions {
            assert_eq!(queue.start(), None);
            queue.done(ticket);
        }
        assert!(queue.start().is_some_and(|(_, n)| n == 0));
    }

    #[test]
    fn a_moved_device_relates_to_both_paths() {
        let mut queue = Queue::new(8);
        let both = Keys { paths: vec!["/d/eno1".into(), "/d/eth0".into()], id: None };
        queue.push(keys("/d/eth0", None), "add");
        queue.push(both, "move");
        queue.push(keys("/d/eno1", None), "change");
        assert_eq!(queue.start().map(|(_, name)| name), Some("add"));
        assert_eq!(queue.start(), None);
    }

    #[test]
    fn no_more_than_the_limit_at_once() {
        let mut queue = Queue::new(2);
        for n in 0..10_000 {
            queue.push(keys(&format!("/d/{n}"), None), n);
        }
        let mut order = Vec::new();
        while !queue.is_empty() {
            let started: Vec<_> = std::iter::from_fn(|| queue.start()).collect();
            assert_eq!(started.len(), 2);
            for (ticket, n) in started {
                order.push(n);
                queue.done(ticket);
            }
        }
        assert!(order.is_sorted() && order.len() == 10_000);
    }

    proptest! {
        /// Any events, started and ended in any order the queue allows.
        #[test]
        fn related_events_keep_their_order_and_all_are_handled(
            events in proptest::collection::vec(
                ("(/[ab]){1,4}", proptest::option::of("(/[ab]){1,4}"), proptest::option::of(0u8..4)),
                0..40,
            ),
            dice in proptest::collection::vec(any::<u16>(), 200),
            limit in 1usize..5,
        ) {
            let all: Vec<Keys> = events
                .into_iter()
                .map(|(path, old, id)| Keys {
                    paths: std::iter::once(path).chain(old).collect(),
                    id: id.map(|id| format!("b8:{id}")),
                })
                .collect();
            let mut queue = Queue::new(limit);
            let (mut pushed, mut running, mut done) = (0, Vec::new(), vec![false; all.len()]);
            let mut dice = dice.into_iter().cycle().map(usize::from);
            let mut throw = |below: usize| dice.next().unwrap_or(0) % below;
            while done.contains(&false) {
                match throw(3) {
                    0 if pushed < all.len() => {
                        queue.push(all[pushed].clone(), pushed);
                        pushed += 1;
                    }
                    1 if !running.is_empty() => {
                        let (ticket, n): (Ticket, usize) = running.swap_remove(throw(running.len()));
                        queue.done(ticket);
                        done[n] = true;
                    }
                    _ => match queue.start() {
                        Some((ticket, n)) => {
                            let early = (0..n).find(|m| !done[*m] && related(&all[*m], &all[n]));
                            prop_assert_eq!(early, None, "{} before", n);
                            running.push((ticket, n));
                            prop_assert!(running.len() <= limit);
                        }
                        // Nothing stands still: there is something to do, or to end.
                        None => prop_assert!(
                            !running.is_empty() || pushed < all.len() || queue.is_empty()
                        ),
                    },
                }
            }
            prop_assert!(queue.is_empty() && queue.by_path.is_empty() && queue.by_id.is_empty());
        }
    }
}
