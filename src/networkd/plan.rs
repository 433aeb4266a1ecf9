//! What the network should be, and what to do about what it is (node-api §9.1–9.3).
//!
//! [`Settings`] holds everything the operator said. With the links that exist it becomes an
//! [`Intent`] for each link that is ours to configure ([`intents`]), with the leases it becomes the
//! [`Desired`] addresses and routes, and less what is [`Observed`] it becomes [`Operation`]s
//! ([`difference`]). Nothing here asks the kernel anything, so that the whole can be tested as tables.
//!
//! Addresses, routes, rules and neighbours of ours carry a mark in the kernel ([`Protocol`]): only those are
//! ever removed, and they are known again after a restart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use orlop_netlink::wireguard::{Change, Device, PublicKey};
use orlop_netlink::{
    Address, IpNet, Ipv4Net, Ipv6Net, Kind, Link, Mac, Neighbour, Protocol, Route, Rule, Table,
};

use crate::advertisement::Learned;
use crate::machine::{Lease, Uptime};
use crate::machine6;
use crate::made::{self, Make, Wanted};
use crate::names::{Claim, HostEntry, Identity};
use crate::resolver;
use crate::selectors::Selected;
use crate::wireguard;

/// Everything the operator said, from the machine configuration and the kernel arguments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// By link name.
    pub interfaces: BTreeMap<String, Intent>,
    /// By what links are; [`Settings::selected`] adds them to `interfaces`.
    pub selected: Vec<Selected>,
    /// Policy rules.
    pub rules: Vec<Rule>,
    /// The `ip=` arguments.
    pub kernel: Vec<KernelIntent>,
    /// `talos.network.interface.ignore`: beats everything else.
    pub ignored: BTreeSet<String>,
    /// `talos.hostname`, or the configuration's.
    pub host_name: Option<String>,
    /// Used when no lease and no `ip=` brings any.
    pub resolvers: Vec<IpAddr>,
    /// For `/etc/hosts`.
    pub extra_hosts: Vec<HostEntry>,
    /// Domains to search, in place of those that servers name.
    pub search: Vec<String>,
    /// Do not search our own domain.
    pub search_not_our_own: bool,
    /// The resolver on loopback, when there shall be one.
    pub resolver: Option<resolver::Settings>,
    /// Whether DHCP servers may set the MTU: not on Azure.
    pub mtu_by_dhcp: bool,
}

/// What an `ip=` asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelIntent {
    /// `None`: the first link that is neither loopback nor a port of another.
    pub device: Option<String>,
    /// What it shall have.
    pub intent: Intent,
}

/// What one link shall have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Intent {
    /// Do not touch it.
    pub ignore: bool,
    /// It is not there before we make it.
    pub make: Option<Make>,
    /// Ask a DHCP server.
    pub dhcp: Option<Dhcp>,
    /// Static addresses.
    pub addresses: Vec<IpNet>,
    /// Static routes.
    pub routes: Vec<StaticRoute>,
    /// In bytes; beats the one of a DHCP server.
    pub mtu: Option<u32>,
    /// The host name of `ip=`.
    pub host_name: Option<String>,
    /// The resolvers of `ip=`.
    pub resolvers: Vec<IpAddr>,
    /// The time servers of `ip=`.
    pub time_servers: Vec<IpAddr>,
    /// Neighbours that are known without asking.
    pub neighbours: Vec<(IpAddr, Mac)>,
    /// Whether IPv6 routers are believed; `None` means on links with DHCP.
    pub accept_ra: Option<bool>,
    /// The address that one control plane has at a time.
    pub vip: Option<IpAddr>,
    /// The table of the VRF that it is in.
    pub table: Option<Table>,
}

/// How to use DHCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dhcp {
    /// Metric of the routes that the server gives.
    pub route_metric: u32,
}

/// A configured route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticRoute {
    /// Where to.
    pub destination: IpNet,
    /// `None`: on the link.
    pub gateway: Option<IpAddr>,
    /// Lower wins.
    pub metric: u32,
    /// What the node's own packets have for their sender; `None` means the link's first address.
    pub source: Option<IpAddr>,
    /// In bytes.
    pub mtu: Option<u32>,
    /// `None` means that of the link's VRF, or the main one.
    pub table: Option<Table>,
    /// No packet goes there: `RTN_BLACKHOLE` and the like.
    pub nowhere: Option<u8>,
}

