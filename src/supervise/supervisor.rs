//! The driver: one task that owns the state machine, and one task for each run of a service.
//!
//! [`Supervisor::run`] is that task; everybody else holds a [`Handle`] and sends requests. Runs,
//! and the health checks of running services, are tasks of one `JoinSet`, so nothing outlives the
//! supervisor and a run that panics is a run that failed.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use orlop_rt::{CancellationToken, Chain};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::{Id, JoinError, JoinSet};

use crate::control::{Control, Stop};
use crate::definition::{Definition, Permissions, Prepared, Runner, TaskFactory};
use crate::log::Logs;
use crate::machine::{
    Action, Cause, Change, Entry, Event, Machine, Now, Outcome, Policy, Run, State, Status, Step,
};
use crate::{container, process};

/// Requests of several callers at once; each waits for its answer anyway.
const REQUESTS: usize = 32;
/// Reports of runs: a few per run, taken in at once.
const REPORTS: usize = 32;
/// All steps of a run fit, so that telling one never waits.
const STEPS: usize = 8;
/// Changes a slow subscriber may lag behind: sixteen services' whole histories.
const CHANGES: usize = 1024;

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such service.
    #[error("service \"{0}\" not defined")]
    NotDefined(String),
    /// The node is going down.
    #[error("services are being shut down")]
    Terminating,
    /// The wait was too short.
    #[error("gave up waiting for {}", .0.join(", "))]
    Late(Vec<String>),
    /// The supervisor has ended.
    #[error("the supervisor has ended")]
    Ended,
}

/// A service as seen from outside.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its state, health and history.
    pub status: Status,
    /// What the machine API may ask for.
    pub permissions: Permissions,
}

/// Asks things of the supervisor. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    changes: broadcast::Sender<Change>,
    logs: Logs,
}

#[derive(Debug)]
enum Request {
    Load(Box<Definition>, oneshot::Sender<Result<(), Error>>),
    Do(String, Event, oneshot::Sender<Result<(), Error>>),
    Stop(String, oneshot::Sender<Result<(), Error>>),
    List(oneshot::Sender<Vec<Service>>),
    Wait(Wait),
    Shutdown,
}

/// Somebody who waits until all of `ids` are as wanted.
#[derive(Debug)]
struct Wait {
    ids: Vec<String>,
    wanted: Wanted,
    reply: oneshot::Sender<Result<(), Error>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Up,
    Down,
    /// This run is over; the next may be going on.
    Over(Run),
}

impl Handle {
    /// Adds a service, not started; replaces the definition of one that is there, from its next run on.
    ///
    /// # Errors
    /// [`Error::Terminating`], [`Error::Ended`].
    pub async fn load(&self, definition: Definition) -> Result<(), Error> {
        self.ask(|reply| Request::Load(Box::new(definition), reply)).await?
    }

    /// Wants `id` to run. Returns when that is noted.
    ///
    /// # Errors
    /// [`Error::NotDefined`], [`Error::Terminating`], [`Error::Ended`].
    pub async fn start(&self, id: &str) -> Result<(), Error> {
        self.ask(|reply| Request::Do(id.to_owned(), Event::Start, reply)).await?
    }

    /// Stops `id`, and returns when it is down: within its grace, as a rule.
    ///
    /// # Errors
    /// [`Error::NotDefined`], [`Error::Ended`].
    pub async fn stop(&self, id: &str) -> Result<(), Error> {
        self.ask(|reply| Request::Stop(id.to_owned(), reply)).await?
    }

    /// Stops and starts `id`; starts it if it does not run. Returns when that is noted.
    ///
    /// # Errors
    /// [`Error::NotDefined`], [`Error::Terminating`], [`Error::Ended`].
    pub async fn restart(&self, id: &str) -> Result<(), Error> {
        self.ask(|reply| Request::Do(id.to_owned(), Event::Restart, reply)).await?
    }

