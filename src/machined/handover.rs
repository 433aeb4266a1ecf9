//! The PKI of a cluster's control plane, handed to a control plane that joins (node-api §4.1).
//!
//! A control plane may be configured without `cluster.ca`, `cluster.etcd.ca` and `cluster.serviceAccount`
//! when `machine.trustd.endpoints` names others that have them. Those are *established*: each places the
//! files, and last a manifest of their digests, in the drop folder of every such host, by its trustd. The
//! one that *joins* waits for the manifest; when every file is there as the manifest says, and each key
//! belongs to its authority, it keeps them all in one step and goes by them from then on. Whatever is cut
//! in between leaves a folder that its manifest does not describe, which is waited out.
//!
//! What a configuration says itself, prevails. What was kept stays: others are told and not taken, for a
//! cluster has one PKI.
//!
//! [`Giving`] and [`Taking`] decide, [`assemble`] judges; children talk to trustds and look at what came,
//! for both are bytes of the network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::OFlag;
use orlop_config::machine::{Etcd, MachineConfig, ServiceAccount};
use orlop_pki::{Authority, Leaf, Pair, Secret, Usage, encoding, tls};
use orlop_proto::security::WriteFileRequest;
use orlop_proto::security::security_service_client::SecurityServiceClient;
use orlop_rt::{Backoff, Chain, Exit};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::{interval, timeout};
use tonic::metadata::MetadataValue;
use tracing::{debug, error, info, warn};

use crate::error::Error;
use crate::identity::{self, random};
use crate::node::Node;
use crate::services::{APID_UID, BINARY, TRUSTD_UID};
use crate::trust::PORT;
use crate::{child, trust};

/// Where the files are placed, beneath trustd's drop folder.
pub(crate) const FOLDER: &str = "/var/lib/orlop/trust/pki";
/// Where what was handed over is kept, for root alone.
const KEPT: &str = "/system/state/pki.json";
/// The last file; JSON, the SHA-256 of each other one by its name.
const MANIFEST: &str = "manifest.json";
/// Kubernetes' authority.
const CA_CRT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
/// etcd's.
const ETCD_CRT: &str = "etcd-ca.crt";
const ETCD_KEY: &str = "etcd-ca.key";
/// What Kubernetes signs service accounts' tokens with; may be absent.
const SERVICE_KEY: &str = "service-account.key";
/// No file is longer, in bytes.
const SIZE_LIMIT: u64 = 64 << 10;
/// How often the folder and the configuration are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A host that has the files gets them again after so long: it may have been installed anew.
const AGAIN: Duration = Duration::from_secs(5 * 60);
/// From a failure to the next try.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Looks at files that do not fit together before that is told: a minute.
const PATIENCE: u32 = 12;
/// How long one call to trustd may take, and all to one host.
const CALL_LIMIT: Duration = Duration::from_secs(20);
const CHILD_LIMIT: Duration = Duration::from_secs(70);
/// By which trustd knows an established control plane; its certificate lives for an hour (node-api §4.1).
const ESTABLISHED: &str = "os:controlplane";
const TRUSTEE_LIFETIME: Duration = Duration::from_secs(3600);

/// What control planes of a cluster have in common beside the machine's authority.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pki {
    kubernetes: Signer,
    etcd: Signer,
    /// What Kubernetes signs service accounts' tokens with, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service_account: Option<Secret>,
}

/// An authority, PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Signer {
    crt: String,
    key: Secret,
}

impl Signer {
    fn of(ca: Option<&orlop_config::CertificateAndKey>) -> Option<Self> {
        let ca = ca.filter(|ca| !ca.crt.is_empty())?;
        Some(Self { crt: ca.crt.clone(), key: ca.key.clone()? })
    }

    fn written(&self) -> orlop_config::CertificateAndKey {
        orlop_config::CertificateAndKey { crt: self.crt.clone(), key: Some(self.key.clone()) }
    }
}

