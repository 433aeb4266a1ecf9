//! Log lines as records of `/dev/kmsg` and as lines on the console (`/dev/console`).

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};

use orlop_sys::Console;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Logs to the kernel's ring under `prefix` (`debug` and above), and shows `info` and above on the
/// console as well.
///
/// # Errors
/// When `/dev/kmsg` or `/dev/console` cannot be opened for writing.
pub fn to_kernel(prefix: &'static str) -> io::Result<()> {
    let layer = Kernel { prefix, ring: orlop_sys::open_kernel_log()?, console: Console::open()? };
    let _ = tracing_subscriber::registry().with(layer).with(crate::kept::layer()).try_init();
    Ok(())
}

#[derive(Debug)]
struct Kernel {
    prefix: &'static str,
    ring: File,
    console: Console,
}

impl<S: Subscriber> Layer<S> for Kernel {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        let ours = event.metadata().target().starts_with("orlop");
        if level > Level::DEBUG || (level > Level::INFO && !ours) {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let Line { message, fields } = line;
        // One write a record: the ring takes them whole, and none that is too long.
        let mut record = format!("<{}>[{}] {message}{fields}", priority(level), self.prefix);
        record.truncate(record.floor_char_boundary(RECORD_LIMIT));
        let _ = (&self.ring).write_all(record.as_bytes());
        if level > Level::INFO {
            return;
        }
        let seconds = orlop_sys::monotonic().as_secs_f64();
        self.console.write_or_drop(
            format!("[{seconds:8.3}] {}: {message}{fields}\n", self.prefix).as_bytes(),
        );
    }
}

/// Bytes of a record the ring surely takes (`LOG_LINE_MAX` of kernel/printk, less its own prefix).
const RECORD_LIMIT: usize = 960;

/// Syslog severities of `syslog(3)`.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// An event as text: its message, then ` key=value` for each field.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else if value.contains([' ', '"', '\n']) {
            self.record_debug(field, &value);
        } else {
            self.record_debug(field, &format_args!("{value}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
