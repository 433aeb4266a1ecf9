//! The look at a cluster over sockets: an apid and a Kubernetes of their own answer.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use orlop_pki::KeyKind;
use orlop_proto::machine as proto;
use orlop_proto::machine::machine_service_server::{MachineService, MachineServiceServer};
use orlop_proto::machine::{ServiceHealth, ServiceList, ServiceListResponse};
use orlop_proto::orlop::v1alpha1::node_service_server::{NodeService, NodeServiceServer};
use orlop_proto::orlop::v1alpha1::{Timeline, TimelineResponse};
use orlop_rpc::Routes;
use orlop_rpc::tls::{incoming, listen};
use orlop_rt::CancellationToken;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::body::Body;

use super::*;

const LIMIT: Duration = Duration::from_secs(600);

/// Roles and nodes of a call.
type Asked = (String, Vec<String>);

/// An apid in front of nodes that are all alike.
#[derive(Clone, Default)]
struct Apid {
    services: Vec<(&'static str, &'static str)>,
    members: Vec<&'static str>,
    forwards: bool,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Apid {
    /// The nodes of a call, each as metadata.
    fn answering<T>(&self, request: &Request<T>) -> Result<Vec<Option<Metadata>>, Status> {
        let values = |key| {
            let values = request.metadata().get_all(key).iter();
            values.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let nodes = values("nodes");
        self.asked.lock().unwrap().push((values("talos-role").join(" "), nodes.clone()));
        if !nodes.is_empty() && !self.forwards {
            return Err(Status::permission_denied("no request forwarding"));
        }
        if nodes.is_empty() {
            return Ok(vec![None]);
        }
        let metadata = |hostname| Metadata { hostname, ..Metadata::default() };
        Ok(nodes.into_iter().map(|node| Some(metadata(node))).collect())
    }
}

#[tonic::async_trait]
impl MachineService for Apid {
    async fn service_list(
        &self,
        request: Request<()>,
    ) -> Result<Response<ServiceListResponse>, Status> {
        let service = |(id, state): &(&str, &str)| ServiceInfo {
            id: (*id).to_owned(),
            state: (*state).to_owned(),
            events: None,
            health: Some(ServiceHealth { healthy: true, ..ServiceHealth::default() }),
        };
        let services: Vec<_> = self.services.iter().map(service).collect();
        let nodes = self.answering(&request)?.into_iter();
        let list = |metadata| ServiceList { metadata, services: services.clone() };
        Ok(Response::new(ServiceListResponse { messages: nodes.map(list).collect() }))
    }

    async fn etcd_member_list(
        &self,
        request: Request<EtcdMemberListRequest>,
    ) -> Result<Response<proto::EtcdMemberListResponse>, Status> {
        self.answering(&request)?;
        let member = |url: &&str| proto::EtcdMember {
            client_urls: vec![(*url).to_owned()],
            ..proto::EtcdMember::default()
        };
        let members = self.members.iter().map(member).collect();
        let messages = vec![proto::EtcdMembers { members, ..proto::EtcdMembers::default() }];
        Ok(Response::new(proto::EtcdMemberListResponse { messages }))
    }
}

#[tonic::async_trait]
impl NodeService for Apid {
    async fn timeline(&self, request: Request<()>) -> Result<Response<TimelineResponse>, Status> {
        let nodes = self.answering(&request)?.into_iter();
        let timeline = |metadata| Timeline { metadata, ready_ns: 1, ..Timeline::default() };
        Ok(Response::new(TimelineResponse { messages: nodes.map(timeline).collect() }))
    }
}

/// Servers, for as long as this lives.
struct Scene {
    folder: TempDir,
    tasks: JoinSet<()>,
}

impl Scene {
    fn new(apid: &Apid) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listening = orlop_rpc::unix::listen(folder.path().join("apid.sock")).unwrap();
        let routes = Routes::new(MachineServiceServer::new(apid.clone()))
            .add_service(NodeServiceServer::new(apid.clone()));
        let mut tasks = JoinSet::new();
        let forever = CancellationToken::new();
        tasks.spawn(orlop_rpc::serve(routes, listening, forever, Duration::ZERO));
        Self { folder, tasks }
    }

    /// An API server that has these lists.
    async fn kubernetes(&mut self, nodes: &'static str, pods: &'static str) -> Access {
        let now = SystemTime::now();
        let ca = Authority::generate("kubernetes", KeyKind::Ed25519, LIMIT, now).unwrap();
        let leaf = |usage, organization: &str| Leaf {
            common_name: "test".to_owned(),
            organizations: vec![organization.to_owned()],
            usage,
            dns: Vec::new(),
            ips: vec!["127.0.0.1".parse().unwrap()],
            lifetime: LIMIT,
        };
        let own = ca.issue(&leaf(Usage::Server, ""), now).unwrap();
        let client = ca.issue(&leaf(Usage::Client, "system:masters"), now).unwrap();
        let config = orlop_pki::tls::server_config(&ca.pair().crt, &own.crt, own.key.expose());
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, configs) = watch::channel(config.unwrap());
        let service = tower::service_fn(move |request: http::Request<_>| async move {
            let query = request.uri().query().unwrap_or_default();
            let (status, text) = match request.uri().path() {
                // Two pages, the first without anything.
                "/api/v1/nodes" if !query.contains("continue=") => {
                    (200, r#"{"metadata":{"continue":"abc"},"items":null}"#)
                }
                "/api/v1/nodes" => (200, nodes),
                "/api/v1/namespaces/kube-system/pods" => (200, pods),
                _ => (404, r#"{"kind":"Status","message":"nothing there"}"#),
            };
            let body = Body::new(http_body_util::Full::from(text));
            Ok::<_, Infallible>(http::Response::builder().status(status).body(body).unwrap())
        });
        let forever = CancellationToken::new();
        self.tasks.spawn(async move {
            let _config = sender;
            orlop_rpc::serve(
                service,
                incoming(listener, configs, Arc::default()),
                forever,
                Duration::ZERO,
            )
            .await;
        });
        let (ca, host) = (ca.pair().crt.clone(), "127.0.0.1".to_owned());
        Access { host, port, ca, crt: client.crt, key: client.key }
    }

    /// All that is said.
    async fn check(&self, nodes: Nodes, kubernetes: Result<Access, String>) -> Vec<Said> {
        let terms = Terms {
            socket: self.folder.path().join("apid.sock"),
            nodes,
            control_plane: true,
            kubernetes,
            limit: LIMIT,
        };
        told(&terms).await
    }
}

async fn told(terms: &Terms) -> Vec<Said> {
    // As it goes to the child, and comes back.
    let terms: Terms = serde_json::from_str(&serde_json::to_string(terms).unwrap()).unwrap();
    let mut all = Vec::new();
    let say = |said: &Said| {
        all.push(serde_json::from_str(&serde_json::to_string(said).unwrap()).unwrap());
        Ok(())
    };
    check(&terms, say).await.unwrap();
    all
}

fn lines(said: &[Said]) -> Vec<&str> {
    let lines = said.iter().filter_map(|said| match said {
        Said::Line(line) => Some(line.as_str()),
        Said::Well | Said::Late(_) | Said::Unchecked(_) => None,
    });
    lines.collect()
}

const WHOLE: &[(&str, &str)] =
    &[("apid", "Running"), ("bootkube", "Skipped"), ("etcd", "Running"), ("kubelet", "Running")];
/// As on an image that has no more than our own programs.
const OURS: &[(&str, &str)] =
    &[("apid", "Running"), ("bootkube", "Skipped"), ("etcd", "Skipped"), ("kubelet", "Skipped")];

const NODES: &str = r#"{"metadata":{},"items":[
    {"metadata":{"name":"one","labels":{"node-role.kubernetes.io/master":""}},"status":{
        "addresses":[{"type":"InternalIP","address":"10.0.0.2"}],
        "conditions":[{"type":"Ready","status":"True"}]}},
    {"metadata":{"name":"two"},"status":{
        "addresses":[{"type":"InternalIP","address":"10.0.0.3"}],
        "conditions":[{"type":"Ready","status":"True"}]}}]}"#;
