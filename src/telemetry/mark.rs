//! When `init` started, told to its successor: by then the clock of the process says nothing of it,
//! because both are process 1.

use std::time::Duration;
use std::{fs, io};

/// In memory, and moved along into the real root.
const PATH: &str = "/run/init.started";

/// Leaves the time of the start, on the kernel's monotonic clock.
///
/// # Errors
/// When `/run` cannot be written.
pub fn leave_start(at: Duration) -> io::Result<()> {
    fs::write(PATH, at.as_nanos().to_string())
}

/// What [`leave_start`] left; `None` where no init of ours ran.
#[must_use]
pub fn left_start() -> Option<Duration> {
    fs::read_to_string(PATH).ok()?.parse().ok().map(Duration::from_nanos)
}
