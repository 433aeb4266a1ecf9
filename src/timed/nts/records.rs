//! The key exchange's records (RFC 8915 §4): what is asked, and what a server may answer.
//!
//! [`response`] reads bytes from the wire and never panics.

use std::fmt;

use orlop_config::machine::TimeServer;

/// The protocol's name in TLS (§4, ALPN).
pub const ALPN: &[u8] = b"ntske/1";
/// The longest answer that is read: eight of the longest cookies are a quarter of it.
pub const LONGEST: usize = 16 << 10;
/// What keys are exported from TLS with (§4.3): label, and context of client to server, and back.
pub const EXPORTER: &[u8] = b"EXPORTER-network-time-security";
/// NTPv4, AEAD_AES_SIV_CMAC_256, client to server (§5.1).
pub const TO_SERVER: [u8; 5] = [0, 0, 0, 15, 0];
/// The other way.
pub const TO_CLIENT: [u8; 5] = [0, 0, 0, 15, 1];
/// The longest cookie that is taken: with it, a question still fits into any network's packets.
pub const LONGEST_COOKIE: usize = 512;

const CRITICAL: u16 = 0x8000;
const END: u16 = 0;
const NEXT_PROTOCOL: u16 = 1;
const ERROR: u16 = 2;
const WARNING: u16 = 3;
const ALGORITHM: u16 = 4;
const COOKIE: u16 = 5;
const SERVER: u16 = 6;
const SERVER_PORT: u16 = 7;
/// NTPv4 (§7.7).
const NTP: u16 = 0;
/// AEAD_AES_SIV_CMAC_256 (RFC 5297), which every server has (§5.1).
const SIV: u16 = 15;

/// What both have agreed on.
#[derive(Clone, PartialEq, Eq)]
pub struct Agreed {
    /// At least one, each good for one question.
    pub cookies: Vec<Vec<u8>>,
    /// A name or an address; `None`: who was asked.
    pub server: Option<String>,
    /// Where the NTP server listens, if not where NTP servers do.
    pub port: Option<u16>,
}

// Cookies are what keys are for a thief of a log.
impl fmt::Debug for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cookies, server, port } = self;
        f.debug_struct("Agreed")
            .field("cookies", &cookies.len())
            .field("server", server)
            .field("port", port)
            .finish()
    }
}

/// Why an answer is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It goes on and on.
    #[error("its answer is longer than {LONGEST} bytes")]
    Long,
    /// It ends in the middle.
    #[error("its answer ends before it is complete")]
    Short,
    /// A record that must be understood is not.
    #[error("its answer has a critical record of the unknown type {0}")]
    Unknown(u16),
    /// A record that does not hold what its type says, comes twice, or follows the end.
    #[error("its answer has a record of type {0} that is malformed, or comes twice")]
    Malformed(u16),
    /// It refuses (§4.1.3).
    #[error("it refuses with error {0} ({why})", why = error_name(*.0))]
    Error(u16),
    /// It warns of what nobody defined (§4.1.4).
    #[error("it warns of something unknown ({0})")]
    Warning(u16),
    /// It does not speak NTPv4.
    #[error("it does not offer NTPv4")]
    Protocol,
    /// It has no algorithm in common with us.
    #[error("it does not offer AEAD_AES_SIV_CMAC_256")]
    Algorithm,
    /// Keys, and nothing to use them with.
    #[error("it gave no cookie")]
    Cookieless,
}

fn error_name(code: u16) -> &'static str {
    match code {
        0 => "unrecognized critical record",
        1 => "bad request",
        2 => "internal server error",
        _ => "unknown",
    }
}

/// What is asked: NTPv4, with the one algorithm.
#[must_use]
pub fn request() -> Vec<u8> {
    let mut bytes = Vec::new();
    push(&mut bytes, CRITICAL | NEXT_PROTOCOL, &NTP.to_be_bytes());
    push(&mut bytes, CRITICAL | ALGORITHM, &SIV.to_be_bytes());
    push(&mut bytes, CRITICAL | END, &[]);
    bytes
}

