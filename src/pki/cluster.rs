//! Keys and certificates of the cluster API (spec/cluster-api §1.2–1.5): Ed25519 throughout.
//!
//! A node is who its key says: its id is the first half of the key. An authority certifies nodes (good for serving) and
//! users (good for being a client), and lists what it has revoked. Who has no certificate yet shows one that it made
//! itself ([`ephemeral`]), which says nothing but which key it holds. A curator is told by the pinned authority, never by
//! the name it is dialled by, and clients do not look at dates: a node may not know the time yet.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use pem::Pem;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData, RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;
use zeroize::Zeroizing;

use crate::authority::{Usage, ed25519_key};
use crate::certificate::{self, system_time};
use crate::tls::{ALPN_H2, provider};
use crate::{Error, Secret, encoding};

/// Of a public key, in bytes.
pub const KEY_LENGTH: usize = 32;
/// The common name of a cluster's authority.
pub const CLUSTER_CA: &str = "Metropolis Cluster CA";
/// The common name of the authority of etcd's members.
pub const ETCD_CA: &str = "Metropolis etcd CA Certificate";

const ID_PREFIX: &str = "metropolis-";
/// `id-Ed25519` (RFC 8410 §3), content of the object identifier.
const ED25519_OID: [u8; 3] = [0x2b, 0x65, 0x70];

/// The id of the node that has this key: `metropolis-` and the first sixteen bytes in lower-case hexadecimal.
#[must_use]
pub fn node_id(public: &[u8; KEY_LENGTH]) -> String {
    let half = public[..KEY_LENGTH / 2].iter();
    half.fold(ID_PREFIX.to_owned(), |id, byte| id + &format!("{byte:02x}"))
}

/// An Ed25519 key as the cluster API keeps it: 64 bytes, the seed and the public half. Wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct RawKey(Zeroizing<[u8; 64]>);

impl fmt::Debug for RawKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl RawKey {
    /// A new one.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, Error> {
        let mut seed = Zeroizing::new([0; KEY_LENGTH]);
        SystemRandom::new().fill(&mut seed[..]).map_err(|_| Error::Random)?;
        Self::of_seed(&seed)
    }

    /// Of its 64 bytes.
    ///
    /// # Errors
    /// When there are more or fewer, or the second half is not the public key of the first.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: &[u8; 64] = bytes.try_into().map_err(|_| {
            Error::SigningKey(format!("it has {} bytes instead of 64", bytes.len()))
        })?;
        let mut seed = Zeroizing::new([0; KEY_LENGTH]);
        seed.copy_from_slice(&bytes[..KEY_LENGTH]);
        let key = Self::of_seed(&seed)?;
        if *key.0 == *bytes {
            Ok(key)
        } else {
            let why = "its second half is not the public key of its first";
            Err(Error::SigningKey(why.to_owned()))
        }
    }

    /// The first private key of a PEM text: PKCS#8, or the 64 bytes as they are, whatever the label calls them.
    ///
    /// # Errors
    /// When the text is not PEM, holds no private key, or one that is not Ed25519's.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let blocks = encoding::blocks("private key", text)?;
        let block = blocks.iter().find(|block| block.tag().ends_with("PRIVATE KEY"));
        let contents = block.ok_or(Error::Absent { what: "private key" })?.contents();
        if contents.len() == 64 {
            return Self::from_bytes(contents);
        }
        let wrong =
            |error: &dyn fmt::Display| Error::SigningKey(format!("no Ed25519 key: {error}"));
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(contents).map_err(|error| wrong(&error))?;
        // RFC 8410 §7: the seed is an octet string of 32 bytes in an octet string, behind the algorithm.
        let mut head = encoding::der(0x06, &ED25519_OID);
        head.extend([0x04, 0x22, 0x04, 0x20]);
        let at = contents.windows(head.len()).position(|window| window == head);
        let seed = at.and_then(|at| contents.get(at + head.len()..)?.first_chunk::<KEY_LENGTH>());
        let key = Self::of_seed(&Zeroizing::new(*seed.ok_or_else(|| wrong(&"it has no seed"))?))?;
        if key.public() == pair.public_key().as_ref() { Ok(key) } else { Err(Error::Mismatch) }
    }

    fn of_seed(seed: &Zeroizing<[u8; KEY_LENGTH]>) -> Result<Self, Error> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed[..])
            .map_err(|error| Error::SigningKey(error.to_string()))?;
        let mut bytes = Zeroizing::new([0; 64]);
        bytes[..KEY_LENGTH].copy_from_slice(&seed[..]);
        bytes[KEY_LENGTH..].copy_from_slice(pair.public_key().as_ref());
        Ok(Self(bytes))
    }

    /// The seed and the public half.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 64] {
        &self.0
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> [u8; KEY_LENGTH] {
        std::array::from_fn(|i| self.0[KEY_LENGTH + i])
    }

    /// PKCS#8 in PEM, type `ED25519 PRIVATE KEY`: what rustls configurations take.
    #[must_use]
    pub fn to_pem(&self) -> Secret {
        Secret::new(encoding::encode(&Pem::new(encoding::ED25519_LABEL, self.pkcs8().to_vec())))
    }

    /// PKCS#8 in PEM, type `PRIVATE KEY` (RFC 7468 §10): what other programs take.
    #[must_use]
    pub fn to_plain_pem(&self) -> Secret {
        Secret::new(encoding::encode(&Pem::new(encoding::PKCS8_LABEL, self.pkcs8().to_vec())))
    }

    /// The 64 bytes in PEM, with a label of their own.
    #[must_use]
    pub fn to_raw_pem(&self, label: &str) -> Secret {
        Secret::new(encoding::encode(&Pem::new(label, &self.0[..])))
    }

    fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&encoding::ED25519_HEAD[..], &self.0[..KEY_LENGTH]].concat())
    }

    fn pair(&self) -> Result<KeyPair, Error> {
        let mut seed = Zeroizing::new([0; KEY_LENGTH]);
        seed.copy_from_slice(&self.0[..KEY_LENGTH]);
        ed25519_key(&seed)
    }
}

