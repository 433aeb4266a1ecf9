//! What must hold of the API server when it is killed and when its disk is full: what was acknowledged is there, and
//! nothing else goes wrong.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(60);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn binary() -> PathBuf {
    std::env::var_os("ORLOP").map_or_else(|| env!("CARGO_BIN_EXE_orlop").into(), PathBuf::from)
}

/// The server as a process; killed with the test.
struct Server {
    child: Child,
    address: SocketAddr,
    data: PathBuf,
}

impl Server {
    fn start(data: &Path) -> Self {
        let mut child = Command::new(binary())
            .args(["apiserver", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("it says where it is").unwrap();
            if let Some((_, rest)) = line.split_once("https://") {
                break rest.split(". ").next().unwrap().trim_end_matches('.').parse().unwrap();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, data: data.to_owned() }
    }

    async fn client(&self) -> SendRequest<Full<Bytes>> {
        let read = |name: &str| std::fs::read_to_string(self.data.join("pki").join(name)).unwrap();
        let (ca, admin) = (read("ca.crt"), read("admin.pem"));
        let config = orlop_pki::tls::client_config(&ca, Some((&admin, &admin))).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
        let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        // It ends with the server.
        tokio::spawn(async move { connection.await.ok() });
        sender
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The answer to a request; none when the server went away.
async fn ask(
    client: &SendRequest<Full<Bytes>>,
    method: &str,
    path: &str,
    body: &Value,
) -> Option<(u16, Value)> {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = Request::builder().method(method).uri(format!("https://localhost{path}"));
    let request = request.body(Full::new(body)).unwrap();
    let answered = tokio::time::timeout(PATIENCE, client.clone().send_request(request)).await;
    let response = answered.expect("in time").ok()?;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((code, serde_json::from_slice(&body).ok()?))
}

fn config_map(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": data}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let acknowledged: Arc<Mutex<HashSet<String>>> = Arc::default();
    for round in 0..3 {
        let mut server = Server::start(&data);
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..16 {
            let (client, acknowledged) = (server.client().await, Arc::clone(&acknowledged));
            writers.spawn(async move {
                for number in 0.. {
                    let name = format!("r{round}-w{writer}-{number}");
                    match ask(&client, "POST", MAPS, &config_map(&name, "x")).await {
                        Some((201, _)) => drop(acknowledged.lock().unwrap().insert(name)),
                        Some((code, body)) => panic!("{code}: {body}"),
                        None => return,
                    }
                }
            });
        }
        let enough = (round + 1) * 500;
        while acknowledged.lock().unwrap().len() < enough {
            tokio::task::yield_now().await;
        }
        server.child.kill().unwrap();
        writers.join_all().await;
    }
    let server = Server::start(&data);
    let client = server.client().await;
    let (code, list) = ask(&client, "GET", MAPS, &Value::Null).await.unwrap();
    assert_eq!(code, 200);
    let names: HashSet<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    let acknowledged = acknowledged.lock().unwrap();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !names.contains(&name[..])).collect();
    assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), acknowledged.len());
}

/// A file system of its own; unmounted with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let size = Some("size=64m");
    if let Err(error) = mount(Some("tmpfs"), &data, Some("tmpfs"), MsFlags::empty(), size) {
        println!("skipped: a small file system needs root ({error})");
        return;
    }
    let _mounted = Mounted(data.clone());
    let server = Server::start(&data);
    let client = server.client().await;
    ask(&client, "POST", MAPS, &config_map("before", "x")).await.unwrap();
    // Others fill the disk.
    let ballast = data.join("ballast");
    std::fs::write(&ballast, vec![1; 52 << 20]).unwrap();
    let (code, refused) = ask(&client, "POST", MAPS, &config_map("during", "x")).await.unwrap();
    assert_eq!((code, refused["kind"].as_str()), (507, Some("Status")), "{refused}");
    let path = format!("{MAPS}/before");
    let (code, read) = ask(&client, "GET", &path, &Value::Null).await.unwrap();
    assert_eq!((code, read["data"]["k"].as_str()), (200, Some("x")));
    let (code, removed) = ask(&client, "DELETE", &path, &Value::Null).await.unwrap();
    assert_eq!(code, 200, "what makes room is done: {removed}");
    std::fs::remove_file(&ballast).unwrap();
    let (code, made) = ask(&client, "POST", MAPS, &config_map("after", "x")).await.unwrap();
    assert_eq!(code, 201, "there is room again, without a restart: {made}");
}
