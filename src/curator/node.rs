//! The node's side of the cluster API (spec §3.2, §3.4, §3.6, §4.8): a daemon on every machine that came by node
//! parameters. It makes the machine a node of its cluster and keeps it one, so that PID 1 parses nothing that comes from
//! the network.
//!
//! - [`machine`]: how far it is, and what is next; pure. [`driver`] does it.
//! - [`folders`]: what it keeps.
//! - [`home`]: what a node of a cluster does: heartbeats, its status, its roles, the curator where it is to run one.
//! - [`management`]: what an operator may ask of this one node, on port 7839.
//! - [`news`]: what machined is told on a socket: where the node stands, and its roles.

pub mod driver;
pub mod folders;
mod home;
mod logs;
pub mod machine;
mod management;
mod news;

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use orlop_rpc::leader::{NODE_PORT, PORT, Place};

/// The node's side of the cluster API: registers this machine, keeps it a node, serves NodeManagement.
#[derive(Clone, Debug, Parser)]
#[command(name = "curator node", version = orlop_rt::version::TAG, about)]
pub struct Options {
    /// Node parameters; not needed once the machine is a node
    #[arg(long, value_name = "FILE")]
    pub parameters: Option<PathBuf>,
    /// The folder for what the next boot needs, which stands for the EFI system partition
    #[arg(long, value_name = "FOLDER", default_value = "/system/state/metropolis")]
    pub state_dir: PathBuf,
    /// The folder for certificates, roles and the cluster's state
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/orlop/curator")]
    pub data_dir: PathBuf,
    /// Where NodeManagement is served; [::] takes IPv4 as well
    #[arg(long, value_name = "ADDRESS", default_value_t = (Ipv6Addr::UNSPECIFIED, NODE_PORT).into())]
    pub listen: SocketAddr,
    /// Where the cluster API is served, if this node is to
    #[arg(long, value_name = "ADDRESS", default_value_t = (Ipv6Addr::UNSPECIFIED, PORT).into())]
    pub curator_listen: SocketAddr,
    /// The port of all other curators
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    pub curator_port: u16,
    /// The address other machines reach this one by; else the one that leads to the leader
    #[arg(long, value_name = "ADDRESS")]
    pub external_address: Option<IpAddr>,
    /// Where machined is told what becomes of the node
    #[arg(long, value_name = "SOCKET", default_value = "/system/run/curator/curator.sock")]
    pub socket: PathBuf,
    /// Where machined answers
    #[arg(long, value_name = "SOCKET", default_value = "/system/run/machined/machine.sock")]
    pub machined: PathBuf,
    /// Log more
    #[arg(long)]
    pub debug: bool,
}

impl Options {
    /// Where this node's own curator is dialled from here.
    fn own_curator(&self) -> Place {
        let ip = self.curator_listen.ip();
        let host = if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip };
        Place { host: host.to_string(), port: self.curator_listen.port() }
    }
}

/// Why it stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on, or no signal handler.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// The parameters' file.
    #[error("read the node parameters in {}", path.display())]
    Parameters {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The parameters.
    #[error(transparent)]
    Wrong(#[from] orlop_config::parameters::Wrong),
    /// What it keeps.
    #[error(transparent)]
    Folders(#[from] folders::Error),
    /// Keys, certificates, TLS.
    #[error("the node's certificate")]
    Pki(#[from] orlop_pki::Error),
    /// The curator of this node.
    #[error("the curator of this node")]
    Curator(#[from] crate::Error),
    /// The port cannot be opened.
    #[error("open the port of NodeManagement")]
    Listen(#[source] io::Error),
    /// The socket cannot be opened.
    #[error("open the socket for machined")]
    Socket(#[source] io::Error),
    /// A thread that read or wrote files is gone.
    #[error("wait for the disk")]
    Lost(#[source] tokio::task::JoinError),
}

/// The entry: options, log, runtime.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let options = match orlop_rt::parse::<Options>(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    orlop_telemetry::to_stderr(options.debug);
    let run = |shutdown| driver::run(options, shutdown);
    orlop_rt::exit("curator", orlop_rt::run_daemon(Error::Runtime, run))
}
