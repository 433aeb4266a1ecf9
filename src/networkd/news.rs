//! What changed on the network, for whoever wants to know: in few words, however much happens.
//!
//! [`Reporter`] is shown what there is after each look at the kernel's tables. It waits for [`GATHER`], so that a
//! link, its address and its routes are one [`Notice`], and then for longer and longer while changes keep
//! coming: what came and went meanwhile is not told. A notice names at most [`NAMED`] changes and counts the rest.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use orlop_netlink::{Address, IpNet, Link, Mac, Route, Table};

use crate::machine::Uptime;

/// From the first change after a calm until it is told.
pub const GATHER: Duration = Duration::from_millis(100);
/// From one notice to the next, at first and at most.
pub const PAUSE: Duration = Duration::from_secs(1);
/// A storm of any length is told of twice a minute.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Changes in a notice.
pub const NAMED: usize = 32;

/// What there is at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    links: Vec<LinkState>,
    addresses: Vec<AddressState>,
    routes: Vec<RouteState>,
    /// How the node is called; empty as long as nobody knows.
    host_name: String,
}

/// What is told of a link.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinkState {
    /// The kernel's number of it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// In bytes.
    pub mtu: u32,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Administratively up.
    pub up: bool,
    /// Packets pass.
    pub carrier: bool,
    /// The bond, bridge or VRF that it is a part of.
    pub master: Option<u32>,
}

/// What is told of an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AddressState {
    /// The link that has it.
    pub index: u32,
    /// The address, and its network.
    pub net: IpNet,
}

/// What is told of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteState {
    /// The link that packets leave through.
    pub index: Option<u32>,
    /// Where to.
    pub destination: IpNet,
    /// `None`: on the link itself.
    pub gateway: Option<IpAddr>,
    /// What the node's own packets have for their sender.
    pub source: Option<IpAddr>,
    /// Lower wins.
    pub metric: u32,
    /// The table it stands in.
    pub table: Table,
    /// `RTN_*`.
    pub kind: u8,
}

impl Look {
    /// From the kernel's tables. What follows from addresses alone, the table `local`, is left out.
    #[must_use]
    pub fn new(links: &[Link], addresses: &[Address], routes: &[Route], host_name: &str) -> Self {
        let link = |link: &Link| LinkState {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            mac: link.mac,
            up: link.up(),
            carrier: link.running(),
            master: link.master,
        };
        let address = |address: &Address| AddressState { index: address.index, net: address.net };
        let route = |route: &Route| RouteState {
            index: route.index,
            destination: route.destination,
            gateway: route.gateway,
            source: route.source,
            metric: route.metric,
            table: route.table,
            kind: route.kind,
        };
        let told = routes.iter().filter(|route| route.table != Table::LOCAL);
        Self {
            links: links.iter().map(link).collect(),
            addresses: addresses.iter().map(address).collect(),
            routes: told.map(route).collect(),
            host_name: host_name.to_owned(),
        }
    }

    fn name_of(&self, index: u32) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map(|link| link.name.clone()).unwrap_or_default()
    }

    fn standing(&self) -> Standing {
        let global = |address: &IpAddr| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        };
        let mut addresses: Vec<_> =
            self.addresses.iter().map(|address| address.net.addr()).filter(global).collect();
        let mut seen = HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        Standing { host_name: self.host_name.clone(), addresses }
    }
}

/// How others reach the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How the node is called; empty as long as nobody knows.
    pub host_name: String,
    /// Its addresses that are neither loopback's nor for one link only.
    pub addresses: Vec<IpAddr>,
}

/// What happened to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is there now.
    Added,
    /// It is another than before.
    Changed,
    /// It is gone.
    Removed,
}

impl Action {
    /// For logs.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        }
    }
}

/// To what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A link.
    Link(LinkState),
    /// An address; the link is not always there to ask for its name any more.
    Address(String, AddressState),
    /// A route; its link's name is empty for those that lead nowhere.
    Route(String, RouteState),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub action: Action,
    /// To what: as it is now, or was at last.
    pub what: What,
}

impl Change {
    /// The link it is about.
    #[must_use]
    pub fn index(&self) -> Option<u32> {
        match &self.what {
            What::Link(link) => Some(link.index),
            What::Address(_, address) => Some(address.index),
            What::Route(_, route) => route.index,
        }
    }
}

