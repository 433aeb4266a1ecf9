//! One line of log for each call: service, method, duration, code, who called.
//!
//! Written at level `debug`; when that is off, a call costs one comparison.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::{Level, debug, enabled};

/// A call under way. Dropped before its end, it counts as cancelled by the client.
#[derive(Debug)]
pub struct Call {
    /// `None` when nobody reads the log, and once the line is written.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    path: String,
    peer: String,
    started: Instant,
}

impl Call {
    /// Notes the beginning of a call; `peer` names the caller and is asked only when it is logged.
    pub fn begin<B, P: ToString>(request: &Request<B>, peer: impl FnOnce() -> P) -> Self {
        Self {
            open: enabled!(Level::DEBUG).then(|| Open {
                path: request.uri().path().to_owned(),
                peer: peer().to_string(),
                started: Instant::now(),
            }),
        }
    }

    /// Writes the line when `response` has ended, with the status it ended with.
    #[must_use]
    pub fn watch(mut self, response: Response<Body>) -> Response<Body> {
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
        let Some(Open { path, peer, started }) = self.open.take() else { return };
        let (service, method) =
            path.trim_start_matches('/').rsplit_once('/').unwrap_or((path.as_str(), ""));
        debug!(service, method, duration = ?started.elapsed(), ?code, peer, "call");
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The status in headers or trailers.
fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

struct Watched {
    body: Body,
    call: Call,
}

impl http_body::Body for Watched {
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
