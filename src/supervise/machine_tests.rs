//! The machine against a pretended driver and clock: tables for what is promised, and random lives.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Services `a`, `b`, `c`, `d`; what their runs do, and the time, is up to the test.
struct World {
    machine: Machine,
    now: Now,
    /// The last run of each service and the steps it was told.
    runs: HashMap<Arc<str>, (Run, Vec<Step>)>,
    dependencies: HashMap<String, Vec<Dependency>>,
    shutdown_at: Option<Instant>,
}

impl World {
    fn new(services: &[(&str, Policy)]) -> Self {
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let mut machine = Machine::new();
        let mut dependencies = HashMap::new();
        for (id, policy) in services {
            assert!(machine.load(now, id, policy.clone()));
            dependencies.insert((*id).to_owned(), policy.dependencies.clone());
        }
        Self { machine, now, runs: HashMap::new(), dependencies, shutdown_at: None }
    }

    fn event(&mut self, id: &str, event: Event) {
        let actions = self.machine.handle(self.now, 0, id, event);
        self.act(actions);
    }

    /// Lets time pass, waking the machine whenever it asked for it.
    fn pass(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        while let Some(at) = self.machine.wake_at().filter(|at| *at <= end) {
            let ahead = at.saturating_duration_since(self.now.monotonic);
            self.now = Now { monotonic: self.now.monotonic + ahead, wall: self.now.wall + ahead };
            let actions = self.machine.tick(self.now, 0);
            self.act(actions);
            let next = self.machine.wake_at();
            assert!(next.is_none_or(|next| next > self.now.monotonic), "wakes for nothing");
        }
        let ahead = end.saturating_duration_since(self.now.monotonic);
        self.now = Now { monotonic: end, wall: self.now.wall + ahead };
    }

    fn shutdown(&mut self) {
        self.shutdown_at.get_or_insert(self.now.monotonic);
        let actions = self.machine.shutdown(self.now);
        self.act(actions);
    }

    /// Takes note of what the driver would do, and holds the machine to its promises.
    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            let Action::Step(id, run, step) = action else { continue };
            if step == Step::Begin {
                assert!(!self.runs.contains_key(&id), "two runs of {id}");
                self.runs.insert(id, (run, vec![step]));
                continue;
            }
            let dependencies = &self.dependencies[&*id];
            let unmet = |stage: Stage| {
                dependencies.iter().any(|other| {
                    other.before <= stage && self.machine.is_up(&other.id) != Some(true)
                })
            };
            let needed = self.dependencies.iter().any(|(other, dependencies)| {
                dependencies.iter().any(|dependency| *dependency.id == *id)
                    && self.machine.is_down(other) == Some(false)
            });
            let (current, told) = self.runs.get_mut(&id).expect("a step without a run");
            assert_eq!(*current, run, "a step of another run");
            match step {
                Step::Begin => unreachable!(),
                Step::Prepare => {
                    assert_eq!(*told, [Step::Begin]);
                    assert!(!unmet(Stage::Prepare), "{id} prepared without its dependencies");
                }
                Step::Start => {
                    assert_eq!(*told, [Step::Begin, Step::Prepare]);
                    assert!(!unmet(Stage::Start), "{id} started without its dependencies");
                }
                Step::Check => assert_eq!(told.last(), Some(&Step::Start), "{id}: {told:?}"),
                Step::Terminate => {
                    assert!(!told.contains(&step));
                    let late = self
                        .shutdown_at
                        .is_some_and(|at| self.now.monotonic >= at + REVERSE_DEPENDENCIES);
                    // Whoever is needed is stopped by a request only, not yet by the shutdown.
                    assert!(self.shutdown_at.is_none() || late || !needed, "{id} is needed");
                }
                Step::Kill => assert_eq!(told.last(), Some(&Step::Terminate), "{id}: {told:?}"),
            }
            if step != Step::Check {
                told.push(step);
            }
        }
    }

    /// What holds at any time.
    fn promises(&self) {
        for status in self.machine.list() {
            assert!(status.history.len() <= HISTORY);
            assert!(status.history.is_sorted_by_key(|entry| entry.at));
            assert_eq!(
                status.history.last().map_or(State::Initialized, |entry| entry.state),
                status.state
            );
            let running = self.machine.is_down(&status.id) == Some(false);
            let over = [State::Initialized, State::Finished, State::Failed, State::Skipped];
            assert!(running || over.contains(&status.state), "{status:?}");
        }
    }

    /// The driver's side of a run goes one step on, if it was told to.
    fn proceed(&mut self, id: &str) {
        let Some((run, told)) = self.runs.get(id) else { return };
        let run = *run;
        match told.last() {
            Some(Step::Begin) => self.event(id, Event::ConditionMet(run)),
            Some(Step::Prepare) => self.event(id, Event::Prepared(run)),
            Some(Step::Start) => {
                let message = format!("{id} started");
                self.event(id, Event::Started { run, message, pid: Some(1) });
            }
            _ => {}
        }
    }

    fn end(&mut self, id: &str, outcome: Outcome) {
        if let Some((run, _)) = self.runs.remove(id) {
            self.event(id, Event::Ended(run, outcome));
        }
    }

    fn check(&mut self, id: &str, answer: Result<(), String>) {
        if let Some((run, _)) = self.runs.get(id) {
            let run = *run;
            self.event(id, Event::Checked(run, answer));
        }
    }

    fn start(&mut self, id: &str) {
        self.event(id, Event::Start);
        (0..3).for_each(|_| self.proceed(id));
    }

    fn state(&self, id: &str) -> State {
        self.machine.status(id).expect("loaded").state
    }

    fn restarts(&self, id: &str) -> u64 {
        self.machine.status(id).expect("loaded").restarts
    }

    fn told(&self, id: &str) -> Vec<Step> {
        self.runs.get(id).map(|(_, told)| told.clone()).unwrap_or_default()
    }

    fn messages(&self, id: &str) -> Vec<String> {
        let history = self.machine.status(id).expect("loaded").history;
        history.into_iter().map(|entry| format!("{}: {}", entry.state, entry.message)).collect()
    }
}

