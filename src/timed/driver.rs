//! Carries out what [`crate::machine`] decides: asks, looks names up, steers the clock, keeps the
//! frequency over restarts; and notices what nobody tells: a suspension, somebody else at the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orlop_config::machine::TimeServer;
use orlop_rt::{CancellationToken, Chain};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use crate::Error;
use crate::ask::{self, Answer};
use crate::clock::Clock;
use crate::exchange::Refusal;
use crate::ke::{self, Secured, Trust};
use crate::machine::{
    Action, Engine, Era, Event, Miss, Moment, News, Place, ServerId, SourceId, Step, View,
};
use crate::names::Names;
use crate::settings::{Settings, Watch};

/// A clock that jumps by less was not set by anybody: readings are that far apart at times.
const NOTICEABLE: f64 = 0.01;
/// Longer than this without us is a suspension.
const SLEPT: Duration = Duration::from_millis(100);
/// The kernel's clocks are compared at least this often.
const LOOK: Duration = Duration::from_secs(32);
/// How often the frequency is written down, and the machine's clock brought to the same time.
const KEEP: Duration = Duration::from_secs(3600);
/// How long the clock may be unset until that is told.
const SILENCE: Duration = Duration::from_secs(60);
/// Backwards by more than this is never done without saying so (spec §9.6).
const DAY: f64 = 86_400.0;

/// How the world is reached.
#[derive(Clone, Debug)]
pub(crate) struct Net {
    pub(crate) names: Names,
    /// Where NTP servers listen.
    pub(crate) port: u16,
    /// The authorities that all the world believes, PEM.
    pub(crate) roots: PathBuf,
}

/// The files that say what to go by.
pub(crate) struct Sources {
    config: PathBuf,
    given: PathBuf,
    watch: Watch,
}

impl Sources {
    pub(crate) fn watch(config: PathBuf, given: PathBuf) -> io::Result<Self> {
        let watch = Watch::new(vec![config.clone(), given.clone()])?;
        Ok(Self { config, given, watch })
    }

    pub(crate) fn read(&self) -> Result<Settings, Error> {
        Settings::read(&self.config, &self.given)
    }
}

pub(crate) struct Driver {
    engine: Engine,
    sources: Sources,
    settings: watch::Sender<Settings>,
    clock: Box<dyn Clock>,
    net: Arc<Net>,
    /// Of the servers of NTS, what the last exchange with each gave.
    secured: BTreeMap<TimeServer, Arc<Secured>>,
    /// Where the frequency is kept.
    drift: PathBuf,
    view: watch::Sender<View>,
    tasks: JoinSet<Ended>,
    seen: Clocks,
    kept_at: Duration,
    /// When the silence of all servers is told; `None`: it was, or there is none.
    tell_silence_at: Option<Duration>,
    /// What was complained about, until the clock is right.
    failing: BTreeSet<String>,
}

/// The kernel's clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    wall: SystemTime,
    boot: Duration,
    monotonic: Duration,
}

impl Clocks {
    fn read() -> Self {
        Self {
            wall: SystemTime::now(),
            boot: orlop_sys::since_boot(),
            monotonic: orlop_sys::monotonic(),
        }
    }

    /// How much longer the machine slept, all in all, than at `before`.
    fn slept_since(&self, before: &Self) -> Duration {
        (self.boot.saturating_sub(self.monotonic))
            .saturating_sub(before.boot.saturating_sub(before.monotonic))
    }

    /// How much was added to the clock since `before`, in seconds.
    fn set_since(&self, before: &Self) -> f64 {
        let passed = self.boot.saturating_sub(before.boot).as_secs_f64();
        let shown = match self.wall.duration_since(before.wall) {
            Ok(forward) => forward.as_secs_f64(),
            Err(back) => -back.duration().as_secs_f64(),
        };
        shown - passed
    }
}

/// A task's end: what it tells the engine; of a key exchange, what it gave as well.
struct Ended {
    event: Event,
    exchanged: Option<(TimeServer, Result<Arc<Secured>, String>)>,
}

impl From<Event> for Ended {
    fn from(event: Event) -> Self {
        Self { event, exchanged: None }
    }
}

enum Happened {
    Task(Ended),
    Told(io::Result<()>),
    Timer,
    Shutdown,
}

