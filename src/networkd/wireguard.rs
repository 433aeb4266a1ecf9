//! What a WireGuard link shall be told, less what it was told: other peers do not notice.

use std::collections::BTreeSet;

use orlop_config::machine::Wireguard;
use orlop_netlink::IpNet;
use orlop_netlink::wireguard::{Change, Device, Key, Peer, PeerChange, PublicKey, What};

/// What the configuration says.
#[must_use]
pub fn device(options: &Wireguard) -> Device {
    let peers = options.peers.iter().filter_map(|peer| {
        let every = peer.persistent_keepalive_interval.unwrap_or_default();
        Some(Peer {
            public_key: peer.public_key?.0,
            preshared_key: peer.preshared_key.as_ref().map(|key| Key(key.expose())),
            endpoint: peer.endpoint,
            keepalive_secs: u16::try_from(every.as_secs()).unwrap_or(u16::MAX),
            allowed_ips: peer.allowed_ips.clone(),
        })
    });
    Device {
        private_key: options.private_key.as_ref().map(|key| Key(key.expose())),
        listen_port: options.listen_port.unwrap_or_default(),
        fwmark: options.firewall_mark.unwrap_or_default(),
        peers: peers.collect(),
    }
}

/// What to tell the link; `None` when it knows. A peer of `roaming` was told its endpoint and may have
/// moved since: it is not called back.
#[must_use]
pub fn difference(
    desired: &Device,
    there: &Device,
    roaming: &BTreeSet<PublicKey>,
) -> Option<Change> {
    let gone = there.peers.iter().filter(|peer| find(desired, &peer.public_key).is_none());
    let gone = gone.map(|peer| PeerChange { public_key: peer.public_key, what: What::Remove });
    let set = desired.peers.iter().filter_map(|peer| {
        let there = find(there, &peer.public_key);
        let what = peer_difference(peer, there, roaming.contains(&peer.public_key))?;
        Some(PeerChange { public_key: peer.public_key, what })
    });
    let change = Change {
        private_key: desired.private_key.filter(|key| there.private_key != Some(*key)),
        // The kernel's choice is as good.
        listen_port: Some(desired.listen_port)
            .filter(|port| *port != 0 && *port != there.listen_port),
        fwmark: Some(desired.fwmark).filter(|mark| *mark != there.fwmark),
        peers: gone.chain(set).collect(),
    };
    (change != Change::default()).then_some(change)
}

fn find<'a>(device: &'a Device, key: &PublicKey) -> Option<&'a Peer> {
    device.peers.iter().find(|peer| peer.public_key == *key)
}

/// How the kernel is told that there is no second secret.
const NO_SECRET: Key = Key([0; 32]);

fn peer_difference(peer: &Peer, there: Option<&Peer>, roams: bool) -> Option<What> {
    let new = there.is_none();
    let fresh = Peer::default();
    let there = there.unwrap_or(&fresh);
    let secret = peer.preshared_key.unwrap_or(NO_SECRET);
    let secret = (peer.preshared_key != there.preshared_key).then_some(secret);
    let stays =
        |endpoint: &_| there.endpoint == Some(*endpoint) || roams && there.endpoint.is_some();
    let endpoint = peer.endpoint.filter(|endpoint| !stays(endpoint));
    let every = peer.keepalive_secs;
    let keepalive_secs = (every != there.keepalive_secs).then_some(every);
    let allowed_ips =
        (sorted(&peer.allowed_ips) != sorted(&there.allowed_ips)).then(|| peer.allowed_ips.clone());
    let changes =
        secret.is_some() || endpoint.is_some() || keepalive_secs.is_some() || allowed_ips.is_some();
    (new || changes).then_some(What::Set {
        preshared_key: secret,
        endpoint,
        keepalive_secs,
        allowed_ips,
    })
}

