//! The console and the kernel's log, opened so that writing to them never waits.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// `/dev/console`, opened without becoming our controlling terminal.
#[derive(Debug)]
pub struct Console(File);

impl Console {
    /// # Errors
    /// When the kernel has no console.
    pub fn open() -> io::Result<Self> {
        OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open("/dev/console")
            .map(Self)
    }

    /// Writes what the line takes; waits at most 100 ms in all, then drops the rest.
    pub fn write_or_drop(&self, mut text: &[u8]) {
        for _ in 0..10 {
            match (&self.0).write(text) {
                Ok(count) => text = &text[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
                    // Ready or not, the next round tells.
                    let _ = poll(&mut ready, PollTimeout::from(10u8));
                }
                Err(_) => return,
            }
            if text.is_empty() {
                return;
            }
        }
    }
}

/// From here on the kernel shows only errors and worse on the console (`syslog(2)`, action 8).
///
/// # Errors
/// Without `CAP_SYSLOG`.
pub fn show_kernel_errors_only() -> io::Result<()> {
    const CONSOLE_LEVEL: libc::c_int = 8;
    const BELOW_WARNING: libc::c_int = 4;
    // SAFETY: this action takes no buffer, only the level in place of its length.
    let result = unsafe { libc::klogctl(CONSOLE_LEVEL, std::ptr::null_mut(), BELOW_WARNING) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `/dev/kmsg` for writing: one `write` makes one record, `<priority>text\n`.
///
/// # Errors
/// When there is no `/dev` yet, or we are not allowed.
pub fn open_kernel_log() -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")
}
