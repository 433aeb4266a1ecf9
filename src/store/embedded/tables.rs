//! The tables of the file, and what is read from them.
//!
//! | Table | Key | Value |
//! |---|---|---|
//! | `versions` | key, revision | the [`Entry`] as it was written then, or nothing: removed |
//! | `log` | revision, place within it | the key that was written or removed |
//! | `leases` | id | ttl in seconds, end in Unix milliseconds |
//! | `lease_keys` | id, key | |
//! | `meta` | `format`, `revision`, `compacted`, `bytes` | a number |
//!
//! A value is written once, however long its history is kept: what a key was at a revision is its last version at or
//! below it, and what it was before a change is the version before.

use std::ops::Bound;

use bytes::Bytes;
use redb::{
    AccessGuard, ReadOnlyTable, ReadTransaction, ReadableTable, StorageError, TableDefinition,
};

use super::unavailable;
use crate::{Entry, Error, Event, LeaseId, Page, Range, Result, Revision};

pub(crate) type Versions = TableDefinition<'static, (&'static [u8], u64), &'static [u8]>;
pub(crate) const VERSIONS: Versions = TableDefinition::new("versions");
pub(crate) const LOG: TableDefinition<'static, (u64, u32), &[u8]> = TableDefinition::new("log");
pub(crate) const LEASES: TableDefinition<'static, u64, (u64, u64)> = TableDefinition::new("leases");
pub(crate) const LEASE_KEYS: TableDefinition<'static, (u64, &[u8]), ()> =
    TableDefinition::new("lease_keys");
pub(crate) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// The format this file describes.
pub(crate) const FORMAT: u64 = 1;

/// What a version is written as: nothing for a removal, else created, version and lease, 8 bytes each, and the value.
const HEAD: usize = 24;

pub(crate) fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + entry.value.len());
    bytes.extend(entry.created.0.to_le_bytes());
    bytes.extend(entry.version.to_le_bytes());
    bytes.extend(entry.lease.map_or(0, |lease| lease.0).to_le_bytes());
    bytes.extend(&entry.value);
    bytes
}

/// The entry, if the version is not a removal.
fn decode(key: &[u8], revision: u64, bytes: &[u8]) -> Result<Option<Entry>, StorageError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let number = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let (Some(created), Some(version), Some(lease)) = (number(0), number(8), number(16)) else {
        let what = format!("the version {revision} of \"{}\" is cut", key.escape_ascii());
        return Err(StorageError::Corrupted(what));
    };
    Ok(Some(Entry {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(bytes.get(HEAD..).unwrap_or_default()),
        created: Revision(created),
        modified: Revision(revision),
        version,
        lease: (lease != 0).then_some(LeaseId(lease)),
    }))
}

