//! Keys that sign tokens and keys that check them: ECDSA over P-256 and RSA, as ES256 and RS256 (RFC 7518 §3).
//!
//! A key is told by its id: the base64url of the SHA-256 of its public key (SPKI), as Kubernetes does it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
    VerificationAlgorithm,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key as parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::authority::{KeyKind, generate_key};
use crate::encoding::{P256, RSA, der};
use crate::{Error, Secret, certificate, encoding};

/// How a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA over P-256 with SHA-256; the signature is two numbers of 32 bytes.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
}

impl Algorithm {
    /// As tokens name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// A private key that signs tokens.
#[derive(Debug)]
pub struct SigningKey {
    pair: Pair,
    public: VerifyingKey,
}

#[derive(Debug)]
enum Pair {
    Ecdsa(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

impl SigningKey {
    /// Makes a new one for ES256, in PEM.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Secret, Error> {
        Ok(encoding::key_to_pem(&generate_key(KeyKind::P256)?))
    }

    /// Reads the first private key of a PEM text: P-256, or RSA of 2048 to 4096 bits.
    ///
    /// # Errors
    /// When there is none, or it is of another kind.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let key = encoding::private_key(text)?;
        let random = SystemRandom::new();
        let ecdsa = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            key.secret_pkcs8_der(),
            &random,
        );
        if let Ok(pair) = ecdsa {
            let public = VerifyingKey::p256(pair.public_key().as_ref());
            return Ok(Self { pair: Pair::Ecdsa(Box::new(pair)), public });
        }
        let pair = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).map_err(|error| {
            let kinds = "neither one of P-256 nor one of RSA with 2048 to 4096 bits";
            Error::SigningKey(format!("it is {kinds} ({error})"))
        })?;
        let public = VerifyingKey::rsa(pair.public_key().as_ref())?;
        Ok(Self { pair: Pair::Rsa(Box::new(pair)), public })
    }

    /// What it is checked by.
    #[must_use]
    pub fn public(&self) -> &VerifyingKey {
        &self.public
    }

    /// Signs, in the form tokens have.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ecdsa(pair) => {
                let signature = pair.sign(&random, message).map_err(|_| Error::Random)?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| Error::Random)?;
                Ok(signature)
            }
        }
    }
}

/// A public key that checks tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    id: String,
    numbers: Numbers,
    /// As ring reads it: the point, or `RSAPublicKey` (RFC 8017 appendix A.1.1).
    bytes: Vec<u8>,
}

/// The numbers a public key is made of, big-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// A point on P-256.
    P256 {
        /// 32 bytes.
        x: Vec<u8>,
        /// 32 bytes.
        y: Vec<u8>,
    },
    /// Of RSA, without leading zeros.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
}

impl VerifyingKey {
    /// Reads all keys of a PEM text: public ones, those of certificates, and the public halves of private ones.
    ///
    /// # Errors
    /// When there is none, or one of another kind than P-256 and RSA.
    pub fn from_pem(text: &str) -> Result<Vec<Self>, Error> {
        let mut keys = Vec::new();
        for block in encoding::blocks("public key", text)? {
            match block.tag() {
                "PUBLIC KEY" => keys.push(Self::from_spki(block.contents())?),
                "RSA PUBLIC KEY" => keys.push(Self::rsa(block.contents())?),
                "CERTIFICATE" => {
                    let certificate = certificate::decode(block.contents())?;
                    keys.push(Self::from_spki(certificate.public_key().raw)?);
                }
                tag if tag.ends_with("PRIVATE KEY") => {
                    keys.push(SigningKey::from_pem(&pem::encode(&block))?.public);
                }
                _ => {}
            }
        }
        if keys.is_empty() { Err(Error::Absent { what: "public key" }) } else { Ok(keys) }
    }

