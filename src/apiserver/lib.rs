//! The Kubernetes API server.
//!
//! - [`authn`]: who asks.
//! - [`identity`]: the server's own certificate, keys and authorities: handed to it, or made by itself.
//! - [`schema`]: every type of the built-in groups with its fields, how they are written in JSON and protobuf, and how
//!   their lists are merged.
//! - [`object`]: what the parts hand each other: objects, who asks, what is about to be written.
//! - [`json`]: bodies read strictly: unknown fields, duplicates and wrong kinds of value, with their paths.
//! - [`protobuf`]: the same objects in the protobuf that kubectl and the kubelet send.
//! - [`yaml`]: the same in YAML; [`encoding`]: which form a client asks for and which it sends, and gzip.
//! - [`resources`]: what is served, in which group, with which verbs and subresources.
//! - [`discovery`]: that table as clients ask for it.
//! - [`table`]: objects as `kubectl get` shows them.
//! - [`openapi`]: the documents that describe all of it.
//! - [`health`]: whether the server works, for probes.
//! - [`request`]: what a request is about; [`status`]: how it ends when it does not end well.
//! - [`quantity`]: amounts, as `100m` and `1Gi`.
//! - [`selector`]: label and field selectors.
//! - [`authz`]: who may do what: roles, bindings, reviews, and what is there from the start.
//! - [`admission`]: what the cluster's own rules add to a write, and what they refuse.
//! - [`audit`]: what is kept of requests.
//! - [`flow`]: how much is done at a time; [`metrics`]: what is counted.
//! - [`visit`]: a request from its beginning to its end, for these three.
//! - [`loops`]: what a cluster does by itself: namespaces that end, garbage, what every namespace has.
//! - [`strategic`]: strategic merge patches.
//! - [`strategy`]: defaults, what is refused, deletion, subresources: what is particular about each resource.
//! - [`storage`]: objects in the store and in memory; [`registry`]: the verbs over it.
//! - [`versions`]: kinds that are served in two groups or versions and stored in one.
//! - [`server`]: connections, requests, answers; `run`: the role's start.

pub mod admission;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod discovery;
pub mod encoding;
pub mod flow;
mod gates;
pub mod health;
pub mod identity;
pub mod json;
pub mod loops;
pub mod metrics;
pub mod object;
pub mod openapi;
mod packed;
pub mod protobuf;
pub mod quantity;
mod random;
pub mod registry;
pub mod request;
pub mod resources;
mod run;
pub mod schema;
pub mod selector;
pub mod server;
pub mod status;
pub mod storage;
pub mod strategic;
pub mod strategy;
pub mod table;
pub mod versions;
pub mod visit;
pub mod yaml;

pub use run::{Error, Options, Running, main};
