//! What services say: one ring of bytes each, read from its end, by lines, and followed.
//!
//! A ring starts at 16 KiB and doubles to 1 MiB (or what [`Logs::with_capacity`] says); then the
//! oldest bytes are lost. Writers never wait. A reader that was overtaken goes on 2 KiB after the
//! oldest byte kept, so that the next write does not overtake it at once. [`Logs::keep_in`] follows
//! all rings to disk, [`Logs::forward`] over the network.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::forward::Destinations;

const MIN: usize = 16 << 10;
const MAX: usize = 1 << 20;
const GAP: u64 = 2 << 10;

/// The logs of all services. Clones share them.
#[derive(Clone, Debug)]
pub struct Logs {
    /// Guards the table; held for a look-up.
    logs: Arc<Mutex<BTreeMap<String, Log>>>,
    /// Of each ring.
    capacity: Arc<AtomicUsize>,
    /// Wakes who follows all logs: to disk, over the network.
    pub(crate) written: Arc<watch::Sender<()>>,
    pub(crate) dropped: Arc<AtomicU64>,
    pub(crate) destinations: Arc<Destinations>,
}

impl Default for Logs {
    fn default() -> Self {
        Self::with_capacity(MAX)
    }
}

impl Logs {
    /// Logs that keep the last `bytes` of each service, 16 KiB at least.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            logs: Arc::default(),
            capacity: Arc::new(AtomicUsize::new(bytes.max(MIN))),
            written: Arc::default(),
            dropped: Arc::default(),
            destinations: Arc::default(),
        }
    }

    /// From now on keeps the last `bytes` of each service, 16 KiB at least.
    pub fn resize(&self, bytes: usize) {
        let capacity = bytes.max(MIN);
        let logs = lock(&self.logs);
        // Under the lock of the table, so that a new log has it as well.
        self.capacity.store(capacity, Ordering::Relaxed);
        logs.values().for_each(|log| lock(&log.ring).resize(capacity));
    }

    /// The log of `id`, made if it is not there.
    #[must_use]
    pub fn register(&self, id: &str) -> Log {
        let make = || Log::new(self.capacity.load(Ordering::Relaxed), self.written.clone());
        lock(&self.logs).entry(id.to_owned()).or_insert_with(make).clone()
    }

    /// Bytes that [`Logs::keep_in`] could not keep: the disk was too slow, full or not there.
    #[must_use]
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The log of `id`, if there is one.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Log> {
        lock(&self.logs).get(id).cloned()
    }

    /// All ids, sorted.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        lock(&self.logs).keys().cloned().collect()
    }
}

/// One service's log. Clones share it.
#[derive(Clone, Debug)]
pub struct Log {
    /// Guards the bytes; held for a copy, never over an await.
    ring: Arc<Mutex<Ring>>,
    /// Where the log ends; wakes those who follow.
    end: Arc<watch::Sender<u64>>,
    written: Arc<watch::Sender<()>>,
}

impl Log {
    fn new(capacity: usize, written: Arc<watch::Sender<()>>) -> Self {
        let ring = Ring { capacity, bytes: VecDeque::new(), end: 0 };
        Self { ring: Arc::new(Mutex::new(ring)), end: Arc::new(watch::Sender::new(0)), written }
    }

    /// Appends `bytes`.
    pub fn write(&self, bytes: &[u8]) {
        let end = {
            let mut ring = lock(&self.ring);
            ring.write(bytes);
            ring.end
        };
        self.end.send_replace(end);
        self.written.send_replace(());
    }

    /// Bytes that were ever written.
    #[must_use]
    pub fn written(&self) -> u64 {
        *self.end.borrow()
    }

    /// Reads the last `lines` lines and what comes after them; everything kept when `None`.
    #[must_use]
    pub fn read(&self, lines: Option<usize>) -> Reader {
        let at = lock(&self.ring).tail(lines);
        Reader { ring: self.ring.clone(), end: self.end.subscribe(), at, lost: 0 }
    }

    /// Reads all that was ever written, of which the oldest may be lost.
    pub(crate) fn read_all(&self) -> Reader {
        Reader { at: 0, ..self.read(None) }
    }
}

/// A place in a log.
#[derive(Debug)]
pub struct Reader {
    ring: Arc<Mutex<Ring>>,
    end: watch::Receiver<u64>,
    at: u64,
    /// Bytes it never got, since this was last taken.
    pub(crate) lost: u64,
}

impl Reader {
    /// The next bytes that are there already, `limit` at most; empty at the end.
    #[must_use]
    pub fn available(&mut self, limit: usize) -> Vec<u8> {
        let bytes = self.peek(limit);
        self.advance(bytes.len());
        bytes
    }

    /// As [`Reader::available`], but the same bytes come again until [`Reader::advance`], unless they
    /// are lost.
    pub(crate) fn peek(&mut self, limit: usize) -> Vec<u8> {
        let ring = lock(&self.ring);
        if self.at < ring.start() {
            let at = (ring.start() + GAP).min(ring.end);
            self.lost += at - self.at;
            self.at = at;
        }
        ring.copy(self.at, limit)
    }

    /// Goes on by `count` of the bytes that were peeked at.
    pub(crate) fn advance(&mut self, count: usize) {
        self.at += count as u64;
    }

    /// The next bytes, `limit` at most; waits for them. `None` when the log is gone. Cancel-safe.
    pub async fn next(&mut self, limit: usize) -> Option<Vec<u8>> {
        loop {
            // Marked as seen before the look, so that a write in between is not missed.
            self.end.borrow_and_update();
            let bytes = self.available(limit);
            if !bytes.is_empty() {
                return Some(bytes);
            }
            self.end.changed().await.ok()?;
        }
    }
}

