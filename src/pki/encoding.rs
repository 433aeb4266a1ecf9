//! PEM in and out.
//!
//! An Ed25519 key is written as `ED25519 PRIVATE KEY` around PKCS#8, as the existing tools expect
//! it; they and others also write `PRIVATE KEY`. Both are read, and so are `EC PRIVATE KEY` (SEC 1,
//! P-256) and `RSA PRIVATE KEY` (PKCS#1), which Go programs write for Kubernetes authorities.

use pem::{EncodeConfig, LineEnding, Pem};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::{Error, Secret};

/// The PEM type of an Ed25519 key.
pub(crate) const ED25519_LABEL: &str = "ED25519 PRIVATE KEY";
/// The PEM type of any other PKCS#8 key (RFC 7468 §10).
pub(crate) const PKCS8_LABEL: &str = "PRIVATE KEY";
/// The PEM type of a SEC 1 key (RFC 5915 §4).
const SEC1_LABEL: &str = "EC PRIVATE KEY";
/// The PEM type of a PKCS#1 key (RFC 8017 appendix A.1.2).
const PKCS1_LABEL: &str = "RSA PRIVATE KEY";

/// All certificates of a PEM text, in order; blocks of other kinds are skipped.
///
/// # Errors
/// When the text is not PEM, or holds no certificate.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> = blocks("certificate", text)?
        .into_iter()
        .filter(|block| block.tag() == "CERTIFICATE")
        .map(|block| CertificateDer::from(block.into_contents()))
        .collect();
    if certificates.is_empty() {
        return Err(Error::Absent { what: "certificate" });
    }
    Ok(certificates)
}

/// The first private key of a PEM text, as PKCS#8. Whether the key itself is sound is not checked.
///
/// # Errors
/// When the text is not PEM, or holds no private key.
pub fn private_key(text: &str) -> Result<PrivatePkcs8KeyDer<'static>, Error> {
    blocks("private key", text)?
        .into_iter()
        .find_map(|block| match block.tag() {
            ED25519_LABEL | PKCS8_LABEL => Some(block.into_contents()),
            SEC1_LABEL => Some(pkcs8(&P256, block.contents())),
            PKCS1_LABEL => Some(pkcs8(&RSA, block.contents())),
            _ => None,
        })
        .map(PrivatePkcs8KeyDer::from)
        .ok_or(Error::Absent { what: "private key" })
}

/// The PEM text of a certificate.
pub fn certificate_to_pem(der: &[u8]) -> String {
    encode(&Pem::new("CERTIFICATE", der))
}

/// The PEM text of a private key.
pub(crate) fn key_to_pem(key: &rcgen::KeyPair) -> Secret {
    let label = if key.algorithm() == &rcgen::PKCS_ED25519 { ED25519_LABEL } else { PKCS8_LABEL };
    Secret::new(encode(&Pem::new(label, key.serialized_der())))
}

pub(crate) fn encode(block: &Pem) -> String {
    pem::encode_config(block, EncodeConfig::new().set_line_ending(LineEnding::LF))
}

pub(crate) fn blocks(what: &'static str, text: &str) -> Result<Vec<Pem>, Error> {
    pem::parse_many(text).map_err(|source| Error::Pem { what, source })
}

/// What comes before the seed in the PKCS#8 of an Ed25519 key, version 1 (RFC 8410 §7).
pub(crate) const ED25519_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// `id-ecPublicKey` with `prime256v1` (RFC 5480).
pub(crate) const P256: [u8; 21] = [
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 0x03, 0x01, 0x07,
];
/// `rsaEncryption` with NULL (RFC 8017 appendix A.1).
pub(crate) const RSA: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// Wraps the key of an algorithm into a `PrivateKeyInfo` of version 0 (RFC 5208 §5). What is not such
/// a key comes out as garbage, which the reader of the key refuses.
fn pkcs8(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    const VERSION: [u8; 3] = [0x02, 0x01, 0x00];
    der(0x30, &[&VERSION, algorithm, &der(0x04, key)].concat())
}

/// A DER value: tag, length, content.
pub(crate) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut value = vec![tag];
    match (significant, u8::try_from(significant.len())) {
        ([], _) => value.push(0),
        ([short @ 0..=0x7f], _) => value.push(*short),
        (_, Ok(count)) => {
            value.push(0x80 | count);
            value.extend_from_slice(significant);
        }
        (_, Err(_)) => unreachable!("a usize has at most 8 bytes"),
    }
    value.extend_from_slice(content);
    value
}

/// The content of a sound DER value.
pub(crate) fn der_content(value: &[u8]) -> &[u8] {
    match value[1] {
        0..=0x7f => &value[2..],
        count => &value[2 + usize::from(count & 0x7f)..],
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn der_lengths_are_the_shortest() {
        assert_eq!(der(4, &[]), [4, 0]);
        assert_eq!(der(4, &[7; 127])[..2], [4, 127]);
        assert_eq!(der(4, &[7; 128])[..3], [4, 0x81, 128]);
        assert_eq!(der(4, &[7; 256])[..4], [4, 0x82, 1, 0]);
    }

    #[test]
    fn a_key_is_read_under_each_of_its_names() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let text = key_to_pem(&key);
        assert!(text.expose().starts_with("-----BEGIN ED25519 PRIVATE KEY-----\n"));
        let plain = text.expose().replace("ED25519 PRIVATE", "PRIVATE");
        for text in [text.expose(), &plain] {
            assert_eq!(private_key(text).unwrap().secret_pkcs8_der(), key.serialized_der());
        }
    }

    #[test]
    fn a_sec1_key_becomes_pkcs8() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        // ring writes the same structure around its ECPrivateKey: two lengths, the head, a length.
        let sec1 = &key.serialized_der()[3 + 24 - 1 + 3..];
        let start = sec1.iter().position(|byte| *byte == 0x30).unwrap();
        let text = pem::encode(&Pem::new(SEC1_LABEL, &sec1[start..]));
        assert_eq!(private_key(&text).unwrap().secret_pkcs8_der(), key.serialized_der());
    }

    #[test]
    fn a_pkcs1_key_becomes_pkcs8() {
        // `openssl genrsa -traditional 2048` wrote it; nothing depends on it.
        let text = include_str!("testdata/rsa-pkcs1.key");
        let key = private_key(text).unwrap();
        let key = rcgen::KeyPair::try_from(&key).unwrap();
        assert_eq!(key.algorithm(), &rcgen::PKCS_RSA_SHA256);
    }

    #[test]
    fn says_what_is_missing() {
        let error = private_key("").unwrap_err().to_string();
        assert_eq!(error, "read private key: the PEM text holds none");
        let certificate = pem::encode(&Pem::new("CERTIFICATE", [1, 2, 3]));
        assert!(private_key(&certificate).is_err());
        assert_eq!(certificates(&certificate).unwrap()[0].as_ref(), [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "(-----BEGIN [A-Z0-9 ]*-----\n)?[ -~\n]*(-----END [A-Z ]*-----)?") {
            let _ = certificates(&text);
            let _ = private_key(&text);
        }

        #[test]
        fn a_sound_frame_around_any_bytes_never_panics(bytes: Vec<u8>, label in "(EC |ED25519 |RSA |)PRIVATE KEY|CERTIFICATE") {
            let text = pem::encode(&Pem::new(label, bytes));
            let _ = private_key(&text).map(|key| rcgen::KeyPair::try_from(&key));
            let _ = crate::certificate::not_after(&text);
            let _ = crate::certificate::fingerprint(&text);
        }
    }
}
