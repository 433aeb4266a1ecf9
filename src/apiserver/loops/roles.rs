//! Cluster roles that gather the rules of others are kept as those are.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Action, Edit, Look, Loop, Now, Place, Seen, Step, served};
use crate::authz::aggregation::Aggregation;
use crate::object::{Object, Objects};
use crate::resources::Resource;
use crate::status::Status;

/// The loop. Its keys are the names of roles.
#[derive(Debug, Default)]
pub struct Roles {
    gathering: Aggregation,
    /// What is to be written.
    wanted: BTreeMap<String, Vec<Value>>,
}

impl Loop for Roles {
    fn name(&self) -> &'static str {
        "roles"
    }

    fn wants(&self, resource: &'static Resource) -> bool {
        resource.group == "rbac.authorization.k8s.io" && resource.plural == "clusterroles"
    }

    fn observe(&mut self, seen: &Seen<'_>, _: Now) -> Vec<Look> {
        // What it is now is what it is to be, unless it is said otherwise here.
        self.wanted.remove(seen.name);
        let role = seen.object();
        let gathered = self.gathering.observe(seen.name, (!seen.gone).then_some(&role));
        gathered
            .into_iter()
            .map(|gathered| {
                let look = Look::now(gathered.name.clone());
                self.wanted.insert(gathered.name, gathered.rules);
                look
            })
            .collect()
    }

    fn step(&mut self, key: &str, _: &dyn Objects, _: Now) -> Step {
        let Some(rules) = self.wanted.get(key) else { return Step::idle() };
        let roles = served("rbac.authorization.k8s.io", "v1", "clusterroles");
        Step::act(Action::Edit(Place::new(roles, "", key), Edit::Rules(rules.clone())))
    }

    fn ended(&mut self, key: &str, action: &Action, end: &Result<Option<Object>, Status>, _: Now) {
        if let (Action::Edit(_, Edit::Rules(rules)), Ok(_)) = (action, end)
            && self.wanted.get(key) == Some(rules)
        {
            self.wanted.remove(key);
        }
    }
}