impl Dhcp {
    /// `dhcpOptions.routeMetric` when it is absent.
    pub const DEFAULT_METRIC: u32 = 1024;
}

impl Default for Dhcp {
    fn default() -> Self {
        Self { route_metric: Self::DEFAULT_METRIC }
    }
}

impl StaticRoute {
    /// `routes[].metric` when it is absent.
    pub const DEFAULT_METRIC: u32 = 10;

    /// A route of the link's own table.
    #[must_use]
    pub fn new(destination: IpNet, gateway: Option<IpAddr>, metric: u32) -> Self {
        Self { destination, gateway, metric, source: None, mtu: None, table: None, nowhere: None }
    }
}

impl Intent {
    /// An intent that asks a DHCP server for everything.
    #[must_use]
    pub fn dhcp() -> Self {
        Self { dhcp: Some(Dhcp::default()), ..Self::default() }
    }

    /// Adds what another source says about the same link.
    pub(crate) fn add(&mut self, other: &Self) {
        self.ignore |= other.ignore;
        self.make = other.make.clone().or(self.make.take());
        self.dhcp = other.dhcp.or(self.dhcp);
        self.addresses.extend(&other.addresses);
        self.routes.extend(other.routes.iter().cloned());
        self.mtu = other.mtu.or(self.mtu);
        self.host_name = other.host_name.clone().or(self.host_name.take());
        self.resolvers.extend(&other.resolvers);
        self.time_servers.extend(&other.time_servers);
        self.neighbours.extend(&other.neighbours);
        self.accept_ra = other.accept_ra.or(self.accept_ra);
        self.vip = other.vip.or(self.vip);
    }

    /// Whether IPv6 routers are believed; `None` leaves it as it is.
    pub(crate) fn believes_routers(&self) -> Option<bool> {
        self.accept_ra.or(self.dhcp.map(|_| true))
    }
}

/// Used when nobody names a resolver (node-api §9.5).
const DEFAULT_RESOLVERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)), IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8))];
const LOOPBACK_MTU: u32 = 65536;
/// Kernel and we count lifetimes in different places: so far they may differ.
const LIFETIME_SLACK: Duration = Duration::from_secs(2);

/// What each link that is ours shall have, by its index. A link that is not in it is not touched.
#[must_use]
pub fn intents(settings: &Settings, links: &[Link]) -> BTreeMap<u32, Intent> {
    let ports = made::ports(settings);
    let mut others = links.iter().filter(|link| !link.loopback());
    let first = others.find(|link| !ports.contains(link.name.as_str()));
    let first = first.map(|link| link.name.as_str());
    let tables = made::tables(settings);
    let mut intents = BTreeMap::new();
    for link in links {
        if settings.ignored.contains(&link.name) || ports.contains(link.name.as_str()) {
            continue;
        }
        let mut entry: Option<Intent> = None;
        for KernelIntent { device, intent } in &settings.kernel {
            if device.as_deref().or(first) == Some(&link.name) {
                entry.get_or_insert_with(Intent::default).add(intent);
            }
        }
        if let Some(configured) = settings.interfaces.get(&link.name) {
            entry.get_or_insert_with(Intent::default).add(configured);
        }
        let table = tables.get(link.name.as_str()).copied();
        // Who puts a link into a VRF says what it shall have there.
        let unnamed = || table.map(|_| Intent::default()).or_else(|| default_intent(link));
        if let Some(mut intent) = entry.or_else(unnamed)
            && !intent.ignore
        {
            intent.table = table;
            if link.loopback() {
                add_loopback(&mut intent);
            }
            intents.insert(link.index, intent);
        }
    }
    intents
}

/// For links that nobody names.
fn default_intent(link: &Link) -> Option<Intent> {
    let named = |prefixes: &[&str]| prefixes.iter().any(|prefix| link.name.starts_with(prefix));
    if link.loopback() {
        return Some(Intent::default());
    }
    // A port of a bond or a bridge has no address of its own.
    (link.master.is_none() && named(&["en", "eth"])).then(Intent::dhcp)
}

