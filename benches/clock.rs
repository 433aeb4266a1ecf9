//! How right timed keeps a clock, and what it occupies.
//!
//! `clock simulation NAME rms_us=…`: the offset of a simulated clock, root mean square over weeks, once
//! kept by our engine and once by a model of chrony, on the same traces: an oscillator whose frequency
//! walks at random within ±100 ppm, four servers at different distances, queues, lost packets, hours in
//! which one way is slower than the other. The model is made from what chrony's manual says of its
//! algorithm (chrony.conf(5): `maxsamples`, `minsamples`, `polltarget`, `combinelimit`,
//! `corrtimeratio`; chronyc(1): `sourcestats`), not from its source.
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
    let rms = |run: fn(&Trace) -> f64| {
        let squares: f64 = traces.iter().map(|trace| run(trace).powi(2)).sum();
        (squares / f64::from(u32::try_from(traces.len()).unwrap_or(1))).sqrt()
    };
    for (name, run) in [("orlop", ours as fn(&Trace) -> f64), ("chrony", theirs)] {
        println!("clock simulation {name} rms_us={:.2}", rms(run) * 1e6);
    }
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

    fn rms(&self) -> f64 {
        (self.squares / self.count).sqrt()
    }
}

/// Our engine's error.
fn ours(trace: &Trace) -> f64 {
    let mut world = World::new(trace);
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
    world.rms()
}

/// A source as chrony keeps it.
#[derive(Default)]
struct Source {
    /// Time, offset of the free clock, delay.
    samples: Vec<(f64, f64, f64)>,
    ask_at: f64,
    poll: i32,
    score: f64,
    asked: u32,
}

/// A line through a source's samples.
#[derive(Clone, Copy)]
struct Line {
    /// Of the free clock, now: what must be added.
    offset: f64,
    offset_sd: f64,
    /// In seconds per second.
    slope: f64,
    slope_sd: f64,
    used: usize,
}

