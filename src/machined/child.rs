//! Children that speak to the network for PID 1: what one is told goes to its standard input, what it found
//! comes from its standard output, as JSON; the first line of its standard error says why there is none.
//! They have the rights of a user and no capability.

use std::fs::File;
use std::io::{self, PipeWriter, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use orlop_supervise::process::Privileges;
use orlop_supervise::{Child, Reaper};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

/// No answer is longer.
const ANSWER_LIMIT: u64 = 256 << 10;
/// No line of those who say several is.
const LINE_LIMIT: u64 = 16 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started, or says what is none of ours.
    #[error("run a child")]
    Run(#[from] io::Error),
    /// It failed, and said why.
    #[error("{0}")]
    Failed(String),
    /// It took too long, and was killed.
    #[error("no answer in {} s", .0.as_secs())]
    Late(Duration),
}

/// Runs `program` under `uid` for at most `limit`; what it writes to its standard output.
///
/// # Errors
/// When it cannot be run, fails, or is late.
pub async fn run(
    reaper: &Reaper,
    program: Command,
    uid: u32,
    input: &[u8],
    limit: Duration,
) -> Result<String, Error> {
    let mut answer = nameless()?;
    let (child, mut complaints) = spawn(reaper, program, uid, input, answer.try_clone()?)?;
    // Killed with the call, should that be dropped.
    let mut child = Mortal(child);
    let Ok(status) = timeout(limit, child.0.wait()).await else { return Err(Error::Late(limit)) };
    if status.success() { Ok(read(&mut answer)?) } else { Err(why(&mut complaints, status)?) }
}

/// As [`run`], with JSON both ways.
///
/// # Errors
/// As [`run`]; when its answer is none.
pub async fn ask<A: DeserializeOwned>(
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

/// A child that says one thing after the other, a line of JSON each. It waits while nobody listens, and
/// is killed when it is let go of.
#[derive(Debug)]
pub struct Talk {
    child: Mortal,
    lines: BufReader<Receiver>,
    complaints: File,
}

impl Talk {
    /// Runs `program` under `uid`, and tells it `request`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn begin(
        reaper: &Reaper,
        program: Command,
        uid: u32,
        request: &impl Serialize,
    ) -> Result<Self, Error> {
        let request = serde_json::to_vec(request).map_err(io::Error::from)?;
        let (ours, its): (_, PipeWriter) = io::pipe()?;
        let lines = BufReader::new(Receiver::from_owned_fd(OwnedFd::from(ours))?);
        let (child, complaints) = spawn(reaper, program, uid, &request, OwnedFd::from(its))?;
        Ok(Self { child: Mortal(child), lines, complaints })
    }

    /// The next thing it says; `None` when it has said all, and ended well.
    ///
    /// # Errors
    /// When it ended badly, or what it says is not understood.
    pub async fn next<A: DeserializeOwned>(&mut self) -> Result<Option<A>, Error> {
        let mut line = Vec::new();
        (&mut self.lines).take(LINE_LIMIT).read_until(b'\n', &mut line).await?;
        if line.ends_with(b"\n") {
            return Ok(Some(serde_json::from_slice(&line).map_err(io::Error::from)?));
        }
        if !line.is_empty() {
            return Err(io::Error::other("it says half a line, or one that is too long").into());
        }
        let status = self.child.0.wait().await;
        if status.success() { Ok(None) } else { Err(why(&mut self.complaints, status)?) }
    }
}

/// A child that does not outlive us.
#[derive(Debug)]
struct Mortal(Child);

impl Drop for Mortal {
    fn drop(&mut self) {
        // Nothing happens to one that has ended; one that is killed is reaped like all others.
        if let Err(error) = self.0.signal(Signal::SIGKILL) {
            tracing::warn!(%error, pid = self.0.pid(), "a child cannot be killed");
        }
    }
}

fn spawn(
    reaper: &Reaper,
    mut program: Command,
    uid: u32,
    input: &[u8],
    answer: impl Into<Stdio>,
) -> io::Result<(Child, File)> {
    let complaints = nameless()?;
    let mut request = nameless()?;
    request.write_all(input)?;
    request.rewind()?;
    program.env_clear().stdin(request).stdout(answer).stderr(complaints.try_clone()?);
    Privileges { user: (uid, uid), capabilities: Vec::new() }.confine(&mut program);
    Ok((reaper.spawn(&mut program)?, complaints))
}

/// A file without a name, in memory.
fn nameless() -> io::Result<File> {
    Ok(memfd_create(c"child", MFdFlags::MFD_CLOEXEC)?.into())
}

fn why(complaints: &mut File, status: std::process::ExitStatus) -> io::Result<Error> {
    let text = read(complaints)?;
    Ok(Error::Failed(text.lines().next().map_or_else(|| status.to_string(), str::to_owned)))
}

fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(ANSWER_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
