//! Every raw system call and all `unsafe` outside `netlink`, as thin, synchronous, typed functions.
//!
//! Nothing here decides anything. What std or `nix` already offers safely is not wrapped again.

#![allow(unsafe_code, reason = "this crate exists to hold it")]

mod allocator;
mod block;
mod clock;
mod console;
mod entropy;
mod loop_device;
mod process;
mod readable;
mod resident;

pub use allocator::keep_heap_small;
pub use block::reread_partitions;
pub use clock::{
    LeapSecond, PtpReading, clock_frequency, clock_is_synchronized, monotonic, read_ptp,
    set_clock_frequency, set_clock_state, since_boot, step_clock, write_rtc,
};
pub use console::{Console, open_kernel_log, show_kernel_errors_only};
pub use entropy::{add_entropy, entropy_ready};
pub use loop_device::attach_read_only;
pub use process::{Privileges, isolate, wait_any};
pub use readable::watch_readable;
pub use resident::forget_start;
