//! Which daemon serves which service.

/// A daemon with a socket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Daemon {
    Machined,
    Networkd,
    Timed,
}

const TABLE: [(&str, Daemon); 7] = [
    ("machine.MachineService", Daemon::Machined),
    ("cluster.ClusterService", Daemon::Machined),
    ("orlop.v1alpha1.NodeService", Daemon::Machined),
    ("storage.StorageService", Daemon::Machined),
    // Old habits: machined has no such service and answers `Unimplemented`.
    ("os.OSService", Daemon::Machined),
    ("network.NetworkService", Daemon::Networkd),
    ("time.TimeService", Daemon::Timed),
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
        assert_eq!(daemon("storage.StorageService"), Some(Daemon::Machined));
        assert_eq!(daemon("network.NetworkService"), Some(Daemon::Networkd));
        for stranger in ["", "machine", "machine.MachineService2", "Machine.MachineService", "/"] {
            assert_eq!(daemon(stranger), None, "{stranger}");
        }
    }
}
