//! What the operator said, as [`plan`](crate::plan) wants it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use orlop_config::Problems;
use orlop_config::cmdline::{self, Cmdline, Ip, VlanArgument};
use orlop_config::machine::{Bridge, Interface, Network, Resolver, Route, Rule, Vlan};
use orlop_netlink::{Action, IpNet, Ipv4Net, Ipv6Net, Protocol, Table};
use tracing::warn;

use crate::made::Make;
use crate::names::{self, HostEntry};
use crate::plan::{Dhcp, Intent, KernelIntent, Settings, StaticRoute};
use crate::resolver;
use crate::selectors::Selected;
use crate::wireguard;

/// Why the settings cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The configuration is wrong.
    #[error("read the network configuration {}", path.display())]
    Config {
        /// Where it stands.
        path: PathBuf,
        /// All that is wrong with it.
        #[source]
        source: Problems,
    },
}

/// Reads the configuration (an absent file is an empty one) and the kernel's arguments.
///
/// # Errors
/// When a file cannot be read, or the configuration is wrong.
pub fn read(config: &Path, cmdline: &Path) -> Result<Settings, Error> {
    let text = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })
    };
    let mut settings = from_kernel(&cmdline::parse(&text(cmdline)?));
    if config.exists() {
        let network = Network::parse(&text(config)?)
            .map_err(|source| Error::Config { path: config.to_owned(), source })?;
        add_config(&mut settings, network);
    }
    Ok(settings)
}

/// Adds what `machine.network` says; where both say something, it has the last word.
pub fn add_config(settings: &mut Settings, network: Network) {
    for mut interface in network.interfaces {
        match interface.device_selector.take() {
            Some(selector) => settings.selected.push(Selected { selector, interface }),
            None => add_interface(&mut settings.interfaces, interface),
        }
    }
    settings.rules = network.rules.iter().flat_map(rules).collect();
    if let Some(name) = network.hostname.as_deref().and_then(host_name) {
        settings.host_name = Some(name);
    }
    settings.resolvers = network.nameservers;
    settings.search = network.search_domains.iter().filter_map(|name| host_name(name)).collect();
    settings.search_not_our_own = network.disable_search_domain;
    settings.resolver = network.resolver.filter(|resolver| resolver.enabled).map(from_resolver);
    settings.extra_hosts.extend(network.extra_host_entries.into_iter().filter_map(|entry| {
        let names = entry.aliases.iter().filter_map(|alias| host_name(alias)).collect();
        Some(HostEntry { address: entry.ip?, names })
    }));
}

fn from_resolver(resolver: Resolver) -> resolver::Settings {
    let tls = resolver.tls.into_iter().filter_map(|tls| {
        let address = SocketAddr::new(tls.address?, tls.port.unwrap_or(resolver::TLS_PORT));
        let server = resolver::Server { address, tls: Some(tls.name.into()) };
        Some(resolver::TlsServer { server, ca: tls.ca })
    });
    resolver::Settings { tls: tls.collect() }
}

/// Adds a section to what others say of the same link, and of its VLANs.
pub(crate) fn add_interface(interfaces: &mut BTreeMap<String, Intent>, interface: Interface) {
    for vlan in &interface.vlans {
        let name = format!("{}.{}", interface.interface, vlan.vlan_id);
        let intent = from_vlan(&interface.interface, vlan);
        interfaces.entry(name).or_default().add(&intent);
    }
    let name = interface.interface.clone();
    interfaces.entry(name).or_default().add(&from_interface(interface));
}

/// One for each family that it is for.
fn rules(rule: &Rule) -> impl Iterator<Item = orlop_netlink::Rule> {
    let family = rule.src.or(rule.dst).map(|net| net.addr().is_ipv4());
    let action = match (rule.action, rule.table) {
        (Some(fate), _) => Action::Other(fate as u8),
        (None, table) => Action::Lookup(table.map_or(Table::MAIN, Table)),
    };
    let some = |net: &IpNet| net.prefix_len() > 0;
    let one = orlop_netlink::Rule {
        ipv4: true,
        priority: rule.priority,
        source: rule.src.filter(some),
        destination: rule.dst.filter(some),
        incoming: rule.iif_name.clone(),
        outgoing: rule.oif_name.clone(),
        mark: rule.fw_mark.map_or((0, 0), |mark| (mark, rule.fw_mask.unwrap_or(u32::MAX))),
        action,
        protocol: Protocol::CONFIGURED,
    };
    let families =
        [true, false].into_iter().filter(move |v4| family.is_none_or(|only| only == *v4));
    families.map(move |ipv4| orlop_netlink::Rule { ipv4, ..one.clone() })
}

