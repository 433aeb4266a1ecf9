//! What is written: many requests in one commit, each of them all or nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::vec;

use bytes::Bytes;
use redb::{ReadableDatabase as _, ReadableTable as _, StorageError, Table, WriteTransaction};
use tokio::sync::oneshot;

use super::tables::{
    FORMAT, LEASE_KEYS, LEASES, LOG, META, VERSIONS, check_revision, encode, entries, latest,
};
use super::{Durability, Limits, Shared};
use crate::error::Failure;
use crate::lease::Leases;
use crate::{
    Compare, Done, Entry, Error, Event, LeaseId, Op, Outcome, Page, Range, Result, Revision, Txn,
};

/// Requests in a commit.
pub(crate) const COMMIT_MOST: usize = 256;

/// Rows of the log that are forgotten in a commit; so long others wait for it.
const FORGET_MOST: usize = 256;

/// How long a relaxed store may keep what it acknowledged to itself.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// Between tries to open the file again after a failed write.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Who waits for what.
pub(crate) type Answer<T> = oneshot::Sender<Result<T>>;

pub(crate) enum Request {
    Txn(Txn, Answer<Outcome>),
    Compact(Revision, Answer<()>),
    Grant(Duration, Answer<LeaseId>),
    KeepAlive(LeaseId, Answer<()>),
    Revoke(LeaseId, Answer<()>),
    Restore(Revision, Vec<Entry>, Answer<()>),
    /// Kept by the thread until the file is closed, and never handed on.
    Close(oneshot::Sender<()>),
}

/// The writer's own state.
pub(crate) struct Core {
    shared: Arc<Shared>,
    revision: Revision,
    compacted: Revision,
    leases: Leases,
    /// The log may have rows at or below `compacted`.
    forgetting: bool,
    /// A relaxed commit that is not on the disk yet.
    flush_at: Option<Instant>,
    reopen_at: Option<Instant>,
}

