//! What the benches measure of networkd.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use orlop_config::cmdline;
use orlop_config::machine::Network;
use orlop_netlink::{Changes, Direct, Duplicates, Netlink};
use tokio::sync::watch;

use crate::api::News;
use crate::driver::Driver;
use crate::machine::PROBES;
use crate::{Options, settings};

/// How long it takes to make the kernel's tables what `network`, a `machine.network`, wants; and again,
/// where nothing is left to do; so many turns in all. Files go to `folder`.
///
/// # Errors
/// When `network` is wrong, or the kernel gives no sockets.
pub async fn reconcile(folder: &Path, network: &str, turns: usize) -> io::Result<Vec<Duration>> {
    let path = |name: &str| folder.join(name);
    let options = Options {
        socket: path("networkd.sock"),
        config: path("networkd.yaml"),
        cmdline: path("cmdline"),
        state: path("state"),
        resolv_conf: path("resolv.conf"),
        time_servers: path("time_servers"),
        hosts: path("hosts"),
        arp_probes: PROBES,
        etcd: path("etcd"),
        etcd_member: String::new(),
        keep_host_name: true,
        debug: false,
    };
    let network = Network::parse(network).map_err(io::Error::other)?;
    let mut settings = settings::from_kernel(&cmdline::parse(""));
    settings::add_config(&mut settings, network);
    let changes = Changes::subscribe()?;
    let (netlink, connection) = Netlink::open()?;
    let netlink = (netlink, Direct::open()?);
    let (ready, _) = watch::channel(false);
    let duplicates = Duplicates::subscribe()?;
    let mut driver =
        Driver::new(options, settings, netlink, (changes, duplicates), (ready, News::default()));
    let work = async {
        let mut times = Vec::with_capacity(turns);
        for _ in 0..turns {
            let since = Instant::now();
            driver.reconcile().await;
            times.push(since.elapsed());
        }
        Ok(times)
    };
    tokio::select! {
        times = work => times,
        () = connection => Err(io::ErrorKind::BrokenPipe.into()),
    }
}
