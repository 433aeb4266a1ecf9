//! Log lines that are kept as those of a service.

use std::io::{self, Write};
use std::sync::OnceLock;

use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

type Keep = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Set once, when there is a place for them.
static KEEP: OnceLock<Keep> = OnceLock::new();

/// From now on `keep` gets each line that PID 1 logs from `info` up, whole, in the form in which
/// daemons write theirs. It is called in the midst of everything: it must not wait, nor log.
pub fn keep_lines(keep: impl Fn(&[u8]) + Send + Sync + 'static) {
    // A second call would be a defect, but not one worth dying for.
    let _ = KEEP.set(Box::new(keep));
}

/// What hands them over.
pub(crate) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    let lines = fmt::layer().with_writer(Lines).with_ansi(false).with_target(false);
    lines.with_filter(LevelFilter::INFO)
}

struct Lines;

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(keep) = KEEP.get() {
            keep(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn lines_from_info_up_are_kept_whole() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&kept);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer()), || {
            tracing::info!("before there is a place");
            keep_lines(move |line| {
                let line = String::from_utf8_lossy(line).into_owned();
                lines.lock().map(|mut lines| lines.push(line)).unwrap_or_default();
            });
            tracing::warn!(disk = "sda", "full");
            tracing::debug!("not for a service's log");
        });
        let kept = kept.lock().map(|lines| lines.clone()).unwrap_or_default();
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert!(kept[0].ends_with("Z  WARN full disk=\"sda\"\n"), "{kept:?}");
    }
}
