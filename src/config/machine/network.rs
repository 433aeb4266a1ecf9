//! `machine.network`: host name, interfaces, resolvers (spec/node-api §6.3–6.4).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::wireguard::Wireguard;
use crate::value::{mtu, pem, text, texts};

/// `machine.network`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Network {
    /// Beats every other source of the host name; split at its first dot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Settings by link name; several of one name add up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Replace the default resolvers.
    #[serde(with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<IpAddr>,
    /// Lines for `/etc/hosts`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_host_entries: Vec<HostEntry>,
    /// Which routing table a packet is looked up in; ours, as the rest of this generation has none here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Domains to look for short names in, in place of those that servers name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search_domains: Vec<String>,
    /// Do not search the node's own domain.
    #[serde(skip_serializing_if = "is_false")]
    pub disable_search_domain: bool,
    /// The caching resolver on loopback; `None` means off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Resolver>,
}

/// `machine.network.resolver`, a key of ours.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Resolver {
    /// Whether it runs, and `/etc/resolv.conf` names it.
    pub enabled: bool,
    /// Servers that are asked over TLS (RFC 7858) in place of all others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<TlsResolver>,
}

/// `resolver.tls[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TlsResolver {
    /// Required.
    #[serde(with = "text")]
    pub address: Option<IpAddr>,
    /// `None` means 853.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What its certificate must say: a DNS name or an address; required.
    pub name: String,
    /// The authorities to trust, in PEM; empty means those of the distribution.
    #[serde(with = "pem", skip_serializing_if = "String::is_empty")]
    pub ca: String,
}

/// A policy rule, `ip-rule(8)`. Without `src` and `dst` it is for both families.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Rule {
    /// 1..=32765, each once for a family; required. Lower is asked first.
    pub priority: u32,
    /// Where the packet comes from.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub src: Option<IpNet>,
    /// Where it goes to.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpNet>,
    /// The link it came in by; `lo` means that it is the node's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iif_name: Option<String>,
    /// The link that its socket is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oif_name: Option<String>,
    /// Its mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fw_mark: Option<u32>,
    /// The bits of the mark that count; `None` means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fw_mask: Option<u32>,
    /// What is done with it; `None` means that `table` is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Fate>,
    /// Required without `action`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HostEntry {
    /// Required.
    #[serde(with = "text")]
    pub ip: Option<IpAddr>,
    /// Names of that address.
    pub aliases: Vec<String>,
}

/// `machine.network.interfaces[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Interface {
    /// The link's name; required without `deviceSelector`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// Every link that it fits, instead of one by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_selector: Option<DeviceSelector>,
    /// Address and prefix length; excludes `dhcp`.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub cidr: Option<IpNet>,
    /// More addresses, beside `cidr` or `dhcp`.
    #[serde(with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNet>,
    /// Addresses by DHCP.
    #[serde(skip_serializing_if = "is_false")]
    pub dhcp: bool,
    /// How DHCP is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dhcp_options: Option<DhcpOptions>,
    /// Routes through this link.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Bytes, 68..=65535; `None` leaves the link's own. Beats DHCP's.
    #[serde(deserialize_with = "mtu::deserialize", skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Leave the link alone.
    #[serde(skip_serializing_if = "is_false")]
    pub ignore: bool,
    /// Create it as a dummy link.
    #[serde(skip_serializing_if = "is_false")]
    pub dummy: bool,
    /// 802.1Q links on top of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vlans: Vec<Vlan>,
    /// Create it as a bond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond: Option<Bond>,
    /// Create it as a bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridge>,
    /// Create it as an encrypted link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<Wireguard>,
    /// Create it as a routing domain of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vrf: Option<Vrf>,
    /// An address that one control plane has at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<Vip>,
    /// Neighbours whose hardware address is known without asking.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub neighbors: Vec<Neighbor>,
    /// Whether the kernel forms addresses and takes routes as IPv6 routers say; `None` means that it does on
    /// links with DHCP, and elsewhere does what it likes.
    #[serde(rename = "acceptRA", skip_serializing_if = "Option::is_none")]
    pub accept_ra: Option<bool>,
}

/// `deviceSelector`: what is given must fit, with `*` for any text and `?` for any character; at least one
/// key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DeviceSelector {
    /// Where it sits on its bus, as `0000:00:1f.6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus_path: Option<String>,
    /// Its Ethernet address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware_addr: Option<String>,
    /// The Ethernet address that it was made with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permanent_addr: Option<String>,
    /// Maker and model, as `8086:1533`.
    #[serde(rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
    /// The kernel's driver, as `virtio_net`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Whether it is a device, or made of software.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub physical: Option<bool>,
}

/// Options of a VRF (Documentation/networking/vrf.rst).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Vrf {
    /// The links in it; they keep their addresses.
    pub interfaces: Vec<String>,
    /// Its routing table; required, none of the kernel's own.
    pub table: u32,
}

/// `vip`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Vip {
    /// The address; required.
    #[serde(with = "text")]
    pub ip: Option<IpAddr>,
}

/// `neighbors[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Neighbor {
    /// Required.
    #[serde(with = "text")]
    pub ip: Option<IpAddr>,
    /// Six bytes in hexadecimal with colons; required.
    pub hardware_addr: String,
}

