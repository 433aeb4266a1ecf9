//! What a curator is from moment to moment: it takes part in the election, shows the face that follows from it, tells
//! where the leader is, and goes to another store when the cluster's state moves.
//!
//! ```text
//!  election ── Leads ────▶ Office, all services; members and roles are kept in line; on an own store: the move
//!     │                                                                                   │
//!     └────── Follows ───▶ CuratorLocal; the leader's address from the store              ▼
//!        any change: calls under way end at once, the other face is shown      the same over the etcd
//! ```

use std::convert::Infallible;
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_rt::{Backoff, CancellationToken, Chain};
use orlop_store::{Compare, EtcdTls, Limits, Location, Op, Range, Revision, Store, Txn};
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::api::{Leader, Local};
use crate::certificates::Certificates;
use crate::consensus::Consensus;
use crate::leader::{self, driver};
use crate::moving::{self, Move};
use crate::names::{self, CURATOR, NodeId};
use crate::office::Office;
use crate::server::Personality;
use crate::state::State;

/// After what fails, and at most.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_AT_LAST: Duration = Duration::from_secs(2);

/// Why a curator stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is used by nobody.
    #[error(
        "a copy of a cluster's state into {0} was begun and is not whole; repeat the command that began it, or start \
         the curator with the store that it came from"
    )]
    Arriving(Location),
    /// The store.
    #[error(transparent)]
    Store(#[from] orlop_store::Error),
    /// A move that was begun.
    #[error(transparent)]
    Moving(#[from] moving::Failure),
}

/// Opens the store at `location`, or the one that it has moved to.
///
/// # Errors
/// Any [`Error`].
pub async fn open(location: &Location, tls: Option<&EtcdTls>) -> Result<Store, Error> {
    let store = Store::open(location, tls.cloned(), Limits::default()).await?;
    match (&store, moving::pending(&store).await?) {
        (Store::Etcd(_), _) if moving::is_arriving(&store).await? => {
            Err(Error::Arriving(location.clone()))
        }
        (Store::Embedded(_), Some(Move { to, left: true, .. })) => {
            warn!(from = %location, %to, "the cluster's state has moved: start the curator with --store of that");
            store.close().await;
            Ok(Store::open(&to, tls.cloned(), Limits::default()).await?)
        }
        _ => Ok(store),
    }
}

/// A curator between its store and its port.
#[derive(Debug)]
pub struct Standing {
    /// Whose it is.
    pub own: NodeId,
    /// The address other machines reach it by, if it was told.
    pub external: Option<IpAddr>,
    /// Of its API.
    pub port: u16,
    /// The cluster's authority.
    pub certificates: Certificates,
    /// Where the state moves to when a second node shall keep it.
    pub to: Option<Location>,
    /// For that one.
    pub tls: Option<EtcdTls>,
    /// What `local` tells.
    pub leaders: watch::Sender<Option<Leader>>,
    /// Served by all faces.
    pub local: Local,
    /// What the port shows.
    pub faces: watch::Sender<Personality>,
}

/// The first face, until it is known who leads.
#[must_use]
pub fn first_face(local: &Local) -> Personality {
    Personality::follower(local.clone(), CancellationToken::new())
}

impl Standing {
    /// Takes part until `shutdown`, and leaves the office then, so that the next one leads at once.
    pub async fn run(&self, mut store: Store, shutdown: CancellationToken) {
        loop {
            let (offices, office) = watch::channel(leader::Office::Follows(None));
            let election =
                driver::run(store.clone(), self.own.clone(), &offices, shutdown.child_token());
            let moved = tokio::select! {
                () = election => None,
                moved = self.faces(&store, office) => Some(moved),
            };
            self.follow(None, CancellationToken::new());
            store.close().await;
            match moved {
                Some(target) => store = target,
                None => return,
            }
        }
    }

    /// Shows what the election says; the store that everything has moved to.
    async fn faces(&self, store: &Store, mut office: watch::Receiver<leader::Office>) -> Store {
        let announcing = self.announce(store);
        let mut announcing = std::pin::pin!(announcing);
        loop {
            let is = office.borrow_and_update().clone();
            let left = CancellationToken::new();
            // Whatever ends it, calls under way end.
            let _leaves = left.clone().drop_guard();
            tokio::select! {
                changed = office.changed() => if changed.is_err() { return pending().await },
                target = self.be(store, is, left) => return target,
                never = &mut announcing => match never {},
            }
        }
    }

    /// Is what the election says until it says otherwise; ends when everything has moved.
    async fn be(&self, store: &Store, is: leader::Office, left: CancellationToken) -> Store {
        let lock = match is {
            leader::Office::Leads(lock) => lock,
            leader::Office::Follows(who) => {
                self.follow(who.as_ref(), left);
                return match who {
                    Some(who) => match self.tell(store, &who, None).await {},
                    None => pending().await,
                };
            }
        };
        self.follow(None, left.clone());
        let state = State::new(store.clone(), lock);
        let mut backoff = Backoff::new(AGAIN, AGAIN_AT_LAST);
        let office = loop {
            let consensus = Consensus::of(store, self.to.clone());
            let certificates = self.certificates.clone();
            match Office::open(self.own.clone(), state.clone(), certificates, consensus).await {
                Ok(office) => break Arc::new(office),
                Err(error) => warn!(error = %Chain(&error), "the office cannot be taken yet"),
            }
            sleep(backoff.next(0)).await;
        };
        let own = self.own_address();
        self.leaders.send_replace(Some(own.clone()));
        self.faces.send_replace(Personality::leader(Arc::clone(&office), self.local.clone(), left));
        tokio::select! {
            () = office.follow() => pending().await,
            never = office.consensus.follow(&office) => match never {},
            never = self.tell(store, &self.own, Some(own)) => match never {},
            target = self.carry(store, &office) => target,
        }
    }

    fn follow(&self, who: Option<&NodeId>, left: CancellationToken) {
        let unknown = |id: &NodeId| Leader { id: id.clone(), host: None, port: crate::run::PORT };
        self.leaders.send_replace(who.map(unknown));
        self.faces.send_replace(Personality::follower(self.local.clone(), left));
    }

    fn own_address(&self) -> Leader {
        let host = self.external.map(|address| address.to_string());
        Leader { id: self.own.clone(), host, port: self.port }
    }

    /// Tells where the leader is: as it has announced itself, else as its node tells its status.
    async fn tell(&self, store: &Store, id: &NodeId, own: Option<Leader>) -> Infallible {
        let mut backoff = Backoff::new(AGAIN, AGAIN_AT_LAST);
        loop {
            let error = match self.tell_until_error(store, id, own.as_ref(), &mut backoff).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            warn!(error = %Chain(&error), "where the leader is cannot be followed");
            sleep(backoff.next(0)).await;
        }
    }

    async fn tell_until_error(
        &self,
        store: &Store,
        id: &NodeId,
        own: Option<&Leader>,
        backoff: &mut Backoff,
    ) -> orlop_store::Result<Infallible> {
        let (node, announced) = (CURATOR.key(&names::node(id)), CURATOR.key(&names::endpoint(id)));
        let page = store.range(Range::key(node.clone())).await?;
        let value = store.get(announced, None).await?.map(|entry| entry.value);
        let announced: Option<SocketAddr> =
            value.and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok());
        let told = |node: Option<&[u8]>| {
            let status = node.and_then(|node| Node::decode(node).ok()?.status);
            let address = status.as_ref().map(|status| status.external_address.clone());
            let address = address.filter(|address| address.parse::<IpAddr>().is_ok());
            let running = status.and_then(|status| status.running_curator);
            let port = running.and_then(|curator| u16::try_from(curator.port).ok());
            let leader = match (own, announced) {
                (Some(own), _) => Leader { host: own.host.clone().or(address), ..own.clone() },
                (None, Some(at)) => {
                    Leader { id: id.clone(), host: Some(at.ip().to_string()), port: at.port() }
                }
                (None, None) => {
                    let port = port.unwrap_or(crate::run::PORT);
                    Leader { id: id.clone(), host: address, port }
                }
            };
            self.leaders.send_if_modified(|told| {
                let new = Some(leader);
                let differs = *told != new;
                *told = new;
                differs
            });
        };
        told(page.entries.first().map(|entry| &entry.value[..]));
        let mut watch = store.watch(Range::key(node), page.revision).await?;
        loop {
            let batch = watch.next().await?;
            backoff.reset();
            if let Some(event) = batch.events.last() {
                told(event.entry.as_ref().map(|entry| &entry.value[..]));
            }
        }
    }

    /// Writes once where this curator is, for those who follow it one day.
    async fn announce(&self, store: &Store) -> Infallible {
        let mut backoff = Backoff::new(AGAIN, AGAIN_AT_LAST);
        // Nobody follows who leads always.
        if matches!(store, Store::Embedded(_)) {
            return pending().await;
        }
        loop {
            let key: bytes::Bytes = CURATOR.key(&names::endpoint(&self.own)).into();
            let op = match self.external {
                Some(address) => {
                    let value = SocketAddr::new(address, self.port).to_string().into();
                    Op::Put { key, value, lease: None }
                }
                None => Op::Delete(Range::key(key)),
            };
            // Only of a node that there is.
            let node = CURATOR.key(&names::node(&self.own)).into();
            let absent = Txn::when([Compare::Created(node, Revision::NONE)]).or_else([op]);
            match store.txn(absent).await {
                Ok(_) => break,
                Err(error) => warn!(error = %Chain(&error), "where this curator is cannot be told"),
            }
            sleep(backoff.next(0)).await;
        }
        pending().await
    }

    /// Carries the state over to an etcd, once it is wanted or was begun; that etcd. Until then the store is read.
    async fn carry(&self, store: &Store, office: &Office) -> Store {
        let mut backoff = Backoff::new(AGAIN, AGAIN_AT_LAST);
        loop {
            match self.carry_until_error(store, office).await {
                Ok(target) => return target,
                Err(error) => {
                    warn!(error = %Chain(&error), "the cluster's state does not move yet")
                }
            }
            sleep(backoff.next(0)).await;
        }
    }

    async fn carry_until_error(&self, store: &Store, office: &Office) -> Result<Store, Error> {
        if !matches!(store, Store::Embedded(_)) {
            return pending().await;
        }
        let begun = match moving::pending(store).await? {
            Some(begun) => begun,
            None => {
                let to = office.consensus.move_wanted().await;
                // It is there, before anything is frozen.
                let target = Store::open(&to, self.tls.clone(), Limits::default()).await?;
                moving::check(&target, &to).await?;
                moving::begin(store, &to).await?
            }
        };
        info!(to = %begun.to, "the cluster's state moves; until it is there it is read and not written");
        let target = Store::open(&begun.to, self.tls.clone(), Limits::default()).await?;
        moving::finish(store, &target, &begun).await?;
        Ok(target)
    }
}
