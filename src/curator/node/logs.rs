//! Which lines of which logs somebody wants, and how they are told (spec §4.8); pure.
//!
//! Names of logs (DNs) are those of a tree: services lie beneath `root`, what PID 1 says from the first moment on is
//! `init`. All lines are raw here: the daemons' own lines carry their levels as text.

use orlop_proto::metropolis::proto::api::LogsRequest;
use orlop_proto::metropolis::proto::api::logs_request::{BacklogMode, StreamMode};
use orlop_proto::metropolis::proto::common::log_filter::Filter;
use orlop_proto::osbase::logtree::proto::log_entry::{Kind, Raw};
use orlop_proto::osbase::logtree::proto::{LeveledLogSeverity, LogEntry};

const FILTERS: usize = 10;
/// Of a line; what is longer is cut.
const LINE: usize = 16 << 10;
/// Entries of a message.
const ENTRIES: usize = 2000;
/// Bytes of a message, with room for what is around the lines.
const BYTES: usize = 3 << 20;
/// PID 1's own log.
const OWN: &str = "machined";

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) source: Source,
    /// How many lines of the past, for [`tail_lines`](orlop_proto::machine::LogsRequest); none: no past.
    pub(super) backlog: Option<i32>,
    /// Also what comes.
    pub(super) follow: bool,
}

/// Whose lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Of all services.
    All,
    /// Of this one.
    One(String),
    /// There is nothing of that kind, or at that place, alone.
    Nothing,
}

/// Reads a request.
///
/// # Errors
/// What is wrong with it, in words: `INVALID_ARGUMENT`.
pub(super) fn understand(request: &LogsRequest) -> Result<Wish, String> {
    if request.filters.len() > FILTERS {
        return Err(format!("there are {} filters of at most {FILTERS}", request.filters.len()));
    }
    let (mut children, mut raw, mut leveled) = (false, false, false);
    for filter in &request.filters {
        match &filter.filter {
            Some(Filter::WithChildren(_)) => children = true,
            Some(Filter::OnlyRaw(_)) => raw = true,
            Some(Filter::OnlyLeveled(_)) => leveled = true,
            Some(Filter::LeveledWithMinimumSeverity(least)) => {
                if least.minimum() == LeveledLogSeverity::Invalid {
                    return Err(
                        "there is no such severity; INFO, WARNING, ERROR and FATAL are".into()
                    );
                }
            }
            None => return Err("a filter says nothing that this release knows".into()),
        }
    }
    if raw && leveled {
        return Err("only_raw and only_leveled leave nothing".into());
    }
    let parts: Vec<&str> = match request.dn.as_str() {
        "" => Vec::new(),
        dn => dn.split('.').collect(),
    };
    if parts.contains(&"") {
        return Err(format!("{:?} is no name of a log: a part of it is empty", request.dn));
    }
    let backlog = match BacklogMode::try_from(request.backlog_mode) {
        Ok(BacklogMode::Disable) => None,
        Ok(BacklogMode::All) => Some(-1),
        Ok(BacklogMode::Count) if request.backlog_count > 0 => {
            Some(i32::try_from(request.backlog_count).unwrap_or(i32::MAX))
        }
        Ok(BacklogMode::Count) => return Err("backlog_count must be above 0".into()),
        Ok(BacklogMode::Invalid) | Err(_) => return Err("there is no such backlog_mode".into()),
    };
    let follow = match StreamMode::try_from(request.stream_mode) {
        Ok(StreamMode::Invalid | StreamMode::Disable) => false,
        Ok(StreamMode::Unbuffered) => true,
        Err(_) => return Err("there is no such stream_mode".into()),
    };
    let source = match parts[..] {
        _ if leveled => Source::Nothing,
        [] | ["root"] if children => Source::All,
        ["init"] => Source::One(OWN.to_owned()),
        ["root", service] => Source::One(service.to_owned()),
        _ => Source::Nothing,
    };
    Ok(Wish { source, backlog, follow })
}

/// The name of a service's log.
pub(super) fn dn(service: &str) -> String {
    format!("root.{service}")
}

/// Makes entries of the bytes of a log.
#[derive(Debug)]
pub(super) struct Lines {
    dn: String,
    /// Of a line whose end has not come yet, as much as is told.
    begun: Vec<u8>,
    /// Its bytes so far.
    length: usize,
}

impl Lines {
    pub(super) fn of(service: &str) -> Self {
        Self { dn: dn(service), begun: Vec::new(), length: 0 }
    }

    /// The lines that end in `bytes`.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let room = LINE.saturating_sub(self.begun.len()).min(piece.len());
            self.begun.extend_from_slice(&piece[..room]);
            self.length += piece.len();
            if pieces.peek().is_some() {
                entries.push(self.entry());
            }
        }
        entries
    }

    /// What has no end, at the end of the log.
    pub(super) fn rest(&mut self) -> Option<LogEntry> {
        (self.length > 0).then(|| self.entry())
    }

    fn entry(&mut self) -> LogEntry {
        let raw = Raw {
            data: String::from_utf8_lossy(&self.begun).into_owned(),
            original_length: i64::try_from(self.length).unwrap_or(i64::MAX),
        };
        self.begun.clear();
        self.length = 0;
        LogEntry { dn: self.dn.clone(), kind: Some(Kind::Raw(raw)) }
    }
}

