//! apid: the front door of the node, and the way to the other nodes.
//!
//! Callers come over mutual TLS ([`identity`] keeps the certificates current), or, from the node itself,
//! over a socket. [`roles`] says whether
//! they may make the call, [`machine`] where it goes: to routerd, to one other node, or to many, whose
//! answers [`fanout`] asks for and [`merge`] makes one. [`nodes`] holds the connections to other nodes,
//! [`api`] puts it together for each call, and [`figures`] are what apid tells of itself. Messages pass as bytes: no request is ever decoded here,
//! and of answers only as much as marking them with their node needs.
//!
//! apid holds no authority's key. machined puts its certificates into a folder and renews them there.

#![forbid(unsafe_code)]

mod api;
mod fanout;
mod figures;
pub mod identity;
pub mod machine;
pub mod merge;
mod nodes;
mod roles;

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures_util::future::OptionFuture;
use orlop_rpc::places::{self, Most};
use orlop_rpc::tls::{self, Tally};
use orlop_rpc::{Limits, unix};
use orlop_rt::CancellationToken;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use crate::api::{Callers, Door};
use crate::figures::Figures;
use crate::identity::{Files, Folder, Identity};
use crate::roles::Nameless;

/// Where every apid listens.
pub const PORT: u16 = 50_000;
/// How long calls under way may take to end after a signal.
const GRACE: Duration = Duration::from_secs(10);
/// Connections at a time, all of them from holders of a certificate: idle, they fit into half the memory
/// that machined gives apid. One source has a tenth of the places.
const MOST: Most = Most { all: 10_240, each: 1024 };
/// Callers over the network: what one connection can make apid hold is bounded more tightly than inside
/// the node. A thousand calls at a time are enough for another apid that passes on those of a fleet.
const LIMITS: Limits = Limits { calls: 1024, connection_window: 4 << 20, ..Limits::new(GRACE) };
/// How often the certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The front door of the node: authenticates, authorises, routes and merges calls.
#[derive(Clone, Debug, Parser)]
#[command(name = "apid", version = orlop_rt::version::TAG, about)]
pub struct Options {
    /// Where to listen; [::] takes IPv4 as well
    #[arg(long, value_name = "ADDRESS", default_value_t = (Ipv6Addr::UNSPECIFIED, PORT).into())]
    pub listen: SocketAddr,
    /// A socket for programs of this node, who may do what they say in talos-role if they are root's
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The folder of ca.crt, tls.crt, tls.key and, where calls may be forwarded, client.crt and client.key
    #[arg(long, value_name = "FOLDER", default_value = "/system/secrets/apid")]
    pub secrets: PathBuf,
    /// routerd's socket
    #[arg(long, value_name = "PATH", default_value = "/system/run/routerd/routerd.sock")]
    pub routerd: PathBuf,
    /// The port of other nodes' apid
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    pub target_port: u16,
    /// Serve a node that has no configuration yet: anybody may read, and configure it
    #[arg(long)]
    pub maintenance: bool,
    /// Take certificates that name no role for the administrator's, as tools of generation v0.8 make them
    #[arg(long)]
    pub nameless_is_admin: bool,
    /// Log what leads to each decision
    #[arg(long)]
    pub debug: bool,
    /// How often the certificates are looked at
    #[arg(skip = LOOK_EVERY)]
    pub look_every: Duration,
}

/// Why apid stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on, or no signal handler.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// There are no certificates to begin with.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The port, or the socket, cannot be opened.
    #[error("open the door")]
    Listen(#[source] io::Error),
}

/// The role's entry: options, log, runtime.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let options = match orlop_rt::parse::<Options>(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    orlop_telemetry::to_stderr(options.debug);
    let result = orlop_rt::run_daemon(Error::Runtime, |shutdown| run(options, shutdown));
    orlop_rt::exit("apid", result)
}

/// Serves until `shutdown`.
///
/// # Errors
/// When there are no usable certificates, or the port cannot be opened.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    Apid::open(options).await?.serve(shutdown).await
}

/// An apid whose port is open, but who does not answer yet.
#[derive(Debug)]
pub struct Apid {
    options: Options,
    listener: TcpListener,
    address: SocketAddr,
    files: Files,
    identity: Identity,
}

impl Apid {
    /// Reads the certificates and opens the port.
    ///
    /// # Errors
    /// When there are no usable certificates, or the port cannot be opened.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let (path, maintenance) = (options.secrets.clone(), options.maintenance);
        let (files, identity) = Files::open(Folder { path, maintenance })?;
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
    /// When the socket cannot be made.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { options, listener, address, files, identity } = self;
        let (config, configs) = watch::channel(Arc::clone(&identity.server));
        let callers = match options.nameless_is_admin {
            _ if options.maintenance => Callers::Anybody,
            true => Callers::Known(Nameless::Administrator),
            false => Callers::Known(Nameless::Nobody),
        };
        let routerd = unix::lane(&options.routerd);
        let tally = Arc::new(Tally::default());
        let figures = Figures::server(Arc::clone(&tally));
        let door = Arc::new(Door::new(routerd, figures, options.target_port, identity, callers));
        let answering = Arc::clone(&door);
        let service = tower::service_fn(move |request| {
            let answer = answering.call(request);
            async { Ok::<_, Infallible>(answer.await) }
        });
        let inside =
            options.socket.as_ref().map(unix::listen).transpose().map_err(Error::Listen)?;
        info!(%address, "listening");
        let inside =
            inside.map(|inside| orlop_rpc::serve(service.clone(), inside, shutdown.clone(), GRACE));
        let incoming = places::admitted(tls::incoming(listener, configs, tally), MOST);
        let outside = orlop_rpc::serve_within(LIMITS, service, incoming, shutdown);
        let serving = async { tokio::join!(outside, OptionFuture::from(inside)) };
        let looking = files.follow(options.look_every, |identity| {
            config.send_replace(Arc::clone(&identity.server));
            door.become_known_as(identity);
        });
        tokio::select! {
            _ = serving => {}
            () = looking => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
