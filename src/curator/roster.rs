//! All nodes of the cluster, as one watch of the store tells of them: what everybody who lists or watches nodes looks at.
//!
//! ```text
//! store ─ one watch ─► roster ┬─ who watches all nodes: asks what changed since the change he saw last
//!                             ├─ who watches one node: is woken when that one changes
//!                             └─ who lists: shares the nodes as they are, and holds no lock
//! ```
//!
//! Nothing is queued for anybody: a reader who is slow sees fewer states between, one who never reads costs his place.
//! Changes have numbers of this roster's own; each node is under that of its last one, and so is each that is gone, up
//! to [`GONE`] of them. Whoever is so far behind that some are forgotten must begin anew.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_rt::{Backoff, Chain};
use orlop_store::{Batch, Revision, Store};
use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::names::{self, CURATOR, NodeId};
use crate::state::node_of_entry;

/// How many nodes that are gone are known of.
pub const GONE: usize = 16_384;
/// How long somebody who reads waits for the watch to come to what is written.
const REACH: Duration = Duration::from_secs(5);
/// How soon a watch that ended is begun again,
const AGAIN: Duration = Duration::from_millis(50);
/// and at the latest.
const AGAIN_AT_LAST: Duration = Duration::from_secs(5);

/// The store does not tell of what is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the cluster's store does not tell of its changes; ask again")]
pub struct Behind;

impl From<Behind> for tonic::Status {
    fn from(behind: Behind) -> Self {
        Self::unavailable(behind.to_string())
    }
}

/// Shared by all services of a leader.
#[derive(Debug)]
pub struct Roster {
    list: Mutex<List>,
    /// Up to where the list is.
    reached: watch::Sender<Revision>,
    /// The last change.
    changed: watch::Sender<u64>,
    /// Who waits for one node; cleared of those who left now and then.
    waiting: Mutex<HashMap<NodeId, watch::Sender<u64>>>,
    /// Somebody wants to know how far the watch is.
    asked: Notify,
}

impl Roster {
    /// Reads the store once.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn open(store: &Store) -> orlop_store::Result<Self> {
        let mut list = List::default();
        let (nodes, revision) = read(store).await?;
        list.replace(nodes);
        Ok(Self {
            changed: watch::Sender::new(list.change),
            reached: watch::Sender::new(revision),
            list: Mutex::new(list),
            waiting: Mutex::default(),
            asked: Notify::new(),
        })
    }

    /// Keeps it current; ends only with the task. After a break, and after history was compacted, everything is read
    /// again, and what went in between is told.
    pub async fn follow(&self, store: &Store) -> Infallible {
        let mut backoff = Backoff::new(AGAIN, AGAIN_AT_LAST);
        let mut whole = true;
        loop {
            let Err(error) = self.watch(store, whole, &mut backoff).await;
            whole = false;
            warn!(error = %Chain(&error), "changes of the cluster's nodes are not heard");
            sleep(backoff.next(0)).await;
        }
    }

    async fn watch(
        &self,
        store: &Store,
        whole: bool,
        backoff: &mut Backoff,
    ) -> orlop_store::Result<Infallible> {
        if !whole {
            let (nodes, revision) = read(store).await?;
            self.update(revision, |list| list.replace(nodes));
        }
        let after = *self.reached.borrow();
        let mut watch = store.watch(CURATOR.range(names::NODES), after).await?;
        loop {
            tokio::select! {
                batch = watch.next() => {
                    let batch = batch?;
                    backoff.reset();
                    self.update(batch.revision, |list| list.apply(&batch));
                }
                () = self.asked.notified() => watch.request_progress().await?,
            }
        }
    }

    fn update(&self, revision: Revision, with: impl FnOnce(&mut List) -> Vec<NodeId>) {
        let (ids, change) = {
            let mut list = self.list();
            (with(&mut list), list.change)
        };
        if !ids.is_empty() {
            self.changed.send_replace(change);
            let waiting = self.waiting();
            for waiter in ids.iter().filter_map(|id| waiting.get(id)) {
                waiter.send_replace(change);
            }
        }
        self.reached.send_replace(revision);
    }

    /// Waits until everything up to `revision` is in it.
    ///
    /// # Errors
    /// It is not, after a while.
    pub async fn reach(&self, revision: Revision) -> Result<(), Behind> {
        let mut reached = self.reached.subscribe();
        if *reached.borrow() >= revision {
            return Ok(());
        }
        self.asked.notify_one();
        let wait = reached.wait_for(|reached| *reached >= revision);
        if timeout(REACH, wait).await.is_ok_and(|reached| reached.is_ok()) {
            Ok(())
        } else {
            Err(Behind)
        }
    }

    /// All nodes, by id.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Node>> {
        self.list().nodes.values().map(|held| Arc::clone(&held.node)).collect()
    }

    /// One node with its last change.
    #[must_use]
    pub fn one(&self, id: &NodeId) -> Option<(Arc<Node>, u64)> {
        self.list().nodes.get(id).map(|held| (Arc::clone(&held.node), held.change))
    }

    /// Tells of every change there is.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells of the changes of one node, whether it is there or not.
    #[must_use]
    pub fn changes_of(&self, id: &NodeId) -> watch::Receiver<u64> {
        let mut waiting = self.waiting();
        if waiting.len() == waiting.capacity() {
            waiting.retain(|_, waiter| waiter.receiver_count() > 0);
        }
        waiting.entry(id.clone()).or_default().subscribe()
    }

    /// Nodes behind `after` in the order of their ids, up to so many bytes, and whether these are the last.
    #[must_use]
    pub fn page(&self, after: Option<&NodeId>, bytes: usize) -> (Vec<Arc<Node>>, bool) {
        self.list().page(after, bytes)
    }

    /// What changed behind the change `after`, up to so many bytes; none: some of it is forgotten.
    #[must_use]
    pub fn since(&self, after: u64, bytes: usize) -> Option<Changed> {
        self.list().since(after, bytes)
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<NodeId, watch::Sender<u64>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Nodes = BTreeMap<NodeId, (Node, Revision)>;

async fn read(store: &Store) -> orlop_store::Result<(Nodes, Revision)> {
    let page = store.range(CURATOR.range(names::NODES)).await?;
    let nodes = page.entries.iter().filter_map(node_of_entry).filter_map(|stored| {
        let id = stored.value.id.parse().ok()?;
        Some((id, (stored.value, stored.modified)))
    });
    Ok((nodes.collect(), page.revision))
}

/// What somebody has not seen yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changed {
    /// As they are now.
    pub nodes: Vec<Arc<Node>>,
    /// They were there once.
    pub gone: Vec<NodeId>,
    /// The last change that is in it.
    pub upto: u64,
}

