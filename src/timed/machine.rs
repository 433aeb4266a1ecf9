//! The engine: which servers are asked and when, whom to believe, what is done to the clock. Pure: what
//! happened and the time go in, what to do comes out; [`crate::driver`] does it.
//!
//! ```text
//!  servers ──resolve──> sources ──samples──> filters ──select──> measurement ──> discipline ──> steer
//!                          ^                                                          |
//!                          └───────────────── poll interval <────────────────────────┘
//! ```
//!
//! The clock is stepped when it is set for the first time (at the start, and after a suspension), or
//! when it is off by more than [`PANIC`] for longer than [`STEPOUT`]; otherwise it only runs faster or
//! slower, by at most [`MAX_RATE`], so time never goes backwards.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use orlop_config::machine::TimeServer;

use crate::discipline::{Discipline, Innovation};
use crate::exchange::Sample;
use crate::select::{self, Candidate};
use crate::source::{Filter, Reach};
use crate::wire::{Kiss, Leap};

/// Time as the engine sees it.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Since the kernel's start, suspension included.
    pub up: Duration,
    /// Since 1970, as the clock shows.
    pub unix: Duration,
    /// Anything; jitter is made of it.
    pub random: u32,
}

/// Names a source for as long as it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(u32);

/// Names a server for as long as it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u32);

/// Where a sample can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At an NTP server, of [`Engine::server`].
    Server(ServerId, IpAddr),
    /// From a device of the machine.
    Device(PathBuf),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Other servers are configured; those that stay are followed as before.
    Servers(Vec<TimeServer>),
    /// The servers' addresses, as asked for with [`Action::Resolve`]; none, when they could not be had.
    Resolved(ServerId, Vec<IpAddr>),
    /// The answer to [`Action::Query`] of that era.
    Sampled(SourceId, Era, Sample),
    /// There will be none.
    Missed(SourceId, Miss),
    /// The machine slept: nobody knows for how long, as far as its clock goes.
    Resumed,
    /// Somebody else set the clock: so much was added, in seconds.
    Set(f64),
    /// It is as late as [`Engine::wake_at`] said.
    Timer,
}

/// Why there is no sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// No answer, or one that cannot be used.
    Nothing,
    /// A kiss-o'-death.
    Kiss(Kiss),
    /// There are no keys, or no cookies any more, to ask with (NTS).
    Keyless,
}

/// Between two steps of the clock: samples do not outlive it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Era(u32);

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Find the addresses of a server; of one of NTS, by exchanging keys with it.
    Resolve(ServerId),
    /// Get a sample.
    Query(SourceId, Era, Place),
    /// Add so many seconds to the clock at once.
    Step(Step),
    /// Let the clock run faster by so much: parts per million.
    Rate(f64),
    /// Tell the kernel what its clock is worth.
    Report(Report),
    /// Say so in the log.
    Tell(News),
}

/// The clock is set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Seconds, to be added.
    pub by: f64,
    /// It was right before, and is now far off: a person should know.
    pub panic: bool,
}

/// For the kernel, and whoever asks it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Expected error of the clock, in seconds.
    pub expected: f64,
    /// Largest possible error, in seconds.
    pub largest: f64,
    /// At the end of this day.
    pub leap: Leap,
}

/// What an operator wants to know.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The clock is right for the first time since the start or a suspension.
    Synchronized {
        /// By whom.
        source: String,
        /// What it was off.
        offset: f64,
    },
    /// A server lies: it contradicts the majority.
    Falseticker(String, f64),
    /// No server answers any more.
    Alone,
    /// The servers contradict each other, and there is no majority.
    Undecided,
    /// A server does not want us.
    Refused(String, Kiss),
}

/// How a source stands, for figures and people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It never answered, or not for long.
    Unreachable,
    /// It is too far from the right time to be followed.
    Unfit,
    /// It contradicts the majority.
    Falseticker,
    /// It tells the truth, others do it better.
    Spare,
    /// The clock follows it.
    Followed,
}

