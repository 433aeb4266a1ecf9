//! Asking a server or a device for the time: sockets, and nothing decided.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::exchange::{self, Refusal, Sample};
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
/// answer must bring back. What anybody else sends is passed over.
pub(crate) async fn server(address: SocketAddr) -> Result<Answer, Error> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(Error::Socket)?;
    // Connected: the kernel drops what others send, and tells when nobody listens there.
    socket.connect(address).await.map_err(|error| Error::Send(address, error))?;
    let nonce = nonce()?;
    let question = Header::question(nonce).encode();
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
        match exchange::judge(&buffer[..length], nonce, departed, at) {
            Ok(sample) => return Ok(Answer { sample, at: arrived }),
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

fn nonce() -> Result<Timestamp, Error> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(Timestamp(u64::from_be_bytes(bytes)))
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
        let answer = server(address).await.unwrap();
        let off = answer.sample.offset - 1000.0;
        assert!(off.abs() <= answer.sample.delay, "{answer:?}");
        serving.abort();
    }

    #[tokio::test]
    async fn a_closed_port_is_told_at_once() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let error = server(address).await.unwrap_err();
        assert!(matches!(error, Error::Receive(..)), "{error:?}");
    }

    #[tokio::test]
    async fn what_is_no_device_is_told() {
        let error = device(Path::new("/dev/ptp-not-there")).await.unwrap_err();
        assert!(error.to_string().contains("ptp-not-there"), "{error}");
    }
}
