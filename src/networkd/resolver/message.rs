//! DNS messages (RFC 1035 §4, RFC 6891): what clients ask, what servers answer, and which of that counts.
//!
//! [`receive`] and [`answer_to`] read bytes from outside and never panic.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable as _;

use crate::names::HostEntry;

/// What is asked, as far as an answer depends on it. Letters of either case are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Name, type and class.
    pub query: Query,
    /// Signatures are wanted (RFC 3225).
    pub dnssec_ok: bool,
    /// The client checks them itself (RFC 4035 §3.2.2).
    pub checking_disabled: bool,
}

/// A question of a client, with what its answer must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What it wants to know.
    pub question: Question,
    id: u16,
    recursion_desired: bool,
    /// Whether it knows EDNS.
    edns: bool,
    /// The longest answer that it takes, in bytes.
    room: u16,
}

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A question for us to answer.
    Question(Asked),
    /// What cannot be answered: this is to be said instead.
    Wrong(Vec<u8>),
    /// No question at all.
    Nothing,
}

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In one datagram, which has only so much room.
    Udp,
    /// On a connection, after two bytes that say how long it is (RFC 1035 §4.2.2).
    Tcp,
}

/// What fits a datagram unless the client says more.
const SMALLEST: u16 = 512;
/// What passes every link unfragmented, told to servers and the most that clients get over UDP (the
/// advice of the DNS flag day 2020).
pub const DATAGRAM: u16 = 1232;
const HEADER: usize = 12;
/// How long answers of our own hold, in seconds.
const OWN_TTL: u32 = 60;

/// Reads what a client sent.
#[must_use]
pub fn receive(bytes: &[u8], way: Way) -> Received {
    let Ok(message) = Message::from_vec(bytes) else {
        // With a header, its sender can be told.
        return match bytes {
            [a, b, flags, ..] if bytes.len() >= HEADER && flags & 0x80 == 0 => wrong(
                Metadata::new(u16::from_be_bytes([*a, *b]), MessageType::Query, OpCode::Query),
                ResponseCode::FormErr,
            ),
            _ => Received::Nothing,
        };
    };
    let Metadata { id, message_type, op_code, .. } = message.metadata;
    if message_type == MessageType::Response {
        return Received::Nothing;
    }
    if op_code != OpCode::Query {
        return wrong(message.metadata, ResponseCode::NotImp);
    }
    let [query] = &message.queries[..] else {
        return wrong(message.metadata, ResponseCode::FormErr);
    };
    if query.query_class() != DNSClass::IN
        || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR | RecordType::OPT)
    {
        return wrong(message.metadata, ResponseCode::Refused);
    }
    let edns = message.edns.as_ref();
    if edns.is_some_and(|edns| edns.version() > 0) {
        return wrong(message.metadata, ResponseCode::BADVERS);
    }
    let datagram = edns.map_or(SMALLEST, |edns| edns.max_payload().clamp(SMALLEST, DATAGRAM));
    Received::Question(Asked {
        question: Question {
            query: query.clone(),
            dnssec_ok: edns.is_some_and(|edns| edns.flags().dnssec_ok),
            checking_disabled: message.metadata.checking_disabled,
        },
        id,
        recursion_desired: message.metadata.recursion_desired,
        edns: edns.is_some(),
        room: if way == Way::Udp { datagram } else { u16::MAX },
    })
}

fn wrong(request: Metadata, code: ResponseCode) -> Received {
    let mut answer = Message::new(request.id, MessageType::Response, request.op_code);
    answer.metadata.recursion_desired = request.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    if code == ResponseCode::BADVERS {
        answer.set_edns(Edns::new());
    }
    answer.to_vec().map_or(Received::Nothing, Received::Wrong)
}

impl Asked {
    /// The bytes that answer the client with what `found` says, cut short when they have no room.
    #[must_use]
    pub fn reply(&self, found: &Message) -> Vec<u8> {
        let mut answer = found.clone();
        // As the client wrote it: some compare letter by letter.
        answer.queries = vec![self.question.query.clone()];
        self.address(&mut answer);
        answer.metadata.truncation = false;
        let whole = answer.to_vec().unwrap_or_default();
        if !whole.is_empty() && whole.len() <= self.room.into() {
            return whole;
        }
        answer.answers.clear();
        answer.authorities.clear();
        answer.additionals.clear();
        answer.metadata.truncation = !whole.is_empty();
        if whole.is_empty() {
            answer.metadata.response_code = ResponseCode::ServFail;
        }
        answer.to_vec().unwrap_or_default()
    }

    fn address(&self, answer: &mut Message) {
        answer.metadata.id = self.id;
        answer.metadata.message_type = MessageType::Response;
        answer.metadata.authoritative = false;
        // Nobody here has checked it.
        answer.metadata.authentic_data = false;
        answer.metadata.recursion_desired = self.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.checking_disabled = self.question.checking_disabled;
        answer.signature = None;
        answer.edns = self.edns.then(|| {
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM).set_dnssec_ok(self.question.dnssec_ok);
            edns
        });
    }
}

