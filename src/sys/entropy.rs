//! The kernel's random number generator, `random(4)`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// `struct rand_pool_info` of `<linux/random.h>` with room for 32 bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    pool: [u8; 32],
}

nix::ioctl_write_ptr_bad!(rnd_add_entropy, RNDADDENTROPY, PoolInfo);
/// `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// Mixes 32 bytes of seed into the pool and credits `bits` (0 to 256) of entropy for them.
///
/// # Errors
/// When `/dev/random` cannot be opened or we lack `CAP_SYS_ADMIN`.
pub fn add_entropy(seed: [u8; 32], bits: u16) -> io::Result<()> {
    let device = File::options().write(true).open("/dev/random")?;
    let info = PoolInfo { entropy_bits: i32::from(bits.min(256)), bytes: 32, pool: seed };
    // SAFETY: the descriptor is open for the length of the call, and `info` has the layout the ioctl
    // reads: two ints, then `bytes` bytes, all inside the struct.
    unsafe { rnd_add_entropy(device.as_raw_fd(), &raw const info) }?;
    Ok(())
}

/// Whether the generator has been seeded: `getrandom(2)` would not block.
#[must_use]
pub fn entropy_ready() -> bool {
    let mut byte = 0u8;
    // SAFETY: the buffer is one writable byte, and we pass its length.
    let count = unsafe { libc::getrandom((&raw mut byte).cast(), 1, libc::GRND_NONBLOCK) };
    count == 1
}
