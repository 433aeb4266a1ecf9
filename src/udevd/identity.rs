//! Which disk it is, wherever it is plugged in (`by-id`), and where it is plugged in, whatever it is
//! (`by-path`): from what the drivers show of it, as `60-persistent-storage.rules`, `ata_id`,
//! `scsi_id` and `path_id` of systemd make them, so that configurations carry over.

use std::collections::BTreeMap;

use crate::encode::{hex, plain, text};
use crate::sysfs::Device;

/// `ID_*` and links below `/dev`, of a whole disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// For the database.
    pub properties: BTreeMap<String, String>,
    /// `by-id/…`, without `disk/`; partitions add `-partN`.
    pub ids: Vec<String>,
    /// `by-path/…` likewise.
    pub paths: Vec<String>,
}

impl Identity {
    /// That of a disk.
    #[must_use]
    pub fn of(disk: Device<'_>) -> Self {
        let mut identity = Self::default();
        let parent = disk.parent();
        match parent.and_then(|parent| parent.subsystem()).as_deref() {
            Some("virtio") => identity.virtio(disk),
            Some("nvme" | "nvme-subsystem") => identity.nvme(disk, parent),
            Some("scsi") => identity.scsi(parent),
            Some("mmc") => identity.mmc(parent),
            _ => identity.mapped(disk),
        }
        identity.paths(disk);
        identity
    }

    fn set(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.properties.insert(key.to_owned(), value.to_owned());
        }
    }

    fn virtio(&mut self, disk: Device<'_>) {
        if let Some(serial) = disk.text("serial").map(|serial| plain(&serial)) {
            self.set("ID_SERIAL", &serial);
            self.ids.push(format!("virtio-{serial}"));
        }
    }

    fn nvme(&mut self, disk: Device<'_>, controller: Option<Device<'_>>) {
        if let Some(wwid) = disk.text("wwid").map(|wwid| plain(&wwid)) {
            self.set("ID_WWN", &wwid);
            self.ids.push(format!("nvme-{wwid}"));
        }
        let of_controller =
            |name| Some(plain(&controller?.text(name)?)).filter(|text| !text.is_empty());
        let (Some(model), Some(serial)) = (of_controller("model"), of_controller("serial")) else {
            return;
        };
        let full = format!("{model}_{serial}");
        self.ids.push(format!("nvme-{full}"));
        if let Some(number) = disk.number("nsid") {
            self.ids.push(format!("nvme-{full}_{number}"));
        }
        self.set("ID_MODEL", &model);
        self.set("ID_SERIAL_SHORT", &serial);
        self.set("ID_SERIAL", &full);
        self.set("ID_BUS", "nvme");
    }

    /// SCSI, SATA (which the kernel shows as SCSI) and USB sticks (likewise).
    fn scsi(&mut self, parent: Option<Device<'_>>) {
        let Some(device) = parent else { return };
        let (vendor, model) = (device.text("vendor"), device.text("model"));
        let vendor = plain(&vendor.unwrap_or_default());
        let model = plain(&model.unwrap_or_default());
        let unit = device.bytes("vpd_pg80").and_then(|page| unit_serial(&page));
        let designators =
            device.bytes("vpd_pg83").map(|page| designators(&page)).unwrap_or_default();
        let wwn = designators.iter().find(|designator| designator.kind == Kind::Naa);
        if let Some(wwn) = wwn {
            self.set("ID_WWN", &format!("0x{}", wwn.text));
            self.ids.push(format!("wwn-0x{}", wwn.text));
        }
        self.set("ID_VENDOR", &vendor);
        let usb = device.within("usb").is_some();
        if vendor == "ATA" && !usb {
            // The whole model: the one above is cut off after 16 bytes.
            let whole =
                designators.iter().find_map(|designator| designator.text.strip_prefix("ATA_"));
            let full = whole.map(str::to_owned).or_else(|| Some(format!("{model}_{}", unit?)));
            let Some(full) = full else { return };
            self.set("ID_SERIAL", &full);
            self.set("ID_SERIAL_SHORT", full.rsplit('_').next().unwrap_or_default());
            self.set("ID_MODEL", &model);
            self.set("ID_BUS", "ata");
            self.ids.push(format!("ata-{full}"));
        } else if usb {
            let stick =
                device.above().find(|above| above.is("usb") && above.text("idVendor").is_some());
            let of_stick = |name| stick?.text(name).map(|text| plain(&text));
            let maker = of_stick("manufacturer").unwrap_or(vendor);
            let full = [Some(maker), of_stick("product").or(Some(model)), of_stick("serial")];
            let full = full.into_iter().flatten().filter(|part| !part.is_empty());
            let full = full.collect::<Vec<_>>().join("_");
            let unit = device.name().rsplit(':').next().unwrap_or("0").to_owned();
            let target = device.name().rsplit(':').nth(1).unwrap_or("0");
            self.set("ID_SERIAL", &full);
            self.set("ID_SERIAL_SHORT", &of_stick("serial").unwrap_or_default());
            self.set("ID_BUS", "usb");
            if !full.is_empty() {
                self.ids.push(format!("usb-{full}-{target}:{unit}"));
            }
        } else {
            let best = designators.iter().max_by_key(|designator| designator.kind);
            let best = best.map(|designator| match designator.kind {
                Kind::Vendor => format!("0{vendor}_{model}_{}", designator.text),
                kind => format!("{}{}", kind.digit(), designator.text),
            });
            let Some(full) = best.or_else(|| Some(format!("S{vendor}_{model}_{}", unit.as_ref()?)))
            else {
                return;
            };
            self.set("ID_SERIAL", &full);
            self.set("ID_SERIAL_SHORT", &unit.unwrap_or_else(|| full[1..].to_owned()));
            self.set("ID_MODEL", &model);
            self.set("ID_BUS", "scsi");
            self.ids.push(format!("scsi-{full}"));
        }
    }

    fn mmc(&mut self, card: Option<Device<'_>>) {
        let of_card = |name| card?.text(name).map(|text| plain(&text));
        if let (Some(name), Some(serial)) = (of_card("name"), of_card("serial")) {
            self.set("ID_NAME", &name);
            self.set("ID_SERIAL", &serial);
            self.ids.push(format!("mmc-{name}_{serial}"));
        }
    }

    /// What device-mapper made: LVM, dm-crypt, multipath.
    fn mapped(&mut self, disk: Device<'_>) {
        let Some(name) = disk.text("dm/name") else { return };
        self.set("DM_NAME", &name);
        self.ids.push(format!("dm-name-{}", crate::encode::escaped(&name)));
        if let Some(uuid) = disk.text("dm/uuid") {
            self.set("DM_UUID", &uuid);
            self.ids.push(format!("dm-uuid-{}", crate::encode::escaped(&uuid)));
        }
    }

    fn paths(&mut self, disk: Device<'_>) {
        let Some((path, older)) = path(disk) else { return };
        self.set("ID_PATH", &path);
        self.set(
            "ID_PATH_TAG",
            &path.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_"),
        );
        self.paths.push(path);
        if let Some(older) = older {
            self.set("ID_PATH_ATA_COMPAT", &older);
            self.paths.push(older);
        }
    }
}

