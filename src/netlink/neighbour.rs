//! Neighbours that are known without asking, `rtnetlink(7)` `RTM_NEWNEIGH`.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;

use crate::address::family;
use crate::{Mac, Protocol};

/// Who has an address on a link, for as long as nobody says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub index: u32,
    /// Its address.
    pub address: IpAddr,
    /// Where frames for it go.
    pub mac: Mac,
    /// Who added it (`NDA_PROTOCOL`).
    pub protocol: Protocol,
}

impl Neighbour {
    /// `None` for those that the kernel found out itself, and may forget.
    pub(crate) fn from_message(message: &NeighbourMessage) -> Option<Self> {
        if message.header.state != NeighbourState::Permanent {
            return None;
        }
        let (mut address, mut mac, mut protocol) = (None, None, Protocol::UNSPECIFIED);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    address = Some(IpAddr::V4(*ip));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    address = Some(IpAddr::V6(*ip));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = bytes.as_slice().try_into().ok().map(Mac);
                }
                NeighbourAttribute::Protocol(by) => protocol = Protocol((*by).into()),
                _ => {}
            }
        }
        Some(Self { index: message.header.ifindex, address: address?, mac: mac?, protocol })
    }

    pub(crate) fn to_message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.address);
        message.header.ifindex = self.index;
        message.header.state = NeighbourState::Permanent;
        message.attributes.extend([
            NeighbourAttribute::Destination(self.address.into()),
            NeighbourAttribute::LinkLayerAddress(self.mac.0.to_vec()),
            NeighbourAttribute::Protocol(RouteProtocol::from(self.protocol.0)),
        ]);
        message
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_survives_its_message() {
        for address in ["10.0.0.9", "fd00::9"] {
            let neighbour = Neighbour {
                index: 2,
                address: address.parse().unwrap(),
                mac: Mac([2, 0, 0, 0, 0, 9]),
                protocol: Protocol::CONFIGURED,
            };
            let mut message = neighbour.to_message();
            assert_eq!(Neighbour::from_message(&message), Some(neighbour));
            message.header.state = NeighbourState::Stale;
            assert_eq!(Neighbour::from_message(&message), None, "it was found out");
        }
    }
}