    /// What tokens name it by (`kid`).
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How its owner signs.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self.numbers {
            Numbers::P256 { .. } => Algorithm::Es256,
            Numbers::Rsa { .. } => Algorithm::Rs256,
        }
    }

    /// What it is made of.
    #[must_use]
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Did its owner sign this?
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self.algorithm() {
            Algorithm::Es256 => &ECDSA_P256_SHA256_FIXED,
            Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
        };
        UnparsedPublicKey::new(algorithm, &self.bytes).verify(message, signature).is_ok()
    }

    fn from_spki(spki: &[u8]) -> Result<Self, Error> {
        let wrong = |why: &str| Error::SigningKey(why.to_owned());
        let (_, info) =
            SubjectPublicKeyInfo::from_der(spki).map_err(|error| wrong(&error.to_string()))?;
        let bytes = info.subject_public_key.data.as_ref();
        match info.parsed() {
            // Of the curves whose points are that long, ring takes this one; another's is not on it.
            Ok(parsed::PublicKey::EC(point))
                if point.data().len() == 65 && spki.windows(P256.len()).any(|w| w == P256) =>
            {
                Ok(Self::p256(bytes))
            }
            Ok(parsed::PublicKey::RSA(_)) => Self::rsa(bytes),
            _ => Err(wrong("it is neither one of P-256 nor one of RSA")),
        }
    }

    /// `point`: uncompressed (SEC 1 §2.3.3), of 65 bytes.
    fn p256(point: &[u8]) -> Self {
        let numbers = Numbers::P256 { x: point[1..33].to_vec(), y: point[33..].to_vec() };
        Self { id: id(&P256, point), numbers, bytes: point.to_vec() }
    }

    fn rsa(bytes: &[u8]) -> Result<Self, Error> {
        let (_, key) = parsed::RSAPublicKey::from_der(bytes)
            .map_err(|error| Error::SigningKey(error.to_string()))?;
        let trimmed =
            |number: &[u8]| number[number.iter().take_while(|byte| **byte == 0).count()..].to_vec();
        let numbers = Numbers::Rsa { n: trimmed(key.modulus), e: trimmed(key.exponent) };
        Ok(Self { id: id(&RSA, bytes), numbers, bytes: bytes.to_vec() })
    }
}

fn id(algorithm: &[u8], key: &[u8]) -> String {
    let key = der(0x03, &[&[0], key].concat());
    let spki = der(0x30, &[algorithm, &key].concat());
    URL_SAFE_NO_PAD.encode(digest(&SHA256, &spki))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RSA_KEY: &str = include_str!("testdata/rsa-pkcs1.key");

    #[test]
    fn what_a_key_signs_its_public_half_verifies_and_no_other() {
        let own = SigningKey::generate().unwrap();
        let keys = [own.expose(), RSA_KEY].map(|text| SigningKey::from_pem(text).unwrap());
        assert_eq!(keys.each_ref().map(|key| key.public().algorithm().name()), ["ES256", "RS256"]);
        for (key, other) in [(&keys[0], &keys[1]), (&keys[1], &keys[0])] {
            let signature = key.sign(b"message").unwrap();
            assert!(key.public().verifies(b"message", &signature));
            assert!(!key.public().verifies(b"massage", &signature));
            assert!(!other.public().verifies(b"message", &signature));
        }
    }

    #[test]
    fn a_key_has_one_id_however_it_is_written() {
        // `openssl pkey -pubout`, `openssl rsa -RSAPublicKey_out` and `-pubout -outform DER | sha256` of the same key.
        let public = include_str!("testdata/rsa.pub");
        let pkcs1 = include_str!("testdata/rsa-pkcs1.pub");
        let id = "4KfoHbLmu0b9CDTx30enQO5Ju5bMJvfjv_R3hbS1Fkw";
        for text in [RSA_KEY, public, pkcs1] {
            let keys = VerifyingKey::from_pem(text).unwrap();
            assert_eq!(keys.iter().map(VerifyingKey::id).collect::<Vec<_>>(), [id]);
        }
        let authority = crate::Authority::generate(
            "x",
            KeyKind::P256,
            std::time::Duration::from_secs(60),
            std::time::SystemTime::now(),
        )
        .unwrap();
        let pair = authority.pair();
        let both = format!("{}{}", pair.crt, pair.key.expose());
        let keys = VerifyingKey::from_pem(&both).unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[0], keys[1]);
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        let ed25519 = crate::request::new_key().unwrap();
        let error = SigningKey::from_pem(ed25519.expose()).unwrap_err().to_string();
        assert!(error.starts_with("read signing key: it is neither one of P-256 nor"), "{error}");
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        VerifyingKey::from_pem(&p384.public_key_pem()).unwrap_err();
        assert!(matches!(VerifyingKey::from_pem("").unwrap_err(), Error::Absent { .. }));
    }

    proptest! {
        #[test]
        fn any_bytes_in_a_frame_never_panic(bytes: Vec<u8>, label in "(RSA |)PUBLIC KEY|CERTIFICATE|EC PRIVATE KEY") {
            let text = pem::encode(&pem::Pem::new(label, bytes));
            let _ = VerifyingKey::from_pem(&text);
        }
    }
}
