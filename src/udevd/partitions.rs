//! Partition tables: GPT (UEFI specification §5) and MBR with its chain of logical partitions.
//!
//! The bytes come from outside: any are taken. A GPT counts only with both of its checksums right.

use std::io;

use crate::encode::guid;
use crate::probe::{Bytes, Read};

/// What divides a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its kind.
    pub scheme: Scheme,
    /// The disk's GUID, or the eight digits of its signature.
    pub uuid: Option<String>,
    /// In the order of the table.
    pub partitions: Vec<Partition>,
}

/// The kind of a table, as `ID_PART_TABLE_TYPE` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `gpt`
    Gpt,
    /// `dos`
    Dos,
}

/// A piece of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As the kernel counts them, from 1.
    pub number: u32,
    /// In units of 512 bytes, whatever the sectors of the disk are.
    pub start: u64,
    /// In units of 512 bytes.
    pub size: u64,
    /// A GUID, or `0x83`.
    pub kind: String,
    /// Its GUID, or `SIGNATURE-NN`.
    pub uuid: Option<String>,
    /// GPT gives names.
    pub name: Option<String>,
    /// The attributes of GPT; 0x80 for the bootable one of an MBR.
    pub flags: u64,
}

/// The kernel takes no more either (`CONFIG_MSDOS_PARTITION`, `MAX_NR`).
const MOST_LOGICAL: u32 = 100;
const SIGNATURE: [u8; 2] = [0x55, 0xAA];
const MBR_ENTRIES: usize = 446;
const PROTECTIVE: u8 = 0xEE;

/// Looks for a table on a disk of `sectors` × 512 bytes whose own sectors have `sector_bytes`.
///
/// # Errors
/// When reading fails.
pub fn find(read: &mut Read<'_>, sectors: u64, sector_bytes: usize) -> io::Result<Option<Table>> {
    if !matches!(sector_bytes, 512 | 1024 | 2048 | 4096) {
        return Ok(None);
    }
    let first = read(0, 512)?;
    let first = Bytes(&first);
    if !first.is(510, &SIGNATURE) {
        return Ok(None);
    }
    let kinds: Vec<u8> = (0..4).filter_map(|i| first.u8(MBR_ENTRIES + 16 * i + 4)).collect();
    if !kinds.contains(&PROTECTIVE) {
        return mbr(first, read, sector_bytes as u64 / 512);
    }
    let last = (sectors / (sector_bytes as u64 / 512)).saturating_sub(1);
    match gpt(read, 1, sector_bytes)? {
        None if last > 1 => gpt(read, last, sector_bytes),
        table => Ok(table),
    }
}

/// The table whose header is in this sector of the disk.
fn gpt(read: &mut Read<'_>, at: u64, sector_bytes: usize) -> io::Result<Option<Table>> {
    const NO_GUID: [u8; 16] = [0; 16];
    /// The usual table has 128 entries of 128 bytes.
    const MOST_BYTES: usize = 1 << 20;
    let Some(offset) = at.checked_mul(sector_bytes as u64) else { return Ok(None) };
    let sector = read(offset, sector_bytes)?;
    let Some(header) = Header::of(Bytes(&sector), at) else { return Ok(None) };
    let bytes = header.entries.saturating_mul(header.entry_bytes);
    let place = header.first.checked_mul(sector_bytes as u64);
    let Some(place) = place.filter(|_| header.entry_bytes >= 128 && bytes <= MOST_BYTES) else {
        return Ok(None);
    };
    let entries = read(place, bytes)?;
    if entries.len() != bytes || crc32fast::hash(&entries) != header.entries_checksum {
        return Ok(None);
    }
    let unit = sector_bytes as u64 / 512;
    let partition = |(number, entry): (u32, &[u8])| {
        let entry = Bytes(entry);
        let kind = entry.at(0).filter(|kind| **kind != NO_GUID)?;
        let (first, last) = (entry.u64(32)?, entry.u64(40)?);
        let name: Vec<u16> =
            (56..128).step_by(2).map_while(|at| entry.u16(at).filter(|unit| *unit != 0)).collect();
        Some(Partition {
            number,
            start: first.checked_mul(unit)?,
            size: last.checked_sub(first)?.checked_add(1)?.checked_mul(unit)?,
            kind: guid(kind),
            uuid: entry.at(16).filter(|id| **id != NO_GUID).map(guid),
            name: Some(String::from_utf16_lossy(&name)).filter(|name| !name.is_empty()),
            flags: entry.u64(48)?,
        })
    };
    let partitions = (1..).zip(entries.chunks_exact(header.entry_bytes)).filter_map(partition);
    Ok(Some(Table {
        scheme: Scheme::Gpt,
        uuid: Some(header.disk),
        partitions: partitions.collect(),
    }))
}

