//! The resolver on loopback with dnsmasq as its server, and with some that play one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sched::{CloneFlags, setns};
use orlop_pki::{Authority, KeyKind, Leaf, Usage, tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket as Datagrams};
use tokio::time::timeout;

use crate::world::{LIMIT, RANGE, World, in_namespaces};

const RESOLVER: &str = "127.0.0.53:53";
/// The resolver answers within less, whatever its servers do.
const AGAIN: Duration = Duration::from_secs(10);
const NAMED: &str = "nameserver 127.0.0.53\n";

/// A question for addresses, under this id.
fn question(name: &str, id: u16) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let of = |record: &Record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    message.answers.iter().filter_map(of).collect()
}

/// Asks over UDP as any program does: again and again, because the resolver may just be restarted.
async fn ask(name: &str) -> Message {
    let socket = Datagrams::bind("127.0.0.1:0").await.unwrap();
    socket.connect(RESOLVER).await.unwrap();
    let asked = question(name, 4711).to_vec().unwrap();
    let mut buffer = [0; 2000];
    let answered = async {
        loop {
            // Refused for as long as nobody listens.
            let _ = socket.send(&asked).await;
            if let Ok(Ok(length)) = timeout(AGAIN, socket.recv(&mut buffer)).await {
                return Message::from_vec(&buffer[..length]).unwrap();
            }
        }
    };
    let answer = timeout(LIMIT, answered).await.expect("an answer");
    assert_eq!(answer.metadata.id, 4711);
    answer
}

/// Asks these one after the other on one connection.
async fn ask_on_a_connection(names: &[&str]) -> Vec<Message> {
    let mut stream = TcpStream::connect(RESOLVER).await.unwrap();
    let mut answers = Vec::new();
    for (id, name) in (1..).zip(names) {
        let bytes = question(name, id).to_vec().unwrap();
        stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    }
    for _ in names {
        let length = timeout(LIMIT, stream.read_u16()).await.unwrap().unwrap();
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await.unwrap();
        answers.push(Message::from_vec(&bytes).unwrap());
    }
    answers.sort_by_key(|answer| answer.metadata.id);
    answers
}

impl World {
    /// Waits until programs are told to ask the resolver.
    async fn resolver_is_named(&self) {
        let named = async {
            let mut poll = tokio::time::interval(Duration::from_millis(5));
            while !self.read("resolv.conf").starts_with(NAMED) {
                poll.tick().await;
            }
        };
        timeout(LIMIT, named).await.expect("resolv.conf names the resolver");
    }

    fn server_namespace(&self) -> File {
        File::open(format!("/run/netns/{}-server", self.name)).unwrap()
    }
}

#[test]
fn names_are_asked_once_remembered_and_known_by_extra_hosts() {
    in_namespaces("nwd-dns", async |mut world| {
        let options = [
            "--port=53",
            "--no-resolv",
            "--no-hosts",
            "--local-ttl=600",
            "--log-queries",
            "--address=/a.test/192.0.2.1",
            "--host-record=many.test,192.0.2.2",
            "--dhcp-option=option:dns-server,10.77.0.1",
        ];
        world.serve(RANGE, &options);
        let config = "\
resolver: {enabled: true}
searchDomains: [b.test]
extraHostEntries: [{ip: 10.77.0.9, aliases: [registry]}]
";
        let node = world.start("", config);
        world.resolver_is_named().await;
        assert_eq!(world.read("resolv.conf"), format!("{NAMED}search b.test\n"));
        world.address_in("eth0", 100..=109).await;
        // Before the lease there are only servers that this network does not reach.
        let known =
            async { while addresses(&ask("a.test.").await) != [Ipv4Addr::new(192, 0, 2, 1)] {} };
        timeout(LIMIT, known).await.expect("an answer");
        for _ in 0..3 {
            assert_eq!(addresses(&ask("A.test.").await), [Ipv4Addr::new(192, 0, 2, 1)]);
        }
        let server = world.server.as_ref().unwrap();
        server.said("query[A] a.test", 1).await;
        assert!(!server.seen("query[A] a.test", 2), "asked again");
        assert_eq!(addresses(&ask("registry.").await), [Ipv4Addr::new(10, 77, 0, 9)]);
        assert_eq!(addresses(&ask("localhost.").await), [Ipv4Addr::LOCALHOST]);
        assert_eq!(ask("c.test.").await.metadata.response_code, ResponseCode::Refused);
        let answers = ask_on_a_connection(&["many.test.", "a.test.", "registry."]).await;
        let found: Vec<_> = answers.iter().map(addresses).collect();
        let expected = [[192, 0, 2, 2], [192, 0, 2, 1], [10, 77, 0, 9]];
        let expected = expected.map(|octets| vec![Ipv4Addr::from(octets)]);
        assert_eq!(found, expected);
        node.stop().await;
    });
}

/// A server's answer to what it was asked.
fn answer(question: &[u8], last: u8) -> Message {
    let mut answer = Message::from_vec(question).unwrap();
    answer.metadata.message_type = MessageType::Response;
    answer.edns = None;
    let name = answer.queries[0].name().clone();
    let data = RData::A(A([192, 0, 2, last].into()));
    answer.answers.push(Record::from_rdata(name, 600, data));
    answer
}

