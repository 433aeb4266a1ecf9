//! How a node comes into the cluster, and back after a reboot: what is decided (spec §3.3). Pure.
//!
//! The order of the checks is observable and kept. What is not decided here: the ticket and the limits, which come before
//! anything is read, and the certificate.

use std::time::{Duration, SystemTime};

use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_proto::metropolis::proto::common::cluster_configuration::{
    StorageSecurityPolicy, TpmMode,
};
use orlop_proto::metropolis::proto::common::{
    ClusterConfiguration, NodeLabels, NodeState, NodeStorageSecurity, NodeTpmUsage,
};
use subtle::ConstantTimeEq as _;

use crate::labels::{self, Repeated};
use crate::limits::WAITS;
use crate::names::{KEY_LENGTH, NodeId};

/// How long after the first success a commit may be repeated.
pub const REPEATS: Duration = Duration::from_secs(600);

/// Why a node does not come in.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// No certificate of its own making.
    #[error("show the key by a certificate that it has signed itself")]
    NoKey,
    /// Something has not the length of a key.
    #[error("the {what} has {length} bytes instead of {KEY_LENGTH}")]
    Length {
        /// What.
        what: &'static str,
        /// What it has.
        length: usize,
    },
    /// The ticket is not known at the moment.
    #[error("the register ticket cannot be read now; ask again")]
    TicketUnknown,
    /// It is not the ticket.
    #[error(
        "this is not the cluster's register ticket; take the current one, as `orlopctl cluster ticket` shows it"
    )]
    WrongTicket,
    /// Too many ask.
    #[error("too many nodes register at a time; ask again in a while")]
    TooOften,
    /// Too many wait.
    #[error(
        "{0} nodes wait for approval, and no more can; approve or delete some, as `orlopctl cluster node` does"
    )]
    TooMany(usize),
    /// What the cluster is like is not known.
    #[error("the cluster's configuration cannot be read, or asks for nothing that is known")]
    Policy,
    /// It has no TPM.
    #[error("the cluster takes only nodes with a TPM, and this one has none")]
    NoTpm,
    /// It has come in before.
    #[error("this node is registered and {}; delete it before it registers again", state.as_str_name())]
    Registered {
        /// Where it stands.
        state: NodeState,
    },
    /// Another node shows the same join key.
    #[error("another node of the cluster has this join key; make a new one")]
    JoinKeyTaken,
    /// Not a kind of storage.
    #[error("a kind of storage that is not known")]
    Storage,
    /// Not a kind that the cluster wants.
    #[error(
        "the node's storage is {}, which is not what the cluster's policy {} takes",
        storage.as_str_name(), policy.as_str_name()
    )]
    Insecure {
        /// What it is.
        storage: NodeStorageSecurity,
        /// What it must be.
        policy: StorageSecurityPolicy,
    },
    /// There is no such node.
    #[error("no node has this key; register it first")]
    Unknown,
    /// Nobody has approved it.
    #[error("the node waits for approval: `orlopctl cluster node approve {0}`")]
    Waits(NodeId),
    /// It was committed, or has left.
    #[error("the node is {}, and is committed once only", state.as_str_name())]
    Committed {
        /// Where it stands.
        state: NodeState,
    },
    /// What is stored of it cannot be.
    #[error("the node is in a state that is not known")]
    Nonsense,
    /// No certificate of its own making, on the way back.
    #[error("show the join key by a certificate that it has signed itself")]
    NoJoinKey,
    /// Nobody has this join key.
    #[error("no node of the cluster has this join key; it was deleted, or never came in")]
    UnknownJoinKey,
    /// The way it kept its key is not the way it must.
    #[error("the node's configuration was {} by a TPM, and must {}", if *.sealed { "sealed" } else { "not sealed" },
        if *.sealed { "not be" } else { "be" })]
    Sealing {
        /// How it was.
        sealed: bool,
    },
    /// It is not UP.
    #[error("the node is {}, and only one that is UP joins", state.as_str_name())]
    NotUp {
        /// Where it stands.
        state: NodeState,
    },
}

impl Refused {
    /// What an honest node hears every day: not worth a line.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        matches!(self, Self::Waits(_) | Self::TooOften | Self::WrongTicket)
    }
}

/// Does it wait for approval?
#[must_use]
pub fn waits(node: &Node) -> bool {
    node.fsm_state() == NodeState::New
}