    /// All services, sorted by id.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub async fn list(&self) -> Result<Vec<Service>, Error> {
        self.ask(Request::List).await
    }

    /// One service.
    ///
    /// # Errors
    /// [`Error::NotDefined`], [`Error::Ended`].
    pub async fn status(&self, id: &str) -> Result<Service, Error> {
        let services = self.list().await?;
        let found = services.into_iter().find(|service| &*service.status.id == id);
        found.ok_or_else(|| Error::NotDefined(id.to_owned()))
    }

    /// Every new line of every history from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// What services write.
    #[must_use]
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// Waits until all of `ids` are up.
    ///
    /// # Errors
    /// [`Error::Late`] naming those that are not up after `limit`, with their state;
    /// [`Error::NotDefined`], [`Error::Ended`].
    pub async fn wait_up(&self, ids: &[&str], limit: Duration) -> Result<(), Error> {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        match tokio::time::timeout(limit, self.wait(ids.clone(), Wanted::Up)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.late(&ids, |status| !status.up).await?),
        }
    }

    /// Stops all services, each after those that depend on it (for which it waits 30 s at most);
    /// from then on nothing can be loaded or started. Returns when all are down.
    ///
    /// # Errors
    /// [`Error::Late`] naming those that are not down after `limit`; [`Error::Ended`].
    pub async fn shutdown(&self, limit: Duration) -> Result<(), Error> {
        self.requests.send(Request::Shutdown).await.map_err(|_| Error::Ended)?;
        let ids: Vec<String> =
            self.list().await?.into_iter().map(|service| service.status.id.to_string()).collect();
        match tokio::time::timeout(limit, self.wait(ids.clone(), Wanted::Down)).await {
            Ok(answer) => answer,
            Err(_) => {
                let over = [State::Initialized, State::Finished, State::Failed, State::Skipped];
                Err(self.late(&ids, |status| !over.contains(&status.state)).await?)
            }
        }
    }

    async fn late(&self, ids: &[String], lacks: impl Fn(&Status) -> bool) -> Result<Error, Error> {
        let services = self.list().await?;
        let late = services
            .iter()
            .map(|service| &service.status)
            .filter(|status| ids.iter().any(|id| **id == *status.id) && lacks(status));
        Ok(Error::Late(
            late.map(|status| match status.history.last() {
                Some(entry) => format!("{} ({}: {})", status.id, entry.state, entry.message),
                None => format!("{} ({})", status.id, status.state),
            })
            .collect(),
        ))
    }

    async fn wait(&self, ids: Vec<String>, wanted: Wanted) -> Result<(), Error> {
        self.ask(|reply| Request::Wait(Wait { ids, wanted, reply })).await?
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Ended)?;
        answer.await.map_err(|_| Error::Ended)
    }
}

/// Runs services. See the module.
#[derive(Debug)]
pub struct Supervisor {
    machine: Machine,
    definitions: BTreeMap<String, Definition>,
    requests: mpsc::Receiver<Request>,
    changes: broadcast::Sender<Change>,
    logs: Logs,
    waits: Vec<Wait>,
    /// Where runs report; each holds a clone of the sender.
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    /// Tells the run that goes on for a service what to do.
    runs: HashMap<Run, mpsc::Sender<Step>>,
    tasks: JoinSet<Event>,
    /// Whose task each is, for those that end without an event.
    owners: HashMap<Id, (Arc<str>, Run, Kind)>,
}

type Report = (Arc<str>, Event);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Run,
    Check,
}

/// What woke the driver.
enum Input {
    Request(Option<Request>),
    Report(Report),
    Ended(Result<(Id, Event), JoinError>),
    Due,
}

impl Supervisor {
    /// A supervisor without services, and a way to ask it things. Nothing happens before
    /// [`Supervisor::run`].
    #[must_use]
    pub fn new() -> (Self, Handle) {
        Self::with_logs(Logs::default())
    }

