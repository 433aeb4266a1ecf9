//! DHCPv4 client, RFC 2131 §4.4: decides what to send and when. Owns no socket and reads no clock.
//!
//! ```text
//!           Started                        OFFER               ACK            nobody has it
//!  Stopped ---------> Init --> Selecting --------> Requesting -----> Probing ---------> Bound <---+
//!     |                ^           ^   no answer      |  NAK           |                  | T1    |
//!     | remembered     |           +------------------+----> Init      | DECLINE          v  ACK  |
//!     +--> Rebooting --+ NAK, or no answer and no lease  <-------------+              Renewing ---+
//!              |                                                                          | T2    |
//!              +--> Bound: ACK, or no answer and the lease holds                          v  ACK  |
//!                                                      Init <----------------------- Rebinding ---+
//!                                                            expired, NAK
//! ```
//!
//! An address that is new to us is used only after nobody on the link answered to three ARP probes
//! (RFC 5227 §2.1); in a data centre an answer takes well below a millisecond, so they follow each
//! other faster than the RFC's, which would cost each boot 5 seconds and more. An address in use is
//! defended (§2.4 (c)): a node that has connections never gives it up because of another's claim.
//!
//! Time is the time since the machine started (`CLOCK_MONOTONIC`): it can be remembered in a file,
//! and no change of the date moves it.

use std::net::Ipv4Addr;
use std::time::Duration;

use orlop_netlink::{Arp, Ipv4Net, Mac};
use orlop_rt::Backoff;

use crate::wire::{Reply, ReplyKind, Request, RequestKind, of_a_host, option};

/// Time since the machine started.
pub type Uptime = Duration;

/// An address that a server lets us use for a while, and what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address with its network.
    pub address: Ipv4Net,
    /// Who gave it, and is asked to renew it.
    pub server: Ipv4Addr,
    /// Where to; a gateway `None` means on the link. Option 121 replaces option 3 (RFC 3442).
    pub routes: Vec<(Ipv4Net, Option<Ipv4Addr>)>,
    /// Resolvers, best first.
    pub dns: Vec<Ipv4Addr>,
    /// Time servers, best first.
    pub ntp: Vec<Ipv4Addr>,
    /// What the server calls us.
    pub host_name: Option<String>,
    /// The domain we are in.
    pub domain: Option<String>,
    /// Domains to look for short names in, best first.
    pub search: Vec<String>,
    /// For the link.
    pub mtu: Option<u16>,
    /// When it ends, and before that; `None` when it never does.
    pub times: Option<Times>,
}

/// `renew_at <= rebind_at <= expires_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// T1: ask the server for more.
    pub renew_at: Uptime,
    /// T2: ask anyone.
    pub rebind_at: Uptime,
    /// The address must not be used any longer.
    pub expires_at: Uptime,
}

/// What may be known from an earlier run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is soon taken apart")]
pub enum Remembered {
    /// Nothing.
    Nothing,
    /// The address we had before the machine was started anew.
    Address(Ipv4Addr),
    /// A lease that the network may still know us by.
    Lease(Lease),
}

/// What happens to a client.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The link carries packets for the first time.
    Started(Remembered),
    /// It carries them again: it may be another network.
    CarrierBack,
    /// What was sent since it began to carry may not have left yet; what is sent from here on does.
    LinkRuns,
    /// A message came in.
    Received(&'a Reply),
    /// An ARP message came in that claims our address or asks for it.
    Claimed(&'a Arp),
    /// Nobody wants the lease any more.
    Released,
    /// The time of [`Client::wake_at`] has come.
    TimerFired,
}

/// What a client wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send it from `source` (unspecified: we have none) to `destination` (broadcast or a server).
    Send {
        /// The message.
        request: Request,
        /// IPv4 source address.
        source: Ipv4Addr,
        /// IPv4 destination address.
        destination: Ipv4Addr,
    },
    /// Keep the message that just came in: it is what to remember the coming lease by.
    Remember,
    /// Send it to everyone on the link.
    SendArp(Arp),
    /// Tell the operator, once, that the server keeps us from having an address.
    Trouble(Trouble),
    /// Tell the operator that somebody else uses this address.
    Contested {
        /// Which.
        address: Ipv4Addr,
        /// Who.
        by: Mac,
    },
    /// Use this lease, in place of any other.
    Configure(Lease),
    /// Stop using the lease.
    Deconfigure,
}

