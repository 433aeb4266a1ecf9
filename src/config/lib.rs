//! What a node and its operator are told by files and by the kernel's command line.
//!
//! - [`client`]: the operator's `talosconfig`.
//! - [`cmdline`]: kernel arguments, `talos.*` and `orlop.*`, `ip=`.
//! - [`environment`]: variables of the ambassador's parts.
//! - [`generate`]: all of it for a new cluster.
//! - [`kubeconfig`]: the one of a Kubernetes cluster's administrator.
//! - [`machine`]: the machine configuration, `version: v1alpha1`.
//! - [`parameters`]: node parameters, the other way in: how to found a cluster, or which one to join.
//!
//! Files are read from their text with all their problems at once, each with file, line, column and
//! path ([`Problems`]).

#![forbid(unsafe_code)]

pub mod client;
pub mod cmdline;
mod document;
pub mod environment;
pub mod generate;
pub mod kubeconfig;
pub mod machine;
pub mod parameters;
mod problem;
mod value;

pub use problem::{Problem, Problems};
pub use value::{CertificateAndKey, Mode, Size};

/// Reads a YAML document that somebody wrote into a type of another crate. `check` says what is wrong with it beyond its
/// types: where, as a JSON pointer (`/rules/0/level`), and what. `file` is what its owner calls it.
///
/// # Errors
/// All problems found; of syntax errors, the first.
pub fn read<T: serde::de::DeserializeOwned>(
    file: &str,
    text: &str,
    check: impl FnOnce(&T) -> Vec<(String, String)>,
) -> Result<T, Problems> {
    document::Text::new(file, text)?.read(0, |value| {
        let found = check(value).into_iter();
        found.map(|(pointer, message)| document::Finding::at(&pointer, message)).collect()
    })
}