fn sorted(nets: &[IpNet]) -> BTreeSet<IpNet> {
    nets.iter().map(IpNet::trunc).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A kernel's link, and what it does when it is told something (drivers/net/wireguard/netlink.c).
    fn tell(device: &mut Device, change: &Change) {
        device.private_key = change.private_key.or(device.private_key);
        device.listen_port = change.listen_port.unwrap_or(device.listen_port);
        device.fwmark = change.fwmark.unwrap_or(device.fwmark);
        for PeerChange { public_key, what } in &change.peers {
            let What::Set { preshared_key, endpoint, keepalive_secs, allowed_ips } = what else {
                device.peers.retain(|peer| peer.public_key != *public_key);
                continue;
            };
            if find(device, public_key).is_none() {
                device.peers.push(Peer { public_key: *public_key, ..Peer::default() });
            }
            if let Some(nets) = allowed_ips {
                // A network has one peer.
                for peer in &mut device.peers {
                    peer.allowed_ips.retain(|net| !nets.contains(net));
                }
            }
            let peer = device.peers.iter_mut().find(|peer| peer.public_key == *public_key).unwrap();
            match preshared_key {
                Some(key) if *key == NO_SECRET => peer.preshared_key = None,
                Some(key) => peer.preshared_key = Some(*key),
                None => {}
            }
            peer.endpoint = endpoint.or(peer.endpoint);
            peer.keepalive_secs = keepalive_secs.unwrap_or(peer.keepalive_secs);
            if let Some(nets) = allowed_ips {
                peer.allowed_ips.clone_from(nets);
            }
        }
    }

    fn peer(key: u8) -> Peer {
        Peer {
            public_key: [key; 32],
            endpoint: Some(([192, 0, 2, key], 51820).into()),
            allowed_ips: vec![IpNet::new([10, 0, 0, key].into(), 32).unwrap()],
            ..Peer::default()
        }
    }

    fn any_device() -> impl Strategy<Value = Device> {
        let key = || proptest::option::of((1..3u8).prop_map(|byte| Key([byte; 32])));
        // Which peer each of four networks belongs to; 0 is none.
        let nets = proptest::array::uniform4(0..5u8);
        let peers = proptest::array::uniform4(proptest::option::of((key(), 0..2u8, 0..2u16)));
        (key(), 0..2u16, 0..2u32, peers, nets).prop_map(
            |(private_key, port, fwmark, peers, nets)| {
                let peer = |(i, (preshared_key, endpoint, every)): (u8, (_, u8, _))| Peer {
                    public_key: [i; 32],
                    preshared_key,
                    endpoint: (endpoint > 0).then(|| ([192, 0, 2, endpoint], 51820).into()),
                    keepalive_secs: every,
                    allowed_ips: (0..4)
                        .filter(|net| nets[usize::from(*net)] == i)
                        .map(|net| IpNet::new([10, 0, net, 0].into(), 24).unwrap())
                        .collect(),
                };
                let peers = (1..).zip(peers).filter_map(|(i, peer)| Some((i, peer?))).map(peer);
                Device { private_key, listen_port: port * 51820, fwmark, peers: peers.collect() }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_told_makes_the_link_as_it_shall_be(desired in any_device(), there in any_device()) {
            let mut link = there;
            let roaming = BTreeSet::new();
            if let Some(change) = difference(&desired, &link, &roaming) {
                tell(&mut link, &change);
            }
            // A network that a peer lost to another is given back in the second round.
            if let Some(change) = difference(&desired, &link, &roaming) {
                tell(&mut link, &change);
            }
            prop_assert_eq!(difference(&desired, &link, &roaming), None);
            for peer in &desired.peers {
                let there = find(&link, &peer.public_key).unwrap();
                prop_assert_eq!(sorted(&peer.allowed_ips), sorted(&there.allowed_ips));
                prop_assert_eq!(peer.preshared_key, there.preshared_key);
            }
            prop_assert_eq!(link.peers.len(), desired.peers.len());
        }
    }

    #[test]
    fn a_changed_peer_leaves_the_others_alone() {
        let there = Device { peers: vec![peer(1), peer(2), peer(3)], ..Device::default() };
        let mut desired = there.clone();
        desired.peers[1].keepalive_secs = 25;
        desired.peers.remove(2);
        desired.peers.push(peer(4));
        let change = difference(&desired, &there, &BTreeSet::new()).unwrap();
        let told: Vec<_> = change.peers.iter().map(|peer| peer.public_key[0]).collect();
        assert_eq!(told, [3, 2, 4]);
        let only = What::Set {
            preshared_key: None,
            endpoint: None,
            keepalive_secs: Some(25),
            allowed_ips: None,
        };
        assert_eq!((&change.peers[0].what, &change.peers[1].what), (&What::Remove, &only));
        assert_eq!((change.private_key, change.listen_port, change.fwmark), (None, None, None));
    }

    #[test]
    fn a_peer_that_moved_is_not_called_back() {
        let desired = Device { peers: vec![peer(1)], ..Device::default() };
        let mut there = desired.clone();
        there.peers[0].endpoint = Some(([192, 0, 2, 99], 5).into());
        assert_eq!(difference(&desired, &there, &[[1; 32]].into()), None);
        // Of a run before, nobody knows what it was told.
        assert!(difference(&desired, &there, &BTreeSet::new()).is_some());
        // One that somebody took away comes back with all it had.
        let change = difference(&desired, &Device::default(), &[[1; 32]].into()).unwrap();
        let What::Set { endpoint, .. } = &change.peers[0].what else { panic!("{change:?}") };
        assert_eq!(*endpoint, desired.peers[0].endpoint);
    }
}
