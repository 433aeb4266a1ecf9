//! `configure`: what of a cluster that stands can be changed.

use orlop_proto::metropolis::proto::api::ConfigureClusterRequest;
use orlop_proto::metropolis::proto::common::ClusterConfiguration;
use orlop_proto::metropolis::proto::common::cluster_configuration::Kubernetes;
use orlop_proto::metropolis::proto::common::cluster_configuration::kubernetes::NodeLabelsToSynchronize;
use prost_types::FieldMask;

use super::session::{Session, management};
use super::status::{cluster_info, names, patterns};
use super::{Context, Error};
use crate::error::Error as CommandError;

/// Which labels of nodes Kubernetes is told: regular expressions.
const LABELS: &str = "kubernetes.node_labels_to_synchronize";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print a field
    Get {
        /// As kubernetes.node_labels_to_synchronize
        field: String,
    },
    /// Change a field
    Set {
        /// As kubernetes.node_labels_to_synchronize
        field: String,
        /// All its values from now on; none: it is cleared
        values: Vec<String>,
    },
}

pub(super) async fn run(context: &Context<'_>, command: &Command) -> Result<(), CommandError> {
    match command {
        Command::Get { field } => {
            let known = ["cluster_domain", "tpm_mode", "storage_security_policy", LABELS];
            if !known.contains(&&**field) {
                return Err(Error::Field(field.clone()).into());
            }
            let session = Session::open(context).await?;
            let info = cluster_info(&session).await?;
            let configuration = info.cluster_configuration.unwrap_or_default();
            let (tpm, storage) = names(&configuration);
            let values = match &**field {
                "cluster_domain" => vec![configuration.cluster_domain],
                "tpm_mode" => vec![tpm],
                "storage_security_policy" => vec![storage],
                _ => patterns(&configuration),
            };
            tell(context, &values)
        }
        Command::Set { field, values } => {
            if field != LABELS {
                return Err(Error::Field(field.clone()).into());
            }
            let session = Session::open(context).await?;
            let call = async |channel| management(channel).configure_cluster(request(values)).await;
            // Without a base: the same values twice are the same.
            let done = session.again("configure the cluster", call).await?;
            tell(context, &patterns(&done.resulting_config.unwrap_or_default()))
        }
    }
}

fn tell(context: &Context<'_>, values: &[String]) -> Result<(), CommandError> {
    let lines = values.iter().fold(String::new(), |text, value| text + value + "\n");
    context.tell(&lines, &values.into())
}

fn request(values: &[String]) -> ConfigureClusterRequest {
    let pattern = |value: &String| NodeLabelsToSynchronize { regexp: value.clone() };
    let node_labels_to_synchronize = values.iter().map(pattern).collect();
    let kubernetes = Some(Kubernetes { node_labels_to_synchronize });
    ConfigureClusterRequest {
        base_config: None,
        new_config: Some(ClusterConfiguration { kubernetes, ..ClusterConfiguration::default() }),
        update_mask: Some(FieldMask { paths: vec![LABELS.to_owned()] }),
    }
}
