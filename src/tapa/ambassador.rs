//! The pod's trench: which streams are open, and what becomes of an Open and a Close (spec/ambassador §2).
//!
//! Opening and closing say what is wanted, and return; a [`Keeper`] for each conduit sees to it. A trench is the pod's
//! until the last of its conduits has nothing left; who opens a stream of another one meanwhile waits for that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orlop_proto::ambassador::v1::stream_status::Status;
use orlop_proto::ambassador::v1::{Stream, StreamStatus};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;

use crate::conduit::{Keeper, Link};
use crate::registry::Registry;
use crate::table::{Name, Table};

/// What applications see; latest wins.
#[derive(Debug, Default)]
pub struct Listed(watch::Sender<Table>);

impl Listed {
    /// A stream that was opened.
    fn add(&self, name: &Name) {
        self.0.send_if_modified(|table| !table.has(name) && table.set(name, Status::Unavailable));
    }

    /// Another status, of a stream that is still open.
    pub fn set(&self, name: &Name, status: Status) {
        self.0.send_if_modified(|table| table.has(name) && table.set(name, status));
    }

    fn remove(&self, name: &Name) {
        self.0.send_if_modified(|table| table.remove(name));
    }

    /// The list of a filter, now and whenever anything changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Table> {
        self.0.subscribe()
    }

    /// The list of a filter.
    #[must_use]
    pub fn list(&self, filter: &Stream) -> Vec<StreamStatus> {
        self.0.borrow().list(filter)
    }
}

/// Why a stream is not opened.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// A pod is in one trench at a time.
    #[error(
        "cannot open a stream of {wanted:?}, as {current:?} is this pod's: another trench is already connected"
    )]
    OtherTrench {
        /// That it was asked for.
        wanted: String,
        /// That it is in.
        current: String,
    },
    /// Its registry has no address.
    #[error("the registry of {trench:?}: {why}")]
    Address {
        /// Whose.
        trench: String,
        /// What is wrong with it.
        why: String,
    },
}

/// How a pod is connected and where registries are.
#[derive(Clone, Debug)]
pub struct World {
    /// The name of registries, before the trench's; or an address with `://`.
    pub service: String,
    /// The Kubernetes namespace they are in.
    pub namespace: String,
    /// Their port.
    pub port: u16,
    /// The addresses of a pod whose network somebody else sees to.
    pub static_ips: Vec<String>,
    /// Of a refresh.
    pub period: Duration,
    /// How long streams and conduits may take to be left when the process ends.
    pub limit: Duration,
}

/// The pod's one trench, if it is in one.
#[derive(Debug)]
pub struct Ambassador {
    world: World,
    listed: Arc<Listed>,
    /// Held for a look or a change.
    trench: Mutex<Option<Current>>,
    /// The trench may be another.
    moved: watch::Sender<()>,
}

#[derive(Debug)]
struct Current {
    name: String,
    registry: Registry,
    conduits: BTreeMap<String, Conduit>,
}

#[derive(Debug)]
struct Conduit {
    wanted: watch::Sender<BTreeSet<String>>,
    idle: watch::Receiver<bool>,
    /// Its keeper lives as long as it does.
    _link: watch::Sender<Link>,
}

impl Current {
    /// Is nothing of it wanted any more?
    fn is_ending(&self) -> bool {
        self.conduits.values().all(|conduit| conduit.wanted.borrow().is_empty())
    }
}

impl Ambassador {
    /// In no trench.
    #[must_use]
    pub fn new(world: World) -> Arc<Self> {
        Arc::new(Self {
            world,
            listed: Arc::default(),
            trench: Mutex::default(),
            moved: watch::Sender::new(()),
        })
    }

    /// What applications see.
    #[must_use]
    pub fn listed(&self) -> &Listed {
        &self.listed
    }

