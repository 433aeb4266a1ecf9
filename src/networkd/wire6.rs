//! DHCPv6 messages as bytes, RFC 8415 §8 and §21, RFC 3646.
//!
//! [`Answer::decode`] reads bytes from the wire and never panics; as for DHCPv4, a bad option costs that
//! option. One address is asked for on each link.

use std::net::Ipv6Addr;

use orlop_netlink::Mac;

use crate::advertisement;
use crate::wire::names_in;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// SOLICIT, REQUEST, …
    pub kind: AskKind,
    /// Transaction id, 24 bits; the answer repeats it.
    pub xid: u32,
    /// Our hardware address, of which client and association are called.
    pub mac: Mac,
    /// The server that is meant, as it calls itself; `None`: any.
    pub server: Option<Vec<u8>>,
    /// The address that it is about.
    pub address: Option<Ipv6Addr>,
    /// Hundredths of a second since the client began to ask.
    pub elapsed: u16,
}

/// The kinds of message that we send (RFC 8415 §7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskKind {
    /// "Is there a server?"
    Solicit = 1,
    /// "I take this address."
    Request = 3,
    /// "Does this address belong on this link?"
    Confirm = 4,
    /// "I keep it", to the server that gave it.
    Renew = 5,
    /// "I keep it", to any.
    Rebind = 6,
    /// "I do not need it any more."
    Release = 8,
    /// "Somebody else has it."
    Decline = 9,
    /// "What else do you know?"
    Information = 11,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// ADVERTISE or REPLY.
    pub kind: AnswerKind,
    /// The transaction id of our message.
    pub xid: u32,
    /// Who says it, as it calls itself: 1..=130 bytes.
    pub server: Vec<u8>,
    /// 0..=255: higher is better.
    pub preference: u8,
    /// Whether all went well (option 13, of the message and of the address).
    pub success: bool,
    /// The address is ours without another question (option 14).
    pub rapid: bool,
    /// The address given.
    pub address: Option<Given>,
    /// Option 23.
    pub dns: Vec<Ipv6Addr>,
    /// Option 24.
    pub search: Vec<String>,
    /// Time servers, as addresses or names: option 56 (RFC 5908), else option 31 (RFC 4075).
    pub ntp: Vec<String>,
    /// Option 32, in seconds.
    pub refresh_secs: Option<u32>,
    /// How seldom to ask when nobody answers, in seconds (option 82, RFC 7083).
    pub solicit_max_secs: Option<u32>,
    /// The same for other settings (option 83).
    pub information_max_secs: Option<u32>,
}

/// An address with its times, in seconds; `u32::MAX` is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// The address.
    pub address: Ipv6Addr,
    /// When to ask its server again; 0 leaves that to us.
    pub t1: u32,
    /// When to ask any server.
    pub t2: u32,
    /// How long it holds.
    pub valid: u32,
}

/// The kinds of message that a server answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    /// "You may have this."
    Advertise = 2,
    /// "It is yours", or what else was asked for.
    Reply = 7,
}

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
const OPTION_REQUEST: u16 = 6;
const PREFERENCE: u16 = 7;
const ELAPSED_TIME: u16 = 8;
const STATUS_CODE: u16 = 13;
const RAPID_COMMIT: u16 = 14;
const DNS_SERVERS: u16 = 23;
const DOMAIN_LIST: u16 = 24;
const SNTP_SERVERS: u16 = 31;
const INFORMATION_REFRESH: u16 = 32;
const NTP_SERVER: u16 = 56;
const SOL_MAX_RT: u16 = 82;
const INF_MAX_RT: u16 = 83;
/// RFC 8415 §11: a DUID has at most 128 bytes beside its type.
const MAX_DUID: usize = 130;
const MAX_RESOLVERS: usize = 8;
/// What options 82 and 83 may say (RFC 8415 §21.24).
const MAX_SECS: std::ops::RangeInclusive<u32> = 60..=86400;
const MAX_TIME_SERVERS: usize = 8;

/// DUID-LL of RFC 8415 §11.4: the node is known by the link's hardware address.
fn duid(mac: Mac) -> [u8; 10] {
    let mut duid = [0, 3, 0, 1, 0, 0, 0, 0, 0, 0];
    duid[4..].copy_from_slice(&mac.0);
    duid
}

/// What an association is called: the same after any restart.
fn iaid(mac: Mac) -> [u8; 4] {
    let [_, _, a, b, c, d] = mac.0;
    [a, b, c, d]
}

