//! Does what [`machine`](super::machine) says: calls, files, and the life of a node.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use orlop_config::parameters::{Founding, Joining, NodeParameters, Task as Told};
use orlop_pki::cluster::{self, RawKey, node_id};
use orlop_proto::metropolis::node::core::curator::proto::api::curator_client::CuratorClient;
use orlop_proto::metropolis::node::core::curator::proto::api::{
    CommitNodeRequest, JoinNodeRequest, RegisterNodeRequest,
};
use orlop_proto::metropolis::proto::common::cluster_configuration::{
    StorageSecurityPolicy, TpmMode,
};
use orlop_proto::metropolis::proto::common::{NodeRoles, NodeStorageSecurity};
use orlop_proto::orlop::inside::Standing;
use orlop_rpc::leader::{Place, Resolver, Terms};
use orlop_rt::{CancellationToken, Chain};
use orlop_store::{Limits, Location, Store};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::folders::{self, Credentials, Folders};
use super::machine::{self, Action, Answer, Dismissal, Event, Machine, Task};
use super::{Error, Options, home, news};
use crate::bootstrap;
use crate::names::hex;
use crate::state::State;

/// One call, and the search for the leader before it.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// For asking whether the node is still wanted (spec §3.4).
const JOIN_LIMIT: Duration = Duration::from_secs(10);
/// Beneath the data folder: credentials, and the store of a node that founded its cluster.
pub(super) const OWN: &str = "node";
const STORE: &str = "store";

/// Runs until `shutdown`.
///
/// # Errors
/// What it cannot go on from: its files, its port, its socket.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let told = options.parameters.as_deref().map(read_parameters).transpose()?;
    let (standing, standings) = watch::channel(Standing::default());
    let socket = options.socket.clone();
    let folders = Folders { state: options.state_dir.clone(), data: options.data_dir.clone() };
    let mut node = Node { options, folders, told, standing, answered: None };
    // Whichever ends first takes the other with it.
    let end = shutdown.child_token();
    let serving = async {
        let _end = end.clone().drop_guard();
        news::serve(socket, standings, end.clone()).await
    };
    let living = async {
        let _end = end.clone().drop_guard();
        node.live(&end).await
    };
    let (served, lived) = tokio::join!(serving, living);
    lived.and(served)
}

fn read_parameters(path: &Path) -> Result<Told, Error> {
    let bytes = std::fs::read(path)
        .map_err(|source| Error::Parameters { path: path.to_owned(), source })?;
    Ok(NodeParameters::decode(&bytes)?.task)
}

/// What the steps share.
#[derive(Debug)]
struct Node {
    options: Options,
    folders: Folders,
    told: Option<Told>,
    standing: watch::Sender<Standing>,
    /// What the cluster has answered, until it is kept.
    answered: Option<Credentials>,
}

impl Node {
    async fn live(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let task = match &self.told {
            Some(Told::Found(_)) => Some(Task::Found),
            Some(Told::Join(_)) => Some(Task::Join),
            None => None,
        };
        let mut machine = Machine::new(task);
        let progress = on_disk(&self.folders, Folders::progress).await?;
        let mut event = Event::Started(progress);
        loop {
            let action = machine.handle(Instant::now(), random(), event);
            self.tell(&machine, &action).await?;
            let next = match action {
                Action::Live => self.be_home(shutdown).await?,
                // Nothing is lost with a step: it is on the disk, or it is done again.
                action => {
                    shutdown.run_until_cancelled(self.perform(action)).await.transpose()?.flatten()
                }
            };
            match next {
                Some(next) => event = next,
                None => {
                    shutdown.cancelled().await;
                    return Ok(());
                }
            }
        }
    }

    /// Lets machined, and with it the console, know.
    async fn tell(&self, machine: &Machine, action: &Action) -> Result<(), Error> {
        let key = on_disk(&self.folders, own_key).await?;
        let word = machine.word().to_owned();
        let before = self.standing.borrow().word.clone();
        if !word.is_empty() && word != before {
            warn!(word, "not a node at home yet, or no longer");
        }
        self.standing.send_modify(|standing| {
            standing.state = machine.standing().into();
            if let Some(key) = &key {
                standing.node_id = node_id(key);
                standing.key = hex(key);
            }
            standing.word = word;
            if matches!(action, Action::Disown(_)) {
                standing.roles = None;
            }
        });
        Ok(())
    }

