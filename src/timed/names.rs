//! Addresses of servers: `/etc/hosts`, then the resolvers of `/etc/resolv.conf`, both read anew each
//! time because networkd rewrites them. A static binary has no `getaddrinfo` to ask.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Where resolvers listen.
const PORT: u16 = 53;
/// How long one resolver is waited for.
const LIMIT: Duration = Duration::from_secs(3);
/// An answer over UDP without EDNS is no longer than 512 bytes; some are all the same.
const LONGEST: usize = 4096;
/// Resolvers that are asked (`resolv.conf(5)`).
const RESOLVERS: usize = 3;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0:?} is no DNS name")]
    Name(String),
    #[error("read {}", .0.display())]
    File(PathBuf, #[source] io::Error),
    #[error("no resolver in {}: the network gave none yet", .0.display())]
    NoResolver(PathBuf),
    #[error("ask the resolver {0}")]
    Ask(SocketAddr, #[source] io::Error),
    #[error("the resolver {0} does not answer")]
    Silent(SocketAddr),
    #[error("the resolver {0} says {1}")]
    Refused(SocketAddr, ResponseCode),
    #[error("{0:?} has no address")]
    NoAddress(String),
    #[error("get random bytes")]
    Random,
}

/// Where names are looked up.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// `/etc/hosts`.
    pub(crate) hosts: PathBuf,
    /// `/etc/resolv.conf`.
    pub(crate) resolv_conf: PathBuf,
}

impl Names {
    /// The addresses of `host`, IPv4 first; an address is its own.
    ///
    /// # Errors
    /// When it has none, or nobody says so.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, Error> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let read = |path: &PathBuf| match std::fs::read_to_string(path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(Error::File(path.clone(), error)),
        };
        let known = in_hosts(&read(&self.hosts)?, host);
        if !known.is_empty() {
            return Ok(known);
        }
        let resolvers = resolvers(&read(&self.resolv_conf)?);
        self.look_up(host, &resolvers).await
    }

    async fn look_up(&self, host: &str, resolvers: &[SocketAddr]) -> Result<Vec<IpAddr>, Error> {
        let mut last = Error::NoResolver(self.resolv_conf.clone());
        for resolver in resolvers {
            // Each family by itself: one that fails does not hide the other.
            let (v4, v6) = tokio::join!(
                ask(*resolver, host, RecordType::A),
                ask(*resolver, host, RecordType::AAAA),
            );
            match (v4, v6) {
                (Err(error), Err(_)) => last = error,
                (v4, v6) => {
                    let found: Vec<_> = [v4, v6].into_iter().flatten().flatten().collect();
                    if !found.is_empty() {
                        return Ok(found);
                    }
                    last = Error::NoAddress(host.to_owned());
                }
            }
        }
        Err(last)
    }
}

/// Asks one resolver for one kind of address.
async fn ask(resolver: SocketAddr, host: &str, kind: RecordType) -> Result<Vec<IpAddr>, Error> {
    let question = Question::new(host, kind)?;
    let failed = |error| Error::Ask(resolver, error);
    let exchange = async {
        let answer = over_udp(resolver, &question).await.map_err(failed)?;
        if answer.metadata.truncation {
            return over_tcp(resolver, &question).await.map_err(failed);
        }
        Ok(answer)
    };
    let answer = timeout(LIMIT, exchange).await.map_err(|_| Error::Silent(resolver))??;
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(addresses(&answer)),
        code => Err(Error::Refused(resolver, code)),
    }
}

/// What is asked, and how an answer to it is known.
struct Question {
    id: u16,
    query: Query,
    bytes: Vec<u8>,
}

impl Question {
    fn new(host: &str, kind: RecordType) -> Result<Self, Error> {
        let wrong = || Error::Name(host.to_owned());
        let mut name = Name::from_ascii(host).map_err(|_| wrong())?;
        name.set_fqdn(true);
        let mut id = [0; 2];
        SystemRandom::new().fill(&mut id).map_err(|_| Error::Random)?;
        let id = u16::from_be_bytes(id);
        let query = Query::query(name, kind);
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(query.clone());
        let bytes = message.to_vec().map_err(|_| wrong())?;
        Ok(Self { id, query, bytes })
    }

    /// The message in `bytes`, if it answers this.
    fn answered(&self, bytes: &[u8]) -> Option<Message> {
        let answer = Message::from_vec(bytes).ok()?;
        let ours = answer.metadata.id == self.id
            && answer.metadata.message_type == MessageType::Response
            && answer.queries == [self.query.clone()];
        ours.then_some(answer)
    }
}