impl Ask {
    /// The UDP payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let [_, xid @ ..] = self.xid.to_be_bytes();
        let mut message = vec![self.kind as u8];
        message.extend(xid);
        put(&mut message, CLIENT_ID, &duid(self.mac));
        if let Some(server) = &self.server {
            put(&mut message, SERVER_ID, server);
        }
        put(&mut message, ELAPSED_TIME, &self.elapsed.to_be_bytes());
        if self.kind != AskKind::Information {
            let mut association = iaid(self.mac).to_vec();
            association.extend([0; 8]);
            if let Some(address) = self.address {
                // Which times we would like, we leave to the server.
                let mut value = address.octets().to_vec();
                value.extend([0; 8]);
                put(&mut association, IA_ADDRESS, &value);
            }
            put(&mut message, IA_NA, &association);
        }
        if self.kind == AskKind::Solicit {
            put(&mut message, RAPID_COMMIT, &[]);
        }
        let mut wanted = vec![DNS_SERVERS, DOMAIN_LIST, SNTP_SERVERS, NTP_SERVER];
        match self.kind {
            AskKind::Release | AskKind::Decline | AskKind::Confirm => wanted.clear(),
            AskKind::Information => wanted.extend([INFORMATION_REFRESH, INF_MAX_RT]),
            _ => wanted.push(SOL_MAX_RT),
        }
        if !wanted.is_empty() {
            let codes: Vec<u8> = wanted.iter().flat_map(|code| code.to_be_bytes()).collect();
            put(&mut message, OPTION_REQUEST, &codes);
        }
        message
    }
}

fn put(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    message.extend(code.to_be_bytes());
    // All of ours are short: a server's name has at most MAX_DUID bytes.
    message.extend(u16::try_from(value.len()).unwrap_or_default().to_be_bytes());
    message.extend(value);
}

impl Answer {
    /// Reads a UDP payload. `None` when it is no server's answer to the client with this address.
    #[must_use]
    pub fn decode(message: &[u8], mac: Mac) -> Option<Self> {
        let (&[kind, a, b, c], options) = message.split_first_chunk::<4>()?;
        let kind = match kind {
            2 => AnswerKind::Advertise,
            7 => AnswerKind::Reply,
            _ => return None,
        };
        let mut answer = Self {
            kind,
            xid: u32::from_be_bytes([0, a, b, c]),
            server: Vec::new(),
            preference: 0,
            success: true,
            rapid: false,
            address: None,
            dns: Vec::new(),
            search: Vec::new(),
            ntp: Vec::new(),
            refresh_secs: None,
            solicit_max_secs: None,
            information_max_secs: None,
        };
        let number = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
        let mut for_us = false;
        let (mut sntp, mut ntp) = (Vec::new(), Vec::new());
        for (code, value) in options_of(options) {
            match code {
                CLIENT_ID => for_us = value == duid(mac),
                SERVER_ID if (1..=MAX_DUID).contains(&value.len()) => {
                    answer.server = value.to_vec();
                }
                IA_NA => answer.association(value, mac),
                PREFERENCE => answer.preference = value.first().copied().unwrap_or_default(),
                STATUS_CODE => answer.success &= succeeded(value),
                DNS_SERVERS => {
                    answer.dns = hosts_in(value).take(MAX_RESOLVERS).collect();
                }
                SNTP_SERVERS => sntp = hosts_in(value).map(|at| at.to_string()).collect(),
                // Each time it comes it holds one.
                NTP_SERVER => ntp.extend(options_of(value).find_map(time_server)),
                DOMAIN_LIST => answer.search = names_in(value),
                RAPID_COMMIT => answer.rapid = true,
                INFORMATION_REFRESH => answer.refresh_secs = number(value),
                SOL_MAX_RT => {
                    answer.solicit_max_secs = number(value).filter(|secs| MAX_SECS.contains(secs));
                }
                INF_MAX_RT => {
                    answer.information_max_secs =
                        number(value).filter(|secs| MAX_SECS.contains(secs));
                }
                _ => {}
            }
        }
        answer.ntp = if ntp.is_empty() { sntp } else { ntp };
        answer.ntp.truncate(MAX_TIME_SERVERS);
        (for_us && !answer.server.is_empty()).then_some(answer)
    }

