//! How a cluster's state goes from one store into another, so that at every instant one of them is the true one,
//! whatever breaks off (spec §6.7).
//!
//! ```text
//! embedded store                                           etcd
//! MOVING = id, where to   from here on nothing is written
//!                                                          ARRIVING = id   a copy was begun; nobody uses it
//!                         entries in the order they were written ──▶ …
//!                                                          ARRIVED = id    one transaction: now this is the true one
//! LEFT = id               so that etcd need not be asked
//! ```
//!
//! Until there is [`ARRIVED`], the embedded store is the true one, read by everybody and written by nobody. Whatever
//! breaks off before is begun anew: what was copied goes first. A backup goes into an etcd in the same way.

use std::str::FromStr as _;

use bytes::Bytes;
use orlop_store::{Compare, Entry, Error, Location, Op, Range, Revision, Store, Txn};
use ring::rand::{SecureRandom as _, SystemRandom};
use tracing::info;

use crate::names::{CURATOR, ETCD_PKI, LEADER, Namespace, hex};

/// In the store that is left: where to, and under which id.
pub const MOVING: &str = "/x/move/to";
/// In the store that is left: the other one is the true one.
const LEFT: &str = "/x/move/left";
/// In the store that is entered: a part may be there.
const ARRIVING: &str = "/x/move/arriving";
/// In the store that is entered: all is there.
const ARRIVED: &str = "/x/move/arrived";
/// All four.
const MOVE: &str = "/x/move/";

/// What belongs to the cluster API.
const NAMESPACES: [Namespace; 2] = [CURATOR, ETCD_PKI];
/// Entries that are read at once, and at most written at once.
const PAGE: usize = 100;

/// Why a move does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A store.
    #[error(transparent)]
    Store(#[from] Error),
    /// It would be mixed with what is there.
    #[error(
        "the store {0} has the state of a cluster already, and nothing is written over it; give one that is empty"
    )]
    NotEmpty(String),
    /// Somebody else's copy.
    #[error(
        "a copy of another cluster's state into {0} was begun and not finished; finish it where it was begun, or remove \
         what begins with namespaced:curator/ and namespaced:etcd-pki/ there"
    )]
    Another(String),
    /// A copy that was begun in the same instant.
    #[error("somebody else writes into {0} at the same time; repeat this when that is done")]
    Crowd(String),
    /// What says so cannot be read.
    #[error("{key} in the cluster's store is damaged: {value:?}")]
    Damaged {
        /// Which key.
        key: &'static str,
        /// What is there.
        value: String,
    },
    /// No randomness.
    #[error("the kernel gives no random bytes")]
    Random,
}

/// A move that was begun.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Move {
    /// Tells it from others.
    pub id: String,
    /// Where to.
    pub to: Location,
    /// The other store is the true one, for certain.
    pub left: bool,
}

/// The move that was begun out of a store, if one was.
///
/// # Errors
/// The store does not answer, or has something else there.
pub async fn pending(store: &Store) -> Result<Option<Move>, Failure> {
    let Some(entry) = store.get(CURATOR.key(MOVING), None).await? else { return Ok(None) };
    let text = String::from_utf8_lossy(&entry.value);
    let parts = text.split_once(' ').map(|(id, to)| (id.to_owned(), Location::from_str(to)));
    let Some((id, Ok(to))) = parts else {
        return Err(Failure::Damaged { key: MOVING, value: text.into_owned() });
    };
    let left = store.get(CURATOR.key(LEFT), None).await?.is_some();
    Ok(Some(Move { id, to, left }))
}

/// Can a store be filled?
///
/// # Errors
/// It has a cluster, or a part of one; it does not answer.
pub async fn check(target: &Store, name: &Location) -> Result<(), Failure> {
    for namespace in NAMESPACES {
        if !target.range(namespace.range("").limit(1)).await?.entries.is_empty() {
            return Err(Failure::NotEmpty(name.to_string()));
        }
    }
    Ok(())
}

