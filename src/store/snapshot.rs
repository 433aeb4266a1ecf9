//! Everything a store holds at one revision, as a file: a copy for the worst day, and the way from one back end to
//! the other.
//!
//! ```text
//! "ORLOPKV1" revision            8 + 8 bytes; all numbers little-endian
//! 1 created modified version key value     8 + 8 + 8, and a length of 4 before each of the last two
//! …                              by key, ascending
//! 0 SHA-256                      of everything before
//! ```
//!
//! Leases are not in it: what had one lives until it is written again.

use bytes::Bytes;
use ring::digest;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{Entry, Error, Op, Range, Result, Revision, Store, Txn};

const MAGIC: &[u8] = b"ORLOPKV1";

/// Entries that are read at once, and that are written to etcd at once.
const PAGE: usize = 100;

/// What a file holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Snapshot {
    /// When it was taken.
    pub revision: Revision,
    /// By key, ascending.
    pub entries: Vec<Entry>,
}

/// Writes what the store holds now, all of one revision, while others go on writing.
///
/// # Errors
/// The store does not answer, or forgets the revision meanwhile; `out` cannot be written: it is not a whole snapshot
/// then, and [`parse`] says so.
pub async fn write(store: &Store, out: &mut (impl AsyncWrite + Unpin)) -> Result<Revision> {
    write_those(store, |_| true, out).await
}

/// As [`write`], of some entries only.
///
/// # Errors
/// As [`write`].
pub async fn write_those(
    store: &Store,
    keep: impl Fn(&Entry) -> bool,
    out: &mut (impl AsyncWrite + Unpin),
) -> Result<Revision> {
    let revision = store.revision().await?;
    let mut sum = digest::Context::new(&digest::SHA256);
    let mut bytes = [MAGIC, &revision.0.to_le_bytes()].concat();
    let mut range = Range::all().limit(PAGE).at(revision);
    loop {
        let page = if revision == Revision::NONE {
            Vec::new()
        } else {
            store.range(range.clone()).await?.entries
        };
        for entry in page.iter().filter(|entry| keep(entry)) {
            encode(entry, &mut bytes);
        }
        let Some(last) = page.last() else { break };
        range = range.after(&last.key);
        sum.update(&bytes);
        out.write_all(&bytes).await.map_err(io("write the snapshot"))?;
        bytes.clear();
    }
    bytes.push(0);
    sum.update(&bytes);
    bytes.extend(sum.finish().as_ref());
    out.write_all(&bytes).await.map_err(io("write the snapshot"))?;
    out.flush().await.map_err(io("write the snapshot"))?;
    Ok(revision)
}

/// Fills an empty store. An embedded one has the same revisions after it; in etcd the entries get new ones, in the
/// same order.
///
/// # Errors
/// `input` cannot be read or is not whole: nothing is written then. The store is not empty. The store does not answer:
/// an etcd may then have a part of it.
pub async fn restore(store: &Store, input: &mut (impl AsyncRead + Unpin)) -> Result<Revision> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).await.map_err(io("read the snapshot"))?;
    let snapshot = parse(&bytes)?;
    match store {
        Store::Embedded(embedded) => {
            embedded.restore(snapshot.revision, snapshot.entries).await?;
            Ok(snapshot.revision)
        }
        Store::Etcd(_) => refill(store, snapshot.entries).await,
    }
}

async fn refill(store: &Store, mut entries: Vec<Entry>) -> Result<Revision> {
    if !store.range(Range::all().limit(1)).await?.entries.is_empty() {
        return Err(Error::Refused { what: "a snapshot for a store that is not empty" });
    }
    entries.sort_by_key(|entry| entry.modified);
    for entry in entries {
        store
            .txn(Txn::default().then([Op::Put { key: entry.key, value: entry.value, lease: None }]))
            .await?;
    }
    store.revision().await
}

fn encode(entry: &Entry, bytes: &mut Vec<u8>) {
    bytes.push(1);
    for number in [entry.created.0, entry.modified.0, entry.version] {
        bytes.extend(number.to_le_bytes());
    }
    for text in [&entry.key, &entry.value] {
        bytes.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(&text[..]);
    }
}

/// Reads a file.
///
/// # Errors
/// It is not a snapshot, is cut or changed, or its numbers cannot be.
pub fn parse(bytes: &[u8]) -> Result<Snapshot> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(MAGIC.len())? != MAGIC {
        return Err(Error::Snapshot { at: 0, what: "it does not begin as one" });
    }
    let mut snapshot = Snapshot { revision: Revision(reader.number()?), entries: Vec::new() };
    loop {
        let at = reader.at;
        match reader.take(1)? {
            [0] => break,
            [1] => {}
            _ => return Err(Error::Snapshot { at, what: "an unknown kind of row" }),
        }
        let (created, modified, version) = (reader.number()?, reader.number()?, reader.number()?);
        let entry = Entry {
            key: reader.text()?,
            value: reader.text()?,
            created: Revision(created),
            modified: Revision(modified),
            version,
            lease: None,
        };
        let ordered = snapshot.entries.last().is_none_or(|last| last.key < entry.key);
        if !ordered || entry.key.is_empty() {
            return Err(Error::Snapshot { at, what: "its keys are not in order" });
        }
        if created == 0 || version == 0 || created > modified || modified > snapshot.revision.0 {
            return Err(Error::Snapshot { at, what: "a revision that cannot be" });
        }
        snapshot.entries.push(entry);
    }
    let sum = digest::digest(&digest::SHA256, bytes.get(..reader.at).unwrap_or_default());
    let at = reader.at;
    if reader.take(digest::SHA256_OUTPUT_LEN)? != sum.as_ref() || reader.at != bytes.len() {
        return Err(Error::Snapshot { at, what: "its sum does not fit: it was changed" });
    }
    Ok(snapshot)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let taken = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(Error::Snapshot { at: self.bytes.len(), what: "it is cut" })?;
        self.at += length;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = [0; 8];
        number.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(number))
    }

    fn text(&mut self) -> Result<Bytes> {
        let mut length = [0; 4];
        length.copy_from_slice(self.take(4)?);
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        Ok(Bytes::copy_from_slice(self.take(length)?))
    }
}

fn io(doing: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Unavailable { doing, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = [MAGIC, &7_u64.to_le_bytes()].concat();
        for (key, modified) in [("a", 3), ("b", 7)] {
            let entry = Entry {
                key: key.into(),
                value: "value".into(),
                created: Revision(2),
                modified: Revision(modified),
                version: 2,
                lease: None,
            };
            encode(&entry, &mut bytes);
        }
        bytes.push(0);
        let sum = digest::digest(&digest::SHA256, &bytes);
        bytes.extend(sum.as_ref());
        bytes
    }

    #[test]
    fn what_is_not_whole_is_refused_wherever_it_is_cut_or_changed() {
        let whole = sample();
        let snapshot = parse(&whole).expect("it is whole");
        assert_eq!((snapshot.revision, snapshot.entries.len()), (Revision(7), 2));
        for cut in 0..whole.len() {
            assert!(parse(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(parse(&changed).is_err(), "changed at {at}");
        }
        assert!(parse(&[&whole[..], b"x"].concat()).is_err(), "something behind it");
    }
}
