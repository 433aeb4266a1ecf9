//! Hears what the routers of one link say, keeps what holds of it ([`Learned`]), and carries out what a
//! DHCPv6 [`Client`] decides once one of them says that servers have more.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};

use orlop_netlink::{Mac, RouterSocket};
use orlop_rt::CancellationToken;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::advertisement::{Advertisement, Entry, Learned, Pace};
use crate::dhcp::{Carrier, Turn, now, random, wait_until};
use crate::machine::Uptime;
use crate::machine6::{Action, Client, Event, Held, Lease};
use crate::wire6::{Answer, Ask};

/// What is known of a link.
#[derive(Debug)]
pub(crate) struct Heard {
    /// The link.
    pub(crate) index: u32,
    /// What routers said, as far as it holds.
    pub(crate) learned: Learned,
    /// What a DHCPv6 server gave.
    pub(crate) lease: Option<Lease>,
}

/// Listens on one link.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Mac,
    /// The address that an earlier run had from a server: the kernel still has it.
    pub(crate) known: Option<Held>,
    /// When the sender goes, so do we.
    pub(crate) carrier: watch::Receiver<Carrier>,
    pub(crate) updates: mpsc::Sender<Heard>,
    /// An address that another host has.
    pub(crate) duplicate: watch::Receiver<Option<Ipv6Addr>>,
    /// Says that the address shall be given back.
    pub(crate) release: CancellationToken,
}

/// MAX_RTR_SOLICITATIONS and RTR_SOLICITATION_INTERVAL of RFC 4861 §10.
const MAX_SOLICITATIONS: u32 = 3;
const SOLICITATION_INTERVAL: Uptime = Uptime::from_secs(4);
/// Routers of a network say something every few seconds, and some when they are asked: of more than these
/// at once, one in each interval is listened to.
const ADVERTISEMENTS: u32 = 16;
const ADVERTISEMENT_INTERVAL: Uptime = Uptime::from_secs(1);
/// How often the log tells what they say.
const TOLD: u32 = 3;
const TOLD_INTERVAL: Uptime = Uptime::from_secs(60);
/// More than fits any frame.
const BUFFER: usize = 9216;
/// Where clients and servers of DHCPv6 listen (RFC 8415 §7.2), and how all servers are called (§7.1).
const CLIENT_PORT: u16 = 546;
const SERVER_PORT: u16 = 547;
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

enum Happened {
    Advertisement(io::Result<usize>),
    Answer(io::Result<usize>),
    Duplicate(Ipv6Addr),
    Release,
    Timer,
    Carrier(Carrier),
    Abandoned,
}

