//! Asking a server or a device for the time: sockets, and nothing decided.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::exchange::{self, Refusal, Sample};
use crate::ke::Secured;
use crate::nts::packet::{Association, Chance};
use crate::wire::{Header, LONGEST, Leap, Timestamp};

/// Where NTP servers listen.
pub(crate) const PORT: u16 = 123;
/// How long an answer is waited for.
const LIMIT: Duration = Duration::from_secs(5);

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("open a socket")]
    Socket(#[source] io::Error),
    #[error("send to {0}")]
    Send(SocketAddr, #[source] io::Error),
    #[error("receive from {0}")]
    Receive(SocketAddr, #[source] io::Error),
    #[error("no answer from {0} within {limit} s", limit = LIMIT.as_secs())]
    Silent(SocketAddr),
    #[error("{0}")]
    Refused(SocketAddr, #[source] Refusal),
    #[error("no cookie is left to ask {0} with")]
    Keyless(SocketAddr),
    #[error("{0} says a time at which its own certificate is not valid")]
    Implausible(SocketAddr),
    #[error("get random bytes")]
    Random,
    #[error("read {0}")]
    Device(String, #[source] io::Error),
    #[error("stopped")]
    Stopped,
}

/// What was had, and what the clock showed then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) sample: Sample,
    pub(crate) at: SystemTime,
}

/// Asks `address` once, from a port of the kernel's choosing (RFC 9109), with 64 random bits that the
/// answer must bring back. What anybody else sends is passed over. With `secured`, an answer must prove
/// that it is the server's.
pub(crate) async fn server(
    address: SocketAddr,
    secured: Option<&Secured>,
) -> Result<Answer, Error> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(Error::Socket)?;
    // Connected: the kernel drops what others send, and tells when nobody listens there.
    socket.connect(address).await.map_err(|error| Error::Send(address, error))?;
    let chance = chance()?;
    let nonce = chance.origin;
    let question = match secured {
        None => Header::question(nonce).encode().to_vec(),
        Some(secured) => lock(secured).question(&chance).ok_or(Error::Keyless(address))?,
    };
    let deadline = Instant::now() + LIMIT;
    let departed = SystemTime::now();
    socket.send(&question).await.map_err(|error| Error::Send(address, error))?;
    let mut buffer = [0; LONGEST + 1];
    loop {
        let received = timeout_at(deadline, socket.recv(&mut buffer))
            .await
            .map_err(|_| Error::Silent(address))?;
        let arrived = SystemTime::now();
        let length = received.map_err(|error| Error::Receive(address, error))?;
        let (departed, at) = (Timestamp::of(departed), Timestamp::of(arrived));
        let bytes = &buffer[..length];
        let judged = match secured {
            None => exchange::judge(bytes, nonce, departed, at),
            Some(secured) => lock(secured)
                .open(bytes, &chance)
                .and_then(|header| exchange::judge_header(&header, nonce, departed, at)),
        };
        match judged {
            Ok(sample) => {
                let answer = Answer { sample, at: arrived };
                let plausible = secured.is_none_or(|secured| secured.plausible(answer.time()));
                return if plausible { Ok(answer) } else { Err(Error::Implausible(address)) };
            }
            Err(refusal) if refusal.may_be_forged() => {
                tracing::debug!(%address, %refusal, "passed over");
            }
            Err(refusal) => return Err(Error::Refused(address, refusal)),
        }
    }
}

/// Reads a PTP device; a thread of its own does it, because a device may take its time.
pub(crate) async fn device(path: &Path) -> Result<Answer, Error> {
    let failed = |error| Error::Device(path.display().to_string(), error);
    let owned = path.to_owned();
    let read = move || orlop_sys::read_ptp(&File::open(owned)?);
    let reading =
        tokio::task::spawn_blocking(read).await.map_err(|_| Error::Stopped)?.map_err(failed)?;
    let (before, after) = (Timestamp::of(reading.before), Timestamp::of(reading.after));
    let there = Timestamp::of(reading.device);
    let sample = Sample {
        offset: there.since(before) / 2.0 + there.since(after) / 2.0,
        delay: after.since(before).max(1e-6),
        precision: 1e-6,
        root_delay: 0.0,
        // How well the machine's host keeps its own clock, nobody tells.
        root_dispersion: 1e-3,
        stratum: 1,
        leap: Leap::None,
        reference: *b"PTP\0",
    };
    Ok(Answer { sample, at: reading.after })
}

impl Answer {
    /// What the server's clock showed when its answer was here.
    pub(crate) fn time(&self) -> SystemTime {
        let offset = self.sample.offset;
        let apart = Duration::try_from_secs_f64(offset.abs()).unwrap_or_default();
        let time =
            if offset < 0.0 { self.at.checked_sub(apart) } else { self.at.checked_add(apart) };
        time.unwrap_or(self.at)
    }
}

/// Nobody panics while holding it.
fn lock(secured: &Secured) -> MutexGuard<'_, Association> {
    secured.association.lock().unwrap_or_else(PoisonError::into_inner)
}

fn chance() -> Result<Chance, Error> {
    let random = SystemRandom::new();
    let (mut origin, mut unique, mut nonce) = ([0; 8], [0; 32], [0; 16]);
    for bytes in [&mut origin[..], &mut unique, &mut nonce] {
        random.fill(bytes).map_err(|_| Error::Random)?;
    }
    Ok(Chance { origin: Timestamp(u64::from_be_bytes(origin)), unique, nonce })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::wire::{Mode, Packet};

    /// A server whose clock is `ahead`; before each answer comes what a stranger would send.
    async fn serve(socket: UdpSocket, ahead: Duration) {
        let mut buffer = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let question = Packet::decode(&buffer[..length]).unwrap().header;
            assert_eq!(question.mode, Mode::Client);
            let now = Timestamp::of(SystemTime::now() + ahead);
            let answer = Header {
                mode: Mode::Server,
                stratum: 1,
                precision: -20,
                reference_time: now,
                origin: question.transmit,
                receive: now,
                transmit: now,
                ..Header::question(Timestamp(0))
            };
            let forged = Header { origin: Timestamp(question.transmit.0 ^ 1), ..answer };
            for bytes in [&b"junk"[..], &forged.encode(), &[0xff; 100], &answer.encode()] {
                socket.send_to(bytes, from).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn forged_answers_are_passed_over_and_the_right_one_is_taken() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let serving = tokio::spawn(serve(socket, Duration::from_secs(1000)));
        let answer = server(address, None).await.unwrap();
        let off = answer.sample.offset - 1000.0;
        assert!(off.abs() <= answer.sample.delay, "{answer:?}");
        serving.abort();
    }

    #[tokio::test]
    async fn a_closed_port_is_told_at_once() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let error = server(address, None).await.unwrap_err();
        assert!(matches!(error, Error::Receive(..)), "{error:?}");
    }

    #[tokio::test]
    async fn what_is_no_device_is_told() {
        let error = device(Path::new("/dev/ptp-not-there")).await.unwrap_err();
        assert!(error.to_string().contains("ptp-not-there"), "{error}");
    }
}
