//! Takes in events, hands each to a worker when its turn has come, and does what was decided.
//!
//! One task owns the queue, the links and the database; workers only look. Every event that was
//! missed is made up for by asking the kernel about every device again, so that what is known ends up
//! right whatever happened on the way.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_netlink::{Netlink, Notice, Uevents};
use orlop_rt::{CancellationToken, Chain};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::Error;
use crate::database::Record;
use crate::host::{Host, Outcome, report};
use crate::links::Links;
use crate::order::{Keys, Queue, Ticket};
use crate::policy::Decision;
use crate::uevent::{Action, Uevent};
use crate::watch::Watch;

/// Workers spend their time waiting for disks.
const WORKERS: usize = 8;
/// More than these wait in the kernel's buffer, which takes less memory for them.
const MOST_WAITING: usize = 1024;
/// Devices asked about at a time, and only while fewer than this wait.
const CHUNK: usize = 64;
/// The kernel counts events of other network namespaces as well, which never reach us: after a
/// silence of this long, what is missing is theirs.
const SILENCE: Duration = Duration::from_millis(100);
/// Until a disk that somebody is partitioning is looked at again.
const LOCKED: Duration = Duration::from_millis(250);
/// Requests of a handful of callers at a time.
const REQUESTS: usize = 16;

/// What others want of the driver.
#[derive(Debug)]
pub(crate) enum Request {
    /// An answer once everything that has happened so far is dealt with.
    Settle(oneshot::Sender<()>),
    /// Every device is to be looked at again.
    Trigger,
}

/// The daemon's state.
#[derive(Debug)]
pub(crate) struct Driver {
    host: Arc<Host>,
    events: Uevents,
    /// Only to rename interfaces.
    netlink: Netlink,
    requests: mpsc::Receiver<Request>,
    queue: Queue<Uevent>,
    chores: JoinSet<Chore>,
    links: Links,
    watch: Watch,
    /// The highest sequence number seen.
    seen: u64,
    /// Devices the kernel is still to be asked about.
    to_trigger: VecDeque<PathBuf>,
    /// Chores on the way that will lead to events.
    pending: usize,
    /// When asking about all devices began, until it has ended.
    sweep: Option<Instant>,
    /// Asking must begin anew when it has ended: events were lost meanwhile.
    sweep_again: bool,
    settles: Vec<Settle>,
}

#[derive(Debug)]
struct Settle {
    answer: oneshot::Sender<()>,
    asked: Instant,
    /// The kernel's last event at that time.
    target: u64,
}

/// What a task of ours ended with.
#[derive(Debug)]
enum Chore {
    Examined(Ticket, Box<Uevent>, Outcome),
    /// All devices, to be asked about.
    Found(Vec<PathBuf>),
    Triggered,
    Retry(Box<Uevent>),
}

enum Happened {
    Notice(io::Result<Notice>),
    Ended(Result<Chore, JoinError>),
    Asked(Request),
    Written(io::Result<Vec<String>>),
    Timer,
    Shutdown,
}

