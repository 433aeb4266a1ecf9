//! What apid tells of itself: `orlop.v1alpha1.DoorService`, the one service it answers and does not hand on.

use std::sync::Arc;

use orlop_proto::orlop::v1alpha1::door_service_server::{DoorService, DoorServiceServer};
use orlop_proto::orlop::v1alpha1::{Door, DoorResponse};
use orlop_rpc::tls::Tally;
use tonic::{Request, Response, Status};

/// `package.Service`.
pub(crate) const SERVICE: &str = "orlop.v1alpha1.DoorService";

/// Answers from what the listener counts.
#[derive(Clone, Debug)]
pub(crate) struct Figures(Arc<Tally>);

impl Figures {
    pub(crate) fn server(tally: Arc<Tally>) -> DoorServiceServer<Self> {
        DoorServiceServer::new(Self(tally))
    }
}

#[tonic::async_trait]
impl DoorService for Figures {
    async fn door(&self, _: Request<()>) -> Result<Response<DoorResponse>, Status> {
        let (failed_handshakes, turned_away) = (self.0.failed(), self.0.turned_away());
        let door = Door { metadata: None, failed_handshakes, turned_away };
        Ok(Response::new(DoorResponse { messages: vec![door] }))
    }
}
