//! `gen ca`, `key`, `csr`, `crt` and `keypair`: single keys and certificates, as files.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use orlop_pki::{Authority, KeyKind, Leaf, Request, Usage, fingerprint, request};

use crate::error::Error;
use crate::generate::create;
use crate::table::print;

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, clap::Args)]
pub(crate) struct CaOptions {
    /// Whose authority it is; the files are called like this
    #[arg(long, value_name = "NAME")]
    organization: String,
    /// For how long it is good
    #[arg(long, default_value_t = 87_600, value_name = "HOURS")]
    hours: u32,
    /// ECDSA over P-256 instead of Ed25519, for Kubernetes and etcd
    #[arg(long)]
    ecdsa: bool,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, clap::Args)]
pub(crate) struct KeyOptions {
    /// The file is called like this
    #[arg(long, value_name = "NAME")]
    name: String,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CsrOptions {
    /// The key to certify; the request is called like it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    names: Names,
    /// The role that is asked for
    #[arg(long, alias = "roles", value_name = "ROLE")]
    role: Option<String>,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CrtOptions {
    /// The authority: NAME.crt and NAME.key
    #[arg(long, value_name = "NAME")]
    ca: PathBuf,
    /// The request
    #[arg(long, value_name = "FILE")]
    csr: PathBuf,
    /// The file is called like this
    #[arg(long, value_name = "NAME")]
    name: String,
    /// For how long it is good
    #[arg(long, default_value_t = 24, value_name = "HOURS")]
    hours: u32,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PairOptions {
    /// Who it is; the files are called like this
    #[arg(long, value_name = "NAME")]
    organization: String,
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    files: Files,
}

/// What a certificate speaks for.
#[derive(Debug, clap::Args)]
struct Names {
    /// Addresses
    #[arg(long = "ip", value_delimiter = ',', value_name = "ADDRESS")]
    ips: Vec<IpAddr>,
    /// DNS names
    #[arg(long = "dns", value_delimiter = ',', value_name = "NAME")]
    dns: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Files {
    /// Write over files that are there
    #[arg(long)]
    force: bool,
}

impl Files {
    /// Makes all files, or none when one of them is there, and says which.
    fn make(&self, files: &[(PathBuf, &str)]) -> Result<(), Error> {
        if let Some((path, _)) = files.iter().find(|(path, _)| !self.force && path.exists()) {
            return Err(Error::Exists { path: path.clone() });
        }
        for (path, text) in files {
            let failed = |source| Error::Write { path: path.clone(), source };
            create(path, text).map_err(failed)?;
            print(format!("created {}\n", path.display()).as_bytes())?;
        }
        Ok(())
    }
}

pub(crate) fn ca(options: &CaOptions) -> Result<(), Error> {
    let CaOptions { organization, hours, ecdsa, files } = options;
    let kind = if *ecdsa { KeyKind::P256 } else { KeyKind::Ed25519 };
    let made = Authority::generate(organization, kind, HOUR * *hours, SystemTime::now());
    let made = made.map_err(Error::Keys)?;
    let pair = made.pair();
    let hash = fingerprint(&pair.crt).map_err(Error::Keys)? + "\n";
    let name = |ending: &str| PathBuf::from(format!("{organization}.{ending}"));
    files.make(&[
        (name("crt"), &pair.crt),
        (name("key"), pair.key.expose()),
        (name("sha256"), &hash),
    ])
}

pub(crate) fn key(options: &KeyOptions) -> Result<(), Error> {
    let made = request::new_key().map_err(Error::Keys)?;
    options.files.make(&[(format!("{}.key", options.name).into(), made.expose())])
}

pub(crate) fn csr(options: &CsrOptions) -> Result<(), Error> {
    let CsrOptions { key, names: Names { ips, dns }, role, files } = options;
    let text = read(key)?;
    let made = request::for_key(&text, "", role.as_deref(), dns, ips).map_err(Error::Keys)?;
    files.make(&[(key.with_extension("csr"), &made)])
}

/// A request that asks for a role makes the certificate of a client, any other that of a server.
pub(crate) fn crt(options: &CrtOptions) -> Result<(), Error> {
    let CrtOptions { ca, csr, name, hours, files } = options;
    let beside = |ending: &str| {
        let mut path = ca.clone().into_os_string();
        path.push(ending);
        PathBuf::from(path)
    };
    let (crt, key) = (read(&beside(".crt"))?, read(&beside(".key"))?);
    let authority = Authority::from_pem(&crt, &key).map_err(Error::Keys)?;
    let request = Request::from_pem(read(csr)?.as_bytes()).map_err(Error::Keys)?;
    let leaf = Leaf {
        common_name: request.common_name.clone(),
        organizations: request.organizations.clone(),
        usage: if request.organizations.is_empty() { Usage::Server } else { Usage::Client },
        dns: request.dns.clone(),
        ips: request.ips.clone(),
        lifetime: HOUR * *hours,
    };
    let made = authority.certify(&leaf, &request, SystemTime::now()).map_err(Error::Keys)?;
    files.make(&[(format!("{name}.crt").into(), &made)])
}

pub(crate) fn keypair(options: &PairOptions) -> Result<(), Error> {
    let PairOptions { organization, names: Names { ips, dns }, files } = options;
    let leaf = Leaf {
        common_name: String::new(),
        organizations: vec![organization.clone()],
        usage: Usage::Server,
        dns: dns.clone(),
        ips: ips.clone(),
        lifetime: 24 * HOUR,
    };
    let made = orlop_pki::self_signed(&leaf, SystemTime::now()).map_err(Error::Keys)?;
    let name = |ending: &str| PathBuf::from(format!("{organization}.{ending}"));
    files.make(&[(name("crt"), &made.crt), (name("key"), made.key.expose())])
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}
