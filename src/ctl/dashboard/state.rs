//! What is known of the nodes, what is to be asked next, and what keys do. Pure: times are passed in,
//! counted from the start of the dashboard.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use orlop_proto::machine::{
    DiskStat, LoadAvg, MemInfo, NetDev, ProcessInfo, ServiceInfo, SystemStat,
};

use super::sample::{Cpu, Piece, Rate, disks, links};
use crate::table::escape;

/// Lines of the log that are kept.
const LINES: usize = 500;
/// Longest line that is kept whole.
const LINE: usize = 4096;
/// How many of the last loads of the processors are kept.
const HISTORY: usize = 120;
/// What an answer may take beyond the interval before what is shown counts as old.
const SLACK: Duration = Duration::from_secs(2);

/// What a node is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Services,
    Stat,
    Memory,
    Load,
    Network,
    Disks,
    Processes,
    Version,
}

impl Question {
    pub(crate) const ALL: [Self; 8] = [
        Self::Services,
        Self::Stat,
        Self::Memory,
        Self::Load,
        Self::Network,
        Self::Disks,
        Self::Processes,
        Self::Version,
    ];
}

/// What a person does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Quit,
    NextNode,
    PreviousNode,
    /// The node at this place, from 0.
    Node(usize),
    Sort,
    Up,
    Down,
    End,
}

/// Whether the dashboard goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    On,
    Quit,
}

/// What the processes are sorted by, biggest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sort {
    #[default]
    Cpu,
    Memory,
}

/// All that is shown.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) nodes: Vec<Node>,
    pub(crate) selected: usize,
    pub(crate) sort: Sort,
    /// Lines of the log below the last one shown.
    pub(crate) below: usize,
    interval: Duration,
}

impl State {
    pub(crate) fn new(names: impl IntoIterator<Item = String>, interval: Duration) -> Self {
        let nodes: Vec<_> = names.into_iter().map(Node::new).collect();
        debug_assert!(!nodes.is_empty());
        Self { nodes, selected: 0, sort: Sort::default(), below: 0, interval }
    }

    pub(crate) fn shown(&self) -> &Node {
        &self.nodes[self.selected]
    }

    /// The questions to ask now, which count as asked. A question that was not answered yet is not
    /// asked again; of nodes that are not shown, only the services are of interest.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<(usize, Question)> {
        let mut due = Vec::new();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            for question in Question::ALL {
                let wanted = match question {
                    Question::Services => true,
                    Question::Version => at == self.selected && node.version.is_empty(),
                    _ => at == self.selected,
                };
                let asked = &mut node.asked[question as usize];
                let passed = |last: Duration| now.saturating_sub(last) >= self.interval;
                if wanted && !asked.waiting && asked.last.is_none_or(passed) {
                    (asked.waiting, asked.last) = (true, Some(now));
                    due.push((at, question));
                } else if !wanted {
                    asked.failed = None;
                }
            }
        }
        due
    }

    /// Takes an answer, or why there is none.
    pub(crate) fn answer(
        &mut self,
        at: usize,
        question: Question,
        now: Duration,
        answer: Result<Piece, String>,
    ) {
        let node = &mut self.nodes[at];
        node.asked[question as usize].waiting = false;
        match answer {
            Ok(piece) => {
                node.answered = Some(now);
                node.asked[question as usize].failed = None;
                node.take(piece, now);
            }
            Err(why) => node.asked[question as usize].failed = Some(escape(&why)),
        }
    }

    /// The log of a node begins anew.
    pub(crate) fn log_begins(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.lines.clear();
        node.begun.clear();
    }

    /// Takes a piece of a node's log.
    pub(crate) fn log(&mut self, at: usize, bytes: &[u8]) {
        let node = &mut self.nodes[at];
        let before = node.lines.len();
        let mut gone = 0;
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = LINE.saturating_sub(node.begun.len());
            node.begun.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                let line = String::from_utf8_lossy(&node.begun);
                node.lines.push_back(escape(line.trim_end()));
                node.begun.clear();
                if node.lines.len() > LINES {
                    node.lines.pop_front();
                    gone += 1;
                }
            }
        }
        // Who looks at old lines goes on looking at them.
        if at == self.selected && self.below > 0 {
            let come = node.lines.len() + gone - before;
            self.below = (self.below + come).min(node.lines.len());
        }
    }

    pub(crate) fn key(&mut self, key: Key) -> Flow {
        let count = self.nodes.len();
        let select = match key {
            Key::Quit => return Flow::Quit,
            Key::NextNode => (self.selected + 1) % count,
            Key::PreviousNode => (self.selected + count - 1) % count,
            Key::Node(at) if at < count => at,
            _ => self.selected,
        };
        if select != self.selected {
            (self.selected, self.below) = (select, 0);
        }
        let most = self.shown().lines.len().saturating_sub(1);
        match key {
            Key::Sort => {
                self.sort = match self.sort {
                    Sort::Cpu => Sort::Memory,
                    Sort::Memory => Sort::Cpu,
                }
            }
            Key::Up => self.below = (self.below + 1).min(most),
            Key::Down => self.below = self.below.saturating_sub(1),
            Key::End => self.below = 0,
            _ => {}
        }
        Flow::On
    }

    /// How old what is shown of a node is, when it is older than it should be.
    pub(crate) fn stale(&self, node: &Node, now: Duration) -> Option<Duration> {
        let age = now.saturating_sub(node.answered.unwrap_or_default());
        (age > self.interval + SLACK).then_some(age)
    }
}

