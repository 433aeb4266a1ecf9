//! How right timed keeps a clock, and what it occupies.
//!
//! `clock simulation NAME rms_us=…`: the offset of a simulated clock, root mean square over weeks, once
//! kept by our engine and once by a model of chrony, on the same traces: an oscillator whose frequency
//! walks at random within ±100 ppm, four servers at different distances, queues, lost packets, hours in
//! which one way is slower than the other. The model has none of chrony's code: it is made from what its
//! manual says of its algorithm (chrony.conf(5): `maxsamples`, `minsamples`, `polltarget`,
//! `maxdelaydevratio`, `combinelimit`, `corrtimeratio`; chronyc(1): `sourcestats`). chrony asks as seldom as it
//! may when it is not told otherwise, so the model is also measured with a `maxpoll` by which it asks as often
//! as our engine: `clock questions NAME per_hour=…` to each server.
//!
//! `clock resident NAME kib=…`: the resident memory of both daemons after they have followed the same
//! server for a while; needs out/orlop and a chronyd (`ORLOP_CHRONYD`), and is left out without.
//! benches/figures.rs reads these lines.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use orlop_config::machine::TimeServer;
use orlop_timed::exchange::Sample;
use orlop_timed::machine::{Action, Engine, Event, Miss, Moment, Place};
use orlop_timed::wire::Leap;

const HOUR: f64 = 3600.0;
/// Until both have learned what there is to learn.
const SETTLE: f64 = 24.0 * HOUR;
const LENGTH: f64 = 8.0 * 24.0 * HOUR;
const SEEDS: u64 = 8;
const SERVERS: usize = 4;
/// How often the clock's error is read, in seconds.
const EVERY: f64 = 8.0;

fn main() {
    let traces: Vec<Trace> = (1..=SEEDS).map(Trace::new).collect();
    let mean = |run: &dyn Fn(&Trace) -> Kept| {
        let kept: Vec<Kept> = traces.iter().map(run).collect();
        let mean = |of: fn(&Kept) -> f64| kept.iter().map(of).sum::<f64>() / number(kept.len());
        Kept {
            square: mean(|kept| kept.square),
            per_hour: mean(|kept| kept.per_hour / number(SERVERS)),
        }
    };
    let tell = |name: &str, kept: &Kept| {
        let rms = kept.square.sqrt() * 1e6;
        println!("clock simulation {name} rms_us={rms:.2}");
        println!("clock questions {name} per_hour={:.1}", kept.per_hour);
    };
    let own = mean(&ours);
    tell("orlop", &own);
    // Once as it is when nothing is configured, and once so that it asks as often as our engine does, or more often.
    tell("chrony", &mean(&|trace| theirs(trace, 10)));
    let as_often = (6..=10).rev().map(|most| mean(&|trace| theirs(trace, most)));
    let mut as_often = as_often.skip_while(|kept| kept.per_hour < own.per_hour);
    let as_often = as_often.next().unwrap_or_else(|| mean(&|trace| theirs(trace, 6)));
    tell("chrony_as_often", &as_often);
    match residents() {
        Ok(residents) => {
            for (name, kib) in residents {
                println!("clock resident {name} kib={kib}");
            }
        }
        Err(why) => println!("skipped: clock resident: {why}"),
    }
}

/// What the oscillator and the net do, whoever asks.
struct Trace {
    seed: u64,
    /// The free clock's error at each second, in seconds.
    phase: Vec<f64>,
}

impl Trace {
    fn new(seed: u64) -> Self {
        let mut frequency = (unit(seed, 1, 0) - 0.5) * 100e-6;
        let mut phase = vec![0.0];
        let mut at = 0.0;
        for second in 0u32.. {
            if f64::from(second) > LENGTH + 2.0 {
                break;
            }
            // Some 0.1 ppm in an hour, and the room's day and night.
            let walk: f64 = (0..12).map(|i| unit(seed, 2 + i, second.into())).sum::<f64>() - 6.0;
            frequency = (frequency + 2e-9 * walk).clamp(-100e-6, 100e-6);
            let day = 0.2e-6 * (f64::from(second) / (24.0 * HOUR) * std::f64::consts::TAU).sin();
            at += frequency + day;
            phase.push(at);
        }
        Self { seed, phase }
    }

