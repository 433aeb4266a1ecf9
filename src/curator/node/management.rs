//! `NodeManagement`, which every node serves on port 7839 (spec §4.8): its logs, and its end.
//!
//! Callers are judged by their certificates alone: what the leader knows besides (who was revoked, which role a user has)
//! is not asked for, so that a node can be reached while nobody leads. Logs and reboots are machined's.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt as _, stream};
use http::Request as HttpRequest;
use orlop_proto::machine::machine_service_client::MachineServiceClient;
use orlop_proto::machine::{LogsRequest as MachineLogs, ServiceListResponse};
use orlop_proto::metropolis::proto::api::node_management_server::{
    NodeManagement, NodeManagementServer,
};
use orlop_proto::metropolis::proto::api::reboot_request::{NextBoot, Type};
use orlop_proto::metropolis::proto::api::{
    ActivationMode, LogsRequest, LogsResponse, OsImageRef, RebootRequest, RebootResponse,
    UpdateNodeRequest, UpdateNodeResponse,
};
use orlop_proto::osbase::logtree::proto::LogEntry;
use orlop_rpc::access::Log;
use orlop_rpc::places::{self, Most};
use orlop_rpc::tls::{self, Peer};
use orlop_rpc::{Limits, Routes, unix};
use orlop_rt::CancellationToken;
use rustls::ServerConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tower::ServiceExt as _;
use tracing::{info, warn};

use super::logs::{self, Lines, Source};
use super::{Error, Options};
use crate::access::{self, Rules};

/// Connections at a time.
const MOST: Most = Most { all: 64, each: 16 };
/// Calls under way may take so long to end.
const GRACE: Duration = Duration::from_secs(2);
/// From the answer to what was asked for.
const DELAY: Duration = Duration::from_secs(2);
/// The longest request.
const MESSAGE: usize = 64 << 10;
/// Messages that wait for a slow reader of logs.
const AHEAD: usize = 128;
/// All of a log that machined keeps, and then some.
const PIECE: usize = 4 << 20;
const NAMESPACE: &str = "system";
const SERVICE: &str = "/metropolis.proto.api.NodeManagement/";

/// How the node is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Reboot,
    PowerOff,
}

/// Serves until `shutdown`.
pub(super) async fn serve(
    options: &Options,
    authority: &[u8],
    config: Arc<ServerConfig>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let listener = tls::listen(options.listen).await.map_err(Error::Listen)?;
    let (ends, asked) = mpsc::channel(1);
    let node = Node { machined: options.machined.clone(), ends };
    let server = NodeManagementServer::new(node).max_decoding_message_size(MESSAGE);
    let (services, log) = (Routes::new(server), Log::front_door());
    let authority: Arc<[u8]> = authority.into();
    let service = tower::service_fn(move |request: HttpRequest<Body>| {
        let (services, log, authority) = (services.clone(), log.clone(), Arc::clone(&authority));
        async move {
            let call = log.begin(&request, || match request.extensions().get::<Peer>() {
                Some(peer) => peer.address.to_string(),
                None => "nobody".to_owned(),
            });
            let answer = match judge(&authority, &request) {
                Ok(()) => match services.oneshot(request).await {
                    Ok(answer) => answer,
                    Err(never) => match never {},
                },
                Err(status) => status.into_http(),
            };
            Ok::<_, Infallible>(call.watch(answer))
        }
    });
    let (_config, configs) = watch::channel(config);
    let incoming = places::admitted(tls::incoming(listener, configs, Arc::default()), MOST);
    let serving = orlop_rpc::serve_within(Limits::new(GRACE), service, incoming, shutdown.clone());
    let machined = options.machined.clone();
    let ending = async {
        shutdown.run_until_cancelled(end(machined, asked)).await;
    };
    tokio::join!(serving, ending);
    Ok(())
}

/// Whether the call goes on: before anybody looks into it.
fn judge(authority: &[u8], request: &HttpRequest<Body>) -> Result<(), Status> {
    let path = request.uri().path();
    if !path.starts_with(SERVICE) {
        return Err(Status::unimplemented("a node serves NodeManagement here, and nothing else"));
    }
    let access = access::of_method(path)
        .ok_or_else(|| Status::internal("nobody has said who may call this method"))?;
    let peer = request.extensions().get::<Peer>();
    let certificates = peer.map_or(&[][..], |peer| &peer.certificates);
    let rules = Rules { authority, book: None, now: SystemTime::now() };
    rules.admit(path, access, certificates)?;
    Ok(())
}