/// What somebody shows who has nothing but a key: self-signed, without a name (spec §1.4, "Ephemeral").
///
/// # Errors
/// When rcgen refuses.
pub fn ephemeral(key: &RawKey, now: SystemTime) -> Result<CertificateDer<'static>, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from(1));
    (params.not_before, params.not_after) = (date(now)?, end()?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params.self_signed(&key.pair()?).map_err(Error::Issue)?.der().clone())
}

/// Whom a certificate is for, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// CN.
    pub common_name: String,
    /// O.
    pub organization: Option<String>,
    /// The one DNS name.
    pub dns: Option<String>,
    /// For serving, or for being a client.
    pub usage: Usage,
}

impl Profile {
    /// A node's: it serves under its id, and shows the same certificate when it calls.
    #[must_use]
    pub fn node(id: &str) -> Self {
        Self {
            common_name: id.to_owned(),
            organization: None,
            dns: Some(id.to_owned()),
            usage: Usage::Server,
        }
    }

    /// A person's.
    #[must_use]
    pub fn user(identity: &str) -> Self {
        Self {
            common_name: identity.to_owned(),
            organization: None,
            dns: None,
            usage: Usage::Client,
        }
    }

    /// An etcd member's.
    #[must_use]
    pub fn peer(id: &str) -> Self {
        Self { usage: Usage::Peer, ..Self::node(id) }
    }
}

/// An authority with its key: the cluster's, or that of etcd's members.
#[derive(Debug)]
pub struct ClusterAuthority {
    key: RawKey,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// Serial numbers of certificates that are good no more, each as [`Shown::serial`], and since when.
pub type Revoked = BTreeMap<Vec<u8>, SystemTime>;

impl ClusterAuthority {
    /// A new one, valid for good.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate(common_name: &str, now: SystemTime) -> Result<Self, Error> {
        let key = RawKey::generate()?;
        let mut params = params(common_name, now, end()?)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::OcspSigning,
        ];
        let der = params.self_signed(&key.pair()?).map_err(Error::Issue)?.der().to_vec();
        Self::from_der(&der, key)
    }

    /// Of its certificate and key.
    ///
    /// # Errors
    /// When the certificate cannot be read, is no authority's, or has another key.
    pub fn from_der(der: &[u8], key: RawKey) -> Result<Self, Error> {
        if authority_key(der)? != key.public() {
            return Err(Error::Mismatch);
        }
        let der = CertificateDer::from(der.to_vec());
        let issuer = Issuer::from_ca_cert_der(&der, key.pair()?).map_err(Error::Issue)?;
        Ok(Self { key, der, issuer })
    }

    /// Its certificate.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &RawKey {
        &self.key
    }

    /// Certifies a key, for good or until `not_after`.
    ///
    /// # Errors
    /// When there is no randomness, or a name cannot be one.
    pub fn issue(
        &self,
        profile: &Profile,
        public: &[u8; KEY_LENGTH],
        not_after: Option<SystemTime>,
        now: SystemTime,
    ) -> Result<Vec<u8>, Error> {
        let mut params = params(&profile.common_name, now, not_after.map_or_else(end, date)?)?;
        if let Some(organization) = &profile.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
        }
        if let Some(name) = &profile.dns {
            let name = name.as_str().try_into().map_err(Error::Issue)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match profile.usage {
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Peer => {
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
            }
        };
        let signed = params.signed_by(&Public(*public), &self.issuer).map_err(Error::Issue)?;
        Ok(signed.der().to_vec())
    }

    /// The list of what it has revoked; it only grows, and is numbered by its length.
    ///
    /// # Errors
    /// When a time cannot be expressed.
    pub fn revocation_list(&self, revoked: &Revoked, now: SystemTime) -> Result<Vec<u8>, Error> {
        let entry = |(serial, since): (&Vec<u8>, &SystemTime)| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: date(*since)?,
                reason_code: None,
                invalidity_date: None,
            })
        };
        let list = CertificateRevocationListParams {
            this_update: date(now)?,
            next_update: end()?,
            crl_number: SerialNumber::from(revoked.len() as u64 + 1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect::<Result<_, Error>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer).map_err(Error::Issue)?.der().to_vec())
    }
}

