//! What the answers of nodes and of Kubernetes say about a check. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use orlop_proto::machine::ServiceInfo;
use serde::Deserialize;

use super::checks::Look;

/// What a node answered, or why it did not.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) node: String,
    pub(super) said: Result<T, String>,
}

/// What is wanted of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Healthy,
    Finished,
}

/// How a service fares on several nodes.
#[derive(Debug, Default)]
pub(super) struct Services {
    lacking: Vec<String>,
    /// Where its program is not.
    skipped: Vec<String>,
    up: usize,
}

impl Services {
    pub(super) fn of(id: &str, wanted: Wanted, entries: &[Entry<Vec<ServiceInfo>>]) -> Self {
        let mut found = Self::default();
        for Entry { node, said } in entries {
            let service = match said {
                Ok(services) => services.iter().find(|service| service.id == id),
                Err(why) => {
                    found.lacking.push(format!("{node}: {why}"));
                    continue;
                }
            };
            let Some(service) = service else {
                found.lacking.push(format!("{node}: has no service {id}"));
                continue;
            };
            let health = service.health.clone().unwrap_or_default();
            match (service.state.as_str(), wanted) {
                ("Skipped", _) => found.skipped.push(node.clone()),
                ("Running", Wanted::Healthy) if health.healthy && !health.unknown => found.up += 1,
                ("Finished", Wanted::Finished) => found.up += 1,
                (state @ "Running", Wanted::Healthy) => {
                    let why = match health.last_message.as_str() {
                        "" => "not healthy yet",
                        why => why,
                    };
                    found.lacking.push(format!("{node}: {state}, {why}"));
                }
                (state, _) => found.lacking.push(format!("{node}: {state}")),
            }
        }
        found
    }

    /// Whether no node has its program.
    pub(super) fn nowhere(&self) -> bool {
        self.up == 0 && self.lacking.is_empty() && !self.skipped.is_empty()
    }

    pub(super) fn look(self) -> Look {
        if !self.lacking.is_empty() {
            Look::NotYet(self.lacking.join("; "))
        } else if !self.skipped.is_empty() {
            Look::Skipped(format!("its program is not on {}", self.skipped.join(", ")))
        } else if self.up == 0 {
            Look::Skipped("no control plane node is named".to_owned())
        } else {
            Look::Holds
        }
    }
}

/// Whether all nodes have come to the end of their boot; what they say is when, 0 for not yet.
pub(super) fn boot(entries: &[Entry<u64>]) -> Look {
    let lacking = entries.iter().filter_map(|Entry { node, said }| match said {
        Ok(0) => Some(format!("{node}: boots")),
        Ok(_) => None,
        Err(why) => Some(format!("{node}: {why}")),
    });
    holds_without(lacking)
}