impl Core {
    pub(crate) fn open(
        path: PathBuf,
        limits: Limits,
        open: Box<dyn Fn() -> Result<redb::Database, redb::DatabaseError> + Send + Sync>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            path,
            limits,
            open,
            database: RwLock::new(None),
            hub: super::hub::Hub::default(),
        });
        let mut core = Self {
            shared,
            revision: Revision::NONE,
            compacted: Revision::NONE,
            leases: Leases::default(),
            forgetting: true,
            flush_at: None,
            reopen_at: None,
        };
        core.load(Instant::now())?;
        Ok(core)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// When [`Core::commit`] is to be called without a request.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        let forget = self.forgetting.then(Instant::now);
        if self.reopen_at.is_some() {
            return self.reopen_at;
        }
        [forget, self.flush_at, self.leases.next_end()].into_iter().flatten().min()
    }

    /// What a relaxed store acknowledged last gets to the disk.
    pub(crate) fn close(mut self) {
        if self.flush_at.is_some() {
            self.flush_at = Some(Instant::now());
            self.commit(Vec::new(), Instant::now());
        }
        self.shared.database.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Opens the file and reads what the writer must know of it.
    fn load(&mut self, now: Instant) -> Result<()> {
        let path = &self.shared.path;
        let failed = |source| Error::Open { path: path.clone(), source };
        let mut place = self.shared.database.write().unwrap_or_else(PoisonError::into_inner);
        // The file is locked by whoever has it open.
        place.take();
        let database = (self.shared.open)().map_err(|source| failed(source.into()))?;
        let prepare = || -> Result<Option<u64>, redb::Error> {
            let write = database.begin_write()?;
            let format = {
                write.open_table(VERSIONS)?;
                write.open_table(LOG)?;
                write.open_table(LEASES)?;
                write.open_table(LEASE_KEYS)?;
                let mut meta = write.open_table(META)?;
                let format = meta.get("format")?.map(|format| format.value());
                if format.is_none() {
                    meta.insert("format", FORMAT)?;
                }
                format
            };
            if format.is_none() {
                write.commit()?;
            }
            Ok(format)
        };
        if let Some(found) = prepare().map_err(|source| failed(source.into()))?
            && found > FORMAT
        {
            return Err(Error::Newer { path: path.clone(), found, known: FORMAT });
        }
        let mut leases = Leases::default();
        let mut read = || -> Result<(u64, u64), redb::Error> {
            let read = database.begin_read()?;
            let meta = read.open_table(META)?;
            let number = |name| -> Result<u64, StorageError> {
                Ok(meta.get(name)?.map_or(0, |value| value.value()))
            };
            for lease in read.open_table(LEASES)?.range::<u64>(..)? {
                let (id, times) = lease?;
                let (ttl, ends) = times.value();
                let ttl = Duration::from_secs(ttl);
                leases.grant(LeaseId(id.value()), ttl, left(ttl, ends, unix_millis()), now);
            }
            Ok((number("revision")?, number("compacted")?))
        };
        let (revision, compacted) = read().map_err(|source| failed(source.into()))?;
        *place = Some(database);
        (self.revision, self.compacted) = (Revision(revision), Revision(compacted));
        (self.leases, self.forgetting, self.flush_at) = (leases, true, None);
        self.shared.hub.publish(self.revision, &[]);
        Ok(())
    }

    /// Does what is asked, what leases that ended ask for, and some forgetting; answers when it is on the disk.
    pub(crate) fn commit(&mut self, requests: Vec<Request>, now: Instant) {
        if self.reopen_at.is_some_and(|at| now >= at) {
            self.reopen(now);
        }
        let mut written = Written::new(self.revision, self.compacted);
        let result = self.write(requests, now, &mut written);
        if let Err(failure) = &result {
            tracing::error!(path = %self.shared.path.display(), ?failure, "a write of the store failed");
            self.reopen(now);
        } else {
            (self.revision, self.compacted) = (written.revision, written.compacted);
            self.shared.hub.publish(self.revision, &written.events);
        }
        for answer in written.answers {
            answer(result.as_ref().err().cloned());
        }
    }

    /// After a failed write redb wants its file opened again; what the file has then is what holds.
    fn reopen(&mut self, now: Instant) {
        let known = self.revision;
        self.reopen_at = match self.load(now) {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(path = %self.shared.path.display(), %error, "the store cannot be opened again");
                Some(now + REOPEN_AFTER)
            }
        };
        if self.revision > known {
            // The last commit got to the disk although it was told to have failed. Those who watch must hear of it.
            self.shared.hub.cut();
        }
    }

    fn write(
        &mut self,
        requests: Vec<Request>,
        now: Instant,
        written: &mut Written,
    ) -> Result<(), Failure> {
        let shared = Arc::clone(&self.shared);
        let database = shared.database.read().unwrap_or_else(PoisonError::into_inner);
        let mut requests = requests.into_iter();
        let Some(database) = database.as_ref() else {
            written.refuse(requests, "its file cannot be opened since a write failed");
            return Ok(());
        };
        let room = self.room();
        let mut transaction = database.begin_write().map_err(Failure::before)?;
        let relaxed = shared.limits.durability == Durability::Relaxed;
        let flush = self.flush_at.is_some_and(|at| now >= at);
        if relaxed && !flush {
            transaction.set_durability(redb::Durability::None).map_err(Failure::before)?;
        }
        let applied = self.apply(&transaction, &mut requests, now, &room, written);
        // Those behind the one that failed.
        written.refuse(requests, "a write before it failed");
        applied.map_err(Failure::before)?;
        if !written.anything && !flush {
            // Reads and comparisons that did not hold.
            return transaction.abort().map_err(Failure::before);
        }
        transaction.commit().map_err(|error| Failure::Unknown(error.to_string()))?;
        self.flush_at = match self.flush_at {
            _ if !relaxed || flush => None,
            None => Some(now + FLUSH_EVERY),
            due => due,
        };
        Ok(())
    }

    /// Is there room for more? Of the disk; of the quota is asked with each write.
    fn room(&self) -> Result<(), String> {
        let Some(folder) = self.shared.path.parent() else { return Ok(()) };
        // Of a folder that does not tell, the write itself will.
        let Ok(disk) = nix::sys::statvfs::statvfs(folder) else { return Ok(()) };
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        if free < self.shared.limits.reserve_bytes {
            Err(format!("the disk of {} has {free} bytes left", self.shared.path.display()))
        } else {
            Ok(())
        }
    }

    fn apply(
        &mut self,
        transaction: &WriteTransaction,
        requests: &mut vec::IntoIter<Request>,
        now: Instant,
        room: &Result<(), String>,
        written: &mut Written,
    ) -> Result<(), redb::Error> {
        let mut tables = Tables::open(transaction)?;
        for id in self.leases.ended(now) {
            self.leases.remove(id);
            tables.end_lease(id, written)?;
        }
        for request in requests {
            self.request(request, &mut tables, now, room, written)?;
        }
        if self.forgetting {
            self.forgetting = tables.forget(written.compacted.0)?;
            written.anything |= self.forgetting;
        }
        if written.anything {
            tables.number("revision", written.revision.0)?;
            tables.number("bytes", tables.bytes)?;
        }
        Ok(())
    }

    fn request(
        &mut self,
        request: Request,
        tables: &mut Tables<'_>,
        now: Instant,
        room: &Result<(), String>,
        written: &mut Written,
    ) -> Result<(), redb::Error> {
        match request {
            Request::Txn(txn, answer) => {
                let quota = self.shared.limits.quota_bytes;
                let full = room.clone().err().or_else(|| {
                    (tables.bytes >= quota)
                        .then(|| format!("its quota of {quota} bytes is used up"))
                });
                let outcome = tables.txn(txn, full, &self.leases, now, written);
                written.answer("write to the store", answer, outcome)
            }
            Request::Compact(revision, answer) => {
                let oldest = written.compacted;
                let outcome = if revision <= oldest {
                    Ok(Err(Error::Compacted { asked: revision, oldest }))
                } else if revision > written.revision {
                    Ok(Err(Error::Future { asked: revision, newest: written.revision }))
                } else {
                    (written.compacted, written.anything) = (revision, true);
                    self.forgetting = true;
                    tables.number("compacted", revision.0).map(Ok)
                };
                written.answer("compact the store", answer, outcome)
            }
            Request::Grant(ttl, answer) => {
                let ttl = Duration::from_secs(ttl.as_secs().max(1));
                let outcome = tables.new_lease(written.revision).and_then(|id| {
                    self.leases.grant(id, ttl, ttl, now);
                    written.anything = true;
                    tables.keep_lease(id, ttl).map(|()| Ok(id))
                });
                written.answer("grant a lease", answer, outcome)
            }
            Request::KeepAlive(id, answer) => {
                let outcome = match self.leases.keep_alive(id, now) {
                    Some(ttl) => {
                        written.anything = true;
                        tables.keep_lease(id, ttl).map(Ok)
                    }
                    None => Ok(Err(Error::NoLease { lease: id })),
                };
                written.answer("keep a lease alive", answer, outcome)
            }
            Request::Revoke(id, answer) => {
                let outcome = if self.leases.knows(id, now) {
                    self.leases.remove(id);
                    tables.end_lease(id, written).map(Ok)
                } else {
                    Ok(Err(Error::NoLease { lease: id }))
                };
                written.answer("revoke a lease", answer, outcome)
            }
            Request::Restore(revision, entries, answer) => {
                let outcome = tables.restore(revision, entries, written);
                written.answer("restore the store", answer, outcome)
            }
            Request::Close(_) => Ok(()),
        }
    }
}

