//! Operators and nodes over real TLS, with a real store.

use std::fmt::Debug;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_pki::cluster::{Profile, RawKey, Shown};
use orlop_proto::metropolis::node::core::curator::proto::api::curator_client::CuratorClient;
use orlop_proto::metropolis::node::core::curator::proto::api::get_consensus_status_response::etcd_member;
use orlop_proto::metropolis::node::core::curator::proto::api::watch_event::Progress;
use orlop_proto::metropolis::node::core::curator::proto::api::watch_request::{
    Kind, NodeInCluster, NodesInCluster,
};
use orlop_proto::metropolis::node::core::curator::proto::api::{
    self as nodes, GetConsensusStatusRequest, HeartbeatRequest, IssueCertificateRequest,
    UpdateNodeClusterNetworkingRequest, UpdateNodeStatusRequest, WatchEvent, WatchRequest,
    issue_certificate_request, issue_certificate_response,
};
use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_proto::metropolis::proto::api::delete_node_request::{
    SafetyBypassHasRoles, SafetyBypassNotDecommissioned,
};
use orlop_proto::metropolis::proto::api::management_client::ManagementClient;
use orlop_proto::metropolis::proto::api::node::Health;
use orlop_proto::metropolis::proto::api::update_node_labels_request::Pair;
use orlop_proto::metropolis::proto::api::{
    self as operators, ApproveNodeRequest, ConfigureClusterRequest, DecommissionNodeRequest,
    DeleteNodeRequest, GetClusterInfoRequest, GetNodesRequest, UpdateNodeLabelsRequest,
    UpdateNodeRolesRequest, decommission_node_request, delete_node_request,
    update_node_labels_request, update_node_roles_request,
};
use orlop_proto::metropolis::proto::common::cluster_configuration::Kubernetes;
use orlop_proto::metropolis::proto::common::cluster_configuration::kubernetes::NodeLabelsToSynchronize;
use orlop_proto::metropolis::proto::common::node_cluster_networking::Prefix;
use orlop_proto::metropolis::proto::common::node_roles::{
    ConsensusMember, KubernetesController, KubernetesWorker,
};
use orlop_proto::metropolis::proto::common::node_status::RunningCurator;
use orlop_proto::metropolis::proto::common::{
    ClusterConfiguration, NodeClusterNetworking, NodeLabels, NodeRoles, NodeState, NodeStatus,
    node_labels,
};
use tokio_stream::{StreamExt as _, once, pending};
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::names::{self, NodeId};
use crate::state::Changes;
use crate::testing::Cluster;

