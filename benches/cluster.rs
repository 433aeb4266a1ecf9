//! The cluster API on one node with a store of its own: from its start to a curator that answers and what it occupies
//! then; nodes that all say they are there; nodes listed through a filter; one change that everybody who watches sees.
//! Prints a line for each: `cluster NAME p50_us=…`.
//!
//! The curator is `ORLOP`, or out/orlop, or else this program itself. `CLUSTER=quick` tries the bench itself, with
//! figures that mean nothing.

#![forbid(unsafe_code)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use orlop_curator::certificates::Certificates;
use orlop_curator::names::{self, NodeId};
use orlop_curator::state::{Changes, State};
use orlop_pki::cluster::{self, Profile, RawKey};
use orlop_proto::metropolis::node::core::curator::proto::api::curator_client::CuratorClient;
use orlop_proto::metropolis::node::core::curator::proto::api::curator_local_client::CuratorLocalClient;
use orlop_proto::metropolis::node::core::curator::proto::api::watch_request::{
    Kind, NodesInCluster,
};
use orlop_proto::metropolis::node::core::curator::proto::api::{
    GetCurrentLeaderRequest, HeartbeatRequest, WatchEvent, WatchRequest, watch_event::Progress,
};
use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_proto::metropolis::proto::api::management_client::ManagementClient;
use orlop_proto::metropolis::proto::api::update_node_labels_request::{self, Pair};
use orlop_proto::metropolis::proto::api::{GetNodesRequest, UpdateNodeLabelsRequest};
use orlop_proto::metropolis::proto::common::{NodeLabels, NodeState, NodeStatus, node_labels};
use orlop_rpc::tls;
use orlop_store::{Limits, Location, Store};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tonic::Streaming;
use tonic::transport::Channel;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

const STARTS: usize = 5;
const NODES: usize = 10_000;
const HEARD: usize = 5_000;
const EVERY: Duration = Duration::from_secs(5);
/// How long heartbeats are watched.
const WINDOW: Duration = Duration::from_secs(20);
const LISTS: usize = 20;
const WATCHES: usize = 1_000;
const CHANGES: usize = 20;
/// How much less is done to try the bench itself.
const QUICK: usize = 20;
const LIMIT: Duration = Duration::from_secs(120);
/// Until a curator that has started has done what comes with it.
const SETTLE: Duration = Duration::from_secs(2);
/// What a kernel counts a process' time in, per second (`sysconf(_SC_CLK_TCK)`, 100 on Linux).
const TICKS: f64 = 100.0;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|role| role == "curator") {
        return orlop_curator::main(args);
    }
    let run = tokio::runtime::Runtime::new().map_err(Error::from);
    match run.and_then(|runtime| runtime.block_on(measure())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// So many, or fewer to try the bench.
fn several(count: usize) -> usize {
    let quick = std::env::var("CLUSTER").is_ok_and(|only| only == "quick");
    if quick { (count / QUICK).max(2) } else { count }
}

async fn measure() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut starts = Vec::new();
    for number in 0..several(STARTS) {
        let data = folder.path().join(format!("new-{number}"));
        let begin = Instant::now();
        let mut curator = Curator::start(&data)?;
        curator.ready().await?;
        starts.push(begin.elapsed());
        if number == 0 {
            sleep(SETTLE).await;
            println!("cluster resident mib={:.1}", curator.resident_mib()?);
        }
    }
    tell("ready_first", &mut starts);

    let data = folder.path().join("new-0");
    let nodes = populate(&data).await?;
    let begin = Instant::now();
    let mut curator = Curator::start(&data)?;
    curator.ready().await?;
    tell("ready_with_nodes", &mut [begin.elapsed()]);
    let owner = ManagementClient::new(curator.channel(&nodes.authority, &nodes.owner)?);
    lists(owner.clone()).await?;
    let channels = heartbeats(&curator, &nodes).await?;
    watches(owner, &nodes, channels).await
}

/// The program that is measured.
fn orlop() -> Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../out/orlop");
    Ok(match std::env::var_os("ORLOP") {
        Some(named) => named.into(),
        None if built.exists() => built,
        None => std::env::current_exe()?,
    })
}

struct Curator {
    child: Child,
    address: SocketAddr,
}

impl Drop for Curator {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            eprintln!("bench: end a curator: {error}");
        }
    }
}

impl Curator {
    fn start(data: &Path) -> Result<Self> {
        // Free until now, and nobody else's in the next moment.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let owner = RawKey::generate()?.public();
        let child = Command::new(orlop()?)
            .arg("curator")
            .arg("--data-dir")
            .arg(data)
            .args(["--tpm-mode", "best-effort", "--storage-security", "permissive"])
            .args(["--owner", &names::hex(&owner), "--listen", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, address })
    }