/// What a commit has done so far.
struct Written {
    revision: Revision,
    compacted: Revision,
    events: Vec<Event>,
    /// Must it be committed?
    anything: bool,
    /// Called once it is known how the commit went.
    answers: Vec<Box<dyn FnOnce(Option<Failure>) + Send>>,
}

impl Written {
    fn new(revision: Revision, compacted: Revision) -> Self {
        Self { revision, compacted, events: Vec::new(), anything: false, answers: Vec::new() }
    }

    /// The outer error of `outcome` is the store's and fails the commit, the inner one the request's.
    fn answer<T: Send + 'static>(
        &mut self,
        doing: &'static str,
        answer: Answer<T>,
        outcome: Result<Result<T>, redb::Error>,
    ) -> Result<(), redb::Error> {
        let (outcome, trouble) = match outcome {
            Ok(outcome) => (outcome, Ok(())),
            Err(error) => (Err(Failure::Not(error.to_string()).error(doing)), Err(error)),
        };
        self.answers.push(Box::new(move |failure| {
            // Whoever asked may have gone; what was written stays.
            drop(answer.send(failure.map_or(outcome, |failure| Err(failure.error(doing)))));
        }));
        trouble
    }

    /// Does none of these.
    fn refuse(&mut self, requests: impl Iterator<Item = Request>, why: &str) {
        fn not<T: Send + 'static>(
            why: &str,
            answer: Answer<T>,
        ) -> Box<dyn FnOnce(Option<Failure>) + Send> {
            let why = Failure::Not(why.to_owned());
            Box::new(move |failure| {
                drop(answer.send(Err(failure.unwrap_or(why).error("write to the store"))))
            })
        }
        self.answers.extend(requests.map(|request| match request {
            Request::Txn(_, answer) => not(why, answer),
            Request::Grant(_, answer) => not(why, answer),
            Request::Compact(_, answer)
            | Request::KeepAlive(_, answer)
            | Request::Revoke(_, answer)
            | Request::Restore(_, _, answer) => not(why, answer),
            Request::Close(_) => Box::new(drop),
        }));
    }
}

