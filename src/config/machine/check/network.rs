//! `machine.network`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Check, Seen};
use crate::machine::{
    Bond, BondMode, DeviceSelector, Interface, Neighbor, Network, Resolver, Route, Rule, Vip, Vrf,
    Wireguard, names,
};

pub(super) fn network(check: &mut Check, network: &Network) {
    check.maybe("hostname", network.hostname.as_deref().and_then(names::host_name));
    let mut links = Links::default();
    check.each("interfaces", &network.interfaces, |check, link| {
        interface(check, link, &mut links);
    });
    check.each("nameservers", &network.nameservers, |check, server| {
        if server.is_unspecified() || server.is_multicast() {
            check.wrong(format!("{server} is no address of a server"));
        }
    });
    check.each("extraHostEntries", &network.extra_host_entries, |check, entry| {
        if entry.ip.is_none() {
            check.wrong_at("ip", "an address is required");
        }
        check.each("aliases", &entry.aliases, |check, alias| {
            names::host_name(alias).into_iter().for_each(|message| check.wrong(message));
        });
    });
    let mut seen = Seen::default();
    check.each("rules", &network.rules, |check, one| rule(check, one, &mut seen));
    check.each("searchDomains", &network.search_domains, |check, domain| {
        names::host_name(domain).into_iter().for_each(|message| check.wrong(message));
    });
    if let Some(resolver) = &network.resolver {
        check.key("resolver", |check| asked_over_tls(check, resolver));
    }
}

fn asked_over_tls(check: &mut Check, resolver: &Resolver) {
    if !resolver.enabled && !resolver.tls.is_empty() {
        check.wrong_at("tls", "it needs `enabled: true`");
    }
    check.each("tls", &resolver.tls, |check, server| {
        match server.address {
            None => check.wrong_at("address", "an address is required"),
            Some(address) if address.is_unspecified() || address.is_multicast() => {
                check.wrong_at("address", format!("{address} is no address of a server"));
            }
            Some(_) => {}
        }
        if server.port == Some(0) {
            check.wrong_at("port", "0 is out of range 1..=65535");
        }
        if server.name.is_empty() {
            check.wrong_at("name", "the name in the server's certificate is required");
        } else if !names::is_host(&server.name) {
            let message = format!("{:?} is neither a DNS name nor an address", server.name);
            check.wrong_at("name", message);
        }
        if !server.ca.is_empty()
            && let Err(error) = orlop_pki::tls::public_client_config(&server.ca, &[])
        {
            check.wrong_at("ca", super::chain(&error));
        }
    });
}

fn rule(check: &mut Check, rule: &Rule, seen: &mut Seen) {
    if !(1..=32765).contains(&rule.priority) {
        check.wrong_at("priority", format!("{} is out of range 1..=32765", rule.priority));
    }
    let nets = [("src", rule.src), ("dst", rule.dst)];
    for (key, net) in nets.iter().filter_map(|(key, net)| Some((key, (*net)?))) {
        check.maybe(key, beyond_prefix(net));
    }
    if let (Some(src), Some(dst)) = (rule.src, rule.dst)
        && src.addr().is_ipv4() != dst.addr().is_ipv4()
    {
        check.because("src", |check| {
            check.wrong_at("dst", format!("{dst} is not of the same family as {src}"));
        });
    }
    let family = rule.src.or(rule.dst).map(|net| net.addr().is_ipv4());
    let families = family.map_or(vec![true, false], |v4| vec![v4]);
    if families.into_iter().any(|v4| seen.again(&format!("{} {v4}", rule.priority))) {
        check.wrong_at("priority", format!("another rule has priority {} already", rule.priority));
    }
    for (key, link) in [("iifName", &rule.iif_name), ("oifName", &rule.oif_name)] {
        check.maybe(key, link.as_deref().and_then(names::interface));
    }
    if rule.fw_mask.is_some() && rule.fw_mark.is_none() {
        check.wrong_at("fwMask", "it needs `fwMark`");
    }
    match (rule.action, rule.table) {
        (None, None | Some(0)) => check.wrong_at("table", "a table is required, 1..=4294967295"),
        (Some(_), Some(_)) => check.because("action", |check| {
            check.wrong_at("table", "no table is asked: it has an `action`");
        }),
        _ => {}
    }
}

