//! curator: the cluster API. It admits nodes that hold the ticket and that a person approves, tells them their roles,
//! watches their health, and retires them (spec/cluster-api).
//!
//! - [`backup`], [`moving`]: how the cluster's state goes into a file, and from one store into another.
//! - [`run`]: the role. [`server`]: its port, where every call is judged ([`access`]) before anybody looks into it.
//! - [`api`]: the services. Those of a leader stand on its [`office`]; what it knows without asking is in [`known`].
//! - [`bootstrap`]: how a cluster begins. [`enrol`]: how nodes come in ([`register`] decides; pure). [`ticket`],
//!   [`limits`]: who may ask.
//! - [`escrow`]: how an owner comes by his certificate. [`certificates`]: the cluster's authority, and what it has issued.
//! - [`leader`]: which of several curators leads.
//! - [`standing`]: what a curator is from moment to moment.
//! - [`membership`], [`consensus`], [`peers`]: who keeps the state, once that is an etcd.
//! - [`names`]: how nodes are named, and where things lie in the store.
//! - [`node`]: the other side, on each node.
//! - [`roster`]: all nodes, for who lists and who watches them. [`filter`]: which of them an operator wants to see.
//! - [`kubernetes`]: certificates of workers.
//! - [`state`]: what lies there, read and written only by who leads.
//! - [`health`], [`labels`], [`roles`], [`configuration`], [`directory`]: what may become of a node and of the cluster,
//!   and what is told of them; pure.

#![forbid(unsafe_code)]

pub mod access;
pub mod api;
pub mod backup;
pub mod bootstrap;
pub mod certificates;
pub mod configuration;
pub mod consensus;
pub mod directory;
pub mod enrol;
pub mod escrow;
pub mod filter;
pub mod health;
pub mod known;
pub mod kubernetes;
pub mod labels;
pub mod leader;
pub mod limits;
pub mod membership;
pub mod moving;
pub mod names;
pub mod node;
pub mod office;
pub mod peers;
pub mod register;
pub mod roles;
pub mod roster;
pub mod run;
pub mod server;
pub mod standing;
pub mod state;
pub mod ticket;

pub use crate::run::{Curator, Error, Options};

/// The role's entry; `curator node` is the other side.
pub fn main(args: Vec<std::ffi::OsString>) -> std::process::ExitCode {
    match args.get(1).is_some_and(|word| word == "node") {
        true => node::main(args[1..].to_vec()),
        false => run::main(args),
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
