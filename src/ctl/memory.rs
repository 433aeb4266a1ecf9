//! `memory`: what a node's memory is used for.

use std::fmt::Write as _;

use orlop_proto::machine::{MemInfo, Memory};

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::table::{Cell, Column, Output, Table, escape, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Print every line of /proc/meminfo
    #[arg(short, long, conflicts_with = "format")]
    verbose: bool,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    let call = async |node| machine(node).memory(()).await;
    let answers = client.ask("read memory", call).await?;
    if options.verbose {
        return print(verbose(&answers).as_bytes());
    }
    table(&answers).print(options.output)
}

const COLUMNS: &[Column] = &[
    ("NODE", "node"),
    ("TOTAL", "total_bytes"),
    ("USED", "used_bytes"),
    ("FREE", "free_bytes"),
    ("SHARED", "shared_bytes"),
    ("BUFFERS", "buffers_bytes"),
    ("CACHE", "cache_bytes"),
    ("AVAILABLE", "available_bytes"),
];

fn table(answers: &[Answer<Memory>]) -> Table {
    let mut table = Table::new(COLUMNS);
    for Answer { node, message } in answers {
        let info = message.meminfo.unwrap_or_default();
        let kept = info.memfree.saturating_add(info.cached).saturating_add(info.buffers);
        let mib = |kib: u64| Cell::shown((kib / 1024).to_string(), kib.saturating_mul(1024));
        table.push([
            Cell::text(node),
            mib(info.memtotal),
            mib(info.memtotal.saturating_sub(kept)),
            mib(info.memfree),
            mib(info.shmem),
            mib(info.buffers),
            mib(info.cached),
            mib(info.memavailable),
        ]);
    }
    table
}

/// Every field under the name and in the unit the kernel gives it.
pub(crate) fn verbose(answers: &[Answer<Memory>]) -> String {
    let mut text = String::new();
    for Answer { node, message } in answers {
        let info = message.meminfo.unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(text, "NODE: {}", escape(node));
        for (key, value) in lines(&info) {
            let unit = if key.starts_with("HugePages") { "" } else { " kB" };
            let _ = writeln!(text, "{key}: {value}{unit}");
        }
    }
    text
}

fn lines(info: &MemInfo) -> [(&'static str, u64); 48] {
    [
        ("MemTotal", info.memtotal),
        ("MemFree", info.memfree),
        ("MemAvailable", info.memavailable),
        ("Buffers", info.buffers),
        ("Cached", info.cached),
        ("SwapCached", info.swapcached),
        ("Active", info.active),
        ("Inactive", info.inactive),
        ("ActiveAnon", info.activeanon),
        ("InactiveAnon", info.inactiveanon),
        ("ActiveFile", info.activefile),
        ("InactiveFile", info.inactivefile),
        ("Unevictable", info.unevictable),
        ("Mlocked", info.mlocked),
        ("SwapTotal", info.swaptotal),
        ("SwapFree", info.swapfree),
        ("Dirty", info.dirty),
        ("Writeback", info.writeback),
        ("AnonPages", info.anonpages),
        ("Mapped", info.mapped),
        ("Shmem", info.shmem),
        ("Slab", info.slab),
        ("SReclaimable", info.sreclaimable),
        ("SUnreclaim", info.sunreclaim),
        ("KernelStack", info.kernelstack),
        ("PageTables", info.pagetables),
        ("NFSUnstable", info.nfsunstable),
        ("Bounce", info.bounce),
        ("WritebackTmp", info.writebacktmp),
        ("CommitLimit", info.commitlimit),
        ("CommittedAS", info.committedas),
        ("VmallocTotal", info.vmalloctotal),
        ("VmallocUsed", info.vmallocused),
        ("VmallocChunk", info.vmallocchunk),
        ("HardwareCorrupted", info.hardwarecorrupted),
        ("AnonHugePages", info.anonhugepages),
        ("ShmemHugePages", info.shmemhugepages),
        ("ShmemPmdMapped", info.shmempmdmapped),
        ("CmaTotal", info.cmatotal),
        ("CmaFree", info.cmafree),
        ("HugePagesTotal", info.hugepagestotal),
        ("HugePagesFree", info.hugepagesfree),
        ("HugePagesRsvd", info.hugepagesrsvd),
        ("HugePagesSurp", info.hugepagessurp),
        ("Hugepagesize", info.hugepagesize),
        ("DirectMap4k", info.directmap4k),
        ("DirectMap2M", info.directmap2m),
        ("DirectMap1G", info.directmap1g),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use crate::table::Format;

    fn answers() -> [Answer<Memory>; 2] {
        let info = MemInfo {
            memtotal: 2_033_764,
            memfree: 1_650_000,
            memavailable: 1_800_123,
            buffers: 2_048,
            cached: 210_000,
            shmem: 1_023,
            hugepagestotal: 3,
            ..MemInfo::default()
        };
        [
            Answer {
                node: "10.0.0.2".to_owned(),
                message: Memory { metadata: None, meminfo: Some(info) },
            },
            Answer { node: "fd00::3".to_owned(), message: Memory::default() },
        ]
    }

    #[test]
    fn memory_is_a_table_in_mib() {
        golden::check("memory.txt", &table(&answers()).render(Format::Table));
    }

    #[test]
    fn memory_for_programs_is_in_bytes() {
        golden::check("memory.json", &table(&answers()).render(Format::Json));
    }

    #[test]
    fn verbose_memory_is_every_line_of_meminfo() {
        let text = verbose(&answers()[..1]);
        golden::check("memory-verbose.txt", &text);
    }
}
