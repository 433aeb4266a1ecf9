//! What a node and its operator are told by files and by the kernel's command line.
//!
//! - [`client`]: the operator's `talosconfig`.
//! - [`cmdline`]: kernel arguments, `talos.*` and `orlop.*`, `ip=`.
//! - [`generate`]: all of it for a new cluster.
//! - [`kubeconfig`]: the one of a Kubernetes cluster's administrator.
//! - [`machine`]: the machine configuration, `version: v1alpha1`.
//!
//! Files are read from their text with all their problems at once, each with file, line, column and
//! path ([`Problems`]).

#![forbid(unsafe_code)]

pub mod client;
pub mod cmdline;
mod document;
pub mod generate;
pub mod kubeconfig;
pub mod machine;
mod problem;
mod value;

pub use problem::{Problem, Problems};
pub use value::{CertificateAndKey, Mode, Size};
