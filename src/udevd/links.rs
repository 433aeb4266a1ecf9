//! Which links there are below `/dev`, and where each leads. Pure.
//!
//! Several devices may claim one link: a snapshot has the UUID of what it was taken from. The highest
//! priority wins, among equals who came first; when the winner goes, the next one takes over.

use std::collections::{BTreeMap, BTreeSet};

/// Every claim of every device.
#[derive(Debug, Default)]
pub struct Links {
    claims: BTreeMap<String, Vec<Claim>>,
    devices: BTreeMap<String, BTreeSet<String>>,
}

/// That a device wants a link.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    device: String,
    /// Its node below `/dev`.
    node: String,
    priority: i32,
}

/// What to do below `/dev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make or replace a link.
    Point {
        /// Below `/dev`.
        link: String,
        /// Where it leads, below `/dev`.
        node: String,
    },
    /// Nobody claims it any more.
    Remove {
        /// Below `/dev`.
        link: String,
    },
}

impl Links {
    /// A device (by its id, with its node) claims these links, and none else from here on. The links
    /// it claimed before are pointed to again as well: somebody else may have changed them.
    pub fn claim(
        &mut self,
        device: &str,
        node: &str,
        priority: i32,
        links: impl IntoIterator<Item = String>,
    ) -> Vec<Step> {
        // A name from a label must not lead elsewhere, nor take the place of a folder.
        let links: BTreeSet<String> = links.into_iter().filter(|link| sound(link)).collect();
        let before = match links.is_empty() {
            true => self.devices.remove(device),
            false => self.devices.insert(device.to_owned(), links.clone()),
        };
        for link in &links {
            let claim = Claim { device: device.to_owned(), node: node.to_owned(), priority };
            let claims = self.claims.entry(link.clone()).or_default();
            match claims.iter_mut().find(|earlier| earlier.device == device) {
                Some(earlier) => *earlier = claim,
                None => claims.push(claim),
            }
        }
        let given_up = before.unwrap_or_default().difference(&links).cloned().collect::<Vec<_>>();
        for link in &given_up {
            if let Some(claims) = self.claims.get_mut(link) {
                claims.retain(|claim| claim.device != device);
            }
        }
        links.into_iter().chain(given_up).map(|link| self.step(link)).collect()
    }

    /// A device is gone.
    pub fn release(&mut self, device: &str) -> Vec<Step> {
        self.claim(device, "", 0, [])
    }

    /// How many links lead somewhere.
    #[must_use]
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    fn step(&mut self, link: String) -> Step {
        let claims = self.claims.get(&link).map(Vec::as_slice).unwrap_or_default();
        // The first of those with the highest priority.
        let winner = claims.iter().rev().max_by_key(|claim| claim.priority);
        match winner.map(|claim| claim.node.clone()) {
            Some(node) => Step::Point { link, node },
            None => {
                self.claims.remove(&link);
                Step::Remove { link }
            }
        }
    }
}

fn sound(link: &str) -> bool {
    link.len() < 512 && link.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(links: &mut Links, device: &str, priority: i32, names: &[&str]) -> Vec<Step> {
        links.claim(device, device, priority, names.iter().map(|name| (*name).to_owned()))
    }

    fn point(link: &str, node: &str) -> Step {
        Step::Point { link: link.to_owned(), node: node.to_owned() }
    }

    #[test]
    fn the_higher_priority_wins_and_the_other_takes_over() {
        let mut links = Links::default();
        assert_eq!(claim(&mut links, "sda", 0, &["uuid"]), [point("uuid", "sda")]);
        assert_eq!(claim(&mut links, "sdb", 0, &["uuid"]), [point("uuid", "sda")]);
        assert_eq!(claim(&mut links, "dm-0", 50, &["uuid"]), [point("uuid", "dm-0")]);
        assert_eq!(links.release("dm-0"), [point("uuid", "sda")]);
        assert_eq!(links.release("sda"), [point("uuid", "sdb")]);
        assert_eq!(links.release("sdb"), [Step::Remove { link: "uuid".to_owned() }]);
        assert!(links.is_empty());
    }

    #[test]
    fn a_label_that_is_gone_loses_its_link() {
        let mut links = Links::default();
        claim(&mut links, "sda", 0, &["label/OLD", "path"]);
        assert_eq!(
            claim(&mut links, "sda", 0, &["label/NEW", "path"]),
            [
                point("label/NEW", "sda"),
                point("path", "sda"),
                Step::Remove { link: "label/OLD".to_owned() }
            ]
        );
    }

    #[test]
    fn a_label_leads_nowhere_else() {
        let mut links = Links::default();
        for name in ["disk/by-label/..", "disk/by-label/.", "disk/by-label/", "/etc/passwd"] {
            assert_eq!(claim(&mut links, "sda", 0, &[name]), []);
        }
    }

    proptest! {
        /// However devices come and go, each link leads to a best claim, as the steps left it.
        #[test]
        fn the_steps_lead_to_what_the_claims_say(
            events in proptest::collection::vec((0u8..4, -1i32..2, proptest::collection::btree_set("[ab]", 0..3)), 0..30),
        ) {
            let mut links = Links::default();
            let (mut disk, mut wanted) = (BTreeMap::new(), BTreeMap::new());
            for (device, priority, names) in events {
                let device = format!("sd{device}");
                for step in links.claim(&device, &device, priority, names.clone()) {
                    match step {
                        Step::Point { link, node } => drop(disk.insert(link, node)),
                        Step::Remove { link } => drop(disk.remove(&link)),
                    }
                }
                wanted.insert(device, (priority, names));
                for link in ["a", "b"] {
                    let claims = wanted.iter().filter(|(_, (_, names))| names.contains(link));
                    let best = claims.map(|(_, (priority, _))| *priority).max();
                    let got = disk.get(link).map(|node| wanted[node].0);
                    prop_assert_eq!(best, got, "{}", link);
                }
            }
        }
    }
}
