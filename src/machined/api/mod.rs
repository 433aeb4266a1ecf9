//! The machine API (`machine.MachineService`) on machined's unix socket: proto on one side, the node's
//! own types on the other. What a method needs of `/proc` is in [`host`], of containerd in
//! [`containers`] and [`cri`], of files in [`files`] and [`archive`], on [`threads`] of their own; methods that
//! later issues bring answer `Unimplemented`.

mod archive;
mod capture;
mod client;
mod cluster;
mod containers;
mod cri;
mod etcd;
pub(crate) mod events;
mod files;
mod generate;
pub(crate) mod host;
mod images;
mod kubeconfig;
mod lifecycle;
mod netstat;
mod node;
mod podlogs;
mod storage;
mod threads;
mod walk;

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use containerd_client::tonic::transport::Channel;
use futures_util::stream::{self, Stream, StreamExt as _};
use orlop_proto::cluster::cluster_service_server::ClusterServiceServer;
use orlop_proto::common::{ContainerDriver, ContainerdNamespace, Data, Metadata};
use orlop_proto::machine::machine_service_server::{MachineService, MachineServiceServer};
use orlop_proto::machine::{self as proto, LogsRequest};
use orlop_proto::orlop::v1alpha1::node_service_server::NodeServiceServer;
use orlop_proto::storage::storage_service_server::StorageServiceServer;
use orlop_rt::{CancellationToken, version};
use orlop_supervise::machine::Entry;
use orlop_supervise::{Permissions, Service, State};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use threads::Threads;

use crate::etcd::client::Downgrade;
use crate::kmsg::{self, Line};
use crate::meta;
use crate::node::Node;
use crate::power::End;
use crate::services::CONTAINERD_SOCKET;

/// Where machined's API listens.
pub(crate) const SOCKET: &str = "/system/run/machined/machine.sock";

/// Bytes of a stream that travel in one message; readers do not care.
const CHUNK: usize = 32 << 10;
/// Chunks that wait for a slow reader, and entries of folders (without extended attributes).
const CHUNKS_AHEAD: usize = 4;
const ENTRIES_AHEAD: usize = 64;
/// The processors, in sysfs.
const CPUS: &str = "/sys/devices/system/cpu";
const SYSTEM: &str = "system";
const KUBERNETES: &str = "k8s.io";

type Answer<T> = Result<Response<T>, Status>;
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Streamed<T> = Answer<Items<T>>;

/// Bytes of a request: those of the largest configuration, and a little. PID 1's memory is nobody's to
/// fill.
const REQUEST_LIMIT: usize = (4 << 20) + (64 << 10);
/// Those who follow a log or the events get this long to see the end coming.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until `shutdown`; calls under way may finish.
pub(crate) async fn serve(node: Node, shutdown: CancellationToken) -> io::Result<()> {
    let incoming = orlop_rpc::unix::listen(SOCKET)?;
    let (threads, followers) = (Threads::new(), Threads::new());
    let machine = Machine { node: node.clone(), threads, followers, meta: Arc::default() };
    let machine = MachineServiceServer::new(machine)
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_LIMIT);
    let cluster = ClusterServiceServer::new(cluster::Cluster::new(node.clone()))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_LIMIT);
    let told = NodeServiceServer::new(node::Told { node })
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_LIMIT);
    let storage = StorageServiceServer::new(storage::Storage)
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_LIMIT);
    let routes = Routes::new(machine).add_service(cluster).add_service(told).add_service(storage);
    orlop_rpc::serve(routes, incoming, shutdown, GRACE).await;
    Ok(())
}

#[derive(Debug)]
struct Machine {
    node: Node,
    threads: Threads,
    /// Those of pods' logs, which may be followed for long.
    followers: Threads,
    /// Held while META is changed.
    meta: Arc<Mutex<()>>,
}

/// What can be asked for a service.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Start,
    Stop,
    Restart,
}

impl Operation {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Stop => "stopped",
            Self::Restart => "restarted",
        }
    }

    fn allowed(self, permissions: Permissions) -> bool {
        match self {
            Self::Start => permissions.start,
            Self::Stop => permissions.stop,
            Self::Restart => permissions.restart,
        }
    }

    /// Whether a service in `state` is where this would bring it.
    fn done_in(self, state: State) -> bool {
        let down =
            matches!(state, State::Initialized | State::Finished | State::Failed | State::Skipped);
        match self {
            Self::Start => !down && state != State::Stopping,
            Self::Stop => down,
            Self::Restart => false,
        }
    }
}

