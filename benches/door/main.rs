//! What the front door costs: a unary call and a copy through apid and routerd beside the same straight
//! to machined's socket, one call to many nodes, clients that only stay connected, and what a good client
//! feels of those that mean harm ([`attacks`]).
//!
//! Each daemon is a process of its own. apid and routerd are those of the binary that `ORLOP` names, or
//! `out/orlop`; the machine is machined's own API over what this host has; the nodes ([`crowd`]) are a
//! thousand on loopback addresses in one process, each with a listener and a certificate of its own.
//! Prints a line for each figure: `door NAME KEY=…`; benches/figures.rs reads them.

#![forbid(unsafe_code)]

mod attacks;
mod crowd;

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::stream::{self, StreamExt as _};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use orlop_machined::figures::MachineServer;
use orlop_pki::{Authority, KeyKind, Leaf, Pair, Usage};
use orlop_proto::machine::CopyRequest;
use orlop_proto::machine::machine_service_client::MachineServiceClient;
use orlop_rpc::{tls, unix};
use orlop_rt::CancellationToken;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Request;
use tonic::transport::Channel;

/// Callers at once, calls of each, and how often both ways are tried in turns.
const CALLERS: usize = 64;
const CALLS_EACH: usize = 200;
const ROUNDS: usize = 7;
/// Calls of each of them at a pace.
const PACED_EACH: usize = 50;
/// Calls one after the other.
const ALONE: usize = 2000;
/// What is copied, in files of 1 MB, and how often.
const MEGABYTES: usize = 1000;
const COPIES: usize = 3;
/// How many nodes are asked at once.
const NODES: [usize; 4] = [1, 10, 100, 1000];
/// Clients that say nothing, and how many of them come from one address.
const IDLE: usize = 10_000;
const IDLE_EACH: usize = 500;
/// How long a good client calls, and how long it waits between its calls.
const GOOD: Duration = Duration::from_secs(6);
const PACE: Duration = Duration::from_millis(2);
const HOUR: Duration = Duration::from_secs(3600);
const LIMIT: Duration = Duration::from_secs(60);
/// Both ends of the idle clients' connections, and then some.
const OPEN_FILES: u64 = 16_384;

fn main() -> Result<()> {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    let path = |at: usize| args.get(at).map(Path::new).context("an argument is missing");
    match args.first().and_then(|role| role.to_str()) {
        Some("machine") => machine(path(1)?),
        Some("crowd") => crowd::serve(path(1)?),
        Some("attack") => {
            let [kind, port] = [1, 2].map(|at| args.get(at).and_then(|arg| arg.to_str()));
            attacks::run(kind.context("no kind")?, port.context("no port")?.parse()?, path(3)?)
        }
        // What `cargo bench` says, or words of the figures that are wanted.
        _ => measure(&args),
    }
}

fn measure(args: &[OsString]) -> Result<()> {
    let words: Vec<_> = args.iter().filter(|arg| *arg != "--bench").collect();
    let wanted =
        |name: &str| words.is_empty() || words.iter().any(|word| *word == OsStr::new(name));
    more_files()?;
    let node = Node::start()?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (straight, door) = node.channels()?;
        for channel in [&straight, &door] {
            answers(channel).await?;
        }
        if wanted("unary") {
            unary(&node, &straight, &door).await?;
        }
        if wanted("copy") {
            copies(&straight, &door).await?;
        }
        if wanted("attacks") {
            good_clients(&node).await?;
        }
        if wanted("nodes") {
            one_to_many(&node, &door).await?;
        }
        if wanted("idle") {
            idle(&node).await?;
        }
        Ok(())
    })
}

