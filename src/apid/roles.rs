//! Who may call what.
//!
//! Pure. Roles are the organizations of the caller's certificate (`node-api.md` §3.3, §3.4); which
//! method asks for which is one table (§3.5).

use std::collections::BTreeSet;

use orlop_rpc::proxy::Method;

/// Everything.
const ADMIN: &str = "os:admin";
/// Reading, and what runs the node: reboot, services, etcd maintenance.
const OPERATOR: &str = "os:operator";
/// Read-only calls that reveal no secrets.
const READER: &str = "os:reader";
/// Taking snapshots of etcd.
const ETCD_BACKUP: &str = "os:etcd:backup";
/// Checking images.
const IMAGE_VERIFIER: &str = "os:image:verifier";
/// Writing user data into META.
const META_WRITER: &str = "os:meta:writer";
/// Speaking for others: held by apid itself.
const IMPERSONATOR: &str = "os:impersonator";

/// The roles of a caller; those nobody knows are kept, and match nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roles(BTreeSet<String>);

impl Roles {
    /// The roles of the call: the certificate's, or those it states (`talos-role`) if the certificate
    /// allows it to speak for others.
    pub(crate) fn establish(
        certificate: impl IntoIterator<Item = String>,
        stated: Option<impl IntoIterator<Item = String>>,
    ) -> Self {
        let own = Self::collect(certificate);
        match stated {
            Some(stated) if own.0.contains(IMPERSONATOR) => Self::collect(stated),
            _ => own,
        }
    }

    /// Everybody's, on a node without a configuration (§11.2).
    pub(crate) fn in_maintenance() -> Self {
        Self::collect([READER.to_owned()])
    }

    fn collect(roles: impl IntoIterator<Item = String>) -> Self {
        Self(roles.into_iter().filter(|role| !role.trim().is_empty()).collect())
    }

    /// Whether one of them grants the method.
    pub(crate) fn allow(&self, method: Method<'_>) -> bool {
        granting(method).iter().any(|role| self.0.contains(*role))
    }

