//! Tables: settings, links and leases on one side, what shall be done on the other.

use orlop_netlink::Mac;

use super::*;
use crate::advertisement::Advertisement;
use crate::machine::Times;

const NOW: Uptime = Duration::from_secs(1000);
const UP: u32 = 0x1;
const LOOPBACK: u32 = 0x8;

fn link(index: u32, name: &str, flags: u32) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mtu: 1500,
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        flags,
        carrier_ups: 1,
        ..Link::default()
    }
}

fn lo() -> Link {
    Link { mtu: 65536, ..link(1, "lo", LOOPBACK) }
}

fn links() -> Vec<Link> {
    vec![lo(), link(2, "eth0", UP), link(3, "ens4", 0), link(4, "wlan0", 0), link(5, "bond0", 0)]
}

fn lease() -> Lease {
    Lease {
        address: "10.0.2.15/24".parse().unwrap(),
        server: Ipv4Addr::new(10, 0, 2, 2),
        routes: vec![(Ipv4Net::default(), Some(Ipv4Addr::new(10, 0, 2, 2)))],
        dns: vec![Ipv4Addr::new(10, 0, 2, 3)],
        ntp: vec![],
        host_name: None,
        domain: None,
        search: vec![],
        mtu: Some(1400),
        times: Some(Times {
            renew_at: NOW + Duration::from_secs(50),
            rebind_at: NOW + Duration::from_secs(80),
            expires_at: NOW + Duration::from_secs(100),
        }),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn by_name(settings: &Settings) -> BTreeMap<String, Intent> {
    let links = links();
    let intents = intents(settings, &links).into_iter();
    let name = |index| links.iter().find(|link| link.index == index).unwrap().name.clone();
    intents.map(|(index, intent)| (name(index), intent)).collect()
}

fn settings(name: &str, intent: Intent) -> Settings {
    Settings { interfaces: [(name.to_owned(), intent)].into(), ..Settings::default() }
}

fn static_intent() -> Intent {
    Intent {
        addresses: vec![net("10.0.2.77/24")],
        routes: vec![StaticRoute::new(net("0.0.0.0/0"), "10.0.2.2".parse().ok(), 10)],
        ..Intent::default()
    }
}

#[test]
fn links_that_nobody_names_are_chosen_by_name() {
    let chosen = by_name(&Settings::default());
    assert_eq!(chosen.keys().collect::<Vec<_>>(), ["ens4", "eth0", "lo"]);
    assert_eq!(chosen["eth0"], Intent::dhcp());
    assert_eq!(
        (&chosen["lo"].addresses[..], chosen["lo"].mtu),
        (&[net("127.0.0.1/8")][..], Some(65536))
    );
}

#[test]
fn a_port_of_a_bridge_gets_no_address() {
    let port = Link { master: Some(9), ..link(2, "eth0", UP) };
    assert!(intents(&Settings::default(), &[port]).is_empty());
}

#[test]
fn what_is_ignored_is_left_alone_whoever_else_names_it() {
    let kernel =
        Settings { ignored: ["eth0".to_owned()].into(), ..settings("eth0", Intent::dhcp()) };
    assert!(!by_name(&kernel).contains_key("eth0"));
    let configured = settings("eth0", Intent { ignore: true, ..static_intent() });
    assert!(!by_name(&configured).contains_key("eth0"));
}

#[test]
fn the_ip_argument_and_the_configuration_add_up() {
    let kernel = |device: Option<&str>| KernelIntent {
        device: device.map(str::to_owned),
        intent: static_intent(),
    };
    let more = Intent { addresses: vec![net("10.1.0.1/16")], mtu: Some(9000), ..Intent::default() };
    let settings = Settings { kernel: vec![kernel(Some("ens4"))], ..settings("ens4", more) };
    let chosen = &by_name(&settings)["ens4"];
    assert_eq!(chosen.addresses, [net("10.0.2.77/24"), net("10.1.0.1/16")]);
    assert_eq!((chosen.dhcp, chosen.mtu), (None, Some(9000)));

    let settings = Settings { kernel: vec![kernel(None)], ..Settings::default() };
    assert_eq!(by_name(&settings)["eth0"], static_intent(), "the first that is not loopback");
}

#[test]
fn a_configured_link_may_have_any_name() {
    let chosen = by_name(&settings("wlan0", Intent::dhcp()));
    assert_eq!(chosen["wlan0"], Intent::dhcp());
}

/// What is to be done on eth0 with this intent and lease, when the kernel shows that.
fn operations(intent: &Intent, lease: Option<Lease>, observed: &Observed) -> Vec<Operation> {
    let intents = [(2, intent.clone())].into();
    let leases = lease.into_iter().map(|lease| (2, lease)).collect();
    difference(&Desired::new(&intents, &leases, NOW), observed)
}

fn observed(link: Link, addresses: &[Address], routes: &[Route]) -> Observed {
    Observed {
        links: vec![link],
        addresses: addresses.to_vec(),
        routes: routes.to_vec(),
        ..Observed::default()
    }
}

fn lease_address(valid_secs: u64) -> Address {
    Address {
        index: 2,
        net: net("10.0.2.15/24"),
        protocol: Protocol::DHCP,
        valid: Some(Duration::from_secs(valid_secs)),
    }
}

fn lease_route() -> Route {
    let via = Some("10.0.2.2".parse().unwrap());
    Route {
        source: Some("10.0.2.15".parse().unwrap()),
        ..Route::through(2, net("0.0.0.0/0"), via, 1024, Protocol::DHCP)
    }
}

#[test]
fn a_fresh_link_is_brought_up_before_a_server_can_be_asked() {
    let fresh = observed(link(2, "eth0", 0), &[], &[]);
    assert_eq!(operations(&Intent::dhcp(), None, &fresh), [Operation::SetUp(2)]);
}

#[test]
fn a_lease_becomes_mtu_address_and_route_in_this_order_and_then_nothing() {
    let up = observed(link(2, "eth0", UP), &[], &[]);
    let steps = [
        Operation::SetMtu(2, 1400),
        Operation::PutAddress(lease_address(100)),
        Operation::AddRoute(lease_route()),
    ];
    assert_eq!(operations(&Intent::dhcp(), Some(lease()), &up), steps);
    let done =
        observed(Link { mtu: 1400, ..link(2, "eth0", UP) }, &[lease_address(99)], &[lease_route()]);
    assert_eq!(operations(&Intent::dhcp(), Some(lease()), &done), []);
}

#[test]
fn the_configured_mtu_beats_the_servers() {
    let intent = Intent { mtu: Some(9000), ..Intent::dhcp() };
    let up = observed(link(2, "eth0", UP), &[], &[]);
    assert_eq!(operations(&intent, Some(lease()), &up)[0], Operation::SetMtu(2, 9000));
}

#[test]
fn a_renewed_lease_only_changes_the_lifetime() {
    let old =
        observed(Link { mtu: 1400, ..link(2, "eth0", UP) }, &[lease_address(50)], &[lease_route()]);
    assert_eq!(
        operations(&Intent::dhcp(), Some(lease()), &old),
        [Operation::PutAddress(lease_address(100))]
    );
}

#[test]
fn without_lease_what_came_with_it_goes_and_nothing_else() {
    let foreign =
        Address { protocol: Protocol::UNSPECIFIED, net: net("10.5.0.1/16"), ..lease_address(9) };
    let other_link = Address { index: 7, ..lease_address(9) };
    let static_route = Route { metric: 5, protocol: Protocol::STATIC, ..lease_route() };
    let there = observed(
        link(2, "eth0", UP),
        &[lease_address(9), foreign, other_link],
        &[lease_route(), static_route],
    );
    let gone = [Operation::RemoveRoute(lease_route()), Operation::RemoveAddress(lease_address(9))];
    assert_eq!(operations(&Intent::dhcp(), None, &there), gone);
    let expired =
        Lease { times: Some(Times { renew_at: NOW, rebind_at: NOW, expires_at: NOW }), ..lease() };
    assert_eq!(operations(&Intent::dhcp(), Some(expired), &there), gone);
}

#[test]
fn a_gateway_outside_the_network_is_declared_to_be_on_the_link() {
    let up = observed(link(2, "eth0", UP), &[], &[]);
    let added = |lease: Lease| -> Vec<_> {
        operations(&Intent::dhcp(), Some(lease), &up)
            .into_iter()
            .filter_map(|operation| match operation {
                Operation::AddRoute(route) => Some((route.destination, route.flags != 0)),
                _ => None,
            })
            .collect()
    };
    let narrow = Lease { address: "10.0.2.15/32".parse().unwrap(), ..lease() };
    assert_eq!(added(narrow.clone()), [(net("0.0.0.0/0"), true)]);

    // As on GCP: the way to the gateway is a route of its own, and comes first.
    let mut routes = narrow.routes.clone();
    routes.push(("10.0.2.2/32".parse().unwrap(), None));
    let with_way = Lease { routes, ..narrow };
    assert_eq!(added(with_way), [(net("10.0.2.2/32"), false), (net("0.0.0.0/0"), false)]);
}

#[test]
fn static_addresses_and_routes_are_set_once() {
    let up = link(2, "eth0", UP);
    let steps = operations(&static_intent(), None, &observed(up.clone(), &[], &[]));
    let [Operation::PutAddress(address), Operation::AddRoute(route)] = &steps[..] else {
        panic!("{steps:?}")
    };
    assert_eq!((address.net, address.valid), (net("10.0.2.77/24"), None));
    assert_eq!((route.metric, route.source), (10, Some("10.0.2.77".parse().unwrap())));
    let done = observed(up, std::slice::from_ref(address), std::slice::from_ref(route));
    assert_eq!(operations(&static_intent(), None, &done), []);
}

#[test]
fn a_static_route_beside_dhcp_waits_for_the_way_to_its_gateway() {
    let intent = Intent { addresses: vec![], ..static_intent() };
    let intent = Intent { dhcp: Some(Dhcp::default()), ..intent };
    let up = observed(Link { mtu: 1400, ..link(2, "eth0", UP) }, &[], &[]);
    assert_eq!(operations(&intent, None, &up), []);
    let metrics: Vec<_> = operations(&intent, Some(lease()), &up)
        .into_iter()
        .filter_map(|operation| match operation {
            Operation::AddRoute(route) => Some(route.metric),
            _ => None,
        })
        .collect();
    assert_eq!(metrics, [10, 1024]);
}

#[test]
fn a_link_that_vanished_is_not_configured() {
    let gone = Observed::default();
    assert_eq!(operations(&static_intent(), Some(lease()), &gone), []);
}

#[test]
fn a_link_is_configured_when_its_addresses_are_there() {
    let is = |intent: &Intent, lease: Option<Lease>, addresses: &[Address]| {
        let leases = lease.into_iter().map(|lease| (2, lease)).collect();
        let desired = Desired::new(&[(2, intent.clone())].into(), &leases, NOW);
        configured(2, &desired, &observed(link(2, "eth0", UP), addresses, &[]), intent)
    };
    assert!(!is(&Intent::dhcp(), None, &[]));
    assert!(!is(&Intent::dhcp(), Some(lease()), &[]));
    assert!(is(&Intent::dhcp(), Some(lease()), &[lease_address(90)]));
    assert!(is(&Intent::default(), None, &[]), "up, and that is all");
}

#[test]
fn names_and_resolvers_come_from_the_first_interface_and_from_all() {
    let chosen = |settings: &Settings, leases: &[(u32, Lease)]| {
        let leases = leases.iter().cloned().collect();
        let names = names(
            settings,
            &intents(settings, &links()),
            &leases,
            &BTreeMap::new(),
            &BTreeMap::new(),
            &links(),
        );
        let resolvers: Vec<_> = names.resolvers.iter().map(ToString::to_string).collect();
        (names.identity.host_name, resolvers.join(" "))
    };
    let named = Lease {
        host_name: Some("n1".to_owned()),
        dns: vec![Ipv4Addr::new(10, 9, 9, 9)],
        ..lease()
    };
    let nothing = Settings::default();
    let says = |name: &str, resolvers: &str| (name.to_owned(), resolvers.to_owned());
    assert_eq!(chosen(&nothing, &[]), says("talos-127-0-1-1", "1.1.1.1 8.8.8.8"));
    assert_eq!(chosen(&nothing, &[(2, lease())]), says("talos-10-0-2-15", "10.0.2.3"));
    // ens4 sorts before eth0.
    assert_eq!(
        chosen(&nothing, &[(2, lease()), (3, named.clone())]),
        says("n1", "10.9.9.9 10.0.2.3")
    );
    let resolvers = vec!["10.8.8.8".parse().unwrap()];
    let own = Settings { host_name: Some("n2".to_owned()), resolvers, ..Settings::default() };
    assert_eq!(chosen(&own, &[]), says("n2", "10.8.8.8"));
    assert_eq!(chosen(&own, &[(2, named)]), says("n2", "10.9.9.9"), "a lease's win");
}

#[test]
fn what_routers_say_comes_after_the_lease_of_the_same_link() {
    let mut heard = Learned::default();
    let advertisement = Advertisement {
        resolvers: vec![("fd00::53".parse().unwrap(), 600)],
        search: vec![("a.org".to_owned(), 600), ("b.org".to_owned(), 600)],
        ..Advertisement::default()
    };
    heard.take(NOW, &advertisement);
    let lease =
        Lease { domain: Some("own.org".to_owned()), search: vec!["b.org".to_owned()], ..lease() };
    let settings = Settings::default();
    let intents = intents(&settings, &links());
    let learned = BTreeMap::from([(2, heard.clone()), (4, heard)]);
    let other =
        machine6::Lease { dns: vec!["fd00::54".parse().unwrap()], ..machine6::Lease::default() };
    let leases6 = [(2, other)].into();
    let names = names(&settings, &intents, &[(2, lease)].into(), &leases6, &learned, &links());
    let resolvers =
        ["10.0.2.3", "fd00::54", "fd00::53"].map(|text| text.parse::<IpAddr>().unwrap());
    assert_eq!(names.resolvers, resolvers);
    assert_eq!(names.search, ["own.org", "b.org", "a.org"]);
}

#[test]
fn an_address_of_a_dhcpv6_server_stands_alone_and_ends_with_its_lease() {
    let held =
        machine6::Held::until("fd00::5".parse().unwrap(), NOW, NOW + Duration::from_secs(100));
    let lease = machine6::Lease { address: Some(held), ..machine6::Lease::default() };
    let leases = [(2, lease.clone()), (7, lease)].into();
    let at = |now| {
        let desired = Desired::new(&[(2, Intent::dhcp())].into(), &BTreeMap::new(), now);
        desired.with_leases6(&leases, now).addresses
    };
    let address = Address {
        index: 2,
        net: net("fd00::5/128"),
        protocol: Protocol::DHCP,
        valid: Some(Duration::from_secs(100)),
    };
    assert_eq!(at(NOW), [address]);
    assert_eq!(at(NOW + Duration::from_secs(100)), []);
}
