//! Whether the cluster is healthy, as one of its nodes sees it (`cluster.ClusterService/HealthCheck`).
//!
//! [`checks`] decides what is asked when and what is told, [`judge`] what the answers mean. Nodes are
//! asked over this node's apid, Kubernetes at the cluster's endpoint. What they say comes from the
//! network, so a child of PID 1 asks ([`main`]); it says on its standard output what the caller is told.

mod checks;
mod judge;
mod kubernetes;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use orlop_config::machine::MachineConfig;
use orlop_pki::{Authority, Leaf, Usage};
use orlop_proto::common::Metadata;
use orlop_proto::machine::machine_service_client::MachineServiceClient;
use orlop_proto::machine::{EtcdMemberListRequest, ServiceInfo};
use orlop_proto::orlop::v1alpha1::node_service_client::NodeServiceClient;
use orlop_rt::{Chain, Exit};
use orlop_supervise::Reaper;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep_until, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::child::{self, Talk};
use crate::services::{APID_SOCKET, BINARY};
use checks::{Action, Check, Checks, Event, Look, Unwell};
use judge::{COMPONENTS, Entry, Services, Wanted};
use kubernetes::{Access, Api};

/// What this node may of others: it reads.
const ROLE: &str = "os:reader";
/// How long finding out who the nodes are may take: more than dialling one who does not answer.
const DISCOVERY_LIMIT: Duration = Duration::from_secs(30);
/// A certificate outlives the checks by this: clocks differ.
const SPARE: Duration = Duration::from_secs(5 * 60);

/// Who is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Nodes {
    pub(crate) control_planes: Vec<String>,
    pub(crate) workers: Vec<String>,
}

impl Nodes {
    fn all(&self) -> Vec<String> {
        self.control_planes.iter().chain(&self.workers).cloned().collect()
    }

    fn is_empty(&self) -> bool {
        self.control_planes.is_empty() && self.workers.is_empty()
    }
}

/// What the child is told.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Terms {
    /// apid's, for programs of this node.
    socket: PathBuf,
    /// Without any, the child finds out.
    nodes: Nodes,
    /// Whether this node is one of the control plane.
    control_plane: bool,
    /// How to ask Kubernetes, or why that cannot be.
    kubernetes: Result<Access, String>,
    limit: Duration,
}

/// What the child says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum Said {
    /// For whoever waits.
    Line(String),
    /// All holds.
    Well,
    /// Something does not in time.
    Late(String),
    /// Something cannot be asked.
    Unchecked(String),
}

impl Terms {
    /// To look at `nodes` for `limit`, with Kubernetes at `endpoint` (host and port), else at the
    /// configuration's.
    pub(crate) fn new(
        config: &MachineConfig,
        nodes: Nodes,
        endpoint: Option<(String, u16)>,
        limit: Duration,
        now: SystemTime,
    ) -> Self {
        Self {
            socket: APID_SOCKET.into(),
            nodes,
            control_plane: config.machine.kind.is_control_plane(),
            kubernetes: access(config, endpoint, limit, now),
            limit,
        }
    }

    /// Lets a child look. It is root's, because apid lets no other process of the node in, and has none
    /// of root's capabilities.
    pub(crate) fn look(&self, reaper: &Reaper) -> Result<Talk, child::Error> {
        let mut program = Command::new(BINARY);
        program.args(["machined", "check-health"]);
        Talk::begin(reaper, program, 0, self)
    }
}

fn access(
    config: &MachineConfig,
    endpoint: Option<(String, u16)>,
    limit: Duration,
    now: SystemTime,
) -> Result<Access, String> {
    let ca = config.cluster.ca.as_ref();
    let Some((ca, key)) = ca.and_then(|pair| Some((&pair.crt, pair.key.as_ref()?))) else {
        return Err(
            "this node has no key of Kubernetes' authority to ask with; ask a control plane node"
                .to_owned(),
        );
    };
    let configured = || {
        let url = config.cluster.control_plane.endpoint.as_ref()?;
        Some((crate::identity::endpoint_host(config)?, url.port_or_known_default()?))
    };
    let Some((host, port)) = endpoint.or_else(configured) else {
        return Err("the configuration has no cluster.controlPlane.endpoint".to_owned());
    };
    let leaf = Leaf {
        common_name: "orlop:health".to_owned(),
        organizations: vec!["system:masters".to_owned()],
        usage: Usage::Client,
        dns: Vec::new(),
        ips: Vec::new(),
        lifetime: limit + SPARE,
    };
    let issued = Authority::from_pem(ca, key.expose())
        .and_then(|authority| authority.issue(&leaf, now))
        .map_err(|error| format!("issue a certificate with cluster.ca: {}", Chain(&error)))?;
    Ok(Access { host, port, ca: ca.clone(), crt: issued.crt, key: issued.key })
}