impl Pki {
    /// What a configuration holds; `None` when it does not hold all that is needed.
    pub(crate) fn of(config: &MachineConfig) -> Option<Self> {
        let cluster = &config.cluster;
        Some(Self {
            kubernetes: Signer::of(cluster.ca.as_ref())?,
            etcd: Signer::of(cluster.etcd.as_ref().and_then(|etcd| etcd.ca.as_ref()))?,
            service_account: cluster.service_account.as_ref().and_then(|sa| sa.key.clone()),
        })
    }

    /// The configuration with this PKI where it has none.
    pub(crate) fn fill(&self, config: &MachineConfig) -> MachineConfig {
        let mut config = config.clone();
        let cluster = &mut config.cluster;
        if Signer::of(cluster.ca.as_ref()).is_none() {
            cluster.ca = Some(self.kubernetes.written());
        }
        let etcd = cluster.etcd.get_or_insert_with(Etcd::default);
        if Signer::of(etcd.ca.as_ref()).is_none() {
            etcd.ca = Some(self.etcd.written());
        }
        let account = cluster.service_account.get_or_insert_with(ServiceAccount::default);
        if account.key.is_none() {
            account.key.clone_from(&self.service_account);
        }
        config
    }

    /// Whether each key belongs to its authority, and is one.
    fn check(&self) -> Result<(), String> {
        for (name, signer) in [(CA_KEY, &self.kubernetes), (ETCD_KEY, &self.etcd)] {
            Authority::from_pem(&signer.crt, signer.key.expose())
                .map_err(|error| format!("{name}: {}", Chain(&error)))?;
        }
        match &self.service_account {
            Some(key) => encoding::private_key(key.expose())
                .map(drop)
                .map_err(|error| format!("{SERVICE_KEY}: {}", Chain(&error))),
            None => Ok(()),
        }
    }

    /// Names and content of the files in the order they are placed: the manifest last.
    #[must_use]
    pub fn files(&self) -> Vec<(&'static str, Secret)> {
        let mut files = vec![
            (CA_CRT, Secret::new(self.kubernetes.crt.clone())),
            (CA_KEY, self.kubernetes.key.clone()),
            (ETCD_CRT, Secret::new(self.etcd.crt.clone())),
            (ETCD_KEY, self.etcd.key.clone()),
        ];
        files.extend(self.service_account.clone().map(|key| (SERVICE_KEY, key)));
        let digests: Manifest = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), sha256(text.expose().as_bytes())))
            .collect();
        let manifest = serde_json::to_string(&digests).expect("a map of texts is JSON");
        files.push((MANIFEST, Secret::new(manifest)));
        files
    }

    /// One digest of all, for the log.
    fn fingerprint(&self) -> String {
        let files = self.files();
        files.last().map(|(_, manifest)| sha256(manifest.expose().as_bytes())).unwrap_or_default()
    }
}

type Manifest = BTreeMap<String, String>;

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What lies in the drop folder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Arrival {
    /// Not what the manifest says, or not all of it: somebody is at it, or was cut off.
    Partial(String),
    /// All that the manifest says, and no PKI.
    Unusable(String),
    /// A PKI.
    Whole(Pki),
}

/// Judges the files of the drop folder, by name. Pure.
#[must_use]
pub fn assemble(files: &BTreeMap<String, Vec<u8>>) -> Arrival {
    match judge(files) {
        Ok(pki) => Arrival::Whole(pki),
        Err(arrival) => arrival,
    }
}

