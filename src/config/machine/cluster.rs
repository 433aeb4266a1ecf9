//! `cluster`: what the node belongs to (spec/node-api §6.5).

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use orlop_pki::Secret;
use serde::{Deserialize, Serialize};
use url::Url;

use super::network::is_false;
use super::node::is_default;
use crate::value::{CertificateAndKey, duration, host_url, secret_pem, text_map, texts};

/// `cluster`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Cluster {
    /// Where the Kubernetes API is.
    pub control_plane: ControlPlane,
    /// The cluster's identity in discovery: base64 of 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What members of the cluster encrypt their discovery data with: base64 of 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// The cluster's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    /// Pods, services, names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<ClusterNetwork>,
    /// Kubernetes' bootstrap token, `id.secret`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// Base64 of 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aescbc_encryption_secret: Option<Secret>,
    /// Kubernetes' authority; its key is on control planes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<CertificateAndKey>,
    /// Further authorities that Kubernetes' components accept: while one is replaced.
    #[serde(rename = "acceptedCAs", skip_serializing_if = "Vec::is_empty")]
    pub accepted_cas: Vec<CertificateAndKey>,
    /// What service accounts' tokens are signed with; on control planes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccount>,
    /// The API server.
    #[serde(skip_serializing_if = "is_default")]
    pub api_server: ApiServer,
    /// The controller manager.
    #[serde(skip_serializing_if = "is_default")]
    pub controller_manager: Component,
    /// The service proxy.
    #[serde(skip_serializing_if = "is_default")]
    pub proxy: Proxy,
    /// The scheduler.
    #[serde(skip_serializing_if = "is_default")]
    pub scheduler: Component,
    /// etcd; on control planes only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd: Option<Etcd>,
    /// The pod checkpointer.
    #[serde(skip_serializing_if = "is_default")]
    pub pod_checkpointer: Image,
    /// CoreDNS.
    #[serde(rename = "coreDNS", skip_serializing_if = "is_default")]
    pub core_dns: Image,
    /// Manifests to apply when the cluster starts.
    #[serde(with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub extra_manifests: Vec<Url>,
    /// HTTP headers for fetching them; such as a token.
    #[serde(with = "text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_manifest_headers: BTreeMap<String, Secret>,
    /// The administrator's kubeconfig.
    #[serde(skip_serializing_if = "is_default")]
    pub admin_kubeconfig: AdminKubeconfig,
    /// Control planes run workloads, too.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_scheduling_on_masters: bool,
}

/// `cluster.controlPlane`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ControlPlane {
    /// Required; a host and a port other than 0.
    #[serde(with = "host_url", skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Url>,
    /// `None` means 6443.
    #[serde(rename = "localAPIServerPort", skip_serializing_if = "Option::is_none")]
    pub local_api_server_port: Option<u16>,
}

/// `cluster.network`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ClusterNetwork {
    /// The plug-in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni: Option<Cni>,
    /// Required once there is a `network` section.
    pub dns_domain: String,
    /// `None` of a family means its default.
    #[serde(with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub pod_subnets: Vec<IpNet>,
    /// The DNS service is the tenth address.
    #[serde(with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub service_subnets: Vec<IpNet>,
}

/// `cluster.network.cni`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cni {
    /// `flannel`, `custom` or `none`.
    pub name: String,
    /// Manifests of a custom one.
    #[serde(with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<Url>,
}

/// `cluster.apiServer`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ApiServer {
    /// Reference of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Flags, without dashes.
    #[serde(with = "text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_args: BTreeMap<String, String>,
    /// Further names and addresses of its certificate.
    #[serde(rename = "certSANs", skip_serializing_if = "Vec::is_empty")]
    pub cert_sans: Vec<String>,
}

/// `cluster.controllerManager` and `cluster.scheduler`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Component {
    /// Reference of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Flags, without dashes.
    #[serde(with = "text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_args: BTreeMap<String, String>,
}

/// `cluster.proxy`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Proxy {
    /// Reference of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `None` means `iptables`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Flags, without dashes.
    #[serde(with = "text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_args: BTreeMap<String, String>,
}

/// `cluster.etcd`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Etcd {
    /// Reference of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// etcd's authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<CertificateAndKey>,
    /// Flags, without dashes; not those that the node sets.
    #[serde(with = "text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_args: BTreeMap<String, String>,
}

/// `cluster.serviceAccount`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceAccount {
    /// A private key, PEM; RSA or EC.
    #[serde(with = "secret_pem", skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
}

/// A component of which only the image can be chosen.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// Its reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// `cluster.adminKubeconfig`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AdminKubeconfig {
    /// `None` means 8760 h.
    #[serde(with = "duration", skip_serializing_if = "Option::is_none")]
    pub cert_lifetime: Option<Duration>,
}
