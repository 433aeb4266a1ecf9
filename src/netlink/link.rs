//! Links (network interfaces), `rtnetlink(7)` `RTM_NEWLINK`.

use netlink_packet_route::link::{
    BridgeStpState, InfoBond, InfoBridge, InfoData, InfoKind, InfoVlan, InfoVrf, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};

use crate::Mac;

/// A network interface as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// What made it; `None` for hardware and loopback.
    pub kind: Option<Kind>,
    /// The bond or bridge that it is a port of.
    pub master: Option<u32>,
    /// The link that it stands on (`IFLA_LINK`), as a VLAN does.
    pub parent: Option<u32>,
    /// A remark that the kernel keeps with it (`IFLA_IFALIAS`).
    pub alias: Option<String>,
    /// The Ethernet address that it was made with (`IFLA_PERM_ADDRESS`).
    pub permanent_mac: Option<Mac>,
}

/// Links that are made of nothing but software, with what they were told (`IFLA_LINKINFO`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Drops what it is given.
    Dummy,
    /// Several links as one (`Documentation/networking/bonding.rst`): its options, in any order.
    Bond(Vec<InfoBond>),
    /// A VLAN of its parent (IEEE 802.1Q), 1..=4094.
    Vlan(u16),
    /// A switch.
    Bridge {
        /// Whether it speaks the spanning tree protocol.
        stp: bool,
        /// Whether its ports belong to VLANs.
        vlan_filtering: bool,
    },
    /// A routing domain with a table of its own (`Documentation/networking/vrf.rst`).
    Vrf(u32),
    /// An encrypted link; [`wireguard`](crate::wireguard) has its keys and peers.
    Wireguard,
    /// Any other: `veth`, `vxlan`, …
    Other(String),
}

impl Kind {
    /// Both are bonds, or both are VLANs, …: whatever their options.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Other(a), Self::Other(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    fn from_infos(infos: Vec<LinkInfo>) -> Option<Self> {
        let (mut kind, mut data) = (None, None);
        for info in infos {
            match info {
                LinkInfo::Kind(name) => kind = Some(name),
                LinkInfo::Data(options) => data = Some(options),
                _ => {}
            }
        }
        Some(match (kind?, data) {
            (InfoKind::Dummy, _) => Self::Dummy,
            (InfoKind::Bond, Some(InfoData::Bond(options))) => Self::Bond(options),
            (InfoKind::Vlan, Some(InfoData::Vlan(options))) => {
                Self::Vlan(options.into_iter().find_map(|option| match option {
                    InfoVlan::Id(id) => Some(id),
                    _ => None,
                })?)
            }
            (InfoKind::Bridge, data) => {
                let options = match data {
                    Some(InfoData::Bridge(options)) => options,
                    _ => Vec::new(),
                };
                let stp = |option: &InfoBridge| matches!(option, InfoBridge::StpState(state) if *state != BridgeStpState::Disabled);
                Self::Bridge {
                    stp: options.iter().any(stp),
                    vlan_filtering: options.contains(&InfoBridge::VlanFiltering(true)),
                }
            }
            (InfoKind::Vrf, Some(InfoData::Vrf(options))) => {
                Self::Vrf(options.into_iter().find_map(|option| match option {
                    InfoVrf::TableId(table) => Some(table),
                    _ => None,
                })?)
            }
            (InfoKind::Wireguard, _) => Self::Wireguard,
            (other, _) => Self::Other(other.to_string()),
        })
    }

    pub(crate) fn to_infos(&self) -> Vec<LinkInfo> {
        let (kind, data) = match self {
            Self::Dummy => (InfoKind::Dummy, None),
            Self::Bond(options) => (InfoKind::Bond, Some(InfoData::Bond(options.clone()))),
            Self::Vlan(id) => (InfoKind::Vlan, Some(InfoData::Vlan(vec![InfoVlan::Id(*id)]))),
            Self::Bridge { stp, vlan_filtering } => {
                let stp = if *stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled };
                let options =
                    vec![InfoBridge::StpState(stp), InfoBridge::VlanFiltering(*vlan_filtering)];
                (InfoKind::Bridge, Some(InfoData::Bridge(options)))
            }
            Self::Vrf(table) => {
                (InfoKind::Vrf, Some(InfoData::Vrf(vec![InfoVrf::TableId(*table)])))
            }
            Self::Wireguard => (InfoKind::Wireguard, None),
            Self::Other(name) => (InfoKind::Other(name.clone()), None),
        };
        std::iter::once(LinkInfo::Kind(kind)).chain(data.map(LinkInfo::Data)).collect()
    }
}

