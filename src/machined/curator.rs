//! The curator of a node that came by node parameters: the daemon that deals with its cluster, and what follows from
//! what it tells: services by role, lines on the console, the end of a node that was decommissioned.

use std::path::Path;
use std::time::Duration;

use orlop_proto::metropolis::proto::common::{ClusterState, NodeRoles};
use orlop_proto::orlop::inside::Standing;
use orlop_proto::orlop::inside::cluster_news_client::ClusterNewsClient;
use orlop_rt::{Backoff, Chain};
use orlop_supervise::container::{Bind, Containerd};
use orlop_supervise::seccomp::{Group, Profile};
use orlop_supervise::{Definition, Dependency, Permissions, Runner, health};
use tracing::{debug, info, warn};

use crate::error::Error;
use crate::identity::random;
use crate::node::Node;
use crate::power::End;
use crate::services::{self, folder, own_folder, patient, socket_folder};
use crate::{api, apiserver};

/// Its id, and the role it runs.
pub(crate) const ID: &str = "curator";
/// Its user (`/etc/passwd` of the image).
pub(crate) const UID: u32 = 63;
/// Where it tells what becomes of the node.
const SOCKET: &str = "/system/run/curator/curator.sock";
/// What it is given.
pub(crate) const PARAMETERS: &str = "/system/etc/curator/parameters.pb";
/// What the next boot needs: it stands for the EFI system partition.
const STATE: &str = "/system/state/metropolis";
/// In [`STATE`]: this machine is a node of a cluster, or is becoming one.
const KEPT: [&str; 3] = ["sealed_configuration.pb", "enrollment.pb", "removed"];
/// PID 1's own: what services by role are configured by.
pub(crate) const MACHINE: &str = "/system/state/machine.yaml";
/// Certificates, roles, and the state of a cluster that began here.
const DATA: &str = "/var/lib/orlop/curator";
/// Five thousand nodes take half of it (`make bench`).
const MEMORY: i64 = 256 << 20;
/// Every node and every watch is a connection.
const OPEN_FILES: u64 = 65_536;
/// Roles with the certificates of etcd's peers.
const MAX_NEWS: usize = 256 << 10;
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// Leaving the office takes a moment.
const GRACE: Duration = Duration::from_secs(10);

/// Whether this machine has something of a cluster already.
pub(crate) fn is_enrolled() -> bool {
    KEPT.iter().any(|name| Path::new(STATE).join(name).exists())
}

/// The service.
pub(crate) fn definition(containerd: &Containerd) -> Result<Definition, Error> {
    own_folder(Path::new(STATE), UID)?;
    own_folder(Path::new(DATA), UID)?;
    socket_folder(Path::new(SOCKET), UID, 0)?;
    let mut args = vec!["node"];
    if Path::new(PARAMETERS).exists() {
        args.extend(["--parameters", PARAMETERS]);
    }
    let mut spec = services::daemon(ID, UID, &args);
    // The group of those who may ask machined.
    spec.user = (UID, services::ROUTERD_UID);
    spec.host.network = true;
    // It lists the node's addresses.
    spec.seccomp = Some(Profile::new([Group::Unix, Group::Inet, Group::Netlink]));
    spec.memory_limit_bytes = Some(MEMORY);
    spec.open_files = Some(OPEN_FILES);
    if Path::new(PARAMETERS).exists() {
        spec.binds.push(Bind::read_only(PARAMETERS, PARAMETERS));
    }
    let machined = folder(api::SOCKET);
    spec.binds.extend([
        Bind::read_write(STATE, STATE),
        Bind::read_write(DATA, DATA),
        Bind::read_write(folder(SOCKET), folder(SOCKET)),
        Bind::read_only(machined.clone(), machined),
    ]);
    Ok(Definition {
        dependencies: vec![Dependency::to_prepare("containerd"), Dependency::to_start("networkd")],
        health: Some(patient(health::unix(SOCKET))),
        grace: GRACE,
        permissions: Permissions { start: true, stop: false, restart: true },
        ..Definition::new(ID, Runner::Container(Box::new(spec), containerd.clone()))
    })
}

