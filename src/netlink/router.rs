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

/// Asks the routers of one link for advertisements, and receives them. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct RouterSocket {
    socket: AsyncFd<OwnedFd>,
    index: u32,
}

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
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
