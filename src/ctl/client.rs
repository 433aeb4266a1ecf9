//! Calls to nodes: which endpoint is dialled, which nodes are meant, what each of them answered.
//!
//! One call goes to one endpoint, with a metadata key `nodes` for each target; apid there asks them
//! and joins their answers. Without targets the endpoint answers for itself, and is printed as it was
//! typed. An endpoint that cannot be reached hands over to the next one; once a request may have been
//! sent it is never sent again, because a call may be a reboot.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use orlop_proto::cluster::cluster_service_client::ClusterServiceClient;
use orlop_proto::common::Metadata;
use orlop_proto::machine::image_service_client::ImageServiceClient;
use orlop_proto::machine::machine_service_client::MachineServiceClient;
use orlop_proto::network::network_service_client::NetworkServiceClient;
use orlop_proto::orlop::v1alpha1 as orlop;
use orlop_proto::orlop::v1alpha1::clock_service_client::ClockServiceClient;
use orlop_proto::orlop::v1alpha1::node_service_client::NodeServiceClient;
use orlop_proto::storage::storage_service_client::StorageServiceClient;
use orlop_proto::time::time_service_client::TimeServiceClient;
use orlop_proto::{cluster, common, machine, network, storage, time};
use tokio_rustls::rustls::ClientConfig;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::endpoint::{self, Endpoint};
use crate::error::{Attempt, Error, Failure};
use crate::refusal;

/// Until when a unary call must be answered, connecting included.
const DEADLINE: Duration = Duration::from_secs(20);
/// Nodes are told to give up a little later: it is our own clock that ends a call.
const GRACE: Duration = Duration::from_secs(1);

/// What a generated client is made from: a channel that adds the targets to each call.
pub(crate) type Node = InterceptedService<Channel, Targets>;

/// The machine API of a node; the joined answers of many nodes are long.
pub(crate) fn machine(node: Node) -> MachineServiceClient<Node> {
    MachineServiceClient::new(node).max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
}

/// What a node says of its cluster.
pub(crate) fn cluster(node: Node) -> ClusterServiceClient<Node> {
    ClusterServiceClient::new(node).max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
}

/// The images of a node, as today's generation asks for them.
pub(crate) fn images(node: Node) -> ImageServiceClient<Node> {
    ImageServiceClient::new(node).max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
}

/// The network API of a node.
pub(crate) fn network(node: Node) -> NetworkServiceClient<Node> {
    NetworkServiceClient::new(node).max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
}

/// What a node says of its own clock.
pub(crate) fn clock(node: Node) -> ClockServiceClient<Node> {
    ClockServiceClient::new(node).max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
}

/// The time API of a node.
pub(crate) fn time(node: Node) -> TimeServiceClient<Node> {
    TimeServiceClient::new(node).max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
}

/// The disks of a node.
pub(crate) fn storage(node: Node) -> StorageServiceClient<Node> {
    StorageServiceClient::new(node).max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
}

/// What a node tells beyond the machine API.
pub(crate) fn told(node: Node) -> NodeServiceClient<Node> {
    NodeServiceClient::new(node).max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
}

/// The cluster as one context of the client configuration shows it. Clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Tried in turn; never empty.
    endpoints: Arc<[Way]>,
    /// The endpoint that is tried first when nodes are named: the one that was reached last.
    first: Arc<AtomicUsize>,
    targets: Targets,
    tls: Arc<ClientConfig>,
    /// Whose certificate is shown, as named in errors.
    identity: String,
    /// Nothing is said of endpoints that were passed over.
    silent: bool,
}

/// An endpoint and the connection to it, which is made when it is first needed.
#[derive(Debug)]
struct Way {
    endpoint: Endpoint,
    channel: OnceLock<Channel>,
}

/// What one node said.
#[derive(Debug)]
pub(crate) struct Answer<M> {
    /// As it is printed under `NODE`.
    pub(crate) node: String,
    pub(crate) message: M,
}

