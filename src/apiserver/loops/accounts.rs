//! What every namespace has: the ServiceAccount its pods act as, and the authority its pods trust the server by.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Action, Edit, Look, Loop, Now, Place, Seen, Step, served};
use crate::object::{Object, Objects, at};
use crate::resources::Resource;

const ACCOUNT: &str = "default";
const AUTHORITY: &str = "kube-root-ca.crt";

/// The loop. Its keys are namespaces.
#[derive(Debug)]
pub struct Accounts {
    data: Map<String, Value>,
    /// Namespaces that are there and do not end.
    active: BTreeSet<String>,
}

impl Accounts {
    /// `authority`: the certificates, in PEM, by which pods know the server.
    #[must_use]
    pub fn new(authority: &str) -> Self {
        let data = Map::from_iter([("ca.crt".to_owned(), authority.into())]);
        Self { data, active: BTreeSet::new() }
    }
}

impl Loop for Accounts {
    fn name(&self) -> &'static str {
        "accounts"
    }

    fn wants(&self, resource: &'static Resource) -> bool {
        resource.group.is_empty()
            && matches!(resource.plural, "namespaces" | "serviceaccounts" | "configmaps")
    }

    fn observe(&mut self, seen: &Seen<'_>, _: Now) -> Vec<Look> {
        let (namespace, turn) = match (seen.resource.plural, seen.name) {
            ("namespaces", name) => {
                let active = !seen.gone && seen.meta.deletion_timestamp.is_none();
                let new = if active {
                    self.active.insert(name.to_owned())
                } else {
                    self.active.remove(name);
                    false
                };
                (name, new)
            }
            ("serviceaccounts", ACCOUNT) => (seen.namespace, seen.gone),
            ("configmaps", AUTHORITY) => (seen.namespace, true),
            _ => return Vec::new(),
        };
        if turn && self.active.contains(namespace) {
            vec![Look::now(namespace)]
        } else {
            Vec::new()
        }
    }

    fn step(&mut self, key: &str, objects: &dyn Objects, _: Now) -> Step {
        if !self.active.contains(key) {
            return Step::idle();
        }
        let mut actions = Vec::new();
        let accounts = served("", "v1", "serviceaccounts");
        if objects.get(accounts, key, ACCOUNT).is_none() {
            actions.push(Action::Create(accounts, object(key, ACCOUNT, None)));
        }
        let maps = served("", "v1", "configmaps");
        match objects.get(maps, key, AUTHORITY) {
            None => {
                let map = object(key, AUTHORITY, Some(&self.data));
                actions.push(Action::Create(maps, map));
            }
            Some(map) if at(&map, "/data").and_then(Value::as_object) != Some(&self.data) => {
                let edit = Edit::Data(self.data.clone());
                actions.push(Action::Edit(Place::new(maps, key, AUTHORITY), edit));
            }
            Some(_) => {}
        }
        Step { actions, ..Step::default() }
    }
}

fn object(namespace: &str, name: &str, data: Option<&Map<String, Value>>) -> Object {
    let metadata = json!({"namespace": namespace, "name": name});
    let mut object = Map::from_iter([("metadata".to_owned(), metadata)]);
    if let Some(data) = data {
        object.insert("data".to_owned(), data.clone().into());
    }
    object
}
