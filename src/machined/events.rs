//! What happened on the node, kept for those who ask later and sent to those who watch.
//!
//! A ring of 1,000 events; the last 990 can be replayed (10 are a safety gap for readers). A reader is
//! a place in the ring and nothing more: one that falls 1,000 behind loses its stream, and one that
//! never reads costs no more than one that does. There are at most [`READERS`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use orlop_proto::machine;
use orlop_proto::orlop::v1alpha1::NetworkEvent;
use prost::Message;
use prost_types::Any;
use tokio::sync::watch;
use tokio::task::yield_now;

const CAPACITY: usize = 1000;
const GAP: usize = 10;
/// Readers at a time: a reader costs PID 1 some 7 KiB, most of it in its HTTP/2 stream.
pub(crate) const READERS: usize = 1024;
/// Events that a reader gets at once. What it does not take waits encoded in its stream.
const BURST: usize = 4;

/// One event as it is kept: encoded once for all readers.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) at: SystemTime,
    pub(crate) data: Any,
}

/// Messages that can be events.
pub(crate) trait Payload: Message {
    const NAME: &'static str;
}

impl Payload for machine::SequenceEvent {
    const NAME: &'static str = "machine.SequenceEvent";
}
impl Payload for machine::PhaseEvent {
    const NAME: &'static str = "machine.PhaseEvent";
}
impl Payload for machine::TaskEvent {
    const NAME: &'static str = "machine.TaskEvent";
}
impl Payload for machine::ServiceStateEvent {
    const NAME: &'static str = "machine.ServiceStateEvent";
}

impl Payload for machine::AddressEvent {
    const NAME: &'static str = "machine.AddressEvent";
}
impl Payload for NetworkEvent {
    const NAME: &'static str = "orlop.v1alpha1.NetworkEvent";
}

/// Which past events a reader wants first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    None,
    All,
    Last(usize),
    After(String),
    Within(Duration),
}

/// The ring. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    /// Guards the ring; held for a push or a look, never over an await.
    ring: Arc<Mutex<Ring>>,
    /// How many were ever published; wakes the readers.
    published: Arc<watch::Sender<u64>>,
}

#[derive(Debug)]
struct Ring {
    records: VecDeque<Arc<Record>>,
    machine: [u8; 3],
    /// How many were ever published; the last digits make ids differ.
    published: u64,
    /// Readers that fell too far behind.
    lagged: u64,
}

impl Ring {
    /// The place of the oldest record that is kept; places count from the first ever.
    fn first(&self) -> u64 {
        self.published - self.records.len() as u64
    }
}

/// What figures say of the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Since the start.
    pub(crate) published: u64,
    /// Who reads now.
    pub(crate) readers: usize,
    /// Readers that fell too far behind, since the start.
    pub(crate) lagged: u64,
}

/// There are [`READERS`] already.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{READERS} clients follow the events of this node already; end one of them")]
pub(crate) struct Crowded;

impl Events {
    /// `machine` tells this boot's ids from another's: three random bytes.
    pub(crate) fn new(machine: [u8; 3]) -> Self {
        let records = VecDeque::with_capacity(CAPACITY);
        let ring = Ring { records, machine, published: 0, lagged: 0 };
        Self { ring: Arc::new(Mutex::new(ring)), published: Arc::new(watch::Sender::new(0)) }
    }

    /// Keeps `payload` and wakes all who watch.
    pub(crate) fn publish<P: Payload>(&self, payload: &P) {
        self.publish_at(SystemTime::now(), payload);
    }

    fn publish_at<P: Payload>(&self, now: SystemTime, payload: &P) {
        let data =
            Any { type_url: format!("talos/runtime/{}", P::NAME), value: payload.encode_to_vec() };
        let published = {
            let mut ring = self.lock();
            ring.published += 1;
            // A clock that was set back must not put this one before the last.
            let at = ring.records.back().map_or(now, |last| now.max(last.at));
            let id = xid(at, ring.machine, std::process::id(), ring.published);
            if ring.records.len() == CAPACITY {
                ring.records.pop_front();
            }
            ring.records.push_back(Arc::new(Record { id, at, data }));
            ring.published
        };
        self.published.send_replace(published);
    }

