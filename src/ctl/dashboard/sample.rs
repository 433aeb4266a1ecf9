//! What a node said about itself, and what two such answers say about the time between them. Pure.

use std::time::Duration;

use orlop_proto::machine::{
    CpuStat, DiskStat, LoadAvg, MemInfo, NetDev, ProcessInfo, ServiceInfo, SystemStat,
};

/// Bytes in a sector of /proc/diskstats, whatever the disk's own is
/// (Documentation/admin-guide/iostats.rst).
const SECTOR: u64 = 512;

/// The answer to one question.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Version(String),
    Load(LoadAvg),
    Memory(Box<MemInfo>),
    Stat(Box<SystemStat>),
    Network(Vec<NetDev>),
    Disks(Vec<DiskStat>),
    Processes(Vec<ProcessInfo>),
    Services(Vec<ServiceInfo>),
}

/// How the processors spent the time between two answers, as parts of 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
    pub(crate) iowait: f64,
    pub(crate) steal: f64,
}

impl Cpu {
    /// All that was not idle; waiting for a disk is idle.
    pub(crate) fn busy(self) -> f64 {
        self.user + self.system + self.steal
    }

    /// `None` when a counter went back (the node booted again) or no time has passed.
    pub(crate) fn between(before: &CpuStat, after: &CpuStat) -> Option<Self> {
        // guest is part of user, guest_nice of nice (proc_stat(5)).
        let parts = |stat: &CpuStat| {
            let system = stat.system + stat.irq + stat.soft_irq;
            [stat.user + stat.nice, system, stat.iowait, stat.steal, stat.idle]
        };
        let (before, after) = (parts(before), parts(after));
        // The kernel lets iowait and idle go back by a little now and then.
        let spent: [f64; 5] = std::array::from_fn(|i| after[i] - before[i]);
        let total: f64 = spent.iter().sum();
        if spent[..2].iter().any(|&spent| spent < 0.0) || !total.is_finite() || total <= 0.0 {
            return None;
        }
        let [user, system, iowait, steal, _] = spent.map(|spent| (spent / total).clamp(0.0, 1.0));
        Some(Self { user, system, iowait, steal })
    }
}

/// Bytes a second in both directions of one device: received and sent, or read and written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rate {
    pub(crate) name: String,
    pub(crate) inward: f64,
    pub(crate) outward: f64,
}

/// The rates of all links that are in both answers, in the order of the later one; the loopback is none.
pub(crate) fn links(before: &[NetDev], after: &[NetDev], elapsed: Duration) -> Vec<Rate> {
    let counted = |dev: &NetDev| (dev.name.clone(), dev.rx_bytes, dev.tx_bytes);
    let real = |dev: &&NetDev| dev.name != "lo";
    rates(before.iter().map(counted), after.iter().filter(real).map(counted), elapsed)
}

/// The rates of all disks that are in both answers: whole ones, for what reaches a partition is counted
/// for its disk too.
pub(crate) fn disks(before: &[DiskStat], after: &[DiskStat], elapsed: Duration) -> Vec<Rate> {
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR);
    let counted =
        |disk: &DiskStat| (disk.name.clone(), bytes(disk.read_sectors), bytes(disk.write_sectors));
    let whole = |disk: &&DiskStat| !is_partition(&disk.name, after) && !is_memory(&disk.name);
    rates(before.iter().map(counted), after.iter().filter(whole).map(counted), elapsed)
}

/// Whether `name` is another disk's with a number behind it: `sda1`, `nvme0n1p2`.
fn is_partition(name: &str, disks: &[DiskStat]) -> bool {
    let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    let of = |disk: &str| {
        let Some(rest) = name.strip_prefix(disk) else { return false };
        match disk.ends_with(|last: char| last.is_ascii_digit()) {
            true => rest.strip_prefix('p').is_some_and(number),
            false => number(rest),
        }
    };
    disks.iter().any(|disk| of(&disk.name))
}

/// RAM disks and loop devices stand on something that is counted already.
fn is_memory(name: &str) -> bool {
    ["ram", "loop", "zram"].iter().any(|kind| name.starts_with(kind))
}

fn rates(
    before: impl Iterator<Item = (String, u64, u64)>,
    after: impl Iterator<Item = (String, u64, u64)>,
    elapsed: Duration,
) -> Vec<Rate> {
    let before: Vec<_> = before.collect();
    let rate = |(name, inward, outward): (String, u64, u64)| {
        let (_, inward_before, outward_before) =
            before.iter().find(|(known, ..)| *known == name)?;
        let inward = per_second(*inward_before, inward, elapsed)?;
        let outward = per_second(*outward_before, outward, elapsed)?;
        Some(Rate { name, inward, outward })
    };
    after.filter_map(rate).collect()
}