struct Header {
    disk: String,
    first: u64,
    entries: usize,
    entry_bytes: usize,
    entries_checksum: u32,
}

impl Header {
    fn of(sector: Bytes<'_>, at: u64) -> Option<Self> {
        let length = usize::try_from(sector.u32(12)?).ok()?;
        let mut bytes = sector.0.get(..length).filter(|bytes| bytes.len() >= 92)?.to_vec();
        let checksum = sector.u32(16)?;
        // Computed with zero in its own place.
        bytes[16..20].fill(0);
        let sound = sector.is(0, b"EFI PART")
            && sector.u64(24)? == at
            && crc32fast::hash(&bytes) == checksum;
        let number = |at| sector.u32(at).and_then(|number| usize::try_from(number).ok());
        sound.then_some(Self {
            disk: guid(sector.at(56)?),
            first: sector.u64(72)?,
            entries: number(80)?,
            entry_bytes: number(84)?,
            entries_checksum: sector.u32(88)?,
        })
    }
}

/// `unit`: 512-byte sectors in one of the disk's.
fn mbr(first: Bytes<'_>, read: &mut Read<'_>, unit: u64) -> io::Result<Option<Table>> {
    let Some(entries) = mbr_entries(first) else { return Ok(None) };
    let signature = first.u32(440).filter(|id| *id != 0).map(|id| format!("{id:08x}"));
    // The boot sector of a FAT ends like a table's, with zeros before the end.
    if signature.is_none() && !entries.iter().any(Entry::used) {
        return Ok(None);
    }
    let part = |number: u32, entry: &Entry, base: u64| Partition {
        number,
        start: (base + entry.start) * unit,
        size: entry.size * unit,
        kind: format!("{:#x}", entry.kind),
        uuid: signature.as_ref().map(|disk| format!("{disk}-{number:02x}")),
        name: None,
        flags: entry.active.into(),
    };
    let mut partitions = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(&entries).filter(|(_, entry)| entry.used()) {
        partitions.push(part(number, entry, 0));
        if entry.is_extended() && extended.is_none() {
            extended = Some(entry.start);
        }
    }
    if let Some(base) = extended {
        let mut at = base;
        for number in 5..5 + MOST_LOGICAL {
            let sector = read(at * unit * 512, 512)?;
            let Some(entries) = mbr_entries(Bytes(&sector)) else { break };
            let Some(entry) = entries.iter().find(|entry| entry.used() && !entry.is_extended())
            else {
                break;
            };
            partitions.push(part(number, entry, at));
            match entries.iter().find(|entry| entry.used() && entry.is_extended()) {
                // Forward only, so that the chain has an end.
                Some(next) if base + next.start > at => at = base + next.start,
                _ => break,
            }
        }
    }
    Ok(Some(Table { scheme: Scheme::Dos, uuid: signature, partitions }))
}

struct Entry {
    active: u8,
    kind: u8,
    start: u64,
    size: u64,
}

impl Entry {
    fn used(&self) -> bool {
        self.kind != 0 && self.size != 0
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }
}

/// The four entries of a boot sector, unless it is another kind of boot sector.
fn mbr_entries(sector: Bytes<'_>) -> Option<[Entry; 4]> {
    if !sector.is(510, &SIGNATURE) {
        return None;
    }
    let entry = |i: usize| {
        let at = MBR_ENTRIES + 16 * i;
        let active = sector.u8(at)?;
        Some(Entry {
            active: if active & 0x7F == 0 { active } else { return None },
            kind: sector.u8(at + 4)?,
            start: sector.u32(at + 8)?.into(),
            size: sector.u32(at + 12)?.into(),
        })
    };
    Some([entry(0)?, entry(1)?, entry(2)?, entry(3)?])
}

impl Scheme {
    /// As `ID_PART_TABLE_TYPE` says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt => "gpt",
            Self::Dos => "dos",
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Write as _;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::probe::slice;

    const SFDISK: &str = "/usr/sbin/sfdisk";
    const SECTORS: u64 = 8 << 11;

