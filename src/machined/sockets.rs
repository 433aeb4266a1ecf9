//! The kernel's tables of sockets, `/proc/net/{tcp,udp,udplite,raw}{,6}` (`proc_net_tcp.rst`).
//!
//! [`parse`] is pure and takes any bytes: a line it cannot read counts as missing. The kernel writes an
//! address as 32-bit words in its own byte order, so a table must be read on the machine it is from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use orlop_proto::machine::ConnectRecord;
use orlop_proto::machine::connect_record::{State, TimerActive};

/// One line of the table of `protocol` (`tcp6`).
#[must_use]
pub fn parse(protocol: &str, line: &str) -> Option<ConnectRecord> {
    let mut columns = line.split_ascii_whitespace();
    // The first is a number of the line, or the heading.
    columns.next()?.strip_suffix(':')?;
    let (local, localport) = endpoint(columns.next()?)?;
    let (remote, remoteport) = endpoint(columns.next()?)?;
    let state = i32::try_from(hex(columns.next()?)?).ok()?;
    let (txqueue, rxqueue) = columns.next()?.split_once(':')?;
    let (timer, timerwhen) = columns.next()?.split_once(':')?;
    let timer = i32::try_from(hex(timer)?).ok()?;
    let record = ConnectRecord {
        l4proto: protocol.to_owned(),
        localip: local.to_string(),
        localport,
        remoteip: remote.to_string(),
        remoteport,
        // A state of a later kernel is reserved here.
        state: State::try_from(state).unwrap_or(State::Reserved).into(),
        txqueue: hex(txqueue)?,
        rxqueue: hex(rxqueue)?,
        tr: TimerActive::try_from(timer).unwrap_or(TimerActive::Off).into(),
        timerwhen: hex(timerwhen)?,
        retrnsmt: hex(columns.next()?)?,
        uid: columns.next()?.parse().ok()?,
        timeout: columns.next()?.parse().ok()?,
        inode: columns.next()?.parse().ok()?,
        r#ref: columns.next()?.parse().ok()?,
        pointer: hex(columns.next()?)?,
        process: None,
        netns: String::new(),
    };
    Some(record)
}

/// `0100007F:0050` or the same with four words before the colon.
fn endpoint(text: &str) -> Option<(IpAddr, u32)> {
    let (address, port) = text.split_once(':')?;
    let word =
        |at: usize| Some(u32::try_from(hex(address.get(at * 8..at * 8 + 8)?)?).ok()?.to_ne_bytes());
    let address = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some((address, u32::try_from(hex(port)?).ok()?))
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// Whether the socket has an other end, in the sense of `netstat`.
pub(crate) fn is_connected(record: &ConnectRecord) -> bool {
    record.remoteport != 0
        || record.remoteip.parse::<IpAddr>().is_ok_and(|address| !address.is_unspecified())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// As a little-endian kernel writes them.
    #[cfg(target_endian = "little")]
    #[test]
    fn lines_of_the_kernel_are_read() {
        let listening = parse(
            "tcp",
            "   1: 0100007F:C350 00000000:0000 0A 00000000:00000007 00:00000000 00000000    50        0 4711 1 0000000000000000 100 0 0 10 0",
        )
        .unwrap();
        assert_eq!((&*listening.localip, listening.localport), ("127.0.0.1", 50000));
        assert_eq!((listening.state(), listening.rxqueue), (State::Listen, 7));
        assert_eq!((listening.uid, listening.inode, listening.r#ref), (50, 4711, 1));
        assert!(!is_connected(&listening));
        let connected = parse(
            "tcp6",
            "  12: B80D0120000000000000000002000000:0050 0000000000000000FFFF00000200000A:D431 01 00000010:00000000 02:00000AF3 00000003     0        0 99 2 ffff8880 20 4 30 10 -1",
        )
        .unwrap();
        assert_eq!((&*connected.localip, &*connected.remoteip), ("2001:db8::2", "::ffff:10.0.0.2"));
        assert_eq!((connected.remoteport, connected.txqueue), (54321, 16));
        assert_eq!((connected.tr(), connected.timerwhen), (TimerActive::Keepalive, 0xaf3));
        assert_eq!((connected.retrnsmt, connected.pointer), (3, 0xffff_8880));
        assert!(is_connected(&connected));
    }

    #[test]
    fn what_is_no_line_of_a_socket_is_passed_over() {
        for line in [
            "",
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
            "1: 0100007F:C350 00000000:0000 0A 00000000:00000007 00:00000000 00000000 50 0 4711 1",
            "1: 0100007:C350 00000000:0000 0A 0:7 00:0 0 50 0 4711 1 0",
            "1: é100007:C350 00000000:0000 0A 0:7 00:0 0 50 0 4711 1 0",
        ] {
            assert_eq!(parse("tcp", line), None, "{line}");
        }
        let later = parse("tcp", "1: 00000000:0 00000000:0 FF 0:0 77:0 0 0 0 0 0 0").unwrap();
        assert_eq!((later.state(), later.tr()), (State::Reserved, TimerActive::Off));
    }
}
