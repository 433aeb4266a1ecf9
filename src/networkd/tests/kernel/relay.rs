//! A wire between the node and its servers that loses, doubles and delays what passes, in user space:
//! no module of the kernel is needed for it. Whom it hits, a seed decides.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{MsgFlags, send};
use orlop_netlink::{Address, Capture, Netlink, Promiscuous, Protocol};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::world::{LIMIT, RANGE, World, in_namespaces, ip};

/// Per hundred frames.
const LOST: u64 = 20;
const DOUBLED: u64 = 10;
const LATEST: u64 = 30;

/// The namespace in the middle, and the thread that carries frames from one of its links to the other.
struct Wire {
    name: String,
    stop: Arc<Notify>,
    carrying: Option<std::thread::JoinHandle<(u64, u64)>>,
}

impl Wire {
    /// Puts it between `eth0` of the node and `srv0` of the server.
    fn new(world: &World, seed: u64) -> Self {
        let name = format!("{}-wire", world.name);
        let made = Self { name: name.clone(), stop: Arc::default(), carrying: None };
        made.remove();
        ip(&format!("netns add {name}"));
        world.on_server(&format!("link set srv0 netns {name}"));
        ip(&format!("-n {name} link set srv0 name near0"));
        let server = format!("{}-server", world.name);
        ip(&format!("-n {name} link add far0 type veth peer name srv0 netns {server}"));
        world.on_server("address add 10.77.0.1/24 dev srv0");
        world.on_server("address add fd77::1/64 dev srv0 nodad");
        world.on_server("link set srv0 up");
        let namespace = File::open(format!("/run/netns/{name}")).unwrap();
        let (carries, carrying) = mpsc::channel();
        let stop = Arc::clone(&made.stop);
        let thread = {
            let name = name.clone();
            std::thread::spawn(move || carry(namespace, &name, seed, &carries, &stop))
        };
        carrying.recv_timeout(LIMIT).expect("the wire carries");
        Self { carrying: Some(thread), ..made }
    }

    /// How many frames came, and how many of them were lost.
    fn cut(mut self) -> (u64, u64) {
        self.stop.notify_one();
        let counted = self.carrying.take().map(|thread| thread.join().unwrap());
        self.remove();
        counted.unwrap_or_default()
    }

    fn remove(&self) {
        // Absent at first.
        let _ =
            Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

fn carry(
    namespace: File,
    name: &str,
    seed: u64,
    carries: &mpsc::Sender<()>,
    stop: &Notify,
) -> (u64, u64) {
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
    // The wire itself has nothing to say.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    for link in ["near0", "far0"] {
        ip(&format!("-n {name} link set {link} up"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (netlink, connection) = Netlink::open().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let links = netlink.links().await.unwrap();
        let open = |name: &str| {
            let link = links.iter().find(|link| link.name == name).unwrap();
            Arc::new(Capture::open(link.index, Promiscuous::Yes, &[]).unwrap())
        };
        let ends = [open("near0"), open("far0")];
        carries.send(()).unwrap();
        let mut dice = seed;
        let mut throw = |sides: u64| {
            // xorshift64*.
            dice ^= dice >> 12;
            dice ^= dice << 25;
            dice ^= dice >> 27;
            (dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % sides
        };
        let (mut came, mut lost) = (0, 0);
        let (mut near, mut far) = ([0; 2048], [0; 2048]);
        loop {
            let (frame, to) = tokio::select! {
                frame = ends[0].next(&mut near) => (frame.map(|it| &mut near[..it.captured]), 1),
                frame = ends[1].next(&mut far) => (frame.map(|it| &mut far[..it.captured]), 0),
                () = stop.notified() => return (came, lost),
            };
            // A link that goes down for a moment.
            let Ok(frame) = frame else { continue };
            came += 1;
            let copies = match throw(100) {
                chance if chance < LOST => 0,
                chance if chance < LOST + DOUBLED => 2,
                _ => 1,
            };
            lost += u64::from(copies == 0);
            complete(frame);
            for _ in 0..copies {
                let (frame, to) = (frame.to_vec(), Arc::clone(&ends[to]));
                let late = Duration::from_millis(throw(LATEST));
                tasks.spawn(async move {
                    tokio::time::sleep(late).await;
                    match send(to.as_fd().as_raw_fd(), &frame, MsgFlags::MSG_NOSIGNAL) {
                        Ok(_) | Err(Errno::ENETDOWN | Errno::ENOBUFS) => {}
                        Err(errno) => panic!("send: {errno}"),
                    }
                });
            }
        }
    })
}

/// Computes the checksums that the kernel left to a card that there is not.
fn complete(frame: &mut [u8]) {
    const UDP: u8 = 17;
    match *frame {
        // IPv4: a checksum of zero is none.
        [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, 0x45, ..] if frame.get(23) == Some(&UDP) => {
            if let Some(checksum) = frame.get_mut(40..42) {
                checksum.fill(0);
            }
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, ..] if frame.get(20) == Some(&UDP) => {
            let Some((head, datagram)) = frame.split_at_mut_checked(54) else { return };
            let Some(checksum) = datagram.get_mut(6..8) else { return };
            checksum.fill(0);
            let length = u32::try_from(datagram.len()).unwrap();
            let pairs = head[22..54].chunks(2).chain(datagram.chunks(2));
            let sum: u32 = pairs
                .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
                .sum::<u32>()
                + u32::from(UDP)
                + length;
            let folded = (sum >> 16) + (sum & 0xffff);
            let folded = !u16::try_from((folded >> 16) + (folded & 0xffff)).unwrap();
            let folded = if folded == 0 { 0xffff } else { folded };
            datagram[6..8].copy_from_slice(&folded.to_be_bytes());
        }
        _ => {}
    }
}

#[test]
fn over_a_wire_that_loses_doubles_and_delays_both_families_get_their_addresses() {
    in_namespaces("nwd-loss", async |mut world| {
        let has_ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
        let wire = Wire::new(&world, 0x9e37_79b9_7f4a_7c15);
        let options =
            ["--enable-ra", "--ra-param=srv0,4,60", "--dhcp-range=fd77::100,fd77::1ff,64,10m"];
        world.serve(RANGE, if has_ipv6 { &options } else { &[] });
        let node = world.start("", "");
        world.address_in("eth0", 100..=109).await;
        if has_ipv6 {
            let given = |address: &Address| {
                address.net.addr().is_ipv6() && address.protocol == Protocol::DHCP
            };
            world
                .until(async || {
                    let addresses = world.netlink.addresses().await.unwrap();
                    addresses.iter().any(given).then_some(())
                })
                .await;
        }
        node.stop().await;
        let (came, lost) = wire.cut();
        println!("{lost} of {came} frames were lost");
        assert!(came > 4);
    });
}
