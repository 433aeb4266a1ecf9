//! timed and real servers, chronyd and ntpsec's ntpd, in a network namespace of the test's own: both say how far the clock is
//! from the same two servers, a chronyd that serves this machine's time, and one of ours that is 1000 s
//! ahead. The clock is left alone by all of them (`chronyd -x` and `-Q`, `timed --observe`).
//!
//! Needs root and chronyd (Debian's package `chrony`); skipped with a printed reason without.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use orlop_pki::{Authority, KeyKind, Leaf, Usage};
use orlop_proto::health::health_client::HealthClient;
use orlop_proto::health::ready_check::ReadyStatus;
use orlop_proto::orlop::v1alpha1::clock_service_client::ClockServiceClient;
use orlop_proto::orlop::v1alpha1::time_source::State;
use orlop_proto::time::time_service_client::TimeServiceClient;
use orlop_proto::time::{Time, TimeRequest};
use orlop_rpc::unix;
use orlop_rt::CancellationToken;
use orlop_timed::wire::{Header, Mode, Packet, Short, Timestamp};
use orlop_timed::{Options, run};
use tokio::net::UdpSocket;

/// What our server is ahead, in seconds.
const AHEAD: f64 = 1000.0;
/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
/// Readings on a busy machine are that far apart, in seconds, at most.
const CLOSE: f64 = 1.0;
const AHEAD_PORT: u16 = 11123;
const CHRONY_PORT: u16 = 11124;
const NTS_PORT: u16 = 11125;

#[test]
fn timed_and_chronyd_find_the_same_offset_of_the_same_server() {
    in_namespace(async |chronyd| compare(chronyd).await);
}

#[test]
fn timed_follows_a_chronyd_that_proves_its_answers() {
    in_namespace(async |chronyd| follow_with_proof(chronyd).await);
}

#[test]
fn timed_and_chronyd_find_the_same_offset_of_an_ntpsec() {
    let named = std::env::var_os("ORLOP_NTPD").map(PathBuf::from);
    let found = named.into_iter().chain(["/usr/sbin/ntpd".into()]).find(|path| path.is_file());
    let Some(ntpd) = found else { return println!("skipped: ntpd of ntpsec is not installed") };
    in_namespace(async |chronyd| compare_by_ntpsec(&ntpd, chronyd).await);
}

/// Runs `test` in a network of its own, which is that of this thread and those it starts.
fn in_namespace(test: impl AsyncFnOnce(&Path)) {
    let Some(chronyd) = chronyd() else { return println!("skipped: chronyd is not installed") };
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: network namespaces need root");
    }
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        return println!("skipped: no network namespace: {error}");
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|status| status.success()) || if_nametoindex("lo").is_err() {
        return println!("skipped: no loopback, or no `ip` to bring it up");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, test(&chronyd)).await.expect("done in time");
    });
}

async fn compare(chronyd: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, AHEAD_PORT)).await.unwrap();
    let ahead = tokio::spawn(serve(socket));
    let _server = Daemon::serve(chronyd, folder.path(), &[]);
    for (port, right) in [(CHRONY_PORT, 0.0), (AHEAD_PORT, AHEAD)] {
        let path = |name: &str| folder.path().join(format!("{port}-{name}"));
        let config = "servers: [127.0.0.1]\nbootTimeout: 1h\n";
        let (options, shutdown) = (options(path, config, port), CancellationToken::new());
        let timed = tokio::spawn(run(options, shutdown.clone()));
        // Until both are up.
        let ours = offset_by(&path("timed.sock"), "127.0.0.1").await;
        let theirs = ask_chronyd(chronyd, folder.path(), &format!("port {port}"), "").await;
        assert!((theirs - right).abs() < CLOSE, "chronyd says {theirs}");
        assert!((ours - theirs).abs() < CLOSE, "timed says {ours}, chronyd {theirs}");
        is_ready(&path("timed.sock")).await;
        let mut client = TimeServiceClient::new(unix::channel(path("timed.sock")));
        let message = client.time(()).await.unwrap().into_inner().messages.remove(0);
        assert_eq!(message.server, "127.0.0.1");
        assert!((offset(&message) - right).abs() < CLOSE, "{message:?}");
        shutdown.cancel();
        timed.await.unwrap().unwrap();
    }
    ahead.abort();
}

