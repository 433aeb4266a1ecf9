//! Pods and containers, asked of the container runtime interface that containerd serves on its socket
//! when its plug-in for it is on.

use std::path::{Path, PathBuf};

use orlop_proto::cri::runtime_service_client::RuntimeServiceClient;
use orlop_proto::cri::{
    Container, ContainerState, ContainerStatusRequest, ListContainerStatsRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxState,
    PodSandboxStatusRequest, StopContainerRequest,
};
use orlop_proto::machine::{ContainerInfo, Stat};
use serde::Deserialize;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::KUBERNETES;

/// Between SIGTERM and SIGKILL.
const STOP_SECONDS: i64 = 10;

type Client = RuntimeServiceClient<Channel>;

/// Pods that are ready, and their containers that have not ended.
pub(super) async fn list(channel: Channel) -> Result<Vec<ContainerInfo>, Status> {
    let mut client = Client::new(channel);
    let mut listed = Vec::new();
    for Found { id, mut info, pod } in find_all(&mut client).await? {
        let asked = if pod {
            let request = PodSandboxStatusRequest { pod_sandbox_id: id, verbose: true };
            client.pod_sandbox_status(request).await.map(|answer| answer.into_inner().info)
        } else {
            let request = ContainerStatusRequest { container_id: id, verbose: true };
            client.container_status(request).await.map(|answer| {
                let answer = answer.into_inner();
                // Here it has its name, where the list may have a digest.
                if let Some(image) = answer.status.and_then(|status| status.image) {
                    info.image = image.image;
                }
                answer.info
            })
        };
        match asked {
            Ok(verbose) => info.pid = pid(verbose.get("info").map_or("", String::as_str)),
            // Gone meanwhile.
            Err(status) if status.code() == Code::NotFound => continue,
            Err(status) => return Err(told(status)),
        }
        listed.push(info);
    }
    orlop_rt::sort_by(&mut listed, |a, b| a.id.cmp(&b.id));
    Ok(listed)
}

/// What the containers use. Pods have no figures of their own.
pub(super) async fn stats(channel: Channel) -> Result<Vec<Stat>, Status> {
    let mut client = Client::new(channel);
    let found = find_all(&mut client).await?;
    let answer = client.list_container_stats(ListContainerStatsRequest {}).await.map_err(told)?;
    let mut stats: Vec<_> = answer
        .into_inner()
        .stats
        .into_iter()
        .filter_map(|stats| {
            let id = stats.attributes?.id;
            let info = &found.iter().find(|found| found.id == id)?.info;
            Some(Stat {
                namespace: KUBERNETES.to_owned(),
                id: info.id.clone(),
                memory_usage: stats.memory?.working_set_bytes?.value,
                cpu_usage: stats.cpu?.usage_core_nano_seconds?.value,
                pod_id: info.pod_id.clone(),
                name: info.name.clone(),
            })
        })
        .collect();
    orlop_rt::sort_by(&mut stats, |a, b| a.id.cmp(&b.id));
    Ok(stats)
}

/// Asks a container to end; the kubelet starts it again.
pub(super) async fn terminate(channel: Channel, id: &str) -> Result<(), Status> {
    let mut client = Client::new(channel);
    let Found { id: container_id, .. } = find(&mut client, id).await?;
    let request = StopContainerRequest { container_id, timeout: STOP_SECONDS };
    client.stop_container(request).await.map_err(told)?;
    Ok(())
}

/// The folder of a container's logs.
pub(super) async fn log_folder(channel: Channel, id: &str) -> Result<PathBuf, Status> {
    let mut client = Client::new(channel);
    let Found { id: container_id, .. } = find(&mut client, id).await?;
    let request = ContainerStatusRequest { container_id, verbose: false };
    let answer = client.container_status(request).await.map_err(told)?.into_inner();
    let path = PathBuf::from(answer.status.unwrap_or_default().log_path);
    let folder = path.parent().filter(|_| path.is_absolute()).map(Path::to_owned);
    folder.ok_or_else(|| Status::unknown(format!("container {id:?} keeps no log")))
}

