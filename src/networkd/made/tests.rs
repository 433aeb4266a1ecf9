//! The plan against a kernel of a few lines that refuses what the real one refuses.

use orlop_config::machine::Network;
use orlop_netlink::wireguard::{Peer, What};
use orlop_netlink::{Neighbour, Protocol};

use super::*;
use crate::plan::{Desired, Observed, difference, intents};
use crate::settings::{add_config, from_kernel};

const UP: u32 = 0x1;

fn settings(text: &str) -> Settings {
    let mut settings = from_kernel(&orlop_config::cmdline::parse(""));
    add_config(&mut settings, Network::parse(text).unwrap());
    settings
}

/// A few of the kernel's rules for links.
struct Kernel {
    seen: Observed,
    next: u32,
}

impl Kernel {
    fn with(names: &[&str]) -> Self {
        let mut kernel = Self { seen: Observed::default(), next: 1 };
        for name in names {
            kernel.add(Link { name: (*name).to_owned(), ..Link::default() });
        }
        kernel
    }

    fn add(&mut self, link: Link) {
        self.seen.links.push(Link { index: self.next, mtu: 1500, ..link });
        self.next += 1;
    }

    fn link(&mut self, index: u32) -> &mut Link {
        self.seen.links.iter_mut().find(|link| link.index == index).unwrap()
    }

