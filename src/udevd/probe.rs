//! What a block device holds: the superblock of a file system, of swap, of LUKS, of LVM or of btrfs.
//!
//! The bytes come from outside: any are taken, and what is not known whole is not known. Names and
//! forms are those of `libblkid`, since programs look them up as `ID_FS_*`. Sources: the kernel's
//! on-disk structures (`fs/ext4/ext4.h`, `fs/xfs/libxfs/xfs_format.h`, `include/linux/swap.h`,
//! `fs/squashfs/squashfs_fs.h`, `fs/btrfs`), Microsoft's FAT specification, ECMA-119 (ISO 9660), the
//! LUKS1 and LUKS2 on-disk formats, LVM2's `label.c`.

use std::io;

use crate::encode::{text, uuid};

/// Reads so many bytes from a byte offset of a device; fewer only at its end.
pub type Read<'a> = dyn FnMut(u64, usize) -> io::Result<Vec<u8>> + 'a;

/// What libblkid calls usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// It can be mounted.
    Filesystem,
    /// It holds encrypted data.
    Crypto,
    /// It is a part of something larger.
    Raid,
    /// Swap.
    Other,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// What it is good for.
    pub usage: Usage,
    /// As `blkid` names it: `ext4`, `crypto_LUKS`.
    pub kind: &'static str,
    /// Of the format.
    pub version: Option<String>,
    /// In the form that is usual for the kind.
    pub uuid: Option<String>,
    /// Of one device among several (btrfs).
    pub uuid_sub: Option<String>,
    /// Without its padding; `None` when there is none.
    pub label: Option<String>,
}

/// What a device holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing we know.
    Unknown,
    /// One thing.
    Is(Box<Superblock>),
    /// The signatures of several, of which one is left from before: nobody can say which counts.
    Ambiguous(Vec<&'static str>),
}

/// All but FAT's root directory is in here: btrfs has its superblock at 64 KiB.
const HEAD_BYTES: usize = 0x1_1000;

/// Looks at a device, or at what stands for one.
///
/// # Errors
/// When reading fails.
pub fn probe(read: &mut Read<'_>) -> io::Result<Content> {
    let head = read(0, HEAD_BYTES)?;
    let head = Bytes(&head);
    // These take whole devices for themselves: whatever else is seen is left from before, or inside.
    if let Some(found) = lvm(head).or_else(|| luks(head)) {
        return Ok(Content::Is(Box::new(found)));
    }
    let fat = fat(head, read)?;
    let known = [ext(head), xfs(head), fat, squashfs(head), btrfs(head), swap(head)];
    let mut found: Vec<Superblock> = known.into_iter().flatten().collect();
    if found.is_empty() {
        // A disc image may begin with what lets a disk boot.
        found.extend(iso9660(head));
    }
    Ok(match found.len() {
        0 => Content::Unknown,
        1 => Content::Is(Box::new(found.remove(0))),
        _ => Content::Ambiguous(found.iter().map(|superblock| superblock.kind).collect()),
    })
}

/// A slice as the device to read from.
pub fn slice(bytes: &[u8]) -> impl FnMut(u64, usize) -> io::Result<Vec<u8>> {
    move |offset, length| {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        Ok(bytes[start..start.saturating_add(length).min(bytes.len())].to_vec())
    }
}

/// Bytes that are asked for by place; beyond their end is nothing.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn at<const N: usize>(self, at: usize) -> Option<&'a [u8; N]> {
        self.0.get(at..)?.first_chunk()
    }

    pub(crate) fn is(self, at: usize, magic: &[u8]) -> bool {
        self.0.get(at..).is_some_and(|bytes| bytes.starts_with(magic))
    }

    pub(crate) fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    pub(crate) fn u16(self, at: usize) -> Option<u16> {
        self.at(at).map(|bytes| u16::from_le_bytes(*bytes))
    }

    pub(crate) fn u32(self, at: usize) -> Option<u32> {
        self.at(at).map(|bytes| u32::from_le_bytes(*bytes))
    }

    pub(crate) fn u64(self, at: usize) -> Option<u64> {
        self.at(at).map(|bytes| u64::from_le_bytes(*bytes))
    }

    fn uuid(self, at: usize) -> Option<String> {
        self.at(at).filter(|bytes| **bytes != [0; 16]).map(uuid)
    }

    fn text(self, at: usize, length: usize) -> Option<String> {
        self.0.get(at..at + length).map(text).filter(|text| !text.is_empty())
    }
}

impl Superblock {
    fn new(usage: Usage, kind: &'static str) -> Self {
        Self { usage, kind, version: None, uuid: None, uuid_sub: None, label: None }
    }
}