/// A server that answers each question with lies, the most that fits a datagram of them, before the
/// truth; what is asked for `long.` it answers with as much as needs a connection.
fn liar(namespace: File) {
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
    let udp = UdpSocket::bind("10.77.0.1:53").unwrap();
    let tcp = TcpListener::bind("10.77.0.1:53").unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut question).unwrap();
            let mut long = answer(&question, 1);
            let name = long.queries[0].name().clone();
            for last in 2..250 {
                let data = RData::A(A([192, 0, 2, last].into()));
                long.answers.push(Record::from_rdata(name.clone(), 600, data));
            }
            let bytes = long.to_vec().unwrap();
            let length = u16::try_from(bytes.len()).unwrap();
            stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).unwrap();
        }
    });
    let mut buffer = [0; 2000];
    loop {
        let (length, from) = udp.recv_from(&mut buffer).unwrap();
        let question = &buffer[..length];
        let say = |bytes: &[u8]| udp.send_to(bytes, from).unwrap();
        let truth = answer(question, 1);
        let mut other_id = answer(question, 66);
        other_id.metadata.id ^= 1;
        say(&other_id.to_vec().unwrap());
        let mut other_name = answer(question, 66);
        other_name.queries[0].set_name(Name::from_ascii("other.test.").unwrap());
        say(&other_name.to_vec().unwrap());
        say(&vec![0xc0; 9000]);
        say(&[&question[..2], &[0xff; 600]].concat());
        say(&[]);
        if truth.queries[0].name().to_ascii() == "long." {
            let mut cut = truth.clone();
            cut.answers.clear();
            cut.metadata.truncation = true;
            say(&cut.to_vec().unwrap());
        } else {
            say(&truth.to_vec().unwrap());
        }
    }
}

#[test]
fn a_lying_server_is_believed_only_what_answers_the_question() {
    in_namespaces("nwd-dns-liar", async |mut world| {
        let namespace = world.server_namespace();
        // It ends with the process.
        std::thread::spawn(move || liar(namespace));
        world.serve(RANGE, &["--dhcp-option=option:dns-server,10.77.0.1"]);
        let node = world.start("", "resolver: {enabled: true}\n");
        world.address_in("eth0", 100..=109).await;
        world.resolver_is_named().await;
        let truth = async { while addresses(&ask("a.test.").await).is_empty() {} };
        timeout(LIMIT, truth).await.expect("an answer");
        for name in ["a.test.", "b.test.", "c.test."] {
            assert_eq!(addresses(&ask(name).await), [Ipv4Addr::new(192, 0, 2, 1)], "{name}");
        }
        let cut = ask("long.").await;
        assert!(cut.metadata.truncation && cut.answers.is_empty(), "no room in 512 bytes");
        let whole = ask_on_a_connection(&["long."]).await;
        assert_eq!(addresses(&whole[0]).len(), 249);
        node.stop().await;
    });
}

/// Speaks TLS on port 853, with a certificate for this name, and says of everything that it is
/// 192.0.2.`last`.
fn over_tls(namespace: File, config: Arc<rustls::ServerConfig>, last: u8) {
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
    let listener = TcpListener::bind("10.77.0.1:853").unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = rustls::Stream::new(&mut tls, &mut stream);
        loop {
            let mut length = [0; 2];
            // A client that does not trust us, or needs us no longer.
            if tls.read_exact(&mut length).is_err() {
                break;
            }
            let mut question = vec![0; u16::from_be_bytes(length).into()];
            tls.read_exact(&mut question).unwrap();
            let bytes = answer(&question, last).to_vec().unwrap();
            let length = u16::try_from(bytes.len()).unwrap();
            tls.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).unwrap();
        }
    }
}

#[test]
fn over_tls_only_a_server_with_the_right_name_is_believed() {
    in_namespaces("nwd-dns-tls", async |mut world| {
        let lifetime = Duration::from_secs(3600);
        let now = SystemTime::now();
        let authority = Authority::generate("dns", KeyKind::P256, lifetime, now).unwrap();
        let pair = authority
            .issue(
                &Leaf {
                    common_name: "dns.test".to_owned(),
                    organizations: vec![],
                    usage: Usage::Server,
                    dns: vec!["dns.test".to_owned()],
                    ips: vec![],
                    lifetime,
                },
                now,
            )
            .unwrap();
        let config = tls::asking_server_config(&pair.crt, pair.key.expose()).unwrap();
        let namespace = world.server_namespace();
        // It ends with the process.
        std::thread::spawn(move || over_tls(namespace, config, 7));
        // What must not be asked, because it is in clear text, would say otherwise.
        let options = ["--port=53", "--no-resolv", "--log-queries", "--address=/a.test/192.0.2.66"];
        world.serve(RANGE, &options);
        let ca = base64(authority.pair().crt.as_bytes());
        let start = |world: &mut World, name: &str| {
            let server = format!("{{address: 10.77.0.1, name: {name}, ca: {ca}}}");
            world.start("", &format!("resolver: {{enabled: true, tls: [{server}]}}\n"))
        };
        let node = start(&mut world, "dns.test");
        world.address_in("eth0", 100..=109).await;
        world.resolver_is_named().await;
        let truth =
            async { while addresses(&ask("a.test.").await) != [Ipv4Addr::new(192, 0, 2, 7)] {} };
        timeout(LIMIT, truth).await.expect("an answer");
        let names = ["b.test.", "c.test.", "d.test."];
        for answer in ask_on_a_connection(&names).await {
            assert_eq!(addresses(&answer), [Ipv4Addr::new(192, 0, 2, 7)]);
        }
        node.stop().await;

        let node = start(&mut world, "other.test");
        world.address_in("eth0", 100..=109).await;
        world.ready().await;
        let refused = ask("e.test.").await;
        assert_eq!(refused.metadata.response_code, ResponseCode::ServFail);
        assert!(!world.server.as_ref().unwrap().seen("query[A]", 1), "asked in clear text");
        node.stop().await;
    });
}

/// RFC 4648 §4, which the configuration wants.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut three = [0; 4];
        three[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(three);
        for place in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap();
            text.push(if place <= group.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    text
}
