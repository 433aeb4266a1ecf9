//! DHCPv6 client, RFC 8415 §18.2: decides what to send and when. Owns no socket and reads no clock.
//!
//! Everything goes to all servers of the link, as servers want it that allow nothing else (§18.4).
//! There is no DECLINE: the kernel's own duplicate address detection keeps an address from being used.

use std::net::Ipv6Addr;
use std::time::Duration;

use orlop_netlink::Mac;
use orlop_rt::Backoff;

use crate::machine::{Times, Uptime};
use crate::wire6::{Answer, AnswerKind, Ask, AskKind, Given};

/// What a server gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The address, when there is one.
    pub address: Option<Held>,
    /// Resolvers, best first.
    pub dns: Vec<Ipv6Addr>,
    /// Domains to search, best first.
    pub search: Vec<String>,
}

/// An address that we may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The address.
    pub address: Ipv6Addr,
    /// When it ends, and before that; `None` when it never does.
    pub times: Option<Times>,
}

impl Held {
    /// One that ends at this time and is asked for anew before.
    #[must_use]
    pub fn until(address: Ipv6Addr, now: Uptime, expires_at: Uptime) -> Self {
        let left = expires_at.saturating_sub(now);
        let times = Times { renew_at: now + left / 2, rebind_at: now + left * 4 / 5, expires_at };
        Self { address, times: Some(times) }
    }

    /// Whether it may still be used.
    #[must_use]
    pub fn holds(&self, now: Uptime) -> bool {
        self.times.is_none_or(|times| now < times.expires_at)
    }
}

impl From<(Given, Uptime)> for Held {
    fn from((given, now): (Given, Uptime)) -> Self {
        let Given { address, t1, t2, valid } = given;
        if valid == FOR_EVER {
            return Self { address, times: None };
        }
        let secs = |secs: u32| Duration::from_secs(secs.into());
        let expires_at = now + secs(valid);
        // RFC 8415 §14.2; times out of order are no times.
        if t1 == 0 || t1 > t2 || t2 > valid {
            return Self::until(address, now, expires_at);
        }
        let times = Times { renew_at: now + secs(t1), rebind_at: now + secs(t2), expires_at };
        Self { address, times: Some(times) }
    }
}

/// What happens to a client.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A router says that servers have addresses; one may be known from before.
    Managed(Option<Held>),
    /// A router says that servers have other settings.
    Other,
    /// The link carries packets again: it may be another network.
    CarrierBack,
    /// A message came in.
    Received(&'a Answer),
    /// Nobody wants the address any more.
    Released,
    /// The time of [`Client::wake_at`] has come.
    TimerFired,
}

/// What a client wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send it to all servers of the link.
    Send(Ask),
    /// Use this, in place of anything before.
    Configure(Lease),
    /// Stop using what was given.
    Deconfigure,
}

/// A DHCPv6 client for one link.
#[derive(Debug)]
pub struct Client {
    mac: Mac,
    state: State,
}

#[derive(Debug)]
enum State {
    Stopped,
    /// Takes the best of what is offered before the first repetition, then the first.
    Soliciting {
        exchange: Exchange,
        best: Option<Answer>,
    },
    Requesting {
        exchange: Exchange,
        server: Vec<u8>,
        address: Ipv6Addr,
    },
    Bound {
        server: Vec<u8>,
        held: Held,
    },
    Renewing {
        exchange: Exchange,
        server: Vec<u8>,
        held: Held,
    },
    Rebinding {
        exchange: Exchange,
        held: Held,
    },
    Informing(Exchange),
    /// Asks again at this time.
    Informed(Uptime),
}

#[derive(Clone, Debug)]
struct Exchange {
    xid: u32,
    since: Uptime,
    sent: u32,
    resend_at: Uptime,
    backoff: Backoff,
}

/// SOL_MAX_DELAY, SOL_TIMEOUT and the like of RFC 8415 §7.6.
const MAX_DELAY: Duration = Duration::from_secs(1);
const FIRST_RESEND: Duration = Duration::from_secs(1);
const SOLICIT_LAST_RESEND: Duration = Duration::from_secs(3600);
const REQUEST_LAST_RESEND: Duration = Duration::from_secs(30);
const MAX_REQUESTS: u32 = 10;
const RENEW_FIRST_RESEND: Duration = Duration::from_secs(10);
const RENEW_LAST_RESEND: Duration = Duration::from_secs(600);
/// IRT_MINIMUM and IRT_DEFAULT.
const MIN_REFRESH_SECS: u32 = 600;
const REFRESH_SECS: u32 = 86400;
const BEST_PREFERENCE: u8 = 255;
const FOR_EVER: u32 = u32::MAX;

