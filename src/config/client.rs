//! The client configuration, `talosconfig` (spec/node-api §3.1): where the nodes of each cluster are,
//! and what to show them. [`parse`] is pure; [`Configuration::read`] and [`Configuration::write`]
//! are the two that touch the file, which is its owner's only.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use orlop_pki::Secret;
use serde::{Deserialize, Serialize};

use crate::document::{Text, to_yaml};
use crate::problem::Problems;
use crate::value::{pem, secret_pem};

/// What a client configuration holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Configuration {
    /// Name of the current context; empty when there is none.
    pub context: String,
    /// By name.
    pub contexts: BTreeMap<String, Context>,
}

/// One cluster, and who we are to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "Written")]
pub struct Context {
    /// Where apid is dialled: addresses or names, with or without port.
    pub endpoints: Vec<String>,
    /// The nodes that are meant when none are given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// PEM of the machines' authorities.
    #[serde(with = "pem")]
    pub ca: String,
    /// PEM of our certificate.
    #[serde(with = "pem")]
    pub crt: String,
    /// PEM of its key; empty when there is none.
    #[serde(serialize_with = "secret_pem::serialize_one")]
    pub key: Secret,
}

/// A context as it may be written, with what old tools wrote.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    /// Old: one more endpoint.
    target: Option<String>,
    endpoints: Vec<String>,
    nodes: Vec<String>,
    #[serde(with = "pem")]
    ca: String,
    #[serde(with = "pem")]
    crt: String,
    #[serde(with = "secret_pem")]
    key: Option<Secret>,
}

impl From<Written> for Context {
    fn from(written: Written) -> Self {
        let Written { target, mut endpoints, nodes, ca, crt, key } = written;
        endpoints.extend(target.filter(|target| !target.is_empty()));
        Self { endpoints, nodes, ca, crt, key: key.unwrap_or_default() }
    }
}

/// Why a client configuration cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there.
    #[error("there is no client configuration at {}", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("{operation} client configuration {}", path.display())]
    File {
        /// `read` or `write`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its content is wrong; the message names file, line and column.
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Reads the text of a client configuration; `file` is what its owner calls it.
///
/// # Errors
/// All problems found; of syntax errors, the first.
pub fn parse(file: &str, text: &str) -> Result<Configuration, Problems> {
    Text::new(file, text)?.read(0, |_| Vec::new())
}

impl Configuration {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is missing, cannot be read, or its content is wrong.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { path: path.to_owned() },
            _ => Error::File { operation: "read", path: path.to_owned(), source },
        })?;
        Ok(parse(&path.display().to_string(), &text)?)
    }

    /// Writes a file of mode 0600, in a folder that is made with mode 0700 when it is missing.
    ///
    /// # Errors
    /// When it cannot be written; what was there before is whole then.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        replace(path, &self.to_yaml()).map_err(|source| Error::File {
            operation: "write",
            path: path.to_owned(),
            source,
        })
    }

    /// Writes it as YAML that [`parse`] reads as the same value. It contains keys.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        to_yaml(self)
    }

    /// Takes over all contexts of another configuration, and its current one as current. A name that
    /// exists gets the suffix `-1`, `-2`, …; the renamed ones are returned, old name first.
    pub fn merge(&mut self, other: Self) -> Vec<(String, String)> {
        let mut renamed = Vec::new();
        for (name, context) in other.contexts {
            let mut free = name.clone();
            let mut suffix = 0u32;
            while self.contexts.contains_key(&free) {
                suffix += 1;
                free = format!("{name}-{suffix}");
            }
            if name == other.context {
                self.context.clone_from(&free);
            }
            self.contexts.insert(free.clone(), context);
            if free != name {
                renamed.push((name, free));
            }
        }
        renamed
    }
}

/// A reader sees the old file or the new one, and either is private.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    orlop_rt::replace(path, 0o600, text.as_bytes())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    fn sample() -> Configuration {
        let context = Context {
            endpoints: vec!["10.0.0.2".to_owned(), "[fd00::2]:50001".to_owned()],
            nodes: vec!["10.0.0.3".to_owned()],
            ca: PEM.to_owned(),
            crt: PEM.to_owned(),
            key: Secret::new(PEM.replace("CERTIFICATE", "ED25519 PRIVATE KEY")),
        };
        let contexts = [("trial".to_owned(), context), ("other".to_owned(), Context::default())];
        Configuration { context: "trial".to_owned(), contexts: contexts.into() }
    }

    #[test]
    fn what_is_written_is_read_and_is_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".talos/config");
        assert!(matches!(Configuration::read(&path), Err(Error::Missing { .. })));
        for configuration in [Configuration::default(), sample()] {
            configuration.write(&path).unwrap();
            assert_eq!(Configuration::read(&path).unwrap(), configuration);
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
        assert!(!format!("{:?}", sample()).contains("PRIVATE KEY"));
    }

    #[test]
    fn an_empty_file_and_an_old_target_are_understood() {
        for text in ["", "context: \"\"\ncontexts: {}\n", "contexts:\n"] {
            assert_eq!(parse("c", text).unwrap(), Configuration::default(), "{text}");
        }
        let old = "contexts: {a: {target: 10.0.0.9, endpoints: [10.0.0.8]}}";
        assert_eq!(parse("c", old).unwrap().contexts["a"].endpoints, ["10.0.0.8", "10.0.0.9"]);
    }

    #[test]
    fn each_wrong_key_is_named_and_none_is_shown() {
        let text = "context: a\ncontexts:\n  a:\n    endpoint: [x]\n    ca: '!'\n    crt: c2VjcmV0\n    key: 5\n";
        let expected = "c:4:5: contexts.a.endpoint: unknown field; did you mean `endpoints`?\n\
            c:5:5: contexts.a.ca: must be base64 of PEM text\n\
            c:6:5: contexts.a.crt: must be base64 of PEM text\n\
            c:7:5: contexts.a.key: expected text (what is there is a secret and not shown)";
        assert_eq!(parse("c", text).unwrap_err().to_string(), expected);
    }

    #[test]
    fn merging_renames_what_exists_and_changes_the_current_context() {
        let mut configuration = sample();
        assert_eq!(configuration.merge(Configuration::default()), []);
        assert_eq!(configuration.context, "trial");
        let renamed = |old: &str, new: &str| (old.to_owned(), new.to_owned());
        let expected = [renamed("other", "other-1"), renamed("trial", "trial-1")];
        assert_eq!(configuration.merge(sample()), expected);
        assert_eq!(configuration.context, "trial-1");
        assert_eq!(configuration.merge(sample())[1], renamed("trial", "trial-2"));
        assert_eq!(configuration.contexts.len(), 6);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(context|contexts|ca|crt|key|[ \n:{}a]|\\PC){0,40}") {
            if let Ok(configuration) = parse("c", &text) {
                prop_assert_eq!(parse("c", &configuration.to_yaml()), Ok(configuration));
            }
        }
    }
}
