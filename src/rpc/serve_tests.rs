//! Clients that mean harm, on connections in memory and in virtual time: when a test sleeps, everybody
//! else has come to rest, so what is counted is all there will ever be.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::*;
use crate::watch;

/// What the connections in memory hold.
const PIPE: usize = 64 << 10;
const HELLO: &[u8; PREFACE] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;

/// A server and what its calls have done.
struct Server {
    connect: mpsc::Sender<io::Result<DuplexStream>>,
    /// Calls that began.
    calls: Arc<AtomicUsize>,
    /// Calls that have not ended.
    open: Arc<AtomicUsize>,
    /// Bytes of endless answers that were asked for.
    sent: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Answers `/a.B/Flood` without end, `/a.B/Hang` never, and others with a status.
    fn start() -> Self {
        let [calls, open, sent] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let counts = [Arc::clone(&calls), Arc::clone(&open), Arc::clone(&sent)];
        let service = tower::service_fn(move |request: Request<Body>| {
            let [calls, open, sent] = counts.clone();
            async move {
                calls.fetch_add(1, Ordering::Relaxed);
                open.fetch_add(1, Ordering::Relaxed);
                let under_way = Open(open);
                match request.uri().path() {
                    "/a.B/Flood" => {
                        let frames = stream::repeat_with(move || {
                            let _ = &under_way;
                            sent.fetch_add(16_384, Ordering::Relaxed);
                            let bytes = Bytes::from_static(&[0; 16_384]);
                            Ok::<_, Status>(http_body::Frame::data(bytes))
                        });
                        Ok(Response::new(Body::new(StreamBody::new(frames))))
                    }
                    "/a.B/Hang" => pending().await,
                    _ => Err(Status::aborted("well")),
                }
            }
        });
        let (connect, mut connections) = mpsc::channel(8);
        let incoming = stream::poll_fn(move |context| connections.poll_recv(context));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(service, incoming, CancellationToken::new(), Duration::ZERO));
        Self { connect, calls, open, sent, _tasks: tasks }
    }

    async fn dial(&self) -> DuplexStream {
        let (client, server) = duplex(PIPE);
        self.connect.send(Ok(server)).await.unwrap();
        client
    }

    /// A connection that has said it speaks HTTP/2, and takes as much as can be said.
    async fn greedy(&self) -> DuplexStream {
        let mut client = self.dial().await;
        client.write_all(HELLO).await.unwrap();
        // SETTINGS_INITIAL_WINDOW_SIZE.
        let window = [0, 4, 0x7f, 0xff, 0xff, 0xff];
        client.write_all(&frame(SETTINGS, 0, 0, &window)).await.unwrap();
        let window = 0x7fff_0000_u32.to_be_bytes();
        client.write_all(&frame(WINDOW_UPDATE, 0, 0, &window)).await.unwrap();
        client
    }

    /// Asserts that a well-behaved client is answered.
    async fn is_well(&self) {
        let io = TokioIo::new(self.dial().await);
        let (mut client, driving) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async { driving.await.unwrap_or_default() });
        let request = Request::post("http://node/a.B/C").body(Body::empty()).unwrap();
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(Status::from_header_map(answer.headers()).unwrap().message(), "well");
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A call's headers (RFC 7541: indexed fields, and literals that are not).
fn call(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x01, 1, b'n', 0x04];
    block.push(u8::try_from(path.len()).unwrap());
    block.extend(path.bytes());
    block
}

/// Virtual seconds.
async fn seconds(count: u64) {
    sleep(Duration::from_secs(count)).await;
}

