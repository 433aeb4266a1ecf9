//! Logs of pods' containers, from the files their runtime writes: `<attempt>.log` in a folder of the
//! container's own. What they hold is read by [`crate::podlog`].
//!
//! Runs in a thread of its own ([`super::threads`]): a full queue stops it, and with it the reading. A
//! file that follows another (rotation renames it, a restarted container has a next attempt) is read
//! from its beginning once the one before has ended.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use orlop_proto::common::Data;
use tonic::Status;

use super::files::{open, refused};
use super::threads::{Outlet, Stop};
use super::{CHUNK, data};
use crate::podlog::Reader;

/// Between two looks at a file that has ended so far.
const POLL: Duration = Duration::from_millis(250);

/// Sends the last `lines` lines (all when `None`) of the newest log in `folder`, and with `follow` what
/// comes after them.
pub(super) fn send(
    outlet: &Outlet<Data>,
    folder: &Path,
    lines: Option<usize>,
    follow: bool,
) -> Result<(), Stop> {
    let none = || {
        let text = format!("no log in {}: the container has not started yet", folder.display());
        Stop::Failed(Status::not_found(text))
    };
    let mut log = Log::newest(folder)?.ok_or_else(none)?;
    let mut skip = match lines {
        Some(lines) => log.lines()?.saturating_sub(lines),
        None => 0,
    };
    loop {
        let mut gathered = Vec::with_capacity(CHUNK);
        let mut result = Ok(());
        let mut keep = |line: &[u8]| {
            if skip > 0 {
                skip -= 1;
                return;
            }
            gathered.extend_from_slice(line);
            while gathered.len() >= CHUNK && result.is_ok() {
                let rest = gathered.split_off(CHUNK);
                result = outlet.send(data(std::mem::replace(&mut gathered, rest)));
            }
        };
        let ended = log.read(&mut keep)?;
        let next = if ended && follow { log.successor(folder)? } else { None };
        if ended && (next.is_some() || !follow) {
            // What was written between the end and the look at what follows.
            while !log.read(&mut keep)? {}
            log.reader.finish(&mut keep);
        }
        result?;
        if !gathered.is_empty() {
            outlet.send(data(gathered))?;
        }
        match next {
            Some(next) => log = next,
            None if ended && !follow => return Ok(()),
            None if ended => {
                thread::sleep(POLL);
                outlet.wanted()?;
            }
            None => {}
        }
    }
}

/// A log, as far as it was read.
struct Log {
    path: PathBuf,
    file: File,
    read: u64,
    reader: Reader,
    buffer: Vec<u8>,
}

impl Log {
    fn newest(folder: &Path) -> Result<Option<Self>, Stop> {
        let Some(path) = newest(folder).map_err(|error| refused("list", folder, &error))? else {
            return Ok(None);
        };
        match Self::open(path.clone()) {
            Ok(log) => Ok(Some(log)),
            // Rotated at this very moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused("open", &path, &error)),
        }
    }

    fn open(path: PathBuf) -> io::Result<Self> {
        let file = open(&path, OFlag::O_NOFOLLOW)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(Self { path, file, read: 0, reader: Reader::default(), buffer: vec![0; CHUNK] })
    }

    /// How many lines there are. Read from the beginning: whether a line goes on is said behind it.
    fn lines(&mut self) -> Result<usize, Stop> {
        let mut count = 0;
        while !self.read(&mut |line| count += usize::from(line.ends_with(b"\n")))? {}
        let mut last = 0;
        std::mem::take(&mut self.reader).finish(|_| last = 1);
        let back = self.file.rewind();
        back.map_err(|error| refused("read again", &self.path, &error))?;
        self.read = 0;
        Ok(count + last)
    }

    /// Reads on; whether that was the end so far.
    fn read(&mut self, each: &mut impl FnMut(&[u8])) -> Result<bool, Stop> {
        let count = self.file.read(&mut self.buffer);
        let count = count.map_err(|error| refused("read", &self.path, &error))?;
        self.read += count as u64;
        self.reader.feed(&self.buffer[..count], each);
        Ok(count == 0)
    }

    /// What is to be read behind the end of this one.
    fn successor(&mut self, folder: &Path) -> Result<Option<Self>, Stop> {
        let told = |error| refused("look at", &self.path, &error);
        let own = self.file.metadata().map_err(told)?;
        if own.len() < self.read {
            // Somebody has emptied it.
            self.file.rewind().map_err(told)?;
            self.read = 0;
            return Ok(None);
        }
        // The folder goes with its pod; what is open can be read to its end.
        let newest = match newest(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => found.map_err(|error| refused("list", folder, &error))?,
        };
        let Some(newest) = newest else { return Ok(None) };
        let same = fs::symlink_metadata(&newest)
            .map_or(true, |now| (now.dev(), now.ino()) == (own.dev(), own.ino()));
        if same { Ok(None) } else { Self::newest(folder) }
    }
}