impl Client {
    pub(crate) fn new(
        endpoints: Vec<Endpoint>,
        nodes: Vec<String>,
        identity: String,
        tls: Arc<ClientConfig>,
    ) -> Result<Self, Error> {
        debug_assert!(!endpoints.is_empty());
        let targets = Targets::new(nodes)?;
        let way = |endpoint| Way { endpoint, channel: OnceLock::new() };
        let endpoints = endpoints.into_iter().map(way).collect();
        let first = Arc::default();
        Ok(Self { endpoints, first, targets, tls, identity, silent: false })
    }

    /// A client of other nodes, over the same connections.
    ///
    /// # Errors
    /// When one of them is no node.
    pub(crate) fn of(&self, nodes: Vec<String>) -> Result<Self, Error> {
        Ok(Self { targets: Targets::new(nodes)?, ..self.clone() })
    }

    /// The same client, which says nothing of endpoints that it passed over.
    pub(crate) fn silent(&self) -> Self {
        Self { silent: true, ..self.clone() }
    }

    /// A client of each target alone, over the same connections: none of them waits for another, and
    /// none of them says anything on stderr while all goes well.
    pub(crate) fn each(&self) -> Vec<Self> {
        let quiet = self.silent();
        if self.targets.nodes.is_empty() {
            // The first endpoint is the node that is meant: no other one answers under its name.
            let endpoint = self.endpoints[0].endpoint.clone();
            let endpoints = [Way { endpoint, channel: OnceLock::new() }].into();
            return vec![Self { endpoints, first: Arc::default(), ..quiet }];
        }
        let alone = |node: &MetadataValue<Ascii>| {
            let nodes = vec![node.clone()];
            let targets = Targets { nodes, deadline: None, ..self.targets.clone() };
            Self { targets, ..quiet.clone() }
        };
        self.targets.nodes.iter().map(alone).collect()
    }

    /// As [`Self::each`], for services whose answers apid does not join: what each says is passed on as
    /// it is. With the node as it was typed.
    pub(crate) fn alone(&self) -> Vec<(String, Self)> {
        let one = |client: Self| {
            let node = client.nodes().pop_first().unwrap_or_default();
            let targets = Targets { key: "node", ..client.targets.clone() };
            (node, Self { targets, ..client })
        };
        self.each().into_iter().map(one).collect()
    }

