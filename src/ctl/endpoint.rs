//! Where a node's API is dialled: `host`, `host:port`, IPv6 bare or in brackets.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// apid's port when an endpoint names none.
pub(crate) const PORT: u16 = 50000;

/// A host to dial. It prints as it was typed, which is also how it appears under `NODE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    typed: String,
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Why something is no endpoint, and what may have been meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{typed:?} is no endpoint: {why}; {}", suggest(try_instead.as_deref()))]
pub(crate) struct Error {
    typed: String,
    why: &'static str,
    try_instead: Option<String>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.typed)
    }
}

impl Endpoint {
    /// The port, if one was typed: other APIs have other defaults.
    pub(crate) fn typed_port(&self) -> Option<u16> {
        let bare = self.typed == self.host || self.typed == format!("[{}]", self.host);
        (!bare).then_some(self.port)
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(typed: &str) -> Result<Self, Error> {
        parse(typed).map(|(host, port)| Self { typed: typed.to_owned(), host, port }).map_err(
            |why| {
                // A URL is the usual slip: what is between its scheme and its path may do.
                let bare = typed.split_once("://").map_or(typed, |(_, rest)| rest);
                let bare = bare.split(['/', '?', '#']).next().unwrap_or_default();
                let try_instead = (bare != typed && parse(bare).is_ok()).then(|| bare.to_owned());
                Error { typed: typed.to_owned(), why, try_instead }
            },
        )
    }
}

/// Whether `typed` can be a target: a host, which apid dials at its own port.
///
/// # Errors
/// The host alone, when it is one with something around it.
pub(crate) fn target(typed: &str) -> Result<(), Option<String>> {
    match Endpoint::from_str(typed) {
        Ok(Endpoint { host, .. }) if typed == host || typed == format!("[{host}]") => Ok(()),
        Ok(Endpoint { host, .. }) => Err(Some(host)),
        Err(Error { try_instead, .. }) => {
            Err(try_instead.and_then(|bare| Some(bare.parse::<Endpoint>().ok()?.host)))
        }
    }
}

fn parse(typed: &str) -> Result<(String, u16), &'static str> {
    if typed.parse::<Ipv6Addr>().is_ok() {
        return Ok((typed.to_owned(), PORT));
    }
    if let Some(rest) = typed.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("the bracket is never closed")?;
        host.parse::<Ipv6Addr>().map_err(|_| "only an IPv6 address stands in brackets")?;
        let port = match after {
            "" => PORT,
            _ => port(after.strip_prefix(':').ok_or("only a port may follow the bracket")?)?,
        };
        return Ok((host.to_owned(), port));
    }
    let (host, port) = match typed.split_once(':') {
        Some((host, after)) => (host, port(after)?),
        None => (typed, PORT),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    match host {
        "" => Err("the host is missing"),
        _ if host.chars().all(allowed) => Ok((host.to_owned(), port)),
        _ => Err("a host has only letters, digits, dots and dashes"),
    }
}

fn port(text: &str) -> Result<u16, &'static str> {
    match text.parse() {
        Ok(0) | Err(_) => Err("the port is not a number from 1 to 65535"),
        Ok(port) => Ok(port),
    }
}

fn suggest(instead: Option<&str>) -> String {
    match instead {
        Some(bare) => format!("try: {bare:?}"),
        None => "write HOST, HOST:PORT or [IPv6]:PORT".to_owned(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_ports_and_both_forms_of_ipv6_are_understood() {
        let cases = [
            ("10.0.0.2", "10.0.0.2", 50000),
            ("node-1.example:6443", "node-1.example", 6443),
            ("fd00::2", "fd00::2", 50000),
            ("[fd00::2]", "fd00::2", 50000),
            ("[fd00::2]:1", "fd00::2", 1),
        ];
        for (typed, host, port) in cases {
            let endpoint: Endpoint = typed.parse().unwrap();
            assert_eq!(endpoint.typed_port(), (port != PORT).then_some(port), "{typed}");
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, port));
            assert_eq!(endpoint.to_string(), typed);
        }
    }

    #[test]
    fn a_url_is_refused_with_what_was_meant() {
        let error = "https://10.0.0.2:50000/".parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.ends_with("try: \"10.0.0.2:50000\""), "{error}");
        let error = "https://[fd00::2]".parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.ends_with("try: \"[fd00::2]\""), "{error}");
    }

    #[test]
    fn a_target_has_no_port() {
        for typed in ["10.0.0.2", "node-1", "fd00::2", "[fd00::2]"] {
            assert_eq!(target(typed), Ok(()), "{typed}");
        }
        let meant = |host: &str| Err(Some(host.to_owned()));
        assert_eq!(target("10.0.0.2:50000"), meant("10.0.0.2"));
        assert_eq!(target("[fd00::2]:50000"), meant("fd00::2"));
        assert_eq!(target("https://a:50000/"), meant("a"));
        assert_eq!(target("a b"), Err(None));
    }

    #[test]
    fn what_cannot_be_dialled_is_refused() {
        for typed in
            ["", ":50000", "a:0", "a:65536", "a:b", "a b", "[::1", "[a]:1", "[::1]1", "1:2:3"]
        {
            let error = typed.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains("write HOST, HOST:PORT or [IPv6]:PORT"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn reading_an_endpoint_never_panics(typed in "\\PC*|[a-f0-9:.\\[\\]/]*") {
            let _ = typed.parse::<Endpoint>();
        }

        #[test]
        fn host_and_port_come_back(host in "[a-z0-9.-]{1,20}", port in 1u16..) {
            let endpoint: Endpoint = format!("{host}:{port}").parse().unwrap();
            prop_assert_eq!((endpoint.host, endpoint.port), (host, port));
        }
    }
}
