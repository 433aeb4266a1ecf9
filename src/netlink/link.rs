//! Links (network interfaces), `rtnetlink(7)` `RTM_NEWLINK`.

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use crate::Mac;

/// A network interface as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it (`ifindex`), above 0, never reused while it lives.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// In bytes; 0 when the kernel did not say.
    pub mtu: u32,
    /// `None` when it has no Ethernet address.
    pub mac: Option<Mac>,
    /// `IFF_*` of `netdevice(7)`.
    pub flags: u32,
    /// How often it got carrier, ever: tells of a loss too short to be seen (`IFLA_CARRIER_UP_COUNT`).
    pub carrier_ups: u32,
    /// What made it: `bond`, `vlan`, `veth`, …; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// The bond or bridge that it is a port of.
    pub master: Option<u32>,
}

impl Link {
    /// Administratively up (`IFF_UP`).
    #[must_use]
    pub fn up(&self) -> bool {
        self.has(LinkFlags::Up)
    }

    /// Up, and it has carrier: packets pass (`IFF_UP` and `IFF_RUNNING`).
    #[must_use]
    pub fn running(&self) -> bool {
        self.has(LinkFlags::Up | LinkFlags::Running)
    }

    /// The loopback interface.
    #[must_use]
    pub fn loopback(&self) -> bool {
        self.has(LinkFlags::Loopback)
    }

    fn has(&self, flags: LinkFlags) -> bool {
        self.flags & flags.bits() == flags.bits()
    }

    pub(crate) fn from_message(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            mac: None,
            flags: message.header.flags.bits(),
            carrier_ups: 0,
            kind: None,
            master: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::CarrierUpCount(count) => link.carrier_ups = count,
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::LinkInfo(infos) => link.kind = infos.into_iter().find_map(kind),
                _ => {}
            }
        }
        link
    }
}

fn kind(info: LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}
