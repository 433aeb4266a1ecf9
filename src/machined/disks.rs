//! The disks of the machine, as sysfs describes them (`Documentation/ABI/stable/sysfs-block`).
//!
//! Attributes that a kind of disk does not have stay empty. What was a disk when it was listed and is
//! gone when it is looked at is left out.

use std::ffi::OsStr;
use std::path::Path;
use std::{fs, io};

/// Blocks of `size`, whatever the disk's own are.
const SECTOR_BYTES: u64 = 512;
/// Of a SCSI disk: the page of vital product data that holds its serial number (SPC-4 §7.8.15). The
/// number follows four bytes, of which the last two say its length.
const SERIAL_PAGE: &str = "device/vpd_pg80";

/// What is known of one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    /// The kernel's name: `sda`.
    pub(crate) device: String,
    pub(crate) size_bytes: u64,
    pub(crate) kind: Kind,
    pub(crate) model: String,
    /// Of memory cards, which have this in place of a model.
    pub(crate) name: String,
    pub(crate) serial: String,
    pub(crate) uuid: String,
    pub(crate) wwid: String,
    pub(crate) modalias: String,
    /// Where it hangs, below `/sys/devices`.
    pub(crate) bus_path: String,
    /// The class it belongs to, as a path.
    pub(crate) subsystem: String,
    pub(crate) read_only: bool,
    /// Whether one of the volumes asked for is on it.
    pub(crate) system: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    Unknown,
    Ssd,
    Hdd,
    Nvme,
    Sd,
    Cd,
}

/// The disks of the machine by name. `sysfs` is where it is mounted; `volumes` are the kernel's names
/// of partitions or disks that make one the system's.
pub(crate) fn list(sysfs: &Path, volumes: &[String]) -> io::Result<Vec<Disk>> {
    let mut names: Vec<_> =
        fs::read_dir(sysfs.join("block"))?.flatten().map(|entry| entry.file_name()).collect();
    orlop_rt::sort(&mut names);
    Ok(names.iter().filter_map(|name| look(sysfs, name, volumes)).collect())
}

/// One of them; `None` for what is no hardware, or gone.
fn look(sysfs: &Path, name: &OsStr, volumes: &[String]) -> Option<Disk> {
    let folder = fs::canonicalize(sysfs.join("block").join(name)).ok()?;
    let devices = fs::canonicalize(sysfs.join("devices")).ok()?;
    let path = folder.strip_prefix(devices).ok()?;
    // Not all that is virtual: NVMe disks with several paths are.
    if path.starts_with("virtual/block") {
        return None;
    }
    let name = name.to_str()?;
    let text = |attribute: &str| {
        // Many answer with an error while there is no medium.
        let bytes = fs::read(folder.join(attribute)).unwrap_or_default();
        readable(&bytes)
    };
    let first = |attributes: &[&str]| {
        attributes.iter().map(|name| text(name)).find(|text| !text.is_empty()).unwrap_or_default()
    };
    let sectors: u64 = text("size").parse().unwrap_or_default();
    let class = fs::canonicalize(folder.join("subsystem")).unwrap_or_default();
    let class = fs::canonicalize(sysfs)
        .ok()
        .and_then(|root| class.strip_prefix(root).ok().map(Path::to_owned));
    let bus = path.parent().unwrap_or(path);
    let bus = if bus.ends_with("block") { bus.parent().unwrap_or(bus) } else { bus };
    Some(Disk {
        device: name.to_owned(),
        size_bytes: sectors.saturating_mul(SECTOR_BYTES),
        kind: kind(name, &text("queue/rotational")),
        model: text("device/model"),
        name: text("device/name"),
        serial: Some(first(&["serial", "device/serial"]))
            .filter(|serial| !serial.is_empty())
            .unwrap_or_else(|| page(&fs::read(folder.join(SERIAL_PAGE)).unwrap_or_default())),
        uuid: text("uuid"),
        wwid: first(&["wwid", "device/wwid"]),
        modalias: first(&["device/modalias", "device/device/modalias"]),
        bus_path: format!("/{}", bus.display()),
        subsystem: class.map_or_else(String::new, |class| format!("/sys/{}", class.display())),
        read_only: text("ro") == "1",
        system: volumes.iter().any(|volume| volume == name || folder.join(volume).is_dir()),
    })
}

fn kind(name: &str, rotational: &str) -> Kind {
    match rotational {
        _ if name.starts_with("nvme") => Kind::Nvme,
        _ if name.starts_with("mmcblk") => Kind::Sd,
        _ if name.starts_with("sr") => Kind::Cd,
        "0" => Kind::Ssd,
        "1" => Kind::Hdd,
        _ => Kind::Unknown,
    }
}

