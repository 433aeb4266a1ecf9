//! `processes`: what runs on a node, biggest first.

use std::cmp::Reverse;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use orlop_proto::machine::{Process, ProcessInfo};
use tokio::time::sleep;

use crate::client::{Answer, Client, machine};
use crate::error::Error;
use crate::table::{Cell, Column, Output, Table, print};
use crate::units::si;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Column to sort by, biggest first
    #[arg(short, long, value_enum, default_value_t)]
    sort: Sort,
    /// List them again every two seconds, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum Sort {
    /// Resident memory
    #[default]
    Rss,
    /// CPU time
    Cpu,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    if !options.watch {
        return table(&ask(client).await?, options.sort).print(options.output);
    }
    let screen = io::stdout().is_terminal();
    let watching = async {
        loop {
            let table = table(&ask(client).await?, options.sort);
            if screen {
                print(CLEAR)?;
            }
            table.print(options.output)?;
            sleep(WATCH_EVERY).await;
        }
    };
    // Safe to cancel: nothing is changed by asking.
    tokio::select! {
        ended = watching => ended,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Error::Signal),
    }
}

/// How often they are listed.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// The cursor goes home, and what a terminal shows goes away (ECMA-48, CUP and ED).
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

async fn ask(client: &Client) -> Result<Vec<Answer<Process>>, Error> {
    let call = async |node| machine(node).processes(()).await;
    client.ask("list processes", call).await
}

const COLUMNS: &[Column] = &[
    ("NODE", "node"),
    ("PID", "pid"),
    ("STATE", "state"),
    ("THREADS", "threads"),
    ("CPU-TIME", "cpu_seconds"),
    ("VIRTMEM", "virtual_bytes"),
    ("RESMEM", "resident_bytes"),
    ("COMMAND", "command"),
];

/// Processes of each node in turn; equal ones by pid, so that two calls print the same order.
pub(crate) fn table(answers: &[Answer<Process>], sort: Sort) -> Table {
    let mut table = Table::new(COLUMNS);
    for Answer { node, message } in answers {
        let mut processes: Vec<_> = message.processes.iter().collect();
        orlop_rt::sort_by_key(&mut processes, |process| process.pid);
        match sort {
            Sort::Rss => {
                orlop_rt::sort_by_key(&mut processes, |process| Reverse(process.resident_memory))
            }
            Sort::Cpu => {
                orlop_rt::sort_by(&mut processes, |a, b| b.cpu_time.total_cmp(&a.cpu_time))
            }
        }
        for process in processes {
            table.push([
                Cell::text(node),
                Cell::number(process.pid),
                Cell::text(&process.state),
                Cell::number(process.threads),
                Cell::shown(format!("{:.2}", process.cpu_time), process.cpu_time),
                Cell::shown(si(process.virtual_memory), process.virtual_memory),
                Cell::shown(si(process.resident_memory), process.resident_memory),
                Cell::text(&command(process)),
            ]);
        }
    }
    table
}

/// The command line with the full path of the program when it was called by its bare name; a kernel
/// thread, which has neither, by its name.
fn command(process: &ProcessInfo) -> String {
    let ProcessInfo { command, executable, args, .. } = process;
    if executable.is_empty() || args.is_empty() {
        return command.clone();
    }
    let (called, rest) =
        args.split_once(' ').map_or((&**args, ""), |(called, rest)| (called, rest));
    match executable.rsplit_once('/') {
        Some((_, name)) if name == called => format!("{executable} {rest}").trim_end().to_owned(),
        _ => args.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use crate::table::Format;

    fn process(pid: i32, cpu_time: f64, resident_memory: u64, names: [&str; 3]) -> ProcessInfo {
        let [command, executable, args] = names.map(str::to_owned);
        let state = "S".to_owned();
        let virtual_memory = resident_memory * 10;
        let (ppid, threads) = (1, 4);
        ProcessInfo {
            pid,
            ppid,
            state,
            threads,
            cpu_time,
            virtual_memory,
            resident_memory,
            command,
            executable,
            args,
        }
    }

    fn answers() -> Vec<Answer<Process>> {
        let processes = vec![
            process(2, 0.5, 0, ["kthreadd", "", ""]),
            process(1, 1.25, 9_400_000, ["init", "/sbin/orlop", "/sbin/init"]),
            process(
                7,
                0.126,
                61_440_000,
                ["containerd", "/bin/containerd", "containerd --config /a\nb"],
            ),
            process(3, 0.0, 0, ["kworker/0:0", "", ""]),
        ];
        vec![Answer { node: "n".to_owned(), message: Process { metadata: None, processes } }]
    }

    #[test]
    fn the_most_memory_comes_first() {
        let text = table(&answers(), Sort::Rss).render(Format::Table);
        golden::check("processes.txt", &text);
    }

    #[test]
    fn or_the_most_cpu_time() {
        let text = table(&answers(), Sort::Cpu).render(Format::Table);
        let pids: Vec<_> =
            text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(pids, ["1", "2", "7", "3"]);
    }
}
