//! Who keeps the cluster's state, as far as operators ask and change it: this node alone, or the members of an etcd.

use std::time::SystemTime;

use orlop_proto::metropolis::node::core::curator::proto::api::get_consensus_status_response::{
    EtcdMember, etcd_member::Status as Standing,
};
use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_proto::metropolis::proto::common::node_roles::ConsensusMember;
use orlop_store::{Error, Store};
use tonic::Status;

use crate::membership;
use crate::names::NodeId;
use crate::office::Office;

fn etcd(error: Error) -> Status {
    Status::unavailable(format!("etcd: {}", orlop_rt::Chain(&error)))
}

/// Each member, and whether it votes.
pub(super) async fn status(office: &Office) -> Result<Vec<EtcdMember>, Error> {
    let told = |id: String, learner| EtcdMember {
        id,
        status: if learner { Standing::Learner } else { Standing::Full }.into(),
    };
    Ok(match office.state.store() {
        Store::Embedded(_) => vec![told(office.own.to_string(), false)],
        Store::Etcd(etcd) => {
            let members = etcd.members().await?;
            let each = |it: &orlop_store::Member| told(membership::name_of(it), it.learner);
            members.iter().map(each).collect()
        }
    })
}

/// Is this the only node that votes?
pub(super) async fn votes_alone(office: &Office, id: &NodeId) -> Result<bool, Status> {
    match office.state.store() {
        Store::Embedded(_) => Ok(office.own == *id),
        Store::Etcd(store) => {
            Ok(membership::votes_alone(&store.members().await.map_err(etcd)?, id))
        }
    }
}

/// Makes a node a member; what its role holds then.
pub(super) async fn join(
    office: &Office,
    node: &Node,
    _: SystemTime,
) -> Result<ConsensusMember, Status> {
    match office.state.store() {
        Store::Embedded(_) if node.id == office.own.as_str() => Ok(ConsensusMember::default()),
        Store::Embedded(_) => Err(Status::failed_precondition(
            "the cluster's state lies on one node, which cannot share it: it must move to an etcd first",
        )),
        Store::Etcd(_) => Err(Status::unavailable(
            "this curator cannot take members into etcd; add them with etcdctl",
        )),
    }
}

/// Removes a node's member, if it is one.
pub(super) async fn leave(office: &Office, id: &NodeId) -> Result<(), Status> {
    let Store::Etcd(store) = office.state.store() else { return Ok(()) };
    let members = store.members().await.map_err(etcd)?;
    if let Some(member) = membership::member_of(&members, id) {
        store.remove_member(member.id).await.map_err(etcd)?;
    }
    Ok(())
}
