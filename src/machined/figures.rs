//! Parts of machined for `benches/` and for tests that need a process of their own.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use orlop_proto::common::Data;
use orlop_proto::machine as proto;
use orlop_proto::machine::machine_service_server::{MachineService, MachineServiceServer};
use orlop_rt::CancellationToken;
use tonic::{Request, Response, Status};

use crate::api;
use crate::events::Events;

/// Lists the processes of this host as the API does; how many they are.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn processes() -> io::Result<usize> {
    Ok(api::host::processes()?.len())
}

/// The machine API of a node that has nothing but events.
#[derive(Clone, Debug)]
pub struct EventServer {
    events: Events,
}

impl EventServer {
    /// One that nothing has happened to yet.
    #[expect(clippy::new_without_default, reason = "a server is no value")]
    #[must_use]
    pub fn new() -> Self {
        Self { events: Events::new([0; 3]) }
    }

    /// Serves on `socket` until `shutdown`, as machined does.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn serve(&self, socket: &Path, shutdown: CancellationToken) -> io::Result<()> {
        let incoming = orlop_rpc::unix::listen(socket)?;
        let service = MachineServiceServer::new(self.clone());
        let grace = Duration::ZERO;
        orlop_rpc::serve(service, incoming, shutdown, grace).await;
        Ok(())
    }

    /// A service's state changes.
    pub fn publish(&self, message: &str) {
        self.events.publish(&proto::ServiceStateEvent {
            service: "containerd".to_owned(),
            action: proto::service_state_event::Action::Running.into(),
            message: message.to_owned(),
        });
    }

    /// Who follows the events now.
    #[must_use]
    pub fn readers(&self) -> usize {
        self.events.counts().readers
    }
}

/// The machine API of a node that has nothing but memory, and files to copy.
#[derive(Debug)]
pub struct MachineServer {
    threads: api::Threads,
}

impl MachineServer {
    /// Serves on `socket` until `shutdown`, as machined does.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn serve(socket: &Path, shutdown: CancellationToken) -> io::Result<()> {
        let incoming = orlop_rpc::unix::listen(socket)?;
        let service = MachineServiceServer::new(Self { threads: api::Threads::new() });
        let grace = Duration::ZERO;
        orlop_rpc::serve(service, incoming, shutdown, grace).await;
        Ok(())
    }
}

#[tonic::async_trait]
impl MachineService for MachineServer {
    async fn memory(&self, _: Request<()>) -> Result<Response<proto::MemoryResponse>, Status> {
        Ok(Response::new(api::memory()?))
    }

    async fn copy(
        &self,
        request: Request<proto::CopyRequest>,
    ) -> Result<Response<Copying>, Status> {
        let bytes = api::copy(&self.threads, request.into_inner()).await?;
        Ok(Response::new(Box::pin(bytes)))
    }
}

type Copying = Pin<Box<dyn Stream<Item = Result<Data, Status>> + Send>>;
type Following = Pin<Box<dyn Stream<Item = Result<proto::Event, Status>> + Send>>;

#[tonic::async_trait]
impl MachineService for EventServer {
    async fn events(
        &self,
        request: Request<proto::EventsRequest>,
    ) -> Result<Response<Following>, Status> {
        let events = api::events::follow(&self.events, request.get_ref())?;
        Ok(Response::new(Box::pin(events)))
    }
}