/// Whether the API server of this node, `host`, is ready to serve; it is believed by `ca` (PEM).
pub(crate) async fn ready(host: &str, port: u16, ca: &str) -> Result<(), String> {
    let server = Api::anonymous(host, port, ca).map_err(|error| Chain(&error).to_string())?;
    server.ready().await.map_err(|error| Chain(&error).to_string())
}

/// Runs as the child: terms on standard input, what is said on standard output.
pub(crate) fn main() -> ExitCode {
    let run = || -> Result<(), String> {
        let terms: Terms = serde_json::from_reader(io::stdin()).map_err(|e| e.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| error.to_string())?.block_on(check(&terms, say))
    };
    match run() {
        Ok(()) => Exit::Ok.into(),
        Err(why) => {
            eprintln!("{why}");
            Exit::Failed.into()
        }
    }
}

fn say(said: &Said) -> Result<(), String> {
    let write = || {
        let mut line = serde_json::to_vec(said)?;
        line.push(b'\n');
        io::stdout().write_all(&line)
    };
    write().map_err(|error: io::Error| format!("tell what is waited for: {error}"))
}

/// Looks until all holds or something does not, and says so.
async fn check(
    terms: &Terms,
    mut say: impl FnMut(&Said) -> Result<(), String>,
) -> Result<(), String> {
    let mut cluster = Cluster::new(terms).map_err(|error| Chain(&error).to_string())?;
    let begin = Instant::now();
    if terms.nodes.is_empty() {
        let until = begin + DISCOVERY_LIMIT.min(terms.limit);
        say(&Said::Line(cluster.discover(until).await))?;
    }
    let mut checks = Checks::new(begin, terms.limit);
    let mut event = Event::Due;
    loop {
        let mut next = Event::Due;
        for action in checks.handle(Instant::now(), event) {
            match action {
                Action::Say(line) => say(&Said::Line(line))?,
                Action::WakeAt(at) => sleep_until(at.into()).await,
                Action::Look(check, until) => {
                    next = match timeout_at(until.into(), cluster.look(check)).await {
                        Ok(Ok(look)) => Event::Looked(look),
                        Ok(Err(why)) => return say(&Said::Unchecked(why)),
                        Err(_) => Event::Silent,
                    }
                }
                Action::End(result) => {
                    return say(&match result {
                        Ok(()) => Said::Well,
                        Err(why @ Unwell::Late { .. }) => Said::Late(why.to_string()),
                        Err(why @ Unwell::Unchecked(_)) => Said::Unchecked(why.to_string()),
                    });
                }
            }
        }
        event = next;
    }
}

/// The ways to nodes and Kubernetes, and what is known of them.
struct Cluster {
    apid: Channel,
    /// Nobody named: this node alone.
    nodes: Nodes,
    control_plane: bool,
    kubernetes: Result<Api, String>,
    /// No node has a kubelet: there are no nodes and no pods for Kubernetes to know.
    no_kubelet: bool,
    /// Nor one of our own API servers: one that does not answer never will.
    no_apiserver: bool,
}

impl Cluster {
    fn new(terms: &Terms) -> Result<Self, orlop_pki::Error> {
        let kubernetes = match &terms.kubernetes {
            Ok(access) => Ok(Api::new(access)?),
            Err(why) => Err(why.clone()),
        };
        Ok(Self {
            apid: orlop_rpc::unix::channel(&terms.socket),
            nodes: terms.nodes.clone(),
            control_plane: terms.control_plane,
            kubernetes,
            no_kubelet: false,
            no_apiserver: false,
        })
    }