fn policy() -> Policy {
    Policy {
        runner: "Process([\"/x\"])".to_owned(),
        dependencies: Vec::new(),
        condition: None,
        health: None,
        restart: Restart::Forever,
        grace: Duration::from_secs(10),
    }
}

fn after(dependencies: &[Dependency]) -> Policy {
    Policy { dependencies: dependencies.to_vec(), ..policy() }
}

fn with_health() -> Policy {
    Policy { health: Some(Timing::default()), ..policy() }
}

#[test]
fn a_life_is_told_in_the_words_of_the_specification() {
    let mut world = World::new(&[("a", Policy { restart: Restart::Once, ..with_health() })]);
    world.start("a");
    world.pass(MS);
    world.check("a", Ok(()));
    world.event("a", Event::Stop);
    world.pass(Duration::from_secs(11));
    world.end("a", Outcome::Failed("signal: 9 (SIGKILL)".to_owned()));
    assert_eq!(
        world.messages("a"),
        [
            "Preparing: Creating service runner",
            "Running: a started",
            "Running: Health check successful",
            "Stopping: Sending SIGTERM to Process([\"/x\"])",
            "Stopping: Sending SIGKILL to Process([\"/x\"])",
            "Finished: Service finished successfully",
        ]
    );
}

#[test]
fn what_is_prepared_early_starts_when_the_other_is_up() {
    let mut world = World::new(&[
        ("containerd", with_health()),
        ("networkd", with_health()),
        ("apid", after(&[Dependency::to_prepare("containerd"), Dependency::to_start("networkd")])),
    ]);
    world.event("apid", Event::Start);
    assert_eq!(world.told("apid"), [Step::Begin]);
    world.start("containerd");
    world.pass(MS);
    assert_eq!(world.told("apid"), [Step::Begin], "runs, but is not known to be well");
    world.check("containerd", Ok(()));
    assert_eq!(world.told("apid"), [Step::Begin, Step::Prepare]);
    world.proceed("apid");
    assert_eq!(world.state("apid"), State::Waiting);
    world.start("networkd");
    world.pass(MS);
    world.check("networkd", Ok(()));
    assert_eq!(world.told("apid"), [Step::Begin, Step::Prepare, Step::Start]);
    assert_eq!(
        world.messages("apid")[..3],
        [
            "Waiting: Waiting for service \"containerd\" to be \"up\", service \"networkd\" to be \"up\"",
            "Preparing: Creating service runner",
            "Waiting: Waiting for service \"networkd\" to be \"up\"",
        ]
        .map(str::to_owned)
    );
}

