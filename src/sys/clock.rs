//! Clocks that std keeps opaque, and the wheel that steers the system's: `clock_adjtime(2)`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Time since the kernel started, without the time spent suspended (`CLOCK_MONOTONIC`).
#[must_use]
pub fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Time since the kernel started, also while suspended (`CLOCK_BOOTTIME`).
#[must_use]
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Moves the system's clock by `nanos` at once (`ADJ_SETOFFSET`).
///
/// # Errors
/// Without `CAP_SYS_TIME`, or when the result is no time a clock can show.
pub fn step_clock(nanos: i64) -> io::Result<()> {
    let mut timex = timex(libc::ADJ_SETOFFSET | libc::ADJ_NANO);
    timex.time.tv_sec = nanos.div_euclid(NANOS_PER_SEC);
    // Of an `ADJ_NANO` call: nanoseconds, never negative.
    timex.time.tv_usec = nanos.rem_euclid(NANOS_PER_SEC);
    adjust(&mut timex).map(drop)
}

/// Makes the system's clock run faster by `ppm` (parts per million; the kernel takes up to 500 either
/// way), and ends whatever slewing the kernel did on its own (`ADJ_FREQUENCY`, `ADJ_OFFSET`).
///
/// # Errors
/// Without `CAP_SYS_TIME`.
pub fn set_clock_frequency(ppm: f64) -> io::Result<()> {
    let mut timex = timex(libc::ADJ_FREQUENCY);
    #[expect(clippy::cast_possible_truncation, reason = "a float-to-int cast saturates")]
    let scaled = (ppm.clamp(-500.0, 500.0) * SCALED_PPM).round() as i64;
    timex.freq = scaled;
    adjust(&mut timex).map(drop)
}

/// By how many parts per million the system's clock is made to run faster.
///
/// # Errors
/// When the kernel has no such clock, which cannot be.
pub fn clock_frequency() -> io::Result<f64> {
    let mut timex = timex(0);
    adjust(&mut timex)?;
    #[expect(clippy::cast_precision_loss, reason = "at most 500 ppm, 2^25")]
    let ppm = timex.freq as f64 / SCALED_PPM;
    Ok(ppm)
}

/// A leap second at the end of this day, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeapSecond {
    /// 23:59:60 follows 23:59:59.
    Insert,
    /// 00:00:00 follows 23:59:58.
    Delete,
}

/// Tells the kernel what its clock is worth, for those who ask it (`adjtimex(2)`): `Some` largest
/// possible and expected error when it is synchronised; and of a leap second at the end of the day.
///
/// # Errors
/// Without `CAP_SYS_TIME`.
pub fn set_clock_state(
    synchronized: Option<(Duration, Duration)>,
    leap: Option<LeapSecond>,
) -> io::Result<()> {
    let mut timex = timex(libc::ADJ_STATUS | libc::ADJ_MAXERROR | libc::ADJ_ESTERROR);
    let micros =
        |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX).min(MAX_ERROR);
    let (largest, expected) = synchronized
        .map_or((MAX_ERROR, MAX_ERROR), |(largest, expected)| (micros(largest), micros(expected)));
    timex.maxerror = largest;
    timex.esterror = expected;
    timex.status = if synchronized.is_some() { 0 } else { libc::STA_UNSYNC };
    timex.status |= match leap {
        None => 0,
        Some(LeapSecond::Insert) => libc::STA_INS,
        Some(LeapSecond::Delete) => libc::STA_DEL,
    };
    adjust(&mut timex).map(drop)
}

/// Whether somebody has told the kernel that its clock is right ([`set_clock_state`]).
///
/// # Errors
/// When the kernel does not know `clock_adjtime(2)`.
pub fn clock_is_synchronized() -> io::Result<bool> {
    let mut timex = timex(0);
    adjust(&mut timex)?;
    Ok(timex.status & libc::STA_UNSYNC == 0)
}

/// What a PTP device's clock showed, between two readings of the system's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PtpReading {
    /// The system's clock before.
    pub before: SystemTime,
    /// The device's.
    pub device: SystemTime,
    /// The system's clock after.
    pub after: SystemTime,
}

