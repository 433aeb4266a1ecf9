//! What a service is: how it is run, what it waits for, how its health is asked, what may be done to it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use orlop_rt::CancellationToken;

use crate::container::{self, Containerd};
use crate::machine::{Dependency, Restart, Timing};
use crate::process;
use crate::reaper::Reaper;

/// A future handed over to the supervisor.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// Makes a future whenever one is needed: for each health check, each run.
type Factory<T> = Arc<dyn Fn() -> BoxFuture<T> + Send + Sync>;

/// Everything the supervisor must know about one service. Fill what differs from [`Definition::new`].
#[derive(Clone, Debug)]
pub struct Definition {
    /// Names the service, its container and its log.
    pub id: String,
    /// How it is run.
    pub runner: Runner,
    /// What must be up before it is created or started. Ids need not be loaded yet.
    pub dependencies: Vec<Dependency>,
    /// Awaited at each start, before anything is created.
    pub condition: Option<Condition>,
    /// Done at each start, when the condition is met, before anything is created: files, directories.
    pub prepare: Option<Hook>,
    /// Without one the service is up as soon as it runs.
    pub health: Option<Health>,
    /// What happens when it ends by itself.
    pub restart: Restart,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// What the machine API may ask for.
    pub permissions: Permissions,
}

impl Definition {
    /// A service that depends on nothing, is restarted forever, gets 10 s to stop and may not be
    /// touched through the API.
    #[must_use]
    pub fn new(id: impl Into<String>, runner: Runner) -> Self {
        Self {
            id: id.into(),
            runner,
            dependencies: Vec::new(),
            condition: None,
            prepare: None,
            health: None,
            restart: Restart::Forever,
            grace: Duration::from_secs(10),
            permissions: Permissions::default(),
        }
    }
}

/// What the machine API may ask for; the API decides and answers, the supervisor only carries this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// `ServiceStart`.
    pub start: bool,
    /// `ServiceStop`.
    pub stop: bool,
    /// `ServiceRestart`.
    pub restart: bool,
}

/// How a service is run.
#[derive(Clone, Debug)]
pub enum Runner {
    /// A child of this process.
    Process(process::Spec, Reaper),
    /// A container of containerd.
    Container(Box<container::Spec>, Containerd),
    /// A future inside this process. It must end soon after the token is cancelled, and is dropped
    /// when the grace is over.
    Task(TaskFactory),
}

impl Runner {
    /// Adds to what the program is called with.
    pub(crate) fn push(&mut self, arguments: Vec<String>) {
        match self {
            Self::Process(spec, _) => spec.args.extend(arguments),
            Self::Container(spec, _) => spec.args.extend(arguments),
            Self::Task(_) => {}
        }
    }

    /// A service that is a future inside this process, made anew for each run.
    pub fn task<F>(run: impl Fn(CancellationToken) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self::Task(TaskFactory(Arc::new(move |token| Box::pin(run(token)))))
    }
}

/// See [`Runner::task`].
#[derive(Clone)]
pub struct TaskFactory(
    pub(crate) Arc<dyn Fn(CancellationToken) -> BoxFuture<Result<(), String>> + Send + Sync>,
);

impl fmt::Debug for TaskFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TaskFactory")
    }
}

/// Something besides other services that must hold before a start.
#[derive(Clone)]
pub struct Condition {
    /// Completes `Waiting for …`.
    pub(crate) description: String,
    pub(crate) met: Factory<()>,
}

impl Condition {
    /// `description` completes `Waiting for …`; the future ends when the condition is met.
    pub fn new<F>(
        description: impl Into<String>,
        met: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { description: description.into(), met: Arc::new(move || Box::pin(met())) }
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Condition").field(&self.description).finish()
    }
}

/// Work before each start.
#[derive(Clone)]
pub struct Hook(pub(crate) Factory<Result<Prepared, String>>);

impl Hook {
    /// The future says whether the service shall run, or why it cannot.
    pub fn new<F>(prepare: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Prepared, String>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(prepare())))
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

/// What a [`Hook`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Go on.
    Run,
    /// Go on, this run with these arguments behind those of the definition. A task takes none.
    RunWith(Vec<String>),
    /// There is nothing to do: the service ends as `Skipped`.
    Skip,
}

/// How a running service is asked whether it is well.
#[derive(Clone)]
pub struct Health {
    /// When, how often, how long.
    pub timing: Timing,
    pub(crate) check: Factory<Result<(), String>>,
}

impl Health {
    /// Asks with the default [`Timing`].
    pub fn new<F>(check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self { timing: Timing::default(), check: Arc::new(move || Box::pin(check())) }
    }

    /// Asks at other times.
    #[must_use]
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Health").field(&self.timing).finish()
    }
}