impl Driver {
    pub(crate) fn new(
        host: Arc<Host>,
        events: Uevents,
        netlink: Netlink,
        watch: Watch,
    ) -> (Self, mpsc::Sender<Request>) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let driver = Self {
            host,
            events,
            netlink,
            requests,
            queue: Queue::new(WORKERS),
            chores: JoinSet::new(),
            links: Links::default(),
            watch,
            seen: 0,
            to_trigger: VecDeque::new(),
            pending: 0,
            sweep: None,
            sweep_again: false,
            settles: Vec::new(),
        };
        (driver, sender)
    }

    /// Runs until shutdown. Nodes, links and records stay.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        self.take_up();
        self.begin_sweep();
        loop {
            let drained = self.take_in()?;
            self.start_chores();
            let idle = drained && self.idle();
            if idle {
                self.end_sweep();
            }
            let wake = self.answer(idle && self.sweep.is_none());
            let room = self.queue.len() < MOST_WAITING;
            // All arms are cancel-safe.
            let happened = tokio::select! {
                notice = self.events.next(), if room => Happened::Notice(notice),
                Some(ended) = self.chores.join_next() => Happened::Ended(ended),
                Some(request) = self.requests.recv() => Happened::Asked(request),
                written = self.watch.next() => Happened::Written(written),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => Happened::Timer,
                () = shutdown.cancelled() => Happened::Shutdown,
            };
            match happened {
                Happened::Notice(notice) => self.take(notice.map_err(Error::Receive)?),
                Happened::Ended(Ok(chore)) => self.finish(chore).await,
                Happened::Ended(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                Happened::Asked(Request::Trigger) => self.begin_sweep(),
                Happened::Asked(Request::Settle(answer)) => {
                    let target = self.host.last_seqnum();
                    self.settles.push(Settle { answer, asked: Instant::now(), target });
                }
                Happened::Written(devices) => self.look_again(devices.map_err(Error::Watch)?),
                Happened::Timer => {}
                Happened::Shutdown => return Ok(()),
            }
        }
    }

    /// Takes up what an earlier run left: its links are claimed until their devices are looked at,
    /// and those of devices that went meanwhile are removed.
    fn take_up(&mut self) {
        for (id, record, there) in self.host.remembered() {
            // They lead where they should already, as far as can be known before the sweep.
            drop(self.links.claim(&id, &record.node, record.priority, record.links));
            if !there {
                self.release(&id);
            }
        }
    }

    /// Asks the kernel about every device there is.
    fn begin_sweep(&mut self) {
        if self.sweep.is_some() {
            self.sweep_again = true;
            return;
        }
        self.sweep = Some(Instant::now());
        self.pending += 1;
        let host = Arc::clone(&self.host);
        self.chores.spawn_blocking(move || Chore::Found(host.devices()));
    }

    fn end_sweep(&mut self) {
        if let Some(began) = self.sweep.take() {
            let (links, seconds) = (self.links.len(), began.elapsed().as_secs_f64());
            info!(links, "every device is known, {seconds:.3} s");
            if std::mem::take(&mut self.sweep_again) {
                self.begin_sweep();
            }
        }
    }

    /// Reads what has come in while there is room; whether that was all.
    fn take_in(&mut self) -> Result<bool, Error> {
        while self.queue.len() < MOST_WAITING {
            match self.events.try_next().map_err(Error::Receive)? {
                Some(notice) => self.take(notice),
                None => return Ok(true),
            }
        }
        Ok(false)
    }

    fn take(&mut self, notice: Notice) {
        let bytes = match notice {
            Notice::Event(bytes) => bytes,
            Notice::Overrun => {
                warn!("the kernel dropped events; asking about every device again");
                return self.begin_sweep();
            }
        };
        match Uevent::parse(&bytes) {
            Ok(event) => {
                self.seen = self.seen.max(event.seqnum);
                self.queue.push(Keys::of(&event), event);
            }
            Err(error) => warn!(%error, message = %bytes.escape_ascii(), "passed over"),
        }
    }

    fn start_chores(&mut self) {
        while let Some((ticket, event)) = self.queue.start() {
            let host = Arc::clone(&self.host);
            self.chores.spawn_blocking(move || {
                let outcome = host.examine(&event);
                Chore::Examined(ticket, Box::new(event), outcome)
            });
        }
        if self.pending == 0 && !self.to_trigger.is_empty() && self.queue.len() < CHUNK {
            let chunk: Vec<_> = self.to_trigger.drain(..CHUNK.min(self.to_trigger.len())).collect();
            self.pending += 1;
            let host = Arc::clone(&self.host);
            self.chores.spawn_blocking(move || {
                chunk.iter().for_each(|device| host.trigger(device, Action::Add));
                Chore::Triggered
            });
        }
    }

    async fn finish(&mut self, chore: Chore) {
        match chore {
            Chore::Found(devices) => {
                self.pending -= 1;
                self.to_trigger = devices.into();
            }
            Chore::Triggered => self.pending -= 1,
            Chore::Retry(event) => {
                self.pending -= 1;
                self.queue.push(Keys::of(&event), *event);
            }
            Chore::Examined(ticket, event, Outcome::Decided(decision)) => {
                self.apply(&event, decision).await;
                self.queue.done(ticket);
            }
            Chore::Examined(ticket, event, Outcome::Locked) => {
                debug!(node = event.devname(), "somebody holds its lock; looked at again soon");
                self.queue.done(ticket);
                self.pending += 1;
                self.chores.spawn(async move {
                    sleep(LOCKED).await;
                    Chore::Retry(event)
                });
            }
        }
    }

    async fn apply(&mut self, event: &Uevent, decision: Decision) {
        let id = event.id();
        debug!(action = %event.action, devpath = event.devpath, ?decision, "decided");
        if event.action == Action::Remove {
            return self.release(&id);
        }
        // Others have nothing that could be looked up.
        if event.devnum().is_none() && event.ifindex().is_none() {
            return;
        }
        let host = Arc::clone(&self.host);
        if let Some(access) = decision.access {
            report("set who may use a device", host.give_access(event, access));
        }
        let node = event.devname().unwrap_or_default();
        let links = decision.links.clone();
        for step in self.links.claim(&id, node, decision.priority, links) {
            report("link a device", host.link(&step));
        }
        let before = host.recall(&id);
        let record = Record {
            node: node.to_owned(),
            links: decision.links,
            priority: decision.priority,
            initialized: before.as_ref().map_or_else(now_micros, |before| before.initialized),
            properties: decision.properties,
        };
        if before.as_ref() != Some(&record) {
            report("remember a device", host.remember(&id, &record));
        }
        if event.block() && !node.is_empty() {
            let watched = self.watch.add(&id, &host.dev.join(node), &event.devpath);
            if let Err(error) = watched {
                warn!(node, %error, "what is written to it will not be noticed");
            }
        }
        if let (Some(name), Some(index)) = (decision.name, event.ifindex()) {
            self.rename(event, index, &name).await;
        }
    }

    async fn rename(&self, event: &Uevent, index: u32, name: &str) {
        let now = event.get("INTERFACE").unwrap_or_default();
        if now == name {
            return;
        }
        match self.netlink.rename(index, name).await {
            Ok(()) => info!(from = now, to = name, "interface renamed"),
            Err(error) => {
                warn!(from = now, to = name, error = %Chain(&error), "interface keeps its name")
            }
        }
    }

    /// A device is gone.
    fn release(&mut self, id: &str) {
        for step in self.links.release(id) {
            report("unlink a device", self.host.link(&step));
        }
        report("forget a device", self.host.forget(id));
        self.watch.remove(id);
    }

    fn look_again(&mut self, devices: Vec<String>) {
        let host = Arc::clone(&self.host);
        self.pending += 1;
        self.chores.spawn_blocking(move || {
            devices.iter().for_each(|device| host.look_again(device));
            Chore::Triggered
        });
    }

    /// Whether nothing is to be done, as far as we know.
    fn idle(&self) -> bool {
        self.queue.is_empty() && self.to_trigger.is_empty() && self.pending == 0
    }

    /// Answers those who wait for this; when to look again whether more can be answered.
    fn answer(&mut self, idle: bool) -> Option<Instant> {
        // Who has given up needs no answer.
        self.settles.retain(|settle| !settle.answer.is_closed());
        if !idle {
            return None;
        }
        let now = Instant::now();
        let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.settles)
            .into_iter()
            .partition(|settle| self.seen >= settle.target || settle.asked + SILENCE <= now);
        for settle in ready {
            // It may have given up just now.
            let _ = settle.answer.send(());
        }
        self.settles = waiting;
        self.settles.iter().map(|settle| settle.asked + SILENCE).min()
    }
}

fn now_micros() -> u64 {
    u64::try_from(orlop_sys::monotonic().as_micros()).unwrap_or(u64::MAX)
}
