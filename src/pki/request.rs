//! Certificate signing requests (RFC 2986): made by nodes, read where they are signed.
//!
//! What a request asks for is only reported here; what is granted of it, the signer decides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509;

use crate::authority::generate_key;
use crate::{Error, KeyKind, Secret, encoding};

/// The longest common name (RFC 5280, `ub-common-name`).
const COMMON_NAME_LIMIT: usize = 64;
/// No node has more names and addresses than this.
const NAMES_LIMIT: usize = 256;
/// Sizes of RSA keys that are worth signing, in bits: the largest is cheap to check.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// A request whose sender has proven to hold the key in it.
#[derive(Debug)]
pub struct Request {
    /// CN, empty when there is none.
    pub common_name: String,
    /// O: the roles it asks for.
    pub organizations: Vec<String>,
    /// DNS names among its SANs, as they came.
    pub dns: Vec<String>,
    /// Addresses among its SANs.
    pub ips: Vec<IpAddr>,
    /// How many SANs of other kinds it has: URIs, mail addresses.
    pub others: usize,
    /// The key to certify.
    pub(crate) key: SubjectPublicKeyInfo,
}

impl Request {
    /// Reads a request from PEM and checks its signature (RFC 2986 §4.2).
    ///
    /// # Errors
    /// [`Error::NoRequest`] when there is none in the text; [`Error::Request`] when it cannot be parsed,
    /// its key is none we certify, or its signature does not hold.
    pub fn from_pem(text: &[u8]) -> Result<Self, Error> {
        let block = pem::parse(text).map_err(|_| Error::NoRequest)?;
        if !matches!(block.tag(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(Error::NoRequest);
        }
        Self::from_der(block.contents())
    }

    fn from_der(der: &[u8]) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Request(why.to_owned());
        let request = match X509CertificationRequest::from_der(der) {
            Ok(([], request)) => request,
            Ok(_) => return Err(wrong("bytes follow its end")),
            Err(error) => return Err(Error::Request(error.to_string())),
        };
        let info = &request.certification_request_info;
        // Before the signature, whose check costs most with keys we do not want.
        certifiable(&info.subject_pki)?;
        request.verify_signature().map_err(|_| wrong("its signature does not hold"))?;
        let mut names = info.subject.iter_common_name().map(|name| name.as_str());
        let common_name = match (names.next(), names.next()) {
            (None, _) => "",
            (Some(Ok(name)), None) => name,
            _ => return Err(wrong("the subject has several common names, or one that is no text")),
        };
        if common_name.len() > COMMON_NAME_LIMIT || common_name.contains(char::is_control) {
            return Err(wrong("the common name is too long, or no line of text"));
        }
        let organizations = info.subject.iter_organization();
        let mut this = Self {
            common_name: common_name.to_owned(),
            organizations: organizations
                .map(|name| name.as_str().unwrap_or("?").to_owned())
                .take(NAMES_LIMIT)
                .collect(),
            dns: Vec::new(),
            ips: Vec::new(),
            others: 0,
            key: SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
                .map_err(|error| Error::Request(error.to_string()))?,
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            match extension {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        this.note(name)?;
                    }
                }
                ParsedExtension::ParseError { .. } => {
                    return Err(wrong("an extension in it is malformed"));
                }
                _ => {}
            }
        }
        Ok(this)
    }

    fn note(&mut self, name: &GeneralName<'_>) -> Result<(), Error> {
        match name {
            GeneralName::DNSName(name) => self.dns.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => self.ips.push(
                address(bytes).ok_or_else(|| Error::Request("a SAN is no address".to_owned()))?,
            ),
            _ => self.others += 1,
        }
        if self.dns.len() + self.ips.len() + self.others > NAMES_LIMIT {
            return Err(Error::Request(format!("it has more than {NAMES_LIMIT} SANs")));
        }
        Ok(())
    }
}

/// Makes a new Ed25519 key and a request for it, in PEM.
///
/// # Errors
/// When there is no randomness, or a name is no DNS name.
pub fn make(common_name: &str, dns: &[String], ips: &[IpAddr]) -> Result<(String, Secret), Error> {
    let key = generate_key(KeyKind::Ed25519)?;
    Ok((write(&key, common_name, None, dns, ips)?, encoding::key_to_pem(&key)))
}

