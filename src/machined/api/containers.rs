//! Containers and their use of the machine, asked of containerd. Pods and their containers are named
//! as their labels say: `<namespace>/<pod>` and `<namespace>/<pod>:<container>`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Image, KillRequest, ListContainersRequest, ListImagesRequest, ListTasksRequest,
};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Request, Status as Refusal};
use containerd_client::types::v1::Status as TaskStatus;
use containerd_client::with_namespace;
use nix::sys::signal::Signal;
use orlop_proto::machine::{ContainerInfo, Stat};
use tonic::Status;

use super::KUBERNETES;

/// Where the kubelet has containers' logs written.
const POD_LOGS: &str = "/var/log/pods";
/// Labels that the kubelet gives containers, and the runtime for it.
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
const KIND: &str = "io.cri-containerd.kind";

/// Containers of `namespace` that have a task, by id.
pub(super) async fn list(channel: Channel, namespace: &str) -> Result<Vec<ContainerInfo>, Refusal> {
    let found = find_all(channel, namespace).await?;
    Ok(found.into_iter().map(|found| found.info).collect())
}

/// A container, under containerd's id.
struct Found {
    id: String,
    info: ContainerInfo,
    labels: HashMap<String, String>,
}

async fn find_all(channel: Channel, namespace: &str) -> Result<Vec<Found>, Refusal> {
    let request = with_namespace!(ListContainersRequest::default(), namespace);
    let containers = ContainersClient::new(channel.clone()).list(request).await?.into_inner();
    let request = with_namespace!(ListTasksRequest::default(), namespace);
    let tasks = TasksClient::new(channel.clone()).list(request).await?.into_inner().tasks;
    // A runtime calls an image by its digest, where people have a name for it.
    let digests = containers.containers.iter().any(|one| one.image.starts_with(DIGEST));
    let images = if digests {
        let request = with_namespace!(ListImagesRequest::default(), namespace);
        ImagesClient::new(channel).list(request).await?.into_inner().images
    } else {
        Vec::new()
    };
    let mut found: Vec<_> = containers
        .containers
        .into_iter()
        .filter_map(|container| {
            let task = tasks.iter().find(|task| task.id == container.id)?;
            let Name { id, pod_id, name } = Name::of(&container.id, &container.labels);
            let info = ContainerInfo {
                namespace: namespace.to_owned(),
                id,
                image: image_name(&container.image, &images).to_owned(),
                pid: task.pid,
                status: word(task.status()).to_owned(),
                pod_id,
                name,
            };
            Some(Found { id: container.id, info, labels: container.labels })
        })
        .collect();
    orlop_rt::sort_by(&mut found, |a, b| a.info.id.cmp(&b.info.id));
    Ok(found)
}

/// What begins the name of an image that is its digest.
const DIGEST: &str = "sha256:";

/// The name people gave the image that the runtime calls by its digest.
fn image_name<'a>(image: &'a str, images: &'a [Image]) -> &'a str {
    if !image.starts_with(DIGEST) {
        return image;
    }
    fn digest(image: &Image) -> &str {
        image.target.as_ref().map_or("", |target| &target.digest)
    }
    let own = images.iter().find(|one| one.name == image).map_or(image, digest);
    let named = |one: &&Image| digest(one) == own && !one.name.starts_with(DIGEST);
    // With a tag, if there is one: `name@digest` is longer.
    let names = images.iter().filter(named).map(|one| one.name.as_str());
    names.min_by_key(|name| name.contains('@')).unwrap_or(image)
}

/// How a container is called.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    id: String,
    pod_id: String,
    name: String,
}

impl Name {
    fn of(id: &str, labels: &HashMap<String, String>) -> Self {
        let label = |key: &str| labels.get(key).filter(|value| !value.is_empty());
        let (Some(namespace), Some(pod)) = (label(POD_NAMESPACE), label(POD_NAME)) else {
            return Self { id: id.to_owned(), pod_id: String::new(), name: id.to_owned() };
        };
        let pod_id = format!("{namespace}/{pod}");
        let sandbox = label(KIND).is_some_and(|kind| kind == "sandbox");
        match label(CONTAINER_NAME) {
            Some(name) if !sandbox => {
                Self { id: format!("{pod_id}:{name}"), pod_id, name: name.clone() }
            }
            _ => Self { id: pod_id.clone(), pod_id, name: pod.clone() },
        }
    }
}

