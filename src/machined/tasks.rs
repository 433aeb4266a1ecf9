//! The single steps of the sequences: what each [`Task`] of a plan does to the machine.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use orlop_config::cmdline::Cmdline;
use orlop_rt::Chain;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::error::PLATFORMS;
use crate::etcd::host as etcd;
use crate::node::{BOOT_LIMIT, Node};
use crate::plan::Task;
use crate::{
    Error, cgroups, clock, config, etc, hardening, modules, mounts, power, services, user, volumes,
};

/// Open files each process may have (spec §7.3).
const OPEN_FILES: u64 = 1_048_576;
/// A hardware generator that takes longer is left alone.
const ENTROPY_LIMIT: Duration = Duration::from_secs(2);
/// For all modules of the configuration together; the boot goes on without one whose device hangs.
const MODULES_LIMIT: Duration = Duration::from_secs(30);
/// More than killing takes: it ends by itself.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// More than writing and sending the last lines takes: it ends by itself.
const LOGS_LIMIT: Duration = Duration::from_secs(5);
/// All services together get this long to stop.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Does `task`.
pub(crate) async fn perform(node: &Node, task: Task) -> Result<(), Error> {
    match task {
        Task::MountFilesystems => mounts::mount_all(),
        Task::MountVolumes => volumes::mount_all(),
        Task::CheckKernelArguments => check_kernel_arguments(node.cmdline()),
        Task::SetUpCgroups => cgroups::set_up(),
        Task::SetRLimit => {
            setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES).map_err(|errno| {
                Error::System { operation: "raise RLIMIT_NOFILE", source: errno.into() }
            })
        }
        Task::SetUpClock => clock::set_up(),
        Task::StartContainerd => services::start_containerd(node).await,
        Task::WriteSysctls => {
            hardening::apply_sysctls();
            Ok(())
        }
        Task::SeedEntropy => {
            if timeout(ENTROPY_LIMIT, spawn_blocking(clock::seed_entropy)).await.is_err() {
                warn!("the hardware random number generator does not answer");
            }
            Ok(())
        }
        Task::CreateEtcFiles => etc::create(),
        Task::StartMachineApi => services::start_api(node).await,
        Task::LoadConfig => config::load(node).await,
        Task::SaveConfig => config::save(node),
        Task::WriteUserFiles => {
            user::write_files(&node.config()?.machine.files);
            Ok(())
        }
        Task::WriteUserSysctls => {
            user::write_sysctls(&node.config()?.machine.sysctls);
            Ok(())
        }
        Task::WriteUserSysfs => {
            user::write_sysfs(&node.config()?.machine.sysfs);
            Ok(())
        }
        Task::LoadUserModules => {
            let wanted = node.config()?.machine.kernel.modules.clone();
            if !wanted.is_empty() {
                power::within(MODULES_LIMIT, "loading modules", move || modules::load(&wanted))
                    .await;
            }
            Ok(())
        }
        Task::PrepareServices => services::prepare(node).await,
        Task::StartServices => services::start_all(node, BOOT_LIMIT).await,
        Task::ReleaseLeases => {
            // The addresses go back when their time is over otherwise.
            if let Err(error) = services::release_leases() {
                warn!(%error, "leases are not given back");
            }
            Ok(())
        }
        Task::StopServices => {
            node.shutdown().cancel();
            // Those that stay are killed next.
            if let Err(error) = node.supervisor().shutdown(STOP_LIMIT).await {
                warn!(error = %Chain(&error), "stop the services");
            }
            Ok(())
        }
        Task::KillProcesses => {
            power::within(KILL_LIMIT, "killing processes", power::kill_processes).await;
            Ok(())
        }
        Task::UnmountAll => {
            // Nobody is left who says anything; where it is kept is about to go.
            node.logs().finish(LOGS_LIMIT).await;
            power::within(power::DISK_LIMIT, "unmounting", power::put_away).await;
            Ok(())
        }
        Task::LeaveEtcd => {
            // Asked before it began; whoever asked is gone by now.
            if let Err(error) = etcd::leave_for_good(node).await {
                warn!(
                    error = %Chain(&error),
                    "the node is still a member of etcd; another one removes it \
                     (orlopctl etcd remove-member)"
                );
            }
            Ok(())
        }
        Task::WipeVolumes => {
            let devices = node.wiped();
            let wipe = move || devices.iter().for_each(|device| volumes::wipe(device));
            power::within(power::DISK_LIMIT, "wiping", wipe).await;
            Ok(())
        }
        // What follows the check is what an installer of a later release does.
        Task::CheckInstallation
        | Task::Install
        | Task::Upgrade
        | Task::KeepUpgrade
        | Task::RevertBootLoader => Err(Error::NoInstaller { boot: boot_partition().await? }),
        Task::BootstrapEtcd => etcd::start_first(node).await,
        Task::StartBootkube => etcd::start_bootkube(node).await,
        Task::MarkInitialized => etcd::mark_initialized().await,
    }
}

/// Where boot entries are. Disks can take long to answer.
async fn boot_partition() -> Result<Option<PathBuf>, Error> {
    spawn_blocking(|| volumes::device("BOOT")).await.unwrap_or_else(|error| {
        Err(Error::System { operation: "look for BOOT", source: error.into() })
    })
}

fn check_kernel_arguments(cmdline: &Cmdline) -> Result<(), Error> {
    for problem in cmdline.problems() {
        warn!("{problem}");
    }
    if let Some(name) = cmdline.platform().filter(|name| !PLATFORMS.contains(name)) {
        return Err(Error::UnknownPlatform { name: name.to_owned() });
    }
    let missing = cmdline.missing_hardening();
    if missing.is_empty() {
        info!("hardening kernel arguments hold");
        Ok(())
    } else {
        Err(Error::KernelArguments { missing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_arguments_that_are_missing_end_the_boot_and_are_named() {
        let check = |line: &str| check_kernel_arguments(&Cmdline::parse(line));
        assert!(check("slab_nomerge pti=on").is_ok());
        for (line, missing) in [
            ("quiet", "slab_nomerge pti=on"),
            ("slab_nomerge pti=off", "pti=on"),
            ("pti=on", "slab_nomerge"),
        ] {
            let error = check(line).expect_err(line);
            let expected =
                format!("the kernel command line lacks {missing}; add it in the boot loader");
            assert_eq!(error.to_string(), expected);
            assert!(!error.reboot_may_help(), "the same boot loader has the same line");
        }
    }

    #[test]
    fn a_platform_nobody_knows_is_told_with_those_there_are() {
        let check = |name: &str| {
            check_kernel_arguments(&Cmdline::parse(&format!("slab_nomerge pti=on {name}")))
        };
        for known in ["", "talos.platform=metal", "talos.platform=vultr", "talos.platform="] {
            assert!(check(known).is_ok(), "{known}");
        }
        let error = check("talos.platform=mettle").expect_err("unknown");
        let said = error.to_string();
        assert!(said.starts_with("unknown platform: \"mettle\"; write one of these"), "{said}");
        assert!(said.contains(" metal ") && !error.reboot_may_help(), "{said}");
    }
}
