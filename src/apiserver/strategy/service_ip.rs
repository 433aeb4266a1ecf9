//! Addresses and node ports of services: which are free is told by the services there are.
//!
//! As in the reference, what is asked for by number comes from the whole range, and what is not asked for from its
//! upper part as long as there is any: the lower part is for those who choose. Randomness is passed in.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::prepare::set;
use super::service::{needs_address, needs_health_port, needs_node_ports};
use crate::object::{Object, at, at_mut, items, text};
use crate::resources::Resource;
use crate::status::{Cause, Status};

/// What there is to give.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Address and length of the prefix, at most one of each family; the first is that of services that do not say.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Of the nodes.
    pub ports: RangeInclusive<u16>,
}

/// The node ports of the reference.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// What is given already.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    addresses: HashSet<IpAddr>,
    ports: HashSet<u16>,
}

impl InUse {
    /// By these services.
    pub fn of<'a>(services: impl IntoIterator<Item = &'a Object>) -> Self {
        let mut used = Self::default();
        for service in services {
            used.addresses.extend(addresses(service));
            used.ports.extend(ports(service));
        }
        used
    }
}

/// Gives a service what it needs and does not have, after its preparation. `random` gives a number below its argument,
/// which is never zero.
///
/// # Errors
/// It asks for what is not to be had (422), or nothing is left (500).
pub fn allocate(
    resource: &Resource,
    service: &mut Object,
    old: Option<&Object>,
    ranges: &Ranges,
    in_use: &InUse,
    random: &mut dyn FnMut(u64) -> u64,
) -> Result<(), Status> {
    let mut in_use = in_use.clone();
    if let Some(old) = old {
        let (addresses, ports): (HashSet<_>, HashSet<_>) =
            (addresses(old).collect(), ports(old).collect());
        in_use.addresses.retain(|used| !addresses.contains(used));
        in_use.ports.retain(|used| !ports.contains(used));
    }
    let name = text(service, "/metadata/name").to_owned();
    let invalid = |cause| Status::invalid(resource, &name, vec![cause]);
    if needs_address(service) {
        let families = families(service, ranges).map_err(invalid)?;
        if text(service, "/spec/clusterIP") != "None" {
            give_addresses(service, &families, ranges, &in_use, random)
                .map_err(|refused| refused.status(resource, &name))?;
        } else {
            set(service, &["spec", "clusterIPs"], json!(["None"]));
        }
    }
    if needs_node_ports(service) || needs_health_port(service) {
        give_ports(service, ranges, &mut in_use, random)
            .map_err(|refused| refused.status(resource, &name))?;
    }
    Ok(())
}

/// Why nothing is given.
enum Refused {
    Invalid(Cause),
    /// Nothing is left.
    Full(String),
}

impl Refused {
    fn status(self, resource: &Resource, name: &str) -> Status {
        match self {
            Self::Invalid(cause) => Status::invalid(resource, name, vec![cause]),
            Self::Full(why) => Status::internal(&why),
        }
    }
}

/// Those of a service.
fn addresses(service: &Object) -> impl Iterator<Item = IpAddr> {
    let one = at(service, "/spec/clusterIP").into_iter();
    one.chain(items(service, "/spec/clusterIPs"))
        .filter_map(|address| address.as_str()?.parse().ok())
}