/// What is known of one node.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) load: Option<LoadAvg>,
    pub(crate) memory: Option<MemInfo>,
    pub(crate) stat: Option<SystemStat>,
    pub(crate) cpu: Option<Cpu>,
    /// How busy the processors were, oldest first.
    pub(crate) history: VecDeque<f64>,
    pub(crate) links: Vec<Rate>,
    pub(crate) disks: Vec<Rate>,
    pub(crate) processes: Vec<Process>,
    pub(crate) services: Vec<ServiceInfo>,
    pub(crate) lines: VecDeque<String>,
    /// When there was an answer the last time.
    pub(crate) answered: Option<Duration>,
    /// By [`Question`].
    asked: [Asked; Question::ALL.len()],
    link_counters: Option<(Duration, Vec<NetDev>)>,
    disk_counters: Option<(Duration, Vec<DiskStat>)>,
    processes_at: Option<Duration>,
    begun: Vec<u8>,
}

/// How a question stands.
#[derive(Clone, Debug, Default)]
struct Asked {
    waiting: bool,
    last: Option<Duration>,
    failed: Option<String>,
}

/// A process and what part of one processor it had since the answer before.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) info: ProcessInfo,
    pub(crate) cpu: Option<f64>,
}

impl Node {
    fn new(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    /// What failed and was not answered since.
    pub(crate) fn failed(&self) -> Option<&str> {
        self.asked.iter().find_map(|asked| asked.failed.as_deref())
    }

    /// The processes, biggest first.
    pub(crate) fn sorted(&self, sort: Sort) -> Vec<&Process> {
        let mut sorted: Vec<_> = self.processes.iter().collect();
        orlop_rt::sort_by_key(&mut sorted, |process| process.info.pid);
        orlop_rt::sort_by_key(&mut sorted, |process| Reverse(process.info.resident_memory));
        if sort == Sort::Cpu {
            let cpu = |process: &Process| process.cpu.unwrap_or_default();
            orlop_rt::sort_by(&mut sorted, |a, b| cpu(b).total_cmp(&cpu(a)));
        }
        sorted
    }

    fn take(&mut self, piece: Piece, now: Duration) {
        match piece {
            Piece::Version(version) => self.version = escape(&version),
            Piece::Load(load) => self.load = Some(load),
            Piece::Memory(memory) => self.memory = Some(*memory),
            Piece::Services(services) => self.services = services,
            Piece::Stat(stat) => self.take_stat(*stat),
            Piece::Network(after) => {
                if let Some((at, before)) = &self.link_counters {
                    self.links = links(before, &after, now.saturating_sub(*at));
                }
                self.link_counters = Some((now, after));
            }
            Piece::Disks(after) => {
                if let Some((at, before)) = &self.disk_counters {
                    self.disks = disks(before, &after, now.saturating_sub(*at));
                }
                self.disk_counters = Some((now, after));
            }
            Piece::Processes(after) => {
                let elapsed = self.processes_at.map(|at| now.saturating_sub(at));
                let process = |info: ProcessInfo| {
                    let same = |known: &&Process| known.info.pid == info.pid;
                    let before = self.processes.iter().find(same);
                    let cpu = before.zip(elapsed.filter(|elapsed| !elapsed.is_zero())).and_then(
                        |(before, elapsed)| {
                            // A pid that was given to another process begins again.
                            let spent = info.cpu_time - before.info.cpu_time;
                            (spent >= 0.0).then(|| spent / elapsed.as_secs_f64())
                        },
                    );
                    Process { info, cpu }
                };
                self.processes = after.into_iter().map(process).collect();
                self.processes_at = Some(now);
            }
        }
    }

    fn take_stat(&mut self, stat: SystemStat) {
        if let Some(before) = &self.stat {
            if before.boot_time != stat.boot_time {
                // The node booted again, or its clock was set: no counter goes on.
                (self.link_counters, self.disk_counters) = (None, None);
                (self.processes_at, self.cpu) = (None, None);
                self.version.clear();
            } else if let Some((before, after)) = before.cpu_total.zip(stat.cpu_total) {
                self.cpu = Cpu::between(&before, &after);
            }
            if let Some(cpu) = self.cpu {
                self.history.push_back(cpu.busy());
                if self.history.len() > HISTORY {
                    self.history.pop_front();
                }
            }
        }
        self.stat = Some(stat);
    }
}

#[cfg(test)]
mod tests {
    use orlop_proto::machine::CpuStat;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(3);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn two() -> State {
        State::new(["a".to_owned(), "b".to_owned()], INTERVAL)
    }

