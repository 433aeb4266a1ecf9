//! `AAA`: how a person comes by a certificate (spec §2).

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures_util::{StreamExt as _, stream};
use orlop_pki::cluster::Profile;
use orlop_proto::metropolis::proto::api::aaa_server::Aaa as Service;
use orlop_proto::metropolis::proto::api::escrow_response::ProofRequest;
use orlop_proto::metropolis::proto::api::escrow_response::proof_request::Kind;
use orlop_proto::metropolis::proto::api::{EscrowRequest, EscrowResponse};
use orlop_rpc::places::Source;
use tokio::time::timeout;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::access::Caller;
use crate::certificates::OWNER;
use crate::escrow::{self, Refused};
use crate::limits::ESCROW_SPEAKS;
use crate::names;
use crate::office::Office;

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Aaa(pub(super) Arc<Office>);

#[tonic::async_trait]
impl Service for Aaa {
    async fn escrow(
        &self,
        request: Request<Streaming<EscrowRequest>>,
    ) -> Result<Response<BoxStream<EscrowResponse>>, Status> {
        let (source, caller) = (super::source(&request), super::caller(&request)?);
        let office = Arc::clone(&self.0);
        if !office.limits().escrows(source, Instant::now()) {
            return Err(Refused::TooOften.into());
        }
        let place = Arc::clone(&office.escrows).try_acquire_owned();
        let place = place.map_err(|_| Refused::TooMany)?;
        let messages = request.into_inner();
        // Answered before the first message is there: a client may wait for that before it sends one.
        let answers = stream::once(async move {
            let answered = answer(&office, source, &caller, messages).await;
            drop(place);
            match answered {
                Ok(certificate) => vec![Ok(EscrowResponse {
                    needed: Vec::new(),
                    fulfilled: vec![possession()],
                    emitted_certificate: certificate,
                })],
                Err(End::Refused(Refused::NoKey)) => {
                    let needed =
                        EscrowResponse { needed: vec![possession()], ..EscrowResponse::default() };
                    vec![Ok(needed), Err(Refused::NoKey.into())]
                }
                Err(End::Refused(refused)) => vec![Err(refused.into())],
                Err(End::Failed(status)) => vec![Err(status)],
            }
        });
        Ok(Response::new(Box::pin(answers.flat_map(stream::iter))))
    }
}

/// Why an Escrow ends without a certificate.
enum End {
    /// The caller's fault.
    Refused(Refused),
    /// Ours.
    Failed(Status),
}

impl From<Refused> for End {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// The certificate, and a line in the log in any case.
async fn answer(
    office: &Office,
    source: Source,
    caller: &Caller,
    mut messages: Streaming<EscrowRequest>,
) -> Result<Vec<u8>, End> {
    let issued = async {
        let first = timeout(ESCROW_SPEAKS, messages.message()).await;
        let first = first.map_err(|_| Refused::Silent)?.map_err(End::Failed)?;
        issue(office, caller, first.as_ref()).await
    };
    let issued = issued.await;
    match &issued {
        Ok(_) => info!(identity = OWNER, peer = %source, "escrow: certificate handed out"),
        Err(End::Refused(refused)) => {
            office.limits().escrow_failed(source, Instant::now());
            warn!(peer = %source, why = %refused, "escrow: refused");
        }
        Err(End::Failed(status)) => {
            warn!(peer = %source, why = status.message(), "escrow: failed");
        }
    }
    issued
}

async fn issue(
    office: &Office,
    caller: &Caller,
    first: Option<&EscrowRequest>,
) -> Result<Vec<u8>, End> {
    let shown = match caller {
        Caller::Key(key) => Some(key),
        Caller::Nobody | Caller::Node(_) | Caller::Retired(_) | Caller::User(_) => None,
    };
    let key = escrow::asked(first, shown)?;
    let failed = |failure: crate::state::Failure| End::Failed(failure.into());
    let stored = office.state.bytes(names::INITIAL_OWNER).await.map_err(failed)?;
    escrow::is_owner(&key, stored.as_ref().map(|stored| &stored.value[..]))?;
    let profile = Profile::user(OWNER);
    let now = SystemTime::now();
    let issued = office.certificates.ensure(&office.state, OWNER, &profile, &key, now).await;
    issued.map_err(|error| End::Failed(error.into()))
}

/// The one proof there is.
fn possession() -> ProofRequest {
    ProofRequest { kind: Kind::RefreshCertificate.into() }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::NoParameters | Refused::Length(_) => Self::invalid_argument(text),
            Refused::Identity | Refused::OtherKey => Self::unimplemented(text),
            Refused::NoKey => Self::unauthenticated(text),
            Refused::NoOwner => Self::failed_precondition(text),
            Refused::NotOwner => Self::permission_denied(text),
            Refused::TooOften | Refused::TooMany => Self::resource_exhausted(text),
            Refused::Silent => Self::deadline_exceeded(text),
        }
    }
}
