//! Keeps one conduit as it is wanted: connected while streams of it are open, and each of them a target once it is
//! configured (spec/ambassador §2.3, §3.2).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use orlop_proto::ambassador::v1::stream_status::Status;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ambassador::Listed;
use crate::member::{self, Place};
use crate::registry::{Configured, Registry};
use crate::stream::{self, Report, Want};
use crate::table::Name;

/// How the pod is connected.
#[derive(Clone, Debug, PartialEq)]
pub enum Link {
    /// Not yet, or not any more.
    Down,
    /// With these addresses, `ip/length`.
    Up(Vec<String>),
}

/// What is to be done about a stream that is open, and what is said of it.
#[must_use]
pub fn decide(
    link: &Link,
    configured: &Configured,
    stream: &str,
    period: Duration,
    report: Report,
) -> (Want, Status) {
    let Link::Up(ips) = link else { return (Want::Nothing, Status::Unavailable) };
    let Some(streams) = &configured.streams else { return (Want::Nothing, Status::Pending) };
    let Some(max) = streams.get(stream) else { return (Want::Nothing, Status::Undefined) };
    if ips.is_empty() {
        return (Want::Nothing, Status::Unavailable);
    }
    let status = match report.status {
        None | Some(member::Status::Pending) => Status::Pending,
        Some(member::Status::Open) => Status::Open,
        Some(member::Status::Unavailable) => Status::Unavailable,
    };
    (Want::Member(Place { ips: ips.clone(), max: *max, period }), status)
}

/// A stream that was opened, or is being left.
#[derive(Debug)]
struct Worker {
    want: watch::Sender<Want>,
    told: watch::Receiver<Report>,
}

/// Keeps the conduit as `wanted` says until whoever wants goes; `idle` when nothing is wanted and nothing is left.
#[derive(Debug)]
pub struct Keeper {
    /// Of the conduit; its stream is empty.
    pub name: Name,
    /// Of its trench.
    pub registry: Registry,
    /// How it is connected.
    pub link: watch::Receiver<Link>,
    /// Streams that are open.
    pub wanted: watch::Receiver<BTreeSet<String>>,
    /// Nothing is open, and nothing is left of what was.
    pub idle: watch::Sender<bool>,
    /// What applications see.
    pub listed: Arc<Listed>,
    /// Of a refresh.
    pub period: Duration,
}

impl Keeper {
    /// Runs until whoever wants goes.
    pub async fn run(mut self) {
        let (told, mut configured) = watch::channel(Configured::default());
        let following = {
            let (registry, name) = (self.registry.clone(), self.name.clone());
            async move { registry.follow(&name.trench, &name.conduit, &told).await }
        };
        let keeping = async {
            let mut workers: BTreeMap<String, Worker> = BTreeMap::new();
            let mut running = JoinSet::new();
            loop {
                self.settle(&mut workers, &mut running, &configured.borrow_and_update().clone());
                let mut reports = JoinSet::new();
                for worker in workers.values() {
                    let mut told = worker.told.clone();
                    told.mark_unchanged();
                    // What came between settling and now is not missed: it is compared again.
                    let seen = *worker.told.borrow();
                    reports.spawn(async move { told.wait_for(|now| *now != seen).await.map(drop) });
                }
                tokio::select! {
                    changed = self.wanted.changed() => if changed.is_err() { return },
                    changed = self.link.changed() => if changed.is_err() { return },
                    changed = configured.changed() => if changed.is_err() { return },
                    Some(_) = reports.join_next() => {}
                    Some(_) = running.join_next() => {}
                }
            }
        };
        tokio::select! {
            () = following => {}
            () = keeping => {}
        }
    }

    /// Brings everything to what is wanted now, as far as that is a matter of saying so.
    fn settle(
        &mut self,
        workers: &mut BTreeMap<String, Worker>,
        running: &mut JoinSet<()>,
        configured: &Configured,
    ) {
        let wanted = self.wanted.borrow_and_update().clone();
        let link = self.link.borrow_and_update().clone();
        // Who has ended has let go of what it tells.
        workers.retain(|_, worker| worker.told.has_changed().is_ok());
        for stream in &wanted {
            let name = Name { stream: stream.clone(), ..self.name.clone() };
            let worker = workers.entry(stream.clone()).or_insert_with(|| {
                let (want, wants) = watch::channel(Want::Nothing);
                let (tell, told) = watch::channel(Report::NOTHING);
                running.spawn(stream::run(name.clone(), self.registry.clone(), wants, tell));
                Worker { want, told }
            });
            let report = *worker.told.borrow();
            let (want, status) = decide(&link, configured, stream, self.period, report);
            worker.want.send_if_modified(|known| {
                let other = *known != want;
                *known = want;
                other
            });
            self.listed.set(&name, status);
        }
        for (_, worker) in workers.iter().filter(|(stream, _)| !wanted.contains(*stream)) {
            worker
                .want
                .send_if_modified(|known| std::mem::replace(known, Want::Gone) != Want::Gone);
        }
        let left = workers.values().all(|worker| worker.told.borrow().left);
        self.idle.send_replace(wanted.is_empty() && left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_that_of_the_first_thing_that_is_missing() {
        let period = Duration::from_secs(30);
        let up = Link::Up(vec!["10.0.0.1/24".to_owned()]);
        let unknown = Configured::default();
        let with = |streams: &[(&str, u32)]| Configured {
            streams: Some(streams.iter().map(|(name, max)| ((*name).to_owned(), *max)).collect()),
            vips: None,
        };
        let report = |status| Report { status, left: false };
        let rows = [
            (&Link::Down, with(&[("s", 1)]), Some(member::Status::Open), Status::Unavailable),
            (&up, unknown, None, Status::Pending),
            (&up, with(&[("x", 1)]), None, Status::Undefined),
            (&up, with(&[("s", 1)]), None, Status::Pending),
            (&up, with(&[("s", 1)]), Some(member::Status::Pending), Status::Pending),
            (&up, with(&[("s", 1)]), Some(member::Status::Unavailable), Status::Unavailable),
            (&up, with(&[("s", 1)]), Some(member::Status::Open), Status::Open),
            (&Link::Up(Vec::new()), with(&[("s", 1)]), None, Status::Unavailable),
        ];
        for (link, configured, status, said) in rows {
            let (want, now) = decide(link, &configured, "s", period, report(status));
            assert_eq!(now, said, "{link:?} {configured:?}");
            let member = matches!(want, Want::Member(_));
            let runs = link == &up && configured.streams.is_some_and(|all| all.contains_key("s"));
            assert_eq!(member, runs);
        }
    }
}
