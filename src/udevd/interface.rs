//! Predictable names of network interfaces, as systemd.net-naming-scheme(7) makes them: by the index
//! the firmware gives (`eno1`), by the slot (`ens3`), by the place on the bus (`enp0s3`, behind USB
//! `enp0s20u1`). Virtual links and other buses keep the name the kernel gave them; so do the virtual
//! functions of SR-IOV, whose names would need their parent's.

use std::fmt::Write as _;

use crate::sysfs::Device;
use crate::uevent::Uevent;

/// `IFNAMSIZ` less the zero at the end.
const LONGEST: usize = 15;

/// The names there are for one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `ID_NET_NAME_ONBOARD`
    pub onboard: Option<String>,
    /// `ID_NET_NAME_SLOT`
    pub slot: Option<String>,
    /// `ID_NET_NAME_PATH`
    pub path: Option<String>,
}

impl Names {
    /// Those of the interface an event is about.
    #[must_use]
    pub fn of(event: &Uevent, link: Device<'_>) -> Self {
        Self::try_of(event, link).unwrap_or_default()
    }

    /// The one to use: systemd's default `NamePolicy=keep kernel database onboard slot path`.
    #[must_use]
    pub fn best(&self) -> Option<&str> {
        [&self.onboard, &self.slot, &self.path].into_iter().flatten().next().map(String::as_str)
    }

    fn try_of(event: &Uevent, link: Device<'_>) -> Option<Self> {
        const ETHERNET: u64 = 1;
        const INFINIBAND: u64 = 32;
        let prefix = match (link.number("type")?, event.get("DEVTYPE")) {
            (ETHERNET, Some("wlan")) => "wl",
            (ETHERNET, Some("wwan")) => "ww",
            // A bridge, a VLAN, a bond: their names are their makers'.
            (ETHERNET, None) => "en",
            (INFINIBAND, _) => "ib",
            _ => return None,
        };
        let parent = link.parent()?;
        let parent = if parent.is("virtio") { parent.parent()? } else { parent };
        let usb = parent.is("usb").then(|| usb_ports(parent.name())).flatten();
        let pci = if parent.is("pci") {
            parent
        } else {
            parent.within("pci").filter(|_| usb.is_some())?
        };
        let function = Function::of(pci)?;
        if pci.sysfs().link(pci.path, "physfn").is_some() {
            return None;
        }
        let port = port(link);
        let short = |name: String| Some(name).filter(|name| name.len() <= LONGEST);
        let tail = format!("{}{port}", usb.clone().unwrap_or_default());
        let place = &function.suffix;
        let domain = match function.domain {
            0 => String::new(),
            domain => format!("P{domain}"),
        };
        let index = pci.number("acpi_index").or_else(|| pci.number("index"));
        let index = index.filter(|index| (1..16_383).contains(index) && usb.is_none());
        Some(Self {
            onboard: index.and_then(|index| short(format!("{prefix}o{index}{port}"))),
            slot: slot(pci).and_then(|slot| short(format!("{prefix}{domain}s{slot}{place}{tail}"))),
            path: short(format!(
                "{prefix}{domain}p{}s{}{place}{tail}",
                function.bus, function.slot
            )),
        })
    }
}

/// `0000:00:03.0`
struct Function {
    domain: u32,
    bus: u32,
    slot: u32,
    /// `f0` when the card has several.
    suffix: String,
}

impl Function {
    fn of(pci: Device<'_>) -> Option<Self> {
        /// In the header type of the configuration space (PCI 3.0, §6.2.1).
        const MULTIFUNCTION: u8 = 0x80;
        const HEADER_TYPE: usize = 0x0E;
        let (address, function) = pci.name().split_once('.')?;
        let mut parts = address.split(':').map(|part| u32::from_str_radix(part, 16).ok());
        let (domain, bus, slot) = (parts.next()??, parts.next()??, parts.next()??);
        let function = u32::from_str_radix(function, 16).ok()?;
        let header = pci.bytes("config").and_then(|config| config.get(HEADER_TYPE).copied());
        let several = function > 0 || header.is_some_and(|header| header & MULTIFUNCTION != 0);
        let suffix = if several { format!("f{function}") } else { String::new() };
        Some(Self { domain, bus, slot, suffix })
    }
}

/// The number of the slot a card sits in, as the hot-plug driver knows it.
fn slot(pci: Device<'_>) -> Option<u32> {
    const SLOTS: &str = "/bus/pci/slots";
    let sysfs = pci.sysfs();
    let address = pci.name().split('.').next()?;
    let mut numbers = sysfs.names(SLOTS).into_iter().filter(|name| {
        sysfs
            .attribute(&format!("{SLOTS}/{name}"), "address")
            .is_some_and(|bytes| crate::encode::text(&bytes) == address)
    });
    numbers.next()?.parse().ok().filter(|number| *number > 0)
}

