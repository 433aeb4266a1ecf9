//! DHCPv4 client, RFC 2131 §4.4: decides what to send and when. Owns no socket and reads no clock.
//!
//! ```text
//!           Started                        OFFER               ACK
//!  Stopped ---------> Init --> Selecting --------> Requesting -----> Bound <------------+
//!     |                ^           ^   no answer      |  NAK          | T1             |
//!     | remembered     |           +------------------+----> Init     v          ACK   |
//!     +--> Rebooting --+ NAK, or no answer and no lease            Renewing -----------+
//!              |                                                      | T2             |
//!              +--> Bound: ACK, or no answer and the lease holds      v          ACK   |
//!                                                 Init <--------- Rebinding -----------+
//!                                                      expired, NAK
//! ```
//!
//! Time is the time since the machine started (`CLOCK_MONOTONIC`): it can be remembered in a file,
//! and no change of the date moves it.

use std::net::Ipv4Addr;
use std::time::Duration;

use orlop_netlink::{Ipv4Net, Mac};
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
    /// A message came in.
    Received(&'a Reply),
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
    /// Use this lease, in place of any other.
    Configure(Lease),
    /// Stop using the lease.
    Deconfigure,
}

/// What to ask servers for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Our name, told to the server (option 12); also means that we do not want one from it.
    pub host_name: Option<String>,
    /// Whether the server may set the link's MTU.
    pub mtu: bool,
}

/// A DHCPv4 client for one link.
#[derive(Debug)]
pub struct Client {
    mac: Mac,
    wishes: Wishes,
    state: State,
    /// Between attempts that end in NAK; starts again at each lease.
    refused: Backoff,
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
            _ => (lease / 2, lease * 7 / 8),
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
        Self { mac, wishes, state: State::Stopped, refused }
    }

    /// When [`Event::TimerFired`] is due; `None` when only a message can change anything.
    #[must_use]
    pub fn wake_at(&self) -> Option<Uptime> {
        match &self.state {
            State::Stopped => None,
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
                | State::Requesting { .. } => self.discover(now, random),
            },
            Event::Received(reply) => self.receive(now, random, reply),
            Event::TimerFired if self.wake_at().is_some_and(|at| at <= now) => {
                self.time_out(now, random)
            }
            Event::TimerFired => vec![],
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

    /// Stops using the lease, and asks for another one at `again_at`.
    fn lose(&mut self, now: Uptime, random: u32, again_at: Uptime) -> Vec<Action> {
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
            State::Stopped | State::Init(_) | State::Bound(_) => return vec![],
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
                let Some(offer) = Lease::from_reply(reply, now) else { return vec![] };
                let exchange = Exchange { since: exchange.since, ..Exchange::new(now, xid) };
                let (address, server) = (offer.address.addr(), offer.server);
                self.state = State::Requesting { exchange, address, server };
                self.send(now, random).into_iter().collect()
            }
            (State::Requesting { server, .. }, _) if reply.server != Some(*server) => vec![],
            (State::Requesting { .. }, ReplyKind::Nak) => {
                let again_at = now + self.refused.next(random);
                self.lose(now, random, again_at)
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
                let Some(lease) = Lease::from_reply(reply, now) else { return vec![] };
                self.refused.reset();
                self.state = State::Bound(lease.clone());
                vec![Action::Configure(lease)]
            }
            _ => vec![],
        }
    }

    fn time_out(&mut self, now: Uptime, random: u32) -> Vec<Action> {
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Stopped => vec![],
            State::Init(_) => self.discover(now, random),
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
            State::Stopped | State::Init(_) | State::Bound(_) => return None,
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
