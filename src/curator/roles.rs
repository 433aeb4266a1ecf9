//! Which roles a node may be given and lose (spec §4.4). Who carries it out asks etcd first and writes the roles last.

use orlop_proto::metropolis::proto::common::node_roles::{
    ConsensusMember, KubernetesController, KubernetesWorker,
};
use orlop_proto::metropolis::proto::common::{NodeRoles, NodeState};

/// What somebody wants; none: as it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// It keeps the cluster's state.
    pub consensus_member: Option<bool>,
    /// It runs Kubernetes' control plane.
    pub kubernetes_controller: Option<bool>,
    /// It runs pods.
    pub kubernetes_worker: Option<bool>,
}

/// A change of who keeps the cluster's state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Membership {
    /// As it is.
    Stays,
    /// The node becomes a member, and its role holds what a member needs to start.
    Joins,
    /// The node is no member any more.
    Leaves,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan {
    /// First.
    pub membership: Membership,
    kubernetes_controller: bool,
    kubernetes_worker: bool,
}

/// Why a node's roles stay as they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It goes.
    #[error(
        "the node is decommissioned and gets no roles any more; delete it, and register it anew"
    )]
    Decommissioned,
    /// It has no certificate yet.
    #[error(
        "the node is not up yet, and cannot become a consensus member before it is; approve it, wait until it is up, and \
         repeat this"
    )]
    NotUp,
    /// Even if the same call takes that role away.
    #[error(
        "the node is a Kubernetes controller, which must be a consensus member; take the role KubernetesController away \
         first, in a call of its own"
    )]
    HasController,
    /// Nobody would keep the cluster's state.
    #[error(
        "the node is the last that keeps the cluster's state; make another one a consensus member first"
    )]
    LastVoter,
    /// A controller is one.
    #[error(
        "a Kubernetes controller must be a consensus member; give the node the role ConsensusMember first"
    )]
    NeedsConsensus,
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        Self::failed_precondition(refusal.to_string())
    }
}

/// What becomes of a node in this state, with these roles. `only_voter`: without it nobody votes.
///
/// # Errors
/// Any [`Refusal`].
pub fn plan(
    state: NodeState,
    roles: &NodeRoles,
    wanted: Wanted,
    only_voter: bool,
) -> Result<Plan, Refusal> {
    if state == NodeState::Decommissioned {
        return Err(Refusal::Decommissioned);
    }
    let member = roles.consensus_member.is_some();
    let membership = match wanted.consensus_member {
        Some(true) if !member => Membership::Joins,
        Some(false) if member => Membership::Leaves,
        Some(_) | None => Membership::Stays,
    };
    match membership {
        Membership::Joins if state != NodeState::Up => return Err(Refusal::NotUp),
        Membership::Leaves if roles.kubernetes_controller.is_some() => {
            return Err(Refusal::HasController);
        }
        Membership::Leaves if only_voter => return Err(Refusal::LastVoter),
        Membership::Joins | Membership::Leaves | Membership::Stays => {}
    }
    let member = wanted.consensus_member.unwrap_or(member);
    if wanted.kubernetes_controller == Some(true) && !member {
        return Err(Refusal::NeedsConsensus);
    }
    let or = |wanted: Option<bool>, is| wanted.unwrap_or(is);
    Ok(Plan {
        membership,
        kubernetes_controller: or(
            wanted.kubernetes_controller,
            roles.kubernetes_controller.is_some(),
        ),
        kubernetes_worker: or(wanted.kubernetes_worker, roles.kubernetes_worker.is_some()),
    })
}

impl Plan {
    /// The roles afterwards; `joined`: of a member that was made just now.
    #[must_use]
    pub fn roles(self, before: NodeRoles, joined: Option<ConsensusMember>) -> NodeRoles {
        NodeRoles {
            consensus_member: match self.membership {
                Membership::Stays => before.consensus_member,
                Membership::Joins => joined,
                Membership::Leaves => None,
            },
            kubernetes_controller: self.kubernetes_controller.then_some(KubernetesController {}),
            kubernetes_worker: self.kubernetes_worker.then_some(KubernetesWorker {}),
        }
    }
}

/// Has it any?
#[must_use]
pub fn any(roles: Option<&NodeRoles>) -> bool {
    roles.is_some_and(|roles| {
        let NodeRoles { kubernetes_worker, consensus_member, kubernetes_controller } = roles;
        kubernetes_worker.is_some() || consensus_member.is_some() || kubernetes_controller.is_some()
    })
}

