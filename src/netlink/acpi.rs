//! What ACPI has to say, such as that a button was pressed: the kernel's generic netlink family
//! `acpi_event` (`drivers/acpi/event.c`; `genetlink` in `Documentation/userspace-api/netlink`).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto,
    socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const FAMILY: &str = "acpi_event";
const GROUP: &str = "acpi_mc_group";

/// The header of every message: its length, its type, flags, a number, a port (`struct nlmsghdr`).
const HEADER_BYTES: usize = 16;
/// Behind it the command and a version (`struct genlmsghdr`).
const COMMAND_BYTES: usize = 4;
/// The type of an error, and of those to and from the controller of families (`GENL_ID_CTRL`).
const ERROR: u16 = 2;
const CONTROLLER: u16 = 16;
const REQUEST: u16 = 1;
/// `CTRL_CMD_*` and `CTRL_ATTR_*` of `<linux/genetlink.h>`.
const NEW_FAMILY: u8 = 1;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// The only command and the only attribute of the family.
const EVENT: u8 = 1;
const EVENT_ATTRIBUTE: u16 = 1;
/// More than a family or an event takes.
const MESSAGE_BYTES: usize = 8192;

/// Receives events of ACPI. They go to the first network namespace only.
#[derive(Debug)]
pub struct AcpiEvents {
    socket: AsyncFd<OwnedFd>,
    family: u16,
}

/// One event, `struct acpi_genl_event`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiEvent {
    /// What kind of device it is from: `button/power`.
    pub class: String,
    /// Which of them: `LNXPWRBN:00`.
    pub bus: String,
    /// What happened, in the numbers of the device.
    pub kind: u32,
    /// For buttons, how often.
    pub data: u32,
}

