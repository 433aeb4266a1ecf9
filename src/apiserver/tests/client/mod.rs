//! A server of its own for each test, and a client that knows nothing but HTTP.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::Parser as _;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use orlop_apiserver::{Options, Running};
use orlop_rt::CancellationToken;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// Nothing here takes longer, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server under way.
pub(crate) struct Served {
    folder: TempDir,
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Served {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (address, shutdown, serving) = open(&folder).await;
        Self { folder, address, shutdown, serving }
    }

    /// Ends it, and starts it again over the same folder.
    pub(crate) async fn restart(&mut self) {
        self.shutdown.cancel();
        (&mut self.serving).await.expect("it ends");
        (self.address, self.shutdown, self.serving) = open(&self.folder).await;
    }

    /// One who may do everything.
    pub(crate) async fn client(&self) -> Client {
        let read = |name: &str| {
            std::fs::read_to_string(self.folder.path().join("pki").join(name)).expect("it is there")
        };
        let (ca, admin) = (read("ca.crt"), read("admin.pem"));
        let config =
            orlop_pki::tls::client_config(&ca, Some((&admin, &admin))).expect("it is sound");
        let stream = TcpStream::connect(self.address).await.expect("it listens");
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let stream =
            TlsConnector::from(config).connect(name, stream).await.expect("it is believed");
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        // It ends with the client or with the server.
        tokio::spawn(async move { connection.await.ok() });
        Client { sender }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn open(folder: &TempDir) -> (std::net::SocketAddr, CancellationToken, JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let data = folder.path().to_str().expect("UTF-8");
    let options = Options::parse_from(["apiserver", "--data-dir", data, "--listen", "127.0.0.1:0"]);
    let running = Running::open(options, shutdown.clone()).await.expect("it opens");
    let address = running.address();
    (address, shutdown, tokio::spawn(running.serve()))
}

pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
}

/// An answer, whole.
pub(crate) struct Answer {
    pub(crate) code: u16,
    body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.body.to_vec()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub(crate) fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn revision(&self) -> u64 {
        let object = self.json();
        let revision =
            object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
        revision.unwrap_or_else(|| panic!("it has a revision: {object}"))
    }

    pub(crate) fn expect(self, code: u16) -> Self {
        assert_eq!(self.code, code, "{}", self.text());
        self
    }
}

impl Client {
    async fn begin(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("https://localhost{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("it is sound");
        let answered = tokio::time::timeout(PATIENCE, self.sender.clone().send_request(request));
        answered.await.expect("in time").expect("it is answered")
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let response = self.begin(method, path, headers, body).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        Answer { code, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Vec::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], body.to_string().into()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[], body.to_string().into()).await
    }

    pub(crate) async fn delete(&self, path: &str, body: &Value) -> Answer {
        self.send("DELETE", path, &[], body.to_string().into()).await
    }

    pub(crate) async fn patch(&self, path: &str, how: &str, body: &Value) -> Answer {
        let kind = match how {
            "json" => "application/json-patch+json",
            "merge" => "application/merge-patch+json",
            _ => "application/strategic-merge-patch+json",
        };
        self.send("PATCH", path, &[("content-type", kind)], body.to_string().into()).await
    }

    pub(crate) async fn watch(&self, path: &str) -> Watch {
        let response = self.begin("GET", path, &[], Vec::new()).await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), read: BytesMut::new() }
    }
}

/// A watch, line by line.
pub(crate) struct Watch {
    body: Incoming,
    read: BytesMut,
}

impl Watch {
    /// The next event.
    pub(crate) async fn next(&mut self) -> Value {
        self.line().await.expect("there is another")
    }

    /// Is there nothing more?
    pub(crate) async fn ended(&mut self) -> bool {
        self.line().await.is_none()
    }

    async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end + 1);
                return Some(serde_json::from_slice(&line).expect("JSON"));
            }
            let frame =
                tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("in time")?;
            if let Ok(data) = frame.expect("it does not break off").into_data() {
                self.read.extend_from_slice(&data);
            }
        }
    }
}
