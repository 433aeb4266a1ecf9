//! Watches: what is there, what changed since, and what changes, each once and in order.
//!
//! A watch is asked for its next piece whenever its client has room for it, so it needs neither a task nor a queue: it
//! knows up to which revision it has told, and the cache keeps the last changes for all. One that begins further back
//! than those reads the store's history up to where they begin.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use orlop_rt::CancellationToken;
use orlop_store::Range;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::form::Form;
use super::query::{Reading, Revision};
use crate::metrics::Histogram;
use crate::object::{Object, metadata};
use crate::random;
use crate::status::Status;
use crate::storage::cache::{Entry, Event, Seen, Selection, Since};
use crate::storage::{Storage, keys};

/// How often a client that takes bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long before its end a watch sends the last one.
const BEFORE_END: Duration = Duration::from_secs(2);
/// How long a watch lasts whose client does not say: this, and up to as much again.
const LASTS: Duration = Duration::from_secs(30 * 60);
/// What is sent at once.
const PIECE: usize = 64 << 10;
/// Changes that are looked at at once.
const CHANGES: usize = 256;
/// Says that a watch has told everything that was there when it began.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// A watch under way.
pub(crate) struct Watching {
    storage: Storage,
    form: Form,
    selection: Selection,
    /// What was there.
    initial: VecDeque<Arc<Entry>>,
    /// A bookmark must say when that was all.
    end_of_initial: bool,
    /// The way from where it began to what the cache still knows.
    history: Option<(orlop_store::Watch, u64)>,
    /// Everything up to here was told.
    told: u64,
    changed: watch::Receiver<u64>,
    bookmarks: bool,
    next_bookmark: Instant,
    bookmark_due: bool,
    ends: Instant,
    shutdown: CancellationToken,
    over: bool,
    /// Tables tell their columns once.
    first: bool,
    /// How many events were sent,
    sent: Arc<AtomicU64>,
    /// and how long they were.
    sizes: Arc<Histogram>,
}

impl Watching {
    /// Begins a watch.
    ///
    /// # Errors
    /// It begins too far back, or ahead; the store does not answer.
    pub(crate) async fn begin(
        storage: Storage,
        form: Form,
        reading: Reading,
        shutdown: CancellationToken,
    ) -> Result<Self, Status> {
        let resource = form.resource;
        let stored = resource.stored();
        // Before anything is looked at, so that no change is missed.
        let changed = storage.cache().follow_one(stored);
        match reading.revision {
            Revision::Newest if reading.initial != Some(false) => {
                storage.current().await?;
            }
            Revision::AtLeast(revision) if reading.initial == Some(true) => {
                storage.at_least(revision).await?;
            }
            _ => {}
        }
        let from_now = matches!(reading.revision, Revision::Newest | Revision::Any);
        let with_initial = reading.initial.unwrap_or(from_now);
        let mut initial = VecDeque::new();
        let mut history = None;
        let told = match reading.revision {
            _ if with_initial => {
                let listed = storage.cache().select(stored, &reading.selection, 0);
                initial = listed.entries.into();
                listed.revision
            }
            Revision::AtLeast(revision) | Revision::Exactly(revision) => {
                let since = storage.cache().since(stored, revision, 1);
                if matches!(since, Since::Forgotten) {
                    let upto = storage.cache().revision();
                    let range = Range::prefix(keys::prefix(stored, &reading.selection.namespace));
                    let watch = storage
                        .store()
                        .watch(range, orlop_store::Revision(revision))
                        .await
                        .map_err(|error| expired(&error, revision, upto))?;
                    history = Some((watch, upto));
                }
                revision
            }
            Revision::Newest | Revision::Any => storage.cache().revision(),
        };
        let now = Instant::now();
        let lasts = reading.timeout.unwrap_or_else(|| {
            LASTS + Duration::from_secs(u64::from(random::number()) % LASTS.as_secs())
        });
        // A client may ask for any time.
        let ends = now.checked_add(lasts).unwrap_or(now + 2 * LASTS);
        let of = [resource.group, resource.version, resource.plural];
        let sent = storage.metrics().watch_events.of(of);
        let sizes = storage.metrics().watch_event_sizes.of(of);
        let mut watching = Self {
            storage,
            form,
            selection: reading.selection,
            initial,
            end_of_initial: reading.initial == Some(true) && reading.bookmarks,
            history,
            told,
            changed,
            bookmarks: reading.bookmarks,
            next_bookmark: now,
            bookmark_due: false,
            ends,
            shutdown,
            over: false,
            first: true,
            sent,
            sizes,
        };
        watching.plan_bookmark();
        Ok(watching)
    }

    fn plan_bookmark(&mut self) {
        let now = Instant::now();
        let last = self.ends.checked_sub(BEFORE_END).unwrap_or(now);
        self.next_bookmark =
            if last > now { last.min(now + BOOKMARK_EVERY) } else { self.ends + BOOKMARK_EVERY };
    }

