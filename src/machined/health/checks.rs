//! What must hold of a cluster, in which order, and for how long each is waited for (spec §5.7). Pure:
//! looks and the time come in, lines and what to do next go out.

use std::fmt;
use std::time::{Duration, Instant};

/// One thing that must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Etcd,
    Bootkube,
    Apid,
    Kubelet,
    Boot,
    Reporting,
    Ready,
    ControlPlane,
    KubeProxy,
    CoreDns,
    Schedulable,
}

impl Check {
    /// In the order in which they come true.
    pub(super) const ALL: [Self; 11] = [
        Self::Etcd,
        Self::Bootkube,
        Self::Apid,
        Self::Kubelet,
        Self::Boot,
        Self::Reporting,
        Self::Ready,
        Self::ControlPlane,
        Self::KubeProxy,
        Self::CoreDns,
        Self::Schedulable,
    ];

    /// How long it is waited for.
    pub(super) fn limit(self) -> Duration {
        let minutes = match self {
            Self::Apid | Self::Schedulable => 2,
            Self::KubeProxy | Self::CoreDns => 3,
            Self::Ready => 10,
            _ => 5,
        };
        Duration::from_secs(60 * minutes)
    }

    /// Whether Kubernetes is who says so.
    pub(super) fn asks_kubernetes(self) -> bool {
        match self {
            Self::Etcd | Self::Bootkube | Self::Apid | Self::Kubelet | Self::Boot => false,
            Self::Reporting
            | Self::Ready
            | Self::ControlPlane
            | Self::KubeProxy
            | Self::CoreDns
            | Self::Schedulable => true,
        }
    }
}

/// What is waited for, in words.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Etcd => "etcd to be healthy",
            Self::Bootkube => "bootkube to finish",
            Self::Apid => "apid to be ready",
            Self::Kubelet => "kubelet to be healthy",
            Self::Boot => "all nodes to finish boot sequence",
            Self::Reporting => "all k8s nodes to report",
            Self::Ready => "all k8s nodes to report ready",
            Self::ControlPlane => "all control plane components to be ready",
            Self::KubeProxy => "kube-proxy to report ready",
            Self::CoreDns => "coredns to report ready",
            Self::Schedulable => "all k8s nodes to report schedulable",
        })
    }
}

/// What a look at the cluster shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Holds,
    /// Not yet, and why.
    NotYet(String),
    /// It has no say here, and why: nobody waits for what cannot be.
    Skipped(String),
    /// It cannot be asked, and why: the others go on, but all is not well.
    Missing(String),
}

/// Why a cluster is not healthy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unwell {
    #[error("waited {} s for {check}: {why}", after.as_secs())]
    Late { check: Check, after: Duration, why: String },
    #[error(
        "what the nodes themselves tell is as it should be, but Kubernetes could not be checked: {0}"
    )]
    Unchecked(String),
}

/// What has happened.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The time has come that was asked for, or the first one.
    Due,
    /// A look has been taken.
    Looked(Look),
    /// It took too long.
    Silent,
}

/// What is to be done, in this order; the last one is what is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Tell whoever waits.
    Say(String),
    /// See whether it holds, by then.
    Look(Check, Instant),
    /// Come again then.
    WakeAt(Instant),
    End(Result<(), Unwell>),
}

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How far the checks are.
#[derive(Debug)]
pub(super) struct Checks {
    /// Until when all must hold.
    end: Instant,
    /// The check that is waited for: since when, and what was said of it last. `None` before the first.
    current: Option<(Check, Instant, String)>,
    /// Those that come after it.
    left: std::slice::Iter<'static, Check>,
    /// What Kubernetes could not be asked for.
    unchecked: Option<String>,
}

impl Checks {
    pub(super) fn new(now: Instant, limit: Duration) -> Self {
        const ALL: &[Check] = &Check::ALL;
        Self { end: now + limit, current: None, left: ALL.iter(), unchecked: None }
    }

