//! `Management`: what operators ask of a cluster (spec §4).

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures_util::stream;
use orlop_proto::metropolis::node::core::curator::proto::private::Node as StoredNode;
use orlop_proto::metropolis::proto::api::management_server::Management as Service;
use orlop_proto::metropolis::proto::api::{
    ApproveNodeRequest, ApproveNodeResponse, ConfigureClusterRequest, ConfigureClusterResponse,
    DecommissionNodeRequest, DecommissionNodeResponse, DeleteNodeRequest, DeleteNodeResponse,
    GetClusterInfoRequest, GetClusterInfoResponse, GetNodesRequest, GetRegisterTicketRequest,
    GetRegisterTicketResponse, Node, UpdateNodeLabelsRequest, UpdateNodeLabelsResponse,
    UpdateNodeRolesRequest, UpdateNodeRolesResponse, decommission_node_request,
    delete_node_request, update_node_labels_request, update_node_roles_request,
};
use orlop_proto::metropolis::proto::common::{ClusterConfiguration, NodeRoles, NodeState};
use tokio::task::yield_now;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::select::{self, Target};
use super::told;
use crate::certificates::Forget;
use crate::filter::Filter;
use crate::labels;
use crate::names::{self, NodeId};
use crate::office::Office;
use crate::roles::{self, Membership, Wanted};
use crate::state::{Changes, Stored};
use crate::{configuration, directory, kubernetes, ticket};

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Operators(pub(super) Arc<Office>);

/// Which node a request means; each of them has a choice of its own.
macro_rules! target {
    ($choice:expr, $kind:path) => {{
        use $kind as Kind;
        match $choice {
            Some(Kind::Pubkey(key)) => Target::of_key(key)?,
            Some(Kind::Id(id)) => Target::of_id(id.parse()?),
            None => return Err(Target::unset()),
        }
    }};
}

#[tonic::async_trait]
impl Service for Operators {
    async fn get_register_ticket(
        &self,
        _: Request<GetRegisterTicketRequest>,
    ) -> Result<Response<GetRegisterTicketResponse>, Status> {
        let ticket = ticket::current(&self.0).await?;
        Ok(Response::new(GetRegisterTicketResponse { ticket }))
    }

