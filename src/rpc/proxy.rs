//! Hands calls on to another server as they are.
//!
//! Headers, frames and trailers pass both ways untouched and undecoded; cancelling one side cancels
//! the other. When the backend cannot be reached, or is lost under way, the caller gets a status that
//! says which backend and why, never a broken stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::lane::{Inbound, Lane, Lost};

/// What a call's path (`/package.Service/Method`) asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method<'a> {
    /// `package.Service`.
    pub service: &'a str,
    /// The method's own name.
    pub name: &'a str,
}

impl<'a> Method<'a> {
    /// Reads a path; like grpc-go, it is cut at the last slash.
    ///
    /// # Errors
    /// `Unimplemented` when there is no method in it.
    pub fn parse(path: &'a str) -> Result<Self, Status> {
        let malformed = || Status::unimplemented(format!("malformed method name: {path:?}"));
        let (service, name) =
            path.strip_prefix('/').unwrap_or(path).rsplit_once('/').ok_or_else(malformed)?;
        if service.is_empty() || name.is_empty() {
            return Err(malformed());
        }
        Ok(Self { service, name })
    }
}

/// A server that calls are handed on to.
#[derive(Clone, Debug)]
pub struct Backend {
    name: Arc<str>,
    lane: Lane,
}

impl Backend {
    /// `name` is what callers read when the backend fails them.
    pub fn new(name: impl Into<Arc<str>>, lane: Lane) -> Self {
        Self { name: name.into(), lane }
    }

    /// Hands a call on and its answer back.
    ///
    /// A deadline among the headers (`grpc-timeout`) goes on with them, and is kept here until the
    /// answer begins.
    pub fn forward(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        let answer = self.call(request);
        async { answer.await.unwrap_or_else(Status::into_http) }
    }

    /// As [`Self::forward`], but a backend that cannot be reached, or does not begin to answer
    /// within the deadline, is an error.
    ///
    /// # Errors
    /// `Unavailable` or `DeadlineExceeded`. What the backend itself answers is never an error here.
    pub fn call(
        &self,
        mut request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, Status>> + Send + use<> {
        let (name, deadline) = (Arc::clone(&self.name), timeout(request.headers()));
        request.extensions_mut().clear();
        let answer = self.lane.send(request);
        async move {
            let answer = match deadline {
                None => answer.await,
                Some(deadline) => tokio::time::timeout(deadline, answer).await.map_err(|_| {
                    Status::deadline_exceeded(format!("{name}: no answer within {deadline:?}"))
                })?,
            };
            let response = answer.map_err(|lost| match lost {
                Lost::Unreached(error) => Status::unavailable(format!("{name}: {error}")),
                Lost::Broken(error) => broken(&name, &error),
                Lost::Caller(status) => status,
            })?;
            let over = |head: &HeaderMap| head.contains_key(Status::GRPC_STATUS);
            if response.status() != StatusCode::OK || over(response.headers()) {
                let whole = |body: Inbound| match body.is_end_stream() {
                    true => Body::empty(),
                    false => Body::new(body),
                };
                return Ok(response.map(whole));
            }
            Ok(response.map(|body| Body::new(Relay { body, name, state: State::Open })))
        }
    }
}

/// The status of a call whose backend went away. (Codes: "gRPC over HTTP2", Errors.)
fn broken(name: &str, error: &h2::Error) -> Status {
    let code = match error.reason() {
        // Nobody has looked at the call: the backend was on its way out.
        Some(Reason::NO_ERROR) if error.is_go_away() => Code::Unavailable,
        Some(
            Reason::NO_ERROR
            | Reason::PROTOCOL_ERROR
            | Reason::INTERNAL_ERROR
            | Reason::FLOW_CONTROL_ERROR
            | Reason::SETTINGS_TIMEOUT
            | Reason::FRAME_SIZE_ERROR
            | Reason::COMPRESSION_ERROR
            | Reason::CONNECT_ERROR,
        ) => Code::Internal,
        Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        // The connection is gone, or the backend takes no call. (It is not the caller who cancelled.)
        _ => Code::Unavailable,
    };
    Status::new(code, format!("{name}: {error}"))
}

/// How long the caller waits (`grpc-timeout`, "gRPC over HTTP2": at most eight digits and a unit).
/// `None` when it did not say, or not in that form.
#[must_use]
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u32 = digits.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit * value)
}

/// The body of an answer. When the backend is lost under way, it ends in trailers that say so.
struct Relay {
    body: Inbound,
    name: Arc<str>,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Open,
    /// Trailers have been passed on.
    Ended,
}

impl http_body::Body for Relay {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.state == State::Ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => Frame::trailers(trailers(&broken(&self.name, &error))),
            None => {
                let text = format!("{}: the answer ended without a status", self.name);
                Frame::trailers(trailers(&Status::internal(text)))
            }
        };
        if frame.is_trailers() {
            self.state = State::Ended;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::Ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A status as it ends a stream.
#[must_use]
pub fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Only metadata can be refused, and ours has none; the code alone would still be right.
        trailers.insert(Status::GRPC_STATUS, (status.code() as i32).into());
    }
    trailers
}