/// A pod or a container, under the runtime's id.
struct Found {
    id: String,
    info: ContainerInfo,
    pod: bool,
}

async fn find_all(client: &mut Client) -> Result<Vec<Found>, Status> {
    let pods = client.list_pod_sandbox(ListPodSandboxRequest {}).await.map_err(told)?;
    let containers = client.list_containers(ListContainersRequest {}).await.map_err(told)?;
    let pods: Vec<_> = pods.into_inner().items.into_iter().filter(is_ready).collect();
    let mut found = Vec::new();
    for container in containers.into_inner().containers {
        let pod = pods.iter().find(|pod| pod.id == container.pod_sandbox_id);
        found.extend(pod.and_then(|pod| of_container(container, pod)));
    }
    found.extend(pods.into_iter().map(of_pod));
    Ok(found)
}

/// A container of that name (pods are not meant here), or of that id of the runtime's.
async fn find(client: &mut Client, id: &str) -> Result<Found, Status> {
    let all = find_all(client).await?.into_iter().filter(|found| !found.pod);
    let mut matching: Vec<_> = all
        .filter(|found| found.info.id == id || found.info.pod_id == id || found.id == id)
        .collect();
    match matching.len() {
        0 => Err(Status::unknown(format!("container {id:?} not found"))),
        1 => Ok(matching.remove(0)),
        _ => {
            let ids: Vec<_> = matching.iter().map(|found| found.info.id.as_str()).collect();
            Err(Status::unknown(super::containers::several(id, &ids)))
        }
    }
}

fn is_ready(pod: &PodSandbox) -> bool {
    pod.state() == PodSandboxState::SandboxReady
}

fn pod_name(pod: &PodSandbox) -> String {
    let metadata = pod.metadata.clone().unwrap_or_default();
    format!("{}/{}", metadata.namespace, metadata.name)
}

fn of_pod(pod: PodSandbox) -> Found {
    let name = pod_name(&pod);
    let info = ContainerInfo {
        namespace: KUBERNETES.to_owned(),
        id: name.clone(),
        status: pod.state().as_str_name().to_owned(),
        pod_id: name,
        name: pod.metadata.unwrap_or_default().name,
        ..ContainerInfo::default()
    };
    Found { id: pod.id, info, pod: true }
}

/// `None` for one that has ended.
fn of_container(container: Container, pod: &PodSandbox) -> Option<Found> {
    let state = container.state();
    let name = container.metadata.unwrap_or_default().name;
    let pod_id = pod_name(pod);
    let info = ContainerInfo {
        namespace: KUBERNETES.to_owned(),
        id: format!("{pod_id}:{name}"),
        image: container.image.unwrap_or_default().image,
        status: state.as_str_name().to_owned(),
        pod_id,
        name,
        pid: 0,
    };
    let ended = state == ContainerState::ContainerExited;
    (!ended).then_some(Found { id: container.id, info, pod: false })
}

/// The process id in containerd's further information; 0 without one.
fn pid(info: &str) -> u32 {
    #[derive(Default, Deserialize)]
    struct Info {
        #[serde(default)]
        pid: u32,
    }
    serde_json::from_str::<Info>(info).unwrap_or_default().pid
}