/// `pci-0000:00:1f.2-ata-1.0`, and for ATA its form without the end; `None` off any known bus.
fn path(disk: Device<'_>) -> Option<(String, Option<String>)> {
    let mut parts = Vec::new();
    let mut older = None;
    for device in disk.above() {
        let part = match device.subsystem()?.as_str() {
            "scsi" if is_address(device.name()) => match ata_port(device) {
                Some(port) => {
                    older = Some((parts.len(), format!("ata-{port}")));
                    format!("ata-{port}.{}", device.name().split(':').nth(2).unwrap_or("0"))
                }
                None => scsi_path(device)?,
            },
            "nvme" => format!("nvme-{}", disk.number("nsid")?),
            "usb" => match device.name().split_once('-') {
                Some((_, ports)) if ports.contains(':') => format!("usb-0:{ports}"),
                _ => continue,
            },
            "pci" => format!("pci-{}", device.name()),
            "platform" => format!("platform-{}", device.name()),
            _ => continue,
        };
        let ends = part.starts_with("pci-") || part.starts_with("platform-");
        parts.push(part);
        if ends {
            break;
        }
    }
    // Without the bus itself the rest says nothing.
    parts.last().filter(|part| part.starts_with("pci-") || part.starts_with("platform-"))?;
    let join = |parts: &[String]| parts.iter().rev().cloned().collect::<Vec<_>>().join("-");
    let older = older.map(|(at, part)| {
        let mut parts = parts.clone();
        parts[at] = part;
        join(&parts)
    });
    Some((join(&parts), older))
}