#[test]
fn a_changed_reason_to_wait_is_told_once_a_second() {
    let waits = after(&["b", "c", "d"].map(Dependency::to_prepare));
    let mut world = World::new(&[("a", waits), ("b", policy()), ("c", policy()), ("d", policy())]);
    world.event("a", Event::Start);
    world.start("b");
    world.start("c");
    assert_eq!(world.messages("a").len(), 1);
    world.pass(REFRESH);
    assert_eq!(world.messages("a")[1], "Waiting: Waiting for service \"d\" to be \"up\"");
}

#[test]
fn a_condition_holds_back_what_would_be_created() {
    let condition = Some("file \"/x\" to exist".to_owned());
    let mut world = World::new(&[("a", Policy { condition, ..policy() })]);
    world.event("a", Event::Start);
    assert_eq!(world.messages("a"), ["Waiting: Waiting for file \"/x\" to exist"]);
    assert_eq!(world.told("a"), [Step::Begin]);
    world.proceed("a");
    assert_eq!(world.told("a"), [Step::Begin, Step::Prepare]);
}

#[test]
fn restarts_back_off_to_five_seconds_and_recover() {
    let mut world = World::new(&[("a", policy())]);
    world.event("a", Event::Start);
    let mut waits = Vec::new();
    for _ in 0..6 {
        (0..3).for_each(|_| world.proceed("a"));
        world.end("a", Outcome::Failed("exit status: 1".to_owned()));
        let until = world.machine.wake_at().expect("rests");
        waits.push((until - world.now.monotonic).as_millis());
        world.pass(until - world.now.monotonic);
    }
    assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000]);
    assert_eq!(world.restarts("a"), 6);
    (0..3).for_each(|_| world.proceed("a"));
    world.pass(STEADY);
    world.end("a", Outcome::Finished);
    let until = world.machine.wake_at().expect("rests");
    assert_eq!(until - world.now.monotonic, RESTART_MIN);
    let messages = world.messages("a");
    assert_eq!(
        messages[2],
        "Waiting: Error running Process([\"/x\"]), going to restart forever: exit status: 1"
    );
    assert_eq!(
        messages.last().map(String::as_str),
        Some("Waiting: Runner Process([\"/x\"]) exited without error, going to restart it")
    );
    world.event("a", Event::Stop);
    assert_eq!(
        world.messages("a")[messages.len()..],
        ["Stopping: Aborting restart sequence", "Finished: Service finished successfully"]
            .map(str::to_owned)
    );
}

#[test]
fn each_restart_policy_ends_as_it_says() {
    let failed = || Outcome::Failed("no".to_owned());
    let cases = [
        (Restart::Once, Outcome::Finished, "Finished: Service finished successfully"),
        (Restart::Once, failed(), "Failed: Failed running service: no"),
        (Restart::UntilSuccess, Outcome::Finished, "Finished: Service finished successfully"),
        (Restart::Forever, Outcome::Skipped, "Skipped: Service skipped"),
    ];
    for (restart, outcome, message) in cases {
        let mut world = World::new(&[("a", Policy { restart, ..policy() })]);
        world.start("a");
        world.end("a", outcome);
        assert_eq!(world.messages("a").last().map(String::as_str), Some(message));
        assert_eq!(world.machine.wake_at(), None);
    }
    let mut world = World::new(&[("a", Policy { restart: Restart::Once, ..policy() })]);
    world.event("a", Event::Start);
    world.end("a", failed());
    assert_eq!(world.messages("a")[1], "Failed: Failed to create runner: no");
}

