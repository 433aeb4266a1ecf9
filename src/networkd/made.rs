//! Links that are there because we make them: dummies, bonds, VLANs, bridges, VRFs and WireGuard (node-api
//! §6.4, §9.3).
//!
//! The kernel keeps a [`MARK`] with each, so that one that nobody wants any more is known and removed
//! after any restart. A link of the same name that somebody else made is never removed: it is a
//! [`conflicts`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use orlop_config::machine::Bond;
use orlop_netlink::options::InfoBond;
use orlop_netlink::wireguard::Device;
use orlop_netlink::{Kind, Link, Table};

use crate::plan::{Operation, Settings};

/// What the kernel keeps as the alias of links that we made.
pub const MARK: &str = "orlop-networkd";

/// How to make a link.
#[derive(Clone, Debug, PartialEq)]
pub enum Make {
    /// It drops what it is given.
    Dummy,
    /// Of several links, one.
    Bond(Box<Bond>),
    /// A VLAN of the link called `parent`.
    Vlan {
        /// The link that carries the tagged frames.
        parent: String,
        /// 1..=4094.
        id: u16,
    },
    /// A switch between links.
    Bridge {
        /// By name.
        ports: Vec<String>,
        /// Whether loops are cut.
        stp: bool,
        /// Whether its ports belong to VLANs.
        vlan_filtering: bool,
    },
    /// A routing domain.
    Vrf {
        /// Its routing table.
        table: u32,
        /// By name; they keep their addresses.
        ports: Vec<String>,
    },
    /// An encrypted link, and its keys and peers.
    Wireguard(Box<Device>),
}

impl Make {
    /// The links that become part of it.
    #[must_use]
    pub fn ports(&self) -> &[String] {
        match self {
            Self::Bond(bond) => &bond.interfaces,
            Self::Bridge { ports, .. } | Self::Vrf { ports, .. } => ports,
            Self::Dummy | Self::Vlan { .. } | Self::Wireguard(_) => &[],
        }
    }
}

/// The made links as they shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Those that can be made now: what they stand on is there.
    pub wanted: Vec<Wanted>,
    /// The names of all, also of those that must wait.
    names: BTreeSet<String>,
    /// The bond or bridge of each link that is to be a port.
    pub ports: BTreeMap<u32, String>,
}

/// A link as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// At most 15 bytes.
    pub name: String,
    /// What it is, and its options.
    pub kind: Kind,
    /// What it stands on.
    pub parent: Option<u32>,
}

impl Links {
    /// What the settings ask for, among the links that exist.
    #[must_use]
    pub fn new(settings: &Settings, links: &[Link]) -> Self {
        let index = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.index);
        let mut all = Self::default();
        for (name, make) in making(settings) {
            all.names.insert(name.to_owned());
            let mut parent = None;
            let kind = match make {
                Make::Dummy => Kind::Dummy,
                Make::Wireguard(_) => Kind::Wireguard,
                Make::Vrf { table, .. } => Kind::Vrf(*table),
                Make::Bond(bond) => Kind::Bond(bond_options(bond, index)),
                Make::Bridge { stp, vlan_filtering, .. } => {
                    Kind::Bridge { stp: *stp, vlan_filtering: *vlan_filtering }
                }
                Make::Vlan { parent: below, id } => {
                    parent = index(below);
                    if parent.is_none() {
                        continue;
                    }
                    Kind::Vlan(*id)
                }
            };
            all.wanted.push(Wanted { name: name.to_owned(), kind, parent });
            let ports = make.ports().iter().filter(|port| !settings.ignored.contains(*port));
            all.ports.extend(ports.filter_map(|port| Some((index(port)?, name.to_owned()))));
        }
        all
    }
}

/// The links to make, by name: those that are to be left alone are not.
fn making(settings: &Settings) -> impl Iterator<Item = (&str, &Make)> {
    settings.interfaces.iter().filter_map(|(name, intent)| {
        let touched = !intent.ignore && !settings.ignored.contains(name);
        Some((name.as_str(), intent.make.as_ref().filter(|_| touched)?))
    })
}

/// The names of all links that shall be part of a bond or bridge: they get no address of their own.
pub(crate) fn ports(settings: &Settings) -> BTreeSet<&str> {
    let swallow = |make: &&Make| !matches!(make, Make::Vrf { .. });
    let makes = making(settings).map(|(_, make)| make).filter(swallow);
    makes.flat_map(Make::ports).map(String::as_str).collect()
}

/// The routing tables of links in VRFs, by their names.
pub(crate) fn tables(settings: &Settings) -> BTreeMap<&str, Table> {
    let vrfs = making(settings).filter_map(|(_, make)| match make {
        Make::Vrf { table, ports } => Some((Table(*table), ports)),
        _ => None,
    });
    vrfs.flat_map(|(table, ports)| ports.iter().map(move |port| (port.as_str(), table))).collect()
}

