//! Mutual TLS over TCP.
//!
//! The listener makes handshakes side by side, each within [`HANDSHAKE_LIMIT`], at most
//! [`HANDSHAKES`] at a time. One source has a quarter of the places: with more, its own oldest makes
//! room. When all places are taken, the oldest does that has said nothing in [`SILENCE`], or one who has
//! dawdled for [`GRACE`]: clients that connect and say nothing cannot shut the door for others.
//!
//! A handshake that fails has cost us a signature, and so has a connection that we cut because its client
//! breaks the rules: one source has [`FAILURES`] of them at once and then one each [`FAILURES_EVERY`]. When
//! it has had them, its connections are held without a word for [`HOLD`] and closed: who tries again and
//! again waits, and costs nothing. Those of the node itself (127.0.0.1 and ::1) are not counted.
//!
//! Each handshake takes the configuration that is current when it begins, so certificates can change under
//! way.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use http::Uri;
use http::uri::{Authority, Scheme};
use hyper_util::rt::TokioIo;
use orlop_pki::certificate::organizations;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::Acceptor;
use rustls::{ClientConfig, ServerConfig, ServerConnection};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, info};

use crate::accept::Failures;
use crate::debts::Debts;
use crate::lane::{Lane, Terms};
use crate::places::Source;
use crate::rate::Rate;

/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Handshakes at a time; each holds some six KiB.
const HANDSHAKES: usize = 512;
/// Of one source.
const HANDSHAKES_EACH: usize = HANDSHAKES / 4;
/// How long a handshake is safe from having to make room,
const GRACE: Duration = Duration::from_secs(1);
/// and how long when its client has not said a word: an honest one speaks as soon as it is connected.
const SILENCE: Duration = Duration::from_millis(200);
/// How long dialling may take, the handshake included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Failed handshakes that one source may have at once,
const FAILURES: u32 = 32;
/// and how often it may have another one.
const FAILURES_EVERY: Duration = Duration::from_secs(1);
/// How long the connection of a source that has had them stays open,
const HOLD: Duration = Duration::from_secs(1);
/// and how many of all sources do; with more the oldest is closed.
const HELD: usize = 256;

/// Failed handshakes that are told in quick succession,
const REFUSALS: u32 = 20;
/// and how often when there are more.
const REFUSALS_EVERY: Duration = Duration::from_secs(5);

/// For so long after a failure, others who want the same connection get the same answer: a crowd
/// that waits for a dead node does not wait for it one after the other.
const FAIL_FAST: Duration = Duration::from_secs(1);

/// A server that lets itself be pinged is after this long,
const PING_AFTER: Duration = Duration::from_secs(10);
/// and has this long to answer.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// A quiet connection is probed after this long,
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// this often,
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// and given up after this many probes without an answer.
const PROBES: u32 = 3;
/// Sent bytes that nobody acknowledges for this long end a connection (tcp(7), `TCP_USER_TIMEOUT`).
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(30);

/// Who is on the other side of a connection; an extension of each request that comes over it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the connection comes from; an IPv4 address as such, not mapped into IPv6.
    pub address: SocketAddr,
    /// The certificates shown and verified, the peer's own first. Empty when none was asked for.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// The organizations the peer's own certificate names: its roles. `None` without a certificate, or
    /// with one that cannot be read.
    pub organizations: Option<Arc<[String]>>,
    conduct: Conduct,
}

/// What the sources of a listener have to answer for. Held for a look or a change only.
#[derive(Clone, Debug)]
struct Conduct(Arc<Mutex<Debts>>);

impl Conduct {
    fn debts(&self) -> MutexGuard<'_, Debts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a failure of `address`.
    fn failed(&self, address: IpAddr) {
        let source = Source::from(address);
        if !is_this_node(address) && self.debts().charge(source, 1, std_now()) {
            info!(%source, "too many TLS handshakes failed, or connections were cut: more from it are held and closed");
        }
    }
}

impl Peer {
    /// Its connection was cut because it breaks the rules.
    pub(crate) fn broke_the_rules(&self) {
        self.conduct.failed(self.address.ip());
    }

    /// Who has shaken hands; read once for a connection.
    fn of(session: &ServerConnection, address: SocketAddr, conduct: Conduct) -> Self {
        let certificates = session.peer_certificates().unwrap_or_default();
        let organizations = certificates.first().map(|own| organizations(own));
        Self {
            address,
            certificates: certificates.iter().cloned().map(CertificateDer::into_owned).collect(),
            organizations: organizations.and_then(Result::ok).map(Into::into),
            conduct,
        }
    }
}