/// The tables of one commit.
struct Tables<'a> {
    versions: Table<'a, (&'static [u8], u64), &'static [u8]>,
    log: Table<'a, (u64, u32), &'static [u8]>,
    leases: Table<'a, u64, (u64, u64)>,
    lease_keys: Table<'a, (u64, &'static [u8]), ()>,
    meta: Table<'a, &'static str, u64>,
    /// Of keys and values in `versions`.
    bytes: u64,
}

impl<'a> Tables<'a> {
    fn open(transaction: &'a WriteTransaction) -> Result<Self, redb::Error> {
        let meta = transaction.open_table(META)?;
        let bytes = meta.get("bytes")?.map_or(0, |bytes| bytes.value());
        Ok(Self {
            versions: transaction.open_table(VERSIONS)?,
            log: transaction.open_table(LOG)?,
            leases: transaction.open_table(LEASES)?,
            lease_keys: transaction.open_table(LEASE_KEYS)?,
            meta,
            bytes,
        })
    }

    /// The inner error is the request's own; nothing is written then.
    fn txn(
        &mut self,
        txn: Txn,
        full: Option<String>,
        leases: &Leases,
        now: Instant,
        written: &mut Written,
    ) -> Result<Result<Outcome>, redb::Error> {
        let mut succeeded = true;
        for compare in &txn.when {
            succeeded &= self.holds(compare)?;
        }
        let ops = if succeeded { txn.then } else { txn.or_else };
        for op in &ops {
            match op {
                Op::Put { lease: Some(id), .. } if !leases.knows(*id, now) => {
                    return Ok(Err(Error::NoLease { lease: *id }));
                }
                Op::Put { .. } => {
                    if let Some(what) = full {
                        return Ok(Err(Error::Full { what }));
                    }
                }
                Op::Get(Range { at, .. }) => {
                    if let Err(error) = check_revision(*at, written.revision.0, written.compacted.0)
                    {
                        return Ok(Err(error));
                    }
                }
                Op::Delete(_) => {}
            }
        }
        let mut change = Change { revision: written.revision.next(), events: Vec::new() };
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                Op::Put { key, value, lease } => {
                    self.put(&mut change, key, value, lease)?;
                    Done::Put
                }
                Op::Delete(range) => {
                    let (removed, _) =
                        entries(&self.versions, &Range { limit: 0, at: None, ..range }, u64::MAX)?;
                    for entry in &removed {
                        self.remove(&mut change, entry)?;
                    }
                    Done::Deleted(removed)
                }
                Op::Get(range) => {
                    // What this transaction wrote before is the newest there is.
                    let at = range.at.map_or(u64::MAX, |at| at.0);
                    let (entries, remaining) = entries(&self.versions, &range, at)?;
                    Done::Got(Page { entries, remaining, revision: written.revision })
                }
            });
        }
        change.done(written);
        for done in &mut results {
            if let Done::Got(page) = done {
                page.revision = written.revision;
            }
        }
        Ok(Ok(Outcome { succeeded, revision: written.revision, results }))
    }

    fn holds(&self, compare: &Compare) -> Result<bool, redb::Error> {
        Ok(compare.holds(latest(&self.versions, compare.key(), u64::MAX)?.as_ref()))
    }

    fn put(
        &mut self,
        change: &mut Change,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
    ) -> Result<(), redb::Error> {
        let previous = latest(&self.versions, &key, u64::MAX)?;
        let entry = Entry {
            created: previous.as_ref().map_or(change.revision, |previous| previous.created),
            version: previous.as_ref().map_or(1, |previous| previous.version + 1),
            modified: change.revision,
            key,
            value,
            lease,
        };
        if let Some(Entry { lease: Some(old), .. }) = &previous {
            self.lease_keys.remove((old.0, &entry.key[..]))?;
        }
        if let Some(lease) = lease {
            self.lease_keys.insert((lease.0, &entry.key[..]), ())?;
        }
        self.version(change, &entry.key, &encode(&entry))?;
        change.events.push(Event {
            key: entry.key.clone(),
            revision: change.revision,
            entry: Some(entry),
            previous,
        });
        Ok(())
    }

    fn remove(&mut self, change: &mut Change, entry: &Entry) -> Result<(), redb::Error> {
        if let Some(lease) = entry.lease {
            self.lease_keys.remove((lease.0, &entry.key[..]))?;
        }
        self.version(change, &entry.key, &[])?;
        change.events.push(Event {
            key: entry.key.clone(),
            revision: change.revision,
            entry: None,
            previous: Some(entry.clone()),
        });
        Ok(())
    }

    fn version(&mut self, change: &Change, key: &[u8], bytes: &[u8]) -> Result<(), redb::Error> {
        self.versions.insert((key, change.revision.0), bytes)?;
        let place = u32::try_from(change.events.len()).unwrap_or(u32::MAX);
        self.log.insert((change.revision.0, place), key)?;
        self.bytes += size(key, bytes);
        Ok(())
    }

    fn number(&mut self, name: &str, value: u64) -> Result<(), redb::Error> {
        self.meta.insert(name, value)?;
        Ok(())
    }

    /// Above every lease that is, and every one that ended at or before this revision.
    fn new_lease(&self, revision: Revision) -> Result<LeaseId, redb::Error> {
        let last = self.leases.last()?.map_or(0, |(id, _)| id.value());
        Ok(LeaseId(last.max(revision.0 << 8) + 1))
    }

    fn keep_lease(&mut self, id: LeaseId, ttl: Duration) -> Result<(), redb::Error> {
        let ends = unix_millis().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        self.leases.insert(id.0, (ttl.as_secs(), ends))?;
        Ok(())
    }

    /// Removes what was written under it, in one revision.
    fn end_lease(&mut self, id: LeaseId, written: &mut Written) -> Result<(), redb::Error> {
        let mut keys = Vec::new();
        for row in self.lease_keys.range((id.0, &[][..])..(id.0 + 1, &[][..]))? {
            keys.push(Bytes::copy_from_slice(row?.0.value().1));
        }
        let mut change = Change { revision: written.revision.next(), events: Vec::new() };
        for key in keys {
            if let Some(entry) = latest(&self.versions, &key, u64::MAX)? {
                self.remove(&mut change, &entry)?;
            }
        }
        self.leases.remove(id.0)?;
        written.anything = true;
        change.done(written);
        Ok(())
    }

    /// Forgets some of what is compacted. Is there more?
    fn forget(&mut self, compacted: u64) -> Result<bool, redb::Error> {
        let mut rows = Vec::new();
        for row in self.log.range((0, 0)..=(compacted, u32::MAX))?.take(FORGET_MOST) {
            let (place, key) = row?;
            rows.push((place.value(), key.value().to_vec()));
        }
        let keys: BTreeSet<&[u8]> = rows.iter().map(|(_, key)| &key[..]).collect();
        for key in keys {
            // The last one stays, unless it says that the key is not there.
            let mut known = Vec::new();
            for version in self.versions.range((key, 0)..=(key, compacted))? {
                let (place, bytes) = version?;
                known.push((place.value().1, size(key, bytes.value()), bytes.value().is_empty()));
            }
            if known.last().is_some_and(|(_, _, removed)| !removed) {
                known.pop();
            }
            for (revision, size, _) in known {
                self.versions.remove((key, revision))?;
                self.bytes = self.bytes.saturating_sub(size);
            }
        }
        for (place, _) in &rows {
            self.log.remove(*place)?;
        }
        Ok(!rows.is_empty())
    }

    /// Everything as it was at a revision, into an empty store.
    fn restore(
        &mut self,
        revision: Revision,
        entries: Vec<Entry>,
        written: &mut Written,
    ) -> Result<Result<()>, redb::Error> {
        if written.revision != Revision::NONE {
            return Ok(Err(Error::Refused { what: "a snapshot for a store that is not empty" }));
        }
        for entry in &entries {
            // Leases are not in snapshots: what had one lives until it is written again.
            let bytes = encode(&Entry { lease: None, ..entry.clone() });
            self.versions.insert((&entry.key[..], entry.modified.0), &bytes[..])?;
            self.bytes += size(&entry.key, &bytes);
        }
        self.meta.insert("compacted", revision.0)?;
        (written.revision, written.compacted, written.anything) = (revision, revision, true);
        Ok(Ok(()))
    }
}

