//! How long a change of a service's state takes to reach a thousand who follow the events: over real
//! unix sockets, all over one connection (as routerd has it) and each over their own.
//!
//! The server has a thread and a runtime like machined's, the readers another. Prints a line for each:
//! `events NAME p50_ms=… p99_ms=… max_ms=…`; benches/figures.rs reads them.

#![forbid(unsafe_code)]

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use orlop_machined::figures::EventServer;
use orlop_proto::machine::machine_service_client::MachineServiceClient;
use orlop_proto::machine::{Event, EventsRequest, ServiceStateEvent};
use orlop_rt::CancellationToken;
use prost::Message as _;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Streaming;

const READERS: usize = 1000;
const ROUNDS: usize = 100;

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("machine.sock");
    let (server, shutdown) = (EventServer::new(), CancellationToken::new());
    let serving = {
        let (server, socket, shutdown) = (server.clone(), socket.clone(), shutdown.clone());
        thread::spawn(move || -> Result<()> {
            Ok(runtime()?.block_on(server.serve(&socket, shutdown))?)
        })
    };
    runtime()?.block_on(async {
        while !socket.exists() {
            ensure!(!serving.is_finished(), "the server does not serve");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        report("one_connection", measure(&server, &socket, 1).await?);
        report("own_connections", measure(&server, &socket, READERS).await?);
        Ok(())
    })?;
    shutdown.cancel();
    serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("make a runtime")
}

/// The time each event took to each reader, sorted.
async fn measure(server: &EventServer, socket: &Path, connections: usize) -> Result<Vec<Duration>> {
    let zero = Instant::now();
    let (arrived, mut arrivals) = mpsc::channel(READERS);
    let mut readers = JoinSet::new();
    let channels: Vec<_> = (0..connections).map(|_| orlop_rpc::unix::channel(socket)).collect();
    for reader in 0..READERS {
        let mut client = MachineServiceClient::new(channels[reader % connections].clone());
        let stream = client.events(EventsRequest::default()).await?.into_inner();
        readers.spawn(follow(stream, zero, arrived.clone()));
    }
    let mut took = Vec::with_capacity(READERS * ROUNDS);
    for _ in 0..ROUNDS {
        server.publish(&zero.elapsed().as_nanos().to_string());
        for _ in 0..READERS {
            took.push(arrivals.recv().await.context("a reader ended")?);
        }
    }
    readers.shutdown().await;
    while server.readers() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    took.sort_unstable();
    Ok(took)
}

async fn follow(
    mut stream: Streaming<Event>,
    zero: Instant,
    arrived: mpsc::Sender<Duration>,
) -> Result<()> {
    while let Some(event) = stream.message().await? {
        let now = zero.elapsed();
        let data = event.data.context("an event without data")?;
        let change = ServiceStateEvent::decode(&data.value[..])?;
        let sent = Duration::from_nanos(change.message.parse()?);
        arrived.send(now.saturating_sub(sent)).await?;
    }
    Ok(())
}

fn report(name: &str, took: Vec<Duration>) {
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!("events {name} p50_ms={:.2} p99_ms={:.2} max_ms={:.2}", at(50), at(99), at(100));
}
