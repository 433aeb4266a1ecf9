//! The loops against a server in memory, in virtual time: a cache that lags behind its store, actions that end in any
//! order, and some that fail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::accounts::Accounts;
use super::disruptions::Disruptions;
use super::garbage::Garbage;
use super::kubernetes::{Kubernetes, Server};
use super::namespaces::Namespaces;
use super::quotas::Quotas;
use super::roles::Roles;
use super::tokens::Tokens;
use super::{Action, Job, Loop, Machine, Now, Place, served};
use crate::object::{Object, Objects, User, at, items, metadata, text};
use crate::resources::{RESOURCES, Resource};
use crate::status::Status;
use crate::strategy::{self, DeleteOptions, Deletion};

type Key = (usize, String, String);
type Shelf = BTreeMap<Key, Object>;

#[derive(Debug, Default)]
struct Cache(Shelf);

impl Objects for Cache {
    fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Option<Object> {
        self.0.get(&key(resource, namespace, name)).cloned()
    }

    fn list(&self, resource: &'static Resource, namespace: &str) -> Vec<Object> {
        let index = key(resource, "", "").0;
        let fits = |key: &Key| key.0 == index && (namespace.is_empty() || key.1 == namespace);
        self.0.iter().filter(|(key, _)| fits(key)).map(|(_, object)| object.clone()).collect()
    }
}

struct Change {
    key: Key,
    body: Object,
    gone: bool,
}

/// The server and who looks after it.
struct World {
    store: Shelf,
    revision: u64,
    log: Vec<Change>,
    /// How much of the log the cache has, and the machine has been told.
    told: usize,
    cache: Cache,
    machine: Machine,
    make: fn() -> Vec<Box<dyn Loop>>,
    running: Vec<Job>,
    now: Now,
    random: u64,
    /// One of so many actions fails; none if it is 0.
    fails: u64,
    /// Everything that was done: `delete pods a/x Background`.
    done: Vec<String>,
    /// What the loops deleted though an owner was there.
    wrong: Vec<String>,
}

fn key(resource: &'static Resource, namespace: &str, name: &str) -> Key {
    let index = RESOURCES.iter().position(|known| std::ptr::eq(known, resource));
    (index.expect("it is in the table"), namespace.to_owned(), name.to_owned())
}

fn resource(plural: &str) -> &'static Resource {
    RESOURCES.iter().find(|known| known.plural == plural).expect("it is served")
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is no object"),
    }
}

impl World {
    fn new(make: fn() -> Vec<Box<dyn Loop>>) -> Self {
        let wall = OffsetDateTime::from_unix_timestamp(1_767_225_600).expect("a time");
        Self {
            store: Shelf::new(),
            revision: 0,
            log: Vec::new(),
            told: 0,
            cache: Cache::default(),
            machine: Machine::new(make()),
            make,
            running: Vec::new(),
            now: Now { at: Instant::now(), wall },
            random: 1,
            fails: 0,
            done: Vec::new(),
            wrong: Vec::new(),
        }
    }

