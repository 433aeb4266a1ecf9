//! Where a machine that joins finds the cluster (spec §4.1, §5.3).

use std::net::IpAddr;

use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_proto::metropolis::proto::common::cluster_directory::node::Address;
use orlop_proto::metropolis::proto::common::{ClusterDirectory, NodeState, cluster_directory};

/// How many nodes it names.
pub const MOST: usize = 15;

/// Nodes that are up and have an address: those with a curator first, which are all that a machine can ask, and then by
/// key. A machine refuses a directory with a node that has no address, or one that is none.
#[must_use]
pub fn directory<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> ClusterDirectory {
    let mut named: Vec<_> = nodes
        .into_iter()
        .filter(|node| node.fsm_state() == NodeState::Up)
        .filter_map(|node| {
            let status = node.status.as_ref()?;
            let _: IpAddr = status.external_address.parse().ok()?;
            let host = status.external_address.clone();
            Some((status.running_curator.is_none(), &node.public_key, host, &node.id))
        })
        .collect();
    named.sort_unstable();
    let node = |(_, _, host, id): (bool, &Vec<u8>, String, &String)| cluster_directory::Node {
        addresses: vec![Address { host }],
        id: id.clone(),
    };
    ClusterDirectory { nodes: named.into_iter().take(MOST).map(node).collect() }
}

#[cfg(test)]
mod tests {
    use orlop_proto::metropolis::proto::common::{NodeStatus, node_status::RunningCurator};

    use super::*;

    fn node(key: u8, state: NodeState, address: &str, curator: bool) -> Node {
        let status = NodeStatus {
            external_address: address.to_owned(),
            running_curator: curator.then_some(RunningCurator { port: 7835 }),
            ..NodeStatus::default()
        };
        Node {
            id: key.to_string(),
            public_key: vec![key; 32],
            fsm_state: state.into(),
            status: Some(status),
            ..Node::default()
        }
    }

    #[test]
    fn who_can_be_asked_comes_first() {
        let silent = Node { status: None, ..node(1, NodeState::Up, "", true) };
        let nodes = [
            node(9, NodeState::Up, "10.0.0.9", true),
            node(8, NodeState::Up, "10.0.0.8", false),
            silent,
            node(2, NodeState::Up, "", true),
            node(3, NodeState::Up, "elsewhere", true),
            node(4, NodeState::Standby, "10.0.0.4", true),
            node(5, NodeState::Decommissioned, "10.0.0.5", true),
            node(7, NodeState::Up, "2001:db8::7", true),
        ];
        let ClusterDirectory { nodes } = directory(&nodes);
        let ids: Vec<_> = nodes.iter().map(|node| &*node.id).collect();
        assert_eq!(ids, ["7", "9", "8"]);
        assert_eq!(nodes[0].addresses, [Address { host: "2001:db8::7".to_owned() }]);
    }

    #[test]
    fn fifteen_are_enough() {
        let nodes: Vec<_> =
            (0..40).map(|key| node(39 - key, NodeState::Up, "10.0.0.1", key < 20)).collect();
        let directory = directory(&nodes);
        let ids: Vec<_> = directory.nodes.iter().map(|node| node.id.clone()).collect();
        assert_eq!(ids, (20..35).map(|key| key.to_string()).collect::<Vec<_>>());
    }
}
