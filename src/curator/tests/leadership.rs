//! Three curators as processes over one etcd: the leader is killed, stopped, and cut off from the store; what was
//! acknowledged is there, and the next one leads. How long that takes is measured in the benches; here it must happen.
//!
//! Each generation of etcd that is there is taken: see [`etcd_server::programs`].

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../store/tests/etcd_server/mod.rs"]
mod etcd_server;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_curator::moving;
use orlop_curator::names::{self, CURATOR, NodeId};
use orlop_pki::cluster::{self, RawKey};
use orlop_pki::encoding;
use orlop_proto::metropolis::node::core::curator::proto::api::get_consensus_status_response::EtcdMember;
use orlop_proto::metropolis::node::core::curator::proto::api::get_consensus_status_response::etcd_member::Status as Standing;
use orlop_proto::metropolis::node::core::curator::proto::api::curator_client::CuratorClient;
use orlop_proto::metropolis::node::core::curator::proto::api::curator_local_client::CuratorLocalClient;
use orlop_proto::metropolis::node::core::curator::proto::api::{
    GetConsensusStatusRequest, GetCurrentLeaderRequest, GetCurrentLeaderResponse, RegisterNodeRequest,
};
use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_proto::metropolis::proto::api::aaa_client::AaaClient;
use orlop_proto::metropolis::proto::api::management_client::ManagementClient;
use orlop_proto::metropolis::proto::api::update_node_labels_request::{self, Pair};
use orlop_proto::metropolis::proto::api::{
    self as management, EscrowRequest, GetNodesRequest, GetRegisterTicketRequest,
    UpdateNodeLabelsRequest, UpdateNodeRolesRequest, escrow_request, update_node_roles_request,
};
use orlop_proto::metropolis::proto::common::NodeState;
use orlop_store::{Limits, Location, Store};
use prost::Message as _;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what nobody tells of.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What makes this program a curator, with these arguments.
const CURATOR_ARGUMENTS: &str = "ORLOP_TEST_CURATOR";

/// Not a test by itself: what the tests start as a curator.
#[test]
fn a_curator() {
    let Ok(arguments) = std::env::var(CURATOR_ARGUMENTS) else { return };
    let _code = orlop_curator::main(arguments.lines().map(Into::into).collect());
    std::process::exit(0);
}

/// A curator as a process; killed with the test.
struct Curator {
    child: Child,
    port: u16,
}

impl Curator {
    fn start(data: &Path, arguments: &[&str]) -> Self {
        let mut all = vec!["curator", "--listen", "127.0.0.1:0", "--external-address", "127.0.0.1"];
        all.extend(["--data-dir", data.to_str().unwrap()]);
        all.extend(arguments);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_curator", "--nocapture"])
            .env(CURATOR_ARGUMENTS, all.join("\n"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut log = String::new();
        let port = lines.by_ref().find_map(|line| {
            log = format!("{log}{line}\n");
            let (_, rest) = line.split_once("address=127.0.0.1:")?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        });
        let show = std::env::var_os("ORLOP_TEST_SHOW").is_some();
        thread::spawn(move || {
            lines.for_each(|line| {
                if show {
                    eprintln!("{line}")
                }
            })
        });
        let port = port.unwrap_or_else(|| panic!("the curator did not start:\n{log}"));
        Self { child, port }
    }

    fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }
}

impl Drop for Curator {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn send(process: u32, signal: Signal) {
    kill(Pid::from_raw(process.try_into().unwrap()), signal).unwrap();
}

fn keys() -> Vec<RawKey> {
    (0..3).map(|_| RawKey::generate().unwrap()).collect()
}

/// A node that is up.
async fn add(store: &Store, key: &RawKey) {
    let id = NodeId::of_key(&key.public());
    let node = Node {
        public_key: key.public().to_vec(),
        fsm_state: NodeState::Up.into(),
        id: id.to_string(),
        ..Node::default()
    };
    store.create(CURATOR.key(&names::node(&id)), node.encode_to_vec(), None).await.unwrap();
}

/// Three nodes and their curators, some of which run.
struct Cluster {
    url: String,
    folder: TempDir,
    keys: Vec<RawKey>,
    curators: Vec<Option<Curator>>,
    authority: Vec<u8>,
    /// What the owner shows, and his key.
    owner: (Vec<u8>, RawKey),
}

impl Cluster {
    /// Founded by the first of three curators, all of which run.
    async fn start(url: String) -> Self {
        let mut cluster = Self::alone(&url, keys(), &[]).await;
        let store = open(&url).await;
        for key in &cluster.keys[1..] {
            add(&store, key).await;
        }
        cluster.begin(1);
        cluster.begin(2);
        cluster
    }