    /// Reads the past events `tail` asks for, then all that come after them.
    ///
    /// # Errors
    /// [`Crowded`].
    pub(crate) fn watch(&self, tail: &Tail) -> Result<Reader, Crowded> {
        let ring = self.lock();
        if self.published.receiver_count() >= READERS {
            return Err(Crowded);
        }
        let skip = select(&ring.records, tail, SystemTime::now());
        let next = ring.first() + skip as u64;
        Ok(Reader { events: self.clone(), published: self.published.subscribe(), next, burst: 0 })
    }

    /// What `tail` asks for of the past.
    #[cfg(test)]
    pub(crate) fn kept(&self, tail: &Tail) -> Vec<Arc<Record>> {
        let ring = self.lock();
        let skip = select(&ring.records, tail, SystemTime::now());
        ring.records.iter().skip(skip).cloned().collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        let ring = self.lock();
        let readers = self.published.receiver_count();
        Counts { published: ring.published, readers, lagged: ring.lagged }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the ring.
#[derive(Debug)]
pub(crate) struct Reader {
    events: Events,
    published: watch::Receiver<u64>,
    next: u64,
    /// Events since the last pause.
    burst: usize,
}

impl Reader {
    /// The next event; waits for it. `None` when it is too late for that one: the reader may ask
    /// again from its last id. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Arc<Record>> {
        if self.burst == BURST {
            self.burst = 0;
            yield_now().await;
        }
        loop {
            // Marked as seen before the look, so that a push in between is not missed.
            self.published.borrow_and_update();
            {
                let mut ring = self.events.lock();
                let Some(ahead) = self.next.checked_sub(ring.first()) else {
                    ring.lagged += 1;
                    return None;
                };
                // Out of range of usize is out of range of the ring.
                let index = usize::try_from(ahead).unwrap_or(usize::MAX);
                if let Some(record) = ring.records.get(index) {
                    self.next += 1;
                    self.burst += 1;
                    return Some(record.clone());
                }
            }
            self.burst = 0;
            // The sender is in `self.events`.
            self.published.changed().await.ok()?;
        }
    }
}

/// How many of the kept events a reader does not want.
fn select(records: &VecDeque<Arc<Record>>, tail: &Tail, now: SystemTime) -> usize {
    let first = records.len().saturating_sub(CAPACITY - GAP);
    match tail {
        Tail::None => records.len(),
        Tail::All => first,
        Tail::Last(count) => records.len().saturating_sub(*count).max(first),
        // An id that sorts after all of ours is of another boot whose clock was ahead, or of another
        // node: it says nothing of what its owner has seen here.
        Tail::After(id) if records.back().is_some_and(|newest| *id > newest.id) => first,
        Tail::After(id) => records.partition_point(|record| record.id <= *id).max(first),
        Tail::Within(age) => {
            let since = now.checked_sub(*age).unwrap_or(SystemTime::UNIX_EPOCH);
            records.partition_point(|record| record.at < since).max(first)
        }
    }
}

/// Whether `text` has the form of an id.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 20 && text.bytes().all(|byte| DIGITS.contains(&byte))
}

