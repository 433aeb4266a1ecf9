//! Entries of a node's log as lines.

use orlop_proto::osbase::logtree::proto::log_entry::{Kind, Leveled, Raw};
use orlop_proto::osbase::logtree::proto::{LeveledLogSeverity, LogEntry};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::table::escape;

/// The lines of an entry: where it comes from, how grave it is, when and where it was written, and what it
/// says. `concise`: of where it comes from, the last part alone.
pub(super) fn lines(entry: &LogEntry, concise: bool) -> String {
    let dn = match concise {
        true => entry.dn.rsplit('.').next().unwrap_or_default(),
        false => &entry.dn,
    };
    let dn = escape(dn);
    match &entry.kind {
        Some(Kind::Leveled(leveled)) => {
            let (letter, when) = (letter(leveled.severity()), when(leveled));
            let place = escape(&leveled.location);
            let line =
                |line: &String| format!("{dn:<32} {letter} {when} {place}] {}\n", escape(line));
            leveled.lines.iter().map(line).collect()
        }
        Some(Kind::Raw(raw)) => format!("{dn:<32} R {}{}\n", escape(&raw.data), cut(raw)),
        None => String::new(),
    }
}

/// An entry for programs.
pub(super) fn value(entry: &LogEntry) -> Value {
    match &entry.kind {
        Some(Kind::Leveled(leveled)) => json!({
            "dn": entry.dn,
            "severity": name(leveled.severity()),
            "timestamp": when(leveled),
            "location": leveled.location,
            "lines": leveled.lines,
        }),
        Some(Kind::Raw(raw)) => json!({
            "dn": entry.dn,
            "raw": raw.data,
            "original_length": raw.original_length,
        }),
        None => json!({ "dn": entry.dn }),
    }
}

fn letter(severity: LeveledLogSeverity) -> char {
    match severity {
        LeveledLogSeverity::Info => 'I',
        LeveledLogSeverity::Warning => 'W',
        LeveledLogSeverity::Error => 'E',
        LeveledLogSeverity::Fatal => 'F',
        LeveledLogSeverity::Invalid => '?',
    }
}

fn name(severity: LeveledLogSeverity) -> &'static str {
    severity.as_str_name().trim_start_matches("LEVELED_LOG_SEVERITY_")
}

fn when(leveled: &Leveled) -> String {
    let stamp = leveled.timestamp.unwrap_or_default();
    let nanos = i128::from(stamp.seconds) * 1_000_000_000 + i128::from(stamp.nanos);
    let Ok(when) = OffsetDateTime::from_unix_timestamp_nanos(nanos) else { return "-".to_owned() };
    let (hour, minute, second) = when.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}.{:06}Z", when.date(), when.microsecond())
}

/// How much of a long line there was.
fn cut(raw: &Raw) -> String {
    match usize::try_from(raw.original_length) {
        Ok(length) if length > raw.data.len() => format!(" [of {length} bytes]"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    #[test]
    fn each_line_says_where_it_comes_from() {
        let leveled = Leveled {
            lines: vec!["one".to_owned(), "two\u{1b}[2J".to_owned()],
            timestamp: Some(Timestamp { seconds: 1, nanos: 500_000_000 }),
            severity: LeveledLogSeverity::Warning.into(),
            location: "a.rs:7".to_owned(),
        };
        let entry = LogEntry { dn: "root.etcd".to_owned(), kind: Some(Kind::Leveled(leveled)) };
        let dn = format!("{:<32}", "root.etcd");
        let expected = format!(
            "{dn} W 1970-01-01T00:00:01.500000Z a.rs:7] one\n{dn} W 1970-01-01T00:00:01.500000Z a.rs:7] \
             two\\u{{1b}}[2J\n"
        );
        assert_eq!(lines(&entry, false), expected);
        assert!(lines(&entry, true).starts_with("etcd  "));
        assert_eq!(value(&entry)["severity"], "WARNING");
        let raw = Raw { data: "x".to_owned(), original_length: 9 };
        let entry = LogEntry { dn: "root".to_owned(), kind: Some(Kind::Raw(raw)) };
        assert_eq!(lines(&entry, false), format!("{:<32} R x [of 9 bytes]\n", "root"));
        assert_eq!(lines(&LogEntry { dn: "x".to_owned(), kind: None }, false), "");
    }
}
