//! The server that all our daemons stand behind: HTTP/2 only, and bounded in everything a caller can ask
//! for.
//!
//! tonic's own server does not say how much of an answer it keeps for callers who do not read, nor how
//! long a connection may stay without a word: so this one is built on hyper's.

use std::any::Any;
use std::convert::Infallible;
use std::error::Error as _;
use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use orlop_rt::CancellationToken;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::{Service, ServiceExt as _};
use tracing::{debug, warn};

use crate::tls::Peer;
use crate::watch::Watch;
use crate::{
    CONNECTION_WINDOW, MAX_CALLS, MAX_FRAME, MAX_HEADERS, PING_AFTER, PING_LIMIT, STREAM_WINDOW,
    proxy,
};

/// How long a connection may take to say that it speaks HTTP/2.
const PREFACE_LIMIT: Duration = Duration::from_secs(10);
/// What a client says first (RFC 9113 §3.4), in bytes.
const PREFACE: usize = 24;
/// Bytes of an answer that are kept for a caller who does not read: two frames, so that one can be
/// written while the next comes.
const SEND_BUFFER: usize = 32 << 10;
/// Calls that a client takes back before they have been looked at; with more it is shown the door
/// (CVE-2023-44487).
const TAKEN_BACK: usize = 20;
/// Calls that we had to break off for errors of the client, on a connection (RUSTSEC-2024-0003).
const BROKEN_OFF: usize = 1024;

/// Bytes that are read from one connection before all others have their turn: a flood of small frames
/// keeps nobody waiting for long.
const TURN: usize = 32 << 10;
/// How much a server takes of its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a peer may send ahead on one call.
    pub stream_window: u32,
    /// Bytes a peer may send ahead on all calls of a connection together.
    pub connection_window: u32,
    /// Calls at a time on a connection.
    pub calls: u32,
    /// Bytes of headers a call may bring.
    pub headers: u32,
    /// How long a connection is served; then its calls may end for `grace`. `None`: as long as it lives.
    pub age: Option<Duration>,
    /// How long calls under way may take to end after a signal, or when a connection is too old.
    pub grace: Duration,
}

impl Limits {
    /// Those of all our servers that have no reason for others.
    #[must_use]
    pub const fn new(grace: Duration) -> Self {
        Self {
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            calls: MAX_CALLS,
            headers: MAX_HEADERS,
            age: None,
            grace,
        }
    }

    fn builder(&self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_concurrent_streams(self.calls)
            .max_header_list_size(self.headers)
            .max_frame_size(MAX_FRAME)
            // gRPC has no use for it.
            .auto_date_header(false)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(TAKEN_BACK)
            .max_local_error_reset_streams(BROKEN_OFF)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_LIMIT);
        builder
    }
}

/// Serves what comes in until `shutdown`; then takes no more, and lets calls under way finish for at
/// most `grace`.
pub async fn serve<S, I, IO>(service: S, incoming: I, shutdown: CancellationToken, grace: Duration)
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    I: Stream<Item = io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    serve_within(Limits::new(grace), service, incoming, shutdown).await;
}

/// As [`serve`], with limits of the server's own.
pub async fn serve_within<S, I, IO>(
    limits: Limits,
    service: S,
    incoming: I,
    shutdown: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    I: Stream<Item = io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let mut connections = JoinSet::new();
    {
        let mut incoming = pin!(incoming);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => {}
                Some(accepted) = incoming.next() => match accepted {
                    Ok(io) => {
                        connections.spawn(begin(limits, io, service.clone(), shutdown.clone()));
                    }
                    Err(error) => debug!(%error, "a connection was not accepted"),
                },
                else => break,
            }
        }
        // Whoever comes from here on is refused, not left waiting.
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.grace, ended).await.is_err() {
        let grace_secs = limits.grace.as_secs();
        warn!(grace_secs, "calls under way did not end in time");
    }
}

/// What a connection carries bytes over, whatever it is.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
/// How a service answers on a connection, whatever they are: HTTP/2 is compiled once for all of them.
type Answers = Box<dyn Fn(Request<Body>) -> Answering + Send>;

