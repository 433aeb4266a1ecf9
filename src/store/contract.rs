//! What is asked of a store and what it answers, whichever it is. The words are etcd's.

use std::fmt;

use bytes::Bytes;

use crate::{Error, Result};

/// Counts the writes of a store, from 1; a transaction that writes several keys is one. Never falls and is never
/// used twice, also over restarts.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Revision(pub u64);

impl Revision {
    /// Of a key that is not there.
    pub const NONE: Self = Self(0);

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a lease; never 0.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LeaseId(pub u64);

/// A key with its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Any bytes, at least one.
    pub key: Bytes,
    /// Any bytes.
    pub value: Bytes,
    /// The write that made the key; another one after it was removed.
    pub created: Revision,
    /// The last write of the key.
    pub modified: Revision,
    /// How often it was written since it was made, from 1.
    pub version: u64,
    /// What it ends with.
    pub lease: Option<LeaseId>,
}

/// Keys from `start`, and before `end`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Range {
    /// The first key.
    pub start: Bytes,
    /// The first key that is not in it; empty: `start` alone; [`Range::OPEN`]: all from `start` on.
    pub end: Bytes,
    /// At most so many entries; 0: all.
    pub limit: usize,
    /// As it was then; else as it is.
    pub at: Option<Revision>,
}

impl Range {
    /// One key.
    #[must_use]
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: Bytes::new(), limit: 0, at: None }
    }

    /// Stands for no end.
    pub const OPEN: &[u8] = &[0];

    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self { start: Self::OPEN.into(), end: Self::OPEN.into(), limit: 0, at: None }
    }

    /// All keys that begin so.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let mut end = start.to_vec();
        while end.last() == Some(&u8::MAX) {
            end.pop();
        }
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end = Self::OPEN.to_vec(),
        }
        let start = if start.is_empty() { Self::OPEN.into() } else { start };
        Self { start, end: end.into(), limit: 0, at: None }
    }

    /// Goes on behind a key, as for the next page.
    #[must_use]
    pub fn after(mut self, key: &[u8]) -> Self {
        self.start = [key, &[0]].concat().into();
        self
    }

    /// No more than so many entries.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// As it was at a revision.
    #[must_use]
    pub fn at(mut self, revision: Revision) -> Self {
        self.at = Some(revision);
        self
    }

    /// Is the key in it?
    #[must_use]
    pub fn holds(&self, key: &[u8]) -> bool {
        match &self.end[..] {
            [] => key == self.start,
            Self::OPEN => key >= &self.start[..],
            end => key >= &self.start[..] && key < end,
        }
    }
}

/// A part of a range.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page {
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// How many of the range there are behind them.
    pub remaining: u64,
    /// The newest revision when it was read. The entries are those of [`Range::at`] if that was given.
    pub revision: Revision,
}

/// What must be so for a transaction's first list to be done. A key that is not there has 0 everywhere.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Compare {
    /// [`Entry::created`].
    Created(Bytes, Revision),
    /// [`Entry::modified`].
    Modified(Bytes, Revision),
    /// [`Entry::version`].
    Version(Bytes, u64),
}

impl Compare {
    /// Which key it looks at.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        let (Self::Created(key, _) | Self::Modified(key, _) | Self::Version(key, _)) = self;
        key
    }

    /// Is it so?
    #[must_use]
    pub fn holds(&self, entry: Option<&Entry>) -> bool {
        match self {
            Self::Created(_, expected) => {
                entry.map_or(Revision::NONE, |entry| entry.created) == *expected
            }
            Self::Modified(_, expected) => {
                entry.map_or(Revision::NONE, |entry| entry.modified) == *expected
            }
            Self::Version(_, expected) => entry.map_or(0, |entry| entry.version) == *expected,
        }
    }
}

/// A step of a transaction. Each sees what those before it did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// Which.
        key: Bytes,
        /// What.
        value: Bytes,
        /// With what it ends.
        lease: Option<LeaseId>,
    },
    /// Removes all keys of a range.
    Delete(Range),
    /// Reads.
    Get(Range),
}

/// All or nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Txn {
    /// All of these must hold...
    pub when: Vec<Compare>,
    /// ...for this to be done...
    pub then: Vec<Op>,
    /// ...and this is done if one does not.
    pub or_else: Vec<Op>,
}

impl Txn {
    /// If all of these hold.
    #[must_use]
    pub fn when(when: impl Into<Vec<Compare>>) -> Self {
        Self { when: when.into(), ..Self::default() }
    }

    /// Do this.
    #[must_use]
    pub fn then(mut self, ops: impl Into<Vec<Op>>) -> Self {
        self.then = ops.into();
        self
    }

    /// Else do that.
    #[must_use]
    pub fn or_else(mut self, ops: impl Into<Vec<Op>>) -> Self {
        self.or_else = ops.into();
        self
    }

    /// What etcd refuses is refused everywhere.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |what: &'static str| Err(Error::Refused { what });
        for ops in [&self.then, &self.or_else] {
            if ops.len() > MAX_OPS {
                return refuse("a transaction of more than 128 steps");
            }
            let mut written: Vec<&Bytes> = Vec::new();
            for op in ops {
                match op {
                    Op::Put { key, value, .. } => {
                        if key.is_empty() {
                            return refuse("an empty key");
                        }
                        if key.len() + value.len() > MAX_BYTES {
                            return Err(Error::TooLarge {
                                bytes: key.len() + value.len(),
                                limit: MAX_BYTES,
                            });
                        }
                        if written.contains(&key) {
                            return refuse("the same key written twice in one transaction");
                        }
                        written.push(key);
                    }
                    Op::Delete(range) => {
                        if range.start.is_empty() {
                            return refuse("an empty key");
                        }
                        if written.iter().any(|key| range.holds(key)) {
                            return refuse("a key written and removed in one transaction");
                        }
                    }
                    Op::Get(range) if range.start.is_empty() => return refuse("an empty key"),
                    Op::Get(_) => {}
                }
            }
        }
        if self.when.len() > MAX_OPS || self.when.iter().any(|compare| compare.key().is_empty()) {
            return refuse("an empty key, or more than 128, in a transaction's comparisons");
        }
        Ok(())
    }
}

/// etcd's own limit of steps.
const MAX_OPS: usize = 128;

/// Of a key with its value: etcd's limit of a request less what goes around it.
const MAX_BYTES: usize = 1_500 * 1024;

/// What a transaction did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Did all comparisons hold?
    pub succeeded: bool,
    /// The newest revision: its own, if it wrote.
    pub revision: Revision,
    /// One for each step that was done.
    pub results: Vec<Done>,
}

/// What a step did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Done {
    /// Written.
    Put,
    /// These were removed.
    Deleted(Vec<Entry>),
    /// These are there.
    Got(Page),
}

/// A change of one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// Which.
    pub key: Bytes,
    /// By which write.
    pub revision: Revision,
    /// What it became; none: it was removed.
    pub entry: Option<Entry>,
    /// What it was; none: it was not there.
    pub previous: Option<Entry>,
}

/// Changes that belong together: of one or several whole revisions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Batch {
    /// With this batch everything up to here was told.
    pub revision: Revision,
    /// In the order of their revisions. Empty: nothing happened in the range up to there.
    pub events: Vec<Event>,
}
