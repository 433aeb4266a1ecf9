//! What happens to each call.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use futures_util::future::Either;
use futures_util::{FutureExt as _, TryFutureExt as _};
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Request, Response};
use orlop_proto::orlop::v1alpha1::door_service_server::DoorServiceServer;
use orlop_rpc::access::Log;
use orlop_rpc::lane::Lane;
use orlop_rpc::proxy::{Backend, Method};
use orlop_rpc::tls::Peer;
use tonic::body::Body;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use crate::fanout::{self, Leg, Question};
use crate::figures::{self, Figures};
use crate::identity::Identity;
use crate::machine::{self, Here, Refusal, Route, Wish};
use crate::nodes::Nodes;
use crate::roles::{Nameless, Roles};

/// Ask all of these nodes, and merge.
const NODES: HeaderName = HeaderName::from_static("nodes");
/// Hand on to this node.
const NODE: HeaderName = HeaderName::from_static("node");
/// Set by an apid: the name it was called by.
const PROXYFROM: HeaderName = HeaderName::from_static("proxyfrom");
/// The caller's roles.
const TALOS_ROLE: HeaderName = HeaderName::from_static("talos-role");

/// Whom the door is open to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// Those with a certificate, by its roles.
    Known(Nameless),
    /// Maintenance: everybody reads what holds no secret, and may configure the node. Nothing is
    /// handed on.
    Anybody,
}

/// The front door.
pub(crate) struct Door {
    log: Log,
    callers: Callers,
    local: Backend,
    figures: DoorServiceServer<Figures>,
    target_port: u16,
    /// Replaced when the certificates are; each call takes what is current. Never held across a wait.
    current: RwLock<Arc<Current>>,
}

struct Current {
    identity: Identity,
    /// `None` where calls are not forwarded.
    nodes: Option<Nodes>,
}

impl Door {
    pub(crate) fn new(
        routerd: Lane,
        figures: DoorServiceServer<Figures>,
        target_port: u16,
        identity: Identity,
        callers: Callers,
    ) -> Self {
        let current = RwLock::new(Arc::new(Current::new(identity, target_port)));
        let (log, local) = (Log::front_door(), Backend::new("routerd", routerd));
        Self { log, callers, local, figures, target_port, current }
    }

