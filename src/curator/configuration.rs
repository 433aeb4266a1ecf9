//! What a cluster is like, and how operators change it (spec §4.7, §5.2).

use std::collections::BTreeSet;

use orlop_proto::metropolis::proto::common::ClusterConfiguration;
use orlop_proto::metropolis::proto::common::cluster_configuration::kubernetes::NodeLabelsToSynchronize;
use orlop_proto::metropolis::proto::common::cluster_configuration::{
    Kubernetes, StorageSecurityPolicy, TpmMode,
};
use prost_types::FieldMask;
use regex_lite::RegexBuilder;

use crate::labels;

/// The domain of a cluster that was given none.
pub const DOMAIN: &str = "cluster.internal";
const DOMAIN_LENGTH: usize = 80;
/// What a pattern may occupy once it is compiled, in bytes.
const PATTERN_SIZE: usize = 256 * 1024;
/// All paths of the message.
const PATHS: [&str; 5] =
    ["cluster_domain", KUBERNETES, LABELS, "storage_security_policy", "tpm_mode"];
const KUBERNETES: &str = "kubernetes";
/// What can be changed.
const LABELS: &str = "kubernetes.node_labels_to_synchronize";

/// Why a configuration is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// A part of the request that must be there is not.
    #[error("{0} is not set")]
    Unset(&'static str),
    /// No field.
    #[error("update_mask: a cluster's configuration has no field {0:?}; it has {fields}", fields = PATHS.join(", "))]
    NoField(String),
    /// A field, but not to be changed.
    #[error("update_mask: {0:?} of a cluster that stands cannot be changed, only {LABELS}")]
    Fixed(String),
    /// No pattern.
    #[error("{LABELS}: {pattern:?}: {why}")]
    Pattern {
        /// What was given.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else was faster.
    #[error(
        "{0} is not what base_config says any more; read it again (`orlopctl cluster info`) and repeat the change"
    )]
    Changed(&'static str),
    /// Of a configuration for a new cluster.
    #[error("cluster_domain {0:?} is no DNS name of at most {DOMAIN_LENGTH} characters")]
    Domain(String),
    /// Of a configuration for a new cluster.
    #[error("{field} {value} is none; choose one from 1 to {most}")]
    Choice {
        /// Which.
        field: &'static str,
        /// What was given.
        value: i32,
        /// The last there is.
        most: i32,
    },
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Changed(_) => Self::failed_precondition(text),
            Refusal::Unset(_)
            | Refusal::NoField(_)
            | Refusal::Fixed(_)
            | Refusal::Pattern { .. }
            | Refusal::Domain(_)
            | Refusal::Choice { .. } => Self::invalid_argument(text),
        }
    }
}

/// Of a cluster whose founder chose nothing.
#[must_use]
pub fn initial() -> ClusterConfiguration {
    ClusterConfiguration {
        tpm_mode: TpmMode::Required.into(),
        storage_security_policy: StorageSecurityPolicy::NeedsEncryptionAndAuthentication.into(),
        kubernetes: Some(Kubernetes::default()),
        cluster_domain: DOMAIN.to_owned(),
    }
}

/// May a cluster be founded with it? Nothing of it is filled in.
///
/// # Errors
/// [`Refusal::Domain`], [`Refusal::Choice`], [`Refusal::Pattern`].
pub fn check_initial(given: &ClusterConfiguration) -> Result<(), Refusal> {
    if !labels::is_domain(&given.cluster_domain, DOMAIN_LENGTH) {
        return Err(Refusal::Domain(given.cluster_domain.clone()));
    }
    let choice = |field, value, most| {
        if (1..=most).contains(&value) {
            Ok(())
        } else {
            Err(Refusal::Choice { field, value, most })
        }
    };
    choice("tpm_mode", given.tpm_mode, TpmMode::Disabled.into())?;
    let most = StorageSecurityPolicy::NeedsInsecure.into();
    choice("storage_security_policy", given.storage_security_policy, most)?;
    check_patterns(patterns(given.kubernetes.as_ref()))
}

