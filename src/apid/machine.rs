//! Where a call goes: nowhere else, to one other node, or to many.
//!
//! Pure. The decision is the table of `node-api.md` §2.2, in its order.

use std::net::{IpAddr, Ipv6Addr};

use orlop_rpc::proxy::Method;
use rustls::pki_types::ServerName;

/// What a call says about where it wants to go.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The values of `nodes`: ask all of these and merge their answers.
    pub nodes: Vec<String>,
    /// The values of `node`: hand the call on to this one.
    pub node: Vec<String>,
    /// `proxyfrom` is there: another apid has already decided that this node is meant.
    pub routed: bool,
}

/// What the decision depends on beside the call.
#[expect(missing_debug_implementations, reason = "it lives for one decision")]
pub struct Here<'a> {
    /// Whether we hold an identity to call other nodes with; workers do not.
    pub forwards: bool,
    /// Whether a target is this node.
    pub is_own: &'a dyn Fn(&Target) -> bool,
}

/// Where a call goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To routerd, on this node.
    Local,
    /// To this one, as it is.
    One(Target),
    /// In the order the client listed them; duplicates stay.
    Many(Vec<Target>),
}

/// Another node, or this one over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As the client typed it: answers are marked with it.
    pub typed: String,
    /// What is dialled: an address without brackets, or a name.
    pub host: String,
}

/// Why a call goes nowhere.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `node` names more than one.
    #[error("node metadata must be single-valued")]
    SeveralNode,
    /// Many were named, and their answers make no whole.
    #[error("one-2-many proxying is not supported for method /{service}/{name}")]
    NotMergeable {
        /// `package.Service`.
        service: String,
        /// The method's own name.
        name: String,
    },
    /// This node calls no others.
    #[error("no request forwarding")]
    NoForwarding,
    /// What was named is neither an address nor a host name.
    #[error("invalid target \"{0}\"")]
    InvalidTarget(String),
}

/// Services whose answers can be merged. Those of generation v0.8 that today's have lost
/// (`network`, `os`) have the same shape, and their clients always say `nodes`.
const MERGEABLE: [&str; 10] = [
    "machine.MachineService",
    "cluster.ClusterService",
    "inspect.InspectService",
    "storage.StorageService",
    "time.TimeService",
    "network.NetworkService",
    "os.OSService",
    // Ours, of the same shape.
    "orlop.v1alpha1.ClockService",
    "orlop.v1alpha1.DoorService",
    "orlop.v1alpha1.NodeService",
];

/// Decides where a call goes.
///
/// # Errors
/// When it may not or cannot go where it wants to.
pub fn route(method: Method<'_>, wish: &Wish, here: &Here<'_>) -> Result<Route, Refusal> {
    if wish.routed {
        return Ok(Route::Local);
    }
    if wish.node.len() > 1 {
        return Err(Refusal::SeveralNode);
    }
    let targets = if wish.nodes.is_empty() { &wish.node } else { &wish.nodes };
    if !here.forwards
        && let [only] = targets.as_slice()
        && Target::parse(only).is_ok_and(|target| (here.is_own)(&target))
    {
        return Ok(Route::Local);
    }
    if targets.is_empty() {
        return Ok(Route::Local);
    }
    let merged = MERGEABLE.contains(&method.service) && !takes_stream(method);
    if !wish.nodes.is_empty() && !merged {
        let Method { service, name } = method;
        return Err(Refusal::NotMergeable { service: service.into(), name: name.into() });
    }
    if !here.forwards {
        return Err(Refusal::NoForwarding);
    }
    let mut targets: Vec<_> =
        targets.iter().map(|typed| Target::parse(typed)).collect::<Result<_, _>>()?;
    Ok(if wish.nodes.is_empty() { Route::One(targets.remove(0)) } else { Route::Many(targets) })
}

impl Target {
    /// Reads a target: an address, an IPv6 one perhaps in brackets, or a host name; never with a port.
    ///
    /// # Errors
    /// [`Refusal::InvalidTarget`].
    pub fn parse(typed: &str) -> Result<Self, Refusal> {
        let bracketed = typed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) => inner.parse::<Ipv6Addr>().ok().map(|address| address.to_string()),
            None => match typed.parse::<IpAddr>() {
                Ok(address) => Some(address.to_string()),
                Err(_) => ServerName::try_from(typed).is_ok().then(|| typed.to_owned()),
            },
        };
        match host {
            Some(host) => Ok(Self { typed: typed.to_owned(), host }),
            None => Err(Refusal::InvalidTarget(typed.to_owned())),
        }
    }
}

/// Whether each message of an answer to this method is one of a stream (§2.6): then messages are
/// marked and passed on one by one, else the answers of all nodes become one.
pub(crate) fn is_streaming(method: Method<'_>) -> bool {
    const MACHINE: [&str; 12] = [
        "Copy",
        "DiskUsage",
        "Dmesg",
        "Events",
        "Kubeconfig",
        "List",
        "Logs",
        "Read",
        "EtcdSnapshot",
        "ImageList",
        "DebugContainer",
        "PacketCapture",
    ];
    method.name.ends_with("Stream")
        || match method.service {
            "machine.MachineService" => MACHINE.contains(&method.name),
            "machine.LifecycleService" => matches!(method.name, "Install" | "Upgrade"),
            "cluster.ClusterService" => method.name == "HealthCheck",
            "os.OSService" => method.name == "Dmesg",
            _ => false,
        }
}

