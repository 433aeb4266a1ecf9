//! Who keeps the cluster's state, and changes of that: this node alone, or the members of an etcd (spec §4.4).
//!
//! [`crate::membership`] decides, this asks etcd and writes the roles. A node whose state is its own alone begins to move
//! it to an etcd ([`crate::moving`]) when a second node shall keep it, too, if it was told to which.

use std::convert::Infallible;
use std::future::pending;
use std::time::{Duration, SystemTime};

use orlop_proto::metropolis::node::core::curator::proto::api::get_consensus_status_response::EtcdMember;
use orlop_proto::metropolis::node::core::curator::proto::api::get_consensus_status_response::etcd_member::Status as Standing;
use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_proto::metropolis::proto::common::node_roles::ConsensusMember;
use orlop_proto::metropolis::proto::common::node_roles::consensus_member::Peer;
use orlop_store::{Etcd, Location, Member, Store};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status;
use tracing::{debug, info, warn};

use crate::membership::{self, Change, PEER_PORT};
use crate::names::{self, KEY_LENGTH, NodeId};
use crate::office::Office;
use crate::peers::{self, Peers};
use crate::state::{Changes, Failure, State, Stored};

/// From one look at members and roles to the next, and from one try to let a learner vote to the next.
const EVERY: Duration = Duration::from_secs(5);

/// Who keeps the state of the store that this curator has.
#[derive(Debug)]
pub enum Consensus {
    /// This node.
    Alone {
        /// Where the state moves to when a second one shall keep it.
        to: Option<Location>,
        /// It shall.
        wanted: Notify,
    },
    /// The members of an etcd.
    Members(Etcd),
}

/// Why a node does not become a member, or stays one.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Nobody said which.
    #[error(
        "the cluster's state lies on one node, which cannot share it: it must move to an etcd first. Start an etcd \
         there and the curator with --move-to etcd://127.0.0.1:2379, and repeat this; or stop the curator, \
         `orlop curator move --to etcd://127.0.0.1:2379`, and start it with --store of that"
    )]
    NeedsEtcd,
    /// It has begun to.
    #[error("the cluster's state moves to an etcd first, which takes a moment; repeat this then")]
    Moves,
    /// etcd does not want it, or does not answer.
    #[error("etcd: {}", orlop_rt::Chain(.0))]
    Etcd(#[from] orlop_store::Error),
    /// The cluster's state.
    #[error(transparent)]
    State(#[from] Failure),
    /// Its certificate.
    #[error("{}", orlop_rt::Chain(.0))]
    Peers(#[from] peers::Error),
    /// The node's key in the store.
    #[error("the key of {0} in the cluster's store does not have {KEY_LENGTH} bytes")]
    Key(String),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NeedsEtcd => Self::failed_precondition(text),
            Refusal::Moves
            | Refusal::Etcd(_)
            | Refusal::State(_)
            | Refusal::Peers(_)
            | Refusal::Key(_) => Self::unavailable(text),
        }
    }
}

impl Consensus {
    /// Of a store. One that is this node's own moves `to` an etcd when it must.
    #[must_use]
    pub fn of(store: &Store, to: Option<Location>) -> Self {
        match store {
            Store::Embedded(_) => Self::Alone { to, wanted: Notify::new() },
            Store::Etcd(etcd) => Self::Members(etcd.clone()),
        }
    }

    /// Waits until a second node shall keep the state, which is this node's own; where it moves to then.
    pub async fn move_wanted(&self) -> Location {
        match self {
            Self::Alone { to: Some(to), wanted } => {
                wanted.notified().await;
                to.clone()
            }
            Self::Alone { to: None, .. } | Self::Members(_) => pending().await,
        }
    }

    /// What [`GetConsensusStatus`] tells: each member, and whether it votes. `own`: this curator's node.
    ///
    /// [`GetConsensusStatus`]: orlop_proto::metropolis::node::core::curator::proto::api::GetConsensusStatusResponse
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn status(&self, own: &NodeId) -> Result<Vec<EtcdMember>, Refusal> {
        let told = |id: String, learner| EtcdMember {
            id,
            status: if learner { Standing::Learner } else { Standing::Full }.into(),
        };
        Ok(match self {
            Self::Alone { .. } => vec![told(own.to_string(), false)],
            Self::Members(etcd) => {
                let members = etcd.members().await?;
                members
                    .iter()
                    .map(|member| told(membership::name_of(member), member.learner))
                    .collect()
            }
        })
    }

    /// Is this the only node that votes?
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn votes_alone(&self, own: &NodeId, id: &NodeId) -> Result<bool, Refusal> {
        match self {
            Self::Alone { .. } => Ok(own == id),
            Self::Members(etcd) => Ok(membership::votes_alone(&etcd.members().await?, id)),
        }
    }

