//! The way to ask the daemon: one line each way on a unix socket, then perhaps text.
//!
//! | line | answer |
//! |---|---|
//! | `settle` | `ok` once everything that had happened when it was asked is dealt with |
//! | `trigger` | `ok`; every device is looked at again |
//! | `info PATH` | `ok`, then what is known of the device at `/dev/…` or `/sys/…` |
//!
//! Anything else, and what fails, is answered `error REASON`. Who gives up hangs up. The folder of the
//! socket keeps everybody but root out.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as Caller;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use orlop_rt::{CancellationToken, Chain};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::Error;
use crate::driver::Request;
use crate::host::Host;

/// A line is a word and a path.
const LONGEST_LINE: u64 = 4200;
/// For a caller to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Callers at a time; more wait to be accepted.
const CALLERS: usize = 32;

/// Binds the socket; what an earlier run left is replaced.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|left| left.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until shutdown.
pub(crate) async fn serve(
    listener: UnixListener,
    host: Arc<Host>,
    requests: mpsc::Sender<Request>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let mut callers = JoinSet::new();
    loop {
        // Both arms are cancel-safe.
        let accepted = tokio::select! {
            accepted = listener.accept(), if callers.len() < CALLERS => accepted,
            Some(ended) = callers.join_next() => match ended {
                Ok(()) => continue,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            () = shutdown.cancelled() => return Ok(()),
        };
        match accepted {
            Ok((caller, _)) => {
                let (host, requests) = (Arc::clone(&host), requests.clone());
                callers.spawn(async move {
                    if let Err(error) = answer(caller, host, requests).await {
                        debug!(%error, "a caller hung up");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "accept a caller");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn answer(
    mut caller: UnixStream,
    host: Arc<Host>,
    requests: mpsc::Sender<Request>,
) -> io::Result<()> {
    let (read, mut write) = caller.split();
    let mut read = tokio::io::BufReader::new(read.take(LONGEST_LINE));
    let mut line = String::new();
    timeout(PATIENCE, read.read_line(&mut line)).await??;
    let result = match line.trim_end().split_once(' ').unwrap_or((line.trim_end(), "")) {
        ("settle", "") => {
            let (answer, settled) = oneshot::channel();
            // Dropping `settled` tells the driver that nobody waits any more.
            let hung_up = async { read.read_u8().await.map(drop) };
            let asked = requests.send(Request::Settle(answer)).await;
            tokio::select! {
                settled = settled, if asked.is_ok() => {
                    settled.map(|()| String::new()).map_err(|_| "udevd is stopping".to_owned())
                }
                _ = hung_up => return Ok(()),
            }
        }
        ("trigger", "") => match requests.send(Request::Trigger).await {
            Ok(()) => Ok(String::new()),
            Err(_) => Err("udevd is stopping".to_owned()),
        },
        ("info", path) if !path.is_empty() => {
            let path = path.to_owned();
            let described = spawn_blocking(move || host.describe(&path)).await;
            match described {
                Ok(described) => described.map_err(|error| Chain(&error).to_string()),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        _ => Err(format!("{:?} is no request: settle, trigger or info PATH is", line.trim_end())),
    };
    let text = match result {
        Ok(text) => format!("ok\n{text}"),
        Err(reason) => format!("error {reason}\n"),
    };
    timeout(PATIENCE, write.write_all(text.as_bytes())).await?
}

/// Asks the daemon behind `socket`, for at most `patience`.
pub(crate) fn ask(socket: &Path, line: &str, patience: Duration) -> Result<String, Error> {
    let failed = |source| Error::Ask { path: socket.to_owned(), source };
    let mut daemon = Caller::connect(socket).map_err(failed)?;
    daemon.set_read_timeout(Some(patience)).map_err(failed)?;
    daemon.write_all(format!("{line}\n").as_bytes()).map_err(failed)?;
    let mut answer = BufReader::new(daemon);
    let mut first = String::new();
    match answer.read_line(&mut first) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(Error::TooSlow { seconds: patience.as_secs() });
        }
        read => read.map_err(failed)?,
    };
    match first.trim_end().split_once(' ') {
        None if first == "ok\n" => {
            let mut text = String::new();
            answer.read_to_string(&mut text).map_err(failed)?;
            Ok(text)
        }
        Some(("error", reason)) => Err(Error::Refused(reason.to_owned())),
        _ => Err(Error::Refused("the daemon hung up; is it stopping?".to_owned())),
    }
}
