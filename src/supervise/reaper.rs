//! The one place of a process that waits for its children.
//!
//! PID 1 gets every orphan of the machine, so it must wait for children it never heard of, and a
//! `waitpid(-1)` takes the status of any child. So there is one [`Reaper`] per process, every child
//! is started through [`Reaper::spawn`], and neither `std::process::Child::wait` nor
//! `tokio::process` is used beside it.
//!
//! Nothing gets lost: a child is entered into the table under the lock that a wait needs, so it
//! cannot be reaped before it is known. A signal is sent under the same lock, so it cannot hit a
//! process that got the pid of a reaped child.

use std::collections::HashMap;
use std::io;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// Children waited for in one go.
const BATCH: u32 = 256;

/// Starts children and waits for them. Clones share the table; [`Reaper::run`] must be going on.
#[derive(Clone, Debug)]
pub struct Reaper {
    /// Guards the table and every `waitpid`; held for a spawn or a wait that does not block.
    table: Arc<Mutex<Table>>,
    orphans: Arc<watch::Sender<u64>>,
}

type Table = HashMap<u32, oneshot::Sender<ExitStatus>>;

/// A child that was started through the reaper.
#[derive(Debug)]
pub struct Child {
    reaper: Reaper,
    pid: u32,
    status: oneshot::Receiver<ExitStatus>,
    ended: Option<ExitStatus>,
}

impl Default for Reaper {
    fn default() -> Self {
        Self::new()
    }
}

impl Reaper {
    /// A reaper that knows no children yet.
    #[must_use]
    pub fn new() -> Self {
        Self { table: Arc::default(), orphans: Arc::new(watch::Sender::new(0)) }
    }

    /// Starts `command`.
    ///
    /// # Errors
    /// Those of [`Command::spawn`].
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut table = self.lock();
        // std's handle is dropped: it neither waits nor kills then.
        let pid = command.spawn()?.id();
        let (sender, status) = oneshot::channel();
        table.insert(pid, sender);
        Ok(Child { reaper: self.clone(), pid, status, ended: None })
    }

    /// Waits for children, ours and orphans, whenever the kernel says that some ended. Never ends.
    ///
    /// # Errors
    /// When no handler for SIGCHLD can be installed, or the kernel refuses to wait.
    pub async fn run(self) -> io::Result<()> {
        let mut ended = signal(SignalKind::child())?;
        loop {
            // Also before the first signal: children may have ended before the handler was there.
            let mut reaped = 0_u32;
            while self.reap_one()? {
                reaped += 1;
                // A flood of orphans does not keep everybody else waiting.
                if reaped.is_multiple_of(BATCH) {
                    tokio::task::yield_now().await;
                }
            }
            if ended.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// How many processes that were not started by [`Reaper::spawn`] were waited for so far.
    #[must_use]
    pub fn orphans(&self) -> watch::Receiver<u64> {
        self.orphans.subscribe()
    }

    /// Waits for one child that ended already; whether there was one.
    fn reap_one(&self) -> io::Result<bool> {
        let mut table = self.lock();
        let Some((pid, status)) = orlop_sys::wait_any()? else { return Ok(false) };
        match table.remove(&pid) {
            // Nobody waits any more: fine.
            Some(child) => drop(child.send(status)),
            None => {
                self.orphans.send_modify(|count| *count += 1);
                tracing::debug!(pid, %status, "reaped an orphan");
            }
        }
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it ends. Cancel-safe, and may be asked again.
    pub async fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        // The table keeps the sender for as long as the child lives, and `reaper` keeps the table.
        let status =
            (&mut self.status).await.expect("a child is told its end before it is forgotten");
        *self.ended.insert(status)
    }

    /// Sends `signal`, unless it has ended.
    ///
    /// # Errors
    /// Those of `kill(2)`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let table = self.reaper.lock();
        if table.contains_key(&self.pid) {
            kill(Pid::from_raw(self.pid.cast_signed()), signal)?;
        }
        Ok(())
    }
}