    /// Finds out who the nodes are: of Kubernetes, else of etcd; else it is this one. Says who.
    async fn discover(&mut self, until: Instant) -> String {
        let found = async {
            if let Some(nodes) = self.nodes_of_kubernetes().await {
                return Some((nodes, "Kubernetes"));
            }
            Some((self.nodes_of_etcd().await?, "etcd"))
        };
        match timeout_at(until.into(), found).await {
            Ok(Some((nodes, whose))) => {
                let list = |nodes: &[String]| match nodes {
                    [] => "none".to_owned(),
                    nodes => nodes.join(" "),
                };
                let Nodes { control_planes, workers } = &nodes;
                let (control_planes, workers) = (list(control_planes), list(workers));
                self.nodes = nodes;
                format!(
                    "nodes that {whose} knows: control planes {control_planes}; workers {workers}"
                )
            }
            Ok(None) | Err(_) => {
                "neither Kubernetes nor etcd tells who the nodes are: checking this \
                                  node alone"
                    .to_owned()
            }
        }
    }

    async fn nodes_of_kubernetes(&self) -> Option<Nodes> {
        let objects = self.kubernetes.as_ref().ok()?.nodes().await.ok()?;
        let mut nodes = Nodes::default();
        for object in &objects {
            let list = if object.is_control_plane() {
                &mut nodes.control_planes
            } else {
                &mut nodes.workers
            };
            list.extend(object.address().map(str::to_owned));
        }
        (!nodes.is_empty()).then_some(nodes)
    }

    async fn nodes_of_etcd(&self) -> Option<Nodes> {
        let request = self.request(&[], EtcdMemberListRequest { query_local: true });
        let answer = self.machine().etcd_member_list(request).await.ok()?.into_inner();
        let members = answer.messages.into_iter().flat_map(|message| message.members);
        let host = |url: &String| {
            let uri: http::Uri = url.parse().ok()?;
            uri.scheme()?;
            Some(uri.host()?.trim_matches(['[', ']']).to_owned())
        };
        let control_planes: Vec<_> =
            members.filter_map(|member| member.client_urls.iter().find_map(host)).collect();
        let nodes = Nodes { control_planes, workers: Vec::new() };
        (!nodes.is_empty()).then_some(nodes)
    }

    /// Sees whether it holds.
    ///
    /// # Errors
    /// When it will never be known, and why.
    async fn look(&mut self, check: Check) -> Result<Look, String> {
        let (control_planes, all) = (self.nodes.control_planes.clone(), self.nodes.all());
        Ok(match check {
            Check::Etcd | Check::Bootkube if all.is_empty() && !self.control_plane => {
                Look::Skipped("this node is a worker".to_owned())
            }
            Check::Etcd | Check::Bootkube if !all.is_empty() && control_planes.is_empty() => {
                Look::Skipped("no control plane node is named".to_owned())
            }
            Check::Etcd => self.service("etcd", Wanted::Healthy, &control_planes).await?.look(),
            Check::Bootkube => {
                self.service("bootkube", Wanted::Finished, &control_planes).await?.look()
            }
            Check::Apid => self.service("apid", Wanted::Healthy, &all).await?.look(),
            Check::Kubelet => {
                let entries = self.services(&all).await?;
                let found = Services::of("kubelet", Wanted::Healthy, &entries);
                self.no_kubelet = found.nowhere();
                let has =
                    |services: &Vec<ServiceInfo>| services.iter().any(|one| one.id == "apiserver");
                self.no_apiserver = !entries.iter().any(|entry| entry.said.as_ref().is_ok_and(has));
                found.look()
            }
            Check::Boot => {
                let mut client = NodeServiceClient::new(self.apid.clone())
                    .max_decoding_message_size(orlop_rpc::MAX_MESSAGE);
                let answer = client.timeline(self.request(&all, ())).await;
                let entries = self.entries(answer, &all, |answer| {
                    let messages = answer.messages.into_iter();
                    messages.map(|one| (one.metadata, one.ready_ns)).collect()
                })?;
                judge::boot(&entries)
            }
            Check::Reporting | Check::Ready | Check::Schedulable => {
                let nodes = match &self.kubernetes {
                    Ok(api) => api.nodes().await,
                    Err(why) => return Ok(Look::Missing(why.clone())),
                };
                match nodes {
                    Err(error) => self.without(&error),
                    Ok(nodes) if nodes.is_empty() && self.no_kubelet => nobody(),
                    Ok(nodes) if check == Check::Reporting => judge::reporting(&nodes, &all),
                    Ok(nodes) if check == Check::Ready => judge::ready(&nodes),
                    Ok(nodes) => judge::schedulable(&nodes),
                }
            }
            Check::ControlPlane | Check::KubeProxy | Check::CoreDns => {
                let pods = match &self.kubernetes {
                    Ok(api) => api.system_pods().await,
                    Err(why) => return Ok(Look::Missing(why.clone())),
                };
                match pods {
                    Err(error) => self.without(&error),
                    Ok(pods) if pods.is_empty() && self.no_kubelet => nobody(),
                    Ok(pods) if check == Check::ControlPlane => judge::pods(&pods, &COMPONENTS),
                    Ok(pods) if check == Check::KubeProxy => judge::pods(&pods, &["kube-proxy"]),
                    Ok(pods) => judge::pods(&pods, &["kube-dns"]),
                }
            }
        })
    }

