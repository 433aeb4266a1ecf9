//! How far a long transfer is: one line on stderr, where that is a terminal, and nothing anywhere else.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::table::escape;
use crate::units::si;

/// Short transfers show nothing, and nobody reads faster than this.
const EVERY: Duration = Duration::from_millis(250);

/// Something that takes its time. The line goes away when this is dropped.
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
            self.draw(&line(&self.what, self.bytes, now - self.begun), now);
        }
    }

    /// Waits for something, and shows meanwhile how far it is by `said`, and how long it has taken.
    pub(crate) async fn during<T>(
        &mut self,
        doing: impl Future<Output = T>,
        said: impl Fn() -> String,
    ) -> T {
        let mut doing = pin!(doing);
        loop {
            tokio::select! {
                done = &mut doing => return done,
                () = tokio::time::sleep(EVERY), if self.shown => {
                    let now = Instant::now();
                    let line = waiting(&self.what, &said(), now - self.begun);
                    self.draw(&line, now);
                }
            }
        }
    }

    fn draw(&mut self, line: &str, now: Instant) {
        // Who does not see it loses nothing.
        let _ = write!(stderr(), "\r\u{1b}[K{line}");
        (self.next, self.drawn) = (now + EVERY, true);
    }

    /// Takes the line away, for something that is said for good.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(stderr(), "\r\u{1b}[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn waiting(what: &str, said: &str, elapsed: Duration) -> String {
    let comma = if said.is_empty() { "" } else { ", " };
    format!("{what}: {said}{comma}{} s", elapsed.as_secs())
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
        assert_eq!(waiting("pull x", "1 of 2 layers", two), "pull x: 1 of 2 layers, 2 s");
        assert_eq!(waiting("pull x", "", two), "pull x: 2 s");
        assert_eq!(line("x", u64::MAX, Duration::ZERO), "x: 18 EB, 18 EB/s");
    }
}