impl Source {
    /// Weighted linear regression; the oldest samples go until the signs of the residuals come in as
    /// many runs as chance would make, but six stay.
    fn line(&mut self, now: f64) -> Option<Line> {
        const LEAST: usize = 6;
        loop {
            let count = self.samples.len();
            if count < 3 {
                return None;
            }
            let least = self.samples.iter().map(|sample| sample.2).fold(f64::INFINITY, f64::min);
            let excess = |sample: &(f64, f64, f64)| (sample.2 - least) / 2.0;
            let typical = self.samples.iter().map(excess).sum::<f64>() / number(count) + 1e-6;
            let weight = |sample: &(f64, f64, f64)| (1.0 + excess(sample) / typical).powi(-2);
            let total: f64 = self.samples.iter().map(weight).sum();
            let mean = |of: &dyn Fn(&(f64, f64, f64)) -> f64| {
                self.samples.iter().map(|sample| weight(sample) * of(sample)).sum::<f64>() / total
            };
            let (x, y) = (mean(&|sample| sample.0), mean(&|sample| sample.1));
            let spread = mean(&|sample| (sample.0 - x).powi(2)) * total;
            let slope = mean(&|sample| (sample.0 - x) * (sample.1 - y)) * total / spread;
            let residual = |sample: &(f64, f64, f64)| sample.1 - y - slope * (sample.0 - x);
            let signs: Vec<bool> =
                self.samples.iter().map(|sample| residual(sample) > 0.0).collect();
            let runs = 1 + signs.windows(2).filter(|pair| pair[0] != pair[1]).count();
            let (n, free) = (number(count), number(count.max(3)) - 2.0);
            // One in twenty has fewer by chance.
            let expected = n / 2.0 + 1.0 - 1.65 * (n - 1.0).sqrt() / 2.0;
            if number(runs) < expected && count > LEAST {
                self.samples.remove(0);
                continue;
            }
            let variance = mean(&|sample| residual(sample).powi(2)) * n / free.max(1.0);
            let slope_sd = (variance * total / n / spread).sqrt();
            let offset_sd = (variance / n + (slope_sd * (now - x)).powi(2)).sqrt().max(1e-9);
            let offset = y + slope * (now - x);
            return Some(Line {
                offset,
                offset_sd,
                slope,
                slope_sd: slope_sd.max(1e-12),
                used: count,
            });
        }
    }
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The model's error.
fn theirs(trace: &Trace) -> f64 {
    const LARGEST_SLEW: f64 = 0.083_333;
    let mut world = World::new(trace);
    let mut sources: Vec<Source> =
        (0..SERVERS).map(|_| Source { poll: 6, ..Source::default() }).collect();
    let mut answers: BTreeMap<usize, (f64, f64, f64, f64)> = BTreeMap::new();
    let (mut frequency, mut updated_at) = (0.0, 0.0);
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
            if let Some((to, back)) = trace.delays(index, world.t) {
                // What the free clock lacks, as it is measured.
                let offset = (to - back) / 2.0 - trace.error(world.t);
                answers.insert(index, (world.t + to + back, world.t, offset, to + back));
            }
            source.asked += 1;
            // `iburst`.
            let wait = if source.asked < 4 { 2.0 } else { 2f64.powi(source.poll) };
            source.ask_at = world.t + wait;
        }
        let Some(index) =
            answers.iter().find(|(_, answer)| answer.0 <= world.t).map(|(index, _)| *index)
        else {
            continue;
        };
        let Some((_, at, offset, delay)) = answers.remove(&index) else { continue };
        let source = &mut sources[index];
        source.samples.push((at, offset, delay));
        if source.samples.len() > 64 {
            source.samples.remove(0);
        }
        let lines: Vec<Option<Line>> =
            sources.iter_mut().map(|source| source.line(world.t)).collect();
        let source = &mut sources[index];
        if let Some(line) = lines[index] {
            // `polltarget 8`, `minpoll 6`, `maxpoll 10`.
            source.score += (number(line.used) / 8.0 - 1.0) / 8.0;
            if source.score.abs() >= 1.0 {
                let change = if source.score > 0.0 { 1 } else { -1 };
                source.poll = (source.poll + change).clamp(6, 10);
                source.score = 0.0;
            }
        }
        let distance = |index: usize| {
            let delays = sources[index].samples.iter().map(|sample| sample.2 / 2.0);
            delays.fold(f64::INFINITY, f64::min)
        };
        // The one at the least distance is selected, those within `combinelimit 3` help it.
        let known = (0..SERVERS).filter(|index| lines[*index].is_some());
        let Some(best) = known.min_by(|a, b| distance(*a).total_cmp(&distance(*b))) else {
            continue;
        };
        if index != best {
            continue;
        }
        let near = (0..SERVERS).filter(|index| distance(*index) <= 3.0 * distance(best));
        let near: Vec<Line> = near.filter_map(|index| lines[index]).collect();
        let weights: f64 = near.iter().map(|line| line.offset_sd.powi(-2)).sum();
        let offset =
            near.iter().map(|line| line.offset * line.offset_sd.powi(-2)).sum::<f64>() / weights;
        let slopes: f64 = near.iter().map(|line| line.slope_sd.powi(-2)).sum();
        let slope =
            near.iter().map(|line| line.slope * line.slope_sd.powi(-2)).sum::<f64>() / slopes;
        // The regression is all the memory there is: each line is made of all samples that fit one.
        let interval = (world.t - updated_at).max(1.0);
        frequency = slope.clamp(-450e-6, 450e-6);
        updated_at = world.t;
        // `corrtimeratio 3`: an average correction takes so many intervals, a larger one less.
        let off = offset - world.correction;
        let average = lines[best].map_or(1e-9, |line| line.offset_sd);
        let time = (3.0 * interval * average / off.abs()).max(off.abs() / LARGEST_SLEW).max(1.0);
        if off.abs() > 1.0 {
            // `makestep`.
            world.correction += off;
            world.rate = frequency;
            slew_until = f64::INFINITY;
        } else {
            world.rate = frequency + off / time;
            slew_until = world.t + time;
        }
    }
    world.rms()
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
