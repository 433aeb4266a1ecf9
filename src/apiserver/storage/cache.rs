//! Every object in memory, as the text most clients ask for, with the last changes of each resource.
//!
//! One task writes ([`Cache::apply`], in the order of the revisions); any number read. A watch keeps no queue: it reads
//! the resource's recent changes from where it is, and shares their bytes with all others. One that does not keep up
//! finds that they are gone, and ends.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;
use tracing::warn;

use super::{codec, keys};
use crate::object::{Object, Objects, metadata};
use crate::resources::{RESOURCES, Resource};
use crate::selector::{Fields, Labels};
use crate::{strategy, versions};

/// Changes of a resource that are kept for its watches,
const RECENT: usize = 4096;
/// and what they may take, beyond the objects that are there anyway.
const RECENT_BYTES: usize = 4 << 20;
/// What those of all resources may take together.
const RECENT_ALL: usize = 16 << 20;

/// An object as it is at a revision.
pub struct Entry {
    /// Of its last change; of its removal in the event of one.
    pub revision: u64,
    /// `default/a`, or `a`.
    place: Box<str>,
    /// Its JSON, with neither kind nor version. Never empty: every object has metadata.
    pub body: Bytes,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// As many as its resource has that can be selected by.
    fields: Box<[Box<str>]>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.place, self.revision)
    }
}

impl Entry {
    /// Of an object without kind and version.
    pub(crate) fn new(
        resource: &'static Resource,
        place: &str,
        revision: u64,
        mut object: Object,
    ) -> Self {
        metadata(&mut object).insert("resourceVersion".to_owned(), revision.to_string().into());
        let labels = object["metadata"].get("labels").and_then(Value::as_object);
        let labels = labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((Box::from(key.as_str()), Box::from(value.as_str()?))));
        let labels = labels.collect();
        let fields = resource
            .selectable
            .iter()
            .map(|path| Box::from(&*strategy::field(resource, &object, path)));
        let fields = fields.collect();
        Self {
            revision,
            place: place.into(),
            body: Value::Object(object).to_string().into(),
            labels,
            fields,
        }
    }

    /// Empty for what is in none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.place.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Where it is among those of its resource: `default/a`, or `a`.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.place.split_once('/').map_or(&self.place, |(_, name)| name)
    }

    /// As JSON says it, with neither kind nor version.
    #[must_use]
    pub fn object(&self) -> Object {
        // We wrote it.
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    fn label(&self, key: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(known, _)| **known == *key)?;
        Some(&found.1)
    }

    fn field(&self, resource: &Resource, path: &str) -> Option<&str> {
        match path {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => {
                let at = resource.selectable.iter().position(|known| *known == path)?;
                Some(&self.fields[at])
            }
        }
    }
}

/// Which objects of a resource are meant.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selection {
    /// Empty: all.
    pub namespace: String,
    /// By their labels.
    pub labels: Labels,
    /// By fields, as the stored form names them.
    pub fields: Fields,
}

impl Selection {
    /// All of a namespace, or of all.
    #[must_use]
    pub fn all(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..Self::default() }
    }

    /// Is anything asked of them but where they are?
    #[must_use]
    pub fn selects(&self) -> bool {
        !self.labels.0.is_empty() || !self.fields.0.is_empty()
    }

    /// Is it one of them?
    #[must_use]
    pub fn fits(&self, resource: &'static Resource, entry: &Entry) -> bool {
        (self.namespace.is_empty() || entry.namespace() == self.namespace)
            && self.labels.fit(|key| entry.label(key))
            && self.fields.fit(|path| entry.field(resource, path))
    }

    /// The one object it can be, by name.
    fn place(&self) -> Option<String> {
        let name = self.fields.exactly("metadata.name")?;
        let namespace = match (&self.namespace[..], self.fields.exactly("metadata.namespace")) {
            ("", None) => return None,
            ("", Some(namespace)) | (namespace, _) => namespace,
        };
        Some(format!("{namespace}/{name}"))
    }
}

/// A change.
#[derive(Debug)]
pub struct Event {
    /// What is there now, or was there last with the revision of its removal.
    pub entry: Arc<Entry>,
    /// What was there before.
    pub before: Option<Arc<Entry>>,
    /// Is it gone?
    pub removed: bool,
    /// As a watch without a selector sends it, made for the first who does.
    pub(crate) line: OnceLock<Bytes>,
}

/// What watches see of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seen {
    /// It is new to them.
    Added,
    /// They know it.
    Modified,
    /// It is gone, or no longer what they asked for.
    Deleted,
}

