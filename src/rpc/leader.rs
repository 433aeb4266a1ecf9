//! Finds the curator that leads the cluster, and follows when another one does (for nodes and for the
//! operator's command line).
//!
//! One curator at a time is asked with `GetCurrentLeader`, and listened to for as long as it speaks; when
//! it ends, the next one is. Whom to ask is decided in [`machine`]. A [`Resolver`] that has an identity the
//! cluster knows also learns the other curators from `Watch`, and can do without its seeds then.
//!
//! Calls that were under way when the leader changed fail with `Unavailable`; nothing is sent twice here.

pub mod machine;

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orlop_proto::metropolis::node::core::curator::proto::api as curator;
use orlop_proto::metropolis::node::core::curator::proto::api::curator_client::CuratorClient;
use orlop_proto::metropolis::node::core::curator::proto::api::curator_local_client::CuratorLocalClient;
use orlop_rt::Backoff;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing::debug;

pub use machine::{Leader, Place};
use machine::{Machine, Step, Told};

/// The port of curators.
pub const PORT: u16 = 7835;
/// The port of `NodeManagement`.
pub const NODE_PORT: u16 = 7839;

/// How long a curator may take for its first word.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How soon, and then how seldom, curators are learned again when that broke off.
const LEARN_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Where to look.
#[derive(Debug)]
pub struct Terms {
    /// Curators that are known beforehand.
    pub seeds: Vec<Place>,
    /// Nodes that are dialled elsewhere than they say, by id: loopback for oneself.
    pub overrides: BTreeMap<String, Place>,
    /// What is trusted, and who we are.
    pub tls: Arc<ClientConfig>,
    /// Whether the cluster knows us, so that we may learn its curators.
    pub learn: bool,
}

/// What is known of the leader.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The one there was last.
    pub leader: Option<Leader>,
    /// How often everybody was asked in vain since somebody knew,
    pub rounds: u32,
    /// and what they said, or what came in between.
    pub failures: Vec<(Place, Status)>,
}

/// Follows the leader until it is dropped.
#[derive(Debug)]
pub struct Resolver {
    found: watch::Receiver<Found>,
    curators: watch::Receiver<BTreeMap<String, Place>>,
    ways: Arc<Ways>,
    _tasks: JoinSet<()>,
}

impl Resolver {
    /// Begins to look. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(terms: Terms) -> Self {
        let Terms { seeds, overrides, tls, learn } = terms;
        let (tell, found) = watch::channel(Found::default());
        let (learned, curators) = watch::channel(BTreeMap::new());
        let ways = Arc::new(Ways { tls, last: Mutex::default() });
        let mut tasks = JoinSet::new();
        let machine = Machine::new(seeds, overrides);
        tasks.spawn(follow(machine, Arc::clone(&ways), tell, curators.clone()));
        if learn {
            tasks.spawn(keep_learning(Arc::clone(&ways), found.clone(), learned));
        }
        Self { found, curators, ways, _tasks: tasks }
    }

    /// What is known now, and what changes.
    #[must_use]
    pub fn found(&self) -> watch::Receiver<Found> {
        self.found.clone()
    }

    /// The cluster's curators by id, where they say they are; empty before they are learned.
    #[must_use]
    pub fn curators(&self) -> watch::Receiver<BTreeMap<String, Place>> {
        self.curators.clone()
    }

    /// A way to the leader; waits until there is one. All calls of one leader share a connection.
    pub async fn channel(&self) -> Channel {
        self.ways.to_leader(&mut self.found.clone()).await
    }
}

/// Connections.
#[derive(Debug)]
struct Ways {
    tls: Arc<ClientConfig>,
    /// The one to the leader. Held for a look or a change only.
    last: Mutex<Option<(Place, Channel)>>,
}

impl Ways {
    /// A way there; the one that is kept, if it leads there.
    fn to(&self, place: &Place) -> Channel {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((there, channel)) if there == place => channel.clone(),
            _ => crate::tls::pinging_channel(&place.host, place.port, Arc::clone(&self.tls)),
        }
    }

    fn keep(&self, place: Place, channel: Channel) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((place, channel));
    }

    /// The sender of `found` is a task of the resolver's: where this is called, it runs.
    async fn to_leader(&self, found: &mut watch::Receiver<Found>) -> Channel {
        let leader = match found.wait_for(|found| found.leader.is_some()).await {
            Ok(found) => found.leader.as_ref().map(|leader| leader.place.clone()),
            Err(_) => None,
        };
        match leader {
            Some(place) => {
                let channel = self.to(&place);
                self.keep(place, channel.clone());
                channel
            }
            // The runtime is shutting down.
            None => std::future::pending().await,
        }
    }
}

