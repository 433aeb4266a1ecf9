//! Block devices, `Documentation/userspace-api/ioctl`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

nix::ioctl_none!(blkrrpart, 0x12, 95);

/// Has the kernel read the partition table of `disk` again (`BLKRRPART` of `<linux/fs.h>`).
///
/// # Errors
/// `EBUSY` while a partition is used, `EINVAL` of what has no partitions.
pub fn reread_partitions(disk: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call; the ioctl takes no argument.
    unsafe { blkrrpart(disk.as_raw_fd()) }?;
    Ok(())
}
