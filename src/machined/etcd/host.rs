//! etcd's files, children and service on this node.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::{Stream, StreamExt as _};
use orlop_config::machine::{Interface, MachineConfig, MachineType};
use orlop_pki::{Secret, certificate};
use orlop_proto::common::Data as Piece;
use orlop_rt::{Beside, Chain, Exit};
use orlop_supervise::container::{self, Bind, Containerd};
use orlop_supervise::{
    Definition, Dependency, Health, Hook, Permissions, Prepared, Runner, Timing,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{interval, sleep_until, timeout};
use tonic::Status;
use tracing::{info, warn};

use super::client::{Client, Credentials, View};
use super::join::{self, Action, Cluster, Event, Join};
use super::launch::{
    self, Begin, Data, Facts, Hash, Identity, Launch, Places, Refusal, Source, may_bootstrap,
};
use super::secrets::Basis;
use super::snapshot::Check;
use crate::child;
use crate::error::Error;
use crate::identity;
use crate::node::Node;
use crate::plan;
use crate::renewal::{Now, Renewal, Validity};
use crate::services::{BINARY, NETWORKD_SECRETS, NETWORKD_UID, START_LIMIT};

/// Where etcd's program may be: the image's, or one that was put on the EPHEMERAL volume. `etcdutl` is
/// looked for beside it. They may use the C library of the image, and no other.
pub(crate) const PROGRAMS: [&str; 2] = ["/usr/bin/etcd", "/var/lib/orlop/bin/etcd"];
/// The image's C library and its loader.
const LIBRARIES: &str = "/lib";
/// The member's state.
const DATA: &str = "/var/lib/etcd";
/// In it, what a member that has started has.
const LOG: &str = "member/wal";
/// The host's folder of certificates, and where etcd sees it (spec §8.4).
const SECRETS: &str = "/system/secrets/etcd";
const SECRETS_INSIDE: &str = "/etc/kubernetes/pki/etcd";
/// Those of its files that networkd has, too.
const SHARED: [&str; 3] = ["ca.crt", "admin.crt", "admin.key"];
/// What EtcdRecover has taken.
const SNAPSHOT: &str = "/var/lib/orlop/etcd.snapshot";
/// Its user and group (`/etc/passwd` of the image).
const ETCD_UID: u32 = 60;

/// How often names, addresses and age of the certificates are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// From the first start to a member that serves (spec §8.3).
const START_FIRST_LIMIT: Duration = Duration::from_secs(10 * 60);
const BOOTKUBE_LIMIT: Duration = Duration::from_secs(25 * 60);
/// How long Bootstrap waits for the time (spec §5.5).
const SYNC_LIMIT: Duration = Duration::from_secs(5);
/// How long making data of a snapshot may take.
const RESTORE_LIMIT: Duration = Duration::from_secs(10 * 60);
/// More than one try: the child keeps the time itself.
const JOIN_CHILD_LIMIT: Duration = Duration::from_secs(join::TRY_LIMIT.as_secs() + 10);

/// What the node remembers of etcd, for as long as it runs.
#[derive(Debug)]
pub(crate) struct Etcd {
    /// It was told to be the first member.
    first: AtomicBool,
    /// What the first member is made of. Held for an assignment.
    source: Mutex<Source>,
    /// From a Bootstrap that was taken to the end of its sequence.
    bootstraps: AtomicBool,
    /// Wakes [`bootstraps`].
    asked: Notify,
}

impl Default for Etcd {
    fn default() -> Self {
        Self {
            first: AtomicBool::default(),
            source: Mutex::new(Source::Nothing),
            bootstraps: AtomicBool::default(),
            asked: Notify::new(),
        }
    }
}

/// etcd's program, where there is one.
pub(crate) fn program() -> Option<PathBuf> {
    PROGRAMS.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// The service of a node that has the program.
pub(crate) fn definition(node: &Node, containerd: &Containerd, program: PathBuf) -> Definition {
    let mut spec = container::Spec {
        user: (ETCD_UID, ETCD_UID),
        cgroup: "/podruntime/etcd".to_owned(),
        // What it calls is not ours to say: no profile of system calls.
        ..container::Spec::new::<String>("etcd", program, [])
    };
    spec.host.network = true;
    spec.binds.extend([
        Bind::read_only(SECRETS, SECRETS_INSIDE),
        Bind::read_write(DATA, DATA),
        // For the loader that the program names, and where that looks for libraries.
        Bind::program(LIBRARIES, LIBRARIES),
        Bind::program(LIBRARIES, "/lib64"),
        Bind::read_only("/etc/hosts", "/etc/hosts"),
        Bind::read_only("/etc/resolv.conf", "/etc/resolv.conf"),
    ]);
    let timing = Timing {
        initial_delay: START_LIMIT,
        period: Duration::from_secs(20),
        timeout: Duration::from_secs(15),
    };
    let prepared = node.clone();
    Definition {
        dependencies: vec![
            Dependency::to_prepare("containerd"),
            Dependency::to_prepare("networkd"),
        ],
        prepare: Some(Hook::new(move || {
            let node = prepared.clone();
            async move { prepare(&node).await.map_err(|error| Chain(&error).to_string()) }
        })),
        health: Some(Health::new(healthy).with_timing(timing)),
        permissions: Permissions { start: true, stop: false, restart: true },
        ..Definition::new("etcd", Runner::Container(Box::new(spec), containerd.clone()))
    }
}

/// Whether a quorum answers through this member.
async fn healthy() -> Result<(), String> {
    let client = connect().map_err(|error| Chain(&error).to_string())?;
    client.get("health").await.map(drop).map_err(|status| status.message().to_owned())
}

/// This node's member.
pub(crate) fn connect() -> Result<Client, Error> {
    let credentials = Credentials::read(Path::new(SECRETS))
        .map_err(|source| Error::file("read etcd's certificates in", SECRETS, source))?;
    Ok(Client::new(&Ipv4Addr::LOCALHOST.to_string(), &credentials)?)
}

/// Whether it has ever been started on this node: its certificates are made then.
pub(crate) fn has_started() -> bool {
    Path::new(SECRETS).join("admin.crt").exists()
}

/// Certificates, folders, and what etcd is called with this time.
async fn prepare(node: &Node) -> Result<Prepared, Error> {
    let config = node.config()?;
    let own = own()?;
    write_secrets(&basis(&config, &own)?, SystemTime::now())?;
    share_secrets(&config)?;
    fs::create_dir_all(DATA)
        .and_then(|()| fs::set_permissions(DATA, fs::Permissions::from_mode(0o700)))
        .and_then(|()| chown(DATA, Some(ETCD_UID), Some(ETCD_UID)))
        .map_err(|source| Error::file("create the folder", DATA, source))?;
    let first =
        node.etcd().first.load(Ordering::Acquire) || config.machine.kind == MachineType::Init;
    let begin = launch::begin(data(&Path::new(DATA).join(LOG))?, first);
    let cluster = match begin {
        Begin::First | Begin::Again => vec![(own.name.clone(), own.peer_url())],
        Begin::Join => join(node, &config, &own).await?,
    };
    info!(name = own.name, address = %own.address, ?begin, "etcd starts");
    let inside = Places { data: DATA.into(), secrets: SECRETS_INSIDE.into() };
    let none = BTreeMap::new();
    let launch = launch_of(&config, &own, &inside, begin, &cluster, &none);
    Ok(Prepared::RunWith(launch.arguments()))
}

fn launch_of<'a>(
    config: &'a MachineConfig,
    identity: &'a Identity,
    places: &'a Places,
    begin: Begin,
    cluster: &'a Cluster,
    none: &'a BTreeMap<String, String>,
) -> Launch<'a> {
    let extra = config.cluster.etcd.as_ref().map_or(none, |etcd| &etcd.extra_args);
    Launch { identity, places, listen: listen(), begin, cluster, extra }
}

