//! Addresses of links, `rtnetlink(7)` `RTM_NEWADDR`.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};

use crate::Protocol;

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link that has it.
    pub index: u32,
    /// The address with the length of its network's prefix; host bits are kept.
    pub net: IpNet,
    /// Who added it; [`Protocol::CONFIGURED`] ones wander between hosts.
    pub protocol: Protocol,
    /// The kernel removes it by itself after this time; `None` means never.
    pub valid: Option<Duration>,
}

/// A lifetime that does not end.
const FOREVER: u32 = u32::MAX;

impl Address {
    /// `None` for what is not IPv4 or IPv6.
    pub(crate) fn from_message(message: &AddressMessage) -> Option<Self> {
        let (mut local, mut peer) = (None, None);
        let mut protocol = Protocol::UNSPECIFIED;
        let mut valid = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => peer = Some(*address),
                AddressAttribute::Protocol(by) => protocol = Protocol(u8::from(*by)),
                AddressAttribute::CacheInfo(info) if info.ifa_valid != FOREVER => {
                    valid = Some(Duration::from_secs(info.ifa_valid.into()));
                }
                _ => {}
            }
        }
        // On point-to-point links IFA_ADDRESS is the other end; IPv6 has no IFA_LOCAL otherwise.
        let net = IpNet::new(local.or(peer)?, message.header.prefix_len).ok()?;
        Some(Self { index: message.header.index, net, protocol, valid })
    }

    pub(crate) fn to_message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        let address = self.net.addr();
        message.header.index = self.index;
        message.header.prefix_len = self.net.prefix_len();
        message.header.family = family(address);
        message.header.scope =
            if address.is_loopback() { AddressScope::Host } else { AddressScope::Universe };
        let lifetime = self.valid.map_or(FOREVER, |valid| {
            // Whole seconds, rather late than early; zero would be refused.
            u32::try_from(valid.as_millis().div_ceil(1000)).unwrap_or(FOREVER).max(1)
        });
        let mut lifetimes = CacheInfo::default();
        lifetimes.ifa_valid = lifetime;
        lifetimes.ifa_preferred = lifetime;
        message.attributes.extend([
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
            AddressAttribute::CacheInfo(lifetimes),
        ]);
        // Whose it is was settled before it came here: nobody needs to be asked.
        if self.protocol == Protocol::CONFIGURED && address.is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        if self.protocol != Protocol::UNSPECIFIED {
            let by = AddressProtocol::from(self.protocol.0);
            message.attributes.push(AddressAttribute::Protocol(by));
        }
        if let IpNet::V4(net) = self.net
            && net.prefix_len() < 31
            && !address.is_loopback()
        {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        message
    }
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_its_message() {
        for (net, valid) in
            [("10.0.2.15/24", Some(1800)), ("127.0.0.1/8", None), ("fd00::1/64", None)]
        {
            let address = Address {
                index: 2,
                net: net.parse().unwrap(),
                protocol: Protocol::DHCP,
                valid: valid.map(Duration::from_secs),
            };
            assert_eq!(Address::from_message(&address.to_message()), Some(address));
        }
    }
}
