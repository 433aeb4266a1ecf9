//! The volumes a node keeps things on: found by their labels, mounted over what is in memory without
//! them (spec §8.9). Nothing is made here; a node without them forgets at each boot.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use tracing::{error, info, warn};

use crate::{Error, label, mounts};

/// The volume of the configuration and of what identifies the node.
pub(crate) const STATE: &str = "STATE";
/// The volume of everything else.
pub(crate) const EPHEMERAL: &str = "EPHEMERAL";
/// Labels that a node's disk may have (spec §5.5, Reset).
pub(crate) const LABELS: [&str; 6] = ["EFI", "BIOS", "BOOT", "META", STATE, EPHEMERAL];

/// Where each is mounted.
const PLACES: [(&str, &str); 2] = [(STATE, "/system/state"), (EPHEMERAL, "/var")];
/// At each end of a device lie what tells its kind: superblocks and their copies, partition tables.
const WIPED_BYTES: u64 = 1 << 20;

/// Mounts those that there are.
pub(crate) fn mount_all() -> Result<(), Error> {
    let mut found = false;
    for (label, target) in PLACES {
        let Some((device, fstype)) = find(label)? else { continue };
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        mount(Some(&device), target, Some(fstype), flags, None::<&str>)
            .map_err(|source| Error::Mount { fstype, target: target.into(), source })?;
        info!(label, device = %device.display(), fstype, "mounted {target}");
        found = true;
    }
    if found { mounts::make_directories() } else { Ok(()) }
}

/// Whether what is written to the configuration's place outlives a reboot.
pub(crate) fn keep_state() -> Result<bool, Error> {
    Ok(find(STATE)?.is_some())
}

/// The device of the volume with this label, and its file system.
pub(crate) fn find(wanted: &str) -> Result<Option<(PathBuf, &'static str)>, Error> {
    let found = label::find(wanted)
        .map_err(|source| Error::file("list the block devices in", "/sys/class/block", source))?;
    Ok(found.map(|(device, volume)| (device, volume.fstype)))
}

/// The device with this label: of its file system, else of the partition.
pub(crate) fn device(label: &str) -> Result<Option<PathBuf>, Error> {
    if let Some((device, _)) = find(label)? {
        return Ok(Some(device));
    }
    let class = Path::new("/sys/class/block");
    let names = label::partitions(class, label)
        .map_err(|source| Error::file("list the block devices in", class, source))?;
    Ok(names.first().map(|name| Path::new("/dev").join(name)))
}

/// What a node's disk may have, by label, and the kernel's names of their devices.
pub(crate) fn kept() -> Result<Vec<(String, String)>, Error> {
    let mut found = Vec::new();
    for label in LABELS {
        let name = device(label)?.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        found.extend(name.map(|name| (label.to_owned(), name)));
    }
    Ok(found)
}

/// The kernel's names of the devices that what the node keeps is on.
pub(crate) fn kept_on() -> io::Result<Vec<String>> {
    let name = |device: PathBuf| Some(device.file_name()?.to_str()?.to_owned());
    let found = [STATE, EPHEMERAL].map(label::find).into_iter().collect::<io::Result<Vec<_>>>()?;
    Ok(found.into_iter().flatten().filter_map(|(device, _)| name(device)).collect())
}

/// Makes a device one that nobody knows the kind of. A failure is told: the machine ends anyway.
pub(crate) fn wipe(device: &Path) {
    match wipe_ends(device) {
        Ok(()) => warn!(device = %device.display(), "wiped"),
        Err(error) => error!(device = %device.display(), %error, "cannot be wiped"),
    }
}

fn wipe_ends(path: &Path) -> io::Result<()> {
    // Exclusive: the kernel refuses while it is mounted.
    let mut device = File::options().write(true).custom_flags(OFlag::O_EXCL.bits()).open(path)?;
    let size = device.seek(SeekFrom::End(0))?;
    let zeros = vec![0; 64 << 10];
    for start in [0, size.saturating_sub(WIPED_BYTES)] {
        device.seek(SeekFrom::Start(start))?;
        let mut left = WIPED_BYTES.min(size - start);
        while left > 0 {
            let count = usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()));
            device.write_all(&zeros[..count])?;
            left -= count as u64;
        }
    }
    device.sync_all()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn wiping_clears_both_ends_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for (size, kept) in [(3 * WIPED_BYTES, WIPED_BYTES), (WIPED_BYTES + 7, 0), (512, 0)] {
            let path = folder.path().join("device");
            let size_of = usize::try_from(size).unwrap();
            std::fs::write(&path, vec![7; size_of]).unwrap();
            wipe_ends(&path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len(), size_of);
            let left = bytes.iter().filter(|byte| **byte == 7).count();
            assert_eq!(left as u64, kept, "of {size}");
        }
    }
}