/// Listens on `address`. `[::]` takes IPv4 as well; on a kernel without IPv6 it means `0.0.0.0`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        Err(error)
            if address.is_ipv6() && address.ip().is_unspecified() && without_ipv6(&error) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.map_err(|error| io::Error::new(error.kind(), format!("listen on {address}: {error}")))
}

/// `EAFNOSUPPORT` of a kernel without IPv6, `EADDRNOTAVAIL` where it is disabled.
fn without_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// "Address family not supported by protocol", the same number on all Linux architectures we know.
const EAFNOSUPPORT: i32 = 97;

/// Connections whose handshake succeeded, for `serve_with_incoming_shutdown`.
///
/// The stream never ends and yields no errors: who fails the handshake is logged, within
/// [`REFUSALS`], and counted in `tally`.
pub fn incoming(
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
    tally: Arc<Tally>,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
    shaken(listener, config, tally)
}

/// What a listener has refused since it began.
#[derive(Debug, Default)]
pub struct Tally {
    failed: AtomicU64,
    turned_away: AtomicU64,
}

impl Tally {
    /// Handshakes that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Connections that were closed without one, because too many of their source had failed.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }
}

/// What connections come from.
trait Listen: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = io::Result<(Self::Io, SocketAddr)>> + Send;

    fn tune(io: &Self::Io) -> io::Result<()>;
}

impl Listen for TcpListener {
    type Io = TcpStream;

    async fn next(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept().await
    }

    fn tune(io: &TcpStream) -> io::Result<()> {
        tune(io)
    }
}

fn shaken<L: Listen>(
    listener: L,
    config: watch::Receiver<Arc<ServerConfig>>,
    tally: Arc<Tally>,
) -> impl Stream<Item = io::Result<Connection<L::Io>>> + Send + 'static {
    stream::unfold(Door::new(listener, config, tally), |mut door| async {
        let connection = door.next().await;
        Some((Ok(connection), door))
    })
}

/// The listener and the handshakes under way.
struct Door<L: Listen> {
    listener: L,
    config: watch::Receiver<Arc<ServerConfig>>,
    failures: Failures,
    handshakes: JoinSet<Result<Connection<L::Io>, Refused>>,
    /// Oldest first; those that are over stay until it gets crowded.
    order: VecDeque<Handshake>,
    /// Of lines about handshakes that failed.
    refusals: Rate,
    /// Of each source.
    conduct: Conduct,
    /// Connections of those who have failed too often, and until when; the oldest first.
    held: VecDeque<(Instant, L::Io)>,
    tally: Arc<Tally>,
}

/// A handshake under way.
struct Handshake {
    began: Instant,
    source: Source,
    /// Whether the client has said hello.
    spoke: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Handshake {
    /// When it may be asked to make room.
    fn dawdles(&self) -> Instant {
        self.began + if self.spoke.load(Ordering::Relaxed) { GRACE } else { SILENCE }
    }
}

/// A handshake that failed.
struct Refused {
    peer: SocketAddr,
    /// Its client had said hello: it has cost us something.
    spoke: bool,
    error: io::Error,
}

enum Event<Io> {
    Accepted(Io, SocketAddr),
    NotAccepted(io::Error),
    Shaken(Result<Connection<Io>, Refused>),
    /// All places are taken, and somebody has dawdled.
    Dawdled,
    /// A handshake ended because it was told to.
    MadeRoom,
    /// Somebody has been held for long enough.
    Held,
}

impl<L: Listen> Door<L> {
    fn new(listener: L, config: watch::Receiver<Arc<ServerConfig>>, tally: Arc<Tally>) -> Self {
        Self {
            listener,
            config,
            failures: Failures::default(),
            handshakes: JoinSet::new(),
            order: VecDeque::new(),
            refusals: Rate::new(REFUSALS, REFUSALS_EVERY),
            conduct: Conduct(Arc::new(Mutex::new(Debts::new(FAILURES, FAILURES_EVERY)))),
            held: VecDeque::new(),
            tally,
        }
    }

    async fn next(&mut self) -> Connection<L::Io> {
        loop {
            match self.event().await {
                Event::Accepted(stream, peer) => {
                    self.failures.succeeded();
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    if self.conduct.debts().admits(peer.ip().into(), std_now()) {
                        self.shake(stream, peer);
                    } else {
                        self.hold(stream);
                    }
                }
                Event::NotAccepted(error) => sleep(self.failures.failed(&error)).await,
                Event::Shaken(Ok(connection)) => return connection,
                Event::Shaken(Err(refused)) => self.refuse(&refused),
                Event::Dawdled => {
                    if let Some((at, _)) = self.dawdler()
                        && let Some(gone) = self.order.remove(at)
                    {
                        gone.task.abort();
                    }
                }
                Event::MadeRoom => {}
                Event::Held => {
                    self.held.pop_front();
                }
            }
        }
    }

