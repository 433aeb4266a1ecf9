//! Descriptors that the runtime watches.

use std::fs::File;
use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the runtime tell when `file`, opened with `O_NONBLOCK`, can be read.
///
/// # Errors
/// When the kernel cannot watch this kind of file.
///
/// # Panics
/// Outside a tokio runtime with its I/O driver on.
pub fn watch_readable(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File names the same open descriptor for as long as it lives, and the AsyncFd owns it
    // from here on without lending it mutably.
    let registered = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) };
    registered.map_err(io::Error::from)
}
