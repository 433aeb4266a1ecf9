//! The ambassador as processes: applications, `tapa` in each pod, `nsp` for all, whatever is killed meanwhile.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_proto::ambassador::v1::stream_status::Status;
use orlop_proto::ambassador::v1::tap_client::TapClient;
use orlop_proto::ambassador::v1::{Conduit, Stream, StreamResponse, Trench};
use orlop_proto::nsp::v1::target_registry_client::TargetRegistryClient;
use orlop_proto::nsp::v1::{self as nsp, TargetResponse};
use orlop_rpc::unix;
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

const PATIENCE: Duration = Duration::from_secs(120);
const CONFIG: &str = "
trench:
- trench: {name: a}
  conduits: {items: [{name: c}, {name: d}]}
  streams: {items: [{name: one, conduit: c, max-targets: 1}, {name: s, conduit: c}, {name: s2, conduit: d}]}
- trench: {name: b}
  conduits: {items: [{name: c}]}
  streams: {items: [{name: s, conduit: c}]}
";

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn start(role: &str, variables: &[(&str, &str)]) -> Self {
        let binary = std::env::var_os("ORLOP")
            .map_or_else(|| env!("CARGO_BIN_EXE_orlop").into(), PathBuf::from);
        let mut command = Command::new(binary);
        command.arg(role).envs(variables.iter().copied()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Asks it to end, and waits until it has.
    fn end(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Everything in one folder.
struct World(TempDir);

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("trench.yaml"), CONFIG).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn nsp(&self) -> Process {
        let variables = [
            ("NSP_CONFIG", &*self.path("trench.yaml")),
            ("NSP_SOCKET", &self.path("nsp.sock")),
            ("NSP_HEALTH_SOCKET", &self.path("nsp-health.sock")),
            ("NSP_DATASOURCE", &self.path("registry.db")),
            ("NSP_ENTRY_TIMEOUT", "6s"),
        ];
        Process::start("nsp", &variables)
    }

    /// The ambassador of a pod with an address of its own.
    async fn pod(&self, number: u8) -> Pod {
        let variables = [
            ("MERIDIO_SOCKET", &*self.path(&format!("tap-{number}.sock"))),
            ("MERIDIO_HEALTH_SOCKET", &self.path(&format!("health-{number}.sock"))),
            ("MERIDIO_NSP_SERVICE_NAME", &format!("unix://{}", self.path("nsp.sock"))),
            ("MERIDIO_STATIC_IPS", &format!("172.16.1.{number}/24")),
            ("MERIDIO_NSP_ENTRY_TIMEOUT", "1s"),
            ("MERIDIO_TIMEOUT", "30s"),
        ];
        let process = Process::start("tapa", &variables);
        let tap = TapClient::new(listening(Path::new(variables[0].1)).await);
        Pod { process, tap }
    }

    async fn targets(&self) -> Streaming<TargetResponse> {
        let registry = listening(&self.0.path().join("nsp.sock")).await;
        let any = nsp::Target { status: nsp::target::Status::Any.into(), ..Default::default() };
        TargetRegistryClient::new(registry).watch(any).await.unwrap().into_inner()
    }
}

/// A channel to a socket, once somebody listens.
async fn listening(path: &Path) -> Channel {
    let connected = async {
        while tokio::net::UnixStream::connect(path).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, connected).await.expect("it listens");
    unix::channel(path)
}

struct Pod {
    process: Process,
    tap: TapClient<Channel>,
}

impl Pod {
    async fn watch(&mut self) -> Streaming<StreamResponse> {
        self.tap.watch(Stream::default()).await.unwrap().into_inner()
    }
}

fn stream(name: &str, conduit: &str, trench: &str) -> Stream {
    let trench = Some(Trench { name: trench.to_owned() });
    Stream { name: name.to_owned(), conduit: Some(Conduit { name: conduit.to_owned(), trench }) }
}

/// Reads lists until one is as wanted.
async fn until(lists: &mut Streaming<StreamResponse>, wanted: &[(&str, Status)]) {
    let mut last = None;
    let read = async {
        loop {
            let list = lists.message().await.unwrap().expect("no end").stream_status;
            let fits = list.len() == wanted.len()
                && list.iter().zip(wanted).all(|(have, (name, status))| {
                    have.stream.as_ref().is_some_and(|stream| stream.name == *name)
                        && have.status() == *status
                });
            last = Some(list);
            if fits {
                return;
            }
        }
    };
    if timeout(PATIENCE, read).await.is_err() {
        panic!("wanted {wanted:?}, have {last:?}");
    }
}

/// Reads lists of targets until one is as wanted.
async fn until_targets(
    lists: &mut Streaming<TargetResponse>,
    wanted: impl Fn(&[nsp::Target]) -> bool,
) {
    let read = async { while !wanted(&lists.message().await.unwrap().expect("no end").targets) {} };
    timeout(PATIENCE, read).await.expect("in time");
}

fn all_enabled(targets: &[nsp::Target], count: usize) -> bool {
    targets.len() == count
        && targets.iter().all(|target| target.status() == nsp::target::Status::Enabled)
}

#[tokio::test]
async fn a_stream_is_opened_watched_and_closed_by_anybody_in_the_pod() {
    let world = World::new();
    let _nsp = world.nsp();
    let mut targets = world.targets().await;
    let mut pod = world.pod(1).await;
    let mut lists = pod.watch().await;
    until(&mut lists, &[]).await;
    pod.tap.open(stream("s", "c", "a")).await.unwrap();
    pod.tap.open(stream("nowhere", "c", "a")).await.unwrap();
    pod.tap.open(stream("s", "c", "a")).await.expect("again is the same");
    until(&mut lists, &[("s", Status::Open), ("nowhere", Status::Undefined)]).await;
    until_targets(&mut targets, |targets| all_enabled(targets, 1)).await;

    // What is configured later is opened then.
    let config = CONFIG.replace(
        "{name: s, conduit: c}, {",
        "{name: s, conduit: c}, {name: nowhere, conduit: c}, {",
    );
    std::fs::write(world.path("trench.yaml"), config).unwrap();
    until(&mut lists, &[("s", Status::Open), ("nowhere", Status::Open)]).await;
    std::fs::write(world.path("trench.yaml"), CONFIG).unwrap();
    until(&mut lists, &[("s", Status::Open), ("nowhere", Status::Undefined)]).await;

    let mut other = TapClient::new(unix::channel(world.path("tap-1.sock")));
    for (what, code) in [
        (stream("s", "c", "b"), Code::FailedPrecondition),
        (stream("", "c", "a"), Code::InvalidArgument),
        (Stream { name: "s".to_owned(), conduit: None }, Code::InvalidArgument),
    ] {
        assert_eq!(other.open(what).await.unwrap_err().code(), code);
    }
    other.close(stream("nowhere", "c", "a")).await.unwrap();
    other.close(stream("never", "opened", "a")).await.unwrap();
    other.close(stream("s", "c", "a")).await.unwrap();
    until(&mut lists, &[]).await;
    until_targets(&mut targets, <[_]>::is_empty).await;
    pod.process.end();
}

#[tokio::test]
async fn another_trench_can_be_opened_as_soon_as_the_last_stream_was_closed() {
    let world = World::new();
    let _nsp = world.nsp();
    let mut targets = world.targets().await;
    let mut pod = world.pod(1).await;
    let mut lists = pod.watch().await;
    for _ in 0..20 {
        for trench in ["a", "b"] {
            pod.tap.open(stream("s", "c", trench)).await.unwrap();
            until(&mut lists, &[("s", Status::Open)]).await;
            pod.tap.close(stream("s", "c", trench)).await.unwrap();
        }
    }
    until_targets(&mut targets, <[_]>::is_empty).await;
}

#[tokio::test]
async fn of_two_for_one_place_the_second_follows_the_first_however_it_goes() {
    let world = World::new();
    let _nsp = world.nsp();
    let (mut first, mut second) = (world.pod(1).await, world.pod(2).await);
    let (mut firsts, mut seconds) = (first.watch().await, second.watch().await);
    first.tap.open(stream("one", "c", "a")).await.unwrap();
    until(&mut firsts, &[("one", Status::Open)]).await;
    second.tap.open(stream("one", "c", "a")).await.unwrap();
    until(&mut seconds, &[("one", Status::Unavailable)]).await;
    first.tap.close(stream("one", "c", "a")).await.unwrap();
    until(&mut seconds, &[("one", Status::Open)]).await;

    // It goes without a word; its entry ends by its time.
    first.tap.open(stream("one", "c", "a")).await.unwrap();
    until(&mut firsts, &[("one", Status::Unavailable)]).await;
    drop(second);
    until(&mut firsts, &[("one", Status::Open)]).await;
}

#[tokio::test]
async fn a_registry_that_goes_and_comes_back_disturbs_nobody_for_long() {
    let world = World::new();
    let mut pod = world.pod(1).await;
    let mut lists = pod.watch().await;
    // Before there is one.
    pod.tap.open(stream("s", "c", "a")).await.unwrap();
    until(&mut lists, &[("s", Status::Pending)]).await;
    let nsp = world.nsp();
    until(&mut lists, &[("s", Status::Open)]).await;
    drop(nsp);
    until(&mut lists, &[("s", Status::Unavailable)]).await;
    let nsp = world.nsp();
    until(&mut lists, &[("s", Status::Open)]).await;
    // Its data are lost: everybody is new to it.
    drop(nsp);
    until(&mut lists, &[("s", Status::Unavailable)]).await;
    std::fs::remove_file(world.path("registry.db")).unwrap();
    let _nsp = world.nsp();
    let mut targets = world.targets().await;
    until(&mut lists, &[("s", Status::Open)]).await;
    until_targets(&mut targets, |targets| all_enabled(targets, 1)).await;
    pod.process.end();
    until_targets(&mut targets, <[_]>::is_empty).await;
}

#[tokio::test]
async fn whatever_is_opened_and_closed_the_end_is_what_was_said_last() {
    let world = World::new();
    let _nsp = world.nsp();
    let mut targets = world.targets().await;
    let streams = [("one", "c"), ("s", "c"), ("s2", "d")];
    let pod = world.pod(1).await;
    // Applications do not know of each other: each has a stream of its own.
    let mut applications = tokio::task::JoinSet::new();
    for (index, (name, conduit)) in streams.into_iter().enumerate() {
        let mut tap = pod.tap.clone();
        applications.spawn(async move {
            let mut random = 7 + index;
            for _ in 0..300 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if random >> 40 & 1 == 0 {
                    tap.open(stream(name, conduit, "a")).await.unwrap();
                } else {
                    tap.close(stream(name, conduit, "a")).await.unwrap();
                }
            }
            if index == 0 {
                tap.close(stream(name, conduit, "a")).await.unwrap();
            } else {
                tap.open(stream(name, conduit, "a")).await.unwrap();
            }
        });
    }
    while let Some(done) = applications.join_next().await {
        done.unwrap();
    }
    let names = |targets: &[nsp::Target]| -> BTreeSet<String> {
        let streams = targets.iter().filter_map(|target| target.stream.as_ref());
        streams.map(|stream| stream.name.clone()).collect()
    };
    let wanted = BTreeSet::from(["s".to_owned(), "s2".to_owned()]);
    until_targets(&mut targets, |targets| all_enabled(targets, 2) && names(targets) == wanted)
        .await;
    pod.process.end();
    until_targets(&mut targets, <[_]>::is_empty).await;
}