    /// The free clock's error at true time `t`.
    fn error(&self, t: f64) -> f64 {
        let whole = t.max(0.0).floor();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small, positive"
        )]
        let index = (whole as usize).min(self.phase.len() - 2);
        self.phase[index] + (self.phase[index + 1] - self.phase[index]) * (t - whole)
    }

    /// The delays of a question asked at `t`, there and back; `None`: it is lost.
    fn delays(&self, server: usize, t: f64) -> Option<(f64, f64)> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small, positive"
        )]
        let (moment, hour) = ((t * 10.0) as u64, (t / HOUR) as u64);
        let stream = 100 + 10 * server as u64;
        if unit(self.seed, stream, moment) < 0.02 {
            return None;
        }
        let number = f64::from(u32::try_from(server).unwrap_or_default());
        let base = 0.003 + 0.004 * number;
        // Each way has its length; every fifth hour one of them is full.
        let lean = 0.000_2 * (unit(self.seed, stream + 1, 0) - 0.5);
        let full = unit(self.seed, stream + 2, hour) < 0.2;
        let queue = if full { 0.002 } else { 0.000_2 };
        let exponential = |n| -(1.0 - unit(self.seed, stream + n, moment)).ln();
        let to = base + lean + queue * exponential(3);
        let back = base - lean + 0.000_2 * exponential(4);
        Some((to, back))
    }
}

/// 0 to 1, the same each time for the same three numbers (splitmix64).
fn unit(seed: u64, stream: u64, at: u64) -> f64 {
    let mut z = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(stream.wrapping_mul(0xd1b5_4a32_d192_ed03))
        .wrapping_add(at.wrapping_mul(0x8cb9_2ba7_2f3d_8dd7));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    f64::from(u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or_default()) / 4_294_967_296.0
}

/// A clock, its error read now and then.
struct World<'a> {
    trace: &'a Trace,
    t: f64,
    /// What was added to the free clock.
    correction: f64,
    rate: f64,
    read_at: f64,
    squares: f64,
    count: f64,
}

impl<'a> World<'a> {
    fn new(trace: &'a Trace) -> Self {
        let (t, read_at) = (0.0, SETTLE);
        Self { trace, t, correction: 0.0, rate: 0.0, read_at, squares: 0.0, count: 0.0 }
    }

    /// What the clock shows less what is right.
    fn error(&self) -> f64 {
        self.trace.error(self.t) + self.correction
    }

    fn pass_until(&mut self, t: f64) {
        while self.t < t {
            let next = if self.read_at > self.t { t.min(self.read_at) } else { t };
            self.correction += self.rate * (next - self.t);
            self.t = next;
            if self.t >= self.read_at {
                self.squares += self.error().powi(2);
                self.count += 1.0;
                self.read_at += EVERY;
            }
        }
    }

    /// What the clock shows.
    fn local(&self) -> f64 {
        self.t + self.error()
    }

    fn kept(&self, questions: f64) -> Kept {
        Kept { square: self.squares / self.count, per_hour: questions / LENGTH * HOUR }
    }
}

/// How a clock was kept: the mean square of its error, and for how many questions to each server and hour.
struct Kept {
    square: f64,
    per_hour: f64,
}