/// All addresses; on a kernel without IPv6, those of IPv4.
fn listen() -> IpAddr {
    if Path::new("/proc/net/if_inet6").exists() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

fn own() -> Result<Identity, Error> {
    let missing = |what| Error::Etcd(format!("this node has no {what} yet"));
    let name = identity::hostname().ok_or_else(|| missing("host name"))?;
    let address = identity::first_address()
        .map_err(|source| Error::System { operation: "list the node's addresses", source })?
        .ok_or_else(|| missing("address"))?;
    Ok(Identity { name, address })
}

/// Whether a folder has anything in it.
fn data(folder: &Path) -> Result<Data, Error> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().map_or(Data::Empty, |_| Data::Present)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Data::Empty),
        Err(source) => Err(Error::file("read the folder", folder, source)),
    }
}

/// What the certificates depend on, now.
fn basis(config: &MachineConfig, own: &Identity) -> Result<Basis, Error> {
    let ca = config.cluster.etcd.as_ref().and_then(|etcd| etcd.ca.as_ref());
    let (ca, key) = ca.and_then(|ca| Some((ca.crt.clone(), ca.key.clone()?))).ok_or_else(|| {
        Error::Etcd(
            "the configuration has no cluster.etcd.ca, and no other control plane has handed it \
                 over yet"
                .to_owned(),
        )
    })?;
    let (mut dns, ips) = identity::names_and_addresses()
        .map_err(|source| Error::System { operation: "list the node's addresses", source })?;
    dns.push("localhost".to_owned());
    Ok(Basis { own: own.clone(), dns, ips, ca, key })
}

