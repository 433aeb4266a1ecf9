//! The verbs: what happens to objects, whoever asks and however it is spelled.
//!
//! A write goes through defaults, admission, the resource's strategy and validation, and is stored only if the object is
//! still as it was when all that was decided; else it is decided again. Objects are in the form of their stored resource
//! in here ([`crate::versions`]), and as the client asked for them at its edges.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Mutex, MutexGuard};

use crate::object::{Change, Object, Objects as _, Operation, User, metadata, text};
use crate::resources::Resource;
use crate::status::{Cause, Status};
use crate::storage::cache::{Entry, Listed, Selection};
use crate::storage::{self, Refused, Storage, Stored};
use crate::strategy::service_ip::{self, InUse, Ranges};
use crate::strategy::{self, DeleteOptions, Deletion};
use crate::{random, versions};

/// How often a write is decided anew when others were quicker.
const TRIES: usize = 5;
/// How often a turn is taken anew when other servers were quicker.
const TURNS: usize = 100;
/// How often a name is generated when it is taken.
const NAMES: usize = 8;
/// Of a generated name, before its end.
const BASE: usize = 58;
/// How long events live.
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// What may change, and refuse, a write.
pub trait Gate: fmt::Debug + Send + Sync {
    /// Changes it, before it is validated.
    fn change<'a>(&'a self, change: &'a mut Change<'_>) -> Passed<'a>;

    /// Looks at it, last of all. With [`Change::dry_run`] nothing may be charged for it.
    fn check<'a>(&'a self, change: &'a Change<'_>) -> Passed<'a>;
}

/// Whether a gate lets a write pass.
pub type Passed<'a> = Pin<Box<dyn Future<Output = Result<(), Status>> + Send + 'a>>;

/// What a request is for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// As the client names it.
    pub resource: &'static Resource,
    /// Empty for what is in none.
    pub namespace: &'a str,
    /// Empty: one is generated, or the object says it.
    pub name: &'a str,
    /// Empty: the object itself.
    pub subresource: &'a str,
}

impl<'a> Target<'a> {
    /// An object itself.
    #[must_use]
    pub fn new(resource: &'static Resource, namespace: &'a str, name: &'a str) -> Self {
        Self { resource, namespace, name, subresource: "" }
    }

    /// A part of it.
    #[must_use]
    pub fn part(self, subresource: &'a str) -> Self {
        Self { subresource, ..self }
    }

    fn not_found(&self) -> Status {
        Status::not_found(self.resource, self.name)
    }

    fn valid(&self, name: &str, causes: Vec<Cause>) -> Result<(), Status> {
        if causes.is_empty() { Ok(()) } else { Err(Status::invalid(self.resource, name, causes)) }
    }

    fn conflict(&self, why: &str) -> Status {
        Status::conflict(self.resource, self.name, why)
    }
}

/// Who writes, and whether it is meant.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Who.
    pub user: &'a User,
    /// Everything is done but storing it.
    pub dry_run: bool,
}

impl<'a> Writer<'a> {
    /// Who means it.
    #[must_use]
    pub fn new(user: &'a User) -> Self {
        Self { user, dry_run: false }
    }
}

/// How an object that is there is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum How {
    /// By another in its place.
    Put,
    /// By what is to be different.
    Patch,
}

/// What became of a write.
#[derive(Debug)]
pub enum Done {
    /// It is there now.
    Stored(Arc<Entry>),
    /// It is gone; this is what it was.
    Removed(Arc<Entry>),
    /// It would be this.
    Dry(Object),
}

impl Done {
    /// The object as a resource shows it.
    #[must_use]
    pub fn object(&self, resource: &'static Resource) -> Object {
        versions::present(
            resource,
            match self {
                Self::Stored(entry) | Self::Removed(entry) => entry.object(),
                Self::Dry(object) => object.clone(),
            },
        )
    }
}

/// The verbs over a storage; cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    storage: Storage,
    gates: Arc<[Box<dyn Gate>]>,
    services: Arc<Services>,
}

