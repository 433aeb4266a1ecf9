//! What passes a link, `packet(7)`.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Receives a copy of every frame that a link sends or receives. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct Capture {
    socket: AsyncFd<OwnedFd>,
    hardware: u16,
}

/// An instruction of classic BPF, `struct sock_filter` (`Documentation/networking/filter.rst`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// What is done.
    pub code: u16,
    /// Instructions to skip when a jump is taken.
    pub jt: u8,
    /// And when not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// What else the link takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promiscuous {
    /// Also frames for others.
    Yes,
    /// Only its own.
    No,
}

/// A frame that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of it in the buffer.
    pub captured: usize,
    /// Bytes that it had.
    pub length: usize,
    /// When the kernel had it, since 1970.
    pub at: Duration,
}

impl Capture {
    /// Begins on link `index`. Of a filter, the kernel passes on what it returns more than 0 for.
    ///
    /// # Errors
    /// When the kernel refuses: no `CAP_NET_RAW`, no such link, no sound filter (`EINVAL`).
    pub fn open(index: u32, promiscuous: Promiscuous, filter: &[Instruction]) -> io::Result<Self> {
        // Protocol 0 receives nothing until the filter is in place and bind names the protocol.
        // SAFETY: socket takes no pointers.
        let raw = Errno::result(unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        })?;
        // SAFETY: `raw` was opened just above, and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        if !filter.is_empty() {
            let step = |&Instruction { code, jt, jf, k }: &Instruction| libc::sock_filter {
                code,
                jt,
                jf,
                k,
            };
            let mut steps: Vec<_> = filter.iter().map(step).collect();
            let len = u16::try_from(steps.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
            crate::packet::set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        }
        crate::packet::set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1i32)?;
        let number = i32::try_from(index).map_err(io::Error::other)?;
        if promiscuous == Promiscuous::Yes {
            // SAFETY: packet_mreq is a plain C struct for which all zeros is a valid value.
            let mut wanted: libc::packet_mreq = unsafe { zeroed() };
            wanted.mr_ifindex = number;
            wanted.mr_type =
                libc::c_ushort::try_from(libc::PACKET_MR_PROMISC).map_err(io::Error::other)?;
            // The kernel ends it with the socket.
            crate::packet::set_option(
                &socket,
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                &wanted,
            )?;
        }
        // SAFETY: sockaddr_ll is a plain C struct for which all zeros is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family =
            libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
        address.sll_protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
        address.sll_ifindex = number;
        let mut length =
            libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
        // SAFETY: `address` is a valid sockaddr_ll for the length of the call, and its size is passed.
        Errno::result(unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
        })?;
        // SAFETY: `address` and `length` are valid and writable for the call, and `length` is the size
        // of `address`.
        Errno::result(unsafe {
            libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length)
        })?;
        Ok(Self {
            socket: crate::register(socket, Interest::READABLE)?,
            hardware: address.sll_hatype,
        })
    }

    /// The kind of link, `ARPHRD_*` of `netdevice(7)`: 1 is Ethernet.
    #[must_use]
    pub fn hardware(&self) -> u16 {
        self.hardware
    }

    /// Waits for the next frame; `buffer` takes its first bytes. Cancel-safe.
    ///
    /// # Errors
    /// When the socket fails; `ENETDOWN` once when the link goes down.
    pub async fn next(&self, buffer: &mut [u8]) -> io::Result<Frame> {
        self.socket.async_io(Interest::READABLE, |socket| receive(socket, buffer)).await
    }

    /// The next frame, if it is there already.
    ///
    /// # Errors
    /// As [`Capture::next`].
    pub fn next_now(&self, buffer: &mut [u8]) -> io::Result<Option<Frame>> {
        match receive(self.socket.get_ref(), buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            frame => frame.map(Some),
        }
    }
}

/// What is sent through it, goes out on the link as it is.
impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Frame> {
    /// Room for one control message with the time, aligned as `cmsghdr` must be.
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
    // With MSG_TRUNC the true length of the frame is returned.
    // SAFETY: `message` points to one iovec over `buffer` and to `control`, all alive and writable
    // for the length of the call, with their true lengths.
    let length = Errno::result(unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_TRUNC)
    })?;
    let length = usize::try_from(length).unwrap_or_default();

    let mut at = Duration::ZERO;
    // SAFETY: `message` was filled by recvmsg, so its control pointer and length describe what the
    // kernel wrote into `control`, which is still alive; null when there is no header.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole, aligned header in `control`.
        let (level, kind, held) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
        // SAFETY: CMSG_LEN only computes.
        let needed = unsafe { libc::CMSG_LEN(TIMESPEC_LENGTH) } as usize;
        if level == libc::SOL_SOCKET && kind == libc::SCM_TIMESTAMPNS && held >= needed {
            // SAFETY: the header says that a whole timespec follows; it may be unaligned.
            let time: libc::timespec =
                unsafe { libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned() };
            at = Duration::new(
                u64::try_from(time.tv_sec).unwrap_or_default(),
                u32::try_from(time.tv_nsec).unwrap_or_default(),
            );
        }
        // SAFETY: as for CMSG_FIRSTHDR; `header` came from it.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Frame { captured: length.min(buffer.len()), length, at })
}

#[expect(clippy::cast_possible_truncation, reason = "size of a small struct, known here")]
const TIMESPEC_LENGTH: u32 = size_of::<libc::timespec>() as u32;
