//! `orlopctl`: the operator's command line.
//!
//! A command is a file: its flags, its call, and pure functions from what nodes answered to the text
//! that is printed. What they share: [`options`] (the command line), [`context`] (the client
//! configuration), [`client`] (calls and answers), [`table`] (output), [`error`] (failures, hints and
//! exit codes), [`units`] and [`endpoint`].

#![forbid(unsafe_code)]

/// Writes a line to stderr, `error:`, `warning:`, `hint:` or `note:` before it where one is named.
/// Unlike `eprintln!` this does not panic when nobody reads it any more.
macro_rules! say {
    ($kind:ident: $($said:tt)*) => {
        say!("{}{}", crate::paint::label(stringify!($kind)), format_args!($($said)*))
    };
    ($($said:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($said)*);
    }};
}

mod apply;
mod capture;
mod client;
mod clock;
mod cluster;
mod containers;
mod context;
mod copy;
mod dashboard;
mod disks;
mod endpoint;
mod error;
mod etcd;
mod events;
mod files;
mod generate;
#[cfg(test)]
mod golden;
mod health;
mod images;
mod keys;
mod kubeconfig;
mod logs;
mod memory;
mod meta;
mod metrics;
mod mounts;
mod netstat;
mod network;
mod options;
mod paint;
mod patch;
mod power;
mod processes;
mod progress;
mod refusal;
mod restart;
mod services;
mod stranger;
mod support;
mod table;
mod timeline;
mod units;
mod upgrade;
mod validate;
mod version;
mod wipe;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory as _;
use orlop_rt::{Chain, Exit};

use error::Error;
use options::{Command, Options};

/// Runs one command of the operator's; `args[0]` is the role's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let options: Options = match orlop_rt::parse(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    let Err(error) = run(&options) else { return Exit::Ok.into() };
    let exit = error.exit();
    if exit != Exit::Ok {
        say!(error: "{}", Chain(&error));
        error.hint().iter().for_each(|hint| say!(hint: "{hint}"));
    }
    exit.into()
}

/// What needs no node is done at once; the rest gets a client and a runtime.
fn run(options: &Options) -> Result<(), Error> {
    let Options { global, command } = options;
    match command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Options::command(), "orlopctl", &mut script);
            return table::print(&script);
        }
        Command::Cluster(options) => return cluster::run(global, options),
        Command::Config(context::Command::New(_)) => {}
        Command::Config(change) => return context::run(global, change),
        Command::Gen(command) => return generate::run(global, command),
        Command::Machineconfig(command) => return generate::machineconfig(global, command),
        Command::Validate(options) => return validate::run(options),
        Command::Version(options) => {
            version::own(options)?;
            if options.client {
                return Ok(());
            }
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::Runtime)?;
    if let Some(stranger) = command.stranger() {
        let nodes = stranger.clients(global)?;
        return nodes.iter().try_for_each(|node| runtime.block_on(ask(node, command)));
    }
    let client = context::open(global)?;
    runtime.block_on(ask(&client, command))
}

async fn ask(client: &client::Client, command: &Command) -> Result<(), Error> {
    match command {
        Command::ApplyConfig(options) => apply::apply(client, options).await,
        Command::Bootstrap(options) => etcd::bootstrap(client, options).await,
        Command::Config(context::Command::New(options)) => context::new(client, options).await,
        Command::Containers(options) => containers::list(client, options).await,
        Command::Copy(options) => copy::run(client, options).await,
        Command::Dashboard(options) => dashboard::run(client, options).await,
        Command::Disks(options) => disks::run(client, options).await,
        Command::Dmesg(options) => logs::dmesg(client, options).await,
        Command::Etcd(command) => etcd::run(client, command).await,
        Command::Events(options) => events::run(client, options).await,
        Command::Health(options) => health::run(client, options).await,
        Command::Image(command) => images::run(client, command).await,
        Command::Images(whose) => images::references(client, *whose).await,
        Command::Interfaces(options) => network::list_interfaces(client, options).await,
        Command::Kubeconfig(options) => kubeconfig::run(client, options).await,
        Command::List(options) => files::list(client, options).await,
        Command::Logs(options) => logs::logs(client, options).await,
        Command::Memory(options) => memory::run(client, options).await,
        Command::Meta(command) => meta::run(client, command).await,
        Command::Metrics(options) => metrics::run(client, options).await,
        Command::Mounts(options) => mounts::run(client, options).await,
        Command::Netstat(options) => netstat::run(client, options).await,
        Command::Pcap(options) => capture::run(client, options).await,
        Command::Processes(options) => processes::run(client, options).await,
        Command::Read(options) => files::read(client, options).await,
        Command::Reboot(wait) => power::reboot(client, wait).await,
        Command::Recover(options) => etcd::recover(client, options).await,
        Command::Reset(options) => apply::reset(client, options).await,
        Command::Restart(options) => restart::run(client, options).await,
        Command::Rollback => upgrade::rollback(client).await,
        Command::Routes(options) => network::list_routes(client, options).await,
        Command::Service(options) => services::run(client, options).await,
        Command::Shutdown(wait) => power::shutdown(client, wait).await,
        Command::Stats(options) => containers::stats(client, options).await,
        Command::Support(options) => support::run(client, options).await,
        Command::Time(options) => clock::run(client, options).await,
        Command::Timeline(options) => timeline::run(client, options).await,
        Command::Upgrade(options) => upgrade::upgrade(client, options).await,
        Command::Usage(options) => files::usage(client, options).await,
        Command::Version(_) => version::nodes(client).await,
        Command::Wipe(command) => wipe::run(client, command).await,
        Command::Cluster(_)
        | Command::Completion { .. }
        | Command::Config(_)
        | Command::Gen(_)
        | Command::Machineconfig(_)
        | Command::Validate(_) => {
            unreachable!("done without a node")
        }
    }
}
