//! What the kernel must have been told before we trust it, and what we tell it ourselves.
//!
//! The lists are those of the Kernel Self Protection Project that spec §7.3 names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use orlop_config::machine::sysctl_path;
use tracing::{info, warn};

/// Sysctls that harden the kernel; one the kernel does not have needs no hardening.
const HARDENING: &[(&str, &str)] = &[
    ("kernel.kptr_restrict", "2"),
    ("kernel.dmesg_restrict", "1"),
    ("kernel.perf_event_paranoid", "3"),
    ("kernel.randomize_va_space", "2"),
    ("kernel.yama.ptrace_scope", "2"),
    ("kernel.unprivileged_bpf_disabled", "1"),
    ("user.max_user_namespaces", "0"),
    ("net.core.bpf_jit_harden", "2"),
    ("dev.tty.ldisc_autoload", "0"),
    ("dev.tty.legacy_tiocsti", "0"),
    ("fs.protected_symlinks", "1"),
    ("fs.protected_hardlinks", "1"),
    ("fs.protected_fifos", "2"),
    ("fs.protected_regular", "2"),
    ("fs.suid_dumpable", "0"),
    ("vm.unprivileged_userfaultfd", "0"),
];

/// Sysctls without which Kubernetes' network does not work.
const REQUIRED: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    ("net.bridge.bridge-nf-call-iptables", "1"),
    ("net.bridge.bridge-nf-call-ip6tables", "1"),
    ("net.ipv6.conf.default.forwarding", "1"),
    ("kernel.pid_max", "262144"),
    // Another boot loader's line may lack it; PID 1's log would be rate-limited.
    ("kernel.printk_devkmsg", "on"),
];

/// How one sysctl stands after we wrote it.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Holds,
    Absent,
    Differs(String),
}

/// Where sysctls are.
const SYSCTLS: &str = "/proc/sys";
/// Where the attributes of devices and of the kernel are.
const SYSFS: &str = "/sys";

/// Writes both lists, reads them back, and says on the console which hold.
pub(crate) fn apply_sysctls() {
    report(SYSCTLS, "hardening sysctls hold", HARDENING.iter().copied(), true);
    report(SYSCTLS, "required sysctls hold", REQUIRED.iter().copied(), false);
}

/// Writes those of the configuration, and says which hold.
pub(crate) fn apply_user_sysctls(sysctls: &BTreeMap<String, String>) {
    report(SYSCTLS, "sysctls of the configuration hold", pairs(sysctls), false);
}

/// The same for attributes of sysfs, which are named as sysctls are.
pub(crate) fn apply_user_sysfs(attributes: &BTreeMap<String, String>) {
    report(SYSFS, "sysfs attributes of the configuration hold", pairs(attributes), false);
}

fn pairs(settings: &BTreeMap<String, String>) -> impl ExactSizeIterator<Item = (&str, &str)> {
    settings.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}

fn report<'a>(
    root: &str,
    title: &'static str,
    settings: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
    absent_is_fine: bool,
) {
    let (mut holding, mut absent, count) = (0, 0, settings.len());
    for (name, wanted) in settings {
        match set(Path::new(root), name, wanted) {
            Outcome::Holds => holding += 1,
            Outcome::Absent if absent_is_fine => absent += 1,
            Outcome::Absent => warn!(name, root, wanted, "the kernel does not have this setting"),
            Outcome::Differs(found) => {
                warn!(name, root, wanted, found, "this setting does not hold")
            }
        }
    }
    info!(count = holding, of = count - absent, "{title}");
}

fn set(root: &Path, name: &str, wanted: &str) -> Outcome {
    let Some(path) = sysctl_path(name) else { return Outcome::Absent };
    let path = root.join(path);
    let read = || fs::read_to_string(&path).map(|text| text.trim().to_owned());
    match read() {
        Ok(found) if is(&found, wanted) => return Outcome::Holds,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Outcome::Absent,
        Ok(_) | Err(_) => {}
    }
    // Neither file system lets a file be made.
    let write = || File::options().write(true).open(&path)?.write_all(wanted.as_bytes());
    if let Err(error) = write() {
        return Outcome::Differs(error.to_string());
    }
    match read() {
        Ok(found) if is(&found, wanted) => Outcome::Holds,
        Ok(found) => Outcome::Differs(found),
        // Some attributes of sysfs can only be written, even by root.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Outcome::Holds,
        Err(error) => Outcome::Differs(error.to_string()),
    }
}

/// Whether an attribute that reads so has the value: some show it among those they could have, in
/// brackets (`none [mq-deadline]`).
fn is(found: &str, wanted: &str) -> bool {
    let chosen = |word: &str| word.strip_prefix('[')?.strip_suffix(']').map(|word| word == wanted);
    found.split_whitespace().eq(wanted.split_whitespace())
        || found.split_whitespace().any(|word| chosen(word) == Some(true))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_not_have_is_absent() {
        assert_eq!(set(Path::new(SYSCTLS), "kernel.no_such_setting", "1"), Outcome::Absent);
    }

    #[test]
    fn settings_are_written_where_they_differ_and_read_back() {
        let home = tempfile::tempdir().unwrap();
        let queue = home.path().join("block/vda/queue");
        fs::create_dir_all(&queue).unwrap();
        fs::write(queue.join("scheduler"), "none [mq-deadline] kyber\n").unwrap();
        fs::write(queue.join("nr_requests"), "64\n").unwrap();
        let set = |name: &str, wanted| set(home.path(), name, wanted);
        assert_eq!(set("block.vda.queue.scheduler", "mq-deadline"), Outcome::Holds);
        assert_eq!(
            fs::read_to_string(queue.join("scheduler")).unwrap(),
            "none [mq-deadline] kyber\n",
            "what holds is left alone"
        );
        assert_eq!(set("block.vda.queue.nr_requests", "256"), Outcome::Holds);
        assert_eq!(fs::read_to_string(queue.join("nr_requests")).unwrap().trim(), "256");
        fs::write(queue.join("limits"), "1\t2\t3\n").unwrap();
        assert_eq!(set("block.vda.queue.limits", "1 2 3"), Outcome::Holds);
        assert_eq!(set("block.vdb.queue.nr_requests", "256"), Outcome::Absent);
        assert_eq!(set("../etc", "256"), Outcome::Absent);
        // A folder takes no value.
        assert!(matches!(set("block.vda.queue", "1"), Outcome::Differs(_)));
    }
}
