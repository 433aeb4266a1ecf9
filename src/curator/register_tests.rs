use orlop_proto::metropolis::proto::common::node_labels::Pair;
use proptest::prelude::*;

use super::*;
use crate::testing::lenient;

const MODES: [TpmMode; 3] = [TpmMode::Required, TpmMode::BestEffort, TpmMode::Disabled];
const POLICIES: [StorageSecurityPolicy; 4] = [
    StorageSecurityPolicy::Permissive,
    StorageSecurityPolicy::NeedsEncryption,
    StorageSecurityPolicy::NeedsEncryptionAndAuthentication,
    StorageSecurityPolicy::NeedsInsecure,
];
const STORAGES: [NodeStorageSecurity; 3] = [
    NodeStorageSecurity::Insecure,
    NodeStorageSecurity::Encrypted,
    NodeStorageSecurity::AuthenticatedEncrypted,
];
const STATES: [NodeState; 4] =
    [NodeState::New, NodeState::Standby, NodeState::Up, NodeState::Decommissioned];
const CUK: [u8; KEY_LENGTH] = [5; KEY_LENGTH];

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn asked(labels: Option<&NodeLabels>) -> Registration<'_> {
    Registration { key: [1; KEY_LENGTH], join_key: [2; KEY_LENGTH], tpm: false, labels }
}

fn id() -> NodeId {
    NodeId::of_key(&[1; KEY_LENGTH])
}

fn node(state: NodeState) -> Node {
    let node = register(&asked(None), Some(&lenient()), None, None).expect("a node").node;
    Node { fsm_state: state.into(), cluster_unlock_key: CUK.to_vec(), ..node }
}

#[test]
fn tpms_are_used_as_the_table_says() {
    use NodeTpmUsage::{NotPresent, PresentAndUsed, PresentButUnused};
    let expected = [
        (Ok(PresentAndUsed), Err(Refused::NoTpm)),
        (Ok(PresentAndUsed), Ok(NotPresent)),
        (Ok(PresentButUnused), Ok(NotPresent)),
    ];
    for (mode, (with, without)) in MODES.into_iter().zip(expected) {
        assert_eq!((tpm_usage(mode, true), tpm_usage(mode, false)), (with, without), "{mode:?}");
    }
    assert_eq!(tpm_usage(TpmMode::Invalid, true), Err(Refused::Policy));
}

#[test]
fn storage_is_recommended_and_taken_as_the_table_says() {
    use NodeStorageSecurity::{AuthenticatedEncrypted as Both, Encrypted, Insecure};
    let table = [
        (Both, [true, true, true]),
        (Encrypted, [false, true, true]),
        (Both, [false, false, true]),
        (Insecure, [true, false, false]),
    ];
    for (policy, (best, taken)) in POLICIES.into_iter().zip(table) {
        assert_eq!(recommended(policy), Some(best));
        assert_eq!(STORAGES.map(|storage| takes(policy, storage)), taken, "{policy:?}");
        assert!(!takes(policy, NodeStorageSecurity::Invalid) && takes(policy, best));
    }
    assert_eq!(recommended(StorageSecurityPolicy::Invalid), None);
}

#[test]
fn a_registration_is_refused_in_the_order_of_the_table() {
    let configured = |mode: TpmMode, policy: StorageSecurityPolicy| ClusterConfiguration {
        tpm_mode: mode.into(),
        storage_security_policy: policy.into(),
        ..lenient()
    };
    let strict = configured(TpmMode::Required, StorageSecurityPolicy::Permissive);
    let empty = configured(TpmMode::Required, StorageSecurityPolicy::Invalid);
    let nothing = configured(TpmMode::Invalid, StorageSecurityPolicy::Permissive);
    let (up, new, stranger) = (node(NodeState::Up), node(NodeState::New), NodeId::of_key(&[9; 32]));
    let taken = Some(&stranger);
    for (configuration, stored, owner, told) in [
        (None, Some(&up), taken, Refused::Policy),
        (Some(&empty), Some(&up), taken, Refused::Policy),
        (Some(&nothing), Some(&up), taken, Refused::Policy),
        (Some(&strict), Some(&up), taken, Refused::NoTpm),
        (Some(&lenient()), Some(&up), taken, Refused::Registered { state: NodeState::Up }),
        (Some(&lenient()), Some(&new), taken, Refused::JoinKeyTaken),
        (Some(&lenient()), None, taken, Refused::JoinKeyTaken),
    ] {
        assert_eq!(register(&asked(None), configuration, stored, owner), Err(told));
    }
    for state in [NodeState::Standby, NodeState::Up, NodeState::Decommissioned] {
        let refused = register(&asked(None), Some(&lenient()), Some(&node(state)), Some(&id()));
        assert_eq!(refused, Err(Refused::Registered { state }));
    }
}

