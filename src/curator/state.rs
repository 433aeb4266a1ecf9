//! The cluster's state as its leader sees it: typed values of the store, read and written only while it leads.
//!
//! Every transaction compares the leader's own lock with what it was when it was elected (spec §6.3): who has lost
//! the office reads and writes nothing any more, and is told [`Failure::NotLeading`]. A curator with a store of its own
//! leads always and has no lock; once its state is on its way to an etcd ([`crate::moving`]), it changes nothing any
//! more.

use bytes::Bytes;
use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_store::{Compare, Done, Entry, Op, Outcome, Range, Revision, Store, Txn};
use prost::Message;

use crate::moving::MOVING;
use crate::names::{self, CURATOR, Namespace, NodeId};

/// What the leader holds as long as it leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lock {
    /// Its key in the store.
    pub key: Bytes,
    /// When it was made.
    pub created: Revision,
}

/// Why something of the cluster's state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Somebody else leads now, or nobody.
    #[error("this curator does not lead any more; ask again, the new leader will answer")]
    NotLeading,
    /// From a curator's own store to an etcd.
    #[error(
        "the cluster's state is on its way to an etcd, and cannot be changed; ask again in a moment"
    )]
    Moving,
    /// The store.
    #[error("the cluster's store: {0}")]
    Store(#[from] orlop_store::Error),
    /// What lies there cannot be read.
    #[error("{path} in the cluster's store is damaged: {why}")]
    Damaged {
        /// Where, in the namespace.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Of the system.
    #[error("the system gives no random numbers")]
    Random,
}

impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        Self::unavailable(failure.to_string())
    }
}

/// A value with the write that made it so.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    /// What it is.
    pub value: T,
    /// What a change of it must compare with.
    pub modified: Revision,
}

/// Changes that are made together or not at all.
#[derive(Clone, Debug)]
pub struct Changes {
    namespace: Namespace,
    when: Vec<Compare>,
    then: Vec<Op>,
}

impl Default for Changes {
    fn default() -> Self {
        Self::within(CURATOR)
    }
}

impl Changes {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing yet, of another namespace than the curator's.
    #[must_use]
    pub fn within(namespace: Namespace) -> Self {
        Self { namespace, when: Vec::new(), then: Vec::new() }
    }

    /// Only if `path` is as it was then; [`Revision::NONE`]: is not there.
    #[must_use]
    pub fn if_unchanged(mut self, path: &str, modified: Revision) -> Self {
        self.when.push(Compare::Modified(self.namespace.key(path).into(), modified));
        self
    }

    /// Write bytes.
    #[must_use]
    pub fn put(mut self, path: &str, value: impl Into<Bytes>) -> Self {
        self.then.push(Op::Put {
            key: self.namespace.key(path).into(),
            value: value.into(),
            lease: None,
        });
        self
    }

    /// Write a message.
    #[must_use]
    pub fn put_message(self, path: &str, message: &impl Message) -> Self {
        self.put(path, message.encode_to_vec())
    }

    /// These and those.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.when.extend(others.when);
        self.then.extend(others.then);
        self
    }

    /// Remove a key.
    #[must_use]
    pub fn remove(mut self, path: &str) -> Self {
        self.then.push(Op::Delete(Range::key(self.namespace.key(path))));
        self
    }
}

/// The store, for as long as this curator leads; cheap to clone.
#[derive(Clone, Debug)]
pub struct State {
    store: Store,
    lock: Option<Lock>,
}

impl State {
    /// Of a curator whose store is its own (`lock` is none), or who holds this lock.
    #[must_use]
    pub fn new(store: Store, lock: Option<Lock>) -> Self {
        Self { store, lock }
    }

    /// For watches, which follow the store and not the office.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Does this curator still lead?
    ///
    /// # Errors
    /// It does not, or the store does not answer.
    pub async fn check(&self) -> Result<Revision, Failure> {
        Ok(self.guarded(Changes::new()).await?.ok_or(Failure::NotLeading)?.revision)
    }

