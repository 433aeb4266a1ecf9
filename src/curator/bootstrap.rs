//! A cluster begins with its first node (spec §6.2): the authority and the node's certificate first, then node, owner,
//! join key and configuration in one transaction. It may be repeated after a crash at any point.

use std::time::SystemTime;

use orlop_pki::cluster::{KEY_LENGTH, Profile};
use orlop_proto::metropolis::node::core::curator::proto::private::{InitialOwner, Node};
use orlop_proto::metropolis::proto::common::node_roles::{ConsensusMember, KubernetesController};
use orlop_proto::metropolis::proto::common::{
    ClusterConfiguration, NodeLabels, NodeRoles, NodeState,
};
use orlop_store::Revision;

use crate::certificates::{self, Certificates};
use crate::configuration;
use crate::labels::{self, Repeated};
use crate::names::{self, NodeId};
use crate::register::{self, Refused};
use crate::state::{Changes, Failure, State};

/// What a first node brings.
#[derive(Clone, Debug)]
pub struct Founding {
    /// The node's own key.
    pub node: [u8; KEY_LENGTH],
    /// The key it shows after a reboot.
    pub join: [u8; KEY_LENGTH],
    /// The key that may become the owner.
    pub owner: [u8; KEY_LENGTH],
    /// The cluster's half of the key of the node's disk; empty where that is not encrypted.
    pub cluster_unlock_key: Vec<u8>,
    /// Whether it has a TPM.
    pub tpm: bool,
    /// What the cluster is like; what was not given has its default.
    pub configuration: Option<ClusterConfiguration>,
    /// Of the node. Those that cannot be are left out; the last of a key wins.
    pub labels: NodeLabels,
}

