//! PID 1 of a running node: brings the machine up, keeps its services alive, answers the machine API,
//! takes the machine down.
//!
//! [`plan`] says what is done in which order, [`sequence`] does it, [`tasks`] are the single steps.
//! [`node`] holds what the steps and the API ([`api`]) share. The services are defined in [`services`]
//! and kept by `orlop_supervise`. Of what comes from the network PID 1 parses only the machine
//! configuration, and that only after a child ([`acquire`]) has fetched and parsed it unharmed.
//!
//! A boot that fails where another boot may do better ends in an orderly reboot after a delay; where
//! only a person can help, the node stays as it is, with the reason on its console.

#![forbid(unsafe_code)]

mod acquire;
mod api;
mod apiserver;
mod apply;
mod believed;
mod button;
mod cgroups;
pub mod child;
mod clock;
mod config;
mod curator;
mod disks;
mod document;
mod error;
mod etc;
pub mod etcd;
mod events;
pub mod figures;
pub mod handover;
mod hardening;
mod health;
mod identity;
mod kmsg;
pub mod label;
mod logs;
mod maintenance;
pub mod meta;
mod metrics;
mod modules;
mod mounts;
mod network;
mod node;
mod parameters;
mod plan;
pub mod podlog;
mod power;
mod renewal;
mod sequence;
mod services;
pub mod sockets;
mod source;
mod tasks;
mod timeline;
mod trust;
mod user;
mod volumes;
mod wipe;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, io, thread};

use nix::sys::reboot::set_cad_enabled;
use orlop_config::cmdline::Cmdline;
use orlop_rt::{Chain, Exit, version};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{error, info, warn};

use error::Error;
use node::{Ending, Node};
use power::End;

/// From a fatal error to the reboot it ends in: time to read the console.
const REBOOT_DELAY: Duration = Duration::from_secs(10);
/// Threads for calls that may wait for a device.
const BLOCKING_THREADS: usize = 4;

/// PID 1 of the node.
#[derive(Debug, clap::Parser)]
#[command(name = "machined", version = orlop_rt::version::TAG)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Fetch and check the machine configuration (PID 1 runs this as its child).
    Acquire(acquire::Options),
    /// Look for node parameters and check them (PID 1 runs this as its child).
    Parameters(parameters::Options),
    /// Get a certificate from trustd, on terms read from standard input (PID 1 runs this as its child).
    Certify,
    /// Place files by another node's trustd, on terms read from standard input (PID 1 runs this as its child).
    HandOver,
    /// Judge the PKI that was placed in a folder (PID 1 runs this as its child).
    TakeOver {
        /// Where it lies
        folder: PathBuf,
    },
    /// Become a member of an etcd cluster, on terms read from standard input (PID 1 runs this as its child).
    JoinEtcd,
    /// See whether the cluster is healthy, on terms read from standard input (PID 1 runs this as its child).
    CheckHealth,
    /// Read standard input to its end, so that the file behind it is in memory (init runs this).
    ReadAhead,
}

/// Runs the role.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match orlop_rt::parse::<Options>(args) {
        Err(code) => code,
        Ok(Options { command: Some(Command::Acquire(options)) }) => acquire::main(&options),
        Ok(Options { command: Some(Command::Parameters(options)) }) => parameters::main(&options),
        Ok(Options { command: Some(Command::Certify) }) => trust::main(),
        Ok(Options { command: Some(Command::HandOver) }) => handover::give_main(),
        Ok(Options { command: Some(Command::TakeOver { folder }) }) => handover::take_main(&folder),
        Ok(Options { command: Some(Command::JoinEtcd) }) => etcd::host::join_main(),
        Ok(Options { command: Some(Command::CheckHealth) }) => health::main(),
        Ok(Options { command: Some(Command::ReadAhead) }) => {
            orlop_rt::exit("machined", io::copy(&mut io::stdin(), &mut io::sink()).map(drop))
        }
        Ok(Options { command: None }) if std::process::id() != 1 => {
            eprintln!("machined: only the kernel can start this role, as PID 1");
            Exit::Usage.into()
        }
        Ok(Options { command: None }) => pid1(),
    }
}

fn pid1() -> ExitCode {
    orlop_sys::keep_heap_small();
    if let Err(error) = orlop_telemetry::to_kernel("machined") {
        eprintln!("machined: no log: {error}");
    }
    let cmdline = Cmdline::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    survive_panics(Aftermath::of_defect(&cmdline));
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(live(cmdline)),
        Err(error) => error!(%error, "start the runtime"),
    }
    // Nothing above returns on a healthy machine.
    thread::sleep(REBOOT_DELAY);
    power::end(End::Reboot);
    Exit::Software.into()
}

/// What follows what the node cannot go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aftermath {
    /// Somebody reads the console, and does what it says.
    Wait(&'static str),
    Reboot,
}

impl Aftermath {
    /// Another boot may do without what a defect came from.
    fn of_defect(cmdline: &Cmdline) -> Self {
        Self::of(true, cmdline)
    }

    fn of_boot(error: &Error, cmdline: &Cmdline) -> Self {
        Self::of(error.reboot_may_help(), cmdline)
    }

