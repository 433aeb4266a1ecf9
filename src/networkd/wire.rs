//! DHCPv4 messages as bytes: RFC 2131 §2, options of RFC 2132, RFC 3442, RFC 3396.
//!
//! [`Reply::decode`] reads bytes from the wire and never panics. It takes what it understands and
//! leaves the rest: one bad option costs that option, not the lease. (`dhcproto`, the crate of the
//! field, stops at the first option it dislikes and asserts on others in debug builds; the tests use
//! it as the other side.) Names are checked here, because they end up in `resolv.conf` and the
//! kernel's host name.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use orlop_netlink::{Ipv4Net, Mac};

use crate::names;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// DISCOVER, REQUEST, DECLINE or RELEASE.
    pub kind: RequestKind,
    /// Transaction id; the answer repeats it.
    pub xid: u32,
    /// Seconds since the client began to look for an address.
    pub secs: u16,
    /// Our hardware address.
    pub mac: Mac,
    /// The address we have and can be reached at; unspecified when we have none.
    pub ciaddr: Ipv4Addr,
    /// Option 50: the address we would like.
    pub address: Option<Ipv4Addr>,
    /// Option 54: the server whose offer we take.
    pub server: Option<Ipv4Addr>,
    /// Option 12: how we are called.
    pub host_name: Option<String>,
    /// Option 55, in this order of preference.
    pub wanted: Vec<u8>,
}

/// The kinds of message that we send (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// "Is there a server?"
    Discover = 1,
    /// "I take this address" or "I keep it".
    Request = 3,
    /// "Somebody else has the address that you gave me."
    Decline = 4,
    /// "I do not need it any more."
    Release = 7,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// OFFER, ACK or NAK.
    pub kind: ReplyKind,
    /// The transaction id of our request.
    pub xid: u32,
    /// Whom it is for.
    pub mac: Mac,
    /// `yiaddr`: the address given; unspecified in a NAK.
    pub address: Ipv4Addr,
    /// Option 54: who says it.
    pub server: Option<Ipv4Addr>,
    /// Option 51, in seconds; `u32::MAX` is for ever.
    pub lease_secs: Option<u32>,
    /// Option 58: T1, in seconds.
    pub renewal_secs: Option<u32>,
    /// Option 59: T2, in seconds.
    pub rebinding_secs: Option<u32>,
    /// Option 1 as a prefix length.
    pub prefix_len: Option<u8>,
    /// Option 3.
    pub routers: Vec<Ipv4Addr>,
    /// Option 121; a gateway `None` (0.0.0.0) means on the link. `None` when absent or malformed.
    pub classless_routes: Option<Vec<(Ipv4Net, Option<Ipv4Addr>)>>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 42.
    pub ntp: Vec<Ipv4Addr>,
    /// Option 12, when it is a name.
    pub host_name: Option<String>,
    /// Option 15, when it is a name.
    pub domain: Option<String>,
    /// Option 119: domains to look for short names in, best first.
    pub search: Vec<String>,
    /// Option 26, from [`MIN_MTU`] up.
    pub mtu: Option<u16>,
}

/// The kinds of message that a server answers with (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// "You may have this."
    Offer = 2,
    /// "It is yours."
    Ack = 5,
    /// "It is not."
    Nak = 6,
}

/// Server port (RFC 2131 §4.1).
pub const SERVER_PORT: u16 = 67;
/// Client port.
pub const CLIENT_PORT: u16 = 68;
/// The smallest MTU taken from a server: what every IPv4 host must be able to receive (RFC 791).
pub const MIN_MTU: u16 = 576;

/// Option codes (RFC 2132).
pub mod option {
    #![expect(missing_docs, reason = "the names are those of RFC 2132")]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DOMAIN_NAME_SERVER: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const INTERFACE_MTU: u8 = 26;
    pub const NTP_SERVERS: u8 = 42;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_IDENTIFIER: u8 = 54;
    pub const PARAMETER_REQUEST_LIST: u8 = 55;
    pub const MAX_MESSAGE_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const DOMAIN_SEARCH: u8 = 119;
    pub const CLASSLESS_ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Offsets in the fixed part.
const XID: usize = 4;
const YIADDR: usize = 16;
const CHADDR: usize = 28;
const SNAME: usize = 44;
const FILE: usize = 108;
const COOKIE: usize = 236;
const OPTIONS: usize = 240;
/// Some relays drop what is shorter than a BOOTP message (RFC 1542 §2.1).
const MIN_LENGTH: usize = 300;
/// What fits an Ethernet frame; we have a buffer for it.
const MAX_MESSAGE_SIZE: u16 = 1500;
/// More addresses or routes than this in one option are of no use to a node.
const MAX_ADDRESSES: usize = 8;
const MAX_ROUTES: usize = 64;
/// What resolvers of the C library read.
const MAX_SEARCH: usize = 6;

impl Request {
    /// The UDP payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut message = vec![0; OPTIONS];
        message[..3].copy_from_slice(&[BOOT_REQUEST, ETHERNET, 6]);
        message[XID..XID + 4].copy_from_slice(&self.xid.to_be_bytes());
        message[8..10].copy_from_slice(&self.secs.to_be_bytes());
        message[12..16].copy_from_slice(&self.ciaddr.octets());
        message[CHADDR..CHADDR + 6].copy_from_slice(&self.mac.0);
        message[COOKIE..OPTIONS].copy_from_slice(&MAGIC);

