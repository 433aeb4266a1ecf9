//! Applying a configuration to a node: what each mode asks for, what can be had at once, and what waits
//! for the next boot (spec §5.5, ApplyConfiguration).

use std::time::{Duration, SystemTime};

use orlop_config::machine::{Machine, MachineConfig};
use tokio::time::sleep;
use tracing::{error, info};

use crate::config::{self, Refusal};
use crate::document::Document;
use crate::node::{Ending, Node};
use crate::plan::APPLY_CONFIGURATION;
use crate::power::End;
use crate::{Error, services, user, volumes};

/// When a configuration becomes the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// At once, all of it: it is kept, and the node reboots.
    Reboot,
    /// At once, as much of it as needs no reboot; the rest at the next.
    Live,
    /// At the next boot.
    Staged,
    /// At once, and only for so long: then the old one is back. Nothing is kept.
    Try(Duration),
}

/// Why a configuration is not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("another apply configuration is already in progress")]
    Busy,
    #[error("{0}")]
    Wrong(String),
    #[error(
        "this node keeps nothing over a reboot, because no volume is labelled {}: apply with \
         --mode no-reboot, or change what talos.config names",
        volumes::STATE
    )]
    Forgetful,
    #[error("a node in maintenance takes its configuration at once: apply without --no-reboot")]
    OnlyAtOnce,
    #[error(transparent)]
    Failed(#[from] Error),
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) warnings: Vec<String>,
    /// For a person to read.
    pub(crate) details: String,
}

/// Applies `bytes`; with `dry_run`, only says what that would do.
pub(crate) async fn apply(
    node: &Node,
    bytes: &[u8],
    mode: Mode,
    dry_run: bool,
) -> Result<Outcome, Problem> {
    let _turn = node.applying().ok_or(Problem::Busy)?;
    let new = match config::check(node, bytes).await {
        Ok(new) => new,
        Err(Refusal::Wrong(problems)) => return Err(Problem::Wrong(problems)),
        Err(Refusal::Failed(error)) => return Err(error.into()),
    };
    if node.in_maintenance() {
        let details = match mode {
            Mode::Staged | Mode::Try(_) => return Err(Problem::OnlyAtOnce),
            Mode::Reboot | Mode::Live if dry_run => "the node would be configured",
            Mode::Reboot | Mode::Live => {
                if !node.offer(new) {
                    return Err(Problem::Busy);
                }
                "the node is being configured"
            }
        };
        return Ok(Outcome { details: details.to_owned(), ..Outcome::default() });
    }
    let doubts = new.config().warnings(SystemTime::now());
    let old = node.document()?;
    let changes = Changes::between(&old.config(), &new.config());
    let keeps = volumes::keep_state()?;
    if !keeps && matches!(mode, Mode::Reboot | Mode::Staged) {
        return Err(Problem::Forgetful);
    }
    let mut outcome = changes.told(mode, keeps, dry_run);
    outcome.warnings.extend(doubts);
    if dry_run {
        outcome.details = format!("{}\n{}", outcome.details, old.config().diff(&new.config()));
        return Ok(outcome);
    }
    match mode {
        Mode::Reboot => {
            node.set_document(new);
            node.request_end(Ending { sequence: &APPLY_CONFIGURATION, end: End::Reboot });
        }
        Mode::Staged => config::keep(&new)?,
        Mode::Live => {
            config::keep(&new)?;
            go_by(node, new, &changes).await?;
        }
        Mode::Try(limit) => {
            let old = Document::clone(&old);
            go_by(node, new, &changes).await?;
            revert_later(node, old, limit)?;
        }
    }
    info!(?mode, "a new machine configuration was applied");
    Ok(outcome)
}

/// Makes `new` what the node goes by, with what that changes at once.
async fn go_by(node: &Node, new: Document, changes: &Changes) -> Result<(), Error> {
    let config = new.config();
    node.set_document(new);
    if changes.sysctls {
        user::write_sysctls(&config.machine.sysctls);
    }
    if changes.sysfs {
        user::write_sysfs(&config.machine.sysfs);
    }
    if changes.network {
        services::apply_network(node, &config.machine.network).await?;
    }
    if changes.time {
        services::apply_time(node, &config.machine.time).await?;
    }
    Ok(())
}

/// Goes back to `old` after `limit`, unless another configuration was applied meanwhile.
fn revert_later(node: &Node, old: Document, limit: Duration) -> Result<(), Error> {
    let tried = node.document()?;
    let reverting = node.clone();
    node.spawn(async move {
        sleep(limit).await;
        let result = async {
            let now = reverting.document()?;
            if !std::sync::Arc::ptr_eq(&now, &tried) {
                return Ok(());
            }
            info!("the configuration that was tried is taken back");
            let changes = Changes::between(&now.config(), &old.config());
            go_by(&reverting, old, &changes).await
        };
        if let Err(error) = result.await {
            error!(error = %orlop_rt::Chain(&error), "go back to the former configuration");
        }
    });
    Ok(())
}