    #[test]
    fn a_question_is_asked_again_only_once_it_was_answered() {
        let mut state = two();
        let asked = state.due(seconds(0));
        // All of the node that is shown, and how the other one is.
        assert_eq!(asked.len(), Question::ALL.len() + 1);
        assert!(asked.contains(&(1, Question::Services)));
        assert!(state.due(seconds(9)).is_empty());
        state.answer(0, Question::Load, seconds(10), Ok(Piece::Load(LoadAvg::default())));
        assert_eq!(state.due(seconds(11)), [(0, Question::Load)]);
        state.answer(0, Question::Load, seconds(11), Err("gone".to_owned()));
        assert_eq!(state.nodes[0].failed(), Some("gone"));
        assert!(state.due(seconds(13)).is_empty(), "three seconds have not passed");
        assert_eq!(state.due(seconds(14)), [(0, Question::Load)]);
        assert_eq!(state.nodes[0].failed(), Some("gone"), "until it is answered");
        state.key(Key::NextNode);
        assert_eq!(state.due(seconds(14)).len(), Question::ALL.len() - 1);
    }

    #[test]
    fn what_a_slow_node_said_is_marked_with_its_age() {
        let mut state = two();
        state.answer(0, Question::Load, seconds(1), Ok(Piece::Load(LoadAvg::default())));
        assert_eq!(state.stale(&state.nodes[0], seconds(6)), None);
        assert_eq!(state.stale(&state.nodes[0], seconds(8)), Some(seconds(7)));
        assert_eq!(state.stale(&state.nodes[1], seconds(8)), Some(seconds(8)));
    }

    #[test]
    fn counters_of_before_a_reboot_are_forgotten() {
        let mut state = two();
        let stat = |boot_time, user| {
            let cpu_total = Some(CpuStat { user, idle: 2.0 * user, ..CpuStat::default() });
            Ok(Piece::Stat(Box::new(SystemStat { boot_time, cpu_total, ..SystemStat::default() })))
        };
        let network = |rx_bytes| {
            let name = "eth0".to_owned();
            Ok(Piece::Network(vec![NetDev { name, rx_bytes, ..NetDev::default() }]))
        };
        for (second, boot_time, busy, rx, rates) in
            [(0, 7, 1.0, 0, 0), (1, 7, 2.0, 10, 1), (2, 90, 3.0, 20, 1), (3, 90, 4.0, 30, 1)]
        {
            state.answer(0, Question::Stat, seconds(second), stat(boot_time, busy));
            let known = state.nodes[0].cpu.is_some();
            assert_eq!(known, second == 1 || second == 3, "{second}");
            state.answer(0, Question::Network, seconds(second), network(rx));
            assert_eq!(state.nodes[0].links.len(), rates, "{second}");
        }
        assert_eq!(state.nodes[0].history.len(), 2);
    }

    #[test]
    fn a_process_has_the_processor_time_since_the_last_answer() {
        let mut state = two();
        let process = |pid, cpu_time| ProcessInfo { pid, cpu_time, ..ProcessInfo::default() };
        let first = vec![process(1, 1.0), process(2, 5.0)];
        state.answer(0, Question::Processes, seconds(1), Ok(Piece::Processes(first)));
        let second = vec![process(1, 2.0), process(2, 0.5), process(3, 9.0)];
        state.answer(0, Question::Processes, seconds(3), Ok(Piece::Processes(second)));
        let shown: Vec<_> = state.nodes[0]
            .sorted(Sort::Cpu)
            .iter()
            .map(|process| (process.info.pid, process.cpu))
            .collect();
        assert_eq!(shown, [(1, Some(0.5)), (2, None), (3, None)]);
    }

    #[test]
    fn who_reads_old_lines_of_the_log_is_not_disturbed() {
        let mut state = two();
        for _ in 0..LINES {
            state.log(0, b"old\n");
        }
        state.key(Key::Up);
        state.log(0, b"new\nnew\nbeg");
        assert_eq!((state.below, state.shown().lines.len()), (3, LINES));
        state.log(0, b"un\x1b[2J\n");
        assert_eq!(state.shown().lines.back().map(String::as_str), Some("begun\\u{1b}[2J"));
        state.log(0, &[b'x'; 3 * LINE]);
        state.log(0, b"\n");
        assert_eq!(state.shown().lines.back().map(String::len), Some(LINE));
        state.key(Key::End);
        assert_eq!(state.below, 0);
        state.log_begins(0);
        assert!(state.shown().lines.is_empty());
    }

    #[test]
    fn keys_choose_the_node_and_the_order() {
        let mut state = two();
        for (key, selected) in [
            (Key::NextNode, 1),
            (Key::NextNode, 0),
            (Key::PreviousNode, 1),
            (Key::Node(0), 0),
            (Key::Node(7), 0),
            (Key::Down, 0),
            (Key::Up, 0),
        ] {
            assert_eq!(state.key(key), Flow::On);
            assert_eq!((state.selected, state.below), (selected, 0), "{key:?}");
        }
        state.key(Key::Sort);
        assert_eq!(state.sort, Sort::Memory);
        assert_eq!(state.key(Key::Quit), Flow::Quit);
    }
}
