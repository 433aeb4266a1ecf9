//! Router discovery, RFC 4861 §6, over `raw(7)` and `icmp6(7)`.

use std::io::{self, IoSliceMut};
use std::mem::size_of;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6,
    bind, recvmsg, sendto, setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Mac;

/// Asks the routers of one link for advertisements, and receives them. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct RouterSocket {
    socket: AsyncFd<OwnedFd>,
    index: u32,
}

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// What a packet has that no router passed on (RFC 4861 §6.1).
const HOP_LIMIT: i32 = 255;
/// `struct icmp6_filter` of RFC 3542 §3.2: a set bit keeps a type out.
type TypeFilter = [u32; 8];
/// `ICMPV6_FILTER` of `linux/icmpv6.h`.
const ICMPV6_FILTER: libc::c_int = 1;

impl RouterSocket {
    /// Opens it on the link of that index and name.
    ///
    /// # Errors
    /// When the kernel refuses: no `CAP_NET_RAW`, no such link, no IPv6.
    pub fn open(index: u32, name: &str) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Inet6,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::IcmpV6,
        )?;
        let mut filter: TypeFilter = [u32::MAX; 8];
        filter[usize::from(ROUTER_ADVERTISEMENT >> 5)] &= !(1 << (ROUTER_ADVERTISEMENT & 31));
        crate::packet::set_option(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)?;
        setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
        crate::packet::set_option(
            &socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MULTICAST_HOPS,
            &HOP_LIMIT,
        )?;
        setsockopt(&socket, sockopt::BindToDevice, &name.into())?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        Ok(Self { socket: crate::register(socket, interest)?, index })
    }

    /// Asks all routers of the link for an advertisement.
    ///
    /// # Errors
    /// When the kernel refuses: `EADDRNOTAVAIL` while the link has no link-local address.
    pub async fn solicit(&self) -> io::Result<()> {
        // The kernel computes the checksum.
        let message = [ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        let to = SockaddrIn6::from(SocketAddrV6::new(ALL_ROUTERS, 0, 0, self.index));
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                let sent = sendto(socket.as_raw_fd(), &message, &to, MsgFlags::MSG_NOSIGNAL);
                sent.map(drop).map_err(io::Error::from)
            })
            .await
    }

    /// The next advertisement of a router on the link: how many bytes of `buffer` it fills, from its
    /// ICMP header on. What routers of other links may have sent is thrown away. Cancel-safe.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let received =
                self.socket.async_io(Interest::READABLE, |socket| receive(socket, buffer)).await?;
            if let Some(length) = received {
                return Ok(length);
            }
        }
    }
}

/// Tells every station of a link that `address` is ours now (RFC 4861 §7.2.6): whoever knew another holder
/// takes the new one. Needs `CAP_NET_RAW`.
///
/// # Errors
/// When the kernel refuses: no such link, no IPv6, the link is down.
pub fn advertise_neighbour(index: u32, name: &str, mac: Mac, address: Ipv6Addr) -> io::Result<()> {
    let socket =
        socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)?;
    let hops = libc::IPV6_MULTICAST_HOPS;
    crate::packet::set_option(&socket, libc::IPPROTO_IPV6, hops, &HOP_LIMIT)?;
    setsockopt(&socket, sockopt::BindToDevice, &name.into())?;
    let to = SockaddrIn6::from(SocketAddrV6::new(ALL_NODES, 0, 0, index));
    let message = advertisement(mac, address);
    sendto(socket.as_raw_fd(), &message, &to, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)?;
    Ok(())
}

/// A neighbour advertisement, RFC 4861 §4.4; the kernel computes the checksum.
fn advertisement(mac: Mac, address: Ipv6Addr) -> [u8; 32] {
    /// Not asked for, and to be believed (the flags R, S and O).
    const OVERRIDE: u8 = 0b0010_0000;
    /// The target's link-layer address, of one unit of eight bytes.
    const OPTION: [u8; 2] = [2, 1];
    let mut message = [0; 32];
    message[0] = NEIGHBOUR_ADVERTISEMENT;
    message[4] = OVERRIDE;
    message[8..24].copy_from_slice(&address.octets());
    message[24..26].copy_from_slice(&OPTION);
    message[26..].copy_from_slice(&mac.0);
    message
}

/// A UDP socket for IPv6 alone on `port`, that hears and uses nothing but the link called `name`. A port
/// below 1024 needs `CAP_NET_BIND_SERVICE`.
///
/// # Errors
/// When the kernel refuses: no such link, no IPv6, no such right, or somebody else has the port.
pub fn udp6_on_link(name: &str, port: u16) -> io::Result<std::net::UdpSocket> {
    let socket = socket(
        AddressFamily::Inet6,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    setsockopt(&socket, sockopt::BindToDevice, &name.into())?;
    let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
    bind(socket.as_raw_fd(), &SockaddrIn6::from(any))?;
    Ok(socket.into())
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let mut control = nix::cmsg_space!([u8; size_of::<libc::c_int>()]);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn6>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let near = message
        .cmsgs()?
        .any(|part| matches!(part, ControlMessageOwned::Ipv6HopLimit(limit) if limit == HOP_LIMIT));
    let from_router = message.address.is_some_and(|from| from.ip().is_unicast_link_local());
    Ok((near && from_router).then_some(message.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_names_the_new_holder() {
        let address = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
        let message = advertisement(Mac([2, 0, 0, 0, 0, 9]), address);
        assert_eq!(message[..8], [136, 0, 0, 0, 0x20, 0, 0, 0]);
        assert_eq!(message[8..24], address.octets());
        assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
    }
}