/// Where two configurations differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Changes {
    network: bool,
    time: bool,
    sysctls: bool,
    sysfs: bool,
    /// Keys whose new values hold at once: these, what the keeper of certificates follows, and what
    /// the keeping of logs goes by.
    live: Vec<&'static str>,
    /// Keys whose new values need a boot.
    later: Vec<&'static str>,
}

impl Changes {
    fn between(old: &MachineConfig, new: &MachineConfig) -> Self {
        let b = &new.machine;
        // All of them: a key that is added must be put into one of the two lists.
        let Machine {
            kind,
            token,
            ca,
            accepted_cas,
            cert_sans,
            kubelet,
            network,
            disks,
            install,
            files,
            env,
            time,
            sysctls,
            sysfs,
            registries,
            kernel,
            udev,
            logging,
            logs,
            node_labels,
            features,
            trustd,
        } = &old.machine;
        let (network, sysctls) = (*network != b.network, *sysctls != b.sysctls);
        let (sysfs, time) = (*sysfs != b.sysfs, *time != b.time);
        let live = [
            ("machine.network", network),
            ("machine.time", time),
            ("machine.sysctls", sysctls),
            ("machine.sysfs", sysfs),
            ("debug", old.debug != new.debug),
            ("machine.token", *token != b.token),
            ("machine.ca", *ca != b.ca),
            ("machine.acceptedCAs", *accepted_cas != b.accepted_cas),
            ("machine.certSANs", *cert_sans != b.cert_sans),
            ("machine.logging", *logging != b.logging),
            ("machine.logs", *logs != b.logs),
        ];
        let later = [
            ("persist", old.persist != new.persist),
            ("machine.type", *kind != b.kind),
            ("machine.kubelet", *kubelet != b.kubelet),
            ("machine.disks", *disks != b.disks),
            ("machine.install", *install != b.install),
            ("machine.files", *files != b.files),
            ("machine.env", *env != b.env),
            ("machine.registries", *registries != b.registries),
            ("machine.kernel", *kernel != b.kernel),
            ("machine.udev", *udev != b.udev),
            ("machine.nodeLabels", *node_labels != b.node_labels),
            ("machine.features", *features != b.features),
            ("machine.trustd", *trustd != b.trustd),
            ("cluster", old.cluster != new.cluster),
        ];
        let keys = |all: &[(&'static str, bool)]| {
            all.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect()
        };
        Self { network, time, sysctls, sysfs, live: keys(&live), later: keys(&later) }
    }

    /// In words.
    fn told(&self, mode: Mode, keeps: bool, dry_run: bool) -> Outcome {
        let all = [self.live.as_slice(), &self.later].concat();
        let mut warnings = Vec::new();
        if matches!(mode, Mode::Live | Mode::Try(_)) && !self.later.is_empty() {
            warnings.push(format!("not before the next boot: {}", self.later.join(", ")));
        }
        if mode == Mode::Live && !keeps {
            warnings.push(format!(
                "no volume is labelled {}: the configuration is lost with the next boot",
                volumes::STATE
            ));
        }
        let would = if dry_run { "would change" } else { "changed" };
        let when = match mode {
            Mode::Reboot => "; the node reboots".to_owned(),
            Mode::Staged => " with the next boot".to_owned(),
            Mode::Live => String::new(),
            Mode::Try(limit) => format!(", and back in {} s", limit.as_secs()),
        };
        let details = match all.as_slice() {
            [] => "nothing differs".to_owned(),
            keys => format!("{would}: {}{when}", keys.join(", ")),
        };
        Outcome { warnings, details }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_at_once_and_what_later() {
        let old = MachineConfig::default();
        let mut new = old.clone();
        assert_eq!(Changes::between(&old, &new), Changes::default());
        new.machine.sysctls.insert("a.b".to_owned(), "1".to_owned());
        new.machine.env.insert("A".to_owned(), "1".to_owned());
        let changes = Changes::between(&old, &new);
        assert!(changes.sysctls && !changes.network);
        assert_eq!(changes.live, ["machine.sysctls"]);
        assert_eq!(changes.later, ["machine.env"]);
        let mut timely = old.clone();
        timely.machine.time.servers.push("ntp.example.org".to_owned());
        let timely = Changes::between(&old, &timely);
        assert!(timely.time && timely.live == ["machine.time"] && timely.later.is_empty());
        let told = changes.told(Mode::Live, false, false);
        assert_eq!(told.details, "changed: machine.sysctls, machine.env");
        assert_eq!(told.warnings.len(), 2, "{told:?}");
        let told = changes.told(Mode::Reboot, true, true);
        assert_eq!(told.details, "would change: machine.sysctls, machine.env; the node reboots");
        assert_eq!(told.warnings.len(), 0);
    }
}
