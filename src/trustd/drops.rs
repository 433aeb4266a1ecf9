//! Placing files beneath the drop folders (node-api §4.1).
//!
//! The kernel walks the path, one folder at a time, and follows no link (`openat2(2)`,
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`). A file is written beside its place, synced, and renamed over
//! what was there, which must have been a regular file: nothing is ever opened that we did not make.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// The longest file, in bytes.
pub(crate) const SIZE_LIMIT: usize = 1 << 20;
/// What a file's mode may be at most: nobody executes it, nobody else reads it.
const MODE: i32 = 0o640;
/// Of folders made on the way.
const FOLDER_MODE: u32 = 0o750;
/// Where a file is written before it is renamed. One at a time is written, so one name is enough, and
/// what a crash left there is replaced.
const BESIDE: &str = ".trustd.new";

/// Why a file is not placed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It may not be there. What is there instead is not told.
    #[error("no files are placed there")]
    Forbidden,
    #[error("{size} bytes are more than {SIZE_LIMIT}")]
    TooLarge { size: usize },
    /// The system cannot.
    #[error("place a file beneath {}", folder.display())]
    System { folder: PathBuf, source: io::Error },
}

/// The folders beneath which files may be placed.
#[derive(Clone, Debug)]
pub(crate) struct Folders(Vec<PathBuf>);

impl Folders {
    pub(crate) fn new(folders: Vec<PathBuf>) -> Self {
        Self(folders)
    }

    /// Places a file. Blocks until it is on the disk; calls must not overlap.
    pub(crate) fn place(&self, path: &str, data: &[u8], perm: i32) -> Result<(), Error> {
        if data.len() > SIZE_LIMIT {
            return Err(Error::TooLarge { size: data.len() });
        }
        let (folder, names) = self.find(path).ok_or(Error::Forbidden)?;
        let (name, parents) = names.split_last().ok_or(Error::Forbidden)?;
        let mode = Mode::from_bits_truncate(u32::try_from(perm & MODE).unwrap_or_default());
        place(folder, parents, name, data, mode).map_err(|errno| match errno {
            // Links, things that are no folder where one must be, no regular file, names too long.
            Errno::ELOOP
            | Errno::EXDEV
            | Errno::ENOTDIR
            | Errno::EISDIR
            | Errno::EPERM
            | Errno::EACCES
            | Errno::ENAMETOOLONG
            | Errno::EINVAL => Error::Forbidden,
            errno => Error::System { folder: folder.to_owned(), source: errno.into() },
        })
    }

    /// The drop folder a path lies in, and the names from there. Only a path that is written without
    /// detours is anywhere.
    fn find<'a>(&self, path: &'a str) -> Option<(&Path, Vec<&'a OsStr>)> {
        let plain = !path.contains('\0')
            && path.starts_with('/')
            && !path.ends_with('/')
            && path[1..].split('/').all(|name| !matches!(name, "" | "." | ".." | BESIDE));
        self.0.iter().filter(|_| plain).find_map(|folder| {
            let rest = Path::new(path).strip_prefix(folder).ok()?;
            let names = rest.components().map(|component| match component {
                Component::Normal(name) => Some(name),
                _ => None,
            });
            Some((folder.as_path(), names.collect::<Option<Vec<_>>>()?))
        })
    }
}

fn place(
    folder: &Path,
    parents: &[&OsStr],
    name: &OsStr,
    data: &[u8],
    mode: Mode,
) -> Result<(), Errno> {
    let how = |resolve| {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        OpenHow::new().flags(flags).resolve(resolve | ResolveFlag::RESOLVE_NO_SYMLINKS)
    };
    let mut folder = openat2(AT_FDCWD, folder, how(ResolveFlag::empty()))?;
    for parent in parents {
        match mkdirat(&folder, *parent, Mode::from_bits_truncate(FOLDER_MODE)) {
            Ok(()) => sync(folder.as_fd())?,
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        folder = openat2(&folder, *parent, how(ResolveFlag::RESOLVE_BENEATH))?;
    }
    match fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(there) if there.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() => {
            return Err(Errno::EPERM);
        }
        Ok(_) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno),
    }
    let placed = write_beside(folder.as_fd(), data, mode)
        .and_then(|()| renameat(&folder, BESIDE, &folder, name))
        .and_then(|()| sync(folder.as_fd()));
    if placed.is_err() {
        // What cannot be removed either is replaced the next time.
        let _ = unlinkat(&folder, BESIDE, UnlinkatFlags::NoRemoveDir);
    }
    placed
}

fn write_beside(folder: BorrowedFd<'_>, data: &[u8], mode: Mode) -> Result<(), Errno> {
    match unlinkat(folder, BESIDE, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let how = OpenHow::new()
        .flags(flags)
        .mode(Mode::S_IRUSR | Mode::S_IWUSR)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let mut file = File::from(openat2(folder, BESIDE, how)?);
    file.write_all(data).and_then(|()| file.flush()).map_err(|error| errno(&error))?;
    fchmod(&file, mode)?;
    file.sync_all().map_err(|error| errno(&error))
}

fn sync(folder: BorrowedFd<'_>) -> Result<(), Errno> {
    nix::unistd::fsync(folder)
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Text of a path for the log: no more of it than a path can have.
pub(crate) fn loggable(path: &str) -> &str {
    let end = path.len().min(4096);
    OsStr::from_bytes(&path.as_bytes()[..end]).to_str().unwrap_or("(a path too long)")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use nix::unistd::mkfifo;
    use tempfile::TempDir;

    use super::*;

    fn drops() -> (TempDir, Folders, String) {
        let dir = tempfile::tempdir().unwrap();
        let drop = dir.path().canonicalize().unwrap().join("drop");
        fs::create_dir(&drop).unwrap();
        let text = drop.to_str().unwrap().to_owned();
        (dir, Folders::new(vec![drop]), text)
    }

    fn mode(path: &str) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// Everything beneath a folder, by name.
    fn names(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                found.extend(names(&path));
            }
            found.push(path);
        }
        found.sort();
        found
    }

    #[test]
    fn a_file_is_placed_with_its_folders_and_no_more_rights_than_allowed() {
        let (_dir, folders, drop) = drops();
        let path = format!("{drop}/etcd/pki/ca.key");
        for (perm, expected) in [(0o600, 0o600), (0o7777, 0o640), (0o444, 0o440), (-1, 0o640)] {
            folders.place(&path, b"secret", perm).unwrap();
            assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"secret".to_vec(), expected));
        }
        assert_eq!(mode(&format!("{drop}/etcd")), FOLDER_MODE);
        folders.place(&path, b"", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(names(Path::new(&drop)).len(), 3, "nothing is left beside it");
    }

    #[test]
    fn what_a_crash_left_is_replaced() {
        let (_dir, folders, drop) = drops();
        fs::write(format!("{drop}/{BESIDE}"), "half").unwrap();
        folders.place(&format!("{drop}/a"), b"whole", 0o600).unwrap();
        assert_eq!(names(Path::new(&drop)).len(), 1);
    }

    #[test]
    fn nothing_outside_is_reached_and_nothing_is_created() {
        let (dir, folders, drop) = drops();
        let outside = dir.path().canonicalize().unwrap().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "theirs").unwrap();
        symlink(&outside, format!("{drop}/link")).unwrap();
        symlink(outside.join("file"), format!("{drop}/file-link")).unwrap();
        symlink("nowhere", format!("{drop}/dangling")).unwrap();
        mkfifo(format!("{drop}/fifo").as_str(), Mode::S_IRUSR).unwrap();
        fs::create_dir(format!("{drop}/folder")).unwrap();
        fs::write(format!("{drop}/file"), "ours").unwrap();
        let before = names(dir.path());
        let outside = outside.to_str().unwrap();
        for path in [
            "",
            "/",
            "relative",
            "/etc/passwd",
            outside,
            &format!("{outside}/new"),
            &drop,
            &format!("{drop}/"),
            &format!("{drop}x/new"),
            &format!("{drop}/../outside/new"),
            &format!("{drop}/new/../../outside/new"),
            &format!("{drop}/./new"),
            &format!("{drop}//new"),
            &format!("{drop}/link/new"),
            &format!("{drop}/link/file"),
            &format!("{drop}/file-link"),
            &format!("{drop}/dangling"),
            &format!("{drop}/fifo"),
            &format!("{drop}/folder"),
            &format!("{drop}/file/new"),
            &format!("{drop}/fifo/new"),
            &format!("{drop}/{BESIDE}"),
            &format!("{drop}/new\0"),
            &format!("{drop}/{}", "x".repeat(300)),
        ] {
            let error = folders.place(path, b"x", 0o600).unwrap_err();
            assert!(matches!(error, Error::Forbidden), "{path}: {error}");
        }
        assert_eq!(names(dir.path()), before);
        assert_eq!(fs::read_to_string(format!("{outside}/file")).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(format!("{drop}/file")).unwrap(), "ours");
    }

    #[test]
    fn a_drop_folder_that_is_itself_a_link_is_none() {
        let (dir, _, drop) = drops();
        let link = dir.path().join("link");
        symlink(&drop, &link).unwrap();
        let path = link.join("new");
        let error = Folders::new(vec![link]).place(path.to_str().unwrap(), b"x", 0o600);
        assert!(matches!(error, Err(Error::Forbidden)));
        assert_eq!(names(Path::new(&drop)), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn too_much_is_refused_and_a_missing_folder_is_the_systems_fault() {
        let (dir, folders, drop) = drops();
        let path = format!("{drop}/new");
        let error = folders.place(&path, &vec![0; SIZE_LIMIT + 1], 0o600).unwrap_err();
        assert_eq!(error.to_string(), "1048577 bytes are more than 1048576");
        folders.place(&path, &vec![0; SIZE_LIMIT], 0o600).unwrap();
        drop_all(dir);
        let error = folders.place(&path, b"x", 0o600).unwrap_err();
        assert!(matches!(error, Error::System { .. }), "{error}");
    }

    fn drop_all(dir: TempDir) {
        dir.close().unwrap();
    }
}