/// Whatever else is configured, this belongs to loopback.
fn add_loopback(intent: &mut Intent) {
    let own = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 8));
    if !intent.addresses.contains(&own) {
        intent.addresses.insert(0, own);
    }
    intent.mtu = intent.mtu.or(Some(LOOPBACK_MTU));
}

/// What the kernel's tables shall contain on our links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// By index of the link: its MTU, when it matters. All of them shall be up.
    pub links: BTreeMap<u32, Option<u32>>,
    /// Their addresses.
    pub addresses: Vec<Address>,
    /// Their routes.
    pub routes: Vec<Route>,
    /// Links to make, and the ports of bonds and bridges.
    pub made: made::Links,
    /// Their neighbours.
    pub neighbours: Vec<Neighbour>,
    /// The node's policy rules.
    pub rules: Vec<Rule>,
    /// Keys and peers of WireGuard links, and the peers that were told where they are.
    pub wireguard: BTreeMap<u32, (Device, BTreeSet<PublicKey>)>,
}

impl Desired {
    /// From what the operator wants and what servers gave.
    #[must_use]
    pub fn new(
        intents: &BTreeMap<u32, Intent>,
        leases: &BTreeMap<u32, Lease>,
        now: Uptime,
    ) -> Self {
        let mut desired = Self::default();
        for (index, intent) in intents {
            let lease = leases.get(index).filter(|lease| lease.holds(now));
            desired.add_static(*index, intent, lease);
            let mut mtu = intent.mtu;
            if let (Some(dhcp), Some(lease)) = (intent.dhcp, lease) {
                let first = desired.routes.len();
                desired.add_lease(*index, dhcp, lease, now);
                for route in &mut desired.routes[first..] {
                    route.table = intent.table.unwrap_or(Table::MAIN);
                }
                mtu = mtu.or(lease.mtu.map(u32::from));
            }
            desired.links.insert(*index, mtu);
            desired.neighbours.extend(intent.neighbours.iter().map(|(address, mac)| Neighbour {
                index: *index,
                address: *address,
                mac: *mac,
                protocol: Protocol::CONFIGURED,
            }));
        }
        // The kernel wants the way to a gateway before the way through it.
        orlop_rt::sort_by_key(&mut desired.routes, |route| route.gateway.is_some());
        desired
    }

    /// Adds the addresses that DHCPv6 servers gave.
    #[must_use]
    pub fn with_leases6(mut self, leases: &BTreeMap<u32, machine6::Lease>, now: Uptime) -> Self {
        for (index, lease) in leases.iter().filter(|(index, _)| self.links.contains_key(*index)) {
            let Some(held) = lease.address.filter(|held| held.holds(now)) else { continue };
            // Alone: which neighbours there are, routers say (RFC 5942).
            let net = IpNet::V6(Ipv6Net::new_assert(held.address, 128));
            let valid = held.times.map(|times| times.expires_at.saturating_sub(now));
            self.addresses.push(Address { index: *index, net, protocol: Protocol::DHCP, valid });
        }
        self
    }

    /// Adds the links that are made, and their ports: these have no addresses, and are up.
    #[must_use]
    pub fn with_made_links(mut self, settings: &Settings, links: &[Link]) -> Self {
        self.made = made::Links::new(settings, links);
        for index in self.made.ports.keys() {
            self.links.entry(*index).or_insert(None);
        }
        self.rules.clone_from(&settings.rules);
        self
    }

    /// Adds keys and peers; `told` are the peers of each link that were told where they are.
    #[must_use]
    pub fn with_wireguard(
        mut self,
        settings: &Settings,
        links: &[Link],
        told: &BTreeMap<u32, BTreeSet<PublicKey>>,
    ) -> Self {
        for link in links.iter().filter(|link| link.kind == Some(Kind::Wireguard)) {
            let intent = settings.interfaces.get(&link.name);
            if let Some(Make::Wireguard(device)) = intent.and_then(|intent| intent.make.as_ref())
                && self.links.contains_key(&link.index)
            {
                let told = told.get(&link.index).cloned().unwrap_or_default();
                self.wireguard.insert(link.index, (Device::clone(device), told));
            }
        }
        self
    }

