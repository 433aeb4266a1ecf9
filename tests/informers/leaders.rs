//! Leader election by a Lease, as client-go does it (spec/kube-api §7.3): at no time do two hold it, whoever dies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::PATIENCE;
use crate::way::{Server, Way};

const NAME: &str = "the-one";
/// How long a lease holds that is not renewed,
const LASTS: Duration = Duration::from_secs(2);
/// and for how long its holder relies on it.
const RELIES: Duration = Duration::from_millis(1300);
const RETRY: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_no_time_two_hold_the_lease() {
    let folder = tempfile::tempdir().unwrap();
    let way = Way::open().await;
    let mut server = Server::start(&folder.path().join("data"));
    way.leads_to(Some(server.address));
    let record = Arc::<Record>::default();
    let join = async |name| join(name, &server.client(way.address).await, &record);

    let a = join("a").await;
    record.holds("a").await;
    let b = join("b").await;
    // It dies without a word; the other waits for its time to be over.
    a.abort();
    record.holds("b").await;
    let c = join("c").await;
    let d = join("d").await;
    b.abort();
    record.holds("cd").await;
    // The server dies: whoever has it relies on it no longer than it may.
    server.again();
    way.leads_to(Some(server.address));
    record.holds("cd").await;
    // Two are left: the lease goes from one to the other when it is given back.
    record.give_back.store(true, Ordering::Release);
    let other = if record.resigned().await == "c" { "d" } else { "c" };
    record.holds(other).await;
    c.abort();
    d.abort();

    let leases: Api<Lease> = Api::namespaced(server.client(way.address).await, "default");
    let transitions = leases.get(NAME).await.unwrap().spec.unwrap().lease_transitions;
    let held = record.held.lock().unwrap();
    let mut turns: Vec<_> = held.iter().map(|held| held.who).collect();
    turns.dedup();
    assert!(transitions >= i32::try_from(turns.len() - 1).ok(), "{transitions:?}: {turns:?}");
    for (i, one) in held.iter().enumerate() {
        let mut others = held[..i].iter().filter(|other| other.who != one.who);
        assert!(others.all(|other| other.until <= one.from), "two held it at a time: {held:?}");
        let mut earlier = held[..i].iter();
        assert!(earlier.all(|other| other.over != one.over), "two wrote over one: {held:?}");
    }
}

/// When somebody relied on being the one.
#[derive(Debug)]
struct Held {
    who: &'static str,
    from: Instant,
    until: Instant,
    /// The revision that was replaced.
    over: Option<String>,
}

#[derive(Debug, Default)]
struct Record {
    held: Mutex<Vec<Held>>,
    more: Notify,
    /// Whoever holds it next shall give it back,
    give_back: AtomicBool,
    /// and this one did.
    resigned: Mutex<Option<&'static str>>,
}

impl Record {
    /// Waits until one of these holds it, from now on.
    async fn holds(&self, whom: &str) {
        let known = self.held.lock().unwrap().len();
        let held = || {
            let held = self.held.lock().unwrap();
            held[known..].iter().find(|held| whom.contains(held.who)).map(|held| held.who)
        };
        self.until(held).await;
    }

    /// Waits until somebody gave it back.
    async fn resigned(&self) -> &'static str {
        self.until(|| *self.resigned.lock().unwrap()).await
    }

    async fn until(&self, is: impl Fn() -> Option<&'static str>) -> &'static str {
        let waited = async {
            loop {
                let more = self.more.notified();
                if let Some(who) = is() {
                    return who;
                }
                more.await;
            }
        };
        timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("it does not happen: {self:?}"))
    }
}

fn join(who: &'static str, client: &Client, record: &Arc<Record>) -> JoinHandle<()> {
    let leases = Api::namespaced(client.clone(), "default");
    let candidate = Candidate { who, leases, record: Arc::clone(record), seen: None };
    tokio::spawn(candidate.run())
}

struct Candidate {
    who: &'static str,
    leases: Api<Lease>,
    record: Arc<Record>,
    /// The lease as it was last seen to change, and when that was.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    async fn run(mut self) {
        loop {
            // What fails is tried again.
            let holds = self.turn().await.unwrap_or(false);
            if holds && self.record.give_back.swap(false, Ordering::AcqRel) {
                if self.give_back().await.is_ok() {
                    *self.record.resigned.lock().unwrap() = Some(self.who);
                    self.record.more.notify_waiters();
                    return;
                }
                self.record.give_back.store(true, Ordering::Release);
            }
            sleep(RETRY).await;
        }
    }

    /// Takes or renews the lease if it may; whether it holds it now.
    async fn turn(&mut self) -> Result<bool, kube::Error> {
        let now = || Some(MicroTime(Timestamp::now()));
        let Some(mut lease) = self.leases.get_opt(NAME).await? else {
            let spec = LeaseSpec { lease_transitions: Some(0), acquire_time: now(), ..self.spec() };
            let mut lease = Lease { spec: Some(spec), ..Lease::default() };
            lease.metadata.name = Some(NAME.to_owned());
            let asked = Instant::now();
            self.leases.create(&PostParams::default(), &lease).await?;
            self.relies(asked, None);
            return Ok(true);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let at = Instant::now();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            self.seen = Some((spec.clone(), at));
        }
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let lasts =
            Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).unsigned_abs().into());
        let since = self.seen.as_ref().map_or(at, |(_, since)| *since);
        let mine = holder == self.who;
        if !mine && !holder.is_empty() && at < since + lasts {
            return Ok(false);
        }
        let (transitions, acquired) = if mine {
            (spec.lease_transitions, spec.acquire_time.clone())
        } else {
            (Some(spec.lease_transitions.unwrap_or(0) + 1), now())
        };
        let over = lease.resource_version();
        lease.spec = Some(LeaseSpec {
            lease_transitions: transitions,
            acquire_time: acquired,
            ..self.spec()
        });
        let asked = Instant::now();
        self.leases.replace(NAME, &PostParams::default(), &lease).await?;
        self.relies(asked, over);
        Ok(true)
    }

    fn spec(&self) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.who.to_owned()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }
    }

    fn relies(&self, asked: Instant, over: Option<String>) {
        let held = Held { who: self.who, from: Instant::now(), until: asked + RELIES, over };
        self.record.held.lock().unwrap().push(held);
        self.record.more.notify_waiters();
    }

    async fn give_back(&self) -> Result<(), kube::Error> {
        // It relies on it no more from before it says so.
        let now = Instant::now();
        for held in self.record.held.lock().unwrap().iter_mut().filter(|held| held.who == self.who)
        {
            held.until = held.until.min(now);
        }
        let mut lease = self.leases.get(NAME).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(self.who) {
            return Ok(());
        }
        (spec.holder_identity, spec.lease_duration_seconds) = (Some(String::new()), Some(1));
        self.leases.replace(NAME, &PostParams::default(), &lease).await.map(drop)
    }
}
