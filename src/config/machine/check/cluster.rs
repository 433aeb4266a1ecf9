//! `cluster`.

use ipnet::IpNet;
use url::Url;

use super::{Check, PairOf};
use crate::machine::{Cluster, ClusterNetwork, Cni, names};

/// Flags of etcd that the node sets itself.
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

pub(super) fn cluster(check: &mut Check, cluster: &Cluster) {
    check.key("controlPlane", |check| {
        check.maybe("endpoint", endpoint(cluster.control_plane.endpoint.as_ref()));
        if cluster.control_plane.local_api_server_port == Some(0) {
            check.wrong_at("localAPIServerPort", "0 is out of range 1..=65535");
        }
    });
    // Others write it with the alphabet for URLs (RFC 4648 §5).
    let id = cluster.id.as_ref().map(|id| id.replace('-', "+").replace('_', "/"));
    check.key_of_32("id", id.as_deref());
    check.key_of_32("secret", cluster.secret.as_ref().map(|secret| secret.expose()));
    let name = cluster.cluster_name.as_deref().unwrap_or("-");
    if name.is_empty() || name.contains(|c: char| c.is_control()) {
        check.wrong_at("clusterName", "a name has letters and no control characters");
    }
    if let Some(section) = &cluster.network {
        check.key("network", |check| network(check, section));
    }
    check.token(cluster.token.as_ref());
    let aescbc = cluster.aescbc_encryption_secret.as_ref().map(|secret| secret.expose());
    check.key_of_32("aescbcEncryptionSecret", aescbc);
    if let Some(ca) = &cluster.ca {
        check.key("ca", |check| check.pair(ca, PairOf::Authority));
    }
    check.accepted(&cluster.accepted_cas);
    components(check, cluster);
    check.each("extraManifests", &cluster.extra_manifests, |check, url| check.fetched(url));
    check.entries("extraManifestHeaders", &cluster.extra_manifest_headers, |check, name, value| {
        if !names::is_header(name) || value.expose().contains(['\r', '\n', '\0']) {
            check.wrong("this is no header of HTTP");
        }
    });
    check.key("adminKubeconfig", |check| {
        if cluster.admin_kubeconfig.cert_lifetime.is_some_and(|lifetime| lifetime.is_zero()) {
            check.wrong_at("certLifetime", "a certificate needs a lifetime such as 8760h");
        }
    });
}

fn components(check: &mut Check, cluster: &Cluster) {
    check.key("apiServer", |check| {
        check.image("image", cluster.api_server.image.as_ref());
        check.flags(&cluster.api_server.extra_args, &[]);
        check.sans("certSANs", &cluster.api_server.cert_sans);
    });
    let components =
        [("controllerManager", &cluster.controller_manager), ("scheduler", &cluster.scheduler)];
    for (key, component) in components {
        check.key(key, |check| {
            check.image("image", component.image.as_ref());
            check.flags(&component.extra_args, &[]);
        });
    }
    check.key("proxy", |check| {
        check.image("image", cluster.proxy.image.as_ref());
        check.flags(&cluster.proxy.extra_args, &[]);
        const MODES: [&str; 4] = ["iptables", "ipvs", "nftables", "userspace"];
        if let Some(mode) = cluster.proxy.mode.as_ref().filter(|mode| !MODES.contains(&&***mode)) {
            let message = format!("{mode:?} is unknown; known are {}", MODES.join(", "));
            check.wrong_at("mode", message);
        }
    });
    if let Some(etcd) = &cluster.etcd {
        check.key("etcd", |check| {
            check.image("image", etcd.image.as_ref());
            check.flags(&etcd.extra_args, ETCD_OWNED);
            if let Some(ca) = &etcd.ca {
                check.key("ca", |check| check.pair(ca, PairOf::Authority));
            }
        });
    }
    for (key, image) in
        [("podCheckpointer", &cluster.pod_checkpointer), ("coreDNS", &cluster.core_dns)]
    {
        check.key(key, |check| check.image("image", image.image.as_ref()));
    }
}

fn endpoint(endpoint: Option<&Url>) -> Option<String> {
    let Some(url) = endpoint else {
        return Some("cluster controlplane endpoint is required".to_owned());
    };
    let host = url.host_str().unwrap_or_default();
    if host.is_empty() {
        return Some("it has no host; try: \"https://<host>:6443\"".to_owned());
    }
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    if url.port() == Some(0) {
        Some(format!("port 0 is out of range 1..=65535; try: \"https://{host}:6443\""))
    } else if url.scheme() != "https" {
        Some(format!("it must begin with https://; try: \"https://{host}{port}\""))
    } else if !matches!(url.path(), "" | "/")
        || url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
    {
        Some(format!("it must be a host and a port only; try: \"https://{host}{port}\""))
    } else {
        None
    }
}

fn network(check: &mut Check, network: &ClusterNetwork) {
    if !names::is_dns_name(&network.dns_domain) {
        let message = match network.dns_domain.as_str() {
            "" => "a DNS name is required once there is a `network`: cluster.local".to_owned(),
            name => format!("{name:?} is no DNS name"),
        };
        check.wrong_at("dnsDomain", message);
    }
    if let Some(section) = &network.cni {
        check.key("cni", |check| cni(check, section));
    }
    let ClusterNetwork { pod_subnets, service_subnets, .. } = network;
    let overlap = |a: &IpNet, b: &IpNet| a.contains(&b.network()) || b.contains(&a.network());
    for (key, subnets) in [("podSubnets", pod_subnets), ("serviceSubnets", service_subnets)] {
        let mut families = Vec::new();
        check.each(key, subnets, |check, subnet| {
            let v4 = subnet.addr().is_ipv4();
            if families.contains(&v4) {
                let family = if v4 { "IPv4" } else { "IPv6" };
                check.wrong(format!("a second subnet of {family}; one of each family is used"));
            }
            families.push(v4);
        });
    }
    check.each("serviceSubnets", service_subnets, |check, subnet| {
        if let Some(pods) = pod_subnets.iter().find(|pods| overlap(pods, subnet)) {
            check.wrong(format!("{subnet} overlaps {pods} of podSubnets"));
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 4 {
            check.wrong(format!("{subnet} is too small: the tenth address is the DNS service's"));
        }
    });
}

fn cni(check: &mut Check, cni: &Cni) {
    match (cni.name.as_str(), cni.urls.is_empty()) {
        ("flannel" | "none" | "", true) | ("custom", false) => {}
        ("custom", true) => check.wrong_at("urls", "a custom CNI needs at least one URL"),
        ("flannel" | "none" | "", false) => check.wrong_at("urls", "only a custom CNI has URLs"),
        (name, _) => {
            check.wrong_at("name", format!("{name:?} is unknown; known are flannel, custom, none"))
        }
    }
    check.each("urls", &cni.urls, |check, url| check.fetched(url));
}
