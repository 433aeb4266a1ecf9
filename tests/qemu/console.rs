//! What a guest says on its serial line, kept line by line with the time each arrived.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use regex_lite::Regex;

/// One line, without its end.
#[derive(Clone, Debug)]
pub struct Line {
    /// When the host had read it.
    pub at: Instant,
    /// What it says, terminal escapes removed.
    pub text: String,
}

/// A line that matched, and what its groups held.
#[derive(Clone, Debug)]
pub struct Found {
    /// The line.
    pub line: Line,
    /// The pattern's groups from 1 on; empty where a group took no part.
    pub groups: Vec<String>,
}

/// A place in the console's text: everything said after it was taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark(usize);

/// A shared view of the text so far; a thread of its own fills it until the guest ends.
#[derive(Clone, Debug)]
pub struct Console(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    text: Mutex<Text>,
    /// Woken at each new line and at the end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    lines: Vec<Line>,
    ended: bool,
}

impl Console {
    /// Reads `from` to its end in the background and copies it to `log`.
    pub(crate) fn follow(from: impl Read + Send + 'static, mut log: Option<File>) -> Self {
        let console = Self(Arc::default());
        let shared = Arc::clone(&console.0);
        // Ends with the guest, whose output it reads.
        thread::spawn(move || {
            let escapes = Regex::new("\x1b\\[[0-9;?=]*[A-Za-z]|\x1bc").expect("a valid pattern");
            let mut from = BufReader::new(from);
            let mut bytes = Vec::new();
            while from.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
                if let Some(log) = &mut log {
                    // A full disk costs the log, not the run.
                    let _ = log.write_all(&bytes);
                }
                let text = String::from_utf8_lossy(&bytes);
                let text =
                    escapes.replace_all(text.trim_end_matches(['\r', '\n']), "").replace('\r', "");
                shared.with(|all| all.lines.push(Line { at: Instant::now(), text }));
                bytes.clear();
            }
            shared.with(|all| all.ended = true);
        });
        console
    }

    /// The end of the text so far.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.0.read(|text| text.lines.len()))
    }

    /// Waits for a line that matches `pattern`, from the first line on.
    ///
    /// # Errors
    /// As [`Console::wait_after`].
    pub fn wait(&self, pattern: &str, limit: Duration) -> Result<Found> {
        self.wait_after(Mark::default(), pattern, limit)
    }

    /// Waits for the first line after `mark` that matches `pattern`.
    ///
    /// # Errors
    /// When the guest ends, panics, or says nothing of the kind within `limit`. The message has the
    /// last 50 lines.
    pub fn wait_after(&self, mark: Mark, pattern: &str, limit: Duration) -> Result<Found> {
        match self.look(mark, pattern, limit)? {
            Some(found) => Ok(found),
            None if self.ended() => {
                bail!("the guest ended before it said /{pattern}/\n{}", self.tail())
            }
            None => bail!("nothing like /{pattern}/ within {} s\n{}", limit.as_secs(), self.tail()),
        }
    }

    /// Passes when nothing after `mark` matches `pattern` for the whole of `period`.
    ///
    /// # Errors
    /// When a line does, or the guest ends. The message has the last 50 lines.
    pub fn stays_silent(&self, mark: Mark, pattern: &str, period: Duration) -> Result<()> {
        match self.look(mark, pattern, period) {
            Ok(Some(found)) => bail!("unexpected: {}\n{}", found.line.text, self.tail()),
            Ok(None) if self.ended() => bail!("the guest ended\n{}", self.tail()),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Calls `told` with each line until the guest ends or `told` returns false.
    pub fn each_line(&self, mut told: impl FnMut(&Line) -> bool) {
        let mut next = 0;
        while let Some(line) = self.line(next) {
            if !told(&line) {
                return;
            }
            next += 1;
        }
    }

    /// Waits until the guest has said its last word; false when `limit` passes first.
    #[must_use]
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        let text = self.0.text.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.changed.wait_timeout_while(text, limit, |text| !text.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// The last 50 lines, for a message.
    #[must_use]
    pub fn tail(&self) -> String {
        self.0.read(|text| {
            let from = text.lines.len().saturating_sub(50);
            let lines: Vec<_> = text.lines[from..].iter().map(|line| line.text.as_str()).collect();
            format!("--- the console's last {} lines ---\n{}\n---", lines.len(), lines.join("\n"))
        })
    }

    fn ended(&self) -> bool {
        self.0.read(|text| text.ended)
    }

    /// Line `index`, waited for; `None` when the guest ended before it.
    fn line(&self, index: usize) -> Option<Line> {
        let text = self.0.text.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.0.changed.wait_while(text, |text| text.lines.len() <= index && !text.ended);
        text.unwrap_or_else(PoisonError::into_inner).lines.get(index).cloned()
    }

    fn look(&self, mark: Mark, pattern: &str, limit: Duration) -> Result<Option<Found>> {
        let wanted = Regex::new(pattern)?;
        let panicked = Regex::new("Kernel panic - not syncing")?;
        let oops = Regex::new("Oops: |BUG: ")?;
        let deadline = Instant::now() + limit;
        let mut next = mark.0;
        let mut text = self.0.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            while let Some(line) = text.lines.get(next) {
                if let Some(captures) = wanted.captures(&line.text) {
                    let group = |group: Option<regex_lite::Match<'_>>| {
                        group.map_or_else(String::new, |found| found.as_str().to_owned())
                    };
                    let groups = captures.iter().skip(1).map(group).collect();
                    return Ok(Some(Found { line: line.clone(), groups }));
                }
                if panicked.is_match(&line.text) {
                    // The cause stands above the registers, and may be out of the last lines.
                    let cause = text.lines.iter().find(|line| oops.is_match(&line.text));
                    let cause = cause.map_or_else(String::new, |line| format!(": {}", line.text));
                    drop(text);
                    bail!("the guest's kernel panicked{cause}\n{}", self.tail());
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if text.ended || left.is_zero() {
                return Ok(None);
            }
            let waited = self.0.changed.wait_timeout(text, left);
            text = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn with(&self, change: impl FnOnce(&mut Text)) {
        change(&mut self.text.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn read<T>(&self, look: impl FnOnce(&Text) -> T) -> T {
        look(&self.text.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn console(text: &'static str) -> Console {
        let console = Console::follow(text.as_bytes(), None);
        assert!(console.wait_for_end(Duration::from_secs(10)));
        console
    }

    #[test]
    fn a_marker_is_found_and_its_groups_with_it() {
        let console = console("\x1b[2Jfirst\r\n[   4.123] machined: ready in 3.2s\r\n");
        let found = console.wait(crate::READY, Duration::from_secs(1)).unwrap();
        assert_eq!(found.groups, ["3.2"]);
    }

    #[test]
    fn after_a_mark_old_lines_do_not_count_and_the_tail_is_shown() {
        let console = console("one\ntwo\n");
        let error = console.wait_after(console.mark(), "two", Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("the guest ended before it said /two/"));
        assert!(error.to_string().contains("one\ntwo\n---"));
    }

    #[test]
    fn a_panic_ends_the_wait() {
        let console = console(
            "Oops: int3: 0000 [#1] SMP\nKernel panic - not syncing: Attempted to kill init!\nready\n",
        );
        let error = console.wait("ready", Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().starts_with("the guest's kernel panicked: Oops: int3: 0000"));
        assert!(crate::is_translators_fault(&error));
    }
}
