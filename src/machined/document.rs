//! A machine configuration with the text it was read from: the text is what is kept and shown, so that
//! its author finds their own order and comments again.

use std::sync::Arc;

use orlop_config::Problems;
use orlop_config::machine::{self, MachineConfig, Mode};
use orlop_pki::Secret;

/// One that is sound, and has what a node of its type needs where it runs.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    text: Secret,
    config: Arc<MachineConfig>,
}

impl Document {
    /// Reads it; `file` is what its author calls it, `mode` where the node runs.
    pub(crate) fn parse(mode: Mode, file: &str, text: String) -> Result<Self, Problems> {
        let config = Arc::new(machine::parse_for(mode, file, &text)?);
        Ok(Self { text: text.into(), config })
    }

    /// Of one that is known to be sound.
    pub(crate) fn of(config: MachineConfig) -> Self {
        Self { text: config.to_yaml().into(), config: Arc::new(config) }
    }

    pub(crate) fn config(&self) -> Arc<MachineConfig> {
        Arc::clone(&self.config)
    }

    pub(crate) fn text(&self) -> &str {
        self.text.expose()
    }
}
