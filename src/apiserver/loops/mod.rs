//! What a cluster needs to look after itself, for when no kube-controller-manager does: namespaces that end, objects
//! whose owners are gone, what every namespace has, and the like.
//!
//! ```text
//! caches ──▶ Machine::observe ──▶ queues of keys ──▶ Loop::step ──▶ Job ──▶ registry
//!                    ▲                                               │
//!                    └──────────────── how it ended ◀────────────────┘
//! ```
//!
//! - [`Loop`]: one of them. It is told what changes, names the keys to look at, and says what is to be done about a
//!   key. It acts on what is, never on what happened: a key can be looked at any number of times.
//! - [`Machine`]: all of them with their queues, retries and back-off; time is passed in.
//! - [`run`]: drives them on the registry. [`Gate`]: when they are left to a kube-controller-manager.
//! - [`namespaces`], [`garbage`], [`accounts`], [`kubernetes`], [`tokens`], [`quotas`], [`disruptions`], [`roles`]: the
//!   loops.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Deserialize;
use time::OffsetDateTime;

use crate::object::{Object, Objects};
use crate::resources::Resource;
use crate::status::Status;
use crate::strategy::DeleteOptions;

pub mod accounts;
pub mod disruptions;
mod driver;
mod edit;
pub mod garbage;
mod gate;
pub mod kubernetes;
mod machine;
pub mod namespaces;
mod queue;
pub mod quotas;
pub mod roles;
pub mod tokens;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use driver::{Mode, Settings, run};
pub use edit::Edit;
pub use gate::Gate;
pub use machine::{Job, Machine};

/// What time it is: for waiting, and on the clock.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Never goes back.
    pub at: Instant,
    /// What is compared with the times in objects.
    pub wall: OffsetDateTime,
}

/// An object as it is since a moment ago, or was last.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Of its stored form.
    pub resource: &'static Resource,
    /// Empty for what is in none.
    pub namespace: &'a str,
    /// Of the object.
    pub name: &'a str,
    /// Its JSON.
    pub body: &'a [u8],
    /// What most loops look at.
    pub meta: &'a Meta,
    /// Is it removed?
    pub gone: bool,
}

/// What loops look at of most objects.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Of the object.
    pub uid: String,
    /// At which it is so.
    pub resource_version: String,
    /// None: it is not being deleted.
    pub deletion_timestamp: Option<String>,
    /// Who wants to do something before it goes.
    pub finalizers: Vec<String>,
    /// Without whom it is not needed.
    pub owner_references: Vec<Owner>,
}

/// A reference to an owner.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Owner {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Of the owner.
    pub name: String,
    /// Of the owner.
    pub uid: String,
    /// Does the owner stay until this is gone, when it is deleted in the foreground?
    pub block_owner_deletion: bool,
}

impl Meta {
    /// Of an object's JSON.
    ///
    /// # Errors
    /// It is none of an object.
    pub fn read(body: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Body {
            metadata: Meta,
        }
        serde_json::from_slice::<Body>(body).map(|body| body.metadata)
    }

    /// Is it being deleted, and is this what it waits for?
    #[must_use]
    pub fn awaits(&self, finalizer: &str) -> bool {
        self.deletion_timestamp.is_some() && self.finalizers.iter().any(|own| own == finalizer)
    }
}

impl Seen<'_> {
    /// All of it.
    #[must_use]
    pub fn object(&self) -> Object {
        // It was written by the server.
        serde_json::from_slice(self.body).unwrap_or_default()
    }

    /// Is it of this resource?
    #[must_use]
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.resource.group == group && self.resource.plural == plural
    }
}

/// Something to be done to the cluster.
#[derive(Clone, Debug)]
pub enum Action {
    /// Make an object. That there is one already is as good.
    Create(&'static Resource, Object),
    /// Replace what is at its `metadata.resourceVersion`, or its status.
    Replace(&'static Resource, &'static str, Object),
    /// Change what is there now; that it is gone is as good.
    Edit(Place, Edit),
    /// Delete an object; that it is gone is as good.
    Delete(Place, DeleteOptions),
    /// Look at an object as it is stored, past all caches.
    Read(Place),
}

/// Where an object is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Of its stored form.
    pub resource: &'static Resource,
    /// Empty for what is in none.
    pub namespace: String,
    /// Of the object.
    pub name: String,
}

impl Place {
    /// Of an object that was seen.
    #[must_use]
    pub fn of(seen: &Seen<'_>) -> Self {
        Self::new(seen.resource, seen.namespace, seen.name)
    }

    /// Of the resource in the namespace.
    #[must_use]
    pub fn new(resource: &'static Resource, namespace: &str, name: &str) -> Self {
        Self { resource, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// What is to be done about a key.
#[derive(Debug, Default)]
pub struct Step {
    /// All at once. When all are done the key is looked at again only if something changes, unless one of them reads.
    pub actions: Vec<Action>,
    /// Look at the key again then.
    pub again: Option<Instant>,
    /// Look at these, too.
    pub others: Vec<String>,
}

impl Step {
    /// Nothing.
    #[must_use]
    pub fn idle() -> Self {
        Self::default()
    }

    /// Only this.
    #[must_use]
    pub fn act(action: Action) -> Self {
        Self { actions: vec![action], ..Self::default() }
    }

    /// Nothing before then.
    #[must_use]
    pub fn at(again: Instant) -> Self {
        Self { again: Some(again), ..Self::default() }
    }
}

/// A key to look at, and how soon.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Look {
    /// What the loop calls it.
    pub key: String,
    /// At once if it is zero.
    pub after: Duration,
}

impl Look {
    /// At once.
    #[must_use]
    pub fn now(key: impl Into<String>) -> Self {
        Self { key: key.into(), after: Duration::ZERO }
    }

    /// Later, unless it is looked at before.
    #[must_use]
    pub fn after(key: impl Into<String>, after: Duration) -> Self {
        Self { key: key.into(), after }
    }
}

/// One of the loops.
pub trait Loop: fmt::Debug + Send {
    /// For messages.
    fn name(&self) -> &'static str;

    /// Is it told of changes of this resource?
    fn wants(&self, resource: &'static Resource) -> bool;

    /// Takes in a change; says which keys to look at.
    fn observe(&mut self, seen: &Seen<'_>, now: Now) -> Vec<Look>;

    /// Says what is to be done about a key.
    fn step(&mut self, key: &str, objects: &dyn Objects, now: Now) -> Step;

    /// Takes in how an action for a key ended: what is there then, or was read. Failures that [`Action`] calls as good
    /// are told as success.
    fn ended(
        &mut self,
        key: &str,
        action: &Action,
        end: &Result<Option<Object>, Status>,
        now: Now,
    ) {
        let _ = (key, action, end, now);
    }
}

/// One of the served resources.
///
/// # Panics
/// When it is not served: the table has every one that is named here.
fn served(group: &str, version: &str, plural: &str) -> &'static Resource {
    crate::resources::find(group, version, plural).expect("the table has it")
}

/// A name from a key that is `namespace/name`.
fn split(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}