fn code<T: Debug>(result: Result<Response<T>, Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// c: consensus member, k: Kubernetes controller, w: worker.
fn roles(letters: &str) -> NodeRoles {
    NodeRoles {
        consensus_member: letters.contains('c').then(ConsensusMember::default),
        kubernetes_controller: letters.contains('k').then_some(KubernetesController {}),
        kubernetes_worker: letters.contains('w').then_some(KubernetesWorker {}),
    }
}

/// A node with the certificate it was given.
struct Known {
    id: NodeId,
    key: RawKey,
    join: RawKey,
    certificate: Vec<u8>,
}

impl Cluster {
    /// Writes a node as the register flow would have left it.
    async fn add(&self, state: NodeState, letters: &str) -> Known {
        let (key, join) = (RawKey::generate().expect("a key"), RawKey::generate().expect("a key"));
        let id = NodeId::of_key(&key.public());
        let node = Node {
            id: id.to_string(),
            public_key: key.public().to_vec(),
            join_key: join.public().to_vec(),
            fsm_state: state.into(),
            roles: Some(roles(letters)),
            ..Node::default()
        };
        let name = names::node_certificate(&id);
        let profile = Profile::node(id.as_str());
        let (office, public) = (&self.office, key.public());
        let ensured =
            office.certificates.ensure(&office.state, &name, &profile, &public, SystemTime::now());
        let certificate = ensured.await.expect("a certificate");
        self.write(&node).await;
        let entry = names::join_key(&join.public());
        let changes = Changes::new().put(&entry, id.to_string());
        office.change(changes).await.expect("a write").expect("written");
        Known { id, key, join, certificate }
    }

    async fn write(&self, node: &Node) {
        let id: NodeId = node.id.parse().expect("an id");
        let changes = Changes::new().put_message(&names::node(&id), node);
        self.office.change(changes).await.expect("a write").expect("written");
    }

    async fn read(&self, id: &NodeId) -> Option<Node> {
        self.office.state.node(id).await.expect("a read").map(|stored| stored.value)
    }

    fn owner(&self) -> ManagementClient<Channel> {
        self.management(self.as_user("owner"))
    }

    fn of(&self, node: &Known) -> CuratorClient<Channel> {
        self.curator(self.shows(Some((&node.certificate, &node.key))))
    }

    async fn list(&self, filter: &str) -> Result<Vec<operators::Node>, Status> {
        let request = GetNodesRequest { filter: filter.to_owned() };
        self.owner().get_nodes(request).await?.into_inner().collect().await
    }

    fn own(&self) -> NodeId {
        self.office.own.clone()
    }
}

fn ids(nodes: &[operators::Node]) -> Vec<&str> {
    nodes.iter().map(|node| &*node.id).collect()
}

#[tokio::test]
async fn nodes_are_listed_by_id_as_they_are_now() {
    let cluster = Cluster::start().await;
    let new = cluster.add(NodeState::New, "").await;
    let up = cluster.add(NodeState::Up, "w").await;
    let mut expected = [cluster.own(), new.id.clone(), up.id.clone()];
    expected.sort();
    let expected: Vec<_> = expected.iter().map(NodeId::as_str).collect();
    // What cannot be read is left out.
    let damaged = NodeId::of_key(&[0; names::KEY_LENGTH]);
    let changes = Changes::new().put(&names::node(&damaged), "no message");
    cluster.office.change(changes).await.expect("a write").expect("written");
    assert_eq!(ids(&cluster.list("").await.expect("nodes")), expected);

    let kept = async |filter: &str| cluster.list(filter).await.expect("nodes");
    assert_eq!(ids(&kept("node.state == NODE_STATE_NEW").await), [new.id.as_str()]);
    assert_eq!(ids(&kept("has(node.roles.kubernetes_worker)").await), [up.id.as_str()]);
    assert_eq!(kept("false").await, []);
    let text = format!("node.id == '{}'", up.id);
    let [node] = &kept(&text).await[..] else { panic!("one node") };
    assert_eq!(node.pubkey, up.key.public());
    assert_ne!(node.health(), Health::Healthy);
    assert_eq!(node.state(), NodeState::Up);
    assert_eq!((node.status.as_ref(), node.labels.as_ref()), (None, Some(&NodeLabels::default())));
    let own = format!("node.id == '{}'", cluster.own());
    let roles = kept(&own).await.remove(0).roles.expect("roles");
    // Which there are, and nothing of what they hold.
    assert_eq!(roles.consensus_member, Some(ConsensusMember::default()));

    // Refused by the call itself, before any node.
    let refused = async |filter: &str| {
        let request = GetNodesRequest { filter: filter.to_owned() };
        cluster.owner().get_nodes(request).await.expect_err("a refusal").code()
    };
    assert_eq!(refused("node.nothing == 1").await, Code::InvalidArgument);
    assert_eq!(refused("node.id").await, Code::InvalidArgument);
    assert_eq!(refused(&"!".repeat(5000)).await, Code::InvalidArgument);
    let ten = "[0,1,2,3,4,5,6,7,8,9]";
    let bomb =
        format!("{ten}.all(a, {ten}.all(b, {ten}.all(c, {ten}.all(d, {ten}.all(e, true)))))");
    assert_eq!(refused(&bomb).await, Code::ResourceExhausted);
    // In the middle of the stream, as only a node shows it.
    let error = cluster.list("1 / (node.state - 3) == 0").await.expect_err("a refusal");
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn who_lists_and_never_reads_holds_up_nobody() {
    let cluster = Cluster::start().await;
    let pair =
        |number: usize| node_labels::Pair { key: format!("label-{number}"), value: "v".repeat(60) };
    let labels = NodeLabels { pairs: (0..100).map(pair).collect() };
    for _ in 0..100 {
        let key = RawKey::generate().expect("a key").public();
        let id = NodeId::of_key(&key).to_string();
        let public_key = key.to_vec();
        let node = Node { id, public_key, labels: Some(labels.clone()), ..Node::default() };
        cluster.write(&node).await;
    }
    // More than the windows of a connection hold.
    let request = GetNodesRequest::default();
    let unread = cluster.owner().get_nodes(request).await.expect("a stream").into_inner();
    let new = cluster.add(NodeState::New, "").await;
    let pubkey = new.key.public().to_vec();
    cluster.owner().approve_node(ApproveNodeRequest { pubkey }).await.expect("approved");
    assert_eq!(cluster.list("").await.expect("nodes").len(), 102);
    // What it reads at last is what there was when it asked.
    let read: Vec<_> = unread.collect::<Result<_, _>>().await.expect("nodes");
    assert_eq!(read.len(), 101);
}

#[tokio::test]
async fn nodes_are_approved_once_and_for_all() {
    let cluster = Cluster::start().await;
    let approve = async |pubkey: &[u8]| {
        code(cluster.owner().approve_node(ApproveNodeRequest { pubkey: pubkey.to_vec() }).await)
    };
    for (state, expected, after) in [
        (NodeState::New, Code::Ok, NodeState::Standby),
        (NodeState::Standby, Code::Ok, NodeState::Standby),
        (NodeState::Up, Code::Ok, NodeState::Up),
        (NodeState::Decommissioned, Code::FailedPrecondition, NodeState::Decommissioned),
        (NodeState::Invalid, Code::Internal, NodeState::Invalid),
    ] {
        let node = cluster.add(state, "").await;
        assert_eq!(approve(&node.key.public()).await, expected, "{state:?}");
        let stored = cluster.read(&node.id).await.expect("a node");
        assert_eq!(stored.fsm_state(), after);
    }
    assert_eq!(approve(&[1; 31]).await, Code::InvalidArgument);
    assert_eq!(approve(&[]).await, Code::InvalidArgument);
    assert_eq!(approve(&[1; 32]).await, Code::NotFound);
    // Another key with the same id.
    let node = cluster.add(NodeState::New, "").await;
    let mut other = node.key.public();
    other[31] ^= 1;
    assert_eq!(approve(&other).await, Code::NotFound);
}

#[tokio::test]
async fn roles_are_given_and_taken() {
    use update_node_roles_request::Node::{Id, Pubkey};
    let cluster = Cluster::start().await;
    let set = async |node: Option<update_node_roles_request::Node>, change: &str| {
        let of = |letter: char| match change {
            _ if change.contains(&format!("+{letter}")) => Some(true),
            _ if change.contains(&format!("-{letter}")) => Some(false),
            _ => None,
        };
        let request = UpdateNodeRolesRequest {
            node,
            consensus_member: of('c'),
            kubernetes_controller: of('k'),
            kubernetes_worker: of('w'),
        };
        code(cluster.owner().update_node_roles(request).await)
    };
    let up = cluster.add(NodeState::Up, "").await;
    let own = cluster.own();
    let of = |id: &NodeId| Some(Id(id.to_string()));
    let refused = Code::FailedPrecondition;
    for (id, change, expected, after) in [
        (&up.id, "+w", Code::Ok, "w"),
        (&up.id, "+w", Code::Ok, "w"),
        (&up.id, "+k", refused, "w"),
        // The store is one node's own.
        (&up.id, "+c", refused, "w"),
        (&up.id, "+c-w", refused, "w"),
        (&up.id, "-w-c-k", Code::Ok, ""),
        (&own, "-c", refused, "ck"),
        (&own, "-c-k", refused, "ck"),
        (&own, "-k+w", Code::Ok, "cw"),
        // It votes alone.
        (&own, "-c", refused, "cw"),
        (&own, "+k+c", Code::Ok, "ckw"),
    ] {
        assert_eq!(set(of(id), change).await, expected, "{change}");
        let stored = cluster.read(id).await.and_then(|node| node.roles).expect("roles");
        assert_eq!(crate::roles::presence(Some(&stored)), roles(after), "{change}");
    }
    for (state, change, expected) in [
        (NodeState::New, "+w", Code::Ok),
        (NodeState::New, "+c", refused),
        (NodeState::Standby, "+c", refused),
        (NodeState::Decommissioned, "+w", refused),
    ] {
        let node = cluster.add(state, "").await;
        assert_eq!(set(of(&node.id), change).await, expected, "{state:?} {change}");
    }
    assert_eq!(set(Some(Pubkey(up.key.public().to_vec())), "+w").await, Code::Ok);
    assert_eq!(set(Some(Pubkey(vec![1; 31])), "+w").await, Code::InvalidArgument);
    assert_eq!(set(Some(Pubkey(vec![1; 32])), "+w").await, Code::NotFound);
    assert_eq!(set(Some(Id(String::new())), "+w").await, Code::InvalidArgument);
    assert_eq!(set(Some(Id("a/b".to_owned())), "+w").await, Code::InvalidArgument);
    assert_eq!(set(None, "+w").await, Code::InvalidArgument);
}

#[tokio::test]
async fn a_node_that_is_decommissioned_sees_itself_and_nothing_else() {
    use decommission_node_request::Node::Id;
    let cluster = Cluster::start().await;
    let decommission = async |id: &NodeId| {
        let request = DecommissionNodeRequest { node: Some(Id(id.to_string())) };
        code(cluster.owner().decommission_node(request).await)
    };
    for (state, letters) in [(NodeState::New, ""), (NodeState::Standby, ""), (NodeState::Up, "w")] {
        let node = cluster.add(state, letters).await;
        assert_eq!(decommission(&node.id).await, Code::FailedPrecondition, "{state:?}");
    }
    assert_eq!(decommission(&NodeId::of_key(&[1; 32])).await, Code::NotFound);
    let none = DecommissionNodeRequest { node: None };
    assert_eq!(code(cluster.owner().decommission_node(none).await), Code::InvalidArgument);
    assert_eq!(decommission(&cluster.own()).await, Code::FailedPrecondition);

    let node = cluster.add(NodeState::Up, "").await;
    let status = GetConsensusStatusRequest {};
    assert_eq!(code(cluster.of(&node).get_consensus_status(status).await), Code::Ok);
    let mut watch = watch_one(&mut cluster.of(&node), &node.id).await.expect("a watch");
    assert_eq!(next(&mut watch).await.nodes[0].state(), NodeState::Up);
    assert_eq!(decommission(&node.id).await, Code::Ok);
    assert_eq!(decommission(&node.id).await, Code::Ok);
    // It hears of it, and may ask again.
    assert_eq!(next(&mut watch).await.nodes[0].state(), NodeState::Decommissioned);
    let mut watch = watch_one(&mut cluster.of(&node), &node.id).await.expect("a watch");
    assert_eq!(next(&mut watch).await.nodes[0].state(), NodeState::Decommissioned);
    let other = watch_one(&mut cluster.of(&node), &cluster.own()).await;
    assert_eq!(other.expect_err("a refusal").code(), Code::Unauthenticated);
    let all = watch_all(&mut cluster.of(&node)).await;
    assert_eq!(all.expect_err("a refusal").code(), Code::Unauthenticated);
    assert_eq!(code(cluster.of(&node).get_consensus_status(status).await), Code::Unauthenticated);
}

#[tokio::test]
async fn a_node_that_is_deleted_leaves_nothing() {
    use delete_node_request::Node::Id;
    let cluster = Cluster::start().await;
    let delete = async |id: &NodeId, bypasses: &str| {
        let request = DeleteNodeRequest {
            node: Some(Id(id.to_string())),
            safety_bypass_has_roles: bypasses.contains('r').then_some(SafetyBypassHasRoles {}),
            safety_bypass_not_decommissioned: bypasses
                .contains('d')
                .then_some(SafetyBypassNotDecommissioned {}),
        };
        code(cluster.owner().delete_node(request).await)
    };
    use NodeState::{Decommissioned, Invalid, New, Standby, Up};
    let refused = Code::FailedPrecondition;
    for (state, letters, bypasses, expected) in [
        (New, "", "", Code::Ok),
        (Standby, "", "", Code::Ok),
        (Decommissioned, "", "", Code::Ok),
        (New, "w", "", refused),
        (New, "w", "d", refused),
        (New, "w", "r", Code::Ok),
        (Up, "", "", refused),
        (Up, "", "r", refused),
        (Up, "", "d", Code::Ok),
        (Up, "w", "", refused),
        (Up, "w", "r", refused),
        (Up, "w", "d", refused),
        (Up, "w", "rd", Code::Ok),
        (Invalid, "", "rd", Code::Internal),
    ] {
        let case = format!("{state:?} {letters} {bypasses}");
        let node = cluster.add(state, letters).await;
        assert_eq!(delete(&node.id, bypasses).await, expected, "{case}");
        let is_there = expected != Code::Ok;
        assert_eq!(cluster.read(&node.id).await.is_some(), is_there, "{case}");
        for path in [
            names::join_key(&node.join.public()),
            names::certificate(&names::node_certificate(&node.id)),
        ] {
            let found = cluster.office.state.bytes(&path).await.expect("a read");
            assert_eq!(found.is_some(), is_there, "{case} {path}");
        }
        if !is_there {
            let serial = Shown::read(&node.certificate).expect("a certificate").serial;
            assert!(cluster.office.known.look(|book| book.is_revoked(&serial)), "{case}");
            let answer = cluster.of(&node).get_consensus_status(GetConsensusStatusRequest {}).await;
            assert_eq!(code(answer), Code::Unauthenticated, "{case}");
            assert_eq!(delete(&node.id, "rd").await, Code::NotFound, "{case}");
        }
    }
    // The last that votes stays, whatever is bypassed.
    assert_eq!(delete(&cluster.own(), "rd").await, refused);
    assert!(cluster.read(&cluster.own()).await.is_some());
    let none = DeleteNodeRequest::default();
    assert_eq!(code(cluster.owner().delete_node(none).await), Code::InvalidArgument);

    // The join key that another node has stays.
    let (node, other) = (cluster.add(New, "").await, cluster.add(Up, "").await);
    let path = names::join_key(&node.join.public());
    let changes = Changes::new().put(&path, other.id.to_string());
    cluster.office.change(changes).await.expect("a write").expect("written");
    assert_eq!(delete(&node.id, "").await, Code::Ok);
    assert!(cluster.office.state.bytes(&path).await.expect("a read").is_some());
}

#[tokio::test]
async fn labels_change_together_or_not_at_all() {
    use update_node_labels_request::Node::Id;
    let cluster = Cluster::start().await;
    let node = cluster.add(NodeState::Decommissioned, "").await;
    let label = async |upsert: &[(&str, &str)], delete: &[&str]| {
        let pair = |(key, value): &(&str, &str)| Pair {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        let request = UpdateNodeLabelsRequest {
            node: Some(Id(node.id.to_string())),
            upsert: upsert.iter().map(pair).collect(),
            delete: delete.iter().map(|key| (*key).to_owned()).collect(),
        };
        code(cluster.owner().update_node_labels(request).await)
    };
    let now = async || {
        let stored = cluster.read(&node.id).await.expect("a node").labels.unwrap_or_default();
        let pairs = stored.pairs.into_iter().map(|pair| format!("{}={}", pair.key, pair.value));
        pairs.collect::<Vec<_>>().join(",")
    };
    assert_eq!(label(&[("zone", "a"), ("example.org/rack", "")], &["never"]).await, Code::Ok);
    assert_eq!(now().await, "example.org/rack=,zone=a");
    for (upsert, delete) in [
        (&[("ok", ""), ("-", "")][..], &[][..]),
        (&[("ok", "-")], &[]),
        (&[("ok", ""), ("ok", "")], &[]),
        (&[("ok", "")], &["ok"]),
        (&[], &["zone", "zone"]),
    ] {
        assert_eq!(label(upsert, delete).await, Code::InvalidArgument);
    }
    let many: Vec<_> = (0..127).map(|number| format!("n{number}")).collect();
    let many: Vec<_> = many.iter().map(|name| (&**name, "")).collect();
    assert_eq!(label(&many, &[]).await, Code::OutOfRange);
    assert_eq!(now().await, "example.org/rack=,zone=a");
    assert_eq!(label(&many, &["zone"]).await, Code::Ok);
    assert_eq!(label(&[("zone", "b")], &["n0", "n1"]).await, Code::Ok);
    let request = UpdateNodeLabelsRequest {
        node: Some(Id(NodeId::of_key(&[1; 32]).to_string())),
        ..UpdateNodeLabelsRequest::default()
    };
    assert_eq!(code(cluster.owner().update_node_labels(request).await), Code::NotFound);
    let none = UpdateNodeLabelsRequest::default();
    assert_eq!(code(cluster.owner().update_node_labels(none).await), Code::InvalidArgument);
}

#[tokio::test]
async fn the_cluster_is_configured_and_tells_what_it_is_like() {
    let cluster = Cluster::start().await;
    let with = |patterns: &[&str]| {
        let pattern = |regexp: &&str| NodeLabelsToSynchronize { regexp: (*regexp).to_owned() };
        let patterns = patterns.iter().map(pattern).collect();
        let kubernetes = Some(Kubernetes { node_labels_to_synchronize: patterns });
        Some(ClusterConfiguration { kubernetes, ..ClusterConfiguration::default() })
    };
    let configure = async |base_config, new_config, path: &str| {
        let paths = vec![path.to_owned()];
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = ConfigureClusterRequest { base_config, new_config, update_mask };
        let answer = cluster.owner().configure_cluster(request).await;
        answer.map(|answer| answer.into_inner().resulting_config).map_err(|status| status.code())
    };
    let path = "kubernetes.node_labels_to_synchronize";
    let after = ClusterConfiguration {
        kubernetes: with(&["^zone$"]).and_then(|with| with.kubernetes),
        ..crate::testing::lenient()
    };
    let configured = configure(None, with(&["^zone$"]), path).await;
    assert_eq!(configured, Ok(Some(after.clone())));
    let stale = configure(with(&[]), with(&[]), path).await;
    assert_eq!(stale, Err(Code::FailedPrecondition));
    assert_eq!(configure(None, None, path).await, Err(Code::InvalidArgument));
    assert_eq!(configure(None, with(&[]), "tpm_mode").await, Err(Code::InvalidArgument));

    let node = cluster.add(NodeState::Up, "").await;
    let mut stored = cluster.read(&node.id).await.expect("a node");
    let running_curator = Some(RunningCurator { port: 7835 });
    let external_address = "10.0.0.7".to_owned();
    stored.status = Some(NodeStatus { external_address, running_curator, ..NodeStatus::default() });
    cluster.write(&stored).await;
    let info = cluster.owner().get_cluster_info(GetClusterInfoRequest {}).await;
    let info = info.expect("an answer").into_inner();
    assert_eq!(info.ca_certificate, cluster.office.certificates.authority());
    assert_eq!(info.cluster_configuration, Some(after));
    let directory = info.cluster_directory.expect("a directory");
    let named = directory.nodes.iter().find(|named| named.id == node.id.as_str());
    assert_eq!(named.expect("a node").addresses[0].host, "10.0.0.7");

    let changes = Changes::new().put(names::CONFIGURATION, "no message");
    cluster.office.change(changes).await.expect("a write").expect("written");
    let info = cluster.owner().get_cluster_info(GetClusterInfoRequest {}).await;
    assert_eq!(info.expect("an answer").into_inner().cluster_configuration, None);
    assert_eq!(configure(None, with(&[]), path).await, Err(Code::Unavailable));
}

async fn watch_kind(
    client: &mut CuratorClient<Channel>,
    kind: Option<Kind>,
) -> Result<Streaming<WatchEvent>, Status> {
    Ok(client.watch(WatchRequest { kind }).await?.into_inner())
}

async fn watch_one(
    client: &mut CuratorClient<Channel>,
    id: &NodeId,
) -> Result<Streaming<WatchEvent>, Status> {
    let node_id = id.to_string();
    watch_kind(client, Some(Kind::NodeInCluster(NodeInCluster { node_id }))).await
}

async fn watch_all(client: &mut CuratorClient<Channel>) -> Result<Streaming<WatchEvent>, Status> {
    watch_kind(client, Some(Kind::NodesInCluster(NodesInCluster {}))).await
}

async fn next(events: &mut Streaming<WatchEvent>) -> WatchEvent {
    events.message().await.expect("no error").expect("no end")
}

#[tokio::test]
async fn who_watches_all_nodes_is_told_what_there_is_and_what_becomes_of_it() {
    let cluster = Cluster::start().await;
    let node = cluster.add(NodeState::Up, "").await;
    let mut watch = watch_all(&mut cluster.of(&node)).await.expect("a watch");
    let backlog = next(&mut watch).await;
    assert_eq!(backlog.progress(), Progress::LastBacklogged);
    let mut expected = [cluster.own().to_string(), node.id.to_string()];
    expected.sort();
    assert_eq!(backlog.nodes.iter().map(|node| &node.id).collect::<Vec<_>>(), expected.each_ref());
    // Of a member, its certificates, too.
    let member = |node: &nodes::Node| node.roles.as_ref()?.consensus_member.clone();
    assert!(backlog.nodes.iter().any(|node| member(node).is_some()));

    let new = cluster.add(NodeState::New, "").await;
    let event = next(&mut watch).await;
    assert_eq!(event.progress(), Progress::Unspecified);
    assert_eq!((event.nodes.len(), &*event.nodes[0].id), (1, new.id.as_str()));
    let pubkey = new.key.public().to_vec();
    cluster.owner().approve_node(ApproveNodeRequest { pubkey }).await.expect("approved");
    assert_eq!(next(&mut watch).await.nodes[0].state(), NodeState::Standby);
    let gone = Some(delete_node_request::Node::Id(new.id.to_string()));
    let request = DeleteNodeRequest { node: gone, ..DeleteNodeRequest::default() };
    cluster.owner().delete_node(request).await.expect("deleted");
    let event = next(&mut watch).await;
    assert_eq!((event.nodes.len(), event.node_tombstones.len()), (0, 1));
    assert_eq!(event.node_tombstones[0].node_id, new.id.as_str());
    // What is written elsewhere wakes nobody; this does.
    let changes = Changes::new().put("/x/elsewhere", "1");
    cluster.office.change(changes).await.expect("a write").expect("written");
    let another = cluster.add(NodeState::New, "").await;
    assert_eq!(next(&mut watch).await.nodes[0].id, another.id.as_str());
}

#[tokio::test]
async fn a_backlog_comes_in_parts_and_its_end_is_told_once() {
    let cluster = Cluster::start().await;
    let pair = |number: usize| node_labels::Pair {
        key: format!("label-{number:03}"),
        value: "v".repeat(63),
    };
    let labels = NodeLabels { pairs: (0..128).map(pair).collect() };
    // Some three times what an event holds.
    for _ in 0..600 {
        let key = RawKey::generate().expect("a key").public();
        let id = NodeId::of_key(&key).to_string();
        let public_key = key.to_vec();
        let node = Node { id, public_key, labels: Some(labels.clone()), ..Node::default() };
        cluster.write(&node).await;
    }
    let node = cluster.add(NodeState::Up, "").await;
    let mut watch = watch_all(&mut cluster.of(&node)).await.expect("a watch");
    let (mut events, mut all) = (0, Vec::new());
    loop {
        let event = next(&mut watch).await;
        events += 1;
        assert!(prost::Message::encoded_len(&event) < 3 << 20);
        all.extend(event.nodes.iter().map(|node| node.id.clone()));
        if event.progress() == Progress::LastBacklogged {
            break;
        }
    }
    assert!(events > 2 && all.is_sorted() && all.len() == 602, "{events} {}", all.len());
    let changed = cluster.add(NodeState::New, "").await;
    let event = next(&mut watch).await;
    assert_eq!(
        (event.progress(), &*event.nodes[0].id),
        (Progress::Unspecified, changed.id.as_str())
    );
}

#[tokio::test]
async fn who_watches_one_node_may_do_so_before_and_after_it() {
    let cluster = Cluster::start().await;
    let node = cluster.add(NodeState::Up, "").await;
    let key = RawKey::generate().expect("a key").public();
    let id = NodeId::of_key(&key);
    let mut client = cluster.of(&node);
    let mut watch = watch_one(&mut client, &id).await.expect("a watch");
    let stored = Node { id: id.to_string(), public_key: key.to_vec(), ..Node::default() };
    // Another's change is not told.
    cluster.add(NodeState::New, "").await;
    cluster.write(&stored).await;
    assert_eq!(next(&mut watch).await.nodes[0].id, id.as_str());
    let labels = NodeLabels { pairs: vec![node_labels::Pair::default()] };
    cluster.write(&Node { labels: Some(labels.clone()), ..stored.clone() }).await;
    assert_eq!(next(&mut watch).await.nodes[0].labels, Some(labels));
    let removed = Changes::new().remove(&names::node(&id));
    cluster.office.change(removed).await.expect("a write").expect("removed");
    let event = next(&mut watch).await;
    assert_eq!((event.nodes.len(), &*event.node_tombstones[0].node_id), (0, id.as_str()));
    // It stays open.
    cluster.write(&stored).await;
    assert_eq!(next(&mut watch).await.nodes[0].id, id.as_str());

    let of =
        |node_id: &str| Some(Kind::NodeInCluster(NodeInCluster { node_id: node_id.to_owned() }));
    for (kind, expected) in [
        (of(""), Code::InvalidArgument),
        (of("a/b"), Code::InvalidArgument),
        (None, Code::Unimplemented),
    ] {
        let refused = watch_kind(&mut client, kind).await.expect_err("a refusal");
        assert_eq!(refused.code(), expected);
    }
}

#[tokio::test]
async fn a_node_that_is_heard_is_healthy() {
    let cluster = Cluster::start().await;
    let node = cluster.add(NodeState::Up, "").await;
    let health = async || {
        let nodes = cluster.list(&format!("node.id == '{}'", node.id)).await.expect("nodes");
        nodes[0].health()
    };
    assert_ne!(health().await, Health::Healthy);
    // Two beats and no end yet.
    let beats = tokio_stream::iter([HeartbeatRequest {}; 2]).chain(pending());
    let answers = cluster.of(&node).heartbeat(beats).await.expect("a stream");
    let mut answers = answers.into_inner();
    for _ in 0..2 {
        answers.message().await.expect("no error").expect("an answer");
    }
    // However slow this machine is, at some time both are within the ten seconds.
    while health().await != Health::Healthy {
        let answers = cluster.of(&node).heartbeat(once(HeartbeatRequest {})).await;
        answers.expect("a stream").into_inner().message().await.expect("no error");
    }
    let fresh = cluster.list("node.time_since_heartbeat < duration('1h')").await.expect("nodes");
    assert_eq!(ids(&fresh), [node.id.as_str()]);
    // An end on one side is one on the other, and well.
    let answers = cluster.of(&node).heartbeat(once(HeartbeatRequest {})).await;
    let answers: Result<Vec<_>, _> = answers.expect("a stream").into_inner().collect().await;
    assert_eq!(answers.expect("no error").len(), 1);

    let mut user = cluster.curator(cluster.as_user("owner"));
    assert_eq!(code(user.heartbeat(once(HeartbeatRequest {})).await), Code::PermissionDenied);

    // Of a node that is deleted meanwhile, the next one is refused.
    let (beat, beats) = tokio::sync::mpsc::channel(1);
    let beats = tokio_stream::wrappers::ReceiverStream::new(beats);
    let answers = cluster.of(&node).heartbeat(beats).await.expect("a stream");
    let mut answers = answers.into_inner();
    beat.send(HeartbeatRequest {}).await.expect("sent");
    answers.message().await.expect("no error").expect("an answer");
    let request = DeleteNodeRequest {
        node: Some(delete_node_request::Node::Id(node.id.to_string())),
        safety_bypass_not_decommissioned: Some(SafetyBypassNotDecommissioned {}),
        ..DeleteNodeRequest::default()
    };
    cluster.owner().delete_node(request).await.expect("deleted");
    beat.send(HeartbeatRequest {}).await.expect("sent");
    let refused = answers.message().await.expect_err("a refusal");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(cluster.office.heartbeats.last_of(&node.id), None);
}

#[tokio::test]
async fn a_node_tells_its_own_status() {
    let cluster = Cluster::start().await;
    let node = cluster.add(NodeState::Up, "").await;
    let status = |address: &str| {
        let external_address = address.to_owned();
        let timestamp = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
        Some(NodeStatus { external_address, timestamp, ..NodeStatus::default() })
    };
    let tell = async |id: &NodeId, status| {
        let request = UpdateNodeStatusRequest { node_id: id.to_string(), status };
        code(cluster.of(&node).update_node_status(request).await)
    };
    assert_eq!(tell(&cluster.own(), status("10.0.0.1")).await, Code::PermissionDenied);
    assert_eq!(tell(&node.id, None).await, Code::InvalidArgument);
    assert_eq!(tell(&node.id, status("")).await, Code::InvalidArgument);
    assert_eq!(tell(&node.id, status("node.example")).await, Code::InvalidArgument);
    assert_eq!(tell(&node.id, status("2001:db8::1")).await, Code::Ok);
    let stored = cluster.read(&node.id).await.and_then(|node| node.status).expect("a status");
    assert_eq!(stored.external_address, "2001:db8::1");
    // The clock is the curator's: a node's may be ten years off.
    assert!(stored.timestamp.expect("a time").seconds > 1_000_000_000);
    let request =
        UpdateNodeStatusRequest { node_id: node.id.to_string(), status: status("10.0.0.1") };
    let mut user = cluster.curator(cluster.as_user("owner"));
    assert_eq!(code(user.update_node_status(request).await), Code::PermissionDenied);
}

#[tokio::test]
async fn a_node_tells_its_place_in_the_cluster_network() {
    let cluster = Cluster::start().await;
    let (node, other) =
        (cluster.add(NodeState::Up, "").await, cluster.add(NodeState::Up, "").await);
    let tell = async |node: &Known, key: &[u8], prefixes: &[&str]| {
        let prefix = |cidr: &&str| Prefix { cidr: (*cidr).to_owned() };
        let clusternet = Some(NodeClusterNetworking {
            wireguard_pubkey: STANDARD.encode(key),
            prefixes: prefixes.iter().map(prefix).collect(),
        });
        let request = UpdateNodeClusterNetworkingRequest { clusternet };
        code(cluster.of(node).update_node_cluster_networking(request).await)
    };
    assert_eq!(tell(&node, &[1; 32], &[]).await, Code::FailedPrecondition);
    for known in [&node, &other] {
        let external_address = "10.0.0.1".to_owned();
        let status = Some(NodeStatus { external_address, ..NodeStatus::default() });
        let request = UpdateNodeStatusRequest { node_id: known.id.to_string(), status };
        cluster.of(known).update_node_status(request).await.expect("told");
    }
    assert_eq!(tell(&node, &[1; 31], &[]).await, Code::InvalidArgument);
    assert_eq!(tell(&node, &[], &[]).await, Code::InvalidArgument);
    let prefixes = ["10.200.0.0/24", "10.0.0.1/32"];
    assert_eq!(tell(&node, &[1; 32], &prefixes).await, Code::Ok);
    assert_eq!(tell(&node, &[1; 32], &["10.200.0.1/24"]).await, Code::InvalidArgument);
    assert_eq!(tell(&node, &[1; 32], &["10.0.0.2/32"]).await, Code::InvalidArgument);
    let stored = cluster.read(&node.id).await.and_then(|node| node.clusternet);
    let stored = stored.expect("a network");
    assert_eq!(stored.prefixes.iter().map(|prefix| &*prefix.cidr).collect::<Vec<_>>(), prefixes);
    assert_eq!(tell(&other, &[1; 32], &[]).await, Code::InvalidArgument);
    assert_eq!(tell(&other, &[2; 32], &[]).await, Code::Ok);
    // All of it is replaced, and the key is free again.
    assert_eq!(tell(&node, &[3; 32], &[]).await, Code::Ok);
    assert_eq!(tell(&other, &[1; 32], &[]).await, Code::Ok);
    let unset = UpdateNodeClusterNetworkingRequest { clusternet: None };
    let answer = cluster.of(&node).update_node_cluster_networking(unset.clone()).await;
    assert_eq!(code(answer), Code::InvalidArgument);
    let mut user = cluster.curator(cluster.as_user("owner"));
    assert_eq!(code(user.update_node_cluster_networking(unset).await), Code::PermissionDenied);
}

#[tokio::test]
async fn a_worker_is_given_certificates_for_kubernetes_alone() {
    let cluster = Cluster::start().await;
    let (worker, idle) =
        (cluster.add(NodeState::Up, "w").await, cluster.add(NodeState::Up, "").await);
    let key = |_| RawKey::generate().expect("a key").public().to_vec();
    let keys: [Vec<u8>; 3] = std::array::from_fn(key);
    let request = |keys: &[Vec<u8>; 3]| {
        let [kubelet_pubkey, csi_provisioner_pubkey, netservices_pubkey] = keys.clone();
        let keys = issue_certificate_request::KubernetesWorker {
            kubelet_pubkey,
            csi_provisioner_pubkey,
            netservices_pubkey,
        };
        let kind = Some(issue_certificate_request::Kind::KubernetesWorker(keys));
        IssueCertificateRequest { kind }
    };
    let ask = async |node: &Known, request: IssueCertificateRequest| {
        cluster.of(node).issue_certificate(request).await
    };
    let mut user = cluster.curator(cluster.as_user("owner"));
    assert_eq!(code(user.issue_certificate(request(&keys)).await), Code::PermissionDenied);
    let unset = IssueCertificateRequest { kind: None };
    assert_eq!(code(ask(&worker, unset).await), Code::InvalidArgument);
    assert_eq!(code(ask(&idle, request(&keys)).await), Code::PermissionDenied);
    let short = [keys[0].clone(), vec![1; 31], keys[2].clone()];
    assert_eq!(code(ask(&worker, request(&short)).await), Code::InvalidArgument);

    let given = ask(&worker, request(&keys)).await.expect("certificates").into_inner();
    let again = ask(&worker, request(&keys)).await.expect("certificates").into_inner();
    assert_eq!(given, again);
    let issue_certificate_response::Kind::KubernetesWorker(given) = given.kind.expect("a kind");
    let authority = cluster.office.certificates.authority();
    for (certificate, key, name) in [
        (&given.kubelet_server_certificate, &keys[0], "system:node:"),
        (&given.kubelet_client_certificate, &keys[0], "system:node:"),
        (&given.csi_provisioner_certificate, &keys[1], "metropolis:csi-provisioner:"),
        (&given.netservices_certificate, &keys[2], "metropolis:netservices:"),
    ] {
        let shown = Shown::read(certificate).expect("a certificate");
        assert_eq!(shown.public_key.as_ref().map(|key| &key[..]), Some(&key[..]));
        assert_eq!(shown.common_name, format!("{name}{}", worker.id));
        assert!(shown.is_signed_by(&given.identity_ca_certificate));
        // Else its holder would be a user of the cluster.
        assert!(!shown.is_signed_by(authority));
    }
    let other: [Vec<u8>; 3] = std::array::from_fn(key);
    assert_eq!(code(ask(&worker, request(&other)).await), Code::Unavailable);
    // With the node goes what it was given.
    let request = DeleteNodeRequest {
        node: Some(delete_node_request::Node::Id(worker.id.to_string())),
        safety_bypass_has_roles: Some(SafetyBypassHasRoles {}),
        safety_bypass_not_decommissioned: Some(SafetyBypassNotDecommissioned {}),
    };
    cluster.owner().delete_node(request).await.expect("deleted");
    let left = names::CURATOR.range("/x/kubernetes-pki/issued/");
    let left = cluster.office.state.store().range(left).await.expect("a read");
    assert_eq!(left.entries, []);
}

#[tokio::test]
async fn an_embedded_store_has_one_member_which_votes() {
    let cluster = Cluster::start().await;
    let answer = cluster.curator(cluster.as_user("owner"));
    let answer = { answer }.get_consensus_status(GetConsensusStatusRequest {}).await;
    let [member] = &answer.expect("an answer").into_inner().etcd_member[..] else {
        panic!("one member")
    };
    assert_eq!((&*member.id, member.status()), (cluster.own().as_str(), etcd_member::Status::Full));
}
