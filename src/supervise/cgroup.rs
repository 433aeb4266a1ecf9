//! The few files of a cgroup (version 2) the runners touch. `Documentation/admin-guide/cgroup-v2.rst`.

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Makes the cgroup at `directory` and opens its `cgroup.procs`: who writes 0 to it becomes a member.
pub(crate) fn create(directory: &Path) -> io::Result<OwnedFd> {
    fs::create_dir_all(directory)?;
    Ok(OpenOptions::new().write(true).open(directory.join("cgroup.procs"))?.into())
}

/// Writes one of the limits (`pids.max`) of the cgroup at `directory`.
pub(crate) fn limit(directory: &Path, file: &str, value: impl Display) -> io::Result<()> {
    // Without the controller there is no such file, and none must be made.
    let mut file = OpenOptions::new().write(true).open(directory.join(file))?;
    io::Write::write_all(&mut file, value.to_string().as_bytes())
}

/// How many members of the cgroup at `directory` were killed for want of memory, its own or the
/// machine's, since it was made. 0 where nobody counts.
pub(crate) fn out_of_memory(directory: &Path) -> u64 {
    // Version 1 has the same line in another file.
    ["memory.events", "memory.oom_control"]
        .iter()
        .filter_map(|name| fs::read_to_string(directory.join(name)).ok())
        .flat_map(|text| {
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            count.and_then(|count| count.trim().parse().ok())
        })
        .next()
        .unwrap_or(0)
}

/// Kills all members of the cgroup at `directory` and below; one that is not there has none.
pub(crate) fn kill(directory: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).open(directory.join("cgroup.kill")) {
        Ok(mut file) => io::Write::write_all(&mut file, b"1"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