impl Machine {
    /// A stream of this node.
    fn boxed<T>(
        &self,
        items: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Response<Items<T>> {
        boxed(&self.node, items)
    }

    /// One change at a time; a client that goes does not leave half of one.
    async fn change_meta(&self, key: u8, value: Option<Vec<u8>>) -> Result<(), Status> {
        let turn = Arc::clone(&self.meta).lock_owned().await;
        let change = move || {
            let result = meta::change(key, value);
            drop(turn);
            result
        };
        let changed = spawn_blocking(change).await.map_err(|error| failed("change META", error))?;
        changed.map_err(|error| lifecycle::meta_status(&error))
    }

    /// The log of a pod's container.
    async fn pod_logs(&self, request: LogsRequest) -> Streamed<Data> {
        let driver = request.driver();
        let LogsRequest { namespace, id, follow, tail_lines, .. } = request;
        let folder = match (self::namespace(&namespace, driver)?, driver) {
            (_, ContainerDriver::Cri) => cri::log_folder(runtime(), &id).await?,
            (KUBERNETES, ContainerDriver::Containerd) => {
                containers::log_folder(containerd().await?, &id).await?
            }
            (other, ContainerDriver::Containerd) => {
                let text = format!("logs of containers in namespace {other:?} are not kept");
                return Err(Status::unknown(text));
            }
        };
        let lines = usize::try_from(tail_lines).ok();
        let work = move |outlet: &_| podlogs::send(outlet, &folder, lines, follow);
        Ok(self.boxed(self.followers.stream(CHUNKS_AHEAD, work).await?))
    }

    /// What is so already succeeds without a permission; restarting what is down starts it.
    async fn operate(&self, id: &str, operation: Operation) -> Result<String, Status> {
        let supervisor = self.node.supervisor();
        let service = supervisor.status(id).await.map_err(unsupervised)?;
        if !operation.done_in(service.status.state) {
            let verb = operation.verb();
            if !operation.allowed(service.permissions) {
                return Err(Status::unknown(format!(
                    "service \"{id}\" doesn't support {verb} operation via API"
                )));
            }
            match operation {
                Operation::Start => supervisor.start(id).await,
                Operation::Stop => supervisor.stop(id).await,
                Operation::Restart => supervisor.restart(id).await,
            }
            .map_err(unsupervised)?;
        }
        Ok(format!("Service \"{id}\" {}", operation.done()))
    }
}

#[tonic::async_trait]
impl MachineService for Machine {
    async fn version(&self, _: Request<()>) -> Answer<proto::VersionResponse> {
        let version = proto::VersionInfo {
            tag: version::TAG.to_owned(),
            sha: version::SHA.to_owned(),
            built: version::BUILT.to_owned(),
            go_version: version::COMPILER.to_owned(),
            os: "linux".to_owned(),
            arch: go_arch().to_owned(),
        };
        let platform = proto::PlatformInfo {
            name: self.node.platform().to_owned(),
            mode: if self.node.platform() == "metal" { "metal" } else { "cloud" }.to_owned(),
        };
        let version =
            proto::Version { metadata: None, version: Some(version), platform: Some(platform) };
        Ok(Response::new(proto::VersionResponse { messages: vec![version] }))
    }

    async fn hostname(&self, _: Request<()>) -> Answer<proto::HostnameResponse> {
        let name =
            nix::unistd::gethostname().map_err(|error| failed("read the host name", error))?;
        let hostname =
            proto::Hostname { metadata: None, hostname: name.to_string_lossy().into_owned() };
        Ok(Response::new(proto::HostnameResponse { messages: vec![hostname] }))
    }

    async fn memory(&self, _: Request<()>) -> Answer<proto::MemoryResponse> {
        Ok(Response::new(memory()?))
    }

    async fn load_avg(&self, _: Request<()>) -> Answer<proto::LoadAvgResponse> {
        let messages = vec![host::load(&read("/proc/loadavg")?)];
        Ok(Response::new(proto::LoadAvgResponse { messages }))
    }