/// How a server keeps us from having an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// What it offers is no host's address, or has no time.
    Useless,
    /// It refuses what it offered.
    Refused,
}

/// What to ask servers for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Our name, told to the server (option 12); also means that we do not want one from it.
    pub host_name: Option<String>,
    /// Whether the server may set the link's MTU.
    pub mtu: bool,
    /// How often to ask whether another host has the address (RFC 5227 §2.1).
    pub probes: u32,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { host_name: None, mtu: false, probes: PROBES }
    }
}

/// A DHCPv4 client for one link.
#[derive(Debug)]
pub struct Client {
    mac: Mac,
    wishes: Wishes,
    state: State,
    /// Between attempts that end in NAK; starts again at each lease.
    refused: Backoff,
    /// When to say once more that an address is ours.
    announce_at: Option<Uptime>,
    /// When we last said so against another's claim.
    defended_at: Option<Uptime>,
}

#[derive(Debug)]
enum State {
    Stopped,
    /// Asks for offers at this time.
    Init(Uptime),
    Selecting(Exchange),
    Requesting {
        exchange: Exchange,
        address: Ipv4Addr,
        server: Ipv4Addr,
    },
    /// INIT-REBOOT and REBOOTING: asks whether `address` is still ours.
    Rebooting {
        exchange: Exchange,
        address: Ipv4Addr,
        lease: Option<Lease>,
    },
    /// Asks whether anybody else has the address.
    Probing {
        lease: Lease,
        /// How often we asked.
        sent: u32,
        next_at: Uptime,
    },
    Bound(Lease),
    Renewing(Exchange, Lease, Times),
    Rebinding(Exchange, Lease, Times),
}

/// Our question and how often we have asked it.
#[derive(Clone, Debug)]
struct Exchange {
    xid: u32,
    since: Uptime,
    sent: u32,
    resend_at: Uptime,
    backoff: Backoff,
}

/// The lease time when the server names none (node-api §9.4).
const DEFAULT_LEASE_SECS: u32 = 30 * 60;
const FOREVER: u32 = u32::MAX;
/// Between two tries. RFC 2131 §4.1 would wait 4 s for the first answer; a booting node does not.
const FIRST_RESEND: Duration = Duration::from_secs(1);
const LAST_RESEND: Duration = Duration::from_secs(64);
/// Tries before a chosen server is given up.
const MAX_REQUESTS: u32 = 4;
/// Tries before nobody is taken to object to what we remember.
const MAX_REBOOTS: u32 = 3;
/// No server may make us renew faster.
const MIN_RENEWAL: Duration = Duration::from_secs(1);
/// Between two tries to renew or rebind (node-api §9.4).
const MIN_RENEWAL_RETRY: Duration = Duration::from_secs(5);
/// PROBE_NUM of RFC 5227 §1.1.
pub const PROBES: u32 = 3;
/// Where the RFC has 1 to 2 s.
const PROBE_INTERVAL: Duration = Duration::from_millis(60);
/// ANNOUNCE_INTERVAL of RFC 5227 §1.1, and how long a claim is not answered again.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// RFC 2131 §3.1 (5).
const AFTER_DECLINE: Duration = Duration::from_secs(10);

