//! What PID 1 knows of its node, shared by the tasks of the sequences and by the machine API.

use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use orlop_config::cmdline::Cmdline;
use orlop_config::machine::{MachineConfig, Mode};
use orlop_proto::machine::ServiceStateEvent;
use orlop_rt::{CancellationToken, Chain};
use orlop_supervise::{Cause, Change, Handle, Reaper, Supervisor};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::Error;
use crate::document::Document;
use crate::etcd::host::Etcd;
use crate::events::Events;
use crate::handover::Pki;
use crate::logs::Keeping;
use crate::plan::{BOOT, INITIALIZE, REBOOT, SHUTDOWN, Sequence};
use crate::power::End;
use crate::timeline::{Story, Timeline};
use crate::{sequence, tasks};

/// How the node ends: what is done on the way down, and what follows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) sequence: &'static Sequence,
    pub(crate) end: End,
}

impl From<End> for Ending {
    fn from(end: End) -> Self {
        let sequence = match end {
            End::Reboot => &REBOOT,
            End::PowerOff | End::Halt => &SHUTDOWN,
        };
        Self { sequence, end }
    }
}

/// Why a sequence does not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{sequence}: another sequence is running")]
    Locked { sequence: &'static str },
    #[error(transparent)]
    Check(Error),
}

/// An end whose checks are to come.
struct Asked {
    ending: Ending,
    tell: oneshot::Sender<Result<(), Refused>>,
}

/// Shared by clones.
#[derive(Clone, Debug)]
pub(crate) struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cmdline: Cmdline,
    events: Events,
    timeline: Timeline,
    reaper: Reaper,
    supervisor: Handle,
    logs: Keeping,
    /// What the node goes by. `None` until the task that loads it has one.
    config: watch::Sender<Option<Arc<Document>>>,
    /// The cluster's curator says which services run, not the configuration.
    by_roles: AtomicBool,
    /// What the configuration leaves to other control planes. Held for an assignment.
    handed: Mutex<Option<Arc<Pki>>>,
    /// Where a node without a configuration waits for one; `None` while it does not.
    waiting: Mutex<Option<mpsc::Sender<Document>>>,
    /// Held while a configuration is applied.
    applying: tokio::sync::Mutex<()>,
    /// What became of etcd so far.
    etcd: Etcd,
    /// What a reset wipes. Held for an assignment.
    wiped: Mutex<Vec<PathBuf>>,
    /// The sequencer's lock: while a sequence runs, another one is refused.
    locked: AtomicBool,
    /// Takes one request: the first ends the machine.
    ends: mpsc::Sender<Ending>,
    /// What is checked before it is one of these.
    asked: mpsc::Sender<Asked>,
    /// [`Node::checks`] has it.
    to_check: tokio::sync::Mutex<mpsc::Receiver<Asked>>,
    /// Ends what runs beside the services.
    shutdown: CancellationToken,
    /// What runs beside the services, for as long as the node does. Held for a spawn.
    tasks: Mutex<JoinSet<()>>,
}

impl Node {
    /// The node, with its reaper and its supervisor at work.
    pub(crate) fn start(cmdline: Cmdline, ends: mpsc::Sender<Ending>) -> Self {
        // std's hasher is seeded without waiting for the kernel's pool, which is not filled yet.
        let [a, b, c, ..] = RandomState::new().hash_one(()).to_ne_bytes();
        let events = Events::new([a, b, c]);
        let story = Story::new(orlop_telemetry::left_start(), orlop_sys::monotonic());
        let timeline = Timeline::new(story);
        let (supervisor, handle) = Supervisor::new();
        let (asked, to_check) = mpsc::channel(1);
        let node = Self(Arc::new(Inner {
            cmdline,
            events: events.clone(),
            timeline: timeline.clone(),
            reaper: Reaper::new(),
            supervisor: handle.clone(),
            logs: Keeping::new(handle.logs().clone()),
            config: watch::Sender::default(),
            by_roles: AtomicBool::new(false),
            handed: Mutex::default(),
            waiting: Mutex::default(),
            applying: tokio::sync::Mutex::default(),
            etcd: Etcd::default(),
            wiped: Mutex::default(),
            locked: AtomicBool::new(true),
            ends: ends.clone(),
            asked,
            to_check: tokio::sync::Mutex::new(to_check),
            shutdown: CancellationToken::new(),
            tasks: Mutex::default(),
        }));
        let reaper = node.0.reaper.clone();
        node.spawn(async move {
            if let Err(error) = reaper.run().await {
                error!(error = %Chain(&error), "children are not waited for any more; rebooting");
                // Full: the end is on its way.
                let _ = ends.try_send(End::Reboot.into());
            }
        });
        node.spawn(publish_changes(handle.subscribe(), events, timeline));
        node.spawn(supervisor.run());
        node
    }

