//! The state machine of all services: events and the time in, actions out. Pure.
//!
//! ```text
//!            Start                 dependencies        Started
//! Initialized ──> Waiting/Preparing ────────> starting ──────> Running
//!                    ^                                          │  │ Exited
//!        back-off over │            Exited, to be restarted     │  v
//!                 resting (Waiting) <───────────────────────────┘ Finished / Failed / Skipped
//!                                   Stop: Stopping ──Exited──────────^
//! ```
//!
//! A *run* is one attempt, from `Begin` until it is reported as ended, which happens exactly once.
//! A service has at most one run at a time, and a report of an older run changes nothing. What the
//! driver does for a run is one task: it awaits the condition, prepares (`Prepare`: the hook, the
//! container) as soon as the dependencies of that stage are up, starts (`Start`) when all are up.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use orlop_rt::Backoff;

/// How long a service waits at shutdown for those that depend on it.
const REVERSE_DEPENDENCIES: Duration = Duration::from_secs(30);
/// Back-off between restarts.
const RESTART_MIN: Duration = Duration::from_millis(250);
const RESTART_MAX: Duration = Duration::from_secs(5);
/// A run that was healthy after this long starts the back-off anew.
const STEADY: Duration = Duration::from_secs(10);
/// Until the first success, health is asked again after an eighth of the time since the start, so
/// that a poll period costs a boot little and a service that never comes costs nothing.
const EAGER_MIN: Duration = Duration::from_millis(20);
/// A text that only changes what is waited for is published at most this often.
const REFRESH: Duration = Duration::from_secs(1);
const HISTORY: usize = 64;

/// State of a service, with the words of the machine API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum State {
    /// Loaded, never run.
    Initialized = 0,
    /// Its hook runs or its runner is created.
    Preparing = 1,
    /// Waits for a condition, or for its next try.
    Waiting = 2,
    /// Runs.
    Running = 3,
    /// Was told to stop.
    Stopping = 4,
    /// Ended as wanted.
    Finished = 5,
    /// Ended otherwise, and is not tried again.
    Failed = 6,
    /// Had nothing to do.
    Skipped = 7,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Both clocks, read by the driver.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Orders and spaces everything.
    pub monotonic: Instant,
    /// Only written into the history.
    pub wall: SystemTime,
}

/// One attempt to run a service; unique within the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run(u64);

/// What must be up, and before what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// The other service.
    pub id: String,
    /// What waits for it.
    pub before: Stage,
}

impl Dependency {
    /// `id` must be up before anything is created.
    pub fn to_prepare(id: impl Into<String>) -> Self {
        Self { id: id.into(), before: Stage::Prepare }
    }

    /// `id` must be up before the start; the hook and the creation of the container may be earlier.
    pub fn to_start(id: impl Into<String>) -> Self {
        Self { id: id.into(), before: Stage::Start }
    }
}

/// Stages of a run that dependencies hold back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The hook, and creating the container.
    Prepare,
    /// Starting what was prepared.
    Start,
}

/// What follows when a service ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It is run again, after a back-off of 250 ms to 5 s.
    Forever,
    /// Nothing.
    Once,
    /// It is run again if it failed.
    UntilSuccess,
}

/// When health is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Failures within this time of the start are not told: the service is still coming up.
    pub initial_delay: Duration,
    /// From one answer to the next question, after the first success.
    pub period: Duration,
    /// A later answer is a failure. Kept by the driver.
    pub timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            initial_delay: Duration::from_secs(1),
            period: Duration::from_secs(5),
            timeout: Duration::from_millis(500),
        }
    }
}

/// What the machine must know about a service.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Names the runner in messages: `Process(["/bin/x"])`, `Containerd(apid)`.
    pub runner: String,
    /// What must be up.
    pub dependencies: Vec<Dependency>,
    /// The condition's description, if there is one.
    pub condition: Option<String>,
    /// When health is asked, if at all.
    pub health: Option<Timing>,
    /// What follows an end.
    pub restart: Restart,
    /// From TERM to KILL.
    pub grace: Duration,
}

