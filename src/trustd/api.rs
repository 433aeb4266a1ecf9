//! What happens to each call: who calls how often and with which token, before a byte of the message is
//! looked at; then the message; and a line in the log in any case.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Request, Response};
use orlop_pki::{certificate, fingerprint};
use orlop_proto::security::security_service_server::{SecurityService, SecurityServiceServer};
use orlop_proto::security::{
    CertificateRequest, CertificateResponse, WriteFileRequest, WriteFileResponse,
};
use orlop_rpc::access::Call;
use orlop_rpc::tls::Peer;
use orlop_rt::Chain;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::ServiceExt as _;
use tracing::{error, info, warn};

use crate::drops::{self, Folders};
use crate::identity::{Identity, sha256};
use crate::limit::Limiter;
use crate::policy::Policy;

/// The longest message, in bytes, of callers who have shown nothing but the token.
const MESSAGE_LIMIT: usize = 64 << 10;
/// The longest message of established trustees: a file and its path.
const FILE_MESSAGE_LIMIT: usize = drops::SIZE_LIMIT + (8 << 10);
/// How long a call may take, its message included.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// The organization of control planes, in certificates they make for each other.
const ESTABLISHED: &str = "os:controlplane";

/// What all calls share.
pub(crate) struct Trust(Arc<Inner>);

struct Inner {
    /// Replaced when the secrets are; each call takes what is current. Never held across a wait.
    identity: RwLock<Arc<Identity>>,
    /// Who calls how often. Held for a moment in each call.
    limiter: Mutex<Limiter>,
    /// Held while a request is decided on.
    policy: Mutex<Policy>,
    folders: Folders,
    /// Held while a file is written: one at a time.
    writing: tokio::sync::Mutex<()>,
}

/// What a call may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Certificate,
    ReadFile,
    WriteFile,
}

/// Serves messages whose senders have been let in.
#[derive(Clone)]
struct Handler {
    trust: Arc<Inner>,
    identity: Arc<Identity>,
    peer: IpAddr,
}

impl Trust {
    pub(crate) fn new(identity: Identity, policy: Policy, folders: Folders) -> Self {
        Self(Arc::new(Inner {
            identity: RwLock::new(Arc::new(identity)),
            limiter: Mutex::default(),
            policy: Mutex::new(policy),
            folders,
            writing: tokio::sync::Mutex::default(),
        }))
    }

    /// From now on, sign and judge with this identity.
    pub(crate) fn become_known_as(&self, identity: Identity) {
        *self.0.identity.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
    }

    /// Answers a call.
    pub(crate) async fn call(&self, request: Request<Body>) -> Response<Body> {
        let peer = request.extensions().get::<Peer>().cloned();
        let address =
            peer.as_ref().map_or(IpAddr::from(Ipv4Addr::UNSPECIFIED), |peer| peer.address.ip());
        let call = Call::begin(&request, || address);
        call.watch(match self.admit(&request, peer.as_ref(), address) {
            Ok((method, identity)) => self.serve(method, request, identity, address).await,
            Err(status) => status.into_http(),
        })
    }

    /// Whether the call may be looked at, and with which identity.
    fn admit(
        &self,
        request: &Request<Body>,
        peer: Option<&Peer>,
        address: IpAddr,
    ) -> Result<(Method, Arc<Identity>), Status> {
        let now = Instant::now();
        let refuse = |method: &str, status: Status| {
            warn!(method, peer = %address, result = status.message(), "refused");
            status
        };
        {
            let mut limiter = lock(&self.0.limiter);
            if !limiter.admit(address.into(), now) {
                if let Some(refusals) = limiter.refusals_to_tell() {
                    warn!(peer = %address, refusals, "too many calls from one source");
                }
                return Err(Status::resource_exhausted("too many calls, try again later"));
            }
        }
        let path = request.uri().path();
        let (method, name) = match path.strip_prefix("/securityapi.SecurityService/") {
            Some(name @ "Certificate") => (Method::Certificate, name),
            Some(name @ "ReadFile") => (Method::ReadFile, name),
            Some(name @ "WriteFile") => (Method::WriteFile, name),
            _ => {
                let status =
                    Status::unimplemented("trustd has no such method, and none that streams");
                return Err(refuse("unknown", status));
            }
        };
        let identity = self.identity();
        match token(request.headers()) {
            None => return Err(refuse(name, Status::unauthenticated("missing token"))),
            Some(token) if !identity.is_token(token) => {
                lock(&self.0.limiter).punish(address.into(), now);
                return Err(refuse(name, Status::unauthenticated("invalid token")));
            }
            Some(_) => {}
        }
        match method {
            Method::ReadFile => {
                let status = Status::permission_denied("files are placed here, never handed out");
                Err(refuse(name, status))
            }
            Method::WriteFile if !established(&identity, peer) => {
                let status = Status::permission_denied(
                    "only control planes may place files, with a certificate of their own",
                );
                Err(refuse(name, status))
            }
            Method::WriteFile | Method::Certificate => Ok((method, identity)),
        }
    }

