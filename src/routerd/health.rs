//! `grpc.health.v1` for all daemons behind routerd.
//!
//! A service is well when its daemon answers: `SERVING` by its own `health.Health`, or that it has no
//! such service, which only a server that runs can say. The node as a whole (the empty name) is well when all
//! daemons are that have a socket; one that is not part of this node never made any.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use orlop_proto::grpc::health::v1::health_check_response::ServingStatus;
use orlop_proto::grpc::health::v1::health_server::Health;
use orlop_proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use orlop_proto::health::health_check::ServingStatus as Inner;
use orlop_proto::health::health_client::HealthClient;
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Response, Status};

use crate::table::{self, Daemon};
use crate::{Daemons, reflection};

/// How long a daemon may take to say how it is.
const LIMIT: Duration = Duration::from_secs(5);

/// Asks the daemons.
#[derive(Clone)]
pub(crate) struct Checks {
    daemons: Arc<Daemons>,
    /// How often those who watch are looked after.
    every: Duration,
}

impl Checks {
    pub(crate) fn new(daemons: Arc<Daemons>, every: Duration) -> Self {
        Self { daemons, every }
    }

    /// How a service is. `None`: nobody serves it.
    async fn status(&self, service: &str) -> Option<ServingStatus> {
        let serving = match service {
            "" => {
                let present =
                    Daemon::ALL.into_iter().filter(|daemon| self.daemons.present(*daemon));
                join_all(present.map(|daemon| self.answers(daemon))).await.iter().all(|well| *well)
            }
            // Ours: who asks is answered.
            "grpc.health.v1.Health" | reflection::V1 | reflection::V1ALPHA => true,
            _ => self.answers(table::daemon(service)?).await,
        };
        Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
    }

    async fn answers(&self, daemon: Daemon) -> bool {
        let mut client = HealthClient::new(self.daemons.channel(daemon));
        match timeout(LIMIT, client.check(())).await {
            Ok(Ok(answer)) => {
                let checks = answer.into_inner().messages;
                checks.iter().all(|check| check.status() == Inner::Serving)
            }
            Ok(Err(status)) => status.code() == Code::Unimplemented,
            Err(_) => false,
        }
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checks").field("every", &self.every).finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl Health for Checks {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let Some(status) = self.status(&service).await else {
            return Err(Status::not_found(format!("service {service} is not defined")));
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<BoxStream<'static, Result<HealthCheckResponse, Status>>>, Status> {
        let (checks, service) = (self.clone(), request.into_inner().service);
        let changes =
            stream::unfold((checks, service, None), |(checks, service, told)| async move {
                loop {
                    if told.is_some() {
                        sleep(checks.every).await;
                    }
                    let now =
                        checks.status(&service).await.unwrap_or(ServingStatus::ServiceUnknown);
                    if told != Some(now) {
                        let answer = HealthCheckResponse { status: now.into() };
                        return Some((Ok(answer), (checks, service, Some(now))));
                    }
                }
            });
        Ok(Response::new(changes.boxed()))
    }
}