fn from_interface(interface: Interface) -> Intent {
    let route_metric = interface.dhcp_options.as_ref().and_then(|options| options.route_metric);
    let dhcp = Dhcp { route_metric: route_metric.unwrap_or(Dhcp::DEFAULT_METRIC) };
    let bridge = |bridge: Bridge| Make::Bridge {
        ports: bridge.interfaces,
        stp: bridge.stp.is_some_and(|stp| stp.enabled),
        vlan_filtering: bridge.vlan.is_some_and(|vlan| vlan.vlan_filtering),
    };
    let made = [
        interface.bond.map(|bond| Make::Bond(Box::new(bond))),
        interface.bridge.map(bridge),
        interface.wireguard.map(|options| Make::Wireguard(Box::new(wireguard::device(&options)))),
        interface.vrf.map(|vrf| Make::Vrf { table: vrf.table, ports: vrf.interfaces }),
        interface.dummy.then_some(Make::Dummy),
    ];
    let neighbours = interface.neighbors.iter();
    Intent {
        ignore: interface.ignore,
        make: made.into_iter().flatten().next(),
        dhcp: interface.dhcp.then_some(dhcp),
        addresses: interface.cidr.into_iter().chain(interface.addresses).collect(),
        routes: static_routes(&interface.routes, interface.dhcp),
        mtu: interface.mtu,
        neighbours: neighbours
            .filter_map(|neighbour| Some((neighbour.ip?, neighbour.hardware_addr.parse().ok()?)))
            .collect(),
        accept_ra: interface.accept_ra,
        vip: interface.vip.and_then(|vip| vip.ip),
        ..Intent::default()
    }
}

fn from_vlan(parent: &str, vlan: &Vlan) -> Intent {
    Intent {
        make: Some(Make::Vlan { parent: parent.to_owned(), id: vlan.vlan_id }),
        dhcp: vlan.dhcp.then(Dhcp::default),
        addresses: vlan.cidr.iter().chain(&vlan.addresses).copied().collect(),
        routes: static_routes(&vlan.routes, vlan.dhcp),
        mtu: vlan.mtu,
        vip: vlan.vip.as_ref().and_then(|vip| vip.ip),
        ..Intent::default()
    }
}

fn static_routes(routes: &[Route], dhcp: bool) -> Vec<StaticRoute> {
    let metric = |metric: Option<u32>| match metric {
        Some(metric) if !dhcp => metric,
        // With DHCP, whatever is written (node-api §6.4).
        _ => StaticRoute::DEFAULT_METRIC,
    };
    let route = |route: &Route| {
        let gateway = route.gateway.filter(|gateway| !gateway.is_unspecified());
        Some(StaticRoute {
            source: route.source,
            mtu: route.mtu,
            table: route.table.map(Table),
            nowhere: route.kind.map(|fate| fate as u8),
            ..StaticRoute::new(route.network?, gateway, metric(route.metric))
        })
    };
    routes.iter().filter_map(route).collect()
}

/// A name that `/etc/hosts` and the kernel can take.
fn host_name(name: &str) -> Option<String> {
    let valid = names::valid(name);
    if valid.is_none() {
        warn!(name, "ignored: it is no host name");
    }
    valid
}

/// What the kernel's arguments say.
#[must_use]
pub fn from_kernel(arguments: &Cmdline) -> Settings {
    let mut interfaces = BTreeMap::new();
    for bond in arguments.bonds().filter_map(told) {
        add_interface(&mut interfaces, bond);
    }
    for VlanArgument { name, parent, id } in arguments.vlans().filter_map(told) {
        let intent = Intent { make: Some(Make::Vlan { parent, id }), ..Intent::default() };
        interfaces.entry(name).or_insert_with(Intent::default).add(&intent);
    }
    Settings {
        interfaces,
        kernel: arguments.ips().filter_map(told).map(from_ip).collect(),
        ignored: arguments.ignored_interfaces().map(str::to_owned).collect(),
        host_name: arguments.hostname().and_then(host_name),
        mtu_by_dhcp: arguments.platform() != Some("azure"),
        ..Settings::default()
    }
}

/// What is malformed is told, and ignored.
fn told<T>(argument: Result<T, cmdline::Problem>) -> Option<T> {
    argument.inspect_err(|problem| warn!(%problem, "kernel argument ignored")).ok()
}

