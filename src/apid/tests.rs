//! Real sockets: apids with certificates of one authority, and in place of routerd a node that
//! answers a few methods of the machine API.
//!
//! All nodes listen on one port of different loopback addresses, as they would on different machines.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::pin::Pin;
use std::time::SystemTime;

use futures_util::stream::{self, Stream, StreamExt as _};
use http::{Request, Response};
use orlop_pki::{Authority, KeyKind, Leaf, Pair, Usage};
use orlop_proto::common::{Data, Metadata};
use orlop_proto::machine::machine_service_client::MachineServiceClient;
use orlop_proto::machine::machine_service_server::{MachineService, MachineServiceServer};
use orlop_proto::machine::{
    ApplyConfigurationRequest, EtcdRecover, EtcdRecoverResponse, Hostname, HostnameResponse,
    LogsRequest,
};
use orlop_proto::orlop::v1alpha1::Door;
use orlop_proto::orlop::v1alpha1::door_service_client::DoorServiceClient;
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(5);

type Client = MachineServiceClient<Channel>;

/// A cluster: one authority, nodes on 127.0.0.x. Ends with the test.
struct Cluster {
    ca: Authority,
    port: u16,
    tasks: JoinSet<()>,
}

/// A node and what its machine API saw.
struct Node {
    address: IpAddr,
    secrets: TempDir,
    seen: mpsc::Receiver<Seen>,
    /// Lets one `Logs` go on to its end.
    go_on: Arc<Notify>,
}

#[derive(Debug)]
enum Seen {
    Called(MetadataMap),
    Dropped,
}

fn authority() -> Authority {
    Authority::generate("talos", KeyKind::Ed25519, HOUR, SystemTime::now()).unwrap()
}

fn client_pair(ca: &Authority, roles: &[&str]) -> Pair {
    let leaf = Leaf {
        common_name: "admin".to_owned(),
        organizations: roles.iter().map(|role| (*role).to_owned()).collect(),
        usage: Usage::Client,
        dns: Vec::new(),
        ips: Vec::new(),
        lifetime: HOUR,
    };
    ca.issue(&leaf, SystemTime::now()).unwrap()
}

fn server_leaf(address: IpAddr) -> Leaf {
    Leaf {
        common_name: "node".to_owned(),
        organizations: Vec::new(),
        usage: Usage::Server,
        dns: vec!["localhost".to_owned()],
        ips: vec![address],
        lifetime: HOUR,
    }
}

fn server_pair(ca: &Authority, address: IpAddr) -> Pair {
    ca.issue(&server_leaf(address), SystemTime::now()).unwrap()
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let new = folder.join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, folder.join(name)).unwrap();
    }
}

impl Cluster {
    fn new() -> Self {
        Self { ca: authority(), port: 0, tasks: JoinSet::new() }
    }

    /// Starts a node; `forwards`: with an identity to call others, as a control plane has.
    async fn node(&mut self, last: u8, forwards: bool) -> Node {
        let secrets = self.secrets(last, forwards);
        self.start(last, secrets, false).await
    }

    fn secrets(&self, last: u8, forwards: bool) -> TempDir {
        let address = IpAddr::from(Ipv4Addr::new(127, 0, 0, last));
        let secrets = tempfile::tempdir().unwrap();
        let server = server_pair(&self.ca, address);
        let ca = &self.ca.pair().crt;
        write(
            secrets.path(),
            &[("ca.crt", ca), ("tls.crt", &server.crt), ("tls.key", server.key.expose())],
        );
        if forwards {
            let client = client_pair(&self.ca, &["os:impersonator"]);
            write(
                secrets.path(),
                &[("client.crt", &client.crt), ("client.key", client.key.expose())],
            );
        }
        secrets
    }

    /// Starts a node that has no configuration; also its certificate's fingerprint.
    async fn unconfigured(&mut self, last: u8) -> (Node, String) {
        let secrets = tempfile::tempdir().unwrap();
        let server = server_pair(&authority(), Ipv4Addr::new(127, 0, 0, last).into());
        write(secrets.path(), &[("tls.crt", &server.crt), ("tls.key", server.key.expose())]);
        let fingerprint = orlop_pki::fingerprint(&server.crt).unwrap();
        (self.start(last, secrets, true).await, fingerprint)
    }

    async fn start(&mut self, last: u8, secrets: TempDir, maintenance: bool) -> Node {
        self.start_with(last, secrets, |options| options.maintenance = maintenance).await
    }

