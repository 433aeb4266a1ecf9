//! What a leader knows without asking the store: the ticket, what was revoked, who the nodes and the users are.
//!
//! Every call is judged by it ([`crate::access`]), and whoever shows a wrong ticket costs a comparison and nothing else.
//! One watch of the store keeps it current ([`follow`]); who has written waits until it is in here
//! ([`Known::reached`]), so that a node that was deleted is a stranger once the call that deleted it is answered.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use orlop_pki::cluster::{self, Revoked};
use orlop_proto::metropolis::node::core::curator::proto::private::{Node, RegisterTicket};
use orlop_proto::metropolis::proto::common::NodeState;
use orlop_rt::Backoff;
use orlop_store::{Entry, Revision, Store};
use prost::Message as _;
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::access::Role;
use crate::names::{self, CURATOR, NodeId};

/// How long somebody who has written waits for the watch to tell of it.
const REACH: Duration = Duration::from_secs(5);
/// How soon a watch that ended is begun again,
const AGAIN: Duration = Duration::from_millis(50);
/// and at the latest.
const AGAIN_AT_LAST: Duration = Duration::from_secs(5);

/// All of it, shared; cheap to clone.
#[derive(Clone, Debug)]
pub struct Known(watch::Sender<Book>);

/// As of one revision of the store.
#[derive(Clone, Debug, Default)]
pub struct Book {
    revision: Revision,
    authority: Bytes,
    /// False while the store's changes are not heard.
    following: bool,
    ticket: Ticket,
    nodes: HashMap<NodeId, NodeState>,
    new: usize,
    revoked: Revoked,
    roles: HashMap<String, Option<Role>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum Ticket {
    #[default]
    Absent,
    Damaged,
    Is(Bytes),
}

/// What a ticket that somebody shows is worth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shown {
    /// It is the ticket.
    Right,
    /// It is not, or there is none.
    Wrong,
    /// Nobody can say now.
    Unknown,
}

impl Known {
    /// Reads the store once.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn open(store: &Store, authority: &[u8]) -> orlop_store::Result<Self> {
        let authority = Bytes::copy_from_slice(authority);
        let book = read(store, authority).await?;
        Ok(Self(watch::Sender::new(book)))
    }

    /// Looks at it; not to be held across a wait.
    pub fn look<T>(&self, with: impl FnOnce(&Book) -> T) -> T {
        with(&self.0.borrow())
    }

    /// Waits until everything up to `revision` is in it. Gives up after a while: what was written stays written.
    pub async fn reached(&self, revision: Revision) {
        let mut receiver = self.0.subscribe();
        let reached = receiver.wait_for(|book| book.revision >= revision);
        if timeout(REACH, reached).await.is_err() {
            warn!(%revision, "the store does not tell of a write in time");
        }
    }

    /// Keeps it current; ends only with the task.
    pub async fn follow(&self, store: &Store) -> Infallible {
        let mut backoff = Backoff::new(AGAIN, AGAIN_AT_LAST);
        loop {
            let error = match self.watch(store, &mut backoff).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            self.0.send_modify(|book| book.following = false);
            warn!(error = %orlop_rt::Chain(&error), "the changes of the cluster's store are not heard");
            sleep(backoff.next(0)).await;
        }
    }

    async fn watch(&self, store: &Store, backoff: &mut Backoff) -> orlop_store::Result<Infallible> {
        let (mut after, following) = self.look(|book| (book.revision, book.following));
        if !following {
            let book = read(store, self.look(|book| book.authority.clone())).await?;
            after = book.revision;
            self.0.send_replace(book);
        }
        let mut watch = store.watch(CURATOR.range("/"), after).await?;
        loop {
            let batch = watch.next().await?;
            backoff.reset();
            self.0.send_modify(|book| {
                for event in &batch.events {
                    book.apply(&event.key, event.entry.as_ref().map(|entry| &entry.value));
                }
                book.revision = batch.revision;
            });
        }
    }
}

async fn read(store: &Store, authority: Bytes) -> orlop_store::Result<Book> {
    let page = store.range(CURATOR.range("/")).await?;
    Ok(Book::of(&authority, &page.entries, page.revision))
}

impl Book {
    /// Of everything there is at a revision, in a cluster of this authority (DER).
    #[must_use]
    pub fn of(authority: &[u8], entries: &[Entry], revision: Revision) -> Self {
        let authority = Bytes::copy_from_slice(authority);
        let mut book = Self { revision, authority, following: true, ..Self::default() };
        for Entry { key, value, .. } in entries {
            book.apply(key, Some(value));
        }
        book
    }

