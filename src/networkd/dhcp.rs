//! Carries out what one DHCP [`Client`] decides: its sockets, its timer, its memory.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_netlink::datagram::{self, Datagram, UdpChecksum};
use orlop_netlink::{Arp, ArpSocket, Link, Mac, PacketSocket, RawSocket};
use orlop_rt::{CancellationToken, Chain};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::machine::{Action, Client, Event, Lease, Remembered, Trouble, Uptime, Wishes};
use crate::wire::{CLIENT_PORT, Reply, Request, SERVER_PORT};

/// What became of a link's lease.
#[derive(Debug)]
pub(crate) struct Update {
    /// The link.
    pub(crate) index: u32,
    /// `None`: it has none any more.
    pub(crate) lease: Option<Lease>,
}

/// Whether a link carries packets, and how often it began to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carrier {
    /// It has carrier: what is sent most likely leaves.
    pub(crate) carries: bool,
    /// The kernel says that packets pass, up to a second later.
    pub(crate) running: bool,
    pub(crate) ups: u32,
}

/// What a change of carrier means to those who speak on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Carrier is back: it may be another network.
    Back,
    /// Packets pass for sure; some that were sent before may have been dropped.
    Runs,
}

impl Carrier {
    pub(crate) fn of(link: &Link) -> Self {
        Self { carries: link.carries(), running: link.running(), ups: link.carrier_ups }
    }

    /// What is new `since`; `None`: nothing to speak about.
    pub(crate) fn turn(self, since: Self) -> Option<Turn> {
        let back = !since.carries || self.ups != since.ups;
        let runs = self.running && !since.running;
        match (self.carries, back, runs) {
            (true, true, _) => Some(Turn::Back),
            (true, false, true) => Some(Turn::Runs),
            _ => None,
        }
    }
}

/// Keeps a lease for one link.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Mac,
    pub(crate) wishes: Wishes,
    pub(crate) memory: Memory,
    /// When the sender goes, so do we.
    pub(crate) carrier: watch::Receiver<Carrier>,
    pub(crate) updates: mpsc::Sender<Update>,
    /// Watches for others with our address.
    pub(crate) watch: Option<ArpSocket>,
    /// Says that the lease shall be given back.
    pub(crate) release: CancellationToken,
    /// What the operator was told since there was a lease.
    pub(crate) told: BTreeSet<Trouble>,
    /// Whether there is one.
    pub(crate) bound: bool,
}

/// Room for whatever a server may send to us: an Ethernet frame's worth.
const BUFFER: usize = 2048;

enum Happened {
    Packet(io::Result<(usize, UdpChecksum)>),
    Claim(io::Result<Arp>),
    Timer,
    Carrier(Carrier),
    Release,
    Abandoned,
}

impl Keeper {
    /// Runs until nobody wants a lease for the link any more.
    ///
    /// # Errors
    /// When there is no socket for it, or the socket fails.
    pub(crate) async fn run(mut self, remembered: Remembered) -> io::Result<()> {
        let first = self.carrier.wait_for(|carrier| carrier.carries).await.map(|seen| *seen);
        let Ok(mut carrier) = first else { return Ok(()) };
        // Not before: on a link that is down, it would begin with an error.
        let socket = PacketSocket::open(self.index, CLIENT_PORT)?;
        let routed = RawSocket::open(&self.name)?;
        let mut client = Client::new(self.mac, self.wishes.clone());
        let mut buffer = vec![0; BUFFER];
        let mut actions = client.handle(now(), random(), Event::Started(remembered));
        let mut message: &[u8] = &[];
        let mut released = false;
        loop {
            for action in actions {
                self.carry_out(action, message, &socket, &routed).await;
            }
            if released {
                return Ok(());
            }
            let timer = wait_until(client.wake_at());
            // All arms are cancel-safe: a packet not taken stays in the socket.
            let happened = tokio::select! {
                received = socket.receive(&mut buffer) => Happened::Packet(received),
                claim = claim(self.watch.as_ref()) => Happened::Claim(claim),
                () = self.release.cancelled() => Happened::Release,
                () = timer => Happened::Timer,
                changed = self.carrier.changed() => match changed {
                    Ok(()) => Happened::Carrier(*self.carrier.borrow_and_update()),
                    Err(_) => Happened::Abandoned,
                },
            };
            message = &[];
            actions = match happened {
                Happened::Timer => client.handle(now(), random(), Event::TimerFired),
                Happened::Claim(Ok(claim)) => {
                    client.handle(now(), random(), Event::Claimed(&claim))
                }
                // Said once when the link goes down.
                Happened::Claim(Err(error)) => {
                    debug!(%error, "ARP socket");
                    vec![]
                }
                Happened::Release => {
                    released = true;
                    client.handle(now(), random(), Event::Released)
                }
                Happened::Carrier(seen) => {
                    let event = match seen.turn(std::mem::replace(&mut carrier, seen)) {
                        Some(Turn::Back) => Some(Event::CarrierBack),
                        Some(Turn::Runs) => Some(Event::LinkRuns),
                        None => None,
                    };
                    event.map_or(vec![], |event| client.handle(now(), random(), event))
                }
                Happened::Abandoned => return Ok(()),
                Happened::Packet(Ok((length, checksum))) => {
                    let packet = datagram::parse(&buffer[..length], checksum);
                    message = packet.map_or(&[], |packet| packet.payload);
                    match Reply::decode(message) {
                        Some(reply) => {
                            debug!(kind = ?reply.kind, address = %reply.address, "DHCP answer");
                            client.handle(now(), random(), Event::Received(&reply))
                        }
                        None => vec![],
                    }
                }
                // Said once when the link goes down; what comes next is a change of carrier.
                Happened::Packet(Err(error)) if error.kind() == io::ErrorKind::NetworkDown => {
                    vec![]
                }
                Happened::Packet(Err(error)) => return Err(error),
            };
        }
    }