fn ext(head: Bytes<'_>) -> Option<Superblock> {
    const AT: usize = 0x400;
    const HAS_JOURNAL: u32 = 0x4;
    const JOURNAL_DEVICE: u32 = 0x8;
    /// What ext3 knows of incompatible and of read-only features: more is ext4.
    const EXT3_INCOMPATIBLE: u32 = 0x2 | 0x4 | 0x10;
    const EXT3_READ_ONLY: u32 = 0x1 | 0x2 | 0x4;
    let blocks = head.u32(AT + 4)?;
    if !head.is(AT + 0x38, &[0x53, 0xEF]) || blocks == 0 || head.u32(AT + 0x18)? > 6 {
        return None;
    }
    let (compatible, incompatible, read_only) =
        (head.u32(AT + 0x5C)?, head.u32(AT + 0x60)?, head.u32(AT + 0x64)?);
    let kind = if incompatible & JOURNAL_DEVICE != 0 {
        "jbd"
    } else if incompatible & !EXT3_INCOMPATIBLE != 0 || read_only & !EXT3_READ_ONLY != 0 {
        "ext4"
    } else if compatible & HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    };
    let usage = if kind == "jbd" { Usage::Other } else { Usage::Filesystem };
    Some(Superblock {
        version: Some(format!("{}.{}", head.u32(AT + 0x4C)?, head.u16(AT + 0x3E)?)),
        uuid: head.uuid(AT + 0x68),
        label: head.text(AT + 0x78, 16),
        ..Superblock::new(usage, kind)
    })
}

fn xfs(head: Bytes<'_>) -> Option<Superblock> {
    let block_size = head.at(4).map(|bytes| u32::from_be_bytes(*bytes))?;
    if !head.is(0, b"XFSB") || !block_size.is_power_of_two() || !(512..=65536).contains(&block_size)
    {
        return None;
    }
    Some(Superblock {
        uuid: head.uuid(32),
        label: head.text(108, 12),
        ..Superblock::new(Usage::Filesystem, "xfs")
    })
}

fn squashfs(head: Bytes<'_>) -> Option<Superblock> {
    let (major, minor) = (head.u16(28)?, head.u16(30)?);
    (head.is(0, b"hsqs") && major == 4).then(|| Superblock {
        version: Some(format!("{major}.{minor}")),
        ..Superblock::new(Usage::Filesystem, "squashfs")
    })
}

fn btrfs(head: Bytes<'_>) -> Option<Superblock> {
    const AT: usize = 0x1_0000;
    /// `dev_item.uuid`.
    const DEVICE_UUID: usize = 0xC9 + 0x42;
    head.is(AT + 0x40, b"_BHRfS_M").then(|| Superblock {
        uuid: head.uuid(AT + 0x20),
        uuid_sub: head.uuid(AT + DEVICE_UUID),
        label: head.text(AT + 0x12B, 256),
        ..Superblock::new(Usage::Filesystem, "btrfs")
    })
}

fn swap(head: Bytes<'_>) -> Option<Superblock> {
    /// The signature ends the first page, whatever the size of a page was.
    const PAGES: [usize; 4] = [0x1000, 0x2000, 0x4000, 0x10000];
    let sound = |page: &usize| head.is(page - 10, b"SWAPSPACE2");
    let version = head.u32(0x400)?;
    (PAGES.iter().any(sound) && version == 1).then(|| Superblock {
        version: Some("1".to_owned()),
        uuid: head.uuid(0x40C),
        label: head.text(0x41C, 16),
        ..Superblock::new(Usage::Other, "swap")
    })
}

fn luks(head: Bytes<'_>) -> Option<Superblock> {
    const SUBSYSTEM_TEXT: usize = 40;
    let version = head.at(6).map(|bytes| u16::from_be_bytes(*bytes))?;
    if !head.is(0, b"LUKS\xba\xbe") || !(1..=2).contains(&version) {
        return None;
    }
    Some(Superblock {
        version: Some(version.to_string()),
        uuid: head.text(168, SUBSYSTEM_TEXT),
        label: head.text(24, 48).filter(|_| version == 2),
        ..Superblock::new(Usage::Crypto, "crypto_LUKS")
    })
}

/// The label is in one of the first four sectors.
fn lvm(head: Bytes<'_>) -> Option<Superblock> {
    const GROUPS: [usize; 7] = [6, 4, 4, 4, 4, 4, 6];
    let (sector, at) = (0..4_u32)
        .map(|sector| (sector, 512 * sector as usize))
        .find(|(_, at)| head.is(*at, b"LABELONE") && head.is(at + 24, b"LVM2 001"))?;
    let id = head.at::<32>(at + 32)?;
    if head.u64(at + 8)? != u64::from(sector) || !id.iter().all(u8::is_ascii_alphanumeric) {
        return None;
    }
    let mut rest = id.iter().map(|byte| char::from(*byte));
    let groups = GROUPS.map(|length| rest.by_ref().take(length).collect::<String>());
    Some(Superblock {
        version: Some("LVM2 001".to_owned()),
        uuid: Some(groups.join("-")),
        ..Superblock::new(Usage::Raid, "LVM2_member")
    })
}