    /// Adds the addresses that wander between nodes and are here now, each until then: the kernel is told whole
    /// seconds, and rather takes it away too early.
    #[must_use]
    pub fn with_held(mut self, held: &BTreeMap<(u32, IpAddr), Uptime>, now: Uptime) -> Self {
        for ((index, address), until) in held {
            let left = Duration::from_secs(until.saturating_sub(now).as_secs());
            if self.links.contains_key(index) && !left.is_zero() {
                let (net, protocol) = (IpNet::from(*address), Protocol::CONFIGURED);
                self.addresses.push(Address { index: *index, net, protocol, valid: Some(left) });
            }
        }
        self
    }

    fn add_static(&mut self, index: u32, intent: &Intent, lease: Option<&Lease>) {
        for net in &intent.addresses {
            let protocol = Protocol::STATIC;
            self.addresses.push(Address { index, net: *net, protocol, valid: None });
        }
        // The way to a gateway may come with the lease.
        let waits = intent.dhcp.is_some() && lease.is_none();
        let routes = intent.routes.iter().filter(|route| !(waits && route.gateway.is_some()));
        for StaticRoute { destination, gateway, metric, source, mtu, table, nowhere } in routes {
            let mut route = match nowhere {
                Some(kind) => Route::nowhere(*destination, *kind, *metric, Protocol::CONFIGURED),
                None => {
                    let ours = Protocol::CONFIGURED;
                    Route::through(index, *destination, *gateway, *metric, ours)
                }
            };
            route.mtu = *mtu;
            route.table = table.or(intent.table).unwrap_or(Table::MAIN);
            // Through a link-local gateway the kernel chooses better than we could.
            if !gateway.is_some_and(link_local) && route.unicast() {
                let own = intent.addresses.iter().find(|net| same_family(net, destination));
                route.source = source.or(own.map(IpNet::addr));
            }
            self.routes.push(route);
        }
    }

    fn add_lease(&mut self, index: u32, dhcp: Dhcp, lease: &Lease, now: Uptime) {
        let valid = lease.times.map(|times| times.expires_at.saturating_sub(now));
        let net = IpNet::V4(lease.address);
        self.addresses.push(Address { index, net, protocol: Protocol::DHCP, valid });
        for (destination, gateway) in &lease.routes {
            let via = gateway.map(IpAddr::V4);
            let to = IpNet::V4(*destination);
            let mut route = Route::through(index, to, via, dhcp.route_metric, Protocol::DHCP);
            // Clouds give addresses of /32 and a gateway beside them, some without a route to it.
            let reached = gateway.is_none_or(|gateway| {
                lease.address.contains(&gateway)
                    || lease.routes.iter().any(|(to, via)| via.is_none() && to.contains(&gateway))
            });
            if !reached {
                route = route.gateway_on_link();
            }
            route.source = Some(lease.address.addr().into());
            self.routes.push(route);
        }
    }
}

fn same_family(a: &IpNet, b: &IpNet) -> bool {
    a.addr().is_ipv4() == b.addr().is_ipv4()
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The kernel's tables as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// All links.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// All routes of all tables.
    pub routes: Vec<Route>,
    /// All policy rules.
    pub rules: Vec<Rule>,
    /// All neighbours that somebody said are some.
    pub neighbours: Vec<Neighbour>,
    /// What the WireGuard links that matter were told.
    pub wireguard: BTreeMap<u32, Device>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Take a route away.
    RemoveRoute(Route),
    /// Take an address away.
    RemoveAddress(Address),
    /// Take a link away that we made.
    RemoveLink(u32),
    /// Make a link.
    MakeLink(Wanted),
    /// Remember with a link that we made it.
    Mark(u32),
    /// Tell a made link other options.
    ChangeKind(u32, Kind),
    /// Set administratively down.
    SetDown(u32),
    /// Make a link a port of this bond or bridge, or of none.
    SetMaster(u32, Option<u32>),
    /// Set the MTU, in bytes.
    SetMtu(u32, u32),
    /// Set administratively up.
    SetUp(u32),
    /// Add an address, or give it another lifetime.
    PutAddress(Address),
    /// Add a route.
    AddRoute(Route),
    /// Take a policy rule away.
    RemoveRule(Rule),
    /// Add a policy rule.
    AddRule(Rule),
    /// Forget a neighbour.
    RemoveNeighbour(Neighbour),
    /// Say who a neighbour is.
    PutNeighbour(Neighbour),
    /// Tell a WireGuard link other keys and peers.
    TellWireguard(u32, Change),
}

