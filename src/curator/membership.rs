//! Who keeps the cluster's state: the members of etcd and the nodes with the role ConsensusMember, brought in line
//! (spec §4.4). Pure: lists in, one change out.

use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use orlop_store::Member;

use crate::names::NodeId;

/// Where members find each other.
pub const PEER_PORT: u16 = 7834;

/// Where the others find the member of a node.
#[must_use]
pub fn peer_url(id: &NodeId) -> String {
    format!("https://{id}:{PEER_PORT}")
}

/// Which node a member is: its name says it, and before its first start the host in its URL.
#[must_use]
pub fn node_of(member: &Member) -> Option<NodeId> {
    if !member.name.is_empty() {
        return member.name.parse().ok();
    }
    let (_, rest) = member.peer_urls.first()?.split_once("://")?;
    rest.split([':', '/']).next()?.parse().ok()
}

/// As [`node_of`], in the words of who is no node.
#[must_use]
pub fn name_of(member: &Member) -> String {
    if !member.name.is_empty() {
        return member.name.clone();
    }
    let url = member.peer_urls.first().map(String::as_str).unwrap_or_default();
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/')
        .next()
        .unwrap_or_default()
        .rsplit_once(':')
        .map_or(rest, |(host, _)| host)
        .into()
}

/// The member that a node is, if it is one.
#[must_use]
pub fn member_of<'a>(members: &'a [Member], id: &NodeId) -> Option<&'a Member> {
    members.iter().find(|member| node_of(member).as_ref() == Some(id))
}

/// Is this the only node that votes?
#[must_use]
pub fn votes_alone(members: &[Member], id: &NodeId) -> bool {
    let mut voters = members.iter().filter(|member| !member.learner);
    let alone = |voter: &Member| node_of(voter).as_ref() == Some(id);
    voters.next().is_some_and(alone) && voters.next().is_none()
}

/// Learners that may vote once they have caught up, which etcd knows.
pub fn learners(members: &[Member]) -> impl Iterator<Item = &Member> {
    members.iter().filter(|member| member.learner && !member.name.is_empty())
}

/// What brings members and roles in line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Nobody's any more: out of etcd.
    RemoveMember(u64),
    /// It is a member: it gets the role.
    GiveRole(NodeId),
    /// It is no member, and cannot be a Kubernetes controller.
    TakeController(NodeId),
    /// It is no member.
    TakeRole(NodeId),
}

