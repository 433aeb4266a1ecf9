//! When the loops are left to a kube-controller-manager: as long as one holds its lease.

use std::time::{Duration, Instant};

use crate::object::{Object, at, text};

/// How long a lease is held whose holder does not say it.
const USUAL: Duration = Duration::from_secs(15);

/// Follows the Lease `kube-system/kube-controller-manager`. As its contenders do, it counts from when it saw the lease
/// change, and compares no clocks.
#[derive(Debug, Default)]
pub struct Gate {
    renewed: String,
    holder: String,
    until: Option<Instant>,
}

impl Gate {
    /// Takes in the lease as it is.
    pub fn observe(&mut self, lease: Option<&Object>, now: Instant) {
        let field = |pointer| lease.map_or("", |lease| text(lease, pointer));
        let (holder, renewed) = (field("/spec/holderIdentity"), field("/spec/renewTime"));
        if holder.is_empty() {
            *self = Self::default();
            return;
        }
        if holder == self.holder && renewed == self.renewed && self.until.is_some() {
            return;
        }
        let seconds = lease.and_then(|lease| at(lease, "/spec/leaseDurationSeconds")?.as_u64());
        let long = seconds.map_or(USUAL, Duration::from_secs);
        *self = Self {
            renewed: renewed.to_owned(),
            holder: holder.to_owned(),
            until: Some(now + long),
        };
    }

    /// Until when the loops are somebody else's, if nothing happens.
    #[must_use]
    pub fn held_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lease(holder: &str, renewed: &str, seconds: u64) -> Object {
        let spec = json!({"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": seconds});
        match json!({"spec": spec}) {
            Value::Object(lease) => lease,
            _ => unreachable!("it is an object"),
        }
    }

    #[test]
    fn the_loops_are_left_to_whoever_renews_the_lease() {
        let start = Instant::now();
        let s = |seconds| start + Duration::from_secs(seconds);
        let mut gate = Gate::default();
        gate.observe(None, s(0));
        assert_eq!(gate.held_until(s(0)), None);
        gate.observe(Some(&lease("m", "1", 15)), s(0));
        assert_eq!(gate.held_until(s(0)), Some(s(15)));
        gate.observe(Some(&lease("m", "1", 15)), s(10));
        assert_eq!(gate.held_until(s(14)), Some(s(15)), "it was not renewed");
        gate.observe(Some(&lease("m", "2", 15)), s(14));
        assert_eq!(gate.held_until(s(28)), Some(s(29)));
        assert_eq!(gate.held_until(s(29)), None, "its holder is dead");
        gate.observe(Some(&lease("m", "2", 15)), s(30));
        assert_eq!(gate.held_until(s(30)), None);
        gate.observe(Some(&lease("n", "3", 15)), s(31));
        assert_eq!(gate.held_until(s(31)), Some(s(46)));
        gate.observe(Some(&lease("", "4", 1)), s(32));
        assert_eq!(gate.held_until(s(32)), None, "it was given back");
    }
}
