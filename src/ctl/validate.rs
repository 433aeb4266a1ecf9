//! `validate`: whether a node would take a machine configuration, without a node.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use orlop_config::machine::{self, Mode};

use crate::error::Error;
use crate::table::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Machine configuration
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Where the node runs: cloud, container or metal
    #[arg(short, long, value_name = "MODE")]
    mode: Mode,
}

/// Says all that is wrong with it on stderr, a line each, or that nothing is.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let Options { config: path, mode } = options;
    let failed = |source| Error::Read { path: path.clone(), source };
    let bytes = fs::read(path).map_err(failed)?;
    let invalid = |what| failed(io::Error::new(io::ErrorKind::InvalidData, what));
    let bytes = machine::unpack(&bytes).map_err(|error| failed(io::Error::other(error)))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid("it is not UTF-8 text"))?;
    let file = path.display().to_string();
    let config = machine::parse_for(*mode, &file, text).map_err(|problems| {
        say!("{problems}");
        Error::Invalid { file: file.clone(), mode: *mode }
    })?;
    for warning in config.warnings(SystemTime::now()) {
        say!(warning: "{file}: {warning}");
    }
    print(format!("{file} is valid for {mode} mode\n").as_bytes())
}