/// Whether the server has closed the connection; reads what is left of it.
async fn is_closed(client: &mut DuplexStream) -> bool {
    let mut rest = Vec::new();
    match timeout(Duration::from_secs(1), client.read_to_end(&mut rest)).await {
        Ok(Ok(_) | Err(_)) => true,
        Err(_) => false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_speaks_is_let_go() {
    let server = Server::start();
    for said in [&b""[..], b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"] {
        let mut client = server.dial().await;
        client.write_all(said).await.unwrap();
        seconds(PREFACE_LIMIT.as_secs() + 1).await;
        assert!(is_closed(&mut client).await, "{said:?}");
    }
    server.is_well().await;
}

#[tokio::test(start_paused = true)]
async fn headers_that_come_drop_by_drop_are_not_waited_for() {
    let server = Server::start();
    let mut client = server.greedy().await;
    client.write_all(&frame(HEADERS, 0, 1, &call("/a.B/C"))).await.unwrap();
    let began = tokio::time::Instant::now();
    while client.write_all(&frame(CONTINUATION, 0, 1, &[])).await.is_ok() {
        seconds(1).await;
        assert!(began.elapsed() < 2 * (PING_AFTER + PING_LIMIT), "it is still waited for");
    }
    assert_eq!(server.calls.load(Ordering::Relaxed), 0);
    server.is_well().await;
}

#[tokio::test(start_paused = true)]
async fn headers_without_end_are_cut_short() {
    let server = Server::start();
    let mut client = server.greedy().await;
    client.write_all(&frame(HEADERS, 0, 1, &call("/a.B/C"))).await.unwrap();
    // Literals that are not indexed: one byte of name, 120 of value.
    let mut block = Vec::new();
    for _ in 0..100 {
        block.extend([0x00, 1, b'x', 120]);
        block.extend([b'y'; 120]);
    }
    let continuation = frame(CONTINUATION, 0, 1, &block);
    let mut taken = 0;
    while taken < 64 << 20 && client.write_all(&continuation).await.is_ok() {
        taken += continuation.len();
    }
    assert!(taken < 4 * MAX_HEADERS as usize, "{taken}");
    assert_eq!(server.calls.load(Ordering::Relaxed), 0);
    server.is_well().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_costs_little_and_is_let_go() {
    let server = Server::start();
    let mut client = server.greedy().await;
    let calls: usize = 100;
    for number in 0..calls {
        let stream = 1 + 2 * u32::try_from(number).unwrap();
        let flags = END_HEADERS | END_STREAM;
        client.write_all(&frame(HEADERS, flags, stream, &call("/a.B/Flood"))).await.unwrap();
    }
    seconds(1).await;
    assert_eq!(server.calls.load(Ordering::Relaxed), calls);
    // What is in the pipe was sent; of the rest each call holds its buffer, and the frame that did not
    // fit any more.
    let most = PIPE + calls * (SEND_BUFFER + 16_384);
    let held = server.sent.load(Ordering::Relaxed);
    assert!(held <= most, "{held} of {most}");
    server.is_well().await;
    seconds((PING_AFTER + PING_LIMIT).as_secs() * 2).await;
    assert_eq!(server.open.load(Ordering::Relaxed), 0, "its calls are gone");
    assert!(is_closed(&mut client).await);
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_taken_back_at_once_leave_nothing() {
    let server = Server::start();
    let mut client = server.greedy().await;
    for number in 0..10_000 {
        let stream = 1 + 2 * number;
        let flags = END_HEADERS | END_STREAM;
        let mut both = frame(HEADERS, flags, stream, &call("/a.B/Hang"));
        both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        // The server may have had enough.
        if client.write_all(&both).await.is_err() {
            break;
        }
    }
    seconds(1).await;
    assert_eq!(server.open.load(Ordering::Relaxed), 0);
    server.is_well().await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_settings_stops_where_its_answers_are_not_read() {
    let server = Server::start();
    let mut client = server.greedy().await;
    let settings = frame(SETTINGS, 0, 0, &[]);
    let mut taken = 0;
    let flood = async {
        while client.write_all(&settings).await.is_ok() {
            taken += settings.len();
        }
    };
    // The server stands still, too: on a network, TCP gives up on such a peer (`tls`).
    let _ = timeout(3 * (PING_AFTER + PING_LIMIT), flood).await;
    assert!(taken <= 4 * PIPE, "{taken}");
    server.is_well().await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_settings_whose_answers_are_read_is_cut_off_and_pings_are_not() {
    const PING: u8 = 6;
    let server = Server::start();
    for (kind, payload, cut) in [(SETTINGS, &[][..], true), (PING, &[0; 8], false)] {
        let (mut reading, mut writing) = tokio::io::split(server.greedy().await);
        let read = async { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await };
        let write = async {
            for _ in 0..10 * watch::BURST {
                if writing.write_all(&frame(kind, 0, 0, payload)).await.is_err() {
                    pending::<()>().await;
                }
            }
            // Alive for as long as it is not cut.
            seconds(1).await;
        };
        let over = tokio::select! {
            _ = read => true,
            () = write => false,
        };
        assert_eq!(over, cut, "{kind}");
        server.is_well().await;
    }
}

#[tokio::test]
async fn a_connection_that_always_has_more_to_say_lets_others_have_their_turn() {
    let mut endless = Opened {
        io: tokio::io::repeat(0),
        preface: *HELLO,
        given: PREFACE,
        turn: 0,
        watch: Watch::new(),
    };
    let mut taken = [0; 3];
    for bytes in &mut taken {
        std::future::poll_fn(|context| {
            let mut buffer = [0; 4096];
            loop {
                let mut buffer = ReadBuf::new(&mut buffer);
                match Pin::new(&mut endless).poll_read(context, &mut buffer) {
                    Poll::Ready(read) => read.unwrap(),
                    // It has woken us, or this test would not go on.
                    Poll::Pending => return Poll::Ready(()),
                }
                *bytes += buffer.filled().len();
            }
        })
        .await;
    }
    assert_eq!(taken, [TURN; 3]);
}