/// Reads what came so far. `None`: the end is not there yet.
///
/// # Errors
/// When it must not be taken, whatever else comes.
pub fn response(bytes: &[u8]) -> Result<Option<Agreed>, Refusal> {
    let mut rest = bytes;
    let (mut protocol, mut algorithm) = (false, false);
    let mut agreed = Agreed { cookies: Vec::new(), server: None, port: None };
    loop {
        let Some((kind, body, after)) = record(rest) else {
            let long = bytes.len() >= LONGEST;
            return if long { Err(Refusal::Long) } else { Ok(None) };
        };
        rest = after;
        let critical = kind & CRITICAL != 0;
        let kind = kind & !CRITICAL;
        let wrong = Refusal::Malformed(kind);
        match kind {
            END if body.is_empty() && rest.is_empty() => break,
            NEXT_PROTOCOL if !protocol => {
                if number(body).ok_or(Refusal::Protocol)? != NTP {
                    return Err(Refusal::Protocol);
                }
                protocol = true;
            }
            ALGORITHM if !algorithm => {
                if number(body).ok_or(Refusal::Algorithm)? != SIV {
                    return Err(Refusal::Algorithm);
                }
                algorithm = true;
            }
            ERROR => return Err(Refusal::Error(number(body).ok_or(wrong)?)),
            WARNING => return Err(Refusal::Warning(number(body).ok_or(wrong)?)),
            COOKIE if (1..=LONGEST_COOKIE).contains(&body.len()) => {
                agreed.cookies.push(body.to_vec());
            }
            SERVER if agreed.server.is_none() => {
                agreed.server = Some(host(body).ok_or(wrong)?);
            }
            SERVER_PORT if agreed.port.is_none() => {
                agreed.port = Some(number(body).filter(|port| *port > 0).ok_or(wrong)?);
            }
            END | NEXT_PROTOCOL | ALGORITHM | COOKIE | SERVER | SERVER_PORT => return Err(wrong),
            unknown if critical => return Err(Refusal::Unknown(unknown)),
            _ => {}
        }
    }
    match (protocol, algorithm, agreed.cookies.is_empty()) {
        (false, ..) => Err(Refusal::Protocol),
        (_, false, _) => Err(Refusal::Algorithm),
        (.., true) => Err(Refusal::Cookieless),
        (true, true, false) => Ok(Some(agreed)),
    }
}

/// Type, body, and what follows; `None` when it is not all there.
fn record(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let [k1, k2, l1, l2] = *head;
    let (body, rest) = rest.split_at_checked(u16::from_be_bytes([l1, l2]).into())?;
    Some((u16::from_be_bytes([k1, k2]), body, rest))
}

/// The one number of a body.
fn number(body: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(body.try_into().ok()?))
}

/// A name or an address, as an operator may write it.
fn host(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    match text.strip_suffix('.').unwrap_or(text).parse().ok()? {
        TimeServer::Ntp(host) => Some(host),
        TimeServer::Nts(..) | TimeServer::Ptp(_) => None,
    }
}