/// base32hex, in lower case.
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// An id of 20 characters that sorts by time (`rs/xid`): seconds, machine, process and a counter as
/// 12 bytes in lower-case base32hex.
fn xid(at: SystemTime, machine: [u8; 3], pid: u32, counter: u64) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut bytes = [0u8; 12];
    bytes[..4].copy_from_slice(&seconds.to_be_bytes()[4..]);
    bytes[4..7].copy_from_slice(&machine);
    bytes[7..9].copy_from_slice(&pid.to_be_bytes()[2..]);
    bytes[9..].copy_from_slice(&counter.to_be_bytes()[5..]);
    // 96 bits are 20 digits of 5 bits; the last holds one bit and four zeros.
    (0..20)
        .map(|digit| {
            let bit = digit * 5;
            let pair = u16::from(bytes[bit / 8]) << 8
                | u16::from(bytes.get(bit / 8 + 1).copied().unwrap_or_default());
            char::from(DIGITS[usize::from(pair >> (11 - bit % 8) & 31)])
        })
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn phase(name: &str) -> machine::PhaseEvent {
        machine::PhaseEvent { phase: name.to_owned(), action: 0 }
    }

    fn published(count: usize) -> Events {
        let events = Events::new([1, 2, 3]);
        (0..count).for_each(|i| events.publish(&phase(&i.to_string())));
        events
    }

    #[test]
    fn an_id_is_the_base32hex_of_its_twelve_bytes() {
        // The example of the xid format: 9m4e2mr0ui3e8a215n4g.
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(0x4d88_e15b);
        let id = xid(at, [0x60, 0xf4, 0x86], 0xe428, 0x41_2dc9);
        assert_eq!(id, "9m4e2mr0ui3e8a215n4g");
        assert!(is_id(&id));
        for wrong in ["", "UNKNOWN", "9m4e2mr0ui3e8a215n4", "9m4e2mr0ui3e8a215n4w"] {
            assert!(!is_id(wrong), "{wrong}");
        }
    }

    #[test]
    fn ids_sort_in_the_order_of_the_events() {
        let past = published(300).kept(&Tail::All);
        assert_eq!(past.len(), 300);
        assert!(past.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert_eq!(past[0].data.type_url, "talos/runtime/machine.PhaseEvent");
    }

    #[test]
    fn a_clock_set_back_does_not_change_the_order() {
        let events = Events::new([0; 3]);
        let now = SystemTime::now();
        events.publish_at(now, &phase("one"));
        events.publish_at(now - Duration::from_secs(3600), &phase("two"));
        let all = events.kept(&Tail::All);
        assert!(all[0].id < all[1].id);
        assert_eq!(events.kept(&Tail::After(all[0].id.clone())).len(), 1);
    }

    #[test]
    fn at_most_990_are_replayed_and_each_tail_takes_its_part() {
        let events = published(1500);
        let all = events.kept(&Tail::All);
        assert_eq!(all.len(), 990);
        let after = |id: &str| Tail::After(id.to_owned());
        for (tail, count) in [
            (Tail::None, 0),
            (Tail::Last(7), 7),
            (Tail::Last(5000), 990),
            (Tail::Within(Duration::from_secs(3600)), 990),
            (after(&all[980].id), 9),
            (after(&all[989].id), 0),
            // Of an earlier boot, and of one whose clock was ahead.
            (after("00000000000000000000"), 990),
            (after("vvvvvvvvvvvvvvvvvvvg"), 990),
        ] {
            assert_eq!(events.kept(&tail).len(), count, "{tail:?}");
        }
    }

    #[tokio::test]
    async fn a_reader_gets_what_comes_and_ends_when_it_is_too_far_behind() {
        let events = published(5);
        let mut reader = events.watch(&Tail::Last(1)).unwrap();
        events.publish(&phase("new"));
        for id in events.kept(&Tail::Last(2)).iter().map(|record| &record.id) {
            assert_eq!(reader.next().await.map(|record| record.id.clone()).as_ref(), Some(id));
        }
        let mut slow = events.watch(&Tail::None).unwrap();
        (0..CAPACITY).for_each(|i| events.publish(&phase(&i.to_string())));
        assert!(reader.next().await.is_some(), "exactly 1,000 behind is not too far");
        events.publish(&phase("one too many"));
        assert_eq!(slow.next().await.map(|record| record.id.clone()), None);
        drop((reader, slow));
        let counts = Counts { published: 1007, readers: 0, lagged: 1 };
        assert_eq!(events.counts(), counts);
    }

    #[tokio::test]
    async fn one_reader_too_many_is_told_so_until_another_ends() {
        let events = published(1);
        let mut readers: Vec<_> =
            (0..READERS).map(|_| events.watch(&Tail::None).unwrap()).collect();
        assert_eq!(events.watch(&Tail::None).err(), Some(Crowded));
        events.publish(&phase("all of them see it"));
        for reader in &mut readers {
            assert!(reader.next().now_or_never().flatten().is_some());
        }
        readers.pop();
        assert!(events.watch(&Tail::None).is_ok());
    }
}
