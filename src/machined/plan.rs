//! What is done in which order: the sequences as data, so that they can be read and tested without a
//! machine. A sequence is a list of phases; the tasks of one phase run at the same time, and a phase
//! begins when the one before it has ended well.

/// One thing to do. The names are those the API's events carry (spec §8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    CheckKernelArguments,
    MountFilesystems,
    MountVolumes,
    SetUpCgroups,
    WriteSysctls,
    SetRLimit,
    SetUpClock,
    SeedEntropy,
    CreateEtcFiles,
    StartContainerd,
    StartMachineApi,
    LoadConfig,
    SaveConfig,
    WriteUserFiles,
    WriteUserSysctls,
    WriteUserSysfs,
    LoadUserModules,
    PrepareServices,
    StartServices,
    ReleaseLeases,
    StopServices,
    KillProcesses,
    UnmountAll,
    WipeVolumes,
    CheckInstallation,
    LeaveEtcd,
    Install,
    Upgrade,
    KeepUpgrade,
    RevertBootLoader,
    BootstrapEtcd,
    StartBootkube,
    MarkInitialized,
}

impl Task {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CheckKernelArguments => "enforceKSPPRequirements",
            Self::MountFilesystems => "mountPseudoFilesystems",
            Self::MountVolumes => "mountStatePartition",
            Self::SetUpCgroups => "mountCgroups",
            Self::WriteSysctls => "writeRequiredSysctls",
            Self::SetRLimit => "setRLimit",
            Self::SetUpClock => "setUpClock",
            Self::SeedEntropy => "seedEntropy",
            Self::CreateEtcFiles => "createEtcNetworkFiles",
            Self::StartContainerd => "startContainerd",
            Self::StartMachineApi => "startMachineAPI",
            Self::LoadConfig => "loadConfig",
            Self::SaveConfig => "saveConfig",
            Self::WriteUserFiles => "writeUserFiles",
            Self::WriteUserSysctls => "writeUserSysctls",
            Self::WriteUserSysfs => "writeUserSysfs",
            Self::LoadUserModules => "loadUserModules",
            Self::PrepareServices => "setupServices",
            Self::StartServices => "startEverything",
            Self::ReleaseLeases => "releaseLeases",
            Self::StopServices => "stopEverything",
            Self::KillProcesses => "killProcesses",
            Self::UnmountAll => "unmountSystem",
            Self::WipeVolumes => "resetSystemDisk",
            Self::CheckInstallation => "verifyInstall",
            Self::LeaveEtcd => "leaveEtcd",
            Self::Install => "install",
            Self::Upgrade => "upgrade",
            Self::KeepUpgrade => "stageUpgrade",
            Self::RevertBootLoader => "revertBootloader",
            Self::BootstrapEtcd => "bootstrapEtcd",
            Self::StartBootkube => "startBootkube",
            Self::MarkInitialized => "updateInitStatus",
        }
    }
}

/// Tasks that run side by side.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) tasks: &'static [Task],
}

/// A named list of phases.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) name: &'static str,
    /// What comes before anything is stopped, while the one who asked still waits: when one of these
    /// fails, the sequence is refused, and the node goes on as it was.
    pub(crate) checks: &'static [Phase],
    pub(crate) phases: &'static [Phase],
}

/// Everything that needs no configuration. containerd takes longest to come up, so it starts as soon
/// as it can and is waited for only by the services that need it.
pub(crate) const INITIALIZE: Sequence = Sequence {
    name: "initialize",
    checks: &[],
    phases: &[
        Phase { name: "filesystems", tasks: &[Task::MountFilesystems] },
        Phase {
            name: "systemRequirements",
            tasks: &[
                Task::CheckKernelArguments,
                Task::SetUpCgroups,
                Task::SetRLimit,
                Task::SetUpClock,
                Task::MountVolumes,
            ],
        },
        Phase { name: "containerd", tasks: &[Task::StartContainerd] },
        Phase {
            name: "etc",
            tasks: &[Task::WriteSysctls, Task::SeedEntropy, Task::CreateEtcFiles],
        },
        Phase { name: "config", tasks: &[Task::StartMachineApi, Task::LoadConfig] },
    ],
};

/// From a configuration to a node whose services are all healthy.
pub(crate) const BOOT: Sequence = Sequence {
    name: "boot",
    checks: &[],
    phases: &[
        // What can be set depends on the modules.
        Phase { name: "modules", tasks: &[Task::LoadUserModules] },
        Phase {
            name: "userSetup",
            tasks: &[
                Task::SaveConfig,
                Task::WriteUserFiles,
                Task::WriteUserSysctls,
                Task::WriteUserSysfs,
            ],
        },
        Phase { name: "services", tasks: &[Task::PrepareServices] },
        Phase { name: "startEverything", tasks: &[Task::StartServices] },
    ],
};

/// The ways down; reboot(2) follows. Who comes back at once wants the same addresses again.
pub(crate) const REBOOT: Sequence =
    Sequence { name: "reboot", checks: &[], phases: &[STOP, KILL, UNMOUNT] };
pub(crate) const SHUTDOWN: Sequence =
    Sequence { name: "shutdown", checks: &[], phases: &[RELEASE, STOP, KILL, UNMOUNT] };

