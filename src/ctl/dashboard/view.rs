//! From the state to a frame. Pure: what is seen depends on the state, the time and the size alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::sample::Rate;
use super::state::{Node, Sort, State};
use crate::services::health;
use crate::table::escape;
use crate::units::{seconds, si};

/// Both clocks, as they are when a frame is drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Since the dashboard was started.
    pub(crate) elapsed: Duration,
    pub(crate) wall: SystemTime,
}

/// Below this width blocks stand below one another.
const WIDE: u16 = 72;
/// Below this height there is no line of keys.
const TALL: u16 = 16;

/// Whether colours are used; weight and inversion always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Colour,
    Plain,
}

impl Paint {
    fn of(self, colour: Color) -> Style {
        match self {
            Self::Colour => Style::new().fg(colour),
            Self::Plain => Style::new(),
        }
    }

    fn alarm(self) -> Style {
        self.of(Color::Red).add_modifier(Modifier::BOLD)
    }
}

const HEADING: Style = Style::new().add_modifier(Modifier::BOLD);

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, state: &State, now: Now, paint: Paint) {
    let mut room = Room { left: frame.area() };
    let node = state.shown();
    let width = usize::from(room.left.width);
    if room.left.height >= TALL {
        let keys = room.bottom(1);
        let sort = match state.sort {
            Sort::Cpu => "CPU",
            Sort::Memory => "memory",
        };
        let keys_are = format!("q quit   ←/→ node   s sorted by {sort}   ↑/↓/End log");
        lines(frame, keys, [Line::styled(keys_are, Modifier::DIM)]);
    }
    lines(frame, room.top(1), [tabs(state, now, paint, width)]);
    lines(frame, room.top(1), [summary(state, now, paint)]);
    lines(frame, room.top(2), [cpu(node, paint, width), memory(node, paint, width)]);
    let height = room.left.height;
    if height < 8 {
        // Not enough for tables: what matters most.
        lines(frame, room.top(2), [total("net", &node.links), total("disk", &node.disks)]);
        lines(frame, room.left, services(node, paint));
        return;
    }
    let least_log = (height / 4).max(3);
    let up_to = |rows: usize| u16::try_from(rows + 1).unwrap_or(u16::MAX);
    let half = room.left.height / 2;
    if width >= usize::from(WIDE) {
        let rows = up_to(node.services.len().max(node.links.len() + node.disks.len() + 1));
        let block = room.top(rows.min(half));
        let (left, right) = columns(block);
        lines(frame, left, services(node, paint));
        lines(frame, right, devices(node));
    } else {
        lines(frame, room.top(2), [total("net", &node.links), total("disk", &node.disks)]);
        lines(frame, room.top(up_to(node.services.len()).min(half)), services(node, paint));
    }
    let rows = up_to(node.processes.len()).min(room.left.height.saturating_sub(least_log));
    lines(frame, room.top(rows), processes(node, state.sort));
    lines(frame, room.left, tail(state, room.left.height, paint));
}

/// What is not drawn on yet.
struct Room {
    left: Rect,
}

impl Room {
    /// At most `height` lines of the top.
    fn top(&mut self, height: u16) -> Rect {
        let height = height.min(self.left.height);
        let top = Rect { height, ..self.left };
        self.left = Rect { y: top.bottom(), height: self.left.height - height, ..self.left };
        top
    }

    /// At most `height` lines of the bottom.
    fn bottom(&mut self, height: u16) -> Rect {
        let height = height.min(self.left.height);
        self.left.height -= height;
        Rect { y: self.left.bottom(), height, ..self.left }
    }
}

fn columns(block: Rect) -> (Rect, Rect) {
    let width = block.width / 2;
    let left = Rect { width: width.saturating_sub(2), ..block };
    (left, Rect { x: block.x + width, width: block.width - width, ..block })
}

/// Draws as many lines as there is room for.
fn lines<'a>(frame: &mut Frame<'_>, room: Rect, lines: impl IntoIterator<Item = Line<'a>>) {
    for (line, y) in lines.into_iter().zip(room.top()..room.bottom()) {
        frame.render_widget(line, Rect { y, height: 1, ..room });
    }
}

