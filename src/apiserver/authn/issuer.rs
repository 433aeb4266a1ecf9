//! The documents by which others check our tokens themselves: OpenID Connect Discovery 1.0 §3 and RFC 7517.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use orlop_pki::signature::{Numbers, VerifyingKey};
use serde_json::{Value, json};

use super::account::Accounts;

/// Where [`configuration`] is.
pub const CONFIGURATION_PATH: &str = "/.well-known/openid-configuration";
/// Where [`keys`] are.
pub const KEYS_PATH: &str = "/openid/v1/jwks";
/// The media type of [`keys`].
pub const KEYS_TYPE: &str = "application/jwk-set+json";

/// What [`CONFIGURATION_PATH`] answers; `server` is the URL this server is reached by, without a path.
#[must_use]
pub fn configuration(accounts: &Accounts, server: &str) -> Value {
    let mut algorithms: Vec<_> = accounts.keys().iter().map(|key| key.algorithm().name()).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    json!({
        "issuer": accounts.issuer(),
        "jwks_uri": format!("{}{KEYS_PATH}", server.trim_end_matches('/')),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    })
}

/// What [`KEYS_PATH`] answers.
#[must_use]
pub fn keys(accounts: &Accounts) -> Value {
    json!({"keys": accounts.keys().iter().map(key).collect::<Vec<_>>()})
}

/// RFC 7518 §6.
fn key(key: &VerifyingKey) -> Value {
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let mut document = match key.numbers() {
        Numbers::P256 { x, y } => {
            json!({"kty": "EC", "crv": "P-256", "x": number(x), "y": number(y)})
        }
        Numbers::Rsa { n, e } => json!({"kty": "RSA", "n": number(n), "e": number(e)}),
    };
    document["use"] = "sig".into();
    document["kid"] = key.id().into();
    document["alg"] = key.algorithm().name().into();
    document
}
