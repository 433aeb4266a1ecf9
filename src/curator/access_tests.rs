use std::collections::BTreeMap;

use orlop_pki::cluster::{CLUSTER_CA, ClusterAuthority, Profile, RawKey, ephemeral};
use orlop_pki::{Authority, KeyKind, Leaf, Usage, encoding};
use orlop_store::{Entry, Revision};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::names::{self, CURATOR};

const DAY: Duration = Duration::from_secs(24 * 3600);
const NODES: &str = "/metropolis.proto.api.Management/GetNodes";

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn authority() -> ClusterAuthority {
    ClusterAuthority::generate(CLUSTER_CA, now()).expect("an authority")
}

fn key() -> RawKey {
    RawKey::generate().expect("a key")
}

fn book(authority: &ClusterAuthority, entries: &[(String, Vec<u8>)]) -> Book {
    let entries = entries.iter().map(|(path, value)| Entry {
        key: CURATOR.key(path).into(),
        value: value.clone().into(),
        created: Revision(1),
        modified: Revision(1),
        version: 1,
        lease: None,
    });
    Book::of(authority.der(), &entries.collect::<Vec<_>>(), Revision(1))
}

fn stored(key: &RawKey, state: NodeState) -> (String, Vec<u8>) {
    let node = orlop_proto::metropolis::node::core::curator::proto::private::Node {
        public_key: key.public().to_vec(),
        fsm_state: state.into(),
        ..Default::default()
    };
    (names::node(&NodeId::of_key(&key.public())), node.encode_to_vec())
}

// What the descriptors say, as far as it is looked at: prost-types leaves out options that it does not know.
#[derive(Clone, PartialEq, prost::Message)]
struct Set {
    #[prost(message, repeated, tag = "1")]
    files: Vec<File>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    services: Vec<Service>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    methods: Vec<Method>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "4")]
    options: Option<Options>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct Options {
    #[prost(message, optional, tag = "1000")]
    authorization: Option<orlop_proto::metropolis::proto::ext::Authorization>,
}

#[test]
fn the_table_is_that_of_the_published_interface() {
    let set = Set::decode(orlop_proto::DESCRIPTORS).expect("descriptors");
    let mut published = BTreeMap::new();
    for file in set.files.iter().filter(|file| file.package.starts_with("metropolis.")) {
        for service in &file.services {
            for method in &service.methods {
                let options = method.options.clone().unwrap_or_default();
                let path = format!("/{}.{}/{}", file.package, service.name, method.name);
                published.extend(options.authorization.map(|access| (path, access)));
            }
        }
    }
    assert!(published.len() > 20, "{published:?}");
    assert_eq!(published.keys().cloned().collect::<BTreeSet<_>>(), paths());
    for (path, wanted) in published {
        let needed: Vec<_> = wanted.need().collect();
        let access = match &needed[..] {
            [needed] => Access::Needs(*needed),
            [] if wanted.allow_unauthenticated => Access::Open,
            [] => Access::Authenticated,
            more => panic!("{path} needs {more:?}"),
        };
        assert_eq!(of_method(&path), Some(access), "{path}");
    }
    assert_eq!(of_method("/metropolis.proto.api.Management/Unknown"), None);
    assert!(is_service("/metropolis.proto.api.Management/Unknown") && !is_service("/x/Unknown"));
    for garbage in ["", "/", "//", "Management/GetNodes", "/metropolis.proto.api.Management"] {
        assert_eq!(of_method(garbage), None);
    }
}