/// A connection, and what is served on it.
fn begin<S, IO>(
    limits: Limits,
    io: IO,
    service: S,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let caller = io.connect_info();
    let conduct = peer(&caller).cloned();
    let answers = move |mut request: Request<Body>| {
        request.extensions_mut().insert(caller.clone());
        // On the heap at once: hyper moves it about on its way into a task.
        Box::pin(answer(service.clone(), request)) as Answering
    };
    connection(limits, Box::new(io), conduct, Box::new(answers), stop)
}

async fn connection(
    limits: Limits,
    io: Box<dyn Wire>,
    conduct: Option<Peer>,
    answers: Answers,
    stop: CancellationToken,
) {
    let opened = tokio::select! {
        opened = timeout(PREFACE_LIMIT, Opened::new(io)) => opened,
        () = stop.cancelled() => return,
    };
    let Ok(Ok(io)) = opened else {
        return debug!("a connection that says nothing is closed");
    };
    let answer = service_fn(move |request: Request<Incoming>| answers(request.map(Body::new)));
    let mut serving = pin!(limits.builder().serve_connection(TokioIo::new(io), answer));
    let aged = async {
        match limits.age {
            Some(age) => sleep(age).await,
            None => pending().await,
        }
    };
    tokio::select! {
        served = &mut serving => {
            if let Err(error) = served {
                debug!(error = %orlop_rt::Chain(&error), "a connection ended");
                if let (true, Some(peer)) = (is_cut(&error), &conduct) {
                    peer.broke_the_rules();
                }
            }
            return;
        }
        () = stop.cancelled() => {}
        () = aged => {}
    }
    serving.as_mut().graceful_shutdown();
    if timeout(limits.grace, serving).await.is_err() {
        debug!("a connection was cut with calls under way");
    }
}

/// Whether we ended a connection because of what its client did.
fn is_cut(error: &hyper::Error) -> bool {
    let Some(cause) = error.source() else { return false };
    if let Some(h2) = cause.downcast_ref::<h2::Error>() {
        // Ours, not told by the client. [`Watch`]'s comes as what cannot be read.
        let unreadable = h2.get_io().is_some_and(|io| io.kind() == io::ErrorKind::InvalidData);
        return (h2.is_go_away() && h2.is_library()) || unreadable;
    }
    let io = cause.downcast_ref::<io::Error>();
    io.is_some_and(|io| io.kind() == io::ErrorKind::InvalidData)
}

/// Who is at the other end, if he came over TLS.
fn peer(caller: &dyn Any) -> Option<&Peer> {
    caller.downcast_ref()
}

/// What the service answers, within the deadline of the call.
async fn answer<S>(service: S, request: Request<Body>) -> Result<Response<Body>, Infallible>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let deadline = proxy::timeout(request.headers());
    let answering = service.oneshot(request);
    let answered = match deadline {
        None => answering.await,
        Some(deadline) => match timeout(deadline, answering).await {
            Ok(answered) => answered,
            Err(_) => {
                let text = format!("no answer within {deadline:?}");
                return Ok(Status::deadline_exceeded(text).into_http());
            }
        },
    };
    Ok(answered.unwrap_or_else(|error| Status::from_error(error.into()).into_http()))
}

/// A connection whose client has spoken first; what it said is read again.
struct Opened<IO> {
    io: IO,
    preface: [u8; PREFACE],
    given: usize,
    /// Bytes read in this [`TURN`].
    turn: usize,
    watch: Watch,
}

impl<IO: AsyncRead + Unpin> Opened<IO> {
    async fn new(mut io: IO) -> io::Result<Self> {
        let mut preface = [0; PREFACE];
        io.read_exact(&mut preface).await?;
        Ok(Self { io, preface, given: 0, turn: 0, watch: Watch::new() })
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Opened<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.given < PREFACE {
            let end = PREFACE.min(this.given + buffer.remaining());
            buffer.put_slice(&this.preface[this.given..end]);
            this.given = end;
            return Poll::Ready(Ok(()));
        }
        if this.turn >= TURN {
            this.turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(context, buffer) else {
            this.turn = 0;
            return Poll::Pending;
        };
        read?;
        let bytes = &buffer.filled()[before..];
        this.turn += bytes.len();
        Poll::Ready(this.watch.passes(bytes, Instant::now()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Opened<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
