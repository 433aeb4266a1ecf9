//! What keeps a node from booting, and what is done about it.

use std::io;
use std::path::{Path, PathBuf};

/// Where nodes run (spec §7.1), in both generations.
pub(crate) const PLATFORMS: [&str; 21] = [
    "akamai",
    "alibabacloud",
    "aws",
    "azure",
    "cloudstack",
    "container",
    "digital-ocean",
    "equinixMetal",
    "exoscale",
    "gcp",
    "hcloud",
    "metal",
    "nocloud",
    "opennebula",
    "openstack",
    "oracle",
    "packet",
    "scaleway",
    "upcloud",
    "vmware",
    "vultr",
];

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("mount {fstype} on {}", target.display())]
    Mount { fstype: &'static str, target: PathBuf, source: nix::Error },
    #[error("{operation}")]
    System { operation: &'static str, source: io::Error },
    #[error("the kernel command line lacks {}; add it in the boot loader", missing.join(" "))]
    KernelArguments { missing: Vec<String> },
    #[error(
        "unknown platform: {name:?}; write one of these after talos.platform=: {}",
        PLATFORMS.join(" ")
    )]
    UnknownPlatform { name: String },
    #[error(
        "there is no machine configuration; boot with talos.config=URL (http://, file:// or metal-iso)"
    )]
    NoConfiguration,
    #[error("the machine configuration cannot be used; correct it and reboot")]
    BadConfiguration,
    #[error("run the child that fetches the machine configuration")]
    Acquire { source: io::Error },
    #[error("the machine configuration's authority")]
    Pki(#[from] orlop_pki::Error),
    #[error("get a certificate for apid: {0}")]
    Trust(String),
    #[error("etcd: {0}")]
    Etcd(String),
    #[error("the API server: {0}")]
    Apiserver(String),
    #[error("{}", no_installer(boot.as_deref()))]
    NoInstaller {
        /// The partition of boot entries, if there is one.
        boot: Option<PathBuf>,
    },
    #[error("bring up the services")]
    Services(#[source] orlop_supervise::Error),
}

impl Error {
    pub(crate) fn file(operation: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::File { operation, path: path.as_ref().to_owned(), source }
    }

    /// Whether another boot can be expected to do better. Where only a person can help, the node stays
    /// as it is, its message on the console, rather than rebooting for ever.
    pub(crate) fn reboot_may_help(&self) -> bool {
        match self {
            Self::KernelArguments { .. }
            | Self::UnknownPlatform { .. }
            | Self::NoConfiguration
            | Self::BadConfiguration
            | Self::NoInstaller { .. }
            | Self::Pki(_) => false,
            Self::File { .. }
            | Self::Mount { .. }
            | Self::System { .. }
            | Self::Acquire { .. }
            | Self::Trust(_)
            | Self::Etcd(_)
            | Self::Apiserver(_)
            | Self::Services(_) => true,
        }
    }
}

/// Why nothing is installed, upgraded or rolled back.
fn no_installer(boot: Option<&Path>) -> String {
    let why = match boot {
        None => {
            "this node does not run from a disk it could install to (no partition is named BOOT)"
                .to_owned()
        }
        Some(boot) => {
            format!("BOOT is on {}, but this release writes no boot entries", boot.display())
        }
    };
    format!(
        "{why}; installing to a disk, upgrades and going back come with a later release: until then \
         start the other image where this one was started from"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_to_do() {
        let error = Error::KernelArguments {
            missing: vec!["slab_nomerge".to_owned(), "pti=on".to_owned()],
        };
        assert_eq!(
            error.to_string(),
            "the kernel command line lacks slab_nomerge pti=on; add it in the boot loader"
        );
        assert!(!error.reboot_may_help());
        let error = Error::file("read", "/a", io::Error::other("x"));
        assert_eq!(error.to_string(), "read /a");
        assert!(error.reboot_may_help());
    }

    #[test]
    fn what_cannot_be_installed_is_told_with_what_to_do() {
        let memory = Error::NoInstaller { boot: None }.to_string();
        assert!(memory.contains("no partition is named BOOT") && memory.contains("later release"));
        let disk = Error::NoInstaller { boot: Some("/dev/sda3".into()) };
        assert!(disk.to_string().starts_with("BOOT is on /dev/sda3, but"), "{disk}");
        assert!(!disk.reboot_may_help());
    }
}
