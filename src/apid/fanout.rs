//! One call to many nodes, their answers as one (`node-api.md` §2.5 to §2.7).
//!
//! All runs within the caller's own task: when the caller goes away, so do the calls to the nodes. A
//! node that fails becomes an entry of the answer; the others' entries stay.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use orlop_rpc::MAX_MESSAGE;
use orlop_rpc::proxy::{Backend, timeout, trailers};
use tonic::Status;
use tonic::body::Body;

use crate::machine::Target;
use crate::merge::{self, Frames, Merged};

/// About how many bytes a mark adds to an answer.
const MARK: usize = 64;
/// Of a caller's deadline, this much at most, and a quarter of a short one, is kept for handing over the
/// answers that are there: the caller's clock has run since before there was a connection.
const RESERVE: Duration = Duration::from_secs(5);

/// One node to ask.
pub(crate) struct Leg {
    pub(crate) target: Target,
    pub(crate) backend: Backend,
}

/// What each node is asked: the headers of the call, and its one message.
#[derive(Clone)]
pub(crate) struct Question {
    uri: Uri,
    headers: HeaderMap,
    /// With its prefix; empty when the caller sent none.
    message: Bytes,
    /// How long a node may take, so that the caller still hears of the others.
    patience: Option<Duration>,
}

impl Question {
    /// Waits for the caller's message; a second one would go nowhere, and is not waited for.
    ///
    /// # Errors
    /// When the caller breaks off, or sends what is no message.
    pub(crate) async fn read(request: Request<Body>) -> Result<Self, Status> {
        let (mut head, mut body) = request.into_parts();
        // We cannot merge what is compressed.
        head.headers.remove("grpc-accept-encoding");
        head.headers.remove(header::CONTENT_LENGTH);
        let mut frames = Frames::new(MAX_MESSAGE);
        let message = loop {
            if let Some(framed) = frames.next_message().map_err(too_much)? {
                break framed.encode();
            }
            match body.frame().await.transpose()? {
                Some(frame) => frames.push(frame.data_ref().map_or(&[], |data| data)),
                None if frames.is_empty() => break Bytes::new(),
                None => return Err(Status::internal("the request ends within a message")),
            }
        };
        let patience = timeout(&head.headers).map(|limit| limit - (limit / 4).min(RESERVE));
        Ok(Self { uri: head.uri, headers: head.headers, message, patience })
    }