fn beyond_prefix(net: IpNet) -> Option<String> {
    (net.addr() != net.network())
        .then(|| format!("{net} has bits beyond its prefix; write {}", net.trunc()))
}

/// What the interfaces before this one said.
#[derive(Default)]
struct Links {
    /// Sections of one name add up, where they do not contradict each other.
    sections: BTreeMap<String, Section>,
    /// Which bond, bridge or VRF a link belongs to.
    ports: BTreeMap<String, String>,
    vips: BTreeSet<IpAddr>,
    /// The routing tables of VRFs.
    tables: BTreeSet<u32>,
}

#[derive(Default)]
struct Section {
    cidrs: BTreeSet<IpNet>,
    vlans: BTreeSet<u16>,
    /// Keys that only one section can have.
    once: BTreeSet<&'static str>,
}

fn interface(check: &mut Check, link: &Interface, links: &mut Links) {
    let name = link.interface.as_str();
    match &link.device_selector {
        Some(_) if !name.is_empty() => {
            let message = "`interface` and `deviceSelector` exclude each other";
            check.because("interface", |check| check.wrong_at("deviceSelector", message));
        }
        Some(selector) => check.key("deviceSelector", |check| device(check, selector, link)),
        None if name.is_empty() && !link.ignore => {
            check.wrong_at("interface", "the name of a link is required, or a `deviceSelector`");
        }
        None if name.is_empty() => {}
        None => check.maybe("interface", names::interface(name)),
    }
    let mut alone = Section::default();
    let section = match name {
        "" => &mut alone,
        _ => links.sections.entry(name.to_owned()).or_default(),
    };
    let once = [
        ("ignore", link.ignore),
        ("dhcp", link.dhcp),
        ("dhcpOptions", link.dhcp_options.is_some()),
        ("mtu", link.mtu.is_some()),
        ("dummy", link.dummy),
        ("bond", link.bond.is_some()),
        ("bridge", link.bridge.is_some()),
        ("wireguard", link.wireguard.is_some()),
        ("vrf", link.vrf.is_some()),
        ("vip", link.vip.is_some()),
        ("acceptRA", link.accept_ra.is_some()),
    ];
    for (key, _) in once.into_iter().filter(|(_, set)| *set) {
        if !section.once.insert(key) && !name.is_empty() {
            check.wrong_at(key, format!("another section of {name:?} says this already"));
        }
    }
    if link.ignore {
        return;
    }
    addressing(check, link.dhcp, link.cidr, &mut section.cidrs);
    addresses(check, &link.addresses, &mut section.cidrs);
    routes(check, &link.routes);
    vip(check, link.vip.as_ref(), &mut links.vips);
    neighbors(check, &link.neighbors);
    check.each("vlans", &link.vlans, |check, vlan| {
        if !(1..=4094).contains(&vlan.vlan_id) {
            check.wrong_at("vlanId", format!("{} is out of range 1..=4094", vlan.vlan_id));
        } else if !section.vlans.insert(vlan.vlan_id) {
            let message = format!("{name:?} has a VLAN {} already", vlan.vlan_id);
            check.wrong_at("vlanId", message);
        } else if names::interface(name).is_none() {
            check.maybe("vlanId", names::interface(&format!("{name}.{}", vlan.vlan_id)));
        }
        let mut cidrs = BTreeSet::new();
        addressing(check, vlan.dhcp, vlan.cidr, &mut cidrs);
        addresses(check, &vlan.addresses, &mut cidrs);
        routes(check, &vlan.routes);
        vip(check, vlan.vip.as_ref(), &mut links.vips);
    });
    let kinds = [
        ("dummy", link.dummy),
        ("bond", link.bond.is_some()),
        ("bridge", link.bridge.is_some()),
        ("wireguard", link.wireguard.is_some()),
        ("vrf", link.vrf.is_some()),
    ];
    let mut kinds = kinds.into_iter().filter_map(|(key, set)| set.then_some(key));
    if let (Some(first), Some(second)) = (kinds.next(), kinds.next()) {
        let message = format!("a link is one thing only, and this one is a {first} already");
        check.because(first, |check| check.wrong_at(second, message));
    }
    if let Some(options) = &link.wireguard {
        check.key("wireguard", |check| wireguard(check, options));
    }
    if let Some(options) = &link.vrf {
        check.key("vrf", |check| vrf(check, name, options, links));
    }
    if let Some(options) = &link.bond {
        check.key("bond", |check| bond(check, name, options, &mut links.ports));
    }
    if let Some(options) = &link.bridge {
        check.key("bridge", |check| {
            ports(check, name, &options.interfaces, &mut links.ports);
        });
    }
}

