//! Over real TLS, with a real store.

use std::time::SystemTime;

use clap::Parser as _;
use orlop_pki::cluster::{Profile, RawKey, Shown};
use orlop_proto::metropolis::node::core::curator::proto::api::curator_local_client::CuratorLocalClient;
use orlop_proto::metropolis::node::core::curator::proto::api::{
    CommitNodeRequest, GetCaCertificateRequest, GetConsensusStatusRequest, GetCurrentLeaderRequest,
    JoinNodeRequest, RegisterNodeRequest,
};
use orlop_proto::metropolis::node::core::curator::proto::private::InitialOwner;
use orlop_proto::metropolis::proto::api::escrow_request::Parameters;
use orlop_proto::metropolis::proto::api::escrow_response::ProofRequest;
use orlop_proto::metropolis::proto::api::escrow_response::proof_request::Kind;
use orlop_proto::metropolis::proto::api::{
    EscrowRequest, EscrowResponse, GetRegisterTicketRequest,
};
use orlop_proto::metropolis::proto::common::{NodeState, NodeStorageSecurity, NodeTpmUsage};
use tonic::Code;

use crate::api::Leader;
use crate::certificates::OWNER;
use crate::limits::Limits;
use crate::names::{self, NodeId};
use crate::state::Changes;
use crate::testing::Cluster;
use crate::ticket;
use crate::{Curator, Error, Options};

#[tokio::test]
async fn anybody_is_told_whose_cluster_it_is_and_who_leads() {
    let cluster = Cluster::start().await;
    let key = RawKey::generate().expect("a key");
    for channel in [cluster.shows(None), cluster.with_key(&key), cluster.as_user("owner")] {
        let mut local = cluster.local(channel);
        let answer = local.get_ca_certificate(GetCaCertificateRequest {}).await;
        let authority = answer.expect("an answer").into_inner().identity_ca_certificate;
        assert_eq!(authority, cluster.office.certificates.authority());
        let answer = local.get_current_leader(GetCurrentLeaderRequest {}).await;
        let mut leaders = answer.expect("an answer").into_inner();
        let leader = leaders.message().await.expect("a message").expect("a leader");
        let own = cluster.office.own.as_str();
        assert_eq!((&*leader.leader_node_id, &*leader.this_node_id), (own, own));
        // Nobody has told it an address: it is the one that was dialled.
        assert_eq!((&*leader.leader_host, leader.leader_port), ("127.0.0.1", cluster.port.into()));
    }
}

#[tokio::test]
async fn who_follows_who_leads_hears_at_once_that_it_does_no_more() {
    let cluster = Cluster::start().await;
    let mut local = cluster.local(cluster.shows(None));
    let answer = local.get_current_leader(GetCurrentLeaderRequest {}).await;
    let mut leaders = answer.expect("an answer").into_inner();
    leaders.message().await.expect("a message").expect("a leader");
    cluster.left.cancel();
    assert_eq!(leaders.message().await.expect_err("an end").code(), Code::Unavailable);
    let refused = local.get_ca_certificate(GetCaCertificateRequest {}).await;
    assert_eq!(refused.expect_err("no office").code(), Code::Unavailable);
}

#[tokio::test]
async fn a_call_is_judged_before_anybody_looks_into_it() {
    let cluster = Cluster::start().await;
    let key = RawKey::generate().expect("a key");
    let ticket = async |channel| {
        let mut management = cluster.management(channel);
        let answer = management.get_register_ticket(GetRegisterTicketRequest {}).await;
        answer.map(|answer| answer.into_inner().ticket)
    };
    let code = async |channel| ticket(channel).await.expect_err("a refusal").code();
    assert_eq!(code(cluster.shows(None)).await, Code::Unauthenticated);
    assert_eq!(code(cluster.with_key(&key)).await, Code::Unauthenticated);
    assert_eq!(code(cluster.as_node(&cluster.node)).await, Code::PermissionDenied);
    // A node of nobody's cluster, though with a certificate of ours.
    assert_eq!(code(cluster.as_node(&key)).await, Code::Unauthenticated);
    let given = ticket(cluster.as_user("owner")).await.expect("a ticket");
    assert_eq!((given.len(), &given[..2]), (34, &[0x0a, 32][..]));
    assert_eq!(ticket(cluster.as_user("owner")).await.expect("a ticket"), given);

    let mut curator = cluster.curator(cluster.as_node(&cluster.node));
    // Judged, and let through: whether somebody answers it is another matter.
    let answer = curator.get_consensus_status(GetConsensusStatusRequest {}).await;
    let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
    assert!(!matches!(code, Code::Unauthenticated | Code::PermissionDenied), "{code:?}");
}

