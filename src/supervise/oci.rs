//! The description of a container (OCI runtime specification) that a service's [`Spec`] stands for.
//!
//! Everything is refused that the service does not ask for: no capabilities, no devices but the
//! harmless ones every runtime adds (`/dev/null` and the like), no new privileges, a read-only root,
//! masked and read-only paths below `/proc` and `/sys`, namespaces of its own.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

pub use caps::Capability;
use nix::sys::stat::{major, minor};
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDevice, LinuxDeviceBuilder,
    LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResourcesBuilder, Mount,
    MountBuilder, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder,
    SpecBuilder, UserBuilder, get_default_maskedpaths, get_default_readonly_paths,
};

use crate::seccomp::Profile;

/// Containers of one value share a shim process.
const GROUP: &str = "io.containerd.runc.v2.group";

/// How to run a service as a container. Fill what differs from [`Spec::new`].
#[derive(Clone, Debug)]
pub struct Spec {
    /// The program's path in the container, then its arguments.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: Vec<(String, String)>,
    /// The directory that becomes its root, read-only; made if missing. Mount points are made in it.
    pub root: PathBuf,
    /// What it sees of the host.
    pub binds: Vec<Bind>,
    /// Its user and group.
    pub user: (u32, u32),
    /// What it may do beyond its user, and all it can ever get; kept across exec (ambient), so it
    /// need not be root.
    pub capabilities: Vec<Capability>,
    /// What it shares with the host.
    pub host: Namespaces,
    /// Whether `/proc/sys` is writable, as far as its capabilities go.
    pub sysctl: bool,
    /// Devices of the host it may read and write, at the same paths; those the host has.
    pub devices: Vec<PathBuf>,
    /// Its cgroup, below the root of cgroups: `/system/apid`.
    pub cgroup: String,
    /// Memory it may use.
    pub memory_limit_bytes: Option<i64>,
    /// Processes and threads it may be.
    pub pids_limit: Option<i64>,
    /// The system calls it may make; `None` is all of them.
    pub seccomp: Option<Profile>,
    /// Files it may have open; `None` inherits containerd's limit.
    pub open_files: Option<u64>,
    /// -1000 (never killed for want of memory) to 1000 (first).
    pub oom_score_adj: i32,
}

impl Spec {
    /// `program` of the host, alone in a root of its own: bound to `/<id>`, rooted at
    /// `/system/libexec/<id>`, in cgroup `/system/<id>`, called with its own path and `args`.
    pub fn new<S: Into<String>>(
        id: &str,
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let path = format!("/{id}");
        Self {
            args: std::iter::once(path.clone()).chain(args.into_iter().map(Into::into)).collect(),
            env: Vec::new(),
            root: PathBuf::from("/system/libexec").join(id),
            binds: vec![Bind::program(program, path)],
            user: (0, 0),
            capabilities: Vec::new(),
            host: Namespaces::default(),
            sysctl: false,
            devices: Vec::new(),
            cgroup: format!("/system/{id}"),
            memory_limit_bytes: None,
            pids_limit: None,
            seccomp: None,
            open_files: None,
            oom_score_adj: 0,
        }
    }
}

/// A file or directory of the host, seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    source: PathBuf,
    target: PathBuf,
    options: &'static [&'static str],
}

impl Bind {
    /// `source` at `target`, to be read.
    pub fn read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self::with(source, target, &["rbind", "rslave", "ro", "nosuid", "nodev", "noexec"])
    }

    /// `source` at `target`, to be read and written.
    pub fn read_write(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self::with(source, target, &["rbind", "rslave", "rw", "nosuid", "nodev", "noexec"])
    }

    /// `source` at `target`, to be run.
    pub fn program(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self::with(source, target, &["bind", "ro", "nosuid", "nodev"])
    }

    fn with(
        source: impl Into<PathBuf>,
        target: impl Into<PathBuf>,
        options: &'static [&'static str],
    ) -> Self {
        Self { source: source.into(), target: target.into(), options }
    }
}

/// Namespaces shared with the host. Those of mounts and IPC never are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Links, addresses, ports.
    pub network: bool,
    /// Processes.
    pub pid: bool,
    /// The host name.
    pub uts: bool,
}