    /// Any number below `below` (xorshift, Marsaglia 2003).
    fn any(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 11).unwrap_or_default() % below.max(1)
    }

    fn write(&mut self, key: Key, mut body: Object) -> Object {
        self.revision += 1;
        let revision = self.revision.to_string();
        metadata(&mut body).insert("resourceVersion".to_owned(), revision.into());
        self.store.insert(key.clone(), body.clone());
        self.log.push(Change { key, body: body.clone(), gone: false });
        body
    }

    fn remove(&mut self, key: Key) {
        self.revision += 1;
        if let Some(body) = self.store.remove(&key) {
            self.log.push(Change { key, body, gone: true });
        }
    }

    /// Stores an object; `owners`: plural, name, does it block.
    fn put(&mut self, plural: &str, namespace: &str, name: &str, mut value: Value) -> Object {
        let metadata = value.as_object_mut().expect("an object").entry("metadata");
        let metadata = metadata.or_insert_with(|| json!({}));
        metadata["name"] = name.into();
        if !namespace.is_empty() {
            metadata["namespace"] = namespace.into();
        }
        if metadata.get("uid").is_none() {
            metadata["uid"] = format!("uid-{}", self.revision + 1).into();
        }
        self.write(key(resource(plural), namespace, name), object(value))
    }

    fn namespace(&mut self, name: &str) {
        let value = json!({"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        self.put("namespaces", "", name, value);
    }

    /// A reference to an object that is there.
    fn owner(&self, plural: &str, namespace: &str, name: &str, blocks: bool) -> Value {
        let of = resource(plural);
        let found = self.found(plural, namespace, name).expect("the owner is there");
        json!({
            "apiVersion": of.api_version(), "kind": of.kind, "name": name,
            "uid": text(&found, "/metadata/uid"), "blockOwnerDeletion": blocks,
        })
    }

    fn owned(&mut self, plural: &str, namespace: &str, name: &str, owners: Vec<Value>) {
        self.put(plural, namespace, name, json!({"metadata": {"ownerReferences": owners}}));
    }

    fn found(&self, plural: &str, namespace: &str, name: &str) -> Option<Object> {
        self.store.get(&key(resource(plural), namespace, name)).cloned()
    }

    /// `pods a/x` of all that are there.
    fn left(&self) -> Vec<String> {
        let told = |(index, namespace, name): &Key| {
            format!("{} {namespace}/{name}", RESOURCES[*index].plural)
        };
        self.store.keys().map(told).collect()
    }

    fn delete(&mut self, plural: &str, namespace: &str, name: &str, policy: &str) {
        let options = DeleteOptions {
            propagation_policy: Some(policy.to_owned()),
            grace_period_seconds: Some(0),
            ..DeleteOptions::default()
        };
        let place = Place::new(resource(plural), namespace, name);
        self.execute(&Action::Delete(place, options)).expect("it is there");
    }

    fn execute(&mut self, action: &Action) -> Result<Option<Object>, Status> {
        let changed = "the object has been modified";
        match action {
            Action::Read(place) => {
                Ok(self.store.get(&key(place.resource, &place.namespace, &place.name)).cloned())
            }
            Action::Create(resource, object) => {
                let (namespace, name) =
                    (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
                let parent = self.found("namespaces", "", namespace);
                let ends = |parent: &Object| at(parent, "/metadata/deletionTimestamp").is_some();
                if resource.namespaced && parent.as_ref().is_none_or(ends) {
                    return Err(Status::forbidden(resource, name, "its namespace ends"));
                }
                let key = key(resource, namespace, name);
                if self.store.contains_key(&key) {
                    return Err(Status::already_exists(resource, name));
                }
                let mut object = object.clone();
                let uid = format!("uid-{}", self.revision + 1);
                metadata(&mut object).insert("uid".to_owned(), uid.into());
                strategy::default(resource, &mut object);
                strategy::prepare_create(resource, &mut object, &User::apiserver());
                Ok(Some(self.write(key, object)))
            }
            Action::Replace(resource, _, object) => {
                let name = text(object, "/metadata/name");
                let key = key(resource, text(object, "/metadata/namespace"), name);
                let Some(known) = self.store.get(&key) else {
                    return Err(Status::not_found(resource, name));
                };
                let revision =
                    |object: &Object| text(object, "/metadata/resourceVersion").to_owned();
                if revision(known) != revision(object) {
                    return Err(Status::conflict(resource, name, changed));
                }
                let mut new = known.clone();
                new.extend(object.clone());
                Ok(Some(self.update(key, new)))
            }
            Action::Edit(place, edit) => {
                let key = key(place.resource, &place.namespace, &place.name);
                let Some(mut object) = self.store.get(&key).cloned() else {
                    return Err(Status::not_found(place.resource, &place.name));
                };
                edit.apply(&mut object)?;
                Ok(Some(self.update(key, object)))
            }
            Action::Delete(place, options) => {
                let key = key(place.resource, &place.namespace, &place.name);
                let Some(object) = self.store.get(&key) else {
                    return Err(Status::not_found(place.resource, &place.name));
                };
                match strategy::deletion(place.resource, object, options, self.now.wall)? {
                    Deletion::Now(_) => self.remove(key),
                    Deletion::Later(object) => drop(self.update(key, object)),
                }
                Ok(None)
            }
        }
    }

    fn update(&mut self, key: Key, object: Object) -> Object {
        if strategy::is_done(&RESOURCES[key.0], &object) {
            self.remove(key);
            return object;
        }
        if self.store.get(&key) == Some(&object) {
            return object;
        }
        self.write(key, object)
    }

    /// Tells the cache and the machine the next change.
    fn tell(&mut self) {
        let Some(Change { key, body, gone }) = self.log.get(self.told) else { return };
        self.told += 1;
        if *gone {
            self.cache.0.remove(key);
        } else {
            self.cache.0.insert(key.clone(), body.clone());
        }
        let of = &RESOURCES[key.0];
        if self.machine.wants(of) {
            let text = Value::Object(body.clone()).to_string();
            self.machine.observe(of, (&key.1, &key.2), text.as_bytes(), *gone, self.now);
        }
    }

    /// Ends one of the running actions, whichever.
    fn end(&mut self) {
        let at = self.any(self.running.len());
        let job = self.running.swap_remove(at);
        let fails = usize::try_from(self.fails).unwrap_or_default();
        let end = if fails > 0 && self.any(fails) == 0 {
            Err(Status::unavailable("the store does not answer"))
        } else {
            self.judge(&job.action);
            self.execute(&job.action)
        };
        if end.is_ok() {
            self.done.push(told(&job.action));
        }
        self.machine.ended(&job, end, self.now);
    }

    /// Notes a deletion of what has an owner that is there to stay.
    fn judge(&mut self, action: &Action) {
        let Action::Delete(place, options) = action else { return };
        let found = self.store.get(&key(place.resource, &place.namespace, &place.name));
        let Some(found) = found else { return };
        let current =
            options.resource_version.as_deref() == Some(text(found, "/metadata/resourceVersion"));
        let solid = items(found, "/metadata/ownerReferences").any(|owner| {
            self.store.iter().any(|((_, namespace, _), known)| {
                let waits = at(known, "/metadata/deletionTimestamp").is_some()
                    && items(known, "/metadata/finalizers").any(|own| own == "foregroundDeletion");
                (namespace.is_empty() || *namespace == place.namespace)
                    && owner["uid"] == text(known, "/metadata/uid")
                    && !waits
            })
        });
        if current && solid {
            self.wrong.push(told(action));
        }
    }

    /// Runs until nothing is left to do, in whatever order; what would happen within `patience` is waited for.
    fn settle(&mut self, patience: Duration) {
        let end = self.now.at + patience;
        loop {
            match self.any(3) {
                0 if self.told < self.log.len() => self.tell(),
                1 if !self.running.is_empty() => self.end(),
                _ => {
                    let jobs = self.machine.work(8, &self.cache, self.now);
                    self.running.extend(jobs);
                }
            }
            if self.told < self.log.len() || !self.running.is_empty() {
                continue;
            }
            let wakes = self.machine.wakes_at(self.now.at).filter(|at| *at <= end);
            let at = wakes.unwrap_or(end);
            self.now = Now { at, wall: self.now.wall + (at - self.now.at) };
            if wakes.is_none() {
                return;
            }
        }
    }

    /// The machine forgets everything; what is there is told again, what was running has happened or not.
    fn restart(&mut self) {
        for job in std::mem::take(&mut self.running) {
            if self.any(2) == 0 {
                // Whether it went well nobody hears.
                self.judge(&job.action);
                drop(self.execute(&job.action));
            }
        }
        self.told = self.log.len();
        self.cache.0 = self.store.clone();
        self.machine = Machine::new((self.make)());
        for (key, body) in &self.store {
            let of = &RESOURCES[key.0];
            if self.machine.wants(of) {
                let text = Value::Object(body.clone()).to_string();
                self.machine.observe(of, (&key.1, &key.2), text.as_bytes(), false, self.now);
            }
        }
    }
}

fn told(action: &Action) -> String {
    match action {
        Action::Create(resource, object) => {
            format!("create {} {}", resource.plural, text(object, "/metadata/name"))
        }
        Action::Replace(resource, part, object) => {
            format!("replace {} {} {part}", resource.plural, text(object, "/metadata/name"))
        }
        Action::Edit(place, edit) => format!("edit {} {edit:?}", at_place(place)),
        Action::Delete(place, options) => {
            let policy = options.propagation_policy.as_deref().unwrap_or_default();
            format!("delete {} {policy}", at_place(place))
        }
        Action::Read(place) => format!("read {}", at_place(place)),
    }
}

fn at_place(place: &Place) -> String {
    format!("{} {}/{}", place.resource.plural, place.namespace, place.name)
}

const SECOND: Duration = Duration::from_secs(1);

fn only<L: Loop + Default + 'static>() -> Vec<Box<dyn Loop>> {
    vec![Box::new(L::default())]
}

mod ending_namespaces {
    use super::*;

    fn full(count: usize) -> World {
        let mut world = World::new(only::<Namespaces>);
        world.namespace("a");
        world.namespace("b");
        for number in 0..count {
            let plural = ["configmaps", "secrets", "pods", "deployments"][number % 4];
            let value = json!({"spec": {"nodeName": ""}});
            world.put(plural, "a", &format!("x{number}"), value.clone());
            world.put(plural, "b", &format!("x{number}"), value);
        }
        world.settle(SECOND);
        assert_eq!(world.done, [""; 0], "nothing ends");
        world
    }

    #[test]
    fn all_that_is_in_one_goes_pods_first_and_then_it_goes_itself() {
        let mut world = full(40);
        world.delete("namespaces", "", "a", "Background");
        world.settle(SECOND);
        let left = world.left();
        assert_eq!(left.len(), 41, "{left:?}");
        assert!(
            left.iter().all(|left| left.contains(" b/") || left == "namespaces /b"),
            "{left:?}"
        );
        let pods = |done: &String| done.starts_with("delete pods");
        let last_pod = world.done.iter().rposition(pods).expect("pods were deleted");
        let other = |done: &String| done.starts_with("delete") && !pods(done);
        let first_other = world.done.iter().position(other).expect("others, too");
        assert!(last_pod < first_other, "{:?}", world.done);
        let writes = world.done.iter().filter(|done| done.starts_with("edit")).count();
        assert_eq!(writes, 1, "no condition is written for what goes at once");
    }

    #[test]
    fn what_has_a_finalizer_is_waited_for_and_told() {
        let mut world = full(8);
        let held = json!({"metadata": {"finalizers": ["example.org/x"]}});
        world.put("secrets", "a", "held", held);
        world.delete("namespaces", "", "a", "Background");
        world.settle(10 * SECOND);
        assert!(world.found("secrets", "a", "x1").is_none());
        let namespace = world.found("namespaces", "", "a").expect("it waits");
        let said = |kind: &str| {
            let mut all = items(&namespace, "/status/conditions");
            let one = all.find(|condition| condition["type"] == kind).expect("it is told");
            format!("{} {}: {}", one["status"], one["reason"], one["message"])
        };
        assert_eq!(
            said("NamespaceContentRemaining"),
            "\"True\" \"SomeResourcesRemain\": \"Some resources are remaining: secrets. has 1 resource instances\""
        );
        assert_eq!(
            said("NamespaceFinalizersRemaining"),
            "\"True\" \"SomeFinalizersRemain\": \"Some content in the namespace has finalizers remaining: example.org/x in 1 resource instances\""
        );
        let edit = super::super::Edit::RemoveFinalizer {
            uid: text(&world.found("secrets", "a", "held").expect("held"), "/metadata/uid")
                .to_owned(),
            finalizer: "example.org/x",
        };
        world
            .execute(&Action::Edit(Place::new(resource("secrets"), "a", "held"), edit))
            .expect("freed");
        world.settle(SECOND);
        assert!(world.found("namespaces", "", "a").is_none());
    }

    #[test]
    fn it_is_gone_though_actions_fail_and_the_server_is_restarted_in_the_middle() {
        for seed in 1..20 {
            let mut world = full(60);
            (world.random, world.fails) = (seed * 7919, 5);
            world.delete("namespaces", "", "a", "Background");
            for _ in 0..3 {
                for _ in 0..40 {
                    match world.any(3) {
                        0 => world.tell(),
                        1 if !world.running.is_empty() => world.end(),
                        _ => {
                            let jobs = world.machine.work(8, &world.cache, world.now);
                            world.running.extend(jobs);
                        }
                    }
                }
                world.restart();
            }
            world.settle(600 * SECOND);
            let left = world.left();
            assert!(
                left.iter().all(|left| left.contains(" b/") || left == "namespaces /b"),
                "{left:?}"
            );
            assert_eq!(left.len(), 61);
        }
    }

    #[test]
    fn what_comes_too_late_goes_after_it_but_not_what_is_in_a_new_one_of_the_name() {
        let mut world = full(4);
        world.delete("namespaces", "", "a", "Background");
        world.settle(SECOND);
        world.put("configmaps", "a", "late", json!({}));
        world.settle(SECOND);
        assert!(world.found("configmaps", "a", "late").is_none());
        world.namespace("a");
        world.put("configmaps", "a", "new", json!({}));
        world.settle(SECOND);
        assert!(world.found("configmaps", "a", "new").is_some());
    }
}

mod garbage {
    use super::*;

    /// A deployment with two sets of two pods each.
    fn chain() -> World {
        let mut world = World::new(only::<Garbage>);
        world.namespace("a");
        world.put("deployments", "a", "d", json!({}));
        for set in ["r1", "r2"] {
            let owner = world.owner("deployments", "a", "d", true);
            world.owned("replicasets", "a", set, vec![owner]);
            for pod in ["p1", "p2"] {
                let owner = world.owner("replicasets", "a", set, true);
                world.owned("pods", "a", &format!("{set}-{pod}"), vec![owner]);
            }
        }
        world.put("configmaps", "a", "own", json!({}));
        world.settle(SECOND);
        assert_eq!(world.done, [""; 0], "everything has its owner");
        world
    }

    #[test]
    fn in_the_background_what_is_owned_goes_after_its_owner() {
        let mut world = chain();
        world.delete("deployments", "a", "d", "Background");
        assert!(world.found("deployments", "a", "d").is_none());
        world.settle(SECOND);
        assert_eq!(world.left(), ["configmaps a/own", "namespaces /a"]);
    }

    #[test]
    fn in_the_foreground_it_goes_before_its_owner() {
        let mut world = chain();
        world.delete("deployments", "a", "d", "Foreground");
        assert!(world.found("deployments", "a", "d").is_some());
        world.settle(SECOND);
        assert_eq!(world.left(), ["configmaps a/own", "namespaces /a"]);
        let gone: Vec<_> =
            world.log.iter().filter(|change| change.gone).map(|change| &*change.key.2).collect();
        let at = |name: &str| gone.iter().position(|gone| *gone == name).expect("it is gone");
        for (first, then) in
            [("r1-p1", "r1"), ("r1-p2", "r1"), ("r2-p1", "r2"), ("r1", "d"), ("r2", "d")]
        {
            assert!(at(first) < at(then), "{gone:?}");
        }
    }

    #[test]
    fn orphans_stay_without_their_owner() {
        let mut world = chain();
        world.delete("deployments", "a", "d", "Orphan");
        world.settle(SECOND);
        assert_eq!(world.found("deployments", "a", "d"), None);
        let set = world.found("replicasets", "a", "r1").expect("it stays");
        assert_eq!(at(&set, "/metadata/ownerReferences"), None);
        let pod = world.found("pods", "a", "r1-p1").expect("it stays");
        assert_eq!(items(&pod, "/metadata/ownerReferences").count(), 1);
    }

    #[test]
    fn one_of_two_owners_is_enough() {
        let mut world = World::new(only::<Garbage>);
        world.namespace("a");
        for name in ["one", "two"] {
            world.put("configmaps", "a", name, json!({}));
        }
        let owners = ["one", "two"].map(|name| world.owner("configmaps", "a", name, true));
        world.owned("secrets", "a", "s", owners.to_vec());
        world.delete("configmaps", "a", "one", "Background");
        world.settle(SECOND);
        let secret = world.found("secrets", "a", "s").expect("it has an owner");
        assert_eq!(
            items(&secret, "/metadata/ownerReferences").count(),
            1,
            "the dead one is taken out"
        );
        world.delete("configmaps", "a", "two", "Foreground");
        world.settle(SECOND);
        assert_eq!(world.left(), ["namespaces /a"]);
    }

    #[test]
    fn two_that_wait_for_each_other_go() {
        let mut world = World::new(only::<Garbage>);
        world.namespace("a");
        world.put("configmaps", "a", "one", json!({}));
        let one = world.owner("configmaps", "a", "one", true);
        world.owned("configmaps", "a", "two", vec![one]);
        let two = world.owner("configmaps", "a", "two", true);
        let mut object = world.found("configmaps", "a", "one").expect("it is there");
        metadata(&mut object).insert("ownerReferences".to_owned(), json!([two]));
        world.write(key(resource("configmaps"), "a", "one"), object);
        world.settle(SECOND);
        world.delete("configmaps", "a", "one", "Foreground");
        world.settle(10 * SECOND);
        assert_eq!(world.left(), ["namespaces /a"]);
    }

    #[test]
    fn owners_are_looked_for_where_they_can_be() {
        let mut world = World::new(only::<Garbage>);
        world.namespace("a");
        world.namespace("b");
        world.put("configmaps", "a", "c", json!({}));
        world.put("nodes", "", "n", json!({}));
        let (map, node) =
            (world.owner("configmaps", "a", "c", false), world.owner("nodes", "", "n", false));
        world.owned("pods", "a", "near", vec![map.clone()]);
        world.owned("pods", "b", "far", vec![map.clone()]);
        world.owned("pods", "b", "on-node", vec![node]);
        world.owned("persistentvolumes", "", "wide", vec![map]);
        let unknown =
            json!({"apiVersion": "example.org/v1", "kind": "Thing", "name": "t", "uid": "t"});
        world.owned("pods", "b", "unknown", vec![unknown]);
        let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "another"});
        world.owned("pods", "a", "replaced", vec![other]);
        world.settle(SECOND);
        let kept = ["pods a/near", "pods b/on-node", "pods b/unknown", "persistentvolumes /wide"];
        let left = world.left();
        for kept in kept {
            assert!(left.contains(&kept.to_owned()), "{kept}: {left:?}");
        }
        assert_eq!(left.len(), kept.len() + 4, "{left:?}");
        assert!(world.done.contains(&"read configmaps a/c".to_owned()), "the store was asked");
    }

    /// What must hold when everything has been done.
    fn check(world: &World) -> Result<(), TestCaseError> {
        prop_assert!(world.wrong.is_empty(), "deleted with an owner: {:?}", world.wrong);
        let uids: BTreeSet<&str> =
            world.store.values().map(|object| text(object, "/metadata/uid")).collect();
        for (key, object) in &world.store {
            let owners: Vec<_> = items(object, "/metadata/ownerReferences").collect();
            let alive =
                owners.iter().any(|owner| uids.contains(owner["uid"].as_str().unwrap_or_default()));
            prop_assert!(owners.is_empty() || alive, "{key:?} is left without an owner");
            let ends = at(object, "/metadata/deletionTimestamp").is_some();
            prop_assert!(!ends, "{key:?} never goes: {object:?}");
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Objects with up to two owners each, some of which are deleted, in any way, while actions fail, the cache lags,
        /// and the machine is restarted.
        #[test]
        fn no_orphan_is_left_and_nothing_goes_that_has_an_owner(seed in 1_u64.., count in 2_usize..30) {
            let mut world = World::new(only::<Garbage>);
            (world.random, world.fails) = (seed, 10);
            world.namespace("a");
            let mut names: Vec<(&str, String)> = Vec::new();
            for number in 0..count {
                let plural = ["configmaps", "pods", "replicasets"][world.any(3)];
                let mut owners = Vec::new();
                for _ in 0..world.any(3) {
                    if !names.is_empty() {
                        let at = world.any(names.len());
                        let (plural, name) = names[at].clone();
                        let blocks = world.any(2) == 0;
                        let owner = world.owner(plural, "a", &name, blocks);
                        if !owners.contains(&owner) {
                            owners.push(owner);
                        }
                    }
                }
                let name = format!("x{number}");
                world.owned(plural, "a", &name, owners);
                names.push((plural, name));
            }
            for _ in 0..1 + world.any(4) {
                let at = world.any(names.len());
                let (plural, name) = names[at].clone();
                let ends = world.found(plural, "a", &name)
                    .is_none_or(|found| super::at(&found, "/metadata/deletionTimestamp").is_some());
                if !ends {
                    let policy = ["Background", "Foreground", "Orphan"][world.any(3)];
                    world.delete(plural, "a", &name, policy);
                }
                for _ in 0..world.any(60) {
                    match world.any(3) {
                        0 => world.tell(),
                        1 if !world.running.is_empty() => world.end(),
                        _ => {
                            let jobs = world.machine.work(8, &world.cache, world.now);
                            world.running.extend(jobs);
                        }
                    }
                }
                if world.any(3) == 0 {
                    world.restart();
                }
            }
            world.settle(600 * SECOND);
            check(&world)?;
        }
    }
}

