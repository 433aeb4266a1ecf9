//! What must hold of the API server whose objects are in an etcd: when members of it go, come back and hand over, when
//! it is full, when another API server uses it, too, and how often it is asked.
//!
//! Which etcds there are is told by [`etcd_server::programs`]; without one there is nothing to check.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../src/store/tests/etcd_server/mod.rs"]
mod etcd_server;
mod kube_server;

use std::collections::{BTreeMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use etcd_client::{AlarmAction, AlarmOptions, AlarmType};
use http::header::RETRY_AFTER;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;

use kube_server::{Client, MAPS, PATIENCE, Server, ask, begin, config_map};

const WRITERS: usize = 4;
/// Elections of a busy machine may take several times what they should.
const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_go_and_leaders_that_move_lose_nothing_and_tell_nothing_twice() {
    let Some(program) = etcd_server::programs().pop() else { return };
    let mut members = Members::start(program);
    members.serve().await;
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &["--store", &members.url()]);
    let client = server.client().await;
    let (_, list) = ask(&client, "GET", MAPS, &Value::Null).await.unwrap();
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    let told = Told::follow(&client, &format!("{MAPS}?watch=true&resourceVersion={from}")).await;

    let writers = Writers::start(&server).await;
    writers.more().await;
    let leader = members.leader().await;
    let gone = (leader + 1) % 3;
    members.kill(gone);
    writers.more().await;
    for _ in 0..2 {
        members.move_leader().await;
        writers.more().await;
    }
    members.run(gone);
    members.serve().await;
    let leader = members.leader().await;
    members.kill(leader);
    writers.more().await;
    let (acknowledged, unknown) = writers.stop().await;

    for member in 0..3 {
        members.kill(member);
    }
    // When a read is refused, whatever was under way has ended.
    let one = format!("{MAPS}/{}", acknowledged.keys().next().unwrap());
    refused(&client, "GET", &one, &Value::Null, "ServiceUnavailable").await;
    let from_memory = format!("{one}?resourceVersion=0");
    let (never, change) = (config_map("never", "x"), json!({"data": {"k": "2"}}));
    let (from_memory, ..) = tokio::join!(
        ask(&client, "GET", &from_memory, &Value::Null),
        refused(&client, "POST", MAPS, &never, "ServiceUnavailable"),
        refused(&client, "PATCH", &one, &change, "ServiceUnavailable"),
        refused(&client, "DELETE", &one, &Value::Null, "ServiceUnavailable"),
    );
    assert_eq!(from_memory.unwrap().0, 200, "reads of what was go on");
    let ready = begin(&client, "GET", "/readyz", &Value::Null).await.unwrap();
    assert_eq!(ready.status(), 500);

    for member in 0..3 {
        members.run(member);
    }
    let deadline = Instant::now() + LIMIT;
    let last = loop {
        match ask(&client, "POST", MAPS, &config_map("w-last", "x")).await.unwrap() {
            (201, made) => break made,
            // An answer was lost, and it was there.
            (409, _) => {
                break ask(&client, "GET", &format!("{MAPS}/w-last"), &Value::Null)
                    .await
                    .unwrap()
                    .1;
            }
            (code, body) => assert!(matches!(code, 503 | 504), "{code}: {body}"),
        }
        assert!(Instant::now() < deadline, "the members are back and are not used");
    };

    let told = told.upto("w-last").await;
    let (_, list) = ask(&client, "GET", MAPS, &Value::Null).await.unwrap();
    let listed: BTreeMap<String, u64> =
        list["items"].as_array().unwrap().iter().map(place).collect();
    let ours = |name: &str| name.starts_with("w-");
    let mut seen = BTreeMap::new();
    let mut before = 0;
    for (kind, name, revision) in told {
        assert!(revision > before, "{name} at {revision} came behind {before}");
        before = revision;
        if ours(&name) {
            assert_eq!(kind, "ADDED", "{name}");
            assert_eq!(seen.insert(name.clone(), revision), None, "{name} was told twice");
        }
    }
    let listed: BTreeMap<_, _> = listed.into_iter().filter(|(name, _)| ours(name)).collect();
    assert_eq!(seen, listed, "what was told and what is there");
    assert_eq!(place(&last).1, seen["w-last"]);
    for (name, revision) in &acknowledged {
        assert_eq!(seen.get(name), Some(revision), "{name} was acknowledged");
    }
    let others: Vec<_> = seen.keys().filter(|name| !acknowledged.contains_key(*name)).collect();
    let explained = |name: &String| name == "w-last" || unknown.contains(name);
    assert!(others.iter().all(|name| explained(name)), "{others:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_give_out_nothing_twice_and_tell_the_same() {
    for program in etcd_server::programs() {
        let etcd = etcd_server::Server::start(&program);
        let folder = tempfile::tempdir().unwrap();
        // 126 addresses, of which nearly all are given out.
        let more = ["--store", &etcd.url(), "--service-cluster-ip-range", "10.96.0.0/25"];
        let servers = ["one", "two"].map(|name| Server::start(&folder.path().join(name), &more));
        let services = "/api/v1/namespaces/default/services";
        // All are told everything: there is nothing yet.
        let mut told = Vec::new();
        for server in &servers {
            let watched = format!("{services}?watch=true&labelSelector=of");
            told.push(Told::follow(&server.client().await, &watched).await);
        }
        let mut creating = JoinSet::new();
        for (number, server) in servers.iter().enumerate() {
            for writer in 0..WRITERS {
                let client = server.client().await;
                creating.spawn(async move {
                    let mut made = Vec::new();
                    for count in 0..12 {
                        let name = format!("s{number}-{writer}-{count}");
                        let service = json!({"apiVersion": "v1", "kind": "Service",
                            "metadata": {"name": name, "labels": {"of": "test"}},
                            "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
                        let (code, body) = ask(&client, "POST", services, &service).await.unwrap();
                        assert_eq!(code, 201, "{body}");
                        made.push(body);
                    }
                    made
                });
            }
        }
        let made: Vec<Value> = creating.join_all().await.into_iter().flatten().collect();
        let each = |field: &str| {
            let found: HashSet<_> = made.iter().map(|one| one.pointer(field).unwrap()).collect();
            assert_eq!(found.len(), made.len(), "{field} was given twice");
        };
        for field in ["/spec/clusterIP", "/spec/ports/0/nodePort", "/metadata/resourceVersion"] {
            each(field);
        }
        let mut orders = Vec::new();
        for told in told {
            orders.push(told.first(made.len()).await);
        }
        assert_eq!(orders[0], orders[1], "both servers tell the same in the same order");
        assert!(orders[0].windows(2).all(|pair| pair[0].2 < pair[1].2), "{:?}", orders[0]);
        let expected: BTreeMap<_, _> = made.iter().map(place).collect();
        let seen: BTreeMap<_, _> = orders.remove(0).into_iter().map(|(_, n, r)| (n, r)).collect();
        assert_eq!(seen, expected);
        // What one wrote the other reads.
        for (server, name) in servers.iter().rev().zip(["s0-0-0", "s1-0-0"]) {
            let client = server.client().await;
            let found = ask(&client, "GET", &format!("{services}/{name}"), &Value::Null).await;
            assert_eq!(found.unwrap().0, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_is_written_over_without_reading_it() {
    for program in etcd_server::programs() {
        let etcd = etcd_server::Server::start(&program);
        let folder = tempfile::tempdir().unwrap();
        let more = ["--store", &etcd.url(), "--builtin-controllers", "off"];
        let server = Server::start(&folder.path().join("data"), &more);
        let client = server.client().await;
        let at = format!("{MAPS}/a");
        ask(&client, "POST", MAPS, &config_map("a", "1")).await.unwrap();
        // An answer that is as new as the store: it is known from now on.
        let (_, mut object) = ask(&client, "GET", &at, &Value::Null).await.unwrap();
        let before = calls(&etcd.url());
        object["data"]["k"] = "2".into();
        for (method, body) in
            [("PUT", object), ("PATCH", json!({"data": {"k": "3"}})), ("DELETE", Value::Null)]
        {
            let (code, body) = ask(&client, method, &at, &body).await.unwrap();
            assert_eq!(code, 200, "{method}: {body}");
        }
        let after = calls(&etcd.url());
        assert_eq!(after.0, before.0, "it was read");
        assert!(after.1 >= before.1 + 3, "{before:?}, {after:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_refuses_writes_and_nothing_else() {
    for program in etcd_server::programs() {
        let etcd = etcd_server::Server::start(&program);
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(&folder.path().join("data"), &["--store", &etcd.url()]);
        let client = server.client().await;
        ask(&client, "POST", MAPS, &config_map("before", "x")).await.unwrap();
        // What etcd itself does when its quota is used up.
        let address = etcd.url().replace("etcd://", "");
        let mut operator = etcd_client::Client::connect([address], None).await.unwrap();
        let status = operator.status().await.unwrap();
        let mut member = AlarmOptions::new();
        member.with_member(status.header().unwrap().member_id());
        let mut alarm = async |action| {
            operator.alarm(action, AlarmType::Nospace, Some(member.clone())).await.unwrap();
        };
        alarm(AlarmAction::Activate).await;
        let (code, refused) = ask(&client, "POST", MAPS, &config_map("during", "x")).await.unwrap();
        assert_eq!((code, refused["kind"].as_str()), (507, Some("Status")), "{refused}");
        let path = format!("{MAPS}/before");
        let (code, read) = ask(&client, "GET", &path, &Value::Null).await.unwrap();
        assert_eq!((code, read["data"]["k"].as_str()), (200, Some("x")));
        let (code, removed) = ask(&client, "DELETE", &path, &Value::Null).await.unwrap();
        assert_eq!(code, 200, "what makes room is done: {removed}");
        alarm(AlarmAction::Deactivate).await;
        let (code, made) = ask(&client, "POST", MAPS, &config_map("after", "x")).await.unwrap();
        assert_eq!(code, 201, "there is room again, without a restart: {made}");
    }
}

/// How many ranges and transactions an etcd has answered.
fn calls(url: &str) -> (u64, u64) {
    let address = url.strip_prefix("etcd://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let count = |method: &str| {
        let labels =
            format!("grpc_server_handled_total{{grpc_code=\"OK\",grpc_method=\"{method}\"");
        let line = text.lines().find(|line| line.starts_with(&labels));
        line.and_then(|line| line.rsplit_once(' ')).map_or(0, |(_, count)| count.parse().unwrap())
    };
    (count("Range"), count("Txn"))
}

/// Name and revision of an object.
fn place(object: &Value) -> (String, u64) {
    let own = &object["metadata"];
    let revision = own["resourceVersion"].as_str().and_then(|text| text.parse().ok());
    (own["name"].as_str().unwrap_or_default().to_owned(), revision.unwrap())
}

/// Nothing is done, and it is said so in the words of clients: they try again where that is safe.
async fn refused(client: &Client, method: &str, path: &str, body: &Value, reason: &str) {
    let response = begin(client, method, path, body).await.unwrap();
    let after = response.headers().get(RETRY_AFTER).cloned();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap();
    let (expected, wait) = match reason {
        "ServiceUnavailable" => (503, json!(1)),
        _ => (504, Value::Null),
    };
    assert_eq!((code, status["reason"].as_str()), (expected, Some(reason)), "{status}");
    assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(expected)));
    assert_eq!(status["details"]["retryAfterSeconds"], wait, "{status}");
    assert_eq!(after.is_some_and(|after| after == "1"), !wait.is_null());
}

/// What a watch tells: the kind of a change, the object's name, its revision.
type Change = (String, String, u64);

/// A watch that is read all the time.
struct Told(watch::Receiver<Vec<Change>>);

impl Told {
    async fn follow(client: &Client, path: &str) -> Self {
        let response = begin(client, "GET", path, &Value::Null).await.unwrap();
        assert_eq!(response.status(), 200);
        let (sender, told) = watch::channel(Vec::new());
        tokio::spawn(Self::read(response.into_body(), sender));
        Self(told)
    }

    async fn read(mut body: Incoming, sender: watch::Sender<Vec<Change>>) {
        let mut read = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..]));
            while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = read.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).unwrap();
                let (name, revision) = place(&event["object"]);
                let kind = event["type"].as_str().unwrap_or_default().to_owned();
                sender.send_modify(|told| told.push((kind, name, revision)));
            }
        }
    }

    async fn wait(mut self, enough: impl FnMut(&Vec<Change>) -> bool) -> Vec<Change> {
        let told = tokio::time::timeout(LIMIT, self.0.wait_for(enough)).await;
        told.expect("it is told in time").expect("the watch goes on").clone()
    }

    /// All up to an object.
    async fn upto(self, last: &str) -> Vec<Change> {
        self.wait(|told| told.iter().any(|(_, name, _)| name == last)).await
    }

    /// The first so many.
    async fn first(self, count: usize) -> Vec<Change> {
        self.wait(|told| told.len() >= count).await
    }
}

/// Clients that make objects all the time, named `w-…`.
struct Writers {
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
    made: watch::Receiver<usize>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: Mutex<BTreeMap<String, u64>>,
    /// Of which the server could not tell.
    unknown: Mutex<HashSet<String>>,
}

impl Writers {
    async fn start(server: &Server) -> Self {
        let (sender, made) = watch::channel(0);
        let shared: Arc<Shared> = Arc::default();
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let (client, shared, sender) =
                (server.client().await, Arc::clone(&shared), sender.clone());
            tasks.spawn(async move {
                for number in 0.. {
                    if shared.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("w-{writer}-{number}");
                    let answer = ask(&client, "POST", MAPS, &config_map(&name, "x")).await;
                    match answer.expect("the server lives") {
                        (201, body) => {
                            shared.acknowledged.lock().unwrap().insert(name, place(&body).1);
                            sender.send_modify(|made| *made += 1);
                        }
                        (504, body) => {
                            assert_eq!(body["reason"], "Timeout", "{body}");
                            shared.unknown.lock().unwrap().insert(name);
                        }
                        (code, body) => {
                            assert_eq!(
                                (code, &body["reason"]),
                                (503, &json!("ServiceUnavailable")),
                                "{body}"
                            );
                        }
                    }
                }
            });
        }
        Self { tasks, shared, made }
    }

    /// Waits until a good many more are made.
    async fn more(&self) {
        let mut made = self.made.clone();
        let enough = *made.borrow() + 50;
        let waited = tokio::time::timeout(LIMIT, made.wait_for(|made| *made >= enough)).await;
        waited.expect("writes go on").unwrap();
    }

    /// What was acknowledged, with its revision, and that of which nobody knows.
    async fn stop(self) -> (BTreeMap<String, u64>, HashSet<String>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        let shared = Arc::into_inner(self.shared).unwrap();
        (shared.acknowledged.into_inner().unwrap(), shared.unknown.into_inner().unwrap())
    }
}