    /// `message` is what led to the action.
    async fn carry_out(
        &mut self,
        action: Action,
        message: &[u8],
        socket: &PacketSocket,
        routed: &RawSocket,
    ) {
        let lease = match action {
            Action::Send { request, source, destination } => {
                let sent = send(&request, source, destination, socket, routed).await;
                debug!(kind = ?request.kind, %destination, ?sent, "DHCP message");
                return;
            }
            Action::Remember => return self.memory.store(message, now()),
            Action::SendArp(arp) => {
                self.watch(arp.target_address);
                if let Some(watch) = &self.watch {
                    let sent = watch.broadcast(&arp).await;
                    debug!(address = %arp.target_address, ?sent, "ARP message");
                }
                return;
            }
            Action::Trouble(trouble) => {
                if self.told.insert(trouble) {
                    let says = match trouble {
                        Trouble::Useless => "what a DHCP server offers is of no use: asking on",
                        Trouble::Refused => "a DHCP server refuses what it offers: asking on",
                    };
                    warn!("{says}");
                }
                return;
            }
            Action::Contested { address, by } => {
                warn!(%address, %by, "another host uses the address");
                return;
            }
            Action::Configure(lease) => {
                self.watch(lease.address.addr());
                self.told.clear();
                self.bound = true;
                Some(lease)
            }
            Action::Deconfigure => {
                if std::mem::replace(&mut self.bound, false) {
                    info!("no lease");
                }
                self.memory.forget();
                self.watch = None;
                None
            }
        };
        // The other end goes away only with us.
        let _ = self.updates.send(Update { index: self.index, lease }).await;
    }
}

impl Keeper {
    /// Listens for others with this address. Without such a socket, conflicts go unseen.
    fn watch(&mut self, address: Ipv4Addr) {
        if self.watch.as_ref().is_some_and(|watch| watch.address() == address) {
            return;
        }
        match ArpSocket::open(self.index, address) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => {
                warn!(%address, error = %Chain(&error), "conflicts of the address cannot be seen");
                self.watch = None;
            }
        }
    }
}

/// The next claim of our address; never when we do not watch for any. Cancel-safe.
async fn claim(watch: Option<&ArpSocket>) -> io::Result<Arp> {
    match watch {
        Some(watch) => watch.receive().await,
        None => std::future::pending().await,
    }
}

/// Before there is an address, and to everyone, below the kernel's own UDP; to a server, through
/// the kernel's routes.
async fn send(
    request: &Request,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    socket: &PacketSocket,
    routed: &RawSocket,
) -> io::Result<()> {
    let packet = datagram::build(&Datagram {
        source: SocketAddrV4::new(source, CLIENT_PORT),
        destination: SocketAddrV4::new(destination, SERVER_PORT),
        payload: &request.encode(),
    })
    .ok_or(io::ErrorKind::InvalidInput)?;
    if destination.is_broadcast() {
        socket.broadcast(&packet).await
    } else {
        routed.send(&packet, destination).await
    }
}

/// The last ACK of a link, kept in a file: as it came, after a line that says in which boot and when.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    boot: String,
}

