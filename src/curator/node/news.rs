//! What machined is told on a socket: where the node stands with its cluster, and its roles.

use std::path::PathBuf;

use futures_util::StreamExt as _;
use orlop_proto::orlop::inside::Standing;
use orlop_proto::orlop::inside::cluster_news_server::{ClusterNews, ClusterNewsServer};
use orlop_rpc::Routes;
use orlop_rt::CancellationToken;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::Error;

struct Teller(watch::Receiver<Standing>);

#[tonic::async_trait]
impl ClusterNews for Teller {
    async fn follow(&self, _: Request<()>) -> Result<Response<BoxStream<Standing>>, Status> {
        Ok(Response::new(Box::pin(WatchStream::new(self.0.clone()).map(Ok))))
    }
}

/// Tells until `shutdown`.
pub(super) async fn serve(
    socket: PathBuf,
    standing: watch::Receiver<Standing>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let service = Routes::new(ClusterNewsServer::new(Teller(standing)));
    orlop_rpc::health::serve(socket, service, || true, shutdown).await.map_err(Error::Socket)
}
