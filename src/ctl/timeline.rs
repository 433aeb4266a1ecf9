//! `timeline`: how a node's boot went, each step with its beginning and what it took.

use std::iter::repeat_n;

use orlop_proto::orlop::v1alpha1::span::Kind;
use orlop_proto::orlop::v1alpha1::{Span, Timeline};

use crate::client::{Answer, Client, told};
use crate::error::Error;
use crate::table::{Cell, Column, Format, Output, Table, escape, print};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What took longest first, without what it is a part of
    #[arg(long)]
    blame: bool,
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(client: &Client, options: &Options) -> Result<(), Error> {
    let call = async |node| told(node).timeline(()).await;
    let mut answers = client.ask("read the timeline", call).await?;
    if options.blame {
        answers.iter_mut().for_each(|answer| blame(&mut answer.message.spans));
    }
    match options.output.format {
        Format::Table => print(chart(&answers, options.blame).as_bytes()),
        Format::Json | Format::Yaml => table(&answers).print(options.output),
    }
}

/// Keeps what stands for itself, the longest first.
fn blame(spans: &mut Vec<Span>) {
    spans.retain(|span| {
        matches!(span.kind(), Kind::Kernel | Kind::Init | Kind::Task | Kind::Service)
    });
    orlop_rt::sort_by_key(spans, |span| std::cmp::Reverse(span.duration_ns));
}

const COLUMNS: &[Column] = &[
    ("NODE", "node"),
    ("KIND", "kind"),
    ("NAME", "name"),
    ("PARENT", "parent"),
    ("START", "start_ns"),
    ("DURATION", "duration_ns"),
    ("UNFINISHED", "unfinished"),
    ("FAILED", "failed"),
];

fn table(answers: &[Answer<Timeline>]) -> Table {
    let mut table = Table::new(COLUMNS);
    for Answer { node, message } in answers {
        for span in &message.spans {
            table.push([
                Cell::text(node),
                Cell::text(&span.kind().as_str_name().to_lowercase()),
                Cell::text(&span.name),
                Cell::text(&span.parent),
                Cell::number(span.start_ns),
                Cell::number(span.duration_ns),
                Cell::shown("", span.unfinished),
                Cell::shown("", span.failed),
            ]);
        }
    }
    table
}

/// Columns of the whole.
const WIDTH: usize = 100;
/// The bars get no less than this, however long the names are.
const LEAST: usize = 20;

/// A line of the chart, but for its bar.
struct Line<'a> {
    cells: [String; 4],
    span: &'a Span,
    /// Of a service.
    stages: &'a [Span],
}

/// Names and times on the left, bars on the right, all nodes on one scale.
pub(crate) fn chart(answers: &[Answer<Timeline>], flat: bool) -> String {
    let headings = ["NODE", "WHEN", "TOOK", "WHAT"];
    let lines: Vec<_> = answers.iter().flat_map(|answer| lines(answer, flat)).collect();
    let widths: [usize; 4] = std::array::from_fn(|i| {
        let of = |cell: &String| cell.chars().count();
        lines.iter().map(|line| of(&line.cells[i])).chain([headings[i].len()]).max().unwrap_or(0)
    });
    let room = WIDTH.saturating_sub(widths.iter().map(|width| width + 3).sum()).max(LEAST);
    let end = lines.iter().map(|line| end(line.span)).max().unwrap_or(0).max(1);
    let scale = Scale { end, room };
    let mut text = row(&headings, &widths, "");
    for line in &lines {
        text += &row(&line.cells.each_ref().map(String::as_str), &widths, &scale.bar(line));
    }
    text.push('\n');
    if lines.iter().any(|line| !line.stages.is_empty()) {
        text += "· waits for others   ▒ is prepared   █ is started\n";
    }
    for Answer { node, message } in answers {
        let (node, ready) = (escape(node), seconds(message.ready_ns));
        text += &match message.ready_ns {
            0 => format!("{node} is not ready yet\n"),
            _ => format!("{node} was ready after {ready}\n"),
        };
    }
    text
}

fn row(cells: &[&str; 4], widths: &[usize; 4], bar: &str) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        line += cell;
        line.extend(repeat_n(' ', width - cell.chars().count() + 3));
    }
    (line + bar).trim_end().to_owned() + "\n"
}

fn lines(answer: &Answer<Timeline>, flat: bool) -> Vec<Line<'_>> {
    let Answer { node, message } = answer;
    let mut lines = Vec::new();
    for (i, span) in message.spans.iter().enumerate() {
        if span.kind() == Kind::Stage {
            continue;
        }
        let of_it = |span: &Span| span.kind() == Kind::Stage;
        let after = &message.spans[i + 1..];
        let stages = &after[..after.iter().position(|span| !of_it(span)).unwrap_or(after.len())];
        let depth = match span.kind() {
            Kind::Phase if !flat => 1,
            Kind::Task if !flat => 2,
            _ => 0,
        };
        let so_far = if span.unfinished { " …" } else { "" };
        let badly = if span.failed { " (failed)" } else { "" };
        let name = format!("{:1$}{2}{badly}{so_far}", "", 2 * depth, escape(&span.name));
        let cells = [escape(node), seconds(span.start_ns), seconds(span.duration_ns), name];
        lines.push(Line { cells, span, stages });
    }
    lines
}