mod others {
    use super::*;

    #[test]
    fn every_namespace_has_an_account_and_an_authority() {
        let mut world = World::new(|| vec![Box::new(Accounts::new("PEM"))]);
        world.namespace("a");
        world.settle(SECOND);
        let map = world.found("configmaps", "a", "kube-root-ca.crt").expect("it is made");
        assert_eq!(at(&map, "/data"), Some(&json!({"ca.crt": "PEM"})));
        assert!(world.found("serviceaccounts", "a", "default").is_some());
        world.delete("serviceaccounts", "a", "default", "Background");
        let mut changed = map;
        changed.insert("data".to_owned(), json!({"ca.crt": "other"}));
        world.write(key(resource("configmaps"), "a", "kube-root-ca.crt"), changed);
        world.settle(SECOND);
        let map = world.found("configmaps", "a", "kube-root-ca.crt").expect("it is there");
        assert_eq!(at(&map, "/data"), Some(&json!({"ca.crt": "PEM"})));
        assert!(world.found("serviceaccounts", "a", "default").is_some());

        world.delete("namespaces", "", "a", "Background");
        world.delete("serviceaccounts", "a", "default", "Background");
        let done = world.done.len();
        world.settle(60 * SECOND);
        assert!(
            world.found("serviceaccounts", "a", "default").is_none(),
            "nothing new where it ends"
        );
        assert!(
            world.done[done..].iter().all(|done| !done.starts_with("create")),
            "{:?}",
            world.done
        );
    }

