//! What the kernel must have been told before we trust it, and what we tell it ourselves.
//!
//! The lists are those of the Kernel Self Protection Project that spec §7.3 names.

use std::collections::BTreeMap;
use std::fs;
use std::io;
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

/// Writes both lists, reads them back, and says on the console which hold.
pub(crate) fn apply_sysctls() {
    report("hardening sysctls hold", HARDENING.iter().copied(), true);
    report("required sysctls hold", REQUIRED.iter().copied(), false);
}

/// Writes those of the configuration, and says which hold.
pub(crate) fn apply_user_sysctls(sysctls: &BTreeMap<String, String>) {
    let settings = sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    report("sysctls of the configuration hold", settings, false);
}

fn report<'a>(
    title: &'static str,
    settings: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
    absent_is_fine: bool,
) {
    let (mut holding, mut absent, count) = (0, 0, settings.len());
    for (name, wanted) in settings {
        match set(name, wanted) {
            Outcome::Holds => holding += 1,
            Outcome::Absent if absent_is_fine => absent += 1,
            Outcome::Absent => warn!(sysctl = name, wanted, "the kernel does not have this sysctl"),
            Outcome::Differs(found) => {
                warn!(sysctl = name, wanted, found, "this sysctl does not hold")
            }
        }
    }
    info!(count = holding, of = count - absent, "{title}");
}

fn set(name: &str, wanted: &str) -> Outcome {
    let Some(path) = sysctl_path(name) else { return Outcome::Absent };
    let path = Path::new("/proc/sys").join(path);
    let read = || fs::read_to_string(&path).map(|text| text.trim().to_owned());
    match read() {
        Ok(found) if found == wanted => return Outcome::Holds,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Outcome::Absent,
        Ok(_) | Err(_) => {}
    }
    match fs::write(&path, wanted).and_then(|()| read()) {
        Ok(found) if found == wanted => Outcome::Holds,
        Ok(found) => Outcome::Differs(found),
        Err(error) => Outcome::Differs(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_not_have_is_absent() {
        assert_eq!(set("kernel.no_such_setting", "1"), Outcome::Absent);
    }
}