/// Three members of an etcd, each at a port of an address that is this process's alone.
struct Members {
    program: PathBuf,
    address: Ipv4Addr,
    folder: TempDir,
    running: [Option<Child>; 3],
}

impl Members {
    fn start(program: PathBuf) -> Self {
        // 127.0.0.0/8 has one for every process there can be (pids have 22 bits).
        let [_, a, b, c] = (std::process::id() << 2 | 3).to_be_bytes();
        let folder = tempfile::tempdir().unwrap();
        let mut members = Self {
            program,
            address: Ipv4Addr::new(127, a, b, c),
            folder,
            running: Default::default(),
        };
        for member in 0..3 {
            members.run(member);
        }
        members
    }

    fn client_of(&self, member: usize) -> String {
        format!("{}:{}", self.address, 2379 + 2 * member)
    }

    fn peer(&self, member: usize) -> String {
        format!("http://{}:{}", self.address, 2380 + 2 * member)
    }

    /// As a store is named.
    fn url(&self) -> String {
        format!("etcd://{}", [0, 1, 2].map(|member| self.client_of(member)).join(","))
    }

    /// Starts one, anew or over what it has.
    fn run(&mut self, member: usize) {
        let data = |what: &str| self.folder.path().join(format!("{what}{member}"));
        let (client, peer) = (format!("http://{}", self.client_of(member)), self.peer(member));
        let all = [0, 1, 2].map(|member| format!("m{member}={}", self.peer(member))).join(",");
        let log = std::fs::File::create(data("log")).unwrap();
        let child = Command::new(&self.program)
            .arg(format!("--name=m{member}"))
            .args([Path::new("--data-dir"), &data("data")])
            .args([format!("--listen-client-urls={client}")])
            .args([format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}")])
            .args([format!("--initial-advertise-peer-urls={peer}")])
            .args([format!("--initial-cluster={all}")])
            .args(["--heartbeat-interval=200", "--election-timeout=2000", "--unsafe-no-fsync"])
            .args(["--logger=zap", "--log-outputs=stderr", "--log-level=warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running[member] = Some(child);
    }

    fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.running[member].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks those that run, one after the other, until one gives an answer.
    async fn each<T, A>(&self, ask: impl Fn(usize, etcd_client::Client) -> A) -> T
    where
        A: Future<Output = Result<Option<T>, etcd_client::Error>>,
    {
        let deadline = Instant::now() + LIMIT;
        let mut last = None;
        loop {
            for member in (0..3).filter(|member| self.running[*member].is_some()) {
                let asked = async {
                    let client = etcd_client::Client::connect([self.client_of(member)], None);
                    ask(member, client.await?).await
                };
                match tokio::time::timeout(PATIENCE, asked).await {
                    Ok(Ok(Some(answer))) => return answer,
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => last = Some(error),
                    Err(_elapsed) => {}
                }
            }
            assert!(Instant::now() < deadline, "the members do not come to it: {last:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until all that run know a leader.
    async fn serve(&self) {
        let ready = Mutex::new(HashSet::new());
        let running = self.running.iter().flatten().count();
        self.each(|member, mut client| {
            let ready = &ready;
            async move {
                client.get("any", None).await?;
                let mut ready = ready.lock().unwrap();
                ready.insert(member);
                Ok((ready.len() == running).then_some(()))
            }
        })
        .await;
    }

    /// The member that leads.
    async fn leader(&self) -> usize {
        self.each(|member, mut client| async move {
            let status = client.status().await?;
            let own = status.header().map(etcd_client::ResponseHeader::member_id);
            Ok((own == Some(status.leader())).then_some(member))
        })
        .await
    }

    /// Makes another of those that run the leader.
    async fn move_leader(&self) {
        let leader = self.leader().await;
        let other = self
            .each(|member, mut client| async move {
                let status = client.status().await?;
                let own = status.header().map(etcd_client::ResponseHeader::member_id);
                Ok(own.filter(|_| member != leader))
            })
            .await;
        self.each(|_, mut client| async move {
            let status = client.status().await?;
            let own = status.header().map(etcd_client::ResponseHeader::member_id);
            if own == Some(status.leader()) && own != Some(other) {
                client.move_leader(other).await?;
            }
            Ok((status.leader() == other).then_some(()))
        })
        .await;
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