impl Exchange {
    fn new(now: Uptime, random: u32, first: Duration, last: Duration) -> Self {
        let backoff = Backoff::new(first, last);
        Self { xid: random & 0xff_ffff, since: now, sent: 0, resend_at: now, backoff }
    }
}

impl Client {
    /// A client for the link with this hardware address. It does nothing before a router says so.
    #[must_use]
    pub fn new(mac: Mac) -> Self {
        Self { mac, state: State::Stopped }
    }

    /// When [`Event::TimerFired`] is due; `None` when only a message can change anything.
    #[must_use]
    pub fn wake_at(&self) -> Option<Uptime> {
        let end = |held: &Held| held.times.map(|times| times.expires_at);
        match &self.state {
            State::Stopped => None,
            State::Soliciting { exchange, .. }
            | State::Requesting { exchange, .. }
            | State::Informing(exchange) => Some(exchange.resend_at),
            State::Bound { held, .. } => held.times.map(|times| times.renew_at),
            State::Renewing { exchange, held, .. } => held
                .times
                .map(|times| times.rebind_at)
                .into_iter()
                .chain([exchange.resend_at])
                .min(),
            State::Rebinding { exchange, held } => {
                end(held).into_iter().chain([exchange.resend_at]).min()
            }
            State::Informed(at) => Some(*at),
        }
    }

    /// Takes an event. `random` makes transaction ids and jitter.
    pub fn handle(&mut self, now: Uptime, random: u32, event: Event<'_>) -> Vec<Action> {
        match event {
            // Routers say it again and again.
            Event::Managed(known) => match &self.state {
                State::Stopped | State::Informing(_) | State::Informed(_) => {
                    match known.filter(|held| held.holds(now)) {
                        Some(held) => self.rebind(now, random, held),
                        None => self.solicit(now, random),
                    }
                }
                _ => vec![],
            },
            Event::Other if matches!(self.state, State::Stopped) => {
                self.inform(now, random);
                vec![]
            }
            Event::Other => vec![],
            Event::CarrierBack => match &self.state {
                State::Stopped => vec![],
                State::Informing(_) | State::Informed(_) => {
                    self.inform(now, random);
                    vec![]
                }
                State::Bound { held, .. }
                | State::Renewing { held, .. }
                | State::Rebinding { held, .. } => self.rebind(now, random, *held),
                State::Soliciting { .. } | State::Requesting { .. } => self.solicit(now, random),
            },
            Event::Received(answer) => self.receive(now, random, answer),
            Event::Released => {
                let state = std::mem::replace(&mut self.state, State::Stopped);
                let (State::Bound { server, held } | State::Renewing { server, held, .. }) = state
                else {
                    return vec![];
                };
                let ask = Ask {
                    kind: AskKind::Release,
                    xid: random & 0xff_ffff,
                    mac: self.mac,
                    server: Some(server),
                    address: Some(held.address),
                    elapsed: 0,
                };
                // The address goes first: it must not be used any longer (§18.2.7).
                vec![Action::Deconfigure, Action::Send(ask)]
            }
            Event::TimerFired if self.wake_at().is_some_and(|at| at <= now) => {
                self.time_out(now, random)
            }
            Event::TimerFired => vec![],
        }
    }

    fn solicit(&mut self, now: Uptime, random: u32) -> Vec<Action> {
        let mut exchange = Exchange::new(now, random, FIRST_RESEND, SOLICIT_LAST_RESEND);
        exchange.resend_at = now + delay(random);
        self.state = State::Soliciting { exchange, best: None };
        vec![]
    }

    fn inform(&mut self, now: Uptime, random: u32) {
        let mut exchange = Exchange::new(now, random, FIRST_RESEND, SOLICIT_LAST_RESEND);
        exchange.resend_at = now + delay(random);
        self.state = State::Informing(exchange);
    }

