//! The certificates apid and trustd show, kept fresh for as long as the node runs.
//!
//! On a control plane they are minted here from the machine's authority: apid, which talks to the world,
//! never sees the authority's key; trustd, which signs with it, is given it with the token. Everywhere
//! else apid's comes from the trustd of a control plane ([`crate::trust`]). [`crate::renewal`] says when.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::ifaddrs::getifaddrs;
use orlop_config::machine::MachineConfig;
use orlop_pki::{Authority, KeyKind, Leaf, Pair, Secret, Usage, certificate};
use orlop_rt::{Beside, Chain};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::Error;
use crate::believed::{self, Believed};
use crate::node::Node;
use crate::renewal::{Now, Renewal, Validity};
use crate::services::{APID_SECRETS, APID_UID, TRUSTD_SECRETS, TRUSTD_UID};
use crate::trust::{self, Wish};

const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often the addresses and the age are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// What a server certificate speaks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    dns: BTreeSet<String>,
    ips: BTreeSet<IpAddr>,
}

/// Where certificates come from on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The configuration holds the authority's key.
    Authority,
    /// It holds the token that trustd asks for.
    Trustd,
    /// It holds neither.
    Nowhere,
}

impl Origin {
    pub(crate) fn of(config: &MachineConfig) -> Self {
        let machine = &config.machine;
        match (machine.ca.as_ref().and_then(|ca| ca.key.as_ref()), &machine.token) {
            (Some(_), _) => Self::Authority,
            (None, Some(_)) => Self::Trustd,
            (None, None) => Self::Nowhere,
        }
    }
}

/// All that certificates depend on: when any of it changes, there are new ones.
#[derive(Clone, Debug, PartialEq)]
struct Basis {
    host: String,
    names: Names,
    /// All accepted authorities, PEM, the issuing one first.
    accepted: String,
    key: Option<Secret>,
    token: Option<Secret>,
    /// The cluster's endpoint.
    endpoint: Option<String>,
    /// Where trustd is to be found, best first.
    trustd: Vec<String>,
}

impl Basis {
    fn of(config: &MachineConfig) -> Result<Self, Error> {
        let machine = &config.machine;
        let authorities = machine.ca.iter().chain(&machine.accepted_cas);
        let authorities: Vec<_> = authorities.map(|ca| ca.crt.as_str()).collect();
        Ok(Self {
            host: fqdn().unwrap_or_else(|| "orlop".to_owned()),
            names: names(&machine.cert_sans).map_err(|source| Error::System {
                operation: "list the node's addresses",
                source,
            })?,
            accepted: trust::join(&authorities)?,
            key: machine.ca.as_ref().and_then(|ca| ca.key.clone()),
            token: machine.token.clone(),
            endpoint: endpoint_host(config),
            trustd: trustd_hosts(config),
        })
    }

    fn leaf(&self, usage: Usage) -> Leaf {
        Leaf {
            common_name: self.host.clone(),
            organizations: Vec::new(),
            usage,
            dns: self.names.dns.iter().cloned().collect(),
            ips: self.names.ips.iter().copied().collect(),
            lifetime: LIFETIME,
        }
    }

    /// trustd speaks for the cluster's endpoint as well: that is where nodes look for it.
    fn trustd_leaf(&self) -> Leaf {
        let mut leaf = self.leaf(Usage::Server);
        if let Some(host) = &self.endpoint {
            match host.parse() {
                Ok(ip) => leaf.ips.push(ip),
                Err(_) => leaf.dns.push(host.clone()),
            }
        }
        leaf
    }
}

/// Keeps the certificates valid for the node's names and addresses.
#[derive(Debug)]
pub(crate) struct Keeper {
    node: Node,
    renewal: Renewal<Basis>,
    believed: Believed,
    /// Whether there are certificates.
    ready: watch::Sender<bool>,
}

impl Keeper {
    pub(crate) fn new(node: &Node) -> Self {
        let (renewal, ready) = (Renewal::new(), watch::Sender::new(false));
        let believed = Believed::load(Path::new(believed::KEPT));
        Self { node: node.clone(), renewal, believed, ready }
    }