/// A source, for figures and people.
#[derive(Clone, Debug)]
pub struct SourceView {
    /// As configured.
    pub server: String,
    /// Its address or path.
    pub place: String,
    /// How it stands.
    pub standing: Standing,
    /// Its last eight questions.
    pub reach: Reach,
    /// What the clock is off by it, in seconds; `None` before the first answer.
    pub offset: Option<f64>,
    /// How its offsets vary, in seconds.
    pub jitter: f64,
    /// What the oscillator needs by it alone, in ppm; `None` as long as it said too little.
    pub frequency_ppm: Option<f64>,
    /// To it and back, in seconds.
    pub delay: f64,
    /// Its own.
    pub stratum: u8,
    /// Until it is asked again.
    pub poll: Duration,
}

/// All that is known, at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Whether the clock was set right.
    pub synchronized: bool,
    /// What the clock is off, in seconds.
    pub offset: f64,
    /// How well that is known, in seconds.
    pub sigma: f64,
    /// How much faster the clock is made to run to be right, in ppm.
    pub frequency_ppm: f64,
    /// Distance from a reference clock; 16: not synchronised.
    pub stratum: u8,
    /// What comes at the end of the day.
    pub leap: Leap,
    /// How often the clock was set since the start.
    pub steps: u64,
    /// All of them.
    pub sources: Vec<SourceView>,
}

/// A server as configured.
#[derive(Clone, Debug)]
struct Server {
    id: ServerId,
    what: TimeServer,
    /// Its addresses that are not asked, to be tried when one fails.
    spare: Vec<IpAddr>,
    /// When its name is looked up; `None`: that is under way.
    resolve_at: Option<Duration>,
    failures: u32,
    /// Exchanges of keys since it last proved anything.
    exchanges: u32,
}

/// Something that is asked.
#[derive(Clone, Debug)]
struct Source {
    id: SourceId,
    server: ServerId,
    place: Place,
    filter: Filter,
    reach: Reach,
    standing: Standing,
    /// Questions since it is known.
    asked: u32,
    /// When it is asked next; `None`: an answer is awaited.
    ask_at: Option<Duration>,
    /// It must not be asked more often: a power of two of seconds.
    least_poll: u8,
}

/// See the head of the module.
#[derive(Debug)]
pub struct Engine {
    servers: Vec<Server>,
    sources: Vec<Source>,
    /// Of servers and sources.
    next_id: u32,
    discipline: Discipline,
    phase: Phase,
    era: Era,
    poll: u8,
    calm: i32,
    /// When the extra rate that makes up for an offset ends.
    slew_until: Option<Duration>,
    /// Measurements in a row that cannot be, and when the first came.
    spikes: Option<(u32, Duration)>,
    first_sample: Option<Duration>,
    undecided: bool,
    alone: bool,
    leap: Leap,
    best: Option<Candidate>,
    steps: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The clock may show anything: it is set by the first majority.
    Unset,
    /// It is kept right.
    Set,
}

impl Engine {
    /// An engine for `servers`, in their order of preference. The kernel adds `rate` in each second,
    /// which is what the oscillator needs if it is `known`.
    #[must_use]
    pub fn new(servers: Vec<TimeServer>, now: Duration, rate: f64, known: bool) -> Self {
        let mut engine = Self {
            servers: Vec::new(),
            sources: Vec::new(),
            next_id: 0,
            discipline: Discipline::new(now, rate, known),
            phase: Phase::Unset,
            era: Era::default(),
            poll: MIN_POLL,
            calm: 0,
            slew_until: None,
            spikes: None,
            first_sample: None,
            undecided: false,
            alone: false,
            leap: Leap::None,
            best: None,
            steps: 0,
        };
        engine.configure(now, servers);
        engine
    }

    /// As configured; `None`: it is not any more.
    #[must_use]
    pub fn server(&self, id: ServerId) -> Option<&TimeServer> {
        self.servers.iter().find(|server| server.id == id).map(|server| &server.what)
    }

    /// Whether the clock was set right.
    #[must_use]
    pub fn synchronized(&self) -> bool {
        self.phase == Phase::Set
    }