async fn over_udp(resolver: SocketAddr, question: &Question) -> io::Result<Message> {
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(&question.bytes).await?;
    let mut buffer = [0; LONGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Whatever else comes was sent by somebody who guesses.
        if let Some(answer) = question.answered(&buffer[..length]) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(resolver: SocketAddr, question: &Question) -> io::Result<Message> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(question.bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &question.bytes].concat()).await?;
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    let foreign = || io::Error::new(io::ErrorKind::InvalidData, "it answers something else");
    question.answered(&bytes).ok_or_else(foreign)
}

/// Of all names in the answer: a resolver follows aliases for us.
fn addresses(answer: &Message) -> Vec<IpAddr> {
    let of = |data: &RData| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| of(&record.data)).collect()
}

/// `hosts(5)`.
fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    };
    lines.filter_map(of).collect()
}

/// `resolv.conf(5)`.
fn resolvers(text: &str) -> Vec<SocketAddr> {
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        Some(SocketAddr::new(address.parse().ok()?, PORT))
    };
    text.lines().filter_map(of).take(RESOLVERS).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::A;
    use tempfile::tempdir;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn hosts_and_resolvers_are_read_as_the_manual_says() {
        let hosts =
            "127.0.0.1 localhost\n10.0.0.9\tntp1 ntp1.lan # ours\n# 10.0.0.8 ntp1\n::9 NTP1\n";
        let found = ["10.0.0.9".parse::<IpAddr>().unwrap(), "::9".parse().unwrap()];
        assert_eq!(in_hosts(hosts, "ntp1"), found);
        let conf =
            "search lan\nnameserver 10.0.2.3\nnameserver nonsense\nnameserver fe80::1\noptions x\n";
        let ports = ["10.0.2.3:53", "[fe80::1]:53"].map(|text| text.parse::<SocketAddr>().unwrap());
        assert_eq!(resolvers(conf), ports);
    }

    #[tokio::test]
    async fn an_address_is_its_own_and_hosts_come_first() {
        let folder = tempdir().unwrap();
        let names = Names {
            hosts: folder.path().join("hosts"),
            resolv_conf: folder.path().join("resolv.conf"),
        };
        assert_eq!(names.resolve("::1").await.unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        let error = names.resolve("ntp.example.org").await.unwrap_err();
        assert!(matches!(error, Error::NoResolver(_)), "{error}");
        std::fs::write(&names.hosts, "192.0.2.7 ntp.example.org\n").unwrap();
        let found = names.resolve("ntp.example.org").await.unwrap();
        assert_eq!(found, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    }

    /// Answers each question with as many addresses as fit the way it came: one over UDP, cut short,
    /// three over TCP. Before each goes an answer to another question.
    async fn resolver(udp: UdpSocket, tcp: TcpListener) {
        let answer = |bytes: &[u8], count: u8, id: u16| {
            let question = Message::from_vec(bytes).unwrap();
            let query = question.queries[0].clone();
            let id = question.metadata.id ^ id;
            let mut answer = Message::new(id, MessageType::Response, OpCode::Query);
            answer.metadata.truncation = count == 1;
            if query.query_type() == RecordType::A {
                for host in 1..=count {
                    let data = RData::A(A(Ipv4Addr::new(192, 0, 2, host)));
                    answer.answers.push(Record::from_rdata(query.name().clone(), 60, data));
                }
            }
            answer.add_query(query);
            answer.to_vec().unwrap()
        };
        let mut buffer = [0; 512];
        loop {
            tokio::select! {
                received = udp.recv_from(&mut buffer) => {
                    let (length, from) = received.unwrap();
                    udp.send_to(&answer(&buffer[..length], 2, 1), from).await.unwrap();
                    udp.send_to(&answer(&buffer[..length], 1, 0), from).await.unwrap();
                }
                accepted = tcp.accept() => {
                    let mut stream = accepted.unwrap().0;
                    let mut question = vec![0; usize::from(stream.read_u16().await.unwrap())];
                    stream.read_exact(&mut question).await.unwrap();
                    let bytes = answer(&question, 3, 0);
                    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
                    stream.write_all(&bytes).await.unwrap();
                }
            }
        }
    }

    #[tokio::test]
    async fn an_answer_cut_short_is_had_over_tcp_and_a_foreign_one_is_passed_over() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let serving = tokio::spawn(resolver(udp, tcp));
        let names = Names { hosts: "/dev/null".into(), resolv_conf: "/dev/null".into() };
        let found = names.look_up("ntp.example.org", &[address]).await.unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
        serving.abort();
    }
}
