//! networkd: gives the node its network, and says what it is.
//!
//! What should be ([`plan`]) comes from the machine configuration and the kernel arguments
//! ([`settings`]; [`made`] has the links that we make) and from DHCP servers ([`machine`], whose
//! messages [`wire`] reads and writes); less what is, it is a short list of operations. [`driver`] carries them out whenever something changed,
//! whoever changed it, and writes `/etc/resolv.conf`, `/etc/hosts` and the host name ([`names`]),
//! and runs the [`resolver`] on loopback where there shall be one;
//! for each link that asks for an address, one task ([`dhcp`]) owns its sockets, and another
//! (`routers`) hears what routers say ([`advertisement`]) and asks DHCPv6 servers
//! ([`machine6`], [`wire6`]) when they say so. `api` answers
//! `network.NetworkService` and `health.Health` on a unix socket, and tells machined what changed ([`news`]).
//!
//! An address that wanders between control planes is here for as long as an election ([`vip`]) says so; a task
//! for each (`holder`) asks etcd.
//!
//! It runs as a container of the node, or before there is one as a child of PID 1. Stopping it takes
//! nothing away, unless a file `release` in the state folder says that the machine goes away for long:
//! addresses and routes stay until their lease ends, and the next start finds them by
//! the mark they carry in the kernel and by the leases remembered in the state folder.

#![forbid(unsafe_code)]

pub mod advertisement;
pub mod figures;
pub mod machine;
pub mod machine6;
pub mod made;
pub mod names;
pub mod news;
pub mod plan;
pub mod resolver;
pub mod selectors;
pub mod settings;
pub mod vip;
pub mod wire;
pub mod wire6;
pub mod wireguard;

mod api;
mod dhcp;
mod driver;
mod holder;
mod routers;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use orlop_netlink::{Changes, Direct, Duplicates, Netlink};
use orlop_rt::{CancellationToken, Exit};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Configures the node's network and serves what it knows of it.
#[derive(Clone, Debug, Parser)]
#[command(name = "networkd", version = orlop_rt::version::TAG, about)]
pub struct Options {
    /// Where to serve the API
    #[arg(long, value_name = "PATH", default_value = "/system/run/networkd/networkd.sock")]
    pub socket: PathBuf,
    /// The `machine.network` section of the machine configuration; may be absent
    #[arg(long, value_name = "PATH", default_value = "/system/etc/networkd.yaml")]
    pub config: PathBuf,
    /// The kernel's arguments
    #[arg(long, value_name = "PATH", default_value = "/proc/cmdline")]
    pub cmdline: PathBuf,
    /// Where leases are remembered
    #[arg(long, value_name = "FOLDER", default_value = "/system/run/networkd")]
    pub state: PathBuf,
    /// Written in place
    #[arg(long, value_name = "PATH", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Written in place
    #[arg(long, value_name = "PATH", default_value = "/etc/hosts")]
    pub hosts: PathBuf,
    /// How often to ask whether another host has an address, before it is used
    #[arg(long, value_name = "COUNT", default_value_t = machine::PROBES)]
    pub arp_probes: u32,
    /// Where the certificates are that etcd is asked with, who has an address that wanders
    #[arg(long, value_name = "FOLDER", default_value = "/system/secrets/networkd")]
    pub etcd: PathBuf,
    /// The member of etcd that is asked
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:2379")]
    pub etcd_member: String,
    /// Where to leave the time servers that the network gave; in a folder that is there
    #[arg(long, value_name = "PATH", default_value = "/system/run/ntp/servers")]
    pub time_servers: PathBuf,
    /// Leave the kernel's host and domain name as they are
    #[arg(long)]
    pub keep_host_name: bool,
    /// Log each decision
    #[arg(long)]
    pub debug: bool,
}

/// Why networkd stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// What the operator said cannot be read.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// The kernel does not talk to us.
    #[error("open netlink sockets")]
    Netlink(#[source] io::Error),
    /// It does not talk to us any more.
    #[error("{0} ended")]
    Ended(&'static str),
    /// The notices of changes ended.
    #[error("watch the kernel's tables")]
    Watch(#[source] io::Error),
    /// The folder for leases cannot be made.
    #[error("make {}", path.display())]
    State {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The API has no socket.
    #[error("offer the API")]
    Listen(#[source] io::Error),
}

/// Runs the role until a signal stops it.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let options = match orlop_rt::parse::<Options>(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    orlop_sys::keep_heap_small();
    orlop_telemetry::to_stderr(options.debug);
    let result = orlop_rt::run_daemon(Error::Runtime, |shutdown| run(options, shutdown));
    orlop_rt::exit_as("networkd", result, |error| match error {
        Error::Settings(_) => Exit::Config,
        _ => Exit::Failed,
    })
}

/// Configures the network and serves the API until `shutdown`.
///
/// # Errors
/// When it cannot start, or one of its parts ends.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let settings = settings::read(&options.config, &options.cmdline)?;
    std::fs::create_dir_all(&options.state)
        .map_err(|source| Error::State { path: options.state.clone(), source })?;
    // A shutdown that was called off. Absent is as good.
    let _ = std::fs::remove_file(options.state.join(driver::RELEASE));
    // Subscribed before anything is listed, so that no change falls between.
    let mut all = settings.interfaces.values().map(|intent| !intent.neighbours.is_empty());
    let of_selected = |one: &selectors::Selected| !one.interface.neighbors.is_empty();
    let changes = if all.any(|some| some) || settings.selected.iter().any(of_selected) {
        Changes::with_neighbours()
    } else {
        Changes::subscribe()
    };
    let changes = changes.map_err(Error::Netlink)?;
    let duplicates = Duplicates::subscribe().map_err(Error::Netlink)?;
    let (netlink, connection) = Netlink::open().map_err(Error::Netlink)?;
    let (ready, is_ready) = watch::channel(false);

    let mut parts = JoinSet::new();
    parts.spawn(async {
        connection.await;
        Err(Error::Ended("the netlink connection"))
    });
    // Until the driver has given back what there is to give back: whoever ends first ends the role.
    let serving = CancellationToken::new();
    let news = api::News::default();
    let asked = api::Asked { netlink: netlink.clone(), ready: is_ready, news: news.clone() };
    parts.spawn(api::serve(options.socket.clone(), asked, serving));
    let netlink = (netlink, Direct::open().map_err(Error::Netlink)?);
    let driver =
        driver::Driver::new(options, settings, netlink, (changes, duplicates), (ready, news));
    parts.spawn(driver.run(shutdown));
    // The first part that ends, ends the role; on shutdown the driver does.
    match parts.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        None => Ok(()),
    }
}
