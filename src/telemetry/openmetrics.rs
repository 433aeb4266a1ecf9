//! Figures as OpenMetrics text, version 1.0.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), or as the
//! older text that Prometheus reads, version 0.0.4.
//!
//! Who exposes figures has them elsewhere already (a status, a counter): all it needs is a text with
//! what they are now. So there is no registry here, only a writer that keeps the format's rules.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

/// What a server says it sends (`Content-Type`).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The same of a text begun with [`Exposition::plain`].
pub const PLAIN_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the values of a family mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the start; its samples are named `…_total`.
    Counter,
    /// The same, by a name from before there was a rule for names; in OpenMetrics it has the ending all the same.
    OldCounter,
    /// Goes up and down.
    Gauge,
    /// How many were how large: samples are given with [`Family::buckets`].
    Histogram,
    /// Always 1: the labels are what it tells. Its samples are named `…_info`.
    Info,
}

impl Kind {
    fn word(self, plain: bool) -> &'static str {
        match self {
            Self::Counter | Self::OldCounter => "counter",
            Self::Histogram => "histogram",
            Self::Info if !plain => "info",
            Self::Gauge | Self::Info => "gauge",
        }
    }

    fn suffix(self, plain: bool) -> &'static str {
        match self {
            Self::OldCounter if plain => "",
            Self::Counter | Self::OldCounter => "_total",
            Self::Gauge | Self::Histogram => "",
            Self::Info => "_info",
        }
    }
}

/// A value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Exact, as far as the reader's numbers go.
    Whole(u64),
    /// Anything measured.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

/// In seconds.
impl From<Duration> for Value {
    fn from(value: Duration) -> Self {
        Self::Real(value.as_secs_f64())
    }
}

/// In seconds since 1970.
impl From<SystemTime> for Value {
    fn from(value: SystemTime) -> Self {
        value.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().into()
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => write!(f, "{value}"),
            Self::Real(value) => write!(f, "{value}"),
        }
    }
}

/// A text under way.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    plain: bool,
}

impl Exposition {
    /// One in the older text.
    #[must_use]
    pub fn plain() -> Self {
        Self { plain: true, ..Self::default() }
    }

