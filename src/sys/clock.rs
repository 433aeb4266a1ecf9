//! Clocks that std keeps opaque.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the kernel started, without the time spent suspended (`CLOCK_MONOTONIC`).
#[must_use]
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