    /// Runs `task` until it ends, or the node does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }

    pub(crate) fn cmdline(&self) -> &Cmdline {
        &self.0.cmdline
    }

    pub(crate) fn events(&self) -> &Events {
        &self.0.events
    }

    /// How the boot went, and how often what ran.
    pub(crate) fn timeline(&self) -> &Timeline {
        &self.0.timeline
    }

    pub(crate) fn reaper(&self) -> &Reaper {
        &self.0.reaper
    }

    pub(crate) fn supervisor(&self) -> &Handle {
        &self.0.supervisor
    }

    /// Who keeps the logs of the services, and sends them on.
    pub(crate) fn logs(&self) -> &Keeping {
        &self.0.logs
    }

    /// Cancelled when the node goes down.
    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.0.shutdown
    }

    /// Where the node runs (`talos.platform`), `metal` when nothing says so.
    pub(crate) fn platform(&self) -> &str {
        self.0.cmdline.platform().unwrap_or("metal")
    }

    /// What that asks of a configuration.
    pub(crate) fn mode(&self) -> Mode {
        Mode::of_platform(self.platform())
    }

    /// What the node goes by.
    ///
    /// A control plane's may lack what others have handed over: that is filled in.
    pub(crate) fn config(&self) -> Result<Arc<MachineConfig>, Error> {
        let config = self.document()?.config();
        Ok(match self.handed_over() {
            Some(pki) if config.machine.kind.is_control_plane() => Arc::new(pki.fill(&config)),
            _ => config,
        })
    }

    /// Whether the cluster's curator says which services run.
    pub(crate) fn goes_by_roles(&self) -> bool {
        self.0.by_roles.load(Ordering::Acquire)
    }

    /// From now on it does.
    pub(crate) fn go_by_roles(&self) {
        self.0.by_roles.store(true, Ordering::Release);
    }

    /// The cluster's PKI that another control plane has handed over.
    pub(crate) fn handed_over(&self) -> Option<Arc<Pki>> {
        self.0.handed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on goes by this PKI where its configuration has none.
    pub(crate) fn hand(&self, pki: Pki) {
        *self.0.handed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(pki));
    }

    /// The same, with its text.
    pub(crate) fn document(&self) -> Result<Arc<Document>, Error> {
        self.0.config.borrow().clone().ok_or(Error::NoConfiguration)
    }

    pub(crate) fn set_document(&self, document: Document) {
        self.timeline().story().configured(document.text().as_bytes(), SystemTime::now());
        self.logs().go_by(&document.config());
        self.0.config.send_replace(Some(Arc::new(document)));
    }

    /// Waits for a configuration that somebody applies (maintenance).
    pub(crate) async fn wait_for_document(&self) -> Document {
        let (offer, mut offered) = mpsc::channel(1);
        *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(offer);
        loop {
            // The sender is kept in the node; it does not go away.
            if let Some(document) = offered.recv().await {
                *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return document;
            }
        }
    }

    /// Whether the node waits for a configuration.
    pub(crate) fn in_maintenance(&self) -> bool {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Gives `document` to a node that waits for one; whether it does.
    pub(crate) fn offer(&self, document: Document) -> bool {
        let waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waiting.is_some_and(|waiting| waiting.try_send(document).is_ok())
    }

    /// The right to apply a configuration; `None` while another call has it.
    pub(crate) fn applying(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.0.applying.try_lock().ok()
    }

    /// What became of etcd so far.
    pub(crate) fn etcd(&self) -> &Etcd {
        &self.0.etcd
    }

    /// What the reset that was asked for wipes.
    pub(crate) fn wiped(&self) -> Vec<PathBuf> {
        self.0.wiped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for a reset that wipes these devices; as [`Node::request_end`].
    pub(crate) fn request_reset(&self, devices: Vec<PathBuf>, ending: Ending) {
        // Only those of the reset that is taken.
        let taken = || *self.0.wiped.lock().unwrap_or_else(PoisonError::into_inner) = devices;
        self.end(ending, taken);
    }

    /// From the first task to services that are all healthy.
    pub(crate) async fn boot(&self) -> Result<(), Error> {
        self.run(&INITIALIZE).await?;
        self.run(&BOOT).await?;
        self.unlock();
        let now = orlop_sys::monotonic();
        self.timeline().story().ready(now);
        info!("ready in {:.3}s", now.as_secs_f64());
        Ok(())
    }

    /// Runs one sequence; the lock is the caller's.
    pub(crate) async fn run(&self, sequence: &Sequence) -> Result<(), Error> {
        let perform = async |task| tasks::perform(self, task).await;
        sequence::run(sequence, self.events(), self.timeline(), perform).await
    }

    /// Lets the next sequence be asked for.
    pub(crate) fn unlock(&self) {
        self.0.locked.store(false, Ordering::Release);
    }

    /// Refuses all further requests.
    pub(crate) fn lock(&self) {
        self.0.locked.store(true, Ordering::Release);
    }

    /// Asks for the end of the machine; while another sequence runs, the request is refused, which
    /// those who watch the events are told.
    pub(crate) fn request_end(&self, ending: impl Into<Ending>) {
        self.end(ending.into(), || {});
    }

    fn end(&self, ending: Ending, taken: impl FnOnce()) {
        if self.0.locked.swap(true, Ordering::AcqRel) {
            return sequence::refuse(ending.sequence, self.events());
        }
        taken();
        if self.0.ends.try_send(ending).is_err() {
            sequence::refuse(ending.sequence, self.events());
        }
    }

    /// As [`Node::request_end`], once the checks of its sequence are well. They go on without the caller.
    pub(crate) async fn request_end_after_checks(&self, ending: Ending) -> Result<(), Refused> {
        let Ending { sequence, .. } = ending;
        if self.0.locked.swap(true, Ordering::AcqRel) {
            sequence::refuse(sequence, self.events());
            return Err(Refused::Locked { sequence: sequence.name });
        }
        let (tell, told) = oneshot::channel();
        // The lock is ours: there is no other one.
        let asked = self.0.asked.try_send(Asked { ending, tell });
        debug_assert!(asked.is_ok());
        told.await.unwrap_or(Err(Refused::Locked { sequence: sequence.name }))
    }

    /// Goes through the checks of the sequences that are asked for, for as long as the node lives.
    pub(crate) async fn checks(&self) -> Infallible {
        let mut asked = self.0.to_check.lock().await;
        loop {
            // The sender is kept in the node; it does not go away.
            let Some(Asked { ending, tell }) = asked.recv().await else { continue };
            let Ending { sequence, .. } = ending;
            let perform = async |task| tasks::perform(self, task).await;
            let checked = sequence::check(sequence, self.events(), self.timeline(), perform).await;
            let result = match checked {
                Err(error) => {
                    self.unlock();
                    Err(Refused::Check(error))
                }
                // Full: the node goes down for another reason.
                Ok(()) => self.0.ends.try_send(ending).map_err(|_| {
                    sequence::refuse(sequence, self.events());
                    Refused::Locked { sequence: sequence.name }
                }),
            };
            // Nobody waits any more: the events tell.
            let _ = tell.send(result);
        }
    }

    /// What a shutdown ends in: `talos.shutdown=halt|poweroff`.
    pub(crate) fn shutdown_end(&self) -> End {
        if self.0.cmdline.halts_on_shutdown() { End::Halt } else { End::PowerOff }
    }
}

/// Notes every change of a service, and makes those of its state an event; health is none.
async fn publish_changes(
    mut changes: broadcast::Receiver<Change>,
    events: Events,
    timeline: Timeline,
) {
    loop {
        match changes.recv().await {
            Ok(change) => {
                timeline.story().changed(orlop_sys::monotonic(), &change);
                let Change { id, entry, cause } = change;
                if cause == Cause::State {
                    events.publish(&ServiceStateEvent {
                        service: id.to_string(),
                        action: entry.state as i32,
                        message: entry.message,
                    });
                }
            }
            Err(RecvError::Lagged(count)) => {
                warn!(count, "changes of services came too fast to become events");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// How long all services together may take to become healthy (spec §8.3).
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(25 * 60);

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use orlop_proto::common::Code;
    use orlop_proto::machine::SequenceEvent;
    use orlop_proto::machine::sequence_event::Action;
    use prost::Message as _;

    use super::*;
    use crate::events::Tail;
    use crate::plan;

    /// Nothing is awaited, so that the node's reaper never runs: it would take other tests' children.
    #[tokio::test]
    async fn of_two_ends_at_once_the_second_is_refused_as_locked() {
        let (sender, mut ends) = mpsc::channel(1);
        let node = Node::start(Cmdline::parse(""), sender);
        node.unlock();
        node.request_end(End::Reboot);
        node.request_end(End::PowerOff);
        let taken = ends.try_recv().map(|ending| ending.sequence.name);
        assert_eq!(taken.ok(), Some("reboot"));
        assert!(ends.try_recv().is_err(), "both were taken");
        let [told] = &node.events().kept(&Tail::All)[..] else { panic!("not one event") };
        let told = SequenceEvent::decode(&told.data.value[..]).unwrap_or_default();
        assert_eq!((told.sequence.as_str(), told.action()), ("shutdown", Action::Noop));
        assert_eq!(told.error.map(|error| error.code()), Some(Code::Locked));
    }

    /// As above: the futures are polled here, and nothing else is.
    fn here<T>(future: impl Future<Output = T>) -> T {
        let (mut future, mut context) = (pin!(future), Context::from_waker(Waker::noop()));
        loop {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(value) => return value,
                Poll::Pending => std::thread::yield_now(),
            }
        }
    }

    #[tokio::test]
    async fn an_upgrade_that_cannot_be_is_refused_and_the_node_goes_on() {
        let (sender, mut ends) = mpsc::channel(1);
        let node = Node::start(Cmdline::parse(""), sender);
        let upgrade = plan::upgrade(plan::When::Now, plan::Membership::Kept);
        let ending = || Ending { sequence: upgrade, end: End::Reboot };
        let ask = || {
            here(async {
                tokio::select! {
                    never = node.checks() => match never {},
                    asked = node.request_end_after_checks(ending()) => asked,
                }
            })
        };
        // While another sequence runs.
        let refused = ask().map_err(|refused| refused.to_string());
        assert_eq!(refused, Err("upgrade: another sequence is running".to_owned()));
        node.unlock();
        for _ in 0..2 {
            let Err(Refused::Check(Error::NoInstaller { .. })) = ask() else {
                panic!("it was taken, or the lock was kept")
            };
        }
        assert!(ends.try_recv().is_err(), "nothing ends");
        // Once it ends, there is no second way.
        node.request_end(End::Reboot);
        assert!(matches!(ask(), Err(Refused::Locked { .. })));
        assert_eq!(ends.try_recv().map(|ending| ending.sequence.name).ok(), Some("reboot"));
    }

    #[tokio::test]
    async fn a_reset_that_was_refused_leaves_nothing_behind() {
        let (sender, mut ends) = mpsc::channel(1);
        let node = Node::start(Cmdline::parse(""), sender);
        let reset = |device: &str| {
            let ending = Ending { sequence: &plan::RESET, end: End::Reboot };
            node.request_reset(vec![device.into()], ending);
        };
        // While the node boots.
        reset("/dev/a");
        assert!(node.wiped().is_empty() && ends.try_recv().is_err());
        node.unlock();
        reset("/dev/b");
        reset("/dev/c");
        assert_eq!(node.wiped(), [PathBuf::from("/dev/b")]);
        assert_eq!(ends.try_recv().map(|ending| ending.sequence.name).ok(), Some("reset"));
    }
}