/// Those of a service, for its health too.
fn ports(service: &Object) -> impl Iterator<Item = u16> {
    let health = at(service, "/spec/healthCheckNodePort").into_iter();
    let own = items(service, "/spec/ports").filter_map(|port| port.get("nodePort"));
    own.chain(health)
        .filter_map(|port| port.as_u64().and_then(|port| u16::try_from(port).ok()))
        .filter(|port| *port != 0)
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Of which families its addresses are, which the service says from now on.
fn families(service: &mut Object, ranges: &Ranges) -> Result<Vec<String>, Cause> {
    let configured: Vec<&str> =
        ranges.addresses.iter().map(|(address, _)| family(*address)).collect();
    let mut wanted: Vec<String> =
        items(service, "/spec/ipFamilies").filter_map(Value::as_str).map(str::to_owned).collect();
    let headless = text(service, "/spec/clusterIP") == "None";
    let selects = at(service, "/spec/selector").and_then(Value::as_object);
    let free = headless && selects.is_none_or(serde_json::Map::is_empty);
    // Nobody but its owner says where it leads, so that it is not held to what the cluster has.
    let default = if free { "RequireDualStack" } else { "SingleStack" };
    let policy = match text(service, "/spec/ipFamilyPolicy") {
        "" if !free && wanted.len() == 2 => "RequireDualStack",
        "" => default,
        policy => policy,
    }
    .to_owned();
    if policy == "RequireDualStack" && configured.len() < 2 && !free {
        let why = "this cluster is not configured for dual-stack services";
        return Err(Cause::invalid("spec.ipFamilyPolicy", &json!(policy), why));
    }
    if !free {
        for (index, family) in wanted.iter().enumerate() {
            if !configured.contains(&family.as_str()) {
                let path = format!("spec.ipFamilies[{index}]");
                return Err(Cause::invalid(path, &json!(family), "not configured on this cluster"));
            }
        }
    }
    // An address that is asked for says of which family it is.
    for (index, address) in items(service, "/spec/clusterIPs").enumerate() {
        let asked = address.as_str().and_then(|address| address.parse().ok()).map(family);
        match (asked, wanted.get(index)) {
            (Some(asked), None) => wanted.push(asked.to_owned()),
            (Some(asked), Some(said)) if said != asked => {
                let path = format!("spec.clusterIPs[{index}]");
                let why = format!("expected an {said} value as indicated by `ipFamilies[{index}]`");
                return Err(Cause::invalid(path, address, &why));
            }
            _ => {}
        }
    }
    if wanted.is_empty() {
        wanted.extend(configured.first().map(|first| (*first).to_owned()));
    }
    let both =
        policy == "RequireDualStack" || (policy == "PreferDualStack" && configured.len() == 2);
    if both && wanted.len() == 1 {
        wanted.push(if wanted[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
    }
    if policy == "SingleStack" {
        wanted.truncate(1);
    }
    set(service, &["spec", "ipFamilyPolicy"], policy.into());
    set(service, &["spec", "ipFamilies"], json!(wanted));
    Ok(wanted)
}

fn give_addresses(
    service: &mut Object,
    families: &[String],
    ranges: &Ranges,
    in_use: &InUse,
    random: &mut dyn FnMut(u64) -> u64,
) -> Result<(), Refused> {
    let asked: Vec<Value> = items(service, "/spec/clusterIPs").cloned().collect();
    let mut given = Vec::new();
    for (index, wanted) in families.iter().enumerate() {
        let range = ranges.addresses.iter().find(|(address, _)| family(*address) == wanted);
        let Some(&(base, length)) = range else { continue };
        let own = asked.get(index).and_then(Value::as_str).and_then(|own| own.parse().ok());
        let refuse = |own: IpAddr, why: &str| {
            let why = format!("failed to allocate IP {own}: {why}");
            Refused::Invalid(Cause::invalid("spec.clusterIPs", &json!(asked), &why))
        };
        let address = match own {
            Some(own) => {
                if !is_usable(base, length, own) {
                    let base = address_at(base, length, 0);
                    return Err(refuse(
                        own,
                        &format!(
                            "the provided IP ({own}) is not in the valid range. The range of valid IPs is {base}/{length}"
                        ),
                    ));
                }
                if in_use.addresses.contains(&own) {
                    return Err(refuse(own, "provided IP is already allocated"));
                }
                own
            }
            None => {
                let size = size(base, length);
                let free =
                    |offset: u64| !in_use.addresses.contains(&address_at(base, length, offset + 1));
                let reserved = band(size, 16, 16, 256);
                let offset = choose(size, reserved, in_use.addresses.len(), &free, random)
                    .ok_or_else(|| {
                        Refused::Full("failed to allocate a serviceIP: range is full".to_owned())
                    })?;
                address_at(base, length, offset + 1)
            }
        };
        given.push(address.to_string());
    }
    if let Some(first) = given.first() {
        set(service, &["spec", "clusterIP"], first.as_str().into());
    }
    set(service, &["spec", "clusterIPs"], json!(given));
    Ok(())
}

fn give_ports(
    service: &mut Object,
    ranges: &Ranges,
    in_use: &mut InUse,
    random: &mut dyn FnMut(u64) -> u64,
) -> Result<(), Refused> {
    let (first, last) = (*ranges.ports.start(), *ranges.ports.end());
    let size = u64::from(last.saturating_sub(first)) + 1;
    let ask = |port: u64, path: String, value: &Value, used: &HashSet<u16>| {
        let refuse = |why: &str| Err(Refused::Invalid(Cause::invalid(path.clone(), value, why)));
        match u16::try_from(port) {
            Ok(port) if ranges.ports.contains(&port) => {
                if used.contains(&port) {
                    return refuse("provided port is already allocated");
                }
                Ok(port)
            }
            _ => refuse(&format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            )),
        }
    };
    let mut choose_port = |used: &HashSet<u16>| {
        let port = |offset: u64| first.saturating_add(u16::try_from(offset).unwrap_or(u16::MAX));
        let reserved = band(size, 16, 32, 128);
        let free = |offset: u64| !used.contains(&port(offset));
        let offset = choose(size, reserved, used.len(), &free, random);
        offset
            .map(port)
            .ok_or_else(|| Refused::Full("failed to allocate a nodePort: range is full".to_owned()))
    };
    if needs_node_ports(service)
        && let Some(Value::Array(own)) = at_mut(service, "/spec/ports")
    {
        // The same port of another protocol has the same port of the node.
        let mut by_port: HashMap<i64, u16> = HashMap::new();
        let mut ours: HashSet<u16> = HashSet::new();
        for (index, port) in own.iter().enumerate() {
            let asked = port["nodePort"].as_u64().unwrap_or(0);
            if asked != 0 {
                let path = format!("spec.ports[{index}].nodePort");
                let asked = ask(asked, path, &port["nodePort"], &in_use.ports)?;
                ours.insert(asked);
                by_port.entry(port["port"].as_i64().unwrap_or(0)).or_insert(asked);
            }
        }
        in_use.ports.extend(ours);
        for port in own.iter_mut().filter(|port| port["nodePort"].as_u64().unwrap_or(0) == 0) {
            let number = port["port"].as_i64().unwrap_or(0);
            let given = match by_port.get(&number) {
                Some(given) => *given,
                None => choose_port(&in_use.ports)?,
            };
            in_use.ports.insert(given);
            by_port.insert(number, given);
            if let Some(port) = port.as_object_mut() {
                port.insert("nodePort".to_owned(), given.into());
            }
        }
    }
    if needs_health_port(service) {
        let value = at(service, "/spec/healthCheckNodePort").cloned().unwrap_or_default();
        let given = match value.as_u64().unwrap_or(0) {
            0 => choose_port(&in_use.ports)?,
            asked => ask(asked, "spec.healthCheckNodePort".to_owned(), &value, &in_use.ports)?,
        };
        set(service, &["spec", "healthCheckNodePort"], given.into());
    }
    Ok(())
}

/// How much of a range is for those who choose: a share of it, within limits; none of a small one.
fn band(size: u64, least: u64, share: u64, most: u64) -> u64 {
    if size <= least { 0 } else { (size / share).clamp(least, most) }
}

/// A free place, above the reserved ones if there is one. Tried at random as long as that is likely to find one, then
/// one after the other from where the last try was.
fn choose(
    size: u64,
    reserved: u64,
    used: usize,
    free: &dyn Fn(u64) -> bool,
    random: &mut dyn FnMut(u64) -> u64,
) -> Option<u64> {
    for (start, end) in [(reserved, size), (0, reserved)] {
        let count = end - start;
        if count == 0 {
            continue;
        }
        let from = random(count) % count;
        // So many are surely enough to meet one that is free.
        let most = count.min(u64::try_from(used).unwrap_or(u64::MAX).saturating_add(1));
        let found = (0..most).map(|step| start + (from + step) % count).find(|place| free(*place));
        if found.is_some() {
            return found;
        }
    }
    None
}

/// How many addresses of a prefix can be given: without the first, and of IPv4 without the last, at most 65,535.
fn size(base: IpAddr, length: u8) -> u64 {
    let bits = if base.is_ipv4() { 32 } else { 128 } - u32::from(length);
    if bits > 16 {
        return if base.is_ipv4() { (1 << bits.min(32)) - 2 } else { 65_535 };
    }
    ((1_u64 << bits) - 1).saturating_sub(u64::from(base.is_ipv4()))
}

/// The address at a place of a prefix.
fn address_at(base: IpAddr, length: u8, place: u64) -> IpAddr {
    match base {
        IpAddr::V4(base) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            let place = u32::try_from(place).unwrap_or(u32::MAX) & !mask;
            Ipv4Addr::from(u32::from(base) & mask | place).into()
        }
        IpAddr::V6(base) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from(u128::from(base) & mask | u128::from(place) & !mask).into()
        }
    }
}

