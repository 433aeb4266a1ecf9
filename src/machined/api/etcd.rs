//! etcd through the machine API (spec §5.6): what its own API says, in the words of ours.

use futures_util::stream::{self, Stream};
use orlop_proto::common::Data;
use orlop_proto::etcd;
use orlop_proto::machine as proto;
use tonic::{Code, Status};

use crate::etcd::client::{Client, View, refused};
use crate::etcd::host;
use crate::etcd::launch::{Refusal, Source};
use crate::node::Node;

/// This node's member.
///
/// # Errors
/// `FailedPrecondition` where there is none, and why.
pub(super) fn client(node: &Node) -> Result<Client, Status> {
    control_plane(node)?;
    if !host::has_started() {
        return Err(Status::failed_precondition("etcd has not been started on this node yet"));
    }
    host::connect().map_err(internal)
}

/// Whether etcd is to run here.
fn control_plane(node: &Node) -> Result<(), Status> {
    let config = node.config().map_err(internal)?;
    if !config.machine.kind.is_control_plane() {
        return Err(Status::failed_precondition("etcd runs on control plane nodes only"));
    }
    if host::program().is_none() {
        return Err(Status::failed_precondition(Refusal::NoProgram.to_string()));
    }
    Ok(())
}

/// `Bootstrap`.
pub(super) async fn bootstrap(
    node: &Node,
    request: &proto::BootstrapRequest,
) -> Result<(), Status> {
    let source = match request.recover_etcd {
        false => Source::Nothing,
        true => Source::Snapshot { skip_hash_check: request.recover_skip_hash_check },
    };
    host::bootstrap(node, source).await.map_err(internal)?.map_err(|refusal| {
        let code = match refusal {
            Refusal::NotEmpty => Code::AlreadyExists,
            Refusal::Worker
            | Refusal::NoProgram
            | Refusal::NotBooted
            | Refusal::TimeNotInSync
            | Refusal::Busy
            | Refusal::NoSnapshot
            | Refusal::NoHash
            | Refusal::NoRestorer => Code::FailedPrecondition,
        };
        Status::new(code, refusal.to_string())
    })
}

/// `Recover` of generation v0.8, which bootkube would do.
pub(super) fn recover(node: &Node) -> Status {
    match control_plane(node) {
        Err(status) => status,
        Ok(()) => Status::failed_precondition(
            "recover: bootkube, which would do it, is not in this image; \
             etcd is recovered from a snapshot with orlopctl bootstrap --recover-from FILE",
        ),
    }
}

/// `EtcdRecover`.
pub(super) async fn keep_snapshot(
    node: &Node,
    pieces: impl Stream<Item = Result<Data, Status>> + Unpin,
) -> Result<(), Status> {
    control_plane(node)?;
    host::keep_snapshot(pieces).await.map(drop)
}

/// `EtcdSnapshot`: a piece is asked for when the one before it has been taken.
pub(super) async fn snapshot(
    client: &Client,
) -> Result<impl Stream<Item = Result<Data, Status>> + Send + 'static, Status> {
    let pieces = client.snapshot().await?;
    Ok(stream::try_unfold(pieces, async |mut pieces| {
        let piece = pieces.message().await.map_err(|status| refused("take a snapshot", &status))?;
        Ok(piece.map(|piece| (super::data(piece.blob), pieces)))
    }))
}

/// `EtcdMemberList`.
pub(super) async fn members(client: &Client, local: bool) -> Result<proto::EtcdMembers, Status> {
    let view = if local { View::Local } else { View::Agreed };
    let members = client.members(view).await?;
    let legacy_members = members.iter().map(|member| member.name.clone()).collect();
    let members = members.into_iter().map(|member| proto::EtcdMember {
        id: member.id,
        hostname: member.name,
        peer_urls: member.peer_urls,
        client_urls: member.client_urls,
        is_learner: member.is_learner,
    });
    Ok(proto::EtcdMembers { metadata: None, legacy_members, members: members.collect() })
}

/// `EtcdRemoveMember`, by host name.
pub(super) async fn remove(client: &Client, name: &str) -> Result<(), Status> {
    let members = client.members(View::Agreed).await?;
    let Some(member) = members.iter().find(|member| !name.is_empty() && member.name == name) else {
        return Err(Status::not_found(format!("no member of etcd is called {name:?}")));
    };
    client.remove(member.id).await
}

/// `EtcdStatus`.
pub(super) async fn status(client: &Client) -> Result<proto::EtcdStatus, Status> {
    let status = client.status().await?;
    let member_status = proto::EtcdMemberStatus {
        protocol_version: status.version,
        db_size: status.db_size,
        db_size_in_use: status.db_size_in_use,
        leader: status.leader,
        raft_index: status.raft_index,
        raft_term: status.raft_term,
        raft_applied_index: status.raft_applied_index,
        errors: status.errors,
        is_learner: status.is_learner,
        member_id: status.header.unwrap_or_default().member_id,
        storage_version: status.storage_version,
    };
    Ok(proto::EtcdStatus { metadata: None, member_status: Some(member_status) })
}

/// Alarms, in the words of the machine API; the numbers are the same.
pub(super) fn alarms(alarms: Vec<etcd::AlarmMember>) -> Vec<proto::EtcdMemberAlarm> {
    let alarm =
        |etcd::AlarmMember { member_id, alarm }| proto::EtcdMemberAlarm { member_id, alarm };
    alarms.into_iter().map(alarm).collect()
}

/// The version a cluster may be taken down to, or is at.
pub(super) fn downgrade(cluster_version: String) -> Option<proto::EtcdClusterDowngrade> {
    Some(proto::EtcdClusterDowngrade { cluster_version })
}

fn internal(error: crate::Error) -> Status {
    Status::internal(orlop_rt::Chain(&error).to_string())
}
