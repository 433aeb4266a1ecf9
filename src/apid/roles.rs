//! Who may call what.
//!
//! Pure. Roles are the organizations of the caller's certificate (`node-api.md` §3.3, §3.4); which
//! method asks for which is one table (§3.5). A method without a row is refused to all but the
//! administrator, who so learns from the backend whether it exists.

use std::sync::Arc;

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

/// What a certificate without any role is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nameless {
    /// Nothing.
    Nobody,
    /// Everything: tools of generation v0.8 put no roles into the certificates they make (§3.5, the
    /// compatibility switch).
    Administrator,
}

/// The roles of a caller; those nobody knows are kept, and match nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roles(Arc<[String]>);

impl Roles {
    /// The roles of the call: the certificate's, or those it states (`talos-role`) if the certificate
    /// allows it to speak for others.
    pub(crate) fn establish(
        certificate: &Arc<[String]>,
        stated: Option<impl IntoIterator<Item = String>>,
        nameless: Nameless,
    ) -> Self {
        let own = match certificate.iter().any(|role| is_blank(role)) {
            true => Self::collect(certificate.iter().cloned()),
            // The same for all calls of a connection.
            false => Self(Arc::clone(certificate)),
        };
        match stated {
            Some(stated) if own.has(IMPERSONATOR) => Self::collect(stated),
            _ if own.0.is_empty() && nameless == Nameless::Administrator => {
                Self::collect([ADMIN.to_owned()])
            }
            _ => own,
        }
    }

    /// Those of a process of this node: root may have any, so it has what it states, and nothing unless
    /// it does; others have none (§3.4, as on machined's socket).
    pub(crate) fn of_process(uid: u32, stated: impl IntoIterator<Item = String>) -> Self {
        if uid == 0 { Self::collect(stated) } else { Self::default() }
    }

    /// Everybody's, on a node without a configuration (§11.2).
    pub(crate) fn in_maintenance() -> Self {
        Self::collect([READER.to_owned()])
    }

    fn collect(roles: impl IntoIterator<Item = String>) -> Self {
        let mut roles: Vec<_> = roles.into_iter().filter(|role| !is_blank(role)).collect();
        orlop_rt::sort(&mut roles);
        roles.dedup();
        Self(roles.into())
    }

    /// Whether one of them grants the method.
    pub(crate) fn allow(&self, method: Method<'_>) -> bool {
        granting(method).iter().any(|role| self.has(role))
    }

    /// The same, on a node without a configuration: who may read it may also give it one,
    /// and clear disks for it (§11.2).
    pub(crate) fn allow_in_maintenance(&self, method: Method<'_>) -> bool {
        let prepares = match method.service {
            "machine.MachineService" => {
                matches!(method.name, "ApplyConfiguration" | "GenerateConfiguration")
            }
            "storage.StorageService" => method.name == "BlockDeviceWipe",
            "machine.LVMService" | "machine.MDService" => true,
            _ => false,
        };
        self.allow(method) || (prepares && self.has(READER))
    }

