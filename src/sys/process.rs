//! Children: what must be done between fork and exec, and waiting for any of them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

/// Makes `command` start a process that shares little with this one: a session of its own (so no
/// controlling terminal), default signal dispositions, no descriptors but 0, 1 and 2, and, when
/// `cgroup_procs` is an open `cgroup.procs`, in that cgroup from its first instruction on.
///
/// The signal mask is emptied by std.
pub fn isolate(command: &mut Command, cgroup_procs: Option<OwnedFd>) {
    let closure = move || {
        if let Some(procs) = &cgroup_procs {
            // SAFETY: write(2) reads one byte of a static string; the descriptor is owned by the
            // closure.
            if unsafe { libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) } != 1 {
                return Err(io::Error::last_os_error());
            }
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