    fn association(&mut self, value: &[u8], mac: Mac) {
        let Some((head, options)) = value.split_first_chunk::<12>() else { return };
        if head[..4] != iaid(mac) {
            return;
        }
        let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |four| u32::from_be_bytes(*four));
        let (t1, t2) = (number(&head[4..]), number(&head[8..]));
        for (code, value) in options_of(options) {
            match (code, value.split_first_chunk::<24>()) {
                (STATUS_CODE, _) => self.success &= succeeded(value),
                (IA_ADDRESS, Some((head, options))) if self.address.is_none() => {
                    let failed = |(code, value)| code == STATUS_CODE && !succeeded(value);
                    if options_of(options).any(failed) {
                        continue;
                    }
                    let (octets, times) = head.split_at(16);
                    let address = octets.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets));
                    let (preferred, valid) = (number(times), number(&times[4..]));
                    // RFC 8415 §21.6: what is preferred for longer than it holds makes no sense.
                    let usable = address.filter(|address| advertisement::of_a_host(*address));
                    self.address = usable
                        .filter(|_| valid > 0 && preferred <= valid)
                        .map(|address| Given { address, t1, t2, valid });
                }
                _ => {}
            }
        }
    }
}

/// Addresses that a host can have.
fn hosts_in(value: &[u8]) -> impl Iterator<Item = Ipv6Addr> {
    let (addresses, _) = value.as_chunks::<16>();
    let addresses = addresses.iter().map(|bytes| Ipv6Addr::from(*bytes));
    addresses.filter(|address| advertisement::of_a_host(*address))
}

/// A suboption of option 56 (RFC 5908 §4): an address, or a name. Who would only be heard by multicast
/// is not asked.
fn time_server((code, value): (u16, &[u8])) -> Option<String> {
    match code {
        1 => hosts_in(value).next().map(|at| at.to_string()),
        3 => names_in(value).into_iter().next(),
        _ => None,
    }
}

fn succeeded(status: &[u8]) -> bool {
    status.first_chunk::<2>().is_some_and(|code| *code == [0, 0])
}

