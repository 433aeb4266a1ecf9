//! What a node may have in its certificate (node-api §4.3). Pure.
//!
//! A node proves nothing but that it holds the token, and where it calls from. So it gets that address,
//! loopback, and what the operator allows every node (`machine.certSANs`). A DNS name it gets unless the
//! cluster goes by it, or another node has it: a name belongs to the address that had it first, for as
//! long as a certificate for it is valid. What is not granted is left out and told, so that a node with
//! one address too many still gets its certificate. Roles are never granted, and no use but serving.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use orlop_pki::{Leaf, Request, Usage};

/// How long a certificate is valid.
pub(crate) const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How many names are remembered with their owners.
const OWNERS: usize = 8192;

/// The operator's word on names and addresses, and who has which name.
#[derive(Debug)]
pub(crate) struct Policy {
    allowed: BTreeSet<String>,
    allowed_ips: BTreeSet<IpAddr>,
    reserved: BTreeSet<String>,
    reserved_ips: BTreeSet<IpAddr>,
    /// Where a name was granted to, and until when.
    owners: HashMap<String, (IpAddr, SystemTime)>,
}

/// What a node gets.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) leaf: Leaf,
    /// What it does not get, as text.
    pub(crate) refused: Vec<String>,
}

impl Policy {
    /// Every node may have what is in `allowed`, none what is in `reserved`, which prevails.
    pub(crate) fn new(allowed: &[String], reserved: &[String]) -> Self {
        let (allowed, allowed_ips) = sort(allowed);
        let (reserved, reserved_ips) = sort(reserved);
        Self { allowed, allowed_ips, reserved, reserved_ips, owners: HashMap::new() }
    }

    /// Decides on a request from `peer`; `own` are this node's names, which no other may have.
    pub(crate) fn decide(
        &mut self,
        request: &Request,
        peer: IpAddr,
        own: &BTreeSet<String>,
        now: SystemTime,
    ) -> Grant {
        let mut refused: Vec<String> =
            request.organizations.iter().map(|role| format!("O={role}")).collect();
        let mut dns = BTreeSet::new();
        for asked in &request.dns {
            let name = asked.trim_end_matches('.').to_ascii_lowercase();
            if self.may_be_called(&name, peer, own, now) {
                dns.insert(name);
            } else {
                refused.push(asked.clone());
            }
        }
        let mut ips = BTreeSet::new();
        for ip in &request.ips {
            if self.may_have(*ip, peer) {
                ips.insert(*ip);
            } else {
                refused.push(ip.to_string());
            }
        }
        if request.others > 0 {
            refused.push(format!("{} SANs of other kinds", request.others));
        }
        let leaf = Leaf {
            common_name: request.common_name.clone(),
            organizations: Vec::new(),
            usage: Usage::Server,
            dns: dns.into_iter().collect(),
            ips: ips.into_iter().collect(),
            lifetime: LIFETIME,
        };
        Grant { leaf, refused }
    }

    fn may_have(&self, ip: IpAddr, peer: IpAddr) -> bool {
        ip.is_loopback()
            || !self.reserved_ips.contains(&ip) && (ip == peer || self.allowed_ips.contains(&ip))
    }

    fn may_be_called(
        &mut self,
        name: &str,
        peer: IpAddr,
        own: &BTreeSet<String>,
        now: SystemTime,
    ) -> bool {
        if !is_host_name(name)
            || self.reserved.contains(name)
            || name == "kubernetes"
            || name.starts_with("kubernetes.")
        {
            return false;
        }
        if self.allowed.contains(name) || name == "localhost" {
            return true;
        }
        if own.contains(name) && !peer.is_loopback() {
            return false;
        }
        match self.owners.get(name) {
            Some((owner, until)) if *owner != peer && holds(*until, now) => return false,
            None if self.owners.len() >= OWNERS => self.forget(now),
            _ => {}
        }
        self.owners.insert(name.to_owned(), (peer, now + LIFETIME));
        true
    }

    /// Makes room for one more.
    fn forget(&mut self, now: SystemTime) {
        self.owners.retain(|_, (_, until)| holds(*until, now));
        if self.owners.len() >= OWNERS
            && let Some(first) = self.owners.iter().min_by_key(|(_, (_, until))| *until)
        {
            let first = first.0.clone();
            self.owners.remove(&first);
        }
    }
}

/// Whether something granted until then still holds. A clock that was ahead has granted nothing.
fn holds(until: SystemTime, now: SystemTime) -> bool {
    until > now && until <= now + LIFETIME
}

fn sort(names: &[String]) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let (mut dns, mut ips) = (BTreeSet::new(), BTreeSet::new());
    for name in names {
        match name.parse::<IpAddr>() {
            Ok(ip) => ips.insert(ip.to_canonical()),
            Err(_) => dns.insert(name.to_ascii_lowercase()),
        };
    }
    (dns, ips)
}

