//! Carries out what an [`Election`] decides, over a store.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, OptionFuture};
use orlop_proto::metropolis::node::core::curator::proto::private::LeaderElectionValue;
use orlop_rt::CancellationToken;
use orlop_store::{Compare, Entry, Error, Op, Range, Revision, Store, Txn, Watch};
use prost::Message as _;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info};

use super::{Action, Answer, Election, Event, Office, Place, Request, TTL, key};
use crate::names::{CURATOR, LEADER, NodeId};

/// Between two tries to hear of locks that come and go.
const AGAIN: Duration = Duration::from_secs(1);

/// Takes part in the election until `shutdown`, and leaves it then, so that the next one leads at once. What this
/// curator is stands in `offices`.
///
/// Who is the only user of its store leads from the start.
pub async fn run(
    store: Store,
    own: NodeId,
    offices: &watch::Sender<Office>,
    shutdown: CancellationToken,
) {
    if matches!(store, Store::Embedded(_)) {
        become_(offices, Office::Leads(None));
        shutdown.cancelled().await;
        become_(offices, Office::Follows(None));
        return;
    }
    let start = Instant::now();
    let random = SystemRandom::new();
    let mut election = Election::new(own.clone(), Duration::ZERO);
    let mut asking: Option<BoxFuture<'static, Answer>> = None;
    let mut changing = changes(store.clone(), None).boxed();
    let mut stopping = Box::pin(shutdown.cancelled_owned());
    let mut stopped = false;
    loop {
        let wake_at = election.wake_at().map(|at| start + at);
        // Each arm may be cancelled: the futures that do something live outside of the loop.
        let event = tokio::select! {
            biased;
            () = &mut stopping, if !stopped => {
                stopped = true;
                Event::Stopped
            }
            () = async { sleep_until(wake_at.unwrap_or(start)).await }, if wake_at.is_some() => {
                Event::TimerFired
            }
            Some(answer) = OptionFuture::from(asking.as_mut()) => {
                asking = None;
                Event::Answered(answer)
            }
            watching = &mut changing => {
                changing = changes(store.clone(), watching).boxed();
                Event::Changed
            }
        };
        for action in election.handle(start.elapsed(), chance(&random), event) {
            match action {
                Action::Ask(request) => asking = Some(ask(store.clone(), own.clone(), request)),
                Action::Become(office) => become_(offices, office),
                Action::Leave => return,
            }
        }
    }
}

fn become_(offices: &watch::Sender<Office>, office: Office) {
    match &office {
        Office::Leads(lock) => info!(created = lock.as_ref().map(|lock| lock.created.0), "leads"),
        Office::Follows(Some(leader)) => info!(%leader, "follows"),
        Office::Follows(None) => info!("nobody leads that is known"),
    }
    offices.send_replace(office);
}

fn chance(random: &SystemRandom) -> u64 {
    let mut bytes = [0; 8];
    // Without it all wait equally long, and are only slower for it.
    random.fill(&mut bytes).ok();
    u64::from_le_bytes(bytes)
}

/// Waits until a lock may have come or gone; gives the watch back, if there is one.
async fn changes(store: Store, watching: Option<Watch>) -> Option<Watch> {
    let heard = async {
        let mut watch = match watching {
            Some(watch) => watch,
            // What came before it began is seen by the look that follows.
            None => return store.watch(locks(), store.revision().await?).await,
        };
        watch.next().await?;
        Ok::<_, Error>(watch)
    };
    match heard.await {
        Ok(watch) => Some(watch),
        Err(error) => {
            debug!(%error, "the watch of the locks begins anew");
            sleep(AGAIN).await;
            None
        }
    }
}

fn locks() -> Range {
    CURATOR.range(LEADER)
}

fn ask(store: Store, own: NodeId, request: Request) -> BoxFuture<'static, Answer> {
    Box::pin(async move {
        asked(&store, &own, request.clone()).await.unwrap_or_else(|error| match error {
            Error::NoLease { .. } => Answer::NoLease,
            error => {
                debug!(%error, ?request, "the election goes on");
                Answer::Failed
            }
        })
    })
}

async fn asked(store: &Store, own: &NodeId, request: Request) -> Result<Answer, Error> {
    Ok(match request {
        Request::Look => Answer::Places(look(store).await?),
        Request::Remove(stale) => {
            for (key, modified) in stale {
                info!(key = %key.escape_ascii(), "removes the lock that a run before this one left");
                let remove = Op::Delete(Range::key(key.clone()));
                store.txn(Txn::when([Compare::Modified(key, modified)]).then([remove])).await?;
            }
            Answer::Removed
        }
        Request::Grant => Answer::Granted(store.grant(TTL).await?),
        Request::Claim(lease) => {
            let key = key(lease);
            let value = LeaderElectionValue { node_id: own.to_string(), ttl: TTL.as_secs() };
            let put = Op::Put {
                key: key.clone(),
                value: value.encode_to_vec().into(),
                lease: Some(lease),
            };
            let claim = Txn::when([Compare::Created(key, Revision::NONE)]).then([put]);
            store.txn(claim).await?;
            Answer::Places(look(store).await?)
        }
        Request::Renew(lease) => {
            store.keep_alive(lease).await?;
            Answer::Places(look(store).await?)
        }
        Request::Revoke(lease) => {
            store.revoke(lease).await?;
            Answer::Removed
        }
    })
}

async fn look(store: &Store) -> Result<Vec<Place>, Error> {
    Ok(store.range(locks()).await?.entries.into_iter().map(place).collect())
}

fn place(entry: Entry) -> Place {
    let value = LeaderElectionValue::decode(entry.value).ok();
    Place {
        key: entry.key,
        created: entry.created,
        modified: entry.modified,
        node: value.and_then(|value| value.node_id.parse().ok()),
    }
}
