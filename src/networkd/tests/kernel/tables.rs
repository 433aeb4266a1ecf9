//! What configuration and kernel arguments say, in the kernel's tables and over the API.

use std::process::Command;
use std::time::Duration;

use orlop_netlink::Protocol;
use orlop_proto::network::network_service_client::NetworkServiceClient;
use orlop_proto::network::{AddressFamily, Interface, Route, RouteProtocol};
use orlop_proto::orlop::inside::News;
use orlop_proto::orlop::inside::network_news_client::NetworkNewsClient;
use orlop_rpc::unix;
use tonic::Streaming;

use crate::world::{LIMIT, RANGE, in_namespaces, ip};

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
fn every_field_of_links_and_routes_is_shown() {
    in_namespaces("nwd-fields", async |mut world| {
        let here = format!("-n {}-node", world.name);
        ip(&format!("{here} link set eth0 address 02:00:00:00:77:01"));
        ip(&format!("{here} link add spare address 02:00:00:00:77:02 type veth peer name spare1"));
        let config = "\
interfaces:
- interface: eth0
  mtu: 1400
  addresses: [10.77.0.8/24, 'fd77::8/64']
  routes:
  - {network: 0.0.0.0/0, gateway: 10.77.0.1}
  - {network: 10.80.0.0/16, gateway: 10.77.0.1, metric: 50, table: 100}
  - {network: 10.81.0.0/16, type: blackhole}
  - {network: '::/0', gateway: 'fd77::1'}
";
        let node = world.start("", config);
        world.ready().await;
        let client = NetworkServiceClient::new(unix::channel(world.path("networkd.sock")));
        let interfaces = async || {
            let answer = client.clone().interfaces(()).await.unwrap().into_inner();
            let [message] = &answer.messages[..] else { panic!("{answer:?}") };
            assert_eq!(message.metadata, None, "apid says who answered");
            let mut interfaces = message.interfaces.clone();
            interfaces.iter_mut().for_each(|link| link.ipaddress.sort());
            interfaces
        };
        let interface = |name: &str, mac: &str, mtu, flags, addresses: &[&str]| Interface {
            index: index(world.name, name),
            mtu,
            name: name.to_owned(),
            hardwareaddr: mac.to_owned(),
            flags,
            ipaddress: addresses.iter().map(|&address| address.to_owned()).collect(),
        };
        let all = ["10.77.0.8/24", "fd77::8/64", "fe80::ff:fe00:7701/64"];
        // Up, broadcast 2, loopback 4, multicast 16.
        let links = [
            interface("lo", "", 65536, 1 | 4, &["127.0.0.1/8", "::1/128"]),
            interface("eth0", "02:00:00:00:77:01", 1400, 1 | 2 | 16, &all),
            interface("spare", "02:00:00:00:77:02", 1500, 2 | 16, &[]),
        ];
        for link in links {
            world.until(async || interfaces().await.contains(&link).then_some(())).await;
        }

        let route = |destination: &str, via: &str, metric| Route {
            interface: "eth0".to_owned(),
            destination: destination.to_owned(),
            gateway: via.to_owned(),
            metric,
            scope: 0,
            source: "10.77.0.8".to_owned(),
            family: AddressFamily::AfInet.into(),
            protocol: RouteProtocol::RtprotStatic.into(),
            flags: 0,
        };
        let kernel = RouteProtocol::RtprotKernel.into();
        let v6 = AddressFamily::AfInet6.into();
        let nowhere = Route {
            interface: String::new(),
            source: String::new(),
            ..route("10.81.0.0/16", "", 10)
        };
        let routes = [
            route("0.0.0.0/0", "10.77.0.1/32", 10),
            route("10.80.0.0/16", "10.77.0.1/32", 50),
            nowhere,
            Route { source: "fd77::8".to_owned(), family: v6, ..route("::/0", "fd77::1/32", 10) },
            Route { scope: 253, protocol: kernel, ..route("10.77.0.0/24", "", 0) },
            Route { scope: 254, protocol: kernel, ..route("10.77.0.8/32", "", 0) },
        ];
        let shown = async || {
            let answer = client.clone().routes(()).await.unwrap().into_inner();
            let [message] = &answer.messages[..] else { panic!("{answer:?}") };
            message.routes.clone()
        };
        for route in routes {
            world.until(async || shown().await.contains(&route).then_some(())).await;
        }
        node.stop().await;
    });
}

/// A link's number, as ip(8) has it.
fn index(world: &str, link: &str) -> u32 {
    let line = Command::new("ip")
        .args(["-n", &format!("{world}-node"), "-o", "link", "show", link])
        .output()
        .unwrap();
    let line = String::from_utf8(line.stdout).unwrap();
    line.split(':').next().unwrap().parse().unwrap()
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
        // It is gone when this returns, and networkd runs in this thread: not before we wait.
        ip(&format!("{here} address del {} dev eth0", address.net));
        world.address_in("eth0", 100..=109).await;
        assert_eq!(world.default_route().await.1, 1024);
        node.stop().await;
    });
}

/// Reads the news until one is as `good` wants it; all changes up to then, as text.
async fn told(news: &mut Streaming<News>, good: impl Fn(&News, &[String]) -> bool) -> Vec<String> {
    let mut changes = Vec::new();
    let reading = async {
        loop {
            let one = news.message().await.unwrap().expect("networkd goes on");
            let event = one.event.clone().unwrap_or_default();
            changes.extend(event.changes.iter().map(|change| format!("{change:?}")));
            if good(&one, &changes) {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await.unwrap_or_else(|_| panic!("{changes:#?}"));
    changes
}

#[test]
fn what_changes_is_told() {
    in_namespaces("nwd-news", async |mut world| {
        let config = "hostname: n1\ninterfaces: [{interface: eth0, cidr: 10.77.0.8/24}]\n";
        let node = world.start("", config);
        world.ready().await;
        let mut client = NetworkNewsClient::new(unix::channel(world.path("networkd.sock")));
        let mut news = client.follow(()).await.unwrap().into_inner();
        told(&mut news, |one, _| one.hostname == "n1" && one.addresses == ["10.77.0.8"]).await;

        let here = format!("-n {}-node", world.name);
        let told_of = async |news: &mut Streaming<News>, action: &str| {
            let all = |_: &News, changes: &[String]| {
                let of = |what: &str| {
                    changes.iter().any(|change| change.contains(action) && change.contains(what))
                };
                of("link: \"eth0\", address: \"10.88.0.1/24\"")
                    && of("link: \"eth0\", destination: \"10.88.0.0/24\"")
            };
            told(news, all).await;
        };
        ip(&format!("{here} address add 10.88.0.1/24 dev eth0"));
        told_of(&mut news, "Added").await;
        ip(&format!("{here} address del 10.88.0.1/24 dev eth0"));
        told_of(&mut news, "Removed").await;

        world.on_server("link set srv0 down");
        let lost = |_: &News, changes: &[String]| {
            let mut of_link = changes.iter().filter(|change| change.contains("name: \"eth0\""));
            of_link.next_back().is_some_and(|last| last.contains("carrier: false"))
        };
        told(&mut news, lost).await;
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