/// What happened to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it to run.
    Start,
    /// Somebody wants it to end.
    Stop,
    /// Somebody wants a new run.
    Restart,
    /// The run's condition holds.
    ConditionMet(Run),
    /// The run could be started at once.
    Prepared(Run),
    /// The run was started.
    Started {
        /// Which.
        run: Run,
        /// For the history: `Started task apid (PID 7) for container apid`.
        message: String,
        /// Unless it runs in this process.
        pid: Option<u32>,
    },
    /// The run is over, whatever stage it had reached.
    Ended(Run, Outcome),
    /// The answer to a health check, or why there is none.
    Checked(Run, Result<(), String>),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Without an error.
    Finished,
    /// There was nothing to do.
    Skipped,
    /// Why.
    Failed(String),
}

/// What the driver must do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take a run one step further.
    Step(Arc<str>, Run, Step),
    /// Tell those who watch.
    Publish(Change),
}

/// Steps of a run, in their order. Only `Begin` and `Check` may come again, the first for a new run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take it up: await its condition.
    Begin,
    /// Run the hook, create the container.
    Prepare,
    /// Start it.
    Start,
    /// Ask for its health, once.
    Check,
    /// Ask it to end, at whatever stage it is.
    Terminate,
    /// Make it end, with all its processes.
    Kill,
}

/// A line of a service's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The state from then on.
    pub state: State,
    /// What happened.
    pub message: String,
    /// When.
    pub at: SystemTime,
}

/// A new line in the history of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub id: Arc<str>,
    /// The line.
    pub entry: Entry,
    /// Whether it is an event of the machine API: changes of health are not.
    pub cause: Cause,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The state, or why the service is in it.
    State,
    /// The health.
    Health,
}

/// What is known of a service's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `None` until the first answer of a run (or failure after its initial delay).
    pub healthy: Option<bool>,
    /// The last failure's text.
    pub message: String,
    /// When `healthy` last changed.
    pub changed: SystemTime,
}

/// What is known of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Which.
    pub id: Arc<str>,
    /// Its state.
    pub state: State,
    /// Running and not unhealthy, or ended as wanted: those who depend on it may start.
    pub up: bool,
    /// Its health.
    pub health: Verdict,
    /// Its main process, while it runs in one of its own.
    pub pid: Option<u32>,
    /// How often it was run again since it was loaded: after an end of its own, or when asked to.
    pub restarts: u64,
    /// The last 64 entries, oldest first.
    pub history: Vec<Entry>,
}

/// All services.
#[derive(Debug, Default)]
pub struct Machine {
    services: BTreeMap<Arc<str>, Service>,
    runs: u64,
    /// Set by [`Machine::shutdown`]: until when services wait for those that depend on them.
    terminating: Option<Instant>,
}

#[derive(Debug)]
struct Service {
    id: Arc<str>,
    policy: Policy,
    state: State,
    phase: Phase,
    health: Verdict,
    history: VecDeque<Entry>,
    backoff: Backoff,
    restarts: u64,
    /// Told to stop by a shutdown.
    cancelled: bool,
}

#[derive(Debug)]
enum Phase {
    /// No run.
    Down,
    /// A run that cannot be started yet.
    Waiting {
        run: Run,
        /// Met, or there is none.
        condition: bool,
        preparation: Preparation,
        /// What was last said to be waited for, and when.
        told: Option<(String, Instant)>,
        /// Something else is waited for, and will be told then.
        tell_at: Option<Instant>,
    },
    /// Told to start.
    Starting {
        run: Run,
    },
    Running {
        run: Run,
        pid: Option<u32>,
        since: Instant,
        check: Check,
    },
    /// Told to end; killed at `kill_at`, `None` once that is done.
    Stopping {
        run: Run,
        kill_at: Option<Instant>,
        then: Then,
    },
    /// No run until then.
    Resting {
        until: Instant,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preparation {
    Pending,
    Busy,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Never,
    At(Instant),
    Busy,
}

/// What follows a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Rest,
    Begin,
}

impl Machine {
    /// A machine without services.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a service, not started; for one that is there already, `policy` holds from now on.
    /// Refused (`false`) once [`Machine::shutdown`] was called.
    pub fn load(&mut self, now: Now, id: &str, policy: Policy) -> bool {
        if self.terminating.is_some() {
            return false;
        }
        if let Some(service) = self.services.get_mut(id) {
            service.policy = policy;
        } else {
            let id: Arc<str> = id.into();
            self.services.insert(id.clone(), Service::new(now, id, policy));
        }
        true
    }

