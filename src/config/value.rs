//! How single values are written in configuration files: PEM in base64, durations, sizes, modes,
//! and whatever parses from text. Each is a module for `#[serde(with = …)]`, or a type.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use orlop_pki::Secret;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

/// A certificate and, on nodes that may have it, its key; both are PEM here and base64 of it in the
/// file. The spelling is checked, the content is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CertificateAndKey {
    /// PEM, possibly of several certificates; empty when absent.
    #[serde(with = "pem", skip_serializing_if = "String::is_empty")]
    pub crt: String,
    /// PEM; `None` on workers.
    #[serde(with = "secret_pem", skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
}

impl From<&orlop_pki::Pair> for CertificateAndKey {
    fn from(pair: &orlop_pki::Pair) -> Self {
        Self { crt: pair.crt.clone(), key: Some(pair.key.clone()) }
    }
}

fn decode_pem<E: serde::de::Error>(text: &str) -> Result<String, E> {
    let text: String = text.split_ascii_whitespace().collect();
    let pem = STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    pem.filter(|pem| pem.is_empty() || pem.contains("-----BEGIN "))
        .ok_or_else(|| E::custom("must be base64 of PEM text"))
}

/// PEM text, base64 in the file.
pub(crate) mod pem {
    use super::*;

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        decode_pem(&String::deserialize(from)?)
    }

    pub(crate) fn serialize<S: Serializer>(pem: &str, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(pem))
    }
}

/// PEM text nobody may see, base64 in the file; empty is `None`.
pub(crate) mod secret_pem {
    use super::*;

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Secret>, D::Error> {
        let pem = decode_pem(Secret::deserialize(from)?.expose())?;
        Ok((!pem.is_empty()).then(|| Secret::from(pem)))
    }

    pub(crate) fn serialize<S: Serializer>(pem: &Option<Secret>, to: S) -> Result<S::Ok, S::Error> {
        serialize_one(&pem.clone().unwrap_or_default(), to)
    }

    pub(crate) fn serialize_one<S: Serializer>(pem: &Secret, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(pem.expose()))
    }
}

/// What a value is written as, with an error that says what to write instead.
pub(crate) trait Spelled: Sized + fmt::Display {
    /// Reads it.
    fn spelled(text: &str) -> Result<Self, String>;
}

impl Spelled for IpAddr {
    fn spelled(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("{text:?} is no IP address such as 10.0.0.5 or fd00::5"))
    }
}

impl Spelled for IpNet {
    fn spelled(text: &str) -> Result<Self, String> {
        let Some((ip, prefix)) = text.split_once('/') else {
            return Err(match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => format!("{text:?} has no prefix length; write {text}/24"),
                Ok(IpAddr::V6(_)) => format!("{text:?} has no prefix length; write {text}/64"),
                Err(_) => {
                    format!("{text:?} is no address with a prefix length such as 10.0.0.5/24")
                }
            });
        };
        let ip = IpAddr::spelled(ip)?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse().ok().filter(|_| prefix.bytes().all(|b| b.is_ascii_digit()));
        prefix
            .and_then(|prefix| IpNet::new(ip, prefix).ok())
            .ok_or_else(|| format!("{text:?}: the prefix length must be in 0..={longest}"))
    }
}

impl Spelled for Url {
    fn spelled(text: &str) -> Result<Self, String> {
        // Not the text: a URL may hold a password.
        text.parse().map_err(|error| format!("no URL such as https://host:port/path: {error}"))
    }
}

/// A [`Spelled`] value; empty text is `None`.
pub(crate) mod text {
    use super::*;

    pub(crate) fn deserialize<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: Spelled,
    {
        let text = String::deserialize(from)?;
        if text.is_empty() { Ok(None) } else { parse(&text).map(Some) }
    }

    pub(crate) fn serialize<S, T>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
        T: Spelled,
    {
        match value {
            Some(value) => to.collect_str(value),
            None => to.serialize_str(""),
        }
    }

    pub(crate) fn parse<T: Spelled, E: serde::de::Error>(text: &str) -> Result<T, E> {
        T::spelled(text).map_err(E::custom)
    }
}