/// The writes of one transaction.
struct Change {
    revision: Revision,
    events: Vec<Event>,
}

impl Change {
    fn done(self, written: &mut Written) {
        if !self.events.is_empty() {
            written.revision = self.revision;
            written.events.extend(self.events);
            written.anything = true;
        }
    }
}

fn size(key: &[u8], version: &[u8]) -> u64 {
    u64::try_from(key.len() + version.len()).unwrap_or(u64::MAX)
}

/// How long a lease is held from `now` on that was to end at `ends`, in milliseconds since 1970. A clock that was set
/// back makes no lease longer than it was when granted. Only a restart asks this clock.
fn left(ttl: Duration, ends: u64, now: u64) -> Duration {
    Duration::from_millis(ends.saturating_sub(now)).min(ttl)
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_by_an_hour_neither_keeps_a_lease_for_ever_nor_ends_others() {
        const NOW: u64 = 1_767_225_600_000;
        const HOUR: u64 = 3_600_000;
        let ttl = Duration::from_secs(2 * 3600);
        let left = |now| left(ttl, NOW + 2 * HOUR, now).as_secs();
        assert_eq!(left(NOW + HOUR), 3600);
        assert_eq!(left(NOW - HOUR), 2 * 3600, "set back: as long as it was granted");
        assert_eq!(left(NOW + HOUR + HOUR / 2), 1800, "set ahead: an hour less");
        assert_eq!(left(NOW + 3 * HOUR), 0);
    }
}
