//! Golden files of the tests: what a command prints, to the byte.

use std::path::Path;

/// Compares `text` with a file of `testdata/`; with `UPDATE_GOLDEN=1` writes the file instead.
pub(crate) fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).expect("the golden file can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("the golden file can be read");
    assert_eq!(text, expected, "{name}: UPDATE_GOLDEN=1 takes the new text");
}
