//! A controller makes a copy of each source, and a note of it elsewhere that no garbage collector removes; whatever
//! happens to the server, to the controller and to the copies, that is how it ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::watcher;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::way::{Server, Way};
use crate::{PATIENCE, PAUSE, Patient, change, create, delete, listed, map};

const SOURCES: usize = 30;
const FINALIZER: &str = "test.orlop.dev/note";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_converges_whatever_is_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let way = Way::open().await;
    let mut server = Server::start(&folder.path().join("data"));
    way.leads_to(Some(server.address));
    let client = server.client(way.address).await;
    let namespace = serde_json::from_value(json!({"metadata": {"name": "notes"}})).unwrap();
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    let maps = &crate::maps(&client);
    let some = |numbers: std::ops::Range<usize>| numbers.map(|i| format!("s{i}"));

    let first = run(&client);
    create(maps, "source", some(0..SOURCES)).await;
    converges(&client).await;

    // It is in the middle of this when the server dies.
    change(maps, some(0..SOURCES), "second").await;
    server.again();
    way.leads_to(Some(server.address));
    converges(&client).await;

    delete(maps, (0..5).map(|i| format!("s{i}-copy"))).await;
    delete(maps, some(10..15)).await;
    converges(&client).await;
    let sources = listed(maps, "source").await;
    assert_eq!(sources.len(), SOURCES - 5, "their finalizers let them go");
    assert!(sources.values().all(|(_, text)| text == "second"));

    // And while there is none, nothing is lost.
    first.abort();
    first.await.unwrap_err();
    change(maps, some(20..25), "third").await;
    delete(maps, some(25..30)).await;
    let sources = listed(maps, "source").await;
    assert_eq!(sources.len(), SOURCES - 5, "they wait for the controller");
    server.again();
    way.leads_to(Some(server.address));
    let second = run(&client);
    converges(&client).await;
    assert_eq!(listed(maps, "source").await.len(), SOURCES - 10);
    second.abort();
}

fn notes(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "notes")
}

fn run(client: &Client) -> JoinHandle<()> {
    let maps = crate::maps(client);
    let of = |role| watcher::Config::default().labels(role);
    let controller = Controller::new(maps.clone(), of("role=source"))
        .owns(maps, of("role=copy"))
        .trigger_backoff(Patient);
    let again = |_, _: &finalizer::Error<kube::Error>, _| Action::requeue(PAUSE);
    let done = controller.run(reconcile, again, Arc::new(client.clone()));
    // What fails is done again.
    tokio::spawn(done.for_each(|_| async {}))
}

async fn reconcile(
    source: Arc<ConfigMap>,
    client: Arc<Client>,
) -> Result<Action, finalizer::Error<kube::Error>> {
    let maps = crate::maps(&client);
    finalizer(&maps, FINALIZER, source, |event| async {
        match event {
            finalizer::Event::Apply(source) => apply(&client, &source).await?,
            finalizer::Event::Cleanup(source) => {
                let gone =
                    notes(&client).delete(&source.name_any(), &DeleteParams::default()).await;
                gone.map(drop).or_else(unless(404))?;
            }
        }
        Ok(Action::await_change())
    })
    .await
}

async fn apply(client: &Client, source: &ConfigMap) -> Result<(), kube::Error> {
    let (name, maps) = (source.name_any(), crate::maps(client));
    let text = source.data.as_ref().and_then(|data| data.get("k")).cloned().unwrap_or_default();
    let note = notes(client).create(&PostParams::default(), &map(&name, "note", "noted")).await;
    note.map(drop).or_else(unless(409))?;
    let mut wanted = map(&format!("{name}-copy"), "copy", &text);
    wanted.metadata.owner_references = Some(vec![source.controller_owner_ref(&()).unwrap()]);
    match maps.get_opt(&wanted.name_any()).await? {
        None => drop(maps.create(&PostParams::default(), &wanted).await?),
        Some(copy) if copy.data != wanted.data => {
            wanted.metadata.resource_version = copy.resource_version();
            maps.replace(&wanted.name_any(), &PostParams::default(), &wanted).await?;
        }
        Some(_) => {}
    }
    Ok(())
}

fn unless(code: u16) -> impl Fn(kube::Error) -> Result<(), kube::Error> {
    move |error| match error {
        kube::Error::Api(status) if status.code == code => Ok(()),
        error => Err(error),
    }
}

/// Waits until each source has its copy and its note, and nothing else has.
async fn converges(client: &Client) {
    let maps = crate::maps(client);
    let state = || async {
        let sources = listed(&maps, "source").await;
        let wanted: BTreeSet<_> = sources
            .iter()
            .map(|(name, (_, text))| (format!("{name}-copy"), text.clone()))
            .collect();
        let copies = listed(&maps, "copy").await;
        let copies: BTreeSet<_> =
            copies.into_iter().map(|(name, (_, text))| (name, text)).collect();
        let noted = listed(&notes(client), "note").await;
        let ending = maps.list(&Default::default()).await.unwrap();
        let ending = ending.iter().filter(|map| map.meta().deletion_timestamp.is_some()).count();
        (wanted, copies, sources.into_keys().eq(noted.into_keys()), ending)
    };
    let same = async {
        loop {
            let (wanted, copies, noted, ending) = state().await;
            if wanted == copies && noted && ending == 0 {
                return;
            }
            sleep(PAUSE).await;
        }
    };
    if timeout(PATIENCE, same).await.is_err() {
        panic!("it does not converge: {:?}", state().await);
    }
}