fn push(bytes: &mut Vec<u8>, kind: u16, body: &[u8]) {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&body[..length.into()]);
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer of these records, whatever they say, and the end.
    pub(crate) fn answer(records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, body) in records {
            push(&mut bytes, *kind, body);
        }
        push(&mut bytes, CRITICAL | END, &[]);
        bytes
    }

    pub(crate) const PROTOCOL: (u16, &[u8]) = (0x8001, &[0, 0]);
    pub(crate) const SIV_256: (u16, &[u8]) = (0x8004, &[0, 15]);
    const ONE: (u16, &[u8]) = (5, b"a cookie");

    #[test]
    fn the_request_is_three_records() {
        let wanted = [[0x80, 1, 0, 2, 0, 0], [0x80, 4, 0, 2, 0, 15]].concat();
        assert_eq!(request(), [&wanted[..], &[0x80, 0, 0, 0]].concat());
    }

    #[test]
    fn an_answer_is_read_when_it_is_complete() {
        let bytes = answer(&[
            PROTOCOL,
            SIV_256,
            ONE,
            (5, b"another"),
            (6, b"ntp.example.org."),
            (7, &[0x2b, 0x67]),
            // Unknown, and not critical.
            (0x1234, b"x"),
        ]);
        for end in 0..bytes.len() {
            assert_eq!(response(&bytes[..end]), Ok(None), "{end}");
        }
        let agreed = Agreed {
            cookies: vec![b"a cookie".to_vec(), b"another".to_vec()],
            server: Some("ntp.example.org".to_owned()),
            port: Some(11111),
        };
        assert_eq!(format!("{agreed:?}").find("cookie\""), None);
        assert_eq!(response(&bytes), Ok(Some(agreed)));
    }

    #[test]
    fn what_must_not_be_taken_is_refused_with_its_reason() {
        let long = [7; LONGEST_COOKIE + 1];
        type Records<'a> = &'a [(u16, &'a [u8])];
        let cases: &[(Records<'_>, Refusal)] = &[
            (&[SIV_256, ONE], Refusal::Protocol),
            (&[(0x8001, &[0, 1]), SIV_256, ONE], Refusal::Protocol),
            (&[(0x8001, &[]), SIV_256, ONE], Refusal::Protocol),
            (&[PROTOCOL, PROTOCOL, SIV_256, ONE], Refusal::Malformed(1)),
            (&[PROTOCOL, ONE], Refusal::Algorithm),
            (&[PROTOCOL, (0x8004, &[0, 16]), ONE], Refusal::Algorithm),
            (&[PROTOCOL, (0x8004, &[]), ONE], Refusal::Algorithm),
            (&[PROTOCOL, SIV_256, SIV_256, ONE], Refusal::Malformed(4)),
            (&[PROTOCOL, SIV_256], Refusal::Cookieless),
            (&[PROTOCOL, SIV_256, (5, &[])], Refusal::Malformed(5)),
            (&[PROTOCOL, SIV_256, (5, &long)], Refusal::Malformed(5)),
            (&[(0x8002, &[0, 1])], Refusal::Error(1)),
            (&[(0x8002, &[1])], Refusal::Malformed(2)),
            (&[(0x8003, &[0, 9])], Refusal::Warning(9)),
            (&[(0x8000 | 99, &[])], Refusal::Unknown(99)),
            (&[PROTOCOL, SIV_256, ONE, (6, b"a b")], Refusal::Malformed(6)),
            (&[PROTOCOL, SIV_256, ONE, (6, b"/dev/ptp0")], Refusal::Malformed(6)),
            (&[PROTOCOL, SIV_256, ONE, (6, b"nts://a.b")], Refusal::Malformed(6)),
            (&[PROTOCOL, SIV_256, ONE, (6, b"\xff")], Refusal::Malformed(6)),
            (&[PROTOCOL, SIV_256, ONE, (7, &[0, 0])], Refusal::Malformed(7)),
            (&[PROTOCOL, SIV_256, ONE, (0x8000, &[])], Refusal::Malformed(0)),
            (&[PROTOCOL, SIV_256, ONE, (0x8000, &[1])], Refusal::Malformed(0)),
        ];
        for (records, refusal) in cases {
            assert_eq!(response(&answer(records)), Err(*refusal), "{records:?}");
        }
        let endless = vec![0; LONGEST];
        assert!(response(&[&answer(&[ONE])[..12], &[0x12, 0x34, 0xff, 0xff]].concat()).is_ok());
        assert_eq!(
            response(&[&[0x12, 0x34, 0xff, 0xff][..], &endless].concat()),
            Err(Refusal::Long)
        );
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(agreed)) = response(&bytes) {
                prop_assert!(!agreed.cookies.is_empty());
            }
        }
    }
}