/// The log of the last attempt.
fn newest(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut last = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let attempt = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u32>().ok());
        last = last.max(attempt);
    }
    Ok(last.map(|attempt| folder.join(format!("{attempt}.log"))))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write as _;
    use std::pin::Pin;

    use futures_util::{Stream, StreamExt as _};

    use super::super::threads::Threads;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    type Sent = Pin<Box<dyn Stream<Item = Result<Data, Status>> + Send>>;

    async fn sent(folder: &Path, lines: Option<usize>, follow: bool) -> Result<Sent, Status> {
        let folder = folder.to_owned();
        let work = move |outlet: &Outlet<Data>| send(outlet, &folder, lines, follow);
        Ok(Box::pin(Threads::new().stream(2, work).await?))
    }

    async fn all(folder: &Path, lines: Option<usize>) -> String {
        let sent = sent(folder, lines, false).await.unwrap();
        let bytes: Vec<_> = sent.map(|piece| piece.unwrap().bytes).collect().await;
        assert!(bytes.iter().all(|piece| (1..=CHUNK).contains(&piece.len())));
        String::from_utf8(bytes.concat()).unwrap()
    }

    /// Waits until `text` has come.
    async fn until(sent: &mut Sent, text: &str) {
        let mut all = String::new();
        while all.len() < text.len() {
            let piece = tokio::time::timeout(LIMIT, sent.next()).await.unwrap();
            all += std::str::from_utf8(&piece.unwrap().unwrap().bytes).unwrap();
        }
        assert_eq!(all, text);
    }

    fn append(path: &Path, text: &str) {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn line(text: &str) -> String {
        format!("2026-01-02T03:04:05.678901234Z stdout F {text}\n")
    }

    #[tokio::test]
    async fn the_newest_attempt_is_read_and_of_it_the_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let error = sent(folder.path(), None, false).await.map(drop).unwrap_err();
        assert!(error.message().contains("has not started yet"), "{error}");
        append(&at("9.log"), &line("of an earlier attempt"));
        append(&at("10.log.20260102-030405"), &line("rotated"));
        append(&at("10.log"), &(line("one") + &line("two")));
        append(&at("10.log"), "2026-01-02T03:04:05Z stdout P thr");
        append(&at("10.log"), "\n2026-01-02T03:04:05Z stdout F ee\n");
        assert_eq!(all(folder.path(), None).await, "one\ntwo\nthree\n");
        assert_eq!(all(folder.path(), Some(2)).await, "two\nthree\n");
        assert_eq!(all(folder.path(), Some(0)).await, "");
        append(&at("10.log"), "2026-01-02T03:04:05Z stdout P fou");
        assert_eq!(all(folder.path(), Some(2)).await, "three\nfou");
        let long = "x".repeat(100_000);
        append(&at("11.log"), &line(&long));
        assert!(all(folder.path(), Some(9)).await == long + "\n", "a long line");
    }

    #[tokio::test]
    async fn a_log_is_followed_through_rotation_truncation_and_restart() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        append(&at("0.log"), &(line("old") + &line("last")));
        let mut followed = sent(folder.path(), Some(1), true).await.unwrap();
        until(&mut followed, "last\n").await;
        append(&at("0.log"), &line("more"));
        until(&mut followed, "more\n").await;
        // As the kubelet does it: rename, then the runtime opens anew.
        fs::rename(at("0.log"), at("0.log.20260102-030405")).unwrap();
        append(&at("0.log.20260102-030405"), &line("still into the old file"));
        append(&at("0.log"), &line("into the new one"));
        until(&mut followed, "still into the old file\ninto the new one\n").await;
        append(&at("1.log"), &line("the next attempt"));
        until(&mut followed, "the next attempt\n").await;
        File::create(at("1.log")).unwrap();
        append(&at("1.log"), &line("short"));
        until(&mut followed, "short\n").await;
        fs::remove_dir_all(folder.path()).unwrap();
        drop(followed);
    }

    #[tokio::test]
    async fn only_a_regular_file_is_a_log() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("0.log")).unwrap();
        let error = sent(folder.path(), None, false).await.map(drop).unwrap_err();
        assert!(error.message().starts_with("open "), "{error}");
    }
}
