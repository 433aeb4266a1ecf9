//! What a node tells the curator of itself, and what it is given (spec §3.6). Registration is elsewhere.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use ipnet::IpNet;
use orlop_proto::metropolis::node::core::curator::proto::api::{
    GetConsensusStatusResponse, HeartbeatRequest, HeartbeatResponse, IssueCertificateRequest,
    IssueCertificateResponse, UpdateNodeClusterNetworkingRequest,
    UpdateNodeClusterNetworkingResponse, UpdateNodeStatusRequest, UpdateNodeStatusResponse,
    issue_certificate_request, issue_certificate_response,
};
use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_proto::metropolis::proto::common::NodeClusterNetworking;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::caller;
use super::select::{self, Target};
use crate::access::Caller;
use crate::kubernetes::{self, WorkerKeys};
use crate::names::{KEY_LENGTH, NodeId};
use crate::office::Office;
use crate::roster::Roster;

/// Where pods have their addresses.
const PODS: &str = "10.192.0.0/11";

/// The node that calls; a person is refused.
fn node<T>(request: &Request<T>) -> Result<NodeId, Status> {
    match caller(request)? {
        Caller::Node(id) => Ok(id),
        Caller::User(_) | Caller::Key(_) | Caller::Nobody | Caller::Retired(_) => {
            Err(Status::permission_denied("only a node may say this, and only of itself"))
        }
    }
}