        put(&mut message, option::MESSAGE_TYPE, &[self.kind as u8]);
        if let Some(address) = self.address {
            put(&mut message, option::REQUESTED_ADDRESS, &address.octets());
        }
        if let Some(server) = self.server {
            put(&mut message, option::SERVER_IDENTIFIER, &server.octets());
        }
        // DECLINE and RELEASE want nothing back (RFC 2131 table 5).
        if matches!(self.kind, RequestKind::Discover | RequestKind::Request) {
            put(&mut message, option::MAX_MESSAGE_SIZE, &MAX_MESSAGE_SIZE.to_be_bytes());
            if let Some(name) = &self.host_name {
                put(&mut message, option::HOST_NAME, name.as_bytes());
            }
            put(&mut message, option::PARAMETER_REQUEST_LIST, &self.wanted);
        }
        message.push(option::END);
        message.resize(message.len().max(MIN_LENGTH), option::PAD);
        message
    }
}

fn put(message: &mut Vec<u8>, code: u8, value: &[u8]) {
    // What does not fit an option is cut off: names have at most 253 bytes, the list a dozen.
    let value = &value[..value.len().min(255)];
    message.extend([code, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
    message.extend(value);
}

impl Reply {
    /// Reads a UDP payload. `None` when it is not a server's answer over Ethernet.
    #[must_use]
    pub fn decode(message: &[u8]) -> Option<Self> {
        let fixed = message.get(..OPTIONS)?;
        if fixed[..3] != [BOOT_REPLY, ETHERNET, 6] || fixed[COOKIE..] != MAGIC {
            return None;
        }
        let options = Options::decode(message);
        let kind = match options.first::<1>(option::MESSAGE_TYPE)? {
            [2] => ReplyKind::Offer,
            [5] => ReplyKind::Ack,
            [6] => ReplyKind::Nak,
            _ => return None,
        };
        Some(Self {
            kind,
            xid: u32::from_be_bytes(*fixed[XID..].first_chunk()?),
            mac: Mac(*fixed[CHADDR..].first_chunk()?),
            address: Ipv4Addr::from(*fixed[YIADDR..].first_chunk::<4>()?),
            server: options.addresses(option::SERVER_IDENTIFIER).first().copied(),
            lease_secs: options.first(option::LEASE_TIME).map(u32::from_be_bytes),
            renewal_secs: options.first(option::RENEWAL_TIME).map(u32::from_be_bytes),
            rebinding_secs: options.first(option::REBINDING_TIME).map(u32::from_be_bytes),
            prefix_len: options.first(option::SUBNET_MASK).and_then(prefix_len),
            routers: options.addresses(option::ROUTER),
            classless_routes: options.get(option::CLASSLESS_ROUTES).and_then(classless_routes),
            dns: options.addresses(option::DOMAIN_NAME_SERVER),
            ntp: options.addresses(option::NTP_SERVERS),
            host_name: options.name(option::HOST_NAME),
            domain: options.name(option::DOMAIN_NAME),
            search: options.get(option::DOMAIN_SEARCH).map(names_in).unwrap_or_default(),
            mtu: options
                .first(option::INTERFACE_MTU)
                .map(u16::from_be_bytes)
                .filter(|mtu| *mtu >= MIN_MTU),
        })
    }
}

/// Whether an address can be that of one host: not 0.x, loopback, multicast, reserved or broadcast.
#[must_use]
pub fn of_a_host(address: Ipv4Addr) -> bool {
    !matches!(address.octets()[0], 0 | 127 | 224..)
}

/// The options of a message by code; parts of one option are joined (RFC 3396).
struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    fn decode(message: &[u8]) -> Self {
        let mut options = Self(BTreeMap::new());
        options.read(message.get(OPTIONS..).unwrap_or_default());
        // The fields for a boot file and a server name may hold more options (RFC 2132 §9.3).
        let overload = options.first::<1>(option::OVERLOAD).map_or(0, |[fields]| fields);
        if overload & 1 != 0 {
            options.read(message.get(FILE..COOKIE).unwrap_or_default());
        }
        if overload & 2 != 0 {
            options.read(message.get(SNAME..FILE).unwrap_or_default());
        }
        options
    }

    fn read(&mut self, mut area: &[u8]) {
        loop {
            area = match area {
                [option::PAD, rest @ ..] => rest,
                [option::END, ..] | [] | [_] => return,
                [code, length, rest @ ..] => {
                    let Some((value, rest)) = rest.split_at_checked((*length).into()) else {
                        return;
                    };
                    self.0.entry(*code).or_default().extend(value);
                    rest
                }
            }
        }
    }

    fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    /// The value, when it has exactly `N` bytes.
    fn first<const N: usize>(&self, code: u8) -> Option<[u8; N]> {
        self.get(code)?.try_into().ok()
    }

    fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let (addresses, _) = self.get(code).unwrap_or_default().as_chunks::<4>();
        let addresses = addresses.iter().map(|octets| Ipv4Addr::from(*octets));
        addresses.filter(|address| of_a_host(*address)).take(MAX_ADDRESSES).collect()
    }

    fn name(&self, code: u8) -> Option<String> {
        let text = std::str::from_utf8(self.get(code)?).ok()?;
        names::valid(text.trim_end_matches('\0'))
    }
}