impl Listener {
    /// Runs until nobody wants to know any more.
    ///
    /// # Errors
    /// When there is no socket for it, or the socket fails.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        let first = self.carrier.wait_for(|carrier| carrier.carries).await.map(|seen| *seen);
        let Ok(mut carrier) = first else { return Ok(()) };
        let socket = RouterSocket::open(self.index, &self.name)?;
        let mut buffer = vec![0; BUFFER];
        let mut learned = Learned::default();
        // The kernel asks once the link is up; we, because its answer may have come before us.
        let mut answers = vec![0; BUFFER];
        let mut client = Client::new(self.mac);
        // Not before a router says so.
        let mut servers: Option<UdpSocket> = None;
        let mut lease = self.known.map(|held| Lease { address: Some(held), ..Lease::default() });
        let mut solicit = Some((now(), MAX_SOLICITATIONS));
        let mut pace = Pace::new(ADVERTISEMENTS, ADVERTISEMENT_INTERVAL);
        let mut telling = Pace::new(TOLD, TOLD_INTERVAL);
        loop {
            let timers = [solicit.map(|(at, _)| at), learned.wake_at(), client.wake_at()];
            let timer = timers.into_iter().flatten().min();
            // All arms are cancel-safe: a packet not taken stays in the socket.
            let happened = tokio::select! {
                received = socket.receive(&mut buffer) => Happened::Advertisement(received),
                received = receive(servers.as_ref(), &mut answers) => Happened::Answer(received),
                Some(address) = next(&mut self.duplicate) => Happened::Duplicate(address),
                () = self.release.cancelled() => Happened::Release,
                () = wait_until(timer) => Happened::Timer,
                changed = self.carrier.changed() => match changed {
                    Ok(()) => Happened::Carrier(*self.carrier.borrow_and_update()),
                    Err(_) => Happened::Abandoned,
                },
            };
            let before = learned.clone();
            let mut actions = Vec::new();
            let mut released = false;
            match happened {
                Happened::Advertisement(received) => {
                    let length = received?;
                    let entry = pace.enter(now());
                    if entry == Entry::RefusedAtLast {
                        warn!(
                            "routers say more than there can be to say: most of it is passed over"
                        );
                    }
                    let taken = Some(&buffer[..length]).filter(|_| entry == Entry::Taken);
                    if let Some(said) = taken.and_then(Advertisement::decode) {
                        debug!(?said, "router advertisement");
                        solicit = None;
                        learned.take(now(), &said);
                        if (said.managed || said.other) && servers.is_none() {
                            servers = Some(self.open_servers()?);
                        }
                        let known = self.known.take_if(|_| said.managed);
                        let event = match (said.managed, said.other) {
                            (true, _) => Some(Event::Managed(known)),
                            (false, true) => Some(Event::Other),
                            (false, false) => None,
                        };
                        actions.extend(
                            event
                                .into_iter()
                                .flat_map(|event| client.handle(now(), random(), event)),
                        );
                    }
                }
                Happened::Answer(received) => {
                    let length = received?;
                    if let Some(answer) = Answer::decode(&answers[..length], self.mac) {
                        debug!(?answer, "DHCPv6 answer");
                        actions = client.handle(now(), random(), Event::Received(&answer));
                    }
                }
                Happened::Duplicate(address) => {
                    actions = client.handle(now(), random(), Event::Duplicate(address));
                    if !actions.is_empty() {
                        warn!(%address, "another host has the address: declined");
                    }
                }
                Happened::Release => {
                    actions = client.handle(now(), random(), Event::Released);
                    released = true;
                }
                Happened::Timer => {
                    learned.expire(now());
                    actions = client.handle(now(), random(), Event::TimerFired);
                    if let Some((at, left)) = solicit.filter(|(at, _)| *at <= now()) {
                        // Without a link-local address yet the kernel refuses; the next one may pass.
                        let sent = socket.solicit().await;
                        debug!(?sent, "router solicitation");
                        solicit = (left > 1).then(|| (at + SOLICITATION_INTERVAL, left - 1));
                    }
                }
                Happened::Carrier(seen) => {
                    match seen.turn(std::mem::replace(&mut carrier, seen)) {
                        // It may be another network.
                        Some(Turn::Back) => {
                            learned = Learned::default();
                            actions = client.handle(now(), random(), Event::CarrierBack);
                            solicit = Some((now(), MAX_SOLICITATIONS));
                        }
                        // Nobody answered yet.
                        Some(Turn::Runs) if solicit.is_some() => {
                            solicit = Some((now(), MAX_SOLICITATIONS));
                        }
                        Some(Turn::Runs) | None => {}
                    }
                }
                Happened::Abandoned => return Ok(()),
            }
            let mut news = !learned.says_the_same(&before);
            if news && telling.enter(now()) == Entry::Taken {
                let resolvers = learned.resolvers().count();
                info!(resolvers, domains = learned.search().count(), "routers said");
            }
            for action in actions {
                match action {
                    Action::Send(ask) => {
                        let sent = self.ask(servers.as_ref(), &ask).await;
                        debug!(kind = ?ask.kind, ?sent, "DHCPv6 message");
                    }
                    Action::Configure(given) => {
                        news = true;
                        self.tell(lease.replace(given.clone()).as_ref(), &given);
                    }
                    Action::Deconfigure => {
                        news = true;
                        lease = None;
                        info!("no address of a DHCPv6 server any more");
                    }
                }
            }
            if news {
                let heard =
                    Heard { index: self.index, learned: learned.clone(), lease: lease.clone() };
                // The other end goes away only with us.
                let _ = self.updates.send(heard).await;
            }
            if released {
                return Ok(());
            }
        }
    }

    fn tell(&self, before: Option<&Lease>, given: &Lease) {
        let address = |lease: &Lease| lease.address.map(|held| held.address);
        let now_has = address(given);
        if before.is_none_or(|before| address(before) != now_has) {
            let resolvers = given.dns.len();
            match now_has {
                Some(address) => info!(%address, resolvers, "DHCPv6 server gave an address"),
                None => info!(resolvers, "DHCPv6 server gave settings"),
            }
        }
    }

    fn open_servers(&self) -> io::Result<UdpSocket> {
        let socket = orlop_netlink::udp6_on_link(&self.name, CLIENT_PORT)?;
        UdpSocket::from_std(socket)
    }

    async fn ask(&self, servers: Option<&UdpSocket>, ask: &Ask) -> io::Result<()> {
        let Some(socket) = servers else { return Ok(()) };
        let to = SocketAddrV6::new(ALL_SERVERS, SERVER_PORT, 0, self.index);
        socket.send_to(&ask.encode(), to).await.map(drop)
    }
}

/// The next address that another host has; `None` never comes twice. Cancel-safe.
async fn next(duplicate: &mut watch::Receiver<Option<Ipv6Addr>>) -> Option<Ipv6Addr> {
    match duplicate.changed().await {
        Ok(()) => *duplicate.borrow_and_update(),
        // The sender goes with the carrier's, which ends us.
        Err(_) => std::future::pending().await,
    }
}

/// The next message of a server; never before there is a socket. Cancel-safe.
async fn receive(servers: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<usize> {
    match servers {
        Some(socket) => socket.recv(buffer).await,
        None => std::future::pending().await,
    }
}
