//! What every role needs to run: its version, exit codes, shutdown, back-off, files that are replaced.
//!
//! A daemon's `main` parses its command line with [`parse`] and gives its `run` to [`run_daemon`];
//! [`exit`] prints what stopped it, the whole chain of causes in one line, and chooses the exit code.

#![forbid(unsafe_code)]

mod backoff;
mod replace;
mod sort;
pub mod version;

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

pub use backoff::Backoff;
pub use replace::{Beside, replace};
pub use sort::{sort, sort_by, sort_by_key};
pub use tokio_util::sync::CancellationToken;

/// Exit codes of every role, after `sysexits.h` where it has a word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The user's request or the remote side failed.
    Failed = 1,
    /// The command line is wrong (`EX_USAGE`).
    Usage = 64,
    /// A defect of ours (`EX_SOFTWARE`).
    Software = 70,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Prints an error and all its causes, each after a colon, once: `a: b: c`.
///
/// The `Display` of an error must not repeat its source.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Ends a daemon: says on stderr what failed, and how its process shall exit.
pub fn exit<E: Error + 'static>(role: &str, result: Result<(), E>) -> ExitCode {
    exit_as(role, result, |_| Exit::Failed)
}

/// As [`exit`], of a daemon whose errors do not all have the same code.
pub fn exit_as<E: Error + 'static>(
    role: &str,
    result: Result<(), E>,
    code: impl FnOnce(&E) -> Exit,
) -> ExitCode {
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            eprintln!("{role}: error: {}", Chain(&error));
            code(&error).into()
        }
    }
}

/// Reads a role's command line; prints help, the version or what is wrong with it.
///
/// # Errors
/// The exit code to stop with: [`Exit::Ok`] after `--help` and `--version`, else [`Exit::Usage`].
pub fn parse<T: Parser>(args: Vec<OsString>) -> Result<T, ExitCode> {
    T::try_parse_from(args).map_err(|error| {
        // A closed pipe under `--help` is no failure of ours.
        let _ = error.print();
        if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
    })
}

/// When a daemon has done what its start takes, and rests.
const SETTLED: Duration = Duration::from_secs(10);

/// Runs a daemon on a runtime of one thread until it ends, or a signal ends it. Once it has settled, what only
/// its start needed of the binary is [no longer resident](orlop_sys::forget_start).
///
/// # Errors
/// What `run` ends with; `start` of the reason when there is no runtime, or no signal handler.
pub fn run_daemon<E, F>(
    start: fn(io::Error) -> E,
    run: impl FnOnce(CancellationToken) -> F,
) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
{
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(start)?;
    runtime.block_on(async {
        let shutdown = shutdown_on_signals().map_err(start)?;
        // Owned by the process, as below.
        tokio::spawn(async {
            tokio::time::sleep(SETTLED).await;
            // Where it cannot be done, more is resident: nothing else is different.
            let _ = orlop_sys::forget_start();
        });
        run(shutdown).await
    })
}

/// A token that is cancelled when the process gets SIGTERM or SIGINT.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn shutdown_on_signals() -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancel = token.clone();
    // Owned by the process: it ends with the runtime, and nothing waits for its result.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("read /a")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_says_each_cause_once() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(Chain(&error).to_string(), "read /a: disk on fire");
    }
}