#[test]
fn a_failure_while_coming_up_is_not_told_and_the_first_success_is_found_soon() {
    let mut world = World::new(&[("a", with_health())]);
    world.start("a");
    let started = world.now.monotonic;
    let mut checks = 0;
    let well_by = started + Timing::default().initial_delay;
    while let Some(at) = world.machine.wake_at().filter(|at| *at < well_by) {
        world.pass(at - world.now.monotonic);
        world.check("a", Err("refused".to_owned()));
        checks += 1;
    }
    assert!((10..40).contains(&checks), "{checks}");
    assert_eq!(world.machine.status("a").expect("loaded").health.healthy, None);
    world.pass(Duration::from_secs(1));
    world.check("a", Err("refused".to_owned()));
    assert_eq!(world.messages("a")[2], "Running: Health check failed: refused");
    assert_eq!(world.machine.is_up("a"), Some(false));
    let at = world.machine.wake_at().expect("asks again");
    assert!(at - world.now.monotonic < Duration::from_millis(300));
    world.pass(at - world.now.monotonic);
    world.check("a", Ok(()));
    assert_eq!(world.machine.is_up("a"), Some(true));
    assert_eq!(world.machine.wake_at(), Some(world.now.monotonic + Timing::default().period));
}

#[test]
fn a_restart_waits_for_the_end_and_a_stop_in_between_wins() {
    let mut world = World::new(&[("a", policy())]);
    world.start("a");
    world.event("a", Event::Restart);
    assert_eq!(world.told("a").last(), Some(&Step::Terminate));
    world.end("a", Outcome::Finished);
    assert_eq!(world.told("a"), [Step::Begin, Step::Prepare]);
    assert_eq!(world.restarts("a"), 1);
    (0..3).for_each(|_| world.proceed("a"));
    world.event("a", Event::Restart);
    world.event("a", Event::Stop);
    world.end("a", Outcome::Finished);
    assert_eq!(world.machine.is_down("a"), Some(true));
    world.event("a", Event::Restart);
    assert_eq!(world.restarts("a"), 1, "a start is none");
    assert_eq!(world.told("a"), [Step::Begin, Step::Prepare], "a restart of one down is a start");
}

#[test]
fn shutdown_ends_dependents_first_and_waits_no_longer_than_thirty_seconds() {
    let mut world = World::new(&[
        ("a", policy()),
        ("b", after(&[Dependency::to_prepare("a")])),
        ("c", Policy { grace: Duration::from_secs(60), ..after(&[Dependency::to_start("b")]) }),
    ]);
    ["a", "b", "c"].into_iter().for_each(|id| world.start(id));
    world.shutdown();
    assert_eq!(world.told("c").last(), Some(&Step::Terminate));
    assert_eq!(world.told("b").last(), Some(&Step::Start));
    assert!(!world.machine.load(world.now, "d", policy()));
    world.pass(REVERSE_DEPENDENCIES);
    assert_eq!(world.told("b").last(), Some(&Step::Terminate));
    assert_eq!(world.told("a").last(), Some(&Step::Terminate));
    ["a", "b", "c"].into_iter().for_each(|id| world.end(id, Outcome::Finished));
    world.event("a", Event::Start);
    assert_eq!(world.state("a"), State::Finished, "nothing starts any more");
}

#[test]
fn shutdown_does_not_wait_for_one_that_only_rests() {
    let mut world = World::new(&[
        ("a", policy()),
        ("b", after(&[Dependency::to_prepare("a")])),
        ("c", after(&[Dependency::to_start("b")])),
    ]);
    ["a", "b", "c"].into_iter().for_each(|id| world.start(id));
    ["b", "c"].into_iter().for_each(|id| world.end(id, Outcome::Finished));
    world.shutdown();
    assert_eq!(world.told("a").last(), Some(&Step::Terminate));
    world.end("a", Outcome::Finished);
    assert_eq!(world.machine.wake_at(), None);
}

