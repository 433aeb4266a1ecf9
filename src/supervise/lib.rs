//! Services: what PID 1 runs, keeps running, and ends in order.
//!
//! [`machine`] decides, purely; [`supervisor`] does what it says, with one task per run of a service,
//! through three runners: [`process`] (a child of PID 1), [`container`] (a container of containerd)
//! and a future inside the process ([`Runner::task`]). [`log`] keeps what services write, in memory and
//! (`archive`) on disk, [`forward`] sends it on, [`reaper`] waits for every child of the process, [`health`] has the checks most
//! services need.

#![forbid(unsafe_code)]

mod archive;
mod capture;
mod cgroup;
pub mod container;
mod control;
mod definition;
pub mod forward;
pub mod health;
pub mod log;
pub mod machine;
mod oci;
pub mod process;
pub mod reaper;
pub mod seccomp;
mod show;
pub mod supervisor;

pub use archive::DiskLimit;
pub use container::Containerd;
pub use definition::{
    BoxFuture, Condition, Definition, Health, Hook, Permissions, Prepared, Runner, TaskFactory,
};
pub use log::{Log, Logs};
pub use machine::{Cause, Change, Dependency, Entry, Restart, State, Timing, Verdict};
pub use reaper::{Child, Reaper};
pub use supervisor::{Error, Handle, Service, Supervisor};