impl Driver {
    /// Takes up the frequency that was found right before.
    pub(crate) fn new(
        sources: Sources,
        settings: watch::Sender<Settings>,
        mut clock: Box<dyn Clock>,
        net: Arc<Net>,
        drift: PathBuf,
        view: watch::Sender<View>,
    ) -> Result<Self, Error> {
        let (rate, known) = match read_drift(&drift) {
            Some(ppm) => {
                clock.set_rate(ppm).map_err(Error::Clock)?;
                (ppm * 1e-6, true)
            }
            // A timed that ran before this one may have left something; the oscillator is unknown.
            None => (clock.rate().map_err(Error::Clock)? * 1e-6, false),
        };
        let seen = Clocks::read();
        let servers = settings.borrow().servers.clone();
        Ok(Self {
            engine: Engine::new(servers, seen.boot, rate, known),
            sources,
            settings,
            clock,
            net,
            secured: BTreeMap::new(),
            drift,
            view,
            tasks: JoinSet::new(),
            seen,
            kept_at: seen.boot,
            tell_silence_at: Some(seen.boot + SILENCE),
            failing: BTreeSet::new(),
        })
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        self.take(Event::Timer)?;
        loop {
            let now = orlop_sys::since_boot();
            let wait = self.engine.wake_at().map_or(LOOK, |at| at.saturating_sub(now)).min(LOOK);
            // All arms are cancel-safe.
            let happened = tokio::select! {
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok(ended) => Happened::Task(ended),
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => continue,
                },
                result = self.sources.watch.changed() => Happened::Told(result),
                () = tokio::time::sleep(wait) => Happened::Timer,
                () = shutdown.cancelled() => Happened::Shutdown,
            };
            self.look()?;
            match happened {
                Happened::Task(ended) => self.ended(ended)?,
                Happened::Told(result) => {
                    result.map_err(Error::Watch)?;
                    self.told()?;
                }
                Happened::Timer => self.take(Event::Timer)?,
                Happened::Shutdown => {
                    self.settle()?;
                    return Ok(());
                }
            }
            let now = orlop_sys::since_boot();
            if now.saturating_sub(self.kept_at) >= KEEP {
                self.keep();
            }
            if self.tell_silence_at.is_some_and(|at| at <= now) {
                self.tell_silence_at = None;
                warn!(
                    "no time server has set the clock yet: `orlopctl time` asks them and says why"
                );
            }
        }
    }

    /// The files may have changed: what they say holds from now on. What cannot be read changes nothing.
    fn told(&mut self) -> Result<(), Error> {
        // It is being written; that it was is told as well.
        if fs::metadata(&self.sources.config).is_ok_and(|config| config.len() == 0) {
            return Ok(());
        }
        let new = match self.sources.read() {
            Ok(new) => new,
            Err(error) => {
                warn!(error = %Chain(&error), "the servers stay what they were");
                return Ok(());
            }
        };
        let before = self.settings.send_replace(new.clone());
        if before == new {
            return Ok(());
        }
        let authorities = before.nts_ca != new.nts_ca;
        self.secured.retain(|server, _| !authorities && new.servers.contains(server));
        if before.servers == new.servers {
            return Ok(());
        }
        let named: Vec<_> = new.servers.iter().map(ToString::to_string).collect();
        info!(servers = named.join(" "), "the time servers are others now");
        self.take(Event::Servers(new.servers))
    }

    fn ended(&mut self, Ended { event, exchanged }: Ended) -> Result<(), Error> {
        match exchanged {
            Some((server, Ok(secured))) => {
                info!(%server, "keys were exchanged");
                self.secured.insert(server, secured);
            }
            Some((server, Err(why))) if self.failing.insert(format!("{server}: {why}")) => {
                warn!(%server, error = why, "no keys to ask with; tried again, less and less often");
            }
            Some(_) | None => {}
        }
        self.take(event)
    }

    /// What happened to the clocks while nobody looked.
    fn look(&mut self) -> Result<(), Error> {
        let now = Clocks::read();
        let before = std::mem::replace(&mut self.seen, now);
        let slept = now.slept_since(&before);
        if slept > SLEPT {
            info!(slept_secs = slept.as_secs(), "the machine slept: the clock is set anew");
            return self.take(Event::Resumed);
        }
        let set = now.set_since(&before);
        // The kernel inserts and deletes leap seconds itself, and so do the servers.
        let leap = (set.abs() - 1.0).abs() < NOTICEABLE && near_midnight(now.wall);
        if set.abs() > NOTICEABLE && !leap {
            warn!(seconds = set, "somebody else set the clock");
            return self.take(Event::Set(set));
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), Error> {
        let mut random = [0; 4];
        SystemRandom::new().fill(&mut random).map_err(|_| Error::Random)?;
        let clocks = Clocks::read();
        let now = Moment {
            up: clocks.boot,
            unix: clocks.wall.duration_since(UNIX_EPOCH).unwrap_or_default(),
            random: u32::from_ne_bytes(random),
        };
        for action in self.engine.handle(now, event) {
            debug!(?action, "decided");
            self.perform(action)?;
        }
        self.view.send_replace(self.engine.view(orlop_sys::since_boot()));
        Ok(())
    }

    fn perform(&mut self, action: Action) -> Result<(), Error> {
        match action {
            Action::Resolve(index) => self.resolve(index),
            Action::Query(id, era, place) => self.query(id, era, place),
            Action::Step(step) => self.step(step)?,
            Action::Rate(ppm) => self.clock.set_rate(ppm).map_err(Error::Clock)?,
            Action::Report(report) => self.clock.report(&report).map_err(Error::Clock)?,
            Action::Tell(news) => self.tell(news),
        }
        Ok(())
    }

    fn resolve(&mut self, id: ServerId) {
        let Some(server) = self.engine.server(id).cloned() else { return };
        let net = Arc::clone(&self.net);
        let nts_ca = self.settings.borrow().nts_ca.clone();
        let trusted = self.engine.synchronized() || self.clock.trusted();
        let earliest = (!trusted).then(ke::built);
        self.tasks.spawn(async move {
            match &server {
                TimeServer::Ntp(host) => {
                    let found = net.names.resolve(host).await;
                    if let Err(error) = &found {
                        debug!(server = %host, error = %Chain(error), "look up");
                    }
                    Event::Resolved(id, found.unwrap_or_default()).into()
                }
                TimeServer::Nts(host, port) => {
                    match net.exchange(&nts_ca, host, *port, earliest).await {
                        Ok((addresses, secured)) => Ended {
                            event: Event::Resolved(id, addresses),
                            exchanged: Some((server, Ok(Arc::new(secured)))),
                        },
                        Err(error) => Ended {
                            event: Event::Resolved(id, Vec::new()),
                            exchanged: Some((server, Err(Chain(&error).to_string()))),
                        },
                    }
                }
                TimeServer::Ptp(_) => Event::Resolved(id, Vec::new()).into(),
            }
        });
    }

    fn query(&mut self, id: SourceId, era: Era, place: Place) {
        let server = match &place {
            Place::Server(server, _) => self.engine.server(*server),
            Place::Device(_) => None,
        };
        let proof = match server {
            Some(server @ TimeServer::Nts(..)) => match self.secured.get(server) {
                Some(secured) => Some(Arc::clone(secured)),
                None => {
                    self.tasks.spawn(async move { Event::Missed(id, Miss::Keyless).into() });
                    return;
                }
            },
            _ => None,
        };
        let port = self.net.port;
        self.tasks.spawn(async move {
            match ask(&place, port, proof.as_deref()).await {
                Ok(answer) => Event::Sampled(id, era, answer.sample).into(),
                Err(error) => {
                    debug!(source = %place, error = %Chain(&error), "no sample");
                    Event::Missed(id, miss(&error)).into()
                }
            }
        });
    }

    fn step(&mut self, Step { by, panic }: Step) -> Result<(), Error> {
        if panic {
            error!(seconds = by, "the clock was right and is now far off: it is set again");
        } else {
            info!(seconds = by, "the clock is set");
        }
        if by < -DAY {
            warn!(days = by / DAY, "the clock goes back by more than a day");
        }
        self.clock.step(by).map_err(Error::Clock)?;
        // That was us.
        self.seen = Clocks::read();
        self.keep_machine_clock();
        Ok(())
    }

    fn tell(&mut self, news: News) {
        match news {
            News::Synchronized { source, offset } => {
                self.failing.clear();
                self.tell_silence_at = None;
                // Now our clock can judge certificates that it could not judge before.
                self.secured.retain(|_, secured| secured.within.is_none());
                info!(source, offset, "the clock is right");
            }
            News::Falseticker(source, offset) => {
                warn!(source, offset, "a time server contradicts the majority, and is ignored");
            }
            News::Alone => {
                warn!("no time server answers any more; the clock runs by what was learned")
            }
            News::Undecided => warn!(
                "the time servers contradict each other and none is followed: give three or more in \
                 machine.time.servers, so that one that lies is found out"
            ),
            News::Refused(source, kiss) => {
                warn!(source, ?kiss, "a time server does not want to be asked");
            }
        }
    }

    /// Ends a slew under way: the rate that stays is what the oscillator needs.
    fn settle(&mut self) -> Result<(), Error> {
        if let Some(ppm) = self.engine.settled_frequency_ppm() {
            self.clock.set_rate(ppm).map_err(Error::Clock)?;
        }
        self.keep();
        Ok(())
    }

    fn keep(&mut self) {
        self.kept_at = orlop_sys::since_boot();
        if let Some(ppm) = self.engine.settled_frequency_ppm() {
            let text = format!("{ppm:.4}\n");
            if let Err(error) = orlop_rt::replace(&self.drift, 0o644, text.as_bytes()) {
                self.complain(&format!("write {}", self.drift.display()), &error);
            }
        }
        if self.engine.synchronized() {
            self.keep_machine_clock();
        }
    }

    fn keep_machine_clock(&mut self) {
        if let Err(error) = self.clock.keep() {
            self.complain("set the real-time clock", &error);
        }
    }

    fn complain(&mut self, what: &str, error: &io::Error) {
        if self.failing.insert(format!("{what}: {error}")) {
            warn!(%error, "{what} failed");
        }
    }
}