/// Our engine's error.
fn ours(trace: &Trace) -> Kept {
    let mut world = World::new(trace);
    let mut questions = 0.0;
    // No clock starts at zero.
    const START: f64 = 1000.0;
    let up = |world: &World<'_>| Duration::from_secs_f64(START + world.local());
    let servers = (0..SERVERS).map(|i| TimeServer::Ntp(format!("192.0.2.{i}"))).collect::<Vec<_>>();
    let mut engine = Engine::new(servers, Duration::from_secs_f64(START), 0.0, false);
    // What is under way: when it arrives, and what.
    let mut arrivals: Vec<(f64, Event)> = vec![(0.0, Event::Timer)];
    let mut random = 0;
    while world.t < LENGTH {
        let wake = engine.wake_at().map_or(f64::INFINITY, |at| {
            world.t + at.saturating_sub(up(&world)).as_secs_f64().max(1e-6)
        });
        let arrival = arrivals.iter().map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
        world.pass_until(wake.min(arrival).min(LENGTH));
        let event = match arrivals.iter().position(|(at, _)| *at <= world.t) {
            Some(at) => arrivals.remove(at).1,
            None => Event::Timer,
        };
        random += 1;
        let chance = (unit(trace.seed, 90, random) * 4e9).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 2^32")]
        let now = Moment { up: up(&world), unix: up(&world), random: chance as u32 };
        for action in engine.handle(now, event) {
            match action {
                Action::Resolve(id) => {
                    let named = engine.server(id).map(ToString::to_string).unwrap_or_default();
                    let address = named.parse::<IpAddr>().into_iter().collect();
                    arrivals.push((world.t, Event::Resolved(id, address)));
                }
                Action::Query(id, era, Place::Server(_, IpAddr::V4(address))) => {
                    let server = usize::from(address.octets()[3]);
                    questions += 1.0;
                    arrivals.push(match trace.delays(server, world.t) {
                        None => (world.t + 5.0, Event::Missed(id, Miss::Nothing)),
                        Some((to, back)) => {
                            let sample = Sample {
                                offset: (to - back) / 2.0 - world.error(),
                                delay: to + back,
                                precision: 1e-6,
                                root_delay: 0.0,
                                root_dispersion: 0.000_1,
                                stratum: 1,
                                leap: Leap::None,
                                reference: *b"GPS\0",
                            };
                            (world.t + to + back, Event::Sampled(id, era, sample))
                        }
                    });
                }
                Action::Step(step) => world.correction += step.by,
                Action::Rate(ppm) => world.rate = ppm * 1e-6,
                Action::Query(..) | Action::Report(_) | Action::Tell(_) => {}
            }
        }
    }
    world.kept(questions)
}

/// A source as chrony keeps it.
#[derive(Default)]
struct Source {
    /// The latest.
    samples: Vec<Measured>,
    /// From which on the line goes through them; those before only test it.
    start: usize,
    line: Option<Line>,
    ask_at: f64,
    poll: i32,
    score: f64,
    asked: u32,
}

#[derive(Clone, Copy)]
struct Measured {
    at: f64,
    /// Of the free clock.
    offset: f64,
    delay: f64,
}

/// A line through a source's samples.
#[derive(Clone, Copy)]
struct Line {
    /// A time and what must be added to the free clock then.
    at: f64,
    offset: f64,
    /// In seconds per second.
    slope: f64,
    slope_sd: f64,
    /// Of the samples around it, and of the line where they are.
    sd: f64,
    mean_sd: f64,
    used: usize,
}

impl Line {
    /// What must be added to the free clock at `t`.
    fn offset(&self, t: f64) -> f64 {
        self.offset + self.slope * (t - self.at)
    }

    fn offset_sd(&self, t: f64) -> f64 {
        (self.mean_sd.powi(2) + (self.slope_sd * (t - self.at)).powi(2)).sqrt().max(1e-9)
    }
}

/// `maxsamples`, `minsamples`.
const MOST: usize = 64;
const LEAST: usize = 6;

impl Source {
    /// Half of the shortest delay.
    fn distance(&self) -> f64 {
        self.samples.iter().map(|sample| sample.delay / 2.0).fold(f64::INFINITY, f64::min)
    }

    /// Takes a sample; `minpoll 6`, `polltarget 8`, `maxdelaydevratio 10`.
    fn take(&mut self, sample: Measured, most_poll: i32) {
        let excess = sample.delay - 2.0 * self.distance();
        if self.line.is_some_and(|line| excess > 10.0 * line.sd && self.samples.len() > LEAST) {
            return;
        }
        self.samples.push(sample);
        if self.samples.len() > MOST {
            self.samples.remove(0);
            self.start = self.start.saturating_sub(1);
        }
        self.line = self.fit();
        let Some(line) = self.line else { return };
        let more = (number(line.used) / 8.0 - 1.0) / 8.0;
        // Shortening is quicker.
        self.score += if more < 0.0 { 2.0 * more } else { more };
        let change = match self.score {
            ..0.0 => -1,
            1.0.. => 1,
            _ => 0,
        };
        self.score -= f64::from(change);
        self.poll = (self.poll + change).clamp(6, most_poll);
    }

