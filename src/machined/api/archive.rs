//! `Copy`: a file or a folder as a gzip'd tar (spec §5.2).
//!
//! Members are named relative to the root; a root that is a file has its own name. They keep modes,
//! owners, times, symbolic and hard links, devices and FIFOs as `tar(5)` has them (POSIX ustar), and
//! extended attributes and long names as PAX records (`SCHILY.xattr.`, as GNU tar writes them).
//! What cannot be read is left out and told at the end.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};
use orlop_proto::common::Data;
use orlop_proto::machine::CopyRequest;
use tar::{Builder, EntryType, Header};

use super::files::{absolute, extended_attributes, open, refused};
use super::threads::{Outlet, Stop};
use super::walk::{Entry, Failure, Step, Walk, told};
use super::{CHUNK, data, told as last_words};

/// Files with several names that are remembered, to make their further names links.
const LINKS: usize = 16_384;
/// Reasons that are told one by one.
const REASONS: usize = 32;

/// Streams the archive of what the request names.
pub(super) fn copy(outlet: &Outlet<Data>, request: &CopyRequest) -> Result<(), Stop> {
    let root = absolute(&request.root_path)?;
    let walk = Walk::new(&root, None).map_err(|error| refused("lstat", &root, &error))?;
    let chunks = Chunks { outlet, chunk: Vec::with_capacity(CHUNK) };
    // Stored, not squeezed: the fastest level takes ten times as long, longer than the way to the
    // operator usually does, and PID 1 has other work.
    let mut archive = Archive::new(GzEncoder::new(chunks, Compression::none()));
    for step in walk {
        outlet.wanted()?;
        archive.add(step).map_err(gone)?;
    }
    let (zipped, left_out) = archive.finish().map_err(gone)?;
    zipped.finish().and_then(|mut chunks| chunks.flush()).map_err(gone)?;
    match left_out.tell() {
        Some(text) => outlet.send(last_words(text)),
        None => Ok(()),
    }
}

/// The archive is written to the caller, so that a write only fails when the caller has gone.
fn gone(_: io::Error) -> Stop {
    Stop::Gone
}

