//! Routes, rules, neighbours and routing domains; and that nothing of it is lost on the way.

use std::time::Duration;

use orlop_netlink::{Action, Link, Mac, Protocol, Route, Rule, Table};

use crate::world::{Exchange, LIMIT, RANGE, World, in_namespaces, ip, knows};

const CONFIG: &str = "\
interfaces:
- interface: eth0
  cidr: 10.77.0.8/24
  addresses: [10.77.0.9/24]
  acceptRA: false
  neighbors: [{ip: 10.77.0.66, hardwareAddr: '02:00:00:00:00:66'}]
  routes:
  - {network: 10.78.0.0/16, gateway: 10.77.0.1, source: 10.77.0.9, mtu: 1280, table: 100}
  - {network: 10.79.0.0/16, type: blackhole}
  - {network: 10.80.0.0/16, type: unreachable, table: 100}
rules:
- {priority: 100, src: 10.77.0.9/32, table: 100}
- {priority: 101, fwMark: 5, fwMask: 0xff, iifName: lo, action: prohibit}
";

impl World {
    /// Waits for something that the kernel does not tell of.
    async fn poll<T>(&self, look: impl AsyncFn() -> Option<T>) -> T {
        let found = async {
            let mut poll = tokio::time::interval(Duration::from_millis(5));
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                poll.tick().await;
            }
        };
        tokio::time::timeout(LIMIT, found).await.expect("it should have come to pass")
    }

    async fn route(&self, to: &str) -> Option<Route> {
        let to = to.parse().unwrap();
        let routes = self.netlink.routes().await.unwrap();
        routes.into_iter().find(|route| route.destination == to)
    }

    async fn ours(&self) -> Vec<Rule> {
        let mut rules = self.netlink.rules().await.unwrap();
        rules.retain(|rule| rule.protocol == Protocol::CONFIGURED);
        rules
    }

    async fn neighbour(&self, mac: Mac) -> Option<()> {
        let neighbours = self.netlink.neighbours().await.unwrap();
        neighbours.iter().any(|neighbour| neighbour.mac == mac).then_some(())
    }

    /// Waits until all of `CONFIG` is there.
    async fn complete(&self) {
        self.poll(async || self.route("10.78.0.0/16").await).await;
        self.poll(async || self.route("10.79.0.0/16").await).await;
        self.poll(async || self.route("10.80.0.0/16").await).await;
        self.poll(async || (self.ours().await.len() == 3).then_some(())).await;
        self.poll(async || self.neighbour(Mac([2, 0, 0, 0, 0, 0x66])).await).await;
    }
}

#[test]
fn routes_rules_and_neighbours_are_set_put_right_and_taken_back() {
    in_namespaces("nwd-routing", async |mut world| {
        let node = world.start("", CONFIG);
        world.ready().await;
        world.complete().await;
        let far = world.route("10.78.0.0/16").await.unwrap();
        assert_eq!((far.table, far.mtu), (Table(100), Some(1280)));
        assert_eq!(far.source, "10.77.0.9".parse().ok());
        assert_eq!(world.route("10.79.0.0/16").await.unwrap().kind, 6);
        assert_eq!(world.route("10.80.0.0/16").await.unwrap().kind, 7);
        let rules = world.ours().await;
        // What has no address is for both families.
        let mut seen: Vec<_> = rules.iter().map(|rule| (rule.priority, rule.ipv4)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [(100, true), (101, false), (101, true)]);
        let table = rules.iter().find(|rule| rule.priority == 100).unwrap();
        assert_eq!(table.action, Action::Lookup(Table(100)));
        let believed = std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra");
        assert!(believed.is_err() || believed.is_ok_and(|text| text.trim() == "0"));

        let here = format!("-n {}-node", world.name);
        for change in [
            "route del 10.78.0.0/16 table 100",
            "route del blackhole 10.79.0.0/16",
            "rule del priority 100",
            "-6 rule del priority 101",
            "neigh del 10.77.0.66 dev eth0",
            // Somebody else's.
            "rule add priority 7 iif lo table 7",
            "route add 10.90.0.0/16 via 10.77.0.1",
        ] {
            ip(&format!("{here} {change}"));
        }
        world.complete().await;
        ip(&format!("{here} neigh replace 10.77.0.66 lladdr 02:00:00:00:00:67 dev eth0"));
        world.complete().await;
        node.stop().await;

        let node = world.start("", "interfaces: [{interface: eth0, cidr: 10.77.0.8/24}]\n");
        world.poll(async || world.ours().await.is_empty().then_some(())).await;
        for gone in ["10.78.0.0/16", "10.79.0.0/16", "10.80.0.0/16"] {
            world.poll(async || world.route(gone).await.is_none().then_some(())).await;
        }
        let mac = Mac([2, 0, 0, 0, 0, 0x66]);
        world.poll(async || world.neighbour(mac).await.is_none().then_some(())).await;
        assert!(world.route("10.90.0.0/16").await.is_some(), "it is not ours");
        let rules = world.netlink.rules().await.unwrap();
        assert!(rules.iter().any(|rule| rule.priority == 7), "it is not ours");
        node.stop().await;
    });
}

