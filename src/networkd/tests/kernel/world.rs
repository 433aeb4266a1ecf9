//! The node's namespace and the server's, and what runs in them.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use orlop_netlink::{Address, Changes, Link, Netlink, Table};
use orlop_networkd::{Error, Options, run};
use orlop_proto::health::health_client::HealthClient;
use orlop_proto::health::ready_check::ReadyStatus;
use orlop_rpc::unix;
use orlop_rt::CancellationToken;
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};

/// Longer than anything here takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The node's namespace, with `eth0` in it, and the server's, with the other end and 10.77.0.1.
pub(crate) struct World {
    pub(crate) name: &'static str,
    pub(crate) folder: TempDir,
    pub(crate) server: Option<Server>,
    pub(crate) netlink: Netlink,
    pub(crate) changes: Changes,
    /// The netlink connection.
    _connection: JoinSet<()>,
}

/// A running dnsmasq.
pub(crate) struct Server {
    pub(crate) process: Child,
    /// What it said.
    pub(crate) log: Arc<Mutex<String>>,
}

/// A running networkd.
pub(crate) struct Node {
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

/// Runs a test in fresh namespaces, unless something it needs is missing.
pub(crate) fn in_namespaces<F: Future<Output = ()>>(
    name: &'static str,
    test: impl FnOnce(World) -> F,
) {
    if let Some(missing) = missing() {
        println!("skipped: {missing}");
        return;
    }
    // Names of the node are per UTS namespace; the whole thread goes.
    unshare(CloneFlags::CLONE_NEWUTS).unwrap();
    let _namespaces = Namespaces::new(name);
    let node = File::open(format!("/run/netns/{name}-node")).unwrap();
    setns(node, CloneFlags::CLONE_NEWNET).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (netlink, connection) = Netlink::open().unwrap();
        let mut running = JoinSet::new();
        running.spawn(connection);
        let changes = Changes::subscribe().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let world = World { name, folder, server: None, netlink, changes, _connection: running };
        test(world).await;
    });
}

pub(crate) fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root");
    }
    let answers = |program: &str, argument| {
        Command::new(program)
            .arg(argument)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    };
    if !answers("ip", "-V") {
        return Some("no `ip` (iproute2)");
    }
    (!answers("dnsmasq", "--version")).then_some("no `dnsmasq` (dnsmasq-base)")
}

