use orlop_pki::cluster::{CLUSTER_CA, ClusterAuthority};
use orlop_proto::metropolis::proto::common::node_labels::Pair;
use orlop_proto::osbase::net::proto::{
    Bond, Device, IPv4Autoconfig, IPv6Autoconfig, Interface, Nameserver, Vlan, bond, interface,
};
use proptest::prelude::*;

use super::*;

fn sound_ca() -> Vec<u8> {
    let authority = ClusterAuthority::generate(CLUSTER_CA, std::time::SystemTime::now());
    authority.expect("an authority").der().to_vec()
}

fn register(ca: Vec<u8>) -> ClusterRegister {
    let address = |host: &str| cluster_directory::node::Address { host: host.to_owned() };
    let node = cluster_directory::Node {
        id: "metropolis-0123".to_owned(),
        addresses: vec![address("10.0.0.1"), address("fd00::1")],
    };
    ClusterRegister {
        cluster_directory: Some(ClusterDirectory { nodes: vec![node] }),
        register_ticket: vec![7; 34],
        ca_certificate: ca,
        labels: Some(NodeLabels {
            pairs: vec![Pair { key: "zone".to_owned(), value: "a".to_owned() }],
        }),
    }
}

fn bootstrap() -> ClusterBootstrap {
    ClusterBootstrap {
        owner_public_key: vec![3; 32],
        initial_cluster_configuration: None,
        labels: None,
    }
}

fn of(cluster: Option<Cluster>, network_config: Option<Net>) -> Message {
    Message { cluster, network_config }
}

fn refused(message: Message) -> String {
    NodeParameters::decode(&message.encode_to_vec()).expect_err("refused").to_string()
}

#[test]
fn what_was_written_is_read_as_it_was() {
    let net =
        Net { nameserver: vec![Nameserver { ip: "10.0.0.53".to_owned() }], interface: vec![] };
    for cluster in
        [Cluster::ClusterRegister(register(sound_ca())), Cluster::ClusterBootstrap(bootstrap())]
    {
        let message = of(Some(cluster), Some(net.clone()));
        let read = NodeParameters::decode(&message.encode_to_vec()).expect("parameters");
        assert_eq!(NodeParameters::decode(&read.encode()), Ok(read.clone()));
        match read.task {
            Task::Join(joining) => {
                assert_eq!(joining.ticket, [7; 34]);
                assert_eq!(
                    joining.directory[0].addresses[1],
                    "fd00::1".parse::<IpAddr>().expect("ip")
                );
                assert_eq!(joining.labels.pairs.len(), 1);
            }
            Task::Found(founding) => {
                assert_eq!(founding.owner, [3; 32]);
                assert_eq!(founding.configuration, default_configuration());
            }
        }
    }
}

#[test]
fn what_a_node_could_not_act_on_is_refused_with_the_field() {
    let joins = |change: fn(&mut ClusterRegister)| {
        let mut message = register(sound_ca());
        change(&mut message);
        refused(of(Some(Cluster::ClusterRegister(message)), None))
    };
    let founds = |change: fn(&mut ClusterBootstrap)| {
        let mut message = bootstrap();
        change(&mut message);
        refused(of(Some(Cluster::ClusterBootstrap(message)), None))
    };
    for (said, expected) in [
        (joins(|it| it.register_ticket.clear()), "cluster_register.register_ticket: it is empty"),
        (joins(|it| it.cluster_directory = None), "cluster_directory: it names no node"),
        (
            joins(|it| it.cluster_directory.as_mut().expect("one").nodes[0].addresses.clear()),
            "cluster_register.cluster_directory.nodes[0].addresses: there is none",
        ),
        (
            joins(|it| {
                it.cluster_directory.as_mut().expect("one").nodes[0].addresses[1].host =
                    "node-1.example.org".to_owned();
            }),
            "nodes[0].addresses: \"node-1.example.org\" is no IP address",
        ),
        (joins(|it| it.ca_certificate.truncate(20)), "ca_certificate: read certificate"),
        (joins(|it| it.ca_certificate.push(0)), "bytes follow its end"),
        (
            founds(|it| it.owner_public_key.truncate(31)),
            "owner_public_key: it has 31 bytes, not 32",
        ),
        (
            founds(|it| it.initial_cluster_configuration = Some(ClusterConfiguration::default())),
            "initial_cluster_configuration.cluster_domain: it is empty",
        ),
        (refused(Message::default()), "neither cluster_bootstrap nor cluster_register"),
        (refused_bytes(&[0xff]), "they are damaged"),
        (refused_bytes(&vec![0; SIZE_LIMIT + 1]), "more than 1048576 bytes"),
    ] {
        assert!(said.contains(expected), "{said}");
        assert!(said.ends_with("make them anew with `orlopctl cluster install-params`"), "{said}");
    }
}

fn refused_bytes(bytes: &[u8]) -> String {
    NodeParameters::decode(bytes).expect_err("refused").to_string()
}

