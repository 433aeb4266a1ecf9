//! The services of this node: how each is run, what it waits for, what it may touch (spec §8.4).
//!
//! Daemons are this very binary in containers of containerd's namespace `system`: the root is an empty
//! read-only folder with the binary bound to `/ID`, and every daemon has its own user, capabilities
//! and cgroup. (Before containerd runs, networkd may have to be a plain process: the early network.)
//! Their sockets lie in folders that only those who may call them can enter.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use orlop_config::machine::{MachineConfig, Network, Time};
use orlop_proto::health::health_client::HealthClient;
use orlop_rt::Chain;
use orlop_supervise::container::{self, Bind, Capability, Namespaces};
use orlop_supervise::process::{self, KillMode, Privileges};
use orlop_supervise::seccomp::{Group, Profile};
use orlop_supervise::{
    Condition, Containerd, Definition, Dependency, Health, Hook, Permissions, Prepared, Runner,
    Timing, health,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;
use tonic::Code;
use tracing::{info, warn};

use crate::api;
use crate::apiserver;
use crate::curator;
use crate::error::Error;
use crate::etcd::host as etcd;
use crate::handover;
use crate::identity::{self, Keeper, Origin};
use crate::metrics;
use crate::network;
use crate::node::{BOOT_LIMIT, Node};

/// The one binary, on the read-only root.
pub(crate) const BINARY: &str = "/sbin/orlop";
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
pub(crate) const NETWORKD_SOCKET: &str = "/system/run/networkd/networkd.sock";
/// For programs of the node, in containers that have its folder.
pub(crate) const APID_SOCKET: &str = "/system/run/apid/apid.sock";
const ROUTERD_SOCKET: &str = "/system/run/routerd/routerd.sock";
pub(crate) const TIMED_SOCKET: &str = "/system/run/timed/timed.sock";
const UDEVD_SOCKET: &str = "/system/run/udevd/udevd.sock";
const UDEV_RULES: &str = "/system/etc/udev.rules";
const NETWORK_CONFIG: &str = "/system/etc/networkd.yaml";
const TIME_CONFIG: &str = "/system/etc/timed.yaml";

/// Where what services write outlives the boot.
const LOGS: &str = "/var/log/orlop";

/// The folder for apid's certificates.
pub(crate) const APID_SECRETS: &str = "/system/secrets/apid";

/// The folder for the authority's key, the token and trustd's certificate.
pub(crate) const TRUSTD_SECRETS: &str = "/system/secrets/trustd";
/// What networkd asks etcd with, where an address wanders between control planes.
pub(crate) const NETWORKD_SECRETS: &str = "/system/secrets/networkd";
/// Where control planes may place files for this node (spec §4.1).
const TRUST_FOLDER: &str = "/var/lib/orlop/trust";

/// Where networkd leaves the time servers that the network gave, for timed.
const TIME_SERVERS: &str = "/system/run/ntp/servers";
/// The authorities that all the world believes.
const ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where timed keeps what it learned of the oscillator.
const TIMED_STATE: &str = "/var/lib/orlop/timed";
/// The clock that runs while the machine is off; those the machine's host shows.
const CLOCK_DEVICES: [&str; 3] = ["/dev/rtc0", "/dev/ptp0", "/dev/ptp1"];

/// Users, each with a group of the same number (`/etc/passwd` of the image).
pub(crate) const APID_UID: u32 = 50;
pub(crate) const TRUSTD_UID: u32 = 51;
pub(crate) const NETWORKD_UID: u32 = 52;
pub(crate) const ROUTERD_UID: u32 = 53;
const TIMED_UID: u32 = 54;

const APID_PORT: u16 = 50000;
const TRUSTD_PORT: u16 = 50001;
/// apid lets calls under way finish (spec §8.4).
const APID_GRACE: Duration = Duration::from_secs(15);
/// Ten thousand idle callers, as many as apid lets in, take half of it (`make bench`).
const APID_MEMORY: i64 = 512 << 20;
/// From a service's start until its silence is told.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the early network gets before fetching is tried all the same.
const NETWORK_LIMIT: Duration = Duration::from_secs(30);
/// A daemon of ours has one thread, and a few at times for what may block.
const DAEMON_THREADS: i64 = 128;
/// The third is for the port of DHCPv6 clients, the last sets the host name.
const NETWORKD_CAPABILITIES: [Capability; 4] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_ADMIN,
];
/// Of the daemons that everything else hangs on.
const PRECIOUS: i32 = -998;