/// The nodes and their changes. Pure.
#[derive(Debug, Default)]
struct List {
    /// The last.
    change: u64,
    nodes: BTreeMap<NodeId, Held>,
    /// Whose last change it was.
    changed: BTreeMap<u64, NodeId>,
    /// With which change it went.
    gone: BTreeMap<u64, NodeId>,
    gone_by_id: HashMap<NodeId, u64>,
    /// What went up to this change may be forgotten.
    forgotten: u64,
}

#[derive(Debug)]
struct Held {
    node: Arc<Node>,
    modified: Revision,
    change: u64,
    bytes: usize,
}

impl List {
    /// These are all nodes there are. Gives those that changed.
    fn replace(&mut self, nodes: Nodes) -> Vec<NodeId> {
        let lost: Vec<_> =
            self.nodes.keys().filter(|id| !nodes.contains_key(id)).cloned().collect();
        let mut ids = Vec::new();
        for id in lost {
            self.remove(&id);
            ids.push(id);
        }
        for (id, (node, modified)) in nodes {
            if self.nodes.get(&id).is_none_or(|held| held.modified != modified) {
                self.put(id.clone(), node, modified);
                ids.push(id);
            }
        }
        ids
    }

    fn apply(&mut self, batch: &Batch) -> Vec<NodeId> {
        let mut ids = Vec::new();
        for event in &batch.events {
            let path = CURATOR.path(&event.key).and_then(|path| path.strip_prefix(names::NODES));
            let Some(Ok(id)) = path.map(str::parse::<NodeId>) else { continue };
            // One that is damaged is as good as gone, until somebody mends it.
            match event.entry.as_ref().and_then(node_of_entry) {
                Some(stored) => self.put(id.clone(), stored.value, stored.modified),
                None => self.remove(&id),
            }
            ids.push(id);
        }
        ids
    }

    fn put(&mut self, id: NodeId, node: Node, modified: Revision) {
        self.change += 1;
        if let Some(change) = self.gone_by_id.remove(&id) {
            self.gone.remove(&change);
        }
        let (change, bytes) = (self.change, node.encoded_len());
        let held = Held { node: Arc::new(node), modified, change, bytes };
        if let Some(before) = self.nodes.insert(id.clone(), held) {
            self.changed.remove(&before.change);
        }
        self.changed.insert(change, id);
    }

    fn remove(&mut self, id: &NodeId) {
        let Some(before) = self.nodes.remove(id) else { return };
        self.change += 1;
        self.changed.remove(&before.change);
        self.gone.insert(self.change, id.clone());
        self.gone_by_id.insert(id.clone(), self.change);
        if self.gone.len() > GONE
            && let Some((change, id)) = self.gone.pop_first()
        {
            self.gone_by_id.remove(&id);
            self.forgotten = change;
        }
    }