/// RFC 1123 §2.1, in lower case, underscores tolerated; no wildcard, nothing that reads as an address.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.split('.').all(label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use orlop_pki::request;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const PEER: [u8; 4] = [10, 0, 0, 7];

    fn policy() -> Policy {
        let texts =
            |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Policy::new(
            &texts(&["api.example.org", "192.0.2.1", "192.0.2.2"]),
            &texts(&["k8s.example.org", "192.0.2.2"]),
        )
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    fn asking(dns: &[&str], ips: &[&str]) -> Request {
        let dns: Vec<_> = dns.iter().map(|name| (*name).to_owned()).collect();
        let ips: Vec<_> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let (text, _) = request::make("node-1", &dns, &ips).unwrap();
        Request::from_pem(text.as_bytes()).unwrap()
    }

    fn own() -> BTreeSet<String> {
        BTreeSet::from(["control-1".to_owned()])
    }

    #[test]
    fn a_node_gets_the_address_it_calls_from_loopback_and_what_all_may_have() {
        let asked = ["10.0.0.7", "127.0.0.1", "::1", "192.0.2.1", "10.0.0.8", "192.0.2.2"];
        let grant = policy().decide(&asking(&[], &asked), PEER.into(), &own(), now());
        let ips: Vec<_> = grant.leaf.ips.iter().map(IpAddr::to_string).collect();
        assert_eq!(ips, ["10.0.0.7", "127.0.0.1", "192.0.2.1", "::1"]);
        assert_eq!(grant.refused, ["10.0.0.8", "192.0.2.2"]);
        assert_eq!((grant.leaf.usage, grant.leaf.lifetime), (Usage::Server, LIFETIME));
    }

    #[test]
    fn names_of_the_cluster_and_of_this_node_are_nobodys() {
        let refused = [
            "kubernetes",
            "kubernetes.default.svc.cluster.local",
            "Kubernetes.default",
            "k8s.example.org",
            "k8s.example.org.",
            "control-1",
            "*.example.org",
            "10.0.0.8",
            "a..b",
            "-a",
        ];
        let granted = ["api.example.org", "localhost", "node-1", "node-1.example.org"];
        let asked = [&refused[..], &granted[..]].concat();
        let grant = policy().decide(&asking(&asked, &[]), PEER.into(), &own(), now());
        assert_eq!(grant.refused, refused);
        assert_eq!(grant.leaf.dns, granted);
    }

    #[test]
    fn a_name_is_its_first_owners_until_the_certificate_has_expired() {
        let mut policy = policy();
        let mut gets = |peer: u8, now| {
            let grant = policy.decide(
                &asking(&["node-1"], &[]),
                IpAddr::from([10, 0, 0, peer]),
                &own(),
                now,
            );
            !grant.leaf.dns.is_empty()
        };
        assert!(gets(7, now()));
        assert!(!gets(8, now()));
        assert!(gets(7, now() + LIFETIME / 2));
        assert!(!gets(8, now() + LIFETIME), "renewed at half time");
        assert!(gets(8, now() + LIFETIME * 3 / 2));
        assert!(!gets(7, now() + LIFETIME * 3 / 2));
    }

    #[test]
    fn owners_are_bounded() {
        let mut policy = policy();
        for n in 0..OWNERS + 100 {
            let name = format!("n{n}");
            assert!(policy.may_be_called(&name, PEER.into(), &own(), now()));
        }
        assert_eq!(policy.owners.len(), OWNERS);
        assert!(policy.may_be_called("x", PEER.into(), &own(), now() + 2 * LIFETIME));
        assert_eq!(policy.owners.len(), 1);
    }

    #[test]
    fn a_clock_set_back_does_not_keep_names_for_good() {
        let mut policy = policy();
        let future = now() + 1000 * LIFETIME;
        assert!(policy.may_be_called("x", PEER.into(), &own(), future));
        let other = IpAddr::from([10, 0, 0, 9]);
        assert!(policy.may_be_called("x", other, &own(), now()));
    }

    /// Names as an attacker would write them: those of others, in all spellings, and rubbish.
    fn any_name() -> impl Strategy<Value = String> {
        const KNOWN: &[&str] =
            &["kubernetes", "k8s.example.org", "control-1", "api.example.org", "node-1", "*"];
        let part = prop_oneof![select(KNOWN).prop_map(str::to_owned), "[ -~]{0,12}"];
        (vec(part, 1..3), select(&["", ".", "..", ".svc"][..]), any::<bool>()).prop_map(
            |(parts, end, capitals)| {
                let name = parts.join(".") + end;
                if capitals { name.to_uppercase() } else { name }
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_no_name_or_address_of_another_is_granted(
            dns in vec(any_name(), 0..8),
            ips in vec(any::<IpAddr>(), 0..8),
            organizations in vec("[ -~]{0,12}", 0..3),
        ) {
            // As if it had been read of a request: not every name can be put into one.
            let mut request = asking(&[], &[]);
            (request.dns, request.ips, request.organizations) = (dns, ips, organizations);
            let grant = policy().decide(&request, PEER.into(), &own(), now());
            for name in &grant.leaf.dns {
                let asked = |asked: &String| asked.to_ascii_lowercase().trim_end_matches('.') == name;
                prop_assert!(request.dns.iter().any(asked), "{} was not asked for", name);
                let others = ["kubernetes", "k8s.example.org", "control-1"];
                prop_assert!(!others.contains(&name.as_str()) && !name.starts_with("kubernetes."));
                prop_assert!(!name.contains('*') && name.parse::<IpAddr>().is_err(), "{}", name);
            }
            let peer = IpAddr::from(PEER);
            let everybodys = IpAddr::from([192, 0, 2, 1]);
            for ip in &grant.leaf.ips {
                prop_assert!(ip.is_loopback() || [peer, everybodys].contains(ip), "{}", ip);
            }
            prop_assert!(grant.leaf.organizations.is_empty());
            prop_assert_eq!(grant.leaf.usage, Usage::Server);
        }
    }
}
