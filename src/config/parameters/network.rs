//! The static network of node parameters, as a `machine.network`.
//!
//! What a link is made of and its addresses and routes are the same in both; the names that node parameters give to
//! devices are not given here: who is found by its hardware stays with the kernel's name, and what is built on it must
//! say that name.

use orlop_proto::osbase::net::proto::bond::{CarrierMonitor, LinkMonitor, Mode, lacp};
use orlop_proto::osbase::net::proto::i_pv6_autoconfig::Privacy;
use orlop_proto::osbase::net::proto::interface::Type;
use orlop_proto::osbase::net::proto::{Bond, Device, Interface, Net, Vlan, interface, vlan};

use super::{Wrong, wrong};
use crate::machine::{
    self, AdSelect, BondMode, DeviceSelector, LacpRate, Network, Route, XmitHashPolicy,
};

/// The network, and what of it is left out.
pub(super) fn understood(net: &Net) -> Result<(Network, Vec<String>), Wrong> {
    let mut network = Network::default();
    let mut left_out = Vec::new();
    for (i, server) in net.nameserver.iter().enumerate() {
        let at = format!("network_config.nameserver[{i}].ip");
        network.nameservers.push(parsed(&at, &server.ip)?);
    }
    let mut vlans = Vec::new();
    for (i, interface) in net.interface.iter().enumerate() {
        let at = format!("network_config.interface[{i}]");
        let made = link(&at, interface, &mut left_out)?;
        match &interface.r#type {
            Some(Type::Vlan(vlan)) => vlans.push((at, vlan, made)),
            Some(Type::Device(_) | Type::Bond(_)) | None => network.interfaces.push(made),
        }
    }
    for (at, vlan, made) in vlans {
        let vlan = on_top(&at, vlan, made)?;
        let (parent, vlan) = vlan;
        match network.interfaces.iter_mut().find(|interface| interface.interface == parent) {
            Some(interface) => interface.vlans.push(vlan),
            None => network.interfaces.push(machine::Interface {
                interface: parent,
                vlans: vec![vlan],
                ..machine::Interface::default()
            }),
        }
    }
    // What spans several of them is checked where it always is.
    match Network::parse(&network.to_yaml()) {
        Ok(network) => Ok((network, left_out)),
        Err(problems) => {
            let first = problems.list.first();
            let why = first.map(|problem| format!("{}: {}", problem.path, problem.message));
            wrong("network_config", why.unwrap_or_default())
        }
    }
}

fn link(
    at: &str,
    interface: &Interface,
    left_out: &mut Vec<String>,
) -> Result<machine::Interface, Wrong> {
    let mut made = machine::Interface {
        interface: interface.name.clone(),
        dhcp: interface.ipv4_autoconfig.is_some(),
        ..machine::Interface::default()
    };
    if let Some(autoconfig) = &interface.ipv6_autoconfig {
        made.accept_ra = Some(true);
        if autoconfig.privacy() != Privacy::Disable {
            left_out.push(format!("{at}.ipv6_autoconfig.privacy: addresses are stable here"));
        }
    }
    for (i, address) in interface.address.iter().enumerate() {
        made.addresses.push(parsed(&format!("{at}.address[{i}]"), address)?);
    }
    made.mtu = positive(&format!("{at}.mtu"), interface.mtu)?;
    for (i, route) in interface.route.iter().enumerate() {
        made.routes.push(way(&format!("{at}.route[{i}]"), route)?);
    }
    match &interface.r#type {
        Some(Type::Device(device)) => {
            if let Some(selector) = selector(at, device)? {
                made.interface = String::new();
                made.device_selector = Some(selector);
                if !interface.name.is_empty() {
                    left_out.push(format!(
                        "{at}.name: a link that is found by its hardware keeps the kernel's name"
                    ));
                }
            }
        }
        Some(Type::Bond(wanted)) => made.bond = Some(bond(at, wanted)?),
        Some(Type::Vlan(_)) | None => {}
    }
    Ok(made)
}

fn selector(at: &str, device: &Device) -> Result<Option<DeviceSelector>, Wrong> {
    if device.index != 0 {
        let why =
            "a link is found by its address, its driver or the kernel's name, not by a number";
        return wrong(format!("{at}.device.index"), why);
    }
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let selector = DeviceSelector {
        permanent_addr: given(&device.hardware_address).map(|text| text.to_ascii_lowercase()),
        driver: given(&device.driver),
        ..DeviceSelector::default()
    };
    let any = selector.permanent_addr.is_some() || selector.driver.is_some();
    Ok(any.then_some(selector))
}

