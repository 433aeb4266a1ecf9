//! What networkd and timed serve on their sockets: what they are for, and `health.Health`, by which
//! machined knows whether they are ready (node-api §5.7).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_proto::health::health_check::ServingStatus;
use orlop_proto::health::health_server::{Health, HealthServer};
use orlop_proto::health::ready_check::ReadyStatus;
use orlop_proto::health::{
    HealthCheck, HealthCheckResponse, HealthWatchRequest, ReadyCheck, ReadyCheckResponse,
};
use orlop_rt::CancellationToken;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::IntervalStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::Routes;

/// Calls under way may take so long to end when the daemon does.
const GRACE: Duration = Duration::from_secs(2);

/// Answers on the socket `path` until `shutdown`: `service`, and `health.Health` from `ready`.
///
/// # Errors
/// When there can be no socket, with its path.
pub async fn serve(
    path: PathBuf,
    service: Routes,
    ready: impl Fn() -> bool + Send + Sync + 'static,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let incoming = crate::unix::listen(&path)?;
    let service = service.add_service(HealthServer::new(Told(Arc::new(ready))));
    crate::serve(service, incoming, shutdown, GRACE).await;
    Ok(())
}

/// Who answers is alive; whether it is ready, it says itself.
struct Told(Arc<dyn Fn() -> bool + Send + Sync>);

#[tonic::async_trait]
impl Health for Told {
    async fn check(&self, _: Request<()>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(serving()))
    }

    async fn watch(
        &self,
        request: Request<HealthWatchRequest>,
    ) -> Result<Response<BoxStream<HealthCheckResponse>>, Status> {
        let secs = u64::try_from(request.into_inner().interval_seconds).unwrap_or_default();
        let ticks = tokio::time::interval(Duration::from_secs(secs.clamp(1, 3600)));
        Ok(Response::new(Box::pin(IntervalStream::new(ticks).map(|_| Ok(serving())))))
    }

    async fn ready(&self, _: Request<()>) -> Result<Response<ReadyCheckResponse>, Status> {
        let status = if (self.0)() { ReadyStatus::Ready } else { ReadyStatus::NotReady };
        let messages = vec![ReadyCheck { status: status.into() }];
        Ok(Response::new(ReadyCheckResponse { messages }))
    }
}

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { messages: vec![HealthCheck { status: ServingStatus::Serving.into() }] }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use orlop_proto::health::health_client::HealthClient;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;

    use super::*;

    /// Polled together with a test, which ends it.
    async fn beside<T>(
        serving: impl Future<Output = io::Result<()>>,
        test: impl Future<Output = T>,
    ) -> T {
        tokio::select! {
            biased;
            ended = serving => panic!("{ended:?}"),
            answer = test => answer,
        }
    }

    #[tokio::test]
    async fn it_is_ready_when_it_says_so_and_tells_again_and_again_that_it_lives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x/x.sock");
        let ready = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ready);
        let told = move || told.load(Ordering::Relaxed);
        let serving = serve(path.clone(), Routes::default(), told, CancellationToken::new());
        let test = async {
            let mut client = HealthClient::new(crate::unix::channel(path));
            let answer = client.ready(()).await.unwrap().into_inner();
            assert_eq!(answer.messages[0].status(), ReadyStatus::NotReady);
            ready.store(true, Ordering::Relaxed);
            let answer = client.ready(()).await.unwrap().into_inner();
            assert_eq!(answer.messages[0].status(), ReadyStatus::Ready);
            assert_eq!(client.check(()).await.unwrap().into_inner(), super::serving());
            let every = HealthWatchRequest { interval_seconds: -1 };
            let mut watched = client.watch(every).await.unwrap().into_inner();
            for _ in 0..2 {
                assert_eq!(watched.message().await.unwrap(), Some(super::serving()));
            }
        };
        beside(serving, test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_speaks_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let serving = serve(path.clone(), Routes::default(), || true, CancellationToken::new());
        let test = async {
            let mut silent = UnixStream::connect(&path).await.unwrap();
            // Time is passed over while nothing else can happen.
            assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0, "the server hangs up");
        };
        beside(serving, test).await;
    }

    #[tokio::test]
    async fn a_socket_that_cannot_be_is_told_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "").unwrap();
        let served = serve(path.clone(), Routes::default(), || true, CancellationToken::new());
        let error = served.await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("listen on {}", path.display())), "{error}");
    }
}
