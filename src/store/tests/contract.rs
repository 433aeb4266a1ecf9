//! The contract, on both back ends: what is true of one is true of the other.
//!
//! Each generation of etcd that is there is asked: see [`etcd_server::programs`].

#![expect(clippy::unwrap_used, reason = "tests")]

mod etcd_server;

use std::collections::BTreeMap;
use std::time::Duration;

use orlop_store::{
    Compare, Done, Entry, Error, Event, Limits, Location, Op, Range, Revision, Store, Txn, Watch,
    snapshot,
};
use tempfile::TempDir;
use tokio::time::timeout;

/// Runs a test on an empty store of each kind.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let folder = tempfile::tempdir().unwrap();
                super::$name(super::embedded(&folder).await).await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                for program in super::etcd_server::programs() {
                    let server = super::etcd_server::Server::start(&program);
                    super::$name(super::store(&server).await).await;
                }
            })*
        }
    };
}

on_both! {
    a_key_is_created_once
    a_key_is_updated_and_removed_only_as_it_was_expected
    a_transaction_does_all_or_nothing
    what_cannot_be_a_request_is_refused
    a_range_is_paged_at_one_revision
    a_watch_tells_everything_in_order
    a_watch_tells_how_far_it_has_come
    what_is_compacted_is_refused_and_the_rest_is_there
    what_a_lease_holds_goes_with_it
    random_writes_leave_what_a_map_would_hold
    a_snapshot_fills_an_empty_store_of_either_kind
}

