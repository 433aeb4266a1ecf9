//! What runs the guest's instructions: KVM where it works, else QEMU's own translation (TCG).

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::machine::{Boot, Complaints};

/// A guest accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The processor itself.
    Kvm,
    /// Translation, one thread for all guest processors.
    Tcg,
    /// Translation, a thread for each guest processor: faster, and some boots fall over a fault of
    /// QEMU's (see [`crate::boot_again_after_int3`]).
    TcgThreads,
}

impl Accel {
    /// By the variable `ACCEL`: `kvm`, `tcg`, `tcg-threads`, or `auto` (also when unset), which takes KVM only when a
    /// probe guest runs under it: a device node alone proves nothing, since nested machines have one
    /// that opens and then runs no guest. What the probe found is kept until the host's next boot.
    ///
    /// # Errors
    /// When the variable holds another word.
    pub fn from_environment() -> Result<Self> {
        match std::env::var("ACCEL").as_deref() {
            Err(_) | Ok("" | "auto") => Ok(Self::probed()),
            Ok(word) => word.parse(),
        }
    }

    fn probed() -> Self {
        let kept = kept_answer();
        if let Some(answer) =
            kept.as_ref().and_then(|path| fs::read_to_string(path).ok()?.parse().ok())
        {
            return answer;
        }
        let answer = match probe() {
            Ok(()) => Self::Kvm,
            Err(error) => {
                let why = format!("{error:#}");
                eprintln!("accel: no KVM ({}): using TCG", why.lines().next().unwrap_or_default());
                Self::Tcg
            }
        };
        if let Some(path) = kept {
            // Not kept: the next run asks again.
            let _ = path.parent().map(fs::create_dir_all);
            let _ = fs::write(path, answer.to_string());
        }
        answer
    }

    /// The same, as fast as it gets: for those who measure, and boot again when they must.
    #[must_use]
    pub fn fastest(self) -> Self {
        if self == Self::Tcg { Self::TcgThreads } else { self }
    }

    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=single", "-cpu", "max"],
            Self::TcgThreads => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}

impl FromStr for Accel {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            "tcg-threads" => Ok(Self::TcgThreads),
            _ => bail!("ACCEL={word}: give auto, kvm, tcg or tcg-threads"),
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::TcgThreads => "tcg-threads",
        })
    }
}

/// Whether our own kernel says its first word under KVM.
fn probe() -> Result<()> {
    fs::File::options().read(true).write(true).open("/dev/kvm").context("open /dev/kvm")?;
    let guest = Boot::kernel(Accel::Kvm)?
        .argument("console=ttyS0 earlyprintk=ttyS0 panic=-1")
        .no_reboot()
        .complaints(Complaints::Dropped)
        .start()?;
    guest.console().wait("Linux version", PROBE_TIME).map(|_| ())
}

/// One file for each boot of the host.
fn kept_answer() -> Option<PathBuf> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let home = std::env::var_os("ORLOP_CACHE").map(PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/orlop"))
    })?;
    Some(home.join(format!("accel-{}", boot.trim())))
}

const PROBE_TIME: Duration = Duration::from_secs(10);
