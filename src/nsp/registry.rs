//! Who takes part in which stream: entries that go when they are not refreshed (spec/ambassador §5.1). Pure: the time
//! is passed in.
//!
//! ```text
//! Register (new)  ─▶ DISABLED, whatever was said      Unregister ─▶ gone
//! Register (known) ─▶ as said                         entry timeout without a Register ─▶ gone
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_proto::nsp::v1::target::Status;
use orlop_proto::nsp::v1::{Stream, Target};

use crate::configuration::Configuration;
use crate::selection::Filter as _;

/// The key of a target's context under which its identifier is.
const IDENTIFIER: &str = "identifier";

/// What makes a target another one: all but its status and its context.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Key {
    trench: String,
    conduit: String,
    stream: String,
    kind: i32,
    /// In the order they were said in.
    ips: Vec<String>,
}

impl Key {
    /// Of a target.
    #[must_use]
    pub fn of(target: &Target) -> Self {
        let [trench, conduit, stream] = names(target.stream.as_ref());
        let [trench, conduit, stream] = [trench, conduit, stream].map(str::to_owned);
        Self { trench, conduit, stream, kind: target.r#type, ips: target.ips.clone() }
    }

    /// As bytes that no other key has: each name ends with a NUL, which no name of Kubernetes and no address has.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let Self { trench, conduit, stream, kind, ips } = self;
        let kind = kind.to_string();
        let parts = [trench, conduit, stream, &kind].into_iter().chain(ips);
        parts.flat_map(|part| part.bytes().chain([0])).collect()
    }
}

/// Trench, conduit and stream.
fn names(stream: Option<&Stream>) -> [&str; 3] {
    let conduit = stream.and_then(|stream| stream.conduit.as_ref());
    let trench = conduit.and_then(|conduit| conduit.trench.as_ref());
    [
        trench.map_or("", |trench| &trench.name),
        conduit.map_or("", |conduit| &conduit.name),
        stream.map_or("", |stream| &stream.name),
    ]
}

/// Why a target is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It is for filters.
    #[error("a target is ENABLED or DISABLED; ANY is for what is asked for")]
    Any,
    /// A text with a NUL would make one key of two targets.
    #[error("a name or an address with a NUL byte")]
    Nul,
    /// Somebody has it.
    #[error("the identifier {0:?} is in use in this stream")]
    Taken(String),
}

/// One target became another, or came, or went.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What it was.
    pub before: Option<Arc<Target>>,
    /// What it is.
    pub after: Option<Arc<Target>>,
}

#[derive(Debug)]
struct Entry {
    target: Arc<Target>,
    expires: Instant,
}

/// All targets.
#[derive(Debug)]
pub struct Registry {
    timeout: Duration,
    /// Is an identifier given to one target of a stream only?
    exclusive: bool,
    entries: BTreeMap<Key, Entry>,
    by_expiry: BTreeSet<(Instant, Key)>,
}

impl Registry {
    /// Entries last `timeout`; with `exclusive`, who is enabled keeps others from being enabled with its identifier.
    #[must_use]
    pub fn new(timeout: Duration, exclusive: bool) -> Self {
        Self { timeout, exclusive, entries: BTreeMap::new(), by_expiry: BTreeSet::new() }
    }

    /// Takes what was there before a restart, which has a whole timeout to be refreshed.
    pub fn load(&mut self, target: Target, now: Instant) {
        self.put(Key::of(&target), target, now);
    }

