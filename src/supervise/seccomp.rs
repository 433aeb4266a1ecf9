//! The system calls a service may make, as a seccomp profile of the OCI specification.
//!
//! An allow-list: what every program of ours needs (std, tokio, ring on static glibc), and the groups
//! a service names on top. A profile refuses with EPERM, so that a daemon can say what it missed; what
//! no daemon could ask for by accident ends it on the spot. No daemon may start a process, so whoever
//! takes one over has nothing but its threads.
//!
//! The lists were found with `strace` and rounded up to families of calls, because libraries choose
//! freely within a family. Names that a runtime's libseccomp does not know are passed over by it.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Do, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// What a service may do beyond computing, its files, its threads and sockets it is handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Make unix sockets.
    Unix,
    /// Make IPv4 and IPv6 sockets.
    Inet,
    /// Make netlink sockets.
    Netlink,
    /// Make packet sockets.
    Packet,
    /// Set the host's and the domain's name.
    HostName,
    /// Set and discipline clocks.
    Clock,
}

/// The system calls a service may make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile(Vec<Group>);

impl Profile {
    /// What every program of ours needs, and `groups`.
    #[must_use]
    pub fn new(groups: impl IntoIterator<Item = Group>) -> Self {
        Self(groups.into_iter().collect())
    }

    pub(crate) fn describe(&self) -> Result<LinuxSeccomp, OciSpecError> {
        let mut rules = vec![
            rule(EVERYBODY, Do::ScmpActAllow, None)?,
            rule(&["clone"], Do::ScmpActAllow, Some(masked(0, THREAD | NAMESPACES, THREAD)?))?,
            // Its flags lie in memory, which a filter cannot see: glibc goes back to clone.
            errno(rule(&["clone3"], Do::ScmpActErrno, None)?, ENOSYS),
            rule(ABSURD, Do::ScmpActKillProcess, None)?,
        ];
        for group in &self.0 {
            match group {
                Group::Unix => rules.push(family(1)?),
                Group::Inet => rules.extend([family(2)?, family(10)?]),
                Group::Netlink => rules.push(family(16)?),
                Group::Packet => rules.push(family(17)?),
                Group::HostName => {
                    let names = &["sethostname", "setdomainname"];
                    rules.push(rule(names, Do::ScmpActAllow, None)?);
                }
                Group::Clock => {
                    let names = &["adjtimex", "clock_adjtime", "clock_settime", "settimeofday"];
                    rules.push(rule(names, Do::ScmpActAllow, None)?);
                }
            }
        }
        LinuxSeccompBuilder::default()
            .default_action(Do::ScmpActErrno)
            .default_errno_ret(EPERM)
            .syscalls(rules)
            .build()
    }
}

fn rule(
    names: &[&str],
    action: Do,
    argument: Option<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciSpecError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let rule = LinuxSyscallBuilder::default().names(names).action(action);
    match argument {
        Some(argument) => rule.args(vec![argument]),
        None => rule,
    }
    .build()
}

fn errno(mut rule: LinuxSyscall, number: u32) -> LinuxSyscall {
    rule.set_errno_ret(Some(number));
    rule
}

/// Sockets of one address family (`AF_…`), the first argument of `socket(2)`.
fn family(number: u64) -> Result<LinuxSyscall, OciSpecError> {
    let argument = LinuxSeccompArgBuilder::default()
        .index(0_usize)
        .value(number)
        .op(LinuxSeccompOperator::ScmpCmpEq)
        .build()?;
    rule(&["socket"], Do::ScmpActAllow, Some(argument))
}

/// Argument `index` has, of the bits in `mask`, just those of `wanted`.
fn masked(index: usize, mask: u64, wanted: u64) -> Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .value(mask)
        .value_two(wanted)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .build()
}

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// `CLONE_THREAD` of `clone(2)`.
const THREAD: u64 = 0x1_0000;
/// All `CLONE_NEW…` of `clone(2)`.
const NAMESPACES: u64 = 0x7e02_0000;