/// The nodes, the one that is shown inverted; those left of it give way when there are many.
fn tabs(state: &State, now: Now, paint: Paint, width: usize) -> Line<'static> {
    let label = |node: &Node| {
        let ill = node.services.iter().any(|service| health(service) == "Fail");
        let mark = match (state.stale(node, now.elapsed), ill) {
            (Some(_), _) => "?",
            (None, true) => "!",
            (None, false) => "",
        };
        format!(" {}{mark} ", escape(&node.name))
    };
    let labels: Vec<_> = state.nodes.iter().map(label).collect();
    let taken = |from: usize| -> usize {
        labels[from..=state.selected].iter().map(|label| label.chars().count()).sum()
    };
    let from = (0..state.selected).find(|&from| taken(from) <= width).unwrap_or(state.selected);
    let tab = |(at, label): (usize, String)| {
        let style = match &label {
            label if label.ends_with("? ") || label.ends_with("! ") => paint.alarm(),
            _ => HEADING,
        };
        match at == state.selected {
            true => Span::styled(label, style.add_modifier(Modifier::REVERSED)),
            false => Span::styled(label, style),
        }
    };
    labels.into_iter().enumerate().skip(from).map(tab).collect::<Vec<_>>().into()
}

/// Version, uptime, load; and what is wrong with the answers.
fn summary(state: &State, now: Now, paint: Paint) -> Line<'static> {
    let node = state.shown();
    let age = state.stale(node, now.elapsed);
    if let (Some(why), Some(age)) = (node.failed(), age) {
        return Line::styled(format!("no answer for {}: {why}", seconds(age)), paint.alarm());
    }
    if node.answered.is_none() {
        let why = node.failed().map(|why| format!(": {why}")).unwrap_or_default();
        let waiting = format!("waits for the node since {}{why}", seconds(now.elapsed));
        return Line::styled(waiting, age.map_or(Style::new(), |_| paint.alarm()));
    }
    let mut said = Vec::new();
    if let Some(age) = age {
        said.push(Span::styled(format!("{} old   ", seconds(age)), paint.alarm()));
    }
    let mut text = node.version.clone();
    if let Some(stat) = &node.stat {
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(stat.boot_time));
        let up = since.and_then(|since| now.wall.duration_since(since).ok()).unwrap_or_default();
        text += &format!("   up {}", seconds(up));
    }
    if let Some(load) = &node.load {
        text += &format!("   load {:.2} {:.2} {:.2}", load.load1, load.load5, load.load15);
    }
    if !node.processes.is_empty() {
        text += &format!("   {} processes", node.processes.len());
    }
    said.push(Span::raw(text.trim_start().to_owned()));
    // A node that answers most questions, and refuses one.
    let failed = node.failed().map(|why| Span::styled(format!("   {why}"), paint.alarm()));
    said.extend(failed);
    said.into()
}

fn cpu(node: &Node, paint: Paint, width: usize) -> Line<'static> {
    let Some(cpu) = node.cpu else { return Line::raw("CPU  …") };
    let parts =
        [("user", cpu.user), ("system", cpu.system), ("iowait", cpu.iowait), ("steal", cpu.steal)];
    let parts = parts.iter().filter(|(_, part)| *part >= 0.005);
    let parts: Vec<_> = parts.map(|(name, part)| format!("{name} {}", percent(*part))).collect();
    gauge("CPU", cpu.busy(), &parts.join(" "), Some(node), paint, width)
}

fn memory(node: &Node, paint: Paint, width: usize) -> Line<'static> {
    let Some(memory) = node.memory else { return Line::raw("MEM  …") };
    let used = memory.memtotal.saturating_sub(memory.memavailable);
    let text = format!("{} of {}", si(used << 10), si(memory.memtotal << 10));
    #[expect(clippy::cast_precision_loss, reason = "it is shown in percent")]
    let part = used as f64 / memory.memtotal.max(1) as f64;
    gauge("MEM", part, &text, None, paint, width)
}

