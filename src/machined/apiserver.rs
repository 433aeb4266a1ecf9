//! The API server of a control plane: its files, how it is called, and whether it answers (spec/kube-api §1, §5).
//!
//! It has a store of its own, on the EPHEMERAL volume, where the node has no etcd; several control planes need etcd,
//! which they share. Whoever has begun with a store of its own stays with it: nothing moves by itself. Its certificates
//! are made here, of Kubernetes' authority, so that it never sees the authority's key.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use orlop_config::machine::MachineConfig;
use orlop_pki::signature::SigningKey;
use orlop_pki::{Authority, Leaf, Secret, Usage, certificate};
use orlop_rt::Chain;
use orlop_supervise::container::{self, Bind, Containerd};
use orlop_supervise::seccomp::{Group, Profile};
use orlop_supervise::{
    Definition, Dependency, Health, Hook, Permissions, Prepared, Runner, Timing,
};
use tokio::time::interval;
use tracing::{info, warn};

use crate::error::Error;
use crate::etcd::host as etcd;
use crate::health;
use crate::identity;
use crate::node::Node;
use crate::renewal::{Now, Renewal, Validity};
use crate::services::{BINARY, START_LIMIT, own_folder};

/// Its id, and the role it runs.
pub(crate) const ID: &str = "apiserver";
/// Its user and group (`/etc/passwd` of the image).
const UID: u32 = 61;
/// What is handed to it.
const SECRETS: &str = "/system/secrets/apiserver";
/// What is its own.
const DATA: &str = "/var/lib/orlop/apiserver";
/// What signs service accounts' tokens where the configuration has no key for that.
const OWN_ACCOUNTS_KEY: &str = "/var/lib/orlop/service-account.key";
/// In [`DATA`], the store of a node without etcd.
const STORE: &str = "store";
/// Where etcd's member of this node serves.
const ETCD: &str = "etcd://127.0.0.1:2379";
/// Unless `cluster.controlPlane.localAPIServerPort` says another.
const PORT: u16 = 6443;
/// Unless `cluster.network` says others.
const SERVICES: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12));
const DOMAIN: &str = "cluster.local";
/// A certificate's life; the server reads new ones by itself.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often names, addresses and age of the certificates are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Answers under way may end.
const GRACE: Duration = Duration::from_secs(15);
/// Ten thousand pods and a hundred watches take a tenth (`spec/kube-api.md` §8).
const MEMORY: i64 = 2 << 30;
/// Every watch and every client is an open file.
const OPEN_FILES: u64 = 65_536;
/// Killed after everything that is not of the node itself.
const PRECIOUS: i32 = -997;

/// Where its objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Own,
    Etcd,
}

impl Store {
    fn of(node: &Node) -> Self {
        let begun = Path::new(DATA).join(STORE).exists() || node.goes_by_roles();
        if etcd::program().is_some() && !begun { Self::Etcd } else { Self::Own }
    }
}

/// The service.
pub(crate) fn definition(node: &Node, containerd: &Containerd) -> Result<Definition, Error> {
    own_folder(Path::new(DATA), UID)?;
    // The folder must be there before the container is made, its files when it starts.
    identity::write_all(SECRETS, UID, &[])?;
    let mut spec = container::Spec {
        user: (UID, UID),
        cgroup: format!("/podruntime/{ID}"),
        seccomp: Some(Profile::new([Group::Unix, Group::Inet])),
        memory_limit_bytes: Some(MEMORY),
        pids_limit: Some(512),
        open_files: Some(OPEN_FILES),
        oom_score_adj: PRECIOUS,
        ..container::Spec::new::<String>(ID, BINARY, [])
    };
    spec.host.network = true;
    spec.binds.extend([
        Bind::read_only(SECRETS, SECRETS),
        Bind::read_write(DATA, DATA),
        Bind::read_only("/etc/hosts", "/etc/hosts"),
        Bind::read_only("/etc/resolv.conf", "/etc/resolv.conf"),
    ]);
    let mut dependencies =
        vec![Dependency::to_prepare("containerd"), Dependency::to_prepare("networkd")];
    if Store::of(node) == Store::Etcd {
        dependencies.push(Dependency::to_start("etcd"));
    }
    let timing = Timing {
        initial_delay: START_LIMIT,
        period: Duration::from_secs(10),
        timeout: Duration::from_secs(5),
    };
    let (prepared, asked) = (node.clone(), node.clone());
    Ok(Definition {
        dependencies,
        prepare: Some(Hook::new(move || {
            let node = prepared.clone();
            async move { prepare(&node).map_err(|error| Chain(&error).to_string()) }
        })),
        health: Some(
            Health::new(move || {
                let node = asked.clone();
                async move { healthy(&node).await }
            })
            .with_timing(timing),
        ),
        grace: GRACE,
        permissions: Permissions { start: true, stop: false, restart: true },
        ..Definition::new(ID, Runner::Container(Box::new(spec), containerd.clone()))
    })
}

