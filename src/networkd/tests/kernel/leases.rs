//! DHCPv4 with real servers, and with some that play one.

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use orlop_netlink::{Address, Arp, ArpSocket, Mac, Netlink, Protocol};
use tokio::task::JoinSet;

use crate::hostile::{respond, until_done};
use crate::world::{LIMIT, OTHER_RANGE, RANGE, Server, World, in_namespaces, ip, watch_log};

#[test]
fn a_lease_gives_address_route_and_resolvers() {
    in_namespaces("nwd-lease", async |mut world| {
        let options = [
            "--dhcp-option=option:dns-server,10.77.0.53",
            "--dhcp-option=option:ntp-server,10.77.0.123,10.77.0.124",
            "--domain=example.org",
        ];
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
        assert_eq!(world.read("time_servers"), "10.77.0.123\n10.77.0.124\n");
        let name = format!("talos-{}", address.net.addr().to_string().replace('.', "-"));
        assert!(world.read("hosts").contains(&format!("{name}.example.org {name}\n")));
        assert_eq!(nix::unistd::gethostname().unwrap().to_str(), Some(name.as_str()));
        node.stop().await;
    });
}

/// The kernel says late, and of such a link never, that it runs; packets pass all the same.
#[test]
fn a_link_with_carrier_is_asked_on_before_the_kernel_says_that_it_runs() {
    in_namespaces("nwd-dormant", async |mut world| {
        ip(&format!("-n {}-node link set eth0 mode dormant", world.name));
        world.serve(RANGE, &[]);
        let node = world.start("", "");
        world.address_in("eth0", 100..=109).await;
        let link = world.link("eth0", orlop_netlink::Link::carries).await;
        assert!(!link.running(), "{link:?}");
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
fn a_server_that_was_gone_at_t1_finds_the_address_where_it_was() {
    in_namespaces("nwd-t1-t2", async |mut world| {
        world.serve(RANGE, &["--dhcp-option=option:T1,3", "--dhcp-option=option:T2,20"]);
        let node = world.start("", "");
        let first = world.address_in("eth0", 100..=109).await;
        world.stop_serving();
        // Who hears it asked at T1, in the server's place, and says nothing.
        let asked = respond(&world, |request| (request.ciaddr().is_unspecified()).then(Vec::new));
        until_done(asked).await;
        world.serve(RANGE, &[]);
        world.server.as_ref().unwrap().said("DHCPACK(srv0)", 1).await;
        assert_eq!(world.address_in("eth0", 100..=109).await.net, first.net);
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
