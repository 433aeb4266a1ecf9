//! What configuration and kernel arguments say, in the kernel's tables and over the API.

use std::time::Duration;

use orlop_netlink::Protocol;
use orlop_proto::network::network_service_client::NetworkServiceClient;
use orlop_rpc::unix;

use crate::world::{RANGE, in_namespaces, ip};

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
