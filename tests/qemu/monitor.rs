//! QEMU's monitor: what no guest can do to itself (QMP, `docs/interop/qmp-spec.txt` of QEMU).

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// A connection to one QEMU. Each line is an object: a greeting first, then an answer to each command,
/// with events between.
#[derive(Debug)]
pub(crate) struct Monitor {
    lines: BufReader<UnixStream>,
    greeted: bool,
}

impl Monitor {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { lines: BufReader::new(stream), greeted: false }
    }

    /// Makes packets of a network pass, or vanish.
    pub(crate) fn set_link(&mut self, name: &str, up: bool) -> Result<()> {
        self.execute(&json!({ "execute": "set_link", "arguments": { "name": name, "up": up } }))
    }

    /// Presses the power button.
    pub(crate) fn power_button(&mut self) -> Result<()> {
        self.execute(&json!({ "execute": "system_powerdown" }))
    }

    /// Presses the reset button.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.execute(&json!({ "execute": "system_reset" }))
    }

    fn execute(&mut self, command: &Value) -> Result<()> {
        if !self.greeted {
            self.lines.get_ref().set_read_timeout(Some(LIMIT))?;
            self.greeted = true;
            self.execute(&json!({ "execute": "qmp_capabilities" }))?;
        }
        writeln!(self.lines.get_ref(), "{command}").context("tell QEMU's monitor")?;
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).context("hear QEMU's monitor")?;
            let said: Value = serde_json::from_str(&line)
                .with_context(|| format!("QEMU's monitor says {line:?} to {command}"))?;
            if said.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = said.get("error") {
                bail!("QEMU's monitor refuses {command}: {error}");
            }
        }
    }
}

const LIMIT: Duration = Duration::from_secs(30);
