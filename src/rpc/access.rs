//! One line of log for each call: service, method, duration, code, who called.
//!
//! A front door writes it at level `info` ([`Log::front_door`]), at most [`BURST`] lines at once and
//! then [`PER_SECOND`] a second: the next line says how many calls had none. What is called inside the
//! node is written at `debug` ([`Call::begin`]); when that is off, a call costs one comparison.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::{Level, debug, enabled, info};

use crate::rate::Rate;

/// Calls in quick succession that all have their line.
pub const BURST: u32 = 100;
/// Lines a second when there are more.
pub const PER_SECOND: u32 = 10;

/// The log of a front door. Clones share it.
#[derive(Clone, Debug)]
pub struct Log(Arc<Mutex<Rate>>);

impl Log {
    /// Lines at level `info`, of bounded number.
    #[must_use]
    pub fn front_door() -> Self {
        Self(Arc::new(Mutex::new(Rate::new(BURST, Duration::from_secs(1) / PER_SECOND))))
    }

    /// As [`Call::begin`].
    pub fn begin<B, P: Display>(&self, request: &Request<B>, peer: impl FnOnce() -> P) -> Call<P> {
        let open = enabled!(Level::INFO).then(|| Open::new(request, peer, Some(self.clone())));
        Call { open }
    }
}

/// A call under way. Dropped before its end, it counts as cancelled by the client.
#[derive(Debug)]
pub struct Call<P: Display> {
    /// `None` when nobody reads the log, and once the line is written.
    open: Option<Open<P>>,
}

#[derive(Debug)]
struct Open<P> {
    /// With the path. A copy costs nothing, and most calls of a crowd have no line.
    uri: Uri,
    peer: P,
    started: Instant,
    /// `None` at level `debug`.
    log: Option<Log>,
}

impl<P> Open<P> {
    fn new<B>(request: &Request<B>, peer: impl FnOnce() -> P, log: Option<Log>) -> Self {
        Self { uri: request.uri().clone(), peer: peer(), started: Instant::now(), log }
    }
}

impl<P: Display> Call<P> {
    /// Notes the beginning of a call; `peer` names the caller and is asked only when it is logged.
    pub fn begin<B>(request: &Request<B>, peer: impl FnOnce() -> P) -> Self {
        Self { open: enabled!(Level::DEBUG).then(|| Open::new(request, peer, None)) }
    }

    /// Writes the line when `response` has ended, with the status it ended with.
    #[must_use]
    pub fn watch(mut self, response: Response<Body>) -> Response<Body>
    where
        P: Send + Unpin + 'static,
    {
        if self.open.is_none() {
            return response;
        }
        if let Some(code) = code(response.headers()) {
            self.end(code);
            return response;
        }
        response.map(|body| Body::new(Watched { body, call: self }))
    }

    fn end(&mut self, code: Code) {
        let Some(Open { uri, peer, started, log }) = self.open.take() else { return };
        let path = uri.path();
        let (service, method) = path.trim_start_matches('/').rsplit_once('/').unwrap_or((path, ""));
        let now = Instant::now();
        let duration = now.saturating_duration_since(started);
        let Some(Log(rate)) = log else {
            let peer = peer.to_string();
            return debug!(service, method, ?duration, ?code, peer, "call");
        };
        let passed = rate.lock().unwrap_or_else(PoisonError::into_inner).pass(now);
        let Some(held) = passed else { return };
        let untold = (held > 0).then_some(held);
        let peer = peer.to_string();
        info!(service, method, ?duration, ?code, peer, untold, "call");
    }
}

impl<P: Display> Drop for Call<P> {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The status in headers or trailers.
fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

struct Watched<P: Display> {
    body: Body,
    call: Call<P>,
}

impl<P: Display + Unpin> http_body::Body for Watched<P> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(code) = frame.trailers_ref().and_then(code) {
                    self.call.end(code);
                }
            }
            Poll::Ready(Some(Err(status))) => self.call.end(status.code()),
            Poll::Ready(None) => self.call.end(Code::Unknown),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io;

    use super::*;

    /// Where the test's lines go.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_front_door_tells_each_call_at_info_until_there_are_too_many() {
        let lines = Lines::default();
        let writer = lines.clone();
        let told = tracing_subscriber::fmt()
            .with_max_level(Level::INFO)
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .finish();
        let request = Request::builder().uri("/machine.MachineService/Reboot").body(()).unwrap();
        let refused = || Status::permission_denied("not authorized").into_http();
        tracing::subscriber::with_default(told, || {
            let log = Log::front_door();
            for _ in 0..1000 {
                let _ = log.begin(&request, || "10.0.0.9:1234").watch(refused());
            }
            let _ = Call::begin(&request, || "inside").watch(refused());
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let first = text.lines().next().unwrap();
        for part in ["INFO", "service=\"machine.MachineService\"", "method=\"Reboot\""] {
            assert!(first.contains(part), "{first}");
        }
        assert!(first.contains("code=PermissionDenied peer=\"10.0.0.9:1234\""), "{first}");
        let count = text.lines().count();
        assert!((100..1000).contains(&count), "{count}");
        assert!(!text.contains("inside"), "{text}");
    }
}