    async fn start_with(
        &mut self,
        last: u8,
        secrets: TempDir,
        change: impl FnOnce(&mut Options),
    ) -> Node {
        let address = IpAddr::from(Ipv4Addr::new(127, 0, 0, last));
        let routerd = secrets.path().join("routerd.sock");
        let (events, seen) = mpsc::channel(16);
        let go_on = Arc::new(Notify::new());
        let machine = Machine { name: format!("node-{last}"), events, go_on: Arc::clone(&go_on) };
        let backend = MachineServiceServer::new(machine);
        let serving = orlop_rpc::serve(
            backend,
            unix::listen(&routerd).unwrap(),
            CancellationToken::new(),
            GRACE,
        );
        self.tasks.spawn(serving);
        // The first node chooses the port; the others take it on addresses of their own.
        let mut options = Options {
            listen: (address, self.port).into(),
            secrets: secrets.path().to_owned(),
            routerd,
            target_port: self.port,
            look_every: SOON,
            ..Options::parse_from(["apid"])
        };
        change(&mut options);
        let mut apid = Apid::open(options).await.unwrap();
        self.port = apid.address().port();
        apid.options.target_port = self.port;
        self.tasks.spawn(async { apid.serve(CancellationToken::new()).await.unwrap() });
        Node { address, secrets, seen, go_on }
    }

    fn channel(&self, node: &Node, roles: &[&str]) -> Channel {
        let pair = client_pair(&self.ca, roles);
        self.dial(node, Some((&pair.crt, pair.key.expose())))
    }

    fn dial(&self, node: &Node, identity: Option<(&str, &str)>) -> Channel {
        let config = orlop_pki::tls::client_config(&self.ca.pair().crt, identity).unwrap();
        tls::channel(&node.address.to_string(), self.port, config)
    }

    fn admin(&self, node: &Node) -> Client {
        Client::new(self.channel(node, &["os:admin"]))
    }
}

/// The machine API of a node. `Hostname` answers; `Logs` sends a line, waits, and then sends another
/// or fails; `Reboot` never answers; `Shutdown` answers what cannot be merged.
#[derive(Debug)]
struct Machine {
    name: String,
    events: mpsc::Sender<Seen>,
    go_on: Arc<Notify>,
}

struct OnDrop(mpsc::Sender<Seen>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.try_send(Seen::Dropped);
    }
}

#[tonic::async_trait]
impl MachineService for Machine {
    async fn hostname(
        &self,
        request: tonic::Request<()>,
    ) -> Result<tonic::Response<HostnameResponse>, Status> {
        let metadata = request.metadata().clone();
        let _ = self.events.try_send(Seen::Called(metadata));
        let entry = Hostname { metadata: None, hostname: self.name.clone() };
        Ok(tonic::Response::new(HostnameResponse { messages: vec![entry] }))
    }

    async fn logs(
        &self,
        request: tonic::Request<LogsRequest>,
    ) -> Result<tonic::Response<DataStream>, Status> {
        let _ = self.events.try_send(Seen::Called(request.metadata().clone()));
        let (name, go_on) = (self.name.clone(), Arc::clone(&self.go_on));
        let fails = request.into_inner().id == "fails";
        let guard = OnDrop(self.events.clone());
        let line = |text: String| Ok(Data { metadata: None, bytes: text.into_bytes() });
        let first = line(format!("{name} first\n"));
        let rest = stream::once(async move {
            let _guard = guard;
            go_on.notified().await;
            if fails {
                Err(Status::data_loss("log is gone"))
            } else {
                line(format!("{name} last\n"))
            }
        });
        Ok(tonic::Response::new(Box::pin(stream::iter([first]).chain(rest))))
    }

    async fn etcd_recover(
        &self,
        request: tonic::Request<tonic::Streaming<Data>>,
    ) -> Result<tonic::Response<EtcdRecoverResponse>, Status> {
        let _ = self.events.try_send(Seen::Called(request.metadata().clone()));
        let mut pieces = request.into_inner();
        let mut bytes = 0;
        while let Some(piece) = pieces.message().await? {
            bytes += piece.bytes.len();
        }
        let hostname = format!("{} took {bytes}", self.name);
        let metadata = Some(Metadata { hostname, ..Metadata::default() });
        let messages = vec![EtcdRecover { metadata }];
        Ok(tonic::Response::new(EtcdRecoverResponse { messages }))
    }

