//! Containers and their use of the machine, asked of containerd.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{KillRequest, ListContainersRequest, ListTasksRequest};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Request, Status as Refusal};
use containerd_client::types::v1::Status as TaskStatus;
use containerd_client::with_namespace;
use nix::sys::signal::Signal;
use orlop_proto::machine::{ContainerInfo, Stat};

/// Containers of `namespace` that have a task, by id.
pub(super) async fn list(channel: Channel, namespace: &str) -> Result<Vec<ContainerInfo>, Refusal> {
    let request = with_namespace!(ListContainersRequest::default(), namespace);
    let containers = ContainersClient::new(channel.clone()).list(request).await?.into_inner();
    let request = with_namespace!(ListTasksRequest::default(), namespace);
    let tasks = TasksClient::new(channel).list(request).await?.into_inner().tasks;
    let mut listed: Vec<_> = containers
        .containers
        .into_iter()
        .filter_map(|container| {
            let task = tasks.iter().find(|task| task.id == container.id)?;
            Some(ContainerInfo {
                namespace: namespace.to_owned(),
                pod_id: String::new(),
                name: container.id.clone(),
                id: container.id,
                image: container.image,
                pid: task.pid,
                status: word(task.status()).to_owned(),
            })
        })
        .collect();
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(listed)
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
    let kill = KillRequest {
        container_id: id.to_owned(),
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
