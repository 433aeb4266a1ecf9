//! The services on the curator's port: messages in and out, and nothing decided here.

mod aaa;
mod curator;
mod local;
mod management;
mod nodes;
mod select;
#[cfg(test)]
mod tests;
mod told;
mod watching;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use orlop_proto::metropolis::node::core::curator::proto::api::curator_local_server::CuratorLocalServer;
use orlop_proto::metropolis::node::core::curator::proto::api::curator_server::CuratorServer;
use orlop_proto::metropolis::proto::api::aaa_server::AaaServer;
use orlop_proto::metropolis::proto::api::management_server::ManagementServer;
use orlop_rpc::Routes;
use orlop_rpc::places::Source;
use orlop_rpc::tls::Peer;
use tokio::sync::watch;
use tonic::{Request, Status};

pub use self::local::{Leader, Local};
use crate::access::Caller;
use crate::limits;
use crate::office::Office;

/// The longest message of an operator, in bytes.
const MESSAGE: usize = 1 << 20;

/// What a leader serves.
#[must_use]
pub fn of_leader(office: &Arc<Office>, local: Local) -> Routes {
    let aaa = AaaServer::new(aaa::Aaa(Arc::clone(office)));
    let curator = CuratorServer::new(curator::Nodes(Arc::clone(office)));
    let management = ManagementServer::new(management::Operators(Arc::clone(office)));
    of_anybody(local)
        .add_service(aaa.max_decoding_message_size(limits::MESSAGE))
        .add_service(curator.max_decoding_message_size(limits::MESSAGE))
        .add_service(management.max_decoding_message_size(MESSAGE))
}

/// What every curator serves.
#[must_use]
pub fn of_anybody(local: Local) -> Routes {
    Routes::new(CuratorLocalServer::new(local).max_decoding_message_size(limits::MESSAGE))
}

/// What [`Local`] tells of who leads.
pub type Standing = watch::Receiver<Option<Leader>>;

/// Who calls; every call that gets here was judged.
///
/// # Errors
/// It was not: `INTERNAL`.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("a call that nobody has judged; this is a defect"))
}

/// Where a call comes from.
pub fn source<T>(request: &Request<T>) -> Source {
    let address = request.extensions().get::<Peer>().map(|peer| peer.address.ip());
    address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).into()
}

/// Waits until the roster is as the store is now, of which this curator still has to be the leader.
///
/// # Errors
/// It leads no more, or the store does not answer: `UNAVAILABLE`.
async fn current(office: &Office) -> Result<(), Status> {
    office.roster.reach(office.state.check().await?).await?;
    Ok(())
}
