//! The registry as it is served: every change goes to the store, and to those who watch what it changed.
//!
//! Watches that ask for the same share one list and its bytes; each holds the newest one only, so who reads slowly
//! misses lists in between and never the last. What is registered is answered when the store has taken it, many at
//! once; the store is on the disk 100 ms later, as everybody registers again soon.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use orlop_proto::nsp::v1::Target;
use orlop_rt::{Backoff, CancellationToken, Chain};
use orlop_store::{Op, Range, Store, Txn};
use prost::Message as _;
use prost::encoding::message;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::configuration::Configuration;
use crate::registry::{Change, Key, Refusal, Registry};
use crate::selection::Filter as _;

/// Beneath it each target, in the store.
const PREFIX: &str = "target/";
/// Steps of one transaction.
const BATCH: usize = 100;
/// Between attempts to write.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why a call about targets is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The daemon stops.
    #[error("the registry is shutting down")]
    Stopping,
}

/// All targets, those who watch them, and the store they survive in.
#[derive(Debug)]
pub struct Targets {
    /// Held for a look or a change, never over a wait.
    held: Mutex<Held>,
    store: Option<Store>,
    /// There is something to write, or an earlier expiry.
    wake: Notify,
    /// So many changes are in the store.
    written: watch::Sender<u64>,
}

#[derive(Debug)]
struct Held {
    registry: Registry,
    /// By the bytes of what they ask for.
    groups: BTreeMap<Vec<u8>, Group>,
    /// Changed, and not in the store yet.
    dirty: BTreeSet<Key>,
    /// Changes so far.
    changes: u64,
}

/// Watches that ask for the same.
#[derive(Debug)]
struct Group {
    filter: Target,
    list: watch::Sender<Bytes>,
}

