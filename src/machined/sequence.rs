//! Carries out a sequence of [`crate::plan`]: phase after phase, the tasks of a phase side by side,
//! each step told to the log and as an event.

use std::time::Duration;

use futures_util::future::join_all;
use orlop_proto::common::{self, Code};
use orlop_proto::machine::{PhaseEvent, SequenceEvent, TaskEvent};
use orlop_proto::machine::{phase_event, sequence_event, task_event};
use tracing::{debug, info};

use crate::Error;
use crate::events::Events;
use crate::plan::{Phase, Sequence, Task};
use crate::timeline::{Place, Timeline};

/// Runs `sequence`, doing each task through `perform`. The first phase with a failed task is the last.
///
/// # Errors
/// The first failure of that phase, by the order of its tasks.
pub(crate) async fn run<F>(
    sequence: &Sequence,
    events: &Events,
    timeline: &Timeline,
    perform: F,
) -> Result<(), Error>
where
    F: AsyncFn(Task) -> Result<(), Error>,
{
    use sequence_event::Action;
    let name = sequence.name;
    let place = Place { sequence: name, phase: None, task: None };
    let step = Step::begin(timeline, place);
    let count = sequence.phases.len();
    debug!("{name} sequence: {count} phase(s)");
    // Its checks have told that it began.
    if sequence.checks.is_empty() {
        publish(events, name, Action::Start, None);
    }
    let result = run_phases(sequence.phases, events, timeline, place, &perform).await;
    publish(events, name, Action::Stop, None);
    let seconds = step.end(&result).as_secs_f64();
    match &result {
        Ok(()) => info!("{name} sequence: done, {count} phase(s), {seconds:.3}s"),
        Err(error) => tell_failure(name, events, error),
    }
    result
}

/// Goes through what comes before `sequence` touches anything; when it is well, [`run`] is to follow.
///
/// # Errors
/// As [`run`]; the sequence has ended then.
pub(crate) async fn check<F>(
    sequence: &Sequence,
    events: &Events,
    timeline: &Timeline,
    perform: F,
) -> Result<(), Error>
where
    F: AsyncFn(Task) -> Result<(), Error>,
{
    use sequence_event::Action;
    let Sequence { name, checks, .. } = sequence;
    if checks.is_empty() {
        return Ok(());
    }
    debug!("{name} sequence: {} check(s)", checks.len());
    publish(events, name, Action::Start, None);
    let place = Place { sequence: name, phase: None, task: None };
    let result = run_phases(checks, events, timeline, place, &perform).await;
    if let Err(error) = &result {
        info!("{name} sequence: refused, nothing was touched");
        publish(events, name, Action::Stop, None);
        tell_failure(name, events, error);
    }
    result
}

fn tell_failure(name: &str, events: &Events, error: &Error) {
    let message = format!("sequence failed: {}", orlop_rt::Chain(error));
    publish(events, name, sequence_event::Action::Noop, Some((Code::Fatal, message)));
}

async fn run_phases<F>(
    phases: &[Phase],
    events: &Events,
    timeline: &Timeline,
    place: Place,
    perform: &F,
) -> Result<(), Error>
where
    F: AsyncFn(Task) -> Result<(), Error>,
{
    let count = phases.len();
    for (i, phase) in phases.iter().enumerate() {
        debug!("phase {} ({}/{count}): {} tasks(s)", phase.name, i + 1, phase.tasks.len());
        let place = Place { phase: Some(phase.name), ..place };
        run_phase(phase, events, timeline, place, perform).await?;
    }
    Ok(())
}

/// Tells those who watch that `sequence` was refused, because another one runs.
pub(crate) fn refuse(sequence: &Sequence, events: &Events) {
    let message = format!("{}: another sequence is running", sequence.name);
    publish(events, sequence.name, sequence_event::Action::Noop, Some((Code::Locked, message)));
}

async fn run_phase<F>(
    phase: &Phase,
    events: &Events,
    timeline: &Timeline,
    place: Place,
    perform: &F,
) -> Result<(), Error>
where
    F: AsyncFn(Task) -> Result<(), Error>,
{
    let step = Step::begin(timeline, place);
    let event = |action: phase_event::Action| PhaseEvent {
        phase: phase.name.to_owned(),
        action: action.into(),
    };
    events.publish(&event(phase_event::Action::Start));
    let count = phase.tasks.len();
    let tasks = phase.tasks.iter().enumerate().map(async |(i, task)| {
        let name = format!("task {} ({}/{count})", task.name(), i + 1);
        let step = Step::begin(timeline, Place { task: Some(task.name()), ..place });
        run_task(*task, &name, step, events, perform).await
    });
    let result = join_all(tasks).await.into_iter().collect();
    step.end(&result);
    events.publish(&event(phase_event::Action::Stop));
    result
}

async fn run_task<F>(
    task: Task,
    name: &str,
    step: Step<'_>,
    events: &Events,
    perform: &F,
) -> Result<(), Error>
where
    F: AsyncFn(Task) -> Result<(), Error>,
{
    let event = |action: task_event::Action| TaskEvent {
        task: task.name().to_owned(),
        action: action.into(),
    };
    debug!("{name}: starting");
    events.publish(&event(task_event::Action::Start));
    let result = perform(task).await;
    let seconds = step.end(&result).as_secs_f64();
    events.publish(&event(task_event::Action::Stop));
    match &result {
        Ok(()) => debug!("{name}: done, {seconds:.3}s"),
        Err(_) => info!("{name}: failed"),
    }
    result
}