/// The folder of a container's logs, as the kubelet names it; `None` for what is no pod's.
fn log_folder_of(labels: &HashMap<String, String>) -> Option<PathBuf> {
    let part = |key: &str| {
        let value = labels.get(key)?.as_str();
        // A label is a word; were it a path, it would not lead out of the folder.
        let sound = !value.is_empty() && !value.contains('/') && !value.starts_with('.');
        sound.then_some(value)
    };
    let pod = format!("{}_{}_{}", part(POD_NAMESPACE)?, part(POD_NAME)?, part(POD_UID)?);
    Some(Path::new(POD_LOGS).join(pod).join(part(CONTAINER_NAME)?))
}

/// The folder of the logs of container `id`, or of the only container of pod `id`.
pub(super) async fn log_folder(channel: Channel, id: &str) -> Result<PathBuf, Status> {
    let found = find_all(channel, KUBERNETES).await.map_err(super::foreign)?;
    let is_it = |one: &&Found| one.info.id == id || one.id == id || one.info.pod_id == id;
    let candidates: Vec<_> = found
        .iter()
        .filter(is_it)
        .filter_map(|one| Some((one.info.id.as_str(), log_folder_of(&one.labels)?)))
        .collect();
    match candidates.as_slice() {
        [] if found.iter().any(|one| is_it(&one)) => {
            Err(Status::unknown(format!("container {id:?} is no pod's: it keeps no log")))
        }
        [] => Err(Status::unknown(format!("container {id:?} not found"))),
        [(_, folder)] => Ok(folder.clone()),
        several => {
            let ids: Vec<_> = several.iter().map(|(id, _)| *id).collect();
            Err(Status::unknown(self::several(id, &ids)))
        }
    }
}

/// That a pod was named where one of its containers is meant.
pub(super) fn several(id: &str, ids: &[&str]) -> String {
    format!("{id:?} has several containers: name one, {}", ids.join(" or "))
}

/// Memory and processor time of each container of `namespace`; one that ends meanwhile is left out.
pub(super) async fn stats(channel: Channel, namespace: &str) -> Result<Vec<Stat>, Refusal> {
    let containers = list(channel, namespace).await?;
    Ok(containers
        .into_iter()
        .filter_map(|container| {
            let folder = cgroup(container.pid)?;
            let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
            let value = |text: &str, key: &str| -> Option<u64> {
                text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
            };
            let used: u64 = read("memory.current")?.trim().parse().ok()?;
            let inactive = value(&read("memory.stat")?, "inactive_file ").unwrap_or_default();
            let micros = value(&read("cpu.stat")?, "usage_usec ")?;
            Some(Stat {
                namespace: container.namespace,
                id: container.id,
                memory_usage: used.saturating_sub(inactive),
                cpu_usage: micros * 1000,
                pod_id: container.pod_id,
                name: container.name,
            })
        })
        .collect())
}

/// Asks the container's first process to end; its owner starts it again.
pub(super) async fn terminate(channel: Channel, namespace: &str, id: &str) -> Result<(), Refusal> {
    let found = find_all(channel.clone(), namespace).await?;
    let named = |one: &&Found| one.info.id == id || one.id == id;
    let found = found.iter().find(named).ok_or_else(|| Refusal::not_found(id))?;
    let kill = KillRequest {
        container_id: found.id.clone(),
        signal: Signal::SIGTERM as u32,
        ..KillRequest::default()
    };
    TasksClient::new(channel).kill(with_namespace!(kill, namespace)).await?;
    Ok(())
}

fn word(status: TaskStatus) -> &'static str {
    match status {
        TaskStatus::Unknown => "UNKNOWN",
        TaskStatus::Created => "CREATED",
        TaskStatus::Running => "RUNNING",
        TaskStatus::Stopped => "STOPPED",
        TaskStatus::Paused => "PAUSED",
        TaskStatus::Pausing => "PAUSING",
    }
}

