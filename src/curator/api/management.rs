//! `Management`: what operators ask.

use std::sync::Arc;

use orlop_proto::metropolis::proto::api::management_server::Management as Service;
use orlop_proto::metropolis::proto::api::{GetRegisterTicketRequest, GetRegisterTicketResponse};
use tonic::{Request, Response, Status};

use crate::office::Office;
use crate::ticket;

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Operators(pub(super) Arc<Office>);

#[tonic::async_trait]
impl Service for Operators {
    async fn get_register_ticket(
        &self,
        _: Request<GetRegisterTicketRequest>,
    ) -> Result<Response<GetRegisterTicketResponse>, Status> {
        let ticket = ticket::current(&self.0).await?;
        Ok(Response::new(GetRegisterTicketResponse { ticket }))
    }
}
