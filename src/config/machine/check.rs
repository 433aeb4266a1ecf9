//! What must hold between the values of a machine configuration, beyond the type of each.
//!
//! Every function takes a section and its path, and returns all it finds; none stops at the first.

use std::path::{Component, Path};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_pki::{Authority, encoding};
use url::Url;

use super::{Bond, Cluster, Cni, Disk, Document, File, FileOperation, Interface, Machine, Network};
use super::{Route, VERSION};
use crate::document::{Finding, path};
use crate::value::CertificateAndKey;

/// Flags of the kubelet that the node sets itself.
const KUBELET_OWNED: &[&str] = &[
    "bootstrap-kubeconfig",
    "kubeconfig",
    "container-runtime",
    "container-runtime-endpoint",
    "config",
    "dynamic-config-dir",
    "cert-dir",
    "cni-conf-dir",
    "hostname-override",
];

/// Flags of etcd that the node sets itself; one that ends in `*` stands for all that begin so.
const ETCD_OWNED: &[&str] = &[
    "name",
    "data-dir",
    "listen-peer-urls",
    "listen-client-urls",
    "cert-file",
    "key-file",
    "trusted-ca-file",
    "peer-*",
];

pub(super) fn document(document: &Document) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(version) = document.version.as_ref().filter(|version| *version != VERSION) {
        findings.push(at("version", format!("{version:?} is not supported; it must be {VERSION}")));
    }
    match &document.machine {
        Some(node) => machine(node, &mut findings),
        None => findings.push(at("machine", "machine instructions are required")),
    }
    match &document.cluster {
        Some(section) => cluster(section, &mut findings),
        None => findings.push(at("cluster", "cluster instructions are required")),
    }
    findings
}

fn machine(machine: &Machine, findings: &mut Vec<Finding>) {
    if let Some(ca) = &machine.ca {
        findings.extend(authority(ca));
    }
    owned("machine.kubelet.extraArgs", machine.kubelet.extra_args.keys(), KUBELET_OWNED, findings);
    findings.extend(network(&machine.network, "machine.network."));
    for (i, disk) in machine.disks.iter().enumerate() {
        findings.extend(self::disk(disk, &format!("machine.disks[{i}]")));
    }
    for (i, file) in machine.files.iter().enumerate() {
        findings.extend(self::file(file, &format!("machine.files[{i}]")));
    }
}

/// The machines' authority is used by the node itself, so it is read to its end.
fn authority(ca: &CertificateAndKey) -> Option<Finding> {
    let sound = match &ca.key {
        Some(key) => Authority::from_pem(&ca.crt, key.expose()).map(drop),
        None => encoding::certificates(&ca.crt).map(drop),
    };
    let error = sound.err()?;
    let key = match error {
        orlop_pki::Error::Key(_)
        | orlop_pki::Error::Mismatch
        | orlop_pki::Error::Pem { what: "private key", .. }
        | orlop_pki::Error::Absent { what: "private key" } => "machine.ca.key",
        _ => "machine.ca.crt",
    };
    Some(at(key, error))
}

/// Checks `machine.network`; `prefix` stands in front of its keys.
pub(super) fn network(network: &Network, prefix: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(hostname) = &network.hostname {
        let label = hostname.split('.').next().unwrap_or_default();
        if hostname.len() > 253 || label.is_empty() || label.len() > 63 {
            let message = format!(
                "{hostname:?} must have 1..=63 characters before its first dot, and at most 253"
            );
            findings.push(at(&format!("{prefix}hostname"), message));
        }
    }
    for (i, link) in network.interfaces.iter().enumerate() {
        interface(link, &format!("{prefix}interfaces[{i}]"), &mut findings);
    }
    for (i, entry) in network.extra_host_entries.iter().enumerate() {
        if entry.ip.is_none() {
            findings
                .push(at(&format!("{prefix}extraHostEntries[{i}].ip"), "an address is required"));
        }
    }
    findings
}

fn interface(link: &Interface, path: &str, findings: &mut Vec<Finding>) {
    if link.interface.is_empty() {
        findings.push(at(&format!("{path}.interface"), "the name of a link is required"));
    }
    if link.ignore {
        return;
    }
    addressing(link.dhcp, link.cidr.is_some(), path, findings);
    routes(&link.routes, path, findings);
    for (i, vlan) in link.vlans.iter().enumerate() {
        let path = format!("{path}.vlans[{i}]");
        if !(1..=4094).contains(&vlan.vlan_id) {
            let message = format!("{} is out of range 1..=4094", vlan.vlan_id);
            findings.push(at(&format!("{path}.vlanId"), message));
        }
        addressing(vlan.dhcp, vlan.cidr.is_some(), &path, findings);
        routes(&vlan.routes, &path, findings);
    }
    if let Some(Bond { interfaces, .. }) = &link.bond
        && interfaces.is_empty()
    {
        let message = "must supply sub interfaces for bonded interface";
        findings.push(at(&format!("{path}.bond.interfaces"), message));
    }
}

