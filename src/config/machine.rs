//! The machine configuration, `version: v1alpha1` (spec/node-api §6).
//!
//! [`parse`] reads a file of one or more YAML documents and answers with a [`MachineConfig`], or with
//! every problem it has, each with its line and column. The types are as strict as serde can make
//! them; what spans several keys is in `check`. [`parse_for`] also asks for what a node cannot do
//! without where it runs. Defaults that are the node's to choose stay `None` here.
//! [`MachineConfig::to_yaml`] writes it back: keys in the order of the types, defaults left out,
//! comments lost; [`MachineConfig::redacted_yaml`] and [`MachineConfig::diff`] show it to people.
//! [`unpack`] is for bytes that may be compressed.

mod check;
mod cluster;
mod example;
mod names;
mod network;
mod node;
mod show;
mod time;
mod unpack;
mod wireguard;

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use cluster::{
    AdminKubeconfig, ApiServer, Cluster, ClusterNetwork, Cni, Component, ControlPlane, Etcd, Image,
    Proxy, ServiceAccount,
};
pub use example::example_of_lines;
pub use names::sysctl_path;
pub use network::{
    AdSelect, ArpAllTargets, ArpValidate, Bond, BondMode, Bridge, BridgeVlan, DeviceSelector,
    DhcpOptions, FailOverMac, Fate, HostEntry, Interface, LacpRate, Neighbor, Network,
    PrimaryReselect, Resolver, Route, Rule, Stp, TlsResolver, Vip, Vlan, Vrf, XmitHashPolicy,
};
pub use node::{
    Disk, Features, File, FileOperation, Install, Kernel, KernelModule, Kubelet, LogDestination,
    LogFormat, Logging, Logs, Machine, MachineType, Mount, Partition, Registries, RegistryAuth,
    RegistryConfig, RegistryMirror, RegistryTls, Trustd, Udev,
};
pub use time::{NTS_PORT, NoTimeServer, Time, TimeServer};
pub use unpack::{UNPACKED_LIMIT, UnpackError, unpack};
pub use wireguard::{PublicKey, SecretKey, Wireguard, WireguardPeer};

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

    /// What is allowed and probably not meant, such as a certificate that has expired; each with its
    /// path in front.
    #[must_use]
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        check::warnings(self, now)
    }
}

/// Where a node runs, as far as that asks for more in its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A virtual machine of a provider's, whose image is the installation.
    Cloud,
    /// A container on a machine of ours.
    Container,
    /// Anything that is installed to a disk.
    Metal,
}

impl Mode {
    /// That of a platform (`talos.platform`).
    #[must_use]
    pub fn of_platform(name: &str) -> Self {
        match name {
            "container" => Self::Container,
            "metal" => Self::Metal,
            _ => Self::Cloud,
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "cloud" => Ok(Self::Cloud),
            "container" => Ok(Self::Container),
            "metal" => Ok(Self::Metal),
            _ => Err(format!("{word:?} is unknown; known are cloud, container, metal")),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cloud => "cloud",
            Self::Container => "container",
            Self::Metal => "metal",
        })
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
    read(file, text, None)
}

/// Like [`parse`], and what a node of this type cannot do without must be there: a control plane's
/// authorities and keys, a token, and in metal mode a disk to install to.
///
/// # Errors
/// All problems found, at most 50; of syntax errors, the first.
pub fn parse_for(mode: Mode, file: &str, text: &str) -> Result<MachineConfig, Problems> {
    read(file, text, Some(mode))
}

fn read(file: &str, text: &str, mode: Option<Mode>) -> Result<MachineConfig, Problems> {
    let text = Text::new(file, text)?;
    let index = choose(&text)?;
    let document: Document = text.read(index, |document| check::document(document, mode))?;
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
        let has = |key: &str| document.has(key);
        if has("machine") {
            if chosen.replace(index).is_some() {
                return Err(text.problem(Some(index), "a second document with `machine`"));
            }
        } else if !document.is_empty()
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
        Text::new("networkd.yaml", text)?.read(0, check::network)
    }

    /// Writes the section alone.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        to_yaml(self)
    }
}

impl Time {
    /// Reads a `machine.time` section that stands alone, as machined hands it to timed; an empty text
    /// is an empty section.
    ///
    /// # Errors
    /// All problems found.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        Text::new("timed.yaml", text)?.read(0, check::time)
    }

    /// Writes the section alone.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        to_yaml(self)
    }
}

#[cfg(test)]
mod tests;
