//! The role: from its command line to a curator that answers.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use clap::{Parser, Subcommand};
use orlop_config::parameters::{NodeParameters, Task};
use orlop_pki::cluster::{KEY_LENGTH, Profile, RawKey};
use orlop_pki::encoding;
use orlop_proto::metropolis::proto::common::cluster_configuration::{
    StorageSecurityPolicy, TpmMode,
};
use orlop_proto::metropolis::proto::common::{ClusterConfiguration, NodeLabels};
use orlop_rpc::tls;
use orlop_rt::CancellationToken;
use orlop_store::{EtcdTls, Limits, Location, Store};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use crate::api::Local;
use crate::backup;
use crate::bootstrap::{self, Founding};
use crate::certificates::{self, Certificates};
use crate::configuration;
use crate::moving;
use crate::names::{self, NodeId};
use crate::server;
use crate::standing::{self, Standing};
use crate::state::{Failure, State};

/// Where every curator listens.
pub const PORT: u16 = 7835;
/// Where a TPM is, if there is one.
const TPM: &str = "/dev/tpmrm0";

/// The cluster API: admits nodes, watches them and tells them their roles.
#[derive(Clone, Debug, Parser)]
#[command(name = "curator", version = orlop_rt::version::TAG, about)]
pub struct Options {
    /// The folder that is the curator's alone; its node's keys and certificates are in credentials/ beneath it
    #[arg(long, global = true, value_name = "FOLDER", default_value = "/var/lib/orlop/curator")]
    pub data_dir: PathBuf,
    /// Where the cluster's state is: embedded:///PATH or etcd://HOST:PORT,HOST:PORT; else a file in the data folder
    #[arg(long, global = true, value_name = "URL")]
    pub store: Option<Location>,
    /// The etcd that the cluster's state moves to from a store of the node's own when a second node shall keep it
    #[arg(long, value_name = "URL", value_parser = etcd)]
    pub move_to: Option<Location>,
    /// The authority of etcd's certificates, in PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// The certificate that etcd is shown, in PEM
    #[arg(long, global = true, value_name = "FILE", requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, global = true, value_name = "FILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// Where to listen; [::] takes IPv4 as well, port 0 is any that is free
    #[arg(long, value_name = "ADDRESS", default_value_t = (Ipv6Addr::UNSPECIFIED, PORT).into())]
    pub listen: SocketAddr,
    /// The address other machines reach it by; else what the node tells, or the one a caller has dialled
    #[arg(long, value_name = "ADDRESS")]
    pub external_address: Option<IpAddr>,
    /// Found a cluster if there is none, with the node parameters in this file
    #[arg(long, value_name = "FILE", conflicts_with = "owner")]
    pub parameters: Option<PathBuf>,
    /// Found a cluster if there is none: the owner's public key, 64 hexadecimal digits
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    pub owner: Option<[u8; KEY_LENGTH]>,
    /// What a cluster that is founded asks of a node's TPM
    #[arg(long, value_name = "MODE", requires = "owner", default_value = "required",
        value_parser = ["required", "best-effort", "disabled"])]
    pub tpm_mode: String,
    /// What a cluster that is founded asks of a node's storage
    #[arg(long, value_name = "POLICY", requires = "owner", default_value = "needs-encryption-and-authentication",
        value_parser = ["permissive", "needs-encryption", "needs-encryption-and-authentication", "needs-insecure"])]
    pub storage_security: String,
    /// The domain of a cluster that is founded
    #[arg(long, value_name = "DOMAIN", requires = "owner", default_value = configuration::DOMAIN)]
    pub domain: String,
    /// Log more
    #[arg(long, global = true)]
    pub debug: bool,
    /// Done instead, and over; the curator of an embedded store must not run meanwhile
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What is done with the store while no curator runs, or beside it.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Write all that the curator keeps, its authority's key among it, into one file
    Backup {
        /// Which; - is standard output
        file: PathBuf,
    },
    /// Fill a store that has no cluster from such a file
    Restore {
        /// Which; - is standard input
        file: PathBuf,
    },
    /// Move the cluster's state from an embedded store to an etcd that has none; it can be repeated
    Move {
        /// The etcd
        #[arg(long, value_name = "URL", value_parser = etcd)]
        to: Location,
        /// Take a move back that was begun and has not come to its end
        #[arg(long)]
        give_up: bool,
    },
}

