//! The Python client of Kubernetes, as distributions ship it, against the API server: `tests/kube/client.py`.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

/// Debian's own, which has Debian's packages.
const PYTHON: &str = "/usr/bin/python3";

/// Killed with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_python_client_finds_what_it_knows() {
    let known = Command::new(PYTHON).args(["-c", "import kubernetes"]).output();
    if !known.is_ok_and(|known| known.status.success()) {
        println!("skipped: python3-kubernetes is not installed (.ci/deps test)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let orlop = std::env::var_os("ORLOP").unwrap_or_else(|| env!("CARGO_BIN_EXE_orlop").into());
    let child = Command::new(orlop)
        .args(["apiserver", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(at("data"))
        .stdout(Stdio::piped())
        .stderr(fs::File::create(at("log")).unwrap())
        .spawn()
        .unwrap();
    let mut server = Server(child);
    // It says so when it is ready, not before.
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let ready = lines.any(|line| line.is_ok_and(|line| line.contains("export KUBECONFIG=")));
    let log = || fs::read_to_string(at("log")).unwrap_or_default();
    assert!(ready, "the server ended: {}", log());

    let told = Command::new("timeout")
        .args(["--kill-after=5", "300", PYTHON])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kube/client.py"))
        .env("KUBECONFIG", at("data/kubeconfig"))
        .output()
        .unwrap();
    let (out, error) =
        (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{out}{error}the server's log: {}", log());
    assert_eq!(out.lines().filter(|line| line.starts_with("ok: ")).count(), 8, "{out}");
}