    /// What `sfdisk` writes onto 8 MiB; `None` when it is not installed.
    fn partitioned(script: &str) -> Option<Vec<u8>> {
        if !Path::new(SFDISK).exists() {
            println!("skipped: {SFDISK} is not installed");
            return None;
        }
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(SECTORS * 512).unwrap();
        let mut child = Command::new(SFDISK)
            .arg("--quiet")
            .arg(image.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        Some(std::fs::read(image.path()).unwrap())
    }

    const GPT: &str = "label: gpt\nlabel-id: 0190B5C8-1C2D-4E3F-8A9B-0C1D2E3F4A5B\n\
        size=1MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=EFI, uuid=0190B5C8-1C2D-4E3F-8A9B-0C1D2E3F4A5C\n\
        size=1MiB, name=\"a state\"\n";

    #[test]
    fn a_gpt_is_read_and_its_backup_when_it_is_broken() {
        let Some(mut bytes) = partitioned(GPT) else { return };
        let table = find(&mut slice(&bytes), SECTORS, 512).unwrap().unwrap();
        assert_eq!(table.scheme, Scheme::Gpt);
        assert_eq!(table.uuid.as_deref(), Some("0190b5c8-1c2d-4e3f-8a9b-0c1d2e3f4a5b"));
        let first = &table.partitions[0];
        assert_eq!((first.number, first.start, first.size), (1, 2048, 2048));
        assert_eq!(first.kind, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(first.uuid.as_deref(), Some("0190b5c8-1c2d-4e3f-8a9b-0c1d2e3f4a5c"));
        assert_eq!(table.partitions[1].name.as_deref(), Some("a state"));

        bytes[1024] ^= 1;
        assert_eq!(find(&mut slice(&bytes), SECTORS, 512).unwrap(), Some(table.clone()));
        bytes[512] = 0;
        assert_eq!(find(&mut slice(&bytes), SECTORS, 512).unwrap(), Some(table));
        let last = bytes.len() - 512;
        bytes[last] = 0;
        assert_eq!(find(&mut slice(&bytes), SECTORS, 512).unwrap(), None);
    }

    #[test]
    fn an_mbr_is_read_with_its_logical_partitions() {
        let script = "label: dos\nlabel-id: 0x1a2b3c4d\nx1: size=1MiB, type=83, bootable\n\
            x2: size=5MiB, type=5\nx5: size=1MiB, type=82\nx6: size=1MiB, type=83\n";
        let Some(bytes) = partitioned(script) else { return };
        let table = find(&mut slice(&bytes), SECTORS, 512).unwrap().unwrap();
        assert_eq!((table.scheme, table.uuid.as_deref()), (Scheme::Dos, Some("1a2b3c4d")));
        let found: Vec<_> = table
            .partitions
            .iter()
            .map(|part| (part.number, &*part.kind, part.uuid.as_deref().unwrap(), part.size))
            .collect();
        assert_eq!(
            found,
            [
                (1, "0x83", "1a2b3c4d-01", 2048),
                (2, "0x5", "1a2b3c4d-02", 10240),
                (5, "0x82", "1a2b3c4d-05", 2048),
                (6, "0x83", "1a2b3c4d-06", 2048),
            ]
        );
        assert_eq!((table.partitions[0].flags, table.partitions[0].start), (0x80, 2048));
    }

    #[test]
    fn an_empty_disk_has_no_table() {
        assert_eq!(find(&mut slice(&[]), 0, 512).unwrap(), None);
        assert_eq!(find(&mut slice(&[0; 4096]), 8, 512).unwrap(), None);
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let mut bytes = vec![0; 4096];
        for sector in [0, 512] {
            bytes[sector + 510..sector + 512].copy_from_slice(&SIGNATURE);
            let extended = [0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
            let logical = [0, 0, 0, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
            bytes[sector + 446..sector + 462].copy_from_slice(&logical);
            bytes[sector + 462..sector + 478].copy_from_slice(&extended);
        }
        let table = find(&mut slice(&bytes), 8, 512).unwrap().unwrap();
        assert!(table.partitions.len() < 10);
    }

    proptest! {
        #[test]
        fn never_panics(
            changes in proptest::collection::vec((0usize..4096, any::<u8>()), 0..64),
            sectors: u64,
            kind in prop::sample::select(vec![0x05, 0x83, PROTECTIVE]),
        ) {
            let mut bytes = vec![0; 4096];
            bytes[MBR_ENTRIES + 4] = kind;
            bytes[MBR_ENTRIES + 12] = 9;
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes[510..512].copy_from_slice(&SIGNATURE);
            for sector_bytes in [512, 4096] {
                let _ = find(&mut slice(&bytes), sectors, sector_bytes);
            }
        }
    }
}
