//! Looks at the kernel's tables whenever something changed and carries out the plan.
//!
//! Level-triggered: every notice, lease or timer leads to the same [`Driver::reconcile`], which lists
//! what is, asks [`plan`](crate::plan) what to do about it and does that. What fails is logged once
//! and tried again later; it does not keep other links from being configured. Who keeps leases, who takes part in
//! elections, WireGuard, and what others learn of it all have a file each.

mod encrypted;
mod leases;
mod published;
mod wandering;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use orlop_netlink::wireguard::{Device, PublicKey, Wireguard};
use orlop_netlink::{Change, Changes, Direct, Duplicates, Kind, Link, Mac, Netlink};
use orlop_rt::{Backoff, CancellationToken, Chain};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::{debug, info, warn};

use crate::advertisement::Learned;
use crate::api::News;
use crate::dhcp::{Carrier, Update, now, wait_until};
use crate::holder::Held;
use crate::machine::{Lease, Uptime};
use crate::machine6;
use crate::made::{self, Wanted};
use crate::news::Reporter;
use crate::plan::{self, Desired, Names, Observed, Operation, Settings, difference};
use crate::resolver::machine::Known;
use crate::routers::Heard;
use crate::{Error, Options, selectors};

/// A link that is tried for so long without success no longer keeps the node from being ready.
const PATIENCE: Duration = Duration::from_secs(5);
/// A file of this name in the state folder means that leases are given back at the end.
pub(crate) const RELEASE: &str = "release";
/// How long that may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// Addresses that wander are handed over before that.
const HANDOVER: Duration = Duration::from_secs(4);
/// Until what failed is tried again.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// After so long without failure, one is news again.
const CALM: Duration = Duration::from_secs(120);
/// Each round makes the next one smaller; whoever works against us is not fought any faster.
const MAX_ROUNDS: u32 = 8;
/// The kernel tells nobody of changes to WireGuard links: how often they are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Where the devices behind links are shown.
const DEVICES: &str = "/sys/class/net";
/// Keepers wait for us; a handful is on its way at any time.
const UPDATES: usize = 16;

/// Owns everything that is known; others learn of it through the kernel and `ready`.
pub(crate) struct Driver {
    options: Options,
    /// As they were given, with sections for links that are not named.
    given: Settings,
    /// With those sections added to the links they fit.
    settings: Settings,
    netlink: Netlink,
    /// For what is much.
    direct: Direct,
    changes: Changes,
    duplicates: Duplicates,
    ready: watch::Sender<bool>,
    /// Who hears what changed, and what they are told when.
    news: News,
    reporter: Reporter,
    /// What servers gave, by link.
    leases: BTreeMap<u32, Lease>,
    /// Who keeps them, by link.
    keepers: BTreeMap<u32, Handle>,
    tasks: JoinSet<Ended>,
    /// Links whose keeper ended by itself: they get another one at the next retry.
    resting: BTreeSet<u32>,
    updates: (mpsc::Sender<Update>, mpsc::Receiver<Update>),
    /// What routers said, by link.
    learned: BTreeMap<u32, Learned>,
    /// What DHCPv6 servers gave, by link.
    leases6: BTreeMap<u32, machine6::Lease>,
    heard: (mpsc::Sender<Heard>, mpsc::Receiver<Heard>),
    listeners: JoinSet<(String, io::Result<()>)>,
    /// What the resolver on loopback goes by, and the resolver, where there is one.
    known: watch::Sender<Known>,
    resolver: JoinSet<io::Result<()>>,
    /// When each link of ours was first seen.
    since: BTreeMap<u32, Uptime>,
    /// What has been complained about since things were last calm.
    failing: BTreeSet<String>,
    failed_at: Option<Uptime>,
    retry: Backoff,
    retry_at: Option<Uptime>,
    /// Tells all keepers to give their leases back.
    release: CancellationToken,
    /// Options that a link was told: if it does not show them, it is not told again at once.
    told_kinds: BTreeMap<u32, Kind>,
    /// The addresses that wander and are here, by their links, and for how long.
    held: BTreeMap<(u32, IpAddr), Uptime>,
    /// Who takes part in their elections, by link.
    wanderers: BTreeMap<u32, Part>,
    elections: JoinSet<()>,
    holds: (mpsc::Sender<Held>, mpsc::Receiver<Held>),
    /// Those who wait until the kernel knows.
    waiting: Vec<oneshot::Sender<()>>,
    /// Ends the elections.
    stop: CancellationToken,
    /// Where WireGuard links are asked and told, once there is one.
    wireguard: Option<Wireguard>,
    /// What they shall know.
    encrypted: BTreeMap<u32, (Device, BTreeSet<PublicKey>)>,
    /// Their peers that were told where they are.
    told_endpoints: BTreeMap<u32, BTreeSet<PublicKey>>,
    look_at: Option<Uptime>,
    /// Whether neighbours are listed: they may be many.
    neighbours: bool,
    /// The last names that an interface gave the node.
    named: Option<Names>,
    /// The name that the files have.
    host_name: Option<String>,
    /// The names the kernel was last told.
    told: Option<(String, Option<String>)>,
}