fn write_secrets(basis: &Basis, now: SystemTime) -> Result<Validity, Error> {
    let files = basis.issue(now)?;
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.expose())).collect();
    identity::write_all(SECRETS, ETCD_UID, &files)?;
    // All of them live as long as the last.
    let last = files.last().map_or("", |(_, text)| text);
    let (not_before, not_after) = certificate::validity(last)?;
    Ok(Validity { not_before, not_after })
}

/// What networkd needs to ask this node's member who has an address that wanders between control planes; nothing
/// where none does.
fn share_secrets(config: &MachineConfig) -> Result<(), Error> {
    let wanders = |interface: &Interface| {
        interface.vip.is_some() || interface.vlans.iter().any(|vlan| vlan.vip.is_some())
    };
    let folder = Path::new(NETWORKD_SECRETS);
    if !config.machine.network.interfaces.iter().any(wanders) {
        for name in SHARED {
            match fs::remove_file(folder.join(name)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::file("remove", folder.join(name), source));
                }
                _ => {}
            }
        }
        return Ok(());
    }
    let mut files = Vec::new();
    for name in SHARED {
        let path = Path::new(SECRETS).join(name);
        let text =
            fs::read_to_string(&path).map_err(|source| Error::file("read", &path, source))?;
        files.push((name, Secret::new(text)));
    }
    let same = |(name, text): &(&str, Secret)| {
        fs::read_to_string(folder.join(name)).is_ok_and(|there| there == text.expose())
    };
    if files.iter().all(same) {
        return Ok(());
    }
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.expose())).collect();
    identity::write_all(folder, NETWORKD_UID, &files)
}

/// Keeps the certificates fresh once there are any, until the node goes down.
pub(crate) async fn keep_secrets(node: Node) {
    let mut renewal = Renewal::new();
    let shutdown = node.shutdown().clone();
    let keeping = async {
        let mut check = interval(CHECK_INTERVAL);
        loop {
            check.tick().await;
            if !has_started() {
                continue;
            }
            // Also for a `vip` that came with a new configuration.
            if let Err(error) = node.config().and_then(|config| share_secrets(&config)) {
                warn!(error = %Chain(&error), "networkd cannot ask etcd; trying on");
            }
            let now = Now { wall: SystemTime::now(), monotonic: orlop_sys::monotonic() };
            let basis = node.config().and_then(|config| basis(&config, &own()?));
            let renewed = match &basis {
                Ok(basis) if !renewal.due(basis, now) => continue,
                Ok(basis) => write_secrets(basis, now.wall),
                Err(error) => Err(Error::Etcd(Chain(error).to_string())),
            };
            match (basis, renewed) {
                (Ok(basis), Ok(validity)) => renewal.succeeded(basis, validity, now, random()),
                (_, Err(error)) | (Err(error), Ok(_)) => {
                    renewal.failed(now, random());
                    warn!(error = %Chain(&error), "no new certificates for etcd; trying on");
                }
            }
        }
    };
    // Cancel-safe: a tick that is lost comes again.
    shutdown.run_until_cancelled(keeping).await;
}

/// What the child that joins is told.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Terms {
    host: String,
    ca: String,
    crt: String,
    key: Secret,
    name: String,
    address: IpAddr,
}

