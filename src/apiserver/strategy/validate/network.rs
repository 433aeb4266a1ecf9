//! Services and what leads to them.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::names::{Form, wrong};
use super::pod::{port_number, port_or_name};
use super::{Check, child, labels, named, too_many};
use crate::object::{Object, at, items, text};
use crate::resources::Resource;
use crate::status::Cause;

pub(super) const CHECKS: &[(&str, &str, Check)] = &[
    ("core/v1", "ServiceSpec", service),
    ("core/v1", "EndpointAddress", |address, path, causes| {
        named(Form::Address, text(address, "/ip"), &child(path, "ip"), causes);
    }),
    ("core/v1", "EndpointPort", endpoint_port),
    ("networking/v1", "HTTPIngressPath", ingress_path),
    ("networking/v1", "IngressBackend", ingress_backend),
    ("networking/v1", "IngressRule", |rule, path, causes| {
        host(text(rule, "/host"), &child(path, "host"), causes);
    }),
    ("networking/v1", "IPBlock", ip_block),
    ("networking/v1", "NetworkPolicyPeer", peer),
    ("networking/v1", "NetworkPolicyPort", policy_port),
];

/// What a kind asks of its parts.
pub(super) fn kind(resource: &Resource, object: &Object, causes: &mut Vec<Cause>) {
    match (resource.group, resource.plural) {
        ("discovery.k8s.io", "endpointslices") => slice(object, causes),
        ("networking.k8s.io", "ingresses") => {
            let rules = items(object, "/spec/rules").next();
            if rules.is_none() && at(object, "/spec/defaultBackend").is_none() {
                let why = "either `defaultBackend` or `rules` must be specified";
                causes.push(Cause::invalid("spec", &json!([]), why));
            }
            let class = at(object, "/metadata/annotations")
                .and_then(|notes| notes.get("kubernetes.io/ingress.class"));
            let own = at(object, "/spec/ingressClassName").filter(|class| class.is_string());
            if let (Some(class), Some(_)) = (class, own) {
                let path = "annotations.kubernetes.io/ingress.class";
                let why = "can not be set when the class field is also set";
                causes.push(Cause::invalid(path, class, why));
            }
        }
        _ => {}
    }
}