impl Net {
    async fn exchange(
        &self,
        nts_ca: &str,
        host: &str,
        port: u16,
        earliest: Option<SystemTime>,
    ) -> Result<(Vec<IpAddr>, Secured), ke::Error> {
        let trust = Trust { ca: nts_ca.to_owned(), roots: self.roots.clone() };
        ke::exchange(&self.names, &trust, host, port, earliest).await
    }
}

/// Gets one sample.
async fn ask(place: &Place, port: u16, proof: Option<&Secured>) -> Result<Answer, ask::Error> {
    match place {
        Place::Server(_, address) => {
            let port = proof.and_then(|proof| proof.port).unwrap_or(port);
            ask::server(SocketAddr::new(*address, port), proof).await
        }
        Place::Device(path) => ask::device(path).await,
    }
}

/// Asks servers in their order, all addresses of each, until one answers (spec §9.6).
pub(crate) async fn ask_any(
    servers: &[TimeServer],
    net: &Net,
    nts_ca: &str,
) -> Result<(String, Answer), String> {
    let mut failures = Vec::new();
    let at = |found: Vec<IpAddr>| -> Vec<Place> {
        found.into_iter().map(|address| Place::Server(ServerId(0), address)).collect()
    };
    for server in servers {
        let (places, proof) = match server {
            TimeServer::Ptp(path) => (vec![Place::Device(path.clone())], None),
            TimeServer::Ntp(host) => match net.names.resolve(host).await {
                Ok(found) => (at(found), None),
                Err(error) => {
                    failures.push(format!("look up {host}: {}", Chain(&error)));
                    continue;
                }
            },
            TimeServer::Nts(host, port) => match net.exchange(nts_ca, host, *port, None).await {
                Ok((found, secured)) => (at(found), Some(secured)),
                Err(error) => {
                    failures.push(Chain(&error).to_string());
                    continue;
                }
            },
        };
        for place in places {
            match ask(&place, net.port, proof.as_ref()).await {
                Ok(answer) => return Ok((server.to_string(), answer)),
                Err(error) => failures.push(Chain(&error).to_string()),
            }
        }
    }
    Err(failures.join("; "))
}

