//! How a control plane becomes a member of a cluster there is (spec §11.3). Pure: time and randomness are
//! passed in.
//!
//! A try asks a control plane who the members are, and to take this node in ([`step`]). Tries are 3 s ± 1 s
//! apart, for 3 min; then the service fails, and its restart begins anew.

use std::time::{Duration, Instant};

use orlop_proto::etcd::Member;

use super::launch::Identity;

/// How long one try may take.
pub const TRY_LIMIT: Duration = Duration::from_secs(30);
/// All tries together.
const LIMIT: Duration = Duration::from_secs(3 * 60);
/// Between two tries at least, and how much more at most.
const PAUSE: Duration = Duration::from_secs(2);
const JITTER_MS: u32 = 2000;

/// Names and peer URLs of all members.
pub type Cluster = Vec<(String, String)>;

/// The tries of one start.
#[derive(Clone, Copy, Debug)]
pub struct Join {
    end: Instant,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The wait is over, or it begins.
    Due,
    /// The try failed.
    Failed(String),
    /// The node is a member.
    Joined(Cluster),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Try, for at most [`TRY_LIMIT`].
    Try,
    /// Wait, then [`Event::Due`].
    WakeAt(Instant),
    /// Start etcd in this cluster.
    Start(Cluster),
    /// Fail, for this reason.
    GiveUp(String),
}

impl Join {
    /// Begins.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { end: now + LIMIT }
    }

    /// What follows of `event`.
    #[must_use]
    pub fn handle(self, now: Instant, random: u32, event: Event) -> Action {
        match event {
            Event::Due => Action::Try,
            Event::Joined(cluster) => Action::Start(cluster),
            Event::Failed(why) => {
                let jitter = Duration::from_millis(u64::from(random % (JITTER_MS + 1)));
                let next = now + PAUSE + jitter;
                if next > self.end { Action::GiveUp(why) } else { Action::WakeAt(next) }
            }
        }
    }
}

/// What a try does next, the members known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask for being taken in.
    Add,
    /// Nothing: the node is a member that has not started yet.
    Done(Cluster),
    /// The member of that address has started before, and its data are not here.
    Lost(u64),
}

/// What a try does next.
#[must_use]
pub fn step(members: &[Member], own: &Identity) -> Step {
    let url = own.peer_url();
    match members.iter().find(|member| member.peer_urls.contains(&url)) {
        None => Step::Add,
        Some(member) if member.name.is_empty() => Step::Done(cluster(members, own)),
        Some(member) => Step::Lost(member.id),
    }
}

/// All members, as etcd is told them. Who has not started yet has no name: ours is known, the others' are of
/// no consequence, but there must be some.
#[must_use]
pub fn cluster(members: &[Member], own: &Identity) -> Cluster {
    let url = own.peer_url();
    let mut cluster = Vec::new();
    for member in members {
        let name = match &*member.name {
            _ if member.peer_urls.contains(&url) => own.name.clone(),
            "" => format!("{:x}", member.id),
            name => name.to_owned(),
        };
        cluster.extend(member.peer_urls.iter().map(|url| (name.clone(), url.clone())));
    }
    cluster
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str, host: &str) -> Member {
        Member {
            id,
            name: name.to_owned(),
            peer_urls: vec![format!("https://{host}:2380")],
            ..Member::default()
        }
    }

    fn own() -> Identity {
        Identity { name: "three".to_owned(), address: [10, 0, 0, 3].into() }
    }

    #[test]
    fn who_is_no_member_asks_and_who_is_one_starts() {
        let others = [member(1, "one", "10.0.0.1"), member(2, "", "10.0.0.2")];
        assert_eq!(step(&others, &own()), Step::Add);
        let [one, two] = others;
        let all = [one.clone(), two.clone(), member(3, "", "10.0.0.3")];
        let expected: Cluster = [("one", 1), ("2", 2), ("three", 3)]
            .map(|(name, host)| (name.to_owned(), format!("https://10.0.0.{host}:2380")))
            .into();
        assert_eq!(step(&all, &own()), Step::Done(expected));
        // The member has data somewhere, which are not here.
        assert_eq!(step(&[one, two, member(3, "three", "10.0.0.3")], &own()), Step::Lost(3));
    }

    #[test]
    fn tries_are_three_seconds_apart_for_three_minutes() {
        let start = Instant::now();
        for random in [0, 1000, 2000, u32::MAX] {
            let join = Join::new(start);
            let (mut now, mut tries) = (start, 0);
            loop {
                assert_eq!(join.handle(now, random, Event::Due), Action::Try);
                tries += 1;
                match join.handle(now, random, Event::Failed("no".to_owned())) {
                    Action::WakeAt(next) => {
                        let pause = next - now;
                        assert!(pause >= PAUSE && pause <= 2 * PAUSE, "{pause:?}");
                        now = next;
                    }
                    Action::GiveUp(why) => {
                        assert_eq!(why, "no");
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert!(now <= start + LIMIT && now >= start + LIMIT - 2 * PAUSE, "{:?}", now - start);
            assert!((45..=91).contains(&tries), "{tries}");
        }
        let cluster: Cluster = vec![("a".to_owned(), "b".to_owned())];
        // However late: it is a member now.
        let late = start + 2 * LIMIT;
        let action = Join::new(start).handle(late, 0, Event::Joined(cluster.clone()));
        assert_eq!(action, Action::Start(cluster));
    }
}
