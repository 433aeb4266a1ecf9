//! How fast machined does what grows with its host: parsing and checking a configuration of 2,000
//! lines, and listing the processes of a machine that has 5,000 more of them. Prints a line for each:
//! `host NAME p50_ms=…`, the median of its rounds; benches/figures.rs reads them.

#![forbid(unsafe_code)]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use orlop_config::machine;
use orlop_machined::figures;

const LINES: usize = 2000;
const PROCESSES: usize = 5000;
const ROUNDS: usize = 21;

fn main() -> Result<()> {
    let text = machine::example_of_lines(LINES);
    machine::parse("example.yaml", &text).context("the example is not sound")?;
    report("configuration", || {
        machine::parse("example.yaml", &text).map(drop).map_err(Into::into)
    })?;
    let _crowd = Crowd::gather(PROCESSES)?;
    report("processes", || {
        let count = figures::processes()?;
        ensure!(count > PROCESSES, "only {count} processes");
        Ok(())
    })
}

fn report(name: &str, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        work()?;
        times.push(started.elapsed());
    }
    times.sort();
    let median: Duration = times[ROUNDS / 2];
    println!("host {name} p50_ms={:.2}", median.as_secs_f64() * 1e3);
    Ok(())
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