fn miss(error: &ask::Error) -> Miss {
    match error {
        ask::Error::Refused(_, Refusal::Kiss(kiss)) => Miss::Kiss(*kiss),
        ask::Error::Keyless(_) => Miss::Keyless,
        _ => Miss::Nothing,
    }
}

/// In ppm; anything that is no such number was not written by us.
fn read_drift(path: &std::path::Path) -> Option<f64> {
    let ppm: f64 = fs::read_to_string(path).ok()?.trim().parse().ok()?;
    (ppm.abs() <= 500.0).then_some(ppm)
}

fn near_midnight(wall: SystemTime) -> bool {
    let of_day = wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    !(300..86_100).contains(&of_day)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_drift_is_a_number_the_kernel_takes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drift");
        assert_eq!(read_drift(&path), None);
        for (text, ppm) in [("-12.5000\n", Some(-12.5)), ("NaN", None), ("501", None), ("", None)] {
            fs::write(&path, text).unwrap();
            assert_eq!(read_drift(&path), ppm, "{text}");
        }
    }

    #[test]
    fn clocks_tell_what_nobody_told() {
        let wall = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let secs = Duration::from_secs;
        let before = Clocks { wall, boot: secs(100), monotonic: secs(90) };
        let after = Clocks { wall: wall + secs(30), boot: secs(130), monotonic: secs(120) };
        assert!(after.set_since(&before).abs() < 1e-9);
        assert_eq!(after.slept_since(&before), Duration::ZERO);
        let back = Clocks { wall: wall - secs(3570), ..after };
        assert!((back.set_since(&before) + 3600.0).abs() < 1e-6);
        let asleep = Clocks { boot: secs(1130), wall: wall + secs(1030), ..after };
        assert_eq!(asleep.slept_since(&before), secs(1000));
    }
}
