//! WireGuard links, over generic netlink (`linux/wireguard.h`, `Documentation/netlink/specs/wireguard`).
//!
//! The kernel answers within the call that asks, so this is a plain blocking socket.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use ipnet::IpNet;
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    socket,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};

use crate::Error;

/// A key that nobody may see: `Debug` prints `[redacted]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The public half of a key: who a peer is.
pub type PublicKey = [u8; 32];

/// What a WireGuard link was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// `None`: it has none, and does not talk.
    pub private_key: Option<Key>,
    /// UDP; the kernel chooses one for 0.
    pub listen_port: u16,
    /// Put on encrypted packets; 0 is none.
    pub fwmark: u32,
    /// Whom it talks to.
    pub peers: Vec<Peer>,
}

/// The other end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub public_key: PublicKey,
    /// A second secret.
    pub preshared_key: Option<Key>,
    /// Where it is, or was last heard from.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep a way open; 0 is never.
    pub keepalive_secs: u16,
    /// What it may send from.
    pub allowed_ips: Vec<IpNet>,
}

/// What to tell a link; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Its own key.
    pub private_key: Option<Key>,
    /// UDP.
    pub listen_port: Option<u16>,
    /// Mark of encrypted packets.
    pub fwmark: Option<u32>,
    /// Peers that go, come and change, in this order.
    pub peers: Vec<PeerChange>,
}

/// What to tell it of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// Who it is.
    pub public_key: PublicKey,
    /// What becomes of it.
    pub what: What,
}

/// What becomes of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It goes.
    Remove,
    /// It is added if it is not there; what is `None` stays.
    Set {
        /// All zero bytes mean none.
        preshared_key: Option<Key>,
        /// Where it is.
        endpoint: Option<SocketAddr>,
        /// In seconds.
        keepalive_secs: Option<u16>,
        /// All of them: others go.
        allowed_ips: Option<Vec<IpNet>>,
    },
}

/// A peer with more is told in pieces, and so are many peers: a message has at most 64 KiB, an address some
/// 44 bytes.
const ADDRESSES_EACH: usize = 512;
/// More than the kernel puts into one answer.
const BUFFER: usize = 1 << 16;

/// Asks and tells about WireGuard links. Needs `CAP_NET_ADMIN`.
#[derive(Debug)]
pub struct Wireguard {
    socket: OwnedFd,
    family: u16,
}

