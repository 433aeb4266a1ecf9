//! What new nodes show (spec §3.5): 32 random bytes in a message, which nobody but us looks into.

use orlop_proto::metropolis::node::core::curator::proto::private::RegisterTicket;
use orlop_store::Revision;
use prost::Message as _;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::names;
use crate::office::Office;
use crate::state::{Changes, Failure};

/// Its random part, in bytes.
const LENGTH: usize = 32;

/// The ticket as nodes show it; it is made if there is none.
///
/// # Errors
/// The store; there is no randomness.
pub async fn current(office: &Office) -> Result<Vec<u8>, Failure> {
    let _held = office.locks.ticket.lock().await;
    loop {
        if let Some(ticket) = office.state.message::<RegisterTicket>(names::REGISTER_TICKET).await?
        {
            return Ok(ticket.value.encode_to_vec());
        }
        if let Some(ticket) = write(office, Revision::NONE).await? {
            return Ok(ticket);
        }
    }
}

/// Makes a new ticket: the old one is good no more once this returns. Nodes that have registered are not affected.
///
/// # Errors
/// The store; there is no randomness.
pub async fn rotate(office: &Office) -> Result<Vec<u8>, Failure> {
    let _held = office.locks.ticket.lock().await;
    loop {
        let there = office.state.bytes(names::REGISTER_TICKET).await?;
        let modified = there.map_or(Revision::NONE, |stored| stored.modified);
        if let Some(ticket) = write(office, modified).await? {
            return Ok(ticket);
        }
    }
}

/// `None`: it is not as it was at `modified`.
async fn write(office: &Office, modified: Revision) -> Result<Option<Vec<u8>>, Failure> {
    let mut opaque = vec![0; LENGTH];
    SystemRandom::new().fill(&mut opaque).map_err(|_| Failure::Random)?;
    let ticket = RegisterTicket { opaque }.encode_to_vec();
    let changes = Changes::new()
        .if_unchanged(names::REGISTER_TICKET, modified)
        .put(names::REGISTER_TICKET, ticket.clone());
    Ok(office.change(changes).await?.map(|_| ticket))
}