    /// Whether `id` is loaded.
    #[must_use]
    pub fn contains(&self, id: &str) -> bool {
        self.services.contains_key(id)
    }

    /// Takes in what happened to `id`. `random` spaces restarts. What to do now is in the answer.
    pub fn handle(&mut self, now: Now, random: u32, id: &str, event: Event) -> Vec<Action> {
        self.each(now, random, |service, context| {
            if &*service.id == id {
                service.handle(context, &event);
            }
        })
    }

    /// Does what is due. To be called at [`Machine::wake_at`], and harmless at other times.
    pub fn tick(&mut self, now: Now, random: u32) -> Vec<Action> {
        self.each(now, random, Service::tick)
    }

    /// Stops all services, each when those that depend on it are down or 30 s are over; from now on
    /// nothing can be loaded or started.
    pub fn shutdown(&mut self, now: Now) -> Vec<Action> {
        self.terminating.get_or_insert(now.monotonic + REVERSE_DEPENDENCIES);
        self.each(now, 0, |_, _| {})
    }

    /// Whether [`Machine::shutdown`] was called.
    #[must_use]
    pub fn terminating(&self) -> bool {
        self.terminating.is_some()
    }

    /// When [`Machine::tick`] has something to do, if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let waits = |service: &Service| !service.cancelled && !service.is_down();
        let shutdown = self.terminating.filter(|_| self.services.values().any(waits));
        self.services.values().filter_map(Service::wake_at).chain(shutdown).min()
    }

    /// The run of `id` that is going on.
    #[must_use]
    pub fn run(&self, id: &str) -> Option<Run> {
        self.services.get(id).and_then(Service::run)
    }

    /// Whether no run of `id` is going on or due; `None` if it is not loaded.
    #[must_use]
    pub fn is_down(&self, id: &str) -> Option<bool> {
        self.services.get(id).map(Service::is_down)
    }

    /// Whether those who depend on `id` may start; `None` if it is not loaded.
    #[must_use]
    pub fn is_up(&self, id: &str) -> Option<bool> {
        self.services.get(id).map(Service::up)
    }

    /// What is known of `id`.
    #[must_use]
    pub fn status(&self, id: &str) -> Option<Status> {
        self.services.get(id).map(Service::status)
    }

    /// What is known of all, sorted by id.
    #[must_use]
    pub fn list(&self) -> Vec<Status> {
        self.services.values().map(Service::status).collect()
    }

    /// Lets `change` loose on each service, then what that means for the others.
    fn each(
        &mut self,
        now: Now,
        random: u32,
        change: impl Fn(&mut Service, &mut Context<'_>),
    ) -> Vec<Action> {
        let Self { services, runs, terminating, .. } = self;
        let mut actions = Vec::new();
        let mut context = Context {
            now,
            random,
            terminating: terminating.is_some(),
            runs,
            actions: &mut actions,
        };
        for service in services.values_mut() {
            change(service, &mut context);
        }
        if let Some(deadline) = *terminating {
            let late = deadline <= now.monotonic;
            // Again whenever one went down at once: then those it needed may follow.
            while stop_unneeded(services, &mut context, late) {}
        }
        let up: Vec<Arc<str>> =
            services.values().filter(|service| service.up()).map(|s| s.id.clone()).collect();
        for service in services.values_mut() {
            service.advance(&mut context, |id| up.iter().any(|up| **up == *id));
        }
        actions
    }
}

/// Stops whoever is needed by nobody; all when it is `late`. Whether one is down that was not before.
fn stop_unneeded(
    services: &mut BTreeMap<Arc<str>, Service>,
    context: &mut Context<'_>,
    late: bool,
) -> bool {
    let needed: Vec<String> = services
        .values()
        .filter(|service| !service.is_down())
        .flat_map(|service| &service.policy.dependencies)
        .map(|dependency| dependency.id.clone())
        .collect();
    let mut changed = false;
    for service in services.values_mut().filter(|service| !service.cancelled) {
        if late || !needed.iter().any(|id| **id == *service.id) {
            let was_down = service.is_down();
            service.cancelled = true;
            service.stop(context, Then::Rest);
            changed |= service.is_down() && !was_down;
        }
    }
    changed
}

/// What a service needs while it handles an event.
struct Context<'a> {
    now: Now,
    random: u32,
    terminating: bool,
    runs: &'a mut u64,
    actions: &'a mut Vec<Action>,
}

