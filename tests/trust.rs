//! trustd from end to end with the real binary. A worker's front door: trustd signs, machined's child asks,
//! apid shows what came back, and the next certificate without a restart. A control plane that joins: one
//! child of machined places the cluster's PKI by trustd, another takes it over.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use http::Request;
use orlop_machined::handover::{Arrival, Pki};
use orlop_pki::{Authority, KeyKind, Leaf, Pair, Secret, Usage, tls};
use orlop_rpc::tls::channel;
use serde_json::{Value, json};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::ServiceExt as _;

const HOUR: Duration = Duration::from_secs(3600);
const TOKEN: &str = "abcdef.0123456789abcdef";

fn binary() -> PathBuf {
    std::env::var_os("ORLOP").map_or_else(|| env!("CARGO_BIN_EXE_orlop").into(), PathBuf::from)
}

/// A daemon on a port of its own; killed with the test.
struct Daemon {
    child: Child,
    port: u16,
    /// What it says from then on.
    log: mpsc::Receiver<String>,
}

impl Daemon {
    fn start(role: &str, secrets: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .args([role, "--listen", "127.0.0.1:0", "--secrets"])
            .arg(secrets)
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("a daemon says where it listens").unwrap();
            if let Some((_, address)) = line.split_once("address=127.0.0.1:") {
                break address.trim().parse().unwrap();
            }
        };
        // Goes on reading, so that the daemon never waits for a reader; ends with the daemon.
        let (told, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // A test that does not listen has dropped the other end.
                let _ = told.send(line);
            }
        });
        Self { child, port, log }
    }

    /// Waits for a line about this method.
    fn line(&self, method: &str) -> String {
        self.log.iter().find(|line| line.contains(method)).expect("the daemon lives")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn issue(authority: &Authority, usage: Usage, organization: &str) -> Pair {
    let leaf = Leaf {
        common_name: "test".to_owned(),
        organizations: vec![organization.to_owned()],
        usage,
        dns: Vec::new(),
        ips: vec!["127.0.0.1".parse().unwrap()],
        lifetime: HOUR,
    };
    authority.issue(&leaf, SystemTime::now()).unwrap()
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(folder).unwrap();
    for (name, text) in files {
        fs::write(folder.join("new"), text).unwrap();
        fs::rename(folder.join("new"), folder.join(name)).unwrap();
    }
}

/// `machined certify`: the answer, or what it complains about.
fn certify(port: u16, ca: &str, token: &str) -> Result<Value, String> {
    let mut child = Command::new(binary())
        .args(["machined", "certify"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let wish = json!({
        "hosts": ["127.0.0.1"], "port": port, "token": token, "ca": ca,
        "common_name": "worker-1", "dns": ["worker-1"], "ips": ["127.0.0.1", "10.9.8.7"],
    });
    child.stdin.take().unwrap().write_all(wish.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

fn write_trustd(folder: &Path, ca: &Authority) {
    let own = issue(ca, Usage::Server, "");
    write(
        folder,
        &[
            ("ca.crt", &ca.pair().crt),
            ("ca.key", ca.pair().key.expose()),
            ("token", TOKEN),
            ("tls.key", own.key.expose()),
            ("tls.crt", &own.crt),
        ],
    );
}

fn write_apid(folder: &Path, answer: &Value) {
    let text = |name: &str| answer[name].as_str().unwrap().to_owned();
    let (ca, crt, key) = (text("ca"), text("crt"), text("key"));
    write(folder, &[("ca.crt", &ca), ("tls.key", &key), ("tls.crt", &crt)]);
}

async fn ask(channel: &Channel) -> Status {
    let request = Request::post("/machine.MachineService/Memory").body(Body::empty()).unwrap();
    match channel.clone().oneshot(request).await {
        Ok(answer) => Status::from_header_map(answer.headers()).unwrap(),
        Err(error) => Status::from_error(error.into()),
    }
}

/// There is no routerd here: behind the front door is nobody, which is said.
fn is_inside(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().starts_with("routerd: ")
}

#[tokio::test]
async fn a_workers_front_door_stands_on_what_trustd_has_signed() {
    let folder = tempfile::tempdir().unwrap();
    let (secrets, door) = (folder.path().join("trustd"), folder.path().join("apid"));
    let now = SystemTime::now();
    let ca = Authority::generate("talos", KeyKind::Ed25519, 100 * HOUR, now).unwrap();
    let root = ca.pair().crt.as_str();
    write_trustd(&secrets, &ca);
    let trustd = Daemon::start("trustd", &secrets, &[]);

    let complaint = certify(trustd.port, root, "abcdef.0123456789abcdee").unwrap_err();
    assert_eq!(complaint, "trustd at 127.0.0.1: invalid token\n");
    // A node that knows the authority, and one that does not yet.
    let first = certify(trustd.port, root, TOKEN).unwrap();
    let second = certify(trustd.port, "", TOKEN).unwrap();
    assert_eq!((&first["ca"], &first["refused"]), (&json!(root), &json!(["10.9.8.7"])));

    write_apid(&door, &first);
    let apid = Daemon::start("apid", &door, &[]);
    let admin = issue(&ca, Usage::Client, "os:admin");
    let client = tls::client_config(root, Some((&admin.crt, admin.key.expose()))).unwrap();
    let early = channel("127.0.0.1", apid.port, Arc::clone(&client));
    assert!(is_inside(&ask(&early).await), "{}", ask(&early).await);

    // The certificate is no key to the door it is shown at.
    let (crt, key) = (first["crt"].as_str().unwrap(), first["key"].as_str().unwrap());
    let node = tls::client_config(root, Some((crt, key))).unwrap();
    let status = ask(&channel("127.0.0.1", apid.port, node)).await;
    assert!(!is_inside(&status), "{status}");

    // The next one is shown without a restart, and the old connection stays.
    write_apid(&door, &second);
    let next = second["fingerprint"].as_str().unwrap();
    while shown(apid.port, &client).await != next {}
    assert!(is_inside(&ask(&early).await));
    assert!(is_inside(&ask(&channel("127.0.0.1", apid.port, client)).await));
}

/// The fingerprint of the certificate that is shown to a new connection.
async fn shown(port: u16, client: &Arc<rustls::ClientConfig>) -> String {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(client));
    let stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let text = orlop_pki::encoding::certificate_to_pem(&certificate);
    orlop_pki::fingerprint(&text).unwrap()
}

/// `machined hand-over`: places files by a trustd with a certificate of this organization; what it
/// complains about.
fn hand_over(
    port: u16,
    ca: &Authority,
    organization: &str,
    files: &[(String, Secret)],
) -> Result<(), String> {
    let own = issue(ca, Usage::Client, organization);
    let order = json!({
        "host": "127.0.0.1", "port": port, "ca": ca.pair().crt, "crt": own.crt,
        "key": own.key.expose(), "token": TOKEN,
        "files": files.iter().map(|(path, text)| json!([path, text.expose()])).collect::<Value>(),
    });
    let output = run(&["machined", "hand-over"], order.to_string().as_bytes());
    output.status.success().then_some(()).ok_or_else(|| String::from_utf8(output.stderr).unwrap())
}

/// `machined take-over`: what it makes of the folder.
fn take_over(folder: &Path) -> Arrival {
    let output = run(&["machined", "take-over", folder.to_str().unwrap()], b"");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn run(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(binary())
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that has heard enough may close it early.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn pki() -> Pki {
    let [kubernetes, etcd] = ["kubernetes", "etcd"].map(|name| {
        let ca = Authority::generate(name, KeyKind::P256, HOUR, SystemTime::now()).unwrap();
        json!({ "crt": ca.pair().crt, "key": ca.pair().key.expose() })
    });
    serde_json::from_value(json!({ "kubernetes": kubernetes, "etcd": etcd })).unwrap()
}

#[test]
fn a_control_plane_that_joins_is_handed_the_clusters_pki() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().canonicalize().unwrap();
    let (secrets, drop) = (root.join("secrets"), root.join("drop"));
    fs::create_dir(&drop).unwrap();
    let ca = Authority::generate("talos", KeyKind::Ed25519, 100 * HOUR, SystemTime::now()).unwrap();
    write_trustd(&secrets, &ca);
    let trustd = Daemon::start("trustd", &secrets, &["--drop", drop.to_str().unwrap()]);
    let folder = drop.join("pki");
    let placed = |pki: &Pki| -> Vec<(String, Secret)> {
        let path = |name| folder.join(name).to_str().unwrap().to_owned();
        pki.files().into_iter().map(|(name, text)| (path(name), text)).collect()
    };
    let (old, new) = (pki(), pki());

    // Who is not established places nothing, and leaves a line.
    for role in ["os:admin", "os:impersonator", ""] {
        let why = hand_over(trustd.port, &ca, role, &placed(&old)).unwrap_err();
        assert!(why.contains("only control planes may place files"), "{role}: {why}");
    }
    assert!(trustd.line("WriteFile").contains("only control planes may place files"));
    let outside = [(format!("{}/x", root.display()), Secret::new("x".to_owned()))];
    let why = hand_over(trustd.port, &ca, "os:controlplane", &outside).unwrap_err();
    assert!(why.contains("no files are placed there"), "{why}");
    assert!(matches!(take_over(&folder), Arrival::Partial(_)), "nothing is there");

    // Cut off between two files; then all of them; then cut off while others replace them.
    let give = |files: &[_]| hand_over(trustd.port, &ca, "os:controlplane", files);
    give(&placed(&old)[..3]).unwrap();
    assert!(matches!(take_over(&folder), Arrival::Partial(_)));
    give(&placed(&old)).unwrap();
    assert_eq!(take_over(&folder), Arrival::Whole(old.clone()));
    give(&placed(&new)[..2]).unwrap();
    assert!(matches!(take_over(&folder), Arrival::Partial(_)));

    // What is too long is not placed, nor what comes after it; nor anything through a link.
    let mut long = placed(&new);
    long[1].1 = Secret::new("x".repeat((1 << 20) + 1));
    let why = give(&long).unwrap_err();
    assert!(why.contains("ca.key: ") && why.contains("more than"), "{why}");
    fs::remove_file(folder.join("ca.crt")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("ca.crt")).unwrap();
    let why = give(&placed(&new)).unwrap_err();
    assert!(why.contains("no files are placed there"), "{why}");
    let looked = run(&["machined", "take-over", folder.to_str().unwrap()], b"");
    let said = String::from_utf8(looked.stderr).unwrap();
    assert!(!looked.status.success() && said.contains("ca.crt"), "{said}");

    fs::remove_file(folder.join("ca.crt")).unwrap();
    give(&placed(&new)).unwrap();
    assert_eq!(take_over(&folder), Arrival::Whole(new));
    // Each file has left a line with who, where, how much and what.
    let line = std::iter::from_fn(|| Some(trustd.line("WriteFile")))
        .find(|line| line.contains("manifest.json") && line.contains("placed"))
        .unwrap();
    for part in ["peer=127.0.0.1", "size=", "sha256="] {
        assert!(line.contains(part), "{line}");
    }
}
