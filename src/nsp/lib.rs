//! nsp: what the ambassador's trenches are configured with, and who takes part in their streams (spec/ambassador §5).
//!
//! ```text
//! file, folder ─▶ source ─▶ configuration ─▶ watches of ConfigurationManager
//!                                 │
//! Register ─▶ registry ─▶ targets ┴────────▶ watches of TargetRegistry
//!                           └─▶ store
//! ```
//!
//! - [`configuration`]: texts to what is told, with all that is wrong in them.
//! - [`registry`]: targets and their time, pure; [`targets`]: the same with the store and those who watch.
//! - [`selection`]: what a watch asks for.
//! - [`source`]: notices that the configuration is another.
//! - [`api`]: all of it as `nsp.v1`.
//! - [`settings`]: what the environment says.

#![forbid(unsafe_code)]

pub mod api;
pub mod configuration;
pub mod registry;
pub mod selection;
pub mod settings;
pub mod source;
pub mod targets;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use orlop_config::environment::Environment;
use orlop_proto::grpc::health::v1::health_server::HealthServer;
use orlop_rpc::Routes;
use orlop_rpc::board::{Board, probe};
use orlop_rpc::places::{self, Most};
use orlop_rpc::{tls, unix};
use orlop_rt::{CancellationToken, Exit};
use orlop_store::{Durability, Embedded, Limits, Store};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tracing::info;

use crate::configuration::Configuration;
use crate::registry::Registry;
use crate::settings::{Security, Settings};
use crate::targets::Targets;

/// Connections at a time: each pod has one.
const MOST: Most = Most { all: 20_000, each: 10_000 };
/// Calls under way when it stops.
const GRACE: Duration = Duration::from_secs(5);
/// Of the store's file, in memory: targets are in the registry anyway.
const STORE_CACHE: usize = 2 << 20;
/// How the first bytes of an SQLite file are.
const SQLITE: &[u8] = b"SQLite format 3\0";

/// Configuration and targets of the ambassador's trenches. It is told what to do by environment variables:
/// NSP_CONFIG, NSP_SOCKET, NSP_PORT, NSP_SECURITY, NSP_DATASOURCE, NSP_ENTRY_TIMEOUT, NSP_LOG_LEVEL
#[derive(Clone, Debug, Parser)]
#[command(name = "nsp", version = orlop_rt::version::TAG, about)]
struct Options {}

