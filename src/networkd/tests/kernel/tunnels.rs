//! WireGuard, with another kernel's end of it.

use std::fs::File;

use nix::sched::{CloneFlags, setns};
use orlop_netlink::Netlink;
use orlop_netlink::wireguard::{Change, Key, PeerChange, What, Wireguard};
use tokio::task::JoinSet;

use crate::world::{Exchange, LIMIT, World, in_namespaces, knows};

/// Public halves of the keys of 32 times 1, 2 and 3.
const NODE: [u8; 32] = [
    164, 224, 146, 146, 182, 81, 194, 120, 185, 119, 44, 86, 159, 95, 169, 187, 19, 217, 6, 180,
    106, 182, 140, 157, 249, 220, 43, 68, 9, 248, 162, 9,
];
const SERVER: [u8; 32] = [
    206, 141, 58, 209, 204, 182, 51, 236, 123, 112, 193, 120, 20, 165, 199, 110, 205, 2, 150, 133,
    5, 13, 52, 71, 69, 186, 5, 135, 14, 88, 125, 89,
];

/// The node's end, and `more` peers.
fn config(more: &str) -> String {
    format!(
        "\
interfaces:
- interface: eth0
  cidr: 10.77.0.8/24
- interface: wg0
  cidr: 10.10.0.1/24
  wireguard:
    privateKey: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
    listenPort: 51820
    peers:
    - publicKey: zo060cy2M+x7cMF4FKXHbs0CloUFDTRHRboFhw5YfVk=
      presharedKey: CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=
      endpoint: 10.77.0.1:51821
      allowedIPs: [10.10.0.2/32]
{more}"
    )
}

const THIRD: &str = "    - publicKey: Xf7dO2vUf2+ijuFdlp1bsOpTd01Ii9r53xxuASSz7yI=\n";

/// Makes the other end: `ip` makes the link, and the kernel is told the rest.
fn make_other_end(world: &World) {
    world.on_server("link add wg0 type wireguard");
    world.on_server("address add 10.10.0.2/24 dev wg0");
    let namespace = File::open(format!("/run/netns/{}-server", world.name)).unwrap();
    std::thread::spawn(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let links = runtime.block_on(async {
            let (netlink, connection) = Netlink::open().unwrap();
            let mut running = JoinSet::new();
            running.spawn(connection);
            netlink.links().await.unwrap()
        });
        let index = links.iter().find(|link| link.name == "wg0").unwrap().index;
        let what = What::Set {
            preshared_key: Some(Key([9; 32])),
            endpoint: None,
            keepalive_secs: None,
            allowed_ips: Some(vec!["10.10.0.1/32".parse().unwrap()]),
        };
        let change = Change {
            private_key: Some(Key([2; 32])),
            listen_port: Some(51821),
            fwmark: None,
            peers: vec![PeerChange { public_key: NODE, what }],
        };
        Wireguard::open().unwrap().change(index, &change).unwrap();
    })
    .join()
    .unwrap();
    world.on_server("link set wg0 up");
}

#[test]
fn a_tunnel_carries_packets_while_its_other_peers_change() {
    in_namespaces("nwd-wireguard", async |mut world| {
        if !knows(&world, "type wireguard") {
            return;
        }
        make_other_end(&world);
        let node = world.start("", &config(""));
        world.ready().await;
        let wg0 = world.link("wg0", orlop_netlink::Link::up).await.index;
        let exchange = Exchange::start(&world, "10.10.0.2");
        exchange.goes_on(20).await;
        node.stop().await;

        let node = world.start("", &config(THIRD));
        let socket = Wireguard::open().unwrap();
        peers(&socket, wg0, 2).await;
        exchange.goes_on(20).await;

        // Somebody takes the new peer away, and it comes back.
        let third = socket.device(wg0).unwrap().peers;
        let third = third.iter().find(|peer| peer.public_key != SERVER).unwrap().public_key;
        let gone = PeerChange { public_key: third, what: What::Remove };
        socket.change(wg0, &Change { peers: vec![gone], ..Change::default() }).unwrap();
        peers(&socket, wg0, 2).await;
        exchange.goes_on(20).await;
        node.stop().await;

        let node = world.start("", &config(""));
        peers(&socket, wg0, 1).await;
        exchange.goes_on(20).await;
        exchange.end();
        assert_eq!(world.link("wg0", |_| true).await.index, wg0, "it is the same link");
        node.stop().await;
    });
}

/// Waits until the link has so many peers.
async fn peers(socket: &Wireguard, index: u32, count: usize) {
    let there = async {
        let mut poll = tokio::time::interval(std::time::Duration::from_millis(5));
        while socket.device(index).unwrap().peers.len() != count {
            poll.tick().await;
        }
    };
    tokio::time::timeout(LIMIT, there).await.expect("the peers should be so many");
}
