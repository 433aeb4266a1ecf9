//! Certificates of Kubernetes workers (spec §3.6): an authority of its own, so that nothing that Kubernetes trusts is a
//! user or a node of the cluster API.

use std::time::SystemTime;

use orlop_pki::cluster::{ClusterAuthority, KEY_LENGTH, Profile, RawKey, Shown};
use orlop_store::Revision;

use crate::certificates::Error;
use crate::names::NodeId;
use crate::state::{Changes, State};

/// The common name of the authority.
const AUTHORITY: &str = "Orlop Kubernetes identity CA";
/// Ours: the authority's key,
const AUTHORITY_KEY: &str = "/x/kubernetes-pki/keys/ca-privkey.bin";
/// its certificate,
const AUTHORITY_CERTIFICATE: &str = "/x/kubernetes-pki/ca-cert.der";
/// and beneath it what it issued.
const ISSUED: &str = "/x/kubernetes-pki/issued/";

/// The public keys of a worker.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerKeys {
    /// As a server and as a client.
    pub kubelet: [u8; KEY_LENGTH],
    /// Of what provides volumes.
    pub csi_provisioner: [u8; KEY_LENGTH],
    /// Of what serves the cluster's network.
    pub netservices: [u8; KEY_LENGTH],
}

/// Their certificates, in DER.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerCertificates {
    /// Who signed them.
    pub authority: Vec<u8>,
    /// For the kubelet's port.
    pub kubelet_server: Vec<u8>,
    /// For the kubelet at the API server.
    pub kubelet_client: Vec<u8>,
    /// For what provides volumes, there.
    pub csi_provisioner: Vec<u8>,
    /// For what serves the network, there.
    pub netservices: Vec<u8>,
}

/// The certificates of a worker: those it was given before, or new ones, all together.
///
/// # Errors
/// It was given some for other keys; the store; there is no randomness.
pub async fn of_worker(
    state: &State,
    id: &NodeId,
    keys: &WorkerKeys,
    now: SystemTime,
) -> Result<WorkerCertificates, Error> {
    let authority = authority(state, now).await?;
    let [server, client, csi, net] = profiles(id);
    loop {
        let mut changes = Changes::new();
        let mut given = Vec::with_capacity(NAMES.len());
        for ((name, profile), key) in NAMES.into_iter().zip([&server, &client, &csi, &net]).zip([
            &keys.kubelet,
            &keys.kubelet,
            &keys.csi_provisioner,
            &keys.netservices,
        ]) {
            let path = path(name, id);
            given.push(match state.bytes(&path).await? {
                Some(stored) if Shown::read(&stored.value)?.public_key == Some(*key) => {
                    changes = changes.if_unchanged(&path, stored.modified);
                    stored.value.to_vec()
                }
                Some(_) => return Err(Error::OtherKey { name: format!("{name}-{id}") }),
                None => {
                    let der = authority.issue(profile, key, None, now)?;
                    changes = changes.if_unchanged(&path, Revision::NONE).put(&path, der.clone());
                    der
                }
            });
        }
        // Else somebody else was quicker.
        if state.change(changes).await?.is_some()
            && let Ok([kubelet_server, kubelet_client, csi_provisioner, netservices]) =
                <[Vec<u8>; 4]>::try_from(given)
        {
            return Ok(WorkerCertificates {
                authority: authority.der().to_vec(),
                kubelet_server,
                kubelet_client,
                csi_provisioner,
                netservices,
            });
        }
    }
}

/// Together with a node goes what it was given.
#[must_use]
pub fn forget(changes: Changes, id: &NodeId) -> Changes {
    NAMES.into_iter().fold(changes, |changes, name| changes.remove(&path(name, id)))
}

const NAMES: [&str; 4] = ["kubelet-server", "kubelet-client", "csi-provisioner", "netservices"];

fn path(name: &str, id: &NodeId) -> String {
    format!("{ISSUED}{name}-{id}-cert.der")
}

/// By [`NAMES`].
fn profiles(id: &NodeId) -> [Profile; 4] {
    let client = |name: String, group: &str| Profile {
        organization: Some(group.to_owned()),
        ..Profile::user(&name)
    };
    let kubelet = format!("system:node:{id}");
    [
        Profile::node(&kubelet),
        client(kubelet, "system:nodes"),
        client(format!("metropolis:csi-provisioner:{id}"), "metropolis:csi-provisioner"),
        client(format!("metropolis:netservices:{id}"), "metropolis:netservices"),
    ]
}

/// The authority of the store, which is made if there is none.
async fn authority(state: &State, now: SystemTime) -> Result<ClusterAuthority, Error> {
    loop {
        let key = state.bytes(AUTHORITY_KEY).await?;
        let missing = match (key, state.bytes(AUTHORITY_CERTIFICATE).await?) {
            (Some(key), Some(der)) => {
                let key = RawKey::from_bytes(&key.value)?;
                return Ok(ClusterAuthority::from_der(&der.value, key)?);
            }
            (Some(_), None) => AUTHORITY_CERTIFICATE,
            (None, Some(_)) => AUTHORITY_KEY,
            (None, None) => {
                let new = ClusterAuthority::generate(AUTHORITY, now)?;
                let changes = Changes::new()
                    .if_unchanged(AUTHORITY_KEY, Revision::NONE)
                    .if_unchanged(AUTHORITY_CERTIFICATE, Revision::NONE)
                    .put(AUTHORITY_KEY, new.key().bytes().to_vec())
                    .put(AUTHORITY_CERTIFICATE, new.der().to_vec());
                // Ours, or that of somebody who was quicker.
                state.change(changes).await?;
                continue;
            }
        };
        return Err(Error::Incomplete { missing: missing.to_owned() });
    }
}