/// As it lies in the store of a cluster, old ones without a domain.
#[must_use]
pub fn stored(mut configuration: ClusterConfiguration) -> ClusterConfiguration {
    if configuration.cluster_domain.is_empty() {
        DOMAIN.clone_into(&mut configuration.cluster_domain);
    }
    configuration
}

/// A request that can be made of some configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    base: Option<Kubernetes>,
    /// None: nothing changes.
    new: Option<Kubernetes>,
}

impl Change {
    /// What `mask` names of `new`, if that of the cluster is still as in `base`.
    ///
    /// # Errors
    /// Any [`Refusal`] but [`Refusal::Changed`].
    pub fn new(
        base: Option<ClusterConfiguration>,
        new: Option<ClusterConfiguration>,
        mask: Option<FieldMask>,
    ) -> Result<Self, Refusal> {
        let new = new.ok_or(Refusal::Unset("new_config"))?;
        let mask = mask.ok_or(Refusal::Unset("update_mask"))?;
        let paths = normalized(&mask);
        if let Some(path) = paths.iter().find(|path| !PATHS.contains(path)) {
            return Err(Refusal::NoField((*path).to_owned()));
        }
        if let Some(path) = paths.iter().find(|path| **path != LABELS) {
            return Err(Refusal::Fixed((*path).to_owned()));
        }
        if paths.is_empty() {
            return Ok(Self { base: None, new: None });
        }
        let new = new.kubernetes.ok_or(Refusal::Unset("new_config.kubernetes"))?;
        let base = match base {
            Some(base) => Some(base.kubernetes.ok_or(Refusal::Unset("base_config.kubernetes"))?),
            None => None,
        };
        check_patterns(patterns(Some(&new)))?;
        Ok(Self { base, new: Some(new) })
    }

    /// The whole configuration afterwards.
    ///
    /// # Errors
    /// [`Refusal::Changed`].
    pub fn apply(self, mut current: ClusterConfiguration) -> Result<ClusterConfiguration, Refusal> {
        let Some(new) = self.new else { return Ok(current) };
        let now = patterns(current.kubernetes.as_ref());
        if self.base.is_some_and(|base| base.node_labels_to_synchronize != now) {
            return Err(Refusal::Changed(LABELS));
        }
        current.kubernetes.get_or_insert_default().node_labels_to_synchronize =
            new.node_labels_to_synchronize;
        Ok(current)
    }
}

fn patterns(kubernetes: Option<&Kubernetes>) -> &[NodeLabelsToSynchronize] {
    kubernetes.map_or(&[], |kubernetes| &kubernetes.node_labels_to_synchronize)
}

fn check_patterns(patterns: &[NodeLabelsToSynchronize]) -> Result<(), Refusal> {
    patterns.iter().try_for_each(|NodeLabelsToSynchronize { regexp }| {
        let compiled = RegexBuilder::new(regexp).size_limit(PATTERN_SIZE).build();
        compiled
            .map(drop)
            .map_err(|error| Refusal::Pattern { pattern: regexp.clone(), why: error.to_string() })
    })
}

