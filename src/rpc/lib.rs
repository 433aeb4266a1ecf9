//! How the daemons of a node, and the operator's command line, talk gRPC.
//!
//! - [`unix`]: listeners and channels on sockets of the node, HTTP/2 without TLS.
//! - [`tls`]: listeners and channels on TCP with mutual TLS; who called is a [`tls::Peer`] among the
//!   request's extensions.
//! - [`debts`]: how much one source may take of us.
//! - [`places`]: how many connections may be open, and which goes when there are more.
//! - [`lane`]: the way a proxy hands calls on by.
//! - [`leader`]: finds the curator that leads a cluster, and follows.
//! - [`proxy`]: hands a call on to another server as it is, without looking into its messages.
//! - [`renewed`]: keys and certificates in files that change while a daemon runs.
//! - [`watch`]: tells a flood of a client's by the heads of its frames.
//! - [`access`]: one line of log for each call.
//! - [`board`]: how a daemon in a pod is, for Kubernetes' probes.
//! - [`Routes`]: several services behind one socket.
//! - [`health`]: what daemons that machined asks how they are serve.
//!
//! What gRPC itself needs (codecs, generated services) is tonic's. This crate settles what all our
//! servers and channels have in common: window sizes, keep-alive, limits, what an accept loop does
//! when the system is short of descriptors.

#![forbid(unsafe_code)]

mod accept;
pub mod access;
pub mod board;
pub mod debts;
pub mod health;
pub mod lane;
pub mod leader;
pub mod places;
pub mod proxy;
mod rate;
pub mod renewed;
mod routes;
mod serve;
pub mod tls;
pub mod unix;
pub mod watch;

use std::time::Duration;

use http::Uri;
use tonic::transport::{Endpoint, Server};

pub use crate::routes::Routes;
pub use crate::serve::{Limits, serve, serve_within};

/// The longest message, in bytes, that any of our servers and proxies takes (what stock clients of
/// today take, too).
pub const MAX_MESSAGE: usize = 32 << 20;

/// Bytes a peer may send ahead on one call: what one call can carry per round trip.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same inside the node, where a round trip takes no time: with half as many, two processes wait for
/// each other after every second message of a copy.
const LOCAL_STREAM_WINDOW: u32 = 128 << 10;
/// Bytes a peer may send ahead on all calls of a connection together. What callers do not read stays
/// here, and when it is full, all calls of the connection stand still: so it takes many such callers.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Inside the node a proxy brings the calls of all its callers over one connection: a thousand streams
/// that nobody reads (as many as machined serves of its events) must not stand in the way of the rest.
const LOCAL_CONNECTION_WINDOW: u32 = 1024 * LOCAL_STREAM_WINDOW;
/// Bytes of a call's message that a peer may put into one frame: fewer frames than with the default of
/// 16 KiB carry the same.
const MAX_FRAME: u32 = 64 << 10;
/// How many bytes of headers a call may bring: enough for `nodes` to name some four thousand targets.
const MAX_HEADERS: u32 = 256 << 10;
/// Calls at a time on one connection. A proxy brings all its callers over one, and those who follow a
/// log stay for days: the default of 200 would be a dead end.
const MAX_CALLS: u32 = 16_384;
/// After this long without a frame, the server asks whether the client is still there.
const PING_AFTER: Duration = Duration::from_secs(30);
/// How long an answer to that may take.
const PING_LIMIT: Duration = Duration::from_secs(20);

/// tonic's own server with our limits, for tests and where [`serve`] does not fit.
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

/// A channel's settings; `origin` is what the server sees as `:authority`.
///
/// Channels send no HTTP/2 pings: servers written with grpc-go close a connection that is pinged more
/// often than every five minutes. TCP keep-alive finds a dead node sooner, see [`tls::channel`].
fn endpoint(origin: Uri) -> Endpoint {
    Endpoint::from(Uri::from_static("http://node"))
        .origin(origin)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_max_header_list_size(MAX_HEADERS)
}