#[test]
fn a_retry_gets_what_the_cluster_wants_now_and_may_bring_another_join_key() {
    let first = register(&asked(None), Some(&lenient()), None, None).expect("a node");
    assert_eq!(first.node.fsm_state(), NodeState::New);
    assert_eq!(first.former_join_key, None);
    let again = register(&asked(None), Some(&lenient()), Some(&first.node), Some(&id()));
    assert_eq!(again.as_ref(), Ok(&first));
    let other = Registration { join_key: [3; KEY_LENGTH], tpm: true, ..asked(None) };
    let again = register(&other, Some(&lenient()), Some(&first.node), None).expect("a node");
    assert_eq!(again.former_join_key, Some(vec![2; KEY_LENGTH]));
    assert_eq!(again.node.join_key, [3; KEY_LENGTH]);
    assert_eq!(again.node.tpm_usage(), NodeTpmUsage::PresentAndUsed);
}

#[test]
fn labels_that_cannot_be_are_left_out_and_the_first_of_a_key_stays() {
    let pair = |key: &str, value: &str| Pair { key: key.to_owned(), value: value.to_owned() };
    let mut pairs = vec![pair("a", "1"), pair("a", "2"), pair("-", "1"), pair("b", "-")];
    pairs.extend((0..200).map(|n| pair(&format!("n{n}"), "")));
    let labels = NodeLabels { pairs };
    let node = register(&asked(Some(&labels)), Some(&lenient()), None, None).expect("a node").node;
    let kept = node.labels.expect("labels").pairs;
    assert_eq!((kept.len(), &kept[0]), (1 + 124, &pair("a", "1")));
}

#[test]
fn a_commit_is_refused_in_the_order_of_the_table() {
    let mut strict = lenient();
    let policy = StorageSecurityPolicy::NeedsEncryptionAndAuthentication;
    strict.storage_security_policy = policy.into();
    for (number, configuration, told) in [
        (0, None, Refused::Storage),
        (4, Some(&strict), Refused::Storage),
        (-1, Some(&strict), Refused::Storage),
        (2, None, Refused::Policy),
        (2, Some(&strict), Refused::Insecure { storage: NodeStorageSecurity::Encrypted, policy }),
    ] {
        let commit = Commit { cluster_unlock_key: &[], storage: number };
        assert_eq!(storage(commit, configuration), Err(told));
    }
    let secure = NodeStorageSecurity::Encrypted;
    // The key is wrong as well, which is told last.
    let wrong = Commit { cluster_unlock_key: &[5; 31], storage: secure.into() };
    let told = |stored: Option<&Node>| commit(wrong, secure, stored, &id(), None, now());
    assert_eq!(told(None), Err(Refused::Unknown));
    assert_eq!(told(Some(&node(NodeState::New))), Err(Refused::Waits(id())));
    for state in [NodeState::Up, NodeState::Decommissioned] {
        assert_eq!(told(Some(&node(state))), Err(Refused::Committed { state }));
    }
    assert_eq!(told(Some(&node(NodeState::Invalid))), Err(Refused::Nonsense));
    let nonsense = Node { fsm_state: 77, ..node(NodeState::New) };
    assert_eq!(told(Some(&nonsense)), Err(Refused::Nonsense));
    let length = Refused::Length { what: "cluster unlock key", length: 31 };
    assert_eq!(told(Some(&node(NodeState::Standby))), Err(length));
}

