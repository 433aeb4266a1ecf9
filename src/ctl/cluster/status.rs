//! `status`, `info`, `ticket`: what the cluster is, and how it is.

use std::fmt::Write as _;

use orlop_pki::certificate::subject;
use orlop_proto::metropolis::node::core::curator::proto::api::get_consensus_status_response::{
    EtcdMember, etcd_member,
};
use orlop_proto::metropolis::node::core::curator::proto::api::{
    GetConsensusStatusRequest, GetConsensusStatusResponse,
};
use orlop_proto::metropolis::proto::api::{
    GetClusterInfoRequest, GetClusterInfoResponse, GetRegisterTicketRequest, Node,
};
use orlop_proto::metropolis::proto::common::ClusterConfiguration;
use orlop_rpc::leader::Leader;
use serde_json::{Value, json};

use super::nodes::get;
use super::session::{Session, curator, management};
use super::{Context, Error, view};
use crate::error::Error as CommandError;
use crate::table::{align, escape};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TicketCommand {
    /// Print it, in hexadecimal
    Get,
}

pub(super) async fn ticket(
    context: &Context<'_>,
    command: &TicketCommand,
) -> Result<(), CommandError> {
    let TicketCommand::Get = command;
    let session = Session::open(context).await?;
    let ticket = view::hex(&register_ticket(&session).await?);
    context.tell(&format!("{ticket}\n"), &json!({ "ticket": ticket }))
}

/// What new nodes show.
pub(super) async fn register_ticket(session: &Session) -> Result<Vec<u8>, Error> {
    let call =
        async |channel| management(channel).get_register_ticket(GetRegisterTicketRequest {}).await;
    Ok(session.again("get the register ticket", call).await?.ticket)
}

/// Directory, authority, configuration.
pub(super) async fn cluster_info(session: &Session) -> Result<GetClusterInfoResponse, Error> {
    let call = async |channel| management(channel).get_cluster_info(GetClusterInfoRequest {}).await;
    session.again("get the cluster's information", call).await
}

pub(super) async fn info(context: &Context<'_>) -> Result<(), CommandError> {
    let session = Session::open(context).await?;
    let info = cluster_info(&session).await?;
    let digest = subject(&info.ca_certificate);
    let digest = digest.map_err(|error| Error::Strange(error.to_string()))?.digest;
    let (lines, value) = told(&info, &digest);
    context.tell(&lines, &value)
}

/// The information as lines, and for programs.
fn told(info: &GetClusterInfoResponse, digest: &str) -> (String, Value) {
    let known = info.cluster_directory.iter().flat_map(|directory| &directory.nodes);
    let known = known.map(|node| {
        let addresses: Vec<_> = node.addresses.iter().map(|address| &*address.host).collect();
        (&*node.id, addresses)
    });
    let known: Vec<_> = known.collect();
    let mut rows = Vec::new();
    let mut value = json!({ "ca_sha256": digest });
    if let Some(configuration) = &info.cluster_configuration {
        let (tpm, storage) = names(configuration);
        let patterns = patterns(configuration);
        rows.push(("Domain", configuration.cluster_domain.clone()));
        rows.push(("TPM", tpm.clone()));
        rows.push(("Storage security", storage.clone()));
        rows.push(("Labels for Kubernetes", patterns.join(" ")));
        value["cluster_domain"] = configuration.cluster_domain.clone().into();
        value["tpm_mode"] = tpm.into();
        value["storage_security_policy"] = storage.into();
        value["node_labels_to_synchronize"] = patterns.into();
    }
    rows.push(("Authority", format!("SHA256:{digest}")));
    let entry = |(id, addresses): &(&str, Vec<&str>)| json!({ "id": id, "addresses": addresses });
    value["directory"] = known.iter().map(entry).collect();
    for (id, addresses) in known {
        rows.push(("May be asked", format!("{id} {}", addresses.join(" "))));
    }
    let rows: Vec<_> = rows.iter().map(|(name, text)| (*name, escape(text))).collect();
    let lines: Vec<_> = rows.iter().map(|(name, text)| [*name, text.as_str()]).collect();
    (align(&lines), value)
}

/// As the flags of `install-params` have them.
pub(super) fn names(configuration: &ClusterConfiguration) -> (String, String) {
    let word = |name: &str, prefix: &str| {
        name.trim_start_matches(prefix).to_ascii_lowercase().replace('_', "-")
    };
    (
        word(configuration.tpm_mode().as_str_name(), "TPM_MODE_"),
        word(configuration.storage_security_policy().as_str_name(), "STORAGE_SECURITY_POLICY_"),
    )
}

/// Of the labels that Kubernetes is told.
pub(super) fn patterns(configuration: &ClusterConfiguration) -> Vec<String> {
    let kubernetes = configuration.kubernetes.iter();
    let patterns = kubernetes.flat_map(|kubernetes| &kubernetes.node_labels_to_synchronize);
    patterns.map(|pattern| pattern.regexp.clone()).collect()
}

pub(super) async fn run(context: &Context<'_>) -> Result<(), CommandError> {
    let session = Session::open(context).await?;
    let call =
        async |channel| curator(channel).get_consensus_status(GetConsensusStatusRequest {}).await;
    let consensus = session.again("get the status of the consensus", call).await?;
    let nodes = get(&session, "").await?;
    let leader = session.leader().await?;
    let (lines, value) = summary(&leader, &consensus, &nodes);
    context.tell(&lines, &value)?;
    match value["healthy"].as_bool() {
        Some(true) => Ok(()),
        _ => Err(Error::Some {
            what: "not healthy",
            failed: up(&nodes).filter(|node| view::health(node) != "HEALTHY").count(),
            all: up(&nodes).count(),
        }
        .into()),
    }
}