/// Splits entries so that each part fits a message.
pub(super) fn messages(entries: Vec<LogEntry>) -> Vec<Vec<LogEntry>> {
    let mut messages: Vec<Vec<LogEntry>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let size = prost::Message::encoded_len(&entry);
        match messages.last_mut() {
            Some(last) if last.len() < ENTRIES && bytes + size <= BYTES => {
                bytes += size;
                last.push(entry);
            }
            _ => {
                bytes = size;
                messages.push(vec![entry]);
            }
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use orlop_proto::metropolis::proto::common::LogFilter;
    use orlop_proto::metropolis::proto::common::log_filter::{
        LeveledWithMinimumSeverity, OnlyLeveled, OnlyRaw, WithChildren,
    };

    use super::*;

    fn request(dn: &str, filters: Vec<Filter>) -> LogsRequest {
        LogsRequest {
            dn: dn.to_owned(),
            filters: filters.into_iter().map(|it| LogFilter { filter: Some(it) }).collect(),
            backlog_mode: BacklogMode::All.into(),
            ..LogsRequest::default()
        }
    }

    #[test]
    fn names_lead_to_services() {
        let all = || vec![Filter::WithChildren(WithChildren {})];
        for (dn, filters, source) in [
            ("", all(), Source::All),
            ("root", all(), Source::All),
            ("root", vec![], Source::Nothing),
            ("root.apid", vec![], Source::One("apid".to_owned())),
            ("init", vec![], Source::One("machined".to_owned())),
            ("root.apid.x", vec![], Source::Nothing),
            ("elsewhere", all(), Source::Nothing),
            ("root.apid", vec![Filter::OnlyLeveled(OnlyLeveled {})], Source::Nothing),
            ("root.apid", vec![Filter::OnlyRaw(OnlyRaw {})], Source::One("apid".to_owned())),
        ] {
            let wish = understand(&request(dn, filters.clone())).expect("a wish");
            assert_eq!(wish, Wish { source, backlog: Some(-1), follow: false }, "{dn} {filters:?}");
        }
        let mut followed = request("init", vec![]);
        followed.backlog_mode = BacklogMode::Count.into();
        followed.backlog_count = 7;
        followed.stream_mode = StreamMode::Unbuffered.into();
        let wish = understand(&followed).expect("a wish");
        assert_eq!((wish.backlog, wish.follow), (Some(7), true));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let least =
            |minimum| Filter::LeveledWithMinimumSeverity(LeveledWithMinimumSeverity { minimum });
        let many = vec![Filter::OnlyRaw(OnlyRaw {}); 11];
        let both = vec![Filter::OnlyRaw(OnlyRaw {}), Filter::OnlyLeveled(OnlyLeveled {})];
        let mut bad: Vec<_> =
            [many, both, vec![least(0)], vec![least(9)]].map(|it| request("init", it)).into();
        bad.extend([".a", "a.", "a..b", "."].map(|dn| request(dn, vec![])));
        for (mode, count, stream) in [(0, 0, 0), (9, 0, 0), (3, 0, 0), (3, -1, 0), (2, 0, 9)] {
            bad.push(LogsRequest {
                backlog_mode: mode,
                backlog_count: count,
                stream_mode: stream,
                ..request("init", vec![])
            });
        }
        bad.push(LogsRequest { filters: vec![LogFilter { filter: None }], ..request("", vec![]) });
        for request in bad {
            assert!(understand(&request).is_err(), "{request:?}");
        }
        assert!(understand(&request("init", vec![least(2)])).is_ok());
    }

    fn texts(entries: &[LogEntry]) -> Vec<(String, i64)> {
        let text = |entry: &LogEntry| match &entry.kind {
            Some(Kind::Raw(raw)) => (raw.data.clone(), raw.original_length),
            other => panic!("{other:?}"),
        };
        entries.iter().map(text).collect()
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        let mut lines = Lines::of("apid");
        let mut entries = lines.take(b"one\ntw");
        assert_eq!(entries[0].dn, "root.apid");
        entries.extend(lines.take(b"o\n\n\xff"));
        entries.extend(lines.take(&[b'x'; LINE]));
        entries.extend(lines.rest());
        assert_eq!(lines.rest(), None);
        let told = texts(&entries);
        let expected = [("one", 3), ("two", 3), ("", 0)];
        assert_eq!(told[..3], expected.map(|(text, length)| (text.to_owned(), length)));
        assert!(told[3].0.starts_with("\u{fffd}xx"));
        assert_eq!(told[3].1, LINE as i64 + 1);
        assert_eq!(told.len(), 4);
    }

    #[test]
    fn messages_are_small_enough() {
        let mut lines = Lines::of("x");
        let short = lines.take("a\n".repeat(4500).as_bytes());
        let sizes: Vec<_> = messages(short).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2000, 2000, 500]);
        let long = format!("{}\n", "b".repeat(LINE));
        let parts = messages(lines.take(long.repeat(500).as_bytes()));
        assert!(parts.len() > 1);
        for part in parts {
            let bytes: usize = part.iter().map(prost::Message::encoded_len).sum();
            assert!(bytes <= BYTES, "{bytes}");
        }
    }
}
