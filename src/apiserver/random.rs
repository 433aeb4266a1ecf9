//! Randomness: identifiers and the ends of generated names.

use ring::rand::{SecureRandom as _, SystemRandom};

/// What names end with: no vowels, so that no words come about, and nothing that looks like something else.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// # Panics
/// When the kernel gives none, after which nothing here can be done safely.
fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// Any number.
pub(crate) fn number() -> u32 {
    u32::from_ne_bytes(bytes())
}

/// A random UUID (RFC 9562 §5.4).
pub(crate) fn uuid() -> String {
    let mut bytes: [u8; 16] = bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let [a, b, c, d, e] = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// `count` letters for the end of a name.
pub(crate) fn suffix(count: usize) -> String {
    let letter = |_| char::from(LETTERS[number() as usize % LETTERS.len()]);
    (0..count).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_version_4_and_never_the_same() {
        let (one, other) = (uuid(), uuid());
        assert_ne!(one, other);
        assert_eq!((one.len(), &one[14..15], &one[8..9]), (36, "4", "-"));
        assert!("89ab".contains(&one[19..20]));
        assert!(suffix(5).bytes().all(|letter| LETTERS.contains(&letter)));
    }
}