async fn compare_by_ntpsec(ntpd: &Path, chronyd: &Path) {
    /// It knows no other.
    const PORT: u16 = 123;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // It serves this machine's time, and touches neither clock nor kernel.
    let config = "disable ntp kernel\ntos orphan 5 orphanwait 1\nrestrict default\n";
    std::fs::write(path("ntp.conf"), config).unwrap();
    let mut command = Command::new(ntpd);
    command.args(["-n", "-c"]).arg(path("ntp.conf")).arg("-p").arg(path("ntpd.pid"));
    let _server = Daemon::start(command);
    let (options, shutdown) =
        (options(path, "servers: [127.0.0.1]\nbootTimeout: 1h\n", PORT), CancellationToken::new());
    let timed = tokio::spawn(run(options, shutdown.clone()));
    let ours = offset_by(&path("timed.sock"), "127.0.0.1").await;
    let theirs = ask_chronyd(chronyd, folder.path(), &format!("port {PORT}"), "").await;
    assert!(ours.abs() < CLOSE && theirs.abs() < CLOSE, "timed says {ours}, chronyd {theirs}");
    is_ready(&path("timed.sock")).await;
    // Whom it follows, and how well.
    let mut client = ClockServiceClient::new(unix::channel(path("timed.sock")));
    let clock = client.clock(()).await.unwrap().into_inner().messages.remove(0);
    assert!(clock.synchronized && clock.stratum == 6, "{clock:?}");
    let source = &clock.sources[0];
    assert_eq!((source.server.as_str(), source.address.as_str()), ("127.0.0.1", "127.0.0.1"));
    assert_eq!((source.state(), source.stratum, source.reach & 1), (State::Followed, 5, 1));
    assert!(source.offset_seconds.is_some_and(|offset| offset.abs() < CLOSE), "{source:?}");
    shutdown.cancel();
    timed.await.unwrap().unwrap();
}

async fn follow_with_proof(chronyd: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
    let authority = Authority::generate("time", KeyKind::P256, day * 10, now).unwrap();
    let leaf = Leaf {
        common_name: "time".to_owned(),
        organizations: Vec::new(),
        usage: Usage::Server,
        dns: Vec::new(),
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        lifetime: day,
    };
    let pair = authority.issue(&leaf, now).unwrap();
    let ca = &authority.pair().crt;
    for (name, text) in [("crt", &*pair.crt), ("key", pair.key.expose()), ("ca", ca)] {
        std::fs::write(path(name), text).unwrap();
    }
    let nts = [
        format!("ntsservercert {}", path("crt").display()),
        format!("ntsserverkey {}", path("key").display()),
        format!("ntsport {NTS_PORT}"),
        "ntsprocesses 0".to_owned(),
    ];
    let _server = Daemon::serve(chronyd, folder.path(), &nts);

    let server = format!("nts://127.0.0.1:{NTS_PORT}");
    let ca = base64(ca);
    let config = format!("servers: ['{server}']\nntsCA: {ca}\nbootTimeout: 1h\n");
    // Nobody is there: chronyd says during the exchange where it listens.
    let (options, shutdown) = (options(path, &config, 1), CancellationToken::new());
    let timed = tokio::spawn(run(options, shutdown.clone()));
    let ours = offset_by(&path("timed.sock"), &server).await;
    is_ready(&path("timed.sock")).await;
    let trust = format!("ntstrustedcerts {}\n", path("ca").display());
    let asked = format!("nts ntsport {NTS_PORT}");
    let theirs = ask_chronyd(chronyd, folder.path(), &asked, &trust).await;
    assert!(ours.abs() < CLOSE && theirs.abs() < CLOSE, "timed says {ours}, chronyd {theirs}");
    // The same server without its proof is another server, and nobody is there.
    let mut client = TimeServiceClient::new(unix::channel(path("timed.sock")));
    let plain = TimeRequest { server: "127.0.0.1".to_owned() };
    assert!(client.time_check(plain).await.is_err());
    shutdown.cancel();
    timed.await.unwrap().unwrap();
}

/// A timed that leaves the clock alone, with its files where `path` says.
fn options(path: impl Fn(&str) -> PathBuf, config: &str, port: u16) -> Options {
    std::fs::create_dir(path("state")).unwrap();
    std::fs::write(path("timed.yaml"), config).unwrap();
    Options {
        socket: path("timed.sock"),
        config: path("timed.yaml"),
        given: path("given"),
        roots: path("roots"),
        state: path("state"),
        rtc: path("rtc0"),
        hosts: "/dev/null".into(),
        resolv_conf: "/dev/null".into(),
        port,
        observe: true,
        debug: false,
    }
}

