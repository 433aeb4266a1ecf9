//! Logs over the network: every line of every service as a message of JSON to each destination
//! ([`Logs::send_to`]), over TCP one after the other, over UDP one in a datagram.
//!
//! One task reads all rings and hands each line to the queue of each destination; a task per
//! destination empties its queue. A queue is bounded and loses its oldest first, so that a destination
//! that is slow or away costs neither a service nor another destination anything. Losses are counted,
//! also what a ring lost before it was read.
//!
//! Over TCP a message may come twice, when a connection broke in its midst; what was in flight then,
//! or in a datagram, may be lost without a count.

mod line;
mod link;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use orlop_rt::{CancellationToken, Chain};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::log::{Logs, Reader, lock};
pub(crate) use line::Lines;
use link::{Link, Message, Step};

/// Read of one ring before the next has its turn.
const BATCH: usize = 32 << 10;
/// Lines are gathered so long, so that a chatty service does not wake us for each, and a flood of it
/// takes a part of a processor only.
const GATHER: Duration = Duration::from_millis(20);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// For a batch; who takes longer has hung up without a word.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// Somebody who gets all lines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// How it is reached.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
    /// What the owner calls it: `tcp://10.0.0.9:5170`.
    pub name: String,
}

/// What carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// A connection, over which message follows message.
    Tcp,
    /// Datagrams of one message each.
    Udp,
}

/// How a destination does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// [`Endpoint::name`].
    pub name: String,
    /// Whether it was reached when last tried.
    pub up: bool,
    /// Of messages handed to the network.
    pub sent_bytes: u64,
    /// Of messages that were dropped, and of logs that were overrun before they were read.
    pub dropped_bytes: u64,
}

/// Who gets the lines now.
#[derive(Debug, Default)]
pub(crate) struct Destinations {
    wanted: watch::Sender<Vec<Endpoint>>,
    /// Those that are being sent to. Held for a look.
    current: Mutex<Vec<Arc<Destination>>>,
}

#[derive(Debug)]
struct Destination {
    endpoint: Endpoint,
    /// Held for a step, never over an await.
    link: Mutex<Link>,
    pushed: Notify,
}

impl Logs {
    /// From now on every line goes to these, and to nobody else. The first ones also get what the rings
    /// still hold.
    pub fn send_to(&self, mut endpoints: Vec<Endpoint>) {
        orlop_rt::sort(&mut endpoints);
        endpoints.dedup();
        self.destinations.wanted.send_if_modified(|wanted| {
            let other = *wanted != endpoints;
            *wanted = endpoints;
            other
        });
    }

    /// How those do that lines are sent to.
    #[must_use]
    pub fn sent_to(&self) -> Vec<Counts> {
        let of = |destination: &Arc<Destination>| {
            let link = lock(&destination.link);
            Counts {
                name: destination.endpoint.name.clone(),
                up: link.is_up(),
                sent_bytes: link.sent_bytes,
                dropped_bytes: link.dropped_bytes,
            }
        };
        lock(&self.destinations.current).iter().map(of).collect()
    }

    /// Sends lines to those [`Logs::send_to`] names, until `shutdown`; then those who take them get
    /// what is left, for `grace`.
    pub async fn forward(self, shutdown: CancellationToken, grace: Duration) {
        let mut wanted = self.destinations.wanted.subscribe();
        let mut written = self.written.subscribe();
        let mut sending = Sending { grace, ..Sending::default() };
        let mut sources = Sources::default();
        while !shutdown.is_cancelled() {
            sending.go_by(&wanted.borrow_and_update(), &self.destinations.current);
            if sending.runs.is_empty() {
                sources = Sources::default();
            } else {
                written.borrow_and_update();
                sources.gather(&self);
            }
            // All are cancel-safe; the senders are in `self`.
            tokio::select! {
                _ = wanted.changed() => {}
                () = more(&mut written, sources.more), if !sending.runs.is_empty() => {}
                () = shutdown.cancelled() => {}
            }
        }
        if !sending.runs.is_empty() {
            // More than any ring takes.
            for _ in 0..1024 {
                sources.gather(&self);
                if !sources.more {
                    break;
                }
            }
            sources.finish(&self);
        }
        sending.end().await;
    }
}

