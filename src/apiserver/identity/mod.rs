//! What the server is and whom it believes: its certificate, its clients' authority, the keys of service accounts.
//!
//! On a node machined hands it files, by the flags that the reference has for them. On a laptop there are none, and
//! [`home`] makes everything in the data folder once: an authority, certificates, a key, and a kubeconfig. [`Identity`]
//! is what either comes to; it is read again when [`Identity::is_stale`].

pub mod home;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use orlop_pki::signature::{SigningKey, VerifyingKey};
use orlop_pki::tls;
use rustls::ServerConfig;

use crate::authn::account::Accounts;
use crate::authn::{Anonymous, Settings};
use home::Home;

/// The flags; each is the reference's of this name.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
pub struct Options {
    /// The server's certificate, in PEM; without one the server makes all it needs in its data folder
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// A name or address to put into the certificate the server makes (repeatable)
    #[arg(long, value_name = "NAME", conflicts_with = "tls_cert_file")]
    pub tls_san: Vec<String>,
    /// The authorities whose certificates say who a client is, in PEM
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// The authorities that pods believe this server by, in PEM; else those of its clients
    #[arg(long, value_name = "FILE")]
    pub root_ca_file: Option<PathBuf>,
    /// Static tokens: lines of token,user,uid,"group1,group2"
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// The private key that signs service accounts' tokens, in PEM: P-256 or RSA
    #[arg(long, value_name = "FILE")]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// A further key that service accounts' tokens may be signed with, in PEM (repeatable)
    #[arg(long, value_name = "FILE")]
    pub service_account_key_file: Vec<PathBuf>,
    /// Who makes service accounts' tokens
    #[arg(long, value_name = "URL", default_value = ISSUER)]
    pub service_account_issuer: String,
    /// Whom a service account's token must be for; else for its issuer
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// Whether who shows nothing is let in, as system:anonymous
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub anonymous_auth: bool,
    /// The only paths where that holds, such as /readyz
    #[arg(long, value_name = "PATH", value_delimiter = ',')]
    pub anonymous_auth_paths: Vec<String>,
}

/// Who makes service accounts' tokens unless something else is said.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Where the server is, as far as its certificate must say it.
#[derive(Debug)]
pub struct Place<'a> {
    /// The folder that is the server's alone.
    pub data_dir: &'a Path,
    /// The URL that the machine's own clients reach it by.
    pub server: &'a str,
    /// What the machine is called.
    pub host_name: &'a str,
    /// The first address of the services, which is this server's.
    pub service: IpAddr,
}

/// All of it, read and sound.
#[derive(Debug)]
pub struct Identity {
    /// For the listener; asks for client certificates.
    pub tls: Arc<ServerConfig>,
    /// For [`crate::authn::Authenticator::new`].
    pub settings: Settings,
    /// PEM; what pods believe this server by (`kube-root-ca.crt`). Empty: nothing is said.
    pub root_ca: String,
    /// What was written for `kubectl`, where the server made its certificates itself.
    pub kubeconfig: Option<PathBuf>,
    read: Vec<(PathBuf, Stamp)>,
    renew_at: Option<SystemTime>,
}

/// What changes when a file does.
type Stamp = Option<(u64, i64, i64, u64)>;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that was named cannot be read.
    #[error("read {} (--{flag})", path.display())]
    Read {
        /// The flag that names it.
        flag: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("use {} (--{flag})", path.display())]
    Content {
        /// The flag that names it.
        flag: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: orlop_pki::Error,
    },
    /// What the server makes for itself.
    #[error(transparent)]
    Home(#[from] home::Error),
}