/// The URL of a host: read as any text, written without the `/` that a URL's path has.
pub(crate) mod host_url {
    use serde::Serializer;
    use url::Url;

    pub(crate) use super::text::deserialize;

    pub(crate) fn serialize<S: Serializer>(url: &Option<Url>, to: S) -> Result<S::Ok, S::Error> {
        let url = url.as_ref().map(Url::as_str).unwrap_or_default();
        to.serialize_str(url.strip_suffix('/').unwrap_or(url))
    }
}

/// A list of [`Spelled`] values.
pub(crate) mod texts {
    use std::marker::PhantomData;

    use super::{Deserialize, Deserializer, Serializer, Spelled, Visitor, fmt, text};

    /// Reads one element, so that an error names the element and not the list.
    struct Element<T>(T);

    impl<'de, T: Spelled> Deserialize<'de> for Element<T> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            text::parse(&String::deserialize(from)?).map(Self)
        }
    }

    pub(crate) fn deserialize<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: Spelled,
    {
        struct List<T>(PhantomData<T>);
        impl<'de, T: Spelled> Visitor<'de> for List<T> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<Vec<T>, A::Error> {
                let mut values = Vec::new();
                while let Some(Element(value)) = list.next_element()? {
                    values.push(value);
                }
                Ok(values)
            }
        }
        from.deserialize_seq(List(PhantomData))
    }

    pub(crate) fn serialize<S: Serializer, T: Spelled>(
        list: &[T],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(ToString::to_string))
    }
}

/// A map of texts, whose values may be written as whole numbers and booleans; one without a value is
/// empty.
pub(crate) mod text_map {
    use super::{BTreeMap, Deserialize, Deserializer, Serialize, Serializer, Visitor, fmt};

    struct Text(String);

    impl<'de> Deserialize<'de> for Text {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_any(Scalar).map(Self)
        }
    }

    struct Scalar;

    impl Visitor<'_> for Scalar {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text")
        }
        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_unit<E>(self) -> Result<String, E> {
            Ok(String::new())
        }
        fn visit_bool<E>(self, value: bool) -> Result<String, E> {
            Ok(value.to_string())
        }
        fn visit_u64<E>(self, value: u64) -> Result<String, E> {
            Ok(value.to_string())
        }
        fn visit_i64<E>(self, value: i64) -> Result<String, E> {
            Ok(value.to_string())
        }
        /// How it was written is lost.
        fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<String, E> {
            Err(E::custom("put it in quotes: 1.10 would become 1.1"))
        }
    }

    /// `T` is a text, or a [`Secret`] one.
    pub(crate) fn deserialize<'de, D, T>(from: D) -> Result<BTreeMap<String, T>, D::Error>
    where
        D: Deserializer<'de>,
        T: From<String>,
    {
        let map = BTreeMap::<String, Text>::deserialize(from)?;
        Ok(map.into_iter().map(|(key, Text(value))| (key, value.into())).collect())
    }

    pub(crate) fn serialize<S: Serializer, T: Serialize>(
        map: &BTreeMap<String, T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        map.serialize(to)
    }
}

/// An MTU in bytes: 68..=65535 (RFC 791 §3.2); 0 and absence leave the link's own.
pub(crate) mod mtu {
    use super::*;

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
        match i64::deserialize(from)? {
            0 => Ok(None),
            mtu @ 68..=65535 => Ok(u32::try_from(mtu).ok()),
            mtu => Err(D::Error::custom(format!("{mtu} is out of range 68..=65535"))),
        }
    }
}

/// `8760h`, `1h30m`, `30s`, `100ms`: whole numbers with the units of Go's durations.
pub(crate) mod duration {
    use super::*;

