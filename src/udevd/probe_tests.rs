//! [`super::probe`] against what the tools write, and against anything else.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

const UUID: &str = "0190b5c8-1c2d-4e3f-8a9b-0c1d2e3f4a5b";

/// Makes an image of so many MiB with a tool; `None` when the tool is not installed.
fn made(mib: u64, program: &str, arguments: &[&str]) -> Option<Superblock> {
    let image = tempfile::NamedTempFile::new().expect("a temp file");
    image.as_file().set_len(mib << 20).expect("a sparse file");
    let path = format!("/usr/sbin/{program}");
    if !Path::new(&path).exists() {
        println!("skipped: {path} is not installed");
        return None;
    }
    let status = Command::new(&path)
        .args(arguments)
        .arg(image.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("it starts");
    assert!(status.success(), "{program}: {status}");
    let file = File::open(image.path()).expect("it is ours");
    let content = probe(&mut |offset, length| {
        let mut bytes = vec![0; length];
        let count = file.read_at(&mut bytes, offset)?;
        bytes.truncate(count);
        Ok(bytes)
    });
    match content.expect("it can be read") {
        Content::Is(superblock) => Some(*superblock),
        other => panic!("{program} made {other:?}"),
    }
}

fn assert_made(
    made: Option<Superblock>,
    kind: &str,
    version: Option<&str>,
    uuid: &str,
    label: &str,
) {
    let Some(found) = made else { return };
    assert_eq!(found.kind, kind);
    assert_eq!(found.version.as_deref(), version);
    assert_eq!(found.uuid.as_deref(), Some(uuid));
    assert_eq!(found.label.as_deref(), Some(label).filter(|label| !label.is_empty()));
}

#[test]
fn what_mkfs_ext_makes_is_known() {
    for kind in ["ext2", "ext3", "ext4"] {
        let found = made(8, "mke2fs", &["-q", "-t", kind, "-U", UUID, "-L", "a label"]);
        assert_made(found, kind, Some("1.0"), UUID, "a label");
    }
}

#[test]
fn what_mkfs_vfat_makes_is_known() {
    for (mib, bits) in [(4, "12"), (32, "16"), (64, "32")] {
        let arguments = ["-F", bits, "-i", "1A2B3C4D", "-n", "EFI SYSTEM"];
        let version = format!("FAT{bits}");
        assert_made(
            made(mib, "mkfs.vfat", &arguments),
            "vfat",
            Some(&version),
            "1A2B-3C4D",
            "EFI SYSTEM",
        );
        let found = made(mib, "mkfs.vfat", &["-F", bits, "-i", "1A2B3C4D"]);
        assert_made(found, "vfat", Some(&version), "1A2B-3C4D", "");
    }
}

#[test]
fn what_mkswap_makes_is_known() {
    let found = made(1, "mkswap", &["-q", "-U", UUID, "-L", "swap0"]);
    assert_made(found, "swap", Some("1"), UUID, "swap0");
}

#[test]
fn what_mkfs_xfs_and_btrfs_make_is_known() {
    let uuid = format!("uuid={UUID}");
    let found = made(320, "mkfs.xfs", &["-q", "-m", &uuid, "-L", "EPHEMERAL"]);
    assert_made(found, "xfs", None, UUID, "EPHEMERAL");
    let found = made(128, "mkfs.btrfs", &["-q", "-U", UUID, "-L", "pool"]);
    assert_made(found, "btrfs", None, UUID, "pool");
}

/// A device of so many bytes with some of them set.
fn device(bytes: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut device = vec![0; bytes];
    for (at, part) in parts {
        device[*at..at + part.len()].copy_from_slice(part);
    }
    device
}

fn content(bytes: &[u8]) -> Content {
    probe(&mut slice(bytes)).expect("a slice can be read")
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("xfs", device(4096, &[(0, b"XFSB\0\0\x10\0"), (32, &[7; 16]), (108, b"EPHEMERAL")])),
        ("squashfs", device(4096, &[(0, b"hsqs"), (28, &[4, 0, 0, 0])])),
        (
            "iso9660",
            device(
                0x9000,
                &[
                    (0x8000, b"\x01CD001\x01"),
                    (0x8028, b"metal-iso                       "),
                    (0x8000 + 830, b"2024062109301500"),
                ],
            ),
        ),
        (
            "crypto_LUKS",
            device(4096, &[(0, b"LUKS\xba\xbe\0\x02"), (24, b"STATE"), (168, UUID.as_bytes())]),
        ),
        (
            "LVM2_member",
            device(
                4096,
                &[
                    (512, b"LABELONE\x01\0\0\0\0\0\0\0"),
                    (512 + 24, b"LVM2 001"),
                    (512 + 32, b"abcdefGHIJklmnOPQRstuvWXYZ012345"),
                ],
            ),
        ),
        (
            "btrfs",
            device(
                HEAD_BYTES,
                &[
                    (0x1_0020, &[7; 16]),
                    (0x1_0040, b"_BHRfS_M"),
                    (0x1_010B, &[9; 16]),
                    (0x1_012B, b"pool"),
                ],
            ),
        ),
        ("swap", device(4096, &[(0x400, &[1]), (4086, b"SWAPSPACE2")])),
        ("ext2", device(4096, &[(0x404, &[1]), (0x438, &[0x53, 0xEF]), (0x478, b"metal-iso")])),
    ]
}

