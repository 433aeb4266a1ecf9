//! Connections to other nodes: one for each, made when it is first needed.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orlop_rpc::proxy::Backend;
use orlop_rpc::tls;
use rustls::ClientConfig;

use crate::machine::Target;

/// A connection nobody has asked for in this time is let go (calls over it end first).
const IDLE: Duration = Duration::from_secs(15 * 60);
/// Connections kept at most; beyond it the one unused for longest goes.
const MOST: usize = 4096;

/// The connections made with one identity.
pub(crate) struct Nodes {
    client: Arc<ClientConfig>,
    port: u16,
    /// By host. Held for a look-up only.
    known: Mutex<HashMap<String, Known>>,
}

struct Known {
    backend: Backend,
    used: Instant,
}

impl Nodes {
    pub(crate) fn new(client: Arc<ClientConfig>, port: u16) -> Self {
        Self { client, port, known: Mutex::default() }
    }

    /// The connection to a node; it is dialled by the first call over it.
    pub(crate) fn get(&self, target: &Target, now: Instant) -> Backend {
        // A panic elsewhere leaves the map whole.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = known.get_mut(&target.host) {
            node.used = now;
            return node.backend.clone();
        }
        known.retain(|_, node| now.saturating_duration_since(node.used) < IDLE);
        if known.len() >= MOST
            && let Some(stale) = known.iter().min_by_key(|(_, node)| node.used)
        {
            let stale = stale.0.clone();
            known.remove(&stale);
        }
        let lane = tls::lane(&target.host, self.port, Arc::clone(&self.client));
        let backend = Backend::new(format!("apid of {}", target.typed), lane);
        known.insert(target.host.clone(), Known { backend: backend.clone(), used: now });
        backend
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("port", &self.port).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_pki::{Authority, KeyKind};

    use super::*;

    #[tokio::test]
    async fn connections_are_kept_while_used_and_never_too_many() {
        let ca = Authority::generate("talos", KeyKind::Ed25519, IDLE, std::time::SystemTime::now());
        let client = orlop_pki::tls::client_config(&ca.unwrap().pair().crt, None).unwrap();
        let nodes = Nodes::new(client, 50_000);
        let hosts = || {
            let mut hosts: Vec<_> = nodes.known.lock().unwrap().keys().cloned().collect();
            hosts.sort();
            hosts
        };
        let target = |host: String| Target { typed: host.clone(), host };
        let start = Instant::now();
        nodes.get(&target("a".to_owned()), start);
        nodes.get(&target("b".to_owned()), start);
        nodes.get(&target("b".to_owned()), start + IDLE / 2);
        nodes.get(&target("c".to_owned()), start + IDLE);
        assert_eq!(hosts(), ["b", "c"]);
        for n in 0..MOST {
            nodes.get(&target(format!("n{n}")), start + IDLE);
        }
        let hosts = hosts();
        assert_eq!(hosts.len(), MOST);
        assert!(!hosts.contains(&"b".to_owned()), "the one unused for longest went");
    }
}
