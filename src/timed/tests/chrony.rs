//! timed and a real chronyd, in a network namespace of the test's own: both say how far the clock is
//! from the same two servers, a chronyd that serves this machine's time, and one of ours that is 1000 s
//! ahead. The clock is left alone by all of them (`chronyd -x` and `-Q`, `timed --observe`).
//!
//! Needs root and chronyd (Debian's package `chrony`); skipped with a printed reason without.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use orlop_proto::health::health_client::HealthClient;
use orlop_proto::health::ready_check::ReadyStatus;
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

#[test]
fn timed_and_chronyd_find_the_same_offset_of_the_same_server() {
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
        tokio::time::timeout(LIMIT, compare(&chronyd)).await.expect("done in time");
    });
}

async fn compare(chronyd: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, AHEAD_PORT)).await.unwrap();
    let ahead = tokio::spawn(serve(socket));
    let _server = Daemon::serve(chronyd, folder.path());
    for (port, right) in [(CHRONY_PORT, 0.0), (AHEAD_PORT, AHEAD)] {
        let path = |name: &str| folder.path().join(format!("{port}-{name}"));
        std::fs::create_dir(path("state")).unwrap();
        std::fs::write(path("timed.yaml"), "servers: [127.0.0.1]\nbootTimeout: 1h\n").unwrap();
        let options = Options {
            socket: path("timed.sock"),
            config: path("timed.yaml"),
            state: path("state"),
            rtc: path("rtc0"),
            hosts: "/dev/null".into(),
            resolv_conf: "/dev/null".into(),
            port,
            observe: true,
            debug: false,
        };
        let shutdown = CancellationToken::new();
        let timed = tokio::spawn(run(options, shutdown.clone()));
        // Until both are up.
        let ours = loop {
            match check(&path("timed.sock")).await {
                Some(offset) => break offset,
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let theirs = ask_chronyd(chronyd, folder.path(), port).await;
        assert!((theirs - right).abs() < CLOSE, "chronyd says {theirs}");
        assert!((ours - theirs).abs() < CLOSE, "timed says {ours}, chronyd {theirs}");
        // The engine follows it: `bootTimeout` is far away.
        let mut health = HealthClient::new(unix::channel(path("timed.sock")));
        loop {
            let answer = health.ready(()).await.unwrap().into_inner();
            if answer.messages[0].status() == ReadyStatus::Ready {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut client = TimeServiceClient::new(unix::channel(path("timed.sock")));
        let message = client.time(()).await.unwrap().into_inner().messages.remove(0);
        assert_eq!(message.server, "127.0.0.1");
        assert!((offset(&message) - right).abs() < CLOSE, "{message:?}");
        shutdown.cancel();
        timed.await.unwrap().unwrap();
    }
    ahead.abort();
}

/// What `TimeCheck` says chronyd is ahead.
async fn check(socket: &Path) -> Option<f64> {
    let mut client = TimeServiceClient::new(unix::channel(socket));
    let request = TimeRequest { server: "127.0.0.1".to_owned() };
    let answer = client.time_check(request).await.ok()?.into_inner();
    Some(offset(answer.messages.first()?))
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

/// A chronyd that ends with the test.
struct Daemon(Child);

impl Daemon {
    /// Serves this machine's time; `-x`: without touching it.
    fn serve(chronyd: &Path, folder: &Path) -> Self {
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
        std::fs::write(&config, lines.join("\n") + "\n").unwrap();
        let process = Command::new(chronyd)
            .args(["-x", "-d", "-u", "root", "-f"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(process)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `chronyd -Q` would add to the clock.
async fn ask_chronyd(chronyd: &Path, folder: &Path, port: u16) -> f64 {
    let config = folder.join("client.conf");
    let text = format!(
        "server 127.0.0.1 port {port} iburst maxsamples 1\ncmdport 0\nbindcmdaddress /\npidfile {}\n",
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
