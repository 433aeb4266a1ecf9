//! What the node is called, and the text of `/etc/resolv.conf` and `/etc/hosts` (node-api §9.5).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

/// How the node is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// One label.
    pub host_name: String,
    /// What follows it, if anything does.
    pub domain: Option<String>,
    /// The address that `/etc/hosts` gives the name.
    pub address: IpAddr,
}

/// What one interface says about the node's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its first address.
    pub address: IpAddr,
    /// Given by a server or by `ip=`; when there is none, the address makes one.
    pub host_name: Option<String>,
    /// Given by a server; replaces what follows the first label of the name.
    pub domain: Option<String>,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEntry {
    /// Whose names these are.
    pub address: IpAddr,
    /// At least one, or the line is left out.
    pub names: Vec<String>,
}

/// The address of a node that has none (Debian's habit, and G8's default name).
const NO_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
/// What resolvers of the C library read.
const MAX_RESOLVERS: usize = 3;

/// `name` without a final dot, when it is a host or domain name: labels of letters, digits, `-` and
/// `_`, at most 63 bytes each and 253 in all (RFC 1123 §2.1).
#[must_use]
pub fn valid(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let fits = name.len() <= 253 && name.split('.').all(valid_label);
    fits.then(|| name.to_owned())
}

fn valid_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=63).contains(&label.len())
        && label.bytes().all(allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl Identity {
    /// Later wins: the default, the first interface that names one, the operator's own (kernel
    /// argument, then configuration: `given`).
    #[must_use]
    pub fn choose(claim: Option<&Claim>, given: Option<&str>) -> Self {
        let address = claim.map_or(NO_ADDRESS.into(), |claim| claim.address);
        let claimed = claim.and_then(|claim| claim.host_name.clone());
        let name = claimed.unwrap_or_else(|| format!("talos-{}", dashed(address)));
        let (host_name, rest) = split(&name);
        let domain = claim.and_then(|claim| claim.domain.clone()).or(rest);
        let Some((given, own_domain)) = given.map(split) else {
            return Self { host_name, domain, address };
        };
        Self { host_name: given, domain: own_domain.or(domain), address }
    }
}

/// At the first dot, into host and domain name.
fn split(name: &str) -> (String, Option<String>) {
    match name.split_once('.') {
        Some((host, domain)) => (host.to_owned(), Some(domain.to_owned())),
        None => (name.to_owned(), None),
    }
}

fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The text of `/etc/resolv.conf`.
#[must_use]
pub fn resolv_conf(resolvers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::new();
    for resolver in resolvers.iter().take(MAX_RESOLVERS) {
        let _ = writeln!(text, "nameserver {resolver}");
    }
    // What resolvers of the C library read: six names, 256 bytes.
    let mut line = String::from("search");
    for domain in search.iter().take(6) {
        if line.len() + 1 + domain.len() <= 256 {
            let _ = write!(line, " {domain}");
        }
    }
    if !search.is_empty() {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// This node's own line of `/etc/hosts`, and the operator's.
#[must_use]
pub fn host_entries(identity: &Identity, extra: &[HostEntry]) -> Vec<HostEntry> {
    let Identity { host_name, domain, address } = identity;
    let full = domain.as_ref().map(|domain| format!("{host_name}.{domain}"));
    let names = full.into_iter().chain([host_name.clone()]).collect();
    let own = HostEntry { address: *address, names };
    std::iter::once(own).chain(extra.iter().cloned()).collect()
}

/// The time servers that DHCP gave, one on each line, each once: for timed.
#[must_use]
pub fn time_servers(given: impl IntoIterator<Item = String>) -> String {
    let mut seen = BTreeSet::new();
    let lines = given.into_iter().filter(|server| seen.insert(server.clone()));
    lines.map(|server| server + "\n").collect()
}

/// The text of `/etc/hosts`.
#[must_use]
pub fn hosts(identity: &Identity, extra: &[HostEntry]) -> String {
    let line = |entry: &HostEntry| format!("{} {}\n", entry.address, entry.names.join(" "));
    let entries = host_entries(identity, extra);
    let [own, extra @ ..] = &entries[..] else { return String::new() };
    let mut text = format!(
        "127.0.0.1 localhost\n\
         {}\
         ::1 localhost ip6-localhost ip6-loopback\n\
         ff02::1 ip6-allnodes\n\
         ff02::2 ip6-allrouters\n",
        line(own)
    );
    text.extend(extra.iter().filter(|entry| !entry.names.is_empty()).map(line));
    text
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn claim(host_name: Option<&str>, domain: Option<&str>) -> Claim {
        Claim {
            address: "10.0.2.15".parse().unwrap(),
            host_name: host_name.map(str::to_owned),
            domain: domain.map(str::to_owned),
        }
    }

    #[test]
    fn the_name_comes_from_who_has_the_last_word() {
        let cases = [
            (None, None, "talos-127-0-1-1", None),
            (Some(claim(None, None)), None, "talos-10-0-2-15", None),
            (Some(claim(None, Some("a.org"))), None, "talos-10-0-2-15", Some("a.org")),
            (Some(claim(Some("n1"), None)), None, "n1", None),
            (Some(claim(Some("n1.b.org"), None)), None, "n1", Some("b.org")),
            (Some(claim(Some("n1.b.org"), Some("a.org"))), None, "n1", Some("a.org")),
            (Some(claim(Some("n1"), Some("a.org"))), Some("n2"), "n2", Some("a.org")),
            (Some(claim(Some("n1"), Some("a.org"))), Some("n2.c.org"), "n2", Some("c.org")),
            (None, Some("n2"), "n2", None),
        ];
        for (claim, given, host_name, domain) in cases {
            let identity = Identity::choose(claim.as_ref(), given);
            assert_eq!(
                (identity.host_name.as_str(), identity.domain.as_deref()),
                (host_name, domain),
                "{claim:?} {given:?}"
            );
        }
    }

    #[test]
    fn names_with_anything_else_in_them_are_no_names() {
        for good in ["a", "a.b", "a-1", "_dns.b", "a.b."] {
            assert!(valid(good).is_some(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", ".", "a..b", "a b", "a\n", "-a", "a-", "ä", "a/b", &long] {
            assert_eq!(valid(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_time_server_is_told_once() {
        let given = ["10.0.0.1", "fd00::7b", "10.0.0.1"].map(str::to_owned);
        assert_eq!(time_servers(given), "10.0.0.1\nfd00::7b\n");
        assert_eq!(time_servers([]), "");
    }

    #[test]
    fn resolv_conf_has_at_most_three_resolvers() {
        let resolvers: Vec<IpAddr> = (1..5).map(|i| Ipv4Addr::new(10, 0, 0, i).into()).collect();
        let text = "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nsearch a.org\n";
        assert_eq!(resolv_conf(&resolvers, &["a.org".to_owned()]), text);
        assert_eq!(resolv_conf(&resolvers[..1], &[]), "nameserver 10.0.0.1\n");
    }

    #[test]
    fn only_so_many_domains_are_searched() {
        let long = format!("{0}.{0}.{0}.org", "a".repeat(62));
        let search = |domains: &[&str]| {
            let domains: Vec<_> = domains.iter().map(|domain| (*domain).to_owned()).collect();
            resolv_conf(&[], &domains)
        };
        assert_eq!(search(&["1", "2", "3", "4", "5", "6", "7"]), "search 1 2 3 4 5 6\n");
        assert_eq!(search(&[&long, &long, "b.org"]), format!("search {long} b.org\n"));
    }

    #[test]
    fn hosts_names_this_node_and_the_extra_ones() {
        let identity = Identity::choose(Some(&claim(Some("n1"), Some("a.org"))), None);
        let extra = [HostEntry {
            address: "10.1.1.1".parse().unwrap(),
            names: vec!["registry".to_owned(), "mirror".to_owned()],
        }];
        let text = hosts(&identity, &extra);
        assert!(text.starts_with("127.0.0.1 localhost\n10.0.2.15 n1.a.org n1\n::1 localhost"));
        assert!(text.ends_with("ip6-allrouters\n10.1.1.1 registry mirror\n"));
    }
}
