//! `List`, `DiskUsage` and `Read`: the node's files as its operators see them (spec §5.2).
//!
//! Paths are absolute and cleaned by their text; nothing is hidden below `/`. Who may see what is the
//! roles' business, and settled in apid: readers see names, sizes, owners and extended attributes of
//! everything, but no content. Content, and with it the secrets in `/system/state` and
//! `/system/secrets`, is for administrators: `Read` and `Copy`.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag};
use orlop_proto::common::Data;
use orlop_proto::machine::list_request::Type;
use orlop_proto::machine::{
    DiskUsageInfo, DiskUsageRequest, FileInfo, ListRequest, ReadRequest, Xattr,
};
use tonic::Status;

use super::threads::{Outlet, Stop};
use super::walk::{Entry, Failure, Step, Walk, clean, told};
use super::{CHUNK, data};

/// Bytes of extended attributes that are read of one file.
const XATTR_LIMIT: usize = 64 << 10;

/// `List`: the root, then its content; `recurse` and `recursion_depth` say how deep.
pub(super) fn list(outlet: &Outlet<FileInfo>, request: &ListRequest) -> Result<(), Stop> {
    let root = clean(&request.root);
    let depth = match (request.recurse, request.recursion_depth) {
        (false, _) => Some(1),
        (true, depth) => usize::try_from(depth).ok().filter(|depth| *depth > 0),
    };
    let types: Vec<Type> = request.types().collect();
    for step in Walk::new(&root, depth).map_err(|error| refused("lstat", &root, &error))? {
        outlet.wanted()?;
        match step {
            Step::Found(entry) if listed(&entry.metadata, &types) => {
                outlet.send(file_info(&entry, request.report_xattrs))?;
            }
            Step::Failed(Failure { path, relative, error }) => outlet.send(FileInfo {
                name: text(&path),
                relative_name: text(&relative),
                error,
                ..FileInfo::default()
            })?,
            Step::Found(_) | Step::Left => {}
        }
    }
    Ok(())
}

fn listed(metadata: &Metadata, types: &[Type]) -> bool {
    types.is_empty()
        || types.iter().any(|kind| match kind {
            Type::Regular => metadata.is_file(),
            Type::Directory => metadata.is_dir(),
            Type::Symlink => metadata.is_symlink(),
        })
}