fn iso9660(head: Bytes<'_>) -> Option<Superblock> {
    const AT: usize = 0x8000;
    const CREATED: usize = AT + 813;
    const MODIFIED: usize = AT + 830;
    // The primary volume descriptor.
    if !head.is(AT, b"\x01CD001") {
        return None;
    }
    // Digits `YYYYMMDDhhmmsscc` of the latest date that is set.
    let date = |at| head.at::<16>(at).filter(|date| date.iter().all(u8::is_ascii_digit));
    let date = [MODIFIED, CREATED].into_iter().filter_map(date).find(|date| **date != [b'0'; 16]);
    let uuid = date.map(|date| {
        let digits = String::from_utf8_lossy(date);
        let pairs = (4..16).step_by(2).map(|at| &digits[at..at + 2]);
        std::iter::once(&digits[..4]).chain(pairs).collect::<Vec<_>>().join("-")
    });
    Some(Superblock {
        uuid,
        label: head.text(AT + 40, 32),
        ..Superblock::new(Usage::Filesystem, "iso9660")
    })
}

/// Says which FAT it is by the number of clusters, as the specification does.
fn fat(head: Bytes<'_>, read: &mut Read<'_>) -> io::Result<Option<Superblock>> {
    let Some(layout) = FatLayout::of(head) else { return Ok(None) };
    let (serial, label) = if layout.bits == 32 { (67, 71) } else { (39, 43) };
    let uuid = head.u32(serial).map(|id| format!("{:04X}-{:04X}", id >> 16, id & 0xFFFF));
    let named = |label: &String| label != "NO NAME";
    // The root directory's entry is what other systems show and change; the one here may be old.
    let label = match layout.root_label(read)? {
        Some(label) => Some(label),
        None => head.text(label, 11),
    };
    Ok(Some(Superblock {
        version: Some(format!("FAT{}", layout.bits)),
        uuid: uuid.filter(|uuid| uuid != "0000-0000"),
        label: label.filter(named),
        ..Superblock::new(Usage::Filesystem, "vfat")
    }))
}

struct FatLayout {
    bits: u8,
    /// The root directory, in bytes; of FAT32 its first cluster.
    root: u64,
    root_bytes: usize,
}

impl FatLayout {
    fn of(head: Bytes<'_>) -> Option<Self> {
        const ENTRY: u64 = 32;
        let named =
            [(82, &b"FAT32   "[..]), (54, b"FAT16   "), (54, b"FAT12   "), (54, b"FAT     ")];
        let (sector, cluster) = (u64::from(head.u16(11)?), u64::from(head.u8(13)?));
        let (reserved, fats) = (u64::from(head.u16(14)?), u64::from(head.u8(16)?));
        let sound = head.is(510, &[0x55, 0xAA])
            && named.iter().any(|(at, magic)| head.is(*at, magic))
            && (512..=4096).contains(&sector)
            && sector.is_power_of_two()
            && cluster.is_power_of_two()
            && reserved > 0
            && (1..=4).contains(&fats)
            && head.u8(21)? >= 0xF0;
        if !sound {
            return None;
        }
        let or_wide = |narrow: u16, wide: Option<u32>| match narrow {
            0 => wide.map(u64::from),
            narrow => Some(narrow.into()),
        };
        let root_entries = u64::from(head.u16(17)?);
        let fat_sectors = or_wide(head.u16(22)?, head.u32(36))?;
        let sectors = or_wide(head.u16(19)?, head.u32(32))?;
        let root_sectors = (root_entries * ENTRY).div_ceil(sector);
        let before_data = reserved + fats * fat_sectors + root_sectors;
        let clusters = sectors.checked_sub(before_data)? / cluster;
        let bits = match clusters {
            _ if head.u16(22)? == 0 => 32,
            0..4085 => 12,
            _ => 16,
        };
        let first_root = reserved + fats * fat_sectors;
        let (root, root_bytes) = if bits == 32 {
            let number = u64::from(head.u32(44)?).checked_sub(2)?;
            (before_data + number * cluster, cluster * sector)
        } else {
            (first_root, root_sectors * sector)
        };
        // At most 65,535 entries of 32 bytes, or a cluster of 128 sectors of 4 KiB.
        Some(Self { bits, root: root * sector, root_bytes: usize::try_from(root_bytes).ok()? })
    }

    /// The volume label in the root directory.
    fn root_label(&self, read: &mut Read<'_>) -> io::Result<Option<String>> {
        const VOLUME: u8 = 0x08;
        const LONG_NAME: u8 = 0x0F;
        const DELETED: u8 = 0xE5;
        /// The label is among the first entries, where the tool that made the volume put it.
        const MOST_BYTES: usize = 64 << 10;
        let directory = read(self.root, self.root_bytes.min(MOST_BYTES))?;
        let entries = directory.chunks_exact(32).take_while(|entry| entry[0] != 0);
        let mut labels = entries.filter(|entry| {
            entry[0] != DELETED && entry[11] & LONG_NAME != LONG_NAME && entry[11] & VOLUME != 0
        });
        Ok(labels.next().map(|entry| text(&entry[..11])).filter(|label| !label.is_empty()))
    }
}

impl Usage {
    /// As `ID_FS_USAGE` says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filesystem => "filesystem",
            Self::Crypto => "crypto",
            Self::Raid => "raid",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
