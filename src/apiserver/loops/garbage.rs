//! Garbage: objects whose owners are gone, and owners that wait for what they own.
//!
//! An object goes when none of the owners it names is there any more; that it is gone is read from the store before
//! anything is deleted for it, and the deletion holds only for the object as it was seen. An owner that is deleted in the
//! foreground stays until all that blocks it is gone; one that orphans what it owns stays until nothing names it. An
//! owner in a namespace is looked for in the namespace of what it owns, whatever the reference means
//! (Kubernetes documentation, *Owners and Dependents*).

use std::collections::{BTreeSet, HashMap, HashSet};

use super::namespaces::is_stored;
use super::{Action, Edit, Look, Loop, Meta, Now, Owner, Place, Seen, Step};
use crate::object::{Object, Objects, at, items, text};
use crate::resources::{RESOURCES, Resource};
use crate::status::Status;
use crate::strategy::DeleteOptions;

/// What an owner waits for that is deleted in the foreground.
const FOREGROUND: &str = "foregroundDeletion";
/// What one waits for that leaves behind what it owns.
const ORPHAN: &str = "orphan";
/// How many owners are remembered to be gone.
const REMEMBERED: usize = 10_000;

/// The loop. Its keys are uids.
#[derive(Debug, Default)]
pub struct Garbage {
    /// Those that name an owner, or wait to be deleted.
    nodes: HashMap<String, Node>,
    /// By the owner they name, which may be gone, or never have been.
    dependents: HashMap<String, BTreeSet<String>>,
    /// Owners the store does not have where they are looked for: uid and namespace.
    absent: HashSet<(String, String)>,
}

#[derive(Clone, Debug)]
struct Node {
    place: Place,
    meta: Meta,
}

/// What an object's reference to an owner comes to.
enum Standing {
    /// It is there.
    Solid,
    /// It is there until what it owns is gone.
    Waits,
    /// It is not there.
    Dangling,
    /// The cache does not have it.
    Unknown(Place),
}

impl Loop for Garbage {
    fn name(&self) -> &'static str {
        "garbage"
    }

    fn wants(&self, resource: &'static Resource) -> bool {
        // Events are many, short-lived, and owned by nobody.
        resource.verbs.contains(&"delete") && resource.plural != "events" && is_stored(resource)
    }

    fn observe(&mut self, seen: &Seen<'_>, _: Now) -> Vec<Look> {
        let (uid, meta) = (&seen.meta.uid, seen.meta);
        let old = self.nodes.remove(uid);
        let mut looks = BTreeSet::new();
        let none = Vec::new();
        let before = old.as_ref().map_or(&none, |old| &old.meta.owner_references);
        let after = if seen.gone { &none } else { &meta.owner_references };
        if before != after {
            for owner in before {
                self.unlink(&owner.uid, uid);
                // It may have waited for this.
                if self.nodes.contains_key(&owner.uid) {
                    looks.insert(owner.uid.clone());
                }
            }
            for owner in after {
                self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            }
            if !after.is_empty() {
                looks.insert(uid.clone());
            }
        }
        if seen.gone {
            looks.extend(self.dependents.get(uid).into_iter().flatten().cloned());
            return looks.into_iter().map(Look::now).collect();
        }
        let waits = meta.awaits(FOREGROUND) || meta.awaits(ORPHAN);
        if waits {
            looks.insert(uid.clone());
        }
        if meta.awaits(FOREGROUND) && !old.is_some_and(|old| old.meta.awaits(FOREGROUND)) {
            looks.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        }
        // One that is on its way is looked at by those it blocks.
        if meta.deletion_timestamp.is_some() {
            let owners = meta.owner_references.iter().map(|owner| &owner.uid);
            looks.extend(owners.filter(|owner| self.nodes.contains_key(*owner)).cloned());
        }
        if waits || !after.is_empty() {
            self.nodes.insert(uid.clone(), Node { place: Place::of(seen), meta: meta.clone() });
        }
        looks.into_iter().map(Look::now).collect()
    }

    fn step(&mut self, key: &str, objects: &dyn Objects, _: Now) -> Step {
        let Some(node) = self.nodes.get(key) else { return Step::idle() };
        if node.meta.awaits(ORPHAN) {
            self.orphan(node)
        } else if node.meta.awaits(FOREGROUND) {
            self.wait(node)
        } else if node.meta.deletion_timestamp.is_some() {
            Step::idle()
        } else {
            self.judge(node, objects)
        }
    }

    fn ended(&mut self, key: &str, action: &Action, end: &Result<Option<Object>, Status>, _: Now) {
        let (Action::Read(place), Ok(found)) = (action, end) else { return };
        let Some(node) = self.nodes.get(key) else { return };
        let uid = found.as_ref().map_or("", |found| text(found, "/metadata/uid"));
        let missed = node.meta.owner_references.iter().filter(|owner| {
            owner.uid != uid && owner_place(node, owner).is_some_and(|at| same(&at, place))
        });
        let missed: Vec<_> =
            missed.map(|owner| (owner.uid.clone(), place.namespace.clone())).collect();
        if self.absent.len() + missed.len() > REMEMBERED {
            self.absent.clear();
        }
        self.absent.extend(missed);
    }
}

impl Garbage {
    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn dependents(&self, uid: &str) -> impl Iterator<Item = &Node> {
        let all = self.dependents.get(uid).into_iter().flatten();
        all.filter_map(|uid| self.nodes.get(uid))
    }

