//! How the boot went: each step with its beginning and its end.
//!
//! Times are on the kernel's monotonic clock, which no setting of the time of day moves. Of each
//! sequence, phase and task the last run is kept, of each service every way up (until the node is
//! ready): all bounded by what the node's plan has. Pure but for [`Timeline`], which is shared.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use orlop_supervise::{Cause, Change, State};
use ring::digest;

/// Ways up that are kept: a service that crashes while the node does not get ready starts very often.
const WAYS: usize = 64;
/// How the supervisor words a service's becoming well (spec §8.6).
const WELL: &str = "Health check successful";

/// The story, shared by those who live it and those who ask. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Timeline(Arc<Mutex<Story>>);

impl Timeline {
    pub(crate) fn new(story: Story) -> Self {
        Self(Arc::new(Mutex::new(story)))
    }

    /// For a line or two; never held over an await.
    pub(crate) fn story(&self) -> MutexGuard<'_, Story> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that is known of the boot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    /// When the kernel had started init, if a mark was left, and init machined.
    init: Option<Duration>,
    machined: Duration,
    steps: Vec<Step>,
    ways: Vec<Way>,
    ready: Option<Duration>,
    config: Option<Config>,
}

/// The machine configuration the node goes by.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Of the document, in hex.
    pub(crate) sha256: String,
    pub(crate) loaded: SystemTime,
}

/// Where a step stands in the plan; a phase and a task have those above them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) sequence: &'static str,
    pub(crate) phase: Option<&'static str>,
    pub(crate) task: Option<&'static str>,
}

/// The last run of a sequence, a phase or a task, and how often it ran.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) place: Place,
    start: Duration,
    end: Option<Duration>,
    failed: bool,
    pub(crate) runs: u64,
    pub(crate) failures: u64,
}

impl Step {
    /// What the last run took; `None` while it goes on.
    pub(crate) fn took(&self) -> Option<Duration> {
        Some(self.end?.saturating_sub(self.start))
    }
}

/// A way of a service up, stage by stage.
#[derive(Clone, Debug)]
struct Way {
    id: Arc<str>,
    /// Never empty.
    stages: Vec<(Stage, Duration)>,
    end: Option<Duration>,
    failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Preparing,
    Starting,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
        }
    }
}

/// A part of the boot, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// The name of the span this one is a part of.
    pub(crate) parent: String,
    pub(crate) start: Duration,
    /// So far, when it is unfinished.
    pub(crate) duration: Duration,
    pub(crate) unfinished: bool,
    pub(crate) failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Kernel,
    Init,
    Sequence,
    Phase,
    Task,
    Service,
    Stage,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Init => "init",
            Self::Sequence => "sequence",
            Self::Phase => "phase",
            Self::Task => "task",
            Self::Service => "service",
            Self::Stage => "stage",
        }
    }
}

impl Story {
    /// `init` is the mark init left of its start, `machined` when we started.
    pub(crate) fn new(init: Option<Duration>, machined: Duration) -> Self {
        Self { init: init.filter(|init| *init <= machined), machined, ..Self::default() }
    }

    /// A step begins; gives what [`Self::ended`] wants.
    pub(crate) fn began(&mut self, now: Duration, place: Place) -> usize {
        let known = self.steps.iter().position(|step| step.place == place);
        let index = known.unwrap_or_else(|| {
            let (runs, failures) = (0, 0);
            self.steps.push(Step { place, start: now, end: None, failed: false, runs, failures });
            self.steps.len() - 1
        });
        let step = &mut self.steps[index];
        (step.start, step.end, step.failed) = (now, None, false);
        step.runs += 1;
        index
    }

    /// The step has ended, well or not.
    pub(crate) fn ended(&mut self, now: Duration, step: usize, failed: bool) {
        let step = &mut self.steps[step];
        (step.end, step.failed) = (Some(now), failed);
        step.failures += u64::from(failed);
    }

    /// All services are healthy: what they do from now on is not the boot any more.
    pub(crate) fn ready(&mut self, now: Duration) {
        if self.ready.is_none() {
            self.ready = Some(now);
            for way in self.ways.iter_mut().filter(|way| way.end.is_none()) {
                // Up without a word of its health: nobody asks for it.
                way.end = Some(way.stages[way.stages.len() - 1].1);
            }
        }
    }

    /// When all services were healthy.
    pub(crate) fn ready_at(&self) -> Option<Duration> {
        self.ready
    }

    /// From now on the node goes by this document.
    pub(crate) fn configured(&mut self, document: &[u8], loaded: SystemTime) {
        let hash = digest::digest(&digest::SHA256, document);
        let sha256 = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.config = Some(Config { sha256, loaded });
    }