/// Whether it is ready to serve.
async fn healthy(node: &Node) -> Result<(), String> {
    let config = node.config().map_err(|error| Chain(&error).to_string())?;
    let ca = config.cluster.ca.as_ref().ok_or("the configuration has no cluster.ca")?;
    health::ready(&Ipv4Addr::LOCALHOST.to_string(), port(&config), &ca.crt).await
}

/// Certificates, and what it is called with this time.
fn prepare(node: &Node) -> Result<Prepared, Error> {
    let config = node.config()?;
    let store = Store::of(node);
    let basis = Basis::of(&config, store)?;
    basis.write(SystemTime::now())?;
    let address = identity::first_address()
        .map_err(|source| Error::System { operation: "list the node's addresses", source })?
        .ok_or_else(|| Error::Apiserver("this node has no address yet".to_owned()))?;
    info!(?store, %address, "the API server starts");
    Ok(Prepared::RunWith(arguments(&config, store, address)))
}

/// Keeps the certificates fresh once there are any, until the node goes down. The server sees by itself that its files
/// have changed.
pub(crate) async fn keep_secrets(node: Node) {
    let mut renewal = Renewal::new();
    let shutdown = node.shutdown().clone();
    let keeping = async {
        let mut check = interval(CHECK_INTERVAL);
        loop {
            check.tick().await;
            if !Path::new(SECRETS).join(SERVING_CRT).exists() {
                continue;
            }
            let now = Now { wall: SystemTime::now(), monotonic: orlop_sys::monotonic() };
            let basis = node.config().and_then(|config| Basis::of(&config, Store::of(&node)));
            let renewed = match &basis {
                Ok(basis) if !renewal.due(basis, now) => continue,
                Ok(basis) => basis.write(now.wall),
                Err(error) => Err(Error::Apiserver(Chain(error).to_string())),
            };
            match (basis, renewed) {
                (Ok(basis), Ok(validity)) => {
                    renewal.succeeded(basis, validity, now, identity::random());
                }
                (_, Err(error)) | (Err(error), Ok(_)) => {
                    renewal.failed(now, identity::random());
                    warn!(error = %Chain(&error), "no new certificates for the API server; trying on");
                }
            }
        }
    };
    // Cancel-safe: a tick that is lost comes again.
    shutdown.run_until_cancelled(keeping).await;
}

const SERVING_CRT: &str = "serving.crt";
const SERVING_KEY: &str = "serving.key";
const CLIENT_CA: &str = "client-ca.crt";
const ACCOUNTS_KEY: &str = "service-account.key";
const ETCD_CA: &str = "etcd-ca.crt";
const ETCD_CRT: &str = "etcd.crt";
const ETCD_KEY: &str = "etcd.key";

/// All that its files depend on.
#[derive(Clone, Debug, PartialEq)]
struct Basis {
    dns: Vec<String>,
    ips: Vec<IpAddr>,
    /// Kubernetes' authority, PEM.
    ca: String,
    key: Secret,
    /// Those that are believed besides.
    accepted: Vec<String>,
    /// Signs the tokens of service accounts.
    accounts: Secret,
    /// etcd's authority, PEM.
    etcd: Option<(String, Secret)>,
}

