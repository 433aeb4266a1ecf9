//! udevd: knows every device of the node, gives it its names and its permissions, loads its driver.
//!
//! The kernel says of each device that it is there ([`uevent`]); which of these events may be handled
//! at the same time, [`order`] says. What a block device holds is read from its first bytes
//! ([`probe`], [`partitions`]), what it is from its drivers' attributes ([`sysfs`], [`identity`],
//! [`interface`]), and [`policy`] says what follows: properties, links, permissions, a name; the node's
//! owner may have a say in it ([`rules`]). Several devices may claim one link ([`links`]); what is
//! known is kept where libudev looks ([`database`]). [`modules`] knows which module drives a device.
//! All of these are pure.
//!
//! `driver` takes in the events and does what was decided, on the machine that `host` is; `watch`
//! notices writers of block devices; `control` answers `udevd settle`, `trigger` and `info`. The nodes
//! themselves are the kernel's (devtmpfs): none is made or removed here.
//!
//! Network interfaces keep the kernel's names (`eth0`) unless the kernel command line says
//! `net.ifnames=1`: the early network configures them before this role runs.

#![forbid(unsafe_code)]

pub mod database;
pub mod encode;
pub mod identity;
pub mod interface;
pub mod links;
pub mod modules;
pub mod order;
pub mod partitions;
pub mod policy;
pub mod probe;
pub mod rules;
pub mod sysfs;
pub mod uevent;

mod control;
mod driver;
mod host;
mod watch;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use orlop_netlink::{Netlink, Uevents};
use orlop_rt::CancellationToken;
use tokio::task::JoinSet;

/// Manages the devices of the node.
#[derive(Clone, Debug, Parser)]
#[command(name = "udevd", version = orlop_rt::version::TAG, about)]
pub struct Options {
    /// Where the daemon is asked
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/system/run/udevd/udevd.sock"
    )]
    pub socket: PathBuf,
    /// Where sysfs is mounted
    #[arg(long, value_name = "FOLDER", default_value = "/sys")]
    pub sys: PathBuf,
    /// Where the nodes are, and the links go
    #[arg(long, value_name = "FOLDER", default_value = "/dev")]
    pub dev: PathBuf,
    /// Where programs look up what is known of devices
    #[arg(long, value_name = "FOLDER", default_value = "/run/udev/data")]
    pub database: PathBuf,
    /// Has a folder of modules for each release of the kernel; may be absent
    #[arg(long, value_name = "FOLDER", default_value = "/lib/modules")]
    pub modules: PathBuf,
    /// What drivers ask for by name; may be absent
    #[arg(long, value_name = "FOLDER", default_value = "/lib/firmware")]
    pub firmware: PathBuf,
    /// The kernel's arguments: `net.ifnames=1` asks for predictable interface names
    #[arg(long, value_name = "PATH", default_value = "/proc/cmdline")]
    pub cmdline: PathBuf,
    /// The owner's rules (`machine.udev.rules`); may be absent
    #[arg(long, value_name = "PATH", default_value = "/system/etc/udev.rules")]
    pub rules: PathBuf,
    /// Log each decision
    #[arg(long)]
    pub debug: bool,
    /// What to ask the daemon; without it, be the daemon
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What can be asked.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Wait until everything that has happened so far is dealt with
    Settle {
        /// Fail after so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 50)]
        timeout: u64,
    },
    /// Look at every device again
    Trigger,
    /// Show what is known of a device
    Info {
        /// /dev/… or /sys/…
        path: String,
    },
}

/// Why udevd stops, or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// The kernel's arguments or the folder of the database.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// There is no socket for events.
    #[error("subscribe to the kernel's events")]
    Subscribe(#[source] io::Error),
    /// The socket for events failed.
    #[error("receive the kernel's events")]
    Receive(#[source] io::Error),
    /// Inotify failed.
    #[error("watch block devices for writers")]
    Watch(#[source] io::Error),
    /// A part that must not end did.
    #[error("{0} ended")]
    Ended(&'static str),
    /// The daemon cannot be asked.
    #[error("ask udevd at {}", path.display())]
    Ask {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is still busy.
    #[error("devices are still being dealt with after {seconds} s; see the log of udevd")]
    TooSlow {
        /// How long was waited.
        seconds: u64,
    },
    /// It answered with a reason.
    #[error("{0}")]
    Refused(String),
}

/// Runs the role, or asks the one that runs.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let options = match orlop_rt::parse::<Options>(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    /// Looking something up takes no longer, whatever the disks do.
    const LOOK_UP: Duration = Duration::from_secs(10);
    let ask = |line: &str, patience| control::ask(&options.socket, line, patience);
    let answer = match &options.command {
        Some(Command::Settle { timeout }) => ask("settle", Duration::from_secs((*timeout).max(1))),
        Some(Command::Trigger) => ask("trigger", LOOK_UP),
        Some(Command::Info { path }) => ask(&format!("info {path}"), LOOK_UP),
        None => {
            orlop_sys::keep_heap_small();
            orlop_telemetry::to_stderr(options.debug);
            let result = orlop_rt::run_daemon(Error::Runtime, |shutdown| run(options, shutdown));
            return orlop_rt::exit("udevd", result);
        }
    };
    orlop_rt::exit("udevd", answer.map(|text| print!("{text}")))
}

/// Manages devices until `shutdown`.
///
/// # Errors
/// When it cannot start, or one of its parts ends.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let file = |doing, path: &PathBuf, source| Error::File { doing, path: path.clone(), source };
    let cmdline = std::fs::read_to_string(&options.cmdline)
        .map_err(|source| file("read", &options.cmdline, source))?;
    std::fs::create_dir_all(&options.database)
        .map_err(|source| file("make", &options.database, source))?;
    // Subscribed before any device is looked at, so that nothing falls between.
    let events = Uevents::subscribe().map_err(Error::Subscribe)?;
    let watch = watch::Watch::new().map_err(Error::Watch)?;
    let (netlink, connection) = Netlink::open().map_err(Error::Subscribe)?;
    let modules = host::module_folder(&options.modules);
    let host = Arc::new(host::Host {
        index: host::module_index(&modules),
        modules,
        sys: options.sys,
        dev: options.dev,
        database: options.database,
        firmware: options.firmware,
        predictable_names: predictable_names(&cmdline),
        rules: host::rules(&options.rules)
            .map_err(|source| file("read", &options.rules, source))?,
    });
    let (driver, requests) = driver::Driver::new(Arc::clone(&host), events, netlink, watch);
    let listener = control::listen(&options.socket)
        .map_err(|source| file("listen on", &options.socket, source))?;

    let mut parts = JoinSet::new();
    parts.spawn(async {
        connection.await;
        Err(Error::Ended("the netlink connection"))
    });
    parts.spawn(control::serve(listener, host, requests, shutdown.clone()));
    parts.spawn(driver.run(shutdown));
    // The first part that ends, ends the role.
    match parts.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        None => Ok(()),
    }
}

/// The last `net.ifnames=` counts, as with systemd.
fn predictable_names(cmdline: &str) -> bool {
    cmdline.split_whitespace().filter_map(|word| word.strip_prefix("net.ifnames=")).next_back()
        == Some("1")
}

#[cfg(test)]
mod tests;
