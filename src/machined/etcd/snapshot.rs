//! Whether bytes are a snapshot of etcd. Pure.
//!
//! A snapshot is a bbolt database, a multiple of 512 bytes (its pages' size is more), followed by the SHA-256
//! of them. A copy of a member's database is one without the sum.

use ring::digest::{Context, SHA256};

use super::launch::Hash;

/// The longest that is taken: etcd's own advice for its largest database, and the sum.
pub const LIMIT: u64 = (8 << 30) + SUM as u64;
const SUM: usize = 32;
const SECTOR: u64 = 512;
/// Where a database says what it is (bbolt's `page` header has 16 bytes, its `meta` begins with this).
const MAGIC_AT: usize = 16;
const MAGIC: [u8; 4] = 0xED0C_DAED_u32.to_le_bytes();

/// Looks at a snapshot as it arrives, in pieces of any size.
#[derive(Clone)]
pub struct Check {
    digest: Context,
    length: u64,
    /// The first bytes, as far as they tell the kind.
    head: Vec<u8>,
    /// The last bytes: the sum, if these are all.
    tail: Vec<u8>,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Why bytes are no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message says it")]
pub enum Unsound {
    #[error("this is no snapshot of etcd: it does not begin as one")]
    Foreign,
    #[error("the snapshot is damaged or not whole: {0} bytes are no whole database")]
    Broken(u64),
    #[error("the snapshot is damaged: its hash does not hold")]
    Damaged,
    #[error("the snapshot is larger than any etcd's ({} GiB)", LIMIT >> 30)]
    TooLong,
}

impl Check {
    /// Nothing has arrived yet.
    #[expect(clippy::new_without_default, reason = "nothing is no snapshot")]
    #[must_use]
    pub fn new() -> Self {
        Self { digest: Context::new(&SHA256), length: 0, head: Vec::new(), tail: Vec::new() }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// As soon as these bytes can become no snapshot.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), Unsound> {
        self.length += piece.len() as u64;
        if self.length > LIMIT {
            return Err(Unsound::TooLong);
        }
        let missing = (MAGIC_AT + MAGIC.len()).saturating_sub(self.head.len());
        self.head.extend_from_slice(&piece[..missing.min(piece.len())]);
        if self.head.get(MAGIC_AT..).is_some_and(|found| !MAGIC.starts_with(found)) {
            return Err(Unsound::Foreign);
        }
        self.tail.extend_from_slice(piece);
        let known = self.tail.len().saturating_sub(SUM);
        self.digest.update(&self.tail[..known]);
        self.tail.drain(..known);
        Ok(())
    }

    /// All has arrived.
    ///
    /// # Errors
    /// When it is no snapshot.
    pub fn finish(self) -> Result<Hash, Unsound> {
        if self.head.len() < MAGIC_AT + MAGIC.len() {
            return Err(Unsound::Foreign);
        }
        match self.length % SECTOR {
            0 => Ok(Hash::None),
            rest if rest == SUM as u64 && self.tail == self.digest.finish().as_ref() => {
                Ok(Hash::Right)
            }
            rest if rest == SUM as u64 => Err(Unsound::Damaged),
            _ => Err(Unsound::Broken(self.length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn database(pages: usize) -> Vec<u8> {
        let mut bytes = vec![7; pages * 4096];
        bytes[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(&MAGIC);
        bytes
    }

    fn snapshot(pages: usize) -> Vec<u8> {
        let mut bytes = database(pages);
        let sum = ring::digest::digest(&SHA256, &bytes);
        bytes.extend_from_slice(sum.as_ref());
        bytes
    }

    fn check(bytes: &[u8], piece: usize) -> Result<Hash, Unsound> {
        let mut check = Check::new();
        bytes.chunks(piece).try_for_each(|piece| check.push(piece))?;
        check.finish()
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_are_judged_alike(
            pages in 1_usize..4, piece in 1_usize..9000, at in 0_usize..4096,
        ) {
            let sound = snapshot(pages);
            prop_assert_eq!(check(&sound, piece), Ok(Hash::Right));
            prop_assert_eq!(check(&database(pages), piece), Ok(Hash::None));
            let mut wrong = sound.clone();
            wrong[at] ^= 1;
            let foreign = (MAGIC_AT..MAGIC_AT + 4).contains(&at);
            let expected = if foreign { Unsound::Foreign } else { Unsound::Damaged };
            prop_assert_eq!(check(&wrong, piece), Err(expected));
            let cut = sound.len() - 1 - at % 400;
            prop_assert!(check(&sound[..cut], piece) != Ok(Hash::Right));
        }
    }

    #[test]
    fn nothing_is_no_snapshot() {
        assert_eq!(check(&[], 1), Err(Unsound::Foreign));
        assert_eq!(check(b"version: v1alpha1\n", 3), Err(Unsound::Foreign));
        assert_eq!(check(&snapshot(1)[..4096 + 31], 100), Err(Unsound::Broken(4127)));
        let text = Unsound::TooLong.to_string();
        assert_eq!(text, "the snapshot is larger than any etcd's (8 GiB)");
    }
}
