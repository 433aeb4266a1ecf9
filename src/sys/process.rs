//! Children: what must be done between fork and exec, and waiting for any of them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

/// What a process may do. It gets no more by executing anything (`no_new_privs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// Its user; it is in no group but `group`.
    pub user: u32,
    /// Its group.
    pub group: u32,
    /// All it has beside its user's rights and all it can ever have, a bit for each number of
    /// `capabilities(7)`. Kept across exec (ambient), so the user need not be root.
    pub capabilities: u64,
}

/// Makes `command` start a process that shares little with this one: a session of its own (so no
/// controlling terminal), default signal dispositions, no descriptors but 0, 1 and 2, when
/// `cgroup_procs` is an open `cgroup.procs` in that cgroup from its first instruction on, and with
/// `privileges` only, unless it keeps ours.
///
/// The signal mask is emptied by std.
pub fn isolate(
    command: &mut Command,
    cgroup_procs: Option<OwnedFd>,
    privileges: Option<Privileges>,
) {
    let closure = move || {
        if let Some(procs) = &cgroup_procs {
            // SAFETY: write(2) reads one byte of a static string; the descriptor is owned by the
            // closure.
            if unsafe { libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) } != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        if let Some(privileges) = privileges {
            confine(privileges)?;
        }
        // SAFETY: setsid(2) takes nothing. A child just forked leads no group, so it cannot fail.
        unsafe { libc::setsid() };
        // The kernel's own `struct sigaction`: SIG_DFL, no flags, no mask.
        let default = [0_u64; 4];
        for signal in 1..=64 {
            // SAFETY: rt_sigaction(2) reads a struct that outlives the call and writes none. It is
            // called past glibc, which hides signals 32 and 33. SIGKILL and SIGSTOP are refused.
            unsafe {
                libc::syscall(
                    libc::SYS_rt_sigaction,
                    signal,
                    default.as_ptr(),
                    std::ptr::null_mut::<u64>(),
                    size_of::<u64>(),
                )
            };
        }
        // SAFETY: close_range(2) takes numbers. The descriptors are only marked, not closed: std
        // reports a failed exec through one of them.
        let marked = unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        };
        if marked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: pre_exec's condition is that the closure does only what is async-signal-safe: it makes
    // system calls only, allocates nothing and takes no lock (`last_os_error` reads errno).
    unsafe { command.pre_exec(closure) };
}

/// Gives up what `privileges` does not name. Only system calls, so that it may be called between fork
/// and exec; glibc's setuid family is gone past, because it would signal threads that are not there.
fn confine(privileges: Privileges) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` of `<linux/capability.h>`, for the calling process.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    let Privileges { user, group, capabilities } = privileges;
    let given = |number: libc::c_ulong| capabilities & (1 << number) != 0;
    for number in (0..64).filter(|number| !given(*number)) {
        match prctl(libc::PR_CAPBSET_DROP, number, 0) {
            // Above the last the kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            result => result?,
        }
    }
    // Goes with the exec.
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
    // SAFETY: setgroups(2) reads no list of length 0.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
    // SAFETY: setresgid(2) takes numbers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) })?;
    // SAFETY: setresuid(2) takes numbers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) })?;
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    let (low, high) = (capabilities as u32, (capabilities >> 32) as u32);
    // `struct __user_cap_data_struct[2]`: effective, permitted, inheritable of each half.
    let sets = [low, low, low, high, high, high];
    // SAFETY: capset(2) reads a header of two words and, by the header's version, two times three
    // words, all of which outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), sets.as_ptr()) })?;
    for number in (0..64).filter(|number| given(*number)) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, number)?;
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

/// Those options of `prctl(2)` that take two numbers at most.
fn prctl(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<()> {
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: prctl(2) takes numbers only, by this function's contract.
    check(unsafe { libc::prctl(option, first, second, UNUSED, UNUSED) }.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits for any child that has ended; `None` when none has, or there are none.
///
/// # Errors
/// Those of `waitpid(2)`, but ECHILD.
pub fn wait_any() -> io::Result<Option<(u32, ExitStatus)>> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes to `status` only, which outlives the call.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Ok(None),
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            error => Err(error),
        },
        pid => Ok(Some((pid.unsigned_abs(), ExitStatus::from_raw(status)))),
    }
}