/// The serial number in a page of vital product data.
fn page(bytes: &[u8]) -> String {
    let Some((&[_, _, high, low], number)) = bytes.split_first_chunk() else {
        return String::new();
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    readable(&number[..length.min(number.len())])
}

/// What a disk says of itself, padded with spaces or zeros and not always text, in one line.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).replace(char::is_control, " ")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A disk at `devices/PATH/block/NAME` with these attributes, listed as the kernel does.
    fn add(sysfs: &Path, path: &str, attributes: &[(&str, &[u8])]) {
        let folder = sysfs.join("devices").join(path);
        for (name, value) in attributes {
            let file = folder.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, value).unwrap();
        }
        let class = sysfs.join("class/block");
        fs::create_dir_all(&class).unwrap();
        symlink(class, folder.join("subsystem")).unwrap();
        fs::create_dir_all(sysfs.join("block")).unwrap();
        symlink(&folder, sysfs.join("block").join(folder.file_name().unwrap())).unwrap();
    }

    #[test]
    fn every_kind_of_disk_is_described_and_nothing_virtual() {
        let home = tempfile::tempdir().unwrap();
        let sysfs = home.path();
        let scsi = "pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0/block/sda";
        add(
            sysfs,
            scsi,
            &[
                ("size", b"20971520\n"),
                ("ro", b"0\n"),
                ("queue/rotational", b"1\n"),
                ("device/model", b"QEMU HARDDISK   \n"),
                ("device/wwid", b"t10.ATA     QEMU HARDDISK   QM00005\n"),
                ("device/modalias", b"scsi:t-0x00\n"),
                ("device/vpd_pg80", b"\x00\x80\x00\x08 QM00005\x00\x00"),
                ("sda3/partition", b"3\n"),
            ],
        );
        add(
            sysfs,
            "pci0000:00/0000:00:05.0/virtio2/block/vda",
            &[
                ("size", b"2048\n"),
                ("ro", b"1\n"),
                ("queue/rotational", b"0\n"),
                ("serial", b"state"),
                ("device/modalias", b"virtio:d00000002v00001AF4\n"),
            ],
        );
        add(
            sysfs,
            "virtual/nvme-subsystem/nvme-subsys0/nvme0n1",
            &[
                ("size", b"8\n"),
                ("queue/rotational", b"0\n"),
                ("uuid", b"8f2b\n"),
                ("wwid", b"eui.00253\n"),
                ("device/model", b"Fast\x01Disk\n"),
                ("device/serial", b"S5H\n"),
            ],
        );
        add(
            sysfs,
            "platform/mmc/mmc_host/mmc0/mmc0:59b4/block/mmcblk0",
            &[("size", b"x"), ("device/name", b"SC16G\n")],
        );
        for name in ["loop0", "ram0", "zram0", "dm-0", "nbd0", "md0"] {
            add(sysfs, &format!("virtual/block/{name}"), &[("size", b"8\n")]);
        }
        // Pulled out between listing and looking.
        symlink("nowhere", sysfs.join("block/sdz")).unwrap();

        let disks = list(sysfs, &["sda3".to_owned()]).unwrap();
        let common = Disk { subsystem: "/sys/class/block".to_owned(), ..Disk::default() };
        let expected = [
            Disk {
                device: "mmcblk0".to_owned(),
                kind: Kind::Sd,
                name: "SC16G".to_owned(),
                bus_path: "/platform/mmc/mmc_host/mmc0/mmc0:59b4".to_owned(),
                ..common.clone()
            },
            Disk {
                device: "nvme0n1".to_owned(),
                size_bytes: 4096,
                kind: Kind::Nvme,
                model: "Fast Disk".to_owned(),
                serial: "S5H".to_owned(),
                uuid: "8f2b".to_owned(),
                wwid: "eui.00253".to_owned(),
                bus_path: "/virtual/nvme-subsystem/nvme-subsys0".to_owned(),
                ..common.clone()
            },
            Disk {
                device: "sda".to_owned(),
                size_bytes: 10 << 30,
                kind: Kind::Hdd,
                model: "QEMU HARDDISK".to_owned(),
                serial: "QM00005".to_owned(),
                wwid: "t10.ATA     QEMU HARDDISK   QM00005".to_owned(),
                modalias: "scsi:t-0x00".to_owned(),
                bus_path: scsi.strip_suffix("/block/sda").map(|bus| format!("/{bus}")).unwrap(),
                system: true,
                ..common.clone()
            },
            Disk {
                device: "vda".to_owned(),
                size_bytes: 1 << 20,
                kind: Kind::Ssd,
                serial: "state".to_owned(),
                modalias: "virtio:d00000002v00001AF4".to_owned(),
                bus_path: "/pci0000:00/0000:00:05.0/virtio2".to_owned(),
                read_only: true,
                ..common
            },
        ];
        assert_eq!(disks, expected);
        let system = |volume: &str| {
            let disks = list(sysfs, &[volume.to_owned()]).unwrap();
            disks.into_iter().find(|disk| disk.system).map(|disk| disk.device)
        };
        assert_eq!(system("vda").as_deref(), Some("vda"), "a volume without a partition table");
        assert_eq!(system("sdb1"), None);
    }

    #[test]
    fn a_page_that_lies_about_its_length_is_read_as_far_as_it_goes() {
        assert_eq!(page(b""), "");
        assert_eq!(page(b"\x00\x80\x00"), "");
        assert_eq!(page(b"\x00\x80\xff\xffabc"), "abc");
        assert_eq!(page(b"\x00\x80\x00\x02abc"), "ab");
    }
}
