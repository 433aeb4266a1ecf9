//! Starts and stops who keeps leases and hears routers, and takes what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv6Addr;

use orlop_netlink::{Link, Mac};
use tokio::sync::watch;
use tracing::{Instrument as _, info, info_span, warn};

use super::{Driver, Handle};
use crate::dhcp::{Carrier, Keeper, Memory, Update, now};
use crate::machine::{Remembered, Wishes};
use crate::machine6;
use crate::plan::{self, Intent, Observed};
use crate::routers::Listener;

impl Driver {
    pub(super) fn take(&mut self, update: Update) {
        // A keeper that was stopped may have left a word behind.
        let Some(keeper) = self.keepers.get(&update.index) else { return };
        let before = match &update.lease {
            Some(lease) => self.leases.insert(update.index, lease.clone()),
            None => self.leases.remove(&update.index),
        };
        let (before, lease) = (before.map(|lease| lease.address), update.lease);
        match lease {
            Some(lease) if before != Some(lease.address) => {
                let lease_secs =
                    lease.times.map(|times| times.expires_at.saturating_sub(now()).as_secs());
                let (link, address) = (&keeper.name, lease.address);
                info!(%link, %address, server = %lease.server, lease_secs, "lease bound");
            }
            None if before.is_some() => warn!(link = %keeper.name, "lease lost"),
            _ => {}
        }
    }

    /// Another host has an address of ours. One that was given is declined; what the operator wrote stays.
    pub(super) fn duplicate(&mut self, index: u32, address: Ipv6Addr) {
        let given = |lease: &machine6::Lease| lease.address.is_some_and(|it| it.address == address);
        match (self.leases6.get(&index), self.keepers.get(&index)) {
            (Some(lease), Some(keeper)) if given(lease) => {
                // At once, or it would be put there again.
                self.leases6.remove(&index);
                keeper.duplicate.send_replace(Some(address));
            }
            _ => self.complain_of(format!("another host has the address {address} as well")),
        }
    }

    pub(super) fn keeper_ended(&mut self, index: u32, result: io::Result<()>) {
        let Some(keeper) = self.keepers.remove(&index) else { return };
        if let Err(error) = result {
            self.complain(&format!("keep a lease for {}", keeper.name), &error);
        }
        self.resting.insert(index);
        self.try_again_later();
    }

    /// Has the kernel believe routers where it shall, and nowhere else. A node that forwards packets for its
    /// containers would pass for a router, which believes none unless it is told 2
    /// (Documentation/networking/ip-sysctl.rst, accept_ra).
    pub(super) fn believe_routers(&mut self, intents: &BTreeMap<u32, Intent>, links: &[Link]) {
        for link in links {
            let Some(intent) = intents.get(&link.index) else { continue };
            let Some(believe) = intent.believes_routers() else { continue };
            let value = if believe { "2" } else { "0" };
            let path = format!("/proc/sys/net/ipv6/conf/{}/accept_ra", link.name);
            // Without IPv6 there is no such file.
            let Ok(there) = std::fs::read_to_string(&path) else { continue };
            if there.trim() != value
                && let Err(error) = std::fs::write(&path, value)
            {
                self.complain(&format!("write {path}"), &error);
            }
        }
    }

    /// Starts and stops keepers, and tells them of their links' carrier.
    pub(super) fn keep_leases(&mut self, intents: &BTreeMap<u32, Intent>, observed: &Observed) {
        let links = &observed.links;
        let now = now();
        self.since.retain(|index, _| intents.contains_key(index));
        // A bond takes the address of its first port: then the server knows it by another.
        let wanted = |index: &u32, keeper: &Handle| {
            links.iter().any(|link| {
                (link.index, link.mac) == (*index, Some(keeper.mac)) && link.name == keeper.name
            }) && intents.get(index).is_some_and(|intent| intent.dhcp.is_some())
        };
        let (leases, leases6, learned) = (&mut self.leases, &mut self.leases6, &mut self.learned);
        self.keepers.retain(|index, keeper| {
            let keep = wanted(index, keeper);
            if !keep {
                keeper.task.abort();
                leases.remove(index);
                leases6.remove(index);
                learned.remove(index);
            }
            keep
        });
        for link in links.iter().filter(|link| intents.contains_key(&link.index)) {
            if !link.loopback() {
                self.since.entry(link.index).or_insert(now);
            }
            if intents.get(&link.index).is_none_or(|intent| intent.dhcp.is_none()) {
                continue;
            }
            // Without an Ethernet address there is nothing to ask for; static settings still hold.
            let Some(mac) = link.mac else { continue };
            if !self.keepers.contains_key(&link.index) && !self.resting.contains(&link.index) {
                self.start_keeper(link, mac, observed);
            }
            if let Some(keeper) = self.keepers.get(&link.index) {
                let seen = Carrier::of(link);
                keeper.carrier.send_if_modified(|carrier| std::mem::replace(carrier, seen) != seen);
            }
        }
    }

    pub(super) fn start_keeper(&mut self, link: &Link, mac: Mac, observed: &Observed) {
        let (carrier, carries) = watch::channel(Carrier::default());
        let (duplicate, duplicates) = watch::channel(None);
        let intent = self.settings.interfaces.get(&link.name);
        if intent.is_none_or(|intent| intent.accept_ra != Some(false)) {
            self.listen(link, mac, observed, (carries.clone(), duplicates));
        }
        let memory = Memory::new(&self.options.state, &link.name);
        let remembered = memory.recall(now());
        if let Remembered::Lease(lease) = &remembered {
            info!(link = %link.name, address = %lease.address, "lease taken up again");
            self.leases.insert(link.index, lease.clone());
        }
        let keeper = Keeper {
            index: link.index,
            name: link.name.clone(),
            mac,
            wishes: Wishes {
                host_name: self.settings.host_name.clone(),
                mtu: self.settings.mtu_by_dhcp,
                probes: self.options.arp_probes,
            },
            memory,
            carrier: carries,
            updates: self.updates.0.clone(),
            watch: None,
            release: self.release.clone(),
            told: BTreeSet::new(),
            bound: false,
        };
        let index = link.index;
        let span = info_span!("dhcp", link = %link.name);
        let task =
            self.tasks.spawn(async move { (index, keeper.run(remembered).await) }.instrument(span));
        let handle = Handle { name: link.name.clone(), mac, carrier, duplicate, task };
        self.keepers.insert(index, handle);
    }

    /// Hears what the kernel does not take from the link's routers.
    pub(super) fn listen(
        &mut self,
        link: &Link,
        mac: Mac,
        observed: &Observed,
        (carrier, duplicate): (watch::Receiver<Carrier>, watch::Receiver<Option<Ipv6Addr>>),
    ) {
        let (index, name) = (link.index, link.name.clone());
        let updates = self.heard.0.clone();
        let known = plan::held6(index, observed, now());
        if let Some(held) = known {
            let lease = machine6::Lease { address: Some(held), ..machine6::Lease::default() };
            self.leases6.insert(index, lease);
        }
        let release = self.release.clone();
        let listener = Listener {
            index,
            name: name.clone(),
            mac,
            known,
            carrier,
            updates,
            duplicate,
            release,
        };
        let span = info_span!("routers", link = %link.name);
        let run = async move { (name, listener.run().await) };
        self.listeners.spawn(run.instrument(span));
    }
}
