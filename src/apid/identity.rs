//! Who this apid is: the files machined puts into one folder, read again when they change
//! ([`orlop_rpc::renewed`]).
//!
//! `ca.crt` says whom we trust, `tls.crt` and `tls.key` who we are to our callers; `client.crt` and
//! `client.key`, on control planes, who we are to other nodes. A node in maintenance has the certificate
//! for its callers only: it knows no authority, and asks nobody who they are.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::{fmt, fs};

use orlop_pki::encoding::certificates;
use orlop_pki::{Secret, stranger, tls};
use orlop_rpc::renewed::{self, Source};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, ServerConfig};

use crate::machine::Target;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One is not there, or cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is in them makes no identity.
    #[error("use the certificates in {}", folder.display())]
    Unusable {
        /// Where they are.
        folder: PathBuf,
        /// Why not.
        source: orlop_pki::Error,
    },
}

/// What the files are good for.
pub(crate) struct Identity {
    /// Admits callers with a certificate of the machine's authority.
    pub(crate) server: Arc<ServerConfig>,
    /// Dials other nodes. `None` on a worker.
    pub(crate) client: Option<Arc<ClientConfig>>,
    /// Our own certificate: it names this node's addresses.
    certificate: CertificateDer<'static>,
}

impl Identity {
    /// Whether `target` is this node: our certificate speaks for it, or it never leaves this machine.
    pub(crate) fn is_own(&self, target: &Target) -> bool {
        let Ok(name) = ServerName::try_from(target.host.as_str()) else { return false };
        let loopback = match &name {
            ServerName::IpAddress(address) => {
                std::net::IpAddr::from(*address).to_canonical().is_loopback()
            }
            // RFC 6761 §6.3; with a dot behind it, it is the same name.
            _ => {
                let host = target.host.strip_suffix('.').unwrap_or(&target.host);
                host.eq_ignore_ascii_case("localhost")
            }
        };
        loopback
            || ParsedCertificate::try_from(&self.certificate)
                .is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("forwards", &self.client.is_some()).finish_non_exhaustive()
    }
}

pub(crate) type Files = renewed::Files<Folder>;

/// Where the files are.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) maintenance: bool,
}

/// What is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Texts {
    /// `None` in maintenance.
    ca: Option<String>,
    crt: String,
    key: Secret,
    client: Option<(String, Secret)>,
}

impl Source for Folder {
    type Texts = Texts;
    type Identity = Identity;
    type Error = Error;
    const WHAT: &'static str = "certificates";

    fn read(&self) -> Result<Texts, Error> {
        let Self { path: folder, maintenance } = self;
        let read = |name| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| Error::Read { path, source })
        };
        let ca = if *maintenance { None } else { Some(read("ca.crt")?) };
        let client = match read("client.crt") {
            _ if *maintenance => None,
            Ok(crt) => Some((crt, read("client.key")?.into())),
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Texts { ca, crt: read("tls.crt")?, key: read("tls.key")?.into(), client })
    }

    fn identity(&self, texts: &Texts) -> Result<Identity, Error> {
        let identity = || {
            let (crt, key) = (&texts.crt, texts.key.expose());
            let server = match &texts.ca {
                Some(ca) => tls::server_config(ca, crt, key)?,
                None => stranger::server_config(crt, key)?,
            };
            let client = match (&texts.ca, &texts.client) {
                (Some(ca), Some((crt, key))) => {
                    Some(tls::client_config(ca, Some((crt, key.expose())))?)
                }
                _ => None,
            };
            Ok(Identity { server, client, certificate: certificates(&texts.crt)?.swap_remove(0) })
        };
        identity().map_err(|source| Error::Unusable { folder: self.path.clone(), source })
    }
}
