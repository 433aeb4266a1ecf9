//! `reboot` and `shutdown`: a node answers, then goes; with `--wait` we stay until it is back, or gone.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::client::{Answer, Client, machine, told};
use crate::error::Error;
use crate::units::parse_duration;

#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    /// Wait until the nodes have done it: are up again, or gone
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    wait: bool,
    /// With --wait: for how long
    #[arg(long, value_parser = parse_duration, default_value = "30m", value_name = "DURATION")]
    timeout: Duration,
}

/// Between two looks at nodes that are waited for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn reboot(client: &Client, wait: &Wait) -> Result<(), Error> {
    let before = wait.before(client).await?;
    let call = async |node| machine(node).reboot(()).await;
    accepted("reboots", &client.ask("reboot", call).await?);
    wait.until(client, Goal::Back, before).await
}

pub(crate) async fn shutdown(client: &Client, wait: &Wait) -> Result<(), Error> {
    let before = wait.before(client).await?;
    let call = async |node| machine(node).shutdown(()).await;
    accepted("shuts down", &client.ask("shut down", call).await?);
    wait.until(client, Goal::Gone, before).await
}

/// Nothing goes to stdout, as scripts expect; a person sees which nodes took it.
fn accepted<M>(does: &str, answers: &[Answer<M>]) {
    for Answer { node, .. } in answers {
        say!("{node} {does}");
    }
}

/// What nodes are waited for to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Go, come back, and have all services up.
    Back,
    /// Go.
    Gone,
}

/// How far a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Going,
    Gone,
    Booting,
    Done,
}

/// What is seen of a node at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Silent,
    /// It answers; it has been up since `boot_time`, in seconds of its clock.
    Up {
        boot_time: u64,
        ready: bool,
    },
}

/// A clock that is set moves the boot by a little; a boot takes longer than this, in seconds.
const SAME_BOOT: u64 = 2;

impl Stage {
    /// What comes after a look at a node that had been up since `before`.
    fn next(self, goal: Goal, before: u64, look: Look) -> Self {
        let again = |boot_time: u64| boot_time.abs_diff(before) > SAME_BOOT;
        match (self, goal, look) {
            (Self::Done, ..) => Self::Done,
            (_, Goal::Gone, Look::Silent) => Self::Done,
            (Self::Going, Goal::Gone, Look::Up { .. }) => Self::Going,
            (_, Goal::Gone, Look::Up { .. }) => self,
            (Self::Booting, Goal::Back, Look::Silent) => Self::Booting,
            (_, Goal::Back, Look::Silent) => Self::Gone,
            (Self::Booting, Goal::Back, Look::Up { ready, .. }) => Self::up(ready),
            (_, Goal::Back, Look::Up { boot_time, ready }) if again(boot_time) => Self::up(ready),
            (_, Goal::Back, Look::Up { .. }) => self,
        }
    }

    fn up(ready: bool) -> Self {
        if ready { Self::Done } else { Self::Booting }
    }

    fn said(self, goal: Goal) -> &'static str {
        match (self, goal) {
            (Self::Going, _) => "is going down",
            (Self::Gone, _) | (Self::Done, Goal::Gone) => "is gone",
            (Self::Booting, _) => "boots",
            (Self::Done, Goal::Back) => "is back: all services are up",
        }
    }
}

impl Wait {
    /// Since when each node has been up; nothing when it is not waited.
    ///
    /// # Errors
    /// When a node does not say: it could not be waited for.
    pub(crate) async fn before(&self, client: &Client) -> Result<BTreeMap<String, u64>, Error> {
        if !self.wait {
            return Ok(BTreeMap::new());
        }
        let call = async |node| machine(node).system_stat(()).await;
        let (answers, failures) = client.gather("read the time of the boot", call).await?;
        if !failures.is_empty() {
            let what = "read the time of the boot, to know the next one".to_owned();
            return Err(Error::Failed { what, failures });
        }
        Ok(answers.into_iter().map(|answer| (answer.node, answer.message.boot_time)).collect())
    }

    /// Waits until all nodes of `before` have reached the goal, and says on stderr how far each is.
    pub(crate) async fn until(
        &self,
        client: &Client,
        goal: Goal,
        before: BTreeMap<String, u64>,
    ) -> Result<(), Error> {
        let client = client.silent();
        let deadline = Instant::now() + self.timeout;
        let mut stages: BTreeMap<_, _> =
            before.keys().map(|node| (node.clone(), Stage::Going)).collect();
        while stages.values().any(|stage| *stage != Stage::Done) {
            if Instant::now() >= deadline {
                let behind = stages.iter().filter(|(_, stage)| **stage != Stage::Done);
                let said = behind.map(|(node, stage)| format!("{node} {}", stage.said(goal)));
                let why = said.collect::<Vec<_>>().join("; ");
                return Err(Error::NotBack { after: self.timeout, why });
            }
            sleep(LOOK_EVERY).await;
            let looks = look(&client).await;
            for (node, stage) in &mut stages {
                let seen = looks.get(node).copied().unwrap_or(Look::Silent);
                let next = stage.next(goal, before[node], seen);
                if next != *stage {
                    say!("{node} {}", next.said(goal));
                    *stage = next;
                }
            }
        }
        Ok(())
    }
}

/// What can be seen of each node; who is not there is silent.
async fn look(client: &Client) -> BTreeMap<String, Look> {
    let call = async |node| machine(node).system_stat(()).await;
    let Ok((up, _)) = client.gather("look", call).await else { return BTreeMap::new() };
    let call = async |node| told(node).timeline(()).await;
    let ready = client.gather("look", call).await.map_or(Vec::new(), |(answers, _)| answers);
    let is_ready =
        |node: &str| ready.iter().any(|answer| answer.node == node && answer.message.ready_ns > 0);
    let seen = |answer: Answer<orlop_proto::machine::SystemStat>| {
        let ready = is_ready(&answer.node);
        (answer.node, Look::Up { boot_time: answer.message.boot_time, ready })
    };
    up.into_iter().map(seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn up(boot_time: u64, ready: bool) -> Look {
        Look::Up { boot_time, ready }
    }

    fn stages(goal: Goal, looks: &[Look]) -> Vec<Stage> {
        let mut stage = Stage::Going;
        let next = |look: &Look| {
            stage = stage.next(goal, 1000, *look);
            stage
        };
        looks.iter().map(next).collect()
    }

    #[test]
    fn a_node_is_back_once_it_booted_again_and_is_ready() {
        use Stage::{Booting, Done, Going, Gone};

        let looks = [up(1000, true), Look::Silent, Look::Silent, up(1050, false), up(1050, true)];
        assert_eq!(stages(Goal::Back, &looks), [Going, Gone, Gone, Booting, Done]);
        // It was faster than we looked, its clock is set while it boots, its services stumble.
        let looks = [up(1001, true), up(1030, false), up(999, false), Look::Silent, up(998, true)];
        assert_eq!(stages(Goal::Back, &looks), [Going, Booting, Booting, Booting, Done]);
        // A connection that broke is no reboot.
        let looks = [Look::Silent, up(1000, true), up(1000, true)];
        assert_eq!(stages(Goal::Back, &looks), [Gone, Gone, Gone]);
    }

    #[test]
    fn a_node_is_gone_once_it_is_silent() {
        use Stage::{Done, Going};

        let looks = [up(1000, true), Look::Silent, up(1000, true)];
        assert_eq!(stages(Goal::Gone, &looks), [Going, Done, Done]);
    }
}
