//! A client that has no `.proto` files: it asks what there is, and calls it, through the real apid and
//! routerd to a machine that answers.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::uri::PathAndQuery;
use orlop_pki::{Authority, KeyKind, Leaf, Pair, Usage};
use orlop_proto::grpc::health::v1::HealthCheckRequest;
use orlop_proto::grpc::health::v1::health_check_response::ServingStatus;
use orlop_proto::grpc::health::v1::health_client::HealthClient;
use orlop_proto::machine::machine_service_server::{MachineService, MachineServiceServer};
use orlop_proto::machine::{MemInfo, Memory, MemoryResponse};
use orlop_rt::CancellationToken;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use prost_types::FileDescriptorProto;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_reflection::pb::{v1, v1alpha};

const HOUR: Duration = Duration::from_secs(3600);

fn binary() -> PathBuf {
    std::env::var_os("ORLOP").map_or_else(|| env!("CARGO_BIN_EXE_orlop").into(), PathBuf::from)
}

/// A daemon; killed with the test.
struct Daemon(Child);

impl Daemon {
    /// Starts one; what it says after `word=` on the line that has it.
    fn start(role: &str, options: &[(&str, &Path)], word: &str) -> (Self, String) {
        let mut command = Command::new(binary());
        command.arg(role).stderr(Stdio::piped());
        for (option, value) in options {
            command.arg(option).arg(value);
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = loop {
            let line = lines.next().expect("a daemon says where it listens").unwrap();
            if let Some((_, said)) = line.split_once(word) {
                break said.trim().to_owned();
            }
        };
        // Goes on reading, so that the daemon never waits for a reader; ends with the daemon.
        std::thread::spawn(move || lines.for_each(drop));
        (Self(child), said)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine that knows its memory.
struct Machine;

#[tonic::async_trait]
impl MachineService for Machine {
    async fn memory(&self, _: Request<()>) -> Result<Response<MemoryResponse>, Status> {
        let meminfo = MemInfo { memtotal: 4096, ..MemInfo::default() };
        let entry = Memory { metadata: None, meminfo: Some(meminfo) };
        Ok(Response::new(MemoryResponse { messages: vec![entry] }))
    }
}

/// A node: apid on a port, routerd behind it, and a machine behind that.
struct Node {
    ca: Arc<Authority>,
    port: u16,
    _folder: tempfile::TempDir,
    _daemons: [Daemon; 2],
}

impl Node {
    fn start() -> Self {
        let ca = Authority::generate("talos", KeyKind::Ed25519, HOUR, SystemTime::now()).unwrap();
        Self::start_before(Arc::new(ca), 1)
    }

    /// A node of the cluster of `ca`, for which the others are where `target_port` is.
    fn start_before(ca: Arc<Authority>, target_port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let (machined, routerd, secrets) = (path("machine.sock"), path("r.sock"), path("apid"));
        let incoming = orlop_rpc::unix::listen(&machined).unwrap();
        let machine = MachineServiceServer::new(Machine);
        let (forever, grace) = (CancellationToken::new(), Duration::ZERO);
        tokio::spawn(orlop_rpc::serve(machine, incoming, forever, grace));
        let own = issue(&ca, Usage::Server, "");
        let client = issue(&ca, Usage::Client, "os:impersonator");
        fs::create_dir(&secrets).unwrap();
        for (name, text) in [
            ("ca.crt", &*ca.pair().crt),
            ("tls.key", own.key.expose()),
            ("tls.crt", &*own.crt),
            ("client.key", client.key.expose()),
            ("client.crt", &*client.crt),
        ] {
            fs::write(secrets.join(name), text).unwrap();
        }
        let none = path("none.sock");
        let options = [
            ("--socket", &*routerd),
            ("--machined", &*machined),
            ("--networkd", &*none),
            ("--timed", &*none),
        ];
        let (router, _) = Daemon::start("routerd", &options, "socket=");
        let listen = Path::new("127.0.0.1:0");
        let target_port = target_port.to_string();
        let options = [
            ("--listen", listen),
            ("--secrets", &*secrets),
            ("--routerd", &*routerd),
            ("--target-port", Path::new(&target_port)),
        ];
        let (door, port) = Daemon::start("apid", &options, "address=127.0.0.1:");
        let port = port.parse().unwrap();
        Self { ca, port, _folder: folder, _daemons: [door, router] }
    }

    /// The way in for somebody with a role.
    fn channel(&self, role: &str) -> Channel {
        let pair = issue(&self.ca, Usage::Client, role);
        let identity = Some((&*pair.crt, pair.key.expose()));
        let config = orlop_pki::tls::client_config(&self.ca.pair().crt, identity).unwrap();
        orlop_rpc::tls::channel("127.0.0.1", self.port, config)
    }
}

fn issue(authority: &Authority, usage: Usage, organization: &str) -> Pair {
    let leaf = Leaf {
        common_name: "test".to_owned(),
        organizations: vec![organization.to_owned()],
        usage,
        dns: Vec::new(),
        ips: vec!["127.0.0.1".parse().unwrap()],
        lifetime: HOUR,
    };
    authority.issue(&leaf, SystemTime::now()).unwrap()
}

/// Messages of types that only the other side has told us.
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

async fn ask(
    channel: &Channel,
    question: v1::server_reflection_request::MessageRequest,
) -> v1::server_reflection_response::MessageResponse {
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let request =
        v1::ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let questions = tokio_stream::once(request);
    let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap().message_response.unwrap()
}

/// The files that describe `symbol`, and those that they need.
async fn described(channel: &Channel, symbol: &str) -> DescriptorPool {
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;

    let mut files = BTreeMap::new();
    let mut questions = vec![MessageRequest::FileContainingSymbol(symbol.to_owned())];
    while let Some(question) = questions.pop() {
        let MessageResponse::FileDescriptorResponse(answer) = ask(channel, question).await else {
            panic!("no description");
        };
        for file in answer.file_descriptor_proto {
            let file = FileDescriptorProto::decode(&file[..]).unwrap();
            let needed = file.dependency.iter().filter(|name| !files.contains_key(*name));
            questions.extend(needed.cloned().map(MessageRequest::FileByFilename));
            files.insert(file.name().to_owned(), file);
        }
    }
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_protos(files.into_values()).unwrap();
    pool
}

#[tokio::test]
async fn a_client_that_knows_only_what_reflection_tells_calls_memory() {
    let node = Node::start();
    // Another one, whose apid asks the first.
    let front = Node::start_before(Arc::clone(&node.ca), node.port);
    let channel = front.channel("os:reader");
    let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let answer = ask(&channel, list).await;
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
        panic!("no list: {answer:?}");
    };
    let services: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for service in ["machine.MachineService", "network.NetworkService", "grpc.health.v1.Health"] {
        assert!(services.iter().any(|listed| listed == service), "{service} of {services:?}");
    }
    for inside in ["health.Health", "securityapi.SecurityService"] {
        assert!(!services.iter().any(|listed| listed == inside), "{inside} of {services:?}");
    }

    let pool = described(&channel, "machine.MachineService").await;
    let service = pool.get_service_by_name("machine.MachineService").unwrap();
    let method = service.methods().find(|method| method.name() == "Memory").unwrap();
    let path: PathAndQuery = format!("/{}/{}", service.full_name(), method.name()).parse().unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    for nodes in [&[][..], &["127.0.0.1"], &["127.0.0.1", "127.0.0.1"]] {
        let mut question = Request::new(DynamicMessage::new(method.input()));
        for node in nodes {
            question.metadata_mut().append("nodes", node.parse().unwrap());
        }
        client.ready().await.unwrap();
        let answer = client.unary(question, path.clone(), Dynamic(method.output())).await;
        let answer = answer.unwrap().into_inner();
        let messages = answer.get_field_by_name("messages").unwrap();
        let entries = messages.as_list().unwrap();
        assert_eq!(entries.len(), nodes.len().max(1));
        for entry in entries {
            let entry = entry.as_message().unwrap();
            let field =
                |of: &DynamicMessage, name| of.get_field_by_name(name).unwrap().into_owned();
            let meminfo = field(entry, "meminfo");
            let total = field(meminfo.as_message().unwrap(), "memtotal");
            assert_eq!(total.as_u64(), Some(4096));
            // Who was asked through another node is named by it.
            let metadata = field(entry, "metadata");
            let name = field(metadata.as_message().unwrap(), "hostname");
            assert_eq!(name.as_str().unwrap(), nodes.first().copied().unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn health_and_the_older_reflection_are_for_readers_too_and_for_nobody_else() {
    let node = Node::start();
    let reader = node.channel("os:reader");
    let ask = || HealthCheckRequest { service: "machine.MachineService".to_owned() };
    let answer = HealthClient::new(reader.clone()).check(ask()).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    let list = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let question = || v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(list.clone()),
    };
    let older = v1alpha::server_reflection_client::ServerReflectionClient::new;
    let answer = older(reader).server_reflection_info(tokio_stream::once(question())).await;
    assert!(answer.unwrap().into_inner().message().await.unwrap().is_some());

    let stranger = node.channel("os:meta:writer");
    let question = tokio_stream::once(question());
    let denied = older(stranger.clone()).server_reflection_info(question).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let denied = HealthClient::new(stranger).check(ask()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
}
