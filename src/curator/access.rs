//! Who calls, and what he may do (spec §1.3). Pure: decided from the certificates of the connection and the method's
//! path, before a handler sees a byte of the message.
//!
//! A method is open to anybody ([`Access::Open`]; who shows a certificate he made himself is known by its key), or needs a
//! certificate of the cluster's authority. What each needs stands in one table, which is that of the descriptors. A leader
//! knows more than the certificate says ([`Rules::book`]): what was revoked, which nodes there are, which role a user has.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use orlop_pki::cluster::{KEY_LENGTH, Shown};
use orlop_proto::metropolis::proto::common::NodeState;
use orlop_proto::metropolis::proto::ext::Permission::{self, *};
use rustls_pki_types::CertificateDer;

use crate::known::Book;
use crate::names::NodeId;

/// How far the clock of the curator that made a certificate may have been ahead of ours.
const CLOCKS_APART: Duration = Duration::from_secs(300);

/// Who calls.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Caller {
    /// Nobody we know: no certificate, or none that says anything.
    Nobody,
    /// Who holds this key; only on methods that are open.
    Key([u8; KEY_LENGTH]),
    /// A node of the cluster.
    Node(NodeId),
    /// A node that was decommissioned and may still watch itself; only on [`WATCH`].
    Retired(NodeId),
    /// A person, by identity.
    User(String),
}

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Anybody with a certificate of the cluster.
    Authenticated,
    /// Who has this permission.
    Needs(Permission),
}

/// The way of a node to hear that it was decommissioned.
pub const WATCH: &str = "/metropolis.node.core.curator.proto.api.Curator/Watch";

/// Each method there is, and what it asks of its caller.
const METHODS: &[(&str, &[(&str, Access)])] = &[
    ("metropolis.proto.api.AAA", &[("Escrow", Access::Open)]),
    (
        "metropolis.proto.api.Management",
        &[
            ("GetRegisterTicket", Access::Needs(GetRegisterTicket)),
            ("GetClusterInfo", Access::Needs(ReadClusterStatus)),
            ("GetNodes", Access::Needs(ReadClusterStatus)),
            ("ApproveNode", Access::Needs(ApproveNode)),
            ("UpdateNodeRoles", Access::Needs(UpdateNodeRoles)),
            ("DecommissionNode", Access::Needs(DecommissionNode)),
            ("DeleteNode", Access::Needs(DeleteNode)),
            ("UpdateNodeLabels", Access::Needs(UpdateNodeLabels)),
            ("ConfigureCluster", Access::Needs(ConfigureCluster)),
        ],
    ),
    (
        "metropolis.proto.api.NodeManagement",
        &[
            ("Logs", Access::Needs(ReadNodeLogs)),
            ("UpdateNode", Access::Needs(UpdateNode)),
            ("Reboot", Access::Needs(NodePowerManagement)),
        ],
    ),
    (
        "metropolis.node.core.curator.proto.api.Curator",
        &[
            ("Watch", Access::Needs(ReadClusterStatus)),
            ("UpdateNodeStatus", Access::Needs(UpdateNodeSelf)),
            ("Heartbeat", Access::Needs(UpdateNodeSelf)),
            ("RegisterNode", Access::Open),
            ("CommitNode", Access::Open),
            ("JoinNode", Access::Open),
            ("IssueCertificate", Access::Authenticated),
            ("UpdateNodeClusterNetworking", Access::Needs(UpdateNodeSelf)),
            ("GetConsensusStatus", Access::Needs(ReadClusterStatus)),
        ],
    ),
    (
        "metropolis.node.core.curator.proto.api.CuratorLocal",
        &[("GetCurrentLeader", Access::Open), ("GetCACertificate", Access::Open)],
    ),
];

/// What the method at a path (`/package.Service/Method`) asks. None: there is none, or nobody has said what it asks.
#[must_use]
pub fn of_method(path: &str) -> Option<Access> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let (_, methods) = METHODS.iter().find(|(name, _)| *name == service)?;
    methods.iter().find(|(name, _)| *name == method).map(|(_, access)| *access)
}

/// Is there such a service?
#[must_use]
pub fn is_service(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|path| path.split('/').next());
    METHODS.iter().any(|(name, _)| Some(*name) == service)
}

/// What a user may do, from the table of users in the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Everything.
    Owner,
    /// Everything but removing a node for good and changing what the cluster is like.
    Operator,
    /// Looking.
    Viewer,
}

impl Role {
    /// As it is written in the store.
    #[must_use]
    pub fn of_text(text: &str) -> Option<Self> {
        match text.trim() {
            "owner" => Some(Self::Owner),
            "operator" => Some(Self::Operator),
            "viewer" => Some(Self::Viewer),
            _ => None,
        }
    }