    async fn get_cluster_info(
        &self,
        _: Request<GetClusterInfoRequest>,
    ) -> Result<Response<GetClusterInfoResponse>, Status> {
        let office = &self.0;
        super::current(office).await?;
        let nodes = office.roster.all();
        let stored = office.state.message::<ClusterConfiguration>(names::CONFIGURATION).await;
        let configuration = match stored {
            Ok(stored) => stored.map(|stored| configuration::stored(stored.value)),
            Err(crate::state::Failure::Damaged { path, why }) => {
                tracing::warn!(path, why, "the cluster's configuration is left out");
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Response::new(GetClusterInfoResponse {
            cluster_directory: Some(directory::directory(nodes.iter().map(AsRef::as_ref))),
            ca_certificate: office.certificates.authority().to_vec(),
            cluster_configuration: configuration,
        }))
    }

    async fn get_nodes(
        &self,
        request: Request<GetNodesRequest>,
    ) -> Result<Response<BoxStream<Node>>, Status> {
        let filter = Filter::new(&request.into_inner().filter)?;
        super::current(&self.0).await?;
        let listing = Listing {
            nodes: self.0.roster.all().into_iter(),
            office: Arc::clone(&self.0),
            filter,
            now: Instant::now(),
        };
        let nodes = stream::unfold(Some(listing), |state| async move {
            let mut listing = state?;
            match listing.next().await? {
                Ok(node) => Some((Ok(node), Some(listing))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(nodes)))
    }

    async fn approve_node(
        &self,
        request: Request<ApproveNodeRequest>,
    ) -> Result<Response<ApproveNodeResponse>, Status> {
        let target = Target::of_key(request.into_inner().pubkey)?;
        let approve = |mut node: StoredNode| match node.fsm_state() {
            NodeState::New => {
                node.set_fsm_state(NodeState::Standby);
                Ok(Some(node))
            }
            NodeState::Standby | NodeState::Up => Ok(None),
            NodeState::Decommissioned => Err(Status::failed_precondition(
                "the node is decommissioned; delete it, and it may register anew",
            )),
            NodeState::Invalid => Err(unknown_state(&node)),
        };
        select::update(&self.0, &target, approve).await?;
        tracing::info!(node = %target.id, "a node is approved");
        Ok(Response::new(ApproveNodeResponse {}))
    }

    async fn update_node_roles(
        &self,
        request: Request<UpdateNodeRolesRequest>,
    ) -> Result<Response<UpdateNodeRolesResponse>, Status> {
        let request = request.into_inner();
        let target = target!(request.node, update_node_roles_request::Node);
        let wanted = Wanted {
            consensus_member: request.consensus_member,
            kubernetes_controller: request.kubernetes_controller,
            kubernetes_worker: request.kubernetes_worker,
        };
        self.set_roles(&target, wanted).await?;
        Ok(Response::new(UpdateNodeRolesResponse {}))
    }

    async fn decommission_node(
        &self,
        request: Request<DecommissionNodeRequest>,
    ) -> Result<Response<DecommissionNodeResponse>, Status> {
        let target = target!(request.into_inner().node, decommission_node_request::Node);
        self.decommission(&target).await?;
        Ok(Response::new(DecommissionNodeResponse {}))
    }

    async fn delete_node(
        &self,
        request: Request<DeleteNodeRequest>,
    ) -> Result<Response<DeleteNodeResponse>, Status> {
        let request = request.into_inner();
        let target = target!(request.node, delete_node_request::Node);
        let with_roles = request.safety_bypass_has_roles.is_some();
        let while_up = request.safety_bypass_not_decommissioned.is_some();
        self.delete(&target, with_roles, while_up).await?;
        Ok(Response::new(DeleteNodeResponse {}))
    }

    async fn update_node_labels(
        &self,
        request: Request<UpdateNodeLabelsRequest>,
    ) -> Result<Response<UpdateNodeLabelsResponse>, Status> {
        let request = request.into_inner();
        let target = target!(request.node, update_node_labels_request::Node);
        let upsert = request.upsert.into_iter().map(|pair| (pair.key, pair.value));
        let change = labels::Change::new(upsert, request.delete)?;
        let update = |mut node: StoredNode| {
            let labels = change.clone().apply(node.labels.as_ref())?;
            let changed = node.labels.as_ref() != Some(&labels);
            node.labels = Some(labels);
            Ok(changed.then_some(node))
        };
        select::update(&self.0, &target, update).await?;
        Ok(Response::new(UpdateNodeLabelsResponse {}))
    }

    async fn configure_cluster(
        &self,
        request: Request<ConfigureClusterRequest>,
    ) -> Result<Response<ConfigureClusterResponse>, Status> {
        let ConfigureClusterRequest { base_config, new_config, update_mask } = request.into_inner();
        let change = configuration::Change::new(base_config, new_config, update_mask)?;
        let office = &self.0;
        let _one_after_the_other = office.locks.configuration.lock().await;
        loop {
            let path = names::CONFIGURATION;
            let stored = office.state.message::<ClusterConfiguration>(path).await?;
            let missing = || Status::unavailable("the cluster's configuration is not in its store");
            let Stored { value, modified } = stored.ok_or_else(missing)?;
            let before = configuration::stored(value);
            let after = change.clone().apply(before.clone())?;
            let changes = Changes::new().if_unchanged(path, modified);
            let changes = if after == before { changes } else { changes.put_message(path, &after) };
            if office.change(changes).await?.is_some() {
                let resulting_config = Some(after);
                return Ok(Response::new(ConfigureClusterResponse { resulting_config }));
            }
        }
    }
}

impl Operators {
    /// etcd first, the roles last and all at once. What etcd has accepted is not undone when a later step fails: roles
    /// are brought in line with it sooner or later.
    async fn set_roles(&self, target: &Target, wanted: Wanted) -> Result<(), Status> {
        let office = &self.0;
        let _one_after_the_other = office.locks.node.lock().await;
        let path = names::node(&target.id);
        loop {
            let Stored { value: mut node, modified } = target.load(office).await?;
            let before = node.roles.clone().unwrap_or_default();
            let leaves =
                wanted.consensus_member == Some(false) && before.consensus_member.is_some();
            let alone = leaves && office.consensus.votes_alone(&office.own, &target.id).await?;
            let plan = roles::plan(node.fsm_state(), &before, wanted, alone)?;
            let joined = match plan.membership {
                Membership::Stays => None,
                Membership::Joins => {
                    let now = SystemTime::now();
                    let joined = office.consensus.join(&office.own, &office.state, &node, now);
                    Some(joined.await?)
                }
                Membership::Leaves => {
                    office.consensus.leave(&target.id).await?;
                    None
                }
            };
            let after = plan.roles(before.clone(), joined);
            if after == before {
                return Ok(());
            }
            tracing::info!(node = %target.id, before = names_of(&before), after = names_of(&after), "roles are changed");
            node.roles = Some(after);
            let changes = Changes::new().if_unchanged(&path, modified).put_message(&path, &node);
            if office.change(changes).await?.is_some() {
                return Ok(());
            }
        }
    }

    async fn decommission(&self, target: &Target) -> Result<(), Status> {
        let office = &self.0;
        let _one_after_the_other = office.locks.node.lock().await;
        loop {
            let Stored { value: mut node, modified } = target.load(office).await?;
            match node.fsm_state() {
                NodeState::Decommissioned => return Ok(()),
                NodeState::Up if roles::any(node.roles.as_ref()) => {
                    return Err(Status::failed_precondition(format!(
                        "the node has roles ({}); take them away first",
                        names_of(&node.roles.unwrap_or_default())
                    )));
                }
                NodeState::Up => {}
                NodeState::New | NodeState::Standby => {
                    return Err(Status::failed_precondition(
                        "the node was never up; delete it, that is all it takes",
                    ));
                }
                NodeState::Invalid => return Err(unknown_state(&node)),
            }
            node.set_fsm_state(NodeState::Decommissioned);
            let path = names::node(&target.id);
            let retired = self.retired(&target.id, Forget::No).await?;
            let changes = retired.if_unchanged(&path, modified).put_message(&path, &node);
            if office.change(changes).await?.is_some() {
                tracing::info!(node = %target.id, "a node is decommissioned");
                return Ok(());
            }
        }
    }

    /// All that is known of a node goes at once, and its certificate is good no more. `with_roles`, `while_up`: although
    /// it is so.
    async fn delete(
        &self,
        target: &Target,
        with_roles: bool,
        while_up: bool,
    ) -> Result<(), Status> {
        let office = &self.0;
        let _one_after_the_other = office.locks.node.lock().await;
        let id = &target.id;
        loop {
            let Stored { value: node, modified } = target.load(office).await?;
            let refuse = |why: String| Err(Status::failed_precondition(why));
            let given = node.roles.clone().unwrap_or_default();
            if roles::any(Some(&given)) && !with_roles {
                return refuse(format!(
                    "the node has roles ({}); take them away first, or pass --bypass-has-roles",
                    names_of(&given)
                ));
            }
            match node.fsm_state() {
                NodeState::Up if !while_up => {
                    return refuse(
                        "the node is up; decommission it first, or pass --bypass-not-decommissioned"
                            .to_owned(),
                    );
                }
                NodeState::Up | NodeState::New | NodeState::Standby | NodeState::Decommissioned => {
                }
                NodeState::Invalid => return Err(unknown_state(&node)),
            }
            if given.consensus_member.is_some() {
                if office.consensus.votes_alone(&office.own, id).await? {
                    return refuse(
                        "the node is the last that keeps the cluster's state; without it there is no cluster"
                            .to_owned(),
                    );
                }
                office.consensus.leave(id).await?;
            }
            let mut changes = self.retired(id, Forget::Yes).await?;
            let path = names::node(id);
            changes = changes.if_unchanged(&path, modified).remove(&path);
            let join_key = names::join_key(&node.join_key);
            // Another node's stays, whatever this one says.
            if let Some(owner) = office.state.bytes(&join_key).await?
                && owner.value == id.as_str()
            {
                changes = changes.if_unchanged(&join_key, owner.modified).remove(&join_key);
            }
            changes = changes.remove(&names::registered(id)).remove(&names::committed(id));
            changes = kubernetes::forget(changes, id);
            if office.change(changes).await?.is_some() {
                office.heartbeats.forget(id);
                tracing::info!(node = %id, "a node is deleted");
                return Ok(());
            }
        }
    }

    async fn retired(&self, id: &NodeId, forget: Forget) -> Result<Changes, Status> {
        let Office { certificates, state, .. } = &*self.0;
        Ok(certificates.retire(state, id, forget, SystemTime::now()).await?)
    }
}

/// A state that this program does not know: written by a newer one, or by nobody.
fn unknown_state(node: &StoredNode) -> Status {
    Status::internal(format!("node {} is in state {}, which is none", node.id, node.fsm_state))
}

/// For people.
fn names_of(roles: &NodeRoles) -> String {
    let named = [
        ("ConsensusMember", roles.consensus_member.is_some()),
        ("KubernetesController", roles.kubernetes_controller.is_some()),
        ("KubernetesWorker", roles.kubernetes_worker.is_some()),
    ];
    let has: Vec<_> = named.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    has.join(", ")
}

/// The nodes as they were when they were asked for, on their way to somebody. It holds nothing but them.
struct Listing {
    nodes: std::vec::IntoIter<Arc<StoredNode>>,
    office: Arc<Office>,
    filter: Filter,
    now: Instant,
}

/// How many nodes are looked at before others have a turn.
const TURN: u32 = 8;

impl Listing {
    async fn next(&mut self) -> Option<Result<Node, Status>> {
        let mut looked = 0;
        loop {
            let node = self.nodes.next()?;
            let last = node.id.parse().ok().and_then(|id| self.office.heartbeats.last_of(&id));
            let report = self.office.heartbeats.report(node.fsm_state(), last, self.now);
            let told = told::to_operators(&node, report);
            match self.filter.keeps(&told) {
                Ok(true) => return Some(Ok(told)),
                Ok(false) => {}
                Err(error) => return Some(Err(error.into())),
            }
            looked += 1;
            if looked % TURN == 0 {
                yield_now().await;
            }
        }
    }
}