/// The ids of all services that a node with this configuration runs, in the order of the story.
const ALL: [&str; 6] = ["machined", "containerd", "udevd", "networkd", "routerd", "apid"];
/// Those of spec §8.4 whose programs are not in this image, and whether only control planes run them.
const ABSENT: [(&str, bool); 4] =
    [("cri", false), ("etcd", true), ("kubelet", false), ("bootkube", true)];

/// Loads and starts containerd; nobody waits for it here.
pub(crate) async fn start_containerd(node: &Node) -> Result<(), Error> {
    let mut spec = process::Spec::new(["/bin/containerd", "--config", "/etc/cri/containerd.toml"]);
    spec.env = vec![("PATH".to_owned(), "/sbin:/bin:/opt/cni/bin".to_owned())];
    spec.cgroup = Some("/sys/fs/cgroup/system/runtime".into());
    // Its shims outlive it, and with them the containers.
    spec.kill = KillMode::Process;
    spec.oom_score_adj = Some(PRECIOUS);
    let definition = Definition {
        health: Some(patient(health::unix(CONTAINERD_SOCKET))),
        ..Definition::new("containerd", Runner::Process(spec, node.reaper().clone()))
    };
    std::os::unix::fs::symlink(CONTAINERD_SOCKET, "/system/run/containerd/containerd.sock")
        .map_err(|source| Error::file("link", "/system/run/containerd/containerd.sock", source))?;
    start(node, definition).await?;
    node.spawn(read_ahead());
    Ok(())
}

/// Brings what the first container needs into memory while containerd is still coming up: on a cold
/// boot every page of it would be decompressed when it is waited for.
async fn read_ahead() {
    const PROGRAMS: [&str; 2] = ["/bin/containerd-shim-runc-v2", "/bin/crun"];
    let read = || {
        for path in PROGRAMS {
            if let Err(error) =
                File::open(path).and_then(|mut file| io::copy(&mut file, &mut io::sink()))
            {
                warn!(path, %error, "read ahead");
            }
        }
    };
    // Nobody waits for it; a panic in it would have been told by the hook.
    let _ = spawn_blocking(read).await;
}

/// Starts networkd as a plain process, before there is a containerd to run it in, for a configuration
/// that must be fetched: defaults and kernel arguments are all it goes by. The container that takes
/// its place adopts what it has set up.
pub(crate) async fn start_early_network(node: &Node) -> Result<(), Error> {
    let mut spec = process::Spec::new([BINARY, "networkd"]);
    spec.cgroup = Some("/sys/fs/cgroup/system/networkd".into());
    spec.privileges = Some(Privileges {
        user: (NETWORKD_UID, NETWORKD_UID),
        capabilities: NETWORKD_CAPABILITIES.to_vec(),
    });
    socket_folder(Path::new(NETWORKD_SOCKET), NETWORKD_UID, ROUTERD_UID)?;
    socket_folder(Path::new(TIME_SERVERS), NETWORKD_UID, TIMED_UID)?;
    let definition = Definition {
        health: Some(patient(Health::new(networkd_ready))),
        ..Definition::new("networkd", Runner::Process(spec, node.reaper().clone()))
    };
    start(node, definition).await?;
    if let Err(error) = node.supervisor().wait_up(&["networkd"], NETWORK_LIMIT).await {
        warn!(error = %Chain(&error), "no network yet; fetching the configuration all the same");
    }
    Ok(())
}

/// Loads and starts machined's own API.
pub(crate) async fn start_api(node: &Node) -> Result<(), Error> {
    let served = node.clone();
    let runner = Runner::task(move |shutdown| {
        let node = served.clone();
        async move { api::serve(node, shutdown).await.map_err(|error| error.to_string()) }
    });
    socket_folder(Path::new(api::SOCKET), 0, ROUTERD_UID)?;
    let (told, shutdown) = (node.clone(), node.shutdown().clone());
    let text = move || {
        let node = told.clone();
        async move { metrics::text(&node).await }
    };
    node.spawn(metrics::socket::serve(metrics::socket::SOCKET, text, shutdown));
    let (events, shutdown) = (node.events().clone(), node.shutdown().clone());
    node.spawn(network::follow(Path::new(NETWORKD_SOCKET), events, shutdown));
    // `/var` is mounted by now.
    node.logs().start(LOGS.into());
    start(node, Definition::new("machined", runner)).await
}

