//! Children that speak to the network for PID 1: what one is told goes to its standard input, what it found
//! comes from its standard output, as JSON; the first line of its standard error says why there is none.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_supervise::Reaper;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

/// No answer is longer.
const ANSWER_LIMIT: u64 = 256 << 10;
/// Where its standard streams are files; only root may look.
const FOLDER: &str = "/run/orlop";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("run a child")]
    Run(#[from] io::Error),
    #[error("{0}")]
    Failed(String),
    #[error("no answer in {} s", .0.as_secs())]
    Late(Duration),
}

/// Runs `program` under `uid` for at most `limit`; what it writes to its standard output.
pub(crate) async fn run(
    reaper: &Reaper,
    mut program: Command,
    uid: u32,
    input: &[u8],
    limit: Duration,
) -> Result<String, Error> {
    let mut answer = private_file("answer")?;
    let mut complaints = private_file("complaints")?;
    let mut request = private_file("request")?;
    io::Write::write_all(&mut request, input)?;
    request.rewind()?;
    program
        .env_clear()
        .uid(uid)
        .gid(uid)
        .stdin(request)
        .stdout(Stdio::from(answer.try_clone()?))
        .stderr(complaints.try_clone()?);
    let mut child = reaper.spawn(&mut program)?;
    let Ok(status) = timeout(limit, child.wait()).await else {
        child.signal(Signal::SIGKILL)?;
        return Err(Error::Late(limit));
    };
    if status.success() {
        return Ok(read(&mut answer)?);
    }
    let why = read(&mut complaints)?;
    Err(Error::Failed(why.lines().next().map_or_else(|| status.to_string(), str::to_owned)))
}

/// As [`run`], with JSON both ways.
pub(crate) async fn ask<A: DeserializeOwned>(
    reaper: &Reaper,
    program: Command,
    uid: u32,
    request: &impl Serialize,
    limit: Duration,
) -> Result<A, Error> {
    let request = serde_json::to_vec(request).map_err(io::Error::from)?;
    let answer = run(reaper, program, uid, &request, limit).await?;
    Ok(serde_json::from_str(&answer).map_err(io::Error::from)?)
}

/// A file without a name, as soon as it is open.
fn private_file(name: &str) -> io::Result<File> {
    fs::create_dir_all(FOLDER)?;
    let path = Path::new(FOLDER).join(format!("child.{name}"));
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}

fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(ANSWER_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
