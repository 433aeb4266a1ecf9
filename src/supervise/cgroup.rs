//! The few files of a cgroup (version 2) the runners touch. `Documentation/admin-guide/cgroup-v2.rst`.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Makes the cgroup at `directory` and opens its `cgroup.procs`: who writes 0 to it becomes a member.
pub(crate) fn create(directory: &Path) -> io::Result<OwnedFd> {
    fs::create_dir_all(directory)?;
    Ok(OpenOptions::new().write(true).open(directory.join("cgroup.procs"))?.into())
}

/// Kills all members of the cgroup at `directory` and below; one that is not there has none.
pub(crate) fn kill(directory: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).open(directory.join("cgroup.kill")) {
        Ok(mut file) => io::Write::write_all(&mut file, b"1"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
