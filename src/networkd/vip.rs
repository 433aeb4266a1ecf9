//! Who has an address that wanders between control planes: an election by a lease of etcd's.
//!
//! Whoever makes the key under a lease of its own has the address, for as long as the lease is kept alive. etcd
//! counts a lease's time from when it hears of it; the holder counts a shorter time from *before* it asked
//! ([`HOLD`] of [`TTL`]). So the holder has given the address up before anybody else can have it: though answers
//! are lost or late, and though clocks differ by a tenth. The kernel is told the same end as the address's
//! lifetime, so that it also holds when this process stands still.
//!
//! ```text
//!            Campaign, Won               Renew: Lost, Failed; the time is over; no carrier
//!  Resting ────────────────▶ Holding ─────────────────────────────────────────────▶ Resting
//!     ▲  │ Taken, Failed                   (Drop, then Release)
//!     └──┘
//! ```

use std::time::Duration;

use crate::machine::Uptime;

/// How long etcd keeps the key of a holder that it does not hear of.
pub const TTL: Duration = Duration::from_secs(10);
/// How long a holder has the address after it last asked, and was answered that it has it.
pub const HOLD: Duration = Duration::from_secs(7);
/// From one asking of a holder to the next.
pub const RENEW: Duration = Duration::from_secs(2);
/// How long an answer is waited for: two in a row may be this late, and the holder still knows in time.
pub const LIMIT: Duration = Duration::from_millis(2500);
/// How long others look on before they ask again, and a part of it by chance.
const REST: Duration = Duration::from_secs(1);

/// A lease of etcd's.
pub type Lease = u64;

/// One node's part in the election. Owns no socket and reads no clock.
#[derive(Debug)]
pub struct Election {
    state: State,
    /// The link can carry it.
    running: bool,
    stopped: bool,
}

#[derive(Debug, PartialEq)]
enum State {
    Resting {
        /// When to campaign.
        until: Uptime,
    },
    Campaigning {
        asked_at: Uptime,
    },
    Holding {
        lease: Lease,
        /// `renew_at <= drop_at`.
        renew_at: Uptime,
        /// No longer than this.
        drop_at: Uptime,
        /// A renewal is on its way.
        asked_at: Option<Uptime>,
    },
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The link carries packets, or no longer does.
    Carrier(bool),
    /// etcd's answer to the last request, or that there was none.
    Answered(Answer),
    /// [`Election::wake_at`] is over.
    TimerFired,
    /// The address shall be given up, for good.
    Stopped,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The key is ours, under this lease.
    Won(Lease),
    /// Somebody else has it.
    Taken,
    /// Still ours, and the lease's time began anew.
    Kept,
    /// The key or the lease is gone.
    Lost,
    /// Nobody knows: etcd does not answer, or has no quorum.
    Failed,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the key under a new lease, if it is not there.
    Campaign,
    /// Keep this lease alive, and see whether the key is still ours.
    Renew(Lease),
    /// Have the address, no longer than this.
    Hold(Uptime),
    /// Give the address up, at once.
    Drop,
    /// End this lease, once the address is away: others need not wait.
    Release(Lease),
}

impl Election {
    /// A part that begins without the address, on a link that does not carry packets yet.
    #[must_use]
    pub fn new(now: Uptime) -> Self {
        Self { state: State::Resting { until: now }, running: false, stopped: false }
    }

    /// When [`Event::TimerFired`] is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Uptime> {
        match self.state {
            State::Resting { until } => (self.running && !self.stopped).then_some(until),
            State::Campaigning { .. } => None,
            State::Holding { renew_at, drop_at, asked_at, .. } => {
                Some(if asked_at.is_some() { drop_at } else { renew_at })
            }
        }
    }

    /// Whether it has the address.
    #[must_use]
    pub fn holds(&self) -> bool {
        matches!(self.state, State::Holding { .. })
    }

    /// What follows; `chance` keeps losers from asking all at once.
    pub fn handle(&mut self, now: Uptime, chance: u64, event: Event) -> Vec<Action> {
        let rest = State::Resting { until: now + REST + Duration::from_millis(chance % 500) };
        match event {
            Event::Carrier(running) => {
                self.running = running;
                if running { vec![] } else { self.give_up(rest) }
            }
            Event::Stopped => {
                self.stopped = true;
                self.give_up(rest)
            }
            Event::TimerFired => self.on_timer(now, rest),
            Event::Answered(answer) => self.on_answer(now, rest, answer),
        }
    }

    fn on_timer(&mut self, now: Uptime, rest: State) -> Vec<Action> {
        match &mut self.state {
            State::Resting { until } if self.running && !self.stopped && *until <= now => {
                self.state = State::Campaigning { asked_at: now };
                vec![Action::Campaign]
            }
            State::Holding { drop_at, .. } if *drop_at <= now => self.give_up(rest),
            State::Holding { lease, renew_at, asked_at: asked_at @ None, .. }
                if *renew_at <= now =>
            {
                *asked_at = Some(now);
                vec![Action::Renew(*lease)]
            }
            _ => vec![],
        }
    }

    fn on_answer(&mut self, now: Uptime, rest: State, answer: Answer) -> Vec<Action> {
        let asked = match self.state {
            State::Campaigning { asked_at } => Some(asked_at),
            State::Holding { asked_at, .. } => asked_at,
            State::Resting { .. } => None,
        };
        let held = asked.map(|asked_at| (asked_at + RENEW, asked_at + HOLD));
        let held = held.filter(|(_, drop_at)| *drop_at > now);
        match (answer, &self.state, held) {
            (Answer::Won(lease), State::Campaigning { .. }, Some((renew_at, drop_at)))
            | (Answer::Kept, &State::Holding { lease, .. }, Some((renew_at, drop_at))) => {
                self.state = State::Holding { lease, renew_at, drop_at, asked_at: None };
                vec![Action::Hold(drop_at)]
            }
            // Too late, or nobody wants it any more.
            (Answer::Won(lease), state, _) => {
                if matches!(state, State::Campaigning { .. }) {
                    self.state = rest;
                }
                vec![Action::Release(lease)]
            }
            (_, State::Holding { asked_at: Some(_), .. }, _) => self.give_up(rest),
            (_, State::Campaigning { .. }, _) => {
                self.state = rest;
                vec![]
            }
            // To a request of a time before.
            _ => vec![],
        }
    }

    fn give_up(&mut self, rest: State) -> Vec<Action> {
        match std::mem::replace(&mut self.state, rest) {
            State::Holding { lease, .. } => vec![Action::Drop, Action::Release(lease)],
            _ => vec![],
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