    async fn reboot(
        &self,
        _: tonic::Request<()>,
    ) -> Result<tonic::Response<orlop_proto::machine::RebootResponse>, Status> {
        let _guard = OnDrop(self.events.clone());
        let _ = self.events.try_send(Seen::Called(MetadataMap::new()));
        std::future::pending().await
    }

    async fn shutdown(
        &self,
        _: tonic::Request<()>,
    ) -> Result<tonic::Response<orlop_proto::machine::ShutdownResponse>, Status> {
        Ok(tonic::Response::new(orlop_proto::machine::ShutdownResponse { messages: Vec::new() }))
    }
}

type DataStream = Pin<Box<dyn Stream<Item = Result<Data, Status>> + Send>>;

fn with<T>(message: T, metadata: &[(&'static str, &str)]) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    for (key, value) in metadata {
        request.metadata_mut().append(*key, value.parse().unwrap());
    }
    request
}

fn values(metadata: &MetadataMap, key: &str) -> Vec<String> {
    metadata.get_all(key).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

async fn called(node: &mut Node) -> MetadataMap {
    match node.seen.recv().await.unwrap() {
        Seen::Called(metadata) => metadata,
        Seen::Dropped => panic!("dropped before it was called"),
    }
}

#[tokio::test]
async fn a_stream_of_the_callers_goes_to_one_node_and_not_to_many() {
    let mut cluster = Cluster::new();
    let front = cluster.node(1, true).await;
    let _other = cluster.node(2, true).await;
    // More than all windows on the way together, so that it must be read to be sent.
    let piece = || Data { metadata: None, bytes: vec![7; 64 << 10] };
    let pieces = || stream::iter(std::iter::repeat_with(piece).take(640));
    let mut client = cluster.admin(&front);
    for (metadata, name) in [(&[][..], "node-1"), (&[("node", "127.0.0.2")][..], "node-2")] {
        let answer = client.etcd_recover(with(pieces(), metadata)).await.unwrap().into_inner();
        let [EtcdRecover { metadata: Some(took) }] = &answer.messages[..] else {
            panic!("{answer:?}")
        };
        assert_eq!(took.hostname, format!("{name} took {}", 40 << 20));
    }
    let refused = client.etcd_recover(with(pieces(), &[("nodes", "127.0.0.2")])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("MachineService/EtcdRecover"), "{refused}");
}

/// `node name` of each entry, or `node: error`.
fn entries(response: HostnameResponse) -> Vec<String> {
    let entry = |entry: Hostname| match entry.metadata.unwrap_or_default() {
        Metadata { hostname, error, .. } if error.is_empty() => {
            format!("{hostname} {}", entry.hostname)
        }
        Metadata { hostname, error, .. } => format!("{hostname}: {error}"),
    };
    response.messages.into_iter().map(entry).collect()
}

#[tokio::test]
async fn a_call_without_targets_is_answered_by_the_node_itself() {
    let mut cluster = Cluster::new();
    let mut node = cluster.node(1, true).await;
    let mut client = cluster.admin(&node);
    let answer = client.hostname(with((), &[("x-word", "here")])).await.unwrap().into_inner();
    assert_eq!(answer.messages[0], Hostname { metadata: None, hostname: "node-1".to_owned() });
    let metadata = called(&mut node).await;
    assert_eq!(values(&metadata, "x-word"), ["here"]);
    assert_eq!(values(&metadata, "talos-role"), ["os:admin"]);
    assert!(metadata.get("proxyfrom").is_none());
}

#[tokio::test]
async fn only_certificates_that_are_the_authoritys_valid_now_and_for_clients_get_in() {
    let mut cluster = Cluster::new();
    let node = cluster.node(1, true).await;
    let now = SystemTime::now();
    let leaf = |usage| Leaf {
        common_name: "admin".to_owned(),
        organizations: vec!["os:admin".to_owned()],
        usage,
        dns: Vec::new(),
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        lifetime: HOUR,
    };
    let by = |ca: &Authority, usage, when| ca.issue(&leaf(usage), when).unwrap();
    let foreign = authority();
    for (what, pair) in [
        ("none", None),
        ("of another authority of the same name", Some(by(&foreign, Usage::Client, now))),
        ("self-signed, with the authority's name", Some(foreign.pair().clone())),
        ("the authority's own", Some(cluster.ca.pair().clone())),
        ("expired", Some(by(&cluster.ca, Usage::Client, now - 10 * HOUR))),
        ("not valid yet", Some(by(&cluster.ca, Usage::Client, now + 10 * HOUR))),
        ("for servers", Some(by(&cluster.ca, Usage::Server, now))),
    ] {
        let identity = pair.as_ref().map(|pair| (pair.crt.as_str(), pair.key.expose()));
        let refused = Client::new(cluster.dial(&node, identity)).hostname(()).await.unwrap_err();
        // The handshake failed: nobody asked for roles.
        assert_ne!(refused.code(), Code::PermissionDenied, "{what}");
        assert!(node.seen.is_empty(), "{what}");
    }
    cluster.admin(&node).hostname(()).await.unwrap();
}

#[tokio::test]
async fn a_node_named_by_loopback_is_asked_once_and_by_itself() {
    let mut cluster = Cluster::new();
    let mut node = cluster.node(1, true).await;
    let mut client = cluster.admin(&node);
    for key in ["node", "nodes"] {
        for name in ["localhost", "127.0.0.1"] {
            client.hostname(with((), &[(key, name)])).await.unwrap();
            let metadata = called(&mut node).await;
            assert_eq!(values(&metadata, "proxyfrom"), [format!("127.0.0.1:{}", cluster.port)]);
        }
    }
    // Who says it has been routed goes no further, wherever it wants to.
    client.hostname(with((), &[("proxyfrom", "x"), ("nodes", "127.0.0.9")])).await.unwrap();
    called(&mut node).await;
    assert!(node.seen.is_empty(), "each call came once");
}

/// A name that every resolver takes for 127.0.0.1 (inet_aton(3)), and no address to us.
const LOOPBACK: &str = "0x7f000001";

#[tokio::test]
async fn a_name_that_resolves_to_loopback_leads_to_the_node_once_or_nowhere() {
    let mut cluster = Cluster::new();
    // Its certificate speaks for the name.
    let secrets = cluster.secrets(1, true);
    let own = Leaf { dns: vec![LOOPBACK.to_owned()], ..server_leaf(Ipv4Addr::LOCALHOST.into()) };
    let own = cluster.ca.issue(&own, SystemTime::now()).unwrap();
    write(secrets.path(), &[("tls.key", own.key.expose()), ("tls.crt", &own.crt)]);
    let mut node = cluster.start(1, secrets, false).await;
    let mut client = cluster.admin(&node);
    for key in ["node", "nodes"] {
        client.hostname(with((), &[(key, LOOPBACK)])).await.unwrap();
        let metadata = called(&mut node).await;
        assert_eq!(values(&metadata, "proxyfrom"), [format!("127.0.0.1:{}", cluster.port)]);
        assert_eq!((values(&metadata, "node").len(), values(&metadata, "nodes").len()), (0, 0));
    }
    // Named twice, it is asked twice, and no more.
    let twice = with((), &[("nodes", LOOPBACK), ("nodes", "127.0.0.1")]);
    let answer = client.hostname(twice).await.unwrap().into_inner();
    assert_eq!(entries(answer), [format!("{LOOPBACK} node-1"), "127.0.0.1 node-1".to_owned()]);
    called(&mut node).await;
    called(&mut node).await;
    assert!(node.seen.is_empty());
}

#[tokio::test]
async fn a_name_that_resolves_to_a_node_whose_certificate_has_another_is_not_asked() {
    let mut cluster = Cluster::new();
    let node = cluster.node(1, true).await;
    let mut client = cluster.admin(&node);
    let answer = client.hostname(with((), &[("nodes", LOOPBACK)])).await.unwrap().into_inner();
    let [entry] = &entries(answer)[..] else { panic!("one node was named") };
    assert!(entry.starts_with(LOOPBACK) && entry.contains("not valid for name"), "{entry}");
    let status = client.hostname(with((), &[("node", LOOPBACK)])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("not valid for name"), "{status}");
    assert!(node.seen.is_empty());
}

#[tokio::test]
async fn a_worker_takes_names_of_its_own_for_itself_and_no_others() {
    let mut cluster = Cluster::new();
    let worker = cluster.node(1, false).await;
    let mut client = cluster.admin(&worker);
    for name in [
        "localhost",
        "LocalHost",
        "localhost.",
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "[::1]",
        "::ffff:127.0.0.1",
    ] {
        for key in ["node", "nodes"] {
            let answer = client.hostname(with((), &[(key, name)])).await.unwrap().into_inner();
            assert_eq!(answer.messages[0].metadata, None, "{key} {name}");
        }
    }
    // Where another name leads to is not asked, and two are never itself alone.
    let two = &[("nodes", "localhost"), ("nodes", "localhost")][..];
    for targets in [&[("nodes", LOOPBACK)][..], &[("node", LOOPBACK)], two] {
        let denied = client.hostname(with((), targets)).await.unwrap_err();
        assert_eq!(
            (denied.code(), denied.message()),
            (Code::PermissionDenied, "no request forwarding"),
            "{targets:?}"
        );
    }
}

#[tokio::test]
async fn it_tells_whom_it_has_turned_away() {
    let mut cluster = Cluster::new();
    let (front, mut other) = (cluster.node(1, true).await, cluster.node(2, false).await);
    let foreign = client_pair(&authority(), &["os:admin"]);
    let stranger = Some((foreign.crt.as_str(), foreign.key.expose()));
    Client::new(cluster.dial(&other, stranger)).hostname(()).await.unwrap_err();
    let mut door = DoorServiceClient::new(cluster.channel(&front, &["os:reader"]));
    let targets = [("nodes", "127.0.0.1"), ("nodes", "127.0.0.2")];
    // The stranger may know that it is refused before its failure has been counted.
    let counted = loop {
        let answer = door.door(with((), &targets)).await.unwrap().into_inner();
        let counts = |door: Door| (door.metadata.unwrap().hostname, door.failed_handshakes);
        let counted: Vec<_> = answer.messages.into_iter().map(counts).collect();
        if counted[1].1 > 0 {
            break counted;
        }
    };
    let expected = [("127.0.0.1", 0), ("127.0.0.2", 1)];
    assert_eq!(counted, expected.map(|(name, count)| (name.to_owned(), count)));
    assert!(other.seen.try_recv().is_err(), "the machine behind it is not asked");
}

#[tokio::test]
async fn headers_that_are_too_long_are_refused_and_the_next_call_is_answered() {
    let mut cluster = Cluster::new();
    let mut node = cluster.node(1, true).await;
    let mut client = cluster.admin(&node);
    let long = "y".repeat(300 << 10);
    client.hostname(with((), &[("x-long", &long)])).await.unwrap_err();
    client.hostname(()).await.unwrap();
    called(&mut node).await;
    assert!(node.seen.is_empty(), "the long one never came through");
}

#[tokio::test]
async fn a_method_is_denied_without_a_role_for_it() {
    let mut cluster = Cluster::new();
    let node = cluster.node(1, true).await;
    for (roles, allowed) in [
        (&["os:reader"][..], true),
        (&["os:meta:writer", "os:operator"], true),
        (&["os:meta:writer"], false),
        (&["os:impersonator"], false),
        (&[""], false),
        (&[], false),
    ] {
        let mut client = Client::new(cluster.channel(&node, roles));
        let answer = client.hostname(with((), &[])).await;
        match answer {
            Ok(_) => assert!(allowed, "{roles:?}"),
            Err(status) => {
                assert!(!allowed, "{roles:?}: {status}");
                assert_eq!(
                    (status.code(), status.message()),
                    (Code::PermissionDenied, "not authorized")
                );
            }
        }
    }
    let mut reader = Client::new(cluster.channel(&node, &["os:reader"]));
    let denied = reader.reboot(with((), &[("talos-role", "os:admin")])).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "not authorized"));
}

