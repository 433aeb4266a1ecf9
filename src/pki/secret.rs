//! Text that must not be shown.

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// A token, password or key. `Debug` prints `[redacted]`, there is no `Display`, and the memory is
/// wiped when it is dropped. Serialising writes it out: that is what configuration files need.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that has to send or write it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_does_not_show_a_secret() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{:?} {:#?}", secret, Some(&secret)).find("hunter2"), None);
        assert_eq!(secret.expose(), "hunter2");
    }
}
