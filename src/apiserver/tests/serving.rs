//! The server as its clients see it: over TLS, by bytes.

mod client;

use std::time::Duration;

use client::Served;
use serde_json::{Value, json};

fn config_map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_lives_and_every_write_is_a_revision() {
    let served = Served::start().await;
    let client = served.client().await;
    let made = client.post(MAPS, &config_map("a", &json!({"k": "1"}))).await;
    assert_eq!(made.code, 201, "{}", made.text());
    let first = made.revision();
    let again = client.post(MAPS, &config_map("a", &json!({}))).await;
    assert_eq!((again.code, again.reason()), (409, "AlreadyExists".to_owned()));

    let mut object = client.get(&format!("{MAPS}/a")).await.json();
    assert_eq!(object["metadata"]["resourceVersion"], first.to_string());
    object["data"]["k"] = "2".into();
    let put = client.put(&format!("{MAPS}/a"), &object).await;
    assert_eq!(put.code, 200, "{}", put.text());
    assert!(put.revision() > first);
    let stale = client.put(&format!("{MAPS}/a"), &object).await;
    assert_eq!((stale.code, stale.reason()), (409, "Conflict".to_owned()));

    let same = client.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"k": "2"}})).await;
    assert_eq!(same.revision(), put.revision(), "what changes nothing is no revision");
    let dry =
        client.patch(&format!("{MAPS}/a?dryRun=All"), "merge", &json!({"data": {"k": "3"}})).await;
    assert_eq!(dry.json()["data"]["k"], "3");
    assert_eq!(client.get(&format!("{MAPS}/a")).await.json()["data"]["k"], "2");

    let steps = json!([{"op": "test", "path": "/data/k", "value": "no"}]);
    let failed = client.patch(&format!("{MAPS}/a"), "json", &steps).await;
    assert_eq!(failed.code, 422, "{}", failed.text());
    let gone = client.delete(&format!("{MAPS}/a"), &json!({})).await;
    assert_eq!(gone.json()["status"], "Success");
    assert_eq!(client.get(&format!("{MAPS}/a")).await.code, 404);
    assert_eq!(client.delete(&format!("{MAPS}/a"), &json!({})).await.code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_of_one_moment() {
    let served = Served::start().await;
    let client = served.client().await;
    for index in 0..7 {
        client.post(MAPS, &config_map(&format!("m{index}"), &json!({}))).await.expect(201);
    }
    let page = client.get(&format!("{MAPS}?limit=3&labelSelector=")).await.json();
    let (revision, token) =
        (page["metadata"]["resourceVersion"].clone(), page["metadata"]["continue"].clone());
    // `kube-root-ca.crt` is there, too, or comes later.
    assert_eq!(page["items"].as_array().map(Vec::len), Some(3));
    assert!(page["metadata"]["remainingItemCount"].as_u64() >= Some(4));
    client.delete(&format!("{MAPS}/m5"), &json!({})).await.expect(200);
    client.post(MAPS, &config_map("m55", &json!({}))).await.expect(201);
    let mut names = Vec::new();
    let mut token = token;
    while let Some(text) = token.as_str() {
        let page = client.get(&format!("{MAPS}?limit=2&continue={text}")).await.json();
        assert_eq!(page["metadata"]["resourceVersion"], revision);
        for item in page["items"].as_array().expect("a list") {
            names.push(item["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        }
        token = page["metadata"]["continue"].clone();
    }
    assert!(names.contains(&"m5".to_owned()), "it was there then: {names:?}");
    assert!(!names.contains(&"m55".to_owned()), "it came later: {names:?}");
    let broken = client.get(&format!("{MAPS}?limit=2&continue=x")).await;
    assert_eq!(broken.code, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_is_packed_in_every_form() {
    let served = Served::start().await;
    let client = served.client().await;
    let long = "x".repeat(200 << 10);
    client.post(MAPS, &config_map("long", &json!({"k": long}))).await.expect(201);
    for accept in [
        "application/json",
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
        "application/json;as=Table;v=v1;g=meta.k8s.io",
    ] {
        let headers = [("accept", accept), ("accept-encoding", "gzip")];
        let packed = client.send("GET", MAPS, &headers, Vec::new()).await.expect(200);
        let list = orlop_apiserver::encoding::unpacked(Some("gzip"), packed.bytes(), 3 << 20);
        let list = list.unwrap_or_else(|status| panic!("{accept}: {}", status.message));
        assert!(list.windows(4).any(|part| part == b"long"), "{accept}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_each_change_once_and_in_order() {
    let served = Served::start().await;
    let client = served.client().await;
    let list = client.get(&format!("{MAPS}?labelSelector=w")).await.json();
    let from = list["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned();
    let labelled = |name: &str, value: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"w": value}}})
    };
    client.post(MAPS, &labelled("a", "1")).await.expect(201);
    client.post(MAPS, &config_map("other", &json!({}))).await.expect(201);
    client.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"k": "1"}})).await.expect(200);
    let mut watch =
        client.watch(&format!("{MAPS}?watch=true&labelSelector=w&resourceVersion={from}")).await;
    // The past, then the present.
    assert_eq!(watch.next().await["type"], "ADDED");
    assert_eq!(watch.next().await["type"], "MODIFIED");
    let unlabel = json!({"metadata": {"labels": {"w": null}}});
    let left = client.patch(&format!("{MAPS}/a"), "merge", &unlabel).await;
    let event = watch.next().await;
    assert_eq!(event["type"], "DELETED", "it is no longer what was asked for");
    assert_eq!(event["object"]["metadata"]["labels"]["w"], "1", "as it was when it still was");
    assert_eq!(event["object"]["metadata"]["resourceVersion"], left.revision().to_string());
    client
        .patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"labels": {"w": "2"}}}))
        .await
        .expect(200);
    assert_eq!(watch.next().await["type"], "ADDED");
    client.delete(&format!("{MAPS}/a"), &json!({})).await.expect(200);
    let event = watch.next().await;
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["metadata"]["labels"]["w"], "2");
    assert_eq!(event["object"]["kind"], "ConfigMap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_list_says_when_it_has_told_what_there_is() {
    let served = Served::start().await;
    let client = served.client().await;
    client.post(MAPS, &config_map("a", &json!({}))).await.expect(201);
    let asked = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&fieldSelector=metadata.name%3Da";
    let mut watch = client.watch(&format!("{MAPS}?{asked}")).await;
    let first = watch.next().await;
    assert_eq!(
        (first["type"].as_str(), first["object"]["metadata"]["name"].as_str()),
        (Some("ADDED"), Some("a"))
    );
    let mark = watch.next().await;
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    client.delete(&format!("{MAPS}/a"), &json!({})).await.expect(200);
    assert_eq!(watch.next().await["type"], "DELETED");
    let wrong = client.get(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await;
    assert_eq!(wrong.code, 422);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_when_its_time_is_over_with_a_last_bookmark() {
    let served = Served::start().await;
    let client = served.client().await;
    let mut watch =
        client.watch(&format!("{MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=3&resourceVersion=0&fieldSelector=metadata.name%3Dnone")).await;
    assert_eq!(watch.next().await["type"], "BOOKMARK");
    assert!(watch.ended().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_taken_is_refused_and_costs_little() {
    let served = Served::start().await;
    let client = served.client().await;
    let large = vec![b' '; 3 << 20 | 1];
    let answer = client.send("POST", MAPS, &[("content-type", "application/json")], large).await;
    assert_eq!((answer.code, answer.reason()), (413, "RequestEntityTooLarge".to_owned()));
    let deep = format!("{}{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let answer = client.send("POST", MAPS, &[], deep.into_bytes()).await;
    assert_eq!(answer.code, 400, "{}", answer.text());
    let bomb = orlop_apiserver::encoding::gzip(&vec![b' '; 64 << 20]);
    let answer = client.send("POST", MAPS, &[("content-encoding", "gzip")], bomb).await;
    assert_eq!(answer.code, 413);
    let answer = client.send("POST", MAPS, &[("content-type", "text/html")], b"<p>".to_vec()).await;
    assert_eq!(answer.code, 415);
    let answer = client.send("POST", MAPS, &[], b"{\"kind\": \"\xff\"}".to_vec()).await;
    assert_eq!(answer.code, 400);
    let twice = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"1","a":"2"},"wrong":1}"#;
    let answer =
        client.send("POST", &format!("{MAPS}?fieldValidation=Strict"), &[], twice.to_vec()).await;
    assert_eq!(answer.code, 400);
    assert_eq!(
        answer.json()["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.a\", unknown field \"wrong\""
    );
    let selector = format!("{MAPS}?labelSelector={}", "a".repeat(60_000));
    let answer = client.get(&selector).await;
    assert!((400..500).contains(&answer.code), "{}", answer.code);
    let answer = client.get("/api/v1/namespaces/default/pods/x/log").await;
    assert_eq!((answer.code, answer.reason()), (501, "NotImplemented".to_owned()));
    // Nothing of that was stored, and the server goes on.
    let list = client.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dx")).await.json();
    assert_eq!(list["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_of_one_object_never_lose_an_increment() {
    let served = Served::start().await;
    served.client().await.post(MAPS, &config_map("n", &json!({"n": "0"}))).await.expect(201);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = served.client().await;
        writers.spawn(async move {
            let mut done = 0;
            while done < 25 {
                let mut object = client.get(&format!("{MAPS}/n")).await.json();
                let n: u64 =
                    object["data"]["n"].as_str().and_then(|n| n.parse().ok()).expect("a number");
                object["data"]["n"] = (n + 1).to_string().into();
                match client.put(&format!("{MAPS}/n"), &object).await.code {
                    200 => done += 1,
                    409 => {}
                    other => panic!("{other}"),
                }
            }
        });
    }
    writers.join_all().await;
    let object = served.client().await.get(&format!("{MAPS}/n")).await.json();
    assert_eq!(object["data"]["n"], "100");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_nothing_and_watches_go_on() {
    let mut served = Served::start().await;
    let client = served.client().await;
    let made = client.post(MAPS, &config_map("a", &json!({}))).await;
    client.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"k": "1"}})).await.expect(200);
    drop(client);
    served.restart().await;
    let client = served.client().await;
    assert_eq!(client.get(&format!("{MAPS}/a")).await.json()["data"]["k"], "1");
    let from = made.revision();
    let asked = format!("{MAPS}?watch=true&resourceVersion={from}&fieldSelector=metadata.name%3Da");
    let mut watch = client.watch(&asked).await;
    assert_eq!(
        watch.next().await["type"],
        "MODIFIED",
        "what happened before the restart is still known"
    );
    let mut old = client.watch(&format!("{MAPS}?watch=true&resourceVersion=99999999")).await;
    client.delete(&format!("{MAPS}/a"), &json!({})).await.expect(200);
    assert_eq!(watch.next().await["type"], "DELETED");
    let early = tokio::time::timeout(Duration::from_millis(200), old.next()).await;
    assert!(early.is_err(), "a watch from the future waits for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizers_and_grace_hold_objects_until_they_let_go() {
    let served = Served::start().await;
    let client = served.client().await;
    let mut held = config_map("held", &json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    client.post(MAPS, &held).await.expect(201);
    let marked = client.delete(&format!("{MAPS}/held"), &json!({})).await.json();
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    assert_eq!(client.patch(&format!("{MAPS}/held"), "merge", &more).await.code, 422);
    let none = json!({"metadata": {"finalizers": null}});
    client.patch(&format!("{MAPS}/held"), "merge", &none).await.expect(200);
    assert_eq!(client.get(&format!("{MAPS}/held")).await.code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_watched_listed_stored_and_admitted_is_counted() {
    const LIMITS: &str = "/api/v1/namespaces/default/limitranges";
    let served = Served::start().await;
    let client = served.client().await;
    let of = |name: &str| json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": name}, "spec": {"limits": []}});
    let mut watch = client.watch(&format!("{LIMITS}?watch=true&resourceVersion=0")).await;
    client.post(LIMITS, &of("a")).await.expect(201);
    client.post(LIMITS, &of("b")).await.expect(201);
    let labels = json!({"metadata": {"labels": {"l": "1"}}});
    client.patch(&format!("{LIMITS}/a"), "merge", &labels).await.expect(200);
    client.delete(&format!("{LIMITS}/a"), &json!({})).await.expect(200);
    client.post(LIMITS, &of("a")).await.expect(201);
    client.post("/api/v1/namespaces/nowhere/limitranges", &of("c")).await.expect(404);
    let mut bytes = 0;
    for kind in ["ADDED", "ADDED", "MODIFIED", "DELETED", "ADDED"] {
        let event = watch.next().await;
        assert_eq!(event["type"], kind);
        bytes += event.to_string().len() + 1;
    }
    let page = client.get(&format!("{LIMITS}?limit=1")).await.json();
    let token = page["metadata"]["continue"].as_str().expect("there is more");
    client.get(&format!("{LIMITS}?limit=1&continue={token}")).await.expect(200);
    client.get(&format!("{LIMITS}?resourceVersion=0")).await.expect(200);

    let told = client.get("/metrics").await.text();
    let value = |name: &str| {
        let of = told.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let values: Vec<f64> = of.map(|text| text.parse().expect("a number")).collect();
        assert!(values.len() <= 1, "{name}");
        values.first().copied()
    };
    let (group, kind) = ("group=\"\"", "resource=\"limitranges\"");
    let version = "version=\"v1\"";
    #[expect(clippy::cast_precision_loss, reason = "it is small")]
    for (name, expected) in [
        (format!("apiserver_watch_events_total{{{group},{version},{kind}}}"), 5.0),
        (format!("apiserver_watch_events_sizes_count{{{group},{version},{kind}}}"), 5.0),
        (format!("apiserver_watch_events_sizes_sum{{{group},{version},{kind}}}"), bytes as f64),
        (format!("apiserver_watch_cache_events_dispatched_total{{{group},{kind}}}"), 5.0),
        (format!("apiserver_cache_list_total{{{group},{kind}}}"), 2.0),
        (format!("apiserver_storage_list_total{{{group},{kind}}}"), 1.0),
    ] {
        assert_eq!(value(&name), Some(expected), "{name}");
    }
    for (operation, expected) in [("create", 3.0), ("update", 1.0), ("delete", 1.0), ("list", 1.0)]
    {
        let labels = format!("operation=\"{operation}\",type=\"limitranges\"");
        for name in ["etcd_requests_total", "etcd_request_duration_seconds_count"] {
            assert_eq!(value(&format!("{name}{{{labels}}}")), Some(expected), "{name} {labels}");
        }
        let sum = value(&format!("etcd_request_duration_seconds_sum{{{labels}}}"));
        assert!(sum.is_some_and(|seconds| seconds > 0.0), "{labels}: {sum:?}");
    }
    let admitted = |name: &str, operation: &str, rejected: bool, pass: &str| {
        let labels = format!(
            "name=\"{name}\",operation=\"{operation}\",rejected=\"{rejected}\",type=\"{pass}\""
        );
        let family = "apiserver_admission_controller_admission_duration_seconds_count";
        value(&format!("{family}{{{labels}}}"))
    };
    // The loops write, too.
    assert!(admitted("LimitRanger", "CREATE", false, "admit") >= Some(3.0));
    assert!(admitted("LimitRanger", "DELETE", false, "validate") >= Some(1.0));
    assert!(admitted("ResourceQuota", "UPDATE", false, "validate") >= Some(1.0));
    assert_eq!(admitted("NamespaceLifecycle", "CREATE", true, "admit"), Some(1.0));
}
