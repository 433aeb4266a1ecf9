//! Questions and answers with a proof (RFC 8915 §5): extension fields, cookies, AEAD_AES_SIV_CMAC_256.

use std::collections::VecDeque;
use std::fmt;

use aes_siv::KeyInit as _;
use aes_siv::siv::Aes128Siv;

use crate::exchange::Refusal;
use crate::wire::{self, Field, Header, Malformed, Mode, Packet, Timestamp};

/// What a question is known by (§5.3).
pub const UNIQUE: u16 = 0x0104;
/// One use of the server's memory of the keys (§5.4).
pub const COOKIE: u16 = 0x0204;
/// Room for one more cookie in the answer (§5.5).
pub const PLACEHOLDER: u16 = 0x0304;
/// The proof, and what only we may read (§5.6).
pub const AUTHENTICATOR: u16 = 0x0404;
/// Cookies that are kept, so that lost answers cost no key exchange (§5.7).
pub const COOKIES: usize = 8;
/// A question is no longer than this, so that no network takes it apart.
const LONGEST_QUESTION: usize = 1200;
const KEY: usize = 32;
const NONCE: usize = 16;

/// Both directions' keys.
#[derive(Clone)]
pub struct Keys {
    to_server: [u8; KEY],
    to_client: [u8; KEY],
}

impl Keys {
    /// As exported from TLS.
    #[must_use]
    pub fn new(to_server: [u8; KEY], to_client: [u8; KEY]) -> Self {
        Self { to_server, to_client }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// What makes a question unlike any other; all of it of chance.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    /// Comes back as the origin time.
    pub origin: Timestamp,
    /// Comes back as the field [`UNIQUE`].
    pub unique: [u8; 32],
    /// Of the encryption.
    pub nonce: [u8; NONCE],
}

/// Keys and cookies: what is left of a key exchange.
#[derive(Clone)]
pub struct Association {
    keys: Keys,
    cookies: VecDeque<Vec<u8>>,
    /// The last that was used: a server that gives it back is not thanked.
    used: Vec<u8>,
}

impl fmt::Debug for Association {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Association").field("cookies", &self.cookies.len()).finish_non_exhaustive()
    }
}

impl Association {
    /// A new one.
    #[must_use]
    pub fn new(keys: Keys, cookies: Vec<Vec<u8>>) -> Self {
        let mut new = Self { keys, cookies: VecDeque::new(), used: Vec::new() };
        cookies.into_iter().for_each(|cookie| new.keep(cookie));
        new
    }

    /// How many questions can be asked before an answer must come.
    #[must_use]
    pub fn cookies(&self) -> usize {
        self.cookies.len()
    }

    /// A question, which takes a cookie and asks for as many as are missing. `None`: there is none left.
    pub fn question(&mut self, chance: &Chance) -> Option<Vec<u8>> {
        let cookie = self.cookies.pop_front()?;
        let mut bytes = Header::question(chance.origin).encode().to_vec();
        wire::push_field(&mut bytes, UNIQUE, &chance.unique);
        wire::push_field(&mut bytes, COOKIE, &cookie);
        let blank = vec![0; cookie.len()];
        let proof = 4 + 4 + NONCE + NONCE;
        // The answer brings one anyway.
        for _ in self.cookies.len() + 1..COOKIES {
            if bytes.len() + 4 + blank.len().next_multiple_of(4) + proof > LONGEST_QUESTION {
                break;
            }
            wire::push_field(&mut bytes, PLACEHOLDER, &blank);
        }
        seal(&self.keys.to_server, &chance.nonce, &mut bytes, &[])?;
        self.used = cookie;
        Some(bytes)
    }

    /// Takes `bytes` as the answer to the question of that chance: its header, when the server has proven
    /// that it is the server's. Keeps the cookies that come with it.
    ///
    /// # Errors
    /// When it must not be taken. The one refusal that is not proven is that of a server that cannot
    /// read its cookie any more (`NTSN`, §5.7): it is worth no more than no answer.
    pub fn open(&mut self, bytes: &[u8], chance: &Chance) -> Result<Header, Refusal> {
        let Packet { header, fields, .. } = Packet::decode(bytes)?;
        if header.mode != Mode::Server || header.origin != chance.origin {
            return Err(Refusal::Foreign);
        }
        // What follows the proof is not covered by it, and not looked at.
        let proof = fields.iter().position(|field| field.kind == AUTHENTICATOR);
        let proven = &fields[..proof.unwrap_or(fields.len())];
        let mut unique = proven.iter().filter(|field| field.kind == UNIQUE);
        if unique.next().is_none_or(|field| field.value != chance.unique) || unique.next().is_some()
        {
            return Err(Refusal::Foreign);
        }
        let Some(proof) = proof.map(|at| &fields[at]) else {
            return Err(match header.kiss() {
                Some(kiss) if kiss.wants_new_keys() => Refusal::Kiss(kiss),
                _ => Refusal::Unproven,
            });
        };
        let secret = unseal(&self.keys.to_client, bytes, proof).ok_or(Refusal::Unproven)?;
        for field in fields_of(&secret)? {
            if field.kind == COOKIE {
                self.keep(field.value.to_vec());
            }
        }
        Ok(header)
    }

