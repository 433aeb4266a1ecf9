//! Keys, certificates and the rustls configurations made of them: the one place that knows how.
//!
//! - [`Authority`] is a CA with its key: it makes itself or is read from PEM, and issues leaves
//!   ([`Leaf`]) that are good for one thing, serving or being a client, never both.
//! - [`Request`] is a certificate signing request, which [`request::make`] makes with its key.
//! - [`certificate`] reads what others need of a certificate: expiry, roles, key fingerprint.
//! - [`signature`] has the keys that sign and check tokens.
//! - [`tls`] turns PEM into rustls configurations with mutual authentication, [`stranger`] into those of
//!   a node that nobody knows yet, [`clockless`] into those of one that does not know the time.
//! - [`cluster`] has what the cluster API needs: raw Ed25519 keys, its authority, nodes told by their keys.
//!
//! The cryptography is ring's throughout, named explicitly; nothing is installed process-wide.
//! The time is passed in where certificates are made; rustls reads the system clock when it
//! verifies. Every parser here takes bytes from outside and answers garbage with an [`Error`].

#![forbid(unsafe_code)]

mod authority;
pub mod certificate;
pub mod clockless;
pub mod cluster;
pub mod encoding;
pub mod request;
mod secret;
pub mod signature;
pub mod stranger;
pub mod tls;

pub use authority::{Authority, KeyKind, Leaf, Usage, self_signed};
pub use certificate::{fingerprint, not_after};
pub use request::Request;
pub use secret::Secret;

/// A certificate and its private key, as the configuration files hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// PEM, type `CERTIFICATE`.
    pub crt: String,
    /// PEM around PKCS#8, type `ED25519 PRIVATE KEY` or `PRIVATE KEY`.
    pub key: Secret,
}

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no PEM at all.
    #[error("read {what} as PEM")]
    Pem {
        /// `certificate` or `private key`.
        what: &'static str,
        /// Why not.
        source: pem::PemError,
    },
    /// The text is PEM, but holds nothing of the kind asked for.
    #[error("read {what}: the PEM text holds none")]
    Absent {
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// A certificate cannot be decoded.
    #[error("read certificate: {0}")]
    Certificate(String),
    /// A private key cannot be decoded, or is of a kind ring does not know.
    #[error("read private key")]
    Key(#[source] rcgen::Error),
    /// Certificate and key were given together but do not belong together.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// A text that should hold a certificate signing request holds none (the words are the API's).
    #[error("failed to decode CSR")]
    NoRequest,
    /// A key that should sign or check tokens cannot be decoded, or is of another kind.
    #[error("read signing key: {0}")]
    SigningKey(String),
    /// A certificate signing request cannot be taken (the words are the API's).
    #[error("failed to parse CSR: {0}")]
    Request(String),
    /// A certificate was signed by none of the authorities given.
    #[error("the certificate is not signed by any of the authorities given")]
    Foreign,
    /// A certificate that may not issue others was given as an authority.
    #[error("the certificate is not one of a certificate authority")]
    NotAuthority,
    /// The lifetime leads past what a certificate can express.
    #[error("certificate lifetime of {} h is out of range", .0.as_secs() / 3600)]
    Lifetime(std::time::Duration),
    /// A certificate could not be signed.
    #[error("issue certificate")]
    Issue(#[source] rcgen::Error),
    /// rustls refuses the certificate or key.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    /// rustls refuses the authorities given.
    #[error("set up the verification of peers")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// The kernel's random number generator failed.
    #[error("the system gives no random numbers")]
    Random,
}