    /// A stream is wanted. Returns once that is known; what becomes of it is listed.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn open(&self, name: &Name) -> Result<(), Refusal> {
        let mut moved = self.moved.subscribe();
        loop {
            moved.mark_unchanged();
            if let Some(done) = self.try_open(name) {
                return done;
            }
            // It is never dropped: it is ours.
            let _ = moved.changed().await;
        }
    }

    /// `None`: another trench is being left.
    fn try_open(&self, name: &Name) -> Option<Result<(), Refusal>> {
        let mut trench = self.trench.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = &*trench
            && current.name != name.trench
        {
            let (wanted, current_name) = (name.trench.clone(), current.name.clone());
            let refusal = Refusal::OtherTrench { wanted, current: current_name };
            return (!current.is_ending()).then_some(Err(refusal));
        }
        let current = match &mut *trench {
            Some(current) => current,
            none => match self.enter(&name.trench) {
                Ok(entered) => none.insert(entered),
                Err(refusal) => return Some(Err(refusal)),
            },
        };
        let registry = current.registry.clone();
        let conduit = current
            .conduits
            .entry(name.conduit.clone())
            .or_insert_with(|| self.connect(name, registry));
        self.listed.add(name);
        conduit.wanted.send_if_modified(|wanted| wanted.insert(name.stream.clone()));
        Some(Ok(()))
    }

    fn enter(&self, trench: &str) -> Result<Current, Refusal> {
        let address = self.world.registry(trench);
        let channel = address.channel().map_err(|error| Refusal::Address {
            trench: trench.to_owned(),
            why: error.to_string(),
        })?;
        info!(trench, ?address, "entered");
        Ok(Current {
            name: trench.to_owned(),
            registry: Registry::new(channel),
            conduits: BTreeMap::new(),
        })
    }

    fn connect(&self, name: &Name, registry: Registry) -> Conduit {
        let (wanted, wants) = watch::channel(BTreeSet::new());
        let (tell_idle, idle) = watch::channel(false);
        let (link, links) = watch::channel(Link::Up(self.world.static_ips.clone()));
        let keeper = Keeper {
            name: Name { stream: String::new(), ..name.clone() },
            registry,
            link: links,
            wanted: wants,
            idle: tell_idle,
            listed: Arc::clone(&self.listed),
            period: self.world.period,
        };
        // Ends with what it is wanted by, which is kept until nothing is left.
        tokio::spawn(keeper.run());
        Conduit { wanted, idle, _link: link }
    }

    /// A stream is not wanted any more. What has to be done about it is done after this returns.
    pub fn close(self: &Arc<Self>, name: &Name) {
        let trench = self.trench.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(current) = trench.as_ref().filter(|current| current.name == name.trench) else {
            return;
        };
        let Some(conduit) = current.conduits.get(&name.conduit) else { return };
        self.listed.remove(name);
        let removed = conduit.wanted.send_if_modified(|wanted| wanted.remove(&name.stream));
        if removed && conduit.wanted.borrow().is_empty() {
            let ambassador = Arc::clone(self);
            let (name, mut idle) = (name.clone(), conduit.idle.clone());
            tokio::spawn(async move {
                // Ended means the same.
                let _ = idle.wait_for(|idle| *idle).await;
                ambassador.let_go(&name);
            });
        }
    }

    /// Forgets a conduit of which nothing is left, and the trench with the last of them.
    fn let_go(&self, name: &Name) {
        let mut trench = self.trench.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(current) = trench.as_mut().filter(|current| current.name == name.trench) else {
            return;
        };
        let over = |conduit: &Conduit| conduit.wanted.borrow().is_empty() && *conduit.idle.borrow();
        if current.conduits.get(&name.conduit).is_some_and(over) {
            current.conduits.remove(&name.conduit);
        }
        if current.conduits.is_empty() {
            info!(trench = current.name, "left");
            *trench = None;
        }
        drop(trench);
        self.moved.send_replace(());
    }

    /// Leaves everything; returns when that is done, or after the limit.
    pub async fn leave(self: &Arc<Self>) {
        let open = self.listed.list(&Stream::default()).into_iter();
        for name in open.filter_map(|status| Name::try_from(status.stream?).ok()) {
            self.close(&name);
        }
        let mut moved = self.moved.subscribe();
        let left = async {
            while self.trench.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                let _ = moved.changed().await;
            }
        };
        if timeout(self.world.limit, left).await.is_err() {
            info!(
                "streams are left behind: the registry did not answer in time, and will forget them"
            );
        }
    }
}