    /// Bytes of one key.
    ///
    /// # Errors
    /// [`Failure::NotLeading`], [`Failure::Store`].
    pub async fn bytes(&self, path: &str) -> Result<Option<Stored<Bytes>>, Failure> {
        self.bytes_within(CURATOR, path).await
    }

    /// As [`State::bytes`], of another namespace than the curator's.
    ///
    /// # Errors
    /// As [`State::bytes`].
    pub async fn bytes_within(
        &self,
        namespace: Namespace,
        path: &str,
    ) -> Result<Option<Stored<Bytes>>, Failure> {
        let (mut entries, _) = self.range(Range::key(namespace.key(path))).await?;
        Ok(entries.pop().map(|entry| Stored { value: entry.value, modified: entry.modified }))
    }

    /// A message.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub async fn message<M: Message + Default>(
        &self,
        path: &str,
    ) -> Result<Option<Stored<M>>, Failure> {
        let Some(Stored { value, modified }) = self.bytes(path).await? else { return Ok(None) };
        let value = M::decode(value)
            .map_err(|error| Failure::Damaged { path: path.to_owned(), why: error.to_string() })?;
        Ok(Some(Stored { value, modified }))
    }

    /// A node. One whose own id is another's is damaged.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub async fn node(&self, id: &NodeId) -> Result<Option<Stored<Node>>, Failure> {
        let path = names::node(id);
        let Some(mut stored) = self.message::<Node>(&path).await? else { return Ok(None) };
        sound(&path, &mut stored.value)?;
        Ok(Some(stored))
    }

    /// All nodes by id, of one revision. Those that are damaged are left out, and logged.
    ///
    /// # Errors
    /// [`Failure::NotLeading`], [`Failure::Store`].
    pub async fn nodes(&self) -> Result<(Vec<Stored<Node>>, Revision), Failure> {
        let (entries, revision) = self.range(CURATOR.range(names::NODES)).await?;
        Ok((entries.iter().filter_map(node_of_entry).collect(), revision))
    }

    /// Makes the changes. `None`: something was not as they wanted it, nothing was changed.
    ///
    /// # Errors
    /// [`Failure::NotLeading`], [`Failure::Store`].
    pub async fn change(&self, changes: Changes) -> Result<Option<Revision>, Failure> {
        if let Some(outcome) = self.guarded(changes).await? {
            return Ok(Some(outcome.revision));
        }
        // Was it the lock?
        self.check().await?;
        if self.lock.is_none() && self.bytes(MOVING).await?.is_some() {
            return Err(Failure::Moving);
        }
        Ok(None)
    }

    async fn range(&self, range: Range) -> Result<(Vec<Entry>, Revision), Failure> {
        let changes = Changes { then: vec![Op::Get(range)], ..Changes::new() };
        let mut outcome = self.guarded(changes).await?.ok_or(Failure::NotLeading)?;
        match outcome.results.pop() {
            Some(Done::Got(page)) => Ok((page.entries, outcome.revision)),
            _ => Err(Failure::Store(orlop_store::Error::Protocol {
                doing: "read the cluster's state",
                what: "the answer has no page".to_owned(),
            })),
        }
    }

    /// With the lock compared; `None` if a comparison failed.
    async fn guarded(
        &self,
        Changes { mut when, then, .. }: Changes,
    ) -> Result<Option<Outcome>, Failure> {
        match &self.lock {
            Some(lock) => when.push(Compare::Created(lock.key.clone(), lock.created)),
            None if then.iter().any(|op| !matches!(op, Op::Get(_))) => {
                when.push(Compare::Created(CURATOR.key(MOVING).into(), Revision::NONE));
            }
            None => {}
        }
        let outcome = self.store.txn(Txn::when(when).then(then)).await?;
        Ok(outcome.succeeded.then_some(outcome))
    }
}

