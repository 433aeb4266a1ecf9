//! Lines of services, over real sockets, to destinations that come, go, and stop reading.

#![expect(clippy::unwrap_used, reason = "a test's failure is its panic")]

use std::net::SocketAddr;
use std::time::Duration;

use orlop_rt::CancellationToken;
use orlop_supervise::Logs;
use orlop_supervise::forward::{Counts, Endpoint, Transport};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(60);

/// Logs that are being sent, and what ends that.
struct Sent {
    logs: Logs,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Sent {
    fn to(endpoints: Vec<Endpoint>) -> Self {
        let (logs, shutdown) = (Logs::default(), CancellationToken::new());
        logs.send_to(endpoints);
        let mut tasks = JoinSet::new();
        tasks.spawn(logs.clone().forward(shutdown.clone(), LIMIT));
        Self { logs, shutdown, tasks }
    }

    fn write(&self, service: &str, text: &str) {
        self.logs.register(service).write(text.as_bytes());
    }

    fn counts(&self) -> Counts {
        self.logs.sent_to().pop().unwrap()
    }

    async fn end(mut self) {
        self.shutdown.cancel();
        in_time(self.tasks.join_next()).await.unwrap().unwrap();
    }
}

fn tcp(address: SocketAddr) -> Endpoint {
    Endpoint { transport: Transport::Tcp, address, name: format!("tcp://{address}") }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.unwrap()
}

async fn accept(listener: &TcpListener) -> Lines<BufReader<TcpStream>> {
    BufReader::new(in_time(listener.accept()).await.unwrap().0).lines()
}

/// Service and text of the next message.
async fn next(lines: &mut Lines<BufReader<TcpStream>>) -> (String, String) {
    let line = in_time(lines.next_line()).await.unwrap().unwrap();
    parts(line.as_bytes())
}

fn parts(message: &[u8]) -> (String, String) {
    let object: serde_json::Value = serde_json::from_slice(message).unwrap();
    let member = |name: &str| object[name].as_str().unwrap().to_owned();
    assert_eq!(object.as_object().unwrap().len(), 4, "{object}");
    (member("talos-service"), member("msg"))
}

#[tokio::test]
async fn every_line_of_every_service_arrives_and_the_last_one_as_well() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let udp = Endpoint { transport: Transport::Udp, address, name: format!("udp://{address}") };
    let sent = Sent::to(vec![udp, tcp(listener.local_addr().unwrap())]);
    sent.write("apid", "one\ntwo\n");
    let mut lines = accept(&listener).await;
    for text in ["one", "two"] {
        assert_eq!(next(&mut lines).await, ("apid".to_owned(), text.to_owned()));
    }
    sent.write("udevd", "three\n");
    assert_eq!(next(&mut lines).await, ("udevd".to_owned(), "three".to_owned()));
    // Written and over at once: nobody had time to look.
    sent.write("apid", "bye\nwithout an end");
    sent.end().await;
    for text in ["bye", "without an end"] {
        assert_eq!(next(&mut lines).await.1, text);
    }
    assert!(in_time(lines.next_line()).await.unwrap().is_none());
    let mut buffer = [0; 1000];
    for text in ["one", "two", "three", "bye", "without an end"] {
        let count = in_time(socket.recv(&mut buffer)).await.unwrap();
        assert!(buffer[..count].ends_with(b"\n"));
        assert_eq!(parts(&buffer[..count]).1, text);
    }
}

#[tokio::test]
async fn a_destination_that_hangs_up_gets_the_rest_over_another_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sent = Sent::to(vec![tcp(listener.local_addr().unwrap())]);
    sent.write("x", "first\n");
    let mut lines = accept(&listener).await;
    assert_eq!(next(&mut lines).await.1, "first");
    drop(lines);
    // It is noticed without anything being sent.
    in_time(async {
        while sent.counts().up {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    sent.write("x", "second\n");
    let mut lines = accept(&listener).await;
    assert_eq!(next(&mut lines).await.1, "second");
    let Counts { dropped_bytes, sent_bytes, .. } = sent.counts();
    assert!(dropped_bytes == 0 && sent_bytes > 100, "{sent_bytes}");
    sent.end().await;
}

#[tokio::test]
async fn one_that_does_not_read_holds_up_nobody_and_costs_what_it_misses() {
    const LINES: usize = 300_000;
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (deaf_at, good_at) = (deaf.local_addr().unwrap(), good.local_addr().unwrap());
    let sent = Sent::to(vec![tcp(deaf_at), tcp(good_at)]);
    sent.write("x", "hello\n");
    let held = accept(&deaf).await;
    let mut lines = accept(&good).await;
    assert_eq!(next(&mut lines).await.1, "hello");
    // Written without a wait: no destination is asked.
    let log = sent.logs.register("flood");
    (0..LINES).for_each(|i| log.write(format!("a line of the flood {i}\n").as_bytes()));
    sent.write("x", "after\n");
    while next(&mut lines).await != ("x".to_owned(), "after".to_owned()) {}
    // The ring could not hold all of it, for either.
    let counts = sent.logs.sent_to();
    assert!(counts.iter().all(|one| one.dropped_bytes > 1_000_000), "{counts:?}");
    drop(held);
    sent.end().await;
}

#[tokio::test]
async fn destinations_change_while_lines_come() {
    let (one, two) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let sent = Sent::to(Vec::new());
    sent.write("x", "before anybody listens\n");
    sent.logs.send_to(vec![tcp(one.local_addr().unwrap())]);
    let mut lines = accept(&one).await;
    assert_eq!(next(&mut lines).await.1, "before anybody listens");
    sent.logs.send_to(vec![tcp(two.local_addr().unwrap())]);
    // The old one hears the end of it.
    assert!(in_time(lines.next_line()).await.unwrap().is_none());
    sent.write("x", "for the new one\n");
    let mut lines = accept(&two).await;
    assert_eq!(next(&mut lines).await.1, "for the new one");
    sent.logs.send_to(Vec::new());
    assert!(in_time(lines.next_line()).await.unwrap().is_none());
    assert_eq!(sent.logs.sent_to(), []);
    sent.end().await;
}
