//! The machine configurations of a cluster and the client configuration for it.
//!
//! [`generate`] is `gen config` (spec/node-api §11.1): a new cluster, with secrets that exist nowhere
//! else. [`answer`] is the call GenerateConfiguration (§5.5): one machine's, from a form, with the
//! secrets of a cluster that exists or new ones.

mod bundle;
mod form;

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_pki::{Authority, KeyKind, Leaf, Secret, Usage};
use ring::rand::{SecureRandom, SystemRandom};
use url::{Host, Url};

use crate::client::{Configuration, Context};
use crate::machine::{
    ApiServer, Cluster, ClusterNetwork, Component, ControlPlane, Etcd, Install, Kubelet, Machine,
    MachineConfig, MachineType, Proxy, Registries, ServiceAccount, VERSION,
};
use crate::value::CertificateAndKey;
pub use bundle::Bundle;
pub use form::{Answer, Device, Request, answer};

const HOUR: Duration = Duration::from_secs(3600);
/// Ten years: replacing an authority means new configurations everywhere.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(87_600 * HOUR.as_secs());
/// One year.
const ADMIN_LIFETIME: Duration = Duration::from_secs(8760 * HOUR.as_secs());
const ADMIN_ROLE: &str = "os:admin";
/// The Kubernetes API's port, suggested where none is given.
const API_SERVER_PORT: u16 = 6443;

/// What may be chosen about a new cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where clients dial apid.
    pub endpoints: Vec<String>,
    /// Further names and addresses of the nodes' and the API server's certificates.
    pub additional_sans: Vec<String>,
    /// `/dev/sda`.
    pub install_disk: String,
    /// The installer; `None` means that of the running version.
    pub install_image: Option<String>,
    /// Domain of the cluster's services.
    pub dns_domain: String,
    /// Nodes keep their configuration instead of fetching it at each boot.
    pub persist: bool,
    /// Where images come from instead.
    pub registry_mirrors: Vec<Mirror>,
    /// `1.20.1`; `None` means that of the running version.
    pub kubernetes_version: Option<String>,
    /// Those of the cluster; `None` means new ones.
    pub secrets: Option<Bundle>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1".to_owned()],
            additional_sans: Vec::new(),
            install_disk: "/dev/sda".to_owned(),
            install_image: None,
            dns_domain: "cluster.local".to_owned(),
            persist: true,
            registry_mirrors: Vec::new(),
            kubernetes_version: None,
            secrets: None,
        }
    }
}

/// A registry and where its images are fetched from instead, written `host=url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// `docker.io`.
    pub registry: String,
    /// Its replacement.
    pub endpoint: Url,
}

/// The files of a new cluster.
#[derive(Debug)]
pub struct Generated {
    /// `controlplane.yaml`.
    pub control_plane: MachineConfig,
    /// `worker.yaml`: no authority's key is in it.
    pub worker: MachineConfig,
    /// `talosconfig`: one context, named as the cluster.
    pub client: Configuration,
}

