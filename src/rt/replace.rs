//! Replacing a file: written beside, synced, renamed.
//!
//! A reader sees the old file or the new one, never half of either; after a power cut there is the old
//! one or the new one. What an interrupted run left beside is written over by the next.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// Replaces the file `path` with one of these bytes and this mode (whatever the umask), and returns
/// when a power cut cannot undo it.
///
/// # Errors
/// When it cannot be written, or somebody else writes it at this moment ([`io::ErrorKind::ResourceBusy`]);
/// what was at `path` is as it was.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = Beside::new(path, mode)?;
    file.write_all(bytes)?;
    file.keep()
}

/// A file being written beside the one it will replace. Dropped before it is kept, it goes away.
#[derive(Debug)]
pub struct Beside {
    file: File,
    path: PathBuf,
    beside: PathBuf,
    mode: u32,
    placed: bool,
}

impl Beside {
    /// Begins a file that will replace `path` with this mode. Until then it is its owner's alone, and
    /// hidden: `.NAME.new`.
    ///
    /// # Errors
    /// As [`replace`].
    pub fn new(path: &Path, mode: u32) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".new");
        let beside = path.with_file_name(hidden);
        let file = open(&beside)?;
        Ok(Self { file, path: path.to_owned(), beside, mode, placed: false })
    }

    /// Gives the file to a user and the group of the same number.
    ///
    /// # Errors
    /// When we may not.
    pub fn give_to(&self, id: u32) -> io::Result<()> {
        fchown(&self.file, Some(id), Some(id))
    }

    /// Syncs the file and puts it in its place, for good. Blocks as long as the disk takes.
    ///
    /// # Errors
    /// When it cannot; what was in its place is as it was.
    pub fn keep(mut self) -> io::Result<()> {
        self.finish()?;
        self.file.sync_all()?;
        self.rename()?;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    }

    /// Puts the file in its place without a sync: for what does not outlive a boot anyway.
    ///
    /// # Errors
    /// When it cannot; what was in its place is as it was.
    pub fn show(mut self) -> io::Result<()> {
        self.finish()?;
        self.rename()
    }

    fn finish(&self) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(self.mode))
    }

    fn rename(&mut self) -> io::Result<()> {
        fs::rename(&self.beside, &self.path)?;
        self.placed = true;
        Ok(())
    }
}

impl Write for Beside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.placed {
            // What cannot be removed either is written over the next time.
            let _ = fs::remove_file(&self.beside);
        }
    }
}

/// An empty file at `path` that nobody else writes to and no other name leads to.
fn open(path: &Path) -> io::Result<File> {
    loop {
        let mut options = File::options();
        // Not through a link, which somebody may have laid there, and not waiting for a FIFO's reader.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags.bits());
        let file = options.open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::ResourceBusy.into()),
            // A file system without locks.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let ours = file.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {}
            // Whoever wrote it has put it in its place since.
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        if ours.is_file() && ours.nlink() == 1 {
            // One that an interrupted run left may have another mode and content.
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.set_len(0)?;
            return Ok(file);
        }
        fs::remove_file(path)?;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn content(path: &Path) -> (String, u32) {
        let mode = fs::metadata(path).unwrap().mode() & 0o7777;
        (fs::read_to_string(path).unwrap(), mode)
    }

    #[test]
    fn a_file_is_made_and_replaced_with_its_mode_and_nothing_is_left_beside() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a");
        replace(&path, 0o666, b"one").unwrap();
        assert_eq!(content(&path), ("one".to_owned(), 0o666));
        let reader = File::open(&path).unwrap();
        replace(&path, 0o400, b"two").unwrap();
        assert_eq!(content(&path), ("two".to_owned(), 0o400));
        assert_eq!(io::read_to_string(reader).unwrap(), "one", "who has it open keeps the old one");
        let mut file = Beside::new(&path, 0o640).unwrap();
        file.write_all(b"three").unwrap();
        file.show().unwrap();
        assert_eq!(content(&path), ("three".to_owned(), 0o640));
        assert_eq!(names(home.path()), ["a"]);
    }

    #[test]
    fn what_fails_leaves_the_old_content_and_nothing_beside() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a");
        replace(&path, 0o600, b"old").unwrap();
        let mut file = Beside::new(&path, 0o600).unwrap();
        file.write_all(b"half of the n").unwrap();
        assert_eq!(content(&path).0, "old");
        drop(file);
        assert_eq!((content(&path).0.as_str(), names(home.path())), ("old", vec!["a".to_owned()]));

        let folder = home.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "").unwrap();
        replace(&folder, 0o600, b"x").unwrap_err();
        assert_eq!(names(home.path()), ["a", "folder"]);
        replace(&home.path().join("absent/a"), 0o600, b"x").unwrap_err();
        for nameless in ["/", "", ".."] {
            replace(Path::new(nameless), 0o600, b"x").unwrap_err();
        }
    }

    #[test]
    fn what_was_left_beside_is_written_over_and_links_lead_nowhere() {
        let home = tempfile::tempdir().unwrap();
        let at = |name| home.path().join(name);
        fs::write(at(".a.new"), "longer than what comes").unwrap();
        fs::set_permissions(at(".a.new"), Permissions::from_mode(0o644)).unwrap();
        replace(&at("a"), 0o600, b"new").unwrap();
        assert_eq!(content(&at("a")), ("new".to_owned(), 0o600));

        fs::write(at("precious"), "ours").unwrap();
        fs::hard_link(at("precious"), at(".a.new")).unwrap();
        replace(&at("a"), 0o600, b"newer").unwrap();
        symlink(at("precious"), at(".a.new")).unwrap();
        replace(&at("a"), 0o600, b"x").unwrap_err();
        fs::remove_file(at(".a.new")).unwrap();
        nix::unistd::mkfifo(&at(".a.new"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        replace(&at("a"), 0o600, b"x").unwrap_err();
        assert_eq!(content(&at("a")).0, "newer");
        assert_eq!(content(&at("precious")).0, "ours");
    }

    #[test]
    fn of_two_who_write_at_once_one_is_refused_and_none_sees_the_others_bytes() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a");
        let mut first = Beside::new(&path, 0o600).unwrap();
        let refused = replace(&path, 0o600, b"second").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
        first.write_all(b"first").unwrap();
        first.keep().unwrap();
        assert_eq!(content(&path).0, "first");
        replace(&path, 0o600, b"second").unwrap();

        let writers = 4;
        std::thread::scope(|scope| {
            for writer in 0..writers {
                let path = &path;
                scope.spawn(move || {
                    let text = writer.to_string().repeat(1000 + writer);
                    for _ in 0..50 {
                        if let Err(error) = replace(path, 0o600, text.as_bytes()) {
                            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
                        }
                        let (whole, _) = content(path);
                        let writer = usize::from(whole.as_bytes()[0] - b'0');
                        assert!(whole == "second" || whole.len() == 1000 + writer, "{whole}");
                    }
                });
            }
        });
        assert_eq!(names(home.path()), ["a"]);
    }
}
