//! `nsp.v1` as it is served: targets and configuration, each watch latest-wins (spec/ambassador §5.1, §5.3).

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::Request as HttpRequest;
use orlop_proto::Encoded;
use orlop_proto::nsp::v1::configuration_manager_server::{
    ConfigurationManager, ConfigurationManagerServer,
};
use orlop_proto::nsp::v1::target_registry_server::{TargetRegistry, TargetRegistryServer};
use orlop_proto::nsp::v1::{
    Attractor, AttractorResponse, Conduit, ConduitResponse, Flow, FlowResponse, Gateway,
    GatewayResponse, Stream, StreamResponse, Target, Trench, TrenchResponse, Vip, VipResponse,
};
use orlop_rpc::Routes;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, BoxStream};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};
use tower::Service;

use crate::configuration::Configuration;
use crate::registry::Refusal;
use crate::selection::Filter;
use crate::targets::{Error, Targets};

/// Bytes of a message that a caller may send: a target is small.
const MAX_MESSAGE: usize = 64 << 10;

/// Both services.
#[must_use]
pub fn routes(targets: Arc<Targets>, configuration: watch::Receiver<Arc<Configuration>>) -> Routes {
    let registry = TargetRegistryServer::new(Calls(Arc::clone(&targets)))
        .max_decoding_message_size(MAX_MESSAGE);
    let manager = ConfigurationManagerServer::new(Manager(configuration))
        .max_decoding_message_size(MAX_MESSAGE);
    Routes::new(Registry { calls: registry, watching: Watching(targets) }).add_service(manager)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Refused(Refusal::Any | Refusal::Nul) => Self::invalid_argument(text),
            Error::Refused(Refusal::Taken(_)) => Self::already_exists(text),
            Error::Stopping => Self::unavailable(text),
        }
    }
}

/// Register and Unregister.
#[derive(Debug)]
struct Calls(Arc<Targets>);

#[tonic::async_trait]
impl TargetRegistry for Calls {
    async fn register(&self, request: Request<Target>) -> Result<Response<()>, Status> {
        self.0.register(request.into_inner(), Instant::now()).await?;
        Ok(Response::new(()))
    }

    async fn unregister(&self, request: Request<Target>) -> Result<Response<()>, Status> {
        self.0.unregister(&request.into_inner()).await?;
        Ok(Response::new(()))
    }
}

/// `nsp.v1.TargetRegistry`: its watch is answered with bytes that all who ask for the same share.
#[derive(Clone, Debug)]
struct Registry {
    calls: TargetRegistryServer<Calls>,
    watching: Watching,
}

impl NamedService for Registry {
    const NAME: &'static str = <TargetRegistryServer<Calls> as NamedService>::NAME;
}

impl Service<HttpRequest<Body>> for Registry {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        if request.uri().path() != "/nsp.v1.TargetRegistry/Watch" {
            return self.calls.call(request);
        }
        let watching = self.watching.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Encoded::<Target>::default())
                .apply_max_message_size_config(Some(MAX_MESSAGE), None);
            Ok(grpc.server_streaming(watching, request).await)
        })
    }
}

#[derive(Clone, Debug)]
struct Watching(Arc<Targets>);

impl ServerStreamingService<Target> for Watching {
    type Response = Bytes;
    type ResponseStream = BoxStream<Bytes>;
    type Future = BoxFuture<Response<BoxStream<Bytes>>, Status>;

    fn call(&mut self, request: Request<Target>) -> Self::Future {
        let lists = WatchStream::new(self.0.watch(request.into_inner())).map(Ok);
        Box::pin(async { Ok(Response::new(Box::pin(lists) as BoxStream<Bytes>)) })
    }
}

#[derive(Debug)]
struct Manager(watch::Receiver<Arc<Configuration>>);

impl Manager {
    /// What is chosen of the configuration: as it is, and whenever that is something else.
    fn chosen<R: PartialEq + Clone + Send + 'static>(
        &self,
        choose: impl Fn(&Configuration) -> R + Send + 'static,
    ) -> Response<BoxStream<R>> {
        let mut told = None;
        let changes = WatchStream::new(self.0.clone()).filter_map(move |configuration| {
            let now = choose(&configuration);
            if told.as_ref() == Some(&now) {
                return None;
            }
            told = Some(now.clone());
            Some(Ok(now))
        });
        Response::new(Box::pin(changes))
    }
}

fn those<T: Filter + Clone>(all: &[T], filter: &T) -> Vec<T> {
    all.iter().filter(|one| filter.asks_for(one)).cloned().collect()
}

#[tonic::async_trait]
impl ConfigurationManager for Manager {
    /// Of several trenches, the first that fits: the answer has room for one.
    async fn watch_trench(
        &self,
        request: Request<Trench>,
    ) -> Result<Response<BoxStream<TrenchResponse>>, Status> {
        let filter = request.into_inner();
        Ok(self.chosen(move |all| TrenchResponse {
            trench: those(&all.trenches, &filter).into_iter().next(),
        }))
    }

    async fn watch_conduit(
        &self,
        request: Request<Conduit>,
    ) -> Result<Response<BoxStream<ConduitResponse>>, Status> {
        let filter = request.into_inner();
        Ok(self.chosen(move |all| ConduitResponse { conduits: those(&all.conduits, &filter) }))
    }

    async fn watch_stream(
        &self,
        request: Request<Stream>,
    ) -> Result<Response<BoxStream<StreamResponse>>, Status> {
        let filter = request.into_inner();
        Ok(self.chosen(move |all| StreamResponse { streams: those(&all.streams, &filter) }))
    }

    async fn watch_flow(
        &self,
        request: Request<Flow>,
    ) -> Result<Response<BoxStream<FlowResponse>>, Status> {
        let filter = request.into_inner();
        Ok(self.chosen(move |all| FlowResponse { flows: those(&all.flows, &filter) }))
    }

    async fn watch_vip(
        &self,
        request: Request<Vip>,
    ) -> Result<Response<BoxStream<VipResponse>>, Status> {
        let filter = request.into_inner();
        Ok(self.chosen(move |all| VipResponse { vips: those(&all.vips, &filter) }))
    }

    async fn watch_attractor(
        &self,
        request: Request<Attractor>,
    ) -> Result<Response<BoxStream<AttractorResponse>>, Status> {
        let filter = request.into_inner();
        let choose = move |all: &Configuration| AttractorResponse {
            attractors: those(&all.attractors, &filter),
        };
        Ok(self.chosen(choose))
    }

    async fn watch_gateway(
        &self,
        request: Request<Gateway>,
    ) -> Result<Response<BoxStream<GatewayResponse>>, Status> {
        let filter = request.into_inner();
        Ok(self.chosen(move |all| GatewayResponse { gateways: those(&all.gateways, &filter) }))
    }
}
