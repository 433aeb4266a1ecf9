//! timed: keeps the node's clock right, and says what time others have.
//!
//! [`machine`] decides: which servers are asked and when, whom to believe ([`select`]), what the
//! oscillator needs ([`discipline`]). `driver` asks ([`wire`], [`exchange`]; with proof: [`nts`], `ke`),
//! finds addresses (`names`), follows what it is told (`settings`) and steers the kernel's clock (`clock`); `api` answers `time.TimeService` and
//! `health.Health` on a unix socket.
//!
//! It runs as a container with `CAP_SYS_TIME` and nothing else. Stopping it leaves the clock running
//! at the rate that was found right; that rate is kept in the state folder over restarts.

#![forbid(unsafe_code)]

pub mod discipline;
pub mod exchange;
pub mod machine;
pub mod nts;
pub mod select;
pub mod source;
pub mod wire;

mod api;
mod ask;
mod clock;
mod driver;
mod ke;
mod names;
mod settings;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use orlop_config::Problems;
use orlop_rt::{CancellationToken, Exit};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use clock::{Clock, Kernel, Untouched};
use names::Names;

pub use settings::DEFAULT_SERVER;

/// Keeps the node's clock right and serves what it knows of the time.
#[derive(Clone, Debug, Parser)]
#[command(name = "timed", version = orlop_rt::version::TAG, about)]
pub struct Options {
    /// Where to serve the API
    #[arg(long, value_name = "PATH", default_value = "/system/run/timed/timed.sock")]
    pub socket: PathBuf,
    /// The `machine.time` section of the machine configuration; may be absent
    #[arg(long, value_name = "PATH", default_value = "/system/etc/timed.yaml")]
    pub config: PathBuf,
    /// The servers that the network gave, one on each line; may be absent
    #[arg(long, value_name = "PATH", default_value = "/system/run/ntp/servers")]
    pub given: PathBuf,
    /// The authorities of servers of NTS, unless the configuration names its own
    #[arg(long, value_name = "PATH", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    pub roots: PathBuf,
    /// Where the oscillator's frequency is kept
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/orlop/timed")]
    pub state: PathBuf,
    /// The clock that runs while the machine is off
    #[arg(long, value_name = "PATH", default_value = "/dev/rtc0")]
    pub rtc: PathBuf,
    /// Names of the node's own
    #[arg(long, value_name = "PATH", default_value = "/etc/hosts")]
    pub hosts: PathBuf,
    /// Who knows all others
    #[arg(long, value_name = "PATH", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Where NTP servers listen
    #[arg(long, value_name = "PORT", default_value_t = ask::PORT)]
    pub port: u16,
    /// Leave the clock alone: only ask, and tell what would be done
    #[arg(long)]
    pub observe: bool,
    /// Log each decision
    #[arg(long)]
    pub debug: bool,
}

/// Why timed stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runtime to run on.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// What the operator said cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What the operator said is wrong.
    #[error(transparent)]
    Settings(#[from] Problems),
    /// Changes of what the operator says would go unnoticed.
    #[error("watch the configuration")]
    Watch(#[source] io::Error),
    /// The kernel does not let us.
    #[error("steer the clock (CAP_SYS_TIME is needed)")]
    Clock(#[source] io::Error),
    /// The kernel has no randomness.
    #[error("get random bytes")]
    Random,
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
    orlop_telemetry::to_stderr(options.debug);
    let result = orlop_rt::run_daemon(Error::Runtime, |shutdown| run(options, shutdown));
    orlop_rt::exit_as("timed", result, |error| match error {
        Error::Settings(_) => Exit::Config,
        _ => Exit::Failed,
    })
}

/// Keeps the clock right and serves the API until `shutdown`.
///
/// # Errors
/// When it cannot start, or one of its parts ends.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    // Watched before it is read, so that no change falls between.
    let sources = driver::Sources::watch(options.config, options.given).map_err(Error::Watch)?;
    let (settings, said) = watch::channel(sources.read()?);
    let names = Names { hosts: options.hosts, resolv_conf: options.resolv_conf };
    let net = Arc::new(driver::Net { names, port: options.port, roots: options.roots });
    let clock: Box<dyn Clock> =
        if options.observe { Box::new(Untouched) } else { Box::new(Kernel { rtc: options.rtc }) };
    let (view, seen) = watch::channel(machine::View::default());
    let drift = options.state.join("drift");
    let driver = driver::Driver::new(sources, settings, clock, Arc::clone(&net), drift, view)?;
    let api = api::Api { settings: said, net, view: seen, started: Instant::now() };
    let mut parts = JoinSet::new();
    parts.spawn(api::serve(options.socket, api, shutdown.clone()));
    parts.spawn(driver.run(shutdown));
    // The first part that ends, ends the role; on shutdown both do, and the driver has to settle.
    while let Some(ended) = parts.join_next().await {
        match ended {
            Ok(result) => result?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    Ok(())
}
