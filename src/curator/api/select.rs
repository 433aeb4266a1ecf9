//! Which node a request means, and how one is changed: read, decided, and written if it is still as it was read.

use orlop_proto::metropolis::node::core::curator::proto::private::Node;
use tonic::Status;

use crate::names::{self, KEY_LENGTH, NodeId, NotAnId};
use crate::office::Office;
use crate::state::{Changes, Stored};

/// The node that is meant.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) id: NodeId,
    /// If it was told by its key, the whole of it; an id is half of one.
    key: Option<[u8; KEY_LENGTH]>,
}

impl From<NotAnId> for Status {
    fn from(error: NotAnId) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl Target {
    pub(super) fn of_id(id: NodeId) -> Self {
        Self { id, key: None }
    }

    pub(super) fn of_key(key: Vec<u8>) -> Result<Self, Status> {
        let key: [u8; KEY_LENGTH] = key.try_into().map_err(|key: Vec<u8>| {
            Status::invalid_argument(format!("pubkey has {} bytes, not {KEY_LENGTH}", key.len()))
        })?;
        Ok(Self { id: NodeId::of_key(&key), key: Some(key) })
    }

    /// What the messages of four requests call alike.
    pub(super) fn unset() -> Status {
        Status::invalid_argument("say which node: neither id nor pubkey is set")
    }

    /// As it is in the store.
    pub(super) async fn load(&self, office: &Office) -> Result<Stored<Node>, Status> {
        let stored = office.state.node(&self.id).await?;
        let is = |stored: &Stored<Node>| self.key.is_none_or(|key| stored.value.public_key == key);
        stored.filter(is).ok_or_else(|| {
            let id = &self.id;
            Status::not_found(format!("there is no node {id}; `orlopctl cluster nodes` lists them"))
        })
    }
}

/// Changes a node; none: it is as it should be.
pub(super) async fn update(
    office: &Office,
    target: &Target,
    change: impl Fn(Node) -> Result<Option<Node>, Status>,
) -> Result<(), Status> {
    let path = names::node(&target.id);
    loop {
        let Stored { value, modified } = target.load(office).await?;
        let Some(node) = change(value)? else { return Ok(()) };
        let changes = Changes::new().if_unchanged(&path, modified).put_message(&path, &node);
        if office.change(changes).await?.is_some() {
            return Ok(());
        }
        // Somebody else changed it meanwhile.
    }
}
