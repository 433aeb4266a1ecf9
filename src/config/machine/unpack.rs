//! A configuration that comes compressed from where the machine runs.

use std::borrow::Cow;
use std::io::{self, Read as _};

use flate2::bufread::GzDecoder;

/// No configuration is larger, in bytes.
pub const UNPACKED_LIMIT: usize = 4 << 20;

/// RFC 1952 §2.3.1.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Why compressed bytes are no configuration.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// They unpack to more than any configuration has; however little they are.
    #[error("the configuration is larger than {UNPACKED_LIMIT} bytes")]
    Large,
    /// They begin like gzip and are none.
    #[error("unpack the configuration as gzip")]
    Gzip(#[source] io::Error),
    /// There is more behind the end of the compressed data.
    #[error("unpack the configuration as gzip: {0} bytes follow its end")]
    Rest(usize),
}

/// Bytes as they came from a platform: gzip is unpacked, all else is handed on as it is. Needs no
/// more memory than [`UNPACKED_LIMIT`], whatever the bytes say.
///
/// # Errors
/// When they are too many, or are gzip that is damaged.
pub fn unpack(bytes: &[u8]) -> Result<Cow<'_, [u8]>, UnpackError> {
    if !bytes.starts_with(&GZIP) {
        return match bytes.len() {
            0..=UNPACKED_LIMIT => Ok(Cow::Borrowed(bytes)),
            _ => Err(UnpackError::Large),
        };
    }
    let mut decoder = GzDecoder::new(bytes);
    let mut unpacked = Vec::new();
    let limit = UNPACKED_LIMIT as u64 + 1;
    decoder.by_ref().take(limit).read_to_end(&mut unpacked).map_err(UnpackError::Gzip)?;
    if unpacked.len() > UNPACKED_LIMIT {
        return Err(UnpackError::Large);
    }
    match decoder.into_inner().len() {
        0 => Ok(Cow::Owned(unpacked)),
        rest => Err(UnpackError::Rest(rest)),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_is_unpacked_and_text_is_left_alone() {
        let text = b"machine: {}\n";
        assert!(matches!(unpack(text).unwrap(), Cow::Borrowed(same) if same == text));
        assert_eq!(*unpack(&packed(text)).unwrap(), *text);
        assert_eq!(*unpack(b"").unwrap(), *b"");
    }

    #[test]
    fn a_bomb_is_refused_whatever_its_size() {
        let largest = vec![b'a'; UNPACKED_LIMIT];
        assert_eq!(unpack(&packed(&largest)).unwrap().len(), UNPACKED_LIMIT);
        let bomb = packed(&vec![0; 64 << 20]);
        assert!(bomb.len() < 100_000);
        assert!(matches!(unpack(&bomb), Err(UnpackError::Large)));
        assert!(matches!(unpack(&[largest, vec![0]].concat()), Err(UnpackError::Large)));
    }

    #[test]
    fn damage_is_told() {
        let sound = packed(b"machine: {}\n");
        assert!(matches!(unpack(&sound[..sound.len() - 1]), Err(UnpackError::Gzip(_))));
        assert!(matches!(unpack(&[&sound[..], b"more"].concat()), Err(UnpackError::Rest(4))));
        let mut wrong = sound;
        let crc = wrong.len() - 8;
        wrong[crc] ^= 1;
        assert!(matches!(unpack(&wrong), Err(UnpackError::Gzip(_))));
        assert!(matches!(unpack(&GZIP), Err(UnpackError::Gzip(_))));
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(bytes: Vec<u8>, tail: Vec<u8>) {
            let packed = packed(&bytes);
            prop_assert_eq!(&*unpack(&packed).unwrap(), &bytes[..]);
            let _ = unpack(&[&GZIP[..], &tail].concat());
            let _ = unpack(&[&packed[..10], &tail].concat());
        }
    }
}