/// 64 callers at once, as fast as they can; then at half the pace that the door takes, so that what is
/// measured is the way and not the queue; then one alone: what a call takes when it waits for no other.
async fn unary(node: &Node, straight: &Channel, door: &Channel) -> Result<()> {
    let (mut rates, mut times) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut spent = [0.0; 3];
    for round in 0..=ROUNDS {
        for (way, channel) in [straight, door].into_iter().enumerate() {
            let before = node.processor()?;
            let (rate, took) = calls_at_once(channel).await?;
            if way == 1 {
                let after = node.processor()?;
                let each = (CALLERS * CALLS_EACH * (ROUNDS + 1)) as f64;
                (0..3).for_each(|at| spent[at] += (after[at] - before[at]) / each);
            }
            // The first one warms up.
            if round > 0 {
                rates[way].push(rate);
                times[way].extend(took);
            }
        }
        let [straight, door] = [0, 1].map(|way| rates[way].last().copied().unwrap_or_default());
        eprintln!("door: {straight:.0} calls/s straight, {door:.0} through the door");
    }
    let [apid, routerd, machine] = spent;
    eprintln!("door: a call costs apid {apid:.0} µs, routerd {routerd:.0}, machined {machine:.0}");
    let pace = percentile(&mut rates[1], 50) / 2.0;
    let mut paced = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (way, channel) in [straight, door].into_iter().enumerate() {
            paced[way].extend(calls_at(pace, channel).await?);
        }
    }
    let mut alone = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (way, channel) in [straight, door].into_iter().enumerate() {
            let mut client = MachineServiceClient::new(channel.clone());
            for _ in 0..ALONE / ROUNDS {
                let began = Instant::now();
                client.memory(()).await?;
                alone[way].push(micros(began));
            }
        }
    }
    for (way, name) in ["straight", "door"].into_iter().enumerate() {
        println!(
            "door unary_{name} rate={:.0} p50_us={:.0} p99_us={:.0} paced_p50_us={:.0} paced_p99_us={:.0} alone_p50_us={:.0} alone_p99_us={:.0}",
            percentile(&mut rates[way], 50),
            percentile(&mut times[way], 50),
            percentile(&mut times[way], 99),
            percentile(&mut paced[way], 50),
            percentile(&mut paced[way], 99),
            percentile(&mut alone[way], 50),
            percentile(&mut alone[way], 99),
        );
    }
    Ok(())
}

/// Calls a second, and microseconds each took.
async fn calls_at_once(channel: &Channel) -> Result<(f64, Vec<f64>)> {
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let mut client = MachineServiceClient::new(channel.clone());
        callers.spawn(async move {
            let mut took = Vec::with_capacity(CALLS_EACH);
            for _ in 0..CALLS_EACH {
                let began = Instant::now();
                client.memory(()).await?;
                took.push(micros(began));
            }
            Ok::<_, tonic::Status>(took)
        });
    }
    let mut times = Vec::new();
    while let Some(took) = callers.join_next().await {
        times.extend(took??);
    }
    Ok((times.len() as f64 / began.elapsed().as_secs_f64(), times))
}

/// Microseconds of the calls of as many callers, together `rate` of them a second.
async fn calls_at(rate: f64, channel: &Channel) -> Result<Vec<f64>> {
    let (began, each) = (tokio::time::Instant::now(), CALLERS as f64 / rate);
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = MachineServiceClient::new(channel.clone());
        // One after the other.
        let first = began + Duration::from_secs_f64(caller as f64 / rate);
        callers.spawn(async move {
            let mut took = Vec::with_capacity(PACED_EACH);
            for call in 0..PACED_EACH {
                let when = first + Duration::from_secs_f64(call as f64 * each);
                tokio::time::sleep_until(when).await;
                let began = Instant::now();
                client.memory(()).await?;
                took.push(micros(began));
            }
            Ok::<_, tonic::Status>(took)
        });
    }
    let mut times = Vec::new();
    while let Some(took) = callers.join_next().await {
        times.extend(took??);
    }
    Ok(times)
}

