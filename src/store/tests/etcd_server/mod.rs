//! An etcd of one member, for a test.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use orlop_store::{Limits, Location, Store};
use tempfile::TempDir;

/// Ends with it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Server {
    /// None, told, where there is no etcd.
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = program() else {
            static TOLD: OnceLock<()> = OnceLock::new();
            TOLD.get_or_init(|| println!("skipped: no etcd (ORLOP_ETCD, or in PATH)"));
            return None;
        };
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
        Some(Self { child, port, _folder: folder })
    }

    pub(crate) async fn store(&self) -> Store {
        let location = Location::Etcd(vec![format!("127.0.0.1:{}", self.port)]);
        Store::open(&location, None, Limits::default()).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("ORLOP_ETCD").filter(|path| !path.is_empty()) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("etcd")).find(|path| path.is_file())
}