fn judge(files: &BTreeMap<String, Vec<u8>>) -> Result<Pki, Arrival> {
    let Some(manifest) = files.get(MANIFEST) else {
        return Err(Arrival::Partial(format!("there is no {MANIFEST}")));
    };
    let manifest: Manifest = serde_json::from_slice(manifest)
        .map_err(|error| Arrival::Unusable(format!("{MANIFEST}: {error}")))?;
    let known = [CA_CRT, CA_KEY, ETCD_CRT, ETCD_KEY, SERVICE_KEY];
    if let Some(name) = manifest.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(Arrival::Unusable(format!("{MANIFEST}: {name:?} is nothing that is expected")));
    }
    let text = |name: &str| {
        let digest = manifest
            .get(name)
            .ok_or_else(|| Arrival::Unusable(format!("{MANIFEST}: {name} is missing")))?;
        match files.get(name) {
            None => Err(Arrival::Partial(format!("{name} is not there"))),
            Some(bytes) if sha256(bytes) != *digest => {
                Err(Arrival::Partial(format!("{name} is not what {MANIFEST} says")))
            }
            Some(bytes) => String::from_utf8(bytes.clone())
                .map_err(|_| Arrival::Unusable(format!("{name} is no text"))),
        }
    };
    let signer = |crt, key| Ok(Signer { crt: text(crt)?, key: Secret::new(text(key)?) });
    let service_account = match manifest.contains_key(SERVICE_KEY) {
        true => Some(Secret::new(text(SERVICE_KEY)?)),
        false => None,
    };
    let pki = Pki {
        kubernetes: signer(CA_CRT, CA_KEY)?,
        etcd: signer(ETCD_CRT, ETCD_KEY)?,
        service_account,
    };
    pki.check().map_err(Arrival::Unusable)?;
    Ok(pki)
}

/// Whether the folder is worth a look, and what follows of it. `M` marks a manifest: another one has
/// another mark.
#[derive(Debug)]
pub(crate) struct Taking<M> {
    /// What was judged last.
    judged: Option<M>,
    /// How often it has not fitted together so far.
    partial: u32,
}

/// What follows of a look.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Wait,
    /// Wait, and say why.
    Tell(String),
    /// Keep this PKI and go by it.
    Install(Pki),
}

impl<M: PartialEq> Taking<M> {
    pub(crate) fn new() -> Self {
        Self { judged: None, partial: 0 }
    }

    /// Whether to judge what is there: the manifest, or what it describes, is new.
    pub(crate) fn worth_a_look(&self, manifest: &M) -> bool {
        self.partial > 0 || self.judged.as_ref() != Some(manifest)
    }

    /// What to do with what was found; `own` is the PKI that was kept before.
    pub(crate) fn judged(&mut self, manifest: M, arrival: Arrival, own: Option<&Pki>) -> Then {
        if self.judged.as_ref() != Some(&manifest) {
            self.partial = 0;
        }
        self.judged = Some(manifest);
        match arrival {
            Arrival::Partial(why) => {
                self.partial = self.partial.saturating_add(1);
                if self.partial == PATIENCE { Then::Tell(why) } else { Then::Wait }
            }
            Arrival::Unusable(why) => {
                self.partial = 0;
                Then::Tell(why)
            }
            Arrival::Whole(pki) => {
                self.partial = 0;
                match own {
                    None => Then::Install(pki),
                    Some(own) if *own == pki => Then::Wait,
                    Some(_) => Then::Tell("it is another one than this node's".to_owned()),
                }
            }
        }
    }
}

/// To whom an established control plane hands its PKI, and when.
#[derive(Debug)]
pub(crate) struct Giving<T> {
    /// What is handed over; everybody gets another one at once.
    what: Option<T>,
    hosts: BTreeMap<String, Turn>,
}

#[derive(Debug)]
struct Turn {
    due: Instant,
    retry: Backoff,
    /// Whether it got the files the last time.
    got: Option<bool>,
}

impl<T: PartialEq> Giving<T> {
    pub(crate) fn new() -> Self {
        Self { what: None, hosts: BTreeMap::new() }
    }

    /// From now on `what` is for `hosts`; nothing while there is nothing.
    pub(crate) fn go_by(&mut self, what: Option<T>, hosts: &BTreeSet<String>, now: Instant) {
        if self.what != what {
            self.hosts.clear();
            self.what = what;
        }
        self.hosts.retain(|host, _| hosts.contains(host));
        for host in hosts {
            self.hosts.entry(host.clone()).or_insert_with(|| Turn {
                due: now,
                retry: Backoff::new(RETRY.0, RETRY.1),
                got: None,
            });
        }
    }