impl Basis {
    fn of(config: &MachineConfig, store: Store) -> Result<Self, Error> {
        let addresses = identity::names_and_addresses()
            .map_err(|source| Error::System { operation: "list the node's addresses", source })?;
        let configured = config.cluster.service_account.as_ref();
        let accounts = match configured.and_then(|accounts| accounts.key.clone()) {
            Some(key) => key,
            None => own_accounts_key(Path::new(OWN_ACCOUNTS_KEY))?,
        };
        Self::with(config, store, addresses, accounts)
    }

    fn with(
        config: &MachineConfig,
        store: Store,
        (mut dns, mut ips): (Vec<String>, Vec<IpAddr>),
        accounts: Secret,
    ) -> Result<Self, Error> {
        let cluster = &config.cluster;
        let missing = |what: &str| {
            Error::Apiserver(format!(
                "the configuration has no {what}, and no other control plane has handed it over yet"
            ))
        };
        let pair = |ca: &orlop_config::CertificateAndKey| Some((ca.crt.clone(), ca.key.clone()?));
        let (ca, key) =
            cluster.ca.as_ref().and_then(pair).ok_or_else(|| missing("cluster.ca with its key"))?;
        let etcd = cluster.etcd.as_ref().and_then(|etcd| pair(etcd.ca.as_ref()?));
        let etcd = match store {
            Store::Own => None,
            Store::Etcd => Some(etcd.ok_or_else(|| missing("cluster.etcd.ca with its key"))?),
        };
        let domain = domain(config);
        dns.extend(["localhost", "kubernetes", "kubernetes.default"].map(str::to_owned));
        dns.push("kubernetes.default.svc".to_owned());
        dns.push(format!("kubernetes.default.svc.{domain}"));
        ips.push(first(services(config)));
        let further = cluster.api_server.cert_sans.iter().cloned();
        for name in identity::endpoint_host(config).into_iter().chain(further) {
            match name.parse() {
                Ok(ip) => ips.push(ip),
                Err(_) => dns.push(name),
            }
        }
        orlop_rt::sort(&mut dns);
        dns.dedup();
        orlop_rt::sort(&mut ips);
        ips.dedup();
        let accepted = cluster.accepted_cas.iter().map(|ca| ca.crt.clone()).collect();
        Ok(Self { dns, ips, ca, key, accepted, accounts, etcd })
    }

    /// Names and texts of its files, the serving certificate last.
    fn issue(&self, now: SystemTime) -> Result<Vec<(&'static str, Secret)>, orlop_pki::Error> {
        let authority = Authority::from_pem(&self.ca, self.key.expose())?;
        let leaf = Leaf {
            common_name: "kube-apiserver".to_owned(),
            organizations: Vec::new(),
            usage: Usage::Server,
            dns: self.dns.clone(),
            ips: self.ips.clone(),
            lifetime: LIFETIME,
        };
        let serving = authority.issue(&leaf, now)?;
        let believed = std::iter::once(&self.ca).chain(&self.accepted);
        let believed: String = believed.map(|crt| format!("{}\n", crt.trim_end())).collect();
        let mut files =
            vec![(CLIENT_CA, Secret::new(believed)), (ACCOUNTS_KEY, self.accounts.clone())];
        if let Some((ca, key)) = &self.etcd {
            let leaf = Leaf {
                common_name: ID.to_owned(),
                usage: Usage::Client,
                dns: Vec::new(),
                ips: Vec::new(),
                ..leaf
            };
            let client = Authority::from_pem(ca, key.expose())?.issue(&leaf, now)?;
            files.push((ETCD_CA, Secret::new(ca.clone())));
            files.extend([(ETCD_KEY, client.key), (ETCD_CRT, Secret::new(client.crt))]);
        }
        files.extend([(SERVING_KEY, serving.key), (SERVING_CRT, Secret::new(serving.crt))]);
        Ok(files)
    }

