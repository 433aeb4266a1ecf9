//! Takes part in the elections of addresses that wander.

use std::collections::BTreeMap;

use orlop_netlink::Link;
use tokio::sync::watch;
use tracing::{Instrument as _, info_span};

use super::{Driver, Part};
use crate::dhcp::Carrier;
use crate::holder::{Held, Place, Wanderer};
use crate::plan::Intent;

impl Driver {
    /// Takes part in the elections of addresses that wander, and in no others.
    pub(super) fn keep_parts(&mut self, intents: &BTreeMap<u32, Intent>, links: &[Link]) {
        let vip = |index: &u32| intents.get(index).and_then(|intent| intent.vip);
        let same = |index: &u32, part: &Part| {
            let link = links.iter().find(|link| link.index == *index);
            link.is_some_and(|link| link.mac == Some(part.mac) && link.name == part.name)
                && vip(index) == Some(part.address)
        };
        // Without the other end of its carrier, each gives up what it has.
        self.wanderers.retain(|index, part| same(index, part));
        if self.stop.is_cancelled() {
            return;
        }
        for link in links {
            let (Some(address), Some(mac)) = (vip(&link.index), link.mac) else { continue };
            let part = self.wanderers.entry(link.index).or_insert_with(|| {
                let (carrier, carries) = watch::channel(Carrier::of(link));
                let wanderer = Wanderer {
                    index: link.index,
                    name: link.name.clone(),
                    mac,
                    address,
                    place: Place {
                        folder: self.options.etcd.clone(),
                        member: self.options.etcd_member.clone(),
                    },
                    updates: self.holds.0.clone(),
                    stop: self.stop.clone(),
                };
                let span = info_span!("vip", link = %link.name);
                self.elections.spawn(wanderer.run(carries).instrument(span));
                Part { name: link.name.clone(), mac, address, carrier }
            });
            let seen = Carrier::of(link);
            part.carrier.send_if_modified(|carrier| std::mem::replace(carrier, seen) != seen);
        }
    }

    pub(super) fn take_held(&mut self, Held { index, address, until, done }: Held) {
        match until {
            Some(until) => drop(self.held.insert((index, address), until)),
            None => drop(self.held.remove(&(index, address))),
        }
        self.waiting.push(done);
    }

    /// Who no longer waits need not know.
    pub(super) fn tell_waiting(&mut self) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(());
        }
    }
}
