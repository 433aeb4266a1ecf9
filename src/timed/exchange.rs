//! One question and its answer: what is accepted, and what it says of the clock (RFC 5905 §8, §9.2).

use crate::wire::{Header, Kiss, Leap, Malformed, Mode, Packet, Timestamp};

/// What one exchange says. All figures are in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// What must be added to the local clock to get the server's.
    pub offset: f64,
    /// To the server and back, without the server's own time.
    pub delay: f64,
    /// How finely both clocks can be read.
    pub precision: f64,
    /// From the server to its reference clock and back.
    pub root_delay: f64,
    /// The error of the server's clock, but for that delay.
    pub root_dispersion: f64,
    /// Of the server.
    pub stratum: u8,
    /// What the server says of the next leap second.
    pub leap: Leap,
    /// The server's reference identifier.
    pub reference: [u8; 4],
}

/// Why an answer is not taken.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It is not an NTP message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is no answer, or none to our question: whoever sent it had not seen it.
    #[error("a message that does not answer our question")]
    Foreign,
    /// It does not prove that it is the server's (RFC 8915).
    #[error("an answer without the proof that it is the server's")]
    Unproven,
    /// The server tells us to go away.
    #[error("the server refuses: kiss-o'-death {0:?}")]
    Kiss(Kiss),
    /// The server's clock is not set.
    #[error("the server's clock is not synchronised (stratum {0})")]
    Unsynchronized(u8),
    /// The server is too far from the right time.
    #[error("the server is up to {0:.3} s off")]
    Distant(f64),
    /// Times that cannot be.
    #[error("the times of the answer contradict each other")]
    Absurd,
}

impl Refusal {
    /// Whether the right answer may still come: anybody can send such a message.
    #[must_use]
    pub fn may_be_forged(self) -> bool {
        matches!(self, Self::Malformed(_) | Self::Foreign | Self::Unproven)
    }
}

/// Looks at a message that came at `arrived` for the question `nonce` sent at `departed` (both as the
/// local clock shows them).
///
/// # Errors
/// When it must not be taken.
pub fn judge(
    bytes: &[u8],
    nonce: Timestamp,
    departed: Timestamp,
    arrived: Timestamp,
) -> Result<Sample, Refusal> {
    let Packet { header, .. } = Packet::decode(bytes)?;
    judge_header(&header, nonce, departed, arrived)
}

/// As [`judge`], for a message that was taken apart already.
///
/// # Errors
/// When it must not be taken.
pub fn judge_header(
    header: &Header,
    nonce: Timestamp,
    departed: Timestamp,
    arrived: Timestamp,
) -> Result<Sample, Refusal> {
    // What somebody sends who has not seen the question: 64 random bits must be guessed.
    if header.mode != Mode::Server || header.origin != nonce {
        return Err(Refusal::Foreign);
    }
    if let Some(kiss) = header.kiss() {
        return Err(Refusal::Kiss(kiss));
    }
    if header.stratum > MAX_STRATUM || header.leap == Leap::Unsynchronized {
        return Err(Refusal::Unsynchronized(header.stratum));
    }
    let (root_delay, root_dispersion) =
        (header.root_delay.seconds(), header.root_dispersion.seconds());
    let distance = root_delay / 2.0 + root_dispersion;
    if distance > MAX_DISTANCE {
        return Err(Refusal::Distant(distance));
    }
    let there = header.transmit.since(header.receive);
    let here = arrived.since(departed);
    let unset = header.transmit.is_zero() || header.receive.is_zero();
    // Its clock was set after it answered, or it had the question for longer than we waited. A reference
    // time days away says nothing at all: one at random is what an orphan of ntpsec's has (1.2.2).
    let late = (1e-3..86_400.0).contains(&header.reference_time.since(header.transmit));
    let precision = precision(header.precision).max(LOCAL_PRECISION);
    if unset || there < 0.0 || here < 0.0 || late || here - there < -2.0 * precision {
        return Err(Refusal::Absurd);
    }
    let to = header.receive.since(departed);
    let back = header.transmit.since(arrived);
    Ok(Sample {
        // Halved first: each may be as much as 68 years.
        offset: to / 2.0 + back / 2.0,
        delay: (here - there).max(precision),
        precision,
        root_delay,
        root_dispersion,
        stratum: header.stratum,
        leap: header.leap,
        reference: header.reference,
    })
}

