//! The same tables over a socket that is waited for: many changes in one system call, and lists without a
//! detour through other tasks. The kernel answers rtnetlink's requests before `send` or `recv` return, so
//! nothing is waited for longer than it works.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkDeserializable as _, NetlinkHeader, NetlinkMessage,
};

use crate::{Address, Error, Link, Route, Table};

/// A netlink socket of one's own.
#[derive(Debug)]
pub struct Direct {
    socket: OwnedFd,
    serial: u32,
    /// Room for what comes: more than the kernel puts together for a list.
    buffer: Vec<u8>,
}

/// A change to the kernel's tables.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// Set a link administratively up.
    SetUp(u32),
    /// Set a link's MTU, in bytes.
    SetMtu(u32, u32),
    /// Add an address, or give the one that is there a new lifetime and protocol.
    PutAddress(&'a Address),
    /// Remove an address.
    RemoveAddress(&'a Address),
    /// Add a route after those with the same destination and metric.
    AddRoute(&'a Route),
    /// Remove a route.
    RemoveRoute(&'a Route),
}

/// Changes in one system call: as many as cannot overflow the socket with refusals.
const AT_ONCE: usize = 100;
const BUFFER: usize = 64 << 10;
/// What may wait in the socket, where we may ask for that much.
const RECEIVE_BUFFER: usize = 1 << 20;
const HEADER: usize = 16;
const ALIGNMENT: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

impl Change<'_> {
    fn message(self) -> (RouteNetlinkMessage, u16) {
        match self {
            Self::SetUp(index) => (link(index, up), 0),
            Self::SetMtu(index, mtu) => {
                (link(index, |message| message.attributes.push(LinkAttribute::Mtu(mtu))), 0)
            }
            Self::PutAddress(address) => {
                let message = RouteNetlinkMessage::NewAddress(address.to_message());
                (message, NLM_F_CREATE | NLM_F_REPLACE)
            }
            Self::RemoveAddress(address) => {
                (RouteNetlinkMessage::DelAddress(address.to_message()), 0)
            }
            Self::AddRoute(route) => {
                let message = RouteNetlinkMessage::NewRoute(route.to_message());
                (message, NLM_F_CREATE | NLM_F_APPEND)
            }
            Self::RemoveRoute(route) => (RouteNetlinkMessage::DelRoute(route.to_message()), 0),
        }
    }

    fn what(self) -> String {
        match self {
            Self::SetUp(index) => format!("set link {index} up"),
            Self::SetMtu(index, mtu) => format!("set mtu {mtu} on link {index}"),
            Self::PutAddress(address) => {
                format!("add address {} to link {}", address.net, address.index)
            }
            Self::RemoveAddress(address) => {
                format!("remove address {} from link {}", address.net, address.index)
            }
            Self::AddRoute(route) => format!("add route to {}", route.destination),
            Self::RemoveRoute(route) => format!("remove route to {}", route.destination),
        }
    }
}

fn link(index: u32, change: impl FnOnce(&mut LinkMessage)) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    change(&mut message);
    RouteNetlinkMessage::NewLink(message)
}

fn up(message: &mut LinkMessage) {
    use netlink_packet_route::link::LinkFlags;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

impl Direct {
    /// Opens the socket.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        // Without the right to it, what there is must do: that is what AT_ONCE reckons with.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self { socket, serial: 0, buffer: vec![0; BUFFER] })
    }

    /// Every link of this network namespace, by index.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let mut request = LinkMessage::default();
        // Counters of packets are half of what it would say.
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut links = Vec::new();
        self.list("list links", RouteNetlinkMessage::GetLink(request), |message, _| {
            if let RouteNetlinkMessage::NewLink(message) = message()? {
                links.push(Link::from_message(message));
            }
            Some(())
        })?;
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Every IPv4 and IPv6 address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let mut addresses = Vec::new();
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.list("list addresses", request, |message, _| {
            if let RouteNetlinkMessage::NewAddress(message) = message()? {
                addresses.extend(Address::from_message(&message));
            }
            Some(())
        })?;
        Ok(addresses)
    }

    /// Every IPv4 and IPv6 route but those to this host itself (`RT_TABLE_LOCAL`), which the kernel makes
    /// of its addresses: there are two and more of each.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        /// `rtm_table` of `struct rtmsg`.
        const TABLE: usize = 4;
        let mut routes = Vec::new();
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        self.list("list routes", request, |message, payload| {
            // Before the rest is taken apart. It says 252 of those above 255.
            if payload.get(TABLE).is_some_and(|table| u32::from(*table) == Table::LOCAL.0) {
                return Some(());
            }
            if let RouteNetlinkMessage::NewRoute(message) = message()? {
                routes.extend(Route::from_message(&message));
            }
            Some(())
        })?;
        Ok(routes)
    }

    /// Makes these changes in this order, whatever becomes of each.
    pub fn change(&mut self, changes: &[Change<'_>]) -> Vec<Result<(), Error>> {
        let mut results = Vec::with_capacity(changes.len());
        for some in changes.chunks(AT_ONCE) {
            let failures = self.change_some(some);
            results.extend(some.iter().enumerate().map(|(at, change)| match &failures {
                Ok(failures) => match failures.get(&at) {
                    Some(errno) => Err(refused(change.what(), io::Error::from(*errno))),
                    None => Ok(()),
                },
                Err(error) => Err(refused(change.what(), copy(error))),
            }));
        }
        results
    }

    /// Which of them failed, and why.
    fn change_some(
        &mut self,
        changes: &[Change<'_>],
    ) -> io::Result<std::collections::BTreeMap<usize, Errno>> {
        let mut bytes = Vec::new();
        let first = self.serial.wrapping_add(1);
        for (at, change) in changes.iter().enumerate() {
            let (message, flags) = change.message();
            // A refusal is told anyway; that the last one is done says that all are.
            let ack = if at + 1 == changes.len() { NLM_F_ACK } else { 0 };
            self.append(&mut bytes, message, NLM_F_REQUEST | ack | flags);
        }
        let last = self.serial;
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)?;
        let mut failures = std::collections::BTreeMap::new();
        loop {
            let length = receive(&self.socket, &mut self.buffer)?;
            for (kind, serial, payload) in messages(&self.buffer[..length]) {
                let errno = payload.first_chunk().map(|code| i32::from_ne_bytes(*code));
                let (NLMSG_ERROR, Some(errno)) = (kind, errno) else { continue };
                let at = usize::try_from(serial.wrapping_sub(first)).unwrap_or(usize::MAX);
                if errno != 0 && at < changes.len() {
                    failures.insert(at, Errno::from_raw(errno.saturating_neg()));
                }
                if serial == last {
                    return Ok(failures);
                }
            }
        }
    }

    /// Shows `take` each message of a list: how to read it, and its bytes. When it gives `None` for one,
    /// that is left out.
    fn list(
        &mut self,
        what: &str,
        request: RouteNetlinkMessage,
        mut take: impl FnMut(&dyn Fn() -> Option<RouteNetlinkMessage>, &[u8]) -> Option<()>,
    ) -> Result<(), Error> {
        let failed = |error: io::Error| refused(what.to_owned(), error);
        let mut bytes = Vec::new();
        self.append(&mut bytes, request, NLM_F_REQUEST | NLM_F_DUMP);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)
            .map_err(|errno| failed(errno.into()))?;
        loop {
            let length = receive(&self.socket, &mut self.buffer).map_err(failed)?;
            for (kind, serial, payload) in messages(&self.buffer[..length]) {
                match kind {
                    _ if serial != self.serial => {}
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let errno = payload.first_chunk().map_or(0, |it| i32::from_ne_bytes(*it));
                        return Err(failed(Errno::from_raw(errno.saturating_neg()).into()));
                    }
                    _ => {
                        let mut header = NetlinkHeader::default();
                        header.message_type = kind;
                        let read = || RouteNetlinkMessage::deserialize(&header, payload).ok();
                        let _ = take(&read, payload);
                    }
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.serial = self.serial.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.serial;
        message.finalize();
        let at = bytes.len();
        bytes.resize(at + message.buffer_len(), 0);
        message.serialize(&mut bytes[at..]);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// The kernel has answered already, or puts together the next part of a list meanwhile.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// The kind, serial number and payload of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let [a, b, c, d, e, f, _, _, g, h, i, j, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((u16::from_ne_bytes([e, f]), u32::from_ne_bytes([g, h, i, j]), payload))
    })
}

