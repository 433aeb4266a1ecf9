//! The very end: all processes gone, file systems written back, `reboot(2)`.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::mounts;

const TERM_LIMIT: Duration = Duration::from_secs(10);
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// For all disks together to take their data and be unmounted.
pub(crate) const DISK_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Reboot,
    PowerOff,
    /// Stop the processors, keep the power (`talos.shutdown=halt`).
    Halt,
}

/// TERM to every process, KILL to those that stay; goes on without the rest. Takes up to 15 s.
pub(crate) fn kill_processes() {
    for (signal, limit) in [(Signal::SIGTERM, TERM_LIMIT), (Signal::SIGKILL, KILL_LIMIT)] {
        // -1 is every process but PID 1, which is us.
        match kill(Pid::from_raw(-1), signal) {
            Ok(()) => {}
            Err(nix::Error::ESRCH) => return,
            Err(error) => warn!(%signal, %error, "signal all processes"),
        }
        let deadline = Instant::now() + limit;
        // No event tells that a process we are not the parent of has gone.
        while others_live() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        if !others_live() {
            return;
        }
    }
    warn!("some processes do not end; going on without them");
}

/// Whether a process other than PID 1 lives. Kernel threads (no executable) and zombies do not count.
fn others_live() -> bool {
    fs::read_dir("/proc").is_ok_and(|entries| {
        entries.filter_map(Result::ok).any(|entry| {
            let name = entry.file_name();
            let is_process =
                name.to_str().is_some_and(|name| name != "1" && name.parse::<u32>().is_ok());
            is_process && fs::read_link(Path::new("/proc").join(&name).join("exe")).is_ok()
        })
    })
}

/// Writes back what the kernel holds for disks, and unmounts them.
pub(crate) fn put_away() {
    nix::unistd::sync();
    mounts::unmount_all();
    nix::unistd::sync();
}

/// Does what may wait for a device in a thread of its own, and goes on without it after `limit`.
pub(crate) async fn within(
    limit: Duration,
    what: &'static str,
    work: impl FnOnce() + Send + 'static,
) {
    let (done, ended) = oneshot::channel();
    // Left alone when it is late: the machine ends soon, and this thread with it.
    thread::spawn(move || {
        work();
        // Nobody waits any more when it is late.
        let _ = done.send(());
    });
    if timeout(limit, ended).await.is_err() {
        error!(what, seconds = limit.as_secs(), "does not end in time; going on without it");
    }
}

/// The way down without a runtime: after a panic.
pub(crate) fn emergency(end_as: End) {
    kill_processes();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        put_away();
        let _ = done.send(());
    });
    if ended.recv_timeout(DISK_LIMIT).is_err() {
        error!("a disk does not take its data; going on without it");
    }
    end(end_as);
}

/// Ends the machine now. Returns only if the kernel refuses.
pub(crate) fn end(end: End) {
    let mode = match end {
        End::Reboot => RebootMode::RB_AUTOBOOT,
        End::PowerOff => RebootMode::RB_POWER_OFF,
        End::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    info!(
        "{}",
        match end {
            End::Reboot => "rebooting now",
            End::PowerOff => "powering off now",
            End::Halt => "halting now",
        }
    );
    match reboot(mode) {
        Ok(never) => match never {},
        Err(error) => error!(%error, ?end, "reboot(2)"),
    }
}