/// How much a counter grew in a second; `None` when it was reset, or no time has passed.
pub(crate) fn per_second(before: u64, after: u64, elapsed: Duration) -> Option<f64> {
    let grown = after.checked_sub(before)?;
    // A rate is shown with two digits: what a double loses of a counter does not matter.
    #[expect(clippy::cast_precision_loss, reason = "see above")]
    (!elapsed.is_zero()).then(|| grown as f64 / elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn stat(user: f64, idle: f64, iowait: f64) -> CpuStat {
        CpuStat { user, idle, iowait, ..CpuStat::default() }
    }

    fn link(name: &str, rx_bytes: u64, tx_bytes: u64) -> NetDev {
        NetDev { name: name.to_owned(), rx_bytes, tx_bytes, ..NetDev::default() }
    }

    fn disk(name: &str, read_sectors: u64) -> DiskStat {
        DiskStat { name: name.to_owned(), read_sectors, ..DiskStat::default() }
    }

    #[test]
    fn processor_time_is_split_by_what_it_went_to() {
        let cpu = Cpu::between(&stat(10.0, 100.0, 0.0), &stat(11.0, 102.0, 1.0));
        let cpu = cpu.expect("time has passed");
        assert_eq!((cpu.user, cpu.iowait, cpu.busy()), (0.25, 0.25, 0.25));
    }

    #[test]
    fn a_node_that_booted_again_has_no_rates_at_first() {
        assert_eq!(Cpu::between(&stat(10.0, 100.0, 0.0), &stat(1.0, 110.0, 0.0)), None);
        assert_eq!(Cpu::between(&stat(1.0, 1.0, 0.0), &stat(1.0, 1.0, 0.0)), None);
        assert!(links(&[link("eth0", 9, 9)], &[link("eth0", 10, 8)], SECOND).is_empty());
        // The kernel takes a little idle time back now and then; that is no reset.
        let cpu = Cpu::between(&stat(1.0, 10.0, 5.0), &stat(2.0, 11.0, 4.99));
        assert_eq!(cpu.map(|cpu| cpu.iowait), Some(0.0));
    }

    #[test]
    fn links_are_matched_by_name_and_the_loopback_is_left_out() {
        let before = [link("lo", 0, 0), link("eth0", 1000, 0)];
        let after = [link("lo", 9, 9), link("eth1", 5, 5), link("eth0", 3000, 500)];
        let rate = Rate { name: "eth0".to_owned(), inward: 1000.0, outward: 250.0 };
        assert_eq!(links(&before, &after, 2 * SECOND), [rate]);
        assert!(links(&before, &after, Duration::ZERO).is_empty());
    }

    #[test]
    fn only_whole_disks_are_counted() {
        let names = ["sda", "sda1", "nvme0n1", "nvme0n1p2", "ram0", "loop3", "vdb12", "dm-0"];
        let before: Vec<_> = names.iter().map(|name| disk(name, 0)).collect();
        let after: Vec<_> = names.iter().map(|name| disk(name, 2)).collect();
        let rates = disks(&before, &after, SECOND);
        let shown: Vec<_> = rates.iter().map(|rate| (&*rate.name, rate.inward)).collect();
        assert_eq!(
            shown,
            [("sda", 1024.0), ("nvme0n1", 1024.0), ("vdb12", 1024.0), ("dm-0", 1024.0)]
        );
    }

    proptest! {
        #[test]
        fn rates_are_never_below_zero_nor_senseless(a: u64, b: u64, millis in 0u64..100_000) {
            if let Some(rate) = per_second(a, b, Duration::from_millis(millis)) {
                prop_assert!(rate >= 0.0 && rate.is_finite());
            }
        }

        #[test]
        fn parts_of_the_processors_time_are_parts_of_one(a: [f64; 3], b: [f64; 3]) {
            let at = |[user, idle, iowait]: [f64; 3]| stat(user, idle, iowait);
            if let Some(cpu) = Cpu::between(&at(a), &at(b)) {
                for part in [cpu.user, cpu.system, cpu.iowait, cpu.steal] {
                    prop_assert!((0.0..=1.0).contains(&part));
                }
            }
        }
    }
}
