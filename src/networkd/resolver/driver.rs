//! Carries out what the [`Resolver`] decides: sockets to clients and to servers, TLS, the timer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use orlop_rt::Chain;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::{debug, warn};

use super::machine::{Action, Event, Known, Resolver, Transport};
use super::message::Way;
use super::{ADDRESS, Server, Settings};
use crate::dhcp::{now, wait_until};

/// Longer than any question is, and as long as servers were told that an answer may be: what is longer is
/// cut off, and so no answer.
const BUFFER: usize = 4096;
/// Connections of clients at a time; more wait until one ends.
const MOST_CONNECTIONS: usize = 32;
/// A connection that is of no use for so long ends, RFC 7766 §6.2.3.
const IDLE: Duration = Duration::from_secs(10);
/// One to a server over TLS costs more to make.
const IDLE_TLS: Duration = Duration::from_secs(30);
/// Until a server must have accepted a connection, or have answered on it.
const LIMIT: Duration = Duration::from_secs(5);
/// Messages on their way between tasks; a handful is at any time.
const ON_THE_WAY: usize = 64;
/// Questions on one connection to a server.
const MOST_AWAITED: usize = 256;
/// How often a server's failure to speak TLS is told.
const NEWS: Duration = Duration::from_secs(300);
/// The distribution's authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where clients ask.
#[derive(Debug)]
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// # Errors
    /// When somebody else has the port, or we may not have it.
    pub(crate) fn open() -> io::Result<Self> {
        let udp = std::net::UdpSocket::bind(ADDRESS)?;
        let tcp = std::net::TcpListener::bind(ADDRESS)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp: UdpSocket::from_std(udp)?, tcp: TcpListener::from_std(tcp)? })
    }
}

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read the distribution's authorities {AUTHORITIES}")]
    Authorities(#[source] io::Error),
    #[error("trust the authorities of the resolver {0}")]
    Trust(SocketAddr, #[source] orlop_pki::Error),
    #[error("{0:?} is no name of a server")]
    Name(String),
}

/// How each server is spoken to that speaks TLS.
pub(crate) type Trust = BTreeMap<Server, Arc<ClientConfig>>;

/// Reads whom to trust.
///
/// # Errors
/// When that cannot be read.
pub(crate) fn trust(settings: &Settings) -> Result<Trust, Error> {
    let mut trust = Trust::new();
    for tls in &settings.tls {
        let name = tls.server.tls.as_deref().unwrap_or_default();
        ServerName::try_from(name).map_err(|_| Error::Name(name.to_owned()))?;
        let distribution;
        let ca = match tls.ca.as_str() {
            "" => {
                distribution = std::fs::read_to_string(AUTHORITIES).map_err(Error::Authorities)?;
                &distribution
            }
            ca => ca,
        };
        let config = orlop_pki::tls::public_client_config(ca, &[])
            .map_err(|source| Error::Trust(tls.server.address, source))?;
        trust.insert(tls.server.clone(), config);
    }
    Ok(trust)
}

/// Answers clients until it is dropped.
///
/// # Errors
/// When a socket fails.
pub(crate) async fn run(
    sockets: Sockets,
    known: watch::Receiver<Known>,
    trust: Trust,
) -> io::Result<()> {
    let (asked, questions) = mpsc::channel(ON_THE_WAY);
    let (came, answers) = mpsc::channel(ON_THE_WAY);
    let service = Service {
        sockets: Arc::new(sockets),
        resolver: Resolver::default(),
        clients: HashMap::new(),
        serial: 0,
        attempts: HashMap::new(),
        connections: HashMap::new(),
        tasks: JoinSet::new(),
        asked,
        came,
        trust,
        told: BTreeMap::new(),
    };
    service.run(known, questions, answers).await
}

struct Service {
    sockets: Arc<Sockets>,
    resolver: Resolver,
    /// Who waits for an answer.
    clients: HashMap<u64, Client>,
    serial: u64,
    /// Questions to servers that have a socket of their own.
    attempts: HashMap<u64, AbortHandle>,
    /// To servers that speak TLS.
    connections: HashMap<Server, mpsc::Sender<(u64, Vec<u8>)>>,
    tasks: JoinSet<()>,
    asked: mpsc::Sender<(Vec<u8>, mpsc::Sender<Vec<u8>>)>,
    came: mpsc::Sender<Came>,
    trust: Trust,
    /// When a server's failure was last told.
    told: BTreeMap<Server, Duration>,
}

enum Client {
    Datagram(SocketAddr),
    Connection(mpsc::Sender<Vec<u8>>),
}

/// What came of an attempt.
enum Came {
    Message(u64, Vec<u8>),
    Nothing(u64),
    /// A connection for several attempts ended so.
    Broken(Server, io::Error),
}

enum Happened {
    Datagram(io::Result<(usize, SocketAddr)>),
    Connection(io::Result<(TcpStream, OwnedSemaphorePermit)>),
    Question(Vec<u8>, mpsc::Sender<Vec<u8>>),
    Came(Came),
    Known,
    Timer,
    Ended(Result<(), tokio::task::JoinError>),
}

impl Service {
    async fn run(
        mut self,
        mut known: watch::Receiver<Known>,
        mut questions: mpsc::Receiver<(Vec<u8>, mpsc::Sender<Vec<u8>>)>,
        mut answers: mpsc::Receiver<Came>,
    ) -> io::Result<()> {
        let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let sockets = Arc::clone(&self.sockets);
        let mut buffer = vec![0; BUFFER];
        self.learn(&mut known);
        loop {
            let timer = wait_until(self.resolver.wake_at());
            // All arms are cancel-safe: what is not taken stays in its socket or channel.
            let happened = tokio::select! {
                received = sockets.udp.recv_from(&mut buffer) => Happened::Datagram(received),
                accepted = accept(&sockets.tcp, &permits) => Happened::Connection(accepted),
                Some((message, replies)) = questions.recv() => Happened::Question(message, replies),
                Some(came) = answers.recv() => Happened::Came(came),
                Some(ended) = self.tasks.join_next() => Happened::Ended(ended),
                () = timer => Happened::Timer,
                changed = known.changed() => match changed {
                    Ok(()) => Happened::Known,
                    // Whoever knows better is gone, and we with him.
                    Err(_) => return Ok(()),
                },
            };
            match happened {
                Happened::Datagram(Ok((length, from))) => {
                    self.client(Client::Datagram(from), Way::Udp, &buffer[..length]);
                }
                // What an earlier reply met: its client has gone away.
                Happened::Datagram(Err(error)) => debug!(%error, "socket of clients"),
                Happened::Connection(Ok((stream, permit))) => {
                    let asked = self.asked.clone();
                    self.tasks.spawn(async move {
                        // A client that goes away in between does without.
                        if let Err(error) = converse(stream, asked).await {
                            debug!(%error, "connection of a client");
                        }
                        drop(permit);
                    });
                }
                Happened::Connection(Err(error)) => {
                    debug!(%error, "accept a client");
                    // Out of descriptors, most likely: it must not become a loop.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Happened::Question(message, replies) => {
                    self.client(Client::Connection(replies), Way::Tcp, &message);
                }
                Happened::Came(Came::Message(attempt, message)) => {
                    self.handle(Event::Answered { attempt, message: &message });
                }
                Happened::Came(Came::Nothing(attempt)) => self.handle(Event::Failed(attempt)),
                Happened::Came(Came::Broken(server, error)) => self.tell(&server, &error),
                Happened::Known => self.learn(&mut known),
                Happened::Timer => self.handle(Event::TimerFired),
                Happened::Ended(Err(error)) if error.is_panic() => {
                    std::panic::resume_unwind(error.into_panic());
                }
                // Done, or stopped by us.
                Happened::Ended(_) => {}
            }
        }
    }

    fn learn(&mut self, known: &mut watch::Receiver<Known>) {
        let known = known.borrow_and_update().clone();
        self.connections.retain(|server, _| known.servers.contains(server));
        self.handle(Event::Known(&known));
    }

    fn client(&mut self, client: Client, way: Way, message: &[u8]) {
        self.serial += 1;
        let number = self.serial;
        self.clients.insert(number, client);
        self.handle(Event::Asked { client: number, way, message });
    }

    fn handle(&mut self, event: Event<'_>) {
        let actions = self.resolver.handle(now(), &mut random, event);
        for action in actions {
            match action {
                Action::Reply { client, message } => match self.clients.remove(&client) {
                    // A client that does not read its answers does without.
                    Some(Client::Datagram(to)) => {
                        let _ = self.sockets.udp.try_send_to(&message, to);
                    }
                    Some(Client::Connection(replies)) => {
                        let _ = replies.try_send(message);
                    }
                    None => {}
                },
                Action::Ignore(client) => drop(self.clients.remove(&client)),
                Action::Forget(attempt) => {
                    if let Some(task) = self.attempts.remove(&attempt) {
                        task.abort();
                    }
                }
                Action::Ask { attempt, server, transport, message } => {
                    debug!(server = %server.address, ?transport, "question");
                    self.ask(attempt, server, transport, message);
                }
            }
        }
    }

    fn ask(&mut self, attempt: u64, server: Server, transport: Transport, message: Vec<u8>) {
        if transport == Transport::Tls {
            return self.ask_over_tls(attempt, server, message);
        }
        let came = self.came.clone();
        let task = self.tasks.spawn(async move {
            let result = match transport {
                Transport::Udp => over_udp(attempt, server.address, &message, &came).await,
                _ => over_tcp(attempt, server.address, &message, &came).await,
            };
            if let Err(error) = result {
                debug!(server = %server.address, %error, "ask a server");
                // The other end goes away only with us.
                let _ = came.send(Came::Nothing(attempt)).await;
            }
        });
        self.attempts.insert(attempt, task);
    }

    fn ask_over_tls(&mut self, attempt: u64, server: Server, message: Vec<u8>) {
        let question = match self.connections.get(&server) {
            Some(connection) => match connection.try_send((attempt, message)) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Closed(question)) => question,
                // It is being made, and more wait for that than are of use.
                Err(mpsc::error::TrySendError::Full((attempt, _))) => return self.nothing(attempt),
            },
            None => (attempt, message),
        };
        let Some(config) = self.trust.get(&server) else { return self.nothing(attempt) };
        let connector = TlsConnector::from(Arc::clone(config));
        let (questions, to_ask) = mpsc::channel(ON_THE_WAY);
        // There is room: it is new.
        let _ = questions.try_send(question);
        self.connections.insert(server.clone(), questions);
        let came = self.came.clone();
        self.tasks.spawn(over_tls(server, connector, to_ask, came));
    }

    /// The attempt came to nothing before it began.
    fn nothing(&mut self, attempt: u64) {
        let came = self.came.clone();
        self.tasks.spawn(async move {
            // The other end goes away only with us.
            let _ = came.send(Came::Nothing(attempt)).await;
        });
    }

    /// Tells once in a while that a server cannot be spoken to: with TLS, that may be for ever.
    fn tell(&mut self, server: &Server, error: &io::Error) {
        let now = now();
        if self.told.get(server).is_none_or(|at| now.saturating_sub(*at) > NEWS) {
            let name = server.tls.as_deref().unwrap_or_default();
            warn!(server = %server.address, name, error = %Chain(error), "resolver cannot be asked over TLS");
            self.told.insert(server.clone(), now);
        }
    }
}