    fn named(&self, name: &str) -> &Link {
        self.seen.links.iter().find(|link| link.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    fn carry_out(&mut self, operation: &Operation) {
        match operation {
            Operation::MakeLink(Wanted { name, kind, parent }) => {
                assert!(!self.seen.links.iter().any(|link| link.name == *name), "EEXIST");
                let needs_parent = matches!(kind, Kind::Vlan(_));
                assert_eq!(parent.is_some(), needs_parent, "ENODEV");
                let (name, kind) = (name.clone(), Some(kind.clone()));
                self.add(Link { name, kind, parent: *parent, ..Link::default() });
            }
            Operation::RemoveLink(gone) => {
                self.seen.addresses.retain(|address| address.index != *gone);
                let links = &mut self.seen.links;
                links.retain(|link| link.index != *gone && link.parent != Some(*gone));
                for link in links.iter_mut().filter(|link| link.master == Some(*gone)) {
                    link.master = None;
                }
            }
            Operation::Mark(index) => self.link(*index).alias = Some(MARK.to_owned()),
            Operation::ChangeKind(index, Kind::Bond(new)) => {
                let has_ports = self.seen.links.iter().any(|link| link.master == Some(*index));
                let link = self.link(*index);
                let up = link.up();
                let Some(Kind::Bond(options)) = &mut link.kind else { panic!("no bond") };
                for option in new {
                    assert!(!(has_ports && matches!(option, InfoBond::Mode(_))), "ENOTEMPTY");
                    assert!(!(up && matches!(option, InfoBond::AdLacpRate(_))), "EBUSY");
                    let same = |other: &InfoBond| {
                        std::mem::discriminant(other) == std::mem::discriminant(option)
                    };
                    options.retain(|other| !same(other));
                    options.push(option.clone());
                }
            }
            Operation::ChangeKind(index, kind) => self.link(*index).kind = Some(kind.clone()),
            Operation::SetMaster(index, master) => {
                let to_bond = master
                    .is_some_and(|master| matches!(self.link(master).kind, Some(Kind::Bond(_))));
                let link = self.link(*index);
                assert!(!(to_bond && link.up()), "EPERM: a bond takes none that is up");
                link.master = *master;
                if to_bond {
                    link.flags |= UP;
                }
            }
            Operation::SetDown(index) => self.link(*index).flags &= !UP,
            Operation::SetUp(index) => self.link(*index).flags |= UP,
            Operation::SetMtu(index, mtu) => self.link(*index).mtu = *mtu,
            Operation::PutAddress(address) => {
                assert!(self.link(address.index).up());
                self.seen
                    .addresses
                    .retain(|there| (there.index, there.net) != (address.index, address.net));
                self.seen.addresses.push(address.clone());
            }
            Operation::RemoveAddress(gone) => self.seen.addresses.retain(|there| there != gone),
            Operation::AddRoute(route) => self.seen.routes.push(route.clone()),
            Operation::RemoveRoute(gone) => self.seen.routes.retain(|there| there != gone),
            Operation::AddRule(rule) => self.seen.rules.push(rule.clone()),
            Operation::RemoveRule(gone) => self.seen.rules.retain(|there| there != gone),
            Operation::PutNeighbour(known) => {
                assert!(self.link(known.index).up());
                let same = |there: &Neighbour| {
                    (there.index, there.address) == (known.index, known.address)
                };
                self.seen.neighbours.retain(|there| !same(there));
                self.seen.neighbours.push(known.clone());
            }
            Operation::RemoveNeighbour(gone) => {
                self.seen.neighbours.retain(|there| there != gone);
            }
            Operation::TellWireguard(index, change) => {
                assert_eq!(self.link(*index).kind, Some(Kind::Wireguard));
                let set = change.peers.iter().filter(|peer| peer.what != What::Remove);
                let peers = set.map(|peer| Peer { public_key: peer.public_key, ..Peer::default() });
                let private_key = change.private_key;
                let device = Device { private_key, peers: peers.collect(), ..Device::default() };
                self.seen.wireguard.insert(*index, device);
            }
        }
    }

    /// Rounds until there is nothing more to do; gives all that was done, a line each.
    fn settle(&mut self, settings: &Settings) -> Vec<String> {
        let mut done = Vec::new();
        for _ in 0..8 {
            let intents = intents(settings, &self.seen.links);
            let desired = Desired::new(&intents, &BTreeMap::new(), std::time::Duration::ZERO)
                .with_made_links(settings, &self.seen.links)
                .with_wireguard(settings, &self.seen.links, &BTreeMap::new());
            for index in desired.wireguard.keys() {
                self.seen.wireguard.entry(*index).or_default();
            }
            let operations = difference(&desired, &self.seen);
            if operations.is_empty() {
                return done;
            }
            for operation in operations {
                done.push(self.tell(&operation));
                self.carry_out(&operation);
            }
        }
        panic!("never done: {done:#?}");
    }

    fn tell(&self, operation: &Operation) -> String {
        let name = |index: u32| {
            let link = self.seen.links.iter().find(|link| link.index == index);
            link.map_or_else(|| "?".to_owned(), |link| link.name.clone())
        };
        match operation {
            Operation::MakeLink(wanted) => format!("make {}", wanted.name),
            Operation::RemoveLink(index) => format!("remove {}", name(*index)),
            Operation::Mark(index) => format!("mark {}", name(*index)),
            Operation::ChangeKind(index, _) => format!("change {}", name(*index)),
            Operation::SetDown(index) => format!("down {}", name(*index)),
            Operation::SetUp(index) => format!("up {}", name(*index)),
            Operation::SetMtu(index, mtu) => format!("mtu {} {mtu}", name(*index)),
            Operation::SetMaster(index, Some(master)) => {
                format!("port {} of {}", name(*index), name(*master))
            }
            Operation::SetMaster(index, None) => format!("port {} of nothing", name(*index)),
            Operation::PutAddress(address) => {
                format!("address {} on {}", address.net, name(address.index))
            }
            Operation::RemoveAddress(address) => {
                format!("no address {} on {}", address.net, name(address.index))
            }
            Operation::AddRoute(route) => format!("route {}", route.destination),
            Operation::RemoveRoute(route) => format!("no route {}", route.destination),
            Operation::AddRule(rule) => format!("rule {}", rule.priority),
            Operation::RemoveRule(rule) => format!("no rule {}", rule.priority),
            Operation::PutNeighbour(known) => format!("neighbour {}", known.address),
            Operation::RemoveNeighbour(gone) => format!("no neighbour {}", gone.address),
            Operation::TellWireguard(index, _) => format!("tell {}", name(*index)),
        }
    }
}

const BOND: &str = "\
interfaces:
- interface: bond0
  cidr: 10.0.0.5/24
  mtu: 9000
  bond: {interfaces: [eth0, eth1], mode: active-backup, primary: eth1, miimon: 100}
  vlans:
  - {vlanId: 5, cidr: 10.5.0.5/24}
";

#[test]
fn a_bond_is_made_before_its_ports_join_and_its_vlans_stand_on_it() {
    let mut kernel = Kernel::with(&["eth0", "eth1"]);
    kernel.link(1).flags = UP;
    let done = kernel.settle(&settings(BOND));
    let at = |step: &str| {
        done.iter().position(|each| each == step).unwrap_or_else(|| panic!("no {step}: {done:#?}"))
    };
    assert!(at("make bond0") < at("make bond0.5"));
    assert!(at("down eth0") < at("port eth0 of bond0"));
    assert!(at("port eth1 of bond0") < at("address 10.0.0.5/24 on bond0"));
    assert!(at("make bond0.5") < at("address 10.5.0.5/24 on bond0.5"));
    assert!(at("mark bond0") > at("make bond0"));
    let bond = kernel.named("bond0").clone();
    assert_eq!((bond.mtu, bond.up()), (9000, true));
    for port in ["eth0", "eth1"] {
        assert_eq!((kernel.named(port).master, kernel.named(port).up()), (Some(bond.index), true));
    }
    assert_eq!(kernel.named("bond0.5").parent, Some(bond.index));
    assert_eq!(kernel.settle(&settings(BOND)), Vec::<String>::new(), "twice does nothing");
}

#[test]
fn the_same_bond_with_other_options_is_told_or_made_anew() {
    let mut kernel = Kernel::with(&["eth0", "eth1"]);
    kernel.settle(&settings(BOND));
    let slower = settings(&BOND.replace("miimon: 100", "miimon: 200"));
    assert_eq!(kernel.settle(&slower), ["change bond0"]);
    let other_mode = BOND.replace("active-backup, primary: eth1", "802.3ad, lacpRate: slow");
    let done = kernel.settle(&settings(&other_mode));
    let at = |step: &str| done.iter().position(|each| each == step);
    assert!(at("remove bond0").is_some() && at("remove bond0") < at("make bond0"), "{done:#?}");
    assert!(
        matches!(&kernel.named("bond0").kind, Some(Kind::Bond(options)) if options.contains(&InfoBond::Mode(4.into())))
    );
    let fast = settings(&other_mode.replace("lacpRate: slow", "lacpRate: fast"));
    assert_eq!(kernel.settle(&fast), ["down bond0", "change bond0", "up bond0"]);
}

#[test]
fn what_is_no_longer_configured_goes_and_nothing_else() {
    let mut kernel = Kernel::with(&["eth0", "eth1"]);
    let foreign = Link { name: "docker0".to_owned(), kind: Some(Kind::Dummy), ..Link::default() };
    kernel.add(foreign);
    kernel.settle(&settings(BOND));
    let done = kernel.settle(&settings("interfaces: [{interface: eth0, cidr: 10.0.0.9/24}]"));
    assert!(done.contains(&"remove bond0".to_owned()), "{done:#?}");
    let names: Vec<_> = kernel.seen.links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["eth0", "eth1", "docker0"]);
    assert_eq!(kernel.named("eth0").master, None);
    assert!(kernel.seen.addresses.iter().any(|address| address.index == 1));
}

#[test]
fn a_port_that_leaves_is_let_go_and_foreign_ports_of_a_bridge_stay() {
    let text = "interfaces: [{interface: br0, bridge: {interfaces: [eth0, eth1]}}]";
    let mut kernel = Kernel::with(&["eth0", "eth1"]);
    kernel.settle(&settings(text));
    let bridge = kernel.named("br0").index;
    let (kind, master) = (Some(Kind::Other("veth".to_owned())), Some(bridge));
    kernel.add(Link { name: "veth1".to_owned(), kind, master, flags: UP, ..Link::default() });
    let fewer = settings("interfaces: [{interface: br0, bridge: {interfaces: [eth1]}}]");
    let done = kernel.settle(&fewer);
    assert_eq!(done, ["port eth0 of nothing"]);
    assert_eq!(kernel.named("veth1").master, Some(bridge));
    let stp = "interfaces: [{interface: br0, bridge: {interfaces: [eth1], stp: {enabled: true}}}]";
    assert_eq!(kernel.settle(&settings(stp)), ["change br0"]);
}

#[test]
fn a_link_that_somebody_else_made_is_told_of_and_left_alone() {
    let mut kernel = Kernel::with(&["eth0"]);
    let vlan = settings(
        "interfaces: [{interface: eth0, vlans: [{vlanId: 5}]}, {interface: d0, dummy: true}]",
    );
    kernel.add(Link {
        name: "eth0.5".to_owned(),
        kind: Some(Kind::Vlan(6)),
        parent: Some(1),
        ..Link::default()
    });
    kernel.add(Link { name: "d0".to_owned(), kind: Some(Kind::Dummy), ..Link::default() });
    let done = kernel.settle(&vlan);
    assert!(done.contains(&"mark d0".to_owned()), "the right one is taken as ours: {done:?}");
    assert!(!done.iter().any(|step| step.starts_with("remove") || step.starts_with("make")));
    let wanted = Links::new(&vlan, &kernel.seen.links);
    let [conflict] = &conflicts(&wanted, &kernel.seen.links)[..] else { panic!("one conflict") };
    assert!(conflict.starts_with("link \"eth0.5\" is there already"), "{conflict}");
}

#[test]
fn a_vlan_waits_for_its_parent_and_an_ignored_port_stays_out() {
    let text = "interfaces: [{interface: eth7, vlans: [{vlanId: 9, dhcp: true}]}]";
    let mut kernel = Kernel::with(&[]);
    assert_eq!(kernel.settle(&settings(text)), Vec::<String>::new());
    kernel.add(Link { name: "eth7".to_owned(), ..Link::default() });
    assert_eq!(
        kernel.settle(&settings(text)),
        ["make eth7.9", "up eth7", "mark eth7.9", "up eth7.9"]
    );

    let mut ignoring = settings(BOND);
    ignoring.ignored.insert("eth0".to_owned());
    let mut kernel = Kernel::with(&["eth0", "eth1"]);
    kernel.settle(&ignoring);
    assert_eq!((kernel.named("eth0").master, kernel.named("eth0").up()), (None, false));
}

#[test]
fn delays_of_a_bond_are_whole_periods_and_carrier_is_told_of_always() {
    let bond = Bond {
        miimon: Some(100),
        updelay: Some(250),
        downdelay: Some(99),
        arp_ip_target: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        ad_actor_system: Some("02:00:00:00:00:09".to_owned()),
        ..Bond::default()
    };
    let options = bond_options(&bond, |_| None);
    for option in [
        InfoBond::UpDelay(200),
        InfoBond::DownDelay(0),
        InfoBond::UseCarrier(false),
        InfoBond::ArpIpTarget(vec!["10.0.0.1".parse().unwrap()]),
        InfoBond::AdActorSystem([2, 0, 0, 0, 0, 9]),
    ] {
        assert!(options.contains(&option), "{option:?} in {options:?}");
    }
}

const EVERYTHING: &str = "\
interfaces:
- interface: eth0
  cidr: 10.0.0.5/24
  neighbors: [{ip: 10.0.0.9, hardwareAddr: '02:00:00:00:00:09'}]
  routes:
  - {network: 10.1.0.0/16, gateway: 10.0.0.1, mtu: 1400, table: 100}
  - {network: 10.2.0.0/16, type: blackhole}
- interface: blue
  vrf: {interfaces: [eth1], table: 200}
- interface: eth1
  cidr: 10.3.0.5/24
  routes: [{network: 10.4.0.0/16, gateway: 10.3.0.1}]
- interface: wg0
  cidr: 10.10.0.1/24
  wireguard:
    privateKey: AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=
    peers: [{publicKey: ISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0A=}]
rules:
- {priority: 100, iifName: eth0, table: 100}
";

#[test]
fn a_second_look_at_everything_finds_nothing_to_do() {
    let mut kernel = Kernel::with(&["eth0", "eth1"]);
    let settings = settings(EVERYTHING);
    let done = kernel.settle(&settings);
    let at = |step: &str| {
        done.iter().position(|each| each == step).unwrap_or_else(|| panic!("no {step}: {done:#?}"))
    };
    assert!(at("make wg0") < at("tell wg0") && at("tell wg0") < at("up wg0"), "{done:#?}");
    assert!(at("make blue") < at("port eth1 of blue"), "{done:#?}");
    assert_eq!(done.iter().filter(|step| *step == "rule 100").count(), 2, "of each family");
    assert_eq!(kernel.settle(&settings), [""; 0]);

    let table = |to: &str| {
        let to = to.parse().unwrap();
        kernel.seen.routes.iter().find(|route| route.destination == to).unwrap().table
    };
    assert_eq!((table("10.1.0.0/16"), table("10.4.0.0/16")), (Table(100), Table(200)));
}

#[test]
fn what_others_change_is_put_right_and_what_they_made_stays() {
    let mut kernel = Kernel::with(&["eth0", "eth1"]);
    let settings = settings(EVERYTHING);
    kernel.settle(&settings);
    let theirs = orlop_netlink::Rule {
        priority: 5,
        protocol: Protocol::STATIC,
        ..kernel.seen.rules[0].clone()
    };
    kernel.seen.rules = vec![theirs.clone()];
    kernel.seen.routes.retain(|route| route.mtu.is_none());
    kernel.seen.neighbours[0].mac = orlop_netlink::Mac([2, 0, 0, 0, 0, 0x66]);
    let wg0 = kernel.named("wg0").index;
    kernel.seen.wireguard.insert(wg0, Device::default());
    let mut done = kernel.settle(&settings);
    done.sort();
    let right = ["neighbour 10.0.0.9", "route 10.1.0.0/16", "rule 100", "rule 100", "tell wg0"];
    assert_eq!(done, right);
    assert!(kernel.seen.rules.contains(&theirs));
}

#[test]
fn what_is_no_longer_asked_for_goes() {
    let mut kernel = Kernel::with(&["eth0", "eth1"]);
    kernel.settle(&settings(EVERYTHING));
    let less = "interfaces: [{interface: eth0, cidr: 10.0.0.5/24}, {interface: eth1, mtu: 1500}]\n";
    let mut done = kernel.settle(&settings(less));
    done.sort();
    let gone = [
        "no address 10.3.0.5/24 on eth1",
        "no neighbour 10.0.0.9",
        "no route 10.1.0.0/16",
        "no route 10.2.0.0/16",
        "no route 10.4.0.0/16",
        "no rule 100",
        "no rule 100",
        "remove ?",
        "remove ?",
    ];
    let done: Vec<_> = done
        .iter()
        .map(|step| if step.starts_with("remove") { "remove ?" } else { step })
        .collect();
    assert_eq!(done, gone);
}
