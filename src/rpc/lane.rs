//! The way a proxy hands calls on by: one HTTP/2 connection to one server, for the calls of all callers.
//!
//! It is dialled when it is first needed and again whenever it was lost, once for all who wait. A call goes
//! into the connection from its caller's own task and its answer comes back there: no queue between
//! them, and no task for each call, which is why this stands on h2 and not on tonic's channels. Only a
//! caller who goes on sending while he is answered has a task that carries what he sends.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Either, Shared, poll_fn};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::body::Body;
use tracing::debug;

use crate::{MAX_FRAME, MAX_HEADERS};

/// Calls that are made before the server has said how many it takes at a time.
const FIRST_CALLS: usize = 100;

/// A way to one server. Clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct Lane(Arc<Way>);

/// How a lane is made.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What the server sees as `:scheme`
    pub scheme: Scheme,
    /// and `:authority`.
    pub authority: Authority,
    /// Bytes the server may send ahead on one call.
    pub stream_window: u32,
    /// Bytes it may send ahead on all calls together.
    pub connection_window: u32,
}

/// What a connection runs over.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Dialled = io::Result<Box<dyn Io>>;

struct Way {
    terms: Terms,
    dial: Box<dyn Fn() -> BoxFuture<'static, Dialled> + Send + Sync>,
    /// Held for a look or a change only.
    state: Mutex<State>,
}

enum State {
    Closed,
    /// Somebody has asked for it; all wait for the same.
    Opening(Opening),
    Open(Calls),
}

type Calls = SendRequest<Bytes>;
type Opening = Shared<BoxFuture<'static, Result<Calls, NotOpened>>>;

/// Why there is no connection, for each of those who wait for it.
#[derive(Clone, Debug)]
struct NotOpened(io::ErrorKind, String);

impl From<io::Error> for NotOpened {
    fn from(error: io::Error) -> Self {
        Self(error.kind(), error.to_string())
    }
}

impl From<NotOpened> for io::Error {
    fn from(NotOpened(kind, text): NotOpened) -> Self {
        Self::new(kind, text)
    }
}

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum Lost {
    /// There is no connection.
    Unreached(io::Error),
    /// The connection, or the call on it, broke off.
    Broken(h2::Error),
    /// The caller broke off: his own status.
    Caller(Status),
}

impl Lane {
    /// A lane over what `dial` opens; nothing is dialled yet.
    pub fn new<F, IO>(terms: Terms, dial: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<IO>> + Send + 'static,
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let dial = Box::new(move || {
            let dialling = dial();
            async move { Ok(Box::new(dialling.await?) as Box<dyn Io>) }.boxed()
        });
        Self(Arc::new(Way { terms, dial, state: Mutex::new(State::Closed) }))
    }

    /// Hands a call on, and waits until its answer begins. Dropped before, the call is cancelled.
    ///
    /// Must be called within a tokio runtime.
    pub(crate) fn send(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Inbound>, Lost>> + Send + use<> {
        match self.0.calls() {
            // On its way before anybody waits for it.
            Ok(calls) => Either::Left(self.0.send(calls, request)),
            Err(opening) => {
                let way = Arc::clone(&self.0);
                let sending = async move {
                    let opened = opening.await;
                    let calls = opened.map_err(|error| Lost::Unreached(error.into()))?;
                    way.send(calls, request).await
                };
                Either::Right(sending.boxed())
            }
        }
    }
}

impl Way {
    /// The connection, or how to wait for one.
    fn calls(self: &Arc<Self>) -> Result<Calls, Opening> {
        let mut state = self.state();
        match &*state {
            State::Opening(opening) => Err(opening.clone()),
            State::Open(calls) => match calls.clone().ready().now_or_never() {
                Some(Ok(calls)) => Ok(calls),
                // It is lost, or told us to go; whoever is under way on it hears of it from h2.
                _ => Err(self.open(&mut state)),
            },
            State::Closed => Err(self.open(&mut state)),
        }
    }