/// Why it stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on, or no signal handler.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// What the environment says cannot be.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// What is at the store's path cannot be moved aside.
    #[error("move {} aside, which another program wrote", path.display())]
    Foreign {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store.
    #[error("open the store {}", path.display())]
    Store {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: orlop_store::Error,
    },
    /// A port or a socket.
    #[error("listen")]
    Listen(#[source] io::Error),
    /// The configuration cannot be watched.
    #[error(transparent)]
    Source(#[from] source::Error),
}

/// The role's entry: environment, log, runtime.
pub fn main(args: Vec<OsString>) -> ExitCode {
    if let Err(code) = orlop_rt::parse::<Options>(args) {
        return code;
    }
    let environment = Environment::of_process();
    orlop_telemetry::to_stderr(settings::debug(&environment));
    let run = |shutdown| async move {
        let settings = Settings::read(&environment)?;
        Nsp::open(settings).await?.serve(shutdown).await
    };
    orlop_rt::exit_as("nsp", orlop_rt::run_daemon(Error::Runtime, run), |error| match error {
        Error::Settings(_) => Exit::Config,
        _ => Exit::Failed,
    })
}

/// A registry whose store is read and whose port is open.
#[derive(Debug)]
pub struct Nsp {
    settings: Settings,
    targets: Arc<Targets>,
    store: Option<Store>,
    listener: Option<TcpListener>,
}

impl Nsp {
    /// Reads the store and opens the port, if there is to be one.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open(settings: Settings) -> Result<Self, Error> {
        let store = match &settings.store {
            Some(path) => Some(open_store(path).await?),
            None => None,
        };
        let registry = Registry::new(settings.entry_timeout, settings.exclusive);
        let targets = Targets::open(registry, store.clone(), Instant::now()).await;
        let targets = targets.map_err(|source| Error::Store {
            path: settings.store.clone().unwrap_or_default(),
            source,
        })?;
        let listener = match settings.security {
            Security::SocketOnly => None,
            Security::Plain | Security::Tls(_) => {
                let address: SocketAddr = (Ipv6Addr::UNSPECIFIED, settings.port).into();
                Some(tls::listen(address).await.map_err(Error::Listen)?)
            }
        };
        Ok(Self { settings, targets: Arc::new(targets), store, listener })
    }

    /// Where it listens, if it does.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref()?.local_addr().ok()
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// [`Error::Listen`], [`Error::Source`].
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { settings, targets, store, listener } = self;
        let (configured, configuration) = watch::channel(Arc::<Configuration>::default());
        let board = Board::new(&[("Readiness", &[]), ("Liveness", &["NSP"])]);
        let routes = api::routes(Arc::clone(&targets), configuration.clone())
            .add_service(HealthServer::new(Board::new(&[])));
        let socket = unix::listen(&settings.socket).map_err(Error::Listen)?;
        let probes = unix::listen(&settings.health_socket).map_err(Error::Listen)?;
        info!(socket = %settings.socket.display(), port = ?listener.as_ref().and_then(|l| l.local_addr().ok()), "listening");

        let stop = shutdown.clone();
        let local = orlop_rpc::serve(routes.clone(), socket, stop.clone(), GRACE);
        let remote = async {
            match listener {
                Some(listener) => {
                    serve_port(listener, &settings.security, routes, stop.clone()).await
                }
                None => stop.cancelled().await,
            }
        };
        let probing = orlop_rpc::serve(
            Routes::new(HealthServer::new(board.clone())),
            probes,
            stop.clone(),
            GRACE,
        );
        let serving = async { tokio::join!(local, remote, probing) };

        // What callers wait for is written as long as there are callers.
        let written = CancellationToken::new();
        let writing = targets.run(written.clone());
        let following = async {
            tokio::select! {
                ended = source::follow(&settings.config, &configured) => ended,
                () = shutdown.cancelled() => Ok(()),
            }
        };
        let told = async {
            let mut configuration = configuration;
            while configuration.changed().await.is_ok() {
                let now = configuration.borrow_and_update().clone();
                targets.configured(&now);
            }
        };
        let channel = unix::channel(&settings.socket);
        let alive = probe(channel, settings.probe_timeout, &board, "NSP");
        let calls = async {
            let ended = tokio::select! {
                ended = async { tokio::join!(following, serving).0 } => ended,
                () = told => Ok(()),
                () = alive => Ok(()),
            };
            written.cancel();
            ended
        };
        let (ended, ()) = tokio::join!(calls, writing);
        if let Some(store) = store {
            store.close().await;
        }
        Ok(ended?)
    }
}

async fn serve_port(
    listener: TcpListener,
    security: &Security,
    routes: Routes,
    shutdown: CancellationToken,
) {
    match security {
        Security::Tls(config) => {
            let (_keep, configs) = watch::channel(Arc::<ServerConfig>::clone(config));
            let incoming = places::admitted(tls::incoming(listener, configs, Arc::default()), MOST);
            orlop_rpc::serve(routes, incoming, shutdown, GRACE).await;
        }
        Security::Plain | Security::SocketOnly => {
            let incoming = TcpListenerStream::new(listener);
            orlop_rpc::serve(routes, incoming, shutdown, GRACE).await;
        }
    }
}

/// The store at `path`; what SQLite wrote there is kept beside it.
async fn open_store(path: &Path) -> Result<Store, Error> {
    let foreign = |source| Error::Foreign { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(foreign)?;
    }
    let mut begin = [0; SQLITE.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    if read.is_ok() && begin == *SQLITE {
        let aside = path.with_extension("sqlite");
        std::fs::rename(path, &aside).map_err(foreign)?;
        info!(kept = %aside.display(), "targets of another program are not taken over");
    }
    let limits =
        Limits { durability: Durability::Relaxed, cache_bytes: STORE_CACHE, ..Limits::default() };
    let opened = Embedded::open(path, limits).await;
    let embedded = opened.map_err(|source| Error::Store { path: path.to_owned(), source })?;
    Ok(Store::Embedded(embedded))
}

#[cfg(test)]
mod tests;