fn service(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    let own = |name: &str| text(spec, &format!("/{name}"));
    let here = |name: &str| child(path, name);
    let kind = own("type");
    let headless = own("clusterIP") == "None";
    if items(spec, "/ports").next().is_none() && !headless && kind != "ExternalName" {
        causes.push(Cause::required(here("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let plural = if kind == "NodePort" { "NodePort" } else { "LoadBalancer" };
            let why = format!("may not be set to 'None' for {plural} services");
            causes.push(Cause::invalid(here("clusterIPs[0]"), &json!("None"), &why));
        }
        "ExternalName" => {
            if items(spec, "/clusterIPs").next().is_some() {
                let why = "may not be set when `type` is 'ExternalName'";
                causes.push(Cause::forbidden(here("clusterIPs"), why));
            }
            let name = own("externalName");
            if name.is_empty() {
                causes.push(Cause::required(here("externalName"), ""));
            } else {
                let plain = name.strip_suffix('.').unwrap_or(name);
                for why in wrong(Form::Subdomain, plain) {
                    causes.push(Cause::invalid(here("externalName"), &json!(name), &why));
                }
            }
        }
        _ => {}
    }
    service_ports(spec, path, causes);
    labels(spec.get("selector"), &here("selector"), causes);
    cluster_addresses(spec, path, causes);
    for (index, address) in items(spec, "/externalIPs").enumerate() {
        let here = format!("{path}.externalIPs[{index}]");
        let text = address.as_str().unwrap_or_default();
        let before = causes.len();
        named(Form::Address, text, &here, causes);
        if causes.len() == before {
            outside(text, &here, causes);
        }
    }
    ranges(spec, path, causes);
    let external = matches!(kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && items(spec, "/externalIPs").next().is_some());
    if !external && !own("externalTrafficPolicy").is_empty() {
        let why = "may only be set for externally-accessible services";
        let value = json!(own("externalTrafficPolicy"));
        causes.push(Cause::invalid(here("externalTrafficPolicy"), &value, why));
    }
    if kind != "LoadBalancer" {
        for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec.get(name).is_some_and(|value| !value.is_null()) {
                let why = "may only be used when `type` is 'LoadBalancer'";
                causes.push(Cause::forbidden(here(name), why));
            }
        }
    }
    let health = spec.get("healthCheckNodePort").and_then(Value::as_i64).unwrap_or(0);
    let local = kind == "LoadBalancer" && own("externalTrafficPolicy") == "Local";
    if health != 0 && !local {
        let why =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        causes.push(Cause::invalid(here("healthCheckNodePort"), &json!(health), why));
    }
    let seconds = at(spec, "/sessionAffinityConfig/clientIP/timeoutSeconds");
    if let Some(seconds) = seconds
        && !seconds.as_i64().is_some_and(|seconds| (1..=86_400).contains(&seconds))
    {
        let path = here("sessionAffinityConfig.clientIP.timeoutSeconds");
        causes.push(Cause::invalid(path, seconds, "must be greater than 0 and less than 86400"));
    }
}

fn service_ports(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    let count = items(spec, "/ports").count();
    let kind = text(spec, "/type");
    let mut names = HashSet::new();
    let mut numbers = HashSet::new();
    let mut nodes = HashSet::new();
    for (index, port) in items(spec, "/ports").enumerate() {
        let here = |name: &str| format!("{path}.ports[{index}].{name}");
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() && count > 1 {
            causes.push(Cause::required(here("name"), ""));
        } else if !name.is_empty() {
            named(Form::Label, name, &here("name"), causes);
            if !names.insert(name) {
                causes.push(Cause::duplicate(here("name"), &port["name"]));
            }
        }
        port_number(&port["port"], &here("port"), causes);
        port_or_name(&port["targetPort"], &here("targetPort"), causes);
        let protocol = port["protocol"].as_str().unwrap_or_default();
        if !numbers.insert((protocol, port["port"].as_i64())) {
            let key = json!({"port": port["port"], "protocol": port["protocol"]});
            causes.push(Cause::duplicate(format!("{path}.ports[{index}]"), &key));
        }
        let node = port["nodePort"].as_i64().unwrap_or(0);
        if node != 0 && matches!(kind, "ClusterIP" | "ExternalName") {
            let why = format!("may not be used when `type` is '{kind}'");
            causes.push(Cause::forbidden(here("nodePort"), &why));
        } else if node != 0 && !nodes.insert((protocol, node)) {
            causes.push(Cause::duplicate(here("nodePort"), &port["nodePort"]));
        }
    }
}

fn cluster_addresses(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    let all: Vec<&str> = items(spec, "/clusterIPs").filter_map(Value::as_str).collect();
    let first = text(spec, "/clusterIP");
    let here = child(path, "clusterIPs");
    let value = || at(spec, "/clusterIPs").cloned().unwrap_or_default();
    if !first.is_empty() && all.first().is_some_and(|own| *own != first) {
        causes.push(Cause::invalid(&here, &value(), "first value must match `clusterIP`"));
    }
    if all.len() > 2 {
        causes.push(Cause::invalid(&here, &value(), "may only hold up to 2 values"));
    }
    for (index, address) in all.iter().enumerate() {
        if *address == "None" {
            if all.len() > 1 {
                let why = "'None' must be the first and only value";
                causes.push(Cause::invalid(format!("{here}[{index}]"), &value(), why));
            }
            continue;
        }
        named(Form::Address, address, &format!("{here}[{index}]"), causes);
    }
}

/// Addresses that lead to the node itself, or nowhere.
fn outside(text: &str, path: &str, causes: &mut Vec<Cause>) {
    let Ok(address) = text.parse::<IpAddr>() else { return };
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    for (is, why) in [
        (address.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (address.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
    ] {
        if is {
            causes.push(Cause::invalid(path, &json!(text), why));
        }
    }
}

fn ranges(spec: &Object, path: &str, causes: &mut Vec<Cause>) {
    if items(spec, "/loadBalancerSourceRanges").next().is_none() {
        return;
    }
    if text(spec, "/type") != "LoadBalancer" {
        let why = "may only be used when `type` is 'LoadBalancer'";
        causes.push(Cause::forbidden(child(path, "loadBalancerSourceRanges"), why));
    }
    for (index, range) in items(spec, "/loadBalancerSourceRanges").enumerate() {
        let here = format!("{path}.loadBalancerSourceRanges[{index}]");
        named(Form::Cidr, range.as_str().unwrap_or_default().trim(), &here, causes);
    }
}

fn endpoint_port(port: &Object, path: &str, causes: &mut Vec<Cause>) {
    port_number(port.get("port").unwrap_or(&json!(0)), &child(path, "port"), causes);
    let name = text(port, "/name");
    if !name.is_empty() {
        named(Form::Label, name, &child(path, "name"), causes);
    }
}

fn slice(slice: &Object, causes: &mut Vec<Cause>) {
    const ENDPOINTS_MOST: usize = 1000;
    const PORTS_MOST: usize = 20_000;
    let kind = text(slice, "/addressType");
    let (endpoints, ports) = (items(slice, "/endpoints").count(), items(slice, "/ports").count());
    if endpoints > ENDPOINTS_MOST {
        causes.push(too_many("endpoints", endpoints, ENDPOINTS_MOST));
    }
    if ports > PORTS_MOST {
        causes.push(too_many("ports", ports, PORTS_MOST));
    }
    for (index, endpoint) in items(slice, "/endpoints").enumerate() {
        let here = format!("endpoints[{index}].addresses");
        let addresses = endpoint["addresses"].as_array().map_or(&[][..], Vec::as_slice);
        if addresses.is_empty() {
            causes.push(Cause::required(&here, "must contain at least 1 address"));
        }
        if addresses.len() > 100 {
            causes.push(too_many(&here, addresses.len(), 100));
        }
        for (at, address) in addresses.iter().enumerate() {
            let here = format!("{here}[{at}]");
            let text = address.as_str().unwrap_or_default();
            match (kind, text.parse::<IpAddr>()) {
                ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {
                    outside(text, &here, causes)
                }
                ("IPv4", Ok(_)) => {
                    causes.push(Cause::invalid(here, address, "must be an IPv4 address"))
                }
                ("IPv6", Ok(_)) => {
                    causes.push(Cause::invalid(here, address, "must be an IPv6 address"))
                }
                ("IPv4" | "IPv6", Err(_)) => named(Form::Address, text, &here, causes),
                ("FQDN", _) => named(Form::Subdomain, text, &here, causes),
                _ => {}
            }
        }
    }
    let mut names = HashSet::new();
    for (index, port) in items(slice, "/ports").enumerate() {
        let name = port["name"].as_str().unwrap_or_default();
        if !name.is_empty() {
            named(Form::Label, name, &format!("ports[{index}].name"), causes);
        }
        if !names.insert(name) {
            causes.push(Cause::duplicate(format!("ports[{index}].name"), &port["name"]));
        }
    }
}

fn host(host: &str, path: &str, causes: &mut Vec<Cause>) {
    if host.is_empty() {
        return;
    }
    if host.parse::<IpAddr>().is_ok() {
        let why = "must be a DNS name, not an IP address";
        causes.push(Cause::invalid(path, &json!(host), why));
    } else if let Some(parent) = host.strip_prefix("*.") {
        if !wrong(Form::Subdomain, parent).is_empty() {
            let why = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which \
                must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character \
                (e.g. '*.example.com', regex used for validation is \
                '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
            causes.push(Cause::invalid(path, &json!(host), why));
        }
    } else {
        named(Form::Subdomain, host, path, causes);
    }
}

fn ingress_path(own: &Object, path: &str, causes: &mut Vec<Cause>) {
    let value = text(own, "/path");
    let here = child(path, "path");
    let kind = text(own, "/pathType");
    let mut refuse = |why: &str| causes.push(Cause::invalid(&here, &json!(value), why));
    if matches!(kind, "Exact" | "Prefix") {
        if !value.starts_with('/') {
            refuse("must be an absolute path");
        }
        for part in ["//", "/./", "/../", "%2f", "%2F"] {
            if value.contains(part) {
                refuse(&format!("must not contain '{part}'"));
            }
        }
        for end in ["/..", "/."] {
            if value.ends_with(end) {
                refuse(&format!("cannot end with '{end}'"));
            }
        }
    } else if kind == "ImplementationSpecific" && !value.is_empty() && !value.starts_with('/') {
        refuse("must be an absolute path");
    }
}

fn ingress_backend(backend: &Object, path: &str, causes: &mut Vec<Cause>) {
    let service = backend.get("service").and_then(Value::as_object);
    let resource = backend.get("resource").is_some_and(Value::is_object);
    let Some(service) = service else {
        if !resource {
            causes.push(Cause::required(path, "resource or service backend is required"));
        }
        return;
    };
    if resource {
        let why = "cannot set both resource and service backends";
        causes.push(Cause::invalid(path, &json!(""), why));
        return;
    }
    let here = child(path, "service");
    match text(service, "/name") {
        "" => causes.push(Cause::required(child(&here, "name"), "")),
        name => named(Form::Label1035, name, &child(&here, "name"), causes),
    }
    let name = text(service, "/port/name");
    let number = at(service, "/port/number").and_then(Value::as_i64).unwrap_or(0);
    match (name, number) {
        ("", 0) => causes.push(Cause::required(&here, "port name or number is required")),
        ("", number) => port_number(&json!(number), &format!("{here}.port.number"), causes),
        (name, 0) => named(Form::Port, name, &format!("{here}.port.name"), causes),
        _ => {
            causes.push(Cause::invalid(
                &here,
                &json!(""),
                "cannot set both port name & port number",
            ));
        }
    }
}

fn ip_block(block: &Object, path: &str, causes: &mut Vec<Cause>) {
    let range = text(block, "/cidr");
    if range.is_empty() {
        causes.push(Cause::required(child(path, "cidr"), ""));
        return;
    }
    named(Form::Cidr, range, &child(path, "cidr"), causes);
    for (index, except) in items(block, "/except").enumerate() {
        let here = format!("{path}.except[{index}]");
        let text = except.as_str().unwrap_or_default();
        named(Form::Cidr, text, &here, causes);
        if let (Some(outer), Some(inner)) = (super::cidr(range), super::cidr(text))
            && !is_strictly_within(outer, inner)
        {
            let why = format!("must be a strict subset of `cidr` {range:?}");
            causes.push(Cause::invalid(here, except, &why));
        }
    }
}

fn is_strictly_within(outer: (IpAddr, u8), inner: (IpAddr, u8)) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 4),
        IpAddr::V6(address) => (u128::from(address), 6),
    };
    let ((outer_bits, outer_kind), (inner_bits, inner_kind)) = (bits(outer.0), bits(inner.0));
    let shift = 128 - u32::from(outer.1);
    let start = |bits: u128| bits.checked_shr(shift).unwrap_or(0);
    outer_kind == inner_kind && inner.1 > outer.1 && start(outer_bits) == start(inner_bits)
}

fn peer(peer: &Object, path: &str, causes: &mut Vec<Cause>) {
    let given = |name: &str| peer.get(name).is_some_and(Value::is_object);
    let selects = given("podSelector") || given("namespaceSelector");
    match (selects, given("ipBlock")) {
        (false, false) => causes.push(Cause::required(path, "must specify a peer")),
        (true, true) => {
            let why = "may not specify both ipBlock and another peer";
            causes.push(Cause::forbidden(path, why));
        }
        _ => {}
    }
}

fn policy_port(port: &Object, path: &str, causes: &mut Vec<Cause>) {
    let own = port.get("port").filter(|port| !port.is_null());
    if let Some(own) = own {
        port_or_name(own, &child(path, "port"), causes);
    }
    let Some(end) = port.get("endPort").and_then(Value::as_i64) else { return };
    let here = child(path, "endPort");
    match own {
        None => {
            let why = "may not be specified when `port` is not specified";
            causes.push(Cause::invalid(here, &json!(end), why));
        }
        Some(Value::String(_)) => {
            let why = "may not be specified when `port` is non-numeric";
            causes.push(Cause::invalid(here, &json!(end), why));
        }
        Some(start) if end < start.as_i64().unwrap_or(0) => {
            let why = "must be greater than or equal to `port`";
            causes.push(Cause::invalid(here, &json!(end), why));
        }
        Some(_) => port_number(&json!(end), &here, causes),
    }
}