    pub(super) fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let Some((check, since, said)) = &mut self.current else {
            return self.next(now, Vec::new());
        };
        let deadline = self.end.min(*since + check.limit());
        let line = |what: &str| Action::Say(format!("waiting for {check}: {what}"));
        let why = match event {
            Event::Due => return vec![Action::Look(*check, deadline)],
            Event::Looked(Look::Holds) => {
                let done = vec![line("OK")];
                return self.next(now, done);
            }
            Event::Looked(Look::Skipped(why)) => {
                let done = vec![line(&format!("SKIPPED: {why}"))];
                return self.next(now, done);
            }
            Event::Looked(Look::Missing(why)) => {
                let done = vec![line(&format!("NOT CHECKED: {why}"))];
                self.unchecked = Some(why);
                return self.next(now, done);
            }
            Event::Looked(Look::NotYet(why)) => why,
            // What was seen before says more.
            Event::Silent if said != "..." => said.clone(),
            Event::Silent => "no answer".to_owned(),
        };
        let mut actions = Vec::new();
        if why != *said {
            actions.push(line(&why));
            said.clone_from(&why);
        }
        let again = now + LOOK_EVERY;
        actions.push(if again < deadline {
            Action::WakeAt(again)
        } else {
            let after = now.saturating_duration_since(*since);
            Action::End(Err(Unwell::Late { check: *check, after, why }))
        });
        actions
    }

    fn next(&mut self, now: Instant, mut actions: Vec<Action>) -> Vec<Action> {
        // Who cannot ask Kubernetes for one thing cannot for another.
        let asks = |check: &&Check| self.unchecked.is_none() || !check.asks_kubernetes();
        let Some(check) = self.left.find(asks).copied() else {
            let result = self.unchecked.take().map_or(Ok(()), |why| Err(Unwell::Unchecked(why)));
            actions.push(Action::End(result));
            return actions;
        };
        actions.push(Action::Say(format!("waiting for {check}: ...")));
        self.current = Some((check, now, "...".to_owned()));
        actions.push(Action::Look(check, self.end.min(now + check.limit())));
        actions
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Goes through the checks with what `look` sees at a time since the beginning; a look takes no time.
    fn story(limit: Duration, mut look: impl FnMut(Check, Duration) -> Option<Look>) -> String {
        let start = Instant::now();
        let (mut now, mut story) = (start, String::new());
        let mut checks = Checks::new(start, limit);
        let mut event = Event::Due;
        loop {
            let mut actions = checks.handle(now, event);
            let last = actions.pop();
            let at = now.duration_since(start).as_secs();
            for action in actions {
                let Action::Say(line) = action else { panic!("{action:?} is not the last") };
                let _ = writeln!(story, "{at:>4} {line}");
            }
            event = match last {
                Some(Action::Look(check, until)) => match look(check, now.duration_since(start)) {
                    Some(look) => Event::Looked(look),
                    None => {
                        now = until;
                        Event::Silent
                    }
                },
                Some(Action::WakeAt(at)) => {
                    assert!(at > now, "time passes");
                    now = at;
                    Event::Due
                }
                Some(Action::End(Ok(()))) => return story + &format!("{at:>4} OK\n"),
                Some(Action::End(Err(why))) => return story + &format!("{at:>4} {why}\n"),
                last => panic!("{last:?} at the end"),
            };
        }
    }

    const LONG: Duration = Duration::from_secs(20 * 60);

    fn not_yet(why: &str) -> Option<Look> {
        Some(Look::NotYet(why.to_owned()))
    }

    #[test]
    fn the_checks_of_a_healthy_cluster_read_as_the_golden_story() {
        let story = story(LONG, |check, at| match check {
            Check::Etcd if at < 3 * SECOND => not_yet("10.0.0.2: Preparing"),
            Check::Etcd if at < 5 * SECOND => not_yet("10.0.0.2: Running, not healthy"),
            Check::Bootkube => Some(Look::Skipped("its program is not on 10.0.0.2".to_owned())),
            _ => Some(Look::Holds),
        });
        assert_eq!(story, include_str!("../testdata/health.txt"));
    }

    #[test]
    fn each_check_has_the_limit_of_the_specification() {
        let minutes = [5, 5, 2, 5, 5, 5, 10, 5, 3, 3, 2];
        for (check, minutes) in Check::ALL.into_iter().zip(minutes) {
            let ends = |look: fn() -> Option<Look>| {
                let story =
                    story(60 * LONG, |at, _| if at == check { look() } else { Some(Look::Holds) });
                story.lines().last().unwrap_or_default().to_owned()
            };
            // The last look is taken a second before.
            let seconds = minutes * 60 - 1;
            let expected = format!("{seconds:>4} waited {seconds} s for {check}: not yet");
            assert_eq!(ends(|| not_yet("not yet")), expected);
            let seconds = minutes * 60;
            let expected = format!("{seconds:>4} waited {seconds} s for {check}: no answer");
            assert_eq!(ends(|| None), expected);
        }
    }

    #[test]
    fn the_callers_limit_is_for_all_together_and_the_last_reason_is_told() {
        let story = story(90 * SECOND, |check, at| match check {
            Check::Etcd if at < 60 * SECOND => not_yet("a: no leader"),
            Check::Apid if at < 70 * SECOND => not_yet("b: connection refused"),
            Check::Apid => None,
            _ => Some(Look::Holds),
        });
        let last = story.lines().last();
        assert_eq!(last, Some("  90 waited 30 s for apid to be ready: b: connection refused"));
        assert_eq!(story.matches("no leader").count(), 1, "a reason is told once:\n{story}");
    }

    #[test]
    fn without_kubernetes_the_rest_is_checked_at_once_and_it_is_no_success() {
        let story = story(LONG, |check, _| {
            let why = || "no node has its programs".to_owned();
            match check {
                Check::Etcd | Check::Bootkube | Check::Kubelet => Some(Look::Skipped(why())),
                check if check.asks_kubernetes() => Some(Look::Missing(why())),
                _ => Some(Look::Holds),
            }
        });
        assert!(story.lines().all(|line| line.starts_with("   0 ")), "{story}");
        assert!(story.contains("waiting for all nodes to finish boot sequence: OK\n"), "{story}");
        assert_eq!(story.matches("NOT CHECKED").count(), 1, "{story}");
        let last = story.lines().last().unwrap_or_default();
        assert!(
            last.ends_with("Kubernetes could not be checked: no node has its programs"),
            "{last}"
        );
    }
}
