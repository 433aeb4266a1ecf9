//! The node's API on machined's unix socket: proto on one side, the node's own types on the other.
//! [`machine`] is the machine API, [`cluster`], [`images`], [`lifecycle`], [`node`] and [`storage`] are the
//! other services. What a method needs of `/proc` is in [`host`], of containerd in [`containers`] and
//! [`cri`], of files in [`files`] and [`archive`], on [`threads`] of their own.

mod archive;
mod capture;
mod client;
mod cluster;
mod containers;
mod cri;
mod etcd;
pub(crate) mod events;
mod files;
mod generate;
pub(crate) mod host;
mod images;
mod kubeconfig;
mod lifecycle;
mod machine;
mod netstat;
mod node;
mod podlogs;
mod runtime;
mod services;
mod storage;
mod threads;
mod walk;

use std::pin::Pin;
use std::time::Duration;
use std::{fs, io};

use containerd_client::tonic::transport::Channel;
use futures_util::stream::{Stream, StreamExt as _};
use orlop_proto::cluster::cluster_service_server::ClusterServiceServer;
use orlop_proto::common::{Data, Metadata};
use orlop_proto::machine::image_service_server::ImageServiceServer;
use orlop_proto::machine::lifecycle_service_server::LifecycleServiceServer;
use orlop_proto::machine::machine_service_server::MachineServiceServer;
use orlop_proto::machine::{CopyRequest, Memory, MemoryResponse};
use orlop_proto::orlop::v1alpha1::node_service_server::NodeServiceServer;
use orlop_proto::storage::storage_service_server::StorageServiceServer;
use orlop_rpc::Routes;
use orlop_rt::CancellationToken;
use tokio::task::spawn_blocking;
use tonic::codec::CompressionEncoding;
use tonic::{Response, Status};

pub(crate) use threads::Threads;

use crate::node::Node;
use crate::services::CONTAINERD_SOCKET;

/// Where machined's API listens.
pub(crate) const SOCKET: &str = "/system/run/machined/machine.sock";

/// Bytes of a stream that travel in one message; readers do not care.
const CHUNK: usize = 32 << 10;
/// Chunks that wait for a slow reader.
const CHUNKS_AHEAD: usize = 4;
const SYSTEM: &str = "system";
const KUBERNETES: &str = "k8s.io";

type Answer<T> = Result<Response<T>, Status>;
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Streamed<T> = Answer<Items<T>>;

/// Bytes of a request: those of the largest configuration, and a little. PID 1's memory is nobody's to
/// fill.
const REQUEST_LIMIT: usize = (4 << 20) + (64 << 10);
/// Those who follow a log or the events get this long to see the end coming.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until `shutdown`; calls under way may finish.
pub(crate) async fn serve(node: Node, shutdown: CancellationToken) -> io::Result<()> {
    let incoming = orlop_rpc::unix::listen(SOCKET)?;
    let machine = MachineServiceServer::new(machine::Machine::new(node.clone()))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_LIMIT);
    let cluster = ClusterServiceServer::new(cluster::Cluster::new(node.clone()))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_LIMIT);
    let images = ImageServiceServer::new(images::Images { node: node.clone() })
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_LIMIT);
    let lifecycle = LifecycleServiceServer::new(lifecycle::Lifecycle { node: node.clone() })
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_LIMIT);
    let told = NodeServiceServer::new(node::Told { node })
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_LIMIT);
    let storage = StorageServiceServer::new(storage::Storage::new())
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(REQUEST_LIMIT);
    let routes = Routes::new(machine)
        .add_service(cluster)
        .add_service(images)
        .add_service(lifecycle)
        .add_service(storage)
        .add_service(told);
    orlop_rpc::serve(routes, incoming, shutdown, GRACE).await;
    Ok(())
}

/// The archive of what `request` names.
pub(crate) async fn copy(
    threads: &Threads,
    request: CopyRequest,
) -> Result<impl Stream<Item = Result<Data, Status>> + Send + 'static, Status> {
    threads.stream(CHUNKS_AHEAD, move |outlet| archive::copy(outlet, &request)).await
}

pub(crate) fn memory() -> Result<MemoryResponse, Status> {
    let meminfo = host::memory(&read("/proc/meminfo")?);
    let memory = Memory { metadata: None, meminfo: Some(meminfo) };
    Ok(MemoryResponse { messages: vec![memory] })
}

/// A stream that ends with its items, or with the node: who follows must not hold up a shutdown.
fn boxed<T>(
    node: &Node,
    items: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Response<Items<T>> {
    let end = node.shutdown().clone().cancelled_owned();
    Response::new(Box::pin(items.take_until(end)))
}

/// A file of `/proc`; names in it can be of any bytes.
fn read(path: &'static str) -> Result<String, Status> {
    let bytes = fs::read(path).map_err(|error| failed(&format!("read {path}"), error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Status> {
    spawn_blocking(work)
        .await
        .map_err(|error| failed(what, error))?
        .map_err(|error| failed(what, error))
}

async fn containerd() -> Result<Channel, Status> {
    containerd_client::connect(CONTAINERD_SOCKET)
        .await
        .map_err(|error| Status::unavailable(format!("containerd does not answer: {error}")))
}

/// containerd's answers carry another crate's `Status` of the same shape.
fn foreign(status: containerd_client::tonic::Status) -> Status {
    Status::new(status.code(), format!("containerd: {}", status.message()))
}

fn data(bytes: Vec<u8>) -> Data {
    Data { metadata: None, bytes }
}

/// A message of a stream that goes on, about what could not be sent in it.
fn told(error: String) -> Data {
    let metadata = Metadata { hostname: String::new(), error, status: None };
    Data { metadata: Some(metadata), bytes: Vec::new() }
}

fn failed(what: &str, error: impl std::fmt::Display) -> Status {
    Status::unknown(format!("{what}: {error}"))
}

/// The architecture's name as clients of this API know it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
