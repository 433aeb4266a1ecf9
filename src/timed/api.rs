//! `time.TimeService` and `health.Health` (node-api §5.7) on the unix socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_config::machine::TimeServer;
use orlop_proto::health::health_check::ServingStatus;
use orlop_proto::health::health_server::{Health, HealthServer};
use orlop_proto::health::ready_check::ReadyStatus;
use orlop_proto::health::{
    HealthCheck, HealthCheckResponse, HealthWatchRequest, ReadyCheck, ReadyCheckResponse,
};
use orlop_proto::time::time_service_server::{TimeService, TimeServiceServer};
use orlop_proto::time::{Time, TimeRequest, TimeResponse};
use orlop_rt::CancellationToken;
use prost_types::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::IntervalStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::Error;
use crate::driver;
use crate::machine::View;
use crate::names::Names;

/// Servers are asked again and again for so long; clients wait for twice as long.
const LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// Answers on the socket `path` until `shutdown`.
pub(crate) async fn serve(
    path: PathBuf,
    api: Api,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let connections =
        orlop_rpc::unix::listen(&path).map_err(|source| Error::Listen { path, source })?;
    orlop_rpc::server()
        .add_service(TimeServiceServer::new(api.clone()))
        .add_service(HealthServer::new(api))
        .serve_with_incoming_shutdown(connections, shutdown.cancelled_owned())
        .await
        .map_err(Error::Serve)
}

/// What calls are answered from.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) servers: Arc<[TimeServer]>,
    pub(crate) names: Arc<Names>,
    pub(crate) port: u16,
    pub(crate) view: watch::Receiver<View>,
    /// When nobody waits for the right time any more.
    pub(crate) patience: Instant,
}

impl Api {
    async fn ask(&self, servers: &[TimeServer]) -> Result<Response<TimeResponse>, Status> {
        let mut why = "no answer in time".to_owned();
        let asking = async {
            loop {
                match driver::ask_any(servers, &self.names, self.port).await {
                    Ok(answer) => return answer,
                    Err(failures) => why = failures,
                }
                sleep(RETRY).await;
            }
        };
        let Ok((server, answer)) = timeout(LIMIT, asking).await else {
            return Err(Status::unavailable(format!("error querying NTP server: {why}")));
        };
        let offset = answer.sample.offset;
        let apart = Duration::try_from_secs_f64(offset.abs()).unwrap_or_default();
        let remote = if offset < 0.0 { answer.at - apart } else { answer.at + apart };
        let message = Time {
            metadata: None,
            server,
            localtime: Some(Timestamp::from(answer.at)),
            remotetime: Some(Timestamp::from(remote)),
        };
        Ok(Response::new(TimeResponse { messages: vec![message] }))
    }
}

#[tonic::async_trait]
impl TimeService for Api {
    async fn time(&self, _: Request<()>) -> Result<Response<TimeResponse>, Status> {
        self.ask(&self.servers).await
    }

    async fn time_check(
        &self,
        request: Request<TimeRequest>,
    ) -> Result<Response<TimeResponse>, Status> {
        let server = request.into_inner().server;
        let server = server
            .parse::<TimeServer>()
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.ask(&[server]).await
    }
}

#[tonic::async_trait]
impl Health for Api {
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

    /// Whether those who wait for the right time may go on: it is right, or their patience is at an
    /// end (`machine.time.bootTimeout`, spec §9.6).
    async fn ready(&self, _: Request<()>) -> Result<Response<ReadyCheckResponse>, Status> {
        let ready = self.view.borrow().synchronized || Instant::now() >= self.patience;
        let status = if ready { ReadyStatus::Ready } else { ReadyStatus::NotReady };
        let messages = vec![ReadyCheck { status: status.into() }];
        Ok(Response::new(ReadyCheckResponse { messages }))
    }
}

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { messages: vec![HealthCheck { status: ServingStatus::Serving.into() }] }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn api(patience: Instant) -> (watch::Sender<View>, Api) {
        let (sender, view) = watch::channel(View::default());
        let names = Names { hosts: "/dev/null".into(), resolv_conf: "/dev/null".into() };
        (sender, Api { servers: [].into(), names: names.into(), port: 0, view, patience })
    }

    async fn ready(api: &Api) -> bool {
        let answer = api.ready(Request::new(())).await.unwrap().into_inner();
        answer.messages[0].status() == ReadyStatus::Ready
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_ready_when_the_clock_is_right_or_patience_ends() {
        let (view, api) = api(Instant::now() + Duration::from_secs(30));
        assert!(!ready(&api).await);
        view.send_replace(View { synchronized: true, ..View::default() });
        assert!(ready(&api).await);
        view.send_replace(View::default());
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(ready(&api).await);
    }

    #[tokio::test]
    async fn what_is_no_server_is_refused() {
        let (_view, api) = api(Instant::now());
        for server in ["", "a b", "/dev/mem"] {
            let request = Request::new(TimeRequest { server: server.to_owned() });
            let status = api.time_check(request).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{server}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_to_ask_is_told_after_a_while() {
        let (_view, api) = api(Instant::now());
        let request = Request::new(TimeRequest { server: "ntp.example.org".to_owned() });
        let status = api.time_check(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(status.message().contains("no resolver in /dev/null"), "{status}");
    }
}
