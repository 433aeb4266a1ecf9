//! NTP packets (RFC 5905 §7.3) and timestamps (§6): bytes to types and back.
//!
//! Nothing here panics, whatever the bytes. Extension fields (RFC 7822) are kept as they are; a
//! message whose fields do not add up is refused as a whole.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a packet without extension fields.
pub const HEADER: usize = 48;
/// The longest message that is looked at: more than any server sends.
pub const LONGEST: usize = 2048;
/// The version we speak.
const VERSION: u8 = 4;
/// From NTP's epoch (1900) to Unix's.
const UNIX_OFFSET_SECS: u64 = 2_208_988_800;
/// An extension field is at least this long (RFC 7822 §7.5).
const SHORTEST_FIELD: usize = 16;
/// A message authentication code that follows the fields: key identifier and digest.
const MACS: [usize; 3] = [4, 20, 24];

/// 64 bits of time: seconds since 1900 in the upper half, fractions in the lower; wraps in 2036.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// What a clock showed.
    #[must_use]
    pub fn of(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self(fixed(since)).later(UNIX_OFFSET_SECS << 32),
            Err(before) => {
                Self(0u64.wrapping_sub(fixed(before.duration()))).later(UNIX_OFFSET_SECS << 32)
            }
        }
    }

    /// The time nearest to `near` that is written so.
    #[must_use]
    pub fn time(self, near: SystemTime) -> SystemTime {
        let apart = self.nanos_since(Self::of(near));
        let distance = Duration::from_nanos(apart.unsigned_abs());
        let time = if apart < 0 { near.checked_sub(distance) } else { near.checked_add(distance) };
        time.unwrap_or(near)
    }

    /// Seconds from `other` to this; right for times up to 68 years apart.
    #[must_use]
    pub fn since(self, other: Self) -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "small differences, which matter, are exact"
        )]
        let units = self.0.wrapping_sub(other.0).cast_signed() as f64;
        units / UNITS_PER_SEC
    }

    /// Nothing was written.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    fn nanos_since(self, other: Self) -> i64 {
        let units = i128::from(self.0.wrapping_sub(other.0).cast_signed());
        // |units| < 2^63, so the nanoseconds are below 2^61.
        i64::try_from((units * 1_000_000_000) >> 32).unwrap_or_default()
    }

    fn later(self, units: u64) -> Self {
        Self(self.0.wrapping_add(units))
    }
}

fn fixed(time: Duration) -> u64 {
    (time.as_secs() << 32).wrapping_add((u64::from(time.subsec_nanos()) << 32) / 1_000_000_000)
}

const UNITS_PER_SEC: f64 = 4_294_967_296.0;

/// 32 bits of seconds, 16 of them after the point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Short(pub u32);

impl Short {
    /// In seconds.
    #[must_use]
    pub fn seconds(self) -> f64 {
        f64::from(self.0) / 65536.0
    }
}

/// What a server says of the next leap second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leap {
    /// None.
    #[default]
    None,
    /// The last minute of the day has 61 seconds.
    Insert,
    /// It has 59.
    Delete,
    /// The server's clock is not synchronised.
    Unsynchronized,
}

/// Who a message is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A question.
    Client,
    /// An answer.
    Server,
    /// Anything else: broadcasts, peers, control messages.
    Other(u8),
}

/// A kiss-o'-death (RFC 5905 §7.4): four letters in the reference identifier of stratum 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kiss(pub [u8; 4]);

impl Kiss {
    /// Access denied: the server must not be asked any more (`DENY`, `RSTR`).
    #[must_use]
    pub fn refuses(self) -> bool {
        matches!(&self.0, b"DENY" | b"RSTR")
    }

    /// The server is asked too often (`RATE`).
    #[must_use]
    pub fn slows(self) -> bool {
        &self.0 == b"RATE"
    }

    /// NTS: the cookie cannot be read any more (`NTSN`, RFC 8915 §5.7).
    #[must_use]
    pub fn wants_new_keys(self) -> bool {
        &self.0 == b"NTSN"
    }
}

impl fmt::Debug for Kiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is said of the next leap second.
    pub leap: Leap,
    /// 3 or 4.
    pub version: u8,
    /// Who it is from.
    pub mode: Mode,
    /// Distance from a reference clock: 1 to 15; 0 is a kiss-o'-death, 16 not synchronised.
    pub stratum: u8,
    /// The longest interval between messages, as a power of two of seconds.
    pub poll: i8,
    /// Of the clock, as a power of two of seconds.
    pub precision: i8,
    /// To the reference clock and back.
    pub root_delay: Short,
    /// Up to the reference clock.
    pub root_dispersion: Short,
    /// Of the server's server, or a code.
    pub reference: [u8; 4],
    /// When the server's clock was last set.
    pub reference_time: Timestamp,
    /// The question's transmit time, as an answer brings it back.
    pub origin: Timestamp,
    /// When the question came.
    pub receive: Timestamp,
    /// When this was sent.
    pub transmit: Timestamp,
}