impl Event {
    /// What whoever asked for `selection` sees of it.
    #[must_use]
    pub fn seen(&self, resource: &'static Resource, selection: &Selection) -> Option<Seen> {
        let knew = self.before.as_ref().is_some_and(|before| selection.fits(resource, before));
        let fits = !self.removed && selection.fits(resource, &self.entry);
        match (knew, fits) {
            (false, true) => Some(Seen::Added),
            (true, true) => Some(Seen::Modified),
            (true, false) => Some(Seen::Deleted),
            (false, false) => None,
        }
    }
}

/// Part of a list.
#[derive(Debug)]
pub struct Listed {
    /// In the order of their keys.
    pub entries: Vec<Arc<Entry>>,
    /// Of all this.
    pub revision: u64,
    /// How many are behind them; none is counted when something is selected, but there are more if this is not 0.
    pub remaining: usize,
}

/// What happened since.
#[derive(Debug)]
pub enum Since {
    /// These, and everything up to the revision is told with them.
    Events(Vec<Arc<Event>>, u64),
    /// It is too long ago.
    Forgotten,
}

/// Is told every change of a stored resource before it can be seen by anybody else.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Does it want to know of this resource?
    fn wants(&self, resource: &'static Resource) -> bool;

    /// What it is now; none: it is gone.
    fn observe(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        object: Option<&Object>,
    );
}

/// Every object; see the module.
#[derive(Debug)]
pub struct Cache {
    shelves: Box<[Shelf]>,
    /// Everything up to here is applied.
    revision: watch::Sender<u64>,
    observers: Box<[Arc<dyn Observer>]>,
}

/// Of one resource.
#[derive(Debug)]
struct Shelf {
    state: RwLock<State>,
    /// Of its last change.
    changed: watch::Sender<u64>,
    /// What its recent changes take, as the writer left it.
    recent_bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    items: BTreeMap<Box<str>, Arc<Entry>>,
    /// Of the last change.
    last: u64,
    recent: VecDeque<Arc<Event>>,
    recent_bytes: usize,
    /// Changes after this one are all in `recent`.
    floor: u64,
}

impl Cache {
    pub(crate) fn new(observers: Box<[Arc<dyn Observer>]>) -> Self {
        let shelf = || Shelf {
            state: RwLock::default(),
            changed: watch::channel(0).0,
            recent_bytes: AtomicUsize::new(0),
        };
        let shelves = RESOURCES.iter().map(|_| shelf()).collect();
        Self { shelves, revision: watch::channel(0).0, observers }
    }

    fn shelf(&self, resource: &'static Resource) -> &Shelf {
        &self.shelves[resource.stored().index]
    }