/// A selector says something, and what it selects is there already.
fn device(check: &mut Check, selector: &DeviceSelector, link: &Interface) {
    let texts = [
        ("busPath", &selector.bus_path),
        ("hardwareAddr", &selector.hardware_addr),
        ("permanentAddr", &selector.permanent_addr),
        ("pciID", &selector.pci_id),
        ("driver", &selector.driver),
    ];
    let given = || texts.iter().filter_map(|(key, text)| Some((*key, text.as_deref()?)));
    if given().next().is_none() && selector.physical.is_none() {
        check.wrong("it must say something: busPath, hardwareAddr, pciID, driver or physical");
    }
    for (key, _) in given().filter(|(_, text)| text.is_empty()) {
        check.wrong_at(key, "an empty text fits no device; `*` fits any");
    }
    let made = link.dummy
        || link.bond.is_some()
        || link.bridge.is_some()
        || link.wireguard.is_some()
        || link.vrf.is_some();
    if made {
        check.wrong("it selects a link that is there; one that is made needs a name, `interface`");
    }
}

fn addresses(check: &mut Check, addresses: &[IpNet], others: &mut BTreeSet<IpNet>) {
    check.each("addresses", addresses, |check, address| {
        let wrong = one_address(*address, others);
        wrong.into_iter().for_each(|message| check.wrong(message));
    });
}

fn vip(check: &mut Check, vip: Option<&Vip>, others: &mut BTreeSet<IpAddr>) {
    let Some(vip) = vip else { return };
    let wrong = match vip.ip {
        None => Some("an address is required".to_owned()),
        Some(ip) if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() => {
            Some(format!("{ip} is no address that can wander"))
        }
        Some(ip) => (!others.insert(ip)).then(|| format!("{ip} is the vip of another link")),
    };
    check.key("vip", |check| check.maybe("ip", wrong));
}

fn neighbors(check: &mut Check, neighbors: &[Neighbor]) {
    let mut seen = Seen::default();
    check.each("neighbors", neighbors, |check, neighbor| {
        match neighbor.ip {
            None => check.wrong_at("ip", "an address is required"),
            Some(ip) if seen.again(&ip.to_string()) => {
                check.wrong_at("ip", format!("the link has a neighbour {ip} already"));
            }
            Some(_) => {}
        }
        if !names::is_station(&neighbor.hardware_addr) {
            let message = "must be a station's address such as 02:00:00:00:00:01";
            check.wrong_at("hardwareAddr", message);
        }
    });
}

fn wireguard(check: &mut Check, options: &Wireguard) {
    if options.private_key.is_none() {
        check.wrong_at("privateKey", "a key is required; `wg genkey` makes one");
    }
    let (mut keys, mut nets) = (Seen::default(), BTreeMap::new());
    check.each("peers", &options.peers, |check, peer| {
        let Some(key) = peer.public_key else {
            return check.wrong_at("publicKey", "the peer's public key is required");
        };
        if keys.again(&key.to_string()) {
            check.wrong_at("publicKey", format!("another peer has the key {key} already"));
        }
        if let Some(every) = peer.persistent_keepalive_interval
            && (every.subsec_nanos() != 0 || every.as_secs() > 65535)
        {
            let message = "must be whole seconds, at most 65535s";
            check.wrong_at("persistentKeepaliveInterval", message);
        }
        if peer.endpoint.is_some_and(|to| to.ip().is_unspecified() || to.port() == 0) {
            check.wrong_at("endpoint", "no host has this address and port");
        }
        check.each("allowedIPs", &peer.allowed_ips, |check, net| {
            beyond_prefix(*net).into_iter().for_each(|message| check.wrong(message));
            if let Some(other) = nets.insert(*net, key) {
                check.wrong(format!("{net} belongs to the peer {other} already"));
            }
        });
    });
}

fn vrf(check: &mut Check, name: &str, options: &Vrf, links: &mut Links) {
    // RT_TABLE_COMPAT to RT_TABLE_LOCAL of linux/rtnetlink.h.
    if options.table == 0 || (252..=255).contains(&options.table) {
        let message =
            format!("{} is no table of its own; choose 1..=251 or above 255", options.table);
        check.wrong_at("table", message);
    } else if !links.tables.insert(options.table) {
        check.wrong_at("table", format!("another VRF has the table {} already", options.table));
    }
    ports(check, name, &options.interfaces, &mut links.ports);
}