    const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1000)];

    pub(crate) fn parse(text: &str) -> Option<Duration> {
        let mut total_ms = 0u64;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let count: u64 = rest[..digits].parse().ok()?;
            let (unit, ms) = UNITS.iter().find(|(unit, _)| rest[digits..].starts_with(unit))?;
            total_ms = total_ms.checked_add(count.checked_mul(*ms)?)?;
            rest = &rest[digits + unit.len()..];
        }
        (!text.is_empty()).then(|| Duration::from_millis(total_ms))
    }

    pub(crate) fn deserialize<'de, D>(from: D) -> Result<Option<Duration>, D::Error>
    where
        D: Deserializer<'de>,
    {
        let text = String::deserialize(from)?;
        let invalid = || D::Error::custom(format!("{text:?} is no duration such as 8760h or 30s"));
        parse(&text).map(Some).ok_or_else(invalid)
    }

    pub(crate) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let ms = duration.unwrap_or_default().as_millis();
        match (ms % 3_600_000, ms % 1000) {
            (0, _) => to.collect_str(&format_args!("{}h", ms / 3_600_000)),
            (_, 0) => to.collect_str(&format_args!("{}s", ms / 1000)),
            _ => to.collect_str(&format_args!("{ms}ms")),
        }
    }
}

/// A size in bytes, written `100GB`, `10GiB` or as plain bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit = text[digits..].trim().to_ascii_lowercase();
        let unit = unit.strip_suffix('b').unwrap_or(&unit);
        let (base, prefix) = match unit.strip_suffix('i') {
            Some(prefix) => (1024u64, prefix),
            None => (1000, unit),
        };
        let power = match prefix {
            "" if base == 1000 => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            "p" => 5,
            _ => return None,
        };
        text[..digits].parse::<u64>().ok()?.checked_mul(base.pow(power)).map(Self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 100GB, 10GiB or 1048576")
            }
            fn visit_u64<E>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                let invalid = || E::custom(format!("{text:?} is no size such as 100GB or 10GiB"));
                Size::parse(text).ok_or_else(invalid)
            }
        }
        from.deserialize_any(SizeVisitor)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.0)
    }
}

/// The permissions of a file, written in octal: `0o644` or `0644`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

impl Default for Mode {
    fn default() -> Self {
        Self(0o644)
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#o}", self.0)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ModeVisitor;
        impl Visitor<'_> for ModeVisitor {
            type Value = Mode;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("permissions in octal such as 0o644")
            }
            fn visit_u64<E: serde::de::Error>(self, mode: u64) -> Result<Mode, E> {
                u32::try_from(mode)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .map(Mode)
                    .ok_or_else(|| E::custom(format!("{mode:#o} is out of range 0..=0o7777")))
            }
            /// YAML 1.2 takes `0644` for text.
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Mode, E> {
                let digits = text.strip_prefix("0o").unwrap_or(text);
                match u64::from_str_radix(digits, 8) {
                    Ok(mode) => self.visit_u64(mode),
                    Err(_) => Err(E::custom(format!("{text:?} is not octal such as 0o644"))),
                }
            }
        }
        from.deserialize_any(ModeVisitor)
    }
}

/// Written as a decimal number, which every reader understands: serde_yaml writes no octal ones.
impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(self.0)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let seconds = |text| duration::parse(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("8760h"), Some(8760.0 * 3600.0));
        assert_eq!(seconds("1h30m5s250ms"), Some(5405.25));
        assert_eq!(seconds("0s"), Some(0.0));
        for wrong in
            ["", "5", "h", "5d", "-5s", "5s ", "99999999999999999999h", "9999999999999999h"]
        {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_are_decimal_or_binary() {
        let size = |text: &str| Size::parse(text).map(|size| size.0);
        assert_eq!(size("100GB"), Some(100_000_000_000));
        assert_eq!(size("10 GiB"), Some(10 << 30));
        assert_eq!(size("512"), Some(512));
        assert_eq!(size("4k"), Some(4000));
        for wrong in ["", "GB", "5XB", "5iB", "-1", "1.5GB", "99999999PB"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn modes_are_octal_however_they_are_written() {
        for text in ["0o644", "0644", "'644'", "420"] {
            assert_eq!(serde_yaml::from_str::<Mode>(text).unwrap(), Mode(0o644), "{text}");
        }
        for wrong in ["0o17777", "rw-r--r--", "'0o9'", "-1"] {
            assert!(serde_yaml::from_str::<Mode>(wrong).is_err(), "{wrong}");
        }
    }
}
