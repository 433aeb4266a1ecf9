//! What the configuration sets up for its user before services start: sysctls, sysfs and files.
//!
//! A line that cannot be carried out is told and left out: a node that boots can be corrected.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use orlop_config::machine::{File as UserFile, FileOperation};
use tracing::{error, info};

use crate::hardening;

/// Only below this can files be made; what lies elsewhere is covered by a copy here.
const WRITABLE: &str = "/var";

/// `machine.sysctls`.
pub(crate) fn write_sysctls(sysctls: &BTreeMap<String, String>) {
    if !sysctls.is_empty() {
        hardening::apply_user_sysctls(sysctls);
    }
}

/// `machine.sysfs`.
pub(crate) fn write_sysfs(settings: &BTreeMap<String, String>) {
    if !settings.is_empty() {
        hardening::apply_user_sysfs(settings);
    }
}

/// `machine.files`.
pub(crate) fn write_files(files: &[UserFile]) {
    for file in files {
        match write_file(file, Path::new("/")) {
            Ok(()) => info!(path = file.path, "wrote a file of the configuration"),
            Err(error) => error!(
                path = file.path,
                %error, "a file of the configuration is not written; correct machine.files"
            ),
        }
    }
}

/// Writes one below `root`.
fn write_file(file: &UserFile, root: &Path) -> io::Result<()> {
    let target = below(root, &file.path);
    let content = match file.op {
        FileOperation::Create => file.content.expose().to_owned(),
        FileOperation::Overwrite => existing(&target).map(|_| file.content.expose().to_owned())?,
        FileOperation::Append => format!("{}\n{}", existing(&target)?, file.content.expose()),
    };
    let covers = !Path::new(&file.path).starts_with(WRITABLE);
    let written = if covers { below(&below(root, WRITABLE), &file.path) } else { target.clone() };
    let folder = written.parent().unwrap_or(&written);
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let covered = covers && is_same(&written, &target);
    orlop_rt::replace(&written, file.permissions.0, content.as_bytes())?;
    if covered {
        // By what has just been replaced; nothing can be mounted over that.
        umount2(&target, MntFlags::MNT_DETACH)?;
    }
    if covers { cover(&written, &target) } else { Ok(()) }
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn is_same(a: &Path, b: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}

/// The content of a file that must be there.
fn existing(path: &Path) -> io::Result<String> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    fs::read_to_string(path)
}

/// Shows `source`, read-only, in place of `target`.
fn cover(source: &Path, target: &Path) -> io::Result<()> {
    let bind = |flags| mount(Some(source), target, None::<&str>, flags, None::<&str>);
    bind(MsFlags::MS_BIND)?;
    Ok(bind(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn file(path: &str, op: FileOperation) -> UserFile {
        UserFile {
            content: "new".to_owned().into(),
            path: path.to_owned(),
            op,
            ..UserFile::default()
        }
    }

    /// As a node has it: nothing below the root can be written but `/var`.
    #[test]
    fn files_of_a_read_only_root_are_covered() {
        // A mount namespace is a thread's own, and ends with it.
        let covered = || {
            if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
                println!("skipped: a mount namespace of our own: {errno}");
                return;
            }
            let place = |target: &Path, flags| {
                mount(Some(target), target, None::<&str>, flags, None::<&str>).unwrap();
            };
            place(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            let home = tempfile::tempdir().unwrap();
            let root = home.path();
            let motd = root.join("etc/motd");
            fs::create_dir_all(root.join("etc")).unwrap();
            fs::create_dir(root.join("var")).unwrap();
            fs::write(&motd, "old").unwrap();
            place(root, MsFlags::MS_BIND);
            place(root, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
            let var = root.join("var");
            mount(Some("tmpfs"), &var, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            let read_only = |path: &Path| {
                let error = fs::write(path, "x").unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{}", path.display());
            };
            read_only(&motd);

            write_file(&file("/etc/motd", FileOperation::Overwrite), root).unwrap();
            assert_eq!(fs::read_to_string(&motd).unwrap(), "new");
            write_file(&file("/etc/motd", FileOperation::Append), root).unwrap();
            assert_eq!(fs::read_to_string(&motd).unwrap(), "new\nnew");
            assert_eq!(fs::metadata(&motd).unwrap().permissions().mode() & 0o777, 0o644);
            read_only(&motd);
            // There is nothing to cover, and nothing can be made there.
            write_file(&file("/etc/made", FileOperation::Create), root).unwrap_err();
            assert!(!root.join("etc/made").exists());
            write_file(&file("/var/made", FileOperation::Create), root).unwrap();
            assert_eq!(fs::read_to_string(root.join("var/made")).unwrap(), "new");
            // What is mounted there would keep the folder from being removed.
            for target in [&motd, &var, &root.to_owned()] {
                umount2(target, MntFlags::MNT_DETACH).unwrap();
            }
        };
        std::thread::spawn(covered).join().unwrap();
    }

    #[test]
    fn each_operation_does_what_it_is_called() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("var/lib/a");
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        write_file(&file("/var/lib/a/made", FileOperation::Create), root.path()).unwrap();
        assert_eq!(read("made"), "new");
        fs::write(folder.join("old"), "old").unwrap();
        write_file(&file("/var/lib/a/old", FileOperation::Append), root.path()).unwrap();
        assert_eq!(read("old"), "old\nnew");
        write_file(&file("/var/lib/a/old", FileOperation::Overwrite), root.path()).unwrap();
        assert_eq!(read("old"), "new");
        for op in [FileOperation::Append, FileOperation::Overwrite] {
            write_file(&file("/var/lib/a/absent", op), root.path()).unwrap_err();
            write_file(&file("/var/lib/a", op), root.path()).unwrap_err();
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }
}