/// Options of a bridge.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Bridge {
    /// The links that are its ports; there may be none at first.
    pub interfaces: Vec<String>,
    /// The spanning tree protocol; `None` means off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stp: Option<Stp>,
    /// VLANs between its ports; `None` means that all frames pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<BridgeVlan>,
}

/// `bridge.stp`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Stp {
    /// Whether loops between bridges are cut.
    pub enabled: bool,
}

/// `bridge.vlan`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct BridgeVlan {
    /// Whether frames pass only between ports of the same VLAN.
    pub vlan_filtering: bool,
}

/// `dhcpOptions`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DhcpOptions {
    /// Of the default route; `None` means 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_metric: Option<u32>,
}

/// A static route.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// Destination; required.
    #[serde(with = "text")]
    pub network: Option<IpNet>,
    /// `None`, `0.0.0.0` and `::` mean on-link.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// `None` means 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// What packets of the node's own have for their sender; `None` means the link's first address.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The largest packet on this way, in bytes; `None` means the link's.
    #[serde(deserialize_with = "mtu::deserialize", skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// `None` means the main one, or that of the link's VRF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// There is no way: what happens to packets; `None` means that there is.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<Fate>,
}

/// The link `<interface>.<vlanId>`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Vlan {
    /// 1..=4094 (IEEE 802.1Q).
    pub vlan_id: u16,
    /// Address and prefix length; excludes `dhcp`.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub cidr: Option<IpNet>,
    /// Routes through this link.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Addresses by DHCP.
    #[serde(skip_serializing_if = "is_false")]
    pub dhcp: bool,
    /// More addresses, beside `cidr` or `dhcp`.
    #[serde(with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNet>,
    /// As that of a link.
    #[serde(deserialize_with = "mtu::deserialize", skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// As that of a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<Vip>,
}

/// Options of a bond (Documentation/networking/bonding.rst); `None` leaves the kernel's default.
/// A word's value on the wire is its position in its enumeration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the kernel's names, explained in its documentation")]
pub struct Bond {
    /// The links it is made of; at least one.
    pub interfaces: Vec<String>,
    #[serde(rename = "arpIPTarget", with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub arp_ip_target: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<BondMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xmit_hash_policy: Option<XmitHashPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacp_rate: Option<LacpRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ad_actor_system: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arp_validate: Option<ArpValidate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arp_all_targets: Option<ArpAllTargets>,
    /// A link's name; it becomes an index on the wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_reselect: Option<PrimaryReselect>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_over_mac: Option<FailOverMac>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ad_select: Option<AdSelect>,
    /// Milliseconds, like the two delays and the ARP interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miimon: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updelay: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downdelay: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arp_interval: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resend_igmp: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_links: Option<u32>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lp_interval: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_per_slave: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_peer_notif: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tlb_dynamic_lb: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_slaves_active: Option<u8>,
    /// Sent as 0 when absent.
    #[serde(skip_serializing_if = "is_false")]
    pub use_carrier: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ad_actor_sys_prio: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ad_user_port_key: Option<u16>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_notify_delay: Option<u32>,
}

/// An enumeration of the kernel's words; the value on the wire is the position.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "the kernel's words")]
        pub enum $name {
            $(#[serde(rename = $word)] $variant,)+
        }
    };
}

words!(
    /// IFLA_BOND_MODE.
    BondMode {
        BalanceRr = "balance-rr",
        ActiveBackup = "active-backup",
        BalanceXor = "balance-xor",
        Broadcast = "broadcast",
        Ieee8023ad = "802.3ad",
        BalanceTlb = "balance-tlb",
        BalanceAlb = "balance-alb",
    }
);
words!(
    /// IFLA_BOND_XMIT_HASH_POLICY.
    XmitHashPolicy {
        Layer2 = "layer2",
        Layer34 = "layer3+4",
        Layer23 = "layer2+3",
        Encap23 = "encap2+3",
        Encap34 = "encap3+4",
    }
);
words!(
    /// IFLA_BOND_AD_LACP_RATE.
    LacpRate { Slow = "slow", Fast = "fast" }
);
words!(
    /// IFLA_BOND_AD_SELECT.
    AdSelect { Stable = "stable", Bandwidth = "bandwidth", Count = "count" }
);
words!(
    /// IFLA_BOND_ARP_VALIDATE.
    ArpValidate { None = "none", Active = "active", Backup = "backup", All = "all" }
);
words!(
    /// IFLA_BOND_ARP_ALL_TARGETS.
    ArpAllTargets { Any = "any", All = "all" }
);
words!(
    /// IFLA_BOND_PRIMARY_RESELECT.
    PrimaryReselect { Always = "always", Better = "better", Failure = "failure" }
);
words!(
    /// IFLA_BOND_FAIL_OVER_MAC.
    FailOverMac { None = "none", Active = "active", Follow = "follow" }
);

/// What is done with a packet that is not to pass (`ip-route(8)`); the value on the wire is `RTN_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It vanishes.
    Blackhole = 6,
    /// Its sender is told that there is no such host.
    Unreachable = 7,
    /// Its sender is told that somebody forbids it.
    Prohibit = 8,
}

pub(super) fn is_false(value: &bool) -> bool {
    !value
}