/// The cgroup v2 folder a process lives in, `cgroups(7)`.
fn cgroup(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new("/sys/fs/cgroup").join(path))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use containerd_client::services::v1::container::Runtime;
    use containerd_client::services::v1::namespaces_client::NamespacesClient;
    use containerd_client::services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
        DeleteTaskRequest, ListNamespacesRequest, StartRequest, WaitRequest,
    };
    use prost_types::Any;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn labels(all: &[(&str, &str)]) -> HashMap<String, String> {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn of_pod(kind: &str, container: &str) -> HashMap<String, String> {
        labels(&[
            (KIND, kind),
            (POD_NAMESPACE, "default"),
            (POD_NAME, "web"),
            (POD_UID, "1-2-3"),
            (CONTAINER_NAME, container),
        ])
    }

    #[test]
    fn pods_and_their_containers_have_the_names_people_know() {
        let name = |labels| {
            let Name { id, pod_id, name } = Name::of("0123abcd", &labels);
            [id, pod_id, name].join(" ")
        };
        assert_eq!(name(of_pod("container", "nginx")), "default/web:nginx default/web nginx");
        assert_eq!(name(of_pod("sandbox", "")), "default/web default/web web");
        assert_eq!(name(of_pod("sandbox", "POD")), "default/web default/web web");
        assert_eq!(name(labels(&[])), "0123abcd  0123abcd");
    }

    #[test]
    fn logs_are_where_the_kubelet_has_them_and_nowhere_else() {
        let folder = log_folder_of(&of_pod("container", "nginx"));
        assert_eq!(folder.unwrap(), Path::new("/var/log/pods/default_web_1-2-3/nginx"));
        assert_eq!(log_folder_of(&labels(&[])), None);
        for bad in ["../../etc", "..", "", "a/b"] {
            assert_eq!(log_folder_of(&of_pod("container", bad)), None, "{bad}");
        }
    }

    #[test]
    fn an_image_has_its_name_if_anybody_gave_it_one() {
        let image = |name: &str, digest: &str| Image {
            name: name.to_owned(),
            target: Some(containerd_client::types::Descriptor {
                digest: digest.to_owned(),
                ..Default::default()
            }),
            ..Image::default()
        };
        let images = [
            image("sha256:config", "sha256:index"),
            image("registry.example/app@sha256:index", "sha256:index"),
            image("registry.example/app:v1", "sha256:index"),
            image("registry.example/other:v1", "sha256:other"),
        ];
        for (given, name) in [
            ("sha256:config", "registry.example/app:v1"),
            ("sha256:other", "registry.example/other:v1"),
            ("sha256:unknown", "sha256:unknown"),
            ("registry.example/app:v1", "registry.example/app:v1"),
        ] {
            assert_eq!(image_name(given, &images), name);
        }
    }

    /// What runs in the containers: this test's own static binary.
    #[test]
    fn as_a_container() {
        if std::env::var_os("ORLOP_TEST_CONTAINER").is_some() {
            loop {
                std::thread::park();
            }
        }
    }

    #[tokio::test]
    async fn containers_of_pods_are_listed_and_restarted_by_their_names() {
        let Some(daemon) = Daemon::start().await else { return };
        let channel = daemon.channel().await;
        for (id, labels) in [
            ("aaa", of_pod("sandbox", "")),
            ("bbb", of_pod("container", "nginx")),
            ("ccc", labels(&[])),
        ] {
            daemon.create(&channel, id, labels).await;
        }
        let all = list(channel.clone(), KUBERNETES).await.unwrap();
        let told: Vec<_> =
            all.iter().map(|one| format!("{} {:?} {}", one.id, one.pod_id, one.status)).collect();
        assert_eq!(
            told,
            [
                "ccc \"\" RUNNING",
                "default/web \"default/web\" RUNNING",
                "default/web:nginx \"default/web\" RUNNING",
            ]
        );
        assert!(all.iter().all(|one| Path::new(&format!("/proc/{}", one.pid)).exists()));
        assert_eq!(list(channel.clone(), "system").await.unwrap(), []);

        let folder = log_folder(channel.clone(), "default/web").await.unwrap();
        assert_eq!(folder, Path::new("/var/log/pods/default_web_1-2-3/nginx"));
        let none = log_folder(channel.clone(), "ccc").await.unwrap_err();
        assert_eq!(none.message(), "container \"ccc\" is no pod's: it keeps no log");
        let unknown = terminate(channel.clone(), KUBERNETES, "default/none").await.unwrap_err();
        assert_eq!(unknown.code(), containerd_client::tonic::Code::NotFound);

        // The first process of a pid namespace hears no SIGTERM that it has no handler for; the call
        // is what is tested, and the others see to the end.
        terminate(channel.clone(), KUBERNETES, "default/web:nginx").await.unwrap();
        for id in ["aaa", "bbb", "ccc"] {
            daemon.remove(&channel, id).await;
        }
        assert_eq!(list(channel, KUBERNETES).await.unwrap(), []);
    }

    /// A containerd of the test's own; it and its shims end with it.
    pub(in super::super) struct Daemon {
        child: Child,
        folder: tempfile::TempDir,
    }

    impl Daemon {
        /// `None`, with the reason printed, where there can be none.
        pub(in super::super) async fn start() -> Option<Self> {
            let tools =
                ["/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2", "/usr/sbin/runc"];
            let missing = tools.into_iter().find(|tool| !Path::new(tool).exists());
            if let Some(tool) = missing {
                println!("skipped: {tool} is not installed");
                return None;
            }
            if !nix::unistd::geteuid().is_root() {
                println!("skipped: not root");
                return None;
            }
            let folder = tempfile::tempdir().unwrap();
            let config = folder.path().join("config.toml");
            let text = format!(
                "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = \"{0}/containerd.sock\"\n",
                folder.path().display()
            );
            fs::write(&config, text).unwrap();
            // Another version than the one that is installed.
            let program = std::env::var_os("ORLOP_TEST_CONTAINERD")
                .unwrap_or_else(|| "/usr/bin/containerd".into());
            let child = Command::new(program)
                .arg("--config")
                .arg(config)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
                .unwrap();
            Some(Self { child, folder })
        }

        /// Waits until it answers.
        pub(in super::super) async fn channel(&self) -> Channel {
            let socket = self.folder.path().join("containerd.sock");
            let answer = async {
                loop {
                    if let Ok(channel) = containerd_client::connect(&socket).await {
                        let mut client = NamespacesClient::new(channel.clone());
                        if client.list(ListNamespacesRequest::default()).await.is_ok() {
                            return channel;
                        }
                    }
                    // Nothing tells when a socket is there.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(LIMIT, answer).await.unwrap()
        }

        async fn create(&self, channel: &Channel, id: &str, labels: HashMap<String, String>) {
            let root = self.folder.path().join(format!("rootfs-{id}"));
            fs::create_dir_all(&root).unwrap();
            fs::copy(std::env::current_exe().unwrap(), root.join("test")).unwrap();
            fs::create_dir_all(root.join("proc")).unwrap();
            let args =
                ["/test", "--exact", "api::containers::tests::as_a_container", "--test-threads=1"];
            let spec = serde_json::json!({
                "ociVersion": "1.0.2",
                "process": {
                    "user": { "uid": 0, "gid": 0 }, "args": args, "cwd": "/",
                    "env": ["ORLOP_TEST_CONTAINER=1"], "noNewPrivileges": true,
                },
                "root": { "path": root },
                "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
                "linux": {
                    "namespaces": [{ "type": "pid" }, { "type": "mount" }],
                    "cgroupsPath": format!("/{}/{id}", self.cgroup()),
                },
            });
            let container = Container {
                id: id.to_owned(),
                labels,
                runtime: Some(Runtime { name: "io.containerd.runc.v2".to_owned(), options: None }),
                spec: Some(Any {
                    type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
                    value: spec.to_string().into_bytes(),
                }),
                ..Container::default()
            };
            let request = CreateContainerRequest { container: Some(container) };
            let request = with_namespace!(request, KUBERNETES);
            ContainersClient::new(channel.clone()).create(request).await.unwrap();
            let mut tasks = TasksClient::new(channel.clone());
            let container_id = id.to_owned();
            let request = CreateTaskRequest { container_id, ..CreateTaskRequest::default() };
            tasks.create(with_namespace!(request, KUBERNETES)).await.unwrap();
            let container_id = id.to_owned();
            let request = StartRequest { container_id, ..StartRequest::default() };
            tasks.start(with_namespace!(request, KUBERNETES)).await.unwrap();
        }

        async fn remove(&self, channel: &Channel, id: &str) {
            let mut tasks = TasksClient::new(channel.clone());
            let container_id = id.to_owned();
            let kill = KillRequest {
                container_id: container_id.clone(),
                signal: Signal::SIGKILL as u32,
                all: true,
                ..KillRequest::default()
            };
            // It may have heard the other signal.
            let _ = tasks.kill(with_namespace!(kill, KUBERNETES)).await;
            let wait = WaitRequest { container_id: container_id.clone(), ..WaitRequest::default() };
            let ended = tasks.wait(with_namespace!(wait, KUBERNETES));
            tokio::time::timeout(LIMIT, ended).await.unwrap().unwrap();
            let delete = DeleteTaskRequest { container_id };
            tasks.delete(with_namespace!(delete, KUBERNETES)).await.unwrap();
            let delete = DeleteContainerRequest { id: id.to_owned() };
            let mut containers = ContainersClient::new(channel.clone());
            containers.delete(with_namespace!(delete, KUBERNETES)).await.unwrap();
        }

        fn cgroup(&self) -> String {
            format!("orlop-test{}", self.folder.path().file_name().unwrap().display())
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            // The shims that a failed test leaves are found by the folder they were started with.
            let folder = self.folder.path().display().to_string();
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let ours = String::from_utf8_lossy(&line).contains(&folder);
                if ours && pid.cast_unsigned() != self.child.id() {
                    let _ =
                        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
            for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
                let _ = fs::remove_dir(hierarchy.path().join(self.cgroup()));
            }
        }
    }
}