/// `H:C:T:L`
fn is_address(name: &str) -> bool {
    name.split(':').count() == 4 && name.bytes().all(|byte| byte.is_ascii_digit() || byte == b':')
}

/// The port of a SATA controller, counted from 1.
fn ata_port(device: Device<'_>) -> Option<u64> {
    let ports = device.path.match_indices("/ata").map(|(at, _)| at);
    ports.into_iter().find_map(|at| {
        let end = device.path[at + 1..].find('/').map(|length| at + 1 + length)?;
        let name = &device.path[at + 1..end];
        let port = format!("{}/ata_port/{name}", &device.path[..end]);
        Device::new(device.sysfs(), &port).number("port_no")
    })
}

/// Host numbers depend on the order of drivers: they are counted from the first of the adapter.
fn scsi_path(device: Device<'_>) -> Option<String> {
    // Fibre Channel, SAS and iSCSI say where it is by other means than the kernel's numbers.
    if ["/rport-", "/end_device-", "/session"].iter().any(|way| device.path.contains(way)) {
        return None;
    }
    let (host, rest) = device.name().split_once(':')?;
    let at = device.path.find(&format!("/host{host}/"))?;
    let hosts = device.sysfs().names(&device.path[..at]);
    let numbers = hosts.iter().filter_map(|name| name.strip_prefix("host")?.parse::<u32>().ok());
    let number = host.parse::<u32>().ok()?.checked_sub(numbers.min()?)?;
    Some(format!("scsi-{number}:{rest}"))
}

/// Page 0x80: the unit serial number (SPC-4 §7.8.15).
fn unit_serial(page: &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes(*page.get(2..)?.first_chunk()?));
    let serial = page.get(4..4 + length).filter(|_| page[1] == 0x80)?;
    Some(plain(&text(serial))).filter(|serial| !serial.is_empty())
}

/// What a logical unit calls itself (SPC-4 §7.8.6).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Designator {
    kind: Kind,
    text: String,
}

/// Worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Vendor,
    T10,
    Eui64,
    Naa,
}

impl Kind {
    fn digit(self) -> u8 {
        match self {
            Self::Vendor => 0,
            Self::T10 => 1,
            Self::Eui64 => 2,
            Self::Naa => 3,
        }
    }
}

