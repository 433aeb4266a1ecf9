//! How many pods may be evicted: the status of `PodDisruptionBudget`s (Kubernetes documentation, *Specifying a Disruption
//! Budget*). Without it every eviction that a budget concerns is refused, and no node can be drained.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Action, Look, Loop, Now, Seen, Step, served, split};
use crate::object::{Object, Objects, at, items, text};
use crate::resources::Resource;
use crate::selector::Labels;

/// How long after a change of a pod: others follow.
const SOON: Duration = Duration::from_millis(20);
/// How long an evicted pod may take to be deleted before it counts again.
const CONFIRMED: Duration = Duration::from_secs(120);
/// Whose pods are counted by how many it wants.
const CONTROLLERS: [(&str, &str, &str); 4] = [
    ("", "ReplicationController", "replicationcontrollers"),
    ("apps", "Deployment", "deployments"),
    ("apps", "ReplicaSet", "replicasets"),
    ("apps", "StatefulSet", "statefulsets"),
];

/// The loop. Its keys are `namespace/name` of budgets.
#[derive(Debug, Default)]
pub struct Disruptions {
    spaces: BTreeMap<String, Space>,
}

/// A namespace with budgets.
#[derive(Debug, Default)]
struct Space {
    /// By their names; none: it selects nothing.
    budgets: BTreeMap<String, Option<Labels>>,
    /// By their names; none: they have not been read yet.
    pods: Option<BTreeMap<String, Pod>>,
}

#[derive(Debug)]
struct Pod {
    labels: Map<String, Value>,
    ready: bool,
    goes: bool,
    controller: Option<Controller>,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Controller {
    resource: &'static str,
    group: &'static str,
    name: String,
    uid: String,
}

impl Loop for Disruptions {
    fn name(&self) -> &'static str {
        "disruptions"
    }

    fn wants(&self, resource: &'static Resource) -> bool {
        is_budgets(resource) || is_pods(resource) || is_controllers(resource)
    }

    fn observe(&mut self, seen: &Seen<'_>, _: Now) -> Vec<Look> {
        let key = |name: &String| format!("{}/{name}", seen.namespace);
        if is_budgets(seen.resource) {
            let space = self.spaces.entry(seen.namespace.to_owned()).or_default();
            if seen.gone {
                space.budgets.remove(seen.name);
                if space.budgets.is_empty() {
                    self.spaces.remove(seen.namespace);
                }
                return Vec::new();
            }
            let budget = seen.object();
            let selector = at(&budget, "/spec/selector").filter(|selector| selector.is_object());
            space.budgets.insert(seen.name.to_owned(), selector.map(Labels::of));
            return vec![Look::now(format!("{}/{}", seen.namespace, seen.name))];
        }
        let Some(space) = self.spaces.get_mut(seen.namespace) else { return Vec::new() };
        if let Some(pods) = space.pods.as_mut().filter(|_| is_pods(seen.resource)) {
            if seen.gone {
                pods.remove(seen.name);
            } else {
                pods.insert(seen.name.to_owned(), Pod::of(&seen.object()));
            }
        }
        space.budgets.keys().map(|name| Look::after(key(name), SOON)).collect()
    }

    fn step(&mut self, key: &str, objects: &dyn Objects, now: Now) -> Step {
        let (namespace, name) = split(key);
        let budgets = served("policy", "v1", "poddisruptionbudgets");
        let Some(space) = self.spaces.get_mut(namespace) else { return Step::idle() };
        let Some(budget) = objects.get(budgets, namespace, name) else { return Step::idle() };
        let pods = space.pods.get_or_insert_with(|| {
            let pods = objects.list(served("", "v1", "pods"), namespace);
            pods.iter().map(|pod| (text(pod, "/metadata/name").to_owned(), Pod::of(pod))).collect()
        });
        let selector = space.budgets.get(name).and_then(Option::as_ref);
        let fits = |pod: &Pod| {
            let label = |key: &str| pod.labels.get(key).and_then(Value::as_str);
            selector.is_some_and(|selector| selector.fit(label))
        };
        let own: BTreeMap<&str, &Pod> =
            pods.iter().filter(|(_, pod)| fits(pod)).map(|(name, pod)| (&name[..], pod)).collect();
        let mut disrupted = Map::new();
        let mut again = None;
        let known = at(&budget, "/status/disruptedPods").and_then(Value::as_object);
        for (pod, since) in known.into_iter().flatten() {
            let told = since.as_str().and_then(|since| OffsetDateTime::parse(since, &Rfc3339).ok());
            let left = told.and_then(|told| Duration::try_from(told + CONFIRMED - now.wall).ok());
            let left = left.filter(|left| !left.is_zero() && *left <= CONFIRMED);
            if let Some(left) = left
                && own.get(&pod[..]).is_some_and(|pod| !pod.goes)
            {
                disrupted.insert(pod.clone(), since.clone());
                let then = now.at + left;
                again = Some(again.map_or(then, |known: Instant| known.min(then)));
            }
        }
        let healthy = own
            .iter()
            .filter(|(name, pod)| pod.ready && !pod.goes && !disrupted.contains_key(**name));
        let healthy = i64::try_from(healthy.count()).unwrap_or(i64::MAX);
        let (expected, desired) = wanted(&budget, namespace, &own, objects);
        let status = told(&budget, disrupted, [expected, desired, healthy], now.wall);
        if at(&budget, "/status") == Some(&status) {
            return Step { again, ..Step::default() };
        }
        let mut budget = budget;
        budget.insert("status".to_owned(), status);
        Step { actions: vec![Action::Replace(budgets, "status", budget)], again, ..Step::default() }
    }
}