/// Why there is no new cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster's state.
    #[error(transparent)]
    State(#[from] Failure),
    /// Its certificates.
    #[error(transparent)]
    Certificates(#[from] certificates::Error),
    /// What it shall be like cannot be.
    #[error("the initial cluster configuration")]
    Configuration(#[from] configuration::Refusal),
    /// The first node does not meet what its own cluster asks of nodes.
    #[error("the first node: {0}; choose another TPM mode, such as best-effort")]
    Node(#[source] Refused),
    /// The store has another one.
    #[error(
        "the store already holds a cluster that another node founded; give this node a store of its own, \
         or the key it had"
    )]
    Founded,
}

/// Makes the cluster of `state`, or finds that this node has made it; gives its authority and the node's certificate.
///
/// # Errors
/// [`Error`]. Nothing but certificates may be there then.
pub async fn found(
    state: &State,
    founding: &Founding,
    now: SystemTime,
) -> Result<(Certificates, Vec<u8>), Error> {
    let configuration = founding.configuration.clone().unwrap_or_else(configuration::initial);
    configuration::check_initial(&configuration)?;
    let tpm_usage =
        register::tpm_usage(configuration.tpm_mode(), founding.tpm).map_err(Error::Node)?;
    let id = NodeId::of_key(&founding.node);
    let certificates = Certificates::ensure_authority(state, now).await?;
    let profile = Profile::node(id.as_str());
    let name = names::node_certificate(&id);
    let certificate = certificates.ensure(state, &name, &profile, &founding.node, now).await?;

    if state.node(&id).await?.is_some() {
        // All four were written at once.
        return Ok((certificates, certificate));
    }
    let roles = NodeRoles {
        consensus_member: Some(ConsensusMember::default()),
        kubernetes_controller: Some(KubernetesController {}),
        kubernetes_worker: None,
    };
    let node = Node {
        public_key: founding.node.to_vec(),
        cluster_unlock_key: founding.cluster_unlock_key.clone(),
        fsm_state: NodeState::Up.into(),
        roles: Some(roles),
        join_key: founding.join.to_vec(),
        tpm_usage: tpm_usage.into(),
        labels: Some(labels::of_new_node(Some(&founding.labels), Repeated::LastWins)),
        id: id.to_string(),
        ..Node::default()
    };
    let (path, join) = (names::node(&id), names::join_key(&founding.join));
    let changes = Changes::new()
        .if_unchanged(&path, Revision::NONE)
        .if_unchanged(&join, Revision::NONE)
        .if_unchanged(names::INITIAL_OWNER, Revision::NONE)
        .if_unchanged(names::CONFIGURATION, Revision::NONE)
        .put_message(&path, &node)
        .put(&join, id.to_string())
        .put_message(names::INITIAL_OWNER, &InitialOwner { public_key: founding.owner.to_vec() })
        .put_message(names::CONFIGURATION, &configuration);
    if state.change(changes).await?.is_none() && state.node(&id).await?.is_none() {
        return Err(Error::Founded);
    }
    Ok((certificates, certificate))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use orlop_pki::cluster::{RawKey, Shown};
    use orlop_proto::metropolis::proto::common::node_labels::Pair;

    use super::*;
    use crate::testing::{founding, lenient, store};

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    fn key() -> RawKey {
        RawKey::generate().expect("a key")
    }

    #[tokio::test]
    async fn a_cluster_begins_with_its_first_node_and_begins_once() {
        let (_folder, store) = store().await;
        let state = State::new(store, None);
        let (node, owner) = (key(), key());
        let pair = |key: &str, value: &str| Pair { key: key.to_owned(), value: value.to_owned() };
        let mut founding = founding(&node, &owner);
        founding.labels.pairs = vec![pair("a", "1"), pair("-", "x"), pair("a", "2")];
        let (certificates, shown) = found(&state, &founding, now()).await.expect("a cluster");
        let id = NodeId::of_key(&node.public());
        let read = Shown::read(&shown).expect("a certificate");
        assert_eq!(read.node(), Some(id.as_str()));
        assert!(read.is_signed_by(certificates.authority()));
        let stored = state.node(&id).await.expect("a read").expect("a node").value;
        assert_eq!(stored.fsm_state(), NodeState::Up);
        let roles = stored.roles.clone().expect("roles");
        assert!(roles.consensus_member.is_some() && roles.kubernetes_controller.is_some());
        assert!(roles.kubernetes_worker.is_none());
        assert_eq!(stored.labels.expect("labels").pairs, [pair("a", "2")]);
        let index = state.bytes(&names::join_key(&founding.join)).await.expect("a read");
        assert_eq!(index.expect("an index").value, id.as_str());
        let stored = state.message::<InitialOwner>(names::INITIAL_OWNER).await.expect("a read");
        assert_eq!(stored.expect("an owner").value.public_key, owner.public());
        let stored =
            state.message::<ClusterConfiguration>(names::CONFIGURATION).await.expect("a read");
        assert_eq!(stored.expect("one").value, lenient());

        // It is told to found it again, after a crash or at each start, and whatever it is told now.
        let again = Founding { owner: key().public(), ..founding.clone() };
        let (same, again) = found(&state, &again, now()).await.expect("a cluster");
        assert_eq!((same.authority(), again), (certificates.authority(), shown));
        let stored = state.message::<InitialOwner>(names::INITIAL_OWNER).await.expect("a read");
        assert_eq!(stored.expect("an owner").value.public_key, owner.public());
        // Another node cannot.
        let other = crate::testing::founding(&key(), &owner);
        assert!(matches!(found(&state, &other, now()).await, Err(Error::Founded)));
        assert_eq!(state.nodes().await.expect("nodes").0.len(), 1);
    }

    #[tokio::test]
    async fn it_goes_on_wherever_it_was_killed() {
        let (node, owner) = (key(), key());
        let founding = founding(&node, &owner);
        let id = NodeId::of_key(&node.public());
        for steps in 0..3 {
            let (_folder, store) = store().await;
            let state = State::new(store, None);
            let mut before = None;
            if steps > 0 {
                let certificates =
                    Certificates::ensure_authority(&state, now()).await.expect("one");
                if steps > 1 {
                    let (name, profile) =
                        (names::node_certificate(&id), Profile::node(id.as_str()));
                    let issued =
                        certificates.ensure(&state, &name, &profile, &node.public(), now()).await;
                    before = Some(issued.expect("issued"));
                }
            }
            let (_, shown) = found(&state, &founding, now()).await.expect("a cluster");
            assert!(before.is_none_or(|before| before == shown));
            assert!(state.node(&id).await.expect("a read").is_some());
        }
    }

    #[tokio::test]
    async fn what_a_cluster_cannot_be_stops_it_before_anything_is_written() {
        let (_folder, store) = store().await;
        let state = State::new(store.clone(), None);
        let before = store.revision().await.expect("a revision");
        let (node, owner) = (key(), key());
        let sound = founding(&node, &owner);
        let domain = ClusterConfiguration { cluster_domain: "1.1".to_owned(), ..lenient() };
        let mode = ClusterConfiguration { tpm_mode: 0, ..lenient() };
        for configuration in [domain, mode, ClusterConfiguration::default()] {
            let wrong = Founding { configuration: Some(configuration), ..sound.clone() };
            let refused = found(&state, &wrong, now()).await;
            assert!(matches!(refused, Err(Error::Configuration(_))));
        }
        // By default a TPM is required.
        let strict = Founding { configuration: None, ..sound.clone() };
        let refused = found(&state, &strict, now()).await.expect_err("no TPM").to_string();
        assert!(refused.contains("choose another TPM mode"), "{refused}");
        assert_eq!(store.revision().await.expect("a revision"), before);
        let strict = Founding { tpm: true, ..strict };
        found(&state, &strict, now()).await.expect("a cluster");
    }
}