impl Service {
    fn new(now: Now, id: Arc<str>, policy: Policy) -> Self {
        Self {
            id,
            policy,
            state: State::Initialized,
            phase: Phase::Down,
            health: Verdict { healthy: None, message: String::new(), changed: now.wall },
            history: VecDeque::new(),
            backoff: Backoff::new(RESTART_MIN, RESTART_MAX),
            restarts: 0,
            cancelled: false,
        }
    }

    fn handle(&mut self, context: &mut Context<'_>, event: &Event) {
        match event {
            Event::Start => self.start(context),
            Event::Stop => self.stop(context, Then::Rest),
            Event::Restart if context.terminating => {}
            Event::Restart => match self.phase {
                Phase::Down | Phase::Resting { .. } => self.begin(context),
                _ => self.stop(context, Then::Begin),
            },
            Event::ConditionMet(met) => {
                if let Phase::Waiting { run, condition, .. } = &mut self.phase
                    && run == met
                {
                    *condition = true;
                }
            }
            Event::Prepared(prepared) => {
                if let Phase::Waiting { run, preparation, .. } = &mut self.phase
                    && run == prepared
                {
                    *preparation = Preparation::Done;
                }
            }
            Event::Started { run, message, pid } => self.started(context, *run, message, *pid),
            Event::Ended(run, outcome) if self.run() == Some(*run) => self.ended(context, outcome),
            Event::Checked(run, answer) => self.checked(context, *run, answer),
            Event::Ended(..) => {}
        }
    }

    fn start(&mut self, context: &mut Context<'_>) {
        match &mut self.phase {
            _ if context.terminating => {}
            Phase::Down | Phase::Resting { .. } => self.begin(context),
            Phase::Stopping { then, .. } => *then = Then::Begin,
            Phase::Waiting { .. } | Phase::Starting { .. } | Phase::Running { .. } => {}
        }
    }

    fn begin(&mut self, context: &mut Context<'_>) {
        // A restart that was asked for is counted where its stop has ended.
        self.restarts += u64::from(matches!(self.phase, Phase::Resting { .. }));
        *context.runs += 1;
        let run = Run(*context.runs);
        self.phase = Phase::Waiting {
            run,
            condition: self.policy.condition.is_none(),
            preparation: Preparation::Pending,
            told: None,
            tell_at: None,
        };
        self.step(context, run, Step::Begin);
    }

    fn stop(&mut self, context: &mut Context<'_>, next: Then) {
        let Some(run) = self.run() else {
            if let Phase::Resting { .. } = self.phase {
                self.publish(context, State::Stopping, "Aborting restart sequence".to_owned());
                self.down(context, State::Finished, "Service finished successfully".to_owned());
            }
            return;
        };
        if let Phase::Stopping { then, .. } = &mut self.phase {
            *then = next;
            return;
        }
        let message = match self.phase {
            Phase::Waiting { .. } => "Aborting start sequence".to_owned(),
            _ => format!("Sending SIGTERM to {}", self.policy.runner),
        };
        let kill_at = Some(context.now.monotonic + self.policy.grace);
        self.phase = Phase::Stopping { run, kill_at, then: next };
        self.publish(context, State::Stopping, message);
        self.step(context, run, Step::Terminate);
    }

