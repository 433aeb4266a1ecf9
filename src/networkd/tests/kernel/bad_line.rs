//! A line that loses, delays, doubles and reorders packets (`tc netem`, which not every kernel has).

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use orlop_netlink::Address;

use crate::world::{RANGE, World, in_namespaces};

/// Of three answers one is lost, and each question that is asked again waits longer.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn a_lease_is_had_and_kept_over_a_line_that_loses_every_fifth_packet() {
    in_namespaces("nwd-netem", async |mut world| {
        let both = [("server", "srv0"), ("node", "eth0")];
        if !both.into_iter().all(|(side, link)| impair(&world, side, link)) {
            return println!("skipped: this kernel has no netem, or there is no `tc`");
        }
        world.serve(RANGE, &["--dhcp-option=option:T1,3", "--dhcp-option=option:T2,13"]);
        let node = world.start("", "");
        let first = found(&world, |_| true).await;
        let since = Instant::now();
        // The kernel counts the lifetime down; only a renewal adds to it.
        let renewed = found(&world, |address| {
            assert_eq!(address.net, first.net);
            let had = first.valid.unwrap() + Duration::from_secs(2);
            address.valid.unwrap() + since.elapsed() > had
        });
        renewed.await;
        node.stop().await;
    });
}

fn impair(world: &World, side: &str, link: &str) -> bool {
    Command::new("ip")
        .args(["netns", "exec", &format!("{}-{side}", world.name)])
        .args(["tc", "qdisc", "add", "dev", link, "root", "netem", "delay", "50ms", "20ms"])
        .args(["loss", "20%", "duplicate", "10%", "reorder", "25%"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Waits until the node has an address as `good` wants it, and as soon as it has one, keeps it.
async fn found(world: &World, good: impl Fn(&Address) -> bool) -> Address {
    let mut had = false;
    let found = async {
        loop {
            let links = world.netlink.links().await.unwrap();
            let eth0 = links.iter().find(|link| link.name == "eth0").unwrap().index;
            let mut addresses = world.netlink.addresses().await.unwrap();
            addresses.retain(|each| each.index == eth0 && each.net.addr().is_ipv4());
            match &addresses[..] {
                [] => assert!(!had, "the address is gone"),
                [only] if good(only) => return only.clone(),
                [_] => had = true,
                more => panic!("{more:?}"),
            }
            world.changes.next().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("one answer in three gets through")
}