fn prefix_len(mask: [u8; 4]) -> Option<u8> {
    let mask = u32::from_be_bytes(mask);
    let ones = mask.leading_ones();
    (ones > 0 && ones + mask.trailing_zeros() == 32).then(|| u8::try_from(ones).ok())?
}

/// RFC 3442: width, as many bytes of the destination as the width needs, gateway; repeated.
fn classless_routes(mut value: &[u8]) -> Option<Vec<(Ipv4Net, Option<Ipv4Addr>)>> {
    let mut routes = Vec::new();
    while let Some((width, rest)) = value.split_first() {
        let (significant, rest) = rest.split_at_checked(usize::from(*width).div_ceil(8))?;
        let (gateway, rest) = rest.split_first_chunk::<4>()?;
        let mut octets = [0; 4];
        octets.get_mut(..significant.len())?.copy_from_slice(significant);
        let destination = Ipv4Net::new(octets.into(), *width).ok()?.trunc();
        let gateway = Ipv4Addr::from(*gateway);
        if routes.len() < MAX_ROUTES && (gateway.is_unspecified() || of_a_host(gateway)) {
            routes.push((destination, Some(gateway).filter(|via| !via.is_unspecified())));
        }
        value = rest;
    }
    // An option without any route must not cost the router of option 3.
    (!routes.is_empty()).then_some(routes)
}

/// RFC 3397: names as in RFC 1035 §3.1, whose ends may point at earlier ones (§4.1.4). The list ends at
/// the first that is damaged.
pub(crate) fn names_in(value: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = 0;
    while at < value.len() && names.len() < MAX_SEARCH {
        let Some((name, next)) = compressed_name(value, at) else { break };
        names.extend(names::valid(&name));
        at = next;
    }
    names
}