/// Becomes a member: the answers of others come from the network, so a child asks.
async fn join(node: &Node, config: &MachineConfig, own: &Identity) -> Result<Cluster, Error> {
    let credentials = Credentials::read(Path::new(SECRETS))
        .map_err(|source| Error::file("read etcd's certificates in", SECRETS, source))?;
    let own_addresses = identity::names_and_addresses().map(|(_, ips)| ips).unwrap_or_default();
    let host = identity::endpoint_host(config)
        .filter(|host| !host.parse().is_ok_and(|ip| own_addresses.contains(&ip)));
    let machine = Join::new(Instant::now());
    let mut event = Event::Due;
    loop {
        event = match machine.handle(Instant::now(), random(), event) {
            Action::Start(cluster) => return Ok(cluster),
            Action::GiveUp(why) => return Err(Error::Etcd(format!("join a cluster: {why}"))),
            Action::WakeAt(at) => {
                sleep_until(at.into()).await;
                Event::Due
            }
            Action::Try => match &host {
                None => Event::Failed(
                    "the cluster's endpoint is this node; if it shall be the first, orlopctl bootstrap"
                        .to_owned(),
                ),
                Some(host) => {
                    let terms = Terms {
                        host: host.clone(),
                        ca: credentials.ca.clone(),
                        crt: credentials.crt.clone(),
                        key: credentials.key.clone(),
                        name: own.name.clone(),
                        address: own.address,
                    };
                    let mut program = Command::new(BINARY);
                    program.args(["machined", "join-etcd"]);
                    let (reaper, limit) = (node.reaper(), JOIN_CHILD_LIMIT);
                    match child::ask(reaper, program, ETCD_UID, &terms, limit).await {
                        Ok(cluster) => Event::Joined(cluster),
                        Err(error) => Event::Failed(Chain(&error).to_string()),
                    }
                }
            },
        };
    }
}

