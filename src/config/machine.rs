//! The machine configuration, `version: v1alpha1` (spec/node-api §6).
//!
//! [`parse`] reads a file of one or more YAML documents and answers with a [`MachineConfig`], or with
//! every problem it has, each with its line and column. The types are as strict as serde can make
//! them; what spans several keys is in `check`. Defaults that are the node's to choose stay `None`
//! here. [`MachineConfig::to_yaml`] writes it back: keys in the order of the types, defaults left
//! out, comments lost.

mod check;
mod cluster;
mod network;
mod node;

use serde::{Deserialize, Serialize};
use serde_yaml::Value;

pub use cluster::{
    AdminKubeconfig, ApiServer, Cluster, ClusterNetwork, Cni, Component, ControlPlane, Etcd, Image,
    Proxy,
};
pub use network::{
    AdSelect, ArpAllTargets, ArpValidate, Bond, BondMode, DhcpOptions, FailOverMac, HostEntry,
    Interface, LacpRate, Network, PrimaryReselect, Route, Vlan, XmitHashPolicy,
};
pub use node::{
    Disk, File, FileOperation, Install, Kubelet, Machine, MachineType, Mount, Partition,
    Registries, RegistryAuth, RegistryConfig, RegistryMirror, RegistryTls, Time, Trustd,
};

use crate::document::{Text, to_yaml};
use crate::problem::Problems;

/// The one version there is.
pub const VERSION: &str = "v1alpha1";

/// A machine configuration that is known to be sound.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MachineConfig {
    /// `v1alpha1`.
    pub version: String,
    /// Services' logs also go to the console.
    pub debug: bool,
    /// The node keeps the configuration; otherwise it fetches it at each boot.
    pub persist: bool,
    /// What the node is.
    pub machine: Machine,
    /// What it belongs to.
    pub cluster: Cluster,
}

impl MachineConfig {
    /// Writes it as YAML that [`parse`] reads as the same value. It contains the secrets.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        to_yaml(self)
    }
}

/// The document as it is written, before it is known to be complete.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    version: Option<String>,
    debug: bool,
    persist: bool,
    machine: Option<Machine>,
    cluster: Option<Cluster>,
}

/// Reads the text of a machine configuration; `file` is what its author calls it.
///
/// # Errors
/// All problems found, at most 50; of syntax errors, the first.
pub fn parse(file: &str, text: &str) -> Result<MachineConfig, Problems> {
    let text = Text::new(file, text)?;
    let index = choose(&text)?;
    let document: Document = text.read(index, check::document)?;
    let (Some(machine), Some(cluster)) = (document.machine, document.cluster) else {
        return Err(text.problem(Some(index), "machine and cluster instructions are required"));
    };
    Ok(MachineConfig {
        version: document.version.unwrap_or_else(|| VERSION.to_owned()),
        debug: document.debug,
        persist: document.persist,
        machine,
        cluster,
    })
}

/// The one document with a `machine`; every other must say what it is.
fn choose(text: &Text<'_>) -> Result<usize, Problems> {
    let mut chosen = None;
    for (index, document) in text.documents().iter().enumerate() {
        let has = |key: &str| document.get(key).is_some();
        if has("machine") {
            if chosen.replace(index).is_some() {
                return Err(text.problem(Some(index), "a second document with `machine`"));
            }
        } else if *document != Value::Null
            && !(has("kind") && (has("apiVersion") || (has("version") && has("spec"))))
        {
            let message = "the document has no `machine`, and no `apiVersion` and `kind` either";
            // A file that is something else altogether has no configuration in it at all.
            let message = if text.documents().len() == 1 { "config not found" } else { message };
            return Err(text.problem(Some(index), message));
        }
    }
    chosen.ok_or_else(|| text.problem(None, "config not found"))
}

impl Network {
    /// Reads a `machine.network` section that stands alone, as machined hands it to networkd; an
    /// empty text is an empty section.
    ///
    /// # Errors
    /// All problems found.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        Text::new("networkd.yaml", text)?.read(0, |network| check::network(network, ""))
    }

    /// Writes the section alone.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        to_yaml(self)
    }
}

#[cfg(test)]
mod tests;
