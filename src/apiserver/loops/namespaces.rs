//! Namespaces that end: all that is in them is deleted, pods first (KEP-5080), and when nothing is left they are let go.
//!
//! Something can still come into a namespace when it is already empty: its writer saw it before it ended. So a
//! namespace is remembered for a while, and what turns up where there is none is deleted, too.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use time::format_description::well_known::Rfc3339;

use super::edit::has_conditions;
use super::{Action, Edit, Look, Loop, Meta, Now, Place, Seen, Step, served};
use crate::object::{Object, Objects, items, text};
use crate::resources::{RESOURCES, Resource};
use crate::status::Status;
use crate::strategy::DeleteOptions;

/// How many objects are deleted at once.
const BATCH: usize = 512;
/// For how long a namespace is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How often a namespace says how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// The loop.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Those that end.
    ending: BTreeMap<String, Ending>,
    /// Those that are there no longer, since when.
    gone: BTreeMap<String, Instant>,
}

#[derive(Debug)]
struct Ending {
    /// Empty: it is gone, and something came into it too late.
    uid: String,
    content: Content,
    /// Its content has been read.
    read: bool,
    /// When it last said how far it is.
    told: Option<Instant>,
}

/// By resource and name.
type Content = BTreeMap<(usize, String), Item>;

#[derive(Clone, Debug)]
struct Item {
    uid: String,
    /// It was told to go.
    goes: bool,
    finalizers: Vec<String>,
}

impl Loop for Namespaces {
    fn name(&self) -> &'static str {
        "namespaces"
    }

    fn wants(&self, resource: &'static Resource) -> bool {
        is_namespaces(resource) || emptied(resource)
    }

    fn observe(&mut self, seen: &Seen<'_>, now: Now) -> Vec<Look> {
        if is_namespaces(seen.resource) {
            return self.observe_namespace(seen, now);
        }
        let key = (place(seen.resource), seen.name.to_owned());
        if let Some(ending) = self.ending.get_mut(seen.namespace) {
            if seen.gone {
                ending.content.remove(&key);
                // With the last of them there is something to do; between them there is not.
                let last = is_pods(seen.resource) && !ending.has_pods();
                let turn = last || ending.content.is_empty();
                return if turn { vec![Look::now(seen.namespace)] } else { Vec::new() };
            }
            let new = ending.content.insert(key, Item::of(seen.meta));
            let same = new.is_some_and(|old| old.goes && old.finalizers == seen.meta.finalizers);
            return if same { Vec::new() } else { vec![Look::now(seen.namespace)] };
        }
        self.gone.retain(|_, since| now.at.saturating_duration_since(*since) < REMEMBERED);
        if !seen.gone && self.gone.contains_key(seen.namespace) {
            return vec![Look::now(format!("/{}", seen.namespace))];
        }
        Vec::new()
    }

    fn step(&mut self, key: &str, objects: &dyn Objects, now: Now) -> Step {
        let namespaces = served("", "v1", "namespaces");
        if let Some(namespace) = key.strip_prefix('/') {
            if !self.gone.contains_key(namespace) {
                return Step::idle();
            }
            if self.ending.contains_key(namespace) {
                return Step { others: vec![namespace.to_owned()], ..Step::default() };
            }
            // Only what the store says counts here: the cache may just not have it yet.
            return Step::act(Action::Read(Place::new(namespaces, "", namespace)));
        }
        let Some(ending) = self.ending.get_mut(key) else { return Step::idle() };
        if ending.is_gone() && objects.get(namespaces, "", key).is_some() {
            // There is another of the name.
            self.ending.remove(key);
            return Step::idle();
        }
        if !ending.read {
            ending.read = true;
            ending.content.extend(content(objects, key));
        }
        let pods = ending.has_pods();
        let turn = |resource: usize| !pods || is_pods(&RESOURCES[resource]);
        let waiting = ending.content.iter_mut().filter(|(key, item)| !item.goes && turn(key.0));
        let actions: Vec<_> = waiting
            .take(BATCH)
            .map(|((resource, name), item)| {
                item.goes = true;
                let options = DeleteOptions {
                    uid: Some(item.uid.clone()),
                    propagation_policy: Some("Background".to_owned()),
                    ..DeleteOptions::default()
                };
                Action::Delete(Place::new(&RESOURCES[*resource], key, name), options)
            })
            .collect();
        if !actions.is_empty() {
            // Those behind this batch.
            return Step { actions, again: Some(now.at), ..Step::default() };
        }
        if ending.content.is_empty() {
            let edit = Edit::FinalizeNamespace { uid: ending.uid.clone() };
            if ending.is_gone() {
                self.ending.remove(key);
                return Step::idle();
            }
            return Step::act(Action::Edit(Place::new(namespaces, "", key), edit));
        }
        ending.tell(key, objects, now)
    }

    fn ended(&mut self, key: &str, action: &Action, end: &Result<Option<Object>, Status>, _: Now) {
        match (action, end) {
            (Action::Read(place), Ok(None)) => {
                // It is gone: what is in it goes after it.
                self.ending.entry(place.name.clone()).or_insert_with(|| Ending::new(""));
            }
            (Action::Read(place), Ok(Some(_))) => drop(self.gone.remove(&place.name)),
            (Action::Delete(at, _), Err(_)) => {
                let item = (place(at.resource), at.name.clone());
                let ending = self.ending.get_mut(key);
                if let Some(item) = ending.and_then(|ending| ending.content.get_mut(&item)) {
                    item.goes = false;
                }
            }
            _ => {}
        }
    }
}

