//! `bond=` and `vlan=`: links that are made because the command line says so, in the syntax of dracut.cmdline(7).
//!
//! A bond is read as the section of the machine configuration that says the same, with the same checks.

use serde_yaml::{Mapping, Value};

use super::{Cmdline, Problem, fields};
use crate::machine::{Interface, Network};

/// `vlan=NAME:PARENT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanArgument {
    /// The link that is made.
    pub name: String,
    /// The link that carries its tagged frames.
    pub parent: String,
    /// 1..=4094, from the end of the name: `vlan5`, `vlan0005`, `eth0.5` or `eth0.0005`.
    pub id: u16,
}

/// Options of the bonding driver whose keys in the configuration are not the same words in camel case.
const RENAMED: [(&str, &str); 4] = [
    ("arp_ip_target", "arpIPTarget"),
    ("num_grat_arp", "numPeerNotif"),
    ("num_unsol_na", "numPeerNotif"),
    ("peer_notif_delay", "peerNotifyDelay"),
];
/// By their numbers, as the driver also knows them.
const MODES: [&str; 7] = [
    "balance-rr",
    "active-backup",
    "balance-xor",
    "broadcast",
    "802.3ad",
    "balance-tlb",
    "balance-alb",
];

impl Cmdline {
    /// `bond=NAME[:PORT,PORT…[:OPTION=VALUE,OPTION=VALUE…[:MTU]]]`, each on the line. Options are the bonding
    /// driver's (Documentation/networking/bonding.rst); of several `arp_ip_target` a semicolon stands between two.
    pub fn bonds(&self) -> impl Iterator<Item = Result<Interface, Problem>> {
        self.each("bond", bond)
    }

    /// `vlan=NAME:PARENT`, each on the line.
    pub fn vlans(&self) -> impl Iterator<Item = Result<VlanArgument, Problem>> {
        self.each("vlan", vlan)
    }

