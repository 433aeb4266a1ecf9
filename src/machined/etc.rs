//! Files of `/etc` that differ from boot to boot: kept in `/system/etc`, bind-mounted over the empty
//! ones of the read-only root. networkd writes the first two in place.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use orlop_rt::version;

use crate::Error;
use crate::mounts::bind_file;
use crate::services::NETWORKD_UID;

/// Makes and mounts them.
pub(crate) fn create() -> Result<(), Error> {
    let hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
    let files = [
        ("resolv.conf", String::new(), Some(NETWORKD_UID)),
        ("hosts", hosts.to_owned(), Some(NETWORKD_UID)),
        ("os-release", os_release(), None),
    ];
    for (name, text, owner) in files {
        let path = Path::new("/system/etc").join(name);
        fs::write(&path, text).map_err(|source| Error::file("write", &path, source))?;
        if owner.is_some() {
            chown(&path, owner, owner).map_err(|source| Error::file("hand over", &path, source))?;
        }
        bind_file(&path, &Path::new("/etc").join(name))?;
    }
    Ok(())
}

/// `os-release(5)`.
fn os_release() -> String {
    let tag = version::TAG;
    format!("NAME=\"Orlop\"\nID=orlop\nVERSION_ID={tag}\nPRETTY_NAME=\"Orlop ({tag})\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_names_us_and_the_version() {
        let text = os_release();
        assert!(text.contains("ID=orlop\n"));
        assert!(text.contains(&format!("VERSION_ID={}\n", version::TAG)));
    }
}
