//! The one contract under curator and the API server, which is etcd's: a revision per write, transactions that
//! compare before they write, an ordered watch from a revision with its history, leases, compaction, snapshots.
//!
//! ```text
//! Store ─┬─ Embedded   one node, one file (redb), nothing to install   embedded:///var/lib/orlop/store
//!        └─ Etcd       an etcd cluster of generation 3.4 or later      etcd://10.0.0.1:2379,10.0.0.2:2379
//! ```
//!
//! - [`Range`], [`Txn`], [`Entry`], [`Event`]: what is asked and answered, of either back end.
//! - `embedded`: a thread that writes (many transactions to a commit, and one flush of the disk), readers beside it, a
//!   hub that hands what was committed to the watches. What was acknowledged survives the loss of power at any instant.
//! - `etcd`: the same over the wire.
//! - `snapshot`: everything at one revision as a file, from and into either.
//!
//! A write that is answered with [`Error::Unknown`] may have been done or not: read again before it is repeated. Every
//! other error of a write means that nothing was written.

use std::time::Duration;

use bytes::Bytes;

mod contract;
mod embedded;
mod error;
mod etcd;
mod lease;
mod members;
pub mod snapshot;
mod url;

pub use contract::{
    Batch, Compare, Done, Entry, Event, LeaseId, Op, Outcome, Page, Range, Revision, Txn,
};
pub use embedded::{Durability, Embedded, Limits};
pub use error::{Error, Result};
pub use etcd::{Etcd, EtcdTls};
pub use lease::Buckets;
pub use members::Member;
pub use url::Location;

/// Either back end; cheap to clone.
#[derive(Clone, Debug)]
pub enum Store {
    /// One node's own.
    Embedded(Embedded),
    /// A cluster's.
    Etcd(Etcd),
}

/// Calls the same method of whichever back end it is.
macro_rules! either {
    ($store:expr, $inner:ident => $call:expr) => {
        match $store {
            Store::Embedded($inner) => $call,
            Store::Etcd($inner) => $call,
        }
    };
}

impl Store {
    /// Opens what `location` names.
    ///
    /// # Errors
    /// The file is damaged, locked or of a newer format; no etcd answers.
    pub async fn open(location: &Location, tls: Option<EtcdTls>, limits: Limits) -> Result<Self> {
        Ok(match location {
            Location::Embedded(path) => Self::Embedded(Embedded::open(path, limits).await?),
            Location::Etcd(endpoints) => Self::Etcd(Etcd::connect(endpoints, tls).await?),
        })
    }

    /// The newest revision: every write acknowledged before the call is at or below it.
    ///
    /// # Errors
    /// The back end does not answer.
    pub async fn revision(&self) -> Result<Revision> {
        either!(self, inner => inner.revision().await)
    }