/// A node as it lies in the store, with its id (old ones have none); none if it is damaged, which is logged.
#[must_use]
pub fn node_of_entry(entry: &Entry) -> Option<Stored<Node>> {
    let path = CURATOR.path(&entry.key)?;
    let node = Node::decode(entry.value.clone())
        .map_err(|error| Failure::Damaged { path: path.to_owned(), why: error.to_string() })
        .and_then(|mut node| sound(path, &mut node).map(|()| node));
    match node {
        Ok(value) => Some(Stored { value, modified: entry.modified }),
        Err(error) => {
            tracing::warn!(%error, "a node is left out");
            None
        }
    }
}

/// Fills in the id, and checks it against the key and the path.
fn sound(path: &str, node: &mut Node) -> Result<(), Failure> {
    let damaged = |why: &str| Failure::Damaged { path: path.to_owned(), why: why.to_owned() };
    let key: &[u8; names::KEY_LENGTH] =
        node.public_key[..].try_into().map_err(|_| damaged("its key does not have 32 bytes"))?;
    let id = NodeId::of_key(key);
    if node.id.is_empty() {
        node.id = id.to_string();
    }
    if node.id != id.as_str() || names::node(&id) != path {
        return Err(damaged("its id is not that of its key"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use orlop_store::{Embedded, Limits};

    use super::*;

    async fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Embedded::open(&folder.path().join("store"), Limits::default()).await;
        (folder, Store::Embedded(store.expect("a store")))
    }

    fn node(seed: u8) -> (NodeId, Node) {
        let key = [seed; names::KEY_LENGTH];
        (NodeId::of_key(&key), Node { public_key: key.to_vec(), ..Node::default() })
    }

    #[tokio::test]
    async fn nodes_are_by_id_and_the_damaged_are_left_out() {
        let (_folder, store) = store().await;
        let state = State::new(store, None);
        let ((a, first), (b, second)) = (node(1), node(2));
        let changes = Changes::new()
            .put_message(&names::node(&b), &second)
            .put_message(&names::node(&a), &first)
            .put(&names::node(&node(3).0), "no message")
            .put_message(&names::node(&node(4).0), &first);
        assert!(state.change(changes).await.expect("a write").is_some());
        let (nodes, _) = state.nodes().await.expect("nodes");
        let ids: Vec<_> = nodes.iter().map(|node| node.value.id.as_str()).collect();
        assert_eq!(ids, [a.as_str(), b.as_str()]);
        assert!(matches!(state.node(&node(4).0).await, Err(Failure::Damaged { .. })));
        assert_eq!(state.node(&node(5).0).await.expect("a read"), None);
    }

    #[tokio::test]
    async fn what_moves_is_read_and_not_changed() {
        let (_folder, store) = store().await;
        let state = State::new(store.clone(), None);
        let (id, value) = node(1);
        let put = Changes::new().put_message(&names::node(&id), &value);
        assert!(state.change(put.clone()).await.expect("a write").is_some());
        let to = "etcd://127.0.0.1:1".parse().expect("a place");
        crate::moving::begin(&store, &to).await.expect("a move");
        assert!(matches!(state.change(put).await, Err(Failure::Moving)));
        assert_eq!(state.nodes().await.expect("nodes").0.len(), 1);
    }

    #[tokio::test]
    async fn who_lost_the_office_reads_and_writes_nothing() {
        let (_folder, store) = store().await;
        let created = store.create("lock", "me", None).await.expect("a lock");
        let lock = Lock { key: "lock".into(), created };
        let state = State::new(store.clone(), Some(lock));
        let (id, value) = node(1);
        let path = names::node(&id);
        let put = Changes::new().if_unchanged(&path, Revision::NONE).put_message(&path, &value);
        assert!(state.change(put.clone()).await.expect("a write").is_some());
        assert!(state.change(put.clone()).await.expect("a conflict").is_none());
        store.delete("lock", created).await.expect("gone");
        store.create("lock", "another", None).await.expect("a lock");
        assert!(matches!(state.change(put).await, Err(Failure::NotLeading)));
        assert!(matches!(state.nodes().await, Err(Failure::NotLeading)));
    }
}
