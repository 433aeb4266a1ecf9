//! What the environment says (spec/ambassador §7.2): `NSP_…`, or `NSM_…` as the documents print it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orlop_config::environment::{self, Environment};
use orlop_pki::tls::server_config;
use rustls::ServerConfig;

/// Why it cannot be so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value that cannot be read.
    #[error(transparent)]
    Invalid(#[from] environment::Invalid),
    /// Values that say what there is not.
    #[error("{0}")]
    Unknown(String),
    /// A certificate or key.
    #[error("use the certificate, key and authority in {}", folder.display())]
    Tls {
        /// The file of them that was read last.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: orlop_pki::Error,
    },
    /// A file of them.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// How callers that are not on the node prove who they are.
#[derive(Clone, Debug)]
pub enum Security {
    /// There are none: only the socket is open.
    SocketOnly,
    /// They do not, as somebody wants it.
    Plain,
    /// By a certificate of our authority.
    Tls(Arc<ServerConfig>),
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of TCP; 0: any.
    pub port: u16,
    /// For callers on the node.
    pub socket: PathBuf,
    /// For probes.
    pub health_socket: PathBuf,
    /// Where the configuration is.
    pub config: PathBuf,
    /// Where targets survive a restart; none: they do not.
    pub store: Option<PathBuf>,
    /// How long a target that is silent is there.
    pub entry_timeout: Duration,
    /// How long an answer to a probe may take.
    pub probe_timeout: Duration,
    /// Whether an identifier is one target's only.
    pub exclusive: bool,
    /// Of the port.
    pub security: Security,
}

/// Both spellings of a variable.
macro_rules! names {
    ($name:literal) => {
        &[concat!("NSP_", $name), concat!("NSM_", $name)]
    };
}

/// Whether more than usual is logged.
#[must_use]
pub fn debug(environment: &Environment) -> bool {
    matches!(&*environment.text(names!("LOG_LEVEL"), "INFO"), "DEBUG" | "TRACE")
}

impl Settings {
    /// Reads them; what is not said is as upstream has it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn read(environment: &Environment) -> Result<Self, Error> {
        let path = |names: &[&str], default: &str| {
            let text = environment.text(names, default);
            PathBuf::from(text.strip_prefix("unix://").unwrap_or(&text))
        };
        let config = environment.text(&["NSP_CONFIG"], "/etc/meridio");
        if config.starts_with("k8s:") {
            let what = "NSP_CONFIG=k8s: is not there yet; mount the ConfigMap as a volume and name its folder";
            return Err(Error::Unknown(what.to_owned()));
        }
        let store = path(names!("DATASOURCE"), "/run/nsp/data/registry.db");
        Ok(Self {
            port: environment.value(names!("PORT"), "port", 7778)?,
            socket: path(&["NSP_SOCKET"], "/run/nsp/nsp.sock"),
            health_socket: path(&["NSP_HEALTH_SOCKET"], "/tmp/health.sock"),
            config: config.into(),
            store: (!store.as_os_str().is_empty()).then_some(store),
            entry_timeout: environment
                .duration(names!("ENTRY_TIMEOUT"), Duration::from_secs(60))?,
            probe_timeout: environment
                .duration(names!("GRPC_PROBE_RPC_TIMEOUT"), Duration::from_secs(1))?,
            exclusive: environment.value(&["NSP_EXCLUSIVE_IDENTIFIERS"], "true or false", false)?,
            security: security(environment)?,
        })
    }
}

fn security(environment: &Environment) -> Result<Security, Error> {
    let files = ["NSP_TLS_CA", "NSP_TLS_CERTIFICATE", "NSP_TLS_KEY"]
        .map(|name| PathBuf::from(environment.text(&[name], "")));
    let given = files.iter().any(|file| !file.as_os_str().is_empty());
    let how = environment.text(&["NSP_SECURITY"], "auto");
    let unknown = |what: String| Err(Error::Unknown(what));
    match &*how {
        "none" => Ok(Security::Plain),
        "files" => tls(&files),
        "auto" if given => tls(&files),
        "auto" if environment.text(&["SPIFFE_ENDPOINT_SOCKET"], "").is_empty() => {
            Ok(Security::SocketOnly)
        }
        "auto" | "spiffe" => unknown(
            "certificates of SPIFFE are not there yet; write them to files and set NSP_SECURITY=files".to_owned(),
        ),
        other => unknown(format!("NSP_SECURITY={other:?} is none of auto, files, none")),
    }
}

fn tls(files: &[PathBuf; 3]) -> Result<Security, Error> {
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })
    };
    let [ca, certificate, key] = files;
    let config = server_config(&read(ca)?, &read(certificate)?, &read(key)?);
    let config = config.map_err(|source| Error::Tls { folder: key.clone(), source })?;
    Ok(Security::Tls(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, Error> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Settings::read(&variables.iter().map(owned).collect())
    }

    #[test]
    fn what_is_not_said_is_as_upstream_has_it_but_the_port_is_not_open_to_strangers() {
        let settings = read(&[]).expect("defaults");
        assert_eq!((settings.port, settings.entry_timeout.as_secs()), (7778, 60));
        assert!(matches!(settings.security, Security::SocketOnly));
        let plain = read(&[("NSP_SECURITY", "none"), ("NSM_PORT", "1")]).expect("told so");
        assert!(matches!(plain.security, Security::Plain) && plain.port == 1);
    }

    #[test]
    fn what_cannot_be_is_told_with_what_to_do() {
        let rows = [
            (("NSP_PORT", ""), "NSP_PORT"),
            (("NSP_ENTRY_TIMEOUT", "60"), "NSP_ENTRY_TIMEOUT"),
            (("NSP_SECURITY", "ftp"), "none of auto"),
            (("NSP_SECURITY", "spiffe"), "NSP_SECURITY=files"),
            (("NSP_CONFIG", "k8s:"), "mount the ConfigMap"),
            (("NSP_TLS_KEY", "/nowhere"), "read"),
        ];
        for (variable, said) in rows {
            let error = read(&[variable]).expect_err("refused").to_string();
            assert!(error.contains(said), "{variable:?}: {error}");
        }
    }
}