#[test]
fn each_format_is_known_by_its_structure() {
    for (kind, bytes) in samples() {
        match content(&bytes) {
            Content::Is(found) => assert_eq!(found.kind, kind),
            other => panic!("{kind} is taken for {other:?}"),
        }
    }
}

#[test]
fn identifiers_have_the_form_other_programs_look_for() {
    let found = |kind: &str| match samples().iter().find(|(name, _)| *name == kind) {
        Some((_, bytes)) => match content(bytes) {
            Content::Is(found) => (found.uuid, found.uuid_sub, found.label),
            other => panic!("{other:?}"),
        },
        None => panic!("{kind}"),
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(found("iso9660"), (some("2024-06-21-09-30-15-00"), None, some("metal-iso")));
    assert_eq!(found("LVM2_member"), (some("abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345"), None, None));
    assert_eq!(found("crypto_LUKS"), (some(UUID), None, some("STATE")));
    let (first, second) =
        ("07070707-0707-0707-0707-070707070707", "09090909-0909-0909-0909-090909090909");
    assert_eq!(found("btrfs"), (some(first), some(second), some("pool")));
}

#[test]
fn two_signatures_are_ambiguous_and_a_container_wins() {
    let mut bytes = samples().swap_remove(6).1;
    bytes[0x404] = 1;
    bytes[0x438..0x43A].copy_from_slice(&[0x53, 0xEF]);
    assert_eq!(content(&bytes), Content::Ambiguous(vec!["ext2", "swap"]));
    bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    assert!(matches!(content(&bytes), Content::Is(found) if found.kind == "crypto_LUKS"));
}

#[test]
fn an_empty_or_cut_device_is_nothing() {
    assert_eq!(content(&[]), Content::Unknown);
    assert_eq!(content(&vec![0; HEAD_BYTES]), Content::Unknown);
    for (_, bytes) in samples() {
        (0..bytes.len()).step_by(509).for_each(|end| drop(content(&bytes[..end])));
    }
}

#[test]
fn what_cannot_be_read_is_an_error() {
    assert!(probe(&mut |_, _| Err(io::Error::other("broken sector"))).is_err());
}

proptest! {
    #[test]
    fn never_panics(
        start in 0usize..8,
        changes in proptest::collection::vec((0usize..HEAD_BYTES, any::<u8>()), 0..64),
    ) {
        let (_, mut bytes) = samples().swap_remove(start);
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        content(&bytes);
    }

    #[test]
    fn a_fat_of_any_numbers_never_panics(numbers: [u8; 80]) {
        let mut bytes = device(4096, &[(510, &[0x55, 0xAA]), (11, &numbers)]);
        bytes[82..90].copy_from_slice(b"FAT32   ");
        content(&bytes);
        bytes[12] = 2;
        bytes[11] = 0;
        bytes[13] = 1;
        bytes[16] = 2;
        bytes[21] = 0xF8;
        content(&bytes);
    }
}
