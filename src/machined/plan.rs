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
    LeaveEtcd,
    WipeVolumes,
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
            Self::LeaveEtcd => "leaveEtcd",
            Self::WipeVolumes => "resetSystemDisk",
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
    pub(crate) phases: &'static [Phase],
}

/// Everything that needs no configuration. containerd takes longest to come up, so it starts as soon
/// as it can and is waited for only by the services that need it.
pub(crate) const INITIALIZE: Sequence = Sequence {
    name: "initialize",
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
pub(crate) const REBOOT: Sequence = Sequence { name: "reboot", phases: &[STOP, KILL, UNMOUNT] };
pub(crate) const SHUTDOWN: Sequence =
    Sequence { name: "shutdown", phases: &[RELEASE, STOP, KILL, UNMOUNT] };

/// A new configuration that is good from the next boot on.
pub(crate) const APPLY_CONFIGURATION: Sequence = Sequence {
    name: "applyConfiguration",
    phases: &[Phase { name: "saveConfig", tasks: &[Task::SaveConfig] }, STOP, KILL, UNMOUNT],
};

/// What the node keeps is gone, and with it who it was. Its cluster takes leave of it first.
pub(crate) const RESET: Sequence = Sequence {
    name: "reset",
    phases: &[
        Phase { name: "leave", tasks: &[Task::LeaveEtcd] },
        RELEASE,
        STOP,
        KILL,
        UNMOUNT,
        WIPE,
    ],
};

/// The same of a node that cannot leave, or need not (`graceful` is false).
pub(crate) const RESET_AT_ONCE: Sequence =
    Sequence { name: "reset", phases: &[RELEASE, STOP, KILL, UNMOUNT, WIPE] };

/// A cluster begins on this node. It runs beside whatever else does (spec §8.2).
pub(crate) const BOOTSTRAP: Sequence = Sequence {
    name: "bootstrap",
    phases: &[
        Phase { name: "etcd", tasks: &[Task::BootstrapEtcd] },
        Phase { name: "kubernetes", tasks: &[Task::StartBootkube] },
        Phase { name: "initStatus", tasks: &[Task::MarkInitialized] },
    ],
};

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
        let all = [
            &INITIALIZE,
            &BOOT,
            &APPLY_CONFIGURATION,
            &REBOOT,
            &SHUTDOWN,
            &RESET,
            &RESET_AT_ONCE,
            &BOOTSTRAP,
        ];
        for sequence in all {
            let _ = writeln!(story, "{}", sequence.name);
            for phase in sequence.phases {
                let tasks: Vec<_> = phase.tasks.iter().map(|task| task.name()).collect();
                let _ = writeln!(story, "  {}: {}", phase.name, tasks.join(" "));
            }
        }
        assert_eq!(story, include_str!("testdata/sequences.txt"));
    }
}