/// The last bytes of all that were written; positions count from the first ever.
#[derive(Debug)]
struct Ring {
    /// Most bytes kept.
    capacity: usize,
    bytes: VecDeque<u8>,
    end: u64,
}

impl Ring {
    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.bytes.drain(..self.bytes.len().saturating_sub(capacity));
        self.bytes.shrink_to(capacity);
    }

    fn write(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(self.capacity);
        self.bytes.drain(..excess);
        let wanted = self.bytes.len() + bytes.len();
        if wanted > self.bytes.capacity() {
            let capacity = wanted.next_power_of_two().clamp(MIN, self.capacity);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend(bytes);
    }

    /// Where the last `lines` lines begin. A last line without its newline counts as one.
    fn tail(&self, lines: Option<usize>) -> u64 {
        let Some(lines) = lines else { return self.start() };
        let ends_line = usize::from(self.bytes.back() == Some(&b'\n'));
        let newlines = self.bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
        // The newline before the first wanted line.
        let before =
            if lines == 0 { None } else { newlines.map(|(at, _)| at).nth(lines - 1 + ends_line) };
        match before {
            _ if lines == 0 => self.end,
            Some(at) => self.start() + at as u64 + 1,
            None => self.start(),
        }
    }

    fn copy(&self, at: u64, limit: usize) -> Vec<u8> {
        let from = usize::try_from(at - self.start()).unwrap_or(usize::MAX).min(self.bytes.len());
        let to = from.saturating_add(limit).min(self.bytes.len());
        let (front, back) = self.bytes.as_slices();
        let middle = front.len();
        let mut copy = Vec::with_capacity(to - from);
        copy.extend_from_slice(&front[from.min(middle)..to.min(middle)]);
        copy.extend_from_slice(&back[from.max(middle) - middle..to.max(middle) - middle]);
        copy
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(log: &Log, lines: Option<usize>) -> String {
        String::from_utf8_lossy(&log.read(lines).available(usize::MAX)).into_owned()
    }

    #[test]
    fn the_last_lines_are_found_with_and_without_a_final_newline() {
        let log = Logs::default().register("x");
        assert_eq!(text(&log, Some(3)), "");
        log.write(b"one\ntwo\nthree\n");
        assert_eq!(text(&log, Some(0)), "");
        assert_eq!(text(&log, Some(1)), "three\n");
        assert_eq!(text(&log, Some(2)), "two\nthree\n");
        assert_eq!(text(&log, Some(9)), "one\ntwo\nthree\n");
        log.write(b"fo");
        assert_eq!(text(&log, Some(1)), "fo");
        assert_eq!(text(&log, Some(2)), "three\nfo");
        assert_eq!(text(&log, None), "one\ntwo\nthree\nfo");
    }

    #[test]
    fn memory_grows_from_16_kib_to_1_mib_and_no_further() {
        let log = Logs::default().register("x");
        let capacity = |log: &Log| lock(&log.ring).bytes.capacity();
        assert_eq!(capacity(&log), 0);
        log.write(b"x");
        assert_eq!(capacity(&log), MIN);
        (0..300).for_each(|_| log.write(&[b'x'; 10_000]));
        assert_eq!(capacity(&log), MAX);
        log.write(&vec![b'y'; 3 * MAX]);
        assert_eq!(capacity(&log), MAX);
        assert_eq!(log.read(None).available(usize::MAX), vec![b'y'; MAX]);
    }

    #[test]
    fn another_size_holds_for_what_is_there_and_for_what_comes() {
        let logs = Logs::default();
        let old = logs.register("old");
        old.write(&vec![b'x'; MAX]);
        let mut reader = old.read(None);
        logs.resize(2 * MIN);
        assert_eq!(text(&old, None).len(), 2 * MIN);
        assert!(lock(&old.ring).bytes.capacity() < 4 * MIN);
        assert_eq!(reader.available(usize::MAX).len() as u64, 2 * MIN as u64 - GAP);
        let new = logs.register("new");
        new.write(&vec![b'y'; MAX]);
        assert_eq!(text(&new, None).len(), 2 * MIN);
        logs.resize(MAX);
        old.write(&vec![b'z'; MAX]);
        assert_eq!(text(&old, None), "z".repeat(MAX));
    }

    #[test]
    fn a_slow_reader_goes_on_behind_the_gap() {
        let log = Logs::default().register("x");
        log.write(b"first\n");
        let mut reader = log.read(None);
        assert_eq!(reader.available(3), b"fir");
        log.write(&vec![b'z'; MAX + 5]);
        assert_eq!(reader.available(usize::MAX).len() as u64, MAX as u64 - GAP);
        assert_eq!(reader.available(1), b"");
    }

    #[tokio::test]
    async fn a_follower_gets_what_comes_and_the_end() {
        let log = Logs::default().register("x");
        let mut reader = log.read(Some(0));
        let (read, ()) = tokio::join!(reader.next(64), async {
            tokio::task::yield_now().await;
            log.write(b"late\n");
        });
        assert_eq!(read.as_deref(), Some(&b"late\n"[..]));
        drop(log);
        assert_eq!(reader.next(64).await, None);
    }

    proptest! {
        #[test]
        fn what_is_read_is_the_end_of_what_was_written(
            writes in proptest::collection::vec((any::<u8>(), 0_usize..700_000), 0..8),
        ) {
            let log = Logs::default().register("x");
            let mut all = Vec::new();
            for (byte, length) in writes {
                let bytes = vec![byte; length];
                log.write(&bytes);
                all.extend(bytes);
            }
            let kept = &all[all.len().saturating_sub(MAX)..];
            prop_assert!(log.read(None).available(usize::MAX) == kept);
        }
    }
}