fn addressing(dhcp: bool, cidr: bool, path: &str, findings: &mut Vec<Finding>) {
    if dhcp && cidr {
        let message =
            "invalid network device addressing method: `cidr` and `dhcp` exclude each other";
        findings.push(at(&format!("{path}.cidr"), message));
    }
}

fn routes(routes: &[Route], path: &str, findings: &mut Vec<Finding>) {
    for (i, route) in routes.iter().enumerate() {
        let path = format!("{path}.routes[{i}]");
        match (route.network, route.gateway) {
            (None, _) => findings.push(at(&format!("{path}.network"), "a network is required")),
            (Some(network), Some(gateway)) if network.addr().is_ipv4() != gateway.is_ipv4() => {
                let message = format!("{gateway} is not of the same family as {network}");
                findings.push(at(&format!("{path}.gateway"), message));
            }
            _ => {}
        }
    }
}

fn disk(disk: &Disk, path: &str) -> Option<Finding> {
    if disk.device.is_empty() {
        return Some(at(&format!("{path}.device"), "a device is required"));
    }
    let before_last = disk.partitions.len().saturating_sub(1);
    let greedy =
        disk.partitions.iter().take(before_last).position(|partition| partition.size.0 == 0)?;
    let message = format!(
        "partition for disk {:?} is set to occupy full disk, but it's not the last partition in the list",
        disk.device
    );
    Some(at(&format!("{path}.partitions[{greedy}]"), message))
}

fn file(file: &File, path: &str) -> Option<Finding> {
    let target = Path::new(&file.path);
    let message =
        if !target.is_absolute() || target.components().any(|part| part == Component::ParentDir) {
            format!("{:?} must be absolute and without `..`", file.path)
        } else if file.op == FileOperation::Create && !target.starts_with("/var") {
            format!("create operation not allowed outside of /var: {:?}", file.path)
        } else {
            return None;
        };
    Some(at(&format!("{path}.path"), message))
}

fn cluster(cluster: &Cluster, findings: &mut Vec<Finding>) {
    if let Some(message) = endpoint(cluster.control_plane.endpoint.as_ref()) {
        findings.push(at("cluster.controlPlane.endpoint", message));
    }
    if let Some(network) = &cluster.network {
        if !is_dns_name(&network.dns_domain) {
            let message = format!("{:?} is no DNS name", network.dns_domain);
            findings.push(at("cluster.network.dnsDomain", message));
        }
        findings.extend(network.cni.as_ref().and_then(cni));
    }
    if let Some(secret) = &cluster.aescbc_encryption_secret
        && STANDARD.decode(secret.expose()).map(|bytes| bytes.len()) != Ok(32)
    {
        findings.push(at("cluster.aescbcEncryptionSecret", "must be base64 of 32 bytes"));
    }
    if let Some(etcd) = &cluster.etcd {
        owned("cluster.etcd.extraArgs", etcd.extra_args.keys(), ETCD_OWNED, findings);
    }
}

fn endpoint(endpoint: Option<&Url>) -> Option<&'static str> {
    match endpoint {
        None => Some("cluster controlplane endpoint is required"),
        Some(url) if url.host_str().is_none_or(str::is_empty) => {
            Some("it has no host; try: \"https://<host>:6443\"")
        }
        Some(url) if url.port() == Some(0) => Some("port 0 is out of range 1..=65535"),
        Some(_) => None,
    }
}

fn cni(cni: &Cni) -> Option<Finding> {
    match (cni.name.as_str(), cni.urls.is_empty()) {
        ("flannel" | "none" | "", true) | ("custom", false) => None,
        ("custom", true) => {
            Some(at("cluster.network.cni.urls", "a custom CNI needs at least one URL"))
        }
        ("flannel" | "none" | "", false) => {
            Some(at("cluster.network.cni.urls", "only a custom CNI has URLs"))
        }
        (name, _) => {
            let message = format!("{name:?} is unknown; known are flannel, custom, none");
            Some(at("cluster.network.cni.name", message))
        }
    }
}

/// RFC 1123 §2.1: labels of letters, digits and inner hyphens.
fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn owned<'a>(
    section: &str,
    flags: impl Iterator<Item = &'a String>,
    owned: &[&str],
    findings: &mut Vec<Finding>,
) {
    for flag in flags {
        let matches = |owned: &&str| match owned.strip_suffix('*') {
            Some(beginning) => flag.starts_with(beginning),
            None => flag == owned,
        };
        if owned.iter().any(matches) {
            let path = format!("{section}.{flag}");
            findings.push(at(&path, "the node sets this flag itself; it cannot be overridden"));
        }
    }
}

fn at(at: &str, message: impl ToString) -> Finding {
    (path(at), message.to_string())
}