impl Lease {
    /// The lease that an OFFER or ACK of time `now` gives; `None` when it is no use: no host's
    /// address, no server, no time.
    #[must_use]
    pub fn from_reply(reply: &Reply, now: Uptime) -> Option<Self> {
        let server = reply.server?;
        let prefix_len = reply.prefix_len.unwrap_or_else(|| class_prefix_len(reply.address));
        let address = Ipv4Net::new(reply.address, prefix_len).ok()?;
        let is_network_or_broadcast =
            prefix_len < 31 && [address.network(), address.broadcast()].contains(&reply.address);
        if !of_a_host(reply.address) || is_network_or_broadcast {
            return None;
        }
        let times = match reply.lease_secs.unwrap_or(DEFAULT_LEASE_SECS) {
            0 => return None,
            FOREVER => None,
            secs => Some(Times::new(now, secs, reply.renewal_secs, reply.rebinding_secs)),
        };
        let default_route = || {
            let router = reply.routers.first()?;
            Some((Ipv4Net::default(), Some(*router)))
        };
        let routes = match &reply.classless_routes {
            Some(routes) => routes.clone(),
            None => default_route().into_iter().collect(),
        };
        Some(Self {
            address,
            server,
            routes,
            dns: reply.dns.clone(),
            ntp: reply.ntp.clone(),
            host_name: reply.host_name.clone(),
            domain: reply.domain.clone(),
            search: reply.search.clone(),
            mtu: reply.mtu,
            times,
        })
    }

    /// Whether it may still be used.
    #[must_use]
    pub fn holds(&self, now: Uptime) -> bool {
        self.times.is_none_or(|times| now < times.expires_at)
    }
}

impl Times {
    fn new(now: Uptime, lease_secs: u32, t1: Option<u32>, t2: Option<u32>) -> Self {
        let lease = Duration::from_secs(lease_secs.into());
        let given = t1
            .zip(t2)
            .map(|(t1, t2)| (Duration::from_secs(t1.into()), Duration::from_secs(t2.into())));
        // RFC 2131 §4.4.5; times out of order are no times.
        let (t1, t2) = match given {
            Some((t1, t2)) if MIN_RENEWAL <= t1 && t1 <= t2 && t2 <= lease => (t1, t2),
            _ => {
                let t1 = (lease / 2).max(MIN_RENEWAL).min(lease);
                (t1, (lease * 7 / 8).max(t1))
            }
        };
        Self { renew_at: now + t1, rebind_at: now + t2, expires_at: now + lease }
    }
}

/// The prefix length before there were masks (RFC 791 §3.2), for servers that still send none.
fn class_prefix_len(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        ..128 => 8,
        128..192 => 16,
        192.. => 24,
    }
}

impl Client {
    /// A client for the link with this hardware address. It does nothing before
    /// [`Event::Started`].
    #[must_use]
    pub fn new(mac: Mac, wishes: Wishes) -> Self {
        let refused = Backoff::new(FIRST_RESEND, LAST_RESEND);
        let state = State::Stopped;
        Self { mac, wishes, state, refused, announce_at: None, defended_at: None }
    }

    /// When [`Event::TimerFired`] is due; `None` when only a message can change anything.
    #[must_use]
    pub fn wake_at(&self) -> Option<Uptime> {
        self.state_timer().into_iter().chain(self.announce_at).min()
    }

    fn state_timer(&self) -> Option<Uptime> {
        match &self.state {
            State::Stopped => None,
            State::Probing { next_at, .. } => Some(*next_at),
            State::Init(at) => Some(*at),
            State::Selecting(exchange)
            | State::Requesting { exchange, .. }
            | State::Rebooting { exchange, lease: None, .. } => Some(exchange.resend_at),
            State::Rebooting { exchange, lease: Some(lease), .. } => {
                let expires_at = lease.times.map(|times| times.expires_at);
                Some(expires_at.map_or(exchange.resend_at, |at| at.min(exchange.resend_at)))
            }
            State::Bound(lease) => lease.times.map(|times| times.renew_at),
            State::Renewing(exchange, _, times) => Some(exchange.resend_at.min(times.rebind_at)),
            State::Rebinding(exchange, _, times) => Some(exchange.resend_at.min(times.expires_at)),
        }
    }

