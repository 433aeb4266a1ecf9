//! Objects in the store, and in memory.
//!
//! ```text
//! writes ──▶ store (embedded or etcd) ──▶ one watch of /registry/ ──▶ cache ──▶ reads, lists, watches
//! ```
//!
//! - [`keys`]: where objects are; `codec`: how they are written.
//! - [`cache`]: every object in memory, with the last changes. It follows the store; who must see the newest waits for
//!   it ([`Storage::fresh`]), which for an embedded store takes no more than a task's turn.
//!
//! A write compares the revision it was made for; who loses reads what is there and decides anew. So what is there may
//! be taken from the cache ([`Storage::known`]), but for what is answered without a write.

pub mod cache;
mod codec;
pub(crate) mod keys;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use orlop_rt::{Backoff, CancellationToken, Chain};
use orlop_store::{Buckets, Compare, Done, Location, Op, Range, Revision, Store, Txn};
use tokio::sync::{Mutex, Notify};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use self::cache::{Cache, Entry, Listed, Observer, Selection};
pub use self::codec::Media;
use crate::metrics::{Metrics, Word};
use crate::object::Object;
use crate::resources::Resource;
use crate::status::Status;

/// How long a reader waits for a revision that is not there yet.
const WAIT: Duration = Duration::from_secs(3);
/// How long a reader waits for the cache to follow the store before it asks the store itself.
const FOLLOW: Duration = Duration::from_millis(200);
/// Entries read at once.
const PAGE: usize = 500;
/// How often history is forgotten; it is kept for as long,
const COMPACT_EVERY: Duration = Duration::from_secs(300);
/// and for so many revisions of an embedded store.
const COMPACT_KEEP: u64 = 1000;
/// Which of several servers forgets history, as kube-apiservers agree on it.
const COMPACT_KEY: &str = "compact_rev_key";
/// Written with each object that takes what there is only once, so that of several servers one does at a time.
const TURN_KEY: &str = "orlop/turn";
/// Written for nothing but its event, where an etcd does not tell how far a watch is.
const MARK_KEY: &str = "/registry/orlop/mark";

/// What is said while the cache does not follow the store.
const BEHIND: &str = "the store is ahead of what this server has seen of it; try again";

/// The objects of a cluster; cheap to clone.
#[derive(Clone, Debug)]
pub struct Storage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    media: Media,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    /// Somebody waits for the cache to be told how far the store is.
    behind: Notify,
    leases: Mutex<Buckets>,
}

/// An object as it is in the store.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Without kind and version; with its revision in its metadata.
    pub object: Object,
    /// Of its last write.
    pub revision: u64,
}

/// The right to store one object that takes what there is only once, chosen by what the cache had when it was given.
#[derive(Clone, Copy, Debug)]
pub struct Turn(Revision);