    async fn cpu_info(&self, _: Request<()>) -> Answer<proto::CpuInfoResponse> {
        let messages = vec![host::cpus(&read("/proc/cpuinfo")?)];
        Ok(Response::new(proto::CpuInfoResponse { messages }))
    }

    async fn system_stat(&self, _: Request<()>) -> Answer<proto::SystemStatResponse> {
        let messages = vec![host::system(&read("/proc/stat")?)];
        Ok(Response::new(proto::SystemStatResponse { messages }))
    }

    async fn network_device_stats(
        &self,
        _: Request<()>,
    ) -> Answer<proto::NetworkDeviceStatsResponse> {
        let messages = vec![host::network_devices(&read("/proc/net/dev")?)];
        Ok(Response::new(proto::NetworkDeviceStatsResponse { messages }))
    }

    async fn disk_stats(&self, _: Request<()>) -> Answer<proto::DiskStatsResponse> {
        let messages = vec![host::disks(&read("/proc/diskstats")?)];
        Ok(Response::new(proto::DiskStatsResponse { messages }))
    }

    async fn mounts(&self, _: Request<()>) -> Answer<proto::MountsResponse> {
        let text = read("/proc/mounts")?;
        // statfs can wait for a device.
        let stats = blocking("read the mounts", move || Ok(host::mounts(&text))).await?;
        let mounts = proto::Mounts { metadata: None, stats };
        Ok(Response::new(proto::MountsResponse { messages: vec![mounts] }))
    }

    async fn processes(&self, _: Request<()>) -> Answer<proto::ProcessesResponse> {
        let processes = blocking("read the processes", host::processes).await?;
        let process = proto::Process { metadata: None, processes };
        Ok(Response::new(proto::ProcessesResponse { messages: vec![process] }))
    }