    /// As [`Supervisor::new`], with logs of a size of your choice.
    #[must_use]
    pub fn with_logs(logs: Logs) -> (Self, Handle) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let (changes, _) = broadcast::channel(CHANGES);
        let handle = Handle { requests: sender, changes: changes.clone(), logs: logs.clone() };
        let supervisor = Self {
            machine: Machine::new(),
            definitions: BTreeMap::new(),
            requests,
            changes,
            logs,
            waits: Vec::new(),
            reports: mpsc::channel(REPORTS),
            runs: HashMap::new(),
            tasks: JoinSet::new(),
            owners: HashMap::new(),
        };
        (supervisor, handle)
    }

    /// Runs services until all handles are dropped. What still runs then is left alone: shut down
    /// first.
    pub async fn run(mut self) {
        loop {
            match self.next().await {
                Input::Request(None) => return,
                Input::Request(Some(request)) => self.answer(request),
                Input::Report((id, event)) => self.handle(&id, event),
                Input::Ended(ended) => self.ended(ended),
                Input::Due => {
                    let actions = self.machine.tick(now(), random());
                    self.act(actions);
                }
            }
            self.reply();
        }
    }

    async fn next(&mut self) -> Input {
        let due = self.machine.wake_at();
        // All four are cancel-safe. Reports come before the end of the run that sent them.
        tokio::select! {
            biased;
            Some(report) = self.reports.1.recv() => Input::Report(report),
            Some(ended) = self.tasks.join_next_with_id() => Input::Ended(ended),
            () = until(due) => Input::Due,
            request = self.requests.recv() => Input::Request(request),
        }
    }

    fn answer(&mut self, request: Request) {
        // Who does not wait for the answer any more does not need one.
        match request {
            Request::Load(definition, reply) => drop(reply.send(self.load(*definition))),
            Request::List(reply) => drop(reply.send(self.list())),
            Request::Wait(wait) => self.waits.push(wait),
            Request::Shutdown => {
                let actions = self.machine.shutdown(now());
                self.act(actions);
            }
            Request::Do(id, event, reply) => {
                let answer = if !self.machine.contains(&id) {
                    Err(Error::NotDefined(id))
                } else if self.machine.terminating() {
                    Err(Error::Terminating)
                } else {
                    self.handle(&id, event);
                    Ok(())
                };
                let _ = reply.send(answer);
            }
            Request::Stop(id, reply) => {
                let wanted = self.machine.run(&id).map_or(Wanted::Down, Wanted::Over);
                self.handle(&id, Event::Stop);
                self.waits.push(Wait { ids: vec![id], wanted, reply });
            }
        }
    }

    fn load(&mut self, definition: Definition) -> Result<(), Error> {
        if !self.machine.load(now(), &definition.id, policy(&definition)) {
            return Err(Error::Terminating);
        }
        let _ = self.logs.register(&definition.id);
        self.definitions.insert(definition.id.clone(), definition);
        Ok(())
    }

    fn list(&self) -> Vec<Service> {
        let permissions = |id: &str| {
            self.definitions.get(id).map(|definition| definition.permissions).unwrap_or_default()
        };
        let services = self.machine.list().into_iter();
        services.map(|status| Service { permissions: permissions(&status.id), status }).collect()
    }

    /// Answers those whose wait is over.
    fn reply(&mut self) {
        for wait in std::mem::take(&mut self.waits) {
            match self.reached(&wait) {
                Ok(false) if !wait.reply.is_closed() => self.waits.push(wait),
                Ok(false) => {}
                Ok(true) => drop(wait.reply.send(Ok(()))),
                Err(error) => drop(wait.reply.send(Err(error))),
            }
        }
    }

    fn reached(&self, wait: &Wait) -> Result<bool, Error> {
        for id in &wait.ids {
            let is = match wait.wanted {
                Wanted::Up => self.machine.is_up(id),
                Wanted::Down => self.machine.is_down(id),
                Wanted::Over(run) => Some(self.machine.run(id) != Some(run)),
            };
            if !is.ok_or_else(|| Error::NotDefined(id.clone()))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn handle(&mut self, id: &str, event: Event) {
        let actions = self.machine.handle(now(), random(), id, event);
        self.act(actions);
    }

    fn ended(&mut self, ended: Result<(Id, Event), JoinError>) {
        let (task, event) = match ended {
            Ok((task, event)) => (task, Ok(event)),
            Err(error) => (error.id(), Err(error)),
        };
        let Some((id, run, kind)) = self.owners.remove(&task) else { return };
        if kind == Kind::Run {
            self.runs.remove(&run);
        }
        let event = event.unwrap_or_else(|error| match kind {
            Kind::Run => Event::Ended(run, Outcome::Failed(error.to_string())),
            Kind::Check => Event::Checked(run, Err(error.to_string())),
        });
        self.handle(&id, event);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Publish(change) => {
                    tell(&change);
                    // Nobody may be watching.
                    let _ = self.changes.send(change);
                }
                Action::Step(id, run, Step::Begin) => self.begin(&id, run),
                Action::Step(id, run, Step::Check) => self.check(&id, run),
                Action::Step(id, run, step) => {
                    let told = self.runs.get(&run).map(|run| run.try_send(step));
                    // A run that has just ended by itself will be reported as ended.
                    tracing::debug!(service = %id, ?step, ?told, "step");
                }
            }
        }
    }

    fn begin(&mut self, id: &Arc<str>, run: Run) {
        let Some(definition) = self.definitions.get(&**id).cloned() else { return };
        let (sender, steps) = mpsc::channel(STEPS);
        let control = Control {
            id: id.clone(),
            run,
            log: self.logs.register(id),
            steps,
            reports: self.reports.0.clone(),
        };
        self.runs.insert(run, sender);
        let task =
            self.tasks.spawn(async move { Event::Ended(run, attempt(definition, control).await) });
        self.owners.insert(task.id(), (id.clone(), run, Kind::Run));
    }

    fn check(&mut self, id: &Arc<str>, run: Run) {
        let Some(health) = self.definitions.get(&**id).and_then(|known| known.health.clone())
        else {
            return;
        };
        let task = self.tasks.spawn(async move {
            let limit = health.timing.timeout;
            let answer = tokio::time::timeout(limit, (health.check)()).await;
            Event::Checked(run, answer.unwrap_or_else(|_| Err(format!("no answer in {limit:?}"))))
        });
        self.owners.insert(task.id(), (id.clone(), run, Kind::Check));
    }
}

