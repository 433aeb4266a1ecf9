//! The runtime of the `kube` crate as a client of the API server (spec/kube-api §7.2, §7.3): reflectors, controllers with
//! finalizers and leaders go on, and lose nothing, when the server is killed, when it starts again, and when it has
//! forgotten what they missed.
//!
//! The server is the real one: `ORLOP`, or what a debug build of the workspace left. Each test has its own, and its clients
//! reach it over a [`way`] that stays where it is when the server is started again elsewhere.

#![expect(clippy::unwrap_used, reason = "tests")]

mod controller;
mod leaders;
mod reflectors;
mod way;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::utils::Backoff;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

/// Nothing here takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long a client waits before it tries again.
const PAUSE: Duration = Duration::from_millis(50);
/// Requests of a client at a time.
const AT_ONCE: usize = 32;

fn binary() -> PathBuf {
    let built =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/x86_64-unknown-linux-gnu/debug/orlop");
    let path = std::env::var_os("ORLOP").map_or_else(|| built.into(), PathBuf::from);
    assert!(
        path.exists(),
        "no {}: `make integration` builds it and says where it is",
        path.display()
    );
    path
}

fn maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "default")
}

fn map(name: &str, role: &str, text: &str) -> ConfigMap {
    let map = json!({"metadata": {"name": name, "labels": {"role": role}}, "data": {"k": text}});
    serde_json::from_value(map).unwrap()
}

/// Creates those of a role.
async fn create(maps: &Api<ConfigMap>, role: &str, names: impl Iterator<Item = String>) {
    let made = stream::iter(names).map(|name| async move {
        maps.create(&PostParams::default(), &map(&name, role, "first")).await.unwrap();
    });
    made.buffer_unordered(AT_ONCE).collect().await
}

async fn change(maps: &Api<ConfigMap>, names: impl Iterator<Item = String>, text: &str) {
    let patch = &Patch::Merge(json!({"data": {"k": text}}));
    let changed = stream::iter(names).map(|name| async move {
        maps.patch(&name, &PatchParams::default(), patch).await.unwrap();
    });
    changed.buffer_unordered(AT_ONCE).collect().await
}

async fn delete(maps: &Api<ConfigMap>, names: impl Iterator<Item = String>) {
    let deleted = stream::iter(names).map(|name| async move {
        maps.delete(&name, &DeleteParams::default()).await.unwrap();
    });
    deleted.buffer_unordered(AT_ONCE).collect().await
}

/// What the server has of a role: the revision and the text of each.
async fn listed(maps: &Api<ConfigMap>, role: &str) -> BTreeMap<String, (String, String)> {
    let list = maps.list(&ListParams::default().labels(&format!("role={role}"))).await.unwrap();
    list.iter().map(told).collect()
}

fn told(map: &ConfigMap) -> (String, (String, String)) {
    let text = map.data.as_ref().and_then(|data| data.get("k")).cloned().unwrap_or_default();
    (map.name_any(), (map.resource_version().unwrap_or_default(), text))
}

/// Tries again after a [`PAUSE`], always.
struct Patient;

impl Iterator for Patient {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(PAUSE)
    }
}

impl Backoff for Patient {
    fn reset(&mut self) {}
}
