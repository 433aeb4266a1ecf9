//! How names are spelled: of hosts, links, kernel settings, variables, labels. All pure.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};

/// The file of a setting below `/proc/sys` or `/sys`, relative to it, by the rule of sysctl.d(5):
/// the first separator decides. After a dot, dots separate and a slash stands for a dot:
/// `net.ipv4.conf.eth0/100.forwarding`; after a slash, slashes separate and dots are dots.
/// `None` when it is no such name, or would lead elsewhere.
#[must_use]
pub fn sysctl_path(name: &str) -> Option<PathBuf> {
    let path = match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('.') => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    };
    let component = |part: &str| {
        !matches!(part, "" | "." | "..") && part.bytes().all(|byte| byte.is_ascii_graphic())
    };
    (name.len() <= 255 && path.split('/').all(component)).then(|| PathBuf::from(path))
}

/// RFC 1123 §2.1: labels of letters, digits and inner hyphens.
pub(super) fn is_dns_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// What is wrong with a host name; its first label becomes the kernel's `nodename`.
pub(super) fn host_name(name: &str) -> Option<String> {
    if name.len() > 253 {
        return Some(format!("it has {} of at most 253 characters", name.len()));
    }
    let label = name.split('.').find(|label| !is_label(label))?;
    Some(match label.len() {
        0 => format!("{name:?} has an empty part"),
        1..=63 => format!("{label:?} must be letters, digits and inner hyphens"),
        length => format!("a part of it has {length} of at most 63 characters"),
    })
}

/// An address, or a DNS name, as certificates have it: with `*` for its first label, if you like.
pub(super) fn is_san(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || is_dns_name(name.strip_prefix("*.").unwrap_or(name))
}

/// A DNS name or an address.
pub(super) fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_dns_name(text)
}

/// A DNS name or an address, and maybe a port.
pub(super) fn is_host_and_port(text: &str) -> bool {
    if text.parse::<IpAddr>().is_ok() {
        return true;
    }
    let host = match text.rsplit_once(':') {
        Some((host, port)) if port.parse().is_ok_and(|port: u16| port > 0) => host,
        Some(_) => return false,
        None => text,
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    is_dns_name(host) || inner.is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok())
}

/// What is wrong with a link's name (`dev_valid_name` in net/core/dev.c).
pub(super) fn interface(name: &str) -> Option<String> {
    /// `IFNAMSIZ` without its NUL.
    const LONGEST: usize = 15;
    if name.len() > LONGEST {
        return Some(format!("{name:?} has {} of at most {LONGEST} bytes", name.len()));
    }
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (name.is_empty() || name == "." || name == ".." || name.contains(bad))
        .then(|| format!("{name:?} is no name of a link: no white space, no slash, no colon"))
}

/// What is wrong with a path on the node.
pub(super) fn absolute(path: &str) -> Option<String> {
    let parts = Path::new(path).components();
    let sound = path.starts_with('/')
        && !path.contains('\0')
        && parts.clone().count() > 1
        && !parts.clone().any(|part| part == Component::ParentDir);
    (!sound).then(|| format!("{path:?} must be an absolute path without `..`, and not `/`"))
}

/// `[a-z0-9]{6}.[a-z0-9]{16}`: what Kubernetes takes for a bootstrap token.
pub(super) fn is_token(token: &str) -> bool {
    let part = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    token
        .split_once('.')
        .is_some_and(|(id, secret)| id.len() == 6 && secret.len() == 16 && part(id) && part(secret))
}

/// The name of an environment variable (POSIX.1-2017 §8.1).
pub(super) fn is_variable(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
}

/// A kernel module.
pub(super) fn is_module(name: &str) -> bool {
    (1..=55).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// A token of HTTP (RFC 9110 §5.6.2), which the name of a header is.
pub(super) fn is_header(name: &str) -> bool {
    let byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(byte)
}

/// The key of a label: `[prefix/]name`, the prefix a DNS name (Kubernetes, "Labels and Selectors").
pub(super) fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_name(prefix) && !name.is_empty() && is_label_value(name),
        None => !key.is_empty() && is_label_value(key),
    }
}

/// The value of a label: at most 63 characters, empty or with letters or digits at its ends.
pub(super) fn is_label_value(value: &str) -> bool {
    let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let end = |c: char| c.is_ascii_alphanumeric();
    value.is_empty()
        || (value.len() <= 63
            && value.bytes().all(byte)
            && value.starts_with(end)
            && value.ends_with(end))
}

/// Six bytes in hexadecimal with colons, of one station (IEEE 802).
pub(super) fn is_station(mac: &str) -> bool {
    let bytes: Option<Vec<u8>> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2))
        .collect();
    bytes.is_some_and(|bytes| bytes.len() == 6 && bytes != [0; 6] && bytes[0] & 1 == 0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_separator_of_a_sysctl_decides() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("vm.max_map_count", "vm/max_map_count"),
        ] {
            assert_eq!(sysctl_path(name).unwrap(), Path::new(path), "{name}");
        }
        for wrong in [
            "",
            ".",
            "..",
            "a..b",
            "/etc/passwd",
            "a/../../etc/passwd",
            "a.//.b",
            "kernel.",
            ".kernel",
            "a b",
            "a\0b",
            "kernel.hostnäme",
        ] {
            assert_eq!(sysctl_path(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn links_have_short_names_without_separators() {
        for right in ["eth0", "bond0.100", "a23456789012345"] {
            assert_eq!(interface(right), None, "{right}");
        }
        for wrong in
            ["", ".", "..", "a234567890123456", "a/b", "a b", "a:b", "a\n", "ä234567890123456"]
        {
            assert!(interface(wrong).is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn hosts_and_ports_are_told_from_addresses() {
        for right in
            ["docker.io", "a:5000", "10.0.0.1:5000", "[fd00::1]:5000", "fd00::1", "10.0.0.1"]
        {
            assert!(is_host_and_port(right), "{right}");
        }
        for wrong in ["", "https://a", "a:0", "a:70000", "a/b", "a:", "a b"] {
            assert!(!is_host_and_port(wrong), "{wrong}");
        }
    }

    #[test]
    fn labels_stations_tokens_and_headers_are_spelled_as_their_rules_say() {
        assert!(is_label_key("example.org/rack") && is_label_key("rack") && is_label_value(""));
        assert!(!is_label_key("/rack") && !is_label_key("a/b/c") && !is_label_key(""));
        assert!(!is_label_value("-a") && !is_label_value(&"a".repeat(64)));
        assert!(is_station("02:00:00:00:00:01") && !is_station("01:00:5e:00:00:01"));
        assert!(!is_station("2:0:0:0:0:1") && !is_station("00:00:00:00:00:00"));
        assert!(is_token("0123ab.0123456789abcdef") && !is_token("0123AB.0123456789abcdef"));
        assert!(is_header("X-Token") && !is_header("X Token") && !is_header(""));
        assert!(is_variable("http_proxy") && !is_variable("2x") && !is_variable("a-b"));
    }

    proptest! {
        #[test]
        fn a_sysctls_path_stays_below_its_folder(name in "(\\PC|[./]){0,20}") {
            if let Some(path) = sysctl_path(&name) {
                let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
                prop_assert!(path.components().all(normal));
            }
        }
    }
}