fn told(status: Status) -> Status {
    match status.code() {
        Code::Unimplemented => Status::failed_precondition(
            "containerd serves no container runtime interface on this node: its plug-in for it \
             (io.containerd.grpc.v1.cri) is off until there is a kubelet; ask containerd itself, \
             without --use-cri",
        ),
        code => Status::new(code, format!("container runtime interface: {}", status.message())),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use orlop_proto::cri::runtime_service_server::{RuntimeService, RuntimeServiceServer};
    use orlop_proto::cri::{
        ContainerAttributes, ContainerMetadata, ContainerStats, ContainerStatus,
        ContainerStatusResponse, CpuUsage, ImageSpec, ListContainerStatsResponse,
        ListContainersResponse, ListPodSandboxResponse, MemoryUsage, PodSandboxMetadata,
        PodSandboxStatusResponse, StopContainerResponse, UInt64Value,
    };
    use orlop_rt::CancellationToken;
    use tokio::task::JoinSet;
    use tonic::{Request, Response};

    use super::*;

    /// Two pods; of `web` two containers run, a third has ended.
    #[derive(Clone, Debug, Default)]
    struct Fake {
        stopped: Arc<Mutex<Vec<String>>>,
    }

    type Answer<T> = Result<Response<T>, Status>;

    #[tonic::async_trait]
    impl RuntimeService for Fake {
        async fn list_pod_sandbox(
            &self,
            _: Request<ListPodSandboxRequest>,
        ) -> Answer<ListPodSandboxResponse> {
            let pod = |id: &str, name: &str, state: PodSandboxState| PodSandbox {
                id: id.to_owned(),
                metadata: Some(PodSandboxMetadata {
                    name: name.to_owned(),
                    namespace: "default".to_owned(),
                    ..PodSandboxMetadata::default()
                }),
                state: state.into(),
            };
            let (ready, not) = (PodSandboxState::SandboxReady, PodSandboxState::SandboxNotready);
            let items =
                vec![pod("p1", "web", ready), pod("p0", "web", not), pod("p2", "db", ready)];
            Ok(Response::new(ListPodSandboxResponse { items }))
        }

        async fn pod_sandbox_status(
            &self,
            request: Request<PodSandboxStatusRequest>,
        ) -> Answer<PodSandboxStatusResponse> {
            assert!(request.get_ref().verbose);
            let info = HashMap::from([("info".to_owned(), "{\"pid\":790}".to_owned())]);
            Ok(Response::new(PodSandboxStatusResponse { info }))
        }

        async fn list_containers(
            &self,
            _: Request<ListContainersRequest>,
        ) -> Answer<ListContainersResponse> {
            let container = |id: &str, pod: &str, name: &str, state: ContainerState| Container {
                id: id.to_owned(),
                pod_sandbox_id: pod.to_owned(),
                metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
                image: Some(ImageSpec { image: "sha256:0123".to_owned() }),
                state: state.into(),
                ..Container::default()
            };
            let running = ContainerState::ContainerRunning;
            let containers = vec![
                container("c1", "p1", "nginx", running),
                container("c2", "p1", "helper", running),
                container("c3", "p1", "setup", ContainerState::ContainerExited),
                container("c4", "p2", "only", running),
                container("c5", "p2", "vanishes", running),
                container("c6", "p0", "nginx", running),
            ];
            Ok(Response::new(ListContainersResponse { containers }))
        }

        async fn container_status(
            &self,
            request: Request<ContainerStatusRequest>,
        ) -> Answer<ContainerStatusResponse> {
            let id = request.into_inner().container_id;
            if id == "c5" {
                return Err(Status::not_found("gone"));
            }
            let log_path = format!("/var/log/pods/default_x_1/{id}/0.log");
            let image = Some(ImageSpec { image: "registry.example/app:v1".to_owned() });
            let status = Some(ContainerStatus { id, image, log_path });
            let info = HashMap::from([("info".to_owned(), "{\"pid\":812,\"x\":[]}".to_owned())]);
            Ok(Response::new(ContainerStatusResponse { status, info }))
        }

        async fn list_container_stats(
            &self,
            _: Request<ListContainerStatsRequest>,
        ) -> Answer<ListContainerStatsResponse> {
            let stats = |id: &str, bytes: Option<u64>| ContainerStats {
                attributes: Some(ContainerAttributes { id: id.to_owned() }),
                cpu: Some(CpuUsage { usage_core_nano_seconds: Some(UInt64Value { value: 77 }) }),
                memory: bytes
                    .map(|value| MemoryUsage { working_set_bytes: Some(UInt64Value { value }) }),
            };
            // One of nobody's, and one that has none yet.
            let stats = vec![stats("c1", Some(4096)), stats("c9", Some(1)), stats("c2", None)];
            Ok(Response::new(ListContainerStatsResponse { stats }))
        }

        async fn stop_container(
            &self,
            request: Request<StopContainerRequest>,
        ) -> Answer<StopContainerResponse> {
            self.stopped.lock().unwrap().push(request.into_inner().container_id);
            Ok(Response::new(StopContainerResponse {}))
        }
    }

    /// The interface without its plug-in.
    #[derive(Debug)]
    struct Nothing;

    #[tonic::async_trait]
    impl RuntimeService for Nothing {}

    async fn with<S: RuntimeService>(service: S, test: impl AsyncFnOnce(Channel)) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("cri.sock");
        let incoming = orlop_rpc::unix::listen(&socket).unwrap();
        let (shutdown, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let server = RuntimeServiceServer::new(service);
        tasks.spawn(orlop_rpc::serve(server, incoming, shutdown.clone(), Duration::ZERO));
        test(orlop_rpc::unix::channel(&socket)).await;
        shutdown.cancel();
        tasks.join_next().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn pods_and_their_containers_are_listed_with_their_process() {
        with(Fake::default(), async |channel| {
            let all = list(channel).await.unwrap();
            let told: Vec<_> = all
                .iter()
                .map(|one| {
                    format!("{} {} {} {} {}", one.id, one.pod_id, one.image, one.pid, one.status)
                })
                .collect();
            assert_eq!(
                told,
                [
                    "default/db default/db  790 SANDBOX_READY",
                    "default/db:only default/db registry.example/app:v1 812 CONTAINER_RUNNING",
                    "default/web default/web  790 SANDBOX_READY",
                    "default/web:helper default/web registry.example/app:v1 812 CONTAINER_RUNNING",
                    "default/web:nginx default/web registry.example/app:v1 812 CONTAINER_RUNNING",
                ]
            );
            assert!(all.iter().all(|one| one.namespace == "k8s.io"));
        })
        .await;
    }

    #[tokio::test]
    async fn figures_logs_and_restarts_are_of_the_container_that_is_named() {
        let fake = Fake::default();
        let stopped = Arc::clone(&fake.stopped);
        with(fake, async |channel: Channel| {
            let stats = stats(channel.clone()).await.unwrap();
            assert_eq!(stats.len(), 1, "{stats:?}");
            let of = (stats[0].id.as_str(), stats[0].memory_usage, stats[0].cpu_usage);
            assert_eq!(of, ("default/web:nginx", 4096, 77));
            for (id, folder) in [("default/web:nginx", "c1"), ("c2", "c2")] {
                let found = log_folder(channel.clone(), id).await.unwrap();
                assert_eq!(found, Path::new("/var/log/pods/default_x_1").join(folder));
            }
            terminate(channel.clone(), "default/web:helper").await.unwrap();
            let unknown = terminate(channel.clone(), "default/none").await.unwrap_err();
            assert_eq!(unknown.message(), "container \"default/none\" not found");
            let several = log_folder(channel, "default/web").await.unwrap_err();
            assert_eq!(
                several.message(),
                "\"default/web\" has several containers: name one, default/web:nginx or \
                 default/web:helper"
            );
        })
        .await;
        assert_eq!(*stopped.lock().unwrap(), ["c2"]);
    }

    #[tokio::test]
    async fn without_the_plug_in_the_refusal_says_so() {
        with(Nothing, async |channel| {
            let refusal = list(channel).await.unwrap_err();
            assert_eq!(refusal.code(), Code::FailedPrecondition);
            assert!(refusal.message().contains("io.containerd.grpc.v1.cri"), "{refusal}");
        })
        .await;
    }
}
