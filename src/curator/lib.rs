//! curator: the cluster API. It admits nodes that hold the ticket and that a person approves, tells them their roles,
//! watches their health, and retires them (spec/cluster-api).
//!
//! - [`backup`], [`moving`]: how the cluster's state goes into a file, and from one store into another.
//! - [`leader`]: which of several curators leads.
//! - [`membership`]: who keeps the state, once that is an etcd.
//! - [`names`]: how nodes are named, and where things lie in the store.
//! - [`node`]: the other side, on each node.
//! - [`filter`]: which nodes an operator wants to see.
//! - [`state`]: what lies there, read and written only by who leads.
//! - [`health`], [`labels`], [`roles`], [`configuration`], [`directory`]: what may become of a node and of the cluster,
//!   and what is told of them; pure.

#![forbid(unsafe_code)]

pub mod backup;
pub mod configuration;
pub mod directory;
pub mod filter;
pub mod health;
pub mod labels;
pub mod leader;
pub mod membership;
pub mod moving;
pub mod names;
pub mod node;
pub mod roles;
pub mod state;
