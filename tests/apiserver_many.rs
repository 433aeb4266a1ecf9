//! What must hold of the API server when there is much of everything: ten thousand watches of one client, and long lists
//! by ten at once. What it occupies is bounded and comes back, and others are answered meanwhile.

#![expect(clippy::unwrap_used, reason = "tests")]

mod kube_fill;
mod kube_server;

use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use kube_server::{Client, MAPS, PATIENCE, Server, ask, begin, config_map};
use orlop_store::Location;
use serde_json::{Value, json};
use tokio::time::timeout;

const WATCHES: usize = 10_000;
/// Watches of a connection, which has 1,000 streams.
const EACH: usize = 900;
/// Requests of a client at a time.
const AT_ONCE: usize = 32;
/// What a watch may take of the server's memory, beside all that belongs to its connection.
const WATCH_KIB: usize = 20;

const LISTS: usize = 10;
/// Of 1 KiB. benches/kube.rs has more, one list at a time.
const OBJECTS: usize = 20_000;
/// What the server may take for all lists together; in one piece each they would be ten times as much.
const LISTS_KIB: usize = 48 << 10;

/// What the server occupies, in KiB: `VmRSS` now, `VmHWM` at most.
fn occupies(server: &Server, field: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_matches([':', ' ', '\t']).split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watches_see_a_change_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let client = server.client().await;
    let mut open = Vec::new();
    let before = occupies(&server, "VmRSS");
    for round in ["first", "second"] {
        let (clients, bodies) = watches(&server, round).await;
        open.push(occupies(&server, "VmRSS"));
        let path = format!("{MAPS}/none");
        let (code, _) = ask(&client, "GET", &path, &Value::Null).await.unwrap();
        assert_eq!(code, 404, "others are answered");
        let (code, made) = ask(&client, "POST", MAPS, &config_map(round, "x")).await.unwrap();
        assert_eq!(code, 201, "{made}");
        let seen = futures_util::stream::iter(bodies).map(first_event).buffer_unordered(AT_ONCE);
        let seen: Vec<Value> = seen.collect().await;
        assert_eq!(seen.len(), WATCHES);
        for event in seen {
            let told = (&event["type"], &event["object"]["metadata"]["resourceVersion"]);
            assert_eq!(told, (&json!("ADDED"), &made["metadata"]["resourceVersion"]));
        }
        drop(clients);
        nobody_watches(&client).await;
    }
    let each = (open[0] - before) * 1024 / WATCHES;
    println!(
        "{WATCHES} watches: {each} bytes each; {before} KiB before, {open:?} with them, {} after",
        occupies(&server, "VmRSS")
    );
    assert!(each <= WATCH_KIB << 10, "a watch takes {each} bytes");
    let grown = open[1].saturating_sub(open[0]);
    assert!(grown < (open[0] - before) / 4, "the first left something: {open:?} KiB");
}

/// Opens them all, for one object that is not there yet; with the clients whose they are.
async fn watches(server: &Server, name: &str) -> (Vec<Client>, Vec<Incoming>) {
    let path = format!("{MAPS}?watch=true&resourceVersion=0&fieldSelector=metadata.name%3D{name}");
    let (mut clients, mut bodies) = (Vec::new(), Vec::new());
    while bodies.len() < WATCHES {
        let client = server.client().await;
        let opened = futures_util::stream::iter(0..EACH.min(WATCHES - bodies.len()))
            .map(|_| begin(&client, "GET", &path, &Value::Null))
            .buffer_unordered(AT_ONCE)
            .map(|response| {
                let response = response.expect("it is answered");
                assert_eq!(response.status(), 200);
                response.into_body()
            });
        bodies.extend(opened.collect::<Vec<_>>().await);
        clients.push(client);
    }
    (clients, bodies)
}

async fn first_event(mut body: Incoming) -> Value {
    let mut read = Vec::new();
    while !read.ends_with(b"\n") {
        let frame = timeout(PATIENCE, body.frame()).await.expect("in time").expect("it goes on");
        read.extend_from_slice(frame.unwrap().data_ref().unwrap());
    }
    serde_json::from_slice(&read).expect("one event")
}

/// Waits until the server has let go of all watches.
async fn nobody_watches(client: &Client) {
    let over = async {
        loop {
            let told = begin(client, "GET", "/metrics", &Value::Null).await.unwrap();
            let told = told.into_body().collect().await.unwrap().to_bytes();
            let mut lines = std::str::from_utf8(&told).unwrap().lines();
            let is = |line: &&str| {
                line.starts_with("apiserver_longrunning_requests{verb=\"WATCH\"")
                    && line.contains("resource=\"configmaps\"")
            };
            if lines.find(is).is_some_and(|line| line.ends_with(" 0")) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, over).await.expect("watches end with their connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_long_lists_at_once_share_what_they_show() {
    const ITEMS: &[u8] = b"\"items\":[";
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    kube_fill::fill(&Location::Embedded(data.join("store")), OBJECTS, 1024).await;
    let server = Server::start(&data, &[]);
    let client = server.client().await;
    let path = format!("/api/v1/namespaces/{}/configmaps", kube_fill::NAMESPACE);
    // The peak so far was that of its start (proc_pid_clear_refs(5)).
    std::fs::write(format!("/proc/{}/clear_refs", server.child.id()), "5").unwrap();
    let before = occupies(&server, "VmHWM");
    let mut lists = Vec::new();
    for _ in 0..LISTS {
        let client = server.client().await;
        let response = begin(&client, "GET", &path, &Value::Null).await.unwrap();
        assert_eq!(response.status(), 200);
        lists.push((client, response.into_body()));
    }
    // They are under way, and nobody reads them yet.
    let (code, _) = ask(&client, "GET", &format!("{path}/m00000"), &Value::Null).await.unwrap();
    assert_eq!(code, 200, "others read meanwhile");
    let (code, _) = ask(&client, "DELETE", &format!("{path}/m00001"), &Value::Null).await.unwrap();
    assert_eq!(code, 200, "others write meanwhile");

    let (_client, first) = lists.pop().unwrap();
    let first = timeout(PATIENCE, first.collect()).await.expect("in time").unwrap().to_bytes();
    let list: Value = serde_json::from_slice(&first).unwrap();
    let names = list["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]);
    let expected = (0..OBJECTS).map(|number| json!(kube_fill::name(number)));
    assert!(names.eq(expected.collect::<Vec<_>>().iter()), "all, in order, as they were");
    let at = first.windows(ITEMS.len()).position(|part| part == ITEMS).unwrap();
    let expected = first.slice(at..);
    let same = lists.into_iter().map(|(_client, mut body)| {
        let expected = expected.clone();
        async move {
            let (mut head, mut at) = (Vec::new(), None);
            while let Some(frame) = timeout(PATIENCE, body.frame()).await.expect("in time") {
                let mut part = frame.unwrap().into_data().expect("no trailers");
                let from = at.unwrap_or_else(|| {
                    head.extend_from_slice(&part);
                    let begins = head.windows(ITEMS.len()).position(|part| part == ITEMS);
                    part = head.split_off(begins.expect("the head is short")).into();
                    0
                });
                assert!(expected[from..].starts_with(&part), "it is another from {from} on");
                at = Some(from + part.len());
            }
            assert_eq!(at, Some(expected.len()));
        }
    });
    futures_util::future::join_all(same).await;
    let most = occupies(&server, "VmHWM");
    println!("{LISTS} lists of {} KiB: {before} KiB before, {most} at most", first.len() >> 10);
    assert!(most - before < LISTS_KIB, "they take {} KiB", most - before);
}