fn from_ip(ip: Ip) -> KernelIntent {
    let default_route = |gateway: IpAddr| {
        let destination = match gateway {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        };
        StaticRoute::new(destination, Some(gateway), StaticRoute::DEFAULT_METRIC)
    };
    let intent = Intent {
        dhcp: ip.address.is_none().then(Dhcp::default),
        addresses: ip.address.into_iter().collect(),
        routes: ip.gateway.map(default_route).into_iter().collect(),
        host_name: ip.hostname.as_deref().and_then(host_name),
        resolvers: ip.resolvers,
        time_servers: ip.time_servers,
        ..Intent::default()
    };
    KernelIntent { device: ip.device, intent }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn settings(cmdline: &str, network: &str) -> Settings {
        let mut settings = from_kernel(&cmdline::parse(cmdline));
        add_config(&mut settings, Network::parse(network).unwrap());
        settings
    }

    #[test]
    fn the_configuration_has_the_last_word_on_the_name() {
        let cmdline = "talos.hostname=kernel";
        assert_eq!(settings(cmdline, "").host_name.unwrap(), "kernel");
        assert_eq!(settings(cmdline, "hostname: config.org").host_name.unwrap(), "config.org");
        assert_eq!(settings("talos.hostname=a/b", "").host_name, None);
    }

    #[test]
    fn an_interface_becomes_an_intent() {
        let text = "\
interfaces:
- interface: eth0
  cidr: 10.0.0.5/24
  mtu: 9000
  routes:
  - network: 0.0.0.0/0
    gateway: 10.0.0.1
    metric: 20
  - network: 10.1.0.0/16
    gateway: 0.0.0.0
- interface: eth1
  dhcp: true
  dhcpOptions:
    routeMetric: 7
  routes:
  - network: 10.2.0.0/16
    gateway: 10.0.0.9
    metric: 20
- interface: eth2
  ignore: true
";
        let interfaces = settings("", text).interfaces;
        let route = |network: &str, gateway: Option<&str>, metric| {
            let gateway = gateway.map(|gateway| gateway.parse().unwrap());
            StaticRoute::new(network.parse().unwrap(), gateway, metric)
        };
        let eth0 = Intent {
            addresses: vec!["10.0.0.5/24".parse().unwrap()],
            routes: vec![route("0.0.0.0/0", Some("10.0.0.1"), 20), route("10.1.0.0/16", None, 10)],
            mtu: Some(9000),
            ..Intent::default()
        };
        let eth1 = Intent {
            dhcp: Some(Dhcp { route_metric: 7 }),
            routes: vec![route("10.2.0.0/16", Some("10.0.0.9"), 10)],
            ..Intent::default()
        };
        let eth2 = Intent { ignore: true, ..Intent::default() };
        let expected = [("eth0", eth0), ("eth1", eth1), ("eth2", eth2)];
        assert_eq!(interfaces, expected.map(|(name, intent)| (name.to_owned(), intent)).into());
    }

    #[test]
    fn the_ip_argument_becomes_an_intent() {
        let cmdline = "ip=10.0.0.7::10.0.0.1:255.255.255.0:n1:eth3::10.0.0.53 \
            talos.network.interface.ignore=eth9 talos.platform=azure";
        let settings = settings(cmdline, "");
        let [kernel] = &settings.kernel[..] else { panic!("{settings:?}") };
        assert_eq!(kernel.device.as_deref(), Some("eth3"));
        assert_eq!(kernel.intent.addresses, ["10.0.0.7/24".parse().unwrap()]);
        assert_eq!(kernel.intent.routes[0].gateway, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(kernel.intent.host_name.as_deref(), Some("n1"));
        assert_eq!(kernel.intent.resolvers, ["10.0.0.53".parse::<IpAddr>().unwrap()]);
        assert!(settings.ignored.contains("eth9"));
        assert!(!settings.mtu_by_dhcp, "on azure");
    }

    #[test]
    fn kernel_arguments_make_links_that_the_configuration_adds_to() {
        let cmdline = "bond=bond0:eth0,eth1:mode=active-backup:9000 vlan=bond0.5:bond0 vlan=vlan6:eth2 \
            ip=bond0.5:dhcp ip=10.6.0.5:::24::vlan6::::10.6.0.1 vlan=eth2:eth2 ip=1:2";
        let config = "interfaces: [{interface: bond0, cidr: 10.0.0.5/24}]";
        let settings = settings(cmdline, config);
        let names: Vec<_> = settings.interfaces.keys().map(String::as_str).collect();
        assert_eq!(names, ["bond0", "bond0.5", "vlan6"], "what is malformed is left out");
        let bond = &settings.interfaces["bond0"];
        assert_eq!(bond.make.as_ref().unwrap().ports(), ["eth0", "eth1"]);
        assert_eq!((bond.addresses.len(), bond.mtu), (1, Some(9000)));
        let vlan = |parent: &str, id| Some(Make::Vlan { parent: parent.to_owned(), id });
        assert_eq!(settings.interfaces["bond0.5"].make, vlan("bond0", 5));
        assert_eq!(settings.interfaces["vlan6"].make, vlan("eth2", 6));
        let [dhcp, fixed] = &settings.kernel[..] else { panic!("{settings:?}") };
        assert_eq!(
            (dhcp.device.as_deref(), dhcp.intent.dhcp),
            (Some("bond0.5"), Some(Dhcp::default()))
        );
        assert_eq!((fixed.device.as_deref(), fixed.intent.dhcp), (Some("vlan6"), None));
        assert_eq!(fixed.intent.time_servers, ["10.6.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn rules_neighbours_and_special_routes_arrive() {
        let text = "\
interfaces:
- interface: eth0
  cidr: 10.0.0.5/24
  acceptRA: false
  vip: {ip: 10.0.0.100}
  neighbors: [{ip: 10.0.0.9, hardwareAddr: '02:00:00:00:00:09'}]
  routes:
  - {network: 10.1.0.0/16, gateway: 10.0.0.1, source: 10.0.0.6, mtu: 1400, table: 100}
  - {network: 10.2.0.0/16, type: prohibit}
- interface: blue
  vrf: {interfaces: [eth1], table: 200}
rules:
- {priority: 100, src: 10.0.0.0/24, table: 100}
- {priority: 101, dst: 0.0.0.0/0, fwMark: 5, action: blackhole}
- {priority: 102, iifName: eth0, table: 100}
";
        let settings = settings("", text);
        let eth0 = &settings.interfaces["eth0"];
        let mac = orlop_netlink::Mac([2, 0, 0, 0, 0, 9]);
        assert_eq!(eth0.neighbours, [("10.0.0.9".parse().unwrap(), mac)]);
        assert_eq!((eth0.accept_ra, eth0.vip), (Some(false), "10.0.0.100".parse().ok()));
        let [first, second] = &eth0.routes[..] else { panic!("{eth0:?}") };
        assert_eq!((first.mtu, first.table), (Some(1400), Some(Table(100))));
        assert_eq!((first.source, first.nowhere), ("10.0.0.6".parse().ok(), None));
        assert_eq!(second.nowhere, Some(8));
        let ports = vec!["eth1".to_owned()];
        assert_eq!(settings.interfaces["blue"].make, Some(Make::Vrf { table: 200, ports }));
        let rules: Vec<_> = settings.rules.iter().map(|rule| (rule.priority, rule.ipv4)).collect();
        assert_eq!(rules, [(100, true), (101, true), (102, true), (102, false)]);
        let [table, hole, ..] = &settings.rules[..] else { panic!() };
        assert_eq!((table.action, table.mark), (Action::Lookup(Table(100)), (0, 0)));
        assert_eq!((hole.action, hole.mark), (Action::Other(6), (5, u32::MAX)));
        assert_eq!((hole.source, hole.destination), (None, None));
    }

    #[test]
    fn links_to_make_become_intents() {
        let text = "\
interfaces:
- interface: bond0
  bond: {interfaces: [eth0, eth1], mode: 802.3ad}
  addresses: [10.0.0.5/24, 'fd00::5/64']
  vlans:
  - {vlanId: 5, dhcp: true}
  - {vlanId: 6, cidr: 10.6.0.5/24, routes: [{network: 10.7.0.0/16, gateway: 10.6.0.1}]}
- interface: br0
  bridge: {interfaces: [eth2], stp: {enabled: true}}
- interface: dummy0
  dummy: true
";
        let interfaces = settings("", text).interfaces;
        assert_eq!(
            interfaces.keys().collect::<Vec<_>>(),
            ["bond0", "bond0.5", "bond0.6", "br0", "dummy0"]
        );
        assert_eq!(interfaces["bond0"].make.as_ref().unwrap().ports(), ["eth0", "eth1"]);
        assert_eq!(interfaces["bond0"].addresses.len(), 2);
        let vlan = |id| Some(Make::Vlan { parent: "bond0".to_owned(), id });
        let five = &interfaces["bond0.5"];
        assert_eq!((&five.make, five.dhcp), (&vlan(5), Some(Dhcp::default())));
        let six = &interfaces["bond0.6"];
        assert_eq!((&six.make, six.routes.len(), six.dhcp), (&vlan(6), 1, None));
        let ports = vec!["eth2".to_owned()];
        let bridge = Make::Bridge { ports, stp: true, vlan_filtering: false };
        assert_eq!(interfaces["br0"].make, Some(bridge));
        assert_eq!(interfaces["dummy0"].make, Some(Make::Dummy));
    }

    #[test]
    fn a_wrong_configuration_is_shown_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (config, cmdline) =
            (folder.path().join("networkd.yaml"), folder.path().join("cmdline"));
        std::fs::write(&cmdline, "").unwrap();
        assert!(read(&config, &cmdline).is_ok(), "an absent configuration is an empty one");
        std::fs::write(&config, "interfaces:\n- interface: eth0\n  mtu: 67\n").unwrap();
        let error = read(&config, &cmdline).unwrap_err();
        assert!(orlop_rt::Chain(&error).to_string().contains("networkd.yaml:3:"), "{error:?}");
    }
}