    /// Becomes true when there are certificates.
    pub(crate) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Gets and writes new certificates if names, authorities or age ask for it.
    pub(crate) async fn look(&mut self) -> Result<(), Error> {
        let now = Now { wall: SystemTime::now(), monotonic: orlop_sys::monotonic() };
        let renewed = self.renew(now).await;
        match &renewed {
            Ok(Some((basis, validity))) => {
                self.renewal.succeeded(basis.clone(), *validity, now, random());
                self.ready.send_replace(true);
            }
            Ok(None) => {}
            Err(_) => self.renewal.failed(now, random()),
        }
        renewed.map(drop)
    }

    async fn renew(&mut self, now: Now) -> Result<Option<(Basis, Validity)>, Error> {
        let config = self.node.config()?;
        let basis = Basis::of(&config)?;
        if !self.renewal.due(&basis, now) {
            return Ok(None);
        }
        let validity = match (&basis.key, &basis.token) {
            (Some(key), token) => issue(&basis, key, token.as_ref(), now.wall)?,
            (None, Some(token)) => self.ask(&basis, token.clone()).await?,
            (None, None) => return Ok(None),
        };
        Ok(Some((basis, validity)))
    }

    /// Asks trustd.
    async fn ask(&mut self, basis: &Basis, token: Secret) -> Result<Validity, Error> {
        let was_told = !basis.accepted.is_empty();
        let known = if was_told { &basis.accepted } else { self.believed.at(&basis.trustd) };
        let wish = Wish {
            common_name: basis.host.clone(),
            dns: basis.names.dns.iter().cloned().collect(),
            ips: basis.names.ips.iter().copied().collect(),
            ..Wish::new(basis.trustd.clone(), token, known.to_owned())
        };
        let answer = trust::obtain(self.node.reaper(), &wish).await.map_err(|error| match error {
            Error::Trust(why) if !was_told && !known.is_empty() => Error::Trust(format!(
                "{why} (believed are the authorities that were met first; machine.ca.crt names others)"
            )),
            error => error,
        })?;
        let ca = trust::join(&[&basis.accepted, &answer.ca])?;
        let server = Pair { crt: answer.crt, key: answer.key };
        write_apid(&ca, &server, None)?;
        if !answer.refused.is_empty() {
            warn!(
                from = answer.host,
                refused = ?answer.refused,
                "trustd does not grant these names; allow them in the control planes' machine.certSANs"
            );
        }
        info!(
            host = basis.host,
            from = answer.host,
            fingerprint = answer.fingerprint,
            "apid has a new certificate"
        );
        if known.is_empty() {
            info!(
                from = answer.host,
                "first contact: the authorities met here are believed from now on"
            );
        }
        if !was_told && let Err(error) = self.believed.learn(&basis.trustd, &answer.ca) {
            warn!(error = %Chain(&error), "the authorities met here are forgotten at the next boot");
        }
        Ok(Validity { not_before: answer.not_before, not_after: answer.not_after })
    }

    /// Goes on looking until the node goes down.
    pub(crate) async fn run(mut self) {
        let shutdown = self.node.shutdown().clone();
        let mut check = interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Cancel-safe: a tick that is lost comes again, and a child that asks ends by itself.
        let looking = async {
            loop {
                check.tick().await;
                if let Err(error) = self.look().await
                    && let Some(failures) = self.renewal.failures_to_tell()
                {
                    warn!(error = %Chain(&error), failures, "no new certificate; trying on");
                }
            }
        };
        shutdown.run_until_cancelled(looking).await;
    }
}

/// Mints certificates for apid and, where there is a token to ask for, for trustd.
fn issue(
    basis: &Basis,
    key: &Secret,
    token: Option<&Secret>,
    now: SystemTime,
) -> Result<Validity, Error> {
    let authority = Authority::from_pem(&basis.accepted, key.expose())?;
    let server = authority.issue(&basis.leaf(Usage::Server), now)?;
    let client = Leaf {
        organizations: vec![IMPERSONATOR.to_owned()],
        dns: Vec::new(),
        ips: Vec::new(),
        ..basis.leaf(Usage::Client)
    };
    let client = authority.issue(&client, now)?;
    write_apid(&basis.accepted, &server, Some(&client))?;
    if let Some(token) = token {
        let own = authority.issue(&basis.trustd_leaf(), now)?;
        write_trustd(&basis.accepted, key, token, &own)?;
    }
    let fingerprint = orlop_pki::fingerprint(&server.crt)?;
    let addresses: Vec<_> = basis.names.ips.iter().filter(|ip| !ip.is_loopback()).collect();
    let host = &basis.host;
    if addresses.is_empty() {
        debug!(host, fingerprint, "apid has a certificate for loopback, until there is a network");
    } else {
        info!(host, ?addresses, fingerprint, "apid has a new certificate");
    }
    let (not_before, not_after) = certificate::validity(&server.crt)?;
    Ok(Validity { not_before, not_after })
}