impl Operation {
    /// The link it is about.
    #[must_use]
    pub fn index(&self) -> Option<u32> {
        match self {
            Self::RemoveRoute(route) | Self::AddRoute(route) => route.index,
            Self::RemoveAddress(address) | Self::PutAddress(address) => Some(address.index),
            Self::RemoveNeighbour(neighbour) | Self::PutNeighbour(neighbour) => {
                Some(neighbour.index)
            }
            Self::RemoveLink(index)
            | Self::TellWireguard(index, _)
            | Self::Mark(index)
            | Self::ChangeKind(index, _)
            | Self::SetDown(index)
            | Self::SetMaster(index, _)
            | Self::SetMtu(index, _)
            | Self::SetUp(index) => Some(*index),
            Self::MakeLink(_) | Self::RemoveRule(_) | Self::AddRule(_) => None,
        }
    }

    /// Whether it takes something away, that may be away already.
    pub(crate) fn removes(&self) -> bool {
        matches!(
            self,
            Self::RemoveRoute(_)
                | Self::RemoveAddress(_)
                | Self::RemoveLink(_)
                | Self::RemoveRule(_)
                | Self::RemoveNeighbour(_)
        )
    }
}

/// What makes the observed the desired, in an order that the kernel takes: empty when they agree.
#[must_use]
pub fn difference(desired: &Desired, observed: &Observed) -> Vec<Operation> {
    let ours = |index: u32| desired.links.contains_key(&index);
    let mut operations = Vec::new();
    // By what they must have in common: a node may have thousands.
    let wanted_routes = by(&desired.routes, |route| route.destination);
    let wanted_addresses = by(&desired.addresses, |address| address.index);
    let routes = by(&observed.routes, |route| route.destination);
    let addresses = by(&observed.addresses, |address| address.index);

    for rule in observed.rules.iter().filter(|rule| rule.protocol == Protocol::CONFIGURED) {
        if !desired.rules.contains(rule) {
            operations.push(Operation::RemoveRule(rule.clone()));
        }
    }
    for route in observed.routes.iter().filter(|route| {
        let marked = [Protocol::DHCP, Protocol::CONFIGURED].contains(&route.protocol);
        marked && (!route.unicast() || route.index.is_some_and(ours))
    }) {
        if !of(&wanted_routes, route.destination).any(|wanted| same_route(wanted, route)) {
            operations.push(Operation::RemoveRoute(route.clone()));
        }
    }
    for address in observed.addresses.iter().filter(|address| {
        let marks = [Protocol::DHCP, Protocol::STATIC, Protocol::CONFIGURED];
        marks.contains(&address.protocol) && ours(address.index)
    }) {
        if !of(&wanted_addresses, address.index).any(|wanted| same_address(wanted, address)) {
            operations.push(Operation::RemoveAddress(address.clone()));
        }
    }

    for neighbour in observed
        .neighbours
        .iter()
        .filter(|neighbour| neighbour.protocol == Protocol::CONFIGURED && ours(neighbour.index))
    {
        if !desired.neighbours.iter().any(|wanted| same_neighbour(wanted, neighbour)) {
            operations.push(Operation::RemoveNeighbour(neighbour.clone()));
        }
    }

    operations.extend(made::difference(&desired.made, &observed.links));
    let gone = |operation: &Operation| match operation {
        Operation::RemoveLink(index) => Some(*index),
        _ => None,
    };
    let removed: BTreeSet<u32> = operations.iter().filter_map(gone).collect();
    let links: Vec<_> =
        observed.links.iter().filter(|link| !removed.contains(&link.index)).collect();
    for link in &links {
        let Some(mtu) = desired.links.get(&link.index) else { continue };
        if let Some(mtu) = mtu.filter(|mtu| *mtu != link.mtu) {
            operations.push(Operation::SetMtu(link.index, mtu));
        }
        // It shall not be up without its keys.
        if let Some((device, told)) = desired.wireguard.get(&link.index)
            && let Some(there) = observed.wireguard.get(&link.index)
            && let Some(change) = wireguard::difference(device, there, told)
        {
            operations.push(Operation::TellWireguard(link.index, change));
        }
        if !link.up() {
            operations.push(Operation::SetUp(link.index));
        }
    }
    // What vanished since the plan was made is not worth an error.
    let existing: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
    let exists = |index: u32| existing.contains(&index);

    for wanted in desired.addresses.iter().filter(|address| exists(address.index)) {
        let there = of(&addresses, wanted.index).find(|address| same_address(wanted, address));
        if there.is_none_or(|there| !lifetimes_agree(wanted, there)) {
            operations.push(Operation::PutAddress(wanted.clone()));
        }
    }
    for wanted in desired.routes.iter().filter(|route| route.index.is_none_or(exists)) {
        if !of(&routes, wanted.destination).any(|route| same_route(wanted, route)) {
            operations.push(Operation::AddRoute(wanted.clone()));
        }
    }
    for wanted in desired.neighbours.iter().filter(|neighbour| exists(neighbour.index)) {
        let there = observed.neighbours.iter().find(|there| same_neighbour(wanted, there));
        if there.is_none_or(|there| there.mac != wanted.mac) {
            operations.push(Operation::PutNeighbour(wanted.clone()));
        }
    }
    for wanted in &desired.rules {
        let same = |rule: &&Rule| Rule { protocol: wanted.protocol, ..(*rule).clone() } == *wanted;
        if observed.rules.iter().find(same).is_none() {
            operations.push(Operation::AddRule(wanted.clone()));
        }
    }
    operations
}