/// Several interfaces of one function are told apart by what the driver calls their ports.
fn port(link: Device<'_>) -> String {
    if let Some(name) = link.text("phys_port_name") {
        return format!("n{name}");
    }
    match link.number("dev_port") {
        None | Some(0) => String::new(),
        Some(port) => format!("d{port}"),
    }
}

/// `2-1.4:1.0` is behind ports 1 and 4: `u1u4`; another configuration or interface than the first is
/// said as well.
fn usb_ports(name: &str) -> Option<String> {
    let (ports, interface) = name.split_once(':')?;
    let (_, ports) = ports.split_once('-')?;
    let (configuration, interface) = interface.split_once('.')?;
    let mut text = ports.split('.').fold(String::new(), |mut text, port| {
        let _ = write!(text, "u{port}");
        text
    });
    if configuration != "1" {
        let _ = write!(text, "c{configuration}");
    }
    if interface != "0" {
        let _ = write!(text, "i{interface}");
    }
    Some(text)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::sysfs::Fake;

    fn best(path: &str, devtype: &str, lines: &[&str]) -> Option<String> {
        let sysfs = Fake::new(lines);
        let text = format!(
            "add@{path}\0ACTION=add\0DEVPATH={path}\0SUBSYSTEM=net\0SEQNUM=1\0IFINDEX=2\0{devtype}"
        );
        let event = Uevent::parse(text.as_bytes()).unwrap();
        Names::of(&event, Device::new(&sysfs, path)).best().map(str::to_owned)
    }

    const VIRTIO: &str = "/devices/pci0000:00/0000:00:03.0/virtio0/net/eth0";
    const ON_VIRTIO: [&str; 4] = [
        "/devices/pci0000:00/0000:00:03.0/virtio0/net/eth0/type=1",
        "/devices/pci0000:00/0000:00:03.0/virtio0/net/eth0/subsystem=net",
        "/devices/pci0000:00/0000:00:03.0/virtio0/subsystem=virtio",
        "/devices/pci0000:00/0000:00:03.0/subsystem=pci",
    ];

    fn with(more: &[&'static str]) -> Vec<&'static str> {
        ON_VIRTIO.iter().chain(more).copied().collect()
    }

    #[test]
    fn firmware_slot_and_place_name_an_interface_in_this_order() {
        let slots = ["/bus/pci/slots/4/address=0000:00:04", "/bus/pci/slots/3/address=0000:00:03"];
        let index = "/devices/pci0000:00/0000:00:03.0/acpi_index=1";
        let name = |more: &[&'static str]| best(VIRTIO, "", &with(more));
        assert_eq!(name(&[]).as_deref(), Some("enp0s3"));
        assert_eq!(name(&slots).as_deref(), Some("ens3"));
        assert_eq!(name(&[slots[0], slots[1], index]).as_deref(), Some("eno1"));
    }

    #[test]
    fn functions_domains_and_ports_are_said_where_they_differ() {
        let path = "/devices/pci0001:00/0001:3b:00.1/net/eth0";
        let lines = [
            "/devices/pci0001:00/0001:3b:00.1/net/eth0/type=1",
            "/devices/pci0001:00/0001:3b:00.1/net/eth0/dev_port=1",
            "/devices/pci0001:00/0001:3b:00.1/subsystem=pci",
        ];
        assert_eq!(best(path, "", &lines).as_deref(), Some("enP1p59s0f1d1"));
        assert_eq!(best(path, "DEVTYPE=wlan\0", &lines).as_deref(), Some("wlP1p59s0f1d1"));
        assert_eq!(best(path, "DEVTYPE=vlan\0", &lines), None);
    }

    #[test]
    fn usb_names_the_ports_on_the_way() {
        let path = "/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1.4/2-1.4:1.0/net/eth0";
        let lines = [
            "/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1.4/2-1.4:1.0/net/eth0/type=1",
            "/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1.4/2-1.4:1.0/subsystem=usb",
            "/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1.4/subsystem=usb",
            "/devices/pci0000:00/0000:00:14.0/subsystem=pci",
        ];
        assert_eq!(best(path, "", &lines).as_deref(), Some("enp0s20u1u4"));
    }

    #[test]
    fn virtual_links_and_names_too_long_stay_as_they_are() {
        assert_eq!(
            best("/devices/virtual/net/veth0", "", &["/devices/virtual/net/veth0/type=1"]),
            None
        );
        let port = "/devices/pci0000:00/0000:00:03.0/virtio0/net/eth0/phys_port_name=a-long-name";
        assert_eq!(best(VIRTIO, "", &with(&[port])), None);
    }
}
