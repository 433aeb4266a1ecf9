//! `Curator.Watch`: all nodes, or one, and what becomes of them (spec §3.6). Stands on the [`Roster`], which one watch of
//! the store feeds for everybody.

use std::sync::Arc;

use futures_util::stream;
use orlop_proto::metropolis::node::core::curator::proto::api::watch_event::{
    NodeTombstone, Progress,
};
use orlop_proto::metropolis::node::core::curator::proto::api::watch_request::Kind;
use orlop_proto::metropolis::node::core::curator::proto::api::{WatchEvent, WatchRequest};
use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use tokio::sync::watch;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::{caller, told};
use crate::access::Caller;
use crate::names::NodeId;
use crate::office::Office;
use crate::roster::Roster;

/// About how many bytes an event has at most.
const EVENT: usize = 2 << 20;

pub(super) async fn watch(
    office: &Arc<Office>,
    request: Request<WatchRequest>,
) -> Result<Response<BoxStream<WatchEvent>>, Status> {
    let caller = caller(&request)?;
    let kind = request.into_inner().kind;
    if let Caller::Retired(own) = &caller {
        let itself = matches!(&kind, Some(Kind::NodeInCluster(of)) if of.node_id == own.as_str());
        if !itself {
            return Err(Status::unauthenticated(
                "a node that was decommissioned may watch itself, and nothing else",
            ));
        }
    }
    // Whoever is told anything is told what was written before he asked.
    super::current(office).await?;
    let office = Arc::clone(office);
    match kind {
        Some(Kind::NodeInCluster(of)) => {
            let id: NodeId = of.node_id.parse()?;
            let changes = office.roster.changes_of(&id);
            let one = One { id, changes, seen: None };
            let events = stream::unfold((office, one), |(office, mut one)| async move {
                Some((Ok(one.next(&office.roster).await?), (office, one)))
            });
            Ok(Response::new(Box::pin(events)))
        }
        Some(Kind::NodesInCluster(_)) => {
            let changes = office.roster.changes();
            let all = All { changes, at: At::Backlog { after: None, change: None } };
            let events = stream::unfold(Some((office, all)), |state| async move {
                let (office, mut all) = state?;
                match all.next(&office.roster).await? {
                    Ok(event) => Some((Ok(event), Some((office, all)))),
                    Err(status) => Some((Err(status), None)),
                }
            });
            Ok(Response::new(Box::pin(events)))
        }
        None => Err(Status::unimplemented("say what to watch: a node, or all nodes")),
    }
}

/// Who watches one node.
struct One {
    id: NodeId,
    changes: watch::Receiver<u64>,
    /// The node's change that was told last; none: it is not there.
    seen: Option<u64>,
}

impl One {
    /// The next event; none when the curator stops.
    async fn next(&mut self, roster: &Roster) -> Option<WatchEvent> {
        loop {
            self.changes.mark_unchanged();
            let now = roster.one(&self.id);
            let before = std::mem::replace(&mut self.seen, now.as_ref().map(|(_, change)| *change));
            match now {
                Some((node, change)) if before != Some(change) => return Some(event([&node])),
                None if before.is_some() => {
                    let mut event = event([]);
                    event.node_tombstones.push(tombstone(&self.id));
                    return Some(event);
                }
                Some(_) | None => {}
            }
            self.changes.changed().await.ok()?;
        }
    }
}

/// Who watches all nodes.
struct All {
    changes: watch::Receiver<u64>,
    at: At,
}

enum At {
    /// Told up to this node, and `change` was the last one when the first was told.
    Backlog { after: Option<NodeId>, change: Option<u64> },
    /// Told up to this change.
    Change(u64),
}

impl All {
    /// The next event; none when the curator stops.
    async fn next(&mut self, roster: &Roster) -> Option<Result<WatchEvent, Status>> {
        loop {
            match &mut self.at {
                At::Backlog { after, change } => {
                    let begun = *change.get_or_insert(*self.changes.borrow());
                    let (nodes, last) = roster.page(after.as_ref(), EVENT);
                    let mut event = event(nodes.iter());
                    match nodes.last().and_then(|node| node.id.parse().ok()) {
                        Some(id) if !last => *after = Some(id),
                        _ => {
                            event.progress = Progress::LastBacklogged.into();
                            self.at = At::Change(begun);
                        }
                    }
                    return Some(Ok(event));
                }
                At::Change(seen) => {
                    self.changes.mark_unchanged();
                    let Some(changed) = roster.since(*seen, EVENT) else {
                        let why = "the watch fell too far behind; begin it anew";
                        return Some(Err(Status::unavailable(why)));
                    };
                    *seen = changed.upto;
                    if !changed.nodes.is_empty() || !changed.gone.is_empty() {
                        let mut event = event(changed.nodes.iter());
                        event.node_tombstones = changed.gone.iter().map(tombstone).collect();
                        return Some(Ok(event));
                    }
                    self.changes.changed().await.ok()?;
                }
            }
        }
    }
}

fn event<'a>(nodes: impl IntoIterator<Item = &'a Arc<Node>>) -> WatchEvent {
    let nodes = nodes.into_iter().map(|node| told::to_nodes(node)).collect();
    WatchEvent { nodes, ..WatchEvent::default() }
}

fn tombstone(id: &NodeId) -> NodeTombstone {
    NodeTombstone { node_id: id.to_string() }
}