/// What an Escrow ends with: its answers, and the code.
async fn escrow(
    cluster: &Cluster,
    channel: tonic::transport::Channel,
    messages: Vec<EscrowRequest>,
) -> (Vec<EscrowResponse>, Code) {
    let mut aaa = cluster.aaa(channel);
    let mut answers = match aaa.escrow(futures_util::stream::iter(messages)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return (Vec::new(), status.code()),
    };
    let mut told = Vec::new();
    loop {
        match answers.message().await {
            Ok(Some(answer)) => told.push(answer),
            Ok(None) => return (told, Code::Ok),
            Err(status) => return (told, status.code()),
        }
    }
}

fn asks(identity: &str, key: &[u8]) -> EscrowRequest {
    let parameters =
        Parameters { requested_identity_name: identity.to_owned(), public_key: key.to_vec() };
    EscrowRequest { parameters: Some(parameters), proofs: None }
}

fn possession() -> Vec<ProofRequest> {
    vec![ProofRequest { kind: Kind::RefreshCertificate.into() }]
}

#[tokio::test]
async fn the_owners_key_becomes_a_certificate_the_same_again_and_again() {
    let cluster = Cluster::start().await;
    let key = cluster.owner.clone();
    let public = key.public();
    let mut certificates = Vec::new();
    for _ in 0..2 {
        let first = vec![asks("owner", &public), asks("later ones", b"are ignored")];
        let (told, code) = escrow(&cluster, cluster.with_key(&key), first).await;
        let [EscrowResponse { needed, fulfilled, emitted_certificate }] = &told[..] else {
            panic!("{told:?}, {code:?}")
        };
        assert_eq!((code, needed.len(), fulfilled), (Code::Ok, 0, &possession()));
        certificates.push(emitted_certificate.clone());
    }
    assert_eq!(certificates[0], certificates[1]);
    let shown = Shown::read(&certificates[0]).expect("a certificate");
    assert!(shown.is_signed_by(cluster.office.certificates.authority()));
    // And it opens the door; but it is no proof of the key.
    let channel = cluster.shows(Some((&certificates[0], &key)));
    let mut management = cluster.management(channel.clone());
    management.get_register_ticket(GetRegisterTicketRequest {}).await.expect("a ticket");
    let (told, code) = escrow(&cluster, channel, vec![asks("owner", &public)]).await;
    assert_eq!((code, &told[0].needed), (Code::Unauthenticated, &possession()));
}