    /// From now on, dial other nodes with this identity. Calls under way keep their connections.
    pub(crate) fn become_known_as(&self, identity: Identity) {
        let new = Arc::new(Current::new(identity, self.target_port));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// Answers a call.
    pub(crate) fn call(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        let call = self.log.begin(&request, || match request.extensions().get::<Peer>() {
            Some(peer) => Caller::Remote(peer.address),
            None => Caller::Process(process(&request)),
        });
        // Decided here and now: what waits for the answer is small, and there is one for each call.
        let answering = self.answer(request);
        async move {
            let answer = match answering {
                Ok(answering) => answering.await,
                Err(status) => Err(status),
            };
            call.watch(answer.unwrap_or_else(Status::into_http))
        }
    }

    fn answer(
        &self,
        mut request: Request<Body>,
    ) -> Result<impl Future<Output = Result<Response<Body>, Status>> + Send + use<>, Status> {
        let uri = request.uri().clone();
        let method = Method::parse(uri.path())?;
        let (roles, allowed) = match self.callers {
            Callers::Known(nameless) => {
                let roles = roles(&request, nameless)?;
                let allowed = roles.allow(method);
                (roles, allowed)
            }
            Callers::Anybody => {
                let roles = Roles::in_maintenance();
                let allowed = roles.allow_in_maintenance(method);
                (roles, allowed)
            }
        };
        if !allowed {
            return Err(Status::permission_denied("not authorized"));
        }
        let current = self.current();
        let route = match self.callers {
            Callers::Known(_) => current.route(method, request.headers())?,
            Callers::Anybody => Route::Local,
        };
        state(request.headers_mut(), &roles);
        let nodes = || current.nodes.as_ref().ok_or_else(|| refused(Refusal::NoForwarding));
        let now = Instant::now();
        match route {
            Route::Local if method.service == figures::SERVICE => {
                let answer = self.figures.clone().oneshot(request);
                Ok(Either::Right(answer.map_err(|never| match never {}).boxed()))
            }
            Route::Local => Ok(Either::Left(self.local.call(request))),
            Route::One(target) => {
                leave(&mut request);
                Ok(Either::Left(nodes()?.get(&target, now).call(request)))
            }
            Route::Many(targets) => {
                leave(&mut request);
                let nodes = nodes()?;
                let leg = |target| Leg { backend: nodes.get(&target, now), target };
                let legs = targets.into_iter().map(leg).collect();
                let streaming = machine::is_streaming(method);
                let asking = async move {
                    let question = Question::read(request).await?;
                    if streaming {
                        Ok(fanout::streaming(legs, &question))
                    } else {
                        fanout::unary(legs, question).await
                    }
                };
                Ok(Either::Right(asking.boxed()))
            }
        }
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Current {
    fn new(identity: Identity, target_port: u16) -> Self {
        let nodes = identity.client.clone().map(|client| Nodes::new(client, target_port));
        Self { identity, nodes }
    }

    fn route(&self, method: Method<'_>, headers: &HeaderMap) -> Result<Route, Status> {
        let forwards = self.nodes.is_some();
        let here = Here { forwards, is_own: &|target| self.identity.is_own(target) };
        machine::route(method, &wish(headers), &here).map_err(refused)
    }
}

/// The caller's roles: its certificate's, or what it states if that lets it speak for others. Who comes
/// from the node itself has those it states, if it may have any.
fn roles(request: &Request<Body>, nameless: Nameless) -> Result<Roles, Status> {
    let headers = request.headers();
    let stated = headers.contains_key(TALOS_ROLE).then(|| values(headers, &TALOS_ROLE));
    if let Some(uid) = process(request) {
        return Ok(Roles::of_process(uid, stated.into_iter().flatten()));
    }
    let peer = request.extensions().get::<Peer>();
    match peer {
        Some(Peer { organizations: Some(own), .. }) => Ok(Roles::establish(own, stated, nameless)),
        Some(Peer { certificates, .. }) if !certificates.is_empty() => {
            Err(Status::unauthenticated("the client certificate cannot be read"))
        }
        _ => Err(Status::unauthenticated("no client certificate")),
    }
}

/// Who calls, as the log names him.
enum Caller {
    Remote(SocketAddr),
    /// Of this node, by its user.
    Process(Option<u32>),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(address) => address.fmt(f),
            Self::Process(Some(uid)) => write!(f, "a process of user {uid}"),
            Self::Process(None) => f.write_str("unknown"),
        }
    }
}

/// The user of a caller that came over the socket inside the node.
fn process(request: &Request<Body>) -> Option<u32> {
    request.extensions().get::<UdsConnectInfo>()?.peer_cred.map(|process| process.uid())
}

/// Tells the next hop the caller's roles, and nothing else it may have been told.
fn state(headers: &mut HeaderMap, roles: &Roles) {
    headers.remove(TALOS_ROLE);
    // A role that makes no header value matches nothing anywhere.
    for role in roles.iter().filter_map(|role| HeaderValue::from_str(role).ok()) {
        headers.append(TALOS_ROLE, role);
    }
}

/// Makes the call one that has been routed: the next apid answers for itself.
fn leave(request: &mut Request<Body>) {
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let from = HeaderValue::from_str(authority.unwrap_or("unknown"));
    let headers = request.headers_mut();
    headers.remove(NODES);
    headers.remove(NODE);
    headers.insert(PROXYFROM, from.unwrap_or(HeaderValue::from_static("unknown")));
}

fn wish(headers: &HeaderMap) -> Wish {
    Wish {
        nodes: values(headers, &NODES),
        node: values(headers, &NODE),
        routed: headers.contains_key(PROXYFROM),
    }
}

/// All values of a key. One that is no text is no target and no role either.
fn values(headers: &HeaderMap, key: &HeaderName) -> Vec<String> {
    headers
        .get_all(key)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect()
}

fn refused(refusal: Refusal) -> Status {
    let code = match refusal {
        Refusal::SeveralNode | Refusal::NotMergeable { .. } => Code::InvalidArgument,
        Refusal::NoForwarding => Code::PermissionDenied,
        Refusal::InvalidTarget(_) => Code::Internal,
    };
    Status::new(code, refusal.to_string())
}
