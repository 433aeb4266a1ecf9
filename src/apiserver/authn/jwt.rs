//! JSON Web Tokens in their compact form (RFC 7515 §3.1, RFC 7519), signed with ES256 or RS256.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use orlop_pki::signature::{SigningKey, VerifyingKey};
use serde::Deserialize;
use serde_json::{Value, json};

/// A token in its parts; nothing of it is believed before [`Token::claims`].
#[derive(Debug)]
pub struct Token<'a> {
    algorithm: String,
    key: Option<String>,
    /// Head and claims as they were signed.
    signed: &'a str,
    claims: Value,
    signature: Vec<u8>,
}

/// The head of a token; what it says besides is not asked for.
#[derive(Deserialize)]
struct Head {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// What a reader must understand (RFC 7515 §4.1.11): we know none.
    #[serde(default)]
    crit: Option<Value>,
}

impl<'a> Token<'a> {
    /// Reads a token; none: it is no text of this form.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        if claims.contains('.') {
            return None;
        }
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let head: Head = serde_json::from_slice(&decoded(head)?).ok()?;
        let claims: Value = serde_json::from_slice(&decoded(claims)?).ok()?;
        if head.crit.is_some() || !claims.is_object() {
            return None;
        }
        let signature = decoded(signature)?;
        Some(Self { algorithm: head.alg, key: head.kid, signed, claims, signature })
    }

    /// Who says to have made it; anybody can.
    #[must_use]
    pub fn issuer(&self) -> &str {
        self.claims["iss"].as_str().unwrap_or_default()
    }

    /// What it says, if one of these keys signed it: the one it names, or any if it names none.
    #[must_use]
    pub fn claims(&self, keys: &[VerifyingKey]) -> Option<&Value> {
        let named = |key: &&VerifyingKey| match self.key.as_deref() {
            None | Some("") => true,
            Some(id) => key.id() == id,
        };
        keys.iter()
            .filter(named)
            // The key says how it signs: a token cannot choose.
            .filter(|key| key.algorithm().name() == self.algorithm)
            .any(|key| key.verifies(self.signed.as_bytes(), &self.signature))
            .then_some(&self.claims)
    }
}

/// Makes a token.
///
/// # Errors
/// When there is no randomness.
pub fn sign(claims: &Value, key: &SigningKey) -> Result<String, orlop_pki::Error> {
    let public = key.public();
    let head = json!({"alg": public.algorithm().name(), "kid": public.id()});
    let encoded = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encoded(&head), encoded(claims));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())?);
    Ok(format!("{signed}.{signature}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> SigningKey {
        let text = SigningKey::generate().expect("randomness");
        SigningKey::from_pem(text.expose()).expect("our own")
    }

    fn encoded(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    #[test]
    fn what_is_signed_is_read_with_the_right_key_only() {
        let (own, other) = (key(), key());
        let claims = json!({"iss": "us", "aud": ["a"], "n": 1});
        let text = sign(&claims, &own).expect("randomness");
        let token = Token::parse(&text).expect("our own");
        assert_eq!(token.issuer(), "us");
        let keys = [other.public().clone(), own.public().clone()];
        assert_eq!(token.claims(&keys), Some(&claims));
        assert_eq!(token.claims(&keys[..1]), None);
    }

    /// RFC 7515 appendix A.3: ES256; A.2: RS256. Neither names its key.
    #[test]
    fn the_examples_of_the_rfc_hold() {
        const ES256: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        // The point (x, y) of the appendix as a SubjectPublicKeyInfo.
        const KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7
6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==
-----END PUBLIC KEY-----
";
        let keys = VerifyingKey::from_pem(KEY).expect("the key of the RFC");
        let token = Token::parse(ES256).expect("the example");
        assert_eq!(
            token.claims(&keys).and_then(|claims| claims["exp"].as_u64()),
            Some(1_300_819_380)
        );
    }

    #[test]
    fn a_token_cannot_choose_how_it_is_checked() {
        let own = key();
        let keys = [own.public().clone()];
        let text = sign(&json!({"iss": "us"}), &own).expect("randomness");
        let parts: Vec<&str> = text.split('.').collect();
        for head in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"RS256"}"#,
            r#"{"alg":"ES256","kid":"another"}"#,
            r#"{"alg":"ES256"}"#,
        ] {
            let text = format!("{}.{}.{}", encoded(head), parts[1], parts[2]);
            let token = Token::parse(&text).expect("it is one");
            assert_eq!(token.claims(&keys), None, "{head}");
        }
        let unsigned = format!("{}.{}.", encoded(r#"{"alg":"none"}"#), parts[1]);
        assert_eq!(Token::parse(&unsigned).and_then(|token| token.claims(&keys).cloned()), None);
    }

    #[test]
    fn what_is_no_token_is_none() {
        let head = encoded(r#"{"alg":"ES256"}"#);
        for text in [
            String::new(),
            "a.b".to_owned(),
            format!("{head}.{}.x.y", encoded("{}")),
            format!("{head}.{}.", encoded("[]")),
            format!("{head}.{}=.", encoded("{}")),
            format!("{}.{}.", encoded(r#"{"alg":"ES256","crit":["x"]}"#), encoded("{}")),
            format!("{}.{}.", encoded(r#"{"alg":"ES256","alg":"none"}"#), encoded("{}")),
            format!("{}.{}.", encoded("{}"), encoded("{}")),
        ] {
            assert!(Token::parse(&text).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn one_changed_character_is_noticed(at in 0_usize..200, with in "[A-Za-z0-9_-]") {
            let own = key();
            let text = sign(&json!({"iss": "us", "sub": "x"}), &own).expect("randomness");
            let at = at % text.len();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &with);
            let keys = [own.public().clone()];
            let read = Token::parse(&changed).and_then(|token| token.claims(&keys).cloned());
            prop_assert!(changed == text || read.is_none());
        }
    }
}
