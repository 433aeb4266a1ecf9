//! `CuratorLocal`, which every curator serves: who leads, and whose cluster this is (spec §6.4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream;
use orlop_proto::metropolis::node::core::curator::proto::api::curator_local_server::CuratorLocal;
use orlop_proto::metropolis::node::core::curator::proto::api::{
    GetCaCertificateRequest, GetCaCertificateResponse, GetCurrentLeaderRequest,
    GetCurrentLeaderResponse,
};
use orlop_rpc::tls::Peer;
use tonic::{Request, Response, Status};

use super::Standing;
use crate::names::NodeId;

/// Who leads, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leader {
    /// Its id.
    pub id: NodeId,
    /// The address others reach it by; none before it has told.
    pub host: Option<String>,
    /// The port of its curator.
    pub port: u16,
}

/// The service.
#[derive(Clone, Debug)]
pub struct Local {
    own: NodeId,
    authority: Arc<[u8]>,
    standing: Standing,
}

impl Local {
    /// Of this node, in the cluster of this authority (DER).
    #[must_use]
    pub fn new(own: NodeId, authority: &[u8], standing: Standing) -> Self {
        Self { own, authority: authority.into(), standing }
    }

    /// Who leads, if anybody does.
    #[must_use]
    pub fn leader(&self) -> Option<Leader> {
        self.standing.borrow().clone()
    }

    /// What is answered while `leader` leads.
    fn answer(
        &self,
        leader: Option<&Leader>,
        caller: Option<SocketAddr>,
    ) -> Result<GetCurrentLeaderResponse, Status> {
        let nobody = || Status::unavailable("nobody leads now; ask again, or another curator");
        let leader = leader.ok_or_else(nobody)?;
        let towards = || caller.filter(|_| leader.id == self.own).and_then(own_address);
        let host = leader.host.clone().or_else(|| towards().map(|address| address.to_string()));
        let unknown = || {
            let id = &leader.id;
            Status::unavailable(format!("{id} leads, but has not told its address yet; ask again"))
        };
        Ok(GetCurrentLeaderResponse {
            leader_node_id: leader.id.to_string(),
            leader_host: host.ok_or_else(unknown)?,
            leader_port: leader.port.into(),
            this_node_id: self.own.to_string(),
        })
    }
}

/// Our address that leads to `caller`: what he could have dialled.
fn own_address(caller: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match caller {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // Nothing is sent: the kernel only chooses a route.
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(caller).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

type Answers = Pin<Box<dyn Stream<Item = Result<GetCurrentLeaderResponse, Status>> + Send>>;

#[tonic::async_trait]
impl CuratorLocal for Local {
    async fn get_current_leader(
        &self,
        request: Request<GetCurrentLeaderRequest>,
    ) -> Result<Response<tonic::codegen::BoxStream<GetCurrentLeaderResponse>>, Status> {
        let caller = request.extensions().get::<Peer>().map(|peer| peer.address);
        let mut standing = self.standing.clone();
        standing.mark_changed();
        let local = self.clone();
        let told: Option<GetCurrentLeaderResponse> = None;
        let answers = stream::unfold(Some((standing, told)), move |state| {
            let local = local.clone();
            async move {
                let (mut standing, told) = state?;
                loop {
                    // The curator stops.
                    standing.changed().await.ok()?;
                    let answer = {
                        let leader = standing.borrow_and_update();
                        local.answer(leader.as_ref(), caller)
                    };
                    match answer {
                        Ok(answer) if told.as_ref() == Some(&answer) => {}
                        Ok(answer) => {
                            return Some((Ok(answer.clone()), Some((standing, Some(answer)))));
                        }
                        Err(status) => return Some((Err(status), None)),
                    }
                }
            }
        });
        let answers: Answers = Box::pin(answers);
        Ok(Response::new(answers))
    }

    async fn get_ca_certificate(
        &self,
        _: Request<GetCaCertificateRequest>,
    ) -> Result<Response<GetCaCertificateResponse>, Status> {
        let identity_ca_certificate = self.authority.to_vec();
        Ok(Response::new(GetCaCertificateResponse { identity_ca_certificate }))
    }
}
