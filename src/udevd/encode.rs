//! How strings from devices are written into properties and names of links.

use std::fmt::Write as _;

/// What may stand in the name of a link as it is, beside letters and digits.
const HARMLESS: &str = "#+-.:=@_";

/// Every byte but letters, digits, `#+-.:=@_` and whole UTF-8 characters as `\xNN`, as
/// `encode_devnode_name()` of systemd and `blkid_encode_string(3)`: programs find volumes by this.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || HARMLESS.contains(c) || !c.is_ascii() {
            out.push(c);
        } else {
            let _ = write!(out, "\\x{:02x}", u32::from(c));
        }
    }
    out
}

/// White space at both ends taken off, any other run of it one `_`, and what could do harm in the
/// name of a file one `_` each, as `udev_replace_whitespace()` and `udev_replace_chars()` do.
#[must_use]
pub fn plain(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || HARMLESS.contains(c) || !c.is_ascii();
    let words =
        text.split(|c: char| c.is_whitespace() || c == '\0').filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(|word| word.replace(|c| !harmless(c), "_")).collect();
    words.join("_")
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A UUID in the usual form, its bytes in the order they are written (RFC 9562 §4).
#[must_use]
pub fn uuid(bytes: &[u8; 16]) -> String {
    let hex = hex(bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A GUID as EFI stores it: the first three fields are little-endian (UEFI specification, appendix A).
#[must_use]
pub fn guid(bytes: &[u8; 16]) -> String {
    let mut ordered = *bytes;
    ordered[..4].reverse();
    ordered[4..6].reverse();
    ordered[6..8].reverse();
    uuid(&ordered)
}

/// Text up to the first zero, without white space at its ends.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_are_encoded_as_other_programs_expect() {
        assert_eq!(escaped("EFI System/1"), "EFI\\x20System\\x2f1");
        assert_eq!(escaped("Größe"), "Größe");
        assert_eq!(plain("  QEMU   HARDDISK  "), "QEMU_HARDDISK");
        assert_eq!(plain("a/b \"c\""), "a_b__c_");
    }

    #[test]
    fn identifiers_have_their_usual_form() {
        let bytes = [
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9,
            0x3b,
        ];
        assert_eq!(guid(&bytes), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(uuid(&bytes), "28732ac1-1ff8-d211-ba4b-00a0c93ec93b");
    }

    proptest! {
        #[test]
        fn nothing_that_is_written_splits_a_path_or_a_line(bytes in any::<String>()) {
            for text in [escaped(&bytes), plain(&bytes)] {
                prop_assert!(!text.contains(['/', '\n', '\0', ' ']), "{:?}", text);
            }
        }
    }
}