#[test]
fn each_kind_of_certificate_is_what_the_table_says() {
    let (ours, foreign) = (authority(), authority());
    let (node, stranger, user) = (key(), key(), key());
    let id = NodeId::of_key(&node.public());
    let book = book(&ours, &[stored(&node, NodeState::Up)]);
    let issue = |authority: &ClusterAuthority, profile: &Profile, key: &RawKey| {
        authority.issue(profile, &key.public(), None, now()).expect("a certificate")
    };
    let p256 = Authority::generate("x", KeyKind::P256, DAY, now()).expect("an authority");
    let leaf = Leaf {
        common_name: "owner".to_owned(),
        organizations: Vec::new(),
        usage: Usage::Client,
        dns: Vec::new(),
        ips: Vec::new(),
        lifetime: DAY,
    };
    let p256 = p256.issue(&leaf, now()).expect("a certificate").crt;
    let p256 = encoding::certificates(&p256).expect("a certificate")[0].to_vec();
    let own = ephemeral(&stranger, SystemTime::UNIX_EPOCH).expect("a certificate").to_vec();
    // One whose signature is not its key's.
    let mut forged = own.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let node_profile = Profile::node(id.as_str());
    let good = issue(&ours, &node_profile, &node);
    let owner = issue(&ours, &Profile::user("owner"), &user);
    let alias = issue(&ours, &node_profile, &stranger);
    let no_name = Profile { dns: None, ..node_profile.clone() };
    let no_name = issue(&ours, &no_name, &node);
    let empty = issue(&ours, &Profile::user(""), &user);
    // Peers of etcd are both: nodes first.
    let both = issue(&ours, &Profile::peer(id.as_str()), &node);

    let (key, is) = (Caller::Key(stranger.public()), Caller::Node(id));
    let is_owner = Caller::User("owner".to_owned());
    for (shown, open, needs) in [
        (vec![], Caller::Nobody, None),
        (vec![own.clone()], key, None),
        (vec![own.clone(), own.clone()], Caller::Nobody, None),
        (vec![forged], Caller::Nobody, None),
        (vec![p256], Caller::Nobody, None),
        (vec![b"garbage".to_vec()], Caller::Nobody, None),
        (vec![good.clone()], Caller::Nobody, Some(is.clone())),
        (vec![good.clone(), ours.der().to_vec()], Caller::Nobody, None),
        (vec![owner.clone()], Caller::Nobody, Some(is_owner)),
        (vec![issue(&foreign, &Profile::user("owner"), &user)], Caller::Nobody, None),
        (vec![alias], Caller::Nobody, None),
        (vec![no_name], Caller::Nobody, None),
        (vec![empty], Caller::Nobody, None),
        (vec![both], Caller::Nobody, Some(is)),
        // It has signed itself, so on open methods its key is known.
        (vec![ours.der().to_vec()], Caller::Key(ours.key().public()), None),
    ] {
        let shown: Vec<_> = shown.into_iter().map(CertificateDer::from).collect();
        let rules = Rules { authority: ours.der(), book: Some(&book), now: now() };
        assert_eq!(rules.admit("/x", Access::Open, &shown), Ok(open));
        let admitted = rules.admit("/x", Access::Authenticated, &shown);
        match (&admitted, needs) {
            (Err(Refused::Stranger(_)), None) => {}
            (admitted, needs) => assert_eq!(admitted.clone().ok(), needs),
        }
        // Those who know no book see the same of it.
        let bare = Rules { book: None, ..rules };
        assert_eq!(bare.admit("/x", Access::Authenticated, &shown).is_ok(), admitted.is_ok());
    }
}

#[test]
fn users_have_roles_and_nodes_two_permissions() {
    let (ours, node, user) = (authority(), key(), key());
    let id = NodeId::of_key(&node.public());
    let role =
        |name: &str, role: &str| (format!("{}{name}", names::USERS), role.as_bytes().to_vec());
    let book = book(
        &ours,
        &[
            stored(&node, NodeState::Up),
            role("eve", "viewer"),
            role("otto", "operator\n"),
            role("xaver", "king"),
        ],
    );
    let rules = Rules { authority: ours.der(), book: Some(&book), now: now() };
    let may = |profile: &Profile, key: &RawKey| {
        let der = ours.issue(profile, &key.public(), None, now()).expect("a certificate");
        let all = (1..=12).filter_map(|number| Permission::try_from(number).ok());
        let admitted = all.filter(|permission| {
            let answer = rules.admit("/x", Access::Needs(*permission), &[der.clone().into()]);
            assert!(matches!(&answer, Ok(_) | Err(Refused::Denied { .. })), "{answer:?}");
            answer.is_ok()
        });
        admitted.map(|permission| permission as i32).collect::<Vec<_>>()
    };
    let all: Vec<_> = (1..=12).collect();
    assert_eq!(may(&Profile::user("owner"), &user), all);
    assert_eq!(may(&Profile::user("otto"), &user), [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]);
    assert_eq!(may(&Profile::user("eve"), &user), [2, 6]);
    assert_eq!(may(&Profile::user("xaver"), &user), [0; 0], "what cannot be read grants nothing");
    assert_eq!(may(&Profile::node(id.as_str()), &node), [2, 3]);
}