    fn send(
        &self,
        mut calls: Calls,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Inbound>, Lost>> + Send + use<> {
        let (mut head, body) = request.into_parts();
        head.uri = self.terms.address(&head.uri);
        let empty = body.is_end_stream();
        let sent = calls.send_request(Request::from_parts(head, ()), empty);
        async move {
            let (mut answer, stream) = sent.map_err(Lost::Broken)?;
            let mut outbound = (!empty).then(|| Outbound { body, stream, rest: Bytes::new() });
            let answer = poll_fn(|context| poll_call(&mut outbound, &mut answer, context)).await?;
            let pump = outbound.map(Outbound::go_on);
            Ok(answer.map(|stream| Inbound { stream, read: false, _pump: pump }))
        }
    }

    fn open(self: &Arc<Self>, state: &mut State) -> Opening {
        let way = Arc::clone(self);
        // A task of its own: it goes on when the one who asked for it goes away.
        let opening = tokio::spawn(async move {
            let opened = way.connect().await.map_err(NotOpened::from);
            *way.state() = match &opened {
                Ok(calls) => State::Open(calls.clone()),
                Err(_) => State::Closed,
            };
            opened
        });
        let opening = opening.map(|opened| match opened {
            Ok(opened) => opened,
            Err(ended) => Err(io::Error::other(ended).into()),
        });
        let opening = opening.boxed().shared();
        *state = State::Opening(opening.clone());
        opening
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> io::Result<Calls> {
        let io = (self.dial)().await?;
        let opened = Builder::new()
            .initial_window_size(self.terms.stream_window)
            .initial_connection_window_size(self.terms.connection_window)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADERS)
            .initial_max_send_streams(FIRST_CALLS)
            .enable_push(false)
            .handshake(io);
        let (calls, connection) = opened.await.map_err(io::Error::other)?;
        // Ends with the connection, which ends when nobody has `calls` any more, nor an answer on it.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection to a server ended");
            }
        });
        Ok(calls)
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lane").field(&self.0.terms).finish()
    }
}

impl Terms {
    /// `uri` as the server sees it.
    fn address(&self, uri: &Uri) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        let path = uri.path_and_query().cloned();
        parts.path_and_query = path.or_else(|| Some(PathAndQuery::from_static("/")));
        // All parts are there: nothing is left to be wrong.
        Uri::from_parts(parts).unwrap_or_default()
    }
}

/// Carries what the caller sends until the answer begins. `outbound` is `None` once all is sent.
fn poll_call(
    outbound: &mut Option<Outbound>,
    answer: &mut ResponseFuture,
    context: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, Lost>> {
    if let Some(sending) = outbound
        && let Poll::Ready(sent) = sending.poll(context)
    {
        *outbound = None;
        sent.map_err(Lost::Caller)?;
    }
    Pin::new(answer).poll(context).map_err(Lost::Broken)
}

/// What the caller sends.
struct Outbound {
    body: Body,
    stream: SendStream<Bytes>,
    /// Read, and not yet sent.
    rest: Bytes,
}

impl Outbound {
    /// Sends the rest while the answer is read, and ends with it.
    fn go_on(mut self) -> JoinSet<()> {
        let mut pump = JoinSet::new();
        pump.spawn(async move {
            if let Err(status) = poll_fn(|context| self.poll(context)).await {
                debug!(%status, "a caller broke off");
            }
        });
        pump
    }

    /// Sends as much as the server takes. That it takes no more is no error here: its answer says why.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        loop {
            if !self.rest.is_empty() {
                self.stream.reserve_capacity(self.rest.len());
                let mut room = self.stream.capacity();
                while room == 0 {
                    room = match ready!(self.stream.poll_capacity(context)) {
                        Some(Ok(room)) => room,
                        Some(Err(_)) | None => return Poll::Ready(Ok(())),
                    };
                }
                let piece = self.rest.split_to(room.min(self.rest.len()));
                let last = self.rest.is_empty() && self.body.is_end_stream();
                if self.stream.send_data(piece, last).is_err() || last {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)).transpose() {
                Ok(Some(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        let _ = self.stream.send_trailers(trailers);
                        return Poll::Ready(Ok(()));
                    }
                },
                Ok(None) => {
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(Ok(()));
                }
                Err(status) => {
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(status));
                }
            }
        }
    }
}

