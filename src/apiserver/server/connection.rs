//! Connections: HTTP/2 or HTTP/1.1 over TLS, bounded in what a client can ask of them.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use orlop_rpc::places::Admitted;
use orlop_rpc::tls::Connection;
use orlop_rt::CancellationToken;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::Server;

/// How long requests under way may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// Requests at a time on a connection: a reflector for each resource, and then some.
const STREAMS: u32 = 1000;
/// Bytes a client may send ahead.
const WINDOW: u32 = 1 << 20;
/// Of headers, among them a bearer token.
const HEADERS: u32 = 64 << 10;
/// A quiet connection is asked whether it lives,
const PING_AFTER: Duration = Duration::from_secs(45);
/// and has so long to answer.
const PING_LIMIT: Duration = Duration::from_secs(20);
/// How long a client of HTTP/1.1 may take for its headers.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of an answer that wait for a client that does not read.
const SEND_BUFFER: usize = 64 << 10;

/// What a connection says of who asks over it.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// Where it comes from.
    pub(crate) address: IpAddr,
    /// The certificates shown and verified, its own first.
    pub(crate) certificates: Arc<[CertificateDer<'static>]>,
}

/// Serves connections until `shutdown`; then takes no more, and lets requests under way end.
pub(crate) async fn serve(
    server: Arc<Server>,
    incoming: impl Stream<Item = io::Result<Admitted<Connection>>>,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    {
        let mut incoming = pin!(incoming);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => {}
                Some(accepted) = incoming.next() => match accepted {
                    Ok(io) => {
                        connections.spawn(connection(Arc::clone(&server), io, shutdown.clone()));
                    }
                    Err(error) => debug!(%error, "a connection was not accepted"),
                },
                else => break,
            }
        }
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(GRACE, ended).await.is_err() {
        warn!(grace_secs = GRACE.as_secs(), "requests under way did not end in time");
    }
}

async fn connection(server: Arc<Server>, io: Admitted<Connection>, stop: CancellationToken) {
    let peer = io.connect_info();
    let h2 = io.get_ref().protocol() == Some(b"h2");
    let from = Origin { address: peer.address.ip(), certificates: peer.certificates };
    converse(server, from, io, h2, stop).await;
}

/// Answers what is asked over a connection, in HTTP/2 or HTTP/1.1.
pub(super) async fn converse(
    server: Arc<Server>,
    from: Origin,
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    h2: bool,
    stop: CancellationToken,
) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let (server, from) = (Arc::clone(&server), from.clone());
        async move { Ok::<_, Infallible>(server.answer(from, request).await) }
    });
    let io = TokioIo::new(io);
    let served = if h2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(HEADERS)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_LIMIT);
        let mut serving = pin!(builder.serve_connection(io, answer));
        tokio::select! {
            served = &mut serving => served,
            () = stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        }
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
        let mut serving = pin!(builder.serve_connection(io, answer));
        tokio::select! {
            served = &mut serving => served,
            () = stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        }
    };
    if let Err(error) = served {
        debug!(error = %orlop_rt::Chain(&error), "a connection ended");
    }
}
