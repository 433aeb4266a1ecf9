//! `machine`: what the node is (spec/node-api §6.3).

use std::collections::BTreeMap;

use orlop_pki::Secret;
use serde::{Deserialize, Serialize};
use url::Url;

use super::network::is_false;
use super::{Network, Time};
use crate::value::{CertificateAndKey, Mode, Size, host_url, text_map, texts};

/// `machine`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Machine {
    /// What the node does in the cluster.
    #[serde(rename = "type")]
    pub kind: MachineType,
    /// Admits nodes to the cluster (trustd).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// The machines' authority; its key is on control planes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<CertificateAndKey>,
    /// Further authorities whose certificates the node's services accept: while one is replaced.
    #[serde(rename = "acceptedCAs", skip_serializing_if = "Vec::is_empty")]
    pub accepted_cas: Vec<CertificateAndKey>,
    /// Further names and addresses of apid's and trustd's certificates.
    #[serde(rename = "certSANs", skip_serializing_if = "Vec::is_empty")]
    pub cert_sans: Vec<String>,
    /// The kubelet.
    #[serde(skip_serializing_if = "is_default")]
    pub kubelet: Kubelet,
    /// Host name, interfaces, resolvers.
    #[serde(skip_serializing_if = "is_default")]
    pub network: Network,
    /// Disks of the user's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Where and how the node is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub install: Option<Install>,
    /// Files to write before services start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// Environment of PID 1 and of services.
    #[serde(with = "text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The clock.
    #[serde(skip_serializing_if = "is_default")]
    pub time: Time,
    /// Names below `/proc/sys`, and what to write; [`sysctl_path`](super::sysctl_path) reads them.
    #[serde(with = "text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Names below `/sys`, written like those of `sysctls`, and what to write.
    #[serde(with = "text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub sysfs: BTreeMap<String, String>,
    /// Where images come from.
    #[serde(skip_serializing_if = "is_default")]
    pub registries: Registries,
    /// Modules to load.
    #[serde(skip_serializing_if = "is_default")]
    pub kernel: Kernel,
    /// What udev does about devices.
    #[serde(skip_serializing_if = "is_default")]
    pub udev: Udev,
    /// Where the services' logs are sent.
    #[serde(skip_serializing_if = "is_default")]
    pub logging: Logging,
    /// How much of the services' logs is kept (ours).
    #[serde(skip_serializing_if = "is_default")]
    pub logs: Logs,
    /// Labels of the node in Kubernetes.
    #[serde(with = "text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, String>,
    /// What can be switched.
    #[serde(skip_serializing_if = "is_default")]
    pub features: Features,
    /// Placing files from other nodes (ours).
    #[serde(skip_serializing_if = "is_default")]
    pub trustd: Trustd,
}

/// `machine.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineType {
    /// A control plane that also starts the cluster.
    Init,
    /// A control plane.
    ControlPlane,
    /// Runs workloads only; also written `join`, empty or not at all.
    #[default]
    #[serde(alias = "join", alias = "")]
    Worker,
}

impl MachineType {
    /// Whether it carries the cluster's secrets.
    #[must_use]
    pub fn is_control_plane(self) -> bool {
        self != Self::Worker
    }
}

/// `machine.kubelet`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Kubelet {
    /// Reference of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Flags, without dashes.
    #[serde(with = "text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_args: BTreeMap<String, String>,
    /// Mounts into its container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_mounts: Vec<Mount>,
    /// The node's name is host.domain.
    #[serde(rename = "registerWithFQDN", skip_serializing_if = "is_false")]
    pub register_with_fqdn: bool,
}

/// A mount as the OCI runtime specification has it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mount {
    /// Inside the container.
    pub destination: String,
    /// File system type, `bind` for a bind mount.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Device, or path on the node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// mount(8)'s options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A disk of the user's; one with any partition is left alone.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    /// `/dev/sdb`.
    pub device: String,
    /// In order.
    pub partitions: Vec<Partition>,
}

/// One of a [`Disk`]'s partitions.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Partition {
    /// 0 takes the rest of the disk; only the last may.
    pub size: Size,
    /// Where it is mounted.
    pub mountpoint: String,
}

/// `machine.install`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Install {
    /// `/dev/sda`; required on metal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub disk: String,
    /// After the defaults; a `console=` replaces all default consoles.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_kernel_args: Vec<String>,
    /// The installer; `None` means that of the running version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Read, not acted on: the boot loader is always installed.
    pub bootloader: bool,
    /// Zero the disk first.
    pub wipe: bool,
}

/// `machine.files[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// What is in it; it may be a password.
    pub content: Secret,
    /// Its mode.
    pub permissions: Mode,
    /// Absolute.
    pub path: String,
    /// What to do about one that exists.
    pub op: FileOperation,
}

/// `machine.files[].op`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileOperation {
    /// A new file, beneath `/var` only.
    #[default]
    Create,
    /// After the content of an existing one.
    Append,
    /// In place of the content of an existing one.
    Overwrite,
}

/// `machine.registries`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// By registry host, or `*` for all others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mirrors: BTreeMap<String, RegistryMirror>,
    /// By registry host.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, RegistryConfig>,
}

/// Where a registry's images are fetched from instead.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryMirror {
    /// Tried in order.
    #[serde(with = "texts")]
    pub endpoints: Vec<Url>,
}

/// How to speak to a registry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RegistryTls>,
    /// Credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegistryAuth>,
}

/// Trust towards a registry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RegistryTls {
    /// What we show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_identity: Option<CertificateAndKey>,
    /// Whom we trust, PEM; empty means the system's roots.
    #[serde(with = "crate::value::pem", skip_serializing_if = "String::is_empty")]
    pub ca: String,
    /// Trust anybody.
    #[serde(skip_serializing_if = "is_false")]
    pub insecure_skip_verify: bool,
}

/// Credentials for a registry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RegistryAuth {
    /// User.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Base64 of `user:password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Secret>,
    /// OAuth token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_token: Option<Secret>,
}

/// `machine.kernel`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kernel {
    /// Loaded in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<KernelModule>,
}

/// `machine.kernel.modules[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KernelModule {
    /// Without `.ko`.
    pub name: String,
    /// `name=value` each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<String>,
}

/// `machine.udev`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Udev {
    /// As in a rules file (udev(7)).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
}

/// `machine.logging`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logging {
    /// Each gets every line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<LogDestination>,
}

/// `machine.logging.destinations[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogDestination {
    /// `udp://host:port` or `tcp://host:port`; required.
    #[serde(with = "host_url", skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Url>,
    /// How a line is written.
    pub format: LogFormat,
}

/// `machine.logging.destinations[].format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// An object of JSON on a line of its own.
    #[default]
    JsonLines,
}

/// `machine.logs`, ours.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Logs {
    /// Memory for each service's last lines; 1 MiB unless set.
    pub ring_size: Size,
    /// Room on disk for each service's log, all its files together; 10 MiB unless set.
    pub disk_size: Size,
}

impl Default for Logs {
    fn default() -> Self {
        Self { ring_size: Size(1 << 20), disk_size: Size(10 << 20) }
    }
}

/// `machine.features`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Features {
    /// Roles in client certificates count; `None` means they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rbac: Option<bool>,
}

/// `machine.trustd`, ours (spec/node-api §4.1).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trustd {
    /// Folders beneath which established trustees may place files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drop: Vec<String>,
    /// Hosts where trustd is looked for before the cluster's endpoint, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
