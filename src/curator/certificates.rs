//! The cluster's authority and what it has issued, as they lie in the store (spec §1.4, §6.1).
//!
//! A certificate is issued once for a name: the same key gets the same bytes again, another key is refused. What is
//! written belongs to the transaction of whoever needs it ([`Certificates::plan`], [`Certificates::retire`]).

use std::sync::Arc;
use std::time::SystemTime;

use orlop_pki::cluster::{
    self, CLUSTER_CA, ClusterAuthority, KEY_LENGTH, Profile, RawKey, Revoked, Shown,
};

use crate::names::{self, NodeId};
use crate::state::{Changes, Failure, State};
use orlop_store::Revision;

/// The name of the authority's own certificate.
const AUTHORITY: &str = "cluster-ca";
/// The name of the owner's certificate, and his identity.
pub const OWNER: &str = "owner";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster's state.
    #[error(transparent)]
    State(#[from] Failure),
    /// The certificate itself.
    #[error("the cluster's certificates")]
    Pki(#[from] orlop_pki::Error),
    /// Somebody else has it.
    #[error(
        "the certificate {name:?} was issued for another key; it is issued once, and goes with its node"
    )]
    OtherKey {
        /// Which.
        name: String,
    },
    /// Only a part of the authority is there.
    #[error(
        "the cluster's authority is damaged: {missing} is missing; restore the store from a backup"
    )]
    Incomplete {
        /// What is not there.
        missing: String,
    },
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        Self::unavailable(orlop_rt::Chain(&error).to_string())
    }
}

/// The cluster's authority; cheap to clone.
#[derive(Clone, Debug)]
pub struct Certificates(Arc<ClusterAuthority>);

impl Certificates {
    /// The authority of the store.
    ///
    /// # Errors
    /// The store; what lies there cannot be read. `None`: there is none yet.
    pub async fn load(state: &State) -> Result<Option<Self>, Error> {
        let certificate = names::certificate(AUTHORITY);
        let paths = [names::AUTHORITY_KEY, &certificate, names::REVOKED];
        let mut found = Vec::with_capacity(paths.len());
        for path in paths {
            found.push(state.bytes(path).await?.map(|stored| stored.value));
        }
        let [Some(key), Some(der), Some(_)] = &found[..] else {
            let missing = paths.iter().zip(&found).filter(|(_, found)| found.is_none());
            let missing: Vec<_> = missing.map(|(path, _)| *path).collect();
            if missing.len() == paths.len() {
                return Ok(None);
            }
            return Err(Error::Incomplete { missing: missing.join(", ") });
        };
        let authority = ClusterAuthority::from_der(der, RawKey::from_bytes(key)?)?;
        Ok(Some(Self(Arc::new(authority))))
    }

    /// The authority of the store, which is made if there is none: all of it in one transaction.
    ///
    /// # Errors
    /// As [`Certificates::load`], and there may be no randomness.
    pub async fn ensure_authority(state: &State, now: SystemTime) -> Result<Self, Error> {
        if let Some(there) = Self::load(state).await? {
            return Ok(there);
        }
        let authority = ClusterAuthority::generate(CLUSTER_CA, now)?;
        let certificate = names::certificate(AUTHORITY);
        let changes = Changes::new()
            .if_unchanged(names::AUTHORITY_KEY, Revision::NONE)
            .if_unchanged(&certificate, Revision::NONE)
            .put(names::AUTHORITY_KEY, authority.key().bytes().to_vec())
            .put(&certificate, authority.der().to_vec())
            .put(names::REVOKED, authority.revocation_list(&Revoked::new(), now)?);
        state.change(changes).await?;
        // Ours, or that of somebody who was quicker.
        let none = || Error::Incomplete { missing: certificate };
        Self::load(state).await?.ok_or_else(none)
    }

