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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use http::uri::PathAndQuery;
    use prost::Message as _;
    use prost::bytes::{Buf as _, BufMut as _};
    use tonic::client::Grpc;
    use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

    use super::*;

    /// Messages as they are on the wire.
    #[derive(Clone, Copy)]
    struct Raw;

    impl Codec for Raw {
        type Encode = Vec<u8>;
        type Decode = Vec<u8>;
        type Encoder = Self;
        type Decoder = Self;

        fn encoder(&mut self) -> Self {
            *self
        }

        fn decoder(&mut self) -> Self {
            *self
        }
    }

    impl Encoder for Raw {
        type Item = Vec<u8>;
        type Error = Status;

        fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
            buffer.put_slice(&item);
            Ok(())
        }
    }

    impl Decoder for Raw {
        type Item = Vec<u8>;
        type Error = Status;

        fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
            let mut item = vec![0; buffer.remaining()];
            buffer.copy_to_slice(&mut item);
            Ok(Some(item))
        }
    }

    /// Checklist 12 of the specification, over a real socket.
    #[tokio::test]
    async fn fields_that_only_newer_clients_know_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("machine.sock");
        let server = EventServer::new();
        ["one", "two", "three"].iter().for_each(|message| server.publish(message));
        // A field of each kind on the wire, beside `tail_events` (1): varint, fixed64, bytes, fixed32.
        let mut request = vec![0x08, 2];
        for (field, value) in [
            (1000_u32 << 3, &[0x96, 0x01][..]),
            ((1001 << 3) | 1, &[1, 2, 3, 4, 5, 6, 7, 8]),
            ((1002 << 3) | 2, &[3, b'n', b'e', b'w']),
            ((1003 << 3) | 5, &[1, 2, 3, 4]),
        ] {
            prost::encoding::encode_varint(field.into(), &mut request);
            request.extend(value);
        }
        let shutdown = CancellationToken::new();
        let asking = async {
            while !socket.exists() {
                tokio::task::yield_now().await;
            }
            let mut client = Grpc::new(orlop_rpc::unix::channel(&socket));
            client.ready().await.unwrap();
            let path = PathAndQuery::from_static("/machine.MachineService/Events");
            let answer = client.server_streaming(Request::new(request), path, Raw).await.unwrap();
            let mut stream = answer.into_inner();
            for message in ["two", "three"] {
                let event = stream.message().await.unwrap().unwrap();
                let event = proto::Event::decode(&event[..]).unwrap().data.unwrap();
                let event = proto::ServiceStateEvent::decode(&event.value[..]).unwrap();
                assert_eq!(event.message, message);
            }
            drop(stream);
            shutdown.cancel();
        };
        let (served, ()) = tokio::join!(server.serve(&socket, shutdown.clone()), asking);
        served.unwrap();
    }
}
