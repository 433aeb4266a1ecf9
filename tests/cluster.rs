//! A curator as a process, driven by `orlopctl cluster` and by a client that is generated from the published
//! interface: every flow, from the founder's key to a node that is forgotten.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::SystemTime;

use orlop_config::parameters::{NodeParameters, Task};
use orlop_pki::cluster::{RawKey, client_config, ephemeral, node_id};
use orlop_proto::metropolis::node::core::curator::proto::api::curator_client::CuratorClient;
use orlop_proto::metropolis::node::core::curator::proto::api::{
    CommitNodeRequest, RegisterNodeRequest,
};
use orlop_proto::metropolis::proto::common::NodeStorageSecurity;
use serde_json::Value;

use support::{Home, Ran};

/// Debian's own, which has Debian's packages.
const PYTHON: &str = "/usr/bin/python3";
const FLOWS: usize = 12;

/// The binary to test: what `ORLOP` names, else what cargo built.
fn orlop() -> PathBuf {
    std::env::var_os("ORLOP").map_or_else(|| env!("CARGO_BIN_EXE_orlop").into(), PathBuf::from)
}

/// A cluster that was founded with parameters of `orlopctl`; killed with the test.
struct Curator {
    home: Home,
    child: Child,
    address: SocketAddr,
    /// Reads the log to its end, so that the curator never waits for us.
    log: Option<JoinHandle<String>>,
}

