//! Servers and routers that mean ill: no wrong address, and the log stays short.

use std::fs::File;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::{Arc, Mutex, mpsc};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use orlop_netlink::{Address, Protocol};
use socket2::{Domain, Socket, Type};
use tracing::subscriber::{DefaultGuard, set_default};

use crate::world::{LIMIT, RANGE, World, in_namespaces};

/// What networkd logs in this thread.
struct Log {
    lines: Lines,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn new() -> Self {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        Self { lines, _guard: set_default(subscriber) }
    }

    fn lines_with(&self, text: &str) -> usize {
        let lines = self.lines.0.lock().unwrap();
        String::from_utf8_lossy(&lines).lines().filter(|line| line.contains(text)).count()
    }
}

/// Serves on the server's link as `answer` says, until it gives `None`: which is told then.
pub(crate) fn respond(
    world: &World,
    mut answer: impl FnMut(&Message) -> Option<Vec<Message>> + Send + 'static,
) -> mpsc::Receiver<()> {
    let namespace = File::open(format!("/run/netns/{}-server", world.name)).unwrap();
    let (done, is_done) = mpsc::channel();
    let (listens, listening) = mpsc::channel();
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:67").unwrap();
        setsockopt(&socket, sockopt::BindToDevice, &"srv0".into()).unwrap();
        socket.set_broadcast(true).unwrap();
        listens.send(()).unwrap();
        let mut buffer = [0; 1500];
        loop {
            let length = socket.recv(&mut buffer).unwrap();
            let request = Message::decode(&mut Decoder::new(&buffer[..length])).unwrap();
            let Some(replies) = answer(&request) else { break };
            for reply in replies {
                socket.send_to(&reply.to_vec().unwrap(), "255.255.255.255:68").unwrap();
            }
        }
        // The test may have seen enough.
        let _ = done.send(());
    });
    listening.recv_timeout(LIMIT).unwrap();
    is_done
}

fn reply(request: &Message, kind: MessageType, address: [u8; 4], secs: u32) -> Message {
    let mut reply = Message::default();
    reply.set_opcode(Opcode::BootReply).set_xid(request.xid()).set_chaddr(request.chaddr());
    reply.set_yiaddr(address);
    for option in [
        DhcpOption::MessageType(kind),
        DhcpOption::ServerIdentifier([10, 77, 0, 1].into()),
        DhcpOption::AddressLeaseTime(secs),
        DhcpOption::SubnetMask([255, 255, 255, 0].into()),
        DhcpOption::Router(vec![[10, 77, 0, 1].into()]),
    ] {
        reply.opts_mut().insert(option);
    }
    reply
}

fn discovers(request: &Message) -> bool {
    request.opts().msg_type() == Some(MessageType::Discover)
}

/// Waits for the responder without keeping networkd from its work.
pub(crate) async fn until_done(done: mpsc::Receiver<()>) {
    let waited = tokio::task::spawn_blocking(move || done.recv_timeout(LIMIT));
    waited.await.unwrap().expect("the client asks often enough");
}

async fn addresses_of_dhcp(world: &World) -> Vec<Address> {
    let mut addresses = world.netlink.addresses().await.unwrap();
    addresses.retain(|address| address.protocol == Protocol::DHCP);
    addresses
}

#[test]
fn offers_of_no_use_are_told_once_and_not_taken() {
    in_namespaces("nwd-useless", async |mut world| {
        let log = Log::new();
        let mut turns = 0;
        let done = respond(&world, move |request| {
            turns += 1;
            assert!(discovers(request), "it took one");
            let useless = [
                ([10, 77, 0, 5], 0),
                ([0, 0, 0, 0], 60),
                ([127, 0, 0, 1], 60),
                ([224, 0, 0, 1], 60),
                ([255, 255, 255, 255], 60),
                ([10, 77, 0, 0], 60),
                ([10, 77, 0, 255], 60),
            ];
            let offers = useless
                .map(|(address, secs)| reply(request, MessageType::Offer, address, secs))
                .to_vec();
            (turns < 3).then_some(offers)
        });
        let node = world.start("", "");
        until_done(done).await;
        assert_eq!(addresses_of_dhcp(&world).await, []);
        assert_eq!(log.lines_with("of no use"), 1);
        node.stop().await;
    });
}