    /// Founded by the first of three curators, over this store; the others do not run.
    async fn alone(url: &str, keys: Vec<RawKey>, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (number, key) in keys.iter().enumerate() {
            let credentials = folder.path().join(format!("{number}/credentials"));
            fs::create_dir_all(&credentials).unwrap();
            fs::write(credentials.join("cert-key.pem"), key.to_pem().expose()).unwrap();
        }
        let owner = RawKey::generate().unwrap();
        let public = names::hex(&owner.public());
        let founding = ["--owner", &public, "--tpm-mode", "best-effort", "--store", url];
        let founding = [&founding, arguments].concat();
        let first = Curator::start(&folder.path().join("0"), &founding);
        let authority = fs::read_to_string(folder.path().join("0/credentials/ca.pem")).unwrap();
        let authority = encoding::certificates(&authority).unwrap().remove(0);
        let shown = cluster::ephemeral(&owner, SystemTime::now()).unwrap().to_vec();
        let mut cluster = Self {
            url: url.to_owned(),
            folder,
            keys,
            curators: vec![Some(first), None, None],
            authority: authority.to_vec(),
            owner: (shown, owner),
        };
        cluster.leader(None).await;
        cluster.owner.0 = cluster.escrow().await;
        cluster
    }

    /// The owner gets his certificate.
    async fn escrow(&self) -> Vec<u8> {
        let parameters = escrow_request::Parameters {
            requested_identity_name: "owner".to_owned(),
            public_key: self.owner.1.public().to_vec(),
        };
        let request = EscrowRequest { parameters: Some(parameters), proofs: None };
        let mut client = AaaClient::new(self.channel(0));
        let request = futures_util::stream::iter([request]);
        let mut answers = client.escrow(request).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap().emitted_certificate
    }

    fn begin(&mut self, number: usize) {
        let data = self.folder.path().join(number.to_string());
        self.curators[number] = Some(Curator::start(&data, &["--store", &self.url]));
    }

    async fn stop(&mut self, number: usize) {
        let mut curator = self.curators[number].take().unwrap();
        curator.signal(Signal::SIGTERM);
        tokio::task::spawn_blocking(move || curator.child.wait().unwrap()).await.unwrap();
    }

    fn id(&self, number: usize) -> String {
        NodeId::of_key(&self.keys[number].public()).to_string()
    }

    /// The owner's way to a curator, once he has his certificate.
    fn channel(&self, number: usize) -> Channel {
        self.shows(number, &self.owner.0, &self.owner.1)
    }

    fn shows(&self, number: usize, shown: &[u8], key: &RawKey) -> Channel {
        let config = cluster::client_config(&self.authority, Some((shown, key)), None);
        let port = self.curators[number].as_ref().unwrap().port;
        orlop_rpc::tls::channel("127.0.0.1", port, config.unwrap())
    }

    /// What a curator says of who leads, once.
    async fn ask(&self, number: usize) -> Result<GetCurrentLeaderResponse, Status> {
        let mut client = CuratorLocalClient::new(self.channel(number));
        let mut answers = client.get_current_leader(GetCurrentLeaderRequest {}).await?.into_inner();
        answers.message().await?.ok_or_else(|| Status::unavailable("it says nothing"))
    }

