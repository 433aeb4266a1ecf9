//! What follows from what is known of a device: properties, links, permissions, a name. Pure.
//!
//! These are the rules every node needs; what its owner adds comes after them.

use std::collections::{BTreeMap, BTreeSet};

use crate::encode::{escaped, plain};
use crate::identity::Identity;
use crate::interface::Names;
use crate::partitions::{Partition, Table};
use crate::probe::{Content, Superblock, Usage};
use crate::sysfs::Device;
use crate::uevent::{Action, Uevent};

/// What was found out about a device.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What the kernel says.
    pub event: &'a Uevent,
    /// What sysfs says.
    pub device: Device<'a>,
    /// Of a block device: what it holds.
    pub content: Content,
    /// Of a disk its own table, of a partition that of its disk.
    pub table: Option<Table>,
    /// Whether network interfaces get predictable names (`net.ifnames=1`).
    pub predictable_names: bool,
}

/// What shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// For the database.
    pub properties: BTreeMap<String, String>,
    /// Below `/dev`.
    pub links: BTreeSet<String>,
    /// Of the links, against those of other devices.
    pub priority: i32,
    /// Of the node.
    pub access: Option<Access>,
    /// Of a network interface, when it differs from the kernel's.
    pub name: Option<String>,
}

/// Who may do what with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// User.
    pub owner: u32,
    /// Group.
    pub group: u32,
    /// Permission bits.
    pub mode: u32,
}

/// The group of terminals, in every distribution (`devpts` is mounted with it).
const TTY_GROUP: u32 = 5;
/// What device-mapper made stands for what it was made of.
const MAPPED_PRIORITY: i32 = 50;

/// Decides. `remove` ends everything: nothing follows from it.
#[must_use]
pub fn decide(facts: &Facts<'_>) -> Decision {
    let mut decision = Decision::default();
    if facts.event.action == Action::Remove {
        return decision;
    }
    if let Some(devnum) = facts.event.devnum() {
        let folder = if facts.event.block() { "block" } else { "char" };
        decision.links.insert(format!("{folder}/{}:{}", devnum.major, devnum.minor));
    }
    if facts.event.action == Action::Add {
        decision.access = access(facts.event);
    }
    match facts.event.subsystem.as_str() {
        "block" => block(facts, &mut decision),
        "net" => net(facts, &mut decision),
        "rtc" if facts.device.text("hctosys").as_deref() == Some("1") => {
            decision.links.insert("rtc".to_owned());
        }
        _ => {}
    }
    decision
}

/// The permissions a node gets when it appears (spec §9.7); the kernel's own wish where we have none.
pub(crate) fn access(event: &Uevent) -> Option<Access> {
    let name = event.devname()?;
    let number = |key| event.get(key).and_then(|text| text.parse().ok());
    let (group, mode) = match name {
        _ if event.block() => (0, 0o660),
        "null" | "zero" | "full" | "random" | "urandom" | "tty" => (0, 0o666),
        "ptmx" => (TTY_GROUP, 0o666),
        "kvm" | "net/tun" | "fuse" => (0, 0o666),
        "mem" | "port" => (0, 0o640),
        "kmsg" => (0, 0o600),
        name if name.starts_with("tty") && !name.contains('/') => (TTY_GROUP, 0o620),
        _ => {
            let wish = event.get("DEVMODE").and_then(|mode| u32::from_str_radix(mode, 8).ok());
            let (owner, group) = (number("DEVUID"), number("DEVGID"));
            let mode = wish.unwrap_or(0o600) & 0o777;
            return Some(Access { owner: owner.unwrap_or(0), group: group.unwrap_or(0), mode });
        }
    };
    Some(Access { owner: 0, group, mode })
}

