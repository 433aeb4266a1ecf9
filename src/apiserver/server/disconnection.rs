//! Clients whose connections break off, at every byte of what is said (spec of the server, §7.2, §7.3): informers end with
//! what the server has, having seen every change once and in order; a write is made once however often it is tried.
//!
//! The connections are in memory: no TLS, no ports, and a thousand of them a second.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use orlop_rt::CancellationToken;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, copy, duplex, split};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::{Origin, converse};
use crate::{Options, Running};

/// Nothing here takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// What a connection carries that is not cut.
const ALL: u64 = u64::MAX;
/// The object that is written last.
const END: &str = "end";

/// A server that is asked in memory.
struct Server {
    running: Running,
    shutdown: CancellationToken,
    admin: Origin,
}

impl Server {
    async fn open(folder: &TempDir) -> Self {
        let data = folder.path().to_str().expect("UTF-8");
        let shutdown = CancellationToken::new();
        // What is lost with the power is not asked here.
        let relaxed = ["--store-durability", "relaxed"];
        let options = ["apiserver", "--data-dir", data, "--listen", "127.0.0.1:0"];
        let options = Options::parse_from(options.into_iter().chain(relaxed));
        let running = Running::open(options, shutdown.clone()).await.expect("it opens");
        let admin = std::fs::read(folder.path().join("pki/admin.pem")).expect("it made one");
        let certificates = CertificateDer::pem_slice_iter(&admin);
        let certificates = certificates.map(|read| read.expect("it is sound")).collect();
        let admin = Origin { address: Ipv4Addr::LOCALHOST.into(), certificates };
        Self { running, shutdown, admin }
    }

    async fn close(self) {
        self.shutdown.cancel();
        self.running.server().registry.storage().store().close().await;
    }

    /// A connection that ends after so many bytes to the server, or from it.
    async fn connect(&self, h2: bool, there: u64, back: u64) -> Result<Client, Broken> {
        let ((near, relay_near), (relay_far, far)) = (duplex(64 << 10), duplex(64 << 10));
        let server = Arc::clone(self.running.server());
        tokio::spawn(converse(server, self.admin.clone(), far, h2, self.shutdown.clone()));
        tokio::spawn(async move {
            let (mut from_near, mut to_near) = split(relay_near);
            let (mut from_far, mut to_far) = split(relay_far);
            let (mut there, mut back) = ((&mut from_near).take(there), (&mut from_far).take(back));
            tokio::select! {
                _ = copy(&mut there, &mut to_far) => {}
                _ = copy(&mut back, &mut to_near) => {}
            }
        });
        let io = TokioIo::new(near);
        Ok(if h2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Client::Two(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            Client::One(sender)
        })
    }

    /// One that does not end.
    async fn client(&self) -> Client {
        self.connect(false, ALL, ALL).await.expect("it is not cut")
    }
}

/// The connection is gone.
#[derive(Debug)]
#[expect(dead_code, reason = "it is printed where none should be")]
struct Broken(Option<hyper::Error>);

impl From<hyper::Error> for Broken {
    fn from(error: hyper::Error) -> Self {
        Self(Some(error))
    }
}