fn by<K: Eq + Hash, T>(list: &[T], key: impl Fn(&T) -> K) -> HashMap<K, Vec<&T>> {
    let mut groups: HashMap<K, Vec<&T>> = HashMap::with_capacity(list.len());
    for each in list {
        groups.entry(key(each)).or_default().push(each);
    }
    groups
}

fn of<'a, K: Eq + Hash, T>(
    groups: &'a HashMap<K, Vec<&'a T>>,
    key: K,
) -> impl Iterator<Item = &'a T> {
    groups.get(&key).into_iter().flatten().copied()
}

fn same_neighbour(a: &Neighbour, b: &Neighbour) -> bool {
    (a.index, a.address) == (b.index, b.address)
}

fn same_address(a: &Address, b: &Address) -> bool {
    (a.index, a.net) == (b.index, b.net)
}

/// An address that somebody else put there with no end is left as it is.
fn lifetimes_agree(wanted: &Address, there: &Address) -> bool {
    match (wanted.valid, there.valid) {
        (Some(wanted), Some(there)) => wanted.abs_diff(there) <= LIFETIME_SLACK,
        (None, None) => true,
        (Some(_), None) => there.protocol != wanted.protocol,
        (None, Some(_)) => false,
    }
}

/// The same way to the same place; who put it there does not matter.
fn same_route(wanted: &Route, there: &Route) -> bool {
    let metric_agrees = wanted.metric == there.metric
        // What the kernel makes of 0.
        || (wanted.metric == 0 && there.metric == 1024 && matches!(wanted.destination, IpNet::V6(_)));
    metric_agrees
        && wanted.destination == there.destination
        && wanted.gateway == there.gateway
        && wanted.kind == there.kind
        // The kernel shows loopback where nothing leaves.
        && (wanted.index == there.index || !wanted.unicast())
        && wanted.table == there.table
        && wanted.mtu == there.mtu
        && (wanted.source.is_none() || wanted.source == there.source)
}