/// A key as it was at a revision.
pub(crate) fn latest(
    versions: &impl ReadableTable<(&'static [u8], u64), &'static [u8]>,
    key: &[u8],
    at: u64,
) -> Result<Option<Entry>, StorageError> {
    match versions.range((key, 0)..=(key, at))?.next_back() {
        Some(version) => {
            let (place, bytes) = version?;
            decode(key, place.value().1, bytes.value())
        }
        None => Ok(None),
    }
}

/// A row of `versions`: key and revision, and the bytes.
type Version<'a> = (AccessGuard<'a, (&'static [u8], u64)>, AccessGuard<'a, &'static [u8]>);

/// The entries of a range at a revision, and how many there are behind the limit.
pub(crate) fn entries(
    versions: &impl ReadableTable<(&'static [u8], u64), &'static [u8]>,
    range: &Range,
    at: u64,
) -> Result<(Vec<Entry>, u64), StorageError> {
    if range.end.is_empty() {
        return Ok((latest(versions, &range.start, at)?.into_iter().collect(), 0));
    }
    let mut found = Vec::new();
    let mut remaining = 0;
    let mut take = |key: &[u8], revision, bytes: &[u8]| -> Result<(), StorageError> {
        if range.limit > 0 && found.len() >= range.limit {
            remaining += u64::from(!bytes.is_empty());
        } else if let Some(entry) = decode(key, revision, bytes)? {
            found.push(entry);
        }
        Ok(())
    };
    // The last version of a key that is not too new is the one that counts; it is known by what follows.
    let mut last: Option<Version<'_>> = None;
    let open = range.end == Range::OPEN;
    let end = if open { Bound::Unbounded } else { Bound::Excluded((&range.end[..], 0)) };
    for version in versions.range((Bound::Included((&range.start[..], 0)), end))? {
        let (place, bytes) = version?;
        let (key, revision) = place.value();
        if revision > at {
            continue;
        }
        if let Some((known, bytes)) = &last
            && known.value().0 != key
        {
            take(known.value().0, known.value().1, bytes.value())?;
        }
        last = Some((place, bytes));
    }
    if let Some((known, bytes)) = &last {
        take(known.value().0, known.value().1, bytes.value())?;
    }
    Ok((found, remaining))
}

/// One state of the file.
pub(crate) struct Reading {
    versions: ReadOnlyTable<(&'static [u8], u64), &'static [u8]>,
    log: ReadOnlyTable<(u64, u32), &'static [u8]>,
    meta: ReadOnlyTable<&'static str, u64>,
}

impl Reading {
    pub(crate) fn open(transaction: &ReadTransaction) -> Result<Self> {
        let open = || {
            Ok(Self {
                versions: transaction.open_table(VERSIONS)?,
                log: transaction.open_table(LOG)?,
                meta: transaction.open_table(META)?,
            })
        };
        open().map_err(unavailable::<redb::TableError>("read the store"))
    }

    fn number(&self, name: &str) -> Result<u64> {
        let value = self.meta.get(name).map_err(unavailable("read the store"))?;
        Ok(value.map_or(0, |value| value.value()))
    }

    pub(crate) fn bytes(&self) -> Result<u64> {
        self.number("bytes")
    }

    pub(crate) fn page(&self, range: &Range) -> Result<Page> {
        let (revision, oldest) = (self.number("revision")?, self.number("compacted")?);
        let at = check_revision(range.at, revision, oldest)?;
        let (entries, remaining) =
            entries(&self.versions, range, at).map_err(unavailable("read the store"))?;
        Ok(Page { entries, remaining, revision: Revision(revision) })
    }

    /// Is what changed after a revision still known?
    pub(crate) fn is_known_after(&self, after: Revision) -> Result<()> {
        let oldest = Revision(self.number("compacted")?);
        if after < oldest { Err(Error::Compacted { asked: after.next(), oldest }) } else { Ok(()) }
    }

    /// What changed after a revision: up to `most` events, but whole revisions; and up to where that is everything.
    pub(crate) fn history(
        &self,
        range: &Range,
        after: Revision,
        most: usize,
    ) -> Result<(Vec<Event>, Revision)> {
        self.is_known_after(after)?;
        let newest = Revision(self.number("revision")?);
        let read = || -> Result<_, StorageError> {
            let mut events: Vec<Event> = Vec::new();
            for change in self.log.range((after.0 + 1, 0)..)? {
                let (place, key) = change?;
                let (revision, _) = place.value();
                let full = events.len() >= most;
                if full && events.last().is_some_and(|last| last.revision.0 != revision) {
                    return Ok((events, Revision(revision - 1)));
                }
                if range.holds(key.value()) {
                    events.push(event(&self.versions, key.value(), revision)?);
                }
            }
            Ok((events, newest.max(after)))
        };
        read().map_err(unavailable("read the history"))
    }
}

/// What a write did to a key.
fn event(
    versions: &impl ReadableTable<(&'static [u8], u64), &'static [u8]>,
    key: &[u8],
    revision: u64,
) -> Result<Event, StorageError> {
    let version = versions.get((key, revision))?;
    let entry = match &version {
        Some(bytes) => decode(key, revision, bytes.value())?,
        None => None,
    };
    let previous = latest(versions, key, revision - 1)?;
    Ok(Event { key: Bytes::copy_from_slice(key), revision: Revision(revision), entry, previous })
}

/// The revision to read at.
pub(crate) fn check_revision(at: Option<Revision>, newest: u64, oldest: u64) -> Result<u64> {
    match at {
        None => Ok(newest),
        Some(asked) if asked.0 > newest => Err(Error::Future { asked, newest: Revision(newest) }),
        Some(asked) if asked.0 < oldest => {
            Err(Error::Compacted { asked, oldest: Revision(oldest) })
        }
        Some(asked) => Ok(asked.0),
    }
}