/// The options of a bond as the kernel shows them. What is absent keeps the kernel's default, but for
/// `useCarrier`, which is then off (node-api §6.4).
fn bond_options(bond: &Bond, index: impl Fn(&str) -> Option<u32>) -> Vec<InfoBond> {
    // The kernel rounds delays down to whole periods.
    let period = bond.miimon.unwrap_or_default().max(1);
    let delay = |delay: Option<u32>| delay.map(|delay| delay / period * period);
    let targets: Vec<_> = bond
        .arp_ip_target
        .iter()
        .filter_map(|target| match target {
            IpAddr::V4(target) => Some(*target),
            IpAddr::V6(_) => None,
        })
        .collect();
    let actor = bond.ad_actor_system.as_deref().and_then(|text| text.parse().ok());
    [
        bond.mode.map(|mode| InfoBond::Mode((mode as u8).into())),
        bond.miimon.map(InfoBond::MiiMon),
        delay(bond.updelay).map(InfoBond::UpDelay),
        delay(bond.downdelay).map(InfoBond::DownDelay),
        Some(InfoBond::UseCarrier(bond.use_carrier)),
        bond.arp_interval.map(InfoBond::ArpInterval),
        (!targets.is_empty()).then_some(InfoBond::ArpIpTarget(targets)),
        bond.arp_validate.map(|which| InfoBond::ArpValidate(u32::from(which as u8).into())),
        bond.arp_all_targets.map(|which| InfoBond::ArpAllTargets(u32::from(which as u8).into())),
        bond.primary.as_deref().and_then(index).map(InfoBond::Primary),
        bond.primary_reselect.map(|when| InfoBond::PrimaryReselect((when as u8).into())),
        bond.fail_over_mac.map(|how| InfoBond::FailOverMac((how as u8).into())),
        bond.xmit_hash_policy.map(|policy| InfoBond::XmitHashPolicy((policy as u8).into())),
        bond.resend_igmp.map(InfoBond::ResendIgmp),
        bond.num_peer_notif.map(InfoBond::NumPeerNotif),
        bond.all_slaves_active.map(|on| InfoBond::AllPortsActive(on.into())),
        bond.min_links.map(InfoBond::MinLinks),
        bond.lp_interval.map(InfoBond::LpInterval),
        bond.packets_per_slave.map(InfoBond::PacketsPerPort),
        bond.lacp_rate.map(|rate| InfoBond::AdLacpRate((rate as u8).into())),
        bond.ad_select.map(|by| InfoBond::AdSelect((by as u8).into())),
        bond.ad_actor_sys_prio.map(InfoBond::AdActorSysPrio),
        bond.ad_user_port_key.map(InfoBond::AdUserPortKey),
        actor.map(|orlop_netlink::Mac(bytes)| InfoBond::AdActorSystem(bytes)),
        bond.tlb_dynamic_lb.map(|on| InfoBond::TlbDynamicLb(on != 0)),
        delay(bond.peer_notify_delay).map(InfoBond::PeerNotifDelay),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What can be done about a made link that is there already.
enum Fit {
    /// It is as it shall be.
    Right,
    /// It can be told: these options, after it went down if so.
    Tell(Kind, Down),
    /// Only a new one will do.
    Replace,
}

#[derive(PartialEq)]
enum Down {
    First,
    NotNeeded,
}

/// What makes the links what they shall be, in an order that the kernel takes.
pub(crate) fn difference(wanted: &Links, links: &[Link]) -> Vec<Operation> {
    let (mut gone, mut operations) = (BTreeSet::new(), Vec::new());
    for link in links.iter().filter(|link| marked(link)) {
        let there = wanted.wanted.iter().find(|wanted| wanted.name == link.name);
        let replaced = there.is_some_and(|wanted| matches!(fit(wanted, link, links), Fit::Replace));
        if replaced || !wanted.names.contains(&link.name) {
            gone.insert(link.index);
            operations.push(Operation::RemoveLink(link.index));
        }
    }
    for wanted in &wanted.wanted {
        let Some(link) = links.iter().find(|link| link.name == wanted.name) else {
            operations.push(Operation::MakeLink(wanted.clone()));
            continue;
        };
        if gone.contains(&link.index) {
            // In its place once it is away.
            operations.push(Operation::MakeLink(wanted.clone()));
            continue;
        }
        match fit(wanted, link, links) {
            Fit::Replace => continue,
            Fit::Right => {}
            Fit::Tell(kind, down) => {
                if down == Down::First && link.up() {
                    operations.push(Operation::SetDown(link.index));
                }
                operations.push(Operation::ChangeKind(link.index, kind));
            }
        }
        if !marked(link) {
            operations.push(Operation::Mark(link.index));
        }
    }
    operations.extend(ports_difference(wanted, links, &gone));
    operations
}

fn ports_difference(wanted: &Links, links: &[Link], gone: &BTreeSet<u32>) -> Vec<Operation> {
    let mut operations = Vec::new();
    let usable = |link: &&Link| !gone.contains(&link.index);
    for link in links.iter().filter(usable) {
        let master = wanted.ports.get(&link.index).and_then(|name| {
            let fits = |master: &&Link| {
                let asked = wanted.wanted.iter().find(|asked| asked.name == *name);
                let kind = asked.zip(master.kind.as_ref());
                kind.is_some_and(|(asked, kind)| asked.kind.same(kind))
            };
            links.iter().filter(usable).find(|master| master.name == *name).filter(fits)
        });
        match master {
            Some(master) if link.master == Some(master.index) => {}
            Some(master) => {
                // A bond takes none that is up; it brings them up itself.
                if matches!(master.kind, Some(Kind::Bond(_))) && link.up() {
                    operations.push(Operation::SetDown(link.index));
                }
                operations.push(Operation::SetMaster(link.index, Some(master.index)));
            }
            None => {
                let of_ours = |index| links.iter().any(|link| link.index == index && marked(link));
                // What others made and put into a bridge of ours stays there.
                let is_ours = link.kind.is_none() || marked(link);
                if link.master.is_some_and(|master| of_ours(master) && !gone.contains(&master))
                    && is_ours
                    && !wanted.ports.contains_key(&link.index)
                {
                    operations.push(Operation::SetMaster(link.index, None));
                }
            }
        }
    }
    operations
}

/// Links that somebody else made under a name that we want, in words for the operator.
#[must_use]
pub fn conflicts(wanted: &Links, links: &[Link]) -> Vec<String> {
    let foreign = |wanted: &Wanted| {
        let link = links.iter().find(|link| link.name == wanted.name && !marked(link))?;
        matches!(fit(wanted, link, links), Fit::Replace).then(|| {
            format!(
                "link {:?} is there already and is something else: it stays as it is; choose \
                 another name in machine.network.interfaces, or remove the link",
                link.name
            )
        })
    };
    wanted.wanted.iter().filter_map(foreign).collect()
}

fn marked(link: &Link) -> bool {
    link.alias.as_deref() == Some(MARK)
}

fn fit(wanted: &Wanted, link: &Link, links: &[Link]) -> Fit {
    match (&wanted.kind, &link.kind) {
        (Kind::Dummy, Some(Kind::Dummy)) | (Kind::Wireguard, Some(Kind::Wireguard)) => Fit::Right,
        (Kind::Vrf(table), Some(Kind::Vrf(there))) if table == there => Fit::Right,
        (Kind::Vlan(id), Some(Kind::Vlan(there)))
            if id == there && wanted.parent == link.parent =>
        {
            Fit::Right
        }
        (Kind::Bridge { .. }, Some(there @ Kind::Bridge { .. })) if *there == wanted.kind => {
            Fit::Right
        }
        (Kind::Bridge { .. }, Some(Kind::Bridge { .. })) => {
            Fit::Tell(wanted.kind.clone(), Down::NotNeeded)
        }
        (Kind::Bond(options), Some(Kind::Bond(there))) => {
            let other: Vec<_> = options
                .iter()
                .filter(|option| !there.contains(option) && shown(option, link, links))
                .cloned()
                .collect();
            if other.is_empty() {
                return Fit::Right;
            }
            // drivers/net/bonding/bond_options.c: BOND_OPTFLAG_NOSLAVES and BOND_OPTFLAG_IFDOWN.
            let new_one =
                |option: &InfoBond| matches!(option, InfoBond::Mode(_) | InfoBond::FailOverMac(_));
            let while_down = |option: &InfoBond| {
                matches!(
                    option,
                    InfoBond::AdLacpRate(_)
                        | InfoBond::AdSelect(_)
                        | InfoBond::AdUserPortKey(_)
                        | InfoBond::TlbDynamicLb(_)
                )
            };
            if other.iter().any(new_one) {
                return Fit::Replace;
            }
            let down = other.iter().any(while_down);
            Fit::Tell(Kind::Bond(other), if down { Down::First } else { Down::NotNeeded })
        }
        _ => Fit::Replace,
    }
}

/// The kernel tells of a primary only once that is a port.
fn shown(option: &InfoBond, bond: &Link, links: &[Link]) -> bool {
    match option {
        InfoBond::Primary(index) => {
            links.iter().any(|link| link.index == *index && link.master == Some(bond.index))
        }
        _ => true,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
