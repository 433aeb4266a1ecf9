//! The daemon over its sockets, as clients see it.

use std::fs;
use std::path::Path;

use orlop_proto::grpc::health::v1::HealthCheckRequest;
use orlop_proto::grpc::health::v1::health_check_response::ServingStatus;
use orlop_proto::grpc::health::v1::health_client::HealthClient;
use orlop_proto::nsp::v1::configuration_manager_client::ConfigurationManagerClient;
use orlop_proto::nsp::v1::target::Status;
use orlop_proto::nsp::v1::target_registry_client::TargetRegistryClient;
use orlop_proto::nsp::v1::{Conduit, Flow, Stream, Target, Trench};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::*;

const CONFIG: &str = "
trench: {name: t}
vips: {items: [{name: v, address: 20.0.0.1/32}]}
conduits: {items: [{name: c}]}
streams: {items: [{name: s, conduit: c, max-targets: 2}]}
flows: {items: [{name: f, stream: s, vips: [v]}]}
";
const LIMIT: Duration = Duration::from_secs(60);

struct Running {
    folder: TempDir,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    address: Option<SocketAddr>,
}

fn settings(folder: &Path) -> Settings {
    Settings {
        port: 0,
        socket: folder.join("nsp.sock"),
        health_socket: folder.join("health.sock"),
        config: folder.join("nsp.yaml"),
        store: Some(folder.join("data/registry.db")),
        entry_timeout: Duration::from_secs(60),
        probe_timeout: Duration::from_secs(60),
        exclusive: false,
        security: Security::SocketOnly,
    }
}

impl Running {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("nsp.yaml"), CONFIG).expect("written");
        Self::start_in(folder, change).await
    }

    async fn start_in(folder: TempDir, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings(folder.path());
        change(&mut settings);
        let nsp = Nsp::open(settings).await.expect("open");
        let (address, stop) = (nsp.address(), CancellationToken::new());
        let task = tokio::spawn(nsp.serve(stop.clone()));
        Self { folder, stop, task, address }
    }

    /// A channel that waits until somebody listens.
    async fn channel(&self, socket: &str) -> Channel {
        let path = self.folder.path().join(socket);
        loop {
            match tokio::net::UnixStream::connect(&path).await {
                Ok(_) => return unix::channel(path),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    async fn stop(self) -> TempDir {
        self.stop.cancel();
        self.task.await.expect("it ends").expect("well");
        self.folder
    }
}

fn stream() -> Stream {
    let trench = Some(Trench { name: "t".to_owned() });
    let conduit = Conduit { name: "c".to_owned(), trench, ..Conduit::default() };
    Stream { name: "s".to_owned(), conduit: Some(conduit), max_targets: 0 }
}

fn target(ip: &str) -> Target {
    Target { ips: vec![ip.to_owned()], stream: Some(stream()), ..Target::default() }
}

fn any() -> Target {
    Target { status: Status::Any.into(), ..Target::default() }
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = tokio::time::timeout(LIMIT, stream.next()).await.expect("in time");
    message.expect("no end").expect("no error")
}

#[tokio::test]
async fn targets_come_and_go_and_are_there_after_a_restart() {
    let running = Running::start(|_| {}).await;
    let mut client = TargetRegistryClient::new(running.channel("nsp.sock").await);
    let mut lists = client.watch(any()).await.expect("a watch").into_inner();
    assert!(next(&mut lists).await.targets.is_empty());
    client.register(target("10.0.0.1/24")).await.expect("taken");
    assert_eq!(next(&mut lists).await.targets[0].status(), Status::Disabled);
    client.register(target("10.0.0.1/24")).await.expect("taken");
    assert_eq!(next(&mut lists).await.targets[0].status(), Status::Enabled);
    let refused = client.register(any()).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);

    let folder = running.stop().await;
    let running = Running::start_in(folder, |_| {}).await;
    let mut client = TargetRegistryClient::new(running.channel("nsp.sock").await);
    let mut lists = client.watch(any()).await.expect("a watch").into_inner();
    assert_eq!(next(&mut lists).await.targets, [target("10.0.0.1/24")]);
    client.unregister(target("10.0.0.1/24")).await.expect("gone");
    assert!(next(&mut lists).await.targets.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn who_is_silent_goes() {
    let running =
        Running::start(|settings| settings.entry_timeout = Duration::from_millis(200)).await;
    let mut client = TargetRegistryClient::new(running.channel("nsp.sock").await);
    let mut lists = client.watch(any()).await.expect("a watch").into_inner();
    assert!(next(&mut lists).await.targets.is_empty());
    client.register(target("10.0.0.1/24")).await.expect("taken");
    while !next(&mut lists).await.targets.is_empty() {}
    running.stop().await;
}

#[tokio::test]
async fn configuration_is_told_whole_and_again_when_what_was_asked_for_changes() {
    let running = Running::start(|_| {}).await;
    let mut client = ConfigurationManagerClient::new(running.channel("nsp.sock").await);
    let filter = Flow { stream: Some(stream()), ..Flow::default() };
    let mut flows = client.watch_flow(filter).await.expect("a watch").into_inner();
    let mut told = next(&mut flows).await.flows;
    while told.is_empty() {
        told = next(&mut flows).await.flows;
    }
    assert_eq!(told[0].vips[0].address, "20.0.0.1/32");
    assert_eq!(told[0].stream.as_ref().map(|stream| stream.max_targets), Some(2));
    let mut trench = client.watch_trench(Trench::default()).await.expect("a watch").into_inner();
    assert_eq!(next(&mut trench).await.trench, Some(Trench { name: "t".to_owned() }));

    let config = running.folder.path().join("nsp.yaml");
    fs::write(&config, CONFIG.replace("20.0.0.1/32", "no address")).expect("written");
    fs::write(&config, CONFIG.replace("20.0.0.1", "20.0.0.2")).expect("written");
    assert_eq!(next(&mut flows).await.flows[0].vips[0].address, "20.0.0.2/32");
    running.stop().await;
}

#[tokio::test]
async fn probes_are_answered() {
    let running = Running::start(|_| {}).await;
    let mut client = HealthClient::new(running.channel("health.sock").await);
    let request = HealthCheckRequest { service: "Liveness".to_owned() };
    let mut changes = client.watch(request).await.expect("a watch").into_inner();
    while next(&mut changes).await.status() != ServingStatus::Serving {}
    running.stop().await;
}

#[tokio::test]
async fn the_port_is_open_only_when_somebody_says_how() {
    let closed = Running::start(|_| {}).await;
    assert_eq!(closed.address, None);
    closed.stop().await;
    let open = Running::start(|settings| settings.security = Security::Plain).await;
    let port = open.address.expect("open").port();
    let channel = Channel::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL");
    let channel = channel.connect().await.expect("connected");
    TargetRegistryClient::new(channel).register(target("10.0.0.1/24")).await.expect("taken");
    open.stop().await;
}

#[tokio::test]
async fn a_file_of_sqlite_is_kept_beside_ours() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    fs::create_dir(&data).expect("a folder");
    fs::write(data.join("registry.db"), [SQLITE, b"their rows"].concat()).expect("written");
    let folder = Running::start_in(folder, |_| {}).await.stop().await;
    let kept = fs::read(folder.path().join("data/registry.sqlite")).expect("kept");
    assert!(kept.ends_with(b"their rows"));
}