#[derive(Clone, Debug)]
enum Deed {
    Start(usize),
    Stop(usize),
    Restart(usize),
    Proceed(usize),
    End(usize, Outcome),
    Check(usize, bool),
    Stale(usize, u64),
    Pass(u64),
    Shutdown,
}

fn deed() -> impl Strategy<Value = Deed> {
    let outcome = prop_oneof![
        Just(Outcome::Finished),
        Just(Outcome::Skipped),
        Just(Outcome::Failed("x".to_owned())),
    ];
    let id = 0..4_usize;
    prop_oneof![
        4 => id.clone().prop_map(Deed::Start),
        2 => id.clone().prop_map(Deed::Stop),
        2 => id.clone().prop_map(Deed::Restart),
        12 => id.clone().prop_map(Deed::Proceed),
        3 => (id.clone(), outcome).prop_map(|(id, outcome)| Deed::End(id, outcome)),
        6 => (id.clone(), any::<bool>()).prop_map(|(id, well)| Deed::Check(id, well)),
        1 => (id, 0..40_u64).prop_map(|(id, run)| Deed::Stale(id, run)),
        6 => (0..12_000_u64).prop_map(Deed::Pass),
        1 => Just(Deed::Shutdown),
    ]
}

const IDS: [&str; 4] = ["a", "b", "c", "d"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_life_breaks_a_promise_and_every_stop_comes_to_an_end(
        deeds in proptest::collection::vec(deed(), 0..120),
        deaf in any::<[bool; 4]>(),
        restart in prop_oneof![
            Just(Restart::Forever), Just(Restart::Once), Just(Restart::UntilSuccess),
        ],
    ) {
        let mut world = World::new(&[
            ("a", with_health()),
            ("b", Policy { restart, ..after(&[Dependency::to_prepare("a")]) }),
            ("c", Policy {
                health: Some(Timing::default()),
                condition: Some("x".to_owned()),
                ..after(&[Dependency::to_prepare("a"), Dependency::to_start("b")])
            }),
            ("d", Policy { restart, ..policy() }),
        ]);
        for deed in deeds {
            match deed {
                Deed::Start(id) => world.event(IDS[id], Event::Start),
                // A requested stop goes before a shutdown's order.
                Deed::Stop(id) if world.shutdown_at.is_none() => world.event(IDS[id], Event::Stop),
                Deed::Stop(_) => {}
                Deed::Restart(id) => world.event(IDS[id], Event::Restart),
                Deed::Proceed(id) => world.proceed(IDS[id]),
                Deed::End(id, outcome) => world.end(IDS[id], outcome),
                Deed::Check(id, true) => world.check(IDS[id], Ok(())),
                Deed::Check(id, false) => world.check(IDS[id], Err("ill".to_owned())),
                Deed::Stale(id, run) => {
                    let run = Run(run);
                    if world.runs.get(IDS[id]).is_none_or(|(current, _)| *current != run) {
                        world.event(IDS[id], Event::Prepared(run));
                        world.event(IDS[id], Event::Started { run, message: String::new(), pid: None });
                        world.event(IDS[id], Event::Ended(run, Outcome::Finished));
                    }
                }
                Deed::Pass(time) => world.pass(Duration::from_millis(time)),
                Deed::Shutdown => world.shutdown(),
            }
            world.promises();
        }
        world.shutdown();
        // Who hears ends at TERM, who is deaf at KILL: 30 s of waiting, 10 s of grace each.
        for _ in 0..120 {
            if IDS.iter().all(|id| world.machine.is_down(id) == Some(true)) {
                break;
            }
            for (id, deaf) in IDS.into_iter().zip(deaf) {
                let last = world.told(id).last().copied();
                if last == Some(Step::Kill) || (last == Some(Step::Terminate) && !deaf) {
                    world.end(id, Outcome::Finished);
                }
            }
            world.pass(Duration::from_millis(500));
        }
        for id in IDS {
            prop_assert_eq!(world.machine.is_down(id), Some(true), "{}: {:?}", id, world.messages(id));
        }
        prop_assert_eq!(world.machine.wake_at(), None);
    }
}