#[test]
fn a_commit_may_be_repeated_for_ten_minutes_with_the_same_key() {
    let secure = NodeStorageSecurity::Encrypted;
    let up = node(NodeState::Up);
    let second = Duration::from_secs(1);
    for (unlock, then, repeats) in [
        (CUK, Some(now()), true),
        (CUK, Some(now() - REPEATS), true),
        // The clock was set back in between.
        (CUK, Some(now() + REPEATS), true),
        (CUK, Some(now() - REPEATS - second), false),
        (CUK, Some(now() + REPEATS + second), false),
        (CUK, None, false),
        ([6; KEY_LENGTH], Some(now()), false),
    ] {
        let asked = Commit { cluster_unlock_key: &unlock, storage: secure.into() };
        let told = commit(asked, secure, Some(&up), &id(), then, now());
        assert_eq!(told.is_ok(), repeats, "{then:?}: {told:?}");
    }
    // Whose disk is not encrypted has no key, whatever it sends.
    let insecure = NodeStorageSecurity::Insecure;
    let asked = Commit { cluster_unlock_key: &[1, 2, 3], storage: insecure.into() };
    let standby = node(NodeState::Standby);
    let told = commit(asked, insecure, Some(&standby), &id(), None, now()).expect("committed");
    let Committed::Now(node) = told else { panic!("{told:?}") };
    assert_eq!((node.fsm_state(), node.cluster_unlock_key.len()), (NodeState::Up, 0));
}

#[test]
fn who_joins_must_have_kept_its_key_as_it_was_to() {
    use NodeTpmUsage::{NotPresent, PresentAndUsed, PresentButUnused};
    for mode in MODES {
        for usage in [NotPresent, PresentButUnused, PresentAndUsed] {
            for sealed in [false, true] {
                let good = match mode {
                    TpmMode::Required => sealed && usage == PresentAndUsed,
                    TpmMode::Disabled => !sealed && usage != PresentAndUsed,
                    _ => sealed == (usage == PresentAndUsed),
                };
                let stored = Node { tpm_usage: usage.into(), ..node(NodeState::Up) };
                let told = join(sealed, Some(mode), Some(&stored));
                let expected =
                    if good { Ok(CUK.to_vec()) } else { Err(Refused::Sealing { sealed }) };
                assert_eq!(told, expected, "{mode:?} {usage:?}");
            }
        }
    }
    assert_eq!(join(true, None, None), Err(Refused::UnknownJoinKey));
    for state in STATES.into_iter().filter(|state| *state != NodeState::Up) {
        let told = join(false, Some(TpmMode::BestEffort), Some(&node(state)));
        assert_eq!(told, Err(Refused::NotUp { state }));
    }
}

#[test]
fn a_day_is_too_long_to_wait_and_a_wrong_clock_has_registered_nobody() {
    let second = Duration::from_secs(1);
    assert!(!waited_too_long(now() - WAITS + second, now()));
    assert!(waited_too_long(now() - WAITS, now()));
    assert!(!waited_too_long(now() + WAITS / 2, now()));
    assert!(waited_too_long(now() + 3650 * WAITS, now()));
}

/// What may happen to a node.
#[derive(Clone, Debug)]
enum Happens {
    Registers { join: u8, tpm: bool },
    IsApproved,
    Commits { unlock: u8, storage: usize },
    Joins { join: u8, sealed: bool },
    IsDecommissioned,
    IsDeleted,
    Time { secs: u64 },
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        (0..3_u8, any::<bool>()).prop_map(|(join, tpm)| Happens::Registers { join, tpm }),
        Just(Happens::IsApproved),
        (0..2_u8, 0..3_usize).prop_map(|(unlock, storage)| Happens::Commits { unlock, storage }),
        (0..3_u8, any::<bool>()).prop_map(|(join, sealed)| Happens::Joins { join, sealed }),
        Just(Happens::IsDecommissioned),
        Just(Happens::IsDeleted),
        (0..900_u64).prop_map(|secs| Happens::Time { secs }),
    ]
}