/// A new configuration that is good from the next boot on.
pub(crate) const APPLY_CONFIGURATION: Sequence = Sequence {
    name: "applyConfiguration",
    checks: &[],
    phases: &[Phase { name: "saveConfig", tasks: &[Task::SaveConfig] }, STOP, KILL, UNMOUNT],
};

/// What the node keeps is gone, and with it who it was. Its cluster takes leave of it first.
pub(crate) const RESET: Sequence =
    Sequence { name: "reset", checks: &[], phases: &[LEAVE, RELEASE, STOP, KILL, UNMOUNT, WIPE] };

/// The same of a node that cannot leave, or need not (`graceful` is false).
pub(crate) const RESET_AT_ONCE: Sequence =
    Sequence { name: "reset", checks: &[], phases: &[RELEASE, STOP, KILL, UNMOUNT, WIPE] };

/// A node that ran from memory comes back from a disk.
pub(crate) const INSTALL: Sequence = Sequence {
    name: "install",
    checks: &[VERIFY],
    phases: &[
        Phase { name: "install", tasks: &[Task::Install] },
        Phase { name: "saveConfig", tasks: &[Task::SaveConfig] },
        STOP,
        KILL,
        UNMOUNT,
    ],
};

/// Whether this node's member leaves etcd before the node changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    Kept,
    Left,
}

/// When an upgrade is written to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Now, once nothing runs from the disk any more.
    Now,
    /// By the next boot, before anything runs from it.
    NextBoot,
}

/// Another release beside the one that runs, started from then on.
pub(crate) fn upgrade(when: When, membership: Membership) -> &'static Sequence {
    macro_rules! sequence {
        ($name:literal: $($phase:expr),*) => {
            &Sequence { name: $name, checks: &[VERIFY], phases: &[$($phase),*] }
        };
    }
    const WRITE: Phase = Phase { name: "upgrade", tasks: &[Task::Upgrade] };
    const KEEP: Phase = Phase { name: "stage", tasks: &[Task::KeepUpgrade] };
    match (when, membership) {
        (When::Now, Membership::Kept) => sequence!("upgrade": STOP, KILL, UNMOUNT, WRITE),
        (When::Now, Membership::Left) => sequence!("upgrade": LEAVE, STOP, KILL, UNMOUNT, WRITE),
        (When::NextBoot, Membership::Kept) => sequence!("stageUpgrade": KEEP, STOP, KILL, UNMOUNT),
        (When::NextBoot, Membership::Left) => {
            sequence!("stageUpgrade": KEEP, LEAVE, STOP, KILL, UNMOUNT)
        }
    }
}

/// The release before this one, started from then on.
pub(crate) const ROLLBACK: Sequence = Sequence {
    name: "rollback",
    checks: &[VERIFY],
    phases: &[Phase { name: "bootloader", tasks: &[Task::RevertBootLoader] }, STOP, KILL, UNMOUNT],
};

/// A cluster begins on this node. It runs beside whatever else does (spec §8.2).
pub(crate) const BOOTSTRAP: Sequence = Sequence {
    name: "bootstrap",
    checks: &[],
    phases: &[
        Phase { name: "etcd", tasks: &[Task::BootstrapEtcd] },
        Phase { name: "kubernetes", tasks: &[Task::StartBootkube] },
        Phase { name: "initStatus", tasks: &[Task::MarkInitialized] },
    ],
};

const VERIFY: Phase = Phase { name: "verifyInstall", tasks: &[Task::CheckInstallation] };
const LEAVE: Phase = Phase { name: "leave", tasks: &[Task::LeaveEtcd] };
const RELEASE: Phase = Phase { name: "releaseLeases", tasks: &[Task::ReleaseLeases] };
const STOP: Phase = Phase { name: "stopEverything", tasks: &[Task::StopServices] };
const KILL: Phase = Phase { name: "killProcesses", tasks: &[Task::KillProcesses] };
const WIPE: Phase = Phase { name: "reset", tasks: &[Task::WipeVolumes] };
const UNMOUNT: Phase = Phase { name: "unmount", tasks: &[Task::UnmountAll] };

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_sequences_read_as_the_golden_story() {
        let mut story = String::new();
        let fixed = [&INITIALIZE, &BOOT, &APPLY_CONFIGURATION, &REBOOT, &SHUTDOWN, &BOOTSTRAP];
        let mut all: Vec<(String, &Sequence)> =
            fixed.iter().map(|sequence| (sequence.name.to_owned(), *sequence)).collect();
        all.push(("reset, graceful".to_owned(), &RESET));
        all.push(("reset".to_owned(), &RESET_AT_ONCE));
        all.push(("install".to_owned(), &INSTALL));
        for when in [When::Now, When::NextBoot] {
            for membership in [Membership::Kept, Membership::Left] {
                let sequence = upgrade(when, membership);
                all.push((format!("{}, membership {membership:?}", sequence.name), sequence));
            }
        }
        all.push(("rollback".to_owned(), &ROLLBACK));
        for (title, Sequence { checks, phases, .. }) in all {
            let _ = writeln!(story, "{title}");
            for (kind, phases) in [("check ", checks), ("", phases)] {
                for phase in *phases {
                    let tasks: Vec<_> = phase.tasks.iter().map(|task| task.name()).collect();
                    let _ = writeln!(story, "  {kind}{}: {}", phase.name, tasks.join(" "));
                }
            }
        }
        assert_eq!(story, include_str!("testdata/sequences.txt"));
    }
}