/// Does what was asked for, a moment after the answer.
async fn end(machined: PathBuf, mut asked: mpsc::Receiver<End>) {
    while let Some(end) = asked.recv().await {
        info!(?end, "asked by an operator");
        sleep(DELAY).await;
        let mut client = machine(&machined);
        let ended = match end {
            End::Reboot => client.reboot(()).await.map(drop),
            End::PowerOff => client.shutdown(()).await.map(drop),
        };
        if let Err(error) = ended {
            warn!(%error, ?end, "machined refuses");
        }
    }
}

fn machine(socket: &PathBuf) -> MachineServiceClient<Channel> {
    MachineServiceClient::new(unix::channel(socket)).max_decoding_message_size(PIECE)
}

#[derive(Debug)]
struct Node {
    machined: PathBuf,
    ends: mpsc::Sender<End>,
}

#[tonic::async_trait]
impl NodeManagement for Node {
    async fn logs(
        &self,
        request: Request<LogsRequest>,
    ) -> Result<Response<tonic::codegen::BoxStream<LogsResponse>>, Status> {
        let wish = logs::understand(request.get_ref()).map_err(Status::invalid_argument)?;
        let client = machine(&self.machined);
        let services = match wish.source {
            Source::Nothing => Vec::new(),
            Source::One(service) => vec![service],
            Source::All => services(client.clone().service_list(()).await?.into_inner()),
        };
        // What comes is followed before the past is read: a line may be told twice, none is left out.
        let mut coming = Vec::new();
        if wish.follow {
            for service in &services {
                coming.push(follow(&client, service).await?);
            }
        }
        let mut past = Vec::new();
        if let Some(tail_lines) = wish.backlog {
            for service in &services {
                past.extend(backlog(&client, service, tail_lines).await?);
            }
        }
        let told =
            |backlog_entries| Ok(LogsResponse { backlog_entries, stream_entries: Vec::new() });
        let past = stream::iter(logs::messages(past).into_iter().map(told));
        if !wish.follow {
            return Ok(Response::new(Box::pin(past)));
        }
        let ended = Status::unavailable("the log has ended, with the node or its service");
        let coming = stream::select_all(coming).chain(stream::iter([Err(ended)]));
        Ok(Response::new(Box::pin(past.chain(coming))))
    }

    async fn update_node(
        &self,
        request: Request<UpdateNodeRequest>,
    ) -> Result<Response<UpdateNodeResponse>, Status> {
        check_update(request.get_ref()).map_err(Status::invalid_argument)?;
        Err(Status::unimplemented(
            "this release has no installer: write the new image to the node's disk, and boot from it",
        ))
    }

    async fn reboot(
        &self,
        request: Request<RebootRequest>,
    ) -> Result<Response<RebootResponse>, Status> {
        let end = understand(request.get_ref())?;
        // Full: one was asked for already.
        let asked = self.ends.try_send(end);
        asked.map_err(|_| Status::aborted("the node is about to end; wait for it to come back"))?;
        Ok(Response::new(RebootResponse {}))
    }
}

/// How it is to end.
fn understand(request: &RebootRequest) -> Result<End, Status> {
    let kind = match Type::try_from(request.r#type) {
        Ok(Type::Invalid) | Err(_) => return Err(Status::unimplemented("there is no such type")),
        Ok(kind) => kind,
    };
    match NextBoot::try_from(request.next_boot) {
        Err(_) => return Err(Status::unimplemented("there is no such next_boot")),
        Ok(NextBoot::StartFirmwareUi) if kind == Type::Kexec => {
            let why = "the firmware's menu is not reached by kexec; choose TYPE_FIRMWARE";
            return Err(Status::invalid_argument(why));
        }
        Ok(NextBoot::StartFirmwareUi) => {
            let why = "this release cannot ask the firmware for its menu";
            return Err(Status::unimplemented(why));
        }
        Ok(NextBoot::StartRollback) => {
            return Err(Status::unavailable("there is no other release on the disk to go back to"));
        }
        Ok(NextBoot::StartNormal) => {}
    }
    match kind {
        Type::Firmware => Ok(End::Reboot),
        Type::PowerOff => Ok(End::PowerOff),
        Type::Kexec | Type::Invalid => Err(Status::unavailable(
            "this release cannot start a kernel without the firmware; choose TYPE_FIRMWARE",
        )),
    }
}

/// What is wrong with a request to update.
fn check_update(request: &UpdateNodeRequest) -> Result<(), String> {
    match ActivationMode::try_from(request.activation_mode) {
        Ok(ActivationMode::Invalid) | Err(_) => {
            return Err("there is no such activation_mode".to_owned());
        }
        Ok(_) => {}
    }
    let Some(OsImageRef { scheme, host, repository, digest, .. }) = &request.os_image else {
        return Err("there is no os_image".to_owned());
    };
    if !matches!(scheme.as_str(), "http" | "https") {
        return Err(format!("the scheme {scheme:?} is neither http nor https"));
    }
    if host.is_empty() || repository.is_empty() {
        return Err("os_image has no host, or no repository".to_owned());
    }
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(format!("the digest {digest:?} is not sha256: and 64 hexadecimal digits"));
    }
    Ok(())
}

