//! UDP on a link without an address, `packet(7)`.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Mac;
use crate::datagram::UdpChecksum;

/// Sends IPv4 packets to everyone on a link and receives those for one UDP port, whatever addresses
/// the link has. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct PacketSocket {
    socket: AsyncFd<OwnedFd>,
    index: u32,
    ethertype: u16,
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;

impl PacketSocket {
    /// Opens it on link `index`. The kernel passes on nothing but IPv4 packets for UDP `port`, so
    /// that the traffic of a busy node does not wake us.
    ///
    /// # Errors
    /// When the kernel refuses: no `CAP_NET_RAW`, no such link.
    pub fn open(index: u32, port: u16) -> io::Result<Self> {
        Self::with_filter(index, ETHERTYPE_IPV4, &mut filter(port))
    }

    /// The same for ARP messages, as `ArpSocket` has them: those that claim `address` or probe for it.
    pub(crate) fn open_arp(index: u32, address: Ipv4Addr) -> io::Result<Self> {
        Self::with_filter(index, ETHERTYPE_ARP, &mut arp_filter(address))
    }

    fn with_filter(
        index: u32,
        ethertype: u16,
        filter: &mut [libc::sock_filter],
    ) -> io::Result<Self> {
        // Protocol 0 receives nothing until the filter is in place and bind names the protocol.
        // SAFETY: socket takes no pointers.
        let raw = Errno::result(unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        })?;
        // SAFETY: `raw` was opened just above, and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
        let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
        set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1i32)?;
        let address = link_address(index, ethertype, Mac::BROADCAST)?;
        // SAFETY: `address` is a valid sockaddr_ll for the length of the call, and its size is passed.
        Errno::result(unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH)
        })?;
        Ok(Self {
            socket: crate::register(socket, Interest::READABLE | Interest::WRITABLE)?,
            index,
            ethertype,
        })
    }

    /// Sends a packet to every station on the link.
    ///
    /// # Errors
    /// When the kernel refuses; `ENETDOWN` while the link is down.
    pub async fn broadcast(&self, packet: &[u8]) -> io::Result<()> {
        let address = link_address(self.index, self.ethertype, Mac::BROADCAST)?;
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                // SAFETY: the buffer is valid for `packet.len()` bytes and the address for its size,
                // both during the call only.
                Errno::result(unsafe {
                    libc::sendto(
                        socket.as_raw_fd(),
                        packet.as_ptr().cast(),
                        packet.len(),
                        libc::MSG_NOSIGNAL,
                        (&raw const address).cast(),
                        ADDRESS_LENGTH,
                    )
                })
                .map(drop)
                .map_err(io::Error::from)
            })
            .await
    }

    /// Receives a packet from the first byte of its IPv4 header on: how many bytes of `buffer` it
    /// fills (a longer one is cut off), and whether its UDP checksum means anything. Cancel-safe.
    ///
    /// # Errors
    /// When the socket fails; `ENETDOWN` once when the link goes down.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, UdpChecksum)> {
        self.socket.async_io(Interest::READABLE, |socket| receive(socket, buffer)).await
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, UdpChecksum)> {
    /// Room for one control message of auxiliary data, aligned as `cmsghdr` must be.
    #[repr(C, align(8))]
    struct Control([u8; 64]);

    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is a plain C struct for which all zeros is a valid value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: `message` points to one iovec over `buffer` and to `control`, all alive and writable
    // for the length of the call, with their true lengths.
    let count = Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) })?;

    let mut checksum = UdpChecksum::Verify;
    // SAFETY: `message` was filled by recvmsg, so its control pointer and length describe what the
    // kernel wrote into `control`, which is still alive; null when there is no header.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole, aligned header in `control`.
        let (level, kind, length) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
        // SAFETY: CMSG_LEN only computes.
        let needed = unsafe { libc::CMSG_LEN(AUXDATA_LENGTH) } as usize;
        if level == libc::SOL_PACKET && kind == libc::PACKET_AUXDATA && length >= needed {
            // SAFETY: the header says that a whole tpacket_auxdata follows; it may be unaligned.
            let data: libc::tpacket_auxdata =
                unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            if data.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0 {
                checksum = UdpChecksum::NotReady;
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; `header` came from it.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok((usize::try_from(count).unwrap_or_default(), checksum))
}

/// "UDP to `port`", in the classic BPF of
/// `Documentation/networking/filter.rst`. Offset 0 is the first byte of the IPv4 header.
fn filter(port: u16) -> [libc::sock_filter; 7] {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const LOAD_HALF_INDEXED: u16 = 0x48; // BPF_LD | BPF_H | BPF_IND
    const LOAD_HEADER_LENGTH: u16 = 0xb1; // BPF_LDX | BPF_B | BPF_MSH
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        step(LOAD_BYTE, 0, 0, 9),
        step(JUMP_EQUAL, 0, 4, 17),
        step(LOAD_HEADER_LENGTH, 0, 0, 0),
        step(LOAD_HALF_INDEXED, 0, 0, 2),
        step(JUMP_EQUAL, 0, 1, port.into()),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}

/// "Claims `address`, or claims nothing and asks for it". Offset 0 is the first byte of the message.
fn arp_filter(address: Ipv4Addr) -> [libc::sock_filter; 7] {
    const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        step(LOAD_WORD, 0, 0, 14),
        step(JUMP_EQUAL, 3, 0, address.to_bits()),
        step(JUMP_EQUAL, 0, 3, 0),
        step(LOAD_WORD, 0, 0, 24),
        step(JUMP_EQUAL, 0, 1, address.to_bits()),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}

#[expect(clippy::cast_possible_truncation, reason = "sizes of small structs, known here")]
const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
#[expect(clippy::cast_possible_truncation, reason = "sizes of small structs, known here")]
const AUXDATA_LENGTH: u32 = size_of::<libc::tpacket_auxdata>() as u32;

fn link_address(index: u32, ethertype: u16, mac: Mac) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: sockaddr_ll is a plain C struct for which all zeros is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&mac.0);
    Ok(address)
}

pub(crate) fn set_option<T>(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `value` is valid for `length` bytes during the call, and callers pass the type that
    // packet(7) and socket(7) name for the option.
    Errno::result(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), length)
    })?;
    Ok(())
}
