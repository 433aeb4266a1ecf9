//! udevd: knows every device of the node, gives it its names and its permissions, loads its driver.
//!
//! The kernel says of each device that it is there ([`uevent`]); which of these events may be handled
//! at the same time, [`order`] says. What a block device holds is read from its first bytes
//! ([`probe`], [`partitions`]).

#![forbid(unsafe_code)]

pub mod encode;
pub mod order;
pub mod partitions;
pub mod probe;
pub mod uevent;
