//! The life of a node of a cluster (spec §3.6): heartbeats, its status, its roles, who the curators are; the curator
//! itself where the node has that role; NodeManagement.
//!
//! All of it goes on without the leader: what was known last is kept, and tried again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use clap::Parser as _;
use futures_util::stream;
use nix::ifaddrs::getifaddrs;
use orlop_pki::cluster::{self, node_id};
use orlop_proto::metropolis::node::core::curator::proto::api::curator_client::CuratorClient;
use orlop_proto::metropolis::node::core::curator::proto::api::{
    HeartbeatRequest, UpdateNodeStatusRequest, WatchRequest, watch_request,
};
use orlop_proto::metropolis::proto::common::{NodeRoles, NodeState, NodeStatus, node_status};
use orlop_proto::orlop::inside::Standing;
use orlop_proto::version::spec::{Version, version};
use orlop_rpc::leader::{Place, Resolver, Terms};
use orlop_rt::{Backoff, CancellationToken};
use orlop_store::Location;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::driver::{OWN, on_disk, random};
use super::folders::{Credentials, Folders};
use super::machine::Dismissal;
use super::{Error, Options, management};
use crate::{Curator, server};

/// How often the node says that it lives.
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// A leader that answers no heartbeat for so long is looked for anew.
const SILENCE: Duration = Duration::from_secs(10);
/// Between tries, up to the second: two lost heartbeats make a node unhealthy.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// How often the node looks whether it is reached elsewhere now.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A call.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A node of a cluster.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) options: Options,
    pub(super) folders: Folders,
    pub(super) credentials: Credentials,
    /// Who may know the leader.
    pub(super) seeds: Vec<Place>,
    /// The cluster's state, if it is this node's own.
    pub(super) store: Option<Location>,
    /// What machined is told.
    pub(super) standing: watch::Sender<Standing>,
}

impl Home {
    /// Lives until the cluster dismisses the node, or until `shutdown`: none. `check` asks whether it has, where it says
    /// only that it does not know the node's certificate.
    pub(super) async fn live(
        self,
        shutdown: &CancellationToken,
        check: impl AsyncFn() -> Result<Option<Dismissal>, Error>,
    ) -> Result<Option<Dismissal>, Error> {
        let id = node_id(&self.credentials.key.public());
        let Credentials { ca, certificate, key } = &self.credentials;
        let tls = cluster::client_config(ca, Some((certificate, key)), None)?;
        let overrides = BTreeMap::from([(id.clone(), self.options.own_curator())]);
        let seeds = self.seeds.clone();
        let resolver = Resolver::start(Terms { seeds, overrides, tls, learn: true });
        let kept = on_disk(&self.folders, Folders::roles).await?.unwrap_or_default();
        let (roles, wanted) = watch::channel(kept.clone());
        self.standing.send_modify(|standing| standing.roles = Some(kept));
        let (port, ports) = watch::channel(None);

        let end = shutdown.child_token();
        let config = server::tls_config(certificate, key)?;
        let managing = management::serve(&self.options, ca, config, end.clone());
        let curating = self.curate(wanted, port, &end);
        let asking = async {
            tokio::select! {
                how = self.follow(&id, &resolver, &roles, &check) => how.map(Some),
                never = beat(&resolver) => match never {},
                never = self.report(&id, &resolver, ports) => match never {},
                never = self.learn(&resolver) => never.map(|never| match never {}),
                () = end.cancelled() => Ok(None),
            }
        };
        // Whichever ends first takes the others with it.
        let (managed, curated, asked) =
            tokio::join!(ending(&end, managing), ending(&end, curating), ending(&end, asking),);
        managed.and(curated).and(asked)
    }

    /// Serves the cluster API while the node has that role.
    async fn curate(
        &self,
        mut roles: watch::Receiver<NodeRoles>,
        port: watch::Sender<Option<u16>>,
        end: &CancellationToken,
    ) -> Result<(), Error> {
        let is_member = |roles: &NodeRoles| roles.consensus_member.is_some();
        loop {
            let wanted = end.run_until_cancelled(roles.wait_for(is_member)).await;
            // The sender lives as long as this.
            if wanted.is_none_or(|wanted| wanted.is_err()) {
                return Ok(());
            }
            let stop = end.child_token();
            let unwanted = async {
                let _stop = stop.clone().drop_guard();
                let other = roles.wait_for(|roles| !is_member(roles));
                stop.run_until_cancelled(other).await;
            };
            let Some(store) = &self.store else {
                warn!("this node is to be a consensus member, and has no store of the cluster");
                unwanted.await;
                continue;
            };
            let curator = Curator::open(self.curator_options(store)).await?;
            port.send_replace(Some(curator.address().port()));
            info!(address = %curator.address(), "this node serves the cluster API");
            let serving = async {
                let _stop = stop.clone().drop_guard();
                curator.serve(stop.clone()).await
            };
            let (served, ()) = tokio::join!(serving, unwanted);
            port.send_replace(None);
            served?;
        }
    }

