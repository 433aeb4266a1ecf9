//! `copy`: files and folders of a node, into a folder here or as an archive to stdout.
//!
//! What comes is unpacked as it comes, in a thread beside the call. The node is not trusted with more
//! than the folder: names that lead out of it are passed over, also by way of links (`tar` checks
//! each), and neither owners, devices nor special mode bits are taken over.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use flate2::read::GzDecoder;
use orlop_proto::common::Data;
use orlop_proto::machine::CopyRequest;
use tar::{Archive, EntryType};

use crate::client::{Client, machine};
use crate::error::Error;
use crate::progress::Progress;
use crate::table::{escape, print};

/// Pieces that wait while the disk is busy.
const AHEAD: usize = 8;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A file or a folder of the node
    source: String,
    /// A folder to unpack it into, made if it is missing; `-`: a tar.gz to stdout
    destination: PathBuf,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    client.one_node("copy")?;
    let request = CopyRequest { root_path: options.source.clone() };
    let call = async |node| machine(node).copy(request.clone()).await;
    let what = format!("copy {}", options.source);
    let mut progress = Progress::new(&what);
    if options.destination == Path::new("-") {
        let each = |_: &str, data: Data| {
            progress.add(data.bytes.len());
            print(&data.bytes)
        };
        return client.follow(&what, call, each).await;
    }
    let (pieces, arrived) = sync_channel(AHEAD);
    let folder = options.destination.clone();
    let unpacking =
        thread::spawn(move || unpack(Pieces { arrived, piece: Vec::new(), at: 0 }, &folder));
    let mut stopped = false;
    let followed = client
        .follow(&what, call, |_, data| {
            progress.add(data.bytes.len());
            if data.bytes.is_empty() || pieces.send(data.bytes).is_ok() {
                return Ok(());
            }
            stopped = true;
            Err(Error::Output(io::ErrorKind::BrokenPipe.into()))
        })
        .await;
    drop((pieces, progress));
    let unpacked = unpacking.join().expect("unpacking does not panic");
    let path = options.destination.clone();
    let unpacked = unpacked.map_err(|source| Error::Write { path, source });
    // An archive that broke off is the fault of the call; a call that was stopped, of the disk.
    if stopped { unpacked } else { followed.and(unpacked) }
}

/// Unpacks a tar.gz into `folder`.
fn unpack(zipped: impl Read, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut archive = Archive::new(GzDecoder::new(zipped));
    let mut folders = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path_bytes().into_owned();
        let unpacked = match entry.header().entry_type() {
            // Last: one that nobody may write to takes no content.
            EntryType::Directory => {
                folders.push(entry);
                continue;
            }
            EntryType::Regular | EntryType::Link | EntryType::Symlink => entry.unpack_in(folder)?,
            _ => false,
        };
        if !unpacked {
            let name = escape(&String::from_utf8_lossy(&name));
            say!(warning: "{name} is left out: it is no file, or leads out of the folder");
        }
    }
    for mut entry in folders.into_iter().rev() {
        entry.unpack_in(folder)?;
    }
    Ok(())
}

/// The pieces of a stream, one after the other.
struct Pieces {
    arrived: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let Ok(piece) = self.arrived.recv() else { return Ok(0) };
            (self.piece, self.at) = (piece, 0);
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tar::{Builder, Header};

    use super::*;

    fn member(
        tar: &mut Builder<Vec<u8>>,
        kind: EntryType,
        name: &str,
        link: &str,
        mode: u32,
        text: &str,
    ) {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(text.len() as u64);
        // Set as bytes: the crate would refuse to write a name that leads out.
        let fields = header.as_ustar_mut().unwrap();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, text.as_bytes()).unwrap();
    }

    fn zipped(tar: Builder<Vec<u8>>) -> Vec<u8> {
        let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
        zipped.write_all(&tar.into_inner().unwrap()).unwrap();
        zipped.finish().unwrap()
    }

    #[test]
    fn an_archive_is_unpacked_with_folders_nobody_may_write_to() {
        let home = tempfile::tempdir().unwrap();
        let to = home.path().join("new/folder");
        let mut tar = Builder::new(Vec::new());
        member(&mut tar, EntryType::Directory, "ro/", "", 0o555, "");
        member(&mut tar, EntryType::Regular, "ro/file", "", 0o640, "text");
        member(&mut tar, EntryType::Link, "hard", "ro/file", 0o640, "");
        member(&mut tar, EntryType::Symlink, "soft", "ro/file", 0o777, "");
        let bytes = zipped(tar);
        let (send, arrived) = sync_channel(AHEAD);
        // What follows the archive's end need not be read.
        let feeding = thread::spawn(move || {
            bytes.chunks(7).all(|piece| send.send(piece.to_vec()).is_ok());
        });
        unpack(Pieces { arrived, piece: Vec::new(), at: 0 }, &to).unwrap();
        feeding.join().unwrap();
        for name in ["ro/file", "hard", "soft"] {
            assert_eq!(fs::read_to_string(to.join(name)).unwrap(), "text", "{name}");
        }
        assert_eq!(fs::metadata(to.join("ro")).unwrap().permissions().mode() & 0o777, 0o555);
        fs::set_permissions(to.join("ro"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn nothing_is_written_outside_the_folder() {
        let home = tempfile::tempdir().unwrap();
        let to = home.path().join("folder");
        let outside = home.path().join("outside");
        fs::create_dir(&outside).unwrap();
        for (name, link) in [("../escaped", ""), ("a/../../escaped", ""), ("link/escaped", "link")]
        {
            let mut tar = Builder::new(Vec::new());
            if !link.is_empty() {
                member(&mut tar, EntryType::Symlink, link, outside.to_str().unwrap(), 0o777, "");
            }
            member(&mut tar, EntryType::Regular, name, "", 0o644, "x");
            // Passed over, or refused.
            let _ = unpack(&zipped(tar)[..], &to);
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!home.path().join("escaped").exists());
        let mut tar = Builder::new(Vec::new());
        member(&mut tar, EntryType::Fifo, "fifo", "", 0o644, "");
        member(&mut tar, EntryType::Regular, "/absolute", "", 0o6755, "x");
        unpack(&zipped(tar)[..], &to).unwrap();
        assert!(!to.join("fifo").exists());
        let mode = fs::metadata(to.join("absolute")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7000, 0);
    }

    #[test]
    fn an_archive_that_breaks_off_is_no_success() {
        let home = tempfile::tempdir().unwrap();
        let mut tar = Builder::new(Vec::new());
        member(&mut tar, EntryType::Regular, "file", "", 0o644, &"text".repeat(10_000));
        let bytes = zipped(tar);
        assert!(unpack(&bytes[..bytes.len() / 2], home.path()).is_err());
        assert!(unpack(&b"no gzip"[..], home.path()).is_err());
    }
}
