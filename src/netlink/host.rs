//! The names of the node, `uname(2)`.

use std::io;

/// Sets the kernel's host name (at most 64 bytes). Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// When the kernel refuses.
pub fn set_name(name: &str) -> io::Result<()> {
    Ok(nix::unistd::sethostname(name)?)
}

/// Sets the kernel's domain name (at most 64 bytes). Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// When the kernel refuses.
pub fn set_domain(name: &str) -> io::Result<()> {
    // SAFETY: the pointer is valid for `name.len()` bytes during the call, and the kernel only reads.
    let result = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    Ok(nix::errno::Errno::result(result).map(drop)?)
}
