//! A certificate authority and the leaves it issues.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SigningKey as _,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::PrivatePkcs8KeyDer;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::encoding::{der, der_content};
use crate::{Error, Pair, Request, certificate, encoding};

/// How long before it was made a certificate is already valid: peers' clocks may lag behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// The algorithm of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Ed25519: the machine's authority and all it issues.
    Ed25519,
    /// ECDSA over P-256: Kubernetes and etcd, whose clients do not all know Ed25519.
    P256,
}

/// What a leaf may be used for: exactly one thing, so that a server's certificate opens no door; but for
/// the members of etcd, each of which is a server and a client of every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// serverAuth only.
    Server,
    /// clientAuth only.
    Client,
    /// Both: a member of etcd.
    Peer,
}

/// A certificate to issue.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// CN.
    pub common_name: String,
    /// O, once for each: the roles of a client.
    pub organizations: Vec<String>,
    /// Server or client.
    pub usage: Usage,
    /// DNS names of a server.
    pub dns: Vec<String>,
    /// Addresses of a server; clients dial by address, so they are essential.
    pub ips: Vec<IpAddr>,
    /// From now on; it is valid an hour before, too.
    pub lifetime: Duration,
}

/// A CA certificate with its key.
#[derive(Debug)]
pub struct Authority {
    pair: Pair,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new self-signed authority: O is `organization`, and it may sign leaves only.
    ///
    /// # Errors
    /// When there is no randomness, or the lifetime is out of range.
    pub fn generate(
        organization: &str,
        kind: KeyKind,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let key = generate_key(kind)?;
        let mut params = params(lifetime, now)?;
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        let crt = params.self_signed(&key).map_err(Error::Issue)?.pem();
        let pair = Pair { crt, key: encoding::key_to_pem(&key) };
        Ok(Self { pair, issuer: Issuer::new(params, key) })
    }

    /// Reads an authority from PEM; of several certificates, the first is the one that issues.
    ///
    /// # Errors
    /// When either cannot be read, they do not belong together, or it is no authority.
    pub fn from_pem(crt: &str, key: &str) -> Result<Self, Error> {
        let certificates = encoding::certificates(crt)?;
        let der = certificates.first().ok_or(Error::Absent { what: "certificate" })?;
        let key_der = encoding::private_key(key)?;
        let key_pair = KeyPair::try_from(&key_der).map_err(Error::Key)?;
        let decoded = certificate::decode(der)?;
        if decoded.public_key().subject_public_key.data.as_ref() != key_pair.der_bytes() {
            return Err(Error::Mismatch);
        }
        if !decoded.is_ca() {
            return Err(Error::NotAuthority);
        }
        let pair = Pair { crt: crt.to_owned(), key: encoding::key_to_pem(&key_pair) };
        let issuer = Issuer::from_ca_cert_der(der, key_pair).map_err(Error::Issue)?;
        Ok(Self { pair, issuer })
    }

    /// The authority's own certificate and key.
    #[must_use]
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// Issues a leaf with a new key, of the same kind as the authority's (P-256 below an RSA one).
    ///
    /// # Errors
    /// When there is no randomness, a name is no DNS name, or the lifetime is out of range.
    pub fn issue(&self, leaf: &Leaf, now: SystemTime) -> Result<Pair, Error> {
        let ed25519 = self.issuer.key().algorithm() == &rcgen::PKCS_ED25519;
        let key = generate_key(if ed25519 { KeyKind::Ed25519 } else { KeyKind::P256 })?;
        Ok(Pair { crt: self.sign(leaf, &key, now)?, key: encoding::key_to_pem(&key) })
    }

    /// Issues a leaf for the key of a request, in PEM. Of what the request asks for nothing but the key
    /// is taken: the rest is the caller's decision, in `leaf`.
    ///
    /// # Errors
    /// When there is no randomness, a name is no DNS name, or the lifetime is out of range.
    pub fn certify(
        &self,
        leaf: &Leaf,
        request: &Request,
        now: SystemTime,
    ) -> Result<String, Error> {
        self.sign(leaf, &request.key, now)
    }

    fn sign(
        &self,
        leaf: &Leaf,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<String, Error> {
        let mut params = leaf_params(leaf, now)?;
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(key, &self.issuer).map_err(Error::Issue)?;
        Ok(match leaf.organizations.get(1..) {
            None | Some([]) => signed.pem(),
            Some(further) => {
                encoding::certificate_to_pem(&self.with_further(signed.der(), further)?)
            }
        })
    }

    /// The same certificate with further organizations in its subject, signed again: rcgen takes
    /// one value for each attribute of a name, but a client may have several roles.
    fn with_further(&self, crt: &[u8], organizations: &[String]) -> Result<Vec<u8>, Error> {
        /// `id-at-organizationName`, 2.5.4.10.
        const ORGANIZATION: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x0a];
        let decoded = certificate::decode(crt)?;
        let (tbs, old) = (decoded.tbs_certificate.as_ref(), decoded.subject().as_raw());
        let mut subject = der_content(old).to_vec();
        for organization in organizations {
            let value = der(0x0c, organization.as_bytes());
            let attribute = der(0x30, &[&ORGANIZATION[..], &value].concat());
            subject.extend(der(0x31, &attribute));
        }
        let (before, after) = around(der_content(tbs), old);
        let new_tbs = der(0x30, &[before, &der(0x30, &subject), after].concat());

        let (_, rest) = around(crt, tbs);
        let old_signature = der(0x03, &[&[0], decoded.signature_value.data.as_ref()].concat());
        let algorithm = &rest[..rest.len() - old_signature.len()];
        let signature = self.issuer.key().sign(&new_tbs).map_err(Error::Issue)?;
        let signature = der(0x03, &[&[0], &signature[..]].concat());
        Ok(der(0x30, &[&new_tbs, algorithm, &signature].concat()))
    }
}