    /// Whose turn it is, and what they get.
    pub(crate) fn next(&self, now: Instant) -> Option<(&str, &T)> {
        let what = self.what.as_ref()?;
        let due = self.hosts.iter().filter(|(_, turn)| turn.due <= now);
        due.min_by_key(|(_, turn)| turn.due).map(|(host, _)| (host.as_str(), what))
    }

    /// A host has the files; whether that is news.
    pub(crate) fn gave(&mut self, host: &str, now: Instant) -> bool {
        let Some(turn) = self.hosts.get_mut(host) else { return false };
        turn.retry.reset();
        turn.due = now + AGAIN;
        turn.got.replace(true) != Some(true)
    }

    /// A host has not taken them; whether that is news.
    pub(crate) fn failed(&mut self, host: &str, now: Instant, random: u32) -> bool {
        let Some(turn) = self.hosts.get_mut(host) else { return false };
        turn.due = now + turn.retry.next(random);
        turn.got.replace(false) != Some(false)
    }
}

/// What the child that hands over is told.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Order {
    host: String,
    port: u16,
    /// Whom to believe, PEM.
    ca: String,
    /// Who we are.
    crt: String,
    key: Secret,
    token: Secret,
    /// Paths and contents, in this order.
    files: Vec<(String, Secret)>,
}

/// What is handed over, and what it is handed over with.
#[derive(Clone, Debug, PartialEq)]
struct Goods {
    pki: Pki,
    accepted: String,
    key: Secret,
    token: Secret,
}

impl Goods {
    /// Of an established control plane; of others, nothing.
    fn of(config: &MachineConfig) -> Option<Self> {
        let machine = &config.machine;
        if !machine.kind.is_control_plane() {
            return None;
        }
        let authorities = machine.ca.iter().chain(&machine.accepted_cas);
        let authorities: Vec<_> = authorities.map(|ca| ca.crt.as_str()).collect();
        Some(Self {
            pki: Pki::of(config)?,
            accepted: trust::join(&authorities).ok()?,
            key: machine.ca.as_ref()?.key.clone()?,
            token: machine.token.clone()?,
        })
    }

    fn order(&self, host: &str, now: SystemTime) -> Result<Order, Error> {
        let authority = Authority::from_pem(&self.accepted, self.key.expose())?;
        let leaf = Leaf {
            common_name: identity::hostname().unwrap_or_else(|| "control plane".to_owned()),
            organizations: vec![ESTABLISHED.to_owned()],
            usage: Usage::Client,
            dns: Vec::new(),
            ips: Vec::new(),
            lifetime: TRUSTEE_LIFETIME,
        };
        let Pair { crt, key } = authority.issue(&leaf, now)?;
        let files = self.pki.files();
        let files = files.into_iter().map(|(name, text)| (format!("{FOLDER}/{name}"), text));
        Ok(Order {
            host: host.to_owned(),
            port: PORT,
            ca: self.accepted.clone(),
            crt,
            key,
            token: self.token.clone(),
            files: files.collect(),
        })
    }
}

/// Hands the cluster's PKI to the other control planes of the configuration, for as long as the node is up
/// and has one.
pub(crate) async fn give(node: Node) {
    let shutdown = node.shutdown().clone();
    let giving = async {
        let (mut giving, mut check) = (Giving::new(), interval(LOOK_EVERY));
        loop {
            check.tick().await;
            let Ok(config) = node.config() else { continue };
            let hosts = others(&config);
            let goods = if hosts.is_empty() { None } else { Goods::of(&config) };
            giving.go_by(goods, &hosts, Instant::now());
            while let Some((host, goods)) = giving.next(Instant::now()) {
                let (host, given) = (host.to_owned(), hand_over(&node, goods, host).await);
                match given {
                    Ok(()) if giving.gave(&host, Instant::now()) => {
                        info!(host, "the cluster's PKI is handed over");
                    }
                    Ok(()) => debug!(host, "the cluster's PKI is handed over again"),
                    Err(error) if giving.failed(&host, Instant::now(), random()) => {
                        let error = Chain(&error).to_string();
                        warn!(host, error, "the cluster's PKI is not handed over; trying on");
                    }
                    Err(error) => debug!(host, error = %Chain(&error), "not handed over"),
                }
            }
        }
    };
    // Cancel-safe: a child that hands over ends by itself.
    shutdown.run_until_cancelled(giving).await;
}

