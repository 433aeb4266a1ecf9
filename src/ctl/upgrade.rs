//! `upgrade` and `rollback`: another release on a node's disk, and the way back.

use orlop_proto::machine::upgrade_request::RebootMode;
use orlop_proto::machine::{RollbackRequest, UpgradeRequest};

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::table::{Cell, Column, Output, Table};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The image that installs the release: HOST/NAME:TAG
    #[arg(short, long, value_name = "REFERENCE")]
    image: String,
    /// Keep what the node holds: its member of etcd does not leave
    #[arg(short, long)]
    preserve: bool,
    /// Only keep the image; the node installs it when it boots
    #[arg(short, long)]
    stage: bool,
    /// Do not look whether etcd survives it
    #[arg(long)]
    force: bool,
    /// How the node reboots
    #[arg(long, value_enum, default_value_t)]
    reboot_mode: Mode,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// As fast as it can
    #[default]
    Default,
    /// Through the firmware
    Powercycle,
}

pub(crate) async fn upgrade(client: &Client, options: &Options) -> Result<(), Error> {
    let mode = match options.reboot_mode {
        Mode::Default => RebootMode::Default,
        Mode::Powercycle => RebootMode::Powercycle,
    };
    let request = UpgradeRequest {
        image: options.image.clone(),
        preserve: options.preserve,
        stage: options.stage,
        force: options.force,
        reboot_mode: mode.into(),
    };
    // Nodes look whether they can, and leave etcd, before they answer.
    let call = async |node| machine(node).upgrade(request.clone()).await;
    let answers = client.ask_patiently("upgrade", call).await?;
    let mut table = Table::new(COLUMNS);
    for Answer { node, message } in &answers {
        // The time it was asked is the client's.
        table.push([Cell::text(node), Cell::text(&message.ack), Cell::text(&now())]);
    }
    table.print(options.output)
}

const COLUMNS: &[Column] = &[("NODE", "node"), ("ACK", "ack"), ("STARTED", "started")];

fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    let (hour, minute, second) = now.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", now.date())
}

pub(crate) async fn rollback(client: &Client) -> Result<(), Error> {
    let call = async |node| machine(node).rollback(RollbackRequest {}).await;
    for Answer { node, .. } in client.ask_patiently("roll back", call).await? {
        say!("{node} goes back to its other release, and reboots");
    }
    Ok(())
}
