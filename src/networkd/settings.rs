//! What the operator said, as [`plan`](crate::plan) wants it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use orlop_config::Problems;
use orlop_config::cmdline::{self, Cmdline, Ip};
use orlop_config::machine::{Bridge, Interface, Network, Resolver, Route, Vlan};
use orlop_netlink::{IpNet, Ipv4Net, Ipv6Net};
use tracing::warn;

use crate::made::Make;
use crate::names::{self, HostEntry};
use crate::plan::{Dhcp, Intent, KernelIntent, Settings, StaticRoute};
use crate::resolver;

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
    for interface in network.interfaces {
        for vlan in &interface.vlans {
            let name = format!("{}.{}", interface.interface, vlan.vlan_id);
            let intent = from_vlan(&interface.interface, vlan);
            settings.interfaces.entry(name).or_default().add(&intent);
        }
        let name = interface.interface.clone();
        settings.interfaces.entry(name).or_default().add(&from_interface(interface));
    }
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

fn from_interface(interface: Interface) -> Intent {
    let route_metric = interface.dhcp_options.as_ref().and_then(|options| options.route_metric);
    let dhcp = Dhcp { route_metric: route_metric.unwrap_or(Dhcp::DEFAULT_METRIC) };
    let bridge = |bridge: Bridge| Make::Bridge {
        ports: bridge.interfaces,
        stp: bridge.stp.is_some_and(|stp| stp.enabled),
        vlan_filtering: bridge.vlan.is_some_and(|vlan| vlan.vlan_filtering),
    };
    let bond = interface.bond.map(|bond| Make::Bond(Box::new(bond)));
    Intent {
        ignore: interface.ignore,
        make: bond.or(interface.bridge.map(bridge)).or(interface.dummy.then_some(Make::Dummy)),
        dhcp: interface.dhcp.then_some(dhcp),
        addresses: interface.cidr.into_iter().chain(interface.addresses).collect(),
        routes: static_routes(&interface.routes, interface.dhcp),
        mtu: interface.mtu,
        ..Intent::default()
    }
}

fn from_vlan(parent: &str, vlan: &Vlan) -> Intent {
    Intent {
        make: Some(Make::Vlan { parent: parent.to_owned(), id: vlan.vlan_id }),
        dhcp: vlan.dhcp.then(Dhcp::default),
        addresses: vlan.cidr.into_iter().collect(),
        routes: static_routes(&vlan.routes, vlan.dhcp),
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
        Some(StaticRoute {
            destination: route.network?,
            gateway: route.gateway.filter(|gateway| !gateway.is_unspecified()),
            metric: metric(route.metric),
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
    let kernel = arguments.ip().unwrap_or_else(|problem| {
        warn!(%problem, "kernel argument ignored");
        None
    });
    Settings {
        interfaces: BTreeMap::new(),
        kernel: kernel.map(from_ip),
        ignored: arguments.ignored_interfaces().map(str::to_owned).collect(),
        host_name: arguments.hostname().and_then(host_name),
        resolvers: Vec::new(),
        extra_hosts: Vec::new(),
        search: Vec::new(),
        search_not_our_own: false,
        resolver: None,
        mtu_by_dhcp: arguments.platform() != Some("azure"),
    }
}

fn from_ip(ip: Ip) -> KernelIntent {
    let default_route = |gateway: IpAddr| StaticRoute {
        destination: match gateway {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        },
        gateway: Some(gateway),
        metric: StaticRoute::DEFAULT_METRIC,
    };
    let intent = Intent {
        addresses: vec![ip.address],
        routes: ip.gateway.map(default_route).into_iter().collect(),
        host_name: ip.hostname.as_deref().and_then(host_name),
        resolvers: ip.resolvers,
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
        let route = |network: &str, gateway: Option<&str>, metric| StaticRoute {
            destination: network.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            metric,
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
        let kernel = settings.kernel.unwrap();
        assert_eq!(kernel.device.as_deref(), Some("eth3"));
        assert_eq!(kernel.intent.addresses, ["10.0.0.7/24".parse().unwrap()]);
        assert_eq!(kernel.intent.routes[0].gateway, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(kernel.intent.host_name.as_deref(), Some("n1"));
        assert_eq!(kernel.intent.resolvers, ["10.0.0.53".parse::<IpAddr>().unwrap()]);
        assert!(settings.ignored.contains("eth9"));
        assert!(!settings.mtu_by_dhcp, "on azure");
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
