//! Roles and bindings as an index: from who asks to the bindings that name them, from there to the compiled rules of
//! the role. It follows what is written, one object at a time, so nothing is ever worked out anew from all of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::rule::Sought;
use super::{Action, Authorizer, Decision, Held, Rule, quoted};
use crate::object::{Object, User, items, text};
use crate::resources::Resource;

/// The group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// Decides by roles and bindings. Readers go side by side; a writer holds them up for the change of one entry.
#[derive(Debug, Default)]
pub struct Rbac(RwLock<Index>);

/// A namespace, empty for what is in none, and a name.
type Key = (Box<str>, Box<str>);
type RoleId = usize;

#[derive(Debug, Default)]
struct Index {
    roles: HashMap<Key, RoleId>,
    /// By [`RoleId`]; those free are in `free`.
    slots: Vec<Slot>,
    free: Vec<RoleId>,
    bindings: HashMap<Key, Binding>,
    users: HashMap<Box<str>, Grants>,
    groups: HashMap<Box<str>, Grants>,
}

/// A role that is there, or that a binding names.
#[derive(Debug)]
struct Slot {
    key: Key,
    /// None: it is not there.
    rules: Option<Arc<[Rule]>>,
    /// How many bindings name it.
    bound: usize,
}

#[derive(Debug)]
struct Binding {
    role: RoleId,
    who: Vec<Who>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Who {
    User(Box<str>),
    Group(Box<str>),
}

/// What one user or group is granted.
#[derive(Debug, Default)]
struct Grants {
    everywhere: Vec<Grant>,
    within: HashMap<Box<str>, Vec<Grant>>,
}

#[derive(Debug)]
struct Grant {
    /// Of the binding.
    name: Box<str>,
    role: RoleId,
    /// Why what it allows is allowed.
    reason: Arc<str>,
}

impl Rbac {
    /// Takes in what was written: `object` is None when it was deleted. Other resources are passed over.
    pub fn observe(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        object: Option<&Object>,
    ) {
        if resource.group != GROUP {
            return;
        }
        let key = (Box::from(namespace), Box::from(name));
        match resource.plural {
            // Read before the lock is taken.
            "roles" | "clusterroles" => {
                let rules = object.map(|role| Rule::read_all(role).into());
                self.0.write().unwrap_or_else(PoisonError::into_inner).role(key, rules);
            }
            "rolebindings" | "clusterrolebindings" => {
                let binding = object.map(|binding| read_binding(namespace, name, binding));
                self.0.write().unwrap_or_else(PoisonError::into_inner).bind(key, binding);
            }
            _ => {}
        }
    }

