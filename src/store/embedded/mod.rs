//! The store of one node: a file, a thread that writes, readers beside it.
//!
//! ```text
//! callers ── requests ──▶ writer thread: Core::commit   many transactions, one flush ──▶ redb file
//!    ▲                          │ acknowledged only after the flush
//!    └── answers ◀──────────────┴──▶ hub ──▶ watches (bounded; one that lags reads the history instead)
//! readers ── snapshots of the file, never waiting for the writer
//! ```
//!
//! The tables are in `tables`; what a transaction does in `core`; who hears of it in `hub`.

mod core;
#[cfg(test)]
mod crash_tests;
mod hub;
mod tables;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, fs, io};

use redb::ReadableDatabase as _;
use tokio::sync::{Semaphore, oneshot};

use self::core::{Core, Request};
pub(crate) use self::hub::Watch;
use crate::error::Failure;
use crate::{Entry, Error, LeaseId, Outcome, Page, Range, Result, Revision, Txn};

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Durability {
    /// When it is on the disk.
    #[default]
    Durable,
    /// Before: the loss of power loses up to the last 100 ms, and never less than whole revisions.
    Relaxed,
}

/// What an embedded store may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Of keys and values, with their history. Beyond it, only removals are taken.
    pub quota_bytes: u64,
    /// What must stay free on the disk for a write to be taken.
    pub reserve_bytes: u64,
    /// Of the file's pages in memory.
    pub cache_bytes: usize,
    /// When a write is acknowledged.
    pub durability: Durability,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            quota_bytes: 8 << 30,
            reserve_bytes: 16 << 20,
            cache_bytes: 16 << 20,
            durability: Durability::Durable,
        }
    }
}

/// An open store; cheap to clone. The file is closed with the last one.
#[derive(Clone, Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    /// How many requests may wait; the others wait for these.
    room: Arc<Semaphore>,
}

/// What the writer and the readers share.
pub(crate) struct Shared {
    path: PathBuf,
    limits: Limits,
    open: Box<dyn Fn() -> Result<redb::Database, redb::DatabaseError> + Send + Sync>,
    /// None while it cannot be opened again after a failed write.
    database: RwLock<Option<redb::Database>>,
    hub: hub::Hub,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Requests that may wait for the writer: four commits' worth.
const WAITING: usize = 4 * core::COMMIT_MOST;

impl Embedded {
    /// Opens the file, and makes it if it is not there.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Newer`].
    pub async fn open(path: &Path, limits: Limits) -> Result<Self> {
        let path = path.to_owned();
        blocking("open the store", move || {
            make(&path, limits)?;
            Self::start(open(path, limits)?)
        })
        .await
    }

    fn start(core: Core) -> Result<Self> {
        let (requests, inbox) = mpsc::channel();
        let shared = Arc::clone(core.shared());
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write(core, &inbox))
            .map_err(|source| Error::Open { path: shared.path.clone(), source: source.into() })?;
        Ok(Self { shared, requests, room: Arc::new(Semaphore::new(WAITING)) })
    }

    pub(crate) async fn revision(&self) -> Result<Revision> {
        Ok(self.shared.hub.committed())
    }

    pub(crate) async fn range(&self, range: Range) -> Result<Page> {
        if range.start.is_empty() {
            return Err(Error::Refused { what: "an empty key" });
        }
        let shared = Arc::clone(&self.shared);
        blocking("read the store", move || shared.read(|tables| tables.page(&range))).await
    }

    pub(crate) async fn txn(&self, txn: Txn) -> Result<Outcome> {
        self.ask("write to the store", |answer| Request::Txn(txn, answer)).await
    }

    pub(crate) fn watch(&self, range: Range, after: Revision) -> Result<Watch> {
        Watch::start(Arc::clone(&self.shared), range, after)
    }

    pub(crate) async fn compact(&self, revision: Revision) -> Result<()> {
        self.ask("compact the store", |answer| Request::Compact(revision, answer)).await
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        self.ask("grant a lease", |answer| Request::Grant(ttl, answer)).await
    }

    pub(crate) async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        self.ask("keep a lease alive", |answer| Request::KeepAlive(lease, answer)).await
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.ask("revoke a lease", |answer| Request::Revoke(lease, answer)).await
    }

    pub(crate) async fn restore(&self, revision: Revision, entries: Vec<Entry>) -> Result<()> {
        self.ask("restore the store", |answer| Request::Restore(revision, entries, answer)).await
    }

    pub(crate) async fn close(&self) {
        self.room.close();
        let (answer, answered) = oneshot::channel();
        // If it has ended already, that is as well.
        if self.requests.send(Request::Close(answer)).is_ok() {
            answered.await.ok();
        }
    }

    pub(crate) async fn size(&self) -> Result<u64> {
        let shared = Arc::clone(&self.shared);
        blocking("read the store's size", move || shared.read(|tables| tables.bytes())).await
    }

    async fn ask<T>(
        &self,
        doing: &'static str,
        request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request,
    ) -> Result<T> {
        let gone = || Failure::Not("its writer has ended".to_owned()).error(doing);
        let _room = self.room.acquire().await.map_err(|_closed| gone())?;
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).map_err(|_closed| gone())?;
        answered.await.unwrap_or_else(|_closed| {
            Err(Failure::Unknown("its writer has ended".to_owned()).error(doing))
        })
    }
}

/// Makes the file if it is not there: under another name until it is whole, as what was begun and cut cannot be opened.
fn make(path: &Path, limits: Limits) -> Result<()> {
    let failed = |source: io::Error| Error::Open { path: path.to_owned(), source: source.into() };
    if path.try_exists().map_err(failed)? {
        return Ok(());
    }
    let begun = path.with_added_extension("new");
    match fs::remove_file(&begun) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    open(begun.clone(), limits)?.close();
    fs::rename(&begun, path).map_err(failed)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn open(path: PathBuf, limits: Limits) -> Result<Core> {
    let file = path.clone();
    let open = move || redb::Database::builder().set_cache_size(limits.cache_bytes).create(&file);
    Core::open(path, limits, Box::new(open))
}

/// Runs until every [`Embedded`] is gone.
fn write(mut core: Core, inbox: &mpsc::Receiver<Request>) {
    loop {
        let first = match core.wakes_at() {
            None => inbox.recv().map_err(RecvTimeoutError::from),
            Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let mut requests = Vec::new();
        match first {
            Ok(request) => requests.push(request),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return core.close(),
        }
        // Whoever came while the last commit was being flushed shares this one.
        requests.extend(inbox.try_iter().take(core::COMMIT_MOST - requests.len()));
        let closes = requests.extract_if(.., |request| matches!(request, Request::Close(_)));
        let closes: Vec<Request> = closes.collect();
        core.commit(requests, Instant::now());
        if !closes.is_empty() {
            core.close();
            for request in closes {
                if let Request::Close(answer) = request {
                    // Whoever asked may have gone.
                    answer.send(()).ok();
                }
            }
            return;
        }
    }
}

impl Shared {
    /// Reads one state of the file.
    fn read<T>(&self, read: impl FnOnce(&tables::Reading) -> Result<T>) -> Result<T> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(|| {
            Failure::Not("it is being opened again after a failed write".to_owned())
                .error("read the store")
        })?;
        let transaction = database.begin_read().map_err(unavailable("read the store"))?;
        read(&tables::Reading::open(&transaction)?)
    }
}

fn unavailable<E: std::error::Error + Send + Sync + 'static>(
    doing: &'static str,
) -> impl Fn(E) -> Error {
    move |source| Error::Unavailable { doing, source: source.into() }
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|source| Err(unavailable(doing)(source)))
}