/// The description cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field is missing or contradicts another.
    #[error("build the OCI specification")]
    Build(#[from] oci_spec::OciSpecError),
    /// It cannot be written as JSON, or names a capability the specification does not know.
    #[error("encode the OCI specification")]
    Encode(#[from] serde_json::Error),
}

/// The JSON containerd hands to the OCI runtime.
pub(crate) fn encode(spec: &Spec, id: &str, group: &str) -> Result<Vec<u8>, Error> {
    let root = RootBuilder::default().path(&spec.root).readonly(true).build()?;
    let mut described = SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .process(process(spec)?)
        .mounts(mounts(spec)?)
        .linux(linux(spec)?)
        .annotations(HashMap::from([
            (GROUP.to_owned(), group.to_owned()),
            ("orlop.service".to_owned(), id.to_owned()),
        ]))
        .build()?;
    // The builder brings a name of its own, which a runtime refuses where the host's is shared.
    described.set_hostname((!spec.host.uts).then(|| id.to_owned()));
    Ok(serde_json::to_vec(&described)?)
}

fn process(spec: &Spec) -> Result<Process, Error> {
    let capabilities = spec
        .capabilities
        .iter()
        .map(|capability| serde_json::from_value(capability.to_string().into()))
        .collect::<Result<HashSet<_>, _>>()?;
    let limits =
        [(PosixRlimitType::RlimitCore, Some(0)), (PosixRlimitType::RlimitNofile, spec.open_files)];
    let limits = limits.into_iter().filter_map(|(kind, most)| {
        Some(PosixRlimitBuilder::default().typ(kind).soft(most?).hard(most?).build())
    });
    Ok(ProcessBuilder::default()
        .terminal(false)
        .cwd("/")
        .args(spec.args.clone())
        .env(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>())
        .user(UserBuilder::default().uid(spec.user.0).gid(spec.user.1).build()?)
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(capabilities.clone())
                .permitted(capabilities.clone())
                .effective(capabilities.clone())
                .inheritable(capabilities.clone())
                .ambient(capabilities)
                .build()?,
        )
        .rlimits(limits.collect::<Result<Vec<_>, _>>()?)
        .no_new_privileges(true)
        .oom_score_adj(spec.oom_score_adj)
        .build()?)
}

