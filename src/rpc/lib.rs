//! How the daemons of a node, and the operator's command line, talk gRPC.
//!
//! - [`unix`]: listeners and channels on sockets of the node, HTTP/2 without TLS.
//! - [`tls`]: listeners and channels on TCP with mutual TLS; who called is a [`tls::Peer`] among the
//!   request's extensions.
//! - [`proxy`]: hands a call on to another server as it is, without looking into its messages.
//! - [`renewed`]: keys and certificates in files that change while a daemon runs.
//! - [`access`]: one line of log for each call.
//!
//! What gRPC itself needs (codecs, generated services) is tonic's. This crate settles what all our
//! servers and channels have in common: window sizes, keep-alive, limits, what an accept loop does
//! when the system is short of descriptors.

#![forbid(unsafe_code)]

mod accept;
pub mod access;
pub mod proxy;
mod rate;
pub mod renewed;
pub mod tls;
pub mod unix;

use std::io;
use std::time::Duration;

use futures_util::Stream;
use http::{Request, Response, Uri};
use orlop_rt::CancellationToken;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::transport::server::Connected;
use tonic::transport::{Endpoint, Error, Server};
use tower::Service;
use tracing::warn;

/// The longest message, in bytes, that any of our servers and proxies takes (what stock clients of
/// today take, too).
pub const MAX_MESSAGE: usize = 32 << 20;

/// Bytes a peer may send ahead on one call: what one call can carry per round trip.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same inside the node, where a round trip takes no time.
const LOCAL_STREAM_WINDOW: u32 = 64 << 10;
/// Bytes a peer may send ahead on all calls of a connection together. What callers do not read stays
/// here, and when it is full, all calls of the connection stand still: so it takes many such callers.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Inside the node a proxy brings the calls of all its callers over one connection: a thousand streams
/// that nobody reads (as many as machined serves of its events) must not stand in the way of the rest.
const LOCAL_CONNECTION_WINDOW: u32 = 1024 * LOCAL_STREAM_WINDOW;
/// How many bytes of headers a call may bring: enough for `nodes` to name some four thousand targets.
const MAX_HEADERS: u32 = 256 << 10;
/// Calls at a time on one connection. A proxy brings all its callers over one, and those who follow a
/// log stay for days: the default of 200 would be a dead end.
const MAX_CALLS: u32 = 16_384;
/// After this long without a frame, the server asks whether the client is still there.
const PING_AFTER: Duration = Duration::from_secs(30);
/// How long an answer to that may take.
const PING_LIMIT: Duration = Duration::from_secs(20);

/// A server with our limits; every daemon builds on it.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_CALLS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(PING_AFTER))
        .http2_keepalive_timeout(Some(PING_LIMIT))
}

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
}

/// Serves what comes in until `shutdown`; then takes no more, and lets calls under way finish for at
/// most `grace`.
///
/// # Errors
/// When the server cannot be set up.
pub async fn serve<S, I, IO>(
    service: S,
    incoming: I,
    shutdown: CancellationToken,
    grace: Duration,
) -> Result<(), Error>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    I: Stream<Item = io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    serve_within(Limits::new(grace), service, incoming, shutdown).await
}

/// As [`serve`], with limits of the server's own.
///
/// # Errors
/// When the server cannot be set up.
pub async fn serve_within<S, I, IO>(
    limits: Limits,
    service: S,
    incoming: I,
    shutdown: CancellationToken,
) -> Result<(), Error>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    I: Stream<Item = io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let Limits { stream_window, connection_window, calls, headers, age, grace } = limits;
    let mut server = server()
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_concurrent_streams(calls)
        .http2_max_header_list_size(headers);
    if let Some(age) = age {
        server = server.max_connection_age(age).max_connection_age_grace(grace);
    }
    let stop = shutdown.clone().cancelled_owned();
    let serving = server.serve_with_incoming_shutdown(service, incoming, stop);
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        served = serving => served,
        () = too_late => {
            warn!(grace_secs = grace.as_secs(), "calls under way did not end in time");
            Ok(())
        }
    }
}

/// A channel's settings; `origin` is what the server sees as `:authority`.
///
/// Channels send no HTTP/2 pings: servers written with grpc-go close a connection that is pinged more
/// often than every five minutes. TCP keep-alive finds a dead node sooner, see [`tls::channel`].
fn endpoint(origin: Uri) -> Endpoint {
    Endpoint::from(Uri::from_static("http://node"))
        .origin(origin)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HEADERS)
}