impl Header {
    /// A question that tells nothing about who asks (RFC 8633 appendix A.4, data minimisation): the
    /// transmit time is `nonce`, which an answer must bring back.
    #[must_use]
    pub fn question(nonce: Timestamp) -> Self {
        Self {
            leap: Leap::None,
            version: VERSION,
            mode: Mode::Client,
            stratum: 0,
            poll: 0,
            // As if to say nothing: what others write there too.
            precision: 0x20,
            root_delay: Short(0),
            root_dispersion: Short(0),
            reference: [0; 4],
            reference_time: Timestamp(0),
            origin: Timestamp(0),
            receive: Timestamp(0),
            transmit: nonce,
        }
    }

    /// The code, when it is a kiss-o'-death.
    #[must_use]
    pub fn kiss(&self) -> Option<Kiss> {
        (self.stratum == 0).then_some(Kiss(self.reference))
    }

    /// As it is sent.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        let leap = match self.leap {
            Leap::None => 0,
            Leap::Insert => 1,
            Leap::Delete => 2,
            Leap::Unsynchronized => 3,
        };
        let mode = match self.mode {
            Mode::Client => 3,
            Mode::Server => 4,
            Mode::Other(mode) => mode & 7,
        };
        let mut bytes = [0; HEADER];
        bytes[0] = leap << 6 | (self.version & 7) << 3 | mode;
        bytes[1] = self.stratum;
        bytes[2] = self.poll.cast_unsigned();
        bytes[3] = self.precision.cast_unsigned();
        bytes[4..8].copy_from_slice(&self.root_delay.0.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.root_dispersion.0.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.reference);
        let times = [self.reference_time, self.origin, self.receive, self.transmit];
        for (place, time) in bytes[16..].chunks_exact_mut(8).zip(times) {
            place.copy_from_slice(&time.0.to_be_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; HEADER]) -> Result<Self, Malformed> {
        let version = bytes[0] >> 3 & 7;
        if !(3..=4).contains(&version) {
            return Err(Malformed::Version(version));
        }
        let word = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let time = |at: usize| Timestamp(u64::from(word(at)) << 32 | u64::from(word(at + 4)));
        Ok(Self {
            leap: match bytes[0] >> 6 {
                0 => Leap::None,
                1 => Leap::Insert,
                2 => Leap::Delete,
                _ => Leap::Unsynchronized,
            },
            version,
            mode: match bytes[0] & 7 {
                3 => Mode::Client,
                4 => Mode::Server,
                mode => Mode::Other(mode),
            },
            stratum: bytes[1],
            poll: bytes[2].cast_signed(),
            precision: bytes[3].cast_signed(),
            root_delay: Short(word(4)),
            root_dispersion: Short(word(8)),
            reference: [bytes[12], bytes[13], bytes[14], bytes[15]],
            reference_time: time(16),
            origin: time(24),
            receive: time(32),
            transmit: time(40),
        })
    }
}

/// An extension field (RFC 7822): its type, its value with padding, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// What it is.
    pub kind: u16,
    /// What it says, padded to a multiple of four bytes.
    pub value: &'a [u8],
    /// Where in the message its type stands.
    pub start: usize,
}

/// A message, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The first 48 bytes.
    pub header: Header,
    /// The extension fields in their order.
    pub fields: Vec<Field<'a>>,
    /// A message authentication code of the old kind; nobody here has its key.
    pub mac: &'a [u8],
}

/// Why bytes are no NTP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header, or longer than any message.
    #[error("{0} bytes are no NTP message")]
    Length(usize),
    /// Neither 3 nor 4.
    #[error("NTP version {0}")]
    Version(u8),
    /// An extension field that is too short, too long or not aligned.
    #[error("an extension field at byte {0} does not add up")]
    Field(usize),
}

impl<'a> Packet<'a> {
    /// Takes `bytes` apart.
    ///
    /// # Errors
    /// When they are no NTP message of version 3 or 4.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let length = Malformed::Length(bytes.len());
        if bytes.len() > LONGEST {
            return Err(length);
        }
        let (head, _) = bytes.split_first_chunk::<HEADER>().ok_or(length)?;
        let header = Header::decode(head)?;
        let (mut fields, mut at) = (Vec::new(), HEADER);
        loop {
            let rest = &bytes[at..];
            // RFC 7822 §7.5.1.4: what is left is a code when it is as long as one.
            if rest.is_empty() || MACS.contains(&rest.len()) {
                return Ok(Self { header, fields, mac: rest });
            }
            let field = field(bytes, at)?;
            fields.push(field);
            at += 4 + field.value.len();
        }
    }

    /// As it is sent. What was decoded becomes the bytes it was.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.header.encode().to_vec();
        for field in &self.fields {
            push_field(&mut bytes, field.kind, field.value);
        }
        bytes.extend_from_slice(self.mac);
        bytes
    }
}