#[tokio::test]
async fn a_node_that_calls_for_a_client_has_that_clients_roles_only() {
    let mut cluster = Cluster::new();
    let mut node = cluster.node(1, true).await;
    let mut other = Client::new(cluster.channel(&node, &["os:impersonator"]));
    let denied = (Code::PermissionDenied, "not authorized".to_owned());
    for stated in [&[][..], &[("talos-role", "os:impersonator")], &[("talos-role", "")]] {
        let refused = other.hostname(with((), stated)).await.unwrap_err();
        assert_eq!((refused.code(), refused.message().to_owned()), denied, "{stated:?}");
    }
    let reader = [("talos-role", "os:reader"), ("proxyfrom", "a")];
    let refused = other.reboot(with((), &reader)).await.unwrap_err();
    assert_eq!((refused.code(), refused.message().to_owned()), denied);
    other.hostname(with((), &reader)).await.unwrap();
    assert_eq!(values(&called(&mut node).await, "talos-role"), ["os:reader"]);
}

#[tokio::test]
async fn certificates_without_roles_are_for_everything_where_the_switch_is_on() {
    let mut cluster = Cluster::new();
    let secrets = cluster.secrets(1, true);
    let mut node = cluster.start_with(1, secrets, |options| options.nameless_is_admin = true).await;
    for roles in [&[][..], &[""]] {
        let mut client = Client::new(cluster.channel(&node, roles));
        client.shutdown(with((), &[("talos-role", "os:reader")])).await.unwrap();
        client.hostname(()).await.unwrap();
        assert_eq!(values(&called(&mut node).await, "talos-role"), ["os:admin"]);
    }
    let mut reader = Client::new(cluster.channel(&node, &["os:reader"]));
    assert_eq!(reader.shutdown(()).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn programs_of_the_node_come_over_a_socket_and_have_the_roles_they_state_if_they_are_roots() {
    use std::os::unix::fs::MetadataExt as _;

    let mut cluster = Cluster::new();
    let secrets = cluster.secrets(1, true);
    let socket = secrets.path().join("run/apid.sock");
    let path = socket.clone();
    let mut node = cluster.start_with(1, secrets, |options| options.socket = Some(path)).await;
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    let root = fs::metadata(&socket).unwrap().uid() == 0;
    let mut client = Client::new(unix::channel(&socket));
    let nothing = client.hostname(()).await.unwrap_err();
    assert_eq!(nothing.code(), Code::PermissionDenied);
    for targets in [&[][..], &[("nodes", "127.0.0.1")]] {
        let metadata = [targets, &[("talos-role", "os:reader")]].concat();
        let answer = client.hostname(with((), &metadata)).await;
        assert_eq!(answer.is_ok(), root, "{answer:?}");
        if root {
            assert_eq!(values(&called(&mut node).await, "talos-role"), ["os:reader"]);
        }
    }
    let denied = client.shutdown(with((), &[("talos-role", "os:reader")])).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn in_maintenance_anybody_may_read_and_nothing_is_handed_on() {
    let mut cluster = Cluster::new();
    let (node, fingerprint) = cluster.unconfigured(1).await;
    let dial = |pin: &str| {
        let config = orlop_pki::stranger::client_config(Some(pin.to_owned())).unwrap();
        Client::new(tls::channel(&node.address.to_string(), cluster.port, config))
    };
    let mut anybody = dial(&fingerprint);
    let metadata = &[("nodes", "127.0.0.2"), ("talos-role", "os:admin")];
    let answer = anybody.hostname(with((), metadata)).await.unwrap().into_inner();
    assert_eq!(answer.messages[0], Hostname { metadata: None, hostname: "node-1".to_owned() });
    let denied = anybody.reboot(()).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "not authorized"));
    // Allowed, and the machine behind the door has no such method.
    let request = ApplyConfigurationRequest::default();
    let answer = anybody.apply_configuration(request).await.unwrap_err();
    assert_eq!(answer.code(), Code::Unimplemented);
    dial("another").hostname(()).await.unwrap_err();
}

#[tokio::test]
async fn the_answers_of_many_nodes_are_merged_in_the_order_asked() {
    let mut cluster = Cluster::new();
    let mut a = cluster.node(1, true).await;
    let mut b = cluster.node(2, false).await;
    let targets = [("nodes", "127.0.0.2"), ("nodes", "127.0.0.1"), ("nodes", "127.0.0.2")];
    let mut reader = Client::new(cluster.channel(&a, &["os:reader"]));
    let answer = reader.hostname(with((), &targets)).await.unwrap().into_inner();
    assert_eq!(entries(answer), ["127.0.0.2 node-2", "127.0.0.1 node-1", "127.0.0.2 node-2"]);
    for node in [&mut a, &mut b] {
        let metadata = called(node).await;
        assert_eq!(values(&metadata, "proxyfrom"), [format!("127.0.0.1:{}", cluster.port)]);
        assert_eq!(values(&metadata, "talos-role"), ["os:reader"]);
        assert!(metadata.get("nodes").is_none());
    }
}

#[tokio::test]
async fn a_node_that_is_down_is_an_entry_of_the_answer() {
    let mut cluster = Cluster::new();
    let a = cluster.node(1, true).await;
    let targets = [("nodes", "127.0.0.9"), ("nodes", "127.0.0.1")];
    let answer = cluster.admin(&a).hostname(with((), &targets)).await.unwrap().into_inner();
    let status = answer.messages[0].metadata.clone().unwrap().status.unwrap();
    assert_eq!(status.code, Code::Unavailable as i32);
    let down = format!(
        "apid of 127.0.0.9: connect to 127.0.0.9:{}: Connection refused (os error 111)",
        cluster.port
    );
    assert_eq!(status.message, down);
    let down = format!("127.0.0.9: rpc error: code = Unavailable desc = {down}");
    assert_eq!(entries(answer), [down.as_str(), "127.0.0.1 node-1"]);
}

#[tokio::test]
async fn the_status_a_node_answers_with_is_an_entry_too() {
    let mut cluster = Cluster::new();
    let a = cluster.node(1, true).await;
    let mut client = cluster.admin(&a);
    let answer = client.memory(with((), &[("nodes", "127.0.0.1")])).await.unwrap().into_inner();
    let status = answer.messages[0].metadata.clone().unwrap().status.unwrap();
    assert_eq!(status.code, Code::Unimplemented as i32);
}

#[tokio::test]
async fn an_answer_that_cannot_be_merged_fails_the_call() {
    let mut cluster = Cluster::new();
    let a = cluster.node(1, true).await;
    let mut client = cluster.admin(&a);
    let failed = client.shutdown(with((), &[("nodes", "127.0.0.1")])).await.unwrap_err();
    let text = "merge the answer of 127.0.0.1: empty message";
    assert_eq!((failed.code(), failed.message()), (Code::Unknown, text));
}

#[tokio::test]
async fn one_node_answers_as_itself() {
    let mut cluster = Cluster::new();
    let a = cluster.node(1, true).await;
    let mut b = cluster.node(2, false).await;
    let mut client = cluster.admin(&a);
    let answer = client.hostname(with((), &[("node", "127.0.0.2")])).await.unwrap().into_inner();
    assert_eq!(answer.messages[0], Hostname { metadata: None, hostname: "node-2".to_owned() });
    let metadata = called(&mut b).await;
    assert_eq!(values(&metadata, "proxyfrom"), [format!("127.0.0.1:{}", cluster.port)]);
    assert!(metadata.get("node").is_none());
    let failed = client.memory(with((), &[("node", "127.0.0.2")])).await.unwrap_err();
    assert_eq!(failed.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_worker_answers_for_itself_and_forwards_nothing() {
    let mut cluster = Cluster::new();
    let worker = cluster.node(1, false).await;
    let mut client = cluster.admin(&worker);
    let own = client.hostname(with((), &[("nodes", "127.0.0.1")])).await.unwrap().into_inner();
    assert_eq!(own.messages[0].metadata, None);
    for key in ["node", "nodes"] {
        let denied = client.hostname(with((), &[(key, "10.0.0.2")])).await.unwrap_err();
        assert_eq!(
            (denied.code(), denied.message()),
            (Code::PermissionDenied, "no request forwarding")
        );
    }
}

#[tokio::test]
async fn a_wrong_target_fails_the_call() {
    let mut cluster = Cluster::new();
    let a = cluster.node(1, true).await;
    let targets = [("nodes", "127.0.0.1"), ("nodes", "127.0.0.1:50000")];
    let failed = cluster.admin(&a).hostname(with((), &targets)).await.unwrap_err();
    let text = "invalid target \"127.0.0.1:50000\"";
    assert_eq!((failed.code(), failed.message()), (Code::Internal, text));
}

/// `node: bytes` of a message, or `node! error`.
fn line(data: Data) -> String {
    let metadata = data.metadata.unwrap_or_default();
    match metadata.error.as_str() {
        "" => {
            format!("{}: {}", metadata.hostname, String::from_utf8(data.bytes).unwrap().trim_end())
        }
        error => format!("{}! {error}", metadata.hostname),
    }
}

#[tokio::test]
async fn streams_of_many_nodes_are_interleaved_and_one_that_fails_says_so() {
    let mut cluster = Cluster::new();
    let a = cluster.node(1, true).await;
    let b = cluster.node(2, false).await;
    let request = LogsRequest { id: "fails".to_owned(), ..LogsRequest::default() };
    let targets = [("nodes", "127.0.0.1"), ("nodes", "127.0.0.2"), ("nodes", "127.0.0.9")];
    let mut lines = cluster.admin(&a).logs(with(request, &targets)).await.unwrap().into_inner();
    let mut first = Vec::new();
    for _ in 0..3 {
        first.push(line(lines.message().await.unwrap().unwrap()));
    }
    first.sort();
    assert_eq!(first[..2], ["127.0.0.1: node-1 first", "127.0.0.2: node-2 first"]);
    assert!(first[2].starts_with("127.0.0.9! rpc error: code = Unavailable desc = "), "{first:?}");
    b.go_on.notify_one();
    let failed = "rpc error: code = DataLoss desc = log is gone";
    assert_eq!(line(lines.message().await.unwrap().unwrap()), format!("127.0.0.2! {failed}"));
    a.go_on.notify_one();
    assert_eq!(line(lines.message().await.unwrap().unwrap()), format!("127.0.0.1! {failed}"));
    assert_eq!(lines.message().await.unwrap(), None);
}

#[tokio::test]
async fn a_stream_of_one_node_passes_as_it_is() {
    let mut cluster = Cluster::new();
    let a = cluster.node(1, true).await;
    let b = cluster.node(2, false).await;
    for (metadata, node) in [(&[][..], &a), (&[("node", "127.0.0.2")], &b)] {
        let request = LogsRequest::default();
        let mut lines = cluster.admin(&a).logs(with(request, metadata)).await.unwrap().into_inner();
        assert!(line(lines.message().await.unwrap().unwrap()).ends_with(" first"));
        node.go_on.notify_one();
        assert!(line(lines.message().await.unwrap().unwrap()).ends_with(" last"));
        assert_eq!(lines.message().await.unwrap(), None);
    }
}

#[tokio::test]
async fn cancelling_reaches_every_node() {
    let mut cluster = Cluster::new();
    let mut a = cluster.node(1, true).await;
    let mut b = cluster.node(2, false).await;
    let targets = [("nodes", "127.0.0.1"), ("nodes", "127.0.0.2")];
    let mut client = cluster.admin(&a);
    {
        let call = client.reboot(with((), &targets));
        let both = async { tokio::join!(called(&mut a), called(&mut b)) };
        tokio::select! {
            answer = call => panic!("answered: {answer:?}"),
            _ = both => {}
        }
    }
    let request = LogsRequest::default();
    let lines = client.logs(with(request, &targets)).await.unwrap().into_inner();
    for node in [&mut a, &mut b] {
        assert!(matches!(node.seen.recv().await, Some(Seen::Dropped)), "the unary call");
        called(node).await;
    }
    drop(lines);
    for node in [&mut a, &mut b] {
        assert!(matches!(node.seen.recv().await, Some(Seen::Dropped)), "the stream");
    }
}

#[tokio::test]
async fn a_deadline_goes_on_to_the_nodes() {
    let mut cluster = Cluster::new();
    let mut a = cluster.node(1, true).await;
    let mut request = with((), &[("nodes", "127.0.0.1")]);
    request.set_timeout(HOUR);
    cluster.admin(&a).hostname(request).await.unwrap();
    assert!(called(&mut a).await.get("grpc-timeout").is_some());
}

#[tokio::test]
async fn unknown_paths_get_a_status() {
    let mut cluster = Cluster::new();
    let a = cluster.node(1, true).await;
    let channel = cluster.channel(&a, &["os:admin"]);
    for (path, code, text) in [
        ("/", Code::Unimplemented, "malformed method name: \"/\""),
        ("/machine.MachineService/NoSuchMethod", Code::Unimplemented, ""),
    ] {
        let request = Request::post(path).body(Body::empty()).unwrap();
        let answer: Response<Body> = channel.clone().oneshot(request).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!((status.code(), status.message()), (code, text));
    }
}

#[tokio::test]
async fn certificates_change_without_dropping_a_connection() {
    let mut cluster = Cluster::new();
    let node = cluster.node(1, true).await;
    let mut before = cluster.admin(&node);
    before.hostname(()).await.unwrap();
    // What does not belong together is left alone.
    let server = server_pair(&cluster.ca, node.address);
    write(node.secrets.path(), &[("tls.crt", &server.crt)]);
    cluster.admin(&node).hostname(()).await.unwrap();

    let new = Cluster { ca: authority(), port: cluster.port, tasks: JoinSet::new() };
    let server = server_pair(&new.ca, node.address);
    let files = [
        ("ca.crt", &*new.ca.pair().crt),
        ("tls.key", server.key.expose()),
        ("tls.crt", &server.crt),
    ];
    write(node.secrets.path(), &files);
    while new.admin(&node).hostname(()).await.is_err() {
        tokio::task::yield_now().await;
    }
    cluster.admin(&node).hostname(()).await.unwrap_err();
    before.hostname(()).await.unwrap();
}

#[tokio::test]
async fn without_certificates_there_is_no_door() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        secrets: folder.path().to_owned(),
        ..Options::parse_from(["apid"])
    };
    let error = run(options, CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("read {}", folder.path().join("ca.crt").display()));
}