impl Memory {
    /// The memory of the link called `name` in `folder`.
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        // Without an identity of the boot, no lease is ever taken up again.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { path: folder.join(format!("{name}.lease")), boot: boot.trim().to_owned() }
    }

    /// A lease of this boot may hold still. Of an earlier one only the address counts: how long the
    /// machine was off, nobody knows.
    pub(crate) fn recall(&self, now: Uptime) -> Remembered {
        std::fs::read(&self.path)
            .ok()
            .and_then(|bytes| self.read(&bytes, now))
            .unwrap_or(Remembered::Nothing)
    }

    fn read(&self, bytes: &[u8], now: Uptime) -> Option<Remembered> {
        let at = bytes.iter().position(|byte| *byte == b'\n')?;
        let (line, message) = (std::str::from_utf8(&bytes[..at]).ok()?, &bytes[at + 1..]);
        let (boot, millis) = line.split_once(' ')?;
        let given_at = Duration::from_millis(millis.parse().ok()?);
        let reply = Reply::decode(message)?;
        let lease = Lease::from_reply(&reply, given_at)?;
        if boot != self.boot || boot.is_empty() {
            return Some(Remembered::Address(lease.address.addr()));
        }
        lease.holds(now).then_some(Remembered::Lease(lease))
    }

    fn store(&self, message: &[u8], now: Uptime) {
        let mut bytes = format!("{} {}\n", self.boot, now.as_millis()).into_bytes();
        bytes.extend(message);
        if let Err(error) = orlop_rt::replace(&self.path, 0o600, &bytes) {
            warn!(path = %self.path.display(), error = %Chain(&error), "lease not remembered");
        }
    }

    fn forget(&self) {
        // Absent is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Time since the machine started.
pub(crate) fn now() -> Uptime {
    orlop_sys::monotonic()
}

/// Returns at that time, or never.
pub(crate) async fn wait_until(at: Option<Uptime>) {
    match at {
        // Our clock shows fractions of the timer's millisecond: rather late than early and again.
        Some(at) => tokio::time::sleep(at.saturating_sub(now())).await,
        None => std::future::pending().await,
    }
}

/// A number that others on the network cannot guess: std keys its hashes from the kernel's generator.
pub(crate) fn random() -> u32 {
    let bits = RandomState::new().build_hasher().finish();
    u32::try_from(bits >> 32).unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::wire::option;

    /// An ACK for 10.0.0.5/24 and 100 s.
    fn ack() -> Vec<u8> {
        let mut message = vec![0; 240];
        message[..3].copy_from_slice(&[2, 1, 6]);
        message[16..20].copy_from_slice(&[10, 0, 0, 5]);
        message[236..].copy_from_slice(&[99, 130, 83, 99]);
        message.extend([option::MESSAGE_TYPE, 1, 5, option::SERVER_IDENTIFIER, 4, 10, 0, 0, 1]);
        message.extend([
            option::LEASE_TIME,
            4,
            0,
            0,
            0,
            100,
            option::SUBNET_MASK,
            4,
            255,
            255,
            255,
            0,
        ]);
        message
    }

    #[test]
    fn carrier_that_is_back_is_told_from_a_link_that_runs_at_last() {
        let down = Carrier { carries: false, running: false, ups: 1 };
        let carries = Carrier { carries: true, ups: 2, ..down };
        let runs = Carrier { running: true, ..carries };
        for (before, after, turn) in [
            (down, carries, Some(Turn::Back)),
            (down, runs, Some(Turn::Back)),
            (carries, runs, Some(Turn::Runs)),
            (carries, carries, None),
            // The kernel is late to say that it did not run meanwhile.
            (runs, carries, None),
            (runs, down, None),
            // Too short to be seen.
            (runs, Carrier { ups: 3, ..runs }, Some(Turn::Back)),
            (carries, Carrier { ups: 3, ..carries }, Some(Turn::Back)),
        ] {
            assert_eq!(after.turn(before), turn, "{before:?} {after:?}");
        }
    }

    #[test]
    fn a_lease_is_remembered_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path(), "eth0");
        let secs = Duration::from_secs;
        assert_eq!(memory.recall(secs(0)), Remembered::Nothing);
        memory.store(&ack(), secs(50));
        let Remembered::Lease(lease) = memory.recall(secs(149)) else { panic!("no lease") };
        assert_eq!(lease.address, "10.0.0.5/24".parse().unwrap());
        assert_eq!(lease.times.unwrap().expires_at, secs(150));
        assert_eq!(memory.recall(secs(150)), Remembered::Nothing);

        let other_boot = Memory { boot: "other".to_owned(), ..memory.clone() };
        assert_eq!(other_boot.recall(secs(60)), Remembered::Address([10, 0, 0, 5].into()));
        memory.forget();
        assert_eq!(memory.recall(secs(60)), Remembered::Nothing);
    }

    #[test]
    fn a_damaged_memory_is_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path(), "eth0");
        memory.store(&ack(), Duration::ZERO);
        let whole = std::fs::read(&memory.path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&memory.path, &whole[..length]).unwrap();
            // Without its last options it may still be a lease; it must never be worse than that.
            let _ = memory.recall(Duration::ZERO);
        }
        std::fs::write(&memory.path, "x y\nz").unwrap();
        assert_eq!(memory.recall(Duration::ZERO), Remembered::Nothing);
    }
}
