//! Nodes come in, stay, and come back: what [`crate::register`] decides is read, written and answered here.
//!
//! Each step is one transaction: a curator that is killed has done all of it or nothing, and the node asks again.

use std::time::{Duration, Instant, SystemTime};

use orlop_pki::cluster::Profile;
use orlop_proto::metropolis::node::core::curator::proto::api::{
    CommitNodeRequest, CommitNodeResponse, JoinNodeRequest, JoinNodeResponse, RegisterNodeRequest,
    RegisterNodeResponse,
};
use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_proto::metropolis::proto::common::ClusterConfiguration;
use orlop_rpc::places::Source;
use orlop_store::Revision;
use tonic::Status;
use tracing::{info, warn};

use crate::access::Caller;
use crate::certificates;
use crate::configuration;
use crate::known;
use crate::limits::WAITING;
use crate::names::{self, KEY_LENGTH, NodeId};
use crate::office::Office;
use crate::register::{self, Commit, Committed, Refused, Registration};
use crate::state::{Changes, Failure, Stored};

/// Why a node is not taken in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The cluster's state.
    #[error(transparent)]
    State(#[from] Failure),
    /// Its certificate.
    #[error(transparent)]
    Certificates(#[from] certificates::Error),
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refused) => refused.into(),
            Error::State(failure) => failure.into(),
            Error::Certificates(error) => error.into(),
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::NoKey => Self::unauthenticated(text),
            Refused::Length { .. } | Refused::Policy | Refused::Storage => {
                Self::invalid_argument(text)
            }
            Refused::TicketUnknown => Self::unavailable(text),
            Refused::TooOften | Refused::TooMany(_) => Self::resource_exhausted(text),
            Refused::WrongTicket
            | Refused::NoTpm
            | Refused::Waits(_)
            | Refused::NoJoinKey
            | Refused::Sealing { .. } => Self::permission_denied(text),
            Refused::Registered { .. }
            | Refused::Insecure { .. }
            | Refused::Committed { .. }
            | Refused::NotUp { .. } => Self::failed_precondition(text),
            Refused::JoinKeyTaken => Self::already_exists(text),
            Refused::Unknown | Refused::UnknownJoinKey => Self::not_found(text),
            Refused::Nonsense => Self::internal(text),
        }
    }
}

/// When a call came, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Where from.
    pub source: Source,
    /// By a clock that nobody sets.
    pub instant: Instant,
    /// By the clock on the wall.
    pub now: SystemTime,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn of(source: Source) -> Self {
        Self { source, instant: Instant::now(), now: SystemTime::now() }
    }
}

/// A node registers. The ticket is looked at before anything is locked or read.
///
/// # Errors
/// [`Error`].
pub async fn register(
    office: &Office,
    caller: &Caller,
    asked: &RegisterNodeRequest,
    moment: Moment,
) -> Result<RegisterNodeResponse, Error> {
    let key = key_of(caller).ok_or(Refused::NoKey)?;
    let join_key = register::key("join key", &asked.join_key)?;
    match office.known.look(|book| book.ticket(&asked.register_ticket)) {
        known::Shown::Right => {}
        known::Shown::Wrong => return Err(Refused::WrongTicket.into()),
        known::Shown::Unknown => return Err(Refused::TicketUnknown.into()),
    }
    if !office.limits().registers(moment.source, moment.instant) {
        return Err(Refused::TooOften.into());
    }
    let asked =
        Registration { key, join_key, tpm: asked.have_local_tpm, labels: asked.labels.as_ref() };
    let (id, index) = (NodeId::of_key(&key), names::join_key(&join_key));
    let (path, registered_at) = (names::node(&id), names::registered(&id));

    let _held = office.locks.node.lock().await;
    loop {
        let configuration = configuration(office).await?;
        let stored = office.state.node(&id).await?;
        let owner = owner(office, &index).await?;
        let registered = register::register(
            &asked,
            configuration.as_ref(),
            stored.as_ref().map(|stored| &stored.value),
            owner.as_ref().map(|owner| &owner.value),
        )?;
        let waiting = office.known.look(known::Book::waiting);
        if stored.is_none() && waiting >= WAITING {
            return Err(Refused::TooMany(waiting).into());
        }
        let answer = RegisterNodeResponse {
            cluster_configuration: configuration,
            tpm_usage: registered.node.tpm_usage,
            recommended_node_storage_security: registered.storage.into(),
        };
        if stored.as_ref().is_some_and(|stored| stored.value == registered.node) {
            return Ok(answer);
        }
        let mut changes = Changes::new()
            .if_unchanged(&path, modified(stored.as_ref()))
            .if_unchanged(&index, modified(owner.as_ref()))
            .put_message(&path, &registered.node)
            .put(&index, id.to_string());
        if stored.is_none() {
            changes = changes.put(&registered_at, seconds(moment.now));
        }
        if let Some(former) = registered.former_join_key {
            changes = changes.remove(&names::join_key(&former));
        }
        if office.change(changes).await?.is_some() {
            info!(node = %id, peer = %moment.source, again = stored.is_some(), "registered");
            return Ok(answer);
        }
    }
}

