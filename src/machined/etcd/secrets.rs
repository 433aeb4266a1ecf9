//! The certificates of a member, from etcd's authority. Nothing is written here.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use orlop_pki::{Authority, Error, Leaf, Secret, Usage};

use super::launch::Identity;

/// A certificate's life; running members read new ones by themselves.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// All that they depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Basis {
    /// Whose they are.
    pub own: Identity,
    /// What the member is called by.
    pub dns: Vec<String>,
    /// Where it is found, and from where it calls its peers: they compare.
    pub ips: Vec<IpAddr>,
    /// etcd's authority, PEM.
    pub ca: String,
    /// Its key.
    pub key: Secret,
}

impl Basis {
    /// Names and texts of the files etcd and its clients are given: `server` for clients and `peer` for peers,
    /// each good for both directions (a member is its own client), `admin` for this node; a certificate last.
    ///
    /// # Errors
    /// When the authority is none, or a name is no name.
    pub fn issue(&self, now: SystemTime) -> Result<Vec<(&'static str, Secret)>, Error> {
        let authority = Authority::from_pem(&self.ca, self.key.expose())?;
        let peer = Leaf {
            common_name: self.own.name.clone(),
            organizations: vec!["etcd".to_owned()],
            usage: Usage::Peer,
            dns: self.dns.clone(),
            ips: self.ips.clone(),
            lifetime: LIFETIME,
        };
        let admin = Leaf {
            common_name: "root".to_owned(),
            usage: Usage::Client,
            dns: Vec::new(),
            ips: Vec::new(),
            ..peer.clone()
        };
        let mut files = vec![("ca.crt", Secret::new(self.ca.clone()))];
        for (leaf, crt, key) in [
            (&peer, "server.crt", "server.key"),
            (&peer, "peer.crt", "peer.key"),
            (&admin, "admin.crt", "admin.key"),
        ] {
            let pair = authority.issue(leaf, now)?;
            files.extend([(key, pair.key), (crt, Secret::new(pair.crt))]);
        }
        Ok(files)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeMap;

    use orlop_pki::{KeyKind, certificate};

    use super::*;

    #[test]
    fn certificates_are_for_the_member_and_for_its_administrator() {
        let now = SystemTime::now();
        for kind in [KeyKind::P256, KeyKind::Ed25519] {
            let ca = Authority::generate("etcd", kind, LIFETIME * 2, now).unwrap();
            let basis = Basis {
                own: Identity { name: "one".to_owned(), address: [10, 0, 0, 1].into() },
                dns: vec!["one".to_owned(), "localhost".to_owned()],
                ips: vec![[10, 0, 0, 1].into(), [127, 0, 0, 1].into()],
                ca: ca.pair().crt.clone(),
                key: ca.pair().key.clone(),
            };
            let files: BTreeMap<_, _> = basis.issue(now).unwrap().into_iter().collect();
            assert_eq!(files["ca.crt"].expose(), basis.ca);
            for name in ["server", "peer", "admin"] {
                let crt = files[&*format!("{name}.crt")].expose();
                certificate::check_issuer(crt, &basis.ca).unwrap();
                let key = files[&*format!("{name}.key")].expose();
                orlop_pki::tls::client_config(&basis.ca, Some((crt, key))).unwrap();
                let (dns, ips) = certificate::names(crt).unwrap();
                assert_eq!(dns.is_empty() && ips.is_empty(), name == "admin", "{name}");
            }
        }
    }
}
