//! Calls to the curator that leads, as the owner.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use orlop_pki::cluster::{RawKey, client_config};
use orlop_proto::metropolis::node::core::curator::proto::api::curator_client::CuratorClient;
use orlop_proto::metropolis::proto::api::management_client::ManagementClient;
use orlop_rpc::leader::{self, Found, Leader, Place, Resolver, Terms};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use super::{Context, Error, trust};
use crate::error::{Attempt, Error as CommandError, chain};

/// How long a call may take, finding the leader included.
const DEADLINE: Duration = Duration::from_secs(20);
/// Between two tries of a call that does no harm when it is made twice.
const AGAIN: Duration = Duration::from_millis(300);

/// A cluster, and who we are to it.
#[derive(Debug)]
pub(super) struct Session {
    resolver: Resolver,
    pub(super) authority: Vec<u8>,
}

/// `Management` of the leader.
pub(super) fn management(channel: Channel) -> ManagementClient<Channel> {
    ManagementClient::new(channel).max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
}

/// `Curator` of the leader.
pub(super) fn curator(channel: Channel) -> CuratorClient<Channel> {
    CuratorClient::new(channel).max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
}

impl Session {
    /// As the owner that the folder names.
    pub(super) async fn open(context: &Context<'_>) -> Result<Self, CommandError> {
        let owner = context.keyring.owner()?;
        Self::with(context, &owner.certificate, &owner.key).await
    }

    /// With any certificate (DER).
    pub(super) async fn with(
        context: &Context<'_>,
        certificate: &[u8],
        key: &RawKey,
    ) -> Result<Self, CommandError> {
        let seeds = seeds(context)?;
        let authority = trust::authority(context, &seeds).await?;
        let tls = client_config(&authority, Some((certificate, key)), None).map_err(Error::Keys)?;
        let terms = Terms { seeds, overrides: BTreeMap::new(), tls, learn: false };
        let session = Self { resolver: Resolver::start(terms), authority };
        if context.flags.verbose {
            let Leader { node_id, place } = session.leader().await?;
            say!(note: "{node_id} leads, at {place}");
        }
        Ok(session)
    }

    /// Who leads now.
    pub(super) async fn leader(&self) -> Result<Leader, Error> {
        let mut found = self.resolver.found();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let failed = {
                let found = found.borrow_and_update();
                if let Some(leader) = &found.leader {
                    return Ok(leader.clone());
                }
                (found.rounds > 0).then(|| (hopeless(&found), reasons(&found)))
            };
            if let Some((true, why)) = &failed {
                return Err(Error::NoLeader(why.clone()));
            }
            if timeout_at(deadline, found.changed()).await.is_err() {
                let seconds = DEADLINE.as_secs();
                let why = failed.map(|(_, why)| why);
                let why = why.unwrap_or_else(|| format!("no answer after {seconds} s"));
                return Err(Error::NoLeader(why));
            }
        }
    }

    /// A way to the leader.
    pub(super) async fn channel(&self) -> Result<Channel, Error> {
        self.leader().await?;
        Ok(self.resolver.channel().await)
    }

    /// Makes a call that may change something: it is sent once.
    pub(super) async fn once<T>(
        &self,
        what: &str,
        call: impl AsyncFn(Channel) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        self.call(what, Harm::Twice, call).await
    }

    /// Makes a call that does no harm when it is made twice: while a leader is elected it is.
    pub(super) async fn again<T>(
        &self,
        what: &str,
        call: impl AsyncFn(Channel) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        self.call(what, Harm::None, call).await
    }

    async fn call<T>(
        &self,
        what: &str,
        harm: Harm,
        call: impl AsyncFn(Channel) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let answer = timeout_at(deadline, call(self.channel().await?)).await;
            let late = || Error::Deadline { what: what.to_owned(), seconds: DEADLINE.as_secs() };
            let status = match answer.map_err(|_| late())? {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            let unreached = Attempt::unreached(&status).is_some();
            let lost = status.code() == Code::Unavailable || broken(&status);
            let repeat = unreached || (lost && harm == Harm::None);
            if !repeat || Instant::now() + AGAIN >= deadline {
                return Err(told(what, &status, lost && !unreached && harm == Harm::Twice));
            }
            sleep(AGAIN).await;
        }
    }
}

/// Whether a call may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    None,
    Twice,
}

fn told(what: &str, status: &Status, unsure: bool) -> Error {
    let why = match status.source() {
        Some(source) => chain(source),
        None => status.message().to_owned(),
    };
    Error::Refused { what: what.to_owned(), why, code: status.code(), unsure }
}

/// The connection broke: the status is of our own making.
fn broken(status: &Status) -> bool {
    status.source().is_some()
}

/// The curators that the command line names.
pub(super) fn seeds(context: &Context<'_>) -> Result<Vec<Place>, Error> {
    let places: Vec<_> = context
        .global
        .endpoints
        .iter()
        .map(|endpoint| Place {
            host: endpoint.host.clone(),
            port: endpoint.typed_port().unwrap_or(leader::PORT),
        })
        .collect();
    if places.is_empty() { Err(Error::NoEndpoint) } else { Ok(places) }
}

/// Whether nobody is there, or not who we are looking for: waiting does not help. A curator that only does
/// not know who leads gets time to find out.
fn hopeless(found: &Found) -> bool {
    found.failures.iter().all(|(_, status)| Attempt::unreached(status).is_some())
}

fn reasons(found: &Found) -> String {
    let each: Vec<_> = found.failures.iter().map(|(place, status)| reason(place, status)).collect();
    each.join("; ")
}

/// Why a curator is no help.
pub(super) fn reason(place: &Place, status: &Status) -> String {
    match (Attempt::unreached(status), status.source()) {
        // Names the place itself.
        (Some(attempt), _) => attempt.to_string(),
        (None, Some(source)) => format!("{place}: {}", chain(source)),
        (None, None) => format!("{place}: {} ({:?})", status.message(), status.code()),
    }
}

/// All of a stream's messages, each within a while of the one before.
///
/// # Errors
/// When it breaks off.
pub(super) async fn drain<T>(
    what: &str,
    mut stream: Streaming<T>,
    mut each: impl FnMut(T),
) -> Result<(), Error> {
    loop {
        match timeout(DEADLINE, stream.message()).await {
            Ok(Ok(Some(message))) => each(message),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(status)) => return Err(told(what, &status, false)),
            Err(_) => {
                return Err(Error::Deadline { what: what.to_owned(), seconds: DEADLINE.as_secs() });
            }
        }
    }
}

/// A way to a node's own API, which must be the node that is meant.
pub(super) fn node_channel(
    context: &Context<'_>,
    authority: &[u8],
    id: &str,
    address: &str,
) -> Result<Channel, CommandError> {
    let owner = context.keyring.owner()?;
    let identity = Some((&owner.certificate[..], &owner.key));
    let tls = client_config(authority, identity, Some(id)).map_err(Error::Keys)?;
    Ok(orlop_rpc::tls::pinging_channel(address, context.flags.node_port, Arc::clone(&tls)))
}

/// Waits for the answer of a node.
pub(super) async fn of_node<T>(
    what: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    match timeout(DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(told(what, &status, false)),
        Err(_) => Err(Error::Deadline { what: what.to_owned(), seconds: DEADLINE.as_secs() }),
    }
}
