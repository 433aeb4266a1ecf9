//! `ambassador.v1.Tap` as applications see it (spec/ambassador §2).

use std::sync::Arc;

use orlop_proto::ambassador::v1::tap_server::Tap;
use orlop_proto::ambassador::v1::{Stream, StreamResponse};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::ambassador::{Ambassador, Refusal};
use crate::table::{Name, Unnamed};

/// Answers applications.
#[derive(Clone, Debug)]
pub struct Answers {
    /// What they ask of.
    pub ambassador: Arc<Ambassador>,
    /// Are lists sent again that are as they were?
    pub repeat: bool,
}

impl From<Unnamed> for Status {
    fn from(unnamed: Unnamed) -> Self {
        Self::invalid_argument(unnamed.to_string())
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::failed_precondition(refusal.to_string())
    }
}

#[tonic::async_trait]
impl Tap for Answers {
    async fn open(&self, request: Request<Stream>) -> Result<Response<()>, Status> {
        let name = Name::try_from(request.into_inner())?;
        self.ambassador.open(&name).await?;
        Ok(Response::new(()))
    }

    async fn close(&self, request: Request<Stream>) -> Result<Response<()>, Status> {
        self.ambassador.close(&Name::try_from(request.into_inner())?);
        Ok(Response::new(()))
    }

    async fn watch(
        &self,
        request: Request<Stream>,
    ) -> Result<Response<BoxStream<StreamResponse>>, Status> {
        let (filter, repeat) = (request.into_inner(), self.repeat);
        let mut told = None;
        let tables = WatchStream::new(self.ambassador.listed().watch());
        let lists = tables.filter_map(move |table| {
            let list = table.list(&filter);
            if !repeat && told.as_ref() == Some(&list) {
                return None;
            }
            told = Some(list.clone());
            Some(Ok(StreamResponse { stream_status: list }))
        });
        Ok(Response::new(Box::pin(lists)))
    }
}
