//! DHCPv6 client, RFC 8415 §18.2: decides what to send and when. Owns no socket and reads no clock.
//!
//! Everything goes to all servers of the link, as servers want it that allow nothing else (§18.4).
//! Whether another host has an address, the kernel finds out (RFC 4862 §5.4): then it is declined.

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
    /// Time servers, as addresses or names, best first.
    pub ntp: Vec<String>,
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
        Self::between(address, now, (left / 2, left * 4 / 5, left))
    }

    /// With these times from now on; no server may make us ask faster than each second.
    fn between(address: Ipv6Addr, now: Uptime, times: (Duration, Duration, Duration)) -> Self {
        let (t1, t2, valid) = times;
        let t1 = t1.max(MIN_RENEWAL).min(valid);
        let t2 = t2.clamp(t1, valid);
        let times = Times { renew_at: now + t1, rebind_at: now + t2, expires_at: now + valid };
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
        Self::between(address, now, (secs(t1), secs(t2), secs(valid)))
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
    /// Another host of the link has this address.
    Duplicate(Ipv6Addr),
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
    /// Between attempts that end with an address that another host has.
    declined: Backoff,
    /// SOL_MAX_RT and INF_MAX_RT: servers may say otherwise (RFC 7083).
    solicit_last: Duration,
    information_last: Duration,
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
    /// Asks whether the address belongs on the link, which may be another one (§18.2.3).
    Confirming {
        exchange: Exchange,
        server: Vec<u8>,
        held: Held,
    },
    Declining {
        exchange: Exchange,
        server: Vec<u8>,
        address: Ipv6Addr,
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
/// CNF_TIMEOUT, CNF_MAX_RT and CNF_MAX_RD; DEC_TIMEOUT and DEC_MAX_RC.
const CONFIRM_FIRST_RESEND: Duration = Duration::from_secs(1);
const CONFIRM_LAST_RESEND: Duration = Duration::from_secs(4);
const CONFIRM_FOR: Duration = Duration::from_secs(10);
const DECLINE_RESEND: Duration = Duration::from_secs(1);
const MAX_DECLINES: u32 = 4;
/// After an address that another host has, before the next is asked for.
const AFTER_DECLINE: Duration = Duration::from_secs(1);
const LAST_AFTER_DECLINE: Duration = Duration::from_secs(300);
/// No server may make us renew faster.
const MIN_RENEWAL: Duration = Duration::from_secs(1);

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
        Self {
            mac,
            state: State::Stopped,
            declined: Backoff::new(AFTER_DECLINE, LAST_AFTER_DECLINE),
            solicit_last: SOLICIT_LAST_RESEND,
            information_last: SOLICIT_LAST_RESEND,
        }
    }

    /// When [`Event::TimerFired`] is due; `None` when only a message can change anything.
    #[must_use]
    pub fn wake_at(&self) -> Option<Uptime> {
        let end = |held: &Held| held.times.map(|times| times.expires_at);
        match &self.state {
            State::Stopped => None,
            State::Soliciting { exchange, .. }
            | State::Requesting { exchange, .. }
            | State::Declining { exchange, .. }
            | State::Informing(exchange) => Some(exchange.resend_at),
            State::Confirming { exchange, held, .. } => end(held)
                .into_iter()
                .chain([exchange.resend_at, exchange.since + CONFIRM_FOR])
                .min(),
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
                State::Bound { server, held }
                | State::Renewing { server, held, .. }
                | State::Confirming { server, held, .. } => {
                    let (server, held) = (server.clone(), *held);
                    self.confirm(now, random, server, held);
                    vec![]
                }
                State::Rebinding { held, .. } => self.rebind(now, random, *held),
                State::Soliciting { .. } | State::Requesting { .. } | State::Declining { .. } => {
                    self.solicit(now, random)
                }
            },
            Event::Received(answer) => self.receive(now, random, answer),
            Event::Duplicate(address) => self.decline(now, random, address),
            Event::Released => {
                let state = std::mem::replace(&mut self.state, State::Stopped);
                let (State::Bound { server, held }
                | State::Renewing { server, held, .. }
                | State::Confirming { server, held, .. }) = state
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
        self.solicit_at(now, random, now);
        vec![]
    }

    fn solicit_at(&mut self, now: Uptime, random: u32, at: Uptime) {
        let mut exchange = Exchange::new(now, random, FIRST_RESEND, self.solicit_last);
        exchange.resend_at = at + delay(random);
        self.state = State::Soliciting { exchange, best: None };
    }

    fn confirm(&mut self, now: Uptime, random: u32, server: Vec<u8>, held: Held) {
        let mut exchange = Exchange::new(now, random, CONFIRM_FIRST_RESEND, CONFIRM_LAST_RESEND);
        exchange.resend_at = now + delay(random);
        self.state = State::Confirming { exchange, server, held };
    }

    /// Gives back an address that another host has (§18.2.8), if it is ours.
    fn decline(&mut self, now: Uptime, random: u32, address: Ipv6Addr) -> Vec<Action> {
        let server = match &self.state {
            State::Bound { server, held }
            | State::Renewing { server, held, .. }
            | State::Confirming { server, held, .. }
                if held.address == address =>
            {
                server.clone()
            }
            // Whose it was, nobody remembers: it is asked for no longer.
            State::Rebinding { held, .. } if held.address == address => {
                return self.lose(now, random);
            }
            _ => return vec![],
        };
        let exchange = Exchange::new(now, random, DECLINE_RESEND, DECLINE_RESEND);
        self.state = State::Declining { exchange, server, address };
        std::iter::once(Action::Deconfigure).chain(self.send(now, random)).collect()
    }

    /// After the server has heard of it, or does not answer.
    fn declined(&mut self, now: Uptime, random: u32) {
        let again_at = now + self.declined.next(random);
        self.solicit_at(now, random, again_at);
    }

    fn inform(&mut self, now: Uptime, random: u32) {
        let mut exchange = Exchange::new(now, random, FIRST_RESEND, self.information_last);
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
            // A server that takes our offer to save two messages (§18.2.1).
            State::Soliciting { exchange, .. } if answer.rapid => (exchange, AnswerKind::Reply),
            State::Soliciting { exchange, .. } => (exchange, AnswerKind::Advertise),
            State::Requesting { exchange, .. }
            | State::Renewing { exchange, .. }
            | State::Rebinding { exchange, .. }
            | State::Confirming { exchange, .. }
            | State::Declining { exchange, .. }
            | State::Informing(exchange) => (exchange, AnswerKind::Reply),
        };
        if (answer.xid, answer.kind) != (exchange.xid, kind) || exchange.sent == 0 {
            return vec![];
        }
        let asked = match &self.state {
            State::Requesting { server, .. }
            | State::Renewing { server, .. }
            | State::Declining { server, .. } => Some(server),
            _ => None,
        };
        if asked.is_some_and(|server| *server != answer.server) {
            return vec![];
        }
        let secs = |secs: u32| Duration::from_secs(secs.into());
        self.solicit_last = answer.solicit_max_secs.map_or(self.solicit_last, secs);
        self.information_last = answer.information_max_secs.map_or(self.information_last, secs);
        let given = answer.address.filter(|_| answer.success).map(|given| Held::from((given, now)));
        match (&mut self.state, given) {
            (State::Declining { .. }, _) => {
                self.declined(now, random);
                vec![]
            }
            (State::Confirming { server, held, .. }, _) if answer.success => {
                self.state = State::Bound { server: std::mem::take(server), held: *held };
                vec![]
            }
            // It is another link.
            (State::Confirming { .. }, _) => self.lose(now, random),
            (State::Soliciting { .. }, Some(held)) if answer.rapid => {
                self.state = State::Bound { server: answer.server.clone(), held };
                vec![Action::Configure(lease(Some(held), answer))]
            }
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
                // Used for a while: nobody else had it.
                if !matches!(self.state, State::Requesting { .. }) {
                    self.declined.reset();
                }
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
            State::Renewing { held, .. }
            | State::Rebinding { held, .. }
            | State::Confirming { held, .. }
                if !held.holds(now) =>
            {
                self.lose(now, random)
            }
            // Nobody objects: it holds until it ends (§18.2.3).
            State::Confirming { exchange, server, held } if now >= exchange.since + CONFIRM_FOR => {
                self.state = State::Bound { server, held };
                vec![]
            }
            State::Declining { exchange, .. } if exchange.sent >= MAX_DECLINES => {
                self.declined(now, random);
                vec![]
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
            State::Confirming { exchange, held, .. } => {
                (AskKind::Confirm, exchange, None, Some(held.address))
            }
            State::Declining { exchange, server, address } => {
                (AskKind::Decline, exchange, Some(server.clone()), Some(*address))
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
    let Answer { dns, search, ntp, .. } = answer.clone();
    Lease { address, dns, search, ntp }
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
            rapid: false,
            address: Some(given).filter(|_| ask.kind != AskKind::Information),
            dns: vec!["fd00::53".parse().unwrap()],
            search: vec![],
            ntp: Vec::new(),
            refresh_secs: None,
            solicit_max_secs: None,
            information_max_secs: None,
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
        world.run_for(MAX_DELAY);
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
    fn a_server_that_saves_two_messages_is_taken_at_its_word() {
        let mut world = World::new();
        world.answers = false;
        world.event(Event::Managed(None));
        world.run_for(MAX_DELAY);
        let (_, solicit) = world.sent[0].clone();
        let slow = answer(AnswerKind::Reply, &solicit);
        world.event(Event::Received(&slow));
        assert_eq!(world.lease, None, "nobody asked for that");
        world.event(Event::Received(&Answer { rapid: true, ..slow }));
        assert!(world.lease.is_some());
        assert_eq!(world.kinds(), [AskKind::Solicit]);
    }

    #[test]
    fn when_the_carrier_is_back_the_address_is_confirmed_and_used_on() {
        let mut world = World::bound();
        let held = world.lease.clone();
        world.event(Event::CarrierBack);
        world.run_for(secs(2));
        assert_eq!((world.kinds(), world.lease == held), (vec![AskKind::Confirm], true));
        world.answers = false;
        world.event(Event::CarrierBack);
        world.run_for(CONFIRM_FOR);
        assert_eq!(world.lease, held, "nobody objects");
        let confirms = world.sent.len();
        world.run_for(secs(60));
        assert_eq!(world.sent.len(), confirms, "nor is anybody asked before T1");
        world.event(Event::CarrierBack);
        world.run_for(secs(2));
        let (_, ask) = world.sent.last().unwrap().clone();
        let elsewhere = Answer { success: false, address: None, ..answer(AnswerKind::Reply, &ask) };
        world.event(Event::Received(&elsewhere));
        assert_eq!(world.lease, None, "another link");
        world.answers = true;
        world.run_for(secs(5));
        assert!(world.lease.is_some());
    }

    #[test]
    fn an_address_that_another_host_has_is_declined_and_asked_for_ever_more_slowly() {
        let mut world = World::bound();
        world.event(Event::Duplicate("fd00::6".parse().unwrap()));
        assert!(world.lease.is_some(), "not ours");
        let mut waits = Vec::new();
        for _ in 0..8 {
            let address = world.lease.clone().unwrap().address.unwrap().address;
            world.sent.clear();
            let since = world.now;
            world.event(Event::Duplicate(address));
            let (_, decline) = &world.sent[0];
            assert_eq!((decline.kind, decline.address), (AskKind::Decline, Some(address)));
            assert_eq!(decline.server.as_deref(), Some(SERVER));
            assert_eq!(world.lease, None);
            while world.lease.is_none() {
                world.run_for(secs(1));
            }
            waits.push(world.now - since);
        }
        assert!(waits[7] > waits[0] * 10, "{waits:?}");
        // It does not answer: four times is enough.
        world.answers = false;
        world.sent.clear();
        let address = world.lease.clone().unwrap().address.unwrap().address;
        world.event(Event::Duplicate(address));
        world.run_for(secs(5));
        assert_eq!(world.kinds(), [AskKind::Decline; 4]);
    }

    #[test]
    fn servers_say_how_seldom_to_ask() {
        let mut world = World::new();
        world.answers = false;
        world.event(Event::Other);
        world.run_for(secs(2));
        let (_, ask) = world.sent[0].clone();
        let said = Answer {
            information_max_secs: Some(60),
            refresh_secs: Some(600),
            ..answer(AnswerKind::Reply, &ask)
        };
        world.event(Event::Received(&said));
        world.sent.clear();
        world.run_for(secs(7200));
        assert!(world.sent.len() > 100, "{}", world.sent.len());
    }

    #[test]
    fn no_server_makes_us_ask_faster_than_each_second() {
        for (t1, t2, valid) in [(0, 0, 1), (1, 1, 1), (1, 2, 3)] {
            let address = "fd00::5".parse().unwrap();
            let held = Held::from((Given { address, t1, t2, valid }, secs(10)));
            let times = held.times.unwrap();
            assert!(times.renew_at >= secs(11) && times.renew_at <= times.rebind_at);
            assert!(times.rebind_at <= times.expires_at);
        }
        let address = "fd00::5".parse().unwrap();
        let giant = Given { address, t1: 0, t2: 0, valid: u32::MAX - 1 };
        assert!(Held::from((giant, secs(10))).holds(secs(u64::from(u32::MAX))));
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
            events in proptest::collection::vec((0u8..8, any::<[u32; 4]>(), 0u64..100_000), 1..60)
        ) {
            let mut world = World::bound();
            for (what, [t1, t2, valid, flags], millis) in events {
                world.answers = flags & 1 == 0;
                match what {
                    0 => world.event(Event::CarrierBack),
                    1 => world.event(Event::Managed(None)),
                    2 => world.event(Event::Other),
                    7 => {
                        let held = world.lease.as_ref().and_then(|lease| lease.address);
                        let Some(held) = held else { continue };
                        world.event(Event::Duplicate(held.address));
                    }
                    3 | 4 => {
                        let Some((_, ask)) = world.sent.last().cloned() else { continue };
                        let address = Ipv6Addr::from(u128::from(flags) << 96 | 5);
                        let kind = [AnswerKind::Advertise, AnswerKind::Reply][flags as usize >> 1 & 1];
                        let lie = Answer {
                            address: Some(Given { address, t1, t2, valid: valid.max(1) }),
                            success: flags & 4 == 0,
                            rapid: flags & 8 == 0,
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