/// Whether a link of ours has all that it can have now: at least one address, or nothing to wait for.
#[must_use]
pub fn configured(index: u32, desired: &Desired, observed: &Observed, intent: &Intent) -> bool {
    let mut wanted = desired.addresses.iter().filter(|address| address.index == index).peekable();
    let waits_for_lease = wanted.peek().is_none() && intent.dhcp.is_some();
    !waits_for_lease
        && wanted.all(|wanted| observed.addresses.iter().any(|there| same_address(wanted, there)))
}

/// The address that an earlier run had from a DHCPv6 server: the kernel remembers it by its mark, and how
/// long it holds.
#[must_use]
pub fn held6(index: u32, observed: &Observed, now: Uptime) -> Option<machine6::Held> {
    observed.addresses.iter().find_map(|address| {
        let IpNet::V6(net) = address.net else { return None };
        let ours = address.index == index && address.protocol == Protocol::DHCP;
        (ours && net.prefix_len() == 128).then(|| match address.valid {
            Some(valid) => machine6::Held::until(net.addr(), now, now + valid),
            None => machine6::Held { address: net.addr(), times: None },
        })
    })
}

/// The names and resolvers that come out of it all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// How the node is called.
    pub identity: Identity,
    /// Whether an interface had a say in that.
    pub claimed: bool,
    /// Best first.
    pub resolvers: Vec<IpAddr>,
    /// Where short names are looked for: our domain, then what the operator says, or else servers.
    pub search: Vec<String>,
}

/// Chooses host name and resolvers (node-api §9.5): interfaces count in the order of their names.
#[must_use]
pub fn names(
    settings: &Settings,
    intents: &BTreeMap<u32, Intent>,
    leases: &BTreeMap<u32, Lease>,
    leases6: &BTreeMap<u32, machine6::Lease>,
    learned: &BTreeMap<u32, Learned>,
    links: &[Link],
) -> Names {
    let mut links: Vec<_> = links.iter().filter(|link| !link.loopback()).collect();
    orlop_rt::sort_by(&mut links, |a, b| a.name.cmp(&b.name));
    let mut claim = None;
    let mut resolvers: Vec<IpAddr> = Vec::new();
    let mut domains: Vec<String> = Vec::new();
    for link in links {
        let Some(intent) = intents.get(&link.index) else { continue };
        resolvers.extend(&intent.resolvers);
        let lease = intent.dhcp.and_then(|_| leases.get(&link.index));
        if let Some(lease) = lease {
            resolvers.extend(lease.dns.iter().copied().map(IpAddr::V4));
            domains.extend(lease.search.iter().cloned());
        }
        if let Some(lease) = intent.dhcp.and_then(|_| leases6.get(&link.index)) {
            resolvers.extend(lease.dns.iter().copied().map(IpAddr::V6));
            domains.extend(lease.search.iter().cloned());
        }
        // The link's routers are heard as long as its lease is kept.
        if let Some(learned) = intent.dhcp.and_then(|_| learned.get(&link.index)) {
            resolvers.extend(learned.resolvers().map(IpAddr::V6));
            domains.extend(learned.search().cloned());
        }
        let from_static = intent.addresses.first().map(|net| Claim {
            address: net.addr(),
            host_name: intent.host_name.clone(),
            domain: None,
        });
        let from_lease = lease.map(|lease| Claim {
            address: lease.address.addr().into(),
            host_name: lease.host_name.clone(),
            domain: lease.domain.clone(),
        });
        claim = claim.or(from_static).or(from_lease);
    }
    let mut seen = BTreeSet::new();
    resolvers.retain(|resolver| seen.insert(*resolver));
    if resolvers.is_empty() {
        resolvers.clone_from(&settings.resolvers);
    }
    if resolvers.is_empty() {
        resolvers.extend(DEFAULT_RESOLVERS);
    }
    let identity = Identity::choose(claim.as_ref(), settings.host_name.as_deref());
    let own = identity.domain.iter().filter(|_| !settings.search_not_our_own);
    let mut search: Vec<_> = own.cloned().collect();
    let domains = if settings.search.is_empty() { domains } else { settings.search.clone() };
    for domain in domains {
        if !search.contains(&domain) {
            search.push(domain);
        }
    }
    Names { identity, claimed: claim.is_some(), resolvers, search }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