fn net(facts: &Facts<'_>, decision: &mut Decision) {
    let names = Names::of(facts.event, facts.device);
    for (key, name) in [
        ("ID_NET_NAME_ONBOARD", &names.onboard),
        ("ID_NET_NAME_SLOT", &names.slot),
        ("ID_NET_NAME_PATH", &names.path),
    ] {
        if let Some(name) = name {
            decision.set(key, name.clone());
        }
    }
    // Renamed only when it appears: afterwards somebody may rely on the name it has.
    let appears = facts.event.action == Action::Add && facts.predictable_names;
    decision.name = names.best().filter(|_| appears).map(str::to_owned);
}

fn block(facts: &Facts<'_>, decision: &mut Decision) {
    let device = facts.device;
    let number = facts.event.get("PARTN").and_then(|number| number.parse::<u32>().ok());
    let partition = facts.event.get("DEVTYPE") == Some("partition");
    let disk = if partition { device.parent() } else { Some(device) };
    if let Some(disk) = disk {
        let identity = Identity::of(disk);
        let part = number.map(|number| format!("-part{number}")).unwrap_or_default();
        let links = identity.ids.iter().map(|id| format!("disk/by-id/{id}{part}"));
        let paths = identity.paths.iter().map(|path| format!("disk/by-path/{path}{part}"));
        decision.links.extend(links.chain(paths));
        decision.properties.extend(identity.properties);
    }
    if let Some(name) = device.text("dm/name") {
        decision.priority = MAPPED_PRIORITY;
        decision.links.insert(format!("mapper/{}", escaped(&name)));
    }
    if let Some(table) = &facts.table {
        decision.set("ID_PART_TABLE_TYPE", table.scheme.name().to_owned());
        decision.set_some("ID_PART_TABLE_UUID", table.uuid.clone());
        let entry = table.partitions.iter().find(|entry| Some(entry.number) == number);
        // The table may have been written anew since the kernel read it.
        let same = |entry: &&Partition| device.number("start").is_none_or(|at| at == entry.start);
        if let Some(entry) = entry.filter(same) {
            let disk = disk.and_then(|disk| disk.text("dev"));
            part_entry(table, entry, disk, decision);
        }
    }
    match &facts.content {
        Content::Unknown => {}
        Content::Ambiguous(kinds) => decision.set("ID_FS_AMBIVALENT", kinds.join(" ")),
        Content::Is(superblock) => file_system(superblock, decision),
    }
}

fn part_entry(table: &Table, entry: &Partition, disk: Option<String>, decision: &mut Decision) {
    decision.set("ID_PART_ENTRY_SCHEME", table.scheme.name().to_owned());
    decision.set("ID_PART_ENTRY_NUMBER", entry.number.to_string());
    decision.set("ID_PART_ENTRY_TYPE", entry.kind.clone());
    decision.set("ID_PART_ENTRY_OFFSET", entry.start.to_string());
    decision.set("ID_PART_ENTRY_SIZE", entry.size.to_string());
    decision.set_some("ID_PART_ENTRY_DISK", disk);
    if entry.flags != 0 {
        decision.set("ID_PART_ENTRY_FLAGS", format!("{:#x}", entry.flags));
    }
    if let Some(uuid) = &entry.uuid {
        decision.set("ID_PART_ENTRY_UUID", uuid.clone());
        decision.links.insert(format!("disk/by-partuuid/{uuid}"));
    }
    if let Some(name) = entry.name.as_deref().map(escaped) {
        decision.links.insert(format!("disk/by-partlabel/{name}"));
        decision.set("ID_PART_ENTRY_NAME", name);
    }
}

