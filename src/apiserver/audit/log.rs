//! Lines on their way to a file, off the path of requests: a thread writes them. Who is faster than the disk loses
//! lines, which are counted, rather than waits.

use std::fmt::{self, Debug};
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use tracing::error;

/// Lines that wait: some seconds' worth on a busy server.
const LINES: usize = 10_000;
/// Bytes that wait; bodies are in them.
const BYTES: usize = 32 << 20;

/// Where lines go.
pub struct Log {
    /// None only while it is dropped.
    sender: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
    most_bytes: usize,
}

#[derive(Debug, Default)]
struct Counts {
    waiting_bytes: AtomicUsize,
    written: AtomicU64,
    lost: AtomicU64,
}

impl Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Log {
    /// Lines go to the end of this file, which is its owner's only; `-` is the standard output.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not started.
    pub fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Self::to(io::stdout(), LINES, BYTES);
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let named = |error: io::Error| {
            let what = format!("open the audit log {}: {error}", path.display());
            io::Error::new(error.kind(), what)
        };
        Self::to(file.map_err(named)?, LINES, BYTES)
    }

    fn to(out: impl Write + Send + 'static, lines: usize, bytes: usize) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(lines);
        let counts = Arc::new(Counts::default());
        let theirs = Arc::clone(&counts);
        let write = move || write_all(&receiver, out, &theirs);
        let writer = thread::Builder::new().name("audit".to_owned()).spawn(write)?;
        Ok(Self { sender: Some(sender), writer: Some(writer), counts, most_bytes: bytes })
    }

    /// Hands over a line, without its end.
    pub fn send(&self, mut line: Vec<u8>) {
        line.push(b'\n');
        let bytes = line.len();
        let before = self.counts.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // A line that is too long by itself still goes when nothing waits.
        let fits = before == 0 || before.saturating_add(bytes) <= self.most_bytes;
        let sender = self.sender.as_ref().filter(|_| fits);
        if sender.is_none_or(|sender| sender.try_send(line).is_err()) {
            self.counts.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were written, and those that were lost.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let Counts { written, lost, .. } = &*self.counts;
        (written.load(Ordering::Relaxed), lost.load(Ordering::Relaxed))
    }
}

/// What waits is written first.
impl Drop for Log {
    fn drop(&mut self) {
        self.sender = None;
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            error!("the audit log's writer panicked");
        }
    }
}

fn write_all(lines: &Receiver<Vec<u8>>, out: impl Write, counts: &Counts) {
    let mut out = BufWriter::new(out);
    let mut failed = 0_u64;
    while let Ok(first) = lines.recv() {
        let mut under_way = 0_u64;
        let mut result = Ok(());
        for line in [first].into_iter().chain(lines.try_iter()) {
            counts.waiting_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            under_way += 1;
            if result.is_ok() {
                result = out.write_all(&line);
            }
        }
        match result.and_then(|()| out.flush()) {
            Ok(()) => {
                counts.written.fetch_add(under_way, Ordering::Relaxed);
            }
            Err(error) => {
                counts.lost.fetch_add(under_way, Ordering::Relaxed);
                failed += 1;
                // Each doubling, lest a full disk fills the other log too.
                if failed.is_power_of_two() {
                    error!(%error, failed, "write the audit log");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Writes nothing until it is told to go on.
    struct Gated {
        gate: Mutex<Option<Receiver<()>>>,
        out: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(gate) = self.gate.lock().expect("one at a time").take() {
                gate.recv().expect("the test says when");
            }
            self.out.lock().expect("one at a time").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated(
        lines: usize,
        bytes: usize,
    ) -> (Log, std::sync::mpsc::Sender<()>, Arc<Mutex<Vec<u8>>>) {
        let (sender, gate) = channel();
        let out = Arc::new(Mutex::new(Vec::new()));
        let writer = Gated { gate: Mutex::new(Some(gate)), out: Arc::clone(&out) };
        (Log::to(writer, lines, bytes).expect("a thread"), sender, out)
    }

    #[test]
    fn who_is_faster_than_the_disk_loses_lines_that_are_counted() {
        for (lines, bytes) in [(10, 1 << 20), (1000, 100)] {
            let (log, gate, out) = gated(lines, bytes);
            // More than its own buffer holds, so that it stands before the gate.
            let first = vec![b'x'; 10_000];
            log.send(first);
            for i in 0..1000 {
                log.send(format!("{i:08}").into_bytes());
            }
            let (written, lost) = log.counts();
            // What it took along with the first is not known, and at most what may wait.
            assert_eq!(written, 0);
            assert!((900..=1000).contains(&lost), "{lost}");
            gate.send(()).expect("it waits");
            let counts = Arc::clone(&log.counts);
            drop(log);
            let out = out.lock().expect("it is done");
            let kept = out.iter().filter(|byte| **byte == b'\n').count() as u64;
            assert_eq!(counts.written.load(Ordering::Relaxed), kept);
            assert_eq!(kept + counts.lost.load(Ordering::Relaxed), 1001);
            assert_eq!(counts.waiting_bytes.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn what_waits_is_written_before_the_end_and_appended() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.log");
        for _ in 0..2 {
            let log = Log::open(&path).expect("it can be made");
            log.send(b"a".to_vec());
            log.send(b"b".to_vec());
        }
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "a\nb\na\nb\n");
        let none = Log::open(&folder.path().join("gone/audit.log")).expect_err("no folder");
        assert!(none.to_string().starts_with("open the audit log "), "{none}");
    }

    #[test]
    fn a_full_disk_loses_lines_and_nothing_else() {
        let Ok(full) = OpenOptions::new().write(true).open("/dev/full") else {
            println!("skipped: no /dev/full here");
            return;
        };
        let log = Log::to(full, 10, 1 << 20).expect("a thread");
        let counts = Arc::clone(&log.counts);
        log.send(b"a".to_vec());
        drop(log);
        assert_eq!(counts.lost.load(Ordering::Relaxed), 1);
        assert_eq!(counts.written.load(Ordering::Relaxed), 0);
    }
}
