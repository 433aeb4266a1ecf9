//! Carries out what one [`Election`] decides: asks etcd, tells the driver and the neighbours.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;

use orlop_netlink::{Arp, ArpSocket, Mac, advertise_neighbour};
use orlop_rt::{CancellationToken, Chain};
use orlop_store::{Error, EtcdTls, LeaseId, Limits, Location, Store};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::dhcp::{Carrier, now, random, wait_until};
use crate::machine::Uptime;
use crate::vip::{Action, Answer, Election, Event, LIMIT, Lease, TTL};

/// Whether the address is here.
#[derive(Debug)]
pub(crate) struct Held {
    /// The link.
    pub(crate) index: u32,
    /// Which.
    pub(crate) address: IpAddr,
    /// No longer than this; `None`: it is not.
    pub(crate) until: Option<Uptime>,
    /// Told once the kernel has it so.
    pub(crate) done: oneshot::Sender<()>,
}

/// Where etcd is, and what it believes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// `ca.crt`, `admin.crt` and `admin.key`.
    pub(crate) folder: PathBuf,
    /// `HOST:PORT`.
    pub(crate) member: String,
}

/// Takes part for one address of one link.
#[derive(Debug)]
pub(crate) struct Wanderer {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Mac,
    pub(crate) address: IpAddr,
    pub(crate) place: Place,
    pub(crate) updates: mpsc::Sender<Held>,
    pub(crate) stop: CancellationToken,
}

/// A question on its way.
type Asking = Pin<Box<dyn Future<Output = Result<(Store, Answer), String>> + Send>>;

/// How often neighbours are told, and how far apart: the first may be lost, and Linux does not believe another
/// within a second (`locktime` of arp(7)).
const ANNOUNCEMENTS: u32 = 4;
const ANNOUNCEMENT_INTERVAL: Uptime = Uptime::from_millis(600);

enum Happened {
    Answered(Result<(Store, Answer), String>),
    Carrier(bool),
    Timer,
    Announce,
    Stop,
}

impl Wanderer {
    /// Runs until nobody wants the address here any more, or the other end of `carrier` goes; it is away then.
    pub(crate) async fn run(self, mut carrier: watch::Receiver<Carrier>) {
        let mut election = Election::new(now());
        let mut etcd: Option<Store> = None;
        let mut asking: Option<Asking> = None;
        let mut announce: Option<(Uptime, u32)> = None;
        let (mut here, mut failing) = (false, false);
        let running = carrier.borrow_and_update().running;
        let mut event = Some(Event::Carrier(running));
        loop {
            let actions = event.map(|event| election.handle(now(), random().into(), event));
            for action in actions.into_iter().flatten() {
                debug!(?action, "election");
                match action {
                    Action::Campaign | Action::Renew(_) => {
                        asking = Some(Box::pin(self.ask(action, etcd.clone())));
                    }
                    Action::Hold(until) => {
                        self.tell(Some(until)).await;
                        if !std::mem::replace(&mut here, true) {
                            info!(address = %self.address, "the address is here");
                            announce = Some((now(), ANNOUNCEMENTS));
                        }
                    }
                    Action::Drop => {
                        (asking, announce, here) = (None, None, false);
                        info!(address = %self.address, "the address goes");
                        if !self.tell(None).await {
                            // Others wait for the end of the lease; the kernel knows it, too.
                            warn!(address = %self.address, "nobody took the address away yet");
                            etcd = None;
                        }
                    }
                    Action::Release(lease) => release(etcd.as_ref(), lease).await,
                }
            }
            if event == Some(Event::Stopped) {
                return;
            }
            let timer = wait_until(election.wake_at());
            let telling = wait_until(announce.map(|(at, _)| at));
            // All arms are cancel-safe: the question goes on where it was.
            let happened = tokio::select! {
                answer = answer(&mut asking) => Happened::Answered(answer),
                () = timer => Happened::Timer,
                () = telling => Happened::Announce,
                () = self.stop.cancelled() => Happened::Stop,
                changed = carrier.changed() => match changed {
                    Ok(()) => Happened::Carrier(carrier.borrow_and_update().running),
                    Err(_) => Happened::Stop,
                },
            };
            event = match happened {
                Happened::Answered(Ok((store, answer))) => {
                    (asking, etcd) = (None, Some(store));
                    if std::mem::take(&mut failing) {
                        info!("etcd answers");
                    }
                    Some(Event::Answered(answer))
                }
                Happened::Answered(Err(error)) => {
                    (asking, etcd) = (None, None);
                    // Once until it answers again: before etcd's first start nobody can.
                    if !std::mem::replace(&mut failing, true) {
                        warn!(address = %self.address, error, "no vote on the address, will try again");
                    }
                    Some(Event::Answered(Answer::Failed))
                }
                Happened::Carrier(running) => Some(Event::Carrier(running)),
                Happened::Timer => Some(Event::TimerFired),
                Happened::Announce => {
                    let sent = self.announce().await;
                    debug!(?sent, "announcement");
                    let left = announce.map_or(0, |(_, left)| left - 1);
                    announce = (left > 0).then(|| (now() + ANNOUNCEMENT_INTERVAL, left));
                    None
                }
                Happened::Stop => Some(Event::Stopped),
            };
        }
    }

