//! curator: the cluster API. It admits nodes that hold the ticket and that a person approves, tells them their roles,
//! watches their health, and retires them (spec/cluster-api).
//!
//! - [`names`]: how nodes are named, and where things lie in the store.
//! - [`state`]: what lies there, read and written only by who leads.

#![forbid(unsafe_code)]

pub mod names;
pub mod state;