/// What anybody who finds a node without a configuration is shown.
#[derive(Debug)]
pub(crate) struct Door {
    /// Of apid's certificate.
    pub(crate) fingerprint: String,
    /// Where apid answers.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Starts the network by its defaults, and an apid that is open to anybody.
pub(crate) async fn start_maintenance(node: &Node) -> Result<Door, Error> {
    write_network(&Network::default())?;
    socket_folders()?;
    let containerd = runtime();
    for definition in [networkd(&containerd), routerd(&containerd)] {
        start(node, definition).await?;
    }
    if let Err(error) = node.supervisor().wait_up(&["networkd"], NETWORK_LIMIT).await {
        warn!(error = %Chain(&error), "no network yet; waiting for a configuration all the same");
    }
    let (fingerprint, addresses) = identity::write_throw_away(SystemTime::now())?;
    start(node, apid(&containerd, &["--maintenance"], true)).await?;
    node.supervisor().wait_up(&["routerd", "apid"], BOOT_LIMIT).await.map_err(Error::Services)?;
    Ok(Door { fingerprint, addresses })
}

/// Closes it, once the calls under way have their answers. The rest goes on until [`prepare`].
pub(crate) async fn stop_maintenance(node: &Node) -> Result<(), Error> {
    node.supervisor().stop("apid").await.map_err(Error::Services)
}

/// Has networkd give its leases back to their servers when it stops.
pub(crate) fn release_leases() -> std::io::Result<()> {
    std::fs::write(Path::new(NETWORKD_SOCKET).with_file_name("release"), "")
}

/// Lets networkd go by another `machine.network`.
pub(crate) async fn apply_network(node: &Node, network: &Network) -> Result<(), Error> {
    write_network(network)?;
    node.supervisor().restart("networkd").await.map_err(Error::Services)
}

/// Lets timed go by another `machine.time`, or be there at all: it sees by itself what is written, and
/// keeps what it knows of the servers that stay.
pub(crate) async fn apply_time(node: &Node, time: &Time) -> Result<(), Error> {
    let supervisor = node.supervisor();
    let loaded = supervisor.status("timed").await.is_ok();
    match (time.disabled, loaded) {
        (true, true) => supervisor.stop("timed").await.map_err(Error::Services),
        (true, false) => Ok(()),
        (false, true) => {
            write_time(time)?;
            supervisor.start("timed").await.map_err(Error::Services)
        }
        (false, false) => start(node, timed(&runtime(), time, true)?).await,
    }
}

/// Makes what the daemons need of files and folders, and loads them.
pub(crate) async fn prepare(node: &Node) -> Result<(), Error> {
    let config = node.config()?;
    write_network(&config.machine.network)?;
    write_rules(&config.machine.udev.rules)?;
    socket_folders()?;
    let origin = Origin::of(&config);
    let mut keeper = Keeper::new(node);
    if origin == Origin::Authority {
        keeper.look().await?;
    }
    let containerd = runtime();
    // It went by its defaults so far: for fetching, or in maintenance.
    if node.supervisor().status("networkd").await.is_ok() {
        node.supervisor().stop("networkd").await.map_err(Error::Services)?;
    }
    let args: &[&str] = match config.machine.features.rbac {
        Some(false) => &["--nameless-is-admin"],
        _ => &[],
    };
    let mut apid = apid(&containerd, args, origin != Origin::Nowhere);
    if origin == Origin::Trustd {
        let ready = keeper.ready();
        apid.condition = Some(Condition::new("a certificate from trustd", move || {
            let mut ready = ready.clone();
            // The keeper goes away with the node only.
            async move { drop(ready.wait_for(|ready| *ready).await) }
        }));
    }
    let mut definitions = vec![udevd(node), networkd(&containerd), routerd(&containerd), apid];
    if origin == Origin::Authority && config.machine.token.is_some() {
        definitions.push(trustd(&containerd, &config)?);
        if config.machine.kind.is_control_plane() {
            if let Some(pki) = handover::kept(&config) {
                node.hand(pki);
            }
            node.spawn(handover::give(node.clone()));
            node.spawn(handover::take(node.clone()));
        }
    }
    let by_roles = node.goes_by_roles();
    let controls = config.machine.kind.is_control_plane() && !by_roles;
    if by_roles {
        definitions.push(curator::definition(&containerd)?);
        node.spawn(curator::follow(node.clone()));
    }
    if let Some(program) = etcd::program().filter(|_| controls) {
        definitions.push(etcd::definition(node, &containerd, program));
        node.spawn(etcd::keep_secrets(node.clone()));
    }
    if controls {
        definitions.push(apiserver::definition(node, &kubernetes())?);
        node.spawn(apiserver::keep_secrets(node.clone()));
    }
    if !config.machine.time.disabled {
        let time = &config.machine.time;
        if waits_for_time(time) {
            for definition in &mut definitions {
                if ["apid", "trustd", "etcd", apiserver::ID].contains(&definition.id.as_str()) {
                    definition.dependencies.push(Dependency::to_start("timed"));
                }
            }
        }
        let early = waits_for_time(time) || origin != Origin::Authority;
        definitions.push(timed(&containerd, time, early)?);
    }
    for id in absent(&config) {
        definitions.push(skipped(id));
    }
    for definition in definitions {
        node.supervisor().load(definition).await.map_err(Error::Services)?;
    }
    let left_out: Vec<_> = absent(&config).collect();
    info!("not in this image, and skipped: {}", left_out.join(" "));
    if by_roles {
        return Ok(());
    }
    if origin == Origin::Nowhere {
        warn!(
            "this node has no API: its configuration holds neither machine.ca.key nor machine.token, \
             for which trustd gives a certificate; add one of them"
        );
        return Ok(());
    }
    let handle = node.supervisor().clone();
    node.spawn(async move {
        // The addresses are known as soon as networkd is up; apid's start waits for that as well.
        let _ = handle.wait_up(&["networkd"], BOOT_LIMIT).await;
        keeper.run().await;
    });
    Ok(())
}

fn absent(config: &MachineConfig) -> impl Iterator<Item = &'static str> {
    let controls = config.machine.kind.is_control_plane();
    let here = |id: &str| id == "etcd" && etcd::program().is_some();
    let skipped = ABSENT.iter().filter(move |(_, only)| controls || !only).map(|(id, _)| *id);
    skipped.filter(move |id| !here(id))
}