impl AcpiEvents {
    /// Subscribes; `None` where the kernel has no ACPI, or this is not the first network namespace.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn subscribe() -> io::Result<Option<Self>> {
        let Some(socket) = open()? else { return Ok(None) };
        let Some((family, groups)) = resolve(&socket, FAMILY)? else { return Ok(None) };
        let group = groups.iter().find(|(name, _)| name == GROUP);
        let Some((_, group)) = group else { return Ok(None) };
        crate::packet::set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)?;
        Ok(Some(Self { socket: crate::register(socket, Interest::READABLE)?, family }))
    }

    /// Waits for the next event. Some may be lost when nobody waits for long. Cancel-safe.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&self) -> io::Result<AcpiEvent> {
        loop {
            let mut ready = self.socket.readable().await?;
            match receive(&self.socket) {
                Ok(message) => {
                    if let Some(event) = event(&message, self.family) {
                        return Ok(event);
                    }
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // Some were lost; further ones come.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// `None`: the kernel has no generic netlink.
fn open() -> io::Result<Option<OwnedFd>> {
    let opened = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkGeneric,
    );
    let socket = match opened {
        Err(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT) => return Ok(None),
        result => result?,
    };
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(Some(socket))
}

/// A family's number, and its groups with theirs.
type Family = (u16, Vec<(String, u32)>);

/// Asks for a family; `None` when there is none of the name.
fn resolve(socket: &OwnedFd, name: &str) -> io::Result<Option<Family>> {
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &request(name), &kernel, MsgFlags::empty())?;
    // The controller answers before the request returns.
    let answer = receive(socket)?;
    match message(&answer) {
        Some((ERROR, body)) => match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
            Some(code) if code == -libc::ENOENT => Ok(None),
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
        Some((CONTROLLER, body)) => {
            family(body).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Asks the controller for a family by name.
fn request(name: &str) -> Vec<u8> {
    let mut attribute = name.as_bytes().to_vec();
    attribute.push(0);
    // Of names of families; the kernel takes 16 bytes at most.
    let attribute_bytes = u16::try_from(4 + attribute.len()).unwrap_or(u16::MAX);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    let length = HEADER_BYTES + COMMAND_BYTES + 4 + attribute.len();
    let mut bytes = u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    bytes.extend(CONTROLLER.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    // No number, no port: there is one request.
    bytes.extend([0; 8]);
    bytes.extend([GET_FAMILY, 1, 0, 0]);
    bytes.extend(attribute_bytes.to_ne_bytes());
    bytes.extend(FAMILY_NAME.to_ne_bytes());
    bytes.extend(attribute);
    bytes
}

/// A datagram of the kernel's; those of other processes are empty.
fn receive(socket: &impl std::os::fd::AsRawFd) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    let (length, sender) = recvfrom::<NetlinkAddr>(socket.as_raw_fd(), &mut bytes)?;
    let from_kernel = sender.is_some_and(|sender| sender.pid() == 0);
    bytes.truncate(if from_kernel { length } else { 0 });
    Ok(bytes)
}

/// The type and the body of the first message of a datagram.
fn message(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?);
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    Some((kind, bytes.get(HEADER_BYTES..usize::try_from(length).ok()?)?))
}

/// What the controller says of a family.
fn family(body: &[u8]) -> Option<Family> {
    let attributes = body.get(COMMAND_BYTES..).filter(|_| body.first() == Some(&NEW_FAMILY))?;
    let (mut id, mut groups) = (None, Vec::new());
    for (kind, value) in Attributes(attributes) {
        match kind {
            FAMILY_ID => id = value.first_chunk().map(|id| u16::from_ne_bytes(*id)),
            GROUPS => groups.extend(Attributes(value).filter_map(|(_, group)| self::group(group))),
            _ => {}
        }
    }
    Some((id?, groups))
}

fn group(attributes: &[u8]) -> Option<(String, u32)> {
    let of = |wanted| Attributes(attributes).find(|(kind, _)| *kind == wanted);
    let (_, name) = of(GROUP_NAME)?;
    let (_, id) = of(GROUP_ID)?;
    Some((text(name), u32::from_ne_bytes(*id.first_chunk()?)))
}

/// The event in a datagram of this family; `None` for anything else.
#[must_use]
pub fn event(bytes: &[u8], family: u16) -> Option<AcpiEvent> {
    let (kind, body) = message(bytes)?;
    if kind != family || body.first() != Some(&EVENT) {
        return None;
    }
    let mut attributes = Attributes(body.get(COMMAND_BYTES..)?);
    let (_, event) = attributes.find(|(kind, _)| *kind == EVENT_ATTRIBUTE)?;
    // Names of 20 and of 15 bytes, a byte for nothing, two numbers.
    let number = |at: usize| Some(u32::from_ne_bytes(*event.get(at..)?.first_chunk()?));
    Some(AcpiEvent {
        class: text(event.get(..20)?),
        bus: text(event.get(20..35)?),
        kind: number(36)?,
        data: number(40)?,
    })
}

/// Up to its first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Attributes one behind the other (`struct nlattr`): length, type, value, padded to 4 bytes. Ends
/// where one is not sound.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        /// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` are no part of the type.
        const TYPE: u16 = 0x3fff;
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE, value))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn datagram(kind: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + COMMAND_BYTES + attributes.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([command, 1, 0, 0]);
        bytes.extend(attributes);
        bytes
    }

    fn pressed() -> Vec<u8> {
        let mut event = b"button/power".to_vec();
        event.resize(20, 0);
        event.extend(b"LNXPWRBN:00");
        event.resize(36, 0);
        event.extend(0x80_u32.to_ne_bytes());
        event.extend(3_u32.to_ne_bytes());
        event
    }

    #[test]
    fn a_pressed_button_is_an_event_of_the_family_only() {
        let bytes = datagram(27, EVENT, &attribute(EVENT_ATTRIBUTE, &pressed()));
        let expected = AcpiEvent {
            class: "button/power".to_owned(),
            bus: "LNXPWRBN:00".to_owned(),
            kind: 0x80,
            data: 3,
        };
        assert_eq!(event(&bytes, 27), Some(expected));
        assert_eq!(event(&bytes, 28), None);
        for cut in 0..bytes.len() {
            assert_eq!(event(&bytes[..cut], 27), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_family_is_its_number_and_its_groups() {
        let one =
            [attribute(GROUP_NAME, b"acpi_mc_group\0"), attribute(GROUP_ID, &9_u32.to_ne_bytes())];
        let groups = [
            // Without a number it is none.
            attribute(1, &attribute(GROUP_NAME, b"other\0")),
            attribute(2 | 0x8000, &one.concat()),
        ];
        let attributes = [
            attribute(FAMILY_NAME, b"acpi_event\0"),
            attribute(FAMILY_ID, &27_u16.to_ne_bytes()),
            attribute(GROUPS, &groups.concat()),
        ];
        let bytes = datagram(CONTROLLER, NEW_FAMILY, &attributes.concat());
        let (_, body) = message(&bytes).unwrap();
        assert_eq!(family(body), Some((27, vec![("acpi_mc_group".to_owned(), 9)])));
        let without = datagram(CONTROLLER, NEW_FAMILY, &attribute(FAMILY_NAME, b"x\0"));
        assert_eq!(family(message(&without).unwrap().1), None);
    }

    /// The controller is a family itself, in every network namespace.
    #[test]
    fn the_kernel_knows_its_own_families() {
        let Some(socket) = open().unwrap() else {
            println!("skipped: no generic netlink here");
            return;
        };
        let (id, groups) = resolve(&socket, "nlctrl").unwrap().unwrap();
        assert_eq!(id, CONTROLLER);
        assert!(groups.iter().any(|(name, id)| name == "notify" && *id > 0), "{groups:?}");
        assert_eq!(resolve(&socket, "no_such_family").unwrap(), None);
    }

    #[tokio::test]
    async fn who_subscribes_waits_for_the_button() {
        let Some(events) = AcpiEvents::subscribe().unwrap() else {
            println!("skipped: no ACPI in this network namespace");
            return;
        };
        assert!(events.family > CONTROLLER);
    }
}
