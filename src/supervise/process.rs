//! Services that are children of this process.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

pub use caps::Capability;
use nix::sys::signal::Signal;
use tokio::net::unix::pipe;

use crate::capture::Capture;
use crate::cgroup;
use crate::control::{Control, Stop};
use crate::reaper::{Child, Reaper};

/// As `waitpid(2)` has it.
const SIGKILL: i32 = Signal::SIGKILL as i32;

/// How to start the process. It gets a session and (if named) a cgroup of its own, default signal
/// dispositions, `/dev/null` as input, its log as output, and no other descriptor.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The program's path, then its arguments.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: Vec<(String, String)>,
    /// Directory of its cgroup (version 2), made if missing: `/sys/fs/cgroup/system/udevd`.
    pub cgroup: Option<PathBuf>,
    /// Memory its cgroup may use.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads its cgroup may have.
    pub pids_limit: Option<u32>,
    /// What SIGKILL is sent to.
    pub kill: KillMode,
    /// -1000 (never killed for want of memory) to 1000 (first); `None` inherits.
    pub oom_score_adj: Option<i32>,
    /// `None` leaves it all of ours.
    pub privileges: Option<Privileges>,
}

impl Spec {
    /// `args` with the environment and the cgroup of nobody.
    pub fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cgroup: None,
            memory_limit_bytes: None,
            pids_limit: None,
            kill: KillMode::Cgroup,
            oom_score_adj: None,
            privileges: None,
        }
    }

    /// `Process(["/bin/x" "--y"])`.
    pub(crate) fn describe(&self) -> String {
        let args: Vec<String> = self.args.iter().map(|arg| format!("{arg:?}")).collect();
        format!("Process([{}])", args.join(" "))
    }
}

/// Who a process is and what it may do; it gets no more by executing anything (`no_new_privs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// Its user and group.
    pub user: (u32, u32),
    /// What it may do beyond its user, and all it can ever get; kept across exec (ambient), so it
    /// need not be root.
    pub capabilities: Vec<Capability>,
}

impl Privileges {
    /// Makes `command`, for those who start one themselves, start a process with no more than this
    /// (and a session of its own, default signal dispositions, no descriptors but 0, 1 and 2).
    pub fn confine(&self, command: &mut Command) {
        orlop_sys::isolate(command, None, Some(self.resolve()));
    }

    fn resolve(&self) -> orlop_sys::Privileges {
        orlop_sys::Privileges {
            user: self.user.0,
            group: self.user.1,
            capabilities: self.capabilities.iter().fold(0, |set, one| set | one.bitmask()),
        }
    }
}

/// What is killed when the process does not end in time, and whether anything when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillMode {
    /// All of its cgroup, and what is left there once the process has ended.
    Cgroup,
    /// Only the process: its descendants outlive it, as containerd's shims must.
    Process,
}

/// Why a run of a process failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No program was named.
    #[error("no program to start")]
    NoProgram,
    /// The cgroup could not be made or joined.
    #[error("make cgroup {}", path.display())]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No pipe for the output.
    #[error("make a pipe for the output")]
    Pipe(#[source] io::Error),
    /// It could not be started.
    #[error("start {program}")]
    Start {
        /// Its path.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended by itself, and not well.
    #[error("{0}")]
    Exited(std::process::ExitStatus),
    /// It needed more memory than its cgroup or the machine had.
    #[error("killed: out of memory")]
    OutOfMemory,
}

pub(crate) async fn run(spec: &Spec, reaper: &Reaper, control: &mut Control) -> Result<(), Error> {
    if control.ready().await.is_err() {
        return Ok(());
    }
    let killed_so_far = || spec.cgroup.as_deref().map_or(0, cgroup::out_of_memory);
    let killed_before = killed_so_far();
    let (mut child, mut capture) = start(spec, reaper, control)?;
    let message = format!("Process {} started with PID {}", spec.describe(), child.pid());
    control.started(message, Some(child.pid())).await;
    let mut told = false;
    let status = loop {
        // Both awaits are cancel-safe.
        tokio::select! {
            status = child.wait() => break status,
            stop = control.stop() => {
                told = true;
                end(spec, &child, stop);
            }
            never = capture.run() => match never {},
        }
    };
    let starved = killed_so_far() > killed_before;
    if let (Some(cgroup), KillMode::Cgroup) = (&spec.cgroup, spec.kill) {
        report(control, cgroup::kill(cgroup));
    }
    capture.drain();
    match status.signal() {
        _ if told || status.success() => Ok(()),
        Some(SIGKILL) if starved => Err(Error::OutOfMemory),
        _ => Err(Error::Exited(status)),
    }
}

fn start(spec: &Spec, reaper: &Reaper, control: &Control) -> Result<(Child, Capture), Error> {
    let (program, args) = spec.args.split_first().ok_or(Error::NoProgram)?;
    let cgroup = spec.cgroup.as_deref().map(|path| {
        cgroup::create(path).map_err(|source| Error::Cgroup { path: path.to_owned(), source })
    });
    let cgroup = cgroup.transpose()?;
    if let Some(path) = &spec.cgroup {
        let memory = spec.memory_limit_bytes.map(|most| cgroup::limit(path, "memory.max", most));
        let pids = spec.pids_limit.map(|most| cgroup::limit(path, "pids.max", most));
        memory.into_iter().chain(pids).for_each(|result| report(control, result));
    }
    let (reader, writer) = io::pipe().map_err(Error::Pipe)?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (OsString::from(name), value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(Error::Pipe)?)
        .stderr(writer);
    let privileges = spec.privileges.as_ref().map(Privileges::resolve);
    orlop_sys::isolate(&mut command, cgroup, privileges);
    let child = reaper
        .spawn(&mut command)
        .map_err(|source| Error::Start { program: program.clone(), source })?;
    if let Some(score) = spec.oom_score_adj {
        let path = format!("/proc/{}/oom_score_adj", child.pid());
        report(control, std::fs::write(path, score.to_string()));
    }
    let pipe = pipe::Receiver::from_owned_fd(reader.into()).map_err(Error::Pipe)?;
    Ok((child, Capture::new(pipe, control.log.clone())))
}

fn end(spec: &Spec, child: &Child, stop: Stop) {
    let sent = match (stop, spec.kill, &spec.cgroup) {
        (Stop::Terminate, ..) => child.signal(Signal::SIGTERM),
        (Stop::Kill, KillMode::Cgroup, Some(cgroup)) => {
            cgroup::kill(cgroup).and_then(|()| child.signal(Signal::SIGKILL))
        }
        (Stop::Kill, ..) => child.signal(Signal::SIGKILL),
    };
    if let Err(error) = sent {
        tracing::warn!(pid = child.pid(), %error, "cannot signal");
    }
}

/// What does not keep a process from running is told, and no more.
fn report(control: &Control, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(service = %control.id, %error, "cannot set up or clear a process's surroundings");
    }
}