#[test]
fn the_leader_refuses_what_is_out_of_date_revoked_or_gone() {
    let (ours, node, user) = (authority(), key(), key());
    let id = NodeId::of_key(&node.public());
    let issue = |profile: &Profile, key: &RawKey, until, from| {
        let der = ours.issue(profile, &key.public(), until, from).expect("a certificate");
        CertificateDer::from(der)
    };
    let shown = [issue(&Profile::node(id.as_str()), &node, None, now())];
    let serial = Shown::read(&shown[0]).expect("a certificate").serial;
    let revoked = [(serial, now())].into_iter().collect();
    let list = ours.revocation_list(&revoked, now()).expect("a list");
    let list = (names::REVOKED.to_owned(), list);
    let admit = |book: &Book, path, shown: &[CertificateDer<'_>], now| {
        let rules = Rules { authority: ours.der(), book: Some(book), now };
        rules.admit(path, Access::Needs(ReadClusterStatus), shown)
    };
    let stranger = |answer: Result<Caller, Refused>| matches!(answer, Err(Refused::Stranger(_)));

    let up = book(&ours, &[stored(&node, NodeState::Up)]);
    assert_eq!(admit(&up, NODES, &shown, now()), Ok(Caller::Node(id.clone())));
    assert!(stranger(admit(&book(&ours, &[]), NODES, &shown, now())), "a node that was deleted");
    let twice = book(&ours, &[stored(&node, NodeState::Up), list.clone()]);
    // Deleted and registered again: the old certificate stays bad.
    for path in [NODES, WATCH] {
        assert!(stranger(admit(&twice, path, &shown, now())));
    }
    let retired = book(&ours, &[stored(&node, NodeState::Decommissioned), list]);
    assert_eq!(admit(&retired, WATCH, &shown, now()), Ok(Caller::Retired(id)));
    assert!(stranger(admit(&retired, NODES, &shown, now())));
    let issued = "/metropolis.node.core.curator.proto.api.Curator/IssueCertificate";
    assert!(stranger(admit(&retired, issued, &shown, now())));

    // Clocks: ten years off is too much, a minute is not.
    let until = Some(now() + DAY);
    let owner = [issue(&Profile::user("owner"), &user, until, now())];
    for (at, good) in [
        (now(), true),
        (now() - Duration::from_secs(60), true),
        (now() - DAY, false),
        (now() - 3650 * DAY, false),
        (now() + DAY, true),
        (now() + DAY + Duration::from_secs(1), false),
        (now() + 3650 * DAY, false),
    ] {
        assert_eq!(admit(&up, NODES, &owner, at).is_ok(), good, "{at:?}");
    }
}

proptest! {
    #[test]
    fn garbage_is_nobody(bytes: Vec<u8>, path: String) {
        let ours = authority();
        let shown = [CertificateDer::from(bytes)];
        let rules = Rules { authority: ours.der(), book: None, now: now() };
        prop_assert_eq!(rules.admit(&path, Access::Open, &shown), Ok(Caller::Nobody));
        prop_assert!(rules.admit(&path, Access::Authenticated, &shown).is_err());
        let _ = of_method(&path);
    }
}