impl Question {
    /// The bytes that ask a server, under this id.
    #[must_use]
    pub fn ask(&self, id: u16, with_edns: bool) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        if with_edns {
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM).set_dnssec_ok(self.dnssec_ok);
            message.set_edns(edns);
        }
        // What was read from bytes can be written.
        message.to_bytes().unwrap_or_default()
    }

    /// A message about it with nothing in it but this code.
    #[must_use]
    pub fn code(&self, code: ResponseCode) -> Message {
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        message
    }
}

/// The message in `bytes` when it answers `question` as asked under `id`.
#[must_use]
pub fn answer_to(question: &Question, id: u16, bytes: &[u8]) -> Option<Message> {
    // Before it is taken apart: most of what a guesser sends ends here.
    if bytes.get(..2)? != id.to_be_bytes() {
        return None;
    }
    let message = Message::from_vec(bytes).ok()?;
    let ours = message.metadata.message_type == MessageType::Response
        && message.metadata.op_code == OpCode::Query
        && message.queries == [question.query.clone()];
    ours.then_some(message)
}

/// Names that need no server: `localhost` (RFC 6761 §6.3), the node's own, the operator's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(BTreeMap<Name, Vec<IpAddr>>);

impl Hosts {
    /// From the lines of `/etc/hosts`.
    #[must_use]
    pub fn new(entries: &[HostEntry]) -> Self {
        let mut hosts = Self::default();
        for entry in entries {
            for name in &entry.names {
                let Ok(mut name) = Name::from_ascii(name) else { continue };
                name.set_fqdn(true);
                let addresses = hosts.0.entry(name).or_default();
                if !addresses.contains(&entry.address) {
                    addresses.push(entry.address);
                }
            }
        }
        hosts
    }