/// `CPU  |||||·····  42%  text`, and the load of before where there is room.
fn gauge(
    name: &'static str,
    part: f64,
    text: &str,
    past: Option<&Node>,
    paint: Paint,
    width: usize,
) -> Line<'static> {
    let bar = (width / 4).clamp(4, 40);
    let full = (0..bar).filter(|&at| part * share(bar) > share(at)).count();
    let colour = match part {
        _ if part < 0.6 => Color::Green,
        _ if part < 0.85 => Color::Yellow,
        _ => Color::Red,
    };
    let text = format!("  {:>4}  {text}", percent(part));
    let mut spans = vec![
        Span::styled(format!("{name}  "), HEADING),
        Span::styled("█".repeat(full), paint.of(colour)),
        Span::styled("·".repeat(bar - full), Modifier::DIM),
    ];
    let taken = 5 + bar + text.chars().count() + 3;
    spans.push(Span::raw(text));
    if let Some(node) = past
        && width > taken
    {
        let skip = node.history.len().saturating_sub(width - taken);
        let levels = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let level = |part: &f64| {
            let at = (1..levels.len()).take_while(|&at| part * share(levels.len()) >= share(at));
            levels[at.count()]
        };
        let history: String = node.history.iter().skip(skip).map(level).collect();
        spans.push(Span::styled(format!("   {history}"), paint.of(Color::Cyan)));
    }
    spans.into()
}

/// A count of cells as a number that parts are multiplied with.
fn share(cells: usize) -> f64 {
    f64::from(u32::try_from(cells).unwrap_or(u32::MAX))
}

fn percent(part: f64) -> String {
    format!("{:.0}%", part * 100.0)
}

fn rate(bytes_per_second: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are not below zero, and a double that is too large saturates"
    )]
    let bytes = bytes_per_second as u64;
    format!("{}/s", si(bytes))
}

/// All devices of a kind in one line.
fn total(name: &'static str, rates: &[Rate]) -> Line<'static> {
    let sum = |part: fn(&Rate) -> f64| rate(rates.iter().map(part).sum());
    let (inward, outward) = (sum(|rate| rate.inward), sum(|rate| rate.outward));
    let words = if name == "net" { ("in", "out") } else { ("read", "write") };
    Line::from(vec![
        Span::styled(format!("{name:<5}"), HEADING),
        Span::raw(format!("{} {inward}   {} {outward}", words.0, words.1)),
    ])
}

/// Links and disks with their rates, the busiest first.
fn devices(node: &Node) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for (heading, rates) in
        [(["LINK", "IN", "OUT"], &node.links), (["DISK", "READ", "WRITE"], &node.disks)]
    {
        lines.push(Line::styled(device(heading), HEADING));
        let mut rates: Vec<_> = rates.iter().collect();
        let busy = |rate: &Rate| rate.inward + rate.outward;
        orlop_rt::sort_by(&mut rates, |a, b| busy(b).total_cmp(&busy(a)));
        lines.extend(rates.iter().map(|of| {
            let (name, inward, outward) = (escape(&of.name), rate(of.inward), rate(of.outward));
            Line::raw(device([&name, &inward, &outward]))
        }));
    }
    lines
}

fn device([name, inward, outward]: [&str; 3]) -> String {
    format!("{name:<14} {inward:>10} {outward:>10}")
}

/// Services, those that are ill first.
fn services(node: &Node, paint: Paint) -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled(service(["SERVICE", "STATE", "HEALTH"]), HEADING)];
    let mut sorted: Vec<_> = node.services.iter().collect();
    orlop_rt::sort_by_key(&mut sorted, |service| match (health(service), service.state.as_str()) {
        ("Fail", _) => 0,
        (_, "Failed") => 0,
        (_, "Running") => 1,
        _ => 2,
    });
    lines.extend(sorted.iter().map(|of| {
        let (id, state, health) = (escape(&of.id), escape(&of.state), health(of));
        let style = match (health, state.as_str()) {
            ("Fail", _) | (_, "Failed") => paint.alarm(),
            ("OK", "Running") => paint.of(Color::Green),
            _ => Style::new(),
        };
        Line::styled(service([&id, &state, health]), style)
    }));
    lines
}

fn service([id, state, health]: [&str; 3]) -> String {
    format!("{id:<14} {state:<11} {health}")
}