/// How the node uses its TPM.
///
/// # Errors
/// [`Refused::NoTpm`], [`Refused::Policy`].
pub fn tpm_usage(mode: TpmMode, has: bool) -> Result<NodeTpmUsage, Refused> {
    match (mode, has) {
        (TpmMode::Invalid, _) => Err(Refused::Policy),
        (TpmMode::Required, false) => Err(Refused::NoTpm),
        (TpmMode::Required | TpmMode::BestEffort, true) => Ok(NodeTpmUsage::PresentAndUsed),
        (TpmMode::Disabled, true) => Ok(NodeTpmUsage::PresentButUnused),
        (TpmMode::BestEffort | TpmMode::Disabled, false) => Ok(NodeTpmUsage::NotPresent),
    }
}

/// What a node's storage should be. None: the policy is not known.
#[must_use]
pub fn recommended(policy: StorageSecurityPolicy) -> Option<NodeStorageSecurity> {
    match policy {
        StorageSecurityPolicy::Invalid => None,
        StorageSecurityPolicy::NeedsEncryption => Some(NodeStorageSecurity::Encrypted),
        StorageSecurityPolicy::NeedsInsecure => Some(NodeStorageSecurity::Insecure),
        StorageSecurityPolicy::Permissive
        | StorageSecurityPolicy::NeedsEncryptionAndAuthentication => {
            Some(NodeStorageSecurity::AuthenticatedEncrypted)
        }
    }
}

/// Does the policy take such storage?
#[must_use]
pub fn takes(policy: StorageSecurityPolicy, storage: NodeStorageSecurity) -> bool {
    use NodeStorageSecurity as Storage;
    match policy {
        StorageSecurityPolicy::Invalid => false,
        StorageSecurityPolicy::Permissive => storage != Storage::Invalid,
        StorageSecurityPolicy::NeedsEncryption => {
            matches!(storage, Storage::Encrypted | Storage::AuthenticatedEncrypted)
        }
        StorageSecurityPolicy::NeedsEncryptionAndAuthentication => {
            storage == Storage::AuthenticatedEncrypted
        }
        StorageSecurityPolicy::NeedsInsecure => storage == Storage::Insecure,
    }
}

/// 32 bytes.
///
/// # Errors
/// [`Refused::Length`].
pub fn key(what: &'static str, bytes: &[u8]) -> Result<[u8; KEY_LENGTH], Refused> {
    bytes.try_into().map_err(|_| Refused::Length { what, length: bytes.len() })
}

/// What a node asks that registers; its ticket was right.
#[derive(Clone, Debug)]
pub struct Registration<'a> {
    /// The node's key, which it has proven to hold.
    pub key: [u8; KEY_LENGTH],
    /// What it will show after a reboot.
    pub join_key: [u8; KEY_LENGTH],
    /// Whether it has a TPM.
    pub tpm: bool,
    /// What it wants to be labelled.
    pub labels: Option<&'a NodeLabels>,
}

/// What a node that has registered is told and what is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Registered {
    /// To be stored.
    pub node: Node,
    /// The join key it had before, if that was another one.
    pub former_join_key: Option<Vec<u8>>,
    /// What its storage should be.
    pub storage: NodeStorageSecurity,
}

/// Takes a node in, which waits for approval then.
///
/// `stored`: what there is of it; `owner`: whose the join key is.
///
/// # Errors
/// [`Refused`].
pub fn register(
    asked: &Registration<'_>,
    configuration: Option<&ClusterConfiguration>,
    stored: Option<&Node>,
    owner: Option<&NodeId>,
) -> Result<Registered, Refused> {
    let configuration = configuration.ok_or(Refused::Policy)?;
    let storage = recommended(configuration.storage_security_policy()).ok_or(Refused::Policy)?;
    let usage = tpm_usage(configuration.tpm_mode(), asked.tpm)?;
    let id = NodeId::of_key(&asked.key);
    let mut node = match stored {
        None => Node {
            public_key: asked.key.to_vec(),
            fsm_state: NodeState::New.into(),
            labels: Some(labels::of_new_node(asked.labels, Repeated::FirstWins)),
            id: id.to_string(),
            ..Node::default()
        },
        Some(node) if node.fsm_state() == NodeState::New => node.clone(),
        Some(node) => return Err(Refused::Registered { state: node.fsm_state() }),
    };
    if owner.is_some_and(|owner| *owner != id) {
        return Err(Refused::JoinKeyTaken);
    }
    let former = std::mem::replace(&mut node.join_key, asked.join_key.to_vec());
    node.tpm_usage = usage.into();
    let changed = !former.is_empty() && former != node.join_key;
    Ok(Registered { node, former_join_key: changed.then_some(former), storage })
}

