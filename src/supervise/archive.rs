//! Logs on disk: every ring is followed into a file of its own, rotated by size.
//!
//! The rings are the only buffer, so a service never waits for a disk and memory stays bounded. What
//! a ring dropped before it was written (the disk is slow, full or gone) is counted, and told in the
//! file where it would have been. After an error the same bytes are tried again every second.
//!
//! `apid.log` is the newest, then `apid.log.1`, `apid.log.2`, …; they are appended to across boots.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::fcntl::OFlag;
use orlop_rt::CancellationToken;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::log::{Logs, Reader};

/// Written at once for one service, before the next has its turn.
const BATCH: usize = 128 << 10;
/// After an error.
const RETRY: Duration = Duration::from_secs(1);
/// Rounds after the end was asked for: more than the largest ring takes.
const LAST_ROUNDS: u32 = 16;

/// How much of a service's output is kept on disk: `file_bytes * (old_files + 1)` at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimit {
    /// Of one file; it is rotated before it gets larger. At least 1 is gone by.
    pub file_bytes: u64,
    /// Kept besides the newest.
    pub old_files: u32,
}

impl DiskLimit {
    /// `bytes` for all files of a service together, a quarter of it for the newest.
    #[must_use]
    pub fn of_bytes(bytes: u64) -> Self {
        Self { file_bytes: bytes / 4, old_files: 3 }
    }
}

impl Default for DiskLimit {
    /// 4 MiB, of which the newest is 1 MiB.
    fn default() -> Self {
        Self::of_bytes(4 << 20)
    }
}

impl Logs {
    /// Keeps all logs, from the first byte on (if still known), in `folder` (made if missing) until
    /// `shutdown`; then what is left is written, and all files are closed. Trouble with the disk is
    /// told once, until it is over. A limit that changes holds from the next round on.
    pub async fn keep_in(
        self,
        folder: PathBuf,
        limit: watch::Receiver<DiskLimit>,
        shutdown: CancellationToken,
    ) {
        let mut written = self.written.subscribe();
        let mut archive = Archive { logs: self, folder, limit, files: BTreeMap::new() };
        let mut trouble = false;
        let mut rounds = 0..LAST_ROUNDS;
        loop {
            let last = shutdown.is_cancelled();
            // Marked as seen before the round, so that a write in between is not missed.
            written.borrow_and_update();
            let result;
            (archive, result) = write(archive).await;
            match result {
                Ok(_) if last && rounds.next().is_none() => return,
                Ok(More::Yes) => {}
                Ok(More::No) if last => return,
                Ok(More::No) => {
                    if std::mem::take(&mut trouble) {
                        let dropped_bytes = archive.logs.dropped_bytes();
                        tracing::info!(dropped_bytes, "logs are kept on disk again");
                    }
                    tokio::select! {
                        // The sender is in the archive.
                        _ = written.changed() => {}
                        () = shutdown.cancelled() => {}
                    }
                }
                Err(_) if last => return,
                Err(error) => {
                    if !std::mem::replace(&mut trouble, true) {
                        let folder = archive.folder.display();
                        tracing::warn!(%folder, %error, "logs are kept in memory only; trying on");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
            }
        }
    }
}

/// One round on a thread that may wait for a disk.
async fn write(mut archive: Archive) -> (Archive, io::Result<More>) {
    let round = spawn_blocking(move || {
        let result = archive.round();
        (archive, result)
    });
    round.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

#[derive(Debug)]
struct Archive {
    logs: Logs,
    folder: PathBuf,
    limit: watch::Receiver<DiskLimit>,
    files: BTreeMap<String, Kept>,
}

/// Whether there was something to write, and so may be more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum More {
    Yes,
    No,
}

impl Archive {
    /// Writes some of each log. One that fails does not hold back the others; the first error counts.
    fn round(&mut self) -> io::Result<More> {
        let mut result = Ok(More::No);
        let limit = *self.limit.borrow();
        for id in self.logs.ids() {
            let Some(log) = self.logs.get(&id) else { continue };
            // An id is a word; were it a path, it would not lead out of the folder.
            let path = self.folder.join(format!("{}.log", id.replace('/', "_")));
            let kept = self.files.entry(id).or_insert_with(|| Kept::new(log.read_all(), path));
            match (kept.step(limit), &result) {
                (Ok(More::No), _) | (_, Err(_)) => {}
                (other, Ok(_)) => result = other,
            }
            self.logs.dropped.fetch_add(std::mem::take(&mut kept.reader.lost), Ordering::Relaxed);
        }
        result
    }
}

/// One service's files.
#[derive(Debug)]
struct Kept {
    reader: Reader,
    path: PathBuf,
    /// The newest, and its size; opened when there is something to write.
    file: Option<(File, u64)>,
    /// Lost, and not told in the file yet.
    untold: u64,
}

impl Kept {
    fn new(reader: Reader, path: PathBuf) -> Self {
        Self { reader, path, file: None, untold: 0 }
    }

    fn step(&mut self, limit: DiskLimit) -> io::Result<More> {
        let bytes = self.reader.peek(BATCH);
        self.untold += self.reader.lost;
        if bytes.is_empty() {
            return Ok(More::No);
        }
        if self.untold > 0 {
            let note = format!("({} bytes are not here: the disk was not ready)\n", self.untold);
            self.append(note.as_bytes(), limit)?;
            self.untold = 0;
        }
        let count = self.append(&bytes, limit)?;
        self.reader.advance(count);
        Ok(More::Yes)
    }

    /// Appends some of `bytes` with one write, and says how many; afterwards the file is not too large.
    fn append(&mut self, bytes: &[u8], limit: DiskLimit) -> io::Result<usize> {
        let (file, size) = match &mut self.file {
            Some(open) => open,
            none => none.insert(open(&self.path)?),
        };
        let fits = fit(bytes, *size, limit.file_bytes.max(1));
        if fits == 0 {
            self.file = None;
            rotate(&self.path, limit.old_files)?;
            return self.append(bytes, limit);
        }
        match file.write(&bytes[..fits]) {
            Ok(count) => {
                *size += count as u64;
                Ok(count)
            }
            Err(error) => {
                self.file = None;
                Err(error)
            }
        }
    }
}

/// How many of `bytes` belong into a file of `size`: whole lines, as far as a file can hold them. 0 if
/// it is time for the next file, which it never is for an empty one.
fn fit(bytes: &[u8], size: u64, most: u64) -> usize {
    let free = usize::try_from(most.saturating_sub(size)).unwrap_or(usize::MAX);
    if bytes.len() <= free {
        return bytes.len();
    }
    match bytes[..free].iter().rposition(|byte| *byte == b'\n') {
        Some(at) => at + 1,
        None if size == 0 => free,
        None => 0,
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    }
    let mut options = File::options();
    options.append(true).create(true).mode(0o640).custom_flags(OFlag::O_NOFOLLOW.bits());
    let file = options.open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// Moves each file one number up; the oldest goes.
fn rotate(path: &Path, old_files: u32) -> io::Result<()> {
    let name = |number: u32| match number {
        0 => path.to_owned(),
        _ => PathBuf::from(format!("{}.{number}", path.display())),
    };
    if old_files == 0 {
        return absent_is_fine(fs::remove_file(path));
    }
    for number in (0..old_files).rev() {
        absent_is_fine(fs::rename(name(number), name(number + 1)))?;
    }
    Ok(())
}

/// Somebody may have tidied up.
fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