    /// Each cookie is used once (§5.7), so one that is known is none.
    fn keep(&mut self, cookie: Vec<u8>) {
        let fits = (1..=super::records::LONGEST_COOKIE).contains(&cookie.len());
        if fits
            && self.cookies.len() < COOKIES
            && cookie != self.used
            && !self.cookies.contains(&cookie)
        {
            self.cookies.push_back(cookie);
        }
    }
}

/// Appends the authenticator: a code of all that `bytes` hold, and `secret` encrypted (§5.6). `None`
/// never comes for lengths like ours.
pub fn seal(
    key: &[u8; KEY],
    nonce: &[u8; NONCE],
    bytes: &mut Vec<u8>,
    secret: &[u8],
) -> Option<()> {
    let sealed = Aes128Siv::new(key.into()).encrypt([&bytes[..], nonce], secret).ok()?;
    let mut value = Vec::with_capacity(4 + NONCE + sealed.len());
    for length in [NONCE, sealed.len()] {
        value.extend_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    }
    value.extend_from_slice(nonce);
    value.extend_from_slice(&sealed);
    wire::push_field(bytes, AUTHENTICATOR, &value);
    Some(())
}

/// What `field` has encrypted, if it is a proof of all that stands before it in `bytes`.
#[must_use]
pub fn unseal(key: &[u8; KEY], bytes: &[u8], field: &Field<'_>) -> Option<Vec<u8>> {
    let (head, rest) = field.value.split_first_chunk::<4>()?;
    let [n1, n2, s1, s2] = *head;
    let nonce_length = usize::from(u16::from_be_bytes([n1, n2]));
    let sealed_length = usize::from(u16::from_be_bytes([s1, s2]));
    // Each is padded to a multiple of four.
    let nonce = rest.get(..nonce_length)?;
    let sealed = rest.get(nonce_length.next_multiple_of(4)..)?.get(..sealed_length)?;
    if nonce.is_empty() {
        return None;
    }
    Aes128Siv::new(key.into()).decrypt([bytes.get(..field.start)?, nonce], sealed).ok()
}