    /// Weighted linear regression. The oldest samples are left out until the residuals' signs come in as many runs
    /// as chance would make, but six stay. As many again of those that were left out are tested along with the
    /// others, so that a curve is seen early.
    fn fit(&mut self) -> Option<Line> {
        if self.samples.len() < 3 {
            return None;
        }
        let least = self.distance();
        loop {
            let samples = &self.samples[self.start..];
            let count = samples.len();
            let n = number(count);
            let excess = |sample: &Measured| sample.delay / 2.0 - least;
            let typical = samples.iter().map(excess).sum::<f64>() / n + 1e-6;
            let weight = |sample: &Measured| (1.0 + excess(sample) / typical).powi(-2);
            let total: f64 = samples.iter().map(weight).sum();
            let mean = |of: &dyn Fn(&Measured) -> f64| {
                samples.iter().map(|sample| weight(sample) * of(sample)).sum::<f64>() / total
            };
            let (at, offset) = (mean(&|sample| sample.at), mean(&|sample| sample.offset));
            let spread = mean(&|sample| (sample.at - at).powi(2));
            let slope = mean(&|sample| (sample.at - at) * (sample.offset - offset)) / spread;
            let residual = |sample: &Measured| sample.offset - offset - slope * (sample.at - at);
            let tested = &self.samples[self.start.saturating_sub(count)..];
            let signs: Vec<bool> = tested.iter().map(|sample| residual(sample) > 0.0).collect();
            let runs = 1 + signs.windows(2).filter(|pair| pair[0] != pair[1]).count();
            // One in twenty has fewer by chance.
            let m = number(tested.len());
            let fewest = m / 2.0 + 1.0 - 1.65 * (m - 1.0).sqrt() / 2.0;
            if number(runs) < fewest && count > LEAST {
                self.start += 1;
                continue;
            }
            let variance = mean(&|sample| residual(sample).powi(2)) * n / (n - 2.0).max(1.0);
            return Some(Line {
                at,
                offset,
                slope,
                slope_sd: (variance / n / spread).sqrt().max(1e-12),
                sd: variance.sqrt(),
                mean_sd: (variance / n).sqrt(),
                used: count,
            });
        }
    }
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The model's error, when it asks each server every `2^most_poll` seconds at the least.
fn theirs(trace: &Trace, most_poll: i32) -> Kept {
    const LARGEST_SLEW: f64 = 0.083_333;
    let mut world = World::new(trace);
    let mut sources: Vec<Source> =
        (0..SERVERS).map(|_| Source { poll: 6, ..Source::default() }).collect();
    // What is under way: when it arrives, and what.
    let mut answers: BTreeMap<usize, (f64, Measured)> = BTreeMap::new();
    let (mut frequency, mut updated_at, mut questions) = (0.0, 0.0, 0.0);
    // When the extra rate that makes up for an offset ends.
    let mut slew_until = f64::INFINITY;
    while world.t < LENGTH {
        let asks = sources.iter().map(|source| source.ask_at).fold(f64::INFINITY, f64::min);
        let arrivals = answers.values().map(|answer| answer.0).fold(f64::INFINITY, f64::min);
        let next = asks.min(arrivals).min(slew_until).min(LENGTH).max(world.t + 1e-6);
        world.pass_until(next);
        if world.t >= slew_until {
            slew_until = f64::INFINITY;
            world.rate = frequency;
        }
        for (index, source) in sources.iter_mut().enumerate() {
            if source.ask_at > world.t {
                continue;
            }
            questions += 1.0;
            if let Some((to, back)) = trace.delays(index, world.t) {
                // What the free clock lacks, as it is measured.
                let offset = (to - back) / 2.0 - trace.error(world.t);
                let sample = Measured { at: world.t, offset, delay: to + back };
                answers.insert(index, (world.t + to + back, sample));
            }
            source.asked += 1;
            // `iburst`.
            let wait = if source.asked < 4 { 2.0 } else { 2f64.powi(source.poll) };
            source.ask_at = world.t + wait;
        }
        let arrived = answers.iter().find(|(_, answer)| answer.0 <= world.t);
        let Some((index, (_, sample))) = arrived.map(|(index, answer)| (*index, *answer)) else {
            continue;
        };
        answers.remove(&index);
        sources[index].take(sample, most_poll);
        // The one at the least distance is selected, those within `combinelimit 3` help it.
        let known = sources.iter().enumerate().filter(|(_, source)| source.line.is_some());
        let best = known.min_by(|a, b| a.1.distance().total_cmp(&b.1.distance()));
        let Some((_, selected)) = best.filter(|(best, _)| *best == index) else { continue };
        let reach = 3.0 * selected.distance();
        let near: Vec<Line> = (sources.iter().filter(|source| source.distance() <= reach))
            .filter_map(|source| source.line)
            .collect();
        let now = world.t;
        let combined = |value: &dyn Fn(&Line) -> f64, sd: &dyn Fn(&Line) -> f64| {
            let weights: f64 = near.iter().map(|line| sd(line).powi(-2)).sum();
            near.iter().map(|line| value(line) * sd(line).powi(-2)).sum::<f64>() / weights
        };
        let offset = combined(&|line| line.offset(now), &|line| line.offset_sd(now));
        // The regression is all the memory there is: each line is made of all samples that fit one.
        frequency = combined(&|line| line.slope, &|line| line.slope_sd).clamp(-450e-6, 450e-6);
        let interval = (now - std::mem::replace(&mut updated_at, now)).max(1.0);
        let off = offset - world.correction;
        if off.abs() > 1.0 {
            // `makestep`.
            world.correction += off;
            world.rate = frequency;
            slew_until = f64::INFINITY;
            continue;
        }
        // `corrtimeratio 3`: making up for an average offset takes so many intervals, for a larger one less. Over
        // that time it is half of it on average.
        let average = 0.5 * selected.line.map_or(1e-9, |line| line.offset_sd(now));
        let time = (3.0 * interval * average / off.abs()).max(off.abs() / LARGEST_SLEW).max(1.0);
        world.rate = frequency + off / time;
        slew_until = now + time;
    }
    world.kept(questions)
}

/// Resident KiB of both daemons, each following the same server.
fn residents() -> Result<Vec<(&'static str, u64)>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let orlop = std::env::var_os("ORLOP").map_or_else(|| root.join("out/orlop"), PathBuf::from);
    let chronyd =
        std::env::var_os("ORLOP_CHRONYD").map_or_else(|| "/usr/sbin/chronyd".into(), PathBuf::from);
    for program in [&orlop, &chronyd] {
        if !program.is_file() {
            return Err(format!("no {}", program.display()));
        }
    }
    let failed = |error: std::io::Error| error.to_string();
    let folder = tempfile::tempdir().map_err(failed)?;
    let path = |name: &str| folder.path().join(name);
    // A port nobody has; between this and chronyd's bind nobody else wants it.
    let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let port = free.local_addr().map_err(failed)?.port();
    drop(free);
    let common = "cmdport 0\nbindcmdaddress /\n";
    let serve = format!(
        "local stratum 5\nallow 127.0.0.1\nbindaddress 127.0.0.1\nport {port}\n{common}pidfile {}\n",
        path("server.pid").display()
    );
    let follow = format!(
        "server 127.0.0.1 port {port} iburst\nport 0\n{common}pidfile {}\n",
        path("client.pid").display()
    );
    let texts = [("server", serve), ("client", follow), ("timed", "servers: [127.0.0.1]\n".into())];
    for (name, text) in texts {
        std::fs::write(path(name), text).map_err(failed)?;
    }
    std::fs::create_dir(path("state")).map_err(failed)?;
    let chrony = |config: &str| {
        let mut command = Command::new(&chronyd);
        command.args(["-x", "-d", "-u", "root", "-f"]).arg(path(config));
        Daemon::start(command).map_err(failed)
    };
    let _server = chrony("server")?;
    let theirs = chrony("client")?;
    let mut timed = Command::new(&orlop);
    timed.args(["timed", "--observe", "--hosts", "/dev/null", "--resolv-conf", "/dev/null"]);
    timed.arg("--socket").arg(path("timed.sock")).arg("--config").arg(path("timed"));
    timed.arg("--given").arg(path("given")).arg("--state").arg(path("state"));
    timed.arg("--port").arg(port.to_string());
    let ours = Daemon::start(timed).map_err(failed)?;
    // Questions come every two seconds at first; both have had their burst by then.
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(vec![("orlop", ours.resident()?), ("chrony", theirs.resident()?)])
}

/// A daemon that ends with the measurement.
struct Daemon(Child);

impl Daemon {
    fn start(mut command: Command) -> std::io::Result<Self> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.spawn().map(Self)
    }

    fn resident(&self) -> Result<u64, String> {
        let path = format!("/proc/{}/status", self.0.id());
        let status = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        kib.ok_or_else(|| format!("{path}: it has ended"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