/// Makes a leaf with a new Ed25519 key that nobody but itself vouches for. Of several organizations only
/// the first is in it.
///
/// # Errors
/// When there is no randomness, a name is no DNS name, or the lifetime is out of range.
pub fn self_signed(leaf: &Leaf, now: SystemTime) -> Result<Pair, Error> {
    let key = generate_key(KeyKind::Ed25519)?;
    let signed = leaf_params(leaf, now)?.self_signed(&key).map_err(Error::Issue)?;
    Ok(Pair { crt: signed.pem(), key: encoding::key_to_pem(&key) })
}

/// What is in a leaf, but for its key and further organizations.
fn leaf_params(leaf: &Leaf, now: SystemTime) -> Result<CertificateParams, Error> {
    let mut params = params(leaf.lifetime, now)?;
    if !leaf.common_name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, leaf.common_name.as_str());
    }
    if let Some(organization) = leaf.organizations.first() {
        params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
    }
    for name in &leaf.dns {
        let name = name.as_str().try_into().map_err(Error::Issue)?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.subject_alt_names.extend(leaf.ips.iter().copied().map(SanType::IpAddress));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match leaf.usage {
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Peer => {
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
        }
    };
    Ok(params)
}

/// A new key. An Ed25519 one is written as PKCS#8 version 1 (RFC 8410 §7), without the public key:
/// OpenSSL before 3.2 refuses version 2, which ring would write.
pub(crate) fn generate_key(kind: KeyKind) -> Result<KeyPair, Error> {
    match kind {
        KeyKind::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(Error::Key),
        KeyKind::Ed25519 => {
            let mut seed = Zeroizing::new([0; 32]);
            SystemRandom::new().fill(&mut seed[..]).map_err(|_| Error::Random)?;
            ed25519_key(&seed)
        }
    }
}

/// The Ed25519 key of a seed.
pub(crate) fn ed25519_key(seed: &Zeroizing<[u8; 32]>) -> Result<KeyPair, Error> {
    let mut der = Zeroizing::new([0; 48]);
    der[..16].copy_from_slice(&encoding::ED25519_HEAD);
    der[16..].copy_from_slice(&seed[..]);
    let der = PrivatePkcs8KeyDer::from(&der[..]);
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).map_err(Error::Key)
}

/// The bytes of `outer` before and after `inner`, which must be a part of it.
fn around<'a>(outer: &'a [u8], inner: &[u8]) -> (&'a [u8], &'a [u8]) {
    let start = inner.as_ptr().addr() - outer.as_ptr().addr();
    (&outer[..start], &outer[start + inner.len()..])
}

/// What all certificates have in common: a random serial of 128 bits and the validity.
fn params(lifetime: Duration, now: SystemTime) -> Result<CertificateParams, Error> {
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| Error::Random)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    (params.not_before, params.not_after) =
        validity(lifetime, now).ok_or(Error::Lifetime(lifetime))?;
    Ok(params)
}