fn file_info(Entry { path, relative, metadata, .. }: &Entry, with_xattrs: bool) -> FileInfo {
    let mut info = FileInfo {
        name: text(path),
        relative_name: text(relative),
        size: i64::try_from(metadata.size()).unwrap_or(i64::MAX),
        mode: go_mode(metadata.mode()),
        modified: metadata.mtime(),
        is_dir: metadata.is_dir(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        ..FileInfo::default()
    };
    if metadata.is_symlink() {
        match fs::read_link(path) {
            Ok(target) => info.link = text(&target),
            Err(error) => info.error = told("readlink", path, &error),
        }
    }
    if with_xattrs {
        match extended_attributes(path) {
            Ok(xattrs) => info.xattrs = xattrs,
            Err(error) => info.error = told("read the extended attributes of", path, &error),
        }
    }
    info
}

/// `xattr(7)` of the entry itself, by name. A file system without them has none, and one that is
/// removed meanwhile is left out.
///
/// # Errors
/// When they cannot be read, or are more than a reader's or our memory should take: anybody who owns a
/// file can give it half a gigabyte of them.
pub(super) fn extended_attributes(path: &Path) -> io::Result<Vec<Xattr>> {
    let names = match xattr::list(path) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(Vec::new()),
        names => names?,
    };
    let mut total = 0;
    let mut found = Vec::new();
    for name in names {
        let Some(data) = xattr::get(path, &name)? else { continue };
        total += data.len();
        if total > XATTR_LIMIT {
            return Err(io::Error::other(format!("they are more than {XATTR_LIMIT} bytes")));
        }
        found.push(Xattr { name: name.to_string_lossy().into_owned(), data });
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The bits of Go's `os.FileMode` for those of `st_mode`, `inode(7)`.
fn go_mode(mode: u32) -> u32 {
    const DIRECTORY: u32 = 1 << 31;
    const SYMLINK: u32 = 1 << 27;
    const DEVICE: u32 = 1 << 26;
    const NAMED_PIPE: u32 = 1 << 25;
    const SOCKET: u32 = 1 << 24;
    const SETUID: u32 = 1 << 23;
    const SETGID: u32 = 1 << 22;
    const CHAR_DEVICE: u32 = 1 << 21;
    const STICKY: u32 = 1 << 20;
    const PERMISSIONS: u32 = 0o777;

    let kind = match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => DIRECTORY,
        SFlag::S_IFLNK => SYMLINK,
        SFlag::S_IFBLK => DEVICE,
        SFlag::S_IFCHR => DEVICE | CHAR_DEVICE,
        SFlag::S_IFIFO => NAMED_PIPE,
        SFlag::S_IFSOCK => SOCKET,
        _ => 0,
    };
    [(Mode::S_ISUID, SETUID), (Mode::S_ISGID, SETGID), (Mode::S_ISVTX, STICKY)]
        .iter()
        .filter(|(bit, _)| mode & bit.bits() != 0)
        .fold(kind | (mode & PERMISSIONS), |bits, (_, bit)| bits | bit)
}

/// `DiskUsage`: for each path, how many bytes the folders in it hold. Apparent sizes, summed from
/// below, a folder's own included.
pub(super) fn usage(
    outlet: &Outlet<DiskUsageInfo>,
    request: &DiskUsageRequest,
) -> Result<(), Stop> {
    let root = ["/".to_owned()];
    let paths = if request.paths.is_empty() { &root[..] } else { &request.paths };
    paths.iter().try_for_each(|path| usage_of(outlet, request, &clean(path)))
}

fn usage_of(
    outlet: &Outlet<DiskUsageInfo>,
    request: &DiskUsageRequest,
    root: &Path,
) -> Result<(), Stop> {
    let failed = |path: &Path, relative: &Path, error| {
        let (name, relative_name) = (text(path), text(relative));
        outlet.send(DiskUsageInfo { name, relative_name, error, ..DiskUsageInfo::default() })
    };
    let report = |Sum { path, relative, depth, bytes }: &Sum| {
        if !reported(request, *depth, *bytes) {
            return Ok(());
        }
        let (name, relative_name) = (text(path), text(relative));
        outlet.send(DiskUsageInfo { name, relative_name, size: *bytes, ..DiskUsageInfo::default() })
    };
    let walk = match Walk::new(root, None) {
        Ok(walk) => walk,
        Err(error) => return failed(root, root, told("lstat", root, &error)),
    };
    // The folders on the way down.
    let mut sums: Vec<Sum> = Vec::new();
    for step in walk {
        outlet.wanted()?;
        let done = match step {
            Step::Found(entry) => {
                let folder = entry.metadata.is_dir();
                let sum = Sum::of(entry);
                if folder {
                    sums.push(sum);
                    continue;
                }
                if request.all || sum.depth == 0 {
                    report(&sum)?;
                }
                sum
            }
            Step::Left => {
                let Some(sum) = sums.pop() else { continue };
                report(&sum)?;
                sum
            }
            Step::Failed(Failure { path, relative, error }) => {
                failed(&path, &relative, error)?;
                continue;
            }
        };
        if let Some(above) = sums.last_mut() {
            above.bytes = above.bytes.saturating_add(done.bytes);
        }
    }
    Ok(())
}

/// What was counted of an entry so far.
struct Sum {
    path: PathBuf,
    relative: PathBuf,
    depth: usize,
    bytes: i64,
}

impl Sum {
    fn of(Entry { path, relative, depth, metadata }: Entry) -> Self {
        // The kernel's memory as a file: its size is that of the address space.
        let bytes = if path == Path::new("/proc/kcore") { 0 } else { metadata.size() };
        Self { path, relative, depth, bytes: i64::try_from(bytes).unwrap_or(i64::MAX) }
    }
}

/// Whether what is asked for covers an entry of `bytes` so many levels below the root.
fn reported(request: &DiskUsageRequest, depth: usize, bytes: i64) -> bool {
    let levels = usize::try_from(request.recursion_depth).unwrap_or_default();
    let within = levels == 0 || depth < levels;
    within
        && match request.threshold {
            0 => true,
            least @ 1.. => bytes >= least,
            most => bytes <= most.saturating_neg(),
        }
}

/// `Read`: a regular file in pieces, whatever its size says: files of `/proc` say 0.
pub(super) fn read(outlet: &Outlet<Data>, request: &ReadRequest) -> Result<(), Stop> {
    let path = absolute(&request.path)?;
    // Asked before it is opened, because opening some devices does something.
    let metadata = fs::metadata(&path).map_err(|error| refused("stat", &path, &error))?;
    let irregular = || Stop::Failed(Status::unknown("path must be a regular file"));
    if !metadata.is_file() {
        return Err(irregular());
    }
    let mut file = open(&path, OFlag::empty()).map_err(|error| refused("open", &path, &error))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(irregular());
    }
    loop {
        let (bytes, end) = piece(&mut file).map_err(|error| refused("read", &path, &error))?;
        if !bytes.is_empty() {
            outlet.send(data(bytes))?;
        }
        if end {
            return Ok(());
        }
    }
}

/// Opens for reading without waiting for anything, as with a FIFO; `more` flags are for `open(2)`.
pub(super) fn open(path: &Path, more: OFlag) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags((OFlag::O_NONBLOCK | more).bits()).open(path)
}

/// The next bytes, up to a chunk, and whether the file ends behind them. A file that would make us
/// wait for more, such as `/proc/kmsg`, ends with what is there.
fn piece(file: &mut File) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::with_capacity(CHUNK);
    match file.take(CHUNK as u64).read_to_end(&mut bytes) {
        Ok(_) => {
            let end = bytes.len() < CHUNK;
            Ok((bytes, end))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok((bytes, true)),
        Err(error) => Err(error),
    }
}

/// The path a caller means; there is no folder that a relative one could start from.
pub(super) fn absolute(path: &str) -> Result<PathBuf, Stop> {
    if path.starts_with('/') {
        Ok(clean(path))
    } else {
        Err(Stop::Failed(Status::unknown(format!("path is not absolute {path}"))))
    }
}

/// A failure that ends the call.
pub(super) fn refused(doing: &str, path: &Path, error: &io::Error) -> Stop {
    let text = told(doing, path, error);
    Stop::Failed(match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(text),
        _ => Status::unknown(text),
    })
}

/// Names can be of any bytes; messages are UTF-8.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
