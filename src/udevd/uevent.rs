//! What the kernel says of a device: `Documentation/ABI/testing/sysfs-uevent`, `lib/kobject_uevent.c`.
//!
//! [`Uevent::parse`] takes any bytes and never panics.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is there.
    Add,
    /// It is gone.
    Remove,
    /// Something about it is different: a medium, a size.
    Change,
    /// It has another name or parent.
    Move,
    /// It is used again.
    Online,
    /// It is not used now.
    Offline,
    /// A driver has it.
    Bind,
    /// Its driver has left it.
    Unbind,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    /// What happened.
    pub action: Action,
    /// The device's folder below `/sys`; it starts with a slash.
    pub devpath: String,
    /// `block`, `net`, `pci`…
    pub subsystem: String,
    /// Counts all events of the kernel.
    pub seqnum: u64,
    /// All that the kernel said, those above included.
    pub properties: BTreeMap<String, String>,
}

/// How the bytes are no event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a uevent: {0}")]
pub struct Malformed(&'static str);

/// A character or block device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Devnum {
    /// Of the driver.
    pub major: u32,
    /// Of the device among those of its driver.
    pub minor: u32,
}

impl Uevent {
    /// Reads a message of the kernel's uevent socket.
    ///
    /// # Errors
    /// When what every event has is missing, or contradicts itself.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut parts = bytes.split(|byte| *byte == 0);
        let header = parts.next().and_then(|header| std::str::from_utf8(header).ok());
        let (action, devpath) =
            header.and_then(|header| header.split_once('@')).ok_or(Malformed("no header"))?;
        let properties: BTreeMap<_, _> = parts
            .filter_map(|part| {
                let text = String::from_utf8_lossy(part);
                let (key, value) = text.split_once('=')?;
                (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
            })
            .collect();
        let says = |key: &str| properties.get(key).map(String::as_str);
        if says("ACTION") != Some(action) || says("DEVPATH") != Some(devpath) {
            return Err(Malformed("the header says something else than the properties"));
        }
        let known = action.parse().map_err(|()| Malformed("an unknown action"))?;
        if !sound(devpath) || says("DEVNAME").is_some_and(|name| !sound(&format!("/{name}"))) {
            return Err(Malformed("a path that leads elsewhere"));
        }
        let number = says("SEQNUM").and_then(|number| number.parse().ok());
        Ok(Self {
            action: known,
            devpath: devpath.to_owned(),
            subsystem: says("SUBSYSTEM").ok_or(Malformed("no subsystem"))?.to_owned(),
            seqnum: number.ok_or(Malformed("no sequence number"))?,
            properties,
        })
    }

    /// What the kernel says under `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.properties.get(key).map(String::as_str)
    }

    /// The last component of the path: what `KERNEL==` of a rule matches.
    #[must_use]
    pub fn kernel_name(&self) -> &str {
        self.devpath.rsplit('/').next().unwrap_or_default()
    }

    /// The node below `/dev`, for devices that have one.
    #[must_use]
    pub fn devname(&self) -> Option<&str> {
        self.get("DEVNAME")
    }

    /// The number of its node.
    #[must_use]
    pub fn devnum(&self) -> Option<Devnum> {
        let number = |key| self.get(key)?.parse().ok();
        Some(Devnum { major: number("MAJOR")?, minor: number("MINOR")? })
    }

    /// The index of a network interface.
    #[must_use]
    pub fn ifindex(&self) -> Option<u32> {
        self.get("IFINDEX")?.parse().ok()
    }

    /// Whether it is a block device: these have a number space of their own.
    #[must_use]
    pub fn block(&self) -> bool {
        self.subsystem == "block"
    }

    /// The name of the device in the database, as `sd_device_get_device_id()`: `b8:0`, `c1:3`, `n2`,
    /// `+pci:0000:00:1f.0`.
    #[must_use]
    pub fn id(&self) -> String {
        if let Some(Devnum { major, minor }) = self.devnum() {
            format!("{}{major}:{minor}", if self.block() { 'b' } else { 'c' })
        } else if let Some(index) = self.ifindex() {
            format!("n{index}")
        } else {
            format!("+{}:{}", self.subsystem, self.kernel_name())
        }
    }

    /// The message the kernel would send: [`Uevent::parse`] gives back the same.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{}@{}\0", self.action, self.devpath).into_bytes();
        for (key, value) in &self.properties {
            bytes.extend(format!("{key}={value}\0").into_bytes());
        }
        bytes
    }
}

/// An absolute path that stays where it begins.
fn sound(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|path| {
        path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    })
}

const ACTIONS: [(&str, Action); 8] = [
    ("add", Action::Add),
    ("remove", Action::Remove),
    ("change", Action::Change),
    ("move", Action::Move),
    ("online", Action::Online),
    ("offline", Action::Offline),
    ("bind", Action::Bind),
    ("unbind", Action::Unbind),
];

impl FromStr for Action {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        ACTIONS.iter().find(|(name, _)| *name == text).map(|(_, action)| *action).ok_or(())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ACTIONS.iter().find(|(_, action)| action == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: &[u8] = b"add@/devices/pci0000:00/0000:00:04.0/virtio1/block/vda\0ACTION=add\0\
        DEVPATH=/devices/pci0000:00/0000:00:04.0/virtio1/block/vda\0SUBSYSTEM=block\0MAJOR=254\0\
        MINOR=0\0DEVNAME=vda\0DEVTYPE=disk\0DISKSEQ=1\0SEQNUM=1201\0";

    #[test]
    fn an_event_of_the_kernel_is_read() {
        let event = Uevent::parse(DISK).unwrap();
        assert_eq!((event.action, event.seqnum, &*event.subsystem), (Action::Add, 1201, "block"));
        assert_eq!((event.kernel_name(), event.devname()), ("vda", Some("vda")));
        assert_eq!((&*event.id(), event.get("DEVTYPE")), ("b254:0", Some("disk")));
        assert_eq!(Uevent::parse(&event.to_bytes()), Ok(event));
    }

    #[test]
    fn what_contradicts_itself_or_leads_elsewhere_is_refused() {
        let text = String::from_utf8_lossy(DISK).into_owned();
        for (from, to) in [
            ("ACTION=add", "ACTION=remove"),
            ("add@", "addition@"),
            ("DEVPATH=/devices/pci", "DEVPATH=/devices/isa"),
            ("DEVNAME=vda", "DEVNAME=../etc/passwd"),
            ("SEQNUM=1201", "SEQNUM=-1"),
            ("SUBSYSTEM=block\0", ""),
            ("/virtio1/", "/../"),
        ] {
            assert!(text.contains(from));
            assert!(Uevent::parse(text.replace(from, to).as_bytes()).is_err(), "{from} to {to}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = Uevent::parse(&bytes);
        }

        #[test]
        fn parse_gives_back_what_was_written(
            extra in proptest::collection::btree_map("X[A-Z_]{1,8}", "[^\0]{0,20}", 0..6),
            seqnum: u64,
        ) {
            let mut event = Uevent::parse(DISK).unwrap();
            event.seqnum = seqnum;
            event.properties.insert("SEQNUM".into(), seqnum.to_string());
            event.properties.extend(extra);
            prop_assert_eq!(Uevent::parse(&event.to_bytes()), Ok(event));
        }
    }
}