    /// Its certificate (DER).
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        self.0.der()
    }

    /// The certificate `name` for a key, and what must be written for it: nothing if it was issued before.
    ///
    /// # Errors
    /// It was issued for another key; the store; there is no randomness.
    pub async fn plan(
        &self,
        state: &State,
        name: &str,
        profile: &Profile,
        public: &[u8; KEY_LENGTH],
        now: SystemTime,
    ) -> Result<(Vec<u8>, Changes), Error> {
        let path = names::certificate(name);
        if let Some(there) = state.bytes(&path).await? {
            if Shown::read(&there.value)?.public_key != Some(*public) {
                return Err(Error::OtherKey { name: name.to_owned() });
            }
            let changes = Changes::new().if_unchanged(&path, there.modified);
            return Ok((there.value.to_vec(), changes));
        }
        let der = self.0.issue(profile, public, None, now)?;
        let changes = Changes::new().if_unchanged(&path, Revision::NONE).put(&path, der.clone());
        Ok((der, changes))
    }

    /// The certificate `name` for a key: the one there is, or a new one.
    ///
    /// # Errors
    /// As [`Certificates::plan`].
    pub async fn ensure(
        &self,
        state: &State,
        name: &str,
        profile: &Profile,
        public: &[u8; KEY_LENGTH],
        now: SystemTime,
    ) -> Result<Vec<u8>, Error> {
        loop {
            let (der, changes) = self.plan(state, name, profile, public, now).await?;
            if state.change(changes).await?.is_some() {
                return Ok(der);
            }
            // Somebody else issued it, or took it away, since it was looked for.
        }
    }

    /// A certificate that is not kept: the caller keeps what must be kept of it.
    ///
    /// # Errors
    /// There is no randomness, or a name cannot be one.
    pub fn issue(
        &self,
        profile: &Profile,
        public: &[u8; KEY_LENGTH],
        now: SystemTime,
    ) -> Result<Vec<u8>, Error> {
        Ok(self.0.issue(profile, public, None, now)?)
    }

    /// What must be written so that a node's certificate is good no more. `forget`: a certificate may be issued
    /// for the node again.
    ///
    /// # Errors
    /// The store; what lies there cannot be read.
    pub async fn retire(
        &self,
        state: &State,
        id: &NodeId,
        forget: Forget,
        now: SystemTime,
    ) -> Result<Changes, Error> {
        let path = names::certificate(&names::node_certificate(id));
        let Some(issued) = state.bytes(&path).await? else { return Ok(Changes::new()) };
        let changes = Changes::new().if_unchanged(&path, issued.modified);
        let changes = match forget {
            Forget::Yes => changes.remove(&path),
            Forget::No => changes,
        };
        let missing = || Error::Incomplete { missing: names::REVOKED.to_owned() };
        let list = state.bytes(names::REVOKED).await?.ok_or_else(missing)?;
        let mut revoked = cluster::revoked(&list.value, self.authority())?;
        if revoked.insert(Shown::read(&issued.value)?.serial, now).is_some() {
            return Ok(changes);
        }
        Ok(changes
            .if_unchanged(names::REVOKED, list.modified)
            .put(names::REVOKED, self.0.revocation_list(&revoked, now)?))
    }
}

/// Whether what was issued is forgotten, too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Forget {
    /// The node is gone.
    Yes,
    /// The node is still there.
    No,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::store;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    fn key() -> RawKey {
        RawKey::generate().expect("a key")
    }

    #[tokio::test]
    async fn an_authority_is_made_once_and_whole() {
        let (_folder, store) = store().await;
        let state = State::new(store, None);
        assert!(Certificates::load(&state).await.expect("a read").is_none());
        let made = Certificates::ensure_authority(&state, now()).await.expect("an authority");
        let again = Certificates::ensure_authority(&state, now()).await.expect("an authority");
        assert_eq!(made.authority(), again.authority());
        let key = state.bytes(names::AUTHORITY_KEY).await.expect("a read").expect("a key").value;
        assert_eq!(key.len(), 64);
        // A store that was put together by hand.
        let removed = Changes::new().remove(names::REVOKED);
        state.change(removed).await.expect("a write").expect("written");
        let error = Certificates::load(&state).await.expect_err("damaged").to_string();
        assert!(error.contains("cluster-ca-crl.der is missing"), "{error}");
    }

    #[tokio::test]
    async fn a_name_is_certified_for_one_key_until_it_is_forgotten() {
        let (_folder, store) = store().await;
        let state = State::new(store, None);
        let certificates = Certificates::ensure_authority(&state, now()).await.expect("one");
        let (own, other) = (key().public(), key().public());
        let id = NodeId::of_key(&own);
        let (name, profile) = (names::node_certificate(&id), Profile::node(id.as_str()));
        let ensure = async |key| certificates.ensure(&state, &name, &profile, key, now()).await;
        let first = ensure(&own).await.expect("issued");
        assert_eq!(ensure(&own).await.expect("issued"), first);
        let refused = ensure(&other).await.expect_err("it was issued");
        assert!(matches!(&refused, Error::OtherKey { .. }));
        assert_eq!(tonic::Status::from(refused).code(), tonic::Code::Unavailable);

        let list = async || {
            let list = state.bytes(names::REVOKED).await.expect("a read").expect("a list");
            let revoked = cluster::revoked(&list.value, certificates.authority()).expect("a list");
            revoked.into_keys().collect::<Vec<_>>()
        };
        let serial = |der: &[u8]| Shown::read(der).expect("a certificate").serial;
        let retire = async |forget| {
            let changes = certificates.retire(&state, &id, forget, now()).await.expect("a plan");
            state.change(changes).await.expect("a write").expect("written");
        };
        // Decommissioned, then deleted, then here again, then deleted at once.
        retire(Forget::No).await;
        assert_eq!(list().await, [serial(&first)]);
        assert_eq!(ensure(&own).await.expect("issued"), first);
        retire(Forget::Yes).await;
        assert_eq!(list().await, [serial(&first)]);
        let second = ensure(&own).await.expect("issued");
        assert_ne!(serial(&second), serial(&first));
        retire(Forget::Yes).await;
        assert_eq!(list().await.len(), 2);
        // There is nothing to revoke of a node that was never committed.
        retire(Forget::Yes).await;
        assert_eq!(list().await.len(), 2);
    }
}