#[test]
fn domains_are_dns_names_of_at_most_80_characters_that_do_not_end_in_a_number() {
    let long = format!("{}.{}", "a".repeat(63), "b".repeat(16));
    for sound in ["cluster.internal", "a", "x-1.example", "1.a", &long] {
        assert_eq!(check_domain(sound), Ok(()), "{sound}");
    }
    let (longer, part) = (format!("{long}c"), "a".repeat(64));
    for bad in [
        "", ".", "a.", "a..b", "A", "-a", "a-", "a_b", "80", "1.1", "a.0x1f", "a.0x", &longer,
        &part,
    ] {
        assert!(check_domain(bad).is_err(), "{bad}");
    }
}

#[test]
fn every_part_of_a_configuration_is_checked() {
    assert_eq!(configuration_problems(&default_configuration()), []);
    let bad = ClusterConfiguration {
        tpm_mode: 4,
        storage_security_policy: 0,
        ..ClusterConfiguration::default()
    };
    let fields: Vec<_> = configuration_problems(&bad).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["cluster_domain", "tpm_mode", "storage_security_policy"]);
}

fn named(name: &str) -> Interface {
    Interface { name: name.to_owned(), ..Interface::default() }
}

fn with_network(interface: Vec<Interface>) -> Message {
    let net = Net { interface, nameserver: vec![Nameserver { ip: "10.0.0.53".to_owned() }] };
    of(Some(Cluster::ClusterBootstrap(bootstrap())), Some(net))
}

#[test]
fn a_static_network_is_a_machines_network() {
    let device = Interface {
        r#type: Some(interface::Type::Device(Device {
            hardware_address: "52:54:00:AA:BB:CC".to_owned(),
            ..Device::default()
        })),
        ipv4_autoconfig: Some(IPv4Autoconfig {}),
        ipv6_autoconfig: Some(IPv6Autoconfig { privacy: 2 }),
        ..named("lan")
    };
    let bonded = Interface {
        r#type: Some(interface::Type::Bond(Bond {
            member_interface: vec!["eth1".to_owned(), "eth2".to_owned()],
            mode: Some(bond::Mode::Lacp(bond::Lacp { rate: 1, ..bond::Lacp::default() })),
            transmit_hash_policy: 1,
            ..Bond::default()
        })),
        mtu: 9000,
        ..named("bond0")
    };
    let vlan = Interface {
        r#type: Some(interface::Type::Vlan(Vlan {
            parent: "bond0".to_owned(),
            id: 12,
            protocol: 0,
        })),
        address: vec!["10.1.0.5/24".to_owned()],
        route: vec![interface::Route {
            destination: "0.0.0.0/0".to_owned(),
            gateway_ip: "10.1.0.1".to_owned(),
            metric: 5,
            ..interface::Route::default()
        }],
        ..named("storage")
    };
    let bytes = with_network(vec![vlan, device, bonded]).encode_to_vec();
    let parameters = NodeParameters::decode(&bytes).expect("parameters");
    let (network, left_out) = parameters.network().expect("sound").expect("there is one");
    assert_eq!(left_out.len(), 2, "{left_out:?}");
    let yaml = network.to_yaml();
    for part in [
        "permanentAddr: 52:54:00:aa:bb:cc",
        "dhcp: true",
        "acceptRA: true",
        "mode: 802.3ad",
        "lacpRate: fast",
        "xmitHashPolicy: layer3+4",
        "mtu: 9000",
        "vlanId: 12",
        "10.1.0.5/24",
        "gateway: 10.1.0.1",
        "metric: 5",
        "10.0.0.53",
    ] {
        assert!(yaml.contains(part), "{part} in\n{yaml}");
    }
}

#[test]
fn a_network_that_cannot_be_is_refused_with_the_field() {
    let address = Interface { address: vec!["10.1.0.5".to_owned()], ..named("eth0") };
    let vlan = |id, protocol| Interface {
        r#type: Some(interface::Type::Vlan(Vlan { parent: "eth0".to_owned(), id, protocol })),
        ..Interface::default()
    };
    let counted = Interface {
        r#type: Some(interface::Type::Device(Device { index: 1, ..Device::default() })),
        ..Interface::default()
    };
    for (interface, expected) in [
        (address, "network_config.interface[0].address[0]: \"10.1.0.5\" is not one"),
        (vlan(70_000, 0), "vlan.id: 70000 is out of range"),
        (vlan(5_000, 0), "vlanId"),
        (vlan(5, 1), "only 802.1Q"),
        (counted, "not by a number"),
        (Interface { mtu: 5, ..named("eth0") }, "mtu"),
    ] {
        let said = refused(with_network(vec![interface]));
        assert!(said.contains(expected), "{said}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_come_back(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(read) = NodeParameters::decode(&bytes) {
            prop_assert_eq!(NodeParameters::decode(&read.encode()), Ok(read));
        }
    }
}
