//! Cluster roles that gather the rules of others, by their labels (`aggregationRule`).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::object::{Object, at, items};
use crate::selector::Labels;

/// Follows the cluster roles and says which must be written anew. Whoever drives it tells it of every write, also of
/// its own: a role that gathers from one that gathers follows in the next step.
#[derive(Debug, Default)]
pub struct Aggregation(BTreeMap<String, Known>);

#[derive(Debug)]
struct Known {
    labels: BTreeMap<String, String>,
    rules: Vec<Value>,
    /// None: it gathers nothing.
    gathers: Option<Vec<Labels>>,
}

/// A cluster role whose rules must be these.
#[derive(Clone, Debug, PartialEq)]
pub struct Gathered {
    /// Which.
    pub name: String,
    /// All of them.
    pub rules: Vec<Value>,
}

impl Aggregation {
    /// Takes in a cluster role as it is now, None when it was deleted.
    #[must_use]
    pub fn observe(&mut self, name: &str, role: Option<&Object>) -> Vec<Gathered> {
        let new = role.map(read);
        let old = match new {
            Some(new) => self.0.insert(name.to_owned(), new),
            None => self.0.remove(name),
        };
        let new = self.0.get(name);
        let touched: Vec<_> = old.iter().chain(new).map(|known| &known.labels).collect();
        let concerned = |own: &str, known: &Known| {
            let Some(selectors) = &known.gathers else { return false };
            own == name
                || selectors.iter().any(|one| touched.iter().any(|labels| fits(one, labels)))
        };
        let all = self.0.iter().filter(|(own, known)| concerned(own, known));
        all.filter_map(|(own, known)| {
            let rules = self.gather(own, known.gathers.as_deref().unwrap_or_default());
            (rules != known.rules).then(|| Gathered { name: own.clone(), rules })
        })
        .collect()
    }

    /// The rules of all that the selectors fit, but the role itself: in the order of their names, each rule once.
    fn gather(&self, own: &str, selectors: &[Labels]) -> Vec<Value> {
        let mut rules: Vec<Value> = Vec::new();
        for selector in selectors {
            let fitting =
                self.0.iter().filter(|(name, known)| *name != own && fits(selector, &known.labels));
            for rule in fitting.flat_map(|(_, known)| &known.rules) {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
        rules
    }
}

fn fits(selector: &Labels, labels: &BTreeMap<String, String>) -> bool {
    selector.fit(|key| labels.get(key).map(String::as_str))
}

fn read(role: &Object) -> Known {
    let labels = at(role, "/metadata/labels").and_then(Value::as_object).into_iter().flatten();
    let gathers = at(role, "/aggregationRule")
        .filter(|rule| !rule.is_null())
        .map(|_| items(role, "/aggregationRule/clusterRoleSelectors").map(Labels::of).collect());
    let label = |(key, value): (&String, &Value)| {
        (key.clone(), value.as_str().unwrap_or_default().to_owned())
    };
    Known {
        labels: labels.map(label).collect(),
        rules: items(role, "/rules").cloned().collect(),
        gathers,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::text;

    fn role(name: &str, label: &str, gathers: &str, rules: &[u32]) -> Object {
        let mut role = json!({"metadata": {"name": name}, "rules": rules});
        if !label.is_empty() {
            role["metadata"]["labels"] = json!({label: "true"});
        }
        if !gathers.is_empty() {
            role["aggregationRule"] =
                json!({"clusterRoleSelectors": [{"matchLabels": {gathers: "true"}}]});
        }
        let Value::Object(role) = role else { unreachable!("it is an object") };
        role
    }

    /// Writes it, and all that follows from it; tells each step.
    fn settle(
        all: &mut Aggregation,
        stored: &mut BTreeMap<String, Object>,
        first: Object,
    ) -> Vec<String> {
        let mut told = Vec::new();
        let name = text(&first, "/metadata/name").to_owned();
        let mut writes = vec![(name, Some(first))];
        while let Some((name, role)) = writes.pop() {
            match &role {
                Some(role) => drop(stored.insert(name.clone(), role.clone())),
                None => drop(stored.remove(&name)),
            }
            for Gathered { name, rules } in all.observe(&name, role.as_ref()) {
                let mut role = stored[&name].clone();
                told.push(format!("{name} {}", Value::from(rules.clone())));
                role.insert("rules".to_owned(), rules.into());
                writes.push((name, Some(role)));
            }
            assert!(told.len() < 20, "it comes to an end");
        }
        told
    }

    #[test]
    fn roles_gather_what_is_there_in_the_order_of_names() {
        let (mut all, mut stored) = (Aggregation::default(), BTreeMap::new());
        let mut write = |role| settle(&mut all, &mut stored, role);
        assert!(write(role("admin", "", "to-admin", &[])).is_empty());
        assert!(write(role("edit", "to-admin", "to-edit", &[])).is_empty());
        assert_eq!(write(role("b", "to-edit", "", &[2, 3])), ["edit [2,3]", "admin [2,3]"]);
        assert_eq!(write(role("a", "to-edit", "", &[1, 2])), ["edit [1,2,3]", "admin [1,2,3]"]);
        assert_eq!(write(role("z", "to-admin", "", &[9])), ["admin [1,2,3,9]"]);
        assert!(write(role("q", "", "", &[7])).is_empty());
        // What a user writes into it is gone again.
        assert_eq!(write(role("admin", "", "to-admin", &[8])), ["admin [1,2,3,9]"]);
        assert_eq!(write(role("b", "", "", &[2, 3])), ["edit [1,2]", "admin [1,2,9]"]);
        let gone = all.observe("a", None);
        assert_eq!(gone, [Gathered { name: "edit".to_owned(), rules: vec![] }]);
    }

    #[test]
    fn roles_that_gather_from_each_other_come_to_rest() {
        let (mut all, mut stored) = (Aggregation::default(), BTreeMap::new());
        settle(&mut all, &mut stored, role("a", "x", "y", &[]));
        settle(&mut all, &mut stored, role("b", "y", "x", &[]));
        settle(&mut all, &mut stored, role("c", "x", "", &[1]));
        assert_eq!(stored["a"]["rules"], json!([1]));
        assert_eq!(stored["b"]["rules"], json!([1]));
    }
}
