//! `wipe`: clears disks and partitions that a node does not use.

use orlop_proto::storage::block_device_wipe_descriptor::Method as ProtoMethod;
use orlop_proto::storage::{BlockDeviceWipeDescriptor, BlockDeviceWipeRequest};

use crate::client::{Answer, Client, storage};
use crate::error::Error;
use crate::stranger::Stranger;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Clear disks or partitions: what was on them is lost
    #[command(visible_alias = "disks")]
    Disk(DiskOptions),
}

#[derive(Debug, clap::Args)]
pub(crate) struct DiskOptions {
    /// As `orlopctl disks` lists them, or their partitions: sda, sda1
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<String>,
    /// How thoroughly
    #[arg(long, value_enum, ignore_case = true, default_value_t)]
    method: Method,
    /// Take partitions out of their table, too
    #[arg(long)]
    drop_partition: bool,
    /// Even what the node keeps its own things on
    #[arg(long)]
    skip_volume_check: bool,
    /// Even what an array or a volume group is made of
    #[arg(long)]
    skip_secondary_check: bool,
    #[command(flatten)]
    stranger: Stranger,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Method {
    /// What tells what is on it: the rest can be found again
    #[default]
    Fast,
    /// Zeros everywhere
    Zeroes,
}

impl Command {
    pub(crate) fn stranger(&self) -> &Stranger {
        let Self::Disk(options) = self;
        &options.stranger
    }
}

pub(crate) async fn run(client: &Client, Command::Disk(options): &Command) -> Result<(), Error> {
    client.one_node("wipe")?;
    let request = request(options);
    // Zeroing takes as long as the disk is large.
    let call = async |node| storage(node).block_device_wipe(request.clone()).await;
    for Answer { node, .. } in client.ask_patiently("wipe", call).await? {
        say!("{node} has wiped {}", options.devices.join(" "));
    }
    Ok(())
}

fn request(options: &DiskOptions) -> BlockDeviceWipeRequest {
    let method = match options.method {
        Method::Fast => ProtoMethod::Fast,
        Method::Zeroes => ProtoMethod::Zeroes,
    };
    let descriptor = |device: &String| BlockDeviceWipeDescriptor {
        device: device.strip_prefix("/dev/").unwrap_or(device).to_owned(),
        method: method.into(),
        skip_volume_check: options.skip_volume_check,
        drop_partition: options.drop_partition,
        skip_secondary_check: options.skip_secondary_check,
    };
    BlockDeviceWipeRequest { devices: options.devices.iter().map(descriptor).collect() }
}