    /// Takes an event. `random` makes transaction ids and jitter.
    pub fn handle(&mut self, now: Uptime, random: u32, event: Event<'_>) -> Vec<Action> {
        match event {
            Event::Started(remembered) => self.start(now, random, remembered),
            Event::CarrierBack => match std::mem::replace(&mut self.state, State::Stopped) {
                State::Bound(lease)
                | State::Renewing(_, lease, _)
                | State::Rebinding(_, lease, _)
                | State::Rebooting { lease: Some(lease), .. } => self.reboot(now, random, lease),
                State::Rebooting { address, lease: None, .. } => {
                    self.start(now, random, Remembered::Address(address))
                }
                State::Stopped
                | State::Init(_)
                | State::Selecting(_)
                | State::Requesting { .. }
                | State::Probing { .. } => self.discover(now, random),
            },
            Event::LinkRuns => self.ask_anew(now, random),
            Event::Received(reply) => self.receive(now, random, reply),
            Event::Claimed(claim) => self.contest(now, random, claim),
            Event::Released => self.release(random),
            Event::TimerFired => {
                let mut actions = Vec::new();
                if self.announce_at.is_some_and(|at| at <= now) {
                    self.announce_at = None;
                    actions.extend(self.announcement());
                }
                if self.state_timer().is_some_and(|at| at <= now) {
                    actions.extend(self.time_out(now, random));
                }
                actions
            }
        }
    }

    fn start(&mut self, now: Uptime, random: u32, remembered: Remembered) -> Vec<Action> {
        match remembered {
            Remembered::Nothing => self.discover(now, random),
            Remembered::Lease(lease) => self.reboot(now, random, lease),
            Remembered::Address(address) => {
                let exchange = Exchange::new(now, random);
                self.state = State::Rebooting { exchange, address, lease: None };
                self.send(now, random).into_iter().collect()
            }
        }
    }

    /// Goes on using a lease and asks whether it may.
    fn reboot(&mut self, now: Uptime, random: u32, lease: Lease) -> Vec<Action> {
        if !lease.holds(now) {
            return self.lose(now, random, now);
        }
        let exchange = Exchange::new(now, random);
        let address = lease.address.addr();
        let mut actions = vec![Action::Configure(lease.clone())];
        self.state = State::Rebooting { exchange, address, lease: Some(lease) };
        actions.extend(self.send(now, random));
        actions
    }

    fn discover(&mut self, now: Uptime, random: u32) -> Vec<Action> {
        self.state = State::Selecting(Exchange::new(now, random));
        self.send(now, random).into_iter().collect()
    }

    /// Says the first message again, as if it had not been said, when nobody has answered to it.
    fn ask_anew(&mut self, now: Uptime, random: u32) -> Vec<Action> {
        let (State::Selecting(exchange) | State::Rebooting { exchange, .. }) = &mut self.state
        else {
            return vec![];
        };
        *exchange = Exchange { since: exchange.since, ..Exchange::new(now, exchange.xid) };
        self.send(now, random).into_iter().collect()
    }