    /// Has it this permission?
    #[must_use]
    pub fn may(self, permission: Permission) -> bool {
        match self {
            Self::Owner => true,
            Self::Operator => !matches!(permission, DeleteNode | ConfigureCluster),
            Self::Viewer => matches!(permission, ReadClusterStatus | ReadNodeLogs),
        }
    }
}

/// Why a call is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// `UNAUTHENTICATED`.
    #[error("{0}")]
    Stranger(&'static str),
    /// `PERMISSION_DENIED`.
    #[error("{who} may not do this: it needs {}", needed.as_str_name())]
    Denied {
        /// Who calls.
        who: String,
        /// What is missing.
        needed: Permission,
    },
}

impl From<Refused> for tonic::Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Stranger(_) => Self::unauthenticated(refused.to_string()),
            Refused::Denied { .. } => Self::permission_denied(refused.to_string()),
        }
    }
}

/// What callers are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The cluster's authority (DER).
    pub authority: &'a [u8],
    /// What a leader knows. Without it every user is an owner, and dates are not looked at: a node may not know the time.
    pub book: Option<&'a Book>,
    /// Now.
    pub now: SystemTime,
}

impl Rules<'_> {
    /// Who calls the method at `path`, if he may.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn admit(
        &self,
        path: &str,
        access: Access,
        certificates: &[CertificateDer<'_>],
    ) -> Result<Caller, Refused> {
        let needed = match access {
            Access::Open => return Ok(open(certificates)),
            Access::Authenticated => None,
            Access::Needs(permission) => Some(permission),
        };
        let caller = self.identify(path, certificates)?;
        let Some(needed) = needed else { return Ok(caller) };
        let (may, who) = match &caller {
            Caller::User(name) => {
                let role = self.book.map_or(Some(Role::Owner), |book| book.role(name));
                (role.is_some_and(|role| role.may(needed)), format!("the user {name:?}"))
            }
            Caller::Node(id) => {
                (matches!(needed, ReadClusterStatus | UpdateNodeSelf), format!("node {id}"))
            }
            // Admitted for this method only.
            Caller::Retired(_) => return Ok(caller),
            Caller::Nobody | Caller::Key(_) => (false, "who shows only a key".to_owned()),
        };
        if may { Ok(caller) } else { Err(Refused::Denied { who, needed }) }
    }

    fn identify(&self, path: &str, certificates: &[CertificateDer<'_>]) -> Result<Caller, Refused> {
        let refuse = |why| Err(Refused::Stranger(why));
        let [certificate] = certificates else {
            return refuse("show one certificate of this cluster, and no other");
        };
        let Ok(shown) = Shown::read(certificate) else {
            return refuse("the certificate cannot be read");
        };
        let Some(key) = shown.public_key else {
            return refuse("the certificate's key is not Ed25519");
        };
        if !shown.is_signed_by(self.authority) {
            return refuse("the certificate is not one of this cluster's authority");
        }
        if shown.authority {
            return refuse("an authority's certificate is nobody's");
        }
        let id = NodeId::of_key(&key);
        let caller = if shown.node() == Some(id.as_str()) {
            Caller::Node(id)
        } else if shown.asks && !shown.common_name.is_empty() {
            Caller::User(shown.common_name.clone())
        } else {
            return refuse("the certificate is neither a node's nor a user's");
        };
        let Some(book) = self.book else { return Ok(caller) };
        if self.now + CLOCKS_APART < shown.not_before || self.now > shown.not_after {
            return refuse(
                "the certificate is not valid now; compare the clocks, or take a new one",
            );
        }
        let state = match &caller {
            Caller::Node(id) => match book.node(id) {
                Some(state) => Some(state),
                None => return refuse("there is no such node in this cluster any more"),
            },
            _ => None,
        };
        if !book.is_revoked(&shown.serial) {
            return Ok(caller);
        }
        match caller {
            Caller::Node(id) if state == Some(NodeState::Decommissioned) && path == WATCH => {
                Ok(Caller::Retired(id))
            }
            _ => refuse("the certificate was revoked"),
        }
    }
}

/// Who calls an open method: the key of a certificate that he made himself, if he shows one.
fn open(certificates: &[CertificateDer<'_>]) -> Caller {
    let [certificate] = certificates else { return Caller::Nobody };
    let key = Shown::read(certificate).ok().and_then(|shown| shown.self_signed_key());
    key.map_or(Caller::Nobody, Caller::Key)
}

/// The paths of all methods, for the metrics and for tests.
#[must_use]
pub fn paths() -> BTreeSet<String> {
    let paths = METHODS.iter().flat_map(|(service, methods)| {
        methods.iter().map(move |(method, _)| format!("/{service}/{method}"))
    });
    paths.collect()
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