/// A running keeper.
struct Handle {
    name: String,
    mac: Mac,
    carrier: watch::Sender<Carrier>,
    /// To who keeps its IPv6 address.
    duplicate: watch::Sender<Option<Ipv6Addr>>,
    task: AbortHandle,
}

/// A part in an election.
struct Part {
    name: String,
    mac: Mac,
    address: IpAddr,
    carrier: watch::Sender<Carrier>,
}

/// Which keeper ended, and how.
type Ended = (u32, io::Result<()>);

enum Happened {
    Changed(io::Result<()>),
    Duplicate(io::Result<(u32, Ipv6Addr)>),
    Lease(Update),
    Heard(Heard),
    Held(Held),
    ElectionEnded(Result<(), JoinError>),
    KeeperEnded(Result<Ended, JoinError>),
    ListenerEnded(Result<(String, io::Result<()>), JoinError>),
    ResolverEnded(Result<io::Result<()>, JoinError>),
    Timer,
    Look,
    NewsDue,
    Shutdown,
}

impl Driver {
    pub(crate) fn new(
        options: Options,
        settings: Settings,
        (netlink, direct): (Netlink, Direct),
        (changes, duplicates): (Changes, Duplicates),
        (ready, news): (watch::Sender<bool>, News),
    ) -> Self {
        Self {
            options,
            given: settings.clone(),
            settings,
            netlink,
            direct,
            changes,
            duplicates,
            ready,
            news,
            reporter: Reporter::default(),
            leases: BTreeMap::new(),
            keepers: BTreeMap::new(),
            tasks: JoinSet::new(),
            resting: BTreeSet::new(),
            updates: mpsc::channel(UPDATES),
            learned: BTreeMap::new(),
            leases6: BTreeMap::new(),
            heard: mpsc::channel(UPDATES),
            listeners: JoinSet::new(),
            known: watch::Sender::default(),
            resolver: JoinSet::new(),
            since: BTreeMap::new(),
            failing: BTreeSet::new(),
            failed_at: None,
            retry: Backoff::new(FIRST_RETRY, LAST_RETRY),
            retry_at: None,
            release: CancellationToken::new(),
            told_kinds: BTreeMap::new(),
            held: BTreeMap::new(),
            wanderers: BTreeMap::new(),
            elections: JoinSet::new(),
            holds: mpsc::channel(UPDATES),
            waiting: Vec::new(),
            stop: CancellationToken::new(),
            wireguard: None,
            encrypted: BTreeMap::new(),
            told_endpoints: BTreeMap::new(),
            look_at: None,
            // Those of an earlier run.
            neighbours: true,
            named: None,
            host_name: None,
            told: None,
        }
    }

