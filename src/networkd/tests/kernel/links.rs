//! Links that networkd makes.

use orlop_netlink::{Kind, Link};
use orlop_networkd::made::MARK;

use crate::world::{RANGE, in_namespaces, knows};

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