fn processes(node: &Node, sort: Sort) -> Vec<Line<'static>> {
    let heading = process(["PID", "STATE", "CPU", "RESMEM", "COMMAND"]);
    let mut lines = vec![Line::styled(heading, HEADING)];
    lines.extend(node.sorted(sort).iter().map(|of| {
        let info = &of.info;
        let command = if info.args.is_empty() { &info.command } else { &info.args };
        let cpu = of.cpu.map_or("…".to_owned(), |cpu| format!("{:.1}%", cpu * 100.0));
        let (pid, state) = (info.pid.to_string(), escape(&info.state));
        Line::raw(process([&pid, &state, &cpu, &si(info.resident_memory), &escape(command)]))
    }));
    lines
}

fn process([pid, state, cpu, memory, command]: [&str; 5]) -> String {
    format!("{pid:>7} {state:<5} {cpu:>7} {memory:>7}  {command}")
}

/// The last lines of the kernel's log, to which machined writes too.
fn tail(state: &State, height: u16, paint: Paint) -> Vec<Line<'_>> {
    let lines = &state.shown().lines;
    let end = lines.len().saturating_sub(state.below);
    let count = usize::from(height.saturating_sub(1));
    let heading = match state.below {
        0 => "LOG".to_owned(),
        below => format!("LOG ({below} lines further down)"),
    };
    let mut shown = vec![Line::styled(heading, HEADING)];
    let window = lines.range(end.saturating_sub(count)..end);
    shown.extend(window.map(|line| match line.contains(": err: ") {
        true => Line::styled(line.as_str(), paint.of(Color::Red)),
        false => Line::raw(line.as_str()),
    }));
    shown
}

#[cfg(test)]
mod tests {
    use orlop_proto::machine::{
        CpuStat, DiskStat, LoadAvg, MemInfo, NetDev, ProcessInfo, ServiceHealth, ServiceInfo,
        SystemStat,
    };
    use proptest::prelude::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::sample::Piece;
    use super::super::state::{Key, Question};
    use super::*;
    use crate::golden;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn now(elapsed: u64) -> Now {
        Now { elapsed: seconds(elapsed), wall: UNIX_EPOCH + seconds(1_000_000) }
    }

    fn service(id: &str, state: &str, healthy: Option<bool>) -> ServiceInfo {
        let health = ServiceHealth {
            unknown: healthy.is_none(),
            healthy: healthy.unwrap_or_default(),
            ..ServiceHealth::default()
        };
        let (id, state) = (id.to_owned(), state.to_owned());
        ServiceInfo { id, state, health: Some(health), events: None }
    }

    fn process(pid: i32, args: &str, cpu_time: f64, mib: u64) -> ProcessInfo {
        let (state, args) = ("S".to_owned(), args.to_owned());
        let command = "kthreadd".to_owned();
        let resident_memory = mib << 20;
        ProcessInfo {
            pid,
            state,
            args,
            command,
            cpu_time,
            resident_memory,
            ..ProcessInfo::default()
        }
    }

    /// What a node says at second `at`.
    fn pieces(at: u64) -> Vec<(Question, Piece)> {
        let ticks = f64::from(u32::try_from(at).expect("few seconds"));
        let cpu_total = CpuStat {
            user: 0.3 * ticks,
            system: 0.1 * ticks,
            iowait: 0.05 * ticks,
            idle: 0.55 * ticks,
            ..CpuStat::default()
        };
        let stat = SystemStat {
            boot_time: 1_000_000 - 3785,
            cpu_total: Some(cpu_total),
            ..SystemStat::default()
        };
        let memory = MemInfo { memtotal: 2_033_764, memavailable: 1_350_000, ..MemInfo::default() };
        let link = |name: &str, rx: u64, tx: u64| NetDev {
            name: name.to_owned(),
            rx_bytes: rx * at,
            tx_bytes: tx * at,
            ..NetDev::default()
        };
        let disk = |name: &str, read: u64| DiskStat {
            name: name.to_owned(),
            read_sectors: read * at,
            write_sectors: 3 * at,
            ..DiskStat::default()
        };
        let services = vec![
            service("apid", "Running", Some(true)),
            service("machined", "Running", Some(true)),
            service("networkd", "Running", Some(false)),
            service("timed", "Skipped", None),
            service("udevd", "Running", None),
        ];
        let processes = vec![
            process(1, "/sbin/init", 0.1 * ticks, 12),
            process(2, "", 0.0, 0),
            process(300, "/apid --endpoints=127.0.0.1", 0.25 * ticks, 31),
        ];
        let load = LoadAvg { load1: 0.42, load5: 0.4, load15: 1.25, ..LoadAvg::default() };
        vec![
            (Question::Version, Piece::Version("v0.1.0".to_owned())),
            (Question::Load, Piece::Load(load)),
            (Question::Memory, Piece::Memory(Box::new(memory))),
            (Question::Stat, Piece::Stat(Box::new(stat))),
            (
                Question::Network,
                Piece::Network(vec![link("lo", 9, 9), link("eth0", 1_500_000, 800)]),
            ),
            (Question::Disks, Piece::Disks(vec![disk("vda", 200), disk("vda1", 200)])),
            (Question::Processes, Piece::Processes(processes)),
            (Question::Services, Piece::Services(services)),
        ]
    }