    /// What the oscillator needs, in ppm; `None` as long as that is not known well.
    #[must_use]
    pub fn settled_frequency_ppm(&self) -> Option<f64> {
        let settled = self.synchronized() && self.discipline.frequency_sigma() < 1e-6;
        settled.then(|| self.discipline.frequency() * 1e6)
    }

    /// When something is to be done, if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let resolves = self.servers.iter().filter_map(|server| server.resolve_at);
        let polls = self.sources.iter().filter_map(|source| source.ask_at);
        resolves.chain(polls).chain(self.slew_until).min()
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Moment, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Servers(servers) => self.configure(now.up, servers),
            Event::Resolved(server, addresses) => self.resolved(now, server, addresses),
            Event::Sampled(id, era, sample) => self.sampled(now, id, era, sample, &mut actions),
            Event::Missed(id, miss) => self.missed(now, id, miss, &mut actions),
            Event::Resumed => {
                self.discipline.forget();
                self.unset(now);
            }
            Event::Set(by) => {
                self.discipline.stepped(by);
                self.new_era();
            }
            Event::Timer => {}
        }
        self.due(now, &mut actions);
        actions
    }

    /// All that is known.
    #[must_use]
    pub fn view(&self, now: Duration) -> View {
        let correction = self.discipline.correction(now);
        let server = |source: &Source| self.server(source.server).map(ToString::to_string);
        let sources = self.sources.iter().map(|source| {
            let last = source.filter.last();
            SourceView {
                server: server(source).unwrap_or_default(),
                place: source.place.to_string(),
                standing: source.standing,
                reach: source.reach,
                offset: source.filter.fresh(correction).map(|fresh| fresh.offset),
                jitter: source.filter.jitter(),
                frequency_ppm: source.filter.frequency().map(|frequency| frequency * 1e6),
                delay: last.map_or(0.0, |sample| sample.delay),
                stratum: last.map_or(0, |sample| sample.stratum),
                poll: seconds(self.poll_of(source)),
            }
        });
        let synchronized = self.synchronized();
        View {
            synchronized,
            offset: self.discipline.offset(now).unwrap_or_default(),
            sigma: self.discipline.offset_sigma(now),
            frequency_ppm: self.discipline.frequency() * 1e6,
            stratum: match self.best {
                Some(best) if synchronized => best.stratum.saturating_add(1),
                _ => 16,
            },
            leap: self.leap,
            steps: self.steps,
            sources: sources.collect(),
        }
    }

    /// Goes by these servers from now on; those it goes by already keep what is known of them.
    fn configure(&mut self, now: Duration, wanted: Vec<TimeServer>) {
        let before = std::mem::take(&mut self.servers);
        let was_alone = before.len() == 1;
        let mut before: Vec<_> = before.into_iter().map(Some).collect();
        for what in wanted {
            if self.servers.iter().any(|server| server.what == what) {
                continue;
            }
            let known =
                before.iter_mut().find(|old| old.as_ref().is_some_and(|old| old.what == what));
            let server = known.and_then(Option::take).unwrap_or_else(|| {
                let id = ServerId(self.next_id);
                self.next_id += 1;
                let spare = Vec::new();
                Server { id, what, spare, resolve_at: Some(now), failures: 0, exchanges: 0 }
            });
            self.servers.push(server);
        }
        let stays = |source: &Source| self.servers.iter().any(|server| server.id == source.server);
        self.sources.retain(stays);
        if was_alone != (self.servers.len() == 1) {
            // A pool gives more sources, or fewer: those that are followed stay first.
            orlop_rt::sort_by_key(&mut self.sources, |source| {
                source.standing != Standing::Followed
            });
            for server in &mut self.servers {
                let (mut left, id) = (if was_alone { 1 } else { POOL }, server.id);
                self.sources.retain(|source| {
                    let over = source.server == id && left == 0;
                    left -= usize::from(source.server == id && !over);
                    !over
                });
                if matches!(server.what, TimeServer::Ntp(_)) {
                    server.resolve_at = server.resolve_at.map(|_| now);
                }
            }
        }
        if self.sources.iter().all(|source| source.filter.is_empty()) {
            self.best = None;
            self.leap = Leap::None;
        }
        self.undecided = false;
    }

    /// Names found, or not: sources come and go.
    fn resolved(&mut self, now: Moment, id: ServerId, addresses: Vec<IpAddr>) {
        let alone = self.servers.len() == 1;
        let Some(server) = self.servers.iter_mut().find(|server| server.id == id) else { return };
        let nts = matches!(server.what, TimeServer::Nts(..));
        // The keys of one server are of no use to another.
        let wanted = if alone && !nts { POOL } else { 1 };
        if addresses.is_empty() {
            server.failures += 1;
            let wait = if nts {
                between_exchanges(server.failures)
            } else {
                LAST_RETRY.min(FIRST_RETRY * 2u32.saturating_pow(server.failures - 1))
            };
            server.resolve_at = Some(now.up + jittered(wait, now.random));
            return;
        }
        server.failures = 0;
        server.exchanges += u32::from(nts);
        server.resolve_at = Some(now.up + jittered(RESOLVE_AGAIN, now.random));
        let asked = |sources: &[Source], address: IpAddr| {
            sources.iter().any(|source| source.place == Place::Server(id, address))
        };
        // One that answers is kept, also when the name no longer means it.
        let gone = |source: &Source| match &source.place {
            Place::Server(of, address) => {
                *of == id && source.reach.0 == 0 && !addresses.contains(address)
            }
            Place::Device(_) => false,
        };
        self.sources.retain(|source| !gone(source));
        server.spare =
            addresses.into_iter().filter(|address| !asked(&self.sources, *address)).collect();
        while self.sources.iter().filter(|source| source.server == id).count() < wanted {
            let Some(address) = self.spare(id) else { return };
            self.add(now.up, id, Place::Server(id, address));
        }
    }

    /// An address of the server that is not asked, and from now on no longer spare.
    fn spare(&mut self, id: ServerId) -> Option<IpAddr> {
        let server = self.servers.iter_mut().find(|server| server.id == id)?;
        (!server.spare.is_empty()).then(|| server.spare.remove(0))
    }

    fn add(&mut self, now: Duration, server: ServerId, place: Place) {
        let id = SourceId(self.next_id);
        self.next_id += 1;
        self.sources.push(Source {
            id,
            server,
            place,
            filter: Filter::default(),
            reach: Reach::default(),
            standing: Standing::Unreachable,
            asked: 0,
            ask_at: Some(now),
            least_poll: 0,
        });
    }

    /// Questions and look-ups whose time has come; the end of a slew.
    fn due(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for index in 0..self.servers.len() {
            let server = &mut self.servers[index];
            if server.resolve_at.is_none_or(|at| at > now.up) {
                continue;
            }
            server.resolve_at = None;
            let id = server.id;
            match server.what.clone() {
                TimeServer::Ptp(device) => self.add(now.up, id, Place::Device(device)),
                TimeServer::Ntp(_) | TimeServer::Nts(..) => actions.push(Action::Resolve(id)),
            }
        }
        let era = self.era;
        for source in &mut self.sources {
            if source.ask_at.is_some_and(|at| at <= now.up) {
                source.ask_at = None;
                source.asked = source.asked.saturating_add(1);
                source.reach.asked();
                actions.push(Action::Query(source.id, era, source.place.clone()));
            }
        }
        if self.slew_until.is_some_and(|at| at <= now.up) {
            self.slew_until = None;
            self.steer(now.up, self.discipline.frequency(), actions);
        }
    }

    fn sampled(
        &mut self,
        now: Moment,
        id: SourceId,
        era: Era,
        sample: Sample,
        actions: &mut Vec<Action>,
    ) {
        let correction = self.discipline.correction(now.up);
        let Some(at) = self.sources.iter().position(|source| source.id == id) else { return };
        self.sources[at].reach.answered();
        self.proven(now, self.sources[at].server);
        if era == self.era {
            self.sources[at].filter.push(now.up, sample, correction);
            self.first_sample.get_or_insert(now.up);
            self.decide(now, at, actions);
        }
        self.ask_later(now, at);
    }

    fn missed(&mut self, now: Moment, id: SourceId, miss: Miss, actions: &mut Vec<Action>) {
        let Some(at) = self.sources.iter().position(|source| source.id == id) else { return };
        self.ask_later(now, at);
        let source = &mut self.sources[at];
        match miss {
            Miss::Kiss(kiss) if kiss.refuses() => {
                actions.push(Action::Tell(News::Refused(source.place.to_string(), kiss)));
                if !self.replace(now, at) {
                    // It must not be asked again; its name may mean another one some day.
                    let id = self.sources.remove(at).server;
                    let later = now.up + jittered(RESOLVE_AGAIN, now.random);
                    let of = self.servers.iter_mut().filter(|server| server.id == id);
                    of.for_each(|server| server.resolve_at = Some(later));
                }
                return;
            }
            Miss::Kiss(kiss) if kiss.slows() => {
                source.least_poll = source.least_poll.max(MIN_POLL) + 1;
                source.least_poll = source.least_poll.min(MAX_POLL);
            }
            Miss::Kiss(kiss) if kiss.wants_new_keys() => self.renew(now, self.sources[at].server),
            Miss::Keyless => self.renew(now, self.sources[at].server),
            Miss::Kiss(_) | Miss::Nothing => {}
        }
        if self.sources[at].reach.0 == 0 {
            self.sources[at].standing = Standing::Unreachable;
            let was_followed = !self.sources[at].filter.is_empty();
            self.sources[at].filter.clear();
            let silent = self.sources.iter().all(|source| source.filter.is_empty());
            if was_followed && silent && !std::mem::replace(&mut self.alone, true) {
                actions.push(Action::Tell(News::Alone));
            }
            // Another address of the same server may do better.
            if self.sources[at].asked >= PATIENCE && !self.replace(now, at) {
                self.renew(now, self.sources[at].server);
            }
        }
    }

    /// Its name is looked up anew before long, or keys are exchanged with it anew: the less often, the
    /// less came of it (RFC 8915 §4.2).
    fn renew(&mut self, now: Moment, id: ServerId) {
        let Some(server) = self.servers.iter_mut().find(|server| server.id == id) else { return };
        let wait = match server.what {
            TimeServer::Nts(..) => between_exchanges(server.exchanges),
            TimeServer::Ntp(_) | TimeServer::Ptp(_) => LAST_RETRY,
        };
        let soon = now.up + jittered(wait, now.random);
        server.resolve_at = server.resolve_at.map(|before| before.min(soon));
    }

    /// A server's keys are good: no others are needed now (§5.7).
    fn proven(&mut self, now: Moment, id: ServerId) {
        let Some(server) = self.servers.iter_mut().find(|server| server.id == id) else { return };
        let soon = now.up + LONGEST_BETWEEN_EXCHANGES;
        if std::mem::take(&mut server.exchanges) > 0
            && server.resolve_at.is_some_and(|at| at <= soon)
        {
            server.resolve_at = Some(now.up + jittered(RESOLVE_AGAIN, now.random));
        }
    }

    /// Takes another address of the server instead, if one is known.
    fn replace(&mut self, now: Moment, at: usize) -> bool {
        let Place::Server(id, _) = self.sources[at].place else { return false };
        let Some(address) = self.spare(id) else { return false };
        self.sources.remove(at);
        self.add(now.up, id, Place::Server(id, address));
        true
    }

    /// When the source is asked again: soon at first, then at the poll interval.
    fn ask_later(&mut self, now: Moment, at: usize) {
        let unset = self.phase == Phase::Unset;
        let source = &self.sources[at];
        let wait = if source.reach.0 == 0 {
            // Nobody there: less and less often.
            let wait = FIRST_RETRY * 2u32.saturating_pow(source.asked.min(8));
            wait.clamp(2 * FIRST_RETRY, LAST_RETRY)
        } else if source.asked < BURST || (unset && source.asked < 4 * BURST) {
            2 * FIRST_RETRY
        } else {
            seconds(self.poll_of(source))
        };
        let wait = wait.max(seconds(source.least_poll));
        self.sources[at].ask_at = Some(now.up + jittered(wait, now.random));
    }

    fn poll_of(&self, source: &Source) -> u8 {
        match source.place {
            Place::Device(_) => DEVICE_POLL,
            Place::Server(..) => self.poll.max(source.least_poll),
        }
    }

    /// With a new sample of source `at`: whom to believe, and what to do to the clock.
    fn decide(&mut self, now: Moment, at: usize, actions: &mut Vec<Action>) {
        let correction = self.discipline.correction(now.up);
        let frequency = self.discipline.frequency();
        let (mut who, mut candidates) = (Vec::new(), Vec::new());
        for (index, source) in self.sources.iter_mut().enumerate() {
            match source.filter.candidate(now.up, correction, frequency) {
                Some(candidate) if Filter::fit(&candidate) => {
                    who.push(index);
                    candidates.push(candidate);
                }
                Some(_) => {
                    // It was fit: look closer.
                    if std::mem::replace(&mut source.standing, Standing::Unfit)
                        == Standing::Followed
                    {
                        self.poll = MIN_POLL;
                    }
                }
                None => source.standing = Standing::Unreachable,
            }
        }
        if self.phase == Phase::Unset && !self.heard_enough(now.up) {
            return;
        }
        let true_ones = select::truechimers(&candidates);
        let chosen = select::cluster(&candidates, true_ones.clone());
        for (i, index) in who.iter().enumerate() {
            let standing = match (true_ones.contains(&i), chosen.contains(&i)) {
                _ if true_ones.is_empty() => Standing::Spare,
                (false, _) => Standing::Falseticker,
                (true, false) => Standing::Spare,
                (true, true) => Standing::Followed,
            };
            let source = &mut self.sources[*index];
            if standing == Standing::Falseticker && source.standing != standing {
                let news = News::Falseticker(source.place.to_string(), candidates[i].offset);
                actions.push(Action::Tell(news));
            }
            source.standing = standing;
        }
        let undecided = chosen.is_empty() && !candidates.is_empty();
        if undecided && !std::mem::replace(&mut self.undecided, undecided) {
            actions.push(Action::Tell(News::Undecided));
        }
        self.undecided = undecided;
        // Only a sample of somebody who is followed moves the clock.
        if !chosen.iter().any(|i| who[*i] == at) {
            return;
        }
        self.alone = false;
        self.leap = self.leap_of(&chosen, &who);
        let Some(combined) = select::combine(&candidates, &chosen) else { return };
        self.best = Some(candidates[chosen[0]]);
        let source = &self.sources[at];
        let place = self.sources[who[chosen[0]]].place.to_string();
        let Some(fresh) = source.filter.fresh(correction) else { return };
        // The first word is of all together. Then each has its own, and is as little trusted as they
        // differ: to weigh them over time is what the discipline's filter is for.
        let (offset, noise) = match self.phase {
            Phase::Unset => (combined.offset, combined.noise.max(combined.spread)),
            Phase::Set => (fresh.offset, fresh.noise.hypot(combined.spread)),
        };
        self.measured(now, offset, noise, &place, actions);
    }

    /// At the start the first word is not believed before the others had their chance.
    fn heard_enough(&self, now: Duration) -> bool {
        let waited = self.first_sample.is_some_and(|first| first + HEARING <= now);
        let all_named = self
            .servers
            .iter()
            .all(|server| server.resolve_at.is_some() || matches!(server.what, TimeServer::Ptp(_)));
        let all_heard = self.sources.iter().all(|source| !source.filter.is_empty());
        waited || (all_named && all_heard)
    }

    /// More than half of those that are followed must agree.
    fn leap_of(&self, chosen: &[usize], who: &[usize]) -> Leap {
        let says = |leap| {
            let same = |i: &&usize| {
                self.sources[who[**i]].filter.last().is_some_and(|sample| sample.leap == leap)
            };
            2 * chosen.iter().filter(same).count() > chosen.len()
        };
        [Leap::Insert, Leap::Delete].into_iter().find(|leap| says(*leap)).unwrap_or_default()
    }

    /// The clock needs `offset`, give or take `noise`.
    fn measured(
        &mut self,
        now: Moment,
        offset: f64,
        noise: f64,
        source: &str,
        actions: &mut Vec<Action>,
    ) {
        let innovation = self.discipline.expect(now.up, offset, noise);
        if self.is_spike(now.up, innovation) {
            return;
        }
        self.discipline.measure(now.up, offset, noise);
        if let Some(innovation) = innovation {
            self.adapt(innovation, noise);
        }
        let off = self.discipline.offset(now.up).unwrap_or(offset);
        let first = self.phase == Phase::Unset;
        self.phase = Phase::Set;
        if first {
            actions
                .push(Action::Tell(News::Synchronized { source: source.to_owned(), offset: off }));
        }
        let limit = if first { STEP_AT_START } else { PANIC };
        if off.abs() > limit {
            actions.push(Action::Step(Step { by: off, panic: !first }));
            self.steps += 1;
            self.discipline.stepped(off);
            self.new_era();
            self.steer(now.up, self.discipline.frequency(), actions);
        } else {
            self.slew(now.up, off, actions);
        }
        let distance = self.best.map_or(0.0, |best| best.distance);
        let expected = self.discipline.offset_sigma(now.up) + off.abs();
        actions.push(Action::Report(Report {
            expected,
            largest: distance + off.abs(),
            leap: if last_day_of_month(now.unix.as_secs()) { self.leap } else { Leap::None },
        }));
    }

    /// Whether a measurement cannot be, and is not taken (§11.3, spike detector). A few in a row are
    /// the truth after all: then the line is forgotten.
    fn is_spike(&mut self, now: Duration, innovation: Option<Innovation>) -> bool {
        let Some(innovation) = innovation else { return false };
        if innovation.sigmas() < SPIKE_SIGMAS || innovation.off.abs() < SPIKE_FLOOR {
            self.spikes = None;
            return false;
        }
        let (count, since) = self.spikes.map_or((1, now), |(count, since)| (count + 1, since));
        self.spikes = Some((count, since));
        // Look closer.
        self.poll = MIN_POLL;
        let long_enough = now.saturating_sub(since) >= STEPOUT || innovation.off.abs() <= PANIC;
        let believed = count >= SPIKES && long_enough;
        if believed {
            self.spikes = None;
            self.discipline.forget();
        }
        !believed
    }

    /// Asks less often when the oscillator is so steady that asking tells nothing, more often when the
    /// clock surprises (§13, `clock_adjust` of the poll).
    fn adapt(&mut self, innovation: Innovation, noise: f64) {
        let ours = innovation.ours.sqrt();
        self.calm += match innovation.sigmas() {
            sigmas if sigmas > 3.0 => -4,
            _ if ours < noise * 0.5 => 1,
            _ if ours > noise => -2,
            _ => 0,
        };
        if self.calm >= CALM && self.poll < MAX_POLL {
            self.poll += 1;
            self.calm = 0;
        } else if self.calm <= -CALM {
            self.poll = self.poll.saturating_sub(1).max(MIN_POLL);
            self.calm = 0;
        }
        self.calm = self.calm.clamp(-CALM, CALM);
    }

    /// Makes up for `off` by running faster or slower for a while.
    fn slew(&mut self, now: Duration, off: f64, actions: &mut Vec<Action>) {
        let frequency = self.discipline.frequency();
        let room = (MAX_RATE - frequency.abs()).max(MAX_RATE / 10.0);
        let time = (off.abs() / room).max(SLEW_TIME);
        self.slew_until = Some(now + Duration::from_secs_f64(time));
        self.steer(now, frequency + off / time, actions);
    }

    fn steer(&mut self, now: Duration, rate: f64, actions: &mut Vec<Action>) {
        let rate = rate.clamp(-MAX_RATE, MAX_RATE);
        self.discipline.steered(now, rate);
        actions.push(Action::Rate(rate * 1e6));
    }

    /// The clock may show anything; all are asked at once.
    fn unset(&mut self, now: Moment) {
        self.phase = Phase::Unset;
        self.new_era();
        self.first_sample = None;
        self.spikes = None;
        self.poll = MIN_POLL;
        self.calm = 0;
        for source in &mut self.sources {
            source.asked = 0;
            // An answer that is awaited comes, or is missed.
            source.ask_at = source.ask_at.map(|_| now.up);
        }
        for server in &mut self.servers {
            server.resolve_at = match server.what {
                TimeServer::Ntp(_) => server.resolve_at.map(|_| now.up),
                // Keys outlive a suspension, or their server says that they did not.
                TimeServer::Nts(..) => server.resolve_at,
                TimeServer::Ptp(_) => None,
            };
        }
    }

    fn new_era(&mut self) {
        self.era.0 = self.era.0.wrapping_add(1);
        self.slew_until = None;
        self.sources.iter_mut().for_each(|source| source.filter.clear());
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Server(_, address) => write!(f, "{address}"),
            Self::Device(path) => write!(f, "{}", path.display()),
        }
    }
}

