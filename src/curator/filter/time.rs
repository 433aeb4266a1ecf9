//! Durations and times of a filter, from and to text.

use std::sync::Arc;

use time::{Date, Month, OffsetDateTime, Time, UtcOffset};

/// Of a duration: hours, minutes, seconds with fraction, as `1h30m`, `-1.5s`, `100ms`; Go's `time.ParseDuration`.
pub(super) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, after) = rest.split_at(digits);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => {
                let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
                after.split_at(digits)
            }
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: i128 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        if !whole.is_empty() {
            nanos = nanos.checked_add(whole.parse::<i128>().ok()?.checked_mul(unit)?)?;
        }
        // What is beyond fifteen digits is less than a nanosecond of every unit.
        let fraction = fraction.get(..15).unwrap_or(fraction);
        if !fraction.is_empty() {
            let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
            nanos = nanos.checked_add(fraction.parse::<i128>().ok()? * unit / scale)?;
        }
        rest = after;
    }
    i64::try_from(if negative { -nanos } else { nanos }).ok()
}

/// Seconds, with as much of a fraction as there is: `1.5s`.
pub(super) fn format_duration(nanos: i64) -> Arc<str> {
    let sign = if nanos < 0 { "-" } else { "" };
    let (seconds, fraction) =
        (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    format!("{sign}{seconds}{}s", decimals(fraction)).into()
}

fn decimals(nanos: u64) -> String {
    if nanos == 0 {
        return String::new();
    }
    format!(".{}", format!("{nanos:09}").trim_end_matches('0'))
}

/// Years that a time of protobuf may be in.
pub(super) fn is_in_range(time: OffsetDateTime) -> bool {
    time.checked_to_offset(UtcOffset::UTC).is_some_and(|time| (1..=9999).contains(&time.year()))
}

/// RFC 3339 §5.6.
pub(super) fn parse_timestamp(text: &str) -> Option<OffsetDateTime> {
    let number = |from: usize, length: usize| -> Option<u32> {
        let digits = text.get(from..from + length)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let is = |at: usize, any: &[u8]| text.as_bytes().get(at).is_some_and(|it| any.contains(it));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let month = Month::try_from(u8::try_from(number(5, 2)?).ok()?).ok()?;
    let day = u8::try_from(number(8, 2)?).ok()?;
    let date = Date::from_calendar_date(number(0, 4)?.cast_signed(), month, day).ok()?;
    let rest = text.get(19..)?;
    let (nanos, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (digits, zone) = rest.split_at(digits);
            if digits.is_empty() {
                return None;
            }
            let digits = digits.get(..9).unwrap_or(digits);
            (format!("{digits:0<9}").parse().ok()?, zone)
        }
        None => (0, rest),
    };
    let part = |from| number(from, 2).and_then(|part| u8::try_from(part).ok());
    let time = Time::from_hms_nano(part(11)?, part(14)?, part(17)?, nanos).ok()?;
    let offset = if zone == "Z" || zone == "z" { UtcOffset::UTC } else { parse_offset(zone)? };
    Some(date.with_time(time).assume_offset(offset)).filter(|time| is_in_range(*time))
}

/// `+02:00`; `02:00` is taken, too, as by the seed system's CEL.
fn parse_offset(text: &str) -> Option<UtcOffset> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let part = |text: &str| {
        let sound = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        sound.then(|| text.parse::<i8>().ok())?
    };
    let (hours, minutes) = (part(hours)?, part(minutes)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    UtcOffset::from_hms(sign * hours, sign * minutes, 0).ok()
}

/// What a zone of an accessor is: UTC or an offset. There is no table of zones in this program.
pub(super) fn zone(text: &str) -> Option<UtcOffset> {
    if text == "UTC" { Some(UtcOffset::UTC) } else { parse_offset(text) }
}

/// RFC 3339 in UTC, with as much of a fraction as there is.
pub(super) fn format_timestamp(time: OffsetDateTime) -> Arc<str> {
    let time = time.to_offset(UtcOffset::UTC);
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    let month = u8::from(month);
    let fraction = decimals(time.nanosecond().into());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("6s", 6_000_000_000),
            ("+1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("-100ms", -100_000_000),
            ("1us1\u{b5}s1\u{3bc}s", 3_000),
            ("1.999ns", 1),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("0.0000000000000000000000000000001h", 0),
        ] {
            assert_eq!(parse_duration(text), Some(nanos), "{text}");
        }
        for text in
            ["", "-", "x", "1", "s", ".s", "1x", "1 s", "6s ", "--1s", "9223372036854775808ns"]
        {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert_eq!(parse_duration(&format!("{}h", "9".repeat(400))), None);
        assert_eq!(&*format_duration(-1_500_000_000), "-1.5s");
        assert_eq!(&*format_duration(1_000_000_000_000_000), "1000000s");
        assert_eq!(&*format_duration(i64::MIN), "-9223372036.854775808s");
    }

    #[test]
    fn times() {
        for text in [
            "2009-02-13T23:31:30Z",
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999999Z",
            "2024-02-29T00:00:00.05Z",
        ] {
            assert_eq!(parse_timestamp(text).map(format_timestamp).as_deref(), Some(text));
        }
        let in_zone = parse_timestamp("2009-02-14t01:31:30.5000000009+02:00");
        assert_eq!(in_zone.map(format_timestamp).as_deref(), Some("2009-02-13T23:31:30.5Z"));
        for text in [
            "",
            "2009-02-13",
            "2009-02-13 23:31:30Z",
            "2009-02-13T23:31:30",
            "2009-02-13T23:31:30.Z",
            "2023-02-29T00:00:00Z",
            "2009-02-13T24:00:00Z",
            "2009-02-13T23:31:30+2:00",
            "2009-02-13T23:31:30+24:00",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "0000-01-01T00:00:00Z",
            "2009-02-13T23:31:30Z ",
            "2009-02-1\u{b5}T23:31:30Z",
        ] {
            assert_eq!(parse_timestamp(text), None, "{text}");
        }
    }
}