/// The extension fields that were encrypted: like those of a message, with no code behind them.
fn fields_of(bytes: &[u8]) -> Result<Vec<Field<'_>>, Malformed> {
    let (mut fields, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let field = wire::field(bytes, at)?;
        at += 4 + field.value.len();
        fields.push(field);
    }
    Ok(fields)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    #[test]
    fn the_cipher_is_that_of_rfc_5297() {
        // Appendix A.1: deterministic.
        let key: [u8; KEY] =
            hex("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0 f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
                .try_into()
                .unwrap();
        let header = hex("101112131415161718191a1b1c1d1e1f 2021222324252627");
        let sealed = Aes128Siv::new(&key.into())
            .encrypt([&header], &hex("112233445566778899aabbccddee"))
            .unwrap();
        let wanted = hex("85632d07c6e8f37f950acd320a2ecc93 40c02b9690c4dc04daef7f6afe5c");
        assert_eq!(sealed, wanted);
        // Appendix A.2: with a nonce, which is the last header.
        let key: [u8; KEY] =
            hex("7f7e7d7c7b7a79787776757473727170 404142434445464748494a4b4c4d4e4f")
                .try_into()
                .unwrap();
        let first = hex(
            "00112233445566778899aabbccddeeff deaddadadeaddadaffeeddccbbaa9988 7766554433221100",
        );
        let headers = [first, hex("102030405060708090a0"), hex("09f911029d74e35bd84156c5635688c0")];
        let plain = b"this is some plaintext to encrypt using SIV-AES";
        let sealed = Aes128Siv::new(&key.into()).encrypt(&headers, plain).unwrap();
        let wanted = hex("7bdb6e3b432667eb06f4d14bff2fbd0f cb900f2fddbe404326601965c889bf17 \
             dba77ceb094fa663b7a3f748ba8af829 ea64ad544a272e9c485b62a3fd5c0d");
        assert_eq!(sealed, wanted);
    }

    pub(crate) const TO_SERVER: [u8; KEY] = [1; KEY];
    pub(crate) const TO_CLIENT: [u8; KEY] = [2; KEY];

    fn chance(n: u8) -> Chance {
        Chance {
            origin: Timestamp(u64::from(n) << 32 | 7),
            unique: [n; 32],
            nonce: [n ^ 0xff; NONCE],
        }
    }

    fn cookies(numbers: std::ops::Range<u8>) -> Vec<Vec<u8>> {
        numbers.map(|n| vec![n; 100]).collect()
    }

    fn association(count: u8) -> Association {
        Association::new(Keys::new(TO_SERVER, TO_CLIENT), cookies(0..count))
    }

    /// What a server answers to `question`, with these cookies in secret.
    pub(crate) fn answer(question: &[u8], stratum: u8, new: &[Vec<u8>]) -> Vec<u8> {
        let asked = Packet::decode(question).unwrap();
        let proof = asked.fields.iter().find(|field| field.kind == AUTHENTICATOR).unwrap();
        assert_eq!(unseal(&TO_SERVER, question, proof), Some(vec![]), "the question's proof");
        let header = Header {
            mode: Mode::Server,
            stratum,
            origin: asked.header.transmit,
            ..Header::question(Timestamp(99))
        };
        let mut bytes = header.encode().to_vec();
        let unique = asked.fields.iter().find(|field| field.kind == UNIQUE).unwrap();
        wire::push_field(&mut bytes, UNIQUE, unique.value);
        let mut secret = Vec::new();
        new.iter().for_each(|cookie| wire::push_field(&mut secret, COOKIE, cookie));
        seal(&TO_CLIENT, &[9; NONCE], &mut bytes, &secret).unwrap();
        bytes
    }

    #[test]
    fn a_question_asks_for_the_cookies_that_are_missing() {
        let mut association = association(8);
        for missing in 0..8 {
            let bytes = association.question(&chance(1)).unwrap();
            let packet = Packet::decode(&bytes).unwrap();
            let count = |kind| packet.fields.iter().filter(|field| field.kind == kind).count();
            assert_eq!((count(UNIQUE), count(COOKIE), count(AUTHENTICATOR)), (1, 1, 1));
            assert_eq!(count(PLACEHOLDER), missing);
            assert_eq!(packet.fields.last().unwrap().kind, AUTHENTICATOR);
            assert!(bytes.len() <= LONGEST_QUESTION);
        }
        assert_eq!(association.question(&chance(1)), None);
    }

    #[test]
    fn long_cookies_make_no_long_questions() {
        let mut association = Association::new(Keys::new(TO_SERVER, TO_CLIENT), vec![vec![7; 512]]);
        let bytes = association.question(&chance(1)).unwrap();
        assert!(bytes.len() <= LONGEST_QUESTION, "{}", bytes.len());
        // Too long to be one.
        let keys = Keys::new(TO_SERVER, TO_CLIENT);
        assert_eq!(Association::new(keys, vec![vec![7; 516], vec![]]).cookies(), 0);
    }

    #[test]
    fn an_answer_with_its_proof_is_taken_and_cookies_are_kept() {
        let mut association = association(5);
        let question = association.question(&chance(1)).unwrap();
        let used = vec![0; 100];
        // One is used already, one known, four are new, and no more than eight are kept.
        let brought = [vec![used, vec![1; 100]], cookies(20..26)].concat();
        let header = association.open(&answer(&question, 2, &brought), &chance(1)).unwrap();
        assert_eq!((header.stratum, association.cookies()), (2, COOKIES));
        let firsts: Vec<u8> = association.cookies.iter().map(|cookie| cookie[0]).collect();
        assert_eq!(firsts, [1, 2, 3, 4, 20, 21, 22, 23]);
    }

    #[test]
    fn nothing_without_proof_is_believed() {
        let mut association = association(8);
        let question = association.question(&chance(1)).unwrap();
        let sound = answer(&question, 2, &cookies(20..21));
        // Any bit of it changed, any byte of it missing.
        for at in 0..sound.len() {
            let mut changed = sound.clone();
            changed[at] ^= 1;
            assert!(association.open(&changed, &chance(1)).is_err(), "byte {at}");
            assert!(association.open(&sound[..at], &chance(1)).is_err(), "{at} bytes");
        }
        // An answer of before: another origin, another identifier.
        let next = association.question(&chance(2)).unwrap();
        assert_eq!(association.open(&sound, &chance(2)), Err(Refusal::Foreign));
        let mut mixed = chance(2);
        mixed.unique = chance(1).unique;
        assert_eq!(association.open(&answer(&next, 2, &[]), &mixed), Err(Refusal::Foreign));
        // Plain NTP, with the right origin and the right identifier.
        let plain = Header {
            mode: Mode::Server,
            stratum: 2,
            origin: chance(2).origin,
            ..Header::question(Timestamp(99))
        };
        assert_eq!(association.open(&plain.encode(), &chance(2)), Err(Refusal::Foreign));
        let mut named = plain.encode().to_vec();
        wire::push_field(&mut named, UNIQUE, &chance(2).unique);
        assert_eq!(association.open(&named, &chance(2)), Err(Refusal::Unproven));
        // With a proof by the wrong key, and with our own.
        for key in [TO_SERVER, [3; KEY]] {
            let mut forged = named.clone();
            seal(&key, &[9; NONCE], &mut forged, &[]).unwrap();
            assert_eq!(association.open(&forged, &chance(2)), Err(Refusal::Unproven));
        }
        // The identifier behind the proof, where nothing covers it, and twice.
        let mut behind = plain.encode().to_vec();
        seal(&TO_CLIENT, &[9; NONCE], &mut behind, &[]).unwrap();
        wire::push_field(&mut behind, UNIQUE, &chance(2).unique);
        assert_eq!(association.open(&behind, &chance(2)), Err(Refusal::Foreign));
        let mut twice = named.clone();
        wire::push_field(&mut twice, UNIQUE, &chance(2).unique);
        seal(&TO_CLIENT, &[9; NONCE], &mut twice, &[]).unwrap();
        assert_eq!(association.open(&twice, &chance(2)), Err(Refusal::Foreign));
        // All the while no cookie came that was not proven.
        assert_eq!(association.cookies(), 6);
        assert!(association.open(&answer(&next, 2, &[]), &chance(2)).is_ok());
    }

    #[test]
    fn a_refusal_to_read_the_cookie_is_the_only_one_without_proof() {
        let mut association = association(8);
        association.question(&chance(1)).unwrap();
        for (code, refusal) in [
            (*b"NTSN", Refusal::Kiss(wire::Kiss(*b"NTSN"))),
            (*b"DENY", Refusal::Unproven),
            (*b"RATE", Refusal::Unproven),
        ] {
            let header = Header {
                mode: Mode::Server,
                stratum: 0,
                reference: code,
                origin: chance(1).origin,
                ..Header::question(Timestamp(0))
            };
            let mut bytes = header.encode().to_vec();
            assert_eq!(association.open(&bytes, &chance(1)), Err(Refusal::Foreign));
            wire::push_field(&mut bytes, UNIQUE, &chance(1).unique);
            assert_eq!(association.open(&bytes, &chance(1)), Err(refusal));
        }
    }

    #[test]
    fn lengths_that_lead_astray_are_no_proof() {
        let mut association = association(8);
        association.question(&chance(1)).unwrap();
        let header = Header {
            mode: Mode::Server,
            stratum: 1,
            origin: chance(1).origin,
            ..Header::question(Timestamp(0))
        };
        for lengths in [[0u16, 16], [16, 0], [16, 15], [17, 16], [16, 17], [u16::MAX; 2], [0, 0]] {
            let mut bytes = header.encode().to_vec();
            wire::push_field(&mut bytes, UNIQUE, &chance(1).unique);
            let value: Vec<u8> =
                lengths.iter().flat_map(|n| n.to_be_bytes()).chain([5; 32]).collect();
            wire::push_field(&mut bytes, AUTHENTICATOR, &value);
            assert_eq!(association.open(&bytes, &chance(1)), Err(Refusal::Unproven), "{lengths:?}");
        }
    }

    #[test]
    fn secrets_that_are_no_fields_are_refused_and_logs_hold_none() {
        let mut association = association(8);
        let question = association.question(&chance(1)).unwrap();
        let mut bytes = answer(&question, 2, &[]);
        bytes.truncate(wire::HEADER + 36);
        seal(&TO_CLIENT, &[9; NONCE], &mut bytes, &[0, 1, 2]).unwrap();
        let refusal = association.open(&bytes, &chance(1)).unwrap_err();
        assert!(matches!(refusal, Refusal::Malformed(_)), "{refusal:?}");
        assert_eq!(format!("{association:?}"), "Association { cookies: 7, .. }");
    }

    proptest! {
        #[test]
        fn whatever_is_sealed_is_unsealed(secret in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = vec![7; 48];
            seal(&TO_SERVER, &[3; NONCE], &mut bytes, &secret).unwrap();
            let field = wire::field(&bytes, 48).unwrap();
            prop_assert_eq!(unseal(&TO_SERVER, &bytes, &field), Some(secret));
            prop_assert_eq!(unseal(&TO_CLIENT, &bytes, &field), None);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            let header = Header { mode: Mode::Server, origin: chance(1).origin, ..Header::question(Timestamp(0)) };
            bytes.splice(0..0, header.encode());
            prop_assert!(association(1).open(&bytes, &chance(1)).is_err());
        }
    }
}