/// An id that nobody can guess. Without random numbers no question is asked twice the same.
fn random() -> u16 {
    let mut id = [0; 2];
    match SystemRandom::new().fill(&mut id) {
        Ok(()) => u16::from_be_bytes(id),
        // The kernel has none to give: what std keys its hashes with must do.
        Err(_) => u16::try_from(crate::dhcp::random() >> 16).unwrap_or_default(),
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    // Before the connection, so that more of them wait in the kernel.
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.accept().await?.0, permit))
}

/// A client's connection: questions one after the other, answers as they come.
async fn converse(
    stream: TcpStream,
    asked: mpsc::Sender<(Vec<u8>, mpsc::Sender<Vec<u8>>)>,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = stream.into_split();
    let (replies, mut to_say) = mpsc::channel(ON_THE_WAY);
    let listening = async move {
        while let Some(message) = timeout(IDLE, read_message(&mut from_client)).await?? {
            if asked.send((message, replies.clone())).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    // It goes on until the last question that was asked is answered.
    let speaking = async move {
        while let Some(message) = to_say.recv().await {
            timeout(IDLE, write_message(&mut to_client, &message)).await??;
        }
        Ok(())
    };
    let (listened, spoke): (io::Result<()>, io::Result<()>) = tokio::join!(listening, speaking);
    listened.and(spoke)
}

/// RFC 1035 §4.2.2; `None` when the other side has nothing more to say.
async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = match from.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; length.into()];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// In one piece: some servers take two for two.
async fn write_message(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes()[..], message].concat()).await?;
    to.flush().await
}