async fn follow(
    mut machine: Machine,
    ways: Arc<Ways>,
    tell: watch::Sender<Found>,
    curators: watch::Receiver<BTreeMap<String, Place>>,
) {
    let mut failures = Vec::new();
    loop {
        let step = machine.next(Instant::now(), &curators.borrow(), random());
        match step {
            Step::Ask(place) => {
                let status = listen(&mut machine, &ways, &place, &tell).await;
                debug!(%place, %status, "a curator says no more of the leader");
                machine.ended(Instant::now());
                failures.push((place, status));
            }
            Step::Wait(until) => {
                let failures = std::mem::take(&mut failures);
                tell.send_modify(|found| {
                    found.rounds += 1;
                    found.failures = failures;
                });
                sleep_until(until).await;
            }
        }
    }
}

/// Why it ended.
async fn listen(
    machine: &mut Machine,
    ways: &Ways,
    place: &Place,
    tell: &watch::Sender<Found>,
) -> Status {
    let channel = ways.to(place);
    let mut client = CuratorLocalClient::new(channel.clone());
    let opened = async {
        let stream = client.get_current_leader(curator::GetCurrentLeaderRequest {}).await?;
        let mut stream = stream.into_inner();
        Ok((stream.message().await?, stream))
    };
    let (mut message, mut stream): (_, Streaming<_>) = match timeout(FIRST_WORD, opened).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(status)) => return status,
        Err(_) => {
            let seconds = FIRST_WORD.as_secs();
            return Status::deadline_exceeded(format!("no answer within {seconds} s"));
        }
    };
    while let Some(said) = message {
        if let Some(leader) = machine.told(Instant::now(), &told(said)) {
            if leader.place == *place {
                ways.keep(place.clone(), channel.clone());
            }
            tell.send_if_modified(|found| {
                let news = found.leader.as_ref() != Some(&leader) || found.rounds > 0;
                *found = Found { leader: Some(leader), ..Found::default() };
                news
            });
        }
        message = match stream.message().await {
            Ok(message) => message,
            Err(status) => return status,
        };
    }
    Status::unavailable("the stream has ended: the leader changes")
}

fn told(said: curator::GetCurrentLeaderResponse) -> Told {
    Told {
        leader: said.leader_node_id,
        host: said.leader_host,
        port: u16::try_from(said.leader_port).unwrap_or_default(),
        this: said.this_node_id,
    }
}

/// Learns the curators from each leader in turn.
async fn keep_learning(
    ways: Arc<Ways>,
    mut found: watch::Receiver<Found>,
    learned: watch::Sender<BTreeMap<String, Place>>,
) {
    let (first, most) = LEARN_AGAIN;
    let mut backoff = Backoff::new(first, most);
    loop {
        let channel = ways.to_leader(&mut found).await;
        let error = learn(channel, &learned, &mut backoff).await;
        debug!(?error, "the curators are learned no more");
        tokio::time::sleep(backoff.next(random())).await;
    }
}

/// Keeps `learned` current until the watch ends.
async fn learn(
    channel: Channel,
    learned: &watch::Sender<BTreeMap<String, Place>>,
    backoff: &mut Backoff,
) -> Result<(), Status> {
    let kind = curator::watch_request::NodesInCluster {};
    let kind = curator::watch_request::Kind::NodesInCluster(kind);
    let request = curator::WatchRequest { kind: Some(kind) };
    let mut client = CuratorClient::new(channel).max_decoding_message_size(crate::MAX_MESSAGE);
    let mut events = client.watch(request).await?.into_inner();
    // All nodes come first: until they have, nobody is forgotten.
    let mut backlog = Some(BTreeMap::new());
    while let Some(event) = events.message().await? {
        let last = event.progress() == curator::watch_event::Progress::LastBacklogged;
        match &mut backlog {
            Some(all) => note(all, event),
            None => learned.send_modify(|all| note(all, event)),
        }
        if last && let Some(all) = backlog.take() {
            learned.send_replace(all);
            backoff.reset();
        }
    }
    Ok(())
}

fn note(curators: &mut BTreeMap<String, Place>, event: curator::WatchEvent) {
    for node in event.nodes {
        let status = node.status.unwrap_or_default();
        match status.running_curator {
            Some(running) if !status.external_address.is_empty() => {
                let port = u16::try_from(running.port).ok().filter(|port| *port != 0);
                let port = port.unwrap_or(PORT);
                curators.insert(node.id, Place { host: status.external_address, port });
            }
            _ => drop(curators.remove(&node.id)),
        }
    }
    for gone in event.node_tombstones {
        curators.remove(&gone.node_id);
    }
}

/// Jitter; nothing depends on its being hard to guess.
fn random() -> u32 {
    let hash = RandomState::new().hash_one(());
    u32::try_from(hash >> 32).unwrap_or_default()
}

#[cfg(test)]
#[path = "leader/tests.rs"]
mod tests;