/// Whether the caller sends a stream: it goes to one node, because nothing here keeps all of it for many.
fn takes_stream(method: Method<'_>) -> bool {
    (method.service, method.name) == ("machine.MachineService", "EtcdRecover")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// The decision for a call of `path` with `key=value` metadata, on a node whose own address is
    /// 10.0.0.1, in words.
    fn decided(forwards: bool, path: &str, metadata: &[&str]) -> String {
        let mut wish = Wish::default();
        for entry in metadata {
            match entry.split_once('=').unwrap() {
                ("nodes", value) => wish.nodes.push(value.to_owned()),
                ("node", value) => wish.node.push(value.to_owned()),
                ("proxyfrom", _) => wish.routed = true,
                _ => {}
            }
        }
        let here = Here { forwards, is_own: &|target| target.host == "10.0.0.1" };
        match route(Method::parse(path).unwrap(), &wish, &here) {
            Ok(Route::Local) => "local".to_owned(),
            Ok(Route::One(target)) => format!("one {}", target.host),
            Ok(Route::Many(targets)) => {
                targets.iter().fold("many".to_owned(), |text, target| text + " " + &target.host)
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn calls_are_routed_by_the_table() {
        const MEMORY: &str = "/machine.MachineService/Memory";
        const LIST: &str = "/cosi.resource.State/List";
        let not_merged =
            "one-2-many proxying is not supported for method /cosi.resource.State/List";
        const RECOVER: &str = "/machine.MachineService/EtcdRecover";
        let streamed =
            "one-2-many proxying is not supported for method /machine.MachineService/EtcdRecover";
        let several = "node metadata must be single-valued";
        let denied = "no request forwarding";
        for (forwards, path, metadata, expected) in [
            // Row 2 and 8: nothing said.
            (true, MEMORY, &[][..], "local"),
            (true, MEMORY, &["other=x"], "local"),
            // Row 3: already routed, whatever else is said.
            (true, MEMORY, &["proxyfrom=a", "nodes=10.0.0.2", "node=a", "node=b"], "local"),
            // Row 4.
            (true, MEMORY, &["node=10.0.0.2", "node=10.0.0.3"], several),
            (false, MEMORY, &["node=10.0.0.2", "node=10.0.0.3", "nodes=10.0.0.1"], several),
            // Row 5: a worker answers for itself.
            (false, MEMORY, &["nodes=10.0.0.1"], "local"),
            (false, MEMORY, &["node=10.0.0.1"], "local"),
            (false, LIST, &["nodes=10.0.0.1"], "local"),
            (false, MEMORY, &["nodes=10.0.0.1", "nodes=10.0.0.1"], denied),
            // Row 6: even one, even ourselves; the order and duplicates stay.
            (true, MEMORY, &["nodes=10.0.0.1"], "many 10.0.0.1"),
            (true, MEMORY, &["nodes=b", "nodes=a", "nodes=b", "node=c"], "many b a b"),
            (true, "/network.NetworkService/Routes", &["nodes=a"], "many a"),
            (true, "/orlop.v1alpha1.NodeService/Timeline", &["nodes=a"], "many a"),
            (true, LIST, &["nodes=a"], not_merged),
            (false, LIST, &["nodes=a"], not_merged),
            (true, RECOVER, &["nodes=a"], streamed),
            (true, RECOVER, &["node=a"], "one a"),
            (false, MEMORY, &["nodes=10.0.0.2"], denied),
            // Row 7.
            (true, LIST, &["node=10.0.0.2"], "one 10.0.0.2"),
            (true, MEMORY, &["node=[fd00::2]"], "one fd00::2"),
            (false, LIST, &["node=10.0.0.2"], denied),
            // Targets.
            (
                true,
                MEMORY,
                &["nodes=a", "nodes=10.0.0.2:50000"],
                "invalid target \"10.0.0.2:50000\"",
            ),
            (true, MEMORY, &["node="], "invalid target \"\""),
        ] {
            assert_eq!(decided(forwards, path, metadata), expected, "{path} {metadata:?}");
        }
    }

    #[test]
    fn targets_are_addresses_or_names_without_a_port() {
        for (typed, host) in [
            ("10.0.0.2", "10.0.0.2"),
            ("fd00:0::2", "fd00::2"),
            ("[fd00::2]", "fd00::2"),
            ("worker-1.example.org", "worker-1.example.org"),
        ] {
            assert_eq!(
                Target::parse(typed).unwrap(),
                Target { typed: typed.into(), host: host.into() }
            );
        }
        for typed in
            ["", " ", "a:1", "[fd00::2]:50000", "[10.0.0.2]", "[]", "a/b", "a b", "ä", "a,b"]
        {
            assert_eq!(Target::parse(typed), Err(Refusal::InvalidTarget(typed.to_owned())));
        }
    }

    #[test]
    fn streams_are_known_by_name() {
        for (path, streaming) in [
            ("/machine.MachineService/Logs", true),
            ("/machine.MachineService/Memory", false),
            ("/machine.MachineService/LogsContainers", false),
            ("/cluster.ClusterService/HealthCheck", true),
            ("/os.OSService/Dmesg", true),
            ("/time.TimeService/Logs", false),
            ("/time.TimeService/TimeStream", true),
        ] {
            assert_eq!(is_streaming(Method::parse(path).unwrap()), streaming, "{path}");
        }
    }
}