impl Wireguard {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel knows no WireGuard, as it does before the first such link when that is a module
    /// ([`Error::not_found`]).
    pub fn open() -> Result<Self, Error> {
        let what = || "open generic netlink".to_owned();
        let refused = |errno: nix::Error| Error::Refused { what: what(), source: errno.into() };
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .map_err(refused)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(refused)?;
        let mut all = Self { socket, family: 0 };
        let name = GenlCtrlAttrs::FamilyName("wireguard".to_owned());
        let ask = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![name] };
        let answers = all.ask("find WireGuard", GenlMessage::from_payload(ask), NLM_F_ACK)?;
        let mut attributes = answers.into_iter().flat_map(|answer| answer.payload.nlas);
        let family = attributes.find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        });
        all.family = family.ok_or_else(|| Error::Unexpected {
            what: "find WireGuard".to_owned(),
            detail: "no number of its family".to_owned(),
        })?;
        Ok(all)
    }

    /// What the link was told, its keys included.
    ///
    /// # Errors
    /// When the kernel refuses: it is no WireGuard link.
    pub fn device(&self, index: u32) -> Result<Device, Error> {
        let ask = WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![WireguardAttribute::IfIndex(index)],
        };
        let what = format!("ask WireGuard link {index}");
        let answers = self.ask(&what, self.message(ask), NLM_F_DUMP)?;
        Ok(Device::from_messages(answers.into_iter().map(|answer| answer.payload)))
    }

    /// Tells a link something else.
    ///
    /// # Errors
    /// When the kernel refuses: it is no WireGuard link.
    pub fn change(&self, index: u32, change: &Change) -> Result<(), Error> {
        let what = format!("set the keys and peers of link {index}");
        for attributes in change.messages() {
            let attributes =
                std::iter::once(WireguardAttribute::IfIndex(index)).chain(attributes).collect();
            let tell = WireguardMessage { cmd: WireguardCmd::SetDevice, attributes };
            self.ask(&what, self.message(tell), NLM_F_ACK)?;
        }
        Ok(())
    }

    fn message(&self, payload: WireguardMessage) -> GenlMessage<WireguardMessage> {
        let mut message = GenlMessage::from_payload(payload);
        message.set_resolved_family_id(self.family);
        message
    }

    /// Sends a request, and collects what comes until its end.
    fn ask<T>(&self, what: &str, ask: T, flags: u16) -> Result<Vec<T>, Error>
    where
        T: NetlinkSerializable + NetlinkDeserializable + fmt::Debug,
    {
        let refused = |source: io::Error| Error::Refused { what: what.to_owned(), source };
        let unexpected = |detail: String| Error::Unexpected { what: what.to_owned(), detail };
        let mut message =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(ask));
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &bytes, &kernel, MsgFlags::empty())
            .map_err(|errno| refused(errno.into()))?;
        bytes.fill(0);
        let (mut buffer, mut answers) = (vec![0; BUFFER], Vec::new());
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map_err(|errno| refused(errno.into()))?;
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let message = NetlinkMessage::<T>::deserialize(rest)
                    .map_err(|error| unexpected(error.to_string()))?;
                // Messages are padded to four bytes; the last one need not be.
                let taken = usize::try_from(message.header.length).unwrap_or(length);
                rest = rest.get(taken.next_multiple_of(4).max(4)..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(refused(error.to_io()));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

impl Device {
    /// A peer with many addresses goes on in the next message.
    fn from_messages(messages: impl Iterator<Item = WireguardMessage>) -> Self {
        let mut device = Self::default();
        for attribute in messages.flat_map(|message| message.attributes) {
            match attribute {
                WireguardAttribute::PrivateKey(key) => {
                    device.private_key = (key != [0; 32]).then_some(Key(key));
                }
                WireguardAttribute::ListenPort(port) => device.listen_port = port,
                WireguardAttribute::Fwmark(mark) => device.fwmark = mark,
                WireguardAttribute::Peers(peers) => {
                    for peer in peers.into_iter().map(Peer::from_message) {
                        match device.peers.last_mut() {
                            Some(last) if last.public_key == peer.public_key => {
                                last.allowed_ips.extend(peer.allowed_ips);
                            }
                            _ => device.peers.push(peer),
                        }
                    }
                }
                _ => {}
            }
        }
        device
    }
}

impl Peer {
    fn from_message(message: WireguardPeer) -> Self {
        let mut peer = Self::default();
        for attribute in message.0 {
            match attribute {
                WireguardPeerAttribute::PublicKey(key) => peer.public_key = key,
                WireguardPeerAttribute::PresharedKey(key) => {
                    peer.preshared_key = (key != [0; 32]).then_some(Key(key));
                }
                WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
                WireguardPeerAttribute::PersistentKeepalive(secs) => peer.keepalive_secs = secs,
                WireguardPeerAttribute::AllowedIps(nets) => {
                    peer.allowed_ips.extend(nets.into_iter().filter_map(net));
                }
                _ => {}
            }
        }
        peer
    }
}

fn net(message: WireguardAllowedIp) -> Option<IpNet> {
    let (mut address, mut prefix) = (None, None);
    for attribute in message.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(ip) => address = Some(ip),
            WireguardAllowedIpAttr::Cidr(length) => prefix = Some(length),
            _ => {}
        }
    }
    IpNet::new(address?, prefix?).ok()
}

fn allowed(net: &IpNet) -> WireguardAllowedIp {
    let family = match net {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.addr()),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ])
}

