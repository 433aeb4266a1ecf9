//! IPv6: routers and DHCPv6 servers.

use std::time::Duration;

use orlop_netlink::{Address, Protocol};

use crate::world::{LIMIT, RANGE, in_namespaces};

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