/// What a node asks that commits.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    /// The cluster's half of the key of its disk.
    pub cluster_unlock_key: &'a [u8],
    /// What its storage is, as a number.
    pub storage: i32,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Committed {
    /// To be stored, with a certificate.
    Now(Box<Node>),
    /// It was before: the same answer again.
    Again,
}

/// What can be said of a commit before the node is looked for: what its storage is.
///
/// # Errors
/// [`Refused::Storage`], [`Refused::Insecure`], [`Refused::Policy`].
pub fn storage(
    asked: Commit<'_>,
    configuration: Option<&ClusterConfiguration>,
) -> Result<NodeStorageSecurity, Refused> {
    let storage = NodeStorageSecurity::try_from(asked.storage).unwrap_or_default();
    if storage == NodeStorageSecurity::Invalid {
        return Err(Refused::Storage);
    }
    let policy = configuration.ok_or(Refused::Policy)?.storage_security_policy();
    if takes(policy, storage) { Ok(storage) } else { Err(Refused::Insecure { storage, policy }) }
}

/// Takes a node in for good that was approved. `committed`: when it was before.
///
/// # Errors
/// [`Refused`].
pub fn commit(
    asked: Commit<'_>,
    storage: NodeStorageSecurity,
    stored: Option<&Node>,
    id: &NodeId,
    committed: Option<SystemTime>,
    now: SystemTime,
) -> Result<Committed, Refused> {
    let node = stored.ok_or(Refused::Unknown)?;
    match node.fsm_state() {
        NodeState::Standby => {}
        NodeState::New => return Err(Refused::Waits(id.clone())),
        NodeState::Up if repeats(asked, storage, node, committed, now) => {
            return Ok(Committed::Again);
        }
        state @ (NodeState::Up | NodeState::Decommissioned) => {
            return Err(Refused::Committed { state });
        }
        NodeState::Invalid => return Err(Refused::Nonsense),
    }
    let mut node = node.clone();
    node.cluster_unlock_key = match storage {
        NodeStorageSecurity::Insecure => Vec::new(),
        _ => key("cluster unlock key", asked.cluster_unlock_key)?.to_vec(),
    };
    node.fsm_state = NodeState::Up.into();
    Ok(Committed::Now(Box::new(node)))
}

/// Is it the same commit again, of a node that has not heard the answer?
fn repeats(
    asked: Commit<'_>,
    storage: NodeStorageSecurity,
    node: &Node,
    committed: Option<SystemTime>,
    now: SystemTime,
) -> bool {
    let asked: &[u8] = match storage {
        NodeStorageSecurity::Insecure => &[],
        _ => asked.cluster_unlock_key,
    };
    committed.is_some_and(|then| apart(then, now) <= REPEATS)
        && bool::from(node.cluster_unlock_key[..].ct_eq(asked))
}

/// Lets a node back in after a reboot: the cluster's half of the key of its disk.
///
/// # Errors
/// [`Refused`].
pub fn join(
    sealed: bool,
    mode: Option<TpmMode>,
    stored: Option<&Node>,
) -> Result<Vec<u8>, Refused> {
    let node = stored.ok_or(Refused::UnknownJoinKey)?;
    let must = match (mode, node.tpm_usage()) {
        (Some(TpmMode::Required), _) => true,
        (Some(TpmMode::Disabled), _) => false,
        (_, usage) => usage == NodeTpmUsage::PresentAndUsed,
    };
    let did = node.tpm_usage() == NodeTpmUsage::PresentAndUsed;
    if sealed != must || sealed != did {
        return Err(Refused::Sealing { sealed });
    }
    match node.fsm_state() {
        NodeState::Up => Ok(node.cluster_unlock_key.clone()),
        state => Err(Refused::NotUp { state }),
    }
}

/// Has a node waited too long for approval that registered `then`? A clock that was wrong by more than that has
/// registered nobody.
#[must_use]
pub fn waited_too_long(then: SystemTime, now: SystemTime) -> bool {
    apart(then, now) >= WAITS
}

fn apart(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).or_else(|_| b.duration_since(a)).unwrap_or_default()
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