/// Any error.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a cluster cannot be generated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is no `https://host[:port]`.
    #[error("{problem}; try: {suggestion:?}")]
    Endpoint {
        /// What is wrong with it.
        problem: &'static str,
        /// What was probably meant.
        suggestion: String,
    },
    /// The endpoint is no URL at all.
    #[error("cluster endpoint {endpoint:?} is no URL such as https://10.0.0.2:6443")]
    NoUrl {
        /// As given.
        endpoint: String,
        /// Why.
        source: url::ParseError,
    },
    /// A mirror is not written as it must be.
    #[error("registry mirror {0:?} is not written host=url")]
    Mirror(String),
    /// The version of Kubernetes is no version.
    #[error("Kubernetes version {0:?} is not written like 1.20.1")]
    Kubernetes(String),
    /// A form is incomplete, or makes no configuration that a node would take.
    #[error("invalid generate request")]
    Request(#[source] Cause),
    /// A file of secrets lacks something, or has keys of other certificates.
    #[error("the secrets have no usable {0}")]
    Bundle(&'static str, #[source] Option<Cause>),
    /// No keys or certificates can be made.
    #[error("make the cluster's secrets")]
    Secrets(#[from] orlop_pki::Error),
}

/// Makes the configurations of a cluster whose Kubernetes API is at `endpoint`.
///
/// # Errors
/// When the endpoint is malformed, with a suggestion; or when there is no randomness.
pub fn generate(
    name: &str,
    endpoint: &str,
    options: &Options,
    now: SystemTime,
) -> Result<Generated, Error> {
    let endpoint = self::endpoint(endpoint)?;
    let images = Images::of(options.kubernetes_version.as_deref())?;
    let secrets = match &options.secrets {
        Some(bundle) => bundle.secrets()?,
        None => Secrets::generate(now)?,
    };
    let config = |kind| config(kind, name, &endpoint, options, images.as_ref(), &secrets);
    Ok(Generated {
        control_plane: config(MachineType::ControlPlane),
        worker: config(MachineType::Worker),
        client: secrets.client(name, &options.endpoints, now)?,
    })
}

/// References of Kubernetes' images of one version.
struct Images {
    kubelet: String,
    api_server: String,
    controller_manager: String,
    proxy: String,
    scheduler: String,
}

impl Images {
    /// `None` means that nodes choose.
    fn of(version: Option<&str>) -> Result<Option<Self>, Error> {
        let Some(text) = version else { return Ok(None) };
        let version = text.strip_prefix('v').unwrap_or(text);
        let (numbers, suffix) = version.split_once('-').unwrap_or((version, "0"));
        let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let suffix_is_sound = !suffix.is_empty()
            && suffix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
        if numbers.split('.').count() != 3 || !numbers.split('.').all(number) || !suffix_is_sound {
            return Err(Error::Kubernetes(text.to_owned()));
        }
        let image = |name: &str| format!("k8s.gcr.io/{name}:v{version}");
        Ok(Some(Self {
            kubelet: format!("ghcr.io/talos-systems/kubelet:v{version}"),
            api_server: image("kube-apiserver"),
            controller_manager: image("kube-controller-manager"),
            proxy: image("kube-proxy"),
            scheduler: image("kube-scheduler"),
        }))
    }
}

/// What the nodes of a cluster share.
struct Secrets {
    machine: Authority,
    kubernetes: Authority,
    etcd: Authority,
    token: Secret,
    bootstrap_token: Secret,
    aescbc: Secret,
    /// Of discovery.
    id: Option<String>,
    secret: Option<Secret>,
    service_account: Option<Secret>,
}

impl Secrets {
    fn generate(now: SystemTime) -> Result<Self, orlop_pki::Error> {
        let authority = |owner, kind| Authority::generate(owner, kind, AUTHORITY_LIFETIME, now);
        let random = SystemRandom::new();
        let mut aescbc = [0; 32];
        random.fill(&mut aescbc).map_err(|_| orlop_pki::Error::Random)?;
        Ok(Self {
            machine: authority("talos", KeyKind::Ed25519)?,
            kubernetes: authority("kubernetes", KeyKind::P256)?,
            etcd: authority("etcd", KeyKind::P256)?,
            token: token(&random)?,
            bootstrap_token: token(&random)?,
            aescbc: Secret::new(STANDARD.encode(aescbc)),
            id: None,
            secret: None,
            service_account: None,
        })
    }

    /// Those of a control plane's configuration.
    fn of(config: &MachineConfig) -> Result<Self, Cause> {
        let MachineConfig { machine, cluster, .. } = config;
        let missing = |what: &str| {
            Cause::from(format!("the machine that is asked has no {what}; ask a control plane"))
        };
        let authority = |what: &str, pair: Option<&CertificateAndKey>| {
            let pair = pair.and_then(|pair| Some((&pair.crt, pair.key.as_ref()?)));
            let (crt, key) = pair.ok_or_else(|| missing(what))?;
            Ok::<_, Cause>(Authority::from_pem(crt, key.expose())?)
        };
        let secret =
            |what: &str, secret: Option<&Secret>| secret.cloned().ok_or_else(|| missing(what));
        let etcd = cluster.etcd.as_ref().and_then(|etcd| etcd.ca.as_ref());
        Ok(Self {
            machine: authority("machine.ca.key", machine.ca.as_ref())?,
            kubernetes: authority("cluster.ca.key", cluster.ca.as_ref())?,
            etcd: authority("cluster.etcd.ca.key", etcd)?,
            token: secret("machine.token", machine.token.as_ref())?,
            bootstrap_token: secret("cluster.token", cluster.token.as_ref())?,
            aescbc: secret(
                "cluster.aescbcEncryptionSecret",
                cluster.aescbc_encryption_secret.as_ref(),
            )?,
            id: cluster.id.clone(),
            secret: cluster.secret.clone(),
            service_account: cluster.service_account.as_ref().and_then(|sa| sa.key.clone()),
        })
    }

    /// The client configuration of an administrator.
    fn client(
        &self,
        name: &str,
        endpoints: &[String],
        now: SystemTime,
    ) -> Result<Configuration, orlop_pki::Error> {
        let admin = self.machine.issue(&admin(), now)?;
        let context = Context {
            endpoints: endpoints.to_vec(),
            nodes: Vec::new(),
            ca: self.machine.pair().crt.clone(),
            crt: admin.crt,
            key: admin.key,
        };
        Ok(Configuration {
            context: name.to_owned(),
            contexts: [(name.to_owned(), context)].into(),
        })
    }
}

fn config(
    kind: MachineType,
    name: &str,
    endpoint: &Url,
    options: &Options,
    images: Option<&Images>,
    secrets: &Secrets,
) -> MachineConfig {
    let image = |of: fn(&Images) -> &String| images.map(|images| of(images).clone());
    let for_kind = |authority: &Authority| match kind.is_control_plane() {
        true => CertificateAndKey::from(authority.pair()),
        false => CertificateAndKey { crt: authority.pair().crt.clone(), key: None },
    };
    let control_plane_only = kind.is_control_plane().then_some(());
    let mut registries = Registries::default();
    for mirror in &options.registry_mirrors {
        let endpoints =
            &mut registries.mirrors.entry(mirror.registry.clone()).or_default().endpoints;
        endpoints.push(mirror.endpoint.clone());
    }
    let machine = Machine {
        kind,
        token: Some(secrets.token.clone()),
        ca: Some(for_kind(&secrets.machine)),
        cert_sans: options.additional_sans.clone(),
        kubelet: Kubelet { image: image(|images| &images.kubelet), ..Kubelet::default() },
        install: Some(Install {
            disk: options.install_disk.clone(),
            image: options.install_image.clone(),
            bootloader: true,
            ..Install::default()
        }),
        registries,
        ..Machine::default()
    };
    let cluster = Cluster {
        control_plane: ControlPlane {
            endpoint: Some(endpoint.clone()),
            local_api_server_port: None,
        },
        id: secrets.id.clone(),
        secret: secrets.secret.clone(),
        cluster_name: Some(name.to_owned()),
        network: Some(network(endpoint, &options.dns_domain)),
        token: Some(secrets.bootstrap_token.clone()),
        aescbc_encryption_secret: control_plane_only.map(|()| secrets.aescbc.clone()),
        ca: Some(for_kind(&secrets.kubernetes)),
        service_account: control_plane_only
            .and_then(|()| secrets.service_account.clone())
            .map(|key| ServiceAccount { key: Some(key) }),
        api_server: control_plane_only
            .map(|()| ApiServer {
                image: image(|images| &images.api_server),
                ..api_server(endpoint, options)
            })
            .unwrap_or_default(),
        controller_manager: control_plane_only
            .map(|()| Component {
                image: image(|images| &images.controller_manager),
                ..Component::default()
            })
            .unwrap_or_default(),
        proxy: control_plane_only
            .map(|()| Proxy { image: image(|images| &images.proxy), ..Proxy::default() })
            .unwrap_or_default(),
        scheduler: control_plane_only
            .map(|()| Component {
                image: image(|images| &images.scheduler),
                ..Component::default()
            })
            .unwrap_or_default(),
        etcd: control_plane_only
            .map(|()| Etcd { ca: Some(for_kind(&secrets.etcd)), ..Etcd::default() }),
        ..Cluster::default()
    };
    MachineConfig {
        version: VERSION.to_owned(),
        debug: false,
        persist: options.persist,
        machine,
        cluster,
    }
}

fn api_server(endpoint: &Url, options: &Options) -> ApiServer {
    let host = endpoint.host().map(bare);
    let further = options.additional_sans.iter().filter(|san| Some(*san) != host.as_ref());
    let cert_sans = host.iter().chain(further).cloned().collect();
    ApiServer { cert_sans, ..ApiServer::default() }
}

/// Pods and services are of the endpoint's address family.
fn network(endpoint: &Url, dns_domain: &str) -> ClusterNetwork {
    let (pods, services) = match endpoint.host() {
        Some(Host::Ipv6(_)) => ("fc00:db8:10::/56", "fc00:db8:20::/112"),
        _ => ("10.244.0.0/16", "10.96.0.0/12"),
    };
    let subnet = |text: &str| vec![text.parse().expect("one of the four above")];
    ClusterNetwork {
        cni: None,
        dns_domain: dns_domain.to_owned(),
        pod_subnets: subnet(pods),
        service_subnets: subnet(services),
    }
}

fn admin() -> Leaf {
    Leaf {
        common_name: "admin".to_owned(),
        organizations: vec![ADMIN_ROLE.to_owned()],
        usage: Usage::Client,
        dns: Vec::new(),
        ips: Vec::new(),
        lifetime: ADMIN_LIFETIME,
    }
}

/// A host as certificates have it: an IPv6 address without brackets.
fn bare(host: Host<&str>) -> String {
    match host {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(ip) => ip.to_string(),
        Host::Ipv6(ip) => ip.to_string(),
    }
}

/// Six and sixteen characters of `[0-9a-z]`, each as likely as any other: bytes that would favour
/// some are thrown away.
fn token(random: &dyn SecureRandom) -> Result<Secret, orlop_pki::Error> {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    /// The largest multiple of 36 a byte can hold.
    const FAIR: u8 = 252;
    let mut token = String::with_capacity(23);
    while token.len() < 23 {
        let mut bytes = [0; 32];
        random.fill(&mut bytes).map_err(|_| orlop_pki::Error::Random)?;
        for byte in bytes.into_iter().filter(|byte| *byte < FAIR) {
            if token.len() == 6 {
                token.push('.');
            }
            if token.len() < 23 {
                token.push(char::from(ALPHABET[usize::from(byte % 36)]));
            }
        }
    }
    Ok(Secret::from(token))
}

/// `https://host[:port]`; whatever is nearly that is an error which says what was probably meant.
///
/// # Errors
/// [`Error::Endpoint`] with a suggestion, or [`Error::NoUrl`].
pub fn endpoint(text: &str) -> Result<Url, Error> {
    let parse = |url: &str| {
        Url::parse(url).map_err(|source| Error::NoUrl { endpoint: text.to_owned(), source })
    };
    let Some((scheme, rest)) = text.split_once("://") else {
        let host = match text.parse() {
            Ok(IpAddr::V6(ip)) => bracketed(ip),
            _ => text.trim_end_matches('/').to_owned(),
        };
        let url = parse(&format!("https://{host}"))?;
        // The URL forgets a port that is the scheme's own.
        return Err(match url.port().is_some() || host.ends_with(":443") {
            true => wrong("no scheme specified for the cluster endpoint URL", &host),
            false => {
                let host = format!("{host}:{API_SERVER_PORT}");
                wrong("no scheme and port specified for the cluster endpoint URL", &host)
            }
        });
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if scheme != "https" {
        parse(&format!("https://{host}"))?;
        return Err(wrong("the control plane endpoint URL should have scheme https://", host));
    }
    let url = parse(text)?;
    let authority_only = matches!(rest.strip_prefix(host), Some("" | "/")) && !host.contains('@');
    if !authority_only {
        let host = host.rsplit('@').next().unwrap_or_default();
        return Err(wrong(
            "the control plane endpoint URL should have a host and a port only",
            host,
        ));
    }
    if url.port() == Some(0) {
        let host = host.trim_end_matches(":0");
        let host = format!("{host}:{API_SERVER_PORT}");
        return Err(wrong("the control plane endpoint URL should have a port in 1..=65535", &host));
    }
    Ok(url)
}

fn wrong(problem: &'static str, host: &str) -> Error {
    Error::Endpoint { problem, suggestion: format!("https://{host}") }
}

fn bracketed(ip: Ipv6Addr) -> String {
    format!("[{ip}]")
}

impl FromStr for Mirror {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (registry, endpoint) =
            text.split_once('=').ok_or_else(|| Error::Mirror(text.to_owned()))?;
        match Url::parse(endpoint) {
            Ok(endpoint) if !registry.is_empty() && endpoint.has_host() => {
                Ok(Self { registry: registry.to_owned(), endpoint })
            }
            _ => Err(Error::Mirror(text.to_owned())),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_pki::{certificate, encoding};

    use super::*;
    use crate::{client, machine};

    fn generated(endpoint: &str, options: &Options) -> Generated {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        generate("trial", endpoint, options, now).unwrap()
    }

    fn options() -> Options {
        Options {
            additional_sans: vec!["10.0.0.2".to_owned(), "api.example.org".to_owned()],
            registry_mirrors: vec!["docker.io=http://10.0.0.9:5000".parse().unwrap()],
            ..Options::default()
        }
    }

    #[test]
    fn generated_files_parse_back_without_problems() {
        let files = generated("https://10.0.0.2:6443", &options());
        for config in [&files.control_plane, &files.worker] {
            let yaml = config.to_yaml();
            assert_eq!(machine::parse("generated.yaml", &yaml).as_ref(), Ok(config), "{yaml}");
        }
        let yaml = files.client.to_yaml();
        assert_eq!(client::parse("talosconfig", &yaml), Ok(files.client));
    }

    #[test]
    fn a_workers_file_holds_no_authoritys_key() {
        let files = generated("https://10.0.0.2:6443", &options());
        assert_eq!(files.control_plane.to_yaml().matches("key: ").count(), 3);
        let worker = &files.worker;
        assert_eq!(worker.to_yaml().matches("key: ").count(), 0);
        assert!(worker.cluster.etcd.is_none() && worker.cluster.aescbc_encryption_secret.is_none());
        let crt = |config: &MachineConfig| config.machine.ca.clone().unwrap().crt;
        assert_eq!(crt(worker), crt(&files.control_plane));
    }

    #[test]
    fn the_administrator_is_a_client_of_the_machines_authority() {
        let files = generated("https://10.0.0.2:6443", &options());
        let context = &files.client.contexts["trial"];
        assert_eq!(
            (&files.client.context[..], &context.endpoints[..]),
            ("trial", &["127.0.0.1".to_owned()][..])
        );
        assert_eq!(context.ca, files.control_plane.machine.ca.unwrap().crt);
        let der = encoding::certificates(&context.crt).unwrap();
        assert_eq!(certificate::organizations(&der[0]).unwrap(), [ADMIN_ROLE]);
        assert!(context.key.expose().starts_with("-----BEGIN ED25519 PRIVATE KEY-----"));
        let (from, until) = certificate::validity(&context.crt).unwrap();
        assert_eq!(until.duration_since(from).unwrap(), ADMIN_LIFETIME + HOUR);
        orlop_pki::tls::client_config(&context.ca, Some((&context.crt, context.key.expose())))
            .unwrap();
    }

    #[test]
    fn names_and_subnets_follow_the_endpoint() {
        let files = generated("https://[fd00::1]:6443", &Options::default());
        let cluster = files.control_plane.cluster;
        assert_eq!(cluster.api_server.cert_sans, ["fd00::1"]);
        assert_eq!(cluster.network.unwrap().pod_subnets[0].to_string(), "fc00:db8:10::/56");
        let files = generated("https://10.0.0.2:6443", &options());
        let cluster = &files.control_plane.cluster;
        assert_eq!(cluster.api_server.cert_sans, ["10.0.0.2", "api.example.org"]);
        assert!(files.control_plane.to_yaml().contains("endpoint: https://10.0.0.2:6443\n"));
    }

    #[test]
    fn tokens_are_six_and_sixteen_and_use_the_whole_alphabet() {
        let random = SystemRandom::new();
        let tokens: Vec<_> = (0..200).map(|_| token(&random).unwrap()).collect();
        let mut seen = std::collections::BTreeSet::new();
        for token in &tokens {
            let (id, secret) = token.expose().split_once('.').unwrap();
            assert_eq!((id.len(), secret.len()), (6, 16));
            seen.extend(id.chars().chain(secret.chars()));
        }
        assert_eq!(seen.len(), 36);
        assert_ne!(tokens[0], tokens[1]);
    }

    #[test]
    fn a_wrong_endpoint_is_corrected() {
        for (wrong, message) in [
            (
                "10.0.0.2",
                "no scheme and port specified for the cluster endpoint URL; try: \"https://10.0.0.2:6443\"",
            ),
            (
                "example.org/",
                "no scheme and port specified for the cluster endpoint URL; try: \"https://example.org:6443\"",
            ),
            (
                "fd00::1",
                "no scheme and port specified for the cluster endpoint URL; try: \"https://[fd00::1]:6443\"",
            ),
            (
                "example.org:443",
                "no scheme specified for the cluster endpoint URL; try: \"https://example.org:443\"",
            ),
            (
                "http://10.0.0.2:6443/x",
                "the control plane endpoint URL should have scheme https://; try: \"https://10.0.0.2:6443\"",
            ),
            (
                "https://u:p@a:1/x",
                "the control plane endpoint URL should have a host and a port only; try: \"https://a:1\"",
            ),
            (
                "https://a:0",
                "the control plane endpoint URL should have a port in 1..=65535; try: \"https://a:6443\"",
            ),
            (
                "https://:6443",
                "cluster endpoint \"https://:6443\" is no URL such as https://10.0.0.2:6443",
            ),
            (
                "https://a:70000",
                "cluster endpoint \"https://a:70000\" is no URL such as https://10.0.0.2:6443",
            ),
            ("", "cluster endpoint \"\" is no URL such as https://10.0.0.2:6443"),
        ] {
            assert_eq!(endpoint(wrong).unwrap_err().to_string(), message, "{wrong}");
        }
        for right in ["https://10.0.0.2:6443", "https://example.org/", "https://[fd00::1]:443"] {
            endpoint(right).unwrap();
        }
    }

    #[test]
    fn a_version_of_kubernetes_chooses_all_images() {
        let options =
            Options { kubernetes_version: Some("1.20.2-rc.1".to_owned()), ..Options::default() };
        let files = generated("https://10.0.0.2:6443", &options);
        assert_eq!(files.control_plane.to_yaml().matches(":v1.20.2-rc.1").count(), 5);
        assert_eq!(files.worker.to_yaml().matches(":v1.20.2-rc.1").count(), 1);
        for wrong in ["", "1.20", "1.20.x", "1.20.1-", "1.20.1 2"] {
            assert!(Images::of(Some(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_mirror_is_host_and_url() {
        let mirror: Mirror = "docker.io=https://10.0.0.9:5000".parse().unwrap();
        assert_eq!((mirror.registry.as_str(), mirror.endpoint.port()), ("docker.io", Some(5000)));
        for wrong in ["docker.io", "=https://a", "docker.io=10.0.0.9:5000", "docker.io=a"] {
            assert!(wrong.parse::<Mirror>().is_err(), "{wrong}");
        }
    }
}
