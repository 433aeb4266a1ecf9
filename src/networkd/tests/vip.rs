//! An address that wanders between two nodes, elected through a real etcd: in network namespaces, on the host only
//! (guests have no etcd).

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "kernel/world.rs"]
#[allow(dead_code, reason = "the kernel tests use the rest")]
mod world;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use nix::sched::{CloneFlags, setns};
use orlop_netlink::{Changes, Netlink};
use orlop_networkd::run;
use orlop_pki::{Authority, KeyKind, Leaf, Usage};
use orlop_rt::CancellationToken;
use tokio::task::JoinSet;

use world::{LIMIT, World, in_namespaces};

const MEMBER: &str = "10.77.0.1:2379";
const ADDRESS: &str = "10.77.0.100";

/// An etcd of one member on the server's side, whose certificates are in the world's folder `etcd`.
struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program: `ORLOP_ETCD` names it, or it is in `PATH`.
fn program() -> Option<PathBuf> {
    let program = std::env::var_os("ORLOP_ETCD").unwrap_or_else(|| "etcd".into());
    let runs = Command::new(&program).arg("--version").stdout(Stdio::null()).status();
    runs.is_ok_and(|status| status.success()).then(|| program.into())
}

fn serve(world: &World, program: &PathBuf) -> Etcd {
    // etcd calls itself, too.
    world.on_server("link set lo up");
    let now = SystemTime::now();
    let ca = Authority::generate("etcd", KeyKind::P256, 100 * LIMIT, now).unwrap();
    let leaf = |usage, ips| Leaf {
        common_name: "test".to_owned(),
        organizations: vec![],
        usage,
        dns: vec![],
        ips,
        lifetime: 10 * LIMIT,
    };
    let server = ca.issue(&leaf(Usage::Peer, vec![[10, 77, 0, 1].into()]), now).unwrap();
    let admin = ca.issue(&leaf(Usage::Client, vec![]), now).unwrap();
    let folder = world.path("etcd");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, text) in [
        ("ca.crt", ca.pair().crt.as_str()),
        ("server.crt", &server.crt),
        ("server.key", server.key.expose()),
        ("admin.crt", &admin.crt),
        ("admin.key", admin.key.expose()),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    let path = |name: &str| folder.join(name).into_os_string();
    let url = format!("https://{MEMBER}");
    let mut etcd = Command::new("ip");
    etcd.args(["netns", "exec", &format!("{}-server", world.name)]).arg(program);
    etcd.args(["--name=one", "--unsafe-no-fsync", "--client-cert-auth", "--log-level=error"])
        .args([&format!("--listen-client-urls={url}"), &format!("--advertise-client-urls={url}")])
        .args(["--listen-peer-urls=http://10.77.0.1:2380"])
        .args(["--initial-advertise-peer-urls=http://10.77.0.1:2380"])
        .args(["--initial-cluster=one=http://10.77.0.1:2380"]);
    for (flag, name) in [
        ("--data-dir", "data"),
        ("--trusted-ca-file", "ca.crt"),
        ("--cert-file", "server.crt"),
        ("--key-file", "server.key"),
    ] {
        etcd.arg(flag).arg(path(name));
    }
    Etcd(etcd.spawn().unwrap())
}

/// One of the two nodes: a networkd in a thread of its own, as in a process.
struct Node {
    shutdown: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

impl Node {
    fn start(world: &World, side: &str, link: &str, own: &str) -> Self {
        let folder = world.path(side);
        std::fs::create_dir_all(&folder).unwrap();
        let config = format!(
            "interfaces: [{{interface: {link}, cidr: {own}/24, vip: {{ip: {ADDRESS}}}}}]\n"
        );
        std::fs::write(folder.join("networkd.yaml"), config).unwrap();
        std::fs::write(folder.join("cmdline"), "").unwrap();
        let mut options = world.options(&folder);
        options.etcd = world.path("etcd");
        options.etcd_member = MEMBER.to_owned();
        options.keep_host_name = true;
        let namespace = namespace(world, side);
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(run(options, token)).unwrap();
        });
        Self { shutdown, thread }
    }

    fn stop(self) {
        self.shutdown.cancel();
        self.thread.join().unwrap();
    }
}

fn namespace(world: &World, side: &str) -> File {
    File::open(format!("/run/netns/{}-{side}", world.name)).unwrap()
}

/// Sees the addresses of a side.
struct Eye {
    netlink: Netlink,
    changes: Changes,
    _connection: JoinSet<()>,
}

impl Eye {
    /// Leaves the thread in the side's namespace.
    fn on(world: &World, side: &str) -> Self {
        setns(namespace(world, side), CloneFlags::CLONE_NEWNET).unwrap();
        let (netlink, connection) = Netlink::open().unwrap();
        let mut running = JoinSet::new();
        running.spawn(connection);
        Self { netlink, changes: Changes::subscribe().unwrap(), _connection: running }
    }

    async fn has_it(&self) -> bool {
        let net = format!("{ADDRESS}/32").parse().unwrap();
        self.netlink.addresses().await.unwrap().iter().any(|address| address.net == net)
    }

    /// Waits until the address is here, or is not.
    async fn until(&self, what: &str, here: bool) {
        let came = async {
            while self.has_it().await != here {
                self.changes.next().await.unwrap();
            }
        };
        tokio::time::timeout(LIMIT, came).await.unwrap_or_else(|_| panic!("{what}"));
    }
}

#[test]
fn an_address_is_handed_over_and_goes_with_etcd() {
    in_namespaces("nwd-vip", async |world| {
        let Some(program) = program() else {
            return println!("skipped: no etcd (ORLOP_ETCD, or in PATH)");
        };
        orlop_telemetry::to_stderr(true);
        let etcd = serve(&world, &program);
        let on_server = Eye::on(&world, "server");
        let on_node = Eye::on(&world, "node");
        let start_node = || Node::start(&world, "node", "eth0", "10.77.0.8");
        let start_server = || Node::start(&world, "server", "srv0", "10.77.0.1");

        let node = start_node();
        on_node.until("the only one takes it", true).await;
        let server = start_server();
        node.stop();
        assert!(!on_node.has_it().await, "who stops does not have it");
        on_server.until("the other one takes it", true).await;

        let node = start_node();
        server.stop();
        assert!(!on_server.has_it().await, "who stops does not have it");
        on_node.until("it comes back", true).await;
        drop(etcd);
        on_node.until("without etcd nobody has it", false).await;
        node.stop();
    });
}