    /// The next piece; none: it is over.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let mut out = BytesMut::new();
        loop {
            while let Some(entry) = self.initial.pop_front() {
                self.write_entry(&mut out, &entry);
                if out.len() >= PIECE {
                    return Some(out.freeze());
                }
            }
            if std::mem::take(&mut self.end_of_initial) {
                self.write_bookmark(&mut out, true);
            }
            if self.history.is_some() {
                if let Some(over) = self.read_history(&mut out).await {
                    self.over = true;
                    self.put(&mut out, &self.form.frame("ERROR", over.body()));
                }
                if !out.is_empty() {
                    return Some(out.freeze());
                }
                continue;
            }
            // Marked as seen before the changes are read: what comes after is another one.
            self.changed.borrow_and_update();
            match self.storage.cache().since(self.form.resource, self.told, CHANGES) {
                // It was too slow, and goes on from what it knows by another watch.
                Since::Forgotten => {
                    self.over = true;
                    let resource = self.form.resource;
                    let slow = &self.storage.metrics().terminated_watches;
                    slow.add([resource.group, resource.plural]);
                }
                Since::Events(events, upto) => {
                    let more = !events.is_empty();
                    for event in events {
                        self.write(&mut out, &event);
                    }
                    self.told = upto;
                    if more && out.len() < PIECE {
                        continue;
                    }
                }
            }
            // Behind everything that it claims to have told.
            if std::mem::take(&mut self.bookmark_due) && !self.over {
                self.write_bookmark(&mut out, false);
            }
            self.over |= Instant::now() >= self.ends;
            if !out.is_empty() || self.over {
                return (!out.is_empty()).then(|| out.freeze());
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                changed = self.changed.changed() => if changed.is_err() {
                    return None;
                },
                () = sleep_until(self.ends) => return None,
                () = sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.plan_bookmark();
                    self.bookmark_due = true;
                }
            }
        }
    }

    /// Reads on in the store; the error ends the watch.
    async fn read_history(&mut self, out: &mut BytesMut) -> Option<Status> {
        let (watch, upto) = self.history.as_mut()?;
        let upto = *upto;
        // What breaks is told by the next batch.
        watch.request_progress().await.ok();
        let batch = match watch.next().await {
            Ok(batch) => batch,
            Err(error) => return Some(expired(&error, self.told, upto)),
        };
        let resource = self.form.resource.stored();
        let told = self.told;
        for change in batch.events.into_iter().filter(|change| change.revision.0 > told) {
            let revision = change.revision.0;
            let Some((_, place)) = keys::read(&change.key) else { continue };
            let read = |entry: Option<orlop_store::Entry>, revision| {
                crate::storage::cache::read(resource, place, &entry?, revision)
            };
            let before_at = change.previous.as_ref().map_or(0, |entry| entry.modified.0);
            let removed = change.entry.is_none();
            let before = read(change.previous, before_at);
            let entry = if removed {
                before
                    .as_ref()
                    .map(|before| Arc::new(Entry::new(resource, place, revision, before.object())))
            } else {
                read(change.entry, revision)
            };
            if let Some(entry) = entry {
                let line = std::sync::OnceLock::new();
                self.write(out, &Event { entry, before, removed, line });
            }
        }
        self.told = self.told.max(batch.revision.0);
        if self.told >= upto {
            self.history = None;
        }
        None
    }

    fn put(&self, out: &mut BytesMut, frame: &[u8]) {
        out.put_slice(frame);
        self.sent.fetch_add(1, Ordering::Relaxed);
        // A count of bytes is exact far beyond any event.
        #[expect(clippy::cast_precision_loss, reason = "see above")]
        self.sizes.measure(frame.len() as f64);
    }

    fn write_entry(&mut self, out: &mut BytesMut, entry: &Entry) {
        if self.form.is_plain() {
            self.put(out, &self.form.line("ADDED", &entry.body));
        } else {
            self.write_object(out, "ADDED", entry.object());
        }
    }

    fn write_object(&mut self, out: &mut BytesMut, kind: &str, object: Object) {
        let heads = std::mem::take(&mut self.first);
        self.put(out, &self.form.frame(kind, self.form.one(object, heads)));
    }

    fn write(&mut self, out: &mut BytesMut, event: &Event) {
        let Some(seen) = event.seen(self.form.resource.stored(), &self.selection) else { return };
        let kind = match seen {
            Seen::Added => "ADDED",
            Seen::Modified => "MODIFIED",
            Seen::Deleted => "DELETED",
        };
        let left = seen == Seen::Deleted && !event.removed;
        let natural = match (&event.before, event.removed) {
            (_, true) => Seen::Deleted,
            (Some(_), false) => Seen::Modified,
            (None, false) => Seen::Added,
        };
        match &event.before {
            // What it was when it was last what is asked for, with the revision that ended that.
            Some(before) if left => {
                let mut object = before.object();
                metadata(&mut object)
                    .insert("resourceVersion".to_owned(), event.entry.revision.to_string().into());
                self.write_object(out, kind, object);
            }
            _ if !self.form.is_plain() => self.write_object(out, kind, event.entry.object()),
            _ if seen == natural => {
                let line = event.line.get_or_init(|| self.form.line(kind, &event.entry.body));
                self.put(out, line);
            }
            _ => self.put(out, &self.form.line(kind, &event.entry.body)),
        }
    }

    fn write_bookmark(&mut self, out: &mut BytesMut, end_of_initial: bool) {
        let revision = self.told.to_string();
        let mut metadata = json!({"resourceVersion": revision, "creationTimestamp": null});
        if end_of_initial {
            metadata["annotations"] = json!({ INITIAL_END: "true" });
        }
        let Value::Object(object) = json!({ "metadata": metadata }) else { return };
        let heads = std::mem::take(&mut self.first);
        self.put(out, &self.form.frame("BOOKMARK", self.form.one(object, heads)));
    }
}

/// A watch that begins where nothing is known any more.
pub(crate) fn expired(error: &orlop_store::Error, revision: u64, newest: u64) -> Status {
    match error {
        orlop_store::Error::Compacted { oldest, .. } => {
            let oldest = if oldest.0 == 0 { newest } else { oldest.0 };
            Status::expired(format!("too old resource version: {revision} ({oldest})"))
        }
        error => Status::unavailable(orlop_rt::Chain(error).to_string()),
    }
}