/// Options until one does not fit.
fn options_of(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (&[a, b, c, d], rest) = bytes.split_first_chunk::<4>()?;
        let length = u16::from_be_bytes([c, d]);
        let (value, rest) = rest.split_at_checked(length.into())?;
        bytes = rest;
        Some((u16::from_be_bytes([a, b]), value))
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use dhcproto::v6::{
        self, DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, OptionCode,
    };
    use dhcproto::{Decodable as _, Decoder, Encodable as _};
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn reply(options: impl IntoIterator<Item = DhcpOption>) -> Vec<u8> {
        let mut message = Message::new_with_id(MessageType::Reply, [1, 2, 3]);
        message.opts_mut().insert(DhcpOption::ClientId(duid(MAC).to_vec()));
        message.opts_mut().insert(DhcpOption::ServerId(vec![0, 3, 0, 1, 9]));
        for option in options {
            message.opts_mut().insert(option);
        }
        message.to_vec().unwrap()
    }

    fn association(address: &str, preferred_life: u32, valid_life: u32) -> DhcpOption {
        let mut opts = DhcpOptions::new();
        let addr = address.parse().unwrap();
        let address = IAAddr { addr, preferred_life, valid_life, opts: DhcpOptions::new() };
        opts.insert(DhcpOption::IAAddr(address));
        DhcpOption::IANA(IANA { id: u32::from_be_bytes(iaid(MAC)), t1: 100, t2: 200, opts })
    }

    #[test]
    fn a_message_is_read_by_the_other_implementation() {
        let address = Some("fd00::5".parse().unwrap());
        let server = Some(vec![0, 3, 0, 1, 9]);
        let ask = Ask {
            kind: AskKind::Request,
            xid: 0x0001_0203,
            mac: MAC,
            server,
            address,
            elapsed: 150,
        };
        let bytes = ask.encode();
        let message = Message::decode(&mut Decoder::new(&bytes)).unwrap();
        assert_eq!((message.msg_type(), message.xid()), (MessageType::Request, [1, 2, 3]));
        let option = |code| message.opts().get(code).cloned();
        assert_eq!(option(OptionCode::ElapsedTime), Some(DhcpOption::ElapsedTime(150)));
        assert_eq!(option(OptionCode::ClientId), Some(DhcpOption::ClientId(duid(MAC).to_vec())));
        let Some(DhcpOption::IANA(association)) = option(OptionCode::IANA) else {
            panic!("no IA_NA")
        };
        let Some(DhcpOption::IAAddr(inner)) = association.opts.get(OptionCode::IAAddr) else {
            panic!("no address")
        };
        assert_eq!(Some(inner.addr), address);
        for kind in [AskKind::Confirm, AskKind::Decline] {
            let bytes = Ask { kind, ..ask.clone() }.encode();
            let message = Message::decode(&mut Decoder::new(&bytes)).unwrap();
            assert_eq!(u8::from(message.msg_type()), kind as u8);
            assert!(message.opts().get(OptionCode::IANA).is_some());
            assert!(message.opts().get(OptionCode::ORO).is_none(), "it asks for nothing else");
        }
        let solicit = Ask { kind: AskKind::Solicit, server: None, address: None, ..ask.clone() };
        let bytes = solicit.encode();
        let message = Message::decode(&mut Decoder::new(&bytes)).unwrap();
        assert!(message.opts().get(OptionCode::RapidCommit).is_some());
        let information = Ask { kind: AskKind::Information, server: None, address: None, ..ask };
        let bytes = information.encode();
        let message = v6::Message::decode(&mut Decoder::new(&bytes)).unwrap();
        assert!(message.opts().get(OptionCode::IANA).is_none(), "RFC 8415 §18.2.6");
    }

    #[test]
    fn time_servers_are_addresses_or_names_and_the_newer_option_wins() {
        let [one, two] = ["fd00::7b", "fd00::7c"].map(|text| text.parse::<Ipv6Addr>().unwrap());
        let old = [&[0, 31, 0, 48][..], &one.octets(), &two.octets(), &[0; 16]].concat();
        let new = [&[0, 56, 0, 20, 0, 1, 0, 16][..], &two.octets()].concat();
        let name = b"\0\x38\0\x14\0\x03\0\x10\x03ntp\x07example\x02eu\0";
        let multicast = [&[0, 56, 0, 20, 0, 2, 0, 16][..], &[0xff; 16]].concat();
        let read = |options: &[&[u8]]| {
            let bytes = [&reply([])[..], &options.concat()].concat();
            Answer::decode(&bytes, MAC).unwrap().ntp
        };
        assert_eq!(read(&[&old]), ["fd00::7b", "fd00::7c"]);
        assert_eq!(read(&[&new, &old, name]), ["fd00::7c", "ntp.example.eu"]);
        assert_eq!(read(&[&multicast, &[0, 56, 0, 2, 0, 1]]), Vec::<String>::new());
        assert_eq!(read(&[&[&new[..]; 20].concat()]).len(), MAX_TIME_SERVERS);
    }

    #[test]
    fn an_answer_of_the_other_implementation_is_read() {
        let dns = vec!["fd00::53".parse().unwrap(), "fe80::1".parse().unwrap()];
        let bytes = reply([association("fd00::5", 300, 600), DhcpOption::DomainNameServers(dns)]);
        let answer = Answer::decode(&bytes, MAC).unwrap();
        let address = "fd00::5".parse().unwrap();
        assert_eq!((answer.kind, answer.xid), (AnswerKind::Reply, 0x0001_0203));
        assert_eq!(answer.address, Some(Given { address, t1: 100, t2: 200, valid: 600 }));
        assert_eq!(answer.dns, ["fd00::53".parse::<Ipv6Addr>().unwrap()]);
        assert!(answer.success);
        assert_eq!(Answer::decode(&bytes, Mac([2, 0, 0, 0, 0, 2])), None, "for somebody else");
    }

    #[test]
    fn what_makes_no_sense_is_no_address() {
        for bad in [
            association("fd00::5", 700, 600),
            association("fd00::5", 0, 0),
            association("ff02::1", 300, 600),
            association("fe80::5", 300, 600),
        ] {
            assert_eq!(Answer::decode(&reply([bad]), MAC).unwrap().address, None);
        }
        let mut refused = reply([]);
        refused.extend([0, 13, 0, 2, 0, 2]);
        assert!(!Answer::decode(&refused, MAC).unwrap().success, "NoAddrsAvail");
        for (secs, taken) in [(59u32, None), (60, Some(60)), (86400, Some(86400)), (86401, None)] {
            let mut bytes = reply([]);
            bytes.extend([0, 14, 0, 0, 0, 82, 0, 4]);
            bytes.extend(secs.to_be_bytes());
            let answer = Answer::decode(&bytes, MAC).unwrap();
            assert_eq!((answer.rapid, answer.solicit_max_secs), (true, taken));
        }
    }

    proptest! {
        #[test]
        fn never_panics(tail: Vec<u8>) {
            let mut bytes = reply([association("fd00::5", 300, 600)]);
            bytes.extend(&tail);
            let _ = Answer::decode(&bytes, MAC);
            let _ = Answer::decode(&tail, MAC);
        }
    }
}