    /// Makes a node a member, if it is none; what its role holds then.
    ///
    /// # Errors
    /// Any [`Refusal`].
    pub async fn join(
        &self,
        own: &NodeId,
        state: &State,
        node: &Node,
        now: SystemTime,
    ) -> Result<ConsensusMember, Refusal> {
        let key = || Refusal::Key(node.id.clone());
        let public: &[u8; KEY_LENGTH] = node.public_key[..].try_into().map_err(|_| key())?;
        let id = NodeId::of_key(public);
        let members = match self {
            Self::Alone { .. } if id == *own => Vec::new(),
            Self::Alone { to: None, .. } => return Err(Refusal::NeedsEtcd),
            Self::Alone { wanted, .. } => {
                wanted.notify_one();
                return Err(Refusal::Moves);
            }
            Self::Members(etcd) => {
                let members = etcd.members().await?;
                if membership::member_of(&members, &id).is_none() {
                    let member = etcd.add_learner(&membership::peer_url(&id)).await?;
                    info!(node = %id, member = format!("{member:x}"), "a learner joins etcd");
                }
                members
            }
        };
        let peers = Peers::ensure(state, now).await?;
        let others = members.iter().filter(|member| !member.learner);
        let others = others.filter(|member| membership::node_of(member).as_ref() != Some(&id));
        let peer = |member: &Member| {
            let url = member.peer_urls.first().cloned();
            let name = membership::name_of(member);
            let url = url.unwrap_or_else(|| format!("https://{name}:{PEER_PORT}"));
            Peer { name, url }
        };
        Ok(ConsensusMember {
            ca_certificate: peers.authority().to_vec(),
            peer_certificate: peers.certificate(state, &id, public, now).await?,
            initial_crl: peers.revoked().to_vec(),
            peers: others.map(peer).collect(),
        })
    }

    /// Removes a node's member, if it is one.
    ///
    /// # Errors
    /// etcd refuses, or does not answer.
    pub async fn leave(&self, id: &NodeId) -> Result<(), Refusal> {
        let Self::Members(etcd) = self else { return Ok(()) };
        if let Some(member) = membership::member_of(&etcd.members().await?, id) {
            etcd.remove_member(member.id).await?;
            info!(node = %id, "a member leaves etcd");
        }
        Ok(())
    }

    /// Keeps members and roles in line and lets learners vote, for as long as it is polled.
    pub async fn follow(&self, office: &Office) -> Infallible {
        let Self::Members(etcd) = self else { return pending().await };
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failed = false;
        loop {
            ticks.tick().await;
            let round = self.round(etcd, office).await;
            if let Err(error) = &round {
                // It tries for ever: told once until it is well again.
                match failed {
                    true => debug!(%error, "members of etcd and roles are not looked at"),
                    false => warn!(%error, "members of etcd and roles are not looked at"),
                }
            }
            failed = round.is_err();
        }
    }

    async fn round(&self, etcd: &Etcd, office: &Office) -> Result<(), Refusal> {
        let members = self.reconcile(etcd, office).await?;
        for member in membership::learners(&members) {
            match etcd.promote(member.id).await {
                Ok(()) => info!(name = %member.name, "a learner of etcd's votes now"),
                Err(error) => {
                    debug!(error = %orlop_rt::Chain(&error), name = %member.name, "not yet")
                }
            }
        }
        Ok(())
    }

    /// Makes the next change, if one is needed; the members before it. Nobody else changes a node meanwhile: between two
    /// lists, who joins would be a member in one and have no role in the other.
    async fn reconcile(&self, etcd: &Etcd, office: &Office) -> Result<Vec<Member>, Refusal> {
        let _changing = office.locks.node.lock().await;
        let members = etcd.members().await?;
        let (nodes, _) = office.state.nodes().await?;
        let nodes: Vec<Node> = nodes.into_iter().map(|node| node.value).collect();
        if let Some(change) = membership::reconcile(&office.own, &members, &nodes) {
            info!(?change, "members of etcd and roles are not in line");
            match &change {
                Change::RemoveMember(id) => etcd.remove_member(*id).await?,
                Change::GiveRole(id) | Change::TakeController(id) | Change::TakeRole(id) => {
                    self.set_role(office, &change, id).await?;
                }
            }
        }
        Ok(members)
    }

    async fn set_role(&self, office: &Office, change: &Change, id: &NodeId) -> Result<(), Refusal> {
        let Some(Stored { value: mut node, modified }) = office.state.node(id).await? else {
            return Ok(());
        };
        let mut roles = node.roles.take().unwrap_or_default();
        match change {
            Change::GiveRole(_) => {
                let now = SystemTime::now();
                let role = self.join(&office.own, &office.state, &node, now).await?;
                roles.consensus_member = Some(role);
            }
            Change::TakeController(_) => roles.kubernetes_controller = None,
            Change::TakeRole(_) => roles.consensus_member = None,
            Change::RemoveMember(_) => {}
        }
        node.roles = Some(roles);
        let path = names::node(id);
        let changes = Changes::new().if_unchanged(&path, modified).put_message(&path, &node);
        // If the node itself changed it meanwhile, the next round looks again.
        office.change(changes).await?;
        Ok(())
    }
}