fn file_system(superblock: &Superblock, decision: &mut Decision) {
    decision.set("ID_FS_TYPE", superblock.kind.to_owned());
    decision.set("ID_FS_USAGE", superblock.usage.name().to_owned());
    decision.set_some("ID_FS_VERSION", superblock.version.clone());
    decision.set_some("ID_FS_UUID_SUB", superblock.uuid_sub.clone());
    decision.set_some("ID_FS_UUID_SUB_ENC", superblock.uuid_sub.as_deref().map(escaped));
    decision.set_some("ID_FS_UUID", superblock.uuid.as_deref().map(plain));
    decision.set_some("ID_FS_UUID_ENC", superblock.uuid.as_deref().map(escaped));
    decision.set_some("ID_FS_LABEL", superblock.label.as_deref().map(plain));
    decision.set_some("ID_FS_LABEL_ENC", superblock.label.as_deref().map(escaped));
    // A member of a volume group is none by itself; its group has links of its own.
    if superblock.usage == Usage::Raid {
        let by_id = superblock.uuid.iter().map(|uuid| format!("disk/by-id/lvm-pv-uuid-{uuid}"));
        decision.links.extend(by_id);
        return;
    }
    let of = |kind: &str, name: &Option<String>| {
        name.as_deref().map(|name| format!("disk/by-{kind}/{}", escaped(name)))
    };
    let links = [of("uuid", &superblock.uuid), of("label", &superblock.label)];
    decision.links.extend(links.into_iter().flatten());
}

impl Decision {
    fn set(&mut self, key: &str, value: String) {
        self.properties.insert(key.to_owned(), value);
    }