async fn hand_over(node: &Node, goods: &Goods, host: &str) -> Result<(), Error> {
    let order = goods.order(host, SystemTime::now())?;
    let mut program = Command::new(BINARY);
    program.args(["machined", "hand-over"]);
    let done = child::ask(node.reaper(), program, APID_UID, &order, CHILD_LIMIT).await;
    done.map_err(|error| Error::Trust(Chain(&error).to_string()))
}

/// The control planes of the configuration but for this node.
fn others(config: &MachineConfig) -> BTreeSet<String> {
    let (names, addresses) = identity::names_and_addresses().unwrap_or_default();
    let own = |host: &String| {
        names.contains(host) || host.parse().is_ok_and(|ip| addresses.contains(&ip))
    };
    config.machine.trustd.endpoints.iter().filter(|host| !own(host)).cloned().collect()
}

/// Waits for the cluster's PKI on a node whose configuration lacks it, and goes by it.
pub(crate) async fn take(node: Node) {
    let shutdown = node.shutdown().clone();
    let manifest = Path::new(FOLDER).join(MANIFEST);
    let taking = async {
        let (mut taking, mut check) = (Taking::new(), interval(LOOK_EVERY));
        loop {
            check.tick().await;
            let Ok(document) = node.document() else { continue };
            let config = document.config();
            let mark = if lacks(&config) { mark(&manifest) } else { None };
            let Some(mark) = mark.filter(|mark| taking.worth_a_look(mark)) else { continue };
            let mut program = Command::new(BINARY);
            program.args(["machined", "take-over", FOLDER]);
            let judged = child::ask(node.reaper(), program, TRUSTD_UID, &(), CHILD_LIMIT).await;
            let then = match judged {
                Ok(arrival) => taking.judged(mark, arrival, node.handed_over().as_deref()),
                Err(error) => Then::Tell(Chain(&error).to_string()),
            };
            match then {
                Then::Wait => {}
                Then::Tell(why) => {
                    warn!(folder = FOLDER, why, "the PKI that lies here is not taken")
                }
                Then::Install(pki) => install(&node, cluster(&config), pki).await,
            }
        }
    };
    // Cancel-safe: a look that is lost comes again.
    shutdown.run_until_cancelled(taking).await;
}

async fn install(node: &Node, cluster: String, pki: Pki) {
    let kept = Kept { cluster, pki: pki.clone() };
    let kept = spawn_blocking(move || keep(Path::new(KEPT), &kept)).await;
    match kept {
        Ok(Ok(())) => {}
        // It holds until the node goes down, and comes again after that.
        Ok(Err(error)) => error!(path = KEPT, error = %Chain(&error), "write what was handed over"),
        Err(error) => error!(%error, "write what was handed over"),
    }
    let names: Vec<_> = pki.files().iter().map(|(name, _)| *name).collect();
    info!(files = ?names, sha256 = pki.fingerprint(), "the cluster's PKI was handed over and is used");
    node.hand(pki);
}

/// Whether a control plane's configuration leaves the cluster's PKI to others.
fn lacks(config: &MachineConfig) -> bool {
    config.machine.kind.is_control_plane() && Pki::of(config).is_none()
}

/// What is another one for another manifest.
fn mark(path: &Path) -> Option<(u64, i64, i64, u64)> {
    let there = fs::symlink_metadata(path).ok()?;
    Some((there.ino(), there.ctime(), there.ctime_nsec(), there.size()))
}

/// What is kept, and of which cluster it is: a node that is sent elsewhere has none.
#[derive(Debug, Deserialize, Serialize)]
struct Kept {
    /// Digest of the machine's authority.
    cluster: String,
    pki: Pki,
}

