//! With a real store; the callers are not at the other end of a connection.

use std::net::IpAddr;

use orlop_pki::cluster::{RawKey, Shown};
use orlop_proto::metropolis::node::core::curator::proto::private::RegisterTicket;
use orlop_proto::metropolis::proto::common::{NodeState, NodeStorageSecurity};
use orlop_store::Store;
use tempfile::TempDir;
use tonic::Code;

use super::*;
use crate::bootstrap;
use crate::certificates::{Certificates, Forget};
use crate::consensus::Consensus;
use crate::limits::Limits;
use crate::state::State;
use crate::testing::{founding, store};
use crate::ticket;

/// An office whose store is followed, and one who founded its cluster.
struct Seat {
    office: Office,
    ticket: Vec<u8>,
    store: Store,
    folder: TempDir,
}

impl Seat {
    async fn take() -> Self {
        let (folder, store) = store().await;
        let key = RawKey::generate().expect("a key");
        let state = State::new(store.clone(), None);
        let (certificates, _) =
            bootstrap::found(&state, &founding(&key, &key), now()).await.expect("a cluster");
        let id = NodeId::of_key(&key.public());
        let consensus = Consensus::of(state.store(), None);
        let office = Office::open(id, state, certificates, consensus).await.expect("an office");
        let mut seat = Self { office, ticket: Vec::new(), store, folder };
        seat.ticket = seat.while_following(ticket::current(&seat.office)).await.expect("a ticket");
        seat
    }

    /// As after a `kill -9`: nothing is left but the store.
    async fn killed(self) -> Self {
        let Self { office, ticket, store, folder } = self;
        let own = office.own.clone();
        drop(office);
        let state = State::new(store.clone(), None);
        let certificates = Certificates::load(&state).await.expect("a read").expect("some");
        let consensus = Consensus::of(state.store(), None);
        let office = Office::open(own, state, certificates, consensus).await.expect("an office");
        Self { office, ticket, store, folder }
    }

    async fn while_following<T>(&self, doing: impl Future<Output = T>) -> T {
        tokio::select! {
            done = doing => done,
            // Not the office's own: these tests have a time of their own, by which nodes wait.
            never = self.office.known.follow(&self.store) => match never {},
        }
    }

    async fn registers(&self, key: &RawKey, join: &[u8]) -> Result<RegisterNodeResponse, Code> {
        *self.office.limits() = Limits::default();
        self.asks(&Caller::Key(key.public()), join, &self.ticket, moment()).await
    }

    async fn asks(
        &self,
        caller: &Caller,
        join: &[u8],
        ticket: &[u8],
        moment: Moment,
    ) -> Result<RegisterNodeResponse, Code> {
        let asked = RegisterNodeRequest {
            register_ticket: ticket.to_vec(),
            join_key: join.to_vec(),
            have_local_tpm: false,
            labels: None,
        };
        let answer = self.while_following(register(&self.office, caller, &asked, moment)).await;
        answer.map_err(|error| Status::from(error).code())
    }

    async fn commits(&self, caller: &Caller, unlock: &[u8]) -> Result<CommitNodeResponse, Code> {
        let asked = CommitNodeRequest {
            cluster_unlock_key: unlock.to_vec(),
            storage_security: NodeStorageSecurity::Encrypted.into(),
        };
        let answer = self.while_following(commit(&self.office, caller, &asked, moment())).await;
        answer.map_err(|error| Status::from(error).code())
    }

    async fn joins(&self, caller: &Caller) -> Result<Vec<u8>, Code> {
        let asked = JoinNodeRequest { using_sealed_configuration: false };
        let answer = join(&self.office, caller, &asked, moment()).await;
        answer.map(|answer| answer.cluster_unlock_key).map_err(|error| Status::from(error).code())
    }

    async fn becomes(&self, id: &NodeId, state: NodeState) {
        let mut node = self.node(id).await.expect("a node");
        node.fsm_state = state.into();
        self.writes(Changes::new().put_message(&names::node(id), &node)).await;
    }

    async fn writes(&self, changes: Changes) {
        let changed = self.while_following(self.office.change(changes)).await;
        changed.expect("a write").expect("written");
    }