/// Page 0x83, those of the logical unit itself.
fn designators(page: &[u8]) -> Vec<Designator> {
    const HEADER: usize = 4;
    let mut found = Vec::new();
    let mut rest = page.get(HEADER..).filter(|_| page[1] == 0x83).unwrap_or_default();
    while let Some([codes, kind, _, length]) = rest.first_chunk() {
        let Some(body) = rest.get(HEADER..HEADER + usize::from(*length)) else { break };
        rest = &rest[HEADER + body.len()..];
        let of_unit = kind >> 4 & 0x3 == 0;
        let binary = codes & 0xF == 1;
        let kind = match kind & 0xF {
            0 => Kind::Vendor,
            1 => Kind::T10,
            2 => Kind::Eui64,
            3 => Kind::Naa,
            _ => continue,
        };
        let text = if binary { hex(body) } else { plain(&String::from_utf8_lossy(body)) };
        if of_unit && !text.is_empty() {
            found.push(Designator { kind, text });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sysfs::Fake;

    fn identity(path: &str, fake: &Fake) -> Identity {
        Identity::of(Device::new(fake, path))
    }

    #[test]
    fn a_virtio_disk_is_known_by_its_serial_and_its_place() {
        const DISK: &str = "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda";
        let fake = Fake::new(&[
            "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/serial=system disk",
            "/devices/pci0000:00/0000:00:04.0/virtio1/subsystem=virtio",
            "/devices/pci0000:00/0000:00:04.0/subsystem=pci",
        ]);
        let found = identity(DISK, &fake);
        assert_eq!(found.ids, ["virtio-system_disk"]);
        assert_eq!(found.paths, ["pci-0000:00:04.0"]);
        assert_eq!(found.properties["ID_PATH_TAG"], "pci-0000_00_04_0");
    }

    #[test]
    fn an_nvme_disk_is_known_by_its_controller() {
        const DISK: &str = "/devices/pci0000:00/0000:00:05.0/nvme/nvme0/nvme0n1";
        let fake = Fake::new(&[
            "/devices/pci0000:00/0000:00:05.0/nvme/nvme0/nvme0n1/wwid=eui.0025385b71b00f2e",
            "/devices/pci0000:00/0000:00:05.0/nvme/nvme0/nvme0n1/nsid=1",
            "/devices/pci0000:00/0000:00:05.0/nvme/nvme0/subsystem=nvme",
            "/devices/pci0000:00/0000:00:05.0/nvme/nvme0/model=QEMU NVMe Ctrl                  ",
            "/devices/pci0000:00/0000:00:05.0/nvme/nvme0/serial=deadbeef",
            "/devices/pci0000:00/0000:00:05.0/subsystem=pci",
        ]);
        let found = identity(DISK, &fake);
        assert_eq!(
            found.ids,
            [
                "nvme-eui.0025385b71b00f2e",
                "nvme-QEMU_NVMe_Ctrl_deadbeef",
                "nvme-QEMU_NVMe_Ctrl_deadbeef_1"
            ]
        );
        assert_eq!(found.paths, ["pci-0000:00:05.0-nvme-1"]);
    }

    const SATA: &str = "/devices/pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0";

    fn sata(vendor: &str, page: &[u8]) -> Fake {
        let mut fake = Fake::new(&[
            "/devices/pci0000:00/0000:00:1f.2/ata3/ata_port/ata3/port_no=3",
            "/devices/pci0000:00/0000:00:1f.2/subsystem=pci",
        ]);
        for (name, value) in [("subsystem", "scsi"), ("vendor", vendor), ("model", "QEMU HARDDISK")]
        {
            fake.0.insert(format!("{SATA}/{name}"), value.as_bytes().to_vec());
        }
        fake.0.insert(format!("{SATA}/vpd_pg83"), page.to_vec());
        fake
    }

    /// A page 0x83 of designators, each of a code set and a kind.
    fn page(parts: &[(u8, u8, &[u8])]) -> Vec<u8> {
        let mut page = vec![0, 0x83, 0, 0];
        for (codes, kind, body) in parts {
            page.extend([*codes, *kind, 0, u8::try_from(body.len()).unwrap_or_default()]);
            page.extend(*body);
        }
        page
    }

    #[test]
    fn a_sata_disk_is_known_by_model_serial_and_world_wide_name() {
        let naa = [0x50, 0x00, 0xc5, 0x00, 1, 2, 3, 4];
        let t10 = b"ATA     QEMU HARDDISK                           QM00005             ";
        let fake = sata("ATA     ", &page(&[(2, 1, t10), (1, 3, &naa)]));
        let disk = format!("{SATA}/block/sda");
        let found = identity(&disk, &fake);
        assert_eq!(found.ids, ["wwn-0x5000c50001020304", "ata-QEMU_HARDDISK_QM00005"]);
        assert_eq!(found.paths, ["pci-0000:00:1f.2-ata-3.0", "pci-0000:00:1f.2-ata-3"]);
        assert_eq!(found.properties["ID_SERIAL_SHORT"], "QM00005");
    }

    #[test]
    fn a_scsi_disk_is_known_by_the_best_it_calls_itself() {
        let disk = format!("{SATA}/block/sda");
        let ids = |parts: &[(u8, u8, &[u8])]| identity(&disk, &sata("QEMU", &page(parts))).ids;
        assert_eq!(ids(&[(2, 0, b"drive-scsi0")]), ["scsi-0QEMU_QEMU_HARDDISK_drive-scsi0"]);
        assert_eq!(ids(&[(2, 0, b"x"), (1, 3, &[0x60, 1])]), ["wwn-0x6001", "scsi-36001"]);
        // Of the port, not of the unit.
        assert!(ids(&[(1, 0x13, &[0x60, 1])]).is_empty());
    }

    #[test]
    fn what_is_on_no_bus_has_no_path() {
        let fake = Fake::new(&["/devices/virtual/block/dm-0/dm/name=vg-root"]);
        let found = identity("/devices/virtual/block/dm-0", &fake);
        assert_eq!(
            (&found.ids[..], &found.paths[..]),
            (&["dm-name-vg-root".to_owned()][..], &[][..])
        );
    }

    proptest! {
        #[test]
        fn pages_of_any_bytes_never_panic(bytes: Vec<u8>, kind: bool) {
            let mut page = vec![0, if kind { 0x80 } else { 0x83 }, 0, 8];
            page.extend(&bytes);
            for page in [&page, &bytes] {
                let _ = (unit_serial(page), designators(page));
            }
        }
    }
}
