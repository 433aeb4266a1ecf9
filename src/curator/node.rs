//! The node's side of the cluster API (spec §3.2, §3.4, §3.6, §4.8): a daemon on every machine that came by node
//! parameters. It makes the machine a node of its cluster and keeps it one, so that PID 1 parses nothing that comes from
//! the network.
//!
//! - [`machine`]: how far it is, and what is next; pure.
//! - [`folders`]: what it keeps.

pub mod folders;
pub mod machine;
