//! Amounts as Kubernetes writes them: `100m`, `1.5Gi`, `12e6`. Exact to a billionth; what is finer is rounded up, away
//! from zero, and what is beyond 2^63 - 1 is that (k8s.io/apimachinery, `api/resource`).

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

/// An amount, and how it is written. Equal and ordered by the amount alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    /// At most [`LARGEST`] on either side.
    nanos: i128,
    form: Form,
}

/// How an amount is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Form {
    /// `100m`, `5`, `2k`.
    #[default]
    Decimal,
    /// `1Ki`.
    Binary,
    /// `1e3`.
    Exponent,
}

/// Why a text is no amount, in the words of the reference.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// Something else.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// `1Xi`.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// `1.2.3`.
    #[error("unable to parse numeric part of quantity")]
    Number,
}

/// A unit.
const ONE: i128 = 1_000_000_000;
/// What larger amounts are cut to: 2^63 - 1 units.
const LARGEST: i128 = i64::MAX as i128 * ONE;
/// By the exponent of ten.
const DECIMAL: &[(&str, i32)] = &[
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
/// By the exponent of 1024.
const BINARY: &[&str] = &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    /// None of it.
    pub const ZERO: Self = Self { nanos: 0, form: Form::Decimal };

    /// So many.
    #[must_use]
    pub const fn units(units: i64) -> Self {
        Self { nanos: units as i128 * ONE, form: Form::Decimal }
    }

    /// So many thousandths.
    #[must_use]
    pub const fn millis(millis: i64) -> Self {
        Self { nanos: millis as i128 * (ONE / 1000), form: Form::Decimal }
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number_ends =
            rest.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(number_ends);
        if number.is_empty() {
            return Err(Error::Format);
        }
        let (form, two, ten) = read_suffix(suffix)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(Error::Number);
        }
        let nanos = scaled(whole, fraction, two, ten);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, form })
    }

    /// The one a field holds: a text or a number.
    ///
    /// # Errors
    /// It is none.
    pub fn of(value: &Value) -> Result<Self, Error> {
        match value {
            Value::String(text) => Self::parse(text.trim()),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => Err(Error::Format),
        }
    }

    /// In thousandths, rounded up.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        saturated(rounded_up(self.nanos, ONE / 1000))
    }

    /// In units, rounded up.
    #[must_use]
    pub fn as_units(self) -> i64 {
        saturated(rounded_up(self.nanos, ONE))
    }

    /// Is it a whole number?
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.nanos % ONE == 0
    }

    /// Is there none of it?
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Is it below zero?
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Both together; written as the first, unless that is zero.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let form = if self.is_zero() { other.form } else { self.form };
        Self { nanos: (self.nanos + other.nanos).clamp(-LARGEST, LARGEST), form }
    }

    /// What is left of it; written as the first, unless that is zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        let form = if self.is_zero() { other.form } else { self.form };
        Self { nanos: (self.nanos - other.nanos).clamp(-LARGEST, LARGEST), form }
    }

    /// How many of the other it is; none where the other is zero.
    #[must_use]
    pub fn ratio(self, other: Self) -> Option<f64> {
        // Precise enough for a ratio between limits and requests.
        (!other.is_zero()).then(|| self.nanos as f64 / other.nanos as f64)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The canonical form: no fraction, the largest suffix that needs none.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let binary =
            self.form == Form::Binary && self.nanos.abs() >= 1024 * ONE && self.nanos % ONE == 0;
        if binary {
            let (mut number, mut exponent) = (self.nanos / ONE, 0);
            while number % 1024 == 0 && exponent + 1 < BINARY.len() {
                number /= 1024;
                exponent += 1;
            }
            return write!(f, "{number}{}", BINARY[exponent]);
        }
        let (mut number, mut exponent) = (self.nanos, -9);
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        match self.form {
            Form::Exponent if exponent == 0 => write!(f, "{number}"),
            Form::Exponent => write!(f, "{number}e{exponent}"),
            _ => {
                let suffix = DECIMAL.iter().find(|(_, known)| *known == exponent);
                write!(f, "{number}{}", suffix.map_or("", |(suffix, _)| suffix))
            }
        }
    }
}

/// How it is written, and the exponents of two and of ten it means.
fn read_suffix(suffix: &str) -> Result<(Form, u32, i32), Error> {
    if let Some((_, ten)) = DECIMAL.iter().find(|(known, _)| *known == suffix) {
        return Ok((Form::Decimal, 0, *ten));
    }
    if let Some(exponent) = (1_u32..).zip(&BINARY[1..]).find(|(_, known)| **known == suffix) {
        return Ok((Form::Binary, exponent.0 * 10, 0));
    }
    let Some(exponent) = suffix.strip_prefix(['e', 'E']) else {
        let letters = suffix.trim_end_matches(|char: char| char.is_ascii_digit());
        let letters = letters.strip_suffix(['+', '-']).unwrap_or(letters);
        let known = letters.chars().all(|char| "eEinumkKMGTP".contains(char));
        return Err(if known { Error::Suffix } else { Error::Format });
    };
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::Suffix);
    }
    // Beyond this everything is cut or rounded the same way.
    let size = digits.parse::<i32>().unwrap_or(10_000).min(10_000);
    Ok((Form::Exponent, 0, if exponent.starts_with('-') { -size } else { size }))
}

