//! The cgroup v2 tree: who lives where, and what memory is kept for whom (spec §8.10).

use std::fs;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::Error;

const ROOT: &str = "/sys/fs/cgroup";
const MIB: u64 = 1 << 20;

struct Cgroup {
    path: &'static str,
    /// Kept for it when memory is short, bytes (`memory.low`); 0 is nothing.
    reserved: u64,
    /// Whether other cgroups live below it.
    parent: bool,
}

const TREE: [Cgroup; 6] = [
    Cgroup { path: "init", reserved: 96 * MIB, parent: false },
    Cgroup { path: "system", reserved: 96 * MIB, parent: true },
    Cgroup { path: "system/runtime", reserved: 0, parent: false },
    Cgroup { path: "podruntime", reserved: 196 * MIB, parent: true },
    Cgroup { path: "podruntime/runtime", reserved: 0, parent: false },
    Cgroup { path: "kubepods", reserved: 0, parent: true },
];

/// Makes the tree and moves this process into `/init`.
pub(crate) fn set_up() -> Result<(), Error> {
    let root = PathBuf::from(ROOT);
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))
        .map_err(|source| Error::file("read", "/sys/fs/cgroup/cgroup.controllers", source))?;
    enable(&root, &controllers);
    for Cgroup { path, reserved, parent } in TREE {
        let folder = root.join(path);
        fs::create_dir_all(&folder)
            .map_err(|source| Error::file("create the cgroup", &folder, source))?;
        if parent {
            enable(&folder, &controllers);
        }
        if reserved > 0
            && let Err(error) = fs::write(folder.join("memory.low"), reserved.to_string())
        {
            warn!(cgroup = path, %error, "no memory is reserved");
        }
    }
    let members = root.join("init/cgroup.procs");
    fs::write(&members, "1").map_err(|source| Error::file("move PID 1 into", &members, source))
}

/// Lets the children of `folder` be limited. A controller the kernel holds back only loses its limits.
fn enable(folder: &Path, controllers: &str) {
    for controller in controllers.split_ascii_whitespace() {
        if let Err(error) =
            fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"))
        {
            warn!(cgroup = %folder.display(), controller, %error, "controller not enabled");
        }
    }
}