#[test]
fn no_packet_is_lost_over_restarts() {
    in_namespaces("nwd-lossless", async |mut world| {
        world.serve(RANGE, &[]);
        // One link with a lease, and one with all that can be configured.
        world.on_server("link add eth1 type veth peer name srv1");
        world.on_server("address add 10.88.0.1/24 dev srv1");
        world.on_server("link set srv1 up");
        world.on_server(&format!("link set eth1 netns {}-node", world.name));
        let config = "\
interfaces:
- interface: eth1
  cidr: 10.88.0.8/24
  routes: [{network: 10.89.0.0/16, gateway: 10.88.0.1, table: 100}]
rules: [{priority: 100, dst: 10.89.0.0/16, table: 100}]
";
        world.on_server("address add 10.89.0.1/16 dev srv1");
        let node = world.start("", config);
        world.address_in("eth0", 100..=109).await;
        world.poll(async || world.route("10.89.0.0/16").await).await;
        world.poll(async || (world.ours().await.len() == 1).then_some(())).await;
        let leased = Exchange::start(&world, "10.77.0.1");
        let routed = Exchange::start(&world, "10.89.0.1");
        let mut node = node;
        for _ in 0..3 {
            for exchange in [&leased, &routed] {
                exchange.goes_on(50).await;
            }
            node.stop().await;
            for exchange in [&leased, &routed] {
                exchange.goes_on(50).await;
            }
            node = world.start("", config);
            world.ready().await;
        }
        for exchange in [leased, routed] {
            exchange.goes_on(50).await;
            exchange.end();
        }
        node.stop().await;
    });
}

#[test]
fn a_link_is_found_by_what_it_is() {
    in_namespaces("nwd-selector", async |mut world| {
        let here = format!("-n {}-node", world.name);
        ip(&format!("{here} link set eth0 address 02:00:00:00:77:01"));
        let config = "\
interfaces:
- deviceSelector: {hardwareAddr: '02:00:00:00:77:*', physical: false}
  cidr: 10.77.0.8/24
- deviceSelector: {busPath: nowhere}
  cidr: 10.77.0.9/24
";
        let node = world.start("", config);
        world.ready().await;
        world.address_in("eth0", 8..=8).await;
        node.stop().await;
    });
}

#[test]
fn a_routing_domain_has_its_links_and_their_routes() {
    in_namespaces("nwd-vrf", async |mut world| {
        if !knows(&world, "type vrf table 9") {
            return;
        }
        let config = "\
interfaces:
- interface: blue
  vrf: {interfaces: [eth0], table: 200}
- interface: eth0
  cidr: 10.77.0.8/24
  routes: [{network: 10.78.0.0/16, gateway: 10.77.0.1}]
";
        let node = world.start("", config);
        world.link("blue", Link::up).await;
        world.address_in("eth0", 8..=8).await;
        let route = world
            .poll(async || {
                let routes = world.netlink.routes().await.unwrap();
                let to = "10.78.0.0/16".parse().unwrap();
                routes.into_iter().find(|r| r.destination == to && r.table == Table(200))
            })
            .await;
        assert_eq!(route.gateway, "10.77.0.1".parse().ok());
        let blue = world.link("blue", |_| true).await.index;
        assert_eq!(world.link("eth0", |_| true).await.master, Some(blue));
        node.stop().await;

        // A link leaves it, and it goes, with what was in its table.
        let node = world.start("", "interfaces: [{interface: eth0, cidr: 10.77.0.8/24}]\n");
        world.link("eth0", |link| link.master.is_none()).await;
        world.address_in("eth0", 8..=8).await;
        let gone = async || !world.netlink.links().await.unwrap().iter().any(|l| l.name == "blue");
        world.poll(async || gone().await.then_some(())).await;
        node.stop().await;
    });
}
