//! The first time of day and the first randomness, before anything asks for either.

use std::fs::File;
use std::io::{self, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use ring::digest;
use tracing::{info, warn};

use crate::Error;

/// A clock before this is dead: 2026-01-01, before the first release. `ORLOP_EPOCH` (seconds, set by
/// the Makefile from the commit) is later and wins.
const FALLBACK_EPOCH: u64 = 1_767_225_600;

/// Sets a clock that stands before this build to the build's time, so that certificates are valid.
pub(crate) fn set_up() -> Result<(), Error> {
    let epoch =
        option_env!("ORLOP_EPOCH").and_then(|text| text.parse().ok()).unwrap_or(FALLBACK_EPOCH);
    let earliest = UNIX_EPOCH + Duration::from_secs(epoch);
    if SystemTime::now() >= earliest {
        return Ok(());
    }
    warn!(epoch, "the clock stands before this build was made: set to that time");
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(Duration::from_secs(epoch)))
        .map_err(|errno| Error::System { operation: "set the clock", source: errno.into() })
}

/// Mixes what is peculiar to this machine and this boot into the pool, and credits what a hardware
/// generator gave. A generator that is not there is no failure: the kernel has its own sources.
pub(crate) fn seed_entropy() {
    let mut hardware = [0u8; 32];
    let bits =
        match File::open("/dev/hwrng").and_then(|mut device| device.read_exact(&mut hardware)) {
            Ok(()) => 256,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => {
                tracing::debug!(%error, "read /dev/hwrng");
                0
            }
        };
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&hardware);
    for path in ["/sys/class/dmi/id/product_uuid", "/proc/interrupts", "/proc/cmdline"] {
        context.update(&std::fs::read(path).unwrap_or_default());
    }
    context.update(&orlop_sys::monotonic().as_nanos().to_ne_bytes());
    let mut seed = [0; 32];
    seed.copy_from_slice(context.finish().as_ref());
    if let Err(error) = orlop_sys::add_entropy(seed, bits) {
        warn!(%error, "add to the kernel's randomness");
    }
    info!(ready = orlop_sys::entropy_ready(), hardware_bits = bits, "randomness");
}
