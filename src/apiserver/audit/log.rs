//! Lines on their way to a file, off the path of requests: a thread writes them. Who is faster than the disk loses
//! lines, which are counted, rather than waits.

use std::fmt::{self, Debug};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use time::format_description::FormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};
use tracing::{error, warn};

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
    pub fn open(path: &Path, keep: Keep) -> io::Result<Self> {
        if path == Path::new("-") {
            return Self::to(io::stdout(), LINES, BYTES);
        }
        let clock = Box::new(OffsetDateTime::now_utc);
        Self::to(Turning::open(path.to_owned(), keep, clock)?, LINES, BYTES)
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

/// When a log is begun anew, and what of it is kept.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Keep {
    /// Bytes of a file; 0 is any number.
    pub bytes: u64,
    /// Files besides the one that is written; 0 is any number.
    pub files: usize,
    /// How old these may be; none: any age.
    pub age: Option<Duration>,
}

/// A file that is put aside when it is long: `audit.log` becomes `audit-2026-01-02T03-04-05.678.log`, in UTC, as the
/// reference names it.
struct Turning {
    path: PathBuf,
    keep: Keep,
    clock: Box<dyn Fn() -> OffsetDateTime + Send>,
    file: File,
    bytes: u64,
}

const STAMP: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]-[minute]-[second].[subsecond digits:3]");

impl Turning {
    fn open(
        path: PathBuf,
        keep: Keep,
        clock: Box<dyn Fn() -> OffsetDateTime + Send>,
    ) -> io::Result<Self> {
        let file = append(&path)?;
        let bytes = file.metadata()?.len();
        let turning = Self { path, keep, clock, file, bytes };
        turning.forget();
        Ok(turning)
    }

    /// Begins anew.
    fn turn(&mut self) -> io::Result<()> {
        let (stem, extension) = self.name();
        let stamp = (self.clock)().format(&STAMP).map_err(io::Error::other)?;
        fs::rename(&self.path, self.path.with_file_name(format!("{stem}-{stamp}{extension}")))?;
        self.file = append(&self.path)?;
        self.bytes = 0;
        self.forget();
        Ok(())
    }

    /// `audit` and `.log`.
    fn name(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let extension = self.path.extension().map(|extension| text(Some(extension)));
        (text(self.path.file_stem()), extension.map(|it| format!(".{it}")).unwrap_or_default())
    }

    /// Removes what is too much or too old of what was put aside.
    fn forget(&self) {
        if self.keep.files == 0 && self.keep.age.is_none() {
            return;
        }
        let aside = self.aside().unwrap_or_else(|error| {
            warn!(%error, path = %self.path.display(), "old audit logs are not looked for");
            Vec::new()
        });
        let since = self.keep.age.map(|age| (self.clock)() - age);
        let most = if self.keep.files == 0 { usize::MAX } else { self.keep.files };
        for (place, (at, path)) in aside.iter().enumerate() {
            if (place >= most || since.is_some_and(|since| *at < since))
                && let Err(error) = fs::remove_file(path)
            {
                warn!(%error, path = %path.display(), "an old audit log is not removed");
            }
        }
    }

    /// What was put aside, the newest first.
    fn aside(&self) -> io::Result<Vec<(OffsetDateTime, PathBuf)>> {
        let (stem, extension) = self.name();
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut found = Vec::new();
        for entry in fs::read_dir(folder.unwrap_or(Path::new(".")))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let stamp = name
                .strip_prefix(&stem)
                .and_then(|rest| rest.strip_prefix('-'))
                .and_then(|rest| rest.strip_suffix(&extension));
            let at = stamp.and_then(|stamp| PrimitiveDateTime::parse(stamp, &STAMP).ok());
            found.extend(at.map(|at| (at.assume_utc(), entry.path())));
        }
        orlop_rt::sort_by(&mut found, |one, other| other.cmp(one));
        Ok(found)
    }
}

fn append(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    file.map_err(|error| {
        let what = format!("open the audit log {}: {error}", path.display());
        io::Error::new(error.kind(), what)
    })
}

/// One write is one line, or several whole ones.
impl Write for Turning {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len() as u64;
        if self.keep.bytes > 0 && self.bytes > 0 && self.bytes + count > self.keep.bytes {
            self.turn()?;
        }
        self.file.write_all(bytes)?;
        self.bytes += count;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
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

    use time::macros::datetime;

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
            let log = Log::open(&path, Keep::default()).expect("it can be made");
            log.send(b"a".to_vec());
            log.send(b"b".to_vec());
        }
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "a\nb\na\nb\n");
        let none = Log::open(&folder.path().join("gone/audit.log"), Keep::default())
            .expect_err("no folder");
        assert!(none.to_string().starts_with("open the audit log "), "{none}");
    }

    #[test]
    fn a_log_that_is_long_is_put_aside_and_forgotten_when_there_are_many_or_it_is_old() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.log");
        for other in ["audit-2026.log", "audit-2020-01-01T00-00-00.000.txt", "b.log"] {
            fs::write(folder.path().join(other), "not ours").expect("it can be written");
        }
        let now = Arc::new(Mutex::new(datetime!(2026-01-02 03:04:05.678 UTC)));
        let clock = || {
            let now = Arc::clone(&now);
            Box::new(move || *now.lock().expect("one at a time"))
        };
        let ours = || {
            let names = fs::read_dir(folder.path()).expect("a folder").map(|entry| {
                entry.expect("an entry").file_name().into_string().expect("a name of ours")
            });
            let mut ours: Vec<_> = names
                .filter(|name| name.starts_with("audit-2026-") && name.ends_with(".log"))
                .collect();
            ours.sort();
            ours
        };
        let keep = Keep { bytes: 10, files: 2, age: Some(Duration::from_secs(3 * 86_400)) };
        let mut log = Turning::open(path.clone(), keep, clock()).expect("it can be made");
        for line in ["1234\n", "5678\n", "90\n"] {
            log.write_all(line.as_bytes()).expect("it is taken");
        }
        assert_eq!(ours(), ["audit-2026-01-02T03-04-05.678.log"]);
        let aside = fs::read_to_string(folder.path().join(&ours()[0])).expect("it is there");
        assert_eq!(aside, "1234\n5678\n");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "90\n");
        drop(log);
        // What is there counts; a line that is too long for any file has one for itself.
        let mut log = Turning::open(path.clone(), keep, clock()).expect("it is there");
        for _ in 0..2 {
            *now.lock().expect("one at a time") += Duration::from_secs(86_400);
            log.write_all(b"longer than a file may be\n").expect("it is taken");
        }
        assert_eq!(
            ours(),
            ["audit-2026-01-03T03-04-05.678.log", "audit-2026-01-04T03-04-05.678.log"]
        );
        *now.lock().expect("one at a time") += Duration::from_secs(3 * 86_400 - 1);
        drop(Turning::open(path.clone(), keep, clock()).expect("it is there"));
        assert_eq!(ours(), ["audit-2026-01-04T03-04-05.678.log"], "the other is too old");
        let all = Keep { bytes: 10, ..Keep::default() };
        let mut log = Turning::open(path, all, clock()).expect("it is there");
        log.write_all(b"another\n").expect("it is taken");
        assert_eq!(ours().len(), 2, "all are kept");
        assert!(
            folder.path().join("audit-2026.log").exists() && folder.path().join("b.log").exists()
        );
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
