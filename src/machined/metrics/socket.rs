//! `GET /metrics` over HTTP/1.1 on a unix socket, for a collector on the node.
//!
//! The folder the socket lies in says who may connect. Whoever does gets one answer on a connection,
//! small buffers and little time: PID 1 has no more for them.

use std::convert::Infallible;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use orlop_rpc::unix;
use orlop_rt::CancellationToken;
use orlop_telemetry::openmetrics::CONTENT_TYPE;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

/// Where figures are had.
pub(crate) const SOCKET: &str = "/system/run/machined/metrics.sock";

/// Connections at a time; the next waits in the listener's queue.
const CONNECTIONS: usize = 8;
/// Bytes of a request, and of an answer under way.
const BUFFER: usize = 16 << 10;
/// Lines of a request's head.
const HEADERS: usize = 32;
/// Until when the head of a request must be there.
const HEAD_LIMIT: Duration = Duration::from_secs(2);
/// Until when the answer must be taken.
const LIMIT: Duration = Duration::from_secs(10);

/// Answers on `socket` with what `text` makes, until `shutdown`. A socket that cannot be made is told,
/// and missed by nobody but collectors.
pub(crate) async fn serve<F>(
    socket: impl AsRef<Path>,
    text: impl Fn() -> F + Clone + Send + Sync + 'static,
    shutdown: CancellationToken,
) where
    F: Future<Output = std::io::Result<String>> + Send + 'static,
{
    let incoming = match unix::listen(socket) {
        Ok(incoming) => incoming,
        Err(error) => return warn!(%error, "no socket for metrics"),
    };
    let mut incoming = pin!(incoming);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let serving = async {
        loop {
            // The place comes before the connection: who has none is not accepted.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let Some(Ok(stream)) = incoming.next().await else { return };
            while connections.try_join_next().is_some() {}
            let text = text.clone();
            connections.spawn(async move {
                exchange(stream, text).await;
                drop(place);
            });
        }
    };
    // Cancel-safe: what is dropped was not promised anything.
    tokio::select! {
        () = serving => {}
        () = shutdown.cancelled() => {}
    }
}

async fn exchange<F>(stream: UnixStream, text: impl Fn() -> F)
where
    F: Future<Output = std::io::Result<String>>,
{
    let service = service_fn(|request| {
        let answer = answer(refuse(&request), &text);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a client for metrics was refused"),
        Err(_) => debug!("a client for metrics took too long"),
    }
}

async fn answer<F>(refused: Option<StatusCode>, text: impl Fn() -> F) -> Response<Full<Bytes>>
where
    F: Future<Output = std::io::Result<String>>,
{
    if let Some(status) = refused {
        return plain(status, status.to_string());
    }
    match text().await {
        Ok(text) => {
            let kind = header::HeaderValue::from_static(CONTENT_TYPE);
            let mut answer = Response::new(Full::from(text));
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            answer
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Why `request` gets no figures.
fn refuse(request: &Request<Incoming>) -> Option<StatusCode> {
    match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET) => None,
        ("/metrics", _) => Some(StatusCode::METHOD_NOT_ALLOWED),
        _ => Some(StatusCode::NOT_FOUND),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(text + "\n"));
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// The whole answer to `request`.
    async fn ask(socket: &Path, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        // Whoever is refused early may find the door shut while still talking.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn a_get_of_metrics_gets_them_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("metrics.sock");
        let shutdown = CancellationToken::new();
        let text = || async { Ok("# EOF\n".to_owned()) };
        let asking = async {
            while !socket.exists() {
                tokio::task::yield_now().await;
            }
            let answer = ask(&socket, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains(&format!("content-type: {CONTENT_TYPE}\r\n")), "{answer}");
            assert!(answer.ends_with("\r\n\r\n# EOF\n"), "{answer}");
            for (request, status) in [
                (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], "404 Not Found"),
                (b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "405 Method Not Allowed"),
                (b"\x16\x03\x01 what is this\r\n\r\n", "400 Bad Request"),
            ] {
                let answer = ask(&socket, request).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            }
            let endless = [b"GET /metrics HTTP/1.1\r\nX: ", &[b'a'; 4 * BUFFER][..]].concat();
            let answer = ask(&socket, &endless).await;
            assert!(!answer.contains(" 200 "), "{answer}");
            // Those who say nothing take all places, and are shown out.
            let silent: Vec<_> = (0..CONNECTIONS).map(|_| UnixStream::connect(&socket)).collect();
            let silent = futures_util::future::try_join_all(silent).await.unwrap();
            let answer = ask(&socket, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.contains(" 200 "), "{answer}");
            drop(silent);
            shutdown.cancel();
        };
        tokio::join!(serve(&socket, text, shutdown.clone()), asking);
    }
}