/// The body of an answer. Dropped before its end, the call is cancelled.
#[derive(Debug)]
pub(crate) struct Inbound {
    stream: RecvStream,
    /// All data has been read; trailers may follow.
    read: bool,
    /// Carries what the caller still sends.
    _pump: Option<JoinSet<()>>,
}

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.read {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    // Who reads the next frame has room for it: what is held is bounded there.
                    let released = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(released.map(|()| Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.read = true,
            }
        }
        self.stream
            .poll_trailers(context)
            .map(|trailers| trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::future::join_all;
    use futures_util::stream::{self, StreamExt as _};
    use http_body_util::{BodyExt as _, StreamBody};
    use orlop_rt::CancellationToken;
    use tokio::io::duplex;
    use tokio::sync::mpsc;

    use super::*;
    use crate::proxy::Backend;

    const WINDOW: u32 = 16 << 10;

    /// A server in memory, which sends back what it gets as it comes.
    #[derive(Clone)]
    struct Echo {
        dialled: Arc<AtomicUsize>,
        /// Ends the connection there is.
        stop: Arc<Mutex<CancellationToken>>,
        tasks: Arc<Mutex<JoinSet<()>>>,
    }

    impl Echo {
        fn start() -> (Self, Backend) {
            let echo =
                Self { dialled: Arc::default(), stop: Arc::default(), tasks: Arc::default() };
            let terms = Terms {
                scheme: Scheme::HTTP,
                authority: Authority::from_static("echo"),
                stream_window: WINDOW,
                connection_window: 2 * WINDOW,
            };
            let server = echo.clone();
            let lane = Lane::new(terms, move || {
                server.dialled.fetch_add(1, Ordering::Relaxed);
                let (client, io) = duplex(64 << 10);
                let stop = CancellationToken::new();
                *server.stop.lock().unwrap() = stop.clone();
                let service = tower::service_fn(|request: Request<Body>| async {
                    Ok::<_, Infallible>(Response::new(request.into_body()))
                });
                let incoming = stream::iter([Ok(io)]).chain(stream::pending());
                let serving = crate::serve(service, incoming, stop, Duration::from_secs(60));
                server.tasks.lock().unwrap().spawn(serving);
                async { Ok::<_, io::Error>(client) }
            });
            (echo, Backend::new("echo", lane))
        }

        fn dialled(&self) -> usize {
            self.dialled.load(Ordering::Relaxed)
        }
    }

    fn call(body: Body) -> Request<Body> {
        Request::post("/a.B/C").body(body).unwrap()
    }

    async fn echoed(backend: &Backend) -> Result<Bytes, Status> {
        let body = Body::new(http_body_util::Full::from(Bytes::from_static(b"hello")));
        let mut answer = backend.call(call(body)).await?;
        Ok(answer.body_mut().frame().await.unwrap()?.into_data().unwrap())
    }

    #[tokio::test]
    async fn all_share_one_connection_and_one_that_is_lost_is_dialled_again() {
        let (echo, backend) = Echo::start();
        for round in 1..=3 {
            let answers = join_all((0..50).map(|_| echoed(&backend))).await;
            assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == "hello"));
            assert_eq!(echo.dialled(), round);
            echo.stop.lock().unwrap().cancel();
            let tasks = std::mem::take(&mut *echo.tasks.lock().unwrap());
            tasks.join_all().await;
        }
    }

    #[tokio::test]
    async fn all_who_wait_hear_of_the_one_dialling_that_failed() {
        let dialled = Arc::new(AtomicUsize::new(0));
        let terms = Terms {
            scheme: Scheme::HTTP,
            authority: Authority::from_static("nobody"),
            stream_window: WINDOW,
            connection_window: WINDOW,
        };
        let count = Arc::clone(&dialled);
        let lane = Lane::new(terms, move || {
            count.fetch_add(1, Ordering::Relaxed);
            async { Err::<tokio::io::DuplexStream, _>(io::Error::other("nobody is there")) }
        });
        let backend = Backend::new("daemon", lane);
        for round in 1..=2 {
            for answer in join_all((0..20).map(|_| echoed(&backend))).await {
                let status = answer.unwrap_err();
                assert_eq!(status.code(), tonic::Code::Unavailable);
                assert_eq!(status.message(), "daemon: nobody is there");
            }
            assert_eq!(dialled.load(Ordering::Relaxed), round);
        }
    }

    #[tokio::test]
    async fn a_caller_may_go_on_sending_while_he_is_answered() {
        let (_echo, backend) = Echo::start();
        let (send, pieces) = mpsc::channel::<Result<Frame<Bytes>, Status>>(1);
        let pieces = stream::unfold(pieces, |mut pieces| async {
            pieces.recv().await.map(|piece| (piece, pieces))
        });
        let body = Body::new(StreamBody::new(pieces));
        let answer = backend.call(call(body)).await.unwrap();
        let mut answer = answer.into_body();
        // Larger than all windows, so that it is sent in parts.
        let piece = Bytes::from(vec![7; 5 * WINDOW as usize]);
        for _ in 0..10 {
            send.send(Ok(Frame::data(piece.clone()))).await.unwrap();
            let mut come = 0;
            while come < piece.len() {
                come += answer.frame().await.unwrap().unwrap().into_data().unwrap().len();
            }
            assert_eq!(come, piece.len());
        }
        let trailers = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            http::HeaderValue::from_static("0"),
        )]);
        send.send(Ok(Frame::trailers(trailers.clone()))).await.unwrap();
        drop(send);
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_trailers().unwrap(), trailers);
        assert!(answer.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_stops_what_the_caller_sends() {
        let (_echo, backend) = Echo::start();
        let (send, pieces) = mpsc::channel::<Result<Frame<Bytes>, Status>>(1);
        let pieces = stream::unfold(pieces, |mut pieces| async {
            pieces.recv().await.map(|piece| (piece, pieces))
        });
        let answer = backend.call(call(Body::new(StreamBody::new(pieces)))).await.unwrap();
        drop(answer);
        send.closed().await;
        assert_eq!(echoed(&backend).await.unwrap(), "hello", "the connection stays");
    }
}