/// Why a write was not made.
#[derive(Debug)]
pub enum Refused {
    /// There is one.
    Exists,
    /// It is not as it was expected, but so.
    Changed(Option<Stored>),
    /// Its turn is over: another server has had one since.
    Late,
    /// It cannot be made.
    Status(Status),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// How an error of the store ends a request.
fn failed(error: orlop_store::Error) -> Status {
    use orlop_store::Error;
    match &error {
        Error::TooLarge { limit, .. } => Status::too_large(*limit),
        Error::Full { what } => Status::full(what),
        Error::Compacted { asked, oldest } => {
            Status::expired(format!("too old resource version: {asked} ({oldest})"))
        }
        Error::Future { asked, newest } => Status::too_large_revision(asked.0, newest.0),
        Error::Unavailable { .. } => Status::unavailable(Chain(&error).to_string()),
        Error::Unknown { .. } => Status::timeout(Chain(&error).to_string()),
        _ => Status::internal(&Chain(&error).to_string()),
    }
}

impl Storage {
    /// Opens the store, reads all of it, and follows it until `shutdown`.
    ///
    /// # Errors
    /// The store cannot be opened or read.
    pub async fn open(
        store: Store,
        media: Media,
        observers: Box<[Arc<dyn Observer>]>,
        metrics: Arc<Metrics>,
        shutdown: &CancellationToken,
    ) -> Result<Self, orlop_store::Error> {
        let storage = Self(Arc::new(Inner {
            store,
            media,
            cache: Arc::new(Cache::new(observers)),
            metrics,
            behind: Notify::new(),
            leases: Mutex::default(),
        }));
        let watch = storage.load().await?;
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(storage.clone().feed(watch)));
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(storage.clone().compact()));
        Ok(storage)
    }

    /// How objects are written where `location` is: as kube-apiserver does where it may share an etcd with one.
    #[must_use]
    pub fn media(location: &Location) -> Media {
        match location {
            Location::Embedded(_) => Media::Json,
            Location::Etcd(_) => Media::Protobuf,
        }
    }

    /// What is in memory.
    #[must_use]
    pub fn cache(&self) -> &Arc<Cache> {
        &self.0.cache
    }

    /// Where it counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Waits for what the store is asked, and counts it.
    async fn counted<T>(
        &self,
        operation: Word,
        resource: &'static Resource,
        asked: impl Future<Output = T>,
    ) -> T {
        let began = Instant::now();
        let answer = asked.await;
        let labels = [operation, resource.stored().plural];
        self.0.metrics.store_requests.add(labels);
        self.0.metrics.store_durations.measure(labels, began.elapsed().as_secs_f64());
        answer
    }

    /// The store itself.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    async fn load(&self) -> Result<orlop_store::Watch, orlop_store::Error> {
        let mut range = Range::prefix(keys::ROOT).limit(PAGE);
        let mut entries = Vec::new();
        let revision = loop {
            let page = self.0.store.range(range.clone()).await?;
            let at = range.at.unwrap_or(page.revision);
            let last = page.entries.last().map(|entry| entry.key.clone());
            entries.extend(page.entries);
            match last {
                Some(last) if page.remaining > 0 => range = range.after(&last).at(at),
                _ => break at,
            }
        };
        let watch = self.0.store.watch(Range::prefix(keys::ROOT), revision).await?;
        self.0.cache.load(entries, revision.0);
        Ok(watch)
    }

    /// Keeps the cache as the store is.
    async fn feed(self, mut watch: orlop_store::Watch) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            let told = tokio::select! {
                told = watch.next() => told,
                () = self.0.behind.notified() => match watch.request_progress().await {
                    Ok(()) => continue,
                    Err(orlop_store::Error::Refused { .. }) => {
                        self.mark().await;
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            let mut error = match told {
                Ok(batch) => {
                    for resource in self.0.cache.apply(&batch) {
                        self.0.metrics.dispatched.add([resource.group, resource.plural]);
                    }
                    backoff.reset();
                    continue;
                }
                Err(error) => error,
            };
            warn!(error = %Chain(&error), "the watch of the store broke off; reads may be late until it is back");
            watch = loop {
                sleep(backoff.next(crate::random::number())).await;
                let after = Revision(self.0.cache.revision());
                let again = match error {
                    orlop_store::Error::Compacted { .. } => self.load().await,
                    _ => self.0.store.watch(Range::prefix(keys::ROOT), after).await,
                };
                match again {
                    Ok(watch) => break watch,
                    Err(other) => error = other,
                }
            };
            info!("the store is followed again");
        }
    }

    /// Writes something that the watch tells.
    async fn mark(&self) {
        let mark = Op::Put { key: MARK_KEY.into(), value: Bytes::new(), lease: None };
        if let Err(error) = self.0.store.txn(Txn::default().then([mark])).await {
            warn!(error = %Chain(&error), "how far the watch of the store is cannot be told");
        }
    }

    /// Forgets history that is older than [`COMPACT_EVERY`].
    async fn compact(self) {
        let mut then = self.0.cache.revision();
        loop {
            sleep(COMPACT_EVERY).await;
            let now = self.0.cache.revision();
            match self.compact_to(then, now).await {
                Ok(()) | Err(orlop_store::Error::Compacted { .. }) => {}
                Err(error) => warn!(error = %Chain(&error), "old revisions are not forgotten"),
            }
            then = now;
        }
    }

    async fn compact_to(&self, then: u64, now: u64) -> Result<(), orlop_store::Error> {
        let upto = match &self.0.store {
            Store::Embedded(_) => then.min(now.saturating_sub(COMPACT_KEEP)),
            Store::Etcd(_) => {
                // Who writes it first in a round does it; all others leave it to them.
                let known = self.0.store.get(COMPACT_KEY, None).await?;
                let version = known.map_or(0, |entry| entry.version);
                let key = Bytes::from_static(COMPACT_KEY.as_bytes());
                let value = now.to_string().into();
                let txn = Txn::when([Compare::Version(key.clone(), version)]).then([Op::Put {
                    key,
                    value,
                    lease: None,
                }]);
                if !self.0.store.txn(txn).await?.succeeded {
                    return Ok(());
                }
                then
            }
        };
        if upto == 0 { Ok(()) } else { self.0.store.compact(Revision(upto)).await }
    }

    /// Waits until the cache has every write that was acknowledged before the call. False: it does not follow just now,
    /// and the store must be asked itself.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn fresh(&self) -> Result<bool, Status> {
        let newest = self.0.store.revision().await.map_err(failed)?;
        Ok(self.reach(newest.0, FOLLOW).await)
    }

    /// As [`Storage::fresh`], for those who can read nothing but the cache.
    ///
    /// # Errors
    /// The store does not answer, or is not followed just now.
    pub async fn current(&self) -> Result<(), Status> {
        if self.fresh().await? {
            return Ok(());
        }
        Err(Status::unavailable(BEHIND))
    }

    /// Waits until the cache is at a revision that a client has seen.
    ///
    /// # Errors
    /// It is not there in 3 s.
    pub async fn at_least(&self, revision: u64) -> Result<(), Status> {
        if self.reach(revision, WAIT).await {
            return Ok(());
        }
        Err(Status::too_large_revision(revision, self.0.cache.revision()))
    }

    async fn reach(&self, revision: u64, patience: Duration) -> bool {
        if self.0.cache.revision() >= revision {
            return true;
        }
        let mut follow = self.0.cache.follow();
        let mut reached = async |patience| {
            let reached = follow.wait_for(|now| *now >= revision);
            timeout(patience, reached).await.is_ok_and(|reached| reached.is_ok())
        };
        if let Store::Etcd(etcd) = &self.0.store {
            // Most often it is on its way. Telling how far a watch is costs such an etcd a write.
            if !etcd.tells_progress() && reached(FOLLOW).await {
                return true;
            }
            self.0.behind.notify_one();
        }
        reached(patience).await
    }

    /// The turn to store one object that takes what there is only once. Everything that others took is in the cache.
    ///
    /// # Errors
    /// As [`Storage::current`].
    pub async fn turn(&self) -> Result<Turn, Status> {
        let page = self.0.store.range(Range::key(TURN_KEY)).await.map_err(failed)?;
        if !self.reach(page.revision.0, WAIT).await {
            return Err(Status::unavailable(BEHIND));
        }
        Ok(Turn(page.entries.first().map_or(Revision::NONE, |entry| entry.modified)))
    }

    /// One object as it is.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn get(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Stored>, Status> {
        let key = keys::key(resource, namespace, name);
        let asked = self.0.store.get(key, None);
        let found = self.counted("get", resource, asked).await.map_err(failed)?;
        found.map(|entry| stored(resource, &entry)).transpose()
    }

    /// One object as it was a moment ago; none where it is to be asked for.
    #[must_use]
    pub fn known(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Option<Stored> {
        let entry = self.0.cache.entry(resource, namespace, name)?;
        Some(Stored { object: entry.object(), revision: entry.revision })
    }

    /// Those selected as the cache has them, `limit` at most (0: all).
    #[must_use]
    pub fn select(
        &self,
        resource: &'static Resource,
        selection: &Selection,
        limit: usize,
    ) -> Listed {
        self.0.metrics.cache_lists.add([resource.group, resource.plural]);
        self.0.cache.select(resource, selection, limit)
    }

    /// Those selected as they are, or were at a revision, from behind a place on; `limit` at most (0: all).
    ///
    /// # Errors
    /// The revision is forgotten or not yet; the store does not answer.
    pub async fn list(
        &self,
        resource: &'static Resource,
        selection: &Selection,
        after: &str,
        limit: usize,
        at: Option<u64>,
    ) -> Result<Listed, Status> {
        let mut range = Range::prefix(keys::prefix(resource, &selection.namespace)).limit(PAGE);
        if !after.is_empty() {
            range = range.after((keys::prefix(resource, "") + after).as_bytes());
        }
        range.at = at.map(Revision);
        self.0.metrics.storage_lists.add([resource.group, resource.plural]);
        let mut listed = Listed { entries: Vec::new(), revision: 0, remaining: 0 };
        loop {
            let asked = self.0.store.range(range.clone());
            let page = self.counted("list", resource, asked).await.map_err(failed)?;
            let at = range.at.unwrap_or(page.revision);
            listed.revision = at.0;
            let (count, mut last) = (page.entries.len(), None);
            for (index, entry) in page.entries.into_iter().enumerate() {
                last = Some(entry.key.clone());
                let Some((of, place)) = keys::read(&entry.key) else { continue };
                let Stored { object, revision } = stored(of, &entry)?;
                let found = Entry::new(of, place, revision, object);
                if !selection.fits(of, &found) {
                    continue;
                }
                if limit != 0 && listed.entries.len() == limit {
                    // This one and those behind it.
                    let behind = usize::try_from(page.remaining).unwrap_or(usize::MAX);
                    listed.remaining = behind.saturating_add(count - index);
                    return Ok(listed);
                }
                listed.entries.push(Arc::new(found));
            }
            match last {
                Some(last) if page.remaining > 0 => range = range.after(&last).at(at),
                _ => return Ok(listed),
            }
        }
    }

    /// Stores an object that is as it was at `expected`, or is not there where that is 0; it goes by itself after `ttl`.
    /// With a turn it takes what there is only once.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn put(
        &self,
        target: (&'static Resource, &str, &str),
        mut object: Object,
        expected: u64,
        ttl: Option<Duration>,
        turn: Option<Turn>,
    ) -> Result<Entry, Refused> {
        let (resource, namespace, name) = target;
        let (of, expected) = (resource.stored(), Revision(expected));
        let lease = self.lease(ttl).await.map_err(failed)?;
        let place = keys::key(of, namespace, name);
        let key = Bytes::from(place.clone());
        let value = codec::encode(of, &mut object, self.0.media);
        let mut txn = Txn::when([Compare::Modified(key.clone(), expected)])
            .then([Op::Put { key: key.clone(), value, lease }])
            .or_else([Op::Get(Range::key(key.clone()))]);
        if let Some(Turn(given)) = turn {
            let turn = Bytes::from_static(TURN_KEY.as_bytes());
            txn.when.push(Compare::Modified(turn.clone(), given));
            txn.then.push(Op::Put { key: turn, value: key, lease: None });
        }
        let operation = if expected == Revision::NONE { "create" } else { "update" };
        let asked = self.0.store.txn(txn);
        let outcome = self.counted(operation, of, asked).await.map_err(failed)?;
        if outcome.succeeded {
            return Ok(entry(of, &place, outcome.revision, object));
        }
        let current = match outcome.results.into_iter().next() {
            Some(Done::Got(page)) => page.entries.into_iter().next(),
            _ => None,
        };
        let modified = current.as_ref().map_or(Revision::NONE, |entry| entry.modified);
        if turn.is_some() && modified == expected {
            return Err(Refused::Late);
        }
        if expected == Revision::NONE {
            return Err(Refused::Exists);
        }
        Err(Refused::Changed(current.map(|entry| stored(of, &entry)).transpose()?))
    }

    /// Removes an object that is as it was at `expected`.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn delete(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        object: Object,
        expected: u64,
    ) -> Result<Entry, Refused> {
        let of = resource.stored();
        let key = keys::key(of, namespace, name);
        let asked = self.0.store.delete(key.clone(), Revision(expected));
        match self.counted("delete", of, asked).await {
            Ok((revision, _)) => Ok(entry(of, &key, revision, object)),
            Err(error) => Err(changed(of, error)),
        }
    }

    /// A lease for one more key that ends after `ttl`, or up to a minute later.
    async fn lease(
        &self,
        ttl: Option<Duration>,
    ) -> Result<Option<orlop_store::LeaseId>, orlop_store::Error> {
        let Some(ttl) = ttl else { return Ok(None) };
        let mut leases = self.0.leases.lock().await;
        if let Some(lease) = leases.take(ttl, Instant::now()) {
            return Ok(Some(lease));
        }
        let lease = self.0.store.grant(Buckets::ttl(ttl)).await?;
        leases.open(ttl, lease, Instant::now());
        Ok(Some(lease))
    }
}

fn entry(resource: &'static Resource, key: &str, revision: Revision, object: Object) -> Entry {
    let place = &key[keys::prefix(resource, "").len()..];
    Entry::new(resource, place, revision.0, object)
}

fn stored(resource: &'static Resource, entry: &orlop_store::Entry) -> Result<Stored, Status> {
    let mut object = codec::decode(resource.stored(), &entry.value).map_err(|error| {
        let key = entry.key.escape_ascii();
        Status::internal(&format!("what is stored at \"{key}\" is no object: {}", Chain(&error)))
    })?;
    let revision = entry.modified.0;
    crate::object::metadata(&mut object)
        .insert("resourceVersion".to_owned(), revision.to_string().into());
    Ok(Stored { object, revision })
}

fn changed(resource: &'static Resource, error: orlop_store::Error) -> Refused {
    match error {
        orlop_store::Error::Conflict { current, .. } => {
            match current.map(|entry| stored(resource, &entry)).transpose() {
                Ok(current) => Refused::Changed(current),
                Err(status) => Refused::Status(status),
            }
        }
        error => Refused::Status(failed(error)),
    }
}
