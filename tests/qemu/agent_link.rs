//! The host's end of the agent: how it gets into a guest, and the requests it understands.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Where the agent lies in the initramfs.
pub(crate) const PATH: &str = "/agent";

/// A connection to the agent of one guest.
#[derive(Debug)]
pub struct Agent(BufReader<UnixStream>);

impl Agent {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("connect to the guest's agent")?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut agent = Self(BufReader::new(stream));
        match agent.ask("ping")?.as_str() {
            "pong" => Ok(agent),
            other => bail!("the guest's agent says {other:?}"),
        }
    }

    /// Kills (SIGKILL) every process called `name`; who they were.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&mut self, name: &str) -> Result<Vec<u32>> {
        let killed = numbers(&self.ask(&format!("kill {name}"))?)?;
        if killed.is_empty() {
            bail!("no process is called {name}");
        }
        Ok(killed)
    }

    /// Stops (SIGSTOP) every process called `name`: they hear of nothing but their end any more.
    ///
    /// # Errors
    /// When there is none.
    pub fn freeze(&mut self, name: &str) -> Result<Vec<u32>> {
        let frozen = numbers(&self.ask(&format!("freeze {name}"))?)?;
        if frozen.is_empty() {
            bail!("no process is called {name}");
        }
        Ok(frozen)
    }

    /// Starts processes in the cgroup of the service `name` until it may have no more, and ends them; how
    /// many there were, and how that ended.
    ///
    /// # Errors
    /// When the agent cannot.
    pub fn bomb(&mut self, name: &str) -> Result<String> {
        self.ask(&format!("bomb {name}"))
    }

    /// Takes memory in the cgroup of the service `name`: `killed`, or how much it was given.
    ///
    /// # Errors
    /// When the agent cannot.
    pub fn hog(&mut self, name: &str) -> Result<String> {
        self.ask(&format!("hog {name}"))
    }

    /// Makes this many processes that have ended when their parent does.
    ///
    /// # Errors
    /// When the agent cannot.
    pub fn orphans(&mut self, count: usize) -> Result<()> {
        self.ask(&format!("orphans {count}")).map(drop)
    }

    /// The processes called `name`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn pids(&mut self, name: &str) -> Result<Vec<u32>> {
        numbers(&self.ask(&format!("pids {name}"))?)
    }

    /// Makes a process whose parent ends at once, and which ends itself a second later.
    ///
    /// # Errors
    /// When the agent cannot.
    pub fn orphan(&mut self) -> Result<u32> {
        Ok(self.ask("orphan")?.parse()?)
    }

    /// The state of a process and its parent, `S 1`, or `gone`.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn state(&mut self, pid: u32) -> Result<String> {
        self.ask(&format!("state {pid}"))
    }

    /// Leaves no room in the file system of the node's `folder`; how many bytes that took.
    ///
    /// # Errors
    /// When the agent cannot.
    pub fn fill(&mut self, folder: &str) -> Result<u64> {
        Ok(self.ask(&format!("fill {folder}"))?.parse()?)
    }

    /// Gives back the room that [`Agent::fill`] took.
    ///
    /// # Errors
    /// When the agent cannot.
    pub fn clear(&mut self, folder: &str) -> Result<()> {
        self.ask(&format!("clear {folder}")).map(drop)
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut reply = String::new();
        self.0
            .read_line(&mut reply)
            .with_context(|| format!("ask the guest's agent to {request}"))?;
        let reply = reply.trim().to_owned();
        match reply.strip_prefix("error: ") {
            Some(error) => bail!("{request}: {error}"),
            None => Ok(reply),
        }
    }
}

/// Makes an initramfs in `folder` that is `real`, if there is one, with `program` at [`PATH`]. The kernel
/// unpacks one archive after another, so ours, uncompressed, goes before it.
pub(crate) fn initrd(program: &Path, real: Option<&Path>, folder: &Path) -> Result<PathBuf> {
    let path = folder.join("initramfs.img");
    let mut image = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let mut archive = Vec::new();
    entry(&mut archive, PATH.trim_start_matches('/'), 0o100_755, &bytes);
    entry(&mut archive, "TRAILER!!!", 0, b"");
    archive.resize(archive.len().next_multiple_of(512), 0);
    image.write_all(&archive)?;
    if let Some(real) = real {
        let mut real = File::open(real).with_context(|| format!("open {}", real.display()))?;
        std::io::copy(&mut real, &mut image)?;
    }
    Ok(path)
}

/// One member of a cpio archive (format newc, `Documentation/driver-api/early-userspace/buffer-format.rst`).
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let fields = [1, mode as usize, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn numbers(text: &str) -> Result<Vec<u32>> {
    text.split_ascii_whitespace().map(|pid| pid.parse().context("not a process id")).collect()
}