/// What an authority has revoked.
///
/// # Errors
/// When the list or the authority's certificate cannot be read, or the list is not the authority's.
pub fn revoked(list: &[u8], authority: &[u8]) -> Result<Revoked, Error> {
    let wrong = |error: String| Error::Certificate(format!("the list of revoked ones: {error}"));
    let (rest, decoded) =
        CertificateRevocationList::from_der(list).map_err(|error| wrong(error.to_string()))?;
    if !rest.is_empty() {
        return Err(wrong("bytes follow its end".to_owned()));
    }
    let key = authority_key(authority)?;
    let signature = decoded.signature_value.data.as_ref();
    if !signed(&key, decoded.tbs_cert_list.as_ref(), signature) {
        return Err(Error::Foreign);
    }
    let entry = |one: &x509_parser::revocation_list::RevokedCertificate<'_>| {
        (trimmed(one.raw_serial()), system_time(one.revocation_date.timestamp()))
    };
    Ok(decoded.iter_revoked_certificates().map(entry).collect())
}

/// The key of an authority that a cluster can have: Ed25519, and it may sign certificates.
///
/// # Errors
/// When the certificate cannot be read, or is no such authority's.
pub fn authority_key(der: &[u8]) -> Result<[u8; KEY_LENGTH], Error> {
    let decoded = certificate::decode(der)?;
    let may_sign = match decoded.key_usage() {
        Ok(None) => true,
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Err(_) => false,
    };
    if !decoded.is_ca() || !may_sign {
        return Err(Error::NotAuthority);
    }
    let wrong = || Error::Certificate("the authority's key is not Ed25519".to_owned());
    ed25519_of(&decoded).ok_or_else(wrong)
}

/// What is in a certificate that somebody shows. Whether it is true, [`Shown::is_signed_by`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// None when it is not Ed25519.
    pub public_key: Option<[u8; KEY_LENGTH]>,
    /// CN; empty when there is none or more than one.
    pub common_name: String,
    /// Its DNS names.
    pub dns: Vec<String>,
    /// serverAuth is named.
    pub serves: bool,
    /// clientAuth is named.
    pub asks: bool,
    /// It is an authority's.
    pub authority: bool,
    /// Without leading zeros.
    pub serial: Vec<u8>,
    /// Valid from then on.
    pub not_before: SystemTime,
    /// And until then.
    pub not_after: SystemTime,
    issuer: Vec<u8>,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl Shown {
    /// Reads one (DER).
    ///
    /// # Errors
    /// When it cannot be decoded.
    pub fn read(der: &[u8]) -> Result<Self, Error> {
        let decoded = certificate::decode(der)?;
        let mut names = decoded.subject().iter_common_name();
        let common_name = match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().unwrap_or_default(),
            _ => "",
        };
        let usage = decoded.extended_key_usage().ok().flatten();
        let names = decoded.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let dns = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        Ok(Self {
            public_key: ed25519_of(&decoded),
            common_name: common_name.to_owned(),
            dns: dns.collect(),
            serves: usage.as_ref().is_some_and(|usage| usage.value.server_auth),
            asks: usage.as_ref().is_some_and(|usage| usage.value.client_auth),
            authority: decoded.is_ca(),
            serial: trimmed(decoded.raw_serial()),
            not_before: system_time(decoded.validity().not_before.timestamp()),
            not_after: system_time(decoded.validity().not_after.timestamp()),
            issuer: decoded.issuer().as_raw().to_vec(),
            signed: decoded.tbs_certificate.as_ref().to_vec(),
            signature: decoded.signature_value.data.to_vec(),
        })
    }

    /// The key, if its owner signed the certificate itself.
    #[must_use]
    pub fn self_signed_key(&self) -> Option<[u8; KEY_LENGTH]> {
        self.public_key.filter(|key| signed(key, &self.signed, &self.signature))
    }

    /// Did this authority (DER) sign it?
    #[must_use]
    pub fn is_signed_by(&self, authority: &[u8]) -> bool {
        let Ok(decoded) = certificate::decode(authority) else { return false };
        decoded.subject().as_raw() == self.issuer
            && ed25519_of(&decoded).is_some_and(|key| signed(&key, &self.signed, &self.signature))
    }

    /// The id of the node it is for: it serves, and its name and one of its DNS names are the id of its key.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        let id = node_id(&self.public_key?);
        let sound = self.serves && self.common_name == id && self.dns.contains(&id);
        sound.then_some(&*self.common_name)
    }
}