/// Billionths of a number times its powers, rounded up.
fn scaled(whole: &str, fraction: &str, two: u32, ten: i32) -> i128 {
    let whole = whole.trim_start_matches('0');
    let digits = || whole.bytes().chain(fraction.bytes()).map(|byte| i128::from(byte - b'0'));
    // The number of digits kept: those before the point at a billionth.
    let kept = i64::try_from(whole.len()).unwrap_or(i64::MAX / 2) + i64::from(ten) + 9;
    if two > 0 {
        return binary(whole, fraction, two);
    }
    let mut nanos = 0_i128;
    let mut rest = false;
    let mut seen = 0;
    for digit in digits() {
        if seen < kept {
            nanos = (nanos * 10 + digit).min(LARGEST);
            seen += 1;
        } else {
            rest |= digit != 0;
        }
    }
    while seen < kept && nanos > 0 && nanos < LARGEST {
        nanos = (nanos * 10).min(LARGEST);
        seen += 1;
    }
    (nanos + i128::from(rest)).min(LARGEST)
}

/// The same for a power of two: whole units and the fraction apart.
fn binary(whole: &str, fraction: &str, two: u32) -> i128 {
    let power = 1_i128 << two;
    let mut units = 0_i128;
    for digit in whole.bytes() {
        units = (units * 10 + i128::from(digit - b'0')).min(LARGEST / ONE);
    }
    let mut nanos = (units * power).min(LARGEST / ONE) * ONE;
    // The first 18 digits of the fraction as they are; of finer ones only that there are any.
    let (fine, finer) = fraction.split_at(fraction.len().min(18));
    let part = format!("{fine:0<18}").parse::<i128>().unwrap_or_default() * power;
    let one = ONE * ONE;
    nanos += part / one * ONE + rounded_up(part % one, ONE);
    nanos += i128::from(part % ONE == 0 && finer.bytes().any(|digit| digit != b'0'));
    nanos.min(LARGEST)
}

/// Divided, away from zero.
fn rounded_up(nanos: i128, unit: i128) -> i128 {
    let (whole, rest) = (nanos / unit, nanos % unit);
    whole + rest.signum()
}

fn saturated(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).map_or_else(|error| error.to_string(), |amount| amount.to_string())
    }

    #[test]
    fn amounts_are_written_as_the_reference_does() {
        for (text, written) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("+1", "1"),
            ("-1", "-1"),
            ("100m", "100m"),
            ("0.1", "100m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1500m", "1500m"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1000k", "1M"),
            ("1024Ki", "1Mi"),
            ("1024", "1024"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("0.5Ki", "512"),
            ("1.2Ki", "1228800m"),
            ("1Ei", "1Ei"),
            ("1E", "1E"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e-1", "1200e-3"),
            ("1e0", "1"),
            ("1.0000000001", "1000000001n"),
            ("1.1n", "2n"),
            ("-1.1n", "-2n"),
            ("0.1n", "1n"),
            ("1e-30", "1e-9"),
            ("10000000000000000000000", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("1e1000000000000", "9223372036854775807"),
            ("-9e99", "-9223372036854775807"),
            ("4Gi", "4Gi"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("123Mi", "123Mi"),
        ] {
            assert_eq!(canonical(text), written, "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused_in_the_words_of_the_reference() {
        for text in ["", "-", "a", "m", "Ki", "1 ", " 1", "1x", "--1", "1Z", "\u{661}"] {
            assert_eq!(canonical(text), Error::Format.to_string(), "{text:?}");
        }
        for text in ["1e", "1mi", "1KI", "1ei", "1k3", "1e3.5", "1EE"] {
            let said = canonical(text);
            assert!(
                said == Error::Suffix.to_string() || said == Error::Format.to_string(),
                "{text}"
            );
        }
        for text in [".", "1.2.3", "1..2"] {
            assert_eq!(canonical(text), Error::Number.to_string(), "{text:?}");
        }
        assert_eq!(Quantity::of(&json!(1.5)), Ok(Quantity::millis(1500)));
        assert_eq!(Quantity::of(&json!([])), Err(Error::Format));
    }

    #[test]
    fn amounts_are_counted_with() {
        let parse = |text| Quantity::parse(text).expect("a quantity");
        assert_eq!(parse("1Gi").plus(parse("1G")).to_string(), "2073741824");
        assert_eq!(parse("0").plus(parse("1Gi")).to_string(), "1Gi");
        assert_eq!(parse("1").minus(parse("100m")).to_string(), "900m");
        assert_eq!(parse("9E").plus(parse("9E")), parse("9223372036854775807"));
        assert!(parse("1Ki") > parse("1k") && parse("1024") == parse("1Ki"));
        assert_eq!((parse("1n").as_millis(), parse("1100m").as_units()), (1, 2));
        assert_eq!((parse("-1100m").as_units(), parse("100m").is_whole()), (-2, false));
        assert_eq!(parse("2").ratio(parse("500m")), Some(4.0));
        assert_eq!(parse("2").ratio(Quantity::ZERO), None);
        assert!(parse("-1").is_negative() && Quantity::units(0).is_zero());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(
            whole in 0_u64..1 << 60, fraction in "[0-9]{0,12}", sign in "[-+]?",
            suffix in "(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e-?[0-9]{1,3})?",
        ) {
            let amount = Quantity::parse(&format!("{sign}{whole}.{fraction}{suffix}")).unwrap_or_default();
            let written = amount.to_string();
            let again = Quantity::parse(&written).expect("what is written can be read");
            prop_assert_eq!(again, amount);
            prop_assert_eq!(again.to_string(), written);
        }

        #[test]
        fn what_is_added_can_be_taken_away(a in -1_000_000_i64.., b in -1_000_000_i64..1 << 40) {
            let (a, b) = (Quantity::millis(a / 2), Quantity::millis(b));
            prop_assert_eq!(a.plus(b).minus(b), a);
            prop_assert_eq!(a.plus(b) > a, !b.is_negative() && !b.is_zero());
        }
    }
}
