//! `disks`: the disks of a node.

use orlop_proto::storage::disk::DiskType;
use orlop_proto::storage::{Disk, Disks};

use crate::client::{Answer, Client, storage};
use crate::error::Error;
use crate::stranger::Stranger;
use crate::table::{Cell, Column, Output, Table};
use crate::units::si;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) stranger: Stranger,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    let call = async |node| storage(node).disks(()).await;
    let answers = client.ask("list disks", call).await?;
    table(&answers).print(options.output)
}

const COLUMNS: &[Column] = &[
    ("NODE", "node"),
    ("DEV", "device"),
    ("MODEL", "model"),
    ("SERIAL", "serial"),
    ("TYPE", "type"),
    ("UUID", "uuid"),
    ("WWID", "wwid"),
    ("MODALIAS", "modalias"),
    ("NAME", "name"),
    ("SIZE", "size_bytes"),
    ("BUS_PATH", "bus_path"),
    ("SUBSYSTEM", "subsystem"),
    ("SYSTEM_DISK", "system_disk"),
];

fn table(answers: &[Answer<Disks>]) -> Table {
    let mut table = Table::new(COLUMNS);
    for Answer { node, message } in answers {
        for disk in &message.disks {
            table.push(row(node, disk));
        }
    }
    table
}

fn row(node: &str, disk: &Disk) -> [Cell; 13] {
    // A column that is empty would be lost to whoever counts them.
    let known = |text: &str| if text.is_empty() { Cell::shown("-", "") } else { Cell::text(text) };
    let system = if disk.system_disk { "*" } else { "" };
    [
        Cell::text(node),
        Cell::text(&disk.device_name),
        known(&disk.model),
        known(&disk.serial),
        Cell::text(match disk.r#type() {
            DiskType::Unknown => "UNKNOWN",
            DiskType::Ssd => "SSD",
            DiskType::Hdd => "HDD",
            DiskType::Nvme => "NVME",
            DiskType::Sd => "SD",
            DiskType::Cd => "CD",
        }),
        known(&disk.uuid),
        known(&disk.wwid),
        known(&disk.modalias),
        known(&disk.name),
        Cell::shown(si(disk.size), disk.size),
        known(&disk.bus_path),
        known(&disk.subsystem),
        Cell::shown(system, disk.system_disk),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use crate::table::Format;

    #[test]
    fn what_a_disk_does_not_tell_is_a_dash() {
        let disk = Disk {
            size: 10_737_418_240,
            model: "QEMU HARDDISK".to_owned(),
            device_name: "/dev/sda".to_owned(),
            serial: "QM00005".to_owned(),
            modalias: "scsi:t-0x00".to_owned(),
            wwid: "t10.ATA QM00005".to_owned(),
            r#type: DiskType::Hdd.into(),
            bus_path: "/pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0".to_owned(),
            subsystem: "/sys/class/block".to_owned(),
            system_disk: true,
            ..Disk::default()
        };
        // A node of v0.8 tells no more.
        let bare = Disk { size: 512, device_name: "/dev/vda".to_owned(), ..Disk::default() };
        let message = Disks { metadata: None, disks: vec![disk, bare] };
        let answers = [Answer { node: "10.0.0.2".to_owned(), message }];
        golden::check("disks.txt", &table(&answers).render(Format::Table));
    }
}