pub(super) fn heartbeat(
    office: &Arc<Office>,
    request: Request<Streaming<HeartbeatRequest>>,
) -> Result<Response<BoxStream<HeartbeatResponse>>, Status> {
    let id = node(&request)?;
    let state = (Arc::clone(office), id, request.into_inner());
    let answers = stream::unfold(Some(state), |state| async move {
        let (office, id, mut beats) = state?;
        match beats.message().await {
            Ok(Some(HeartbeatRequest {})) => {
                if office.known.look(|book| book.node(&id)).is_none() {
                    let gone = Status::unauthenticated("the node was deleted");
                    return Some((Err(gone), None));
                }
                office.heartbeats.beat(&id, Instant::now());
                Some((Ok(HeartbeatResponse {}), Some((office, id, beats))))
            }
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(Response::new(Box::pin(answers)))
}

pub(super) async fn update_status(
    office: &Office,
    request: Request<UpdateNodeStatusRequest>,
) -> Result<Response<UpdateNodeStatusResponse>, Status> {
    let id = node(&request)?;
    let UpdateNodeStatusRequest { node_id, status } = request.into_inner();
    if node_id != id.as_str() {
        return Err(Status::permission_denied(format!("{id} may tell its own status only")));
    }
    let mut status = status.ok_or_else(|| Status::invalid_argument("status is not set"))?;
    if status.external_address.parse::<IpAddr>().is_err() {
        return Err(Status::invalid_argument(format!(
            "external_address {:?} is no IP address",
            status.external_address
        )));
    }
    status.timestamp = Some(SystemTime::now().into());
    let change = |mut node: Node| {
        node.status = Some(status.clone());
        Ok(Some(node))
    };
    select::update(office, &Target::of_id(id), change).await?;
    Ok(Response::new(UpdateNodeStatusResponse {}))
}

pub(super) async fn update_networking(
    office: &Office,
    request: Request<UpdateNodeClusterNetworkingRequest>,
) -> Result<Response<UpdateNodeClusterNetworkingResponse>, Status> {
    let id = node(&request)?;
    let networking = request.into_inner().clusternet;
    let networking = networking.ok_or_else(|| Status::invalid_argument("clusternet is not set"))?;
    let key = STANDARD.decode(&networking.wireguard_pubkey);
    if !key.is_ok_and(|key| key.len() == KEY_LENGTH) {
        let why = "wireguard_pubkey is not the base64 of 32 bytes";
        return Err(Status::invalid_argument(why));
    }
    // Two nodes that want one key come here one after the other.
    let _one_after_the_other = office.locks.networking.lock().await;
    super::current(office).await?;
    if let Some(other) = owner_of_key(&office.roster, &networking.wireguard_pubkey, &id) {
        return Err(Status::invalid_argument(format!("wireguard_pubkey is that of node {other}")));
    }
    let change = |mut node: Node| {
        let Some(status) = &node.status else {
            return Err(Status::failed_precondition(
                "the node has told no status yet, and so no address; tell it first",
            ));
        };
        check_prefixes(&networking, &status.external_address)?;
        node.clusternet = Some(networking.clone());
        Ok(Some(node))
    };
    select::update(office, &Target::of_id(id), change).await?;
    Ok(Response::new(UpdateNodeClusterNetworkingResponse {}))
}

fn owner_of_key(roster: &Roster, key: &str, but: &NodeId) -> Option<String> {
    let has = |networking: &NodeClusterNetworking| networking.wireguard_pubkey == key;
    let all = roster.all();
    let mut others = all.iter().filter(|node| node.id != but.as_str());
    others.find(|node| node.clusternet.as_ref().is_some_and(has)).map(|node| node.id.clone())
}

/// Each is canonical, and of pods or the node's own address.
fn check_prefixes(networking: &NodeClusterNetworking, own: &str) -> Result<(), Status> {
    let pods: IpNet = PODS.parse().map_err(|_| Status::internal("the network of pods"))?;
    let own: Option<IpAddr> = own.parse().ok();
    for prefix in &networking.prefixes {
        let text = &prefix.cidr;
        let refuse = |why: String| Err(Status::invalid_argument(format!("prefix {text:?} {why}")));
        match text.parse::<IpNet>() {
            Ok(net) if net.trunc() != net || net.to_string() != *text => {
                return refuse(format!("is not canonical; that is {}", net.trunc()));
            }
            Ok(net) if pods.contains(&net) || own.map(IpNet::from) == Some(net) => {}
            Ok(_) => return refuse(format!("is neither of pods, {PODS}, nor the node's address")),
            Err(_) => return refuse("is no network".to_owned()),
        }
    }
    Ok(())
}

pub(super) async fn issue_certificate(
    office: &Office,
    request: Request<IssueCertificateRequest>,
) -> Result<Response<IssueCertificateResponse>, Status> {
    let id = node(&request)?;
    let Some(issue_certificate_request::Kind::KubernetesWorker(keys)) = request.into_inner().kind
    else {
        return Err(Status::invalid_argument("say for what: kubernetes_worker is not set"));
    };
    let stored = office.state.node(&id).await?;
    let roles = stored.and_then(|stored| stored.value.roles);
    if roles.is_none_or(|roles| roles.kubernetes_worker.is_none()) {
        return Err(Status::permission_denied(format!(
            "{id} is no Kubernetes worker; give it the role KubernetesWorker first"
        )));
    }
    let key = |name: &str, key: Vec<u8>| {
        key.try_into().map_err(|key: Vec<u8>| {
            Status::invalid_argument(format!("{name} has {} bytes, not {KEY_LENGTH}", key.len()))
        })
    };
    let keys = WorkerKeys {
        kubelet: key("kubelet_pubkey", keys.kubelet_pubkey)?,
        csi_provisioner: key("csi_provisioner_pubkey", keys.csi_provisioner_pubkey)?,
        netservices: key("netservices_pubkey", keys.netservices_pubkey)?,
    };
    let given = kubernetes::of_worker(&office.state, &id, &keys, SystemTime::now()).await?;
    let given = issue_certificate_response::KubernetesWorker {
        identity_ca_certificate: given.authority,
        kubelet_server_certificate: given.kubelet_server,
        kubelet_client_certificate: given.kubelet_client,
        csi_provisioner_certificate: given.csi_provisioner,
        netservices_certificate: given.netservices,
    };
    let kind = issue_certificate_response::Kind::KubernetesWorker(given);
    Ok(Response::new(IssueCertificateResponse { kind: Some(kind) }))
}

pub(super) async fn consensus_status(
    office: &Office,
) -> Result<Response<GetConsensusStatusResponse>, Status> {
    office.state.check().await?;
    let etcd_member = office.consensus.status(&office.own).await;
    let etcd_member = etcd_member.map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(GetConsensusStatusResponse { etcd_member }))
}

#[cfg(test)]
mod tests {
    use orlop_proto::metropolis::proto::common::node_cluster_networking::Prefix;

    use super::*;

    #[test]
    fn prefixes_are_canonical_and_of_pods_or_the_node_itself() {
        let networking = |cidr: &str| NodeClusterNetworking {
            prefixes: vec![Prefix { cidr: cidr.to_owned() }],
            ..NodeClusterNetworking::default()
        };
        for (cidr, own, sound) in [
            ("10.192.0.0/11", "10.0.0.1", true),
            ("10.200.7.0/24", "10.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("2001:db8::1/128", "2001:db8::1", true),
            ("10.0.0.2/32", "10.0.0.1", false),
            ("10.0.0.0/24", "10.0.0.1", false),
            ("10.200.7.1/24", "10.0.0.1", false),
            ("10.128.0.0/9", "10.0.0.1", false),
            ("10.200.7.0", "10.0.0.1", false),
            ("2001:DB8::1/128", "2001:db8::1", false),
            ("0.0.0.0/0", "10.0.0.1", false),
            ("", "10.0.0.1", false),
        ] {
            let result = check_prefixes(&networking(cidr), own).map_err(|status| status.code());
            let expected = if sound { Ok(()) } else { Err(tonic::Code::InvalidArgument) };
            assert_eq!(result, expected, "{cidr} of {own}");
        }
    }
}
