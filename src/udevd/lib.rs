//! udevd: knows every device of the node, gives it its names and its permissions, loads its driver.
//!
//! The kernel says of each device that it is there ([`uevent`]); which of these events may be handled
//! at the same time, [`order`] says. What a block device holds is read from its first bytes
//! ([`probe`], [`partitions`]), what it is from its drivers' attributes ([`sysfs`], [`identity`],
//! [`interface`]), and [`policy`] says what follows: properties, links, permissions, a name. Several
//! devices may claim one link ([`links`]); what is known is kept where libudev looks ([`database`]).
//! [`modules`] knows which module drives a device.

#![forbid(unsafe_code)]

pub mod database;
pub mod encode;
pub mod identity;
pub mod interface;
pub mod links;
pub mod modules;
pub mod order;
pub mod partitions;
pub mod policy;
pub mod probe;
pub mod sysfs;
pub mod uevent;
