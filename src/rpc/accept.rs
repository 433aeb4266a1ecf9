//! Accepting connections, whatever happens.

use std::io;
use std::time::Duration;

use tracing::{debug, warn};

/// The wait after the first failure in a row.
const MIN: Duration = Duration::from_millis(5);
/// The longest wait.
const MAX: Duration = Duration::from_secs(1);

/// What to do about failures of `accept(2)`: a listener survives them all.
///
/// A connection that died in the queue is passed over. Everything else (no descriptors, no memory)
/// only gets better with time, so the listener waits, longer each time. The first failure is logged,
/// and then each doubling.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    in_a_row: u32,
}

impl Failures {
    /// How long to wait before accepting again.
    pub(crate) fn failed(&mut self, error: &io::Error) -> Duration {
        if passing(error) {
            debug!(%error, "a connection was gone before it was accepted");
            return Duration::ZERO;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.in_a_row.is_power_of_two() {
            warn!(%error, failures = self.in_a_row, "cannot accept connections, will retry");
        }
        MIN.saturating_mul(1 << (self.in_a_row - 1).min(10)).min(MAX)
    }

    pub(crate) fn succeeded(&mut self) {
        self.in_a_row = 0;
    }
}

/// Errors of a connection, not of the listener (accept(2), "Error handling").
fn passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_waited_for_longer_each_time_and_a_lost_connection_not_at_all() {
        let shortage = io::Error::from(io::ErrorKind::OutOfMemory);
        let mut failures = Failures::default();
        let waits: Vec<_> = (0..10).map(|_| failures.failed(&shortage).as_millis()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(failures.failed(&io::ErrorKind::ConnectionAborted.into()), Duration::ZERO);
        failures.succeeded();
        assert_eq!(failures.failed(&shortage), MIN);
    }
}