    /// Makes a streaming call for the one node that is meant, and hands over each message, until Ctrl-C.
    ///
    /// # Errors
    /// When the node does not answer, or ends badly.
    pub(crate) async fn listen<M>(
        &self,
        what: &str,
        call: impl AsyncFn(Node) -> Result<Response<Streaming<M>>, Status>,
        mut each: impl FnMut(M),
    ) -> Result<(), Error> {
        let messages = async {
            let (endpoint, reply) = self.reach(what, self.targets.clone(), call).await?;
            let mut stream = reply.into_inner();
            while let Some(message) = stream.message().await.transpose() {
                each(message.map_err(|status| Error::ended(what, endpoint, &status))?);
            }
            Ok(())
        };
        tokio::select! {
            done = messages => done,
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Error::Signal),
        }
    }

    /// Makes a call whose answer says nothing, for the one node that is meant.
    ///
    /// # Errors
    /// When the node does not do it.
    pub(crate) async fn do_it(
        &self,
        what: &str,
        call: impl AsyncFn(Node) -> Result<Response<()>, Status>,
    ) -> Result<(), Error> {
        self.reach(what, self.targets.clone(), call).await.map(drop)
    }

    /// What will stand under `NODE`: the targets, else the first endpoint.
    pub(crate) fn nodes(&self) -> BTreeSet<String> {
        if self.targets.nodes.is_empty() {
            return [self.endpoints[0].endpoint.to_string()].into();
        }
        let typed = |node: &MetadataValue<Ascii>| String::from_utf8_lossy(node.as_bytes()).into();
        self.targets.nodes.iter().map(typed).collect()
    }

    /// The endpoints as they were typed.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.endpoints.iter().map(|way| way.endpoint.to_string()).collect()
    }

    /// # Errors
    /// When several nodes are meant by a `command` whose output is of one.
    pub(crate) fn one_node(&self, command: &'static str) -> Result<(), Error> {
        match self.nodes().len() {
            1 => Ok(()),
            count => Err(Error::OneNode { command, count }),
        }
    }

    /// Makes a unary call and returns what the nodes answered; those that failed are told on stderr.
    ///
    /// # Errors
    /// When no endpoint or no node answered. `what` says what was being done: `read memory`.
    pub(crate) async fn ask<R: Reply>(
        &self,
        what: &str,
        call: impl AsyncFn(Node) -> Result<Response<R>, Status>,
    ) -> Result<Vec<Answer<R::Message>>, Error> {
        tell(what, self.gather(what, call).await?)
    }

    /// As [`Self::ask`], for what takes as long as it takes.
    pub(crate) async fn ask_patiently<R: Reply>(
        &self,
        what: &str,
        call: impl AsyncFn(Node) -> Result<Response<R>, Status>,
    ) -> Result<Vec<Answer<R::Message>>, Error> {
        let (endpoint, reply) = self.reach(what, self.targets.clone(), call).await?;
        tell(what, sort(&endpoint.to_string(), reply.into_inner().messages()))
    }

    /// Makes a call that sends a stream, which takes as long as it takes, to the one node that is meant.
    /// It is named with `node`: apid joins nothing, and passes the stream on as it comes.
    pub(crate) async fn send<R: Reply>(
        &self,
        what: &str,
        call: impl AsyncFn(Node) -> Result<Response<R>, Status>,
    ) -> Result<(), Error> {
        let targets = Targets { key: "node", ..self.targets.clone() };
        let (endpoint, reply) = self.reach(what, targets, call).await?;
        tell(what, sort(&endpoint.to_string(), reply.into_inner().messages())).map(drop)
    }

    /// As [`Self::ask`], but nothing is told of the nodes that failed.
    pub(crate) async fn gather<R: Reply>(
        &self,
        what: &str,
        call: impl AsyncFn(Node) -> Result<Response<R>, Status>,
    ) -> Result<(Vec<Answer<R::Message>>, Vec<Failure>), Error> {
        let targets = Targets { deadline: Some(DEADLINE), ..self.targets.clone() };
        let (endpoint, reply) = self.reach(what, targets, call).await?;
        Ok(sort(&endpoint.to_string(), reply.into_inner().messages()))
    }

    /// Makes a streaming call and hands over each message with the node it is from, until all nodes
    /// are done or Ctrl-C. A node that fails is told on stderr, the others go on.
    ///
    /// # Errors
    /// When no endpoint answered, every node failed, or `each` did.
    pub(crate) async fn follow<M: Message>(
        &self,
        what: &str,
        call: impl AsyncFn(Node) -> Result<Response<Streaming<M>>, Status>,
        mut each: impl FnMut(&str, M) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut outcome = Outcome::default();
        let messages = async {
            self.stream(what, call, async |message| match message {
                Ok(Answer { node, message }) => {
                    outcome.succeeded(&node);
                    each(&node, message)
                }
                Err(failure) => {
                    say!(warning: "{what}: {failure}");
                    outcome.failed(failure);
                    Ok(())
                }
            })
            .await?;
            outcome.judge(what, self.nodes().len())
        };
        tokio::select! {
            done = messages => done,
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Error::Signal),
        }
    }

    /// Makes a streaming call and hands over what each node says, and how it fails, until all are done.
    ///
    /// # Errors
    /// When no endpoint answered, the stream broke off, or `each` fails.
    pub(crate) async fn stream<M: Message>(
        &self,
        what: &str,
        call: impl AsyncFn(Node) -> Result<Response<Streaming<M>>, Status>,
        mut each: impl AsyncFnMut(Result<Answer<M>, Failure>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (endpoint, reply) = self.reach(what, self.targets.clone(), call).await?;
        let mut stream = reply.into_inner();
        while let Some(message) = stream.message().await.transpose() {
            let message = message.map_err(|status| Error::ended(what, endpoint, &status))?;
            each(split(&endpoint.to_string(), message)).await?;
        }
        Ok(())
    }

    /// Calls the first endpoint that can be reached, beginning with the one that was the last time.
    async fn reach<T>(
        &self,
        what: &str,
        targets: Targets,
        call: impl AsyncFn(Node) -> Result<T, Status>,
    ) -> Result<(&Endpoint, T), Error> {
        let mut attempts = Vec::new();
        let count = self.endpoints.len();
        // Who names no node means the endpoint: another one is no substitute for longer than it is away.
        let named = !targets.nodes.is_empty();
        let first = if named { self.first.load(Ordering::Relaxed) } else { 0 };
        for at in (first..count).chain(0..first) {
            let Way { endpoint, channel } = &self.endpoints[at];
            let Endpoint { host, port, .. } = endpoint;
            let open = || orlop_rpc::tls::channel(host, *port, Arc::clone(&self.tls));
            let channel = channel.get_or_init(open).clone();
            let node = InterceptedService::new(channel, targets.clone());
            let answered = call(node);
            let answer = match targets.deadline {
                Some(deadline) => tokio::time::timeout(deadline, answered).await,
                None => Ok(answered.await),
            };
            match answer {
                Ok(Ok(reply)) => {
                    self.first.store(at, Ordering::Relaxed);
                    if !self.silent {
                        let instead = |attempt| say!(note: "{attempt}; {endpoint} answers instead");
                        attempts.iter().for_each(instead);
                    }
                    return Ok((endpoint, reply));
                }
                Ok(Err(status)) => match Attempt::unreached(&status) {
                    Some(attempt) => attempts.push(attempt),
                    None => return Err(self.refused(what, endpoint, &status).await),
                },
                Err(_) => {
                    let (what, endpoint) = (what.to_owned(), endpoint.to_string());
                    return Err(Error::Deadline { what, endpoint, after: DEADLINE });
                }
            }
        }
        Err(Error::Unreachable { what: what.to_owned(), identity: self.identity.clone(), attempts })
    }

    async fn refused(&self, what: &str, endpoint: &Endpoint, status: &Status) -> Error {
        // Only a status that was made here has a source.
        let Some(source) = status.source() else { return Error::refused(what, endpoint, status) };
        match refusal::listen(endpoint, Arc::clone(&self.tls)).await {
            Some(said) => Error::broken(what, endpoint, &self.identity, &said),
            None => Error::broken(what, endpoint, &self.identity, source),
        }
    }
}