fn cluster(config: &MachineConfig) -> String {
    sha256(config.machine.ca.as_ref().map_or("", |ca| &ca.crt).as_bytes())
}

fn keep(path: &Path, kept: &Kept) -> io::Result<()> {
    orlop_rt::replace(path, 0o600, &serde_json::to_vec(kept)?)
}

/// What an earlier boot has kept for this configuration's cluster. What cannot be read is told, and handed
/// over anew.
pub(crate) fn kept(config: &MachineConfig) -> Option<Pki> {
    load(Path::new(KEPT), &cluster(config))
}

fn load(path: &Path, cluster: &str) -> Option<Pki> {
    let read = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice::<Kept>(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => Err(error),
    };
    let kept = read.inspect_err(|error| {
        let path = path.display();
        warn!(%error, "cannot read {path}: the cluster's PKI must be handed over once more");
    });
    kept.ok().filter(|kept| kept.cluster == cluster).map(|kept| kept.pki)
}

/// Runs as the child that hands over: an order on standard input.
pub(crate) fn give_main() -> ExitCode {
    let run = || -> Result<(), String> {
        let order: Order = serde_json::from_reader(io::stdin()).map_err(|e| e.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| error.to_string())?.block_on(place(&order))
    };
    answer(run())
}

/// Places the files of an order, one after the other, and stops at the first that is not taken.
async fn place(order: &Order) -> Result<(), String> {
    let identity = Some((order.crt.as_str(), order.key.expose()));
    let config = tls::client_config(&order.ca, identity).map_err(|error| error.to_string())?;
    let channel = orlop_rpc::tls::channel(&order.host, order.port, config);
    let mut client = SecurityServiceClient::new(channel);
    let token: MetadataValue<_> = order.token.expose().parse().map_err(|_| "no token")?;
    for (path, text) in &order.files {
        let data = text.expose().as_bytes().to_vec();
        let mut request =
            tonic::Request::new(WriteFileRequest { path: path.clone(), data, perm: 0o400 });
        let mut token = token.clone();
        token.set_sensitive(true);
        request.metadata_mut().insert("token", token);
        let placed = timeout(CALL_LIMIT, client.write_file(request)).await;
        let why = match placed {
            Ok(Ok(_)) => continue,
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => format!("no answer within {} s", CALL_LIMIT.as_secs()),
        };
        return Err(format!("trustd at {}: {path}: {why}", order.host));
    }
    Ok(())
}

/// Runs as the child that looks at what came: what it is on standard output.
pub(crate) fn take_main(folder: &Path) -> ExitCode {
    answer(look(folder).map(|files| assemble(&files)).map_err(|error| Chain(&error).to_string()))
}

fn look(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for name in [MANIFEST, CA_CRT, CA_KEY, ETCD_CRT, ETCD_KEY, SERVICE_KEY] {
        let path: PathBuf = folder.join(name);
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = match File::options().read(true).custom_flags(flags.bits()).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at(&path, &error)),
        };
        if !file.metadata()?.is_file() {
            return Err(at(&path, &io::Error::other("it is no regular file")));
        }
        let mut bytes = Vec::new();
        file.take(SIZE_LIMIT + 1).read_to_end(&mut bytes).map_err(|error| at(&path, &error))?;
        if bytes.len() as u64 > SIZE_LIMIT {
            return Err(at(&path, &io::Error::other("it is longer than 64 KiB")));
        }
        files.insert(name.to_owned(), bytes);
    }
    Ok(files)
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("read {}: {error}", path.display()))
}