    async fn serve(
        &self,
        method: Method,
        request: Request<Body>,
        identity: Arc<Identity>,
        peer: IpAddr,
    ) -> Response<Body> {
        let limit = match method {
            Method::WriteFile => FILE_MESSAGE_LIMIT,
            Method::Certificate | Method::ReadFile => MESSAGE_LIMIT,
        };
        let handler = Handler { trust: Arc::clone(&self.0), identity, peer };
        let service = SecurityServiceServer::new(handler).max_decoding_message_size(limit);
        match timeout(CALL_LIMIT, service.oneshot(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => Status::deadline_exceeded("the call took too long").into_http(),
        }
    }

    fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.0.identity.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[tonic::async_trait]
impl SecurityService for Handler {
    async fn certificate(
        &self,
        request: tonic::Request<CertificateRequest>,
    ) -> Result<tonic::Response<CertificateResponse>, Status> {
        let csr = request.into_inner().csr;
        self.sign(&csr, SystemTime::now()).map(tonic::Response::new).inspect_err(|status| {
            warn!(method = "Certificate", peer = %self.peer, result = status.message(), "refused");
        })
    }

    async fn write_file(
        &self,
        request: tonic::Request<WriteFileRequest>,
    ) -> Result<tonic::Response<WriteFileResponse>, Status> {
        let WriteFileRequest { path, data, perm } = request.into_inner();
        let (size, digest) = (data.len(), hex(&sha256(&data)));
        let shown = drops::loggable(&path).to_owned();
        let writing = self.trust.writing.lock().await;
        let folders = self.trust.folders.clone();
        let placed = spawn_blocking(move || folders.place(&path, &data, perm)).await;
        drop(writing);
        let result = match placed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => Err(Status::internal("a defect in trustd")),
        };
        let told = result.as_ref().map_or_else(Status::message, |()| "placed");
        info!(
            method = "WriteFile", peer = %self.peer, path = shown, size, sha256 = digest,
            result = told, "file"
        );
        result.map(|()| tonic::Response::new(WriteFileResponse {}))
    }
}

impl Handler {
    fn sign(&self, csr: &[u8], now: SystemTime) -> Result<CertificateResponse, Status> {
        let request = orlop_pki::Request::from_pem(csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let grant = lock(&self.trust.policy).decide(&request, self.peer, &self.identity.own, now);
        let signed = self.identity.authority.certify(&grant.leaf, &request, now);
        let crt = signed.and_then(|crt| Ok((fingerprint(&crt)?, crt)));
        let (fingerprint, crt) = crt.map_err(|error| {
            error!(error = %Chain(&error), "sign a certificate");
            Status::internal("the certificate cannot be signed; trustd's log says why")
        })?;
        let leaf = &grant.leaf;
        info!(
            method = "Certificate", peer = %self.peer, name = leaf.common_name, dns = ?leaf.dns,
            ips = ?leaf.ips, refused = ?grant.refused, fingerprint, result = "signed", "certificate"
        );
        Ok(CertificateResponse { ca: self.identity.accepted.clone().into(), crt: crt.into() })
    }
}

/// Whether the caller has shown a control plane's client certificate.
fn established(identity: &Identity, peer: Option<&Peer>) -> bool {
    let Some(peer) = peer else { return false };
    let organizations =
        peer.certificates.first().and_then(|first| certificate::organizations(first).ok());
    organizations.is_some_and(|names| names.iter().any(|name| name == ESTABLISHED))
        && identity.judge.admits(&peer.certificates, SystemTime::now()).is_ok()
}

/// The one token of a call; several are none.
fn token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut tokens = headers.get_all("token").iter();
    match (tokens.next(), tokens.next()) {
        (Some(token), None) => Some(token.as_bytes()),
        _ => None,
    }
}

fn refused(error: &drops::Error) -> Status {
    let code = match error {
        drops::Error::Forbidden => Code::PermissionDenied,
        drops::Error::TooLarge { .. } => Code::InvalidArgument,
        drops::Error::System { .. } => {
            error!(error = %Chain(error), "place a file");
            return Status::internal("the file cannot be placed; trustd's log says why");
        }
    };
    Status::new(code, error.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Held for a moment, never across a wait.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