    fn started(&mut self, context: &mut Context<'_>, run: Run, message: &str, pid: Option<u32>) {
        if !matches!(self.phase, Phase::Starting { run: starting } if starting == run) {
            return;
        }
        let now = context.now.monotonic;
        let check = if self.policy.health.is_some() { Check::At(now) } else { Check::Never };
        self.phase = Phase::Running { run, pid, since: now, check };
        self.publish(context, State::Running, message.to_owned());
    }

    fn ended(&mut self, context: &mut Context<'_>, outcome: &Outcome) {
        let stage = match &self.phase {
            Phase::Stopping { then, .. } => {
                let again = *then == Then::Begin && !context.terminating;
                self.down(context, State::Finished, "Service finished successfully".to_owned());
                if again {
                    self.restarts += 1;
                    self.begin(context);
                }
                return;
            }
            Phase::Waiting { .. } => "create runner",
            _ => "run",
        };
        if self.steady(context.now.monotonic) {
            self.backoff.reset();
        }
        let runner = &self.policy.runner;
        let again = match (self.policy.restart, outcome) {
            (_, Outcome::Skipped) | (Restart::Once, _) => None,
            (Restart::UntilSuccess, Outcome::Finished) => None,
            (Restart::Forever, Outcome::Finished) => {
                Some(format!("Runner {runner} exited without error, going to restart it"))
            }
            (Restart::Forever, Outcome::Failed(error)) => {
                Some(format!("Error running {runner}, going to restart forever: {error}"))
            }
            (Restart::UntilSuccess, Outcome::Failed(error)) => {
                Some(format!("Error running {runner}, going to restart until it succeeds: {error}"))
            }
        };
        if let Some(message) = again {
            let until = context.now.monotonic + self.backoff.next(context.random);
            self.down(context, State::Waiting, message);
            self.phase = Phase::Resting { until };
            return;
        }
        let (state, message) = match outcome {
            Outcome::Finished => (State::Finished, "Service finished successfully".to_owned()),
            Outcome::Skipped => (State::Skipped, "Service skipped".to_owned()),
            Outcome::Failed(error) if stage == "run" => {
                (State::Failed, format!("Failed running service: {error}"))
            }
            Outcome::Failed(error) => (State::Failed, format!("Failed to {stage}: {error}")),
        };
        self.down(context, state, message);
    }

    /// The run is over; what was known of its health is worth nothing any more.
    fn down(&mut self, context: &mut Context<'_>, state: State, message: String) {
        self.phase = Phase::Down;
        if self.health.healthy.take().is_some() {
            self.health.changed = context.now.wall;
        }
        self.health.message.clear();
        self.publish(context, state, message);
    }

