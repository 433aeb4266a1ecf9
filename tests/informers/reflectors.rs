//! A reflector has what the server has, in either way of listing: also after what it missed is history, read from where
//! it was, and after that history is gone, read anew.

use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::runtime::reflector::{self, Store, reflector};
use kube::runtime::watcher::{self, Event, watcher};
use orlop_store::{Limits, Location};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::way::{Server, Way};
use crate::{PATIENCE, PAUSE, change, create, delete, listed, maps, told};

const OBJECTS: usize = 500;
const ROLE: &str = "followed";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reflector_that_lists_and_watches_misses_nothing() {
    follow(watcher::Config::default().page_size(100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reflector_that_streams_its_list_misses_nothing() {
    follow(watcher::Config::default().streaming_lists()).await;
}

/// What a reflector was told.
#[derive(Debug, Default)]
struct Told {
    /// How often it began anew.
    lists: usize,
    errors: Vec<String>,
    /// Revisions of changes that came behind a later one, or twice.
    disorder: Vec<(u64, u64)>,
    newest: u64,
}

impl Told {
    fn take(&mut self, event: &watcher::Result<Event<ConfigMap>>) {
        let revision = |map: &ConfigMap| map.resource_version().unwrap().parse::<u64>().unwrap();
        match event {
            Ok(Event::Init) => (self.lists, self.newest) = (self.lists + 1, 0),
            Ok(Event::InitApply(map)) => self.newest = self.newest.max(revision(map)),
            Ok(Event::InitDone) => {}
            Ok(Event::Apply(map) | Event::Delete(map)) => {
                let revision = revision(map);
                if revision <= self.newest {
                    self.disorder.push((self.newest, revision));
                }
                self.newest = revision;
            }
            Err(error) => self.errors.push(format!("{error:?}")),
        }
    }
}

async fn follow(config: watcher::Config) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let way = Way::open().await;
    let mut server = Server::start(&data);
    way.leads_to(Some(server.address));
    let client = server.client(way.address).await;
    let maps = &maps(&client);
    let some =
        |round: &'static str, from: usize| (from..from + 20).map(move |i| format!("{round}{i}"));
    create(maps, ROLE, (0..OBJECTS).map(|i| format!("a{i}"))).await;

    let (store, writer) = reflector::store();
    let (told, (count, mut events)) = (Arc::<Mutex<Told>>::default(), watch::channel(0_u64));
    let mut stream =
        reflector(writer, watcher(maps.clone(), config.labels(&format!("role={ROLE}")))).boxed();
    let tell = Arc::clone(&told);
    let following = tokio::spawn(async move {
        while let Some(event) = stream.next().await {
            tell.lock().unwrap().take(&event);
            count.send_modify(|count| *count += 1);
            if event.is_err() {
                sleep(PAUSE).await;
            }
        }
    });
    catches_up(&store, maps, &mut events, &told).await;
    assert_eq!(store.len(), OBJECTS);

    // While a client is connected, and by a server that starts again: no list is needed.
    change(maps, some("a", 0), "second").await;
    server.again();
    way.leads_to(Some(server.address));
    delete(maps, some("a", 20)).await;
    create(maps, ROLE, some("b", 0)).await;
    catches_up(&store, maps, &mut events, &told).await;
    assert_eq!(told.lock().unwrap().lists, 1, "it went on from where it was: {told:?}");

    // Behind its back, and then forgotten.
    way.leads_to(None);
    server.again();
    let straight = &crate::maps(&server.client(server.address).await);
    change(straight, some("a", 40), "third").await;
    delete(straight, some("a", 60)).await;
    create(straight, ROLE, some("c", 0)).await;
    server.kill();
    let location = Location::Embedded(data.join("store"));
    let closed = orlop_store::Store::open(&location, None, Limits::default()).await.unwrap();
    closed.compact(closed.revision().await.unwrap()).await.unwrap();
    closed.close().await;
    drop(closed);
    server = Server::start(&data);
    way.leads_to(Some(server.address));
    catches_up(&store, maps, &mut events, &told).await;

    following.abort();
    let told = told.lock().unwrap();
    assert_eq!(told.lists, 2, "what it missed was forgotten: {:?}", told.errors);
    let expired = told.errors.iter().filter(|error| error.contains("410")).count();
    assert_eq!(expired, 1, "{:?}", told.errors);
    assert_eq!(told.disorder, [], "changes come once and in order");
}

/// Waits until the store is what the server has.
async fn catches_up(
    store: &Store<ConfigMap>,
    maps: &kube::Api<ConfigMap>,
    events: &mut watch::Receiver<u64>,
    told: &Mutex<Told>,
) {
    let expected = listed(maps, ROLE).await;
    let has = || store.state().iter().map(|map| self::told(map)).collect();
    let same = async {
        while expected != has() {
            events.changed().await.unwrap();
        }
    };
    if timeout(PATIENCE, same).await.is_err() {
        panic!("it has {} objects, the server {}: {told:?}", store.len(), expected.len());
    }
}
