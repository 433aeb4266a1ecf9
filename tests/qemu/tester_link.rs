//! The host's end of the tester: shell commands in a guest that has the host's own files.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A shell in one guest.
#[derive(Debug)]
pub struct Tester(BufReader<UnixStream>);

impl Tester {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let until = Instant::now() + QEMU_STARTS;
        loop {
            match UnixStream::connect(socket) {
                // QEMU has not come as far as making it.
                Err(_) if Instant::now() < until => sleep(Duration::from_millis(20)),
                stream => {
                    return Ok(Self(BufReader::new(stream.context("connect to the tester")?)));
                }
            }
        }
    }

    /// Runs one line of shell, passes each line that it prints to `told`, and gives its exit status.
    /// Daemons it leaves running must have closed its standard output.
    ///
    /// # Errors
    /// When the guest is gone, or does not end the command within `limit`; it cannot be used again then.
    pub fn run(
        &mut self,
        command: &str,
        limit: Duration,
        mut told: impl FnMut(&str),
    ) -> Result<i32> {
        let until = Instant::now() + limit;
        self.0.get_mut().write_all(format!("{command}\n").as_bytes())?;
        let mut line = Vec::new();
        loop {
            line.clear();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{command}: not done after {} s", limit.as_secs());
            }
            self.0.get_ref().set_read_timeout(Some(left))?;
            self.0.read_until(b'\n', &mut line).with_context(|| format!("hear of {command}"))?;
            let text = String::from_utf8_lossy(&line);
            match text.trim_end().split_at_checked(1) {
                Some(("|", said)) => told(said),
                Some(("=", status)) => return status.parse().context("an exit status"),
                _ => bail!("{command}: the tester says {text:?}"),
            }
        }
    }

    /// The same for a command that must succeed; what it printed.
    ///
    /// # Errors
    /// As [`Tester::run`], and when the command fails.
    pub fn output(&mut self, command: &str, limit: Duration) -> Result<String> {
        let mut output = String::new();
        let status = self.run(&format!("{{ {command}; }} 2>&1"), limit, |line| {
            output += line;
            output.push('\n');
        })?;
        if status != 0 {
            bail!("{command}: status {status}\n{output}");
        }
        Ok(output)
    }
}

const QEMU_STARTS: Duration = Duration::from_secs(60);