fn bond(at: &str, wanted: &Bond) -> Result<machine::Bond, Wrong> {
    use orlop_proto::osbase::net::proto::bond::TransmitHashPolicy as Policy;
    let mut bond = machine::Bond {
        interfaces: wanted.member_interface.clone(),
        min_links: positive(&format!("{at}.bond.min_links"), wanted.min_links)?,
        xmit_hash_policy: Some(match wanted.transmit_hash_policy() {
            Policy::Layer2 => XmitHashPolicy::Layer2,
            Policy::Layer34 => XmitHashPolicy::Layer34,
            Policy::Layer23 => XmitHashPolicy::Layer23,
            Policy::EncapLayer23 => XmitHashPolicy::Encap23,
            Policy::EncapLayer34 => XmitHashPolicy::Encap34,
            Policy::VlanSrcmac => {
                let why = "senders' addresses and VLANs do not choose the link here";
                return wrong(format!("{at}.bond.transmit_hash_policy"), why);
            }
        }),
        ..machine::Bond::default()
    };
    if let Some(LinkMonitor::CarrierMonitor(monitor)) = &wanted.link_monitor {
        let CarrierMonitor { polling_interval_ms, down_delay_ms, up_delay_ms, force_polling } =
            monitor;
        let number =
            |field: &str, value| positive(&format!("{at}.bond.carrier_monitor.{field}"), value);
        bond.miimon = number("polling_interval_ms", *polling_interval_ms)?;
        bond.downdelay = number("down_delay_ms", *down_delay_ms)?;
        bond.updelay = number("up_delay_ms", *up_delay_ms)?;
        bond.use_carrier = !force_polling;
    }
    match &wanted.mode {
        Some(Mode::ActiveBackup(_)) => {
            bond.mode = Some(BondMode::ActiveBackup);
            bond.xmit_hash_policy = None;
        }
        Some(Mode::Lacp(lacp)) => {
            bond.mode = Some(BondMode::Ieee8023ad);
            bond.lacp_rate = Some(match lacp.rate() {
                lacp::Rate::Slow => LacpRate::Slow,
                lacp::Rate::Fast => LacpRate::Fast,
            });
            bond.ad_select = Some(match lacp.selection_logic() {
                lacp::SelectionLogic::Stable => AdSelect::Stable,
                lacp::SelectionLogic::Bandwidth => AdSelect::Bandwidth,
                lacp::SelectionLogic::Count => AdSelect::Count,
            });
            let number = |field: &str, value| small(&format!("{at}.bond.lacp.{field}"), value);
            bond.ad_actor_sys_prio = number("actor_system_priority", lacp.actor_system_priority)?;
            bond.ad_user_port_key = number("user_port_key", lacp.user_port_key)?;
            bond.ad_actor_system =
                Some(lacp.actor_system_mac.clone()).filter(|mac| !mac.is_empty());
        }
        None => return wrong(format!("{at}.bond.mode"), "there is none"),
    }
    Ok(bond)
}

/// The link beneath, and what is on top of it.
fn on_top(
    at: &str,
    wanted: &Vlan,
    made: machine::Interface,
) -> Result<(String, machine::Vlan), Wrong> {
    if wanted.protocol() != vlan::Protocol::Cvlan {
        return wrong(format!("{at}.vlan.protocol"), "only 802.1Q (PROTOCOL_CVLAN) is spoken here");
    }
    let Ok(vlan_id) = u16::try_from(wanted.id) else {
        return wrong(format!("{at}.vlan.id"), format!("{} is out of range 1..=4094", wanted.id));
    };
    let machine::Interface { addresses, dhcp, routes, mtu, .. } = made;
    let vlan = machine::Vlan { vlan_id, addresses, dhcp, routes, mtu, ..machine::Vlan::default() };
    Ok((wanted.parent.clone(), vlan))
}

fn way(at: &str, route: &interface::Route) -> Result<Route, Wrong> {
    let optional = |field: &str, text: &str| -> Result<_, Wrong> {
        if text.is_empty() { Ok(None) } else { parsed(&format!("{at}.{field}"), text).map(Some) }
    };
    Ok(Route {
        network: Some(parsed(&format!("{at}.destination"), &route.destination)?),
        gateway: optional("gateway_ip", &route.gateway_ip)?,
        source: optional("source_ip", &route.source_ip)?,
        metric: positive(&format!("{at}.metric"), route.metric)?,
        ..Route::default()
    })
}

fn parsed<T: std::str::FromStr>(at: &str, text: &str) -> Result<T, Wrong> {
    text.parse().or_else(|_| wrong(at, format!("{text:?} is not one")))
}

/// None for 0, which is what was not said.
fn positive(at: &str, value: i32) -> Result<Option<u32>, Wrong> {
    match u32::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => wrong(at, format!("{value} is negative")),
    }
}

fn small(at: &str, value: i32) -> Result<Option<u16>, Wrong> {
    match u16::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => wrong(at, format!("{value} is out of range 0..=65535")),
    }
}
