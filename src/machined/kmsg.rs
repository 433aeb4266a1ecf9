//! Records of `/dev/kmsg` (`Documentation/ABI/testing/dev-kmsg`) as lines for people.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;

/// The kernel gives no record larger than this (`CONSOLE_EXT_LOG_MAX`).
const RECORD_LIMIT: usize = 8192;

/// What was read.
#[derive(Debug)]
pub(crate) enum Line {
    /// A record for people, as [`line`] makes it.
    Record(String),
    /// Something of another form, as it was.
    Unreadable(String),
}

/// Reads the kernel's ring, record by record.
#[derive(Debug)]
pub(crate) struct Reader {
    device: AsyncFd<File>,
    boot: SystemTime,
    follow: bool,
}

impl Reader {
    /// Starts at the oldest record, or with `tail` behind the newest; with `follow` it never ends.
    pub(crate) fn open(follow: bool, tail: bool) -> io::Result<Self> {
        let mut file =
            File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg")?;
        if tail {
            file.seek(SeekFrom::End(0))?;
        }
        let boot = SystemTime::now() - orlop_sys::monotonic();
        Ok(Self { device: orlop_sys::watch_readable(file)?, boot, follow })
    }

    /// The next record, `None` at the end. What the kernel has overwritten meanwhile is passed over.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Line>> {
        let mut buffer = [0; RECORD_LIMIT];
        loop {
            let read = self.device.get_ref().read(&mut buffer);
            match read {
                Ok(length) => {
                    let record = String::from_utf8_lossy(&buffer[..length]);
                    let read = line(&record, self.boot).map(Line::Record);
                    return Ok(Some(read.unwrap_or_else(|| Line::Unreadable(record.into_owned()))));
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.follow {
                        return Ok(None);
                    }
                    self.device.readable().await?.clear_ready();
                }
                Err(error) => return Err(error),
            }
        }
    }
}

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "security", "console", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];
const PRIORITIES: [&str; 8] =
    ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

/// A record as `<facility>: <priority>: [<time>]: <text>`, the text with its final newline and its
/// dictionary lines; `None` when it is no record.
///
/// `boot` is when the kernel's clock started.
#[must_use]
pub(crate) fn line(record: &str, boot: SystemTime) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let mut fields = head.split(',');
    let syslog: usize = fields.next()?.parse().ok()?;
    let _sequence: u64 = fields.next()?.parse().ok()?;
    let micros: u64 = fields.next()?.parse().ok()?;
    let facility = FACILITIES.get(syslog >> 3)?;
    let priority = PRIORITIES[syslog & 7];
    let time = rfc3339(boot.checked_add(Duration::from_micros(micros))?)?;
    Some(format!("{facility}: {priority:>7}: [{time}]: {text}"))
}

/// RFC 3339 in UTC; fractions of a second without trailing zeros.
fn rfc3339(time: SystemTime) -> Option<String> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let stamp = prost_types::Timestamp { seconds: i64::try_from(since.as_secs()).ok()?, nanos: 0 };
    let mut text = stamp.to_string();
    text.pop();
    if since.subsec_nanos() > 0 {
        let _ = write!(text, ".{}", format!("{:09}", since.subsec_nanos()).trim_end_matches('0'));
    }
    text.push('Z');
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_becomes_a_line_with_its_dictionary() {
        let boot = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let text = line("6,339,5140900,-;NET: ready\n SUBSYSTEM=net\n", boot);
        assert_eq!(
            text.as_deref(),
            Some("kern:    info: [2001-09-09T01:46:45.1409Z]: NET: ready\n SUBSYSTEM=net\n")
        );
        let text = line("30,1,0,-;x\n", boot);
        assert_eq!(text.as_deref(), Some("daemon:    info: [2001-09-09T01:46:40Z]: x\n"));
    }

    #[test]
    fn what_is_no_record_is_nothing() {
        for record in ["", ";", "x,1,2;a", "6,1;a", "9999,1,2,-;a", "6,1,99999999999999999999;a"] {
            assert_eq!(line(record, SystemTime::UNIX_EPOCH), None, "{record:?}");
        }
    }
}
