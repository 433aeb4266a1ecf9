//! Nodes as operators and other nodes are told of them (spec §3.6, §4.2).

use std::time::Duration;

use orlop_proto::metropolis::node::core::curator::proto::api as nodes;
use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_proto::metropolis::proto::api as operators;
use orlop_proto::metropolis::proto::common::NodeStatus;

use crate::health::Report;
use crate::{labels, roles};

/// The shortest hash of a commit that clients take: they cut it to this length unseen.
const COMMIT_LENGTH: usize = 8;

/// For operators: which roles it has, and how it is.
pub(super) fn to_operators(node: &Node, report: Report) -> operators::Node {
    operators::Node {
        pubkey: node.public_key.clone(),
        state: node.fsm_state,
        status: node.status.as_ref().map(status),
        roles: Some(roles::presence(node.roles.as_ref())),
        health: report.health.into(),
        time_since_heartbeat: Some(duration(report.since_heartbeat)),
        id: node.id.clone(),
        tpm_usage: node.tpm_usage,
        labels: Some(labels::sorted(node.labels.as_ref())),
    }
}

/// For nodes: all that a member of the cluster needs to know of another.
pub(super) fn to_nodes(node: &Node) -> nodes::Node {
    nodes::Node {
        id: node.id.clone(),
        roles: node.roles.clone(),
        status: node.status.clone(),
        clusternet: node.clusternet.clone(),
        state: node.fsm_state,
        labels: Some(labels::sorted(node.labels.as_ref())),
    }
}

fn status(told: &NodeStatus) -> NodeStatus {
    let mut status = told.clone();
    if let Some(version) = &mut status.version {
        let short = |hash: &str| hash.len() < COMMIT_LENGTH;
        version.git_information.take_if(|git| short(&git.commit_hash));
    }
    status
}

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use orlop_proto::metropolis::proto::api::node::Health;
    use orlop_proto::metropolis::proto::common::node_roles::ConsensusMember;
    use orlop_proto::metropolis::proto::common::{NodeLabels, NodeRoles};
    use orlop_proto::version::spec::Version;
    use orlop_proto::version::spec::version::GitInformation;

    use super::*;
    use crate::health::NEVER;

    #[test]
    fn operators_are_told_what_their_clients_can_bear() {
        let bare = Report { health: Health::Unknown, since_heartbeat: NEVER };
        let told = to_operators(&Node::default(), bare);
        assert_eq!(
            (told.roles, told.labels),
            (Some(NodeRoles::default()), Some(NodeLabels::default()))
        );
        assert_eq!(told.status, None);
        let never = prost_types::Duration { seconds: 9_223_372_036, nanos: 854_775_807 };
        assert_eq!(told.time_since_heartbeat, Some(never));

        let member = ConsensusMember { ca_certificate: vec![1], ..ConsensusMember::default() };
        let of = |hash: &str| Node {
            roles: Some(NodeRoles {
                consensus_member: Some(member.clone()),
                ..NodeRoles::default()
            }),
            status: Some(NodeStatus {
                version: Some(Version {
                    git_information: Some(GitInformation {
                        commit_hash: hash.to_owned(),
                        ..GitInformation::default()
                    }),
                    ..Version::default()
                }),
                ..NodeStatus::default()
            }),
            ..Node::default()
        };
        let git = |node: &Node| {
            let status = to_operators(node, bare).status.expect("a status");
            status.version.expect("a version").git_information.is_some()
        };
        assert!(git(&of("01234567")) && !git(&of("0123456")));
        let roles = to_operators(&of(""), bare).roles.expect("roles");
        assert_eq!(roles.consensus_member, Some(ConsensusMember::default()));
        // Nodes need the certificates.
        assert_eq!(to_nodes(&of("")).roles.expect("roles").consensus_member, Some(member));
    }
}
