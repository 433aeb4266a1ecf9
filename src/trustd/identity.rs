//! What trustd signs with and whom it believes: the files machined puts into one folder, read again when
//! they change.
//!
//! `ca.crt` holds the accepted authorities, the issuing one first, and `ca.key` that one's key; `tls.crt`
//! and `tls.key` are trustd's own certificate, `token` is the machine token ([`orlop_rpc::renewed`] reads
//! them).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::{fmt, fs, io};

use orlop_pki::tls::{Judge, asking_server_config};
use orlop_pki::{Authority, Secret, certificate};
use orlop_rpc::renewed::{self, Source};
use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use subtle::ConstantTimeEq as _;

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
    #[error("use the keys and certificates in {}", folder.display())]
    Unusable {
        /// Where they are.
        folder: PathBuf,
        /// Why not.
        source: orlop_pki::Error,
    },
    /// Anybody could call.
    #[error("the token in {} is empty; set machine.token", folder.display())]
    NoToken {
        /// Where it is.
        folder: PathBuf,
    },
}

/// What the files are good for.
pub(crate) struct Identity {
    /// What we show to those who connect.
    pub(crate) server: Arc<ServerConfig>,
    /// Signs.
    pub(crate) authority: Authority,
    /// All accepted authorities, PEM.
    pub(crate) accepted: String,
    /// Knows certificates of theirs.
    pub(crate) judge: Judge,
    /// Names of this node, from its own certificate.
    pub(crate) own: BTreeSet<String>,
    token: [u8; 32],
}

impl Identity {
    /// Whether `token` is the machine token. Takes the same time whatever is wrong with it.
    pub(crate) fn is_token(&self, token: &[u8]) -> bool {
        self.token.ct_eq(&sha256(token)).into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("own", &self.own).finish_non_exhaustive()
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut array = [0; 32];
    array.copy_from_slice(digest(&SHA256, bytes).as_ref());
    array
}

pub(crate) type Files = renewed::Files<Folder>;

/// Where the files are.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

/// What is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Texts {
    ca: String,
    ca_key: Secret,
    crt: String,
    key: Secret,
    token: Secret,
}

impl Source for Folder {
    type Texts = Texts;
    type Identity = Identity;
    type Error = Error;
    const WHAT: &'static str = "secrets";

    fn read(&self) -> Result<Texts, Error> {
        let read = |name| {
            let path = self.0.join(name);
            fs::read_to_string(&path).map_err(|source| Error::Read { path, source })
        };
        Ok(Texts {
            ca: read("ca.crt")?,
            ca_key: read("ca.key")?.into(),
            crt: read("tls.crt")?,
            key: read("tls.key")?.into(),
            token: read("token")?.into(),
        })
    }

    fn identity(&self, texts: &Texts) -> Result<Identity, Error> {
        let token = texts.token.expose().trim();
        if token.is_empty() {
            return Err(Error::NoToken { folder: self.0.clone() });
        }
        let identity = || {
            let (own, _) = certificate::names(&texts.crt)?;
            Ok(Identity {
                server: asking_server_config(&texts.crt, texts.key.expose())?,
                authority: Authority::from_pem(&texts.ca, texts.ca_key.expose())?,
                accepted: texts.ca.clone(),
                judge: Judge::new(&texts.ca)?,
                own: own.into_iter().map(|name| name.to_ascii_lowercase()).collect(),
                token: sha256(token.as_bytes()),
            })
        };
        identity().map_err(|source| Error::Unusable { folder: self.0.clone(), source })
    }
}