impl Targets {
    /// With what the store holds, if there is one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(
        mut registry: Registry,
        store: Option<Store>,
        now: Instant,
    ) -> orlop_store::Result<Self> {
        if let Some(store) = &store {
            for entry in store.range(Range::prefix(PREFIX)).await?.entries {
                match Target::decode(entry.value) {
                    Ok(target) => registry.load(target, now),
                    Err(error) => {
                        warn!(%error, "a target in the store cannot be read and is left out")
                    }
                }
            }
            info!(targets = registry.targets().count(), "the store was read");
        }
        let held = Held { registry, groups: BTreeMap::new(), dirty: BTreeSet::new(), changes: 0 };
        Ok(Self {
            held: Mutex::new(held),
            store,
            wake: Notify::new(),
            written: watch::channel(0).0,
        })
    }

    /// A target says that it is there; returns when a restart would remember it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn register(&self, target: Target, now: Instant) -> Result<(), Error> {
        let change = self.held().registry.register(target, now)?;
        self.changed(change).await
    }

    /// A target says that it goes. One that is not there has gone.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn unregister(&self, target: &Target) -> Result<(), Error> {
        let change = self.held().registry.unregister(target);
        self.changed(change).await
    }

    /// The encoded `TargetResponse` of a filter, now and whenever it changes.
    #[must_use]
    pub fn watch(&self, mut filter: Target) -> watch::Receiver<Bytes> {
        // What does not filter does not make another group.
        filter.ips.clear();
        filter.context.clear();
        let mut held = self.held();
        held.groups.retain(|_, group| group.list.receiver_count() > 0);
        let key = filter.encode_to_vec();
        if let Some(group) = held.groups.get(&key) {
            return group.list.subscribe();
        }
        let (list, receiver) = watch::channel(encoded(&held.registry, &filter));
        held.groups.insert(key, Group { filter, list });
        receiver
    }

    /// Takes note of a new configuration.
    pub fn configured(&self, configuration: &Configuration) {
        let changes = self.held().registry.drop_misplaced(configuration);
        if !changes.is_empty() {
            info!(targets = changes.len(), "removed: their streams are in other conduits");
            self.note(&changes);
        }
    }

    /// How many targets there are in each state of each stream, for `/metrics` and logs.
    #[must_use]
    pub fn count(&self) -> usize {
        self.held().registry.targets().count()
    }

    /// Lets entries go at their time, and writes what changed, until `shutdown`; then writes what is left.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let gone = self.held().registry.expire(Instant::now());
            if !gone.is_empty() {
                info!(targets = gone.len(), "removed: they were not refreshed");
                self.note(&gone);
            }
            let stopping = shutdown.is_cancelled();
            let retry = match self.write().await {
                Ok(()) => {
                    backoff.reset();
                    None
                }
                Err(error) => {
                    warn!(error = %Chain(&error), "write targets to the store");
                    Some(backoff.next(0))
                }
            };
            if stopping {
                return;
            }
            let expiry = self.held().registry.next_expiry().map(|at| at.into());
            let until = [expiry, retry.map(|wait| tokio::time::Instant::now() + wait)];
            let until = until.into_iter().flatten().min();
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.wake.notified() => {}
                () = async {
                    match until {
                        Some(until) => tokio::time::sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells a change, and waits until it is in the store.
    async fn changed(&self, change: Option<Change>) -> Result<(), Error> {
        let Some(change) = change else { return Ok(()) };
        let number = self.note(&[change]);
        if self.store.is_none() {
            return Ok(());
        }
        let mut written = self.written.subscribe();
        written.wait_for(|written| *written >= number).await.map_err(|_| Error::Stopping)?;
        Ok(())
    }

    /// Tells those who watch what changed, and marks it for the store; how many changes there were by then.
    fn note(&self, changes: &[Change]) -> u64 {
        let mut held = self.held();
        let sides = || changes.iter().flat_map(|change| [&change.before, &change.after]).flatten();
        for group in held.groups.values() {
            if sides().any(|target| group.filter.asks_for(target)) {
                group.list.send_replace(encoded(&held.registry, &group.filter));
            }
        }
        held.dirty.extend(sides().map(|target| Key::of(target)));
        held.changes += 1;
        self.wake.notify_one();
        held.changes
    }

    /// Brings the store to what the registry holds.
    async fn write(&self) -> orlop_store::Result<()> {
        let Some(store) = &self.store else {
            self.held().dirty.clear();
            return Ok(());
        };
        loop {
            let (number, ops) = {
                let held = self.held();
                let dirty = held.dirty.iter().take(BATCH);
                let ops: Vec<_> = dirty
                    .map(|key| {
                        let at: Bytes = [PREFIX.as_bytes(), &key.bytes()].concat().into();
                        let op = match held.registry.get(key) {
                            Some(target) => {
                                let value = target.encode_to_vec().into();
                                Op::Put { key: at, value, lease: None }
                            }
                            None => Op::Delete(Range::key(at)),
                        };
                        (key.clone(), op)
                    })
                    .collect();
                // Only with the last batch everything up to now is written.
                ((ops.len() == held.dirty.len()).then_some(held.changes), ops)
            };
            if !ops.is_empty() {
                let (keys, ops): (Vec<_>, Vec<_>) = ops.into_iter().unzip();
                self.take(&keys);
                if let Err(error) = store.txn(Txn::default().then(ops)).await {
                    self.held().dirty.extend(keys);
                    return Err(error);
                }
            }
            if let Some(number) = number {
                self.written.send_if_modified(|written| {
                    let newer = number > *written;
                    *written = (*written).max(number);
                    newer
                });
                return Ok(());
            }
        }
    }

    /// They are being written; who changes meanwhile is dirty again.
    fn take(&self, keys: &[Key]) {
        let mut held = self.held();
        for key in keys {
            held.dirty.remove(key);
        }
    }
}

/// The bytes of a `TargetResponse`: field 1, once for each target.
fn encoded(registry: &Registry, filter: &Target) -> Bytes {
    let targets = registry.list(filter);
    let length = targets.iter().map(|target| message::encoded_len(1, &**target)).sum();
    let mut bytes = BytesMut::with_capacity(length);
    for target in &targets {
        message::encode(1, &**target, &mut bytes);
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use orlop_proto::nsp::v1::target::Status;
    use orlop_proto::nsp::v1::{Stream, TargetResponse};
    use orlop_store::{Embedded, Limits};

    use super::*;

    fn target(stream: &str, ip: u32, status: Status) -> Target {
        let stream = Stream { name: stream.to_owned(), ..Stream::default() };
        let ips = vec![format!("10.0.0.{ip}/24")];
        Target { ips, status: status.into(), stream: Some(stream), ..Target::default() }
    }

    fn any(stream: &str) -> Target {
        Target { ips: Vec::new(), ..target(stream, 0, Status::Any) }
    }

    fn read(receiver: &mut watch::Receiver<Bytes>) -> Vec<String> {
        let bytes = receiver.borrow_and_update().clone();
        let response = TargetResponse::decode(bytes).expect("a response");
        response.targets.into_iter().flat_map(|target| target.ips).collect()
    }

    async fn open(store: Option<Store>) -> Targets {
        let registry = Registry::new(Duration::from_secs(60), false);
        Targets::open(registry, store, Instant::now()).await.expect("open")
    }

    #[tokio::test]
    async fn only_those_whose_list_changed_are_told() {
        let targets = open(None).await;
        let mut enabled = targets.watch(Target { status: 0, ..any("s") });
        let mut all = targets.watch(any("s"));
        let mut other = targets.watch(any("other"));
        let _ = (read(&mut enabled), read(&mut all), read(&mut other));
        let now = Instant::now();
        targets.register(target("s", 1, Status::Enabled), now).await.expect("taken");
        assert_eq!(read(&mut all), ["10.0.0.1/24"]);
        assert!(!enabled.has_changed().expect("open"), "it is disabled at first");
        targets.register(target("s", 1, Status::Enabled), now).await.expect("taken");
        assert_eq!(read(&mut enabled), ["10.0.0.1/24"]);
        let _ = read(&mut all);
        targets.register(target("s", 1, Status::Enabled), now).await.expect("taken");
        assert!(!all.has_changed().expect("open"), "a refresh changes nothing");
        assert!(!other.has_changed().expect("open"));
        targets.unregister(&target("s", 1, Status::Any)).await.expect("gone");
        assert!(read(&mut enabled).is_empty() && read(&mut all).is_empty());
    }

    #[tokio::test]
    async fn what_was_answered_is_there_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("registry.db");
        let embedded = Embedded::open(&path, Limits::default()).await.expect("a store");
        let store = Store::Embedded(embedded);
        let targets = Arc::new(open(Some(store.clone())).await);
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (targets, stop) = (Arc::clone(&targets), stop.clone());
            async move { targets.run(stop).await }
        });
        let now = Instant::now();
        for ip in 0..300 {
            targets.register(target("s", ip, Status::Enabled), now).await.expect("taken");
        }
        targets.unregister(&target("s", 7, Status::Any)).await.expect("gone");
        // Not stopped: what was answered is in the store already.
        let again = open(Some(store.clone())).await;
        assert_eq!(again.count(), 299);
        assert_eq!(read(&mut again.watch(any("s"))).len(), 299);
        stop.cancel();
        running.await.expect("it ends");
        store.close().await;
    }
}