    #[test]
    fn tokens_go_when_their_time_is_over() {
        let mut world = World::new(only::<Tokens>);
        let token = |expires: &str| {
            use base64::Engine as _;
            let expires = base64::engine::general_purpose::STANDARD.encode(expires);
            json!({"type": "bootstrap.kubernetes.io/token", "data": {"expiration": expires}})
        };
        world.put(
            "secrets",
            "kube-system",
            "bootstrap-token-aaaaaa",
            token("2026-01-01T00:02:30Z"),
        );
        world.put(
            "secrets",
            "kube-system",
            "bootstrap-token-bbbbbb",
            token("2026-01-01T00:05:00+00:00"),
        );
        world.put("secrets", "kube-system", "bootstrap-token-cccccc", token("some day"));
        world.put("secrets", "kube-system", "bootstrap-token-dddddd", json!({"type": "Opaque"}));
        world.put("secrets", "default", "bootstrap-token-eeeeee", token("2025-01-01T00:00:00Z"));
        world.settle(149 * SECOND);
        assert_eq!(world.left().len(), 5);
        world.settle(2 * SECOND);
        assert!(world.found("secrets", "kube-system", "bootstrap-token-aaaaaa").is_none());
        assert_eq!(world.left().len(), 4);
        world.settle(600 * SECOND);
        assert_eq!(world.left().len(), 3);
    }