fn addressing(check: &mut Check, dhcp: bool, cidr: Option<IpNet>, others: &mut BTreeSet<IpNet>) {
    let Some(cidr) = cidr else { return };
    if dhcp {
        let message =
            "invalid network device addressing method: `cidr` and `dhcp` exclude each other";
        check.wrong_at("cidr", message);
    } else {
        check.maybe("cidr", one_address(cidr, others));
    }
}

/// What is wrong with an address of a link that has these others.
fn one_address(cidr: IpNet, others: &mut BTreeSet<IpNet>) -> Option<String> {
    let ip = cidr.addr();
    if ip.is_unspecified() || ip.is_multicast() {
        return Some(format!("{ip} is no address a link can have"));
    }
    (!others.insert(cidr)).then(|| format!("the link has {cidr} already"))
}

fn routes(check: &mut Check, routes: &[Route]) {
    let mut seen = Seen::default();
    check.each("routes", routes, |check, route| {
        let Some(network) = route.network else {
            return check.wrong_at("network", "a network is required");
        };
        check.maybe("network", beyond_prefix(network));
        if seen.again(&format!("{network} {:?} {:?}", route.metric, route.table)) {
            check.wrong_at("network", format!("a second route to {network} of the same metric"));
        }
        if let Some(gateway) = route.gateway {
            if network.addr().is_ipv4() != gateway.is_ipv4() {
                let message = format!("{gateway} is not of the same family as {network}");
                check.wrong_at("gateway", message);
            } else if gateway.is_multicast() {
                check.wrong_at("gateway", format!("{gateway} is no address of a router"));
            }
        }
        if let Some(source) = route.source
            && network.addr().is_ipv4() != source.is_ipv4()
        {
            let message = format!("{source} is not of the same family as {network}");
            check.wrong_at("source", message);
        }
        if route.table == Some(0) || route.table == Some(255) {
            check.wrong_at("table", "the kernel keeps the tables 0 and 255 to itself");
        }
        if route.kind.is_some() {
            let set = [
                ("gateway", route.gateway.is_some()),
                ("source", route.source.is_some()),
                ("mtu", route.mtu.is_some()),
            ];
            for (key, _) in set.into_iter().filter(|(_, set)| *set) {
                let message = "no packet goes this way: it has a `type`";
                check.because("type", |check| check.wrong_at(key, message));
            }
        }
    });
}

/// Links of a bond, and options with the ranges and the modes that the kernel takes them in
/// (drivers/net/bonding/bond_options.c).
fn bond(check: &mut Check, name: &str, bond: &Bond, taken: &mut BTreeMap<String, String>) {
    if bond.interfaces.is_empty() {
        check.wrong_at("interfaces", "must supply sub interfaces for bonded interface");
    }
    ports(check, name, &bond.interfaces, taken);
    if let Some(primary) = bond.primary.as_ref().filter(|link| !bond.interfaces.contains(link)) {
        let message = format!("{primary:?} is none of the bond's interfaces");
        check.because("interfaces", |check| check.wrong_at("primary", message));
    }
    if bond.ad_actor_system.as_ref().is_some_and(|mac| !names::is_station(mac)) {
        check.wrong_at("adActorSystem", "must be a station's address such as 02:00:00:00:00:01");
    }
    check.each("arpIPTarget", &bond.arp_ip_target, |check, target| {
        if !matches!(target, IpAddr::V4(ip) if !ip.is_unspecified() && !ip.is_broadcast()) {
            check.wrong(format!("{target} is no IPv4 address of a host"));
        }
    });
    if bond.arp_ip_target.len() > 16 {
        check.wrong_at("arpIPTarget", "at most 16 addresses can be watched");
    }
    ranges(check, bond);
    modes(check, bond);
    monitors(check, bond);
}

/// The links of the bond or bridge `name`.
fn ports(
    check: &mut Check,
    name: &str,
    interfaces: &[String],
    taken: &mut BTreeMap<String, String>,
) {
    check.each("interfaces", interfaces, |check, link| {
        if let Some(message) = names::interface(link) {
            check.wrong(message);
        } else if link == name {
            check.wrong("a link cannot be part of itself");
        } else if let Some(other) = taken.insert(link.clone(), name.to_owned()) {
            check.wrong(format!("{link:?} is part of {other:?} already"));
        }
    });
}