/// An object of Kubernetes', as far as we look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Object {
    pub(super) metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    name: String,
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Spec {
    unschedulable: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
    addresses: Vec<Address>,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Address {
    r#type: String,
    address: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
    message: String,
}

/// The labels of those nodes that run the control plane.
const CONTROL_PLANE: [&str; 2] =
    ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

impl Object {
    /// Where a node is reached; `None` for one that does not say.
    pub(super) fn address(&self) -> Option<&str> {
        let internal = self.status.addresses.iter().find(|one| one.r#type == "InternalIP");
        internal.map(|one| one.address.as_str())
    }

    pub(super) fn is_control_plane(&self) -> bool {
        CONTROL_PLANE.iter().any(|label| self.metadata.labels.contains_key(*label))
    }

    /// Whether it is the node that somebody calls `typed`.
    fn is(&self, typed: &str) -> bool {
        let same = |one: &Address| match (one.address.parse::<IpAddr>(), typed.parse::<IpAddr>()) {
            (Ok(its), Ok(typed)) => its == typed,
            _ => one.address == typed,
        };
        self.metadata.name == typed || self.status.addresses.iter().any(same)
    }

    /// Why it is not ready.
    fn unready(&self) -> Option<String> {
        let name = &self.metadata.name;
        match self.status.conditions.iter().find(|one| one.r#type == "Ready") {
            Some(ready) if ready.status == "True" => None,
            Some(ready) if !ready.message.is_empty() => Some(format!("{name}: {}", ready.message)),
            _ => Some(format!("{name}: not ready")),
        }
    }

    fn has_label(&self, keys: &[&str], value: &str) -> bool {
        keys.iter().any(|key| self.metadata.labels.get(*key).is_some_and(|label| label == value))
    }
}

/// Whether those `expected` (any, if nobody is named) and no others are nodes of Kubernetes.
pub(super) fn reporting(nodes: &[Object], expected: &[String]) -> Look {
    if nodes.is_empty() {
        return Look::NotYet("no node has reported".to_owned());
    }
    let absent = expected.iter().filter(|typed| !nodes.iter().any(|node| node.is(typed)));
    let absent = absent.map(|typed| format!("{typed}: has not reported"));
    let strange = nodes
        .iter()
        .filter(|node| !expected.is_empty() && !expected.iter().any(|typed| node.is(typed)));
    let strange = strange.map(|node| format!("{}: is not among those named", node.metadata.name));
    holds_without(absent.chain(strange))
}

/// Whether all nodes are ready.
pub(super) fn ready(nodes: &[Object]) -> Look {
    holds_without(nodes.iter().filter_map(Object::unready))
}

/// Whether pods may go to all nodes.
pub(super) fn schedulable(nodes: &[Object]) -> Look {
    let closed = nodes.iter().filter(|node| node.spec.unschedulable);
    holds_without(closed.map(|node| format!("{}: takes no pods (cordoned)", node.metadata.name)))
}

/// The programs of the control plane, by the labels of their pods.
pub(super) const COMPONENTS: [&str; 3] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// Whether each of these programs has pods, and all of them are ready.
pub(super) fn pods(pods: &[Object], programs: &[&str]) -> Look {
    let lacking = programs.iter().flat_map(|program| {
        let its = |pod: &&Object| {
            pod.has_label(&["k8s-app", "component"], program) && pod.status.phase != "Succeeded"
        };
        let mut its = pods.iter().filter(its).peekable();
        let none = its.peek().is_none().then(|| format!("{program}: has no pod"));
        none.into_iter().chain(its.filter_map(Object::unready))
    });
    holds_without(lacking)
}

fn holds_without(lacking: impl Iterator<Item = String>) -> Look {
    let lacking: Vec<_> = lacking.collect();
    if lacking.is_empty() { Look::Holds } else { Look::NotYet(lacking.join("; ")) }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_proto::machine::ServiceHealth;

    use super::*;

    fn service(id: &str, state: &str, health: Option<bool>, message: &str) -> ServiceInfo {
        let health = ServiceHealth {
            unknown: health.is_none(),
            healthy: health.unwrap_or_default(),
            last_message: message.to_owned(),
            last_change: None,
        };
        ServiceInfo {
            id: id.to_owned(),
            state: state.to_owned(),
            events: None,
            health: Some(health),
        }
    }

    fn entry<T>(node: &str, said: Result<T, &str>) -> Entry<T> {
        Entry { node: node.to_owned(), said: said.map_err(str::to_owned) }
    }

    fn not_yet(why: &str) -> Look {
        Look::NotYet(why.to_owned())
    }

    #[test]
    fn a_service_must_be_well_on_every_node_that_has_its_program() {
        let etcd =
            |state: &str, health, message: &str| Ok(vec![service("etcd", state, health, message)]);
        let well = || entry("a", etcd("Running", Some(true), ""));
        let look = |wanted, entries: &[Entry<_>]| Services::of("etcd", wanted, entries).look();
        assert_eq!(look(Wanted::Healthy, &[well(), well()]), Look::Holds);
        let entries = [
            well(),
            entry("b", etcd("Running", Some(false), "no leader")),
            entry("c", etcd("Running", None, "")),
            entry("d", etcd("Preparing", None, "")),
            entry("e", Ok(Vec::new())),
            entry("f", Err("connection refused")),
            entry("g", etcd("Skipped", None, "")),
        ];
        let why = "b: Running, no leader; c: Running, not healthy yet; d: Preparing; \
                   e: has no service etcd; f: connection refused";
        assert_eq!(look(Wanted::Healthy, &entries), not_yet(why));
        let some = [well(), entry("g", etcd("Skipped", None, ""))];
        assert!(!Services::of("etcd", Wanted::Healthy, &some).nowhere());
        assert_eq!(
            look(Wanted::Healthy, &some),
            Look::Skipped("its program is not on g".to_owned())
        );
        assert!(Services::of("etcd", Wanted::Healthy, &some[1..]).nowhere());
        assert_eq!(look(Wanted::Finished, &[entry("a", etcd("Finished", None, ""))]), Look::Holds);
        assert_eq!(look(Wanted::Finished, &some[..1]), not_yet("a: Running"));
        assert!(matches!(look(Wanted::Healthy, &[]), Look::Skipped(_)));
    }

    #[test]
    fn every_node_must_have_booted() {
        assert_eq!(boot(&[entry("a", Ok(1))]), Look::Holds);
        let look = boot(&[entry("a", Ok(1)), entry("b", Ok(0)), entry("c", Err("gone"))]);
        assert_eq!(look, not_yet("b: boots; c: gone"));
    }

    fn object(text: &str) -> Object {
        serde_json::from_str(text).unwrap()
    }

    fn node(name: &str, address: &str, ready: &str) -> Object {
        object(&format!(
            r#"{{"kind":"Node","metadata":{{"name":"{name}","uid":"x",
                "labels":{{"node-role.kubernetes.io/control-plane":""}}}},
                "spec":{{"podCIDR":"10.244.0.0/24"}},
                "status":{{"addresses":[{{"type":"Hostname","address":"{name}"}},
                    {{"type":"InternalIP","address":"{address}"}}],
                    "conditions":[{{"type":"MemoryPressure","status":"False"}},
                    {{"type":"Ready","status":"{ready}","message":"kubelet {ready}"}}]}}}}"#
        ))
    }

    #[test]
    fn nodes_of_kubernetes_are_those_named_and_are_ready() {
        let (one, six) = (node("one", "10.0.0.2", "True"), node("six", "fd00::6", "False"));
        assert_eq!((one.address(), one.is_control_plane()), (Some("10.0.0.2"), true));
        assert!(!Object::default().is_control_plane());
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let nodes = [one, six];
        for expected in [&["10.0.0.2", "fd00:0::6"][..], &["one", "six"], &[]] {
            assert_eq!(reporting(&nodes, &names(expected)), Look::Holds, "{expected:?}");
        }
        assert_eq!(
            reporting(&nodes, &names(&["one", "10.0.0.3"])),
            not_yet("10.0.0.3: has not reported; six: is not among those named")
        );
        assert_eq!(reporting(&[], &[]), not_yet("no node has reported"));
        assert_eq!(ready(&nodes), not_yet("six: kubelet False"));
        assert_eq!(ready(&nodes[..1]), Look::Holds);
        assert_eq!(ready(&[Object::default()]), not_yet(": not ready"));
        assert_eq!(schedulable(&nodes), Look::Holds);
        let cordoned = object(r#"{"metadata":{"name":"c"},"spec":{"unschedulable":true}}"#);
        assert_eq!(schedulable(&[cordoned]), not_yet("c: takes no pods (cordoned)"));
    }

    #[test]
    fn every_program_has_pods_and_all_are_ready() {
        let pod = |name: &str, label: &str, phase: &str, ready: &str| {
            object(&format!(
                r#"{{"metadata":{{"name":"{name}","labels":{label}}},"status":{{"phase":"{phase}",
                    "conditions":[{{"type":"Ready","status":"{ready}"}}]}}}}"#
            ))
        };
        let proxy = r#"{"k8s-app":"kube-proxy"}"#;
        let all = [
            pod("p1", proxy, "Running", "True"),
            pod("p2", proxy, "Running", "False"),
            pod("old", proxy, "Succeeded", "False"),
            pod("api", r#"{"component":"kube-apiserver"}"#, "Running", "True"),
        ];
        assert_eq!(pods(&all, &["kube-proxy"]), not_yet("p2: not ready"));
        assert_eq!(pods(&all[..1], &["kube-proxy"]), Look::Holds);
        assert_eq!(
            pods(&all, &COMPONENTS),
            not_yet("kube-controller-manager: has no pod; kube-scheduler: has no pod")
        );
    }
}