/// An approved node becomes one of the cluster for good.
///
/// # Errors
/// [`Error`].
pub async fn commit(
    office: &Office,
    caller: &Caller,
    asked: &CommitNodeRequest,
    moment: Moment,
) -> Result<CommitNodeResponse, Error> {
    let key = key_of(caller).ok_or(Refused::NoKey)?;
    let commit =
        Commit { cluster_unlock_key: &asked.cluster_unlock_key, storage: asked.storage_security };
    let storage = register::storage(commit, configuration(office).await?.as_ref())?;
    let id = NodeId::of_key(&key);
    let (path, committed_at) = (names::node(&id), names::committed(&id));

    let _held = office.locks.node.lock().await;
    loop {
        let stored = office.state.node(&id).await?;
        let before = office.state.bytes(&committed_at).await?;
        let before = before.and_then(|stored| moment_of(&stored.value));
        let node = stored.as_ref().map(|stored| &stored.value);
        let committed = register::commit(commit, storage, node, &id, before, moment.now)?;
        let (name, profile) = (names::node_certificate(&id), Profile::node(id.as_str()));
        let (certificate, mut changes) =
            office.certificates.plan(&office.state, &name, &profile, &key, moment.now).await?;
        let again = committed == Committed::Again;
        if let Committed::Now(node) = committed {
            changes = changes
                .if_unchanged(&path, modified(stored.as_ref()))
                .put_message(&path, &*node)
                .put(&committed_at, seconds(moment.now))
                .remove(&names::registered(&id));
        }
        if office.change(changes).await?.is_some() {
            info!(node = %id, peer = %moment.source, again, "committed");
            return Ok(CommitNodeResponse {
                ca_certificate: office.certificates.authority().to_vec(),
                node_certificate: certificate,
            });
        }
    }
}

/// A node comes back after a reboot.
///
/// # Errors
/// [`Error`].
pub async fn join(
    office: &Office,
    caller: &Caller,
    asked: &JoinNodeRequest,
    moment: Moment,
) -> Result<JoinNodeResponse, Error> {
    let key = key_of(caller).ok_or(Refused::NoJoinKey)?;
    let id = owner(office, &names::join_key(&key)).await?.ok_or(Refused::UnknownJoinKey)?.value;
    let stored = office.state.node(&id).await?;
    // Between the two it may have got another one.
    let node = stored.as_ref().map(|stored| &stored.value).filter(|node| node.join_key == key);
    let mode = configuration(office).await?.map(|configuration| configuration.tpm_mode());
    let cluster_unlock_key = register::join(asked.using_sealed_configuration, mode, node)?;
    info!(node = %id, peer = %moment.source, "joined");
    Ok(JoinNodeResponse { cluster_unlock_key })
}

/// Forgets nodes that have waited too long for approval; one whose time is not known waits from now on.
///
/// # Errors
/// The store.
pub async fn expire(office: &Office, now: SystemTime) -> Result<(), Failure> {
    for id in office.known.look(known::Book::waiting_ids) {
        let _held = office.locks.node.lock().await;
        let since = office.state.bytes(&names::registered(&id)).await?;
        let changes = match since.as_ref().and_then(|since| moment_of(&since.value)) {
            None => Changes::new().put(&names::registered(&id), seconds(now)),
            Some(then) if !register::waited_too_long(then, now) => continue,
            Some(_) => match office.state.node(&id).await {
                Ok(Some(stored)) if register::waits(&stored.value) => {
                    warn!(node = %id, "nobody has approved it in a day: it is forgotten");
                    forget(&id, &stored.value).if_unchanged(&names::node(&id), stored.modified)
                }
                Ok(_) => continue,
                // One that cannot be read is an operator's to look at.
                Err(Failure::Damaged { .. }) => continue,
                Err(failure) => return Err(failure),
            },
        };
        office.change(changes).await?;
    }
    Ok(())
}

/// What must be removed with a node; its certificate is another matter
/// ([`retire`](certificates::Certificates::retire)).
#[must_use]
pub fn forget(id: &NodeId, node: &Node) -> Changes {
    let changes = Changes::new()
        .remove(&names::node(id))
        .remove(&names::registered(id))
        .remove(&names::committed(id));
    if node.join_key.is_empty() {
        changes
    } else {
        changes.remove(&names::join_key(&node.join_key))
    }
}

fn key_of(caller: &Caller) -> Option<[u8; KEY_LENGTH]> {
    match caller {
        Caller::Key(key) => Some(*key),
        Caller::Nobody | Caller::Node(_) | Caller::Retired(_) | Caller::User(_) => None,
    }
}

/// None: there is none, or none that can be read.
async fn configuration(office: &Office) -> Result<Option<ClusterConfiguration>, Failure> {
    match office.state.message(names::CONFIGURATION).await {
        Ok(stored) => Ok(stored.map(|stored| configuration::stored(stored.value))),
        Err(Failure::Damaged { path, why }) => {
            warn!(path, why, "the cluster's configuration is damaged");
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// Whose join key it is.
async fn owner(office: &Office, index: &str) -> Result<Option<Stored<NodeId>>, Failure> {
    let Some(stored) = office.state.bytes(index).await? else { return Ok(None) };
    let id = std::str::from_utf8(&stored.value).ok().and_then(|text| text.parse().ok());
    let damaged =
        || Failure::Damaged { path: index.to_owned(), why: "it is no node's id".to_owned() };
    Ok(Some(Stored { value: id.ok_or_else(damaged)?, modified: stored.modified }))
}

fn modified<T>(stored: Option<&Stored<T>>) -> Revision {
    stored.map_or(Revision::NONE, |stored| stored.modified)
}

/// Since 1970, as text.
fn seconds(moment: SystemTime) -> String {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_secs().to_string()
}

fn moment_of(text: &[u8]) -> Option<SystemTime> {
    let seconds = std::str::from_utf8(text).ok()?.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
#[path = "enrol_tests.rs"]
mod tests;
