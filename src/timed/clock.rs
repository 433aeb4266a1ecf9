//! The clock that is steered: the kernel's, or one that only looks so.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use orlop_sys::LeapSecond;

use crate::machine::Report;
use crate::wire::Leap;

/// What the driver needs of a clock.
pub(crate) trait Clock: Send {
    /// Adds so many seconds at once.
    fn step(&mut self, seconds: f64) -> io::Result<()>;
    /// Runs faster by so much.
    fn set_rate(&mut self, ppm: f64) -> io::Result<()>;
    /// Whether it is right already, so that it may judge certificates.
    fn trusted(&self) -> bool;
    /// How much faster it runs.
    fn rate(&self) -> io::Result<f64>;
    /// Tells those who ask what it is worth.
    fn report(&mut self, report: &Report) -> io::Result<()>;
    /// Brings the clock that runs while the machine is off to the same time.
    fn keep(&mut self) -> io::Result<()>;
}

/// The system's clock, and with it the machine's.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The real-time clock's device.
    pub(crate) rtc: PathBuf,
}

impl Clock for Kernel {
    fn step(&mut self, seconds: f64) -> io::Result<()> {
        #[expect(clippy::cast_possible_truncation, reason = "a float-to-int cast saturates")]
        let nanos = (seconds * 1e9).round() as i64;
        orlop_sys::step_clock(nanos)
    }

    fn set_rate(&mut self, ppm: f64) -> io::Result<()> {
        orlop_sys::set_clock_frequency(ppm)
    }

    fn trusted(&self) -> bool {
        orlop_sys::clock_is_synchronized().unwrap_or(false)
    }

    fn rate(&self) -> io::Result<f64> {
        orlop_sys::clock_frequency()
    }

    fn report(&mut self, report: &Report) -> io::Result<()> {
        let time = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let leap = match report.leap {
            Leap::Insert => Some(LeapSecond::Insert),
            Leap::Delete => Some(LeapSecond::Delete),
            Leap::None | Leap::Unsynchronized => None,
        };
        orlop_sys::set_clock_state(Some((time(report.largest), time(report.expected))), leap)
    }

    /// The device takes whole seconds, and is thought to tick half a second after it is set
    /// (`CONFIG_RTC_SYSTOHC` counts so); the caller picks the moment.
    fn keep(&mut self) -> io::Result<()> {
        match File::open(&self.rtc) {
            Ok(device) => orlop_sys::write_rtc(&device, SystemTime::now()),
            // A machine without one: its hypervisor gives it the time at boot.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A clock that is left alone: `--observe`, for tests and for those who only want to know.
#[derive(Debug, Default)]
pub(crate) struct Untouched;

impl Clock for Untouched {
    fn step(&mut self, _: f64) -> io::Result<()> {
        Ok(())
    }

    fn set_rate(&mut self, _: f64) -> io::Result<()> {
        Ok(())
    }

    fn trusted(&self) -> bool {
        true
    }

    fn rate(&self) -> io::Result<f64> {
        Ok(0.0)
    }

    fn report(&mut self, _: &Report) -> io::Result<()> {
        Ok(())
    }

    fn keep(&mut self) -> io::Result<()> {
        Ok(())
    }
}
