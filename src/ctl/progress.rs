//! How far a long transfer is: one line on stderr, where that is a terminal, and nothing anywhere else.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

use crate::table::escape;
use crate::units::si;

/// Short transfers show nothing, and nobody reads faster than this.
const EVERY: Duration = Duration::from_millis(250);

/// A transfer whose size is not known beforehand. The line goes away when this is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    shown: bool,
    begun: Instant,
    next: Instant,
    bytes: u64,
    /// A line is there to be taken away.
    drawn: bool,
}

impl Progress {
    pub(crate) fn new(what: &str) -> Self {
        let begun = Instant::now();
        let (what, shown) = (escape(what), stderr().is_terminal());
        Self { what, shown, begun, next: begun + EVERY, bytes: 0, drawn: false }
    }

    /// Further bytes have come.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        let now = Instant::now();
        if self.shown && now >= self.next {
            let line = line(&self.what, self.bytes, now - self.begun);
            // Who does not see it loses nothing.
            let _ = write!(stderr(), "\r\u{1b}[K{line}");
            (self.next, self.drawn) = (now + EVERY, true);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn {
            let _ = write!(stderr(), "\r\u{1b}[K");
        }
    }
}

fn line(what: &str, bytes: u64, elapsed: Duration) -> String {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = u128::from(bytes) * 1000 / u128::from(millis);
    format!("{what}: {}, {}/s", si(bytes), si(u64::try_from(rate).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_size_and_rate() {
        let two = Duration::from_secs(2);
        assert_eq!(line("copy /var", 3_000_000, two), "copy /var: 3.0 MB, 1.5 MB/s");
        assert_eq!(line("copy /var", 0, Duration::ZERO), "copy /var: 0 B, 0 B/s");
        assert_eq!(line("x", u64::MAX, Duration::ZERO), "x: 18 EB, 18 EB/s");
    }
}