/// Why it stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on, or no signal handler.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// A file cannot be read or written.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The node's key.
    #[error("the node's key in {}", path.display())]
    Key {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: orlop_pki::Error,
    },
    /// They are for something else.
    #[error("the node parameters in {}: {why}", path.display())]
    Parameters {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] orlop_store::Error),
    /// The store is not to be used.
    #[error(transparent)]
    Standing(#[from] standing::Error),
    /// It cannot be copied into a file, or filled from one.
    #[error(transparent)]
    Backup(#[from] backup::Error),
    /// It does not move.
    #[error(transparent)]
    Moving(#[from] moving::Failure),
    /// To another one.
    #[error("the state was on its way to {0}, not to {1}; name that one")]
    ElsewhereTo(Location, Location),
    /// It came to its end.
    #[error(
        "the state has arrived at {0}, and is not taken back; start the curator with --store {0}"
    )]
    Arrived(Location),
    /// An etcd is where state moves to.
    #[error("{0} is an etcd already; name the embedded store with --store or --data-dir")]
    NotEmbedded(Location),
    /// The cluster's state.
    #[error(transparent)]
    State(#[from] Failure),
    /// A cluster cannot be founded.
    #[error("found a cluster")]
    Bootstrap(#[from] bootstrap::Error),
    /// Its certificates.
    #[error(transparent)]
    Certificates(#[from] certificates::Error),
    /// There is none to be a curator of.
    #[error(
        "the store holds no cluster; found one with --owner and the owner's public key, or --parameters"
    )]
    NoCluster,
    /// This node is not one of it.
    #[error("{0} is not a node of the cluster in the store; register it first")]
    NoNode(NodeId),
    /// TLS.
    #[error("show the node's certificate")]
    Tls(#[from] orlop_pki::Error),
    /// The port cannot be opened.
    #[error("open the port")]
    Listen(#[source] io::Error),
}

/// The role's entry: options, log, runtime.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let options = match orlop_rt::parse::<Options>(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    orlop_telemetry::to_stderr(options.debug);
    let run = |shutdown| async {
        match options.command.clone() {
            None => Curator::open(options).await?.serve(shutdown).await,
            Some(command) => carry_out(&options, command).await,
        }
    };
    orlop_rt::exit("curator", orlop_rt::run_daemon(Error::Runtime, run))
}

/// Does what a command says.
async fn carry_out(options: &Options, command: Command) -> Result<(), Error> {
    let (location, tls) = (location(options), etcd_tls(options)?);
    match command {
        Command::Backup { file } => {
            let store = standing::open(&location, tls.as_ref()).await?;
            let revision = backup::write(&store, &file).await?;
            info!(%location, revision = revision.0, file = %file.display(), "the cluster's state is saved");
            store.close().await;
        }
        Command::Restore { file } => {
            let store = Store::open(&location, tls, Limits::default()).await?;
            let keys = backup::restore(&store, &location, &file).await?;
            info!(%location, keys, "the cluster's state is restored");
            store.close().await;
        }
        Command::Move { to, give_up } => {
            let store = Store::open(&location, tls.clone(), Limits::default()).await?;
            if matches!(store, Store::Etcd(_)) {
                return Err(Error::NotEmbedded(location));
            }
            let target = Store::open(&to, tls, Limits::default()).await?;
            let begun = match moving::pending(&store).await? {
                Some(begun) if begun.to != to => return Err(Error::ElsewhereTo(begun.to, to)),
                Some(begun) => begun,
                None if give_up => return Ok(()),
                None => {
                    moving::check(&target, &to).await?;
                    moving::begin(&store, &to).await?
                }
            };
            if !give_up {
                moving::finish(&store, &target, &begun).await?;
            } else if !moving::give_up(&store, &target, &begun).await? {
                return Err(Error::Arrived(to));
            }
            store.close().await;
        }
    }
    Ok(())
}

fn location(options: &Options) -> Location {
    let own = || Location::Embedded(options.data_dir.join("store"));
    options.store.clone().unwrap_or_else(own)
}

/// A place that is an etcd.
fn etcd(text: &str) -> Result<Location, String> {
    match text.parse() {
        Ok(location @ Location::Etcd(_)) => Ok(location),
        Ok(Location::Embedded(_)) => Err("it is no etcd; write etcd://HOST:PORT,…".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A curator whose port is open and whose store is read.
#[derive(Debug)]
pub struct Curator {
    own: NodeId,
    external: Option<IpAddr>,
    store: Store,
    certificates: Certificates,
    to: Option<Location>,
    tls: Option<EtcdTls>,
    listener: TcpListener,
    address: SocketAddr,
    config: Arc<ServerConfig>,
}

impl Curator {
    /// Opens the store and the port; founds the cluster if it is told to and there is none.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open(options: Options) -> Result<Self, Error> {
        let now = SystemTime::now();
        let credentials = options.data_dir.join("credentials");
        std::fs::create_dir_all(&credentials).map_err(|source| {
            let path = credentials.clone();
            Error::File { doing: "make the folder", path, source }
        })?;
        let key = own_key(&credentials.join("cert-key.pem"))?;
        let tls = etcd_tls(&options)?;
        let store = standing::open(&location(&options), tls.as_ref()).await?;
        let opened = Self::enter(&options, store.clone(), tls, &key, now).await;
        if opened.is_err() {
            // Whoever tries again finds it free.
            store.close().await;
        }
        opened
    }

    async fn enter(
        options: &Options,
        store: Store,
        tls: Option<EtcdTls>,
        key: &RawKey,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let credentials = options.data_dir.join("credentials");
        let own = NodeId::of_key(&key.public());
        let state = State::new(store.clone(), None);
        let founding = match founding(options)? {
            Some(mut founding) => {
                founding.node = key.public();
                founding.join = own_key(&credentials.join("join-key.pem"))?.public();
                Some(founding)
            }
            None => None,
        };
        let (certificates, certificate) = match founding {
            Some(founding) => bootstrap::found(&state, &founding, now).await?,
            None => {
                let loaded = Certificates::load(&state).await?;
                let certificates = loaded.ok_or(Error::NoCluster)?;
                if state.node(&own).await?.is_none() {
                    return Err(Error::NoNode(own));
                }
                let (name, profile) = (names::node_certificate(&own), Profile::node(own.as_str()));
                let public = key.public();
                let shown = certificates.ensure(&state, &name, &profile, &public, now).await?;
                (certificates, shown)
            }
        };
        for (name, der) in [("ca.pem", certificates.authority()), ("cert.pem", &certificate)] {
            let path = credentials.join(name);
            let pem = encoding::certificate_to_pem(der);
            orlop_rt::replace(&path, 0o644, pem.as_bytes()).map_err(|source| Error::File {
                doing: "write",
                path,
                source,
            })?;
        }
        let config = server::tls_config(&certificate, key)?;
        let listener = tls::listen(options.listen).await.map_err(Error::Listen)?;
        let address = listener.local_addr().map_err(Error::Listen)?;
        let external = options.external_address;
        let to = options.move_to.clone();
        Ok(Self { own, external, store, certificates, to, tls, listener, address, config })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The cluster's authority (DER).
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        self.certificates.authority()
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { own, external, store, certificates, to, tls, listener, address, config } = self;
        let port = address.port();
        let (leaders, told) = watch::channel(None);
        let local = Local::new(own.clone(), certificates.authority(), told);
        let (faces, face) = watch::channel(standing::first_face(&local));
        let (_config, configs) = watch::channel(config);
        info!(%address, node = %own, "the cluster API is served");
        let standing =
            Standing { own, external, port, certificates, to, tls, leaders, local, faces };
        tokio::join!(
            server::serve(listener, configs, face, shutdown.clone()),
            standing.run(store, shutdown),
        );
        Ok(())
    }
}

/// The key in a file; it is made if there is none.
fn own_key(path: &Path) -> Result<RawKey, Error> {
    let key = |source| Error::Key { path: path.to_owned(), source };
    match std::fs::read_to_string(path) {
        Ok(text) => RawKey::from_pem(&text).map_err(key),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = RawKey::generate().map_err(key)?;
            orlop_rt::replace(path, 0o600, made.to_pem().expose().as_bytes())
                .map_err(|source| Error::File { doing: "write", path: path.to_owned(), source })?;
            Ok(made)
        }
        Err(source) => Err(Error::File { doing: "read", path: path.to_owned(), source }),
    }
}

/// What the command line says of a new cluster; the keys of the node are still missing.
fn founding(options: &Options) -> Result<Option<Founding>, Error> {
    let tpm = Path::new(TPM).exists();
    let mut founding = Founding {
        node: [0; KEY_LENGTH],
        join: [0; KEY_LENGTH],
        owner: [0; KEY_LENGTH],
        cluster_unlock_key: Vec::new(),
        tpm,
        configuration: None,
        labels: NodeLabels::default(),
    };
    if let Some(owner) = options.owner {
        founding.owner = owner;
        founding.configuration = Some(chosen(options));
        return Ok(Some(founding));
    }
    let Some(path) = &options.parameters else { return Ok(None) };
    let bytes = std::fs::read(path).map_err(|source| Error::File {
        doing: "read",
        path: path.clone(),
        source,
    })?;
    let wrong = |why: String| Error::Parameters { path: path.clone(), why };
    let parameters = NodeParameters::decode(&bytes).map_err(|error| wrong(error.to_string()))?;
    let Task::Found(parameters) = parameters.task else {
        return Err(wrong("they are not for the first node of a cluster".to_owned()));
    };
    founding.owner = parameters.owner;
    founding.configuration = Some(parameters.configuration);
    founding.labels = parameters.labels;
    Ok(Some(founding))
}

fn chosen(options: &Options) -> ClusterConfiguration {
    let name =
        |prefix: &str, text: &str| prefix.to_owned() + &text.to_uppercase().replace('-', "_");
    let mode = TpmMode::from_str_name(&name("TPM_MODE_", &options.tpm_mode));
    let policy = name("STORAGE_SECURITY_POLICY_", &options.storage_security);
    let policy = StorageSecurityPolicy::from_str_name(&policy);
    ClusterConfiguration {
        tpm_mode: mode.unwrap_or_default().into(),
        storage_security_policy: policy.unwrap_or_default().into(),
        kubernetes: None,
        cluster_domain: options.domain.clone(),
    }
}

fn public_key(text: &str) -> Result<[u8; KEY_LENGTH], String> {
    let wrong = || "it is not 64 hexadecimal digits".to_owned();
    if text.len() != 2 * KEY_LENGTH || !text.is_ascii() {
        return Err(wrong());
    }
    let mut key = [0; KEY_LENGTH];
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
    }
    Ok(key)
}

fn etcd_tls(options: &Options) -> Result<Option<EtcdTls>, Error> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|source| Error::File {
            doing: "read",
            path: path.clone(),
            source,
        })
    };
    let Some(authority) = &options.etcd_cafile else { return Ok(None) };
    let identity = match (&options.etcd_certfile, &options.etcd_keyfile) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    Ok(Some(EtcdTls { authority: read(authority)?, identity }))
}
