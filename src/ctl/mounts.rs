//! `mounts`: the file systems of a node and how full they are.

use orlop_proto::machine::Mounts;

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::table::{Cell, Column, Output, Table};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    let call = async |node| machine(node).mounts(()).await;
    let answers = client.ask("list mounts", call).await?;
    table(&answers).print(options.output)
}

const COLUMNS: &[Column] = &[
    ("NODE", "node"),
    ("FILESYSTEM", "filesystem"),
    ("SIZE(GB)", "size_bytes"),
    ("USED(GB)", "used_bytes"),
    ("AVAILABLE(GB)", "available_bytes"),
    ("PERCENT USED", "percent_used"),
    ("MOUNTED ON", "mounted_on"),
];

/// Pseudo file systems, whose size is 0, are left out.
pub(crate) fn table(answers: &[Answer<Mounts>]) -> Table {
    let mut table = Table::new(COLUMNS);
    for Answer { node, message } in answers {
        for mount in message.stats.iter().filter(|mount| mount.size > 0) {
            let used = mount.size.saturating_sub(mount.available);
            let percent = approximate(used) / approximate(mount.size) * 100.0;
            table.push([
                Cell::text(node),
                Cell::text(&mount.filesystem),
                gigabytes(mount.size),
                gigabytes(used),
                gigabytes(mount.available),
                Cell::shown(format!("{percent:.2}%"), percent),
                Cell::text(&mount.mounted_on),
            ]);
        }
    }
    table
}

fn gigabytes(bytes: u64) -> Cell {
    Cell::shown(format!("{:.2}", approximate(bytes) / 1e9), bytes)
}

#[expect(clippy::cast_precision_loss, reason = "two decimals are shown of 15 that are exact")]
fn approximate(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use orlop_proto::machine::MountStat;

    use super::*;
    use crate::golden;
    use crate::table::Format;

    #[test]
    fn mounts_are_in_gb_and_empty_ones_are_hidden() {
        let mount = |filesystem: &str, size, available, mounted_on: &str| MountStat {
            filesystem: filesystem.to_owned(),
            size,
            available,
            mounted_on: mounted_on.to_owned(),
        };
        let stats = vec![
            mount("/dev/loop0", 41_943_040, 0, "/"),
            mount("proc", 0, 0, "/proc"),
            mount("tmpfs", 1_041_000_000, 1_040_000_000, "/run"),
        ];
        let answers =
            [Answer { node: "10.0.0.2".to_owned(), message: Mounts { metadata: None, stats } }];
        golden::check("mounts.txt", &table(&answers).render(Format::Table));
    }
}