#[test]
fn a_server_that_refuses_what_it_offers_is_told_of_once() {
    in_namespaces("nwd-nak-loop", async |mut world| {
        let log = Log::new();
        let mut refused = 0;
        let done = respond(&world, move |request| {
            if discovers(request) {
                return Some(vec![reply(request, MessageType::Offer, [10, 77, 0, 5], 60)]);
            }
            refused += 1;
            (refused < 4).then(|| vec![reply(request, MessageType::Nak, [0, 0, 0, 0], 60)])
        });
        let node = world.start("", "");
        until_done(done).await;
        assert_eq!(addresses_of_dhcp(&world).await, []);
        assert_eq!((log.lines_with("refuses"), log.lines_with("no lease")), (1, 0));
        node.stop().await;
    });
}

#[test]
fn a_giant_lease_is_a_long_one() {
    in_namespaces("nwd-giant", async |mut world| {
        let _done = respond(&world, |request| {
            let kind = if discovers(request) { MessageType::Offer } else { MessageType::Ack };
            Some(vec![reply(request, kind, [10, 77, 0, 5], u32::MAX - 1)])
        });
        let node = world.start("", "");
        let address = world.address_in("eth0", 5..=5).await;
        assert!(address.valid.is_none_or(|valid| valid.as_secs() > 4_000_000_000), "{address:?}");
        node.stop().await;
    });
}

/// ICMPv6 router advertisements, each with a resolver and a domain of its own.
fn flood(world: &World, count: u16) {
    let namespace = File::open(format!("/run/netns/{}-server", world.name)).unwrap();
    let flooding = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(socket2::Protocol::ICMPV6)).unwrap();
        setsockopt(&socket, sockopt::BindToDevice, &"srv0".into()).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let to = SocketAddrV6::new(all_nodes, 0, 0, 0).into();
        for number in 0..count {
            // Header, then RDNSS with one address and DNSSL with one domain.
            let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
            message.extend([25, 3, 0, 0, 0, 0, 0x0e, 0x10]);
            message.extend(Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 0, number).octets());
            message.extend([31, 2, 0, 0, 0, 0, 0x0e, 0x10, 1, b'a', 3, b'o', b'r', b'g', 0, 0]);
            // The link-local address may still be tentative.
            while socket.send_to(&message, &to).is_err() {
                std::thread::yield_now();
            }
        }
    });
    flooding.join().unwrap();
}

#[test]
fn a_flood_of_advertisements_is_told_once_and_the_node_goes_on() {
    in_namespaces("nwd-flood", async |mut world| {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            return println!("skipped: this kernel has no IPv6");
        }
        let log = Log::new();
        world.serve(RANGE, &["--dhcp-option=option:dns-server,10.77.0.53"]);
        let node = world.start("", "");
        world.address_in("eth0", 100..=109).await;
        world.ready().await;
        flood(&world, 5000);
        let mut poll = tokio::time::interval(std::time::Duration::from_millis(5));
        let heard = async {
            while log.lines_with("passed over") == 0 {
                poll.tick().await;
            }
        };
        tokio::time::timeout(LIMIT, heard).await.expect("the flood is told of");
        let named = async {
            while !world.read("resolv.conf").contains("fd66::") {
                poll.tick().await;
            }
        };
        tokio::time::timeout(LIMIT, named).await.expect("some of it is heard");
        assert_eq!(log.lines_with("passed over"), 1);
        assert!(log.lines_with("routers said") <= 3);
        assert!(world.read("resolv.conf").starts_with("nameserver 10.77.0.53\n"));
        assert_eq!(addresses_of_dhcp(&world).await.len(), 1);
        node.stop().await;
    });
}