/// Puts the nodes a call is meant for, and its deadline, into its metadata.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    /// `nodes`, or `node` for a call that is not joined.
    key: &'static str,
    nodes: Vec<MetadataValue<Ascii>>,
    deadline: Option<Duration>,
}

impl Targets {
    fn new(nodes: Vec<String>) -> Result<Self, Error> {
        let value = |node: String| match (endpoint::target(&node), MetadataValue::try_from(&node)) {
            (Ok(()), Ok(value)) => Ok(value),
            (meant, _) => Err(Error::Node { node, meant: meant.err().flatten() }),
        };
        let nodes = nodes.into_iter().map(value).collect::<Result<_, _>>()?;
        Ok(Self { key: "nodes", nodes, deadline: None })
    }

    fn add_to(&self, metadata: &mut MetadataMap) {
        for node in &self.nodes {
            metadata.append(self.key, node.clone());
        }
    }
}

impl Interceptor for Targets {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.add_to(request.metadata_mut());
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline + GRACE);
        }
        Ok(request)
    }
}

/// Which nodes of a stream ended badly, so far, and why.
#[derive(Debug, Default)]
struct Outcome {
    failed: BTreeMap<String, String>,
}

impl Outcome {
    fn failed(&mut self, failure: Failure) {
        self.failed.insert(failure.node, failure.why);
    }

    /// A record that could not be read is no failure of a node that goes on.
    fn succeeded(&mut self, node: &str) {
        self.failed.remove(node);
    }

    fn judge(self, what: &str, nodes: usize) -> Result<(), Error> {
        if self.failed.len() < nodes {
            return Ok(());
        }
        let failures = self.failed.into_iter().map(|(node, why)| Failure { node, why }).collect();
        Err(Error::Failed { what: what.to_owned(), failures })
    }
}