fn services(list: ServiceListResponse) -> Vec<String> {
    let lists = list.messages.into_iter();
    lists.flat_map(|list| list.services).map(|service| service.id).collect()
}

fn wanted(service: &str, follow: bool, tail_lines: i32) -> MachineLogs {
    MachineLogs {
        namespace: NAMESPACE.to_owned(),
        id: service.to_owned(),
        follow,
        tail_lines,
        ..MachineLogs::default()
    }
}

/// A service that has no log has no lines.
async fn backlog(
    client: &MachineServiceClient<Channel>,
    service: &str,
    tail_lines: i32,
) -> Result<Vec<LogEntry>, Status> {
    let mut bytes = match client.clone().logs(wanted(service, false, tail_lines)).await {
        Ok(bytes) => bytes.into_inner(),
        Err(status) => return known(service, status).map(|()| Vec::new()),
    };
    let (mut lines, mut entries) = (Lines::of(service), Vec::new());
    while let Some(piece) = bytes.message().await? {
        entries.extend(lines.take(&piece.bytes));
    }
    entries.extend(lines.rest());
    Ok(entries)
}

type Entries = Pin<Box<dyn Stream<Item = Result<LogsResponse, Status>> + Send>>;

async fn follow(client: &MachineServiceClient<Channel>, service: &str) -> Result<Entries, Status> {
    let bytes = match client.clone().logs(wanted(service, true, 0)).await {
        Ok(bytes) => bytes.into_inner(),
        Err(status) => return known(service, status).map(|()| stream::pending().boxed()),
    };
    let lines = Mutex::new(Lines::of(service));
    let entries = bytes.flat_map(move |piece| {
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = match piece {
            Ok(piece) => lines.take(&piece.bytes).into_iter().map(Ok).collect(),
            Err(status) => vec![Err(status)],
        };
        stream::iter(entries)
    });
    let told = |entry: Result<LogEntry, Status>| {
        entry.map(|entry| LogsResponse { backlog_entries: vec![], stream_entries: vec![entry] })
    };
    Ok(entries.map(told).ready_chunks(AHEAD).flat_map(stream::iter).boxed())
}

/// machined says so of a log that there is not.
fn known(service: &str, status: Status) -> Result<(), Status> {
    if status.message().contains("was not registered") {
        tracing::debug!(service, "has no log");
        return Ok(());
    }
    Err(status)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn ends_are_understood_or_refused_with_the_code_of_the_interface() {
        let end = |kind: i32, next: i32| {
            understand(&RebootRequest { r#type: kind, next_boot: next }).map_err(|it| it.code())
        };
        for (kind, next, expected) in [
            (1, 0, Ok(End::Reboot)),
            (3, 0, Ok(End::PowerOff)),
            (0, 0, Err(Code::Unimplemented)),
            (9, 0, Err(Code::Unimplemented)),
            (1, 9, Err(Code::Unimplemented)),
            (1, 1, Err(Code::Unavailable)),
            (1, 2, Err(Code::Unimplemented)),
            (2, 2, Err(Code::InvalidArgument)),
            (2, 0, Err(Code::Unavailable)),
        ] {
            assert_eq!(end(kind, next), expected, "{kind} {next}");
        }
    }

    #[test]
    fn an_update_names_its_image_by_digest() {
        let image = OsImageRef {
            scheme: "https".to_owned(),
            host: "images.example.org".to_owned(),
            repository: "os".to_owned(),
            tag: String::new(),
            digest: format!("sha256:{}", "a".repeat(64)),
        };
        let with = |mode, os_image| UpdateNodeRequest { activation_mode: mode, os_image };
        assert_eq!(check_update(&with(2, Some(image.clone()))), Ok(()));
        let short = OsImageRef { digest: "sha256:ab".to_owned(), ..image.clone() };
        let foreign = OsImageRef { scheme: "ftp".to_owned(), ..image.clone() };
        let nowhere = OsImageRef { host: String::new(), ..image.clone() };
        for request in [
            with(0, Some(image.clone())),
            with(7, Some(image)),
            with(1, None),
            with(1, Some(short)),
            with(1, Some(foreign)),
            with(1, Some(nowhere)),
        ] {
            assert!(check_update(&request).is_err(), "{request:?}");
        }
    }
}