const PODS: &str = r#"{"metadata":{},"items":[
    {"metadata":{"name":"a","labels":{"component":"kube-apiserver"}},
     "status":{"conditions":[{"type":"Ready","status":"True"}]}},
    {"metadata":{"name":"b","labels":{"component":"kube-controller-manager"}},
     "status":{"conditions":[{"type":"Ready","status":"True"}]}},
    {"metadata":{"name":"c","labels":{"component":"kube-scheduler"}},
     "status":{"conditions":[{"type":"Ready","status":"True"}]}},
    {"metadata":{"name":"d","labels":{"k8s-app":"kube-proxy"}},
     "status":{"conditions":[{"type":"Ready","status":"True"}]}},
    {"metadata":{"name":"e","labels":{"k8s-app":"kube-dns"}},
     "status":{"conditions":[{"type":"Ready","status":"True"}]}}]}"#;

#[tokio::test]
async fn a_whole_cluster_is_found_in_kubernetes_and_is_well() {
    let apid = Apid { services: WHOLE.to_vec(), forwards: true, ..Apid::default() };
    let mut scene = Scene::new(&apid);
    let access = scene.kubernetes(NODES, PODS).await;
    let said = scene.check(Nodes::default(), Ok(access)).await;
    assert_eq!(said.last(), Some(&Said::Well), "{said:#?}");
    let lines = lines(&said);
    assert_eq!(lines[0], "nodes that Kubernetes knows: control planes 10.0.0.2; workers 10.0.0.3");
    assert_eq!(lines.iter().filter(|line| line.ends_with(": OK")).count(), 10, "{lines:#?}");
    let asked = apid.asked.lock().unwrap();
    assert!(asked.iter().all(|(role, _)| role == "os:reader"), "{asked:?}");
    assert_eq!(asked[0].1, ["10.0.0.2"], "etcd's health is the control plane's");
    assert_eq!(asked.last().unwrap().1, ["10.0.0.2", "10.0.0.3"]);
}

