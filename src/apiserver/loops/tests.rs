//! The loops on the registry itself, over a store on the disk.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use orlop_rt::CancellationToken;
use orlop_store::{Durability, Limits, Location, Store};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::kubernetes::Server;
use super::{Mode, Settings};
use crate::admission::Admission;
use crate::authz::{Authorizers, Rbac};
use crate::gates::Behind;
use crate::object::{Object, User, at, items, text};
use crate::registry::{How, Registry, Target, Writer};
use crate::resources::{RESOURCES, Resource};
use crate::storage::Storage;
use crate::storage::cache::Selection;
use crate::strategy::DeleteOptions;
use crate::strategy::service_ip::{NODE_PORTS, Ranges};

/// Longer than anything takes here, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A registry and its loops.
struct Cluster {
    registry: Registry,
    loops: Option<(CancellationToken, JoinHandle<()>)>,
    shutdown: CancellationToken,
    user: User,
    _folder: TempDir,
}

fn resource(plural: &str) -> &'static Resource {
    RESOURCES.iter().find(|known| known.plural == plural).expect("it is served")
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

impl Cluster {
    /// With the namespaces every cluster has, and `a`.
    async fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let location = Location::Embedded(folder.path().join("store"));
        let limits = Limits { durability: Durability::Relaxed, ..Limits::default() };
        let store = Store::open(&location, None, limits).await.expect("a store");
        let shutdown = CancellationToken::new();
        let media = Storage::media(&location);
        let storage = Storage::open(store, media, Box::new([]), Arc::default(), &shutdown)
            .await
            .expect("storage");
        let objects = Arc::clone(storage.cache());
        let authorizers = Authorizers(vec![Arc::new(Rbac::default())]);
        let admission = Admission::new(
            objects,
            Arc::new(Behind(storage.clone())),
            Arc::new(authorizers),
            Arc::default(),
        );
        let ranges =
            Ranges { addresses: vec![(Ipv4Addr::new(10, 96, 0, 0).into(), 12)], ports: NODE_PORTS };
        let registry = Registry::new(storage, vec![Box::new(admission)], ranges);
        let user = User::apiserver();
        let mut this = Self { registry, loops: None, shutdown, user, _folder: folder };
        for name in ["default", "kube-system", "a"] {
            this.create("namespaces", "", json!({"metadata": {"name": name}})).await;
        }
        this.start();
        this
    }

    fn start(&mut self) {
        let settings = Settings {
            mode: Mode::Auto,
            server: Server {
                name: "one".to_owned(),
                address: "10.0.0.1".parse().expect("an address"),
                port: 6443,
                service: "10.96.0.1".parse().expect("an address"),
                shared: false,
            },
            authority: "PEM".to_owned(),
        };
        let shutdown = self.shutdown.child_token();
        let running = tokio::spawn(super::run(self.registry.clone(), settings, shutdown.clone()));
        self.loops = Some((shutdown, running));
    }

    async fn stop(&mut self) {
        if let Some((shutdown, running)) = self.loops.take() {
            shutdown.cancel();
            running.await.expect("the loops end well");
        }
    }

    async fn create(&self, plural: &str, namespace: &str, value: Value) -> Object {
        let resource = resource(plural);
        let target = Target::new(resource, namespace, "");
        let created = self.registry.create(Writer::new(&self.user), target, object(value)).await;
        created.unwrap_or_else(|status| panic!("{}", status.message)).object(resource)
    }

    async fn delete(&self, plural: &str, namespace: &str, name: &str, policy: &str) {
        let target = Target::new(resource(plural), namespace, name);
        let options = DeleteOptions {
            propagation_policy: Some(policy.to_owned()),
            ..DeleteOptions::default()
        };
        let deleted = self.registry.delete(Writer::new(&self.user), target, &options).await;
        deleted.unwrap_or_else(|status| panic!("{}", status.message));
    }

    fn found(&self, plural: &str, namespace: &str, name: &str) -> Option<Object> {
        let cache = self.registry.storage().cache();
        cache.entry(resource(plural), namespace, name).map(|entry| entry.object())
    }

    /// Waits until it is so.
    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let mut follow = self.registry.storage().cache().follow();
        let wait = async {
            loop {
                follow.mark_unchanged();
                if holds() {
                    return;
                }
                follow.changed().await.expect("the cache is there");
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} is waited for"));
    }

    async fn close(mut self) {
        self.stop().await;
        self.shutdown.cancel();
        self.registry.storage().store().close().await;
    }

    /// A deployment with two sets of two pods.
    async fn chain(&self) {
        let owned = |name: String, owner: &Object, kind: &str, spec: Value| {
            json!({"metadata": {"name": name, "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": kind, "controller": true, "blockOwnerDeletion": true,
                "name": text(owner, "/metadata/name"), "uid": text(owner, "/metadata/uid"),
            }]}, "spec": spec})
        };
        let template = json!({
            "metadata": {"labels": {"app": "d"}},
            "spec": {"containers": [{"name": "c", "image": "example.org/c:1"}]},
        });
        let spec = json!({"selector": {"matchLabels": {"app": "d"}}, "template": template});
        let deployment = json!({"metadata": {"name": "d"}, "spec": spec});
        let deployment = self.create("deployments", "a", deployment).await;
        for number in 1..3 {
            let set = owned(format!("r{number}"), &deployment, "Deployment", spec.clone());
            let set = self.create("replicasets", "a", set).await;
            for letter in ["p", "q"] {
                let name = format!("r{number}{letter}");
                let pod = owned(name, &set, "ReplicaSet", template["spec"].clone());
                self.create("pods", "a", pod).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_with_a_thousand_objects_goes_though_the_loops_are_restarted() {
    let mut cluster = Cluster::new().await;
    cluster
        .until("an account", || cluster.found("serviceaccounts", "a", "default").is_some())
        .await;
    cluster
        .until("the service", || {
            cluster.found("endpoints", "default", "kubernetes").is_some()
                && cluster.found("endpointslices", "default", "kubernetes").is_some()
                && cluster.found("services", "default", "kubernetes").is_some()
        })
        .await;
    let mut writers = JoinSet::new();
    for number in 0..1000 {
        let (registry, user) = (cluster.registry.clone(), cluster.user.clone());
        writers.spawn(async move {
            let plural = ["configmaps", "secrets", "endpoints", "serviceaccounts"][number % 4];
            let value = json!({"metadata": {"name": format!("x{number}")}});
            let target = Target::new(resource(plural), "a", "");
            registry.create(Writer::new(&user), target, object(value)).await.map(drop)
        });
    }
    for written in writers.join_all().await {
        written.expect("there is room");
    }
    let count = || {
        let cache = cluster.registry.storage().cache();
        let all = RESOURCES.iter().filter(|resource| resource.namespaced && resource.is_stored());
        all.map(|resource| cache.select(resource, &Selection::all("a"), 0).entries.len())
            .sum::<usize>()
    };
    cluster.until("all of them", || count() >= 1002).await;
    cluster.delete("namespaces", "", "a", "Background").await;
    cluster.until("some gone", || count() < 900).await;
    cluster.stop().await;
    cluster.start();
    cluster.until("it is gone", || cluster.found("namespaces", "", "a").is_none()).await;
    let count = {
        let cache = cluster.registry.storage().cache();
        let all = RESOURCES.iter().filter(|resource| resource.namespaced && resource.is_stored());
        all.map(|resource| cache.select(resource, &Selection::all("a"), 0).entries.len())
            .sum::<usize>()
    };
    assert_eq!(count, 0);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owned_follows_its_owner_in_each_of_the_ways_there_are() {
    let cluster = Cluster::new().await;
    cluster
        .until("an account", || cluster.found("serviceaccounts", "a", "default").is_some())
        .await;
    let left = |plural: &str| {
        let cache = cluster.registry.storage().cache();
        cache.select(resource(plural), &Selection::all("a"), 0).entries.len()
    };
    for policy in ["Background", "Foreground"] {
        cluster.chain().await;
        cluster.delete("deployments", "a", "d", policy).await;
        cluster
            .until(policy, || left("pods") + left("replicasets") + left("deployments") == 0)
            .await;
    }
    cluster.chain().await;
    cluster.until("all of it", || left("pods") == 4).await;
    cluster.delete("deployments", "a", "d", "Orphan").await;
    cluster.until("it is gone", || left("deployments") == 0).await;
    assert_eq!((left("replicasets"), left("pods")), (2, 4));
    let set = cluster.found("replicasets", "a", "r1").expect("it stays");
    assert_eq!(at(&set, "/metadata/ownerReferences"), None);
    let pod = cluster.found("pods", "a", "r1p").expect("it stays");
    assert_eq!(items(&pod, "/metadata/ownerReferences").count(), 1);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_holds_and_gives_back_what_goes() {
    let cluster = Cluster::new().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "3"}}});
    cluster.create("resourcequotas", "a", quota).await;
    let used = || {
        let quota = cluster.found("resourcequotas", "a", "q")?;
        Some(text(&quota, "/status/used/configmaps").to_owned())
    };
    // The authority of the namespace is one of them.
    cluster.until("a count", || used().as_deref() == Some("1")).await;
    for name in ["x", "y"] {
        cluster.create("configmaps", "a", json!({"metadata": {"name": name}})).await;
    }
    let target = Target::new(resource("configmaps"), "a", "");
    let more = object(json!({"metadata": {"name": "z"}}));
    let refused = cluster.registry.create(Writer::new(&cluster.user), target, more).await;
    assert_eq!(
        refused.expect_err("nothing is left").message,
        "configmaps \"z\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=3, limited: configmaps=3"
    );
    // The cache may be behind what was charged.
    cluster.until("all of it", || used().as_deref() == Some("3")).await;
    cluster.delete("configmaps", "a", "x", "Background").await;
    cluster.until("it is given back", || used().as_deref() == Some("2")).await;
    cluster.create("configmaps", "a", json!({"metadata": {"name": "z"}})).await;
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loops_rest_while_a_manager_holds_its_lease() {
    let mut cluster = Cluster::new().await;
    cluster
        .until("an account", || cluster.found("serviceaccounts", "a", "default").is_some())
        .await;
    let lease = |holder: &str| {
        json!({
            "metadata": {"name": "kube-controller-manager"},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 3600, "renewTime": "2026-01-01T00:00:00.000000Z"},
        })
    };
    cluster.stop().await;
    let created = cluster.create("leases", "kube-system", lease("m")).await;
    cluster
        .until("the lease", || {
            cluster.found("leases", "kube-system", "kube-controller-manager").is_some()
        })
        .await;
    cluster.start();
    cluster.create("namespaces", "", json!({"metadata": {"name": "b"}})).await;
    // The Service is not for the manager to keep: when it is whole, the loops have had their time.
    cluster.delete("endpoints", "default", "kubernetes", "Background").await;
    cluster
        .until("it is back", || cluster.found("endpoints", "default", "kubernetes").is_some())
        .await;
    assert_eq!(cluster.found("serviceaccounts", "b", "default"), None);
    let target = Target::new(resource("leases"), "kube-system", "kube-controller-manager");
    let given_back = |mut current: Object| {
        let revision = text(&created, "/metadata/resourceVersion");
        assert_eq!(text(&current, "/metadata/resourceVersion"), revision);
        current.insert("spec".to_owned(), json!({"holderIdentity": "", "leaseDurationSeconds": 1}));
        Ok(current)
    };
    let writer = Writer::new(&cluster.user);
    let done = cluster.registry.update(writer, target, How::Put, false, given_back).await;
    done.expect("it is given back");
    cluster
        .until("an account", || cluster.found("serviceaccounts", "b", "default").is_some())
        .await;
    cluster.close().await;
}