    fn example() -> State {
        let names = ["10.0.0.2", "10.0.0.3", "node-c"].map(str::to_owned);
        let mut state = State::new(names, seconds(3));
        state.due(Duration::ZERO);
        for at in [3, 6, 9] {
            for (question, piece) in pieces(at) {
                state.answer(0, question, seconds(at), Ok(piece));
            }
        }
        let ill = vec![service("apid", "Running", Some(false))];
        state.answer(1, Question::Services, seconds(9), Ok(Piece::Services(ill)));
        for line in 1..=20 {
            let text = format!("kern:    info: [2026-01-01T00:00:{line:02}Z]: line {line}\n");
            state.log(0, text.as_bytes());
        }
        state
    }

    fn frame(state: &State, now: Now, width: u16, height: u16) -> String {
        let mut terminal =
            Terminal::new(TestBackend::new(width, height)).expect("memory is a terminal");
        terminal.draw(|frame| draw(frame, state, now, Paint::Plain)).expect("memory is a terminal");
        let buffer = terminal.backend().buffer();
        let mut text = String::new();
        for y in 0..height {
            let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    #[test]
    fn a_frame_shows_what_there_is_room_for() {
        for (width, height) in [(80, 24), (40, 10), (200, 60), (1, 1)] {
            let name = format!("dashboard-{width}x{height}.txt");
            golden::check(&name, &frame(&example(), now(10), width, height));
        }
    }

    #[test]
    fn old_answers_are_marked_with_their_age_and_failures_with_their_reason() {
        let mut state = example();
        let shown = frame(&state, now(30), 80, 24);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0], " 10.0.0.2?  10.0.0.3?  node-c?");
        assert!(lines[1].starts_with("21s old   v0.1.0   up 1h3m5s   load 0.42"), "{shown}");
        state.answer(0, Question::Load, seconds(30), Err("no route to host".to_owned()));
        let shown = frame(&state, now(31), 80, 24);
        assert!(shown.contains("\nno answer for 22s: no route to host\n"), "{shown}");
        let shown = frame(&state, now(11), 200, 24);
        assert!(shown.contains("   3 processes   no route to host\n"), "{shown}");
        state.key(Key::Node(2));
        let shown = frame(&state, now(4), 80, 24);
        assert!(shown.contains("\nwaits for the node since 4s\nCPU  …\nMEM  …\n"), "{shown}");
    }

    #[test]
    fn the_tab_of_the_node_that_is_shown_is_never_out_of_sight() {
        let names = (0..100).map(|number| format!("node-{number}"));
        let mut state = State::new(names, seconds(3));
        state.key(Key::Node(57));
        let shown = frame(&state, now(1), 40, 10);
        assert!(shown.starts_with(" node-54  node-55  node-56  node-57  nod\n"), "{shown}");
    }

    #[test]
    fn without_colour_there_is_weight_alone() {
        for (paint, coloured) in [(Paint::Plain, false), (Paint::Colour, true)] {
            let mut terminal =
                Terminal::new(TestBackend::new(80, 24)).expect("memory is a terminal");
            let drawn = terminal.draw(|frame| draw(frame, &example(), now(10), paint));
            let drawn = drawn.expect("memory is a terminal");
            let any = drawn.buffer.content().iter().any(|cell| cell.fg != Color::Reset);
            assert_eq!(any, coloured);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_size_can_be_drawn(width in 1u16..250, height in 1u16..80, above in 0usize..30) {
            let mut state = example();
            for _ in 0..above {
                state.key(Key::Up);
            }
            frame(&state, now(10), width, height);
        }
    }
}