/// Begins a move, or gives the one that was begun: from here on nothing is written into the store.
///
/// # Errors
/// As [`pending`].
pub async fn begin(store: &Store, to: &Location) -> Result<Move, Failure> {
    let mut id = [0; 16];
    SystemRandom::new().fill(&mut id).map_err(|_| Failure::Random)?;
    let id = hex(&id);
    match store.create(CURATOR.key(MOVING), format!("{id} {to}"), None).await {
        Ok(_) => Ok(Move { id, to: to.clone(), left: false }),
        Err(error @ Error::Exists { .. }) => {
            pending(store).await?.ok_or_else(|| Failure::Store(error))
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes a move back that has not come to its end: what was copied is removed, the store is written again. False:
/// it has come to its end, and is not taken back.
///
/// # Errors
/// As [`finish`].
pub async fn give_up(store: &Store, target: &Store, begun: &Move) -> Result<bool, Failure> {
    let name = begun.to.to_string();
    if let Begun::Now(revision) = begin_arrival(target, &name, &begun.id).await? {
        clear(target, &name, revision).await?;
        let key: Bytes = CURATOR.key(ARRIVING).into();
        let arriving = Compare::Modified(key.clone(), revision);
        let remove = Txn::when([arriving]).then([Op::Delete(Range::key(key))]);
        if !target.txn(remove).await?.succeeded {
            return Err(Failure::Crowd(name));
        }
        let moving: Bytes = CURATOR.key(MOVING).into();
        store.txn(Txn::default().then([Op::Delete(Range::key(moving))])).await?;
        return Ok(true);
    }
    Ok(false)
}

/// Copies everything, and makes the other store the true one. It can be repeated until it succeeds.
///
/// # Errors
/// The other store has something else; one of them does not answer.
pub async fn finish(store: &Store, target: &Store, begun: &Move) -> Result<(), Failure> {
    let entries = read(store).await?;
    let count = entries.len();
    fill(target, &begun.to.to_string(), &begun.id, entries).await?;
    let left =
        Op::Put { key: CURATOR.key(LEFT).into(), value: begun.id.clone().into(), lease: None };
    store.txn(Txn::default().then([left])).await?;
    info!(to = %begun.to, count, "the cluster's state has moved");
    Ok(())
}

/// Has it come to its end? Then the other store is the true one.
///
/// # Errors
/// The other store does not answer.
pub async fn has_arrived(target: &Store, begun: &Move) -> Result<bool, Error> {
    let arrived = target.get(CURATOR.key(ARRIVED), None).await?;
    Ok(arrived.is_some_and(|entry| entry.value == begun.id))
}

/// Is there only a part of a copy? Such a store is used by nobody.
///
/// # Errors
/// The store does not answer.
pub async fn is_arriving(store: &Store) -> Result<bool, Error> {
    Ok(store.get(CURATOR.key(ARRIVING), None).await?.is_some())
}

/// Does an entry belong to the cluster's state? Locks do not, and what says that a store moves.
#[must_use]
pub fn belongs(entry: &Entry) -> bool {
    let within = match CURATOR.path(&entry.key) {
        Some(path) => !path.starts_with(MOVE) && !path.starts_with(LEADER),
        None => ETCD_PKI.path(&entry.key).is_some(),
    };
    within && entry.lease.is_none()
}

/// All of the cluster's state, of one revision, in the order it was written.
///
/// # Errors
/// The store does not answer.
pub async fn read(store: &Store) -> Result<Vec<Entry>, Error> {
    let revision = store.revision().await?;
    let mut entries = Vec::new();
    for namespace in NAMESPACES {
        let mut range = namespace.range("").at(revision).limit(PAGE);
        loop {
            let page = store.range(range.clone()).await?;
            let Some(last) = page.entries.last().filter(|_| page.remaining > 0).cloned() else {
                entries.extend(page.entries);
                break;
            };
            entries.extend(page.entries);
            range = range.after(&last.key);
        }
    }
    entries.retain(belongs);
    entries.sort_by_key(|entry| entry.modified);
    Ok(entries)
}

/// Fills a store that has nothing of a cluster, under an id; one that was filled under it stays as it is.
///
/// # Errors
/// It has something else; it does not answer.
pub async fn fill(
    target: &Store,
    name: &str,
    id: &str,
    entries: Vec<Entry>,
) -> Result<(), Failure> {
    let Begun::Now(revision) = begin_arrival(target, name, id).await? else { return Ok(()) };
    clear(target, name, revision).await?;
    let key: Bytes = CURATOR.key(ARRIVING).into();
    let arriving = Compare::Modified(key.clone(), revision);
    let write = async |ops: Vec<Op>| match target.txn(Txn::when([arriving.clone()]).then(ops)).await
    {
        Ok(outcome) if outcome.succeeded => Ok(()),
        Ok(_) => Err(Failure::Crowd(name.to_owned())),
        Err(error) => Err(error.into()),
    };
    // What was written together is written together again.
    for group in entries.chunk_by(|one, other| one.modified == other.modified) {
        for part in group.chunks(PAGE) {
            let put = |Entry { key, value, .. }: &Entry| Op::Put {
                key: key.clone(),
                value: value.clone(),
                lease: None,
            };
            write(part.iter().map(put).collect()).await?;
        }
    }
    let arrived = CURATOR.key(ARRIVED).into();
    write(vec![
        Op::Delete(Range::key(key.clone())),
        Op::Put { key: arrived, value: id.to_owned().into(), lease: None },
    ])
    .await
}

enum Begun {
    Now(Revision),
    Done,
}

async fn begin_arrival(target: &Store, name: &str, id: &str) -> Result<Begun, Failure> {
    match target.get(CURATOR.key(ARRIVED), None).await? {
        Some(entry) if entry.value == id => return Ok(Begun::Done),
        Some(_) => return Err(Failure::NotEmpty(name.to_owned())),
        None => {}
    }
    let arriving: Bytes = CURATOR.key(ARRIVING).into();
    match target.get(arriving.clone(), None).await? {
        Some(entry) if entry.value == id => return Ok(Begun::Now(entry.modified)),
        Some(_) => return Err(Failure::Another(name.to_owned())),
        None => {}
    }
    let revision = match target.create(arriving.clone(), id.to_owned(), None).await {
        Err(Error::Exists { .. }) => return Err(Failure::Crowd(name.to_owned())),
        other => other?,
    };
    for namespace in NAMESPACES {
        let found = target.range(namespace.range("").limit(2)).await?.entries;
        if found.iter().any(|entry| entry.key != arriving) {
            target.delete(arriving, revision).await?;
            return Err(Failure::NotEmpty(name.to_owned()));
        }
    }
    Ok(Begun::Now(revision))
}

/// Removes what was copied before.
async fn clear(target: &Store, name: &str, begun: Revision) -> Result<(), Failure> {
    let arriving: Bytes = CURATOR.key(ARRIVING).into();
    let all = CURATOR.range("");
    let before = Range { end: arriving.clone(), ..all.clone() };
    let ops = [before, all.after(&arriving), ETCD_PKI.range("")].map(Op::Delete);
    let clear = Txn::when([Compare::Modified(arriving, begun)]).then(ops);
    if target.txn(clear).await?.succeeded { Ok(()) } else { Err(Failure::Crowd(name.to_owned())) }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use orlop_store::{Embedded, Limits};

    use super::*;

    async fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store"), Limits::default()).await;
        (folder, Store::Embedded(store.unwrap()))
    }

    fn target() -> Location {
        "etcd://127.0.0.1:1".parse().unwrap()
    }

    /// Three nodes written in another order than that of their keys, two of them at once.
    async fn filled() -> (tempfile::TempDir, Store) {
        let (folder, store) = store().await;
        let put = |path: &str, value: &str| Op::Put {
            key: CURATOR.key(path).into(),
            value: value.to_owned().into(),
            lease: None,
        };
        store.create(CURATOR.key("/nodes/c"), "1", None).await.unwrap();
        store.txn(Txn::default().then([put("/nodes/b", "2"), put("/nodes/d", "2")])).await.unwrap();
        store.create(ETCD_PKI.key("/pki/x"), "3", None).await.unwrap();
        store.create(CURATOR.key("/nodes/a"), "4", None).await.unwrap();
        store.create("/registry/pods/x", "another program's", None).await.unwrap();
        let lease = store.grant(std::time::Duration::from_secs(3600)).await.unwrap();
        store.create(CURATOR.key("/leader/1"), "a lock", Some(lease)).await.unwrap();
        (folder, store)
    }

    async fn values(store: &Store) -> Vec<String> {
        let entries = read(store).await.unwrap();
        entries.iter().map(|entry| String::from_utf8(entry.value.to_vec()).unwrap()).collect()
    }

    #[tokio::test]
    async fn everything_of_the_cluster_arrives_in_its_order_and_nothing_else() {
        let ((_one, from), (_other, to)) = (filled().await, store().await);
        let begun = begin(&from, &target()).await.unwrap();
        assert!(!has_arrived(&to, &begun).await.unwrap());
        finish(&from, &to, &begun).await.unwrap();
        assert!(has_arrived(&to, &begun).await.unwrap() && !is_arriving(&to).await.unwrap());
        assert_eq!(values(&to).await, ["1", "2", "2", "3", "4"]);
        let written = |entry: &Entry| (entry.key.clone(), entry.modified);
        let entries: Vec<_> = read(&to).await.unwrap().iter().map(written).collect();
        assert_eq!(entries[1].1, entries[2].1, "they were written at once");
        let all = to.range(Range::all()).await.unwrap().entries;
        assert_eq!(all.len(), entries.len() + 1, "and that it arrived");
        // Again and again it is the same move, and nothing happens.
        assert!(pending(&from).await.unwrap().unwrap().left);
        finish(&from, &to, &begin(&from, &target()).await.unwrap()).await.unwrap();
        assert_eq!(read(&to).await.unwrap().iter().map(written).collect::<Vec<_>>(), entries);
        assert!(!give_up(&from, &to, &begun).await.unwrap(), "too late");
    }

    #[tokio::test]
    async fn a_store_that_has_something_is_left_alone() {
        let ((_one, from), (_other, to)) = (filled().await, store().await);
        to.create(ETCD_PKI.key("/pki/x"), "another cluster's", None).await.unwrap();
        let begun = begin(&from, &target()).await.unwrap();
        let refused = finish(&from, &to, &begun).await;
        assert!(matches!(refused, Err(Failure::NotEmpty(_))), "{refused:?}");
        assert_eq!(values(&to).await, ["another cluster's"]);
        assert!(!is_arriving(&to).await.unwrap(), "and is not spoilt");
    }

    #[tokio::test]
    async fn what_another_began_is_not_gone_on_with() {
        let ((_one, from), (_other, to)) = (filled().await, store().await);
        to.create(CURATOR.key(ARRIVING), "of another", None).await.unwrap();
        let begun = begin(&from, &target()).await.unwrap();
        assert!(matches!(finish(&from, &to, &begun).await, Err(Failure::Another(_))));
        assert!(matches!(give_up(&from, &to, &begun).await, Err(Failure::Another(_))));
    }

    /// Wherever it breaks off, one store is the true one, and the next try brings it to its end.
    #[tokio::test]
    async fn what_broke_off_is_begun_anew() {
        for step in 0..5 {
            let ((_one, from), (_other, to)) = (filled().await, store().await);
            let begun = begin(&from, &target()).await.unwrap();
            let Begun::Now(revision) = begin_arrival(&to, "it", &begun.id).await.unwrap() else {
                panic!("it has not arrived");
            };
            let put = |entry: Entry| Op::Put { key: entry.key, value: entry.value, lease: None };
            for entry in read(&from).await.unwrap().into_iter().take(step) {
                to.txn(Txn::default().then([put(entry)])).await.unwrap();
            }
            to.create(CURATOR.key("/nodes/z"), "not there any more", None).await.unwrap();
            assert!(is_arriving(&to).await.unwrap());
            assert!(!has_arrived(&to, &begun).await.unwrap(), "the first one is the true one");
            // After the crash.
            let again = pending(&from).await.unwrap().unwrap();
            assert_eq!(again, begun);
            finish(&from, &to, &again).await.unwrap();
            assert_eq!(values(&to).await, ["1", "2", "2", "3", "4"]);
            let late = clear(&to, "it", revision).await;
            assert!(
                matches!(late, Err(Failure::Crowd(_))),
                "who was late writes nothing: {late:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_move_that_is_given_up_leaves_nothing() {
        let ((_one, from), (_other, to)) = (filled().await, store().await);
        let begun = begin(&from, &target()).await.unwrap();
        begin_arrival(&to, "it", &begun.id).await.unwrap();
        to.create(CURATOR.key("/nodes/c"), "1", None).await.unwrap();
        assert!(give_up(&from, &to, &begun).await.unwrap());
        assert_eq!(to.range(Range::all()).await.unwrap().entries, []);
        assert_eq!(pending(&from).await.unwrap(), None);
    }
}
