//! All loops with their queues: what happens goes in, what is to be done comes out.

use std::collections::HashMap;
use std::time::Instant;

use orlop_rt::Chain;
use tracing::{debug, warn};

use super::queue::Queue;
use super::{Action, Loop, Meta, Now, Seen};
use crate::object::{Object, Objects};
use crate::resources::Resource;
use crate::status::Status;

/// An action of a loop for a key.
#[derive(Clone, Debug)]
pub struct Job {
    /// Which loop.
    index: usize,
    key: String,
    /// What to do.
    pub action: Action,
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    loops: Vec<Driven>,
}

#[derive(Debug)]
struct Driven {
    inner: Box<dyn Loop>,
    queue: Queue,
    /// Actions under way, by key, and whether one of them failed or read.
    running: HashMap<String, Running>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Running {
    left: usize,
    failed: bool,
    read: bool,
}

impl Machine {
    /// Of these loops.
    #[must_use]
    pub fn new(loops: Vec<Box<dyn Loop>>) -> Self {
        let driven = |inner| Driven { inner, queue: Queue::default(), running: HashMap::new() };
        Self { loops: loops.into_iter().map(driven).collect() }
    }

    /// Does any loop want to know of this resource?
    #[must_use]
    pub fn wants(&self, resource: &'static Resource) -> bool {
        self.loops.iter().any(|driven| driven.inner.wants(resource))
    }

    /// Takes in what an object is now, or that it is gone (then `body` is what it was).
    pub fn observe(
        &mut self,
        resource: &'static Resource,
        (namespace, name): (&str, &str),
        body: &[u8],
        gone: bool,
        now: Now,
    ) {
        let meta = match Meta::read(body) {
            Ok(meta) => meta,
            Err(error) => {
                let what = resource.qualified();
                warn!(what, namespace, name, error = %Chain(&error), "the built-in loops cannot read an object");
                return;
            }
        };
        let seen = Seen { resource, namespace, name, body, meta: &meta, gone };
        for driven in self.loops.iter_mut().filter(|driven| driven.inner.wants(resource)) {
            for look in driven.inner.observe(&seen, now) {
                if look.after.is_zero() {
                    driven.queue.add(look.key);
                } else {
                    driven.queue.add_at(look.key, now.at + look.after);
                }
            }
        }
    }

    /// What is to be done now: at least `most` actions if there are so many. Each is to be [ended](Machine::ended).
    pub fn work(&mut self, most: usize, objects: &dyn Objects, now: Now) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (index, driven) in self.loops.iter_mut().enumerate() {
            while jobs.len() < most {
                let Some(key) = driven.queue.take(now.at) else { break };
                let step = driven.inner.step(&key, objects, now);
                for other in step.others {
                    driven.queue.add(other);
                }
                if step.actions.is_empty() {
                    driven.queue.done(&key);
                } else {
                    let running = Running { left: step.actions.len(), ..Running::default() };
                    driven.running.insert(key.clone(), running);
                }
                if let Some(again) = step.again {
                    driven.queue.add_at(key.clone(), again);
                }
                let job = |action| Job { index, key: key.clone(), action };
                jobs.extend(step.actions.into_iter().map(job));
            }
        }
        jobs
    }

    /// Takes in how an action ended.
    pub fn ended(&mut self, job: &Job, end: Result<Option<Object>, Status>, now: Now) {
        let Some(driven) = self.loops.get_mut(job.index) else { return };
        let end = end.or_else(|status| forgiven(&job.action, status));
        driven.inner.ended(&job.key, &job.action, &end, now);
        let Some(running) = driven.running.get_mut(&job.key) else { return };
        running.left -= 1;
        running.read |= matches!(job.action, Action::Read(_));
        if let Err(status) = &end {
            running.failed = true;
            let (name, key) = (driven.inner.name(), &job.key);
            debug!(
                name,
                key,
                code = status.code,
                message = status.message,
                "a built-in loop tries again"
            );
        }
        let Running { left, failed, read } = *running;
        if left > 0 {
            return;
        }
        driven.running.remove(&job.key);
        if failed {
            driven.queue.failed(&job.key, now.at);
            return;
        }
        driven.queue.done(&job.key);
        if read {
            driven.queue.add(job.key.clone());
        }
    }

    /// When there may be something to do though nothing happens; at once if there is.
    #[must_use]
    pub fn wakes_at(&self, now: Instant) -> Option<Instant> {
        let times = self.loops.iter().filter_map(|driven| {
            if driven.queue.is_ready() { Some(now) } else { driven.queue.next() }
        });
        times.min()
    }
}

/// Failures that are as good as success.
fn forgiven(action: &Action, status: Status) -> Result<Option<Object>, Status> {
    match (action, status.code, status.reason) {
        (Action::Edit(..) | Action::Delete(..) | Action::Read(_), 404, _)
        | (Action::Create(..), 409, "AlreadyExists") => Ok(None),
        _ => Err(status),
    }
}