#[tokio::test]
async fn each_step_of_an_escrow_has_its_code() {
    let cluster = Cluster::start().await;
    let (owner, other) = (cluster.owner.clone(), RawKey::generate().expect("a key"));
    let channel = cluster.with_key(&owner);
    let bare = EscrowRequest { parameters: None, proofs: None };
    for (messages, code) in [
        (vec![], Code::InvalidArgument),
        (vec![bare], Code::InvalidArgument),
        (vec![asks("admin", &owner.public())], Code::Unimplemented),
        (vec![asks("owner", &[1; 31])], Code::InvalidArgument),
        (vec![asks("owner", &other.public())], Code::Unimplemented),
    ] {
        assert_eq!(escrow(&cluster, channel.clone(), messages).await, (Vec::new(), code));
    }
    let first = vec![asks("owner", &owner.public())];
    let (told, code) = escrow(&cluster, cluster.shows(None), first.clone()).await;
    assert_eq!((told[0].needed.clone(), code), (possession(), Code::Unauthenticated));
    let theirs = vec![asks("owner", &other.public())];
    let (_, code) = escrow(&cluster, cluster.with_key(&other), theirs).await;
    assert_eq!(code, Code::PermissionDenied);

    // The certificate was issued for another key, which only a restored store can bring about.
    let state = &cluster.office.state;
    let (profile, now) = (Profile::user(OWNER), SystemTime::now());
    let certificates = &cluster.office.certificates;
    certificates.ensure(state, OWNER, &profile, &other.public(), now).await.expect("issued");
    assert_eq!(escrow(&cluster, channel.clone(), first.clone()).await.1, Code::Unavailable);
    // Nobody is the owner, or nobody can say who.
    for changes in [
        Changes::new().put(names::INITIAL_OWNER, "no message"),
        Changes::new().put_message(names::INITIAL_OWNER, &InitialOwner { public_key: vec![1; 31] }),
        Changes::new().remove(names::INITIAL_OWNER),
    ] {
        state.change(changes).await.expect("a write").expect("written");
        // Ten failures are enough for anybody else.
        *cluster.office.limits() = Limits::default();
        let (_, code) = escrow(&cluster, channel.clone(), first.clone()).await;
        assert_eq!(code, Code::FailedPrecondition);
    }
    let mut tried = 0;
    while escrow(&cluster, channel.clone(), Vec::new()).await.1 != Code::ResourceExhausted {
        tried += 1;
        assert!(tried < 100, "nobody stops it");
    }
}

#[tokio::test]
async fn a_node_registers_is_approved_commits_and_joins() {
    let cluster = Cluster::start().await;
    let (key, join) = (RawKey::generate().expect("a key"), RawKey::generate().expect("a key"));
    let ticket = ticket::current(&cluster.office).await.expect("a ticket");
    let mut node = cluster.curator(cluster.with_key(&key));
    let registration = RegisterNodeRequest {
        register_ticket: ticket,
        join_key: join.public().to_vec(),
        have_local_tpm: true,
        labels: None,
    };
    let told = node.register_node(registration.clone()).await.expect("an answer").into_inner();
    assert_eq!(told.tpm_usage(), NodeTpmUsage::PresentAndUsed);
    assert_eq!(
        told.recommended_node_storage_security(),
        NodeStorageSecurity::AuthenticatedEncrypted
    );
    assert_eq!(told.cluster_configuration, Some(crate::testing::lenient()));
    // It asks again, and is told the same: nothing strands it.
    let again = node.register_node(registration).await.expect("an answer").into_inner();
    assert_eq!(again, told);

    let commit = CommitNodeRequest {
        cluster_unlock_key: vec![5; 32],
        storage_security: NodeStorageSecurity::Encrypted.into(),
    };
    let waits = node.commit_node(commit.clone()).await.expect_err("nobody approved it");
    assert_eq!(waits.code(), Code::PermissionDenied);
    let id = NodeId::of_key(&key.public());
    cluster.becomes(&id, NodeState::Standby).await;
    let committed = node.commit_node(commit.clone()).await.expect("an answer").into_inner();
    assert_eq!(committed.ca_certificate, cluster.office.certificates.authority());
    let shown = Shown::read(&committed.node_certificate).expect("a certificate");
    assert_eq!(shown.node(), Some(id.as_str()));
    // It has not heard the answer.
    let again = node.commit_node(commit).await.expect("an answer").into_inner();
    assert_eq!(again, committed);

    let mut back = cluster.curator(cluster.with_key(&join));
    let joined = back.join_node(JoinNodeRequest { using_sealed_configuration: true }).await;
    assert_eq!(joined.expect("an answer").into_inner().cluster_unlock_key, [5; 32]);
    let mut node = cluster.curator(cluster.shows(Some((&committed.node_certificate, &key))));
    let answer = node.get_consensus_status(GetConsensusStatusRequest {}).await;
    let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
    assert!(!matches!(code, Code::Unauthenticated | Code::PermissionDenied), "{code:?}");
}