    async fn dmesg(&self, request: Request<proto::DmesgRequest>) -> Streamed<Data> {
        let proto::DmesgRequest { follow, tail } = request.into_inner();
        let reader =
            kmsg::Reader::open(follow, tail).map_err(|error| failed("open /dev/kmsg", error))?;
        Ok(self.boxed(stream::unfold(reader, async |mut reader| {
            let item = match reader.next().await {
                Ok(None) => return None,
                Ok(Some(Line::Record(line))) => Ok(data(line.into_bytes())),
                Ok(Some(Line::Unreadable(record))) => Ok(told(format!("not a record: {record:?}"))),
                Err(error) => Err(failed("read /dev/kmsg", error)),
            };
            Some((item, reader))
        })))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Streamed<Data> {
        let request = request.into_inner();
        if request.namespace != SYSTEM && request.id != "kubelet" {
            return self.pod_logs(request).await;
        }
        let LogsRequest { id, follow, tail_lines, .. } = request;
        let log = self
            .node
            .supervisor()
            .logs()
            .get(&id)
            .ok_or_else(|| Status::unknown(format!("log {id:?} was not registered")))?;
        let reader = log.read(usize::try_from(tail_lines).ok());
        Ok(self.boxed(stream::unfold(reader, move |mut reader| async move {
            let bytes = if follow { reader.next(CHUNK).await? } else { reader.available(CHUNK) };
            (!bytes.is_empty()).then(|| (Ok(data(bytes)), reader))
        })))
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Streamed<proto::FileInfo> {
        let request = request.into_inner();
        let ahead = if request.report_xattrs { CHUNKS_AHEAD } else { ENTRIES_AHEAD };
        let entries = self.threads.stream(ahead, move |outlet| files::list(outlet, &request));
        Ok(self.boxed(entries.await?))
    }

    async fn disk_usage(
        &self,
        request: Request<proto::DiskUsageRequest>,
    ) -> Streamed<proto::DiskUsageInfo> {
        let request = request.into_inner();
        let sums = self.threads.stream(ENTRIES_AHEAD, move |outlet| files::usage(outlet, &request));
        Ok(self.boxed(sums.await?))
    }

    async fn read(&self, request: Request<proto::ReadRequest>) -> Streamed<Data> {
        let request = request.into_inner();
        let bytes = self.threads.stream(CHUNKS_AHEAD, move |outlet| files::read(outlet, &request));
        Ok(self.boxed(bytes.await?))
    }

    async fn copy(&self, request: Request<proto::CopyRequest>) -> Streamed<Data> {
        Ok(self.boxed(copy(&self.threads, request.into_inner()).await?))
    }

    async fn logs_containers(&self, _: Request<()>) -> Answer<proto::LogsContainersResponse> {
        let ids = self.node.supervisor().logs().ids();
        let messages = vec![proto::LogsContainer { metadata: None, ids }];
        Ok(Response::new(proto::LogsContainersResponse { messages }))
    }

    async fn cpu_freq_stats(&self, _: Request<()>) -> Answer<proto::CpuFreqStatsResponse> {
        let stats = blocking("read the frequencies", || host::frequencies(Path::new(CPUS)));
        let messages = vec![proto::CpUsFreqStats { metadata: None, cpu_freq_stats: stats.await? }];
        Ok(Response::new(proto::CpuFreqStatsResponse { messages }))
    }

    async fn netstat(
        &self,
        request: Request<proto::NetstatRequest>,
    ) -> Answer<proto::NetstatResponse> {
        let request = request.into_inner();
        let connectrecord =
            blocking("list the sockets", move || netstat::sockets(&request)).await?;
        let netstat = proto::Netstat { metadata: None, connectrecord };
        Ok(Response::new(proto::NetstatResponse { messages: vec![netstat] }))
    }

    async fn packet_capture(
        &self,
        request: Request<proto::PacketCaptureRequest>,
    ) -> Streamed<Data> {
        let pcap = capture::Pcap::open(request.get_ref())?;
        Ok(self.boxed(stream::try_unfold(pcap, async |mut pcap| {
            let bytes = pcap.next().await.map_err(|error| failed("capture", error))?;
            Ok(Some((data(bytes), pcap)))
        })))
    }

    async fn image_list(
        &self,
        request: Request<proto::ImageListRequest>,
    ) -> Streamed<proto::ImageListResponse> {
        let namespace = images_of(request.get_ref().namespace())?;
        let images = images::list(containerd().await?, namespace).await.map_err(foreign)?;
        Ok(self.boxed(stream::iter(images.into_iter().map(Ok))))
    }

    async fn image_pull(
        &self,
        request: Request<proto::ImagePullRequest>,
    ) -> Answer<proto::ImagePullResponse> {
        let namespace = images_of(request.get_ref().namespace())?;
        images::pull(containerd().await?, namespace, &request.get_ref().reference).await?;
        let messages = vec![proto::ImagePull { metadata: None }];
        Ok(Response::new(proto::ImagePullResponse { messages }))
    }

    async fn generate_client_configuration(
        &self,
        request: Request<proto::GenerateClientConfigurationRequest>,
    ) -> Answer<proto::GenerateClientConfigurationResponse> {
        let config =
            self.node.config().map_err(|error| Status::failed_precondition(error.to_string()))?;
        let (ca, cluster) = (config.machine.ca.as_ref(), config.cluster.cluster_name.as_deref());
        let client = client::generate(ca, cluster, request.into_inner(), SystemTime::now())?;
        let messages = vec![client];
        Ok(Response::new(proto::GenerateClientConfigurationResponse { messages }))
    }

    async fn events(&self, request: Request<proto::EventsRequest>) -> Streamed<proto::Event> {
        Ok(self.boxed(events::follow(self.node.events(), request.get_ref())?))
    }

    async fn service_list(&self, _: Request<()>) -> Answer<proto::ServiceListResponse> {
        let services = self.node.supervisor().list().await.map_err(unsupervised)?;
        let services = services.into_iter().map(service_info).collect();
        let list = proto::ServiceList { metadata: None, services };
        Ok(Response::new(proto::ServiceListResponse { messages: vec![list] }))
    }

    async fn service_start(
        &self,
        request: Request<proto::ServiceStartRequest>,
    ) -> Answer<proto::ServiceStartResponse> {
        let resp = self.operate(&request.into_inner().id, Operation::Start).await?;
        let start = proto::ServiceStart { metadata: None, resp };
        Ok(Response::new(proto::ServiceStartResponse { messages: vec![start] }))
    }

    async fn service_stop(
        &self,
        request: Request<proto::ServiceStopRequest>,
    ) -> Answer<proto::ServiceStopResponse> {
        let resp = self.operate(&request.into_inner().id, Operation::Stop).await?;
        let stop = proto::ServiceStop { metadata: None, resp };
        Ok(Response::new(proto::ServiceStopResponse { messages: vec![stop] }))
    }

    async fn service_restart(
        &self,
        request: Request<proto::ServiceRestartRequest>,
    ) -> Answer<proto::ServiceRestartResponse> {
        let resp = self.operate(&request.into_inner().id, Operation::Restart).await?;
        let restart = proto::ServiceRestart { metadata: None, resp };
        Ok(Response::new(proto::ServiceRestartResponse { messages: vec![restart] }))
    }

    async fn containers(
        &self,
        request: Request<proto::ContainersRequest>,
    ) -> Answer<proto::ContainersResponse> {
        let request = request.into_inner();
        let namespace = namespace(&request.namespace, request.driver())?;
        let containers = match request.driver() {
            ContainerDriver::Cri => cri::list(runtime()).await?,
            ContainerDriver::Containerd => {
                containers::list(containerd().await?, namespace).await.map_err(foreign)?
            }
        };
        let container = proto::Container { metadata: None, containers };
        Ok(Response::new(proto::ContainersResponse { messages: vec![container] }))
    }

    async fn stats(&self, request: Request<proto::StatsRequest>) -> Answer<proto::StatsResponse> {
        let request = request.into_inner();
        let namespace = namespace(&request.namespace, request.driver())?;
        let stats = match request.driver() {
            ContainerDriver::Cri => cri::stats(runtime()).await?,
            ContainerDriver::Containerd => {
                containers::stats(containerd().await?, namespace).await.map_err(foreign)?
            }
        };
        Ok(Response::new(proto::StatsResponse {
            messages: vec![proto::Stats { metadata: None, stats }],
        }))
    }

    async fn restart(
        &self,
        request: Request<proto::RestartRequest>,
    ) -> Answer<proto::RestartResponse> {
        let request = request.into_inner();
        let namespace = namespace(&request.namespace, request.driver())?;
        let id = &request.id;
        match request.driver() {
            ContainerDriver::Cri => cri::terminate(runtime(), id).await?,
            ContainerDriver::Containerd => {
                let told = |refusal: containerd_client::tonic::Status| match refusal.code() {
                    tonic::Code::NotFound => Status::unknown(format!("container {id:?} not found")),
                    _ => foreign(refusal),
                };
                containers::terminate(containerd().await?, namespace, id).await.map_err(told)?;
            }
        }
        let messages = vec![proto::Restart { metadata: None }];
        Ok(Response::new(proto::RestartResponse { messages }))
    }

    async fn apply_configuration(
        &self,
        request: Request<proto::ApplyConfigurationRequest>,
    ) -> Answer<proto::ApplyConfigurationResponse> {
        let applied = lifecycle::apply(&self.node, request.into_inner()).await?;
        Ok(Response::new(proto::ApplyConfigurationResponse { messages: vec![applied] }))
    }

    async fn kubeconfig(&self, _: Request<()>) -> Streamed<Data> {
        let config = self.node.config().map_err(|error| failed("kubeconfig", error))?;
        let archive = kubeconfig::kubeconfig(&config, SystemTime::now())?;
        Ok(self.boxed(stream::iter([Ok(data(archive))])))
    }

    async fn generate_configuration(
        &self,
        request: Request<proto::GenerateConfigurationRequest>,
    ) -> Answer<proto::GenerateConfigurationResponse> {
        let existing = self.node.config().ok();
        generate::generate(request.into_inner(), existing.as_deref()).map(Response::new)
    }

    async fn bootstrap(
        &self,
        request: Request<proto::BootstrapRequest>,
    ) -> Answer<proto::BootstrapResponse> {
        etcd::bootstrap(&self.node, request.get_ref()).await?;
        let messages = vec![proto::Bootstrap { metadata: None }];
        Ok(Response::new(proto::BootstrapResponse { messages }))
    }

    async fn recover(&self, _: Request<proto::RecoverRequest>) -> Answer<proto::RecoverResponse> {
        Err(etcd::recover(&self.node))
    }

    async fn etcd_member_list(
        &self,
        request: Request<proto::EtcdMemberListRequest>,
    ) -> Answer<proto::EtcdMemberListResponse> {
        let client = etcd::client(&self.node)?;
        let messages = vec![etcd::members(&client, request.get_ref().query_local).await?];
        Ok(Response::new(proto::EtcdMemberListResponse { messages }))
    }

    async fn etcd_remove_member(
        &self,
        request: Request<proto::EtcdRemoveMemberRequest>,
    ) -> Answer<proto::EtcdRemoveMemberResponse> {
        etcd::remove(&etcd::client(&self.node)?, &request.get_ref().member).await?;
        let messages = vec![proto::EtcdRemoveMember { metadata: None }];
        Ok(Response::new(proto::EtcdRemoveMemberResponse { messages }))
    }

    async fn etcd_remove_member_by_id(
        &self,
        request: Request<proto::EtcdRemoveMemberByIdRequest>,
    ) -> Answer<proto::EtcdRemoveMemberByIdResponse> {
        etcd::client(&self.node)?.remove(request.get_ref().member_id).await?;
        let messages = vec![proto::EtcdRemoveMemberById { metadata: None }];
        Ok(Response::new(proto::EtcdRemoveMemberByIdResponse { messages }))
    }

    async fn etcd_leave_cluster(
        &self,
        _: Request<proto::EtcdLeaveClusterRequest>,
    ) -> Answer<proto::EtcdLeaveClusterResponse> {
        let client = etcd::client(&self.node)?;
        crate::etcd::host::leave(&self.node, &client).await?;
        let messages = vec![proto::EtcdLeaveCluster { metadata: None }];
        Ok(Response::new(proto::EtcdLeaveClusterResponse { messages }))
    }

    async fn etcd_forfeit_leadership(
        &self,
        _: Request<proto::EtcdForfeitLeadershipRequest>,
    ) -> Answer<proto::EtcdForfeitLeadershipResponse> {
        let member = etcd::client(&self.node)?.forfeit().await?.unwrap_or_default();
        let messages = vec![proto::EtcdForfeitLeadership { metadata: None, member }];
        Ok(Response::new(proto::EtcdForfeitLeadershipResponse { messages }))
    }

    async fn etcd_recover(
        &self,
        request: Request<Streaming<Data>>,
    ) -> Answer<proto::EtcdRecoverResponse> {
        etcd::keep_snapshot(&self.node, request.into_inner()).await?;
        let messages = vec![proto::EtcdRecover { metadata: None }];
        Ok(Response::new(proto::EtcdRecoverResponse { messages }))
    }

    async fn etcd_snapshot(&self, _: Request<proto::EtcdSnapshotRequest>) -> Streamed<Data> {
        Ok(self.boxed(etcd::snapshot(&etcd::client(&self.node)?).await?))
    }

    async fn etcd_alarm_list(&self, _: Request<()>) -> Answer<proto::EtcdAlarmListResponse> {
        let member_alarms = etcd::alarms(etcd::client(&self.node)?.alarms().await?);
        let messages = vec![proto::EtcdAlarm { metadata: None, member_alarms }];
        Ok(Response::new(proto::EtcdAlarmListResponse { messages }))
    }

    async fn etcd_alarm_disarm(&self, _: Request<()>) -> Answer<proto::EtcdAlarmDisarmResponse> {
        let member_alarms = etcd::alarms(etcd::client(&self.node)?.disarm().await?);
        let messages = vec![proto::EtcdAlarmDisarm { metadata: None, member_alarms }];
        Ok(Response::new(proto::EtcdAlarmDisarmResponse { messages }))
    }

    async fn etcd_defragment(&self, _: Request<()>) -> Answer<proto::EtcdDefragmentResponse> {
        etcd::client(&self.node)?.defragment().await?;
        let messages = vec![proto::EtcdDefragment { metadata: None }];
        Ok(Response::new(proto::EtcdDefragmentResponse { messages }))
    }

    async fn etcd_status(&self, _: Request<()>) -> Answer<proto::EtcdStatusResponse> {
        let messages = vec![etcd::status(&etcd::client(&self.node)?).await?];
        Ok(Response::new(proto::EtcdStatusResponse { messages }))
    }

    async fn etcd_downgrade_validate(
        &self,
        request: Request<proto::EtcdDowngradeValidateRequest>,
    ) -> Answer<proto::EtcdDowngradeValidateResponse> {
        let client = etcd::client(&self.node)?;
        let at = client.downgrade(Downgrade::Validate, request.into_inner().version).await?;
        let cluster_downgrade = etcd::downgrade(at);
        let messages = vec![proto::EtcdDowngradeValidate { metadata: None, cluster_downgrade }];
        Ok(Response::new(proto::EtcdDowngradeValidateResponse { messages }))
    }

    async fn etcd_downgrade_enable(
        &self,
        request: Request<proto::EtcdDowngradeEnableRequest>,
    ) -> Answer<proto::EtcdDowngradeEnableResponse> {
        let client = etcd::client(&self.node)?;
        let at = client.downgrade(Downgrade::Enable, request.into_inner().version).await?;
        let cluster_downgrade = etcd::downgrade(at);
        let messages = vec![proto::EtcdDowngradeEnable { metadata: None, cluster_downgrade }];
        Ok(Response::new(proto::EtcdDowngradeEnableResponse { messages }))
    }

    async fn etcd_downgrade_cancel(
        &self,
        _: Request<()>,
    ) -> Answer<proto::EtcdDowngradeCancelResponse> {
        let client = etcd::client(&self.node)?;
        let at = client.downgrade(Downgrade::Cancel, String::new()).await?;
        let cluster_downgrade = etcd::downgrade(at);
        let messages = vec![proto::EtcdDowngradeCancel { metadata: None, cluster_downgrade }];
        Ok(Response::new(proto::EtcdDowngradeCancelResponse { messages }))
    }

    async fn upgrade(&self, _: Request<proto::UpgradeRequest>) -> Answer<proto::UpgradeResponse> {
        Err(lifecycle::not_installed("upgrade"))
    }

    async fn rollback(
        &self,
        _: Request<proto::RollbackRequest>,
    ) -> Answer<proto::RollbackResponse> {
        Err(lifecycle::not_installed("roll back"))
    }

    async fn reset(&self, request: Request<proto::ResetRequest>) -> Answer<proto::ResetResponse> {
        lifecycle::reset(&self.node, &request.into_inner()).await?;
        Ok(Response::new(proto::ResetResponse { messages: vec![proto::Reset { metadata: None }] }))
    }

    async fn meta_write(
        &self,
        request: Request<proto::MetaWriteRequest>,
    ) -> Answer<proto::MetaWriteResponse> {
        let proto::MetaWriteRequest { key, value } = request.into_inner();
        self.change_meta(lifecycle::meta_key(key)?, Some(value)).await?;
        let messages = vec![proto::MetaWrite { metadata: None }];
        Ok(Response::new(proto::MetaWriteResponse { messages }))
    }

    async fn meta_delete(
        &self,
        request: Request<proto::MetaDeleteRequest>,
    ) -> Answer<proto::MetaDeleteResponse> {
        self.change_meta(lifecycle::meta_key(request.into_inner().key)?, None).await?;
        let messages = vec![proto::MetaDelete { metadata: None }];
        Ok(Response::new(proto::MetaDeleteResponse { messages }))
    }

    async fn reboot(&self, _: Request<()>) -> Answer<proto::RebootResponse> {
        self.node.request_end(End::Reboot);
        Ok(Response::new(proto::RebootResponse {
            messages: vec![proto::Reboot { metadata: None }],
        }))
    }

    async fn shutdown(&self, _: Request<()>) -> Answer<proto::ShutdownResponse> {
        self.node.request_end(self.node.shutdown_end());
        Ok(Response::new(proto::ShutdownResponse {
            messages: vec![proto::Shutdown { metadata: None }],
        }))
    }
}

/// A stream that ends with its items, or with the node: who follows must not hold up a shutdown.
fn boxed<T>(
    node: &Node,
    items: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Response<Items<T>> {
    let end = node.shutdown().clone().cancelled_owned();
    Response::new(Box::pin(items.take_until(end)))
}

/// The archive of what `request` names.
pub(crate) async fn copy(
    threads: &Threads,
    request: proto::CopyRequest,
) -> Result<impl Stream<Item = Result<Data, Status>> + Send + 'static, Status> {
    threads.stream(CHUNKS_AHEAD, move |outlet| archive::copy(outlet, &request)).await
}

pub(crate) fn memory() -> Result<proto::MemoryResponse, Status> {
    let meminfo = host::memory(&read("/proc/meminfo")?);
    let memory = proto::Memory { metadata: None, meminfo: Some(meminfo) };
    Ok(proto::MemoryResponse { messages: vec![memory] })
}

/// A file of `/proc`; names in it can be of any bytes.
fn read(path: &'static str) -> Result<String, Status> {
    let bytes = fs::read(path).map_err(|error| failed(&format!("read {path}"), error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    spawn_blocking(work)
        .await
        .map_err(|error| failed(what, error))?
        .map_err(|error| failed(what, error))
}

async fn containerd() -> Result<Channel, Status> {
    containerd_client::connect(CONTAINERD_SOCKET)
        .await
        .map_err(|error| Status::unavailable(format!("containerd does not answer: {error}")))
}

/// The container runtime interface, on the same socket.
fn runtime() -> tonic::transport::Channel {
    orlop_rpc::unix::channel(CONTAINERD_SOCKET)
}

/// containerd's answers carry another crate's `Status` of the same shape.
fn foreign(status: containerd_client::tonic::Status) -> Status {
    Status::new(status.code(), format!("containerd: {}", status.message()))
}

/// The namespace of containerd whose images are meant.
fn images_of(namespace: ContainerdNamespace) -> Result<&'static str, Status> {
    match namespace {
        ContainerdNamespace::NsSystem => Ok(SYSTEM),
        ContainerdNamespace::NsCri => Ok(KUBERNETES),
        ContainerdNamespace::NsUnknown => {
            Err(Status::invalid_argument("whose images: NS_SYSTEM or NS_CRI?"))
        }
    }
}

fn namespace(name: &str, driver: ContainerDriver) -> Result<&str, Status> {
    match (name, driver) {
        (KUBERNETES, _) => Ok(KUBERNETES),
        (_, ContainerDriver::Cri) => {
            Err(Status::unknown("CRI inspector is supported only for K8s namespace"))
        }
        ("", ContainerDriver::Containerd) => Ok(SYSTEM),
        // It travels as a header.
        (name, _) if name.bytes().any(|byte| !byte.is_ascii_graphic()) => {
            Err(Status::invalid_argument(format!("{name:?} is no namespace of containerd")))
        }
        (name, ContainerDriver::Containerd) => Ok(name),
    }
}

fn data(bytes: Vec<u8>) -> Data {
    Data { metadata: None, bytes }
}

/// A message of a stream that goes on, about what could not be sent in it.
fn told(error: String) -> Data {
    let metadata = Metadata { hostname: String::new(), error, status: None };
    Data { metadata: Some(metadata), bytes: Vec::new() }
}

fn failed(what: &str, error: impl std::fmt::Display) -> Status {
    Status::unknown(format!("{what}: {error}"))
}

fn unsupervised(error: orlop_supervise::Error) -> Status {
    use orlop_supervise::Error;
    let text = error.to_string();
    match error {
        Error::NotDefined(_) => Status::unknown(text),
        Error::Terminating | Error::Ended => Status::unavailable(text),
        Error::Late(_) => Status::deadline_exceeded(text),
    }
}

fn service_info(service: Service) -> proto::ServiceInfo {
    let status = service.status;
    let events = status.history.into_iter().map(|Entry { state, message, at }| {
        proto::ServiceEvent { msg: message, state: state.to_string(), ts: Some(at.into()) }
    });
    proto::ServiceInfo {
        id: status.id.to_string(),
        state: status.state.to_string(),
        events: Some(proto::ServiceEvents { events: events.collect() }),
        health: Some(proto::ServiceHealth {
            unknown: status.health.healthy.is_none(),
            healthy: status.health.healthy.unwrap_or_default(),
            last_message: status.health.message,
            last_change: Some(status.health.changed.into()),
        }),
    }
}

/// The architecture's name as clients of this API know it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
