//! Asks and tells WireGuard links, over a socket that is opened when it is first needed.

use orlop_netlink::wireguard::{self as wg, What, Wireguard};
use tracing::info;

use super::Driver;
use crate::wireguard;

impl Driver {
    /// Does something with WireGuard links; the socket is opened when it is first needed.
    pub(super) fn wireguard<T>(
        &mut self,
        work: impl FnOnce(&Wireguard) -> Result<T, orlop_netlink::Error>,
    ) -> Result<T, orlop_netlink::Error> {
        let socket = match self.wireguard.take() {
            Some(socket) => socket,
            None => Wireguard::open()?,
        };
        // After a failure a new one is as good.
        let result = work(&socket)?;
        self.wireguard = Some(socket);
        Ok(result)
    }

    pub(super) fn tell_wireguard(
        &mut self,
        index: u32,
        change: &wg::Change,
    ) -> Result<(), orlop_netlink::Error> {
        self.wireguard(|socket| socket.change(index, change))?;
        let (device, _) = self.encrypted.get(&index).cloned().unwrap_or_default();
        let peers = device.peers.iter().filter(|peer| peer.endpoint.is_some());
        self.told_endpoints.insert(index, peers.map(|peer| peer.public_key).collect());
        let removed = change.peers.iter().filter(|peer| peer.what == What::Remove).count();
        info!(index, told = change.peers.len() - removed, removed, "WireGuard peers changed");
        Ok(())
    }

    /// Whether nobody else told WireGuard links anything.
    pub(super) fn wireguard_is_right(&mut self) -> bool {
        let encrypted = std::mem::take(&mut self.encrypted);
        let right = encrypted.iter().all(|(index, (desired, told))| {
            let there = self.wireguard(|socket| socket.device(*index));
            there.is_ok_and(|there| wireguard::difference(desired, &there, told).is_none())
        });
        self.encrypted = encrypted;
        right
    }
}
