//! IPv4 with UDP as bytes: what a socket below the kernel's own UDP must build and take apart.
//!
//! [`parse`] reads bytes from the wire: it never panics, and takes only what is whole, unfragmented
//! and sound by its checksums (RFC 791 §3.1, RFC 768).

use std::net::{Ipv4Addr, SocketAddrV4};

/// A UDP datagram with where it comes from and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Address and port of the sender.
    pub source: SocketAddrV4,
    /// Address and port of the receiver.
    pub destination: SocketAddrV4,
    /// What UDP carries, at most [`MAX_PAYLOAD`] bytes.
    pub payload: &'a [u8],
}

/// Whether to look at the UDP checksum.
///
/// A datagram from a neighbour on the same machine comes without one when the sender leaves it to a
/// network card that never sees it; the kernel says so with `TP_STATUS_CSUMNOTREADY` (`packet(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpChecksum {
    /// It must be right, or zero ("none").
    Verify,
    /// It has not been computed yet.
    NotReady,
}

/// What fits an IPv4 packet beside both headers.
pub const MAX_PAYLOAD: usize = u16::MAX as usize - IP_HEADER - UDP_HEADER;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const PROTOCOL_UDP: u8 = 17;
const DO_NOT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;

/// The packet, from the first byte of the IPv4 header on. `None` when the payload is too long.
#[must_use]
pub fn build(datagram: &Datagram<'_>) -> Option<Vec<u8>> {
    let udp_length = u16::try_from(UDP_HEADER + datagram.payload.len()).ok()?;
    let length = u16::try_from(IP_HEADER + usize::from(udp_length)).ok()?;
    let (source, destination) = (datagram.source, datagram.destination);

    let mut packet = Vec::with_capacity(length.into());
    packet.extend([0x45, 0]);
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(DO_NOT_FRAGMENT.to_be_bytes());
    packet.extend([64, PROTOCOL_UDP, 0, 0]);
    packet.extend(source.ip().octets());
    packet.extend(destination.ip().octets());
    let header_checksum = !sum(0, &packet);
    packet[10..12].copy_from_slice(&header_checksum.to_be_bytes());

    packet.extend(source.port().to_be_bytes());
    packet.extend(destination.port().to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(datagram.payload);
    let checksum = !udp_sum(*source.ip(), *destination.ip(), &packet[IP_HEADER..]);
    // Zero means "no checksum"; its twin in one's complement stands for it.
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    packet[IP_HEADER + 6..IP_HEADER + 8].copy_from_slice(&checksum.to_be_bytes());
    Some(packet)
}

/// Takes a packet apart, from the first byte of the IPv4 header on; what follows it is ignored.
/// `None` when it is not a whole and sound UDP datagram.
#[must_use]
pub fn parse(packet: &[u8], checksum: UdpChecksum) -> Option<Datagram<'_>> {
    let header_length = match packet.first()? {
        first if first >> 4 == 4 => usize::from(first & 0xf) * 4,
        _ => return None,
    };
    let packet = packet.get(..usize::from(u16_at(packet, 2)?))?;
    let (header, udp) = packet.split_at_checked(header_length)?;
    let fragment = u16_at(header, 6)? & MORE_FRAGMENTS_OR_OFFSET != 0;
    if header_length < IP_HEADER
        || fragment
        || header[9] != PROTOCOL_UDP
        || sum(0, header) != 0xffff
    {
        return None;
    }
    let (source, destination) = (address_at(header, 12)?, address_at(header, 16)?);
    let udp = udp.get(..usize::from(u16_at(udp, 4)?))?;
    let payload = udp.get(UDP_HEADER..)?;
    let has_checksum = checksum == UdpChecksum::Verify && u16_at(udp, 6)? != 0;
    if has_checksum && udp_sum(source, destination, udp) != 0xffff {
        return None;
    }
    Some(Datagram {
        source: SocketAddrV4::new(source, u16_at(udp, 0)?),
        destination: SocketAddrV4::new(destination, u16_at(udp, 2)?),
        payload,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn address_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?))
}

/// One's complement sum over the pseudo header and the datagram (RFC 768).
fn udp_sum(source: Ipv4Addr, destination: Ipv4Addr, udp: &[u8]) -> u16 {
    let length = udp.len() as u64;
    let pseudo = sum(u64::from(PROTOCOL_UDP) + length, &source.octets());
    let pseudo = sum(pseudo.into(), &destination.octets());
    sum(pseudo.into(), udp)
}

/// One's complement sum of 16-bit words (RFC 1071), folded; an odd last byte is padded with zero.
#[expect(clippy::cast_possible_truncation, reason = "folded below 2^16 by the loop")]
fn sum(start: u64, bytes: &[u8]) -> u16 {
    let mut total = start;
    for pair in bytes.chunks(2) {
        total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn datagram(payload: &[u8]) -> Datagram<'_> {
        Datagram {
            source: "10.0.2.2:67".parse().unwrap(),
            destination: "10.0.2.15:68".parse().unwrap(),
            payload,
        }
    }

    #[test]
    fn sums_as_the_example_of_rfc_1071() {
        assert_eq!(sum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn the_header_is_the_well_known_one() {
        let packet = build(&Datagram {
            source: "192.168.0.1:68".parse().unwrap(),
            destination: "192.168.0.199:67".parse().unwrap(),
            payload: &[0; 87],
        })
        .unwrap();
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(packet[..IP_HEADER], header);
    }

    #[test]
    fn one_flipped_bit_is_noticed() {
        let packet = build(&datagram(b"payload")).unwrap();
        for bit in 0..packet.len() * 8 {
            let mut broken = packet.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&broken, UdpChecksum::Verify), None, "bit {bit}");
        }
    }

    #[test]
    fn a_checksum_left_to_the_card_is_not_looked_at() {
        let mut packet = build(&datagram(b"payload")).unwrap();
        packet[IP_HEADER + 6] ^= 0x55;
        assert_eq!(parse(&packet, UdpChecksum::Verify), None);
        assert_eq!(parse(&packet, UdpChecksum::NotReady), Some(datagram(b"payload")));
    }

    #[test]
    fn fragments_are_refused() {
        let mut packet = build(&datagram(b"payload")).unwrap();
        packet[6] = 0x20;
        packet[10..12].fill(0);
        let checksum = !sum(0, &packet[..IP_HEADER]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(parse(&packet, UdpChecksum::Verify), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes, UdpChecksum::Verify);
            let _ = parse(&bytes, UdpChecksum::NotReady);
        }

        #[test]
        fn never_panics_behind_a_sound_start(tail: Vec<u8>, length: u16) {
            let mut bytes = vec![0x45, 0];
            bytes.extend(length.to_be_bytes());
            bytes.extend(tail);
            let _ = parse(&bytes, UdpChecksum::NotReady);
        }

        #[test]
        fn parse_gives_back_what_build_took(payload: Vec<u8>, trailer: Vec<u8>) {
            let mut packet = build(&datagram(&payload)).unwrap();
            // Short Ethernet frames are padded.
            packet.extend(trailer);
            prop_assert_eq!(parse(&packet, UdpChecksum::Verify), Some(datagram(&payload)));
        }
    }
}