/// Runs as the child that joins: terms on standard input, the cluster on standard output.
pub(crate) fn join_main() -> ExitCode {
    let run = || -> Result<(), String> {
        let terms: Terms = serde_json::from_reader(io::stdin()).map_err(|e| e.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let asked = runtime.map_err(|error| error.to_string())?.block_on(async {
            let limit = join::TRY_LIMIT;
            timeout(limit, ask_to_join(&terms))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
        });
        let cluster = asked.map_err(|why| format!("etcd at {}: {why}", terms.host))?;
        serde_json::to_writer(io::stdout(), &cluster).map_err(|error| error.to_string())?;
        io::stdout().flush().map_err(|error| error.to_string())
    };
    match run() {
        Ok(()) => Exit::Ok.into(),
        Err(why) => {
            eprintln!("{why}");
            Exit::Failed.into()
        }
    }
}

async fn ask_to_join(terms: &Terms) -> Result<Cluster, String> {
    let Terms { host, ca, crt, key, name, address } = terms;
    let credentials = Credentials { ca: ca.clone(), crt: crt.clone(), key: key.clone() };
    let client = Client::new(host, &credentials).map_err(|error| Chain(&error).to_string())?;
    let own = Identity { name: name.clone(), address: *address };
    client.join(&own).await
}

/// `Bootstrap`: answers whether it goes on; what follows is sequence bootstrap.
pub(crate) async fn bootstrap(node: &Node, source: Source) -> Result<Result<(), Refusal>, Error> {
    let config = node.config()?;
    let program = program();
    let facts = Facts {
        control_plane: config.machine.kind.is_control_plane(),
        booted: node.supervisor().status("etcd").await.is_ok(),
        data: data(Path::new(DATA))?,
        snapshot: stored(Path::new(SNAPSHOT)),
        restorer: program.as_deref().is_some_and(|program| restorer(program).is_file()),
        program: program.is_some(),
    };
    if let Err(refusal) = may_bootstrap(&facts, source) {
        return Ok(Err(refusal));
    }
    use orlop_supervise::Error::{Ended, Late, NotDefined, Terminating};
    match node.supervisor().wait_up(&["timed"], SYNC_LIMIT).await {
        // A node without timed has its time from elsewhere.
        Ok(()) | Err(NotDefined(_)) => {}
        Err(Late(_)) => return Ok(Err(Refusal::TimeNotInSync)),
        Err(error @ (Terminating | Ended)) => return Err(Error::Services(error)),
    }
    if node.etcd().bootstraps.swap(true, Ordering::AcqRel) {
        return Ok(Err(Refusal::Busy));
    }
    *node.etcd().source.lock().unwrap_or_else(PoisonError::into_inner) = source;
    node.etcd().asked.notify_one();
    Ok(Ok(()))
}

/// Runs sequence bootstrap whenever it is asked for.
pub(crate) async fn bootstraps(node: &Node) -> Infallible {
    loop {
        node.etcd().asked.notified().await;
        // A node that fails to begin a cluster is no worse than before: it stays up, for another try.
        if let Err(error) = node.run(&plan::BOOTSTRAP).await {
            warn!(error = %Chain(&error), "bootstrap failed; the node stays as it is");
        }
        node.etcd().bootstraps.store(false, Ordering::Release);
    }
}

/// The first step of sequence bootstrap: etcd, as the first member of a new cluster.
pub(crate) async fn start_first(node: &Node) -> Result<(), Error> {
    let supervisor = node.supervisor();
    supervisor.stop("etcd").await.map_err(Error::Services)?;
    let source = *node.etcd().source.lock().unwrap_or_else(PoisonError::into_inner);
    if let Source::Snapshot { skip_hash_check } = source {
        restore(node, skip_hash_check).await?;
    }
    node.etcd().first.store(true, Ordering::Release);
    supervisor.start("etcd").await.map_err(Error::Services)?;
    supervisor.wait_up(&["etcd"], START_FIRST_LIMIT).await.map_err(Error::Services)?;
    if source != Source::Nothing
        && let Err(error) = fs::remove_file(SNAPSHOT)
    {
        warn!(%error, "the snapshot is recovered, but stays");
    }
    Ok(())
}

/// Makes the first member's data of the snapshot.
async fn restore(node: &Node, skip_hash_check: bool) -> Result<(), Error> {
    let config = node.config()?;
    let own = own()?;
    let program = program().ok_or_else(|| Error::Etcd(Refusal::NoProgram.to_string()))?;
    fs::create_dir_all(DATA)
        .and_then(|()| chown(DATA, Some(ETCD_UID), Some(ETCD_UID)))
        .map_err(|source| Error::file("create the folder", DATA, source))?;
    let (places, none) = (Places { data: DATA.into(), secrets: SECRETS.into() }, BTreeMap::new());
    let cluster = Vec::new();
    let launch = launch_of(&config, &own, &places, Begin::First, &cluster, &none);
    let arguments = launch.restore_arguments(Path::new(SNAPSHOT), skip_hash_check);
    let mut command = Command::new(restorer(&program));
    command.args(arguments);
    child::run(node.reaper(), command, ETCD_UID, &[], RESTORE_LIMIT)
        .await
        .map(drop)
        .map_err(|error| Error::Etcd(format!("restore the snapshot: {}", Chain(&error))))
}

fn restorer(program: &Path) -> PathBuf {
    program.with_file_name("etcdutl")
}

/// The second step: bootkube, where there is one.
pub(crate) async fn start_bootkube(node: &Node) -> Result<(), Error> {
    let supervisor = node.supervisor();
    supervisor.start("bootkube").await.map_err(Error::Services)?;
    supervisor.wait_up(&["bootkube"], BOOTKUBE_LIMIT).await.map_err(Error::Services)
}

/// The third: the cluster is told that it is one.
pub(crate) async fn mark_initialized() -> Result<(), Error> {
    let done = connect()?.put("initialized", "true").await;
    done.map_err(|status| Error::Etcd(status.message().to_owned()))
}

/// `EtcdLeaveCluster`: this member leaves, and nothing of it stays.
pub(crate) async fn leave(node: &Node, client: &Client) -> Result<(), Status> {
    client.forfeit().await?;
    client.remove(client.own_id().await?).await?;
    node.supervisor().stop("etcd").await.map_err(|error| internal(Error::Services(error)))?;
    node.etcd().first.store(false, Ordering::Release);
    let cleared = spawn_blocking(|| clear(Path::new(DATA))).await;
    cleared
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|source| internal(Error::file("clear", DATA, source)))
}

/// Whether this node can leave its cluster, if it is in one: a quorum must agree.
///
/// # Errors
/// Why it cannot.
pub(crate) async fn may_leave() -> Result<(), Status> {
    others().await.map(drop)
}

/// Leaves a cluster of several, before a reset; the last member takes the cluster with it.
pub(crate) async fn leave_for_good(node: &Node) -> Result<(), Error> {
    let told = |status: Status| Error::Etcd(status.message().to_owned());
    match others().await.map_err(told)? {
        Some(client) => leave(node, &client).await.map_err(told),
        None => Ok(()),
    }
}

/// This node's member, if it is not the only one.
async fn others() -> Result<Option<Client>, Status> {
    if program().is_none() || data(&Path::new(DATA).join(LOG)).map_err(internal)? == Data::Empty {
        return Ok(None);
    }
    let client = connect().map_err(internal)?;
    let members = client.members(View::Agreed).await?;
    Ok((members.len() > 1).then_some(client))
}

