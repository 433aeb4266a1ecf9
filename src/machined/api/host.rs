//! What the kernel tells about the host in `/proc`, as messages of the machine API.
//!
//! The parsers take the files' text and never fail: a line they do not know, or cannot read, counts
//! as missing, which the API shows as zero.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;

use orlop_proto::machine::{
    CpUsInfo, CpuFreqStats, CpuInfo, CpuStat, DiskStat, DiskStats, LoadAvg, MemInfo, MountStat,
    NetDev, NetworkDeviceStats, ProcessInfo, SoftIrqStat, SystemStat,
};

/// Clock ticks per second that `/proc` counts in (`USER_HZ`), the same on all architectures we run on.
const TICKS_PER_SECOND: f64 = 100.0;

type MemField = fn(&mut MemInfo) -> &mut u64;

const MEM_FIELDS: &[(&str, MemField)] = &[
    ("MemTotal", |m| &mut m.memtotal),
    ("MemFree", |m| &mut m.memfree),
    ("MemAvailable", |m| &mut m.memavailable),
    ("Buffers", |m| &mut m.buffers),
    ("Cached", |m| &mut m.cached),
    ("SwapCached", |m| &mut m.swapcached),
    ("Active", |m| &mut m.active),
    ("Inactive", |m| &mut m.inactive),
    ("Active(anon)", |m| &mut m.activeanon),
    ("Inactive(anon)", |m| &mut m.inactiveanon),
    ("Active(file)", |m| &mut m.activefile),
    ("Inactive(file)", |m| &mut m.inactivefile),
    ("Unevictable", |m| &mut m.unevictable),
    ("Mlocked", |m| &mut m.mlocked),
    ("SwapTotal", |m| &mut m.swaptotal),
    ("SwapFree", |m| &mut m.swapfree),
    ("Dirty", |m| &mut m.dirty),
    ("Writeback", |m| &mut m.writeback),
    ("AnonPages", |m| &mut m.anonpages),
    ("Mapped", |m| &mut m.mapped),
    ("Shmem", |m| &mut m.shmem),
    ("Slab", |m| &mut m.slab),
    ("SReclaimable", |m| &mut m.sreclaimable),
    ("SUnreclaim", |m| &mut m.sunreclaim),
    ("KernelStack", |m| &mut m.kernelstack),
    ("PageTables", |m| &mut m.pagetables),
    ("NFS_Unstable", |m| &mut m.nfsunstable),
    ("Bounce", |m| &mut m.bounce),
    ("WritebackTmp", |m| &mut m.writebacktmp),
    ("CommitLimit", |m| &mut m.commitlimit),
    ("Committed_AS", |m| &mut m.committedas),
    ("VmallocTotal", |m| &mut m.vmalloctotal),
    ("VmallocUsed", |m| &mut m.vmallocused),
    ("VmallocChunk", |m| &mut m.vmallocchunk),
    ("HardwareCorrupted", |m| &mut m.hardwarecorrupted),
    ("AnonHugePages", |m| &mut m.anonhugepages),
    ("ShmemHugePages", |m| &mut m.shmemhugepages),
    ("ShmemPmdMapped", |m| &mut m.shmempmdmapped),
    ("CmaTotal", |m| &mut m.cmatotal),
    ("CmaFree", |m| &mut m.cmafree),
    ("HugePages_Total", |m| &mut m.hugepagestotal),
    ("HugePages_Free", |m| &mut m.hugepagesfree),
    ("HugePages_Rsvd", |m| &mut m.hugepagesrsvd),
    ("HugePages_Surp", |m| &mut m.hugepagessurp),
    ("Hugepagesize", |m| &mut m.hugepagesize),
    ("DirectMap4k", |m| &mut m.directmap4k),
    ("DirectMap2M", |m| &mut m.directmap2m),
    ("DirectMap1G", |m| &mut m.directmap1g),
];

/// `/proc/meminfo`: kB as printed, `HugePages_*` as counts.
pub(super) fn memory(text: &str) -> MemInfo {
    let values: HashMap<&str, u64> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            Some((name, rest.split_ascii_whitespace().next()?.parse().ok()?))
        })
        .collect();
    let mut info = MemInfo::default();
    for (name, field) in MEM_FIELDS {
        *field(&mut info) = values.get(name).copied().unwrap_or_default();
    }
    info
}

/// `/proc/loadavg`.
pub(super) fn load(text: &str) -> LoadAvg {
    let mut fields = text.split_ascii_whitespace();
    LoadAvg {
        metadata: None,
        load1: next(&mut fields),
        load5: next(&mut fields),
        load15: next(&mut fields),
    }
}