/// A service that is known, and ends as `Skipped` when it is started.
fn skipped(id: &str) -> Definition {
    let never = Runner::task(|_| async { Err("its program is not in this image".to_owned()) });
    let prepare = Some(Hook::new(|| async { Ok(Prepared::Skip) }));
    Definition { prepare, ..Definition::new(id, never) }
}

fn runtime() -> Containerd {
    Containerd::new(container::Options {
        shim_cgroup: Some("/system/runtime".to_owned()),
        binary: Some("crun".to_owned()),
        ..container::Options::new(CONTAINERD_SOCKET)
    })
}

/// Where Kubernetes' own services run: beside its pods.
pub(crate) fn kubernetes() -> Containerd {
    Containerd::new(container::Options {
        namespace: "k8s.io".to_owned(),
        shim_cgroup: Some("/podruntime/runtime".to_owned()),
        binary: Some("crun".to_owned()),
        ..container::Options::new(CONTAINERD_SOCKET)
    })
}

fn socket_folders() -> Result<(), Error> {
    socket_folder(Path::new(NETWORKD_SOCKET), NETWORKD_UID, ROUTERD_UID)?;
    own_folder(Path::new(NETWORKD_SECRETS), NETWORKD_UID)?;
    socket_folder(Path::new(TIMED_SOCKET), TIMED_UID, ROUTERD_UID)?;
    socket_folder(Path::new(TIME_SERVERS), NETWORKD_UID, TIMED_UID)?;
    socket_folder(Path::new(ROUTERD_SOCKET), ROUTERD_UID, APID_UID)?;
    socket_folder(Path::new(APID_SOCKET), APID_UID, 0)
}

/// Starts all that are loaded and waits until they are up.
pub(crate) async fn start_all(node: &Node, limit: Duration) -> Result<(), Error> {
    let mut ids = ALL.to_vec();
    // On control planes only.
    if node.supervisor().status("trustd").await.is_ok() {
        ids.push("trustd");
    }
    if node.goes_by_roles() {
        ids.push(curator::ID);
    }
    ids.extend(absent(&*node.config()?));
    for id in &ids {
        node.supervisor().start(id).await.map_err(Error::Services)?;
    }
    // They may have to wait for a cluster to begin; nobody waits for them.
    for id in ["etcd", apiserver::ID] {
        if !ids.contains(&id) && node.supervisor().status(id).await.is_ok() {
            node.supervisor().start(id).await.map_err(Error::Services)?;
        }
    }
    if node.supervisor().status("timed").await.is_ok() {
        node.supervisor().start("timed").await.map_err(Error::Services)?;
        // Only who asks for the right time waits for it (`machine.time.bootTimeout`).
        if waits_for_time(&node.config()?.machine.time) {
            ids.push("timed");
        }
    }
    node.supervisor().wait_up(&ids, limit).await.map_err(Error::Services)
}