/// The host of the cluster's endpoint, an IPv6 address without brackets.
pub(crate) fn endpoint_host(config: &MachineConfig) -> Option<String> {
    let host = config.cluster.control_plane.endpoint.as_ref()?.host_str()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    Some(bare.unwrap_or(host).to_owned())
}

/// Where trustd is looked for: where the configuration says, then at the cluster's endpoint, which may be a
/// balancer that passes on nothing but the Kubernetes API.
pub(crate) fn trustd_hosts(config: &MachineConfig) -> Vec<String> {
    let mut hosts = config.machine.trustd.endpoints.clone();
    if let Some(host) = endpoint_host(config)
        && !hosts.contains(&host)
    {
        hosts.push(host);
    }
    hosts
}

/// Spreads what many nodes do at the same time.
pub(crate) fn random() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().hash_one(()).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// Writes a certificate of an authority nobody keeps, for a node that has no configuration; its
/// fingerprint, and the addresses it is for.
pub(crate) fn write_throw_away(now: SystemTime) -> Result<(String, Vec<IpAddr>), Error> {
    let names = names(&[])
        .map_err(|source| Error::System { operation: "list the node's addresses", source })?;
    let authority = Authority::generate("maintenance", KeyKind::Ed25519, LIFETIME, now)?;
    let leaf = Leaf {
        common_name: fqdn().unwrap_or_else(|| "orlop".to_owned()),
        organizations: Vec::new(),
        usage: Usage::Server,
        dns: names.dns.into_iter().collect(),
        ips: names.ips.iter().copied().collect(),
        lifetime: LIFETIME,
    };
    let server = authority.issue(&leaf, now)?;
    let files = [("tls.key", server.key.expose()), ("tls.crt", &server.crt)];
    write_all(APID_SECRETS, APID_UID, &files)?;
    let addresses = names.ips.into_iter().filter(|ip| !ip.is_loopback()).collect();
    Ok((orlop_pki::fingerprint(&server.crt)?, addresses))
}

/// The role by which one apid speaks for a caller to another (spec §3.3).
const IMPERSONATOR: &str = "os:impersonator";

fn names(extra: &[String]) -> io::Result<Names> {
    let mut names = Names {
        dns: hostname().into_iter().chain(fqdn()).collect(),
        ips: BTreeSet::from([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
    };
    for address in getifaddrs()?.filter_map(|entry| entry.address) {
        let ip: Option<IpAddr> = (address.as_sockaddr_in().map(|v4| v4.ip().into()))
            .or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()));
        names.ips.extend(ip.filter(is_global_unicast));
    }
    for name in extra {
        match name.parse() {
            Ok(ip) => names.ips.insert(ip),
            Err(_) => names.dns.insert(name.clone()),
        };
    }
    Ok(names)
}

/// The same without further names: those of the host, and all its addresses.
pub(crate) fn names_and_addresses() -> io::Result<(Vec<String>, Vec<IpAddr>)> {
    let Names { dns, ips } = names(&[])?;
    Ok((dns.into_iter().collect(), ips.into_iter().collect()))
}

/// The first address that others may reach this node by, in the order of its interfaces.
pub(crate) fn first_address() -> io::Result<Option<IpAddr>> {
    let address = |entry: nix::ifaddrs::InterfaceAddress| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    };
    let usable = |ip: &IpAddr| is_global_unicast(ip) && !ip.is_loopback();
    Ok(getifaddrs()?.filter_map(address).find(usable))
}

fn is_global_unicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_unspecified() || ip.is_link_local() || ip.is_multicast()),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_unicast_link_local() || ip.is_multicast()),
    }
}

/// The kernel's host name, once it has one.
pub(crate) fn hostname() -> Option<String> {
    kernel_name("/proc/sys/kernel/hostname")
}

/// The host name with the kernel's domain name behind it, if there is one.
fn fqdn() -> Option<String> {
    let host = hostname()?;
    Some(match kernel_name("/proc/sys/kernel/domainname") {
        Some(domain) => format!("{host}.{domain}"),
        None => host,
    })
}