impl Link {
    /// Administratively up (`IFF_UP`).
    #[must_use]
    pub fn up(&self) -> bool {
        self.has(LinkFlags::Up)
    }

    /// Up, and it has carrier (`IFF_UP` and `IFF_LOWER_UP`): known at once.
    #[must_use]
    pub fn carries(&self) -> bool {
        self.has(LinkFlags::Up | LinkFlags::LowerUp)
    }

    /// Operational: up, with carrier, and nothing else is amiss (`IFF_UP` and `IFF_RUNNING`). The kernel looks
    /// at what is not urgent once a second, so this may come that much later than [`carries`](Self::carries)
    /// (`Documentation/networking/operstates.rst`).
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
            flags: message.header.flags.bits(),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::PermAddress(bytes) => {
                    link.permanent_mac = bytes.try_into().ok().map(Mac);
                }
                LinkAttribute::CarrierUpCount(count) => link.carrier_ups = count,
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::Link(index) => link.parent = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::LinkInfo(infos) => link.kind = Kind::from_infos(infos),
                _ => {}
            }
        }
        link
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{
        BondAdSelect, BondArpAllTargets, BondArpValidate, BondFailOverMac, BondLacpRate, BondMode,
        BondPrimaryReselect, BondXmitHashPolicy,
    };
    use rtnetlink::packet_core::{
        NLM_F_REQUEST, NetlinkDeserializable as _, NetlinkHeader, NetlinkMessage,
    };

    use super::*;

    /// Through the bytes that go to the kernel.
    fn there_and_back(kind: &Kind) -> Link {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.attributes.extend([
            LinkAttribute::IfName("new0".to_owned()),
            LinkAttribute::Link(3),
            LinkAttribute::IfAlias("ours".to_owned()),
            LinkAttribute::Controller(9),
            LinkAttribute::LinkInfo(kind.to_infos()),
        ]);
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(message));
        message.header.flags = NLM_F_REQUEST;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let mut header = NetlinkHeader::default();
        header.message_type = message.header.message_type;
        match RouteNetlinkMessage::deserialize(&header, &bytes[16..]).unwrap() {
            RouteNetlinkMessage::NewLink(message) => Link::from_message(message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_made_link_survives_its_message() {
        let every_option = vec![
            InfoBond::Mode(BondMode::Ieee8023Ad),
            InfoBond::MiiMon(100),
            InfoBond::UpDelay(200),
            InfoBond::DownDelay(300),
            InfoBond::UseCarrier(false),
            InfoBond::ArpInterval(1000),
            InfoBond::ArpIpTarget(vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]),
            InfoBond::ArpValidate(BondArpValidate::All),
            InfoBond::ArpAllTargets(BondArpAllTargets::All),
            InfoBond::Primary(4),
            InfoBond::PrimaryReselect(BondPrimaryReselect::Failure),
            InfoBond::FailOverMac(BondFailOverMac::Follow),
            InfoBond::XmitHashPolicy(BondXmitHashPolicy::Encap34),
            InfoBond::ResendIgmp(2),
            InfoBond::NumPeerNotif(3),
            InfoBond::AllPortsActive(1.into()),
            InfoBond::MinLinks(2),
            InfoBond::LpInterval(5),
            InfoBond::PacketsPerPort(6),
            InfoBond::AdLacpRate(BondLacpRate::Fast),
            InfoBond::AdSelect(BondAdSelect::Count),
            InfoBond::AdActorSysPrio(100),
            InfoBond::AdUserPortKey(10),
            InfoBond::AdActorSystem([2, 0, 0, 0, 0, 1]),
            InfoBond::TlbDynamicLb(true),
            InfoBond::PeerNotifDelay(400),
        ];
        for kind in [
            Kind::Dummy,
            Kind::Bond(every_option),
            Kind::Vlan(4094),
            Kind::Bridge { stp: true, vlan_filtering: false },
            Kind::Bridge { stp: false, vlan_filtering: true },
            Kind::Vrf(1000),
            Kind::Wireguard,
            Kind::Other("veth".to_owned()),
        ] {
            let link = there_and_back(&kind);
            assert_eq!((link.index, link.name.as_str()), (7, "new0"));
            assert_eq!((link.parent, link.master), (Some(3), Some(9)));
            assert_eq!(link.alias.as_deref(), Some("ours"));
            assert_eq!(link.kind, Some(kind));
        }
    }
}