/// Whether networkd has set up what it can.
pub(crate) async fn networkd_ready() -> Result<(), String> {
    ready("networkd", NETWORKD_SOCKET, "no interface is configured yet").await
}

/// Whether those who wait for the right time may go on.
async fn timed_ready() -> Result<(), String> {
    ready("timed", TIMED_SOCKET, "the clock is not synchronised yet").await
}

/// Asks a daemon of ours whether it is ready (spec §5.7); `not_yet` is the word for that it is not.
async fn ready(daemon: &str, socket: &str, not_yet: &str) -> Result<(), String> {
    use orlop_proto::health::ready_check::ReadyStatus;
    let channel = orlop_rpc::unix::channel(socket);
    let answer =
        HealthClient::new(channel).ready(()).await.map_err(|status| match status.code() {
            Code::Unavailable => format!("{daemon} does not answer yet"),
            _ => status.message().to_owned(),
        })?;
    let ready =
        answer.into_inner().messages.iter().any(|check| check.status() == ReadyStatus::Ready);
    if ready { Ok(()) } else { Err(not_yet.to_owned()) }
}

fn networkd(containerd: &Containerd) -> Definition {
    let mut spec = daemon("networkd", NETWORKD_UID, &["--config", NETWORK_CONFIG]);
    spec.capabilities = NETWORKD_CAPABILITIES.to_vec();
    spec.seccomp = Some(Profile::new([
        Group::Unix,
        Group::Inet,
        Group::Netlink,
        Group::Packet,
        Group::HostName,
    ]));
    spec.host = Namespaces { network: true, uts: true, pid: false };
    spec.sysctl = true;
    spec.binds.extend([
        same_read_only(NETWORK_CONFIG),
        // Whom its resolver trusts that is told of no authority.
        same_read_only("/etc/ssl/certs/ca-certificates.crt"),
        same_read_write("/etc/resolv.conf"),
        same_read_write("/etc/hosts"),
        same_read_write(folder(NETWORKD_SOCKET)),
        same_read_only(NETWORKD_SECRETS),
        same_read_write(folder(TIME_SERVERS)),
    ]);
    Definition {
        dependencies: vec![Dependency::to_prepare("containerd")],
        health: Some(patient(Health::new(networkd_ready))),
        permissions: RESTARTABLE,
        ..Definition::new("networkd", Runner::Container(Box::new(spec), containerd.clone()))
    }
}

/// Whether services wait for the right time, and the boot with them.
fn waits_for_time(time: &Time) -> bool {
    !time.disabled && time.boot_timeout.is_some_and(|limit| !limit.is_zero())
}

/// Keeps the clock. Unless it is needed `early`, apid comes first: a node's first answer does not wait
/// for a container that nothing else waits for.
fn timed(containerd: &Containerd, time: &Time, early: bool) -> Result<Definition, Error> {
    write_time(time)?;
    own_folder(Path::new(TIMED_STATE), TIMED_UID)?;
    let mut spec = daemon("timed", TIMED_UID, &["--config", TIME_CONFIG]);
    spec.capabilities = vec![Capability::CAP_SYS_TIME];
    spec.seccomp = Some(Profile::new([Group::Unix, Group::Inet, Group::Clock]));
    spec.host.network = true;
    spec.memory_limit_bytes = Some(32 << 20);
    spec.devices = CLOCK_DEVICES.map(PathBuf::from).to_vec();
    spec.binds.extend([
        same_read_only(TIME_CONFIG),
        same_read_only("/etc/resolv.conf"),
        same_read_only("/etc/hosts"),
        same_read_only(ROOTS),
        same_read_only(folder(TIME_SERVERS)),
        same_read_write(folder(TIMED_SOCKET)),
        same_read_write(TIMED_STATE),
    ]);
    let mut dependencies =
        vec![Dependency::to_prepare("containerd"), Dependency::to_start("networkd")];
    if !early {
        dependencies.push(Dependency::to_prepare("apid"));
    }
    Ok(Definition {
        dependencies,
        health: Some(patient(Health::new(timed_ready))),
        permissions: RESTARTABLE,
        ..Definition::new("timed", Runner::Container(Box::new(spec), containerd.clone()))
    })
}