    fn request(&self) -> Request<Body> {
        let mut request = Request::new(Body::new(Full::new(self.message.clone())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Asks all nodes; their answers in the order of `legs`, as one message.
///
/// # Errors
/// When an answer has not the shape that can be merged: the whole call fails.
pub(crate) async fn unary(legs: Vec<Leg>, question: Question) -> Result<Response<Body>, Status> {
    let budget = Arc::new(AtomicUsize::new(MAX_MESSAGE));
    let answers = legs.iter().map(|leg| {
        let answer = ask(leg, question.request(), Some(Arc::clone(&budget)));
        in_time(question.patience, answer)
    });
    let answers = join_all(answers).await;
    let size = answers.iter().flatten().map(Bytes::len).sum::<usize>() + legs.len() * MARK;
    let mut merged = Merged::with_capacity(size);
    for (answer, Leg { target: Target { typed, .. }, .. }) in answers.into_iter().zip(&legs) {
        match answer {
            Ok(answer) => merged.add(&answer, typed).map_err(|malformed| {
                Status::unknown(format!("merge the answer of {typed}: {malformed}"))
            })?,
            Err(status) => merged.add_failure(&status, typed),
        }
    }
    Ok(answer(stream::iter([merged.into_frame()])))
}

/// Asks all nodes, and passes on what they send as it comes.
pub(crate) fn streaming(legs: Vec<Leg>, question: &Question) -> Response<Body> {
    answer(stream::select_all(
        legs.into_iter().map(|leg| Box::pin(follow(leg, question.request()))),
    ))
}

/// A gRPC answer of these frames, which ends well.
fn answer(frames: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let end = stream::once(async { Frame::trailers(trailers(&Status::ok(""))) });
    let frames = frames.map(Frame::data).chain(end).map(Ok::<_, Status>);
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A node that keeps silent costs its own entry, and not the caller's time for all.
async fn in_time(
    patience: Option<Duration>,
    answer: impl Future<Output = Result<Bytes, Status>>,
) -> Result<Bytes, Status> {
    let Some(patience) = patience else { return answer.await };
    tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| {
        let seconds = patience.as_secs_f32();
        Err(Status::deadline_exceeded(format!("the node does not answer within {seconds} s")))
    })
}

/// The one message a node answers with.
async fn ask(
    leg: &Leg,
    request: Request<Body>,
    budget: Option<Arc<AtomicUsize>>,
) -> Result<Bytes, Status> {
    let mut answer = Answer::begin(&leg.backend, request, budget).await?;
    let Some(message) = answer.message().await? else {
        return Err(Status::internal("the answer has no message"));
    };
    match answer.message().await? {
        None => Ok(message),
        Some(_) => Err(Status::internal("the answer has more than one message")),
    }
}

/// The messages of a node, marked and framed; when it fails, a last one says so.
fn follow(leg: Leg, request: Request<Body>) -> impl Stream<Item = Bytes> + Send {
    enum At {
        Start(Request<Body>),
        Under(Answer),
        End,
    }
    stream::unfold((At::Start(request), leg), |(at, leg)| async {
        let next = async {
            let mut answer = match at {
                At::Start(request) => Answer::begin(&leg.backend, request, None).await?,
                At::Under(answer) => answer,
                At::End => return Ok(None),
            };
            Ok::<_, Status>(answer.message().await?.map(|message| (message, answer)))
        };
        let typed = &leg.target.typed;
        let (message, at) = match next.await {
            Ok(Some((message, answer))) => {
                (merge::mark_message(&message, typed), At::Under(answer))
            }
            Ok(None) => return None,
            Err(status) => (merge::failed_message(typed, &status), At::End),
        };
        Some((merge::plain_frame(&message), (at, leg)))
    })
}

/// The answer of one node, under way.
struct Answer {
    body: Body,
    frames: Frames,
    /// How it ended, once that is known.
    end: Option<Status>,
    /// How many bytes all the nodes asked by one call may still send together.
    budget: Option<Arc<AtomicUsize>>,
}

impl Answer {
    async fn begin(
        backend: &Backend,
        request: Request<Body>,
        budget: Option<Arc<AtomicUsize>>,
    ) -> Result<Self, Status> {
        let (head, body) = backend.call(request).await?.into_parts();
        if head.status != StatusCode::OK {
            return Err(Status::unavailable(format!(
                "the node answered with HTTP status {}",
                head.status
            )));
        }
        Ok(Self { body, frames: Frames::new(MAX_MESSAGE), end: ended(head.headers), budget })
    }

    /// The next message; `None` at an end without an error.
    async fn message(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(framed) = self.frames.next_message().map_err(too_much)? {
                if framed.compressed {
                    return Err(Status::internal(
                        "the answer is compressed, which nobody asked for",
                    ));
                }
                return Ok(Some(framed.message));
            }
            if let Some(end) = self.end.take() {
                return match end.code() {
                    tonic::Code::Ok if !self.frames.is_empty() => {
                        Err(Status::internal("the answer ends within a message"))
                    }
                    tonic::Code::Ok => Ok(None),
                    _ => Err(end),
                };
            }
            match self.body.frame().await.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => {
                    self.spend(data.len())?;
                    self.frames.push(&data);
                }
                Some(Err(frame)) => self.end = frame.into_trailers().ok().and_then(ended),
                None => return Err(Status::internal("the answer ended without a status")),
            }
        }
    }

    fn spend(&self, bytes: usize) -> Result<(), Status> {
        let Some(budget) = &self.budget else { return Ok(()) };
        let left = |left: usize| left.checked_sub(bytes);
        match budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left) {
            Ok(_) => Ok(()),
            Err(_) => Err(Status::resource_exhausted(format!(
                "the answers of all nodes together are larger than max ({MAX_MESSAGE})"
            ))),
        }
    }
}

/// The status in headers or trailers. Details are left out: tonic panics on those it cannot decode.
fn ended(mut headers: HeaderMap) -> Option<Status> {
    headers.remove(Status::GRPC_STATUS_DETAILS);
    let status = Status::from_header_map(&headers)?;
    Some(Status::new(status.code(), status.message()))
}

fn too_much(error: merge::Unframed) -> Status {
    match error {
        merge::Unframed::TooLong { .. } => Status::resource_exhausted(error.to_string()),
        merge::Unframed::Flag(_) => Status::internal(error.to_string()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::Mutex;
    use std::{future, io};

    use http::uri::{Authority, Scheme};
    use orlop_proto::machine::MemoryResponse;
    use orlop_rpc::lane::{Lane, Terms};
    use prost::Message as _;
    use tokio::io::DuplexStream;
    use tokio::time::Instant;

    use super::*;

    fn leg(
        host: &str,
        dial: impl Future<Output = io::Result<DuplexStream>> + Send + 'static,
    ) -> Leg {
        let dial = Mutex::new(Some(dial));
        let terms = Terms {
            scheme: Scheme::HTTP,
            authority: Authority::from_static("node"),
            stream_window: 64 << 10,
            connection_window: 64 << 10,
        };
        let lane = Lane::new(terms, move || dial.lock().unwrap().take().unwrap());
        let target = Target { typed: host.to_owned(), host: host.to_owned() };
        Leg { target, backend: Backend::new(format!("apid of {host}"), lane) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_an_entry_before_the_callers_deadline() {
        let dead = future::ready(Err(io::ErrorKind::ConnectionRefused.into()));
        let legs = vec![leg("silent", future::pending()), leg("dead", dead)];
        let mut request = Request::post("/machine.MachineService/Memory").body(Body::empty());
        let headers = request.as_mut().unwrap().headers_mut();
        headers.insert("grpc-timeout", HeaderValue::from_static("21S"));
        let question = Question::read(request.unwrap()).await.unwrap();
        let start = Instant::now();
        let answer = unary(legs, question).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 16);
        let frame = answer.into_body().collect().await.unwrap().to_bytes();
        let nodes = MemoryResponse::decode(&frame[5..]).unwrap().messages;
        let told = nodes.into_iter().map(|node| node.metadata.unwrap());
        let told: Vec<_> = told.map(|it| (it.hostname, it.status.unwrap().code)).collect();
        let wanted =
            [("silent", tonic::Code::DeadlineExceeded), ("dead", tonic::Code::Unavailable)];
        assert_eq!(told, wanted.map(|(host, code)| (host.to_owned(), code as i32)));
    }
}