    #[test]
    fn tokens_go_by_the_clock_as_it_is_set() {
        let mut world = World::new(only::<Tokens>);
        use base64::Engine as _;
        let expires = base64::engine::general_purpose::STANDARD.encode("2026-01-01T00:30:00Z");
        let token =
            json!({"type": "bootstrap.kubernetes.io/token", "data": {"expiration": expires}});
        world.put("secrets", "kube-system", "bootstrap-token-aaaaaa", token.clone());
        world.settle(10 * SECOND);
        world.now.wall -= 3600 * SECOND;
        world.settle(3600 * SECOND);
        assert_eq!(world.left().len(), 1, "the hour that was given back counts again");
        world.now.wall += 3600 * SECOND;
        world.settle(60 * SECOND);
        assert_eq!(world.left().len(), 0, "within a minute");
    }

    #[test]
    fn quotas_are_counted_and_what_goes_is_given_back() {
        let mut world = World::new(only::<Quotas>);
        world.namespace("a");
        world.put("pods", "a", "p", json!({"spec": {"containers": []}}));
        world.put("pods", "a", "q", json!({"spec": {"containers": []}}));
        world.put("resourcequotas", "a", "quota", json!({"spec": {"hard": {"pods": "5"}}}));
        let used = |world: &World| {
            let quota = world.found("resourcequotas", "a", "quota").expect("it is there");
            at(&quota, "/status").cloned()
        };
        world.settle(SECOND);
        assert_eq!(used(&world), Some(json!({"hard": {"pods": "5"}, "used": {"pods": "2"}})));
        world.delete("pods", "a", "p", "Background");
        world.settle(SECOND);
        assert_eq!(used(&world), Some(json!({"hard": {"pods": "5"}, "used": {"pods": "1"}})));
        world.put(
            "pods",
            "a",
            "q",
            json!({"status": {"phase": "Succeeded"}, "metadata": {"uid": "q"}}),
        );
        world.settle(SECOND);
        assert_eq!(used(&world), Some(json!({"hard": {"pods": "5"}, "used": {"pods": "0"}})));
        // Charged for something that was never written.
        let mut quota = world.found("resourcequotas", "a", "quota").expect("it is there");
        quota.insert("status".to_owned(), json!({"hard": {"pods": "5"}, "used": {"pods": "4"}}));
        world.write(key(resource("resourcequotas"), "a", "quota"), quota);
        world.settle(4 * SECOND);
        assert_eq!(used(&world), Some(json!({"hard": {"pods": "5"}, "used": {"pods": "4"}})));
        world.settle(10 * SECOND);
        assert_eq!(used(&world), Some(json!({"hard": {"pods": "5"}, "used": {"pods": "0"}})));
    }