    /// What it means that Kubernetes does not answer.
    fn without(&self, error: &kubernetes::Error) -> Look {
        match error {
            kubernetes::Error::Unreachable { .. } if self.no_kubelet && self.no_apiserver => {
                Look::Missing(format!("{error}; no node has a kubelet that could run one"))
            }
            error => Look::NotYet(error.to_string()),
        }
    }

    async fn service(
        &self,
        id: &str,
        wanted: Wanted,
        nodes: &[String],
    ) -> Result<Services, String> {
        Ok(Services::of(id, wanted, &self.services(nodes).await?))
    }

    async fn services(&self, nodes: &[String]) -> Result<Vec<Entry<Vec<ServiceInfo>>>, String> {
        let answer = self.machine().service_list(self.request(nodes, ())).await;
        self.entries(answer, nodes, |answer| {
            answer.messages.into_iter().map(|one| (one.metadata, one.services)).collect()
        })
    }

    fn machine(&self) -> MachineServiceClient<Channel> {
        MachineServiceClient::new(self.apid.clone())
            .max_decoding_message_size(orlop_rpc::MAX_MESSAGE)
    }

    /// A call for `nodes`, or for this one.
    fn request<T>(&self, nodes: &[String], message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("talos-role", MetadataValue::from_static(ROLE));
        // What makes no value was refused when it was asked for.
        for node in nodes.iter().filter_map(|node| node.parse().ok()) {
            metadata.append("nodes", node);
        }
        request
    }

    /// What each node said. An apid that does not answer is one that is not ready; one that refuses
    /// will do so for ever.
    fn entries<R, T>(
        &self,
        answer: Result<Response<R>, Status>,
        nodes: &[String],
        messages: impl FnOnce(R) -> Vec<(Option<Metadata>, T)>,
    ) -> Result<Vec<Entry<T>>, String> {
        let answer = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let why = format!("this node's apid: {}", status.message());
                return match status.code() {
                    Code::PermissionDenied if !self.control_plane => Err(format!(
                        "{why}: this node is a worker, which asks no other; ask a control plane node"
                    )),
                    Code::PermissionDenied
                    | Code::InvalidArgument
                    | Code::Internal
                    | Code::Unauthenticated => Err(why),
                    _ => {
                        let node = nodes.join(", ");
                        Ok(vec![Entry { node: named(node), said: Err(why) }])
                    }
                };
            }
        };
        let entry = |(metadata, message): (Option<Metadata>, T)| {
            let Metadata { hostname, error, status } = metadata.unwrap_or_default();
            let failed = status.filter(|status| status.code != 0).map(|status| status.message);
            let failed = failed.or(Some(error).filter(|error| !error.is_empty()));
            Entry { node: named(hostname), said: failed.map_or(Ok(message), Err) }
        };
        Ok(messages(answer).into_iter().map(entry).collect())
    }
}

/// Kubernetes answers, and knows neither nodes nor pods, as it must.
fn nobody() -> Look {
    Look::Skipped("Kubernetes answers; no node has a kubelet that would report to it".to_owned())
}

/// A node as it was typed; who was not is this one.
fn named(node: String) -> String {
    if node.is_empty() { "this node".to_owned() } else { node }
}

#[cfg(test)]
mod tests;
