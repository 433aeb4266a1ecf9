//! Who hears of what was committed.
//!
//! A watch first reads the history and then lives on what the writer hands it, over a short queue. A watch whose
//! reader does not keep up falls off the queue, never holds up the writer, and reads the history again when it comes
//! back: it misses nothing unless it is slower than compaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::{Shared, blocking};
use crate::{Batch, Event, Range, Result, Revision};

/// Commits that may wait for a watch.
const QUEUE: usize = 64;

/// Events read from the history at once.
const CHUNK: usize = 512;

#[derive(Debug, Default)]
pub(crate) struct Hub {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    committed: Revision,
    next: u64,
    watches: HashMap<u64, Place>,
}

#[derive(Debug)]
struct Place {
    range: Range,
    queue: mpsc::Sender<Batch>,
}

impl Hub {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn committed(&self) -> Revision {
        self.state().committed
    }

    /// Tells everybody whom it concerns. Called in the order of the revisions.
    pub(crate) fn publish(&self, revision: Revision, events: &[Event]) {
        let state = &mut *self.state();
        state.committed = revision;
        state.watches.retain(|_, place| {
            let events: Vec<Event> =
                events.iter().filter(|event| place.range.holds(&event.key)).cloned().collect();
            // Full or gone: it is off the queue, and its reader finds that out.
            events.is_empty() || place.queue.try_send(Batch { revision, events }).is_ok()
        });
    }

    fn join(&self, range: &Range) -> Joined {
        let (queue, batches) = mpsc::channel(QUEUE);
        let state = &mut *self.state();
        state.next += 1;
        state.watches.insert(state.next, Place { range: range.clone(), queue });
        Joined { id: state.next, batches, upto: state.committed }
    }

    fn leave(&self, id: u64) {
        self.state().watches.remove(&id);
    }

    /// Has every watch read the history.
    pub(crate) fn cut(&self) {
        self.state().watches.clear();
    }

    /// Sends how far everything is to one watch, behind what waits for it.
    fn progress(&self, id: u64) {
        let state = &mut *self.state();
        let batch = Batch { revision: state.committed, events: Vec::new() };
        if state.watches.get(&id).is_some_and(|place| place.queue.try_send(batch).is_err()) {
            state.watches.remove(&id);
        }
    }
}

/// A place at the hub.
#[derive(Debug)]
struct Joined {
    id: u64,
    batches: mpsc::Receiver<Batch>,
    /// What was committed before it: not in `batches`.
    upto: Revision,
}

/// The changes of a range.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    range: Range,
    /// Everything up to here was told.
    told: Revision,
    joined: Joined,
    progress_asked: bool,
}

impl Watch {
    pub(crate) fn start(shared: Arc<Shared>, range: Range, after: Revision) -> Result<Self> {
        let joined = shared.hub.join(&range);
        let watch = Self { told: after, joined, range, shared, progress_asked: false };
        // Told at once rather than with the first event.
        watch.shared.read(|tables| tables.is_known_after(after))?;
        Ok(watch)
    }

    pub(crate) fn request_progress(&mut self) {
        if self.told < self.joined.upto {
            // It is still reading the history: the answer follows that.
            self.progress_asked = true;
        } else {
            self.shared.hub.progress(self.joined.id);
        }
    }

    pub(crate) async fn next(&mut self) -> Result<Batch> {
        loop {
            if self.told < self.joined.upto {
                let (shared, range, after) =
                    (Arc::clone(&self.shared), self.range.clone(), self.told);
                let (events, upto) = blocking("read the history", move || {
                    shared.read(|tables| tables.history(&range, after, CHUNK))
                })
                .await?;
                self.told = upto;
                if !events.is_empty() {
                    return Ok(Batch { revision: self.told, events });
                }
            } else if std::mem::take(&mut self.progress_asked) {
                return Ok(Batch { revision: self.told, events: Vec::new() });
            } else if let Some(mut batch) = self.joined.batches.recv().await {
                // The history told of some already, and a watch of the future hears of nothing before.
                let (told, asked) = (self.told, batch.events.is_empty());
                batch.events.retain(|event| event.revision > told);
                self.told = told.max(batch.revision);
                if asked || !batch.events.is_empty() {
                    return Ok(Batch { revision: self.told, events: batch.events });
                }
            } else {
                // It was too slow. Whether it had asked for its progress fell off the queue as well.
                self.joined = self.shared.hub.join(&self.range);
                self.progress_asked = true;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.hub.leave(self.joined.id);
    }
}
