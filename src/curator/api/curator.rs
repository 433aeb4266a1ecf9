//! `Curator`: what nodes ask.

use std::sync::Arc;

use orlop_proto::metropolis::node::core::curator::proto::api::curator_server::Curator as Service;
use orlop_proto::metropolis::node::core::curator::proto::api::{
    CommitNodeRequest, CommitNodeResponse, GetConsensusStatusRequest, GetConsensusStatusResponse,
    HeartbeatRequest, HeartbeatResponse, IssueCertificateRequest, IssueCertificateResponse,
    JoinNodeRequest, JoinNodeResponse, RegisterNodeRequest, RegisterNodeResponse,
    UpdateNodeClusterNetworkingRequest, UpdateNodeClusterNetworkingResponse,
    UpdateNodeStatusRequest, UpdateNodeStatusResponse, WatchEvent, WatchRequest,
};
use orlop_rpc::places::Source;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::{caller, nodes, source, watching};
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

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<BoxStream<WatchEvent>>, Status> {
        watching::watch(&self.0, request).await
    }

    async fn heartbeat(
        &self,
        request: Request<Streaming<HeartbeatRequest>>,
    ) -> Result<Response<BoxStream<HeartbeatResponse>>, Status> {
        nodes::heartbeat(&self.0, request)
    }

    async fn update_node_status(
        &self,
        request: Request<UpdateNodeStatusRequest>,
    ) -> Result<Response<UpdateNodeStatusResponse>, Status> {
        nodes::update_status(&self.0, request).await
    }

    async fn update_node_cluster_networking(
        &self,
        request: Request<UpdateNodeClusterNetworkingRequest>,
    ) -> Result<Response<UpdateNodeClusterNetworkingResponse>, Status> {
        nodes::update_networking(&self.0, request).await
    }

    async fn issue_certificate(
        &self,
        request: Request<IssueCertificateRequest>,
    ) -> Result<Response<IssueCertificateResponse>, Status> {
        nodes::issue_certificate(&self.0, request).await
    }

    async fn get_consensus_status(
        &self,
        _: Request<GetConsensusStatusRequest>,
    ) -> Result<Response<GetConsensusStatusResponse>, Status> {
        nodes::consensus_status(&self.0).await
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
