//! Nodes as processes: one founds a cluster, two are taken in, and each is killed at every step it can be seen at.
//!
//! All of them are `orlop curator node` on loopback addresses of this test's own (127.A.B.0/24, by its process id), with
//! the ports that they have on a node.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use orlop_pki::cluster::{self, RawKey};
use orlop_proto::metropolis::node::core::curator::proto::api as nodes;
use orlop_proto::metropolis::node::core::curator::proto::api::curator_local_client::CuratorLocalClient;
use orlop_proto::metropolis::proto::api::aaa_client::AaaClient;
use orlop_proto::metropolis::proto::api::management_client::ManagementClient;
use orlop_proto::metropolis::proto::api::node::Health;
use orlop_proto::metropolis::proto::api::node_management_client::NodeManagementClient;
use orlop_proto::metropolis::proto::api::node_parameters::{
    Cluster, ClusterBootstrap, ClusterRegister,
};
use orlop_proto::metropolis::proto::api::{
    self, NodeParameters, escrow_request, update_node_roles_request,
};
use orlop_proto::metropolis::proto::common::cluster_configuration::{
    StorageSecurityPolicy, TpmMode,
};
use orlop_proto::metropolis::proto::common::{
    ClusterConfiguration, ClusterDirectory, ClusterState, NodeState, cluster_directory,
};
use orlop_proto::orlop::inside::Standing;
use orlop_proto::orlop::inside::cluster_news_client::ClusterNewsClient;
use orlop_rpc::tls::channel;
use prost::Message as _;
use tonic::Code;
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_secs(120);
/// Between looks at what has no event.
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn binary() -> PathBuf {
    std::env::var_os("ORLOP").map_or_else(|| env!("CARGO_BIN_EXE_orlop").into(), PathBuf::from)
}

/// An address that no other test has.
fn address(number: u8) -> String {
    let id = std::process::id();
    format!("127.{}.{}.{number}", 64 + (id >> 8) % 64, id % 256)
}

/// A machine; its process dies with it.
struct Machine {
    address: String,
    folder: PathBuf,
    child: Option<Child>,
}