impl Identity {
    /// Reads the files that the options name, and makes what none of them names. Blocks.
    ///
    /// # Errors
    /// When a file cannot be read or used, or nothing can be made.
    pub fn load(options: &Options, place: &Place<'_>, now: SystemTime) -> Result<Self, Error> {
        let home = match options.tls_cert_file {
            Some(_) => None,
            None => Some(Home::prepare(place, &options.tls_san, now)?),
        };
        let made = |file: fn(&Home) -> &PathBuf| home.as_ref().map(|home| file(home).clone());
        let named = |option: &Option<PathBuf>, file| option.clone().or_else(|| made(file));
        let mut reader = Reader::default();

        let certificate = named(&options.tls_cert_file, |home| &home.serving);
        let key = named(&options.tls_private_key_file, |home| &home.serving);
        let certificate = reader.required("tls-cert-file", certificate)?;
        let key = reader.required("tls-private-key-file", key)?;
        let config = tls::asking_http_server_config(&certificate.text, &key.text);
        let tls = config.map_err(certificate.wrong())?;

        let client_ca = named(&options.client_ca_file, |home| &home.authority);
        let client_ca = reader.optional("client-ca-file", client_ca)?;
        let root_ca = reader.optional("root-ca-file", options.root_ca_file.clone())?;
        let tokens = reader.optional("token-auth-file", options.token_auth_file.clone())?;
        let signing = named(&options.service_account_signing_key_file, |home| &home.accounts);
        let signing = reader.optional("service-account-signing-key-file", signing)?;
        let signing = signing
            .map(|file| SigningKey::from_pem(&file.text).map_err(file.wrong()))
            .transpose()?;
        let mut further = Vec::new();
        for path in &options.service_account_key_file {
            let file = reader.read("service-account-key-file", path.clone())?;
            further.extend(VerifyingKey::from_pem(&file.text).map_err(file.wrong())?);
        }

        let text = |file: Option<Text>| file.map(|file| file.text);
        let client_ca = text(client_ca);
        Ok(Self {
            tls,
            root_ca: text(root_ca).or_else(|| client_ca.clone()).unwrap_or_default(),
            settings: Settings {
                client_ca,
                tokens: text(tokens),
                accounts: Accounts::new(
                    &options.service_account_issuer,
                    options.api_audiences.clone(),
                    signing,
                    further,
                ),
                anonymous: match (options.anonymous_auth, &options.anonymous_auth_paths[..]) {
                    (false, _) => Anonymous::Refused,
                    (true, []) => Anonymous::Welcome,
                    (true, paths) => Anonymous::At(paths.to_vec()),
                },
            },
            kubeconfig: made(|home| &home.kubeconfig),
            renew_at: home.as_ref().map(|home| home.renew_at),
            read: reader.0,
        })
    }

    /// Is it time to load it again: a file has changed, or a certificate is near its end? A few `stat`s.
    #[must_use]
    pub fn is_stale(&self, now: SystemTime) -> bool {
        self.renew_at.is_some_and(|at| at <= now)
            || self.read.iter().any(|(path, then)| stamp(path) != *then)
    }
}

/// Reads files and remembers which.
#[derive(Default)]
struct Reader(Vec<(PathBuf, Stamp)>);

/// A file that was read.
struct Text {
    flag: &'static str,
    path: PathBuf,
    text: String,
}

impl Text {
    fn wrong(&self) -> impl FnOnce(orlop_pki::Error) -> Error + use<> {
        let (flag, path) = (self.flag, self.path.clone());
        move |source| Error::Content { flag, path, source }
    }
}

impl Reader {
    fn read(&mut self, flag: &'static str, path: PathBuf) -> Result<Text, Error> {
        // Before it is read: what changes meanwhile is read again.
        self.0.push((path.clone(), stamp(&path)));
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Text { flag, path, text }),
            Err(source) => Err(Error::Read { flag, path, source }),
        }
    }

    fn optional(
        &mut self,
        flag: &'static str,
        path: Option<PathBuf>,
    ) -> Result<Option<Text>, Error> {
        path.map(|path| self.read(flag, path)).transpose()
    }

    fn required(&mut self, flag: &'static str, path: Option<PathBuf>) -> Result<Text, Error> {
        // Whoever names one of the two must name the other: clap sees to it.
        self.read(flag, path.unwrap_or_default())
    }
}

fn stamp(path: &Path) -> Stamp {
    let data = fs::metadata(path).ok()?;
    Some((data.ino(), data.mtime(), data.mtime_nsec(), data.size()))
}

#[cfg(test)]
mod tests;