/// In seconds, from a power of two.
fn precision(log: i8) -> f64 {
    2f64.powi(i32::from(log.clamp(-31, 0)))
}

/// A server of stratum 15 has nobody below it that is synchronised.
const MAX_STRATUM: u8 = 15;
/// Beyond this a server is not fit to follow, in seconds (`MAXDIST`, RFC 5905 §A.1.1).
pub const MAX_DISTANCE: f64 = 1.5;
/// How finely we read our own clock.
const LOCAL_PRECISION: f64 = 1e-6;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::wire::Short;

    const NONCE: Timestamp = Timestamp(0x1234_5678_9abc_def0);
    const SECOND: u64 = 1 << 32;

    fn at(seconds: f64) -> Timestamp {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
        let units = (seconds * 4_294_967_296.0) as u64;
        Timestamp((0xed00_0000 * SECOND).wrapping_add(units))
    }

    /// The server is 5 s ahead; 30 ms to it, 2 ms in it, 10 ms back.
    fn answer() -> Header {
        Header {
            mode: Mode::Server,
            stratum: 2,
            precision: -23,
            root_delay: Short(0x0000_4000),
            root_dispersion: Short(0x0000_1000),
            reference: [10, 0, 0, 1],
            reference_time: at(90.0),
            origin: NONCE,
            receive: at(105.030),
            transmit: at(105.032),
            ..Header::question(Timestamp(0))
        }
    }

    fn judged(header: &Header) -> Result<Sample, Refusal> {
        judge(&header.encode(), NONCE, at(100.0), at(100.042))
    }

    #[test]
    fn offset_and_delay_are_of_the_four_times() {
        let sample = judged(&answer()).unwrap();
        assert!((sample.offset - 5.010).abs() < 1e-6, "{sample:?}");
        assert!((sample.delay - 0.040).abs() < 1e-6, "{sample:?}");
        assert_eq!((sample.root_delay, sample.root_dispersion), (0.25, 0.0625));
    }

    #[test]
    fn a_reference_time_at_random_is_no_reason_to_refuse() {
        for reference_time in [at(90.0), Timestamp(0), Timestamp(1 << 63), at(100_000_000.0)] {
            assert!(judged(&Header { reference_time, ..answer() }).is_ok(), "{reference_time:?}");
        }
    }

    #[test]
    fn only_an_answer_to_our_question_is_taken() {
        for change in [
            (|header: &mut Header| header.origin = Timestamp(0)) as fn(&mut Header),
            |header| header.origin = Timestamp(NONCE.0 ^ 1),
            |header| header.mode = Mode::Client,
            |header| header.mode = Mode::Other(5),
        ] {
            let mut header = answer();
            change(&mut header);
            assert_eq!(judged(&header), Err(Refusal::Foreign));
            assert!(Refusal::Foreign.may_be_forged());
        }
    }

    #[test]
    fn a_server_that_is_not_fit_is_told_apart() {
        type Change = fn(&mut Header);
        let cases: [(Change, &str); 8] = [
            (|header| header.leap = Leap::Unsynchronized, "not synchronised (stratum 2)"),
            (|header| header.stratum = 16, "not synchronised (stratum 16)"),
            (
                |header| (header.stratum, header.reference) = (0, *b"DENY"),
                "refuses: kiss-o'-death DENY",
            ),
            (|header| header.root_dispersion = Short(2 << 16), "up to 2.125 s off"),
            (|header| header.transmit = at(105.029), "contradict"),
            (|header| header.transmit = at(105.080), "contradict"),
            (|header| header.receive = Timestamp(0), "contradict"),
            (|header| header.reference_time = at(106.0), "contradict"),
        ];
        for (change, why) in cases {
            let mut header = answer();
            change(&mut header);
            let refusal = judged(&header).unwrap_err();
            assert!(refusal.to_string().contains(why), "{refusal}: {why}");
            assert!(!refusal.may_be_forged());
        }
    }
}