    /// None: there is nothing to do any more.
    async fn perform(&mut self, action: Action) -> Result<Option<Event>, Error> {
        Ok(Some(match action {
            Action::KeepKeys => {
                on_disk(&self.folders, Folders::make_keys).await?;
                Event::Kept
            }
            Action::Found => Event::Answered(self.found().await?),
            Action::Register => Event::Answered(self.register().await?),
            Action::Commit => Event::Answered(self.commit().await?),
            Action::KeepCertificate => {
                if let Some(credentials) = self.answered.take() {
                    on_disk(&self.folders, move |it| it.keep_credentials(&credentials)).await?;
                }
                Event::Kept
            }
            Action::Seal => {
                self.seal().await?;
                Event::Kept
            }
            Action::Join => Event::Answered(self.join().await?),
            Action::Disown(how) => {
                on_disk(&self.folders, Folders::disown).await?;
                self.standing
                    .send_modify(|standing| standing.power_off = how == Dismissal::Decommissioned);
                Event::Kept
            }
            Action::WakeAt(at) => {
                tokio::time::sleep_until(at.into()).await;
                Event::Due
            }
            Action::Live | Action::Rest => return Ok(None),
        }))
    }

    async fn found(&mut self) -> Result<Answer, Error> {
        let Some(Told::Found(founding)) = &self.told else {
            return Ok(Answer::Failed("there are no parameters of a founder".to_owned()));
        };
        let Founding { owner, configuration, labels } = founding.clone();
        if let Err(why) = can_meet(&configuration) {
            return Ok(Answer::Failed(why));
        }
        let keys = self.keys().await?;
        let founding = bootstrap::Founding {
            node: keys.node.public(),
            join: keys.join.public(),
            owner,
            cluster_unlock_key: Vec::new(),
            tpm: false,
            configuration: Some(configuration),
            labels,
        };
        on_disk(&self.folders, |it| it.make_room(OWN)).await?;
        let store = match Store::open(&self.store(), None, Limits::default()).await {
            Ok(store) => store,
            Err(error) => return Ok(Answer::Failed(Chain(&error).to_string())),
        };
        let state = State::new(store, None);
        let founded = bootstrap::found(&state, &founding, SystemTime::now()).await;
        state.store().close().await;
        let (certificates, certificate) = match founded {
            Ok(founded) => founded,
            Err(error) => return Ok(Answer::Failed(Chain(&error).to_string())),
        };
        let ca = certificates.authority().to_vec();
        info!(node = node_id(&keys.node.public()), "founded a cluster");
        self.answered = Some(Credentials { ca, certificate, key: keys.node });
        Ok(Answer::Certified)
    }

    /// Where the state of a cluster that this node founded lies.
    fn store(&self) -> Location {
        Location::Embedded(self.folders.data.join(OWN).join(STORE))
    }

    async fn register(&self) -> Result<Answer, Error> {
        let Some(Told::Join(Joining { ticket, ca, labels, .. })) = &self.told else {
            return Ok(Answer::Failed("there are no parameters of one who joins".to_owned()));
        };
        let keys = self.keys().await?;
        let request = RegisterNodeRequest {
            register_ticket: ticket.clone(),
            join_key: keys.join.public().to_vec(),
            have_local_tpm: false,
            labels: Some(labels.clone()),
        };
        let called = self
            .ask(&keys.node, ca, CALL_LIMIT, async |mut client| client.register_node(request).await)
            .await?;
        Ok(match called {
            Ok(response) => Answer::Registered(match response.cluster_configuration {
                Some(configuration) => configuration.storage_security_policy(),
                None if response.recommended_node_storage_security()
                    == NodeStorageSecurity::Insecure =>
                {
                    StorageSecurityPolicy::NeedsInsecure
                }
                None => StorageSecurityPolicy::Invalid,
            }),
            Err(status) if status.code() == Code::FailedPrecondition => Answer::Approved,
            Err(status) if status.code() == Code::PermissionDenied => Answer::Failed(format!(
                "the cluster refuses to register this node: {} (the ticket may be an old one; a TPM, which a \
                 cluster may ask for, is not used by this release: found it with --bootstrap-tpm-mode \
                 best-effort)",
                status.message()
            )),
            Err(status) => failed("RegisterNode", &status),
        })
    }

