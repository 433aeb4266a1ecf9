//! Volume labels of block devices, read from their first bytes.
//!
//! The bytes come from outside: the parser takes any, and answers `None` for what it does not know.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// As much of a device as [`probe`] looks at.
pub const PROBE_BYTES: usize = 0x8000 + 2048;

/// A file system and its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// As `mount(2)` names it.
    pub fstype: &'static str,
    /// Without its padding; may be empty.
    pub label: String,
}

/// What file system begins with `bytes`, and how it is labelled.
///
/// Knows ISO 9660 (ECMA-119 §8.4), FAT (Microsoft FAT32 specification, BPB), ext2/3/4 and XFS (their
/// kernel documents on the on-disk layout).
#[must_use]
pub fn probe(bytes: &[u8]) -> Option<Volume> {
    let is = |at: usize, magic: &[u8]| bytes.get(at..at + magic.len()) == Some(magic);
    let (fstype, label) = if is(0x8000, b"\x01CD001") {
        ("iso9660", 0x8028..0x8048)
    } else if is(0, b"XFSB") {
        ("xfs", 108..120)
    } else if is(0x438, &[0x53, 0xEF]) {
        ("ext4", 0x478..0x488)
    } else if is(82, b"FAT32   ") {
        ("vfat", 71..82)
    } else if is(54, b"FAT12   ") || is(54, b"FAT16   ") {
        ("vfat", 43..54)
    } else {
        return None;
    };
    let label = bytes.get(label)?;
    let end = label.iter().position(|byte| *byte == 0).unwrap_or(label.len());
    Some(Volume { fstype, label: String::from_utf8_lossy(&label[..end]).trim_end().to_owned() })
}

/// The block device whose volume has this label, any case (FAT knows capitals only).
///
/// # Errors
/// When the kernel's list of block devices cannot be read; a device that cannot be is passed over.
pub fn find(label: &str) -> io::Result<Option<(PathBuf, Volume)>> {
    let mut names: Vec<_> = fs::read_dir("/sys/class/block")?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .filter(|name| !name.to_string_lossy().starts_with("loop"))
        .collect();
    orlop_rt::sort(&mut names);
    for name in names {
        let path = PathBuf::from("/dev").join(name);
        let Ok(file) = File::open(&path) else { continue };
        let mut bytes = Vec::new();
        if let Err(error) = file.take(PROBE_BYTES as u64).read_to_end(&mut bytes) {
            // An empty drive answers so; more is worth a line to whoever looks for it.
            tracing::debug!(device = %path.display(), %error, "cannot be probed");
            continue;
        }
        if let Some(volume) =
            probe(&bytes).filter(|volume| volume.label.eq_ignore_ascii_case(label))
        {
            return Ok(Some((path, volume)));
        }
    }
    Ok(None)
}

/// The kernel's names of the partitions with this name (of GPT's), sorted. `class` is
/// `/sys/class/block`.
///
/// # Errors
/// When that cannot be read; a partition that is gone meanwhile is passed over.
pub fn partitions(class: &Path, label: &str) -> io::Result<Vec<String>> {
    let named = |entry: &fs::DirEntry| {
        let told = fs::read_to_string(entry.path().join("uevent")).unwrap_or_default();
        told.lines().any(|line| line.strip_prefix("PARTNAME=") == Some(label))
    };
    let mut names: Vec<_> = fs::read_dir(class)?
        .filter_map(Result::ok)
        .filter(named)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    orlop_rt::sort(&mut names);
    Ok(names)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn volume(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; PROBE_BYTES];
        for (at, part) in parts {
            bytes[*at..at + part.len()].copy_from_slice(part);
        }
        bytes
    }

    #[test]
    fn each_file_system_tells_its_label() {
        let cases: [(&str, Vec<u8>); 5] = [
            (
                "iso9660",
                volume(&[(0x8000, b"\x01CD001"), (0x8028, b"metal-iso                       ")]),
            ),
            ("xfs", volume(&[(0, b"XFSB"), (108, b"metal-iso")])),
            ("ext4", volume(&[(0x438, &[0x53, 0xEF]), (0x478, b"metal-iso")])),
            ("vfat", volume(&[(82, b"FAT32   "), (71, b"metal-iso  ")])),
            ("vfat", volume(&[(54, b"FAT16   "), (43, b"metal-iso  ")])),
        ];
        for (fstype, bytes) in cases {
            assert_eq!(probe(&bytes), Some(Volume { fstype, label: "metal-iso".to_owned() }));
        }
    }

    #[test]
    fn an_empty_disk_is_nothing() {
        assert_eq!(probe(&[]), None);
        assert_eq!(probe(&vec![0; PROBE_BYTES]), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2048), at in 0usize..0x9000) {
            let mut disk = vec![0; at];
            disk.extend(&bytes);
            prop_assert!(probe(&disk).is_none_or(|volume| volume.label.len() <= 96));
            for magic in [(0x8000, &b"\x01CD001"[..]), (0, b"XFSB"), (82, b"FAT32   ")] {
                let mut disk = disk.clone();
                if disk.len() >= magic.0 + magic.1.len() {
                    disk[magic.0..magic.0 + magic.1.len()].copy_from_slice(magic.1);
                    prop_assert!(probe(&disk).is_none_or(|volume| volume.label.len() <= 96));
                }
            }
        }
    }
}
