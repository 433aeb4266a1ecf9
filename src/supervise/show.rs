//! Logs for somebody who watches all of them at once: every line, with the service it is of.

use std::collections::BTreeMap;

use orlop_rt::CancellationToken;

use crate::forward::Lines;
use crate::log::{Logs, Reader};

/// Read of one ring before the next has its turn.
const BATCH: usize = 32 << 10;

impl Logs {
    /// Hands over every line that is written from now on, without its end, until `shutdown`. Those of
    /// one service come in order. What `each` does must not wait; a service that writes faster than
    /// lines are handed over loses some.
    pub async fn show(self, mut each: impl FnMut(&str, &[u8]), shutdown: CancellationToken) {
        let mut written = self.written.subscribe();
        // What is there already is not new; a log that is made later is, all of it.
        let begin =
            |id: String| Some((id.clone(), (self.get(&id)?.read(Some(0)), Lines::default())));
        let mut all: BTreeMap<String, (Reader, Lines)> =
            self.ids().into_iter().filter_map(begin).collect();
        loop {
            // Marked as seen before the round, so that a write in between is not missed.
            written.borrow_and_update();
            let mut more = false;
            for id in self.ids() {
                let Some(log) = self.get(&id) else { continue };
                let new = || (log.read_all(), Lines::default());
                let (reader, lines) = all.entry(id.clone()).or_insert_with(new);
                let bytes = reader.available(BATCH);
                more |= bytes.len() == BATCH;
                lines.feed(&bytes, |line| each(&id, line));
            }
            if more {
                tokio::task::yield_now().await;
            } else {
                // The sender is in `self`. Cancel-safe.
                tokio::select! {
                    _ = written.changed() => {}
                    () = shutdown.cancelled() => {}
                }
            }
            if shutdown.is_cancelled() {
                return;
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn lines_from_now_on_are_shown_with_their_service() {
        let logs = Logs::default();
        logs.register("old").write(b"before\nhalf");
        let (shown, mut lines) = mpsc::channel(8);
        let end = CancellationToken::new();
        let each = move |id: &str, line: &[u8]| {
            shown.try_send(format!("{id} {}", String::from_utf8_lossy(line))).unwrap();
        };
        let mut showing = Box::pin(logs.clone().show(each, end.clone()));
        // As far as it goes by itself: then it watches.
        assert!(futures_util::poll!(&mut showing).is_pending());
        logs.register("old").write(b" a line\n");
        logs.register("new").write(b"first\nsecond\nrest");
        let mut next = async || {
            tokio::select! {
                () = &mut showing => panic!("it ends by itself"),
                line = lines.recv() => line.unwrap(),
            }
        };
        assert_eq!(
            [next().await, next().await, next().await],
            ["new first", "new second", "old  a line"]
        );
        end.cancel();
        showing.await;
        assert!(lines.recv().await.is_none());
    }
}
