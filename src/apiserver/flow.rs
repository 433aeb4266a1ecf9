//! How much is done at a time: so many requests that read, so many that write; the next is told to come back in a second
//! (spec of the server, §1.4). What takes as long as the client likes is not counted among them; watches have a limit of
//! their own, for the memory they take. `system:masters` always get in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::authz::MASTERS;
use crate::object::User;
use crate::request::Info;
use crate::status::Status;

/// `--max-requests-inflight` unless set.
pub const READING: usize = 400;
/// `--max-mutating-requests-inflight` unless set.
pub const MUTATING: usize = 200;

/// Watches at a time: those of some thousand nodes.
pub const WATCHES: usize = 50_000;

/// The limits, and who is inside.
#[derive(Debug)]
pub struct Flow {
    reading: Arc<Lane>,
    mutating: Arc<Lane>,
    watching: Arc<Lane>,
}

#[derive(Debug)]
struct Lane {
    /// 0: no limit.
    limit: usize,
    inside: AtomicUsize,
}

/// A place; it is free again when this is dropped.
#[derive(Debug)]
pub struct Place(Arc<Lane>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Flow {
    /// Requests that read and that write at a time; 0 is no limit.
    #[must_use]
    pub fn new(reading: usize, mutating: usize) -> Self {
        let lane = |limit| Arc::new(Lane { limit, inside: AtomicUsize::new(0) });
        Self { reading: lane(reading), mutating: lane(mutating), watching: lane(WATCHES) }
    }

    /// A place for a request, until it is answered; None for one that needs none.
    ///
    /// # Errors
    /// 429 when there is none.
    pub fn enter(&self, user: &User, info: &Info<'_>) -> Result<Option<Place>, Status> {
        let lane = match info.verb {
            "watch" => &self.watching,
            _ if long_running(info) => return Ok(None),
            _ if reads(info) => &self.reading,
            _ => &self.mutating,
        };
        let before = lane.inside.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(lane));
        let full = lane.limit > 0 && before >= lane.limit;
        // Who must be able to mend a cluster that is overrun is not kept out by it.
        if full && !user.is_in(MASTERS) {
            return Err(Status::too_many_requests());
        }
        Ok(Some(place))
    }

    /// How many are inside: those that read, those that write.
    #[must_use]
    pub fn inside(&self) -> (usize, usize) {
        let inside = |lane: &Lane| lane.inside.load(Ordering::Relaxed);
        (inside(&self.reading), inside(&self.mutating))
    }
}

/// Does it take as long as the client likes? Such a request has no deadline, and takes no place among those that end.
#[must_use]
pub fn long_running(info: &Info<'_>) -> bool {
    let sub = info.resource.map_or("", |asked| asked.subresource);
    info.verb == "watch" || matches!(sub, "attach" | "exec" | "log" | "portforward" | "proxy")
}

fn reads(info: &Info<'_>) -> bool {
    matches!(info.verb, "get" | "list" | "watch" | "head" | "options")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::info;

    #[test]
    fn each_lane_has_its_limit_and_a_place_is_free_again() {
        let flow = Flow::new(2, 1);
        let user = User::default();
        let get = info("GET", "/api/v1/namespaces/a/pods/x", &[]);
        let put = info("PUT", "/api/v1/namespaces/a/pods/x", &[]);
        let enter = |info| flow.enter(&user, info);
        let (first, second) = (enter(&get).expect("free"), enter(&get).expect("free"));
        let refused = enter(&get).expect_err("it is full");
        assert_eq!((refused.code, refused.details.retry_after_seconds), (429, 1));
        assert_eq!(flow.inside(), (2, 0), "who is refused leaves");
        let write = enter(&put).expect("the other lane is free");
        assert!(enter(&put).is_err());
        drop((first, write));
        assert_eq!(flow.inside(), (1, 0));
        assert!(enter(&get).is_ok() && enter(&put).is_ok());
        drop(second);
        assert_eq!(flow.inside(), (0, 0));
    }

    #[test]
    fn masters_and_what_runs_long_are_not_held_up() {
        let flow = Flow::new(1, 1);
        let root = User { groups: vec![MASTERS.to_owned()], ..User::default() };
        let list = info("GET", "/api/v1/pods", &[]);
        let places: Vec<_> = (0..3).map(|_| flow.enter(&root, &list).expect("always")).collect();
        assert_eq!(flow.inside(), (3, 0));
        assert!(flow.enter(&User::default(), &list).is_err());
        drop(places);
        for (method, path, query) in [
            ("GET", "/api/v1/pods", &[("watch", "1")][..]),
            ("GET", "/api/v1/namespaces/a/pods/x/log", &[]),
            ("POST", "/api/v1/namespaces/a/pods/x/exec", &[]),
        ] {
            assert!(long_running(&info(method, path, query)), "{path}");
            let place = flow.enter(&User::default(), &info(method, path, query));
            place.expect("it is not held up");
            assert_eq!(flow.inside(), (0, 0));
        }
        let unlimited = Flow::new(0, 0);
        let all: Vec<_> = (0..1000).map(|_| unlimited.enter(&User::default(), &list)).collect();
        assert!(all.iter().all(Result::is_ok));
    }

    #[test]
    fn watches_are_so_many_and_no_more() {
        let watch = info("GET", "/api/v1/pods", &[("watch", "1")]);
        let (anybody, root) =
            (User::default(), User { groups: vec![MASTERS.to_owned()], ..User::default() });
        let watching = Arc::new(Lane { limit: 2, inside: AtomicUsize::new(0) });
        let flow = Flow { watching, ..Flow::new(1, 1) };
        let places: Vec<_> = (0..2).map(|_| flow.enter(&anybody, &watch).expect("free")).collect();
        let refused = flow.enter(&anybody, &watch).expect_err("there are too many");
        assert_eq!((refused.code, refused.details.retry_after_seconds), (429, 1));
        assert!(flow.enter(&root, &watch).is_ok());
        assert!(flow.enter(&anybody, &info("GET", "/api/v1/pods", &[])).is_ok(), "lists go on");
        drop(places);
        assert!(flow.enter(&anybody, &watch).is_ok());
    }
}