fn ranges(check: &mut Check, bond: &Bond) {
    let wide = |value: Option<u8>| value.map(u32::from);
    let milliseconds = i32::MAX.unsigned_abs();
    for (key, value, least, most) in [
        ("miimon", bond.miimon, 0, milliseconds),
        ("updelay", bond.updelay, 0, milliseconds),
        ("downdelay", bond.downdelay, 0, milliseconds),
        ("arpInterval", bond.arp_interval, 0, milliseconds),
        ("resendIgmp", bond.resend_igmp, 0, 255),
        ("lpInterval", bond.lp_interval, 1, milliseconds),
        ("packetsPerSlave", bond.packets_per_slave, 0, 65535),
        ("tlbDynamicLb", wide(bond.tlb_dynamic_lb), 0, 1),
        ("allSlavesActive", wide(bond.all_slaves_active), 0, 1),
        ("adActorSysPrio", bond.ad_actor_sys_prio.map(u32::from), 1, 65535),
        ("adUserPortKey", bond.ad_user_port_key.map(u32::from), 0, 1023),
        ("peerNotifyDelay", bond.peer_notify_delay, 0, 300_000),
    ] {
        if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
            check.wrong_at(key, format!("{value} is out of range {least}..={most}"));
        }
    }
}

fn modes(check: &mut Check, bond: &Bond) {
    use BondMode::Ieee8023ad;
    use BondMode::{ActiveBackup, BalanceAlb, BalanceRr, BalanceTlb, BalanceXor, Broadcast};
    let mode = bond.mode.unwrap_or(BalanceRr);
    let lacp: (&[BondMode], _) = (&[Ieee8023ad], "802.3ad");
    let one_active: (&[BondMode], _) =
        (&[ActiveBackup, BalanceTlb, BalanceAlb], "active-backup, balance-tlb and balance-alb");
    let arp: (&[BondMode], _) = (
        &[BalanceRr, ActiveBackup, BalanceXor, Broadcast],
        "balance-rr, active-backup, balance-xor and broadcast",
    );
    for (key, set, (modes, words)) in [
        ("lacpRate", bond.lacp_rate.is_some(), lacp),
        ("adActorSysPrio", bond.ad_actor_sys_prio.is_some(), lacp),
        ("adActorSystem", bond.ad_actor_system.is_some(), lacp),
        ("adUserPortKey", bond.ad_user_port_key.is_some(), lacp),
        ("primary", bond.primary.is_some(), one_active),
        ("arpInterval", bond.arp_interval.is_some_and(|ms| ms > 0), arp),
        ("arpValidate", bond.arp_validate.is_some_and(|mode| mode as u8 > 0), arp),
        ("packetsPerSlave", bond.packets_per_slave.is_some(), (&[BalanceRr], "balance-rr")),
        (
            "tlbDynamicLb",
            bond.tlb_dynamic_lb.is_some(),
            (&[BalanceTlb, BalanceAlb], "balance-tlb and balance-alb"),
        ),
    ] {
        if set && !modes.contains(&mode) {
            let message = format!("the kernel takes it in mode {words} only");
            check.because("mode", |check| check.wrong_at(key, message));
        }
    }
}

/// Links are watched by carrier or by ARP, and the delays are the carrier's.
fn monitors(check: &mut Check, bond: &Bond) {
    let on = |value: Option<u32>| value.is_some_and(|ms| ms > 0);
    if on(bond.miimon) && on(bond.arp_interval) {
        check.wrong_at("arpInterval", "`miimon` and `arpInterval` exclude each other");
    }
    if on(bond.arp_interval) && bond.arp_ip_target.is_empty() {
        check.wrong_at("arpIPTarget", "`arpInterval` needs addresses to watch");
    }
    let delays = [
        ("updelay", bond.updelay),
        ("downdelay", bond.downdelay),
        ("peerNotifyDelay", bond.peer_notify_delay),
    ];
    for (key, delay) in delays {
        if on(delay) && !on(bond.miimon) {
            check.because("miimon", |check| check.wrong_at(key, "it needs `miimon`"));
        }
    }
}
