//! networkd against the real kernel and a real DHCP server (dnsmasq), each test in network namespaces
//! of its own. Needs root and `ip`; skipped with a printed reason without them or without dnsmasq.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use orlop_netlink::{Address, Arp, ArpSocket, Changes, Kind, Link, Mac, Netlink, Protocol, Table};
use orlop_networkd::made::MARK;
use orlop_networkd::{Error, Options, run};
use orlop_proto::health::health_client::HealthClient;
use orlop_proto::health::ready_check::ReadyStatus;
use orlop_proto::network::network_service_client::NetworkServiceClient;
use orlop_rpc::unix;
use orlop_rt::CancellationToken;
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The node's namespace, with `eth0` in it, and the server's, with the other end and 10.77.0.1.
struct World {
    name: &'static str,
    folder: TempDir,
    server: Option<Server>,
    netlink: Netlink,
    changes: Changes,
    /// The netlink connection.
    _connection: JoinSet<()>,
}

/// A running dnsmasq.
struct Server {
    process: Child,
    /// What it said.
    log: Arc<Mutex<String>>,
}

/// A running networkd.
struct Node {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

/// Runs a test in fresh namespaces, unless something it needs is missing.
fn in_namespaces<F: Future<Output = ()>>(name: &'static str, test: impl FnOnce(World) -> F) {
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

fn missing() -> Option<&'static str> {
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
struct Namespaces(&'static str);

impl Namespaces {
    fn new(name: &'static str) -> Self {
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

    fn remove(&self) {
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

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

impl World {
    fn on_server(&self, arguments: &str) {
        ip(&format!("-n {}-server {arguments}", self.name));
    }

    /// Starts dnsmasq with leases of 2 minutes, in place of the one that runs.
    fn serve(&mut self, range: &str, more: &[&str]) {
        self.stop_serving();
        let mut process = Command::new("ip")
            .args(["netns", "exec", &format!("{}-server", self.name), "dnsmasq"])
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-", "--port=0"])
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

    fn stop_serving(&mut self) {
        self.server = None;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Starts networkd with these kernel arguments and this `machine.network`.
    fn start(&mut self, cmdline: &str, network: &str) -> Node {
        std::fs::write(self.path("cmdline"), cmdline).unwrap();
        std::fs::write(self.path("networkd.yaml"), network).unwrap();
        let options = Options {
            socket: self.path("networkd.sock"),
            config: self.path("networkd.yaml"),
            cmdline: self.path("cmdline"),
            state: self.path("state"),
            resolv_conf: self.path("resolv.conf"),
            hosts: self.path("hosts"),
            keep_host_name: false,
            debug: true,
        };
        orlop_telemetry::to_stderr(false);
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let task = tokio::task::spawn(run(options, token));
        Node { shutdown, task }
    }

    /// Waits until the addresses of `link` are what `good` wants.
    async fn addresses(&self, link: &str, good: impl Fn(&[Address]) -> bool) -> Vec<Address> {
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
    async fn address_in(&self, link: &str, range: std::ops::RangeInclusive<u8>) -> Address {
        let good = |addresses: &[Address]| matches!(addresses, [only] if in_range(only.net.addr(), &range));
        self.addresses(link, good).await.remove(0)
    }

    /// Waits until there is a default route, and gives its gateway and metric.
    async fn default_route(&self) -> (Option<IpAddr>, u32) {
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
    async fn ready(&self) -> Duration {
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
    async fn until<T>(&self, look: impl AsyncFn() -> Option<T>) -> T {
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
fn watch_log(output: ChildStderr, text: &'static str) -> (Arc<Mutex<String>>, mpsc::Receiver<()>) {
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

fn in_range(address: IpAddr, range: &std::ops::RangeInclusive<u8>) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[..3] == [10, 77, 0] && range.contains(&v4.octets()[3]))
}

impl Server {
    /// Waits until it said `text` so many times.
    async fn said(&self, text: &str, times: usize) {
        let mut poll = tokio::time::interval(Duration::from_millis(5));
        let said = async {
            while !self.seen(text, times) {
                poll.tick().await;
            }
        };
        tokio::time::timeout(LIMIT, said).await.unwrap_or_else(|_| panic!("no {text:?}"));
    }

    /// Whether it said `text` so many times.
    fn seen(&self, text: &str, times: usize) -> bool {
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
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

const RANGE: &str = "10.77.0.100,10.77.0.109";
const OTHER_RANGE: &str = "10.77.0.200,10.77.0.209";

#[test]
fn a_lease_gives_address_route_and_resolvers() {
    in_namespaces("nwd-lease", async |mut world| {
        let options = ["--dhcp-option=option:dns-server,10.77.0.53", "--domain=example.org"];
        world.serve(RANGE, &options);
        let node = world.start("", "");
        let took = world.ready().await;
        println!("ready after {took:?}");
        let address = world.address_in("eth0", 100..=109).await;
        assert_eq!(address.protocol, Protocol::DHCP);
        assert_eq!(address.net.prefix_len(), 24);
        assert!(address.valid.is_some_and(|valid| (100..=120).contains(&valid.as_secs())));
        let gateway = "10.77.0.1".parse().unwrap();
        assert_eq!(world.default_route().await, (Some(gateway), 1024));
        assert_eq!(world.read("resolv.conf"), "nameserver 10.77.0.53\nsearch example.org\n");
        let name = format!("talos-{}", address.net.addr().to_string().replace('.', "-"));
        assert!(world.read("hosts").contains(&format!("{name}.example.org {name}\n")));
        assert_eq!(nix::unistd::gethostname().unwrap().to_str(), Some(name.as_str()));
        node.stop().await;
    });
}

#[test]
fn the_api_shows_links_and_routes() {
    in_namespaces("nwd-api", async |mut world| {
        world.serve(RANGE, &[]);
        let node = world.start("", "");
        world.ready().await;
        let mut client = NetworkServiceClient::new(unix::channel(world.path("networkd.sock")));
        let answer = client.interfaces(()).await.unwrap().into_inner();
        let [message] = &answer.messages[..] else { panic!("{answer:?}") };
        let lo = message.interfaces.iter().find(|each| each.name == "lo").unwrap();
        assert_eq!((lo.index, lo.mtu, lo.flags, lo.hardwareaddr.as_str()), (1, 65536, 5, ""));
        assert!(lo.ipaddress.contains(&"127.0.0.1/8".to_owned()));
        let eth0 = message.interfaces.iter().find(|each| each.name == "eth0").unwrap();
        assert_eq!((eth0.mtu, eth0.flags), (1500, 19));
        assert!(eth0.ipaddress.iter().any(|address| address.starts_with("10.77.0.1")));

        let answer = client.routes(()).await.unwrap().into_inner();
        let [message] = &answer.messages[..] else { panic!("{answer:?}") };
        let routes = &message.routes;
        let default = routes.iter().find(|route| route.destination == "0.0.0.0/0").unwrap();
        assert_eq!(
            (default.interface.as_str(), default.gateway.as_str()),
            ("eth0", "10.77.0.1/32")
        );
        assert_eq!((default.metric, default.protocol, default.family), (1024, 16, 2));
        let link = routes.iter().find(|route| route.destination == "10.77.0.0/24").unwrap();
        assert_eq!((link.gateway.as_str(), link.scope, link.protocol), ("", 253, 2));
        node.stop().await;
    });
}

#[test]
fn a_lease_is_renewed_at_t1_from_the_server_that_gave_it() {
    in_namespaces("nwd-renew", async |mut world| {
        world.serve(RANGE, &["--dhcp-option=option:T1,3"]);
        let node = world.start("", "");
        let first = world.address_in("eth0", 100..=109).await;
        // The kernel counts the lifetime down; only a renewal sets it back.
        let renewed = world.until(async || {
            let server = world.server.as_ref().unwrap();
            server.seen("DHCPACK", 2).then_some(())
        });
        renewed.await;
        let second = world.address_in("eth0", 100..=109).await;
        assert_eq!(first.net, second.net);
        let left = second.valid.unwrap();
        assert!(left > Duration::from_secs(117), "{left:?}");
        node.stop().await;
    });
}

#[test]
fn when_the_server_refuses_the_address_another_takes_its_place() {
    in_namespaces("nwd-nak", async |mut world| {
        world.serve(RANGE, &["--dhcp-option=option:T1,3"]);
        let node = world.start("", "");
        world.address_in("eth0", 100..=109).await;
        world.serve(OTHER_RANGE, &[]);
        world.address_in("eth0", 200..=209).await;
        assert!(world.server.as_ref().unwrap().seen("DHCPNAK", 1));
        node.stop().await;
    });
}

#[test]
fn when_the_carrier_comes_back_from_another_network_the_address_is_replaced() {
    in_namespaces("nwd-carrier", async |mut world| {
        world.serve(RANGE, &[]);
        let node = world.start("", "");
        world.address_in("eth0", 100..=109).await;
        world.serve(OTHER_RANGE, &[]);
        world.on_server("link set srv0 down");
        world.on_server("link set srv0 up");
        world.address_in("eth0", 200..=209).await;
        node.stop().await;
    });
}

#[test]
fn an_expired_lease_takes_address_and_routes_along() {
    in_namespaces("nwd-expiry", async |world| {
        let mut world = world;
        let namespace = File::open(format!("/run/netns/{}-server", world.name)).unwrap();
        let gave = std::thread::spawn(|| give_one_lease_of_3_seconds(namespace));
        let node = world.start("", "");
        world.address_in("eth0", 5..=5).await;
        let at = gave.join().unwrap();
        world.addresses("eth0", <[Address]>::is_empty).await;
        let held = at.elapsed();
        assert!((2900..4000).contains(&held.as_millis()), "{held:?}");
        world
            .until(async || {
                let routes = world.netlink.routes().await.unwrap();
                let ours = routes.iter().any(|route| route.protocol == Protocol::DHCP);
                (!ours).then_some(())
            })
            .await;
        node.stop().await;
    });
}

/// A server for one client: OFFER, ACK, and then silence. Gives the time of the ACK.
fn give_one_lease_of_3_seconds(namespace: File) -> Instant {
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
    let socket = UdpSocket::bind("0.0.0.0:67").unwrap();
    setsockopt(&socket, sockopt::BindToDevice, &"srv0".into()).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut buffer = [0; 1500];
    loop {
        let length = socket.recv(&mut buffer).unwrap();
        let request = Message::decode(&mut Decoder::new(&buffer[..length])).unwrap();
        let kind = match request.opts().msg_type() {
            Some(MessageType::Discover) => MessageType::Offer,
            _ => MessageType::Ack,
        };
        let mut reply = Message::default();
        reply.set_opcode(Opcode::BootReply).set_xid(request.xid()).set_chaddr(request.chaddr());
        reply.set_yiaddr([10, 77, 0, 5]);
        for option in [
            DhcpOption::MessageType(kind),
            DhcpOption::ServerIdentifier([10, 77, 0, 1].into()),
            DhcpOption::AddressLeaseTime(3),
            DhcpOption::SubnetMask([255, 255, 255, 0].into()),
            DhcpOption::Router(vec![[10, 77, 0, 1].into()]),
        ] {
            reply.opts_mut().insert(option);
        }
        socket.send_to(&reply.to_vec().unwrap(), "255.255.255.255:68").unwrap();
        if kind == MessageType::Ack {
            return Instant::now();
        }
    }
}

#[test]
fn an_ignored_interface_is_left_alone() {
    in_namespaces("nwd-ignore", async |mut world| {
        world.serve(RANGE, &[]);
        let node = world.start("talos.network.interface.ignore=eth0", "");
        world.ready().await;
        let links = world.netlink.links().await.unwrap();
        let eth0 = links.iter().find(|link| link.name == "eth0").unwrap();
        assert!(!eth0.up());
        assert!(!world.server.as_ref().unwrap().seen("DHCPDISCOVER", 1));
        assert_eq!(world.read("resolv.conf"), "nameserver 1.1.1.1\nnameserver 8.8.8.8\n");
        node.stop().await;
    });
}

#[test]
fn the_ip_argument_sets_a_static_address() {
    in_namespaces("nwd-ip", async |mut world| {
        world.serve(RANGE, &[]);
        let cmdline = "ip=10.77.0.9::10.77.0.1:255.255.255.0:n1::off:10.77.0.53";
        let node = world.start(cmdline, "");
        world.ready().await;
        let address = world.address_in("eth0", 9..=9).await;
        assert_eq!((address.protocol, address.valid), (Protocol::STATIC, None));
        assert_eq!(world.default_route().await, (Some("10.77.0.1".parse().unwrap()), 10));
        assert_eq!(world.read("resolv.conf"), "nameserver 10.77.0.53\n");
        assert!(world.read("hosts").contains("\n10.77.0.9 n1\n"));
        assert!(!world.server.as_ref().unwrap().seen("DHCPDISCOVER", 1));
        node.stop().await;
    });
}

#[test]
fn the_configuration_sets_address_mtu_and_routes() {
    in_namespaces("nwd-config", async |mut world| {
        let config = "\
hostname: n2.example.org
nameservers: [10.77.0.54]
interfaces:
- interface: eth0
  cidr: 10.77.0.8/24
  mtu: 1400
  routes:
  - network: 10.78.0.0/16
    gateway: 10.77.0.1
";
        let node = world.start("talos.hostname=n1", config);
        world.ready().await;
        world.address_in("eth0", 8..=8).await;
        let links = world.netlink.links().await.unwrap();
        assert_eq!(links.iter().find(|link| link.name == "eth0").unwrap().mtu, 1400);
        let routes = world.netlink.routes().await.unwrap();
        let to = "10.78.0.0/16".parse().unwrap();
        let route = routes.iter().find(|route| route.destination == to).unwrap();
        assert_eq!((route.metric, route.source), (10, Some("10.77.0.8".parse().unwrap())));
        assert_eq!(world.read("resolv.conf"), "nameserver 10.77.0.54\nsearch example.org\n");
        assert_eq!(nix::unistd::gethostname().unwrap().to_str(), Some("n2"));
        node.stop().await;
    });
}

#[test]
fn a_restart_keeps_address_and_routes_without_asking_anyone() {
    in_namespaces("nwd-restart", async |mut world| {
        world.serve(RANGE, &[]);
        let node = world.start("", "");
        let address = world.address_in("eth0", 100..=109).await;
        world.ready().await;
        node.stop().await;
        world.stop_serving();
        let before = world.netlink.routes().await.unwrap();

        let node = world.start("", "");
        let took = world.ready().await;
        assert!(took < Duration::from_secs(1), "ready only after {took:?}");
        let after = world.address_in("eth0", 100..=109).await;
        assert_eq!(after.net, address.net);
        assert_eq!(world.netlink.routes().await.unwrap(), before);
        node.stop().await;
    });
}

#[test]
fn a_foreign_change_is_put_right() {
    in_namespaces("nwd-foreign", async |mut world| {
        world.serve(RANGE, &[]);
        let node = world.start("", "");
        let address = world.address_in("eth0", 100..=109).await;
        let here = format!("-n {}-node", world.name);
        ip(&format!("{here} address del {} dev eth0", address.net));
        world.addresses("eth0", <[Address]>::is_empty).await;
        world.address_in("eth0", 100..=109).await;
        assert_eq!(world.default_route().await.1, 1024);
        node.stop().await;
    });
}

#[test]
fn a_new_link_is_picked_up_though_another_one_fails() {
    in_namespaces("nwd-hotplug", async |mut world| {
        world.serve(RANGE, &[]);
        let config = "\
interfaces:
- interface: eth0
  cidr: 10.77.0.8/24
  routes:
  - network: 10.78.0.0/16
    gateway: 10.99.0.1
";
        let node = world.start("", config);
        world.ready().await;
        world.on_server("link add eth1 type veth peer name srv1");
        world.on_server("address add 10.77.0.2/24 dev srv1");
        world.on_server("link set srv1 up");
        world.on_server(&format!("link set eth1 netns {}-node", world.name));
        world.address_in("eth1", 100..=109).await;
        node.stop().await;
    });
}

#[test]
fn without_a_server_the_node_is_ready_all_the_same() {
    in_namespaces("nwd-noserver", async |mut world| {
        let node = world.start("", "");
        let took = world.ready().await;
        assert!((4..10).contains(&took.as_secs()), "{took:?}");
        assert_eq!(world.read("resolv.conf"), "nameserver 1.1.1.1\nnameserver 8.8.8.8\n");
        world.serve(RANGE, &["--dhcp-option=option:dns-server,10.77.0.53"]);
        world.address_in("eth0", 100..=109).await;
        node.stop().await;
    });
}

/// Whether the kernel of the machine knows links of this kind; says so when it does not.
fn knows(world: &World, arguments: &str) -> bool {
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
    async fn link(&self, name: &str, good: impl Fn(&Link) -> bool) -> Link {
        self.until(async || {
            let links = self.netlink.links().await.unwrap();
            links.into_iter().find(|link| link.name == name && good(link))
        })
        .await
    }
}

#[test]
fn a_bridge_is_made_with_its_port_and_goes_when_it_is_no_longer_wanted() {
    in_namespaces("nwd-bridge", async |mut world| {
        if !knows(&world, "type bridge") {
            return;
        }
        world.serve(RANGE, &[]);
        let config = "\
interfaces:
- interface: br0
  dhcp: true
  bridge: {interfaces: [eth0]}
";
        let node = world.start("", config);
        world.address_in("br0", 100..=109).await;
        let bridge = world.link("br0", Link::running).await;
        let port = world.link("eth0", |_| true).await;
        assert_eq!((port.master, bridge.alias.as_deref()), (Some(bridge.index), Some(MARK)));
        node.stop().await;

        // A restart finds it as it is.
        let node = world.start("", config);
        world.ready().await;
        assert_eq!(world.link("br0", |_| true).await.index, bridge.index);
        node.stop().await;

        let node = world.start("", "");
        world.address_in("eth0", 100..=109).await;
        let links = world.netlink.links().await.unwrap();
        assert!(!links.iter().any(|link| link.name == "br0"));
        node.stop().await;
    });
}

#[test]
fn a_vlan_carries_its_own_lease() {
    in_namespaces("nwd-vlan", async |mut world| {
        if !knows(&world, "link srv0 type vlan id 5") {
            return;
        }
        world.on_server("link add link srv0 name srv0.5 type vlan id 5");
        world.on_server("address del 10.77.0.1/24 dev srv0");
        world.on_server("address add 10.77.0.1/24 dev srv0.5");
        world.on_server("link set srv0.5 up");
        world.serve(RANGE, &[]);
        let config = "interfaces: [{interface: eth0, vlans: [{vlanId: 5, dhcp: true}]}]\n";
        let node = world.start("", config);
        world.address_in("eth0.5", 100..=109).await;
        let vlan = world.link("eth0.5", |_| true).await;
        assert_eq!((vlan.kind, vlan.alias.as_deref()), (Some(Kind::Vlan(5)), Some(MARK)));
        node.stop().await;
    });
}

#[test]
fn a_bond_goes_on_with_the_link_that_is_left() {
    in_namespaces("nwd-bond", async |mut world| {
        if !knows(&world, "type bond") || !knows(&world, "type bridge") {
            return;
        }
        let here = format!("{}-node", world.name);
        world.on_server(&format!("link add eth1 netns {here} type veth peer name srv1"));
        world.on_server("link add br0 type bridge");
        world.on_server("address del 10.77.0.1/24 dev srv0");
        world.on_server("address add 10.77.0.1/24 dev br0");
        for link in ["srv0", "srv1"] {
            world.on_server(&format!("link set {link} master br0"));
            world.on_server(&format!("link set {link} up"));
        }
        world.on_server("link set br0 up");
        world.serve(RANGE, &[]);
        let config = "\
interfaces:
- interface: bond0
  dhcp: true
  bond: {interfaces: [eth0, eth1], mode: active-backup, miimon: 50, useCarrier: true}
";
        let node = world.start("", config);
        let address = world.address_in("bond0", 100..=109).await;
        let bond = world.link("bond0", Link::running).await;
        for port in ["eth0", "eth1"] {
            assert_eq!(world.link(port, |_| true).await.master, Some(bond.index));
        }
        world.on_server("link set srv0 down");
        world.link("eth0", |link| !link.running()).await;
        assert_eq!(world.address_in("bond0", 100..=109).await.net, address.net);
        node.stop().await;
    });
}

#[test]
fn a_dummy_is_made_with_its_addresses() {
    in_namespaces("nwd-dummy", async |mut world| {
        if !knows(&world, "type dummy") {
            return;
        }
        let config = "\
interfaces:
- interface: dummy0
  dummy: true
  addresses: [10.77.0.7/32, 'fd00::7/128']
";
        let node = world.start("", config);
        world.address_in("dummy0", 7..=7).await;
        node.stop().await;
    });
}

#[test]
fn an_address_that_another_host_has_is_declined() {
    in_namespaces("nwd-decline", async |mut world| {
        ip(&format!("-n {}-node link set eth0 address 02:00:00:00:00:77", world.name));
        let namespace = File::open(format!("/run/netns/{}-server", world.name)).unwrap();
        let (listens, listening) = mpsc::channel();
        let other = std::thread::spawn(|| have_an_address(namespace, listens));
        listening.recv_timeout(LIMIT).unwrap();
        world.serve(RANGE, &["--dhcp-host=02:00:00:00:00:77,10.77.0.150"]);
        let node = world.start("", "");
        // The server gives another one then, when it is asked again after ten seconds.
        let address = world.address_in("eth0", 100..=109).await;
        assert!(world.server.as_ref().unwrap().seen("DHCPDECLINE(srv0) 10.77.0.150", 1));
        assert_eq!(address.protocol, Protocol::DHCP);
        other.join().unwrap();
        node.stop().await;
    });
}

/// Another host on the server's link, that answers to the first question after 10.77.0.150.
fn have_an_address(namespace: File, listens: mpsc::Sender<()>) {
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
    let address = Ipv4Addr::new(10, 77, 0, 150);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (netlink, connection) = Netlink::open().unwrap();
        let mut running = JoinSet::new();
        running.spawn(connection);
        let links = netlink.links().await.unwrap();
        let index = links.iter().find(|link| link.name == "srv0").unwrap().index;
        let socket = ArpSocket::open(index, address).unwrap();
        listens.send(()).unwrap();
        let probe = tokio::time::timeout(LIMIT, socket.receive()).await.unwrap().unwrap();
        assert!(probe.sender_address.is_unspecified(), "{probe:?}");
        let stranger = Mac([2, 0, 0, 0, 0, 0x99]);
        socket.broadcast(&Arp::announcement(stranger, address)).await.unwrap();
    });
}

#[test]
fn a_lease_is_given_back_when_the_machine_goes_away_for_long() {
    in_namespaces("nwd-release", async |mut world| {
        world.serve(RANGE, &[]);
        let node = world.start("", "");
        let address = world.address_in("eth0", 100..=109).await;
        world.ready().await;
        std::fs::write(world.path("state").join("release"), "").unwrap();
        node.stop().await;
        let gone = format!("DHCPRELEASE(srv0) {}", address.net.addr());
        world.server.as_ref().unwrap().said(&gone, 1).await;
        assert!(!world.path("state").join("eth0.lease").exists());
    });
}

#[test]
fn kea_gives_a_lease_and_renews_it() {
    in_namespaces("nwd-kea", async |mut world| {
        if Command::new("kea-dhcp4").arg("-v").stdout(Stdio::null()).status().is_err() {
            return println!("skipped: no `kea-dhcp4` (kea-dhcp4-server)");
        }
        // Kea does not open its sockets on a link without carrier.
        ip(&format!("-n {}-node link set eth0 up", world.name));
        let log = world.serve_with_kea();
        let node = world.start("", "");
        let first = world.address_in("eth0", 200..=209).await;
        let gateway = "10.77.0.1".parse().unwrap();
        assert_eq!(world.default_route().await, (Some(gateway), 1024));
        world.ready().await;
        // The names are written when the address is seen to be there.
        let mut poll = tokio::time::interval(Duration::from_millis(5));
        let written = async {
            while world.read("resolv.conf") != "nameserver 10.77.0.53\nsearch a.org b.org\n" {
                poll.tick().await;
            }
        };
        tokio::time::timeout(LIMIT, written).await.expect("resolvers and domains of the server");
        log.said("DHCP4_LEASE_ALLOC", 2).await;
        assert_eq!(world.address_in("eth0", 200..=209).await.net, first.net);
        node.stop().await;
    });
}

impl World {
    /// Starts Kea with leases of two minutes that are renewed after three seconds.
    fn serve_with_kea(&self) -> Server {
        let folder = self.folder.path();
        let config = r#"{"Dhcp4": {
            "interfaces-config": {"interfaces": ["srv0"], "dhcp-socket-type": "raw",
                "service-sockets-max-retries": 200, "service-sockets-retry-wait-time": 100},
            "lease-database": {"type": "memfile", "persist": false},
            "valid-lifetime": 120, "renew-timer": 3, "rebind-timer": 60,
            "subnet4": [{"id": 1, "subnet": "10.77.0.0/24",
                "pools": [{"pool": "10.77.0.200 - 10.77.0.209"}],
                "option-data": [
                    {"name": "routers", "data": "10.77.0.1"},
                    {"name": "domain-name-servers", "data": "10.77.0.53"},
                    {"name": "domain-search", "data": "a.org, b.org"}]}],
            "loggers": [{"name": "kea-dhcp4", "severity": "INFO",
                "output_options": [{"output": "stderr", "flush": true}]}]}}"#;
        std::fs::write(self.path("kea.json"), config).unwrap();
        let mut process = Command::new("ip")
            .args(["netns", "exec", &format!("{}-server", self.name), "kea-dhcp4", "-c"])
            .arg(self.path("kea.json"))
            .env("KEA_PIDFILE_DIR", folder)
            .env("KEA_LOCKFILE_DIR", folder)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = process.stderr.take().unwrap();
        let (log, started) = watch_log(output, "DHCP4_STARTED");
        started.recv_timeout(LIMIT).expect("Kea starts");
        Server { process, log }
    }
}

#[test]
fn routers_give_an_address_and_resolvers_though_the_node_forwards() {
    in_namespaces("nwd-router", async |mut world| {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            return println!("skipped: this kernel has no IPv6");
        }
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        world.on_server("address add fd77::1/64 dev srv0 nodad");
        let options = [
            "--enable-ra",
            "--ra-param=srv0,4,60",
            "--dhcp-range=fd77::,ra-only,64,10m",
            "--dhcp-option=option6:dns-server,[fd77::53]",
            "--dhcp-option=option6:domain-search,a.org",
            "--dhcp-option=option:dns-server,10.77.0.53",
        ];
        world.serve(RANGE, &options);
        let node = world.start("", "");
        let formed = |address: &Address| address.net.to_string().starts_with("fd77::");
        world
            .until(async || {
                let addresses = world.netlink.addresses().await.unwrap();
                addresses.iter().any(formed).then_some(())
            })
            .await;
        let expected = "nameserver 10.77.0.53\nnameserver fd77::53\nsearch a.org\n";
        let mut poll = tokio::time::interval(Duration::from_millis(5));
        let written = async {
            while world.read("resolv.conf") != expected {
                poll.tick().await;
            }
        };
        let written = tokio::time::timeout(LIMIT, written).await;
        written.unwrap_or_else(|_| panic!("{}", world.read("resolv.conf")));
        node.stop().await;
    });
}

#[test]
fn a_dhcpv6_server_gives_an_address_that_a_restart_keeps() {
    in_namespaces("nwd-dhcp6", async |mut world| {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            return println!("skipped: this kernel has no IPv6");
        }
        world.on_server("address add fd77::1/64 dev srv0 nodad");
        let options = [
            "--enable-ra",
            "--ra-param=srv0,4,60",
            "--dhcp-range=fd77::100,fd77::1ff,64,10m",
            "--dhcp-option=option6:dns-server,[fd77::53]",
        ];
        world.serve(RANGE, &options);
        let given = |address: &Address| {
            let text = address.net.to_string();
            text.starts_with("fd77::1") && text.ends_with("/128")
        };
        let node = world.start("", "");
        let held = world
            .until(async || {
                let addresses = world.netlink.addresses().await.unwrap();
                addresses.into_iter().find(given)
            })
            .await;
        assert_eq!(held.protocol, Protocol::DHCP);
        node.stop().await;
        let node = world.start("", "");
        world.server.as_ref().unwrap().said("DHCPREBIND(srv0)", 1).await;
        let addresses = world.netlink.addresses().await.unwrap();
        assert!(
            addresses.iter().any(|address| (address.index, address.net) == (held.index, held.net))
        );
        node.stop().await;
    });
}
