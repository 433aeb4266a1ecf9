//! Boots nodes under QEMU and talks to them as an operator would.
//!
//! One harness for three users: `make run` (`orlop-qemu run`), the smoke tests (`smoke.rs`,
//! `cluster_of_three.rs`) and the bench (`benches/figures.rs`). A [`Boot`] describes a machine and starts it; the [`Machine`] it becomes has a [`Console`] to wait on and dies with its owner. A
//! [`Cluster`] holds generated configurations; [`serve`] gives one to the guest over HTTP and
//! [`volume`] on a labelled disk. [`Operator`] is the real command line, pointed at one node.
//! [`Agent`] reaches into a guest that was booted with one, to kill and to orphan processes, which
//! the node's own API rightly offers to nobody. [`Tester`] is a shell in a guest that is no node: our
//! kernel with this computer's own files, for test programs (`in_guest.rs`) and as a neighbour of nodes.

#![forbid(unsafe_code)]

pub mod accel;
mod agent_link;
mod cluster;
mod console;
mod machine;
mod monitor;
pub mod serve;
mod tester_link;
pub mod volume;

pub use agent_link::Agent;
pub use cluster::{Cluster, Operator, Row};
pub use console::{Console, Found, Line, Mark};
pub use machine::{Boot, Cable, Forward, Machine, Pace};
pub use tester_link::Tester;

use std::env;
use std::path::PathBuf;

/// The console line that says every service is healthy; group 1 is the time since the kernel's start.
///
/// As all lines of PID 1 it comes twice, from itself and by the kernel's log, and the kernel may speak
/// in the middle of the first: a pattern takes either, anywhere in a line. [`said`] makes such.
pub const READY: &str = r"(?:machined: |\[machined\] )ready in ([0-9.]+)s";

/// The pattern of a line that `role` says on the console and that begins like `pattern`.
#[must_use]
pub fn said(role: &str, pattern: &str) -> String {
    format!(r"(?:{role}: |\[{role}\] ){pattern}")
}

/// Boots again, up to twice, when the guest fell over a fault of QEMU's: while Linux exchanges an
/// instruction of its own it puts a breakpoint (`int3`) there, and with a translator thread for each
/// processor (`-accel tcg,thread=multi`) another processor may still run the breakpoint when the
/// exchange is over. Real processors cannot.
///
/// # Errors
/// Those of `boot`: all others at once, this one when it comes a third time.
pub fn boot_again_after_int3<T>(mut boot: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    for _ in 0..2 {
        match boot() {
            Err(error) if is_translators_fault(&error) => {
                eprintln!("qemu: the guest met a breakpoint that was gone; booting again");
            }
            result => return result,
        }
    }
    boot()
}

fn is_translators_fault(error: &anyhow::Error) -> bool {
    let told = format!("{error:#}");
    told.contains("kernel panicked: ") && told.contains("Oops: int3")
}

/// The folder of build results: `out/` of the repository, or `ORLOP_OUT`.
#[must_use]
pub fn out() -> PathBuf {
    let here = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../out"));
    let out = env::var_os("ORLOP_OUT").map_or_else(here, PathBuf::from);
    out.canonicalize().unwrap_or(out)
}