/// All that is told at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// At most [`NAMED`].
    pub changes: Vec<Change>,
    /// How many more there were.
    pub more: usize,
    /// How others reach the node now.
    pub standing: Standing,
}

/// Decides what is told when. Reads no clock.
#[derive(Debug, Default)]
pub struct Reporter {
    /// What they know whom it was told; `None` before the first look.
    told: Option<Look>,
    /// What is not told yet.
    seen: Option<Look>,
    /// Not before this.
    next_at: Uptime,
    /// From the last notice to the next one.
    pause: Duration,
    /// What is told before this makes a storm of it.
    calm_at: Uptime,
}

impl Reporter {
    /// Takes what there is now. The first look is told at once, and as no change.
    pub fn look(&mut self, now: Uptime, look: Look) -> Option<Notice> {
        let Some(told) = &self.told else {
            let standing = look.standing();
            self.told = Some(look);
            return Some(Notice { standing, ..Notice::default() });
        };
        if self.seen.is_some() {
            self.seen = Some(look);
        } else if *told != look {
            self.next_at = self.next_at.max(now + GATHER);
            self.seen = Some(look);
        }
        None
    }

    /// Whether there was a look.
    #[must_use]
    pub fn began(&self) -> bool {
        self.told.is_some()
    }

    /// When [`Self::due`] shall be asked.
    #[must_use]
    pub fn wake_at(&self) -> Option<Uptime> {
        self.seen.as_ref().map(|_| self.next_at)
    }

    /// What is to be told now.
    pub fn due(&mut self, now: Uptime) -> Option<Notice> {
        if self.wake_at().is_none_or(|at| at > now) {
            return None;
        }
        let (seen, told) = (self.seen.take()?, self.told.take()?);
        let notice = difference(&told, &seen);
        let news =
            notice.more > 0 || !notice.changes.is_empty() || notice.standing != told.standing();
        self.told = Some(seen);
        if !news {
            return None;
        }
        let stormy = now < self.calm_at;
        self.pause = if stormy { (self.pause * 2).min(LONGEST_PAUSE) } else { PAUSE };
        (self.next_at, self.calm_at) = (now + self.pause, now + self.pause * 2);
        Some(notice)
    }
}

/// What makes `before` to `after`: first what went, then what came.
fn difference(before: &Look, after: &Look) -> Notice {
    let mut notice = Notice { standing: after.standing(), ..Notice::default() };
    let mut tell = |action, what: &dyn Fn() -> What| {
        if notice.changes.len() < NAMED {
            notice.changes.push(Change { action, what: what() });
        } else {
            notice.more += 1;
        }
    };
    let address =
        |look: &Look, it: &AddressState| What::Address(look.name_of(it.index), it.clone());
    let route = |look: &Look, it: &RouteState| {
        What::Route(it.index.map(|index| look.name_of(index)).unwrap_or_default(), it.clone())
    };
    for it in missing(&before.routes, &after.routes) {
        tell(Action::Removed, &|| route(before, it));
    }
    for it in missing(&before.addresses, &after.addresses) {
        tell(Action::Removed, &|| address(before, it));
    }
    let [was, is] = [before, after]
        .map(|look| look.links.iter().map(|link| (link.index, link)).collect::<BTreeMap<_, _>>());
    for link in was.values().filter(|link| !is.contains_key(&link.index)) {
        tell(Action::Removed, &|| What::Link((*link).clone()));
    }
    for link in is.values() {
        match was.get(&link.index) {
            None => tell(Action::Added, &|| What::Link((*link).clone())),
            Some(before) if before != link => {
                tell(Action::Changed, &|| What::Link((*link).clone()));
            }
            Some(_) => {}
        }
    }
    for it in missing(&after.addresses, &before.addresses) {
        tell(Action::Added, &|| address(after, it));
    }
    for it in missing(&after.routes, &before.routes) {
        tell(Action::Added, &|| route(after, it));
    }
    notice
}

/// Those of `some` that are not among `others`.
fn missing<'a, T: Hash + Eq>(some: &'a [T], others: &'a [T]) -> Vec<&'a T> {
    if some == others {
        return Vec::new();
    }
    let others: HashSet<_> = others.iter().collect();
    some.iter().filter(|one| !others.contains(one)).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
