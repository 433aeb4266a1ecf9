//! The file systems PID 1 mounts beyond what the initramfs brought, and how all of them go away again.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tracing::{debug, error, warn};

use crate::Error;
use crate::api::host::mount_lines;

struct Mount {
    target: &'static str,
    fstype: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
}

const NOSUID_NODEV: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const CLOSED: MsFlags = NOSUID_NODEV.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_RELATIME);
const TERMINALS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// Spec §8.8. Without a volume for it, `/var` lives in memory.
const MOUNTS: [Mount; 6] = [
    Mount { target: "/dev/shm", fstype: "tmpfs", flags: CLOSED, data: None },
    Mount {
        target: "/dev/pts",
        fstype: "devpts",
        flags: TERMINALS,
        data: Some("ptmxmode=000,mode=620,gid=5"),
    },
    Mount { target: "/sys/kernel/security", fstype: "securityfs", flags: CLOSED, data: None },
    Mount { target: "/sys/fs/bpf", fstype: "bpf", flags: CLOSED, data: Some("mode=0700") },
    Mount {
        target: "/sys/fs/cgroup",
        fstype: "cgroup2",
        flags: CLOSED,
        // What is kept for a parent is kept for its children.
        data: Some("nsdelegate,memory_recursiveprot"),
    },
    Mount { target: "/var", fstype: "tmpfs", flags: NOSUID_NODEV, data: Some("mode=0755") },
];

/// Directories of spec §8.8 with their modes, made after the mounts.
const DIRECTORIES: [(&str, u32); 12] = [
    ("/system/etc", 0o700),
    // Daemons that are no containers have their sockets in it; each folder lets in whom it concerns.
    ("/system/run", 0o711),
    ("/system/run/containerd", 0o755),
    ("/system/run/machined", 0o755),
    ("/system/var", 0o700),
    ("/system/state", 0o700),
    ("/system/secrets", 0o711),
    ("/system/libexec", 0o755),
    ("/run/containerd", 0o711),
    ("/var/log/pods", 0o700),
    ("/var/lib/kubelet", 0o700),
    ("/run/lock", 0o700),
];

/// Mounts all, then makes the directories that everything else expects.
pub(crate) fn mount_all() -> Result<(), Error> {
    for Mount { target, fstype, flags, data } in &MOUNTS {
        let made = fs::create_dir_all(target);
        let mounted = mount(Some(*fstype), *target, Some(*fstype), *flags, *data);
        match (made, mounted) {
            (_, Ok(())) => {}
            (Err(source), _) => return Err(Error::file("create the mount point", target, source)),
            (Ok(()), Err(source)) => {
                return Err(Error::Mount { fstype, target: target.into(), source });
            }
        }
    }
    make_directories()
}

/// Makes those that are not there yet; a volume that was mounted meanwhile may hide them.
pub(crate) fn make_directories() -> Result<(), Error> {
    match std::os::unix::fs::symlink("/run", "/var/run") {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::file("link", "/var/run", source));
        }
        _ => {}
    }
    for (path, mode) in DIRECTORIES {
        fs::create_dir_all(path)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
            .map_err(|source| Error::file("create the folder", path, source))?;
    }
    Ok(())
}

/// Mounts `source` over `target`, a file of the read-only root.
pub(crate) fn bind_file(source: &Path, target: &Path) -> Result<(), Error> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| Error::Mount { fstype: "bind", target: target.into(), source: errno })
}

/// Unmounts all that can be, the last mounted first; what stays busy is made read-only.
pub(crate) fn unmount_all() {
    let text = match fs::read("/proc/self/mounts") {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return error!(%error, "read /proc/self/mounts: nothing is unmounted"),
    };
    let targets: Vec<String> = mount_lines(&text).map(|(_, target)| target).collect();
    for target in targets.iter().rev().filter(|target| !needed_to_the_end(target)) {
        match umount2(target.as_str(), MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => debug!(target, "unmounted"),
            Err(nix::Error::EBUSY) => {
                let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                if let Err(error) =
                    mount(None::<&str>, target.as_str(), None::<&str>, flags, None::<&str>)
                {
                    warn!(target, %error, "busy, and cannot be made read-only");
                }
            }
            // Went with another mount, or was never ours.
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => warn!(target, %error, "unmount"),
        }
    }
}

/// The log, the process table and the root itself serve until the very last call.
fn needed_to_the_end(target: &str) -> bool {
    matches!(target, "/" | "/dev" | "/proc" | "/sys")
}