    /// The answer, when the name is one of these or the address is that of one.
    #[must_use]
    pub fn answer(&self, question: &Question) -> Option<Message> {
        let name = question.query.name();
        let kind = question.query.query_type();
        let data: Vec<RData> = if kind == RecordType::PTR {
            let net = name.parse_arpa_name().ok()?;
            let whole = net.prefix_len() == net.max_prefix_len();
            let has = |addresses: &Vec<IpAddr>| whole && addresses.contains(&net.addr());
            let names = self.0.iter().filter(|(_, addresses)| has(addresses));
            let names: Vec<_> = names.map(|(name, _)| RData::PTR(PTR(name.clone()))).collect();
            (!names.is_empty()).then_some(names)?
        } else {
            let addresses = match self.0.get(name) {
                Some(addresses) => addresses.clone(),
                None if name.is_localhost() => {
                    vec![[127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into()]
                }
                None => return None,
            };
            let of_kind = |address: IpAddr| match (address, kind) {
                (IpAddr::V4(v4), RecordType::A | RecordType::ANY) => Some(RData::A(A(v4))),
                (IpAddr::V6(v6), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(v6))),
                _ => None,
            };
            addresses.into_iter().filter_map(of_kind).collect()
        };
        let mut message = question.code(ResponseCode::NoError);
        message.answers =
            data.into_iter().map(|data| Record::from_rdata(name.clone(), OWN_TTL, data)).collect();
        Some(message)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn question(name: &str, kind: RecordType) -> Question {
        let query = Query::query(Name::from_ascii(name).unwrap(), kind);
        Question { query, dnssec_ok: false, checking_disabled: false }
    }

    /// What a client would send.
    pub(crate) fn asks(name: &str, kind: RecordType, id: u16, room: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(question(name, kind).query);
        if let Some(room) = room {
            let mut edns = Edns::new();
            edns.set_max_payload(room);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    pub(crate) fn address(last: u8) -> RData {
        RData::A(A([192, 0, 2, last].into()))
    }

    fn asked(bytes: &[u8], way: Way) -> Asked {
        match receive(bytes, way) {
            Received::Question(asked) => asked,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reply_has_the_id_and_the_letters_of_its_client() {
        let asked = asked(&asks("WwW.a.org.", RecordType::A, 77, None), Way::Udp);
        let mut found = question("www.A.org.", RecordType::A).code(ResponseCode::NoError);
        found.metadata.authoritative = true;
        found.metadata.authentic_data = true;
        found.set_edns(Edns::new());
        found.add_answer(Record::from_rdata(
            Name::from_ascii("www.a.org.").unwrap(),
            9,
            address(1),
        ));
        let reply = Message::from_vec(&asked.reply(&found)).unwrap();
        assert_eq!(reply.metadata.id, 77);
        assert_eq!(reply.queries[0].name().to_ascii(), "WwW.a.org.");
        assert_eq!(reply.answers.len(), 1);
        assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
        assert!(!reply.metadata.authoritative && !reply.metadata.authentic_data);
        assert_eq!(reply.edns, None, "the client does not know EDNS (RFC 6891 §7)");
    }

    #[test]
    fn what_has_no_room_is_cut_short_and_whole_on_a_connection() {
        let mut found = question("a.org.", RecordType::A).code(ResponseCode::NoError);
        for last in 0..60 {
            found.add_answer(Record::from_rdata(
                Name::from_ascii("a.org.").unwrap(),
                9,
                address(last),
            ));
        }
        for (room, way, whole) in [
            (None, Way::Udp, false),
            (Some(1232), Way::Udp, true),
            (Some(100), Way::Udp, false),
            (None, Way::Tcp, true),
        ] {
            let bytes = asked(&asks("a.org.", RecordType::A, 1, room), way).reply(&found);
            let reply = Message::from_vec(&bytes).unwrap();
            assert_eq!(
                (reply.metadata.truncation, reply.answers.len()),
                (!whole, if whole { 60 } else { 0 })
            );
            assert_eq!(reply.edns.is_some(), room.is_some());
            assert!(whole || bytes.len() <= 512);
        }
    }

    #[test]
    fn what_is_no_question_for_us_is_told_so_or_passed_over() {
        let code = |bytes: &[u8]| match receive(bytes, Way::Udp) {
            Received::Wrong(bytes) => {
                Some(Message::from_vec(&bytes).unwrap().metadata.response_code)
            }
            _ => None,
        };
        let good = asks("a.org.", RecordType::A, 1, None);
        assert_eq!(code(&good[..20]), Some(ResponseCode::FormErr), "cut off");
        assert_eq!(code(&good[..11]), None, "not even a header");
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(receive(&answer, Way::Udp), Received::Nothing, "two of us would never stop");
        let mut update = good.clone();
        update[2] = 5 << 3;
        assert!(code(&update).is_some_and(|code| code != ResponseCode::NoError));
        let transfer = asks("a.org.", RecordType::AXFR, 1, None);
        assert_eq!(code(&transfer), Some(ResponseCode::Refused));
        let mut chaos = good;
        *chaos.last_mut().unwrap() = 3;
        assert_eq!(code(&chaos), Some(ResponseCode::Refused));
    }

    #[test]
    fn only_what_answers_our_question_counts() {
        let asked = question("a.org.", RecordType::A);
        let answer = |question: &Question, id| {
            let mut message = question.code(ResponseCode::NoError);
            message.metadata.id = id;
            message.to_vec().unwrap()
        };
        assert!(answer_to(&asked, 7, &answer(&asked, 7)).is_some());
        assert!(answer_to(&asked, 7, &answer(&question("A.ORG.", RecordType::A), 7)).is_some());
        assert_eq!(answer_to(&asked, 7, &answer(&asked, 8)), None, "another id");
        assert_eq!(answer_to(&asked, 7, &answer(&question("b.org.", RecordType::A), 7)), None);
        assert_eq!(answer_to(&asked, 7, &answer(&question("a.org.", RecordType::AAAA), 7)), None);
        assert_eq!(answer_to(&asked, 7, &asked.ask(7, true)), None, "a question");
    }

    #[test]
    fn a_question_to_a_server_survives_its_bytes() {
        let asked = Question { dnssec_ok: true, ..question("a.org.", RecordType::SRV) };
        match receive(&asked.ask(9, true), Way::Udp) {
            Received::Question(read) => {
                assert_eq!((read.question, read.id, read.room), (asked, 9, DATAGRAM));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_of_hosts_need_no_server() {
        let entry = |address: &str, names: &[&str]| HostEntry {
            address: address.parse().unwrap(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let hosts = Hosts::new(&[
            entry("10.0.0.9", &["registry", "Registry.lan"]),
            entry("fd00::9", &["registry"]),
        ]);
        let found = |name, kind| {
            let message = hosts.answer(&question(name, kind))?;
            Some(message.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(found("REGISTRY.", RecordType::A).unwrap(), ["10.0.0.9"]);
        assert_eq!(found("registry.", RecordType::AAAA).unwrap(), ["fd00::9"]);
        assert_eq!(found("registry.lan.", RecordType::AAAA).unwrap(), [""; 0], "it has none");
        assert_eq!(found("registry.", RecordType::TXT).unwrap(), [""; 0]);
        assert_eq!(found("b.localhost.", RecordType::A).unwrap(), ["127.0.0.1"]);
        assert_eq!(found("9.0.0.10.in-addr.arpa.", RecordType::PTR).unwrap().len(), 2);
        assert_eq!(found("8.0.0.10.in-addr.arpa.", RecordType::PTR), None);
        assert_eq!(found("other.lan.", RecordType::A), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_answered_within_its_room(bytes: Vec<u8>, flags: u8) {
            let mut near = asks("a.org.", RecordType::A, 1, Some(4096));
            near[3] ^= flags;
            near.extend(&bytes);
            for bytes in [&bytes, &near] {
                if let Received::Question(asked) = receive(bytes, Way::Udp) {
                    let found = asked.question.code(ResponseCode::NoError);
                    let reply = asked.reply(&found);
                    prop_assert!(!reply.is_empty() && reply.len() <= DATAGRAM.into());
                }
                let _ = answer_to(&question("a.org.", RecordType::A), 1, bytes);
            }
        }
    }
}
