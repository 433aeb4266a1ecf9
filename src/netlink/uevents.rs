//! The kernel's notices of devices, `NETLINK_KOBJECT_UEVENT` (`netlink(7)`).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType,
    UnixCredentials, bind, recvmsg, setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Receives what the kernel says of devices of this network namespace, and of all that belong to
/// none. What other processes send to the same group is thrown away.
#[derive(Debug)]
pub struct Uevents {
    socket: AsyncFd<OwnedFd>,
}

/// One thing the socket has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A uevent as the kernel wrote it: `ACTION@DEVPATH`, then `KEY=VALUE`s, each ended by a zero.
    Event(Vec<u8>),
    /// The buffer was full, and the kernel dropped at least one event.
    Overrun,
}

/// Group 1 is the kernel's; 2 is where systemd-udevd repeats what it has dealt with.
const KERNEL_GROUP: u32 = 1;
/// As systemd-udevd: room for some 30,000 events in the kernel, allocated only while they wait.
const BUFFER_BYTES: usize = 128 << 20;
/// An event is at most 2 KiB (`UEVENT_BUFFER_SIZE`) behind a device path.
const EVENT_BYTES: usize = 8192;

impl Uevents {
    /// Subscribes. Every event from here on is received, or an overrun is. The large buffer needs
    /// `CAP_NET_ADMIN`; without it there are overruns sooner (`net.core.rmem_max`).
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn subscribe() -> io::Result<Self> {
        Self::with_buffer(BUFFER_BYTES)
    }

    /// [`Uevents::subscribe`] with a buffer of about so many bytes.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn with_buffer(bytes: usize) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        match setsockopt(&socket, sockopt::RcvBufForce, &bytes) {
            Err(Errno::EPERM) => setsockopt(&socket, sockopt::RcvBuf, &bytes)?,
            result => result?,
        }
        setsockopt(&socket, sockopt::PassCred, &true)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self { socket: crate::register(socket, Interest::READABLE)? })
    }

    /// Waits for the next notice. Cancel-safe.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&self) -> io::Result<Notice> {
        loop {
            let mut ready = self.socket.readable().await?;
            match self.try_next()? {
                Some(notice) => return Ok(notice),
                None => ready.clear_ready(),
            }
        }
    }

    /// The next notice if there is one. What the kernel sent before the call is there.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn try_next(&self) -> io::Result<Option<Notice>> {
        loop {
            match receive(&self.socket) {
                Ok(Some(event)) => return Ok(Some(Notice::Event(event))),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Ok(Some(Notice::Overrun)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// `None`: a message that is not the kernel's, or too long to be one.
fn receive(socket: &AsyncFd<OwnedFd>) -> nix::Result<Option<Vec<u8>>> {
    let mut bytes = [0; EVENT_BYTES];
    let mut control = nix::cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<NetlinkAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    // Nobody but the kernel sends from port 0, or as process 0.
    let from_kernel = message
        .address
        .is_some_and(|address| address.pid() == 0 && address.groups() == KERNEL_GROUP)
        && message.cmsgs()?.any(|part| {
            matches!(part, ControlMessageOwned::ScmCredentials(sender)
                if sender.pid() == 0 && sender.uid() == 0)
        });
    let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
    let length = message.bytes;
    Ok((from_kernel && whole).then(|| bytes[..length].to_vec()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::IoSlice;

    use nix::sys::socket::sendmsg;

    use super::*;

    const LOOPBACK: &str = "/sys/class/net/lo/uevent";

    /// Makes the kernel say `change` of the loopback link, marked with `mark`.
    fn trigger(mark: &str) -> io::Result<()> {
        fs::write(LOOPBACK, format!("change {mark}"))
    }

    /// Marks have the form of UUIDs. Others may trigger events at the same time: ours are told by the
    /// name of the test and the process.
    fn mark(test: u16, number: usize) -> String {
        format!("6f726c6f-7000-4000-{test:04x}-{:04x}{number:08x}", std::process::id() & 0xffff)
    }

    fn contains(event: &[u8], text: &str) -> bool {
        event.windows(text.len()).any(|window| window == text.as_bytes())
    }

    #[tokio::test]
    async fn a_burst_of_ten_thousand_events_is_received_whole() {
        let uevents = Uevents::subscribe().expect("anybody may open the socket");
        if let Err(error) = trigger(&mark(1, 0)) {
            return println!("skipped: only root may write to {LOOPBACK}: {error}");
        }
        // Nobody reads meanwhile: all of them wait in the kernel.
        for number in 1..10_000 {
            trigger(&mark(1, number)).expect("it went before");
        }
        let ours = mark(1, 0)[..28].to_owned();
        for next in 0..10_000 {
            let event = loop {
                match uevents.next().await.expect("the socket works") {
                    Notice::Event(event) if contains(&event, &ours) => break event,
                    Notice::Event(_) => {}
                    Notice::Overrun => panic!("overrun after {next} events"),
                }
            };
            assert!(contains(&event, &mark(1, next)), "event {next} is lost or out of order");
        }
    }

    #[tokio::test]
    async fn a_full_buffer_is_told_as_an_overrun() {
        let uevents = Uevents::with_buffer(4096).expect("anybody may open the socket");
        if let Err(error) = trigger(&mark(2, 0)) {
            return println!("skipped: only root may write to {LOOPBACK}: {error}");
        }
        (1..200).for_each(|number| trigger(&mark(2, number)).expect("it went before"));
        while uevents.next().await.expect("the socket works") != Notice::Overrun {}
    }

    #[tokio::test]
    async fn what_a_process_sends_is_not_believed() {
        let uevents = Uevents::subscribe().expect("anybody may open the socket");
        let sender = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        )
        .expect("anybody may open the socket");
        let forged = b"add@/devices/forged\0ACTION=add\0DEVPATH=/devices/forged\0";
        let sent = sendmsg(
            sender.as_raw_fd(),
            &[IoSlice::new(forged)],
            &[],
            MsgFlags::empty(),
            Some(&NetlinkAddr::new(0, KERNEL_GROUP)),
        );
        if let Err(errno) = sent {
            return println!("skipped: only root may send to the group: {errno}");
        }
        while let Some(notice) = uevents.try_next().expect("the socket works") {
            assert!(!matches!(notice, Notice::Event(event) if contains(&event, "forged")));
        }
    }
}