/// The name that begins at `start`, and where the next one does.
fn compressed_name(value: &[u8], start: usize) -> Option<(String, usize)> {
    let (mut name, mut at, mut next) = (String::new(), start, None);
    loop {
        match *value.get(at)? {
            0 => return Some((name, next.unwrap_or(at + 1))),
            length @ 1..=63 => {
                let label = value.get(at + 1..)?.get(..length.into())?;
                if !name.is_empty() {
                    name.push('.');
                }
                // A dot within a label would pass for one between labels.
                name.push_str(std::str::from_utf8(label).ok().filter(|text| !text.contains('.'))?);
                at += 1 + usize::from(length);
            }
            high @ 0xc0.. => {
                let to = usize::from(high & 0x3f) << 8 | usize::from(*value.get(at + 1)?);
                next = next.or(Some(at + 2));
                // Only backwards, so that it ends.
                at = Some(to).filter(|to| *to < at)?;
            }
            _ => return None,
        }
        if name.len() > 253 {
            return None;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use dhcproto::v4::{self, DhcpOption, OptionCode};
    use dhcproto::{Decodable as _, Encodable as _};
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn ack(options: impl IntoIterator<Item = DhcpOption>) -> Vec<u8> {
        let mut message = v4::Message::default();
        message.set_opcode(v4::Opcode::BootReply).set_xid(7).set_chaddr(&MAC.0);
        message.set_yiaddr([10, 0, 2, 15]);
        message.opts_mut().insert(DhcpOption::MessageType(v4::MessageType::Ack));
        for option in options {
            message.opts_mut().insert(option);
        }
        message.to_vec().unwrap()
    }

    #[test]
    fn a_request_is_read_by_the_other_implementation() {
        let request = Request {
            kind: RequestKind::Request,
            xid: 0xdead_beef,
            secs: 3,
            mac: MAC,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            address: Some([10, 0, 2, 15].into()),
            server: Some([10, 0, 2, 2].into()),
            host_name: Some("node-1".to_owned()),
            wanted: vec![option::CLASSLESS_ROUTES, option::ROUTER],
        };
        let bytes = request.encode();
        assert_eq!(bytes.len(), MIN_LENGTH);
        let message = v4::Message::decode(&mut v4::Decoder::new(&bytes)).unwrap();
        assert_eq!((message.xid(), message.secs(), message.chaddr()), (0xdead_beef, 3, &MAC.0[..]));
        let option = |code| message.opts().get(code).cloned();
        assert_eq!(message.opts().msg_type(), Some(v4::MessageType::Request));
        assert_eq!(
            option(OptionCode::RequestedIpAddress),
            Some(DhcpOption::RequestedIpAddress([10, 0, 2, 15].into()))
        );
        assert_eq!(
            option(OptionCode::ServerIdentifier),
            Some(DhcpOption::ServerIdentifier([10, 0, 2, 2].into()))
        );
        assert_eq!(option(OptionCode::Hostname), Some(DhcpOption::Hostname("node-1".to_owned())));
        assert_eq!(
            option(OptionCode::ParameterRequestList),
            Some(DhcpOption::ParameterRequestList(vec![
                OptionCode::ClasslessStaticRoute,
                OptionCode::Router
            ]))
        );
    }

    #[test]
    fn an_answer_of_the_other_implementation_is_read() {
        let reply = Reply::decode(&ack([
            DhcpOption::ServerIdentifier([10, 0, 2, 2].into()),
            DhcpOption::AddressLeaseTime(3600),
            DhcpOption::Renewal(100),
            DhcpOption::Rebinding(200),
            DhcpOption::SubnetMask([255, 255, 255, 0].into()),
            DhcpOption::Router(vec![[10, 0, 2, 2].into()]),
            DhcpOption::DomainNameServer(vec![[10, 0, 2, 3].into(), [127, 0, 0, 1].into()]),
            DhcpOption::Hostname("node-1".to_owned()),
            DhcpOption::DomainName("example.org".to_owned()),
            DhcpOption::InterfaceMtu(1400),
            DhcpOption::ClasslessStaticRoute(vec![
                ("10.9.0.0/16".parse().unwrap(), [10, 0, 2, 9].into()),
                ("10.8.0.0/16".parse().unwrap(), [0, 0, 0, 0].into()),
            ]),
        ]))
        .unwrap();
        let expected = Reply {
            kind: ReplyKind::Ack,
            xid: 7,
            mac: MAC,
            address: [10, 0, 2, 15].into(),
            server: Some([10, 0, 2, 2].into()),
            lease_secs: Some(3600),
            renewal_secs: Some(100),
            rebinding_secs: Some(200),
            prefix_len: Some(24),
            routers: vec![[10, 0, 2, 2].into()],
            classless_routes: Some(vec![
                ("10.9.0.0/16".parse().unwrap(), Some([10, 0, 2, 9].into())),
                ("10.8.0.0/16".parse().unwrap(), None),
            ]),
            dns: vec![[10, 0, 2, 3].into()],
            ntp: vec![],
            host_name: Some("node-1".to_owned()),
            domain: Some("example.org".to_owned()),
            search: vec![],
            mtu: Some(1400),
        };
        assert_eq!(reply, expected);
    }

    #[test]
    fn names_that_would_write_lines_of_their_own_are_dropped() {
        let reply = Reply::decode(&ack([
            DhcpOption::Hostname("a\nb".to_owned()),
            DhcpOption::DomainName("x.org\nnameserver 6.6.6.6".to_owned()),
        ]))
        .unwrap();
        assert_eq!((reply.host_name, reply.domain), (None, None));
    }

    #[test]
    fn domains_to_search_are_read_with_their_pointers_and_without_loops() {
        let with = |value: &[u8]| {
            let mut bytes = ack([]);
            bytes.pop();
            bytes.extend([option::DOMAIN_SEARCH, u8::try_from(value.len()).unwrap()]);
            bytes.extend(value);
            bytes.push(option::END);
            Reply::decode(&bytes).unwrap().search
        };
        // RFC 3397 §2: "eng.apple.com", then "marketing" and a pointer to "apple.com".
        let list = b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04";
        assert_eq!(with(list), ["eng.apple.com", "marketing.apple.com"]);
        let none: [&str; 0] = [];
        assert_eq!(with(b"\xc0\x00"), none, "a pointer to itself");
        assert_eq!(with(b"\x01a\xc0\x00"), none, "a name that never ends");
        assert_eq!(with(b"\x03a b\x00\x01c\x00"), ["c"], "a name that is none is left out");
        assert_eq!(with(b"\x01a\x00\x05b"), ["a"], "what is cut off ends the list");
        let seven = b"\x01a\x00".repeat(7);
        assert_eq!(with(&seven).len(), MAX_SEARCH);
    }

    #[test]
    fn declining_and_releasing_asks_for_nothing() {
        for kind in [RequestKind::Decline, RequestKind::Release] {
            let request = Request {
                kind,
                xid: 1,
                secs: 0,
                mac: MAC,
                ciaddr: Ipv4Addr::UNSPECIFIED,
                address: Some([10, 0, 2, 15].into()),
                server: Some([10, 0, 2, 2].into()),
                host_name: Some("n1".to_owned()),
                wanted: vec![1, 3],
            };
            let bytes = request.encode();
            let message = v4::Message::decode(&mut v4::Decoder::new(&bytes)).unwrap();
            let has = |code| message.opts().get(code).is_some();
            assert_eq!(message.opts().msg_type().map(u8::from), Some(kind as u8));
            assert!(has(OptionCode::ServerIdentifier));
            assert!(!has(OptionCode::ParameterRequestList) && !has(OptionCode::MaxMessageSize));
        }
    }

    #[test]
    fn a_bad_option_costs_only_itself() {
        let mut bytes = ack([
            DhcpOption::SubnetMask([255, 0, 255, 0].into()),
            DhcpOption::InterfaceMtu(68),
            DhcpOption::AddressLeaseTime(60),
        ]);
        let end = bytes.len() - 1;
        // A host name that is no UTF-8, a route wider than an address, a client name too short.
        bytes.splice(end..end, [12, 1, 0xff, 121, 5, 33, 1, 2, 3, 4, 81, 1, 0, 54, 4, 10, 0, 2, 2]);
        let reply = Reply::decode(&bytes).unwrap();
        assert_eq!((reply.prefix_len, reply.mtu, reply.classless_routes), (None, None, None));
        assert_eq!((reply.host_name, reply.lease_secs), (None, Some(60)));
        assert_eq!(reply.server, Some([10, 0, 2, 2].into()));
    }

    #[test]
    fn parts_of_an_option_are_joined_and_overloaded_fields_are_read() {
        let mut bytes = ack([DhcpOption::OptionOverload(1)]);
        let end = bytes.len() - 1;
        bytes.splice(end..end, [15, 3, b'a', b'.', b'b']);
        bytes[FILE..FILE + 6].copy_from_slice(&[15, 3, b'.', b'c', b'd', 255]);
        assert_eq!(Reply::decode(&bytes).unwrap().domain.as_deref(), Some("a.b.cd"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = Reply::decode(&bytes);
        }

        #[test]
        fn never_panics_in_the_options(tail: Vec<u8>, at in 0usize..OPTIONS, byte: u8) {
            let mut bytes = ack([]);
            bytes.pop();
            bytes.extend(tail);
            bytes[at] = byte;
            let _ = Reply::decode(&bytes);
        }

        #[test]
        fn what_is_read_is_usable(tail: Vec<u8>) {
            let mut bytes = ack([]);
            bytes.pop();
            bytes.extend(tail);
            if let Some(reply) = Reply::decode(&bytes) {
                prop_assert!(reply.routers.iter().chain(&reply.dns).all(|a| of_a_host(*a)));
                prop_assert!(reply.mtu.is_none_or(|mtu| mtu >= MIN_MTU));
                prop_assert!(reply.prefix_len.is_none_or(|length| (1..=32).contains(&length)));
            }
        }
    }
}
