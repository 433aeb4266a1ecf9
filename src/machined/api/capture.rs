//! `PacketCapture`: what passes a link, as a pcap file that goes on
//! (`draft-ietf-opsawg-pcap`).
//!
//! No thread is needed: frames wait in the kernel, in a queue of bounded length, and are taken from it
//! when the reader wants more. What a slow reader leaves there too long is lost.

use std::io;

use nix::net::if_::if_nametoindex;
use orlop_netlink::{Capture, Frame, Instruction, Promiscuous};
use orlop_proto::machine::{BpfInstruction, PacketCaptureRequest};
use tonic::Status;

use super::CHUNK;

/// Bytes kept of a frame when nobody says, and at most (as libpcap).
const SNAP: u32 = 262_144;
/// Of a record, before the frame.
const RECORD_HEADER: usize = 16;

/// A capture, and the file it becomes.
#[derive(Debug)]
pub(super) struct Pcap {
    capture: Capture,
    /// A frame; as long as what is kept of one.
    buffer: Vec<u8>,
    /// What the file begins with, until it was sent.
    header: Vec<u8>,
}

impl Pcap {
    /// # Errors
    /// `NotFound` without the link, `InvalidArgument` for a filter that is none, `Unimplemented` for a
    /// kind of link that pcap files do not know here.
    pub(super) fn open(request: &PacketCaptureRequest) -> Result<Self, Status> {
        let link = &request.interface;
        let index = if_nametoindex(link.as_str())
            .map_err(|_| Status::not_found(format!("there is no link {link:?}")))?;
        let filter: Vec<_> =
            request.bpf_filter.iter().map(instruction).collect::<Option<_>>().ok_or_else(|| {
                Status::invalid_argument("an instruction of the BPF filter is out of range")
            })?;
        let promiscuous = if request.promiscuous { Promiscuous::Yes } else { Promiscuous::No };
        let capture = Capture::open(index, promiscuous, &filter).map_err(|error| {
            let text = format!("capture on {link}: {error}");
            match error.kind() {
                io::ErrorKind::InvalidInput => Status::invalid_argument(text),
                _ => Status::unknown(text),
            }
        })?;
        let hardware = capture.hardware();
        let link_type = link_type(hardware).ok_or_else(|| {
            Status::unimplemented(format!("{link} is a link of kind {hardware}, not known to pcap"))
        })?;
        let snap = match request.snap_len {
            0 => SNAP,
            length => length.min(SNAP),
        };
        let buffer = vec![0; usize::try_from(snap).unwrap_or_default()];
        Ok(Self { capture, buffer, header: file_header(snap, link_type) })
    }

    /// The next bytes of the file; waits for them. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<Vec<u8>> {
        if !self.header.is_empty() {
            return Ok(std::mem::take(&mut self.header));
        }
        let mut bytes = Vec::new();
        let first = self.capture.next(&mut self.buffer).await?;
        let mut frame = Some(first);
        while let Some(one) = frame {
            record(&mut bytes, one, &self.buffer);
            // Frames that came meanwhile travel in the same message.
            frame =
                if bytes.len() < CHUNK { self.capture.next_now(&mut self.buffer)? } else { None };
        }
        Ok(bytes)
    }
}

fn instruction(BpfInstruction { op, jt, jf, k }: &BpfInstruction) -> Option<Instruction> {
    let jump = |by: u32| u8::try_from(by).ok();
    Some(Instruction { code: u16::try_from(*op).ok()?, jt: jump(*jt)?, jf: jump(*jf)?, k: *k })
}

/// `LINKTYPE_*` for `ARPHRD_*`: what frames on such a link begin with.
fn link_type(hardware: u16) -> Option<u32> {
    const ETHERNET: u32 = 1;
    const RAW_IP: u32 = 101;
    match hardware {
        arphrd::ETHER | arphrd::LOOPBACK => Some(ETHERNET),
        arphrd::PPP
        | arphrd::TUNNEL
        | arphrd::TUNNEL6
        | arphrd::SIT
        | arphrd::IPGRE
        | arphrd::NONE => Some(RAW_IP),
        _ => None,
    }
}

