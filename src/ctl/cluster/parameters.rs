//! `install-params`: what a new machine is told, to found a cluster or to join this one.

use std::path::Path;

use orlop_config::parameters::{NodeParameters, default_configuration};
use orlop_proto::metropolis::proto::api::NodeParameters as Message;
use orlop_proto::metropolis::proto::api::node_parameters::{
    Cluster, ClusterBootstrap, ClusterRegister,
};
use orlop_proto::metropolis::proto::common::cluster_configuration::{
    StorageSecurityPolicy, TpmMode,
};
use orlop_proto::metropolis::proto::common::{
    ClusterConfiguration, ClusterDirectory, NodeLabels, cluster_directory, node_labels,
};
use orlop_rpc::leader::Leader;
use prost::Message as _;

use super::keyring::Kind;
use super::session::Session;
use super::status::{cluster_info, register_ticket};
use super::{Context, Error};
use crate::error::Error as CommandError;

/// Where they are written unless told otherwise.
const FILE: &str = "node-parameters.pb";
/// What QEMU calls them (`fw_cfg`).
const FW_CFG: &str = "dev.monogon.metropolis/parameters.pb";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// For the first node of a new cluster, which the owner's key will own
    #[arg(long)]
    bootstrap: bool,
    /// With --bootstrap: the new cluster's domain
    #[arg(long, requires = "bootstrap", value_name = "DOMAIN")]
    cluster: Option<String>,
    /// With --bootstrap: whether nodes must have a TPM
    #[arg(long, value_enum, requires = "bootstrap", value_name = "MODE")]
    bootstrap_tpm_mode: Option<Tpm>,
    /// With --bootstrap: what the nodes' disks must be like
    #[arg(long, value_enum, requires = "bootstrap", value_name = "POLICY")]
    bootstrap_storage_security: Option<Storage>,
    /// A label of the node, as often as there are labels
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Tpm {
    Required,
    BestEffort,
    Disabled,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Storage {
    Permissive,
    NeedsEncryption,
    NeedsEncryptionAndAuthentication,
    NeedsInsecure,
}

pub(super) async fn run(context: &Context<'_>, options: &Options) -> Result<(), CommandError> {
    let labels = labels(&options.label)?;
    let cluster = match options.bootstrap {
        true => {
            let configuration = configuration(options);
            // Nothing is made before all is known to be right.
            checked(founding([0; 32], configuration.clone(), labels.clone()))?;
            let (key, there) = context.keyring.key_or_new()?;
            let path = context.keyring.path(Kind::Key);
            let how = if there { "as before" } else { "new" };
            say!(note: "the owner's key ({how}) is in {}: keep it, the cluster is its own", path.display());
            founding(key.public(), configuration, labels)
        }
        false => {
            let session = Session::open(context).await?;
            let ticket = register_ticket(&session).await?;
            let info = cluster_info(&session).await?;
            if info.ca_certificate != session.authority {
                let why = "its authority is not the one that is pinned";
                return Err(Error::Strange(why.to_owned()).into());
            }
            let directory = info.cluster_directory.filter(|known| !known.nodes.is_empty());
            let directory = match directory {
                Some(directory) => directory,
                // No node has told its address yet; we have found the leader at one.
                None => directory_of(&session.leader().await?),
            };
            Cluster::ClusterRegister(ClusterRegister {
                cluster_directory: Some(directory),
                register_ticket: ticket,
                ca_certificate: info.ca_certificate,
                labels: Some(labels),
            })
        }
    };
    let bytes = checked(cluster)?;
    let path = context.flags.output.as_deref().unwrap_or(Path::new(FILE));
    if path == Path::new("-") {
        return crate::table::print(&bytes);
    }
    // Who has a ticket may knock at the cluster's door.
    orlop_rt::replace(path, 0o600, &bytes)
        .map_err(|source| CommandError::Write { path: path.to_owned(), source })?;
    say!("wrote {}", path.display());
    say!(hint: "QEMU: -fw_cfg name=opt/{FW_CFG},file={}", path.display());
    say!(hint: "the kernel's command line: node.params=http://HOST/{}", name(path));
    say!(hint: "a disk: as metropolis/parameters.pb on its EFI system partition");
    Ok(())
}

/// Without its folders.
fn name(path: &Path) -> impl std::fmt::Display {
    path.file_name().unwrap_or_default().display()
}

fn directory_of(leader: &Leader) -> ClusterDirectory {
    let host = leader.place.host.clone();
    let addresses = vec![cluster_directory::node::Address { host }];
    ClusterDirectory {
        nodes: vec![cluster_directory::Node { id: leader.node_id.clone(), addresses }],
    }
}

fn founding(owner: [u8; 32], configuration: ClusterConfiguration, labels: NodeLabels) -> Cluster {
    Cluster::ClusterBootstrap(ClusterBootstrap {
        owner_public_key: owner.to_vec(),
        initial_cluster_configuration: Some(configuration),
        labels: Some(labels),
    })
}

/// The bytes, if a node would take them.
fn checked(cluster: Cluster) -> Result<Vec<u8>, Error> {
    let message = Message { cluster: Some(cluster), network_config: None };
    NodeParameters::try_from(message.clone())?;
    Ok(message.encode_to_vec())
}

fn configuration(options: &Options) -> ClusterConfiguration {
    let mut configuration = default_configuration();
    if let Some(domain) = &options.cluster {
        configuration.cluster_domain.clone_from(domain);
    }
    if let Some(mode) = options.bootstrap_tpm_mode {
        configuration.tpm_mode = match mode {
            Tpm::Required => TpmMode::Required,
            Tpm::BestEffort => TpmMode::BestEffort,
            Tpm::Disabled => TpmMode::Disabled,
        }
        .into();
    }
    if let Some(policy) = options.bootstrap_storage_security {
        configuration.storage_security_policy = match policy {
            Storage::Permissive => StorageSecurityPolicy::Permissive,
            Storage::NeedsEncryption => StorageSecurityPolicy::NeedsEncryption,
            Storage::NeedsEncryptionAndAuthentication => {
                StorageSecurityPolicy::NeedsEncryptionAndAuthentication
            }
            Storage::NeedsInsecure => StorageSecurityPolicy::NeedsInsecure,
        }
        .into();
    }
    configuration
}

fn labels(given: &[String]) -> Result<NodeLabels, Error> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            let what = "label; write KEY=VALUE";
            Error::Value { what, given: text.clone() }
        })?;
        Ok(node_labels::Pair { key: key.to_owned(), value: value.to_owned() })
    };
    Ok(NodeLabels { pairs: given.iter().map(pair).collect::<Result<_, Error>>()? })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_config::parameters::{Founding, Task};

    use super::*;

    fn options() -> Options {
        Options {
            bootstrap: true,
            cluster: None,
            bootstrap_tpm_mode: None,
            bootstrap_storage_security: None,
            label: Vec::new(),
        }
    }

    #[test]
    fn what_is_written_is_what_a_node_reads() {
        let options = Options {
            cluster: Some("c.example".to_owned()),
            bootstrap_tpm_mode: Some(Tpm::Disabled),
            bootstrap_storage_security: Some(Storage::NeedsInsecure),
            ..options()
        };
        let labels = labels(&["zone=a".to_owned(), "x=".to_owned()]).unwrap();
        let bytes = checked(founding([7; 32], configuration(&options), labels.clone())).unwrap();
        let read = NodeParameters::decode(&bytes).unwrap();
        let Task::Found(Founding { owner, configuration, labels: told }) = read.task else {
            panic!("it founds")
        };
        assert_eq!((owner, told), ([7; 32], labels));
        assert_eq!(configuration.cluster_domain, "c.example");
        assert_eq!(configuration.tpm_mode(), TpmMode::Disabled);
        assert_eq!(configuration.storage_security_policy(), StorageSecurityPolicy::NeedsInsecure);
    }

    #[test]
    fn what_a_node_would_refuse_is_not_written() {
        let options = Options { cluster: Some("1.2".to_owned()), ..options() };
        let error = checked(founding([7; 32], configuration(&options), NodeLabels::default()));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("cluster_domain"), "{text}");
        assert!(labels(&["x".to_owned()]).is_err());
    }
}