/// Passes on everything that comes from the server, until it is stopped.
async fn over_udp(
    attempt: u64,
    server: SocketAddr,
    message: &[u8],
    came: &mpsc::Sender<Came>,
) -> io::Result<()> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel chooses the port at random (RFC 5452 §9.2), and passes on nothing from elsewhere.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if came.send(Came::Message(attempt, buffer[..length].to_vec())).await.is_err() {
            return Ok(());
        }
    }
}

async fn over_tcp(
    attempt: u64,
    server: SocketAddr,
    message: &[u8],
    came: &mpsc::Sender<Came>,
) -> io::Result<()> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        write_message(&mut stream, message).await?;
        read_message(&mut stream).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    };
    let answer = timeout(LIMIT, exchange).await?.map_err(|error: io::Error| error)?;
    // The other end goes away only with us.
    let _ = came.send(Came::Message(attempt, answer)).await;
    Ok(())
}

/// A connection to a server, made for the first of the questions and kept for those that follow.
async fn over_tls(
    server: Server,
    connector: TlsConnector,
    mut questions: mpsc::Receiver<(u64, Vec<u8>)>,
    came: mpsc::Sender<Came>,
) {
    let mut awaited = HashMap::new();
    let result = speak_tls(&server, &connector, &mut questions, &mut awaited, &came).await;
    if let Err(error) = result {
        // The other end goes away only with us.
        let _ = came.send(Came::Broken(server, error)).await;
    }
    questions.close();
    let mut left: BTreeSet<u64> = awaited.into_values().collect();
    while let Ok((attempt, _)) = questions.try_recv() {
        left.insert(attempt);
    }
    for attempt in left {
        let _ = came.send(Came::Nothing(attempt)).await;
    }
}

