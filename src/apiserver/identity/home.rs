//! What the server makes for itself where nobody hands it certificates: on a laptop, in its data folder.
//!
//! `pki/authority.pem` and `pki/service-account.key` are made once and kept: the clients of yesterday know them.
//! `pki/serving.pem` and `pki/admin.pem` are made of the authority, again when two thirds of their life are over, and
//! the serving one also when it lacks a name. Certificate and key are in one file, so that no crash leaves one of them.
//! `pki/ca.crt` is the authority's certificate alone, for `curl --cacert`, and `kubeconfig` is for `kubectl`.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use orlop_config::kubeconfig::Kubeconfig;
use orlop_pki::signature::SigningKey;
use orlop_pki::{Authority, KeyKind, Leaf, Pair, Secret, Usage, certificate, tls};

use super::Place;

const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// The names that pods call it by.
const SERVICE: [&str; 4] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];
/// Of the cluster, in the kubeconfig.
const CLUSTER: &str = "orlop";

/// The files, each there and good for now.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) authority: PathBuf,
    pub(super) serving: PathBuf,
    pub(super) accounts: PathBuf,
    pub(super) kubeconfig: PathBuf,
    /// When one of them must be made anew.
    pub(super) renew_at: SystemTime,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read or written.
    #[error("{doing} {}", path.display())]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key or certificate is none.
    #[error("use {}; take the folder away to have everything in it made anew, with which no client of before works", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: orlop_pki::Error,
    },
    /// A certificate cannot be made.
    #[error("make {}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: orlop_pki::Error,
    },
    /// The authority has ended.
    #[error("{} has expired; take the folder away to have everything in it made anew", .0.display())]
    Expired(PathBuf),
}

impl Home {
    pub(super) fn prepare(
        place: &Place<'_>,
        further: &[String],
        now: SystemTime,
    ) -> Result<Self, Error> {
        let folder = place.data_dir.join("pki");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)))
            .map_err(file("write", &folder))?;
        let at = |name: &str| folder.join(name);

        let path = at("authority.pem");
        let authority = match read(&path)? {
            Some(text) => {
                let usable = |source| Error::Unusable { path: path.clone(), source };
                let authority = Authority::from_pem(&text, &text).map_err(usable)?;
                if certificate::not_after(&text).map_err(usable)? <= now {
                    return Err(Error::Expired(path));
                }
                authority
            }
            None => {
                let made = Authority::generate(CLUSTER, KeyKind::P256, AUTHORITY_LIFETIME, now);
                let made = made.map_err(|source| Error::Make { path: path.clone(), source })?;
                write(&path, &both(made.pair()))?;
                made
            }
        };
        // Without the key, which its own file has behind it.
        let own = orlop_pki::encoding::certificates(&authority.pair().crt)
            .map_err(|source| Error::Unusable { path, source })?;
        let ca = own.first().map(|der| orlop_pki::encoding::certificate_to_pem(der));
        let ca = ca.unwrap_or_default();
        write_changed(&at("ca.crt"), &ca)?;

        let accounts = at("service-account.key");
        match read(&accounts)? {
            Some(text) => drop(
                SigningKey::from_pem(&text)
                    .map_err(|source| Error::Unusable { path: accounts.clone(), source })?,
            ),
            None => {
                let made = SigningKey::generate();
                let made = made.map_err(|source| Error::Make { path: accounts.clone(), source })?;
                write(&accounts, made.expose())?;
            }
        }

        let issuer = Issuer { authority: &authority, now };
        let serving = at("serving.pem");
        let (_, until) = issuer.keep(&serving, &serving_leaf(place, further))?;
        let (admin, admin_until) = issuer.keep(&at("admin.pem"), &admin_leaf())?;
        let kubeconfig = place.data_dir.join("kubeconfig");
        let text = Kubeconfig { cluster: CLUSTER, server: place.server, ca: &ca, client: &admin };
        write_changed(&kubeconfig, &text.to_yaml())?;
        let renew_at = until.min(admin_until);
        Ok(Self { authority: at("ca.crt"), serving, accounts, kubeconfig, renew_at })
    }
}

fn serving_leaf(place: &Place<'_>, further: &[String]) -> Leaf {
    let mut leaf = Leaf {
        common_name: "kube-apiserver".to_owned(),
        organizations: Vec::new(),
        usage: Usage::Server,
        dns: std::iter::once("localhost").chain(SERVICE).map(str::to_owned).collect(),
        ips: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), place.service],
        lifetime: LEAF_LIFETIME,
    };
    for name in std::iter::once(place.host_name).chain(further.iter().map(String::as_str)) {
        match name.parse::<IpAddr>() {
            Ok(ip) if !leaf.ips.contains(&ip) => leaf.ips.push(ip),
            Err(_) if !name.is_empty() && !leaf.dns.iter().any(|known| known == name) => {
                leaf.dns.push(name.to_owned());
            }
            _ => {}
        }
    }
    leaf
}

fn admin_leaf() -> Leaf {
    Leaf {
        common_name: "admin".to_owned(),
        organizations: vec!["system:masters".to_owned()],
        usage: Usage::Client,
        dns: Vec::new(),
        ips: Vec::new(),
        lifetime: LEAF_LIFETIME,
    }
}

struct Issuer<'a> {
    authority: &'a Authority,
    now: SystemTime,
}

impl Issuer<'_> {
    /// The certificate in a file while it is good, else a new one; and when that must be made anew.
    fn keep(&self, path: &Path, leaf: &Leaf) -> Result<(Pair, SystemTime), Error> {
        let text = read(path)?;
        if let Some(kept) = text.and_then(|text| self.good(&text, leaf)) {
            return Ok(kept);
        }
        let make = |source| Error::Make { path: path.to_owned(), source };
        let pair = self.authority.issue(leaf, self.now).map_err(make)?;
        write(path, &both(&pair))?;
        let until = renew_at(&pair.crt).map_err(make)?;
        Ok((pair, until))
    }

    fn good(&self, text: &str, leaf: &Leaf) -> Option<(Pair, SystemTime)> {
        let until = renew_at(text).ok()?;
        let (not_before, _) = certificate::validity(text).ok()?;
        let (dns, ips) = certificate::names(text).ok()?;
        let named = leaf.dns.iter().all(|name| dns.contains(name))
            && leaf.ips.iter().all(|ip| ips.contains(ip));
        // Certificate and key belong together, and to this authority.
        tls::asking_server_config(text, text).ok()?;
        certificate::check_issuer(text, &self.authority.pair().crt).ok()?;
        let (crt, key) = text.split_at(text.rfind("-----BEGIN ")?);
        let in_time = not_before <= self.now && self.now < until;
        let pair = Pair { crt: crt.to_owned(), key: Secret::new(key) };
        (named && in_time).then_some((pair, until))
    }
}

/// When two thirds of a certificate's life are over.
fn renew_at(crt: &str) -> Result<SystemTime, orlop_pki::Error> {
    let (from, until) = certificate::validity(crt)?;
    let life = until.duration_since(from).unwrap_or(DAY);
    Ok(from + life * 2 / 3)
}

fn both(pair: &Pair) -> String {
    format!("{}{}", pair.crt, pair.key.expose())
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("read", path)(error)),
    }
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    orlop_rt::replace(path, 0o600, text.as_bytes()).map_err(file("write", path))
}

fn write_changed(path: &Path, text: &str) -> Result<(), Error> {
    match read(path)? {
        Some(there) if there == text => Ok(()),
        _ => write(path, text),
    }
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { doing, path, source }
}