    fn has(&self, role: &str) -> bool {
        self.0.iter().any(|own| own == role)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

fn is_blank(role: &str) -> bool {
    role.trim().is_empty()
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
            // v0.3's names of ServiceStart and ServiceStop.
            "Start",
            "Stop",
        ],
        OPERATE,
    ),
    ("machine.MachineService", &["MetaWrite", "MetaDelete"], &[ADMIN, META_WRITER]),
    ("cluster.ClusterService", &["HealthCheck"], READ),
    ("inspect.InspectService", &["ControllerRuntimeDependencies"], READ),
    ("machine.StorageService", &["Statfs"], READ),
    ("storage.StorageService", &["Disks"], READ),
    ("time.TimeService", &["*"], READ),
    ("orlop.v1alpha1.ClockService", &["*"], READ),
    ("orlop.v1alpha1.DoorService", &["*"], READ),
    ("orlop.v1alpha1.NodeService", &["Metrics", "Timeline"], READ),
    // Generation v0.8; today's clients read the same from resources, with these roles.
    ("network.NetworkService", &["Routes", "Interfaces"], READ),
    ("os.OSService", &["Containers", "Dmesg", "Memory", "Processes", "Stats"], READ),
    ("os.OSService", &["Restart"], OPERATE),
    ("cosi.resource.State", &["Get", "List", "Watch"], READ),
    ("machine.ImageService", &["List"], READ),
    ("machine.ImageService", &["Pull"], OPERATE),
    ("machine.ImageService", &["Verify"], &[ADMIN, OPERATOR, READER, IMAGE_VERIFIER]),
    // routerd's own: what there is, and whether it answers.
    ("grpc.reflection.v1.ServerReflection", &["*"], READ),
    ("grpc.reflection.v1alpha.ServerReflection", &["*"], READ),
    ("grpc.health.v1.Health", &["*"], READ),
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
    use std::collections::BTreeMap;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// A role and its letter in the golden table. The last three grant nothing.
    const ROLES: [(&str, char); 9] = [
        (ADMIN, 'A'),
        (OPERATOR, 'O'),
        (READER, 'R'),
        (ETCD_BACKUP, 'E'),
        (META_WRITER, 'M'),
        (IMAGE_VERIFIER, 'V'),
        (IMPERSONATOR, '-'),
        ("os:unheard-of", '-'),
        ("", '-'),
    ];

    /// Paths and letters of the specification's table.
    fn golden() -> BTreeMap<String, String> {
        let (mut service, mut table) = ("", BTreeMap::new());
        for line in include_str!("testdata/roles.txt").lines() {
            match line.split_once(' ') {
                _ if line.is_empty() || line.starts_with('#') => {}
                None => service = line,
                Some((name, letters)) => {
                    let old = table.insert(format!("/{service}/{name}"), letters.to_owned());
                    assert_eq!(old, None, "{line} is there twice");
                }
            }
        }
        table
    }

    fn roles(text: &str) -> Roles {
        Roles::collect(text.split_whitespace().map(str::to_owned))
    }

    /// Asserts what each role may with a method, and everybody in maintenance.
    fn walk(path: &str, letters: &str) {
        let method = Method::parse(path).unwrap();
        for (role, letter) in ROLES {
            assert_eq!(roles(role).allow(method), letters.contains(letter), "{path} {role:?}");
        }
        let anybody = letters.contains('R') || letters.contains('+');
        assert_eq!(Roles::in_maintenance().allow_in_maintenance(method), anybody, "{path}");
        assert!(roles("x os:meta:writer os:admin").allow(method), "{path}");
    }

    #[test]
    fn every_method_is_granted_to_the_roles_of_the_specification_and_no_others() {
        let golden = golden();
        assert!(golden.len() > 90, "{}", golden.len());
        for (path, letters) in &golden {
            walk(path, letters);
        }
    }

    #[test]
    fn what_the_table_does_not_name_is_the_administrators() {
        for path in [
            "/machine.MachineService/NoSuchMethod",
            "/machine.MachineService/memory",
            "/machine.MachineService/*",
            "/machine.MachineService2/Memory",
            "/storage.StorageService/Statfs",
            "/securityapi.SecurityService/ReadFile",
            "/no.Service/X",
        ] {
            walk(path, "A");
        }
    }

    #[test]
    fn every_row_of_ours_and_every_method_we_serve_is_in_the_specification() {
        let golden = golden();
        for (service, names, _) in TABLE {
            for name in names.iter().filter(|name| **name != "*") {
                assert!(golden.contains_key(&format!("/{service}/{name}")), "{service}/{name}");
            }
        }
        let known = known();
        for path in &known {
            assert!(golden.contains_key(path), "{path} has no row in the golden table");
        }
        assert!(known.len() > 40, "{known:?}");
    }

