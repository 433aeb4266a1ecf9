//! Keeps one stream as it is wanted: a target of it, or not. What is decided, [`Member`] decides.

use std::time::{Duration, Instant};

use orlop_rt::Backoff;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use crate::member::{Answer, Ask, Member, Next, Place, Status};
use crate::registry::Registry;
use crate::table::Name;

/// Between attempts to leave.
const LEAVE_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// After so long the registry has dropped an entry by itself.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// What is to be so.
#[derive(Clone, Debug, PartialEq)]
pub enum Want {
    /// A target of the stream.
    Member(Place),
    /// Not now.
    Nothing,
    /// Never again.
    Gone,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// As a target; `None`: it is none.
    pub status: Option<Status>,
    /// Nothing is left of it, or one attempt at that was made.
    pub left: bool,
}

impl Report {
    /// Of a stream that was not begun.
    pub const NOTHING: Self = Self { status: None, left: true };
}

/// Runs until it is to be [`Want::Gone`] and is, or whoever wants goes.
pub async fn run(
    name: Name,
    registry: Registry,
    mut want: watch::Receiver<Want>,
    told: watch::Sender<Report>,
) {
    let mut member: Option<(Member, Next)> = None;
    // It tries to have the same again.
    let mut identifier = None;
    loop {
        let wanted = want.borrow_and_update().clone();
        // The addresses are part of what it is known by, and the identifier may be too high now.
        let stays = match (&wanted, &mut member) {
            (Want::Member(place), Some((now, _))) => {
                now.place().ips == place.ips && now.resize(place.max)
            }
            _ => false,
        };
        match (wanted, &mut member) {
            (_, Some(_)) if stays => {}
            (Want::Member(place), None) => {
                let new = Member::new(place, identifier);
                let next = new.begin();
                member = Some((new, next));
            }
            (_, Some((old, _))) => {
                identifier = old.identifier();
                leave(&name, &registry, old, &mut want, &told).await;
                member = None;
                continue;
            }
            (Want::Gone, None) => return,
            (Want::Nothing, None) => {
                told.send_replace(Report::NOTHING);
                if want.changed().await.is_err() {
                    return;
                }
                continue;
            }
        }
        let Some((now, next)) = &mut member else { continue };
        told.send_replace(Report { status: Some(now.status()), left: false });
        let answer = tokio::select! {
            biased;
            changed = want.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            answer = perform(&name, &registry, now.place(), *next) => answer,
        };
        *next = now.answered(answer, Instant::now(), random());
    }
}

async fn perform(name: &Name, registry: &Registry, place: &Place, next: Next) -> Answer {
    let ask = match next {
        Next::Ask(ask) => ask,
        Next::AskAt(at, ask) => {
            sleep_until(at.into()).await;
            ask
        }
        Next::Watch(until, used) => {
            tokio::select! {
                () = sleep_until(until.into()) => {}
                () = registry.fewer(name, &place.ips, place.max, used) => {}
            }
            Ask::List
        }
    };
    registry.ask(name, &place.ips, ask).await
}

/// Unregisters. An attempt under way is not given up: whatever comes after it would be undone by it. Further ones are,
/// when it is wanted again.
async fn leave(
    name: &Name,
    registry: &Registry,
    member: &Member,
    want: &mut watch::Receiver<Want>,
    told: &watch::Sender<Report>,
) {
    let Some(ask) = member.leave() else {
        told.send_replace(Report::NOTHING);
        return;
    };
    let begun = Instant::now();
    let mut backoff = Backoff::new(LEAVE_AGAIN.0, LEAVE_AGAIN.1);
    loop {
        let answer = registry.ask(name, &member.place().ips, ask).await;
        told.send_replace(Report::NOTHING);
        let again = matches!(*want.borrow(), Want::Member(_));
        if answer == Answer::Done || again || begun.elapsed() > FORGOTTEN {
            return;
        }
        tokio::select! {
            () = sleep(backoff.next(random())) => {}
            changed = want.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Any number.
fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness all begin at the same: the registry still tells them apart.
    let _ = SystemRandom::new().fill(&mut bytes);
    u32::from_le_bytes(bytes)
}