fn kernel_name(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let name = text.trim();
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}

/// Without `client`, apid forwards no calls.
fn write_apid(ca: &str, server: &Pair, client: Option<&Pair>) -> Result<(), Error> {
    let mut files = vec![("ca.crt", ca)];
    if let Some(client) = client {
        files.extend([("client.crt", client.crt.as_str()), ("client.key", client.key.expose())]);
    }
    // The certificate last: with it, all is new.
    files.extend([("tls.key", server.key.expose()), ("tls.crt", &server.crt)]);
    write_all(APID_SECRETS, APID_UID, &files)
}

fn write_trustd(ca: &str, key: &Secret, token: &Secret, own: &Pair) -> Result<(), Error> {
    let files = [
        ("ca.crt", ca),
        ("ca.key", key.expose()),
        ("token", token.expose()),
        ("tls.key", own.key.expose()),
        ("tls.crt", &own.crt),
    ];
    write_all(TRUSTD_SECRETS, TRUSTD_UID, &files)
}

/// Writes files for one user's eyes, one after the other.
pub(crate) fn write_all(
    folder: impl AsRef<Path>,
    uid: u32,
    files: &[(&str, &str)],
) -> Result<(), Error> {
    let folder = folder.as_ref();
    let write = || {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o500))?;
        chown(folder, Some(uid), Some(uid))?;
        files.iter().try_for_each(|(name, text)| write_one(&folder.join(name), text, uid))
    };
    write().map_err(|source| Error::file("write keys and certificates to", folder, source))
}

fn write_one(path: &Path, text: &str, uid: u32) -> io::Result<()> {
    let mut file = Beside::new(path, 0o400)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.give_to(uid)?;
    file.keep()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn extra_names_are_sorted_into_addresses_and_names() {
        let names =
            names(&["10.0.0.9".to_owned(), "api.example.org".to_owned()]).unwrap_or_default();
        assert!(names.ips.contains(&IpAddr::from([10, 0, 0, 9])));
        assert!(names.ips.contains(&IpAddr::from([127, 0, 0, 1])));
        assert!(names.dns.contains("api.example.org"));
    }

    #[test]
    fn certificates_depend_on_names_authorities_token_and_endpoint() {
        let config = |endpoint: &str| {
            let text = format!(
                "version: v1alpha1\nmachine:\n  type: worker\n  token: abcdef.0123456789abcdef\n\
                 cluster:\n  controlPlane:\n    endpoint: {endpoint}\n"
            );
            orlop_config::machine::parse("worker.yaml", &text).unwrap()
        };
        let by_name = config("https://k8s.example.org:6443");
        assert_eq!(Origin::of(&by_name), Origin::Trustd);
        let basis = Basis::of(&by_name).unwrap();
        assert_eq!(basis.trustd, ["k8s.example.org"]);
        assert_eq!(basis, Basis::of(&by_name).unwrap());
        assert!(basis.trustd_leaf().dns.contains(&"k8s.example.org".to_owned()));
        assert!(!basis.leaf(Usage::Server).dns.contains(&"k8s.example.org".to_owned()));
        let by_address = Basis::of(&config("https://[fd00::9]:6443")).unwrap();
        assert!(basis != by_address && by_address.trustd == ["fd00::9"]);
        assert!(by_address.trustd_leaf().ips.contains(&"fd00::9".parse().unwrap()));
    }

    #[test]
    fn trustd_is_looked_for_where_the_configuration_says_and_at_the_endpoint() {
        let text = "version: v1alpha1\nmachine:\n  type: worker\n  token: abcdef.0123456789abcdef\n  \
                    trustd:\n    endpoints: [10.0.0.1, control-2]\n\
                    cluster:\n  controlPlane:\n    endpoint: https://10.0.0.9:6443\n";
        let config = orlop_config::machine::parse("worker.yaml", text).unwrap();
        let basis = Basis::of(&config).unwrap();
        assert_eq!(basis.trustd, ["10.0.0.1", "control-2", "10.0.0.9"]);
        // A control plane's trustd speaks for the endpoint, and not for its peers.
        let leaf = basis.trustd_leaf();
        assert!(leaf.ips.contains(&"10.0.0.9".parse().unwrap()));
        assert!(!leaf.ips.contains(&"10.0.0.1".parse().unwrap()));
        assert!(!leaf.dns.contains(&"control-2".to_owned()));
    }
}
