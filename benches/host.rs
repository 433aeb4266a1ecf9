//! How fast machined does what grows with its host: parsing and checking a configuration of 2,000
//! lines, listing the processes of a machine that has 5,000 more of them, and copying 1 GB over its
//! API, which `tar` does through a socket for comparison. Prints a line for each: `host NAME p50_ms=…`,
//! the median of its rounds; benches/figures.rs reads them.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use orlop_config::machine;
use orlop_machined::figures::{self, MachineServer};
use orlop_proto::machine::CopyRequest;
use orlop_proto::machine::machine_service_client::MachineServiceClient;
use orlop_rt::CancellationToken;
use tokio::runtime::{Builder, Runtime};

const LINES: usize = 2000;
const PROCESSES: usize = 5000;
const ROUNDS: usize = 21;
/// What is copied, in files of 1 MB, and how often: less often, because it takes longer.
const MEGABYTES: usize = 1000;
const COPIES: usize = 5;

fn main() -> Result<()> {
    let text = machine::example_of_lines(LINES);
    machine::parse("example.yaml", &text).context("the example is not sound")?;
    report("configuration", ROUNDS, || {
        machine::parse("example.yaml", &text).map(drop).map_err(Into::into)
    })?;
    copies()?;
    let _crowd = Crowd::gather(PROCESSES)?;
    report("processes", ROUNDS, || {
        let count = figures::processes()?;
        ensure!(count > PROCESSES, "only {count} processes");
        Ok(())
    })
}

fn report(name: &str, rounds: usize, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let started = Instant::now();
        work()?;
        times.push(started.elapsed());
    }
    tell(name, times);
    Ok(())
}

fn tell(name: &str, mut times: Vec<Duration>) {
    times.sort();
    println!("host {name} p50_ms={:.2}", times[times.len() / 2].as_secs_f64() * 1e3);
}

/// The same files over the API and by `tar` through a socket, in turns, so that both meet the same
/// machine.
fn copies() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let files = folder.path().join("files");
    fs::create_dir(&files)?;
    let content: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    for number in 0..MEGABYTES {
        fs::File::create(files.join(number.to_string()))?.write_all(&content)?;
    }
    let socket = folder.path().join("machine.sock");
    let shutdown = CancellationToken::new();
    let serving = {
        let (socket, shutdown) = (socket.clone(), shutdown.clone());
        thread::spawn(move || -> Result<()> {
            Ok(runtime()?.block_on(MachineServer::serve(&socket, shutdown))?)
        })
    };
    while !socket.exists() {
        ensure!(!serving.is_finished(), "the server does not serve");
        thread::sleep(Duration::from_millis(1));
    }
    let runtime = runtime()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first one, which finds nothing in memory, does not count.
    for round in 0..=COPIES {
        for (times, copy) in [
            (
                &mut ours,
                &(|| runtime.block_on(copy(&socket, &files))) as &dyn Fn() -> Result<usize>,
            ),
            (&mut theirs, &|| tar(&files)),
        ] {
            let started = Instant::now();
            let bytes = copy()?;
            ensure!(bytes > MEGABYTES * content.len(), "only {bytes} bytes came");
            if round > 0 {
                times.push(started.elapsed());
            }
        }
    }
    tell("copy", ours);
    tell("tar", theirs);
    shutdown.cancel();
    serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("make a runtime")
}

/// How many bytes came.
async fn copy(socket: &Path, files: &Path) -> Result<usize> {
    let mut client = MachineServiceClient::new(orlop_rpc::unix::channel(socket));
    let request = CopyRequest { root_path: files.display().to_string() };
    let mut pieces = client.copy(request).await?.into_inner();
    let mut bytes = 0;
    while let Some(piece) = pieces.message().await? {
        bytes += piece.bytes.len();
    }
    Ok(bytes)
}

fn tar(files: &Path) -> Result<usize> {
    let (mut here, there) = UnixStream::pair()?;
    let mut command = Command::new("tar");
    command.arg("-C").arg(files).args(["-cf", "-", "."]).stdout(OwnedFd::from(there));
    let mut child = command.spawn().context("start tar")?;
    // Its end of the socket is open in the command as well.
    drop(command);
    let (mut bytes, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        match here.read(&mut buffer)? {
            0 => break,
            count => bytes += count,
        }
    }
    ensure!(child.wait()?.success(), "tar failed");
    Ok(bytes)
}

/// Processes that do nothing, for as long as this lives.
struct Crowd(Vec<Child>);

impl Crowd {
    fn gather(count: usize) -> Result<Self> {
        let mut crowd = Self(Vec::with_capacity(count));
        for _ in 0..count {
            let mut command = Command::new("sleep");
            let child = command.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            crowd.0.push(child.context("start sleep")?);
        }
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have been killed by somebody else; then there is nobody to wait for either.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