    pub(super) fn each<T>(
        &self,
        name: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> impl Iterator<Item = Result<T, Problem>> {
        self.values(name).map(move |text| {
            read(text).map_err(|reason| Problem { argument: format!("{name}={text}"), reason })
        })
    }
}

fn bond(text: &str) -> Result<Interface, String> {
    let fields = fields(text);
    if fields.len() > 4 {
        return Err(format!("it has {} of at most 4 fields", fields.len()));
    }
    let field = |at: usize| fields.get(at).copied().filter(|field| !field.is_empty());
    let ports = field(1).unwrap_or("eth0,eth1").split(',').map(Value::from).collect();
    // The driver's default; the configuration's is off.
    let mut bond = Mapping::from_iter([
        ("interfaces".into(), Value::Sequence(ports)),
        ("useCarrier".into(), true.into()),
    ]);
    for option in field(2).unwrap_or("mode=balance-rr").split(',') {
        let (name, value) = option
            .split_once('=')
            .ok_or_else(|| format!("{option:?} is no option: it must be OPTION=VALUE"))?;
        let renamed = RENAMED.iter().find(|(theirs, _)| *theirs == name);
        let key = renamed.map_or_else(|| camel_case(name), |(_, ours)| (*ours).to_owned());
        bond.insert(key.into(), option_value(name, value));
    }
    let mut section = Mapping::from_iter([
        ("interface".into(), field(0).unwrap_or("bond0").into()),
        ("bond".into(), bond.into()),
    ]);
    if let Some(mtu) = field(3) {
        section.insert("mtu".into(), scalar(mtu));
    }
    checked(section)
}

fn vlan(text: &str) -> Result<VlanArgument, String> {
    let fields = fields(text);
    let [name, parent] = fields[..] else {
        return Err("it must be NAME:PARENT, as eth0.5:eth0".to_owned());
    };
    for name in [name, parent] {
        checked(Mapping::from_iter([("interface".into(), name.into())]))?;
    }
    let digits = name.strip_prefix("vlan").or_else(|| name.rsplit_once('.').map(|(_, id)| id));
    let id = digits.and_then(|digits| digits.parse().ok()).filter(|id| (1..=4094).contains(id));
    let id = id.ok_or_else(|| {
        format!("{name:?} has no VLAN of 1..=4094 at its end, as vlan5 or {parent}.5")
    })?;
    Ok(VlanArgument { name: name.to_owned(), parent: parent.to_owned(), id })
}

/// The section as the configuration would take it.
fn checked(section: Mapping) -> Result<Interface, String> {
    let sections = Value::Sequence(vec![section.into()]);
    let network = Mapping::from_iter([("interfaces".into(), sections)]);
    let text = serde_yaml::to_string(&network).map_err(|error| error.to_string())?;
    let network = Network::parse(&text).map_err(|problems| {
        let told = problems.list.iter().map(|problem| {
            let path = problem.path.split_once("].").map_or("", |(_, path)| path);
            format!("{path}: {}", problem.message)
        });
        told.collect::<Vec<_>>().join("; ")
    })?;
    network.interfaces.into_iter().next().ok_or_else(|| "it says nothing".to_owned())
}

fn option_value(name: &str, value: &str) -> Value {
    match (name, value) {
        ("use_carrier", "0") => false.into(),
        ("use_carrier", "1") => true.into(),
        ("arp_ip_target", list) => Value::Sequence(list.split(';').map(Value::from).collect()),
        ("mode", number) => {
            let mode = number.parse().ok().and_then(|number: usize| MODES.get(number));
            mode.copied().unwrap_or(number).into()
        }
        _ => scalar(value),
    }
}

fn scalar(text: &str) -> Value {
    text.parse::<u64>().map_or_else(|_| text.into(), Value::from)
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::parse;
    use super::*;
    use crate::machine::{BondMode, LacpRate, XmitHashPolicy};

    #[test]
    fn a_bond_is_what_the_configuration_would_say() {
        let line = parse(
            "bond=bond1:eth1,eth2:mode=802.3ad,lacp_rate=fast,xmit_hash_policy=layer2+3,miimon=100,\
             use_carrier=0,num_grat_arp=2,arp_ip_target=10.0.0.1;10.0.0.2:9000 bond=b:e:mode=1 bond=",
        );
        let bonds: Vec<_> = line.bonds().map(Result::unwrap).collect();
        let [first, second, default] = &bonds[..] else { panic!("{bonds:?}") };
        assert_eq!((first.interface.as_str(), first.mtu), ("bond1", Some(9000)));
        let bond = first.bond.as_ref().unwrap();
        assert_eq!(bond.interfaces, ["eth1", "eth2"]);
        assert_eq!((bond.mode, bond.lacp_rate), (Some(BondMode::Ieee8023ad), Some(LacpRate::Fast)));
        assert_eq!(bond.xmit_hash_policy, Some(XmitHashPolicy::Layer23));
        assert_eq!(
            (bond.miimon, bond.num_peer_notif, bond.use_carrier),
            (Some(100), Some(2), false)
        );
        assert_eq!(
            bond.arp_ip_target,
            ["10.0.0.1", "10.0.0.2"].map(|it| it.parse::<IpAddr>().unwrap())
        );
        assert_eq!(second.bond.as_ref().unwrap().mode, Some(BondMode::ActiveBackup));
        let bond = default.bond.as_ref().unwrap();
        assert_eq!((default.interface.as_str(), bond.use_carrier), ("bond0", true));
        assert_eq!(
            (&bond.interfaces[..], bond.mode),
            (&["eth0".into(), "eth1".into()][..], Some(BondMode::BalanceRr))
        );
    }

    #[test]
    fn a_vlan_has_its_number_at_the_end_of_its_name() {
        for name in ["vlan5", "vlan0005", "eth1.5", "eth1.0005"] {
            let line = parse(&format!("vlan={name}:eth1"));
            let wanted = VlanArgument { name: name.to_owned(), parent: "eth1".to_owned(), id: 5 };
            assert_eq!(line.vlans().collect::<Vec<_>>(), [Ok(wanted)]);
        }
    }

    #[test]
    fn what_is_malformed_is_told_with_its_reason() {
        for (line, reason) in [
            ("bond=b:e:mode=9", "bond.mode"),
            ("bond=b:e:mode", "\"mode\" is no option: it must be OPTION=VALUE"),
            ("bond=b:e:miimon=x", "bond.miimon"),
            ("bond=b:e:max_bonds=2", "bond.maxBonds"),
            ("bond=b:e:mode=1:67", "mtu"),
            ("bond=b:e:mode=1:9000:x", "it has 5 of at most 4 fields"),
            ("bond=0123456789abcdef:e", "interface"),
            ("vlan=eth0", "it must be NAME:PARENT"),
            ("vlan=eth0.4095:eth0", "\"eth0.4095\" has no VLAN of 1..=4094"),
            ("vlan=vlan:eth0", "has no VLAN"),
            ("vlan=a/b.5:eth0", "interface"),
        ] {
            let problems = parse(line).problems();
            let [problem] = &problems[..] else { panic!("{line}: {problems:?}") };
            assert_eq!(problem.argument, line);
            assert!(problem.reason.contains(reason), "{line}: {}", problem.reason);
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "[a-z0-9.,:=;_\\[\\]-]{0,40}") {
            let line = parse(&format!("bond={text} vlan={text}"));
            let _ = line.problems();
        }
    }
}