    async fn commit(&mut self) -> Result<Answer, Error> {
        let Some(Told::Join(Joining { ca, .. })) = &self.told else {
            return Ok(Answer::Failed("there are no parameters of one who joins".to_owned()));
        };
        let keys = self.keys().await?;
        let request = CommitNodeRequest {
            // What is not encrypted has no key.
            cluster_unlock_key: Vec::new(),
            storage_security: NodeStorageSecurity::Insecure.into(),
        };
        let called = self
            .ask(&keys.node, ca, CALL_LIMIT, async |mut client| client.commit_node(request).await)
            .await?;
        Ok(match called {
            Ok(response) => {
                let (ca, certificate) = (response.ca_certificate, response.node_certificate);
                self.answered = Some(Credentials { ca, certificate, key: keys.node });
                Answer::Certified
            }
            Err(status) if status.code() == Code::PermissionDenied => Answer::NotYet,
            Err(status) if status.code() == Code::NotFound => Answer::Unknown,
            Err(status) => failed("CommitNode", &status),
        })
    }

    async fn join(&self) -> Result<Answer, Error> {
        let sealed = on_disk(&self.folders, Folders::sealed).await?;
        let credentials = on_disk(&self.folders, Folders::credentials).await?;
        let (Some(join), Some(credentials)) = (sealed, credentials) else {
            return Ok(Answer::Welcome);
        };
        self.still_wanted(&join, &credentials.ca).await
    }

    /// `JoinNode`, for what it says of the node: storage that is not encrypted needs no key of the cluster's.
    async fn still_wanted(&self, join: &RawKey, ca: &[u8]) -> Result<Answer, Error> {
        let request = JoinNodeRequest { using_sealed_configuration: false };
        let called = self
            .ask(join, ca, JOIN_LIMIT, async |mut client| client.join_node(request).await)
            .await?;
        Ok(match called {
            Ok(_) => Answer::Welcome,
            Err(status) => match status.code() {
                Code::NotFound => Answer::Dismissed(Dismissal::Deleted),
                Code::FailedPrecondition => Answer::Dismissed(Dismissal::Decommissioned),
                _ => failed("JoinNode", &status),
            },
        })
    }