    /// A key was written, or removed.
    fn apply(&mut self, key: &[u8], value: Option<&Bytes>) {
        let Some(path) = CURATOR.path(key) else { return };
        if let Some(id) = path.strip_prefix(names::NODES) {
            let Ok(id) = id.parse::<NodeId>() else { return };
            let state = value.and_then(|value| Node::decode(value.clone()).ok());
            self.note(id, state.map(|node| node.fsm_state()));
        } else if let Some(identity) = path.strip_prefix(names::USERS) {
            match value {
                Some(value) => {
                    let role = std::str::from_utf8(value).ok().and_then(Role::of_text);
                    self.roles.insert(identity.to_owned(), role);
                }
                None => drop(self.roles.remove(identity)),
            }
        } else if path == names::REGISTER_TICKET {
            self.ticket = match value {
                None => Ticket::Absent,
                Some(value) => match RegisterTicket::decode(value.clone()) {
                    Ok(ticket) if !ticket.opaque.is_empty() => Ticket::Is(value.clone()),
                    _ => Ticket::Damaged,
                },
            };
        } else if path == names::REVOKED {
            match value.map(|value| cluster::revoked(value, &self.authority)) {
                None => self.revoked.clear(),
                Some(Ok(revoked)) => self.revoked = revoked,
                // What was revoked before stays so.
                Some(Err(error)) => {
                    warn!(error = %orlop_rt::Chain(&error), "the list of revoked certificates is damaged");
                }
            }
        }
    }

    fn note(&mut self, id: NodeId, state: Option<NodeState>) {
        let before = match state {
            Some(state) => self.nodes.insert(id, state),
            None => self.nodes.remove(&id),
        };
        self.new += usize::from(state == Some(NodeState::New));
        self.new -= usize::from(before == Some(NodeState::New));
    }

    /// Which state a node is in; none: there is no such node.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<NodeState> {
        self.nodes.get(id).copied()
    }

    /// How many nodes wait for approval.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.new
    }

    /// Those who do.
    #[must_use]
    pub fn waiting_ids(&self) -> Vec<NodeId> {
        let waits = |(_, state): &(&NodeId, &NodeState)| **state == NodeState::New;
        self.nodes.iter().filter(waits).map(|(id, _)| id.clone()).collect()
    }

    /// Was the certificate with this serial number revoked?
    #[must_use]
    pub fn is_revoked(&self, serial: &[u8]) -> bool {
        self.revoked.contains_key(serial)
    }

    /// The role of a user: an owner, unless the table says otherwise; none if nobody can read what it says.
    #[must_use]
    pub fn role(&self, identity: &str) -> Option<Role> {
        self.roles.get(identity).copied().unwrap_or(Some(Role::Owner))
    }

    /// Compares a ticket in a time that does not depend on where they differ.
    #[must_use]
    pub fn ticket(&self, shown: &[u8]) -> Shown {
        if !self.following {
            return Shown::Unknown;
        }
        match &self.ticket {
            Ticket::Absent => Shown::Wrong,
            Ticket::Damaged => Shown::Unknown,
            Ticket::Is(ticket) if bool::from(ticket[..].ct_eq(shown)) => Shown::Right,
            Ticket::Is(_) => Shown::Wrong,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Changes, State};
    use crate::testing::store;

    fn ticket(byte: u8) -> RegisterTicket {
        RegisterTicket { opaque: vec![byte; 32] }
    }

    #[tokio::test]
    async fn what_is_written_is_known_also_after_the_history_is_gone() {
        let (_folder, store) = store().await;
        let state = State::new(store.clone(), None);
        let known = Known::open(&store, &[]).await.expect("a read");
        let id = NodeId::of_key(&[7; 32]);
        let new =
            Node { public_key: vec![7; 32], fsm_state: NodeState::New.into(), ..Node::default() };
        let write = async |changes| state.change(changes).await.expect("a write").expect("written");
        // Nobody follows yet, and what happened is forgotten before somebody does.
        write(Changes::new().put_message(names::REGISTER_TICKET, &ticket(1))).await;
        let revision = write(Changes::new().put_message(&names::node(&id), &new)).await;
        store.compact(revision).await.expect("compacted");
        let following = known.clone();
        let followed = store.clone();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { match following.follow(&followed).await {} });
        known.reached(revision).await;
        let right = |byte| known.look(|book| book.ticket(&ticket(byte).encode_to_vec()));
        assert_eq!((right(1), right(2)), (Shown::Right, Shown::Wrong));
        assert_eq!(known.look(Book::waiting), 1);
        let user = format!("{}otto", names::USERS);
        let changes = Changes::new()
            .put(&user, "viewer")
            .put(names::REVOKED, "no list")
            .put_message(names::REGISTER_TICKET, &ticket(2))
            .remove(&names::node(&id));
        known.reached(write(changes).await).await;
        assert_eq!((right(1), right(2)), (Shown::Wrong, Shown::Right));
        assert_eq!((known.look(Book::waiting), known.look(|book| book.node(&id))), (0, None));
        assert_eq!(known.look(|book| book.role("otto")), Some(Role::Viewer));
        known.reached(write(Changes::new().remove(&user)).await).await;
        assert_eq!(known.look(|book| book.role("otto")), Some(Role::Owner));
        // While the store's changes are not heard, nobody can say whose ticket is right.
        drop(tasks);
        known.0.send_modify(|book| book.following = false);
        assert_eq!(right(2), Shown::Unknown);
    }
}
