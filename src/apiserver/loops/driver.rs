//! Drives the loops on the server's own registry: tells them what the cache has, and does what they say.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_rt::CancellationToken;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tracing::{info, warn};

use super::accounts::Accounts;
use super::disruptions::Disruptions;
use super::garbage::Garbage;
use super::kubernetes::{Kubernetes, Server};
use super::namespaces::Namespaces;
use super::quotas::Quotas;
use super::roles::Roles;
use super::tokens::Tokens;
use super::{Action, Gate, Job, Loop, Machine, Now, served};
use crate::object::{Object, User, metadata, text};
use crate::registry::{How, Registry, Target, Writer};
use crate::resources::{RESOURCES, Resource};
use crate::status::Status;
use crate::storage::cache::{Cache, Selection, Since};

/// Actions under way at a time: as many as share a commit of the store gladly, and leave room for clients.
const AT_ONCE: usize = 128;
/// Changes told at a time.
const TOLD: usize = 512;
/// How long an action may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Whose lease says that there is somebody else for this.
const MANAGER: &str = "kube-controller-manager";

/// Which loops run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// All, while no kube-controller-manager holds its lease; those that it does not do, always.
    #[default]
    Auto,
    /// None.
    Off,
}

impl std::str::FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err("either auto or off"),
        }
    }
}

/// What the loops are told of the server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which run.
    pub mode: Mode,
    /// The server itself.
    pub server: Server,
    /// The certificates, in PEM, by which pods know the server.
    pub authority: String,
}

/// Runs the loops until `shutdown`.
pub async fn run(registry: Registry, settings: Settings, shutdown: CancellationToken) {
    if settings.mode == Mode::Off {
        return;
    }
    let own = async {
        loop {
            let loops: Vec<Box<dyn Loop>> =
                vec![Box::new(Kubernetes::new(settings.server.clone()))];
            Driver::new(&registry, loops).drive(None).await;
        }
    };
    let left_to_managers = async {
        let mut gate = Gate::default();
        loop {
            opened(&registry, &mut gate).await;
            Driver::new(&registry, managed(&settings.authority)).drive(Some(&mut gate)).await;
        }
    };
    let both = async { tokio::join!(own, left_to_managers) };
    shutdown.run_until_cancelled(both).await;
}

/// What a kube-controller-manager does when there is one.
fn managed(authority: &str) -> Vec<Box<dyn Loop>> {
    vec![
        Box::new(Namespaces::default()),
        Box::new(Garbage::default()),
        Box::new(Accounts::new(authority)),
        Box::new(Tokens::default()),
        Box::new(Quotas::default()),
        Box::new(Disruptions::default()),
        Box::new(Roles::default()),
    ]
}

/// Waits until nobody else does it.
async fn opened(registry: &Registry, gate: &mut Gate) {
    let cache = registry.storage().cache();
    let mut leases = cache.follow_one(served("coordination.k8s.io", "v1", "leases"));
    let mut told = false;
    loop {
        leases.mark_unchanged();
        let Some(until) = held(cache, gate) else { break };
        if !told {
            info!("a kube-controller-manager holds its lease: the built-in loops rest");
            told = true;
        }
        // Whether it was renewed or ran out is seen above.
        drop(timeout(until.saturating_duration_since(Instant::now()), leases.changed()).await);
    }
    if told {
        info!("no kube-controller-manager holds its lease any more: the built-in loops run again");
    }
}

/// Until when somebody else does it, as far as the cache knows.
fn held(cache: &Cache, gate: &mut Gate) -> Option<Instant> {
    let lease = cache.entry(served("coordination.k8s.io", "v1", "leases"), "kube-system", MANAGER);
    let now = Instant::now();
    gate.observe(lease.map(|lease| lease.object()).as_ref(), now);
    gate.held_until(now)
}

/// One machine with its place in the cache.
struct Driver<'a> {
    registry: &'a Registry,
    user: Arc<User>,
    machine: Machine,
    /// What it wants to know, and up to where it does.
    told: Vec<(&'static Resource, u64)>,
    waiting: VecDeque<Job>,
    running: JoinSet<Ended>,
}

/// An action, and how it ended.
type Ended = (Job, Result<Option<Object>, Status>);

impl<'a> Driver<'a> {
    /// Tells the loops all there is.
    fn new(registry: &'a Registry, loops: Vec<Box<dyn Loop>>) -> Self {
        let machine = Machine::new(loops);
        let mut this = Self {
            registry,
            user: Arc::new(User::apiserver()),
            machine,
            told: Vec::new(),
            waiting: VecDeque::new(),
            running: JoinSet::new(),
        };
        for resource in RESOURCES.iter() {
            let stored = resource.is_stored() && std::ptr::eq(resource.stored(), resource);
            if !stored || !this.machine.wants(resource) {
                continue;
            }
            let listed = registry.storage().cache().select(resource, &Selection::all(""), 0);
            for entry in listed.entries {
                let place = (entry.namespace(), entry.name());
                this.machine.observe(resource, place, &entry.body, false, now());
            }
            this.told.push((resource, listed.revision));
        }
        this
    }

