//! Tables that come with this program, which `build.rs` has packed.

use std::io::Read as _;

use flate2::read::ZlibDecoder;

/// The text of a table by its name, unpacked when it is first asked for.
macro_rules! unpacked {
    ($name:literal) => {{
        static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
            crate::packed::unpack(include_bytes!(concat!(env!("OUT_DIR"), "/", $name)))
        });
        TEXT.as_str()
    }};
}
pub(crate) use unpacked;

pub(crate) fn unpack(packed: &[u8]) -> String {
    let mut text = String::new();
    let read = ZlibDecoder::new(packed).read_to_string(&mut text);
    read.expect("what comes with this program is sound");
    text.shrink_to_fit();
    text
}