/// Removes what is in a folder, not the folder.
fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// `EtcdRecover`: keeps a snapshot for Bootstrap.
pub(crate) async fn keep_snapshot(
    pieces: impl Stream<Item = Result<Piece, Status>> + Unpin,
) -> Result<Hash, Status> {
    store(Path::new(SNAPSHOT), ETCD_UID, pieces).await
}

/// Writes a snapshot beside `path` as it comes; it takes its place once all of it is sound.
async fn store(
    path: &Path,
    uid: u32,
    mut pieces: impl Stream<Item = Result<Piece, Status>> + Unpin,
) -> Result<Hash, Status> {
    let failed = |source| internal(Error::file("write the snapshot", path, source));
    let open = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Beside::new(path, 0o600)
    };
    let (mut file, mut check) = (open().map_err(failed)?, Check::new());
    while let Some(piece) = pieces.next().await {
        let bytes = piece?.bytes;
        // The next piece is not asked for before this one is written.
        let written = spawn_blocking(move || {
            let sound = check.push(&bytes);
            let written = sound.is_ok().then(|| file.write_all(&bytes));
            (sound, written, file, check)
        });
        let (sound, written, same, so_far) =
            written.await.map_err(|error| Status::internal(error.to_string()))?;
        sound.map_err(|unsound| Status::invalid_argument(unsound.to_string()))?;
        written.transpose().map_err(failed)?;
        (file, check) = (same, so_far);
    }
    let hash = check.finish().map_err(|unsound| Status::invalid_argument(unsound.to_string()))?;
    let kept = spawn_blocking(move || file.give_to(uid).and_then(|()| file.keep()));
    kept.await
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|source| internal(Error::file("write the snapshot", SNAPSHOT, source)))?;
    Ok(hash)
}

/// The snapshot that is kept, and whether it has a hash: only sound ones are.
fn stored(path: &Path) -> Option<Hash> {
    let length = fs::metadata(path).ok()?.len();
    Some(if length.is_multiple_of(512) { Hash::None } else { Hash::Right })
}

fn internal(error: Error) -> Status {
    Status::internal(Chain(&error).to_string())
}

/// Spreads what many nodes do at the same time.
fn random() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().hash_one(()).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use futures_util::stream;

    use super::*;

    fn snapshot() -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        bytes[16..20].copy_from_slice(&0xED0C_DAED_u32.to_le_bytes());
        let sum = ring::digest::digest(&ring::digest::SHA256, &bytes);
        bytes.extend_from_slice(sum.as_ref());
        bytes
    }

    fn pieces(bytes: &[u8]) -> Vec<Result<Piece, Status>> {
        let piece = |bytes: &[u8]| Ok(Piece { metadata: None, bytes: bytes.to_vec() });
        bytes.chunks(1000).map(piece).collect()
    }

    #[tokio::test]
    async fn a_sound_snapshot_takes_the_place_of_the_last_and_no_other_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/etcd.snapshot");
        let uid = nix::unistd::getuid().as_raw();
        let sound = snapshot();
        let keep = async |pieces| store(&path, uid, stream::iter(pieces)).await;
        assert_eq!(keep(pieces(&sound)).await.unwrap(), Hash::Right);
        assert_eq!(stored(&path), Some(Hash::Right));
        let mut damaged = sound.clone();
        damaged[5000] ^= 1;
        let mut broken_off = pieces(&sound);
        broken_off.push(Err(Status::cancelled("gone")));
        for (pieces, code) in [
            (pieces(&damaged), tonic::Code::InvalidArgument),
            (pieces(b"version: v1alpha1"), tonic::Code::InvalidArgument),
            (Vec::new(), tonic::Code::InvalidArgument),
            (broken_off, tonic::Code::Cancelled),
        ] {
            assert_eq!(keep(pieces).await.unwrap_err().code(), code);
            assert_eq!(fs::read(&path).unwrap(), sound);
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        }
        assert_eq!(keep(pieces(&sound[..8192])).await.unwrap(), Hash::None);
        assert_eq!(stored(&path), Some(Hash::None));
    }

    #[test]
    fn clearing_leaves_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(data(&folder.path().join("none")).unwrap(), Data::Empty);
        fs::create_dir_all(folder.path().join("member/wal")).unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        assert_eq!(data(folder.path()).unwrap(), Data::Present);
        clear(folder.path()).unwrap();
        assert_eq!(data(folder.path()).unwrap(), Data::Empty);
    }
}