    /// The lease in use.
    fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound(lease)
            | State::Renewing(_, lease, _)
            | State::Rebinding(_, lease, _)
            | State::Rebooting { lease: Some(lease), .. } => Some(lease),
            _ => None,
        }
    }

    fn announcement(&self) -> Option<Action> {
        let address = self.lease()?.address.addr();
        Some(Action::SendArp(Arp::announcement(self.mac, address)))
    }

    /// Asks whether anybody has the address, or takes it after the last question (RFC 5227 §2.1.1).
    fn probe(&mut self, now: Uptime, random: u32) -> Vec<Action> {
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Probing { lease, .. } if !lease.holds(now) => self.discover(now, random),
            State::Probing { lease, sent, .. } if sent >= self.wishes.probes => {
                self.refused.reset();
                self.state = State::Bound(lease.clone());
                self.announce_at = Some(now + ANNOUNCE_INTERVAL);
                let announcement = self.announcement();
                std::iter::once(Action::Configure(lease)).chain(announcement).collect()
            }
            State::Probing { lease, sent, .. } => {
                let probe = Arp::probe(self.mac, lease.address.addr());
                let next_at = now + PROBE_INTERVAL;
                self.state = State::Probing { lease, sent: sent + 1, next_at };
                vec![Action::SendArp(probe)]
            }
            other => {
                self.state = other;
                vec![]
            }
        }
    }

    /// Somebody else says that an address of ours is theirs.
    fn contest(&mut self, now: Uptime, random: u32, claim: &Arp) -> Vec<Action> {
        if claim.sender == self.mac {
            return vec![];
        }
        if let State::Probing { lease, .. } = &self.state {
            let address = lease.address.addr();
            let asks = claim.sender_address.is_unspecified() && claim.target_address == address;
            if claim.sender_address != address && !asks {
                return vec![];
            }
            let decline = Request {
                address: Some(address),
                server: Some(lease.server),
                ..self.farewell(RequestKind::Decline, random)
            };
            let decline = Action::Send {
                request: decline,
                source: Ipv4Addr::UNSPECIFIED,
                destination: Ipv4Addr::BROADCAST,
            };
            let contested = Action::Contested { address, by: claim.sender };
            // RFC 2131 §3.1 (5): at least ten seconds, so that a server that learns nothing is not
            // asked all the time.
            let again_at = now + self.refused.next(random).max(AFTER_DECLINE);
            self.state = State::Init(again_at);
            return vec![contested, decline, Action::Deconfigure];
        }
        let Some(lease) = self.lease() else { return vec![] };
        let address = lease.address.addr();
        let recently = self.defended_at.is_some_and(|at| now < at + DEFEND_INTERVAL);
        if claim.sender_address != address || recently {
            return vec![];
        }
        self.defended_at = Some(now);
        let contested = Action::Contested { address, by: claim.sender };
        std::iter::once(contested).chain(self.announcement()).collect()
    }

    /// Gives the lease back (RFC 2131 §4.4.6).
    fn release(&mut self, random: u32) -> Vec<Action> {
        let released = self.lease().map(|lease| (lease.address.addr(), lease.server));
        self.state = State::Stopped;
        self.announce_at = None;
        let Some((address, server)) = released else { return vec![] };
        let request = Request {
            ciaddr: address,
            server: Some(server),
            ..self.farewell(RequestKind::Release, random)
        };
        // The message first: it needs the address.
        vec![Action::Send { request, source: address, destination: server }, Action::Deconfigure]
    }

    fn farewell(&self, kind: RequestKind, xid: u32) -> Request {
        Request {
            kind,
            xid,
            secs: 0,
            mac: self.mac,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            address: None,
            server: None,
            host_name: None,
            wanted: Vec::new(),
        }
    }

    /// Stops using the lease, and asks for another one at `again_at`.
    fn lose(&mut self, now: Uptime, random: u32, again_at: Uptime) -> Vec<Action> {
        self.announce_at = None;
        let mut actions = vec![Action::Deconfigure];
        if again_at <= now {
            actions.extend(self.discover(now, random));
        } else {
            self.state = State::Init(again_at);
        }
        actions
    }

    fn receive(&mut self, now: Uptime, random: u32, reply: &Reply) -> Vec<Action> {
        let xid = match &self.state {
            State::Stopped | State::Init(_) | State::Probing { .. } | State::Bound(_) => {
                return vec![];
            }
            State::Selecting(exchange)
            | State::Requesting { exchange, .. }
            | State::Rebooting { exchange, .. }
            | State::Renewing(exchange, ..)
            | State::Rebinding(exchange, ..) => exchange.xid,
        };
        if reply.xid != xid || reply.mac != self.mac {
            return vec![];
        }
        match (&self.state, reply.kind) {
            (State::Selecting(exchange), ReplyKind::Offer) => {
                // The first usable offer wins: a better one is not worth the wait.
                let Some(offer) = Lease::from_reply(reply, now) else {
                    return vec![Action::Trouble(Trouble::Useless)];
                };
                let exchange = Exchange { since: exchange.since, ..Exchange::new(now, xid) };
                let (address, server) = (offer.address.addr(), offer.server);
                self.state = State::Requesting { exchange, address, server };
                self.send(now, random).into_iter().collect()
            }
            (State::Requesting { server, .. }, _) if reply.server != Some(*server) => vec![],
            // Only the one that was asked may refuse.
            (State::Renewing(_, lease, _), ReplyKind::Nak)
                if reply.server.is_some_and(|server| server != lease.server) =>
            {
                vec![]
            }
            (State::Requesting { .. }, ReplyKind::Nak) => {
                let again_at = now + self.refused.next(random);
                let mut actions = self.lose(now, random, again_at);
                actions.push(Action::Trouble(Trouble::Refused));
                actions
            }
            (
                State::Rebooting { .. } | State::Renewing(..) | State::Rebinding(..),
                ReplyKind::Nak,
            ) => self.lose(now, random, now),
            (
                State::Requesting { .. }
                | State::Rebooting { .. }
                | State::Renewing(..)
                | State::Rebinding(..),
                ReplyKind::Ack,
            ) => {
                let Some(lease) = Lease::from_reply(reply, now) else {
                    return vec![Action::Trouble(Trouble::Useless)];
                };
                let known = self.lease().is_some_and(|held| held.address == lease.address);
                if known {
                    self.refused.reset();
                    self.state = State::Bound(lease.clone());
                    vec![Action::Remember, Action::Configure(lease)]
                } else {
                    // Another address than the one in use: that one is no longer ours.
                    let mut actions = Vec::new();
                    actions.extend(self.lease().map(|_| Action::Deconfigure));
                    actions.push(Action::Remember);
                    self.state = State::Probing { lease, sent: 0, next_at: now };
                    actions.extend(self.probe(now, random));
                    actions
                }
            }
            _ => vec![],
        }
    }

    fn time_out(&mut self, now: Uptime, random: u32) -> Vec<Action> {
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Stopped => vec![],
            State::Init(_) => self.discover(now, random),
            state @ State::Probing { .. } => {
                self.state = state;
                self.probe(now, random)
            }
            State::Requesting { exchange, .. } if exchange.sent >= MAX_REQUESTS => {
                self.discover(now, random)
            }
            State::Rebooting { lease: Some(lease), .. } if !lease.holds(now) => {
                self.lose(now, random, now)
            }
            State::Rebooting { exchange, lease, .. } if exchange.sent >= MAX_REBOOTS => match lease
            {
                // RFC 2131 §4.4.2: nobody objects, so the lease holds until it ends.
                Some(lease) => {
                    self.state = State::Bound(lease);
                    vec![]
                }
                None => self.discover(now, random),
            },
            State::Bound(lease) => match lease.times {
                Some(times) => {
                    self.state = State::Renewing(Exchange::new(now, random), lease, times);
                    self.time_out_of_lease(now, random, times)
                }
                None => {
                    self.state = State::Bound(lease);
                    vec![]
                }
            },
            State::Renewing(exchange, lease, times) => {
                self.state = State::Renewing(exchange, lease, times);
                self.time_out_of_lease(now, random, times)
            }
            State::Rebinding(exchange, lease, times) => {
                self.state = State::Rebinding(exchange, lease, times);
                self.time_out_of_lease(now, random, times)
            }
            state @ (State::Selecting(_) | State::Requesting { .. } | State::Rebooting { .. }) => {
                self.state = state;
                self.send(now, random).into_iter().collect()
            }
        }
    }

    /// Renewing or rebinding: moves on as far as the lease's times say, then asks (again).
    fn time_out_of_lease(&mut self, now: Uptime, random: u32, times: Times) -> Vec<Action> {
        if now >= times.expires_at {
            return self.lose(now, random, now);
        }
        if now >= times.rebind_at {
            let state = std::mem::replace(&mut self.state, State::Stopped);
            self.state = match state {
                State::Renewing(_, lease, _) => {
                    State::Rebinding(Exchange::new(now, random), lease, times)
                }
                other => other,
            };
        }
        self.send(now, random).into_iter().collect()
    }

    /// Says once more what the state has to say, and sets the time of the next try.
    fn send(&mut self, now: Uptime, random: u32) -> Option<Action> {
        let (exchange, deadline) = match &mut self.state {
            State::Selecting(exchange)
            | State::Requesting { exchange, .. }
            | State::Rebooting { exchange, .. } => (exchange, None),
            State::Renewing(exchange, _, times) => (exchange, Some(times.rebind_at)),
            State::Rebinding(exchange, _, times) => (exchange, Some(times.expires_at)),
            State::Stopped | State::Init(_) | State::Probing { .. } | State::Bound(_) => {
                return None;
            }
        };
        exchange.sent += 1;
        exchange.resend_at = now
            + match deadline {
                None => exchange.backoff.next(random),
                // RFC 2131 §4.4.5: half of the time that is left.
                Some(at) => (at.saturating_sub(now) / 2).max(MIN_RENEWAL_RETRY),
            };
        let exchange = exchange.clone();

        let everyone = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        let (kind, ciaddr, address, server, (source, destination)) = match &self.state {
            State::Requesting { address, server, .. } => (
                RequestKind::Request,
                Ipv4Addr::UNSPECIFIED,
                Some(*address),
                Some(*server),
                everyone,
            ),
            State::Rebooting { address, .. } => {
                (RequestKind::Request, Ipv4Addr::UNSPECIFIED, Some(*address), None, everyone)
            }
            State::Renewing(_, lease, _) => {
                let address = lease.address.addr();
                (RequestKind::Request, address, None, None, (address, lease.server))
            }
            State::Rebinding(_, lease, _) => {
                let address = lease.address.addr();
                (RequestKind::Request, address, None, None, (address, Ipv4Addr::BROADCAST))
            }
            _ => (RequestKind::Discover, Ipv4Addr::UNSPECIFIED, None, None, everyone),
        };
        let secs = now.saturating_sub(exchange.since).as_secs();
        let request = Request {
            kind,
            xid: exchange.xid,
            secs: u16::try_from(secs).unwrap_or(u16::MAX),
            mac: self.mac,
            ciaddr,
            address,
            server,
            host_name: self.wishes.host_name.clone(),
            wanted: self.wishes.options(),
        };
        Some(Action::Send { request, source, destination })
    }
}

impl Wishes {
    /// Option 55. RFC 3442 wants 121 before 3.
    fn options(&self) -> Vec<u8> {
        let mut options = vec![
            option::SUBNET_MASK,
            option::CLASSLESS_ROUTES,
            option::ROUTER,
            option::DOMAIN_NAME_SERVER,
            option::DOMAIN_SEARCH,
            option::NTP_SERVERS,
            option::DOMAIN_NAME,
        ];
        if self.host_name.is_none() {
            options.push(option::HOST_NAME);
        }
        if self.mtu {
            options.push(option::INTERFACE_MTU);
        }
        options
    }
}

impl Exchange {
    fn new(now: Uptime, xid: u32) -> Self {
        let backoff = Backoff::new(FIRST_RESEND, LAST_RESEND);
        Self { xid, since: now, sent: 0, resend_at: now, backoff }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
