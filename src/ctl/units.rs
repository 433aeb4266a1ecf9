//! Sizes and times as people write them.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;

/// Bytes with an SI prefix: `82 kB`, `1.2 GB`; one decimal below ten, none above.
pub(crate) fn si(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // Each unit is rounded from the bytes themselves: rounding step by step would drift.
    let scaled = |base: u128| (u128::from(bytes) * 10 + base / 2) / base;
    let mut base = 1000;
    let mut units = ["kB", "MB", "GB", "TB", "PB"].iter();
    let (tenths, unit) = loop {
        match (scaled(base), units.next()) {
            (tenths, Some(unit)) if tenths < 9995 => break (tenths, *unit),
            (tenths, None) => break (tenths, "EB"),
            _ => base *= 1000,
        }
    };
    if tenths < 100 {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    } else {
        format!("{} {unit}", (tenths + 5) / 10)
    }
}

/// A length of time in whole seconds, rounded: `0s`, `1m5s`, `49h0m3s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let total = (duration + Duration::from_millis(500)).as_secs();
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// How long ago `then` was; nothing when the clock of the node is ahead of ours.
pub(crate) fn since(then: Timestamp, now: SystemTime) -> Duration {
    let then = SystemTime::try_from(then).unwrap_or(now);
    now.duration_since(then).unwrap_or_default()
}

/// Reads `90s`, `1h30m`, `1.5h`, `250ms`.
///
/// # Errors
/// Says what a length of time looks like.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is not a length of time; write it like 90s, 10m or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(expected)?;
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, after) = unit.split_at(end);
        let scale = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(expected()),
        };
        let number: f64 = number.parse().map_err(|_| expected())?;
        let part = Duration::try_from_secs_f64(number * scale).map_err(|_| expected())?;
        total = total.checked_add(part).ok_or_else(expected)?;
        rest = after;
    }
    if text.is_empty() { Err(expected()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_si_prefixes_and_two_digits_or_more() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1049, "1.0 kB"),
            (1050, "1.1 kB"),
            (9_949, "9.9 kB"),
            (81_920, "82 kB"),
            (999_400, "999 kB"),
            (999_999, "1.0 MB"),
            (1_234_567_890, "1.2 GB"),
            (u64::MAX, "18 EB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(si(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn times_are_rounded_to_seconds() {
        let cases =
            [(0, "0s"), (499, "0s"), (1500, "2s"), (65_000, "1m5s"), (176_403_000, "49h0m3s")];
        for (millis, text) in cases {
            assert_eq!(seconds(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn a_node_whose_clock_is_ahead_changed_just_now() {
        let later = Timestamp { seconds: 20, nanos: 0 };
        assert_eq!(since(later, SystemTime::UNIX_EPOCH), Duration::ZERO);
    }

    #[test]
    fn lengths_of_time_are_read_as_go_writes_them() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "10", "h", "5 m", "1x", "-1s", "1..2s", "99999999999999999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn reading_a_length_of_time_never_panics(text in "\\PC*|[0-9.msh]*") {
            let _ = parse_duration(&text);
        }

        #[test]
        fn what_is_written_is_read_back(secs in 0u64..10_000_000) {
            let duration = Duration::from_secs(secs);
            prop_assert_eq!(parse_duration(&seconds(duration)), Ok(duration));
        }
    }
}