    fn write(&self, now: SystemTime) -> Result<Validity, Error> {
        let files = self.issue(now)?;
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.expose())).collect();
        identity::write_all(SECRETS, UID, &files)?;
        // All of them live as long as the last.
        let last = files.last().map_or("", |(_, text)| text);
        let (not_before, not_after) = certificate::validity(last)?;
        Ok(Validity { not_before, not_after })
    }
}

/// The key in a file, made if there is none.
fn own_accounts_key(path: &Path) -> Result<Secret, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => return Ok(Secret::new(text)),
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::file("read", path, source));
        }
        Err(_) => {}
    }
    let key = SigningKey::generate()?;
    orlop_rt::replace(path, 0o400, key.expose().as_bytes())
        .map_err(|source| Error::file("write", path, source))?;
    info!(
        path = %path.display(),
        "made a key for service accounts' tokens; control planes share one by cluster.serviceAccount.key"
    );
    Ok(key)
}

/// What it is called with; the last of two flags of a name counts, and those of the configuration are last.
fn arguments(config: &MachineConfig, store: Store, address: IpAddr) -> Vec<String> {
    let secret = |name: &str| format!("{SECRETS}/{name}");
    let mut flags = vec![
        ("data-dir", DATA.to_owned()),
        ("listen", format!("[::]:{}", port(config))),
        ("advertise-address", address.to_string()),
        ("service-cluster-ip-range", services(config).to_string()),
        ("service-account-issuer", format!("https://kubernetes.default.svc.{}", domain(config))),
        ("tls-cert-file", secret(SERVING_CRT)),
        ("tls-private-key-file", secret(SERVING_KEY)),
        ("client-ca-file", secret(CLIENT_CA)),
        ("service-account-signing-key-file", secret(ACCOUNTS_KEY)),
    ];
    match store {
        Store::Own => flags.push(("store", format!("embedded://{DATA}/{STORE}"))),
        Store::Etcd => flags.extend([
            ("store", ETCD.to_owned()),
            ("etcd-cafile", secret(ETCD_CA)),
            ("etcd-certfile", secret(ETCD_CRT)),
            ("etcd-keyfile", secret(ETCD_KEY)),
        ]),
    }
    let extra = &config.cluster.api_server.extra_args;
    flags.retain(|(name, _)| !extra.contains_key(*name));
    let own = flags.iter().map(|(name, value)| format!("--{name}={value}"));
    own.chain(extra.iter().map(|(name, value)| format!("--{name}={value}"))).collect()
}

fn port(config: &MachineConfig) -> u16 {
    config.cluster.control_plane.local_api_server_port.unwrap_or(PORT)
}

fn services(config: &MachineConfig) -> IpNet {
    let network = config.cluster.network.as_ref();
    network.and_then(|network| network.service_subnets.first().copied()).unwrap_or(SERVICES)
}

fn domain(config: &MachineConfig) -> &str {
    let network = config.cluster.network.as_ref();
    network
        .map(|network| network.dns_domain.as_str())
        .filter(|name| !name.is_empty())
        .unwrap_or(DOMAIN)
}

