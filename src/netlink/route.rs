//! Routes, `rtnetlink(7)` `RTM_NEWROUTE`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};

use crate::Protocol;
use crate::address::family;

/// A routing table's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table(pub u32);

impl Table {
    /// The one that all traffic without a rule of its own uses (`RT_TABLE_MAIN`).
    pub const MAIN: Self = Self(254);
    /// What is addressed to this host (`RT_TABLE_LOCAL`): the kernel's own.
    pub const LOCAL: Self = Self(255);
}

/// A unicast, local, broadcast, … route with at most one next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The link that packets leave through; `None` for routes that drop or reject.
    pub index: Option<u32>,
    /// Where to; `0.0.0.0/0` and `::/0` are the default routes.
    pub destination: IpNet,
    /// `None`: the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// Lower wins. IPv6 knows no 0: the kernel makes it 1024.
    pub metric: u32,
    /// The table it stands in.
    pub table: Table,
    /// Who added it.
    pub protocol: Protocol,
    /// `RT_SCOPE_*`: 0 anywhere, 253 on the link, 254 this host.
    pub scope: u8,
    /// `RTNH_F_*` and `RTM_F_*`.
    pub flags: u32,
    /// `RTN_*`: 1 unicast, 2 local, 3 broadcast, …
    pub kind: u8,
    /// The largest packet on this way, in bytes; `None` means the link's.
    pub mtu: Option<u32>,
}

const SCOPE_LINK: u8 = 253;
const UNICAST: u8 = 1;

impl Route {
    /// A unicast route of the main table through link `index`; `gateway: None` means on the link.
    #[must_use]
    pub fn through(
        index: u32,
        destination: IpNet,
        gateway: Option<IpAddr>,
        metric: u32,
        protocol: Protocol,
    ) -> Self {
        let on_link = gateway.is_none() && matches!(destination, IpNet::V4(_));
        Self {
            index: Some(index),
            destination: destination.trunc(),
            gateway,
            source: None,
            metric,
            table: Table::MAIN,
            protocol,
            scope: if on_link { SCOPE_LINK } else { 0 },
            flags: 0,
            kind: UNICAST,
            mtu: None,
        }
    }

    /// Says that there is no way: a route of `kind` `RTN_BLACKHOLE` (6), `RTN_UNREACHABLE` (7) or
    /// `RTN_PROHIBIT` (8).
    #[must_use]
    pub fn nowhere(destination: IpNet, kind: u8, metric: u32, protocol: Protocol) -> Self {
        let through = Self::through(0, destination, None, metric, protocol);
        Self { index: None, scope: 0, kind, ..through }
    }

    /// Says that the gateway is on the link, though no address's network contains it.
    #[must_use]
    pub fn gateway_on_link(mut self) -> Self {
        self.flags |= RouteFlags::Onlink.bits();
        self
    }

    /// Whether it is an ordinary route to other hosts.
    #[must_use]
    pub fn unicast(&self) -> bool {
        self.kind == UNICAST
    }

    /// `None` for what is not IPv4 or IPv6, and for entries of the route cache.
    pub(crate) fn from_message(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let anywhere: IpAddr = match header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        if header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let (mut index, mut gateway, mut source) = (None, None, None);
        let (mut destination, mut metric) = (anywhere, 0);
        let (mut table, mut mtu) = (u32::from(header.table), None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(oif) => index = Some(*oif),
                RouteAttribute::Destination(to) => destination = ip(to)?,
                RouteAttribute::Gateway(via) => gateway = ip(via),
                RouteAttribute::PrefSource(from) => source = ip(from),
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Metrics(metrics) => {
                    mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Some(Self {
            index,
            destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
            gateway,
            source,
            metric,
            table: Table(table),
            protocol: Protocol(header.protocol.into()),
            scope: header.scope.into(),
            flags: header.flags.bits(),
            kind: header.kind.into(),
            mtu,
        })
    }

    pub(crate) fn to_message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.destination.addr());
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.protocol = RouteProtocol::from(self.protocol.0);
        message.header.scope = RouteScope::from(self.scope);
        message.header.kind = RouteType::from(self.kind);
        message.header.flags = RouteFlags::from_bits_retain(self.flags) & RouteFlags::Onlink;
        // RTA_TABLE carries what does not fit the header.
        message.header.table = u8::try_from(self.table.0).unwrap_or_default();
        message.attributes.push(RouteAttribute::Table(self.table.0));
        if self.destination.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(self.destination.addr().into()));
        }
        if let Some(index) = self.index {
            message.attributes.push(RouteAttribute::Oif(index));
        }
        if let Some(gateway) = self.gateway {
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        if let Some(source) = self.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        if let Some(mtu) = self.mtu {
            message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        }
        if self.metric > 0 {
            message.attributes.push(RouteAttribute::Priority(self.metric));
        }
        message
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_route_survives_its_message() {
        let gateway = Some("10.0.2.2".parse().unwrap());
        for route in [
            Route::through(2, "0.0.0.0/0".parse().unwrap(), gateway, 1024, Protocol::DHCP),
            Route::through(2, "0.0.0.0/0".parse().unwrap(), gateway, 0, Protocol::DHCP)
                .gateway_on_link(),
            Route::through(3, "fd00::/8".parse().unwrap(), None, 10, Protocol::STATIC),
            Route {
                mtu: Some(1400),
                table: Table(1000),
                source: Some("10.0.2.15".parse().unwrap()),
                ..Route::through(
                    2,
                    "10.1.0.0/16".parse().unwrap(),
                    gateway,
                    5,
                    Protocol::CONFIGURED,
                )
            },
            Route::nowhere("10.2.0.0/16".parse().unwrap(), 6, 5, Protocol::CONFIGURED),
        ] {
            assert_eq!(Route::from_message(&route.to_message()), Some(route));
        }
    }

    #[test]
    fn a_route_without_gateway_is_on_the_link() {
        let route = Route::through(2, "10.9.0.7/16".parse().unwrap(), None, 0, Protocol::STATIC);
        assert_eq!((route.scope, route.destination), (SCOPE_LINK, "10.9.0.0/16".parse().unwrap()));
    }
}