    /// The methods that our `.proto` files have.
    fn known() -> Vec<String> {
        let files = FileDescriptorSet::decode(orlop_proto::DESCRIPTORS).unwrap().file;
        let mut known = Vec::new();
        for file in files {
            let package = file.package().to_owned();
            // Those that never come through this door: of daemons inside the node, trustd's, etcd's
            // and the CRI's; the cluster API and the ambassador have doors of their own.
            let inside = ["health", "orlop.inside", "securityapi", "etcdserverpb", "runtime.v1"];
            let elsewhere = ["ambassador.", "connection", "metropolis.", "networkservice", "nsp."];
            if inside.contains(&package.as_str())
                || elsewhere.iter().any(|begin| package.starts_with(begin))
            {
                continue;
            }
            for service in &file.service {
                let path = |name| format!("/{package}.{}/{name}", service.name());
                known.extend(service.method.iter().map(|method| path(method.name())));
            }
        }
        known
    }

    #[test]
    fn every_method_has_its_state_in_the_documentation() {
        let text = include_str!("../../docs/compatibility.md");
        let mut states = BTreeMap::new();
        for row in text.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let [_, service, state @ ("served" | "etcd" | "refused" | "not served"), names, _] =
                cells[..]
            else {
                continue;
            };
            for name in names.split_whitespace() {
                let path = format!("/{}/{name}", service.trim_matches('`'));
                assert_eq!(states.insert(path.clone(), state), None, "{path} is there twice");
            }
        }
        let golden = golden();
        for path in golden.keys() {
            assert!(states.contains_key(path), "docs/compatibility.md does not tell of {path}");
        }
        for (path, state) in &states {
            assert!(golden.contains_key(path), "nobody has ever had {path}");
            // What has no description cannot be served, but for what tonic itself describes.
            let described = known().contains(path) || path.starts_with("/grpc.reflection.");
            assert!(described || *state == "not served", "{path}: {state}");
        }
    }

    #[test]
    fn only_an_impersonator_may_state_other_roles() {
        let own = |role: &str| Arc::from([role.to_owned()]);
        let stated = || Some(["os:admin".to_owned(), " ".to_owned(), "new".to_owned()]);
        for nameless in [Nameless::Nobody, Nameless::Administrator] {
            let establish = |role: &str| Roles::establish(&own(role), stated(), nameless);
            assert_eq!(establish(IMPERSONATOR), roles("os:admin new"));
            assert_eq!(establish(READER), roles(READER));
            let none = Roles::establish(&own(IMPERSONATOR), Some([]), nameless);
            assert_eq!(none, roles(""), "it speaks for somebody without roles");
            let itself = Roles::establish(&own(IMPERSONATOR), None::<[String; 0]>, nameless);
            assert_eq!(itself, roles(IMPERSONATOR));
        }
        assert_eq!(Roles::establish(&own(""), stated(), Nameless::Nobody), roles(""));
    }

    #[test]
    fn only_root_has_roles_on_the_node_itself_and_those_it_states() {
        let stated = || ["os:reader".to_owned()];
        assert_eq!(Roles::of_process(0, stated()), roles(READER));
        assert_eq!(Roles::of_process(0, []), roles(""));
        assert_eq!(Roles::of_process(50, stated()), roles(""));
    }

    #[test]
    fn a_certificate_without_roles_is_the_administrators_only_by_the_switch() {
        let establish = |organizations: &[&str], nameless| {
            let own = organizations.iter().map(|name| (*name).to_owned()).collect();
            Roles::establish(&own, Some(["os:reader".to_owned()]), nameless)
        };
        for organizations in [&[][..], &[""], &["", " "]] {
            assert_eq!(establish(organizations, Nameless::Nobody), roles(""));
            assert_eq!(establish(organizations, Nameless::Administrator), roles(ADMIN));
        }
        for organizations in [&["os:reader"][..], &["", "os:reader"], &["somebody"]] {
            let named = roles(&organizations.join(" "));
            assert_eq!(establish(organizations, Nameless::Administrator), named);
        }
    }
}
