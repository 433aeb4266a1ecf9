//! META: small values that outlive a boot, a reset of the other volumes and an upgrade (spec §8.9).
//!
//! The partition labelled `META` begins with two copies of a block of tags. A block is all or nothing:
//! a sum over it tells whether it was written to its end. A change writes first the copy that is not
//! read, then the other one, so that at each instant one of them is whole. What lies behind the two
//! copies is not ours.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use crate::label;

/// Of one copy.
const BLOCK_BYTES: usize = 256 << 10;
const BEGIN: [u8; 4] = [0x5a, 0x4b, 0x3c, 0x2d];
const END: [u8; 4] = [0xa5, 0xb4, 0xc3, 0xd2];
/// The sum and [`END`].
const TAIL_BYTES: usize = SHA256_OUTPUT_LEN + END.len();
/// The label of the partition.
const LABEL: &str = "META";

/// Values by their tags. Keys of the API are the tags up to 255.
pub type Tags = BTreeMap<u32, Vec<u8>>;

/// Why META is not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such partition.
    #[error(
        "this node has no partition labelled META; make one of 1 MiB on its disk \
         (sgdisk -n 0:0:+1M -c 0:META DISK), and reboot"
    )]
    Missing,
    /// Which one is meant?
    #[error("partitions labelled META are on several disks: {}; detach all but one", .0.join(" "))]
    Several(Vec<String>),
    /// Neither copy is whole, or empty.
    #[error(
        "the partition META holds something else; to give it up: \
         orlopctl reset --reboot --system-labels-to-wipe META"
    )]
    Foreign,
    /// No value so long, or not so many.
    #[error("no room in META: its values would take {used} bytes of {room}")]
    Full {
        /// Each value and 8 bytes more.
        used: usize,
        /// For all of them.
        room: usize,
    },
    /// Its end is marked with this tag.
    #[error("key 0 cannot hold an empty value")]
    EmptyZero,
    /// Nothing to delete.
    #[error("key {0} is not in META")]
    NoKey(u8),
    /// The disk does not do as it is told.
    #[error("{operation} {}", path.display())]
    Device {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Sets the value of a key, or deletes it (`None`), on the disk of this node. Returns when it is there.
///
/// # Errors
/// When there is nothing to change, no room, or the disk fails.
pub(crate) fn change(key: u8, value: Option<Vec<u8>>) -> Result<(), Error> {
    change_on(&find(Path::new("/sys/class/block"))?, BLOCK_BYTES, key, value)
}

fn change_on(path: &Path, block: usize, key: u8, value: Option<Vec<u8>>) -> Result<(), Error> {
    let failed =
        |operation| move |source| Error::Device { operation, path: path.to_owned(), source };
    let mut device = File::options().read(true).write(true).open(path).map_err(failed("open"))?;
    let mut copies = vec![0; 2 * block];
    device.read_exact(&mut copies).map_err(failed("read the two copies on"))?;
    let (mut tags, _) = read(&copies).ok_or(Error::Foreign)?;
    match value {
        Some(value) => drop(tags.insert(key.into(), value)),
        None => drop(tags.remove(&key.into()).ok_or(Error::NoKey(key))?),
    }
    for (offset, bytes) in steps(&copies, &tags)? {
        let write = device
            .seek(SeekFrom::Start(offset as u64))
            .and_then(|_| device.write_all(&bytes))
            // Not before this copy is on the disk may the other one be touched.
            .and_then(|()| device.sync_all());
        write.map_err(failed("write"))?;
    }
    Ok(())
}

/// The one partition with the label.
fn find(class: &Path) -> Result<PathBuf, Error> {
    let list = |source| Error::Device { operation: "list", path: class.to_owned(), source };
    let mut names = label::partitions(class, LABEL).map_err(list)?;
    match names.len() {
        0 => Err(Error::Missing),
        1 => Ok(Path::new("/dev").join(names.remove(0))),
        _ => Err(Error::Several(names)),
    }
}

/// What is to be written where, in this order, with each on the disk before the next is begun.
fn steps(copies: &[u8], tags: &Tags) -> Result<[(usize, Vec<u8>); 2], Error> {
    let block = copies.len() / 2;
    let bytes = encode(tags, block)?;
    let (_, current) = read(copies).ok_or(Error::Foreign)?;
    let first = (1 - current) * block;
    Ok([(first, bytes.clone()), (block - first, bytes)])
}

/// The tags of both copies, one behind the other, and which of the two they are from: the first that is
/// whole, else one that was never written. `None`: there are other things.
pub fn read(copies: &[u8]) -> Option<(Tags, usize)> {
    let (first, second) = copies.split_at(copies.len() / 2);
    let blank = |copy: &[u8]| copy.iter().all(|byte| *byte == 0);
    decode(first)
        .map(|tags| (tags, 0))
        .or_else(|| Some((decode(second)?, 1)))
        .or_else(|| blank(first).then(|| (Tags::new(), 0)))
        .or_else(|| blank(second).then(|| (Tags::new(), 1)))
}

/// The tags of a block; `None` if it is not whole.
#[must_use]
pub fn decode(block: &[u8]) -> Option<Tags> {
    let (body, tail) = block.split_at_checked(block.len().checked_sub(TAIL_BYTES)?)?;
    let (found, end) = tail.split_at(SHA256_OUTPUT_LEN);
    let inside = body.strip_prefix(&BEGIN)?;
    if end == END && found == sum(body) { entries(inside) } else { None }
}

/// The tags of the inside of a block; `None` if one is longer than the rest of it.
#[must_use]
pub fn entries(mut rest: &[u8]) -> Option<Tags> {
    let mut tags = Tags::new();
    // Tag 0 of no length is the room that is left.
    while let Some((tag, behind)) = word(rest)
        && let Some((length, behind)) = word(behind)
        && (tag, length) != (0, 0)
    {
        let (value, behind) = behind.split_at_checked(usize::try_from(length).ok()?)?;
        tags.insert(tag, value.to_vec());
        rest = behind;
    }
    Some(tags)
}

/// A block of `length` bytes.
///
/// # Errors
/// [`Error::Full`], [`Error::EmptyZero`].
pub fn encode(tags: &Tags, length: usize) -> Result<Vec<u8>, Error> {
    let room = length.saturating_sub(BEGIN.len() + TAIL_BYTES);
    let mut block = BEGIN.to_vec();
    // Others read no further than tag 0: it comes last.
    let (zero, others): (Vec<_>, Vec<_>) = tags.iter().partition(|(tag, _)| **tag == 0);
    let used = tags.values().map(|value| value.len() + 8).sum();
    if used > room {
        return Err(Error::Full { used, room });
    }
    for (tag, value) in others.into_iter().chain(zero) {
        if *tag == 0 && value.is_empty() {
            return Err(Error::EmptyZero);
        }
        block.extend(tag.to_be_bytes());
        // No longer than the block, whose length is a few hundred KiB.
        block.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
        block.extend(value);
    }
    block.resize(BEGIN.len() + room, 0);
    let sum = sum(&block);
    block.extend(sum);
    block.extend(END);
    Ok(block)
}

/// Of a block, with zeros where it will stand.
fn sum(body: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut block = body.to_vec();
    block.resize(body.len() + SHA256_OUTPUT_LEN, 0);
    block.extend(END);
    let mut sum = [0; SHA256_OUTPUT_LEN];
    sum.copy_from_slice(digest(&SHA256, &block).as_ref());
    sum
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*word), rest))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// Small blocks, so that every cut can be tried.
    const BLOCK: usize = 128;

    fn tags(values: &[(u32, &str)]) -> Tags {
        values.iter().map(|(tag, value)| (*tag, value.as_bytes().to_vec())).collect()
    }

    fn device(first: &[u8], second: &[u8]) -> Vec<u8> {
        [first, second].concat()
    }

    #[test]
    fn a_block_is_laid_out_as_specified() {
        let block = encode(&tags(&[(0, "z"), (7, "image")]), BLOCK).unwrap();
        assert_eq!(block.len(), BLOCK);
        let expected = b"\x5a\x4b\x3c\x2d\0\0\0\x07\0\0\0\x05image\0\0\0\0\0\0\0\x01z\0\0";
        assert_eq!(block[..expected.len()], expected[..]);
        assert_eq!(block[BLOCK - 4..], END);
        let mut zeroed = block.clone();
        zeroed[BLOCK - TAIL_BYTES..BLOCK - 4].fill(0);
        assert_eq!(block[BLOCK - TAIL_BYTES..BLOCK - 4], *digest(&SHA256, &zeroed).as_ref());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_room_there_is() {
        let most = BLOCK - TAIL_BYTES - BEGIN.len() - 8;
        let full = |length| encode(&[(9, vec![1; length])].into(), BLOCK);
        assert_eq!(decode(&full(most).unwrap()), Some([(9, vec![1; most])].into()));
        let error = full(most + 1).unwrap_err().to_string();
        assert_eq!(error, "no room in META: its values would take 89 bytes of 88");
        assert!(matches!(encode(&tags(&[(0, "")]), BLOCK), Err(Error::EmptyZero)));
    }

    /// The state of a device after each cut of `steps`: written from the front, and from the back, as
    /// a disk may that puts its writes into another order.
    fn cuts(before: &[u8], steps: &[(usize, Vec<u8>)]) -> Vec<Vec<u8>> {
        let mut states = Vec::new();
        let mut disk = before.to_vec();
        for (offset, bytes) in steps {
            for cut in 0..=bytes.len() {
                let mut front = disk.clone();
                front[*offset..offset + cut].copy_from_slice(&bytes[..cut]);
                states.push(front);
                let mut back = disk.clone();
                back[offset + cut..offset + bytes.len()].copy_from_slice(&bytes[cut..]);
                states.push(back);
            }
            disk[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        states
    }

    #[test]
    fn a_write_that_is_cut_anywhere_leaves_the_old_or_the_new() {
        let (old, new) = (tags(&[(10, "old"), (6, "A")]), tags(&[(10, "newer"), (6, "A")]));
        let (blank, broken) = (vec![0; BLOCK], vec![7; BLOCK]);
        let (was, stale) =
            (encode(&old, BLOCK).unwrap(), encode(&tags(&[(1, "stale")]), BLOCK).unwrap());
        for (first, second, before) in [
            (&was, &was, &old),
            (&was, &stale, &old),
            (&was, &broken, &old),
            (&was, &blank, &old),
            (&broken, &was, &old),
            (&blank, &was, &old),
            (&blank, &blank, &Tags::new()),
            (&broken, &blank, &Tags::new()),
            (&blank, &broken, &Tags::new()),
        ] {
            let disk = device(first, second);
            let plan = steps(&disk, &new).unwrap();
            let mut seen = 0;
            for state in cuts(&disk, &plan) {
                let (found, _) = read(&state).expect("one copy is whole");
                assert!(found == *before || found == new, "{found:?}");
                seen += usize::from(found == new);
                // And from there, cut again, as from anywhere.
                let again = steps(&state, &old).unwrap();
                let mut torn = state;
                torn[again[0].0..again[0].0 + BLOCK / 2].copy_from_slice(&again[0].1[..BLOCK / 2]);
                assert!(read(&torn).is_some_and(|(tags, _)| tags == found || tags == old));
            }
            assert!(seen > 0, "it is never new");
        }
    }

    #[test]
    fn keys_are_kept_on_a_device_and_nothing_behind_the_copies_is_touched() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("device");
        let mut bytes = vec![0; 2 * BLOCK_BYTES];
        bytes.extend(b"boot loader's");
        fs::write(&path, &bytes).unwrap();
        let change = |key, value: Option<&str>| {
            change_on(&path, BLOCK_BYTES, key, value.map(|value| value.as_bytes().to_vec()))
        };
        let kept = || read(&fs::read(&path).unwrap()[..2 * BLOCK_BYTES]).unwrap().0;
        change(255, Some("a")).unwrap();
        change(0, Some("b")).unwrap();
        change(255, Some("")).unwrap();
        assert_eq!(kept(), tags(&[(0, "b"), (255, "")]));
        change(255, None).unwrap();
        assert!(matches!(change(255, None), Err(Error::NoKey(255))));
        assert_eq!(kept(), tags(&[(0, "b")]));
        let large = "x".repeat(BLOCK_BYTES);
        assert!(matches!(change(1, Some(&large)), Err(Error::Full { .. })));
        let written = fs::read(&path).unwrap();
        assert_eq!(written[..BLOCK_BYTES], written[BLOCK_BYTES..2 * BLOCK_BYTES]);
        assert!(written.ends_with(b"boot loader's"));

        fs::write(&path, vec![1; 2 * BLOCK_BYTES]).unwrap();
        assert!(matches!(change(1, Some("a")), Err(Error::Foreign)));
        fs::write(&path, [0; 512]).unwrap();
        let error = change(1, Some("a")).unwrap_err().to_string();
        assert!(error.starts_with("read the two copies on /"), "{error}");
    }

    #[test]
    fn the_partition_is_found_by_its_label_and_only_if_there_is_one() {
        let class = tempfile::tempdir().unwrap();
        let add = |name: &str, uevent: &str| {
            fs::create_dir(class.path().join(name)).unwrap();
            fs::write(class.path().join(name).join("uevent"), uevent).unwrap();
        };
        add("vda", "DEVNAME=vda\nDEVTYPE=disk\n");
        add("vda1", "DEVNAME=vda1\nPARTN=1\nPARTNAME=METADATA\n");
        assert!(matches!(find(class.path()), Err(Error::Missing)));
        add("vda4", "DEVNAME=vda4\nPARTN=4\nPARTNAME=META\n");
        assert_eq!(find(class.path()).unwrap(), Path::new("/dev/vda4"));
        add("sdb1", "DEVNAME=sdb1\nPARTN=1\nPARTNAME=META\n");
        let error = find(class.path()).unwrap_err().to_string();
        assert_eq!(
            error,
            "partitions labelled META are on several disks: sdb1 vda4; detach all but one"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            tags in proptest::collection::btree_map(
                any::<u32>(),
                proptest::collection::vec(any::<u8>(), 1..40),
                0..20,
            ),
        ) {
            let block = encode(&tags, 2048).unwrap();
            prop_assert_eq!(decode(&block), Some(tags));
        }

        #[test]
        fn a_changed_bit_is_noticed(bit in 0..BLOCK * 8) {
            let mut block = encode(&tags(&[(7, "image")]), BLOCK).unwrap();
            block[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&block), None);
        }
    }
}