fn refused(what: String, source: io::Error) -> Error {
    Error::Refused { what, source }
}

/// The same error for each of several.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{Netlink, Protocol};

    #[tokio::test]
    async fn it_sees_what_the_other_way_sees() {
        let (netlink, connection) = Netlink::open().unwrap();
        let mut direct = Direct::open().unwrap();
        let lists = async {
            let (links, addresses) = (netlink.links().await?, netlink.addresses().await?);
            Ok::<_, Error>((links, addresses, netlink.routes().await?))
        };
        let (links, addresses, mut routes) = tokio::select! {
            lists = lists => lists.unwrap(),
            () = connection => unreachable!("the connection lives as long as its handle"),
        };
        routes.retain(|route| route.table != Table::LOCAL);
        let names = |links: &[Link]| links.iter().map(|it| it.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&direct.links().unwrap()), names(&links));
        let nets = |list: &[Address]| list.iter().map(|it| it.net).collect::<Vec<_>>();
        assert_eq!(nets(&direct.addresses().unwrap()), nets(&addresses));
        let mut seen = direct.routes().unwrap();
        let by = |route: &Route| (route.destination, route.metric, route.index, route.table);
        seen.sort_by_key(by);
        routes.sort_by_key(by);
        assert_eq!(seen, routes);
    }

    /// Each is refused by itself: there is no such link, whoever asks.
    #[test]
    fn each_change_has_a_result_of_its_own() {
        let mut direct = Direct::open().unwrap();
        let none = 0x7fff_fff0;
        let address = Address {
            index: none,
            net: "192.0.2.1/24".parse().unwrap(),
            protocol: Protocol::STATIC,
            valid: None,
        };
        let changes: Vec<_> = (0..250)
            .map(|at| if at % 2 == 0 { Change::PutAddress(&address) } else { Change::SetUp(none) })
            .collect();
        let results = direct.change(&changes);
        assert_eq!(results.len(), changes.len());
        for (at, result) in results.into_iter().enumerate() {
            let text = result.unwrap_err().to_string();
            let expected = if at % 2 == 0 { "add address 192.0.2.1/24" } else { "set link" };
            assert!(text.starts_with(expected), "{text}");
        }
        // The socket is none the worse for it.
        assert!(direct.links().unwrap().iter().any(Link::loopback));
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let bytes: Vec<u8> = (0..200).collect();
        for length in 0..bytes.len() {
            messages(&bytes[..length]).for_each(drop);
        }
        assert_eq!(messages(&[0; 64]).count(), 0, "a message of no length ends the list");
    }
}