/// `/proc/stat`: CPU times in seconds.
pub(super) fn system(text: &str) -> SystemStat {
    let mut stat = SystemStat::default();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(key) = fields.next() else { continue };
        match key {
            "btime" => stat.boot_time = next(&mut fields),
            "ctxt" => stat.context_switches = next(&mut fields),
            "processes" => stat.process_created = next(&mut fields),
            "procs_running" => stat.process_running = next(&mut fields),
            "procs_blocked" => stat.process_blocked = next(&mut fields),
            "intr" => {
                stat.irq_total = next(&mut fields);
                stat.irq = fields.map(number).collect();
            }
            "softirq" => {
                stat.soft_irq_total = next(&mut fields);
                stat.soft_irq = Some(SoftIrqStat {
                    hi: next(&mut fields),
                    timer: next(&mut fields),
                    net_tx: next(&mut fields),
                    net_rx: next(&mut fields),
                    block: next(&mut fields),
                    block_io_poll: next(&mut fields),
                    tasklet: next(&mut fields),
                    sched: next(&mut fields),
                    hrtimer: next(&mut fields),
                    rcu: next(&mut fields),
                });
            }
            "cpu" => stat.cpu_total = Some(cpu_times(fields)),
            _ if key.starts_with("cpu") => stat.cpu.push(cpu_times(fields)),
            _ => {}
        }
    }
    stat
}

fn cpu_times<'a>(mut fields: impl Iterator<Item = &'a str>) -> CpuStat {
    let mut seconds = || next::<f64>(&mut fields) / TICKS_PER_SECOND;
    CpuStat {
        user: seconds(),
        nice: seconds(),
        system: seconds(),
        idle: seconds(),
        iowait: seconds(),
        irq: seconds(),
        soft_irq: seconds(),
        steal: seconds(),
        guest: seconds(),
        guest_nice: seconds(),
    }
}

/// `/proc/cpuinfo`, an element a processor; what an architecture does not tell stays empty.
pub(super) fn cpus(text: &str) -> CpUsInfo {
    let processors = text.split("\n\n").filter_map(|block| {
        let values: HashMap<&str, &str> = block
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.trim(), value.trim()))
            .collect();
        let processor = values.get("processor")?.parse().ok()?;
        let word = |key: &str| values.get(key).copied().unwrap_or_default().to_owned();
        let words = |key: &str| word(key).split_ascii_whitespace().map(str::to_owned).collect();
        let count = |key: &str| values.get(key).copied().map(number).unwrap_or_default();
        Some(CpuInfo {
            processor,
            vendor_id: word("vendor_id"),
            cpu_family: word("cpu family"),
            model: word("model"),
            model_name: word("model name"),
            stepping: word("stepping"),
            microcode: word("microcode"),
            cpu_mhz: values.get("cpu MHz").copied().map(number).unwrap_or_default(),
            cache_size: word("cache size"),
            physical_id: word("physical id"),
            siblings: count("siblings"),
            core_id: word("core id"),
            cpu_cores: count("cpu cores"),
            apic_id: word("apicid"),
            initial_apic_id: word("initial apicid"),
            fpu: word("fpu"),
            fpu_exception: word("fpu_exception"),
            cpu_id_level: count("cpuid level"),
            wp: word("wp"),
            flags: words("flags"),
            bugs: words("bugs"),
            bogo_mips: values.get("bogomips").copied().map(number).unwrap_or_default(),
            cl_flush_size: count("clflush size"),
            cache_alignment: count("cache_alignment"),
            address_sizes: word("address sizes"),
            power_management: word("power management"),
        })
    });
    CpUsInfo { metadata: None, cpu_info: processors.collect() }
}