/// A line for each kind: memory; threads; signals; time; waiting; descriptors; reading and writing;
/// looking; changing files; who am I; sockets one has; the way in (the OCI runtime loads the filter, then executes the program).
#[rustfmt::skip]
const EVERYBODY: &[&str] = &[
    "brk", "madvise", "mincore", "mmap", "mprotect", "mremap", "msync", "munmap",
    "exit", "exit_group", "futex", "futex_waitv", "get_robust_list", "getcpu", "gettid", "membarrier", "rseq",
    "sched_getaffinity", "sched_getparam", "sched_getscheduler", "sched_yield", "set_robust_list", "set_tid_address", "tgkill",
    "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "sigaltstack", "signalfd4",
    "clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "gettimeofday", "nanosleep", "time", "times",
    "timerfd_create", "timerfd_gettime", "timerfd_settime",
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2",
    "inotify_add_watch", "inotify_init1", "inotify_rm_watch", "poll", "ppoll", "pselect6", "select",
    "close", "close_range", "dup", "dup2", "dup3", "fcntl", "ioctl", "pipe", "pipe2",
    "copy_file_range", "fadvise64", "lseek", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read",
    "readahead", "readv", "sendfile", "splice", "sync_file_range", "tee", "vmsplice", "write", "writev",
    "access", "faccessat", "faccessat2", "fgetxattr", "fstat", "fstatfs", "getcwd", "getdents", "getdents64", "getxattr",
    "lgetxattr", "lstat", "newfstatat", "open", "openat", "openat2", "readlink", "readlinkat", "stat", "statfs", "statx",
    "chdir", "chmod", "chown", "creat", "fallocate", "fchdir", "fchmod", "fchmodat", "fchown", "fchownat", "fdatasync", "flock",
    "fsync", "ftruncate", "lchown", "link", "linkat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "rmdir",
    "symlink", "symlinkat", "truncate", "umask", "unlink", "unlinkat", "utime", "utimensat",
    "capget", "getegid", "geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
    "getresgid", "getresuid", "getrlimit", "getrandom", "getrusage", "getsid", "getuid", "prlimit64", "sysinfo", "uname",
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom", "recvmmsg",
    "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socketpair",
    "arch_prctl", "execve", "prctl",
];

/// Asked for only by somebody who has taken a daemon over.
#[rustfmt::skip]
const ABSURD: &[&str] = &[
    "acct", "add_key", "bpf", "chroot", "create_module", "delete_module", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick",
    "init_module", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mount",
    "mount_setattr", "move_mount", "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open",
    "pivot_root", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "quotactl_fd", "reboot",
    "request_key", "setns", "swapoff", "swapon", "umount2", "unshare", "userfaultfd", "uselib", "vm86", "vm86old",
];

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test's failure is its panic")]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_call_is_both_allowed_and_absurd_and_none_is_named_twice() {
        let mut seen = HashSet::new();
        for name in EVERYBODY.iter().chain(ABSURD) {
            assert!(seen.insert(name), "{name}");
        }
        for name in
            ["socket", "clone", "clone3", "fork", "vfork", "kill", "setuid", "clock_settime"]
        {
            assert!(!seen.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_group_adds_what_it_says_and_nothing_else() {
        let described = |groups: &[Group]| {
            let profile = Profile::new(groups.iter().copied()).describe().unwrap();
            serde_json::to_value(profile).unwrap()
        };
        let bare = described(&[]);
        assert_eq!(
            (&bare["defaultAction"], &bare["defaultErrnoRet"]),
            (&"SCMP_ACT_ERRNO".into(), &1.into())
        );
        let rules = bare["syscalls"].as_array().unwrap().len();
        let both = described(&[Group::Unix, Group::HostName]);
        let added = &both["syscalls"].as_array().unwrap()[rules..];
        assert_eq!(added[0]["names"], serde_json::json!(["socket"]));
        assert_eq!(
            added[0]["args"],
            serde_json::json!([{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }])
        );
        assert_eq!(added[1]["names"], serde_json::json!(["sethostname", "setdomainname"]));
        assert_eq!(added.len(), 2);
    }
}
