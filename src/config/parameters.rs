//! Node parameters: how a new machine is told to found a cluster, or which one to join (spec/cluster-api §5).
//!
//! [`NodeParameters::decode`] reads their bytes and refuses what a node could not act on, before it makes keys or asks
//! anybody (§3.2, step 1). What is only the cluster's to judge (labels, the ticket) is passed on as it is.
//! [`configuration_problems`] says what is wrong with the configuration of a cluster, [`default_configuration`] what one
//! is like that nobody has configured.

mod network;

use std::net::IpAddr;

use orlop_pki::cluster::KEY_LENGTH;
use orlop_proto::metropolis::proto::api::NodeParameters as Message;
use orlop_proto::metropolis::proto::api::node_parameters::{
    Cluster, ClusterBootstrap, ClusterRegister,
};
use orlop_proto::metropolis::proto::common::cluster_configuration::{
    StorageSecurityPolicy, TpmMode,
};
use orlop_proto::metropolis::proto::common::{
    ClusterConfiguration, ClusterDirectory, NodeLabels, cluster_directory,
};
use orlop_proto::osbase::net::proto::Net;
use prost::Message as _;

use crate::machine::Network;

/// Parameters are never larger: a directory has 15 nodes, a node 128 labels of some 400 bytes.
pub const SIZE_LIMIT: usize = 1 << 20;
/// The longest domain of a cluster (§5.2).
const DOMAIN_LENGTH: usize = 80;
/// Of a cluster that nobody gave one.
pub const DEFAULT_DOMAIN: &str = "cluster.internal";

/// What a new machine is told.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeParameters {
    /// What it is to do.
    pub task: Task,
    /// Its network as it was written; `None`: every link asks a DHCP server. [`NodeParameters::network`] understands it.
    network: Option<Net>,
}

/// Found a cluster, or join one.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// It is the first node.
    Found(Founding),
    /// It asks to be taken in.
    Join(Joining),
}

/// For the first node of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Founding {
    /// Whose private half makes an owner (§2).
    pub owner: [u8; KEY_LENGTH],
    /// What the cluster is like.
    pub configuration: ClusterConfiguration,
    /// Of this node; those that are malformed are still among them.
    pub labels: NodeLabels,
}

/// For a node that asks a cluster to take it in.
#[derive(Clone, Debug, PartialEq)]
pub struct Joining {
    /// Nodes that know where the leader is, at least one.
    pub directory: Vec<Known>,
    /// What is shown for being listened to; opaque.
    pub ticket: Vec<u8>,
    /// The cluster's authority (DER).
    pub ca: Vec<u8>,
    /// Of this node; those that are malformed are still among them.
    pub labels: NodeLabels,
}

/// A node of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its id, if that is known.
    pub id: String,
    /// At least one; the first is used.
    pub addresses: Vec<IpAddr>,
}

/// Why there are no node parameters in these bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "node parameters: {path}{}{why}; make them anew with `orlopctl cluster install-params`",
    if path.is_empty() { "" } else { ": " }
)]
pub struct Wrong {
    /// The field, as the interface names it; empty: all of it.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

fn wrong<T>(path: impl Into<String>, why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { path: path.into(), why: why.into() })
}

impl NodeParameters {
    /// Reads their bytes.
    ///
    /// # Errors
    /// The first thing that a node could not act on.
    pub fn decode(bytes: &[u8]) -> Result<Self, Wrong> {
        if bytes.len() > SIZE_LIMIT {
            return wrong("", format!("they have more than {SIZE_LIMIT} bytes"));
        }
        match Message::decode(bytes) {
            Ok(message) => Self::try_from(message),
            Err(error) => wrong("", format!("they are damaged ({error})")),
        }
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Message::from(self.clone()).encode_to_vec()
    }

    /// Its network, if there is more to do than to ask DHCP servers, and what of it is not done here.
    ///
    /// # Errors
    /// None that [`NodeParameters::decode`] has not found.
    pub fn network(&self) -> Result<Option<(Network, Vec<String>)>, Wrong> {
        self.network.as_ref().map(network::understood).transpose()
    }
}

impl TryFrom<Message> for NodeParameters {
    type Error = Wrong;

    fn try_from(Message { cluster, network_config }: Message) -> Result<Self, Wrong> {
        let task = match cluster {
            Some(Cluster::ClusterBootstrap(bootstrap)) => Task::Found(founding(bootstrap)?),
            Some(Cluster::ClusterRegister(register)) => Task::Join(joining(register)?),
            None => {
                let why = "they say neither cluster_bootstrap nor cluster_register, or what this \
                           release does not know";
                return wrong("", why);
            }
        };
        let parameters = Self { task, network: network_config };
        parameters.network()?;
        Ok(parameters)
    }
}

impl From<NodeParameters> for Message {
    fn from(NodeParameters { task, network }: NodeParameters) -> Self {
        let cluster = match task {
            Task::Found(Founding { owner, configuration, labels }) => {
                Cluster::ClusterBootstrap(ClusterBootstrap {
                    owner_public_key: owner.to_vec(),
                    initial_cluster_configuration: Some(configuration),
                    labels: Some(labels),
                })
            }
            Task::Join(Joining { directory, ticket, ca, labels }) => {
                Cluster::ClusterRegister(ClusterRegister {
                    cluster_directory: Some(directory_message(&directory)),
                    register_ticket: ticket,
                    ca_certificate: ca,
                    labels: Some(labels),
                })
            }
        };
        Self { cluster: Some(cluster), network_config: network }
    }
}