    pub(crate) fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// The last run of each step, in the order of their first.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Takes in what happened to a service.
    pub(crate) fn changed(&mut self, now: Duration, change: &Change) {
        if self.ready.is_some() {
            return;
        }
        let on_its_way =
            self.ways.iter_mut().rev().find(|way| way.id == change.id && way.end.is_none());
        let stage = match (change.cause, change.entry.state) {
            (Cause::Health, _) => {
                if let Some(way) = on_its_way
                    && change.entry.message.starts_with(WELL)
                {
                    way.end = Some(now);
                }
                return;
            }
            (Cause::State, State::Waiting) => Stage::Waiting,
            (Cause::State, State::Preparing) => Stage::Preparing,
            (Cause::State, State::Running) => Stage::Starting,
            (Cause::State, State::Initialized) => return,
            (Cause::State, ended) => {
                if let Some(way) = on_its_way {
                    way.end = Some(now);
                    way.failed = !matches!(ended, State::Finished | State::Skipped);
                }
                return;
            }
        };
        match on_its_way {
            Some(way) if way.stage() == stage => return,
            // It ran and must run again: that way led nowhere.
            Some(way) if way.stage() == Stage::Starting => {
                (way.end, way.failed) = (Some(now), true);
            }
            Some(way) => return way.stages.push((stage, now)),
            None => {}
        }
        if self.ways.len() < WAYS {
            let (id, stages) = (Arc::clone(&change.id), vec![(stage, now)]);
            self.ways.push(Way { id, stages, end: None, failed: false });
        }
    }

    /// The boot as spans, each followed by its parts. `is_up` tells whether a service is up now: one
    /// whose health nobody asks is from its start.
    pub(crate) fn spans(&self, now: Duration, is_up: impl Fn(&str) -> bool) -> Vec<Span> {
        let mut trees = vec![vec![Span::of(
            Kind::Kernel,
            "kernel",
            "",
            Duration::ZERO,
            self.init.unwrap_or(self.machined),
        )]];
        if let Some(init) = self.init {
            trees.push(vec![Span::of(Kind::Init, "init", "", init, self.machined)]);
        }
        let of_the_boot = |start| self.ready.is_none_or(|ready| start <= ready);
        for top in self.steps.iter().filter(|step| step.place.phase.is_none()) {
            let parts = self.steps.iter().filter(|step| {
                step.place.sequence == top.place.sequence && step.start >= top.start
            });
            if of_the_boot(top.start) {
                trees.push(parts.map(|step| step.span(now)).collect());
            }
        }
        trees.extend(self.ways.iter().map(|way| way.spans(now, is_up(&way.id))));
        orlop_rt::sort_by_key(&mut trees, |tree| tree[0].start);
        trees.concat()
    }
}

impl Step {
    fn span(&self, now: Duration) -> Span {
        let Place { sequence, phase, task } = self.place;
        let (kind, name, parent) = match (phase, task) {
            (None, _) => (Kind::Sequence, sequence, ""),
            (Some(phase), None) => (Kind::Phase, phase, sequence),
            (Some(phase), Some(task)) => (Kind::Task, task, phase),
        };
        let span = Span::of(kind, name, parent, self.start, self.end.unwrap_or(now));
        Span { unfinished: self.end.is_none(), failed: self.failed, ..span }
    }
}

impl Way {
    fn stage(&self) -> Stage {
        self.stages[self.stages.len() - 1].0
    }

    fn spans(&self, now: Duration, up: bool) -> Vec<Span> {
        let ((last, since), (_, start)) = (self.stages[self.stages.len() - 1], self.stages[0]);
        let unasked = up && last == Stage::Starting;
        let end = self.end.or(unasked.then_some(since));
        let until = end.unwrap_or(now);
        let whole = Span::of(Kind::Service, &self.id, "", start, until);
        let mut spans = vec![Span { unfinished: end.is_none(), failed: self.failed, ..whole }];
        for (i, (stage, start)) in self.stages.iter().enumerate() {
            if *stage == Stage::Starting && end == Some(*start) {
                // Nobody asked: there was nothing between its start and its being up.
                continue;
            }
            let next = self.stages.get(i + 1).map(|(_, start)| *start);
            let part = Span::of(Kind::Stage, stage.name(), &self.id, *start, next.unwrap_or(until));
            spans.push(Span { unfinished: next.is_none() && end.is_none(), ..part });
        }
        spans
    }
}

impl Span {
    fn of(kind: Kind, name: &str, parent: &str, start: Duration, end: Duration) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            parent: parent.to_owned(),
            start,
            duration: end.saturating_sub(start),
            unfinished: false,
            failed: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use orlop_supervise::Entry;

    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn change(id: &str, state: State, cause: Cause, message: &str) -> Change {
        let entry = Entry { state, message: message.to_owned(), at: SystemTime::UNIX_EPOCH };
        Change { id: id.into(), entry, cause }
    }

    fn state(id: &str, state: State) -> Change {
        change(id, state, Cause::State, "")
    }

    fn place(phase: Option<&'static str>, task: Option<&'static str>) -> Place {
        Place { sequence: "boot", phase, task }
    }

