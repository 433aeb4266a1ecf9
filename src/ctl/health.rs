//! `health`: waits until nodes are as they should be, and says for what it waits.
//!
//! The checks are made from here, over the API: a node that cannot judge itself is judged all the same.
//! What is lacking is decided by pure functions of the nodes' answers. With `--server` a node makes them,
//! and asks Kubernetes as well.

use std::time::Duration;

use orlop_proto::cluster::{ClusterInfo, HealthCheckRequest};
use orlop_proto::machine::ServiceList;
use orlop_proto::orlop::v1alpha1::Timeline;
use orlop_rt::Chain;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Answer, Client, cluster, machine, told};
use crate::error::{Error, Failure};
use crate::services;
use crate::table::escape;
use crate::units::parse_duration;

/// Flags that name nodes by what they are; all are meant.
#[derive(Debug, clap::Args)]
pub(crate) struct ByKind {
    /// The node that bootstraps the cluster
    #[arg(long, value_name = "NODE")]
    init_node: Option<String>,
    /// Control plane nodes
    #[arg(long, value_delimiter = ',', value_name = "NODE")]
    control_plane_nodes: Vec<String>,
    /// Worker nodes
    #[arg(long, value_delimiter = ',', value_name = "NODE")]
    worker_nodes: Vec<String>,
}

impl ByKind {
    /// As a node that checks the cluster is told.
    fn info(&self, endpoint: Option<&String>) -> ClusterInfo {
        let Self { init_node, control_plane_nodes, worker_nodes } = self;
        ClusterInfo {
            control_plane_nodes: init_node.iter().chain(control_plane_nodes).cloned().collect(),
            worker_nodes: worker_nodes.clone(),
            force_endpoint: endpoint.cloned().unwrap_or_default(),
        }
    }

    /// A client of the nodes named here; of those `client` means when none are.
    pub(crate) fn choose(&self, client: &Client) -> Result<Client, Error> {
        let Self { init_node, control_plane_nodes, worker_nodes } = self;
        let all = init_node.iter().chain(control_plane_nodes).chain(worker_nodes);
        let nodes: Vec<_> = all.cloned().collect();
        if nodes.is_empty() { Ok(client.clone()) } else { client.of(nodes) }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    nodes: ByKind,
    /// For how long to wait
    #[arg(long, value_parser = parse_duration, default_value = "20m", value_name = "DURATION")]
    wait_timeout: Duration,
    /// Let a node check the cluster, and ask Kubernetes; else the nodes are checked from here
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    server: bool,
    /// With --server: where Kubernetes' API is, if not where the configuration says
    #[arg(long, value_name = "URL")]
    k8s_endpoint: Option<String>,
    /// Run Kubernetes' end-to-end tests afterwards (refused: nodes cannot yet)
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    run_e2e: bool,
}

/// The node gives up first, and says why.
const SPARE: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What must hold, in the order in which it comes true.
#[derive(Clone, Copy, Debug)]
enum Check {
    Apid,
    Services,
    Boot,
}

impl Check {
    const ALL: [Self; 3] = [Self::Apid, Self::Services, Self::Boot];

    fn what(self) -> &'static str {
        match self {
            Self::Apid => "apid to be ready",
            Self::Services => "all services to be healthy",
            Self::Boot => "all nodes to finish boot sequence",
        }
    }

    /// What is lacking, by node.
    ///
    /// # Errors
    /// When no endpoint can be asked.
    async fn lacking(self, client: &Client) -> Result<Vec<String>, Error> {
        let (lacking, failures) = match self {
            Self::Apid => {
                let call = async |node| machine(node).version(()).await;
                let (_, failures) = client.gather("read the version", call).await?;
                (Vec::new(), failures)
            }
            Self::Services => {
                let call = async |node| machine(node).service_list(()).await;
                let (answers, failures) = client.gather("list services", call).await?;
                (unhealthy(&answers), failures)
            }
            Self::Boot => {
                let call = async |node| told(node).timeline(()).await;
                let (answers, failures) = client.gather("read the timeline", call).await?;
                (booting(&answers), failures)
            }
        };
        let failed = |failure: &Failure| escape(&failure.to_string());
        Ok(lacking.into_iter().chain(failures.iter().map(failed)).collect())
    }
}