    fn steady(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Running { since, .. } if now >= since + STEADY) && self.up()
    }

    fn checked(&mut self, context: &mut Context<'_>, of: Run, answer: &Result<(), String>) {
        let Phase::Running { run, since, check, .. } = &mut self.phase else { return };
        let Some(timing) = self.policy.health.filter(|_| *run == of) else { return };
        let now = context.now.monotonic;
        let age = now.saturating_duration_since(*since);
        let healthy = answer.is_ok();
        let wait = if healthy || self.health.healthy == Some(true) {
            timing.period
        } else {
            (age / 8).clamp(EAGER_MIN.min(timing.period), timing.period)
        };
        *check = Check::At(now + wait);
        if !healthy && self.health.healthy.is_none() && age < timing.initial_delay {
            return;
        }
        self.health.message = answer.clone().err().unwrap_or_default();
        if self.health.healthy == Some(healthy) {
            return;
        }
        self.health.healthy = Some(healthy);
        self.health.changed = context.now.wall;
        let message = match answer {
            Ok(()) => "Health check successful".to_owned(),
            Err(error) => format!("Health check failed: {error}"),
        };
        self.record(context, message, Cause::Health);
    }

    /// What is due.
    fn tick(&mut self, context: &mut Context<'_>) {
        let now = context.now.monotonic;
        match &mut self.phase {
            Phase::Resting { until } if *until <= now => self.begin(context),
            Phase::Running { run, check: check @ Check::At(_), .. } if matches!(*check, Check::At(at) if at <= now) =>
            {
                *check = Check::Busy;
                let run = *run;
                self.step(context, run, Step::Check);
            }
            Phase::Stopping { run, kill_at, .. } if kill_at.is_some_and(|at| at <= now) => {
                *kill_at = None;
                let run = *run;
                let message = format!("Sending SIGKILL to {}", self.policy.runner);
                self.publish(context, State::Stopping, message);
                self.step(context, run, Step::Kill);
            }
            _ => {}
        }
    }

    /// Goes on as far as the dependencies allow.
    fn advance(&mut self, context: &mut Context<'_>, up: impl Fn(&str) -> bool) {
        let Phase::Waiting { run, condition, preparation, told, tell_at } = &mut self.phase else {
            return;
        };
        let run = *run;
        let missing = self.policy.dependencies.iter().filter(|dependency| !up(&dependency.id));
        let early = missing.clone().any(|dependency| dependency.before == Stage::Prepare);
        let mut awaited: Vec<String> = missing
            .map(|dependency| format!("service \"{}\" to be \"up\"", dependency.id))
            .collect();
        awaited.extend(self.policy.condition.clone().filter(|_| !*condition));
        if *preparation == Preparation::Pending && *condition && !early {
            *preparation = Preparation::Busy;
            (*told, *tell_at) = (None, None);
            self.publish(context, State::Preparing, "Creating service runner".to_owned());
            return self.step(context, run, Step::Prepare);
        }
        match preparation {
            Preparation::Busy => {}
            Preparation::Done if awaited.is_empty() => {
                self.phase = Phase::Starting { run };
                self.step(context, run, Step::Start);
            }
            Preparation::Done | Preparation::Pending => {
                let now = context.now.monotonic;
                let text = format!("Waiting for {}", awaited.join(", "));
                *tell_at = match told {
                    Some((last, _)) if *last == text => None,
                    Some((_, at)) if *at + REFRESH > now => Some(*at + REFRESH),
                    _ => {
                        *told = Some((text.clone(), now));
                        *tell_at = None;
                        return self.publish(context, State::Waiting, text);
                    }
                };
            }
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting { tell_at, .. } => *tell_at,
            Phase::Resting { until } => Some(*until),
            Phase::Running { check: Check::At(at), .. } => Some(*at),
            Phase::Stopping { kill_at, .. } => *kill_at,
            _ => None,
        }
    }

    fn run(&self) -> Option<Run> {
        match self.phase {
            Phase::Waiting { run, .. }
            | Phase::Starting { run }
            | Phase::Running { run, .. }
            | Phase::Stopping { run, .. } => Some(run),
            Phase::Down | Phase::Resting { .. } => None,
        }
    }

    fn is_down(&self) -> bool {
        matches!(self.phase, Phase::Down)
    }

    fn up(&self) -> bool {
        match self.state {
            State::Running => self.policy.health.is_none() || self.health.healthy == Some(true),
            // Between its runs a service that is restarted is not up.
            State::Finished | State::Skipped => self.is_down(),
            _ => false,
        }
    }

    fn status(&self) -> Status {
        let pid = match self.phase {
            Phase::Running { pid, .. } => pid,
            _ => None,
        };
        Status {
            id: self.id.clone(),
            state: self.state,
            up: self.up(),
            health: self.health.clone(),
            pid,
            restarts: self.restarts,
            history: self.history.iter().cloned().collect(),
        }
    }

    fn step(&self, context: &mut Context<'_>, run: Run, step: Step) {
        context.actions.push(Action::Step(self.id.clone(), run, step));
    }

    fn publish(&mut self, context: &mut Context<'_>, state: State, message: String) {
        self.state = state;
        self.record(context, message, Cause::State);
    }

    fn record(&mut self, context: &mut Context<'_>, message: String, cause: Cause) {
        let entry = Entry { state: self.state, message, at: context.now.wall };
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(entry.clone());
        context.actions.push(Action::Publish(Change { id: self.id.clone(), entry, cause }));
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