    /// Tells the driver, and waits until the kernel knows; whether it does.
    async fn tell(&self, until: Option<Uptime>) -> bool {
        let (done, is_done) = oneshot::channel();
        let told = async {
            let sent = self
                .updates
                .send(Held { index: self.index, address: self.address, until, done })
                .await;
            sent.is_ok() && is_done.await.is_ok()
        };
        timeout(LIMIT, told).await.unwrap_or(false)
    }

    /// Tells the neighbours: gratuitous ARP (RFC 5227 §3), or an advertisement nobody asked for (RFC 4861
    /// §7.2.6).
    async fn announce(&self) -> io::Result<()> {
        match self.address {
            IpAddr::V4(address) => {
                let socket = ArpSocket::open(self.index, address)?;
                socket.broadcast(&Arp::announcement(self.mac, address)).await
            }
            IpAddr::V6(address) => advertise_neighbour(self.index, &self.name, self.mac, address),
        }
    }

    fn ask(
        &self,
        action: Action,
        etcd: Option<Store>,
    ) -> impl Future<Output = Result<(Store, Answer), String>> + Send + use<> {
        let (place, key) = (self.place.clone(), format!("/orlop/vip/{}", self.address));
        async move {
            let asked = async {
                let store = match etcd {
                    Some(store) => store,
                    None => connect(&place).await?,
                };
                let answer = match action {
                    Action::Renew(lease) => renew(&store, key, LeaseId(lease)).await,
                    _ => campaign(&store, key).await,
                };
                Ok((store, answer.map_err(|error| Chain(&error).to_string())?))
            };
            let late = || Err(format!("etcd does not answer within {LIMIT:?}"));
            timeout(LIMIT, asked).await.unwrap_or_else(|_| late())
        }
    }
}

async fn answer(asking: &mut Option<Asking>) -> Result<(Store, Answer), String> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

async fn connect(place: &Place) -> Result<Store, String> {
    let read = |name: &str| {
        let path = place.folder.join(name);
        std::fs::read_to_string(&path).map_err(|error| format!("read {}: {error}", path.display()))
    };
    let identity = (read("admin.crt")?, read("admin.key")?);
    let tls = EtcdTls { authority: read("ca.crt")?, identity: Some(identity) };
    let location = Location::Etcd(vec![place.member.clone()]);
    let store = Store::open(&location, Some(tls), Limits::default()).await;
    store.map_err(|error| Chain(&error).to_string())
}

async fn campaign(store: &Store, key: String) -> Result<Answer, Error> {
    if store.get(key.clone(), None).await?.is_some() {
        return Ok(Answer::Taken);
    }
    let lease = store.grant(TTL).await?;
    // For whoever looks: nothing depends on it.
    let holder = host_name();
    match store.create(key, holder, Some(lease)).await {
        Ok(_) => Ok(Answer::Won(lease.0)),
        Err(error) => {
            // It may be ours all the same, and goes with the lease then.
            release(Some(store), lease.0).await;
            match error {
                Error::Exists { .. } => Ok(Answer::Taken),
                error => Err(error),
            }
        }
    }
}

async fn renew(store: &Store, key: String, lease: LeaseId) -> Result<Answer, Error> {
    match store.keep_alive(lease).await {
        Ok(()) => {}
        Err(Error::NoLease { .. }) => return Ok(Answer::Lost),
        Err(error) => return Err(error),
    }
    let entry = store.get(key, None).await?;
    let ours = entry.is_some_and(|entry| entry.lease == Some(lease));
    Ok(if ours { Answer::Kept } else { Answer::Lost })
}

/// As well as it goes: the lease ends by itself soon.
async fn release(store: Option<&Store>, lease: Lease) {
    let Some(store) = store else { return };
    let revoked = timeout(LIMIT, store.revoke(LeaseId(lease))).await;
    debug!(lease, ?revoked, "lease given back");
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