/// The next change, if one is needed. The members must have been listed before the nodes: who is a member in the old
/// list and no node in the new one was deleted, and who registered in between is not looked at. Nothing is done unless
/// the leader finds itself in both: else it is the lists that are wrong.
#[must_use]
pub fn reconcile(own: &NodeId, members: &[Member], nodes: &[Node]) -> Option<Change> {
    let of = |id: &NodeId| nodes.iter().find(|node| node.id == id.as_str());
    of(own)?;
    member_of(members, own)?;
    // Who was added by hand has no name before it starts, and may have any address.
    let homeless = |member: &&Member| match node_of(member) {
        Some(id) => of(&id).is_none(),
        None => !member.name.is_empty(),
    };
    if let Some(member) = members.iter().find(homeless) {
        return Some(Change::RemoveMember(member.id));
    }
    nodes.iter().find_map(|node| {
        let id: NodeId = node.id.parse().ok()?;
        let roles = node.roles.as_ref();
        let role = roles.is_some_and(|roles| roles.consensus_member.is_some());
        let controller = roles.is_some_and(|roles| roles.kubernetes_controller.is_some());
        match (member_of(members, &id).is_some(), role) {
            (true, false) => Some(Change::GiveRole(id)),
            (false, true) if controller => Some(Change::TakeController(id)),
            (false, true) => Some(Change::TakeRole(id)),
            (true, true) | (false, false) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use orlop_proto::metropolis::proto::common::NodeRoles;
    use orlop_proto::metropolis::proto::common::node_roles::{
        ConsensusMember, KubernetesController,
    };

    use super::*;

    fn id(number: u8) -> NodeId {
        NodeId::of_key(&[number; 32])
    }

    fn voter(number: u8) -> Member {
        let (name, peer_urls) = (id(number).to_string(), vec![peer_url(&id(number))]);
        Member { id: number.into(), name, peer_urls, learner: false }
    }

    fn learner(number: u8) -> Member {
        Member { learner: true, ..voter(number) }
    }

    fn unborn(number: u8) -> Member {
        Member { name: String::new(), ..learner(number) }
    }

    fn stranger(name: &str) -> Member {
        let peer_urls = vec!["https://10.0.0.1:2380".to_owned()];
        Member { id: 7, name: name.to_owned(), peer_urls, learner: true }
    }

    /// c: consensus member, k: Kubernetes controller.
    fn node(number: u8, roles: &str) -> Node {
        let roles = NodeRoles {
            consensus_member: roles.contains('c').then(ConsensusMember::default),
            kubernetes_controller: roles.contains('k').then_some(KubernetesController {}),
            kubernetes_worker: None,
        };
        Node { id: id(number).to_string(), roles: Some(roles), ..Node::default() }
    }

    #[test]
    fn a_member_is_told_by_its_name_and_before_it_has_one_by_its_address() {
        assert_eq!(node_of(&voter(1)), Some(id(1)));
        assert_eq!(node_of(&unborn(1)), Some(id(1)));
        assert_eq!(name_of(&unborn(1)), id(1).to_string());
        let stranger = |name: &str, url: &str| Member {
            name: name.to_owned(),
            peer_urls: vec![url.to_owned()],
            ..Member::default()
        };
        for (name, url, told) in [
            ("etcd-1", "https://10.0.0.1:2380", "etcd-1"),
            ("", "https://10.0.0.1:2380", "10.0.0.1"),
            ("", "http://[fd00::1]:2380/", "[fd00::1]"),
            ("", "", ""),
            ("", "nonsense", "nonsense"),
        ] {
            let member = stranger(name, url);
            assert_eq!((node_of(&member), &*name_of(&member)), (None, told), "{name} {url}");
        }
        let none = Member::default();
        assert_eq!((node_of(&none), &*name_of(&none)), (None, ""));
    }

    #[test]
    fn one_change_at_a_time_brings_members_and_roles_in_line() {
        use Change::{GiveRole, RemoveMember, TakeController, TakeRole};
        type Case = (Vec<Member>, Vec<Node>, Option<Change>);
        let cases: Vec<Case> = vec![
            (vec![voter(1)], vec![node(1, "ck")], None),
            (vec![voter(1), learner(2)], vec![node(1, "ck"), node(2, "c"), node(3, "")], None),
            // Not found in one of them: nothing is touched.
            (vec![], vec![node(1, "c"), node(2, "c")], None),
            (vec![voter(1), voter(2)], vec![node(2, "")], None),
            (vec![voter(2)], vec![node(1, "c")], None),
            (vec![voter(1), voter(2)], vec![node(1, "c")], Some(RemoveMember(2))),
            (vec![voter(1), unborn(2)], vec![node(1, "c")], Some(RemoveMember(2))),
            (vec![voter(1), stranger("etcd-1")], vec![node(1, "c")], Some(RemoveMember(7))),
            (vec![voter(1), stranger("")], vec![node(1, "c")], None),
            (vec![voter(1), unborn(2)], vec![node(1, "c"), node(2, "")], Some(GiveRole(id(2)))),
            (vec![voter(1)], vec![node(1, "")], Some(GiveRole(id(1)))),
            (vec![voter(1)], vec![node(1, "c"), node(2, "c")], Some(TakeRole(id(2)))),
            (vec![voter(1)], vec![node(1, "c"), node(2, "ck")], Some(TakeController(id(2)))),
            (
                vec![voter(1), voter(9), voter(3)],
                vec![node(1, "c"), node(2, "c"), node(3, "")],
                Some(RemoveMember(9)),
            ),
        ];
        for (number, (members, nodes, change)) in cases.into_iter().enumerate() {
            assert_eq!(reconcile(&id(1), &members, &nodes), change, "case {number}");
        }
        // Whatever is wrong, it comes to an end, and all agree then.
        let mut members = vec![voter(1), voter(2), learner(3), unborn(9)];
        let mut nodes = vec![node(1, ""), node(3, "c"), node(4, "ck")];
        for round in 0.. {
            assert!(round < 10, "it does not come to an end: {members:?} {nodes:?}");
            let Some(change) = reconcile(&id(1), &members, &nodes) else { break };
            let roles = |nodes: &mut [Node], id: &NodeId, roles: &str| {
                let position = nodes.iter().position(|node| node.id == id.as_str());
                let position = position.expect("a node");
                nodes[position].roles = node(0, roles).roles;
            };
            match change {
                RemoveMember(number) => members.retain(|member| member.id != number),
                GiveRole(id) | TakeController(id) => roles(&mut nodes, &id, "c"),
                TakeRole(id) => roles(&mut nodes, &id, ""),
            }
        }
        assert_eq!(members.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 3]);
        assert!(nodes[2].roles == node(4, "").roles && nodes[0].roles == node(1, "c").roles);
    }

    #[test]
    fn who_votes_alone_stays_and_who_has_started_learns() {
        assert!(votes_alone(&[voter(1), learner(2)], &id(1)));
        assert!(!votes_alone(&[voter(1), voter(2)], &id(1)));
        assert!(!votes_alone(&[voter(2), learner(1)], &id(1)));
        let members = [voter(1), learner(2), unborn(3)];
        assert_eq!(learners(&members).map(|member| member.id).collect::<Vec<_>>(), [2]);
    }
}
