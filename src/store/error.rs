//! What goes wrong with a store.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use crate::{Entry, LeaseId, Revision};

/// Of a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One variant for each thing a caller does differently.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// To be created, and there.
    #[error("the key \"{}\" exists", key.escape_ascii())]
    Exists {
        /// Which.
        key: Bytes,
    },
    /// Not as it was expected.
    #[error("the key \"{}\" was changed by somebody else", key.escape_ascii())]
    Conflict {
        /// Which.
        key: Bytes,
        /// What is there.
        current: Option<Box<Entry>>,
    },
    /// Asked for what is forgotten.
    #[error("revision {asked} was compacted; the oldest one known is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// What can be asked for; 0 when the back end does not tell.
        oldest: Revision,
    },
    /// Asked for what is not yet.
    #[error("revision {asked} is not yet; the newest one is {newest}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// What there is.
        newest: Revision,
    },
    /// Ended, or never was.
    #[error("there is no lease {:x}", lease.0)]
    NoLease {
        /// Which.
        lease: LeaseId,
    },
    /// Larger than any back end takes.
    #[error("a key with its value of {bytes} bytes; {limit} are taken")]
    TooLarge {
        /// What it has.
        bytes: usize,
        /// What it may have.
        limit: usize,
    },
    /// Not a request.
    #[error("{what} is refused")]
    Refused {
        /// What was wrong.
        what: &'static str,
    },
    /// No room. Reads and removals go on.
    #[error("the store is full: {what}; remove what is not needed, or give it more room")]
    Full {
        /// Of what.
        what: String,
    },
    /// Nothing was written; it may be tried again.
    #[error("{doing}: the store does not answer")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer of a write was lost.
    #[error("{doing}: it is not known whether it was done; read before it is repeated")]
    Unknown {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The other side answered something else.
    #[error("{doing}: the store answered what it should not: {what}")]
    Protocol {
        /// What was being done.
        doing: &'static str,
        /// What came.
        what: String,
    },
    /// The file is not one of ours, is damaged, or is open elsewhere.
    #[error("open the store {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Written by a later Orlop.
    #[error("the store {} has format {found}; this Orlop knows formats up to {known}: use the Orlop that wrote it, or one after it", path.display())]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// Not one of ours, or not whole.
    #[error("the snapshot is refused at byte {at}: {what}; nothing was written")]
    Snapshot {
        /// Where.
        at: usize,
        /// Why.
        what: &'static str,
    },
    /// Not a place a store can be at.
    #[error(
        "\"{text}\" names no store: {why}; write embedded:///PATH or etcd://HOST:PORT,HOST:PORT"
    )]
    Location {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The same error for everybody who waits for the same write.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// Nothing was written.
    Not(String),
    /// Nobody knows.
    Unknown(String),
    /// No room.
    Full(String),
}

impl Failure {
    /// Of what went wrong before the commit.
    pub(crate) fn before(error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
                Self::Full("the disk has no room left".to_owned())
            }
            error => Self::Not(error.to_string()),
        }
    }

    pub(crate) fn error(self, doing: &'static str) -> Error {
        match self {
            Self::Not(why) => Error::Unavailable { doing, source: why.into() },
            Self::Unknown(why) => Error::Unknown { doing, source: why.into() },
            Self::Full(what) => Error::Full { what },
        }
    }
}