/// Goes by what it tells, until the node goes down.
pub(crate) async fn follow(node: Node) {
    let mut client = ClusterNewsClient::new(orlop_rpc::unix::channel(SOCKET))
        .max_decoding_message_size(MAX_NEWS);
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut last = Standing::default();
    let shutdown = node.shutdown().clone();
    let following = async {
        loop {
            match client.follow(()).await {
                Ok(news) => {
                    let mut news = news.into_inner();
                    while let Ok(Some(standing)) = news.message().await {
                        backoff.reset();
                        lines(&last, &standing).iter().for_each(|line| info!("{line}"));
                        go_by(&node, last.roles.as_ref(), &standing).await;
                        last = standing;
                    }
                }
                Err(error) => debug!(%error, "the curator tells nothing"),
            }
            tokio::time::sleep(backoff.next(random())).await;
        }
    };
    // Cancel-safe: what was begun is the supervisor's.
    shutdown.run_until_cancelled(following).await;
}

/// What somebody in front of the console must know of the news.
fn lines(last: &Standing, now: &Standing) -> Vec<String> {
    let mut lines = Vec::new();
    let id = &now.node_id;
    let unknown = !now.key.is_empty() && last.key != now.key;
    let waits = now.state() == ClusterState::Foreign && last.state() != ClusterState::Foreign;
    if unknown || waits {
        lines.push(format!("node {id}, its key is {}", grouped(&now.key)));
    }
    if waits {
        lines
            .push("compare the key with what the cluster shows, then approve the node:".to_owned());
        lines.push(format!("  orlopctl cluster node approve {id}"));
    }
    if now.state() != last.state() {
        lines.push(match now.state() {
            ClusterState::Invalid | ClusterState::Unknown => "not in a cluster yet".to_owned(),
            ClusterState::Foreign => "the cluster has noted this node".to_owned(),
            ClusterState::Trusted => "the cluster takes this node in".to_owned(),
            ClusterState::Home => "this node is one of its cluster".to_owned(),
            ClusterState::Disowning => "this node is none of its cluster any more".to_owned(),
            ClusterState::Split => "this node has lost its cluster".to_owned(),
        });
    }
    if !now.word.is_empty() && now.word != last.word {
        lines.push(now.word.clone());
    }
    lines
}

/// As it is easiest to compare aloud.
fn grouped(key: &str) -> String {
    let groups: Vec<_> = key.as_bytes().chunks(4).map(String::from_utf8_lossy).collect();
    groups.join(" ")
}

/// Starts and stops what the roles ask for.
async fn go_by(node: &Node, last: Option<&NodeRoles>, now: &Standing) {
    let serves = |roles: Option<&NodeRoles>| {
        roles.is_some_and(|roles| roles.kubernetes_controller.is_some())
    };
    let (was, is) = (serves(last), serves(now.roles.as_ref()));
    let result = match (was, is) {
        (false, true) => start_apiserver(node).await,
        (true, false) => {
            info!("this node is no Kubernetes controller any more");
            node.supervisor().stop(apiserver::ID).await.map_err(Error::Services)
        }
        _ => Ok(()),
    };
    if let Err(error) = result {
        warn!(error = %Chain(&error), "services do not follow the node's roles");
    }
    let works =
        |roles: Option<&NodeRoles>| roles.is_some_and(|roles| roles.kubernetes_worker.is_some());
    if !works(last) && works(now.roles.as_ref()) {
        info!("this node is a Kubernetes worker; a kubelet is not in this image");
    }
    if now.power_off {
        warn!("the cluster has decommissioned this node: switching it off");
        node.request_end(End::PowerOff);
    }
}

async fn start_apiserver(node: &Node) -> Result<(), Error> {
    info!("this node is a Kubernetes controller");
    let supervisor = node.supervisor();
    if supervisor.status(apiserver::ID).await.is_err() {
        let definition = apiserver::definition(node, &services::kubernetes())?;
        supervisor.load(definition).await.map_err(Error::Services)?;
        node.spawn(apiserver::keep_secrets(node.clone()));
    }
    supervisor.start(apiserver::ID).await.map_err(Error::Services)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_says_who_waits_and_what_to_type_once() {
        let key = "0123456789abcdef".repeat(4);
        let foreign = Standing {
            state: ClusterState::Foreign.into(),
            node_id: "metropolis-0123".to_owned(),
            key,
            word: "waits until somebody approves it".to_owned(),
            ..Standing::default()
        };
        let told = lines(&Standing::default(), &foreign);
        assert!(
            told[0].contains("node metropolis-0123") && told[0].contains(" 0123 4567 89ab cdef")
        );
        assert_eq!(told[2], "  orlopctl cluster node approve metropolis-0123");
        assert_eq!(told.last().map(String::as_str), Some("waits until somebody approves it"));
        assert!(lines(&foreign, &foreign).is_empty());
        let home =
            Standing { state: ClusterState::Home.into(), word: String::new(), ..foreign.clone() };
        assert_eq!(lines(&foreign, &home), ["this node is one of its cluster"]);
    }
}
