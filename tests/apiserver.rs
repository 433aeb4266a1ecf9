//! What must hold of the API server when it is killed and when its disk is full: what was acknowledged is there, and
//! nothing else goes wrong.

#![expect(clippy::unwrap_used, reason = "tests")]

mod kube_server;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use kube_server::{MAPS, Server, ask, config_map};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let acknowledged: Arc<Mutex<HashSet<String>>> = Arc::default();
    for round in 0..3 {
        let mut server = Server::start(&data, &[]);
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
    let server = Server::start(&data, &[]);
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
    let server = Server::start(&data, &[]);
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
