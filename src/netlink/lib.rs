//! The kernel's network tables and the sockets a DHCP client needs, typed.
//!
//! [`Netlink`] lists links, addresses, routes, rules and neighbours over rtnetlink, and changes some of them; [`Direct`]
//! changes many at once; [`wireguard`] has keys and peers. [`Changes`] says when one of them changed, whoever did it. [`PacketSocket`] exchanges UDP datagrams on a link that has
//! no address yet, and [`RawSocket`] sends one through the kernel's routes once it has; both carry
//! the bytes that [`datagram`] builds and takes apart. [`ArpSocket`] asks who has an address. [`RouterSocket`] hears routers. [`Capture`] copies what passes a link; [`AcpiEvents`] tells of buttons. [`host`] sets the names of the node.
//!
//! Nothing here decides anything: what should be is `networkd`'s business.

#![allow(unsafe_code, reason = "packet sockets need sockaddr_ll, auxiliary data and a filter")]

pub mod acpi;
pub mod datagram;
pub mod host;
pub mod wireguard;

mod address;
mod arp;
mod capture;
mod changes;
mod direct;
mod duplicates;
mod link;
mod mac;
mod neighbour;
mod packet;
mod raw;
mod requests;
mod route;
mod router;
mod rule;
mod uevents;

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use acpi::{AcpiEvent, AcpiEvents};
pub use address::Address;
pub use arp::{Arp, ArpSocket, Operation as ArpOperation};
pub use capture::{Capture, Frame, Instruction, Promiscuous};
pub use changes::Changes;
pub use direct::{Change, Direct};
pub use duplicates::Duplicates;
pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use link::{Kind, Link};
pub use mac::Mac;
pub use neighbour::Neighbour;
pub use netlink_packet_route::link as options;
pub use packet::PacketSocket;
pub use raw::RawSocket;
pub use requests::Netlink;
pub use route::{Route, Table};
pub use router::{RouterSocket, advertise_neighbour, udp6_on_link};
pub use rule::{Action, Rule};
pub use uevents::{Notice, Uevents};

/// Who put an address or a route into the kernel (`RTPROT_*` of `rtnetlink(7)`; for addresses the
/// same numbers in `IFA_PROTO`, Linux 5.18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Nobody said.
    pub const UNSPECIFIED: Self = Self(0);
    /// The kernel itself (of routes).
    pub const KERNEL: Self = Self(2);
    /// An administrator: here, the machine configuration or the kernel arguments.
    pub const STATIC: Self = Self(4);
    /// A DHCP client.
    pub const DHCP: Self = Self(16);
    /// The machine configuration, where `STATIC` could be anybody's: a number that nobody registered.
    pub const CONFIGURED: Self = Self(79);
}

/// A request that the kernel refused, or that never reached it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection to the kernel is gone.
    #[error("{what}: netlink connection closed")]
    Closed {
        /// What was asked.
        what: String,
    },
    /// The kernel said no.
    #[error("{what}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its `errno`.
        #[source]
        source: std::io::Error,
    },
    /// The answer does not fit the question.
    #[error("{what}: unexpected answer: {detail}")]
    Unexpected {
        /// What was asked.
        what: String,
        /// What came instead.
        detail: String,
    },
}

impl Error {
    /// Whether what should be added is there already.
    #[must_use]
    pub fn already_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether what should be changed or removed is not there (any more).
    #[must_use]
    pub fn not_found(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ESRCH | libc::ENOENT | libc::ENODEV | libc::EADDRNOTAVAIL)
        )
    }

    /// Whether the kernel was built without it.
    #[must_use]
    pub fn not_supported(&self) -> bool {
        matches!(self.errno(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
    }

    fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Closed { .. } | Self::Unexpected { .. } => None,
        }
    }
}

/// Lets the runtime watch a socket.
fn register(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and the AsyncFd owns
    // it: it leaves the runtime before it is closed.
    let registered = unsafe { AsyncFd::register_with_interest(socket, interest) };
    registered.map_err(io::Error::from)
}