fn mounts(spec: &Spec) -> Result<Vec<Mount>, Error> {
    let special = |target: &str, kind: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(target)
            .typ(kind)
            .source(kind)
            .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
            .build()
    };
    let mut mounts = vec![
        special("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        // The runtime makes the harmless devices in it; its root may be on a file system without any.
        special("/dev", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"])?,
        special("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
        special("/tmp", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=16m"])?,
    ];
    for bind in &spec.binds {
        mounts.push(
            MountBuilder::default()
                .destination(&bind.target)
                .typ("bind")
                .source(&bind.source)
                .options(bind.options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
                .build()?,
        );
    }
    Ok(mounts)
}

fn linux(spec: &Spec) -> Result<Linux, Error> {
    let devices = devices(spec)?;
    let mut rules = vec![LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?];
    for device in &devices {
        let rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::C)
            .major(device.major())
            .minor(device.minor())
            .access("rw");
        rules.push(rule.build()?);
    }
    let mut resources = LinuxResourcesBuilder::default().devices(rules);
    if let Some(limit) = spec.memory_limit_bytes {
        resources = resources.memory(LinuxMemoryBuilder::default().limit(limit).build()?);
    }
    if let Some(limit) = spec.pids_limit {
        resources = resources.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    let mut read_only = get_default_readonly_paths();
    read_only.retain(|path| !(spec.sysctl && path == "/proc/sys"));
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(spec.host)?)
        .resources(resources.build()?)
        .devices(devices)
        .cgroups_path(&spec.cgroup)
        .masked_paths(get_default_maskedpaths())
        .readonly_paths(read_only);
    if let Some(profile) = &spec.seccomp {
        linux = linux.seccomp(profile.describe()?);
    }
    Ok(linux.build()?)
}

/// The character devices of `spec` that are there, each for its user alone.
fn devices(spec: &Spec) -> Result<Vec<LinuxDevice>, Error> {
    let there = spec.devices.iter().filter_map(|path| {
        let found = fs::metadata(path).ok().filter(|found| found.file_type().is_char_device())?;
        Some((path, found.rdev()))
    });
    there
        .map(|(path, number)| {
            Ok(LinuxDeviceBuilder::default()
                .path(path)
                .typ(LinuxDeviceType::C)
                .major(i64::try_from(major(number)).unwrap_or(i64::MAX))
                .minor(i64::try_from(minor(number)).unwrap_or(i64::MAX))
                .file_mode(0o600_u32)
                .uid(spec.user.0)
                .gid(spec.user.1)
                .build()?)
        })
        .collect()
}

fn namespaces(host: Namespaces) -> Result<Vec<LinuxNamespace>, Error> {
    let all = [
        (LinuxNamespaceType::Mount, false),
        (LinuxNamespaceType::Ipc, false),
        (LinuxNamespaceType::Network, host.network),
        (LinuxNamespaceType::Pid, host.pid),
        (LinuxNamespaceType::Uts, host.uts),
    ];
    all.into_iter()
        .filter(|(_, shared)| !shared)
        .map(|(kind, _)| Ok(LinuxNamespaceBuilder::default().typ(kind).build()?))
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test's failure is its panic")]
mod tests {
    use super::*;

    fn described(spec: &Spec) -> serde_json::Value {
        serde_json::from_slice(&encode(spec, "apid", "system").unwrap()).unwrap()
    }

    #[test]
    fn a_service_gets_the_devices_it_names_that_are_there() {
        let mut spec = Spec::new("timed", "/sbin/orlop", [""; 0]);
        spec.user = (54, 54);
        spec.devices =
            vec!["/dev/null".into(), "/dev/not-there".into(), "/proc/self/status".into()];
        let linux = &described(&spec)["linux"];
        let devices = linux["devices"].as_array().unwrap();
        assert_eq!(devices.len(), 1, "{devices:?}");
        assert_eq!((&devices[0]["major"], &devices[0]["minor"]), (&1.into(), &3.into()));
        assert_eq!((&devices[0]["path"], &devices[0]["uid"]), (&"/dev/null".into(), &54.into()));
        let rules = linux["resources"]["devices"].as_array().unwrap();
        assert_eq!((rules.len(), &rules[0]["allow"]), (2, &false.into()));
        assert_eq!((&rules[1]["major"], &rules[1]["access"]), (&1.into(), &"rw".into()));
    }

    #[test]
    fn a_service_gets_nothing_it_did_not_ask_for() {
        let mut spec = Spec::new("apid", "/sbin/orlop", ["--port", "0"]);
        spec.env = vec![("A".to_owned(), "b".to_owned())];
        spec.user = (50, 50);
        let json = described(&spec);
        assert_eq!(json["root"]["path"], "/system/libexec/apid");
        assert_eq!(json["root"]["readonly"], true);
        assert_eq!(json["annotations"][GROUP], "system");
        let process = &json["process"];
        assert_eq!(process["args"], serde_json::json!(["/apid", "--port", "0"]));
        assert_eq!(process["env"], serde_json::json!(["A=b"]));
        assert_eq!((&process["user"]["uid"], &process["user"]["gid"]), (&50.into(), &50.into()));
        assert_eq!(process["noNewPrivileges"], true);
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(process["capabilities"][set], serde_json::json!([]), "{set}");
        }
        let linux = &json["linux"];
        assert_eq!(linux["cgroupsPath"], "/system/apid");
        assert_eq!(linux["resources"]["devices"][0]["allow"], false);
        assert_eq!(linux["namespaces"].as_array().unwrap().len(), 5);
        assert!(linux["readonlyPaths"].as_array().unwrap().contains(&"/proc/sys".into()));
        let program = &json["mounts"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&program["source"], &program["destination"]),
            (&"/sbin/orlop".into(), &"/apid".into())
        );
        assert!(program["options"].as_array().unwrap().contains(&"ro".into()));
    }

    #[test]
    fn what_is_asked_for_is_given() {
        let mut spec = Spec::new("networkd", "/sbin/orlop", Vec::<String>::new());
        spec.capabilities = caps::all().into_iter().collect();
        spec.host = Namespaces { network: true, pid: true, uts: true };
        spec.sysctl = true;
        spec.memory_limit_bytes = Some(32 << 20);
        spec.pids_limit = Some(64);
        spec.open_files = Some(1024);
        let json = described(&spec);
        let given = json["process"]["capabilities"]["ambient"].as_array().unwrap().len();
        assert_eq!(given, caps::all().len(), "each has its name in the specification");
        assert_eq!(json["process"]["rlimits"][1]["hard"], 1024);
        assert_eq!(json["linux"]["namespaces"].as_array().unwrap().len(), 2);
        assert_eq!(json["linux"]["resources"]["memory"]["limit"], 32 << 20);
        assert_eq!(json["linux"]["resources"]["pids"]["limit"], 64);
        assert!(!json["linux"]["readonlyPaths"].as_array().unwrap().contains(&"/proc/sys".into()));
    }
}