/// `ARPHRD_*` of `linux/if_arp.h`.
mod arphrd {
    pub(super) const ETHER: u16 = 1;
    pub(super) const PPP: u16 = 512;
    pub(super) const TUNNEL: u16 = 768;
    pub(super) const TUNNEL6: u16 = 769;
    pub(super) const LOOPBACK: u16 = 772;
    pub(super) const SIT: u16 = 776;
    pub(super) const IPGRE: u16 = 778;
    pub(super) const NONE: u16 = 0xfffe;
}

fn file_header(snap: u32, link_type: u32) -> Vec<u8> {
    const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
    const VERSION: [u8; 4] = [2, 0, 4, 0];
    let mut bytes = MAGIC_MICROSECONDS.to_le_bytes().to_vec();
    bytes.extend(VERSION);
    // Zone and accuracy are 0 in all files.
    for field in [0, 0, snap, link_type] {
        bytes.extend(field.to_le_bytes());
    }
    bytes
}

fn record(bytes: &mut Vec<u8>, frame: Frame, buffer: &[u8]) {
    // Seconds are 32 bits in this format, lengths are far below.
    let field = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    let kept = &buffer[..frame.captured];
    bytes.reserve(RECORD_HEADER + kept.len());
    bytes.extend(field(frame.at.as_secs()));
    bytes.extend(frame.at.subsec_micros().to_le_bytes());
    bytes.extend(field(kept.len() as u64));
    bytes.extend(field(frame.length as u64));
    bytes.extend(kept);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn word(bytes: &[u8], at: usize) -> usize {
        let word = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        usize::try_from(word).unwrap()
    }

    #[tokio::test]
    async fn frames_on_loopback_become_records() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        // UDP to our port: whatever else happens on loopback stays out.
        let step = |op, jt, jf, k| BpfInstruction { op, jt, jf, k };
        let filter = vec![
            step(0x30, 0, 0, 23),
            step(0x15, 0, 3, 17),
            step(0x28, 0, 0, 36),
            step(0x15, 0, 1, to.port().into()),
            step(0x06, 0, 0, u32::MAX),
            step(0x06, 0, 0, 0),
        ];
        let request = PacketCaptureRequest {
            interface: "lo".to_owned(),
            snap_len: 60,
            bpf_filter: filter,
            promiscuous: true,
        };
        let mut pcap = match Pcap::open(&request) {
            Err(status) if status.message().contains("EPERM") => {
                println!("skipped: no CAP_NET_RAW");
                return;
            }
            pcap => pcap.unwrap(),
        };
        let header = pcap.next().await.unwrap();
        assert_eq!((header.len(), word(&header, 16), word(&header, 20)), (24, 60, 1));
        socket.send_to(&[b'x'; 100], to).unwrap();
        let mut bytes = Vec::new();
        // On loopback each frame is seen going out and coming in.
        while bytes.len() < 2 * (16 + 60) {
            bytes.extend(pcap.next().await.unwrap());
        }
        assert_eq!((bytes.len(), word(&bytes, 8), word(&bytes, 12)), (2 * 76, 60, 142));
        assert!(word(&bytes, 0) > 1_600_000_000);
        assert!(bytes[16 + 42..76].iter().all(|byte| *byte == b'x'));
    }

    #[tokio::test]
    async fn what_cannot_be_captured_says_why() {
        let open = |interface: &str, op| {
            let bpf_filter = vec![BpfInstruction { op, jt: 0, jf: 0, k: 0 }];
            let interface = interface.to_owned();
            let request =
                PacketCaptureRequest { interface, bpf_filter, ..PacketCaptureRequest::default() };
            Pcap::open(&request).map(drop).unwrap_err()
        };
        assert_eq!(open("no-such", 6).code(), tonic::Code::NotFound);
        assert_eq!(open("lo", 1 << 16).code(), tonic::Code::InvalidArgument);
        let unsound = open("lo", 0xffff);
        assert!(
            unsound.code() == tonic::Code::InvalidArgument || unsound.message().contains("EPERM"),
            "{unsound}"
        );
    }

    #[test]
    fn links_that_carry_bare_packets_are_told_from_ethernet() {
        for (hardware, expected) in [(1, Some(1)), (772, Some(1)), (0xfffe, Some(101)), (24, None)]
        {
            assert_eq!(link_type(hardware), expected);
        }
    }
}