/// The addresses and ports that services may have.
#[derive(Debug)]
struct Services {
    ranges: Ranges,
    /// Held from when one is chosen to when it is stored.
    choosing: Mutex<()>,
}

/// The turn to choose addresses: among the requests of this server, and among the servers.
struct Turn<'a> {
    storage: &'a Storage,
    among_servers: storage::Turn,
    left: usize,
    _among_requests: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// Another one, as another server has used it.
    async fn again(&mut self) -> Result<(), Status> {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            Status::unavailable("other servers give out addresses all the time; try again")
        })?;
        self.among_servers = self.storage.turn().await?;
        Ok(())
    }
}

impl Registry {
    /// Writes pass the gates in their order; services get addresses and ports of `ranges`.
    #[must_use]
    pub fn new(storage: Storage, gates: Vec<Box<dyn Gate>>, ranges: Ranges) -> Self {
        let services = Arc::new(Services { ranges, choosing: Mutex::default() });
        Self { storage, gates: gates.into(), services }
    }

    /// Takes the turn to choose addresses, for a service.
    async fn turn(&self, resource: &'static Resource) -> Result<Option<Turn<'_>>, Status> {
        if resource.plural != "services" {
            return Ok(None);
        }
        let held = self.services.choosing.lock().await;
        let (storage, among_servers) = (&self.storage, self.storage.turn().await?);
        Ok(Some(Turn { storage, among_servers, left: TURNS, _among_requests: held }))
    }

    /// Gives a service the addresses and ports that it needs and does not have.
    fn allocate(
        &self,
        resource: &'static Resource,
        service: &mut Object,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        if resource.plural != "services" {
            return Ok(());
        }
        let all = self.storage.cache().list(resource, "");
        let mut below = |limit: u64| u64::from(random::number()) % limit.max(1);
        let in_use = InUse::of(&all);
        service_ip::allocate(resource, service, old, &self.services.ranges, &in_use, &mut below)
    }

    /// Where the objects are.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// One object as it is.
    ///
    /// # Errors
    /// It is not there; the store does not answer.
    pub async fn get(&self, target: Target<'_>) -> Result<Arc<Entry>, Status> {
        if self.storage.fresh().await? {
            return self.cached(target);
        }
        let found = self.storage.get(target.resource, target.namespace, target.name).await?;
        found.map(|stored| Arc::new(target_entry(target, stored))).ok_or_else(|| target.not_found())
    }

    /// One object as it was a moment ago.
    ///
    /// # Errors
    /// It was not there.
    pub fn cached(&self, target: Target<'_>) -> Result<Arc<Entry>, Status> {
        let found = self.storage.cache().entry(target.resource, target.namespace, target.name);
        found.ok_or_else(|| target.not_found())
    }

    /// Those selected as they are, `limit` at most (0: all).
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn list(
        &self,
        resource: &'static Resource,
        selection: &Selection,
        limit: usize,
    ) -> Result<Listed, Status> {
        if self.storage.fresh().await? {
            return Ok(self.storage.select(resource, selection, limit));
        }
        self.storage.list(resource, selection, "", limit, None).await
    }

    /// Makes an object.
    ///
    /// # Errors
    /// There is one of its name; it is refused; the store does not answer.
    pub async fn create(
        &self,
        writer: Writer<'_>,
        target: Target<'_>,
        object: Object,
    ) -> Result<Done, Status> {
        let mut object = versions::store(target.resource, object);
        let resource = target.resource.stored();
        let mut turn = self.turn(resource).await?;
        place(target, &mut object)?;
        let own = metadata(&mut object);
        match own.remove("resourceVersion") {
            Some(Value::String(set)) if !set.is_empty() => {
                return Err(Status::bad_request(
                    "resourceVersion should not be set on objects to be created",
                ));
            }
            _ => {}
        }
        let now = OffsetDateTime::now_utc();
        own.insert("uid".to_owned(), random::uuid().into());
        own.insert("creationTimestamp".to_owned(), timestamp(now).into());
        let base = own.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
        let named = own.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
        let generated = !named && !base.is_empty();
        if generated {
            own.insert("name".to_owned(), generate(&base).into());
        }

        strategy::default(resource, &mut object);
        let name = text(&object, "/metadata/name").to_owned();
        let mut change = Change {
            user: writer.user,
            operation: Operation::Create,
            resource: target.resource,
            subresource: target.subresource,
            namespace: target.namespace,
            name: &name,
            object: &mut object,
            old: None,
            dry_run: writer.dry_run,
        };
        for gate in &*self.gates {
            gate.change(&mut change).await?;
        }
        strategy::default(resource, change.object);
        strategy::prepare_create(resource, change.object, writer.user);
        let mut asked = turn.is_some().then(|| change.object.clone());
        self.allocate(resource, change.object, None)?;
        target.valid(&name, judged(target.resource, change.object))?;
        for gate in &*self.gates {
            gate.check(&change).await?;
        }
        if writer.dry_run {
            return if self.storage.cache().entry(resource, target.namespace, &name).is_some() {
                Err(Status::already_exists(target.resource, &name))
            } else {
                Ok(Done::Dry(object))
            };
        }
        let (mut name, mut names) = (name, NAMES);
        loop {
            let place = (resource, target.namespace, &*name);
            let given = turn.as_ref().map(|turn| turn.among_servers);
            match self.storage.put(place, object.clone(), 0, ttl(resource), given).await {
                Ok(entry) => return Ok(Done::Stored(Arc::new(entry))),
                Err(Refused::Exists) if generated && names > 1 => {
                    names -= 1;
                    name = generate(&base);
                    for object in std::iter::once(&mut object).chain(&mut asked) {
                        metadata(object).insert("name".to_owned(), name.as_str().into());
                    }
                }
                Err(Refused::Late) => {
                    if let (Some(turn), Some(asked)) = (&mut turn, &asked) {
                        turn.again().await?;
                        object.clone_from(asked);
                        self.allocate(resource, &mut object, None)?;
                    }
                }
                Err(Refused::Status(status)) => return Err(status),
                Err(Refused::Exists | Refused::Changed(_)) => {
                    return Err(Status::already_exists(target.resource, &name));
                }
            }
        }
    }

    /// Writes an object that is there. `change` says what it becomes from what it is, both as the target's resource
    /// shows them; it is asked again when somebody else was quicker. `may_create`: one that is not there is made.
    ///
    /// # Errors
    /// It is not there; somebody else changed it; it is refused; the store does not answer.
    pub async fn update(
        &self,
        writer: Writer<'_>,
        target: Target<'_>,
        how: How,
        may_create: bool,
        mut change: impl FnMut(Object) -> Result<Object, Status> + Send,
    ) -> Result<(Done, bool), Status> {
        let resource = target.resource.stored();
        let mut turn = self.turn(resource).await?;
        let mut seen = self.seen(target).await?;
        if seen.stored.is_none() && may_create && target.subresource.is_empty() {
            drop(turn);
            let object = change(Object::new())?;
            return Ok((self.create(writer, target, object).await?, true));
        }
        let mut tries = TRIES;
        while tries > 0 {
            let Some(stored) = &seen.stored else { return Err(target.not_found()) };
            let decided = self.decide(writer, target, how, stored, &mut change).await;
            if !matches!(decided, Ok(Decided::Write(_) | Decided::Remove(_)))
                && !self.is_so(target, &mut seen).await?
            {
                continue;
            }
            let Some(stored) = seen.stored.take() else { return Err(target.not_found()) };
            let (expected, old) = (stored.revision, stored.object);
            let outcome = match decided? {
                Decided::Same => {
                    let entry = target_entry(target, Stored { object: old, revision: expected });
                    return Ok((Done::Stored(Arc::new(entry)), false));
                }
                Decided::Dry(object) => return Ok((Done::Dry(object), false)),
                Decided::Write(object) => {
                    let given = turn.as_ref().map(|turn| turn.among_servers);
                    self.write(target, object, expected, given).await
                }
                Decided::Remove(object) => self.remove(target, object, expected).await,
            };
            match outcome {
                Ok(done) => return Ok((done, false)),
                Err(Refused::Changed(now)) => seen = Seen { stored: now, sure: true },
                Err(Refused::Late) => {
                    if let Some(turn) = &mut turn {
                        turn.again().await?;
                    }
                    seen = Seen {
                        stored: Some(Stored { object: old, revision: expected }),
                        sure: true,
                    };
                    continue;
                }
                Err(Refused::Exists) => break,
                Err(Refused::Status(status)) => return Err(status),
            }
            tries -= 1;
        }
        Err(target.conflict(MODIFIED))
    }

    /// What a write is decided on: what is known of the object, or else what is read.
    async fn seen(&self, target: Target<'_>) -> Result<Seen, Status> {
        let Target { resource, namespace, name, .. } = target;
        let resource = resource.stored();
        if let Some(known) = self.storage.known(resource, namespace, name) {
            return Ok(Seen { stored: Some(known), sure: false });
        }
        let stored = self.storage.get(resource, namespace, name).await?;
        Ok(Seen { stored, sure: true })
    }

    /// Is an object still as it was seen? It is read, if it was not; what is there now is to be decided on if not.
    async fn is_so(&self, target: Target<'_>, seen: &mut Seen) -> Result<bool, Status> {
        if seen.sure {
            return Ok(true);
        }
        let Target { resource, namespace, name, .. } = target;
        let now = self.storage.get(resource.stored(), namespace, name).await?;
        let revision = |stored: &Option<Stored>| stored.as_ref().map(|stored| stored.revision);
        let same = revision(&now) == revision(&seen.stored);
        *seen = Seen { stored: now, sure: true };
        Ok(same)
    }

    async fn write(
        &self,
        target: Target<'_>,
        object: Object,
        expected: u64,
        turn: Option<storage::Turn>,
    ) -> Result<Done, Refused> {
        let Target { resource, namespace, name, .. } = target;
        let place = (resource, namespace, name);
        let entry = self.storage.put(place, object, expected, ttl(resource), turn).await?;
        Ok(Done::Stored(Arc::new(entry)))
    }

    async fn remove(
        &self,
        target: Target<'_>,
        object: Object,
        expected: u64,
    ) -> Result<Done, Refused> {
        let Target { resource, namespace, name, .. } = target;
        let entry = self.storage.delete(resource, namespace, name, object, expected).await?;
        Ok(Done::Removed(Arc::new(entry)))
    }

    /// What an object becomes.
    async fn decide(
        &self,
        writer: Writer<'_>,
        target: Target<'_>,
        how: How,
        stored: &Stored,
        change: &mut (impl FnMut(Object) -> Result<Object, Status> + Send),
    ) -> Result<Decided, Status> {
        let resource = target.resource.stored();
        let old = &stored.object;
        let new = change(versions::present(target.resource, old.clone()))?;
        let mut new = versions::store(target.resource, new);
        place(target, &mut new)?;
        keep(target, how, stored, &mut new)?;

        strategy::default(resource, &mut new);
        let mut change = Change {
            user: writer.user,
            operation: Operation::Update,
            resource: target.resource,
            subresource: target.subresource,
            namespace: target.namespace,
            name: target.name,
            object: &mut new,
            old: Some(old),
            dry_run: writer.dry_run,
        };
        for gate in &*self.gates {
            gate.change(&mut change).await?;
        }
        strategy::default(resource, change.object);
        let now = OffsetDateTime::now_utc();
        strategy::prepare_update(resource, target.subresource, change.object, old, now);
        self.allocate(resource, change.object, Some(old))?;
        let causes = strategy::validate_update(resource, target.subresource, change.object, old);
        target.valid(target.name, causes)?;
        for gate in &*self.gates {
            gate.check(&change).await?;
        }
        if writer.dry_run {
            return Ok(Decided::Dry(new));
        }
        if strategy::is_done(resource, &new) {
            return Ok(Decided::Remove(new));
        }
        Ok(if new == *old { Decided::Same } else { Decided::Write(new) })
    }

    /// Removes an object, or marks it to be removed when its time has come and nobody holds on to it.
    ///
    /// # Errors
    /// It is not there, or not as the options say; it is refused; the store does not answer.
    pub async fn delete(
        &self,
        writer: Writer<'_>,
        target: Target<'_>,
        options: &DeleteOptions,
    ) -> Result<Done, Status> {
        let mut seen = self.seen(target).await?;
        let mut tries = TRIES;
        while tries > 0 {
            let Some(stored) = &seen.stored else { return Err(target.not_found()) };
            let expected = stored.revision;
            let decided = self.decide_deletion(writer, target, options, stored).await;
            if !matches!(decided, Ok(Decided::Write(_) | Decided::Remove(_)))
                && !self.is_so(target, &mut seen).await?
            {
                continue;
            }
            let outcome = match decided? {
                Decided::Dry(object) => return Ok(Done::Dry(object)),
                Decided::Same => {
                    let Some(stored) = seen.stored else { return Err(target.not_found()) };
                    return Ok(Done::Stored(Arc::new(target_entry(target, stored))));
                }
                Decided::Remove(object) => self.remove(target, object, expected).await,
                Decided::Write(object) => self.write(target, object, expected, None).await,
            };
            match outcome {
                Ok(done) => return Ok(done),
                Err(Refused::Changed(now)) => seen = Seen { stored: now, sure: true },
                Err(Refused::Exists | Refused::Late) => break,
                Err(Refused::Status(status)) => return Err(status),
            }
            tries -= 1;
        }
        Err(target.conflict(MODIFIED))
    }

    /// What becomes of an object that is to go.
    async fn decide_deletion(
        &self,
        writer: Writer<'_>,
        target: Target<'_>,
        options: &DeleteOptions,
        stored: &Stored,
    ) -> Result<Decided, Status> {
        let mut object = stored.object.clone();
        let mut change = Change {
            user: writer.user,
            operation: Operation::Delete,
            resource: target.resource,
            subresource: "",
            namespace: target.namespace,
            name: target.name,
            object: &mut object,
            old: Some(&stored.object),
            dry_run: writer.dry_run,
        };
        for gate in &*self.gates {
            gate.change(&mut change).await?;
        }
        for gate in &*self.gates {
            gate.check(&change).await?;
        }
        let now = OffsetDateTime::now_utc();
        let resource = target.resource.stored();
        Ok(match strategy::deletion(resource, &stored.object, options, now)? {
            Deletion::Now(object) | Deletion::Later(object) if writer.dry_run => {
                Decided::Dry(object)
            }
            Deletion::Now(object) => Decided::Remove(object),
            Deletion::Later(object) if object == stored.object => Decided::Same,
            Deletion::Later(object) => Decided::Write(object),
        })
    }
}

/// What clients look for in a conflict.
const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// An object as a write is decided on it.
struct Seen {
    stored: Option<Stored>,
    /// It was read for this write; else it is what the cache knows.
    sure: bool,
}

/// See [`Registry::decide`].
enum Decided {
    Same,
    Write(Object),
    Remove(Object),
    Dry(Object),
}

/// What is wrong with a new object, by the rules of the resource it is written as: events are judged more strictly by
/// their new name.
fn judged(resource: &'static Resource, object: &Object) -> Vec<Cause> {
    if resource.group == "events.k8s.io" {
        return strategy::validate_create(resource, &versions::present(resource, object.clone()));
    }
    strategy::validate_create(resource.stored(), object)
}

/// Puts an object where the URL says, unless it says otherwise.
fn place(target: Target<'_>, object: &mut Object) -> Result<(), Status> {
    let own = metadata(object);
    for (field, of_url, what) in
        [("namespace", target.namespace, "namespace"), ("name", target.name, "name")]
    {
        let given = own.get(field).and_then(Value::as_str).unwrap_or_default();
        if field == "namespace" && !target.resource.namespaced {
            if given.is_empty() {
                own.remove(field);
                continue;
            }
            return Err(Status::bad_request(
                "namespace may not be set on an object that is in none".to_owned(),
            ));
        }
        if of_url.is_empty() {
            continue;
        }
        if given.is_empty() {
            own.insert(field.to_owned(), of_url.into());
        } else if given != of_url {
            return Err(Status::bad_request(match what {
                "name" => format!(
                    "the name of the object ({given}) does not match the name on the URL ({of_url})"
                ),
                _ => format!(
                    "the namespace of the provided object does not match the namespace sent on the request: {given} is not {of_url}"
                ),
            }));
        }
    }
    Ok(())
}

/// Kinds that are never written without saying over which revision.
fn needs_revision(resource: &Resource) -> bool {
    matches!(
        (resource.group, resource.plural),
        (_, "leases" | "poddisruptionbudgets" | "runtimeclasses" | "csidrivers" | "csinodes")
            | (
                "apiextensions.k8s.io" | "apiregistration.k8s.io" | "admissionregistration.k8s.io",
                _
            )
    )
}

/// Takes from what is there what an update cannot say, and refuses what is meant for another object.
fn keep(target: Target<'_>, how: How, stored: &Stored, new: &mut Object) -> Result<(), Status> {
    let was = stored.object.get("metadata").and_then(Value::as_object);
    let was = |field: &str| was.and_then(|was| was.get(field)).cloned();
    let own = metadata(new);
    let given = |field: &str| own.get(field).and_then(Value::as_str).unwrap_or_default();
    match given("resourceVersion") {
        "" | "0" if target.subresource.is_empty() && needs_revision(target.resource) => {
            let cause = Cause::invalid(
                "metadata.resourceVersion",
                &json!(0),
                "must be specified for an update",
            );
            return Err(Status::invalid(target.resource, target.name, vec![cause]));
        }
        "" | "0" => {}
        revision if revision != stored.revision.to_string() => {
            return Err(target.conflict(MODIFIED));
        }
        _ => {}
    }
    let (uid, known) = (given("uid"), text(&stored.object, "/metadata/uid"));
    if !uid.is_empty() && uid != known {
        return Err(match how {
            How::Put => target.conflict(&format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {known}"
            )),
            How::Patch => {
                let cause = Cause::invalid("metadata.uid", &json!(uid), "field is immutable");
                Status::invalid(target.resource, target.name, vec![cause])
            }
        });
    }
    let being_deleted = was("deletionTimestamp").is_some();
    for field in ["uid", "creationTimestamp", "generation", "selfLink"].into_iter().chain(
        being_deleted
            .then_some(["deletionTimestamp", "deletionGracePeriodSeconds"])
            .into_iter()
            .flatten(),
    ) {
        match was(field) {
            Some(value) => drop(own.insert(field.to_owned(), value)),
            None => drop(own.remove(field)),
        }
    }
    own.insert("resourceVersion".to_owned(), stored.revision.to_string().into());
    Ok(())
}

fn target_entry(target: Target<'_>, stored: Stored) -> Entry {
    let Target { resource, namespace, name, .. } = target;
    let place = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
    Entry::new(resource.stored(), &place, stored.revision, stored.object)
}

fn ttl(resource: &Resource) -> Option<Duration> {
    (resource.plural == "events").then_some(EVENT_TTL)
}

fn generate(base: &str) -> String {
    let base: String = base.chars().take(BASE).collect();
    base + &random::suffix(5)
}

/// As metadata has it: to the second.
pub(crate) fn timestamp(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}