fn answer(result: Result<impl Serialize, String>) -> ExitCode {
    let written = result.and_then(|answer| {
        serde_json::to_writer(io::stdout(), &answer).map_err(|error| error.to_string())?;
        io::stdout().flush().map_err(|error| error.to_string())
    });
    match written {
        Ok(()) => Exit::Ok.into(),
        Err(why) => {
            eprintln!("{why}");
            Exit::Failed.into()
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::symlink;

    use orlop_pki::KeyKind;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn signer() -> Signer {
        let ca = Authority::generate("x", KeyKind::P256, HOUR, SystemTime::now()).unwrap();
        Signer { crt: ca.pair().crt.clone(), key: ca.pair().key.clone() }
    }

    fn pki() -> Pki {
        let service_account = Some(signer().key);
        Pki { kubernetes: signer(), etcd: signer(), service_account }
    }

    /// The first `count` files of a PKI, over what lies there.
    fn place(pki: &Pki, count: usize, files: &mut BTreeMap<String, Vec<u8>>) {
        for (name, text) in pki.files().into_iter().take(count) {
            files.insert(name.to_owned(), text.expose().into());
        }
    }

    fn placed(pki: &Pki) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        place(pki, usize::MAX, &mut files);
        files
    }

    fn config(text: &str) -> MachineConfig {
        let text = format!("version: v1alpha1\n{text}");
        orlop_config::machine::parse("controlplane.yaml", &text).unwrap()
    }

    const LACKING: &str = "machine:\n  type: controlplane\n  trustd:\n    endpoints: [10.0.0.1]\n\
                           cluster:\n  controlPlane:\n    endpoint: https://10.0.0.9:6443\n";

    #[test]
    fn a_transfer_that_is_cut_anywhere_is_not_whole_and_the_next_one_is() {
        let (old, new) = (pki(), pki());
        let all = old.files().len();
        for cut in 0..all {
            let mut files = BTreeMap::new();
            place(&old, cut, &mut files);
            assert!(matches!(assemble(&files), Arrival::Partial(_)), "{cut}");
            place(&new, usize::MAX, &mut files);
            assert_eq!(assemble(&files), Arrival::Whole(new.clone()));
        }
        // Another one in the midst of being replaced.
        for cut in 1..all {
            let mut files = placed(&old);
            place(&new, cut, &mut files);
            assert!(matches!(assemble(&files), Arrival::Partial(_)), "{cut}");
        }
        let without = Pki { service_account: None, ..old };
        // The old manifest's service account is not the new one's.
        let mut files = placed(&new);
        place(&without, usize::MAX, &mut files);
        assert_eq!(assemble(&files), Arrival::Whole(without));
    }

    #[test]
    fn keys_that_do_not_belong_and_strange_manifests_are_unusable() {
        let unusable = |files: &BTreeMap<_, _>, why: &str| match assemble(files) {
            Arrival::Unusable(text) => assert!(text.contains(why), "{text}"),
            other => panic!("{other:?}"),
        };
        let good = pki();
        let mixed = Signer { crt: good.etcd.crt.clone(), key: signer().key };
        unusable(&placed(&Pki { etcd: mixed, ..good.clone() }), ETCD_KEY);
        let no_key = Some(Secret::new("x".to_owned()));
        unusable(&placed(&Pki { service_account: no_key, ..good.clone() }), SERVICE_KEY);
        let with = |manifest: &str| {
            let mut files = placed(&good);
            files.insert(MANIFEST.to_owned(), manifest.into());
            files
        };
        unusable(&with("{"), MANIFEST);
        unusable(&with("{}"), "ca.crt is missing");
        unusable(&with(r#"{"../x":"00"}"#), "is nothing that is expected");
    }

    #[test]
    fn a_folder_is_judged_when_its_manifest_is_new_and_until_it_fits_together() {
        let (own, other) = (pki(), pki());
        let mut taking = Taking::new();
        assert!(taking.worth_a_look(&1));
        for look in 1..=2 * PATIENCE {
            let then = taking.judged(1, Arrival::Partial("cut".to_owned()), None);
            let told = Then::Tell("cut".to_owned());
            assert_eq!(then, if look == PATIENCE { told } else { Then::Wait });
            assert!(taking.worth_a_look(&1));
        }
        assert_eq!(taking.judged(2, Arrival::Whole(own.clone()), None), Then::Install(own.clone()));
        assert!(!taking.worth_a_look(&2) && taking.worth_a_look(&3));
        // The same again is nothing new, and another one is not taken.
        assert_eq!(taking.judged(3, Arrival::Whole(own.clone()), Some(&own)), Then::Wait);
        assert!(matches!(taking.judged(4, Arrival::Whole(other), Some(&own)), Then::Tell(_)));
        assert!(matches!(taking.judged(5, Arrival::Unusable("x".into()), None), Then::Tell(_)));
        assert!(!taking.worth_a_look(&5));
    }

    #[test]
    fn everybody_gets_it_and_again_and_who_fails_is_tried_until_it_takes_it() {
        let hosts = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let begin = Instant::now();
        let mut giving = Giving::new();
        giving.go_by(None, &hosts(&["a", "b"]), begin);
        assert!(giving.next(begin).is_none());
        giving.go_by(Some(1), &hosts(&["a", "b"]), begin);
        assert_eq!(giving.next(begin), Some(("a", &1)));
        assert!(giving.gave("a", begin));
        assert_eq!(giving.next(begin), Some(("b", &1)));
        assert!(giving.failed("b", begin, 0));
        assert!(giving.next(begin).is_none());
        let mut now = begin;
        for _ in 0..10 {
            now += RETRY.1;
            // a is not due before its time.
            if let Some(("b", _)) = giving.next(now) {
                assert!(!giving.failed("b", now, 0), "told once");
            }
        }
        let due: Vec<_> = giving.next(begin + AGAIN).into_iter().collect();
        assert_eq!(due.len(), 1);
        now += RETRY.1;
        assert!(giving.gave("b", now), "news after failures");
        assert!(!giving.gave("a", now) && giving.next(now).is_none());
        // Another one goes to all at once, and to nobody else.
        giving.go_by(Some(2), &hosts(&["b"]), now);
        assert_eq!(giving.next(now), Some(("b", &2)));
        assert!(!giving.gave("a", now));
        giving.go_by(None, &hosts(&["b"]), now);
        assert!(giving.next(now + AGAIN).is_none());
    }

    #[test]
    fn a_configuration_that_leaves_the_pki_to_others_is_filled_and_what_it_says_prevails() {
        let (handed, bare) = (pki(), config(LACKING));
        assert!(lacks(&bare) && Goods::of(&bare).is_none());
        let filled = handed.fill(&bare);
        assert_eq!(Pki::of(&filled), Some(handed.clone()));
        assert_eq!(handed.fill(&filled), filled);
        assert_eq!(pki().fill(&filled), filled);
        let worker = config(&LACKING.replace("type: controlplane", "type: worker"));
        assert!(!lacks(&worker));
    }

    #[test]
    fn what_is_kept_is_of_one_cluster_and_over_boots() {
        let home = tempfile::tempdir().unwrap();
        let (path, pki) = (home.path().join("pki.json"), pki());
        assert_eq!(load(&path, "a"), None);
        keep(&path, &Kept { cluster: "a".to_owned(), pki: pki.clone() }).unwrap();
        assert_eq!((load(&path, "a"), load(&path, "b")), (Some(pki), None));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::write(&path, "{").unwrap();
        assert_eq!(load(&path, "a"), None);
    }

    #[test]
    fn the_folder_is_read_without_following_anything() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        assert_eq!(look(&at("absent")).unwrap(), BTreeMap::new());
        for (name, text) in pki().files() {
            fs::write(at(name), text.expose()).unwrap();
        }
        assert!(matches!(assemble(&look(home.path()).unwrap()), Arrival::Whole(_)));
        let refused = || look(home.path()).unwrap_err().to_string();
        fs::write(at(CA_KEY), vec![b'x'; 65 << 10]).unwrap();
        assert!(refused().contains("longer"), "{}", refused());
        fs::remove_file(at(CA_KEY)).unwrap();
        symlink("/etc/passwd", at(CA_KEY)).unwrap();
        assert!(refused().contains(CA_KEY), "{}", refused());
        fs::remove_file(at(CA_KEY)).unwrap();
        nix::unistd::mkfifo(&at(CA_KEY), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(refused().contains("regular"), "{}", refused());
    }
}
