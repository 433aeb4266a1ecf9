//! `apply-config` and `reset`: what makes a machine a node, and a node a machine again.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use orlop_proto::machine::apply_configuration_request::Mode as ProtoMode;
use orlop_proto::machine::reset_request::WipeMode as ProtoWipeMode;
use orlop_proto::machine::{ApplyConfigurationRequest, ResetPartitionSpec, ResetRequest};

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::patch;
use crate::power::{Goal, Wait};
use crate::stranger::Stranger;

/// When the configuration becomes the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// At once, as much of it as needs no reboot
    Auto,
    /// The same
    NoReboot,
    /// It is kept, and the node reboots
    Reboot,
    /// It is kept for the next boot
    Staged,
    /// At once, and taken back after --timeout
    Try,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ApplyOptions {
    /// The machine configuration
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// A part to lay over it or a JSON patch, as text or @FILE; may be repeated
    #[arg(short = 'p', long = "config-patch", value_name = "PATCH")]
    patches: Vec<String>,
    #[command(flatten)]
    pub(crate) stranger: Stranger,
    /// When it becomes the node's
    #[arg(short, long, value_enum, default_value = "auto")]
    mode: Mode,
    /// Keep it for the next boot, and nothing else (the same as --mode staged)
    #[arg(long, conflicts_with = "mode")]
    no_reboot: bool,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// With --mode try: seconds until the old configuration is back
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u32,
}

/// Applies a configuration to nodes that know us.
pub(crate) async fn apply(client: &Client, options: &ApplyOptions) -> Result<(), Error> {
    let request = request(options)?;
    let call = async |node| machine(node).apply_configuration(request.clone()).await;
    for Answer { node, message } in client.ask("apply the configuration", call).await? {
        message.warnings.iter().for_each(|warning| say!(warning: "{node}: {warning}"));
        say!("{node}: {}", message.mode_details);
    }
    Ok(())
}

fn request(options: &ApplyOptions) -> Result<ApplyConfigurationRequest, Error> {
    let path = &options.file;
    let failed = |source| Error::Read { path: path.clone(), source };
    let mut data = fs::read(path).map_err(failed)?;
    if !options.patches.is_empty() {
        let text = String::from_utf8(data).map_err(|error| failed(io::Error::other(error)))?;
        data = patch::apply(&path.display().to_string(), &text, &options.patches)?.into_bytes();
    }
    let mode = match options.mode {
        _ if options.no_reboot => ProtoMode::Staged,
        Mode::Auto => ProtoMode::Auto,
        Mode::NoReboot => ProtoMode::NoReboot,
        Mode::Reboot => ProtoMode::Reboot,
        Mode::Staged => ProtoMode::Staged,
        Mode::Try => ProtoMode::Try,
    };
    let limit = Duration::from_secs(options.timeout.into());
    let limit = (mode == ProtoMode::Try).then(|| limit.try_into().ok()).flatten();
    Ok(ApplyConfigurationRequest {
        data,
        no_reboot: options.no_reboot,
        mode: mode.into(),
        dry_run: options.dry_run,
        try_mode_timeout: limit,
    })
}

/// What a reset takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WipeMode {
    /// What the node keeps, and the disks that are named
    All,
    /// What the node keeps
    SystemDisk,
    /// The disks that are named
    UserDisks,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ResetOptions {
    /// Leave the cluster in order first
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true", require_equals = true)]
    graceful: bool,
    /// Reboot when it is done; else the node is switched off
    #[arg(long)]
    reboot: bool,
    /// Wipe only these: STATE, EPHEMERAL, …; else all that the node keeps
    #[arg(long, value_delimiter = ',', value_name = "LABEL")]
    system_labels_to_wipe: Vec<String>,
    /// Further disks to wipe
    #[arg(long, value_delimiter = ',', value_name = "DISK")]
    user_disks_to_wipe: Vec<String>,
    /// What of the machine is wiped
    #[arg(long, value_enum, default_value = "all")]
    wipe_mode: WipeMode,
    #[command(flatten)]
    wait: Wait,
}

pub(crate) async fn reset(client: &Client, options: &ResetOptions) -> Result<(), Error> {
    let labels = options.system_labels_to_wipe.iter();
    let mode = match options.wipe_mode {
        WipeMode::All => ProtoWipeMode::All,
        WipeMode::SystemDisk => ProtoWipeMode::SystemDisk,
        WipeMode::UserDisks => ProtoWipeMode::UserDisks,
    };
    let request = ResetRequest {
        graceful: options.graceful,
        reboot: options.reboot,
        system_partitions_to_wipe: labels
            .map(|label| ResetPartitionSpec { label: label.clone(), wipe: true })
            .collect(),
        user_disks_to_wipe: options.user_disks_to_wipe.clone(),
        mode: mode.into(),
    };
    let before = options.wait.before(client).await?;
    let call = async |node| machine(node).reset(request.clone()).await;
    for Answer { node, .. } in client.ask("reset", call).await? {
        say!("{node} is reset");
    }
    // Whoever comes back does not know us any more.
    options.wait.until(client, Goal::Gone, before).await
}
