//! An etcd of one member, for a test; those of the API server use it, too.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use tempfile::TempDir;

/// Ends with it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Server {
    /// Serves when it is there.
    pub(crate) fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Its log, which etcd always writes, tells the port it got.
        let mut child = Command::new(program)
            .args([
                "--data-dir",
                folder.path().to_str().unwrap(),
                "--name",
                "test",
                "--unsafe-no-fsync",
            ])
            .args([
                "--listen-client-urls",
                "http://127.0.0.1:0",
                "--advertise-client-urls",
                "http://127.0.0.1:0",
            ])
            .args([
                "--listen-peer-urls",
                "http://127.0.0.1:0",
                "--initial-advertise-peer-urls",
                "http://127.0.0.1:0",
            ])
            .args([
                "--initial-cluster",
                "test=http://127.0.0.1:0",
                "--logger",
                "zap",
                "--log-outputs",
                "stderr",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut log = String::new();
        let port = lines.by_ref().find_map(|line| {
            let port = line.contains("serving client traffic").then(|| {
                let (_, rest) = line.split_once("\"address\":\"127.0.0.1:")?;
                rest.split('"').next()?.parse().ok()
            });
            log = format!("{log}{line}\n");
            port.flatten()
        });
        // It waits when nobody reads.
        thread::spawn(move || lines.for_each(drop));
        let port = port.unwrap_or_else(|| panic!("etcd did not start:\n{log}"));
        Self { child, port, _folder: folder }
    }

    /// Of its process.
    #[allow(dead_code, reason = "not all of those who use it stop it")]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// As a store is named.
    pub(crate) fn url(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Each generation that is there, oldest first: `ORLOP_ETCDS` names them with colons between them (`.ci/etcds` has
/// them); else the one that `ORLOP_ETCD` names, or that is in `PATH`. That there is none is told.
pub(crate) fn programs() -> Vec<PathBuf> {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(all) = named("ORLOP_ETCDS") {
        return std::env::split_paths(&all).collect();
    }
    let in_path = || {
        let path = named("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("etcd")).find(|path| path.is_file())
    };
    let one = named("ORLOP_ETCD").map(PathBuf::from).or_else(in_path);
    if one.is_none() {
        static TOLD: OnceLock<()> = OnceLock::new();
        TOLD.get_or_init(|| println!("skipped: no etcd (ORLOP_ETCDS, ORLOP_ETCD, or in PATH)"));
    }
    one.into_iter().collect()
}
