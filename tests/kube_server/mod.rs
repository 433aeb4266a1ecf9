//! The API server as a process, and a client that knows nothing but HTTP.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Nothing takes longer, however slow the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn binary() -> PathBuf {
    std::env::var_os("ORLOP").map_or_else(|| env!("CARGO_BIN_EXE_orlop").into(), PathBuf::from)
}

/// The server as a process; killed with the test.
pub(crate) struct Server {
    pub(crate) child: Child,
    address: SocketAddr,
    data: PathBuf,
}

pub(crate) type Client = SendRequest<Full<Bytes>>;

impl Server {
    /// Ready; `more` is of its command line.
    pub(crate) fn start(data: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .args(["apiserver", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .args(more)
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

    /// One who may do everything.
    pub(crate) async fn client(&self) -> Client {
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

/// The beginning of the answer to a request; none when the server went away.
pub(crate) async fn begin(
    client: &Client,
    method: &str,
    path: &str,
    body: &Value,
) -> Option<Response<Incoming>> {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let mut request = Request::builder().method(method).uri(format!("https://localhost{path}"));
    if method == "PATCH" {
        request = request.header("content-type", "application/merge-patch+json");
    }
    let request = request.body(Full::new(body)).unwrap();
    let answered = tokio::time::timeout(PATIENCE, client.clone().send_request(request)).await;
    answered.expect("in time").ok()
}

/// The whole answer.
pub(crate) async fn ask(
    client: &Client,
    method: &str,
    path: &str,
    body: &Value,
) -> Option<(u16, Value)> {
    let response = begin(client, method, path, body).await?;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((code, serde_json::from_slice(&body).ok()?))
}

pub(crate) fn config_map(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": data}})
}
