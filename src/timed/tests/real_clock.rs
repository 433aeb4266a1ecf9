//! timed and the clock of a real kernel, which it sets and steers. No test touches the clock of the
//! machine it runs on, so this one runs in a guest alone (`tests/qemu/in_guest.rs`), where minutes
//! without work pass at once. The server is in the test itself, and goes by the time since the boot.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser as _;
use orlop_proto::health::health_client::HealthClient;
use orlop_proto::health::ready_check::ReadyStatus;
use orlop_rpc::unix;
use orlop_rt::CancellationToken;
use orlop_timed::wire::{Header, Mode, Packet, Short, Timestamp};
use orlop_timed::{Error, Options, run};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const PORT: u16 = 11125;
/// What the server shows at the boot, in seconds since 1970: 2026-11-21.
const AT_BOOT: u64 = 1_795_219_200;
/// What is added to the clock at first: it is days late.
const LATE_NANOS: i64 = -200_000_000_000_000;
/// The clock may be off by this before it is set, in seconds.
const OFF: f64 = 0.128;
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn the_clock_is_set_at_the_start_and_when_it_is_far_off_for_long() {
    if std::env::var_os("ORLOP_MAY_SET_THE_CLOCK").is_none() {
        return println!("skipped: the clock of this machine is left alone; a guest's is set");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let ahead = Arc::new(AtomicU64::new(AT_BOOT));
        let socket = UdpSocket::bind(("127.0.0.1", PORT)).await.unwrap();
        let server = tokio::spawn(serve(socket, Arc::clone(&ahead)));
        orlop_sys::step_clock(LATE_NANOS).unwrap();

        let (node, shutdown) = start(folder.path());
        ready(folder.path()).await;
        assert!(off(&ahead).abs() < OFF, "off by {}", off(&ahead));
        // Set along, in whole seconds.
        let rtc = std::fs::read_to_string("/sys/class/rtc/rtc0/since_epoch").unwrap();
        let rtc = Duration::from_secs(rtc.trim().parse().unwrap());
        assert!(rtc.abs_diff(since_1970(SystemTime::now())) < Duration::from_secs(3), "{rtc:?}");

        // What the oscillator needs is written down each hour, once it is known well.
        let mut waited = 0;
        while !folder.path().join("drift").exists() {
            assert!(waited < 24 * 60, "the oscillator is not known after a day");
            sleep(MINUTE).await;
            waited += 1;
        }
        println!("the oscillator is known after {waited} minutes");
        assert!(off(&ahead).abs() < OFF, "off by {}", off(&ahead));
        shutdown.cancel();
        node.await.unwrap().unwrap();
        // That is also what stays in the kernel.
        let drift = std::fs::read_to_string(folder.path().join("drift")).unwrap();
        let drift: f64 = drift.trim().parse().unwrap();
        let rate = orlop_sys::clock_frequency().unwrap();
        // An answer may have come since it was written, and a guest's oscillator wanders.
        assert!((drift - rate).abs() < 100.0, "{drift} is kept, {rate} stays");

        // The next one begins with it, and finds the clock right.
        orlop_sys::set_clock_frequency(400.0).unwrap();
        let (node, shutdown) = start(folder.path());
        ready(folder.path()).await;
        let rate = orlop_sys::clock_frequency().unwrap();
        assert!((drift - rate).abs() < 100.0, "{drift} was kept, {rate} is used");
        assert!(off(&ahead).abs() < OFF, "off by {}", off(&ahead));

        // The server jumps.
        ahead.fetch_add(10, Ordering::Relaxed);
        sleep(4 * MINUTE).await;
        assert!((9.0..11.0).contains(&-off(&ahead)), "off by {}", off(&ahead));
        // Questions are up to 2048 s apart, and it has to be off in several answers.
        let mut waited = 4;
        while off(&ahead).abs() > OFF {
            assert!(waited < 360, "still off by {}", off(&ahead));
            sleep(MINUTE).await;
            waited += 1;
        }
        println!("set again after {waited} minutes");
        shutdown.cancel();
        node.await.unwrap().unwrap();
        server.abort();
    });
}

fn start(folder: &Path) -> (JoinHandle<Result<(), Error>>, CancellationToken) {
    std::fs::write(folder.join("timed.yaml"), "servers: [127.0.0.1]\nbootTimeout: 1h\n").unwrap();
    let at = |name: &str| folder.join(name).display().to_string();
    let arguments = [
        ["timed", "--socket"].map(str::to_owned).to_vec(),
        vec![at("timed.sock"), "--config".to_owned(), at("timed.yaml"), "--state".to_owned()],
        vec![folder.display().to_string(), "--port".to_owned(), PORT.to_string()],
    ];
    let options = Options::parse_from(arguments.concat());
    orlop_telemetry::to_stderr(false);
    let shutdown = CancellationToken::new();
    (tokio::spawn(run(options, shutdown.clone())), shutdown)
}

/// Waits until timed says that the clock is right.
async fn ready(folder: &Path) {
    let mut health = HealthClient::new(unix::channel(folder.join("timed.sock")));
    for _ in 0..600 {
        // It may not listen yet.
        if let Ok(answer) = health.ready(()).await
            && answer.into_inner().messages[0].status() == ReadyStatus::Ready
        {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("the clock is not right");
}

/// A stratum 1 that shows so many seconds more than have passed since the boot.
async fn serve(socket: UdpSocket, ahead: Arc<AtomicU64>) {
    let mut buffer = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let Ok(question) = Packet::decode(&buffer[..length]) else { continue };
        let now = Timestamp::of(right(&ahead));
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

fn right(ahead: &AtomicU64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(ahead.load(Ordering::Relaxed)) + orlop_sys::since_boot()
}

/// How far the clock is ahead of the server's, in seconds.
fn off(ahead: &AtomicU64) -> f64 {
    let (ours, theirs) = (since_1970(SystemTime::now()), since_1970(right(ahead)));
    ours.as_secs_f64() - theirs.as_secs_f64()
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap()
}