impl Machine {
    fn new(home: &Path, number: u8, parameters: &NodeParameters) -> Self {
        let folder = home.join(number.to_string());
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("parameters.pb"), parameters.encode_to_vec()).unwrap();
        Self { address: address(number), folder, child: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn start(&mut self) {
        let listen = |port: u16| format!("{}:{port}", self.address);
        let child = Command::new(binary())
            .args(["curator", "node", "--external-address", &self.address])
            .args(["--listen", &listen(7839), "--curator-listen", &listen(7835)])
            .arg("--parameters")
            .arg(self.path("parameters.pb"))
            .arg("--state-dir")
            .arg(self.path("esp/metropolis"))
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--socket")
            .arg(self.path("news.sock"))
            .arg("--machined")
            .arg(self.path("absent.sock"))
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// kill -9.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Waits until it tells something.
    async fn tells(&self, what: &str, right: impl Fn(&Standing) -> bool) -> Standing {
        let mut last = None;
        let telling = async {
            loop {
                let mut client =
                    ClusterNewsClient::new(orlop_rpc::unix::channel(self.path("news.sock")));
                if let Ok(news) = client.follow(()).await {
                    let mut news = news.into_inner();
                    while let Ok(Some(standing)) = news.message().await {
                        if right(&standing) {
                            return standing;
                        }
                        last = Some(standing);
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        match tokio::time::timeout(PATIENCE, telling).await {
            Ok(standing) => standing,
            Err(_) => panic!("{} never tells that {what}; last {last:?}", self.address),
        }
    }

    async fn stands(&self, state: ClusterState) -> Standing {
        self.tells(state.as_str_name(), |standing| standing.state() == state).await
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn until<F: Future<Output = Option<T>>, T>(what: &str, look: impl Fn() -> F) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(found) => found,
        Err(_) => panic!("{what}: not within {} s", PATIENCE.as_secs()),
    }
}

/// Who owns the cluster.
struct Owner {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: RawKey,
    host: String,
}

impl Owner {
    async fn of(host: &str, key: RawKey) -> Self {
        let strangers = cluster::trusting_client_config(None).unwrap();
        let mut local = CuratorLocalClient::new(channel(host, 7835, strangers));
        let asked = local.get_ca_certificate(nodes::GetCaCertificateRequest {}).await.unwrap();
        let ca = asked.into_inner().identity_ca_certificate;

        let shown = cluster::ephemeral(&key, SystemTime::now()).unwrap();
        let tls = cluster::client_config(&ca, Some((&shown, &key)), None).unwrap();
        let first = api::EscrowRequest {
            parameters: Some(escrow_request::Parameters {
                requested_identity_name: "owner".to_owned(),
                public_key: key.public().to_vec(),
            }),
            ..api::EscrowRequest::default()
        };
        let mut aaa = AaaClient::new(channel(host, 7835, tls));
        let answers = aaa.escrow(tokio_stream::once(first)).await.unwrap();
        let answer = answers.into_inner().message().await.unwrap().unwrap();
        Self { ca, certificate: answer.emitted_certificate, key, host: host.to_owned() }
    }

    fn channel(&self, host: &str, port: u16) -> Channel {
        let identity = Some((&self.certificate[..], &self.key));
        channel(host, port, cluster::client_config(&self.ca, identity, None).unwrap())
    }

    fn management(&self) -> ManagementClient<Channel> {
        ManagementClient::new(self.channel(&self.host, 7835))
    }

    async fn nodes(&self) -> Option<Vec<api::Node>> {
        let request = api::GetNodesRequest::default();
        let mut stream = self.management().get_nodes(request).await.ok()?.into_inner();
        let mut nodes = Vec::new();
        while let Some(node) = stream.message().await.ok()? {
            nodes.push(node);
        }
        Some(nodes)
    }

    async fn node(&self, id: &str) -> Option<api::Node> {
        self.nodes().await?.into_iter().find(|node| node.id == id)
    }

    async fn healthy(&self, id: &str) {
        until("a node is healthy", async || {
            self.node(id).await.filter(|node| node.health() == Health::Healthy)
        })
        .await;
    }

    async fn approve(&self, id: &str) {
        let pubkey = self.node(id).await.unwrap().pubkey;
        self.management().approve_node(api::ApproveNodeRequest { pubkey }).await.unwrap();
    }
}

fn founding(owner: &RawKey) -> NodeParameters {
    let bootstrap = ClusterBootstrap {
        owner_public_key: owner.public().to_vec(),
        initial_cluster_configuration: Some(ClusterConfiguration {
            tpm_mode: TpmMode::Disabled.into(),
            storage_security_policy: StorageSecurityPolicy::Permissive.into(),
            kubernetes: None,
            cluster_domain: "test.internal".to_owned(),
        }),
        labels: None,
    };
    NodeParameters { cluster: Some(Cluster::ClusterBootstrap(bootstrap)), network_config: None }
}

fn joining(owner: &Owner, ticket: Vec<u8>) -> NodeParameters {
    let host = owner.host.clone();
    let node = cluster_directory::Node {
        addresses: vec![cluster_directory::node::Address { host }],
        ..cluster_directory::Node::default()
    };
    let register = ClusterRegister {
        cluster_directory: Some(ClusterDirectory { nodes: vec![node] }),
        register_ticket: ticket,
        ca_certificate: owner.ca.clone(),
        labels: None,
    };
    NodeParameters { cluster: Some(Cluster::ClusterRegister(register)), network_config: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_taken_in_come_back_and_leave_though_each_is_killed_at_every_step() {
    let home = tempfile::tempdir().unwrap();
    let key = RawKey::generate().unwrap();

    // The founder is killed as soon as it has keys, and as soon as it has a certificate.
    let mut founder = Machine::new(home.path(), 1, &founding(&key));
    for milestone in ["esp/metropolis/enrollment.pb", "data/node/credentials/cert.pem"] {
        founder.start();
        // It may be past it already: what it begins with goes when it is done.
        let paths =
            [milestone, "esp/metropolis/sealed_configuration.pb"].map(|it| founder.path(it));
        until(milestone, async || paths.iter().any(|it| it.exists()).then_some(())).await;
        founder.kill();
    }
    founder.start();
    let first = founder.stands(ClusterState::Home).await;
    let roles = founder.tells("it has roles", |it| it.roles.is_some()).await.roles.unwrap();
    assert!(roles.consensus_member.is_some() && roles.kubernetes_controller.is_some());
    let strangers = cluster::trusting_client_config(None).unwrap();
    until("the curator answers", async || {
        let mut local = CuratorLocalClient::new(channel(&founder.address, 7835, strangers.clone()));
        local.get_ca_certificate(nodes::GetCaCertificateRequest {}).await.ok().map(drop)
    })
    .await;
    let owner = Owner::of(&founder.address, key).await;
    owner.healthy(&first.node_id).await;
    let ticket = owner.management().get_register_ticket(api::GetRegisterTicketRequest {}).await;
    let parameters = joining(&owner, ticket.unwrap().into_inner().ticket);

    // One that is killed wherever it can be seen to be.
    let mut second = Machine::new(home.path(), 2, &parameters);
    second.start();
    let path = second.path("esp/metropolis/enrollment.pb");
    until("it has keys", async || path.exists().then_some(())).await;
    second.kill();
    second.start();
    let waiting = second.stands(ClusterState::Foreign).await;
    assert_eq!(waiting.key.len(), 64);
    second.kill();
    owner.approve(&waiting.node_id).await;
    second.start();
    let path = second.path("data/node/credentials/cert.pem");
    until("it has a certificate", async || path.exists().then_some(())).await;
    second.kill();
    second.start();
    let there = second.stands(ClusterState::Home).await;
    assert_eq!((&there.node_id, &there.key), (&waiting.node_id, &waiting.key));
    owner.healthy(&there.node_id).await;
    second.kill();
    second.start();
    second.stands(ClusterState::Home).await;

    // One that is left in peace.
    let mut third = Machine::new(home.path(), 3, &parameters);
    third.start();
    let id = third.stands(ClusterState::Foreign).await.node_id;
    let told = third.tells("it waits", |it| it.word.contains("approve")).await;
    assert_eq!(told.node_id, id);
    owner.approve(&id).await;
    third.stands(ClusterState::Home).await;
    owner.healthy(&id).await;
    let nodes = owner.nodes().await.unwrap();
    assert_eq!(nodes.len(), 3, "each has one entry: {nodes:?}");
    assert!(nodes.iter().all(|node| node.state() == NodeState::Up));
    let status = owner.node(&id).await.unwrap().status.unwrap();
    assert_eq!(status.external_address, third.address);
    assert_eq!(status.boot_id.len(), 16);

    // Roles come by themselves, and outlive the leader.
    let roles = api::UpdateNodeRolesRequest {
        node: Some(update_node_roles_request::Node::Id(id.clone())),
        kubernetes_worker: Some(true),
        ..api::UpdateNodeRolesRequest::default()
    };
    owner.management().update_node_roles(roles).await.unwrap();
    let works = |it: &Standing| it.roles.as_ref().is_some_and(|it| it.kubernetes_worker.is_some());
    third.tells("it is a worker", works).await;

    // What is asked of one node.
    let mut manage = NodeManagementClient::new(owner.channel(&third.address, 7839));
    let asked = manage.logs(api::LogsRequest { dn: "a..b".to_owned(), ..<_>::default() }).await;
    assert_eq!(asked.unwrap_err().code(), Code::InvalidArgument);
    let asked = manage.reboot(api::RebootRequest::default()).await;
    assert_eq!(asked.unwrap_err().code(), Code::Unimplemented);
    let nobody = cluster::client_config(&owner.ca, None, None).unwrap();
    let mut stranger = NodeManagementClient::new(channel(&third.address, 7839, nobody));
    let asked = stranger.reboot(api::RebootRequest::default()).await;
    assert_eq!(asked.unwrap_err().code(), Code::Unauthenticated);

    // The leader is killed: nodes start without it, and find it again.
    founder.kill();
    third.kill();
    third.start();
    third.tells("it is a worker", works).await;
    founder.start();
    for id in [&first.node_id, &there.node_id, &id] {
        owner.healthy(id).await;
    }

    // Deleted while it lives, and deleted while it is off.
    second.kill();
    for id in [&there.node_id, &id] {
        let request = api::DeleteNodeRequest {
            node: Some(api::delete_node_request::Node::Id(id.clone())),
            safety_bypass_has_roles: Some(<_>::default()),
            safety_bypass_not_decommissioned: Some(<_>::default()),
        };
        owner.management().delete_node(request).await.unwrap();
    }
    third.stands(ClusterState::Disowning).await;
    second.start();
    second.stands(ClusterState::Disowning).await;
    let path = second.path("esp/metropolis/removed");
    until("it is kept that it was removed", async || path.exists().then_some(())).await;
    second.kill();
    second.start();
    let out = second.stands(ClusterState::Disowning).await;
    assert!(out.word.contains("removed this node"), "{}", out.word);
    assert_eq!(owner.nodes().await.unwrap().len(), 1);
}