    /// Waits until all that run say that the same one of them leads, which is not `not`; who it is.
    async fn leader(&self, not: Option<usize>) -> usize {
        let agreed = async {
            loop {
                let mut said = Vec::new();
                for (number, _) in self.curators.iter().enumerate().filter(|(_, is)| is.is_some()) {
                    said.push(self.ask(number).await.map(|answer| answer.leader_node_id));
                }
                let leader = said.first().and_then(|first| first.as_ref().ok()).cloned();
                let same = said.iter().all(|said| said.as_ref().ok() == leader.as_ref());
                let number = (0..3).find(|number| Some(self.id(*number)) == leader);
                if let Some(number) = number.filter(|number| same && Some(*number) != not) {
                    return number;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(PATIENCE, agreed).await.expect("all agree on one leader")
    }

    /// The ticket, as who leads has it.
    async fn ticket(&self, at: usize) -> Result<Vec<u8>, Status> {
        let mut client = ManagementClient::new(self.channel(at));
        let answer = client.get_register_ticket(GetRegisterTicketRequest {}).await?;
        Ok(answer.into_inner().ticket)
    }

    /// Gives the first node a label by way of whoever leads.
    async fn label(&self, number: usize, at: usize) -> Result<(), Status> {
        let request = UpdateNodeLabelsRequest {
            node: Some(update_node_labels_request::Node::Id(self.id(0))),
            upsert: vec![Pair { key: format!("label-{number}"), value: String::new() }],
            delete: Vec::new(),
        };
        ManagementClient::new(self.channel(at)).update_node_labels(request).await.map(drop)
    }

    /// The first node, as who leads has it.
    async fn first_node(&self, at: usize) -> Result<management::Node, Status> {
        let request = GetNodesRequest { filter: format!("node.id == \"{}\"", self.id(0)) };
        let mut client = ManagementClient::new(self.channel(at));
        let mut nodes = client.get_nodes(request).await?.into_inner();
        nodes.message().await?.ok_or_else(|| Status::not_found("it is not there"))
    }

    /// Makes a node a consensus member, or takes that role away.
    async fn set_member(&self, key: &RawKey, is: bool) -> Result<(), Status> {
        let id = NodeId::of_key(&key.public()).to_string();
        let request = UpdateNodeRolesRequest {
            node: Some(update_node_roles_request::Node::Id(id)),
            consensus_member: Some(is),
            ..UpdateNodeRolesRequest::default()
        };
        ManagementClient::new(self.channel(0)).update_node_roles(request).await.map(drop)
    }

    /// Who keeps the state, and whether it votes; etcd's order is by chance.
    async fn members(&self) -> BTreeSet<(String, bool)> {
        let mut client = CuratorClient::new(self.channel(0));
        let request = GetConsensusStatusRequest {};
        let answer = client.get_consensus_status(request).await.unwrap().into_inner();
        let told = |member: &EtcdMember| (member.id.clone(), member.status() == Standing::Full);
        answer.etcd_member.iter().map(told).collect()
    }

    /// Waits until these keep the state.
    async fn until_members(&self, expected: &[(String, bool)]) {
        let agreed = async {
            let expected: BTreeSet<_> = expected.iter().cloned().collect();
            while self.members().await != expected {
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(PATIENCE, agreed).await.unwrap_or_else(|_| panic!("they become {expected:?}"));
    }

    /// A machine with a key of its own registers.
    async fn register(&self, at: usize, ticket: &[u8]) -> Result<NodeId, Status> {
        let key = RawKey::generate().unwrap();
        let shown = cluster::ephemeral(&key, SystemTime::now()).unwrap();
        let request = RegisterNodeRequest {
            register_ticket: ticket.to_vec(),
            join_key: RawKey::generate().unwrap().public().to_vec(),
            ..RegisterNodeRequest::default()
        };
        let mut client = CuratorClient::new(self.shows(at, &shown, &key));
        client.register_node(request).await?;
        Ok(NodeId::of_key(&key.public()))
    }
}

async fn open(url: &str) -> Store {
    let location: Location = url.parse().unwrap();
    Store::open(&location, None, Limits::default()).await.unwrap()
}

fn on_each_etcd<F: Future<Output = ()>>(test: impl Fn(etcd_server::Server) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for program in etcd_server::programs() {
        runtime.block_on(test(etcd_server::Server::start(&program)));
    }
}

#[test]
fn who_follows_says_who_leads_and_serves_nothing_else() {
    on_each_etcd(async |etcd| {
        let cluster = Cluster::start(etcd.url()).await;
        let leader = cluster.leader(None).await;
        let port = cluster.curators[leader].as_ref().unwrap().port;
        for number in 0..3 {
            let answer = cluster.ask(number).await.unwrap();
            assert_eq!(answer.this_node_id, cluster.id(number));
            assert_eq!(answer.leader_node_id, cluster.id(leader));
            assert_eq!((&*answer.leader_host, answer.leader_port), ("127.0.0.1", port.into()));
            let answered = cluster.ticket(number).await;
            if number == leader {
                answered.unwrap();
                continue;
            }
            let refused = answered.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{refused}");
            let said = |name| refused.metadata().get(name).unwrap().to_str().unwrap();
            assert_eq!(said("x-leader-node-id"), cluster.id(leader));
            assert_eq!(said("x-leader-endpoint"), format!("127.0.0.1:{port}"));
        }
    });
}

#[test]
fn a_leader_that_is_killed_takes_nothing_with_it() {
    on_each_etcd(async |etcd| {
        let mut cluster = Cluster::start(etcd.url()).await;
        let first = cluster.leader(None).await;
        let ticket = cluster.ticket(first).await.unwrap();
        let node = cluster.register(first, &ticket).await.unwrap();
        // It dies while it writes.
        let mut acknowledged = Vec::new();
        let writes = async {
            while cluster.label(acknowledged.len(), first).await.is_ok() {
                acknowledged.push(format!("label-{}", acknowledged.len()));
                if acknowledged.len() == 8 {
                    cluster.curators[first].as_ref().unwrap().signal(Signal::SIGKILL);
                }
            }
        };
        timeout(PATIENCE, writes).await.expect("it is killed");
        assert!(acknowledged.len() >= 8);
        let killed = Instant::now();
        cluster.curators[first] = None;
        let second = cluster.leader(Some(first)).await;
        println!("{:?} after the leader was killed the next one leads", killed.elapsed());
        assert_eq!(cluster.ticket(second).await.unwrap(), ticket);
        let first_node = cluster.first_node(second).await.unwrap();
        let labels: Vec<_> =
            first_node.labels.unwrap().pairs.into_iter().map(|it| it.key).collect();
        let lost: Vec<_> = acknowledged.iter().filter(|label| !labels.contains(label)).collect();
        assert!(lost.is_empty(), "{lost:?} were acknowledged and are not there");
        let key = CURATOR.key(&names::node(&node));
        assert!(open(&cluster.url).await.get(key, None).await.unwrap().is_some());
        cluster.register(second, &ticket).await.unwrap();
        // The one that comes back follows.
        cluster.begin(first);
        assert_eq!(cluster.leader(None).await, second);
    });
}

#[test]
fn a_leader_that_stops_hands_over() {
    on_each_etcd(async |etcd| {
        let mut cluster = Cluster::start(etcd.url()).await;
        let first = cluster.leader(None).await;
        let stopped = Instant::now();
        let mut curator = cluster.curators[first].take().unwrap();
        curator.signal(Signal::SIGTERM);
        let second = cluster.leader(Some(first)).await;
        println!("{:?} after the leader was stopped the next one leads", stopped.elapsed());
        cluster.ticket(second).await.unwrap();
        tokio::task::spawn_blocking(move || curator.child.wait().unwrap()).await.unwrap();
        // It has left no lock behind.
        let store = open(&cluster.url).await;
        let locks = store.range(CURATOR.range(names::LEADER)).await.unwrap().entries;
        assert_eq!(locks.len(), 2, "{locks:?}");
    });
}

#[test]
fn a_leader_that_does_not_reach_the_store_leaves_the_office() {
    on_each_etcd(async |etcd| {
        let cluster = Cluster::start(etcd.url()).await;
        let first = cluster.leader(None).await;
        let mut client = CuratorLocalClient::new(cluster.channel(first));
        let answers = client.get_current_leader(GetCurrentLeaderRequest {}).await.unwrap();
        let mut answers = answers.into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().leader_node_id, cluster.id(first));
        send(etcd.id(), Signal::SIGSTOP);
        // The stream lasts as long as the office.
        let ended = timeout(PATIENCE, answers.message()).await.expect("it leaves the office");
        assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
        for number in 0..3 {
            let refused = cluster.ticket(number).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "nobody leads: {refused}");
        }
        send(etcd.id(), Signal::SIGCONT);
        let again = cluster.leader(None).await;
        cluster.ticket(again).await.unwrap();
    });
}

/// Does what a command of the role says.
fn command(arguments: &[&str]) -> String {
    let all = [&["curator"], arguments].concat();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_curator", "--nocapture"])
        .env(CURATOR_ARGUMENTS, all.join("\n"))
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_cluster_moves_to_an_etcd_and_is_read_meanwhile() {
    on_each_etcd(async |etcd| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store");
        let own = format!("embedded://{}", file.display());
        let mut cluster = Cluster::alone(&own, keys(), &[]).await;
        let ticket = cluster.ticket(0).await.unwrap();
        let first = cluster.register(0, &ticket).await.unwrap();
        cluster.stop(0).await;
        // A backup in one command, and the same cluster on another store in another one.
        let backup = folder.path().join("backup");
        let said = command(&["backup", backup.to_str().unwrap(), "--store", &own]);
        assert!(said.contains("saved"), "{said}");
        let copy = format!("embedded://{}", folder.path().join("copy").display());
        let said = command(&["restore", backup.to_str().unwrap(), "--store", &copy]);
        assert!(said.contains("restored"), "{said}");
        let said = command(&["restore", backup.to_str().unwrap(), "--store", &copy]);
        assert!(said.contains("not empty"), "{said}");
        cluster.url = copy;
        cluster.begin(0);
        cluster.leader(None).await;
        assert_eq!(cluster.ticket(0).await.unwrap(), ticket);
        cluster.stop(0).await;
        cluster.url = own;

        // The move begins, and breaks off at once; the etcd does not answer.
        let store = open(&cluster.url).await;
        moving::begin(&store, &etcd.url().parse().unwrap()).await.unwrap();
        store.close().await;
        send(etcd.id(), Signal::SIGSTOP);
        cluster.begin(0);
        cluster.leader(None).await;
        assert_eq!(cluster.ticket(0).await.unwrap(), ticket, "it is read");
        let refused = cluster.register(0, &ticket).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "and not written: {refused}");
        assert!(refused.message().contains("on its way"), "{refused}");
        send(etcd.id(), Signal::SIGCONT);
        let second = timeout(PATIENCE, async {
            loop {
                match cluster.register(0, &ticket).await {
                    Ok(id) => return id,
                    Err(status) => {
                        let may = [Code::Unavailable, Code::ResourceExhausted];
                        assert!(may.contains(&status.code()), "{status}");
                    }
                }
                sleep(LOOK_EVERY).await;
            }
        });
        let second = second.await.expect("it arrives, and is written again");
        let target = open(&etcd.url()).await;
        for id in [&first, &second] {
            let node = target.get(CURATOR.key(&names::node(id)), None).await.unwrap();
            assert!(node.is_some(), "{id}");
        }
        // It comes back as if nothing had happened, though it was not told of the etcd.
        cluster.curators[0] = None;
        cluster.begin(0);
        cluster.leader(None).await;
        assert_eq!(cluster.ticket(0).await.unwrap(), ticket);
    });
}

#[test]
fn a_node_alone_moves_to_an_etcd_when_a_second_one_shall_keep_the_state() {
    on_each_etcd(async |etcd| {
        let folder = tempfile::tempdir().unwrap();
        let own = format!("embedded://{}", folder.path().join("store").display());
        // The second node is there before its curator's clock begins.
        let (url, keys) = (etcd.url(), keys());
        let second = RawKey::from_bytes(keys[1].bytes()).unwrap();
        let mut cluster = Cluster::alone(&own, keys, &[]).await;
        cluster.stop(0).await;
        let store = open(&own).await;
        add(&store, &second).await;
        store.close().await;
        let refused = {
            cluster.begin(0);
            cluster.leader(None).await;
            cluster.set_member(&second, true).await.unwrap_err()
        };
        assert_eq!(
            refused.code(),
            Code::FailedPrecondition,
            "nobody told it of an etcd: {refused}"
        );
        assert!(refused.message().contains("--move-to"), "{refused}");
        cluster.stop(0).await;
        cluster.curators[0] = Some(Curator::start(
            &cluster.folder.path().join("0"),
            &["--store", &own, "--move-to", &url],
        ));
        cluster.leader(None).await;
        let mut reads = 0;
        let joined = async {
            loop {
                match cluster.set_member(&second, true).await {
                    Ok(()) => return,
                    Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
                }
                match cluster.first_node(0).await {
                    Ok(_) => reads += 1,
                    Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
                }
            }
        };
        timeout(PATIENCE, joined).await.expect("it moves, and takes the member in");
        println!("read {reads} times meanwhile");
        let id = NodeId::of_key(&second.public()).to_string();
        assert!(cluster.members().await.contains(&(id, false)), "{:?}", cluster.members().await);
    });
}

/// An etcd member as a process, on an address of its own among those that lead to this machine.
struct Etcd(Child);

impl Etcd {
    /// Serves when it is there. `cluster`: names and hosts of all members, itself the last.
    fn start(program: &Path, data: &Path, state: &str, cluster: &[(&str, &str)]) -> Self {
        let (name, host) = cluster.last().unwrap();
        let (clients, peers) = (format!("http://{host}:2379"), format!("http://{host}:2380"));
        let all: Vec<_> =
            cluster.iter().map(|(name, host)| format!("{name}=http://{host}:2380")).collect();
        let mut child = Command::new(program)
            .args(["--data-dir", data.to_str().unwrap(), "--name", name, "--unsafe-no-fsync"])
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &all.join(","), "--initial-cluster-state", state])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut log = String::new();
        let serves = lines.by_ref().any(|line| {
            log = format!("{log}{line}\n");
            line.contains("serving client traffic")
        });
        assert!(serves, "etcd did not start:\n{log}");
        thread::spawn(move || lines.for_each(drop));
        Self(child)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn members_of_etcd_follow_roles_and_roles_follow_members() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (generation, program) in etcd_server::programs().iter().enumerate() {
        runtime.block_on(members_and_roles(program, generation));
    }
}

async fn members_and_roles(program: &Path, generation: usize) {
    let folder = tempfile::tempdir().unwrap();
    // Nobody else has this process' number.
    let (high, low) = (std::process::id() / 250 % 250 + 1, std::process::id() % 250);
    let host = |number: usize| format!("127.{high}.{low}.{}", 10 * (generation + 1) + number);
    let keys = keys();
    let ids: Vec<_> = keys.iter().map(|key| NodeId::of_key(&key.public()).to_string()).collect();
    let (one, two) = (host(1), host(2));
    let _first = Etcd::start(program, &folder.path().join("1"), "new", &[(&ids[0], &one)]);
    let url = format!("etcd://{one}:2379");
    let second = RawKey::from_bytes(keys[1].bytes()).unwrap();
    let cluster = Cluster::alone(&url, keys, &[]).await;
    let store = open(&url).await;
    add(&store, &second).await;
    let alone = [(ids[0].clone(), true)];
    cluster.until_members(&alone).await;

    // By way of its role; it has not started, so it votes never.
    cluster.set_member(&second, true).await.unwrap();
    let learns = [(ids[0].clone(), true), (ids[1].clone(), false)];
    cluster.until_members(&learns).await;
    let id = NodeId::of_key(&second.public());
    let role = async || {
        let node = store.get(CURATOR.key(&names::node(&id)), None).await.unwrap()?;
        Node::decode(node.value).unwrap().roles?.consensus_member
    };
    let given = role().await.expect("the role");
    let peers: Vec<_> = given.peers.iter().map(|peer| (&*peer.name, &*peer.url)).collect();
    assert_eq!(peers, [(&*ids[0], &*format!("http://{one}:2380"))]);
    let shown = cluster::Shown::read(&given.peer_certificate).unwrap();
    assert!(shown.is_signed_by(&given.ca_certificate) && shown.public_key == Some(second.public()));
    cluster.set_member(&second, false).await.unwrap();
    cluster.until_members(&alone).await;
    assert_eq!(role().await, None);

    // By way of etcd: it gets the role, and votes once it has caught up.
    let Store::Etcd(etcd) = &store else { panic!("it is an etcd") };
    etcd.add_learner(&format!("http://{two}:2380")).await.unwrap();
    let both = [(&*ids[0], &*one), (&*ids[1], &*two)];
    let _second = Etcd::start(program, &folder.path().join("2"), "existing", &both);
    cluster.until_members(&[(ids[0].clone(), true), (ids[1].clone(), true)]).await;
    let has_role = async {
        while role().await.is_none() {
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(PATIENCE, has_role).await.expect("it gets the role");
    // A node that is deleted keeps nothing.
    let entry = store.get(CURATOR.key(&names::node(&id)), None).await.unwrap().unwrap();
    store.delete(entry.key, entry.modified).await.unwrap();
    cluster.until_members(&alone).await;
}
