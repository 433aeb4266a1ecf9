//! How a daemon in a pod is, for Kubernetes' probes: `grpc.health.v1` with names that are made of members
//! (spec/ambassador §7.4).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orlop_proto::grpc::health::v1::health_check_response::ServingStatus;
use orlop_proto::grpc::health::v1::health_client::HealthClient;
use orlop_proto::grpc::health::v1::health_server::Health;
use orlop_proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use tokio::sync::watch;
use tokio::time::{interval, timeout};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tonic::codegen::BoxStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// A name with the members that must all serve for it to serve; without members it always does.
pub type Service = (&'static str, &'static [&'static str]);

/// What each member is; cheap to clone.
#[derive(Clone, Debug)]
pub struct Board {
    services: Arc<[Service]>,
    /// Members by name: does it serve?
    members: Arc<watch::Sender<BTreeMap<&'static str, bool>>>,
}

impl Board {
    /// The empty name always serves; members do not until they are [set](Self::set).
    #[must_use]
    pub fn new(services: &[Service]) -> Self {
        let members = services.iter().flat_map(|(_, members)| *members);
        let members = members.map(|member| (*member, false)).collect();
        Self { services: services.into(), members: Arc::new(watch::channel(members).0) }
    }

    /// Says whether a member serves. What is no member, but made of some, cannot be set.
    pub fn set(&self, member: &str, serves: bool) {
        self.members.send_if_modified(|members| match members.get_mut(member) {
            Some(known) if *known != serves => {
                *known = serves;
                true
            }
            _ => false,
        });
    }

    /// `None`: nobody knows it.
    fn status(&self, name: &str) -> Option<ServingStatus> {
        let members = self.members.borrow();
        let serves = |member: &str| members.get(member).copied();
        let serving = match self.services.iter().find(|(service, _)| *service == name) {
            Some((_, parts)) => parts.iter().all(|part| serves(part) == Some(true)),
            None if name.is_empty() => true,
            None => serves(name)?,
        };
        Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

/// Asks a server about its empty service for as long as it is asked to, and says on the board whether it answers.
/// `limit`: how long an answer may take.
pub async fn probe(server: Channel, limit: Duration, board: &Board, member: &str) {
    let mut client = HealthClient::new(server);
    let mut every = interval(PROBE_EVERY);
    loop {
        every.tick().await;
        let asked = client.check(HealthCheckRequest { service: String::new() });
        let answer = timeout(limit.min(PROBE_LIMIT), asked).await;
        board.set(member, matches!(answer, Ok(Ok(_))));
    }
}

/// How often, and how long all of it may take.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_LIMIT: Duration = Duration::from_secs(4);

#[tonic::async_trait]
impl Health for Board {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let status =
            self.status(&name).ok_or_else(|| Status::not_found(format!("no service {name:?}")))?;
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<BoxStream<HealthCheckResponse>>, Status> {
        let (board, name) = (self.clone(), request.into_inner().service);
        let mut told = None;
        let changes = WatchStream::new(self.members.subscribe()).filter_map(move |_| {
            let status = board.status(&name).unwrap_or(ServingStatus::ServiceUnknown);
            (told.replace(status) != Some(status))
                .then(|| Ok(HealthCheckResponse { status: status.into() }))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn request(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    #[tokio::test]
    async fn what_is_made_of_members_serves_when_they_do() {
        let board = Board::new(&[("Readiness", &[]), ("Liveness", &["NSP"])]);
        let rows = [("", 1), ("Readiness", 1), ("Liveness", 2), ("NSP", 2)];
        for (name, status) in rows {
            assert_eq!(
                board.check(request(name)).await.unwrap().into_inner().status,
                status,
                "{name}"
            );
        }
        let unknown = board.check(request("x")).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        let mut watch = board.watch(request("Liveness")).await.unwrap().into_inner();
        let mut next = async || watch.next().await.unwrap().unwrap().status();
        assert_eq!(next().await, ServingStatus::NotServing);
        board.set("Liveness", true);
        board.set("NSP", true);
        assert_eq!(next().await, ServingStatus::Serving);
        board.set("NSP", false);
        assert_eq!(next().await, ServingStatus::NotServing);
        let mut unknown = board.watch(request("x")).await.unwrap().into_inner();
        assert_eq!(unknown.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    }
}