/// The first address of a network that is a machine's.
fn first(network: IpNet) -> IpAddr {
    network.hosts().next().unwrap_or(network.network())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeMap;

    use orlop_config::generate;

    use super::*;

    fn configured(more: impl FnOnce(&mut MachineConfig)) -> MachineConfig {
        let (options, now) = (generate::Options::default(), SystemTime::now());
        let made = generate::generate("c", "https://api.example.org:6443", &options, now).unwrap();
        let mut config = made.control_plane;
        more(&mut config);
        config
    }

    fn basis(config: &MachineConfig, store: Store) -> Basis {
        let own = (vec!["node-1".to_owned()], vec![[10, 0, 0, 1].into()]);
        Basis::with(config, store, own, Secret::new("key")).unwrap()
    }

    #[test]
    fn its_certificate_speaks_for_the_node_the_service_and_the_endpoint() {
        let config = configured(|config| {
            config.cluster.api_server.cert_sans = vec!["192.0.2.7".to_owned(), "x.org".to_owned()];
        });
        let basis = basis(&config, Store::Own);
        let files: BTreeMap<_, _> = basis.issue(SystemTime::now()).unwrap().into_iter().collect();
        let (dns, ips) = certificate::names(files[SERVING_CRT].expose()).unwrap();
        for name in [
            "node-1",
            "localhost",
            "kubernetes.default.svc.cluster.local",
            "api.example.org",
            "x.org",
        ] {
            assert!(dns.iter().any(|known| known == name), "{name}: {dns:?}");
        }
        for ip in ["10.0.0.1", "10.96.0.1", "192.0.2.7"] {
            assert!(ips.contains(&ip.parse().unwrap()), "{ip}: {ips:?}");
        }
        certificate::check_issuer(files[SERVING_CRT].expose(), &basis.ca).unwrap();
        assert!(
            files.values().all(|text| text.expose() != basis.key.expose()),
            "the authority's key"
        );
        assert_eq!(files.len(), 4);
    }

    #[test]
    fn with_etcd_it_has_a_certificate_of_etcds_authority() {
        let config = configured(|_| ());
        let basis = basis(&config, Store::Etcd);
        let files: BTreeMap<_, _> = basis.issue(SystemTime::now()).unwrap().into_iter().collect();
        certificate::check_issuer(files[ETCD_CRT].expose(), files[ETCD_CA].expose()).unwrap();
        let arguments = arguments(&config, Store::Etcd, [10, 0, 0, 1].into());
        assert!(arguments.contains(&"--store=etcd://127.0.0.1:2379".to_owned()), "{arguments:?}");
        assert!(arguments.contains(&format!("--etcd-certfile={SECRETS}/etcd.crt")));
    }

    #[test]
    fn what_the_configuration_says_goes_before_what_is_usual() {
        let config = configured(|config| {
            config.cluster.control_plane.local_api_server_port = Some(7443);
            let network = config.cluster.network.get_or_insert_default();
            network.service_subnets = vec!["10.3.0.0/16".parse().unwrap()];
            network.dns_domain = "k.local".to_owned();
            let extra = &mut config.cluster.api_server.extra_args;
            extra.insert("anonymous-auth".to_owned(), "false".to_owned());
            extra.insert("data-dir".to_owned(), "/elsewhere".to_owned());
        });
        let basis = basis(&config, Store::Own);
        assert!(basis.ips.contains(&"10.3.0.1".parse().unwrap()));
        let arguments = arguments(&config, Store::Own, [10, 0, 0, 1].into());
        for flag in [
            "--listen=[::]:7443",
            "--advertise-address=10.0.0.1",
            "--service-cluster-ip-range=10.3.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc.k.local",
            "--anonymous-auth=false",
            "--data-dir=/elsewhere",
            "--store=embedded:///var/lib/orlop/apiserver/store",
        ] {
            assert!(arguments.iter().any(|known| known == flag), "{flag}: {arguments:?}");
        }
        assert_eq!(arguments.iter().filter(|flag| flag.starts_with("--data-dir")).count(), 1);
    }

    #[test]
    fn a_key_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let first = own_accounts_key(&path).unwrap();
        assert_eq!(own_accounts_key(&path).unwrap(), first);
        SigningKey::from_pem(first.expose()).unwrap();
        own_accounts_key(&folder.path().join("absent/key")).unwrap_err();
    }

    #[test]
    fn a_node_without_the_authoritys_key_says_what_it_waits_for() {
        let config = configured(|config| config.cluster.ca.as_mut().unwrap().key = None);
        let error =
            Basis::with(&config, Store::Own, Default::default(), Secret::default()).unwrap_err();
        assert!(Chain(&error).to_string().contains("no cluster.ca with its key, and no other"));
    }
}
