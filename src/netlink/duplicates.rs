//! Addresses that another host has, as the kernel finds out.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Hears of each IPv6 address of ours that failed duplicate address detection (RFC 4862 §5.4): the
/// kernel does not use it, and takes away what has a lifetime.
#[derive(Debug)]
pub struct Duplicates {
    socket: AsyncFd<OwnedFd>,
}

/// `RTMGRP_IPV6_IFADDR`.
const GROUP: u32 = 0x100;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const IFA_F_DADFAILED: u8 = 0x08;
const IFA_ADDRESS: u16 = 1;
const AF_INET6: u8 = 10;
/// `struct nlmsghdr`, `struct ifaddrmsg`, `struct rtattr`.
const MESSAGE_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ATTRIBUTE_HEADER: usize = 4;

impl Duplicates {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn subscribe() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        Ok(Self { socket: crate::register(socket, Interest::READABLE)? })
    }

    /// The next one: the link, and the address that it shall not have. Cancel-safe.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&self) -> io::Result<(u32, Ipv6Addr)> {
        let mut buffer = [0; 4096];
        loop {
            let mut ready = self.socket.readable().await?;
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(found) = duplicate(&buffer[..length]) {
                        return Ok(found);
                    }
                }
                // Some were lost: the next detection tells again.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The address in a notice, when it is one of a failed detection. A notice is one message.
fn duplicate(bytes: &[u8]) -> Option<(u32, Ipv6Addr)> {
    let (header, rest) = bytes.split_first_chunk::<MESSAGE_HEADER>()?;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let (address, mut attributes) = rest.split_first_chunk::<ADDRESS_HEADER>()?;
    let &[family, _, flags, _, index @ ..] = address;
    if ![RTM_NEWADDR, RTM_DELADDR].contains(&kind)
        || family != AF_INET6
        || flags & IFA_F_DADFAILED == 0
    {
        return None;
    }
    loop {
        let (&[a, b, c, d], _) = attributes.split_first_chunk::<ATTRIBUTE_HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(ATTRIBUTE_HEADER..length)?;
        if u16::from_ne_bytes([c, d]) == IFA_ADDRESS {
            return Some((u32::from_ne_bytes(index), <[u8; 16]>::try_from(value).ok()?.into()));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
    use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
    use proptest::prelude::*;
    use rtnetlink::packet_core::NetlinkMessage;

    use super::*;

    fn notice(flags: AddressHeaderFlags, gone: bool) -> Vec<u8> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.flags = flags;
        message.header.index = 7;
        let address = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5);
        message.attributes.push(AddressAttribute::Label("x".to_owned()));
        message.attributes.push(AddressAttribute::Address(address.into()));
        let message = if gone {
            RouteNetlinkMessage::DelAddress(message)
        } else {
            RouteNetlinkMessage::NewAddress(message)
        };
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn only_an_address_that_another_host_has_is_told() {
        let failed = AddressHeaderFlags::Dadfailed | AddressHeaderFlags::Tentative;
        let address = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5);
        for gone in [true, false] {
            assert_eq!(duplicate(&notice(failed, gone)), Some((7, address)));
            assert_eq!(duplicate(&notice(AddressHeaderFlags::Tentative, gone)), None);
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, at in 0usize..60, byte: u8) {
            let _ = duplicate(&bytes);
            let mut near = notice(AddressHeaderFlags::Dadfailed, false);
            if let Some(there) = near.get_mut(at) {
                *there = byte;
            }
            let _ = duplicate(&near);
        }
    }
}
