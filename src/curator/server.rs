//! The curator's port: TLS, who calls, and which face the curator shows.
//!
//! Every call is judged ([`crate::access`]) before a handler sees its message. A curator leads or follows; what it serves
//! changes with that ([`Personality`]), and calls under way end at once when it does: `UNAVAILABLE`, and the client
//! looks for the new leader.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use orlop_rpc::Limits;
use orlop_rpc::Routes;
use orlop_rpc::access::Log;
use orlop_rpc::places::{self, Most};
use orlop_rpc::tls::{self, Peer};
use orlop_rt::CancellationToken;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use crate::access::{self, Rules};
use crate::api::{self, Local};
use crate::office::Office;

/// Connections at a time: every node has one or two, and all of a cluster may come from one address.
const MOST: Most = Most { all: 16_384, each: 12_288 };
/// How long calls may take to end when the curator stops.
const GRACE: Duration = Duration::from_millis(500);
/// The one service of those who do not lead.
const LOCAL: &str = "/metropolis.node.core.curator.proto.api.CuratorLocal/";

/// What a curator is at the moment.
#[derive(Clone, Debug)]
pub struct Personality {
    services: Routes,
    local: Local,
    /// Of a leader.
    office: Option<Arc<Office>>,
    /// Cancelled when it is this no more.
    left: CancellationToken,
}

impl Personality {
    /// It leads, until `left`.
    #[must_use]
    pub fn leader(office: Arc<Office>, local: Local, left: CancellationToken) -> Self {
        let services = api::of_leader(&office, local.clone());
        Self { services, local, office: Some(office), left }
    }

    /// It follows, until `left`.
    #[must_use]
    pub fn follower(local: Local, left: CancellationToken) -> Self {
        Self { services: api::of_anybody(local.clone()), local, office: None, left }
    }

    /// Answers a call.
    async fn answer(self, mut request: Request<Body>) -> Response<Body> {
        if let Err(status) = self.judge(&mut request) {
            return status.into_http();
        }
        let left = Status::unavailable("this curator changes its office; ask again");
        tokio::select! {
            answer = self.services.oneshot(request) => match answer {
                Ok(answer) => {
                    let until = Box::pin(self.left.cancelled_owned());
                    answer.map(|body| Body::new(Until { body, until: Some(until) }))
                }
                Err(never) => match never {},
            },
            () = self.left.cancelled() => left.into_http(),
        }
    }

    /// Whether the call goes on, and who makes it.
    fn judge(&self, request: &mut Request<Body>) -> Result<(), Status> {
        let path = request.uri().path();
        let Some(access) = access::of_method(path) else {
            let what = "nobody has said who may call this method";
            return Err(match access::is_service(path) {
                true => Status::internal(what),
                false => Status::unimplemented("there is no such service here"),
            });
        };
        if self.office.is_none() && !path.starts_with(LOCAL) {
            return Err(self.elsewhere());
        }
        let peer = request.extensions().get::<Peer>();
        let certificates = peer.map_or(&[][..], |peer| &peer.certificates);
        let now = SystemTime::now();
        let caller = match &self.office {
            Some(office) => office.known.look(|book| {
                let authority = office.certificates.authority();
                Rules { authority, book: Some(book), now }.admit(path, access, certificates)
            }),
            // All that a follower serves is open.
            None => Rules { authority: &[], book: None, now }.admit(path, access, certificates),
        };
        let caller = caller?;
        request.extensions_mut().insert(caller);
        Ok(())
    }

    /// Where to ask instead.
    fn elsewhere(&self) -> Status {
        let mut status = Status::unavailable("this curator does not lead");
        let Some(leader) = self.local.leader() else { return status };
        let metadata = status.metadata_mut();
        if let Ok(id) = leader.id.as_str().parse() {
            metadata.insert("x-leader-node-id", id);
        }
        let endpoint = leader.host.map(|host| match host.contains(':') {
            true => format!("[{host}]:{}", leader.port),
            false => format!("{host}:{}", leader.port),
        });
        if let Some(endpoint) = endpoint.and_then(|endpoint| endpoint.parse().ok()) {
            metadata.insert("x-leader-endpoint", endpoint);
        }
        status
    }
}

/// Serves the port with whatever face is current, until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    configs: watch::Receiver<Arc<ServerConfig>>,
    faces: watch::Receiver<Personality>,
    shutdown: CancellationToken,
) {
    let log = Log::front_door();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (personality, log) = (faces.borrow().clone(), log.clone());
        async move {
            let call = log.begin(&request, || match request.extensions().get::<Peer>() {
                Some(peer) => peer.address.to_string(),
                None => "nobody".to_owned(),
            });
            Ok::<_, Infallible>(call.watch(personality.answer(request).await))
        }
    });
    let incoming = places::admitted(tls::incoming(listener, configs, Arc::default()), MOST);
    orlop_rpc::serve_within(Limits::new(GRACE), service, incoming, shutdown).await;
}

/// An answer that ends when the office does.
struct Until {
    body: Body,
    /// None once it has ended.
    until: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(until) = &mut this.until else { return Poll::Ready(None) };
        if until.as_mut().poll(context).is_ready() {
            this.until = None;
            let mut trailers = HeaderMap::new();
            let code = HeaderValue::from(Code::Unavailable as i32);
            trailers.insert(Status::GRPC_STATUS, code);
            let why = "this%20curator%20changes%20its%20office%3B%20ask%20again";
            trailers.insert(Status::GRPC_MESSAGE, HeaderValue::from_static(why));
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if frame.is_none() {
            this.until = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.until.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// The server's side of TLS, of a node's certificate (DER) and key.
///
/// # Errors
/// rustls refuses them.
pub fn tls_config(
    certificate: &[u8],
    key: &orlop_pki::cluster::RawKey,
) -> Result<Arc<ServerConfig>, orlop_pki::Error> {
    let certificate = orlop_pki::encoding::certificate_to_pem(certificate);
    orlop_pki::tls::asking_server_config(&certificate, key.to_pem().expose())
}
