//! `containers` and `stats`: what containerd runs, and what that costs.

use orlop_proto::common::ContainerDriver;
use orlop_proto::machine::{Container, ContainersRequest, Stats, StatsRequest};

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::table::{Cell, Column, Output, Table};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    namespace: Namespace,
    #[command(flatten)]
    output: Output,
}

/// Which containers are meant.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Namespace {
    /// Kubernetes' containers (namespace k8s.io) instead of the system's
    #[arg(short, long)]
    kubernetes: bool,
    /// Ask the container runtime interface instead of containerd
    #[arg(short = 'c', long = "use-cri")]
    cri: bool,
}

impl Namespace {
    pub(crate) fn name(self) -> String {
        if self.kubernetes { "k8s.io" } else { "system" }.to_owned()
    }

    pub(crate) fn driver(self) -> i32 {
        let driver = if self.cri { ContainerDriver::Cri } else { ContainerDriver::Containerd };
        driver.into()
    }
}

pub(crate) async fn list(client: &Client, options: &Options) -> Result<(), Error> {
    let call = async |node| {
        let Options { namespace, .. } = options;
        let request = ContainersRequest { namespace: namespace.name(), driver: namespace.driver() };
        machine(node).containers(request).await
    };
    let answers = client.ask("list containers", call).await?;
    containers(&answers).print(options.output)
}

pub(crate) async fn stats(client: &Client, options: &Options) -> Result<(), Error> {
    let call = async |node| {
        let Options { namespace, .. } = options;
        let request = StatsRequest { namespace: namespace.name(), driver: namespace.driver() };
        machine(node).stats(request).await
    };
    let answers = client.ask("read container statistics", call).await?;
    usage(answers).print(options.output)
}

const CONTAINERS: &[Column] = &[
    ("NODE", "node"),
    ("NAMESPACE", "namespace"),
    ("ID", "id"),
    ("IMAGE", "image"),
    ("PID", "pid"),
    ("STATUS", "status"),
];

pub(crate) fn containers(answers: &[Answer<Container>]) -> Table {
    let mut table = Table::new(CONTAINERS);
    for Answer { node, message } in answers {
        let mut containers: Vec<_> = message.containers.iter().collect();
        orlop_rt::sort_by(&mut containers, |a, b| {
            (&a.namespace, &a.id).cmp(&(&b.namespace, &b.id))
        });
        for container in containers {
            table.push([
                Cell::text(node),
                Cell::text(&container.namespace),
                id(&container.id, &container.pod_id),
                Cell::text(&container.image),
                Cell::number(container.pid),
                Cell::text(&container.status),
            ]);
        }
    }
    table
}

const STATS: &[Column] = &[
    ("NODE", "node"),
    ("NAMESPACE", "namespace"),
    ("ID", "id"),
    ("MEMORY(MB)", "memory_bytes"),
    ("CPU", "cpu_nanoseconds"),
];

fn usage(answers: Vec<Answer<Stats>>) -> Table {
    let mut table = Table::new(STATS);
    for Answer { node, message } in answers {
        let mut stats = message.stats;
        orlop_rt::sort_by(&mut stats, |a, b| (&a.namespace, &a.id).cmp(&(&b.namespace, &b.id)));
        for stat in stats {
            let hundredths = (u128::from(stat.memory_usage) + 5_000) / 10_000;
            let memory = format!("{}.{:02}", hundredths / 100, hundredths % 100);
            table.push([
                Cell::text(&node),
                Cell::text(&stat.namespace),
                id(&stat.id, &stat.pod_id),
                Cell::shown(memory, stat.memory_usage),
                Cell::number(stat.cpu_usage),
            ]);
        }
    }
    table
}

/// A member of a pod stands below the pod, whose own entry has its id twice.
fn id(id: &str, pod: &str) -> Cell {
    if pod.is_empty() || pod == id {
        return Cell::text(id);
    }
    Cell::shown(format!("└─ {}", crate::table::escape(id)), id)
}

#[cfg(test)]
mod tests {
    use orlop_proto::machine::{ContainerInfo, Stat};

    use super::*;
    use crate::golden;
    use crate::table::Format;

    #[test]
    fn members_of_a_pod_stand_below_it() {
        let container = |namespace: &str, id: &str, pod: &str, pid| ContainerInfo {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            image: "registry.example/app:v1".to_owned(),
            pid,
            status: "RUNNING".to_owned(),
            pod_id: pod.to_owned(),
            name: id.to_owned(),
        };
        let containers_of = vec![
            container("k8s.io", "default/web:nginx", "default/web", 812),
            container("k8s.io", "default/web", "default/web", 790),
            container("system", "apid", "apid", 300),
        ];
        let message = Container { metadata: None, containers: containers_of };
        let text =
            containers(&[Answer { node: "10.0.0.2".to_owned(), message }]).render(Format::Table);
        golden::check("containers.txt", &text);
    }

    #[test]
    fn statistics_are_in_mb_and_nanoseconds() {
        let stat = |id: &str, memory_usage| Stat {
            namespace: "system".to_owned(),
            id: id.to_owned(),
            memory_usage,
            cpu_usage: 12_345_678,
            pod_id: id.to_owned(),
            name: id.to_owned(),
        };
        let message = Stats {
            metadata: None,
            stats: vec![stat("routerd", 4_096_000), stat("apid", 12_345_678)],
        };
        let text =
            usage(vec![Answer { node: "10.0.0.2".to_owned(), message }]).render(Format::Table);
        golden::check("stats.txt", &text);
    }
}
