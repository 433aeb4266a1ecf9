//! What waits for one destination, and when to try it. Pure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_rt::Backoff;

/// What waits at most; then the oldest goes. A busy node writes as much in a minute.
pub(super) const QUEUE_BYTES: usize = 512 << 10;
/// What is sent at once.
const BATCH_BYTES: usize = 32 << 10;
/// Tries to reach a destination that does not answer.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// A message, shared by all destinations.
pub(super) type Message = Arc<[u8]>;

/// ```text
/// Down --Connect--> connected() --> Up --Send--> sent()
///  ^                                 |
///  `---- Rest until, again <-- failed()
/// ```
#[derive(Debug)]
pub(super) struct Link {
    queue: VecDeque<Message>,
    queued_bytes: usize,
    state: State,
    backoff: Backoff,
    pub(super) sent_bytes: u64,
    pub(super) dropped_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down,
    Up,
    Resting { until: Instant },
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: wait for messages.
    Idle,
    Connect,
    /// These leave the queue; [`Link::sent`] or [`Link::failed`] says what became of them.
    Send(VecDeque<Message>),
    /// Wait until then.
    Rest(Instant),
}

impl Link {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            state: State::Down,
            backoff: Backoff::new(RETRY_MIN, RETRY_MAX),
            sent_bytes: 0,
            dropped_bytes: 0,
        }
    }

    /// Whether the last try reached the destination.
    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    pub(super) fn push(&mut self, message: Message) {
        self.queued_bytes += message.len();
        self.queue.push_back(message);
        self.drop_oldest();
    }

    pub(super) fn step(&mut self, now: Instant) -> Step {
        match self.state {
            _ if self.queue.is_empty() => Step::Idle,
            State::Resting { until } if until > now => Step::Rest(until),
            State::Down | State::Resting { .. } => Step::Connect,
            State::Up => Step::Send(self.batch()),
        }
    }

    pub(super) fn connected(&mut self) {
        self.state = State::Up;
    }

    /// All of a batch has gone; only that proves that somebody takes them.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
        self.backoff.reset();
    }

    /// The connection is no more, or there was none; `unsent` come first next time.
    pub(super) fn failed(&mut self, unsent: VecDeque<Message>, now: Instant, random: u32) {
        for message in unsent.into_iter().rev() {
            self.queued_bytes += message.len();
            self.queue.push_front(message);
        }
        self.drop_oldest();
        self.state = State::Resting { until: now + self.backoff.next(random) };
    }

    /// At least one message, and not more than are sent at once.
    fn batch(&mut self) -> VecDeque<Message> {
        let (mut count, mut bytes) = (0, 0);
        for message in &self.queue {
            if count > 0 && bytes + message.len() > BATCH_BYTES {
                break;
            }
            (count, bytes) = (count + 1, bytes + message.len());
        }
        self.queued_bytes -= bytes;
        let rest = self.queue.split_off(count);
        std::mem::replace(&mut self.queue, rest)
    }

    fn drop_oldest(&mut self) {
        while self.queued_bytes > QUEUE_BYTES {
            let Some(oldest) = self.queue.pop_front() else { return };
            self.queued_bytes -= oldest.len();
            self.dropped_bytes += oldest.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(number: usize, length: usize) -> Message {
        let mut bytes = number.to_string().into_bytes();
        bytes.resize(length, b' ');
        bytes.into()
    }

    fn number(message: &[u8]) -> usize {
        String::from_utf8_lossy(message).trim().parse().unwrap_or(usize::MAX)
    }

    #[test]
    fn a_destination_that_is_away_is_tried_less_and_less_often() {
        let mut now = Instant::now();
        let mut link = Link::new();
        assert_eq!(link.step(now), Step::Idle);
        link.push(message(0, 10));
        let mut rests = Vec::new();
        for _ in 0..8 {
            assert_eq!(link.step(now), Step::Connect);
            link.failed(VecDeque::new(), now, 0);
            let Step::Rest(until) = link.step(now) else { panic!("no rest") };
            rests.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 60, 60]);
        link.connected();
        let Step::Send(batch) = link.step(now) else { panic!("nothing to send") };
        // Taken and hung up on: that was no success.
        link.failed(batch, now, 0);
        assert_eq!(link.step(now), Step::Rest(now + Duration::from_secs(60)));
        now += Duration::from_secs(60);
        assert_eq!(link.step(now), Step::Connect);
        link.connected();
        let Step::Send(batch) = link.step(now) else { panic!("nothing to send") };
        link.sent(batch.iter().map(|message| message.len()).sum());
        assert_eq!((link.step(now), link.is_up()), (Step::Idle, true));
        link.failed(VecDeque::new(), now, 0);
        link.push(message(1, 10));
        assert_eq!(link.step(now), Step::Rest(now + Duration::from_secs(1)));
        assert_eq!((link.sent_bytes, link.dropped_bytes), (10, 0));
    }

    #[test]
    fn a_batch_is_as_large_as_it_may_be_and_one_message_at_least() {
        let now = Instant::now();
        let mut link = Link::new();
        link.connected();
        link.push(message(0, 40 << 10));
        (1..100).for_each(|i| link.push(message(i, 1000)));
        let mut sizes = Vec::new();
        while let Step::Send(batch) = link.step(now) {
            sizes.push(batch.len());
        }
        assert_eq!(sizes, [1, 32, 32, 32, 3]);
    }

    proptest! {
        /// Whatever happens: messages leave in order, each at most once, and what does not leave was
        /// counted; memory is bounded.
        #[test]
        fn order_holds_and_losses_are_counted(
            events in proptest::collection::vec((0_u8..4, 1_usize..50_000, 0_usize..5), 0..200),
        ) {
            let mut now = Instant::now();
            let mut link = Link::new();
            let (mut pushed, mut pushed_bytes, mut arrived) = (0, 0, Vec::new());
            for (kind, length, keep) in events {
                match (kind, link.step(now)) {
                    (0 | 1, step) => {
                        // Put back what the look has taken.
                        if let Step::Send(batch) = step {
                            link.failed(batch, now, 0);
                        }
                        let new = message(pushed, length.max(8));
                        pushed_bytes += new.len() as u64;
                        link.push(new);
                        pushed += 1;
                    }
                    (_, Step::Idle) => {}
                    (2, Step::Connect) => link.failed(VecDeque::new(), now, 7),
                    (_, Step::Connect) => link.connected(),
                    (_, Step::Rest(until)) => now = until,
                    (_, Step::Send(mut batch)) => {
                        let gone: Vec<_> = batch.drain(..keep.min(batch.len())).collect();
                        link.sent(gone.iter().map(|message| message.len()).sum());
                        arrived.extend(gone.iter().map(|message| number(message)));
                        link.failed(batch, now, 3);
                    }
                }
                prop_assert!(link.queued_bytes <= QUEUE_BYTES);
                let queued: usize = link.queue.iter().map(|message| message.len()).sum();
                prop_assert_eq!(queued, link.queued_bytes);
            }
            prop_assert!(arrived.is_sorted_by(|a, b| a < b), "{:?}", arrived);
            let all = link.sent_bytes + link.dropped_bytes + link.queued_bytes as u64;
            prop_assert_eq!(all, pushed_bytes);
        }
    }
}