    #[test]
    fn budgets_say_how_many_pods_may_go() {
        let mut world = World::new(only::<Disruptions>);
        world.namespace("a");
        world.put("deployments", "a", "d", json!({"spec": {"replicas": 4}}));
        let mut owner = world.owner("deployments", "a", "d", true);
        owner["controller"] = true.into();
        world.put(
            "replicasets",
            "a",
            "r",
            json!({"metadata": {"ownerReferences": [owner]}, "spec": {"replicas": 3}}),
        );
        let mut owner = world.owner("replicasets", "a", "r", true);
        owner["controller"] = true.into();
        let pod = |ready: &str| {
            json!({
                "metadata": {"labels": {"app": "x"}, "ownerReferences": [owner.clone()]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        for name in ["p", "q", "r"] {
            world.put("pods", "a", name, pod("True"));
        }
        let selector = json!({"matchLabels": {"app": "x"}});
        for (name, spec) in [
            ("least", json!({"minAvailable": 2, "selector": selector})),
            ("share", json!({"minAvailable": "50%", "selector": selector})),
            ("most", json!({"maxUnavailable": "30%", "selector": selector})),
            ("nothing", json!({"minAvailable": 1})),
        ] {
            let metadata = json!({"generation": 1});
            world.put(
                "poddisruptionbudgets",
                "a",
                name,
                json!({"metadata": metadata, "spec": spec}),
            );
        }
        let said = |world: &World, name: &str| {
            let budget = world.found("poddisruptionbudgets", "a", name).expect("it is there");
            let number =
                |field: &str| at(&budget, &format!("/status/{field}")).and_then(Value::as_i64);
            ["expectedPods", "desiredHealthy", "currentHealthy", "disruptionsAllowed"].map(number)
        };
        world.settle(SECOND);
        assert_eq!(said(&world, "least"), [3, 2, 3, 1].map(Some));
        assert_eq!(said(&world, "share"), [4, 2, 3, 1].map(Some), "its deployment wants four");
        assert_eq!(said(&world, "most"), [4, 2, 3, 1].map(Some), "two of four, rounded up");
        assert_eq!(said(&world, "nothing"), [0, 1, 0, 0].map(Some));

        // An eviction is counted before its pod goes, and forgotten if it does not.
        let mut budget = world.found("poddisruptionbudgets", "a", "least").expect("it is there");
        let status = budget["status"].as_object_mut().expect("it has one");
        status.insert("disruptionsAllowed".to_owned(), 0.into());
        status.insert("disruptedPods".to_owned(), json!({"p": "2026-01-01T00:00:01Z"}));
        world.write(key(resource("poddisruptionbudgets"), "a", "least"), budget);
        world.settle(SECOND);
        assert_eq!(said(&world, "least"), [3, 2, 2, 0].map(Some));
        let done = world.done.len();
        world.settle(60 * SECOND);
        assert_eq!(world.done.len(), done, "nothing is written for nothing");
        world.settle(120 * SECOND);
        assert_eq!(said(&world, "least"), [3, 2, 3, 1].map(Some));
        world.delete("pods", "a", "q", "Background");
        world.settle(SECOND);
        assert_eq!(said(&world, "least"), [2, 2, 2, 0].map(Some));
        assert_eq!(said(&world, "share"), [4, 2, 2, 0].map(Some));
    }

    #[test]
    fn roles_gather_also_from_those_that_gather() {
        let mut world = World::new(only::<Roles>);
        let role = |label: &str, gathers: &str, rules: Value| {
            let mut role = json!({"metadata": {"labels": {label: "true"}}, "rules": rules});
            if !gathers.is_empty() {
                role["aggregationRule"] =
                    json!({"clusterRoleSelectors": [{"matchLabels": {gathers: "true"}}]});
            }
            role
        };
        let pods = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
        world.put("clusterroles", "", "admin", role("x", "to-admin", json!([])));
        world.put("clusterroles", "", "edit", role("to-admin", "to-edit", json!([])));
        world.put("clusterroles", "", "part", role("to-edit", "", json!([pods])));
        world.settle(SECOND);
        for name in ["admin", "edit"] {
            let role = world.found("clusterroles", "", name).expect("it is there");
            assert_eq!(at(&role, "/rules"), Some(&json!([pods])), "{name}");
        }
        world.delete("clusterroles", "", "part", "Background");
        world.settle(SECOND);
        let admin = world.found("clusterroles", "", "admin").expect("it is there");
        assert_eq!(at(&admin, "/rules"), Some(&json!([])));
    }

    fn server(name: &str, address: &str, shared: bool) -> Vec<Box<dyn Loop>> {
        let parsed = |address: &str| address.parse().expect("an address");
        vec![Box::new(Kubernetes::new(Server {
            name: name.to_owned(),
            address: parsed(address),
            port: 6443,
            service: parsed("10.96.0.1"),
            shared,
        }))]
    }

    fn addresses(world: &World) -> Vec<String> {
        let endpoints = world.found("endpoints", "default", "kubernetes").expect("they are made");
        let slice = world.found("endpointslices", "default", "kubernetes").expect("it is made");
        let ips = items(&endpoints, "/subsets/0/addresses").map(|one| one["ip"].clone());
        let sliced = items(&slice, "/endpoints").map(|one| one["addresses"][0].clone());
        let (ips, sliced): (Vec<_>, Vec<_>) = (ips.collect(), sliced.collect());
        assert_eq!(ips, sliced);
        ips.iter().map(|ip| ip.as_str().expect("text").to_owned()).collect()
    }

    #[test]
    fn the_server_is_found_by_its_service() {
        let mut world = World::new(|| server("one", "10.0.0.1", false));
        world.settle(SECOND);
        assert_eq!(world.done, [""; 0], "not before the namespace is there");
        world.namespace("default");
        world.settle(SECOND);
        let service = world.found("services", "default", "kubernetes").expect("it is made");
        assert_eq!(text(&service, "/spec/clusterIP"), "10.96.0.1");
        assert_eq!(at(&service, "/spec/ports/0/targetPort"), Some(&json!(6443)));
        assert_eq!(addresses(&world), ["10.0.0.1"]);
        world.delete("endpoints", "default", "kubernetes", "Background");
        world.settle(SECOND);
        assert_eq!(addresses(&world), ["10.0.0.1"]);
        let done = world.done.len();
        world.settle(600 * SECOND);
        assert_eq!(world.done.len(), done, "nothing is written for nothing");
    }

    #[test]
    fn servers_on_one_store_know_each_other_until_one_falls_silent() {
        let mut world = World::new(|| server("one", "10.0.0.1", true));
        world.namespace("default");
        world.namespace("kube-system");
        let lease = |renewed: &str| {
            json!({
                "metadata": {"uid": "l", "labels": {"apiserver.kubernetes.io/identity": "apiserver"}, "annotations": {"orlop/address": "10.0.0.2"}},
                "spec": {"renewTime": renewed},
            })
        };
        world.put("leases", "kube-system", "apiserver-two", lease("1"));
        world.settle(10 * SECOND);
        assert_eq!(addresses(&world), ["10.0.0.1", "10.0.0.2"]);
        let own = world
            .found("leases", "kube-system", "apiserver-one")
            .expect("it says that it is there");
        assert_eq!(text(&own, "/metadata/annotations/orlop~1address"), "10.0.0.1");
        world.put("leases", "kube-system", "apiserver-two", lease("2"));
        world.settle(14 * SECOND);
        assert_eq!(addresses(&world), ["10.0.0.1", "10.0.0.2"]);
        world.settle(2 * SECOND);
        assert_eq!(addresses(&world), ["10.0.0.1"]);
    }
}

#[test]
fn the_resources_that_loops_name_are_served() {
    for (group, plural) in [
        ("", "namespaces"),
        ("", "resourcequotas"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("coordination.k8s.io", "leases"),
        ("discovery.k8s.io", "endpointslices"),
    ] {
        assert_eq!(served(group, "v1", plural).plural, plural);
    }
}
