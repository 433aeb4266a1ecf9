//! The certificates apid shows: minted here from the machine's authority, because apid, which talks to
//! the network, never sees the authority's key. Kept fresh for as long as the node runs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::ifaddrs::getifaddrs;
use orlop_config::machine::MachineConfig;
use orlop_pki::{Authority, KeyKind, Leaf, Pair, Usage};
use orlop_rt::CancellationToken;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::Error;
use crate::services::{APID_SECRETS, APID_UID};

const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Renewed when half of it is over, so that a day's outage of anything is survived.
const RENEW_AFTER: Duration = Duration::from_secs(12 * 3600);
/// How often the addresses and the age are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// What a server certificate speaks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    dns: BTreeSet<String>,
    ips: BTreeSet<IpAddr>,
}

/// Keeps apid's certificates valid for the node's names and addresses.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// `None` on a node whose configuration holds no authority's key: a worker.
    authority: Option<Authority>,
    ca: String,
    cert_sans: Vec<String>,
    issued: Option<(Names, SystemTime)>,
}

impl Keeper {
    /// # Errors
    /// When the configuration's certificate or key cannot be read.
    pub(crate) fn new(config: &MachineConfig) -> Result<Self, Error> {
        let pair = config.machine.ca.as_ref();
        let ca = pair.map(|pair| pair.crt.clone()).unwrap_or_default();
        let authority = match pair.and_then(|pair| pair.key.as_ref()) {
            Some(key) => Some(Authority::from_pem(&ca, key.expose())?),
            None => None,
        };
        Ok(Self { authority, ca, cert_sans: config.machine.cert_sans.clone(), issued: None })
    }

    /// Whether this node can give apid an identity at all.
    pub(crate) fn can_issue(&self) -> bool {
        self.authority.is_some()
    }

    /// Writes new certificates if names, addresses or age ask for it.
    pub(crate) fn refresh(&mut self, now: SystemTime) -> Result<(), Error> {
        let Some(authority) = &self.authority else { return Ok(()) };
        let names = names(&self.cert_sans)
            .map_err(|source| Error::System { operation: "list the node's addresses", source })?;
        if !due(self.issued.as_ref(), &names, now) {
            return Ok(());
        }
        let host = fqdn().unwrap_or_else(|| "orlop".to_owned());
        let leaf = |usage, organizations| Leaf {
            common_name: host.clone(),
            organizations,
            usage,
            dns: names.dns.iter().cloned().collect(),
            ips: names.ips.iter().copied().collect(),
            lifetime: LIFETIME,
        };
        let server = authority.issue(&leaf(Usage::Server, Vec::new()), now)?;
        let client = Leaf {
            dns: Vec::new(),
            ips: Vec::new(),
            ..leaf(Usage::Client, vec![IMPERSONATOR.to_owned()])
        };
        let client = authority.issue(&client, now)?;
        write_all(&self.ca, &server, &client)
            .map_err(|source| Error::file("write apid's certificates to", APID_SECRETS, source))?;
        let fingerprint = orlop_pki::fingerprint(&server.crt)?;
        let addresses: Vec<_> = names.ips.iter().filter(|ip| !ip.is_loopback()).collect();
        if addresses.is_empty() {
            debug!(
                host,
                fingerprint, "apid has a certificate for loopback, until there is a network"
            );
        } else {
            info!(host, ?addresses, fingerprint, "apid has a new certificate");
        }
        self.issued = Some((names, now));
        Ok(())
    }

    /// Goes on doing so until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut check = interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failed = false;
        // Cancel-safe: a tick that is lost comes again.
        while shutdown.run_until_cancelled(check.tick()).await.is_some() {
            match self.refresh(SystemTime::now()) {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    failed = true;
                    warn!(error = %orlop_rt::Chain(&error), "apid keeps its old certificate");
                }
                Err(_) => {}
            }
        }
    }
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
    make_folder()
        .and_then(|()| write_one(&Path::new(APID_SECRETS).join("tls.key"), server.key.expose()))
        .and_then(|()| write_one(&Path::new(APID_SECRETS).join("tls.crt"), &server.crt))
        .map_err(|source| Error::file("write apid's certificate to", APID_SECRETS, source))?;
    let addresses = names.ips.into_iter().filter(|ip| !ip.is_loopback()).collect();
    Ok((orlop_pki::fingerprint(&server.crt)?, addresses))
}

/// The role by which one apid speaks for a caller to another (spec §3.3).
const IMPERSONATOR: &str = "os:impersonator";

/// A clock that jumped either way renews too: a certificate from the future is no good.
fn due(issued: Option<&(Names, SystemTime)>, names: &Names, now: SystemTime) -> bool {
    issued.is_none_or(|(old, at)| {
        old != names || now.duration_since(*at).is_ok_and(|age| age > RENEW_AFTER) || now < *at
    })
}

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

fn is_global_unicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_unspecified() || ip.is_link_local() || ip.is_multicast()),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_unicast_link_local() || ip.is_multicast()),
    }
}

/// The kernel's host name, once it has one.
fn hostname() -> Option<String> {
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

fn make_folder() -> io::Result<()> {
    fs::create_dir_all(APID_SECRETS)?;
    fs::set_permissions(APID_SECRETS, fs::Permissions::from_mode(0o500))?;
    chown(APID_SECRETS, Some(APID_UID), Some(APID_UID))
}

fn write_all(ca: &str, server: &Pair, client: &Pair) -> io::Result<()> {
    make_folder()?;
    let files = [
        ("ca.crt", ca),
        ("client.crt", &client.crt),
        ("client.key", client.key.expose()),
        ("tls.key", server.key.expose()),
        // Last: apid reloads when it changes.
        ("tls.crt", &server.crt),
    ];
    files.iter().try_for_each(|(name, text)| write_one(&Path::new(APID_SECRETS).join(name), text))
}

fn write_one(path: &Path, text: &str) -> io::Result<()> {
    let beside = PathBuf::from(format!("{}.new", path.display()));
    let mut file =
        fs::File::options().write(true).create(true).truncate(true).mode(0o400).open(&beside)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    chown(&beside, Some(APID_UID), Some(APID_UID))?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_when_age_clock_or_names_say_so() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let names = Names { dns: BTreeSet::from(["a".to_owned()]), ips: BTreeSet::new() };
        let other = Names { dns: BTreeSet::new(), ..names.clone() };
        let issued = (names.clone(), now);
        assert!(due(None, &names, now));
        assert!(!due(Some(&issued), &names, now + RENEW_AFTER));
        assert!(due(Some(&issued), &names, now + RENEW_AFTER + Duration::from_secs(1)));
        assert!(due(Some(&issued), &names, now - Duration::from_secs(1)));
        assert!(due(Some(&issued), &other, now));
    }

    #[test]
    fn extra_names_are_sorted_into_addresses_and_names() {
        let names =
            names(&["10.0.0.9".to_owned(), "api.example.org".to_owned()]).unwrap_or_default();
        assert!(names.ips.contains(&IpAddr::from([10, 0, 0, 9])));
        assert!(names.ips.contains(&IpAddr::from([127, 0, 0, 1])));
        assert!(names.dns.contains("api.example.org"));
    }
}