impl Namespaces {
    fn observe_namespace(&mut self, seen: &Seen<'_>, now: Now) -> Vec<Look> {
        if seen.gone {
            self.ending.remove(seen.name);
            self.gone.insert(seen.name.to_owned(), now.at);
            return Vec::new();
        }
        self.gone.remove(seen.name);
        let kept = items(&seen.object(), "/spec/finalizers").any(|own| own == "kubernetes");
        if seen.meta.deletion_timestamp.is_none() || !kept {
            self.ending.remove(seen.name);
            return Vec::new();
        }
        if self.ending.contains_key(seen.name) {
            return Vec::new();
        }
        self.ending.insert(seen.name.to_owned(), Ending::new(&seen.meta.uid));
        vec![Look::now(seen.name)]
    }
}

impl Ending {
    fn new(uid: &str) -> Self {
        Self { uid: uid.to_owned(), content: Content::new(), read: false, told: None }
    }

    /// Is what is left in it all there is of it?
    fn is_gone(&self) -> bool {
        self.uid.is_empty()
    }

    fn has_pods(&self) -> bool {
        let pods = place(served("", "v1", "pods"));
        let (from, to) = ((pods, String::new()), (pods + 1, String::new()));
        self.content.range(from..to).next().is_some()
    }

    /// Says what is left, when everything has been told to go and something does not.
    fn tell(&mut self, name: &str, objects: &dyn Objects, now: Now) -> Step {
        let next = *self.told.get_or_insert(now.at) + TOLD_EVERY;
        if now.at < next {
            // What goes quickly is not worth a write.
            return Step::at(next);
        }
        self.told = Some(now.at);
        let namespaces = served("", "v1", "namespaces");
        let conditions = self.conditions();
        let Some(namespace) = objects.get(namespaces, "", name) else { return Step::idle() };
        if text(&namespace, "/metadata/uid") != self.uid || has_conditions(&namespace, &conditions)
        {
            return Step::idle();
        }
        let at = now.wall.replace_nanosecond(0).unwrap_or(now.wall);
        let edit = Edit::Conditions {
            uid: self.uid.clone(),
            conditions,
            now: at.format(&Rfc3339).unwrap_or_default(),
        };
        Step::act(Action::Edit(Place::new(namespaces, "", name), edit))
    }

    /// As the reference words them: programs show them to people.
    fn conditions(&self) -> Vec<[String; 4]> {
        let mut resources: BTreeMap<String, usize> = BTreeMap::new();
        let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
        for ((resource, _), item) in &self.content {
            let Resource { plural, group, .. } = &RESOURCES[*resource];
            *resources.entry(format!("{plural}.{group}")).or_default() += 1;
            for finalizer in &item.finalizers {
                *finalizers.entry(finalizer).or_default() += 1;
            }
        }
        let told: Vec<_> = resources
            .iter()
            .map(|(resource, count)| format!("{resource} has {count} resource instances"))
            .collect();
        let remaining = format!("Some resources are remaining: {}", told.join(", "));
        let mut all = [
            [
                "NamespaceDeletionDiscoveryFailure",
                "False",
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ],
            [
                "NamespaceDeletionGroupVersionParsingFailure",
                "False",
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ],
            [
                "NamespaceDeletionContentFailure",
                "False",
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ],
            ["NamespaceContentRemaining", "True", "SomeResourcesRemain", &remaining],
        ]
        .map(|condition| condition.map(str::to_owned))
        .to_vec();
        let told: Vec<_> = finalizers
            .iter()
            .map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"))
            .collect();
        let kind = "NamespaceFinalizersRemaining";
        all.push(if told.is_empty() {
            [kind, "False", "ContentHasNoFinalizers", "All content-preserving finalizers finished"]
                .map(str::to_owned)
        } else {
            let told = told.join(", ");
            let said = format!("Some content in the namespace has finalizers remaining: {told}");
            [kind, "True", "SomeFinalizersRemain", &said].map(str::to_owned)
        });
        all
    }
}

impl Item {
    fn of(meta: &Meta) -> Self {
        Self {
            uid: meta.uid.clone(),
            goes: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone(),
        }
    }
}

/// Everything in a namespace.
fn content(objects: &dyn Objects, namespace: &str) -> Content {
    let mut content = Content::new();
    for resource in RESOURCES.iter().filter(|resource| emptied(resource)) {
        for object in objects.list(resource, namespace) {
            let goes = !text(&object, "/metadata/deletionTimestamp").is_empty();
            let finalizers = items(&object, "/metadata/finalizers");
            let finalizers = finalizers.filter_map(|own| Some(own.as_str()?.to_owned())).collect();
            let key = (place(resource), text(&object, "/metadata/name").to_owned());
            let uid = text(&object, "/metadata/uid").to_owned();
            content.insert(key, Item { uid, goes, finalizers });
        }
    }
    content
}

/// Where it is in the table.
fn place(resource: &'static Resource) -> usize {
    let same = |known: &Resource| std::ptr::eq(known, resource);
    RESOURCES.iter().position(same).unwrap_or_default()
}

/// Are its objects deleted with their namespace?
fn emptied(resource: &Resource) -> bool {
    resource.namespaced && resource.verbs.contains(&"delete") && is_stored(resource)
}

/// Of resources with the same objects one stands for all.
pub(super) fn is_stored(resource: &Resource) -> bool {
    !matches!(
        (resource.group, resource.version, resource.plural),
        ("events.k8s.io", _, "events") | ("autoscaling", "v1", _)
    )
}

fn is_namespaces(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "namespaces"
}

fn is_pods(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "pods"
}