impl Change {
    /// As many messages as it takes.
    fn messages(&self) -> Vec<Vec<WireguardAttribute>> {
        let mut messages = vec![
            [
                self.private_key.map(|key| WireguardAttribute::PrivateKey(key.0)),
                self.listen_port.map(WireguardAttribute::ListenPort),
                self.fwmark.map(WireguardAttribute::Fwmark),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>(),
        ];
        let (mut batch, mut size) = (Vec::new(), 0);
        for (peer, addresses) in self.peers.iter().flat_map(PeerChange::pieces) {
            // A peer without addresses takes the room of a few.
            if size + addresses + 8 > ADDRESSES_EACH + 8 && !batch.is_empty() {
                messages.push(vec![WireguardAttribute::Peers(std::mem::take(&mut batch))]);
                size = 0;
            }
            batch.push(peer);
            size += addresses + 8;
        }
        if !batch.is_empty() {
            messages.push(vec![WireguardAttribute::Peers(batch)]);
        }
        messages.retain(|message| !message.is_empty());
        messages
    }
}

impl PeerChange {
    /// The peer in messages, each with how many addresses it has.
    fn pieces(&self) -> Vec<(WireguardPeer, usize)> {
        let key = WireguardPeerAttribute::PublicKey(self.public_key);
        let What::Set { preshared_key, endpoint, keepalive_secs, allowed_ips } = &self.what else {
            let gone = WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe);
            return vec![(WireguardPeer(vec![key, gone]), 0)];
        };
        let mut first = vec![key.clone()];
        if allowed_ips.is_some() {
            first.push(WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps));
        }
        first.extend(preshared_key.map(|key| WireguardPeerAttribute::PresharedKey(key.0)));
        first.extend(endpoint.map(WireguardPeerAttribute::Endpoint));
        first.extend(keepalive_secs.map(WireguardPeerAttribute::PersistentKeepalive));
        let nets = allowed_ips.as_deref().unwrap_or_default();
        let mut pieces = Vec::new();
        for (i, some) in nets.chunks(ADDRESSES_EACH).enumerate() {
            let mut piece = if i == 0 { std::mem::take(&mut first) } else { vec![key.clone()] };
            piece.push(WireguardPeerAttribute::AllowedIps(some.iter().map(allowed).collect()));
            pieces.push((WireguardPeer(piece), some.len()));
        }
        if !first.is_empty() {
            pieces.push((WireguardPeer(first), 0));
        }
        pieces
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Through the bytes that go to the kernel.
    fn there_and_back(attributes: Vec<WireguardAttribute>) -> WireguardMessage {
        let tell = WireguardMessage { cmd: WireguardCmd::SetDevice, attributes };
        let mut tell = GenlMessage::from_payload(tell);
        tell.set_resolved_family_id(0x19);
        let mut message =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(tell));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        assert!(bytes.len() < BUFFER, "{} bytes", bytes.len());
        let read = NetlinkMessage::<GenlMessage<WireguardMessage>>::deserialize(&bytes).unwrap();
        match read.payload {
            NetlinkPayload::InnerMessage(message) => message.payload,
            other => panic!("{other:?}"),
        }
    }

    fn peer(number: u32, addresses: u32) -> Peer {
        let mut public_key = [7; 32];
        public_key[..4].copy_from_slice(&number.to_be_bytes());
        let net = |i| IpNet::new(Ipv4Addr::from(number << 16 | i).into(), 32).unwrap();
        Peer {
            public_key,
            preshared_key: Some(Key([9; 32])),
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            keepalive_secs: 25,
            allowed_ips: (0..addresses).map(net).collect(),
        }
    }

    #[test]
    fn a_link_of_many_peers_survives_its_messages() {
        let mut peers = vec![peer(1, 2000), peer(2, 0), peer(3, 1)];
        peers.extend((4..300).map(|number| peer(number, 3)));
        let device =
            Device { private_key: Some(Key([3; 32])), listen_port: 51820, fwmark: 5, peers };
        let set = |peer: &Peer| PeerChange {
            public_key: peer.public_key,
            what: What::Set {
                preshared_key: peer.preshared_key,
                endpoint: peer.endpoint,
                keepalive_secs: Some(peer.keepalive_secs),
                allowed_ips: Some(peer.allowed_ips.clone()),
            },
        };
        let change = Change {
            private_key: device.private_key,
            listen_port: Some(device.listen_port),
            fwmark: Some(device.fwmark),
            peers: device.peers.iter().map(set).collect(),
        };
        let messages = change.messages();
        assert!(messages.len() > 5, "{}", messages.len());
        let read = Device::from_messages(messages.into_iter().map(there_and_back));
        assert_eq!(read, device);
    }

    #[test]
    fn what_does_not_change_is_not_told() {
        assert_eq!(Change::default().messages(), Vec::<Vec<_>>::new());
        let gone = PeerChange { public_key: [1; 32], what: What::Remove };
        let change = Change { peers: vec![gone], ..Change::default() };
        let flags = WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe);
        let peer = WireguardPeer(vec![WireguardPeerAttribute::PublicKey([1; 32]), flags]);
        assert_eq!(change.messages(), [[WireguardAttribute::Peers(vec![peer])]]);
    }

    #[test]
    fn keys_are_not_shown() {
        let device = Device { private_key: Some(Key([0x42; 32])), ..Device::default() };
        let shown = format!("{device:?} {:?}", peer(1, 0).preshared_key);
        assert!(shown.contains("[redacted]") && !shown.contains("66"), "{shown}");
    }
}