fn validity(lifetime: Duration, now: SystemTime) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = OffsetDateTime::from_unix_timestamp(i64::try_from(now).ok()?).ok()?;
    let lifetime = time::Duration::try_from(lifetime).ok()?;
    let not_before = now.checked_sub(time::Duration::try_from(BACKDATED).ok()?)?;
    Some((not_before, now.checked_add(lifetime)?))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::certificate::{decode, fingerprint, not_after, organizations, validity};

    const YEAR: Duration = Duration::from_secs(8760 * 3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    fn authority(kind: KeyKind) -> Authority {
        Authority::generate("talos", kind, 10 * YEAR, now()).unwrap()
    }

    fn admin(roles: &[&str]) -> Leaf {
        Leaf {
            common_name: "admin".to_owned(),
            organizations: roles.iter().map(|role| (*role).to_owned()).collect(),
            usage: Usage::Client,
            dns: Vec::new(),
            ips: Vec::new(),
            lifetime: YEAR,
        }
    }

    fn der_of(pair: &Pair) -> Vec<u8> {
        encoding::certificates(&pair.crt).unwrap().remove(0).to_vec()
    }

    #[test]
    fn an_authority_survives_its_own_pem() {
        for kind in [KeyKind::Ed25519, KeyKind::P256] {
            let made = authority(kind);
            let read = Authority::from_pem(&made.pair().crt, made.pair().key.expose()).unwrap();
            assert_eq!(read.pair(), made.pair());
            let leaf = der_of(&read.issue(&admin(&["os:admin"]), now()).unwrap());
            let root = der_of(made.pair());
            let root = decode(&root).unwrap();
            decode(&leaf).unwrap().verify_signature(Some(root.public_key())).unwrap();
            assert_eq!(decode(&leaf).unwrap().issuer().as_raw(), root.subject().as_raw());
        }
    }

    #[test]
    fn a_leaf_is_good_for_one_thing_only() {
        let authority = authority(KeyKind::Ed25519);
        for usage in [Usage::Server, Usage::Client, Usage::Peer] {
            let leaf = der_of(&authority.issue(&Leaf { usage, ..admin(&[]) }, now()).unwrap());
            let leaf = decode(&leaf).unwrap();
            let eku = leaf.extended_key_usage().unwrap().unwrap().value;
            assert_eq!(
                (eku.server_auth, eku.client_auth),
                (usage != Usage::Client, usage != Usage::Server)
            );
            assert!(!eku.any && eku.other.is_empty() && !leaf.is_ca());
            assert!(leaf.raw_serial().len() >= 15, "{:?}", leaf.raw_serial());
        }
    }

    #[test]
    fn only_the_key_of_a_request_is_taken() {
        let authority = authority(KeyKind::Ed25519);
        let (text, key) = crate::request::make("other", &["other".to_owned()], &[]).unwrap();
        let request = Request::from_pem(text.as_bytes()).unwrap();
        let leaf = Leaf { usage: Usage::Server, ..admin(&[]) };
        let crt = authority.certify(&leaf, &request, now()).unwrap();
        let der = encoding::certificates(&crt).unwrap().remove(0);
        let read = decode(&der).unwrap();
        assert_eq!(read.subject().to_string(), "CN=admin");
        assert!(read.subject_alternative_name().unwrap().is_none());
        crate::tls::server_config(&authority.pair().crt, &crt, key.expose()).unwrap();
    }

    #[test]
    fn a_client_has_all_its_roles_and_the_signature_still_holds() {
        let authority = authority(KeyKind::Ed25519);
        let root = der_of(authority.pair());
        let roles = ["os:reader", "os:etcd:backup", "os:meta:writer"];
        for count in 0..=roles.len() {
            let leaf = der_of(&authority.issue(&admin(&roles[..count]), now()).unwrap());
            assert_eq!(organizations(&leaf).unwrap(), roles[..count]);
            let leaf = decode(&leaf).unwrap();
            leaf.verify_signature(Some(decode(&root).unwrap().public_key())).unwrap();
            assert_eq!(
                leaf.subject().iter_common_name().next().unwrap().as_str().unwrap(),
                "admin"
            );
        }
    }

    #[test]
    fn a_blank_organization_is_no_role() {
        let leaf = authority(KeyKind::Ed25519).issue(&admin(&["", " "]), now()).unwrap();
        assert_eq!(organizations(&der_of(&leaf)).unwrap(), [""; 0]);
    }

    #[test]
    fn validity_is_backdated_and_ends_when_asked() {
        let leaf = authority(KeyKind::P256).issue(&admin(&[]), now()).unwrap();
        assert_eq!(validity(&leaf.crt).unwrap(), (now() - BACKDATED, now() + YEAR));
        assert_eq!(not_after(&leaf.crt).unwrap(), now() + YEAR);
        let dead_clock = SystemTime::UNIX_EPOCH;
        let leaf = authority(KeyKind::P256).issue(&admin(&[]), dead_clock).unwrap();
        assert_eq!(not_after(&leaf.crt).unwrap(), dead_clock + YEAR);
    }

    #[test]
    fn an_impossible_lifetime_is_an_error() {
        let error = Authority::generate("talos", KeyKind::P256, Duration::MAX, now()).unwrap_err();
        assert!(matches!(error, Error::Lifetime(_)), "{error}");
    }

    #[test]
    fn a_foreign_key_and_a_leaf_are_no_authority() {
        let (one, other) = (authority(KeyKind::Ed25519), authority(KeyKind::Ed25519));
        let error = Authority::from_pem(&one.pair().crt, other.pair().key.expose()).unwrap_err();
        assert_eq!(error.to_string(), "the private key does not belong to the certificate");
        let leaf = one.issue(&admin(&[]), now()).unwrap();
        let error = Authority::from_pem(&leaf.crt, leaf.key.expose()).unwrap_err();
        assert!(matches!(error, Error::NotAuthority), "{error}");
    }

    #[test]
    fn fingerprints_name_keys() {
        let (one, other) = (authority(KeyKind::Ed25519), authority(KeyKind::Ed25519));
        let print = fingerprint(&one.pair().crt).unwrap();
        assert_eq!(print.len(), 44);
        assert_ne!(print, fingerprint(&other.pair().crt).unwrap());
    }
}