    /// A target says that it is there. `None`: that was known.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn register(
        &mut self,
        mut target: Target,
        now: Instant,
    ) -> Result<Option<Change>, Refusal> {
        if target.status() == Status::Any {
            return Err(Refusal::Any);
        }
        let key = Key::of(&target);
        let names = [&key.trench, &key.conduit, &key.stream];
        if names.into_iter().chain(&key.ips).any(|name| name.contains('\0')) {
            return Err(Refusal::Nul);
        }
        match self.entries.get(&key) {
            None => target.set_status(Status::Disabled),
            Some(_) if self.exclusive && target.status() == Status::Enabled => {
                if let Some(identifier) = self.taken(&key, &target) {
                    return Err(Refusal::Taken(identifier));
                }
            }
            Some(_) => {}
        }
        let before = self.put(key.clone(), target, now);
        let after = self.entries.get(&key).map(|entry| Arc::clone(&entry.target));
        Ok((before != after).then_some(Change { before, after }))
    }

    /// The identifier that another enabled target of the stream has as well.
    fn taken(&self, key: &Key, target: &Target) -> Option<String> {
        let identifier = target.context.get(IDENTIFIER)?;
        let first = Key { ips: Vec::new(), ..key.clone() };
        let same = |other: &Key| {
            (&other.trench, &other.conduit, &other.stream, other.kind)
                == (&key.trench, &key.conduit, &key.stream, key.kind)
        };
        let mut others = self.entries.range(first..).take_while(|(other, _)| same(other));
        let holds = |(other, entry): (&Key, &Entry)| {
            other != key
                && entry.target.status() == Status::Enabled
                && entry.target.context.get(IDENTIFIER) == Some(identifier)
        };
        others.any(holds).then(|| identifier.clone())
    }

    /// A target says that it goes. `None`: it was not there.
    pub fn unregister(&mut self, target: &Target) -> Option<Change> {
        self.remove(&Key::of(target))
    }

    /// Removes whoever was not refreshed in time.
    pub fn expire(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some((at, key)) = self.by_expiry.first()
            && *at <= now
        {
            let key = key.clone();
            changes.extend(self.remove(&key));
        }
        changes
    }

    /// When the next entry goes if nothing happens.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        Some(self.by_expiry.first()?.0)
    }

    /// Removes entries of streams that the configuration knows, but only in other conduits.
    pub fn drop_misplaced(&mut self, configuration: &Configuration) -> Vec<Change> {
        let known: BTreeSet<_> =
            configuration.streams.iter().map(|stream| names(Some(stream))).collect();
        let elsewhere: BTreeSet<_> =
            known.iter().map(|[trench, _, stream]| (*trench, *stream)).collect();
        let misplaced = |key: &Key| {
            elsewhere.contains(&(&*key.trench, &*key.stream))
                && !known.contains(&[&*key.trench, &*key.conduit, &*key.stream])
        };
        let keys: Vec<_> = self.entries.keys().filter(|key| misplaced(key)).cloned().collect();
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Who fits a filter.
    #[must_use]
    pub fn list(&self, filter: &Target) -> Vec<Arc<Target>> {
        let targets = self.entries.values().map(|entry| &entry.target);
        targets.filter(|target| filter.asks_for(target)).cloned().collect()
    }

    /// The target with this key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<Target>> {
        self.entries.get(key).map(|entry| &entry.target)
    }

    /// All targets.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.entries.values().map(|entry| &*entry.target)
    }

    fn put(&mut self, key: Key, target: Target, now: Instant) -> Option<Arc<Target>> {
        let expires = now + self.timeout;
        let before = self.entries.remove(&key);
        if let Some(before) = &before {
            self.by_expiry.remove(&(before.expires, key.clone()));
        }
        self.by_expiry.insert((expires, key.clone()));
        // What stays the same stays the same bytes in memory.
        let target = match &before {
            Some(before) if *before.target == target => Arc::clone(&before.target),
            _ => Arc::new(target),
        };
        self.entries.insert(key, Entry { target, expires });
        before.map(|before| before.target)
    }

    fn remove(&mut self, key: &Key) -> Option<Change> {
        let entry = self.entries.remove(key)?;
        self.by_expiry.remove(&(entry.expires, key.clone()));
        Some(Change { before: Some(entry.target), after: None })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use orlop_proto::nsp::v1::{Conduit, Trench};
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn target(stream: &str, conduit: &str, ip: &str, status: Status, identifier: u32) -> Target {
        let trench = Some(Trench { name: "t".to_owned() });
        let conduit = Conduit { name: conduit.to_owned(), trench, ..Conduit::default() };
        let stream = Stream { name: stream.to_owned(), conduit: Some(conduit), max_targets: 0 };
        Target {
            ips: vec![ip.to_owned()],
            context: [(IDENTIFIER.to_owned(), identifier.to_string())].into(),
            status: status.into(),
            r#type: 0,
            stream: Some(stream),
        }
    }

    fn all() -> Target {
        Target { status: Status::Any.into(), ..Target::default() }
    }

    #[test]
    fn a_new_target_is_disabled_whatever_it_says_and_then_as_it_says() {
        let now = Instant::now();
        let mut registry = Registry::new(TIMEOUT, false);
        let enabled = target("s", "c", "10.0.0.1/24", Status::Enabled, 1);
        let change = registry.register(enabled.clone(), now).expect("taken").expect("a change");
        assert_eq!(change.after.expect("there").status(), Status::Disabled);
        let change = registry.register(enabled.clone(), now).expect("taken").expect("a change");
        assert_eq!(change.after.expect("there").status(), Status::Enabled);
        assert_eq!(registry.register(enabled.clone(), now), Ok(None));
        assert!(registry.unregister(&enabled).is_some());
        assert_eq!(registry.unregister(&enabled), None);
        let change = registry.register(enabled, now).expect("taken").expect("a change");
        assert_eq!(change.after.expect("there").status(), Status::Disabled);
    }

    #[test]
    fn who_is_not_refreshed_goes_at_its_time() {
        let start = Instant::now();
        let mut registry = Registry::new(TIMEOUT, false);
        let (first, second) =
            (target("s", "c", "a", Status::Enabled, 1), target("s", "c", "b", Status::Enabled, 2));
        registry.register(first.clone(), start).expect("taken");
        registry.register(second, start + TIMEOUT / 2).expect("taken");
        assert_eq!(registry.next_expiry(), Some(start + TIMEOUT));
        registry.register(first, start + TIMEOUT * 3 / 4).expect("taken");
        assert!(registry.expire(start + TIMEOUT).is_empty());
        let gone = registry.expire(start + TIMEOUT * 3 / 2);
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].before.as_ref().expect("it was there").ips, ["b"]);
        assert_eq!(registry.next_expiry(), Some(start + TIMEOUT * 7 / 4));
    }

    #[test]
    fn an_identifier_can_be_kept_for_one() {
        let now = Instant::now();
        let mut registry = Registry::new(TIMEOUT, true);
        let (first, second) =
            (target("s", "c", "a", Status::Enabled, 7), target("s", "c", "b", Status::Enabled, 7));
        for _ in 0..2 {
            registry.register(first.clone(), now).expect("it is free");
        }
        registry.register(second.clone(), now).expect("disabled, it may");
        assert_eq!(registry.register(second.clone(), now), Err(Refusal::Taken("7".to_owned())));
        registry.register(target("s", "d", "b", Status::Enabled, 7), now).expect("another stream");
        registry.unregister(&first);
        registry.register(second, now).expect("it is free again");
    }

    #[test]
    fn what_cannot_be_registered_is_refused() {
        let now = Instant::now();
        let mut registry = Registry::new(TIMEOUT, false);
        let any = target("s", "c", "a", Status::Any, 1);
        assert_eq!(registry.register(any, now), Err(Refusal::Any));
        let nul = target("s\0", "c", "a", Status::Enabled, 1);
        assert_eq!(registry.register(nul, now), Err(Refusal::Nul));
        assert!(registry.list(&all()).is_empty());
    }

    #[test]
    fn a_stream_that_moved_leaves_no_targets_in_its_old_conduit() {
        let now = Instant::now();
        let mut registry = Registry::new(TIMEOUT, false);
        for (stream, conduit) in [("s", "a"), ("s", "b"), ("unknown", "a")] {
            let target = target(stream, conduit, "ip", Status::Enabled, 1);
            registry.register(target, now).expect("taken");
        }
        let text = "trench: {name: t}\nconduits: {items: [{name: b}]}\nstreams: {items: [{name: s, conduit: b}]}";
        let configuration = crate::configuration::inline("x", text).expect("sound").configuration;
        let gone = registry.drop_misplaced(&configuration);
        assert_eq!(gone.len(), 1);
        assert_eq!(registry.list(&all()).len(), 2);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Register(u8, u8, bool),
        Unregister(u8, u8),
        Wait(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3_u8, 0..4_u8, any::<bool>()).prop_map(|(s, ip, on)| Step::Register(s, ip, on)),
            (0..3_u8, 0..4_u8).prop_map(|(s, ip)| Step::Unregister(s, ip)),
            (1..40_u8).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against a map of what was said last and when.
        #[test]
        fn it_says_what_a_plain_reading_says(steps in prop::collection::vec(step(), 0..60)) {
            let mut now = Instant::now();
            let mut registry = Registry::new(TIMEOUT, false);
            let mut model: HashMap<(u8, u8), (Status, Instant)> = HashMap::new();
            let make = |s: u8, ip: u8, status| target(&s.to_string(), "c", &ip.to_string(), status, ip.into());
            for step in steps {
                match step {
                    Step::Register(s, ip, on) => {
                        let said = if on { Status::Enabled } else { Status::Disabled };
                        let status = if model.contains_key(&(s, ip)) { said } else { Status::Disabled };
                        let before = model.insert((s, ip), (status, now));
                        let change = registry.register(make(s, ip, said), now).expect("taken");
                        prop_assert_eq!(change.is_some(), before.map(|(before, _)| before) != Some(status));
                    }
                    Step::Unregister(s, ip) => {
                        let there = model.remove(&(s, ip)).is_some();
                        prop_assert_eq!(registry.unregister(&make(s, ip, Status::Any)).is_some(), there);
                    }
                    Step::Wait(seconds) => {
                        now += Duration::from_secs(seconds.into());
                        let left = model.len();
                        model.retain(|_, (_, at)| *at + TIMEOUT > now);
                        prop_assert_eq!(registry.expire(now).len(), left - model.len());
                    }
                }
                let mut have: Vec<_> = registry.list(&all()).iter().map(|t| (t.stream.clone().expect("one").name, t.ips.clone(), t.status)).collect();
                let mut want: Vec<_> = model.iter().map(|((s, ip), (status, _))| (s.to_string(), vec![ip.to_string()], i32::from(*status))).collect();
                have.sort();
                want.sort();
                prop_assert_eq!(have, want);
            }
        }
    }
}
