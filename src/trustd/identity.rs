//! What trustd signs with and whom it believes: the files machined puts into one folder, read again when
//! they change.
//!
//! `ca.crt` holds the accepted authorities, the issuing one first, and `ca.key` that one's key; `tls.crt`
//! and `tls.key` are trustd's own certificate, `token` is the machine token. machined replaces them one
//! by one, so for a moment they may not belong together: what cannot be used is looked at again, and
//! only told when it stays so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs, io};

use orlop_pki::tls::{Judge, asking_server_config};
use orlop_pki::{Authority, Secret, certificate};
use orlop_rt::Chain;
use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use subtle::ConstantTimeEq as _;
use tracing::{info, warn};

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

/// The files, as they were last seen in good order.
#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    texts: Texts,
    /// Looks in a row at files that could not be used.
    broken: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Texts {
    ca: String,
    ca_key: Secret,
    crt: String,
    key: Secret,
    token: Secret,
}

impl Files {
    /// Reads them for the first time.
    ///
    /// # Errors
    /// When they cannot be read or used.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Identity), Error> {
        let texts = Texts::read(folder)?;
        let identity = texts.identity(folder)?;
        Ok((Self { folder: folder.to_owned(), texts, broken: 0 }, identity))
    }

    /// Reads them again; the new identity, when there is one. (Small files in memory: reading them
    /// does not block.)
    pub(crate) fn look(&mut self) -> Option<Identity> {
        let looked = Texts::read(&self.folder).and_then(|texts| {
            if texts == self.texts {
                return Ok(None);
            }
            Ok(Some((texts.identity(&self.folder)?, texts)))
        });
        let found = match looked {
            Ok(found) => found,
            Err(error) => {
                self.broken = self.broken.saturating_add(1);
                if self.broken == 2 {
                    warn!(error = %Chain(&error), "new secrets cannot be used, keeping the old");
                }
                return None;
            }
        };
        self.broken = 0;
        let (identity, texts) = found?;
        self.texts = texts;
        info!("new secrets");
        Some(identity)
    }
}

impl Texts {
    fn read(folder: &Path) -> Result<Self, Error> {
        let read = |name| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| Error::Read { path, source })
        };
        Ok(Self {
            ca: read("ca.crt")?,
            ca_key: read("ca.key")?.into(),
            crt: read("tls.crt")?,
            key: read("tls.key")?.into(),
            token: read("token")?.into(),
        })
    }

    fn identity(&self, folder: &Path) -> Result<Identity, Error> {
        let token = self.token.expose().trim();
        if token.is_empty() {
            return Err(Error::NoToken { folder: folder.to_owned() });
        }
        let identity = || {
            let (own, _) = certificate::names(&self.crt)?;
            Ok(Identity {
                server: asking_server_config(&self.crt, self.key.expose())?,
                authority: Authority::from_pem(&self.ca, self.ca_key.expose())?,
                accepted: self.ca.clone(),
                judge: Judge::new(&self.ca)?,
                own: own.into_iter().map(|name| name.to_ascii_lowercase()).collect(),
                token: sha256(token.as_bytes()),
            })
        };
        identity().map_err(|source| Error::Unusable { folder: folder.to_owned(), source })
    }
}
