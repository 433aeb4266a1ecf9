//! Which daemon serves which service.

/// A daemon with a socket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Daemon {
    Machined,
    Networkd,
    Timed,
}

impl Daemon {
    pub(crate) const ALL: [Self; 3] = [Self::Machined, Self::Networkd, Self::Timed];
}

/// The services of both generations. What the daemon does not have, it answers with `Unimplemented`.
const TABLE: [(&str, Daemon); 16] = [
    ("machine.MachineService", Daemon::Machined),
    ("cluster.ClusterService", Daemon::Machined),
    ("orlop.v1alpha1.NodeService", Daemon::Machined),
    ("storage.StorageService", Daemon::Machined),
    ("network.NetworkService", Daemon::Networkd),
    ("time.TimeService", Daemon::Timed),
    ("orlop.v1alpha1.ClockService", Daemon::Timed),
    // Of v0.3 only.
    ("os.OSService", Daemon::Machined),
    // Of today's only.
    ("cosi.resource.State", Daemon::Machined),
    ("inspect.InspectService", Daemon::Machined),
    ("machine.DebugService", Daemon::Machined),
    ("machine.ImageService", Daemon::Machined),
    ("machine.LVMService", Daemon::Machined),
    ("machine.LifecycleService", Daemon::Machined),
    ("machine.MDService", Daemon::Machined),
    ("machine.StorageService", Daemon::Machined),
];

/// The daemon that serves `service` (`package.Service`). `None`: nobody on this node does.
pub(crate) fn daemon(service: &str) -> Option<Daemon> {
    TABLE.iter().find(|(name, _)| *name == service).map(|(_, daemon)| *daemon)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_whole_and_exactly() {
        assert_eq!(daemon("machine.MachineService"), Some(Daemon::Machined));
        assert_eq!(daemon("network.NetworkService"), Some(Daemon::Networkd));
        assert_eq!(daemon("cosi.resource.State"), Some(Daemon::Machined));
        for stranger in ["", "machine", "machine.MachineService2", "Machine.MachineService", "/"] {
            assert_eq!(daemon(stranger), None, "{stranger}");
        }
    }
}
