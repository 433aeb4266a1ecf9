//! For tests: a curator on a port of its own, over an embedded store in a folder of its own, and its callers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::SystemTime;

use orlop_pki::cluster::{self, Profile, RawKey};
use orlop_proto::metropolis::node::core::curator::proto::api::curator_client::CuratorClient;
use orlop_proto::metropolis::node::core::curator::proto::api::curator_local_client::CuratorLocalClient;
use orlop_proto::metropolis::proto::api::aaa_client::AaaClient;
use orlop_proto::metropolis::proto::api::management_client::ManagementClient;
use orlop_proto::metropolis::proto::common::cluster_configuration::{
    StorageSecurityPolicy, TpmMode,
};
use orlop_proto::metropolis::proto::common::{ClusterConfiguration, NodeLabels, NodeState};
use orlop_rpc::tls;
use orlop_rt::CancellationToken;
use orlop_store::{Embedded, Limits, Store};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::api::{Leader, Local};
use crate::bootstrap::{self, Founding};
use crate::configuration;
use crate::consensus::Consensus;
use crate::names::{self, NodeId};
use crate::office::Office;
use crate::server::{self, Personality};
use crate::state::{Changes, State};

/// A cluster of one node, which leads.
pub(crate) struct Cluster {
    pub(crate) office: Arc<Office>,
    /// The first node's key.
    pub(crate) node: RawKey,
    /// The initial owner's key.
    pub(crate) owner: RawKey,
    pub(crate) port: u16,
    /// Cancelled, the curator leads no more.
    pub(crate) left: CancellationToken,
    standing: watch::Sender<Option<Leader>>,
    face: watch::Sender<Personality>,
    /// Dropped with the test, which ends the server.
    _tasks: JoinSet<()>,
    _folder: TempDir,
}

/// A store in a folder of its own.
pub(crate) async fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Embedded::open(&folder.path().join("store"), Limits::default()).await;
    (folder, Store::Embedded(store.expect("a store")))
}

/// What a cluster of tests is like: any TPM, any storage.
pub(crate) fn lenient() -> ClusterConfiguration {
    ClusterConfiguration {
        tpm_mode: TpmMode::BestEffort.into(),
        storage_security_policy: StorageSecurityPolicy::Permissive.into(),
        ..configuration::initial()
    }
}

/// What the first node of such a cluster brings.
pub(crate) fn founding(node: &RawKey, owner: &RawKey) -> Founding {
    Founding {
        node: node.public(),
        join: RawKey::generate().expect("a key").public(),
        owner: owner.public(),
        cluster_unlock_key: Vec::new(),
        tpm: false,
        configuration: Some(lenient()),
        labels: NodeLabels::default(),
    }
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let (folder, store) = store().await;
        let key = || RawKey::generate().expect("a key");
        let (node, owner) = (key(), key());
        let state = State::new(store, None);
        let founding = founding(&node, &owner);
        let (certificates, shown) =
            bootstrap::found(&state, &founding, SystemTime::now()).await.expect("a cluster");
        let own = NodeId::of_key(&node.public());
        let listener = tls::listen((Ipv4Addr::LOCALHOST, 0).into()).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let leader = Leader { id: own.clone(), host: None, port };
        let (standing, stands) = watch::channel(Some(leader));
        let local = Local::new(own.clone(), certificates.authority(), stands);
        let consensus = Consensus::of(state.store(), None);
        let office = Office::open(own, state, certificates, consensus).await.expect("an office");
        let (office, left) = (Arc::new(office), CancellationToken::new());
        let personality = Personality::leader(Arc::clone(&office), local, left.clone());
        let (face, faces) = watch::channel(personality);
        let config = server::tls_config(&shown, &node).expect("a configuration");
        let mut tasks = JoinSet::new();
        let (config, configs) = watch::channel(config);
        tasks.spawn(async move {
            server::serve(listener, configs, faces, CancellationToken::new()).await;
            drop(config);
        });
        let following = Arc::clone(&office);
        tasks.spawn(async move { following.follow().await });
        Self { office, node, owner, port, left, standing, face, _tasks: tasks, _folder: folder }
    }

    /// It leads no more, and knows that this one does.
    pub(crate) fn follows(&self, leader: Option<Leader>) {
        self.standing.send_replace(leader);
        let authority = self.office.certificates.authority();
        let local = Local::new(self.office.own.clone(), authority, self.standing.subscribe());
        if !self.left.is_cancelled() {
            self.face.send_replace(Personality::follower(local, CancellationToken::new()));
            self.left.cancel();
        }
    }

    /// Somebody, an operator or time itself, has brought a node into this state.
    pub(crate) async fn becomes(&self, id: &NodeId, state: NodeState) {
        let mut node = self.office.state.node(id).await.expect("a read").expect("a node").value;
        node.fsm_state = state.into();
        let changes = Changes::new().put_message(&names::node(id), &node);
        self.office.change(changes).await.expect("a write").expect("written");
    }

    /// A channel of somebody who shows this certificate (DER).
    pub(crate) fn shows(&self, shown: Option<(&[u8], &RawKey)>) -> Channel {
        let authority = self.office.certificates.authority();
        let config = cluster::client_config(authority, shown, None).expect("a configuration");
        tls::channel(&IpAddr::V4(Ipv4Addr::LOCALHOST).to_string(), self.port, config)
    }

    /// Of somebody who shows a certificate of his own making.
    pub(crate) fn with_key(&self, key: &RawKey) -> Channel {
        let shown = cluster::ephemeral(key, SystemTime::now()).expect("a certificate");
        self.shows(Some((&shown, key)))
    }

    /// Of a user with this identity.
    pub(crate) fn as_user(&self, identity: &str) -> Channel {
        self.certified(&Profile::user(identity), &RawKey::generate().expect("a key"))
    }

    /// Of the node with this key.
    pub(crate) fn as_node(&self, key: &RawKey) -> Channel {
        let id = NodeId::of_key(&key.public());
        self.certified(&Profile::node(id.as_str()), key)
    }

    fn certified(&self, profile: &Profile, key: &RawKey) -> Channel {
        let certificates = &self.office.certificates;
        let shown = certificates.issue(profile, &key.public(), SystemTime::now());
        self.shows(Some((&shown.expect("a certificate"), key)))
    }

    pub(crate) fn local(&self, channel: Channel) -> CuratorLocalClient<Channel> {
        CuratorLocalClient::new(channel)
    }

    pub(crate) fn curator(&self, channel: Channel) -> CuratorClient<Channel> {
        CuratorClient::new(channel)
    }

    pub(crate) fn management(&self, channel: Channel) -> ManagementClient<Channel> {
        ManagementClient::new(channel)
    }

    pub(crate) fn aaa(&self, channel: Channel) -> AaaClient<Channel> {
        AaaClient::new(channel)
    }
}
