//! `machine.time`: where the node has its time from (spec/node-api §6.3).

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::names;
use super::network::is_false;
use crate::value::duration;

/// `machine.time`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Time {
    /// No timed, and nothing waits for it.
    #[serde(skip_serializing_if = "is_false")]
    pub disabled: bool,
    /// What [`TimeServer`] reads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// The authorities whose certificates servers of NTS show, PEM; empty means the system's roots.
    #[serde(
        rename = "ntsCA",
        with = "crate::value::pem",
        skip_serializing_if = "String::is_empty"
    )]
    pub nts_ca: String,
    /// How long the boot waits for the right time; `None`: it does not wait.
    #[serde(rename = "bootTimeout", with = "duration", skip_serializing_if = "Option::is_none")]
    pub boot_timeout: Option<Duration>,
}

/// One of `machine.time.servers`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimeServer {
    /// An NTP server: an IP address or a DNS name.
    Ntp(String),
    /// A server whose answers prove that they are its own (RFC 8915), by the name or address its
    /// certificate has, and the port of its key exchange: `nts://time.example.org`, `nts://[::1]:4461`.
    Nts(String, u16),
    /// A clock of the machine itself: `/dev/ptp0`.
    Ptp(PathBuf),
}

/// Where servers of NTS listen (RFC 8915 §7.1).
pub const NTS_PORT: u16 = 4460;

/// Why a text is no [`TimeServer`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no time server: an IP address, a DNS name, one of both behind nts://, or /dev/ptp0"
)]
pub struct NoTimeServer(String);

impl FromStr for TimeServer {
    type Err = NoTimeServer;

    fn from_str(text: &str) -> Result<Self, NoTimeServer> {
        let wrong = || NoTimeServer(text.to_owned());
        if let Some(number) = text.strip_prefix("/dev/ptp") {
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            return if is_number { Ok(Self::Ptp(text.into())) } else { Err(wrong()) };
        }
        if let Some(rest) = text.strip_prefix("nts://") {
            if !names::is_host_and_port(rest) {
                return Err(wrong());
            }
            let bare = |host: &str| host.trim_matches(['[', ']']).to_owned();
            return Ok(match rest.rsplit_once(':') {
                Some((host, port)) if rest.parse::<IpAddr>().is_err() => {
                    Self::Nts(bare(host), port.parse().map_err(|_| wrong())?)
                }
                _ => Self::Nts(rest.to_owned(), NTS_PORT),
            });
        }
        if text.parse::<IpAddr>().is_ok() || names::is_dns_name(text) {
            Ok(Self::Ntp(text.to_owned()))
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for TimeServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ntp(host) => f.write_str(host),
            Self::Nts(host, NTS_PORT) => write!(f, "nts://{host}"),
            Self::Nts(host, port) if host.contains(':') => write!(f, "nts://[{host}]:{port}"),
            Self::Nts(host, port) => write!(f, "nts://{host}:{port}"),
            Self::Ptp(device) => write!(f, "{}", device.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_name_an_address_or_a_device() {
        for text in [
            "time.example.org",
            "10.0.0.1",
            "2001:db8::1",
            "/dev/ptp0",
            "nts://time.example.org",
            "nts://10.0.0.1:4461",
            "nts://2001:db8::1",
            "nts://[2001:db8::1]:4461",
        ] {
            assert_eq!(
                text.parse::<TimeServer>().map(|server| server.to_string()).as_deref(),
                Ok(text)
            );
        }
        let default = TimeServer::Nts("::1".to_owned(), NTS_PORT);
        assert_eq!("nts://[::1]:4460".parse(), Ok(default));
        for text in [
            "",
            "a b",
            "ntp:123",
            "/dev/ptp",
            "/dev/ptp0/../mem",
            "/dev/sda",
            "10.0.0.0/8",
            "nts://",
            "nts://a b",
            "nts://a:0",
            "nts://a:70000",
            "nts:///dev/ptp0",
            "nts://nts://a",
            "ntp://a",
        ] {
            assert!(text.parse::<TimeServer>().is_err(), "{text}");
        }
    }
}
