//! Admission: what the cluster's own rules add to a write, and what they refuse, between its defaults and the store.
//!
//! Two passes over one table, in its order: everything that changes the object, and, when the result is valid,
//! everything that judges it; what a write uses up is charged last. The steps are plain functions of the change and of
//! what the caches have. A step that is about to refuse because something is missing asks for it to be read from the
//! store instead: the frame reads it and repeats the step, which therefore looks up everything before it changes
//! anything.
//!
//! - [`lifecycle`]: namespaces that are not there, are ending, or must stay.
//! - [`limits`]: defaults and bounds of a namespace's `LimitRange`s.
//! - [`service_account`]: whom a pod acts as, and its token.
//! - [`priority`], [`tolerations`], [`runtime_class`], [`nodes`]: what pods and nodes get from the cluster's classes.
//! - [`storage`], [`ingress`]: default classes, finalizers, growth of claims.
//! - [`certificates`]: who approves and signs which requests.
//! - [`quota`]: what a namespace may use up; [`pods`]: what a pod asks for.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use time::OffsetDateTime;

use crate::authz::Authorizer;
use crate::metrics::{Metrics, Word};
use crate::object::{Change, Object, Objects, Operation, text};
use crate::random;
use crate::resources::Resource;
use crate::status::Status;

mod certificates;
mod ingress;
mod lifecycle;
mod limits;
mod nodes;
pub(crate) mod pods;
mod priority;
pub mod quota;
mod runtime_class;
mod service_account;
mod storage;
mod tolerations;

#[cfg(test)]
mod fake;

/// An answer that is waited for.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send + 'a>>;

/// What admission asks of the server beside its caches.
pub trait Host: fmt::Debug + Send + Sync {
    /// An object as it is stored now, past every cache.
    fn read<'a>(
        &'a self,
        resource: &'static Resource,
        namespace: &'a str,
        name: &'a str,
    ) -> Pending<'a, Option<Object>>;

    /// Stores the status of a quota if it is still of the `metadata.resourceVersion` it has; else it is a conflict.
    fn charge(&self, quota: Object) -> Pending<'_, Object>;
}

/// The plug-ins, with what they look at.
pub struct Admission {
    objects: Arc<dyn Objects>,
    host: Arc<dyn Host>,
    authorizer: Arc<dyn Authorizer>,
    metrics: Arc<Metrics>,
    suffix: fn() -> String,
}

/// A step of the chain.
struct Step {
    name: &'static str,
    mutate: Option<Mutate>,
    validate: Option<Validate>,
}

type Mutate = fn(&View<'_>, &mut Change<'_>) -> Result<(), Stop>;
type Validate = fn(&View<'_>, &Change<'_>) -> Result<(), Stop>;

/// The chain, in the order of the reference. Policies and webhooks belong behind the last row; quotas are charged
/// after all of it.
const STEPS: &[Step] = &[
    Step { name: "NamespaceLifecycle", mutate: Some(lifecycle::mutate), validate: None },
    Step { name: "LimitRanger", mutate: Some(limits::mutate), validate: Some(limits::validate) },
    Step {
        name: "ServiceAccount",
        mutate: Some(service_account::mutate),
        validate: Some(service_account::validate),
    },
    Step { name: "TaintNodesByCondition", mutate: Some(nodes::mutate), validate: None },
    Step { name: "Priority", mutate: Some(priority::mutate), validate: Some(priority::validate) },
    Step { name: "DefaultTolerationSeconds", mutate: Some(tolerations::mutate), validate: None },
    Step { name: "DefaultStorageClass", mutate: Some(storage::default_class), validate: None },
    Step { name: "StorageObjectInUseProtection", mutate: Some(storage::protect), validate: None },
    Step { name: "PersistentVolumeClaimResize", mutate: None, validate: Some(storage::resize) },
    Step {
        name: "RuntimeClass",
        mutate: Some(runtime_class::mutate),
        validate: Some(runtime_class::validate),
    },
    Step { name: "CertificateApproval", mutate: None, validate: Some(certificates::approval) },
    Step { name: "CertificateSigning", mutate: None, validate: Some(certificates::signing) },
    Step {
        name: "CertificateSubjectRestriction",
        mutate: None,
        validate: Some(certificates::subject),
    },
    Step { name: "DefaultIngressClass", mutate: Some(ingress::mutate), validate: None },
];

/// Why a step does not end well.
enum Stop {
    /// The write is refused.
    Refuse(Status),
    /// The caches do not have an object that decides; the store may.
    Read { resource: &'static Resource, namespace: String, name: String },
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Refuse(status)
    }
}

/// What steps look at.
struct View<'a> {
    objects: &'a dyn Objects,
    authorizer: &'a dyn Authorizer,
    suffix: fn() -> String,
    /// What was read from the store for this write.
    read: Vec<Read>,
}

struct Read {
    resource: &'static Resource,
    namespace: String,
    name: String,
    object: Option<Object>,
}

impl View<'_> {
    /// One object: of the caches, or what the store has if they do not have it.
    fn find(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Object>, Stop> {
        if let Some(object) = self.objects.get(resource, namespace, name) {
            return Ok(Some(object));
        }
        let known = self.read.iter().find(|read| {
            std::ptr::eq(read.resource, resource)
                && read.namespace == namespace
                && read.name == name
        });
        match known {
            Some(read) => Ok(read.object.clone()),
            None => {
                Err(Stop::Read { resource, namespace: namespace.to_owned(), name: name.to_owned() })
            }
        }
    }
}

