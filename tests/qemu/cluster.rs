//! Generated configurations and the real command line that uses them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};
use serde_yaml::Value;

/// What `orlopctl gen config` wrote for one cluster: the machine configurations and a client's.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
}

impl Cluster {
    /// Generates one in `folder`, or takes the one that is there. Its nodes answer for 127.0.0.1 too.
    ///
    /// # Errors
    /// When the command line fails.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        Self::at("127.0.0.1", folder)
    }

    /// The same, of nodes that find each other at `host`.
    ///
    /// # Errors
    /// When the command line fails.
    pub fn at(host: &str, folder: &Path) -> Result<Self> {
        let cluster = Self { folder: folder.to_owned() };
        if !(cluster.controlplane_path().exists() && cluster.talosconfig().exists()) {
            let args = ["gen", "config", NAME, &format!("https://{host}:6443")];
            let sans = ["--additional-sans", "127.0.0.1,localhost", "--force", "-o"];
            let output = limited(30)
                .args(args)
                .args(sans)
                .arg(folder)
                .output()
                .context("start orlopctl gen config")?;
            succeeded("gen config", output)?;
        }
        Ok(cluster)
    }

    /// The machine configuration of a control-plane node.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn controlplane(&self) -> Result<String> {
        let path = self.controlplane_path();
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// The machine configuration of a worker.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn worker(&self) -> Result<String> {
        let path = self.folder.join("worker.yaml");
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// The client configuration's file.
    #[must_use]
    pub fn talosconfig(&self) -> PathBuf {
        self.folder.join("talosconfig")
    }

    /// Rewrites the client configuration's endpoints, so that nobody has to type them.
    ///
    /// # Errors
    /// When the file is not what `gen config` writes.
    pub fn set_endpoint(&self, endpoint: &str) -> Result<()> {
        self.edit(|context| {
            context.insert("endpoints".into(), Value::Sequence(vec![endpoint.into()]));
        })
    }

    /// A copy of `self`'s client configuration in `folder` whose certificate and key are `other`'s.
    ///
    /// # Errors
    /// When a file is not what `gen config` writes.
    pub fn with_certificate_of(&self, other: &Self, folder: &Path) -> Result<Self> {
        let copy = Self { folder: folder.to_owned() };
        fs::copy(self.talosconfig(), copy.talosconfig())
            .context("copy the client configuration")?;
        let theirs = other.context()?;
        copy.edit(|context| {
            for key in ["crt", "key"] {
                context.insert(key.into(), theirs.get(key).cloned().unwrap_or_default());
            }
        })?;
        Ok(copy)
    }

    /// The machine CA's certificate, PEM.
    ///
    /// # Errors
    /// When the client configuration has none.
    pub fn ca(&self) -> Result<Vec<u8>> {
        use base64::Engine as _;
        let context = self.context()?;
        let text = context.get("ca").and_then(Value::as_str).context("the context has no ca")?;
        base64::engine::general_purpose::STANDARD.decode(text).context("the ca is not base64")
    }

    fn controlplane_path(&self) -> PathBuf {
        self.folder.join("controlplane.yaml")
    }

    fn read(&self) -> Result<Value> {
        let path = self.talosconfig();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_yaml::from_str(&text).with_context(|| format!("read {}", path.display()))
    }

    fn context(&self) -> Result<serde_yaml::Mapping> {
        let document = self.read()?;
        let context = document.get("contexts").and_then(|contexts| contexts.get(NAME));
        context
            .and_then(Value::as_mapping)
            .cloned()
            .context("the client configuration's context is missing")
    }

    fn edit(&self, change: impl FnOnce(&mut serde_yaml::Mapping)) -> Result<()> {
        let mut document = self.read()?;
        let context = document.get_mut("contexts").and_then(|contexts| contexts.get_mut(NAME));
        change(
            context
                .and_then(Value::as_mapping_mut)
                .context("the client configuration's context is missing")?,
        );
        fs::write(self.talosconfig(), serde_yaml::to_string(&document)?)
            .context("write the client configuration")
    }
}

/// `out/orlop orlopctl`, pointed at one node.
#[derive(Clone, Debug)]
pub struct Operator {
    talosconfig: PathBuf,
    endpoint: String,
}

impl Operator {
    /// Of the node behind `port` of 127.0.0.1, with the credentials of `cluster`.
    #[must_use]
    pub fn new(cluster: &Cluster, port: u16) -> Self {
        Self { talosconfig: cluster.talosconfig(), endpoint: format!("127.0.0.1:{port}") }
    }

    /// What a command prints.
    ///
    /// # Errors
    /// When it fails or takes longer than 30 s; the message has what it said on stderr.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        succeeded(&args.join(" "), self.output(args)?)
    }

    /// What a command that must fail says on stderr.
    ///
    /// # Errors
    /// When it succeeds, or is killed after 30 s.
    pub fn refused(&self, args: &[&str]) -> Result<String> {
        let output = self.output(args)?;
        match output.status.code() {
            Some(0) => bail!("{} was allowed", args.join(" ")),
            None | Some(124 | 137) => bail!("{} did not end within {LIMIT} s", args.join(" ")),
            Some(_) => Ok(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The rows of the table a command prints, each an object; see its `-o json`.
    ///
    /// # Errors
    /// As [`Operator::run`], and when it prints something else.
    pub fn rows(&self, args: &[&str]) -> Result<Vec<Row>> {
        let text = self.run(&[args, &["-o", "json"]].concat())?;
        let rows: Vec<serde_json::Value> =
            serde_json::from_str(&text).with_context(|| format!("{} -o json", args.join(" ")))?;
        Ok(rows.into_iter().map(Row).collect())
    }

    /// The command that would run, for one that streams.
    #[must_use]
    pub fn command(&self, limit_secs: u64, args: &[&str]) -> Command {
        let mut command = limited(limit_secs);
        command.arg("--talosconfig").arg(&self.talosconfig).args(["-e", &self.endpoint]).args(args);
        command
    }

    fn output(&self, args: &[&str]) -> Result<Output> {
        self.command(LIMIT, args).output().context("start orlopctl")
    }
}

/// One row of a table.
#[derive(Debug)]
pub struct Row(serde_json::Value);

impl Row {
    /// The text under `key`; empty where there is none.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    /// The number under `key`; 0 where there is none.
    #[must_use]
    pub fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_default()
    }

    /// The number under `key`, whole or not; not a number where there is none.
    #[must_use]
    pub fn real(&self, key: &str) -> f64 {
        self.0[key].as_f64().unwrap_or(f64::NAN)
    }
}

fn limited(seconds: u64) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &seconds.to_string()]);
    command.arg(crate::out().join("orlop")).arg("orlopctl");
    command
}

fn succeeded(what: &str, output: Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let mut message = format!("orlopctl {what}: {}", output.status);
        let _ = write!(message, "\n{}", String::from_utf8_lossy(&output.stderr).trim_end());
        bail!("{message}");
    }
    Ok(text)
}

const NAME: &str = "orlop";
/// Seconds one command may take.
const LIMIT: u64 = 30;
