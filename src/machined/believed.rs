//! Whom a node believes that was told no authority (spec §4.2): those it was told of at its first contact
//! with trustd. Kept beside the configuration, so that a node with a `STATE` volume has one first contact
//! in its life and not one at each boot.
//!
//! They belong to the hosts where trustd was looked for: a node that is sent elsewhere knows nobody there.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::Error;

/// Where it is kept.
pub(crate) const KEPT: &str = "/system/state/authorities.json";

/// The authorities of one cluster, and where to write them.
#[derive(Debug)]
pub(crate) struct Believed {
    path: PathBuf,
    met: Met,
}

#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
struct Met {
    hosts: Vec<String>,
    /// PEM.
    ca: String,
}

impl Believed {
    /// What an earlier boot has kept. What cannot be read is told, and is as good as nothing.
    pub(crate) fn load(path: &Path) -> Self {
        let met = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Met::default()),
            Err(error) => Err(error),
        };
        let met = met.unwrap_or_else(|error| {
            let path = path.display();
            warn!(%error, "cannot read {path}: the next trustd is met as if it were the first");
            Met::default()
        });
        Self { path: path.to_owned(), met }
    }

    /// The authorities known at these hosts, PEM; empty when there are none.
    pub(crate) fn at(&self, hosts: &[String]) -> &str {
        if self.met.hosts == hosts { &self.met.ca } else { "" }
    }

    /// Believes these from now on, and keeps them.
    pub(crate) fn learn(&mut self, hosts: &[String], ca: &str) -> Result<(), Error> {
        let met = Met { hosts: hosts.to_vec(), ca: ca.to_owned() };
        if met == self.met {
            return Ok(());
        }
        let kept = serde_json::to_vec(&met)
            .map_err(io::Error::from)
            .and_then(|bytes| orlop_rt::replace(&self.path, 0o600, &bytes));
        // Even one that cannot be kept holds until the node goes down.
        self.met = met;
        kept.map_err(|source| Error::file("write", &self.path, source))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn hosts(hosts: &[&str]) -> Vec<String> {
        hosts.iter().map(|host| (*host).to_owned()).collect()
    }

    #[test]
    fn the_first_contact_is_remembered_over_boots() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorities.json");
        let here = hosts(&["10.0.0.1"]);
        let mut first = Believed::load(&path);
        assert_eq!(first.at(&here), "");
        first.learn(&here, "A").unwrap();
        assert_eq!(first.at(&here), "A");
        let mut second = Believed::load(&path);
        assert_eq!(second.at(&here), "A");
        // The old authority and the new one, while they change.
        second.learn(&here, "BA").unwrap();
        assert_eq!(Believed::load(&path).at(&here), "BA");
    }

    #[test]
    fn a_node_that_is_sent_elsewhere_knows_nobody_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut believed = Believed::load(&folder.path().join("authorities.json"));
        believed.learn(&hosts(&["10.0.0.1"]), "A").unwrap();
        assert_eq!(believed.at(&hosts(&["10.0.0.2"])), "");
        assert_eq!(believed.at(&hosts(&[])), "");
    }

    #[test]
    fn what_cannot_be_read_is_passed_over_and_what_cannot_be_kept_holds_until_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorities.json");
        fs::write(&path, "{").unwrap();
        assert_eq!(Believed::load(&path).at(&hosts(&["10.0.0.1"])), "");
        let mut nowhere = Believed::load(&folder.path().join("no-folder/authorities.json"));
        let here = hosts(&["10.0.0.1"]);
        let error = nowhere.learn(&here, "A").unwrap_err();
        assert!(error.to_string().contains("no-folder"), "{error}");
        assert_eq!(nowhere.at(&here), "A");
    }
}