/// An access that leads to nobody.
async fn nobody(scene: &mut Scene) -> Access {
    let access = scene.kubernetes(NODES, PODS).await;
    // Another authority's server may stand there by now: it is none of this cluster's either.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Access { port, ..access }
}

#[tokio::test]
async fn a_cluster_without_kubernetes_is_told_so_at_once() {
    let apid = Apid { services: OURS.to_vec(), forwards: true, ..Apid::default() };
    let mut scene = Scene::new(&apid);
    let access = nobody(&mut scene).await;
    let said = scene.check(Nodes::default(), Ok(access)).await;
    let lines = lines(&said);
    assert!(lines[0].starts_with("neither Kubernetes nor etcd tells"), "{}", lines[0]);
    let skipped = "waiting for kubelet to be healthy: SKIPPED: its program is not on this node";
    assert!(lines.contains(&skipped), "{lines:#?}");
    assert!(lines.contains(&"waiting for apid to be ready: OK"), "{lines:#?}");
    let Some(Said::Unchecked(why)) = said.last() else { panic!("{said:#?}") };
    assert!(why.contains("Kubernetes could not be checked: no API server answers at"), "{why}");
    assert!(why.ends_with("no node has a kubelet that could run one"), "{why}");
}

#[tokio::test]
async fn an_api_server_alone_is_asked_and_no_kubelet_is_waited_for() {
    let services = [OURS, &[("apiserver", "Running")]].concat();
    let mut scene = Scene::new(&Apid { services, forwards: true, ..Apid::default() });
    let nothing = r#"{"metadata":{},"items":[]}"#;
    let access = scene.kubernetes(nothing, nothing).await;
    let said = scene.check(Nodes::default(), Ok(access.clone())).await;
    assert_eq!(said.last(), Some(&Said::Well), "{said:#?}");
    let skipped = "waiting for all k8s nodes to report: SKIPPED: Kubernetes answers; no node has a kubelet \
                   that would report to it";
    assert!(lines(&said).contains(&skipped), "{said:#?}");
    ready(&access.host, access.port, &access.ca).await.unwrap_err();
}

#[tokio::test]
async fn etcd_knows_the_control_planes_where_kubernetes_does_not() {
    let apid = Apid {
        services: OURS.to_vec(),
        members: vec!["https://10.0.0.2:2379", "https://[fd00::3]:2379", "none"],
        forwards: true,
        ..Apid::default()
    };
    let mut scene = Scene::new(&apid);
    let access = nobody(&mut scene).await;
    let said = scene.check(Nodes::default(), Ok(access)).await;
    assert_eq!(
        lines(&said)[0],
        "nodes that etcd knows: control planes 10.0.0.2 fd00::3; workers none"
    );
}

#[tokio::test]
async fn what_can_never_be_known_is_not_waited_for() {
    // The kubelet runs, so that an API server would be waited for, if it could be asked.
    let apid = Apid { services: WHOLE.to_vec(), forwards: true, ..Apid::default() };
    let scene = Scene::new(&apid);
    let named = Nodes { control_planes: vec!["10.0.0.2".to_owned()], workers: Vec::new() };
    let said = scene.check(named.clone(), Err("this node has no key".to_owned())).await;
    let Some(Said::Unchecked(why)) = said.last() else { panic!("{said:#?}") };
    assert!(why.ends_with("Kubernetes could not be checked: this node has no key"), "{why}");
    // A worker's apid hands nothing on.
    let scene = Scene::new(&Apid { forwards: false, ..apid });
    let terms = Terms {
        socket: scene.folder.path().join("apid.sock"),
        nodes: named,
        control_plane: false,
        kubernetes: Err("this node has no key".to_owned()),
        limit: LIMIT,
    };
    let said = told(&terms).await;
    let Some(Said::Unchecked(why)) = said.last() else { panic!("{said:#?}") };
    assert!(why.contains("no request forwarding: this node is a worker"), "{why}");
}

#[tokio::test]
async fn what_does_not_hold_in_time_is_the_answer() {
    let services = vec![("apid", "Running"), ("etcd", "Preparing")];
    let scene = Scene::new(&Apid { services, forwards: true, ..Apid::default() });
    let terms = Terms {
        socket: scene.folder.path().join("apid.sock"),
        nodes: Nodes { control_planes: vec!["a".to_owned()], workers: Vec::new() },
        control_plane: true,
        kubernetes: Err(String::new()),
        // Longer than a look takes anywhere, and shorter than the time between two.
        limit: Duration::from_millis(990),
    };
    let said = told(&terms).await;
    let Some(Said::Late(why)) = said.last() else { panic!("{said:#?}") };
    assert!(why.contains("for etcd to be healthy: "), "{why}");
}
