//! Who has an IPv4 address: RFC 826 as bytes and `packet(7)`, as RFC 5227 uses it.

use std::io;
use std::net::Ipv4Addr;

use crate::{Mac, PacketSocket};

/// An ARP message for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Question or answer.
    pub operation: Operation,
    /// Who says it.
    pub sender: Mac,
    /// The address the sender claims; unspecified in a probe.
    pub sender_address: Ipv4Addr,
    /// Whom an answer is for.
    pub target: Mac,
    /// The address asked for.
    pub target_address: Ipv4Addr,
}

/// What an ARP message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// "Who has it?"
    Request = 1,
    /// "I have."
    Reply = 2,
}

const LENGTH: usize = 28;
/// Ethernet, IPv4, and the lengths of their addresses.
const HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];

impl Arp {
    /// Asks whether anybody has `address`, without saying that we do (RFC 5227 §1.1).
    #[must_use]
    pub fn probe(sender: Mac, address: Ipv4Addr) -> Self {
        Self { sender_address: Ipv4Addr::UNSPECIFIED, ..Self::announcement(sender, address) }
    }

    /// Says that `address` is ours now ("gratuitous ARP", RFC 5227 §1.1).
    #[must_use]
    pub fn announcement(sender: Mac, address: Ipv4Addr) -> Self {
        Self {
            operation: Operation::Request,
            sender,
            sender_address: address,
            target: Mac([0; 6]),
            target_address: address,
        }
    }

    /// What Ethernet carries.
    #[must_use]
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..6].copy_from_slice(&HEADER);
        bytes[7] = self.operation as u8;
        bytes[8..14].copy_from_slice(&self.sender.0);
        bytes[14..18].copy_from_slice(&self.sender_address.octets());
        bytes[18..24].copy_from_slice(&self.target.0);
        bytes[24..].copy_from_slice(&self.target_address.octets());
        bytes
    }

    /// Reads what Ethernet carried; there may be padding behind it. `None` when it is no ARP message for
    /// IPv4 over Ethernet.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<LENGTH>()?;
        let operation = match bytes[6..8] {
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            _ => return None,
        };
        (bytes[..6] == HEADER).then_some(Self {
            operation,
            sender: Mac(*bytes[8..].first_chunk()?),
            sender_address: (*bytes[14..].first_chunk::<4>()?).into(),
            target: Mac(*bytes[18..].first_chunk()?),
            target_address: (*bytes[24..].first_chunk::<4>()?).into(),
        })
    }
}

/// Sends ARP messages to everyone on a link, and receives those that are about one address. Needs
/// `CAP_NET_RAW`.
#[derive(Debug)]
pub struct ArpSocket {
    socket: PacketSocket,
    address: Ipv4Addr,
}

impl ArpSocket {
    /// Opens it on link `index`. The kernel passes on only what claims `address` or probes for it.
    ///
    /// # Errors
    /// When the kernel refuses: no `CAP_NET_RAW`, no such link.
    pub fn open(index: u32, address: Ipv4Addr) -> io::Result<Self> {
        Ok(Self { socket: PacketSocket::open_arp(index, address)?, address })
    }

    /// The address it watches.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Sends a message to every station on the link.
    ///
    /// # Errors
    /// When the kernel refuses; `ENETDOWN` while the link is down.
    pub async fn broadcast(&self, message: &Arp) -> io::Result<()> {
        self.socket.broadcast(&message.encode()).await
    }

    /// The next message about the address. Cancel-safe.
    ///
    /// # Errors
    /// When the socket fails; `ENETDOWN` once when the link goes down.
    pub async fn receive(&self) -> io::Result<Arp> {
        let mut buffer = [0; 64];
        loop {
            let (length, _) = self.socket.receive(&mut buffer).await?;
            if let Some(message) = Arp::decode(&buffer[..length]) {
                return Ok(message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

    #[test]
    fn a_message_survives_its_bytes() {
        let reply = Arp {
            operation: Operation::Reply,
            target: Mac([2, 0, 0, 0, 0, 9]),
            ..Arp::announcement(MAC, ADDRESS)
        };
        for message in [Arp::probe(MAC, ADDRESS), Arp::announcement(MAC, ADDRESS), reply] {
            let mut bytes = message.encode().to_vec();
            assert_eq!(Arp::decode(&bytes), Some(message));
            bytes.resize(46, 0);
            assert_eq!(Arp::decode(&bytes), Some(message), "padded");
            assert_eq!(Arp::decode(&bytes[..27]), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_is_written(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(message) = Arp::decode(&bytes) {
                prop_assert_eq!(&message.encode()[..], &bytes[..LENGTH]);
            }
        }
    }
}