    /// Asks any server whether the address may be used on.
    fn rebind(&mut self, now: Uptime, random: u32, held: Held) -> Vec<Action> {
        let exchange = Exchange::new(now, random, RENEW_FIRST_RESEND, RENEW_LAST_RESEND);
        self.state = State::Rebinding { exchange, held };
        self.send(now, random)
    }

    fn request(&mut self, now: Uptime, random: u32, advertised: Answer) -> Vec<Action> {
        let Some(given) = advertised.address else { return vec![] };
        let exchange = Exchange::new(now, random, FIRST_RESEND, REQUEST_LAST_RESEND);
        let (server, address) = (advertised.server, given.address);
        self.state = State::Requesting { exchange, server, address };
        self.send(now, random)
    }

    fn lose(&mut self, now: Uptime, random: u32) -> Vec<Action> {
        self.solicit(now, random);
        vec![Action::Deconfigure]
    }

    fn receive(&mut self, now: Uptime, random: u32, answer: &Answer) -> Vec<Action> {
        let (exchange, kind) = match &self.state {
            State::Stopped | State::Bound { .. } | State::Informed(_) => return vec![],
            State::Soliciting { exchange, .. } => (exchange, AnswerKind::Advertise),
            State::Requesting { exchange, .. }
            | State::Renewing { exchange, .. }
            | State::Rebinding { exchange, .. }
            | State::Informing(exchange) => (exchange, AnswerKind::Reply),
        };
        if (answer.xid, answer.kind) != (exchange.xid, kind) || exchange.sent == 0 {
            return vec![];
        }
        let asked = match &self.state {
            State::Requesting { server, .. } | State::Renewing { server, .. } => Some(server),
            _ => None,
        };
        if asked.is_some_and(|server| *server != answer.server) {
            return vec![];
        }
        let given = answer.address.filter(|_| answer.success).map(|given| Held::from((given, now)));
        match (&mut self.state, given) {
            (State::Informing(_), _) if answer.success => {
                let secs = answer.refresh_secs.unwrap_or(REFRESH_SECS).max(MIN_REFRESH_SECS);
                self.state = State::Informed(now + Duration::from_secs(secs.into()));
                vec![Action::Configure(lease(None, answer))]
            }
            (State::Soliciting { exchange, best }, Some(_)) => {
                if exchange.sent > 1 || answer.preference == BEST_PREFERENCE {
                    return self.request(now, random, answer.clone());
                }
                if best.as_ref().is_none_or(|best| best.preference < answer.preference) {
                    *best = Some(answer.clone());
                }
                vec![]
            }
            (
                State::Requesting { .. } | State::Renewing { .. } | State::Rebinding { .. },
                Some(held),
            ) => {
                self.state = State::Bound { server: answer.server.clone(), held };
                vec![Action::Configure(lease(Some(held), answer))]
            }
            // The server does not know the address, or not on this link.
            (State::Renewing { .. } | State::Rebinding { .. }, None) => self.lose(now, random),
            // It changed its mind; another may be found.
            (State::Requesting { .. }, None) => self.solicit(now, random),
            _ => vec![],
        }
    }

    fn time_out(&mut self, now: Uptime, random: u32) -> Vec<Action> {
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Stopped => vec![],
            State::Informed(_) => {
                self.inform(now, random);
                vec![]
            }
            State::Soliciting { best: Some(best), .. } => self.request(now, random, best),
            State::Requesting { exchange, .. } if exchange.sent >= MAX_REQUESTS => {
                self.solicit(now, random)
            }
            State::Bound { server, held } => {
                let exchange = Exchange::new(now, random, RENEW_FIRST_RESEND, RENEW_LAST_RESEND);
                self.state = State::Renewing { exchange, server, held };
                self.time_out(now, random)
            }
            State::Renewing { held, .. } | State::Rebinding { held, .. } if !held.holds(now) => {
                self.lose(now, random)
            }
            State::Renewing { held, .. }
                if held.times.is_some_and(|times| times.rebind_at <= now) =>
            {
                self.rebind(now, random, held)
            }
            state => {
                self.state = state;
                self.send(now, random)
            }
        }
    }

    /// Says once more what the state has to say, and sets the time of the next try.
    fn send(&mut self, now: Uptime, random: u32) -> Vec<Action> {
        let (kind, exchange, server, address) = match &mut self.state {
            State::Stopped | State::Bound { .. } | State::Informed(_) => return vec![],
            State::Soliciting { exchange, .. } => (AskKind::Solicit, exchange, None, None),
            State::Requesting { exchange, server, address } => {
                (AskKind::Request, exchange, Some(server.clone()), Some(*address))
            }
            State::Renewing { exchange, server, held } => {
                (AskKind::Renew, exchange, Some(server.clone()), Some(held.address))
            }
            State::Rebinding { exchange, held } => {
                (AskKind::Rebind, exchange, None, Some(held.address))
            }
            State::Informing(exchange) => (AskKind::Information, exchange, None, None),
        };
        exchange.sent += 1;
        exchange.resend_at = now + exchange.backoff.next(random);
        let elapsed = now.saturating_sub(exchange.since).as_millis() / 10;
        let ask = Ask {
            kind,
            xid: exchange.xid,
            mac: self.mac,
            server,
            address,
            elapsed: u16::try_from(elapsed).unwrap_or(u16::MAX),
        };
        vec![Action::Send(ask)]
    }
}

