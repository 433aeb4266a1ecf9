//! A client that follows the events a thousand times and reads nothing, over a real socket. Alone in its
//! process, because the process's memory is what is looked at.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;

use orlop_machined::figures::EventServer;
use orlop_rt::CancellationToken;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const STREAMS: u32 = 1000;
/// What PID 1 may occupy in all is 16 MiB.
const LIMIT: usize = 10 << 20;

#[tokio::test]
async fn a_thousand_streams_that_nobody_reads_cost_little() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("machine.sock");
    let server = EventServer::new();
    let shutdown = CancellationToken::new();
    // All that is kept is asked for, and comes to 150 kB for each stream.
    (0..1000).for_each(|i| server.publish(&format!("{i}: {}", "x".repeat(80))));
    let asking = async {
        while !socket.exists() {
            tokio::task::yield_now().await;
        }
        let mut client = UnixStream::connect(&socket).await.unwrap();
        let before = resident();
        // The calls go out as fast as the server takes them; what it says is left in the socket.
        client.write_all(&preface()).await.unwrap();
        let mut asked = 0;
        for call in 0..STREAMS {
            client.write_all(&follow(2 * call + 1)).await.unwrap();
            asked += 1;
        }
        assert_eq!(asked, STREAMS);
        while server.readers() < STREAMS as usize {
            tokio::task::yield_now().await;
        }
        (0..2000).for_each(|i| server.publish(&format!("{i}: {}", "x".repeat(80))));
        // Every stream has had its turn several times.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        let grown = resident().saturating_sub(before);
        println!("{} KiB for {STREAMS} streams", grown >> 10);
        assert!(grown < LIMIT, "{grown} bytes");
        // It is alive: what is waiting can still be read.
        let mut bytes = vec![0; 4096];
        assert!(client.read(&mut bytes).await.unwrap() > 0);
        drop(client);
        while server.readers() > 0 {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
    };
    let (served, ()) = tokio::join!(server.serve(&socket, shutdown.clone()), asking);
    served.unwrap();
}

fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() << 10
}

/// RFC 9113 §3.4; with a window for each stream (SETTINGS_INITIAL_WINDOW_SIZE) as large as can be.
fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, 4, 0, 0, &[&[0, 4][..], &i32::MAX.to_be_bytes()].concat());
    bytes
}

/// A call of Events that asks for all that is kept (`tail_events` = -1).
fn follow(stream: u32) -> Vec<u8> {
    let mut headers = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/machine.MachineService/Events"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        // RFC 7541 §6.2.2: a literal without indexing, with a new name.
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).unwrap());
            headers.extend(text.as_bytes());
        }
    }
    let message = [&[0x08][..], &[0xff; 9], &[0x01]].concat();
    let length = u32::try_from(message.len()).unwrap();
    let request = [&[0][..], &length.to_be_bytes(), &message].concat();
    let mut bytes = Vec::new();
    frame(&mut bytes, 1, 0x4, stream, &headers);
    frame(&mut bytes, 0, 0x1, stream, &request);
    bytes
}

/// RFC 9113 §4.1.
fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    bytes.extend(&length[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
}