    fn page(&self, after: Option<&NodeId>, bytes: usize) -> (Vec<Arc<Node>>, bool) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.nodes.range((start, Bound::Unbounded)).peekable();
        let (mut nodes, mut size) = (Vec::new(), 0);
        while let Some((_, held)) =
            rest.next_if(|(_, held)| size == 0 || size + held.bytes <= bytes)
        {
            size += held.bytes.max(1);
            nodes.push(Arc::clone(&held.node));
        }
        (nodes, rest.peek().is_none())
    }

    fn since(&self, after: u64, bytes: usize) -> Option<Changed> {
        if after < self.forgotten {
            return None;
        }
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        let (mut changed, mut size) = (Changed { upto: self.change, ..Changed::default() }, 0);
        for (change, id) in self.changed.range(behind) {
            let Some(held) = self.nodes.get(id) else { continue };
            if size > 0 && size + held.bytes > bytes {
                changed.upto = change - 1;
                break;
            }
            size += held.bytes.max(1);
            changed.nodes.push(Arc::clone(&held.node));
        }
        let until = (Bound::Excluded(after), Bound::Included(changed.upto.max(after)));
        if changed.upto > after {
            changed.gone = self.gone.range(until).map(|(_, id)| id.clone()).collect();
        }
        Some(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u16) -> NodeId {
        let mut key = [0; names::KEY_LENGTH];
        key[..2].copy_from_slice(&number.to_be_bytes());
        NodeId::of_key(&key)
    }

    fn node(number: u16) -> Node {
        Node { id: id(number).to_string(), ..Node::default() }
    }

    fn put(list: &mut List, number: u16) {
        let revision = Revision(list.change + 1);
        list.put(id(number), node(number), revision);
    }

    fn told(changed: Option<Changed>) -> Option<(Vec<String>, Vec<NodeId>)> {
        changed.map(|it| (it.nodes.iter().map(|node| node.id.clone()).collect(), it.gone))
    }

    #[test]
    fn who_looks_again_is_told_what_changed_and_no_more() {
        let mut list = List::default();
        for number in [3, 1, 2] {
            put(&mut list, number);
        }
        assert_eq!(list.page(None, usize::MAX).0.len(), 3);
        let seen = list.change;
        assert_eq!(told(list.since(seen, usize::MAX)), Some((vec![], vec![])));
        put(&mut list, 1);
        put(&mut list, 1);
        list.remove(&id(2));
        list.remove(&id(9));
        let expected = Some((vec![id(1).to_string()], vec![id(2)]));
        assert_eq!(told(list.since(seen, usize::MAX)), expected);
        // It came back: it is not gone any more.
        put(&mut list, 2);
        let expected = Some((vec![id(1).to_string(), id(2).to_string()], vec![]));
        assert_eq!(told(list.since(seen, usize::MAX)), expected);
        assert_eq!((list.changed.len(), list.gone.len(), list.gone_by_id.len()), (3, 0, 0));
    }

    #[test]
    fn pages_and_changes_are_bounded_and_whole() {
        let mut list = List::default();
        for number in 0..10 {
            put(&mut list, number);
        }
        let bytes = node(0).encoded_len() * 3;
        let (mut after, mut pages, mut all) = (None, 0, Vec::new());
        loop {
            let (nodes, last) = list.page(after.as_ref(), bytes);
            assert!(!nodes.is_empty() && nodes.len() <= 3);
            after = nodes.last().and_then(|node| node.id.parse().ok());
            all.extend(nodes.iter().map(|node| node.id.clone()));
            pages += 1;
            if last {
                break;
            }
        }
        assert_eq!((pages, all), (4, (0..10).map(|number| id(number).to_string()).collect()));
        // A node that is larger than a page is one by itself.
        assert_eq!(list.page(None, 1).0.len(), 1);

        list.remove(&id(4));
        let (mut seen, mut nodes, mut gone) = (0, Vec::new(), Vec::new());
        while seen < list.change {
            let changed = list.since(seen, bytes).expect("nothing is forgotten");
            assert!(changed.upto > seen && changed.nodes.len() <= 3);
            seen = changed.upto;
            nodes.extend(changed.nodes);
            gone.extend(changed.gone);
        }
        assert_eq!((nodes.len(), gone), (9, vec![id(4)]));
        assert_eq!(List::default().page(None, 1), (vec![], true));
    }

    #[test]
    fn a_list_read_anew_tells_of_what_went_meanwhile() {
        let mut list = List::default();
        for number in 0..3 {
            put(&mut list, number);
        }
        let seen = list.change;
        let modified = |list: &List, number| list.nodes[&id(number)].modified;
        let nodes = BTreeMap::from([
            (id(0), (node(0), modified(&list, 0))),
            (id(1), (node(1), Revision(99))),
            (id(7), (node(7), Revision(98))),
        ]);
        assert_eq!(list.replace(nodes), [id(2), id(1), id(7)]);
        let expected = Some((vec![id(1).to_string(), id(7).to_string()], vec![id(2)]));
        assert_eq!(told(list.since(seen, usize::MAX)), expected);
    }

    #[test]
    fn who_is_too_far_behind_begins_anew() {
        let mut list = List::default();
        let most = u16::try_from(GONE).expect("fits");
        for number in 0..=most {
            put(&mut list, number);
        }
        let seen = list.change;
        for number in 0..most {
            list.remove(&id(number));
        }
        let gone = list.since(seen, usize::MAX).map(|changed| changed.gone.len());
        assert_eq!(gone, Some(GONE));
        list.remove(&id(most));
        assert_eq!(list.since(seen, usize::MAX), None);
        assert!(list.since(seen + 1, usize::MAX).is_some());
        assert_eq!(list.gone_by_id.len(), GONE);
    }
}