/// Waits for one check after the other.
pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    if options.run_e2e {
        let why = "end-to-end tests need a Kubernetes whose images this cluster does not have";
        return Err(Error::Impossible { flag: "--run-e2e", why });
    }
    if options.server {
        return ask(client, options).await;
    }
    if options.k8s_endpoint.is_some() {
        let why = "Kubernetes is asked by a node only: add --server";
        return Err(Error::Impossible { flag: "--k8s-endpoint", why });
    }
    let client = options.nodes.choose(client)?.silent();
    let deadline = Instant::now() + options.wait_timeout;
    for check in Check::ALL {
        let what = check.what();
        let mut said = "...".to_owned();
        say!("waiting for {what}: {said}");
        loop {
            let why = match check.lacking(&client).await {
                Ok(lacking) if lacking.is_empty() => break,
                Ok(lacking) => lacking.join("; "),
                Err(error) if error.lasts() => return Err(error),
                Err(error) => Chain(&error).to_string(),
            };
            if Instant::now() >= deadline {
                return Err(Error::Unhealthy { what, after: options.wait_timeout, why });
            }
            if why != said {
                say!("waiting for {what}: {why}");
                said = why;
            }
            sleep(LOOK_EVERY).await;
        }
        say!("waiting for {what}: OK");
    }
    Ok(())
}

/// Lets a node check the cluster; what it says goes to stderr, as our own checks do.
async fn ask(client: &Client, options: &Options) -> Result<(), Error> {
    client.one_node("health --server")?;
    let request = HealthCheckRequest {
        wait_timeout: options.wait_timeout.try_into().ok(),
        cluster_info: Some(options.nodes.info(options.k8s_endpoint.as_ref())),
    };
    let call = async |node| cluster(node).health_check(request.clone()).await;
    let mut failure = None;
    let said = client.stream("check the cluster", call, async |answer| {
        match answer {
            Ok(Answer { message, .. }) => say!("{}", escape(&message.message)),
            Err(failed) => failure = Some(failed.why),
        }
        Ok(())
    });
    let why = match timeout(options.wait_timeout + SPARE, said).await {
        Err(_) => "the node says no more".to_owned(),
        Ok(Err(Error::Ended { why, .. })) => why,
        Ok(Err(error)) => return Err(error),
        Ok(Ok(())) => match failure {
            None => return Ok(()),
            Some(why) => why,
        },
    };
    Err(Error::Unwell { why })
}

/// The services that are not up, with their nodes. Nobody asks for the health of some.
fn unhealthy(answers: &[Answer<ServiceList>]) -> Vec<String> {
    let mut lacking = Vec::new();
    for Answer { node, message } in answers {
        for service in &message.services {
            if let Err(why) = services::up(service, false) {
                lacking.push(format!("{node}: {}: {}", escape(&service.id), escape(&why)));
            }
        }
    }
    lacking
}

/// The nodes that have not come to the end of their boot.
fn booting(answers: &[Answer<Timeline>]) -> Vec<String> {
    let booting = answers.iter().filter(|answer| answer.message.ready_ns == 0);
    booting.map(|answer| format!("{}: boots", answer.node)).collect()
}

#[cfg(test)]
mod tests {
    use orlop_proto::machine::{ServiceHealth, ServiceInfo};

    use super::*;

    #[test]
    fn what_is_lacking_is_told_by_node_and_service() {
        let service = |id: &str, state: &str, healthy| ServiceInfo {
            id: id.to_owned(),
            state: state.to_owned(),
            health: Some(ServiceHealth {
                healthy,
                last_message: "no\nroute".to_owned(),
                ..ServiceHealth::default()
            }),
            events: None,
        };
        let services = vec![
            service("apid", "Running", true),
            service("etcd", "Skipped", false),
            service("networkd", "Running", false),
        ];
        let answer =
            Answer { node: "a".to_owned(), message: ServiceList { metadata: None, services } };
        assert_eq!(unhealthy(&[answer]), ["a: networkd: Running (no\\nroute)"]);
        let timeline = |node: &str, ready_ns| Answer {
            node: node.to_owned(),
            message: Timeline { ready_ns, ..Timeline::default() },
        };
        assert_eq!(booting(&[timeline("a", 0), timeline("b", 1)]), ["a: boots"]);
    }
}
