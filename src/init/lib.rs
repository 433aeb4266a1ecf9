//! PID 1 in the initramfs: mounts the pseudo file systems, puts the squashfs root over a loop device,
//! moves the mounts onto it, empties the initramfs and becomes `/sbin/init` there, which is machined.
//!
//! [`mounts`] is the table of what is mounted and moved; [`root`] does the switch. Nothing here can be
//! repaired on the spot, so a failure is said on the console and ends in a reboot after a delay
//! ([`give_up`]), or in a stop when the kernel command line has `panic=0`.

#![forbid(unsafe_code)]

mod mounts;
mod root;

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, thread};

use nix::sys::reboot::{RebootMode, reboot};
use orlop_rt::{Chain, Exit};
use tracing::{error, info};

/// The squashfs root inside the initramfs.
const ROOT_IMAGE: &str = "/rootfs.sqsh";
const REBOOT_DELAY: Duration = Duration::from_secs(10);

/// PID 1 of the initramfs: takes no arguments, is started by the kernel as /init.
#[derive(Debug, clap::Parser)]
#[command(name = "init", version = orlop_rt::version::TAG)]
struct Options {
    /// What the kernel passes on from its command line.
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _kernel: Vec<OsString>,
}

/// What kept the real root from being entered.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("mount {fstype} on {}", target.display())]
    Mount { fstype: &'static str, target: PathBuf, source: nix::Error },
    #[error("move the mount {} to {}", from.display(), to.display())]
    Move { from: PathBuf, to: PathBuf, source: nix::Error },
    #[error("{operation} {}", path.display())]
    Path { operation: &'static str, path: PathBuf, source: std::io::Error },
}

/// Whether this process stands in the initramfs, not yet on the real root.
#[must_use]
pub fn in_initramfs() -> bool {
    Path::new(ROOT_IMAGE).exists()
}

/// Runs as PID 1 of the initramfs.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let started = orlop_sys::monotonic();
    if std::process::id() != 1 {
        return match orlop_rt::parse::<Options>(args) {
            Ok(_) => {
                eprintln!("init: only the kernel can start this role, as PID 1 of the initramfs");
                Exit::Usage.into()
            }
            Err(code) => code,
        };
    }
    match enter_root(started) {
        Ok(never) => match never {},
        Err(error) => give_up(&error),
    }
}

fn enter_root(started: Duration) -> Result<Infallible, Error> {
    mounts::mount_pseudo()?;
    if let Err(error) = orlop_telemetry::to_kernel("init") {
        // The boot can go on unseen; machined tries again.
        eprintln!("init: no log: {error}");
    }
    // What we tell goes to the kernel's ring and to the console: it must not come there twice.
    if let Err(error) = orlop_sys::show_kernel_errors_only() {
        info!(%error, "the console shows the kernel's own lines as well");
    }
    info!(at = %format_args!("{:.3}s", started.as_secs_f64()), "started");
    if let Err(error) = orlop_telemetry::leave_start(started) {
        info!(%error, "the timeline will not know when init started");
    }
    root::mount(Path::new(ROOT_IMAGE))?;
    if let Err(error) = root::read_ahead("bin/containerd") {
        info!(error = %Chain(&error), "containerd will start more slowly");
    }
    root::switch("/sbin/init")
}

fn give_up(error: &Error) -> ExitCode {
    error!(error = %Chain(error), "the root file system cannot be entered");
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if cmdline.split_ascii_whitespace().any(|argument| argument == "panic=0") {
        error!("stopped, because the kernel command line has panic=0");
        loop {
            thread::park();
        }
    }
    error!(seconds = REBOOT_DELAY.as_secs(), "rebooting after a delay");
    thread::sleep(REBOOT_DELAY);
    nix::unistd::sync();
    let failed = reboot(RebootMode::RB_AUTOBOOT);
    error!(?failed, "reboot");
    Exit::Failed.into()
}
