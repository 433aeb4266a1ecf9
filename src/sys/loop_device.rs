//! Loop devices, `loop(4)`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

nix::ioctl_none_bad!(loop_ctl_get_free, LOOP_CTL_GET_FREE);
nix::ioctl_write_ptr_bad!(loop_configure, LOOP_CONFIGURE, LoopConfig);
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of `<linux/loop.h>`.
#[repr(C)]
#[derive(Default)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u64; 8],
    crypt_name: [u64; 8],
    encrypt_key: [u64; 4],
    init: [u64; 2],
}

/// `struct loop_config` of `<linux/loop.h>`.
#[repr(C)]
#[derive(Default)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Puts `file` behind a free loop device, read-only, and returns the device with its path. The
/// kernel lets the device go when its last user (a mount) does; hold the `File` until then.
///
/// # Errors
/// When there is no free device or the file cannot be opened.
pub fn attach_read_only(file: &Path) -> io::Result<(File, PathBuf)> {
    let backing = File::open(file)?;
    let control = File::open("/dev/loop-control")?;
    // SAFETY: the descriptor is open for the length of the call; the ioctl takes no argument.
    let number = unsafe { loop_ctl_get_free(control.as_raw_fd()) }?;
    let path = PathBuf::from(format!("/dev/loop{number}"));
    // Read-only: with BLK_DEV_WRITE_MOUNTED off the kernel refuses to mount what is open for writing.
    let device = File::open(&path)?;
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
        info: LoopInfo { flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR, ..LoopInfo::default() },
        ..LoopConfig::default()
    };
    // SAFETY: both descriptors are open for the length of the call, and `config` has the layout of
    // the kernel's `struct loop_config` (304 bytes, checked below).
    unsafe { loop_configure(device.as_raw_fd(), &raw const config) }?;
    Ok((device, path))
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);