proptest! {
    /// One node and a join key of another (number 2), in whatever order things happen.
    #[test]
    fn whatever_happens_a_node_goes_its_way_one_state_at_a_time(
        mode in 0..3_usize,
        policy in 0..4_usize,
        all in proptest::collection::vec(happens(), 0..40),
    ) {
        let configuration = ClusterConfiguration {
            tpm_mode: MODES[mode].into(),
            storage_security_policy: POLICIES[policy].into(),
            ..lenient()
        };
        let other = NodeId::of_key(&[9; KEY_LENGTH]);
        let (mut stored, mut committed, mut clock) = (None::<Node>, None, now());
        for one in all {
            let before = stored.as_ref().map(Node::fsm_state);
            match one {
                Happens::Registers { join, tpm } => {
                    let asked = Registration { join_key: [join; KEY_LENGTH], tpm, ..asked(None) };
                    let own = stored.as_ref().is_some_and(|node| node.join_key == [join; KEY_LENGTH]);
                    let own_id = id();
                    let owner = if join == 2 { Some(&other) } else { own.then_some(&own_id) };
                    match register(&asked, Some(&configuration), stored.as_ref(), owner) {
                        Ok(registered) => {
                            prop_assert!(matches!(before, None | Some(NodeState::New)) && join != 2);
                            prop_assert!(tpm || MODES[mode] != TpmMode::Required);
                            prop_assert_eq!(registered.node.fsm_state(), NodeState::New);
                            prop_assert!(takes(POLICIES[policy], registered.storage));
                            stored = Some(registered.node);
                        }
                        Err(Refused::NoTpm) => prop_assert!(!tpm),
                        Err(Refused::JoinKeyTaken) => prop_assert_eq!(join, 2),
                        Err(Refused::Registered { state }) => prop_assert_eq!(Some(state), before),
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Happens::Commits { unlock, storage: kind } => {
                    let unlock = [unlock; KEY_LENGTH];
                    let asked =
                        Commit { cluster_unlock_key: &unlock, storage: STORAGES[kind].into() };
                    let Ok(secure) = storage(asked, Some(&configuration)) else {
                        prop_assert!(!takes(POLICIES[policy], STORAGES[kind]));
                        continue;
                    };
                    match commit(asked, secure, stored.as_ref(), &id(), committed, clock) {
                        Ok(Committed::Now(node)) => {
                            prop_assert_eq!(before, Some(NodeState::Standby));
                            stored = Some(*node);
                            committed = Some(clock);
                        }
                        Ok(Committed::Again) => prop_assert_eq!(before, Some(NodeState::Up)),
                        Err(_) => prop_assert_ne!(before, Some(NodeState::Standby)),
                    }
                }
                Happens::Joins { join: number, sealed } => {
                    let node =
                        stored.as_ref().filter(|node| node.join_key == [number; KEY_LENGTH]);
                    if let Ok(unlock) = join(sealed, Some(MODES[mode]), node) {
                        prop_assert_eq!(before, Some(NodeState::Up));
                        prop_assert_eq!(&unlock, &node.expect("a node").cluster_unlock_key);
                    }
                }
                Happens::IsApproved if before == Some(NodeState::New) => {
                    stored.as_mut().expect("a node").fsm_state = NodeState::Standby.into();
                }
                Happens::IsDecommissioned if before == Some(NodeState::Up) => {
                    stored.as_mut().expect("a node").fsm_state = NodeState::Decommissioned.into();
                }
                Happens::IsDeleted => (stored, committed) = (None, None),
                Happens::Time { secs } => clock += Duration::from_secs(secs),
                Happens::IsApproved | Happens::IsDecommissioned => {}
            }
        }
    }
}