/// A step under way, on its timeline.
struct Step<'a> {
    timeline: &'a Timeline,
    index: usize,
    start: Duration,
}

impl<'a> Step<'a> {
    fn begin(timeline: &'a Timeline, place: Place) -> Self {
        let start = orlop_sys::monotonic();
        Self { timeline, index: timeline.story().began(start, place), start }
    }

    /// What it took.
    fn end(self, result: &Result<(), Error>) -> Duration {
        let now = orlop_sys::monotonic();
        self.timeline.story().ended(now, self.index, result.is_err());
        now.saturating_sub(self.start)
    }
}

fn publish(
    events: &Events,
    sequence: &str,
    action: sequence_event::Action,
    error: Option<(Code, String)>,
) {
    events.publish(&SequenceEvent {
        sequence: sequence.to_owned(),
        action: action.into(),
        error: error.map(|(code, message)| common::Error {
            code: code.into(),
            message,
            details: Vec::new(),
        }),
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use prost::Message as _;

    use super::*;
    use crate::events::Tail;
    use crate::timeline::Story;

    const TWO_PHASES: Sequence = Sequence {
        name: "boot",
        checks: &[],
        phases: &[
            Phase { name: "one", tasks: &[Task::SetRLimit, Task::SetUpClock] },
            Phase { name: "two", tasks: &[Task::LoadConfig] },
        ],
    };

    async fn run_with(fail: Option<Task>) -> (Vec<Task>, bool, Vec<SequenceEvent>) {
        let events = Events::new([0; 3]);
        let done = Mutex::new(Vec::new());
        let timeline = Timeline::new(Story::default());
        let result = run(&TWO_PHASES, &events, &timeline, async |task| {
            if let Ok(mut done) = done.lock() {
                done.push(task);
            }
            if Some(task) == fail { Err(Error::NoConfiguration) } else { Ok(()) }
        })
        .await;
        let sequence_events = events
            .kept(&Tail::All)
            .iter()
            .filter(|record| record.data.type_url.ends_with("SequenceEvent"))
            .filter_map(|record| SequenceEvent::decode(&record.data.value[..]).ok())
            .collect();
        let story = timeline.story();
        assert!(story.steps().iter().all(|step| step.took().is_some()), "{story:?}");
        let failures: u64 = story.steps().iter().map(|step| step.failures).sum();
        // The task, its phase, its sequence.
        assert_eq!(failures, if fail.is_some() { 3 } else { 0 });
        (done.into_inner().unwrap_or_default(), result.is_ok(), sequence_events)
    }

    #[tokio::test]
    async fn all_tasks_run_and_the_end_is_told() {
        let (done, ok, events) = run_with(None).await;
        assert!(ok);
        assert_eq!(done, [Task::SetRLimit, Task::SetUpClock, Task::LoadConfig]);
        assert_eq!(events.iter().map(|event| event.action).collect::<Vec<_>>(), [1, 2]);
    }

    #[tokio::test]
    async fn a_failed_phase_is_the_last_but_its_other_tasks_end() {
        let (done, ok, events) = run_with(Some(Task::SetRLimit)).await;
        assert!(!ok);
        assert_eq!(done, [Task::SetRLimit, Task::SetUpClock]);
        let last = events.last().cloned().unwrap_or_default();
        let error = last.error.unwrap_or_default();
        assert_eq!((last.action, error.code()), (0, Code::Fatal));
        assert!(error.message.starts_with("sequence failed: "), "{}", error.message);
    }

    #[tokio::test]
    async fn a_sequence_whose_checks_fail_has_begun_ended_and_touched_nothing() {
        const CHECKED: Sequence = Sequence {
            name: "upgrade",
            checks: &[Phase { name: "verify", tasks: &[Task::CheckInstallation] }],
            phases: &[Phase { name: "stop", tasks: &[Task::StopServices] }],
        };
        for fails in [true, false] {
            let (events, timeline) = (Events::new([0; 3]), Timeline::new(Story::default()));
            let done = Mutex::new(Vec::new());
            let perform = async |task| {
                done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(task);
                if fails { Err(Error::NoConfiguration) } else { Ok(()) }
            };
            let checked = check(&CHECKED, &events, &timeline, &perform).await;
            assert_eq!(checked.is_err(), fails);
            if checked.is_ok() {
                let ran = run(&CHECKED, &events, &timeline, &perform).await;
                assert!(ran.is_ok());
            }
            let done = done.into_inner().unwrap_or_default();
            let actions: Vec<_> = events
                .kept(&Tail::All)
                .iter()
                .filter(|record| record.data.type_url.ends_with("SequenceEvent"))
                .filter_map(|record| SequenceEvent::decode(&record.data.value[..]).ok())
                .map(|event| event.action)
                .collect();
            if fails {
                assert_eq!(done, [Task::CheckInstallation]);
                assert_eq!(actions, [1, 2, 0], "start, stop, and why");
            } else {
                assert_eq!(done, [Task::CheckInstallation, Task::StopServices]);
                assert_eq!(actions, [1, 2], "it began once");
            }
        }
    }
}