    /// Runs until shutdown; what it set up stays.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut settled = false;
        loop {
            if !std::mem::replace(&mut settled, false) {
                self.reconcile().await;
            }
            self.tell_waiting();
            let timer = wait_until(self.wake_at());
            let look = wait_until(self.look_at);
            let news = wait_until(self.reporter.wake_at());
            // All arms are cancel-safe.
            let happened = tokio::select! {
                changed = self.changes.next() => Happened::Changed(changed),
                found = self.duplicates.next() => Happened::Duplicate(found),
                Some(update) = self.updates.1.recv() => Happened::Lease(update),
                Some(heard) = self.heard.1.recv() => Happened::Heard(heard),
                Some(held) = self.holds.1.recv() => Happened::Held(held),
                Some(ended) = self.elections.join_next() => Happened::ElectionEnded(ended),
                Some(ended) = self.tasks.join_next() => Happened::KeeperEnded(ended),
                Some(ended) = self.listeners.join_next() => Happened::ListenerEnded(ended),
                Some(ended) = self.resolver.join_next() => Happened::ResolverEnded(ended),
                () = timer => Happened::Timer,
                () = look => Happened::Look,
                () = news => Happened::NewsDue,
                () = shutdown.cancelled() => Happened::Shutdown,
            };
            match happened {
                Happened::Changed(result) => result.map_err(Error::Watch)?,
                Happened::Duplicate(found) => {
                    let (index, address) = found.map_err(Error::Watch)?;
                    self.duplicate(index, address);
                }
                Happened::Lease(update) => self.take(update),
                // One that was stopped may have left a word behind.
                Happened::Heard(Heard { index, learned, lease }) => {
                    if self.keepers.contains_key(&index) {
                        self.learned.insert(index, learned);
                        match lease {
                            Some(lease) => self.leases6.insert(index, lease),
                            None => self.leases6.remove(&index),
                        };
                    }
                }
                Happened::Held(held) => self.take_held(held),
                // Those who take part end when they are told to, and not by themselves.
                Happened::ElectionEnded(Ok(())) => {}
                Happened::KeeperEnded(Ok((index, result))) => self.keeper_ended(index, result),
                // Without IPv6 there are no routers to hear: the node does well without.
                Happened::ListenerEnded(Ok((link, Err(error)))) => {
                    self.complain(&format!("hear the routers of {link}"), &error);
                }
                Happened::ListenerEnded(Ok((_, Ok(())))) => {}
                Happened::ResolverEnded(Ok(result)) => {
                    if let Err(error) = result {
                        self.complain("serve the resolver", &error);
                    }
                    self.try_again_later();
                }
                Happened::ElectionEnded(Err(error)) if error.is_panic() => {
                    std::panic::resume_unwind(error.into_panic());
                }
                Happened::ElectionEnded(Err(_)) => {}
                Happened::KeeperEnded(Err(error))
                | Happened::ListenerEnded(Err(error))
                | Happened::ResolverEnded(Err(error))
                    if error.is_panic() =>
                {
                    std::panic::resume_unwind(error.into_panic());
                }
                // Stopped by us.
                Happened::KeeperEnded(Err(_))
                | Happened::ListenerEnded(Err(_))
                | Happened::ResolverEnded(Err(_)) => {}
                Happened::Timer => {
                    self.retry_at = None;
                    self.resting.clear();
                    self.told_kinds.clear();
                }
                Happened::Look => {
                    self.look_at = Some(now() + LOOK_INTERVAL);
                    settled = self.wireguard_is_right();
                }
                Happened::NewsDue => {
                    settled = true;
                    if let Some(notice) = self.reporter.due(now()) {
                        self.tell(notice);
                    }
                }
                Happened::Shutdown => {
                    self.leave().await;
                    return Ok(());
                }
            }
        }
    }

    /// Leaves everything as it is but addresses that wander; if the machine goes away for long, leases are given
    /// back as well.
    async fn leave(mut self) {
        self.stop.cancel();
        let handed_over = async {
            loop {
                tokio::select! {
                    Some(held) = self.holds.1.recv() => {
                        self.take_held(held);
                        self.reconcile().await;
                        self.tell_waiting();
                    }
                    ended = self.elections.join_next() => if ended.is_none() { break },
                }
            }
        };
        if tokio::time::timeout(HANDOVER, handed_over).await.is_err() {
            warn!("an address that wanders was not handed over in time; its lease ends by itself");
        }
        if !self.options.state.join(RELEASE).exists() {
            return;
        }
        self.release.cancel();
        let told = async {
            while !(self.tasks.is_empty() && self.listeners.is_empty()) {
                tokio::select! {
                    Some(_) = self.updates.1.recv() => {}
                    Some(_) = self.heard.1.recv() => {}
                    Some(_) = self.listeners.join_next() => {}
                    Some(_) = self.tasks.join_next() => {}
                }
            }
        };
        if tokio::time::timeout(FAREWELL, told).await.is_err() {
            warn!("not every lease was given back in time");
        }
    }

    /// The next retry; until we are ready also the end of our patience with each link.
    fn wake_at(&self) -> Option<Uptime> {
        let now = now();
        let patience = self.since.values().map(|since| *since + PATIENCE).filter(|at| *at > now);
        let waiting = !*self.ready.borrow();
        patience.filter(|_| waiting).chain(self.retry_at).min()
    }

    /// Makes what is into what should be, as far as that goes now.
    pub(crate) async fn reconcile(&mut self) {
        for round in 1.. {
            let mut observed = match self.observe().await {
                Ok(observed) => observed,
                Err(error) => {
                    self.complain("list the kernel's tables", &error);
                    return self.try_again_later();
                }
            };
            if !self.reporter.began() {
                // What we do ourselves at the start are changes, too.
                self.report(&observed);
            }
            let device = |link: &Link| selectors::Device::of_link(Path::new(DEVICES), &link.name);
            if let Some(selected) = self.given.selected(&observed.links, device) {
                self.settings = selected;
            }
            let intents = plan::intents(&self.settings, &observed.links);
            self.believe_routers(&intents, &observed.links);
            self.keep_leases(&intents, &observed);
            self.keep_parts(&intents, &observed.links);
            let desired = Desired::new(&intents, &self.leases, now())
                .with_leases6(&self.leases6, now())
                .with_made_links(&self.settings, &observed.links)
                .with_held(&self.held, now())
                .with_wireguard(&self.settings, &observed.links, &self.told_endpoints);
            self.encrypted.clone_from(&desired.wireguard);
            self.look_at = (!self.encrypted.is_empty()).then(|| now() + LOOK_INTERVAL);
            for index in desired.wireguard.keys() {
                match self.wireguard(|socket| socket.device(*index)) {
                    Ok(device) => drop(observed.wireguard.insert(*index, device)),
                    Err(error) => {
                        self.complain("ask WireGuard", &error);
                        self.try_again_later();
                    }
                }
            }
            self.neighbours = !desired.neighbours.is_empty()
                || !observed.neighbours.is_empty() && self.neighbours;
            for conflict in made::conflicts(&desired.made, &observed.links) {
                self.complain_of(conflict);
            }
            let operations = difference(&desired, &observed);
            let settled = operations.is_empty();
            let done = settled || self.carry_out(&operations, &observed.links).await;
            let stuck = !done || round == MAX_ROUNDS;
            if stuck && !settled {
                self.try_again_later();
            }
            if stuck || settled {
                self.publish(&intents, &observed, &desired);
                return self.report(&observed);
            }
        }
    }

    async fn observe(&mut self) -> Result<Observed, orlop_netlink::Error> {
        let neighbours = match self.neighbours {
            true => self.netlink.neighbours().await?,
            false => Vec::new(),
        };
        Ok(Observed {
            links: self.direct.links()?,
            addresses: self.direct.addresses()?,
            routes: self.direct.routes()?,
            rules: self.netlink.rules().await?,
            neighbours,
            ..Observed::default()
        })
    }

    fn change(&mut self, changes: &[Change<'_>]) -> Vec<Result<(), orlop_netlink::Error>> {
        if changes.is_empty() { Vec::new() } else { self.direct.change(changes) }
    }

    /// Whether every operation succeeded.
    async fn carry_out(&mut self, operations: &[Operation], links: &[Link]) -> bool {
        let mut done = true;
        // Of the operations that come next: many links have a lot of them.
        let mut together = VecDeque::new();
        for (at, operation) in operations.iter().enumerate() {
            debug!(?operation, "difference");
            if together.is_empty() {
                let changes = operations[at..].iter().map_while(change);
                together.extend(self.change(&changes.collect::<Vec<_>>()));
            }
            let result = match operation {
                Operation::RemoveRoute(_)
                | Operation::RemoveAddress(_)
                | Operation::SetMtu(..)
                | Operation::SetUp(_)
                | Operation::PutAddress(_)
                | Operation::AddRoute(_) => together.pop_front().unwrap_or(Ok(())),
                Operation::RemoveLink(index) => self.netlink.remove_link(*index).await,
                Operation::MakeLink(Wanted { name, kind, parent }) => {
                    self.netlink.make_link(name, kind, *parent).await
                }
                Operation::Mark(index) => self.netlink.set_alias(*index, made::MARK).await,
                Operation::ChangeKind(index, kind) if self.told_kinds.get(index) == Some(kind) => {
                    let link = name_of(links, *index).unwrap_or_default();
                    self.complain_of(format!("link {link:?} does not take all of its options"));
                    done = false;
                    continue;
                }
                Operation::ChangeKind(index, kind) => {
                    self.told_kinds.insert(*index, kind.clone());
                    self.netlink.change_kind(*index, kind).await
                }
                Operation::SetDown(index) => self.netlink.set_down(*index).await,
                Operation::SetMaster(index, master) => {
                    self.netlink.set_master(*index, *master).await
                }
                Operation::RemoveRule(rule) => self.netlink.remove_rule(rule).await,
                Operation::AddRule(rule) => self.netlink.add_rule(rule).await,
                Operation::RemoveNeighbour(gone) => self.netlink.remove_neighbour(gone).await,
                Operation::PutNeighbour(known) => self.netlink.put_neighbour(known).await,
                Operation::TellWireguard(index, change) => self.tell_wireguard(*index, change),
            };
            let removal = operation.removes();
            match result {
                Ok(()) => match operation {
                    Operation::MakeLink(wanted) => info!(link = %wanted.name, "link made"),
                    Operation::RemoveLink(index) => {
                        info!(link = name_of(links, *index), "link removed");
                    }
                    _ => {}
                },
                Err(error) if error.already_exists() || (removal && error.not_found()) => {}
                Err(error) => {
                    let on = match operation {
                        Operation::MakeLink(wanted) => Some(wanted.name.as_str()),
                        _ => operation.index().and_then(|index| name_of(links, index)),
                    };
                    self.complain(&format!("configure {}", on.unwrap_or("the network")), &error);
                    done = false;
                }
            }
        }
        done
    }

    /// Logs what failed, once until things have been calm for a while.
    fn complain(&mut self, what: &str, error: &(dyn std::error::Error + 'static)) {
        let error = Chain(error).to_string();
        if self.is_news(format!("{what}: {error}")) {
            warn!(%error, "{what} failed, will try again");
        }
    }

    /// The same for what no call failed at.
    fn complain_of(&mut self, problem: String) {
        if self.is_news(problem.clone()) {
            warn!("{problem}");
        }
    }

    fn is_news(&mut self, complaint: String) -> bool {
        let now = now();
        if self.failed_at.replace(now).is_none_or(|before| now - before > CALM) {
            self.failing.clear();
            self.retry.reset();
        }
        self.failing.insert(complaint)
    }

    fn try_again_later(&mut self) {
        if self.retry_at.is_none() {
            // Nobody else retries what we retry: no jitter is needed.
            self.retry_at = Some(now() + self.retry.next(0));
        }
    }
}

/// What can be done together with others; each is refused by itself.
fn change(operation: &Operation) -> Option<Change<'_>> {
    Some(match operation {
        Operation::RemoveRoute(route) => Change::RemoveRoute(route),
        Operation::RemoveAddress(address) => Change::RemoveAddress(address),
        Operation::SetMtu(index, mtu) => Change::SetMtu(*index, *mtu),
        Operation::SetUp(index) => Change::SetUp(*index),
        Operation::PutAddress(address) => Change::PutAddress(address),
        Operation::AddRoute(route) => Change::AddRoute(route),
        _ => return None,
    })
}

fn name_of(links: &[Link], index: u32) -> Option<&str> {
    links.iter().find(|link| link.index == index).map(|link| link.name.as_str())
}