/// Removes what it made.
pub(crate) struct Namespaces(&'static str);

impl Namespaces {
    pub(crate) fn new(name: &'static str) -> Self {
        let made = Self(name);
        made.remove();
        ip(&format!("netns add {name}-node"));
        ip(&format!("netns add {name}-server"));
        let node = format!("-n {name}-node");
        let server = format!("-n {name}-server");
        ip(&format!("{node} link add eth0 type veth peer name srv0 netns {name}-server"));
        ip(&format!("{server} address add 10.77.0.1/24 dev srv0"));
        ip(&format!("{server} link set srv0 up"));
        made
    }

    pub(crate) fn remove(&self) {
        for side in ["node", "server"] {
            // Absent at first.
            let _ = Command::new("ip")
                .args(["netns", "del", &format!("{}-{side}", self.0)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.remove();
    }
}

pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

impl World {
    pub(crate) fn on_server(&self, arguments: &str) {
        ip(&format!("-n {}-server {arguments}", self.name));
    }

    /// Starts dnsmasq with leases of 2 minutes, in place of the one that runs.
    pub(crate) fn serve(&mut self, range: &str, more: &[&str]) {
        self.stop_serving();
        let mut process = Command::new("ip")
            .args(["netns", "exec", &format!("{}-server", self.name), "dnsmasq"])
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-"])
            .args((!more.iter().any(|it| it.starts_with("--port="))).then_some("--port=0"))
            .args(["--no-ping", "--leasefile-ro", "--user=root", "--pid-file=", "--log-dhcp"])
            .args(["--dhcp-authoritative", &format!("--dhcp-range={range},255.255.255.0,2m")])
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = process.stderr.take().unwrap();
        let (log, ready) = watch_log(output, "DHCP, IP range");
        ready.recv_timeout(LIMIT).expect("dnsmasq starts");
        self.server = Some(Server { process, log });
    }

    pub(crate) fn stop_serving(&mut self) {
        self.server = None;
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Of a networkd whose files are in `folder`.
    pub(crate) fn options(&self, folder: &Path) -> Options {
        Options {
            socket: folder.join("networkd.sock"),
            config: folder.join("networkd.yaml"),
            cmdline: folder.join("cmdline"),
            state: folder.join("state"),
            resolv_conf: folder.join("resolv.conf"),
            time_servers: folder.join("time_servers"),
            hosts: folder.join("hosts"),
            arp_probes: 3,
            etcd: folder.join("etcd"),
            etcd_member: "127.0.0.1:2379".to_owned(),
            keep_host_name: false,
            debug: true,
        }
    }

    /// Starts networkd with these kernel arguments and this `machine.network`.
    pub(crate) fn start(&mut self, cmdline: &str, network: &str) -> Node {
        std::fs::write(self.path("cmdline"), cmdline).unwrap();
        std::fs::write(self.path("networkd.yaml"), network).unwrap();
        let options = self.options(self.folder.path());
        orlop_telemetry::to_stderr(false);
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let task = tokio::task::spawn(run(options, token));
        Node { shutdown, task }
    }

    /// Waits until the addresses of `link` are what `good` wants.
    pub(crate) async fn addresses(
        &self,
        link: &str,
        good: impl Fn(&[Address]) -> bool,
    ) -> Vec<Address> {
        self.until(async || {
            let links = self.netlink.links().await.unwrap();
            let index = links.iter().find(|each| each.name == link)?.index;
            let mut addresses = self.netlink.addresses().await.unwrap();
            addresses.retain(|address| address.index == index && address.net.addr().is_ipv4());
            good(&addresses).then_some(addresses)
        })
        .await
    }

    /// Waits until the link has exactly one IPv4 address, in this range of the last byte.
    pub(crate) async fn address_in(
        &self,
        link: &str,
        range: std::ops::RangeInclusive<u8>,
    ) -> Address {
        let good = |addresses: &[Address]| matches!(addresses, [only] if in_range(only.net.addr(), &range));
        self.addresses(link, good).await.remove(0)
    }

    /// Waits until there is a default route, and gives its gateway and metric.
    pub(crate) async fn default_route(&self) -> (Option<IpAddr>, u32) {
        self.until(async || {
            let routes = self.netlink.routes().await.unwrap();
            let main = |table| table == Table::MAIN;
            let mut routes = routes.iter().filter(|route| main(route.table));
            let default = routes.find(|route| route.destination.prefix_len() == 0)?;
            Some((default.gateway, default.metric))
        })
        .await
    }

    /// Waits until networkd says that it is ready; gives how long that took.
    pub(crate) async fn ready(&self) -> Duration {
        let since = Instant::now();
        let mut health = HealthClient::new(unix::channel(self.path("networkd.sock")));
        let mut poll = tokio::time::interval(Duration::from_millis(5));
        loop {
            poll.tick().await;
            assert!(since.elapsed() < LIMIT, "networkd is not ready");
            // It may not listen yet.
            let Ok(answer) = health.ready(()).await else { continue };
            if answer.into_inner().messages[0].status() == ReadyStatus::Ready {
                return since.elapsed();
            }
        }
    }

    /// Looks again after each change in the node's tables.
    pub(crate) async fn until<T>(&self, look: impl AsyncFn() -> Option<T>) -> T {
        let found = async {
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                self.changes.next().await.unwrap();
            }
        };
        tokio::time::timeout(LIMIT, found).await.expect("it should have come to pass")
    }
}

/// What a server writes, and a word when it wrote `text`.
pub(crate) fn watch_log(
    output: ChildStderr,
    text: &'static str,
) -> (Arc<Mutex<String>>, mpsc::Receiver<()>) {
    let log = Arc::new(Mutex::new(String::new()));
    let (started, ready) = mpsc::channel();
    let written = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            eprintln!("{line}");
            *written.lock().unwrap() += &format!("{line}\n");
            if line.contains(text) {
                // Nobody waits for the second one.
                let _ = started.send(());
            }
        }
    });
    (log, ready)
}

pub(crate) fn in_range(address: IpAddr, range: &std::ops::RangeInclusive<u8>) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[..3] == [10, 77, 0] && range.contains(&v4.octets()[3]))
}