/// Makes a new Ed25519 key, in PEM.
///
/// # Errors
/// When there is no randomness.
pub fn new_key() -> Result<Secret, Error> {
    Ok(encoding::key_to_pem(&generate_key(KeyKind::Ed25519)?))
}

/// Makes a request for a key that exists; `organization` is the role it asks for.
///
/// # Errors
/// When the key cannot be read, or a name is no DNS name.
pub fn for_key(
    key: &str,
    common_name: &str,
    organization: Option<&str>,
    dns: &[String],
    ips: &[IpAddr],
) -> Result<String, Error> {
    let key = KeyPair::try_from(&encoding::private_key(key)?).map_err(Error::Key)?;
    write(&key, common_name, organization, dns, ips)
}

fn write(
    key: &KeyPair,
    common_name: &str,
    organization: Option<&str>,
    dns: &[String],
    ips: &[IpAddr],
) -> Result<String, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if !common_name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    for name in dns {
        let name = name.as_str().try_into().map_err(Error::Issue)?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
    params.serialize_request(key).and_then(|request| request.pem()).map_err(Error::Issue)
}

/// The kinds of keys we certify: Ed25519, ECDSA over P-256 and P-384, RSA of a usual size.
fn certifiable(key: &x509::SubjectPublicKeyInfo<'_>) -> Result<(), Error> {
    let algorithm = &key.algorithm;
    let sound = if algorithm.algorithm == OID_SIG_ED25519 {
        key.subject_public_key.data.len() == 32
    } else if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
        curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384)
    } else if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        matches!(key.parsed(), Ok(PublicKey::RSA(key)) if RSA_BITS.contains(&key.key_size()))
    } else {
        false
    };
    if sound {
        return Ok(());
    }
    let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
    Err(Error::Request(format!(
        "its key is neither Ed25519 nor ECDSA (P-256, P-384) nor RSA of {least} to {most} bits"
    )))
}

pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;
    use rcgen::{KeyPair, SigningKey as _};

    use super::*;
    use crate::encoding::{der, der_content};

    fn sound() -> Vec<u8> {
        let ips = ["10.0.0.7".parse().unwrap(), "::1".parse().unwrap()];
        let (text, _) = make("node-1", &["node-1.lan".to_owned()], &ips).unwrap();
        pem::parse(text).unwrap().into_contents()
    }

    fn refusal(der: &[u8]) -> String {
        Request::from_der(der).unwrap_err().to_string()
    }

    /// A request signed with `key` that says `spki` is its key.
    fn with_key(spki: &[u8], key: &KeyPair) -> Vec<u8> {
        let sound = sound();
        let request = X509CertificationRequest::from_der(&sound).unwrap().1;
        let info = &request.certification_request_info;
        let subject = info.subject.as_raw();
        let version = [0x02, 0x01, 0x00];
        let info = der(0x30, &[&version[..], subject, spki, &[0xa0, 0x00]].concat());
        let signature = der(0x03, &[&[0], &key.sign(&info).unwrap()[..]].concat());
        let ed25519 = der(0x30, &[0x06, 0x03, 0x2b, 0x65, 0x70]);
        der(0x30, &[info, ed25519, signature].concat())
    }

    fn rsa_key(bits: usize) -> Vec<u8> {
        let rsa = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
        let mut modulus = vec![0xff; bits / 8];
        modulus.insert(0, 0);
        let numbers = [der(0x02, &modulus), der(0x02, &[1, 0, 1])].concat();
        let key = der(0x03, &[&[0], &der(0x30, &numbers)[..]].concat());
        der(0x30, &[der(0x30, &rsa), key].concat())
    }

    #[test]
    fn what_is_made_is_read() {
        let ips: [IpAddr; 2] = ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let dns = ["node-1".to_owned(), "node-1.lan".to_owned()];
        let (text, key) = make("node-1", &dns, &ips).unwrap();
        let read = Request::from_pem(text.as_bytes()).unwrap();
        assert_eq!((read.common_name.as_str(), read.others), ("node-1", 0));
        assert_eq!((&read.dns[..], &read.ips[..]), (&dns[..], &ips[..]));
        assert_eq!(read.organizations, [""; 0]);
        assert!(key.expose().starts_with("-----BEGIN ED25519 PRIVATE KEY-----\n"));
    }

    #[test]
    fn what_is_no_request_is_told_from_a_broken_one() {
        let certificate = pem::encode(&pem::Pem::new("CERTIFICATE", sound()));
        for text in ["", "garbage", "-----BEGIN CERTIFICATE REQUEST-----", &certificate] {
            let error = Request::from_pem(text.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), "failed to decode CSR");
        }
        let garbage = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", [1, 2, 3]));
        let error = Request::from_pem(garbage.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("failed to parse CSR: "), "{error}");
        let trailing = [&sound()[..], &[0]].concat();
        assert_eq!(refusal(&trailing), "failed to parse CSR: bytes follow its end");
    }

    #[test]
    fn a_request_for_somebody_elses_key_is_refused() {
        let (mine, theirs) = (
            KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
            KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        );
        use rcgen::PublicKeyData as _;
        let forged = with_key(&theirs.subject_public_key_info(), &mine);
        assert_eq!(refusal(&forged), "failed to parse CSR: its signature does not hold");
        Request::from_der(&with_key(&mine.subject_public_key_info(), &mine)).unwrap();
    }

    #[test]
    fn keys_of_unusual_kinds_are_refused_before_any_arithmetic() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        for bits in [512, 1024, 8192, 16384] {
            let error = refusal(&with_key(&rsa_key(bits), &key));
            assert!(error.contains("its key is neither"), "{bits}: {error}");
        }
        // Of the right size: then it is the signature that does not hold.
        assert!(refusal(&with_key(&rsa_key(4096), &key)).contains("signature"));
    }

    #[test]
    fn other_keys_of_usual_kinds_are_taken() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let params = CertificateParams::new(vec!["node-2".to_owned()]).unwrap();
            let text = params.serialize_request(&key).unwrap().pem().unwrap();
            assert_eq!(Request::from_pem(text.as_bytes()).unwrap().dns, ["node-2"]);
        }
    }

    #[test]
    fn one_changed_bit_is_noticed_or_means_nothing() {
        let sound = sound();
        let read = |der: &[u8]| Request::from_der(der).map(|request| format!("{request:?}")).ok();
        let meant = read(&sound);
        let noticed = (0..sound.len() * 8).filter(|at| {
            let mut changed = sound.clone();
            changed[at / 8] ^= 1 << (at % 8);
            let read = read(&changed);
            assert!(read.is_none() || read == meant, "bit {at}");
            read.is_none()
        });
        assert!(noticed.count() > sound.len() * 7);
    }

    #[test]
    fn a_crowd_of_names_is_refused() {
        let many: Vec<_> = (0..=NAMES_LIMIT).map(|n| format!("n{n}")).collect();
        let (text, _) = make("x", &many, &[]).unwrap();
        let error = Request::from_pem(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "failed to parse CSR: it has more than 256 SANs");
        let (text, _) = make(&"x".repeat(65), &[], &[]).unwrap();
        Request::from_pem(text.as_bytes()).unwrap_err();
        let (text, _) = make("a\nb", &[], &[]).unwrap();
        Request::from_pem(text.as_bytes()).unwrap_err();
    }

    proptest! {
        #[test]
        fn names_and_addresses_survive(
            dns in proptest::collection::vec("[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", 0..8),
            v4: Vec<[u8; 4]>,
        ) {
            let ips: Vec<IpAddr> = v4.into_iter().map(IpAddr::from).collect();
            let (text, _) = make("node", &dns, &ips).unwrap();
            let read = Request::from_pem(text.as_bytes()).unwrap();
            prop_assert_eq!((read.dns, read.ips), (dns, ips));
        }

        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Request::from_pem(&bytes);
            let _ = Request::from_der(&bytes);
        }
    }

    #[test]
    fn the_content_of_a_request_is_what_der_says() {
        let sound = sound();
        assert_eq!(der(0x30, der_content(&sound)), sound);
    }
}
