//! Services: which of their fields belong to which type, and what an update need not say again.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::prepare::{remove, set};
use crate::object::{Object, at, at_mut, items, text};

/// Makes of a service as it is given the one that is meant, before addresses and ports are allocated.
pub(super) fn prepare(new: &mut Object, old: Option<&Object>) {
    if let Some(old) = old {
        keep_allocated(new, old);
    }
    same_addresses(new, old);
    if let Some(old) = old {
        drop_dependent(new, old);
    }
}

/// Does it have an address of the cluster, or `None`?
pub(super) fn needs_address(service: &Object) -> bool {
    matches!(text(service, "/spec/type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Do its ports have node ports?
pub(super) fn needs_node_ports(service: &Object) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => {
            at(service, "/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false))
        }
        _ => false,
    }
}

/// Does a load balancer ask each node for its health?
pub(super) fn needs_health_port(service: &Object) -> bool {
    text(service, "/spec/type") == "LoadBalancer"
        && text(service, "/spec/externalTrafficPolicy") == "Local"
}

/// Is it reached from outside?
fn is_external(service: &Object) -> bool {
    match text(service, "/spec/type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => items(service, "/spec/externalIPs").next().is_some(),
        _ => false,
    }
}

/// What was allocated stays when it is not said again.
fn keep_allocated(new: &mut Object, old: &Object) {
    if needs_address(new) && needs_address(old) {
        if text(new, "/spec/clusterIP").is_empty() {
            copy(new, old, "clusterIP");
        }
        let same = text(new, "/spec/clusterIP") == text(old, "/spec/clusterIP");
        if same && items(new, "/spec/clusterIPs").next().is_none() {
            copy(new, old, "clusterIPs");
        }
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        keep_node_ports(new, old);
    }
    let unset = at(new, "/spec/healthCheckNodePort").and_then(Value::as_i64).unwrap_or(0) == 0;
    if needs_health_port(new) && needs_health_port(old) && unset {
        copy(new, old, "healthCheckNodePort");
    }
    for name in ["ipFamilies", "ipFamilyPolicy"] {
        let kept = needs_address(new) && needs_address(old);
        if kept && at(new, &format!("/spec/{name}")).is_none() {
            copy(new, old, name);
        }
    }
}

fn copy(new: &mut Object, old: &Object, name: &str) {
    if let Some(value) = at(old, &format!("/spec/{name}")).cloned() {
        set(new, &["spec", name], value);
    }
}

/// By port and protocol, unless somebody else asks for it now.
fn keep_node_ports(new: &mut Object, old: &Object) {
    let number = |port: &Value| port["nodePort"].as_i64().unwrap_or(0);
    let mut used: HashSet<(i64, String)> = items(new, "/spec/ports")
        .filter(|port| number(port) != 0)
        .map(|port| (number(port), port["protocol"].as_str().unwrap_or_default().to_owned()))
        .collect();
    let before: Vec<Value> = items(old, "/spec/ports").cloned().collect();
    let Some(Value::Array(ports)) = at_mut(new, "/spec/ports") else { return };
    for port in ports.iter_mut().filter(|port| number(port) == 0) {
        let same =
            |old: &&Value| old["port"] == port["port"] && old["protocol"] == port["protocol"];
        let Some(before) = before.iter().find(same).map(number).filter(|before| *before != 0)
        else {
            continue;
        };
        let protocol = port["protocol"].as_str().unwrap_or_default().to_owned();
        if used.insert((before, protocol))
            && let Some(port) = port.as_object_mut()
        {
            port.insert("nodePort".to_owned(), before.into());
        }
    }
}

/// `clusterIP` is the first of `clusterIPs`: whichever was given or changed says it.
fn same_addresses(new: &mut Object, old: Option<&Object>) {
    let one = text(new, "/spec/clusterIP").to_owned();
    let all: Vec<Value> = items(new, "/spec/clusterIPs").cloned().collect();
    let Some(old) = old else {
        if !one.is_empty() && all.is_empty() {
            set(new, &["spec", "clusterIPs"], json!([one]));
        }
        return;
    };
    let changed = one != text(old, "/spec/clusterIP");
    let all_same = items(old, "/spec/clusterIPs").eq(&all);
    match (changed, all_same) {
        (true, true) if one.is_empty() => remove(new, "spec", "clusterIPs"),
        (true, same) if !one.is_empty() && (same || all.is_empty()) => {
            set(new, &["spec", "clusterIPs"], json!([one]));
        }
        (false, false) if all.is_empty() => remove(new, "spec", "clusterIP"),
        _ => {}
    }
}

/// What the new type has no use for goes, unless it was changed just now.
fn drop_dependent(new: &mut Object, old: &Object) {
    let same = |new: &Object, name: &str| {
        let pointer = format!("/spec/{name}");
        at(new, &pointer) == at(old, &pointer)
    };
    if needs_address(old) && !needs_address(new) {
        if same(new, "clusterIP") && same(new, "clusterIPs") {
            remove(new, "spec", "clusterIP");
            remove(new, "spec", "clusterIPs");
        }
        for name in ["ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if same(new, name) {
                remove(new, "spec", name);
            }
        }
    }
    if needs_node_ports(old) && !needs_node_ports(new) {
        let ports = |service: &Object| -> Vec<Value> {
            items(service, "/spec/ports").map(|port| port["nodePort"].clone()).collect()
        };
        if ports(new) == ports(old)
            && let Some(Value::Array(ports)) = at_mut(new, "/spec/ports")
        {
            for port in ports.iter_mut().filter_map(Value::as_object_mut) {
                port.remove("nodePort");
            }
        }
    }
    if needs_health_port(old) && !needs_health_port(new) && same(new, "healthCheckNodePort") {
        remove(new, "spec", "healthCheckNodePort");
    }
    let balanced = |service: &Object| text(service, "/spec/type") == "LoadBalancer";
    if balanced(old) && !balanced(new) {
        for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(new, name) {
                remove(new, "spec", name);
            }
        }
    }
    if is_external(old) && !is_external(new) && same(new, "externalTrafficPolicy") {
        remove(new, "spec", "externalTrafficPolicy");
    }
}
