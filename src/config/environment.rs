//! What a role is told by environment variables: the ambassador's parts are, as those they stand in for
//! (spec/ambassador §7).

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// A variable whose value cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{name}={value:?} is no {what}")]
pub struct Invalid {
    /// Which.
    pub name: String,
    /// What it says.
    pub value: String,
    /// What it should say, with an example.
    pub what: &'static str,
}

/// The variables of a process, as they were when it started.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Of this process. A value that is no UTF-8 has its other bytes replaced.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
    }

    /// The first of `names` that is set, with its value; an alias that was used is told in the log.
    fn first<'a>(&self, names: &[&'a str]) -> Option<(&'a str, &str)> {
        let (at, name) = names.iter().enumerate().find(|(_, name)| self.0.contains_key(**name))?;
        if at > 0 {
            tracing::warn!("{name} is another spelling of {}, which is the one to use", names[0]);
        }
        Some((name, self.0.get(*name)?))
    }

    /// What the first of `names` says; set but empty says that it is empty. The first name is the proper one.
    #[must_use]
    pub fn text(&self, names: &[&str], default: &str) -> String {
        self.first(names).map_or(default, |(_, value)| value).to_owned()
    }

    /// What the first of `names` says, read as a `T`.
    ///
    /// # Errors
    /// It is none; also when it is empty, which is not the same as unset.
    pub fn value<T: FromStr>(
        &self,
        names: &[&str],
        what: &'static str,
        default: T,
    ) -> Result<T, Invalid> {
        self.read(names, what, default, |text| text.parse().ok())
    }

    /// A duration as Go writes them: `1h2m3.5s`, `150ms`.
    ///
    /// # Errors
    /// As [`Environment::value`].
    pub fn duration(&self, names: &[&str], default: Duration) -> Result<Duration, Invalid> {
        self.read(names, "duration such as 15s, 150ms or 1h30m", default, duration)
    }

    fn read<T>(
        &self,
        names: &[&str],
        what: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Invalid> {
        let Some((name, value)) = self.first(names) else { return Ok(default) };
        let invalid = || Invalid { name: name.to_owned(), value: value.to_owned(), what };
        parse(value).ok_or_else(invalid)
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

/// A duration that is not negative, as Go's `time.ParseDuration` reads it; `None`: it is none, or longer than Go knows.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u64 = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let mut part = u128::from(whole) * u128::from(*scale);
        let mut place = u128::from(*scale);
        for digit in fraction.bytes() {
            place /= 10;
            part += u128::from(digit - b'0') * place;
        }
        nanos = nanos.checked_add(u64::try_from(part).ok()?)?;
        rest = after;
    }
    (nanos <= i64::MAX.unsigned_abs()).then(|| Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_does() {
        let good = [
            ("0", 0),
            ("15s", 15_000_000_000),
            ("150ms", 150_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+2us", 2_000),
            ("2µs", 2_000),
            ("0.3333333333333333333h", 1_199_999_999_993),
        ];
        for (text, nanos) in good {
            let read = duration(text).expect(text).as_nanos();
            assert!(read.abs_diff(nanos) < 10, "{text}: {read}");
        }
        for text in ["", "15", "s", ".s", "1..2s", "-1s", "1 s", "1d", "99999999999h", "3x", "0x1s"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_read_is_named_with_its_variable() {
        let variables = [("A", "x"), ("OLD", "7"), ("EMPTY", "")];
        let environment: Environment = variables
            .iter()
            .map(|(name, value)| (String::from(*name), String::from(*value)))
            .collect();
        let second = Duration::from_secs(1);
        assert_eq!(environment.duration(&["NONE"], second), Ok(second));
        let error = environment.duration(&["A"], second).expect_err("no duration");
        assert_eq!(error.to_string(), "A=\"x\" is no duration such as 15s, 150ms or 1h30m");
        assert_eq!(environment.value::<u16>(&["NEW", "OLD"], "port", 1), Ok(7));
        assert!(environment.value::<u16>(&["EMPTY"], "port", 1).is_err());
        assert_eq!(environment.text(&["EMPTY"], "else"), "");
        assert_eq!(environment.text(&["NONE"], "else"), "else");
    }
}
