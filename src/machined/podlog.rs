//! Logs of pods' containers, as the container runtime interface has them on disk: a line is
//! `<RFC 3339 time> stdout|stderr P|F <text>`, where `P` says that the line goes on in the next one of
//! its stream. [`Reader`] gives back what the container wrote. Pure.
//!
//! What a pod makes its runtime write are bytes of a stranger: anything is taken, memory is bounded,
//! and a line of another form is passed on as it is.

/// A line of the file that is longer is taken in pieces; runtimes write 16 KiB at most.
const LINE_LIMIT: usize = 64 << 10;
/// A line that the container has not ended yet is passed on when it is that long.
const PARTIAL_LIMIT: usize = 64 << 10;

/// Puts the lines of one file together.
#[derive(Debug, Default)]
pub struct Reader {
    /// The beginning of a line of the file.
    line: Vec<u8>,
    /// What each stream said of a line that it did not end yet.
    partial: [Vec<u8>; 2],
    /// Of a line of the file that is taken in pieces: whose it is, and whether the container's line ends
    /// with it.
    open: Option<(Stream, bool)>,
}

/// One line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Which of the container's two wrote it.
    pub stream: Stream,
    /// Whether the container's line ends with it.
    pub ends: bool,
    /// What was written, without the end of the line.
    pub text: &'a [u8],
}

/// Where a container writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl<'a> Line<'a> {
    /// `None` for what has another form.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let (time, rest) = word(line)?;
        let (stream, rest) = word(rest)?;
        // An empty text may have lost its space.
        let (tags, text) = word(rest).unwrap_or((rest, &[]));
        let stream = match stream {
            b"stdout" => Stream::Out,
            b"stderr" => Stream::Err,
            _ => return None,
        };
        // Further tags may follow after a colon.
        let ends = match tags.split(|byte| *byte == b':').next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        time.first()?.is_ascii_digit().then_some(Self { stream, ends, text })
    }
}

fn word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

impl Reader {
    /// Takes bytes of the file; `each` gets the container's lines as they are complete, their newline
    /// included. (One that is too long comes in pieces, of which only the last has it.)
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let reach = &bytes[..bytes.len().min(LINE_LIMIT - self.line.len())];
            let end = reach.iter().position(|byte| *byte == b'\n');
            self.line.extend_from_slice(&reach[..end.unwrap_or(reach.len())]);
            bytes = &bytes[end.map_or(reach.len(), |end| end + 1)..];
            if end.is_some() || self.line.len() == LINE_LIMIT {
                let line = std::mem::take(&mut self.line);
                self.take(&line, end.is_some(), &mut each);
                self.line = line;
                self.line.clear();
            }
        }
    }

    /// The file has ended: passes on what is there.
    pub fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.take(&line, false, &mut each);
        }
        for partial in &mut self.partial {
            if !partial.is_empty() {
                each(&std::mem::take(partial));
            }
        }
    }

    fn take(&mut self, line: &[u8], whole: bool, each: &mut impl FnMut(&[u8])) {
        let further = self.open.take().map(|(stream, ends)| Line { stream, ends, text: line });
        let Some(Line { stream, ends, text }) = further.or_else(|| Line::parse(line)) else {
            let mut line = line.to_vec();
            if whole {
                line.push(b'\n');
            }
            return each(&line);
        };
        self.open = (!whole).then_some((stream, ends));
        let partial = &mut self.partial[stream as usize];
        partial.extend_from_slice(text);
        if ends && whole {
            partial.push(b'\n');
        }
        if (ends && whole) || partial.len() >= PARTIAL_LIMIT {
            each(&std::mem::take(partial));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<String> {
        let mut reader = Reader::default();
        let mut lines = Vec::new();
        let mut keep = |line: &[u8]| lines.push(String::from_utf8_lossy(line).into_owned());
        pieces.iter().for_each(|piece| reader.feed(piece, &mut keep));
        reader.finish(&mut keep);
        lines
    }

    #[test]
    fn what_was_written_comes_back_line_by_line() {
        let file = b"2026-01-02T03:04:05.6Z stdout F hello\n\
                     2026-01-02T03:04:05.7Z stdout P long \n\
                     2026-01-02T03:04:05.7Z stderr F in between\n\
                     2026-01-02T03:04:05.8Z stdout P er \n\
                     2026-01-02T03:04:05.9Z stdout F line\n\
                     2026-01-02T03:04:06Z stdout F \n\
                     2026-01-02T03:04:06+01:00 stderr F:x tagged\n\
                     2026-01-02T03:04:06Z stdout F\n\
                     something else\n\
                     2026-01-02T03:04:06Z stdout P the end";
        let lines = [
            "hello\n",
            "in between\n",
            "long er line\n",
            "\n",
            "tagged\n",
            "\n",
            "something else\n",
            "the end",
        ];
        assert_eq!(read(&[file]), lines);
        let (a, b) = file.split_at(60);
        assert_eq!(read(&[a, b]), lines);
    }

    #[test]
    fn a_line_of_the_file_may_be_of_any_length() {
        let text = "x".repeat(3 * LINE_LIMIT);
        let file = format!("2026 stdout F {text}\n2026 stdout F next\n");
        let lines = read(&[file.as_bytes()]);
        assert!(lines.concat() == format!("{text}\nnext\n"), "{} lines", lines.len());
    }

    #[test]
    fn memory_is_bounded_whatever_is_written() {
        let mut reader = Reader::default();
        let mut bytes = 0;
        for _ in 0..10_000 {
            reader.feed(b"2026 stdout P never ending ", |line| bytes += line.len());
            reader.feed(b"2026 stderr P never ending \n", |line| bytes += line.len());
            let held: usize = reader.partial.iter().map(Vec::capacity).sum();
            assert!(reader.line.capacity() + held < 4 * (LINE_LIMIT + PARTIAL_LIMIT));
        }
        assert!(bytes > 100_000, "{bytes}");
    }

    proptest! {
        /// What a runtime makes of a container's bytes, and what is read of it, are the same.
        #[test]
        fn a_round_trip_loses_nothing(
            lines in proptest::collection::vec("[a-z ]{0,30}", 0..20), cut in 1_usize..20, piece in 1_usize..64,
        ) {
            let mut file = String::new();
            for line in &lines {
                let mut rest = line.as_str();
                while rest.len() > cut {
                    file += &format!("2026-01-02T03:04:05.678901234Z stdout P {}\n", &rest[..cut]);
                    rest = &rest[cut..];
                }
                file += &format!("2026-01-02T03:04:05.678901234Z stdout F {rest}\n");
            }
            let pieces: Vec<_> = file.as_bytes().chunks(piece).collect();
            let wanted: Vec<_> = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(read(&pieces), wanted);
        }
    }
}