/// `/proc/net/dev`, in the file's order, and the sum of all.
pub(super) fn network_devices(text: &str) -> NetworkDeviceStats {
    let devices: Vec<NetDev> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let mut fields = rest.split_ascii_whitespace();
            Some(NetDev {
                name: name.trim().to_owned(),
                rx_bytes: next(&mut fields),
                rx_packets: next(&mut fields),
                rx_errors: next(&mut fields),
                rx_dropped: next(&mut fields),
                rx_fifo: next(&mut fields),
                rx_frame: next(&mut fields),
                rx_compressed: next(&mut fields),
                rx_multicast: next(&mut fields),
                tx_bytes: next(&mut fields),
                tx_packets: next(&mut fields),
                tx_errors: next(&mut fields),
                tx_dropped: next(&mut fields),
                tx_fifo: next(&mut fields),
                tx_collisions: next(&mut fields),
                tx_carrier: next(&mut fields),
                tx_compressed: next(&mut fields),
            })
        })
        .collect();
    let mut total = NetDev::default();
    for device in &devices {
        total.rx_bytes += device.rx_bytes;
        total.rx_packets += device.rx_packets;
        total.rx_errors += device.rx_errors;
        total.rx_dropped += device.rx_dropped;
        total.rx_fifo += device.rx_fifo;
        total.rx_frame += device.rx_frame;
        total.rx_compressed += device.rx_compressed;
        total.rx_multicast += device.rx_multicast;
        total.tx_bytes += device.tx_bytes;
        total.tx_packets += device.tx_packets;
        total.tx_errors += device.tx_errors;
        total.tx_dropped += device.tx_dropped;
        total.tx_fifo += device.tx_fifo;
        total.tx_collisions += device.tx_collisions;
        total.tx_carrier += device.tx_carrier;
        total.tx_compressed += device.tx_compressed;
    }
    NetworkDeviceStats { metadata: None, total: Some(total), devices }
}

type DiskField = fn(&mut DiskStat) -> &mut u64;

/// The columns of `/proc/diskstats` after major, minor and name (`Documentation/admin-guide/iostats.rst`).
const DISK_FIELDS: [DiskField; 15] = [
    |d| &mut d.read_completed,
    |d| &mut d.read_merged,
    |d| &mut d.read_sectors,
    |d| &mut d.read_time_ms,
    |d| &mut d.write_completed,
    |d| &mut d.write_merged,
    |d| &mut d.write_sectors,
    |d| &mut d.write_time_ms,
    |d| &mut d.io_in_progress,
    |d| &mut d.io_time_ms,
    |d| &mut d.io_time_weighted_ms,
    |d| &mut d.discard_completed,
    |d| &mut d.discard_merged,
    |d| &mut d.discard_sectors,
    |d| &mut d.discard_time_ms,
];

/// `/proc/diskstats`: lines of fewer than 18 columns are left out; the total counts partitions too.
pub(super) fn disks(text: &str) -> DiskStats {
    let mut total = DiskStat::default();
    let mut devices = Vec::new();
    for columns in text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>()) {
        if columns.len() < 3 + DISK_FIELDS.len() {
            continue;
        }
        let mut device = DiskStat { name: columns[2].to_owned(), ..DiskStat::default() };
        for (field, column) in DISK_FIELDS.iter().zip(&columns[3..]) {
            let value: u64 = number(column);
            *field(&mut device) = value;
            *field(&mut total) += value;
        }
        devices.push(device);
    }
    DiskStats { metadata: None, total: Some(total), devices }
}

/// One line of `/proc/mounts`: source and target, with the octal escapes of `fstab(5)` undone.
pub(crate) fn mount_lines(text: &str) -> impl Iterator<Item = (String, String)> + '_ {
    text.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((unescape(fields.next()?), unescape(fields.next()?)))
    })
}

/// All mounts that are directories, with their sizes; one that cannot be asked is left out.
pub(super) fn mounts(text: &str) -> Vec<MountStat> {
    mount_lines(text)
        .filter(|(_, target)| Path::new(target).is_dir())
        .filter_map(|(filesystem, mounted_on)| {
            let stat = nix::sys::statvfs::statvfs(Path::new(&mounted_on))
                .inspect_err(|error| tracing::warn!(%mounted_on, %error, "statvfs"))
                .ok()?;
            let block = stat.fragment_size();
            Some(MountStat {
                filesystem,
                mounted_on,
                size: block * stat.blocks(),
                available: block * stat.blocks_available(),
            })
        })
        .collect()
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let octal = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) if byte.is_ascii() => {
                text.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                text.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    text + rest
}

/// Processes that one thread reads in the time another one takes to start, many times over.
const SHARE: usize = 512;
/// Threads at a time.
const SHARES: usize = 4;

/// All processes; one that goes away while it is read is left out.
///
/// The kernel takes some 20 µs to tell of one, and a node can have thousands: so they are shared out to
/// threads, and read in as few system calls as can be.
pub(crate) fn processes() -> io::Result<Vec<ProcessInfo>> {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let pids: Vec<i32> = fs::read_dir("/proc")?.flatten().filter_map(number).collect();
    Ok(read_shared(&pids, SHARE))
}

