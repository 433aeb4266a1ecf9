//! The real root: mounted, entered, and the initramfs behind it given back to memory.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::mount::MsFlags;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::{Error, mounts};

const ROOT: &str = "/root";

/// Mounts the squashfs `image` read-only on `/root` over a loop device, shared, so that containers
/// see what is mounted later.
pub(crate) fn mount(image: &Path) -> Result<(), Error> {
    let failed = |operation| move |source| Error::Path { operation, path: image.into(), source };
    fs::create_dir_all(ROOT).map_err(failed("create the mount point of"))?;
    // Held until the mount holds the device.
    let (_device, path) =
        orlop_sys::attach_read_only(image).map_err(failed("attach a loop device to"))?;
    let squashfs = |source| Error::Mount { fstype: "squashfs", target: ROOT.into(), source };
    nix::mount::mount(Some(&path), ROOT, Some("squashfs"), MsFlags::MS_RDONLY, None::<&str>)
        .map_err(squashfs)
}

/// Brings `program` of the real root into memory in the background: decompressing it is most of its
/// start, and nothing else needs the second processor yet. The child outlives the switch of the root;
/// machined reaps it like any orphan.
pub(crate) fn read_ahead(program: &str) -> Result<(), Error> {
    let path = Path::new(ROOT).join(program);
    let failed = |operation| {
        let path = path.clone();
        move |source| Error::Path { operation, path, source }
    };
    let file = File::open(&path).map_err(failed("open"))?;
    Command::new("/init")
        .arg0("machined")
        .arg("read-ahead")
        .env_clear()
        .stdin(file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
        .map_err(failed("start reading ahead"))
}

/// Makes `/root` the root of everything and becomes its `program`, with an empty environment.
pub(crate) fn switch(program: &str) -> Result<Infallible, Error> {
    let path = |operation| move |source| Error::Path { operation, path: ROOT.into(), source };
    let initramfs = openat(
        nix::fcntl::AT_FDCWD,
        "/",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| path("open the initramfs before")(error.into()))?;
    mounts::move_below(Path::new(ROOT))?;
    env::set_current_dir(ROOT).map_err(path("enter"))?;
    mounts::move_mount(Path::new("."), Path::new("/"))?;
    nix::unistd::chroot(".").map_err(|error| path("change the root to")(error.into()))?;
    env::set_current_dir("/").map_err(path("enter"))?;
    nix::mount::mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None::<&str>,
    )
    .map_err(|source| Error::Mount {
        fstype: "shared propagation",
        target: "/".into(),
        source,
    })?;
    empty(initramfs).map_err(path("free the initramfs under"))?;
    let error = Command::new(program).arg0("init").env_clear().exec();
    Err(Error::Path { operation: "execute", path: program.into(), source: error })
}

/// Deletes everything below `directory` that lies on its own file system.
fn empty(directory: OwnedFd) -> io::Result<()> {
    let device = fstat(directory.as_fd())?.st_dev;
    empty_on(directory, device)
}

fn empty_on(directory: OwnedFd, device: u64) -> io::Result<()> {
    let mut entries = Dir::from_fd(directory.try_clone()?)?;
    let names: Vec<_> = entries.iter().collect::<Result<_, _>>()?;
    for entry in names {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if stat.st_dev != device {
            continue;
        }
        if !is_directory(&stat) {
            unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir)?;
            continue;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        empty_on(openat(&directory, name, flags, Mode::empty())?, device)?;
        // A mount point of the old tree stays busy: it is empty, and costs nothing.
        match unlinkat(&directory, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(nix::Error::EBUSY | nix::Error::ENOTEMPTY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}
