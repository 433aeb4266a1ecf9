//! What tests with the real binary share: a folder of their own and the command line run in it.

use std::path::PathBuf;
use std::process::{Command, Output};

/// An empty folder that is also the home of the commands run in it.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder can be made") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `orlopctl ARGS` in this folder, with nothing of the caller's environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("orlopctl").args(args).env_clear();
        command.env("HOME", self.folder.path()).current_dir(self.folder.path());
        command
    }

    /// Runs `orlopctl ARGS` to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().expect("the binary can be run"))
    }
}

/// The binary to test: what `ORLOP` names (`make` gives the one that ships), else what cargo built.
fn binary() -> PathBuf {
    std::env::var_os("ORLOP").map_or_else(|| env!("CARGO_BIN_EXE_orlop").into(), PathBuf::from)
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the output is UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}