fn end(span: &Span) -> u64 {
    span.start_ns.saturating_add(span.duration_ns)
}

/// `1.250s`.
fn seconds(nanos: u64) -> String {
    let millis = nanos.saturating_add(500_000) / 1_000_000;
    format!("{}.{:03}s", millis / 1000, millis % 1000)
}

/// `room` columns for `end` nanoseconds.
struct Scale {
    end: u64,
    room: usize,
}

impl Scale {
    /// The column of a time.
    fn column(&self, nanos: u64) -> usize {
        let room = self.room as u128;
        let column = u128::from(nanos) * room / u128::from(self.end);
        usize::try_from(column.min(room)).unwrap_or(self.room)
    }

    /// Each column shows the stage its middle falls into; what is too short for one still gets one.
    fn bar(&self, line: &Line<'_>) -> String {
        let first = self.column(line.span.start_ns).min(self.room - 1);
        let past = self.column(end(line.span)).clamp(first + 1, self.room);
        let ink = |column: usize| {
            let middle = u128::from(self.end) * (2 * column as u128 + 1) / (2 * self.room as u128);
            let over = |stage: &&Span| u128::from(end(stage)) > middle;
            let stage = line.stages.iter().find(over).or(line.stages.last());
            match stage.map(|stage| stage.name.as_str()) {
                Some("waiting") => '·',
                Some("preparing") => '▒',
                _ => '█',
            }
        };
        let mut bar: String = repeat_n(' ', first).collect();
        let half = u128::from(line.span.duration_ns) * 2 * self.room as u128;
        match past - first {
            1 if half < u128::from(self.end) => bar.push('▏'),
            _ => bar.extend((first..past).map(ink)),
        }
        bar
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::golden;

    fn span(kind: Kind, name: &str, start: u64, took: u64) -> Span {
        Span {
            kind: kind.into(),
            name: name.to_owned(),
            parent: String::new(),
            start_ns: start * 1_000_000,
            duration_ns: took * 1_000_000,
            unfinished: false,
            failed: false,
        }
    }

    fn answers() -> [Answer<Timeline>; 2] {
        let spans = vec![
            span(Kind::Kernel, "kernel", 0, 512),
            span(Kind::Init, "init", 512, 84),
            span(Kind::Sequence, "initialize", 610, 810),
            span(Kind::Phase, "filesystems", 610, 3),
            span(Kind::Task, "mountPseudoFilesystems", 610, 3),
            span(Kind::Phase, "config", 620, 800),
            span(Kind::Task, "loadConfig", 620, 800),
            span(Kind::Service, "containerd", 615, 900),
            span(Kind::Stage, "preparing", 615, 100),
            span(Kind::Stage, "starting", 715, 800),
            span(Kind::Sequence, "boot", 1420, 680),
            Span { failed: true, ..span(Kind::Service, "networkd", 1450, 20) },
            span(Kind::Stage, "preparing", 1450, 20),
            span(Kind::Service, "apid", 1425, 675),
            span(Kind::Stage, "waiting", 1425, 200),
            span(Kind::Stage, "preparing", 1625, 175),
            span(Kind::Stage, "starting", 1800, 300),
        ];
        let ready = Timeline { metadata: None, spans, ready_ns: 2_100_499_999 };
        let unfinished = Span { unfinished: true, ..span(Kind::Sequence, "boot\u{1b}", 700, 50) };
        let booting = Timeline {
            metadata: None,
            spans: vec![span(Kind::Kernel, "kernel", 0, 700), unfinished],
            ready_ns: 0,
        };
        [
            Answer { node: "10.0.0.2".to_owned(), message: ready },
            Answer { node: "fd00::3".to_owned(), message: booting },
        ]
    }

    #[test]
    fn a_boot_is_a_chart_of_a_hundred_columns() {
        let text = chart(&answers(), false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        golden::check("timeline.txt", &text);
    }

    #[test]
    fn blame_is_the_longest_first() {
        let mut answers = answers();
        answers.iter_mut().for_each(|answer| blame(&mut answer.message.spans));
        golden::check("timeline-blame.txt", &chart(&answers[..1], true));
    }

    #[test]
    fn programs_get_nanoseconds() {
        let mut answers = answers();
        answers[0].message.spans.truncate(2);
        golden::check("timeline.yaml", &table(&answers).render(Format::Yaml));
    }

    proptest! {
        #[test]
        fn no_times_of_a_node_break_the_chart(
            times in proptest::collection::vec((any::<u64>(), any::<u64>(), 0..9i32), 0..20),
        ) {
            let spans = times.into_iter().map(|(start_ns, duration_ns, kind)| Span {
                kind, start_ns, duration_ns, ..Span::default()
            });
            let message = Timeline { metadata: None, spans: spans.collect(), ready_ns: 1 };
            let text = chart(&[Answer { node: "n".to_owned(), message }], false);
            prop_assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        }
    }
}
