//! What a server sees of its client's frames before they are read: their heads, to tell a flood by.

use std::io;
use std::time::{Duration, Instant};

use crate::rate::Rate;

/// Bytes before the payload of a frame (RFC 9113 §4.1).
const HEAD: usize = 9;
/// The kind of frame, and its flag, that say how much a peer can take, and that it was heard (§6.5).
const SETTINGS: u8 = 4;
const ACK: u8 = 1;
/// SETTINGS in quick succession. A client sends them once, and again while it finds out how much it can
/// take (grpc-go, some twenty times).
pub(crate) const BURST: u32 = 100;
/// How often when there are more; else the connection is closed.
pub(crate) const EVERY: Duration = Duration::from_secs(1);

/// Looks at the heads of a client's frames as they pass. Pure.
#[derive(Debug)]
pub struct Watch {
    head: [u8; HEAD],
    /// Bytes of the head that have come.
    come: usize,
    /// Bytes of the payload that have not.
    payload: usize,
    settings: Rate,
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    /// One for a connection whose preface has been read.
    #[must_use]
    pub fn new() -> Self {
        let settings = Rate::new(BURST, EVERY);
        Self { head: [0; HEAD], come: 0, payload: 0, settings }
    }

    /// Whether `bytes`, which follow those before, may go on to the server.
    ///
    /// # Errors
    /// When there are too many SETTINGS.
    pub fn passes(&mut self, mut bytes: &[u8], now: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.head.len() - self.come).min(bytes.len());
            self.head[self.come..self.come + taken].copy_from_slice(&bytes[..taken]);
            self.come += taken;
            bytes = &bytes[taken..];
            if self.come < self.head.len() {
                return Ok(());
            }
            self.come = 0;
            let [high, middle, low, kind, flags, ..] = self.head;
            self.payload = u32::from_be_bytes([0, high, middle, low]) as usize;
            if kind == SETTINGS && flags & ACK == 0 && self.settings.pass(now).is_none() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a flood of SETTINGS"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn settings_are_counted_wherever_the_stream_is_cut_and_may_come_slowly() {
        let stream = [
            // A message whose bytes look like SETTINGS.
            &[0, 0, 9, 0, 0, 0, 0, 0, 1][..],
            &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0],
            // Real ones, of one value, and an acknowledgement.
            &[0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0],
            &[0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0],
        ]
        .concat();
        let start = Instant::now();
        for size in [1, 2, 3, 7, 9, 1000] {
            let mut watch = Watch::new();
            for round in 0..2 * BURST {
                let passed = stream.chunks(size).try_for_each(|bytes| watch.passes(bytes, start));
                assert_eq!(passed.is_ok(), round < BURST, "{size}: {round}");
                if passed.is_err() {
                    break;
                }
            }
            let mut watch = Watch::new();
            for round in 0..2 * BURST {
                let now = start + EVERY * round;
                stream.chunks(size).for_each(|bytes| watch.passes(bytes, now).unwrap());
            }
        }
    }
}