/// Reads `pids` in several threads if there are more than `share`.
fn read_shared(pids: &[i32], share: usize) -> Vec<ProcessInfo> {
    let cpus = thread::available_parallelism().map_or(1, usize::from).min(SHARES);
    let mut shares = pids.chunks(pids.len().div_ceil(cpus).max(share));
    let first = shares.next().unwrap_or_default();
    thread::scope(|scope| {
        let start = |share| thread::Builder::new().spawn_scoped(scope, move || read_all(share));
        let others: Vec<_> = shares.map(|share| (share, start(share))).collect();
        let mut processes = read_all(first);
        for (share, thread) in others {
            processes.extend(match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // No thread is to be had.
                Err(_) => read_all(share),
            });
        }
        processes
    })
}

fn read_all(pids: &[i32]) -> Vec<ProcessInfo> {
    let page = page_size();
    let mut bytes = Vec::new();
    pids.iter().filter_map(|pid| read_process(*pid, page, &mut bytes)).collect()
}

fn read_process(pid: i32, page: u64, bytes: &mut Vec<u8>) -> Option<ProcessInfo> {
    slurp(&format!("/proc/{pid}/stat"), bytes).ok()?;
    // A process names itself, in any bytes.
    let mut process = process(pid, &String::from_utf8_lossy(bytes), page)?;
    // A thread of the kernel, or a process that has ended, has neither.
    if process.virtual_memory > 0 {
        let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        process.executable = executable.to_string_lossy().into_owned();
        if slurp(&format!("/proc/{pid}/cmdline"), bytes).is_ok() {
            process.args = String::from_utf8_lossy(bytes).replace('\0', " ").trim_end().to_owned();
        }
    }
    Some(process)
}

/// Reads a file of `/proc` in as few calls as can be: their sizes say nothing, but a read that does not
/// fill its buffer has come to the end.
fn slurp(path: &str, bytes: &mut Vec<u8>) -> io::Result<()> {
    const STEP: usize = 4096;
    let mut file = fs::File::open(path)?;
    let mut filled = 0;
    loop {
        bytes.resize(filled + STEP, 0);
        let count = file.read(&mut bytes[filled..])?;
        filled += count;
        if count < STEP {
            bytes.truncate(filled);
            return Ok(());
        }
    }
}

/// `/proc/PID/stat`, `proc_pid_stat(5)`. The command stands in parentheses and may hold any byte.
fn process(pid: i32, stat: &str, page: u64) -> Option<ProcessInfo> {
    let (head, rest) = stat.rsplit_once(')')?;
    let command = head.split_once('(')?.1.to_owned();
    // Field 3 of the page is the first here.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let ticks: f64 = number::<f64>(field(14)?) + number::<f64>(field(15)?);
    Some(ProcessInfo {
        pid,
        ppid: number(field(4)?),
        state: field(3)?.to_owned(),
        threads: number(field(20)?),
        cpu_time: ticks / TICKS_PER_SECOND,
        virtual_memory: number(field(23)?),
        resident_memory: number::<u64>(field(24)?) * page,
        command,
        executable: String::new(),
        args: String::new(),
    })
}

/// `cpufreq` of each processor, in kHz; zeros where it does not tell all three frequencies
/// (`Documentation/admin-guide/pm/cpufreq.rst`).
pub(super) fn frequencies(cpus: &Path) -> io::Result<Vec<CpuFreqStats>> {
    let mut folders: Vec<(u32, PathBuf)> = fs::read_dir(cpus)?
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("cpu")?.parse().ok()?;
            Some((number, entry.path().join("cpufreq")))
        })
        .collect();
    folders.sort_unstable();
    let stats = |(_, folder): &(u32, PathBuf)| {
        let text = |file: &str| fs::read_to_string(folder.join(file)).ok();
        let frequency = |file: &str| text(file)?.trim().parse().ok();
        let (current_frequency, minimum_frequency, maximum_frequency) = (
            frequency("scaling_cur_freq")?,
            frequency("scaling_min_freq")?,
            frequency("scaling_max_freq")?,
        );
        let governor = text("scaling_governor").unwrap_or_default().trim().to_owned();
        Some(CpuFreqStats { current_frequency, minimum_frequency, maximum_frequency, governor })
    };
    Ok(folders.iter().map(|folder| stats(folder).unwrap_or_default()).collect())
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

fn next<'a, T: FromStr + Default>(fields: &mut impl Iterator<Item = &'a str>) -> T {
    fields.next().map(number).unwrap_or_default()
}