/// The answers; the failures are told on stderr, unless there is nothing else.
fn tell<M>(
    what: &str,
    (answers, failures): (Vec<Answer<M>>, Vec<Failure>),
) -> Result<Vec<Answer<M>>, Error> {
    if answers.is_empty() && !failures.is_empty() {
        return Err(Error::Failed { what: what.to_owned(), failures });
    }
    failures.iter().for_each(|failure| say!(warning: "{what}: {failure}"));
    Ok(answers)
}

/// What nodes answered, and how others failed.
fn sort<M: Message>(endpoint: &str, messages: Vec<M>) -> (Vec<Answer<M>>, Vec<Failure>) {
    let (mut answers, mut failures) = (Vec::new(), Vec::new());
    for message in messages {
        match split(endpoint, message) {
            Ok(answer) => answers.push(answer),
            Err(failure) => failures.push(failure),
        }
    }
    (answers, failures)
}

/// Names the node a message is from: the endpoint, when no apid put a name into it.
fn split<M: Message>(endpoint: &str, message: M) -> Result<Answer<M>, Failure> {
    let metadata = message.metadata().cloned().unwrap_or_default();
    let Metadata { hostname, error, status } = metadata;
    let node = if hostname.is_empty() { endpoint.to_owned() } else { hostname };
    match status {
        Some(status) if status.code != 0 => Err(Failure::from_status(node, &status)),
        _ if !error.is_empty() => Err(Failure { node, why: error }),
        _ => Ok(Answer { node, message }),
    }
}

/// A message that says which node it is from.
pub(crate) trait Message {
    fn metadata(&self) -> Option<&Metadata>;
}

/// A unary reply: a message of each node.
pub(crate) trait Reply {
    type Message: Message;

    fn messages(self) -> Vec<Self::Message>;
}

macro_rules! messages {
    ($($message:path),+ $(,)?) => {
        $(impl Message for $message {
            fn metadata(&self) -> Option<&Metadata> {
                self.metadata.as_ref()
            }
        })+
    };
}

macro_rules! replies {
    ($($reply:path => $message:path),+ $(,)?) => {
        messages!($($message),+);
        $(impl Reply for $reply {
            type Message = $message;

            fn messages(self) -> Vec<$message> {
                self.messages
            }
        })+
    };
}

messages!(
    cluster::HealthCheckProgress,
    common::Data,
    machine::DiskUsageInfo,
    machine::Event,
    machine::FileInfo,
    machine::ImageListResponse,
);