/// `Ok` when the connection ended because nobody needed it.
async fn speak_tls(
    server: &Server,
    connector: &TlsConnector,
    questions: &mut mpsc::Receiver<(u64, Vec<u8>)>,
    awaited: &mut HashMap<u16, u64>,
    came: &mpsc::Sender<Came>,
) -> io::Result<()> {
    let name = server.tls.as_deref().unwrap_or_default().to_owned();
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let connect = async {
        let stream = TcpStream::connect(server.address).await?;
        stream.set_nodelay(true)?;
        connector.connect(name, stream).await
    };
    let mut stream = timeout(LIMIT, connect).await??;
    let mut bytes = BytesMut::new();
    loop {
        let patience = if awaited.is_empty() { IDLE_TLS } else { LIMIT };
        // Both arms are cancel-safe; on a time-out nothing is begun again.
        tokio::select! {
            read = timeout(patience, stream.read_buf(&mut bytes)) => match read {
                Ok(Ok(0)) | Err(_) if awaited.is_empty() => return Ok(()),
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Err(error)) => return Err(error),
                Err(elapsed) => return Err(elapsed.into()),
                Ok(Ok(_)) => {}
            },
            question = questions.recv() => {
                let Some((attempt, message)) = question else { return Ok(()) };
                let id = message.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
                if awaited.contains_key(&id) || awaited.len() >= MOST_AWAITED {
                    // The other end goes away only with us.
                    let _ = came.send(Came::Nothing(attempt)).await;
                    continue;
                }
                awaited.insert(id, attempt);
                timeout(LIMIT, write_message(&mut stream, &message)).await??;
            }
        }
        while let Some(message) = take_message(&mut bytes) {
            let id = message.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
            if let Some(attempt) = awaited.remove(&id) {
                // The other end goes away only with us.
                let _ = came.send(Came::Message(attempt, message)).await;
            }
        }
    }
}

/// The next whole message of what a connection brought.
fn take_message(bytes: &mut BytesMut) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes(*bytes.first_chunk()?));
    let message = bytes.get(2..2 + length)?.to_vec();
    bytes.advance(2 + length);
    Some(message)
}