    /// Calls the leader with nothing but a key.
    async fn ask<T>(
        &self,
        key: &RawKey,
        ca: &[u8],
        limit: Duration,
        call: impl AsyncFnOnce(CuratorClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<Result<T, Status>, Error> {
        let shown = cluster::ephemeral(key, SystemTime::now())?;
        let tls = cluster::client_config(ca, Some((&shown, key)), None)?;
        let seeds = self.seeds().await?;
        let overrides = BTreeMap::new();
        let resolver = Resolver::start(Terms { seeds, overrides, tls, learn: false });
        let calling = async {
            let client = CuratorClient::new(resolver.channel().await);
            call(client).await.map(tonic::Response::into_inner)
        };
        Ok(timeout(limit, calling).await.unwrap_or_else(|_| {
            let found = resolver.found();
            let failures = found.borrow().failures.clone();
            let mut why: Vec<_> = failures
                .iter()
                .map(|(place, status)| format!("{place}: {}", status.message()))
                .collect();
            why.dedup();
            Err(Status::unavailable(format!(
                "no curator answers within {} s ({})",
                limit.as_secs(),
                why.join("; ")
            )))
        }))
    }

    /// Whom to ask for the leader: the nodes that were curators last, and those of the parameters.
    async fn seeds(&self) -> Result<Vec<Place>, Error> {
        let kept = on_disk(&self.folders, Folders::directory).await?;
        let given = match &self.told {
            Some(Told::Join(joining)) => &joining.directory[..],
            _ => &[],
        };
        let addresses = kept.iter().chain(given).flat_map(|known| &known.addresses);
        let mut seeds = Vec::new();
        for address in addresses {
            let place = Place { host: address.to_string(), port: self.options.curator_port };
            if !seeds.contains(&place) {
                seeds.push(place);
            }
        }
        Ok(seeds)
    }

    async fn keys(&self) -> Result<folders::Keys, Error> {
        on_disk(&self.folders, |it| {
            it.enrollment()?.ok_or_else(|| folders::Error::Damaged {
                path: it.state.clone(),
                why: "the keys it was taken in with are gone".to_owned(),
            })
        })
        .await
    }

    /// What the next boot needs.
    async fn seal(&self) -> Result<(), Error> {
        if let Some(Told::Found(_)) = &self.told {
            // Nobody else could tell it, and without them there is nobody to ask.
            let roles = NodeRoles {
                consensus_member: Some(Default::default()),
                kubernetes_controller: Some(Default::default()),
                kubernetes_worker: None,
            };
            on_disk(&self.folders, move |it| it.keep_roles(&roles)).await?;
        }
        if let Some(Told::Join(joining)) = &self.told {
            let known = joining.directory.iter();
            let known: Vec<(String, IpAddr)> = known
                .filter_map(|node| Some((node.id.clone(), *node.addresses.first()?)))
                .collect();
            on_disk(&self.folders, move |it| it.keep_directory(&known)).await?;
        }
        on_disk(&self.folders, Folders::seal).await
    }

    /// The life of a node, until its cluster has done with it; none: until `shutdown`.
    async fn be_home(&self, shutdown: &CancellationToken) -> Result<Option<Event>, Error> {
        on_disk(&self.folders, Folders::settle).await?;
        let credentials = on_disk(&self.folders, Folders::credentials).await?;
        let Some(credentials) = credentials else {
            let path = self.folders.data.clone();
            let why = "the certificate is gone".to_owned();
            return Err(folders::Error::Damaged { path, why }.into());
        };
        info!(node = node_id(&credentials.key.public()), "this machine is a node of its cluster");
        let mut seeds = self.seeds().await?;
        let own = self.options.own_curator();
        let founder = self.folders.data.join(OWN).join(STORE).exists();
        if founder && seeds.is_empty() {
            seeds.push(own);
        }
        let home = home::Home {
            options: self.options.clone(),
            folders: self.folders.clone(),
            credentials,
            seeds,
            store: founder.then(|| self.store()),
            standing: self.standing.clone(),
        };
        let check = async || {
            let answer = self.join().await?;
            Ok(match answer {
                Answer::Dismissed(how) => Some(how),
                _ => None,
            })
        };
        Ok(home.live(shutdown, check).await?.map(Event::Dismissed))
    }
}

/// Who this machine is, once it has a key.
fn own_key(folders: &Folders) -> Result<Option<[u8; cluster::KEY_LENGTH]>, folders::Error> {
    if let Some(keys) = folders.enrollment()? {
        return Ok(Some(keys.node.public()));
    }
    // One that is damaged is told where it is needed.
    Ok(folders.credentials().ok().flatten().map(|credentials| credentials.key.public()))
}

/// Whether this release can be a node of a cluster like that.
fn can_meet(
    configuration: &orlop_proto::metropolis::proto::common::ClusterConfiguration,
) -> Result<(), String> {
    if configuration.tpm_mode() == TpmMode::Required {
        return Err(
            "the cluster would ask for a TPM, which this release does not use; found it with \
                    --bootstrap-tpm-mode best-effort or disabled"
                .to_owned(),
        );
    }
    machine::check_policy(configuration.storage_security_policy())
}

fn failed(call: &str, status: &Status) -> Answer {
    Answer::Failed(format!("{call}: {} ({:?})", status.message(), status.code()))
}

/// Reads or writes files where nobody waits for the disk.
pub(super) async fn on_disk<T: Send + 'static>(
    folders: &Folders,
    work: impl FnOnce(&Folders) -> Result<T, folders::Error> + Send + 'static,
) -> Result<T, Error> {
    let folders = folders.clone();
    Ok(spawn_blocking(move || work(&folders)).await.map_err(Error::Lost)??)
}

/// Jitter; nothing depends on its being hard to guess.
pub(super) fn random() -> u32 {
    let hash = RandomState::new().hash_one(());
    u32::try_from(hash >> 32).unwrap_or_default()
}