/// What `TimeCheck` says `server` is ahead, as soon as both are up.
async fn offset_by(socket: &Path, server: &str) -> f64 {
    loop {
        if let Some(offset) = check(socket, server).await {
            return offset;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn check(socket: &Path, server: &str) -> Option<f64> {
    let mut client = TimeServiceClient::new(unix::channel(socket));
    let request = TimeRequest { server: server.to_owned() };
    let answer = client.time_check(request).await.ok()?.into_inner();
    Some(offset(answer.messages.first()?))
}

/// Returns when the engine follows a server: `bootTimeout` is far away.
async fn is_ready(socket: &Path) {
    let mut health = HealthClient::new(unix::channel(socket));
    loop {
        let answer = health.ready(()).await.unwrap().into_inner();
        if answer.messages[0].status() == ReadyStatus::Ready {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn offset(time: &Time) -> f64 {
    let seconds = |time: &Option<prost_types::Timestamp>| {
        let time = time.as_ref().unwrap();
        Timestamp::of(SystemTime::try_from(*time).unwrap())
    };
    seconds(&time.remotetime).since(seconds(&time.localtime))
}

/// A stratum 1 whose clock is ahead.
async fn serve(socket: UdpSocket) {
    let mut buffer = [0; 512];
    loop {
        let (length, from): (usize, SocketAddr) = socket.recv_from(&mut buffer).await.unwrap();
        let Ok(question) = Packet::decode(&buffer[..length]) else { continue };
        let now = Timestamp::of(SystemTime::now() + Duration::from_secs_f64(AHEAD));
        let answer = Header {
            mode: Mode::Server,
            stratum: 1,
            precision: -20,
            root_dispersion: Short(1),
            reference: *b"TEST",
            reference_time: now,
            origin: question.header.transmit,
            receive: now,
            transmit: now,
            ..Header::question(Timestamp(0))
        };
        socket.send_to(&answer.encode(), from).await.unwrap();
    }
}

/// As a machine configuration has certificates.
fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// A server that ends with the test.
struct Daemon(Child);

impl Daemon {
    /// Serves this machine's time; `-x`: without touching it.
    fn serve(chronyd: &Path, folder: &Path, more: &[String]) -> Self {
        let config = folder.join("server.conf");
        let lines = [
            "local stratum 5".to_owned(),
            "allow 127.0.0.1".to_owned(),
            "bindaddress 127.0.0.1".to_owned(),
            format!("port {CHRONY_PORT}"),
            "cmdport 0".to_owned(),
            "bindcmdaddress /".to_owned(),
            format!("pidfile {}", folder.join("server.pid").display()),
        ];
        let lines = [&lines[..], more].concat();
        std::fs::write(&config, lines.join("\n") + "\n").unwrap();
        let mut command = Command::new(chronyd);
        command.args(["-x", "-d", "-u", "root", "-f"]).arg(config);
        Self::start(command)
    }

    fn start(mut command: Command) -> Self {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(quiet.spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `chronyd -Q` would add to the clock, by 127.0.0.1 with these options.
async fn ask_chronyd(chronyd: &Path, folder: &Path, how: &str, more: &str) -> f64 {
    let config = folder.join("client.conf");
    let text = format!(
        "server 127.0.0.1 {how} iburst maxsamples 1\n{more}cmdport 0\nbindcmdaddress /\npidfile {}\n",
        folder.join("client.pid").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(chronyd);
    command.args(["-Q", "-u", "root", "-t", "60", "-f"]).arg(config);
    // The namespace is of this thread: the child is started by it, another waits for it.
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap();
    let output =
        tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let after = said.split("System clock wrong by ").nth(1);
    let word = after.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("chronyd -Q: {said}"))
}

/// In `PATH`, or where Debian puts it; `ORLOP_CHRONYD` names another.
fn chronyd() -> Option<PathBuf> {
    let named = std::env::var_os("ORLOP_CHRONYD").map(PathBuf::from);
    named.into_iter().chain(["/usr/sbin/chronyd".into()]).find(|path| path.is_file())
}