    /// The rules of a role, if it is there; `namespace` is empty for a cluster role.
    #[must_use]
    pub fn role(&self, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        let index = self.index();
        let id = index.roles.get(&(Box::from(namespace), Box::from(name)))?;
        index.slots[*id].rules.clone()
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Authorizer for Rbac {
    fn decide(&self, action: &Action<'_>) -> Decision {
        let index = self.index();
        let sought = Sought::of(action);
        let namespace = action.asked.map_or("", |asked| asked.namespace);
        let mut all_there = true;
        let allows = |grant: &&Grant| match &index.slots[grant.role].rules {
            Some(rules) => rules.iter().any(|rule| rule.allows(sought, action)),
            None => {
                all_there = false;
                false
            }
        };
        if let Some(grant) = index.grants(action.user, namespace).find(allows) {
            return Decision::Allow(Arc::clone(&grant.reason));
        }
        if all_there {
            return Decision::NoOpinion(String::new());
        }
        let missing = index.missing(action.user, namespace);
        Decision::NoOpinion(match &missing[..] {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            several => format!("RBAC: [{}]", several.join(", ")),
        })
    }

    fn held(&self, user: &User, namespace: &str) -> Held {
        let index = self.index();
        let rules = index
            .grants(user, namespace)
            .filter_map(|grant| index.slots[grant.role].rules.as_deref());
        Held { rules: rules.flatten().cloned().collect(), unknown: index.missing(user, namespace) }
    }
}

impl Index {
    /// All that a user has, those of the whole cluster first.
    fn grants(&self, user: &User, namespace: &str) -> impl Iterator<Item = &Grant> {
        let of_groups = user.groups.iter().filter_map(|group| self.groups.get(group.as_str()));
        let all = self.users.get(user.name.as_str()).into_iter().chain(of_groups);
        let everywhere = all.clone().flat_map(|grants| &grants.everywhere);
        let within = all.filter_map(move |grants| grants.within.get(namespace)).flatten();
        everywhere.chain(within)
    }

    /// The roles that are granted and not there, as the reference tells them.
    fn missing(&self, user: &User, namespace: &str) -> Vec<String> {
        let mut told = Vec::new();
        for grant in self.grants(user, namespace) {
            let Slot { key: (namespace, name), rules: None, .. } = &self.slots[grant.role] else {
                continue;
            };
            let kind = if namespace.is_empty() { "clusterrole" } else { "role" };
            let text = format!("{kind}.{GROUP} {} not found", quoted(name));
            if !told.contains(&text) {
                told.push(text);
            }
        }
        told
    }

    fn role(&mut self, key: Key, rules: Option<Arc<[Rule]>>) {
        if rules.is_some() || self.roles.contains_key(&key) {
            let id = self.slot(key);
            self.slots[id].rules = rules;
            self.tidy(id);
        }
    }

    fn bind(&mut self, key: Key, binding: Option<ReadBinding>) {
        if let Some(old) = self.bindings.remove(&key) {
            for who in old.who {
                self.withdraw(who, &key);
            }
            self.slots[old.role].bound -= 1;
            self.tidy(old.role);
        }
        let Some(ReadBinding { role, subjects }) = binding else { return };
        let role = self.slot(role);
        self.slots[role].bound += 1;
        let (namespace, name) = &key;
        for (who, reason) in &subjects {
            let grants = match who {
                Who::User(user) => self.users.entry(user.clone()).or_default(),
                Who::Group(group) => self.groups.entry(group.clone()).or_default(),
            };
            let list = match &**namespace {
                "" => &mut grants.everywhere,
                _ => grants.within.entry(namespace.clone()).or_default(),
            };
            list.push(Grant { name: name.clone(), role, reason: Arc::clone(reason) });
        }
        let who = subjects.into_iter().map(|(who, _)| who).collect();
        self.bindings.insert(key, Binding { role, who });
    }

    /// Takes what a binding grants from one of its subjects.
    fn withdraw(&mut self, who: Who, (namespace, name): &Key) {
        let (map, who) = match who {
            Who::User(user) => (&mut self.users, user),
            Who::Group(group) => (&mut self.groups, group),
        };
        let Entry::Occupied(mut entry) = map.entry(who) else { return };
        let grants = entry.get_mut();
        if namespace.is_empty() {
            grants.everywhere.retain(|grant| grant.name != *name);
        } else if let Some(list) = grants.within.get_mut(namespace) {
            list.retain(|grant| grant.name != *name);
            if list.is_empty() {
                grants.within.remove(namespace);
            }
        }
        if grants.everywhere.is_empty() && grants.within.is_empty() {
            entry.remove();
        }
    }

    /// The slot of a role, made if there is none.
    fn slot(&mut self, key: Key) -> RoleId {
        if let Some(id) = self.roles.get(&key) {
            return *id;
        }
        let slot = Slot { key: key.clone(), rules: None, bound: 0 };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.roles.insert(key, id);
        id
    }

    /// Forgets a role that is neither there nor named.
    fn tidy(&mut self, id: RoleId) {
        let slot = &self.slots[id];
        if slot.rules.is_none() && slot.bound == 0 {
            self.roles.remove(&slot.key);
            self.free.push(id);
        }
    }
}

struct ReadBinding {
    role: Key,
    /// Each with the reason for what it is allowed by this.
    subjects: Vec<(Who, Arc<str>)>,
}

fn read_binding(namespace: &str, name: &str, binding: &Object) -> ReadBinding {
    let (role_kind, role_name) = (text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"));
    let own = if role_kind == "Role" { namespace } else { "" };
    let told = if namespace.is_empty() {
        format!("ClusterRoleBinding {}", quoted(name))
    } else {
        format!("RoleBinding {}", quoted(&format!("{name}/{namespace}")))
    };
    let mut subjects: Vec<(Who, Arc<str>)> = Vec::new();
    // A reference to no kind of role grants nothing.
    let known = matches!(role_kind, "Role" | "ClusterRole");
    for subject in items(binding, "/subjects").filter(|_| known) {
        let field = |name: &str| subject.get(name).and_then(|value| value.as_str()).unwrap_or("");
        let (kind, subject_name) = (field("kind"), field("name"));
        let (who, subject_name) = match kind {
            "User" => (Who::User(subject_name.into()), subject_name.to_owned()),
            "Group" => (Who::Group(subject_name.into()), subject_name.to_owned()),
            "ServiceAccount" => {
                let place = Some(field("namespace")).filter(|place| !place.is_empty());
                // Of a cluster role binding it must be given: one of none is nobody's.
                let place = place.unwrap_or(namespace);
                if place.is_empty() {
                    continue;
                }
                let user = format!("system:serviceaccount:{place}:{subject_name}");
                (Who::User(user.into()), format!("{subject_name}/{place}"))
            }
            _ => continue,
        };
        let reason = format!(
            "RBAC: allowed by {told} of {role_kind} {} to {kind} {}",
            quoted(role_name),
            quoted(&subject_name)
        );
        // Named twice is granted once.
        if subjects.iter().all(|(known, _)| *known != who) {
            subjects.push((who, reason.into()));
        }
    }
    ReadBinding { role: (own.into(), role_name.into()), subjects }
}

#[cfg(test)]
mod tests;