/// udevd is a plain process: its devices are those of the whole machine. It keeps of root's rights
/// what nodes, modules, renaming and a large buffer for events need.
fn udevd(node: &Node) -> Definition {
    let mut spec = process::Spec::new([BINARY, "udevd", "--rules", UDEV_RULES]);
    spec.cgroup = Some("/sys/fs/cgroup/system/udevd".into());
    spec.privileges = Some(Privileges {
        user: (0, 0),
        capabilities: vec![
            Capability::CAP_CHOWN,
            Capability::CAP_DAC_READ_SEARCH,
            Capability::CAP_FOWNER,
            Capability::CAP_NET_ADMIN,
            Capability::CAP_SYS_MODULE,
        ],
    });
    let timing = Timing {
        initial_delay: START_LIMIT,
        period: Duration::from_secs(60),
        timeout: Duration::from_secs(55),
    };
    Definition {
        health: Some(Health::new(devices_settled).with_timing(timing)),
        permissions: RESTARTABLE,
        ..Definition::new("udevd", Runner::Process(spec, node.reaper().clone()))
    }
}

/// Whether every device is dealt with: udevd answers once it is (spec §8.4).
async fn devices_settled() -> Result<(), String> {
    let ask = async || {
        let mut udevd = UnixStream::connect(UDEVD_SOCKET).await?;
        udevd.write_all(b"settle\n").await?;
        let mut answer = String::new();
        udevd.take(4096).read_to_string(&mut answer).await.map(|_| answer)
    };
    match ask().await {
        Ok(answer) if answer == "ok\n" => Ok(()),
        Ok(answer) => Err(format!("udevd: {}", answer.trim_end())),
        Err(error) => Err(format!("ask {UDEVD_SOCKET}: {error}")),
    }
}

fn routerd(containerd: &Containerd) -> Definition {
    let mut spec = daemon("routerd", ROUTERD_UID, &[]);
    spec.seccomp = Some(Profile::new([Group::Unix]));
    spec.binds.extend([
        same_read_only(folder(api::SOCKET)),
        same_read_only(folder(NETWORKD_SOCKET)),
        same_read_only(folder(TIMED_SOCKET)),
        same_read_write(folder(ROUTERD_SOCKET)),
    ]);
    Definition {
        dependencies: vec![Dependency::to_prepare("containerd")],
        health: Some(patient(health::unix(ROUTERD_SOCKET))),
        ..Definition::new("routerd", Runner::Container(Box::new(spec), containerd.clone()))
    }
}

fn apid(containerd: &Containerd, args: &[&str], identified: bool) -> Definition {
    let mut spec = daemon("apid", APID_UID, &[&["--socket", APID_SOCKET], args].concat());
    spec.host.network = true;
    spec.seccomp = Some(Profile::new([Group::Unix, Group::Inet]));
    spec.oom_score_adj = PRECIOUS;
    spec.memory_limit_bytes = Some(APID_MEMORY);
    spec.binds.extend([
        same_read_only(APID_SECRETS),
        same_read_only(folder(ROUTERD_SOCKET)),
        same_read_write(folder(APID_SOCKET)),
    ]);
    let prepare = Hook::new(move || async move {
        if identified { Ok(Prepared::Run) } else { Ok(Prepared::Skip) }
    });
    Definition {
        dependencies: vec![Dependency::to_prepare("containerd"), Dependency::to_start("networkd")],
        prepare: Some(prepare),
        health: Some(patient(health::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, APID_PORT))))),
        grace: APID_GRACE,
        permissions: RESTARTABLE,
        ..Definition::new("apid", Runner::Container(Box::new(spec), containerd.clone()))
    }
}

