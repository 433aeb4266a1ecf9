//! `machine.MachineService`: requests in, answers out; each subject's work is in the module of its name.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::stream::{self, Stream};
use orlop_proto::common::Data;
use orlop_proto::machine::machine_service_server::MachineService;
use orlop_proto::machine::{self as proto, LogsRequest};
use orlop_rt::version;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status, Streaming};

use super::services::Operation;
use super::threads::Threads;
use super::{
    Answer, CHUNK, CHUNKS_AHEAD, Items, SYSTEM, Streamed, blocking, boxed, capture, client, copy,
    data, etcd, events, failed, files, generate, go_arch, host, images, kubeconfig, lifecycle,
    memory, netstat, podlogs, read, runtime, services, told,
};
use crate::etcd::client::Downgrade;
use crate::kmsg::{self, Line};
use crate::meta;
use crate::node::Node;
use crate::plan;
use crate::power::End;

/// Entries of folders (without extended attributes) that wait for a slow reader.
const ENTRIES_AHEAD: usize = 64;
/// The processors, in sysfs.
const CPUS: &str = "/sys/devices/system/cpu";

#[derive(Debug)]
pub(super) struct Machine {
    node: Node,
    threads: Threads,
    /// Those of pods' logs, which may be followed for long.
    followers: Threads,
    /// Held while META is changed.
    meta: Arc<Mutex<()>>,
}

impl Machine {
    pub(super) fn new(node: Node) -> Self {
        let (threads, followers) = (Threads::new(), Threads::new());
        Self { node, threads, followers, meta: Arc::default() }
    }

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
        let folder = runtime::log_folder(&namespace, driver, &id).await?;
        let lines = usize::try_from(tail_lines).ok();
        let work = move |outlet: &_| podlogs::send(outlet, &folder, lines, follow);
        Ok(self.boxed(self.followers.stream(CHUNKS_AHEAD, work).await?))
    }

    async fn operate(&self, id: &str, operation: Operation) -> Result<String, Status> {
        services::operate(self.node.supervisor(), id, operation).await
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
        let images = images::list(request.get_ref().namespace()).await?;
        let listed = |image: proto::ImageServiceListResponse| {
            let proto::ImageServiceListResponse { name, digest, size, created_at, .. } = image;
            Ok(proto::ImageListResponse { metadata: None, name, digest, size, created_at })
        };
        Ok(self.boxed(stream::iter(images.into_iter().map(listed))))
    }

    async fn image_pull(
        &self,
        request: Request<proto::ImagePullRequest>,
    ) -> Answer<proto::ImagePullResponse> {
        let request = request.get_ref();
        images::pull(request.namespace(), &request.reference).await?;
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
        let messages = vec![services::list(self.node.supervisor()).await?];
        Ok(Response::new(proto::ServiceListResponse { messages }))
    }

    async fn service_start(
        &self,
        request: Request<proto::ServiceStartRequest>,
    ) -> Answer<proto::ServiceStartResponse> {
        let resp = self.operate(request.get_ref().id.as_str(), Operation::Start).await?;
        let start = proto::ServiceStart { metadata: None, resp };
        Ok(Response::new(proto::ServiceStartResponse { messages: vec![start] }))
    }

    async fn service_stop(
        &self,
        request: Request<proto::ServiceStopRequest>,
    ) -> Answer<proto::ServiceStopResponse> {
        let resp = self.operate(request.get_ref().id.as_str(), Operation::Stop).await?;
        let stop = proto::ServiceStop { metadata: None, resp };
        Ok(Response::new(proto::ServiceStopResponse { messages: vec![stop] }))
    }

    async fn service_restart(
        &self,
        request: Request<proto::ServiceRestartRequest>,
    ) -> Answer<proto::ServiceRestartResponse> {
        let resp = self.operate(request.get_ref().id.as_str(), Operation::Restart).await?;
        let restart = proto::ServiceRestart { metadata: None, resp };
        Ok(Response::new(proto::ServiceRestartResponse { messages: vec![restart] }))
    }

    async fn containers(
        &self,
        request: Request<proto::ContainersRequest>,
    ) -> Answer<proto::ContainersResponse> {
        let request = request.get_ref();
        let containers = runtime::list(&request.namespace, request.driver()).await?;
        let messages = vec![proto::Container { metadata: None, containers }];
        Ok(Response::new(proto::ContainersResponse { messages }))
    }

    async fn stats(&self, request: Request<proto::StatsRequest>) -> Answer<proto::StatsResponse> {
        let request = request.get_ref();
        let stats = runtime::stats(&request.namespace, request.driver()).await?;
        let messages = vec![proto::Stats { metadata: None, stats }];
        Ok(Response::new(proto::StatsResponse { messages }))
    }

    async fn restart(
        &self,
        request: Request<proto::RestartRequest>,
    ) -> Answer<proto::RestartResponse> {
        let request = request.get_ref();
        runtime::terminate(&request.namespace, request.driver(), &request.id).await?;
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

    async fn upgrade(
        &self,
        request: Request<proto::UpgradeRequest>,
    ) -> Answer<proto::UpgradeResponse> {
        let messages = vec![lifecycle::upgrade(&self.node, request.get_ref()).await?];
        Ok(Response::new(proto::UpgradeResponse { messages }))
    }

    async fn rollback(
        &self,
        _: Request<proto::RollbackRequest>,
    ) -> Answer<proto::RollbackResponse> {
        lifecycle::change(&self.node, &plan::ROLLBACK).await?;
        let messages = vec![proto::Rollback { metadata: None }];
        Ok(Response::new(proto::RollbackResponse { messages }))
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