enum Client {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    async fn open(
        &mut self,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<http::Response<Incoming>, Broken> {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let request = http::Request::builder().method(method).header("host", "kubernetes");
        let two = matches!(self, Self::Two(_));
        let origin = if two { "https://kubernetes" } else { "" };
        let request = request.uri(format!("{origin}{path}"));
        let kind =
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = request.header("content-type", kind).body(Full::new(body)).expect("sound");
        let answered = async {
            match self {
                Self::One(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Self::Two(sender) => sender.send_request(request).await,
            }
        };
        Ok(timeout(PATIENCE, answered).await.expect("in time")?)
    }

    /// An answer, whole.
    async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<(u16, Value), Broken> {
        let response = self.open(method, path, body).await?;
        let code = response.status().as_u16();
        let body = timeout(PATIENCE, response.into_body().collect()).await.expect("in time")?;
        Ok((code, serde_json::from_slice(&body.to_bytes()).expect("JSON")))
    }

    /// The answer of a connection that is not cut, and its revision.
    async fn done(&mut self, method: &str, path: &str, body: &Value) -> u64 {
        let (code, answer) = self.ask(method, path, body).await.expect("it is not cut");
        assert!(code < 300, "{method} {path}: {answer}");
        revision(&answer)
    }
}

fn revision(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn map(name: &str, shown: bool, text: &str) -> Value {
    let labels = json!({"shown": shown.to_string()});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": {"k": text}})
}

/// How an informer learns what there is.
#[derive(Clone, Copy, Debug)]
enum Begins {
    /// A list of what was there at a revision, then a watch.
    At(u64),
    /// A list of what is there, then a watch.
    Now,
    /// A watch that streams what is there.
    Streams,
}

/// As client-go's: what it has, and up to which revision. It refuses what it is told twice, or in another order.
#[derive(Debug)]
struct Informer {
    begins: Begins,
    /// What is asked for, in each request.
    select: &'static str,
    has: BTreeMap<String, Value>,
    /// 0: it must begin.
    at: u64,
    /// The revisions of the changes it was told.
    told: Vec<u64>,
}

impl Informer {
    fn new(begins: Begins, select: &'static str) -> Self {
        Self { begins, select, has: BTreeMap::new(), at: 0, told: Vec::new() }
    }

    /// Goes on over a connection until it breaks off, or the end is known.
    async fn go_on(&mut self, client: &mut Client) -> Result<(), Broken> {
        let select = self.select;
        let list = match self.begins {
            Begins::At(revision) => {
                format!("resourceVersion={revision}&resourceVersionMatch=Exact")
            }
            Begins::Now | Begins::Streams => "limit=500&resourceVersion=0".to_owned(),
        };
        if self.at == 0 && !matches!(self.begins, Begins::Streams) {
            let (code, list) =
                client.ask("GET", &format!("{MAPS}?{select}{list}"), &Value::Null).await?;
            assert_eq!(code, 200, "{list}");
            for item in list["items"].as_array().expect("a list has items") {
                self.has.insert(name(item), item.clone());
            }
            self.at = revision(&list);
        }
        let from = if self.at == 0 {
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned()
        } else {
            format!("resourceVersion={}", self.at)
        };
        let path = format!("{MAPS}?{select}watch=true&allowWatchBookmarks=true&{from}");
        let mut body = client.open("GET", &path, &Value::Null).await?.into_body();
        let (mut read, mut initial) = (Vec::new(), BTreeMap::new());
        while !self.has.contains_key(END) {
            let frame =
                timeout(PATIENCE, body.frame()).await.expect("in time").ok_or(Broken(None))??;
            read.extend_from_slice(frame.data_ref().expect("no trailers"));
            while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = read.drain(..=end).collect();
                self.take(serde_json::from_slice(&line).expect("lines are whole"), &mut initial);
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Value, initial: &mut BTreeMap<String, Value>) {
        let (kind, object) = (event["type"].as_str().expect("it has a type"), &event["object"]);
        let revision = revision(object);
        if self.at == 0 {
            match kind {
                "ADDED" => drop(initial.insert(name(object), object.clone())),
                "BOOKMARK" => {
                    let end = &object["metadata"]["annotations"]["k8s.io/initial-events-end"];
                    assert_eq!(end, "true", "{event}");
                    (self.has, self.at) = (std::mem::take(initial), revision);
                }
                _ => panic!("before the end of what is there: {event}"),
            }
            return;
        }
        if kind == "BOOKMARK" {
            assert!(revision >= self.at, "{event} behind {}", self.at);
            self.at = revision;
            return;
        }
        assert!(revision > self.at, "twice, or out of order: {event} behind {}", self.at);
        let knew = match kind {
            "DELETED" => self.has.remove(&name(object)),
            _ => self.has.insert(name(object), object.clone()),
        };
        assert_eq!(knew.is_none(), kind == "ADDED", "{event} of {knew:?}");
        self.at = revision;
        self.told.push(revision);
    }
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().expect("it has a name").to_owned()
}

/// What the server has of them, as a list shows it and events do.
async fn listed(server: &Server, select: &str) -> BTreeMap<String, Value> {
    let path = format!("{MAPS}?{select}");
    let (_, list) = server.client().await.ask("GET", &path, &Value::Null).await.expect("not cut");
    let items = list["items"].as_array().expect("a list has items");
    items.iter().map(|item| (name(item), bare(item))).collect()
}

/// Events say of which kind an object is, lists do not.
fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    let fields = object.as_object_mut().expect("an object");
    fields.remove("kind");
    fields.remove("apiVersion");
    object
}

fn has(informer: &Informer) -> BTreeMap<String, Value> {
    informer.has.iter().map(|(name, object)| (name.clone(), bare(object))).collect()
}

/// Some history: from which revision it is told, and the revisions of the changes that are seen of what is shown.
async fn history(server: &Server) -> (u64, Vec<u64>) {
    let client = &mut server.client().await;
    client.done("POST", MAPS, &map("stays", true, "1")).await;
    client.done("POST", MAPS, &map("hidden", false, "1")).await;
    let from = client.done("POST", MAPS, &map("goes", true, "1")).await;
    let one = |name: &str| format!("{MAPS}/{name}");
    let shown = |shown: &str| json!({"metadata": {"labels": {"shown": shown}}});
    let told = [
        client.done("POST", MAPS, &map("comes", true, "1")).await,
        client.done("PATCH", &one("hidden"), &shown("true")).await,
        client.done("PATCH", &one("comes"), &json!({"data": {"k": "2"}})).await,
        client.done("PATCH", &one("comes"), &shown("false")).await,
    ];
    // Nobody who asks for what is shown sees this.
    client.done("PATCH", &one("comes"), &json!({"data": {"k": "3"}})).await;
    let gone = client.ask("DELETE", &one("goes"), &Value::Null).await.expect("it is not cut");
    assert_eq!(gone.0, 200);
    let end = client.done("POST", MAPS, &map(END, true, "1")).await;
    // The deletion is a revision like any other.
    (from, told.into_iter().chain([end - 1, end]).collect())
}

/// One session for each byte after which its first connection is cut; the number of them.
async fn cut_at_every_byte(server: &Server, h2: bool, begins: Begins, told: &[u64]) -> u64 {
    const SHOWN: &str = "labelSelector=shown%3Dtrue&";
    let expected = listed(server, SHOWN).await;
    for bytes in 0.. {
        let mut informer = Informer::new(begins, SHOWN);
        let first = async { informer.go_on(&mut server.connect(h2, ALL, bytes).await?).await };
        let whole = first.await.is_ok();
        if !whole {
            let second = server.connect(h2, ALL, ALL).await;
            informer.go_on(&mut second.expect("it is not cut")).await.expect("it is not cut");
        }
        assert_eq!(has(&informer), expected, "cut after {bytes} bytes");
        assert_eq!(informer.told, told, "cut after {bytes} bytes");
        if whole {
            return bytes;
        }
    }
    unreachable!("a session has an end")
}

#[tokio::test]
async fn an_informer_misses_nothing_cut_at_any_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::open(&folder).await;
    let (from, told) = history(&server).await;
    // The changes are those that the cache keeps.
    let sessions = cut_at_every_byte(&server, true, Begins::At(from), &told).await;
    assert!(sessions > 2_000, "they are {sessions} bytes");
    let sessions = cut_at_every_byte(&server, false, Begins::Streams, &[]).await;
    assert!(sessions > 700, "they are {sessions} bytes");
    server.close().await;
    // And now they are in the store alone.
    let server = Server::open(&folder).await;
    let sessions = cut_at_every_byte(&server, false, Begins::At(from), &told).await;
    assert!(sessions > 2_000, "they are {sessions} bytes");
    server.close().await;
}

#[tokio::test]
async fn informers_agree_on_every_change_while_they_are_cut() {
    const INFORMERS: u64 = 24;
    const CHANGES: usize = 150;
    let folder = tempfile::tempdir().expect("a folder");
    let server = Arc::new(Server::open(&folder).await);
    let client = &mut server.client().await;
    client.done("POST", MAPS, &map("first", true, "")).await;
    let mut informers = JoinSet::new();
    for number in 0..INFORMERS {
        let server = Arc::clone(&server);
        let begins = if number % 2 == 0 { Begins::Now } else { Begins::Streams };
        informers.spawn(async move {
            let mut informer = Informer::new(begins, "");
            let (mut cuts, h2) = (0, number % 3 == 0);
            let mut began = 0;
            loop {
                // Enough for what is there and for one change, and each at another place.
                let bytes = 5_000 + 97 * number + 31 * cuts;
                let gone_on =
                    async { informer.go_on(&mut server.connect(h2, ALL, bytes).await?).await };
                let over = gone_on.await.is_ok();
                if began == 0 {
                    began = informer.at - informer.told.len() as u64;
                }
                if over {
                    return (informer, cuts);
                }
                cuts += 1;
            }
        });
    }
    let mut written = Vec::new();
    for number in 0..CHANGES {
        let path = format!("{MAPS}/m{}", number % 6);
        written.push(match number / 6 % 3 {
            0 => client.done("POST", MAPS, &map(&format!("m{}", number % 6), true, "1")).await,
            1 => client.done("PATCH", &path, &json!({"data": {"k": "2"}})).await,
            _ => {
                client.done("DELETE", &path, &Value::Null).await;
                // Nobody else writes.
                written.last().expect("it was created") + 1
            }
        });
    }
    written.push(client.done("POST", MAPS, &map(END, true, "")).await);
    let expected = listed(&server, "").await;
    let mut all_cuts = 0;
    while let Some(ended) = informers.join_next().await {
        let (informer, cuts) = ended.expect("it does not fail");
        all_cuts += cuts;
        assert_eq!(has(&informer), expected);
        let from = written.len() - informer.told.len();
        assert_eq!(informer.told, written[from..], "each change once, and in order");
    }
    assert!(all_cuts > INFORMERS, "they were cut {all_cuts} times");
    Arc::into_inner(server).expect("the others have ended").close().await;
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";

/// Renews the lease in the name of a turn, as often as it must until it knows that it did.
async fn renew(client: &mut Client, turn: &str) -> Result<(), Broken> {
    let path = format!("{LEASES}/leader");
    loop {
        let (code, mut lease) = client.ask("GET", &path, &Value::Null).await?;
        assert_eq!(code, 200, "{lease}");
        if lease["spec"]["holderIdentity"] == turn {
            return Ok(());
        }
        let turns = lease["spec"]["leaseTransitions"].as_u64().expect("a number");
        lease["spec"]["holderIdentity"] = turn.into();
        lease["spec"]["leaseTransitions"] = (turns + 1).into();
        let (code, answer) = client.ask("PUT", &path, &lease).await?;
        // What was sent over the connection before may be done only now. Half a request is none.
        assert!(matches!(code, 200 | 409), "{answer}");
    }
}

#[tokio::test]
async fn a_leader_cut_at_any_byte_writes_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::open(&folder).await;
    let client = &mut server.client().await;
    let spec = json!({"holderIdentity": "", "leaseDurationSeconds": 15, "leaseTransitions": 0});
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "leader"}, "spec": spec});
    let made = client.done("POST", LEASES, &lease).await;
    let mut turns = 0;
    for (h2, to_the_server) in [(false, true), (false, false), (true, true)] {
        for bytes in 0.. {
            turns += 1;
            let turn = format!("{turns:05}");
            let (there, back) = if to_the_server { (bytes, ALL) } else { (ALL, bytes) };
            let first = async { renew(&mut server.connect(h2, there, back).await?, &turn).await };
            if first.await.is_ok() {
                assert!(bytes > 300, "it is {bytes} bytes");
                break;
            }
            let second = server.connect(h2, ALL, ALL).await;
            renew(&mut second.expect("it is not cut"), &turn).await.expect("it is not cut");
        }
    }
    // Another client: an idle connection does not last.
    let client = &mut server.client().await;
    let (_, lease) =
        client.ask("GET", &format!("{LEASES}/leader"), &Value::Null).await.expect("it is not cut");
    assert_eq!(lease["spec"]["leaseTransitions"], turns, "each turn is one write");
    assert_eq!(revision(&lease), made + turns, "and nothing else is");
    server.close().await;
}