#[tokio::test]
async fn a_file_that_was_begun_and_cut_is_begun_anew_and_a_damaged_one_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("store.new"), "cut").unwrap();
    let store = embedded(&folder).await;
    store.create("/a", "", None).await.unwrap();
    let location = Location::Embedded(folder.path().join("store"));
    let twice = Store::open(&location, None, Limits::default()).await;
    assert!(matches!(twice, Err(Error::Open { .. })), "two of them would write over each other");
    let other = Location::Embedded(folder.path().join("other"));
    std::fs::write(folder.path().join("other"), "not a store").unwrap();
    let damaged = Store::open(&other, None, Limits::default()).await;
    assert!(matches!(damaged, Err(Error::Open { path, .. }) if path.ends_with("other")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything_and_a_watch_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(&folder).await;
    let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
    let first = store.create("/a", "1", Some(lease)).await.unwrap();
    let second = store.update("/a", "2", first, None).await.unwrap();
    store.close().await;
    assert!(matches!(store.create("/b", "", None).await, Err(Error::Unavailable { .. })));
    let store = embedded(&folder).await;
    let third = store.update("/a", "3", second, Some(lease)).await.unwrap();
    assert_eq!(third, second.next());
    let mut watch = store.watch(Range::key("/a"), first).await.unwrap();
    assert_eq!(take(&mut watch, 2).await[1].previous.as_ref().unwrap().value, "2");
    store.revoke(lease).await.unwrap();
    assert_eq!(store.get("/a", None).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_holds_up_nobody_and_misses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(&folder).await;
    let zero = store.revision().await.unwrap();
    let mut slow = store.watch(Range::prefix("/"), zero).await.unwrap();
    for number in 0..500 {
        store.create(format!("/{number}"), "", None).await.unwrap();
    }
    let events = take(&mut slow, 500).await;
    assert!(events.iter().enumerate().all(|(number, event)| event.key == format!("/{number}")));
    // One that comes back only after its history was compacted is told so.
    let mut slower = store.watch(Range::prefix("/"), zero).await.unwrap();
    let newest = store.revision().await.unwrap();
    store.compact(newest).await.unwrap();
    let told = timeout(PATIENCE, async {
        loop {
            if let Err(error) = slower.next().await {
                return error;
            }
        }
    });
    assert!(matches!(told.await.unwrap(), Error::Compacted { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_of_one_key_lose_no_update() {
    let folder = tempfile::tempdir().unwrap();
    let store = embedded(&folder).await;
    store.create("/n", "0", None).await.unwrap();
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..25 {
                    let mut entry = store.get("/n", None).await.unwrap().unwrap();
                    loop {
                        let number: u32 = str::from_utf8(&entry.value).unwrap().parse().unwrap();
                        match store
                            .update("/n", (number + 1).to_string(), entry.modified, None)
                            .await
                        {
                            Ok(_) => break,
                            Err(Error::Conflict { current: Some(current), .. }) => entry = *current,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.get("/n", None).await.unwrap().unwrap().value, "200");
}

async fn store(server: &etcd_server::Server) -> Store {
    let location = server.url().parse().unwrap();
    Store::open(&location, None, Limits::default()).await.unwrap()
}

async fn embedded(folder: &TempDir) -> Store {
    let location = Location::Embedded(folder.path().join("store"));
    Store::open(&location, None, Limits::default()).await.unwrap()
}

async fn a_key_is_created_once(store: Store) {
    let first = store.create("/a", "1", None).await.unwrap();
    assert!(
        matches!(store.create("/a", "2", None).await, Err(Error::Exists { key }) if key == "/a")
    );
    let entry = store.get("/a", None).await.unwrap().unwrap();
    assert_eq!(
        (&entry.value[..], entry.created, entry.modified, entry.version),
        (&b"1"[..], first, first, 1)
    );
    assert_eq!(store.revision().await.unwrap(), first, "what is refused is no write");
    assert_eq!(store.get("/b", None).await.unwrap(), None);
}

async fn a_key_is_updated_and_removed_only_as_it_was_expected(store: Store) {
    let first = store.create("/a", "1", None).await.unwrap();
    let second = store.update("/a", "2", first, None).await.unwrap();
    assert_eq!(second, first.next());
    let Err(Error::Conflict { current: Some(current), .. }) =
        store.update("/a", "3", first, None).await
    else {
        panic!("an update of what was changed");
    };
    assert_eq!((&current.value[..], current.version, current.created), (&b"2"[..], 2, first));
    assert!(matches!(
        store.delete("/a", first).await,
        Err(Error::Conflict { current: Some(_), .. })
    ));
    let (third, removed) = store.delete("/a", second).await.unwrap();
    assert_eq!((third, removed), (second.next(), *current));
    assert!(matches!(
        store.update("/a", "4", second, None).await,
        Err(Error::Conflict { current: None, .. })
    ));
    let again = store.create("/a", "5", None).await.unwrap();
    let entry = store.get("/a", None).await.unwrap().unwrap();
    assert_eq!((entry.created, entry.version), (again, 1), "another key of the same name");
}

async fn a_transaction_does_all_or_nothing(store: Store) {
    let one = store.create("/1", "x", None).await.unwrap();
    let two = store.create("/2", "x", None).await.unwrap();
    let txn = |expected| {
        Txn::when([
            Compare::Modified("/1".into(), expected),
            Compare::Version("/2".into(), 1),
            Compare::Created("/3".into(), Revision::NONE),
        ])
        .then([
            Op::Put { key: "/3".into(), value: "y".into(), lease: None },
            Op::Delete(Range::key("/2")),
            Op::Get(Range::prefix("/")),
        ])
        .or_else([Op::Get(Range::key("/1"))])
    };
    let refused = store.txn(txn(two)).await.unwrap();
    assert!(!refused.succeeded && refused.revision == two);
    assert!(matches!(&refused.results[..], [Done::Got(page)] if page.entries.len() == 1));
    let done = store.txn(txn(one)).await.unwrap();
    assert!(done.succeeded);
    assert_eq!(done.revision, two.next(), "one revision for all it wrote");
    let [Done::Put, Done::Deleted(removed), Done::Got(page)] = &done.results[..] else {
        panic!("{:?}", done.results);
    };
    assert_eq!(removed[0].key, "/2");
    let keys: Vec<_> = page.entries.iter().map(|entry| &entry.key[..]).collect();
    assert_eq!(keys, [b"/1", b"/3"], "each step sees those before it");
    assert_eq!(page.entries[1].modified, done.revision);
}

async fn what_cannot_be_a_request_is_refused(store: Store) {
    let put = |key: &str| Op::Put { key: key.to_owned().into(), value: "".into(), lease: None };
    for ops in [
        vec![put("")],
        vec![put("a"), put("a")],
        vec![put("a"), Op::Delete(Range::prefix("a"))],
        vec![put("a"); 129],
    ] {
        assert!(matches!(store.txn(Txn::default().then(ops)).await, Err(Error::Refused { .. })));
    }
    let huge = vec![0; 1 << 21];
    assert!(matches!(store.create("a", huge, None).await, Err(Error::TooLarge { .. })));
    assert!(matches!(
        store.range(Range::key("a").at(Revision(1000))).await,
        Err(Error::Future { asked: Revision(1000), .. })
    ));
    let lease = orlop_store::LeaseId(12345);
    assert!(
        matches!(store.create("a", "", Some(lease)).await, Err(Error::NoLease { lease: told }) if told == lease)
    );
    assert!(matches!(store.keep_alive(lease).await, Err(Error::NoLease { .. })));
    assert!(matches!(store.revoke(lease).await, Err(Error::NoLease { .. })));
    assert_eq!(store.get("a", None).await.unwrap(), None);
}

async fn a_range_is_paged_at_one_revision(store: Store) {
    for number in 0..10 {
        store.create(format!("/p/{number}"), "old", None).await.unwrap();
    }
    store.create("/q", "", None).await.unwrap();
    let at = store.revision().await.unwrap();
    let mut seen = Vec::new();
    let mut range = Range::prefix("/p/").limit(4).at(at);
    loop {
        let page = store.range(range.clone()).await.unwrap();
        seen.extend(page.entries);
        assert_eq!(page.remaining, 10 - seen.len() as u64);
        let Some(last) = seen.last().filter(|_| page.remaining > 0) else { break };
        range = range.after(&last.key);
        // What others do meanwhile is not in the pages.
        store.delete("/p/7", at_of(&store, "/p/7").await).await.ok();
        store.update("/p/9", "new", at_of(&store, "/p/9").await, None).await.unwrap();
        store.create(format!("/p/5{}", seen.len()), "new", None).await.unwrap();
    }
    let keys: Vec<_> =
        seen.iter().map(|entry| String::from_utf8_lossy(&entry.key).into_owned()).collect();
    assert_eq!(keys, (0..10).map(|number| format!("/p/{number}")).collect::<Vec<_>>());
    assert!(seen.iter().all(|entry| entry.value == "old"));
    let now = store.range(Range::prefix("/p/")).await.unwrap();
    assert!(now.revision > at && now.entries.len() == 11, "{}", now.entries.len());
    assert_eq!(store.range(Range::prefix("/none/")).await.unwrap().entries, []);
}

async fn at_of(store: &Store, key: &'static str) -> Revision {
    store.get(key, None).await.unwrap().map_or(Revision::NONE, |entry| entry.modified)
}

async fn a_watch_tells_everything_in_order(store: Store) {
    let zero = store.revision().await.unwrap();
    let first = store.create("/w/a", "1", None).await.unwrap();
    let mut early = store.watch(Range::prefix("/w/"), zero).await.unwrap();
    let mut late = store.watch(Range::prefix("/w/"), first).await.unwrap();
    let second = store.update("/w/a", "2", first, None).await.unwrap();
    store.create("/x", "not of the range", None).await.unwrap();
    let (third, removed) = store.delete("/w/a", second).await.unwrap();
    let events = take(&mut early, 3).await;
    let told: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event.revision,
                event.entry.as_ref().map(|entry| entry.value.clone()),
                event.previous.as_ref().map(|entry| entry.value.clone()),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (first, Some("1".into()), None),
            (second, Some("2".into()), Some("1".into())),
            (third, None, Some("2".into())),
        ]
    );
    assert_eq!(events[2].previous, Some(removed));
    assert_eq!(take(&mut late, 2).await, events[1..]);
    // One that starts where nothing is yet.
    let mut future = store.watch(Range::key("/w/b"), Revision(third.0 + 2)).await.unwrap();
    for value in ["1", "2", "3"] {
        store
            .txn(Txn::default().then([Op::Put {
                key: "/w/b".into(),
                value: value.into(),
                lease: None,
            }]))
            .await
            .unwrap();
    }
    assert_eq!(take(&mut future, 1).await[0].entry.as_ref().unwrap().value, "3");
}

async fn a_watch_tells_how_far_it_has_come(store: Store) {
    let zero = store.revision().await.unwrap();
    let mut watch = store.watch(Range::prefix("/w/"), zero).await.unwrap();
    if let Store::Etcd(etcd) = &store
        && !etcd.tells_progress()
    {
        let refused = watch.request_progress().await;
        return assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    }
    store.create("/w/a", "1", None).await.unwrap();
    let elsewhere = store.create("/x", "1", None).await.unwrap();
    let mut told = Vec::new();
    let mut upto = Revision::NONE;
    while upto < elsewhere {
        // etcd answers nothing while a watch is behind.
        watch.request_progress().await.unwrap();
        let batch = next(&mut watch).await;
        upto = batch.revision;
        told.extend(batch.events);
    }
    assert_eq!(told.len(), 1, "everything up to there was told");
}

async fn what_is_compacted_is_refused_and_the_rest_is_there(store: Store) {
    let first = store.create("/a", "1", None).await.unwrap();
    let second = store.update("/a", "2", first, None).await.unwrap();
    let third = store.update("/a", "3", second, None).await.unwrap();
    let gone = store.create("/gone", "", None).await.unwrap();
    let (fifth, _) = store.delete("/gone", gone).await.unwrap();
    store.compact(second).await.unwrap();
    assert!(matches!(store.compact(second).await, Err(Error::Compacted { .. })));
    assert!(matches!(store.compact(Revision(1000)).await, Err(Error::Future { .. })));
    assert!(
        matches!(store.get("/a", Some(first)).await, Err(Error::Compacted { asked, .. }) if asked == first)
    );
    assert_eq!(store.get("/a", Some(second)).await.unwrap().unwrap().value, "2");
    // The event after what was compacted still knows what was before.
    let mut watch = store.watch(Range::prefix("/"), second).await.unwrap();
    let event = &take(&mut watch, 1).await[0];
    assert_eq!((event.revision, &event.previous.as_ref().unwrap().value[..]), (third, &b"2"[..]));
    let before = async {
        let mut watch = store.watch(Range::prefix("/"), Revision(first.0 - 1)).await?;
        watch.next().await
    };
    let told = timeout(PATIENCE, before).await.unwrap();
    assert!(matches!(told, Err(Error::Compacted { .. })), "{told:?}");
    store.compact(fifth).await.unwrap();
    assert_eq!(store.range(Range::all()).await.unwrap().entries.len(), 1);
}

async fn what_a_lease_holds_goes_with_it(store: Store) {
    let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
    let other = store.grant(Duration::from_secs(3600)).await.unwrap();
    assert_ne!(lease, other);
    store.keep_alive(lease).await.unwrap();
    store.create("/l/1", "", Some(lease)).await.unwrap();
    let moved = store.create("/l/2", "", Some(lease)).await.unwrap();
    store.update("/l/2", "", moved, Some(other)).await.unwrap();
    let kept = store.create("/l/3", "", Some(lease)).await.unwrap();
    let before = store.update("/l/3", "", kept, None).await.unwrap();
    assert_eq!(store.get("/l/1", None).await.unwrap().unwrap().lease, Some(lease));
    store.revoke(lease).await.unwrap();
    assert!(matches!(store.keep_alive(lease).await, Err(Error::NoLease { .. })));
    let keys: Vec<_> = store
        .range(Range::prefix("/l/"))
        .await
        .unwrap()
        .entries
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    assert_eq!(keys, ["/l/2", "/l/3"]);
    let mut watch = store.watch(Range::prefix("/l/"), before).await.unwrap();
    let event = &take(&mut watch, 1).await[0];
    assert_eq!((&event.key[..], &event.entry), (&b"/l/1"[..], &None));
    // And by itself, when nobody keeps it alive.
    let short = store.grant(Duration::from_secs(1)).await.unwrap();
    let created = store.create("/l/4", "", Some(short)).await.unwrap();
    let mut watch = store.watch(Range::key("/l/4"), created).await.unwrap();
    assert_eq!(take(&mut watch, 1).await[0].entry, None);
}

async fn random_writes_leave_what_a_map_would_hold(store: Store) {
    let start = store.revision().await.unwrap();
    let mut watch = store.watch(Range::prefix("/m/"), start).await.unwrap();
    let mut model: BTreeMap<String, Entry> = BTreeMap::new();
    let mut states = vec![(start, model.clone())];
    let mut dice = 0x2545_f491_u32;
    let mut roll = |below: u32| {
        dice ^= dice << 13;
        dice ^= dice >> 17;
        dice ^= dice << 5;
        dice % below
    };
    for step in 0..300 {
        let key = format!("/m/{}", roll(12));
        let known = model.get(&key).cloned();
        let value = format!("v{step}");
        // Every third one expects something that is not so.
        let expected = if roll(3) == 0 {
            Revision(1)
        } else {
            known.as_ref().map_or(Revision::NONE, |entry| entry.modified)
        };
        let right = known.as_ref().map_or(Revision::NONE, |entry| entry.modified) == expected;
        let result = if roll(3) == 0 {
            store.delete(key.clone(), expected).await.map(|(revision, removed)| {
                assert_eq!(Some(removed), known);
                model.remove(&key);
                revision
            })
        } else {
            store.update(key.clone(), value.clone(), expected, None).await.inspect(|&modified| {
                let created = known.as_ref().map_or(modified, |entry| entry.created);
                let version = known.as_ref().map_or(1, |entry| entry.version + 1);
                model.insert(
                    key.clone(),
                    Entry {
                        key: key.clone().into(),
                        value: value.into(),
                        created,
                        modified,
                        version,
                        lease: None,
                    },
                );
            })
        };
        match result {
            Ok(revision) => {
                assert!(right && revision == states.last().unwrap().0.next());
                states.push((revision, model.clone()));
            }
            Err(Error::Conflict { current, .. }) => {
                // The removal of what is not there finds nothing to remove.
                assert!(!right || known.is_none());
                assert_eq!(current.map(|entry| *entry), known);
            }
            Err(error) => panic!("{error}"),
        }
    }
    for (revision, model) in states.iter().step_by(7) {
        let page = store.range(Range::prefix("/m/").at(*revision)).await.unwrap();
        assert_eq!(page.entries, model.values().cloned().collect::<Vec<_>>(), "at {revision}");
    }
    // The watch makes the same of the first state.
    let mut seen: BTreeMap<String, Entry> = BTreeMap::new();
    for (event, (revision, model)) in
        take(&mut watch, states.len() - 1).await.into_iter().zip(&states[1..])
    {
        assert_eq!(event.revision, *revision);
        let key = String::from_utf8(event.key.to_vec()).unwrap();
        assert_eq!(seen.get(&key).cloned(), event.previous);
        match event.entry {
            Some(entry) => seen.insert(key, entry),
            None => seen.remove(&key),
        };
        assert_eq!(&seen, model);
    }
}

async fn a_snapshot_fills_an_empty_store_of_either_kind(store: Store) {
    for number in 0..250 {
        store.create(format!("/s/{number:03}"), format!("{number}"), None).await.unwrap();
    }
    let entry = store.get("/s/100", None).await.unwrap().unwrap();
    store.update("/s/100", "again", entry.modified, None).await.unwrap();
    let mut file = Vec::new();
    let revision = snapshot::write(&store, &mut file).await.unwrap();
    assert!(
        matches!(snapshot::restore(&store, &mut &file[..]).await, Err(Error::Refused { .. })),
        "it is not empty"
    );
    let folder = tempfile::tempdir().unwrap();
    let copy = embedded(&folder).await;
    assert!(matches!(
        snapshot::restore(&copy, &mut &file[..file.len() - 1]).await,
        Err(Error::Snapshot { .. })
    ));
    assert_eq!(snapshot::restore(&copy, &mut &file[..]).await.unwrap(), revision);
    let all =
        |store: Store| async move { store.range(Range::prefix("/s/")).await.unwrap().entries };
    assert_eq!(all(copy.clone()).await, all(store).await);
    assert!(matches!(
        copy.watch(Range::all(), Revision(revision.0 - 1)).await,
        Err(Error::Compacted { .. })
    ));
    let next = copy.create("/new", "", None).await.unwrap();
    assert_eq!(next, revision.next());
    if let Some(program) = etcd_server::programs().pop() {
        let server = etcd_server::Server::start(&program);
        let cluster = self::store(&server).await;
        snapshot::restore(&cluster, &mut &file[..]).await.unwrap();
        let order = |mut entries: Vec<Entry>| {
            entries.sort_by_key(|entry| entry.modified);
            entries.into_iter().map(|entry| (entry.key, entry.value)).collect::<Vec<_>>()
        };
        assert_eq!(order(all(cluster).await), order(all(copy).await));
    }
}

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

async fn next(watch: &mut Watch) -> orlop_store::Batch {
    timeout(PATIENCE, watch.next()).await.unwrap().unwrap()
}

/// The next so many events, which come in whole batches.
async fn take(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        let batch = next(watch).await;
        assert!(batch.events.iter().all(|event| event.revision <= batch.revision));
        events.extend(batch.events);
    }
    assert!(events.windows(2).all(|pair| pair[0].revision <= pair[1].revision));
    events.truncate(count);
    events
}