    /// Leads, and says so.
    async fn ready(&mut self) -> Result<()> {
        let tries = async {
            loop {
                if let Some(status) = self.child.try_wait()? {
                    let program = orlop()?;
                    return Err(format!("{} curator: {status}", program.display()).into());
                }
                let config = cluster::trusting_client_config(None)?;
                let host = self.address.ip().to_string();
                let channel = tls::channel(&host, self.address.port(), config);
                let mut local = CuratorLocalClient::new(channel);
                let told = match local.get_current_leader(GetCurrentLeaderRequest {}).await {
                    Ok(answer) => answer.into_inner().message().await.ok().flatten(),
                    Err(_) => None,
                };
                if told.is_some_and(|told| told.leader_node_id == told.this_node_id) {
                    return Ok(());
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LIMIT, tries).await?
    }

    fn channel(&self, authority: &[u8], shown: &(Vec<u8>, RawKey)) -> Result<Channel> {
        let config = cluster::client_config(authority, Some((&shown.0, &shown.1)), None)?;
        Ok(tls::channel(&self.address.ip().to_string(), self.address.port(), config))
    }

    fn resident_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS")?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }

    /// The processor's time that it took until now, in seconds.
    fn processor(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(')').ok_or("no name in stat")?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let ticks = |field: usize| -> Result<f64> {
            Ok(fields.get(field).ok_or("too few fields in stat")?.parse()?)
        };
        // utime and stime: fields 14 and 15, of which the name is the second.
        Ok((ticks(11)? + ticks(12)?) / TICKS)
    }
}

/// Who is in the cluster, with certificates.
struct Nodes {
    authority: Vec<u8>,
    owner: (Vec<u8>, RawKey),
    nodes: Vec<(NodeId, (Vec<u8>, RawKey))>,
}

/// Nodes as the register flow and their own reports would have left them.
async fn populate(data: &Path) -> Result<Nodes> {
    let location = Location::Embedded(data.join("store"));
    let store = open(&location).await?;
    let state = State::new(store, None);
    let certificates = Certificates::load(&state).await?.ok_or("no cluster")?;
    let now = SystemTime::now();
    let mut nodes = Vec::new();
    let mut changes = Changes::new();
    for number in 0..several(NODES) {
        let key = RawKey::generate()?;
        let id = NodeId::of_key(&key.public());
        let pair = |key: &str, value: String| node_labels::Pair { key: key.to_owned(), value };
        let node = Node {
            id: id.to_string(),
            public_key: key.public().to_vec(),
            fsm_state: NodeState::Up.into(),
            status: Some(NodeStatus {
                external_address: format!("10.{}.{}.7", number / 256 % 256, number % 256),
                boot_id: vec![7; 16],
                ..NodeStatus::default()
            }),
            labels: Some(NodeLabels {
                pairs: vec![pair("rack", (number % 40).to_string()), pair("zone", "a".to_owned())],
            }),
            ..Node::default()
        };
        changes = changes.put_message(&names::node(&id), &node);
        if number % 100 == 99 {
            state.change(std::mem::take(&mut changes)).await?.ok_or("not written")?;
        }
        if nodes.len() < several(HEARD) {
            let shown = certificates.issue(&Profile::node(id.as_str()), &key.public(), now)?;
            nodes.push((id, (shown, key)));
        }
    }
    state.change(changes).await?.ok_or("not written")?;
    let key = RawKey::generate()?;
    let owner = certificates.issue(&Profile::user("owner"), &key.public(), now)?;
    let authority = certificates.authority().to_vec();
    state.store().close().await;
    Ok(Nodes { authority, owner: (owner, key), nodes })
}

/// A curator that was killed leaves its file in a moment.
async fn open(location: &Location) -> Result<Store> {
    let begin = Instant::now();
    loop {
        match Store::open(location, None, Limits::default()).await {
            Err(_) if begin.elapsed() < LIMIT => sleep(Duration::from_millis(10)).await,
            opened => return Ok(opened?),
        }
    }
}

/// Nodes with a label and a state, all of which are there.
async fn lists(mut owner: ManagementClient<Channel>) -> Result<()> {
    let filter = "node.state == NODE_STATE_UP && has(node.status) \
                  && node.labels.pairs.exists(p, p.key == 'zone' && p.value == 'a')";
    let (mut firsts, mut wholes) = (Vec::new(), Vec::new());
    for _ in 0..LISTS {
        let begin = Instant::now();
        let request = GetNodesRequest { filter: filter.to_owned() };
        let mut nodes = owner.get_nodes(request).await?.into_inner();
        let mut count = 0;
        while nodes.message().await?.is_some() {
            if count == 0 {
                firsts.push(begin.elapsed());
            }
            count += 1;
        }
        wholes.push(begin.elapsed());
        if count < several(NODES) {
            return Err(format!("{count} nodes are listed").into());
        }
    }
    tell("list_first", &mut firsts);
    tell("list_whole", &mut wholes);
    Ok(())
}

/// All say that they are there, spread over the interval; then what that takes.
async fn heartbeats(curator: &Curator, nodes: &Nodes) -> Result<Vec<Channel>> {
    let mut tasks = JoinSet::new();
    let mut channels = Vec::new();
    let (ready, mut all_ready) = mpsc::channel(1);
    let apart = EVERY / u32::try_from(nodes.nodes.len())?;
    for (_, shown) in &nodes.nodes {
        let channel = curator.channel(&nodes.authority, shown)?;
        channels.push(channel.clone());
        let ready = ready.clone();
        tasks.spawn(
            async move { heartbeat(channel, ready).await.map_err(|error| error.to_string()) },
        );
        sleep(apart).await;
    }
    for _ in &nodes.nodes {
        tokio::select! {
            ready = timeout(LIMIT, all_ready.recv()) => ready?.ok_or("no heartbeats")?,
            ended = tasks.join_next() => return Err(format!("a heartbeat ended: {ended:?}").into()),
        }
    }
    let (begin, before) = (Instant::now(), curator.processor()?);
    sleep(if several(QUICK) < QUICK { EVERY } else { WINDOW }).await;
    let share = (curator.processor()? - before) / begin.elapsed().as_secs_f64();
    if let Some(ended) = tasks.try_join_next() {
        return Err(format!("a heartbeat ended: {ended:?}").into());
    }
    let (percent, mib) = (share * 100.0, curator.resident_mib()?);
    println!("cluster heartbeats nodes={} percent={percent:.1} mib={mib:.1}", nodes.nodes.len());
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    Ok(channels)
}

async fn heartbeat(channel: Channel, ready: mpsc::Sender<()>) -> Result<()> {
    let (beat, beats) = mpsc::channel(1);
    let beats = tokio_stream::wrappers::ReceiverStream::new(beats);
    beat.send(HeartbeatRequest {}).await?;
    let mut answers = CuratorClient::new(channel).heartbeat(beats).await?.into_inner();
    answers.message().await?.ok_or("no answer")?;
    ready.send(()).await?;
    let mut ticks = interval(EVERY);
    loop {
        ticks.tick().await;
        beat.send(HeartbeatRequest {}).await?;
        answers.message().await?.ok_or("no answer")?;
    }
}

/// From a change to everybody who watches all nodes.
async fn watches(
    mut owner: ManagementClient<Channel>,
    nodes: &Nodes,
    channels: Vec<Channel>,
) -> Result<()> {
    let (seen, mut all_seen) = mpsc::channel::<Instant>(1);
    let mut tasks = JoinSet::new();
    let count = several(WATCHES).min(channels.len());
    for channel in channels.into_iter().take(count) {
        let kind = Some(Kind::NodesInCluster(NodesInCluster {}));
        let watch = CuratorClient::new(channel).watch(WatchRequest { kind }).await?.into_inner();
        let seen = seen.clone();
        tasks.spawn(async move { watched(watch, seen).await.map_err(|error| error.to_string()) });
        // What there is already was told.
        timeout(LIMIT, all_seen.recv()).await?.ok_or("no watches")?;
    }
    let mut delays = Vec::new();
    let id = &nodes.nodes[0].0;
    for number in 0..CHANGES {
        let request = UpdateNodeLabelsRequest {
            node: Some(update_node_labels_request::Node::Id(id.to_string())),
            upsert: vec![Pair { key: "changed".to_owned(), value: number.to_string() }],
            delete: Vec::new(),
        };
        let begin = Instant::now();
        owner.update_node_labels(request).await?;
        for _ in 0..count {
            let seen = timeout(LIMIT, all_seen.recv()).await?.ok_or("no watches")?;
            delays.push(seen.saturating_duration_since(begin));
        }
    }
    if let Some(ended) = tasks.try_join_next() {
        return Err(format!("a watch ended: {ended:?}").into());
    }
    tell("watches", &mut delays);
    Ok(())
}

/// Tells of the end of the backlog, and of every change then.
async fn watched(mut watch: Streaming<WatchEvent>, seen: mpsc::Sender<Instant>) -> Result<()> {
    loop {
        let event = watch.message().await?.ok_or("the watch ended")?;
        if event.progress() == Progress::LastBacklogged {
            break;
        }
    }
    seen.send(Instant::now()).await?;
    loop {
        watch.message().await?.ok_or("the watch ended")?;
        seen.send(Instant::now()).await?;
    }
}

fn tell(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    println!("cluster {name} p50_us={} p99_us={}", at(50), at(99));
}
