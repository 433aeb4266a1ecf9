//! `secrets.yaml`: what makes a cluster this one and no other, in a file of its own, so that its
//! configurations can be made again with other options (`gen secrets`, `gen config --with-secrets`).

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_pki::{Authority, KeyKind, Secret};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use super::{AUTHORITY_LIFETIME, Cause, Error, Secrets};
use crate::document::{Text, to_yaml};
use crate::machine::{MachineConfig, ServiceAccount};
use crate::problem::Problems;
use crate::value::CertificateAndKey;

/// The file, with the keys that others' tools write.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bundle {
    cluster: Identity,
    secrets: Tokens,
    trustdinfo: Trustd,
    certs: Authorities,
}

/// Of discovery.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Identity {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Secret>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Tokens {
    bootstraptoken: Secret,
    #[serde(skip_serializing_if = "Option::is_none")]
    aescbcencryptionsecret: Option<Secret>,
    /// Read and kept: our API server has no use for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    secretboxencryptionsecret: Option<Secret>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Trustd {
    token: Secret,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Authorities {
    etcd: CertificateAndKey,
    k8s: CertificateAndKey,
    /// Read and kept, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    k8saggregator: Option<CertificateAndKey>,
    k8sserviceaccount: ServiceAccount,
    os: CertificateAndKey,
}

impl Bundle {
    /// Makes the secrets of a new cluster.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate(now: SystemTime) -> Result<Self, Error> {
        let mut secrets = Secrets::generate(now)?;
        let random = SystemRandom::new();
        let bytes = || {
            let mut bytes = [0; 32];
            random.fill(&mut bytes).map_err(|_| orlop_pki::Error::Random)?;
            Ok::<_, orlop_pki::Error>(STANDARD.encode(bytes))
        };
        secrets.id = Some(bytes()?);
        secrets.secret = Some(Secret::from(bytes()?));
        // Of an authority that nobody keeps.
        let keys = Authority::generate("sa", KeyKind::P256, AUTHORITY_LIFETIME, now)?;
        secrets.service_account = Some(keys.pair().key.clone());
        Ok(Self::from(&secrets))
    }

    /// Those of a cluster that exists, from the configuration of a control plane.
    ///
    /// # Errors
    /// When it lacks some.
    pub fn of(config: &MachineConfig) -> Result<Self, Error> {
        Ok(Self::from(&Secrets::of(config).map_err(Error::Request)?))
    }

    /// Reads the text of a file; `file` is what its owner calls it.
    ///
    /// # Errors
    /// All problems found; of syntax errors, the first.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        Text::new(file, text)?.read(0, |_| Vec::new())
    }

    /// YAML that [`Bundle::parse`] reads as the same value.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        to_yaml(self)
    }

    pub(super) fn secrets(&self) -> Result<Secrets, Error> {
        let Self { cluster, secrets, trustdinfo, certs } = self;
        let missing = |what: &'static str| Error::Bundle(what, None);
        let authority = |what: &'static str, pair: &CertificateAndKey| {
            let key = pair.key.as_ref().filter(|_| !pair.crt.is_empty());
            let key = key.ok_or_else(|| missing(what))?;
            Authority::from_pem(&pair.crt, key.expose())
                .map_err(|error| Error::Bundle(what, Some(Cause::from(error))))
        };
        let text = |what: &'static str, secret: &Secret| match secret.expose() {
            "" => Err(missing(what)),
            _ => Ok(secret.clone()),
        };
        let aescbc = secrets.aescbcencryptionsecret.clone().unwrap_or_default();
        Ok(Secrets {
            machine: authority("certs.os", &certs.os)?,
            kubernetes: authority("certs.k8s", &certs.k8s)?,
            etcd: authority("certs.etcd", &certs.etcd)?,
            token: text("trustdinfo.token", &trustdinfo.token)?,
            bootstrap_token: text("secrets.bootstraptoken", &secrets.bootstraptoken)?,
            aescbc: text("secrets.aescbcencryptionsecret", &aescbc)?,
            id: cluster.id.clone(),
            secret: cluster.secret.clone(),
            service_account: certs.k8sserviceaccount.key.clone(),
        })
    }
}

impl From<&Secrets> for Bundle {
    fn from(secrets: &Secrets) -> Self {
        let pair = |authority: &Authority| CertificateAndKey::from(authority.pair());
        Self {
            cluster: Identity { id: secrets.id.clone(), secret: secrets.secret.clone() },
            secrets: Tokens {
                bootstraptoken: secrets.bootstrap_token.clone(),
                aescbcencryptionsecret: Some(secrets.aescbc.clone()),
                secretboxencryptionsecret: None,
            },
            trustdinfo: Trustd { token: secrets.token.clone() },
            certs: Authorities {
                etcd: pair(&secrets.etcd),
                k8s: pair(&secrets.kubernetes),
                k8saggregator: None,
                k8sserviceaccount: ServiceAccount { key: secrets.service_account.clone() },
                os: pair(&secrets.machine),
            },
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::generate::{Options, generate};

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    #[test]
    fn a_cluster_is_made_again_of_its_secrets() {
        let bundle = Bundle::generate(now()).unwrap();
        let again = Bundle::parse("secrets.yaml", &bundle.to_yaml()).unwrap();
        assert_eq!(again, bundle);
        let options = Options { secrets: Some(again), ..Options::default() };
        let make = || generate("trial", "https://10.0.0.2:6443", &options, now()).unwrap();
        let (one, other) = (make(), make());
        assert_eq!(one.control_plane, other.control_plane);
        assert_eq!(one.worker, other.worker);
        assert_eq!(Bundle::of(&one.control_plane).unwrap(), bundle);
        assert!(one.worker.cluster.service_account.is_none());
        assert_eq!(one.worker.cluster.id, one.control_plane.cluster.id);
        let yaml = one.control_plane.to_yaml();
        crate::machine::parse("controlplane.yaml", &yaml).unwrap();
    }

    #[test]
    fn what_is_missing_or_does_not_belong_together_is_named() {
        let refused = |change: fn(&mut Bundle)| {
            let mut bundle = Bundle::generate(now()).unwrap();
            change(&mut bundle);
            let options = Options { secrets: Some(bundle), ..Options::default() };
            generate("trial", "https://10.0.0.2:6443", &options, now()).unwrap_err().to_string()
        };
        assert!(refused(|b| b.trustdinfo.token = Secret::default()).contains("trustdinfo.token"));
        assert!(refused(|b| b.certs.os.key = None).contains("certs.os"));
        assert!(refused(|b| b.certs.etcd.key = b.certs.k8s.key.clone()).contains("certs.etcd"));
        let problems = Bundle::parse("secrets.yaml", "certs:\n  oss: {}\n").unwrap_err();
        assert!(problems.to_string().starts_with("secrets.yaml:2:3: certs.oss: "), "{problems}");
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let bundle = Bundle::generate(now()).unwrap();
        let shown = format!("{bundle:?}");
        assert!(!shown.contains("PRIVATE KEY"), "{shown}");
        assert!(!shown.contains(bundle.trustdinfo.token.expose()), "{shown}");
    }
}