/// A gigabyte, in turns, so that both ways meet the same machine.
async fn copies(straight: &Channel, door: &Channel) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let content: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    for number in 0..MEGABYTES {
        fs::File::create(folder.path().join(number.to_string()))?.write_all(&content)?;
    }
    let mut times = [Vec::new(), Vec::new()];
    // The first one, which finds nothing in memory, does not count.
    for round in 0..=COPIES {
        for (way, channel) in [straight, door].into_iter().enumerate() {
            let began = Instant::now();
            let bytes = copy(channel, folder.path()).await?;
            ensure!(bytes > MEGABYTES * content.len(), "only {bytes} bytes came");
            if round > 0 {
                times[way].push(began.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    for (way, name) in ["straight", "door"].into_iter().enumerate() {
        println!("door copy_{name} p50_ms={:.0}", percentile(&mut times[way], 50));
    }
    Ok(())
}

/// How many bytes came.
async fn copy(channel: &Channel, files: &Path) -> Result<usize> {
    let mut client = MachineServiceClient::new(channel.clone());
    let request = CopyRequest { root_path: files.display().to_string() };
    let mut pieces = client.copy(request).await?.into_inner();
    let mut bytes = 0;
    while let Some(piece) = pieces.message().await? {
        bytes += piece.bytes.len();
    }
    Ok(bytes)
}

/// One call to many nodes: the first time, when all are dialled, and once they are.
async fn one_to_many(node: &Node, door: &Channel) -> Result<()> {
    let mut client = MachineServiceClient::new(door.clone());
    for nodes in NODES {
        let before = node.resident()?;
        let mut call = async || -> Result<f64> {
            let mut request = Request::new(());
            for node in 0..nodes {
                request.metadata_mut().append("nodes", crowd::address(node).to_string().parse()?);
            }
            let began = Instant::now();
            let answer = client.memory(request).await?.into_inner();
            let took = began.elapsed().as_secs_f64();
            let failed = answer.messages.iter().find(|entry| entry.meminfo.is_none());
            ensure!(answer.messages.len() == nodes && failed.is_none(), "{failed:?}");
            Ok(took * 1e3)
        };
        let first = call().await?;
        let mut again = Vec::new();
        for _ in 0..ROUNDS {
            again.push(call().await?);
        }
        println!(
            "door nodes_{nodes} first_ms={first:.1} again_ms={:.1} growth_kib={}",
            percentile(&mut again, 50),
            node.resident()?.saturating_sub(before),
        );
    }
    Ok(())
}

/// Clients that have said that they speak HTTP/2, and then nothing; a call still finds its way.
async fn idle(node: &Node) -> Result<()> {
    let (config, before) = (node.admin()?, node.resident()?);
    let clients: Vec<_> = stream::iter(0..IDLE)
        .map(|number| {
            let source = u32::try_from(number / IDLE_EACH).unwrap_or(0);
            greeted(nth(Ipv4Addr::new(127, 2, 0, 1), source), node.port, &config)
        })
        .buffer_unordered(CALLERS)
        .collect()
        .await;
    let mut clients = clients.into_iter().collect::<Result<Vec<_>>>()?;
    answers(&node.channels()?.1).await?;
    let grown = node.resident()?.saturating_sub(before);
    // Nobody was sent away for the others.
    for client in &mut clients {
        let mut byte = [0];
        match tokio::time::timeout(Duration::ZERO, client.read(&mut byte)).await {
            Err(_) | Ok(Ok(1)) => {}
            Ok(ended) => bail!("an idle client was sent away: {ended:?}"),
        }
    }
    println!("door idle clients={} each_kib={:.1}", clients.len(), grown as f64 / IDLE as f64);
    Ok(())
}

/// What one good client feels: quiet, and under each attack.
async fn good_clients(node: &Node) -> Result<()> {
    let mut quiet = good_client(node).await?;
    let calm = [percentile(&mut quiet[0], 99), percentile(&mut quiet[1], 99)];
    println!("door good_quiet call_p99_us={:.0} connect_p99_us={:.0}", calm[0], calm[1]);
    for attack in attacks::ALL {
        let before = node.resident()?;
        let attacker = Daemon::of_ours(&[
            OsStr::new("attack"),
            attack.as_ref(),
            node.port.to_string().as_ref(),
            node.path("attacker").as_ref(),
        ])?;
        let mut felt = good_client(node).await.with_context(|| format!("under {attack}"))?;
        let most = node.resident()?;
        let told = attacker.end()?;
        let felt = [percentile(&mut felt[0], 99), percentile(&mut felt[1], 99)];
        println!(
            "door good_under_{attack} call_p99_us={:.0} connect_p99_us={:.0} call_times={:.2} connect_times={:.2} growth_kib={} {told}",
            felt[0],
            felt[1],
            felt[0] / calm[0],
            felt[1] / calm[1],
            most.saturating_sub(before),
        );
    }
    Ok(())
}

/// Microseconds of calls over an open connection, and of first calls over new ones.
async fn good_client(node: &Node) -> Result<[Vec<f64>; 2]> {
    let open = node.channels()?.1;
    answers(&open).await?;
    let until = Instant::now() + GOOD;
    let calling = async {
        let mut times = Vec::new();
        let mut client = MachineServiceClient::new(open);
        while Instant::now() < until {
            tokio::time::sleep(PACE).await;
            let began = Instant::now();
            client.memory(()).await?;
            times.push(micros(began));
        }
        Ok::<_, anyhow::Error>(times)
    };
    let connecting = async {
        let mut times = Vec::new();
        while Instant::now() < until {
            tokio::time::sleep(10 * PACE).await;
            let began = Instant::now();
            MachineServiceClient::new(node.channels()?.1).memory(()).await?;
            times.push(micros(began));
        }
        Ok::<_, anyhow::Error>(times)
    };
    let (called, connected) = tokio::try_join!(calling, connecting)?;
    Ok([called, connected])
}

/// A node: apid, routerd and a machine behind them, and the crowd that apid may ask.
struct Node {
    ca: Authority,
    port: u16,
    folder: tempfile::TempDir,
    /// apid first.
    daemons: Vec<Daemon>,
}

impl Node {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        let ca = Authority::generate("bench", KeyKind::Ed25519, HOUR, SystemTime::now())?;
        let own = issue(&ca, Usage::Server, "", Ipv4Addr::LOCALHOST)?;
        let client = issue(&ca, Usage::Client, "os:impersonator", Ipv4Addr::LOCALHOST)?;
        write(
            &path("apid"),
            &[
                ("ca.crt", &ca.pair().crt),
                ("tls.crt", &own.crt),
                ("tls.key", own.key.expose()),
                ("client.crt", &client.crt),
                ("client.key", client.key.expose()),
            ],
        )?;
        write(&path("crowd"), &[("ca.crt", &ca.pair().crt), ("ca.key", ca.pair().key.expose())])?;
        let admin = issue(&ca, Usage::Client, "os:admin", Ipv4Addr::LOCALHOST)?;
        let foreign = Authority::generate("bench", KeyKind::Ed25519, HOUR, SystemTime::now())?;
        let stranger = issue(&foreign, Usage::Client, "os:admin", Ipv4Addr::LOCALHOST)?;
        write(
            &path("attacker"),
            &[
                ("ca.crt", &ca.pair().crt),
                ("admin.crt", &admin.crt),
                ("admin.key", admin.key.expose()),
                ("stranger.crt", &stranger.crt),
                ("stranger.key", stranger.key.expose()),
            ],
        )?;
        let (machined, routerd, secrets) = (path("machine.sock"), path("r.sock"), path("apid"));
        let machine = Daemon::of_ours(&["machine".as_ref(), machined.as_ref()])?;
        let mut crowd = Daemon::of_ours(&["crowd".as_ref(), path("crowd").as_ref()])?;
        let target = crowd.says("port=")?;
        let mut router = Daemon::of_theirs(&[
            "routerd".as_ref(),
            "--socket".as_ref(),
            routerd.as_ref(),
            "--machined".as_ref(),
            machined.as_ref(),
        ])?;
        router.says("socket=")?;
        let mut apid = Daemon::of_theirs(&[
            "apid".as_ref(),
            "--listen".as_ref(),
            "127.0.0.1:0".as_ref(),
            "--target-port".as_ref(),
            target.as_ref(),
            "--secrets".as_ref(),
            secrets.as_ref(),
            "--routerd".as_ref(),
            routerd.as_ref(),
        ])?;
        let port = apid.says("address=127.0.0.1:")?.parse()?;
        Ok(Self { ca, port, folder, daemons: vec![apid, router, machine, crowd] })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn admin(&self) -> Result<Arc<ClientConfig>> {
        let admin = issue(&self.ca, Usage::Client, "os:admin", Ipv4Addr::LOCALHOST)?;
        let identity = Some((&*admin.crt, admin.key.expose()));
        Ok(orlop_pki::tls::client_config(&self.ca.pair().crt, identity)?)
    }

    /// Straight to the machine, and through the door.
    fn channels(&self) -> Result<(Channel, Channel)> {
        let door = tls::channel("127.0.0.1", self.port, self.admin()?);
        Ok((unix::channel(self.path("machine.sock")), door))
    }

    /// Microseconds of processor that apid, routerd and the machine have had.
    fn processor(&self) -> Result<[f64; 3]> {
        let mut spent = [0.0; 3];
        for (spent, daemon) in spent.iter_mut().zip(&self.daemons) {
            // proc(5): the first number is in nanoseconds. They have one thread that works.
            let path = format!("/proc/{}/schedstat", daemon.process.id());
            let text = fs::read_to_string(path)?;
            let nanoseconds: f64 = text.split(' ').next().unwrap_or_default().parse()?;
            *spent = nanoseconds / 1e3;
        }
        Ok(spent)
    }

    /// KiB of memory that apid has for itself: how much of its binary is resident changes by itself.
    fn resident(&self) -> Result<u64> {
        let [apid, ..] = &self.daemons[..] else { bail!("no apid") };
        let status = fs::read_to_string(format!("/proc/{}/status", apid.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        kib.context("apid has ended")
    }
}

fn machine(socket: &Path) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(MachineServer::serve(socket, CancellationToken::new()))?)
}

/// A process; killed with the measurement.
struct Daemon {
    process: Child,
    lines: std::io::Lines<BufReader<Box<dyn std::io::Read + Send>>>,
}

impl Daemon {
    /// This program in another role, which speaks on stdout.
    fn of_ours(args: &[&OsStr]) -> Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {args:?}"))?;
        let said = process.stdout.take().context("no stdout")?;
        let said: Box<dyn std::io::Read + Send> = Box::new(said);
        Ok(Self { process, lines: BufReader::new(said).lines() })
    }

    /// A daemon of the binary under test, which speaks on stderr.
    fn of_theirs(args: &[&OsStr]) -> Result<Self> {
        let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../out/orlop");
        let binary = env::var_os("ORLOP").unwrap_or_else(|| built.into());
        let mut process = Command::new(&binary)
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {} {args:?}", Path::new(&binary).display()))?;
        let said = process.stderr.take().context("no stderr")?;
        let said: Box<dyn std::io::Read + Send> = Box::new(said);
        Ok(Self { process, lines: BufReader::new(said).lines() })
    }

    /// What it says after `word`, on the line that has it. What it says later is thrown away.
    fn says(&mut self, word: &str) -> Result<String> {
        let said = loop {
            let line = self.lines.next().with_context(|| format!("nobody said {word}"))??;
            if let Some((_, said)) = line.split_once(word) {
                break said.trim().to_owned();
            }
        };
        let nothing: Box<dyn std::io::Read + Send> = Box::new(std::io::empty());
        let rest = std::mem::replace(&mut self.lines, BufReader::new(nothing).lines());
        // Ends with the daemon.
        std::thread::spawn(move || rest.for_each(drop));
        Ok(said)
    }

    /// Ends an attacker by closing its stdin; its last words.
    fn end(mut self) -> Result<String> {
        drop(self.process.stdin.take());
        self.lines.next().context("an attacker ended without a word")?.map_err(Into::into)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nobody to wait for either.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until somebody answers.
async fn answers(channel: &Channel) -> Result<()> {
    let began = Instant::now();
    loop {
        match MachineServiceClient::new(channel.clone()).memory(()).await {
            Ok(_) => return Ok(()),
            Err(status) if began.elapsed() > LIMIT => bail!("nobody answers: {status}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A connection to the door from `source`, whose client has spoken first and was answered.
async fn greeted(
    source: Ipv4Addr,
    port: u16,
    config: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>> {
    let stream = dial(source, port).await?;
    let connector = TlsConnector::from(Arc::clone(config));
    let mut stream = connector.connect("127.0.0.1".try_into()?, stream).await?;
    // The preface, and settings that have nothing to say (RFC 9113 §3.4).
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    stream.flush().await?;
    ensure!(stream.read(&mut [0; 256]).await? > 0, "the door is closed");
    Ok(stream)
}

async fn dial(source: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    Ok(socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?)
}

fn issue(ca: &Authority, usage: Usage, organization: &str, address: Ipv4Addr) -> Result<Pair> {
    let leaf = Leaf {
        common_name: "bench".to_owned(),
        organizations: vec![organization.to_owned()],
        usage,
        dns: Vec::new(),
        ips: vec![address.into()],
        lifetime: HOUR,
    };
    Ok(ca.issue(&leaf, SystemTime::now())?)
}

fn write(folder: &Path, files: &[(&str, &str)]) -> Result<()> {
    fs::create_dir(folder)?;
    for (name, text) in files {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// For us, and for the daemons that we start.
fn more_files() -> Result<()> {
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if now < OPEN_FILES {
        setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, most.max(OPEN_FILES))
            .with_context(|| format!("raise the limit of open files to {OPEN_FILES}"))?;
    }
    Ok(())
}

fn nth(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + number)
}

fn micros(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e6
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) * percent / 100).copied().unwrap_or(f64::NAN)
}