/// Reads the clock of a PTP device such as `/dev/ptp0` a few times (`PTP_SYS_OFFSET`); the tightest
/// reading counts.
///
/// # Errors
/// When `device` has no clock to read, or what it gives is no time.
pub fn read_ptp(device: &File) -> io::Result<PtpReading> {
    let mut offset =
        PtpSysOffset { samples: PTP_SAMPLES, reserved: [0; 3], times: [PtpTime::default(); 51] };
    // SAFETY: the descriptor is open for the length of the call, and `offset` has the size and layout
    // of the kernel's `struct ptp_sys_offset` (832 bytes, checked below), which it writes to.
    unsafe { ptp_sys_offset(device.as_raw_fd(), &raw mut offset) }?;
    let readings = (0..PTP_SAMPLES as usize).filter_map(|i| {
        let at = |index: usize| offset.times[index].time();
        Some(PtpReading { before: at(2 * i)?, device: at(2 * i + 1)?, after: at(2 * i + 2)? })
    });
    readings
        .filter_map(|reading| Some((reading.after.duration_since(reading.before).ok()?, reading)))
        .min_by_key(|(took, _)| *took)
        .map(|(_, reading)| reading)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the device gives no time"))
}

/// Writes `time`, to the second, to a real-time clock such as `/dev/rtc0` (`RTC_SET_TIME`), which is
/// kept in UTC.
///
/// # Errors
/// When `device` cannot be set, or `time` is before 1970.
pub fn write_rtc(device: &File, time: SystemTime) -> io::Result<()> {
    let since = time.duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_secs();
    let since = i64::try_from(since).map_err(io::Error::other)?;
    // SAFETY: all bytes zero is a valid `tm`: integers and a pointer that may be null.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values of ours that outlive the call; it keeps neither.
    if unsafe { libc::gmtime_r(&raw const since, &raw mut tm) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    let rtc = RtcTime {
        fields: [
            tm.tm_sec, tm.tm_min, tm.tm_hour, tm.tm_mday, tm.tm_mon, tm.tm_year, tm.tm_wday,
            tm.tm_yday, 0,
        ],
    };
    // SAFETY: the descriptor is open for the length of the call, and `rtc` has the layout of the
    // kernel's `struct rtc_time`: nine ints.
    unsafe { rtc_set_time(device.as_raw_fd(), &raw const rtc) }?;
    Ok(())
}

fn timex(modes: u32) -> libc::timex {
    // SAFETY: all bytes zero is a valid `timex`: integers only.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = modes;
    timex
}

fn adjust(timex: &mut libc::timex) -> io::Result<i32> {
    // SAFETY: `timex` points to a valid structure for the length of the call.
    match unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, timex) } {
        -1 => Err(io::Error::last_os_error()),
        state => Ok(state),
    }
}

nix::ioctl_write_ptr!(ptp_sys_offset_write, b'=', 5, PtpSysOffset);
nix::ioctl_write_ptr!(rtc_set_time, b'p', 0x0a, RtcTime);

/// `PTP_SYS_OFFSET` of `<linux/ptp_clock.h>`: declared as written only, though the kernel fills it.
///
/// # Safety
/// As of every ioctl: `fd` is open, `data` points to memory that may be written.
unsafe fn ptp_sys_offset(fd: i32, data: *mut PtpSysOffset) -> nix::Result<i32> {
    // SAFETY: the caller's promise; a pointer to writable memory is also one to readable memory.
    unsafe { ptp_sys_offset_write(fd, data) }
}

const NANOS_PER_SEC: i64 = 1_000_000_000;
/// The kernel's unit of frequency: ppm with 16 bits after the point.
const SCALED_PPM: f64 = 65536.0;
/// The largest error the kernel knows of, in microseconds (`NTP_PHASE_LIMIT`).
const MAX_ERROR: i64 = 16_000_000;
/// Pairs asked of a PTP device; it knows up to 25.
const PTP_SAMPLES: u32 = 5;

/// `struct ptp_clock_time`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PtpTime {
    sec: i64,
    nsec: u32,
    reserved: u32,
}

impl PtpTime {
    fn time(self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::new(u64::try_from(self.sec).ok()?, self.nsec))
    }
}

/// `struct ptp_sys_offset`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct PtpSysOffset {
    samples: u32,
    reserved: [u32; 3],
    times: [PtpTime; 51],
}

/// `struct rtc_time`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct RtcTime {
    fields: [i32; 9],
}

const _: () = assert!(size_of::<PtpSysOffset>() == 832 && size_of::<RtcTime>() == 36);

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_state_can_be_read_by_anybody() {
        assert!(clock_is_synchronized().is_ok());
    }

    #[test]
    fn the_clocks_frequency_can_be_read_by_anybody() {
        let ppm = clock_frequency().unwrap();
        assert!(ppm.abs() <= 500.0, "{ppm}");
    }

    #[test]
    fn boot_time_is_no_earlier_than_monotonic_time() {
        assert!(monotonic() <= since_boot());
    }

    #[test]
    fn a_file_is_neither_a_ptp_device_nor_an_rtc() {
        let null = File::open("/dev/null").unwrap();
        assert!(read_ptp(&null).is_err());
        assert!(write_rtc(&null, SystemTime::now()).is_err());
    }
}
