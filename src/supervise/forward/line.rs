//! Bytes of a service's log into lines, a line into a message: an object of JSON with the members
//! `msg`, `talos-level`, `talos-service` and `talos-time`. Pure.

use std::time::SystemTime;

use prost_types::Timestamp;
use serde_json::json;

/// What is longer is several lines. Six times as much (escaped) still fits into a datagram.
pub(super) const LINE_LIMIT: usize = 8 << 10;

/// How our daemons write a level, and what it is called in a message.
const LEVELS: [(&str, &str); 5] = [
    ("ERROR", "error"),
    ("WARN", "warn"),
    ("INFO", "info"),
    ("DEBUG", "debug"),
    ("TRACE", "trace"),
];
/// The same in `level=…` of programs that log in `key=value` pairs, as containerd.
const WORDS: [(&str, &str); 8] = [
    ("trace", "trace"),
    ("debug", "debug"),
    ("info", "info"),
    ("warn", "warn"),
    ("warning", "warn"),
    ("error", "error"),
    ("fatal", "error"),
    ("panic", "error"),
];
/// A level that is further behind is part of the text.
const LEVEL_WITHIN: usize = 80;

/// What is left of a line until the rest of it comes.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Calls `each` with every line that `bytes` complete, without its end. Empty ones do not count.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = LINE_LIMIT - self.partial.len();
            let reach = &bytes[..bytes.len().min(room)];
            let end = reach.iter().position(|byte| *byte == b'\n');
            self.partial.extend_from_slice(&reach[..end.unwrap_or(reach.len())]);
            bytes = &bytes[end.map_or(reach.len(), |end| end + 1)..];
            if end.is_some() || self.partial.len() == LINE_LIMIT {
                self.finish(&mut each);
            }
        }
    }

    /// Takes what is there for a line.
    pub(crate) fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            each(&self.partial);
        }
        self.partial.clear();
    }
}

/// The message of a line, with its newline. The time and the level it begins with are the message's;
/// without them it is `now` and `info`.
pub(super) fn message(service: &str, line: &[u8], now: SystemTime) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    let (time, level, text) = match prefix(text) {
        Some((time, level, text)) => (time.to_owned(), level, text),
        None => (Timestamp::from(now).to_string(), pair(text).unwrap_or("info"), text),
    };
    let object = json!({
        "msg": text, "talos-level": level, "talos-service": service, "talos-time": time,
    });
    let mut message = object.to_string().into_bytes();
    message.push(b'\n');
    message
}

/// `TIME  LEVEL text`, as our daemons write it.
fn prefix(text: &str) -> Option<(&str, &'static str, &str)> {
    let (time, rest) = text.split_once(' ')?;
    let (level, text) = rest.trim_start().split_once(' ')?;
    let level = LEVELS.iter().find(|(name, _)| *name == level)?.1;
    is_time(time).then_some((time, level, text))
}

/// Whether this looks as RFC 3339 wants a time in UTC to look.
fn is_time(text: &str) -> bool {
    let shape = b"dddd-dd-ddTdd:dd:dd";
    let bytes = text.as_bytes();
    let fits = |(byte, shape): (&u8, &u8)| match shape {
        b'd' => byte.is_ascii_digit(),
        other => byte == other,
    };
    let Some((rest, b"Z")) = bytes.get(shape.len()..).and_then(|rest| rest.split_last_chunk())
    else {
        return false;
    };
    let fraction = match rest {
        [] => true,
        [b'.', digits @ ..] => {
            (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    };
    fraction && bytes.iter().zip(shape).all(fits)
}

/// The level of a line of pairs.
fn pair(text: &str) -> Option<&'static str> {
    let words = text.split(' ').map_while({
        let mut seen = 0;
        move |word| {
            seen += word.len() + 1;
            (seen < LEVEL_WITHIN).then_some(word)
        }
    });
    let level = words.filter_map(|word| word.strip_prefix("level=")).next()?;
    WORDS.iter().find(|(name, _)| *name == level).map(|(_, level)| *level)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn all(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        let mut keep = |line: &[u8]| found.push(String::from_utf8_lossy(line).into_owned());
        pieces.iter().for_each(|piece| lines.feed(piece, &mut keep));
        lines.finish(&mut keep);
        found
    }

    fn text(service: &str, line: &str) -> String {
        let now = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 5_000_000);
        String::from_utf8_lossy(&message(service, line.as_bytes(), now)).into_owned()
    }

    #[test]
    fn lines_come_whole_however_they_were_written() {
        assert_eq!(all(&[b"one\ntw", b"o\n", b"\n\nthr", b"", b"ee"]), ["one", "two", "three"]);
        let long = vec![b'x'; LINE_LIMIT + 10];
        let cut = all(&[&long, b"\nnext\n"]);
        assert_eq!(cut.iter().map(String::len).collect::<Vec<_>>(), [LINE_LIMIT, 10, 4]);
    }

    #[test]
    fn a_line_becomes_an_object_with_its_own_time_and_level() {
        assert_eq!(
            text("apid", "2026-01-02T03:04:05.678901Z  WARN a \"quoted\" word\tpeer=::1"),
            "{\"msg\":\"a \\\"quoted\\\" word\\tpeer=::1\",\"talos-level\":\"warn\",\
             \"talos-service\":\"apid\",\"talos-time\":\"2026-01-02T03:04:05.678901Z\"}\n"
        );
        assert_eq!(
            text("etcd", "no time at all"),
            "{\"msg\":\"no time at all\",\"talos-level\":\"info\",\"talos-service\":\"etcd\",\
             \"talos-time\":\"2020-09-13T12:26:40.005Z\"}\n"
        );
        let line = "time=\"2026-01-02T03:04:05.6Z\" level=warning msg=\"slow disk\"";
        assert!(text("containerd", line).contains("\"talos-level\":\"warn\""));
        for line in ["yesterday INFO x", "2026-01-02T03:04:05Y INFO x", "2026-01-02 INFO x"] {
            assert!(text("x", line).contains(&format!("\"msg\":\"{line}\"")), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_become_one_line_of_sound_json(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = message("x", &line, SystemTime::UNIX_EPOCH);
            prop_assert!(bytes.iter().filter(|byte| **byte == b'\n').count() == 1);
            prop_assert!(bytes.len() < 6 * line.len() + 200);
            let object: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            prop_assert!(object["talos-service"] == "x" && object["msg"].is_string());
        }

        #[test]
        fn nothing_but_line_ends_is_lost(pieces in proptest::collection::vec("[a\n]{0,40}", 0..8)) {
            let pieces: Vec<_> = pieces.iter().map(String::as_bytes).collect();
            let wanted = pieces.concat();
            let wanted = String::from_utf8_lossy(&wanted).replace('\n', "");
            prop_assert_eq!(all(&pieces).concat(), wanted);
        }
    }
}