    /// An owner whose dependents are to stay.
    fn orphan(&self, owner: &Node) -> Step {
        let mut actions: Vec<_> = self
            .dependents(&owner.meta.uid)
            .map(|dependent| {
                let owners = vec![owner.meta.uid.clone()];
                dependent.edit(Edit::RemoveOwners { uid: dependent.meta.uid.clone(), owners })
            })
            .collect();
        if actions.is_empty() {
            actions.push(owner.release(ORPHAN));
        }
        Step { actions, ..Step::default() }
    }

    /// An owner whose dependents go first.
    fn wait(&self, owner: &Node) -> Step {
        let blocks = |dependent: &&Node| {
            let references = &dependent.meta.owner_references;
            references.iter().any(|own| own.uid == owner.meta.uid && own.block_owner_deletion)
        };
        let mut blocking = self.dependents(&owner.meta.uid).filter(blocks).peekable();
        if blocking.peek().is_none() {
            return Step::act(owner.release(FOREGROUND));
        }
        let idle = blocking.filter(|dependent| dependent.meta.deletion_timestamp.is_none());
        Step {
            others: idle.map(|dependent| dependent.meta.uid.clone()).collect(),
            ..Step::default()
        }
    }

    /// An object that is not being deleted: has it an owner left?
    fn judge(&self, node: &Node, objects: &dyn Objects) -> Step {
        let (mut solid, mut waiting, mut gone, mut reads) =
            (false, Vec::new(), Vec::new(), Vec::new());
        for owner in &node.meta.owner_references {
            match self.standing(node, owner, objects) {
                Standing::Solid => solid = true,
                Standing::Waits => waiting.push(owner.uid.clone()),
                Standing::Dangling => gone.push(owner.uid.clone()),
                Standing::Unknown(place) => reads.push(Action::Read(place)),
            }
        }
        if !reads.is_empty() {
            return Step { actions: reads, ..Step::default() };
        }
        if node.meta.owner_references.is_empty() {
            return Step::idle();
        }
        if solid {
            gone.append(&mut waiting);
            if gone.is_empty() {
                return Step::idle();
            }
            // One who waits for it would wait for ever: it stays.
            let edit = Edit::RemoveOwners { uid: node.meta.uid.clone(), owners: gone };
            return Step::act(node.edit(edit));
        }
        let owns = self.dependents.contains_key(&node.meta.uid);
        if waiting.is_empty() || !owns {
            let policy = if node.meta.finalizers.iter().any(|own| own == ORPHAN) {
                "Orphan"
            } else if node.meta.finalizers.iter().any(|own| own == FOREGROUND) {
                "Foreground"
            } else {
                "Background"
            };
            return Step::act(node.delete(policy));
        }
        // Two that wait for each other would wait for ever: this one waits for nobody.
        let circle = self.dependents(&node.meta.uid).any(|own| own.meta.awaits(FOREGROUND));
        let blocks = node.meta.owner_references.iter().any(|owner| owner.block_owner_deletion);
        if circle && blocks {
            return Step::act(node.edit(Edit::Unblock { uid: node.meta.uid.clone() }));
        }
        Step::act(node.delete("Foreground"))
    }

    fn standing(&self, node: &Node, owner: &Owner, objects: &dyn Objects) -> Standing {
        // Whoever names what cannot be, or is not known here, is left alone.
        let Some(place) = owner_place(node, owner) else { return Standing::Solid };
        let found = objects.get(place.resource, &place.namespace, &place.name);
        let found = found.filter(|found| text(found, "/metadata/uid") == owner.uid);
        if let Some(found) = found {
            let ends = at(&found, "/metadata/deletionTimestamp").is_some();
            let waits = items(&found, "/metadata/finalizers").any(|own| own == FOREGROUND);
            return if ends && waits { Standing::Waits } else { Standing::Solid };
        }
        let known = (owner.uid.clone(), place.namespace.clone());
        if self.absent.contains(&known) { Standing::Dangling } else { Standing::Unknown(place) }
    }
}

impl Node {
    fn edit(&self, edit: Edit) -> Action {
        Action::Edit(self.place.clone(), edit)
    }

    fn release(&self, finalizer: &'static str) -> Action {
        self.edit(Edit::RemoveFinalizer { uid: self.meta.uid.clone(), finalizer })
    }

    /// As it is known here: if it is not so any more, it is judged again.
    fn delete(&self, policy: &str) -> Action {
        let options = DeleteOptions {
            uid: Some(self.meta.uid.clone()),
            resource_version: Some(self.meta.resource_version.clone()),
            propagation_policy: Some(policy.to_owned()),
            ..DeleteOptions::default()
        };
        Action::Delete(self.place.clone(), options)
    }
}

/// Where the owner of an object must be; none where there can be none.
fn owner_place(node: &Node, owner: &Owner) -> Option<Place> {
    let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
    let of_kind = |known: &&Resource| known.group == group && known.kind == owner.kind;
    let named = RESOURCES.iter().filter(|known| known.verbs.contains(&"get"));
    let mut named = named.filter(of_kind).peekable();
    let first = *named.peek()?;
    let resource = named.find(|known| known.version == version).unwrap_or(first);
    if resource.namespaced && node.place.namespace.is_empty() {
        return None;
    }
    let namespace = if resource.namespaced { &node.place.namespace[..] } else { "" };
    Some(Place::new(resource, namespace, &owner.name))
}

fn same(one: &Place, other: &Place) -> bool {
    std::ptr::eq(one.resource, other.resource)
        && one.namespace == other.namespace
        && one.name == other.name
}
