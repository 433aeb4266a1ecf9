//! What keeps a node from booting, and what is done about it.

use std::io;
use std::path::{Path, PathBuf};

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
            | Self::NoConfiguration
            | Self::BadConfiguration
            | Self::Pki(_) => false,
            Self::File { .. }
            | Self::Mount { .. }
            | Self::System { .. }
            | Self::Acquire { .. }
            | Self::Trust(_)
            | Self::Etcd(_)
            | Self::Services(_) => true,
        }
    }
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
}