/// Waits for lines, and a little for further ones.
async fn more(written: &mut watch::Receiver<()>, at_once: bool) {
    if !at_once {
        // The sender is held by whoever waits here.
        let _ = written.changed().await;
    }
    sleep(GATHER).await;
}

/// A task for each destination.
#[derive(Debug, Default)]
struct Sending {
    grace: Duration,
    runs: BTreeMap<Endpoint, CancellationToken>,
    tasks: JoinSet<()>,
}

impl Sending {
    /// Starts what is missing, ends what is too much.
    fn go_by(&mut self, wanted: &[Endpoint], current: &Mutex<Vec<Arc<Destination>>>) {
        while self.tasks.try_join_next().is_some() {}
        self.runs.retain(|endpoint, end| {
            let stays = wanted.contains(endpoint);
            if !stays {
                end.cancel();
                tracing::info!(endpoint = endpoint.name, "logs are not sent there any more");
            }
            stays
        });
        let mut current = lock(current);
        current.retain(|destination| wanted.contains(&destination.endpoint));
        for endpoint in wanted {
            if self.runs.contains_key(endpoint) {
                continue;
            }
            let destination = Arc::new(Destination {
                endpoint: endpoint.clone(),
                link: Mutex::new(Link::new()),
                pushed: Notify::new(),
            });
            let (end, grace) = (CancellationToken::new(), self.grace);
            current.push(Arc::clone(&destination));
            self.runs.insert(endpoint.clone(), end.clone());
            self.tasks.spawn(async move { destination.run(end, grace).await });
        }
    }

    async fn end(mut self) {
        self.runs.values().for_each(CancellationToken::cancel);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The rings, as far as they were read.
#[derive(Debug, Default)]
struct Sources {
    all: BTreeMap<String, (Reader, Lines)>,
    /// Whether the last round left something.
    more: bool,
}

impl Sources {
    /// Hands some of what each ring has to all destinations.
    fn gather(&mut self, logs: &Logs) {
        let now = SystemTime::now();
        let destinations = lock(&logs.destinations.current);
        self.more = false;
        for id in logs.ids() {
            let Some(log) = logs.get(&id) else { continue };
            let new = || (log.read_all(), Lines::default());
            let (reader, lines) = self.all.entry(id.clone()).or_insert_with(new);
            let bytes = reader.available(BATCH);
            let lost = std::mem::take(&mut reader.lost);
            if lost > 0 {
                destinations.iter().for_each(|one| lock(&one.link).dropped_bytes += lost);
            }
            self.more |= bytes.len() == BATCH;
            lines.feed(&bytes, |line| push(&destinations, line::message(&id, line, now)));
        }
        destinations.iter().for_each(|one| one.pushed.notify_one());
    }

    /// Lines without an end get one.
    fn finish(&mut self, logs: &Logs) {
        let now = SystemTime::now();
        let destinations = lock(&logs.destinations.current);
        for (id, (_, lines)) in &mut self.all {
            lines.finish(|line| push(&destinations, line::message(id, line, now)));
        }
    }
}

fn push(destinations: &[Arc<Destination>], message: Vec<u8>) {
    let message: Message = message.into();
    destinations.iter().for_each(|one| lock(&one.link).push(Arc::clone(&message)));
}

impl Destination {
    /// Sends until `end`, then what is left, if that does not take longer than `grace`.
    async fn run(&self, end: CancellationToken, grace: Duration) {
        let late = async {
            end.cancelled().await;
            sleep(grace).await;
        };
        tokio::select! {
            () = self.send(&end) => {}
            () = late => tracing::debug!(endpoint = %self.endpoint, "takes the last lines too slowly"),
        }
    }

    async fn send(&self, end: &CancellationToken) {
        let mut stream = None;
        let mut trouble = Trouble::default();
        loop {
            // Its own statement: the lock is not held below.
            let step = lock(&self.link).step(Instant::now());
            let result = match (step, &mut stream) {
                (Step::Idle, _) if end.is_cancelled() => return,
                (Step::Idle, stream) => {
                    // All are cancel-safe.
                    tokio::select! {
                        () = self.pushed.notified() => continue,
                        () = end.cancelled() => continue,
                        error = hang_up(stream) => Err((error, VecDeque::new())),
                    }
                }
                (Step::Rest(_), _) if end.is_cancelled() => return,
                (Step::Rest(until), _) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(until.into()) => continue,
                        () = end.cancelled() => continue,
                    }
                }
                (Step::Connect, stream) => match connect(&self.endpoint).await {
                    Ok(new) => {
                        *stream = Some(new);
                        lock(&self.link).connected();
                        Ok(())
                    }
                    Err(error) => Err((error, VecDeque::new())),
                },
                (Step::Send(batch), Some(stream)) => {
                    self.send_batch(stream, batch).await.inspect(|()| trouble.over(&self.endpoint))
                }
                (Step::Send(batch), None) => Err((io::ErrorKind::NotConnected.into(), batch)),
            };
            if let Err((error, unsent)) = result {
                stream = None;
                lock(&self.link).failed(unsent, Instant::now(), crate::supervisor::random());
                trouble.begins(&self.endpoint, &error);
            }
        }
    }