impl Admission {
    /// A chain over the caches and the store of this server; who may sign and approve, `authorizer` says. How long its
    /// steps take is counted in `metrics`.
    #[must_use]
    pub fn new(
        objects: Arc<dyn Objects>,
        host: Arc<dyn Host>,
        authorizer: Arc<dyn Authorizer>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { objects, host, authorizer, metrics, suffix: || random::suffix(5) }
    }

    /// What the steps are called, in their order.
    pub fn steps() -> impl Iterator<Item = &'static str> {
        STEPS.iter().map(|step| step.name)
    }

    /// The first pass: changes what is written.
    ///
    /// # Errors
    /// A step refuses the write.
    pub async fn mutate(&self, change: &mut Change<'_>) -> Result<(), Status> {
        let mut view = self.view();
        for step in STEPS {
            let Some(mutate) = step.mutate else { continue };
            let began = Instant::now();
            let done = loop {
                let Err(stop) = mutate(&view, change) else { break Ok(()) };
                if let Err(status) = self.resume(&mut view, stop).await {
                    break Err(status);
                }
            };
            self.took(step.name, change, "admit", began, &done);
            done?;
        }
        Ok(())
    }

    /// The second pass, over what is valid: judges it, and charges the namespace's quotas.
    ///
    /// # Errors
    /// A step refuses the write.
    pub async fn validate(&self, change: &Change<'_>) -> Result<(), Status> {
        let mut view = self.view();
        for step in STEPS {
            let Some(validate) = step.validate else { continue };
            let began = Instant::now();
            let done = loop {
                let Err(stop) = validate(&view, change) else { break Ok(()) };
                if let Err(status) = self.resume(&mut view, stop).await {
                    break Err(status);
                }
            };
            self.took(step.name, change, "validate", began, &done);
            done?;
        }
        let (began, now) = (Instant::now(), OffsetDateTime::now_utc());
        let charged = quota::charge(&*self.objects, &*self.host, change, now).await;
        self.took("ResourceQuota", change, "validate", began, &charged);
        charged
    }

    /// A step is over.
    fn took(
        &self,
        step: Word,
        change: &Change<'_>,
        pass: Word,
        began: Instant,
        done: &Result<(), Status>,
    ) {
        let operation = match change.operation {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
        };
        let rejected = if done.is_ok() { "false" } else { "true" };
        let labels = [step, operation, rejected, pass];
        self.metrics.admission.measure(labels, began.elapsed().as_secs_f64());
    }

    fn view(&self) -> View<'_> {
        View {
            objects: &*self.objects,
            authorizer: &*self.authorizer,
            suffix: self.suffix,
            read: Vec::new(),
        }
    }

    async fn resume(&self, view: &mut View<'_>, stop: Stop) -> Result<(), Status> {
        match stop {
            Stop::Refuse(status) => Err(status),
            Stop::Read { resource, namespace, name } => {
                let object = self.host.read(resource, &namespace, &name).await?;
                view.read.push(Read { resource, namespace, name, object });
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("objects", &self.objects).finish_non_exhaustive()
    }
}

/// Is the change of the objects themselves, of this resource?
fn is(change: &Change<'_>, group: &str, plural: &str) -> bool {
    change.subresource.is_empty()
        && change.resource.group == group
        && change.resource.plural == plural
}

/// The 403 of a step, with the name as far as it is known.
fn refused(change: &Change<'_>, why: &str) -> Status {
    let said =
        [text(change.object, "/metadata/name"), text(change.object, "/metadata/generateName")];
    let names = [change.name].into_iter().chain(said);
    let name = names.into_iter().find(|name| !name.is_empty()).unwrap_or("Unknown");
    Status::forbidden(change.resource, name, why)
}

/// One of the served resources.
///
/// # Panics
/// When it is not served: the table has every one that is named here.
fn served(group: &str, version: &str, plural: &str) -> &'static Resource {
    crate::resources::find(group, version, plural).expect("the table has it")
}

/// The newest of the classes that are annotated to be the default; of those of one second the first by name.
fn default_class(
    view: &View<'_>,
    classes: &'static Resource,
    annotations: &[&str],
) -> Option<String> {
    let mut classes = view.objects.list(classes, "");
    classes.retain(|class| {
        annotations.iter().any(|annotation| self::annotation(class, annotation) == Some("true"))
    });
    let created = |class: &Object| text(class, "/metadata/creationTimestamp").to_owned();
    let name = |class: &Object| text(class, "/metadata/name").to_owned();
    // Times are written so that their texts are in their order.
    let key = |class: &Object| (std::cmp::Reverse(created(class)), name(class));
    classes.iter().min_by_key(|class| key(class)).map(name)
}

/// The object of this key, made if there is none.
///
/// # Panics
/// When it is there and no object, which the schema rules out.
fn object_mut<'a>(parent: &'a mut Object, key: &str) -> &'a mut Object {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Object::new());
    }
    value.as_object_mut().expect("the schema has an object here")
}

/// The list of this key, made if there is none.
///
/// # Panics
/// When it is there and no list, which the schema rules out.
fn list_mut<'a>(parent: &'a mut Object, key: &str) -> &'a mut Vec<Value> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("the schema has a list here")
}

/// A field of a value that is an object; empty if there is none or it is no string.
fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn annotation<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}