    async fn node(&self, id: &NodeId) -> Option<Node> {
        self.office.state.node(id).await.expect("a read").map(|stored| stored.value)
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn source() -> Source {
    IpAddr::from([10, 0, 0, 7]).into()
}

fn moment() -> Moment {
    Moment { source: source(), instant: Instant::now(), now: now() }
}

fn key() -> RawKey {
    RawKey::generate().expect("a key")
}

fn ephemeral(key: &RawKey) -> Caller {
    Caller::Key(key.public())
}

#[tokio::test]
async fn who_does_not_hold_the_ticket_costs_neither_a_lock_nor_a_read() {
    let seat = Seat::take().await;
    let (node, join) = (key(), key().public());
    // Whoever waited for the lock would wait for good.
    let _held = seat.office.locks.node.lock().await;
    let user = Caller::User("owner".to_owned());
    for caller in [&Caller::Nobody, &user, &Caller::Node(seat.office.own.clone())] {
        let refused = seat.asks(caller, &join[..31], b"wrong", moment()).await;
        assert_eq!(refused, Err(Code::Unauthenticated));
    }
    let caller = ephemeral(&node);
    for wrong in [0, 31, 33] {
        let refused = seat.asks(&caller, &vec![1; wrong], b"wrong", moment()).await;
        assert_eq!(refused, Err(Code::InvalidArgument));
    }
    // Forged, cut off, or without what it is wrapped in.
    let mut forged = seat.ticket.clone();
    forged[33] ^= 1;
    let longer = [&seat.ticket[..], &[0]].concat();
    for ticket in [&[][..], &forged, &seat.ticket[..33], &seat.ticket[2..], &longer] {
        let refused = seat.asks(&caller, &join, ticket, moment()).await;
        assert_eq!(refused, Err(Code::PermissionDenied));
    }
}

#[tokio::test]
async fn an_old_ticket_is_good_no_more_once_there_is_a_new_one() {
    let seat = Seat::take().await;
    let (first, second) = (key(), key());
    seat.registers(&first, &key().public()).await.expect("registered");
    let old = seat.ticket.clone();
    let new = seat.while_following(ticket::rotate(&seat.office)).await.expect("a ticket");
    assert_ne!(old, new);
    let join = key().public();
    let caller = ephemeral(&second);
    assert_eq!(seat.asks(&caller, &join, &old, moment()).await, Err(Code::PermissionDenied));
    seat.asks(&caller, &join, &new, moment()).await.expect("registered");
    assert!(seat.node(&NodeId::of_key(&first.public())).await.is_some());

    // Taken out of the store by hand, it is good no more either; damaged, nobody can say.
    let damaged = RegisterTicket::default();
    for (changes, code) in [
        (Changes::new().remove(names::REGISTER_TICKET), Code::PermissionDenied),
        (Changes::new().put_message(names::REGISTER_TICKET, &damaged), Code::Unavailable),
        (Changes::new().put(names::REGISTER_TICKET, "no message"), Code::Unavailable),
    ] {
        seat.writes(changes).await;
        assert_eq!(seat.asks(&caller, &join, &new, moment()).await, Err(code));
    }
}

#[tokio::test]
async fn ten_thousand_registrations_leave_few_traces() {
    let seat = Seat::take().await;
    let at = moment();
    let mut codes = std::collections::BTreeMap::new();
    for n in 0..10_000_u32 {
        let mut public = [7; KEY_LENGTH];
        public[..4].copy_from_slice(&n.to_be_bytes());
        // From a hundred addresses, all at one instant.
        let at = Moment {
            source: IpAddr::from([10, 0, 1, u8::try_from(n % 100).unwrap_or(0)]).into(),
            ..at
        };
        let asked = RegisterNodeRequest {
            register_ticket: seat.ticket.clone(),
            join_key: public.iter().rev().copied().collect(),
            ..RegisterNodeRequest::default()
        };
        let caller = Caller::Key(public);
        let answer = seat.while_following(register(&seat.office, &caller, &asked, at)).await;
        let code = answer.map_or_else(|error| Status::from(error).code(), |_| Code::Ok);
        *codes.entry(code as i32).or_insert(0) += 1;
    }
    let expected = [(Code::Ok as i32, 20), (Code::ResourceExhausted as i32, 9_980)];
    assert_eq!(codes, expected.into_iter().collect());
    assert_eq!(seat.office.known.look(known::Book::waiting), 20);
}

#[tokio::test]
async fn no_more_than_so_many_nodes_wait_and_none_for_more_than_a_day() {
    let seat = Seat::take().await;
    let mut changes = Changes::new();
    let mut first = None;
    for n in 0..WAITING {
        let public = key().public();
        let id = NodeId::of_key(&public);
        let node = Node {
            public_key: public.to_vec(),
            fsm_state: NodeState::New.into(),
            join_key: public.to_vec(),
            ..Node::default()
        };
        changes = changes.put_message(&names::node(&id), &node);
        first.get_or_insert(id);
        if n % 100 == 99 || n == WAITING - 1 {
            seat.writes(std::mem::take(&mut changes)).await;
        }
    }
    let (late, join) = (key(), key().public());
    assert_eq!(seat.registers(&late, &join).await, Err(Code::ResourceExhausted));
    let first = first.expect("a node");
    seat.becomes(&first, NodeState::Standby).await;
    seat.registers(&late, &join).await.expect("there is room again");
    let waits = NodeId::of_key(&late.public());
    // It has its place, and may ask again.
    seat.registers(&late, &join).await.expect("registered");

    // Those whose time nobody knew wait from the first look on.
    let day = Duration::from_secs(24 * 3600);
    let look = async |at| seat.while_following(expire(&seat.office, at)).await.expect("a look");
    look(now() + day / 2).await;
    assert_eq!(seat.office.known.look(known::Book::waiting), WAITING);
    look(now() + day).await;
    assert_eq!(seat.office.known.look(known::Book::waiting), WAITING - 1);
    assert_eq!(seat.node(&waits).await, None);
    assert_eq!(seat.joins(&Caller::Key(join)).await, Err(Code::NotFound));
    look(now() + day * 3 / 2).await;
    assert_eq!(seat.office.known.look(known::Book::waiting), 0);
    assert!(seat.node(&first).await.is_some(), "it was approved");
    seat.registers(&late, &join).await.expect("and it may come again");
}

#[tokio::test]
async fn a_registration_survives_a_kill_after_every_step() {
    let mut seat = Seat::take().await;
    let (node, join, other) = (key(), key(), key());
    let (id, caller, back) = (NodeId::of_key(&node.public()), ephemeral(&node), ephemeral(&join));
    // After each transaction the curator is killed, and every step before is made again.
    assert_eq!(seat.commits(&caller, &[5; 32]).await, Err(Code::NotFound));
    let told = seat.registers(&node, &other.public()).await.expect("registered");
    seat = seat.killed().await;
    // It has lost its join key with its memory, and brings another one.
    assert_eq!(seat.registers(&node, &join.public()).await, Ok(told.clone()));
    seat = seat.killed().await;
    assert_eq!(seat.registers(&node, &join.public()).await, Ok(told));
    assert_eq!(seat.joins(&ephemeral(&other)).await, Err(Code::NotFound), "the index is gone");
    assert_eq!(seat.joins(&back).await, Err(Code::FailedPrecondition));
    assert_eq!(seat.commits(&caller, &[5; 32]).await, Err(Code::PermissionDenied));

    seat.becomes(&id, NodeState::Standby).await;
    seat = seat.killed().await;
    let refused = seat.registers(&node, &join.public()).await;
    assert_eq!(refused, Err(Code::FailedPrecondition));
    assert_eq!(seat.joins(&back).await, Err(Code::FailedPrecondition));
    assert_eq!(seat.commits(&caller, &[5; 31]).await, Err(Code::InvalidArgument));
    let committed = seat.commits(&caller, &[5; 32]).await.expect("committed");

    seat = seat.killed().await;
    assert_eq!(seat.commits(&caller, &[5; 32]).await, Ok(committed.clone()));
    assert_eq!(seat.commits(&caller, &[6; 32]).await, Err(Code::FailedPrecondition));
    for _ in 0..2 {
        assert_eq!(seat.joins(&back).await, Ok(vec![5; 32]));
    }
    assert_eq!(seat.joins(&Caller::Nobody).await, Err(Code::PermissionDenied));
    assert_eq!(seat.commits(&Caller::Nobody, &[5; 32]).await, Err(Code::Unauthenticated));

    // Deleted, it comes back as a stranger: with another certificate, and the old one stays bad.
    let stored = seat.node(&id).await.expect("a node");
    let retired = seat.office.certificates.retire(&seat.office.state, &id, Forget::Yes, now());
    seat.writes(forget(&id, &stored).and(retired.await.expect("revoked"))).await;
    assert_eq!(seat.joins(&back).await, Err(Code::NotFound));
    assert_eq!(seat.commits(&caller, &[5; 32]).await, Err(Code::NotFound));
    seat = seat.killed().await;
    seat.registers(&node, &join.public()).await.expect("registered");
    seat.becomes(&id, NodeState::Standby).await;
    let again = seat.commits(&caller, &[5; 32]).await.expect("committed");
    let serial = |der: &[u8]| Shown::read(der).expect("a certificate").serial;
    let revoked = |der: &[u8]| seat.office.known.look(|book| book.is_revoked(&serial(der)));
    assert!(revoked(&committed.node_certificate) && !revoked(&again.node_certificate));
}

#[tokio::test]
async fn two_nodes_with_one_key_are_one_and_a_join_key_is_one_nodes() {
    let seat = Seat::take().await;
    let (node, join) = (key(), key().public());
    seat.registers(&node, &join).await.expect("registered");
    let (nodes, _) = seat.office.state.nodes().await.expect("nodes");
    seat.registers(&node, &key().public()).await.expect("registered");
    let (again, _) = seat.office.state.nodes().await.expect("nodes");
    assert_eq!(again.len(), nodes.len());
    // The first of them has lost its join key to the second, which is free again.
    seat.registers(&key(), &join).await.expect("registered");
    let refused = seat.registers(&node, &join).await;
    assert_eq!(refused, Err(Code::AlreadyExists));
    // That of a node that is UP is not overwritten either.
    let id = NodeId::of_key(&node.public());
    seat.becomes(&id, NodeState::Standby).await;
    seat.commits(&ephemeral(&node), &[5; 32]).await.expect("committed");
    let theirs = seat.node(&id).await.expect("a node").join_key;
    assert_eq!(seat.registers(&key(), &theirs).await, Err(Code::AlreadyExists));
    assert_eq!(seat.joins(&Caller::Key(theirs.try_into().expect("a key"))).await, Ok(vec![5; 32]));
}

#[tokio::test]
async fn what_is_damaged_is_told_as_such() {
    let seat = Seat::take().await;
    let (node, join) = (key(), key());
    let id = NodeId::of_key(&node.public());
    seat.registers(&node, &join.public()).await.expect("registered");
    seat.becomes(&id, NodeState::Standby).await;
    // A certificate of that name for another key: only a store that was put together by hand has it.
    let stranger = key().public();
    let (name, profile) = (names::node_certificate(&id), Profile::node(id.as_str()));
    let state = &seat.office.state;
    let certificates = &seat.office.certificates;
    certificates.ensure(state, &name, &profile, &stranger, now()).await.expect("issued");
    assert_eq!(seat.commits(&ephemeral(&node), &[5; 32]).await, Err(Code::Unavailable));
    seat.writes(Changes::new().put(&names::join_key(&join.public()), "no id")).await;
    assert_eq!(seat.joins(&ephemeral(&join)).await, Err(Code::Unavailable));
    seat.writes(Changes::new().put(&names::node(&id), "no message")).await;
    assert_eq!(seat.commits(&ephemeral(&node), &[5; 32]).await, Err(Code::Unavailable));
    seat.writes(Changes::new().put(names::CONFIGURATION, "no message")).await;
    assert_eq!(seat.registers(&key(), &key().public()).await, Err(Code::InvalidArgument));
    seat.store.close().await;
    assert_eq!(seat.joins(&ephemeral(&join)).await, Err(Code::Unavailable));
}