impl Server {
    /// Waits until it said `text` so many times.
    pub(crate) async fn said(&self, text: &str, times: usize) {
        let mut poll = tokio::time::interval(Duration::from_millis(5));
        let said = async {
            while !self.seen(text, times) {
                poll.tick().await;
            }
        };
        tokio::time::timeout(LIMIT, said).await.unwrap_or_else(|_| panic!("no {text:?}"));
    }

    /// Whether it said `text` so many times.
    pub(crate) fn seen(&self, text: &str, times: usize) -> bool {
        self.log.lock().unwrap().matches(text).count() >= times
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Node {
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub(crate) const RANGE: &str = "10.77.0.100,10.77.0.109";
pub(crate) const OTHER_RANGE: &str = "10.77.0.200,10.77.0.209";

/// Whether the kernel of the machine knows links of this kind; says so when it does not.
pub(crate) fn knows(world: &World, arguments: &str) -> bool {
    let made = Command::new("ip")
        .args(["-n", &format!("{}-server", world.name), "link", "add", "probe0"])
        .args(arguments.split(' '))
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if made {
        world.on_server("link del probe0");
    } else {
        println!("skipped: this kernel makes no link of type {arguments:?}");
    }
    made
}

impl World {
    /// Waits until a link of this name is as `good` wants it.
    pub(crate) async fn link(&self, name: &str, good: impl Fn(&Link) -> bool) -> Link {
        self.until(async || {
            let links = self.netlink.links().await.unwrap();
            links.into_iter().find(|link| link.name == name && good(link))
        })
        .await
    }
}

/// Datagrams with numbers that go to an address of the server's side and come back, one after another: a
/// lost one ends it.
pub(crate) struct Exchange {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    ends: [std::thread::JoinHandle<()>; 2],
}

impl Exchange {
    pub(crate) fn start(world: &World, server: &str) -> Self {
        let namespace = File::open(format!("/run/netns/{}-server", world.name)).unwrap();
        let server: IpAddr = server.parse().unwrap();
        let (tell, told) = mpsc::channel();
        let echo = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let socket = UdpSocket::bind((server, 0)).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            tell.send(socket.local_addr().unwrap()).unwrap();
            let mut buffer = [0; 8];
            loop {
                match socket.recv_from(&mut buffer).unwrap() {
                    (0, _) => return,
                    (length, from) => drop(socket.send_to(&buffer[..length], from).unwrap()),
                }
            }
        });
        let to = told.recv_timeout(LIMIT).unwrap();
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        // The node's namespace is that of the thread that starts it.
        let ask = std::thread::spawn(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            let mut number = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                number += 1;
                socket.send(&number.to_be_bytes()).unwrap();
                let mut answer = [0; 8];
                socket.recv(&mut answer).unwrap_or_else(|error| panic!("lost {number}: {error}"));
                assert_eq!(u64::from_be_bytes(answer), number);
                counted.store(number, Ordering::Relaxed);
            }
            socket.send(&[]).unwrap();
        });
        Self { stop, count, ends: [echo, ask] }
    }

    /// Waits until so many more came back.
    pub(crate) async fn goes_on(&self, more: u64) {
        let aim = self.count.load(Ordering::Relaxed) + more;
        let reached = async {
            let mut poll = tokio::time::interval(Duration::from_millis(5));
            while self.count.load(Ordering::Relaxed) < aim {
                assert!(!self.ends.iter().any(std::thread::JoinHandle::is_finished), "lost one");
                poll.tick().await;
            }
        };
        tokio::time::timeout(LIMIT, reached).await.expect("packets should pass");
    }

    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for end in self.ends {
            end.join().unwrap();
        }
    }
}