    fn set_some(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::partitions::Scheme;
    use crate::sysfs::Fake;

    fn event(action: &str, path: &str, subsystem: &str, more: &str) -> Uevent {
        let text = format!(
            "{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM={subsystem}\0SEQNUM=1\0{more}"
        );
        Uevent::parse(text.as_bytes()).unwrap()
    }

    fn decided(event: &Uevent, fake: &Fake, content: Content, table: Option<Table>) -> Decision {
        let device = Device::new(fake, &event.devpath);
        decide(&Facts { event, device, content, table, predictable_names: true })
    }

    fn node(name: &str, more: &str) -> Access {
        let more = format!("MAJOR=1\0MINOR=3\0DEVNAME={name}\0{more}");
        let event = event("add", &format!("/devices/virtual/x/{name}"), "mem", &more);
        decided(&event, &Fake::default(), Content::Unknown, None).access.unwrap()
    }

    #[test]
    fn nodes_get_the_permissions_of_the_specification() {
        for (name, group, mode) in [
            ("null", 0, 0o666),
            ("urandom", 0, 0o666),
            ("tty", 0, 0o666),
            ("tty1", 5, 0o620),
            ("ttyS0", 5, 0o620),
            ("ptmx", 5, 0o666),
            ("kmsg", 0, 0o600),
            ("mem", 0, 0o640),
            ("kvm", 0, 0o666),
            ("net/tun", 0, 0o666),
            ("fuse", 0, 0o666),
            ("hwrng", 0, 0o600),
        ] {
            assert_eq!(node(name, ""), Access { owner: 0, group, mode }, "{name}");
        }
        assert_eq!(node("vfio/vfio", "DEVMODE=0666\0").mode, 0o666);
    }

    const PATH: &str = "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda6";

    fn partition() -> (Uevent, Fake, Table) {
        let more = "MAJOR=254\0MINOR=6\0DEVNAME=vda6\0DEVTYPE=partition\0PARTN=6\0";
        let fake = Fake::new(&[
            "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda6/start=4096",
            "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/subsystem=block",
            "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/dev=254:0",
            "/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/serial=system",
            "/devices/pci0000:00/0000:00:04.0/virtio1/subsystem=virtio",
            "/devices/pci0000:00/0000:00:04.0/subsystem=pci",
        ]);
        let entry = Partition {
            number: 6,
            start: 4096,
            size: 8192,
            kind: "0fc63daf-8483-4772-8e79-3d69d8477de4".to_owned(),
            uuid: Some("0190b5c8-1c2d-4e3f-8a9b-0c1d2e3f4a5c".to_owned()),
            name: Some("EPHEMERAL".to_owned()),
            flags: 0,
        };
        let table =
            Table { scheme: Scheme::Gpt, uuid: Some("0190".to_owned()), partitions: vec![entry] };
        (event("add", PATH, "block", more), fake, table)
    }

    fn xfs() -> Content {
        Content::Is(Box::new(Superblock {
            usage: Usage::Filesystem,
            kind: "xfs",
            version: None,
            uuid: Some("28732ac1".to_owned()),
            uuid_sub: None,
            label: Some("user data".to_owned()),
        }))
    }

    #[test]
    fn a_partition_is_found_by_everything_there_is() {
        let (event, fake, table) = partition();
        let decision = decided(&event, &fake, xfs(), Some(table));
        assert_eq!(
            decision.links.into_iter().collect::<Vec<_>>(),
            [
                "block/254:6",
                "disk/by-id/virtio-system-part6",
                "disk/by-label/user\\x20data",
                "disk/by-partlabel/EPHEMERAL",
                "disk/by-partuuid/0190b5c8-1c2d-4e3f-8a9b-0c1d2e3f4a5c",
                "disk/by-path/pci-0000:00:04.0-part6",
                "disk/by-uuid/28732ac1",
            ]
        );
        let property = |key: &str| decision.properties.get(key).map(String::as_str);
        assert_eq!(property("ID_FS_LABEL"), Some("user_data"));
        assert_eq!(property("ID_PART_ENTRY_DISK"), Some("254:0"));
        assert_eq!(property("ID_PART_ENTRY_SIZE"), Some("8192"));
        assert_eq!(decision.access.map(|access| access.mode), Some(0o660));
    }

    #[test]
    fn a_table_written_since_does_not_name_a_partition() {
        let (event, fake, mut table) = partition();
        table.partitions[0].start += 1;
        let decision = decided(&event, &fake, Content::Unknown, Some(table));
        assert!(!decision.links.iter().any(|link| link.contains("by-part")));
        assert_eq!(decision.properties["ID_PART_TABLE_TYPE"], "gpt");
    }

    #[test]
    fn two_signatures_make_no_link_and_are_said() {
        let (event, fake, _) = partition();
        let decision = decided(&event, &fake, Content::Ambiguous(vec!["ext4", "swap"]), None);
        assert_eq!(decision.properties["ID_FS_AMBIVALENT"], "ext4 swap");
        assert!(!decision.links.iter().any(|link| link.contains("by-uuid")));
    }

    #[test]
    fn what_was_set_since_stays_on_a_change_and_all_goes_with_a_device() {
        let (event, fake, _) = partition();
        let change = Uevent { action: Action::Change, ..event.clone() };
        assert_eq!(decided(&change, &fake, Content::Unknown, None).access, None);
        let remove = Uevent { action: Action::Remove, ..event };
        assert_eq!(decided(&remove, &fake, xfs(), None), Decision::default());
    }

    #[test]
    fn a_mapped_device_stands_before_what_it_was_made_of() {
        let more = "MAJOR=253\0MINOR=0\0DEVNAME=dm-0\0DEVTYPE=disk\0";
        let event = event("change", "/devices/virtual/block/dm-0", "block", more);
        let fake = Fake::new(&["/devices/virtual/block/dm-0/dm/name=vg-root"]);
        let decision = decided(&event, &fake, xfs(), None);
        assert_eq!(decision.priority, 50);
        assert!(decision.links.contains("mapper/vg-root"));
    }

    #[test]
    fn an_interface_is_renamed_when_it_appears_and_only_if_asked() {
        let path = "/devices/pci0000:00/0000:00:03.0/net/eth0";
        let fake = Fake::new(&[
            "/devices/pci0000:00/0000:00:03.0/net/eth0/type=1",
            "/devices/pci0000:00/0000:00:03.0/subsystem=pci",
        ]);
        let name = |action: &str, predictable_names| {
            let event = event(action, path, "net", "IFINDEX=2\0INTERFACE=eth0\0");
            let device = Device::new(&fake, path);
            let content = Content::Unknown;
            decide(&Facts { event: &event, device, content, table: None, predictable_names }).name
        };
        assert_eq!(name("add", true).as_deref(), Some("enp0s3"));
        assert_eq!((name("add", false), name("change", true)), (None, None));
    }
}