fn founding(bootstrap: ClusterBootstrap) -> Result<Founding, Wrong> {
    let at = |field: &str| format!("cluster_bootstrap.{field}");
    let ClusterBootstrap { owner_public_key, initial_cluster_configuration, labels } = bootstrap;
    let Ok(owner) = <[u8; KEY_LENGTH]>::try_from(&owner_public_key[..]) else {
        let length = owner_public_key.len();
        return wrong(at("owner_public_key"), format!("it has {length} bytes, not {KEY_LENGTH}"));
    };
    let configuration = match initial_cluster_configuration {
        None => default_configuration(),
        Some(configuration) => {
            if let Some((field, why)) = configuration_problems(&configuration).into_iter().next() {
                return wrong(at(&format!("initial_cluster_configuration.{field}")), why);
            }
            configuration
        }
    };
    Ok(Founding { owner, configuration, labels: labels.unwrap_or_default() })
}

fn joining(register: ClusterRegister) -> Result<Joining, Wrong> {
    let at = |field: &str| format!("cluster_register.{field}");
    let ClusterRegister { cluster_directory, register_ticket: ticket, ca_certificate: ca, labels } =
        register;
    if let Err(error) = orlop_pki::cluster::authority_key(&ca) {
        return wrong(at("ca_certificate"), error.to_string());
    }
    if ticket.is_empty() {
        return wrong(at("register_ticket"), "it is empty");
    }
    let directory = known(&cluster_directory.unwrap_or_default())
        .map_err(|Wrong { path, why }| Wrong { path: at(&path), why })?;
    if directory.is_empty() {
        return wrong(at("cluster_directory"), "it names no node");
    }
    Ok(Joining { directory, ticket, ca, labels: labels.unwrap_or_default() })
}

/// Who is in a directory.
///
/// # Errors
/// When a node has no address, or one that is no IP address.
pub fn known(directory: &ClusterDirectory) -> Result<Vec<Known>, Wrong> {
    let one = |(i, node): (usize, &cluster_directory::Node)| {
        let at = || format!("cluster_directory.nodes[{i}].addresses");
        if node.addresses.is_empty() {
            return wrong(at(), "there is none");
        }
        let address = |address: &cluster_directory::node::Address| match address.host.parse() {
            Ok(address) => Ok(address),
            Err(_) => wrong(at(), format!("{:?} is no IP address", address.host)),
        };
        let addresses = node.addresses.iter().map(address).collect::<Result<_, _>>()?;
        Ok(Known { id: node.id.clone(), addresses })
    };
    directory.nodes.iter().enumerate().map(one).collect()
}

/// The directory with these in it.
#[must_use]
pub fn directory_message(known: &[Known]) -> ClusterDirectory {
    let address = |address: &IpAddr| cluster_directory::node::Address { host: address.to_string() };
    let node = |node: &Known| cluster_directory::Node {
        id: node.id.clone(),
        addresses: node.addresses.iter().map(address).collect(),
    };
    ClusterDirectory { nodes: known.iter().map(node).collect() }
}

/// Of a cluster whose founder gave none (§5.2).
#[must_use]
pub fn default_configuration() -> ClusterConfiguration {
    ClusterConfiguration {
        cluster_domain: DEFAULT_DOMAIN.to_owned(),
        tpm_mode: TpmMode::Required.into(),
        storage_security_policy: StorageSecurityPolicy::NeedsEncryptionAndAuthentication.into(),
        kubernetes: None,
    }
}

/// All that is wrong with a configuration somebody wrote: which field, and why (§5.2).
#[must_use]
pub fn configuration_problems(configuration: &ClusterConfiguration) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    if let Err(why) = check_domain(&configuration.cluster_domain) {
        problems.push(("cluster_domain", why));
    }
    match TpmMode::try_from(configuration.tpm_mode) {
        Ok(TpmMode::Required | TpmMode::BestEffort | TpmMode::Disabled) => {}
        Ok(TpmMode::Invalid) | Err(_) => {
            let why = format!("{} is no mode; 1, 2 and 3 are", configuration.tpm_mode);
            problems.push(("tpm_mode", why));
        }
    }
    let policy = configuration.storage_security_policy;
    match StorageSecurityPolicy::try_from(policy) {
        Ok(StorageSecurityPolicy::Invalid) | Err(_) => {
            problems
                .push(("storage_security_policy", format!("{policy} is no policy; 1 to 4 are")));
        }
        Ok(_) => {}
    }
    problems
}

/// What is wrong with a cluster's domain: a DNS name in lower case whose last label is no number, of at most 80
/// characters (§4.6, §5.2).
///
/// # Errors
/// What is wrong, in words.
pub fn check_domain(domain: &str) -> Result<(), String> {
    if domain.is_empty() {
        return Err("it is empty".to_owned());
    }
    if domain.len() > DOMAIN_LENGTH {
        return Err(format!("it has {} characters of at most {DOMAIN_LENGTH}", domain.len()));
    }
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let sound = |label: &str| {
        let bytes = label.as_bytes();
        matches!(bytes.len(), 1..=63)
            && edge(bytes[0])
            && edge(bytes[bytes.len() - 1])
            && bytes.iter().all(|byte| edge(*byte) || *byte == b'-')
    };
    if let Some(label) = domain.split('.').find(|label| !sound(label)) {
        return Err(format!("{label:?} is no part of a DNS name in lower case"));
    }
    let last = domain.rsplit('.').next().unwrap_or(domain);
    let decimal = last.bytes().all(|byte| byte.is_ascii_digit());
    let hexadecimal =
        last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
    if decimal || hexadecimal {
        return Err(format!("its last part is the number {last}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