impl Pod {
    fn of(pod: &Object) -> Self {
        let controller =
            items(pod, "/metadata/ownerReferences").find(|owner| owner["controller"] == true);
        Self {
            labels: at(pod, "/metadata/labels")
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default(),
            ready: items(pod, "/status/conditions")
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True"),
            goes: at(pod, "/metadata/deletionTimestamp").is_some(),
            controller: controller.and_then(Controller::of),
        }
    }
}

impl Controller {
    /// Of an owner reference; none if we do not know how many pods it wants.
    fn of(owner: &Value) -> Option<Self> {
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        let group = text("apiVersion").split_once('/').map_or("", |(group, _)| group);
        let known = CONTROLLERS.iter().find(|known| known.0 == group && known.1 == text("kind"));
        let (group, _, resource) = *known?;
        Some(Self { resource, group, name: text("name").to_owned(), uid: text("uid").to_owned() })
    }

    /// Itself, or the deployment of a set of one, with how many pods it wants.
    fn wants(&self, namespace: &str, objects: &dyn Objects) -> Option<(Self, i64)> {
        let found = objects.get(served(self.group, "v1", self.resource), namespace, &self.name);
        let found = found.filter(|found| text(found, "/metadata/uid") == self.uid)?;
        let mut owners = items(&found, "/metadata/ownerReferences");
        let above = owners.find(|owner| owner["controller"] == true).and_then(Self::of);
        if let Some(above) = above.filter(|above| above.resource == "deployments")
            && self.resource == "replicasets"
        {
            return above.wants(namespace, objects);
        }
        Some((self.clone(), at(&found, "/spec/replicas").and_then(Value::as_i64).unwrap_or(1)))
    }
}

/// How many pods there should be, and how many must be healthy.
fn wanted(
    budget: &Object,
    namespace: &str,
    own: &BTreeMap<&str, &Pod>,
    objects: &dyn Objects,
) -> (i64, i64) {
    let scale = || {
        let controllers = own.values().filter_map(|pod| pod.controller.as_ref());
        let distinct: BTreeSet<_> = controllers.collect();
        let all = distinct.into_iter().filter_map(|one| one.wants(namespace, objects));
        // Two sets of a deployment count once.
        all.collect::<BTreeMap<_, _>>().values().sum::<i64>()
    };
    if let Some(most) = at(budget, "/spec/maxUnavailable") {
        let expected = scale();
        return (expected, (expected - share(most, expected)).max(0));
    }
    match at(budget, "/spec/minAvailable") {
        Some(Value::String(least)) => {
            let expected = scale();
            (expected, share(&least.as_str().into(), expected))
        }
        Some(least) => (i64::try_from(own.len()).unwrap_or(i64::MAX), least.as_i64().unwrap_or(0)),
        None => (i64::try_from(own.len()).unwrap_or(i64::MAX), 1),
    }
}

/// A number, or so many per cent of all, rounded up.
fn share(part: &Value, all: i64) -> i64 {
    let Some(text) = part.as_str() else { return part.as_i64().unwrap_or(0) };
    let percent = text.trim_end_matches('%').parse::<i64>().unwrap_or(0);
    percent.saturating_mul(all).saturating_add(99) / 100
}

fn told(
    budget: &Object,
    disrupted: Map<String, Value>,
    [expected, desired, healthy]: [i64; 3],
    now: OffsetDateTime,
) -> Value {
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let generation = at(budget, "/metadata/generation").cloned().unwrap_or(Value::Null);
    let (status, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let mut conditions: Vec<Value> = items(budget, "/status/conditions").cloned().collect();
    let known = conditions.iter().position(|known| known["type"] == "DisruptionAllowed");
    let known = known.map(|known| conditions.remove(known));
    let since = known.filter(|known| known["status"] == status);
    let since = since.and_then(|known| known.get("lastTransitionTime").cloned());
    let now = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
    conditions.push(json!({
        "type": "DisruptionAllowed",
        "status": status,
        "reason": reason,
        "message": "",
        "observedGeneration": generation,
        "lastTransitionTime": since.unwrap_or_else(|| now.into()),
    }));
    let mut status = json!({
        "observedGeneration": generation,
        "disruptionsAllowed": allowed,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "expectedPods": expected,
        "conditions": conditions,
    });
    if !disrupted.is_empty() {
        status["disruptedPods"] = disrupted.into();
    }
    status
}

fn is_budgets(resource: &Resource) -> bool {
    resource.group == "policy" && resource.plural == "poddisruptionbudgets"
}

fn is_pods(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "pods"
}

fn is_controllers(resource: &Resource) -> bool {
    CONTROLLERS
        .iter()
        .any(|(group, _, plural)| *group == resource.group && *plural == resource.plural)
}
