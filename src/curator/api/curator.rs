//! `Curator`: what nodes ask.

use std::sync::Arc;

use orlop_proto::metropolis::node::core::curator::proto::api::curator_server::Curator as Service;
use orlop_proto::metropolis::node::core::curator::proto::api::{
    CommitNodeRequest, CommitNodeResponse, JoinNodeRequest, JoinNodeResponse, RegisterNodeRequest,
    RegisterNodeResponse,
};
use orlop_rpc::places::Source;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::{caller, source};
use crate::enrol::{self, Error, Moment};
use crate::office::Office;

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Nodes(pub(super) Arc<Office>);

#[tonic::async_trait]
impl Service for Nodes {
    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        let (caller, moment) = (caller(&request)?, Moment::of(source(&request)));
        let answer = enrol::register(&self.0, &caller, request.get_ref(), moment).await;
        told("RegisterNode", moment.source, answer)
    }

    async fn commit_node(
        &self,
        request: Request<CommitNodeRequest>,
    ) -> Result<Response<CommitNodeResponse>, Status> {
        let (caller, moment) = (caller(&request)?, Moment::of(source(&request)));
        let answer = enrol::commit(&self.0, &caller, request.get_ref(), moment).await;
        told("CommitNode", moment.source, answer)
    }

    async fn join_node(
        &self,
        request: Request<JoinNodeRequest>,
    ) -> Result<Response<JoinNodeResponse>, Status> {
        let (caller, moment) = (caller(&request)?, Moment::of(source(&request)));
        let answer = enrol::join(&self.0, &caller, request.get_ref(), moment).await;
        told("JoinNode", moment.source, answer)
    }
}

/// The answer; why there is none is in the log, unless the caller only has to wait.
fn told<T>(
    method: &'static str,
    source: Source,
    answer: Result<T, Error>,
) -> Result<Response<T>, Status> {
    answer.map(Response::new).map_err(|error| {
        match &error {
            Error::Refused(refused) if refused.is_usual() => {}
            error => warn!(method, peer = %source, why = %orlop_rt::Chain(error), "refused"),
        }
        error.into()
    })
}
