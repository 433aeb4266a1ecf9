//! Notices of changes to links, addresses, routes and rules.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Says that something changed; what it is now, [`Netlink`](crate::Netlink) tells.
///
/// The notices themselves are thrown away unread: whoever looks again after each cannot be misled by
/// a lost one, and the kernel's socket buffer bounds what waits for us.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<OwnedFd>,
}

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV4_RULE`, `RTMGRP_IPV6_IFADDR`,
/// `RTMGRP_IPV6_ROUTE` and `1 << (RTNLGRP_IPV6_RULE - 1)`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000;
/// `RTMGRP_NEIGH`: what the kernel finds out itself is told of as well.
const NEIGHBOURS: u32 = 0x4;

impl Changes {
    /// Subscribes. Whatever changes from here on is noticed.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn subscribe() -> io::Result<Self> {
        Self::to(GROUPS)
    }

    /// The same, and changes of neighbours: on a busy network these are many.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn with_neighbours() -> io::Result<Self> {
        Self::to(GROUPS | NEIGHBOURS)
    }

    fn to(groups: u32) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { socket: crate::register(socket, Interest::READABLE)? })
    }

    /// Waits until something changed, and takes all notices there are. Cancel-safe.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&self) -> io::Result<()> {
        let mut seen = false;
        loop {
            let mut ready = self.socket.readable().await?;
            // One byte is enough: the kernel cuts off the rest of the message.
            match recv(self.socket.as_raw_fd(), &mut [0], MsgFlags::MSG_TRUNC) {
                // ENOBUFS: there were more than the buffer holds. Then surely something changed.
                Ok(_) | Err(Errno::ENOBUFS) => seen = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if seen => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