/// Which there are, and nothing of what a member knows: always a message, whose parts are empty.
#[must_use]
pub fn presence(roles: Option<&NodeRoles>) -> NodeRoles {
    let Some(roles) = roles else { return NodeRoles::default() };
    NodeRoles {
        consensus_member: roles.consensus_member.as_ref().map(|_| ConsensusMember::default()),
        ..*roles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// c: consensus member, k: Kubernetes controller, w: worker.
    fn roles(letters: &str) -> NodeRoles {
        let member = ConsensusMember { initial_crl: vec![1], ..ConsensusMember::default() };
        NodeRoles {
            consensus_member: letters.contains('c').then_some(member),
            kubernetes_controller: letters.contains('k').then_some(KubernetesController {}),
            kubernetes_worker: letters.contains('w').then_some(KubernetesWorker {}),
        }
    }

    /// `+c -k`.
    fn wanted(text: &str) -> Wanted {
        let of = |letter: char| match text {
            _ if text.contains(&format!("+{letter}")) => Some(true),
            _ if text.contains(&format!("-{letter}")) => Some(false),
            _ => None,
        };
        Wanted {
            consensus_member: of('c'),
            kubernetes_controller: of('k'),
            kubernetes_worker: of('w'),
        }
    }

    #[test]
    fn roles_follow_the_table() {
        use Membership::{Joins, Leaves, Stays};
        use NodeState::{Decommissioned, New, Standby, Up};
        type Case =
            (NodeState, &'static str, &'static str, Result<(Membership, &'static str), Refusal>);
        let cases: &[Case] = &[
            (Up, "", "", Ok((Stays, ""))),
            (Up, "ckw", "", Ok((Stays, "ckw"))),
            (Up, "", "+w", Ok((Stays, "w"))),
            (Up, "w", "+w", Ok((Stays, "w"))),
            (Up, "w", "-w", Ok((Stays, ""))),
            (Up, "", "+c", Ok((Joins, "c"))),
            (Up, "c", "+c", Ok((Stays, "c"))),
            (Up, "", "+c+k+w", Ok((Joins, "ckw"))),
            (Up, "", "+k", Err(Refusal::NeedsConsensus)),
            (Up, "c", "-c+k", Err(Refusal::NeedsConsensus)),
            (Up, "c", "+k", Ok((Stays, "ck"))),
            (Up, "c", "-c", Ok((Leaves, ""))),
            (Up, "", "-c", Ok((Stays, ""))),
            (Up, "ck", "-c", Err(Refusal::HasController)),
            (Up, "ck", "-c-k", Err(Refusal::HasController)),
            (Up, "ck", "-k", Ok((Stays, "c"))),
            (Up, "ckw", "-k-w", Ok((Stays, "c"))),
            (New, "", "+c", Err(Refusal::NotUp)),
            (Standby, "", "+c", Err(Refusal::NotUp)),
            (New, "", "+w", Ok((Stays, "w"))),
            (Standby, "w", "-w-c", Ok((Stays, ""))),
            (New, "", "+k", Err(Refusal::NeedsConsensus)),
            (Decommissioned, "", "+w", Err(Refusal::Decommissioned)),
            (Decommissioned, "", "", Err(Refusal::Decommissioned)),
        ];
        for (state, before, change, expected) in cases {
            let joined = ConsensusMember { initial_crl: vec![1], ..ConsensusMember::default() };
            let result = plan(*state, &roles(before), wanted(change), false)
                .map(|plan| (plan.membership, plan.roles(roles(before), Some(joined))));
            let expected = expected.map(|(membership, after)| (membership, roles(after)));
            assert_eq!(result, expected, "{state:?} {before} {change}");
        }
    }

    #[test]
    fn somebody_always_votes() {
        let plan = |change| plan(NodeState::Up, &roles("c"), wanted(change), true);
        assert_eq!(plan("-c"), Err(Refusal::LastVoter));
        assert_eq!(plan("+w").map(|plan| plan.membership), Ok(Membership::Stays));
    }

    #[test]
    fn operators_are_told_which_roles_there_are_and_nothing_else() {
        assert_eq!(presence(None), NodeRoles::default());
        let told = presence(Some(&roles("cw")));
        assert_eq!(told.consensus_member, Some(ConsensusMember::default()));
        assert_eq!(
            (told.kubernetes_worker, told.kubernetes_controller),
            (Some(KubernetesWorker {}), None)
        );
        assert!(any(Some(&roles("w"))) && any(Some(&roles("c"))) && any(Some(&roles("k"))));
        assert!(!any(Some(&roles(""))) && !any(None));
    }
}