/// Is it within a prefix, and neither its first nor, of IPv4, its last?
fn is_usable(base: IpAddr, length: u8, address: IpAddr) -> bool {
    let first = address_at(base, length, 0);
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(own)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            let (base, own) = (u32::from(base), u32::from(own));
            base & mask == own & mask
                && IpAddr::from(Ipv4Addr::from(own)) != first
                && own | mask != u32::MAX
        }
        (IpAddr::V6(base), IpAddr::V6(own)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            u128::from(base) & mask == u128::from(own) & mask && IpAddr::V6(own) != first
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { unreachable!("it is an object") };
        object
    }

    fn ranges(addresses: &[&str]) -> Ranges {
        let range = |text: &&str| {
            let (address, length) = text.split_once('/').expect("a range");
            (address.parse().expect("an address"), length.parse().expect("a length"))
        };
        Ranges { addresses: addresses.iter().map(range).collect(), ports: NODE_PORTS }
    }

    /// The specification of a service after it was given what it needs; the dice always show the same.
    fn given(
        spec: Value,
        old: Option<Value>,
        ranges: &Ranges,
        others: &[Value],
    ) -> Result<Value, String> {
        let services = find("", "v1", "services").expect("services");
        let whole = |spec: &Value| {
            let mut spec = spec.clone();
            let all = object(json!({"type": "ClusterIP"}));
            for (name, value) in all {
                spec.as_object_mut().expect("an object").entry(name).or_insert(value);
            }
            object(json!({"metadata": {"name": "s"}, "spec": spec}))
        };
        let others: Vec<_> = others.iter().map(whole).collect();
        let mut service = whole(&spec);
        let old = old.as_ref().map(whole);
        let used = InUse::of(&others);
        allocate(services, &mut service, old.as_ref(), ranges, &used, &mut |limit| 7 % limit)
            .map_err(|status| status.message)?;
        Ok(service["spec"].clone())
    }

    #[test]
    fn services_get_addresses_nobody_has() {
        let cluster = ranges(&["10.96.0.0/24"]);
        let first = given(json!({}), None, &cluster, &[]).expect("there is room");
        // 254 usable, of which 16 are for those who choose: the 17th and seven more.
        assert_eq!(
            first,
            json!({"type": "ClusterIP", "clusterIP": "10.96.0.24", "clusterIPs": ["10.96.0.24"],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"})
        );
        let second =
            given(json!({}), None, &cluster, std::slice::from_ref(&first)).expect("there is room");
        assert_eq!(second["clusterIP"], "10.96.0.25");
        let asked = |address: &str| json!({"clusterIP": address, "clusterIPs": [address]});
        let own = given(asked("10.96.0.10"), None, &cluster, std::slice::from_ref(&first))
            .expect("it is free");
        assert_eq!(own["clusterIPs"], json!(["10.96.0.10"]));
        assert_eq!(
            given(asked("10.96.0.24"), None, &cluster, std::slice::from_ref(&first)),
            Err("Service \"s\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.24\"]: failed to allocate IP \
                 10.96.0.24: provided IP is already allocated"
                .to_owned())
        );
        assert_eq!(
            given(first.clone(), Some(first.clone()), &cluster, std::slice::from_ref(&first)),
            Ok(first)
        );
        for address in ["10.97.0.1", "10.96.0.0", "10.96.0.255"] {
            assert_eq!(
                given(asked(address), None, &cluster, &[]),
                Err(format!(
                    "Service \"s\" is invalid: spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP \
                     {address}: the provided IP ({address}) is not in the valid range. The range of valid IPs is \
                     10.96.0.0/24"
                ))
            );
        }
        assert_eq!(
            given(json!({"clusterIP": "None", "selector": {"a": "b"}}), None, &cluster, &[])
                .expect("it needs none"),
            json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"},
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"})
        );
        let outer = json!({"type": "ExternalName", "externalName": "a.b"});
        assert_eq!(given(outer.clone(), None, &cluster, &[]), Ok(outer));
    }

    #[test]
    fn a_range_is_given_to_its_last_address() {
        let small = ranges(&["10.0.0.0/29"]);
        let mut all = Vec::new();
        for _ in 0..6 {
            all.push(given(json!({}), None, &small, &all).expect("there is room"));
        }
        let mut names: Vec<_> = all.iter().map(|spec| spec["clusterIP"].to_string()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 6);
        assert_eq!(
            given(json!({}), None, &small, &all),
            Err("Internal error occurred: failed to allocate a serviceIP: range is full".to_owned())
        );
    }

    #[test]
    fn both_families_are_given_where_both_are_there() {
        let both = ranges(&["10.96.0.0/16", "fd00::/108"]);
        let spec = given(json!({"ipFamilyPolicy": "PreferDualStack"}), None, &both, &[])
            .expect("there is room");
        assert_eq!(spec["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(spec["clusterIPs"], json!(["10.96.1.8", "fd00::108"]));
        let six = given(json!({"ipFamilies": ["IPv6"]}), None, &both, &[]).expect("there is room");
        assert_eq!(six["clusterIP"], "fd00::108");
        let one = ranges(&["10.96.0.0/16"]);
        let said = |spec: Value| given(spec, None, &one, &[]).expect_err("there is no IPv6");
        assert_eq!(
            said(json!({"ipFamilyPolicy": "RequireDualStack"})),
            "Service \"s\" is invalid: spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not \
             configured for dual-stack services"
        );
        assert_eq!(
            said(json!({"ipFamilies": ["IPv6"]})),
            "Service \"s\" is invalid: spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"
        );
    }

    #[test]
    fn node_ports_are_given_once() {
        let cluster = ranges(&["10.96.0.0/16"]);
        let port =
            |protocol: &str, node: u32| json!({"port": 53, "protocol": protocol, "nodePort": node});
        let node = |ports: Value| json!({"type": "NodePort", "ports": ports});
        let spec =
            given(node(json!([port("TCP", 0), port("UDP", 0), {"port": 80}])), None, &cluster, &[])
                .expect("there is room");
        // 2768 ports, of which 86 are for those who choose.
        assert_eq!(spec["ports"][0]["nodePort"], 30_093);
        assert_eq!(spec["ports"][1]["nodePort"], 30_093);
        assert_eq!(spec["ports"][2]["nodePort"], 30_094);
        let said = |number: u32| {
            given(node(json!([port("TCP", number)])), None, &cluster, std::slice::from_ref(&spec))
        };
        assert_eq!(
            said(30_093),
            Err("Service \"s\" is invalid: spec.ports[0].nodePort: Invalid value: 30093: provided port is already allocated".to_owned())
        );
        assert_eq!(
            said(80),
            Err("Service \"s\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid \
                 range. The range of valid ports is 30000-32767"
                .to_owned())
        );
        let balanced = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false,
            "ports": [{"port": 80}]});
        let spec = given(balanced, None, &cluster, &[]).expect("there is room");
        assert_eq!(
            (&spec["healthCheckNodePort"], &spec["ports"]),
            (&json!(30_093), &json!([{"port": 80}]))
        );
    }
}
