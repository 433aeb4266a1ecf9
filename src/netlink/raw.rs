//! Ready-made IPv4 packets through the kernel's routes, `raw(7)`.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt,
    socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sends IPv4 packets, headers included, through one link: the kernel finds the neighbour. It never
/// receives. Needs `CAP_NET_RAW`, but no right to a port below 1024.
#[derive(Debug)]
pub struct RawSocket {
    socket: AsyncFd<OwnedFd>,
}

impl RawSocket {
    /// Opens it on the link called `name`.
    ///
    /// # Errors
    /// When the kernel refuses: no `CAP_NET_RAW`, no such link.
    pub fn open(name: &str) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::Raw,
        )?;
        setsockopt(&socket, sockopt::BindToDevice, &name.into())?;
        Ok(Self { socket: crate::register(socket, Interest::WRITABLE)? })
    }

    /// Sends a packet whose header says `destination`.
    ///
    /// # Errors
    /// When the kernel refuses: no route, link down.
    pub async fn send(&self, packet: &[u8], destination: Ipv4Addr) -> io::Result<()> {
        let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                let sent = sendto(socket.as_raw_fd(), packet, &to, MsgFlags::MSG_NOSIGNAL);
                sent.map(drop).map_err(io::Error::from)
            })
            .await
    }
}