/// Before the first message, so that not all nodes of a room ask at once after a power cut.
fn delay(random: u32) -> Duration {
    MAX_DELAY * (random >> 22) / 1024
}

fn lease(address: Option<Held>, answer: &Answer) -> Lease {
    Lease { address, dns: answer.dns.clone(), search: answer.search.clone() }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const SERVER: &[u8] = &[0, 3, 0, 1, 9];
    const VALID: u32 = 1000;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// A client with a server that answers at once, or not at all.
    struct World {
        now: Uptime,
        client: Client,
        answers: bool,
        lease: Option<Lease>,
        sent: Vec<(Uptime, Ask)>,
        random: u32,
    }

    fn answer(kind: AnswerKind, ask: &Ask) -> Answer {
        let address = "fd00::5".parse().unwrap();
        let given = Given { address, t1: 0, t2: 0, valid: VALID };
        Answer {
            kind,
            xid: ask.xid,
            server: SERVER.to_vec(),
            preference: 0,
            success: true,
            address: Some(given).filter(|_| ask.kind != AskKind::Information),
            dns: vec!["fd00::53".parse().unwrap()],
            search: vec![],
            refresh_secs: None,
        }
    }

    impl World {
        fn new() -> Self {
            let client = Client::new(MAC);
            let (lease, sent) = (None, Vec::new());
            Self { now: secs(100), client, answers: true, lease, sent, random: 7 }
        }

        fn bound() -> Self {
            let mut world = Self::new();
            world.event(Event::Managed(None));
            world.run_for(secs(5));
            assert!(world.lease.is_some());
            world.sent.clear();
            world
        }

        fn event(&mut self, event: Event<'_>) {
            self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            for action in self.client.handle(self.now, self.random, event) {
                match action {
                    Action::Configure(lease) => self.lease = Some(lease),
                    Action::Deconfigure => self.lease = None,
                    Action::Send(ask) => {
                        self.sent.push((self.now, ask.clone()));
                        let kind = match ask.kind {
                            AskKind::Solicit => AnswerKind::Advertise,
                            _ => AnswerKind::Reply,
                        };
                        if self.answers && ask.kind != AskKind::Release {
                            self.event(Event::Received(&answer(kind, &ask)));
                        }
                    }
                }
            }
        }

        fn run_for(&mut self, time: Duration) {
            let end = self.now + time;
            let mut turns = 0;
            while let Some(next) = self.client.wake_at().filter(|next| *next <= end) {
                turns = if next > self.now { 0 } else { turns + 1 };
                assert!(turns < 10, "the client spins at {next:?}");
                self.now = self.now.max(next);
                self.event(Event::TimerFired);
                let held = self.lease.as_ref().and_then(|lease| lease.address);
                assert!(held.is_none_or(|held| held.holds(self.now)), "used after its time");
            }
            self.now = end;
        }

        fn kinds(&self) -> Vec<AskKind> {
            self.sent.iter().map(|(_, ask)| ask.kind).collect()
        }
    }

    #[test]
    fn an_address_is_had_and_renewed_with_its_server() {
        let mut world = World::new();
        world.event(Event::Managed(None));
        world.event(Event::Managed(None));
        world.run_for(secs(5));
        assert_eq!(world.kinds(), [AskKind::Solicit, AskKind::Request]);
        let held = world.lease.clone().unwrap().address.unwrap();
        world.run_for(secs(u64::from(VALID) / 2 + 3));
        let (at, renew) = world.sent.last().unwrap();
        assert_eq!((renew.kind, *at), (AskKind::Renew, held.times.unwrap().renew_at));
        assert_eq!(renew.server.as_deref(), Some(SERVER));
    }

    #[test]
    fn a_silent_server_is_replaced_by_any_and_the_address_ends_to_the_second() {
        let mut world = World::bound();
        world.answers = false;
        let times = world.lease.clone().unwrap().address.unwrap().times.unwrap();
        world.run_for(times.expires_at - world.now - Duration::from_millis(1));
        assert!(world.lease.is_some());
        let rebind = world.sent.iter().find(|(_, ask)| ask.kind == AskKind::Rebind).unwrap();
        assert_eq!((rebind.0, &rebind.1.server), (times.rebind_at, &None));
        world.run_for(Duration::from_millis(1));
        assert_eq!(world.lease, None);
        world.answers = true;
        world.run_for(secs(10));
        assert!(world.lease.is_some());
    }

    #[test]
    fn settings_alone_are_asked_for_again_after_a_day() {
        let mut world = World::new();
        world.event(Event::Other);
        world.run_for(secs(3600));
        assert_eq!(world.kinds(), [AskKind::Information]);
        assert_eq!(world.lease.clone().unwrap().address, None);
        world.run_for(secs(86400));
        assert_eq!(world.kinds(), [AskKind::Information; 2]);
        world.event(Event::Managed(None));
        world.run_for(secs(5));
        assert!(world.lease.unwrap().address.is_some(), "now they have addresses as well");
    }

    #[test]
    fn an_address_from_before_a_restart_is_asked_for_and_another_server_may_refuse_it() {
        let mut world = World::new();
        let held = Held::until("fd00::5".parse().unwrap(), world.now, world.now + secs(500));
        world.event(Event::Managed(Some(held)));
        assert_eq!(world.kinds(), [AskKind::Rebind], "at once");
        assert!(world.lease.is_some());
        world.answers = false;
        world.event(Event::CarrierBack);
        let (_, ask) = world.sent.last().unwrap().clone();
        let refusal = Answer { success: false, ..answer(AnswerKind::Reply, &ask) };
        world.event(Event::Received(&refusal));
        assert_eq!(world.lease, None);
    }

    #[test]
    fn the_best_of_the_first_second_wins() {
        let mut world = World::new();
        world.answers = false;
        world.event(Event::Managed(None));
        world.run_for(MAX_DELAY);
        let (_, solicit) = world.sent[0].clone();
        for (preference, name) in [(1, 1), (9, 9), (5, 5)] {
            let server = vec![0, 2, name];
            let offer = Answer { preference, server, ..answer(AnswerKind::Advertise, &solicit) };
            world.event(Event::Received(&offer));
        }
        world.run_for(secs(2));
        assert_eq!(world.sent[1].1.server, Some(vec![0, 2, 9]));
    }

    #[test]
    fn an_address_is_given_back() {
        let mut world = World::bound();
        world.event(Event::Released);
        assert_eq!((world.kinds(), &world.lease), (vec![AskKind::Release], &None));
        assert_eq!(world.client.wake_at(), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_the_client_neither_panics_nor_spins(
            events in proptest::collection::vec((0u8..7, any::<[u32; 4]>(), 0u64..100_000), 1..60)
        ) {
            let mut world = World::bound();
            for (what, [t1, t2, valid, flags], millis) in events {
                world.answers = flags & 1 == 0;
                match what {
                    0 => world.event(Event::CarrierBack),
                    1 => world.event(Event::Managed(None)),
                    2 => world.event(Event::Other),
                    3 | 4 => {
                        let Some((_, ask)) = world.sent.last().cloned() else { continue };
                        let address = Ipv6Addr::from(u128::from(flags) << 96 | 5);
                        let kind = [AnswerKind::Advertise, AnswerKind::Reply][flags as usize >> 1 & 1];
                        let lie = Answer {
                            address: Some(Given { address, t1, t2, valid: valid.max(1) }),
                            success: flags & 4 == 0,
                            refresh_secs: Some(t1),
                            ..answer(kind, &ask)
                        };
                        world.event(Event::Received(&lie));
                    }
                    _ => world.run_for(Duration::from_millis(millis)),
                }
            }
        }
    }
}