    fn curator_options(&self, store: &Location) -> crate::Options {
        let data = self.folders.data.join(OWN);
        let mut arguments = vec!["curator".into(), "--data-dir".into(), data.into_os_string()];
        if let Location::Embedded(path) = store {
            let mut url = std::ffi::OsString::from("embedded://");
            url.push(path);
            arguments.extend(["--store".into(), url]);
        }
        let listen = self.options.curator_listen.to_string();
        arguments.extend(["--listen".into(), listen.into()]);
        if let Some(address) = self.options.external_address {
            arguments.extend(["--external-address".into(), address.to_string().into()]);
        }
        crate::Options::parse_from(arguments)
    }

    /// Goes by what the cluster says of this node.
    async fn follow(
        &self,
        id: &str,
        resolver: &Resolver,
        roles: &watch::Sender<NodeRoles>,
        check: &impl AsyncFn() -> Result<Option<Dismissal>, Error>,
    ) -> Result<Dismissal, Error> {
        let kind = watch_request::NodeInCluster { node_id: id.to_owned() };
        let request = WatchRequest { kind: Some(watch_request::Kind::NodeInCluster(kind)) };
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let mut client = CuratorClient::new(resolver.channel().await);
            let status = match client.watch(request.clone()).await {
                Ok(events) => {
                    let mut events = events.into_inner();
                    loop {
                        match events.message().await {
                            Ok(Some(event)) => {
                                backoff.reset();
                                if event.node_tombstones.iter().any(|gone| gone.node_id == id) {
                                    return Ok(Dismissal::Deleted);
                                }
                                for node in event.nodes.into_iter().filter(|node| node.id == id) {
                                    if node.state() == NodeState::Decommissioned {
                                        return Ok(Dismissal::Decommissioned);
                                    }
                                    self.assume(node.roles.unwrap_or_default(), roles).await?;
                                }
                            }
                            Ok(None) => break Status::unavailable("it ended"),
                            Err(status) => break status,
                        }
                    }
                }
                Err(status) => status,
            };
            debug!(%status, "no news of this node");
            // A certificate that was good: the node was deleted, or its entry revoked.
            if status.code() == Code::Unauthenticated
                && let Some(how) = check().await?
            {
                return Ok(how);
            }
            sleep(backoff.next(random())).await;
        }
    }

    /// Keeps these roles and goes by them.
    async fn assume(
        &self,
        roles: NodeRoles,
        current: &watch::Sender<NodeRoles>,
    ) -> Result<(), Error> {
        if *current.borrow() == roles {
            return Ok(());
        }
        let kept = roles.clone();
        on_disk(&self.folders, move |it| it.keep_roles(&kept)).await?;
        info!(
            consensus_member = roles.consensus_member.is_some(),
            kubernetes_controller = roles.kubernetes_controller.is_some(),
            kubernetes_worker = roles.kubernetes_worker.is_some(),
            "roles changed"
        );
        self.standing.send_modify(|standing| standing.roles = Some(roles.clone()));
        current.send_replace(roles);
        Ok(())
    }

    /// Tells the cluster where the node is and what runs on it, whenever that is new.
    async fn report(
        &self,
        id: &str,
        resolver: &Resolver,
        mut ports: watch::Receiver<Option<u16>>,
    ) -> Infallible {
        let mut told = None;
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures: u32 = 0;
        loop {
            // Both are looked at below; the sender lives as long as this.
            tokio::select! {
                _ = look.tick() => {}
                Ok(()) = ports.changed() => {}
            }
            let Some(external_address) = self.address(id, resolver) else { continue };
            let port = *ports.borrow_and_update();
            let status = NodeStatus {
                external_address: external_address.to_string(),
                timestamp: None,
                running_curator: port.map(|port| node_status::RunningCurator { port: port.into() }),
                version: Some(own_version()),
                boot_id: boot_id(),
            };
            if told.as_ref() == Some(&status) {
                continue;
            }
            let request =
                UpdateNodeStatusRequest { node_id: id.to_owned(), status: Some(status.clone()) };
            let telling = async {
                CuratorClient::new(resolver.channel().await).update_node_status(request).await
            };
            match timeout(CALL_LIMIT, telling).await {
                Ok(Ok(_)) => {
                    failures = 0;
                    told = Some(status);
                }
                Ok(Err(error)) => {
                    failures += 1;
                    if failures.is_power_of_two() {
                        warn!(%error, failures, "the cluster does not take this node's status");
                    }
                }
                Err(_) => debug!("nobody leads: no status"),
            }
        }
    }

    /// Where others reach this node.
    fn address(&self, id: &str, resolver: &Resolver) -> Option<IpAddr> {
        if let Some(address) = self.options.external_address {
            return Some(address);
        }
        let leader = resolver.found().borrow().leader.clone();
        let elsewhere = leader.filter(|leader| leader.node_id != id);
        let towards = elsewhere.and_then(|leader| towards(leader.place.host.parse().ok()?).ok());
        towards.or_else(|| first_address().ok().flatten())
    }

    /// Keeps who the curators are, for the next boot.
    async fn learn(&self, resolver: &Resolver) -> Result<Infallible, Error> {
        let mut curators = resolver.curators();
        loop {
            let known: Vec<(String, IpAddr)> = curators
                .borrow_and_update()
                .iter()
                .filter_map(|(id, place)| Some((id.clone(), place.host.parse().ok()?)))
                .collect();
            // None are known yet, or none are left: who was known is better than nobody.
            if !known.is_empty() {
                on_disk(&self.folders, move |it| it.keep_directory(&known)).await?;
            }
            if curators.changed().await.is_err() {
                // The resolver lives as long as this.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Runs it, and ends all others with it.
async fn ending<T>(end: &CancellationToken, work: impl Future<Output = T>) -> T {
    let _end = end.clone().drop_guard();
    work.await
}

/// Says that the node lives.
async fn beat(resolver: &Resolver) -> Infallible {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let mut client = CuratorClient::new(resolver.channel().await);
        let beats = stream::unfold(interval(BEAT_EVERY), |mut ticks| async {
            ticks.tick().await;
            Some((HeartbeatRequest {}, ticks))
        });
        let status = match timeout(SILENCE, client.heartbeat(beats)).await {
            Err(_) => Status::deadline_exceeded("no answer"),
            Ok(Err(status)) => status,
            Ok(Ok(answers)) => {
                let mut answers = answers.into_inner();
                loop {
                    match timeout(SILENCE, answers.message()).await {
                        Ok(Ok(Some(_))) => backoff.reset(),
                        Ok(Ok(None)) => break Status::unavailable("it ended"),
                        Ok(Err(status)) => break status,
                        Err(_) => break Status::deadline_exceeded("no answer"),
                    }
                }
            }
        };
        debug!(%status, "heartbeats are not heard");
        sleep(backoff.next(random())).await;
    }
}

/// Our address on the way to `host`.
fn towards(host: IpAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = match host {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // Nothing is sent: the kernel only chooses a way.
    let socket = UdpSocket::bind(any)?;
    socket.connect((host, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// The first address that others may reach this node by, in the order of its interfaces.
fn first_address() -> io::Result<Option<IpAddr>> {
    let address = |entry: nix::ifaddrs::InterfaceAddress| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    };
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_unspecified() || ip.is_link_local()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local()),
    };
    Ok(getifaddrs()?.filter_map(address).find(usable))
}

/// What runs here (spec §5.3).
fn own_version() -> Version {
    let mut parts = orlop_rt::version::TAG.trim_start_matches('v').splitn(3, '.').map(|part| {
        let digits = part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().unwrap_or_default()
    });
    let mut next = || parts.next().unwrap_or_default();
    let release = version::Release { major: next(), minor: next(), patch: next() };
    // Clients cut the first eight characters off it (spec §4.2).
    let sha = Some(orlop_rt::version::SHA).filter(|sha| sha.len() >= 8);
    let git_information = sha.map(|sha| version::GitInformation {
        commit_hash: sha.to_owned(),
        ..version::GitInformation::default()
    });
    Version { release: Some(release), git_information }
}

/// The sixteen bytes of the kernel's id of this boot (`random(4)`); none where it has none.
fn boot_id() -> Vec<u8> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks_exact(2).filter_map(|pair| u8::try_from(pair[0] << 4 | pair[1]).ok()).collect()
}
