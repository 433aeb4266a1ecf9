//! trustd: the root of trust of a cluster of machines.
//!
//! Nodes that hold the machine token get a server's certificate for their names ([`policy`] says which
//! they may have); control planes hand files to each other ([`drops`]). [`limit`] keeps guessers and
//! crowds out, [`places`] bounds the connections, [`api`] puts it together for each call, of which each
//! leaves a line in the log.
//!
//! It holds the machine authority's key, so it runs without any privilege and writes to its drop folders
//! only. machined puts the key, the token and trustd's own certificate into one folder and renews them
//! there; [`identity`] keeps up with it, without a restart and without dropping a connection.

#![forbid(unsafe_code)]

mod api;
mod drops;
mod identity;
mod limit;
mod policy;

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use orlop_rpc::places::{self, Most};
use orlop_rpc::{Limits, tls};
use orlop_rt::CancellationToken;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use crate::api::Trust;
use crate::drops::Folders;
use crate::identity::{Files, Folder, Identity};
use crate::policy::Policy;

pub use crate::identity::Error as IdentityError;

/// Where every trustd listens.
pub const PORT: u16 = 50_001;
/// How often the secrets are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Connections at a time.
const MOST: Most = Most { all: 512, each: 32 };
/// Nobody needs a connection for long: a call takes a moment, and the next comes in hours.
const LIMITS: Limits = Limits {
    stream_window: 64 << 10,
    connection_window: 64 << 10,
    calls: 8,
    headers: 8 << 10,
    age: Some(Duration::from_secs(120)),
    grace: Duration::from_secs(5),
};

/// Certificates for nodes that hold the machine token, files from established trustees.
#[derive(Clone, Debug, Parser)]
#[command(name = "trustd", version = orlop_rt::version::TAG, about)]
pub struct Options {
    /// Where to listen; [::] takes IPv4 as well
    #[arg(long, value_name = "ADDRESS", default_value_t = (Ipv6Addr::UNSPECIFIED, PORT).into())]
    pub listen: SocketAddr,
    /// The folder of ca.crt, ca.key, tls.crt, tls.key and token
    #[arg(long, value_name = "FOLDER", default_value = "/system/secrets/trustd")]
    pub secrets: PathBuf,
    /// A folder beneath which control planes may place files (may be repeated)
    #[arg(long = "drop", value_name = "FOLDER")]
    pub drops: Vec<PathBuf>,
    /// A name or address that every node may have in its certificate (may be repeated)
    #[arg(long = "san", value_name = "NAME")]
    pub sans: Vec<String>,
    /// A name or address that no node may have in its certificate (may be repeated)
    #[arg(long = "reserve", value_name = "NAME")]
    pub reserved: Vec<String>,
    /// Log each call twice: when it ends, too
    #[arg(long)]
    pub debug: bool,
    /// How often the secrets are looked at
    #[arg(skip = LOOK_EVERY)]
    pub look_every: Duration,
}

/// Why trustd stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on, or no signal handler.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// There are no usable secrets to begin with.
    #[error(transparent)]
    Identity(#[from] IdentityError),
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
    let run = |shutdown| async { Trustd::open(options).await?.serve(shutdown).await };
    orlop_rt::exit("trustd", orlop_rt::run_daemon(Error::Runtime, run))
}

/// A trustd whose port is open, but who does not answer yet.
#[derive(Debug)]
pub struct Trustd {
    options: Options,
    listener: TcpListener,
    address: SocketAddr,
    files: Files,
    identity: Identity,
}

impl Trustd {
    /// Reads the secrets and opens the port.
    ///
    /// # Errors
    /// When there are no usable secrets, or the port cannot be opened.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let (files, identity) = Files::open(Folder(options.secrets.clone()))?;
        let listener = tls::listen(options.listen).await.map_err(Error::Listen)?;
        let address = listener.local_addr().map_err(Error::Listen)?;
        Ok(Self { options, listener, address, files, identity })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// None yet.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { options, listener, address, files, identity } = self;
        let (config, configs) = watch::channel(Arc::clone(&identity.server));
        let policy = Policy::new(&options.sans, &options.reserved);
        let trust = Arc::new(Trust::new(identity, policy, Folders::new(options.drops)));
        let answering = Arc::clone(&trust);
        let service = tower::service_fn(move |request| {
            let trust = Arc::clone(&answering);
            async move { Ok::<_, Infallible>(trust.call(request).await) }
        });
        info!(%address, "listening");
        let incoming = places::admitted(tls::incoming(listener, configs, Arc::default()), MOST);
        let serving = orlop_rpc::serve_within(LIMITS, service, incoming, shutdown);
        let looking = files.follow(options.look_every, |identity| {
            config.send_replace(Arc::clone(&identity.server));
            trust.become_known_as(identity);
        });
        tokio::select! {
            () = serving => {}
            () = looking => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