/// A client of a curator, or of a node's own API: the server must have a node's certificate of this authority (DER), of
/// `node` if that is given, whatever name and time it is. It shows `identity`, a certificate (DER) and its key, to a
/// server that asks.
///
/// # Errors
/// When the authority is none, or rustls refuses the identity.
pub fn client_config(
    authority: &[u8],
    identity: Option<(&[u8], &RawKey)>,
    node: Option<&str>,
) -> Result<Arc<ClientConfig>, Error> {
    authority_key(authority)?;
    let authority = Some(authority.to_vec());
    configured(Pinned { authority, node: node.map(str::to_owned), provider: provider() }, identity)
}

/// As [`client_config`] of somebody who knows no authority yet, and takes any node's word: only to ask for the
/// authority's certificate, which a person must compare.
///
/// # Errors
/// When rustls refuses the identity.
pub fn trusting_client_config(
    identity: Option<(&[u8], &RawKey)>,
) -> Result<Arc<ClientConfig>, Error> {
    configured(Pinned { authority: None, node: None, provider: provider() }, identity)
}

fn configured(
    pinned: Pinned,
    identity: Option<(&[u8], &RawKey)>,
) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(&pinned.provider))
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned));
    let mut config = match identity {
        Some((der, key)) => {
            let chain = vec![CertificateDer::from(der.to_vec())];
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
            builder.with_client_auth_cert(chain, key).map_err(Error::Tls)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Takes nodes of one authority.
struct Pinned {
    /// None: whatever is shown.
    authority: Option<Vec<u8>>,
    node: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("node", &self.node).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The one kind of error whose text is passed on as it is.
        let refuse = |why: String| Err(rustls::Error::General(why));
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        if !others.is_empty() {
            return refuse("the curator shows more than one certificate".to_owned());
        }
        let shown = Shown::read(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        if shown.authority || !shown.is_signed_by(authority) {
            return Err(CertificateError::UnknownIssuer.into());
        }
        match (shown.node(), &self.node) {
            (None, _) => refuse(format!("{:?} is no node's certificate", shown.common_name)),
            (Some(id), Some(wanted)) if id != wanted => {
                refuse(format!("this is node {id}, not {wanted}"))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A key that somebody else holds.
struct Public([u8; KEY_LENGTH]);

impl PublicKeyData for Public {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

/// What the certificates of an authority have in common. The serial is below 2^127.
fn params(
    common_name: &str,
    now: SystemTime,
    not_after: OffsetDateTime,
) -> Result<CertificateParams, Error> {
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| Error::Random)?;
    serial[0] &= 0x7f;
    // Never zero.
    serial[15] |= 1;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from_slice(&trimmed(&serial)));
    (params.not_before, params.not_after) = (date(now)?, not_after);
    Ok(params)
}

/// 9999-12-31T23:59:59Z: for good (RFC 5280 §4.1.2.5).
fn end() -> Result<OffsetDateTime, Error> {
    OffsetDateTime::from_unix_timestamp(253_402_300_799)
        .map_err(|error| Error::Certificate(error.to_string()))
}

fn date(moment: SystemTime) -> Result<OffsetDateTime, Error> {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Error::Lifetime(since))
}

fn signed(key: &[u8; KEY_LENGTH], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
}

fn ed25519_of(certificate: &X509Certificate<'_>) -> Option<[u8; KEY_LENGTH]> {
    let info = certificate.public_key();
    if info.algorithm.algorithm.as_bytes() != ED25519_OID {
        return None;
    }
    info.subject_public_key.data.as_ref().try_into().ok()
}

fn trimmed(number: &[u8]) -> Vec<u8> {
    number[number.iter().take_while(|byte| **byte == 0).count()..].to_vec()
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