/// Signs for the nodes that hold the token, takes files from other control planes.
fn trustd(containerd: &Containerd, config: &MachineConfig) -> Result<Definition, Error> {
    let drops: Vec<&str> = std::iter::once(TRUST_FOLDER)
        .chain(config.machine.trustd.drop.iter().map(String::as_str))
        .collect();
    let hosts = identity::trustd_hosts(config);
    let mut args = Vec::new();
    args.extend(drops.iter().flat_map(|folder| ["--drop", folder]));
    args.extend(config.machine.cert_sans.iter().flat_map(|name| ["--san", name.as_str()]));
    // A worker that went by a trustd's name could take its place.
    args.extend(hosts.iter().flat_map(|host| ["--reserve", host.as_str()]));
    let mut spec = daemon("trustd", TRUSTD_UID, &args);
    spec.host.network = true;
    spec.seccomp = Some(Profile::new([Group::Unix, Group::Inet]));
    spec.memory_limit_bytes = Some(96 << 20);
    spec.binds.push(same_read_only(TRUSTD_SECRETS));
    for drop in drops {
        own_folder(Path::new(drop), TRUSTD_UID)?;
        spec.binds.push(same_read_write(drop));
    }
    Ok(Definition {
        dependencies: vec![Dependency::to_prepare("containerd"), Dependency::to_start("networkd")],
        health: Some(patient(health::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, TRUSTD_PORT))))),
        permissions: RESTARTABLE,
        ..Definition::new("trustd", Runner::Container(Box::new(spec), containerd.clone()))
    })
}

/// A folder `uid` writes in. One that is there stays as it is.
pub(crate) fn own_folder(folder: &Path, uid: u32) -> Result<(), Error> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)
        .and_then(|()| chown(folder, Some(uid), Some(uid)))
        .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o750)))
        .map_err(|source| Error::file("create the folder", folder, source))
}

const RESTARTABLE: Permissions = Permissions { start: true, stop: false, restart: true };

/// A slow machine takes long to start things: it is no news until then that they do not answer.
pub(crate) fn patient(health: Health) -> Health {
    let timing = Timing { initial_delay: START_LIMIT, ..health.timing };
    health.with_timing(timing)
}

/// A daemon of ours under its own user.
pub(crate) fn daemon(id: &str, uid: u32, args: &[&str]) -> container::Spec {
    container::Spec {
        user: (uid, uid),
        pids_limit: Some(DAEMON_THREADS),
        ..container::Spec::new(id, BINARY, args.iter().copied())
    }
}

fn same_read_only(path: impl Into<PathBuf>) -> Bind {
    let path = path.into();
    Bind::read_only(path.clone(), path)
}

fn same_read_write(path: impl Into<PathBuf>) -> Bind {
    let path = path.into();
    Bind::read_write(path.clone(), path)
}

async fn start(node: &Node, definition: Definition) -> Result<(), Error> {
    let id = definition.id.clone();
    node.supervisor().load(definition).await.map_err(Error::Services)?;
    node.supervisor().start(&id).await.map_err(Error::Services)
}

pub(crate) fn folder(socket: &str) -> PathBuf {
    Path::new(socket).parent().map(Path::to_owned).unwrap_or_default()
}

/// The folder of a socket: `server` writes in it, the group `caller` may enter, nobody else.
pub(crate) fn socket_folder(socket: &Path, server: u32, caller: u32) -> Result<(), Error> {
    let folder = socket.parent().unwrap_or(socket);
    fs::create_dir_all(folder)
        .and_then(|()| chown(folder, Some(server), Some(caller)))
        .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o750)))
        .map_err(|source| Error::file("create the folder", folder, source))
}

fn write_rules(rules: &[String]) -> Result<(), Error> {
    fs::write(UDEV_RULES, rules.join("\n"))
        .map_err(|source| Error::file("write", UDEV_RULES, source))
}

fn write_time(time: &Time) -> Result<(), Error> {
    fs::write(TIME_CONFIG, time.to_yaml())
        .and_then(|()| fs::set_permissions(TIME_CONFIG, fs::Permissions::from_mode(0o440)))
        .and_then(|()| chown(TIME_CONFIG, None, Some(TIMED_UID)))
        .map_err(|source| Error::file("write", TIME_CONFIG, source))
}

fn write_network(network: &Network) -> Result<(), Error> {
    fs::write(NETWORK_CONFIG, network.to_yaml())
        .and_then(|()| fs::set_permissions(NETWORK_CONFIG, fs::Permissions::from_mode(0o440)))
        .and_then(|()| chown(NETWORK_CONFIG, None, Some(NETWORKD_UID)))
        .map_err(|source| Error::file("write", NETWORK_CONFIG, source))
}