    /// One key as it is, or was at a revision.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub async fn get(
        &self,
        key: impl Into<Bytes> + Send,
        at: Option<Revision>,
    ) -> Result<Option<Entry>> {
        let mut range = Range::key(key);
        range.at = at;
        Ok(self.range(range).await?.entries.pop())
    }

    /// The entries of a range in the order of their keys, all of one revision.
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::Future`]; the back end does not answer.
    pub async fn range(&self, range: Range) -> Result<Page> {
        either!(self, inner => inner.range(range).await)
    }

    /// Compares, and then does all of `then` or all of `or_else`.
    ///
    /// # Errors
    /// Nothing was written, unless it is [`Error::Unknown`].
    pub async fn txn(&self, txn: Txn) -> Result<Outcome> {
        txn.check()?;
        either!(self, inner => inner.txn(txn).await)
    }

    /// Writes a key that is not there.
    ///
    /// # Errors
    /// [`Error::Exists`], and those of [`Store::txn`].
    pub async fn create(
        &self,
        key: impl Into<Bytes> + Send,
        value: impl Into<Bytes> + Send,
        lease: Option<LeaseId>,
    ) -> Result<Revision> {
        let key = key.into();
        let txn = Txn::when([Compare::Modified(key.clone(), Revision::NONE)]).then([Op::Put {
            key: key.clone(),
            value: value.into(),
            lease,
        }]);
        let outcome = self.txn(txn).await?;
        if outcome.succeeded { Ok(outcome.revision) } else { Err(Error::Exists { key }) }
    }

    /// Writes a key that is as it was at `expected`.
    ///
    /// # Errors
    /// [`Error::Conflict`] with what is there now; those of [`Store::txn`].
    pub async fn update(
        &self,
        key: impl Into<Bytes> + Send,
        value: impl Into<Bytes> + Send,
        expected: Revision,
        lease: Option<LeaseId>,
    ) -> Result<Revision> {
        let key = key.into();
        let put = Op::Put { key: key.clone(), value: value.into(), lease };
        Ok(self.replace(key, expected, put).await?.0)
    }

    /// Removes a key that is as it was at `expected`; gives what was removed.
    ///
    /// # Errors
    /// As [`Store::update`].
    pub async fn delete(
        &self,
        key: impl Into<Bytes> + Send,
        expected: Revision,
    ) -> Result<(Revision, Entry)> {
        let key = key.into();
        let (revision, done) =
            self.replace(key.clone(), expected, Op::Delete(Range::key(key.clone()))).await?;
        match done {
            Done::Deleted(mut removed) if !removed.is_empty() => Ok((revision, removed.remove(0))),
            // It is not there, and nothing else was expected.
            _ => Err(Error::Conflict { key, current: None }),
        }
    }

    async fn replace(&self, key: Bytes, expected: Revision, op: Op) -> Result<(Revision, Done)> {
        let txn = Txn::when([Compare::Modified(key.clone(), expected)])
            .then([op])
            .or_else([Op::Get(Range::key(key.clone()))]);
        let mut outcome = self.txn(txn).await?;
        let done = outcome.results.pop();
        match (outcome.succeeded, done) {
            (true, Some(done)) => Ok((outcome.revision, done)),
            (false, Some(Done::Got(mut page))) => {
                Err(Error::Conflict { key, current: page.entries.pop().map(Box::new) })
            }
            _ => Err(Error::Protocol {
                doing: "write a key",
                what: "the answer has no result".to_owned(),
            }),
        }
    }

    /// Every change of a range after a revision, in order, none left out and none told twice.
    ///
    /// # Errors
    /// [`Error::Compacted`] when what followed `after` is no longer known; the back end does not answer.
    pub async fn watch(&self, range: Range, after: Revision) -> Result<Watch> {
        Ok(Watch(match self {
            Self::Embedded(inner) => Source::Embedded(inner.watch(range, after)?),
            Self::Etcd(inner) => Source::Etcd(inner.watch(range, after).await?),
        }))
    }

    /// Forgets what was before `revision`; the state at it stays readable.
    ///
    /// # Errors
    /// [`Error::Compacted`] when it already was, [`Error::Future`]; the back end does not answer.
    pub async fn compact(&self, revision: Revision) -> Result<()> {
        either!(self, inner => inner.compact(revision).await)
    }

    /// A lease: what is written under it goes when it has not been kept alive for `ttl` (whole seconds, 1 at least).
    ///
    /// # Errors
    /// The back end does not answer.
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        either!(self, inner => inner.grant(ttl).await)
    }

    /// Starts the lease's time anew.
    ///
    /// # Errors
    /// [`Error::NoLease`] when it has ended; the back end does not answer.
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        either!(self, inner => inner.keep_alive(lease).await)
    }

    /// Ends a lease and removes what was written under it.
    ///
    /// # Errors
    /// As [`Store::keep_alive`].
    pub async fn revoke(&self, lease: LeaseId) -> Result<()> {
        either!(self, inner => inner.revoke(lease).await)
    }

    /// Waits until everything is on the disk and the file is free for others; every later call is refused. An
    /// embedded store that is only dropped is closed soon after.
    pub async fn close(&self) {
        if let Self::Embedded(inner) = self {
            inner.close().await;
        }
    }

    /// Bytes on disk.
    ///
    /// # Errors
    /// The back end does not answer.
    pub async fn size(&self) -> Result<u64> {
        either!(self, inner => inner.size().await)
    }
}

/// A watch; ends when it is dropped.
#[derive(Debug)]
pub struct Watch(Source);

#[derive(Debug)]
enum Source {
    Embedded(embedded::Watch),
    Etcd(etcd::Watch),
}

impl Watch {
    /// The next changes. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// [`Error::Compacted`] when the reader was too slow for the history that is kept; the back end went away. The
    /// watch is over then: start another after the revision of the last batch.
    pub async fn next(&mut self) -> Result<Batch> {
        match &mut self.0 {
            Source::Embedded(watch) => watch.next().await,
            Source::Etcd(watch) => watch.next().await,
        }
    }

    /// Asks for a batch, empty if need be, that tells how far the watch has come: it is at or above every revision
    /// acknowledged before the call.
    ///
    /// # Errors
    /// The back end went away.
    pub async fn request_progress(&mut self) -> Result<()> {
        match &mut self.0 {
            Source::Embedded(watch) => {
                watch.request_progress();
                Ok(())
            }
            Source::Etcd(watch) => watch.request_progress().await,
        }
    }
}
