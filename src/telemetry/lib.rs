//! Where log lines go, and what figures look like.
//!
//! Daemons write to stderr, which machined keeps as the service's log: [`to_stderr`]. PID 1 writes
//! to the kernel's ring with a syslog priority, and tells its story (`info` and above) on the
//! console as well: [`to_kernel`]. A line waits at most 100 ms for the console, then it is dropped. What
//! PID 1 says is kept like a service's log, too, once there is a place for it: [`keep_lines`].
//!
//! And how figures are exposed ([`openmetrics`]).

#![forbid(unsafe_code)]

mod kept;
mod kernel;
mod mark;
pub mod openmetrics;

use std::io;

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use kept::keep_lines;
pub use kernel::to_kernel;
pub use mark::{leave_start, left_start};

/// Logs to stderr, one line per event with its time, from `info` up (`debug` when asked).
pub fn to_stderr(debug: bool) {
    let ours = if debug { Level::DEBUG } else { Level::INFO };
    // The libraries below us log every frame at debug.
    let filter = Targets::new().with_default(LevelFilter::INFO).with_target("orlop", ours);
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(false).with_target(false);
    // A second call would be a defect, but not one worth dying for.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}
