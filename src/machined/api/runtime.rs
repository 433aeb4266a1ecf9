//! Containers, by the namespace and the driver that is asked for: containerd itself, or its runtime
//! interface.

use std::path::PathBuf;

use orlop_proto::common::ContainerDriver;
use orlop_proto::machine::{ContainerInfo, Stat};
use tonic::Status;

use super::{KUBERNETES, SYSTEM, containerd, containers, cri, foreign};
use crate::services::CONTAINERD_SOCKET;

/// All containers.
pub(super) async fn list(
    name: &str,
    driver: ContainerDriver,
) -> Result<Vec<ContainerInfo>, Status> {
    match (namespace(name, driver)?, driver) {
        (_, ContainerDriver::Cri) => cri::list(runtime()).await,
        (namespace, ContainerDriver::Containerd) => {
            containers::list(containerd().await?, namespace).await.map_err(foreign)
        }
    }
}

/// What they use.
pub(super) async fn stats(name: &str, driver: ContainerDriver) -> Result<Vec<Stat>, Status> {
    match (namespace(name, driver)?, driver) {
        (_, ContainerDriver::Cri) => cri::stats(runtime()).await,
        (namespace, ContainerDriver::Containerd) => {
            containers::stats(containerd().await?, namespace).await.map_err(foreign)
        }
    }
}

/// Ends one, for its owner to start it again.
pub(super) async fn terminate(name: &str, driver: ContainerDriver, id: &str) -> Result<(), Status> {
    match (namespace(name, driver)?, driver) {
        (_, ContainerDriver::Cri) => cri::terminate(runtime(), id).await,
        (namespace, ContainerDriver::Containerd) => {
            let told = |refusal: containerd_client::tonic::Status| match refusal.code() {
                tonic::Code::NotFound => Status::unknown(format!("container {id:?} not found")),
                _ => foreign(refusal),
            };
            containers::terminate(containerd().await?, namespace, id).await.map_err(told)
        }
    }
}

/// Where the logs of a pod's container are.
pub(super) async fn log_folder(
    name: &str,
    driver: ContainerDriver,
    id: &str,
) -> Result<PathBuf, Status> {
    match (namespace(name, driver)?, driver) {
        (_, ContainerDriver::Cri) => cri::log_folder(runtime(), id).await,
        (KUBERNETES, ContainerDriver::Containerd) => {
            containers::log_folder(containerd().await?, id).await
        }
        (other, ContainerDriver::Containerd) => {
            let text = format!("logs of containers in namespace {other:?} are not kept");
            Err(Status::unknown(text))
        }
    }
}

/// The container runtime interface, on the same socket.
fn runtime() -> tonic::transport::Channel {
    orlop_rpc::unix::channel(CONTAINERD_SOCKET)
}

fn namespace(name: &str, driver: ContainerDriver) -> Result<&str, Status> {
    match (name, driver) {
        (KUBERNETES, _) => Ok(KUBERNETES),
        (_, ContainerDriver::Cri) => {
            Err(Status::unknown("CRI inspector is supported only for K8s namespace"))
        }
        ("", ContainerDriver::Containerd) => Ok(SYSTEM),
        // It travels as a header.
        (name, _) if name.bytes().any(|byte| !byte.is_ascii_graphic()) => {
            Err(Status::invalid_argument(format!("{name:?} is no namespace of containerd")))
        }
        (name, ContainerDriver::Containerd) => Ok(name),
    }
}
