//! `time`: the nodes' clocks beside a server's; whom they follow.

use orlop_proto::orlop::v1alpha1::time_source::State;
use orlop_proto::orlop::v1alpha1::{Clock, TimeSource};
use orlop_proto::time::{Time, TimeRequest};
use prost_types::Timestamp;
use time::OffsetDateTime;

use crate::client::{self, Answer, Client};
use crate::error::Error;
use crate::table::{Cell, Column, Output, Table};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Ask this server instead of the nodes' own
    #[arg(short, long, value_name = "SERVER")]
    check: Option<String>,
    /// Whom the nodes' clocks follow, and how well; nobody is asked for it
    #[arg(long, conflicts_with = "check")]
    sources: bool,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    if options.sources {
        let call = async |node| client::clock(node).clock(()).await;
        return sources(&client.ask("read clocks", call).await?).print(options.output);
    }
    let call = async |node| match &options.check {
        None => client::time(node).time(()).await,
        Some(server) => client::time(node).time_check(TimeRequest { server: server.clone() }).await,
    };
    let answers = client.ask("compare clocks", call).await?;
    table(&answers).print(options.output)
}

const COLUMNS: &[Column] = &[
    ("NODE", "node"),
    ("NTP-SERVER", "server"),
    ("NODE-TIME", "node_time"),
    ("NTP-SERVER-TIME", "server_time"),
];

fn table(answers: &[Answer<Time>]) -> Table {
    let mut table = Table::new(COLUMNS);
    for Answer { node, message } in answers {
        table.push([
            Cell::text(node),
            Cell::text(&message.server),
            Cell::text(&shown(message.localtime)),
            Cell::text(&shown(message.remotetime)),
        ]);
    }
    table
}

const SOURCES: &[Column] = &[
    ("NODE", "node"),
    ("SERVER", "server"),
    ("ADDRESS", "address"),
    ("STATE", "state"),
    ("STRATUM", "stratum"),
    ("POLL", "poll_seconds"),
    ("REACH", "reach"),
    ("DELAY", "delay_seconds"),
    ("OFFSET", "offset_seconds"),
    ("JITTER", "jitter_seconds"),
    ("FREQUENCY", "frequency_ppm"),
];

/// The clock itself comes first; what it is told by each source follows.
fn sources(answers: &[Answer<Clock>]) -> Table {
    let mut table = Table::new(SOURCES);
    for Answer { node, message } in answers {
        let state = if message.synchronized { "synchronised" } else { "not synchronised" };
        table.push([
            Cell::text(node),
            none(),
            none(),
            Cell::text(state),
            Cell::number(message.stratum),
            none(),
            none(),
            none(),
            millis(message.offset_seconds),
            millis(message.sigma_seconds),
            ppm(message.frequency_ppm),
        ]);
        for source in &message.sources {
            let TimeSource { server, address, reach, stratum, .. } = source;
            table.push([
                Cell::text(node),
                Cell::text(server),
                Cell::text(address),
                Cell::text(state_name(source.state())),
                Cell::number(*stratum),
                Cell::shown(format!("{} s", source.poll_seconds), source.poll_seconds),
                // As ntpq has it.
                Cell::shown(format!("{reach:o}"), *reach),
                millis(source.delay_seconds),
                source.offset_seconds.map_or_else(none, millis),
                millis(source.jitter_seconds),
                source.frequency_ppm.map_or_else(none, ppm),
            ]);
        }
    }
    table
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Unreachable => "unreachable",
        State::Unfit => "unfit",
        State::Falseticker => "falseticker",
        State::Spare => "spare",
        State::Followed => "followed",
    }
}

fn none() -> Cell {
    Cell::shown("-", serde_json::Value::Null)
}

fn millis(seconds: f64) -> Cell {
    Cell::shown(format!("{:.3} ms", seconds * 1e3), seconds)
}

fn ppm(frequency: f64) -> Cell {
    Cell::shown(format!("{frequency:.3} ppm"), frequency)
}

/// `2026-11-21 12:00:00.25 +0000 UTC`, as other clients print it.
fn shown(time: Option<Timestamp>) -> String {
    let Timestamp { seconds, nanos } = time.unwrap_or_default();
    let Ok(at) = OffsetDateTime::from_unix_timestamp(seconds) else { return seconds.to_string() };
    let (hour, minute, second) = at.to_hms();
    let fraction = match nanos {
        1..=999_999_999 => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
        _ => String::new(),
    };
    format!("{} {hour:02}:{minute:02}:{second:02}{fraction} +0000 UTC", at.date())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use crate::table::Format;

    #[test]
    fn sources_are_shown_below_the_clock_they_keep() {
        let source = TimeSource {
            server: "nts://ntp.example.org".to_owned(),
            address: "192.0.2.1".to_owned(),
            state: State::Followed.into(),
            reach: 0o377,
            stratum: 1,
            poll_seconds: 64.0,
            offset_seconds: Some(-0.000_25),
            frequency_ppm: Some(-12.345_6),
            jitter_seconds: 0.000_1,
            delay_seconds: 0.02,
        };
        let silent = TimeSource {
            server: "192.0.2.9".to_owned(),
            address: "192.0.2.9".to_owned(),
            poll_seconds: 64.0,
            ..TimeSource::default()
        };
        let message = Clock {
            synchronized: true,
            offset_seconds: -0.000_2,
            sigma_seconds: 0.000_05,
            frequency_ppm: -12.3,
            stratum: 2,
            sources: vec![source, silent],
            ..Clock::default()
        };
        let text = sources(&[Answer { node: "n".to_owned(), message }]).render(Format::Table);
        golden::check("time-sources.txt", &text);
    }

    #[test]
    fn clocks_are_shown_to_the_nanosecond() {
        let at = |seconds, nanos| Some(Timestamp { seconds, nanos });
        let message = Time {
            metadata: None,
            server: "pool.ntp.org".to_owned(),
            localtime: at(1_795_262_400, 250_000_000),
            remotetime: at(1_795_262_401, 0),
        };
        let text = table(&[Answer { node: "n".to_owned(), message }]).render(Format::Table);
        golden::check("time.txt", &text);
    }
}
