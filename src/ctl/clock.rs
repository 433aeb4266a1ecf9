//! `time`: the nodes' clocks beside a server's.

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
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
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
