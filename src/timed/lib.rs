//! timed: keeps the node's clock right, and says what time others have.
//!
//! [`machine`] decides: which servers are asked and when, whom to believe ([`select`]), what the
//! oscillator needs ([`discipline`]). `driver` asks ([`wire`], [`exchange`]), finds addresses
//! (`names`) and steers the kernel's clock (`clock`); `api` answers `time.TimeService` and
//! `health.Health` on a unix socket.
//!
//! It runs as a container with `CAP_SYS_TIME` and nothing else. Stopping it leaves the clock running
//! at the rate that was found right; that rate is kept in the state folder over restarts.

#![forbid(unsafe_code)]

pub mod discipline;
pub mod exchange;
pub mod machine;
pub mod select;
pub mod source;
pub mod wire;

mod api;
mod ask;
mod clock;
mod driver;
mod names;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use orlop_config::Problems;
use orlop_config::machine::{Time, TimeServer};
use orlop_rt::{CancellationToken, Exit};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use clock::{Clock, Kernel, Untouched};
use names::Names;

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

/// Asked when the configuration names nobody (spec §6.3).
pub const DEFAULT_SERVER: &str = "pool.ntp.org";

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
    let settings = read(&options.config)?;
    let names = Names { hosts: options.hosts, resolv_conf: options.resolv_conf };
    let clock: Box<dyn Clock> =
        if options.observe { Box::new(Untouched) } else { Box::new(Kernel { rtc: options.rtc }) };
    let servers = servers(&settings);
    let (view, seen) = watch::channel(machine::View::default());
    let drift = options.state.join("drift");
    let driver =
        driver::Driver::new(servers.clone(), clock, names.clone(), options.port, drift, view)?;
    let api = api::Api {
        servers: servers.into(),
        names: Arc::new(names),
        port: options.port,
        view: seen,
        patience: Instant::now() + settings.boot_timeout.unwrap_or_default(),
    };
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

fn read(path: &std::path::Path) -> Result<Time, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Time::parse(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Time::default()),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

fn servers(settings: &Time) -> Vec<TimeServer> {
    let mut servers: Vec<_> =
        settings.servers.iter().filter_map(|text| text.parse().ok()).collect();
    if servers.is_empty() {
        servers.push(TimeServer::Ntp(DEFAULT_SERVER.to_owned()));
    }
    servers
}
