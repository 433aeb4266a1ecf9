//! The file systems that are mounted before the root and move onto it.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::Error;

/// One mount of the initramfs.
struct Pseudo {
    target: &'static str,
    fstype: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
}

const NOSUID: MsFlags = MsFlags::MS_NOSUID;
const CLOSED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);
const DATA: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const PSEUDO: [Pseudo; 6] = [
    Pseudo { target: "/dev", fstype: "devtmpfs", flags: NOSUID, data: Some("mode=0755") },
    Pseudo { target: "/proc", fstype: "proc", flags: CLOSED, data: None },
    Pseudo { target: "/sys", fstype: "sysfs", flags: CLOSED, data: None },
    Pseudo { target: "/run", fstype: "tmpfs", flags: DATA, data: Some("mode=0755") },
    Pseudo { target: "/system", fstype: "tmpfs", flags: DATA, data: Some("mode=0755") },
    Pseudo { target: "/tmp", fstype: "tmpfs", flags: DATA, data: Some("mode=1777") },
];

/// Mounts them all.
pub(crate) fn mount_pseudo() -> Result<(), Error> {
    PSEUDO.iter().try_for_each(|Pseudo { target, fstype, flags, data }| {
        fs::create_dir_all(target).map_err(|source| Error::Path {
            operation: "create the mount point",
            path: target.into(),
            source,
        })?;
        mount(Some(*fstype), *target, Some(*fstype), *flags, *data).map_err(|source| Error::Mount {
            fstype,
            target: target.into(),
            source,
        })
    })
}

/// Moves them all below `root`.
pub(crate) fn move_below(root: &Path) -> Result<(), Error> {
    PSEUDO.iter().try_for_each(|Pseudo { target, .. }| {
        let to = root.join(target.trim_start_matches('/'));
        move_mount(Path::new(target), &to)
    })
}

pub(crate) fn move_mount(from: &Path, to: &Path) -> Result<(), Error> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|source| Error::Move { from: from.into(), to: to.into(), source })
}
