//! The certificates that etcd's members show each other: an authority of their own, in a namespace of its own (spec
//! §1.4, §6.1). A member's key is its node's.

use std::time::SystemTime;

use bytes::Bytes;
use orlop_pki::cluster::{ClusterAuthority, ETCD_CA, KEY_LENGTH, Profile, RawKey, Revoked, Shown};
use orlop_store::Revision;

use crate::names::{ETCD_PKI, NodeId};
use crate::state::{Changes, Failure, State};

const AUTHORITY_KEY: &str = "/pki/keys/CA-privkey.bin";
const REVOKED: &str = "/pki/CA-crl.der";
/// The name of the authority's own certificate.
const AUTHORITY: &str = "CA";

fn issued(name: &str) -> String {
    format!("/pki/issued/{name}-cert.der")
}

/// Why a member has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store.
    #[error(transparent)]
    State(#[from] Failure),
    /// The certificate itself.
    #[error("the certificates of etcd's members")]
    Pki(#[from] orlop_pki::Error),
    /// It is issued once for a node, whose key does not change.
    #[error("a certificate of an etcd member was issued to {0} for another key")]
    OtherKey(NodeId),
    /// Only a part of it is there.
    #[error(
        "the authority of etcd's members is damaged: a part is missing; restore the store from a backup"
    )]
    Incomplete,
}

/// The authority of etcd's members.
#[derive(Debug)]
pub struct Peers {
    authority: ClusterAuthority,
    revoked: Bytes,
}

impl Peers {
    /// That of the store, which is made if there is none.
    ///
    /// # Errors
    /// The store; what lies there cannot be read; there is no randomness.
    pub async fn ensure(state: &State, now: SystemTime) -> Result<Self, Error> {
        if let Some(there) = Self::load(state).await? {
            return Ok(there);
        }
        let authority = ClusterAuthority::generate(ETCD_CA, now)?;
        let certificate = issued(AUTHORITY);
        let changes = Changes::within(ETCD_PKI)
            .if_unchanged(AUTHORITY_KEY, Revision::NONE)
            .if_unchanged(&certificate, Revision::NONE)
            .put(AUTHORITY_KEY, authority.key().bytes().to_vec())
            .put(&certificate, authority.der().to_vec())
            .put(REVOKED, authority.revocation_list(&Revoked::new(), now)?);
        state.change(changes).await?;
        // Ours, or that of somebody who was quicker.
        Self::load(state).await?.ok_or(Error::Incomplete)
    }

    async fn load(state: &State) -> Result<Option<Self>, Error> {
        let read = async |path: &str| state.bytes_within(ETCD_PKI, path).await;
        let key = read(AUTHORITY_KEY).await?;
        let certificate = read(&issued(AUTHORITY)).await?;
        match (key, certificate, read(REVOKED).await?) {
            (None, None, None) => Ok(None),
            (Some(key), Some(der), Some(list)) => {
                let key = RawKey::from_bytes(&key.value)?;
                let authority = ClusterAuthority::from_der(&der.value, key)?;
                Ok(Some(Self { authority, revoked: list.value }))
            }
            _ => Err(Error::Incomplete),
        }
    }

    /// Its certificate (DER).
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        self.authority.der()
    }

    /// What it has revoked (DER).
    #[must_use]
    pub fn revoked(&self) -> &[u8] {
        &self.revoked
    }

    /// The certificate (DER) of a node's member: the one there is, or a new one.
    ///
    /// # Errors
    /// It was issued for another key; the store; there is no randomness.
    pub async fn certificate(
        &self,
        state: &State,
        id: &NodeId,
        public: &[u8; KEY_LENGTH],
        now: SystemTime,
    ) -> Result<Vec<u8>, Error> {
        let path = issued(id.as_str());
        loop {
            if let Some(there) = state.bytes_within(ETCD_PKI, &path).await? {
                let same = Shown::read(&there.value)?.public_key == Some(*public);
                return if same {
                    Ok(there.value.into())
                } else {
                    Err(Error::OtherKey(id.clone()))
                };
            }
            let der = self.authority.issue(&Profile::peer(id.as_str()), public, None, now)?;
            let changes = Changes::within(ETCD_PKI).if_unchanged(&path, Revision::NONE);
            if state.change(changes.put(&path, der.clone())).await?.is_some() {
                return Ok(der);
            }
            // Somebody else issued it since it was looked for.
        }
    }
}

#[cfg(test)]
mod tests {
    use orlop_store::{Embedded, Limits, Store};

    use super::*;

    #[tokio::test]
    async fn a_member_gets_one_certificate_and_another_key_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Embedded::open(&folder.path().join("store"), Limits::default()).await;
        let state = State::new(Store::Embedded(store.expect("a store")), None);
        let now = SystemTime::now();
        let peers = Peers::ensure(&state, now).await.expect("an authority");
        let key = RawKey::generate().expect("a key").public();
        let id = NodeId::of_key(&key);
        let first = peers.certificate(&state, &id, &key, now).await.expect("a certificate");
        let again = Peers::ensure(&state, now).await.expect("the same authority");
        assert_eq!(again.authority(), peers.authority());
        let second = again.certificate(&state, &id, &key, now).await.expect("the same one");
        assert_eq!(first, second);
        let shown = Shown::read(&first).expect("a certificate");
        assert!(shown.serves && shown.asks && shown.is_signed_by(peers.authority()));
        assert_eq!(
            (shown.common_name.as_str(), &shown.dns[..]),
            (id.as_str(), &[id.to_string()][..])
        );
        let revoked = orlop_pki::cluster::revoked(peers.revoked(), peers.authority());
        assert!(revoked.expect("a list").is_empty());
        let other = RawKey::generate().expect("a key").public();
        let refused = peers.certificate(&state, &id, &other, now).await;
        assert!(matches!(refused, Err(Error::OtherKey(_))), "{refused:?}");
    }
}
