//! How nodes are named, and where the cluster's state lies in the store (spec §1.5, §6.1).

use std::fmt;
use std::str::FromStr;

use orlop_store::Range;

pub use orlop_pki::cluster::KEY_LENGTH;

const PREFIX: &str = "metropolis-";
/// Hexadecimal digits of an id: the first half of the key.
const DIGITS: usize = KEY_LENGTH;

/// `metropolis-` and the first sixteen bytes of the node's public key, in lower-case hexadecimal.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(String);

/// No node's id.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is no node's id; one is metropolis- and 32 hexadecimal digits, as `orlopctl cluster nodes` shows them"
)]
pub struct NotAnId(String);

impl NodeId {
    /// Of the node whose key it is.
    #[must_use]
    pub fn of_key(public: &[u8; KEY_LENGTH]) -> Self {
        Self(orlop_pki::cluster::node_id(public))
    }

    /// As it is written everywhere.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let digits = text.strip_prefix(PREFIX).unwrap_or_default();
        let sound = digits.len() == DIGITS
            && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if sound { Ok(Self(text.to_owned())) } else { Err(NotAnId(text.to_owned())) }
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A part of the store that is one program's own: keys begin with a slash behind it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Namespace(&'static str);

/// Nodes, tickets, the cluster's certificates.
pub const CURATOR: Namespace = Namespace("namespaced:curator/");
/// Certificates of etcd's members.
pub const ETCD_PKI: Namespace = Namespace("namespaced:etcd-pki/");

impl Namespace {
    /// The key in the store.
    #[must_use]
    pub fn key(self, path: &str) -> String {
        format!("{}{path}", self.0)
    }

    /// All keys that begin so.
    #[must_use]
    pub fn range(self, path: &str) -> Range {
        Range::prefix(self.key(path))
    }

    /// What of a key of the store is the path in this namespace.
    #[must_use]
    pub fn path(self, key: &[u8]) -> Option<&str> {
        std::str::from_utf8(key).ok()?.strip_prefix(self.0)
    }
}

/// Beneath it each node, by id.
pub const NODES: &str = "/nodes/";
/// Beneath it which node a join key belongs to.
pub const JOIN_KEYS: &str = "/join_keys/";
/// What the cluster is like.
pub const CONFIGURATION: &str = "/cluster/configuration";
/// The key that may become the owner.
pub const INITIAL_OWNER: &str = "/global/initial_owner";
/// What new nodes show.
pub const REGISTER_TICKET: &str = "/global/register_ticket";
/// Beneath it who leads, or wants to.
pub const LEADER: &str = "/leader/";

/// The authority's key.
pub const AUTHORITY_KEY: &str = "/cluster-pki/keys/cluster-ca-privkey.bin";
/// What the authority has revoked.
pub const REVOKED: &str = "/cluster-pki/cluster-ca-crl.der";
/// Ours: beneath it which role a user has.
pub const USERS: &str = "/x/users/";
/// Ours: beneath it when a node registered, in seconds since 1970.
pub const REGISTERED: &str = "/x/registered/";
/// Ours: beneath it when a node was committed, in seconds since 1970.
pub const COMMITTED: &str = "/x/committed/";

/// Ours: beneath it where a curator is, as its address and port.
pub const ENDPOINTS: &str = "/x/curators/";

/// Where a node is.
#[must_use]
pub fn node(id: &NodeId) -> String {
    format!("{NODES}{id}")
}

/// Where a node's curator says where it is.
#[must_use]
pub fn endpoint(id: &NodeId) -> String {
    format!("{ENDPOINTS}{id}")
}

/// Where the owner of a join key is.
#[must_use]
pub fn join_key(public: &[u8]) -> String {
    format!("{JOIN_KEYS}{}", hex(public))
}

/// Where an issued certificate is.
#[must_use]
pub fn certificate(name: &str) -> String {
    format!("/cluster-pki/issued/{name}-cert.der")
}

/// The name of a node's certificate.
#[must_use]
pub fn node_certificate(id: &NodeId) -> String {
    format!("node-{id}")
}

/// When a node registered.
#[must_use]
pub fn registered(id: &NodeId) -> String {
    format!("{REGISTERED}{id}")
}

/// When a node was committed.
#[must_use]
pub fn committed(id: &NodeId) -> String {
    format!("{COMMITTED}{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_half_a_key() {
        let id = NodeId::of_key(&std::array::from_fn(|i| u8::try_from(i * 8).unwrap_or(0)));
        assert_eq!(id.as_str(), "metropolis-00081018202830384048505860687078");
        assert_eq!(id.as_str().parse(), Ok(id));
    }

    #[test]
    fn what_is_no_id_is_refused_before_it_is_a_key() {
        let upper = format!("metropolis-{}", "A".repeat(32));
        let slash = format!("metropolis-{}/", "a".repeat(31));
        let long = format!("metropolis-{}", "a".repeat(33));
        for text in ["", "/", "metropolis-", "metropolis-12", &upper, &slash, &long] {
            assert_eq!(text.parse::<NodeId>(), Err(NotAnId(text.to_owned())));
        }
    }

    #[test]
    fn keys_are_those_of_an_existing_cluster() {
        let id: NodeId = format!("metropolis-{}", "0".repeat(32)).parse().expect("an id");
        let key = CURATOR.key(&node(&id));
        assert_eq!(key, format!("namespaced:curator//nodes/{id}"));
        assert_eq!(CURATOR.path(key.as_bytes()), Some(&*node(&id)));
        assert_eq!(join_key(&[0xab, 1]), "/join_keys/ab01");
    }
}