/// Cuts what is written into chunks.
struct Chunks<'a> {
    outlet: &'a Outlet<Data>,
    chunk: Vec<u8>,
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        self.outlet.send(data(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A tar that is being written.
struct Archive<W: Write> {
    tar: Builder<W>,
    /// The first name of each file that has several, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    left_out: LeftOut,
}

impl<W: Write> Archive<W> {
    fn new(to: W) -> Self {
        Self { tar: Builder::new(to), links: HashMap::new(), left_out: LeftOut::default() }
    }

    /// # Errors
    /// When the archive cannot be written. What cannot be read is no error here.
    fn add(&mut self, step: Step) -> io::Result<()> {
        match step {
            // The folder it is unpacked into stays as it is.
            Step::Found(entry) if entry.depth == 0 && entry.metadata.is_dir() => Ok(()),
            Step::Found(entry) => self.add_entry(&entry),
            Step::Failed(Failure { error, .. }) => {
                self.left_out.because(error);
                Ok(())
            }
            Step::Left => Ok(()),
        }
    }

    fn add_entry(&mut self, entry: &Entry) -> io::Result<()> {
        let Entry { path, relative, metadata, .. } = entry;
        let kind = metadata.file_type();
        if let Some(first) = self.first_name(entry) {
            return self.append(entry, EntryType::Link, Some(&first), Content::None);
        }
        if kind.is_file() {
            return match Content::open(path, metadata.len()) {
                Ok(content) => self.append(entry, EntryType::Regular, None, content),
                Err(error) => {
                    self.links.retain(|_, first| first != relative);
                    self.left_out.because(told("read", path, &error));
                    Ok(())
                }
            };
        }
        if kind.is_symlink() {
            return match std::fs::read_link(path) {
                Ok(target) => self.append(entry, EntryType::Symlink, Some(&target), Content::None),
                Err(error) => {
                    self.left_out.because(told("readlink", path, &error));
                    Ok(())
                }
            };
        }
        let kind = match kind {
            _ if kind.is_dir() => EntryType::Directory,
            _ if kind.is_fifo() => EntryType::Fifo,
            _ if kind.is_char_device() => EntryType::Char,
            _ if kind.is_block_device() => EntryType::Block,
            _ => {
                self.left_out.because(format!("{}: a socket has no content", path.display()));
                return Ok(());
            }
        };
        self.append(entry, kind, None, Content::None)
    }

    /// The name under which the file is in the archive already; else this one is kept as its first.
    fn first_name(&mut self, Entry { relative, metadata, .. }: &Entry) -> Option<PathBuf> {
        if metadata.nlink() < 2 || metadata.is_dir() {
            return None;
        }
        let file = (metadata.dev(), metadata.ino());
        let first = self.links.get(&file).cloned();
        let keeps = metadata.is_file() && self.links.len() < LINKS;
        if first.is_none() && keeps {
            self.links.insert(file, relative.clone());
        }
        first
    }

    fn append(
        &mut self,
        Entry { path, relative, metadata, .. }: &Entry,
        kind: EntryType,
        link: Option<&Path>,
        mut content: Content,
    ) -> io::Result<()> {
        let mut name = relative.as_os_str().as_bytes().to_vec();
        if kind == EntryType::Directory {
            name.push(b'/');
        }
        let link = link.map(|link| link.as_os_str().as_bytes()).unwrap_or_default();

        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
        header.set_size(content.length());
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let number = |part: u64| u32::try_from(part).map_err(io::Error::other);
            header.set_device_major(number(major(metadata.rdev()))?)?;
            header.set_device_minor(number(minor(metadata.rdev()))?)?;
        }
        let mut records = Vec::new();
        if let Some(ustar) = header.as_ustar_mut() {
            for (field, value, key) in
                [(&mut ustar.name, &name[..], "path"), (&mut ustar.linkname, link, "linkpath")]
            {
                let fits = value.len().min(field.len());
                field[..fits].copy_from_slice(&value[..fits]);
                if fits < value.len() {
                    records.push((key.to_owned(), value.to_vec()));
                }
            }
        }
        // A further name has what the first one has.
        if kind != EntryType::Link {
            match extended_attributes(path) {
                Ok(found) => records.extend(
                    found.into_iter().map(|one| (format!("SCHILY.xattr.{}", one.name), one.data)),
                ),
                Err(error) => {
                    let doing = "read the extended attributes of";
                    self.left_out.because(told(doing, path, &error));
                }
            }
        }
        if !records.is_empty() {
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.tar.append_pax_extensions(records)?;
        }
        header.set_cksum();
        self.tar.append(&header, &mut content)?;
        if let Content::Stream { lost: Some(error), .. } = content {
            self.left_out.because(told("read all of", path, &error));
        }
        Ok(())
    }

    fn finish(self) -> io::Result<(W, LeftOut)> {
        Ok((self.tar.into_inner()?, self.left_out))
    }
}

/// The bytes of a member: exactly as many as its header says.
enum Content {
    None,
    /// A small file is read first and measured then: what sysfs says of sizes is not so.
    Whole(io::Cursor<Vec<u8>>),
    /// A file that shrinks meanwhile is filled up with zeros, of one that grows the rest is left.
    Stream {
        file: File,
        left: u64,
        lost: Option<io::Error>,
    },
}

impl Content {
    fn open(path: &Path, size: u64) -> io::Result<Self> {
        if size == 0 {
            // Not opened: files of /proc are empty here, and some would wait.
            return Ok(Self::None);
        }
        let file = open(path, OFlag::O_NOFOLLOW)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file any more"));
        }
        if size > CHUNK as u64 {
            return Ok(Self::Stream { file, left: size, lost: None });
        }
        let mut bytes = Vec::new();
        (&file).take(CHUNK as u64).read_to_end(&mut bytes)?;
        Ok(Self::Whole(io::Cursor::new(bytes)))
    }

    fn length(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Whole(bytes) => bytes.get_ref().len() as u64,
            Self::Stream { left, .. } => *left,
        }
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (file, left, lost) = match self {
            Self::None => return Ok(0),
            Self::Whole(bytes) => return bytes.read(buffer),
            Self::Stream { file, left, lost } => (file, left, lost),
        };
        let room = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..room];
        let count = match lost {
            Some(_) => None,
            None => match file.read(buffer) {
                Ok(0) if room > 0 => {
                    *lost = Some(io::Error::other("it became shorter meanwhile"));
                    None
                }
                Ok(count) => Some(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Err(error) => {
                    *lost = Some(error);
                    None
                }
            },
        };
        let count = count.unwrap_or_else(|| {
            buffer.fill(0);
            room
        });
        *left -= count as u64;
        Ok(count)
    }
}