    /// A span a line: `  task name 1.5+2 (unfinished)`.
    fn told(story: &Story, now: Duration, up: &[&str]) -> String {
        story.spans(now, |id| up.contains(&id)).iter().fold(String::new(), |mut text, span| {
            let Span { kind, name, parent, start, duration, unfinished, failed } = span;
            let (start, took) = (start.as_millis(), duration.as_millis());
            let _ = write!(text, "{} {parent}/{name} {start}+{took}", kind.name());
            text += if *unfinished { " unfinished" } else { "" };
            text += if *failed { " failed\n" } else { "\n" };
            text
        })
    }

    #[test]
    fn a_boot_is_told_from_the_kernel_to_the_last_service() {
        let mut story = Story::new(Some(at(500)), at(600));
        let boot = story.began(at(610), place(None, None));
        let phase = story.began(at(610), place(Some("services"), None));
        let task = story.began(at(611), place(Some("services"), Some("startEverything")));
        for (millis, change) in [
            (612, state("apid", State::Waiting)),
            (613, state("apid", State::Waiting)),
            (614, state("machined", State::Preparing)),
            (615, state("machined", State::Running)),
            (620, state("apid", State::Preparing)),
            (630, state("apid", State::Running)),
            (640, change("apid", State::Running, Cause::Health, "Health check failed: no")),
        ] {
            story.changed(at(millis), &change);
        }
        let text = told(&story, at(650), &["machined"]);
        assert_eq!(
            text,
            "kernel /kernel 0+500\ninit /init 500+100\nsequence /boot 610+40 unfinished\n\
             phase boot/services 610+40 unfinished\ntask services/startEverything 611+39 unfinished\n\
             service /apid 612+38 unfinished\nstage apid/waiting 612+8\nstage apid/preparing 620+10\n\
             stage apid/starting 630+20 unfinished\n\
             service /machined 614+1\nstage machined/preparing 614+1\n"
        );
        story.changed(at(660), &change("apid", State::Running, Cause::Health, WELL));
        [task, phase, boot].into_iter().for_each(|step| story.ended(at(661), step, false));
        story.ready(at(662));
        let done = told(&story, at(9000), &[]);
        assert!(done.contains("sequence /boot 610+51\n"), "{done}");
        assert!(done.contains("service /apid 612+48\n"), "{done}");
        assert!(done.contains("stage apid/starting 630+30\n"), "{done}");
        // Nobody asks for its health, and it may have gone down since.
        assert!(
            done.contains("service /machined 614+1\nstage machined/preparing 614+1\n"),
            "{done}"
        );
        assert!(!done.contains("machined/starting"), "{done}");
    }

    #[test]
    fn what_happens_after_the_boot_is_counted_and_not_told() {
        let mut story = Story::new(None, at(100));
        let boot = story.began(at(100), place(None, None));
        story.ended(at(200), boot, false);
        story.ready(at(200));
        let before = told(&story, at(300), &[]);
        assert_eq!(before, "kernel /kernel 0+100\nsequence /boot 100+100\n");
        story.changed(at(300), &state("apid", State::Waiting));
        let down = Place { sequence: "reboot", phase: None, task: None };
        for failed in [true, false] {
            let step = story.began(at(400), down);
            assert_eq!(story.steps()[step].took(), None);
            story.ended(at(450), step, failed);
        }
        assert_eq!(told(&story, at(500), &[]), before);
        let step = &story.steps()[1];
        assert_eq!((step.runs, step.failures, step.took()), (2, 1, Some(at(50))));
    }

    #[test]
    fn a_service_that_is_started_again_takes_another_way() {
        let mut story = Story::new(None, at(100));
        let well = change("networkd", State::Running, Cause::Health, WELL);
        for (millis, change) in [
            (110, state("networkd", State::Preparing)),
            (120, state("networkd", State::Running)),
            (130, well.clone()),
            // The early network gives way to the container.
            (140, state("networkd", State::Stopping)),
            (150, state("networkd", State::Finished)),
            (160, state("networkd", State::Preparing)),
            (170, state("networkd", State::Running)),
            // It crashes before it is well.
            (180, state("networkd", State::Waiting)),
            (190, state("networkd", State::Preparing)),
            (191, state("networkd", State::Skipped)),
        ] {
            story.changed(at(millis), &change);
        }
        let text = told(&story, at(200), &[]);
        let services: Vec<_> = text.lines().filter(|line| line.starts_with("service")).collect();
        let ways = ["110+20", "160+20 failed", "180+11"];
        assert_eq!(services, ways.map(|way| format!("service /networkd {way}")));
    }

    #[test]
    fn a_service_that_crashes_for_ever_costs_little() {
        let mut story = Story::new(None, at(0));
        for i in 0..1000 {
            story.changed(at(i), &state("x", State::Preparing));
            story.changed(at(i), &state("x", State::Running));
            story.changed(at(i), &state("x", State::Failed));
        }
        assert_eq!(story.ways.len(), WAYS);
    }
}