impl Curator {
    fn found(domain: &str) -> Self {
        let home = Home::new();
        let ran = home.run(&[
            "cluster",
            "install-params",
            "--bootstrap",
            "--cluster",
            domain,
            "--bootstrap-tpm-mode",
            "best-effort",
            "--bootstrap-storage-security",
            "permissive",
            "-o",
            "first.pb",
        ]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        Self::start(home)
    }

    /// With `first.pb` in its home.
    fn start(home: Home) -> Self {
        let mut child = Command::new(orlop())
            .args(["curator", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(home.path("data"))
            .arg("--parameters")
            .arg(home.path("first.pb"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else { panic!("the curator ended: {said}") };
            said += &(line.clone() + "\n");
            let address = line.contains("is served").then(|| line.split_once("address=")).flatten();
            if let Some((_, rest)) = address {
                break rest.split_whitespace().next().unwrap().parse().unwrap();
            }
        };
        let rest = move || lines.map_while(Result::ok).fold(said, |said, line| said + &line + "\n");
        Self { home, child, address, log: Some(std::thread::spawn(rest)) }
    }

    /// `orlopctl cluster ARGS -e ADDRESS`.
    fn command(&self, args: &[&str]) -> Command {
        let address = self.address.to_string();
        let mut command = self.home.command(&["cluster"]);
        command.args(args).args(["-e", &address]);
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    /// As [`Self::run`], with something typed.
    fn answer(&self, args: &[&str], typed: &str) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        Ran::from(child.wait_with_output().unwrap())
    }

    fn done(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        ran.stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.done(&[args, &["--format", "json"]].concat());
        serde_json::from_str(&text).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path(".config/metroctl").join(name)
    }

    /// What the curator has logged; it is ended for this.
    fn log(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.log.take().map(|log| log.join().unwrap()).unwrap_or_default()
    }
}

impl Drop for Curator {
    fn drop(&mut self) {
        self.log();
    }
}

/// A new machine, as far as a curator sees of it.
struct Machine {
    key: RawKey,
    client: CuratorClient<tonic::transport::Channel>,
}

impl Machine {
    /// Registers with the parameters that were made for it.
    async fn register(curator: &Curator, parameters: &Path) -> Self {
        let bytes = fs::read(parameters).unwrap();
        let Task::Join(joining) = NodeParameters::decode(&bytes).unwrap().task else {
            panic!("it is to join")
        };
        let key = RawKey::generate().unwrap();
        let shown = ephemeral(&key, SystemTime::now()).unwrap();
        let tls = client_config(&joining.ca, Some((&shown, &key)), None).unwrap();
        let host = joining.directory[0].addresses[0].to_string();
        // The directory has no ports, and this curator's is its own.
        let channel = orlop_rpc::tls::channel(&host, curator.address.port(), tls);
        let mut client = CuratorClient::new(channel);
        let request = RegisterNodeRequest {
            register_ticket: joining.ticket,
            join_key: RawKey::generate().unwrap().public().to_vec(),
            have_local_tpm: false,
            labels: Some(joining.labels),
        };
        client.register_node(request).await.unwrap();
        Self { key, client }
    }

    fn id(&self) -> String {
        node_id(&self.key.public())
    }

    async fn commit(&mut self) {
        let request = CommitNodeRequest {
            cluster_unlock_key: Vec::new(),
            storage_security: NodeStorageSecurity::Insecure.into(),
        };
        self.client.commit_node(request).await.unwrap();
    }
}

#[test]
fn a_generated_client_runs_every_flow() {
    let known = Command::new(PYTHON).args(["-c", "import google.protobuf, grpc"]).output();
    if !known.is_ok_and(|known| known.status.success()) {
        println!("skipped: python3-grpcio and python3-protobuf are not installed (.ci/deps test)");
        return;
    }
    let mut curator = Curator::found("python.example");
    let generated = curator.home.path("generated");
    fs::create_dir(&generated).unwrap();
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut compile = Command::new("protoc");
    compile.arg("-I").arg(&protos).arg("--python_out").arg(&generated);
    for folder in ["metropolis", "osbase", "version"] {
        compile.args(files(&protos.join(folder)));
    }
    let made = compile.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let told = Command::new("timeout")
        .args(["--kill-after=5", "300", PYTHON])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/client.py"))
        .arg(generated)
        .arg(curator.address.to_string())
        .arg(curator.file("owner-key.pem"))
        .arg(curator.home.path("data/credentials/ca.pem"))
        .output()
        .unwrap();
    let (out, error) =
        (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{out}{error}the curator's log: {}", curator.log());
    assert_eq!(out.lines().filter(|line| line.starts_with("ok: ")).count(), FLOWS, "{out}");
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all
}

#[test]
fn the_authority_is_pinned_only_after_somebody_compared_it() {
    let curator = Curator::found("pins.example");
    assert_eq!(mode(&curator.file("owner-key.pem")), 0o600);

    let ran = curator.run(&["nodes"]);
    assert_eq!(ran.code, Some(78), "{ran:?}");
    assert!(ran.stderr.contains("hint: orlopctl cluster takeownership -e HOST"), "{ran:?}");
    for typed in ["no\n", "", "SHA256\n"] {
        let ran = curator.answer(&["takeownership"], typed);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("SHA256:") && ran.stderr.contains("(yes/no)?"), "{ran:?}");
        assert!(!curator.file("ca.pem").exists(), "{ran:?}");
    }
    let ran = curator.answer(&["takeownership"], "yes\n");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!((mode(&curator.file("ca.pem")), mode(&curator.file("owner.pem"))), (0o600, 0o644));
    let owner = fs::read(curator.file("owner.pem")).unwrap();

    // Asked again, nobody is asked, and the certificate is the same.
    curator.done(&["takeownership"]);
    assert_eq!(fs::read(curator.file("owner.pem")).unwrap(), owner);
    // Who has the certificate needs not be asked for the authority.
    fs::remove_file(curator.file("ca.pem")).unwrap();
    curator.done(&["nodes"]);
    assert!(curator.file("ca.pem").exists());

    // Another cluster at the same address is refused, pinned or not.
    let other = Curator::found("other.example");
    let address = other.address.to_string();
    let ran = curator.home.run(&["cluster", "nodes", "-e", &address]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.contains("find the cluster's leader")
            && ran.stderr.contains("hint: another cluster"),
        "{ran:?}"
    );
    fs::remove_file(curator.file("ca.pem")).unwrap();
    let ran = curator.home.run(&["cluster", "nodes", "-e", &address]);
    assert_eq!(ran.code, Some(78), "{ran:?}");
    assert!(!curator.file("ca.pem").exists(), "{ran:?}");
    // Its key is not ours.
    fs::remove_file(curator.file("owner.pem")).unwrap();
    let trusting = "--insecure-accept-and-persist-first-encountered-ca";
    let ran = curator.home.run(&["cluster", "takeownership", "-e", &address, trusting]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.contains("take ownership") && ran.stderr.contains("(PermissionDenied)"),
        "{ran:?}"
    );

    // Nobody listens there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = other.home.run(&["cluster", "takeownership", trusting, "-e", &nobody.to_string()]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("refused") && ran.stderr.contains("hint: "), "{ran:?}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn nodes_come_are_looked_after_and_go() {
    let curator = Curator::found("walk.example");
    let ran = curator.answer(&["takeownership"], "yes\n");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let first = curator.done(&["node", "list"]).trim().to_owned();
    let info = curator.json(&["info"]);
    assert_eq!(info["cluster_domain"], "walk.example");
    let ticket = curator.json(&["ticket", "get"])["ticket"].as_str().unwrap().to_owned();
    assert_eq!(ticket.len(), 68);

    // Two new machines; somebody watches.
    let mut watching = curator
        .command(&["nodes", "--watch", "--columns", "node id,state"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut line = || {
        let line = seen.next().unwrap().unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line(), ["NODE", "ID", "STATE"]);
    assert_eq!(line(), [first.as_str(), "UP"]);
    curator.done(&["install-params", "--label", "zone=a", "-o", "next.pb"]);
    let parameters = curator.home.path("next.pb");
    assert_eq!(mode(&parameters), 0o600);
    let mut a = Machine::register(&curator, &parameters).await;
    assert_eq!(line(), [a.id().as_str(), "NEW"]);
    let b = Machine::register(&curator, &parameters).await;
    assert_eq!(line(), [b.id().as_str(), "NEW"]);
    let (id, other) = (a.id(), b.id());

    let waiting = curator.json(&["approve"]);
    assert_eq!(waiting.as_array().unwrap().len(), 2);
    let ran = curator.run(&["approve", &id, "metropolis-00000000000000000000000000000000"]);
    assert_eq!(ran.code, Some(1), "one of two failed: {ran:?}");
    assert!(ran.stderr.contains(&format!("{id} approved\n")), "{ran:?}");
    assert!(ran.stderr.contains("1 of 2 nodes: approve"), "{ran:?}");
    assert_eq!(line(), [id.as_str(), "STANDBY"]);
    a.commit().await;
    assert_eq!(line(), [id.as_str(), "UP"]);

    curator.done(&["node", "set-role", "--add", "kw", &id]);
    curator.done(&["node", "label", &id, "rack=7", "zone-"]);
    let described = curator.json(&["node", "describe", &id]);
    assert_eq!(described[0]["roles"][0], "KubernetesWorker", "{described}");
    assert_eq!(described[0]["labels"], serde_json::json!({ "rack": "7" }));
    let workers = curator.done(&["node", "list", "--filter", "has(node.roles.kubernetes_worker)"]);
    assert_eq!(workers.trim(), id);
    let ran = curator.run(&["nodes", "--filter", "node.state =="]);
    assert!(ran.code == Some(1) && ran.stderr.contains("(InvalidArgument)"), "{ran:?}");
    let status =
        curator.json(&["configure", "set", "kubernetes.node_labels_to_synchronize", "^rack$"]);
    assert_eq!(status, serde_json::json!(["^rack$"]));
    assert_eq!(
        curator.done(&["configure", "get", "kubernetes.node_labels_to_synchronize"]),
        "^rack$\n"
    );

    // What must not be done is not done, and is foreseen.
    let ran = curator.run(&["node", "delete", "--dry-run", &id]);
    assert!(ran.stderr.contains("the cluster would refuse: it has roles"), "{ran:?}");
    let ran = curator.run(&["node", "delete", &id]);
    assert!(ran.code == Some(1) && ran.stderr.contains("(FailedPrecondition)"), "{ran:?}");
    curator.done(&["node", "remove", "role", "KubernetesWorker", &id]);
    curator.done(&["node", "decommission", &id]);
    assert_eq!(line(), [id.as_str(), "DECOMMISSIONED"]);
    curator.done(&["node", "delete", &id, &other]);
    let mut gone = [line(), line()];
    gone.sort();
    let mut expected = [vec![id, "GONE".to_owned()], vec![other, "GONE".to_owned()]];
    expected.sort();
    assert_eq!(gone, expected);
    watching.kill().unwrap();
    watching.wait().unwrap();
    assert_eq!(curator.done(&["node", "list"]).trim(), first);

    curator.done(&["cert", "export"]);
    let key = fs::read_to_string(curator.home.path("owner.key")).unwrap();
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "PKCS#8");
    assert_eq!(mode(&curator.home.path("owner.key")), 0o600);
    let ran = curator.run(&["cert", "export"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("hint: --force"), "{ran:?}");
}

/// Runs the commands of a block of the guide, with `yes` typed.
fn follow(home: &Home, curator: Option<SocketAddr>, block: &str) -> Ran {
    let commands = block.lines().map(|line| line.strip_prefix("$ ").unwrap_or(line));
    let script = commands.fold("set -e\n".to_owned(), |script, line| script + line + "\n");
    let bin = home.path("bin");
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(fs::canonicalize(orlop()).unwrap(), bin.join("orlopctl"))
            .unwrap();
    }
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("HOME", home.path(""))
        .env("CURATOR", curator.map(|address| address.to_string()).unwrap_or_default())
        .current_dir(home.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who asks nothing reads nothing.
    let _ = child.stdin.take().unwrap().write_all(b"yes\n");
    Ran::from(child.wait_with_output().unwrap())
}

#[tokio::test]
async fn the_guide_is_run_as_written() {
    let guide = include_str!("../docs/cluster.md");
    let blocks: Vec<_> = guide
        .split("```console\n")
        .skip(1)
        .map(|rest| rest.split_once("```").unwrap().0.trim())
        .collect();
    let [found, own, prepare, approve, look, use_them, retire] = blocks[..] else {
        panic!("the guide has {} blocks", blocks.len())
    };
    let home = Home::new();
    let ran = follow(&home, None, found);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let curator = Curator::start(home);
    let address = Some(curator.address);
    let run = |block: &str| {
        let ran = follow(&curator.home, address, block);
        assert_eq!(ran.code, Some(0), "{block}: {ran:?}");
        ran.stdout
    };
    run(own);
    run(prepare);
    let parameters = curator.home.path("next.pb");
    let mut machines = Vec::new();
    for _ in 0..2 {
        machines.push(Machine::register(&curator, &parameters).await);
    }
    run(approve);
    for machine in &mut machines {
        machine.commit().await;
    }
    let shown = run(look);
    assert_eq!(shown.lines().count(), 4, "a heading and three nodes: {shown}");
    for machine in &machines {
        assert!(shown.contains(&machine.id()), "{shown}");
    }
    assert!(run(use_them).contains("KubernetesWorker"));
    run(retire);
    assert_eq!(curator.done(&["node", "list"]).lines().count(), 2);
}