/// Why something is not in the archive.
#[derive(Debug, Default)]
struct LeftOut {
    reasons: Vec<String>,
    further: usize,
}

impl LeftOut {
    fn because(&mut self, reason: String) {
        if self.reasons.len() < REASONS {
            self.reasons.push(reason);
        } else {
            self.further += 1;
        }
    }

    /// `None` when all is there.
    fn tell(self) -> Option<String> {
        let Self { mut reasons, further } = self;
        if further > 0 {
            reasons.push(format!("and {further} more"));
        }
        (!reasons.is_empty()).then(|| format!("left out: {}", reasons.join("; ")))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::Command;

    use futures_util::StreamExt as _;

    use super::super::threads::Threads;
    use super::*;

    /// The archive of `root`, not zipped, and what was left out of it.
    fn archive(root: &Path) -> (Vec<u8>, Option<String>) {
        let mut archive = Archive::new(Vec::new());
        Walk::new(root, None).unwrap().for_each(|step| archive.add(step).unwrap());
        let (bytes, left_out) = archive.finish().unwrap();
        (bytes, left_out.tell())
    }

    /// What `tar` makes of an archive, in a new folder.
    fn unpack(bytes: &[u8]) -> tempfile::TempDir {
        let to = tempfile::tempdir().unwrap();
        fs::write(to.path().join("x.tar"), bytes).unwrap();
        let ran = Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "-pxf", "x.tar"])
            .current_dir(to.path())
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
        fs::remove_file(to.path().join("x.tar")).unwrap();
        to
    }

    #[test]
    fn a_tree_comes_out_of_tar_as_it_went_in() {
        let from = tempfile::tempdir().unwrap();
        let at = |name: &str| from.path().join(name);
        let long = format!("{}/{}", "folder-of-a-long-name".repeat(8), "n".repeat(200));
        fs::create_dir_all(at(&long)).unwrap();
        fs::write(at("small"), "few bytes").unwrap();
        fs::write(at(&format!("{long}/deep")), vec![7; CHUNK]).unwrap();
        fs::write(at("empty"), "").unwrap();
        fs::write(at("large"), (0..=255).cycle().take(3 * CHUNK + 1).collect::<Vec<u8>>()).unwrap();
        fs::set_permissions(at("small"), fs::Permissions::from_mode(0o6750)).unwrap();
        fs::hard_link(at("small"), at("z-hard")).unwrap();
        symlink("small", at("link")).unwrap();
        symlink("/nowhere/".repeat(30), at("dangling")).unwrap();
        symlink("small", at("a-link")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let sparse = File::create(at("sparse")).unwrap();
        sparse.set_len(5_000_000).unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        File::options().write(true).open(at("small")).unwrap().set_modified(old).unwrap();
        let has_xattrs = xattr::set(at("large"), "user.orlop", b"a\nb=\0c").is_ok();
        if !has_xattrs {
            println!("skipped: extended attributes: the file system has none");
        }
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();

        let (bytes, left_out) = archive(from.path());
        let socket = at("socket");
        let reason = format!("left out: {}: a socket has no content", socket.display());
        assert_eq!(left_out, Some(reason));
        let to = unpack(&bytes);
        fs::remove_file(&socket).unwrap();
        let tree = |root: &Path| {
            let entries = Walk::new(root, None).unwrap().filter_map(|step| match step {
                Step::Found(entry) if entry.depth > 0 => Some(entry),
                Step::Found(_) | Step::Left => None,
                Step::Failed(failure) => panic!("{failure:?}"),
            });
            let of = |Entry { path, relative, metadata, .. }: Entry| {
                let content =
                    if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                let mtime = if metadata.is_symlink() { 0 } else { metadata.mtime() };
                let owner = (metadata.uid(), metadata.gid());
                let target = fs::read_link(&path).ok();
                let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
                let about = (metadata.mode(), owner, mtime, links, target);
                (relative, about, content, extended_attributes(&path).unwrap())
            };
            entries.map(of).collect::<Vec<_>>()
        };
        let (went_in, came_out) = (tree(from.path()), tree(to.path()));
        for (a, b) in went_in.iter().zip(&came_out) {
            assert_eq!((&a.0, &a.1, &a.3), (&b.0, &b.1, &b.3));
            assert!(a.2 == b.2, "content of {}", a.0.display());
        }
        assert_eq!(went_in.len(), came_out.len());
        let inode = |name: &str| fs::metadata(to.path().join(name)).unwrap().ino();
        assert_eq!(inode("small"), inode("z-hard"));
    }

    #[tokio::test]
    async fn a_copy_is_a_gzipped_tar_in_chunks_and_what_it_lacks_comes_last() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("file"), vec![1; 5 * CHUNK]).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(home.path().join("socket")).unwrap();
        let request = CopyRequest { root_path: home.path().to_str().unwrap().to_owned() };
        let threads = Threads::new();
        let stream = threads.stream(2, move |outlet| copy(outlet, &request)).await.unwrap();
        let mut pieces: Vec<Data> = stream.map(Result::unwrap).collect().await;
        let last = pieces.pop().unwrap();
        assert!(last.metadata.unwrap().error.ends_with("socket: a socket has no content"));
        assert!(pieces.iter().all(|piece| (1..=CHUNK).contains(&piece.bytes.len())));
        let zipped: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&zipped[..]).read_to_end(&mut bytes).unwrap();
        let to = unpack(&bytes);
        assert_eq!(fs::read(to.path().join("file")).unwrap().len(), 5 * CHUNK);
    }

    #[tokio::test]
    async fn only_what_is_there_under_an_absolute_path_is_copied() {
        for (path, code, text) in [
            ("etc", tonic::Code::Unknown, "path is not absolute etc"),
            ("/no/such", tonic::Code::NotFound, "lstat /no/such: no such file or directory"),
        ] {
            let request = CopyRequest { root_path: path.to_owned() };
            let copied = Threads::new().stream(2, move |outlet| copy(outlet, &request)).await;
            let status = copied.map(drop).unwrap_err();
            assert_eq!((status.code(), status.message()), (code, text));
        }
    }

    #[test]
    fn a_single_file_has_its_own_name_and_a_linked_root_is_what_it_leads_to() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("file"), "x").unwrap();
        symlink("file", home.path().join("link")).unwrap();
        for root in ["file", "link"] {
            let (bytes, left_out) = archive(&home.path().join(root));
            let to = unpack(&bytes);
            assert_eq!(
                (fs::read_to_string(to.path().join("file")).unwrap(), left_out),
                ("x".to_owned(), None)
            );
        }
    }

    #[test]
    fn devices_keep_their_numbers() {
        let (bytes, _) = archive(Path::new("/dev/null"));
        let mut tar = tar::Archive::new(&bytes[..]);
        let entry = tar.entries().unwrap().next().unwrap().unwrap();
        let header = entry.header();
        assert_eq!(header.entry_type(), EntryType::Char);
        assert_eq!(
            (header.device_major().unwrap(), header.device_minor().unwrap()),
            (Some(1), Some(3))
        );
    }

    #[test]
    fn sizes_beyond_what_octal_digits_hold_are_read_back() {
        let mut header = Header::new_ustar();
        header.set_size(9 << 30);
        assert_eq!(header.entry_size().unwrap(), 9 << 30);
    }

    #[test]
    fn a_file_that_changes_meanwhile_has_the_size_its_header_says() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        for (now, end, lost) in [(CHUNK + 100, [0; 4], true), (3 * CHUNK, [7; 4], false)] {
            fs::write(&path, vec![7; 2 * CHUNK]).unwrap();
            let mut content = Content::open(&path, 2 * CHUNK as u64).unwrap();
            fs::write(&path, vec![7; now]).unwrap();
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len(), 2 * CHUNK);
            assert!(bytes.ends_with(&end));
            let Content::Stream { lost: seen, .. } = content else { panic!("a large file") };
            assert_eq!(seen.is_some(), lost);
        }
    }

    #[test]
    fn what_is_left_out_is_told_in_bounds() {
        let mut left_out = LeftOut::default();
        assert_eq!(LeftOut::default().tell(), None);
        (0..40).for_each(|number| left_out.because(number.to_string()));
        let text = left_out.tell().unwrap();
        assert!(text.starts_with("left out: 0; 1; ") && text.ends_with("31; and 8 more"), "{text}");
    }
}