replies! {
    machine::ApplyConfigurationResponse => machine::ApplyConfiguration,
    machine::BootstrapResponse => machine::Bootstrap,
    machine::EtcdAlarmDisarmResponse => machine::EtcdAlarmDisarm,
    machine::EtcdAlarmListResponse => machine::EtcdAlarm,
    machine::EtcdDefragmentResponse => machine::EtcdDefragment,
    machine::EtcdDowngradeCancelResponse => machine::EtcdDowngradeCancel,
    machine::EtcdDowngradeEnableResponse => machine::EtcdDowngradeEnable,
    machine::EtcdDowngradeValidateResponse => machine::EtcdDowngradeValidate,
    machine::EtcdForfeitLeadershipResponse => machine::EtcdForfeitLeadership,
    machine::EtcdLeaveClusterResponse => machine::EtcdLeaveCluster,
    machine::EtcdMemberListResponse => machine::EtcdMembers,
    machine::EtcdRecoverResponse => machine::EtcdRecover,
    machine::EtcdRemoveMemberByIdResponse => machine::EtcdRemoveMemberById,
    machine::EtcdRemoveMemberResponse => machine::EtcdRemoveMember,
    machine::EtcdStatusResponse => machine::EtcdStatus,
    machine::RecoverResponse => machine::Recover,
    machine::RollbackResponse => machine::Rollback,
    machine::UpgradeResponse => machine::Upgrade,
    machine::ContainersResponse => machine::Container,
    machine::DiskStatsResponse => machine::DiskStats,
    machine::GenerateClientConfigurationResponse => machine::GenerateClientConfiguration,
    machine::LoadAvgResponse => machine::LoadAvg,
    machine::LogsContainersResponse => machine::LogsContainer,
    machine::ImagePullResponse => machine::ImagePull,
    machine::MemoryResponse => machine::Memory,
    machine::MetaDeleteResponse => machine::MetaDelete,
    machine::MetaWriteResponse => machine::MetaWrite,
    machine::MountsResponse => machine::Mounts,
    machine::NetstatResponse => machine::Netstat,
    machine::NetworkDeviceStatsResponse => machine::NetworkDeviceStats,
    machine::ProcessesResponse => machine::Process,
    machine::RebootResponse => machine::Reboot,
    machine::ResetResponse => machine::Reset,
    machine::RestartResponse => machine::Restart,
    machine::ServiceListResponse => machine::ServiceList,
    machine::ServiceRestartResponse => machine::ServiceRestart,
    machine::ServiceStartResponse => machine::ServiceStart,
    machine::ServiceStopResponse => machine::ServiceStop,
    machine::ShutdownResponse => machine::Shutdown,
    machine::StatsResponse => machine::Stats,
    machine::SystemStatResponse => machine::SystemStat,
    machine::VersionResponse => machine::Version,
    network::InterfacesResponse => network::Interfaces,
    network::RoutesResponse => network::Routes,
    orlop::ClockResponse => orlop::Clock,
    orlop::MetricsResponse => orlop::Metrics,
    orlop::TimelineResponse => orlop::Timeline,
    storage::BlockDeviceWipeResponse => storage::BlockDeviceWipe,
    storage::DisksResponse => storage::Disks,
    time::TimeResponse => time::Time,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_proto::google::rpc;
    use orlop_proto::machine::Memory;

    use super::*;

    fn said(hostname: &str, error: &str, code: i32) -> Memory {
        let message = "no route to host".to_owned();
        let status = (code != 0).then(|| rpc::Status { code, message, details: vec![] });
        let (hostname, error) = (hostname.to_owned(), error.to_owned());
        Memory { metadata: Some(Metadata { hostname, error, status }), meminfo: None }
    }

    #[test]
    fn an_answer_without_a_name_is_from_the_endpoint_as_typed() {
        let (answers, failures) =
            sort("[fd00::2]:50001", vec![Memory::default(), said("b", "", 0)]);
        let nodes: Vec<_> = answers.iter().map(|answer| &*answer.node).collect();
        assert_eq!(nodes, ["[fd00::2]:50001", "b"]);
        assert!(failures.is_empty());
    }

    #[test]
    fn the_status_of_a_failed_node_is_preferred_to_its_text() {
        let text = "rpc error: code = Unavailable desc = other";
        let (answers, failures) =
            sort("a", vec![said("b", text, 14), said("c", text, 0), said("d", "", 0)]);
        assert_eq!(answers[0].node, "d");
        let failures: Vec<_> = failures.iter().map(ToString::to_string).collect();
        assert_eq!(failures, ["b: no route to host (Unavailable)", &format!("c: {text}")]);
    }

    #[test]
    fn each_target_is_one_value_of_the_key_nodes() {
        let targets = Targets::new(vec!["10.0.0.2".to_owned(), "fd00::3".to_owned()]).unwrap();
        let mut metadata = MetadataMap::new();
        targets.add_to(&mut metadata);
        let values: Vec<_> = metadata.get_all("nodes").iter().collect();
        assert_eq!(values, ["10.0.0.2", "fd00::3"]);
    }

    #[test]
    fn a_target_that_cannot_be_sent_is_refused() {
        for node in ["", " ", "a\nb", "10.0.0.2:50000"] {
            assert!(matches!(Targets::new(vec![node.to_owned()]), Err(Error::Node { .. })));
        }
    }

    #[test]
    fn a_stream_fails_only_when_every_node_did() {
        let failure = |node: &str| Failure { node: node.to_owned(), why: "gone".to_owned() };
        let mut outcome = Outcome::default();
        outcome.failed(failure("a"));
        outcome.failed(failure("b"));
        outcome.succeeded("b");
        assert!(outcome.judge("follow", 2).is_ok());
        let mut outcome = Outcome::default();
        outcome.failed(failure("a"));
        outcome.failed(failure("b"));
        let error = outcome.judge("follow events", 2).unwrap_err();
        assert_eq!(error.to_string(), "follow events: a: gone; b: gone");
    }
}