    /// Drives until the gate closes, or the cache has forgotten what was to be told.
    async fn drive(mut self, mut gate: Option<&mut Gate>) {
        let cache = Arc::clone(self.registry.storage().cache());
        let mut follow = cache.follow();
        loop {
            follow.mark_unchanged();
            if !self.tell(&cache) {
                warn!(
                    "the built-in loops did not keep up with what changed, and look at everything again"
                );
                return;
            }
            if gate.as_mut().is_some_and(|gate| held(&cache, gate).is_some()) {
                return;
            }
            if self.waiting.is_empty() {
                let free = AT_ONCE.saturating_sub(self.running.len());
                self.waiting.extend(self.machine.work(free, &*cache, now()));
            }
            while self.running.len() < AT_ONCE
                && let Some(job) = self.waiting.pop_front()
            {
                self.start(job);
            }
            let mut ended = self.next(&mut follow).await;
            // And all that ended meanwhile: what they did is seen at once.
            while let Some((job, end)) = ended {
                self.machine.ended(&job, end, now());
                ended = self.running.try_join_next().and_then(Result::ok);
            }
        }
    }

    /// Tells what has changed. False: it is no longer known.
    fn tell(&mut self, cache: &Cache) -> bool {
        for (resource, told) in &mut self.told {
            loop {
                let Since::Events(events, upto) = cache.since(resource, *told, TOLD) else {
                    return false;
                };
                for event in &events {
                    let entry = &event.entry;
                    let place = (entry.namespace(), entry.name());
                    self.machine.observe(resource, place, &entry.body, event.removed, now());
                }
                *told = upto;
                if events.len() < TOLD {
                    break;
                }
            }
        }
        true
    }

    fn start(&mut self, job: Job) {
        let (registry, user) = (self.registry.clone(), Arc::clone(&self.user));
        self.running.spawn(async move {
            let end = timeout(PATIENCE, execute(&registry, &user, &job.action)).await;
            let end = end.unwrap_or_else(|_| Err(Status::unavailable("the store does not answer")));
            (job, end)
        });
    }

    /// Waits until there may be something to do; gives an action that ended.
    async fn next(&mut self, follow: &mut watch::Receiver<u64>) -> Option<Ended> {
        // With everything under way that may be, only an end is of use.
        let full = self.running.len() >= AT_ONCE;
        let due = self.machine.wakes_at(Instant::now()).filter(|_| !full);
        let wake = async {
            match due {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        // Nothing is lost when the others are cancelled: what has changed is read from the cache.
        tokio::select! {
            // Only a defect ends a task otherwise, and it has been told already.
            Some(ended) = self.running.join_next() => ended.ok(),
            Ok(()) = follow.changed() => None,
            () = wake => None,
        }
    }
}

/// Does what a loop says.
async fn execute(
    registry: &Registry,
    user: &User,
    action: &Action,
) -> Result<Option<Object>, Status> {
    let writer = Writer::new(user);
    match action {
        Action::Create(resource, object) => {
            let target = Target::new(resource, text(object, "/metadata/namespace"), "");
            let done = registry.create(writer, target, object.clone()).await?;
            Ok(Some(done.object(resource)))
        }
        Action::Replace(resource, part, object) => {
            let (namespace, name) =
                (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
            let target = Target::new(resource, namespace, name).part(part);
            let replaced =
                registry.update(writer, target, How::Put, false, |_| Ok(object.clone())).await?;
            Ok(Some(replaced.0.object(resource)))
        }
        Action::Edit(place, edit) => {
            let target = Target::new(place.resource, &place.namespace, &place.name);
            let target = target.part(edit.subresource());
            let change = |mut current: Object| {
                edit.apply(&mut current)?;
                // It is made to whatever is there.
                metadata(&mut current).remove("resourceVersion");
                Ok(current)
            };
            let edited = registry.update(writer, target, How::Patch, false, change).await?;
            Ok(Some(edited.0.object(place.resource)))
        }
        Action::Delete(place, options) => {
            let target = Target::new(place.resource, &place.namespace, &place.name);
            let done = registry.delete(writer, target, options).await?;
            Ok(Some(done.object(place.resource)))
        }
        Action::Read(place) => {
            let found =
                registry.storage().get(place.resource, &place.namespace, &place.name).await?;
            Ok(found.map(|stored| stored.object))
        }
    }
}

fn now() -> Now {
    Now { at: Instant::now(), wall: OffsetDateTime::now_utc() }
}