    /// Each arm is cancel-safe: a connection is either still in the queue or in our hands.
    async fn event(&mut self) -> Event<L::Io> {
        if self.order.len() >= HANDSHAKES {
            self.order.retain(|handshake| !handshake.task.is_finished());
        }
        let room = self.handshakes.len() < HANDSHAKES;
        // False again as soon as one was told to go, so that only one goes for each that waits.
        let crowded = self.order.len() >= HANDSHAKES;
        let dawdler = if crowded { self.dawdler() } else { None };
        let dawdles = dawdler.map_or_else(Instant::now, |(_, when)| when);
        let held = self.held.front().map(|(until, _)| *until);
        tokio::select! {
            Some(ended) = self.handshakes.join_next() => ended.map_or(Event::MadeRoom, Event::Shaken),
            accepted = self.listener.next(), if room => match accepted {
                Ok((stream, peer)) => Event::Accepted(stream, peer),
                Err(error) => Event::NotAccepted(error),
            },
            () = sleep_until(dawdles), if crowded => Event::Dawdled,
            () = sleep_until(held.unwrap_or(dawdles)), if held.is_some() => Event::Held,
        }
    }

    /// Where the handshake is that makes room first, and when.
    fn dawdler(&self) -> Option<(usize, Instant)> {
        // Of each kind the oldest is the first to go.
        let silent = self.order.iter().position(|one| !one.spoke.load(Ordering::Relaxed));
        let oldest = [Some(0), silent].into_iter().flatten();
        let whens = oldest.filter_map(|at| Some((at, self.order.get(at)?.dawdles())));
        whens.min_by_key(|(_, when)| *when)
    }

    fn shake(&mut self, stream: L::Io, peer: SocketAddr) {
        let source = peer.ip().into();
        self.make_room(source);
        let (config, spoke) = (self.config.clone(), Arc::new(AtomicBool::new(false)));
        let (speaks, conduct) = (Arc::clone(&spoke), self.conduct.clone());
        let task = self.handshakes.spawn(async move {
            let shaken = async {
                L::tune(&stream)?;
                let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
                speaks.store(true, Ordering::Relaxed);
                let config = Arc::clone(&config.borrow());
                hello.into_stream(config).await
            };
            let refused = |error| Refused { peer, spoke: speaks.load(Ordering::Relaxed), error };
            match timeout(HANDSHAKE_LIMIT, shaken).await {
                Ok(Ok(stream)) => {
                    let peer = Peer::of(stream.get_ref().1, peer, conduct);
                    Ok(Connection { stream: Box::new(stream), peer })
                }
                Ok(Err(error)) => Err(refused(error)),
                Err(elapsed) => Err(refused(elapsed.into())),
            }
        });
        self.order.push_back(Handshake { began: Instant::now(), source, spoke, task });
    }

    /// Ends the oldest handshake of a source that has as many as it may.
    fn make_room(&mut self, source: Source) {
        let under_way = |other: &Handshake| other.source == source && !other.task.is_finished();
        if self.order.iter().filter(|other| under_way(other)).count() >= HANDSHAKES_EACH
            && let Some(at) = self.order.iter().position(under_way)
            && let Some(oldest) = self.order.remove(at)
        {
            oldest.task.abort();
        }
    }

    /// Keeps a connection of a source that has failed too often, without a word.
    fn hold(&mut self, stream: L::Io) {
        self.tally.turned_away.fetch_add(1, Ordering::Relaxed);
        if self.held.len() >= HELD {
            self.held.pop_front();
        }
        self.held.push_back((Instant::now() + HOLD, stream));
    }

    fn refuse(&mut self, Refused { peer, spoke, error }: &Refused) {
        if *spoke {
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
            self.conduct.failed(peer.ip());
        }
        // Who hangs up without a word only looked whether somebody is here, as health checks do.
        if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
            return debug!(%peer, %error, "hung up during the TLS handshake");
        }
        if let Some(held) = self.refusals.pass(std_now()) {
            info!(%peer, %error, untold = (held > 0).then_some(held), "TLS handshake failed");
        }
    }
}

/// Programs of the node come from there, and nobody else can.
fn is_this_node(address: IpAddr) -> bool {
    [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&address)
}

/// By tokio's clock, which tests can turn.
fn std_now() -> std::time::Instant {
    Instant::now().into_std()
}

/// No waiting for more to send, and a peer that vanished is noticed within about 30 s.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probes =
        TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT))
}