fn seconds(poll: u8) -> Duration {
    Duration::from_secs(1 << poll.min(MAX_POLL))
}

/// Until keys are exchanged again with a server that nothing came of so often: from 10 s on, by half
/// as much more each time (RFC 8915 §4.2; a day later nobody would wait for it any more).
fn between_exchanges(fruitless: u32) -> Duration {
    let factor = 1.5f64.powi(i32::try_from(fruitless.clamp(1, 32) - 1).unwrap_or_default());
    FIRST_BETWEEN_EXCHANGES.mul_f64(factor).min(LONGEST_BETWEEN_EXCHANGES)
}

/// Up to an eighth shorter, so that nodes started together do not ask together.
fn jittered(wait: Duration, random: u32) -> Duration {
    wait - wait / 8 * (random % 1024) / 1024
}

/// Whether a leap second can be at the end of this day, UTC: at the end of a month.
fn last_day_of_month(unix_secs: u64) -> bool {
    day_of_month(unix_secs / 86_400 + 1) == 1
}

/// Of a day since 1970 (the civil calendar, in eras of 400 years that begin in March).
fn day_of_month(days: u64) -> u64 {
    let day_of_era = (days + 719_468) % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    day_of_year - (153 * month + 2) / 5 + 1
}

/// Off by more, the clock is set at once when it is set for the first time (`STEPT`), in seconds.
pub const STEP_AT_START: f64 = 0.128;
/// Off by more, and for longer than [`STEPOUT`], it is set again, and a person should know, in seconds.
pub const PANIC: f64 = 0.4;
/// How long a clock that was right must be far off until that is believed (`WATCH`).
pub const STEPOUT: Duration = Duration::from_secs(300);
/// How much faster or slower the clock runs at most: what the kernel takes, in seconds per second.
pub const MAX_RATE: f64 = 500e-6;
/// Poll intervals, as powers of two of seconds: 32 s to 2048 s (spec §9.6).
const MIN_POLL: u8 = 5;
const MAX_POLL: u8 = 11;
const DEVICE_POLL: u8 = 4;
/// Questions in quick succession at first.
const BURST: u32 = 4;
/// Sources of one name, when it is the only one.
const POOL: usize = 4;
/// Questions without any answer, until another address is tried.
const PATIENCE: u32 = 4;
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(64);
const FIRST_BETWEEN_EXCHANGES: Duration = Duration::from_secs(12);
const LONGEST_BETWEEN_EXCHANGES: Duration = Duration::from_secs(3600);
const RESOLVE_AGAIN: Duration = Duration::from_secs(6 * 3600);
/// How long the first answer waits for the others.
const HEARING: Duration = Duration::from_secs(5);
/// An offset is made up for in this time, if it is small, in seconds.
const SLEW_TIME: f64 = 16.0;
/// What cannot be: so many standard deviations, and at least so many seconds.
const SPIKE_SIGMAS: f64 = 5.0;
const SPIKE_FLOOR: f64 = 0.000_5;
/// So many in a row are believed.
const SPIKES: u32 = 4;
const CALM: i32 = 12;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