    /// `panic=0` says that somebody wants to look (spec §7.1).
    fn of(reboot_may_help: bool, cmdline: &Cmdline) -> Self {
        if !reboot_may_help {
            Self::Wait("correct the cause, then reboot (Ctrl-Alt-Del)")
        } else if cmdline.panic_seconds() == Some(0) {
            Self::Wait("it has panic=0 on its kernel command line: reboot it (Ctrl-Alt-Del)")
        } else {
            Self::Reboot
        }
    }
}

/// PID 1 must not die: the kernel would stop with it. A defect is said, and ends in a reboot in order,
/// or with `panic=0` in a stop. (The binary aborts on a panic; this hook is all that follows one.)
fn survive_panics(aftermath: Aftermath) {
    std::panic::set_hook(Box::new(move |panic| {
        error!(%panic, "a defect in machined; please report it with the lines above");
        match aftermath {
            Aftermath::Wait(what) => {
                error!("the node is stopped; {what}");
                // Nobody here hears it any more.
                if let Err(error) = set_cad_enabled(true) {
                    error!(%error, "Ctrl-Alt-Del goes unheard; switch the machine off");
                }
                loop {
                    thread::park();
                }
            }
            Aftermath::Reboot => {
                error!(seconds = REBOOT_DELAY.as_secs(), "rebooting after a delay");
                thread::sleep(REBOOT_DELAY);
                power::emergency(End::Reboot);
            }
        }
    }));
}

/// The whole life of the node, up and down.
async fn live(cmdline: Cmdline) {
    let (requests, mut ends) = mpsc::channel(1);
    let node = Node::start(cmdline, requests);
    let log = node.supervisor().logs().register("machined");
    orlop_telemetry::keep_lines(move |line| log.write(line));
    info!(platform = node.platform(), "Orlop {} ({})", version::TAG, version::SHA);
    let ending = tokio::select! {
        end = up(&node) => end.into(),
        // The sender lives as long as the node.
        ending = ends.recv() => ending.unwrap_or(End::Reboot.into()),
        end = signalled(&node) => end.into(),
        never = etcd::host::bootstraps(&node) => match never {},
        never = node.checks() => match never {},
        () = button::pressed() => {
            info!("the power button was pressed");
            node.shutdown_end().into()
        }
    };
    down(&node, ending).await;
}

/// Boots, and stays up; ends only where a boot failed that another one may mend.
async fn up(node: &Node) -> End {
    if let Err(error) = node.boot().await {
        error!(error = %Chain(&error), "the node does not boot");
        match Aftermath::of_boot(&error, node.cmdline()) {
            Aftermath::Wait(what) => warn!("waiting for a person: {what}"),
            Aftermath::Reboot => {
                warn!(seconds = REBOOT_DELAY.as_secs(), "rebooting after a delay");
                sleep(REBOOT_DELAY).await;
                return End::Reboot;
            }
        }
        node.unlock();
    }
    std::future::pending().await
}

/// Ctrl-Alt-Del (SIGINT, as the kernel sends it when asked to) reboots, SIGTERM shuts down.
async fn signalled(node: &Node) -> End {
    if let Err(error) = set_cad_enabled(false) {
        warn!(%error, "Ctrl-Alt-Del reboots without stopping anything");
    }
    let (mut interrupt, mut terminate) =
        match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
            (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
            (Err(error), _) | (_, Err(error)) => {
                warn!(%error, "signals to PID 1 go unheard");
                return std::future::pending().await;
            }
        };
    // Cancel-safe: both arms only wait.
    let end = tokio::select! {
        _ = interrupt.recv() => End::Reboot,
        _ = terminate.recv() => node.shutdown_end(),
    };
    info!(?end, "asked by a signal");
    end
}

/// Stops everything in order and ends the machine. What fails on the way is said, and passed over.
async fn down(node: &Node, Ending { sequence, end }: Ending) {
    node.lock();
    // From here on Ctrl-Alt-Del is the kernel's again: nobody would hear it.
    if let Err(error) = set_cad_enabled(true) {
        warn!(%error, "Ctrl-Alt-Del goes unheard");
    }
    info!("{} sequence: stopping services", sequence.name);
    if let Err(error) = node.run(sequence).await {
        error!(error = %Chain(&error), "going down all the same");
    }
    power::end(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_defect_reboots_unless_somebody_wants_to_look() {
        for (line, reboots) in
            [("", true), ("panic=10", true), ("panic=-1", true), ("panic=0", false)]
        {
            let aftermath = Aftermath::of_defect(&Cmdline::parse(line));
            assert_eq!(aftermath == Aftermath::Reboot, reboots, "{line}");
            if let Aftermath::Wait(what) = aftermath {
                assert!(what.contains("panic=0") && what.contains("Ctrl-Alt-Del"), "{what}");
            }
        }
    }

    #[test]
    fn a_boot_that_only_a_person_can_mend_is_not_tried_again() {
        let cmdline = Cmdline::parse("panic=10");
        let aftermath = Aftermath::of_boot(&Error::BadConfiguration, &cmdline);
        assert_eq!(aftermath, Aftermath::Wait("correct the cause, then reboot (Ctrl-Alt-Del)"));
        let error = Error::Acquire { source: io::Error::other("x") };
        assert_eq!(Aftermath::of_boot(&error, &cmdline), Aftermath::Reboot);
        let waits = Aftermath::of_boot(&error, &Cmdline::parse("panic=0"));
        assert!(matches!(waits, Aftermath::Wait(_)));
    }
}