    /// What was not sent comes back.
    async fn send_batch(
        &self,
        stream: &mut Stream,
        mut batch: VecDeque<Message>,
    ) -> Result<(), (io::Error, VecDeque<Message>)> {
        let bytes: usize = batch.iter().map(|message| message.len()).sum();
        let sent = match stream {
            Stream::Tcp(stream) => {
                let all: Vec<u8> =
                    batch.iter().flat_map(|message| message.iter().copied()).collect();
                in_time(SEND_LIMIT, stream.write_all(&all)).await
            }
            Stream::Udp(socket) => {
                let mut result = Ok(());
                while let (Some(message), Ok(())) = (batch.front(), &result) {
                    result = in_time(SEND_LIMIT, socket.send(message)).await.map(drop);
                    if result.is_ok() {
                        batch.pop_front();
                    }
                }
                result
            }
        };
        match sent {
            Ok(()) => {
                lock(&self.link).sent(bytes);
                Ok(())
            }
            Err(error) => {
                let left: usize = batch.iter().map(|message| message.len()).sum();
                if left < bytes {
                    lock(&self.link).sent(bytes - left);
                }
                Err((error, batch))
            }
        }
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

async fn connect(endpoint: &Endpoint) -> io::Result<Stream> {
    match endpoint.transport {
        Transport::Tcp => {
            let stream = in_time(CONNECT_LIMIT, TcpStream::connect(endpoint.address)).await?;
            Ok(Stream::Tcp(stream))
        }
        Transport::Udp => {
            let any: SocketAddr = match endpoint.address {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(endpoint.address).await?;
            Ok(Stream::Udp(socket))
        }
    }
}

/// Waits until the other end goes away; what it says is thrown away. For ever when there is none.
async fn hang_up(stream: &mut Option<Stream>) -> io::Error {
    let Some(Stream::Tcp(stream)) = stream else { return std::future::pending().await };
    loop {
        match stream.read(&mut [0; 256]).await {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Told once, until it is over.
#[derive(Debug, Default)]
struct Trouble(bool);

impl Trouble {
    fn begins(&mut self, endpoint: &Endpoint, error: &io::Error) {
        if !std::mem::replace(&mut self.0, true) {
            let error = Chain(error);
            tracing::warn!(%endpoint, %error, "logs do not get there; trying on");
        }
    }

    fn over(&mut self, endpoint: &Endpoint) {
        if std::mem::take(&mut self.0) {
            tracing::info!(%endpoint, "logs get there again");
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