/// In order, without those that another of them holds.
fn normalized(mask: &FieldMask) -> BTreeSet<&str> {
    let all: BTreeSet<_> = mask.paths.iter().map(String::as_str).collect();
    let covered = |path: &str| {
        path.match_indices('.').any(|(dot, _)| path.get(..dot).is_some_and(|it| all.contains(it)))
    };
    all.iter().copied().filter(|path| !covered(path)).collect()
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    fn kubernetes(patterns: &[&str]) -> Option<Kubernetes> {
        let pattern = |regexp: &&str| NodeLabelsToSynchronize { regexp: (*regexp).to_owned() };
        Some(Kubernetes { node_labels_to_synchronize: patterns.iter().map(pattern).collect() })
    }

    fn with(patterns: &[&str]) -> ClusterConfiguration {
        ClusterConfiguration { kubernetes: kubernetes(patterns), ..ClusterConfiguration::default() }
    }

    fn change(
        base: Option<ClusterConfiguration>,
        new: Option<ClusterConfiguration>,
        mask: Option<&[&str]>,
        current: ClusterConfiguration,
    ) -> Result<ClusterConfiguration, Code> {
        let mask = mask.map(|paths| FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        });
        Change::new(base, new, mask)
            .and_then(|change| change.apply(current))
            .map_err(|refusal| Status::from(refusal).code())
    }

    #[test]
    fn only_the_labels_that_kubernetes_gets_can_be_changed() {
        let none = ClusterConfiguration::default;
        let (invalid, changed) = (Err(Code::InvalidArgument), Err(Code::FailedPrecondition));
        let labels: Option<&[&str]> = Some(&[LABELS]);
        assert_eq!(change(None, None, labels, initial()), invalid);
        assert_eq!(change(None, Some(with(&[])), None, initial()), invalid);
        for path in [
            "",
            "nothing",
            "kubernetes.nothing",
            "kubernetes.node_labels_to_synchronize.regexp",
            "kubernetes",
            "tpm_mode",
            "cluster_domain",
            "storage_security_policy",
        ] {
            let result = change(None, Some(with(&[])), Some(&[path]), initial());
            assert_eq!(result, invalid, "{path}");
        }
        assert_eq!(change(None, Some(none()), labels, initial()), invalid);
        assert_eq!(change(Some(none()), Some(with(&[])), labels, initial()), invalid);
        assert_eq!(change(None, Some(with(&["("])), labels, initial()), invalid);
        assert_eq!(change(None, Some(with(&["(a{1000}){1000}"])), labels, initial()), invalid);
        assert_eq!(change(Some(with(&["b"])), Some(with(&[])), labels, initial()), changed);

        let after = ClusterConfiguration { kubernetes: kubernetes(&["^a$", "b"]), ..initial() };
        let new = with(&["^a$", "b"]);
        assert_eq!(change(None, Some(new.clone()), labels, initial()), Ok(after.clone()));
        let base = Some(with(&[]));
        assert_eq!(change(base.clone(), Some(new.clone()), labels, initial()), Ok(after.clone()));
        // What an old cluster lacks counts as empty.
        let old = ClusterConfiguration { kubernetes: None, ..initial() };
        assert_eq!(change(base, Some(new), labels, old), Ok(after.clone()));
        assert_eq!(change(None, Some(none()), Some(&[]), after.clone()), Ok(after));
    }

    #[test]
    fn a_mask_is_without_what_it_says_twice() {
        let mask = |paths: &[&str]| FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        };
        let of = mask(&["b.c", "a", "b", "a", "bc", "b.c.d"]);
        assert_eq!(normalized(&of).into_iter().collect::<Vec<_>>(), ["a", "b", "bc"]);
    }

    #[test]
    fn a_cluster_is_founded_with_a_whole_configuration_or_with_ours() {
        assert_eq!(check_initial(&initial()), Ok(()));
        let spoilt: [fn(&mut ClusterConfiguration); 8] = [
            |it| it.cluster_domain.clear(),
            |it| it.cluster_domain = format!("{}.example", "a".repeat(73)),
            |it| "10.0.0.1".clone_into(&mut it.cluster_domain),
            |it| it.tpm_mode = 0,
            |it| it.tpm_mode = 4,
            |it| it.storage_security_policy = 0,
            |it| it.storage_security_policy = 5,
            |it| it.kubernetes = kubernetes(&["["]),
        ];
        for spoil in spoilt {
            let mut given = initial();
            spoil(&mut given);
            assert!(check_initial(&given).is_err(), "{given:?}");
        }
        let domain = |text: &str| {
            let given = ClusterConfiguration { cluster_domain: text.to_owned(), ..initial() };
            stored(given).cluster_domain
        };
        assert_eq!(domain(""), DOMAIN);
        assert_eq!(domain("example.org"), "example.org");
    }
}