    /// The same, on a node without a configuration: who may read it may also give it one.
    pub(crate) fn allow_in_maintenance(&self, method: Method<'_>) -> bool {
        let configures = method.service == "machine.MachineService"
            && matches!(method.name, "ApplyConfiguration" | "GenerateConfiguration");
        self.allow(method) || (configures && self.0.contains(READER))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// A service, some of its methods (`*`: all), and the roles that grant them.
type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

const READ: &[&str] = &[ADMIN, OPERATOR, READER];
const OPERATE: &[&str] = &[ADMIN, OPERATOR];

/// What more than `os:admin` may call.
const TABLE: &[Row] = &[
    (
        "machine.MachineService",
        &[
            "CPUInfo",
            "CPUFreqStats",
            "Containers",
            "DiskStats",
            "DiskUsage",
            "Dmesg",
            "Events",
            "Hostname",
            "ImageList",
            "List",
            "LoadAvg",
            "Logs",
            "LogsContainers",
            "Memory",
            "Mounts",
            "NetworkDeviceStats",
            "Netstat",
            "Processes",
            "ServiceList",
            "Stats",
            "SystemStat",
            "Version",
        ],
        READ,
    ),
    (
        "machine.MachineService",
        &["EtcdAlarmList", "EtcdMemberList", "EtcdStatus"],
        &[ADMIN, OPERATOR, READER, ETCD_BACKUP],
    ),
    ("machine.MachineService", &["EtcdSnapshot"], &[ADMIN, OPERATOR, ETCD_BACKUP]),
    (
        "machine.MachineService",
        &[
            "EtcdAlarmDisarm",
            "EtcdDefragment",
            "ImagePull",
            "PacketCapture",
            "Reboot",
            "Restart",
            "ServiceRestart",
            "ServiceStart",
            "ServiceStop",
            "Shutdown",
        ],
        OPERATE,
    ),
    ("machine.MachineService", &["MetaWrite", "MetaDelete"], &[ADMIN, META_WRITER]),
    ("cluster.ClusterService", &["HealthCheck"], READ),
    ("inspect.InspectService", &["ControllerRuntimeDependencies"], READ),
    ("machine.StorageService", &["Statfs"], READ),
    ("storage.StorageService", &["Disks"], READ),
    ("time.TimeService", &["*"], READ),
    ("orlop.v1alpha1.NodeService", &["Metrics", "Timeline"], READ),
    // Generation v0.8; today's clients read the same from resources, with these roles.
    ("network.NetworkService", &["Routes", "Interfaces"], READ),
    ("cosi.resource.State", &["Get", "List", "Watch"], READ),
    ("machine.ImageService", &["List"], READ),
    ("machine.ImageService", &["Pull"], OPERATE),
    ("machine.ImageService", &["Verify"], &[ADMIN, OPERATOR, READER, IMAGE_VERIFIER]),
];

/// The roles of which one is needed; a method without a row is the administrator's.
fn granting(method: Method<'_>) -> &'static [&'static str] {
    TABLE
        .iter()
        .find(|(service, names, _)| {
            *service == method.service && (names.contains(&method.name) || names == &["*"])
        })
        .map_or(&[ADMIN], |(_, _, roles)| *roles)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn roles(text: &str) -> Roles {
        Roles::establish(text.split_whitespace().map(str::to_owned), None::<[String; 0]>)
    }

    #[test]
    fn methods_are_granted_by_the_table() {
        for (path, granted) in [
            ("/machine.MachineService/Memory", "os:admin os:operator os:reader"),
            ("/machine.MachineService/Reboot", "os:admin os:operator"),
            ("/machine.MachineService/EtcdStatus", "os:admin os:operator os:reader os:etcd:backup"),
            ("/machine.MachineService/EtcdSnapshot", "os:admin os:operator os:etcd:backup"),
            ("/machine.MachineService/MetaWrite", "os:admin os:meta:writer"),
            ("/machine.MachineService/Read", "os:admin"),
            ("/machine.MachineService/Kubeconfig", "os:admin"),
            ("/machine.MachineService/NoSuchMethod", "os:admin"),
            ("/machine.ImageService/Verify", "os:admin os:operator os:reader os:image:verifier"),
            ("/time.TimeService/Anything", "os:admin os:operator os:reader"),
            ("/orlop.v1alpha1.NodeService/Metrics", "os:admin os:operator os:reader"),
            ("/network.NetworkService/Routes", "os:admin os:operator os:reader"),
            ("/cosi.resource.State/Destroy", "os:admin"),
            ("/no.Service/X", "os:admin"),
        ] {
            let method = Method::parse(path).unwrap();
            for role in [
                ADMIN,
                OPERATOR,
                READER,
                ETCD_BACKUP,
                IMAGE_VERIFIER,
                META_WRITER,
                IMPERSONATOR,
                "",
            ] {
                let expected = granted.split(' ').any(|granted| granted == role);
                assert_eq!(roles(role).allow(method), expected, "{path} {role:?}");
            }
        }
    }

    #[test]
    fn in_maintenance_everybody_reads_and_configures() {
        let everybody = Roles::in_maintenance();
        for (path, allowed) in [
            ("/machine.MachineService/Memory", true),
            ("/storage.StorageService/Disks", true),
            ("/network.NetworkService/Interfaces", true),
            ("/machine.MachineService/ApplyConfiguration", true),
            ("/machine.MachineService/GenerateConfiguration", true),
            ("/other.Service/ApplyConfiguration", false),
            ("/machine.MachineService/Read", false),
            ("/machine.MachineService/Reboot", false),
            ("/machine.MachineService/Reset", false),
        ] {
            let method = Method::parse(path).unwrap();
            assert_eq!(everybody.allow_in_maintenance(method), allowed, "{path}");
        }
        let apply = Method::parse("/machine.MachineService/ApplyConfiguration").unwrap();
        assert!(!everybody.allow(apply), "a reader of a configured node");
    }

    #[test]
    fn only_an_impersonator_may_state_other_roles() {
        let own = |role: &str| [role.to_owned()];
        let stated = || Some(["os:admin".to_owned(), " ".to_owned(), "new".to_owned()]);
        assert_eq!(Roles::establish(own(IMPERSONATOR), stated()), roles("os:admin new"));
        assert_eq!(Roles::establish(own(READER), stated()), roles(READER));
        assert_eq!(Roles::establish(own(IMPERSONATOR), Some([])), roles(""));
        assert_eq!(Roles::establish(own(IMPERSONATOR), None::<[String; 0]>), roles(IMPERSONATOR));
        assert_eq!(Roles::establish(own(""), stated()), roles(""));
    }
}