/// A connection whose handshake succeeded. tonic makes its [`Peer`] known to each request.
#[derive(Debug)]
pub struct Connection<Io = TcpStream> {
    stream: Box<tokio_rustls::server::TlsStream<Io>>,
    peer: Peer,
}

impl<Io> Connection<Io> {
    /// The protocol that was agreed on (ALPN, RFC 7301).
    #[must_use]
    pub fn protocol(&self) -> Option<&[u8]> {
        self.stream.get_ref().1.alpn_protocol()
    }
}

impl<Io> Connected for Connection<Io> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A channel to `host` (an address or a name; brackets around an IPv6 address are tolerated), dialled
/// when it is first needed and again whenever it was lost.
///
/// The server must prove `host` as its name. Must be called within a tokio runtime. While the server
/// cannot be reached, calls fail with `Unavailable` and the reason.
pub fn channel(host: &str, port: u16, config: Arc<ClientConfig>) -> Channel {
    dialled(host, port, config, |endpoint| endpoint)
}

/// As [`channel`], to a server that lets itself be pinged, as curators do: that it has gone without a word
/// is noticed after some [`PING_AFTER`] and [`PING_LIMIT`], whether calls are under way or not.
pub fn pinging_channel(host: &str, port: u16, config: Arc<ClientConfig>) -> Channel {
    dialled(host, port, config, |endpoint| {
        endpoint
            .http2_keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_LIMIT)
            .keep_alive_while_idle(true)
    })
}

fn dialled(
    host: &str,
    port: u16,
    config: Arc<ClientConfig>,
    settled: impl FnOnce(Endpoint) -> Endpoint,
) -> Channel {
    let dialler = Arc::new(Dialler::new(host, port, config));
    let origin = Uri::builder().scheme("https").authority(dialler.origin()).path_and_query("/");
    let origin = origin.build().unwrap_or_else(|_| Uri::from_static("https://invalid"));
    let connector = tower::service_fn(move |_: Uri| {
        let dialler = Arc::clone(&dialler);
        async move { dialler.dial().await.map(TokioIo::new) }
    });
    settled(crate::endpoint(origin)).connect_with_connector_lazy(connector)
}

/// As [`channel`], for a proxy.
pub fn lane(host: &str, port: u16, config: Arc<ClientConfig>) -> Lane {
    let dialler = Arc::new(Dialler::new(host, port, config));
    let terms = Terms {
        scheme: Scheme::HTTPS,
        authority: dialler.origin(),
        stream_window: crate::STREAM_WINDOW,
        connection_window: crate::CONNECTION_WINDOW,
    };
    Lane::new(terms, move || {
        let dialler = Arc::clone(&dialler);
        async move { dialler.dial().await }
    })
}

/// `host` without the brackets that URIs put around IPv6 addresses.
fn bare(host: &str) -> &str {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.filter(|inner| inner.contains(':')).unwrap_or(host)
}

/// Makes the connections of one channel.
struct Dialler {
    host: String,
    port: u16,
    /// Host and port, as errors name them.
    authority: String,
    config: Arc<ClientConfig>,
    /// The last failure and when it was.
    failed: Mutex<Option<(Instant, io::ErrorKind, String)>>,
}

impl Dialler {
    fn new(host: &str, port: u16, config: Arc<ClientConfig>) -> Self {
        let host = bare(host).to_owned();
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Self { host, port, authority, config, failed: Mutex::default() }
    }

    /// What the server is called. A host that makes no authority is no server name either: dialling
    /// says so.
    fn origin(&self) -> Authority {
        self.authority.parse().unwrap_or_else(|_| Authority::from_static("invalid"))
    }

    async fn dial(&self) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        if let Some((when, kind, text)) = &*self.failed()
            && when.elapsed() < FAIL_FAST
        {
            return Err(io::Error::new(*kind, text.clone()));
        }
        let dialled = timeout(CONNECT_LIMIT, self.connect()).await.unwrap_or_else(|_| {
            let text = format!("no answer within {} s", CONNECT_LIMIT.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        });
        dialled.map_err(|error| {
            let text = format!("connect to {}: {error}", self.authority);
            *self.failed() = Some((Instant::now(), error.kind(), text.clone()));
            io::Error::new(error.kind(), text)
        })
    }

    async fn connect(&self) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(self.host.clone()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "not a host name or address")
        })?;
        let stream = match self.host.parse::<IpAddr>() {
            Ok(address) => TcpStream::connect((address, self.port)).await?,
            Err(_) => TcpStream::connect((self.host.as_str(), self.port)).await?,
        };
        tune(&stream)?;
        TlsConnector::from(Arc::clone(&self.config)).connect(name, stream).await
    }

    fn failed(&self) -> MutexGuard<'_, Option<(Instant, io::ErrorKind, String)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
