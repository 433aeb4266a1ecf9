//! `interfaces[].wireguard`: an encrypted link (wireguard.com, "WireGuard: Next Generation Kernel
//! Network Tunnel" §5.4).

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use orlop_pki::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::value::{Spelled, duration, text, texts};

/// Options of a WireGuard link.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Wireguard {
    /// Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key: Option<SecretKey>,
    /// UDP; `None` leaves it to the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Put on the encrypted packets, for policy rules; `None` and 0 mean none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall_mark: Option<u32>,
    /// Whom it talks to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<WireguardPeer>,
}

/// The other end of an encrypted link.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct WireguardPeer {
    /// Who it is; required.
    #[serde(with = "text")]
    pub public_key: Option<PublicKey>,
    /// A second secret, that both ends have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<SecretKey>,
    /// Where it is; `None` waits for it to call.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Whole seconds, at most 65535; `None` and 0 send nothing to keep a way open.
    #[serde(with = "duration", skip_serializing_if = "Option::is_none")]
    pub persistent_keepalive_interval: Option<Duration>,
    /// What it may send from, and what is sent to it.
    #[serde(rename = "allowedIPs", with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub allowed_ips: Vec<IpNet>,
}

/// The public half of a key of Curve25519, base64 in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

/// A key of 32 bytes that nobody may see, base64 in the file: `Debug` prints `[redacted]`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(Secret);

impl SecretKey {
    /// Its bytes.
    #[must_use]
    pub fn expose(&self) -> [u8; 32] {
        key(self.0.expose()).unwrap_or_default()
    }
}

/// The bytes of a key: 43 characters of base64 and one `=` (44 in all).
fn key(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

impl Spelled for PublicKey {
    fn spelled(text: &str) -> Result<Self, String> {
        // Not the text: it might be the other half.
        key(text).map(Self).ok_or_else(|| NO_KEY.to_owned())
    }
}

const NO_KEY: &str = "no key of WireGuard: 32 bytes in base64 are 44 characters, the last one `=`; \
                      `wg genkey` makes one, `wg pubkey` its public half";

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for SecretKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Secret::deserialize(from)?;
        match key(text.expose()) {
            Some(_) => Ok(Self(text)),
            None => Err(serde::de::Error::custom(NO_KEY)),
        }
    }
}

impl Serialize for SecretKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl Spelled for SocketAddr {
    fn spelled(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            format!(
                "{text:?} is no address with a port such as 192.0.2.1:51820 or [2001:db8::1]:51820"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_is_read_as_it_is_written(bytes: [u8; 32], other: String) {
            let text = PublicKey(bytes).to_string();
            prop_assert_eq!(PublicKey::spelled(&text), Ok(PublicKey(bytes)));
            if let Ok(key) = PublicKey::spelled(&other) {
                prop_assert_eq!(key.to_string(), other);
            }
        }
    }
}