#[tokio::test]
async fn who_follows_says_where_the_leader_is_and_serves_nothing_else() {
    let cluster = Cluster::start().await;
    let leader =
        Leader { id: NodeId::of_key(&[9; 32]), host: Some("fd00::9".to_owned()), port: 7835 };
    cluster.follows(Some(leader.clone()));
    let mut management = cluster.management(cluster.as_user("owner"));
    let refused = management.get_register_ticket(GetRegisterTicketRequest {}).await;
    let refused = refused.expect_err("it does not lead");
    assert_eq!(refused.code(), Code::Unavailable);
    let told = |key| refused.metadata().get(key).and_then(|value| value.to_str().ok());
    assert_eq!(told("x-leader-node-id"), Some(leader.id.as_str()));
    assert_eq!(told("x-leader-endpoint"), Some("[fd00::9]:7835"));

    let mut local = cluster.local(cluster.shows(None));
    let answer = local.get_current_leader(GetCurrentLeaderRequest {}).await;
    let mut leaders = answer.expect("an answer").into_inner();
    let answer = leaders.message().await.expect("a message").expect("a leader");
    assert_eq!((&*answer.leader_host, &*answer.leader_node_id), ("fd00::9", leader.id.as_str()));
    assert_eq!(answer.this_node_id, cluster.office.own.as_str());
    // The leader moves; then nobody leads.
    let moved = Leader { host: Some("10.0.0.9".to_owned()), ..leader };
    cluster.follows(Some(moved));
    let answer = leaders.message().await.expect("a message").expect("a leader");
    assert_eq!(answer.leader_host, "10.0.0.9");
    cluster.follows(None);
    assert_eq!(leaders.message().await.expect_err("an end").code(), Code::Unavailable);
    let refused = management.get_register_ticket(GetRegisterTicketRequest {}).await;
    let refused = refused.expect_err("it does not lead");
    assert!(refused.metadata().get("x-leader-node-id").is_none());
}

#[tokio::test]
async fn a_curator_begins_with_an_owner_and_goes_on_without() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data").display().to_string();
    let options = |more: &[&str]| {
        let all = ["curator", "--data-dir", &data, "--listen", "127.0.0.1:0"];
        Options::try_parse_from(all.iter().chain(more)).expect("options")
    };
    let opened = Curator::open(options(&[])).await;
    assert!(matches!(opened, Err(Error::NoCluster)));
    let owner = names::hex(&RawKey::generate().expect("a key").public());
    let founds = ["--owner", &owner, "--tpm-mode", "best-effort"];
    let mut authority = Vec::new();
    for more in [&founds[..], &[], &founds[..]] {
        let curator = Curator::open(options(more)).await.expect("a curator");
        if authority.is_empty() {
            authority = curator.authority().to_vec();
        }
        assert_eq!(curator.authority(), authority);
        let port = curator.address().port();
        let config = orlop_pki::cluster::client_config(&authority, None, None);
        let channel = orlop_rpc::tls::channel("127.0.0.1", port, config.expect("a configuration"));
        let stop = orlop_rt::CancellationToken::new();
        let asks = async {
            let mut local = CuratorLocalClient::new(channel);
            let answer = local.get_ca_certificate(GetCaCertificateRequest {}).await;
            stop.cancel();
            answer.expect("an answer").into_inner().identity_ca_certificate
        };
        let (served, told) = tokio::join!(curator.serve(stop.clone()), asks);
        served.expect("served");
        assert_eq!(told, authority);
    }
    let wrong = ["curator", "--owner", "00ff"];
    let refused = Options::try_parse_from(wrong).expect_err("no key").to_string();
    assert!(refused.contains("64 hexadecimal digits"), "{refused}");
}
