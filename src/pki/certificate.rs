//! What others need to know of a certificate.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::{Error, encoding, request};

/// When the first certificate of a PEM text expires.
///
/// # Errors
/// When there is no certificate, or it cannot be decoded.
pub fn not_after(pem: &str) -> Result<SystemTime, Error> {
    first(pem, |certificate| system_time(certificate.validity().not_after.timestamp()))
}

/// From when to when the first certificate of a PEM text is valid.
///
/// # Errors
/// When there is no certificate, or it cannot be decoded.
pub fn validity(pem: &str) -> Result<(SystemTime, SystemTime), Error> {
    first(pem, validity_of)
}

/// [`validity`], of a peer's certificate (DER).
///
/// # Errors
/// When the certificate cannot be decoded.
pub fn validity_of_der(der: &[u8]) -> Result<(SystemTime, SystemTime), Error> {
    decode(der).map(|certificate| validity_of(&certificate))
}

fn validity_of(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let validity = certificate.validity();
    (system_time(validity.not_before.timestamp()), system_time(validity.not_after.timestamp()))
}

/// Base64 of the SHA-256 of the public key (SPKI) of the first certificate of a PEM text: what an
/// operator compares before trusting a node, and what the log names a certificate by.
///
/// # Errors
/// When there is no certificate, or it cannot be decoded.
pub fn fingerprint(pem: &str) -> Result<String, Error> {
    first(pem, fingerprint_of)
}

/// [`fingerprint`], of a decoded certificate.
pub(crate) fn fingerprint_of(certificate: &X509Certificate<'_>) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate.public_key().raw);
    STANDARD.encode(digest)
}

/// The roles a peer's certificate (DER) grants: its organizations, blank ones left out.
///
/// # Errors
/// When the certificate cannot be decoded.
pub fn organizations(der: &[u8]) -> Result<Vec<String>, Error> {
    let certificate = decode(der)?;
    Ok(certificate
        .subject()
        .iter_organization()
        .filter_map(|name| name.as_str().ok())
        .filter(|name| !name.trim().is_empty())
        .map(str::to_owned)
        .collect())
}

/// Whom a certificate is about, as Kubernetes names users and their groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// CN; empty when there is none, the last of several.
    pub common_name: String,
    /// O, each as it is written, in order.
    pub organizations: Vec<String>,
    /// Lower-case hex of the SHA-256 of the whole certificate.
    pub digest: String,
}

/// Whom a peer's certificate (DER) is about.
///
/// # Errors
/// When the certificate cannot be decoded.
pub fn subject(der: &[u8]) -> Result<Subject, Error> {
    let certificate = decode(der)?;
    let subject = certificate.subject();
    let text = |name: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        name.as_str().map(str::to_owned).map_err(|error| Error::Certificate(error.to_string()))
    };
    let common_name = subject.iter_common_name().last().map(text).transpose()?;
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    Ok(Subject {
        common_name: common_name.unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect::<Result<_, _>>()?,
        digest: digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// The names and addresses the first certificate of a PEM text speaks for.
///
/// # Errors
/// When there is no certificate, or it cannot be decoded.
pub fn names(pem: &str) -> Result<(Vec<String>, Vec<IpAddr>), Error> {
    first(pem, |certificate| {
        let (mut dns, mut ips) = (Vec::new(), Vec::new());
        let names = certificate.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => ips.extend(request::address(bytes)),
                _ => {}
            }
        }
        (dns, ips)
    })
}

/// Checks that the first certificate of `crt` is signed by one in `ca` (both PEM). Whether it is valid
/// at some time, and for what, is not asked.
///
/// # Errors
/// [`Error::Foreign`] when it is not; others when a text cannot be read.
pub fn check_issuer(crt: &str, ca: &str) -> Result<(), Error> {
    let authorities = encoding::certificates(ca)?;
    let signed = first(crt, |certificate| {
        authorities.iter().filter_map(|der| decode(der).ok()).any(|authority| {
            authority.is_ca()
                && authority.subject().as_raw() == certificate.issuer().as_raw()
                && certificate.verify_signature(Some(authority.public_key())).is_ok()
        })
    })?;
    if signed { Ok(()) } else { Err(Error::Foreign) }
}

/// Decodes a certificate that must fill `der` to its end.
pub(crate) fn decode(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Error::Certificate("bytes follow its end".to_owned())),
        Err(error) => Err(Error::Certificate(error.to_string())),
    }
}

fn first<T>(pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T, Error> {
    let certificates = encoding::certificates(pem)?;
    let der = certificates.first().ok_or(Error::Absent { what: "certificate" })?;
    Ok(read(&decode(der)?))
}

/// Seconds since 1970, negative before.
pub(crate) fn system_time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}