/// One run, from its condition to its end.
async fn attempt(definition: Definition, mut control: Control) -> Outcome {
    match stages(definition, &mut control).await {
        Ok(outcome) => outcome,
        // Told to end before there was anything to end.
        Err(Stop::Terminate | Stop::Kill) => Outcome::Finished,
    }
}

async fn stages(mut definition: Definition, control: &mut Control) -> Result<Outcome, Stop> {
    if let Some(condition) = &definition.condition {
        tokio::select! {
            () = (condition.met)() => {}
            stop = control.stop() => return Err(stop),
        }
        control.report(Event::ConditionMet(control.run)).await;
    }
    control.until(Step::Prepare).await?;
    if let Some(hook) = &definition.prepare {
        let prepared = tokio::select! {
            prepared = (hook.0)() => prepared,
            stop = control.stop() => return Err(stop),
        };
        match prepared {
            Ok(Prepared::Run) => {}
            Ok(Prepared::RunWith(arguments)) => definition.runner.push(arguments),
            Ok(Prepared::Skip) => return Ok(Outcome::Skipped),
            Err(error) => return Ok(Outcome::Failed(error)),
        }
    }
    let result = match &definition.runner {
        Runner::Process(spec, reaper) => {
            process::run(spec, reaper, control).await.map_err(|error| Chain(&error).to_string())
        }
        Runner::Container(spec, containerd) => container::run(spec, containerd, control)
            .await
            .map_err(|error| Chain(&error).to_string()),
        Runner::Task(factory) => {
            control.ready().await?;
            control.started("Service started as task".to_owned(), None).await;
            task(factory, control).await
        }
    };
    Ok(result.map_or_else(Outcome::Failed, |()| Outcome::Finished))
}

/// A future of ours: cancelled when it is to end, dropped when that took too long.
async fn task(factory: &TaskFactory, control: &mut Control) -> Result<(), String> {
    let token = CancellationToken::new();
    let mut future = (factory.0)(token.clone());
    loop {
        tokio::select! {
            result = &mut future => return result,
            stop = control.stop() => match stop {
                Stop::Terminate => token.cancel(),
                Stop::Kill => return Ok(()),
            },
        }
    }
}

fn policy(definition: &Definition) -> Policy {
    let id = &definition.id;
    Policy {
        runner: match &definition.runner {
            Runner::Process(spec, _) => spec.describe(),
            Runner::Container(..) => format!("Containerd({id})"),
            Runner::Task(_) => format!("Task({id})"),
        },
        dependencies: definition.dependencies.clone(),
        condition: definition.condition.as_ref().map(|condition| condition.description.clone()),
        health: definition.health.as_ref().map(|health| health.timing),
        restart: definition.restart,
        grace: definition.grace,
    }
}