    /// Begins a family. `name` is without the kind's suffix; when it ends in a unit of the format's
    /// (`_seconds`, `_bytes`), that is declared.
    pub fn family(&mut self, kind: Kind, name: &'static str, help: &str) -> Family<'_> {
        debug_assert!(is_name(name) && !name.ends_with("_total") && !name.ends_with("_info"));
        let plain = self.plain;
        // The older text knows no families: names of samples are all it has.
        let ending = if plain { kind.suffix(plain) } else { "" };
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# TYPE {name}{ending} {}", kind.word(plain));
        if let Some(unit) = UNITS.iter().find(|unit| !plain && name.ends_with(**unit)) {
            let _ = writeln!(self.text, "# UNIT {name} {}", &unit[1..]);
        }
        let _ = writeln!(self.text, "# HELP {name}{ending} {}", Escaped(help));
        Family { text: &mut self.text, kind, name, plain }
    }

    /// The text, complete.
    #[must_use]
    pub fn finish(mut self) -> String {
        if !self.plain {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// A family that takes its samples.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    kind: Kind,
    name: &'static str,
    plain: bool,
}

impl Family<'_> {
    /// Adds a sample. No two of a family have the same labels.
    pub fn sample(
        &mut self,
        labels: &[(&'static str, &str)],
        value: impl Into<Value>,
    ) -> &mut Self {
        debug_assert!(self.kind != Kind::Histogram);
        self.line(self.kind.suffix(self.plain), labels, value.into())
    }

    /// Adds a histogram: how many were at most each of `bounds`, which rise, and one more for the rest; and
    /// what all of them are together.
    pub fn buckets(
        &mut self,
        labels: &[(&'static str, &str)],
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) -> &mut Self {
        debug_assert!(self.kind == Kind::Histogram && counts.len() == bounds.len() + 1);
        let mut all = 0_u64;
        for (i, count) in counts.iter().enumerate() {
            all = all.saturating_add(*count);
            let bound = bounds.get(i).map_or("+Inf".to_owned(), |bound| {
                // OpenMetrics wants to see that it is no whole number.
                let dot = if !self.plain && bound.fract() == 0.0 { ".0" } else { "" };
                format!("{bound}{dot}")
            });
            let labels: Vec<_> = labels.iter().copied().chain([("le", &*bound)]).collect();
            self.line("_bucket", &labels, Value::Whole(all));
        }
        self.line("_sum", labels, Value::Real(sum));
        self.line("_count", labels, Value::Whole(all))
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: Value) -> &mut Self {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (i, (name, value)) in labels.iter().enumerate() {
            debug_assert!(is_name(name));
            let before = if i == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{name}=\"{}\"", Escaped(value));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
        self
    }
}

const UNITS: [&str; 2] = ["_seconds", "_bytes"];

/// Names of families and labels; no colons, which are for those who record rules.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A text as it stands between quotes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_declares_itself_and_its_samples_keep_the_rules() {
        let mut text = Exposition::default();
        text.family(Kind::Info, "orlop_build", "This build.").sample(&[("version", "v1")], 1);
        text.family(Kind::Counter, "orlop_restarts", "Restarts.")
            .sample(&[("service", "apid"), ("why", "a \"b\"\\\nc")], u64::MAX)
            .sample(&[("service", "timed"), ("why", "")], 0);
        text.family(Kind::Gauge, "orlop_start_seconds", "Start.")
            .sample(&[], Duration::from_millis(1250))
            .sample(&[("at", "now")], SystemTime::UNIX_EPOCH + Duration::from_secs(7));
        text.family(Kind::Gauge, "orlop_up", "Up.").sample(&[], true);
        let expected = "\
# TYPE orlop_build info
# HELP orlop_build This build.
orlop_build_info{version=\"v1\"} 1
# TYPE orlop_restarts counter
# HELP orlop_restarts Restarts.
orlop_restarts_total{service=\"apid\",why=\"a \\\"b\\\"\\\\\\nc\"} 18446744073709551615
orlop_restarts_total{service=\"timed\",why=\"\"} 0
# TYPE orlop_start_seconds gauge
# UNIT orlop_start_seconds seconds
# HELP orlop_start_seconds Start.
orlop_start_seconds 1.25
orlop_start_seconds{at=\"now\"} 7
# TYPE orlop_up gauge
# HELP orlop_up Up.
orlop_up 1
# EOF
";
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn histograms_add_up_in_both_texts() {
        let both = [Exposition::default(), Exposition::plain()].map(|mut text| {
            text.family(Kind::Histogram, "orlop_took_seconds", "Took.").buckets(
                &[("verb", "GET")],
                &[0.5, 1.0],
                &[2, 0, 1],
                4.25,
            );
            text.family(Kind::OldCounter, "attempts", "Attempts.").sample(&[], 3);
            text.family(Kind::Counter, "requests", "Requests.").sample(&[], 4);
            text.family(Kind::Info, "build", "Build.").sample(&[], 1);
            text.finish()
        });
        let open = "\
# TYPE orlop_took_seconds histogram
# UNIT orlop_took_seconds seconds
# HELP orlop_took_seconds Took.
orlop_took_seconds_bucket{verb=\"GET\",le=\"0.5\"} 2
orlop_took_seconds_bucket{verb=\"GET\",le=\"1.0\"} 2
orlop_took_seconds_bucket{verb=\"GET\",le=\"+Inf\"} 3
orlop_took_seconds_sum{verb=\"GET\"} 4.25
orlop_took_seconds_count{verb=\"GET\"} 3
# TYPE attempts counter
# HELP attempts Attempts.
attempts_total 3
# TYPE requests counter
# HELP requests Requests.
requests_total 4
# TYPE build info
# HELP build Build.
build_info 1
# EOF
";
        let plain = "\
# TYPE orlop_took_seconds histogram
# HELP orlop_took_seconds Took.
orlop_took_seconds_bucket{verb=\"GET\",le=\"0.5\"} 2
orlop_took_seconds_bucket{verb=\"GET\",le=\"1\"} 2
orlop_took_seconds_bucket{verb=\"GET\",le=\"+Inf\"} 3
orlop_took_seconds_sum{verb=\"GET\"} 4.25
orlop_took_seconds_count{verb=\"GET\"} 3
# TYPE attempts counter
# HELP attempts Attempts.
attempts 3
# TYPE requests_total counter
# HELP requests_total Requests.
requests_total 4
# TYPE build_info gauge
# HELP build_info Build.
build_info 1
";
        assert_eq!(both, [open, plain]);
    }
}