fn up(nodes: &[Node]) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(|node| view::state(node) == "UP")
}

/// Who leads, who is a member, who is well.
fn summary(
    leader: &Leader,
    consensus: &GetConsensusStatusResponse,
    nodes: &[Node],
) -> (String, Value) {
    let member = |member: &EtcdMember| {
        let status = match member.status() {
            etcd_member::Status::Full => "FULL",
            etcd_member::Status::Learner => "LEARNER",
            etcd_member::Status::Unknown => "UNKNOWN",
        };
        let node = nodes.iter().find(|node| view::id(node) == member.id);
        (member.id.clone(), status, node.map_or("ABSENT", view::health))
    };
    let members: Vec<_> = consensus.etcd_member.iter().map(member).collect();
    let count = |health: &str| up(nodes).filter(|node| view::health(node) == health).count();
    let (healthy, lost) = (count("HEALTHY"), count("HEARTBEAT_TIMEOUT"));
    let all = up(nodes).count();
    let waiting = nodes.iter().filter(|node| view::state(node) == "NEW").count();
    let mut text = format!("Leader    {} at {}\n", leader.node_id, leader.place);
    for (id, status, health) in &members {
        // Writing to a string does not fail.
        let _ = writeln!(text, "Member    {} {status} {health}", escape(id));
    }
    let _ = writeln!(text, "Nodes     {} known, {all} up, {healthy} healthy", nodes.len());
    for node in up(nodes).filter(|node| view::health(node) != "HEALTHY") {
        let _ = writeln!(text, "Unwell    {} {}", view::id(node), view::health(node));
    }
    if waiting > 0 {
        let _ = writeln!(text, "Waiting   {waiting}: orlopctl cluster approve");
    }
    let value = json!({
        "leader": { "id": leader.node_id, "endpoint": leader.place.to_string() },
        "members": members
            .iter()
            .map(|(id, status, health)| json!({ "id": id, "status": status, "health": health }))
            .collect::<Vec<_>>(),
        "nodes": nodes.len(),
        "up": all,
        "nodes_healthy": healthy,
        "nodes_lost": lost,
        "waiting": waiting,
        "healthy": healthy == all,
    });
    (text, value)
}

#[cfg(test)]
mod tests {
    use orlop_proto::metropolis::proto::api::node::Health;
    use orlop_proto::metropolis::proto::common::cluster_configuration::kubernetes::NodeLabelsToSynchronize;
    use orlop_proto::metropolis::proto::common::cluster_configuration::{
        Kubernetes, StorageSecurityPolicy, TpmMode,
    };
    use orlop_proto::metropolis::proto::common::{ClusterDirectory, NodeState, cluster_directory};
    use orlop_rpc::leader::Place;

    use super::super::view::tests::node;
    use super::*;
    use crate::golden;

    #[test]
    fn the_information_says_what_the_cluster_is_like() {
        let pattern = NodeLabelsToSynchronize { regexp: "^zone$".to_owned() };
        let address = cluster_directory::node::Address { host: "10.0.0.2".to_owned() };
        let known =
            cluster_directory::Node { id: "metropolis-1".to_owned(), addresses: vec![address] };
        let info = GetClusterInfoResponse {
            cluster_directory: Some(ClusterDirectory { nodes: vec![known] }),
            ca_certificate: Vec::new(),
            cluster_configuration: Some(ClusterConfiguration {
                tpm_mode: TpmMode::BestEffort.into(),
                storage_security_policy: StorageSecurityPolicy::NeedsEncryptionAndAuthentication
                    .into(),
                kubernetes: Some(Kubernetes { node_labels_to_synchronize: vec![pattern] }),
                cluster_domain: "cluster.internal".to_owned(),
            }),
        };
        let (lines, value) = told(&info, "0123");
        golden::check("cluster-info.txt", &lines);
        assert_eq!(value["tpm_mode"], "best-effort");
        assert_eq!(value["storage_security_policy"], "needs-encryption-and-authentication");
        assert_eq!(value["directory"][0]["addresses"][0], "10.0.0.2");
        let (lines, _) = told(&GetClusterInfoResponse::default(), "0123");
        assert_eq!(lines, "Authority   SHA256:0123\n");
    }

    #[test]
    fn the_status_names_who_leads_and_who_is_unwell() {
        let healthy = |seed| Node { health: Health::Healthy.into(), ..node(seed, NodeState::Up) };
        let lost = Node { health: Health::HeartbeatTimeout.into(), ..node(2, NodeState::Up) };
        let nodes = [healthy(1), lost, healthy(3), node(4, NodeState::New)];
        let member = |node: &Node, status: etcd_member::Status| EtcdMember {
            id: view::id(node),
            status: status.into(),
        };
        let mut etcd_member = vec![
            member(&nodes[0], etcd_member::Status::Full),
            member(&nodes[1], etcd_member::Status::Learner),
        ];
        etcd_member.push(EtcdMember { id: "gone".to_owned(), ..EtcdMember::default() });
        let consensus = GetConsensusStatusResponse { etcd_member };
        let place = Place { host: "10.0.0.2".to_owned(), port: 7835 };
        let leader = Leader { node_id: view::id(&nodes[0]), place };
        let (lines, value) = summary(&leader, &consensus, &nodes);
        golden::check("cluster-status.txt", &lines);
        assert_eq!((&value["healthy"], &value["waiting"]), (&json!(false), &json!(1)));
        let (_, value) = summary(&leader, &consensus, &[healthy(1)]);
        assert_eq!(value["healthy"], true);
    }
}