/// The line for the console; the way up to running is worth none there.
fn tell(change: &Change) {
    let Change { id, entry: Entry { state, message, .. }, cause } = change;
    match (cause, state) {
        (_, State::Failed) => tracing::warn!("service[{id}]({state}): {message}"),
        (Cause::State, State::Initialized | State::Preparing) => {
            tracing::debug!("service[{id}]({state}): {message}");
        }
        (Cause::State, State::Waiting) if !message.starts_with("Error") => {
            tracing::debug!("service[{id}]({state}): {message}");
        }
        _ => tracing::info!("service[{id}]({state}): {message}"),
    }
}

fn now() -> Now {
    Now { monotonic: tokio::time::Instant::now().into_std(), wall: SystemTime::now() }
}

/// Spaces restarts; std seeds its hashers from the kernel.
pub(crate) fn random() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test's failure is its panic")]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::definition::{Condition, Health, Hook};
    use crate::machine::{Dependency, Restart};

    const HOUR: Duration = Duration::from_secs(3600);

    /// Runs `test` beside a supervisor, in a time that passes when all wait.
    fn run(test: impl AsyncFnOnce(&Handle)) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().start_paused(true).build().unwrap().block_on(async {
            let (supervisor, handle) = Supervisor::new();
            let mut tasks = JoinSet::new();
            tasks.spawn(supervisor.run());
            test(&handle).await;
            handle.shutdown(HOUR).await.unwrap();
            assert!(matches!(
                handle.start("x").await,
                Err(Error::Terminating | Error::NotDefined(_))
            ));
            drop(handle);
        });
    }

    /// Runs until it is told to end.
    fn obedient() -> Runner {
        Runner::task(|token| async move {
            token.cancelled().await;
            Ok(())
        })
    }

    fn last(service: &Service) -> String {
        let entry = service.status.history.last().unwrap();
        format!("{}: {}", entry.state, entry.message)
    }

    #[test]
    fn services_come_up_by_their_dependencies_and_go_in_reverse() {
        run(async |handle| {
            let healthy = Health::new(|| async { Ok(()) });
            handle
                .load(Definition { health: Some(healthy), ..Definition::new("a", obedient()) })
                .await
                .unwrap();
            handle
                .load(Definition {
                    dependencies: vec![Dependency::to_prepare("a")],
                    ..Definition::new("b", obedient())
                })
                .await
                .unwrap();
            let mut changes = handle.subscribe();
            handle.start("b").await.unwrap();
            handle.start("a").await.unwrap();
            handle.wait_up(&["a", "b"], HOUR).await.unwrap();
            handle.shutdown(HOUR).await.unwrap();
            let mut order = Vec::new();
            while let Ok(Change { id, entry, .. }) = changes.try_recv() {
                if [State::Running, State::Finished].contains(&entry.state) {
                    order.push(format!("{id}: {}", entry.message));
                }
            }
            assert_eq!(
                order,
                [
                    "a: Service started as task",
                    "a: Health check successful",
                    "b: Service started as task",
                    "b: Service finished successfully",
                    "a: Service finished successfully",
                ]
            );
        });
    }

    #[test]
    fn who_panics_is_run_again() {
        run(async |handle| {
            let runs = Arc::new(AtomicU32::new(0));
            let count = runs.clone();
            let runner = Runner::task(move |token| {
                let first = count.fetch_add(1, Ordering::Relaxed) == 0;
                async move {
                    assert!(!first, "as wanted by the test");
                    token.cancelled().await;
                    Ok(())
                }
            });
            handle.load(Definition::new("x", runner)).await.unwrap();
            let mut changes = handle.subscribe();
            handle.start("x").await.unwrap();
            while runs.load(Ordering::Relaxed) < 2 {
                changes.recv().await.unwrap();
            }
            handle.wait_up(&["x"], HOUR).await.unwrap();
            let history = handle.status("x").await.unwrap().status.history;
            assert!(history.iter().any(|entry| entry.message.contains("panicked")), "{history:#?}");
        });
    }

    #[test]
    fn who_does_not_end_is_dropped_after_its_grace() {
        run(async |handle| {
            let runner = Runner::task(|_| std::future::pending());
            handle.load(Definition::new("x", runner)).await.unwrap();
            handle.start("x").await.unwrap();
            handle.wait_up(&["x"], HOUR).await.unwrap();
            let asked = tokio::time::Instant::now();
            handle.stop("x").await.unwrap();
            let took = asked.elapsed();
            assert!((10..11).contains(&took.as_secs()), "{took:?}");
        });
    }

    #[test]
    fn a_stop_is_answered_though_a_start_follows_at_once() {
        run(async |handle| {
            handle.load(Definition::new("x", obedient())).await.unwrap();
            handle.start("x").await.unwrap();
            handle.wait_up(&["x"], HOUR).await.unwrap();
            let (stopped, started) = tokio::join!(handle.stop("x"), handle.start("x"));
            stopped.and(started).unwrap();
            handle.wait_up(&["x"], HOUR).await.unwrap();
            assert_eq!(handle.status("x").await.unwrap().status.state, State::Running);
        });
    }

    #[test]
    fn a_hook_may_skip_and_a_condition_may_wait() {
        run(async |handle| {
            let met = Arc::new(Notify::new());
            let waits = met.clone();
            let condition = Condition::new("the tide", move || {
                let waits = waits.clone();
                async move { waits.notified().await }
            });
            let definition = Definition {
                condition: Some(condition),
                prepare: Some(Hook::new(|| async { Ok(Prepared::Skip) })),
                ..Definition::new("x", obedient())
            };
            handle.load(definition).await.unwrap();
            handle.start("x").await.unwrap();
            assert_eq!(last(&handle.status("x").await.unwrap()), "Waiting: Waiting for the tide");
            let late = handle.wait_up(&["x"], Duration::from_secs(1)).await.unwrap_err();
            assert_eq!(late.to_string(), "gave up waiting for x (Waiting: Waiting for the tide)");
            met.notify_one();
            handle.wait_up(&["x"], HOUR).await.unwrap();
            assert_eq!(last(&handle.status("x").await.unwrap()), "Skipped: Service skipped");
        });
    }

    #[test]
    fn a_failing_hook_fails_the_run_and_a_wait_can_be_stopped() {
        run(async |handle| {
            let hook = Hook::new(|| async { Err("disk full".to_owned()) });
            let definition = Definition {
                prepare: Some(hook),
                restart: Restart::Once,
                ..Definition::new("x", obedient())
            };
            handle.load(definition).await.unwrap();
            let mut changes = handle.subscribe();
            handle.start("x").await.unwrap();
            while changes.recv().await.unwrap().entry.state != State::Failed {}
            assert_eq!(
                last(&handle.status("x").await.unwrap()),
                "Failed: Failed to create runner: disk full"
            );
            let never = Condition::new("never", std::future::pending);
            handle
                .load(Definition { condition: Some(never), ..Definition::new("y", obedient()) })
                .await
                .unwrap();
            handle.start("y").await.unwrap();
            handle.stop("y").await.unwrap();
            assert_eq!(
                last(&handle.status("y").await.unwrap()),
                "Finished: Service finished successfully"
            );
        });
    }

    #[test]
    fn a_check_without_an_answer_is_a_failure() {
        run(async |handle| {
            let health = Health::new(std::future::pending);
            handle
                .load(Definition { health: Some(health), ..Definition::new("x", obedient()) })
                .await
                .unwrap();
            handle.start("x").await.unwrap();
            handle.wait_up(&["x"], Duration::from_secs(5)).await.unwrap_err();
            let service = handle.status("x").await.unwrap();
            assert_eq!(last(&service), "Running: Health check failed: no answer in 500ms");
            assert_eq!(service.status.health.healthy, Some(false));
        });
    }

    #[tokio::test]
    async fn the_unknown_is_named() {
        let (supervisor, handle) = Supervisor::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(supervisor.run());
        let error = handle.start("nope").await.unwrap_err();
        assert_eq!(error.to_string(), "service \"nope\" not defined");
        assert!(handle.wait_up(&["nope"], HOUR).await.is_err());
        assert!(handle.list().await.unwrap().is_empty());
    }
}