/// The extension field that begins at byte `at`.
///
/// # Errors
/// When it is too short, not aligned, or ends after `bytes` does.
pub fn field(bytes: &[u8], at: usize) -> Result<Field<'_>, Malformed> {
    let wrong = Malformed::Field(at);
    let rest = bytes.get(at..).unwrap_or_default();
    let [k1, k2, l1, l2, ..] = *rest else { return Err(wrong) };
    let size = usize::from(u16::from_be_bytes([l1, l2]));
    if size < SHORTEST_FIELD || !size.is_multiple_of(4) || size > rest.len() {
        return Err(wrong);
    }
    Ok(Field { kind: u16::from_be_bytes([k1, k2]), value: &rest[4..size], start: at })
}

/// Appends an extension field, padded with zeros to a multiple of four and at least 16 bytes.
pub fn push_field(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let size = (4 + value.len()).next_multiple_of(4).max(SHORTEST_FIELD);
    let length = u16::try_from(size).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len() + size - 4 - value.len(), 0);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timestamps_are_of_the_time_and_survive_2036() {
        for (unix, ntp) in
            [(0u64, 0x83aa_7e80_u64), (1_767_225_600, 0xed00_3780), (2_085_978_496, 0)]
        {
            let time = UNIX_EPOCH + Duration::from_secs(unix);
            assert_eq!(Timestamp::of(time).0, ntp << 32, "{unix}");
            assert_eq!(Timestamp(ntp << 32).time(time + Duration::from_secs(86_400)), time);
        }
        let eve = UNIX_EPOCH + Duration::from_secs(2_085_978_495);
        let apart = Timestamp::of(eve + Duration::from_millis(1_500)).since(Timestamp::of(eve));
        assert!((apart - 1.5).abs() < 1e-9, "{apart}");
        let before = UNIX_EPOCH - Duration::from_millis(250);
        assert!((Timestamp::of(before).since(Timestamp::of(UNIX_EPOCH)) + 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_question_tells_nothing_but_its_nonce() {
        let bytes = Header::question(Timestamp(0x0102_0304_0506_0708)).encode();
        assert_eq!(bytes[0], 0x23);
        assert_eq!(bytes[3], 0x20);
        assert_eq!(bytes[40..], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(bytes[1..3].iter().chain(&bytes[4..40]).all(|byte| *byte == 0));
    }

    #[test]
    fn fields_are_told_apart_from_a_code() {
        let mut bytes = Header::question(Timestamp(1)).encode().to_vec();
        push_field(&mut bytes, 0x104, b"unique");
        push_field(&mut bytes, 0x204, &[7; 100]);
        bytes.extend_from_slice(&[9; 20]);
        let packet = Packet::decode(&bytes).unwrap();
        let shape: Vec<_> =
            packet.fields.iter().map(|f| (f.kind, f.value.len(), f.start)).collect();
        assert_eq!(shape, [(0x104, 12, 48), (0x204, 100, 64)]);
        assert_eq!((packet.mac, packet.encode()), (&[9; 20][..], bytes.clone()));
        for (cut, at) in [(1, 168), (12, 168), (21, 64)] {
            let error = Packet::decode(&bytes[..bytes.len() - cut]).unwrap_err();
            assert_eq!(error, Malformed::Field(at), "{cut}");
        }
        for length in [0, 1, 4, 12, 15, 18, 200] {
            bytes[67] = length;
            assert_eq!(Packet::decode(&bytes).unwrap_err(), Malformed::Field(64), "{length}");
        }
    }

    #[test]
    fn kisses_are_of_stratum_0() {
        let mut header = Header::question(Timestamp(1));
        header.reference = *b"RATE";
        assert!(header.kiss().unwrap().slows() && !header.kiss().unwrap().refuses());
        header.stratum = 1;
        assert_eq!(header.kiss(), None);
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_as_it_was(
            head in proptest::array::uniform32(any::<u8>()),
            tail in proptest::collection::vec(any::<u8>(), 0..200),
            sound: bool,
        ) {
            let mut bytes = [&head[..], &tail].concat();
            if sound {
                bytes[0] = bytes[0] & 0b1100_0111 | 4 << 3;
            }
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(packet.encode(), bytes);
            }
        }

        #[test]
        fn times_come_back_to_the_nanosecond(secs in 0u64..4_000_000_000, nanos in 0u32..1_000_000_000) {
            let time = UNIX_EPOCH + Duration::new(secs, nanos);
            let back = Timestamp::of(time).time(time - Duration::from_secs(1000));
            let apart = back.duration_since(time).or_else(|_| time.duration_since(back)).unwrap();
            prop_assert!(apart <= Duration::from_nanos(2), "{apart:?}");
        }
    }
}