fn number<T: FromStr + Default>(text: &str) -> T {
    text.parse().unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn memory_is_in_kb_and_missing_lines_are_zero() {
        let info = memory("MemTotal:  2048 kB\nActive(anon): 7 kB\nHugePages_Total: 3\nNonsense\n");
        assert_eq!((info.memtotal, info.activeanon, info.hugepagestotal), (2048, 7, 3));
        assert_eq!(info.swaptotal, 0);
    }

    #[test]
    fn cpu_times_are_seconds() {
        let stat = system("cpu  250 0 100 0\ncpu0 250 0 100 0\nintr 9 1 2\nctxt 5\nbtime 42\n");
        let total = stat.cpu_total.unwrap_or_default();
        assert!((total.user - 2.5).abs() < 1e-9 && (total.system - 1.0).abs() < 1e-9);
        assert_eq!(
            (stat.cpu.len(), stat.irq_total, stat.irq, stat.boot_time),
            (1, 9, vec![1, 2], 42)
        );
    }

    #[test]
    fn a_command_may_hold_spaces_and_parentheses() {
        let rest = "S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 3 0 10 4096 2 0";
        let process = process(7, &format!("7 (a) b)) {rest}"), 4096).unwrap_or_default();
        assert_eq!(process.command, "a) b)");
        assert_eq!((process.ppid, process.threads, process.resident_memory), (1, 3, 8192));
        assert!((process.cpu_time - 2.0).abs() < 1e-9);
    }

    #[test]
    fn mount_points_lose_their_escapes() {
        let lines: Vec<_> = mount_lines("a\\040b /x\\134y ext4 rw 0 0\nshort\n").collect();
        assert_eq!(lines, [("a b".to_owned(), "/x\\y".to_owned())]);
    }

    #[test]
    fn totals_sum_all_devices() {
        let stats = network_devices(
            "Inter-| x\n face |bytes\n lo: 1 1 0 0 0 0 0 0 2 2 0 0 0 0 0 0\neth0: 10 1 0 0 0 0 0 0 20 2\n",
        );
        let total = stats.total.unwrap_or_default();
        assert_eq!((stats.devices.len(), total.rx_bytes, total.tx_bytes), (2, 11, 22));
        let line = |name: &str| format!("8 0 {name} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15");
        let stats = disks(&format!("{}\n{}\n8 2 old 1 2 3\n", line("sda"), line("sda1")));
        assert_eq!(stats.devices.len(), 2);
        assert_eq!(stats.total.unwrap_or_default().read_sectors, 6);
    }

    #[test]
    fn frequencies_are_by_processor_and_zero_where_one_is_missing() {
        let home = tempfile::tempdir().unwrap();
        let cpu = |number: u32, files: &[(&str, &str)]| {
            let folder = home.path().join(format!("cpu{number}/cpufreq"));
            fs::create_dir_all(&folder).unwrap();
            files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
        };
        fs::create_dir(home.path().join("cpuidle")).unwrap();
        let (now, least, most) = (
            ("scaling_cur_freq", "1500000\n"),
            ("scaling_min_freq", "800000\n"),
            ("scaling_max_freq", "3000000\n"),
        );
        cpu(10, &[now, least, most, ("scaling_governor", "powersave\n")]);
        cpu(2, &[now, least]);
        let stats = frequencies(home.path()).unwrap();
        let told = CpuFreqStats {
            current_frequency: 1_500_000,
            minimum_frequency: 800_000,
            maximum_frequency: 3_000_000,
            governor: "powersave".to_owned(),
        };
        assert_eq!(stats, [CpuFreqStats::default(), told]);
    }

    #[test]
    fn processes_are_shared_out_to_threads_without_loss() {
        let own = i32::try_from(std::process::id()).unwrap();
        for pids in [&[][..], &[own], &[own, 1], &[1, own, 1, 1, own]] {
            let read: Vec<_> = read_shared(pids, 1).iter().map(|process| process.pid).collect();
            assert_eq!(read, pids);
        }
    }

    #[test]
    fn a_command_line_of_any_length_is_read_whole() {
        let long = "x".repeat(10_000);
        let mut child = std::process::Command::new("cat")
            .args(["-", &long])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Its name is there before its command line is: it runs once it says something.
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"!").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let found = processes().unwrap().into_iter().find(|process| process.pid == pid).unwrap();
        drop(stdin);
        child.wait().unwrap();
        assert_eq!((found.args, found.command), (format!("cat - {long}"), "cat".to_owned()));
        assert!(found.executable.starts_with('/'));
    }

    #[test]
    fn this_very_host_can_be_read() {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        assert!(memory(&read("/proc/meminfo")).memtotal > 0);
        assert!(!cpus(&read("/proc/cpuinfo")).cpu_info.is_empty());
        assert!(system(&read("/proc/stat")).boot_time > 0);
        assert!(processes().unwrap_or_default().iter().any(|process| process.pid == 1));
    }
}