    fn read(&self, resource: &'static Resource) -> RwLockReadGuard<'_, State> {
        self.shelf(resource).state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything up to here can be seen.
    #[must_use]
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Follows [`Cache::revision`].
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Follows the changes of one resource.
    #[must_use]
    pub fn follow_one(&self, resource: &'static Resource) -> watch::Receiver<u64> {
        self.shelf(resource).changed.subscribe()
    }

    /// Replaces everything by what is in the store. Watches that were told less than that end.
    pub(crate) fn load(&self, entries: Vec<orlop_store::Entry>, revision: u64) {
        let mut fresh: Vec<BTreeMap<Box<str>, Arc<Entry>>> = Vec::new();
        fresh.resize_with(self.shelves.len(), BTreeMap::new);
        for stored in entries {
            if let Some((resource, place)) = keys::read(&stored.key)
                && let Some(entry) = read(resource, place, &stored, stored.modified.0)
            {
                fresh[resource.index].insert(place.into(), entry);
            }
        }
        for (resource, (shelf, items)) in RESOURCES.iter().zip(self.shelves.iter().zip(fresh)) {
            let mut state = shelf.state.write().unwrap_or_else(PoisonError::into_inner);
            for gone in state.items.keys().filter(|place| !items.contains_key(*place)) {
                self.tell(resource, gone, None);
            }
            for (place, entry) in &items {
                self.tell(resource, place, Some(entry));
            }
            *state = State { items, last: revision, floor: revision, ..State::default() };
            drop(state);
            shelf.recent_bytes.store(0, Ordering::Relaxed);
            shelf.changed.send_replace(revision);
        }
        self.revision.send_replace(revision);
    }

    fn tell(&self, resource: &'static Resource, place: &str, entry: Option<&Arc<Entry>>) {
        let mut object = None;
        let (namespace, name) = place.split_once('/').unwrap_or(("", place));
        for observer in self.observers.iter().filter(|observer| observer.wants(resource)) {
            let object = entry.map(|entry| &*object.get_or_insert_with(|| entry.object()));
            observer.observe(resource, namespace, name, object);
        }
    }

    /// Takes in what happened; the resources it happened to, once for each change.
    pub(crate) fn apply(&self, batch: &orlop_store::Batch) -> Vec<&'static Resource> {
        let mut touched = Vec::new();
        for change in &batch.events {
            let Some((resource, place)) = keys::read(&change.key) else { continue };
            let revision = change.revision.0;
            let now =
                change.entry.as_ref().and_then(|stored| read(resource, place, stored, revision));
            self.tell(resource, place, now.as_ref());
            let shelf = &self.shelves[resource.index];
            let mut state = shelf.state.write().unwrap_or_else(PoisonError::into_inner);
            let before = match &now {
                Some(entry) => state.items.insert(place.into(), Arc::clone(entry)),
                None => state.items.remove(place),
            };
            let removed = now.is_none();
            let entry = match (now, &before) {
                (Some(entry), _) => entry,
                (None, Some(before)) => {
                    Arc::new(Entry::new(resource, place, revision, before.object()))
                }
                // What was there could not be read either.
                (None, None) => continue,
            };
            state.remember(Event { entry, before, removed, line: OnceLock::new() });
            shelf.recent_bytes.store(state.recent_bytes, Ordering::Relaxed);
            drop(state);
            touched.push((resource, revision));
        }
        self.forget();
        self.revision.send_replace(batch.revision.0);
        for (resource, revision) in &touched {
            self.shelves[resource.index].changed.send_replace(*revision);
        }
        touched.into_iter().map(|(resource, _)| resource).collect()
    }

    /// Where the recent changes of all resources are too many, half of the largest part goes.
    fn forget(&self) {
        let recent = |shelf: &Shelf| shelf.recent_bytes.load(Ordering::Relaxed);
        while self.shelves.iter().map(recent).sum::<usize>() > RECENT_ALL {
            let Some(largest) = self.shelves.iter().max_by_key(|shelf| recent(shelf)) else {
                return;
            };
            let mut state = largest.state.write().unwrap_or_else(PoisonError::into_inner);
            let keeps = state.recent_bytes / 2;
            state.forget(RECENT, keeps, 0);
            largest.recent_bytes.store(state.recent_bytes, Ordering::Relaxed);
        }
    }

    /// One object.
    #[must_use]
    pub fn entry(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Entry>> {
        let state = self.read(resource);
        if namespace.is_empty() {
            state.items.get(name).cloned()
        } else {
            state.items.get(&format!("{namespace}/{name}")[..]).cloned()
        }
    }

    /// Those selected, `limit` at most (0: all).
    #[must_use]
    pub fn select(
        &self,
        resource: &'static Resource,
        selection: &Selection,
        limit: usize,
    ) -> Listed {
        let revision = self.revision();
        let state = self.read(resource);
        let mut listed =
            Listed { entries: Vec::new(), revision: revision.max(state.last), remaining: 0 };
        let stored = resource.stored();
        if let Some(place) = selection.place().filter(|_| resource.namespaced) {
            let found = state.items.get(&place[..]);
            listed.entries.extend(found.filter(|entry| selection.fits(stored, entry)).cloned());
            return listed;
        }
        let all = limit == 0;
        for entry in state.of(&selection.namespace) {
            if !selection.fits(stored, entry) {
                continue;
            }
            if all || listed.entries.len() < limit {
                listed.entries.push(Arc::clone(entry));
            } else {
                listed.remaining += 1;
                if selection.selects() {
                    break;
                }
            }
        }
        listed
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self, resource: &'static Resource) -> usize {
        self.read(resource).items.len()
    }

    /// What happened to a resource after `revision`, `most` changes at a time.
    #[must_use]
    pub fn since(&self, resource: &'static Resource, revision: u64, most: usize) -> Since {
        let upto = self.revision();
        let state = self.read(resource);
        if revision < state.floor {
            return Since::Forgotten;
        }
        let from = state.recent.partition_point(|event| event.entry.revision <= revision);
        let mut events: Vec<_> = state.recent.range(from..).take(most).cloned().collect();
        if from + events.len() == state.recent.len() {
            return Since::Events(events, upto.max(state.last).max(revision));
        }
        // A revision is told whole.
        let last = events.last().map_or(revision, |event| event.entry.revision);
        let rest = state.recent.range(from + events.len()..);
        events.extend(rest.take_while(|event| event.entry.revision == last).cloned());
        Since::Events(events, last)
    }
}

impl State {
    fn remember(&mut self, event: Event) {
        self.last = event.entry.revision;
        self.recent_bytes += weight(&event);
        self.recent.push_back(Arc::new(event));
        self.forget(RECENT, RECENT_BYTES, 1);
    }

    /// Keeps `most` of the last changes, of so many bytes together, but never less than `least`.
    fn forget(&mut self, most: usize, bytes: usize, least: usize) {
        while self.recent.len() > most || self.recent_bytes > bytes && self.recent.len() > least {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= weight(&oldest);
            self.floor = oldest.entry.revision;
        }
    }

    fn of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Entry>> {
        let (from, to) = if namespace.is_empty() {
            (Bound::Unbounded, Bound::Unbounded)
        } else {
            // '0' follows '/'.
            (Bound::Included(format!("{namespace}/")), Bound::Excluded(format!("{namespace}0")))
        };
        let range = (from.as_ref().map(|text| &text[..]), to.as_ref().map(|text| &text[..]));
        self.items.range::<str, _>(range).map(|(_, entry)| entry)
    }
}

/// What an event keeps that would not be there without it.
fn weight(event: &Event) -> usize {
    event.before.as_ref().map_or(0, |before| before.body.len()) + event.entry.body.len()
}

/// What is stored, as it was at a revision; none where that is no object, which is told.
pub(crate) fn read(
    resource: &'static Resource,
    place: &str,
    stored: &orlop_store::Entry,
    revision: u64,
) -> Option<Arc<Entry>> {
    match codec::decode(resource, &stored.value) {
        Ok(object) => Some(Arc::new(Entry::new(resource, place, revision, object))),
        Err(error) => {
            let key = stored.key.escape_ascii();
            warn!(%key, error = %orlop_rt::Chain(&error), "what is stored here is no object; it is not shown");
            None
        }
    }
}

impl Objects for Cache {
    fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Option<Object> {
        let entry = self.entry(resource, namespace, name)?;
        Some(versions::present(resource, entry.object()))
    }

    fn list(&self, resource: &'static Resource, namespace: &str) -> Vec<Object> {
        let listed = self.select(resource, &Selection::all(namespace), 0);
        listed.entries.iter().map(|entry| versions::present(resource, entry.object())).collect()
    }
}

#[cfg(test)]
mod tests {
    use orlop_store::{Batch, Entry as Stored, Revision};
    use serde_json::json;

    use super::*;
    use crate::resources::find;

    /// A change of an object to so many bytes.
    fn change(resource: &'static Resource, name: &str, revision: u64, bytes: usize) -> Batch {
        let key: Bytes = keys::key(resource, "default", name).into();
        let object = json!({
            "kind": resource.kind,
            "apiVersion": resource.api_version(),
            "metadata": {"name": name, "namespace": "default", "annotations": {"a": "x".repeat(bytes)}},
        });
        let revision = Revision(revision);
        let entry = Stored {
            key: key.clone(),
            value: object.to_string().into(),
            created: revision,
            modified: revision,
            version: 1,
            lease: None,
        };
        let event = orlop_store::Event { key, revision, entry: Some(entry), previous: None };
        Batch { revision, events: vec![event] }
    }

    #[test]
    fn recent_changes_of_all_resources_together_are_bounded() {
        let cache = Cache::new(Box::new([]));
        let named = |plural| find("", "v1", plural).expect("it is served");
        let quiet = named("limitranges");
        let busy = ["configmaps", "pods", "secrets", "services", "endpoints", "resourcequotas"];
        cache.apply(&change(quiet, "q", 1, 10));
        let mut revision = 1;
        // Each of them alone would keep 4 MiB.
        for plural in busy {
            for _ in 0..30 {
                revision += 1;
                cache.apply(&change(named(plural), "o", revision, 100 << 10));
            }
        }
        let kept = |resource| cache.read(resource).recent_bytes;
        let all: usize = busy.into_iter().map(|plural| kept(named(plural))).sum();
        assert!(all + kept(quiet) <= RECENT_ALL, "{all} bytes are kept");
        assert!(all > RECENT_ALL / 2, "but {all} bytes are kept");
        let told = cache.since(quiet, 0, 10);
        assert!(matches!(&told, Since::Events(events, _) if events.len() == 1), "{told:?}");
        let long_ago = cache.since(named("configmaps"), 1, 10);
        assert!(matches!(long_ago, Since::Forgotten), "{long_ago:?}");
        for plural in busy {
            let newest = cache.entry(named(plural), "default", "o").expect("it is there");
            let last = cache.since(named(plural), newest.revision - 1, 10);
            assert!(matches!(&last, Since::Events(events, _) if events.len() == 1), "{plural}");
        }
    }
}
