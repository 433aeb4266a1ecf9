//! What happened on the node, kept for those who ask later and sent to those who watch.
//!
//! A ring of 1,000 events; the last 990 can be replayed (10 are a safety gap for readers). A reader
//! that falls 1,000 behind loses its stream, so that it never costs more than the ring.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use orlop_proto::machine;
use prost::Message;
use prost_types::Any;
use tokio::sync::broadcast;

const CAPACITY: usize = 1000;
const GAP: usize = 10;

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
    /// Guards the ring and the counter; held for a push or a copy, never over an await.
    ring: Arc<Mutex<Ring>>,
    live: broadcast::Sender<Arc<Record>>,
}

#[derive(Debug)]
struct Ring {
    records: VecDeque<Arc<Record>>,
    machine: [u8; 3],
    counter: u32,
}

impl Events {
    /// `machine` tells this boot's ids from another's: three random bytes.
    pub(crate) fn new(machine: [u8; 3]) -> Self {
        let ring = Ring { records: VecDeque::with_capacity(CAPACITY), machine, counter: 0 };
        Self { ring: Arc::new(Mutex::new(ring)), live: broadcast::channel(CAPACITY).0 }
    }

    /// Keeps `payload` and sends it to all who watch.
    pub(crate) fn publish<P: Payload>(&self, payload: &P) {
        self.publish_at(SystemTime::now(), payload);
    }

    fn publish_at<P: Payload>(&self, now: SystemTime, payload: &P) {
        let data =
            Any { type_url: format!("talos/runtime/{}", P::NAME), value: payload.encode_to_vec() };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.counter = ring.counter.wrapping_add(1);
        // A clock that was set back must not put this one before the last.
        let at = ring.records.back().map_or(now, |last| now.max(last.at));
        let id = xid(at, ring.machine, std::process::id(), ring.counter);
        let record = Arc::new(Record { id, at, data });
        if ring.records.len() == CAPACITY {
            ring.records.pop_front();
        }
        ring.records.push_back(record.clone());
        // Sent under the lock, so that a new reader sees each event once. Nobody watching is fine.
        let _ = self.live.send(record);
    }

    /// The past events `tail` asks for, and all that come after them.
    pub(crate) fn watch(
        &self,
        tail: &Tail,
    ) -> (Vec<Arc<Record>>, broadcast::Receiver<Arc<Record>>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        (select(&ring.records, tail, SystemTime::now()), self.live.subscribe())
    }
}

fn select(records: &VecDeque<Arc<Record>>, tail: &Tail, now: SystemTime) -> Vec<Arc<Record>> {
    let first = records.len().saturating_sub(CAPACITY - GAP);
    let skip = match tail {
        Tail::None => records.len(),
        Tail::All => first,
        Tail::Last(count) => records.len().saturating_sub(*count).max(first),
        Tail::After(id) => {
            records.iter().position(|record| record.id > *id).unwrap_or(records.len()).max(first)
        }
        Tail::Within(age) => {
            let since = now.checked_sub(*age).unwrap_or(SystemTime::UNIX_EPOCH);
            records.iter().position(|record| record.at >= since).unwrap_or(records.len()).max(first)
        }
    };
    records.iter().skip(skip).cloned().collect()
}

/// An id of 20 characters that sorts by time (`rs/xid`): seconds, machine, process and a counter as
/// 12 bytes in lower-case base32hex.
fn xid(at: SystemTime, machine: [u8; 3], pid: u32, counter: u32) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut bytes = [0u8; 12];
    bytes[..4].copy_from_slice(&seconds.to_be_bytes()[4..]);
    bytes[4..7].copy_from_slice(&machine);
    bytes[7..9].copy_from_slice(&pid.to_be_bytes()[2..]);
    bytes[9..].copy_from_slice(&counter.to_be_bytes()[1..]);
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
mod tests {
    use super::*;

    fn phase(name: &str) -> machine::PhaseEvent {
        machine::PhaseEvent { phase: name.to_owned(), action: 0 }
    }

    #[test]
    fn an_id_is_the_base32hex_of_its_twelve_bytes() {
        // The example of the xid format: 9m4e2mr0ui3e8a215n4g.
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(0x4d88_e15b);
        assert_eq!(xid(at, [0x60, 0xf4, 0x86], 0xe428, 0x41_2dc9), "9m4e2mr0ui3e8a215n4g");
    }

    #[test]
    fn ids_sort_in_the_order_of_the_events() {
        let events = Events::new([1, 2, 3]);
        (0..300).for_each(|i| events.publish(&phase(&i.to_string())));
        let (past, _) = events.watch(&Tail::All);
        assert!(past.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert_eq!(past[0].data.type_url, "talos/runtime/machine.PhaseEvent");
    }

    #[test]
    fn a_clock_set_back_does_not_change_the_order() {
        let events = Events::new([0; 3]);
        let now = SystemTime::now();
        events.publish_at(now, &phase("one"));
        events.publish_at(now - Duration::from_secs(3600), &phase("two"));
        let all = events.watch(&Tail::All).0;
        assert!(all[0].id < all[1].id);
        assert_eq!(events.watch(&Tail::After(all[0].id.clone())).0.len(), 1);
    }

    #[test]
    fn at_most_990_are_replayed_and_each_tail_takes_its_part() {
        let events = Events::new([0; 3]);
        (0..1500).for_each(|i| events.publish(&phase(&i.to_string())));
        let count = |tail: Tail| events.watch(&tail).0.len();
        assert_eq!(count(Tail::All), 990);
        assert_eq!(count(Tail::None), 0);
        assert_eq!(count(Tail::Last(7)), 7);
        assert_eq!(count(Tail::Last(5000)), 990);
        assert_eq!(count(Tail::Within(Duration::from_secs(3600))), 990);
        let all = events.watch(&Tail::All).0;
        assert_eq!(count(Tail::After(all[980].id.clone())), 9);
    }
}
